//! The gRPC service `Coordinator`: the session stream for participants, single calls for scripts and other languages.
//!
//! Everything here turns wire messages into requests to the driver and its responses into wire messages. Nothing is
//! decided and nothing is answered from memory.

mod refusal;
mod stream;
mod unary;

pub(crate) use refusal::LEADER_METADATA_KEY;

use crate::driver::ReplicaStatus;
use crate::sessions::SessionEvent;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use synod_proto::ids::{ClusterId, Incarnation, ReplicaId, SessionId};
use synod_proto::v1;
use synod_proto::v1::coordinator_server::Coordinator;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// The most session streams at one replica. One stream serves a whole process, so this is thousands of processes; each
/// costs a few queues.
const SESSION_COUNT_MAX: usize = 4_096;

/// The most single calls at one time. They are a convenience; the hot path is the session.
const CALL_COUNT_MAX: usize = 4_096;

/// The most messages of sessions on their way to the driver. Above, the sessions' readers wait, and so, by flow control,
/// do the clients.
pub(crate) const EVENT_COUNT_MAX: usize = 4_096;

/// The addresses that clients reach the replicas at.
pub(crate) type Addresses = Arc<BTreeMap<ReplicaId, String>>;

/// The service, as one replica offers it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cluster: ClusterId,
    replica: ReplicaId,
    incarnation: Incarnation,
    addresses: Addresses,
    events: mpsc::Sender<SessionEvent>,
    session_last: AtomicU64,
    sessions: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Service {
    pub(crate) fn new(
        cluster: ClusterId,
        replica: ReplicaId,
        incarnation: Incarnation,
        addresses: Addresses,
        events: mpsc::Sender<SessionEvent>,
        shutdown: CancellationToken,
    ) -> Self {
        let shared = Shared {
            cluster,
            replica,
            incarnation,
            addresses,
            events,
            session_last: AtomicU64::new(0),
            sessions: Arc::new(Semaphore::new(SESSION_COUNT_MAX)),
            calls: Arc::new(Semaphore::new(CALL_COUNT_MAX)),
            shutdown,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    fn next_session(&self) -> SessionId {
        SessionId(self.shared.session_last.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Takes one of a limited number of places.
    fn enter(
        &self,
        places: &Arc<Semaphore>,
        what: &str,
        count_max: usize,
    ) -> Result<OwnedSemaphorePermit, Status> {
        if self.shared.shutdown.is_cancelled() {
            return Err(shutting_down());
        }
        let full = || {
            Status::resource_exhausted(format!(
                "overloaded: {count_max} {what} at this replica; back off, then try again"
            ))
        };
        places.clone().try_acquire_owned().map_err(|_| full())
    }

    async fn replica_status(&self) -> Result<ReplicaStatus, Status> {
        let (answer, status) = oneshot::channel();
        self.shared
            .events
            .send(SessionEvent::Status(answer))
            .await
            .map_err(|_| shutting_down())?;
        status.await.map_err(|_| shutting_down())
    }
}

/// What everybody is told once the process has begun to end, or the driver has.
pub(crate) fn shutting_down() -> Status {
    Status::unavailable("this replica is shutting down; ask another one")
}

#[tonic::async_trait]
impl Coordinator for Service {
    type SessionStream = stream::ResponseStream;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequests>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let place = self.enter(&self.shared.sessions, "sessions", SESSION_COUNT_MAX)?;
        let requests = request.into_inner();
        let stream = stream::open(
            self.next_session(),
            requests,
            &self.shared.events,
            self.shared.addresses.clone(),
            place,
        )
        .await?;
        Ok(Response::new(stream))
    }

    async fn commit(
        &self,
        request: Request<v1::CommitRequest>,
    ) -> Result<Response<v1::DecisionReply>, Status> {
        self.commit_call(request.into_inner()).await.map(Response::new)
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::DecisionReply>, Status> {
        self.abort_call(request.into_inner()).await.map(Response::new)
    }

    async fn outcome(
        &self,
        request: Request<v1::OutcomeRequest>,
    ) -> Result<Response<v1::OutcomeReply>, Status> {
        self.outcome_call(&request.into_inner()).await.map(Response::new)
    }

    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::DecisionReply>, Status> {
        self.resolve_call(request.into_inner()).await.map(Response::new)
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListReply>, Status> {
        self.list_call(request.into_inner()).await.map(Response::new)
    }

    async fn list_in_doubt(
        &self,
        request: Request<v1::ListInDoubtRequest>,
    ) -> Result<Response<v1::ListInDoubtReply>, Status> {
        self.list_in_doubt_call(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        let status = self.replica_status().await?;
        let shared = &self.shared;
        Ok(Response::new(status.into_reply(
            &shared.cluster,
            shared.replica,
            shared.incarnation,
            &shared.addresses,
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    /// A20: the number of sessions and calls is bounded, and a place is free again when its holder has gone.
    #[tokio::test]
    async fn places_are_limited() {
        let (events, _inbox) = mpsc::channel(1);
        let shutdown = CancellationToken::new();
        let cluster = "test".parse().expect("a cluster id");
        let (replica, incarnation) = (ReplicaId(1), Incarnation([1; 16]));
        let service = Service::new(
            cluster,
            replica,
            incarnation,
            Addresses::default(),
            events,
            shutdown.clone(),
        );
        let enter = || service.enter(&service.shared.sessions, "sessions", SESSION_COUNT_MAX);
        let mut places: Vec<_> = (0..SESSION_COUNT_MAX)
            .map(|_| enter().expect("a place"))
            .collect();
        let full = enter().expect_err("full");
        assert_eq!(
            (full.code(), full.message()),
            (
                Code::ResourceExhausted,
                "overloaded: 4096 sessions at this replica; back off, then try again"
            )
        );
        places.pop();
        let place = enter().expect("a place");
        drop(place);
        shutdown.cancel();
        assert_eq!(enter().expect_err("ending").code(), Code::Unavailable);
    }
}
