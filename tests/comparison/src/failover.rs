//! The leader killed under load: how long until the next acknowledged write.

use crate::Failure;
use crate::cluster::{Cluster, Kind, Load, Programs, finish};
use serde::Serialize;
use std::thread::sleep;
use std::time::Duration;

/// Long enough for the slowest election that is worth measuring, and the load after it.
const LOAD: Load = Load {
    sessions: 4,
    in_flight: 64,
    branches: 0,
    seconds: 6.0,
    warm_up: 0.5,
};

/// When the leader dies, from the start of the load.
const KILL_AFTER: Duration = Duration::from_millis(2_000);

/// One leader killed.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Failover {
    /// The longest time without an acknowledged write, in milliseconds.
    pub(crate) gap_ms: f64,
    /// Transactions aborted by it.
    pub(crate) aborted: u64,
}

pub(crate) fn trial(programs: &Programs, kind: Kind) -> Result<Failover, Failure> {
    let mut cluster = Cluster::start(programs, kind)?;
    let leader = cluster
        .leader(programs)?
        .ok_or("the leader is gone before it was killed")?;
    let load = cluster.spawn_load(programs, LOAD)?;
    sleep(KILL_AFTER);
    cluster.kill(leader)?;
    let figures = finish(load, cluster.directory())?;
    Ok(Failover {
        gap_ms: figures["gap_ms_max"].as_f64().ok_or("no gap was measured")?,
        aborted: figures["aborted"].as_u64().unwrap_or(0),
    })
}
