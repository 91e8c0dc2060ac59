//! Shows that data which no ready-made store fits takes part in global transactions: a venue's seat map, in a file of its
//! own, beside a redb database of the guests' purses. A ticket is a seat booked *and* a purse charged, or neither, although
//! the coordinator's leader is killed half way:
//!
//! ```text
//! cargo run --release -p synod-examples --bin seats
//! ```
//!
//! Where to look: [`venue`] is the store, one `impl ResourceManager`, with the tests that run Synod's conformance kit on it
//! (`cargo test -p synod-examples --bin seats`). [`journal`] is its file. Here is the box office that sells the tickets; the
//! three replicas of the coordinator are processes of their own.
//!
//! `--json` prints one object on stdout: `adds_up`, `problems`, `guests`, `sold`, `too_poor`, `sold_out`, `seats_taken`,
//! `purses_charged`, `in_doubt`, `resolved`, `killed_leader` (a replica's number, or null).

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use synod::resource::redb::{RedbFile, RedbResource};
use synod::resource::{ResourceError, ResourceManager as _};
use synod::{
    BoxError, CommitError, Committed, Participant, ResolveError, Resource, RetryError, RetryOptions,
};
use synod_examples::cluster::Cluster;
use synod_examples::program::{self, Directory, Report};
use synod_examples::replica;

mod journal;
mod venue;

use venue::SeatMap;

/// What a ticket costs, and what is in a purse; every fifth guest has less.
const PRICE: u64 = 60;
const PURSE: u64 = 100;
const THIN_PURSE: u64 = 10;

/// Guest to cents.
const PURSES: &str = "purses";

/// How many guests buy at the same time.
const IN_FLIGHT: usize = 8;

/// This many outlast an election many times over.
const ATTEMPT_COUNT_MAX: u32 = 50;

const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);

const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Sells tickets: each is a seat of a seat map and a charge of a purse, in one global transaction.
#[derive(Debug, Parser)]
#[command(
    name = "seats",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(flatten)]
    run: Run,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Args)]
struct Run {
    /// How many guests want a ticket
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    guests: u32,
    /// How many rows the venue has
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rows: u32,
    /// How many seats each row has
    #[arg(long, value_name = "N", default_value_t = 14, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    seats_per_row: u32,
    /// Let the leader live
    #[arg(long)]
    no_kill: bool,
    /// Print the summary as JSON on stdout
    #[arg(long)]
    json: bool,
    /// Put databases, logs and traces into DIR (new or empty) and leave them there [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// A replica of the coordinator
    #[command(hide = true)]
    Replica(replica::ReplicaArgs),
}

#[derive(Debug, Default, Serialize)]
struct Summary {
    adds_up: bool,
    problems: Vec<String>,
    guests: u32,
    sold: usize,
    too_poor: usize,
    sold_out: usize,
    seats_taken: usize,
    purses_charged: usize,
    in_doubt: usize,
    resolved: u64,
    killed_leader: Option<u8>,
}

/// Why a guest goes without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("the row is sold out")]
    SoldOut,
    #[error("the purse is too thin")]
    TooPoor,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    program::exit(match cli.role {
        Some(Role::Replica(args)) => program::of_process(replica::main("seats", &args)),
        None => drive(&cli.run),
    })
}

/// Whether everything adds up.
fn drive(run: &Run) -> Result<bool, BoxError> {
    let directory = Directory::choose("seats", run.keep.as_deref(), "box-office.txt")?;
    program::drive(run.json, sell_all(run, &directory.data, &directory.traces))
}

impl Report for Summary {
    fn adds_up(&self) -> bool {
        self.adds_up
    }

    fn figures(&self) -> String {
        format!(
            "{} guests: {} tickets sold, {} too poor, {} found their row sold out\n\
             {} seats taken, {} purses charged, {} in doubt",
            self.guests,
            self.sold,
            self.too_poor,
            self.sold_out,
            self.seats_taken,
            self.purses_charged,
            self.in_doubt
        )
    }

    fn verdict(&self) -> &'static str {
        "every seat is paid for, and every payment has its seat"
    }

    fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// The two databases that one transaction changes.
struct BoxOffice {
    participant: Participant,
    venue: Resource<SeatMap>,
    purses: Resource<RedbResource>,
    row_count: u32,
    resolved: AtomicU64,
}

async fn sell_all(run: &Run, data: &Path, traces: &Path) -> Result<Summary, BoxError> {
    let (venue_path, purses_path) = (data.join("venue.journal"), data.join("purses.redb"));
    let mut cluster = Cluster::start(data, traces).await?;
    let participant = Participant::builder()
        .coordinators(cluster.coordinators())
        .connect()
        .await?;
    // A store of one's own is attached like any other.
    let venue = participant
        .resource(SeatMap::open(&venue_path, run.seats_per_row)?)
        .await?;
    let purses = participant.resource(RedbResource::open(&purses_path)?).await?;
    let mut tx = purses.manager().begin_local()?;
    for guest in 0..run.guests {
        let purse = if guest % 5 == 4 { THIN_PURSE } else { PURSE };
        tx.put_u64(PURSES, name(guest), purse).await?;
    }
    tx.commit().await?;
    let office = BoxOffice {
        participant,
        venue,
        purses,
        row_count: run.rows,
        resolved: AtomicU64::new(0),
    };
    let half = run.guests / 2;
    let mut answers = office.sell(0..half).await?;
    let mut killed_leader = None;
    if !run.no_kill {
        // From here on the second half meets a coordinator without its leader.
        let (leader, _) = cluster.kill_leader().await?;
        eprintln!("SIGKILL to replica {leader}, the leader, after {half} guests");
        killed_leader = Some(leader);
    }
    answers.extend(office.sell(half..run.guests).await?);
    if let Some(killed) = killed_leader {
        let (leader, _) = cluster.await_leader(Some(killed)).await?;
        eprintln!("replica {leader} led on");
        cluster.restart(killed).await?;
    }
    // The commits are decided; now their effects (T16).
    for committed in answers.values().flatten() {
        committed.delivered(DELIVERY_TIMEOUT).await?;
    }
    // Without what holds the session, and with it the databases.
    let answers: BTreeMap<u32, Result<(), Refusal>> = answers
        .into_iter()
        .map(|(guest, answer)| (guest, answer.map(drop)))
        .collect();
    let in_doubt =
        office.venue.manager().in_doubt().await?.len() + office.purses.manager().in_doubt().await?.len();
    let resolved = office.resolved.load(Ordering::Relaxed);
    office.participant.shutdown().await;
    drop(office);
    cluster.stop().await?;

    // Not from any memory: from the files.
    let taken = when_closed(|| SeatMap::open(&venue_path, run.seats_per_row))
        .await?
        .taken();
    let purses = when_closed(|| RedbFile::open(&purses_path)).await?.snapshot()?;
    let mut summary = Summary {
        guests: run.guests,
        in_doubt,
        resolved,
        killed_leader,
        ..Summary::default()
    };
    let mut seats: BTreeMap<&str, usize> = BTreeMap::new();
    for guest in taken.values().flat_map(|row| row.values()) {
        *seats.entry(guest).or_default() += 1;
        summary.seats_taken += 1;
    }
    for guest in 0..run.guests {
        let (name, before) = (name(guest), if guest % 5 == 4 { THIN_PURSE } else { PURSE });
        let left = purses.get(PURSES, &name)?.ok_or("a purse is gone")?;
        let left = u64::from_be_bytes(left[..].try_into()?);
        let charged = usize::from(left != before);
        summary.purses_charged += charged;
        match &answers[&guest] {
            Ok(_) => summary.sold += 1,
            Err(Refusal::TooPoor) => summary.too_poor += 1,
            Err(Refusal::SoldOut) => summary.sold_out += 1,
        }
        let (seats, sold) = (
            seats.get(&*name).copied().unwrap_or(0),
            usize::from(answers[&guest].is_ok()),
        );
        if (seats, charged) != (sold, sold) || (charged == 1 && left + PRICE != before) {
            let problem =
                format!("{name}: {sold} sold, {seats} seat(s), {before} cents before and {left} after");
            summary.problems.push(problem);
        }
    }
    if in_doubt > 0 {
        summary
            .problems
            .push(format!("{in_doubt} branch(es) are in doubt"));
    }
    summary.adds_up = summary.problems.is_empty();
    Ok(summary)
}

/// The library's last task lets go of a store a moment after its shutdown.
async fn when_closed<T>(open: impl Fn() -> Result<T, ResourceError>) -> Result<T, ResourceError> {
    let begun = Instant::now();
    loop {
        match open() {
            Err(ResourceError::AlreadyOpen { .. }) if begun.elapsed() < CLOSE_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return opened,
        }
    }
}

fn name(guest: u32) -> String {
    format!("guest-{guest}")
}

type Answers = BTreeMap<u32, Result<Committed, Refusal>>;

impl BoxOffice {
    async fn sell(&self, guests: std::ops::Range<u32>) -> Result<Answers, BoxError> {
        let sales = stream::iter(guests).map(async |guest| Ok((guest, self.sell_one(guest).await?)));
        sales.buffer_unordered(IN_FLIGHT).try_collect().await
    }

    async fn sell_one(&self, guest: u32) -> Result<Result<Committed, Refusal>, BoxError> {
        let options = RetryOptions::default().attempt_count_max(ATTEMPT_COUNT_MAX);
        loop {
            let sold = synod::retry(&self.participant, options, async |txn| {
                let row = format!("row {}", guest % self.row_count);
                txn.branch(&self.venue, async move |mut tx| {
                    tx.book(&row, &name(guest)).await?.ok_or(Refusal::SoldOut)?;
                    Ok(())
                })
                .await?;
                txn.branch(&self.purses, async move |mut tx| {
                    let purse = tx.get_u64_for_update(PURSES, name(guest)).await?.unwrap_or(0);
                    let left = purse.checked_sub(PRICE).ok_or(Refusal::TooPoor)?;
                    Ok(tx.put_u64(PURSES, name(guest), left).await?)
                })
                .await?;
                Ok(())
            });
            return match sold.await {
                Ok(((), committed)) => Ok(Ok(committed)),
                Err(RetryError::Commit {
                    source: CommitError::InDoubt(in_doubt),
                    ..
                }) => {
                    self.resolved.fetch_add(1, Ordering::Relaxed);
                    match in_doubt.resolve().await {
                        Ok(committed) => Ok(Ok(committed)),
                        Err(ResolveError::Aborted { .. }) => continue,
                        Err(error) => Err(error.into()),
                    }
                }
                Err(error) => match refusal(&error) {
                    Some(refusal) => Ok(Err(refusal)),
                    None => Err(error.into()),
                },
            };
        }
    }
}

/// What a branch's closure said, somewhere in the chain of causes.
fn refusal(error: &(dyn Error + 'static)) -> Option<Refusal> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            return Some(*refusal);
        }
        next = error.source();
    }
    None
}
