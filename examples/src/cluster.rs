//! The coordinator: three replicas as processes, asked through their `Status` call, which each answers for itself.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use synod_proto::v1::StatusReply;
use synod_proto::v1::StatusRequest;
use synod_proto::v1::coordinator_client::CoordinatorClient;
use tonic::transport::{Channel, Endpoint};

use crate::process::{Process, ProcessError};

/// The smallest number of replicas of which one can die.
const REPLICA_COUNT: u8 = 3;

/// How long the replicas may take to find a leader, or one of them to catch up. An election takes well under a second;
/// the rest is for a machine that is busy with something else.
const LEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long one `Status` call may take: a live replica answers within a millisecond.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

/// How often a replica is asked while something is awaited of it.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The coordinator cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A replica did not do what it should.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The replicas did not.
    #[error("{waited_for} did not happen within {LEADER_TIMEOUT:?}\n{traces}")]
    Timeout {
        /// What should have happened.
        waited_for: String,
        /// The ends of their traces.
        traces: String,
    },
}

/// The three replicas. Dropping them kills them.
#[derive(Debug)]
pub struct Cluster {
    replicas: Vec<Replica>,
    data: PathBuf,
    traces: PathBuf,
}

#[derive(Debug)]
struct Replica {
    id: u8,
    process: Process,
    client: CoordinatorClient<Channel>,
}

impl Cluster {
    /// Starts the replicas, each with a directory in `data`, and waits until one of them leads.
    pub async fn start(data: &Path, traces: &Path) -> Result<Self, ClusterError> {
        let mut cluster = Self {
            replicas: Vec::new(),
            data: data.to_owned(),
            traces: traces.to_owned(),
        };
        for id in 1..=REPLICA_COUNT {
            let process = cluster
                .start_process(id, SocketAddr::from(([127, 0, 0, 1], 0)))
                .await?;
            let client = CoordinatorClient::new(
                endpoint(process.address)
                    .connect_timeout(STATUS_TIMEOUT)
                    .connect_lazy(),
            );
            cluster.replicas.push(Replica { id, process, client });
        }
        // Only now are all addresses known.
        let peers = cluster.peers();
        for replica in &mut cluster.replicas {
            replica.process.tell(&peers).await?;
        }
        cluster.await_leader(None).await?;
        Ok(cluster)
    }

    async fn start_process(&self, id: u8, listen: SocketAddr) -> Result<Process, ProcessError> {
        let data = self.data.join(format!("replica-{id}"));
        let args: Vec<OsString> = vec![
            "replica".into(),
            "--replica".into(),
            id.to_string().into(),
            "--listen".into(),
            listen.to_string().into(),
            "--data".into(),
            data.into(),
        ];
        Process::start(&format!("replica {id}"), args, &self.traces).await
    }

    /// Every replica's address, as the line that a replica is told and [`crate::replica`] reads.
    fn peers(&self) -> String {
        let peers: Vec<_> = self
            .replicas
            .iter()
            .map(|replica| format!("{}={}", replica.id, replica.process.address))
            .collect();
        peers.join(",")
    }

    /// The processes, for the user.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.replicas.iter().map(|replica| &replica.process)
    }

    /// The addresses that a participant is given.
    pub fn coordinators(&self) -> Vec<String> {
        self.replicas
            .iter()
            .map(|replica| format!("http://{}", replica.process.address))
            .collect()
    }

    /// The replica that leads and what it says of itself; `None` while there is none.
    async fn leader(&self, except: Option<u8>) -> Option<(u8, StatusReply)> {
        let asked = self
            .replicas
            .iter()
            .filter(|replica| Some(replica.id) != except)
            .map(async |replica| (replica.id, replica.status().await));
        let answers = futures::future::join_all(asked).await;
        let leaders = answers
            .into_iter()
            .filter_map(|(id, status)| Some((id, status?)))
            .filter(|(_, status)| status.role == "leader");
        // For a moment after an election the old leader may not know yet: the higher ballot is the later one.
        leaders.max_by_key(|(_, status)| {
            status
                .ballot
                .as_ref()
                .map(|ballot| (ballot.round, ballot.replica))
        })
    }

    /// Waits until a replica leads, other than `except`.
    pub async fn await_leader(&self, except: Option<u8>) -> Result<(u8, StatusReply), ClusterError> {
        self.poll("the election of a leader", async || self.leader(except).await)
            .await
    }

    /// Finds the leader and sends it SIGKILL. Returns its number and the instant of the signal.
    pub async fn kill_leader(&mut self) -> Result<(u8, Instant), ClusterError> {
        let (leader, _) = self.await_leader(None).await?;
        let killed_at = Instant::now();
        self.replica(leader).process.send_kill()?;
        Ok((leader, killed_at))
    }

    /// Sends SIGKILL to this replica.
    pub fn kill(&mut self, id: u8) -> Result<(), ClusterError> {
        Ok(self.replica(id).process.send_kill()?)
    }

    /// Starts a killed replica again, on the same address and with the same directory.
    pub async fn restart(&mut self, id: u8) -> Result<(), ClusterError> {
        self.replica(id).process.gone().await?;
        let address = self.replica(id).process.address;
        let mut process = self.start_process(id, address).await?;
        process.tell(&self.peers()).await?;
        self.replica(id).process = process;
        Ok(())
    }

    /// Waits until a replica has applied everything that the leader has applied by now.
    pub async fn await_caught_up(&self, id: u8) -> Result<(), ClusterError> {
        let (_, leader) = self.await_leader(None).await?;
        let Some(replica) = self.replicas.iter().find(|replica| replica.id == id) else {
            return Ok(());
        };
        self.poll("the restarted replica's catching up", async || {
            replica
                .status()
                .await
                .filter(|status| status.applied_up_to >= leader.applied_up_to)
        })
        .await?;
        Ok(())
    }

    /// Committed transactions of which the log does not say that every branch acknowledged. The acknowledgements are told to
    /// whoever waits for them before they are in the log, so this gives the leader a moment to get to zero.
    pub async fn unfinished(&self) -> Result<u64, ClusterError> {
        let settled = self.poll("the leader's last word on deliveries", async || {
            self.leader(None)
                .await
                .filter(|(_, status)| status.unfinished_count == 0)
        });
        match settled.await {
            Ok(_) => Ok(0),
            Err(_) => Ok(self.await_leader(None).await?.1.unfinished_count),
        }
    }

    /// Stops every replica gracefully.
    pub async fn stop(mut self) -> Result<(), ClusterError> {
        for replica in &mut self.replicas {
            replica.process.stop().await?;
        }
        Ok(())
    }

    fn replica(&mut self, id: u8) -> &mut Replica {
        self.replicas
            .iter_mut()
            .find(|replica| replica.id == id)
            .expect("an id that this cluster handed out")
    }

    async fn poll<T>(
        &self,
        waited_for: &str,
        mut ask: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T, ClusterError> {
        let poll = async {
            loop {
                if let Some(found) = ask().await {
                    return found;
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        tokio::time::timeout(LEADER_TIMEOUT, poll)
            .await
            .map_err(|_| ClusterError::Timeout {
                waited_for: waited_for.to_owned(),
                traces: self
                    .processes()
                    .map(|process| process.error("is running, or was".into()).to_string())
                    .collect(),
            })
    }
}

impl Replica {
    async fn status(&self) -> Option<StatusReply> {
        let mut client = self.client.clone();
        let status = tokio::time::timeout(STATUS_TIMEOUT, client.status(StatusRequest {})).await;
        status.ok()?.ok().map(tonic::Response::into_inner)
    }
}

/// Where to reach a process.
pub fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("a socket address makes a valid URI")
        .tcp_nodelay(true)
}
