//! The sending side of a link: connects, introduces itself, sends what the driver queues, and tries again for ever.

use super::wire;
use super::{Identity, LinkEvent, Refused};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use synod_coordinator_core::paxos::Message;
use synod_proto::environment::Connector;
use synod_proto::ids::ReplicaId;
use synod_proto::v1;
use synod_proto::v1::replication_client::ReplicationClient;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::Stream;
use tonic::transport::Endpoint;

/// The first wait after a failed attempt. Short: on a local network a peer that was restarted is back at once.
const BACKOFF_MS_MIN: u64 = 50;
/// The longest wait between two attempts: a peer that comes back is heard of within about a second.
const BACKOFF_MS_MAX: u64 = 1_000;
/// How long connecting and greeting may each take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a silent connection is probed, and how long the probe may take: a peer that vanished without a word
/// blocks the queue no longer than their sum.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// The most messages, and bytes of entries, that wait for one peer. A peer that is this far behind catches up.
const QUEUE_COUNT_MAX: usize = 8_192;
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// What one gRPC message carries at most; a single larger entry still travels alone.
const BATCH_COUNT_MAX: usize = 1_024;
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Flow-control window of a link, in bytes: several batches may be on their way.
pub(super) const WINDOW_BYTES: u32 = 16 << 20;

const _: () = assert!(BATCH_BYTES_MAX * 2 < super::LINK_MESSAGE_BYTES_MAX);

/// The driver's end of one link. Lives as long as the connection.
#[derive(Clone, Debug)]
pub(crate) struct LinkSender {
    queue: mpsc::Sender<Message>,
    queued_bytes: Arc<AtomicUsize>,
}

impl LinkSender {
    fn new() -> (Self, Outgoing) {
        let (queue, messages) = mpsc::channel(QUEUE_COUNT_MAX);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let sender = Self {
            queue,
            queued_bytes: queued_bytes.clone(),
        };
        (
            sender,
            Outgoing {
                greeting: None,
                messages,
                queued_bytes,
                waiting: Vec::new(),
            },
        )
    }

    /// Queues a message, or drops it if the peer is too far behind or the connection is gone.
    pub(crate) fn send(&self, message: Message) -> Sent {
        let bytes = value_bytes(&message);
        // An empty queue takes a message of any size: otherwise a large promise could never leave.
        let queued = self.queued_bytes.load(Ordering::Relaxed);
        if queued > 0 && queued + bytes > QUEUE_BYTES_MAX {
            return Sent::Dropped;
        }
        // Counted before the other end can take it off again.
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.queue.try_send(message).is_err() {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Sent::Dropped;
        }
        Sent::Queued
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Queued,
    Dropped,
}

fn value_bytes(message: &Message) -> usize {
    match message {
        Message::Accept { value, .. } => value.len(),
        Message::Promise { accepted, .. } => accepted.iter().map(|accepted| accepted.value.len()).sum(),
        Message::Decided { values, .. } => values.iter().map(bytes::Bytes::len).sum(),
        _ => 0,
    }
}

/// The stream that the connection pulls from: the greeting, then whatever is queued, as one message each time.
struct Outgoing {
    greeting: Option<v1::LinkMessage>,
    messages: mpsc::Receiver<Message>,
    queued_bytes: Arc<AtomicUsize>,
    /// Taken from the queue, but too much for the message before. In reverse order.
    waiting: Vec<Message>,
}

impl Stream for Outgoing {
    type Item = v1::LinkMessage;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(greeting) = self.greeting.take() {
            return Poll::Ready(Some(greeting));
        }
        let this = &mut *self;
        if this.waiting.is_empty() {
            if ready!(
                this.messages
                    .poll_recv_many(cx, &mut this.waiting, BATCH_COUNT_MAX)
            ) == 0
            {
                return Poll::Ready(None);
            }
            this.waiting.reverse();
        }
        let mut messages = Vec::with_capacity(this.waiting.len());
        let mut batch_bytes = 0;
        while let Some(message) = this.waiting.pop() {
            let bytes = value_bytes(&message);
            if !messages.is_empty() && batch_bytes + bytes > BATCH_BYTES_MAX {
                this.waiting.push(message);
                break;
            }
            batch_bytes += bytes;
            messages.push(wire::from_message(message));
        }
        this.queued_bytes.fetch_sub(batch_bytes, Ordering::Relaxed);
        let envelopes = v1::Envelopes { messages };
        Poll::Ready(Some(v1::LinkMessage {
            message: Some(v1::link_message::Message::Envelopes(envelopes)),
        }))
    }
}

/// Why a link does not stand.
#[derive(Debug)]
enum LinkError {
    Connect(tonic::transport::Error),
    Status(Box<tonic::Status>),
    Refused(Refused),
    Late,
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => {
                // tonic's own text is "transport error"; what happened is in its sources.
                let mut cause: &dyn std::error::Error = error;
                while let Some(source) = cause.source() {
                    cause = source;
                }
                write!(f, "cannot connect: {cause}")
            }
            Self::Status(status) => f.write_str(status.message()),
            Self::Refused(refused) => refused.fmt(f),
            Self::Late => write!(f, "no answer within {} ms", CONNECT_TIMEOUT.as_millis()),
        }
    }
}

/// Keeps a stream to `peer`, until the driver is gone.
pub(crate) async fn keep_link(
    identity: Identity,
    connector: Connector,
    peer: ReplicaId,
    address: String,
    events: mpsc::Sender<LinkEvent>,
) {
    let mut backoff_ms = BACKOFF_MS_MIN;
    // Written once per change, so that a peer that is down for an hour is one line in the trace.
    let mut told = String::new();
    loop {
        match connect(&identity, &connector, peer, &address).await {
            Ok((sender, mut answers)) => {
                backoff_ms = BACKOFF_MS_MIN;
                told.clear();
                tracing::info!(%peer, %address, "connected to a peer");
                if events.send(LinkEvent::Connected(peer, sender)).await.is_err() {
                    return;
                }
                // The peer says nothing more: this waits for the connection's end.
                let end = loop {
                    match answers.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => break "closed by the peer".to_owned(),
                        Err(status) => break status.message().to_owned(),
                    }
                };
                tracing::info!(%peer, %address, reason = %end, "lost the connection to a peer");
                if events.send(LinkEvent::Disconnected(peer)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let text = error.to_string();
                if text != told {
                    tracing::warn!(%peer, %address, reason = %text, "no connection to a peer; trying on");
                    told = text;
                }
                if matches!(error, LinkError::Refused(_)) {
                    backoff_ms = BACKOFF_MS_MAX;
                }
            }
        }
        if events.is_closed() {
            return;
        }
        sleep(Duration::from_millis(jittered(backoff_ms))).await;
        backoff_ms = (backoff_ms * 2).min(BACKOFF_MS_MAX);
    }
}

/// Between half of it and all of it, so that replicas that failed together do not return together.
fn jittered(backoff_ms: u64) -> u64 {
    let random = getrandom::u32().unwrap_or_default();
    backoff_ms / 2 + u64::from(random) % (backoff_ms / 2 + 1)
}

async fn connect(
    identity: &Identity,
    connector: &Connector,
    peer: ReplicaId,
    address: &str,
) -> Result<(LinkSender, tonic::Streaming<v1::LinkMessage>), LinkError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(LinkError::Connect)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let channel = timeout(CONNECT_TIMEOUT, connector.connect(&endpoint))
        .await
        .map_err(|_| LinkError::Late)?;
    let mut client = ReplicationClient::new(channel.map_err(LinkError::Connect)?)
        .max_decoding_message_size(super::LINK_MESSAGE_BYTES_MAX);
    let (sender, mut outgoing) = LinkSender::new();
    outgoing.greeting = Some(identity.greeting(peer));
    let greet = async {
        let mut answers = client.link(outgoing).await?.into_inner();
        let first = answers.message().await?;
        Ok::<_, tonic::Status>((answers, first))
    };
    let (answers, first) = timeout(CONNECT_TIMEOUT, greet)
        .await
        .map_err(|_| LinkError::Late)?
        .map_err(|status| LinkError::Status(Box::new(status)))?;
    identity.check(first, Some(peer)).map_err(LinkError::Refused)?;
    Ok((sender, answers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use synod_coordinator_core::paxos::{Ballot, Slot};
    use tokio_stream::StreamExt as _;

    fn accept(slot: u64, bytes: usize) -> Message {
        let value = Bytes::from(vec![7; bytes]);
        Message::Accept {
            ballot: Ballot::ZERO,
            slot: Slot(slot),
            value,
            decided_up_to: Slot::ZERO,
        }
    }

    fn slots(message: Option<v1::LinkMessage>) -> Vec<u64> {
        let Some(v1::link_message::Message::Envelopes(envelopes)) =
            message.and_then(|message| message.message)
        else {
            panic!("no envelopes");
        };
        let slot = |message: v1::PaxosMessage| match wire::to_message(message) {
            Ok(Message::Accept { slot, .. }) => slot.0,
            other => panic!("{other:?}"),
        };
        envelopes.messages.into_iter().map(slot).collect()
    }

    /// What is queued leaves as one message, in order; too much leaves as several.
    #[tokio::test]
    async fn queued_messages_leave_together_within_the_limit() {
        let (sender, mut outgoing) = LinkSender::new();
        for slot in 1..=3 {
            assert_eq!(sender.send(accept(slot, 10)), Sent::Queued);
        }
        assert_eq!(slots(outgoing.next().await), [1, 2, 3]);
        for slot in 4..=6 {
            assert_eq!(sender.send(accept(slot, BATCH_BYTES_MAX / 2 + 1)), Sent::Queued);
        }
        assert_eq!(slots(outgoing.next().await), [4]);
        assert_eq!(slots(outgoing.next().await), [5]);
        assert_eq!(slots(outgoing.next().await), [6]);
        assert_eq!(sender.queued_bytes.load(Ordering::Relaxed), 0);
    }

    /// A20: a peer that does not read costs a bounded amount of memory; a single large message still fits.
    #[tokio::test]
    async fn a_full_queue_drops_what_comes_next() {
        let (sender, outgoing) = LinkSender::new();
        assert_eq!(sender.send(accept(1, QUEUE_BYTES_MAX + 1)), Sent::Queued);
        assert_eq!(sender.send(accept(2, 1)), Sent::Dropped);
        drop(outgoing);
        let (sender, outgoing) = LinkSender::new();
        for _ in 0..QUEUE_COUNT_MAX {
            assert_eq!(sender.send(accept(1, 0)), Sent::Queued);
        }
        assert_eq!(sender.send(accept(1, 0)), Sent::Dropped);
        drop(outgoing);
        assert_eq!(sender.send(accept(1, 0)), Sent::Dropped);
    }
}
