//! Letters, and what an operator does to single messages: each dead one with its entry by message id, and counted in its consumer's
//! row.

use ::redb::{ReadableTable, WriteTransaction};
use std::ops::Bound::{Excluded, Included};
use synod_participant_core::relay::Row;
use synod_proto::ids::{MessageId, Position, UnixMillis};
use synod_proto::message::LowWater;

use super::super::rows::WriteError;
use super::super::writer::Work;
use super::writes::{advance, consumer_row, consumers, delete_unless_needed, is_unsettled, record};
use super::{
    ConsumerRow, DONE, FAILED, LETTER, LETTER_ID, LetterRow, LetterState, MessageRow, OUTBOX, last_number,
    letter_id_key, of_consumer, position_key,
};

/// The most letters that one local transaction requeues: others get their turn between.
const REQUEUE_COUNT_MAX: usize = 512;

pub(super) fn letter(
    tx: &WriteTransaction,
    consumer: u32,
    position: Position,
) -> Result<Option<LetterRow>, WriteError> {
    let letters = tx.open_table(LETTER)?;
    let letter = letters.get(&of_consumer(consumer, position)[..])?;
    Ok(letter
        .map(|letter| LetterRow::decode(letter.value()))
        .transpose()?)
}

/// Writes or removes a letter while its message is there, with its entry by id and its consumer's count; the caller writes the
/// consumer's row. Answers whether there was one.
pub(super) fn set_letter(
    tx: &WriteTransaction,
    row: &mut ConsumerRow,
    position: Position,
    letter: Option<&LetterRow>,
) -> Result<bool, WriteError> {
    let key = of_consumer(row.number, position);
    let before = {
        let mut letters = tx.open_table(LETTER)?;
        let before = match letter {
            Some(letter) => letters.insert(&key[..], &letter.encode()[..])?,
            None => letters.remove(&key[..])?,
        };
        before
            .map(|before| LetterRow::decode(before.value()))
            .transpose()?
    };
    let was_dead = before.as_ref().is_some_and(LetterRow::is_dead);
    let is_dead = letter.is_some_and(LetterRow::is_dead);
    if was_dead != is_dead {
        let outbox = tx.open_table(OUTBOX)?;
        if let Some(message) = outbox.get(&position_key(position)[..])? {
            let id = letter_id_key(MessageRow::due_of(message.value())?.1, row.number);
            let mut ids = tx.open_table(LETTER_ID)?;
            if is_dead {
                ids.insert(&id[..], &position_key(position)[..])?;
            } else {
                ids.remove(&id[..])?;
            }
        }
        row.dead_count = if is_dead {
            row.dead_count + 1
        } else {
            row.dead_count.saturating_sub(1)
        };
    }
    Ok(before.is_some())
}

/// A letter is settled: if the mark has passed its message, that goes now.
pub(super) fn forget_letter(
    tx: &WriteTransaction,
    row: &mut ConsumerRow,
    position: Position,
) -> Result<(), WriteError> {
    if set_letter(tx, row, position, None)? && position < row.mark {
        delete_unless_needed(tx, &consumers(tx)?, position)?;
    }
    Ok(())
}

fn requeue(
    tx: &WriteTransaction,
    row: &mut ConsumerRow,
    position: Position,
    letter: LetterRow,
) -> Result<(), WriteError> {
    let letter = LetterRow {
        state: LetterState::Requeued,
        ..letter
    };
    set_letter(tx, row, position, Some(&letter))?;
    Ok(())
}

/// What an operator does to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperatorAction {
    /// A dead letter.
    Requeue,
    /// A dead letter.
    Discard,
    /// A message that is pending. It may have been sent, and nobody knows whether it took effect: that is the consumer's to say, so
    /// it stays until the consumer has confirmed.
    Cancel,
}

/// An operator's action on one message of one consumer, with its record (traps J7).
pub(crate) struct Operate {
    pub(crate) consumer: String,
    pub(crate) id: MessageId,
    pub(crate) position: Position,
    pub(crate) action: OperatorAction,
    pub(crate) author: String,
    pub(crate) reason: String,
}

/// What the relay must know of it.
#[derive(Debug)]
pub(crate) struct Operated {
    pub(crate) row: Row,
    pub(crate) low_water: LowWater,
}

impl Work for Operate {
    /// `None` where it is no message of this kind.
    type Output = Option<Operated>;

    fn apply(
        &mut self,
        tx: &WriteTransaction,
        now: UnixMillis,
    ) -> Result<(Option<Operated>, bool), WriteError> {
        let Some(mut consumer) = consumer_row(tx, &self.consumer)? else {
            return Ok((None, false));
        };
        let letter = letter(tx, consumer.number, self.position)?;
        let message = {
            let outbox = tx.open_table(OUTBOX)?;
            let message = outbox.get(&position_key(self.position)[..])?;
            message.map(|message| message.value().to_vec())
        };
        let Some(message) = message else {
            return Ok((None, false));
        };
        let (_, id, _) = MessageRow::due_of(&message)?;
        if id != self.id {
            return Ok((None, false));
        }
        let verb = match (self.action, letter) {
            (OperatorAction::Cancel, letter) => {
                let is_pending = letter.is_none_or(|letter| !letter.is_dead() && !letter.is_cancelled())
                    && consumer.takes(MessageRow::topic_of(&message)?, self.position)
                    && is_unsettled(tx, &consumer, self.position)?;
                if !is_pending {
                    return Ok((None, false));
                }
                set_letter(tx, &mut consumer, self.position, Some(&LetterRow::cancelled()))?;
                let key = of_consumer(consumer.number, self.position);
                tx.open_table(FAILED)?.remove(&key[..])?;
                "cancelled"
            }
            (OperatorAction::Requeue, Some(letter)) if letter.is_dead() => {
                requeue(tx, &mut consumer, self.position, letter)?;
                "requeued"
            }
            (OperatorAction::Discard, Some(letter)) if letter.is_dead() => {
                forget_letter(tx, &mut consumer, self.position)?;
                if self.position >= consumer.mark {
                    let key = of_consumer(consumer.number, self.position);
                    tx.open_table(DONE)?.insert(&key[..], &[][..])?;
                }
                "discarded"
            }
            (OperatorAction::Requeue | OperatorAction::Discard, _) => return Ok((None, false)),
        };
        let text = format!(
            "{} ms: {} {verb} message {id} (position {}) for consumer {}: {}",
            now.0, self.author, self.position, self.consumer, self.reason
        );
        record(tx, &text)?;
        let low_water = advance(tx, &self.consumer, consumer)?;
        let row = MessageRow::relay_row(self.position, &message)?;
        Ok((Some(Operated { row, low_water }), true))
    }
}

/// Requeues dead letters of one consumer behind `after`, in their order, as many as one local transaction takes; with one record.
pub(crate) struct RequeueAll {
    pub(crate) consumer: String,
    /// `None` for every topic.
    pub(crate) topic: Option<String>,
    pub(crate) after: Position,
    pub(crate) author: String,
    pub(crate) reason: String,
}

/// A part of it.
#[derive(Debug)]
pub(crate) struct RequeuedAll {
    pub(crate) rows: Vec<Row>,
    pub(crate) low_water: LowWater,
    /// Where the next part begins; `None` after the last one.
    pub(crate) next_after: Option<Position>,
}

impl Work for RequeueAll {
    /// `None` where there is no such consumer.
    type Output = Option<RequeuedAll>;

    fn apply(
        &mut self,
        tx: &WriteTransaction,
        now: UnixMillis,
    ) -> Result<(Option<RequeuedAll>, bool), WriteError> {
        let Some(mut consumer) = consumer_row(tx, &self.consumer)? else {
            return Ok((None, false));
        };
        let (found, next_after) = self.find(tx, consumer.number)?;
        let mut rows = Vec::with_capacity(found.len());
        for (row, letter) in found {
            requeue(tx, &mut consumer, row.position, letter)?;
            rows.push(row);
        }
        if let (Some(first), Some(last)) = (rows.first(), rows.last()) {
            let text = format!(
                "{} ms: {} requeued {} messages (positions {} to {}) for consumer {}: {}",
                now.0,
                self.author,
                rows.len(),
                first.position,
                last.position,
                self.consumer,
                self.reason
            );
            record(tx, &text)?;
        }
        let has_changed = !rows.is_empty();
        let low_water = if has_changed {
            advance(tx, &self.consumer, consumer)?
        } else {
            LowWater::default()
        };
        let done = RequeuedAll {
            rows,
            low_water,
            next_after,
        };
        Ok((Some(done), has_changed))
    }
}

/// Letters with what the relay must know of them, and where the next ones begin.
type Found = (Vec<(Row, LetterRow)>, Option<Position>);

impl RequeueAll {
    fn find(&self, tx: &WriteTransaction, consumer: u32) -> Result<Found, WriteError> {
        let (letters, outbox) = (tx.open_table(LETTER)?, tx.open_table(OUTBOX)?);
        let (start, end) = (
            of_consumer(consumer, self.after),
            of_consumer(consumer, Position(u64::MAX)),
        );
        let mut found = Vec::new();
        let mut after = self.after;
        for letter in letters.range::<&[u8]>((Excluded(&start[..]), Included(&end[..])))? {
            if found.len() == REQUEUE_COUNT_MAX {
                return Ok((found, Some(after)));
            }
            let (key, letter) = letter?;
            let position = Position(last_number("synod:outbox_letter", key.value())?);
            after = position;
            let letter = LetterRow::decode(letter.value())?;
            let Some(message) = outbox
                .get(&position_key(position)[..])?
                .filter(|_| letter.is_dead())
            else {
                continue;
            };
            let topic = MessageRow::topic_of(message.value())?;
            if self.topic.as_ref().is_none_or(|asked| asked == topic) {
                found.push((MessageRow::relay_row(position, message.value())?, letter));
            }
        }
        Ok((found, None))
    }
}
