//! L1, L2: nothing leaves a replica that rests on a write which is not on its disk, and what was promised stays so.
//! L4: nobody calls decided what nobody has decided, or tells another value of a decided slot.

use super::log::LogChecker;
use super::{Check, require};
use crate::host::{Host, Output};
use crate::store::Store;
use bytes::Bytes;
use std::collections::BTreeMap;
use synod_coordinator_core::paxos::{Ballot, Message, Slot};
use synod_proto::ids::{Incarnation, ReplicaId};

/// What a directory once held.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    promised: Ballot,
    start: u64,
}

/// Compares what leaves with what is on disk.
#[derive(Debug, Default)]
pub struct GateChecker {
    held: BTreeMap<(ReplicaId, Incarnation), Held>,
    /// Above which slot the candidate of each ballot asks for reports, at most.
    asked_above: BTreeMap<Ballot, Slot>,
}

impl GateChecker {
    /// The directory was replaced by an older copy of itself, or has lost its end: it holds what `store` holds.
    pub fn on_rolled_back(&mut self, id: ReplicaId, store: &Store) {
        let meta = store.meta();
        let held = Held {
            promised: meta.promised,
            start: meta.start,
        };
        self.held.insert((id, store.incarnation), held);
    }

    /// Looks at a turn.
    ///
    /// # Errors
    /// A message rests on nothing that is on disk, or the promise or the count of starts on disk fell.
    pub fn after_turn(&mut self, host: &Host, output: &Output, log: &LogChecker) -> Check {
        let (id, store) = (host.id(), &host.store);
        let held = self.held.entry((id, store.incarnation)).or_default();
        let meta = store.meta();
        require(meta.promised >= held.promised && meta.start >= held.start, || {
            format!("replica {id}: its promise or start on disk fell: {held:?}, now {meta:?}")
        })?;
        // P1a: what is being written was accepted after the promise that is on disk.
        let below = store
            .under_way()
            .and_then(|batch| batch.accepted.iter().find(|one| one.ballot < meta.promised));
        require(below.is_none(), || {
            format!(
                "replica {id} accepted {below:?} below its promise of {}",
                meta.promised
            )
        })?;
        *held = Held {
            promised: meta.promised,
            start: meta.start,
        };
        for envelope in &output.envelopes {
            let above = match &envelope.message {
                Message::Prepare { ballot, above, .. } => {
                    let highest = self.asked_above.entry(*ballot).or_default();
                    *highest = (*highest).max(*above);
                    None
                }
                Message::Promise { ballot, .. } => self.asked_above.get(ballot).copied(),
                _ => None,
            };
            require(is_backed(store, &envelope.message, above, log), || {
                format!(
                    "replica {id} sent {:?}, which its disk does not back ({:?})",
                    envelope.message,
                    store.meta()
                )
            })?;
            require(
                is_decided(&envelope.message, log.decided_up_to(), |slot| log.value(slot)),
                || {
                    format!(
                        "replica {id} calls decided what is not: {:?}; decided up to {}",
                        envelope.message,
                        log.decided_up_to()
                    )
                },
            )?;
        }
        Ok(())
    }
}

/// Whether a message says only what the disk holds, and leaves out nothing. `above`: see [`GateChecker`].
fn is_backed(store: &Store, message: &Message, above: Option<Slot>, log: &LogChecker) -> bool {
    let meta = store.meta();
    // A record of a lower ballot backs a higher one once its value is decided: no ballot above can hold another.
    let is_recorded = |slot: Slot, ballot: Ballot| {
        slot <= meta.decided_up_to
            || store
                .record(slot)
                .is_some_and(|(held, value)| *held >= ballot || log.value(slot) == Some(value))
    };
    match message {
        Message::Promise {
            ballot,
            accepted,
            unreadable,
            ..
        } => {
            // L3: what cannot be read is named as such, above what either side knows as decided (L5).
            let from = above.unwrap_or(Slot(u64::MAX)).max(meta.decided_up_to);
            let is_named = |slot: &Slot| {
                *slot <= from || unreadable.contains(slot) || accepted.iter().any(|one| one.slot == *slot)
            };
            meta.promised >= *ballot
                && accepted.iter().all(|one| is_recorded(one.slot, one.ballot))
                && store.unreadable().iter().all(is_named)
        }
        Message::Accepted { ballot, slot } => meta.promised >= *ballot && is_recorded(*slot, *ballot),
        Message::Prepare { ballot, .. } => meta.start >= ballot.start,
        Message::Hello {
            start,
            promised,
            accepted_up_to,
            ..
        } => meta.start >= *start && meta.promised >= *promised && meta.accepted_up_to >= *accepted_up_to,
        // What they say of decided slots is compared with the log: see [`is_decided`].
        Message::Heartbeat { ballot, .. } | Message::Accept { ballot, .. } => meta.start >= ballot.start,
        Message::Decided { .. } | Message::CatchUp { .. } | Message::PreVoteAnswer { .. } => true,
        // They bind nobody: a question, a warning, and what only counts for the process that says it.
        Message::PreVote { .. }
        | Message::Nack { .. }
        | Message::HeartbeatAnswer { .. }
        | Message::HelloAnswer { .. } => true,
    }
}

/// Whether all that a message calls decided is decided, up to that slot and with these values.
fn is_decided<'a>(message: &Message, decided_up_to: Slot, value: impl Fn(Slot) -> Option<&'a Bytes>) -> bool {
    match message {
        Message::Heartbeat {
            decided_up_to: said, ..
        }
        | Message::Accept {
            decided_up_to: said, ..
        }
        | Message::Promise {
            decided_up_to: said, ..
        }
        | Message::PreVoteAnswer {
            decided_up_to: said, ..
        }
        | Message::Prepare { above: said, .. }
        | Message::CatchUp { above: said } => *said <= decided_up_to,
        Message::Decided {
            first,
            values,
            decided_up_to: said,
        } => {
            let slots = (first.0..).map(Slot);
            *said <= decided_up_to && slots.zip(values).all(|(slot, told)| value(slot) == Some(told))
        }
        Message::PreVote { .. }
        | Message::Accepted { .. }
        | Message::Nack { .. }
        | Message::HeartbeatAnswer { .. }
        | Message::Hello { .. }
        | Message::HelloAnswer { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use super::is_decided;
    use bytes::Bytes;
    use synod_coordinator_core::paxos::{Ballot, Message, Slot};

    const DECIDED_UP_TO: Slot = Slot(2);

    fn is_true(message: &Message) -> bool {
        let values = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
        let place = |slot: Slot| usize::try_from(slot.0).ok()?.checked_sub(1);
        is_decided(message, DECIDED_UP_TO, |slot| values.get(place(slot)?))
    }

    fn heartbeat(decided_up_to: u64) -> Message {
        Message::Heartbeat {
            ballot: Ballot::ZERO,
            decided_up_to: Slot(decided_up_to),
            sequence: 1,
            has_quorum: true,
        }
    }

    fn decided(first: u64, values: &[&'static str], decided_up_to: u64) -> Message {
        Message::Decided {
            first: Slot(first),
            values: values
                .iter()
                .map(|one| Bytes::from_static(one.as_bytes()))
                .collect(),
            decided_up_to: Slot(decided_up_to),
        }
    }

    /// L4: found where `MinorityDecides` is planted, before any value is taken on the leader's word.
    #[test]
    fn l4_a_heartbeat_that_runs_ahead_of_the_log_is_found() {
        assert!(is_true(&heartbeat(2)));
        assert!(!is_true(&heartbeat(3)));
    }

    /// L4: found where `StaleValueTakenAsDecided` is planted and the replica passes on what it took.
    #[test]
    fn l4_another_value_told_as_decided_is_found() {
        assert!(is_true(&decided(1, &["one", "two"], 2)));
        assert!(is_true(&decided(2, &["two"], 2)));
        assert!(!is_true(&decided(1, &["one", "stale"], 2)));
        assert!(!is_true(&decided(2, &["two", "three"], 2)));
        assert!(!is_true(&decided(1, &["one"], 3)));
    }
}
