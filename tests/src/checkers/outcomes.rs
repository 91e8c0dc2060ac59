//! One outcome per transaction: what anybody is told, and what any database does, is what the log says, for ever.

use super::log::LogChecker;
use super::open::{OpenVotes, decision_of};
use super::{Check, Violation, require};
use crate::actors::databases::{Databases, RowState};
use crate::schedule::Micros;
use std::collections::BTreeMap;
use synod_coordinator_core::effects::Told;
use synod_coordinator_core::machine::Machine;
use synod_coordinator_core::machine::outcomes::{Record, Verdict};
use synod_proto::command::{Decide, NamedBranch, Proposal};
use synod_proto::ids::{BranchId, Gtid, RequestId, ResourceId, SessionId, UnixMillis};
use synod_proto::session::{
    Answer, Decision, DeliveryStatus, InDoubt, InDoubtState, OpenBranch, Outcome, Request, Response,
    TransactionStatus,
};

/// What the log decided, remembered longer than the register does.
#[derive(Debug, Default)]
pub struct OutcomeChecker {
    records: BTreeMap<Gtid, Record>,
    asked: BTreeMap<(SessionId, RequestId), (Micros, Request)>,
    open_votes: OpenVotes,
    /// When anybody was first told the outcome.
    told_at: BTreeMap<Gtid, Micros>,
    told_count: u64,
}

impl OutcomeChecker {
    /// The outcomes of the log, those included that fell below the watermark.
    #[must_use]
    pub fn records(&self) -> &BTreeMap<Gtid, Record> {
        &self.records
    }

    /// How many answers and deliveries were compared.
    #[must_use]
    pub fn told_count(&self) -> u64 {
        self.told_count
    }

    pub(super) fn on_decided(&mut self, gtid: Gtid, record: Record) {
        let replaced = self.records.insert(gtid, record);
        assert!(replaced.is_none(), "the reference decides once");
    }

    pub(super) fn on_asked(&mut self, now: Micros, session: SessionId, request: &Request) {
        let number = match request {
            Request::Register { request, .. }
            | Request::Decide { request, .. }
            | Request::PrepareAndDecide { request, .. }
            | Request::Outcome { request, .. }
            | Request::AwaitDelivery { request, .. }
            | Request::Settle { request, .. }
            | Request::List { request, .. }
            | Request::ListInDoubt { request, .. } => *request,
            Request::Inquire { .. }
            | Request::Acknowledge { .. }
            | Request::Hazard { .. }
            | Request::Introduce { .. } => return,
            Request::Voted { branch, vote, .. } => return self.open_votes.on_voted(*branch, vote),
        };
        self.asked.insert((session, number), (now, request.clone()));
    }

    /// T8: a commit is acknowledged only when the tables hold it, and a hazard is reported only where somebody has laid a
    /// hand on the database.
    pub(super) fn on_service_asks(&self, request: &Request, databases: &Databases) -> Check {
        match request {
            Request::Acknowledge { branch, resource } => {
                let state = databases.state(*resource, *branch);
                require(state == Some(RowState::Committed), || {
                    format!("branch {branch} was acknowledged, and {resource} says {state:?}")
                })
            }
            Request::Hazard { branch, text, .. } => require(databases.is_by_hand(*branch), || {
                format!("a false alarm for branch {branch}: {text}")
            }),
            _ => Ok(()),
        }
    }

    fn question(&self, session: SessionId, request: RequestId) -> Result<(Micros, Request), Violation> {
        let asked = self.asked.get(&(session, request)).cloned();
        asked.ok_or_else(|| {
            Violation(format!(
                "session {session} was told an answer to request {request}, never asked"
            ))
        })
    }

    /// Compares one answer or delivery with the log.
    pub(super) fn on_told(
        &mut self,
        now: Micros,
        told: &Told,
        log: &LogChecker,
        databases: &Databases,
    ) -> Check {
        self.told_count += 1;
        let reference = log.reference();
        match &told.response {
            Response::Decided { request, decision } => {
                let (_, question) = self.question(told.session, *request)?;
                let (command, open) = match question {
                    Request::Decide { command, .. } => (command, Vec::new()),
                    Request::PrepareAndDecide { command, open, .. } => (command, open),
                    _ => {
                        return require(*decision == Decision::Settled, || {
                            format!("a settlement was answered {decision:?}")
                        });
                    }
                };
                let decide =
                    Decide::decode(&command).map_err(|error| Violation(format!("decided: {error}")))?;
                self.told_at.entry(decide.gtid).or_insert(now);
                require(self.is_decision(&decide, &open, decision, reference), || {
                    format!(
                        "{} was answered {decision:?}; the log says {:?}",
                        decide.gtid,
                        self.records.get(&decide.gtid)
                    )
                })?;
                match self.records.get(&decide.gtid) {
                    Some(record) if *decision == Decision::Committed => {
                        self.open_votes.check_committed(decide.gtid, record, &open)
                    }
                    _ => Ok(()),
                }
            }
            Response::Answered { branch, answer } => self.check_answer(now, *branch, *answer, reference),
            Response::Deliver { branch, outcome, .. } => {
                self.told_at.entry(branch.gtid).or_insert(now);
                let is_so = match outcome {
                    Outcome::Committed => self.names(*branch),
                    Outcome::Aborted => self.is_aborted(branch.gtid),
                };
                require(is_so, || {
                    format!("branch {branch} was delivered {outcome}; the log says otherwise")
                })
            }
            Response::Status { request, status } => {
                let (asked_at, question) = self.question(told.session, *request)?;
                let Request::Outcome { gtid, .. } = question else {
                    return Err(Violation("a status for another question".to_string()));
                };
                self.check_status(now, gtid, asked_at, status, reference)
            }
            Response::LowWater {
                resource,
                mark,
                unfinished,
            } => self.check_low_water(*resource, *mark, unfinished, reference, databases),
            Response::Delivered { gtid, .. } => self.check_delivered(*gtid, databases),
            Response::Listed { transactions, .. } => transactions
                .iter()
                .try_for_each(|one| self.check_status(now, one.gtid, now, &one.status, reference)),
            Response::ListedInDoubt { request, page } => {
                let (asked_at, _) = self.question(told.session, *request)?;
                page.transactions
                    .iter()
                    .try_for_each(|one| self.check_in_doubt(now, one, asked_at, reference))
            }
            Response::Registered { lineage, .. } => require(Some(*lineage) == reference.lineage(), || {
                format!("session {} was told lineage {lineage}", told.session)
            }),
            // What it asks for decides nothing; what is answered with it shows in the outcome.
            Response::Refused { .. } | Response::Prepare { .. } => Ok(()),
        }
    }

    /// What waits for an acknowledgement is in the log, and what waits for an outcome is not (T10).
    fn check_in_doubt(&mut self, now: Micros, one: &InDoubt, asked_at: Micros, reference: &Machine) -> Check {
        match &one.state {
            InDoubtState::Unfinished { branches, .. } => require(
                branches.iter().all(|branch| {
                    self.names(BranchId {
                        gtid: one.gtid,
                        call: branch.call,
                        execution: branch.execution,
                    })
                }),
                || {
                    format!(
                        "{} was listed as an unfinished commit; the log says otherwise",
                        one.gtid
                    )
                },
            ),
            InDoubtState::Undecided { .. } => {
                self.check_status(now, one.gtid, asked_at, &TransactionStatus::Undecided, reference)
            }
        }
    }

    /// T5, T9: what the record says to this proposal; once the record is gone, and where none was made in time, Expired.
    fn is_decision(
        &self,
        decide: &Decide,
        open: &[OpenBranch],
        decision: &Decision,
        reference: &Machine,
    ) -> bool {
        let is_gone =
            reference.outcomes().record(decide.gtid).is_none() && reference.is_below_mark(decide.gtid);
        // Never by the coordinator's own rule: a fault in it would be compared with itself.
        let recorded = self
            .records
            .get(&decide.gtid)
            .map(|record| decision_of(record, &decide.proposal, open));
        recorded.as_ref() == Some(decision) || (is_gone && *decision == Decision::Expired)
    }

    fn check_answer(&mut self, now: Micros, branch: BranchId, answer: Answer, reference: &Machine) -> Check {
        let is_so = match answer {
            Answer::Undecided => true,
            Answer::Committed => self.names(branch),
            // Below the watermark an unnamed branch is told Aborted, since a commit that names it is kept (T9).
            Answer::Aborted => {
                !self.names(branch)
                    && (self.records.contains_key(&branch.gtid) || reference.is_below_mark(branch.gtid))
            }
        };
        if answer != Answer::Undecided {
            self.told_at.entry(branch.gtid).or_insert(now);
        }
        require(is_so, || {
            format!(
                "branch {branch} was answered {answer:?}; the log says {:?}",
                self.records.get(&branch.gtid)
            )
        })
    }

    fn check_status(
        &mut self,
        now: Micros,
        gtid: Gtid,
        asked_at: Micros,
        status: &TransactionStatus,
        reference: &Machine,
    ) -> Check {
        let record = self.records.get(&gtid);
        let is_so = match (status, record.map(|record| &record.verdict)) {
            // T10: linearizable. Nobody had been told an outcome when the question was asked.
            (TransactionStatus::Undecided, _) => {
                self.told_at.get(&gtid).is_none_or(|told_at| *told_at > asked_at)
            }
            (TransactionStatus::Aborted(told), Some(Verdict::Aborted(cause))) => told == cause,
            (TransactionStatus::Expired, _) => reference.is_below_mark(gtid),
            (
                TransactionStatus::Committed {
                    branches: told,
                    read_only_count: told_count,
                },
                Some(Verdict::Committed {
                    branches,
                    read_only_count,
                    ..
                }),
            ) => {
                let named = branches.iter().map(|one| (one.call, one.execution, one.resource));
                told.iter()
                    .map(|one| (one.call, one.execution, one.resource))
                    .eq(named)
                    && told_count == read_only_count
                    && told
                        .iter()
                        .all(|one| !matches!(&one.delivery, DeliveryStatus::Hazard(text) if text.is_empty()))
            }
            _ => false,
        };
        if *status != TransactionStatus::Undecided {
            self.told_at.entry(gtid).or_insert(now);
        }
        require(is_so, || {
            format!("the status of {gtid} was told as {status:?}; the log says {record:?}")
        })
    }

    /// T13: what is not listed needs no proof of its effect any more, so it must have taken effect.
    fn check_low_water(
        &self,
        resource: ResourceId,
        mark: UnixMillis,
        unfinished: &[Gtid],
        reference: &Machine,
        databases: &Databases,
    ) -> Check {
        require(mark <= reference.mark(), || {
            format!("low water {mark:?} is above the log's {:?}", reference.mark())
        })?;
        let below = self.records.iter().take_while(|(gtid, _)| gtid.began_at() < mark);
        for (gtid, record) in below.filter(|(gtid, _)| !unfinished.contains(gtid)) {
            let Verdict::Committed { branches, .. } = &record.verdict else {
                continue;
            };
            for named in branches.iter().filter(|named| named.resource == resource) {
                let branch = branch_of(*gtid, named);
                let is_done = databases.is_settled(branch)
                    || databases.state(resource, branch) == Some(RowState::Committed);
                require(is_done, || {
                    format!("low water passed {gtid}, but branch {branch} has no effect")
                })?;
            }
        }
        Ok(())
    }

    /// T16: "delivered" means that every named branch has taken effect, or was settled by an operator.
    fn check_delivered(&self, gtid: Gtid, databases: &Databases) -> Check {
        let Some(Verdict::Committed { branches, .. }) = self.records.get(&gtid).map(|record| &record.verdict)
        else {
            return Err(Violation(format!(
                "{gtid} was called delivered, but it is not committed"
            )));
        };
        for named in branches {
            let branch = branch_of(gtid, named);
            let is_done = databases.is_settled(branch)
                || databases.state(named.resource, branch) == Some(RowState::Committed);
            require(is_done, || {
                format!("{gtid} was called delivered, but branch {branch} has no effect")
            })?;
        }
        Ok(())
    }

    /// T5: a branch takes effect only if the record names it, and a named branch is never rolled back.
    pub(super) fn on_effects(&mut self, databases: &mut Databases, reference: &Machine) -> Check {
        for (branch, outcome) in databases.take_effects() {
            let is_so = match outcome {
                Outcome::Committed => self.names(branch),
                Outcome::Aborted => {
                    !self.names(branch)
                        && (self.records.contains_key(&branch.gtid) || reference.is_below_mark(branch.gtid))
                }
            };
            require(is_so, || {
                format!("branch {branch} was {outcome} in its database; the log says otherwise")
            })?;
        }
        Ok(())
    }

    /// At the end: every branch that a record names has taken effect, and nothing is left prepared.
    ///
    /// # Errors
    /// Something is left over.
    pub fn check_final(&self, databases: &Databases) -> Check {
        for (gtid, record) in &self.records {
            if matches!(record.verdict, Verdict::Committed { .. }) {
                self.check_delivered(*gtid, databases)?;
            }
        }
        databases.prepared().next().map_or(Ok(()), |(resource, branch)| {
            Err(Violation(format!(
                "branch {branch} of {resource} is still prepared at the end"
            )))
        })
    }

    fn names(&self, branch: BranchId) -> bool {
        match self.records.get(&branch.gtid).map(|record| &record.verdict) {
            Some(Verdict::Committed { branches, .. }) => branches
                .iter()
                .any(|named| (named.call, named.execution) == (branch.call, branch.execution)),
            _ => false,
        }
    }

    fn is_aborted(&self, gtid: Gtid) -> bool {
        matches!(
            self.records.get(&gtid),
            Some(Record {
                verdict: Verdict::Aborted(_),
                ..
            })
        )
    }

    /// What was proposed for a gtid and answered Committed must be all of the work asked for.
    #[must_use]
    pub fn committed_branches(&self, gtid: Gtid) -> Option<&[NamedBranch]> {
        match self.records.get(&gtid).map(|record| &record.verdict) {
            Some(Verdict::Committed { branches, .. }) => Some(branches),
            _ => None,
        }
    }
}

/// The id of a branch that a record names.
#[must_use]
pub fn branch_of(gtid: Gtid, named: &NamedBranch) -> BranchId {
    BranchId {
        gtid,
        call: named.call,
        execution: named.execution,
    }
}

/// Whether a proposal is a commit.
#[must_use]
pub fn is_commit(decide: &Decide) -> bool {
    matches!(decide.proposal, Proposal::Commit { .. })
}
