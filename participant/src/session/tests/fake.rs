//! A coordinator replica without a log: it hands every session stream to the test, which plays the other end, and a store
//! that answers what the test tells it.

use super::super::resource::ErasedResource;
use crate::resource::{Identity, LowWater, ResourceError};
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use synod_participant_core::session::{Finished, ListedBranch};
use synod_proto::command::{Decide, Proposal};
use synod_proto::ids::{
    BranchId, CallId, ExecutionId, Gtid, Lineage, ReplicaId, RequestId, ResourceId, UnixMillis,
};
use synod_proto::session::{AbortCause, AbortKind, Outcome, Refusal, Request, Response};
use synod_proto::v1::coordinator_server::{Coordinator, CoordinatorServer};
use synod_proto::{v1, wire};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Status, Streaming};

pub(super) const LINEAGE: Lineage = Lineage([1; 16]);
pub(super) const RESOURCE: ResourceId = ResourceId([2; 16]);

/// Every wait of these tests ends: nothing here takes longer unless it is broken.
pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(15), future)
        .await
        .expect("it takes too long")
}

pub(super) fn gtid(number: u8) -> Gtid {
    Gtid::new(UnixMillis(1_000 + u64::from(number)), [number; 10])
}

pub(super) fn branch(number: u8) -> BranchId {
    BranchId {
        gtid: gtid(number),
        call: CallId(u64::from(number)),
        execution: ExecutionId(1),
    }
}

pub(super) fn decide(number: u8) -> Decide {
    let cause = AbortCause::new(AbortKind::Requested, "a test");
    let proposal = Proposal::Abort {
        cause,
        branches: vec![],
    };
    Decide {
        lineage: LINEAGE,
        gtid: gtid(number),
        deadline: UnixMillis(60_000),
        proposal,
        guards: vec![],
    }
}

type Said = Result<v1::SessionResponses, Status>;

pub(super) struct Fake {
    pub(super) address: String,
    streams: mpsc::UnboundedReceiver<Stream>,
}

impl Fake {
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (opened, streams) = mpsc::unbounded_channel();
        let server = tonic::transport::Server::builder()
            .add_service(CoordinatorServer::new(Service { opened }))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        Self { address, streams }
    }

    /// The next stream that a session opens.
    pub(super) async fn stream(&mut self) -> Stream {
        within(self.streams.recv()).await.expect("the server runs")
    }

    /// The next stream, registered; kept open to the end of the test.
    pub(super) async fn stream_registered(&mut self) {
        let mut stream = self.stream().await;
        stream.register().await;
        tokio::spawn(async move {
            let _open = stream;
            std::future::pending::<()>().await;
        });
    }
}

/// The coordinator's end of one session.
pub(super) struct Stream {
    incoming: mpsc::UnboundedReceiver<Request>,
    outgoing: mpsc::Sender<Said>,
    message_count: Arc<AtomicUsize>,
    is_over: oneshot::Receiver<()>,
}

impl Stream {
    pub(super) async fn request(&mut self) -> Request {
        within(self.incoming.recv()).await.expect("the session is open")
    }

    /// Takes the registration and answers it.
    pub(super) async fn register(&mut self) -> (Option<Lineage>, Vec<ResourceId>) {
        let Request::Register {
            request,
            lineage,
            resources,
        } = self.request().await
        else {
            panic!("not a registration");
        };
        self.say(Response::Registered {
            request,
            lineage: LINEAGE,
        })
        .await;
        (lineage, resources)
    }

    pub(super) async fn say(&self, response: Response) {
        self.say_wire(v1::SessionResponse::from(response)).await;
    }

    pub(super) async fn redirect(&self, request: RequestId, address: &str) {
        let refusal = Refusal::NotLeader {
            leader: Some(ReplicaId(2)),
        };
        let response = Response::Refused { request, refusal };
        self.say_wire(wire::response(response, |_leader| Some(address.to_owned())))
            .await;
    }

    async fn say_wire(&self, response: v1::SessionResponse) {
        let message = v1::SessionResponses {
            responses: vec![response],
        };
        within(self.outgoing.send(Ok(message)))
            .await
            .expect("the session is open");
    }

    pub(super) fn message_count(&self) -> usize {
        self.message_count.load(Ordering::SeqCst)
    }

    /// As if the replica had been killed.
    pub(super) fn break_off(self) {
        self.outgoing
            .try_send(Err(Status::unavailable("killed")))
            .expect("room for one message");
    }

    /// Waits until the session has closed its side, then closes this one.
    pub(super) async fn finish(self) {
        within(self.is_over)
            .await
            .expect("the session closes in good order");
    }
}

struct Service {
    opened: mpsc::UnboundedSender<Stream>,
}

#[tonic::async_trait]
impl Coordinator for Service {
    type SessionStream = Pin<Box<dyn futures::Stream<Item = Said> + Send>>;

    async fn session(
        &self,
        request: tonic::Request<Streaming<v1::SessionRequests>>,
    ) -> Result<tonic::Response<Self::SessionStream>, Status> {
        let mut messages = request.into_inner();
        let (requests, incoming) = mpsc::unbounded_channel();
        let (outgoing, said) = mpsc::channel(64);
        let (over, is_over) = oneshot::channel();
        let message_count = Arc::new(AtomicUsize::new(0));
        let counted = message_count.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                counted.fetch_add(1, Ordering::SeqCst);
                for request in message.requests {
                    let request = Request::try_from(request).expect("the library sends nothing malformed");
                    let _test_is_over = requests.send(request);
                }
            }
            let _test_is_over = over.send(());
        });
        let _test_is_over = self.opened.send(Stream {
            incoming,
            outgoing,
            message_count,
            is_over,
        });
        Ok(tonic::Response::new(Box::pin(ReceiverStream::new(said))))
    }

    async fn commit(
        &self,
        _: tonic::Request<v1::CommitRequest>,
    ) -> Result<tonic::Response<v1::DecisionReply>, Status> {
        Err(unused())
    }

    async fn abort(
        &self,
        _: tonic::Request<v1::AbortRequest>,
    ) -> Result<tonic::Response<v1::DecisionReply>, Status> {
        Err(unused())
    }

    async fn outcome(
        &self,
        _: tonic::Request<v1::OutcomeRequest>,
    ) -> Result<tonic::Response<v1::OutcomeReply>, Status> {
        Err(unused())
    }

    async fn resolve(
        &self,
        _: tonic::Request<v1::ResolveRequest>,
    ) -> Result<tonic::Response<v1::DecisionReply>, Status> {
        Err(unused())
    }

    async fn list(
        &self,
        _: tonic::Request<v1::ListRequest>,
    ) -> Result<tonic::Response<v1::ListReply>, Status> {
        Err(unused())
    }

    async fn list_in_doubt(
        &self,
        _: tonic::Request<v1::ListInDoubtRequest>,
    ) -> Result<tonic::Response<v1::ListInDoubtReply>, Status> {
        Err(unused())
    }

    async fn status(
        &self,
        _: tonic::Request<v1::StatusRequest>,
    ) -> Result<tonic::Response<v1::StatusReply>, Status> {
        Err(unused())
    }
}

fn unused() -> Status {
    Status::unimplemented("the library uses the session only")
}

#[derive(Default)]
struct Script {
    answers: VecDeque<Option<Finished>>,
    listed: Vec<ListedBranch>,
    forgotten: Vec<LowWater>,
}

/// A store that answers what it is told to; `Applied` if it is told nothing.
pub(super) struct Store {
    lineage: Option<Lineage>,
    script: Mutex<Script>,
    /// Held by a test, a commit does not come to its end.
    gate: AsyncMutex<()>,
    calls: mpsc::UnboundedSender<(BranchId, Outcome)>,
    called: AsyncMutex<mpsc::UnboundedReceiver<(BranchId, Outcome)>>,
}

impl Store {
    pub(super) fn new() -> Arc<Self> {
        Self::bound_to(Some(LINEAGE))
    }

    pub(super) fn bound_to(lineage: Option<Lineage>) -> Arc<Self> {
        let (calls, called) = mpsc::unbounded_channel();
        let (gate, called) = (AsyncMutex::new(()), AsyncMutex::new(called));
        Arc::new(Self {
            lineage,
            script: Mutex::default(),
            gate,
            calls,
            called,
        })
    }

    pub(super) fn answer(&self, finished: Finished) {
        self.script.lock().unwrap().answers.push_back(Some(finished));
    }

    pub(super) fn panic_next(&self) {
        self.script.lock().unwrap().answers.push_back(None);
    }

    pub(super) fn list(&self, listed: Vec<ListedBranch>) {
        self.script.lock().unwrap().listed = listed;
    }

    /// Commits wait until the guard is dropped; aborts do not.
    pub(super) async fn hold(&self) -> MutexGuard<'_, ()> {
        within(self.gate.lock()).await
    }

    pub(super) fn forgotten(&self) -> Vec<LowWater> {
        self.script.lock().unwrap().forgotten.clone()
    }

    /// The next finish that the store was asked for.
    pub(super) async fn call(&self) -> (BranchId, Outcome) {
        let mut called = within(self.called.lock()).await;
        within(called.recv()).await.expect("the store lives")
    }
}

impl ErasedResource for Store {
    fn finish(&self, branch: BranchId, outcome: Outcome) -> BoxFuture<'_, Finished> {
        Box::pin(async move {
            self.calls.send((branch, outcome)).expect("the test reads");
            if outcome == Outcome::Committed {
                let _opened = self.gate.lock().await;
            }
            let answer = self.script.lock().unwrap().answers.pop_front();
            match answer {
                Some(None) => panic!("a store that panics"),
                Some(Some(finished)) => finished,
                None => Finished::Applied,
            }
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ListedBranch>, ResourceError>> {
        let listed = self.script.lock().unwrap().listed.clone();
        Box::pin(async move { Ok(listed) })
    }

    fn forget_below(&self, low_water: LowWater) -> BoxFuture<'_, Result<u64, ResourceError>> {
        let deleted = low_water.unfinished.len() as u64;
        self.script.lock().unwrap().forgotten.push(low_water);
        Box::pin(async move { Ok(deleted) })
    }

    fn recorded_identity(&self) -> BoxFuture<'_, Result<Identity, ResourceError>> {
        Box::pin(async move {
            Ok(Identity {
                resource: RESOURCE,
                lineage: self.lineage,
            })
        })
    }
}
