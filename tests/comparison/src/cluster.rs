//! Three replicas of etcd or of Synod as processes, on loopback, with fresh directories.

use crate::{Failure, etcd};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a cluster may take to have a leader that serves.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two looks for it.
const START_POLL: Duration = Duration::from_millis(50);

/// Whose cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Etcd,
    Synod,
}

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) synod: PathBuf,
    pub(crate) etcd: PathBuf,
    pub(crate) directory: PathBuf,
}

/// One run of a load generator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) sessions: u32,
    pub(crate) in_flight: u32,
    pub(crate) branches: u32,
    pub(crate) seconds: f64,
    pub(crate) warm_up: f64,
}

/// A running cluster. Dropping it kills every process and removes the data.
#[derive(Debug)]
pub(crate) struct Cluster {
    kind: Kind,
    directory: PathBuf,
    endpoints: Vec<String>,
    replicas: Vec<Child>,
}

impl Cluster {
    /// Starts three replicas and waits until one of them leads.
    pub(crate) fn start(programs: &Programs, kind: Kind) -> Result<Self, Failure> {
        let directory = programs.directory.join(match kind {
            Kind::Etcd => "etcd",
            Kind::Synod => "synod",
        });
        fs::create_dir_all(&directory)?;
        let clients = free_addresses()?;
        let peers = free_addresses()?;
        let mut cluster = Self {
            kind,
            directory,
            endpoints: clients.clone(),
            replicas: Vec::new(),
        };
        for index in 0..clients.len() {
            let mut command = match kind {
                Kind::Etcd => etcd_command(&programs.etcd, &cluster.directory, index, &clients, &peers),
                Kind::Synod => synod_command(&programs.synod, &cluster.directory, index, &clients),
            };
            let trace = File::create(cluster.directory.join(format!("{index}.log")))?;
            command
                .stdin(Stdio::null())
                .stdout(trace.try_clone()?)
                .stderr(trace);
            cluster.replicas.push(command.spawn()?);
        }
        let deadline = Instant::now() + START_TIMEOUT;
        while cluster.leader(programs)?.is_none() {
            if Instant::now() > deadline {
                return Err(format!("no {kind:?} leader within {} s", START_TIMEOUT.as_secs()).into());
            }
            std::thread::sleep(START_POLL);
        }
        Ok(cluster)
    }

    /// Which replica leads, if one does.
    pub(crate) fn leader(&self, programs: &Programs) -> Result<Option<usize>, Failure> {
        match self.kind {
            Kind::Etcd => etcd::leader(&self.endpoints),
            Kind::Synod => synod_leader(&programs.synod, &self.endpoints),
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, index: usize) -> Result<(), Failure> {
        self.replicas[index].kill()?;
        self.replicas[index].wait()?;
        Ok(())
    }

    /// Starts the load generator for this cluster.
    pub(crate) fn spawn_load(&self, programs: &Programs, load: Load) -> Result<Child, Failure> {
        let mut command = match self.kind {
            Kind::Etcd => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("etcd-load");
                for replica in &self.replicas {
                    command.arg("--process").arg(replica.id().to_string());
                }
                command
            }
            Kind::Synod => {
                let mut command = Command::new(&programs.synod);
                command
                    .args(["bench", "--json", "--branches"])
                    .arg(load.branches.to_string());
                command
            }
        };
        command
            .arg("--endpoints")
            .arg(self.endpoints.join(","))
            .arg("--sessions")
            .arg(load.sessions.to_string())
            .arg("--in-flight")
            .arg(load.in_flight.to_string())
            .arg("--seconds")
            .arg(load.seconds.to_string())
            .arg("--warm-up")
            .arg(load.warm_up.to_string());
        let trace = File::create(self.directory.join("load.log"))?;
        Ok(command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(trace)
            .spawn()?)
    }

    /// Runs the load generator and returns the JSON that it wrote.
    pub(crate) fn load(&self, programs: &Programs, load: Load) -> Result<serde_json::Value, Failure> {
        finish(self.spawn_load(programs, load)?, &self.directory)
    }

    /// The replicas' processes.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.replicas.iter().map(Child::id).collect()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Waits for a load generator's JSON.
pub(crate) fn finish(load: Child, directory: &Path) -> Result<serde_json::Value, Failure> {
    let output = load.wait_with_output()?;
    if !output.status.success() {
        let trace = read_trace(&directory.join("load.log"));
        let text = String::from_utf8_lossy(&output.stdout);
        return Err(format!("the load generator ended with {}: {trace}{text}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What a process wrote for people, if it wrote anything.
pub(crate) fn read_trace(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for replica in &mut self.replicas {
            // One that was killed before is gone, which is what is wanted.
            let _ = replica.kill();
            let _ = replica.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Addresses that were free a moment ago. Another process could take one in between; then the start fails loudly.
pub(crate) fn free_addresses() -> Result<Vec<String>, Failure> {
    let listeners = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<Vec<_>, _>>()?;
    let addresses = listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.to_string()));
    addresses.collect()
}

/// etcd as it comes, but for its chatter.
fn etcd_command(
    program: &Path,
    directory: &Path,
    index: usize,
    clients: &[String],
    peers: &[String],
) -> Command {
    let members: Vec<_> = peers
        .iter()
        .enumerate()
        .map(|(one, peer)| format!("m{one}=http://{peer}"))
        .collect();
    let mut command = Command::new(program);
    command
        .args(["--log-level", "error", "--logger", "zap"])
        .arg("--name")
        .arg(format!("m{index}"))
        .arg("--data-dir")
        .arg(directory.join(format!("m{index}")))
        .arg("--listen-client-urls")
        .arg(format!("http://{}", clients[index]))
        .arg("--advertise-client-urls")
        .arg(format!("http://{}", clients[index]))
        .arg("--listen-peer-urls")
        .arg(format!("http://{}", peers[index]))
        .arg("--initial-advertise-peer-urls")
        .arg(format!("http://{}", peers[index]))
        .arg("--initial-cluster")
        .arg(members.join(","));
    command
}

fn synod_command(program: &Path, directory: &Path, index: usize, clients: &[String]) -> Command {
    let mut command = Command::new(program);
    command
        .args(["start", "--cluster", "compare", "--replica"])
        .arg((index + 1).to_string())
        .arg("--data")
        .arg(directory.join(format!("r{index}")));
    for (one, client) in clients.iter().enumerate() {
        command.arg("--peer").arg(format!("{}={client}", one + 1));
    }
    command
}

fn synod_leader(program: &Path, endpoints: &[String]) -> Result<Option<usize>, Failure> {
    let output = Command::new(program)
        .args(["status", "--json", "--endpoints"])
        .arg(endpoints.join(","))
        .stderr(Stdio::null())
        .output()?;
    // Without a leader the status ends negatively, with or without JSON.
    let replicas: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let leads = |replica: &serde_json::Value| replica["role"] == "leader";
    Ok(replicas
        .as_array()
        .and_then(|replicas| replicas.iter().position(leads)))
}

/// Versions and machine, for the table's foot.
pub(crate) fn versions(programs: &Programs) -> Vec<String> {
    let first_line = |program: &Path| {
        let output = Command::new(program).arg("--version").output().ok()?;
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .map(str::to_owned)
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        first_line(&programs.synod).unwrap_or_default(),
        first_line(&programs.etcd).unwrap_or_default(),
        format!("{cores} cores, {}", model.unwrap_or("unknown processor")),
        format!("Linux {}", kernel.trim()),
    ]
}
