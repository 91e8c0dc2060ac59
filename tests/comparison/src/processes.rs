//! CPU time of processes, from `/proc`.

use std::time::Duration;

/// User and system time of all of them together; `None` if one cannot be read, as after it has ended.
pub(crate) fn cpu(processes: &[u32]) -> Option<Duration> {
    processes.iter().map(|process| one(*process)).sum()
}

fn one(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The program's name stands in parentheses and may hold anything; fields 14 and 15 are the times in ticks.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis(
        (user + system) * 1_000 / rustix::param::clock_ticks_per_second(),
    ))
}
