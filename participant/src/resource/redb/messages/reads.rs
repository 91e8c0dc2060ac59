//! What relay, inbox and operator read: each from one snapshot, which nobody keeps (traps H12).

use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Included, Unbounded};

use ::redb::{
    AccessGuard, Key, ReadOnlyTable, ReadableTable, ReadableTableMetadata, StorageError, TableDefinition,
    TableError, Value,
};
use bytes::Bytes;
use synod_participant_core::relay::{Row, Rows};
use synod_proto::ids::{MessageId, Position, ResourceId, UnixMillis};
use synod_proto::message::LowWater;

use super::super::super::ResourceError;
use super::super::format::ByteTable;
use super::super::snapshot::{Snapshot, damaged, failed};
use super::subscribe::is_dropped_with;
use super::{
    CONSUMER, COUNTER, ConsumerRow, DONE, DUE, FAILED, FailureRow, INBOX, INBOX_ORIGIN, InboxRow, KEYS,
    LETTER, LETTER_ID, LetterRow, MessageRow, OUTBOX, RECORD, decode_low_water, due_key, last_number,
    letter_id_key, named, of_consumer, origin_key, position_key,
};

/// The most rows that one read looks at: others get their turn between.
const LOOKED_COUNT_MAX: usize = 16 << 10;

/// A state of a message towards one consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoredState {
    Pending(Option<FailureRow>),
    Delivered,
    Dead(FailureRow),
    /// With why the consumer has not confirmed it.
    Cancelled(Option<FailureRow>),
}

type Guard = AccessGuard<'static, &'static [u8]>;

fn letter_row(row: Result<(Guard, Guard), StorageError>) -> Result<(Position, LetterRow), ResourceError> {
    let (key, row) = row.map_err(failed)?;
    let position = last_number("synod:outbox_letter", key.value()).map_err(damaged)?;
    Ok((
        Position(position),
        LetterRow::decode(row.value()).map_err(damaged)?,
    ))
}

/// The tables of outbox and inbox in a snapshot.
pub(crate) struct MessageRead<'a>(pub(crate) &'a Snapshot);

type Bytes2 = ReadOnlyTable<&'static [u8], &'static [u8]>;

impl MessageRead<'_> {
    fn open<K: Key + 'static, V: Value + 'static>(
        &self,
        table: TableDefinition<'static, K, V>,
    ) -> Result<Option<ReadOnlyTable<K, V>>, ResourceError> {
        match self.0.tx().open_table(table) {
            Ok(table) => Ok(Some(table)),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn get(&self, table: ByteTable, key: &[u8]) -> Result<Option<Bytes>, ResourceError> {
        let Some(table) = self.open(table)? else {
            return Ok(None);
        };
        let value = table.get(key).map_err(failed)?;
        Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
    }

    /// A counter; 0 before its first use.
    pub(crate) fn counter(&self, name: &str) -> Result<u64, ResourceError> {
        let Some(table) = self.open(COUNTER)? else {
            return Ok(0);
        };
        Ok(table.get(name).map_err(failed)?.map_or(0, |value| value.value()))
    }

    /// The position that the next visible message gets.
    pub(crate) fn next_position(&self) -> Result<Position, ResourceError> {
        Ok(Position(self.counter(super::COUNTER_POSITION)?.max(1)))
    }

    pub(crate) fn message(&self, position: Position) -> Result<Option<MessageRow>, ResourceError> {
        let row = self.get(OUTBOX, &position_key(position))?;
        row.map(|row| MessageRow::decode(&row).map_err(damaged))
            .transpose()
    }

    pub(crate) fn consumer(&self, name: &str) -> Result<Option<ConsumerRow>, ResourceError> {
        let row = self.get(CONSUMER, name.as_bytes())?;
        row.map(|row| ConsumerRow::decode(&row).map_err(damaged))
            .transpose()
    }

    pub(crate) fn consumers(&self) -> Result<Vec<(String, ConsumerRow)>, ResourceError> {
        let Some(table) = self.open(CONSUMER)? else {
            return Ok(Vec::new());
        };
        let rows = table.iter().map_err(failed)?;
        rows.map(|row| {
            let (name, row) = row.map_err(failed)?;
            let name = String::from_utf8_lossy(name.value()).into_owned();
            Ok((name, ConsumerRow::decode(row.value()).map_err(damaged)?))
        })
        .collect()
    }

    /// Dead letters behind `after`.
    pub(crate) fn dead_letters(
        &self,
        consumer: u32,
        after: Position,
        count_max: usize,
    ) -> Result<Vec<(Position, LetterRow)>, ResourceError> {
        let Some(table) = self.open(LETTER)? else {
            return Ok(Vec::new());
        };
        let (after, end) = (
            of_consumer(consumer, after),
            of_consumer(consumer, Position(u64::MAX)),
        );
        let rows = table
            .range::<&[u8]>((Excluded(&after[..]), Included(&end[..])))
            .map_err(failed)?;
        let is_asked = |row: &Result<(Position, LetterRow), ResourceError>| {
            row.as_ref().map_or(true, |(_, letter)| letter.is_dead())
        };
        rows.map(letter_row).filter(is_asked).take(count_max).collect()
    }

    /// To which consumers, by number, a message is a dead letter, and its position.
    pub(crate) fn dead_by_id(&self, id: MessageId) -> Result<Vec<(u32, Position)>, ResourceError> {
        let Some(table) = self.open(LETTER_ID)? else {
            return Ok(Vec::new());
        };
        let (start, end) = (letter_id_key(id, 0), letter_id_key(id, u32::MAX));
        let rows = table.range::<&[u8]>(&start[..]..=&end[..]).map_err(failed)?;
        rows.map(|row| {
            let (key, position) = row.map_err(failed)?;
            let position = last_number("synod:outbox_letter_id", position.value()).map_err(damaged)?;
            let consumer = key.value().last_chunk::<4>().copied().unwrap_or_default();
            Ok((u32::from_be_bytes(consumer), Position(position)))
        })
        .collect()
    }

    /// Scheduled messages behind one, in the order of their times.
    pub(crate) fn scheduled(
        &self,
        after: Option<(UnixMillis, MessageId)>,
        count_max: usize,
    ) -> Result<Vec<MessageRow>, ResourceError> {
        let Some(table) = self.open(DUE)? else {
            return Ok(Vec::new());
        };
        let after = after.map(|(at, id)| due_key(at, id));
        let start = after.as_ref().map_or(Unbounded, |key| Excluded(&key[..]));
        let rows = table.range::<&[u8]>((start, Unbounded)).map_err(failed)?;
        rows.take(count_max)
            .map(|row| MessageRow::decode(row.map_err(failed)?.1.value()).map_err(damaged))
            .collect()
    }

    /// Letters below the mark: at most so many as the list of unsettled messages holds.
    pub(crate) fn letters_below(
        &self,
        consumer: u32,
        mark: Position,
    ) -> Result<Vec<(Position, LetterRow)>, ResourceError> {
        let Some(table) = self.open(LETTER)? else {
            return Ok(Vec::new());
        };
        let (start, end) = (of_consumer(consumer, Position(0)), of_consumer(consumer, mark));
        let rows = table.range::<&[u8]>(&start[..]..&end[..]).map_err(failed)?;
        rows.map(letter_row).collect()
    }

    /// Which of these messages were cancelled for the consumer.
    pub(crate) fn cancelled(
        &self,
        consumer: u32,
        positions: impl Iterator<Item = Position>,
    ) -> Result<BTreeSet<Position>, ResourceError> {
        let mut found = BTreeSet::new();
        let Some(table) = self.open(LETTER)? else {
            return Ok(found);
        };
        // Most consumers have no letters at all.
        let (start, end) = (
            of_consumer(consumer, Position(0)),
            of_consumer(consumer, Position(u64::MAX)),
        );
        let mut letters = table.range::<&[u8]>(&start[..]..=&end[..]).map_err(failed)?;
        if letters.next().is_none() {
            return Ok(found);
        }
        for position in positions {
            let letter = self.letter(consumer, position)?;
            if letter.is_some_and(|letter| letter.is_cancelled()) {
                found.insert(position);
            }
        }
        Ok(found)
    }

    pub(crate) fn letter(
        &self,
        consumer: u32,
        position: Position,
    ) -> Result<Option<LetterRow>, ResourceError> {
        let row = self.get(LETTER, &of_consumer(consumer, position))?;
        row.map(|row| LetterRow::decode(&row).map_err(damaged))
            .transpose()
    }

    pub(crate) fn state(
        &self,
        consumer: &ConsumerRow,
        position: Position,
    ) -> Result<StoredState, ResourceError> {
        let key = of_consumer(consumer.number, position);
        let failure = || {
            let row = self.get(FAILED, &key)?;
            row.map(|row| FailureRow::decode(&row).map_err(damaged))
                .transpose()
        };
        match self.letter(consumer.number, position)? {
            Some(letter) if letter.is_dead() => return Ok(StoredState::Dead(letter.failure)),
            Some(letter) if letter.is_cancelled() => return Ok(StoredState::Cancelled(failure()?)),
            Some(_) => return Ok(StoredState::Pending(failure()?)),
            None => {}
        }
        if position < consumer.mark || self.get(DONE, &key)?.is_some() {
            return Ok(StoredState::Delivered);
        }
        Ok(StoredState::Pending(failure()?))
    }

    /// The row as the relay sees it; `None` where it is settled.
    pub(crate) fn relay_row(
        &self,
        consumer: &ConsumerRow,
        position: Position,
        message: &[u8],
    ) -> Result<Option<Row>, ResourceError> {
        if !consumer.takes(MessageRow::topic_of(message).map_err(damaged)?, position) {
            return Ok(None);
        }
        let (failed_count, is_dead) = match self.state(consumer, position)? {
            StoredState::Delivered => return Ok(None),
            StoredState::Pending(failure) => (failure.map_or(0, |failure| failure.failed_count), false),
            StoredState::Dead(failure) => (failure.failed_count, true),
            StoredState::Cancelled(_) => (0, false),
        };
        let row = MessageRow::relay_row(position, message).map_err(damaged)?;
        Ok(Some(Row {
            failed_count,
            is_dead,
            ..row
        }))
    }

    /// Unsettled messages behind `after`, of one topic or of all.
    pub(crate) fn all(
        &self,
        consumer: &ConsumerRow,
        topic: Option<&[u8]>,
        after: Position,
        count_max: usize,
    ) -> Result<Rows, ResourceError> {
        let mut found = Rows {
            rows: Vec::new(),
            up_to: after,
            is_end: true,
        };
        let Some(table) = self.open(OUTBOX)? else {
            return Ok(found);
        };
        let start = position_key(after);
        let rows = table
            .range::<&[u8]>((Excluded(&start[..]), Unbounded))
            .map_err(failed)?;
        for (looked, row) in rows.enumerate() {
            if looked == LOOKED_COUNT_MAX || found.rows.len() == count_max {
                found.is_end = false;
                break;
            }
            let (key, message) = row.map_err(failed)?;
            let position = Position(last_number("synod:outbox", key.value()).map_err(damaged)?);
            let of = MessageRow::topic_of(message.value()).map_err(damaged)?;
            if topic.is_none_or(|topic| topic == of.as_bytes()) {
                found
                    .rows
                    .extend(self.relay_row(consumer, position, message.value())?);
            }
            found.up_to = position;
        }
        Ok(found)
    }

    /// How many messages behind `after` the consumer has not got of what [`Unsubscribe`](super::Unsubscribe) would drop, and where
    /// the count goes on; `None` after the last one.
    pub(crate) fn unsettled_count(
        &self,
        consumer: &ConsumerRow,
        topic: Option<&str>,
        after: Position,
    ) -> Result<(u64, Option<Position>), ResourceError> {
        let mut dropped = consumer.clone();
        dropped.topics.retain(|range| is_dropped_with(range, topic));
        let found = self.all(&dropped, None, after, LOOKED_COUNT_MAX)?;
        Ok((found.rows.len() as u64, (!found.is_end).then_some(found.up_to)))
    }

    /// Unsettled messages of one key behind `after`.
    pub(crate) fn of_key(
        &self,
        consumer: &ConsumerRow,
        name: &[u8],
        after: Position,
        count_max: usize,
    ) -> Result<Rows, ResourceError> {
        let mut found = Rows {
            rows: Vec::new(),
            up_to: after,
            is_end: true,
        };
        let (Some(keys), Some(outbox)) = (self.open(KEYS)?, self.open(OUTBOX)?) else {
            return Ok(found);
        };
        let (start, end) = (named(name, after.0), named(name, u64::MAX));
        let rows = keys
            .range::<&[u8]>((Excluded(&start[..]), Included(&end[..])))
            .map_err(failed)?;
        for row in rows {
            if found.rows.len() == count_max {
                found.is_end = false;
                break;
            }
            let position =
                Position(last_number("synod:outbox_key", row.map_err(failed)?.0.value()).map_err(damaged)?);
            if let Some(message) = outbox.get(&position_key(position)[..]).map_err(failed)? {
                found
                    .rows
                    .extend(self.relay_row(consumer, position, message.value())?);
            }
            found.up_to = position;
        }
        Ok(found)
    }

    /// Messages behind `after`, whatever their state.
    pub(crate) fn page(
        &self,
        after: Position,
        count_max: usize,
    ) -> Result<Vec<(Position, MessageRow)>, ResourceError> {
        let Some(table) = self.open(OUTBOX)? else {
            return Ok(Vec::new());
        };
        let start = position_key(after);
        let rows = table
            .range::<&[u8]>((Excluded(&start[..]), Unbounded))
            .map_err(failed)?;
        rows.take(count_max)
            .map(|row| {
                let (key, message) = row.map_err(failed)?;
                let position = last_number("synod:outbox", key.value()).map_err(damaged)?;
                Ok((
                    Position(position),
                    MessageRow::decode(message.value()).map_err(damaged)?,
                ))
            })
            .collect()
    }

    /// When the next scheduled message is due.
    pub(crate) fn next_due(&self) -> Result<Option<UnixMillis>, ResourceError> {
        let Some(table) = self.open(DUE)? else {
            return Ok(None);
        };
        let Some((key, _)) = table.first().map_err(failed)? else {
            return Ok(None);
        };
        let at = key.value().first_chunk::<8>().copied().unwrap_or_default();
        Ok(Some(UnixMillis(u64::from_be_bytes(at))))
    }

    /// How many messages have a position, how many wait for their time, and how many inbox rows there are.
    pub(crate) fn counts(&self) -> Result<(u64, u64, u64), ResourceError> {
        let count = |table: Option<Bytes2>| table.map_or(Ok(0), |table| table.len().map_err(failed));
        Ok((
            count(self.open(OUTBOX)?)?,
            count(self.open(DUE)?)?,
            count(self.open(INBOX)?)?,
        ))
    }

    /// What operators did, the latest first: of the records with a number below `before`, or of all. Each with its number.
    pub(crate) fn records(
        &self,
        before: Option<u64>,
        count_max: usize,
    ) -> Result<Vec<(u64, String)>, ResourceError> {
        let Some(table) = self.open(RECORD)? else {
            return Ok(Vec::new());
        };
        let end = before.map(u64::to_be_bytes);
        let end = end.as_ref().map_or(Unbounded, |end| Excluded(&end[..]));
        let rows = table.range::<&[u8]>((Unbounded, end)).map_err(failed)?;
        let mut records = Vec::new();
        for row in rows.rev().take(count_max) {
            let (number, text) = row.map_err(failed)?;
            let number = number.value().first_chunk::<8>().copied().unwrap_or_default();
            records.push((
                u64::from_be_bytes(number),
                String::from_utf8_lossy(text.value()).into_owned(),
            ));
        }
        Ok(records)
    }

    pub(crate) fn inbox_row(
        &self,
        source: ResourceId,
        consumer: &str,
        position: Position,
    ) -> Result<Option<InboxRow>, ResourceError> {
        let row = self.get(INBOX, &named(&origin_key(source, consumer), position.0))?;
        row.map(|row| InboxRow::decode(&row).map_err(damaged)).transpose()
    }

    /// The highest position of an origin that has a row; 0 without any.
    pub(crate) fn inbox_highest(
        &self,
        source: ResourceId,
        consumer: &str,
    ) -> Result<Position, ResourceError> {
        let Some(table) = self.open(INBOX)? else {
            return Ok(Position(0));
        };
        let origin = origin_key(source, consumer);
        let (start, end) = (named(&origin, 0), named(&origin, u64::MAX));
        let mut rows = table.range::<&[u8]>(&start[..]..=&end[..]).map_err(failed)?;
        let Some(row) = rows.next_back() else {
            return Ok(Position(0));
        };
        let highest = last_number("synod:inbox", row.map_err(failed)?.0.value()).map_err(damaged)?;
        Ok(Position(highest))
    }

    pub(crate) fn inbox_low_water(
        &self,
        source: ResourceId,
        consumer: &str,
    ) -> Result<LowWater, ResourceError> {
        match self.get(INBOX_ORIGIN, &origin_key(source, consumer))? {
            None => Ok(LowWater::default()),
            Some(row) => decode_low_water(&row).map_err(damaged),
        }
    }
}
