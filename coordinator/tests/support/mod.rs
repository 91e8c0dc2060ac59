//! A three-replica coordinator in this process: the code of the binary, on sockets and disks of this machine.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::future::Future;
use std::thread;
use std::time::Duration;
use synod_coordinator::config::Settings;
use synod_coordinator::replica_process::{RunError, run};
use synod_proto::command::{Decide, NamedBranch, Proposal};
use synod_proto::ids::{
    BranchId, CallId, ExecutionId, Gtid, Lineage, ReplicaId, RequestId, ResourceId, UnixMillis,
};
use synod_proto::session::{AbortCause, AbortKind, Request, Response};
use synod_proto::v1;
use synod_proto::v1::coordinator_client::CoordinatorClient;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Every test ends by then, or fails.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// A single step ends by then, or fails.
pub const STEP: Duration = Duration::from_secs(15);

/// Runs a test within its deadline.
pub async fn within<T>(test: impl Future<Output = T>) -> T {
    timeout(DEADLINE, test)
        .await
        .expect("the test ends within its deadline")
}

/// Asks again until there is an answer, or the step's deadline has passed.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + STEP;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "within {STEP:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// One running replica: a thread with a reactor of its own, as in a process of its own.
struct Running {
    shutdown: CancellationToken,
    kill: CancellationToken,
    thread: thread::JoinHandle<Option<Result<(), RunError>>>,
}

/// Three replicas, their directories and addresses.
pub struct Cluster {
    data: TempDir,
    pub peers: BTreeMap<ReplicaId, String>,
    running: BTreeMap<ReplicaId, Running>,
}

impl Cluster {
    /// Starts three replicas on free ports.
    pub async fn start() -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        let mut listeners = Vec::new();
        let mut peers = BTreeMap::new();
        for id in [1, 2, 3].map(ReplicaId) {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            peers.insert(id, listener.local_addr().expect("an address").to_string());
            listeners.push((id, listener));
        }
        let mut cluster = Self {
            data,
            peers,
            running: BTreeMap::new(),
        };
        for (id, listener) in listeners {
            cluster.spawn(id, listener);
        }
        cluster
    }

    /// Starts one replica, or one again, on its directory and port.
    pub async fn start_replica(&mut self, id: ReplicaId) {
        let address = self.peers[&id].clone();
        let listener = eventually("the port is free again", async || {
            TcpListener::bind(&address).await.ok()
        })
        .await;
        self.spawn(id, listener);
    }

    pub fn settings(&self, id: ReplicaId) -> Settings {
        let cluster = "test".parse().expect("a cluster id");
        let mut settings = Settings::new(
            cluster,
            id,
            self.peers.clone(),
            self.data.path().join(format!("replica-{id}")),
        );
        settings.segment_bytes = 1 << 20;
        // Many clusters share this machine's few cores during a test run: a leader that waits for its turn is not dead.
        settings.election_timeout_ms_min = 1_000;
        settings.election_timeout_ms_max = 2_000;
        settings
    }

    fn spawn(&mut self, id: ReplicaId, listener: TcpListener) {
        let settings = self.settings(id);
        let (shutdown, kill) = (CancellationToken::new(), CancellationToken::new());
        let listener = listener.into_std().expect("a listener");
        let (stop, killed) = (shutdown.clone(), kill.clone());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                tokio::select! {
                    result = run(settings, listener, stop) => Some(result),
                    () = killed.cancelled() => None,
                }
            })
        });
        assert!(
            self.running
                .insert(
                    id,
                    Running {
                        shutdown,
                        kill,
                        thread
                    }
                )
                .is_none(),
            "a replica runs once"
        );
    }

    /// Drops the replica where it stands: tasks, sockets and all. (`tests/process_*` do it with SIGKILL.)
    pub fn kill(&mut self, id: ReplicaId) {
        let running = self.running.remove(&id).expect("the replica runs");
        running.kill.cancel();
        assert!(
            running.thread.join().expect("no panic").is_none(),
            "it was killed and did not end by itself"
        );
    }

    /// Ends the replica in good order.
    pub fn shut_down(&mut self, id: ReplicaId) -> Result<(), RunError> {
        let running = self.running.remove(&id).expect("the replica runs");
        running.shutdown.cancel();
        running
            .thread
            .join()
            .expect("no panic")
            .expect("it was not killed")
    }

    pub fn ids(&self) -> Vec<ReplicaId> {
        self.running.keys().copied().collect()
    }

    pub async fn client(&self, id: ReplicaId) -> CoordinatorClient<Channel> {
        client(&self.peers[&id]).await
    }

    pub async fn status(&self, id: ReplicaId) -> Option<v1::StatusReply> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.peers[&id])).ok()?;
        let channel = endpoint.connect().await.ok()?;
        let reply = CoordinatorClient::new(channel)
            .status(v1::StatusRequest {})
            .await
            .ok()?;
        Some(reply.into_inner())
    }

    /// Waits for a leader that serves and that every running replica follows.
    pub async fn leader(&self) -> (ReplicaId, Lineage) {
        eventually("a leader serves and is followed", async || {
            let mut leaders = Vec::new();
            let mut lineage = None;
            for id in self.ids() {
                let status = self.status(id).await?;
                leaders.push(status.leader);
                if status.role == "leader" {
                    lineage = Some(Lineage(status.lineage[..].try_into().expect("16 bytes")));
                }
            }
            let first = *leaders.first()?;
            let lineage = lineage?;
            leaders
                .iter()
                .all(|leader| *leader == first)
                .then(|| (ReplicaId(u8::try_from(first).unwrap_or(0)), lineage))
        })
        .await
    }

    /// A leader and the two that follow it.
    pub async fn roles(&self) -> (ReplicaId, Vec<ReplicaId>, Lineage) {
        let (leader, lineage) = self.leader().await;
        (
            leader,
            self.ids().into_iter().filter(|id| *id != leader).collect(),
            lineage,
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for running in std::mem::take(&mut self.running).into_values() {
            running.kill.cancel();
            let _ = running.thread.join();
        }
    }
}

pub async fn client(address: &str) -> CoordinatorClient<Channel> {
    CoordinatorClient::connect(format!("http://{address}"))
        .await
        .expect("the replica listens")
}

/// A session with one replica.
pub struct Session {
    requests: mpsc::Sender<v1::SessionRequests>,
    responses: Streaming<v1::SessionResponses>,
    buffer: std::collections::VecDeque<v1::SessionResponse>,
}

impl Session {
    pub async fn open(client: &mut CoordinatorClient<Channel>) -> Self {
        let (requests, stream) = mpsc::channel(16);
        let responses = client
            .session(ReceiverStream::new(stream))
            .await
            .expect("a session")
            .into_inner();
        Self {
            requests,
            responses,
            buffer: std::collections::VecDeque::new(),
        }
    }

    /// Opens a session and registers a database.
    pub async fn registered(
        client: &mut CoordinatorClient<Channel>,
        resource: ResourceId,
    ) -> (Self, Lineage) {
        let mut session = Self::open(client).await;
        let register = Request::Register {
            request: RequestId(1),
            lineage: None,
            resources: vec![resource],
        };
        session.send([register]).await;
        // What it is to deliver may come before the answer, or after.
        let mut before = Vec::new();
        loop {
            let response = session.next_wire().await.expect("no status").expect("a response");
            match Response::try_from(response.clone()).expect("well formed") {
                Response::Registered {
                    request: RequestId(1),
                    lineage,
                } => {
                    session.buffer.extend(before);
                    return (session, lineage);
                }
                Response::Deliver { .. } => before.push(response),
                other => panic!("not registered: {other:?}"),
            }
        }
    }

    pub async fn send(&self, requests: impl IntoIterator<Item = Request>) {
        self.send_wire(requests.into_iter().map(Into::into).collect())
            .await;
    }

    pub async fn send_wire(&self, requests: Vec<v1::SessionRequest>) {
        self.requests
            .send(v1::SessionRequests { requests })
            .await
            .expect("the session is open");
    }

    /// The next response.
    pub async fn next(&mut self) -> Response {
        self.next_wire()
            .await
            .expect("no status")
            .expect("a response")
            .try_into()
            .expect("well formed")
    }

    /// The next response as it came, `None` at the orderly end.
    pub async fn next_wire(&mut self) -> Result<Option<v1::SessionResponse>, Status> {
        loop {
            if let Some(response) = self.buffer.pop_front() {
                return Ok(Some(response));
            }
            let message = timeout(STEP, self.responses.message())
                .await
                .expect("a response within the step's deadline");
            match message? {
                Some(message) => self.buffer.extend(message.responses),
                None => return Ok(None),
            }
        }
    }

    /// The status that the session is ended with, whatever comes before.
    pub async fn end(&mut self) -> Status {
        loop {
            match self.next_wire().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the session ended without a status"),
                Err(status) => return status,
            }
        }
    }
}

pub fn now() -> UnixMillis {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    UnixMillis(u64::try_from(since.as_millis()).expect("before the year 584 million"))
}

pub fn gtid() -> Gtid {
    gtid_at(now())
}

pub fn gtid_at(time: UnixMillis) -> Gtid {
    let mut random = [0; 10];
    getrandom::fill(&mut random).expect("random numbers");
    Gtid::new(time, random)
}

pub fn resource(n: u8) -> ResourceId {
    ResourceId([n; 16])
}

pub fn named(n: u64, resource: ResourceId) -> NamedBranch {
    NamedBranch {
        call: CallId(n),
        execution: ExecutionId(n + 1_000),
        resource,
        digest: 0,
        database_transaction: bytes::Bytes::new(),
    }
}

pub fn branch(gtid: Gtid, named: &NamedBranch) -> BranchId {
    BranchId {
        gtid,
        call: named.call,
        execution: named.execution,
    }
}

fn decide(gtid: Gtid, lineage: Lineage, proposal: Proposal) -> Decide {
    Decide {
        lineage,
        gtid,
        deadline: gtid.began_at().plus(30_000),
        proposal,
        guards: Vec::new(),
    }
}

pub fn commit(gtid: Gtid, lineage: Lineage, branches: &[NamedBranch]) -> Decide {
    decide(
        gtid,
        lineage,
        Proposal::Commit {
            branches: branches.to_vec(),
            read_only_count: 0,
        },
    )
}

pub fn abort(gtid: Gtid, lineage: Lineage) -> Decide {
    let cause = AbortCause::new(AbortKind::Requested, "no longer wanted");
    decide(
        gtid,
        lineage,
        Proposal::Abort {
            cause,
            branches: Vec::new(),
        },
    )
}

/// The single call's form of the same commit.
pub fn commit_call(gtid: Gtid, lineage: Lineage, branches: &[NamedBranch]) -> v1::CommitRequest {
    v1::CommitRequest {
        gtid: gtid.to_bytes().to_vec().into(),
        lineage: lineage.0.to_vec().into(),
        deadline_unix_ms: gtid.began_at().plus(30_000).0,
        branches: branches.iter().cloned().map(Into::into).collect(),
        read_only_count: 0,
    }
}

/// The single call's form of an abort.
pub fn abort_call(gtid: Gtid, lineage: Lineage, reason: &str) -> v1::AbortRequest {
    v1::AbortRequest {
        gtid: gtid.to_bytes().to_vec().into(),
        lineage: lineage.0.to_vec().into(),
        deadline_unix_ms: gtid.began_at().plus(30_000).0,
        reason: reason.to_owned(),
        branches: Vec::new(),
    }
}
