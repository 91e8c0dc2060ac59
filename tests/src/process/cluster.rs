//! The coordinator: three `synod start` on ports and directories of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use synod_proto::ids::{Gtid, Lineage};
use synod_proto::session::TransactionStatus;
use synod_proto::v1;
use synod_proto::v1::coordinator_client::CoordinatorClient;
use tokio::process::Command;
use tonic::transport::{Channel, Endpoint};

use super::eventually;
use super::program::{Program, ReservedPort, Signal, command};

/// The three.
pub const REPLICAS: [u32; 3] = [1, 2, 3];

/// How long a replica that is stopped, or starting, may keep a question.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Three replicas; those that are not killed run.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    directory: PathBuf,
    ports: BTreeMap<u32, ReservedPort>,
    running: BTreeMap<u32, Program>,
    stopped: Option<u32>,
}

impl Cluster {
    /// Starts three new replicas with their data and traces under `directory`.
    pub async fn start(name: &str, directory: &Path) -> Self {
        let ports = REPLICAS.map(|id| (id, ReservedPort::take())).into();
        let (name, directory) = (name.to_owned(), directory.to_owned());
        let mut cluster = Self {
            name,
            directory,
            ports,
            running: BTreeMap::new(),
            stopped: None,
        };
        for id in REPLICAS {
            cluster.start_replica(id).await;
        }
        cluster
    }

    /// The command that starts a replica of this cluster, running or not.
    #[must_use]
    pub fn command(&self, id: u32) -> Command {
        let mut start = command("synod");
        start.args(["start", "--cluster", &self.name, "--replica", &id.to_string()]);
        start.arg("--data").arg(self.data(id));
        for (peer, port) in &self.ports {
            start.args(["--peer", &format!("{peer}={}", port.address())]);
        }
        start
    }

    /// A replica's directory.
    #[must_use]
    pub fn data(&self, id: u32) -> PathBuf {
        self.directory.join(format!("replica-{id}"))
    }

    /// Starts a replica, or starts it again.
    ///
    /// # Panics
    /// It runs already, or does not listen.
    pub async fn start_replica(&mut self, id: u32) {
        let mut program = Program::start(&format!("replica-{id}"), self.command(id), &self.directory);
        assert_eq!(program.line("listening").await, self.address(id));
        assert!(
            self.running.insert(id, program).is_none(),
            "replica {id} runs already"
        );
    }

    /// Kills a replica with SIGKILL.
    ///
    /// # Panics
    /// It does not run.
    pub async fn kill(&mut self, id: u32) {
        self.stopped.take_if(|stopped| *stopped == id);
        self.take(id).kill().await;
    }

    /// Ends a replica by SIGTERM, and returns its exit code.
    ///
    /// # Panics
    /// It does not run, or does not end.
    pub async fn terminate(&mut self, id: u32) -> Option<i32> {
        self.take(id).terminate().await
    }

    /// Stops a replica where it stands, with SIGSTOP: it keeps its connections and answers nothing.
    ///
    /// # Panics
    /// It does not run.
    pub fn stop(&mut self, id: u32) {
        self.running[&id].signal(Signal::STOP);
        self.stopped = Some(id);
    }

    /// Lets a stopped replica go on.
    ///
    /// # Panics
    /// It does not run.
    pub fn wake(&mut self, id: u32) {
        self.running[&id].signal(Signal::CONT);
        self.stopped = None;
    }

    fn take(&mut self, id: u32) -> Program {
        self.running
            .remove(&id)
            .unwrap_or_else(|| panic!("replica {id} does not run"))
    }

    /// Where a replica listens, running or not.
    #[must_use]
    pub fn address(&self, id: u32) -> String {
        self.ports[&id].address()
    }

    /// All three addresses, as `--endpoints` takes them.
    #[must_use]
    pub fn addresses(&self) -> String {
        REPLICAS.map(|id| self.address(id)).join(",")
    }

    /// What a running replica wrote to stderr.
    ///
    /// # Panics
    /// It does not run.
    #[must_use]
    pub fn trace(&self, id: u32) -> String {
        self.running[&id].trace()
    }

    /// A connection to a replica.
    pub async fn client(&self, id: u32) -> Option<CoordinatorClient<Channel>> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address(id))).ok()?;
        let channel = endpoint
            .connect_timeout(ASK_TIMEOUT)
            .timeout(ASK_TIMEOUT)
            .connect()
            .await
            .ok()?;
        Some(CoordinatorClient::new(channel))
    }

    /// A replica's view of itself.
    pub async fn status(&self, id: u32) -> Option<v1::StatusReply> {
        let reply = self.client(id).await?.status(v1::StatusRequest {}).await;
        Some(reply.ok()?.into_inner())
    }

    /// Waits for a leader that serves, that every running replica follows, and up to which all have applied.
    pub async fn leader(&self) -> u32 {
        eventually("one leader that all running replicas follow", async || {
            let mut views = Vec::new();
            for id in self.running.keys().filter(|id| Some(**id) != self.stopped) {
                views.push(self.status(*id).await?);
            }
            let leader = views.iter().find(|view| view.role == "leader")?;
            let is_whole = views
                .iter()
                .all(|view| view.leader == leader.replica && view.applied_up_to >= leader.applied_up_to);
            is_whole.then_some(leader.replica)
        })
        .await
    }

    /// A connection to the leader, and the coordinator's lineage.
    pub async fn leader_client(&self) -> (CoordinatorClient<Channel>, Lineage) {
        let leader = self.leader().await;
        eventually("the leader answers", async || {
            let lineage = self.status(leader).await?.lineage;
            Some((self.client(leader).await?, Lineage(lineage[..].try_into().ok()?)))
        })
        .await
    }

    /// What the log says of a transaction, once it says anything but undecided.
    pub async fn outcome(&self, gtid: Gtid) -> TransactionStatus {
        eventually("an outcome in the log", async || {
            for id in self.running.keys().filter(|id| Some(**id) != self.stopped) {
                let gtid = gtid.to_bytes().to_vec().into();
                // Whoever leads; a follower redirects, and the next one is asked.
                let Ok(reply) = self.client(*id).await?.outcome(v1::OutcomeRequest { gtid }).await else {
                    continue;
                };
                let status = TransactionStatus::try_from(reply.into_inner().status?).ok()?;
                return (status != TransactionStatus::Undecided).then_some(status);
            }
            None
        })
        .await
    }

    /// Waits until no committed transaction lacks an acknowledgement.
    pub async fn all_delivered(&self) {
        eventually("every commit is delivered and acknowledged", async || {
            let leader = self.leader().await;
            (self.status(leader).await?.unfinished_count == 0).then_some(())
        })
        .await;
    }
}
