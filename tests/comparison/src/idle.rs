//! What a cluster uses that nobody asks anything.

use crate::cluster::{Cluster, Kind, Programs};
use crate::{Failure, processes};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// After the election: what a start leaves to do is done.
const SETTLE: Duration = Duration::from_secs(2);

/// At a hundredth of a second to a tick, so long that a tick is a tenth of a percent.
const MEASURED: Duration = Duration::from_secs(10);

/// Each replica's share of one core, in percent; the leader's is one of them.
pub(crate) fn cpu_percent(programs: &Programs) -> Result<Vec<f64>, Failure> {
    let cluster = Cluster::start(programs, Kind::Synod)?;
    sleep(SETTLE);
    let processes = cluster.processes();
    let cpu = || {
        processes
            .iter()
            .map(|process| processes::cpu(&[*process]))
            .collect::<Option<Vec<_>>>()
    };
    let begun = Instant::now();
    let before = cpu().ok_or("a replica ended")?;
    sleep(MEASURED);
    let after = cpu().ok_or("a replica ended")?;
    let elapsed = begun.elapsed().as_secs_f64();
    let percent = |(before, after): (Duration, Duration)| (after - before).as_secs_f64() / elapsed * 100.0;
    Ok(before.into_iter().zip(after).map(percent).collect())
}
