//! A coordinator replica: the real driver, links and services, with its log on a disk in memory.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use synod_coordinator::config::Settings;
use synod_coordinator::log::{Disk as _, Identity, Log, MemoryDisk, Options, Storage};
use synod_coordinator::replica_process::{Platform, load, run_on};
use synod_proto::environment::WallClock;
use synod_proto::ids::{Incarnation, ProcessNonce, ReplicaId};
use tokio_util::sync::CancellationToken;

use crate::net;

pub const PORT: u16 = 7_400;

/// Where participants look for the coordinator.
pub const COORDINATORS: [&str; 3] = [
    "http://replica-1:7400",
    "http://replica-2:7400",
    "http://replica-3:7400",
];

/// Small, so that segments change during a run.
const SEGMENT_BYTES: u64 = 64 << 10;

/// The name of a replica's host.
pub fn host(replica: u8) -> String {
    format!("replica-{replica}")
}

/// What outlives a replica's process.
#[derive(Debug, Default)]
pub struct Machine {
    disk: MemoryDisk,
    /// What a disk that forgets goes back to.
    disk_at_start: MemoryDisk,
    forgets: bool,
    shutdown: CancellationToken,
    start_count: u64,
}

/// What a replica is started with, again after every crash.
#[derive(Clone, Debug)]
pub struct Start {
    pub replica: u8,
    pub seed: u64,
    pub clock: WallClock,
    pub sync_latency: Duration,
    machine: Arc<Mutex<Machine>>,
}

impl Start {
    pub fn new(replica: u8, seed: u64, clock: WallClock, sync_latency: Duration) -> Self {
        Self {
            replica,
            seed,
            clock,
            sync_latency,
            machine: Arc::default(),
        }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().expect("no holder panics")
    }

    /// What the disk holds after a loss of power.
    pub fn crash(&self, choose: impl FnMut(usize) -> usize) {
        let mut machine = self.machine();
        machine.disk = if machine.forgets {
            machine.disk_at_start.fork()
        } else {
            machine.disk.crash(choose)
        };
    }

    /// From now on a crash takes the disk back to where it was when the process started.
    pub fn forget(&self) {
        self.machine().forgets = true;
    }

    /// Lets the process end in good order.
    pub fn stop(&self) {
        self.machine().shutdown.cancel();
    }
}

/// The replica's process, until it is stopped.
pub async fn run(start: Start) -> turmoil::Result {
    let (disk, shutdown, start_count) = {
        let mut machine = start.machine();
        machine.start_count += 1;
        machine.shutdown = CancellationToken::new();
        machine.disk_at_start = machine.disk.fork();
        (
            Arc::new(machine.disk.clone()),
            machine.shutdown.clone(),
            machine.start_count,
        )
    };
    let own = ReplicaId(start.replica);
    let mut incarnation = [7; 16];
    incarnation[15] = start.replica;
    let identity = Identity {
        cluster: "turmoil".parse()?,
        replica: own,
        incarnation: Incarnation(incarnation),
    };
    let peers = (1..=3).map(|peer| (ReplicaId(peer), format!("{}:{PORT}", host(peer))));
    let settings = Settings::new(identity.cluster.clone(), own, peers.collect(), "/".into());
    let options = Options {
        segment_bytes: SEGMENT_BYTES,
    };
    if disk.list()?.is_empty() {
        Log::create(&disk, &identity, options)?;
    }
    let incarnation = identity.incarnation;
    let opened = Log::open(disk, identity, options)?;
    let seed = start.seed ^ (u64::from(start.replica) << 32) ^ start_count;
    let replica = load(
        &settings,
        &opened.log,
        opened.recovered,
        incarnation,
        ProcessNonce(seed),
        seed,
    )?;
    let platform = Platform {
        incarnation,
        storage: Storage::inline(opened.log, start.sync_latency),
        clock: start.clock,
        connector: net::connector(),
        incoming: net::listen(PORT).await?,
    };
    run_on(platform, &settings, replica, shutdown).await?;
    Ok(())
}
