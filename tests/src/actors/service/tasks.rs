//! Futures in virtual time: what is woken is polled on the spot, in the order of its beginning, and nothing runs beside it.

use crate::schedule::Micros;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use synod_proto::ids::UnixMillis;

/// The clocks of one process, and who waits for them. The store's timer must be `Send`, so this is.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(Arc<Mutex<Time>>);

#[derive(Debug, Default)]
struct Time {
    now: Micros,
    wall: UnixMillis,
    next: u64,
    sleepers: BTreeMap<(Micros, u64), Waker>,
}

impl Clock {
    fn time(&self) -> MutexGuard<'_, Time> {
        self.0.lock().expect("no holder panics")
    }

    pub(super) fn now(&self) -> Micros {
        self.time().now
    }

    pub(super) fn wall(&self) -> UnixMillis {
        self.time().wall
    }

    /// Moves the time on and wakes whoever has slept enough.
    pub(super) fn set(&self, now: Micros, wall: UnixMillis) {
        let mut time = self.time();
        (time.now, time.wall) = (now, wall);
        let later = time.sleepers.split_off(&(now + 1, 0));
        let due = std::mem::replace(&mut time.sleepers, later);
        drop(time);
        due.into_values().for_each(Waker::wake);
    }

    pub(super) fn next_wake(&self) -> Option<Micros> {
        self.time().sleepers.first_key_value().map(|((at, _), _)| *at)
    }

    /// Is over after `length`.
    pub(super) fn sleep(&self, length: Micros) -> Sleep {
        let due = self.time().now.saturating_add(length.max(1));
        Sleep {
            clock: self.clone(),
            due,
            place: None,
        }
    }
}

/// See [`Clock::sleep`].
#[derive(Debug)]
pub(super) struct Sleep {
    clock: Clock,
    due: Micros,
    place: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut time = self.clock.time();
        if time.now >= self.due {
            return Poll::Ready(());
        }
        let place = self.place.unwrap_or_else(|| {
            time.next += 1;
            time.next
        });
        time.sleepers.insert((self.due, place), context.waker().clone());
        drop(time);
        self.place = Some(place);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.clock.time().sleepers.remove(&(self.due, place));
        }
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    flag: Arc<Flag>,
}

/// The tasks of one process.
#[derive(Default)]
pub(super) struct Tasks {
    next: u64,
    tasks: BTreeMap<u64, Task>,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("count", &self.tasks.len())
            .finish_non_exhaustive()
    }
}

impl Tasks {
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn spawn(&mut self, future: Pin<Box<dyn Future<Output = ()>>>) {
        self.next += 1;
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        self.tasks.insert(self.next, Task { future, flag });
    }

    /// Polls every task that was woken once; returns whether there was one.
    pub(super) fn poll(&mut self) -> bool {
        let mut has_run = false;
        let mut over = Vec::new();
        for (number, task) in &mut self.tasks {
            if !task.flag.0.swap(false, Ordering::Relaxed) {
                continue;
            }
            has_run = true;
            let waker = Waker::from(task.flag.clone());
            if task
                .future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_ready()
            {
                over.push(*number);
            }
        }
        for number in over {
            self.tasks.remove(&number);
        }
        has_run
    }
}

/// Runs a future that never waits.
///
/// # Panics
/// It waits.
pub(super) fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("an operation of an inline store waits"),
    }
}
