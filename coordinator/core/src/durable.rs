//! What a replica must find again after a crash, as one struct, and what it asks its log to write.
//!
//! Every batch that reaches the disk carries the whole [`Meta`], which is small: losing a batch in the middle of the
//! log to corruption then loses no promise, only accepted values, and [`Recovered::unreadable`] says which (L3).

use crate::paxos::{Accepted, Ballot, Slot};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use synod_proto::ids::{Incarnation, ProcessNonce, ReplicaId};

/// What a replica has been told of a peer's directory (L10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerSeen {
    /// The directory's incarnation.
    pub incarnation: Incarnation,
    /// The highest count of starts.
    pub start: u64,
    /// The process that came in it. The only one: a start is on disk before its process is heard of.
    pub process: ProcessNonce,
}

impl PeerSeen {
    /// Stands under a replica's own id for a directory that was found to have lost what it acknowledged: the peer that
    /// remembers may have forgotten it by the next start.
    #[must_use]
    pub fn lost(incarnation: Incarnation, process: ProcessNonce) -> Self {
        Self {
            incarnation,
            start: u64::MAX,
            process,
        }
    }
}

/// The small part of a replica's durable state. The latest one on disk counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Meta {
    /// The highest ballot promised. It never falls.
    pub promised: Ballot,
    /// Counts the starts of this directory's process; incremented and synced before the first message (L1).
    pub start: u64,
    /// A gap-free prefix of slots that are decided and whose latest records here are the decided values. May trail
    /// what was known before a crash; never runs ahead.
    pub decided_up_to: Slot,
    /// The highest slot that a record was ever written for.
    pub accepted_up_to: Slot,
    /// The peers' directories; and, under this replica's own id, its own directory, once that has been admitted (L10).
    pub peers: BTreeMap<ReplicaId, PeerSeen>,
}

impl Meta {
    /// Whether this directory was found to have lost what it acknowledged, in a former life.
    #[must_use]
    pub fn has_lost(&self, own: ReplicaId, incarnation: Incarnation) -> bool {
        self.peers
            .get(&own)
            .is_some_and(|seen| seen.incarnation == incarnation && seen.start == u64::MAX)
    }

    /// Whether this directory was ever admitted, in this life or a former one.
    #[must_use]
    pub fn was_admitted(&self, own: ReplicaId, incarnation: Incarnation) -> bool {
        self.peers
            .get(&own)
            .is_some_and(|seen| seen.incarnation == incarnation)
    }

    /// Whether this directory was admitted as that of another replica than `own`.
    #[must_use]
    pub fn is_of_another(&self, own: ReplicaId, incarnation: Incarnation) -> bool {
        self.peers
            .iter()
            .any(|(id, seen)| *id != own && seen.incarnation == incarnation)
    }
}

/// One group of records to make durable with one sync. Records are written in order; for one slot the later wins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Batch {
    /// The state as of the end of this batch.
    pub meta: Meta,
    /// The values accepted.
    pub accepted: Vec<Accepted>,
}

/// What the log found at start, beside the values themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The latest state; the default in a new directory.
    pub meta: Meta,
    /// The slots with a readable latest record, and its ballot.
    pub readable: BTreeMap<Slot, Ballot>,
    /// Slots of which the latest record is, or may be, lost to corruption. Unreadable is not empty (L3).
    pub unreadable: BTreeSet<Slot>,
}
