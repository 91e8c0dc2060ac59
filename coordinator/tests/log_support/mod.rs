//! What the tests of the log share: a log's identity, batches that a core could have written, and the state that a log
//! must show after them.
#![allow(dead_code, reason = "each test file uses its part")]

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use synod_coordinator::log::{Disk, Identity, Log, LogError, MemoryDisk, Opened, Options};
use synod_coordinator_core::durable::{Batch, Meta, PeerSeen};
use synod_coordinator_core::paxos::{Accepted, Ballot, Slot};
use synod_proto::ids::{Incarnation, ProcessNonce, ReplicaId};

pub(crate) const BLOCK: usize = 4096;

pub(crate) fn identity() -> Identity {
    Identity {
        cluster: "test".parse().expect("a cluster id"),
        replica: ReplicaId(2),
        incarnation: Incarnation(*b"incarnation-0123"),
    }
}

/// Segments of the header and `blocks` blocks of batches.
pub(crate) fn segments_of(blocks: u64) -> Options {
    Options {
        segment_bytes: (1 + blocks) * BLOCK as u64,
    }
}

pub(crate) fn segment(number: u64) -> String {
    format!("segment-{number:010}.log")
}

/// A segment's file while it is being made.
pub(crate) fn unfinished(number: u64) -> String {
    format!("{}.new", segment(number))
}

pub(crate) fn ballot(round: u64) -> Ballot {
    Ballot {
        round,
        replica: ReplicaId(1),
        start: 3,
    }
}

pub(crate) fn accepted(slot: u64, round: u64, value: impl Into<Bytes>) -> Accepted {
    Accepted {
        slot: Slot(slot),
        ballot: ballot(round),
        value: value.into(),
    }
}

/// A batch whose meta promises `round` and covers its records.
pub(crate) fn batch(round: u64, decided_up_to: u64, accepted_up_to: u64, records: Vec<Accepted>) -> Batch {
    let meta = Meta {
        promised: ballot(round),
        start: 1,
        decided_up_to: Slot(decided_up_to),
        accepted_up_to: Slot(accepted_up_to),
        peers: BTreeMap::from([(
            ReplicaId(3),
            PeerSeen {
                incarnation: Incarnation([7; 16]),
                start: 2,
                process: ProcessNonce(0x0909_0909_0909_0909),
            },
        )]),
    };
    Batch {
        meta,
        accepted: records,
    }
}

/// Everything a log says of its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) meta: Meta,
    pub(crate) values: BTreeMap<Slot, Accepted>,
    pub(crate) unreadable: BTreeSet<Slot>,
}

impl State {
    /// What a log must show after these batches.
    pub(crate) fn after(batches: &[Batch]) -> Self {
        let mut state = Self::default();
        for batch in batches {
            state.meta = batch.meta.clone();
            for accepted in &batch.accepted {
                state.values.insert(accepted.slot, accepted.clone());
            }
        }
        state
    }

    /// What a log shows, read by every way there is; they must agree.
    pub(crate) fn of<D: Disk>(opened: &Opened<D>) -> Self {
        let Opened { log, recovered, .. } = opened;
        let mut values = BTreeMap::new();
        log.load(|accepted| assert_eq!(values.insert(accepted.slot, accepted), None))
            .expect("it was readable at open");
        for (slot, value) in &values {
            assert_eq!(log.read(*slot).expect("readable").as_ref(), Some(value));
        }
        let ballots: BTreeMap<Slot, Ballot> =
            values.iter().map(|(slot, value)| (*slot, value.ballot)).collect();
        assert_eq!(ballots, recovered.readable);
        for slot in &recovered.unreadable {
            assert!(log.read(*slot).is_err(), "unreadable is not empty (L3)");
        }
        assert_eq!(log.meta(), &recovered.meta);
        Self {
            meta: recovered.meta.clone(),
            values,
            unreadable: recovered.unreadable.clone(),
        }
    }
}

pub(crate) fn create(options: Options) -> (MemoryDisk, Log<MemoryDisk>) {
    let disk = MemoryDisk::default();
    Log::create(&Arc::new(disk.clone()), &identity(), options).expect("a new disk takes a log");
    let log = open(&disk, options).expect("a new log opens").log;
    (disk, log)
}

pub(crate) fn open(disk: &MemoryDisk, options: Options) -> Result<Opened<MemoryDisk>, LogError> {
    Log::open(Arc::new(disk.clone()), identity(), options)
}

/// A new log with these batches in it.
pub(crate) fn written(options: Options, batches: &[Batch]) -> MemoryDisk {
    let (disk, mut log) = create(options);
    for batch in batches {
        log.append(batch).expect("a sound disk");
    }
    disk
}

/// A cheap source of numbers for tests that must replay.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).expect("below 256")
    }

    /// A number from `first` to `up_to`.
    pub(crate) fn between(&mut self, first: u64, up_to: u64) -> u64 {
        first + self.roll(usize::try_from(up_to - first + 1).expect("a short range")) as u64
    }

    /// A number below `bound`. (SplitMix64.)
    pub(crate) fn roll(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).expect("below a usize")
    }
}

/// The batch that a core in state `meta` could write next: new slots, slots accepted again in a higher ballot, a prefix
/// that grows, a promise that rises, or nothing but a new state.
pub(crate) fn random_batch(meta: &Meta, dice: &mut Dice, value_bytes_max: usize) -> Batch {
    let mut meta = meta.clone();
    if dice.roll(4) == 0 {
        meta.promised = ballot(meta.promised.round + 1);
    }
    if dice.roll(8) == 0 {
        meta.start += 1;
    }
    if dice.roll(8) == 0 {
        let seen = PeerSeen {
            incarnation: Incarnation([dice.byte(); 16]),
            start: meta.start,
            process: ProcessNonce(u64::from(dice.byte())),
        };
        meta.peers.insert(ReplicaId(dice.byte() % 5), seen);
    }
    let open_from = meta.decided_up_to.0 + 1;
    let mut records = Vec::new();
    for _ in 0..dice.roll(5) {
        // Now and then a slot is left out, to be filled later.
        let highest = meta.accepted_up_to.0 + 1 + u64::from(dice.roll(6) == 0);
        let slot = if dice.roll(3) == 0 {
            dice.between(open_from, highest)
        } else {
            highest
        };
        meta.accepted_up_to = meta.accepted_up_to.max(Slot(slot));
        let length = match dice.roll(4) {
            0 => 0,
            1 => dice.roll(value_bytes_max),
            _ => dice.roll(100),
        };
        let value: Vec<u8> = (0..length).map(|_| dice.byte()).collect();
        records.push(Accepted {
            slot: Slot(slot),
            ballot: meta.promised,
            value: value.into(),
        });
    }
    if dice.roll(2) == 0 {
        meta.decided_up_to = Slot(dice.between(meta.decided_up_to.0, meta.accepted_up_to.0));
    }
    Batch {
        meta,
        accepted: records,
    }
}
