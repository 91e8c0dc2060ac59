//! The inbox's gRPC service: streams from relays, the core that orders what they bring, and the tasks that apply it.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::{Stream, StreamExt};
use synod_participant_core::inbox as core;
use synod_participant_core::inbox::{InboxSession, Origin, Refused, Ticket};
use synod_proto::ids::Position;
use synod_proto::limits::{DELIVERY_COUNT_MAX, MESSAGE_BYTES_MAX};
use synod_proto::message::{Answer, Answered, Delivery, Hello, InboxFrame, LowWater, RelayFrame, Welcome};
use synod_proto::v1;
use synod_proto::v1::messages_server::{Messages, MessagesServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Handler, Inbox, apply};
use crate::resource::redb::RedbResource;
use crate::resource::redb::messages::{MarkInbox, MessageRead, name, topic_of_name};
use crate::resource::{ResourceError, ResourceManager};

/// Answers that may wait for the transport of one stream. More hold up whoever produces them.
const ANSWER_COUNT_MAX: usize = 1024;

/// The most streams at once.
const SESSION_COUNT_MAX: usize = 1024;

pub(super) struct Shared {
    store: RedbResource,
    /// The names that this inbox answers to; any, where none is given.
    names: BTreeSet<String>,
    pub(super) handlers: BTreeMap<String, Handler>,
    handler_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    core: core::Inbox,
    waiting: BTreeMap<Ticket, Waiting>,
    sessions: BTreeMap<InboxSession, Origin>,
    session_count: u64,
}

struct Waiting {
    origin: Origin,
    delivery: Delivery,
    answers: mpsc::Sender<InboxFrame>,
}

impl Shared {
    pub(super) fn new(
        store: RedbResource,
        names: BTreeSet<String>,
        handlers: BTreeMap<String, Handler>,
        handler_timeout: Duration,
    ) -> Self {
        Self {
            store,
            names,
            handlers,
            handler_timeout,
            state: Mutex::default(),
        }
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        self.state().core.counts()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code panics while it holds the inbox")
    }

    /// Takes a delivery, or says why not.
    fn take(
        self: &Arc<Self>,
        session: InboxSession,
        origin: &Origin,
        delivery: Delivery,
        answers: &mpsc::Sender<InboxFrame>,
    ) -> Option<Answered> {
        let answered = |answer| Answered {
            position: delivery.position,
            fence: delivery.fence,
            answer,
        };
        if !delivery.is_cancelled && !self.handlers.contains_key(&delivery.topic) {
            let text = format!(
                "no handler for the topic `{}`: add one to the inbox",
                delivery.topic
            );
            return Some(answered(Answer::Busy { text }));
        }
        let key = name(&delivery.topic, &delivery.key);
        let topic = topic_of_name(&key);
        let byte_count = delivery.body.len() + delivery.key.len() + header_bytes(&delivery.headers);
        let mut state = self.state();
        let taken = state
            .core
            .on_delivery(session, origin, &topic, &key, delivery.fence, byte_count);
        match taken {
            Err(Refused::Stale) => Some(answered(Answer::Stale)),
            Err(Refused::Busy) => Some(answered(Answer::Busy {
                text: "too many messages are waiting".to_owned(),
            })),
            Ok(ticket) => {
                let waiting = Waiting {
                    origin: origin.clone(),
                    delivery,
                    answers: answers.clone(),
                };
                state.waiting.insert(ticket, waiting);
                drop(state);
                self.start_ready();
                None
            }
        }
    }

    /// Starts what may run: each in a task that no broken stream cancels half way.
    fn start_ready(self: &Arc<Self>) {
        loop {
            let (ticket, waiting) = {
                let mut state = self.state();
                let Some(ticket) = state.core.poll_start() else {
                    return;
                };
                (
                    ticket,
                    state.waiting.remove(&ticket).expect("what has a ticket waits"),
                )
            };
            // Not under the lock: a runtime that shuts down drops the task, and so `running`, at once.
            tokio::spawn(run(
                Running {
                    shared: self.clone(),
                    ticket,
                },
                waiting,
            ));
        }
    }
}

/// Whether this outbox may deliver here at all (T11).
pub(super) async fn admit(
    store: &RedbResource,
    names: &BTreeSet<String>,
    hello: &Hello,
) -> Result<Welcome, Status> {
    if !names.is_empty() && !names.contains(&hello.consumer) {
        let ours: Vec<_> = names.iter().map(String::as_str).collect();
        return Err(Status::failed_precondition(format!(
            "this is the inbox of {}, and the messages are for `{}`: mend the consumer's address",
            ours.join(", "),
            hello.consumer
        )));
    }
    let identity = store.identity(None).await?;
    if let (Some(ours), Some(theirs)) = (identity.lineage, hello.lineage)
        && ours != theirs
    {
        return Err(Status::failed_precondition(format!(
            "the outbox belongs to coordinator {theirs}, and this consumer to {ours}: mend the address"
        )));
    }
    let (known, highest) = {
        let snapshot = store.snapshot()?;
        let read = MessageRead(&snapshot);
        (
            read.inbox_low_water(hello.source, &hello.consumer)?,
            read.inbox_highest(hello.source, &hello.consumer)?,
        )
    };
    if known.mark > hello.mark {
        return Err(Status::failed_precondition(format!(
            "the outbox {} has lost data: it settled messages below {} once, and knows only of {}; bring its later state back, or \
             publish from a new file",
            hello.source, known.mark, hello.mark
        )));
    }
    Ok(Welcome {
        resource: identity.resource,
        mark: known.mark,
        highest_applied: highest.max(Position(known.mark.0.saturating_sub(1))),
        takes_cancelled: true,
    })
}

/// Opens the key's gate again, whatever became of the delivery.
struct Running {
    shared: Arc<Shared>,
    ticket: Ticket,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.state().core.on_finished(self.ticket);
    }
}

async fn run(running: Running, waiting: Waiting) {
    let shared = running.shared.clone();
    let Waiting {
        origin,
        delivery,
        answers,
    } = waiting;
    let (position, fence) = (delivery.position, delivery.fence);
    let handler = shared.handlers.get(&delivery.topic);
    let answer = apply::apply(&shared.store, &origin, handler, shared.handler_timeout, delivery).await;
    if let Answer::Failed { text } = &answer {
        tracing::warn!(%position, source = %origin.source, reason = %text, "a message was not applied");
    }
    drop(running);
    shared.start_ready();
    let answered = Answered {
        position,
        fence,
        answer,
    };
    // A stream that is gone asks again on the next one.
    let _ = answers.send(InboxFrame::Answers(vec![answered])).await;
}

/// A stream that is open.
struct Session {
    shared: Arc<Shared>,
    id: InboxSession,
    origin: Origin,
}

impl Session {
    #[allow(clippy::result_large_err, reason = "gRPC's own error type")]
    fn open(shared: &Arc<Shared>, origin: Origin) -> Result<Self, Status> {
        let mut state = shared.state();
        if state.sessions.len() >= SESSION_COUNT_MAX {
            return Err(Status::resource_exhausted(format!(
                "the inbox serves at most {SESSION_COUNT_MAX} streams"
            )));
        }
        state.session_count += 1;
        let id = InboxSession(state.session_count);
        state.sessions.insert(id, origin.clone());
        drop(state);
        Ok(Self {
            shared: shared.clone(),
            id,
            origin,
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        for void in state.core.on_session_closed(self.id) {
            state.waiting.remove(&void);
        }
        state.sessions.remove(&self.id);
        if !state.sessions.values().any(|origin| *origin == self.origin) {
            state.core.on_origin_idle(&self.origin);
        }
    }
}

/// The service that relays connect to.
#[derive(Clone)]
pub struct InboxService {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for InboxService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InboxService")
    }
}

impl Inbox {
    /// The gRPC service, to be added to the consumer's server.
    #[must_use]
    pub fn server(&self) -> MessagesServer<InboxService> {
        MessagesServer::new(InboxService {
            shared: self.shared.clone(),
        })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[allow(clippy::result_large_err, reason = "gRPC's own error type")]
fn read(frame: v1::RelayFrame) -> Result<RelayFrame, Status> {
    RelayFrame::try_from(frame).map_err(|malformed| Status::invalid_argument(malformed.to_string()))
}

#[tonic::async_trait]
impl Messages for InboxService {
    type DeliverStream = Pin<Box<dyn Stream<Item = Result<v1::InboxFrame, Status>> + Send>>;

    async fn deliver(
        &self,
        request: Request<Streaming<v1::RelayFrame>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let mut incoming = request.into_inner();
        let Some(first) = incoming.message().await? else {
            return Err(Status::invalid_argument("the stream ended before its hello"));
        };
        let RelayFrame::Hello(hello) = read(first)? else {
            return Err(Status::invalid_argument("the first frame is no hello"));
        };
        let welcome = admit(&self.shared.store, &self.shared.names, &hello).await?;
        let origin = Origin {
            source: hello.source,
            consumer: hello.consumer,
        };
        let session = Session::open(&self.shared, origin)?;
        let (answers, outgoing) = mpsc::channel(ANSWER_COUNT_MAX);
        let (errors, failed) = mpsc::channel(1);
        let _ = answers.send(InboxFrame::Welcome(welcome)).await;
        tokio::spawn(async move {
            if let Err(status) = receive(&session, incoming, &answers).await {
                let _ = errors.send(Err(status)).await;
            }
        });
        // Whatever has gathered is one frame.
        let frames = ReceiverStream::new(outgoing)
            .ready_chunks(DELIVERY_COUNT_MAX)
            .flat_map(|frames| futures::stream::iter(merge(frames)))
            .map(|frame| Ok(frame.into()));
        Ok(Response::new(Box::pin(futures::stream::select(
            frames,
            ReceiverStream::new(failed),
        ))))
    }
}

fn header_bytes(headers: &BTreeMap<String, String>) -> usize {
    headers.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// Joins neighbouring answers.
fn merge(frames: Vec<InboxFrame>) -> Vec<InboxFrame> {
    let mut merged: Vec<InboxFrame> = Vec::new();
    for frame in frames {
        match (merged.last_mut(), frame) {
            (Some(InboxFrame::Answers(last)), InboxFrame::Answers(mut next)) => last.append(&mut next),
            (_, frame) => merged.push(frame),
        }
    }
    merged
}

async fn receive(
    session: &Session,
    mut incoming: Streaming<v1::RelayFrame>,
    answers: &mpsc::Sender<InboxFrame>,
) -> Result<(), Status> {
    let shared = &session.shared;
    loop {
        let frame = tokio::select! {
            frame = incoming.message() => frame?,
            () = answers.closed() => return Ok(()),
        };
        let Some(frame) = frame else { return Ok(()) };
        match read(frame)? {
            RelayFrame::Hello(_) => return Err(Status::invalid_argument("a second hello")),
            RelayFrame::Deliver(deliveries) => {
                for delivery in deliveries {
                    if let Some(refused) = shared.take(session.id, &session.origin, delivery, answers) {
                        let _ = answers.send(InboxFrame::Answers(vec![refused])).await;
                    }
                }
            }
            RelayFrame::LowWater(low_water) => {
                let mark = low_water.mark;
                forget(&shared.store, &session.origin, low_water).await?;
                let _ = answers.send(InboxFrame::LowWaterReached(mark)).await;
            }
        }
    }
}

/// Deletes the rows that the sender needs no more. While it writes, the stream waits: what follows it was sent after it.
pub(super) async fn forget(
    store: &RedbResource,
    origin: &Origin,
    low_water: LowWater,
) -> Result<(), ResourceError> {
    let work = MarkInbox {
        source: origin.source,
        consumer: origin.consumer.clone(),
        low_water,
    };
    // A part at a time, so that deliveries get their turn between. If it is cut short, the next mark goes on.
    while store.work(work.clone()).await? {}
    Ok(())
}
