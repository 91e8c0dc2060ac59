//! `synod start`: one replica, configured by flags, a file, or both.

use super::exit::{Exit, Failure};
use super::output::print;
use crate::config::{ConfigError, Draft, Settings};
use crate::replica_process;
use std::path::PathBuf;
use std::process;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Arguments of `synod start`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file (TOML). Flags override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The cluster's name, the same at every replica.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// This replica's number.
    #[arg(long, value_name = "N")]
    replica: Option<u64>,
    /// This replica's own directory.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The address to listen at; by default this replica's entry among the peers.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// A replica and the address that others reach it at. Once for every replica, this one included.
    #[arg(long = "peer", value_name = "ID=HOST:PORT")]
    peers: Vec<String>,
}

pub(super) fn run(args: Args, trace: Option<&str>) -> Result<Exit, Failure> {
    let (settings, file_trace) =
        settings(args).map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
    super::init_trace(trace.or(file_trace.as_deref()).unwrap_or("info"))?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?
        .block_on(serve(settings))
}

fn settings(args: Args) -> Result<(Settings, Option<String>), ConfigError> {
    let mut draft = match &args.config {
        Some(file) => Draft::read(file)?,
        None => Draft::default(),
    };
    if let Some(cluster) = args.cluster {
        draft.set_cluster(cluster);
    }
    if let Some(replica) = args.replica {
        draft.set_replica(replica);
    }
    if let Some(data) = args.data {
        draft.set_data(data);
    }
    if let Some(listen) = args.listen {
        draft.set_listen(listen);
    }
    if !args.peers.is_empty() {
        draft.set_peers(&args.peers)?;
    }
    let trace = draft.trace().map(str::to_owned);
    Ok((draft.finish()?, trace))
}

async fn serve(settings: Settings) -> Result<Exit, Failure> {
    let listener = listen(&settings.listen).await?;
    let address = listener
        .local_addr()
        .map_or_else(|_| settings.listen.clone(), |address| address.to_string());
    let shutdown = CancellationToken::new();
    end_on_signal(shutdown.clone())?;
    tracing::info!(cluster = %settings.cluster, replica = %settings.replica, %address, data = %settings.data.display(), "starting");
    // Said only once nothing of its own can stop the replica any more; whoever connects meanwhile waits.
    let opened = replica_process::open(settings).await?;
    print(&format!("listening {address}\n"))?;
    opened.run(listener, shutdown).await?;
    Ok(Exit::Success)
}

/// Takes an address, or says what is in the way.
pub(super) async fn listen(address: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another process listens there: end it, or choose another port",
            std::io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address: choose one of its own, or 0.0.0.0"
            }
            _ => "check the address",
        };
        Failure::new(
            Exit::Address,
            format!("cannot listen at {address}: {error}; {advice}"),
        )
    })
}

/// Begins the shutdown at the first SIGTERM or SIGINT; a second one ends the process where it stands, which the log
/// survives.
pub(super) fn end_on_signal(shutdown: CancellationToken) -> Result<(), Failure> {
    let install = |kind| {
        signal(kind).map_err(|error| Failure::new(Exit::Failed, format!("cannot take signals: {error}")))
    };
    let mut terminate = install(SignalKind::terminate())?;
    let mut interrupt = install(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for is_first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if is_first {
                tracing::info!("shutting down");
                shutdown.cancel();
            }
        }
        process::exit(i32::from(Exit::Failed as u8));
    });
    Ok(())
}
