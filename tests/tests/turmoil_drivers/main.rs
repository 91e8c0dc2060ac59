//! The real drivers on a simulated network: three replicas (driver, links, services), two offices of a bank (session, tower
//! layer, redb), callers. Network and time are turmoil's; retries, redirects, deadlines, keep-alives and streams are the
//! product's own.
//!
//! | part | is |
//! |---|---|
//! | [`plan`] | what a seed means: transfers and faults, drawn before the run |
//! | [`world`] | runs a plan, heals, and looks |
//! | [`replica`], [`office`], [`clerk`], [`audit`] | the hosts |
//! | [`ledger`], [`verify`] | what was asked and told, and what must hold |
//! | [`reached`] | what the drivers went through, counted from their trace |
//! | [`net`], [`store`] | the simulated network and the real stores on disks in memory |
//!
//! `SYNOD_TURMOIL_SEED=17` runs one seed, `SYNOD_TURMOIL_SEED=1000..2000` many; `RUST_LOG` says what is traced.
//!
//! A seed fixes the plan, to the millisecond, and turmoil's latencies; it does not fix every byte, so no trace hash is compared
//! here as it is for `cargo sim`: turmoil builds a tokio runtime for each host, whose `select!` begins with a random branch
//! (only `tokio_unstable` lets it be seeded), and the ids that the product makes, the hash maps of the gRPC stack and HTTP/2's
//! own draws come from the operating system, which nothing in safe Rust can replace. A failure that needs one interleaving
//! may take several runs of its seed. What must be replayed to the byte is tested in `cargo sim`, where the drivers are
//! the simulator's own.
#![forbid(unsafe_code)]
#![allow(unreachable_pub, reason = "the modules of one test")]

mod audit;
mod clerk;
mod ledger;
mod net;
mod office;
mod panics;
mod plan;
mod reached;
mod replica;
mod store;
mod verify;
mod world;

use std::io::Write as _;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use plan::Plan;
use world::{Report, Sabotage};

/// The seeds of an ordinary run.
const SEEDS: Range<u64> = 1..51;

/// Past the capture of test output: the figures belong to every run.
fn say(text: &str) {
    let _nobody_listens = writeln!(std::io::stderr(), "{text}");
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("SYNOD_TURMOIL_SEED") else {
        return SEEDS;
    };
    let number = |text: &str| text.parse().expect("SYNOD_TURMOIL_SEED is a seed or FIRST..END");
    match text.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => number(&text)..number(&text) + 1,
    }
}

/// T2, T4, T6, T7, T8: whatever the network and the processes do, there is one outcome, everybody who is told anything is told
/// that one, and each database ends with exactly its effects.
#[test]
fn seeds_hold() {
    reached::watch();
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let total = Mutex::new(Report::default());
    let failures = Mutex::new(Vec::new());
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                reached::count();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let run = std::panic::catch_unwind(|| world::run(&Plan::draw(seed), Sabotage::None));
                    let run = run.unwrap_or_else(|_| Err("a panic, printed above".to_owned()));
                    match run {
                        Ok(report) => total.lock().expect("no holder panics").add(&report),
                        Err(text) => {
                            say(&format!(
                                "seed {seed}: {text}\nreplay: SYNOD_TURMOIL_SEED={seed} cargo test -p synod-tests --test \
                                 turmoil_drivers seeds_hold"
                            ));
                            failures.lock().expect("no holder panics").push(seed);
                        }
                    }
                }
            });
        }
    });
    let total = total.into_inner().expect("no holder panics");
    say(&format!(
        "turmoil: seeds {}..{} in {:.1} s; {total}",
        seeds.start,
        seeds.end,
        started.elapsed().as_secs_f64()
    ));
    let failures = failures.into_inner().expect("no holder panics");
    assert!(failures.is_empty(), "seeds that failed: {failures:?}");
    if seeds == SEEDS {
        // The faults have bite, and the system works in spite of them.
        assert!(total.committed_count > 300, "{total}");
        assert!(total.aborted_count > 50, "{total}");
        assert!(total.in_doubt_count > 0, "{total}");
        assert!(total.untold_count > 0, "{total}");
        assert!(total.deadline_count > 0, "{total}");
        assert_eq!(total.faults.len(), 10, "every kind of fault: {total}");
        let reached = reached::counts();
        say(&format!("turmoil: reached {reached:?}"));
        assert!(
            reached.values().all(|count| *count > 0),
            "a point was never reached: {reached:?}\n{}",
            reached::all()
        );
    }
}

/// A seed is a bug report: the same seed is the same plan.
#[test]
fn a_seed_is_a_plan() {
    let plans: Vec<Plan> = SEEDS.map(Plan::draw).collect();
    let again: Vec<Plan> = SEEDS.map(Plan::draw).collect();
    assert_eq!(plans, again);
    assert!(plans.windows(2).all(|pair| pair[0].calls != pair[1].calls));
}

/// The checks have teeth: what is wrong on purpose is found, within a few of the ordinary seeds, and by its own trace.
#[test]
fn sabotage_is_found() {
    let sabotages: [(Sabotage, &[&str]); 3] = [
        (
            Sabotage::OfficeDiskLies,
            &["holds the transfers", "prepared branches"],
        ),
        (Sabotage::ReplicaForgets, &["admission refused"]),
        (Sabotage::InitiatorGuesses, &["was told Committed"]),
    ];
    for (sabotage, traces) in sabotages {
        let is_its = |failure: &String| traces.iter().any(|trace| failure.contains(trace));
        let found = { SEEDS }.find(|seed| {
            let failure = world::run(&Plan::draw(*seed), sabotage).err();
            failure.as_ref().is_some_and(is_its)
        });
        let seed = found.unwrap_or_else(|| panic!("{sabotage:?} is not found"));
        say(&format!("turmoil: {sabotage:?} is found by seed {seed}"));
    }
}
