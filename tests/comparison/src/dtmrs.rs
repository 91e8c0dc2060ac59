//! dtmrs, a coordinator in Rust over a database: its server as a process over the fastest store of its that is durable, and a
//! load of transactions with two branches.
//!
//! - *Store.* Redis with an append-only file that is synced before each answer (`appendfsync always`). dtmrs' SQLite store sets
//!   `synchronous=NORMAL` by itself, by which a power cut may lose acknowledged transactions; its other stores are servers of
//!   SQL.
//! - *Transaction.* A saga of two steps: of its kinds the one with the fewest messages. One request to submit, then dtmrs calls
//!   both branches, over gRPC. The branches do nothing and answer at once.
//! - *End.* The second branch was called and the request was answered. What dtmrs still writes then is not waited for, which
//!   is in its favour; but every transaction must have succeeded in the end.

use crate::Failure;
use crate::cluster::{Load, finish, free_addresses, read_trace};
use crate::figures::Measurement;
use crate::grpc::Client;
use crate::tally::{LoadArgs, Tally, measure};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::future::{Future, Ready, ready};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::body::Body;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// How long the server and its store may take to answer.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two looks for it.
const START_POLL: Duration = Duration::from_millis(50);

/// How long one call may take, and how long the last transactions may take to succeed.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The branch's method.
const BRANCH_PATH: &str = "/synod.compare.Branch/Do";

/// Steps of a transaction.
const BRANCH_COUNT: usize = 2;

/// Where its programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) dtmrs: PathBuf,
    pub(crate) redis: PathBuf,
}

/// The server and its store. Dropping it kills both and removes the data.
struct Processes {
    directory: PathBuf,
    children: Vec<Child>,
}

/// One run: the server with fresh data, and the load.
pub(crate) fn run(programs: &Programs, directory: &Path, shape: Load) -> Result<Measurement, Failure> {
    let directory = directory.join("dtmrs");
    fs::create_dir_all(&directory)?;
    let mut processes = Processes {
        directory,
        children: Vec::new(),
    };
    let addresses = free_addresses()?;
    processes.start_redis(programs, &addresses[0])?;
    processes.start_dtmrs(programs, &addresses)?;
    let mut load = Command::new(std::env::current_exe()?);
    load.arg("dtmrs-load")
        .args(["--endpoints", &addresses[2]])
        .args(["--sessions", &shape.sessions.to_string()])
        .args(["--in-flight", &shape.in_flight.to_string()])
        .args(["--seconds", &shape.seconds.to_string()])
        .args(["--warm-up", &shape.warm_up.to_string()]);
    for child in &processes.children {
        load.arg("--process").arg(child.id().to_string());
    }
    let trace = File::create(processes.directory.join("load.log"))?;
    let load = load
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(trace)
        .spawn()?;
    let figures = finish(load, &processes.directory)?;
    if figures["failed"].as_u64() != Some(0) {
        return Err(format!("dtmrs refused or failed transactions: {figures}").into());
    }
    Measurement::read(&figures)
}

impl Processes {
    fn spawn(&mut self, name: &str, command: &mut Command) -> Result<(), Failure> {
        let trace = File::create(self.directory.join(format!("{name}.log")))?;
        let child = command
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(trace.try_clone()?)
            .stderr(trace)
            .spawn()?;
        self.children.push(child);
        Ok(())
    }

    fn start_redis(&mut self, programs: &Programs, address: &str) -> Result<(), Failure> {
        let (host, port) = address.rsplit_once(':').ok_or("an address has a port")?;
        let mut command = Command::new(&programs.redis);
        command
            .args(["--bind", host, "--port", port, "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always"]);
        self.spawn("redis", &mut command)?;
        let deadline = std::time::Instant::now() + START_TIMEOUT;
        while std::net::TcpStream::connect(address).is_err() {
            if std::time::Instant::now() > deadline {
                let trace = read_trace(&self.directory.join("redis.log"));
                return Err(format!("redis does not listen at {address}: {trace}").into());
            }
            std::thread::sleep(START_POLL);
        }
        Ok(())
    }

    fn start_dtmrs(&mut self, programs: &Programs, addresses: &[String]) -> Result<(), Failure> {
        let mut command = Command::new(&programs.dtmrs);
        command
            .env("DTMRS_DB", format!("redis://{}/0", addresses[0]))
            .env("DTMRS_ADDR", &addresses[1])
            .env("DTMRS_GRPC_ADDR", &addresses[2])
            // It traces every transaction otherwise.
            .env("RUST_LOG", "error");
        self.spawn("dtmrs", &mut command)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let deadline = std::time::Instant::now() + START_TIMEOUT;
        while runtime.block_on(is_serving(&addresses[2])).is_err() {
            if std::time::Instant::now() > deadline {
                let trace = read_trace(&self.directory.join("dtmrs.log"));
                return Err(format!("dtmrs does not serve at {}: {trace}", addresses[2]).into());
            }
            std::thread::sleep(START_POLL);
        }
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            // One that ended by itself is gone, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

// ---- its messages, of `dtmrs.v1`, with the fields that are needed here ----

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct Step {
    #[prost(string, tag = "1")]
    action: String,
    #[prost(string, tag = "2")]
    compensate: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SubmitRequest {
    #[prost(string, tag = "1")]
    gid: String,
    #[prost(string, tag = "2")]
    trans_type: String,
    #[prost(message, repeated, tag = "3")]
    steps: Vec<Step>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct QueryRequest {
    #[prost(string, tag = "1")]
    gid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TransactionView {
    #[prost(string, tag = "3")]
    status: String,
}

async fn is_serving(endpoint: &str) -> Result<(), Failure> {
    let mut client = Client::connect(endpoint, CALL_TIMEOUT).await?;
    let _: Empty = client.call("/dtmrs.v1.Tc/NewGid", Empty {}).await?;
    Ok(())
}

// ---- the load ----

/// Runs the load and writes its figures as JSON.
pub(crate) fn load(args: &LoadArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let figures = runtime.block_on(LocalSet::new().run_until(drive(args)))?;
    println!("{figures}");
    Ok(())
}

async fn drive(args: &LoadArgs) -> Result<serde_json::Value, Failure> {
    let endpoint = args.endpoints.first().ok_or("no endpoint")?;
    let (called, calls) = mpsc::unbounded_channel();
    let branches = [serve(called.clone()).await?, serve(called).await?];
    let waiting = Waiting::default();
    tokio::task::spawn_local(waiting.clone().hear(calls));
    let tally = Tally::new(args)?;
    let mut last = Vec::new();
    for session in 0..args.sessions {
        let client = Client::connect(endpoint, CALL_TIMEOUT).await?;
        for place in 0..args.share(session) {
            let one = Place {
                name: format!("{session}-{place}"),
                client: client.clone(),
                branches,
                waiting: waiting.clone(),
                tally: tally.clone(),
            };
            last.push(tokio::task::spawn_local(one.keep()));
        }
    }
    let figures = measure(args, &tally).await;
    // Every place's last transaction has succeeded, and with it, since each waits for the one before, all have been called.
    let mut client = Client::connect(endpoint, CALL_TIMEOUT).await?;
    for gid in futures::future::join_all(last).await {
        let gid = gid?.map_err(|status| format!("dtmrs: {status}"))?;
        await_success(&mut client, &gid).await?;
    }
    Ok(figures)
}

/// One transaction at a time.
struct Place {
    name: String,
    client: Client,
    branches: [SocketAddr; BRANCH_COUNT],
    waiting: Waiting,
    tally: Rc<RefCell<Tally>>,
}

impl Place {
    /// Returns the last transaction.
    async fn keep(mut self) -> Result<String, Status> {
        for turn in 0u64.. {
            let gid = format!("{}-{turn}", self.name);
            let done = self.waiting.expect(gid.clone());
            let step = |address: &SocketAddr| Step {
                action: format!("grpc://{address}{BRANCH_PATH}"),
                compensate: format!("grpc://{address}{BRANCH_PATH}"),
            };
            let submit = SubmitRequest {
                gid: gid.clone(),
                trans_type: "saga".to_owned(),
                steps: self.branches.iter().map(step).collect(),
            };
            let begun = Instant::now();
            let submitted = self.client.call::<_, Empty>("/dtmrs.v1.Tc/Submit", submit);
            let (submitted, called) = tokio::join!(submitted, timeout(CALL_TIMEOUT, done));
            if submitted.is_err() || !matches!(called, Ok(Ok(()))) {
                self.tally.borrow_mut().failed_count += 1;
                submitted?;
                return Err(Status::deadline_exceeded(format!(
                    "the branches of {gid} were not called"
                )));
            }
            self.tally.borrow_mut().end(begun, Instant::now());
            if self.tally.borrow().is_over() {
                return Ok(gid);
            }
        }
        unreachable!("a run has fewer than 2^64 transactions")
    }
}

/// dtmrs writes the end after the last call.
async fn await_success(client: &mut Client, gid: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + CALL_TIMEOUT;
    loop {
        let query = QueryRequest { gid: gid.to_owned() };
        let view: TransactionView = client.call("/dtmrs.v1.Tc/Query", query).await?;
        if view.status == "succeed" {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{gid} is still {} at dtmrs", view.status).into());
        }
        sleep(START_POLL).await;
    }
}

/// Transactions that wait for their branches' calls.
#[derive(Clone, Default)]
struct Waiting(Rc<RefCell<BTreeMap<String, Called>>>);

/// How many of a transaction's branches were called, and whom to tell when all were.
struct Called {
    count: usize,
    done: oneshot::Sender<()>,
}

impl Waiting {
    fn expect(&self, gid: String) -> oneshot::Receiver<()> {
        let (done, called) = oneshot::channel();
        self.0.borrow_mut().insert(gid, Called { count: 0, done });
        called
    }

    async fn hear(self, mut calls: mpsc::UnboundedReceiver<String>) {
        while let Some(gid) = calls.recv().await {
            let mut waiting = self.0.borrow_mut();
            let Some(called) = waiting.get_mut(&gid) else {
                continue;
            };
            called.count += 1;
            if called.count == BRANCH_COUNT
                && let Some(called) = waiting.remove(&gid)
            {
                // An error: the place has given up.
                let _ = called.done.send(());
            }
        }
    }
}

// ---- the branches ----

/// Serves one branch service on a port of its own.
async fn serve(called: mpsc::UnboundedSender<String>) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().add_service(Branch { called });
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok(address)
}

/// A branch that does nothing and answers at once.
#[derive(Clone)]
struct Branch {
    called: mpsc::UnboundedSender<String>,
}

impl NamedService for Branch {
    const NAME: &'static str = "synod.compare.Branch";
}

impl UnaryService<Empty> for Branch {
    type Response = Empty;
    type Future = Ready<Result<Response<Empty>, Status>>;

    fn call(&mut self, request: Request<Empty>) -> Self::Future {
        let gid = request
            .metadata()
            .get("dtm-gid")
            .and_then(|gid| gid.to_str().ok());
        // An error: the load has ended.
        let _ = self.called.send(gid.unwrap_or_default().to_owned());
        ready(Ok(Response::new(Empty {})))
    }
}

impl tower::Service<http::Request<Body>> for Branch {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<Empty, Empty>::default();
            Ok(tonic::server::Grpc::new(codec).unary(method, request).await)
        })
    }
}
