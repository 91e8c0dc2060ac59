//! Branches as closures (steps 2 and 3 of a transaction): the user's work on a local transaction, then
//! prepare.
//!
//! Work and prepare run in a task of their own, which a caller that goes away cannot cancel half way (traps
//! C13). Whoever waits for it and goes away before the prepare turns it into a vote to abort; after it the
//! branch is durable and waits for the outcome, whether or not anybody heard its vote (T8, traps C1).

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use synod_participant_core::branch::{Branch, Caller, Durable, GivenUp, Voted, may_prepare};
use synod_proto::ids::{BranchId, CallId, Gtid, ResourceId};
use synod_proto::session::Vote;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::channel::BoundChannel;
use crate::error::{BoxError, BranchError, BranchFailure};
use crate::participant::Participant;
use crate::resource::{BranchContext, Prepared, ResourceManager};
use crate::scope::{OpenCall, Scope};
use crate::server::Joined;

/// A database attached to the [`Participant`]: where branches are made. Cheap to clone.
pub struct Resource<R: ResourceManager> {
    participant: Participant,
    manager: Arc<R>,
    id: ResourceId,
}

impl<R: ResourceManager> Clone for Resource<R> {
    fn clone(&self) -> Self {
        Self {
            participant: self.participant.clone(),
            manager: self.manager.clone(),
            id: self.id,
        }
    }
}

impl<R: ResourceManager> std::fmt::Debug for Resource<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resource")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<R: ResourceManager> Resource<R> {
    pub(crate) fn new(participant: Participant, manager: Arc<R>, id: ResourceId) -> Self {
        Self {
            participant,
            manager,
            id,
        }
    }

    pub(crate) fn participant(&self) -> &Participant {
        &self.participant
    }

    /// The database's identity, from a row of its own (T11).
    #[must_use]
    pub fn id(&self) -> ResourceId {
        self.id
    }

    /// The resource manager, for local reads and local transactions outside global ones.
    #[must_use]
    pub fn manager(&self) -> &R {
        &self.manager
    }

    /// The whole body of a transactional gRPC method: one branch of the caller's transaction on this
    /// database.
    ///
    /// `work` gets the local transaction and the request's message. `Ok` prepares it, and the vote travels
    /// with the reply; `Err` rolls it back, and the status goes to the caller, whose transaction is then
    /// doomed. A panic, a caller that goes away, and a passed deadline are votes to abort.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` outside a global transaction (nothing ran); the closure's own status; `ABORTED`
    /// where a new attempt may succeed (lock conflict, deadlock); `DEADLINE_EXCEEDED`; `INTERNAL` after a
    /// panic.
    pub async fn branch<M, T, F, Fut>(&self, request: Request<M>, work: F) -> Result<Response<T>, Status>
    where
        M: prost::Message + 'static,
        T: prost::Message + 'static,
        F: FnOnce(BranchTransaction<R>, M) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let joined = Joined::of(&request)?;
        let message = request.into_inner();
        joined
            .branch(self, move |tx| work(tx, message))
            .await
            .map(Response::new)
    }

    /// Like [`branch`](Self::branch), in a local transaction that stays open: all calls of one global
    /// transaction that reach this process by this method, on this database, share it and are one branch. It
    /// is prepared when the initiator commits, and not before, so a later call sees what the earlier ones
    /// wrote and meets none of their locks.
    ///
    /// The calls run one after the other. A failed one rolls the whole branch back, since it may have left a
    /// part of its work; so does a call that arrives twice, a caller that goes away, and ten seconds without a
    /// call or a commit. If the process restarts before the commit, the transaction aborts. A call that comes
    /// while the commit is under way is refused. What cannot be done any more is to
    /// [discard](crate::Transaction::discard) one call of the branch.
    ///
    /// Against [`branch`](Self::branch) the commit costs one round trip more, and the locks are held until
    /// then. Behind a load balancer, make sure that the calls of one transaction reach one process: two
    /// processes have two branches, which then wait for each other's locks.
    ///
    /// ```no_run
    /// # mod shop { include!("doc_shop.rs"); }
    /// # use shop::{ReserveReply, ReserveRequest};
    /// use synod::{Resource, resource::redb::RedbResource};
    /// use tonic::{Request, Response, Status};
    ///
    /// struct InventoryService {
    ///     database: Resource<RedbResource>,
    /// }
    ///
    /// impl InventoryService {
    ///     /// May be called for every line of an order, for one item as often as it is listed.
    ///     async fn reserve(&self, request: Request<ReserveRequest>) -> Result<Response<ReserveReply>, Status> {
    ///         self.database
    ///             .open_branch(request, async |mut tx, ReserveRequest { sku, quantity }| {
    ///                 let stock = tx.get_u64_for_update("stock", &sku).await?.unwrap_or(0);
    ///                 let left = stock.checked_sub(quantity).ok_or_else(|| Status::out_of_range("out of stock"))?;
    ///                 tx.put_u64("stock", &sku, left).await?;
    ///                 Ok(ReserveReply { left })
    ///             })
    ///             .await
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`branch`](Self::branch); `FAILED_PRECONDITION` as well where the open branch was rolled back
    /// before, or is prepared already; `UNAVAILABLE` where too many are open in this process.
    pub async fn open_branch<M, T, F, Fut>(&self, request: Request<M>, work: F) -> Result<Response<T>, Status>
    where
        M: prost::Message + 'static,
        T: prost::Message + 'static,
        F: FnOnce(BranchTransaction<R>, M) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let joined = Joined::of(&request)?;
        let message = request.into_inner();
        joined
            .open_branch(self, move |tx| work(tx, message))
            .await
            .map(Response::new)
    }
}

/// The local transaction of one branch, as its closure holds it: the store's own transaction (by
/// dereference), and the way to further calls under the same global transaction. Dropping it is how the
/// closure gives it back to be prepared.
pub struct BranchTransaction<R: ResourceManager> {
    tx: Option<R::Transaction>,
    slot: Arc<Mutex<Option<R::Transaction>>>,
    scope: Arc<Scope>,
    branch: BranchId,
}

impl<R: ResourceManager> BranchTransaction<R> {
    pub(crate) fn new(
        tx: R::Transaction,
        slot: Arc<Mutex<Option<R::Transaction>>>,
        scope: Arc<Scope>,
        branch: BranchId,
    ) -> Self {
        Self {
            tx: Some(tx),
            slot,
            scope,
            branch,
        }
    }

    /// The branch's id: its gtid, call and execution.
    #[must_use]
    pub fn branch_id(&self) -> BranchId {
        self.branch
    }

    /// The global transaction.
    #[must_use]
    pub fn gtid(&self) -> Gtid {
        self.branch.gtid
    }

    /// A client whose calls run under the same global transaction. Their votes go up with this branch's
    /// reply.
    pub fn client<S: Clone, C>(&self, channel: &S, new: impl FnOnce(BoundChannel<S>) -> C) -> C {
        new(BoundChannel::new(channel.clone(), self.scope.clone()))
    }

    /// Lets the transaction go on without this call: see
    /// [`Transaction::discard`](crate::Transaction::discard).
    ///
    /// # Errors
    /// No such call was made from here.
    pub fn discard(&self, call: CallId) -> Result<(), crate::UnknownCall> {
        self.scope.discard(call)
    }
}

impl<R: ResourceManager> std::fmt::Debug for BranchTransaction<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BranchTransaction")
            .field("branch", &self.branch)
            .finish_non_exhaustive()
    }
}

impl<R: ResourceManager> Deref for BranchTransaction<R> {
    type Target = R::Transaction;

    fn deref(&self) -> &R::Transaction {
        self.tx.as_ref().expect("held until drop")
    }
}

impl<R: ResourceManager> DerefMut for BranchTransaction<R> {
    fn deref_mut(&mut self) -> &mut R::Transaction {
        self.tx.as_mut().expect("held until drop")
    }
}

impl<R: ResourceManager> Drop for BranchTransaction<R> {
    fn drop(&mut self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = self.tx.take();
    }
}

/// Runs one branch under an open call, and settles that call with its vote.
pub(crate) async fn run<R, T, F, Fut>(
    resource: &Resource<R>,
    call: OpenCall,
    work: F,
) -> Result<T, BranchError>
where
    R: ResourceManager,
    T: Send + 'static,
    F: FnOnce(BranchTransaction<R>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, BoxError>> + Send + 'static,
{
    let scope = call.scope().clone();
    let id = call.begin_branch();
    let caller_is_gone = CancellationToken::new();
    // Dropped with this future; the task below looks at it before it prepares.
    let _presence = caller_is_gone.clone().drop_guard();
    let task = tokio::spawn(work_and_prepare(
        resource.clone(),
        scope,
        id,
        caller_is_gone,
        work,
    ));
    let failure = match task.await {
        Ok(Ok((value, voted))) => {
            call.answer_vote(voted.vote().clone(), None);
            return Ok(value);
        }
        Ok(Err(failure)) => failure,
        Err(error) => BranchFailure::Panicked(panic_text(error)),
    };
    let voted = Branch::new(id, resource.id).rolled_back(failure.to_string());
    call.answer_vote(voted.vote().clone(), Some(&failure));
    Err(BranchError {
        call: Some(id.call),
        failure,
    })
}

async fn work_and_prepare<R, T, F, Fut>(
    resource: Resource<R>,
    scope: Arc<Scope>,
    branch: BranchId,
    caller_is_gone: CancellationToken,
    work: F,
) -> Result<(T, Branch<Voted>), BranchFailure>
where
    R: ResourceManager,
    F: FnOnce(BranchTransaction<R>) -> Fut,
    Fut: Future<Output = Result<T, BoxError>>,
{
    let gtid = branch.gtid;
    let session = resource.participant.session();
    if session.is_aborted(gtid) {
        return Err(BranchFailure::Closed {
            gtid,
            text: "it is already decided".to_owned(),
        });
    }
    let context = BranchContext {
        branch,
        lineage: resource.participant.lineage(),
        deadline: scope.deadline(),
    };
    let started = session.branch_started(branch);
    let slot = Arc::new(Mutex::new(None));
    let working = async {
        let tx = resource.manager.begin(&context).await?;
        let tx = BranchTransaction::new(tx, slot.clone(), scope.clone(), branch);
        work(tx).await.map_err(BranchFailure::Rejected)
    };
    // Dropping the work gives the local transaction back to the slot, and the slot's end rolls it back.
    let value = tokio::select! {
        worked = tokio::time::timeout(scope.remaining(), working) => match worked {
            Ok(worked) => worked?,
            Err(_elapsed) => return Err(BranchFailure::DeadlineExceeded { gtid }),
        },
        () = started.cancelled() => {
            let text = "it was decided without this branch".to_owned();
            return Err(BranchFailure::Closed { gtid, text });
        }
    };
    let tx = slot
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
        .ok_or(BranchFailure::StillHeld)?;
    if let Some(doom) = scope.nested_doom() {
        return Err(doom);
    }
    let caller = if caller_is_gone.is_cancelled() {
        Caller::IsGone
    } else {
        Caller::Waits
    };
    may_prepare(caller, scope.deadline(), scope.participant().now()).map_err(|given_up| match given_up {
        GivenUp::Abandoned => BranchFailure::Abandoned,
        GivenUp::DeadlinePassed => BranchFailure::DeadlineExceeded { gtid },
    })?;
    let prepared = resource.manager.prepare(&context, tx).await?;
    if prepared.vote == Vote::Commit {
        session.branch_prepared(&context, resource.id);
    }
    drop(started);
    let Prepared {
        vote,
        digest,
        database_transaction,
    } = prepared;
    let durable = match vote {
        Vote::Commit => Durable::Prepared,
        Vote::ReadOnly => Durable::ReadOnly,
        Vote::Abort { cause } => return Err(BranchFailure::Rejected(cause.into())),
    };
    Ok((
        value,
        Branch::new(branch, resource.id).prepared(durable, digest, database_transaction),
    ))
}

pub(crate) fn panic_text(error: tokio::task::JoinError) -> String {
    let Ok(payload) = error.try_into_panic() else {
        return "the runtime shut down".to_owned();
    };
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload
            .downcast_ref::<&str>()
            .map_or_else(|| "without a text".to_owned(), |text| (*text).to_owned()),
    }
}
