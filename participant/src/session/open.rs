//! Where the open branches of this process are kept between their calls: the core's table of them, and for each the way
//! to the task that holds its local transaction. Every decision is the core's.

use super::handle::unpoisoned;
use crate::participant::{random_id, random_u64};
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use synod_participant_core::branch::Durable;
use synod_participant_core::open::{Admission, Arrival, Effect, Limits, OpenBranches, Refused};
use synod_participant_core::session::Input;
use synod_participant_core::{Now, Timestamp};
use synod_proto::environment::WallClock;
use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, InstanceId, OpenToken, ResourceId, UnixMillis};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The way to the task that holds an open branch.
pub(crate) struct OpenTask {
    /// Its queue of work, which only the maker of the task can name the type of.
    pub(crate) orders: Box<dyn Any + Send>,
    /// Puts "prepare" into that queue.
    pub(crate) prepare: Box<dyn Fn() + Send>,
    /// Rolls it back, whatever runs in it.
    pub(crate) rolled_back: CancellationToken,
}

/// A call that wants to run in an open branch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenCallId {
    pub(crate) gtid: Gtid,
    pub(crate) resource: ResourceId,
    pub(crate) call: CallId,
    pub(crate) execution: ExecutionId,
    pub(crate) deadline: UnixMillis,
}

struct Kept {
    core: OpenBranches,
    tasks: BTreeMap<BranchId, OpenTask>,
    is_introduced: bool,
}

/// See the module.
pub(crate) struct OpenHost {
    kept: Mutex<Kept>,
    /// To the session's driver.
    inputs: mpsc::UnboundedSender<Input>,
    started_at: Instant,
    clock: WallClock,
}

impl fmt::Debug for OpenHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenHost").finish_non_exhaustive()
    }
}

impl OpenHost {
    pub(super) fn new(inputs: mpsc::UnboundedSender<Input>, started_at: Instant, clock: WallClock) -> Self {
        let instance = InstanceId(random_id());
        let kept = Kept {
            core: OpenBranches::new(instance, Limits::default()),
            tasks: BTreeMap::new(),
            is_introduced: false,
        };
        Self {
            kept: Mutex::new(kept),
            inputs,
            started_at,
            clock,
        }
    }

    /// A call arrives; its turn comes through the queue of the branch's task, which `make` starts for the first one.
    /// `None` as the queue: the branch is held under another type of resource manager.
    pub(crate) fn admit<Q: Clone + 'static>(
        &self,
        call: OpenCallId,
        make: impl FnOnce(BranchId) -> OpenTask,
    ) -> Result<(Admission, Option<Q>), Refused> {
        let arrival = Arrival {
            gtid: call.gtid,
            resource: call.resource,
            call: call.call,
            deadline: call.deadline,
            execution: call.execution,
            token: OpenToken(random_u64()),
        };
        let mut kept = self.kept();
        let mut effects = Vec::new();
        kept.core.on_time(self.now(), &mut effects);
        let admitted = kept.core.on_call(self.now(), arrival, &mut effects);
        self.apply(&mut kept, effects);
        let admission = admitted?;
        let branch = branch_of(call.gtid, &admission);
        if admission.is_first {
            kept.tasks.insert(branch, make(branch));
            // The coordinator hears of this process once it holds something open, and not before.
            if !std::mem::replace(&mut kept.is_introduced, true) {
                let instance = kept.core.instance();
                let _session_is_gone = self.inputs.send(Input::Introduce { instance });
            }
        }
        let queue = kept
            .tasks
            .get(&branch)
            .and_then(|task| task.orders.downcast_ref::<Q>());
        Ok((admission, queue.cloned()))
    }

    /// An admitted call is over.
    pub(crate) fn call_ended(&self, branch: BranchId, ended: Result<(), String>) {
        self.change(|core, now, effects| core.on_call_ended(now, branch, ended, effects));
    }

    /// The branch cannot go on; nothing changes if it has voted. Its task must not end without this, or the vote.
    pub(crate) fn give_up(&self, branch: BranchId, cause: &str) {
        self.change(|core, now, effects| {
            core.give_up(now, branch, cause, effects);
            // It may have been asked for its vote just before, and the store never will be.
            core.on_prepared(now, branch, Err(cause.to_owned()), effects);
        });
        self.kept().tasks.remove(&branch);
    }

    /// The coordinator asks for the branch's vote.
    pub(super) fn prepare(&self, branch: BranchId, resource: ResourceId, token: OpenToken, call_count: u32) {
        self.change(|core, now, effects| {
            core.on_prepare(now, branch, resource, (token, call_count), effects);
        });
    }

    /// What the store answered.
    pub(crate) fn prepared(&self, branch: BranchId, answer: Result<(Durable, u64, bytes::Bytes), String>) {
        self.change(|core, now, effects| core.on_prepared(now, branch, answer, effects));
        self.kept().tasks.remove(&branch);
    }

    /// Time has passed.
    pub(crate) fn tick(&self) {
        self.change(|core, now, effects| core.on_time(now, effects));
    }

    /// When to tick next for this branch. Never now: a tick that found nothing to do is not repeated in a circle.
    pub(crate) fn wake_at(&self, branch: BranchId) -> Instant {
        let soonest = Instant::now() + Duration::from_millis(1);
        match self.kept().core.next_timeout_of(branch) {
            Some(Timestamp(micros)) => (self.started_at + Duration::from_micros(micros)).max(soonest),
            None => soonest + Duration::from_secs(3600),
        }
    }

    /// Why the branch was rolled back.
    pub(crate) fn cause(&self, branch: BranchId) -> String {
        let cause = self.kept().core.cause(branch);
        cause.unwrap_or_else(|| "the runtime shut down".to_owned())
    }

    fn change(&self, change: impl FnOnce(&mut OpenBranches, Now, &mut Vec<Effect>)) {
        let mut kept = self.kept();
        let mut effects = Vec::new();
        change(&mut kept.core, self.now(), &mut effects);
        self.apply(&mut kept, effects);
    }

    fn apply(&self, kept: &mut Kept, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Prepare { branch } => {
                    if let Some(task) = kept.tasks.get(&branch) {
                        (task.prepare)();
                    }
                }
                Effect::RollBack { branch } => {
                    if let Some(task) = kept.tasks.remove(&branch) {
                        task.rolled_back.cancel();
                    }
                }
                Effect::Vote {
                    branch,
                    resource,
                    vote,
                } => {
                    let voted = Input::Voted {
                        branch,
                        resource,
                        vote,
                    };
                    let _session_is_gone = self.inputs.send(voted);
                }
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        unpoisoned(self.kept.lock())
    }

    fn now(&self) -> Now {
        let elapsed = u64::try_from(self.started_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        Now {
            monotonic: Timestamp(elapsed),
            wall: self.clock.now(),
        }
    }
}

pub(crate) fn branch_of(gtid: Gtid, admission: &Admission) -> BranchId {
    BranchId {
        gtid,
        call: admission.open.call,
        execution: admission.open.execution,
    }
}
