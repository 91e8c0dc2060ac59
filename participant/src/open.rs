//! Branches that stay open (steps 2 and 3 of a transaction, rule T3): several calls of one transaction work in one local
//! transaction, which is prepared when the commit is asked for.
//!
//! The local transaction lives in a task of its own, which takes the calls in the order of their arrival and neither a
//! caller that goes away nor a closing stream can cut in half (traps C13). Which calls it takes, and what it votes, the
//! core's table decides.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use synod_participant_core::branch::{Branch, Durable};
use synod_participant_core::open::{Admission, Refused};
use synod_participant_core::transaction::OpenCalls;
use synod_proto::ids::{BranchId, UnixMillis};
use synod_proto::session::Vote;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::branch::{BranchTransaction, Resource};
use crate::error::{BoxError, BranchError, BranchFailure};
use crate::resource::{BranchContext, ResourceError, ResourceManager};
use crate::scope::{OpenCall, Scope};
use crate::session::{OpenCallId, OpenTask, WorkGuard, branch_of};

/// Work of one call: takes the local transaction and gives it back, unless it failed.
type Work<R> = Box<
    dyn FnOnce(
            <R as ResourceManager>::Transaction,
        ) -> BoxFuture<'static, Worked<<R as ResourceManager>::Transaction>>
        + Send,
>;

struct Worked<Tx> {
    tx: Result<Tx, BranchFailure>,
    /// Tells the caller; whether it was still there.
    answer: Box<dyn FnOnce(Option<BranchFailure>) -> bool + Send>,
}

enum Order<R: ResourceManager> {
    Work(Work<R>),
    Prepare,
}

/// Runs one call in the open branch of its transaction on this database, opening it if it is the first, and settles the
/// call with what its caller must count.
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
    match run_admitted(resource, &scope, id, work).await {
        Ok((value, admission)) => {
            let calls = OpenCalls {
                branch: admission.open,
                count_seen: admission.ordinal,
            };
            call.answer_open(id.execution, calls);
            Ok(value)
        }
        Err(failure) => {
            let voted = Branch::new(id, resource.id()).rolled_back(failure.to_string());
            call.answer_vote(voted.vote().clone(), Some(&failure));
            Err(BranchError {
                call: Some(id.call),
                failure,
            })
        }
    }
}

async fn run_admitted<R, T, F, Fut>(
    resource: &Resource<R>,
    scope: &Arc<Scope>,
    id: BranchId,
    work: F,
) -> Result<(T, Admission), BranchFailure>
where
    R: ResourceManager,
    T: Send + 'static,
    F: FnOnce(BranchTransaction<R>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, BoxError>> + Send + 'static,
{
    let gtid = id.gtid;
    let closed = |text: String| BranchFailure::Closed { gtid, text };
    let session = resource.participant().session();
    if session.is_aborted(gtid) {
        return Err(closed("it is already decided".to_owned()));
    }
    let arriving = OpenCallId {
        gtid,
        resource: resource.id(),
        call: id.call,
        execution: id.execution,
        deadline: scope.deadline(),
    };
    let admitted = session
        .open()
        .admit::<mpsc::UnboundedSender<Order<R>>>(arriving, |branch| {
            start(resource.clone(), branch, scope.deadline())
        });
    let (admission, orders) = admitted.map_err(|refused| match refused {
        Refused::TooManyOpen => BranchFailure::Resource(ResourceError::Unavailable(refused.into())),
        refused => closed(refused.to_string()),
    })?;
    let branch = branch_of(gtid, &admission);
    let open = session.open();
    let Some(orders) = orders else {
        let text = "this database was attached twice, with different resource managers";
        open.call_ended(branch, Err(text.to_owned()));
        return Err(closed(text.to_owned()));
    };
    let (answer, answered) = oneshot::channel();
    let order = Order::Work(job(scope.clone(), branch, work, answer));
    if orders.send(order).is_err() {
        return Err(closed(open.cause(branch)));
    }
    match answered.await {
        Ok(Ok(value)) => Ok((value, admission)),
        Ok(Err(failure)) => Err(failure),
        // Its task let go of it: rolled back meanwhile, or a panic.
        Err(_dropped) if scope.participant().now() >= scope.deadline() => {
            Err(BranchFailure::DeadlineExceeded { gtid })
        }
        Err(_dropped) => Err(closed(open.cause(branch))),
    }
}

/// One call's work, with the ends that its task needs.
fn job<R, T, F, Fut>(
    scope: Arc<Scope>,
    branch: BranchId,
    work: F,
    answer: oneshot::Sender<Result<T, BranchFailure>>,
) -> Work<R>
where
    R: ResourceManager,
    T: Send + 'static,
    F: FnOnce(BranchTransaction<R>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, BoxError>> + Send + 'static,
{
    Box::new(move |tx| {
        async move {
            let slot = Arc::new(Mutex::new(None));
            let tx = BranchTransaction::new(tx, slot.clone(), scope.clone(), branch);
            let worked = match work(tx).await {
                Err(error) => Err(BranchFailure::Rejected(error)),
                Ok(value) => match scope.nested_doom() {
                    Some(doom) => Err(doom),
                    None => Ok(value),
                },
            };
            let tx = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            let (tx, value) = match (worked, tx) {
                (Ok(value), Some(tx)) => (Ok(tx), Some(value)),
                (Ok(_), None) => (Err(BranchFailure::StillHeld), None),
                (Err(failure), _) => (Err(failure), None),
            };
            let answer = move |failure: Option<BranchFailure>| {
                let answered = match (failure, value) {
                    (None, Some(value)) => Ok(value),
                    (Some(failure), _) => Err(failure),
                    (None, None) => Err(BranchFailure::StillHeld),
                };
                answer.send(answered).is_ok()
            };
            let answer: Box<dyn FnOnce(Option<BranchFailure>) -> bool + Send> = Box::new(answer);
            Worked { tx, answer }
        }
        .boxed()
    })
}

/// Starts the task of a branch that has just been opened.
fn start<R: ResourceManager>(resource: Resource<R>, branch: BranchId, deadline: UnixMillis) -> OpenTask {
    let (orders, received) = mpsc::unbounded_channel::<Order<R>>();
    let rolled_back = CancellationToken::new();
    let context = BranchContext {
        branch,
        lineage: resource.participant().lineage(),
        deadline,
    };
    let keeper = Keeper {
        started: resource.participant().session().branch_started(branch),
        resource,
        context,
        rolled_back: rolled_back.clone(),
    };
    tokio::spawn(async move {
        let branch = keeper.context.branch;
        let session = keeper.resource.participant().session().clone();
        // The end of the task drops the local transaction, which rolls it back.
        if AssertUnwindSafe(keeper.keep(received))
            .catch_unwind()
            .await
            .is_err()
        {
            session
                .open()
                .give_up(branch, "a call of the open branch panicked");
        }
    });
    let prepare = orders.clone();
    OpenTask {
        orders: Box::new(orders) as Box<dyn Any + Send>,
        prepare: Box::new(move || {
            let _task_has_ended = prepare.send(Order::Prepare);
        }),
        rolled_back,
    }
}

/// The task that holds an open local transaction.
struct Keeper<R: ResourceManager> {
    resource: Resource<R>,
    context: BranchContext,
    started: WorkGuard,
    rolled_back: CancellationToken,
}

impl<R: ResourceManager> Keeper<R> {
    async fn keep(self, mut orders: mpsc::UnboundedReceiver<Order<R>>) {
        let branch = self.context.branch;
        let session = self.resource.participant().session();
        let open = session.open();
        let mut held = None;
        loop {
            let wake_at = open.wake_at(branch);
            let order = tokio::select! {
                biased;
                () = self.rolled_back.cancelled() => return,
                () = self.started.cancelled() => return open.give_up(branch, "it was decided without this branch"),
                order = orders.recv() => order,
                () = tokio::time::sleep_until(wake_at) => {
                    open.tick();
                    continue;
                }
            };
            match order {
                None => return open.give_up(branch, "the process let go of the branch"),
                Some(Order::Work(work)) => match self.work(held.take(), work).await {
                    Some(tx) => held = Some(tx),
                    None => return,
                },
                Some(Order::Prepare) => {
                    let Some(tx) = held.take() else {
                        let text = "the local transaction was lost".to_owned();
                        return open.prepared(branch, Err(text));
                    };
                    return self.prepare(tx).await;
                }
            }
        }
    }

    /// One call, as long as nothing ends the branch. Returns the local transaction if the branch goes on.
    async fn work(&self, held: Option<R::Transaction>, work: Work<R>) -> Option<R::Transaction> {
        let branch = self.context.branch;
        let open = self.resource.participant().session().open();
        let working = async {
            let tx = match held {
                Some(tx) => tx,
                None => self.resource.manager().begin(&self.context).await?,
            };
            Ok::<_, ResourceError>(work(tx).await)
        };
        tokio::pin!(working);
        let worked = loop {
            let wake_at = open.wake_at(branch);
            tokio::select! {
                biased;
                () = self.rolled_back.cancelled() => return None,
                () = self.started.cancelled() => {
                    open.give_up(branch, "it was decided without this branch");
                    return None;
                }
                worked = &mut working => break worked,
                () = tokio::time::sleep_until(wake_at) => open.tick(),
            }
        };
        let Worked { tx, answer } = match worked {
            Ok(worked) => worked,
            // The work was dropped, and its caller reads the cause.
            Err(error) => {
                open.call_ended(branch, Err(error.to_string()));
                return None;
            }
        };
        match tx {
            Ok(tx) => {
                open.call_ended(branch, Ok(()));
                // Nobody would count this call (T4).
                if !answer(None) {
                    open.call_ended(branch, Err(BranchFailure::Abandoned.to_string()));
                }
                Some(tx)
            }
            Err(failure) => {
                open.call_ended(branch, Err(failure.to_string()));
                let _caller_is_gone = answer(Some(failure));
                None
            }
        }
    }

    async fn prepare(&self, tx: R::Transaction) {
        let branch = self.context.branch;
        let session = self.resource.participant().session();
        let answer = match self.resource.manager().prepare(&self.context, tx).await {
            Ok(prepared) => {
                if prepared.vote == Vote::Commit {
                    session.branch_prepared(&self.context, self.resource.id());
                }
                match prepared.vote {
                    Vote::Commit => Ok((Durable::Prepared, prepared.digest, prepared.database_transaction)),
                    Vote::ReadOnly => Ok((Durable::ReadOnly, 0, bytes::Bytes::new())),
                    Vote::Abort { cause } => Err(cause),
                }
            }
            Err(error) => Err(error.to_string()),
        };
        session.open().prepared(branch, answer);
    }
}
