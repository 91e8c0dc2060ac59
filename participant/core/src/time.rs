//! Instants as arguments, and the one timer queue of the session.

use alloc::collections::{BTreeMap, BTreeSet};
use core::hash::{Hash, Hasher};
use core::time::Duration;
use synod_proto::ids::UnixMillis;

/// Microseconds on the driver's monotonic clock. Means nothing outside one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This instant plus `duration`, saturating.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)),
        )
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// The time at which a step runs. Delays are measured on the monotonic clock only; the wall clock is read for what
/// was written by another process: a deadline, an age (traps B21).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock.
    pub monotonic: Timestamp,
    /// The wall clock.
    pub wall: UnixMillis,
}

/// At most one timer per key, in the order in which they are due.
#[derive(Clone, Debug)]
pub(crate) struct Timers<K> {
    due: BTreeSet<(Timestamp, K)>,
    set: BTreeMap<K, Timestamp>,
}

/// For checkers: which timer is due before which, and not when.
impl<K: Hash> Hash for Timers<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for (_, key) in &self.due {
            key.hash(state);
        }
        self.due.len().hash(state);
    }
}

impl<K: Ord + Copy> Timers<K> {
    pub(crate) const fn new() -> Self {
        Self {
            due: BTreeSet::new(),
            set: BTreeMap::new(),
        }
    }

    /// Sets or moves the key's timer.
    pub(crate) fn set(&mut self, key: K, at: Timestamp) {
        if let Some(earlier) = self.set.insert(key, at) {
            self.due.remove(&(earlier, key));
        }
        self.due.insert((at, key));
    }

    pub(crate) fn cancel(&mut self, key: K) {
        if let Some(at) = self.set.remove(&key) {
            self.due.remove(&(at, key));
        }
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<K> {
        let (at, key) = *self.due.first()?;
        if at > now {
            return None;
        }
        self.due.remove(&(at, key));
        self.set.remove(&key);
        Some(key)
    }
}
