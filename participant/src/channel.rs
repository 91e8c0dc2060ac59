//! The caller's side of a business call (step 2 of a transaction): a tower service around the user's own
//! channel that puts the context on every request and collects the votes of every reply.
//!
//! A call counts as answered only when its reply ended well: the votes are in the headers, but a reply that
//! breaks off behind them is a failed call for the user, and so for the transaction (T4).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame};
use synod_participant_core::transaction::Reply;
use synod_proto::ids::CallId;
use tonic::{Code, Status};
use tower::Service;

use crate::context::{CALL_KEY, binary, take_votes, write_context};
use crate::error::{BoxError, write_call};
use crate::scope::{OpenCall, Scope};

/// A channel bound to a global transaction: hand it to a generated client, or let
/// [`Transaction::client`](crate::Transaction::client) do so.
///
/// Every call through it runs under the transaction, and is answered for by it (T4): a call that fails, is
/// dropped, or whose reply carries no vote dooms the transaction, unless it is discarded by name
/// ([`call_id`]). The server's method must be transactional; use the plain channel for all others.
///
/// Retries and hedging belong *below* it, in the channel that it wraps: there they are several executions of
/// one call, of which one counts (T2). Streaming calls cannot take part: a reply of more than one message
/// dooms.
///
/// Calls are bounded by the transaction's deadline, in the header `grpc-timeout`, unless the request brings
/// its own.
#[derive(Clone, Debug)]
pub struct BoundChannel<S> {
    inner: S,
    scope: Arc<Scope>,
}

impl<S> BoundChannel<S> {
    pub(crate) fn new(inner: S, scope: Arc<Scope>) -> Self {
        Self { inner, scope }
    }
}

/// The id of the call that this reply answers, or that failed with this status; for
/// [`Transaction::discard`](crate::Transaction::discard). `None` if it was not made through a
/// [`BoundChannel`].
///
/// Takes the metadata of a `tonic::Response` or a `tonic::Status`.
#[must_use]
pub fn call_id(metadata: &tonic::metadata::MetadataMap) -> Option<CallId> {
    let bytes = metadata.get_bin(CALL_KEY)?.to_bytes().ok()?;
    Some(CallId(u64::from_be_bytes(bytes.as_ref().try_into().ok()?)))
}

impl<S, B> Service<http::Request<tonic::body::Body>> for BoundChannel<S>
where
    S: Service<http::Request<tonic::body::Body>, Response = http::Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = http::Response<ReplyBody<B>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: http::Request<tonic::body::Body>) -> Self::Future {
        let call = match self.scope.open_call(request.uri().path()) {
            Ok(call) => call,
            Err(refused) => {
                let status = Status::failed_precondition(refused.to_string());
                return Box::pin(std::future::ready(Err(status.into())));
            }
        };
        write_context(&call.context(), request.headers_mut());
        request
            .headers_mut()
            .entry(HeaderName::from_static("grpc-timeout"))
            .or_insert_with(|| grpc_timeout(self.scope.remaining()));
        let reply = self.inner.call(request);
        Box::pin(async move {
            match reply.await {
                Ok(response) => Ok(on_headers(call, response)),
                Err(error) => {
                    let mut status = Status::from_error(error.into());
                    let id = call.id();
                    call.fail(&status, None);
                    write_call(&mut status, id);
                    Err(status.into())
                }
            }
        })
    }
}

/// The time left, in the header's form: at most 8 digits and a unit.
fn grpc_timeout(remaining: Duration) -> HeaderValue {
    let millis = remaining.as_millis().min(99_999_999);
    HeaderValue::from_str(&format!("{millis}m")).expect("digits and a letter are a valid header value")
}

fn on_headers<B>(call: OpenCall, mut response: http::Response<B>) -> http::Response<ReplyBody<B>> {
    let id = call.id();
    let votes = take_votes(response.headers_mut());
    let early_status = Status::from_header_map(response.headers());
    response
        .headers_mut()
        .insert(CALL_KEY, binary(&id.0.to_be_bytes()));
    let pending = match (votes, early_status) {
        (Err(malformed), _) => {
            call.fail(&Status::internal(malformed.to_string()), None);
            None
        }
        // A reply without a message: an error, or no unary reply at all.
        (Ok(votes), Some(status)) => {
            call.fail(&status, votes);
            None
        }
        (Ok(votes), None) => Some(Pending { call, votes }),
    };
    response.map(|inner| ReplyBody {
        inner: Box::pin(inner),
        pending,
        messages: MessageCounter::default(),
    })
}

/// A reply that has begun well and not ended yet. Dropping it fails the call.
#[derive(Debug)]
struct Pending {
    call: OpenCall,
    votes: Option<Reply>,
}

const NO_VOTE: &str =
    "the reply carries no vote: the method is not transactional, or its server lacks `participant.layer()`";

/// The body of a reply on a [`BoundChannel`]: hands the user's message through, and settles the call at its
/// end.
#[derive(Debug)]
pub struct ReplyBody<B> {
    inner: Pin<Box<B>>,
    pending: Option<Pending>,
    messages: MessageCounter,
}

impl<B> ReplyBody<B> {
    fn on_trailers(&mut self, trailers: &HeaderMap) {
        let Some(Pending { call, votes }) = self.pending.take() else {
            return;
        };
        match (Status::from_header_map(trailers), votes) {
            (Some(status), Some(votes)) if status.code() == Code::Ok && self.messages.count == 1 => {
                call.answer(votes);
            }
            (Some(status), None) if status.code() == Code::Ok => {
                call.fail(&Status::failed_precondition(NO_VOTE), None);
            }
            (Some(status), votes) => call.fail(&status, votes),
            (None, votes) => call.fail(&Status::unknown("the reply ended without a status"), votes),
        }
    }
}

impl<B> Body for ReplyBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match self.inner.as_mut().poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(frame) => frame,
        };
        let failed = match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.messages.push(data.clone());
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.on_trailers(trailers);
                }
                if self.messages.count <= 1 {
                    return Poll::Ready(Some(Ok(frame)));
                }
                Status::failed_precondition("a streaming call cannot take part in a global transaction")
            }
            Some(Err(error)) => Status::from_error(error.into()),
            None => {
                self.on_trailers(&HeaderMap::new());
                return Poll::Ready(None);
            }
        };
        if let Some(Pending { call, votes }) = self.pending.take() {
            call.fail(&failed, votes);
        }
        Poll::Ready(Some(Err(failed)))
    }
}

/// Counts the messages in a gRPC body: each is five bytes (compressed or not, length) and the content.
#[derive(Debug, Default)]
pub(crate) struct MessageCounter {
    /// Messages that have begun.
    pub(crate) count: usize,
    prefix: [u8; 5],
    prefix_count: usize,
    content_left: u64,
}

impl MessageCounter {
    pub(crate) fn push(&mut self, mut data: Bytes) {
        while data.has_remaining() {
            if self.content_left > 0 {
                let taken = data
                    .len()
                    .min(usize::try_from(self.content_left).unwrap_or(usize::MAX));
                data.advance(taken);
                self.content_left -= taken as u64;
                continue;
            }
            self.prefix[self.prefix_count] = data.get_u8();
            self.prefix_count += 1;
            if self.prefix_count == 1 {
                self.count += 1;
            } else if self.prefix_count == self.prefix.len() {
                self.prefix_count = 0;
                let [_, length @ ..] = self.prefix;
                self.content_left = u64::from(u32::from_be_bytes(length));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Streaming is refused by counting messages, so the count must not depend on how a body is cut into
    /// frames.
    #[test]
    fn messages_are_counted_however_the_body_is_cut() {
        let body = [
            &[0, 0, 0, 0, 3, 7, 7, 7][..],
            &[0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 1, 9],
        ]
        .concat();
        for cut in 1..body.len() {
            let mut counter = MessageCounter::default();
            for chunk in body.chunks(cut) {
                counter.push(Bytes::copy_from_slice(chunk));
            }
            assert_eq!(
                (counter.count, counter.content_left, counter.prefix_count),
                (3, 0, 0),
                "cut every {cut} bytes"
            );
        }
    }

    #[test]
    fn timeouts_fit_the_header() {
        assert_eq!(grpc_timeout(Duration::from_millis(1_500)), "1500m");
        assert_eq!(grpc_timeout(Duration::from_secs(1_000_000)), "99999999m");
    }
}
