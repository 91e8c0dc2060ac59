//! The single calls. Each is a session of one request, which ends with its answer.

use super::{CALL_COUNT_MAX, Service, refusal, shutting_down, stream};
use crate::sessions::{SessionEvent, outbox};
use std::time::Duration;
use synod_proto::command::Decide;
use synod_proto::ids::{Gtid, RequestId, SessionId};
use synod_proto::session::{Decision, Request, Response, TransactionSummary};
use synod_proto::v1;
use synod_proto::wire::{List, ListInDoubt, Malformed, Resolve};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tonic::Status;

/// How long a single call waits for the log, unless its client's own deadline (`grpc-timeout`) ends sooner. Several
/// elections fit.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The only request of its session.
const REQUEST: RequestId = RequestId(1);

/// Tells the driver that the call is over, also when its client went away in the middle.
struct Call {
    session: SessionId,
    events: mpsc::Sender<SessionEvent>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let closed = SessionEvent::Closed(self.session);
        if let Err(mpsc::error::TrySendError::Full(closed)) = self.events.try_send(closed) {
            let events = self.events.clone();
            tokio::spawn(async move { events.send(closed).await });
        }
    }
}

impl Service {
    pub(super) async fn commit_call(&self, call: v1::CommitRequest) -> Result<v1::DecisionReply, Status> {
        let decide = Decide::try_from(call).map_err(malformed)?;
        self.decision(Request::Decide {
            request: REQUEST,
            command: decide.encode(),
        })
        .await
    }

    pub(super) async fn abort_call(&self, call: v1::AbortRequest) -> Result<v1::DecisionReply, Status> {
        let decide = Decide::try_from(call).map_err(malformed)?;
        self.decision(Request::Decide {
            request: REQUEST,
            command: decide.encode(),
        })
        .await
    }

    pub(super) async fn resolve_call(&self, call: v1::ResolveRequest) -> Result<v1::DecisionReply, Status> {
        let resolve = Resolve::try_from(call).map_err(malformed)?;
        // An operator need not know the lineage: whoever reached this replica means this coordinator.
        let lineage = self.replica_status().await?.lineage().ok_or_else(|| {
            Status::unavailable("this coordinator has not had a leader yet; start a majority of its replicas")
        })?;
        self.decision(resolve.into_request(REQUEST, lineage)).await
    }

    pub(super) async fn outcome_call(&self, call: &v1::OutcomeRequest) -> Result<v1::OutcomeReply, Status> {
        let gtid = Gtid::try_from(call.clone()).map_err(malformed)?;
        match self
            .call(Request::Outcome {
                request: REQUEST,
                gtid,
            })
            .await?
        {
            Response::Status { status, .. } => Ok(status.into()),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn list_call(&self, call: v1::ListRequest) -> Result<v1::ListReply, Status> {
        let list = List::try_from(call).map_err(malformed)?;
        match self.call(list.into_request(REQUEST)).await? {
            Response::Listed { mut transactions, .. } => {
                stream::fit_page(&mut transactions);
                Ok(Vec::<TransactionSummary>::into(transactions))
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn list_in_doubt_call(
        &self,
        call: v1::ListInDoubtRequest,
    ) -> Result<v1::ListInDoubtReply, Status> {
        let list = ListInDoubt::try_from(call).map_err(malformed)?;
        match self.call(list.into_request(REQUEST)).await? {
            Response::ListedInDoubt { page, .. } => Ok(page.into()),
            other => Err(unexpected(&other)),
        }
    }

    async fn decision(&self, request: Request) -> Result<v1::DecisionReply, Status> {
        match self.call(request).await? {
            Response::Decided { decision, .. } => Ok(Decision::into(decision)),
            other => Err(unexpected(&other)),
        }
    }

    async fn call(&self, request: Request) -> Result<Response, Status> {
        let _place = self.enter(&self.shared.calls, "calls", CALL_COUNT_MAX)?;
        let session = self.next_session();
        let (outbox, mut responses) = outbox();
        let events = &self.shared.events;
        events
            .send(SessionEvent::Opened(session, outbox))
            .await
            .map_err(|_| shutting_down())?;
        let _call = Call {
            session,
            events: events.clone(),
        };
        events
            .send(SessionEvent::Requests(session, vec![request]))
            .await
            .map_err(|_| shutting_down())?;
        let answer = timeout(CALL_TIMEOUT, responses.next()).await.map_err(|_| {
            // T7: nothing follows from silence.
            Status::deadline_exceeded(
                "no answer from the log in time; the outcome is open: ask again with the same gtid",
            )
        })?;
        match answer {
            Some(Response::Refused { refusal, .. }) => Err(refusal::status(refusal, &self.shared.addresses)),
            Some(response) => Ok(response),
            // The session was ended under the call: the leader resigned, or the process ends.
            None => Err(responses.closing().unwrap_or_else(|| {
                Status::unavailable(
                    "this replica no longer leads; the outcome is open: ask again with the same gtid",
                )
            })),
        }
    }
}

fn malformed(malformed: Malformed) -> Status {
    Status::invalid_argument(malformed.to_string())
}

fn unexpected(response: &Response) -> Status {
    tracing::error!(?response, "a bug: the answer does not fit the question");
    Status::internal("the answer does not fit the question: a bug in the coordinator")
}
