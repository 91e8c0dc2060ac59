//! One participant's part of one global transaction while it runs: the core's ledger, and what a person
//! wants to read about its calls. The initiator's [`Transaction`](crate::Transaction) has one, and every
//! call that arrives at a server has one of its own, whose ledger goes up with the reply.
//!
//! Every rule is the ledger's (T2, T4, T5, T7); this is only the place where several tasks reach it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use synod_participant_core::arrival::{CallContext, Execution};
use synod_participant_core::transaction::{
    BranchVote, CallRefused, Commit, CommitRefused, Ignored, Ledger, OpenCalls, Reply,
};
use synod_proto::command::Decide;
use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, UnixMillis};
use synod_proto::session::{AbortCause, AbortKind, Decision};
use tonic::Status;

use crate::error::{BranchFailure, CommitError, UnknownCall, is_retryable_status};
use crate::participant::{Participant, random_u64};

pub(crate) struct Scope {
    participant: Participant,
    gtid: Gtid,
    deadline: UnixMillis,
    ledger: Mutex<Noted>,
}

struct Noted {
    ledger: Ledger,
    notes: BTreeMap<CallId, Note>,
    /// Of the call that arrived here; `None` at the initiator.
    execution: Option<Execution>,
    is_joined: bool,
}

struct Note {
    method: String,
    failure: Option<NotedFailure>,
}

struct NotedFailure {
    text: String,
    is_retryable: bool,
    /// The call itself ended well; its reply hands a failure up.
    is_below: bool,
}

impl Noted {
    fn fail(&mut self, call: CallId, failure: NotedFailure) {
        if let Some(note) = self.notes.get_mut(&call) {
            note.failure = Some(failure);
        }
    }
}

impl std::fmt::Debug for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scope")
            .field("gtid", &self.gtid)
            .finish_non_exhaustive()
    }
}

impl Scope {
    /// Of a transaction that begins here.
    pub(crate) fn begun(participant: Participant, gtid: Gtid, deadline: UnixMillis) -> Arc<Self> {
        Self::new(participant, gtid, deadline, None)
    }

    /// Of a call that arrived here: a fresh execution of it (T2).
    pub(crate) fn arrived(participant: Participant, context: &CallContext) -> Arc<Self> {
        let execution = Execution::new(context.call, ExecutionId(random_u64()));
        Self::new(participant, context.gtid, context.deadline, Some(execution))
    }

    fn new(
        participant: Participant,
        gtid: Gtid,
        deadline: UnixMillis,
        execution: Option<Execution>,
    ) -> Arc<Self> {
        let ledger = Ledger::new(participant.lineage(), gtid, deadline, random_u64());
        let noted = Noted {
            ledger,
            notes: BTreeMap::new(),
            execution,
            is_joined: false,
        };
        Arc::new(Self {
            participant,
            gtid,
            deadline,
            ledger: Mutex::new(noted),
        })
    }

    pub(crate) fn participant(&self) -> &Participant {
        &self.participant
    }

    pub(crate) fn gtid(&self) -> Gtid {
        self.gtid
    }

    pub(crate) fn deadline(&self) -> UnixMillis {
        self.deadline
    }

    /// Until the deadline, by this machine's clock (T14).
    pub(crate) fn remaining(&self) -> Duration {
        Duration::from_millis(self.deadline.0.saturating_sub(self.participant.now().0))
    }

    /// Never held across an await; a panic inside cannot leave the ledger half changed.
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- calls ----

    /// Opens a call to another service, or a branch of the initiator's own.
    pub(crate) fn open_call(self: &Arc<Self>, method: &str) -> Result<OpenCall, CallRefused> {
        let mut noted = self.noted();
        if noted.execution.as_ref().is_some_and(Execution::is_handed_up) {
            return Err(CallRefused::Closed);
        }
        let id = noted.ledger.call()?;
        noted.notes.insert(
            id,
            Note {
                method: method.to_owned(),
                failure: None,
            },
        );
        Ok(OpenCall {
            scope: self.clone(),
            id,
            execution: None,
            is_settled: false,
        })
    }

    /// Opens a branch on a database of this process: the arriving call's own, if there is one and it has no
    /// branch yet.
    pub(crate) fn open_branch(self: &Arc<Self>, method: &str) -> Result<OpenCall, CallRefused> {
        let mut noted = self.noted();
        match noted.execution.as_mut().and_then(Execution::begin_own) {
            Some((id, execution)) => Ok(OpenCall {
                scope: self.clone(),
                id,
                execution: Some(execution),
                is_settled: false,
            }),
            None => {
                drop(noted);
                self.open_call(method)
            }
        }
    }

    pub(crate) fn discard(&self, call: CallId) -> Result<(), UnknownCall> {
        let mut noted = self.noted();
        match noted.ledger.discard(call) {
            Ok(()) | Err(Ignored::Discarded) => {
                if let Some(note) = noted.notes.get_mut(&call) {
                    note.failure = None;
                } else {
                    // The failure of a call further down. Whether others remain is the ledger's to say; a
                    // note only saves a prepare.
                    for note in noted.notes.values_mut() {
                        note.failure.take_if(|failure| failure.is_below);
                    }
                }
                Ok(())
            }
            Err(_) => Err(UnknownCall(call)),
        }
    }

    /// A call made here that has failed and was not discarded: preparing above it would be in vain.
    pub(crate) fn nested_doom(&self) -> Option<BranchFailure> {
        let noted = self.noted();
        noted.execution.as_ref()?;
        noted.notes.iter().find_map(|(call, note)| {
            let failure = note.failure.as_ref()?;
            Some(BranchFailure::Doomed {
                call: *call,
                method: note.method.clone(),
                text: failure.text.clone(),
                is_retryable: failure.is_retryable,
            })
        })
    }

    // ---- at a server ----

    /// The method is transactional: its reply carries votes, even if there are none.
    pub(crate) fn join(&self) {
        self.noted().is_joined = true;
    }

    /// What goes up with the reply; `None` if no transactional method ran. No call can be made under it any
    /// more.
    pub(crate) fn hand_up(&self) -> Option<Reply> {
        let mut noted = self.noted();
        let Noted {
            ledger,
            execution,
            is_joined,
            ..
        } = &mut *noted;
        let execution = execution.as_mut()?;
        if !*is_joined {
            execution.close();
            return None;
        }
        Some(execution.hand_up(ledger))
    }

    // ---- at the initiator ----

    /// The commit request; see [`Ledger::hand_over`].
    pub(crate) fn hand_over(&self) -> Result<Commit, CommitError> {
        let mut noted = self.noted();
        let refused = match noted.ledger.hand_over() {
            Ok(commit) => return Ok(commit),
            Err(refused) => refused,
        };
        let doom = match &refused {
            CommitRefused::Unanswered { call } => Some((*call, "the call was left unanswered".to_owned())),
            CommitRefused::Doomed(doom) => Some((doom.call, doom.cause.to_string())),
            _ => None,
        };
        let Some((call, text)) = doom else {
            return Err(CommitError::Invalid(refused.to_string()));
        };
        let note = noted.notes.get(&call);
        // A call further down is not noted here, but the call that brought its failure up is.
        let failure = note.and_then(|note| note.failure.as_ref());
        let is_retryable = match failure {
            Some(failure) => failure.is_retryable,
            None => noted
                .notes
                .values()
                .filter_map(|note| note.failure.as_ref())
                .any(|failure| failure.is_retryable),
        };
        let method = note.map_or_else(|| "a nested call".to_owned(), |note| note.method.clone());
        Err(CommitError::Doomed {
            gtid: self.gtid,
            call,
            method,
            text,
            is_retryable,
        })
    }

    /// The commit request came back undone: aborts in the background (T7).
    pub(crate) fn on_undone(&self) {
        let abort = self.noted().ledger.on_undone();
        self.abort_in_background(abort);
    }

    pub(crate) fn propose_abort(&self, reason: &str) -> Decide {
        self.noted()
            .ledger
            .propose_abort(AbortCause::new(AbortKind::Requested, reason))
    }

    pub(crate) fn on_decision(&self, decision: &Decision) {
        if self.noted().ledger.on_decision(decision.clone()).is_err() {
            tracing::error!(gtid = %self.gtid, ?decision, "a second outcome was told; the first one stands");
        }
    }

    /// Lets go: aborts in the background whatever was not handed over (T7).
    pub(crate) fn let_go(&self) {
        let abort = self.noted().ledger.on_drop();
        self.abort_in_background(abort);
    }

    fn abort_in_background(&self, abort: Option<Decide>) {
        if let Some(abort) = abort {
            self.participant.session().decide_in_background(abort);
        }
    }
}

/// A call that must be answered for (T4). Dropping it unanswered fails it.
#[derive(Debug)]
pub(crate) struct OpenCall {
    scope: Arc<Scope>,
    id: CallId,
    /// Set where this is the arriving call's own branch.
    execution: Option<ExecutionId>,
    is_settled: bool,
}

impl OpenCall {
    pub(crate) fn id(&self) -> CallId {
        self.id
    }

    pub(crate) fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    /// A branch under this call: of the execution that the arriving call goes by, or of a new one (T2).
    pub(crate) fn begin_branch(&self) -> BranchId {
        BranchId {
            gtid: self.scope.gtid(),
            call: self.id,
            execution: self.execution.unwrap_or_else(|| ExecutionId(random_u64())),
        }
    }

    /// What the request says of itself.
    pub(crate) fn context(&self) -> CallContext {
        let Scope { gtid, deadline, .. } = *self.scope;
        CallContext {
            lineage: self.scope.participant.lineage(),
            gtid,
            call: self.id,
            deadline,
        }
    }

    /// A reply has arrived whole.
    pub(crate) fn answer(mut self, reply: Reply) {
        self.is_settled = true;
        let mut noted = self.scope.noted();
        if let Some(doom) = reply.dooms.first() {
            let text = doom.cause.to_string();
            noted.fail(
                self.id,
                NotedFailure {
                    text,
                    is_retryable: false,
                    is_below: true,
                },
            );
        }
        self.settle(&mut noted, reply);
    }

    /// A branch of this process has voted, either way.
    pub(crate) fn answer_vote(mut self, vote: BranchVote, failure: Option<&BranchFailure>) {
        self.is_settled = true;
        let mut noted = self.scope.noted();
        if let Some(failure) = failure {
            let (text, is_retryable) = (failure.to_string(), failure.is_retryable());
            noted.fail(
                self.id,
                NotedFailure {
                    text,
                    is_retryable,
                    is_below: false,
                },
            );
        }
        if self.execution.is_some()
            && let Some(execution) = &mut noted.execution
        {
            execution.on_own_vote(vote);
            return;
        }
        let reply = Reply {
            execution: vote.execution,
            votes: vec![vote],
            dooms: Vec::new(),
            open: Vec::new(),
            unnamed: Vec::new(),
        };
        self.settle(&mut noted, reply);
    }

    /// A call of this process ran in a branch that stays open.
    pub(crate) fn answer_open(mut self, execution: ExecutionId, calls: OpenCalls) {
        self.is_settled = true;
        let mut noted = self.scope.noted();
        if self.execution.is_some()
            && let Some(own) = &mut noted.execution
        {
            own.on_own_left_open(calls);
            return;
        }
        let reply = Reply {
            execution,
            votes: Vec::new(),
            dooms: Vec::new(),
            open: vec![calls],
            unnamed: Vec::new(),
        };
        self.settle(&mut noted, reply);
    }

    /// The caller sees this call fail. Votes that came with it are kept: they say who voted to abort, and
    /// whom to tell.
    pub(crate) fn fail(mut self, status: &Status, votes: Option<Reply>) {
        self.is_settled = true;
        let text = format!("{:?}: {}", status.code(), status.message());
        let is_retryable = is_retryable_status(status);
        let mut noted = self.scope.noted();
        noted.fail(
            self.id,
            NotedFailure {
                text: text.clone(),
                is_retryable,
                is_below: false,
            },
        );
        let settled = match votes {
            Some(reply) => noted.ledger.on_failed_reply(self.id, reply, text),
            None => noted.ledger.on_failure(self.id, text),
        };
        if let Err(ignored) = settled {
            self.trace(ignored);
        }
    }

    fn settle(&self, noted: &mut Noted, reply: Reply) {
        if let Err(ignored) = noted.ledger.on_reply(self.id, reply) {
            self.trace(ignored);
        }
    }

    fn trace(&self, ignored: Ignored) {
        tracing::debug!(gtid = %self.scope.gtid, call = %self.id, %ignored, "an answer changes nothing");
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        let mut noted = self.scope.noted();
        if self.execution.is_some() {
            // The own branch stays open for ever, which `hand_up` reports.
            return;
        }
        let text = "the call was dropped before its reply".to_owned();
        noted.fail(
            self.id,
            NotedFailure {
                text: text.clone(),
                is_retryable: false,
                is_below: false,
            },
        );
        if let Err(ignored) = noted.ledger.on_failure(self.id, text) {
            self.trace(ignored);
        }
    }
}
