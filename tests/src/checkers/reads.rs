//! T10: "there is no outcome" is a leader's word only after a round of heartbeats, begun after the question, that a quorum
//! has answered. By then nobody else can have decided what this leader does not know.

use super::{Check, require};
use crate::host::{Host, Output};
use std::collections::BTreeMap;
use synod_coordinator_core::effects::Told;
use synod_coordinator_core::paxos::{Ballot, Message};
use synod_proto::ids::{ReplicaId, RequestId, SessionId};
use synod_proto::session::{Request, Response, TransactionStatus};

/// Of how many rounds a ballot's beginnings are remembered. A question waits for two at most.
const ROUND_COUNT_MAX: usize = 4_096;

/// The rounds of one ballot.
#[derive(Debug, Default)]
struct Rounds {
    /// When each was begun.
    begun: BTreeMap<u64, u64>,
    /// The highest that each follower has answered.
    answered: BTreeMap<ReplicaId, u64>,
}

/// Watches questions and rounds.
#[derive(Debug, Default)]
pub struct ReadChecker {
    /// Counts what happens: finer than the clock, and as true.
    count: u64,
    asked: BTreeMap<(SessionId, RequestId), u64>,
    rounds: BTreeMap<Ballot, Rounds>,
    /// The ballot in which each replica led last.
    led: BTreeMap<ReplicaId, Ballot>,
}

impl ReadChecker {
    /// A session asks something.
    pub fn on_asked(&mut self, session: SessionId, request: &Request) {
        self.count += 1;
        if let Request::Outcome { request, .. } | Request::ListInDoubt { request, .. } = request {
            // The answer to a question that is repeated may be the answer to the first.
            self.asked.entry((session, *request)).or_insert(self.count);
        }
    }

    /// Looks at a turn.
    ///
    /// # Errors
    /// Somebody was told that there is no outcome, and no quorum was heard since the question.
    pub fn after_turn(&mut self, host: &Host, output: &Output) -> Check {
        self.count += 1;
        let id = host.id();
        for envelope in &output.envelopes {
            match &envelope.message {
                Message::Heartbeat { ballot, sequence, .. } => self.on_round(id, *ballot, *sequence),
                Message::HeartbeatAnswer { ballot, sequence, .. } => {
                    let rounds = self.rounds.entry(*ballot).or_default();
                    let highest = rounds.answered.entry(id).or_default();
                    *highest = (*highest).max(*sequence);
                }
                _ => {}
            }
        }
        output.told.iter().try_for_each(|told| self.on_told(host, told))
    }

    fn on_round(&mut self, id: ReplicaId, ballot: Ballot, sequence: u64) {
        if self.led.insert(id, ballot) != Some(ballot) {
            // Whoever led in a lower ballot of this replica's tells nobody anything more.
            self.rounds.retain(|one, _| one.replica != id || *one >= ballot);
        }
        let begun = &mut self.rounds.entry(ballot).or_default().begun;
        begun.entry(sequence).or_insert(self.count);
        if begun.len() > ROUND_COUNT_MAX {
            begun.pop_first();
        }
    }

    fn on_told(&self, host: &Host, told: &Told) -> Check {
        let (request, is_absence) = match &told.response {
            Response::Status { request, status } => (request, *status == TransactionStatus::Undecided),
            Response::ListedInDoubt { request, .. } => (request, true),
            _ => return Ok(()),
        };
        let asked_at = self.asked.get(&(told.session, *request)).copied();
        let Some(asked_at) = asked_at.filter(|_| is_absence) else {
            return Ok(());
        };
        let id = host.id();
        let rounds = self.led.get(&id).and_then(|ballot| self.rounds.get(ballot));
        let answered_count = rounds.map_or(0, |rounds| {
            let since = rounds.begun.iter().find(|(_, begun_at)| **begun_at > asked_at);
            let answers = rounds.answered.values();
            since.map_or(0, |(first, _)| answers.filter(|one| *one >= first).count())
        });
        require(answered_count + 1 >= host.config.quorum_count(), || {
            format!(
                "replica {id} told session {} in answer to request {request} what is not in the log, and \
                 {answered_count} others answered a round that began after the question: {:?}",
                told.session, told.response
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::ReadChecker;
    use crate::checkers::Check;
    use crate::host::{Host, Output};
    use crate::store::Store;
    use std::collections::BTreeSet;
    use synod_coordinator_core::effects::Told;
    use synod_coordinator_core::paxos::{Ballot, Envelope, Message, Slot};
    use synod_coordinator_core::replica::Config;
    use synod_proto::ids::{Gtid, Incarnation, ReplicaId, RequestId, SessionId, UnixMillis};
    use synod_proto::session::{AbortCause, AbortKind, Request, Response, TransactionStatus};

    const LEADER: u8 = 1;
    const SESSION: SessionId = SessionId(7);

    /// What happens, in order.
    #[derive(Default)]
    struct History {
        checker: ReadChecker,
    }

    impl History {
        fn ask(&mut self, request: u64) {
            let gtid = Gtid::new(UnixMillis(1_767_225_600_000), [1; 10]);
            let request = RequestId(request);
            self.checker
                .on_asked(SESSION, &Request::Outcome { request, gtid });
        }

        fn turn(&mut self, id: u8, output: &Output) -> Check {
            let replicas = BTreeSet::from([1, 2, 3, 4, 5].map(ReplicaId));
            let incarnation = Incarnation([id; 16]);
            let config = Config::new(ReplicaId(id), replicas, incarnation);
            self.checker
                .after_turn(&Host::new(config, Store::new(incarnation)), output)
        }

        fn send(&mut self, from: u8, message: Message) {
            let (from, to) = (ReplicaId(from), ReplicaId(from % 5 + 1));
            let output = Output {
                envelopes: vec![Envelope { from, to, message }],
                ..Output::default()
            };
            assert_eq!(self.turn(from.0, &output), Ok(()));
        }

        fn begin_round(&mut self, ballot: Ballot, sequence: u64) {
            let message = Message::Heartbeat {
                ballot,
                decided_up_to: Slot::ZERO,
                sequence,
                has_quorum: true,
            };
            self.send(LEADER, message);
        }

        fn answer(&mut self, from: u8, ballot: Ballot, sequence: u64) {
            let wall = UnixMillis(0);
            self.send(
                from,
                Message::HeartbeatAnswer {
                    ballot,
                    sequence,
                    wall,
                },
            );
        }

        fn tell(&mut self, request: u64, status: TransactionStatus) -> Check {
            let request = RequestId(request);
            let output = Output {
                told: vec![Told {
                    session: SESSION,
                    response: Response::Status { request, status },
                }],
                ..Output::default()
            };
            self.turn(LEADER, &output)
        }

        fn tell_undecided(&mut self, request: u64) -> Check {
            self.tell(request, TransactionStatus::Undecided)
        }
    }

    fn ballot(round: u64) -> Ballot {
        Ballot {
            round,
            replica: ReplicaId(LEADER),
            start: 1,
        }
    }

    #[test]
    fn t10_a_quorum_that_answers_a_later_round_will_do() {
        let mut history = History::default();
        history.begin_round(ballot(1), 1);
        history.ask(1);
        history.begin_round(ballot(1), 2);
        history.answer(2, ballot(1), 2);
        history.begin_round(ballot(1), 3);
        history.answer(3, ballot(1), 3);
        assert_eq!(history.tell_undecided(1), Ok(()));
    }

    #[test]
    fn t10_a_round_from_before_the_question_does_not_count() {
        let mut history = History::default();
        history.begin_round(ballot(1), 1);
        history.ask(1);
        history.answer(2, ballot(1), 1);
        history.answer(3, ballot(1), 1);
        assert!(history.tell_undecided(1).is_err());
    }

    #[test]
    fn t10_one_answer_less_than_a_quorum_does_not_do() {
        let mut history = History::default();
        history.ask(1);
        history.begin_round(ballot(1), 1);
        history.answer(2, ballot(1), 1);
        history.answer(2, ballot(1), 1);
        assert!(history.tell_undecided(1).is_err(), "one of two, twice");
        history.answer(3, ballot(1), 1);
        assert_eq!(history.tell_undecided(1), Ok(()));
    }

    #[test]
    fn t10_rounds_of_another_ballot_do_not_count() {
        let mut history = History::default();
        history.ask(1);
        history.begin_round(ballot(1), 1);
        history.answer(2, ballot(1), 1);
        history.answer(3, ballot(1), 1);
        history.begin_round(ballot(2), 1);
        assert!(history.tell_undecided(1).is_err());
    }

    #[test]
    fn t10_what_is_in_the_log_needs_no_round() {
        let mut history = History::default();
        history.ask(1);
        let cause = AbortCause::new(AbortKind::Requested, "the test");
        assert_eq!(history.tell(1, TransactionStatus::Aborted(cause)), Ok(()));
    }
}
