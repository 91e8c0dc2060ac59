//! A participant: the real gate between prepare and vote, the real session, and a database of a few rows.

use super::event::{BEGIN, DEADLINE, Event, Place};
use super::line::Line;
use super::plant::Plant;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use synod_participant_core::branch::{Branch, Durable};
use synod_participant_core::session::{Effect, Finished, Input, ListedBranch};
use synod_participant_core::transaction::Reply;
use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, Lineage, ResourceId};
use synod_proto::session::Outcome;

/// What the database holds of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    /// Durable and able to commit.
    Prepared,
    /// Its effect is there, and a marker row proves it.
    Committed,
    /// Rolled back; the database knows nothing of it any more. For checkers.
    RolledBack,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Participant {
    place: Place,
    gtid: Gtid,
    lineage: Lineage,
    execution_count_max: u64,
    plant: Option<Plant>,
    line: Line,
    /// Never reused, whatever crashes: a real one is random.
    execution_count: u64,
    rows: BTreeMap<BranchId, Row>,
}

impl Participant {
    /// A participant with an empty database; and what it sends.
    ///
    /// # Errors
    /// See [`Line::step`].
    pub fn new(
        place: Place,
        gtid: Gtid,
        lineage: Lineage,
        execution_count_max: u64,
        plant: Option<Plant>,
    ) -> Result<(Self, Vec<Event>), String> {
        let line = Line::new(place, 0);
        let rows = BTreeMap::new();
        let mut participant = Self {
            place,
            gtid,
            lineage,
            execution_count_max,
            plant,
            line,
            execution_count: 0,
            rows,
        };
        let mut sent = Vec::new();
        participant.attach(&mut sent)?;
        Ok((participant, sent))
    }

    /// The database of a participant.
    #[must_use]
    pub fn resource(place: Place) -> ResourceId {
        ResourceId([place as u8; 16])
    }

    /// What the database holds.
    #[must_use]
    pub fn rows(&self) -> &BTreeMap<BranchId, Row> {
        &self.rows
    }

    /// Feeds what tells states apart.
    pub fn hash_state(&self, state: &mut impl Hasher) {
        self.line.hash_state(state);
        (self.execution_count, &self.rows).hash(state);
    }

    /// Something happens. Returns what is on its way because of it.
    ///
    /// # Errors
    /// A branch that committed is told to roll back, or one that was rolled back to commit.
    pub fn react(&mut self, event: &Event) -> Result<Vec<Event>, String> {
        let mut sent = Vec::new();
        match event {
            Event::Call { call, .. } => self.on_call(*call, &mut sent)?,
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
                self.serve(effects, &mut sent)?;
            }
            Event::Crash(_) => {
                self.line = Line::new(self.place, self.line.life() + 1);
                if self.plant == Some(Plant::VoteBeforePrepare) {
                    self.rows.retain(|_, row| *row != Row::Prepared);
                }
                if self.plant == Some(Plant::RollBackAtStart) {
                    self.rows
                        .values_mut()
                        .filter(|row| **row == Row::Prepared)
                        .for_each(|row| *row = Row::RolledBack);
                }
                self.attach(&mut sent)?;
            }
            _ => {}
        }
        Ok(sent)
    }

    fn attach(&mut self, sent: &mut Vec<Event>) -> Result<(), String> {
        self.step(
            Input::Attach {
                resource: Self::resource(self.place),
            },
            sent,
        )
    }

    /// Steps 2 and 3: the work runs as a fresh execution (T2), prepares, and its vote returns with the reply.
    fn on_call(&mut self, call: CallId, sent: &mut Vec<Event>) -> Result<(), String> {
        if self.execution_count >= self.execution_count_max {
            return Ok(());
        }
        self.execution_count += 1;
        let execution = ExecutionId(100 * self.place as u64 + self.execution_count);
        let id = BranchId {
            gtid: self.gtid,
            call,
            execution,
        };
        let resource = Self::resource(self.place);
        let branch = Branch::new(id, resource);
        let voted = if self.line.session().is_settled(self.gtid) {
            branch.rolled_back("the transaction is decided already")
        } else {
            self.step(Input::Started { branch: id }, sent)?;
            self.rows.insert(id, Row::Prepared);
            let lineage = self.lineage;
            self.step(
                Input::Prepared {
                    branch: id,
                    resource,
                    lineage,
                    deadline: DEADLINE,
                },
                sent,
            )?;
            branch.prepared(Durable::Prepared, 0, Bytes::new())
        };
        let votes = vec![voted.vote().clone()];
        sent.push(Event::Reply {
            call,
            reply: Reply {
                execution,
                votes,
                dooms: Vec::new(),
                open: Vec::new(),
                unnamed: Vec::new(),
            },
        });
        Ok(())
    }

    fn step(&mut self, input: Input, sent: &mut Vec<Event>) -> Result<(), String> {
        let effects = self.line.step(input, sent)?;
        self.serve(effects, sent)
    }

    /// The database answers at once.
    fn serve(&mut self, effects: Vec<Effect>, sent: &mut Vec<Event>) -> Result<(), String> {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            let input = match effect {
                Effect::List { resource } => Input::Listed {
                    resource,
                    branches: Some(self.list()),
                },
                Effect::Finish { branch, outcome, .. } => Input::Finished {
                    branch,
                    outcome,
                    finished: self.finish(branch, outcome)?,
                },
                _ => continue,
            };
            effects.extend(self.line.step(input, sent)?);
        }
        Ok(())
    }

    fn list(&self) -> Vec<ListedBranch> {
        let prepared = self.rows.iter().filter(|(_, row)| **row == Row::Prepared);
        let listed = |(branch, _): (&BranchId, &Row)| {
            let (branch, lineage) = (*branch, self.lineage);
            ListedBranch {
                branch,
                lineage,
                deadline: DEADLINE,
                prepared_at: BEGIN,
            }
        };
        prepared.map(listed).collect()
    }

    fn finish(&mut self, branch: BranchId, outcome: Outcome) -> Result<Finished, String> {
        if self.plant == Some(Plant::AcknowledgeEarly) && outcome == Outcome::Committed {
            return Ok(Finished::Applied);
        }
        let unknown = Finished::Unknown {
            detail: "no such branch".to_string(),
        };
        let Some(row) = self.rows.get_mut(&branch) else {
            return Ok(unknown);
        };
        match (*row, outcome) {
            (Row::Prepared, Outcome::Committed) => *row = Row::Committed,
            (Row::Prepared, Outcome::Aborted) => *row = Row::RolledBack,
            (Row::Committed, Outcome::Committed) => return Ok(Finished::AlreadyApplied),
            (Row::RolledBack, Outcome::Aborted) => return Ok(unknown),
            (row, outcome) => return Err(format!("branch {branch} is {row:?} and was told {outcome}")),
        }
        Ok(Finished::Applied)
    }
}
