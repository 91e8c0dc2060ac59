//! The acceptor: the durable half of a replica. It promises and accepts, and forgets neither.
//!
//! Invariants: the promised ballot never falls; a value is accepted only in a ballot at least as high as the one
//! promised; what a step changes here is in the batch that the same step writes, and every message that rests on it is
//! gated behind that batch (L2). Lamport, *Paxos Made Simple*, section 2.2, P1a.

use super::{Accepted, Ballot, Message, Slot};
use crate::durable::{Batch, Meta, PeerSeen, Recovered};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::ids::ReplicaId;
use synod_proto::planted;

/// How far above its decided prefix a replica accepts values. It bounds the memory of a replica that lags: beyond it,
/// it catches up first. Far more than any leader has in flight ([`PIPELINE_DEPTH_MAX`]), so that it never slows one.
pub const ACCEPT_WINDOW_SLOTS: u64 = 1024;

/// The most entries that a leader may have in flight.
pub const PIPELINE_DEPTH_MAX: usize = 64;

const _: () = assert!(ACCEPT_WINDOW_SLOTS >= 4 * PIPELINE_DEPTH_MAX as u64);

/// What became of an `Accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcceptVerdict {
    /// Accepted, now or before: answer after the sync.
    Accepted,
    /// A higher ballot was promised.
    Nack(Ballot),
    /// Beyond the window: catch up first.
    TooFarAhead,
    /// The slot is decided with another value, in a ballot of which the sender has not heard: its own is over.
    Superseded,
    /// Another value than the one on record in this very ballot, or than the one decided before it. No replica that
    /// follows the protocol sends this; nothing is accepted.
    Conflict,
}

/// The state of the acceptor.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Acceptor {
    meta: Meta,
    values: BTreeMap<Slot, (Ballot, Bytes)>,
    decided_bytes_held: usize,
    /// The decided prefix as the disk knows it. Ahead of the one in `meta` while an unreadable slot lies in it; what is
    /// written never falls behind it, else a second start would have to learn again what the first one knew.
    decided_on_disk_up_to: Slot,
    unreadable: BTreeSet<Slot>,
    unwritten: Vec<Accepted>,
    is_dirty: bool,
}

impl Acceptor {
    pub(crate) fn new(recovered: Recovered) -> Self {
        Self {
            decided_on_disk_up_to: recovered.meta.decided_up_to,
            meta: recovered.meta,
            values: BTreeMap::new(),
            decided_bytes_held: 0,
            unreadable: recovered.unreadable,
            unwritten: Vec::new(),
            is_dirty: false,
        }
    }

    /// A value found on disk at start.
    pub(crate) fn load(&mut self, accepted: Accepted) {
        self.values
            .insert(accepted.slot, (accepted.ballot, accepted.value));
    }

    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    pub(crate) fn promised(&self) -> Ballot {
        self.meta.promised
    }

    pub(crate) fn unreadable_count(&self) -> usize {
        self.unreadable.len()
    }

    /// The value held in memory for a slot, with the ballot of its record.
    pub(crate) fn value(&self, slot: Slot) -> Option<(Ballot, &Bytes)> {
        if self.unreadable.contains(&slot) {
            return None;
        }
        self.values.get(&slot).map(|(ballot, value)| (*ballot, value))
    }

    /// L1: a new life of this directory.
    pub(crate) fn begin_start(&mut self) -> u64 {
        if planted!(BallotReusedAfterRestart) && self.meta.start > 0 {
            return self.meta.start;
        }
        self.meta.start += 1;
        self.is_dirty = true;
        self.meta.start
    }

    pub(crate) fn note_peer(&mut self, peer: ReplicaId, seen: PeerSeen) {
        if self.meta.peers.insert(peer, seen) != Some(seen) {
            self.is_dirty = true;
        }
    }

    /// Paxos phase 1b. Answers with a promise, or with a nack.
    pub(crate) fn on_prepare(&mut self, ballot: Ballot, above: Slot) -> Message {
        if ballot < self.meta.promised {
            return Message::Nack {
                ballot,
                promised: self.meta.promised,
            };
        }
        self.promise(ballot);
        // L5: up to the decided prefix the candidate catches up and needs no reports.
        let from = above.max(self.meta.decided_up_to).next();
        let accepted = self
            .values
            .range(from..)
            .filter(|(slot, _)| !self.unreadable.contains(slot))
            .map(|(slot, (ballot, value))| Accepted {
                slot: *slot,
                ballot: *ballot,
                value: value.clone(),
            })
            .collect();
        Message::Promise {
            ballot,
            decided_up_to: self.meta.decided_up_to,
            first_retained: Slot(1),
            accepted,
            unreadable: match planted!(UnreadableReportedEmpty) {
                true => Vec::new(),
                false => self.unreadable.range(from..).copied().collect(),
            },
        }
    }

    /// Paxos phase 2b, on a leader's request.
    pub(crate) fn on_accept(&mut self, ballot: Ballot, slot: Slot, value: &Bytes) -> AcceptVerdict {
        if ballot < self.meta.promised && !planted!(AcceptedBelowPromise) {
            return AcceptVerdict::Nack(self.meta.promised);
        }
        if slot.0 > self.meta.decided_up_to.0 + ACCEPT_WINDOW_SLOTS {
            return AcceptVerdict::TooFarAhead;
        }
        self.accept(ballot, slot, value)
    }

    /// Paxos phase 2b. The window is not asked: what a new leader proposes again may fill it, and its own first entry
    /// comes on top.
    pub(crate) fn accept(&mut self, ballot: Ballot, slot: Slot, value: &Bytes) -> AcceptVerdict {
        if ballot < self.meta.promised && !planted!(AcceptedBelowPromise) {
            return AcceptVerdict::Nack(self.meta.promised);
        }
        let is_decided = slot <= self.meta.decided_up_to.max(self.decided_on_disk_up_to);
        match self.value(slot) {
            Some((held, held_value)) if is_decided || held >= ballot => {
                if held_value != value {
                    // A value learned as decided says nothing of the ballot in which it was chosen.
                    let is_older = held == Ballot::DECIDED || ballot < held;
                    return if is_older {
                        AcceptVerdict::Superseded
                    } else {
                        AcceptVerdict::Conflict
                    };
                }
                self.promise(ballot);
            }
            // Decided, and no longer in memory. The acknowledgement claims nothing that a quorum could miss: whoever
            // promised a higher ballot does not acknowledge this one.
            None if slot <= self.meta.decided_up_to => self.promise(ballot),
            _ => {
                self.promise(ballot);
                self.record(slot, ballot, value.clone());
            }
        }
        AcceptVerdict::Accepted
    }

    /// A value learned as decided, for the slot after the decided prefix. It is recorded above every ballot, so that
    /// no candidate that hears of this record can choose another value.
    pub(crate) fn learn(&mut self, slot: Slot, value: Bytes) {
        self.record(slot, Ballot::DECIDED, value);
    }

    /// The slot after the decided prefix is decided with the value on record. Written with the next batch: a decided
    /// prefix that trails on disk is merely learned again.
    pub(crate) fn mark_decided(&mut self, slot: Slot) {
        assert_eq!(
            slot,
            self.meta.decided_up_to.next(),
            "the decided prefix has no gaps"
        );
        self.meta.decided_up_to = slot;
        if let Some((_, value)) = self.values.get(&slot) {
            self.decided_bytes_held += value.len();
        }
    }

    /// Starts the decided prefix at what was applied from disk. At start only.
    pub(crate) fn set_decided_at_start(&mut self, up_to: Slot) {
        self.meta.decided_up_to = up_to;
        self.decided_bytes_held = self
            .values
            .range(..=up_to)
            .map(|(_, (_, value))| value.len())
            .sum();
    }

    /// Drops the oldest decided values from memory, down to `bytes_max`. They stay on disk.
    pub(crate) fn trim(&mut self, bytes_max: usize) {
        while self.decided_bytes_held > bytes_max {
            let Some(oldest) = self.values.first_entry() else {
                break;
            };
            if *oldest.key() >= self.meta.decided_up_to {
                break;
            }
            self.decided_bytes_held -= oldest.remove().1.len();
        }
    }

    /// What this step must write, if anything.
    pub(crate) fn take_batch(&mut self) -> Option<Batch> {
        if !core::mem::take(&mut self.is_dirty) {
            return None;
        }
        let mut meta = self.meta.clone();
        meta.decided_up_to = meta.decided_up_to.max(self.decided_on_disk_up_to);
        Some(Batch {
            meta,
            accepted: core::mem::take(&mut self.unwritten),
        })
    }

    fn promise(&mut self, ballot: Ballot) {
        if ballot > self.meta.promised {
            self.meta.promised = ballot;
            self.is_dirty = !planted!(PromiseNotPersisted);
        }
    }

    fn record(&mut self, slot: Slot, ballot: Ballot, value: Bytes) {
        self.unreadable.remove(&slot);
        self.meta.accepted_up_to = self.meta.accepted_up_to.max(slot);
        self.values.insert(slot, (ballot, value.clone()));
        if !planted!(AcceptedNotPersisted) {
            self.unwritten.push(Accepted { slot, ballot, value });
        }
        self.is_dirty = true;
    }
}

#[cfg(test)]
mod tests {
    use super::{AcceptVerdict, Acceptor};
    use crate::durable::{Batch, Meta, Recovered};
    use crate::paxos::{Accepted, Ballot, Message, Slot};
    use alloc::collections::BTreeSet;
    use alloc::vec;
    use bytes::Bytes;
    use synod_proto::ids::ReplicaId;

    fn ballot(round: u64) -> Ballot {
        Ballot {
            round,
            replica: ReplicaId(1),
            start: 1,
        }
    }

    fn value(byte: u8) -> Bytes {
        Bytes::from(vec![byte])
    }

    /// "An acceptor can accept a proposal numbered n iff it has not responded to a prepare request having a number
    /// greater than n." (Paxos Made Simple, P1a)
    #[test]
    fn p1a_nothing_is_accepted_below_the_promise() {
        let mut acceptor = Acceptor::new(Recovered::default());
        acceptor.on_prepare(ballot(5), Slot::ZERO);
        let before = acceptor.take_batch();
        assert_eq!(
            before,
            Some(Batch {
                meta: Meta {
                    promised: ballot(5),
                    ..Meta::default()
                },
                accepted: vec![]
            })
        );
        assert_eq!(
            acceptor.on_accept(ballot(4), Slot(1), &value(1)),
            AcceptVerdict::Nack(ballot(5))
        );
        assert_eq!(acceptor.take_batch(), None, "a refused value leaves no trace");
        assert_eq!(
            acceptor.on_accept(ballot(5), Slot(1), &value(2)),
            AcceptVerdict::Accepted
        );
        let meta = Meta {
            promised: ballot(5),
            accepted_up_to: Slot(1),
            ..Meta::default()
        };
        let accepted = vec![Accepted {
            slot: Slot(1),
            ballot: ballot(5),
            value: value(2),
        }];
        assert_eq!(acceptor.take_batch(), Some(Batch { meta, accepted }));
    }

    /// "A promise ... with the proposal with the highest number less than n that it has accepted, if any." (section 2.2)
    #[test]
    fn a_promise_reports_every_accepted_value_above_the_candidates_prefix() {
        let mut acceptor = Acceptor::new(Recovered::default());
        for slot in 1..=3 {
            acceptor.on_accept(ballot(1), Slot(slot), &value(u8::try_from(slot).expect("small")));
        }
        acceptor.on_accept(ballot(2), Slot(3), &value(9));
        let promise = acceptor.on_prepare(ballot(3), Slot(1));
        let expected = Message::Promise {
            ballot: ballot(3),
            decided_up_to: Slot::ZERO,
            first_retained: Slot(1),
            accepted: vec![
                Accepted {
                    slot: Slot(2),
                    ballot: ballot(1),
                    value: value(2),
                },
                Accepted {
                    slot: Slot(3),
                    ballot: ballot(2),
                    value: value(9),
                },
            ],
            unreadable: vec![],
        };
        assert_eq!(promise, expected);
    }

    /// L3, traps A10: unreadable is not empty. A slot whose record was lost is reported as such until a newer accept
    /// replaces it, even though an older record of it can still be read.
    #[test]
    fn l3_an_unreadable_slot_is_reported_and_a_later_accept_heals_it() {
        let recovered = Recovered {
            unreadable: BTreeSet::from([Slot(2)]),
            ..Recovered::default()
        };
        let mut acceptor = Acceptor::new(recovered);
        acceptor.load(Accepted {
            slot: Slot(2),
            ballot: ballot(1),
            value: value(1),
        });
        let Message::Promise {
            accepted, unreadable, ..
        } = acceptor.on_prepare(ballot(2), Slot::ZERO)
        else {
            panic!("promises");
        };
        assert_eq!((accepted, unreadable), (vec![], vec![Slot(2)]));
        acceptor.on_accept(ballot(2), Slot(2), &value(7));
        let Message::Promise {
            accepted, unreadable, ..
        } = acceptor.on_prepare(ballot(3), Slot::ZERO)
        else {
            panic!("promises");
        };
        let healed = Accepted {
            slot: Slot(2),
            ballot: ballot(2),
            value: value(7),
        };
        assert_eq!((accepted, unreadable), (vec![healed], vec![]));
    }

    #[test]
    fn a_repeated_accept_is_acknowledged_again_and_written_once() {
        let mut acceptor = Acceptor::new(Recovered::default());
        acceptor.on_accept(ballot(1), Slot(1), &value(1));
        acceptor.take_batch();
        assert_eq!(
            acceptor.on_accept(ballot(1), Slot(1), &value(1)),
            AcceptVerdict::Accepted
        );
        assert_eq!(acceptor.take_batch(), None);
    }

    #[test]
    fn l1_a_start_is_counted_and_written() {
        let mut acceptor = Acceptor::new(Recovered {
            meta: Meta {
                start: 4,
                ..Meta::default()
            },
            ..Recovered::default()
        });
        assert_eq!(acceptor.begin_start(), 5);
        assert_eq!(acceptor.take_batch().map(|batch| batch.meta.start), Some(5));
    }

    /// L3: an unreadable slot holds up the prefix in memory. The one on disk stands: it says of the slots above that their
    /// records are the decided values, and that stays true. (It used to shrink, and the log refused to write that.)
    #[test]
    fn l3_the_decided_prefix_on_disk_never_shrinks() {
        let meta = Meta {
            promised: ballot(1),
            decided_up_to: Slot(3),
            accepted_up_to: Slot(3),
            ..Meta::default()
        };
        let unreadable = BTreeSet::from([Slot(2)]);
        let mut acceptor = Acceptor::new(Recovered {
            meta: meta.clone(),
            unreadable,
            ..Recovered::default()
        });
        acceptor.set_decided_at_start(Slot::ZERO);
        acceptor.load(Accepted {
            slot: Slot(1),
            ballot: ballot(1),
            value: value(1),
        });
        acceptor.load(Accepted {
            slot: Slot(3),
            ballot: ballot(1),
            value: value(3),
        });
        acceptor.mark_decided(Slot(1));
        acceptor.begin_start();
        let started = Meta {
            start: 1,
            ..meta.clone()
        };
        assert_eq!(
            acceptor.take_batch(),
            Some(Batch {
                meta: started.clone(),
                accepted: vec![]
            })
        );
        // The unreadable slot is healed; the readable one above is decided, and no other value goes over it.
        assert_eq!(
            acceptor.on_accept(ballot(2), Slot(2), &value(2)),
            AcceptVerdict::Accepted
        );
        assert_eq!(
            acceptor.on_accept(ballot(2), Slot(3), &value(9)),
            AcceptVerdict::Conflict
        );
        let accepted = vec![Accepted {
            slot: Slot(2),
            ballot: ballot(2),
            value: value(2),
        }];
        assert_eq!(
            acceptor.take_batch(),
            Some(Batch {
                meta: Meta {
                    promised: ballot(2),
                    ..started
                },
                accepted
            })
        );
    }
}
