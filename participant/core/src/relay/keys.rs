//! The keys that have messages on their way: each with its short queue and its phase.

use alloc::collections::{BTreeMap, BTreeSet};
use bytes::Bytes;
use synod_proto::ids::Position;

use super::topics::{TopicNumber, Topics};

/// A key while it is in memory. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyNumber(u64);

/// What a key is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Just made.
    #[default]
    Idle,
    /// Its first message waits for a turn.
    Ready,
    /// One message is on a session; it is not in the queue.
    InFlight,
    /// Its first message has failed and waits for its next attempt.
    Backoff,
    /// A message is to become a dead letter, which is not on disk yet.
    Dying(Position),
    /// Waits for an operator.
    Held(Position),
    /// Nothing is in the queue, but in the store.
    Unread,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Key {
    pub(super) name: Bytes,
    pub(super) topic: TopicNumber,
    pub(super) phase: Phase,
    pub(super) queue: BTreeSet<Position>,
    /// Messages behind this one may be in the store and not here.
    pub(super) more_after: Option<Position>,
    /// A row was met behind `more_after` and left there, perhaps after the read that is under way.
    pub(super) is_overtaken: bool,
    /// The last message that was acknowledged.
    pub(super) previous: Option<Position>,
    /// It waits for its next attempt or for an operator, or has not been acknowledged since.
    is_waiting: bool,
}

impl Key {
    /// Whether it waits for what becomes of this dead letter.
    pub(super) fn waits_for(&self, dead: Position) -> bool {
        matches!(self.phase, Phase::Held(held) | Phase::Dying(held) if held == dead)
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    keys: BTreeMap<KeyNumber, Key>,
    numbers: BTreeMap<Bytes, KeyNumber>,
    dying: BTreeMap<Position, KeyNumber>,
    held: BTreeSet<KeyNumber>,
    made_count: u64,
}

impl Keys {
    /// The number of this key, which is new if it was not in memory.
    pub(super) fn number(&mut self, name: &Bytes, topic: TopicNumber) -> KeyNumber {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        self.made_count += 1;
        let number = KeyNumber(self.made_count);
        self.numbers.insert(name.clone(), number);
        let key = Key {
            name: name.clone(),
            topic,
            ..Key::default()
        };
        self.keys.insert(number, key);
        number
    }

    pub(super) fn find(&self, name: &Bytes) -> Option<KeyNumber> {
        self.numbers.get(name).copied()
    }

    pub(super) fn get_mut(&mut self, number: KeyNumber) -> Option<&mut Key> {
        self.keys.get_mut(&number)
    }

    pub(super) fn topic(&self, number: KeyNumber) -> TopicNumber {
        self.keys[&number].topic
    }

    /// Counts the key among those of its topic that wait, or no longer.
    pub(super) fn set_waiting(&mut self, topics: &mut Topics, number: KeyNumber, is_waiting: bool) {
        let Some(key) = self.keys.get_mut(&number) else {
            return;
        };
        let topic = topics.of_mut(key.topic);
        match (key.is_waiting, is_waiting) {
            (false, true) => topic.waiting_count += 1,
            (true, false) => topic.waiting_count -= 1,
            _ => {}
        }
        key.is_waiting = is_waiting;
    }

    pub(super) fn remove(&mut self, topics: &mut Topics, number: KeyNumber) {
        self.set_waiting(topics, number, false);
        if let Some(key) = self.keys.remove(&number) {
            self.numbers.remove(&key.name);
        }
        self.held.remove(&number);
    }

    /// A message of this key is to become a dead letter.
    pub(super) fn begin_dying(&mut self, number: KeyNumber, position: Position) {
        if let Some(key) = self.keys.get_mut(&number) {
            key.phase = Phase::Dying(position);
            self.dying.insert(position, number);
        }
    }

    /// The dead letter is on disk.
    pub(super) fn end_dying(&mut self, position: Position) -> Option<KeyNumber> {
        self.dying.remove(&position)
    }

    pub(super) fn is_dying(&self, position: Position) -> bool {
        self.dying.contains_key(&position)
    }

    /// The key waits for an operator; what is behind the dead letter is in the store.
    pub(super) fn hold(&mut self, number: KeyNumber, dead: Position) {
        if let Some(key) = self.keys.get_mut(&number) {
            key.phase = Phase::Held(dead);
            key.queue.clear();
            key.more_after = Some(dead);
            self.held.insert(number);
        }
    }

    /// The key waits no longer for what becomes of this dead letter.
    pub(super) fn release(&mut self, number: KeyNumber, dead: Position) {
        self.held.remove(&number);
        self.dying.remove(&dead);
    }

    pub(super) fn forget_previous(&mut self) {
        for key in self.keys.values_mut() {
            key.previous = None;
        }
    }

    pub(super) fn is_held(&self, number: KeyNumber) -> bool {
        self.held.contains(&number)
    }
}
