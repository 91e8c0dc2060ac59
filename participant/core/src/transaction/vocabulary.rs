//! What a ledger takes and gives: votes, dooms, replies, and its named refusals.

use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use synod_proto::command::{Decide, NamedBranch};
use synod_proto::ids::{CallId, ExecutionId, ResourceId};
use synod_proto::limits::BRANCH_COUNT_MAX;
use synod_proto::session::{AbortCause, Decision, OpenBranch, Vote};

/// The most calls that one participant may make under one transaction, discarded ones included: a loop that retries by
/// fresh calls for ever is a bug, and each call is remembered (traps A20).
pub const CALL_COUNT_MAX: usize = 1024;

const _: () = assert!(CALL_COUNT_MAX >= BRANCH_COUNT_MAX);

/// One branch's vote, as a reply carries it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BranchVote {
    /// The call.
    pub call: CallId,
    /// The execution of it that voted.
    pub execution: ExecutionId,
    /// The database.
    pub resource: ResourceId,
    /// The vote.
    pub vote: Vote,
    /// A digest of the work; 0 without.
    pub digest: u64,
    /// The database's own transaction id; empty without.
    pub database_transaction: Bytes,
}

impl BranchVote {
    pub(super) fn named(&self) -> NamedBranch {
        NamedBranch {
            call: self.call,
            execution: self.execution,
            resource: self.resource,
            digest: self.digest,
            database_transaction: self.database_transaction.clone(),
        }
    }
}

/// Calls of a transaction that ran on one open branch, as those who made them count them (T3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpenCalls {
    /// The branch, with how many of its calls are counted here.
    pub branch: OpenBranch,
    /// How many calls the instance itself had counted, when it answered the last of them: if that is more, a call is
    /// missing here.
    pub count_seen: u32,
}

impl OpenCalls {
    /// Whether both are calls on the same open local transaction.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let uncounted = |one: &Self| OpenBranch {
            call_count: 0,
            ..one.branch
        };
        uncounted(self) == uncounted(other)
    }

    /// As an abort tells it.
    pub(super) fn named(&self) -> NamedBranch {
        let OpenBranch {
            call,
            execution,
            resource,
            ..
        } = self.branch;
        NamedBranch {
            call,
            execution,
            resource,
            digest: 0,
            database_transaction: Bytes::new(),
        }
    }
}

/// A Commit request, ready for the transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The proposal, of the branches that have voted: the whole, if none is open.
    pub decide: Decide,
    /// The branches that are to be prepared first, in the order of their ids. With any, `decide` alone would be half the
    /// transaction.
    pub open: Vec<OpenBranch>,
}

/// What a commit would name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitSet {
    /// The branches that voted to commit, in order.
    pub branches: Vec<NamedBranch>,
    /// How many more voted read-only.
    pub read_only_count: u32,
    /// The open branches, in order.
    pub open: Vec<OpenBranch>,
}

/// A call that failed or was left unanswered, and was not discarded: the transaction cannot commit (T4).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Doom {
    /// The call.
    pub call: CallId,
    /// What happened to it. The cause of the abort, if it comes to that.
    pub cause: AbortCause,
}

/// Everything that a reply says of the transaction: the votes of the execution and of all calls nested in it, and what
/// dooms it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reply {
    /// Which execution of the call answers (T2).
    pub execution: ExecutionId,
    /// The branches of the subtree that a commit must name or count, and the votes to abort.
    pub votes: Vec<BranchVote>,
    /// The subtree's failed and unanswered calls.
    pub dooms: Vec<Doom>,
    /// The branches of the subtree that are still open, each with the calls that ran on it.
    pub open: Vec<OpenCalls>,
    /// Prepared branches of the subtree that must not be named (of discarded or failed calls). They are told at once if
    /// the transaction aborts; otherwise their own inquiry tells them. Proves nothing.
    pub unnamed: Vec<NamedBranch>,
}

/// Where the transaction stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls may be made; dropping it aborts.
    Open,
    /// The Commit request went to the transport: only the log says what became of it (T7).
    HandedOver,
    /// Given up, with no Commit request ever handed over.
    AbortProposed,
    /// The log has said.
    Decided(Decision),
}

/// Why no call was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallRefused {
    /// The transaction was already handed over, given up or decided: a call now could never be part of it.
    Closed,
    /// More than [`CALL_COUNT_MAX`] calls.
    TooManyCalls,
}

impl fmt::Display for CallRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the transaction was already committed or aborted: begin a new one"),
            Self::TooManyCalls => write!(f, "more than {CALL_COUNT_MAX} calls under one transaction"),
        }
    }
}

impl core::error::Error for CallRefused {}

/// Why the transaction may not be committed. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommitRefused {
    /// A call has no answer yet (T4): await it, or discard it by name.
    Unanswered {
        /// The call.
        call: CallId,
    },
    /// A call failed or voted to abort (T4): abort, or discard it by name.
    Doomed(Doom),
    /// More branches than a commit record may name.
    TooManyBranches {
        /// How many voted to commit.
        count: usize,
    },
    /// An open branch has run more calls than are counted here (T3, T4): one was discarded, or its reply is lost, and its
    /// work cannot be taken out of the branch any more.
    CallCount {
        /// The call that opened the branch.
        call: CallId,
        /// How many are counted here.
        counted: u32,
        /// How many its instance counted.
        seen: u32,
    },
    /// No branch voted: there is nothing to commit, and no branches is never success (T5, B5).
    Empty,
    /// Two replies name different executions, or different content, for one call (B4): a bug in a participant.
    Contradiction {
        /// The call.
        call: CallId,
    },
    /// It was already handed over, given up or decided.
    Closed,
}

impl fmt::Display for CommitRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unanswered { call } => write!(f, "call {:016x} has no answer", call.0),
            Self::Doomed(doom) => write!(f, "call {:016x} failed: {}", doom.call.0, doom.cause),
            Self::TooManyBranches { count } => {
                write!(f, "{count} branches, at most {BRANCH_COUNT_MAX} are possible")
            }
            Self::CallCount { call, counted, seen } => write!(
                f,
                "the open branch of call {:016x} ran {seen} calls, of which {counted} are answered for",
                call.0
            ),
            Self::Empty => f.write_str("no branch voted: there is nothing to commit"),
            Self::Contradiction { call } => {
                write!(f, "two replies contradict each other about call {:016x}", call.0)
            }
            Self::Closed => f.write_str("the transaction was already committed or aborted"),
        }
    }
}

impl core::error::Error for CommitRefused {}

/// Why an input changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ignored {
    /// No such call in this ledger.
    UnknownCall,
    /// This execution's reply was counted before: one vote.
    SameReply,
    /// Another execution of the call was counted: this one is never named (T2).
    OtherExecution,
    /// The caller has already seen this call fail; whatever it did next must stay true (T4).
    AfterFailure,
    /// The call was discarded by name.
    Discarded,
    /// The transaction is closed: what it names is fixed.
    Closed,
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownCall => "no such call was made here under this transaction",
            Self::SameReply => "this reply was counted before",
            Self::OtherExecution => "another execution of the call was counted",
            Self::AfterFailure => "the call has already failed",
            Self::Discarded => "the call was discarded",
            Self::Closed => "the transaction was already committed or aborted",
        })
    }
}

impl core::error::Error for Ignored {}
