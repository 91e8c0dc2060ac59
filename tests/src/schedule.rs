//! Virtual time: what happens next, and when.

use std::collections::BTreeMap;

/// Microseconds of virtual time since the run began. No machine of the world can read it; they have [`clocks`](crate::clocks).
pub type Micros = u64;

/// Things to come, in the order of their time, and of their entry where times are equal.
#[derive(Debug)]
pub struct Schedule<E> {
    now: Micros,
    sequence: u64,
    /// Boxed: the tree moves its entries about, and events are large.
    queue: BTreeMap<(Micros, u64), Box<E>>,
}

impl<E> Default for Schedule<E> {
    fn default() -> Self {
        Self {
            now: 0,
            sequence: 0,
            queue: BTreeMap::new(),
        }
    }
}

impl<E> Schedule<E> {
    /// The time.
    #[must_use]
    pub fn now(&self) -> Micros {
        self.now
    }

    /// Adds an event at a time, at the earliest now.
    pub fn at(&mut self, at: Micros, event: E) {
        self.sequence += 1;
        self.queue
            .insert((at.max(self.now), self.sequence), Box::new(event));
    }

    /// Adds an event `delay` from now.
    pub fn after(&mut self, delay: Micros, event: E) {
        self.at(self.now.saturating_add(delay), event);
    }

    /// How many events are to come.
    #[must_use]
    pub fn count(&self) -> usize {
        self.queue.len()
    }

    /// When the next event is due.
    #[must_use]
    pub fn next_at(&self) -> Option<Micros> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Moves the time on to the next event.
    pub fn pop(&mut self) -> Option<E> {
        let ((at, _), event) = self.queue.pop_first()?;
        self.now = at;
        Some(*event)
    }

    /// Moves the time on to `at`, if no event is due before.
    pub fn advance_to(&mut self, at: Micros) {
        if self.next_at().is_none_or(|next| next > at) {
            self.now = self.now.max(at);
        }
    }
}
