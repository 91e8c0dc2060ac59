//! One stream to one replica: opening it, batching requests into messages without timers, reading answers.

use futures::Stream;
use prost::Message;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use synod_participant_core::session::ConnectionId;
use synod_proto::environment::Connector;
use synod_proto::limits::MESSAGE_BYTES_MAX;
use synod_proto::session::{Request, Response};
use synod_proto::v1::coordinator_client::CoordinatorClient;
use synod_proto::{v1, wire};
use tokio::sync::mpsc;
use tonic::transport::Endpoint;

/// How long a TCP and HTTP/2 connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Finds out that an idle stream's other end has gone, within the sum of the two: a participant only hears deliveries on a live
/// stream, and until then its finished branches hold their locks. A stream that hears anything is not asked; asking costs an
/// idle one two small frames in a second. The timeout is far above the pauses of a replica that lives.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// See [`KEEP_ALIVE_INTERVAL`].
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(1500);

/// What the other end may send before it is read. A burst of deliveries is many small messages.
const WINDOW_BYTES: u32 = 1 << 20;

/// The most requests in one message, and the size at which a message is full. One request more may still be added below
/// that size, and the sum must stay below the limit.
const BATCH_COUNT_MAX: usize = 512;
/// See [`BATCH_COUNT_MAX`].
const BATCH_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;
const _: () = assert!(BATCH_BYTES_MAX + synod_proto::limits::COMMAND_BYTES_MAX + 1024 < MESSAGE_BYTES_MAX);

/// What a stream's task reports.
#[derive(Debug)]
pub(super) struct StreamEvent {
    pub(super) connection: ConnectionId,
    pub(super) what: What,
}

/// See [`StreamEvent`].
#[derive(Debug)]
pub(super) enum What {
    Opened,
    Received(Vec<Received>),
    Lost { reason: String },
}

/// One response, with the address that a redirect names.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) response: Response,
    pub(super) leader: Option<String>,
}

/// The client's end of a replica.
///
/// # Errors
/// The text says what is wrong with the address.
fn replica(address: &str) -> Result<Endpoint, String> {
    Ok(endpoint(address)?
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// The client's end of a long-lived stream; how soon its end is noticed is the caller's to say.
///
/// # Errors
/// The text says what is wrong with the address.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| error.to_string())?;
    let is_complete =
        matches!(endpoint.uri().scheme_str(), Some("http" | "https")) && endpoint.uri().host().is_some();
    if !is_complete {
        return Err("it should look like http://host:port".to_owned());
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES))
}

/// Opens the stream and reads it until it ends. The last event is `Lost`, unless the task is aborted. The stream is
/// closed in good order when the sender of `requests` is dropped.
pub(super) async fn run(
    connector: Connector,
    connection: ConnectionId,
    address: String,
    requests: mpsc::UnboundedReceiver<Request>,
    events: mpsc::Sender<StreamEvent>,
) {
    let reason = match converse(&connector, connection, &address, requests, &events).await {
        Ok(()) => "the replica closed the stream".to_owned(),
        Err(reason) => reason,
    };
    let _driver_is_gone = events
        .send(StreamEvent {
            connection,
            what: What::Lost { reason },
        })
        .await;
}

async fn converse(
    connector: &Connector,
    connection: ConnectionId,
    address: &str,
    requests: mpsc::UnboundedReceiver<Request>,
    events: &mpsc::Sender<StreamEvent>,
) -> Result<(), String> {
    let channel = connector
        .connect(&replica(address)?)
        .await
        .map_err(|error| describe(&error))?;
    let opened = StreamEvent {
        connection,
        what: What::Opened,
    };
    if events.send(opened).await.is_err() {
        return Ok(());
    }
    // The replica may want to read the registration before it answers the call: the body flows from here on.
    let mut client = CoordinatorClient::new(channel).max_decoding_message_size(4 * MESSAGE_BYTES_MAX);
    let mut responses = client
        .session(Batches::new(requests))
        .await
        .map_err(|status| describe(&status))?
        .into_inner();
    while let Some(message) = responses.message().await.map_err(|status| describe(&status))? {
        let received = message.responses.into_iter().filter_map(read).collect();
        if events
            .send(StreamEvent {
                connection,
                what: What::Received(received),
            })
            .await
            .is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

fn read(wire: v1::SessionResponse) -> Option<Received> {
    let leader = match &wire.response {
        Some(v1::session_response::Response::Refused(v1::Refused {
            refusal: Some(refusal),
            ..
        })) => wire::leader_address(refusal).map(str::to_owned),
        _ => None,
    };
    match Response::try_from(wire) {
        Ok(response) => Some(Received { response, leader }),
        // A newer coordinator may say more than this program knows. What it meant is repeated or times out.
        Err(malformed) => {
            tracing::warn!(%malformed, "the coordinator sent something that this version cannot read");
            None
        }
    }
}

/// An error with its sources: tonic's own text often hides the cause.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Puts whatever is queued into one message, whenever the transport has room for one.
struct Batches {
    requests: mpsc::UnboundedReceiver<Request>,
    /// Did not fit into the message before.
    held: Option<v1::SessionRequest>,
}

impl Batches {
    const fn new(requests: mpsc::UnboundedReceiver<Request>) -> Self {
        Self { requests, held: None }
    }
}

impl Stream for Batches {
    type Item = v1::SessionRequests;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut batch: Vec<v1::SessionRequest> = self.held.take().into_iter().collect();
        let mut byte_count: usize = batch.iter().map(Message::encoded_len).sum();
        let is_over = loop {
            if batch.len() >= BATCH_COUNT_MAX {
                break false;
            }
            match self.requests.poll_recv(context) {
                Poll::Ready(Some(request)) => {
                    let request = v1::SessionRequest::from(request);
                    byte_count += request.encoded_len();
                    if byte_count > BATCH_BYTES_MAX && !batch.is_empty() {
                        self.held = Some(request);
                        break false;
                    }
                    batch.push(request);
                }
                Poll::Ready(None) => break true,
                Poll::Pending => break false,
            }
        };
        match (batch.is_empty(), is_over) {
            (false, _) => Poll::Ready(Some(v1::SessionRequests { requests: batch })),
            (true, true) => Poll::Ready(None),
            (true, false) => Poll::Pending,
        }
    }
}
