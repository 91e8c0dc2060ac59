//! `synod dev`: a whole coordinator in one process, for development.

use super::client;
use super::exit::{Exit, Failure};
use super::output::print;
use super::start;
use crate::config::Settings;
use crate::directory::{DirectoryError, LOST_AND_FOUND};
use crate::replica_process::{self, RunError};
use std::collections::BTreeMap;
use std::fs;
use std::io;
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
    let twice = (1..).zip(&args.ports).find_map(|(next, port)| {
        let is_repeated = *port != 0 && args.ports[next..].contains(port);
        is_repeated.then_some(port)
    });
    if let Some(port) = twice {
        return Err(Failure::new(
            Exit::Usage,
            format!("--ports names {port} twice: each replica needs a port of its own, or 0 for any"),
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
    refuse_foreign(data)?;
    let shutdown = CancellationToken::new();
    start::end_on_signal(shutdown.clone())?;
    let cluster = "dev"
        .parse()
        .map_err(|error| Failure::new(Exit::Configuration, format!("{error}")))?;
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut threads = Vec::new();
    for (replica, listener) in listeners {
        let directory = data.join(directory_name(replica));
        let settings = Settings::new(Clone::clone(&cluster), replica, peers.clone(), directory);
        threads.push(spawn(settings, listener, shutdown.clone(), events.clone())?);
    }
    drop(events);
    let addresses: Vec<_> = peers.into_values().collect();

    let mut unopened_count = addresses.len();
    let mut result = Ok(Exit::Success);
    while let Some(event) = inbox.recv().await {
        match event {
            Event::Opened => {
                unopened_count -= 1;
                if unopened_count == 0 {
                    print(&format!("listening {}\n", addresses.join(",")))?;
                    tokio::spawn(announce(addresses.clone()));
                }
            }
            // One replica that fails ends all three: a development coordinator that limps on would hide it.
            Event::Ended(replica, Err(error)) => {
                let Failure { exit, text } = error.into();
                result = result.and(Err(Failure::new(exit, format!("replica {replica}: {text}"))));
                shutdown.cancel();
            }
            Event::Ended(_, Ok(())) => {}
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
    result
}

fn directory_name(replica: ReplicaId) -> String {
    format!("replica-{replica}")
}

/// Refuses a directory that holds anything but what this verb makes there. One that does not exist yet is made.
fn refuse_foreign(data: &Path) -> Result<(), Failure> {
    let failed = |source: io::Error| {
        let path = data.to_owned();
        Failure::from(RunError::Directory(match source.kind() {
            io::ErrorKind::NotADirectory => DirectoryError::NotADirectory { path },
            _ => DirectoryError::Io { path, source },
        }))
    };
    let entries = match fs::read_dir(data) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        let is_own =
            entry == LOST_AND_FOUND || (1..=3).any(|replica| entry == directory_name(ReplicaId(replica)));
        if !is_own {
            let text = format!(
                "`{}` holds `{entry}`, which `synod dev` has not made: name a directory that is empty or does not exist yet",
                data.display()
            );
            return Err(Failure::new(Exit::Configuration, text));
        }
    }
    Ok(())
}

/// What the replicas' threads tell.
enum Event {
    Opened,
    Ended(ReplicaId, Result<(), RunError>),
}

/// Starts a replica on a thread and a reactor of its own, as it would have in a process of its own.
fn spawn(
    settings: Settings,
    listener: TcpListener,
    shutdown: CancellationToken,
    events: mpsc::UnboundedSender<Event>,
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
            let opened = replica_process::open(settings).await?;
            let _ = events.send(Event::Opened);
            opened.run(listener, shutdown).await
        });
        let _ = events.send(Event::Ended(replica, end));
    };
    thread::Builder::new()
        .name(directory_name(replica))
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
