//! One replica, from its directory to its last reply: what `synod start` runs once, `synod dev` three times, and tests
//! as often as they like.

use crate::config::Settings;
use crate::directory::{Directory, DirectoryError};
use crate::driver::{Driver, Health, Inbox, StorageBroken, chain};
use crate::links::{self, Incoming, LINK_MESSAGE_BYTES_MAX};
use crate::log::{Disk, FileDisk, Log, LogError, Options, ReadError, Storage};
use crate::service::{EVENT_COUNT_MAX, Service};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use synod_coordinator_core::durable::Recovered;
use synod_coordinator_core::replica::{Config, Replica};
use synod_proto::environment::{Connector, Io, WallClock};
use synod_proto::ids::{Incarnation, ProcessNonce};
use synod_proto::limits::MESSAGE_BYTES_MAX;
use synod_proto::v1::FILE_DESCRIPTOR_SET;
use synod_proto::v1::coordinator_server::{CoordinatorServer, SERVICE_NAME};
use synod_proto::v1::replication_server::{self, ReplicationServer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server;
use tonic_reflection::pb::v1::server_reflection_server;

/// How long clients may take to read their last replies before their connections are cut.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The most messages of links on their way to the driver. Above, the links' readers wait, and the peers drop.
const LINK_EVENT_COUNT_MAX: usize = 1_024;

/// A silent client is probed, so that one that vanished without a word does not keep its session for ever.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// How much one stream, and one connection, may send ahead of its reader, in bytes.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// The most streams on one connection: a session needs one, the rest are single calls.
const STREAM_COUNT_MAX: u32 = 1_024;

const _: () = assert!(MESSAGE_BYTES_MAX < STREAM_WINDOW_BYTES as usize);

/// Why a replica did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The data directory is not this replica's, or not usable. Nothing was started.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The log cannot be opened. Nothing was started.
    #[error("{}", chain(.0))]
    Log(#[from] LogError),
    /// A value that was readable a moment ago is not. Nothing was started.
    #[error("{}; start again, and look at the disk if that happens twice", chain(.0))]
    Read(#[from] ReadError),
    /// The operating system gave no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
    /// The operating system gave no thread.
    #[error("cannot start the storage thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The listening socket or the server failed.
    #[error("the server: {0}")]
    Server(#[source] std::io::Error),
    /// The log could not be written (L9). Nothing was acknowledged since.
    #[error("the log could not be written, so this replica has ended: {0}")]
    Storage(String),
}

/// [Opens](open) a replica and runs it until `shutdown` is cancelled; see [`Opened::run`].
///
/// # Errors
/// See [`RunError`]; each says what to do next.
pub async fn run(
    settings: Settings,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    open(settings).await?.run(listener, shutdown).await
}

/// A replica of which the directory is locked and the log is read. It has sent nothing yet.
#[derive(Debug)]
pub struct Opened {
    settings: Settings,
    replica: Replica,
    log: Log<FileDisk>,
    incarnation: Incarnation,
}

/// Opens a replica's directory and log.
///
/// # Errors
/// The directory or the log is not this replica's, or not usable; nothing was started.
pub async fn open(settings: Settings) -> Result<Opened, RunError> {
    // A18: what was begun on a blocking thread is waited for, also if this future is dropped: the directory's lock
    // goes with it.
    let opened = tokio::task::spawn_blocking(move || Opened::open(settings)).await;
    opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

impl Opened {
    fn open(settings: Settings) -> Result<Self, RunError> {
        let options = Options {
            segment_bytes: settings.segment_bytes,
        };
        let replicas = settings.peers.keys().copied().collect();
        let directory = Directory::open(
            &settings.data,
            &settings.cluster,
            settings.replica,
            &replicas,
            options,
        )?;
        let incarnation = directory.identity().incarnation;
        let (log, recovered) = directory.open_log(options)?;
        let process = ProcessNonce(random()?);
        let replica = load(&settings, &log, recovered, incarnation, process, random()?)?;
        Ok(Self {
            settings,
            replica,
            log,
            incarnation,
        })
    }

    /// Runs the replica until `shutdown` is cancelled: then it resigns, answers what it can, closes its streams, and
    /// returns once its log is closed. Dropping the future instead is like a crash of the process.
    ///
    /// # Errors
    /// The server failed, or the log cannot be written.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), RunError> {
        let platform = Platform {
            incarnation: self.incarnation,
            storage: Storage::start(self.log).map_err(RunError::Thread)?,
            clock: WallClock::system(),
            connector: Connector::tcp(),
            incoming: TcpIncoming::from(listener).with_nodelay(Some(true)),
        };
        run_on(platform, &self.settings, self.replica, shutdown).await
    }
}

/// What a replica stands on: the log's storage, a wall clock and a network. [`Opened::run`] takes this machine's; a simulation
/// gives its own, and tokio's virtual time.
#[derive(Debug)]
pub struct Platform<I> {
    /// That of the data directory (L10).
    pub incarnation: Incarnation,
    /// The log that the replica was [loaded](load) from.
    pub storage: Storage,
    /// What stamps are made of (T14).
    pub clock: WallClock,
    /// The way to the peers.
    pub connector: Connector,
    /// Connections of peers and clients, as a listener yields them.
    pub incoming: I,
}

/// Makes the replica's core from what the log holds. `process` is drawn at random by every process (L10). `seed` is its chance: for election timeouts, and for the lineage of a
/// coordinator that is born. Replicas and coordinators must differ in it.
///
/// # Errors
/// A value cannot be read.
pub fn load<D: Disk>(
    settings: &Settings,
    log: &Log<D>,
    recovered: Recovered,
    incarnation: Incarnation,
    process: ProcessNonce,
    seed: u64,
) -> Result<Replica, ReadError> {
    let mut config = Config::new(
        settings.replica,
        settings.peers.keys().copied().collect(),
        incarnation,
    );
    config.timing.heartbeat_us = settings.heartbeat_ms * 1_000;
    config.timing.election_timeout_us_min = settings.election_timeout_ms_min * 1_000;
    config.timing.election_timeout_us_max = settings.election_timeout_ms_max * 1_000;
    config.watermark_lag_ms = settings.watermark_lag_ms;
    let mut replica = Replica::new(config, recovered, process, seed);
    log.load(|accepted| replica.load(accepted))?;
    Ok(replica)
}

fn random() -> Result<u64, RunError> {
    getrandom::u64().map_err(|error| RunError::Random(error.to_string()))
}

/// As [`Opened::run`], on a platform of the caller's own.
///
/// # Errors
/// The server failed, or the log cannot be written.
pub async fn run_on<I, S>(
    platform: Platform<I>,
    settings: &Settings,
    replica: Replica,
    shutdown: CancellationToken,
) -> Result<(), RunError>
where
    I: Stream<Item = std::io::Result<S>> + Send + 'static,
    S: Io + Connected + 'static,
{
    let Platform {
        incarnation,
        storage,
        clock,
        connector,
        incoming: connections,
    } = platform;
    // Two moments: no more requests are taken; and the driver has ended, so streams may close.
    let stopping = shutdown;
    let stopped = CancellationToken::new();
    let _ended_if_dropped = stopped.clone().drop_guard();

    let identity = links::Identity {
        cluster: settings.cluster.clone(),
        replica: settings.replica,
        replicas: settings.peers.keys().copied().collect(),
    };
    let (link_events, links) = mpsc::channel(LINK_EVENT_COUNT_MAX);
    let (session_events, sessions) = mpsc::channel(EVENT_COUNT_MAX);
    let (health, health_changes) = watch::channel(Health::NotServing);

    // Aborted when this function ends or is dropped.
    let mut tasks = JoinSet::new();
    for (peer, address) in settings
        .peers
        .iter()
        .filter(|(peer, _)| **peer != settings.replica)
    {
        tasks.spawn(links::keep_link(
            identity.clone(),
            connector.clone(),
            *peer,
            address.clone(),
            link_events.clone(),
        ));
    }
    let incoming = Incoming::new(identity, link_events, stopped.clone());
    let service = Service::new(
        settings.cluster.clone(),
        settings.replica,
        incarnation,
        Arc::new(settings.peers.clone()),
        session_events,
        stopping.clone(),
    );
    let server = server(
        service,
        incoming,
        health_changes,
        connections,
        stopped.clone(),
        &mut tasks,
    );
    let mut server = tokio::spawn(server);
    let abort_server = AbortOnDrop(server.abort_handle());

    let mut driver = Driver::new(settings.replica, replica, storage, clock, health);
    let mut inbox = Inbox { links, sessions };
    let mut result = tokio::select! {
        result = driver.run(&mut inbox, &stopping) => result.map_err(storage_error),
        ended = &mut server => Err(RunError::Server(server_end(ended))),
    };
    // From here on whatever still asks is told that the replica is gone.
    drop(inbox);
    stopped.cancel();
    if result.is_ok() && timeout(CLOSE_TIMEOUT, &mut server).await.is_err() {
        tracing::info!("cut the connections of clients that did not close them");
    }
    drop(abort_server);
    let closed = driver.close().await.map_err(storage_error);
    if result.is_ok() {
        result = closed;
    }
    result
}

fn storage_error(StorageBroken(text): StorageBroken) -> RunError {
    RunError::Storage(text)
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn server_end(ended: Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>) -> std::io::Error {
    match ended {
        Ok(Ok(())) => std::io::Error::other("ended by itself"),
        Ok(Err(error)) => std::io::Error::other(error),
        Err(error) => std::io::Error::other(error),
    }
}

/// Every gRPC service of a replica, on one port.
fn server<I, S>(
    service: Service,
    incoming: Incoming,
    mut health_changes: watch::Receiver<Health>,
    connections: I,
    stopped: CancellationToken,
    tasks: &mut JoinSet<()>,
) -> impl Future<Output = Result<(), tonic::transport::Error>> + use<I, S>
where
    I: Stream<Item = std::io::Result<S>> + Send + 'static,
    S: Io + Connected + 'static,
{
    let coordinator = CoordinatorServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(usize::MAX);
    let replication = ReplicationServer::new(incoming)
        .max_decoding_message_size(LINK_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(usize::MAX);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // The same files describe what participants serve, and no replica does.
        .with_service_name(SERVICE_NAME)
        .with_service_name(replication_server::SERVICE_NAME)
        .with_service_name(health_server::SERVICE_NAME)
        .with_service_name(server_reflection_server::SERVICE_NAME)
        .build_v1()
        .expect("the compiled descriptors are valid");
    let (reporter, health) = tonic_health::server::health_reporter();
    tasks.spawn(async move {
        loop {
            let status = match *health_changes.borrow_and_update() {
                Health::Serving => ServingStatus::Serving,
                Health::NotServing => ServingStatus::NotServing,
            };
            for name in ["", SERVICE_NAME] {
                reporter.set_service_status(name, status).await;
            }
            if health_changes.changed().await.is_err() {
                return;
            }
        }
    });
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAM_COUNT_MAX)
        .add_service(coordinator)
        .add_service(replication)
        .add_service(reflection)
        .add_service(health)
        .serve_with_incoming_shutdown(connections, async move {
            stopped.cancelled().await;
        })
}
