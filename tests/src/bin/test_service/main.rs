//! The participant of the process tests: one office of a bank, with a redb file of its own. It takes part in others'
//! transactions, begins its own, and can be stopped at a named point of either, so that a test can kill whom it likes
//! just there.
//!
//! It says `listening ADDRESS` once it serves, and ends in good order when its stdin is closed, or on SIGTERM.

mod bank;
mod guard;
mod points;
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
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};

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
        Verb::Serve(args) => serve(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("test_service: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn serve(args: &ServeArgs) -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter("info,synod=debug")
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let (points, stdin_closed) = Points::listen();
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

    let listener = TcpListener::bind(args.listen).await?;
    points::say(&format!("listening {}", listener.local_addr()?));
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = async move {
        tokio::select! {
            _ = stdin_closed => {}
            _ = terminate.recv() => {}
        }
    };
    Server::builder()
        .layer(participant.layer())
        .add_service(BankServer::new(office))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), shutdown)
        .await?;
    participant.shutdown().await;
    Ok(())
}
