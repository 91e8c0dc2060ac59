//! Seeded runs of whole clusters: whatever happens, nothing may be wrong; once it is over, everything must end.
//!
//! One seed: `SYNOD_SEED=7 cargo test -p synod-tests --test random -- --nocapture`. More: `SYNOD_SEEDS=5000 cargo test …`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use synod_tests::run::{Draw, Report, run};
use synod_tests::trace::Detail;

/// How many seeds this test takes by itself; `tests/run` takes many more, with `cargo sim`.
const SEED_COUNT_DEFAULT: u64 = 24;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs one seed; a failure names it, with the line that replays it.
fn run_seed(seed: u64, detail: Detail) -> Result<Report, String> {
    let replay = format!("replay: SYNOD_SEED={seed} cargo test -p synod-tests --test random -- --nocapture");
    let draw = Draw::new(seed, detail);
    match catch_unwind(AssertUnwindSafe(|| run(&draw))) {
        Ok(Ok(report)) => Ok(report),
        Ok(Err((violation, world))) => {
            if let Some(world) = world {
                world.trace.tail(400).iter().for_each(|line| eprintln!("{line}"));
                for host in world.hosts.values() {
                    eprintln!("{:#?}", host.replica().map(|replica| replica.status()));
                }
            }
            Err(format!("seed {seed}: {violation}\n{replay}"))
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("a panic");
            Err(format!("seed {seed}: {text}\n{replay}"))
        }
    }
}

#[test]
fn random_faults_break_nothing_and_healed_clusters_come_to_rest() {
    let (seeds, detail) = match variable("SYNOD_SEED") {
        Some(seed) => (seed..=seed, Detail::Lines),
        None => (
            1..=variable("SYNOD_SEEDS").unwrap_or(SEED_COUNT_DEFAULT),
            Detail::Hash,
        ),
    };
    let (mut events, mut virtual_us, mut outcomes, mut effects, mut told, mut led) = (0, 0, 0, 0, 0, 0);
    let mut failures = Vec::new();
    for seed in seeds {
        match run_seed(seed, detail) {
            Ok(report) => {
                events += report.event_count;
                virtual_us += report.length_us;
                outcomes += report.outcome_count;
                effects += report.effect_count;
                told += report.told_count;
                led += report.led_count;
            }
            Err(text) => failures.push(text),
        }
    }
    println!(
        "{events} events, {} virtual minutes, {outcomes} outcomes, {effects} effects, {told} answers compared, {led} leaders",
        virtual_us / 60_000_000
    );
    assert!(
        failures.is_empty(),
        "{} seeds failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// A seed is a bug report: the same one does the same, to the byte.
#[test]
fn the_same_seed_leaves_the_same_trace() {
    for seed in [3, 11] {
        let first = run_seed(seed, Detail::Lines).expect("the seed passes");
        let second = run_seed(seed, Detail::Lines).expect("the seed passes");
        assert_eq!(first, second);
        assert_ne!(
            first.trace_hash,
            run_seed(seed + 1, Detail::Lines)
                .expect("the seed passes")
                .trace_hash
        );
    }
}
