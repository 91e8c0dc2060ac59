//! The session's task. It owns the stream and the clock, steps the core and does what the core says.

use super::handle::unpoisoned;
use super::open::OpenHost;
use super::resource::ErasedResource;
use super::stream::{self, StreamEvent, What};
use crate::participant::random_u64;
use crate::resource::LowWater;
use futures::FutureExt;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use synod_participant_core::session::{
    Config, ConnectionId, Effect, Finished, Input, ListedBranch, Notice, Question, Reply, Session, Ticket,
};
use synod_participant_core::{Now, Timestamp};
use synod_proto::environment::{Connector, WallClock};
use synod_proto::ids::{BranchId, Lineage, ResourceId};
use synod_proto::limits::RESOURCE_COUNT_MAX;
use synod_proto::session::{Outcome, Refusal, Request};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The most inputs that are taken in one turn of the loop.
const TURN_COUNT_MAX: usize = 256;

/// How many messages of the coordinator wait for the driver before the transport holds the rest back.
const EVENT_COUNT_MAX: usize = 64;

/// How long a shutdown waits for branches that are being finished; a stuck store must not hold it up (B20).
const FINISH_GRACE: Duration = Duration::from_secs(5);

/// How long a shutdown waits for the stream to take the last acknowledgements.
const FLUSH_GRACE: Duration = Duration::from_secs(1);

/// What a handle tells the driver.
#[derive(Debug)]
pub(super) enum Command {
    Input(Input),
    Attach {
        resource: ResourceId,
        registered: oneshot::Sender<Result<(), Refusal>>,
    },
    Ask {
        ticket: Ticket,
        question: Question,
        patience: Duration,
        answer: oneshot::Sender<Reply>,
    },
    Started {
        branch: BranchId,
        cancelled: CancellationToken,
    },
    Ended {
        branch: BranchId,
    },
    Shutdown {
        done: oneshot::Sender<()>,
    },
}

/// What handles read without asking the driver.
pub(super) struct Shared {
    /// Stepped by the driver only; handles look at it.
    core: Mutex<Session>,
    resources: Mutex<BTreeMap<ResourceId, Arc<dyn ErasedResource>>>,
    started_at: Instant,
    clock: WallClock,
    ticket_count: AtomicU64,
    pub(super) open: OpenHost,
}

impl Shared {
    pub(super) fn core(&self) -> MutexGuard<'_, Session> {
        unpoisoned(self.core.lock())
    }

    pub(super) fn now(&self) -> Now {
        let elapsed = u64::try_from(self.started_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        Now {
            monotonic: Timestamp(elapsed),
            wall: self.clock.now(),
        }
    }

    pub(super) fn ticket(&self) -> Ticket {
        Ticket(self.ticket_count.fetch_add(1, Ordering::Relaxed))
    }

    /// `Err` if there are as many as one session may register.
    pub(super) fn add_resource(&self, id: ResourceId, resource: Arc<dyn ErasedResource>) -> Result<(), ()> {
        let mut resources = unpoisoned(self.resources.lock());
        if resources.len() >= RESOURCE_COUNT_MAX && !resources.contains_key(&id) {
            return Err(());
        }
        resources.insert(id, resource);
        Ok(())
    }

    fn resource(&self, id: ResourceId) -> Option<Arc<dyn ErasedResource>> {
        unpoisoned(self.resources.lock()).get(&id).cloned()
    }

    fn instant(&self, timestamp: Timestamp) -> Instant {
        self.started_at + Duration::from_micros(timestamp.0)
    }
}

type Spawned = (
    mpsc::UnboundedSender<Command>,
    Arc<Shared>,
    watch::Receiver<Option<Lineage>>,
);

/// Starts the task. It ends with a `Shutdown`, or when every sender of commands is dropped.
pub(super) fn spawn(config: Config, clock: WallClock, connector: Connector) -> Spawned {
    let (commands, command_receiver) = mpsc::unbounded_channel();
    let (events, event_receiver) = mpsc::channel(EVENT_COUNT_MAX);
    let (results, result_receiver) = mpsc::unbounded_channel();
    let (lineage, lineage_receiver) = watch::channel(None);
    let started_at = Instant::now();
    let shared = Arc::new(Shared {
        core: Mutex::new(Session::new(config, random_u64())),
        resources: Mutex::default(),
        started_at,
        open: OpenHost::new(results.clone(), started_at, clock.clone()),
        clock,
        ticket_count: AtomicU64::new(1),
    });
    let driver = Driver {
        shared: shared.clone(),
        connector,
        commands: command_receiver,
        event_receiver,
        events,
        result_receiver,
        results,
        lineage,
        stream: None,
        answers: BTreeMap::new(),
        working: BTreeMap::new(),
        attaching: BTreeMap::new(),
        finishing_count: 0,
        shutdown: None,
    };
    tokio::spawn(driver.run());
    (commands, shared, lineage_receiver)
}

struct OpenStream {
    connection: ConnectionId,
    requests: mpsc::UnboundedSender<Request>,
    task: JoinHandle<()>,
}

struct Shutdown {
    until: Instant,
    done: Vec<oneshot::Sender<()>>,
}

struct Driver {
    shared: Arc<Shared>,
    connector: Connector,
    commands: mpsc::UnboundedReceiver<Command>,
    event_receiver: mpsc::Receiver<StreamEvent>,
    events: mpsc::Sender<StreamEvent>,
    /// What stores answered, and what open branches voted.
    result_receiver: mpsc::UnboundedReceiver<Input>,
    results: mpsc::UnboundedSender<Input>,
    lineage: watch::Sender<Option<Lineage>>,
    stream: Option<OpenStream>,
    answers: BTreeMap<Ticket, oneshot::Sender<Reply>>,
    working: BTreeMap<BranchId, CancellationToken>,
    /// Who waits to hear that a database is registered.
    attaching: BTreeMap<ResourceId, Vec<oneshot::Sender<Result<(), Refusal>>>>,
    finishing_count: usize,
    shutdown: Option<Shutdown>,
}

impl Driver {
    async fn run(mut self) {
        let mut commands = Vec::with_capacity(TURN_COUNT_MAX);
        let mut events = Vec::with_capacity(TURN_COUNT_MAX);
        let mut results = Vec::with_capacity(TURN_COUNT_MAX);
        let mut inputs = Vec::with_capacity(TURN_COUNT_MAX);
        while !self.is_over() {
            let wake_at = self.wake_at();
            tokio::select! {
                count = self.commands.recv_many(&mut commands, TURN_COUNT_MAX), if self.shutdown.is_none() => {
                    if count == 0 {
                        // Nobody is left who could ask.
                        self.begin_shutdown(Vec::new(), &mut inputs);
                    }
                }
                _count = self.event_receiver.recv_many(&mut events, TURN_COUNT_MAX) => {}
                _count = self.result_receiver.recv_many(&mut results, TURN_COUNT_MAX) => {}
                () = tokio::time::sleep_until(wake_at) => inputs.push(Input::Tick),
            }
            for result in results.drain(..) {
                self.finishing_count -= usize::from(matches!(result, Input::Finished { .. }));
                inputs.push(result);
            }
            for event in events.drain(..) {
                take_event(event, &mut inputs);
            }
            for command in commands.drain(..) {
                self.take_command(command, &mut inputs);
            }
            self.step(&mut inputs);
        }
        self.end().await;
    }

    fn is_over(&self) -> bool {
        self.shutdown
            .as_ref()
            .is_some_and(|shutdown| self.finishing_count == 0 || Instant::now() >= shutdown.until)
    }

    fn wake_at(&self) -> Instant {
        let next = self.shared.core().next_timeout();
        let next = next.map_or_else(
            || Instant::now() + Duration::from_secs(3600),
            |next| self.shared.instant(next),
        );
        self.shutdown
            .as_ref()
            .map_or(next, |shutdown| next.min(shutdown.until))
    }

    fn take_command(&mut self, command: Command, inputs: &mut Vec<Input>) {
        match command {
            Command::Input(input) => inputs.push(input),
            Command::Attach { resource, registered } => {
                self.attaching.entry(resource).or_default().push(registered);
                inputs.push(Input::Attach { resource });
            }
            Command::Ask {
                ticket,
                question,
                patience,
                answer,
            } => {
                self.answers.insert(ticket, answer);
                inputs.push(Input::Ask {
                    ticket,
                    question,
                    patience,
                });
            }
            Command::Started { branch, cancelled } => {
                self.working.insert(branch, cancelled);
                inputs.push(Input::Started { branch });
            }
            Command::Ended { branch } => {
                self.working.remove(&branch);
                inputs.push(Input::Ended { branch });
            }
            Command::Shutdown { done } => match &mut self.shutdown {
                Some(shutdown) => shutdown.done.push(done),
                None => self.begin_shutdown(vec![done], inputs),
            },
        }
    }

    fn begin_shutdown(&mut self, done: Vec<oneshot::Sender<()>>, inputs: &mut Vec<Input>) {
        self.shutdown = Some(Shutdown {
            until: Instant::now() + FINISH_GRACE,
            done,
        });
        inputs.push(Input::Close);
    }

    /// Steps the core once per input, then does all the effects in their order.
    fn step(&mut self, inputs: &mut Vec<Input>) {
        let now = self.shared.now();
        let mut effects = Vec::new();
        {
            let mut core = self.shared.core();
            for input in inputs.drain(..) {
                effects.extend(core.step(now, input));
            }
        }
        for effect in effects {
            self.apply(effect);
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Connect { connection, address } => self.connect(connection, address),
            Effect::Disconnect { connection } => {
                if self
                    .stream
                    .as_ref()
                    .is_some_and(|stream| stream.connection == connection)
                {
                    self.disconnect();
                }
            }
            Effect::Send(request) => {
                if let Some(stream) = &self.stream {
                    // A stream that has just ended says so by its own event; until then the request counts as handed
                    // over, which is the safe side (T7).
                    let _is_lost = stream.requests.send(request);
                }
            }
            Effect::Reply { ticket, reply } => {
                if let Some(answer) = self.answers.remove(&ticket) {
                    let _caller_is_gone = answer.send(reply);
                }
            }
            Effect::Finish {
                branch,
                resource,
                outcome,
            } => self.finish(branch, resource, outcome),
            Effect::Prepare {
                branch,
                resource,
                token,
                call_count,
            } => self.shared.open.prepare(branch, resource, token, call_count),
            Effect::Cancel { branch } => {
                if let Some(cancelled) = self.working.get(&branch) {
                    cancelled.cancel();
                }
            }
            Effect::List { resource } => self.list(resource),
            Effect::Forget {
                resource,
                mark,
                unfinished,
            } => self.forget(resource, LowWater { mark, unfinished }),
            Effect::Ready(lineage) => {
                self.lineage.send_replace(Some(lineage));
            }
            Effect::Registered { resource } => self.answer_attach(resource, &Ok(())),
            Effect::RegistrationRefused { resource, refusal } => {
                tracing::warn!(%resource, ?refusal, "the coordinator does not take this database now");
                self.answer_attach(resource, &Err(refusal));
            }
            Effect::Notice(notice) => trace(&notice),
            Effect::Ignored(ignored) => tracing::trace!(?ignored, "ignored"),
        }
    }

    fn connect(&mut self, connection: ConnectionId, address: String) {
        self.disconnect();
        tracing::debug!(%address, "connecting to the coordinator");
        let (requests, request_receiver) = mpsc::unbounded_channel();
        let task = tokio::spawn(stream::run(
            self.connector.clone(),
            connection,
            address,
            request_receiver,
            self.events.clone(),
        ));
        self.stream = Some(OpenStream {
            connection,
            requests,
            task,
        });
    }

    fn disconnect(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.task.abort();
        }
    }

    fn answer_attach(&mut self, resource: ResourceId, answer: &Result<(), Refusal>) {
        for waiting in self.attaching.remove(&resource).into_iter().flatten() {
            let _caller_is_gone = waiting.send(answer.clone());
        }
    }

    /// In a task of its own: one slow store delays no other branch (B20), and nothing cancels it half way (C13).
    fn finish(&mut self, branch: BranchId, resource: ResourceId, outcome: Outcome) {
        self.finishing_count += 1;
        let store = self.shared.resource(resource);
        let results = self.results.clone();
        tokio::spawn(async move {
            let finished = match store {
                None => Finished::Failed {
                    text: format!("the database {resource} is not attached"),
                },
                Some(store) => AssertUnwindSafe(store.finish(branch, outcome))
                    .catch_unwind()
                    .await
                    .unwrap_or_else(|_panic| Finished::Failed {
                        text: "the resource manager panicked".to_owned(),
                    }),
            };
            let _driver_is_gone = results.send(Input::Finished {
                branch,
                outcome,
                finished,
            });
        });
    }

    fn list(&self, resource: ResourceId) {
        let store = self.shared.resource(resource);
        let results = self.results.clone();
        tokio::spawn(async move {
            let branches = match store {
                None => None,
                Some(store) => listed(resource, store).await,
            };
            let _driver_is_gone = results.send(Input::Listed { resource, branches });
        });
    }

    fn forget(&self, id: ResourceId, low_water: LowWater) {
        let Some(store) = self.shared.resource(id) else {
            return;
        };
        tokio::spawn(async move {
            match store.forget_below(low_water).await {
                Ok(count) => {
                    tracing::debug!(resource = %id, count, "deleted proofs below the low-water mark");
                }
                // The coordinator says it again; rows that stay are only space.
                Err(error) => {
                    tracing::warn!(resource = %id, %error, "proofs below the low-water mark were not deleted");
                }
            }
        });
    }

    /// Lets the stream take what is queued, then closes it.
    async fn end(&mut self) {
        if let Some(OpenStream {
            requests, mut task, ..
        }) = self.stream.take()
        {
            drop(requests);
            let flushed = async {
                // What the coordinator still says is for the next life; but it must not hold the stream up.
                loop {
                    tokio::select! {
                        _ended = &mut task => break,
                        _event = self.event_receiver.recv() => {}
                    }
                }
            };
            if tokio::time::timeout(FLUSH_GRACE, flushed).await.is_err() {
                task.abort();
            }
        }
        for done in self
            .shutdown
            .take()
            .into_iter()
            .flat_map(|shutdown| shutdown.done)
        {
            let _caller_is_gone = done.send(());
        }
    }
}

async fn listed(resource: ResourceId, store: Arc<dyn ErasedResource>) -> Option<Vec<ListedBranch>> {
    match AssertUnwindSafe(store.list()).catch_unwind().await {
        Ok(Ok(branches)) => Some(branches),
        Ok(Err(error)) => {
            tracing::warn!(%resource, %error, "the store cannot list its prepared branches; it is asked again");
            None
        }
        Err(_panic) => {
            tracing::error!(%resource, "the resource manager panicked while listing its prepared branches");
            None
        }
    }
}

fn take_event(event: StreamEvent, inputs: &mut Vec<Input>) {
    let StreamEvent { connection, what } = event;
    match what {
        What::Opened => inputs.push(Input::Opened { connection }),
        What::Lost { reason } => inputs.push(Input::Lost { connection, reason }),
        What::Received(received) => inputs.extend(received.into_iter().map(|one| Input::Received {
            connection,
            response: one.response,
            leader: one.leader,
        })),
    }
}

fn trace(notice: &Notice) {
    match notice {
        Notice::Lost { address, reason } => {
            tracing::info!(%address, %reason, "not connected to the coordinator");
        }
        Notice::Refused { address, refusal } => {
            tracing::warn!(%address, ?refusal, "the coordinator refused the session");
        }
        Notice::ForeignCoordinator {
            address,
            expected,
            found,
        } => {
            tracing::error!(%address, %expected, %found, "this replica belongs to another coordinator (T11)");
        }
        Notice::FinishFailed { branch, text, .. } => {
            tracing::warn!(%branch, error = %text, "an outcome could not be applied; it is tried again");
        }
        Notice::Hazard { branch, text } => {
            tracing::error!(%branch, %text, "HAZARD: the store has lost a branch that must commit; an operator must look");
        }
        Notice::Contradiction { branch, first } => {
            tracing::error!(%branch, %first, "the coordinator told two outcomes for one branch; the first stands");
        }
    }
}
