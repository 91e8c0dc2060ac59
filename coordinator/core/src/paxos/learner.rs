//! The learner: from "a leader says slots up to here are decided" to a gap-free prefix of known values.
//!
//! L4: a replica takes its own record as decided only if it accepted it in the ballot of the leader that says so. A
//! record of any other ballot may hold a value that lost; that slot is fetched. Missing slots are asked for one
//! question at a time, and asked again when no answer comes.

use super::acceptor::Acceptor;
use super::{Ballot, Slot};
use crate::time::Timestamp;
use core::hash::{Hash, Hasher};
use synod_proto::ids::ReplicaId;
use synod_proto::planted;

/// How long a question for missing slots may go unanswered before it is asked again, in microseconds.
pub(crate) const CATCH_UP_PATIENCE_US: u64 = 200_000;

/// The most bytes of values in one answer. Well under a link's message limit, and small enough that a lagging replica
/// does not hold up heartbeats.
pub const CATCH_UP_BYTES_MAX: usize = 512 << 10;

/// What the learner waits for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Learner {
    asked_at: Option<Timestamp>,
    /// Questions in a row without an answer.
    unanswered_count: usize,
    /// Slots up to here were decided, with the values on record, before this process started: they only wait for an
    /// unreadable one among them.
    known_from_disk_up_to: Slot,
}

/// For checkers: without the instant, see [`Replica::hash_state`](crate::replica::Replica::hash_state).
impl Hash for Learner {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            asked_at,
            unanswered_count,
            known_from_disk_up_to,
        } = self;
        (asked_at.is_some(), unanswered_count, known_from_disk_up_to).hash(state);
    }
}

impl Learner {
    pub(crate) fn new(known_from_disk_up_to: Slot) -> Self {
        Self {
            known_from_disk_up_to,
            ..Self::default()
        }
    }

    /// The next slot to be taken as decided on the word of a leader in `ballot` whose prefix is `up_to`, if the record
    /// here allows it.
    pub(crate) fn next_decided(
        &self,
        acceptor: &Acceptor,
        ballot: Option<Ballot>,
        up_to: Slot,
    ) -> Option<Slot> {
        let next = acceptor.meta().decided_up_to.next();
        let (held, _) = acceptor.value(next)?;
        let is_known = next <= self.known_from_disk_up_to || held == Ballot::DECIDED;
        let is_of_ballot = Some(held) == ballot || (ballot.is_some() && planted!(StaleValueTakenAsDecided));
        let is_said = next <= up_to && is_of_ballot;
        (is_known || is_said).then_some(next)
    }

    /// `peer` has a decided prefix up to `up_to`. Returns whom to ask for what is missing, if now is the time: first
    /// the peer itself, and when it does not answer (it may be unable to read the slot) the others in turn.
    pub(crate) fn whom_to_ask(
        &mut self,
        peer: ReplicaId,
        up_to: Slot,
        decided_up_to: Slot,
        others: &[ReplicaId],
        now: Timestamp,
    ) -> Option<ReplicaId> {
        if up_to <= decided_up_to {
            return None;
        }
        match self.asked_at {
            Some(at) if now.since(at) < CATCH_UP_PATIENCE_US => return None,
            Some(_) => self.unanswered_count += 1,
            None => {}
        }
        self.asked_at = Some(now);
        match self.unanswered_count {
            0 => Some(peer),
            count => others.get(count % others.len().max(1)).copied(),
        }
    }

    /// An answer came: the next question may be asked at once.
    pub(crate) fn answered(&mut self) {
        self.asked_at = None;
        self.unanswered_count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::Learner;
    use crate::durable::Recovered;
    use crate::paxos::acceptor::Acceptor;
    use crate::paxos::{Ballot, Slot};
    use bytes::Bytes;
    use synod_proto::ids::ReplicaId;

    fn ballot(round: u64) -> Ballot {
        Ballot {
            round,
            replica: ReplicaId(1),
            start: 1,
        }
    }

    /// L4: "decided up to here" speaks of the sender's ballot; a value accepted in an older one may have lost.
    #[test]
    fn l4_a_value_accepted_in_another_ballot_is_not_taken_as_decided() {
        let mut acceptor = Acceptor::new(Recovered::default());
        acceptor.on_accept(ballot(1), Slot(1), &Bytes::from_static(b"stale"));
        let learner = Learner::new(Slot::ZERO);
        assert_eq!(learner.next_decided(&acceptor, Some(ballot(2)), Slot(1)), None);
        assert_eq!(
            learner.next_decided(&acceptor, Some(ballot(1)), Slot(1)),
            Some(Slot(1))
        );
    }

    /// Traps A13: a gap is never stepped over, whatever lies above it.
    #[test]
    fn a13_nothing_above_a_hole_is_decided() {
        let mut acceptor = Acceptor::new(Recovered::default());
        acceptor.on_accept(ballot(1), Slot(2), &Bytes::from_static(b"above"));
        let learner = Learner::new(Slot::ZERO);
        assert_eq!(learner.next_decided(&acceptor, Some(ballot(1)), Slot(2)), None);
    }
}
