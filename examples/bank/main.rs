//! Shows that money which moves between two banks is neither made nor lost while replicas and banks are killed at random,
//! for a minute:
//!
//! ```text
//! cargo run --release -p synod-examples --bin bank
//! ```
//!
//! Six processes: three replicas of the coordinator, the banks *north* and *south*, each with a redb file of its own, and this
//! one, the initiator. It takes money off an account of one bank and puts it on an account of the other, in one global
//! transaction for each transfer, while a killer sends SIGKILL to the leader, to followers and to banks, and starts them again. At
//! the end both files are opened and counted: the sum of all accounts is what it was, every transfer is in both banks' books
//! or in none, those that were said to be committed and no others, and nothing is in doubt.
//!
//! Where to look: [`service`] is a bank, [`transfers`] the initiator, [`kills`] the killer. `--seed` repeats what is drawn:
//! who is killed, when and for how long, and which money moves; not how the processes interleave.
//!
//! `--json` prints one object on stdout: `adds_up`, `problems`, `seed`, `seconds`, `transfers` (committed), `refused` (not enough
//! money), `given_up`, `resolved` (were in doubt), `kills` (`leaders`, `followers`, `banks`), `longest_gap_ms` (between two commits),
//! `cents_before`, `cents_after`, `in_doubt`, `unfinished`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use synod::BoxError;
use synod::resource::redb::{RedbFile, RedbResource, Snapshot};
use synod_examples::program::{self, Directory, Report};
use synod_examples::replica;

mod kills;
mod service;
mod transfers;

use kills::{BANKS, Kills, World, database};
use service::{ACCOUNTS, BOOK};
use transfers::{Counter, Transfers};

/// Generated code of the bank's .proto file.
#[allow(unreachable_pub, missing_docs, clippy::all)]
mod proto {
    tonic::include_proto!("bank.v1");
}

/// What is on each account at the beginning, in cents.
const CENTS: u64 = 1_000;

/// How many rows are read at a time.
const PAGE_COUNT: usize = 10_000;

/// Moves money between two banks while their processes, and the coordinator's, are killed; then counts it.
#[derive(Debug, Parser)]
#[command(
    name = "bank",
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
    /// How long the money moves and the kills go on
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Repeats the choices of an earlier run [default: a random one, which is printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How many accounts each bank has
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    accounts: u32,
    /// How many transfers are under way at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    in_flight: u32,
    /// Kill nobody
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
    /// One of the banks
    #[command(hide = true)]
    Bank(service::BankArgs),
}

#[derive(Debug, Serialize)]
struct Summary {
    adds_up: bool,
    problems: Vec<String>,
    seed: u64,
    seconds: u64,
    transfers: usize,
    refused: u64,
    given_up: u64,
    resolved: u64,
    kills: Kills,
    longest_gap_ms: Option<u64>,
    cents_before: u64,
    cents_after: u64,
    in_doubt: usize,
    unfinished: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    program::exit(match cli.role {
        Some(Role::Replica(args)) => program::of_process(replica::main("bank", &args)),
        Some(Role::Bank(args)) => program::of_process(service::main(&args)),
        None => drive(&cli.run),
    })
}

/// Whether everything adds up.
fn drive(run: &Run) -> Result<bool, BoxError> {
    let directory = Directory::choose("bank", run.keep.as_deref(), "initiator.txt")?;
    program::drive(run.json, all(run, &directory.data, &directory.traces))
}

impl Report for Summary {
    fn adds_up(&self) -> bool {
        self.adds_up
    }

    fn figures(&self) -> String {
        let Kills {
            leaders,
            followers,
            banks,
        } = self.kills;
        format!(
            "{} transfers in {} s; {} refused for want of money, {} given up, {} were in doubt and resolved\n\
             SIGKILL: {leaders} leaders, {followers} followers, {banks} banks; longest time without a commit {} ms\n\
             {} cents before, {} cents after; {} branches in doubt, {} deliveries unfinished (seed {})",
            self.transfers,
            self.seconds,
            self.refused,
            self.given_up,
            self.resolved,
            self.longest_gap_ms.unwrap_or(0),
            self.cents_before,
            self.cents_after,
            self.in_doubt,
            self.unfinished,
            self.seed
        )
    }

    fn verdict(&self) -> &'static str {
        "no money was made or lost, and both books agree"
    }

    fn problems(&self) -> &[String] {
        &self.problems
    }
}

async fn all(run: &Run, data: &Path, traces: &Path) -> Result<Summary, BoxError> {
    let seed = run.seed.unwrap_or_else(rand::random);
    eprintln!("seed {seed}");
    for bank in BANKS {
        let store = RedbResource::open(database(data, bank))?;
        let mut tx = store.begin_local()?;
        for account in 0..run.accounts {
            tx.put_u64(ACCOUNTS, format!("account-{account}"), CENTS).await?;
        }
        tx.commit().await?;
        store.close().await?;
    }
    let mut world = World::start(data, traces).await?;
    let addresses: Vec<_> = world.banks.iter().map(|bank| bank.address).collect();
    let counter = Counter::open(&world.cluster.coordinators(), &addresses, run.accounts).await?;
    let end = Instant::now() + Duration::from_secs(run.seconds);
    let killed = async {
        if run.no_kill {
            return Ok(Kills::default());
        }
        world.kill_until(end, seed).await
    };
    let (transfers, kills) = tokio::try_join!(counter.transfer_until(end, run.in_flight, seed), killed)?;
    counter.settle().await?;
    let unfinished = world.cluster.unfinished().await?;
    counter.close().await;
    world.stop().await?;

    let mut books = Vec::new();
    for bank in BANKS {
        books.push(Books::read(&database(data, bank))?);
    }
    let cents_before = CENTS * u64::from(run.accounts) * BANKS.len() as u64;
    let cents_after = books.iter().map(|books| books.cents).sum();
    let in_doubt = books.iter().map(|books| books.in_doubt).sum();
    let mut problems = audit(&transfers, &books[0].entries, &books[1].entries);
    if cents_after != cents_before {
        problems.push(format!("{cents_before} cents before, {cents_after} cents after"));
    }
    if in_doubt > 0 || unfinished > 0 {
        problems.push(format!(
            "{in_doubt} branches in doubt, {unfinished} deliveries unfinished"
        ));
    }
    if let Some(error) = &transfers.last_error {
        eprintln!("the last transfer that was given up: {error}");
    }
    let gaps = transfers
        .at
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).as_millis());
    Ok(Summary {
        adds_up: problems.is_empty(),
        problems,
        seed,
        seconds: run.seconds,
        transfers: transfers.committed.len(),
        refused: transfers.refused,
        given_up: transfers.given_up,
        resolved: transfers.resolved,
        kills,
        longest_gap_ms: gaps.max().and_then(|gap| u64::try_from(gap).ok()),
        cents_before,
        cents_after,
        in_doubt,
        unfinished,
    })
}

/// What a bank's file says, read after its process has ended: not through any code of it.
struct Books {
    cents: u64,
    /// Transfer to cents, with their sign.
    entries: BTreeMap<String, i64>,
    in_doubt: usize,
}

impl Books {
    fn read(path: &Path) -> Result<Self, BoxError> {
        let snapshot = RedbFile::open(path)?.snapshot()?;
        let mut books = Self {
            cents: 0,
            entries: BTreeMap::new(),
            in_doubt: snapshot.in_doubt()?.len(),
        };
        each_row(&snapshot, ACCOUNTS, |_, value| {
            books.cents += u64::from_be_bytes(value.try_into()?);
            Ok(())
        })?;
        each_row(&snapshot, BOOK, |key, value| {
            let cents = i64::from_be_bytes(value.try_into()?);
            books.entries.insert(String::from_utf8(key.to_vec())?, cents);
            Ok(())
        })?;
        Ok(books)
    }
}

fn each_row(
    snapshot: &Snapshot,
    table: &str,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), BoxError>,
) -> Result<(), BoxError> {
    let mut after = None;
    loop {
        let rows = snapshot.scan_page(table, "", after.as_deref(), PAGE_COUNT)?;
        let Some((last, _)) = rows.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        for (key, value) in &rows {
            take(key, value)?;
        }
    }
}

/// Each transfer is in both books or in neither, with opposite signs; and in them is exactly what was said to be committed.
fn audit(transfers: &Transfers, north: &BTreeMap<String, i64>, south: &BTreeMap<String, i64>) -> Vec<String> {
    let mut problems = Vec::new();
    let ids: BTreeSet<_> = north
        .keys()
        .chain(south.keys())
        .chain(&transfers.committed)
        .collect();
    for id in ids {
        let is_committed = transfers.committed.contains(id);
        let entries = (north.get(id).copied(), south.get(id).copied());
        let is_right = match entries {
            (Some(north), Some(south)) => is_committed && north == -south,
            (None, None) => !is_committed,
            _ => false,
        };
        if !is_right {
            let said = if is_committed {
                "committed"
            } else {
                "not committed"
            };
            problems.push(format!(
                "transfer {id} was said to be {said}; the books say {entries:?}"
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Transfers, audit};

    /// The count sees what it is there for.
    #[test]
    fn the_audit_finds_half_transfers_and_lies() {
        let book = |entries: &[(&str, i64)]| -> BTreeMap<String, i64> {
            entries
                .iter()
                .map(|(id, cents)| ((*id).to_owned(), *cents))
                .collect()
        };
        let said = |ids: &[&str]| Transfers {
            committed: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..Transfers::default()
        };
        let whole = book(&[("1", -5)]);
        assert!(audit(&said(&["1"]), &whole, &book(&[("1", 5)])).is_empty());
        assert_eq!(audit(&said(&["1"]), &whole, &book(&[])).len(), 1, "half");
        assert_eq!(
            audit(&said(&["1"]), &whole, &book(&[("1", 6)])).len(),
            1,
            "made money"
        );
        assert_eq!(
            audit(&said(&[]), &whole, &book(&[("1", 5)])).len(),
            1,
            "said to be aborted"
        );
        assert_eq!(
            audit(&said(&["1", "2"]), &whole, &book(&[("1", 5)])).len(),
            1,
            "lost"
        );
    }
}
