//! Everything that waits has a bound, and keeps it. The most that ever waited is a figure of the run.
//!
//! Entries in flight have two bounds. A leader proposes nothing new above the depth of its pipeline; but it begins with
//! whatever phase 1 brought, which can be no more than was ever proposed above what it knows as decided, and its barrier.
//! The inputs that wait for a process are the simulator's own queue, without a bound in the system: a paused process finds
//! what arrived meanwhile. Theirs is far above what any pause brings, so that an avalanche of messages is found.

use super::{Check, require};
use crate::host::{Host, Output};
use std::collections::BTreeMap;
use synod_coordinator_core::paxos::{Ballot, Message, Slot};
use synod_coordinator_core::replica::{Limits, PARKED_COUNT_MAX, Queues, RoleName};
use synod_proto::ids::ReplicaId;

/// More inputs than any process finds after a pause.
pub const MAIL_COUNT_MAX: usize = 100_000;

/// The most that ever waited in a run, at any one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// Commands that waited to enter the log.
    pub command_count: usize,
    /// Their bytes.
    pub command_bytes: usize,
    /// Requests that waited for a new leader to serve.
    pub parked_count: usize,
    /// Entries in flight.
    pub in_flight_count: usize,
    /// Inputs that waited for the process: what arrived while it was paused.
    pub mail_count: usize,
}

impl Waited {
    /// Names and values, as they are shown.
    #[must_use]
    pub fn named(&self) -> [(&'static str, usize); 5] {
        [
            ("commands that waited to enter the log", self.command_count),
            ("bytes of such commands", self.command_bytes),
            ("requests that waited for a new leader", self.parked_count),
            ("entries in flight", self.in_flight_count),
            ("inputs that waited for a process", self.mail_count),
        ]
    }

    /// The larger of each.
    pub fn raise(&mut self, other: &Self) {
        self.command_count = self.command_count.max(other.command_count);
        self.command_bytes = self.command_bytes.max(other.command_bytes);
        self.parked_count = self.parked_count.max(other.parked_count);
        self.in_flight_count = self.in_flight_count.max(other.in_flight_count);
        self.mail_count = self.mail_count.max(other.mail_count);
    }
}

/// Watches what waits.
#[derive(Debug, Default)]
pub struct QueueChecker {
    most: Waited,
    /// The highest slot that anybody ever proposed in.
    proposed_up_to: Slot,
    /// Each leader's ballot, and the most that may be in flight while it leads.
    leading: BTreeMap<ReplicaId, (Ballot, usize)>,
}

impl QueueChecker {
    /// The most that ever waited.
    #[must_use]
    pub fn most(&self) -> Waited {
        self.most
    }

    /// Mail waits for a process. More than any pause explains is found at the next turn.
    pub fn on_mail(&mut self, count: usize) {
        self.most.mail_count = self.most.mail_count.max(count);
    }

    /// Looks at a replica after its turn.
    ///
    /// # Errors
    /// More waits than its limits allow.
    pub fn after_turn(&mut self, host: &Host, output: &Output) -> Check {
        if let Some(replica) = host.replica() {
            let status = replica.status();
            let leads = matches!(status.role, RoleName::Leading | RoleName::Serving);
            let leading = leads.then_some((status.ballot, status.decided_up_to));
            self.look(host.id(), leading, replica.queues(), &host.config.limits)?;
        }
        for envelope in &output.envelopes {
            if let Message::Accept { slot, .. } = &envelope.message {
                self.proposed_up_to = self.proposed_up_to.max(*slot);
            }
        }
        Ok(())
    }

    /// `leading`: in which ballot, and what is decided, as the leader knows.
    fn look(
        &mut self,
        id: ReplicaId,
        leading: Option<(Ballot, Slot)>,
        queues: Queues,
        limits: &Limits,
    ) -> Check {
        let mail_count = self.most.mail_count;
        require(mail_count <= MAIL_COUNT_MAX, || {
            format!("{mail_count} inputs waited for one process")
        })?;
        let in_flight_count_max = match leading {
            Some((ballot, decided_up_to)) => {
                self.in_flight_count_max(id, ballot, decided_up_to, queues, limits)
            }
            None => 0,
        };
        let is_bounded = queues.command_count <= limits.queue_count_max
            && queues.command_bytes <= limits.queue_bytes_max
            && queues.parked_count <= PARKED_COUNT_MAX
            && queues.in_flight_count <= in_flight_count_max;
        require(is_bounded, || {
            format!(
                "replica {id}: more waits than may: {queues:?}, {limits:?}; at most {in_flight_count_max} in flight"
            )
        })?;
        self.most.raise(&Waited {
            command_count: queues.command_count,
            command_bytes: queues.command_bytes,
            parked_count: queues.parked_count,
            in_flight_count: queues.in_flight_count,
            mail_count: 0,
        });
        Ok(())
    }

    /// The first look at a ballot says what phase 1 brought.
    fn in_flight_count_max(
        &mut self,
        id: ReplicaId,
        ballot: Ballot,
        decided_up_to: Slot,
        queues: Queues,
        limits: &Limits,
    ) -> usize {
        if let Some((known, count_max)) = self.leading.get(&id)
            && *known == ballot
        {
            return *count_max;
        }
        let proposed_count = self.proposed_up_to.0.saturating_sub(decided_up_to.0);
        let brought_max = usize::try_from(proposed_count)
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        let count_max = queues.in_flight_count.min(brought_max).max(limits.pipeline_depth);
        self.leading.insert(id, (ballot, count_max));
        count_max
    }
}

#[cfg(test)]
mod tests {
    use super::{MAIL_COUNT_MAX, QueueChecker};
    use synod_coordinator_core::paxos::{Ballot, Slot};
    use synod_coordinator_core::replica::{Limits, PARKED_COUNT_MAX, Queues};
    use synod_proto::ids::ReplicaId;

    const ID: ReplicaId = ReplicaId(1);

    fn ballot(round: u64) -> Ballot {
        Ballot {
            round,
            replica: ID,
            start: 1,
        }
    }

    fn limits() -> Limits {
        Limits {
            pipeline_depth: 4,
            ..Limits::default()
        }
    }

    /// Looks at a leader that knows everything up to slot 10 as decided.
    fn look(checker: &mut QueueChecker, queues: Queues) -> bool {
        let leading = Some((ballot(1), Slot(10)));
        checker.look(ID, leading, queues, &limits()).is_ok()
    }

    fn in_flight(in_flight_count: usize) -> Queues {
        Queues {
            in_flight_count,
            ..Queues::default()
        }
    }

    #[test]
    fn a20_each_queue_is_held_to_its_bound() {
        let Limits {
            queue_count_max,
            queue_bytes_max,
            ..
        } = limits();
        let full = Queues {
            command_count: queue_count_max,
            command_bytes: queue_bytes_max,
            parked_count: PARKED_COUNT_MAX,
            in_flight_count: 4,
        };
        assert!(look(&mut QueueChecker::default(), full));
        for beyond in [
            Queues {
                command_count: queue_count_max + 1,
                ..full
            },
            Queues {
                command_bytes: queue_bytes_max + 1,
                ..full
            },
            Queues {
                parked_count: PARKED_COUNT_MAX + 1,
                ..full
            },
            in_flight(5),
        ] {
            assert!(!look(&mut QueueChecker::default(), beyond), "{beyond:?}");
        }
    }

    /// What phase 1 brought may be more than the pipeline's depth, but nothing joins it.
    #[test]
    fn a20_a_leader_adds_nothing_to_what_phase_one_brought() {
        let mut checker = QueueChecker {
            proposed_up_to: Slot(16),
            ..QueueChecker::default()
        };
        assert!(look(&mut checker, in_flight(7)));
        assert!(look(&mut checker, in_flight(6)));
        assert!(!look(&mut checker, in_flight(8)));
    }

    /// Phase 1 brings nothing that was never proposed: six slots and the barrier.
    #[test]
    fn a20_a_leader_that_begins_with_more_than_was_proposed_is_found() {
        let mut checker = QueueChecker {
            proposed_up_to: Slot(16),
            ..QueueChecker::default()
        };
        assert!(!look(&mut checker, in_flight(8)));
    }

    #[test]
    fn a20_who_does_not_lead_has_nothing_in_flight() {
        let mut checker = QueueChecker::default();
        assert!(checker.look(ID, None, in_flight(1), &limits()).is_err());
    }

    #[test]
    fn a20_an_avalanche_of_messages_is_found() {
        let mut checker = QueueChecker::default();
        checker.on_mail(MAIL_COUNT_MAX);
        assert!(look(&mut checker, in_flight(1)));
        checker.on_mail(MAIL_COUNT_MAX + 1);
        assert!(!look(&mut checker, in_flight(1)));
    }
}
