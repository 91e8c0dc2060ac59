//! The whole: a coordinator and two offices under one temporary directory.

use std::path::Path;

use synod_proto::ids::Gtid;
use synod_proto::session::TransactionStatus;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::Status;

use super::bank::{TransferReply, TransferRequest};
use super::cluster::{Cluster, REPLICAS};
use super::ledger::Ledger;
use super::office::Office;
use super::{account, eventually};

/// How many lines of each trace are shown when a test fails.
const TRACE_LINE_COUNT: usize = 30;

/// A deadline that no test reaches, in milliseconds: whatever is aborted was aborted by something else.
pub const LONG_MS: u64 = 60_000;

/// A deadline after which an orphaned branch may be aborted, so that a test need not wait long. The work takes
/// milliseconds.
pub const SHORT_MS: u64 = 3_000;

/// Processes and their files. When a test fails, the ends of all traces are shown.
#[derive(Debug)]
pub struct Stage {
    /// The coordinator.
    pub cluster: Cluster,
    /// The office where the tests' transfers begin: initiator, and participant with a branch of its own.
    pub here: Office,
    /// The office that transfers go to: participant only.
    pub there: Office,
    // Last: removed when the processes are gone.
    directory: Shown,
}

/// A directory whose traces are shown when its test fails.
#[derive(Debug)]
struct Shown(TempDir);

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_traces(self.0.path());
        }
    }
}

fn show_traces(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut traces: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension() == Some("txt".as_ref()))
        .collect();
    traces.sort();
    for trace in traces {
        let text = String::from_utf8_lossy(&std::fs::read(&trace).unwrap_or_default()).into_owned();
        let lines: Vec<_> = text.lines().collect();
        eprintln!(
            "--- {} ends with:",
            trace.file_name().unwrap_or_default().display()
        );
        for line in &lines[lines.len().saturating_sub(TRACE_LINE_COUNT)..] {
            eprintln!("{line}");
        }
    }
}

impl Stage {
    /// Three replicas, and no office yet.
    ///
    /// # Panics
    /// No leader comes to serve.
    pub async fn without_offices(cluster: &str) -> Self {
        let directory = Shown(tempfile::tempdir().expect("a temporary directory"));
        let path = directory.0.path();
        let cluster = Cluster::start(cluster, path).await;
        let [here, there] = Office::pair(["here", "there"], &cluster.addresses(), path);
        let stage = Self {
            cluster,
            here,
            there,
            directory,
        };
        stage.cluster.leader().await;
        stage
    }

    /// Three replicas and both offices, all serving.
    pub async fn start(cluster: &str) -> Self {
        let mut stage = Self::without_offices(cluster).await;
        stage.here.start().await;
        stage.there.start().await;
        stage
    }

    /// Where everything lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.0.path()
    }

    /// Begins a transfer of one on an account, in the background.
    #[must_use]
    pub fn transfer(
        &self,
        name: &str,
        index: usize,
        deadline_ms: u64,
    ) -> JoinHandle<Result<TransferReply, Status>> {
        self.here.transfer(TransferRequest {
            transfer: name.to_owned(),
            account: account(index),
            amount: 1,
            deadline_ms,
            extra_branch_count: 0,
        })
    }

    /// Kills every process, as a power cut does.
    pub async fn cut_power(&mut self) {
        for id in REPLICAS {
            self.cluster.kill(id).await;
        }
        self.here.kill().await;
        self.there.kill().await;
    }

    /// Starts every process again.
    pub async fn restore_power(&mut self) {
        for id in REPLICAS {
            self.cluster.start_replica(id).await;
        }
        self.here.start().await;
        self.there.start().await;
    }

    /// Waits until nothing is left to do: every commit delivered, no branch in doubt.
    pub async fn settled(&self) {
        eventually("no branch is in doubt, every commit is delivered", async || {
            let is_idle = self.here.in_doubt_count().await? + self.there.in_doubt_count().await? == 0;
            self.cluster.all_delivered().await;
            is_idle.then_some(())
        })
        .await;
    }

    /// Whether the log says that a transaction committed.
    pub async fn is_committed(&self, gtid: Gtid) -> bool {
        matches!(
            self.cluster.outcome(gtid).await,
            TransactionStatus::Committed { .. }
        )
    }

    /// Ends the offices in good order and reads their files: the one here, the one there.
    pub async fn close_offices(&mut self) -> (Ledger, Ledger) {
        self.here.terminate().await;
        self.there.terminate().await;
        (
            Ledger::read(&self.here.database()),
            Ledger::read(&self.there.database()),
        )
    }
}
