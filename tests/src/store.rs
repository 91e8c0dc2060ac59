//! A replica's disk, as far as the core can tell: batches that are synced, and at most one that is under way.
//!
//! A crash keeps what is synced, and keeps or loses the batch under way as a whole, since a torn batch is cut when the
//! log is opened (L7). Corruption makes single slots unreadable (L3); a directory can be wiped, or put back as an older
//! copy of itself (L10).

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use synod_coordinator_core::durable::{Batch, Meta, Recovered};
use synod_coordinator_core::effects::Fetch;
use synod_coordinator_core::paxos::{Accepted, Ballot, Slot};
use synod_proto::ids::Incarnation;

/// What becomes of the write that is under way when the machine crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnsyncedWrite {
    /// It is as if it had never been made.
    Lost,
    /// It reached the disk, though nobody was told.
    Kept,
}

/// What a batch replaced: with it, the batch can be taken back.
#[derive(Clone, Debug)]
pub struct Undo {
    meta: Meta,
    records: Vec<(Slot, Option<(Ballot, Bytes)>)>,
    unreadable: BTreeSet<Slot>,
}

/// One directory's content. A clone is a copy of the directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    /// The directory's identity.
    pub incarnation: Incarnation,
    meta: Meta,
    records: BTreeMap<Slot, (Ballot, Bytes)>,
    unreadable: BTreeSet<Slot>,
    under_way: Option<Batch>,
}

impl Store {
    /// An empty directory.
    #[must_use]
    pub fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            meta: Meta::default(),
            records: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            under_way: None,
        }
    }

    /// The state that is on disk for sure.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The latest record of a slot that is on disk for sure and readable.
    #[must_use]
    pub fn record(&self, slot: Slot) -> Option<&(Ballot, Bytes)> {
        if self.unreadable.contains(&slot) {
            None
        } else {
            self.records.get(&slot)
        }
    }

    /// Begins to write.
    pub fn begin(&mut self, batch: Batch) {
        assert!(self.under_way.replace(batch).is_none(), "one write at a time");
    }

    /// The write under way.
    #[must_use]
    pub fn under_way(&self) -> Option<&Batch> {
        self.under_way.as_ref()
    }

    /// What `batch`, which is about to be written, replaces.
    #[must_use]
    pub fn undo_of(&self, batch: &Batch) -> Undo {
        let slots: BTreeSet<Slot> = batch.accepted.iter().map(|one| one.slot).collect();
        Undo {
            meta: self.meta.clone(),
            records: slots
                .into_iter()
                .map(|slot| (slot, self.records.get(&slot).cloned()))
                .collect(),
            unreadable: self.unreadable.clone(),
        }
    }

    /// Takes the last batch back.
    pub fn take_back(&mut self, undo: Undo) {
        self.meta = undo.meta;
        self.unreadable = undo.unreadable;
        for (slot, record) in undo.records {
            match record {
                Some(record) => self.records.insert(slot, record),
                None => self.records.remove(&slot),
            };
        }
    }

    /// Every record that was ever written last for its slot, readable or not.
    #[must_use]
    pub fn records(&self) -> &BTreeMap<Slot, (Ballot, Bytes)> {
        &self.records
    }

    /// The slots whose records cannot be read, or may be lost.
    #[must_use]
    pub fn unreadable(&self) -> &BTreeSet<Slot> {
        &self.unreadable
    }

    /// An older record of the slot, with the same value, stands in for the one that was lost.
    pub fn fall_back(&mut self, slot: Slot, ballot: Ballot) {
        if let Some((held, _)) = self.records.get_mut(&slot) {
            *held = ballot;
        }
    }

    /// These slots' records, and no others, cannot be read, or may be lost.
    pub fn lose(&mut self, unreadable: BTreeSet<Slot>) {
        self.unreadable = unreadable;
    }

    /// The write under way is synced.
    pub fn complete(&mut self) {
        let batch = self.under_way.take().expect("a sync ends a write");
        self.meta = batch.meta;
        for Accepted { slot, ballot, value } in batch.accepted {
            self.unreadable.remove(&slot);
            self.records.insert(slot, (ballot, value));
        }
    }

    /// The machine crashes.
    pub fn crash(&mut self, unsynced: UnsyncedWrite) {
        match unsynced {
            UnsyncedWrite::Kept if self.under_way.is_some() => self.complete(),
            _ => self.under_way = None,
        }
    }

    /// Makes a slot's record unreadable. Returns whether there was one.
    pub fn corrupt(&mut self, slot: Slot) -> bool {
        self.records.contains_key(&slot) && self.unreadable.insert(slot)
    }

    /// The slots that hold a readable record.
    pub fn readable(&self) -> impl Iterator<Item = Slot> {
        self.records
            .keys()
            .copied()
            .filter(|slot| !self.unreadable.contains(slot))
    }

    /// What a starting process finds: the summary, and the readable values in ascending order.
    #[must_use]
    pub fn recover(&self) -> (Recovered, Vec<Accepted>) {
        let accepted: Vec<Accepted> = self
            .readable()
            .filter_map(|slot| {
                let (ballot, value) = self.record(slot)?;
                Some(Accepted {
                    slot,
                    ballot: *ballot,
                    value: value.clone(),
                })
            })
            .collect();
        let recovered = Recovered {
            meta: self.meta.clone(),
            readable: accepted.iter().map(|one| (one.slot, one.ballot)).collect(),
            unreadable: self.unreadable.clone(),
        };
        (recovered, accepted)
    }

    /// Reads for a lagging peer: as many slots as can be read, or `None` if the first cannot.
    #[must_use]
    pub fn fetch(&self, fetch: Fetch) -> Option<Vec<Bytes>> {
        let mut values = Vec::new();
        let mut slot = fetch.first;
        while slot <= fetch.up_to {
            let Some((_, value)) = self.record(slot) else {
                break;
            };
            values.push(value.clone());
            slot = slot.next();
        }
        (!values.is_empty()).then_some(values)
    }
}
