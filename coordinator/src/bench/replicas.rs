//! What the replica processes used: their own counters from their status, CPU and bytes from `/proc`.
//!
//! `/proc` only tells of processes of this machine, so CPU and bytes are measured for replicas on loopback addresses, and
//! are said to be unmeasured for all others.

use super::session::{REPLICA_TIMEOUT, connect};
use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::time::Duration;
use synod_proto::v1;
use tokio::time::{Instant, sleep, timeout};

/// How often the leader is asked whether every delivery has ended.
const UNFINISHED_POLL: Duration = Duration::from_millis(50);

/// Every replica, and this process, at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    replicas: Vec<One>,
    own: Option<Usage>,
}

#[derive(Clone, Debug)]
struct One {
    endpoint: String,
    status: Option<v1::StatusReply>,
    usage: Option<Usage>,
}

#[derive(Clone, Copy, Debug)]
struct Usage {
    cpu: Duration,
    written_bytes: Option<u64>,
}

/// What the processes used between two samples.
#[derive(Clone, Debug)]
pub(crate) struct Used {
    pub(crate) replicas: Vec<UsedByReplica>,
    /// All replicas' CPU, where every one was measured; a process that several share counts once.
    pub(crate) cpu: Option<Duration>,
    /// Bytes that all replicas' processes made the disk write, likewise.
    pub(crate) written_bytes: Option<u64>,
    /// Whether a process has several replicas, so that its use is no single one's.
    pub(crate) is_shared: bool,
    /// The load generator's own CPU.
    pub(crate) own_cpu: Option<Duration>,
}

/// What one replica used. `None` is not measured, or not this replica's alone.
#[derive(Clone, Debug)]
pub(crate) struct UsedByReplica {
    pub(crate) endpoint: String,
    pub(crate) role: String,
    pub(crate) version: String,
    pub(crate) cpu: Option<Duration>,
    /// Writes to the log, each with its sync.
    pub(crate) sync_count: Option<u64>,
    /// Bytes that the process made the disk write, zeros of new segments included.
    pub(crate) written_bytes: Option<u64>,
}

impl Sample {
    /// Asks all replicas at once.
    pub(super) async fn take(endpoints: &[String]) -> Self {
        let replicas = endpoints.iter().map(|endpoint| async move {
            let status = status(endpoint).await;
            let process = status.as_ref().map_or(0, |status| status.process_id);
            let usage = (process != 0 && is_loopback(endpoint))
                .then(|| usage(&format!("/proc/{process}")))
                .flatten();
            One {
                endpoint: endpoint.clone(),
                status,
                usage,
            }
        });
        Self {
            replicas: futures::future::join_all(replicas).await,
            own: usage("/proc/self"),
        }
    }

    /// What was used from this sample to a later one. A replica that was restarted in between is not measured.
    pub(super) fn until(self, later: &Self) -> Used {
        let mut processes: BTreeMap<u32, Option<Usage>> = BTreeMap::new();
        let mut replicas = Vec::new();
        let mut is_measured = true;
        for (before, after) in self.replicas.iter().zip(&later.replicas) {
            let same = match (&before.status, &after.status) {
                (Some(before), Some(after)) if before.process_id == after.process_id => Some((before, after)),
                _ => None,
            };
            let usage = same.and_then(|_| Some(before.usage?.until(after.usage?)));
            is_measured &= usage.is_some();
            if let Some((status, _)) = same {
                processes.insert(status.process_id, usage);
            }
            let last = after.status.as_ref().or(before.status.as_ref());
            replicas.push(UsedByReplica {
                endpoint: before.endpoint.clone(),
                role: last.map_or_else(|| "unreachable".to_owned(), |status| status.role.clone()),
                version: last.map(|status| status.version.clone()).unwrap_or_default(),
                cpu: usage.map(|usage| usage.cpu),
                sync_count: same.map(|(before, after)| after.log_write_count - before.log_write_count),
                written_bytes: usage.and_then(|usage| usage.written_bytes),
            });
        }
        let is_shared = processes.len() < replicas.len() && is_measured;
        if is_shared {
            for one in &mut replicas {
                (one.cpu, one.written_bytes) = (None, None);
            }
        }
        let all = || processes.values().copied().filter(|_| is_measured);
        Used {
            cpu: all()
                .map(|usage| Some(usage?.cpu))
                .sum::<Option<_>>()
                .filter(|_| is_measured),
            written_bytes: all()
                .map(|usage| usage?.written_bytes)
                .sum::<Option<_>>()
                .filter(|_| is_measured),
            is_shared,
            own_cpu: self
                .own
                .zip(later.own)
                .map(|(before, after)| before.until(after).cpu),
            replicas,
        }
    }
}

impl Usage {
    fn until(self, later: Self) -> Self {
        Self {
            cpu: later.cpu.saturating_sub(self.cpu),
            written_bytes: later
                .written_bytes
                .zip(self.written_bytes)
                .and_then(|(later, earlier)| later.checked_sub(earlier)),
        }
    }
}

async fn status(endpoint: &str) -> Option<v1::StatusReply> {
    let mut client = connect(endpoint).await.ok()?;
    let reply = timeout(REPLICA_TIMEOUT, client.status(v1::StatusRequest {})).await;
    Some(reply.ok()?.ok()?.into_inner())
}

/// Waits until the leader knows of no branch left to tell; returns how many commits were still open when the time was
/// over, or `None` where no leader answered.
pub(super) async fn unfinished_at_leader(endpoints: &[String], patience: Duration) -> Option<u64> {
    let deadline = Instant::now() + patience;
    let mut known = None;
    loop {
        for endpoint in endpoints {
            if let Some(status) = status(endpoint).await
                && status.role == "leader"
            {
                known = Some(status.unfinished_count);
            }
        }
        if known == Some(0) || Instant::now() >= deadline {
            return known;
        }
        sleep(UNFINISHED_POLL).await;
    }
}

fn is_loopback(endpoint: &str) -> bool {
    let address = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    let is_local = |address: std::net::SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    address
        .to_socket_addrs()
        .is_ok_and(|mut addresses| addresses.any(is_local))
}

fn usage(process: &str) -> Option<Usage> {
    let stat = std::fs::read_to_string(format!("{process}/stat")).ok()?;
    let io = std::fs::read_to_string(format!("{process}/io")).ok();
    Some(Usage {
        cpu: cpu(&stat, rustix::param::clock_ticks_per_second())?,
        written_bytes: io.as_deref().and_then(written_bytes),
    })
}

/// User and system time of all threads, those included that have ended (proc_pid_stat(5), fields 14 and 15).
fn cpu(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    // The name of the program comes second, in parentheses, and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis(
        (user + system) * 1_000 / ticks_per_second.max(1),
    ))
}

/// Bytes that reached the disk on behalf of the process (proc_pid_io(5)).
fn written_bytes(io: &str) -> Option<u64> {
    io.lines()
        .find_map(|line| line.strip_prefix("write_bytes: "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_past_a_name_with_parentheses() {
        let stat = "77 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 5 0 1 2 3";
        assert_eq!(cpu(stat, 100), Some(Duration::from_secs(3)));
        assert_eq!(cpu("77 (a) S 1", 100), None);
    }

    #[test]
    fn written_bytes_are_those_that_reached_the_disk() {
        let io = "rchar: 1\nwchar: 2\nwrite_bytes: 8192\ncancelled_write_bytes: 0\n";
        assert_eq!(written_bytes(io), Some(8_192));
        assert_eq!(written_bytes("rchar: 1\n"), None);
    }

    /// The replicas of `synod dev` are one process (traps J10): its CPU counts once, and is no replica's.
    #[test]
    fn a_process_with_several_replicas_counts_once() {
        let sample = |processes: [u32; 3], cpu_ms: u64| Sample {
            replicas: processes
                .map(|process_id| One {
                    endpoint: "127.0.0.1:1".to_owned(),
                    status: Some(v1::StatusReply {
                        process_id,
                        ..v1::StatusReply::default()
                    }),
                    usage: Some(Usage {
                        cpu: Duration::from_millis(cpu_ms),
                        written_bytes: Some(cpu_ms),
                    }),
                })
                .to_vec(),
            own: None,
        };
        let shared = sample([7; 3], 100).until(&sample([7; 3], 130));
        assert_eq!(
            (shared.cpu, shared.written_bytes),
            (Some(Duration::from_millis(30)), Some(30))
        );
        assert!(shared.is_shared && shared.replicas.iter().all(|one| one.cpu.is_none()));
        let apart = sample([7, 8, 9], 100).until(&sample([7, 8, 9], 130));
        assert_eq!(
            (apart.cpu, apart.written_bytes),
            (Some(Duration::from_millis(90)), Some(90))
        );
        assert!(!apart.is_shared && apart.replicas.iter().all(|one| one.cpu.is_some()));
        let restarted = sample([7, 8, 9], 100).until(&sample([7, 8, 10], 130));
        assert_eq!((restarted.cpu, restarted.written_bytes), (None, None));
    }

    #[test]
    fn only_this_machines_processes_are_looked_up() {
        assert!(is_loopback("127.0.0.1:7401") && is_loopback("http://[::1]:7401"));
        assert!(!is_loopback("192.0.2.1:7401"));
    }
}
