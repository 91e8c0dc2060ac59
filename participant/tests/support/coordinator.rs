//! A coordinator in memory: a write-once register per gtid, first proposal wins, delivered until
//! acknowledged (T5, T6, B7). No replication: what it stands for here is the session's vocabulary.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::{Stream, StreamExt};
use synod::{Gtid, Lineage};
use synod_proto::command::{Decide, NamedBranch, Proposal};
use synod_proto::ids::{BranchId, RequestId, ResourceId, UnixMillis};
use synod_proto::session::{
    AbortCause, AbortKind, Answer, BranchStatus, Decision, DeliveryStatus, Outcome, Request, Response,
    TransactionStatus,
};
use synod_proto::v1;
use synod_proto::v1::coordinator_server::{Coordinator, CoordinatorServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Status, Streaming};

type Outbox = mpsc::UnboundedSender<Result<v1::SessionResponses, Status>>;

#[derive(Clone)]
pub struct TestCoordinator {
    address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    lineage: Option<Lineage>,
    records: BTreeMap<Gtid, Record>,
    sessions: Vec<Session>,
    waiters: Vec<(Gtid, RequestId, Outbox)>,
    proposals: Vec<Decide>,
    /// Decides, but keeps the answers to itself.
    is_silent: bool,
}

struct Session {
    outbox: Outbox,
    resources: BTreeSet<ResourceId>,
}

enum Record {
    Committed {
        branches: Vec<NamedBranch>,
        read_only_count: u32,
        acknowledged: BTreeSet<BranchId>,
    },
    Aborted(AbortCause),
}

impl TestCoordinator {
    pub async fn start() -> Self {
        Self::start_as(Lineage([1; 16])).await
    }

    pub async fn start_as(lineage: Lineage) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let state = Arc::new(Mutex::new(State {
            lineage: Some(lineage),
            ..State::default()
        }));
        let this = Self { address, state };
        let server = tonic::transport::Server::builder()
            .add_service(CoordinatorServer::new(this.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        this
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no test panics while it holds the register")
    }

    /// Every proposal that reached the register, in its order.
    pub fn proposals(&self) -> Vec<Decide> {
        self.state().proposals.clone()
    }

    /// The proposals of one transaction.
    pub fn proposals_for(&self, gtid: Gtid) -> Vec<Proposal> {
        let of_gtid = |decide: &&Decide| decide.gtid == gtid;
        self.state()
            .proposals
            .iter()
            .filter(of_gtid)
            .map(|decide| decide.proposal.clone())
            .collect()
    }

    /// The causes of every abort that was proposed for a transaction.
    pub fn abort_causes(&self, gtid: Gtid) -> Vec<AbortCause> {
        let cause = |proposal| match proposal {
            Proposal::Abort { cause, .. } => Some(cause),
            Proposal::Commit { .. } => None,
        };
        self.proposals_for(gtid).into_iter().filter_map(cause).collect()
    }

    /// Somebody else's proposal.
    pub fn abort_first(&self, gtid: Gtid, kind: AbortKind) {
        self.state()
            .records
            .insert(gtid, Record::Aborted(AbortCause::new(kind, "first")));
    }

    /// Somebody else's commit of one branch.
    pub fn commit_first(&self, branch: BranchId, resource: ResourceId) {
        let BranchId {
            gtid,
            call,
            execution,
        } = branch;
        let named = NamedBranch {
            call,
            execution,
            resource,
            digest: 0,
            database_transaction: bytes::Bytes::new(),
        };
        let acknowledged = BTreeSet::new();
        self.state().records.insert(
            gtid,
            Record::Committed {
                branches: vec![named],
                read_only_count: 0,
                acknowledged,
            },
        );
    }

    pub fn set_silent(&self, is_silent: bool) {
        self.state().is_silent = is_silent;
    }
}

impl State {
    fn on_request(&mut self, session: usize, request: Request) {
        let outbox = self.sessions[session].outbox.clone();
        match request {
            Request::Register {
                request, resources, ..
            } => {
                self.sessions[session].resources.extend(resources);
                let lineage = self.lineage.expect("set at start");
                say(&outbox, Response::Registered { request, lineage });
                let gtids: Vec<Gtid> = self.records.keys().copied().collect();
                gtids.into_iter().for_each(|gtid| self.deliver(gtid));
            }
            Request::Decide { request, command } => {
                let decide = Decide::decode(&command).expect("the library sends what it encoded");
                let decision = self.decide(&decide);
                if !self.is_silent {
                    say(&outbox, Response::Decided { request, decision });
                }
                self.deliver(decide.gtid);
            }
            Request::Inquire { branch, deadline, .. } => {
                let now = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .expect("after 1970");
                let is_past =
                    UnixMillis(u64::try_from(now.as_millis()).expect("before 500,000,000")) > deadline;
                if is_past {
                    let cause = AbortCause::new(AbortKind::Deadline, "inquired after the deadline");
                    self.records.entry(branch.gtid).or_insert(Record::Aborted(cause));
                }
                let answer = match self.records.get(&branch.gtid) {
                    None => Answer::Undecided,
                    Some(Record::Aborted(_)) => Answer::Aborted,
                    Some(Record::Committed { branches, .. }) if is_named(branches, &branch) => {
                        Answer::Committed
                    }
                    Some(Record::Committed { .. }) => Answer::Aborted,
                };
                say(&outbox, Response::Answered { branch, answer });
            }
            Request::Acknowledge { branch, .. } => {
                if let Some(Record::Committed { acknowledged, .. }) = self.records.get_mut(&branch.gtid) {
                    acknowledged.insert(branch);
                }
                self.answer_waiters();
            }
            Request::AwaitDelivery { request, gtid } => {
                self.waiters.push((gtid, request, outbox));
                self.answer_waiters();
            }
            Request::Outcome { request, gtid } => {
                say(
                    &outbox,
                    Response::Status {
                        request,
                        status: self.status(gtid),
                    },
                );
            }
            Request::Hazard { branch, text, .. } => panic!("{branch}: {text}"),
            Request::PrepareAndDecide { .. } | Request::Introduce { .. } | Request::Voted { .. } => {
                panic!("open branches are tested with a real coordinator")
            }
            Request::Settle { .. } | Request::List { .. } | Request::ListInDoubt { .. } => {}
        }
    }

    /// First wins (T9).
    fn decide(&mut self, decide: &Decide) -> Decision {
        self.proposals.push(decide.clone());
        let record = self
            .records
            .entry(decide.gtid)
            .or_insert_with(|| match &decide.proposal {
                Proposal::Commit {
                    branches,
                    read_only_count,
                } => Record::Committed {
                    branches: branches.clone(),
                    read_only_count: *read_only_count,
                    acknowledged: BTreeSet::new(),
                },
                Proposal::Abort { cause, .. } => Record::Aborted(cause.clone()),
            });
        match (record, &decide.proposal) {
            (Record::Aborted(cause), _) => Decision::Aborted(cause.clone()),
            (
                Record::Committed { branches, .. },
                Proposal::Commit {
                    branches: proposed, ..
                },
            ) if branches != proposed => Decision::Mismatch,
            (Record::Committed { .. }, _) => Decision::Committed,
        }
    }

    fn deliver(&self, gtid: Gtid) {
        let (outcome, branches) = match self.records.get(&gtid) {
            Some(Record::Committed { branches, .. }) => (Outcome::Committed, branches.clone()),
            Some(Record::Aborted(_)) => {
                let proposed = self.proposals.iter().filter(|decide| decide.gtid == gtid);
                (
                    Outcome::Aborted,
                    proposed.flat_map(|decide| decide.branches().to_vec()).collect(),
                )
            }
            None => return,
        };
        for NamedBranch {
            call,
            execution,
            resource,
            ..
        } in branches
        {
            let branch = BranchId {
                gtid,
                call,
                execution,
            };
            for session in self
                .sessions
                .iter()
                .filter(|session| session.resources.contains(&resource))
            {
                say(
                    &session.outbox,
                    Response::Deliver {
                        branch,
                        resource,
                        outcome,
                    },
                );
            }
        }
    }

    fn answer_waiters(&mut self) {
        let Self { records, waiters, .. } = self;
        waiters.retain(|(gtid, request, outbox)| {
            let is_delivered = match records.get(gtid) {
                Some(Record::Committed {
                    branches,
                    acknowledged,
                    ..
                }) => branches.len() == acknowledged.len(),
                _ => false,
            };
            if is_delivered {
                say(
                    outbox,
                    Response::Delivered {
                        request: *request,
                        gtid: *gtid,
                    },
                );
            }
            !is_delivered
        });
    }

    fn status(&self, gtid: Gtid) -> TransactionStatus {
        match self.records.get(&gtid) {
            None => TransactionStatus::Undecided,
            Some(Record::Aborted(cause)) => TransactionStatus::Aborted(cause.clone()),
            Some(Record::Committed {
                branches,
                read_only_count,
                acknowledged,
            }) => {
                let status = |NamedBranch {
                                  call,
                                  execution,
                                  resource,
                                  ..
                              }: &NamedBranch| {
                    let (call, execution, resource) = (*call, *execution, *resource);
                    let is_done = acknowledged.contains(&BranchId {
                        gtid,
                        call,
                        execution,
                    });
                    let delivery = if is_done {
                        DeliveryStatus::Acknowledged
                    } else {
                        DeliveryStatus::Pending
                    };
                    BranchStatus {
                        call,
                        execution,
                        resource,
                        delivery,
                    }
                };
                let branches = branches.iter().map(status).collect();
                TransactionStatus::Committed {
                    branches,
                    read_only_count: *read_only_count,
                }
            }
        }
    }
}

fn is_named(branches: &[NamedBranch], branch: &BranchId) -> bool {
    branches
        .iter()
        .any(|named| (named.call, named.execution) == (branch.call, branch.execution))
}

fn say(outbox: &Outbox, response: Response) {
    let _client_is_gone = outbox.send(Ok(v1::SessionResponses {
        responses: vec![response.into()],
    }));
}

#[tonic::async_trait]
impl Coordinator for TestCoordinator {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::SessionResponses, Status>> + Send>>;

    async fn session(
        &self,
        requests: tonic::Request<Streaming<v1::SessionRequests>>,
    ) -> Result<tonic::Response<Self::SessionStream>, Status> {
        let (outbox, inbox) = mpsc::unbounded_channel();
        let session = {
            let mut state = self.state();
            state.sessions.push(Session {
                outbox,
                resources: BTreeSet::new(),
            });
            state.sessions.len() - 1
        };
        let this = self.clone();
        let mut requests = requests.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(batch)) = requests.next().await {
                for request in batch.requests {
                    let request = Request::try_from(request).expect("the library sends well-formed requests");
                    this.state().on_request(session, request);
                }
            }
        });
        Ok(tonic::Response::new(Box::pin(UnboundedReceiverStream::new(
            inbox,
        ))))
    }

    async fn commit(
        &self,
        _: tonic::Request<v1::CommitRequest>,
    ) -> Result<tonic::Response<v1::DecisionReply>, Status> {
        Err(Status::unimplemented("the library uses the session"))
    }

    async fn abort(
        &self,
        _: tonic::Request<v1::AbortRequest>,
    ) -> Result<tonic::Response<v1::DecisionReply>, Status> {
        Err(Status::unimplemented("the library uses the session"))
    }

    async fn outcome(
        &self,
        _: tonic::Request<v1::OutcomeRequest>,
    ) -> Result<tonic::Response<v1::OutcomeReply>, Status> {
        Err(Status::unimplemented("the library uses the session"))
    }

    async fn resolve(
        &self,
        _: tonic::Request<v1::ResolveRequest>,
    ) -> Result<tonic::Response<v1::DecisionReply>, Status> {
        Err(Status::unimplemented("the library uses the session"))
    }

    async fn list(
        &self,
        _: tonic::Request<v1::ListRequest>,
    ) -> Result<tonic::Response<v1::ListReply>, Status> {
        Err(Status::unimplemented("the library uses the session"))
    }

    async fn list_in_doubt(
        &self,
        _: tonic::Request<v1::ListInDoubtRequest>,
    ) -> Result<tonic::Response<v1::ListInDoubtReply>, Status> {
        Err(Status::unimplemented("the library uses the session"))
    }

    async fn status(
        &self,
        _: tonic::Request<v1::StatusRequest>,
    ) -> Result<tonic::Response<v1::StatusReply>, Status> {
        Err(Status::unimplemented("the library uses the session"))
    }
}
