//! The relay: keeps one stream open to each consumer, and moves messages and answers (step 6 of a transaction).

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use synod_participant_core::relay::{RelaySession, Send};
use synod_proto::ids::{Position, ResourceId};
use synod_proto::limits::{DELIVERY_BYTES_FULL, DELIVERY_COUNT_MAX, MESSAGE_BYTES_MAX};
use synod_proto::message::{Delivery, Hello, InboxFrame, RelayFrame, Welcome};
use synod_proto::v1;
use synod_proto::v1::messages_client::MessagesClient;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::Outbox;
use super::lane::{Lane, Opened, ToSession, row_of};
use crate::error::BoxError;
use crate::resource::ResourceError;
use crate::resource::redb::RedbResource;
use crate::resource::redb::messages::{ConsumerRow, MessageRead, MessageRow};

/// The waits between two attempts to reach a consumer: doubled from the first to the last, jittered (traps B19).
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
/// See [`RECONNECT_FIRST`].
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// How long a consumer may take for its welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// The frames that may wait for the transport.
const FRAME_COUNT_MAX: usize = 4;

/// Sends an outbox's messages to its consumers. Several may run over one outbox: they share the messages, one at a time per key.
#[derive(Debug)]
pub struct Relay {
    outbox: Outbox,
}

impl Relay {
    pub(super) fn new(outbox: Outbox) -> Self {
        Self { outbox }
    }

    /// Serves every consumer until this future is dropped, whatever breaks meanwhile: streams are opened anew, with backoff. Dropping
    /// it loses nothing, since a message counts as delivered only by its consumer's answer (traps H6).
    pub async fn run(self) -> Infallible {
        let mut consumers = JoinSet::new();
        for lane in self.outbox.inner.lanes.values() {
            consumers.spawn(serve(lane.clone()));
        }
        while let Some(ended) = consumers.join_next().await {
            match ended {
                Ok(never) => match never {},
                Err(error) => tracing::error!(%error, "a relay task has died: a bug"),
            }
        }
        std::future::pending().await
    }
}

/// Serves one consumer for ever.
async fn serve(lane: Arc<Lane>) -> Infallible {
    let mut wait = RECONNECT_FIRST;
    loop {
        let begun = Instant::now();
        let mut has_answered = false;
        if let Err(trouble) = session(&lane, &mut has_answered).await {
            lane.set_trouble(trouble.to_string());
        }
        // A welcome alone is no success: what comes next may be what ends each stream.
        if has_answered || begun.elapsed() > RECONNECT_MAX {
            wait = RECONNECT_FIRST;
        }
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let jittered = millis / 2 + crate::participant::random_u64() % (millis / 2 + 1);
        tokio::time::sleep(Duration::from_millis(jittered)).await;
        wait = (wait * 2).min(RECONNECT_MAX);
    }
}

/// Ends the session in the core whatever ends it here.
struct Open<'a> {
    lane: &'a Lane,
    session: RelaySession,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.lane.close_session(self.session);
    }
}

/// One stream, from its opening to its end.
async fn session(lane: &Arc<Lane>, has_answered: &mut bool) -> Result<(), BoxError> {
    let began = lane.begin_stream();
    let endpoint = lane.consumer.endpoint()?;
    let channel = lane.consumer.connector.connect(&endpoint).await?;
    let mut client = MessagesClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (frames, outgoing) = mpsc::channel(FRAME_COUNT_MAX);
    let hello = RelayFrame::Hello(Hello {
        source: lane.identity.resource,
        lineage: lane.identity.lineage,
        consumer: lane.consumer.name.clone(),
        mark: lane.mark(),
    });
    frames.send(hello.into()).await?;
    let opening = async {
        let mut incoming = client.deliver(ReceiverStream::new(outgoing)).await?.into_inner();
        match next(&mut incoming).await? {
            Some(InboxFrame::Welcome(welcome)) => Ok::<_, BoxError>((incoming, welcome)),
            _ => Err("the consumer's first frame is no welcome: is this the address of an inbox?".into()),
        }
    };
    let (incoming, welcome) = tokio::time::timeout(WELCOME_TIMEOUT, opening)
        .await
        .map_err(|_| "the consumer did not answer in time")??;
    check(&lane.store, &lane.consumer.name, &welcome)?;
    let Opened { session, orders, end } = lane.open_session(began, &welcome)?;
    let open = Open { lane, session };
    tokio::select! {
        sent = send(open.lane, orders, frames, welcome.takes_cancelled) => sent,
        received = receive(open.lane, session, incoming, has_answered) => received,
        Ok(reason) = end => Err(reason.into()),
    }
}

pub(super) fn another_database(name: &str, welcome: &Welcome, known: ResourceId) -> BoxError {
    format!(
        "`{name}` answers from database {}, and it was {known} before: mend the address, or `synod outbox readmit {name}`",
        welcome.resource
    )
    .into()
}

/// A consumer whose database is another one, or has lost what it confirmed, must not go on as if nothing had happened (T11).
pub(super) fn check(store: &RedbResource, name: &str, welcome: &Welcome) -> Result<(), BoxError> {
    let snapshot = store.snapshot()?;
    let row = row_of(name, &snapshot)?;
    if let Some(known) = row.resource.filter(|known| *known != welcome.resource) {
        return Err(another_database(name, welcome, known));
    }
    // A position is given in the local transaction that makes its message visible: this outbox never gave that one.
    let next = MessageRead(&snapshot).next_position()?;
    if welcome.highest_applied >= next {
        return Err(format!(
            "this outbox has lost messages: `{name}` has applied position {}, and the next one to be given here is {next}; bring its \
             later state back, or publish from a new file",
            welcome.highest_applied
        )
        .into());
    }
    if welcome.mark < row.confirmed {
        return Err(format!(
            "the database of `{name}` has lost messages: it confirmed the low-water mark {}, and knows {} now; bring its later state \
             back, or `synod outbox readmit {name}`: what it lost is not sent again",
            row.confirmed, welcome.mark
        )
        .into());
    }
    // A mark that stands still says nothing of what came since.
    if welcome.highest_applied < row.acknowledged {
        return Err(format!(
            "the database of `{name}` has lost messages: it acknowledged position {}, and the highest that it has is {}; bring its \
             later state back, or `synod outbox readmit {name}`: what it lost is not sent again",
            row.acknowledged, welcome.highest_applied
        )
        .into());
    }
    Ok(())
}

async fn next(incoming: &mut Streaming<v1::InboxFrame>) -> Result<Option<InboxFrame>, BoxError> {
    Ok(match incoming.message().await? {
        None => None,
        Some(frame) => Some(InboxFrame::try_from(frame)?),
    })
}

async fn receive(
    lane: &Lane,
    session: RelaySession,
    mut incoming: Streaming<v1::InboxFrame>,
    has_answered: &mut bool,
) -> Result<(), BoxError> {
    loop {
        let frame = next(&mut incoming).await?;
        *has_answered |= matches!(frame, Some(InboxFrame::Answers(_)));
        match frame {
            None => return Err("the consumer has ended the stream".into()),
            Some(InboxFrame::Answers(answers)) => lane.on_answers(session, answers),
            Some(InboxFrame::LowWaterReached(mark)) => lane.on_low_water_reached(session, mark),
            Some(InboxFrame::Welcome(_)) => return Err("the consumer has sent a second welcome".into()),
        }
    }
}

/// Sends what has gathered while the last frame was on its way, without timers.
async fn send(
    lane: &Lane,
    mut orders: mpsc::UnboundedReceiver<ToSession>,
    frames: mpsc::Sender<v1::RelayFrame>,
    takes_cancelled: bool,
) -> Result<(), BoxError> {
    let mut batch = Vec::new();
    while let Some(order) = orders.recv().await {
        let mut other = None;
        match order {
            ToSession::Send(first) => {
                batch.push(first);
                while batch.len() < DELIVERY_COUNT_MAX && other.is_none() {
                    match orders.try_recv() {
                        Ok(ToSession::Send(send)) => batch.push(send),
                        Ok(order) => other = Some(order),
                        Err(_) => break,
                    }
                }
            }
            order => other = Some(order),
        }
        if !batch.is_empty() {
            let sends = std::mem::take(&mut batch);
            let name = lane.consumer.name.clone();
            // The snapshot is gone when the frames wait for the transport (traps H12).
            let Ready {
                frames: ready,
                dropped,
                cancelled,
                refused,
            } = lane
                .store
                .read(move |snapshot| {
                    let consumer = MessageRead(snapshot).consumer(&name)?;
                    read(&MessageRead(snapshot), consumer.as_ref(), sends, takes_cancelled)
                })
                .await?;
            lane.on_dropped(&dropped);
            lane.on_sent_cancelled(&cancelled);
            lane.on_refused(&refused);
            for frame in ready {
                frames.send(RelayFrame::Deliver(frame).into()).await?;
            }
        }
        match other {
            Some(ToSession::LowWater(low_water)) => {
                frames.send(RelayFrame::LowWater(low_water).into()).await?;
            }
            Some(ToSession::Send(_)) | None => {}
        }
    }
    Ok(())
}

/// What is to be sent, as the store has it now.
#[derive(Default)]
pub(super) struct Ready {
    /// Full, or the last one.
    pub(super) frames: Vec<Vec<Delivery>>,
    /// Dropped for the consumer by name meanwhile.
    pub(super) dropped: Vec<Send>,
    /// Those among the frames' that were cancelled.
    pub(super) cancelled: BTreeSet<Position>,
    /// Those that were cancelled, where the consumer does not know what that is: it would apply them.
    pub(super) refused: Vec<Send>,
}

pub(super) fn read(
    read: &MessageRead<'_>,
    consumer: Option<&ConsumerRow>,
    sends: Vec<Send>,
    takes_cancelled: bool,
) -> Result<Ready, ResourceError> {
    let mut ready = Ready::default();
    let mut frame = Vec::new();
    let mut bytes = 0;
    if let Some(consumer) = consumer {
        ready.cancelled = read.cancelled(consumer.number, sends.iter().map(|send| send.position))?;
    }
    for send in sends {
        let is_own = |message: &MessageRow| {
            consumer.is_some_and(|consumer| consumer.takes(&message.topic, send.position))
        };
        let Some(mut message) = read.message(send.position)?.filter(is_own) else {
            ready.dropped.push(send);
            continue;
        };
        let is_cancelled = ready.cancelled.contains(&send.position);
        if is_cancelled && !takes_cancelled {
            ready.refused.push(send);
            continue;
        }
        if is_cancelled {
            (message.headers, message.body) = Default::default();
        }
        bytes += message.body.len() + message.key.len();
        bytes += message
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>();
        frame.push(Delivery {
            id: message.id,
            position: send.position,
            fence: send.fence,
            attempt: send.attempt,
            previous: send.previous,
            topic: message.topic,
            key: message.key,
            sequence: message.sequence,
            headers: message.headers,
            body: message.body,
            published_at: message.published_at,
            is_cancelled,
        });
        if bytes >= DELIVERY_BYTES_FULL {
            ready.frames.push(std::mem::take(&mut frame));
            bytes = 0;
        }
    }
    if !frame.is_empty() {
        ready.frames.push(frame);
    }
    Ok(ready)
}
