//! Who takes which topics, as it changes: nothing that is a consumer's own is dropped by it, unless somebody says so by name.

use ::redb::{ReadableTable, WriteTransaction};
use std::collections::BTreeSet;
use std::ops::Bound::{Included, Unbounded};
use synod_participant_core::relay::Row;
use synod_proto::ids::{Position, UnixMillis};
use synod_proto::message::LowWater;

use super::super::rows::WriteError;
use super::super::writer::Work;
use super::letters::{letter, set_letter};
use super::writes::{
    SWEEP_COUNT_MAX, advance, consumer_row, consumers, delete_unless_needed, is_unsettled, next_counter,
    next_position, put_consumer, record,
};
use super::{
    CONSUMER, COUNTER_CONSUMER, COUNTER_RUN, ConsumerRow, DONE, FAILED, GONE, LETTER, MessageRow, OUTBOX,
    TopicRange, last_number, of_consumer, position_key,
};

/// The most parts of topics that one consumer's row holds.
pub(crate) const TOPIC_COUNT_MAX: usize = 1024;

/// Registers the consumers, and takes the next run of the outbox: fences are counted on from it.
pub(crate) struct OpenOutbox {
    /// Name, topics, and whether a new one gets what is still there.
    pub(crate) consumers: Vec<(String, Vec<String>, bool)>,
}

impl Work for OpenOutbox {
    /// The run; `Err` where a consumer's topics were changed too often: nothing is written.
    type Output = Result<u64, String>;

    fn apply(
        &mut self,
        tx: &WriteTransaction,
        _now: UnixMillis,
    ) -> Result<(Result<u64, String>, bool), WriteError> {
        let next = next_position(tx)?;
        let mut rows = Vec::new();
        for (name, topics, from_start) in &self.consumers {
            let mut row = match consumer_row(tx, name)? {
                Some(row) => row,
                None => new_row(tx, name, *from_start, next)?,
            };
            let from = if row.topics.is_empty() { row.mark } else { next };
            retire(&mut row, topics, next);
            name_topics(&mut row, topics, from);
            rows.push((name, row));
        }
        let named: BTreeSet<&String> = self.consumers.iter().flat_map(|(_, topics, _)| topics).collect();
        for (name, row) in &mut rows {
            drop_drained(tx, row, &named)?;
            if row.topics.len() > TOPIC_COUNT_MAX {
                let text = format!(
                    "the consumer `{name}` has {} topics, with those that were taken away from it, and at most {TOPIC_COUNT_MAX} are \
                     allowed: Outbox::unsubscribe_topic",
                    row.topics.len()
                );
                return Ok((Err(text), false));
            }
        }
        for (name, row) in &rows {
            put_consumer(tx, name, row)?;
            tx.open_table(GONE)?.remove(name.as_bytes())?;
        }
        Ok((Ok(next_counter(tx, COUNTER_RUN)?), true))
    }
}

/// A consumer that was not registered. One that was before, and unsubscribed, does not get again what its inbox was told to be
/// settled: it could not tell it from what is new.
fn new_row(
    tx: &WriteTransaction,
    name: &str,
    from_start: bool,
    next: Position,
) -> Result<ConsumerRow, WriteError> {
    let first = match tx.open_table(OUTBOX)?.first()? {
        Some((key, _)) if from_start => Position(last_number("synod:outbox", key.value())?),
        _ => next,
    };
    let gone = match tx.open_table(GONE)?.get(name.as_bytes())? {
        Some(mark) => Position(last_number("synod:outbox_gone", mark.value())?),
        None => Position(0),
    };
    Ok(ConsumerRow {
        number: u32::try_from(next_counter(tx, COUNTER_CONSUMER)?).unwrap_or(u32::MAX),
        mark: first.max(gone),
        confirmed: Position(0),
        acknowledged: Position(0),
        resource: None,
        dead_count: 0,
        topics: Vec::new(),
    })
}

/// What is visible of the topics that are named no longer stays the consumer's.
fn retire(row: &mut ConsumerRow, named: &[String], next: Position) {
    for range in &mut row.topics {
        if range.until.is_none() && !named.contains(&range.topic) {
            range.until = Some(next);
        }
    }
}

fn name_topics(row: &mut ConsumerRow, named: &[String], from: Position) {
    for topic in named
        .iter()
        .filter(|topic| !row.is_named(topic))
        .collect::<Vec<_>>()
    {
        let ended_here = |range: &&mut TopicRange| range.topic == *topic && range.until == Some(from);
        match row.topics.iter_mut().find(ended_here) {
            // As if it had not been taken away.
            Some(range) => range.until = None,
            None => row.topics.push(TopicRange {
                topic: topic.clone(),
                from,
                until: None,
            }),
        }
    }
}

/// Forgets the parts of topics of which nothing is left. The last part of a topic that nobody takes stays: what becomes visible
/// of it yet is its own (see `route`).
fn drop_drained(
    tx: &WriteTransaction,
    row: &mut ConsumerRow,
    named: &BTreeSet<&String>,
) -> Result<(), WriteError> {
    let letters = tx.open_table(LETTER)?;
    let (number, mark) = (row.number, row.mark);
    let mut kept = Vec::new();
    for range in std::mem::take(&mut row.topics) {
        let is_drained = match range.until.filter(|until| *until <= mark) {
            Some(until) if named.contains(&range.topic) => {
                let (from, until) = (of_consumer(number, range.from), of_consumer(number, until));
                from >= until || letters.range::<&[u8]>(&from[..]..&until[..])?.next().is_none()
            }
            _ => false,
        };
        if !is_drained {
            kept.push(range);
        }
    }
    row.topics = kept;
    Ok(())
}

/// Sees to it that a message which becomes visible is somebody's: where nobody takes its topic any more, since it waited for its
/// time or for its branch's outcome meanwhile, it goes to whom it was taken away from last.
pub(super) fn route(tx: &WriteTransaction, topic: &str, position: Position) -> Result<(), WriteError> {
    let rows = consumers(tx)?;
    if rows.iter().any(|(_, row)| row.takes(topic, position)) {
        return Ok(());
    }
    let ends = rows.iter().flat_map(|(_, row)| &row.topics);
    let Some(last) = ends
        .filter(|range| range.topic == topic)
        .filter_map(|range| range.until)
        .max()
    else {
        return Ok(());
    };
    for (name, mut row) in rows {
        let ended_last = |range: &&mut TopicRange| range.topic == topic && range.until == Some(last);
        if let Some(range) = row.topics.iter_mut().find(ended_last) {
            range.until = Some(Position(position.0 + 1));
            put_consumer(tx, &name, &row)?;
        }
    }
    Ok(())
}

/// Forgets what was known of a consumer's database: the next one that answers to the name is taken for it. With its record
/// (traps J7).
pub(crate) struct Readmit {
    pub(crate) consumer: String,
    pub(crate) author: String,
    pub(crate) reason: String,
}

impl Work for Readmit {
    type Output = bool;

    fn apply(&mut self, tx: &WriteTransaction, now: UnixMillis) -> Result<(bool, bool), WriteError> {
        let Some(row) = consumer_row(tx, &self.consumer)? else {
            return Ok((false, false));
        };
        let text = format!(
            "{} ms: {} readmitted consumer {}, which had acknowledged position {}: {}",
            now.0, self.author, self.consumer, row.acknowledged, self.reason
        );
        record(tx, &text)?;
        let row = ConsumerRow {
            confirmed: Position(0),
            acknowledged: Position(0),
            resource: None,
            ..row
        };
        put_consumer(tx, &self.consumer, &row)?;
        Ok((true, true))
    }
}

/// Drops what is a consumer's own, with its record: all of it, and the consumer off the list; or what is left of a topic that was taken away from
/// it. A part at a time, from below: what was dropped stays so, and the next call goes on.
pub(crate) struct Unsubscribe {
    pub(crate) consumer: String,
    pub(crate) topic: Option<String>,
    pub(crate) author: String,
    pub(crate) reason: String,
}

/// What one part of it has done.
#[derive(Debug)]
pub(crate) struct Unsubscribed {
    /// There is more to drop.
    pub(crate) has_more: bool,
    /// Messages that the consumer has not got and does not get any more.
    pub(crate) dropped_count: u64,
    /// Dead letters that are gone, for the relay that holds their keys.
    pub(crate) letters: Vec<Row>,
    pub(crate) low_water: LowWater,
}

/// Whether this part of a topic goes with all that is its consumer's, or with what is left of one topic.
pub(crate) fn is_dropped_with(range: &TopicRange, topic: Option<&str>) -> bool {
    topic.is_none_or(|topic| range.topic == topic && range.until.is_some())
}

impl Unsubscribe {
    fn concerns(&self, range: &TopicRange) -> bool {
        is_dropped_with(range, self.topic.as_deref())
    }

    /// Keeps that nobody knows what became of these: they were promised a word of the consumer, which is asked no more.
    fn record_cancelled(
        &self,
        tx: &WriteTransaction,
        now: UnixMillis,
        cancelled: &[Position],
    ) -> Result<(), WriteError> {
        let from = self.topic.iter().map(|topic| format!(" from topic {topic}"));
        let from: String = from.collect();
        for position in cancelled {
            let id = {
                let outbox = tx.open_table(OUTBOX)?;
                let Some(message) = outbox.get(&position_key(*position)[..])? else {
                    continue;
                };
                MessageRow::due_of(message.value())?.1
            };
            let text = format!(
                "{} ms: message {id} (position {position}) was cancelled for consumer {}, which was unsubscribed{from} before it said \
                 what became of it",
                now.0, self.consumer
            );
            record(tx, &text)?;
        }
        Ok(())
    }

    /// Keeps what was dropped, part by part (traps J7).
    fn record(
        &self,
        tx: &WriteTransaction,
        now: UnixMillis,
        dropped: &[Position],
        has_more: bool,
    ) -> Result<(), WriteError> {
        if has_more && dropped.is_empty() {
            return Ok(());
        }
        let what = match &self.topic {
            Some(topic) => format!("what was left of topic {topic} for consumer {}", self.consumer),
            None => format!("consumer {}", self.consumer),
        };
        let places = match (dropped.first(), dropped.last()) {
            (Some(first), Some(last)) => format!(" (positions {first} to {last})"),
            _ => String::new(),
        };
        let text = format!(
            "{} ms: {} dropped {what} with {} undelivered messages{places}: {}",
            now.0,
            self.author,
            dropped.len(),
            self.reason
        );
        record(tx, &text)
    }
}

impl Work for Unsubscribe {
    /// `None` where there was nothing to drop.
    type Output = Option<Unsubscribed>;

    fn apply(
        &mut self,
        tx: &WriteTransaction,
        now: UnixMillis,
    ) -> Result<(Option<Unsubscribed>, bool), WriteError> {
        let Some(mut row) = consumer_row(tx, &self.consumer)? else {
            return Ok((None, false));
        };
        let next = next_position(tx)?;
        let concerned = row.topics.iter().filter(|range| self.concerns(range));
        let start = concerned.map(|range| range.from).min();
        let Some(start) = start.or(self.topic.is_none().then_some(next)) else {
            return Ok((None, false));
        };
        let (found, end) = self.take(tx, &row, start, next)?;
        let mut dropped = Vec::new();
        let mut cancelled = Vec::new();
        for (position, _) in &found {
            if is_unsettled(tx, &row, *position)? {
                dropped.push(*position);
            }
            if letter(tx, row.number, *position)?.is_some_and(|letter| letter.is_cancelled()) {
                cancelled.push(*position);
            }
        }
        let letters = drop_states(tx, &mut row, &found)?;
        for range in &mut row.topics {
            if self.concerns(range) {
                range.from = range.from.max(end);
            }
        }
        let has_more = end < next;
        self.record_cancelled(tx, now, &cancelled)?;
        self.record(tx, now, &dropped, has_more)?;
        if !has_more {
            row.topics.retain(|range| !self.concerns(range));
        }
        let low_water = if !has_more && self.topic.is_none() {
            tx.open_table(CONSUMER)?.remove(self.consumer.as_bytes())?;
            tx.open_table(GONE)?
                .insert(self.consumer.as_bytes(), &position_key(row.mark)[..])?;
            LowWater::default()
        } else {
            put_consumer(tx, &self.consumer, &row)?;
            match self.topic {
                Some(_) => advance(tx, &self.consumer, row)?,
                None => LowWater::default(),
            }
        };
        let consumers = consumers(tx)?;
        for (position, _) in found {
            delete_unless_needed(tx, &consumers, position)?;
        }
        let done = Unsubscribed {
            has_more,
            dropped_count: dropped.len() as u64,
            letters,
            low_water,
        };
        Ok((Some(done), true))
    }
}

impl Unsubscribe {
    /// The next stored messages that are to be dropped for the consumer, and up to which position that is all.
    fn take(
        &self,
        tx: &WriteTransaction,
        row: &ConsumerRow,
        start: Position,
        next: Position,
    ) -> Result<(Vec<(Position, Row)>, Position), WriteError> {
        let outbox = tx.open_table(OUTBOX)?;
        let mut found = Vec::new();
        let start = position_key(start);
        for (looked, message) in outbox
            .range::<&[u8]>((Included(&start[..]), Unbounded))?
            .enumerate()
        {
            let (key, message) = message?;
            let position = Position(last_number("synod:outbox", key.value())?);
            if looked == SWEEP_COUNT_MAX {
                return Ok((found, position));
            }
            let topic = MessageRow::topic_of(message.value())?;
            let is_concerned =
                |range: &TopicRange| self.concerns(range) && range.topic == topic && range.contains(position);
            if row.topics.iter().any(is_concerned) {
                found.push((position, MessageRow::relay_row(position, message.value())?));
            }
        }
        Ok((found, next))
    }
}

/// Deletes what is recorded about these messages, and answers which of them were dead.
fn drop_states(
    tx: &WriteTransaction,
    consumer: &mut ConsumerRow,
    messages: &[(Position, Row)],
) -> Result<Vec<Row>, WriteError> {
    let mut dead = Vec::new();
    for (position, row) in messages {
        let key = of_consumer(consumer.number, *position);
        for table in [DONE, FAILED] {
            tx.open_table(table)?.remove(&key[..])?;
        }
        let before = consumer.dead_count;
        set_letter(tx, consumer, *position, None)?;
        if consumer.dead_count < before {
            dead.push(row.clone());
        }
    }
    Ok(dead)
}
