//! The server's side of a business call (step 2 of a transaction): a tower layer that reads the context of
//! every request, refuses what must not run, and puts the votes on the reply; and [`Joined`], by which a
//! method takes part.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use synod_proto::ids::{CallId, Gtid, UnixMillis};
use tonic::{Request, Status};
use tower::{Layer, Service};

use crate::branch::{self, BranchTransaction, Resource};
use crate::channel::{BoundChannel, MessageCounter};
use crate::context::{read_context, write_votes};
use crate::error::{BranchFailure, UnknownCall};
use crate::open;
use crate::participant::Participant;
use crate::resource::ResourceManager;
use crate::scope::{OpenCall, Scope};

/// See [`Participant::layer`].
#[derive(Clone, Debug)]
pub struct TransactionLayer {
    participant: Participant,
}

impl TransactionLayer {
    pub(crate) fn new(participant: Participant) -> Self {
        Self { participant }
    }
}

impl<S> Layer<S> for TransactionLayer {
    type Service = TransactionService<S>;

    fn layer(&self, inner: S) -> TransactionService<S> {
        TransactionService {
            inner,
            participant: self.participant.clone(),
        }
    }
}

/// The service that [`TransactionLayer`] makes.
#[derive(Clone, Debug)]
pub struct TransactionService<S> {
    inner: S,
    participant: Participant,
}

impl<S, Q, B> Service<http::Request<Q>> for TransactionService<S>
where
    S: Service<http::Request<Q>, Response = http::Response<B>>,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = http::Response<VotedBody<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Q>) -> Self::Future {
        let context = match read_context(request.headers()) {
            Ok(Some(context)) => context,
            Ok(None) => {
                let reply = self.inner.call(request);
                return Box::pin(async move { Ok(reply.await?.map(VotedBody::unvoted)) });
            }
            Err(malformed) => {
                return Box::pin(
                    async move { Ok(Status::invalid_argument(malformed.to_string()).into_http()) },
                );
            }
        };
        if let Err(status) = self.participant.check(&context, self.participant.now()) {
            return Box::pin(async move { Ok(status.into_http()) });
        }
        let scope = Scope::arrived(self.participant.clone(), &context);
        request.extensions_mut().insert(Arrived { scope: scope.clone() });
        let reply = self.inner.call(request);
        Box::pin(async move {
            let mut response = reply.await?;
            let Some(votes) = scope.hand_up() else {
                return Ok(response.map(VotedBody::unvoted));
            };
            match write_votes(&votes, response.headers_mut()) {
                Ok(()) => Ok(response.map(VotedBody::voted)),
                // Without votes the caller cannot commit; what was prepared here inquires, and is told
                // Aborted.
                Err(too_many) => Ok(Status::failed_precondition(too_many.to_string()).into_http()),
            }
        })
    }
}

/// The body of a reply behind [`TransactionLayer`]. A reply that carries votes has one message: the votes
/// were sent before it, and could not follow a second one.
#[derive(Debug)]
pub struct VotedBody<B> {
    inner: Option<Pin<Box<B>>>,
    messages: Option<MessageCounter>,
}

impl<B> VotedBody<B> {
    fn unvoted(inner: B) -> Self {
        Self {
            inner: Some(Box::pin(inner)),
            messages: None,
        }
    }

    fn voted(inner: B) -> Self {
        Self {
            inner: Some(Box::pin(inner)),
            messages: Some(MessageCounter::default()),
        }
    }
}

impl<B> Default for VotedBody<B> {
    fn default() -> Self {
        Self {
            inner: None,
            messages: None,
        }
    }
}

impl<B: Body<Data = Bytes>> Body for VotedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let frame = inner.as_mut().poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(messages)) = (&frame, &mut this.messages)
            && let Some(data) = frame.data_ref()
        {
            messages.push(data.clone());
            if messages.count > 1 {
                this.inner = None;
                let status = Status::failed_precondition("a transactional method cannot stream its replies");
                let mut trailers = HeaderMap::new();
                return match status.add_header(&mut trailers) {
                    Ok(()) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                    Err(_) => Poll::Ready(None),
                };
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(|inner| inner.is_end_stream())
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| http_body::SizeHint::with_exact(0), |inner| inner.size_hint())
    }
}

/// What the layer leaves for the method.
#[derive(Clone, Debug)]
struct Arrived {
    scope: Arc<Scope>,
}

const NO_CONTEXT: &str = "this method must be called inside a global transaction: \
                          make the client with `txn.client(&channel, ..)`";
const NO_LAYER: &str =
    "this server lacks `Server::builder().layer(participant.layer())`, so no vote could be returned";

/// A call that takes part in its caller's global transaction: the handle of a transactional method with more
/// or other work than one branch on one database. For just that, [`Resource::branch`] is the whole method.
///
/// Every branch made and every call made through it is part of the transaction, and goes up with this call's
/// reply.
#[derive(Clone, Debug)]
pub struct Joined {
    scope: Arc<Scope>,
}

impl Joined {
    /// Marks the method transactional: it runs inside a global transaction, or not at all.
    ///
    /// Streaming methods cannot be transactional: a stream of messages is no `prost::Message`, so this does
    /// not compile for one, and a streamed reply is cut off with `FAILED_PRECONDITION` behind its first
    /// message.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` for a call outside a global transaction; nothing has run.
    pub fn of<M: prost::Message>(request: &Request<M>) -> Result<Self, Status> {
        if let Some(Arrived { scope }) = request.extensions().get() {
            scope.join();
            return Ok(Self { scope: scope.clone() });
        }
        Err(match read_context(request.metadata().as_ref()) {
            Ok(None) => Status::failed_precondition(NO_CONTEXT),
            _ => Status::failed_precondition(NO_LAYER),
        })
    }

    /// The global transaction.
    #[must_use]
    pub fn gtid(&self) -> Gtid {
        self.scope.gtid()
    }

    /// When its branches must have voted.
    #[must_use]
    pub fn deadline(&self) -> UnixMillis {
        self.scope.deadline()
    }

    /// A client whose calls run under the transaction.
    pub fn client<S: Clone, C>(&self, channel: &S, new: impl FnOnce(BoundChannel<S>) -> C) -> C {
        new(BoundChannel::new(channel.clone(), self.scope.clone()))
    }

    /// Lets the transaction go on without this call: see
    /// [`Transaction::discard`](crate::Transaction::discard).
    ///
    /// # Errors
    /// No such call was made from here.
    pub fn discard(&self, call: CallId) -> Result<(), UnknownCall> {
        self.scope.discard(call)
    }

    fn open_call(&self, what: &'static str) -> Result<OpenCall, Status> {
        let refused = BranchFailure::from_refused(self.gtid());
        let call = self.scope.open_branch(what);
        call.map_err(|error| Status::from(refused(error)))
    }

    /// A branch on one of this service's databases: see [`Resource::branch`]. Two branches of one
    /// transaction must not touch the same rows: the second would wait for the first, which waits for the
    /// outcome (traps C15).
    ///
    /// # Errors
    /// As [`Resource::branch`]; the status carries the call's id for [`discard`](Self::discard), see
    /// [`call_id`](crate::call_id).
    pub async fn branch<R, T, F, Fut>(&self, resource: &Resource<R>, work: F) -> Result<T, Status>
    where
        R: ResourceManager,
        T: Send + 'static,
        F: FnOnce(BranchTransaction<R>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let call = self.open_call("a local branch")?;
        let result = branch::run(resource, call, move |tx| {
            let working = work(tx);
            async move { working.await.map_err(Into::into) }
        });
        result.await.map_err(Status::from)
    }

    /// A branch on one of this service's databases that stays open for further calls of the transaction: see
    /// [`Resource::open_branch`].
    ///
    /// # Errors
    /// As [`Resource::open_branch`].
    pub async fn open_branch<R, T, F, Fut>(&self, resource: &Resource<R>, work: F) -> Result<T, Status>
    where
        R: ResourceManager,
        T: Send + 'static,
        F: FnOnce(BranchTransaction<R>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let call = self.open_call("an open local branch")?;
        let result = open::run(resource, call, move |tx| {
            let working = work(tx);
            async move { working.await.map_err(Into::into) }
        });
        result.await.map_err(Status::from)
    }
}
