//! What the rest of the library calls. A handle moves values to the driver and waits for answers; it decides nothing.

use super::driver::{self, Command, Shared};
use super::open::OpenHost;
use super::resource::ErasedResource;
use crate::resource::{BranchContext, ResourceError};
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use synod_participant_core::session::{Config, Failure, Input, Question, Reply, Ticket, Undecided};
use synod_participant_core::transaction::Commit;
use synod_proto::command::Decide;
use synod_proto::environment::{Connector, WallClock};
use synod_proto::ids::{BranchId, Gtid, Lineage, ResourceId};
use synod_proto::limits::RESOURCE_COUNT_MAX;
use synod_proto::session::{Decision, Refusal, TransactionStatus};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// How long a question about an outcome waits before it is "unavailable".
const OUTCOME_PATIENCE: Duration = Duration::from_secs(5);

/// How long the registration of a database may take: a leader change must fit in.
const ATTACH_PATIENCE: Duration = Duration::from_secs(10);

/// How a session is started.
#[derive(Clone, Debug)]
pub(crate) struct SessionOptions {
    /// How long a decision is waited for before it is in doubt.
    pub(crate) decide_timeout: Duration,
    /// The wall clock.
    pub(crate) clock: WallClock,
    /// The way to the replicas.
    pub(crate) connector: Connector,
}

/// Why a session did not answer. Nothing here says that something was *not* done, except where it does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SessionError {
    /// An address is none: fix the configuration.
    #[error("`{address}` is no address of a replica: {reason}")]
    Address {
        /// The text.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Too many requests wait in this process; nothing was sent. Back off, then retry.
    #[error("{limit} requests are waiting in this process: back off")]
    Overloaded {
        /// How many may wait.
        limit: usize,
    },
    /// The coordinator refused the request; nothing was done.
    #[error("the coordinator refused: {0:?}")]
    Refused(Refusal),
    /// No leader took the request in time; nothing was done.
    #[error("no leader of the coordinator took the request ({last})")]
    Unavailable {
        /// What was seen last.
        last: String,
    },
    /// The request was handed over, and no answer came in time.
    #[error("the coordinator did not answer in time ({last})")]
    Unanswered {
        /// What was seen last.
        last: String,
    },
    /// The database could not be read.
    #[error("the resource manager failed: {0}")]
    Resource(String),
    /// The database belongs to another coordinator (T11).
    #[error("the database {resource} belongs to coordinator {found:?}, and this session to {expected}")]
    ForeignResource {
        /// The database.
        resource: ResourceId,
        /// This session's coordinator.
        expected: Lineage,
        /// What the database says; `None` if it was never bound.
        found: Option<Lineage>,
    },
    /// More databases than one session may register.
    #[error("more than {RESOURCE_COUNT_MAX} databases in one session")]
    TooManyResources,
    /// The session was shut down; nothing was sent.
    #[error("the session was shut down")]
    Closed,
}

impl From<ResourceError> for SessionError {
    fn from(error: ResourceError) -> Self {
        Self::Resource(error.to_string())
    }
}

/// Why a proposal has no decision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DecideError {
    /// No leader has it: either it was never handed to the transport, or every send of it was refused. Nothing was done.
    #[error("the proposal was not handed over: {source}")]
    NotHandedOver {
        /// Why.
        source: SessionError,
    },
    /// It was handed over and its fate is unknown: only the log can tell (T7).
    #[error("the outcome of {gtid} is in doubt ({last})")]
    InDoubt {
        /// The transaction.
        gtid: Gtid,
        /// What was seen last.
        last: String,
    },
    /// The coordinator refused it, and no other send of it is unaccounted for. Nothing was done.
    #[error("the coordinator refused: {0:?}")]
    Refused(Refusal),
}

/// The library's way to the coordinator. Cheap to clone; the session ends with [`shutdown`](Self::shutdown), or when
/// the last handle is dropped.
#[derive(Clone)]
pub(crate) struct SessionHandle {
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
    lineage: watch::Receiver<Option<Lineage>>,
    decide_timeout: Duration,
}

impl SessionHandle {
    /// Starts the session's task, with the replicas' addresses as `http://host:port`. It connects in the background, and for ever.
    ///
    /// # Errors
    /// [`SessionError::Address`]; nothing was started.
    pub(crate) fn start(addresses: Vec<String>, options: SessionOptions) -> Result<Self, SessionError> {
        Self::start_with(Config::new(addresses), options)
    }

    pub(crate) fn start_with(config: Config, options: SessionOptions) -> Result<Self, SessionError> {
        if config.addresses.is_empty() {
            return Err(SessionError::Address {
                address: String::new(),
                reason: "the list is empty".to_owned(),
            });
        }
        for address in &config.addresses {
            super::stream::endpoint(address).map_err(|reason| SessionError::Address {
                address: address.clone(),
                reason,
            })?;
        }
        let (commands, shared, lineage) = driver::spawn(config, options.clock, options.connector);
        Ok(Self {
            commands,
            shared,
            lineage,
            decide_timeout: options.decide_timeout,
        })
    }

    /// Asks for a commit, as [`decide`](Self::decide) does, after its open branches were prepared if it has any (T3).
    pub(crate) async fn commit(&self, commit: Commit) -> Result<Decision, DecideError> {
        let Commit { decide, open } = commit;
        if open.is_empty() {
            return self.decide(decide).await;
        }
        let (gtid, command) = (decide.gtid, decide.encode());
        self.propose(gtid, Question::PrepareAndDecide { gtid, command, open })
            .await
    }

    /// Proposes an outcome, and waits for what the log says, at most for the configured time. Once this has been called
    /// the proposal goes on even if the future is dropped (T7).
    pub(crate) async fn decide(&self, decide: Decide) -> Result<Decision, DecideError> {
        let (gtid, command) = (decide.gtid, decide.encode());
        self.propose(gtid, Question::Decide { gtid, command }).await
    }

    async fn propose(&self, gtid: Gtid, question: Question) -> Result<Decision, DecideError> {
        let Some((_, answer)) = self.ask(question, self.decide_timeout) else {
            return Err(DecideError::NotHandedOver {
                source: SessionError::Closed,
            });
        };
        let answer = match answer.await {
            Ok(reply) => reply.decision(),
            // The driver vanished: nothing is known, so nothing may be claimed.
            Err(_closed) => Err(Undecided::InDoubt {
                last: "the session ended".to_owned(),
            }),
        };
        answer.map_err(|undecided| match undecided {
            Undecided::InDoubt { last } => DecideError::InDoubt { gtid, last },
            Undecided::NotDone(Failure::Refused(refusal)) => DecideError::Refused(refusal),
            Undecided::NotDone(failure) => DecideError::NotHandedOver {
                source: session_error(Reply::Failed(failure)),
            },
        })
    }

    /// Proposes an outcome, best effort, and waits for nothing: for dropped transactions. What is lost here is made good
    /// by the inquiries of the branches (T6).
    #[allow(
        clippy::needless_pass_by_value,
        reason = "it is the caller's last word on the transaction"
    )]
    pub(crate) fn decide_in_background(&self, decide: Decide) {
        let question = Question::Decide {
            gtid: decide.gtid,
            command: decide.encode(),
        };
        let _unawaited = self.ask(question, self.decide_timeout);
    }

    /// What the coordinator's register says of a transaction.
    pub(crate) async fn outcome(&self, gtid: Gtid) -> Result<TransactionStatus, SessionError> {
        match self
            .ask_and_wait(Question::Outcome(gtid), OUTCOME_PATIENCE)
            .await?
        {
            Reply::Status(status) => Ok(status),
            other => Err(session_error(other)),
        }
    }

    /// Waits until every branch of a committed transaction has acknowledged (T16).
    pub(crate) async fn await_delivery(&self, gtid: Gtid, timeout: Duration) -> Result<(), SessionError> {
        match self.ask_and_wait(Question::AwaitDelivery(gtid), timeout).await? {
            Reply::Delivered => Ok(()),
            other => Err(session_error(other)),
        }
    }

    /// The coordinator's lineage, once a leader has registered this session.
    pub(crate) fn lineage(&self) -> Option<Lineage> {
        *self.lineage.borrow()
    }

    /// Waits for the first registration.
    pub(crate) async fn ready(&self, timeout: Duration) -> Result<Lineage, SessionError> {
        let mut lineage = self.lineage.clone();
        let known = tokio::time::timeout(timeout, lineage.wait_for(Option::is_some)).await;
        match known {
            Ok(Ok(known)) => known.ok_or(SessionError::Closed),
            Ok(Err(_closed)) => Err(SessionError::Closed),
            Err(_elapsed) => Err(SessionError::Unavailable {
                last: self.shared.core().last_seen().to_owned(),
            }),
        }
    }

    /// Serves a database that is already bound to this coordinator (T11): registers it for deliveries, and takes up every
    /// prepared branch that it lists, now and from time to time (C9). Waits for the registration, because the coordinator takes
    /// no commit that names a database it does not know; after an error the registration goes on in the background.
    pub(crate) async fn add_resource(
        &self,
        resource: Arc<dyn ErasedResource>,
    ) -> Result<ResourceId, SessionError> {
        let identity = resource.recorded_identity().await?;
        let expected = self.lineage().ok_or(SessionError::Unavailable {
            last: "not registered yet".to_owned(),
        })?;
        if identity.lineage != Some(expected) {
            return Err(SessionError::ForeignResource {
                resource: identity.resource,
                expected,
                found: identity.lineage,
            });
        }
        self.shared
            .add_resource(identity.resource, resource)
            .map_err(|()| SessionError::TooManyResources)?;
        let (answer, registered) = oneshot::channel();
        let attach = Command::Attach {
            resource: identity.resource,
            registered: answer,
        };
        self.commands
            .send(attach)
            .map_err(|_closed| SessionError::Closed)?;
        match tokio::time::timeout(ATTACH_PATIENCE, registered).await {
            Ok(Ok(Ok(()))) => Ok(identity.resource),
            Ok(Ok(Err(refusal))) => Err(SessionError::Refused(refusal)),
            Ok(Err(_ended)) => Err(SessionError::Closed),
            Err(_elapsed) => {
                let last = self.shared.core().last_seen().to_owned();
                Err(SessionError::Unanswered { last })
            }
        }
    }

    /// The open branches of this process.
    pub(crate) fn open(&self) -> &OpenHost {
        &self.shared.open
    }

    /// Work on a branch begins. The guard says when the transaction was decided without it, and its end says that the
    /// work is over; that of a prepared branch changes nothing.
    pub(crate) fn branch_started(&self, branch: BranchId) -> WorkGuard {
        let cancelled = CancellationToken::new();
        self.send(Command::Started {
            branch,
            cancelled: cancelled.clone(),
        });
        WorkGuard {
            branch,
            cancelled,
            commands: self.commands.clone(),
        }
    }

    /// The branch is durable: from now on the session asks for its outcome (T8).
    pub(crate) fn branch_prepared(&self, context: &BranchContext, resource: ResourceId) {
        let BranchContext {
            branch,
            lineage,
            deadline,
        } = *context;
        self.send(Command::Input(Input::Prepared {
            branch,
            resource,
            lineage,
            deadline,
        }));
    }

    /// Whether the transaction is known to be decided, so that work that begins now could never be part of it. Only an
    /// optimisation: "no" proves nothing (T13).
    pub(crate) fn is_aborted(&self, gtid: Gtid) -> bool {
        self.shared.core().is_settled(gtid)
    }

    /// The prepared branches that wait for their outcome or its application, with their age (T8).
    pub(crate) fn in_doubt(&self) -> Vec<(BranchId, ResourceId, Duration)> {
        let unfinished = self.shared.core().unfinished(self.shared.now().wall);
        unfinished
            .into_iter()
            .map(|one| (one.branch, one.resource, Duration::from_millis(one.age_ms)))
            .collect()
    }

    /// Ends the session: no more questions, branches whose outcome is being applied at this moment are waited for (a few
    /// seconds at most, B20), acknowledgements are flushed. Prepared branches stay in their databases.
    pub(crate) async fn shutdown(&self) {
        let (done, is_done) = oneshot::channel();
        self.send(Command::Shutdown { done });
        let _closed = is_done.await;
    }

    fn send(&self, command: Command) {
        // A session that was shut down serves nobody: its branches wait in their databases for the next one.
        let _is_shut_down = self.commands.send(command);
    }

    fn ask(&self, question: Question, patience: Duration) -> Option<(Ticket, oneshot::Receiver<Reply>)> {
        let ticket = self.shared.ticket();
        let (answer, answered) = oneshot::channel();
        self.commands
            .send(Command::Ask {
                ticket,
                question,
                patience,
                answer,
            })
            .ok()?;
        Some((ticket, answered))
    }

    async fn ask_and_wait(&self, question: Question, patience: Duration) -> Result<Reply, SessionError> {
        let (ticket, answer) = self.ask(question, patience).ok_or(SessionError::Closed)?;
        let abandon = AbandonOnDrop {
            handle: self,
            ticket,
            is_answered: AtomicBool::new(false),
        };
        let reply = answer.await.map_err(|_closed| SessionError::Closed)?;
        abandon.is_answered.store(true, Ordering::Relaxed);
        Ok(reply)
    }
}

impl std::fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionHandle")
            .field("lineage", &self.lineage())
            .finish_non_exhaustive()
    }
}

fn session_error(reply: Reply) -> SessionError {
    match reply {
        Reply::Failed(Failure::Overloaded { limit }) => SessionError::Overloaded { limit },
        Reply::Failed(Failure::Refused(refusal)) => SessionError::Refused(refusal),
        Reply::Failed(Failure::NotHandedOver { last }) => SessionError::Unavailable { last },
        Reply::Failed(Failure::Unanswered { last }) => SessionError::Unanswered { last },
        Reply::Decided(_) | Reply::Status(_) | Reply::Delivered => SessionError::Unanswered {
            last: "an answer of another kind".to_owned(),
        },
    }
}

/// Takes a read-only question back when nobody waits for it any more.
struct AbandonOnDrop<'a> {
    handle: &'a SessionHandle,
    ticket: Ticket,
    is_answered: AtomicBool,
}

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        if !self.is_answered.load(Ordering::Relaxed) {
            self.handle
                .send(Command::Input(Input::Abandon { ticket: self.ticket }));
        }
    }
}

/// Work on one branch, while it lasts. See [`SessionHandle::branch_started`].
#[derive(Debug)]
pub(crate) struct WorkGuard {
    branch: BranchId,
    cancelled: CancellationToken,
    commands: mpsc::UnboundedSender<Command>,
}

impl WorkGuard {
    /// Waits until the transaction is known to be decided without this branch.
    pub(crate) async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        let _is_shut_down = self.commands.send(Command::Ended { branch: self.branch });
    }
}

/// Poisoning changes nothing here: the core is changed by single calls that do not panic half way.
pub(super) fn unpoisoned<T>(locked: Result<T, PoisonError<T>>) -> T {
    locked.unwrap_or_else(PoisonError::into_inner)
}
