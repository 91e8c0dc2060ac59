//! What is read from the store, and what of it is taken into memory.
//!
//! One cursor goes over all rows, in the order of their positions. Two things are left behind it and read later by themselves:
//! what of one key is more than its queue takes, and what of one topic comes while too many of its keys wait.

use bytes::Bytes;
use synod_proto::ids::Position;

use super::keys::{Key, KeyNumber, Phase};
use super::topics::{Topic, TopicNumber};
use super::vocabulary::{KEY_QUEUE_COUNT_MAX, READ_COUNT_MAX, Read, Row, Rows, WINDOW_COUNT_MAX};
use super::{Entry, Operated, Relay};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    All,
    Topic(TopicNumber),
    Key(KeyNumber),
}

impl Relay {
    /// New rows may have become visible.
    pub fn on_published(&mut self) {
        self.has_more = true;
    }

    /// What to read next, if there is room for it. The answer is [`on_rows`](Self::on_rows) or
    /// [`on_read_failed`](Self::on_read_failed); until then there is no other.
    pub fn poll_read(&mut self) -> Option<Read> {
        if self.reading.is_some() {
            return None;
        }
        // First what keys wait for that were sent before: it is older than what comes behind the cursor.
        while let Some(number) = self.unread.pop_front() {
            let Some(Key {
                phase: Phase::Unread,
                name,
                more_after: Some(after),
                ..
            }) = self.keys.get_mut(number)
            else {
                continue;
            };
            self.reading = Some(Reading::Key(number));
            return Some(Read::Key {
                key: name.clone(),
                after: *after,
                count_max: KEY_QUEUE_COUNT_MAX,
            });
        }
        // A key that waits for its next attempt has one message in memory, and takes no room from the others.
        let room = WINDOW_COUNT_MAX.saturating_sub(self.entries.len() - self.backing_off_count);
        if room < READ_COUNT_MAX {
            return None;
        }
        // In turns: a topic with much that was left is no reason to keep the others waiting, nor the other way round.
        let left = self.topic_to_read();
        if let Some((number, topic, after)) = left.filter(|_| self.is_topics_turn || !self.has_more) {
            self.is_topics_turn = false;
            self.reading = Some(Reading::Topic(number));
            return Some(Read::Topic {
                topic,
                after,
                count_max: READ_COUNT_MAX,
            });
        }
        if !self.has_more {
            return None;
        }
        self.is_topics_turn = true;
        self.has_more = false;
        self.reading = Some(Reading::All);
        Some(Read::All {
            after: self.cursor,
            count_max: READ_COUNT_MAX,
        })
    }

    /// Of the topics that may go on, the one that is furthest behind.
    fn topic_to_read(&self) -> Option<(TopicNumber, Bytes, Position)> {
        let left = self.topics.iter().filter_map(|(number, topic)| {
            let after = topic.left_after.filter(|_| self.has_waiting_room(topic))?;
            Some((number, topic.name.clone(), after))
        });
        left.min_by_key(|(_, _, after)| *after)
    }

    /// Whether so many of the topic's keys have been served that it is worth a read.
    pub(super) fn has_waiting_room(&self, topic: &Topic) -> bool {
        let count_max = self.options.waiting_count_max;
        topic.waiting_count < count_max - count_max / 8
    }

    /// The answer to the last [`poll_read`](Self::poll_read).
    ///
    /// # Panics
    /// Nothing was asked: a bug of the driver.
    pub fn on_rows(&mut self, found: &Rows) {
        let reading = self.reading.take().expect("rows are an answer");
        self.take_rows(reading, found);
        self.operated.clear();
    }

    fn take_rows(&mut self, reading: Reading, found: &Rows) {
        match reading {
            Reading::All => {
                self.has_more |= !found.is_end;
                for row in &found.rows {
                    let topic = self.topics.number(&row.topic);
                    if self.topics.of(topic).left_after.is_none() {
                        self.take_or_leave(topic, row);
                    }
                }
                self.cursor = self.cursor.max(found.up_to);
            }
            Reading::Topic(topic) => {
                // Nothing comes between this read and what the cursor has passed: that is older.
                let is_caught_up = found.is_end || found.up_to >= self.cursor;
                self.topics.of_mut(topic).left_after = None;
                for row in &found.rows {
                    if !self.take_or_leave(topic, row) {
                        return;
                    }
                }
                if !is_caught_up {
                    self.topics.of_mut(topic).left_after = Some(found.up_to);
                }
            }
            Reading::Key(number) => self.on_key_rows(number, found),
        }
    }

    fn on_key_rows(&mut self, number: KeyNumber, found: &Rows) {
        let Some(key) = self.keys.get_mut(number) else {
            return;
        };
        let was_overtaken = core::mem::take(&mut key.is_overtaken);
        key.more_after = None;
        for row in &found.rows {
            self.take_row(row);
        }
        let Some(key) = self.keys.get_mut(number) else {
            return;
        };
        if (!found.is_end || was_overtaken) && key.more_after.is_none() {
            key.more_after = Some(found.up_to);
        }
        if key.phase == Phase::Unread {
            self.advance(number);
        }
    }

    /// The store could not be read. The driver waits before it asks again.
    pub fn on_read_failed(&mut self) {
        self.operated.clear();
        match self.reading.take() {
            Some(Reading::Key(number)) => self.unread.push_front(number),
            Some(Reading::All) => self.has_more = true,
            // It is still noted what was left.
            Some(Reading::Topic(_)) | None => {}
        }
    }

    /// Takes the row, unless its key is a new one and too many of its topic wait: then it and all of the topic that comes behind
    /// it are left in the store.
    fn take_or_leave(&mut self, topic: TopicNumber, row: &Row) -> bool {
        let of_topic = self.topics.of_mut(topic);
        let is_full = of_topic.waiting_count >= self.options.waiting_count_max;
        if is_full && self.keys.find(&row.key).is_none() {
            of_topic.left_after = Some(Position(row.position.0.saturating_sub(1)));
            return false;
        }
        self.take_row(row);
        true
    }

    pub(super) fn take_row(&mut self, row: &Row) {
        if self.entries.contains_key(&row.position) {
            return;
        }
        // A read shows its snapshot's time: what was dead then may be discarded by now, or requeued.
        let row = match self.operated.get(&row.position) {
            Some(Operated::Discarded) => return,
            Some(Operated::Requeued) => &Row {
                failed_count: 0,
                is_dead: false,
                ..row.clone()
            },
            None => row,
        };
        let topic = self.topics.number(&row.topic);
        let number = self.keys.number(&row.key, topic);
        let key = self.keys.get_mut(number).expect("just numbered");
        if key.more_after.is_some() {
            // What lies between was not read: this one is read in its turn.
            key.is_overtaken = true;
            return;
        }
        // As it was read it was still tried.
        if key.waits_for(row.position) {
            return;
        }
        let is_waiting = matches!(key.phase, Phase::Backoff | Phase::Dying(_));
        if key.queue.len() >= KEY_QUEUE_COUNT_MAX || (is_waiting && !key.queue.is_empty()) {
            key.more_after = key.queue.last().copied();
            key.is_overtaken = true;
            return;
        }
        key.queue.insert(row.position);
        self.entries.insert(row.position, Entry::new(number, row));
        if key.phase == Phase::Idle {
            self.advance(number);
        }
    }
}
