//! One session: a task that reads the client's messages, and the stream that the connection pulls responses from.

use super::{Addresses, shutting_down};
use crate::sessions::{Admitted, Outbox, Responses, SessionEvent, UNANSWERED_COUNT_MAX, outbox};
use prost::Message as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use synod_proto::ids::{RequestId, SessionId};
use synod_proto::session::{Refusal, Request, Response, TransactionSummary};
use synod_proto::{v1, wire};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

/// The most responses in one message. Deliveries and decisions are tens of bytes, so a message stays far below the
/// 4 MiB that gRPC clients take by default.
const BATCH_COUNT_MAX: usize = 1_024;

/// The most bytes of one page of a list.
pub(super) const PAGE_BYTES_MAX: usize = 2 << 20;

/// Opens a session: its reader runs until the client, this replica or the driver ends it.
pub(super) async fn open(
    session: SessionId,
    requests: Streaming<v1::SessionRequests>,
    events: &mpsc::Sender<SessionEvent>,
    addresses: Addresses,
    place: OwnedSemaphorePermit,
) -> Result<ResponseStream, Status> {
    let (outbox, responses) = outbox();
    events
        .send(SessionEvent::Opened(session, outbox.clone()))
        .await
        .map_err(|_| shutting_down())?;
    tokio::spawn(read(session, requests, events.clone(), outbox, place));
    Ok(ResponseStream {
        responses,
        buffer: Vec::new(),
        addresses,
    })
}

async fn read(
    session: SessionId,
    mut messages: Streaming<v1::SessionRequests>,
    events: mpsc::Sender<SessionEvent>,
    outbox: Outbox,
    _place: OwnedSemaphorePermit,
) {
    loop {
        let message = tokio::select! {
            message = messages.message() => message,
            () = outbox.closed() => break,
        };
        let batch = match message {
            Ok(Some(batch)) => batch,
            Ok(None) => break,
            Err(status) => {
                // A message that is too large or is no protobuf ends here, with tonic's words for it; so does a
                // connection that broke, where nobody reads them.
                outbox.close(status);
                break;
            }
        };
        let mut requests = Vec::with_capacity(batch.requests.len());
        for wire in batch.requests {
            match admit(wire, &outbox) {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => {}
                Err(status) => outbox.close(status),
            }
        }
        // Waits while the driver is behind; flow control passes that on to the client.
        if !requests.is_empty()
            && events
                .send(SessionEvent::Requests(session, requests))
                .await
                .is_err()
        {
            outbox.close(shutting_down());
            return;
        }
    }
    let _ = events.send(SessionEvent::Closed(session)).await;
}

/// Reads one request and counts it; what cannot enter is refused by its number. One without a number that cannot be
/// read ends the session: there is no other way to tell its sender.
fn admit(wire: v1::SessionRequest, outbox: &Outbox) -> Result<Option<Request>, Status> {
    let number = wire::request_number(&wire);
    let request = match Request::try_from(wire) {
        Ok(request) => request,
        Err(malformed) => {
            let Some(number) = number else {
                return Err(Status::invalid_argument(malformed.to_string()));
            };
            refuse(outbox, number, malformed.into());
            return Ok(None);
        }
    };
    match number {
        Some(number) if outbox.admit() == Admitted::Full => {
            let what = format!("{UNANSWERED_COUNT_MAX} requests of this session wait for an answer");
            refuse(outbox, number, Refusal::Overloaded { what });
            Ok(None)
        }
        _ => Ok(Some(request)),
    }
}

fn refuse(outbox: &Outbox, request: RequestId, refusal: Refusal) {
    outbox.refuse(Response::Refused { request, refusal });
}

/// The session's responses: whatever is queued leaves as one message, without timers.
#[derive(Debug)]
pub(crate) struct ResponseStream {
    responses: Responses,
    buffer: Vec<Response>,
    addresses: Addresses,
}

impl Stream for ResponseStream {
    type Item = Result<v1::SessionResponses, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.buffer.is_empty() {
            let count = ready!(this.responses.poll_many(cx, &mut this.buffer, BATCH_COUNT_MAX));
            if count == 0 {
                return Poll::Ready(this.responses.closing().map(Err));
            }
        }
        // Pages are large and travel alone; everything else is small and travels together.
        let count = this
            .buffer
            .iter()
            .position(is_page)
            .unwrap_or(this.buffer.len())
            .max(1);
        let addresses = &this.addresses;
        let responses = this
            .buffer
            .drain(..count)
            .map(|response| wire::response(fit(response), |replica| addresses.get(&replica).cloned()))
            .collect();
        Poll::Ready(Some(Ok(v1::SessionResponses { responses })))
    }
}

fn is_page(response: &Response) -> bool {
    matches!(response, Response::Listed { .. } | Response::ListedInDoubt { .. })
}

fn fit(mut response: Response) -> Response {
    if let Response::Listed { transactions, .. } = &mut response {
        fit_page(transactions);
    }
    response
}

/// Cuts a page to what a client takes by default. A page may be shorter than was asked for; the next one begins after
/// its last gtid, and an empty page is the end.
pub(super) fn fit_page(transactions: &mut Vec<TransactionSummary>) {
    let mut bytes = 0;
    let fitting = transactions
        .iter()
        .take_while(|summary| {
            bytes += v1::TransactionSummary::from((*summary).clone()).encoded_len();
            bytes <= PAGE_BYTES_MAX
        })
        .count();
    // One transaction always fits: its branches and texts are limited.
    transactions.truncate(fitting.max(1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::Sessions;
    use std::sync::Arc;
    use synod_coordinator_core::effects::Told;
    use synod_proto::ids::{Gtid, Lineage, ReplicaId, UnixMillis};
    use synod_proto::session::TransactionStatus;
    use tokio_stream::StreamExt as _;

    fn stream() -> (Sessions, ResponseStream) {
        let (outbox, responses) = outbox();
        let mut sessions = Sessions::default();
        sessions.open(SessionId(1), outbox);
        let addresses = Arc::new([(ReplicaId(2), "b:7401".to_owned())].into());
        (
            sessions,
            ResponseStream {
                responses,
                buffer: Vec::new(),
                addresses,
            },
        )
    }

    fn numbers(message: Option<Result<v1::SessionResponses, Status>>) -> Vec<String> {
        let responses = message.expect("a message").expect("no status").responses;
        responses
            .into_iter()
            .map(|response| format!("{:?}", response.response.expect("a response")))
            .collect()
    }

    /// What is queued leaves as one message; a page leaves alone; the end carries the reason.
    #[tokio::test]
    async fn queued_responses_leave_together_and_pages_alone() {
        let (mut sessions, mut stream) = stream();
        let session = SessionId(1);
        let registered = |request| Response::Registered {
            request: RequestId(request),
            lineage: Lineage([1; 16]),
        };
        let listed = |request| Response::Listed {
            request: RequestId(request),
            transactions: Vec::new(),
        };
        for response in [registered(1), registered(2), listed(3), registered(4)] {
            sessions.tell(Told { session, response });
        }
        sessions.flush();
        assert_eq!(numbers(stream.next().await).len(), 2);
        assert_eq!(
            numbers(stream.next().await),
            ["Listed(Listed { request: 3, transactions: [] })"]
        );
        assert_eq!(numbers(stream.next().await).len(), 1);
        let leader = Refusal::NotLeader {
            leader: Some(ReplicaId(2)),
        };
        sessions.tell(Told {
            session,
            response: Response::Refused {
                request: RequestId(5),
                refusal: leader,
            },
        });
        sessions.flush();
        let refused = numbers(stream.next().await);
        assert!(refused[0].contains("address: \"b:7401\""), "{refused:?}");
        sessions.close_all(&shutting_down());
        let end = stream.next().await.expect("the reason").expect_err("a status");
        assert_eq!(end.code(), tonic::Code::Unavailable);
    }

    #[test]
    fn a_page_is_cut_to_what_a_client_takes() {
        let text = "x".repeat(512);
        let cause = synod_proto::session::AbortCause::new(synod_proto::session::AbortKind::Operator, text);
        let summary = |n: u16| {
            let mut random = [0; 10];
            random[8..].copy_from_slice(&n.to_be_bytes());
            let gtid = Gtid::new(UnixMillis(1), random);
            let status = TransactionStatus::Aborted(cause.clone());
            TransactionSummary {
                gtid,
                status,
                decided_at: UnixMillis(2),
            }
        };
        let mut page: Vec<_> = (0..5_000).map(summary).collect();
        let all = page.clone();
        fit_page(&mut page);
        assert!(page.len() < all.len() && page[..] == all[..page.len()]);
        let bytes: usize = page
            .iter()
            .map(|s| v1::TransactionSummary::from(s.clone()).encoded_len())
            .sum();
        assert!(bytes <= PAGE_BYTES_MAX && bytes > PAGE_BYTES_MAX - 1_024);
    }
}
