//! Looking for the bug that this process has selected.

use serde::{Deserialize, Serialize};
use std::any::Any;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;
use synod_proto::planted::{Bug, Means};
use synod_tests::explore::paxos::PaxosWorld;
use synod_tests::explore::{search, worlds};
use synod_tests::plan::Plan;
use synod_tests::plan::play::run;
use synod_tests::scenarios;
use synod_tests::trace::Detail;

/// Far above what the bugs take that are found there; the worlds are explored to their end by tests of their own.
const STATE_COUNT_MAX: usize = 50_000;

/// What came of the search for one bug; children hand it to their parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The bug's name; empty where none was planted.
    pub(crate) bug: String,
    /// How many seeds it took, or how many ran where nothing was found.
    pub(crate) seed_count: u64,
    /// What was found.
    pub(crate) found: Option<Found>,
    /// How long it took.
    pub(crate) seconds: f64,
}

/// What found it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    /// The seed that shows it; `None` where none was needed.
    pub(crate) seed: Option<u64>,
    /// The checker.
    pub(crate) checker: String,
    /// Its words.
    pub(crate) text: String,
}

impl Outcome {
    /// What came of a search without seeds.
    fn new(bug: &str, found: Option<Found>, began_at: Instant) -> Self {
        Self {
            bug: bug.to_string(),
            seed_count: 0,
            found,
            seconds: began_at.elapsed().as_secs_f64(),
        }
    }
}

impl Found {
    fn from_text(seed: Option<u64>, is_panic: bool, text: &str) -> Self {
        let (checker, text) = match text.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((checker, text)) => (checker, text),
            None if is_panic => ("assertion in the code", text),
            None => ("world", text),
        };
        Self {
            seed,
            checker: checker.to_string(),
            text: text.to_string(),
        }
    }
}

/// Looks for the bug by the means that is stated for it. `seeds` are those of [`hunt`].
pub(crate) fn look(bug: Bug, seeds: (u64, u64), thread_count: usize) -> Outcome {
    let began_at = Instant::now();
    match bug.means() {
        Means::Seeds(_) => hunt(bug.name(), seeds.0, seeds.1, thread_count),
        Means::Exploration(name) => Outcome::new(bug.name(), explore(name), began_at),
        Means::Scenario(name) => Outcome::new(bug.name(), play(name), began_at),
    }
}

/// Looks where no bug is, by every means.
pub(crate) fn look_for_nothing(seeds: (u64, u64), thread_count: usize) -> Outcome {
    let began_at = Instant::now();
    let found = Bug::ALL.into_iter().find_map(|bug| match bug.means() {
        Means::Seeds(_) => None,
        Means::Exploration(name) => explore(name),
        Means::Scenario(name) => play(name),
    });
    match found {
        Some(found) => Outcome::new("", Some(found), began_at),
        None => hunt("", seeds.0, seeds.1, thread_count),
    }
}

/// Explores a small world.
fn explore(name: &str) -> Option<Found> {
    let bounds = worlds::for_planted(name).expect("a world of that name");
    let report = search::explore(
        &mut PaxosWorld::new(bounds),
        search::Bound::states(STATE_COUNT_MAX),
    );
    report.violation.map(|violation| Found {
        seed: None,
        checker: format!("exploration {name}, {} states", report.state_count),
        text: violation.to_string(),
    })
}

/// Plays a script.
fn play(name: &str) -> Option<Found> {
    let scenario = scenarios::named(name).expect("a script of that name");
    let played = catch_unwind(scenario.play);
    let failure = match played {
        Ok(Ok(())) => None,
        Ok(Err(violation)) => Some((false, violation.0)),
        Err(panic) => Some((true, text_of(panic.as_ref()))),
    };
    failure.map(|(is_panic, text)| {
        let found = Found::from_text(None, is_panic, &text);
        Found {
            checker: format!("script {name}, {}", found.checker),
            ..found
        }
    })
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic of an unknown kind").to_string()
}

/// Runs up to `seed_count_max` seeds from `first` on, until one of them shows something. Of those that do, the first
/// counts: the result does not depend on the number of threads.
pub(crate) fn hunt(bug: &str, first: u64, seed_count_max: u64, thread_count: usize) -> Outcome {
    let began_at = Instant::now();
    let (next, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let found: Mutex<Option<(u64, Found)>> = Mutex::default();
    let work = || {
        while !is_over.load(Ordering::Relaxed) {
            let place = next.fetch_add(1, Ordering::Relaxed);
            if place >= seed_count_max {
                return;
            }
            let plan = Plan::of_seed(first.wrapping_add(place));
            if let Err(failure) = run(&plan, Detail::Hash).result {
                is_over.store(true, Ordering::Relaxed);
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                if found.as_ref().is_none_or(|(earlier, _)| place < *earlier) {
                    *found = Some((
                        place,
                        Found::from_text(Some(plan.draw.seed), failure.is_panic, &failure.text),
                    ));
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread_count {
            scope.spawn(work);
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (place, found) = found.unzip();
    Outcome {
        bug: bug.to_string(),
        seed_count: place.map_or(seed_count_max, |place| place + 1),
        found,
        seconds: began_at.elapsed().as_secs_f64(),
    }
}
