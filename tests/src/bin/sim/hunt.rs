//! Many seeds on several threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use synod_tests::plan::Plan;
use synod_tests::plan::figures::Figures;
use synod_tests::plan::play::{Failure, run};
use synod_tests::trace::Detail;

/// The name of every thread in which runs may panic.
pub(crate) const THREAD_NAME: &str = "run";

/// After so many failures the rest is not worth the wait.
const FAILURES_MAX: usize = 10;

const PROGRESS: Duration = Duration::from_secs(5);

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// After so many seeds.
    Count(u64),
    /// When no seed may begin any more.
    Elapsed(Duration),
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Caught {
    pub(crate) figures: Figures,
    pub(crate) failures: Vec<(Plan, Failure)>,
}

/// Which seeds run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seeds {
    /// So many from 1 on: the same in every hunt.
    pub(crate) fixed_count: u64,
    /// The others, from this one on.
    pub(crate) first: u64,
}

impl Seeds {
    fn at(self, place: u64) -> u64 {
        match place.checked_sub(self.fixed_count) {
            None => place + 1,
            Some(further) => self.first.wrapping_add(further),
        }
    }
}

/// Many seeds, on several threads.
#[derive(Debug)]
pub(crate) struct Hunt {
    seeds: Seeds,
    until: Until,
    began_at: Instant,
    next: AtomicU64,
    is_over: AtomicBool,
    caught: Mutex<Caught>,
    ended: Mutex<usize>,
    all_ended: Condvar,
}

impl Hunt {
    pub(crate) fn new(seeds: Seeds, until: Until) -> Self {
        Self {
            seeds,
            until,
            began_at: Instant::now(),
            next: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            caught: Mutex::default(),
            ended: Mutex::new(0),
            all_ended: Condvar::new(),
        }
    }

    /// Runs them all.
    pub(crate) fn run(self, thread_count: usize, progress: impl Fn(&Figures, Duration)) -> Caught {
        thread::scope(|scope| {
            for _ in 0..thread_count {
                let work = || {
                    self.work();
                    *self.ended.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                    self.all_ended.notify_all();
                };
                thread::Builder::new()
                    .name(THREAD_NAME.to_string())
                    .spawn_scoped(scope, work)
                    .expect("a thread for the runs");
            }
            let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            while *ended < thread_count {
                let (again, waited) = self
                    .all_ended
                    .wait_timeout(ended, PROGRESS)
                    .unwrap_or_else(PoisonError::into_inner);
                ended = again;
                if waited.timed_out() {
                    let caught = self.caught.lock().unwrap_or_else(PoisonError::into_inner);
                    progress(&caught.figures, self.began_at.elapsed());
                }
            }
        });
        let mut caught = self.caught.into_inner().unwrap_or_else(PoisonError::into_inner);
        // The quickest to replay comes first.
        caught.failures.sort_by_key(|(plan, _)| plan.draw.faults_us);
        caught
    }

    fn work(&self) {
        while let Some(seed) = self.take() {
            let plan = Plan::of_seed(seed);
            let ending = run(&plan, Detail::Hash);
            let mut caught = self.caught.lock().unwrap_or_else(PoisonError::into_inner);
            caught.figures.add(&plan, &ending);
            if let Err(failure) = ending.result {
                caught.failures.push((plan, failure));
                if caught.failures.len() >= FAILURES_MAX {
                    self.is_over.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    fn take(&self) -> Option<u64> {
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        let is_wanted = match self.until {
            Until::Count(count) => place < count,
            Until::Elapsed(length) => self.began_at.elapsed() < length,
        };
        let is_over = self.is_over.load(Ordering::Relaxed);
        (is_wanted && !is_over).then(|| self.seeds.at(place))
    }
}
