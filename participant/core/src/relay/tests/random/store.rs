//! The model's outbox database, as the real store keeps it: what is settled, what is dead, how far the mark is.

use super::super::super::*;
use super::WAITING_COUNT_MAX;
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

/// What lies in the outbox's database.
#[derive(Default)]
pub(super) struct Store {
    pub(super) keys: Vec<u64>,
    /// What was not deleted.
    pub(super) stored: BTreeSet<u64>,
    pub(super) done: BTreeSet<u64>,
    pub(super) failed: BTreeMap<u64, u32>,
    pub(super) letters: BTreeMap<u64, Letter>,
    pub(super) discarded: BTreeSet<u64>,
    pub(super) mark: u64,
    pub(super) run: u64,
}

/// What the mark passes although it is not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Letter {
    Dead,
    Requeued,
    /// Behind another one of its key.
    Waiting,
}

pub(super) fn name(key: u64) -> Bytes {
    Bytes::copy_from_slice(&key.to_be_bytes())
}

/// The first key has a topic of its own.
pub(super) fn topic(key: u64) -> Bytes {
    Bytes::copy_from_slice(&key.min(1).to_be_bytes())
}

impl Store {
    pub(super) fn key(&self, position: u64) -> u64 {
        self.keys[usize::try_from(position - 1).unwrap()]
    }

    pub(super) fn is_unsettled(&self, position: u64) -> bool {
        self.letters.contains_key(&position) || (position >= self.mark && !self.done.contains(&position))
    }

    pub(super) fn row(&self, position: u64) -> Row {
        Row {
            position: Position(position),
            topic: topic(self.key(position)),
            key: name(self.key(position)),
            byte_count: 1,
            failed_count: self.failed.get(&position).copied().unwrap_or(0),
            is_dead: self.letters.get(&position) == Some(&Letter::Dead),
        }
    }

    pub(super) fn find(&self, asked: &Read) -> Rows {
        let (after, count_max, of_topic, of_key) = match asked {
            Read::All { after, count_max } => (after.0, *count_max, None, None),
            Read::Topic {
                topic,
                after,
                count_max,
            } => (after.0, *count_max, Some(topic), None),
            Read::Key {
                key,
                after,
                count_max,
            } => (after.0, *count_max, None, Some(key)),
        };
        let mut rows = Rows {
            rows: vec![],
            up_to: Position(after),
            is_end: true,
        };
        for position in after + 1..=self.keys.len() as u64 {
            // A short page now and then, as the store may end one anywhere.
            if rows.rows.len() == count_max.min(3) {
                rows.is_end = false;
                break;
            }
            let key = self.key(position);
            let is_asked = of_key.is_none_or(|asked| *asked == name(key))
                && of_topic.is_none_or(|asked| *asked == topic(key));
            if is_asked && self.is_unsettled(position) {
                rows.rows.push(self.row(position));
            }
            if is_asked {
                rows.up_to = Position(position);
            }
        }
        rows
    }

    /// As the store does it: what waits is told by the message directly before it of its key that is still stored.
    pub(super) fn advance(&mut self) -> LowWater {
        while self.mark <= self.keys.len() as u64 {
            let key = self.key(self.mark);
            let before = self.stored.range(..self.mark).rev();
            let before = before.copied().find(|position| self.key(*position) == key);
            let is_behind_a_letter = before.is_some_and(|position| self.letters.contains_key(&position));
            if !self.letters.contains_key(&self.mark) && !self.done.remove(&self.mark) {
                if !is_behind_a_letter {
                    break;
                }
                self.letters.insert(self.mark, Letter::Waiting);
            }
            self.mark += 1;
        }
        let (mark, letters) = (self.mark, &self.letters);
        self.stored
            .retain(|position| *position >= mark || letters.contains_key(position));
        LowWater {
            mark: Position(self.mark),
            unsettled: self
                .letters
                .range(..self.mark)
                .map(|(position, _)| Position(*position))
                .collect(),
        }
    }

    pub(super) fn settle(&mut self, settlement: &Settlement) -> LowWater {
        for Position(position) in &settlement.delivered {
            if self.is_unsettled(*position) {
                self.letters.remove(position);
                if *position >= self.mark {
                    self.done.insert(*position);
                }
            }
        }
        for failure in &settlement.failed {
            if self.is_unsettled(failure.position.0) {
                self.failed.insert(failure.position.0, failure.failed_count);
            }
        }
        for failure in &settlement.dead {
            if self.is_unsettled(failure.position.0) {
                self.letters.insert(failure.position.0, Letter::Dead);
                self.failed.remove(&failure.position.0);
            }
        }
        self.advance()
    }

    pub(super) fn relay(&mut self, seed: u64, policy: DeadLetterPolicy) -> Relay {
        self.run += 1;
        let options = RelayOptions {
            attempt_count_max: 3,
            policy,
            waiting_count_max: WAITING_COUNT_MAX,
            ..RelayOptions::default()
        };
        let low_water = self.advance();
        let letters: Vec<Row> = self.letters.keys().map(|position| self.row(*position)).collect();
        Relay::new(options, seed, Fence(self.run << 40), low_water, &letters)
    }
}
