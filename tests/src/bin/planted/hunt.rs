//! Looking for the bug that this process has selected.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;
use synod_proto::planted::Bug;
use synod_tests::explore::paxos::{self, PaxosWorld};
use synod_tests::explore::{search, worlds};
use synod_tests::plan::Plan;
use synod_tests::plan::play::{Failure, run};
use synod_tests::trace::Detail;

/// Far above what the explored worlds hold.
const STATE_COUNT_MAX: usize = 2_000_000;

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
    /// The seed that shows it.
    pub(crate) seed: u64,
    /// The checker.
    pub(crate) checker: String,
    /// Its words.
    pub(crate) text: String,
}

impl Found {
    fn new(seed: u64, failure: &Failure) -> Self {
        let (checker, text) = match failure
            .text
            .strip_prefix('[')
            .and_then(|rest| rest.split_once("] "))
        {
            Some((checker, text)) => (checker, text),
            None if failure.is_panic => ("assertion in the code", failure.text.as_str()),
            None => ("world", failure.text.as_str()),
        };
        Self {
            seed,
            checker: checker.to_string(),
            text: text.to_string(),
        }
    }
}

/// Explores the world in which the bug lies near, for one that seeds are not expected to come to.
pub(crate) fn explore(bug: Bug) -> Option<Outcome> {
    let bounds = match bug {
        // One replica that stands again after a crash, while answers to its former ballot are still on their way.
        Bug::AcceptsCountedOverBallots => paxos::Bounds {
            stand_count: [1, 0, 0],
            crash_count: 1,
            ..worlds::TAKE_OVER
        },
        _ => return None,
    };
    let began_at = Instant::now();
    let report = search::explore(
        &mut PaxosWorld::new(bounds),
        search::Bound::states(STATE_COUNT_MAX),
    );
    let text = report.violation?.to_string();
    let checker = format!("exploration of three replicas ({} states)", report.state_count);
    Some(Outcome {
        bug: bug.name().to_string(),
        seed_count: 0,
        found: Some(Found {
            seed: 0,
            checker,
            text,
        }),
        seconds: began_at.elapsed().as_secs_f64(),
    })
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
                    *found = Some((place, Found::new(plan.draw.seed, &failure)));
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
