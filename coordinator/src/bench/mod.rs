//! `synod bench`: a load generator that drives a cluster as real clients do, and measures what came of it.
//!
//! It speaks the public protocol and nothing else: sessions that propose outcomes, take deliveries and acknowledge
//! them, or single calls. A transaction here begins at step 4: no business call is made, its branches are of databases
//! in memory, and so what is measured is the coordinator. With services and redb files (`redb`) it is the whole.
//!
//! | file | holds |
//! |---|---|
//! | [`plan`] | what to run |
//! | `generator` | the load: transactions, their branches, and when each is due |
//! | `session`, `unary` | the two ways to the coordinator |
//! | `replicas` | what the replica processes used meanwhile |
//! | `redb` | the load with services and databases |
//! | [`tally`] | counting and latencies |
//! | [`report`] | the results |
//!
//! **Coordinated omission.** In a closed loop a slow answer delays the next request, as it does for a caller that waits;
//! latency is from that request's hand-over. In an open loop (a given rate) latency is from the moment at which the
//! request was *due*, however late it left. In both, requests that began in the measured window count in the histogram
//! even where they ended after it.

mod generator;
mod plan;
mod redb;
mod replicas;
mod report;
mod session;
mod tally;
mod unary;

pub(crate) use plan::{Pace, Participants, Plan, Transport};
pub(crate) use report::Report;

use generator::Generator;
use replicas::Sample;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
pub(crate) use tally::Progress;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// How long the last transactions may take to end once no new ones begin.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait for a cluster that has a leader, and for sessions with it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How often a closed loop looks whether what it waits for has come.
const POLL: Duration = Duration::from_millis(5);

/// Why there is no result.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// No leader, or no session with it, in time.
    #[error("no leader was found at {endpoints} within {} s: {last}", CONNECT_TIMEOUT.as_secs())]
    Unreachable { endpoints: String, last: String },
    /// The coordinator refused what it should take.
    #[error("the coordinator refused a transaction: {0}")]
    Refused(String),
    /// The answers contradict what was asked.
    #[error("{0}")]
    Wrong(String),
}

/// Runs the plan on this thread. `progress` is called once a second.
pub(crate) async fn run(plan: Plan, progress: impl Fn(&Progress)) -> Result<Report, BenchError> {
    match &plan.participants {
        Participants::Memory => LocalSet::new().run_until(drive(&plan, progress)).await,
        Participants::Redb { directory } => redb::drive(&plan, directory.as_deref(), progress).await,
    }
}

async fn drive(plan: &Plan, progress: impl Fn(&Progress)) -> Result<Report, BenchError> {
    let generator = Rc::new(RefCell::new(Generator::new(plan)?));
    let stop = CancellationToken::new();
    let _stop_if_dropped = stop.clone().drop_guard();
    let connected = session::start(plan, &generator, &stop);
    let unreachable = || BenchError::Unreachable {
        endpoints: plan.endpoints.join(", "),
        last: generator.borrow().trouble(),
    };
    timeout(CONNECT_TIMEOUT, connected)
        .await
        .map_err(|_| unreachable())??;
    generator.borrow_mut().begin(Instant::now());
    let _ticker = matches!(plan.pace, Pace::Open { .. }).then(|| {
        let generator = generator.clone();
        AbortOnDrop(tokio::task::spawn_local(async move {
            let mut every = tokio::time::interval(generator::TICK);
            loop {
                every.tick().await;
                generator.borrow_mut().on_tick(Instant::now());
            }
        }))
    });

    let look = || generator.borrow_mut().look();
    watch(plan.warm_up, &progress, look).await?;
    let before = Sample::take(&plan.endpoints).await;
    generator.borrow_mut().measure(Instant::now());
    let measured = watch(plan.measured, &progress, look).await;
    let elapsed = generator.borrow_mut().end_measuring(Instant::now());
    let after = Sample::take(&plan.endpoints).await;
    measured?;

    let drained = timeout(DRAIN_TIMEOUT, async {
        while !generator.borrow().is_drained() {
            sleep(POLL).await;
        }
    });
    let is_drained = drained.await.is_ok();
    // What was acknowledged is counted as such only if the coordinator agrees.
    let unfinished_count = replicas::unfinished_at_leader(&plan.endpoints, DRAIN_TIMEOUT).await;
    let tally = generator.borrow_mut().take_tally();
    Ok(Report::new(
        plan,
        &tally,
        elapsed,
        before.until(&after),
        is_drained,
        unfinished_count,
    ))
}

/// Lets time pass, tells the progress once a second, and ends early if the load failed.
async fn watch(
    span: Duration,
    progress: &impl Fn(&Progress),
    mut look: impl FnMut() -> (Progress, Option<BenchError>),
) -> Result<(), BenchError> {
    let end = Instant::now() + span;
    while Instant::now() < end {
        sleep_until(end.min(Instant::now() + Duration::from_secs(1))).await;
        let (told, failure) = look();
        progress(&told);
        if let Some(error) = failure {
            return Err(error);
        }
    }
    Ok(())
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
