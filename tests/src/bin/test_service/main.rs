//! The services of the process tests, each with a redb file of its own: an office of a bank, which takes part in others'
//! transactions and begins its own, and senders and a receiver of messages. All can be stopped at named points, so that a test
//! can kill whom it likes just there.
//!
//! It says `listening ADDRESS` once it serves, and ends in good order when its stdin is closed, or on SIGTERM.

mod bank;
mod guard;
mod points;
mod post;
mod store;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bank::Office;
use clap::{Parser, Subcommand};
use points::Points;
use store::PausingStore;
use synod::Participant;
use synod::resource::redb::RedbResource;
use synod_tests::process::bank::bank_server::BankServer;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Become another program that the kernel ends together with the one that started it.
    Guard {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Run an office.
    Serve(ServeArgs),
    /// Run a sender of messages.
    Send(post::SendArgs),
    /// Run a receiver of messages.
    Receive(post::ReceiveArgs),
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// The replicas, as HOST:PORT.
    #[arg(long, value_delimiter = ',')]
    coordinators: Vec<String>,
    #[arg(long)]
    database: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
    /// The other office.
    #[arg(long)]
    other: SocketAddr,
    #[arg(long)]
    decide_timeout_ms: u64,
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Guard { command } => Err(guard::exec(&command).into()),
        Verb::Serve(args) => run(serve(&args)),
        Verb::Send(args) => run(post::send(&args)),
        Verb::Receive(args) => run(post::receive(&args)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("test_service: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One thread a service: what stops it stops all of it.
fn run(service: impl Future<Output = Result<(), Box<dyn Error>>>) -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(service)
}

/// Traces to stderr, and listens for points to stop at; the receiver is told when stdin is closed.
fn trace_and_points() -> (Points, oneshot::Receiver<()>) {
    let (points, stdin_closed) = Points::listen();
    let trace = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_filter(EnvFilter::new("info,synod=debug"));
    let at_events = points::AtEvents::new(points.clone())
        .with_filter(filter_fn(|metadata| metadata.target() == "synod::outbox::lane"));
    tracing_subscriber::registry().with(trace).with(at_events).init();
    (points, stdin_closed)
}

/// Says where the service listens, once it does.
async fn listen(address: SocketAddr) -> std::io::Result<TcpIncoming> {
    let listener = TcpListener::bind(address).await?;
    points::say(&format!("listening {}", listener.local_addr()?));
    Ok(TcpIncoming::from(listener).with_nodelay(Some(true)))
}

/// The end of the service: its test has gone, or says so.
fn shutdown(stdin_closed: oneshot::Receiver<()>) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = stdin_closed => {}
            _ = terminate.recv() => {}
        }
    })
}

async fn serve(args: &ServeArgs) -> Result<(), Box<dyn Error>> {
    let (points, stdin_closed) = trace_and_points();
    let participant = Participant::builder()
        .coordinators(
            args.coordinators
                .iter()
                .map(|address| format!("http://{address}")),
        )
        .decide_timeout(Duration::from_millis(args.decide_timeout_ms))
        .connect()
        .await?;
    let redb = RedbResource::open(&args.database)?;
    bank::open_accounts(&redb).await?;
    // From here on the branches that an earlier life of this process left in doubt are taken up (traps C9).
    let database = participant
        .resource(PausingStore::new(redb, points.clone()))
        .await?;
    // Not one connection for the office's whole life: the other one is killed now and then.
    let other = Endpoint::from_shared(format!("http://{}", args.other))?
        .connect_timeout(Duration::from_secs(1))
        .connect_lazy();
    let office = Office {
        participant: participant.clone(),
        database,
        other,
        points,
    };

    let incoming = listen(args.listen).await?;
    Server::builder()
        .layer(participant.layer())
        .add_service(BankServer::new(office))
        .serve_with_incoming_shutdown(incoming, shutdown(stdin_closed)?)
        .await?;
    participant.shutdown().await;
    Ok(())
}
