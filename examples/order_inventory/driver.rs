//! The order in which everything happens, from the input files to the exit code.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use crate::audit::Audit;
use crate::cli::Run;
use crate::input::{self, Input};
use crate::kills::{self, KillError, Killed, Turn};
use crate::measure::{latency, longest_gap, millis, per_second};
use crate::report::{Kill, ProcessKill, Summary};
use crate::services::{self, Services};
use crate::workload::{Shop, Workload, WorkloadError};
use synod_examples::cluster::{Cluster, ClusterError};
use synod_examples::process::{Process, ProcessError};
use synod_examples::program::{Directory, DirectoryError};

/// The exit codes beside success; they are part of the help text.
const EXIT_FAILED: u8 = 1;
const EXIT_BAD_INPUT: u8 = 2;
const EXIT_INTERRUPTED: u8 = 130;

/// How long a failed call waits for the news that its service has died.
const DEATH_WAIT: Duration = Duration::from_millis(500);

/// Why there is no summary.
#[derive(Debug, thiserror::Error)]
enum DriverError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Kill(#[from] KillError),
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    #[error("the services' files cannot be read: {0}")]
    Files(#[from] synod::resource::ResourceError),
    #[error("interrupted")]
    Interrupted,
}

/// Runs the example and reports.
pub(crate) fn main(run: &Run) -> ExitCode {
    let input = match input::read(run.orders.as_deref(), run.stock.as_deref(), run.strict) {
        Ok(input) => input,
        Err(error) => {
            error.faults().iter().for_each(|fault| eprintln!("{fault}"));
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_BAD_INPUT);
        }
    };
    input
        .faults
        .iter()
        .for_each(|fault| eprintln!("{fault} (skipped)"));
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_FAILED);
        }
    };
    match runtime.block_on(in_directory(run, &input)) {
        Ok(summary) => print(run, &summary),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(match error {
                DriverError::Directory(_) => EXIT_BAD_INPUT,
                DriverError::Interrupted => EXIT_INTERRUPTED,
                _ => EXIT_FAILED,
            })
        }
    }
}

/// The summary is the only thing that goes to stdout.
fn print(run: &Run, summary: &Summary) -> ExitCode {
    let text = if run.json {
        summary
            .to_json()
            .expect("a struct of numbers and strings is JSON")
    } else {
        summary.to_string()
    };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) if summary.adds_up => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(EXIT_FAILED),
        Err(error) => {
            eprintln!("error: stdout: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Chooses the directory. On Ctrl-C or SIGTERM everything below is dropped: processes are killed and a temporary
/// directory is deleted.
async fn in_directory(run: &Run, input: &Input) -> Result<Summary, DriverError> {
    let directory = Directory::choose("order_inventory", run.keep.as_deref(), "initiator.txt")?;
    let signals = async {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            // Without handlers the signals end the process, and the closing pipes end the others.
            return std::future::pending().await;
        };
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    tokio::select! {
        summary = all(run, input, &directory.data, &directory.traces) => summary,
        () = signals => Err(DriverError::Interrupted),
    }
}

/// What the initiator saw, before the count.
struct Seen {
    workload: Workload,
    kills: Vec<Killed>,
    delivered: usize,
    undelivered_messages: Vec<String>,
    settled: Duration,
    caught_up: Result<(), ClusterError>,
    unfinished: u64,
}

async fn all(run: &Run, input: &Input, data: &Path, traces: &Path) -> Result<Summary, DriverError> {
    eprintln!("{input}");
    let mut cluster = Cluster::start(data, traces).await?;
    cluster.processes().for_each(introduce);
    let mut services = Services::start(data, traces, &cluster.coordinators()).await?;
    services.processes().into_iter().for_each(introduce);
    let seen = match work(run, input, &mut cluster, &mut services).await {
        Ok(seen) => seen,
        // A call that failed because its service has just died: the death is the better answer.
        Err(error @ DriverError::Workload(_)) => {
            return Err(
                match tokio::time::timeout(DEATH_WAIT, services.unexpected_end()).await {
                    Ok(death) => death.into(),
                    Err(_) => error,
                },
            );
        }
        Err(error) => return Err(error),
    };
    services.stop().await?;
    cluster.stop().await?;
    let (audit, problems) = services::read_files(data)?.check(input, &seen.workload.verdicts());
    Ok(summarize(run, input, data, seen, audit, problems))
}

/// Everything for which the processes are needed.
async fn work(
    run: &Run,
    input: &Input,
    cluster: &mut Cluster,
    services: &mut Services,
) -> Result<Seen, DriverError> {
    let (orders, inventory) = (services.orders.address, services.inventory.address);
    let shop = Shop::open(&cluster.coordinators(), orders, inventory).await?;
    shop.fill(&input.stock).await?;
    let victims = run.victims();
    let turn = Turn::new(input.orders.len(), victims.len());
    let bar = progress_bar(input.orders.len());
    let place = async { Ok(shop.place_all(&input.orders, run.in_flight, &turn, &bar).await?) };
    let kill = async { Ok::<_, DriverError>(kills::run(&turn, victims, cluster, services, &bar).await?) };
    let (workload, kills) = tokio::try_join!(place, kill)?;
    bar.finish_and_clear();
    let placed_at = Instant::now();
    let settle = async { (shop.await_delivery(&workload).await, shop.await_messages().await) };
    let (delivered, undelivered_messages) = tokio::select! {
        settled = settle => settled,
        error = services.unexpected_end() => return Err(error.into()),
    };
    let settled = placed_at.elapsed();
    let mut caught_up = Ok(());
    for failover in kills.iter().filter_map(|killed| killed.failover) {
        caught_up = caught_up.and(cluster.await_caught_up(failover.replica).await);
    }
    let unfinished = cluster.unfinished().await?;
    shop.close().await;
    Ok(Seen {
        workload,
        kills,
        delivered,
        undelivered_messages,
        settled,
        caught_up,
        unfinished,
    })
}

fn summarize(
    run: &Run,
    input: &Input,
    data: &Path,
    seen: Seen,
    audit: Audit,
    mut problems: Vec<String>,
) -> Summary {
    let Seen {
        workload,
        kills,
        delivered,
        undelivered_messages,
        settled,
        caught_up,
        unfinished,
    } = seen;
    let (orders, placed) = (input.orders.len(), workload.placed_count());
    if delivered != placed {
        problems.push(format!(
            "{placed} placed orders, but {delivered} delivered to orders and inventory"
        ));
    }
    problems.extend(undelivered_messages);
    if unfinished > 0 {
        problems.push(format!(
            "the coordinator has {unfinished} committed transaction(s) left to deliver"
        ));
    }
    if let Err(error) = &caught_up {
        problems.push(error.to_string());
    }
    let commits = workload.commits();
    let kills: Vec<_> = kills
        .iter()
        .enumerate()
        .map(|(index, killed)| {
            let next = kills.get(index + 1).map(|next| next.killed_at);
            let gap = longest_gap(&commits, Some(killed.killed_at), next);
            (killed, gap.map(millis))
        })
        .collect();
    let elapsed = workload.elapsed();
    Summary {
        adds_up: problems.is_empty(),
        problems,
        orders,
        skipped_lines: input.faults.len(),
        placed,
        refused: orders - placed,
        delivered,
        transactions: workload.transactions(),
        resolved: workload.resolved(),
        in_flight: run.in_flight,
        elapsed_ms: millis(elapsed),
        orders_per_second: per_second(orders, elapsed),
        latency_ms: latency(workload.latencies()),
        settled_ms: millis(settled),
        longest_gap_ms: longest_gap(&commits, None, None).map(millis),
        kill: kills.iter().find_map(|(killed, gap)| {
            let failover = killed.failover?;
            Some(Kill {
                replica: failover.replica,
                after_orders: killed.after_orders,
                commits_stood_still_ms: *gap,
                new_leader: failover.new_leader,
                caught_up: caught_up.is_ok(),
            })
        }),
        kills: kills
            .iter()
            .map(|(killed, gap)| ProcessKill {
                victim: killed.victim,
                process: killed.process.clone(),
                after_orders: killed.after_orders,
                commits_stood_still_ms: *gap,
                away_ms: millis(killed.away),
                new_leader: killed.failover.map(|failover| failover.new_leader),
            })
            .collect(),
        audit,
        unfinished,
        data: run.keep.as_ref().map(|_| data.to_owned()),
    }
}

fn introduce(process: &Process) {
    eprintln!(
        "{:<18} process {:<8} {}",
        process.name, process.id, process.address
    );
}

/// On a terminal; elsewhere it draws nothing.
fn progress_bar(order_count: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} orders  {per_sec}  {msg}")
        .expect("a valid template");
    ProgressBar::new(order_count as u64).with_style(style)
}
