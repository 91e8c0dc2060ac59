//! `synod dev`: a whole coordinator in one process, for development.

use super::client;
use super::exit::{Exit, Failure};
use super::output::print;
use super::start;
use crate::config::Settings;
use crate::replica_process::{self, RunError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use synod_proto::ids::ReplicaId;
use synod_proto::v1;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How often the replicas are asked whether one of them leads, until one does.
const READY_POLL: Duration = Duration::from_millis(20);

/// Arguments of `synod dev`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Keep the replicas' data here; without it, a temporary directory is used and removed at the end.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The replicas' ports on 127.0.0.1; 0 takes any that is free.
    #[arg(
        long,
        value_name = "PORT,PORT,PORT",
        value_delimiter = ',',
        default_value = "7401,7402,7403"
    )]
    ports: Vec<u16>,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    client::block_on(serve(args))
}

async fn serve(args: &Args) -> Result<Exit, Failure> {
    if args.ports.len() != 3 {
        return Err(Failure::new(
            Exit::Usage,
            format!("--ports takes three ports, not {}", args.ports.len()),
        ));
    }
    // Lives as long as the replicas; removed when it is dropped.
    let temporary = match &args.data {
        Some(_) => None,
        None => Some(tempfile::tempdir().map_err(|error| {
            Failure::new(
                Exit::Configuration,
                format!("cannot make a temporary directory: {error}; name one with --data"),
            )
        })?),
    };
    let data = args
        .data
        .as_deref()
        .or(temporary.as_ref().map(tempfile::TempDir::path))
        .unwrap_or(Path::new("."));

    let mut listeners = Vec::new();
    let mut peers = BTreeMap::new();
    for (replica, port) in (1..).map(ReplicaId).zip(&args.ports) {
        let listener = start::listen(&format!("127.0.0.1:{port}")).await?;
        let address = listener
            .local_addr()
            .map_err(|error| Failure::new(Exit::Address, error.to_string()))?;
        peers.insert(replica, address.to_string());
        listeners.push((replica, listener));
    }
    let shutdown = CancellationToken::new();
    start::end_on_signal(shutdown.clone())?;
    let cluster = "dev"
        .parse()
        .map_err(|error| Failure::new(Exit::Configuration, format!("{error}")))?;
    let (ended, mut ends) = mpsc::unbounded_channel();
    let mut threads = Vec::new();
    for (replica, listener) in listeners {
        let directory = data.join(format!("replica-{replica}"));
        let settings = Settings::new(Clone::clone(&cluster), replica, peers.clone(), directory);
        threads.push(spawn(settings, listener, shutdown.clone(), ended.clone())?);
    }
    drop(ended);
    let addresses: Vec<_> = peers.into_values().collect();
    print(&format!("listening {}\n", addresses.join(",")))?;
    tokio::spawn(announce(addresses));

    // One replica that fails ends all three: a development coordinator that limps on would hide it.
    let mut result = Ok(Exit::Success);
    while let Some((replica, end)) = ends.recv().await {
        if let Err(error) = end {
            let Failure { exit, text } = error.into();
            result = result.and(Err(Failure::new(exit, format!("replica {replica}: {text}"))));
            shutdown.cancel();
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
    result
}

/// Starts a replica on a thread and a reactor of its own, as it would have in a process of its own.
fn spawn(
    settings: Settings,
    listener: TcpListener,
    shutdown: CancellationToken,
    ended: mpsc::UnboundedSender<(ReplicaId, Result<(), RunError>)>,
) -> Result<thread::JoinHandle<()>, Failure> {
    let failed =
        |error: std::io::Error| Failure::new(Exit::Failed, format!("cannot start a replica: {error}"));
    let replica = settings.replica;
    // A listener belongs to the reactor it was made on.
    let listener = listener.into_std().map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let body = move || {
        let end = runtime.block_on(async {
            let listener = TcpListener::from_std(listener).map_err(RunError::Server)?;
            replica_process::run(settings, listener, shutdown).await
        });
        let _ = ended.send((replica, end));
    };
    thread::Builder::new()
        .name(format!("replica-{replica}"))
        .spawn(body)
        .map_err(failed)
}

/// Says when a leader serves.
async fn announce(addresses: Vec<String>) {
    loop {
        for address in &addresses {
            let Ok(mut client) = client::connect(address).await else {
                continue;
            };
            let Ok(reply) = client.status(v1::StatusRequest {}).await else {
                continue;
            };
            if reply.into_inner().role == "leader" {
                let _ = print(&format!("ready {}\n", addresses.join(",")));
                return;
            }
        }
        tokio::time::sleep(READY_POLL).await;
    }
}
