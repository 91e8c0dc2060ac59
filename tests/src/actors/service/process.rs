//! One life of a service process: the real session core, driven by the world. It moves data and time; what it does with
//! them the cores say.

use super::Sabotage;
use super::desk::{Answered, Desk, Outgoing};
use super::messages::Messages;
use super::store::Store;
use super::tasks::{Clock, Tasks};
use crate::actors::{ActorId, Scene, Speech};
use crate::schedule::Micros;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use synod::resource::{Effect as StoreEffect, ResourceManager};
use synod_participant_core::session::{
    Config, ConnectionId, Effect, Finished, Input, ListedBranch, Notice, Session,
};
use synod_participant_core::{Now, Timestamp};
use synod_proto::ids::{BranchId, ReplicaId, ResourceId, SessionId};
use synod_proto::session::{Outcome, Refusal, Response};

/// More turns of the loop without time passing are a loop without end.
const ROUNDS_MAX: usize = 10_000;

/// More tasks than a service of this size can have: something is not ended.
const TASK_COUNT_MAX: usize = 2_000;

/// The process's own timer.
pub(super) const WAKE: u64 = 1;
/// From here on: a stream is open.
const OPENED_FLOOR: u64 = 1 << 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) desk: Rc<Desk>,
    tasks: Tasks,
    stream: Option<(ConnectionId, SessionId)>,
    is_ready: bool,
    wake_at: Option<Micros>,
    /// What no run may bring about.
    pub(super) violations: Vec<String>,
}

fn address(replica: ReplicaId) -> String {
    format!("http://replica-{}:1", replica.0)
}

fn replica(address: &str) -> Option<ReplicaId> {
    let number = address.strip_prefix("http://replica-")?.strip_suffix(":1")?;
    number.parse().ok().map(ReplicaId)
}

impl Process {
    pub(super) fn new(
        scene: &mut Scene<'_>,
        setup: &super::Setup,
        clock: Clock,
        store: Option<Store>,
        messages: Option<Rc<Messages>>,
    ) -> Self {
        clock.set(scene.now, scene.wall);
        let config = Config {
            // As in a service that wants to hear of trouble within a run's length.
            list_interval: Duration::from_secs(2),
            unknown_patience: Duration::from_secs(5),
            inquire_backoff_max: Duration::from_secs(5),
            finish_backoff_max: Duration::from_secs(3),
            ..Config::new(setup.replicas.iter().map(|one| address(*one)).collect())
        };
        let session = Session::new(config, scene.random.next_u64());
        let seed = scene.random.next_u64();
        Self {
            desk: Rc::new(Desk::new(scene.own, clock, session, store, messages, setup, seed)),
            tasks: Tasks::default(),
            stream: None,
            is_ready: false,
            wake_at: None,
            violations: Vec::new(),
        }
    }

    /// Whether business may be done.
    pub(super) fn is_open(&self) -> bool {
        let desk = &self.desk;
        desk.lineage.get().is_some() && (desk.store.is_none() || desk.is_attached.get())
    }

    pub(super) fn on_response(&mut self, session: SessionId, response: Response) {
        let Some((connection, _)) = self.stream.filter(|(_, current)| *current == session) else {
            return;
        };
        let leader = match &response {
            Response::Refused {
                refusal: Refusal::NotLeader { leader },
                ..
            } => leader.map(address),
            _ => None,
        };
        self.desk.input(Input::Received {
            connection,
            response,
            leader,
        });
    }

    pub(super) fn on_session_lost(&mut self, session: SessionId) {
        if let Some((connection, _)) = self.stream.take_if(|(_, current)| *current == session) {
            let reason = "the stream broke".to_string();
            self.desk.input(Input::Lost { connection, reason });
        }
    }

    pub(super) fn on_answer(&self, number: u64, answered: Answered) {
        self.desk.on_answer(number, answered);
    }

    pub(super) fn on_wake(&mut self, scene: &Scene<'_>, token: u64) {
        if token == WAKE {
            self.wake_at = self.wake_at.filter(|at| *at > scene.now);
        } else if let Some((connection, _)) = self.stream
            && token == OPENED_FLOOR + connection.0
        {
            self.desk.input(Input::Opened { connection });
        }
    }

    /// Does everything that can be done now.
    pub(super) fn turn(&mut self, scene: &mut Scene<'_>) {
        self.desk.clock.set(scene.now, scene.wall);
        let now = Now {
            monotonic: Timestamp(scene.now),
            wall: scene.wall,
        };
        for round in 0.. {
            assert!(round < ROUNDS_MAX, "a service never comes to rest");
            let mut has_run = self.tasks.poll() | self.desk.opens.on_time(&self.desk);
            if let Some(messages) = &self.desk.messages {
                messages.pump(&self.desk);
            }
            let Outgoing {
                inputs,
                says,
                spawned,
            } = self.desk.take_outgoing();
            has_run |= !inputs.is_empty() || !spawned.is_empty();
            says.into_iter().for_each(|(to, speech)| scene.say(to, speech));
            spawned.into_iter().for_each(|task| self.tasks.spawn(task));
            let mut effects = Vec::new();
            for input in inputs {
                effects.extend(self.desk.core.borrow_mut().step(now, input));
            }
            let is_due = |desk: &Desk| {
                desk.core
                    .borrow()
                    .next_timeout()
                    .is_some_and(|at| at <= now.monotonic)
            };
            if is_due(&self.desk) {
                effects.extend(self.desk.core.borrow_mut().step(now, Input::Tick));
                has_run = true;
            }
            for effect in effects {
                self.apply(scene, effect);
            }
            if !has_run {
                break;
            }
        }
        if self.tasks.len() > TASK_COUNT_MAX {
            self.violations
                .push(format!("{} tasks wait in one service", self.tasks.len()));
        }
        self.arrange_wake(scene);
    }

    fn arrange_wake(&mut self, scene: &mut Scene<'_>) {
        let core = self.desk.core.borrow().next_timeout().map(|at| at.0);
        let open = self.desk.opens.next_timeout();
        let next = core
            .into_iter()
            .chain(open)
            .chain(
                self.desk
                    .messages
                    .iter()
                    .filter_map(|messages| messages.next_timeout()),
            )
            .chain(self.desk.clock.next_wake())
            .min();
        if let Some(next) = next
            && self.wake_at.is_none_or(|at| next < at)
        {
            self.wake_at = Some(next);
            scene.wake_after(next.saturating_sub(scene.now), WAKE);
        }
    }

    fn apply(&mut self, scene: &mut Scene<'_>, effect: Effect) {
        match effect {
            Effect::Connect { connection, address } => {
                self.disconnect(scene);
                let Some(replica) = replica(&address) else {
                    self.violations.push(format!("no such address: {address}"));
                    return;
                };
                self.stream = Some((connection, scene.open_stream(replica)));
                let delay = scene.random.between(200, 2_000);
                scene.wake_after(delay, OPENED_FLOOR + connection.0);
            }
            Effect::Disconnect { connection } => {
                if self.stream.is_some_and(|(current, _)| current == connection) {
                    self.disconnect(scene);
                }
            }
            Effect::Send(request) => {
                if let Some((_, session)) = self.stream {
                    scene.ask(session, request);
                }
            }
            Effect::Reply { ticket, reply } => self.desk.on_reply(ticket, reply),
            Effect::Finish {
                branch,
                resource,
                outcome,
            } => self
                .tasks
                .spawn(Box::pin(finish(self.desk.clone(), branch, resource, outcome))),
            Effect::Cancel { branch } => {
                self.desk.count("work cancelled by a decision");
                self.desk.cancel(branch);
            }
            Effect::List { resource } => self.tasks.spawn(Box::pin(list(self.desk.clone(), resource))),
            Effect::Forget {
                resource,
                mark,
                unfinished,
            } => {
                let low_water = synod::resource::LowWater { mark, unfinished };
                let desk = self.desk.clone();
                self.tasks.spawn(Box::pin(async move {
                    if let Some(store) = desk.store.as_ref().filter(|store| store.resource == resource) {
                        // The coordinator says it again.
                        let _is_done = store.redb.forget(&low_water).await;
                    }
                }));
            }
            Effect::Ready(lineage) => {
                self.desk.lineage.set(Some(lineage));
                if !std::mem::replace(&mut self.is_ready, true) && self.desk.store.is_some() {
                    self.tasks.spawn(Box::pin(attach(self.desk.clone())));
                }
            }
            Effect::Registered { .. } => self.desk.is_attached.set(true),
            Effect::Prepare {
                branch,
                resource,
                token,
                call_count,
            } => self
                .desk
                .opens
                .prepare(&self.desk, branch, resource, (token, call_count)),
            Effect::Notice(Notice::Hazard { .. }) => self.desk.count("a hazard noticed"),
            Effect::Notice(Notice::Contradiction { branch, first }) => {
                self.violations.push(format!(
                    "branch {branch} was told {first} first, and then the other"
                ));
            }
            Effect::RegistrationRefused { .. } | Effect::Notice(_) | Effect::Ignored(_) => {}
        }
    }

    fn disconnect(&mut self, scene: &mut Scene<'_>) {
        if let Some((_, session)) = self.stream.take() {
            scene.close(session);
        }
    }
}

/// As `Participant::resource` does: binds the database, then registers it (T11).
async fn attach(desk: Rc<Desk>) {
    let (Some(store), Some(lineage)) = (&desk.store, desk.lineage.get()) else {
        return;
    };
    while store.redb.identity(Some(lineage)).await.is_err() {
        desk.clock.sleep(200_000).await;
    }
    let resource = store.resource;
    desk.input(Input::Attach { resource });
}

async fn finish(desk: Rc<Desk>, branch: BranchId, resource: ResourceId, outcome: Outcome) {
    let finished = match desk.store.as_ref().filter(|store| store.resource == resource) {
        None => Finished::Failed {
            text: format!("the database {resource} is not attached"),
        },
        Some(store) if store.is_veiled(&desk, branch) => {
            desk.count("a store that does not show a branch it holds");
            match desk.sabotage {
                Some(Sabotage::AcknowledgesUnknown) => Finished::AlreadyApplied,
                _ => Finished::Unknown {
                    detail: "the session that prepared it still lives".to_string(),
                },
            }
        }
        Some(store) => {
            desk.work_on_disk().await;
            let effect = match outcome {
                Outcome::Committed => store.redb.commit(&branch).await,
                Outcome::Aborted => store.redb.abort(&branch).await,
            };
            store.touch(branch, None);
            desk.work_on_disk().await;
            match effect {
                Ok(StoreEffect::Applied) => Finished::Applied,
                Ok(StoreEffect::AlreadyApplied) => {
                    desk.count("an outcome applied before");
                    Finished::AlreadyApplied
                }
                Ok(StoreEffect::Unknown { detail }) => {
                    desk.count("a branch unknown to its store");
                    Finished::Unknown { detail }
                }
                Err(error) => {
                    desk.count("an outcome that could not be applied at first");
                    Finished::Failed {
                        text: error.to_string(),
                    }
                }
            }
        }
    };
    desk.input(Input::Finished {
        branch,
        outcome,
        finished,
    });
}

async fn list(desk: Rc<Desk>, resource: ResourceId) {
    let found = match desk.store.as_ref().filter(|store| store.resource == resource) {
        None => None,
        Some(store) => store.redb.in_doubt().await.ok(),
    };
    let branches = found.map(|found| {
        let listed = found.into_iter().map(|one| ListedBranch {
            branch: one.context.branch,
            lineage: one.context.lineage,
            deadline: one.context.deadline,
            prepared_at: one.prepared_at,
        });
        listed.collect()
    });
    desk.input(Input::Listed { resource, branches });
}

/// Who waits for an answer of which call.
pub(super) type Waiting = BTreeMap<u64, futures::channel::mpsc::UnboundedSender<Answered>>;

/// A business message to another service.
pub(super) fn to_service(to: ActorId, message: super::Message) -> (ActorId, Speech) {
    (to, Speech::Service(Box::new(message)))
}
