//! Sessions: the queues between the gRPC services and the driver.
//!
//! A session is a participant's stream, or one unary call for as long as it lasts. Its requests go to the driver
//! through one channel that all share; its responses come back through a queue of its own. Both are bounded (A20).
//! A session whose queue of responses is full is closed: its client does not read, and what it misses it is told
//! again when it returns (deliveries are repeated by the core, requests by the client).

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use synod_coordinator_core::effects::Told;
use synod_proto::ids::SessionId;
use synod_proto::session::{Request, Response};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::driver::ReplicaStatus;

/// The most requests of one session that wait for an answer. Above, the session is told `Overloaded`: one process does
/// not crowd out the others.
pub(crate) const UNANSWERED_COUNT_MAX: usize = 16_384;

/// The most responses that wait for one client to read them: every answer that it may be waiting for, and as many
/// deliveries again.
const OUTBOX_COUNT_MAX: usize = 2 * UNANSWERED_COUNT_MAX;

/// What the services tell the driver.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// A session begins. Always the first event of its id.
    Opened(SessionId, Outbox),
    /// Requests of one session, in its order.
    Requests(SessionId, Vec<Request>),
    /// It ended. Always the last event of its id.
    Closed(SessionId),
    /// "How are you?"
    Status(oneshot::Sender<ReplicaStatus>),
}

/// The driver's end of one session.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    /// What one step of the driver told the session, as one: a message to another task is the unit of cost.
    responses: mpsc::UnboundedSender<Vec<Response>>,
    shared: Arc<Shared>,
}

/// The client's end: what its stream or call reads.
#[derive(Debug)]
pub(crate) struct Responses {
    responses: mpsc::UnboundedReceiver<Vec<Response>>,
    ready: VecDeque<Response>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    unanswered_count: AtomicUsize,
    /// Responses that the client has not taken: what bounds the queue.
    unread_count: AtomicUsize,
    /// Why the session was closed, where somebody said so. The first to say it is heard.
    closing: OnceLock<Status>,
    closed: CancellationToken,
}

/// Makes the two ends of a session's queue of responses.
pub(crate) fn outbox() -> (Outbox, Responses) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared::default());
    (
        Outbox {
            responses: sender,
            shared: shared.clone(),
        },
        Responses {
            responses: receiver,
            ready: VecDeque::new(),
            shared,
        },
    )
}

impl Outbox {
    /// Closes the session: what is queued is still read, then `status`.
    pub(crate) fn close(&self, status: Status) {
        let _ = self.shared.closing.set(status);
        self.shared.closed.cancel();
    }

    /// Resolves once somebody closed the session.
    pub(crate) async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }

    /// Counts a request that will be answered, if there is room for it.
    pub(crate) fn admit(&self) -> Admitted {
        // Only the session's own reader counts up, so the bound holds without a loop.
        if self.shared.unanswered_count.load(Ordering::Relaxed) >= UNANSWERED_COUNT_MAX {
            return Admitted::Full;
        }
        self.shared.unanswered_count.fetch_add(1, Ordering::Relaxed);
        Admitted::Yes
    }

    /// Queues a response that answers no counted request.
    pub(crate) fn refuse(&self, response: Response) {
        self.queue(vec![response]);
    }

    fn queue(&self, mut responses: Vec<Response>) {
        let unread = self.shared.unread_count.load(Ordering::Relaxed);
        let room = OUTBOX_COUNT_MAX.saturating_sub(unread);
        let is_full = responses.len() > room;
        responses.truncate(room);
        if !responses.is_empty() {
            // Counted before the other end can take it off again. A reader that has gone needs nothing.
            self.shared
                .unread_count
                .fetch_add(responses.len(), Ordering::Relaxed);
            let _ = self.responses.send(responses);
        }
        if is_full {
            self.close(Status::resource_exhausted(format!(
                "the client left {OUTBOX_COUNT_MAX} responses unread; open a new session and read it"
            )));
        }
    }
}

/// Whether a request may enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    Yes,
    Full,
}

impl Responses {
    /// Takes what is queued, up to `count_max`, after what lies in `buffer`. Zero when the session is closed and
    /// everything was read.
    pub(crate) fn poll_many(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<Response>,
        count_max: usize,
    ) -> Poll<usize> {
        if !ready!(self.poll_ready(cx)) {
            return Poll::Ready(0);
        }
        while self.ready.len() < count_max
            && let Ok(more) = self.responses.try_recv()
        {
            self.ready.extend(more);
        }
        let count = count_max.min(self.ready.len());
        buffer.extend(self.ready.drain(..count));
        self.shared.unread_count.fetch_sub(count, Ordering::Relaxed);
        Poll::Ready(count)
    }

    /// Whether there is something to read; `false` at the end.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.ready.is_empty() {
            match ready!(self.responses.poll_recv(cx)) {
                Some(responses) => self.ready.extend(responses),
                None => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }

    /// Why the session was closed, if somebody said so.
    pub(crate) fn closing(&self) -> Option<Status> {
        self.shared.closing.get().cloned()
    }
}

impl Stream for Responses {
    type Item = Response;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Response>> {
        if !ready!(self.poll_ready(cx)) {
            return Poll::Ready(None);
        }
        self.shared.unread_count.fetch_sub(1, Ordering::Relaxed);
        Poll::Ready(self.ready.pop_front())
    }
}

/// Whether a response answers a counted request.
fn is_answer(response: &Response) -> bool {
    match response {
        Response::Registered { .. }
        | Response::Decided { .. }
        | Response::Status { .. }
        | Response::Delivered { .. }
        | Response::Listed { .. }
        | Response::ListedInDoubt { .. }
        | Response::Refused { .. } => true,
        Response::Answered { .. }
        | Response::Deliver { .. }
        | Response::Prepare { .. }
        | Response::LowWater { .. } => false,
    }
}

/// The driver's sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: BTreeMap<SessionId, Open>,
    /// The sessions that were told something since the last [`flush`](Self::flush).
    told: Vec<SessionId>,
}

#[derive(Debug)]
struct Open {
    outbox: Outbox,
    pending: Vec<Response>,
}

impl Sessions {
    pub(crate) fn open(&mut self, session: SessionId, outbox: Outbox) {
        let open = Open {
            outbox,
            pending: Vec::new(),
        };
        self.open.insert(session, open);
    }

    /// Forgets a session. What it was told is still read by its client.
    pub(crate) fn close(&mut self, session: SessionId) {
        if let Some(mut open) = self.open.remove(&session) {
            open.flush();
        }
    }

    /// Ends a session from this side: what is queued is still read, then `status`.
    pub(crate) fn end(&mut self, session: SessionId, status: Status) {
        if let Some(mut open) = self.open.remove(&session) {
            open.flush();
            open.outbox.close(status);
        }
    }

    /// Ends all of them, with a reason.
    pub(crate) fn close_all(&mut self, status: &Status) {
        for mut open in std::mem::take(&mut self.open).into_values() {
            open.flush();
            open.outbox.close(status.clone());
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.open.len()
    }

    /// Tells a session something, with the next [`flush`](Self::flush). One that has gone is told nothing: nobody waits.
    pub(crate) fn tell(&mut self, told: Told) {
        let Some(open) = self.open.get_mut(&told.session) else {
            return;
        };
        if open.pending.is_empty() {
            self.told.push(told.session);
        }
        open.pending.push(told.response);
    }

    /// Hands over what the sessions were told.
    pub(crate) fn flush(&mut self) {
        for session in self.told.drain(..) {
            if let Some(open) = self.open.get_mut(&session) {
                open.flush();
            }
        }
    }
}

impl Open {
    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let responses = std::mem::take(&mut self.pending);
        let answer_count = responses.iter().filter(|response| is_answer(response)).count();
        // A second answer to one request would be a bug in the core; it must not make the count wrap.
        let count = &self.outbox.shared.unanswered_count;
        let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            Some(count.saturating_sub(answer_count))
        });
        self.outbox.queue(responses);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use synod_proto::ids::{Lineage, RequestId};

    fn registered(request: u64) -> Response {
        Response::Registered {
            request: RequestId(request),
            lineage: Lineage([1; 16]),
        }
    }

    /// A20: a client that never reads costs a bounded queue, and is told why it was closed.
    #[tokio::test]
    async fn a_client_that_does_not_read_is_closed() {
        let mut sessions = Sessions::default();
        let (outbox, mut responses) = outbox();
        let session = SessionId(1);
        sessions.open(session, outbox.clone());
        for request in 0..=OUTBOX_COUNT_MAX as u64 {
            sessions.tell(Told {
                session,
                response: registered(request),
            });
            sessions.flush();
        }
        outbox.closed().await;
        let closing = responses.closing().expect("a reason");
        assert_eq!(closing.code(), tonic::Code::ResourceExhausted);
        let mut buffer = Vec::new();
        let count = std::future::poll_fn(|cx| responses.poll_many(cx, &mut buffer, 1)).await;
        assert_eq!(
            (count, buffer),
            (1, vec![registered(0)]),
            "what was queued before is still read"
        );
    }

    /// A20: the requests of one session that wait for an answer are bounded, and answers make room.
    #[test]
    fn unanswered_requests_are_bounded() {
        let mut sessions = Sessions::default();
        let (outbox, _responses) = outbox();
        let session = SessionId(1);
        sessions.open(session, outbox.clone());
        for _ in 0..UNANSWERED_COUNT_MAX {
            assert_eq!(outbox.admit(), Admitted::Yes);
        }
        assert_eq!(outbox.admit(), Admitted::Full);
        sessions.tell(Told {
            session,
            response: registered(1),
        });
        sessions.flush();
        assert_eq!(outbox.admit(), Admitted::Yes);
        assert_eq!(outbox.admit(), Admitted::Full);
    }
}
