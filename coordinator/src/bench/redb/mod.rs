//! `--participants redb`: services with real databases, as they are embedded by users.
//!
//! Each session is a service: the participant library with a redb file and a gRPC server of its own, on a thread of its own in
//! the generator's process. A transaction begins at step 1: its initiator's own branch and calls to the next services, each of
//! which writes one row; the votes come back with the replies; it ends when every branch was told and has acknowledged, each
//! after its file's sync.
//!
//! | file | holds |
//! |---|---|
//! | `service` | one service |
//! | `work` | the business call |
//! | `storage` | a file whose syncs are counted |

mod service;
mod storage;
mod work;

use super::plan::Plan;
use super::replicas::{self, Sample};
use super::report::{Database, Report};
use super::tally::{Progress, Tally};
use super::{BenchError, CONNECT_TIMEOUT, DRAIN_TIMEOUT, watch};
use service::{Phase, Setup, Told};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use storage::{Counted, Counts};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

/// Opening files and connecting sessions, together.
const START_TIMEOUT: std::time::Duration = CONNECT_TIMEOUT.saturating_mul(2);

/// The services, running. Dropping them ends their threads.
struct Services {
    phase: watch::Sender<Phase>,
    told: mpsc::UnboundedReceiver<Told>,
    threads: Vec<JoinHandle<()>>,
    tally: Arc<Mutex<Tally>>,
    failure: Option<BenchError>,
    drained_count: usize,
    paths: Vec<PathBuf>,
    counts: Vec<Counts>,
}

/// Runs the plan, with the services' files in its directory.
pub(super) async fn drive(
    plan: &Plan,
    directory: Option<&Path>,
    progress: impl Fn(&Progress),
) -> Result<Report, BenchError> {
    let wrong = |error: std::io::Error| BenchError::Wrong(format!("no directory for the databases: {error}"));
    let temporary = tempfile::Builder::new()
        .prefix("synod-bench-")
        .tempdir_in(directory.map_or_else(std::env::temp_dir, Path::to_owned));
    // A directory of its own within the given one: files of a former run are another coordinator's, perhaps.
    let temporary = temporary.map_err(wrong)?;
    let mut services = Services::start(plan, temporary.path())?;
    let addresses = timeout(START_TIMEOUT, services.ready());
    let addresses = addresses.await.map_err(|_| BenchError::Unreachable {
        endpoints: plan.endpoints.join(", "),
        last: "not every service had its session in time".to_owned(),
    })??;
    services.enter(Phase::Running {
        addresses: addresses.into(),
        begun: Instant::now(),
    });

    watch(plan.warm_up, &progress, || services.look()).await?;
    let before = (Sample::take(&plan.endpoints).await, services.counted());
    services.tally().open(Instant::now());
    let measured = watch(plan.measured, &progress, || services.look()).await;
    let elapsed = services.tally().close(Instant::now());
    let databases = services.databases_since(&before.1);
    let after = Sample::take(&plan.endpoints).await;
    measured?;

    services.enter(Phase::Draining);
    let is_drained = timeout(DRAIN_TIMEOUT, services.drained()).await.is_ok();
    let unfinished_count = replicas::unfinished_at_leader(&plan.endpoints, DRAIN_TIMEOUT).await;
    let tally = std::mem::take(&mut *services.tally());
    services.end();
    if let Some(error) = services.failure.take() {
        return Err(error);
    }
    let used = before.0.until(&after);
    let mut report = Report::new(plan, &tally, elapsed, used, is_drained, unfinished_count);
    report.set_databases(databases, tally.count);
    Ok(report)
}

impl Services {
    fn start(plan: &Plan, directory: &Path) -> Result<Self, BenchError> {
        let (phase, _) = watch::channel(Phase::Preparing);
        let (tell, told) = mpsc::unbounded_channel();
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut services = Self {
            phase,
            told,
            threads: Vec::new(),
            tally: tally.clone(),
            failure: None,
            drained_count: 0,
            paths: Vec::new(),
            counts: vec![Counts::default(); plan.session_count],
        };
        for index in 0..plan.session_count {
            let path = directory.join(format!("service-{}.redb", index + 1));
            services.paths.push(path.clone());
            let in_flight = plan.in_flight.max(plan.session_count);
            let setup = Setup {
                index,
                service_count: plan.session_count,
                // The first services take what does not divide.
                place_count: (in_flight + plan.session_count - 1 - index) / plan.session_count,
                branch_count: plan.branch_count,
                pace: plan.pace,
                coordinators: plan.endpoints.clone(),
                path,
                tally: tally.clone(),
            };
            let (phase, tell) = (services.phase.subscribe(), tell.clone());
            let thread = std::thread::Builder::new()
                .name(format!("service-{}", index + 1))
                .spawn(move || service::run(setup, phase, &tell));
            let thread = thread.map_err(|error| BenchError::Wrong(format!("no thread: {error}")))?;
            services.threads.push(thread);
        }
        Ok(services)
    }

    fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Waits until every service serves; returns where.
    async fn ready(&mut self) -> Result<Vec<SocketAddr>, BenchError> {
        let mut addresses = vec![None; self.threads.len()];
        while addresses.iter().any(Option::is_none) {
            match self.told.recv().await {
                Some(Told::Ready {
                    index,
                    address,
                    counts,
                }) => {
                    addresses[index] = Some(address);
                    self.counts[index] = counts;
                }
                Some(Told::Failed(error)) => return Err(error),
                Some(Told::Drained) => {}
                None => return Err(BenchError::Wrong("the services ended".to_owned())),
            }
        }
        Ok(addresses.into_iter().flatten().collect())
    }

    async fn drained(&mut self) {
        while self.drained_count < self.threads.len() {
            match self.told.recv().await {
                Some(told) => self.hear(told),
                None => return,
            }
        }
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Drained => self.drained_count += 1,
            Told::Failed(error) => {
                self.failure.get_or_insert(error);
            }
            Told::Ready { .. } => {}
        }
    }

    /// How it goes, and why it cannot go on.
    fn look(&mut self) -> (Progress, Option<BenchError>) {
        while let Ok(told) = self.told.try_recv() {
            self.hear(told);
        }
        let progress = self.tally().progress(Instant::now());
        (progress, self.failure.clone())
    }

    fn counted(&self) -> Vec<Counted> {
        self.counts.iter().map(Counts::now).collect()
    }

    fn databases_since(&self, before: &[Counted]) -> Vec<Database> {
        let both = self.counted().into_iter().zip(before).zip(&self.paths);
        let database = |((now, before), path): ((Counted, &Counted), &PathBuf)| {
            let file = path.file_name().unwrap_or_default();
            Database {
                file: file.to_string_lossy().into_owned(),
                sync_count: now.sync_count - before.sync_count,
                written_bytes: now.written_bytes - before.written_bytes,
            }
        };
        both.map(database).collect()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the services, and waits until their files are closed.
    fn end(&mut self) {
        self.enter(Phase::Over);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                let panicked = BenchError::Wrong("a service panicked".to_owned());
                self.failure.get_or_insert(panicked);
            }
        }
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.end();
    }
}
