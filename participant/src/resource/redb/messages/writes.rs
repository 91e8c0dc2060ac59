//! What is written to the rows of outbox and inbox, each within one local transaction of the writer.

use ::redb::{ReadableTable, Table, WriteTransaction};
use std::ops::Bound::{Excluded, Included, Unbounded};
use synod_participant_core::relay::{Failure, Settlement};
use synod_proto::ids::{MessageId, Position, ResourceId, UnixMillis};
use synod_proto::limits::UNSETTLED_COUNT_MAX;
use synod_proto::message::LowWater;

use super::super::rows::WriteError;
use super::super::writer::Work;
use super::letters::{forget_letter, letter, set_letter};
use super::subscribe::route;
use super::{
    CONSUMER, COUNTER, COUNTER_POSITION, COUNTER_RECORD, ConsumerRow, DONE, DUE, FAILED, FailureRow, INBOX,
    INBOX_ORIGIN, KEYS, LETTER, LetterRow, LetterState, MessageRow, OUTBOX, RECORD, SEQUENCE,
    decode_low_water, due_key, encode_low_water, last_number, named, of_consumer, origin_key, position_key,
};

/// The most rows that one local transaction sweeps, passes or releases: the next one goes on, and others get their turn.
pub(super) const SWEEP_COUNT_MAX: usize = 4096;

/// The most of an operator's actions that are kept.
const RECORD_COUNT_MAX: u64 = 10_000;

pub(super) type ByteRows<'tx> = Table<'tx, &'static [u8], &'static [u8]>;

/// Puts a message that has just become visible into the outbox: at the next position, or among those that wait for their time.
/// Either way a position is used up, so that positions stay above all sequence numbers.
pub(in super::super) fn publish_row(
    tx: &WriteTransaction,
    message: &[u8],
    now: UnixMillis,
) -> Result<(), WriteError> {
    let position = next_counter(tx, COUNTER_POSITION)?;
    let (deliver_at, id, _) = MessageRow::due_of(message)?;
    if deliver_at > now {
        tx.open_table(DUE)?
            .insert(&due_key(deliver_at, id)[..], message)?;
        return Ok(());
    }
    insert_at(tx, Position(position), message)
}

fn insert_at(tx: &WriteTransaction, position: Position, message: &[u8]) -> Result<(), WriteError> {
    let (_, _, name) = MessageRow::due_of(message)?;
    route(tx, MessageRow::topic_of(message)?, position)?;
    tx.open_table(OUTBOX)?
        .insert(&position_key(position)[..], message)?;
    tx.open_table(KEYS)?
        .insert(&named(&name, position.0)[..], &[][..])?;
    Ok(())
}

/// The position that the next visible message gets.
pub(super) fn next_position(tx: &WriteTransaction) -> Result<Position, WriteError> {
    let counters = tx.open_table(COUNTER)?;
    let next = counters.get(COUNTER_POSITION)?;
    Ok(Position(next.map_or(1, |value| value.value())))
}

/// The counter's value, from 1, which is then used up.
pub(super) fn next_counter(tx: &WriteTransaction, name: &'static str) -> Result<u64, WriteError> {
    let mut counters = tx.open_table(COUNTER)?;
    let value = counters.get(name)?.map_or(0, |value| value.value()).max(1);
    counters.insert(name, value + 1)?;
    Ok(value)
}

pub(super) fn consumer_row(tx: &WriteTransaction, name: &str) -> Result<Option<ConsumerRow>, WriteError> {
    let table = tx.open_table(CONSUMER)?;
    let row = table.get(name.as_bytes())?;
    Ok(row.map(|row| ConsumerRow::decode(row.value())).transpose()?)
}

pub(super) fn put_consumer(tx: &WriteTransaction, name: &str, row: &ConsumerRow) -> Result<(), WriteError> {
    tx.open_table(CONSUMER)?
        .insert(name.as_bytes(), &row.encode()[..])?;
    Ok(())
}

pub(super) fn consumers(tx: &WriteTransaction) -> Result<Vec<(String, ConsumerRow)>, WriteError> {
    let table = tx.open_table(CONSUMER)?;
    let mut found = Vec::new();
    for row in table.iter()? {
        let (name, row) = row?;
        let name = String::from_utf8_lossy(name.value()).into_owned();
        found.push((name, ConsumerRow::decode(row.value())?));
    }
    Ok(found)
}

fn range_start(consumer: u32) -> [u8; 12] {
    of_consumer(consumer, Position(0))
}

fn unsettled(tx: &WriteTransaction, row: &ConsumerRow) -> Result<Vec<Position>, WriteError> {
    let letters = tx.open_table(LETTER)?;
    let (start, end) = (range_start(row.number), of_consumer(row.number, row.mark));
    let mut found = Vec::new();
    for letter in letters.range::<&[u8]>(&start[..]..&end[..])? {
        found.push(Position(last_number("synod:outbox_letter", letter?.0.value())?));
    }
    Ok(found)
}

/// Whether the message before this one of its key may still be sent to the consumer: then this one waits for it.
fn waits_behind_a_letter(
    keys: &ByteRows<'_>,
    letters: &ByteRows<'_>,
    consumer: u32,
    name: &[u8],
    position: Position,
) -> Result<bool, WriteError> {
    let (start, end) = (named(name, 0), named(name, position.0));
    let Some(before) = keys.range::<&[u8]>(&start[..]..&end[..])?.next_back() else {
        return Ok(false);
    };
    let before = Position(last_number("synod:outbox_key", before?.0.value())?);
    Ok(letters.get(&of_consumer(consumer, before)[..])?.is_some())
}

/// Moves the consumer's mark over what is settled, and deletes what no consumer that takes it needs any more: message, index and states in
/// one local transaction (traps H11, H16). The mark passes dead letters and what they hold up, of which it keeps a list (T13):
/// so a dead letter holds back its own key, and no other's rows.
pub(super) fn advance(
    tx: &WriteTransaction,
    name: &str,
    mut row: ConsumerRow,
) -> Result<LowWater, WriteError> {
    let mut passed = unsettled(tx, &row)?;
    let mut settled = Vec::new();
    let mut mark = next_position(tx)?;
    {
        let outbox = tx.open_table(OUTBOX)?;
        let keys: ByteRows<'_> = tx.open_table(KEYS)?;
        let mut letters: ByteRows<'_> = tx.open_table(LETTER)?;
        let mut done = tx.open_table(DONE)?;
        let start = position_key(row.mark);
        for (looked, message) in outbox
            .range::<&[u8]>((Included(&start[..]), Unbounded))?
            .enumerate()
        {
            let (key, message) = message?;
            let position = Position(last_number("synod:outbox", key.value())?);
            if looked == SWEEP_COUNT_MAX {
                mark = position;
                break;
            }
            if !row.takes(MessageRow::topic_of(message.value())?, position) {
                continue;
            }
            let key = of_consumer(row.number, position);
            let is_letter = letters.get(&key[..])?.is_some();
            if !is_letter && done.remove(&key[..])?.is_some() {
                settled.push(position);
                continue;
            }
            let name = MessageRow::due_of(message.value())?.2;
            let may_pass = passed.len() < UNSETTLED_COUNT_MAX
                && (is_letter || waits_behind_a_letter(&keys, &letters, row.number, &name, position)?);
            if !may_pass {
                mark = position;
                break;
            }
            if !is_letter {
                letters.insert(&key[..], &LetterRow::waiting().encode()[..])?;
            }
            passed.push(position);
        }
        row.mark = row.mark.max(mark);
        // Of messages that were dropped while their answer was on its way.
        let (start, end) = (range_start(row.number), of_consumer(row.number, row.mark));
        let mut left = Vec::new();
        for key in done.range::<&[u8]>(&start[..]..&end[..])?.take(SWEEP_COUNT_MAX) {
            left.push(key?.0.value().to_vec());
        }
        for key in &left {
            done.remove(&key[..])?;
        }
    }
    put_consumer(tx, name, &row)?;
    let consumers = consumers(tx)?;
    for position in settled {
        delete_unless_needed(tx, &consumers, position)?;
    }
    Ok(LowWater {
        mark: row.mark,
        unsettled: passed,
    })
}

/// Deletes a message with its index row, unless a consumer that takes it is not done with it: has not passed it, or has it on its
/// list.
pub(super) fn delete_unless_needed(
    tx: &WriteTransaction,
    consumers: &[(String, ConsumerRow)],
    position: Position,
) -> Result<(), WriteError> {
    let name = {
        let mut outbox = tx.open_table(OUTBOX)?;
        let letters = tx.open_table(LETTER)?;
        let name = {
            let Some(message) = outbox.get(&position_key(position)[..])? else {
                return Ok(());
            };
            let topic = MessageRow::topic_of(message.value())?;
            for (_, row) in consumers {
                let is_ahead = position >= row.mark && row.takes(topic, position);
                if is_ahead || letters.get(&of_consumer(row.number, position)[..])?.is_some() {
                    return Ok(());
                }
            }
            MessageRow::due_of(message.value())?.2
        };
        outbox.remove(&position_key(position)[..])?;
        name
    };
    tx.open_table(KEYS)?.remove(&named(&name, position.0)[..])?;
    forget_sequence(tx, &name)
}

/// A key without messages may begin anew: behind the positions given so far, which are above the sequence numbers given so far.
fn forget_sequence(tx: &WriteTransaction, name: &[u8]) -> Result<(), WriteError> {
    let keys = tx.open_table(KEYS)?;
    let (start, end) = (named(name, 0), named(name, u64::MAX));
    if keys.range::<&[u8]>(&start[..]..=&end[..])?.next().is_none() {
        tx.open_table(SEQUENCE)?.remove(name)?;
    }
    Ok(())
}

/// Gives a position to scheduled messages whose time has come, by the database's clock (traps H14).
pub(crate) struct Release;

impl Work for Release {
    /// How many.
    type Output = usize;

    fn apply(&mut self, tx: &WriteTransaction, now: UnixMillis) -> Result<(usize, bool), WriteError> {
        let mut due = Vec::new();
        {
            let mut table = tx.open_table(DUE)?;
            let end = UnixMillis(now.0.saturating_add(1)).0.to_be_bytes();
            for row in table.range::<&[u8]>(..&end[..])?.take(SWEEP_COUNT_MAX) {
                let (key, message) = row?;
                due.push((key.value().to_vec(), message.value().to_vec()));
            }
            for (key, _) in &due {
                table.remove(&key[..])?;
            }
        }
        for (_, message) in &due {
            let position = next_counter(tx, COUNTER_POSITION)?;
            insert_at(tx, Position(position), message)?;
        }
        Ok((due.len(), !due.is_empty()))
    }
}

/// Writes what came of attempts, for one consumer. Written twice, it is written once.
pub(crate) struct Settle {
    pub(crate) consumer: String,
    pub(crate) settlement: Settlement,
    /// What the inbox has confirmed, and which database it is in.
    pub(crate) confirmed: Option<Position>,
    pub(crate) resource: Option<ResourceId>,
}

impl Settle {
    fn failure(failure: &Failure, now: UnixMillis) -> FailureRow {
        let mut reason = failure.reason.clone();
        let end = (0..=reason.len().min(synod_proto::limits::TEXT_BYTES_MAX))
            .rev()
            .find(|end| reason.is_char_boundary(*end));
        reason.truncate(end.unwrap_or(0));
        FailureRow {
            failed_count: failure.failed_count,
            at: now,
            reason,
        }
    }
}

impl Settle {
    /// Keeps what became of a cancellation: the consumer alone knew.
    fn record_cancelled(
        &self,
        tx: &WriteTransaction,
        position: Position,
        now: UnixMillis,
    ) -> Result<(), WriteError> {
        let id = {
            let outbox = tx.open_table(OUTBOX)?;
            let Some(message) = outbox.get(&position_key(position)[..])? else {
                return Ok(());
            };
            MessageRow::due_of(message.value())?.1
        };
        let what = if self.settlement.cancelled.contains(&position) {
            "never takes effect"
        } else {
            "took effect before the consumer knew of the cancellation"
        };
        let text = format!(
            "{} ms: consumer {} says that message {id} (position {position}) {what}",
            now.0, self.consumer
        );
        record(tx, &text)
    }
}

impl Work for Settle {
    type Output = Option<LowWater>;

    fn apply(
        &mut self,
        tx: &WriteTransaction,
        now: UnixMillis,
    ) -> Result<(Option<LowWater>, bool), WriteError> {
        let Some(mut row) = consumer_row(tx, &self.consumer)? else {
            return Ok((None, false));
        };
        row.confirmed = row.confirmed.max(self.confirmed.unwrap_or_default());
        row.resource = row.resource.or(self.resource);
        let Settlement {
            delivered, cancelled, ..
        } = &self.settlement;
        let acknowledged = delivered.iter().chain(cancelled).copied().max();
        row.acknowledged = row.acknowledged.max(acknowledged.unwrap_or_default());
        for position in self.settlement.delivered.iter().chain(&self.settlement.cancelled) {
            if !is_unsettled(tx, &row, *position)? {
                continue;
            }
            if letter(tx, row.number, *position)?.is_some_and(|letter| letter.is_cancelled()) {
                self.record_cancelled(tx, *position, now)?;
            }
            let key = of_consumer(row.number, *position);
            forget_letter(tx, &mut row, *position)?;
            tx.open_table(FAILED)?.remove(&key[..])?;
            if *position >= row.mark {
                tx.open_table(DONE)?.insert(&key[..], &[][..])?;
            }
        }
        for failure in &self.settlement.failed {
            if may_fail(tx, &row, failure.position)? {
                let key = of_consumer(row.number, failure.position);
                let failure = Self::failure(failure, now).encode();
                tx.open_table(FAILED)?.insert(&key[..], &failure[..])?;
            }
        }
        for failure in &self.settlement.dead {
            if may_fail(tx, &row, failure.position)? {
                let key = of_consumer(row.number, failure.position);
                // Cancelled while its last attempt was on its way: it is the consumer's to confirm that, and no dead letter.
                if letter(tx, row.number, failure.position)?.is_some_and(|letter| letter.is_cancelled()) {
                    continue;
                }
                let letter = LetterRow {
                    state: LetterState::Dead,
                    failure: Self::failure(failure, now),
                };
                set_letter(tx, &mut row, failure.position, Some(&letter))?;
                tx.open_table(FAILED)?.remove(&key[..])?;
            }
        }
        Ok((Some(advance(tx, &self.consumer, row)?), true))
    }
}

pub(super) fn is_unsettled(
    tx: &WriteTransaction,
    row: &ConsumerRow,
    position: Position,
) -> Result<bool, WriteError> {
    let key = of_consumer(row.number, position);
    if tx.open_table(LETTER)?.get(&key[..])?.is_some() {
        return Ok(true);
    }
    Ok(position >= row.mark && tx.open_table(DONE)?.get(&key[..])?.is_none())
}

/// Whether there is something to be said of a failure: the message may have been dropped for the consumer, by name.
fn may_fail(tx: &WriteTransaction, row: &ConsumerRow, position: Position) -> Result<bool, WriteError> {
    let is_own = {
        let outbox = tx.open_table(OUTBOX)?;
        match outbox.get(&position_key(position)[..])? {
            Some(message) => row.takes(MessageRow::topic_of(message.value())?, position),
            None => false,
        }
    };
    Ok(is_own && is_unsettled(tx, row, position)?)
}

/// Takes a scheduled message back before its time, with its record (traps J7).
pub(crate) struct Cancel {
    pub(crate) id: MessageId,
    pub(crate) deliver_at: UnixMillis,
    pub(crate) author: String,
    pub(crate) reason: String,
}

impl Work for Cancel {
    /// Whether it was there.
    type Output = bool;

    fn apply(&mut self, tx: &WriteTransaction, now: UnixMillis) -> Result<(bool, bool), WriteError> {
        let name = {
            let mut due = tx.open_table(DUE)?;
            let Some(message) = due.remove(&due_key(self.deliver_at, self.id)[..])? else {
                return Ok((false, false));
            };
            MessageRow::due_of(message.value())?.2
        };
        forget_sequence(tx, &name)?;
        let text = format!(
            "{} ms: {} cancelled message {}, which was scheduled for {} ms: {}",
            now.0, self.author, self.id, self.deliver_at.0, self.reason
        );
        record(tx, &text)?;
        Ok((true, true))
    }
}

/// Keeps what an operator did.
pub(super) fn record(tx: &WriteTransaction, text: &str) -> Result<(), WriteError> {
    let number = next_counter(tx, COUNTER_RECORD)?;
    let mut records = tx.open_table(RECORD)?;
    records.insert(&number.to_be_bytes()[..], text.as_bytes())?;
    if number > RECORD_COUNT_MAX {
        records.remove(&(number - RECORD_COUNT_MAX).to_be_bytes()[..])?;
    }
    Ok(())
}

/// Raises the low-water mark of an origin in the consumer's database, and deletes the inbox rows below it that are settled
/// (traps H8): in one local transaction, so that no delivery finds neither row nor mark.
#[derive(Clone)]
pub(crate) struct MarkInbox {
    pub(crate) source: ResourceId,
    pub(crate) consumer: String,
    pub(crate) low_water: LowWater,
}

impl Work for MarkInbox {
    /// Whether there is more to delete.
    type Output = bool;

    fn apply(&mut self, tx: &WriteTransaction, _now: UnixMillis) -> Result<(bool, bool), WriteError> {
        let origin = origin_key(self.source, &self.consumer);
        let known = {
            let origins = tx.open_table(INBOX_ORIGIN)?;
            match origins.get(&origin[..])? {
                None => LowWater::default(),
                Some(row) => decode_low_water(row.value())?,
            }
        };
        // A late one must not take back what a later one has said.
        if self.low_water.mark < known.mark {
            return Ok((false, false));
        }
        // What was settled once stays so, however late an older list comes.
        self.low_water
            .unsettled
            .retain(|position| !known.is_settled(*position));
        let low_water = encode_low_water(&self.low_water);
        tx.open_table(INBOX_ORIGIN)?.insert(&origin[..], &low_water[..])?;
        let mut rows = tx.open_table(INBOX)?;
        let (start, end) = (named(&origin, 0), named(&origin, self.low_water.mark.0));
        let mut settled = Vec::new();
        for row in rows.range::<&[u8]>((Excluded(&start[..]), Excluded(&end[..])))? {
            if settled.len() == SWEEP_COUNT_MAX {
                break;
            }
            let key = row?.0.value().to_vec();
            if self
                .low_water
                .is_settled(Position(last_number("synod:inbox", &key)?))
            {
                settled.push(key);
            }
        }
        for key in &settled {
            rows.remove(&key[..])?;
        }
        Ok((settled.len() == SWEEP_COUNT_MAX, true))
    }
}
