//! Branches that stay open between calls, with the real table of them. Plays `open.rs` and `session/open.rs` of the
//! library.

use super::Work;
use super::bank;
use super::desk::Desk;
use super::scope::Scope;
use futures::StreamExt;
use futures::channel::{mpsc, oneshot};
use futures::future::{Either, select};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use synod::resource::redb::RedbTransaction;
use synod::resource::{BranchContext, ResourceManager};
use synod_participant_core::branch::Durable;
use synod_participant_core::open::{Arrival, Effect, Limits, OpenBranches};
use synod_participant_core::session::Input;
use synod_participant_core::transaction::OpenCalls;
use synod_participant_core::{Now, Timestamp};
use synod_proto::ids::{BranchId, CallId, ExecutionId, InstanceId, OpenToken, ResourceId};
use synod_proto::session::Vote;

/// Shorter than in a service, so that a run sees its end.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// The open branches of one life of a process.
pub(super) struct Opens {
    core: RefCell<OpenBranches>,
    tasks: RefCell<BTreeMap<BranchId, OpenTask>>,
    is_introduced: Cell<bool>,
}

/// The way to the task that holds an open branch; its end rolls the branch back.
struct OpenTask {
    orders: mpsc::UnboundedSender<Order>,
    _until_rolled_back: oneshot::Sender<()>,
}

enum Order {
    Work {
        scope: Rc<Scope>,
        work: Work,
        answer: oneshot::Sender<Result<(), String>>,
    },
    Prepare,
}

impl Opens {
    pub(super) fn new(instance: InstanceId) -> Self {
        let limits = Limits {
            idle_timeout: IDLE_TIMEOUT,
            ..Limits::default()
        };
        Self {
            core: RefCell::new(OpenBranches::new(instance, limits)),
            tasks: RefCell::default(),
            is_introduced: Cell::new(false),
        }
    }

    pub(super) fn open_count(&self) -> usize {
        self.core.borrow().open_count()
    }

    pub(super) fn next_timeout(&self) -> Option<u64> {
        self.core.borrow().next_timeout().map(|at| at.0)
    }

    /// Whether something was due.
    pub(super) fn on_time(&self, desk: &Desk) -> bool {
        let is_due = self.next_timeout().is_some_and(|at| at <= desk.clock.now());
        if is_due {
            self.change(desk, OpenBranches::on_time);
        }
        is_due
    }

    /// The coordinator asks for a vote.
    pub(super) fn prepare(
        &self,
        desk: &Desk,
        branch: BranchId,
        resource: ResourceId,
        asked: (OpenToken, u32),
    ) {
        desk.count("an open branch asked for its vote");
        self.change(desk, |core, now, effects| {
            core.on_prepare(now, branch, resource, asked, effects);
        });
    }

    fn change(&self, desk: &Desk, change: impl FnOnce(&mut OpenBranches, Now, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        change(&mut self.core.borrow_mut(), now(desk), &mut effects);
        self.apply(desk, effects);
    }

    fn apply(&self, desk: &Desk, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Prepare { branch } => {
                    if let Some(task) = self.tasks.borrow().get(&branch) {
                        let _task_has_ended = task.orders.unbounded_send(Order::Prepare);
                    }
                }
                Effect::RollBack { branch } => {
                    desk.count("an open branch rolled back");
                    self.tasks.borrow_mut().remove(&branch);
                }
                Effect::Vote {
                    branch,
                    resource,
                    vote,
                } => {
                    desk.count(match vote.vote {
                        Vote::Commit => "an open branch votes: commit",
                        Vote::ReadOnly => "an open branch votes: read-only",
                        Vote::Abort { .. } => "an open branch votes: abort",
                    });
                    desk.input(Input::Voted {
                        branch,
                        resource,
                        vote,
                    });
                }
            }
        }
    }

    fn give_up(&self, desk: &Desk, branch: BranchId, cause: &str) {
        self.change(desk, |core, now, effects| {
            core.give_up(now, branch, cause, effects);
            core.on_prepared(now, branch, Err(cause.to_string()), effects);
        });
        self.tasks.borrow_mut().remove(&branch);
    }

    fn cause(&self, branch: BranchId) -> String {
        let cause = self.core.borrow().cause(branch);
        cause.unwrap_or_else(|| "the open branch has ended".to_string())
    }

    /// One call in the open branch of its transaction, which the first one opens.
    pub(super) async fn call(
        &self,
        scope: &Rc<Scope>,
        (call, execution): (CallId, ExecutionId),
        resource: ResourceId,
        work: &Work,
    ) -> Result<OpenCalls, String> {
        let desk = &scope.desk;
        let gtid = scope.gtid;
        if desk.core.borrow().is_settled(gtid) {
            return Err("it is already decided".to_string());
        }
        let arrival = Arrival {
            gtid,
            resource,
            call,
            deadline: scope.deadline,
            execution,
            token: OpenToken(desk.next()),
        };
        let mut effects = Vec::new();
        let admitted = self.core.borrow_mut().on_call(now(desk), arrival, &mut effects);
        self.apply(desk, effects);
        let admission = admitted.map_err(|refused| {
            desk.count("a call refused by its open branch");
            refused.to_string()
        })?;
        let branch = BranchId {
            gtid,
            call: admission.open.call,
            execution: admission.open.execution,
        };
        if admission.is_first {
            let (orders, received) = mpsc::unbounded();
            let (until_rolled_back, rolled_back) = oneshot::channel();
            let task = OpenTask {
                orders,
                _until_rolled_back: until_rolled_back,
            };
            self.tasks.borrow_mut().insert(branch, task);
            let context = BranchContext {
                branch,
                lineage: scope.lineage,
                deadline: scope.deadline,
            };
            desk.spawn(keep(desk.clone(), context, received, rolled_back));
            if !self.is_introduced.replace(true) {
                let instance = self.core.borrow().instance();
                desk.input(Input::Introduce { instance });
            }
        } else {
            desk.count("a further call in an open branch");
        }
        let (answer, answered) = oneshot::channel();
        let order = Order::Work {
            scope: scope.clone(),
            work: work.clone(),
            answer,
        };
        let is_taken = self
            .tasks
            .borrow()
            .get(&branch)
            .is_some_and(|task| task.orders.unbounded_send(order).is_ok());
        if !is_taken {
            return Err(self.cause(branch));
        }
        match answered.await {
            Ok(result) => result.map(|()| OpenCalls {
                branch: admission.open,
                count_seen: admission.ordinal,
            }),
            Err(_dropped) => Err(self.cause(branch)),
        }
    }
}

fn now(desk: &Desk) -> Now {
    Now {
        monotonic: Timestamp(desk.clock.now()),
        wall: desk.clock.wall(),
    }
}

/// The task that holds an open local transaction.
async fn keep(
    desk: Rc<Desk>,
    context: BranchContext,
    orders: mpsc::UnboundedReceiver<Order>,
    rolled_back: oneshot::Receiver<()>,
) {
    let branch = context.branch;
    let (guard, cancelled) = desk.branch_started(branch);
    let taken = {
        let working = pin!(work_until_prepare(&desk, &context, orders));
        let ended = select(rolled_back, cancelled);
        match select(working, ended).await {
            Either::Left((taken, _)) => taken,
            Either::Right(_) => None,
        }
    };
    match taken {
        None => desk
            .opens
            .give_up(&desk, branch, "it was decided without this branch"),
        Some(tx) => prepare(&desk, &context, tx).await,
    }
    drop(guard);
}

/// Takes the calls in their order. Returns the local transaction once it is to be prepared.
async fn work_until_prepare(
    desk: &Rc<Desk>,
    context: &BranchContext,
    mut orders: mpsc::UnboundedReceiver<Order>,
) -> Option<RedbTransaction> {
    let branch = context.branch;
    let store = desk.store.as_ref()?;
    let mut held: Option<RedbTransaction> = None;
    while let Some(order) = orders.next().await {
        let Order::Work { scope, work, answer } = order else {
            return held;
        };
        let worked = async {
            let mut tx = match held.take() {
                Some(tx) => tx,
                None => store
                    .redb
                    .begin(context)
                    .await
                    .map_err(|error| error.to_string())?,
            };
            bank::do_in(&scope, &work, &mut tx, branch).await?;
            Ok::<_, String>(tx)
        };
        let worked = worked.await;
        let ended = |ended: Result<(), String>| {
            desk.opens.change(desk, |core, now, effects| {
                core.on_call_ended(now, branch, ended, effects);
            });
        };
        match worked {
            Ok(tx) => {
                held = Some(tx);
                ended(Ok(()));
                // Nobody would count this call (T4).
                if !scope.caller_waits.get() || answer.send(Ok(())).is_err() {
                    ended(Err("the caller went away".to_string()));
                }
            }
            Err(text) => {
                ended(Err(text.clone()));
                let _caller_is_gone = answer.send(Err(text));
                return None;
            }
        }
    }
    None
}

async fn prepare(desk: &Rc<Desk>, context: &BranchContext, tx: RedbTransaction) {
    let branch = context.branch;
    let Some(store) = &desk.store else { return };
    desk.work_on_disk().await;
    let prepared = store.redb.prepare(context, tx).await;
    store.touch(branch, Some(context.clone()));
    desk.work_on_disk().await;
    let answer = match prepared {
        Err(error) => Err(error.to_string()),
        Ok(prepared) => match prepared.vote {
            Vote::Commit => {
                desk.input(Input::Prepared {
                    branch,
                    resource: store.resource,
                    lineage: context.lineage,
                    deadline: context.deadline,
                });
                Ok((Durable::Prepared, prepared.digest, prepared.database_transaction))
            }
            Vote::ReadOnly => Ok((Durable::ReadOnly, 0, bytes::Bytes::new())),
            Vote::Abort { cause } => Err(cause),
        },
    };
    desk.opens.change(desk, |core, now, effects| {
        core.on_prepared(now, branch, answer, effects);
    });
    desk.opens.tasks.borrow_mut().remove(&branch);
}
