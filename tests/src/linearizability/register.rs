//! The outcome register of one gtid as a sequential object: a cell that is written once (T9), by whoever comes first.
//!
//! | operation | may be answered |
//! |---|---|
//! | propose a commit | committed, if the record is exactly this proposal's, else mismatch (T5); aborted; expired |
//! | propose a commit with open branches | committed, if the record is one that may follow from it (T3), else mismatch; aborted; expired |
//! | propose an abort | aborted, with the record's cause; committed; expired |
//! | query | what the record says; undecided only while there is none (T10) |
//! | inquire for a branch | committed only if the record names the branch (T5); aborted, which writes an abort where nothing is written yet (T6) |
//! | hear a delivery | the same, for what the coordinator says unasked; it writes nothing |
//!
//! *Undecided* as the answer to an inquiry says "ask again" and nothing else: such an inquiry counts as unanswered, and
//! may still write its abort later.
//!
//! *Expired* (T9) says that the record is gone for good: from then on nothing is written. A replica that lags may still
//! tell the outcome itself, which is and stays true (T10), so an expired register keeps its outcome in this model.
//!
//! What the model leaves open: an inquiry may abort at any time, since only the coordinator's clock knows the deadline,
//! and any record may expire, since acknowledgements are no operations here. Other checkers compare these with the log.

use super::Model;
use super::prepared::{Named, Prepared};
use synod_proto::command::{NamedBranch, Proposal};
use synod_proto::ids::{CallId, ExecutionId, ResourceId};
use synod_proto::session::{AbortCause, AbortKind, Answer, Decision, OpenBranch, Outcome, TransactionStatus};

/// What the register holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// The outcome, if one is written.
    pub outcome: Option<Written>,
    /// Nothing is written from now on.
    pub is_expired: bool,
}

/// An outcome as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Committed, with exactly these branches.
    Committed {
        /// The branches.
        branches: Vec<NamedBranch>,
        /// How many more voted read-only.
        read_only_count: u32,
    },
    /// Committed, with those of its open branches that voted to.
    Prepared(Prepared),
    /// Aborted. `None` while it is only known that an inquiry past the deadline wrote it.
    Aborted(Option<AbortCause>),
    /// Aborted, since an open branch did not vote to commit; nobody was told why yet.
    NotPrepared,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// An outcome is proposed.
    Propose(Proposal),
    /// A commit is proposed, once these branches are prepared.
    ProposePrepared(Proposal, Vec<OpenBranch>),
    /// What became of the transaction?
    Query,
    /// A prepared branch asks for its outcome.
    Inquire(CallId, ExecutionId),
    /// A branch is told an outcome unasked; or, as [`Output::AllDelivered`], whoever waited for all of them.
    Hear(CallId, ExecutionId),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To a proposal.
    Decision(Decision),
    /// To a query. How far deliveries are is not looked at.
    Status(TransactionStatus),
    /// To an inquiry, or with a delivery.
    Told(Outcome),
    /// Every branch of this commit has acknowledged.
    AllDelivered,
}

impl Output {
    /// What an inquiry's answer says; `None` where it says nothing.
    #[must_use]
    pub fn of_answer(answer: Answer) -> Option<Self> {
        match answer {
            Answer::Committed => Some(Self::Told(Outcome::Committed)),
            Answer::Aborted => Some(Self::Told(Outcome::Aborted)),
            Answer::Undecided => None,
        }
    }
}

/// The model.
#[derive(Clone, Copy, Debug, Default)]
pub struct RegisterModel;

impl Model for RegisterModel {
    type State = Register;
    type Input = Input;
    type Output = Output;

    fn initial(&self) -> Register {
        Register {
            outcome: None,
            is_expired: false,
        }
    }

    fn successors(&self, state: &Register, input: &Input, output: Option<&Output>) -> Vec<Register> {
        let Some(output) = output else {
            return state.after_lost(input);
        };
        let next = match (input, output) {
            (Input::Propose(proposal), Output::Decision(decision)) => {
                state.after_decision(proposal, decision)
            }
            (Input::ProposePrepared(proposal, open), Output::Decision(decision)) => {
                state.after_decision_prepared(proposal, open, decision)
            }
            (Input::Query, Output::Status(status)) => state.after_status(status),
            (Input::Inquire(call, execution), Output::Told(Outcome::Aborted)) if state.outcome.is_none() => {
                return state.after_inquiry_aborted(*call, *execution);
            }
            (Input::Inquire(call, execution) | Input::Hear(call, execution), Output::Told(outcome)) => {
                state.after_told(*call, *execution, *outcome)
            }
            (Input::Hear(..), Output::AllDelivered) => state.is_committed().then(|| state.clone()),
            _ => None,
        };
        next.into_iter().collect()
    }

    /// Once an outcome is written, only *expired* still changes anything; and a query never writes.
    fn is_only_a_read(&self, state: &Register, input: &Input, output: &Output) -> bool {
        let says_expired = matches!(
            output,
            Output::Decision(Decision::Expired) | Output::Status(TransactionStatus::Expired)
        );
        state.is_expired || (!says_expired && (state.outcome.is_some() || matches!(input, Input::Query)))
    }
}

impl Register {
    fn written(&self, outcome: Written) -> Self {
        Self {
            outcome: Some(outcome),
            ..self.clone()
        }
    }

    fn expired(&self) -> Self {
        Self {
            is_expired: true,
            ..self.clone()
        }
    }

    fn can_be_written(&self) -> bool {
        self.outcome.is_none() && !self.is_expired
    }

    fn after_lost(&self, input: &Input) -> Vec<Self> {
        if !self.can_be_written() {
            return Vec::new();
        }
        match input {
            Input::Propose(proposal) => vec![self.written(outcome_of(proposal))],
            Input::ProposePrepared(proposal, open) => {
                let prepared = Prepared::new(proposal, open).map(|one| self.written(Written::Prepared(one)));
                prepared
                    .into_iter()
                    .chain([self.written(Written::NotPrepared)])
                    .collect()
            }
            Input::Inquire(..) => vec![self.written(Written::Aborted(None))],
            Input::Query | Input::Hear(..) => Vec::new(),
        }
    }

    fn after_decision(&self, proposal: &Proposal, decision: &Decision) -> Option<Self> {
        if *decision == Decision::Expired {
            return Some(self.expired());
        }
        let next = if self.can_be_written() {
            self.written(outcome_of(proposal))
        } else {
            self.clone()
        };
        let is_same = next.outcome.as_ref() == Some(&outcome_of(proposal));
        match (next.outcome.as_ref()?, proposal, decision) {
            (Written::Aborted(_) | Written::NotPrepared, _, Decision::Aborted(cause)) => {
                next.with_cause(cause)
            }
            (
                Written::Committed { .. } | Written::Prepared(_),
                Proposal::Abort { .. },
                Decision::Committed,
            ) => Some(next),
            (
                Written::Prepared(prepared),
                Proposal::Commit {
                    branches,
                    read_only_count,
                },
                Decision::Committed,
            ) => prepared
                .may_be(branches, *read_only_count)
                .then(|| next.written(outcome_of(proposal))),
            // What the open branches' digests are is not known here: the record may differ in them.
            (Written::Prepared(_), Proposal::Commit { .. }, Decision::Mismatch) => Some(next),
            (Written::Committed { .. }, Proposal::Commit { .. }, Decision::Committed) => {
                is_same.then_some(next)
            }
            (Written::Committed { .. }, Proposal::Commit { .. }, Decision::Mismatch) => {
                (!is_same).then_some(next)
            }
            _ => None,
        }
    }

    /// T3: the same for a commit that waits for its open branches.
    fn after_decision_prepared(
        &self,
        proposal: &Proposal,
        open: &[OpenBranch],
        decision: &Decision,
    ) -> Option<Self> {
        let asked = Prepared::new(proposal, open)?;
        if *decision == Decision::Expired {
            return Some(self.expired());
        }
        if self.can_be_written() {
            return match decision {
                Decision::Committed => Some(self.written(Written::Prepared(asked))),
                Decision::Aborted(cause) => Some(self.written(Written::Aborted(Some(cause.clone())))),
                _ => None,
            };
        }
        match (self.outcome.as_ref()?, decision) {
            (Written::Aborted(_) | Written::NotPrepared, Decision::Aborted(cause)) => self.with_cause(cause),
            (
                Written::Committed {
                    branches,
                    read_only_count,
                },
                Decision::Committed | Decision::Mismatch,
            ) => {
                let is_same = asked.may_be(branches, *read_only_count);
                (is_same == (*decision == Decision::Committed)).then(|| self.clone())
            }
            // Of another proposal's record it is not known yet which of its branches it names.
            (Written::Prepared(prepared), Decision::Mismatch) => {
                (!prepared.is_asked_as(&asked)).then(|| self.clone())
            }
            (Written::Prepared(_), Decision::Committed) => Some(self.clone()),
            _ => None,
        }
    }

    fn after_status(&self, status: &TransactionStatus) -> Option<Self> {
        match (&self.outcome, status) {
            (_, TransactionStatus::Expired) => Some(self.expired()),
            (None, TransactionStatus::Undecided) => (!self.is_expired).then(|| self.clone()),
            (Some(Written::Aborted(_) | Written::NotPrepared), TransactionStatus::Aborted(cause)) => {
                self.with_cause(cause)
            }
            (
                Some(Written::Prepared(prepared)),
                TransactionStatus::Committed {
                    branches,
                    read_only_count,
                },
            ) => {
                let named: Vec<Named> = branches
                    .iter()
                    .map(|one| (one.call, one.execution, one.resource))
                    .collect();
                let left = prepared.shown(&named, *read_only_count)?;
                Some(self.written(Written::Prepared(left)))
            }
            (
                Some(Written::Committed {
                    branches,
                    read_only_count,
                }),
                TransactionStatus::Committed {
                    branches: told,
                    read_only_count: told_count,
                },
            ) => {
                let named = branches.iter().map(|one| (one.call, one.execution, one.resource));
                let told: Vec<(CallId, ExecutionId, ResourceId)> = told
                    .iter()
                    .map(|one| (one.call, one.execution, one.resource))
                    .collect();
                (named.eq(told) && read_only_count == told_count).then(|| self.clone())
            }
            _ => None,
        }
    }

    /// Nothing is written yet, and the branch hears that it aborts: the inquiry wrote an abort, or found the gtid below
    /// the watermark.
    fn after_inquiry_aborted(&self, call: CallId, execution: ExecutionId) -> Vec<Self> {
        debug_assert!(self.outcome_for(call, execution).is_none());
        let mut next = vec![self.expired()];
        if self.can_be_written() {
            next.push(self.written(Written::Aborted(None)));
        }
        next
    }

    /// Everybody is told the same cause; the first to tell an inquiry's abort shows which one it is.
    fn with_cause(&self, cause: &AbortCause) -> Option<Self> {
        match &self.outcome {
            Some(Written::Aborted(Some(known))) => (known == cause).then(|| self.clone()),
            Some(Written::NotPrepared) => Some(self.written(Written::Aborted(Some(cause.clone())))),
            Some(Written::Aborted(None)) => (cause.kind == AbortKind::Deadline)
                .then(|| self.written(Written::Aborted(Some(cause.clone())))),
            _ => None,
        }
    }

    fn is_committed(&self) -> bool {
        matches!(
            self.outcome,
            Some(Written::Committed { .. } | Written::Prepared(_))
        )
    }

    fn after_told(&self, call: CallId, execution: ExecutionId, outcome: Outcome) -> Option<Self> {
        if let Some(Written::Prepared(prepared)) = &self.outcome {
            let left = prepared.told(call, execution, outcome)?;
            return Some(self.written(Written::Prepared(left)));
        }
        (self.outcome_for(call, execution) == Some(outcome)).then(|| self.clone())
    }

    /// T5: per branch.
    fn outcome_for(&self, call: CallId, execution: ExecutionId) -> Option<Outcome> {
        match self.outcome.as_ref()? {
            Written::Committed { branches, .. }
                if branches
                    .iter()
                    .any(|one| (one.call, one.execution) == (call, execution)) =>
            {
                Some(Outcome::Committed)
            }
            _ => Some(Outcome::Aborted),
        }
    }
}

fn outcome_of(proposal: &Proposal) -> Written {
    match proposal {
        Proposal::Commit {
            branches,
            read_only_count,
        } => Written::Committed {
            branches: branches.clone(),
            read_only_count: *read_only_count,
        },
        Proposal::Abort { cause, .. } => Written::Aborted(Some(cause.clone())),
    }
}
