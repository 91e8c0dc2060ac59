//! The initiator: the real ledger, the real session, and a user who asks for commit, gives up, or does neither.

use super::event::{DEADLINE, Event, Place};
use super::line::Line;
use super::plant::Plant;
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::time::Duration;
use synod_participant_core::session::{Effect, Failure, Input, Question, Reply, Ticket};
use synod_participant_core::transaction::{Ledger, State};
use synod_proto::command::{Decide, Proposal};
use synod_proto::ids::{Gtid, Lineage};
use synod_proto::session::{AbortCause, AbortKind, Decision, Outcome, TransactionStatus};

/// How long the initiator waits for an answer before it calls the transaction in doubt.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Clone, Debug)]
pub struct Initiator {
    gtid: Gtid,
    plant: Option<Plant>,
    line: Line,
    ledger: Ledger,
    ticket_count: u64,
    /// It was told "undecided", or nothing, and asks again (T7: `resolve`).
    is_resolving: bool,
    has_asked: bool,
    /// What the user asked for.
    proposed: Option<Decide>,
    told: BTreeSet<Outcome>,
}

impl Initiator {
    /// An initiator that has begun a transaction and made a call to each participant; and what it sends.
    ///
    /// # Errors
    /// See [`Line::step`].
    pub fn new(gtid: Gtid, lineage: Lineage, plant: Option<Plant>) -> Result<(Self, Vec<Event>), String> {
        let mut initiator = Self {
            gtid,
            plant,
            line: Line::new(Place::Initiator, 0),
            ledger: Ledger::new(lineage, gtid, DEADLINE, 7),
            ticket_count: 0,
            is_resolving: false,
            has_asked: false,
            proposed: None,
            told: BTreeSet::new(),
        };
        let mut sent = Vec::new();
        initiator.line.step(Input::Tick, &mut sent)?;
        for to in Place::PARTICIPANTS {
            let call = initiator.ledger.call().map_err(|refused| format!("{refused}"))?;
            sent.push(Event::Call { to, call });
        }
        Ok((initiator, sent))
    }

    /// What it was told.
    #[must_use]
    pub fn told(&self) -> &BTreeSet<Outcome> {
        &self.told
    }

    /// Whether it waits for the outcome.
    #[must_use]
    pub fn has_asked(&self) -> bool {
        self.has_asked
    }

    /// Whether the user may still choose.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self.ledger.state() == State::Open
    }

    /// Feeds what tells states apart.
    pub fn hash_state(&self, state: &mut impl Hasher) {
        self.line.hash_state(state);
        (
            &self.ledger,
            self.ticket_count,
            self.is_resolving,
            self.has_asked,
            &self.told,
        )
            .hash(state);
    }

    /// Something happens. Returns what is on its way because of it.
    ///
    /// # Errors
    /// It is told two outcomes.
    pub fn react(&mut self, event: &Event) -> Result<Vec<Event>, String> {
        let mut sent = Vec::new();
        match event {
            // A reply that is no news changes nothing (T2: the first execution that answers is the one named).
            Event::Reply { call, reply } => {
                let _ = self.ledger.on_reply(*call, reply.clone());
            }
            Event::Commit => {
                if let Some(decide) = self.commit() {
                    self.propose(&decide, &mut sent)?;
                }
            }
            Event::Abandon if self.is_open() => {
                let cause = AbortCause::new(AbortKind::Requested, "given up");
                let decide = self.ledger.propose_abort(cause);
                self.propose(&decide, &mut sent)?;
            }
            Event::Hear { .. } | Event::Lost { .. } => {
                if let Some(input) = self.line.input_of(event) {
                    self.step(input, &mut sent)?;
                }
            }
            Event::Timer(_) | Event::Silence(_) => {
                let is_long = matches!(event, Event::Silence(_));
                let effects = if is_long {
                    self.line.fire_all(&mut sent)
                } else {
                    self.line.fire(&mut sent)
                }?;
                self.serve(effects)?;
                if self.is_resolving {
                    self.is_resolving = false;
                    self.resolve(&mut sent)?;
                }
            }
            _ => {}
        }
        Ok(sent)
    }

    fn commit(&mut self) -> Option<Decide> {
        if self.plant == Some(Plant::CommitUnanswered) && self.is_open() {
            // The abort's own list of what is known to have prepared, proposed as a commit.
            let mut decide = self
                .ledger
                .propose_abort(AbortCause::new(AbortKind::Requested, "replaced"));
            let branches = decide.branches().to_vec();
            decide.proposal = Proposal::Commit {
                branches,
                read_only_count: 0,
            };
            return (!decide.branches().is_empty()).then_some(decide);
        }
        self.ledger.hand_over().ok().map(|commit| commit.decide)
    }

    fn propose(&mut self, decide: &Decide, sent: &mut Vec<Event>) -> Result<(), String> {
        self.has_asked = true;
        self.proposed = Some(decide.clone());
        self.ask(
            Question::Decide {
                gtid: self.gtid,
                command: decide.encode(),
            },
            sent,
        )
    }

    /// Asks what became of the transaction, and proposes the same again, in turn (T7).
    fn resolve(&mut self, sent: &mut Vec<Event>) -> Result<(), String> {
        let again = self
            .proposed
            .as_ref()
            .filter(|_| self.ticket_count.is_multiple_of(2))
            .map(Decide::encode);
        let question = match again {
            Some(command) => Question::Decide {
                gtid: self.gtid,
                command,
            },
            None => Question::Outcome(self.gtid),
        };
        self.ask(question, sent)
    }

    fn ask(&mut self, question: Question, sent: &mut Vec<Event>) -> Result<(), String> {
        self.ticket_count += 1;
        let ticket = Ticket(self.ticket_count);
        self.step(
            Input::Ask {
                ticket,
                question,
                patience: PATIENCE,
            },
            sent,
        )
    }

    fn step(&mut self, input: Input, sent: &mut Vec<Event>) -> Result<(), String> {
        let effects = self.line.step(input, sent)?;
        self.serve(effects)
    }

    fn serve(&mut self, effects: Vec<Effect>) -> Result<(), String> {
        for effect in effects {
            if let Effect::Reply { reply, .. } = effect {
                self.on_reply(reply)?;
            }
        }
        Ok(())
    }

    fn on_reply(&mut self, reply: Reply) -> Result<(), String> {
        let outcome = match reply {
            Reply::Decided(decision) => {
                let outcome = match &decision {
                    Decision::Committed => Outcome::Committed,
                    Decision::Aborted(_) => Outcome::Aborted,
                    // The log cannot hold another commit than this initiator's, nor be past its watermark.
                    other => return Err(format!("the initiator is told {other:?}")),
                };
                self.ledger
                    .on_decision(decision)
                    .map_err(|ignored| format!("a second decision: {ignored:?}"))?;
                outcome
            }
            Reply::Status(TransactionStatus::Committed { .. }) => Outcome::Committed,
            Reply::Status(TransactionStatus::Aborted(_)) => Outcome::Aborted,
            Reply::Status(TransactionStatus::Expired) => {
                return Err("expired within the deadline".to_string());
            }
            Reply::Status(TransactionStatus::Undecided) | Reply::Delivered => {
                self.is_resolving = true;
                return Ok(());
            }
            Reply::Failed(Failure::NotHandedOver { .. } | Failure::Refused(_)) if !self.is_in_doubt() => {
                self.ledger.take_back();
                self.has_asked = false;
                return Ok(());
            }
            Reply::Failed(_) => {
                self.is_resolving = true;
                return Ok(());
            }
        };
        self.told.insert(outcome);
        self.is_resolving = false;
        Ok(())
    }

    /// A question about an outcome that fails says nothing about the proposal before it.
    fn is_in_doubt(&self) -> bool {
        self.ticket_count > 1
    }
}
