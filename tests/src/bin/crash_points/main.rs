//! `crash_points`: stops a machine at every operation of its log's disk, or of the disk under its redb file, and damages a
//! log at every kind of place.
//!
//! Prints a table for people and, as the last line, one JSON object. Exit code 1 if a case failed (each with the line that
//! replays it), or if there were fewer cases than are asked for.

use clap::Parser;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;
use synod_tests::exhaustive::cases::{crashes, damages, double_crashes};
use synod_tests::exhaustive::script::{Outcome, Reference, VARIANT_COUNT, reference};
use synod_tests::exhaustive::stores;
use synod_tests::exhaustive::sweep::{Failure, Swept, run_one, sweep};
use synod_tests::exhaustive::{Act, Case, IMAGE_COUNT, Machine};
use synod_tests::log_disk::damage::Verdict;

/// Failures that are shown; the rest is counted.
const SHOWN_MAX: usize = 20;

/// Every crash point of scripted runs, and every kind of damage to a log.
#[derive(Debug, Parser)]
#[command(name = "crash_points")]
struct Arguments {
    /// Runs one case only: VARIANT/MACHINE/OPERATION:IMAGE[/OPERATION:IMAGE], or VARIANT/MACHINE/site:NUMBER; a machine is
    /// 1, 2, 3 or service-1, service-2.
    #[arg(long)]
    only: Option<Case>,
    /// How many variants of the script with redb stores are run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=i64::from(VARIANT_COUNT)))]
    store_variants: u8,
    /// How many variants of the script are run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(VARIANT_COUNT)))]
    variants: u8,
    /// Only every so many of the crash points, for a quick look.
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// Second crashes follow every so many first ones.
    #[arg(long, default_value_t = 30)]
    double_every: usize,
    /// The same, of the redb stores.
    #[arg(long, default_value_t = 100)]
    store_double_every: usize,
    /// How many places of each class are damaged, in each log.
    #[arg(long, default_value_t = 2)]
    sites_per_class: usize,
    /// Fails if the crash points, with every image of the disk, come to fewer operations: those that `--every` leaves out do
    /// not count.
    #[arg(long, default_value_t = 0)]
    operations_min: usize,
    /// The same for the disks under the redb stores.
    #[arg(long, default_value_t = 0)]
    store_operations_min: usize,
    /// Fails if there are fewer second crashes.
    #[arg(long, default_value_t = 0)]
    doubles_min: usize,
    /// Fails if there are fewer damaged places.
    #[arg(long, default_value_t = 0)]
    sites_min: usize,
    /// How many threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.only {
        Some(case) => only(case),
        None => all(&arguments),
    }
}

fn only(case: &Case) -> ExitCode {
    match run_one(case) {
        Ok(outcome) => {
            println!("{case}: passed, {outcome:?}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("{case}: {text}");
            ExitCode::from(1)
        }
    }
}

fn all(arguments: &Arguments) -> ExitCode {
    let began_at = Instant::now();
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = arguments.threads.unwrap_or(available);
    let mut references: Vec<(u8, Reference)> = Vec::new();
    for variant in 0..arguments.variants {
        match reference(variant) {
            Ok(one) => references.push((variant, one)),
            Err(violation) => {
                println!("variant {variant} fails with nothing done to it: {violation}");
                return ExitCode::from(1);
            }
        }
    }
    println!("variant  operations of replica 1, 2, 3  outcomes  leaders  reads for a laggard  segments");
    for (variant, one) in &references {
        let counts: Vec<String> = one
            .operation_counts
            .iter()
            .map(|(_, count)| count.to_string())
            .collect();
        println!(
            "{variant:>7}  {:>30}  {:>8}  {:>7}  {:>19}  {:>8}",
            counts.join(", "),
            one.outcome_count,
            one.led_count,
            one.fetch_count,
            one.segment_count_max
        );
    }
    // Progress goes where diagnostics go: this takes a while.
    let note =
        |what: &str, count: usize| eprintln!("{:>6.1} s  {what}: {count}", began_at.elapsed().as_secs_f64());
    let single: Vec<Case> = references
        .iter()
        .flat_map(|(variant, one)| crashes(*variant, &one.operation_counts))
        .collect();
    let single: Vec<Case> = single.into_iter().step_by(arguments.every.max(1)).collect();
    let operations: u64 = references
        .iter()
        .flat_map(|(_, one)| &one.operation_counts)
        .map(|(_, count)| count)
        .sum();
    note("crash points", single.len());
    let crashed = sweep(&single, threads);
    let double = double_crashes(&crashed.passed, arguments.double_every);
    note("second crashes", double.len());
    let crashed_again = sweep(&double, threads);
    let sites: Vec<Case> = references
        .iter()
        .flat_map(|(variant, one)| damages(*variant, one, arguments.sites_per_class))
        .collect();
    note("damaged places", sites.len());
    let damaged = sweep(&sites, threads);
    let stores = match Stores::run(arguments, threads, &note) {
        Ok(stores) => stores,
        Err(text) => {
            println!("{text}");
            return ExitCode::from(1);
        }
    };
    let all = [
        &crashed,
        &crashed_again,
        &damaged,
        &stores.crashed,
        &stores.crashed_again,
    ];
    let failed: Vec<&Failure> = all.into_iter().flat_map(|swept| &swept.failed).collect();
    note("failed", failed.len());

    let verdicts = verdicts(&damaged.passed);
    let classes = classes(&references, &sites);
    println!("\n{:>8}  operations of log disks", operations);
    println!(
        "{:>8}  crash points: each operation with {IMAGE_COUNT} images",
        single.len()
    );
    println!("{:>8}  second crashes, during the repair", double.len());
    println!("{:>8}  damaged places, of {} classes", sites.len(), classes.len());
    for (verdict, count) in &verdicts {
        println!("{count:>8}    {verdict}");
    }
    stores.print();
    println!("\n{:>8}  failed", failed.len());
    for failure in failed.iter().take(SHOWN_MAX) {
        println!(
            "{}\ncargo run -p synod-tests --bin crash_points -- --only {}",
            failure.text, failure.case
        );
    }
    // Every operation of the crash points has all of the images.
    let (crashed_at, store_crashed_at) = (single.len() / IMAGE_COUNT, stores.crashed.count() / IMAGE_COUNT);
    let is_short = crashed_at < arguments.operations_min
        || store_crashed_at < arguments.store_operations_min
        || double.len() < arguments.doubles_min
        || sites.len() < arguments.sites_min;
    if is_short {
        println!("fewer cases than asked for");
    }
    let seconds = began_at.elapsed().as_secs_f64();
    let summary = serde_json::json!({
        "operations": operations,
        "images": IMAGE_COUNT,
        "crash_points": single.len(),
        "double_crashes": double.len(),
        "corruption_sites": sites.len(),
        "corruption_classes": classes,
        "verdicts": verdicts,
        "store_operations": stores.operations,
        "store_crash_points": stores.crashed.count(),
        "store_double_crashes": stores.crashed_again.count(),
        "failed": failed.iter().map(|one| one.case.to_string()).collect::<Vec<_>>(),
        "seconds": (seconds * 10.0).round() / 10.0,
    });
    println!("{summary}");
    if failed.is_empty() && !is_short {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

/// The scripted runs with redb stores.
struct Stores {
    references: Vec<(u8, stores::Reference)>,
    operations: u64,
    crashed: Swept,
    crashed_again: Swept,
}

impl Stores {
    fn run(arguments: &Arguments, threads: usize, note: &impl Fn(&str, usize)) -> Result<Self, String> {
        let mut references = Vec::new();
        for variant in 0..arguments.store_variants {
            let one = stores::reference(variant);
            let one = one.map_err(|violation| {
                format!("variant {variant} with stores fails with nothing done to it: {violation}")
            })?;
            references.push((variant, one));
        }
        let counts = references.iter().flat_map(|(_, one)| &one.operation_counts);
        let operations = counts.map(|(_, count)| count).sum();
        let single: Vec<Case> = references
            .iter()
            .flat_map(|(variant, one)| crashes(*variant, &one.operation_counts))
            .step_by(arguments.every.max(1))
            .collect();
        note("crash points of stores", single.len());
        let crashed = sweep(&single, threads);
        let double = double_crashes(&crashed.passed, arguments.store_double_every);
        note("second crashes of stores", double.len());
        let crashed_again = sweep(&double, threads);
        Ok(Self {
            references,
            operations,
            crashed,
            crashed_again,
        })
    }

    fn print(&self) {
        println!("\nvariant  operations of service 1, 2  outcomes  effects  what happened");
        for (variant, one) in &self.references {
            let counts = one.operation_counts.iter().map(|(_, count)| count.to_string());
            let happened = one.counts.iter().map(|(what, count)| format!("{what}: {count}"));
            println!(
                "{variant:>7}  {:>26}  {:>8}  {:>7}  {}",
                counts.collect::<Vec<_>>().join(", "),
                one.outcome_count,
                one.effect_count,
                happened.collect::<Vec<_>>().join(", ")
            );
        }
        println!(
            "\n{:>8}  operations of the disks under redb stores",
            self.operations
        );
        println!(
            "{:>8}  crash points: each operation with {IMAGE_COUNT} images",
            self.crashed.count()
        );
        println!(
            "{:>8}  second crashes, while a store is opened again",
            self.crashed_again.count()
        );
    }
}

/// What the damage came to, counted.
fn verdicts(passed: &[(Case, Outcome)]) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for (_, outcome) in passed {
        let name = match outcome.verdict {
            Some(Verdict::Harmless) => "harmless",
            Some(Verdict::Unreadable) => "known as unreadable, repaired from peers",
            Some(Verdict::LastBatchCut) => "taken for a torn write: the stated limit",
            Some(Verdict::Refused) => "refused to open; emptied, learned from peers",
            None => "nothing to damage",
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// What was damaged, counted.
fn classes(references: &[(u8, Reference)], cases: &[Case]) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for case in cases {
        let of_variant = references.iter().find(|(variant, _)| *variant == case.variant);
        let sites = of_variant.and_then(|(_, one)| {
            let mut sites = one.sites.iter();
            sites.find(|(id, _)| Machine::Replica(*id) == case.machine)
        });
        if let (Act::Damage(number), Some((_, sites))) = (case.act, sites) {
            *counts.entry(sites[number].class).or_default() += 1;
        }
    }
    counts
}
