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
            // An answer to a question that was repeated may be the answer to the first.
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

    fn on_told(&mut self, host: &Host, told: &Told) -> Check {
        let (request, is_absence) = match &told.response {
            Response::Status { request, status } => (request, *status == TransactionStatus::Undecided),
            Response::ListedInDoubt { request, .. } => (request, true),
            _ => return Ok(()),
        };
        let Some(asked_at) = self
            .asked
            .remove(&(told.session, *request))
            .filter(|_| is_absence)
        else {
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
