//! The initiator's side of a global transaction, from begin (step 1) to the effects' delivery (step 5).

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use synod_participant_core::transaction::Commit;
use synod_proto::ids::{CallId, Gtid, UnixMillis};
use synod_proto::session::{Decision, Refusal};

use crate::branch::{self, BranchTransaction, Resource};
use crate::channel::BoundChannel;
use crate::error::{
    AbortError, BoxError, BranchError, BranchFailure, CommitError, DeliveryError, ResolveError, UnknownCall,
};
use crate::open;
use crate::participant::{Participant, random_u64};
use crate::resource::ResourceManager;
use crate::scope::Scope;
use crate::session::{DecideError, SessionError};

/// A global transaction, at its initiator. Begun by [`Participant::begin`].
///
/// Work joins it by calls through a [bound client](Self::client) and by [branches](Self::branch) on the
/// initiator's own databases. [`commit`](Self::commit) makes all of it take effect, or none. Dropping it
/// without that aborts it, in the background.
#[derive(Debug)]
#[must_use = "dropping a transaction aborts it"]
pub struct Transaction {
    scope: Arc<Scope>,
}

impl Transaction {
    pub(crate) fn new(scope: Arc<Scope>) -> Self {
        Self { scope }
    }

    /// The transaction's id, the same in every service and every trace.
    #[must_use]
    pub fn gtid(&self) -> Gtid {
        self.scope.gtid()
    }

    /// When its branches must have voted, by each machine's own clock.
    #[must_use]
    pub fn deadline(&self) -> UnixMillis {
        self.scope.deadline()
    }

    /// A client of a service whose calls run under this transaction: `txn.client(&channel,
    /// InventoryClient::new)`. See [`BoundChannel`] for what it adds.
    pub fn client<S: Clone, C>(&self, channel: &S, new: impl FnOnce(BoundChannel<S>) -> C) -> C {
        new(BoundChannel::new(channel.clone(), self.scope.clone()))
    }

    /// A branch on one of the initiator's own databases. `Ok` prepares it, `Err` rolls it back.
    ///
    /// The closure runs in a task of its own, so it owns what it uses (`async move`). It must not start a
    /// second branch on the same rows: the two would wait for each other (traps C15).
    ///
    /// # Errors
    /// The branch was rolled back, with the closure's error in the chain; the transaction is doomed unless
    /// `discard(error.call)` says otherwise (T4).
    pub async fn branch<R, T, F, Fut>(&self, resource: &Resource<R>, work: F) -> Result<T, BranchError>
    where
        R: ResourceManager,
        T: Send + 'static,
        F: FnOnce(BranchTransaction<R>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, BoxError>> + Send + 'static,
    {
        let call = self
            .scope
            .open_branch("a local branch")
            .map_err(BranchFailure::from_refused(self.gtid()))?;
        branch::run(resource, call, work).await
    }

    /// A branch on one of the initiator's own databases that stays open: every further such branch of this
    /// transaction on this database continues the same local transaction, which is prepared by
    /// [`commit`](Self::commit). See [`Resource::open_branch`].
    ///
    /// # Errors
    /// As [`branch`](Self::branch); the whole open branch was rolled back.
    pub async fn open_branch<R, T, F, Fut>(&self, resource: &Resource<R>, work: F) -> Result<T, BranchError>
    where
        R: ResourceManager,
        T: Send + 'static,
        F: FnOnce(BranchTransaction<R>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, BoxError>> + Send + 'static,
    {
        let call = self
            .scope
            .open_branch("an open local branch")
            .map_err(BranchFailure::from_refused(self.gtid()))?;
        open::run(resource, call, work).await
    }

    /// Takes a call out of the transaction by name: nothing below it will take effect, and its failure no
    /// longer keeps the rest from committing (T4). The id of a call is in its reply or status
    /// ([`call_id`](crate::call_id)) and in [`BranchError::call`].
    ///
    /// # Errors
    /// No such call was made under this transaction.
    pub fn discard(&self, call: CallId) -> Result<(), UnknownCall> {
        self.scope.discard(call)
    }

    /// Asks the coordinator to commit. Answers when the log holds the decision on a quorum of disks (T16):
    /// from then on it stands, and every branch will take effect; [`Committed::delivered`] waits for that.
    ///
    /// Dropping the returned future does not take the request back: from its first poll on, only the log
    /// says what became of the transaction (T7).
    ///
    /// # Errors
    /// See [`CommitError`]: `Aborted` is final, `InDoubt` must be resolved, after all others nothing takes
    /// effect.
    pub async fn commit(self) -> Result<Committed, CommitError> {
        self.commit_shared().await
    }

    /// The ledger lets a commit request out once, whoever else still holds the transaction.
    pub(crate) async fn commit_shared(&self) -> Result<Committed, CommitError> {
        let commit = self.scope.hand_over().inspect_err(|_| self.scope.let_go())?;
        let scope = self.scope.clone();
        let deciding = {
            let commit = commit.clone();
            // A task of its own: the user's future may be dropped, the request may not be forgotten half way
            // (traps C13).
            tokio::spawn(async move {
                let answer = scope.participant().session().commit(commit).await;
                match &answer {
                    Ok(decision) => scope.on_decision(decision),
                    Err(DecideError::InDoubt { .. }) => {}
                    Err(_) => scope.on_undone(),
                }
                answer
            })
        };
        let gtid = self.gtid();
        let in_doubt = |source: BoxError| {
            let participant = self.scope.participant().clone();
            CommitError::InDoubt(InDoubt {
                gtid,
                commit: Box::new(commit),
                participant,
                source: Arc::from(source),
            })
        };
        let answer = match deciding.await {
            Ok(answer) => answer,
            Err(error) => return Err(in_doubt(error.into())),
        };
        match answer {
            Ok(Decision::Committed) => Ok(Committed {
                gtid,
                participant: self.scope.participant().clone(),
            }),
            Ok(Decision::Aborted(cause)) => Err(CommitError::Aborted { gtid, cause }),
            Ok(Decision::Mismatch) => Err(CommitError::Mismatch { gtid }),
            Ok(Decision::Expired) => Err(in_doubt(
                "the outcome can no longer be told: it lies below the watermark".into(),
            )),
            Ok(Decision::Settled) => Err(in_doubt("the coordinator answered another question".into())),
            Err(error @ DecideError::InDoubt { .. }) => Err(in_doubt(error.into())),
            Err(DecideError::NotHandedOver {
                source: SessionError::Overloaded { limit },
            }) => Err(CommitError::Overloaded(format!(
                "{limit} requests wait in this process"
            ))),
            Err(DecideError::NotHandedOver { source }) => Err(CommitError::Unavailable(source.into())),
            Err(DecideError::Refused(refusal)) => Err(refused(refusal)),
        }
    }

    /// Aborts, and waits until the log says so; the branches that are known to have prepared are told at
    /// once.
    ///
    /// # Errors
    /// See [`AbortError`]; nothing will take effect all the same.
    pub async fn abort(self, reason: &str) -> Result<(), AbortError> {
        self.abort_shared(reason).await
    }

    pub(crate) async fn abort_shared(&self, reason: &str) -> Result<(), AbortError> {
        let gtid = self.gtid();
        let decide = self.scope.propose_abort(reason);
        let scope = self.scope.clone();
        let deciding = tokio::spawn(async move {
            let answer = scope.participant().session().decide(decide).await;
            if let Ok(decision) = &answer {
                scope.on_decision(decision);
            }
            answer
        });
        match deciding.await {
            // Below the watermark nothing unrecorded can commit any more (T9).
            Ok(Ok(Decision::Aborted(_) | Decision::Expired)) => Ok(()),
            Ok(Ok(Decision::Committed | Decision::Mismatch | Decision::Settled)) => {
                Err(AbortError::Committed { gtid })
            }
            Ok(Err(error)) => Err(AbortError::Unconfirmed {
                gtid,
                source: error.into(),
            }),
            Err(error) => Err(AbortError::Unconfirmed {
                gtid,
                source: error.into(),
            }),
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.scope.let_go();
    }
}

fn refused(refusal: Refusal) -> CommitError {
    match refusal {
        Refusal::Overloaded { what } => CommitError::Overloaded(what),
        Refusal::Invalid { text } => CommitError::Invalid(text),
        Refusal::FromFuture { ahead_ms } => CommitError::Invalid(format!(
            "this machine's clock is {ahead_ms} ms ahead of the coordinator's"
        )),
        Refusal::ForeignLineage { expected } => CommitError::Invalid(format!(
            "the coordinator is another one by now: its lineage is {expected}"
        )),
        Refusal::NotFound { text } => CommitError::Invalid(text),
        Refusal::NotLeader { .. } => CommitError::Unavailable("no replica leads".into()),
        Refusal::ReadOnly { text } => {
            CommitError::Unavailable(format!("the coordinator cannot write: {text}").into())
        }
    }
}

/// A committed transaction: decided, and sure to take effect everywhere.
#[derive(Clone, Debug)]
pub struct Committed {
    gtid: Gtid,
    participant: Participant,
}

impl Committed {
    /// The transaction.
    #[must_use]
    pub fn gtid(&self) -> Gtid {
        self.gtid
    }

    /// Waits until every branch has taken effect and said so, so that the next read anywhere sees it (T16).
    ///
    /// # Errors
    /// Not every branch had acknowledged in time. The transaction stays committed.
    pub async fn delivered(&self, timeout: Duration) -> Result<(), DeliveryError> {
        let pending = |source| DeliveryError::Pending {
            gtid: self.gtid,
            waited: timeout,
            source,
        };
        self.participant
            .session()
            .await_delivery(self.gtid, timeout)
            .await
            .map_err(|error| pending(error.into()))
    }
}

/// A commit request that was handed over and not answered (T7): the log knows, or will know.
#[derive(Clone)]
pub struct InDoubt {
    gtid: Gtid,
    commit: Box<Commit>,
    participant: Participant,
    source: Arc<dyn Error + Send + Sync>,
}

/// The first pause between two questions, and the longest.
const RESOLVE_PAUSE: Duration = Duration::from_millis(100);
const RESOLVE_PAUSE_MAX: Duration = Duration::from_secs(5);

impl InDoubt {
    /// The transaction.
    #[must_use]
    pub fn gtid(&self) -> Gtid {
        self.gtid
    }

    /// Repeats the commit request, which the log answers alike however often it is asked (traps B8), until
    /// there is an answer. Waits for ever while no quorum of the coordinator can be reached: put a timeout
    /// around it, and call it again.
    ///
    /// # Errors
    /// See [`ResolveError`]; `Aborted` is an answer too.
    pub async fn resolve(&self) -> Result<Committed, ResolveError> {
        let gtid = self.gtid;
        let mut pause = RESOLVE_PAUSE;
        loop {
            match self.participant.session().commit((*self.commit).clone()).await {
                Ok(Decision::Committed) => {
                    return Ok(Committed {
                        gtid,
                        participant: self.participant.clone(),
                    });
                }
                Ok(Decision::Aborted(cause)) => return Err(ResolveError::Aborted { gtid, cause }),
                Ok(Decision::Mismatch) => return Err(ResolveError::Mismatch { gtid }),
                Ok(Decision::Expired) => return Err(ResolveError::Expired { gtid }),
                Err(DecideError::Refused(
                    refusal @ (Refusal::Invalid { .. }
                    | Refusal::ForeignLineage { .. }
                    | Refusal::NotFound { .. }),
                )) => {
                    return Err(ResolveError::Invalid {
                        gtid,
                        text: refused(refusal).to_string(),
                    });
                }
                Err(DecideError::NotHandedOver {
                    source: SessionError::Closed,
                }) => {
                    let text = "this participant was shut down".to_owned();
                    return Err(ResolveError::Invalid { gtid, text });
                }
                Ok(Decision::Settled) | Err(_) => {}
            }
            let micros = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
            tokio::time::sleep(Duration::from_micros(
                micros / 2 + random_u64() % (micros / 2 + 1),
            ))
            .await;
            pause = (pause * 2).min(RESOLVE_PAUSE_MAX);
        }
    }
}

impl fmt::Debug for InDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InDoubt")
            .field("gtid", &self.gtid)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for InDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the outcome of {} is not known yet: {}",
            self.gtid, self.source
        )
    }
}

impl Error for InDoubt {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
