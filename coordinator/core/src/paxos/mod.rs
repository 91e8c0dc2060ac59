//! The replicated log: Multi-Paxos with a stable leader.
//!
//! Phase 1 runs once per ballot over every slot above the decided prefix, phase 2 is pipelined (Lamport, *Paxos Made
//! Simple*, section 3; van Renesse and Altinbuken, *Paxos Made Moderately Complex*). Election is by pre-vote, so that
//! a replica that cannot win disturbs nobody (Ongaro, *Consensus: Bridging Theory and Practice*, section 9.6), and
//! does not ask for an up-to-date log, so that constrained topologies do not livelock (Ng et al., *Omni-Paxos*,
//! section 3): the winner catches up instead (L5).
//!
//! [`acceptor`] owns what is durable, [`election`] decides who may try, [`proposer`] owns a ballot, [`learner`] turns
//! accepted values into a gap-free decided prefix.

pub mod acceptor;
pub mod election;
pub mod learner;
pub mod proposer;

use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use synod_proto::ids::{Incarnation, ProcessNonce, ReplicaId, UnixMillis};

/// A position of the log, from 1. Slot 0 is "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u64);

impl Slot {
    /// Before the first slot.
    pub const ZERO: Self = Self(0);

    /// The slot after this one. No log reaches the last one; a peer may name it all the same.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A ballot number. `start` counts the starts of the proposing process, so a restarted replica never proposes in a
/// ballot of its former life (L1). Ordered by round, then replica, then start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot {
    /// The counter.
    pub round: u64,
    /// The proposing replica.
    pub replica: ReplicaId,
    /// The proposing process, by its replica's count of starts.
    pub start: u64,
}

impl Ballot {
    /// Below every ballot that is ever proposed.
    pub const ZERO: Self = Self {
        round: 0,
        replica: ReplicaId(0),
        start: 0,
    };

    /// The ballot under which a replica records a value that it did not accept but learned as decided. Above every
    /// ballot that is ever proposed, so that a candidate to which it is reported can choose nothing else.
    pub const DECIDED: Self = Self {
        round: u64::MAX,
        replica: ReplicaId(u8::MAX),
        start: u64::MAX,
    };

    /// Whether a replica may have proposed in it: neither "none yet" nor "decided".
    #[must_use]
    pub const fn is_proposable(self) -> bool {
        0 < self.round && self.round < Self::DECIDED.round
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.round, self.replica, self.start)
    }
}

/// A value accepted in a slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Accepted {
    /// The slot.
    pub slot: Slot,
    /// The ballot it was accepted in.
    pub ballot: Ballot,
    /// The encoded entry.
    pub value: Bytes,
}

/// A message between replicas on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// The sender.
    pub from: ReplicaId,
    /// The addressee.
    pub to: ReplicaId,
    /// The message.
    pub message: Message,
}

/// What replicas say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// "I have (re)started on this directory: does it contradict what you know of me?" (L10)
    Hello {
        /// The directory's incarnation.
        incarnation: Incarnation,
        /// The process, by its replica's count of starts.
        start: u64,
        /// The process, by the random number that it drew: a copy of the directory counts the same starts.
        process: ProcessNonce,
        /// The highest ballot it had promised when it started.
        promised: Ballot,
        /// The highest slot it had accepted when it started.
        accepted_up_to: Slot,
    },
    /// The answer to `Hello`.
    HelloAnswer {
        /// The `start` of the question: answers to a former process do not count.
        start: u64,
        /// The `process` of the question: nor do answers to a process on a copy of the directory.
        process: ProcessNonce,
        /// What is wrong with the directory or its count of starts, or `None`.
        contradiction: Option<String>,
        /// The highest ballot that the addressee ever acknowledged to the sender's process.
        ballot: Ballot,
        /// The highest slot that it did.
        slot: Slot,
    },
    /// "Would you promise, if I asked?" Changes nothing anywhere.
    PreVote {
        /// Counts the sender's attempts, so that late answers do not count.
        attempt: u64,
    },
    /// The answer to `PreVote`.
    PreVoteAnswer {
        /// The question's attempt.
        attempt: u64,
        /// Whether the sender would promise.
        granted: bool,
        /// The highest round that the sender knows.
        round: u64,
        /// The sender's decided prefix.
        decided_up_to: Slot,
    },
    /// Paxos phase 1a, over all slots above `above`.
    Prepare {
        /// The candidate's ballot.
        ballot: Ballot,
        /// The candidate's decided prefix: it needs no reports of slots up to it.
        above: Slot,
    },
    /// Paxos phase 1b.
    Promise {
        /// The ballot promised.
        ballot: Ballot,
        /// The sender's decided prefix (L5).
        decided_up_to: Slot,
        /// The first slot whose value the sender still has (L5).
        first_retained: Slot,
        /// What it accepted above the candidate's prefix.
        accepted: Vec<Accepted>,
        /// Slots of which it does not know what it accepted (L3).
        unreadable: Vec<Slot>,
    },
    /// Paxos phase 2a.
    Accept {
        /// The leader's ballot.
        ballot: Ballot,
        /// The slot.
        slot: Slot,
        /// The encoded entry.
        value: Bytes,
        /// The leader's decided prefix, in this ballot (L4).
        decided_up_to: Slot,
    },
    /// Paxos phase 2b.
    Accepted {
        /// The ballot.
        ballot: Ballot,
        /// The slot.
        slot: Slot,
    },
    /// "I have promised a higher ballot."
    Nack {
        /// The ballot refused.
        ballot: Ballot,
        /// The ballot promised.
        promised: Ballot,
    },
    /// The leader lives.
    Heartbeat {
        /// The leader's ballot.
        ballot: Ballot,
        /// The leader's decided prefix, in this ballot (L4).
        decided_up_to: Slot,
        /// Counts the leader's rounds of heartbeats.
        sequence: u64,
        /// Whether the leader hears a quorum: one that does not keeps nobody from promising to another.
        has_quorum: bool,
    },
    /// The answer to `Heartbeat`.
    HeartbeatAnswer {
        /// The leader's ballot.
        ballot: Ballot,
        /// The heartbeat's sequence.
        sequence: u64,
        /// The sender's wall clock, for the stamp (T14).
        wall: UnixMillis,
    },
    /// "Send me decided values above this slot."
    CatchUp {
        /// The sender's decided prefix.
        above: Slot,
    },
    /// Decided values of consecutive slots. Decided is decided, in whatever ballot.
    Decided {
        /// The first slot.
        first: Slot,
        /// The encoded entries.
        values: Vec<Bytes>,
        /// The sender's decided prefix: more can be had up to it.
        decided_up_to: Slot,
    },
}
