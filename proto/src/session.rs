//! What a participant and the coordinator say to each other, as domain values. The same values travel on the
//! bidirectional session stream and behind the unary calls.

use crate::ids::{
    BranchId, CallId, ExecutionId, Gtid, InstanceId, Lineage, OpenToken, ReplicaId, RequestId, ResourceId,
    UnixMillis,
};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;

/// A branch's answer to prepare (Gray & Lamport, *Consensus on Transaction Commit*, section 2).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Vote {
    /// The branch is durable and able to commit, whatever crashes.
    Commit,
    /// Nothing was written and no locking read was made (T15): the branch needs no delivery.
    ReadOnly,
    /// The branch was rolled back and can never commit.
    Abort {
        /// Why, for the user.
        cause: String,
    },
}

/// A branch whose local transaction is still open, to be prepared when the commit is asked for (T3): which it is, and
/// what it must be found to be. Any difference is a vote to abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpenBranch {
    /// The call that opened it.
    pub call: CallId,
    /// The execution that opened it. Every later call on it is part of the same branch.
    pub execution: ExecutionId,
    /// The database.
    pub resource: ResourceId,
    /// The process that holds it.
    pub instance: InstanceId,
    /// The open local transaction in that process.
    pub token: OpenToken,
    /// How many calls ran on it, as their callers counted them (T4); at least one.
    pub call_count: u32,
}

/// What a prepared, or rolled back, branch answers to [`Response::Prepare`], with what a commit record keeps of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AskedVote {
    /// The vote.
    pub vote: Vote,
    /// A digest of the work, with a vote to commit; 0 without.
    pub digest: u64,
    /// The database's own transaction id, with a vote to commit; empty without.
    pub database_transaction: Bytes,
}

/// The result of a global transaction. There are two, and no third.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Every branch that the commit record names takes effect.
    Committed,
    /// No branch takes effect.
    Aborted,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
        })
    }
}

/// The answer to an inquiring branch (T5, T6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// The commit record names this branch: commit it.
    Committed,
    /// The transaction aborted, or committed without this branch: roll it back.
    Aborted,
    /// No outcome yet: ask again later.
    Undecided,
}

/// Who or what first proposed the abort, and why. It is part of the record, so everybody is told the same cause.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AbortCause {
    /// The kind.
    pub kind: AbortKind,
    /// The branch that caused it, where one did.
    pub branch: Option<(CallId, ExecutionId)>,
    /// For people; at most [`TEXT_BYTES_MAX`](crate::limits::TEXT_BYTES_MAX) bytes.
    pub text: String,
}

/// The kinds of [`AbortCause`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AbortKind {
    /// The initiator asked for it.
    Requested,
    /// A branch voted to abort.
    VotedAbort,
    /// A call failed or was left unanswered (T4).
    Doomed,
    /// The initiator dropped the transaction without deciding.
    Dropped,
    /// A branch inquired after the deadline and no outcome was in the log (T6).
    Deadline,
    /// An operator proposed it.
    Operator,
}

impl fmt::Display for AbortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requested => "requested",
            Self::VotedAbort => "voted-abort",
            Self::Doomed => "doomed",
            Self::Dropped => "dropped",
            Self::Deadline => "deadline",
            Self::Operator => "operator",
        })
    }
}

impl fmt::Display for AbortCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some((call, execution)) = self.branch {
            write!(f, " by branch {:016x}/{:016x}", call.0, execution.0)?;
        }
        if self.text.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.text)
        }
    }
}

/// What a participant (or a unary call) asks of the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// This session delivers to these databases from now on, beside those it registered before. The first message of
    /// every session of the library, with an empty list for a pure initiator.
    Register {
        /// The number that the answer carries.
        request: RequestId,
        /// The lineage that the databases know; `None` from a database that never met a coordinator.
        lineage: Option<Lineage>,
        /// The databases.
        resources: Vec<ResourceId>,
    },
    /// Propose an outcome: an encoded [`Decide`](crate::command::Decide), which enters the log as these very bytes.
    Decide {
        /// The number that the answer carries.
        request: RequestId,
        /// The encoded command.
        command: Bytes,
    },
    /// This session speaks for this instance: what concerns the branches that it holds open is said here. Repeated on
    /// every new session; no answer.
    Introduce {
        /// The instance.
        instance: InstanceId,
    },
    /// Have these open branches prepared, each by its instance, and then propose to commit them together with those that
    /// the command names; to abort, if one of them votes so, is gone, or does not vote by the deadline (T3). The answer is
    /// that of `Decide`. Nothing of it is in the log before the outcome: a new leader is asked again, and asks again.
    PrepareAndDecide {
        /// The number that the answer carries.
        request: RequestId,
        /// The encoded [`Decide`](crate::command::Decide): a commit of the branches that have voted, of none perhaps.
        command: Bytes,
        /// The open ones, at least one, in the order of (call, execution).
        open: Vec<OpenBranch>,
    },
    /// To `Prepare`. The same vote to every repeat of it; no answer.
    Voted {
        /// The branch.
        branch: BranchId,
        /// The branch's database.
        resource: ResourceId,
        /// The vote, made from the store's own answer.
        vote: AskedVote,
    },
    /// A prepared branch asks for its outcome (T8). Never refused, whatever the age.
    Inquire {
        /// The branch.
        branch: BranchId,
        /// The branch's database.
        resource: ResourceId,
        /// The lineage that the branch was prepared under.
        lineage: Lineage,
        /// The transaction's deadline, as the branch recorded it (T12).
        deadline: UnixMillis,
    },
    /// The branch's local transaction has committed, or its marker row proves that it did earlier (T8).
    Acknowledge {
        /// The branch.
        branch: BranchId,
        /// The branch's database.
        resource: ResourceId,
    },
    /// The store lost or settled the branch behind our back: not an acknowledgement, shown to the operator (T8).
    Hazard {
        /// The branch.
        branch: BranchId,
        /// The branch's database.
        resource: ResourceId,
        /// What was found.
        text: String,
    },
    /// What became of this transaction?
    Outcome {
        /// The number that the answer carries.
        request: RequestId,
        /// The transaction.
        gtid: Gtid,
    },
    /// Answer once every branch of this committed transaction has acknowledged (T16).
    AwaitDelivery {
        /// The number that the answer carries.
        request: RequestId,
        /// The transaction.
        gtid: Gtid,
    },
    /// An operator takes the delivery to one branch as settled, by name, after looking at its database (traps J7).
    Settle {
        /// The number that the answer carries.
        request: RequestId,
        /// The branch.
        branch: BranchId,
        /// The operator.
        author: String,
        /// Why.
        reason: String,
    },
    /// The transactions in the register, a page in the order of their gtids.
    List {
        /// The number that the answer carries.
        request: RequestId,
        /// Only gtids above this one.
        after: Option<Gtid>,
        /// Only committed transactions with an unacknowledged branch.
        unfinished_only: bool,
        /// The longest page.
        count_max: u32,
    },
    /// What keeps databases waiting: unfinished commits, and transactions that prepared branches inquired for and that
    /// have no outcome. A page in the order of their gtids, from the leader, after a quorum round (T10).
    ListInDoubt {
        /// The number that the answer carries.
        request: RequestId,
        /// Only gtids above this one.
        after: Option<Gtid>,
        /// The longest page, in transactions.
        count_max: u32,
    },
}

/// What the coordinator says to a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Response {
    /// To `Register`.
    Registered {
        /// The request's number.
        request: RequestId,
        /// The coordinator's lineage.
        lineage: Lineage,
    },
    /// To `Decide` and `Settle`.
    Decided {
        /// The request's number.
        request: RequestId,
        /// What the log says.
        decision: Decision,
    },
    /// To `Inquire`.
    Answered {
        /// The branch.
        branch: BranchId,
        /// Its outcome.
        answer: Answer,
    },
    /// Unasked: apply this outcome to this branch, and acknowledge a commit. Repeated until acknowledged.
    Deliver {
        /// The branch.
        branch: BranchId,
        /// The branch's database.
        resource: ResourceId,
        /// The outcome.
        outcome: Outcome,
    },
    /// Unasked: prepare this branch, if it is the one that the token names and ran so many calls, and answer with `Voted`
    /// (T3). Repeated until answered.
    Prepare {
        /// The branch.
        branch: BranchId,
        /// The branch's database.
        resource: ResourceId,
        /// The open local transaction.
        token: OpenToken,
        /// How many calls it must have run, all of them ended.
        call_count: u32,
    },
    /// Unasked: of the transactions that began before `mark`, only those listed are still to be delivered to this
    /// database. The proofs of the others may be deleted (T13).
    LowWater {
        /// The database.
        resource: ResourceId,
        /// The watermark.
        mark: UnixMillis,
        /// Commits below the mark that name the database and are not acknowledged, in the order of their gtids.
        unfinished: Vec<Gtid>,
    },
    /// To `Outcome`.
    Status {
        /// The request's number.
        request: RequestId,
        /// What the register says.
        status: TransactionStatus,
    },
    /// To `AwaitDelivery`: every named branch has acknowledged.
    Delivered {
        /// The request's number.
        request: RequestId,
        /// The transaction.
        gtid: Gtid,
    },
    /// To `List`.
    Listed {
        /// The request's number.
        request: RequestId,
        /// The page.
        transactions: Vec<TransactionSummary>,
    },
    /// To `ListInDoubt`.
    ListedInDoubt {
        /// The request's number.
        request: RequestId,
        /// The page.
        page: InDoubtPage,
    },
    /// To any request with a number, instead of its answer.
    Refused {
        /// The request's number.
        request: RequestId,
        /// Why, and so what to do.
        refusal: Refusal,
    },
}

/// The answer to a proposed outcome, from the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// The log says committed, with exactly the branches of the proposal.
    Committed,
    /// The log says aborted.
    Aborted(AbortCause),
    /// The log says committed, with other branches than those of the proposal (T5).
    Mismatch,
    /// The gtid lies below the watermark, and its record is gone: the outcome can no longer be told (T9).
    Expired,
    /// To an operator's `Settle`: entered.
    Settled,
}

/// Why a request was not answered. Everything here is safe to send again once the named thing is mended. All but
/// `NotLeader` also mean that nothing was done; a replica that stops leading says `NotLeader` to proposals that are on
/// their way through the log as well, and the next leader tells what became of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// This replica does not lead. The same request may be sent to the leader at once.
    NotLeader {
        /// The leader as far as this replica knows.
        leader: Option<ReplicaId>,
    },
    /// A queue or the register is full: back off, then send again.
    Overloaded {
        /// What is full.
        what: String,
    },
    /// The request is malformed or breaks a rule: a bug in the caller.
    Invalid {
        /// Which rule.
        text: String,
    },
    /// The gtid or deadline lies too far ahead of the coordinator's clock (T14): look at the caller's clock.
    FromFuture {
        /// By how many milliseconds.
        ahead_ms: u64,
    },
    /// The request belongs to another coordinator (T11).
    ForeignLineage {
        /// This coordinator's lineage.
        expected: Lineage,
    },
    /// No such transaction or branch in the register.
    NotFound {
        /// What was looked for.
        text: String,
    },
    /// The replica cannot write (disk full or failed).
    ReadOnly {
        /// What it says of its disk.
        text: String,
    },
}

/// What the register knows of one gtid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TransactionStatus {
    /// No outcome yet, and the gtid is above the watermark.
    Undecided,
    /// Committed.
    Committed {
        /// The branches, as recorded.
        branches: Vec<BranchStatus>,
        /// How many more branches voted read-only.
        read_only_count: u32,
    },
    /// Aborted.
    Aborted(AbortCause),
    /// The gtid lies below the watermark and its record is gone.
    Expired,
}

/// One branch of a commit record and how far its delivery is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BranchStatus {
    /// The call.
    pub call: CallId,
    /// The execution.
    pub execution: ExecutionId,
    /// The database.
    pub resource: ResourceId,
    /// How far.
    pub delivery: DeliveryStatus,
}

/// How far the delivery to one branch is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeliveryStatus {
    /// Not acknowledged yet, as far as this replica knows.
    Pending,
    /// Acknowledged.
    Acknowledged,
    /// Not acknowledged; the participant reported that its store lost or settled the branch.
    Hazard(String),
    /// An operator took it as settled.
    Settled,
}

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TransactionSummary {
    /// The transaction.
    pub gtid: Gtid,
    /// Its status.
    pub status: TransactionStatus,
    /// The stamp of the log entry that decided it.
    pub decided_at: UnixMillis,
}

/// A page of [`Request::ListInDoubt`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InDoubtPage {
    /// The transactions. An empty page is the end of the list.
    pub transactions: Vec<InDoubt>,
    /// Since when this leader remembers inquiries, by its own clock. Unfinished commits come from the log; inquiries are
    /// in one leader's memory, and the next leader begins with none.
    pub inquiries_since: UnixMillis,
    /// How many inquiries the leader had no room to remember.
    pub inquiries_dropped_count: u64,
}

/// A transaction that keeps databases waiting.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InDoubt {
    /// The transaction.
    pub gtid: Gtid,
    /// What is waited for.
    pub state: InDoubtState,
}

/// What databases wait for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum InDoubtState {
    /// Committed, says the log; these branches have not acknowledged it.
    Unfinished {
        /// The stamp of the log entry that decided it.
        decided_at: UnixMillis,
        /// The branches that are still told, at least one.
        branches: Vec<BranchStatus>,
    },
    /// No outcome is in the log; these prepared branches inquired for one.
    Undecided {
        /// When the first of them asked this leader, by its own clock.
        inquired_since: UnixMillis,
        /// The earliest deadline that they named: an inquiry after it has the transaction aborted (T6).
        deadline: UnixMillis,
        /// The branches, at least one.
        branches: Vec<InquiringBranch>,
    },
}

/// A prepared branch that asks for its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InquiringBranch {
    /// The call.
    pub call: CallId,
    /// The execution.
    pub execution: ExecutionId,
    /// The database.
    pub resource: ResourceId,
}
