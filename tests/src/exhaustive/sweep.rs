//! Many cases on several threads: each is a world of its own.

use super::Case;
use super::script::{Outcome, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// A case that failed, and how.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The case: its text replays it.
    pub case: Case,
    /// What a checker, or a panic, said.
    pub text: String,
}

/// What became of all of them, in the order of the list.
#[derive(Debug, Default)]
pub struct Swept {
    /// Those that passed.
    pub passed: Vec<(Case, Outcome)>,
    /// Those that did not.
    pub failed: Vec<Failure>,
}

impl Swept {
    /// How many cases there were.
    #[must_use]
    pub fn count(&self) -> usize {
        self.passed.len() + self.failed.len()
    }
}

/// Runs a case; a panic is a failure like any other.
///
/// # Errors
/// What a checker, or the panic, said.
pub fn run_one(case: &Case) -> Result<Outcome, String> {
    match catch_unwind(AssertUnwindSafe(|| run(case))) {
        Ok(result) => result.map_err(|violation| violation.0),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("panic: {}", text.unwrap_or("of an unknown kind")))
        }
    }
}

/// Runs these cases.
#[must_use]
pub fn sweep(cases: &[Case], thread_count: usize) -> Swept {
    let next = AtomicUsize::new(0);
    let ended: Mutex<Vec<(usize, Result<Outcome, String>)>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..thread_count.max(1) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(place) else { break };
                    let result = run_one(case);
                    ended
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((place, result));
                }
            });
        }
    });
    let mut ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended.sort_by_key(|(place, _)| *place);
    let mut swept = Swept::default();
    for (place, result) in ended {
        let case = cases[place];
        match result {
            Ok(outcome) => swept.passed.push((case, outcome)),
            Err(text) => swept.failed.push(Failure { case, text }),
        }
    }
    swept
}
