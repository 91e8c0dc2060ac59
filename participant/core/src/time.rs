//! The one timer queue of the session.

use alloc::collections::{BTreeMap, BTreeSet};
use core::hash::{Hash, Hasher};
pub use synod_proto::time::{Now, Timestamp};

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

    pub(crate) fn of(&self, key: &K) -> Option<Timestamp> {
        self.set.get(key).copied()
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
