//! The relay of one outbox to one consumer, as a value (step 6 of a transaction): which messages go out when.
//!
//! A message is `Pending`, then `InFlight` on one session, then `Delivered` or, after too many failures, `Dead`. What
//! lasts is in the store; this is what a process knows of it while it runs, and all of it can be lost at any time: what was
//! in flight is pending again then, and the consumer's inbox tells a duplicate (traps H7).
//!
//! - **Order**: of one key at most one message is in flight, the first that is not settled. Keys are independent.
//! - **Claims**: all sessions of a process share one of these values, so that a key is in flight on one session only
//!   (traps H5, H10); each sending has a [`Fence`] above all earlier ones.
//! - **Failures count by answers only.** A session that breaks says nothing about the messages on it: a consumer that is
//!   away for a day makes no dead letter.
//! - **Refusals do not count, and are told**: why a consumer could not make an attempt is written like a failure (traps G5).
//! - **Bounds**: at most [`WINDOW_COUNT_MAX`] messages without bodies; of one key at most [`KEY_QUEUE_COUNT_MAX`], and of one
//!   that waits just its first, outside that window. Of one topic at most [`WAITING_COUNT_MAX`] keys wait; then no more of *its*
//!   keys are read. Nothing is sent while [`UNWRITTEN_COUNT_MAX`] results wait to be written.
//! - **Fairness**: topics take turns, within a topic its ready keys, and so do sessions; one topic does not fill a session.
//!
//! The driver asks in any order: [`poll_send`](Relay::poll_send), [`poll_read`](Relay::poll_read),
//! [`poll_settlement`](Relay::poll_settlement), [`poll_low_water`](Relay::poll_low_water),
//! [`poll_lost`](Relay::poll_lost), and tells what came of it.

mod keys;
mod reading;
mod topics;
mod vocabulary;

#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::ids::{Fence, Position};
use synod_proto::message::{Answer, LowWater};

use synod_proto::random::Random;

use crate::time::{Timers, Timestamp};
use keys::{KeyNumber, Keys, Phase};
use reading::Reading;
use topics::{TopicNumber, Topics};

pub use vocabulary::{
    DeadLetterPolicy, Failure, Ignored, KEY_QUEUE_COUNT_MAX, LOW_WATER_COUNT, LOW_WATER_DELAY,
    READ_COUNT_MAX, Read, RelayOptions, RelaySession, Row, Rows, SESSION_BYTES_MAX, SESSION_COUNT_MAX,
    SETTLEMENT_COUNT_MAX, Send, Settlement, TOPIC_SHARE_BYTES_MAX, TOPIC_SHARE_COUNT_MAX,
    UNWRITTEN_COUNT_MAX, WAITING_COUNT_MAX, WINDOW_COUNT_MAX,
};

/// The relay of one outbox to one consumer. The [module](self) says what it guarantees.
#[derive(Clone, Debug)]
pub struct Relay {
    options: RelayOptions,
    random: Random,
    fence: Fence,
    keys: Keys,
    topics: Topics,
    entries: BTreeMap<Position, Entry>,
    /// Keys that wait for their next attempt, with one message each.
    backing_off_count: usize,
    /// Keys of which more rows are to be read.
    unread: VecDeque<KeyNumber>,
    sessions: BTreeMap<RelaySession, Session>,
    /// Whose turn it is.
    turns: VecDeque<RelaySession>,
    lost: VecDeque<RelaySession>,
    timers: Timers<Timer>,
    /// Rows up to here have been read.
    cursor: Position,
    /// There may be rows behind the cursor.
    has_more: bool,
    /// What was left of a topic is read next, before what comes behind the cursor.
    is_topics_turn: bool,
    reading: Option<Reading>,
    /// What operators did while a read is under way, which may be of an earlier time.
    operated: BTreeMap<Position, Operated>,
    /// What waits to be written.
    settlement: Settlement,
    is_settling: bool,
    low_water: LowWater,
    /// What the inbox was last told, and has confirmed.
    told: Option<LowWater>,
    confirmed: LowWater,
    is_low_water_due: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Key(KeyNumber),
    Session(RelaySession),
    LowWater,
}

/// What an operator did to a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operated {
    /// Or cancelled: it is sent either way.
    Requeued,
    Discarded,
}

/// A message in memory that is not settled.
#[derive(Clone, Debug)]
struct Entry {
    key: KeyNumber,
    byte_count: usize,
    failed_count: u32,
    /// Sendings that ended with their session, or were refused.
    lost_count: u32,
    /// Stands for the last refusal's text; 0 before.
    refusal: u64,
    is_dead: bool,
    /// An operator has taken it back: it is sent until the consumer has confirmed that, and does not die.
    is_cancelled: bool,
}

impl Entry {
    fn new(key: KeyNumber, row: &Row) -> Self {
        Self {
            key,
            byte_count: row.byte_count,
            failed_count: row.failed_count,
            lost_count: 0,
            refusal: 0,
            is_dead: row.is_dead,
            is_cancelled: false,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Session {
    in_flight: BTreeMap<Position, Fence>,
    byte_count: usize,
}

impl Relay {
    /// A relay that begins at the store's low-water mark. `letters`, rising, are the dead letters, the requeued messages and those
    /// that wait behind them, which may lie below it. `fence` must be above every fence of an earlier relay of this outbox.
    #[must_use]
    pub fn new(options: RelayOptions, seed: u64, fence: Fence, low_water: LowWater, letters: &[Row]) -> Self {
        let mut relay = Self {
            options,
            random: Random::new(seed),
            fence,
            keys: Keys::default(),
            topics: Topics::default(),
            entries: BTreeMap::new(),
            backing_off_count: 0,
            unread: VecDeque::new(),
            sessions: BTreeMap::new(),
            turns: VecDeque::new(),
            lost: VecDeque::new(),
            timers: Timers::new(),
            cursor: Position(low_water.mark.0.saturating_sub(1)),
            has_more: true,
            is_topics_turn: false,
            reading: None,
            operated: BTreeMap::new(),
            settlement: Settlement::default(),
            is_settling: false,
            low_water,
            told: None,
            confirmed: LowWater::default(),
            is_low_water_due: false,
        };
        let cursor = relay.cursor;
        for row in letters.iter().filter(|row| row.position <= cursor) {
            relay.take_row(row);
        }
        relay
    }

    // ---- keys ----

    /// Gives the key its next phase after one has ended.
    fn advance(&mut self, number: KeyNumber) {
        let Some(key) = self.keys.get_mut(number) else {
            return;
        };
        while let Some(head) = key.queue.first().copied() {
            if !self.entries[&head].is_dead {
                key.phase = Phase::Ready;
                self.topics.of_mut(key.topic).ready.push_back(number);
                return;
            }
            self.entries.remove(&head);
            match self.options.policy {
                DeadLetterPolicy::HoldKey => return self.hold(number, head),
                DeadLetterPolicy::Skip => key.queue.remove(&head),
            };
        }
        if key.more_after.is_some() {
            key.phase = Phase::Unread;
            self.unread.push_back(number);
        } else {
            self.keys.remove(&mut self.topics, number);
        }
    }

    /// Takes everything out of memory that is behind `position`; it is read again in its turn.
    fn shed(&mut self, number: KeyNumber, position: Position) {
        let Some(key) = self.keys.get_mut(number) else {
            return;
        };
        let behind = key.queue.split_off(&Position(position.0 + 1));
        if !behind.is_empty() {
            key.more_after = Some(position);
            for position in &behind {
                self.entries.remove(position);
            }
        }
    }

    fn hold(&mut self, number: KeyNumber, dead: Position) {
        self.shed(number, dead);
        self.keys.set_waiting(&mut self.topics, number, true);
        self.keys.hold(number, dead);
    }

    // ---- sessions ----

    /// A stream to the consumer is open.
    pub fn on_session_opened(&mut self, now: Timestamp, session: RelaySession) {
        self.sessions.insert(session, Session::default());
        self.turns.push_back(session);
        // The inbox may be another process by now.
        self.told = None;
        self.plan_low_water(now);
    }

    /// A stream is gone: what was in flight there is pending again.
    pub fn on_session_closed(&mut self, session: RelaySession) {
        let Some(closed) = self.sessions.remove(&session) else {
            return;
        };
        self.turns.retain(|turn| *turn != session);
        self.timers.cancel(Timer::Session(session));
        self.told = None;
        for position in closed.in_flight.into_keys() {
            let entry = self
                .entries
                .get_mut(&position)
                .expect("what is in flight is in memory");
            entry.lost_count = entry.lost_count.saturating_add(1);
            let (number, byte_count) = (entry.key, entry.byte_count);
            let topic = self.keys.topic(number);
            self.topics.of_mut(topic).end_flight(byte_count);
            self.put_back(number, position);
            self.advance(number);
        }
    }

    /// A session that has not answered in time: to be closed, and told by [`on_session_closed`](Self::on_session_closed).
    pub fn poll_lost(&mut self) -> Option<RelaySession> {
        self.lost.pop_front()
    }

    /// The next message to send, if one is ready, a session has room, and the store keeps up.
    pub fn poll_send(&mut self, now: Timestamp) -> Option<Send> {
        if self.settlement.count() >= UNWRITTEN_COUNT_MAX {
            return None;
        }
        (0..self.topics.count()).find_map(|_| {
            let topic = self.topics.take_turn();
            self.send_of(now, topic)
        })
    }

    fn send_of(&mut self, now: Timestamp, topic: TopicNumber) -> Option<Send> {
        let topic = self.topics.of_mut(topic);
        while let Some(number) = topic.ready.front().copied() {
            let key = self.keys.get_mut(number);
            let Some(key) = key.filter(|key| key.phase == Phase::Ready) else {
                topic.ready.pop_front();
                continue;
            };
            let position = *key.queue.first().expect("a ready key has a message");
            let entry = &self.entries[&position];
            if !topic.has_share(entry.byte_count, self.sessions.len()) {
                return None;
            }
            let turn = self.turns.iter().position(|session| {
                let session = &self.sessions[session];
                session.in_flight.len() < SESSION_COUNT_MAX
                    && session.byte_count + entry.byte_count <= SESSION_BYTES_MAX
            })?;
            let id = self.turns.remove(turn).expect("found above");
            self.turns.push_back(id);
            topic.ready.pop_front();
            topic.begin_flight(entry.byte_count);
            self.fence.0 += 1;
            key.queue.remove(&position);
            key.phase = Phase::InFlight;
            let session = self.sessions.get_mut(&id).expect("has a turn");
            if session.in_flight.is_empty() {
                let at = now.plus_duration(self.options.answer_timeout);
                self.timers.set(Timer::Session(id), at);
            }
            session.in_flight.insert(position, self.fence);
            session.byte_count += entry.byte_count;
            return Some(Send {
                session: id,
                position,
                fence: self.fence,
                attempt: entry
                    .failed_count
                    .saturating_add(entry.lost_count)
                    .saturating_add(1),
                previous: key.previous,
            });
        }
        None
    }

    /// The consumer's answer to a sending.
    ///
    /// # Errors
    /// A late answer; nothing changed.
    pub fn on_answer(
        &mut self,
        now: Timestamp,
        session: RelaySession,
        position: Position,
        fence: Fence,
        answer: Answer,
    ) -> Result<(), Ignored> {
        let number = self.end_flight(now, session, position, fence)?;
        match answer {
            Answer::Applied | Answer::Duplicate | Answer::Settled => {
                let entry = self.entries.remove(&position).expect("was in flight");
                if entry.is_cancelled && answer == Answer::Settled {
                    self.settlement.cancelled.push(position);
                } else {
                    self.settlement.delivered.push(position);
                }
                self.keys.set_waiting(&mut self.topics, number, false);
                self.keys
                    .get_mut(number)
                    .expect("has a message in flight")
                    .previous = Some(position);
                self.advance(number);
            }
            Answer::Failed { text } => self.fail(now, position, text),
            Answer::Gap { missing } => {
                let text = format!(
                    "the consumer has not applied message {missing} of this key, which it acknowledged: its database lost data"
                );
                self.fail(now, position, text);
            }
            Answer::Stale => self.refuse(now, position, STALE.into()),
            Answer::Busy { text } => self.refuse(now, position, text),
        }
        Ok(())
    }

    /// What was to be sent is not the consumer's any more: somebody has dropped it for the consumer, by name.
    ///
    /// # Errors
    /// It is not in flight any more; nothing changed.
    pub fn on_dropped(
        &mut self,
        now: Timestamp,
        session: RelaySession,
        position: Position,
        fence: Fence,
    ) -> Result<(), Ignored> {
        let number = self.end_flight(now, session, position, fence)?;
        self.entries.remove(&position);
        self.keys.set_waiting(&mut self.topics, number, false);
        self.advance(number);
        Ok(())
    }

    /// This sending said that the message is cancelled: the store had it so when it was read.
    pub fn on_sent_cancelled(&mut self, position: Position) {
        if let Some(entry) = self.entries.get_mut(&position) {
            entry.is_cancelled = true;
        }
    }

    /// Takes a message off its session.
    fn end_flight(
        &mut self,
        now: Timestamp,
        session: RelaySession,
        position: Position,
        fence: Fence,
    ) -> Result<KeyNumber, Ignored> {
        let open = self.sessions.get_mut(&session).ok_or(Ignored::UnknownSession)?;
        if open.in_flight.get(&position) != Some(&fence) {
            return Err(Ignored::NotInFlight);
        }
        open.in_flight.remove(&position);
        let entry = &self.entries[&position];
        open.byte_count -= entry.byte_count;
        if open.in_flight.is_empty() {
            self.timers.cancel(Timer::Session(session));
        } else {
            let at = now.plus_duration(self.options.answer_timeout);
            self.timers.set(Timer::Session(session), at);
        }
        let number = entry.key;
        let topic = self.keys.topic(number);
        self.topics.of_mut(topic).end_flight(entry.byte_count);
        Ok(number)
    }

    /// The attempt was not made: it does not count, however often that happens. A new reason is written, for whoever asks why.
    fn refuse(&mut self, now: Timestamp, position: Position, reason: String) {
        let entry = self.entries.get_mut(&position).expect("was in flight");
        let (number, count) = (entry.key, entry.lost_count);
        entry.lost_count = count.saturating_add(1);
        if entry.refusal != fingerprint(&reason) {
            entry.refusal = fingerprint(&reason);
            self.settlement.failed.push(Failure {
                position,
                failed_count: entry.failed_count,
                reason,
            });
        }
        self.back_off(now, number, position, count);
    }

    fn fail(&mut self, now: Timestamp, position: Position, reason: String) {
        let entry = self.entries.get_mut(&position).expect("was in flight");
        entry.failed_count = entry.failed_count.saturating_add(1);
        entry.refusal = 0;
        let (number, failed_count) = (entry.key, entry.failed_count);
        let failure = Failure {
            position,
            failed_count,
            reason,
        };
        if failed_count < self.options.attempt_count_max || entry.is_cancelled {
            self.settlement.failed.push(failure);
            return self.back_off(now, number, position, failed_count - 1);
        }
        // The key goes on when the letter is on disk: else a crash would send it after the messages that it let pass.
        self.settlement.dead.push(failure);
        self.entries.remove(&position);
        self.shed(number, position);
        self.keys.set_waiting(&mut self.topics, number, true);
        self.keys.begin_dying(number, position);
    }

    fn back_off(&mut self, now: Timestamp, number: KeyNumber, position: Position, attempt: u32) {
        let delay = self
            .random
            .backoff(attempt, self.options.backoff_first, self.options.backoff_max);
        self.put_back(number, position);
        self.shed(number, position);
        self.keys.set_waiting(&mut self.topics, number, true);
        self.keys.get_mut(number).expect("has a message").phase = Phase::Backoff;
        self.backing_off_count += 1;
        self.timers.set(Timer::Key(number), now.plus_duration(delay));
    }

    fn put_back(&mut self, number: KeyNumber, position: Position) {
        let key = self.keys.get_mut(number).expect("has a message in flight");
        key.queue.insert(position);
    }

    // ---- what lasts ----

    /// What to write next. The answer is [`on_settled`](Self::on_settled) or [`on_settle_failed`](Self::on_settle_failed) with
    /// the same settlement; until then there is no other.
    pub fn poll_settlement(&mut self) -> Option<Settlement> {
        if self.is_settling || self.settlement.is_empty() {
            return None;
        }
        self.is_settling = true;
        if self.settlement.count() <= SETTLEMENT_COUNT_MAX {
            return Some(core::mem::take(&mut self.settlement));
        }
        let waiting = &mut self.settlement;
        let mut room = SETTLEMENT_COUNT_MAX;
        // Failures before dead letters: written after its letter, a message's failure would outlive it.
        Some(Settlement {
            failed: take_first(&mut waiting.failed, &mut room),
            dead: take_first(&mut waiting.dead, &mut room),
            delivered: take_first(&mut waiting.delivered, &mut room),
            cancelled: take_first(&mut waiting.cancelled, &mut room),
        })
    }

    /// It is on disk, and this is the low-water mark now. `is_polled`: it was the answer to
    /// [`poll_settlement`](Self::poll_settlement), and not a write that only moved the mark.
    pub fn on_settled(&mut self, now: Timestamp, is_polled: bool, settled: &Settlement, low_water: LowWater) {
        self.is_settling &= !is_polled;
        for failure in &settled.dead {
            let Some(number) = self.keys.end_dying(failure.position) else {
                continue;
            };
            match self.options.policy {
                DeadLetterPolicy::HoldKey => self.hold(number, failure.position),
                DeadLetterPolicy::Skip => {
                    self.keys.set_waiting(&mut self.topics, number, false);
                    self.advance(number);
                }
            }
        }
        self.on_low_water(now, low_water);
    }

    /// It may or may not be on disk: it is written again, which changes nothing where it is.
    pub fn on_settle_failed(&mut self, mut settlement: Settlement) {
        self.is_settling = false;
        // An operator who has seen it on disk may have decided meanwhile: written again, it would take that back.
        settlement
            .dead
            .retain(|failure| self.keys.is_dying(failure.position));
        settlement.delivered.append(&mut self.settlement.delivered);
        settlement.cancelled.append(&mut self.settlement.cancelled);
        settlement.failed.append(&mut self.settlement.failed);
        settlement.dead.append(&mut self.settlement.dead);
        self.settlement = settlement;
    }

    /// An operator's word on a dead letter stands against what was read or is to be written of it from before.
    fn note(&mut self, position: Position, operated: Operated) {
        if self.reading.is_some() {
            self.operated.insert(position, operated);
        }
        self.settlement
            .dead
            .retain(|failure| failure.position != position);
    }

    /// An operator has requeued this dead letter, durably.
    pub fn on_requeued(&mut self, now: Timestamp, row: &Row, low_water: LowWater) {
        self.on_low_water(now, low_water);
        self.note(row.position, Operated::Requeued);
        match self.entries.get_mut(&row.position) {
            // Its key has not come to it since it was read, and comes to it in its turn.
            Some(entry) => (entry.is_dead, entry.failed_count) = (false, 0),
            None => self.take_again(row),
        }
    }

    /// An operator has cancelled this message, durably: whatever is sent of it from now on says so. What is on its way may still take
    /// effect, and the answer says whether it did.
    pub fn on_cancelled(&mut self, now: Timestamp, row: &Row, low_water: LowWater) {
        self.on_low_water(now, low_water);
        self.note(row.position, Operated::Requeued);
        if !self.entries.contains_key(&row.position) {
            // It is to be read in its turn, or was to become a dead letter just now, and is not one.
            self.take_again(row);
        }
        let Some(entry) = self.entries.get_mut(&row.position) else {
            return;
        };
        entry.is_cancelled = true;
        // It was requeued before, of which nothing was heard yet.
        entry.is_dead = false;
        let number = entry.key;
        let key = self.keys.get_mut(number).expect("has a message");
        if key.phase == Phase::Backoff && key.queue.first() == Some(&row.position) {
            self.timers.cancel(Timer::Key(number));
            self.backing_off_count -= 1;
            self.advance(number);
        }
    }

    /// Takes a message into memory that has left it, ahead of what comes behind it of its key.
    fn take_again(&mut self, row: &Row) {
        let topic = self.topics.number(&row.topic);
        let found = self.keys.find(&row.key);
        let is_held = found
            .and_then(|number| self.keys.get_mut(number))
            .is_some_and(|key| key.waits_for(row.position));
        // Behind what is still to be read it is read in its turn.
        let left_after = self.topics.of(topic).left_after;
        let read_up_to = left_after.map_or(self.cursor, |after| after.min(self.cursor));
        if !is_held && row.position > read_up_to {
            self.has_more = true;
            return;
        }
        let number = self.keys.number(&row.key, topic);
        let key = self.keys.get_mut(number).expect("just numbered");
        if !is_held && key.more_after.is_some_and(|after| row.position > after) {
            return;
        }
        let is_idle = is_held || key.phase == Phase::Idle || key.phase == Phase::Unread;
        key.queue.insert(row.position);
        let row = Row {
            failed_count: 0,
            is_dead: false,
            ..row.clone()
        };
        self.entries.insert(row.position, Entry::new(number, &row));
        if is_idle {
            self.keys.release(number, row.position);
            self.advance(number);
        }
    }

    /// An operator has discarded this dead letter, durably.
    pub fn on_discarded(&mut self, now: Timestamp, row: &Row, low_water: LowWater) {
        self.on_low_water(now, low_water);
        self.note(row.position, Operated::Discarded);
        let Some(number) = self.keys.find(&row.key) else {
            return;
        };
        let key = self.keys.get_mut(number).expect("just found");
        if self.entries.get(&row.position).is_some_and(|entry| entry.is_dead) {
            // It waits behind what its key sends first, and would hold the key when that is settled.
            self.entries.remove(&row.position);
            key.queue.remove(&row.position);
        }
        if key.waits_for(row.position) {
            self.keys.release(number, row.position);
            self.keys.set_waiting(&mut self.topics, number, false);
            self.advance(number);
        }
    }

    fn on_low_water(&mut self, now: Timestamp, low_water: LowWater) {
        // Marks come from the store in the order of its commits, but through several tasks.
        // Below one mark messages are settled and no new ones come, so the shorter list is the later one.
        let ours = &self.low_water;
        if low_water.mark > ours.mark
            || low_water.mark == ours.mark && low_water.unsettled.len() <= ours.unsettled.len()
        {
            self.low_water = low_water;
        }
        self.plan_low_water(now);
    }

    fn plan_low_water(&mut self, now: Timestamp) {
        let known = self.told.as_ref().unwrap_or(&self.confirmed);
        if self.low_water.mark.0 == 0 || *known == self.low_water {
            return;
        }
        if self.low_water.mark.0 - known.mark.0.min(self.low_water.mark.0) >= LOW_WATER_COUNT {
            self.is_low_water_due = true;
        } else if !self.is_low_water_due && self.timers.of(&Timer::LowWater).is_none() {
            self.timers
                .set(Timer::LowWater, now.plus_duration(LOW_WATER_DELAY));
        }
    }

    /// What the inbox may forget, and on which session to tell it.
    pub fn poll_low_water(&mut self) -> Option<(RelaySession, LowWater)> {
        let session = *self.turns.front()?;
        if !self.is_low_water_due || self.told.as_ref() == Some(&self.low_water) {
            return None;
        }
        self.is_low_water_due = false;
        self.timers.cancel(Timer::LowWater);
        self.told = Some(self.low_water.clone());
        Some((session, self.low_water.clone()))
    }

    /// The inbox has this mark on disk.
    pub fn on_low_water_reached(&mut self, mark: Position) {
        if let Some(told) = self.told.as_ref().filter(|told| told.mark == mark) {
            self.confirmed = told.clone();
        }
    }

    /// Another database answers for the consumer from now on: what the earlier one acknowledged or confirmed says nothing of it.
    pub fn on_readmitted(&mut self, now: Timestamp) {
        self.keys.forget_previous();
        self.told = None;
        self.confirmed = LowWater::default();
        self.plan_low_water(now);
    }

    /// The low-water mark that the store has.
    #[must_use]
    pub fn low_water(&self) -> &LowWater {
        &self.low_water
    }

    // ---- time ----

    /// When to call [`on_timeout`](Self::on_timeout).
    #[must_use]
    pub fn next_timeout(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    /// Time has passed.
    pub fn on_timeout(&mut self, now: Timestamp) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Key(number) => {
                    self.backing_off_count -= 1;
                    self.advance(number);
                }
                Timer::Session(session) => self.lost.push_back(session),
                Timer::LowWater => self.is_low_water_due = true,
            }
        }
    }

    /// How many messages are in memory, and how many of them in flight: for metrics.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let in_flight = self
            .sessions
            .values()
            .map(|session| session.in_flight.len())
            .sum();
        (self.entries.len(), in_flight)
    }

    /// Topics of which no more keys are read for now, since [`WAITING_COUNT_MAX`] of theirs wait: for operators.
    #[must_use]
    pub fn full_topics(&self) -> Vec<Bytes> {
        let topics = self.topics.iter();
        topics
            .filter(|(_, topic)| topic.left_after.is_some() && !self.has_waiting_room(topic))
            .map(|(_, topic)| topic.name.clone())
            .collect()
    }

    /// Whether the key's messages wait for an operator.
    #[must_use]
    pub fn is_held(&self, key: &Bytes) -> bool {
        self.keys
            .find(key)
            .is_some_and(|number| self.keys.is_held(number))
    }
}

/// It passes by itself where a stream that was given up has overtaken another; it stays where fences begin anew.
const STALE: &str = "the consumer has seen a later sending of this key; if this stays, the outbox was put back from a backup, or a \
                     copy of it is running";

/// Tells two reasons apart, to write neither again and again (FNV-1a).
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The first of them, as many as there is room for.
fn take_first<T>(waiting: &mut Vec<T>, room: &mut usize) -> Vec<T> {
    let count = waiting.len().min(*room);
    *room -= count;
    waiting.drain(..count).collect()
}
