//! The topics that have keys in memory: each has its own ready keys, its share of what is in flight, and its bound on keys that
//! wait, so that a topic whose handler is missing, hangs or always fails leaves room for the others.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::ids::Position;

use super::keys::KeyNumber;
use super::vocabulary::{TOPIC_SHARE_BYTES_MAX, TOPIC_SHARE_COUNT_MAX};

/// A topic that was met. Topics are few, and never forgotten: a consumer names those that it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TopicNumber(usize);

#[derive(Clone, Debug, Default)]
pub(super) struct Topic {
    pub(super) name: Bytes,
    /// Keys with a message to send, in the order of their turns.
    pub(super) ready: VecDeque<KeyNumber>,
    /// Rows behind this one were left in the store, since too many keys wait. `None`: nothing was.
    pub(super) left_after: Option<Position>,
    /// Keys that wait for their next attempt or for an operator, or were not acknowledged since.
    pub(super) waiting_count: usize,
    in_flight_count: usize,
    in_flight_bytes: usize,
}

impl Topic {
    /// Whether another message of this size may be in flight, beside so many sessions.
    pub(super) fn has_share(&self, byte_count: usize, session_count: usize) -> bool {
        self.in_flight_count < TOPIC_SHARE_COUNT_MAX * session_count
            && self.in_flight_bytes + byte_count <= TOPIC_SHARE_BYTES_MAX * session_count
    }

    pub(super) fn begin_flight(&mut self, byte_count: usize) {
        self.in_flight_count += 1;
        self.in_flight_bytes += byte_count;
    }

    pub(super) fn end_flight(&mut self, byte_count: usize) {
        self.in_flight_count -= 1;
        self.in_flight_bytes -= byte_count;
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Topics {
    topics: Vec<Topic>,
    numbers: BTreeMap<Bytes, TopicNumber>,
    /// Whose turn it is.
    turn: usize,
}

impl Topics {
    /// The number of this topic, which is new if it was never met.
    pub(super) fn number(&mut self, name: &Bytes) -> TopicNumber {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = TopicNumber(self.topics.len());
        self.numbers.insert(name.clone(), number);
        self.topics.push(Topic {
            name: name.clone(),
            ..Topic::default()
        });
        number
    }

    pub(super) fn of(&self, number: TopicNumber) -> &Topic {
        &self.topics[number.0]
    }

    pub(super) fn of_mut(&mut self, number: TopicNumber) -> &mut Topic {
        &mut self.topics[number.0]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TopicNumber, &Topic)> {
        self.topics
            .iter()
            .enumerate()
            .map(|(number, topic)| (TopicNumber(number), topic))
    }

    pub(super) fn count(&self) -> usize {
        self.topics.len()
    }

    /// The topic whose turn it is; asked again, the next one.
    pub(super) fn take_turn(&mut self) -> TopicNumber {
        let number = self.turn % self.topics.len().max(1);
        self.turn = number + 1;
        TopicNumber(number)
    }
}
