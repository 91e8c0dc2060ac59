//! The reading side of a link: the gRPC service `Replication`.

use super::wire;
use super::{Identity, LinkEvent};
use std::time::Duration;
use synod_coordinator_core::paxos::Envelope;
use synod_proto::ids::ReplicaId;
use synod_proto::v1;
use synod_proto::v1::replication_server::Replication;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// How long a caller may take to say who it is.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes links from peers and hands their messages to the driver.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    identity: Identity,
    events: mpsc::Sender<LinkEvent>,
    shutdown: CancellationToken,
}

impl Incoming {
    pub(crate) fn new(
        identity: Identity,
        events: mpsc::Sender<LinkEvent>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            identity,
            events,
            shutdown,
        }
    }
}

#[tonic::async_trait]
impl Replication for Incoming {
    type LinkStream = ReceiverStream<Result<v1::LinkMessage, Status>>;

    async fn link(
        &self,
        request: Request<Streaming<v1::LinkMessage>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let caller = request.remote_addr();
        let mut messages = request.into_inner();
        let first = timeout(GREETING_TIMEOUT, messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no greeting came"))??;
        let from = self.identity.check(first, None).map_err(|refused| {
            tracing::warn!(?caller, reason = %refused, "refused a link");
            Status::failed_precondition(refused.to_string())
        })?;
        // Room for the greeting and for one closing status.
        let (answers, stream) = mpsc::channel(2);
        answers
            .try_send(Ok(self.identity.greeting(from)))
            .expect("the channel is new");
        tokio::spawn(self.clone().read(from, messages, answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Incoming {
    /// Reads until the peer, this replica, or the connection ends.
    async fn read(
        self,
        from: ReplicaId,
        mut messages: Streaming<v1::LinkMessage>,
        answers: mpsc::Sender<Result<v1::LinkMessage, Status>>,
    ) {
        loop {
            let message = tokio::select! {
                message = messages.message() => message,
                () = self.shutdown.cancelled() => return,
            };
            let envelopes = match message {
                Ok(Some(message)) => match self.envelopes(from, message) {
                    Ok(envelopes) => envelopes,
                    Err(malformed) => {
                        tracing::warn!(peer = %from, reason = %malformed, "closed a link");
                        let _ = answers.try_send(Err(Status::invalid_argument(malformed.to_string())));
                        return;
                    }
                },
                Ok(None) => return,
                Err(status) => {
                    tracing::debug!(peer = %from, %status, "a link from a peer broke");
                    return;
                }
            };
            // Waits while the driver is behind: the peer's window closes, its queue fills, and then it drops.
            if self.events.send(LinkEvent::Envelopes(envelopes)).await.is_err() {
                return;
            }
        }
    }

    fn envelopes(&self, from: ReplicaId, message: v1::LinkMessage) -> Result<Vec<Envelope>, wire::Malformed> {
        let Some(v1::link_message::Message::Envelopes(envelopes)) = message.message else {
            return Ok(Vec::new());
        };
        let to = self.identity.replica;
        let envelope = |message| {
            Ok(Envelope {
                from,
                to,
                message: wire::to_message(message)?,
            })
        };
        envelopes.messages.into_iter().map(envelope).collect()
    }
}
