//! What goes into a [`Session`](super::Session) and what comes out.

use crate::time::Timestamp;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use core::time::Duration;
use synod_proto::ids::{BranchId, Gtid, InstanceId, Lineage, OpenToken, ResourceId, UnixMillis};
use synod_proto::session::{
    AskedVote, Decision, OpenBranch, Outcome, Refusal, Request, Response, TransactionStatus,
};

/// One attempt at a stream to one replica; never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// The driver's number for a question, carried by its answer; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What a caller asks of the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// Propose an outcome: an encoded `Decide`.
    Decide {
        /// The transaction that it is about.
        gtid: Gtid,
        /// The command, byte for byte what will enter the log.
        command: Bytes,
    },
    /// Have these open branches prepared, and then propose to commit them with those that the command names.
    PrepareAndDecide {
        /// The transaction that it is about.
        gtid: Gtid,
        /// The command, without the open branches.
        command: Bytes,
        /// The open branches, in order.
        open: Vec<OpenBranch>,
    },
    /// What became of this transaction?
    Outcome(Gtid),
    /// Wait until every branch of this committed transaction has acknowledged.
    AwaitDelivery(Gtid),
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// What the log says.
    Decided(Decision),
    /// What the register says.
    Status(TransactionStatus),
    /// Every branch has acknowledged.
    Delivered,
    /// No answer. See the reason for what that means.
    Failed(Failure),
}

/// Why a proposal has no decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// No leader has it: nothing was done.
    NotDone(Failure),
    /// It was handed over and its fate is unknown: only the log can tell (T7).
    InDoubt {
        /// What was seen last.
        last: String,
    },
}

impl Reply {
    /// What an answer to [`Question::Decide`] says.
    ///
    /// # Errors
    /// See [`Undecided`].
    pub fn decision(self) -> Result<Decision, Undecided> {
        match self {
            Self::Decided(decision) => Ok(decision),
            Self::Failed(Failure::Unanswered { last }) => Err(Undecided::InDoubt { last }),
            Self::Failed(failure) => Err(Undecided::NotDone(failure)),
            // Nothing is known, so nothing may be claimed.
            Self::Status(_) | Self::Delivered => Err(Undecided::InDoubt {
                last: String::from("an answer of another kind"),
            }),
        }
    }
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Too many questions are waiting in this process: back off. Nothing was sent.
    Overloaded {
        /// How many may wait.
        limit: usize,
    },
    /// The coordinator refused it, and no other send of it is unaccounted for: nothing was done.
    Refused(Refusal),
    /// The patience ended, and no send of it is unaccounted for: nothing was done.
    NotHandedOver {
        /// The last thing that was seen of the coordinator.
        last: String,
    },
    /// The patience ended after the question was handed to the transport: it may or may not have been done (T7).
    Unanswered {
        /// The last thing that was seen of the coordinator.
        last: String,
    },
}

/// A prepared branch as a store lists it (T12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedBranch {
    /// The branch.
    pub branch: BranchId,
    /// The lineage that it was prepared under.
    pub lineage: Lineage,
    /// Its transaction's deadline.
    pub deadline: UnixMillis,
    /// When it was prepared, by the clock of the process that did it.
    pub prepared_at: UnixMillis,
}

/// A store's answer to "finish this branch", as the driver heard it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished {
    /// It has happened now, durably.
    Applied,
    /// There is proof in the database that it had happened before (a marker row, or the database's own status).
    AlreadyApplied,
    /// The store knows no such branch and has no proof of anything. Not "no" (C5).
    Unknown {
        /// What the store found.
        detail: String,
    },
    /// The store failed; the branch stands where it stood.
    Failed {
        /// How.
        text: String,
    },
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The stream that [`Effect::Connect`] asked for is open.
    Opened {
        /// Which.
        connection: ConnectionId,
    },
    /// The stream ended, or could not be opened. Said once per connection.
    Lost {
        /// Which.
        connection: ConnectionId,
        /// For the trace.
        reason: String,
    },
    /// The coordinator said something.
    Received {
        /// On which stream.
        connection: ConnectionId,
        /// What.
        response: Response,
        /// The leader's address, where a refusal names one (`host:port`).
        leader: Option<String>,
    },
    /// A caller asks.
    Ask {
        /// Goes into the answer.
        ticket: Ticket,
        /// What.
        question: Question,
        /// How long the caller waits.
        patience: Duration,
    },
    /// The caller of this ticket no longer waits. A question that may change something goes on without it (T7).
    Abandon {
        /// Which.
        ticket: Ticket,
    },
    /// This process serves this database from now on, and waits to hear that it is registered. Its lineage row has been
    /// compared before (T11).
    Attach {
        /// Which.
        resource: ResourceId,
    },
    /// Work on a branch begins in this process.
    Started {
        /// Which.
        branch: BranchId,
    },
    /// The branch is durable; its vote may leave.
    Prepared {
        /// Which.
        branch: BranchId,
        /// In which database.
        resource: ResourceId,
        /// Under which coordinator.
        lineage: Lineage,
        /// Its transaction's deadline.
        deadline: UnixMillis,
    },
    /// This process holds open branches from now on: the coordinator is told where they are.
    Introduce {
        /// This process.
        instance: InstanceId,
    },
    /// The answer to [`Effect::Prepare`].
    Voted {
        /// Which branch.
        branch: BranchId,
        /// In which database.
        resource: ResourceId,
        /// The vote.
        vote: AskedVote,
    },
    /// The work of a branch that did not prepare is over and rolled back (or was read-only).
    Ended {
        /// Which.
        branch: BranchId,
    },
    /// The answer to [`Effect::List`]; `None` if the store could not tell.
    Listed {
        /// Of which database.
        resource: ResourceId,
        /// Its prepared branches: of this process, of earlier ones, and of others that share the database.
        branches: Option<Vec<ListedBranch>>,
    },
    /// The answer to [`Effect::Finish`].
    Finished {
        /// Which branch.
        branch: BranchId,
        /// Which outcome was to be applied.
        outcome: Outcome,
        /// What the store said.
        finished: Finished,
    },
    /// The process wants to end: every question is answered now, with what is known; branches go on.
    Close,
    /// Time has passed: `next_timeout` was reached.
    Tick,
}

/// Something to do. A step's effects are done in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Close the stream, if there is one, and open one to this address.
    Connect {
        /// The number of the new stream.
        connection: ConnectionId,
        /// Its address, as a URI.
        address: String,
    },
    /// Close the stream; a later `Connect` follows.
    Disconnect {
        /// Which.
        connection: ConnectionId,
    },
    /// Hand this to the current stream. From here on it counts as handed over.
    Send(Request),
    /// Answer a caller.
    Reply {
        /// Which.
        ticket: Ticket,
        /// What.
        reply: Reply,
    },
    /// Apply the outcome to the branch in its store, and say what it answered. Never two at a time for one branch.
    Finish {
        /// Which.
        branch: BranchId,
        /// In which database.
        resource: ResourceId,
        /// What to apply.
        outcome: Outcome,
    },
    /// The coordinator asks for this open branch's vote: prepare it if it is still what the token and the count say, and
    /// answer in any case.
    Prepare {
        /// Which.
        branch: BranchId,
        /// In which database.
        resource: ResourceId,
        /// The open local transaction.
        token: OpenToken,
        /// How many calls it must have run.
        call_count: u32,
    },
    /// Cancel the work on this branch: its transaction is decided without it.
    Cancel {
        /// Which.
        branch: BranchId,
    },
    /// Ask the store for its prepared branches.
    List {
        /// Which.
        resource: ResourceId,
    },
    /// Tell the store up to where it may delete its proofs (T13). Best effort: the coordinator says it again.
    Forget {
        /// Which.
        resource: ResourceId,
        /// Proofs of transactions that began before this may go,
        mark: UnixMillis,
        /// except for these.
        unfinished: Vec<Gtid>,
    },
    /// The session is registered: this is the coordinator's lineage.
    Ready(Lineage),
    /// The coordinator knows this database for good: commits may name its branches. Said once per attachment.
    Registered {
        /// Which.
        resource: ResourceId,
    },
    /// The coordinator does not take this database now. Its branches are still resolved by inquiry, and it is offered again
    /// from time to time.
    RegistrationRefused {
        /// Which.
        resource: ResourceId,
        /// Why.
        refusal: Refusal,
    },
    /// For the trace. Decides nothing.
    Notice(Notice),
    /// The input changed nothing.
    Ignored(Ignored),
}

/// Something worth a line in the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The stream ended or could not be opened.
    Lost {
        /// The replica's address.
        address: String,
        /// How.
        reason: String,
    },
    /// The replica refused the session.
    Refused {
        /// The replica's address.
        address: String,
        /// Why.
        refusal: Refusal,
    },
    /// The replica at this address belongs to another coordinator than the one that this session met first (T11).
    ForeignCoordinator {
        /// Its address.
        address: String,
        /// This session's lineage.
        expected: Lineage,
        /// The replica's lineage.
        found: Lineage,
    },
    /// A branch's outcome could not be applied; it will be tried again.
    FinishFailed {
        /// Which.
        branch: BranchId,
        /// The store's words.
        text: String,
        /// When.
        again_at: Timestamp,
    },
    /// The store has lost a branch that must commit, or settled it behind our back (T8).
    Hazard {
        /// Which.
        branch: BranchId,
        /// What was found.
        text: String,
    },
    /// A branch was told one outcome and later the other. The first stands; this must never happen (B6).
    Contradiction {
        /// Which.
        branch: BranchId,
        /// What was told first.
        first: Outcome,
    },
}

/// Why an input changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// It is about a stream that was given up, or that never registered.
    StaleConnection,
    /// No question with this number waits: a late or repeated answer.
    UnknownRequest,
    /// The answer does not belong to this kind of question.
    WrongAnswer,
    /// No such database is attached here; another participant's session serves it.
    UnknownResource,
    /// No such branch is known here.
    UnknownBranch,
    /// The outcome of this branch is being applied at this moment.
    FinishInFlight,
    /// The branch waits until its next attempt is due.
    FinishScheduled,
    /// The branch is in doubt: only its outcome ends it (T8).
    InDoubt,
    /// The branch is known already.
    SameBranch,
    /// Too many branches are tracked; the coordinator delivers again.
    TooManyBranches,
    /// The database is attached already.
    SameResource,
    /// The store could not list its branches; it is asked again.
    ListFailed,
    /// No branch outcome, but "ask again".
    Undecided,
}

/// One unfinished branch, to be shown (T8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The branch.
    pub branch: BranchId,
    /// Its database.
    pub resource: ResourceId,
    /// How long ago it was prepared, in milliseconds, by the wall clocks of the two processes concerned.
    pub age_ms: u64,
    /// The outcome, if it has been told and is not applied yet.
    pub told: Option<Outcome>,
    /// How many times the coordinator was asked.
    pub inquiry_count: u32,
    /// What is wrong, if the store has lost it.
    pub hazard: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overloaded { limit } => write!(f, "{limit} requests are waiting in this process: back off"),
            Self::Refused(refusal) => write!(f, "the coordinator refused: {refusal:?}"),
            Self::NotHandedOver { last } => {
                write!(f, "no leader of the coordinator took the request ({last})")
            }
            Self::Unanswered { last } => write!(f, "the request was handed over and not answered ({last})"),
        }
    }
}

impl core::error::Error for Failure {}

/// How a session behaves. Times are durations on the monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The replicas' addresses, as URIs; at least one.
    pub addresses: Vec<String>,
    /// The first delay before another replica is tried.
    pub connect_backoff: Duration,
    /// The longest such delay. A killed leader is replaced in about a second, so this stays below it.
    pub connect_backoff_max: Duration,
    /// How long a replica may take to open and register the stream.
    pub register_timeout: Duration,
    /// A stream on which something is awaited, and nothing at all has come for so long, is given up.
    pub silence_timeout: Duration,
    /// The most questions that wait at a time.
    pub question_count_max: usize,
    /// The most branches that are tracked at a time.
    pub branch_count_max: usize,
    /// How long after its prepare a branch asks for its outcome first. Most are delivered long before.
    pub inquire_backoff: Duration,
    /// The longest delay between two inquiries.
    pub inquire_backoff_max: Duration,
    /// The first delay after a store failed to finish a branch.
    pub finish_backoff: Duration,
    /// The longest such delay.
    pub finish_backoff_max: Duration,
    /// How often a store is asked for its prepared branches.
    pub list_interval: Duration,
    /// A store must have answered "unknown" for at least this long, and listed twice without the branch, before that is
    /// a hazard (C11).
    pub unknown_patience: Duration,
    /// The most settled gtids that are remembered.
    pub settled_count_max: usize,
}

impl Config {
    /// The defaults.
    #[must_use]
    pub fn new(addresses: Vec<String>) -> Self {
        Self {
            addresses,
            connect_backoff: Duration::from_millis(10),
            connect_backoff_max: Duration::from_millis(100),
            register_timeout: Duration::from_secs(2),
            silence_timeout: Duration::from_secs(3),
            question_count_max: 8192,
            branch_count_max: 65_536,
            inquire_backoff: Duration::from_secs(1),
            inquire_backoff_max: Duration::from_secs(15),
            finish_backoff: Duration::from_millis(100),
            finish_backoff_max: Duration::from_secs(15),
            list_interval: Duration::from_secs(5),
            unknown_patience: Duration::from_secs(10),
            settled_count_max: 65_536,
        }
    }
}
