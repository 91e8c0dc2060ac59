//! The rows of outbox and inbox, and the byte form of each. Integers are big-endian; a *name* is a topic and a key, each with
//! its length before it.
//!
//! | table | key | value |
//! |---|---|---|
//! | `synod:outbox` | position | [`MessageRow`] |
//! | `synod:outbox_key` | name, position | nothing: a key's messages in their order |
//! | `synod:outbox_due` | time, message id | [`MessageRow`] that waits for its time, and has no position yet |
//! | `synod:outbox_sequence` | name | the key's next sequence number; its lock orders the key's publishers |
//! | `synod:outbox_counter` | a name | `position`, the next to be given; `run`; `record`; `consumer` |
//! | `synod:outbox_consumer` | the consumer's name | [`ConsumerRow`], with its low-water mark |
//! | `synod:outbox_gone` | the name of one that was unsubscribed | the mark that it had |
//! | `synod:outbox_done` | consumer, position | nothing: delivered, at or above the mark |
//! | `synod:outbox_failed` | consumer, position | [`FailureRow`] |
//! | `synod:outbox_letter` | consumer, position | [`LetterRow`]: dead, requeued, cancelled, or waiting behind one of these below the mark |
//! | `synod:outbox_letter_id` | message id, consumer | the position of a dead letter |
//! | `synod:outbox_record` | number | what an operator did |
//! | `synod:inbox` | origin, position | [`InboxRow`]: the message took effect, or was cancelled and never does |
//! | `synod:inbox_origin` | origin | [`LowWater`] |
//!
//! A publisher does not know the position: it is given when the local transaction commits, by the writer, of which there is one.
//! So a branch that is in doubt for hours takes no place, and what it published comes behind everything that became visible
//! before it (traps H1, H2).

mod consumer_row;
mod letters;
mod reads;
mod subscribe;
mod writes;

use std::collections::BTreeMap;

use ::redb::TableDefinition;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use synod_participant_core::relay::Row;
use synod_proto::ids::{MessageId, Position, ResourceId, Sequence, UnixMillis};
use synod_proto::message::LowWater;

use super::format::{ByteTable, DamagedRow};

pub(crate) use consumer_row::{ConsumerRow, TopicRange};
pub(crate) use letters::{Operate, Operated, OperatorAction, RequeueAll};
pub(crate) use reads::{MessageRead, StoredState};
pub(crate) use subscribe::{OpenOutbox, Readmit, TOPIC_COUNT_MAX, Unsubscribe, is_dropped_with};
pub(super) use writes::publish_row;
pub(crate) use writes::{Cancel, MarkInbox, Release, Settle};

pub(crate) const OUTBOX: ByteTable = TableDefinition::new("synod:outbox");
pub(crate) const KEYS: ByteTable = TableDefinition::new("synod:outbox_key");
pub(crate) const DUE: ByteTable = TableDefinition::new("synod:outbox_due");
pub(crate) const SEQUENCE_TABLE: &str = "synod:outbox_sequence";
pub(crate) const SEQUENCE: ByteTable = TableDefinition::new(SEQUENCE_TABLE);
pub(crate) const COUNTER: TableDefinition<'static, &'static str, u64> =
    TableDefinition::new("synod:outbox_counter");
pub(crate) const CONSUMER: ByteTable = TableDefinition::new("synod:outbox_consumer");
pub(crate) const GONE: ByteTable = TableDefinition::new("synod:outbox_gone");
pub(crate) const DONE: ByteTable = TableDefinition::new("synod:outbox_done");
pub(crate) const FAILED: ByteTable = TableDefinition::new("synod:outbox_failed");
pub(crate) const LETTER: ByteTable = TableDefinition::new("synod:outbox_letter");
pub(crate) const LETTER_ID: ByteTable = TableDefinition::new("synod:outbox_letter_id");
pub(crate) const RECORD: ByteTable = TableDefinition::new("synod:outbox_record");
pub(crate) const INBOX_TABLE: &str = "synod:inbox";
pub(crate) const INBOX: ByteTable = TableDefinition::new(INBOX_TABLE);
pub(crate) const INBOX_ORIGIN: ByteTable = TableDefinition::new("synod:inbox_origin");

/// Not a table: an intent under this name is a message to be put into the outbox when its transaction commits. Its key is the
/// name and the sequence number.
pub(crate) const PUBLISH_TABLE: &str = "synod:outbox_new";

pub(crate) const COUNTER_POSITION: &str = "position";
pub(crate) const COUNTER_RUN: &str = "run";
pub(crate) const COUNTER_RECORD: &str = "record";
pub(crate) const COUNTER_CONSUMER: &str = "consumer";

const ROW_VERSION: u8 = 1;

/// A message as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MessageRow {
    pub(crate) topic: String,
    pub(crate) key: Bytes,
    pub(crate) id: MessageId,
    pub(crate) sequence: Sequence,
    pub(crate) published_at: UnixMillis,
    /// 0 for a message that has no time of its own.
    pub(crate) deliver_at: UnixMillis,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Bytes,
}

/// The last failed attempt of a message that is still tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FailureRow {
    pub(crate) failed_count: u32,
    pub(crate) at: UnixMillis,
    pub(crate) reason: String,
}

/// A message that the mark may pass although it is not settled: one that is dead, requeued or cancelled, and what waits behind such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LetterRow {
    pub(crate) state: LetterState,
    /// Why it died; of one that only waits or was cancelled it says nothing.
    pub(crate) failure: FailureRow,
}

/// What has become of such a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetterState {
    /// Waits for an operator.
    Dead,
    /// Is tried again, on an operator's word.
    Requeued,
    /// The mark has passed it while it waited behind an earlier one of these of its key.
    Waiting,
    /// Taken back by an operator: the consumer is told so, and has not confirmed it yet.
    Cancelled,
}

/// The proof that a message took effect, or that it never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InboxRow {
    pub(crate) id: MessageId,
    /// When it took effect; 0 for one that was cancelled.
    pub(crate) at: UnixMillis,
}

pub(crate) fn name(topic: &str, key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(topic.len() + key.len() + 4);
    put_short(&mut out, topic.as_bytes());
    put_short(&mut out, key);
    out.freeze()
}

/// The topic in a name.
pub(crate) fn topic_of_name(name: &Bytes) -> Bytes {
    let count = usize::from(name.clone().get_u16());
    name.slice(2..2 + count)
}

pub(crate) fn position_key(position: Position) -> [u8; 8] {
    position.0.to_be_bytes()
}

pub(crate) fn named(name: &[u8], number: u64) -> Vec<u8> {
    [name, &number.to_be_bytes()[..]].concat()
}

pub(crate) fn of_consumer(number: u32, position: Position) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&number.to_be_bytes());
    key[4..].copy_from_slice(&position.0.to_be_bytes());
    key
}

pub(crate) fn due_key(at: UnixMillis, id: MessageId) -> [u8; 24] {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&at.0.to_be_bytes());
    key[8..].copy_from_slice(&id.0);
    key
}

pub(crate) fn letter_id_key(id: MessageId, consumer: u32) -> [u8; 20] {
    let mut key = [0; 20];
    key[..16].copy_from_slice(&id.0);
    key[16..].copy_from_slice(&consumer.to_be_bytes());
    key
}

pub(crate) fn origin_key(source: ResourceId, consumer: &str) -> Vec<u8> {
    let mut out = BytesMut::with_capacity(consumer.len() + 18);
    out.put_slice(&source.0);
    put_short(&mut out, consumer.as_bytes());
    out.to_vec()
}

/// The number at the end of a key.
pub(super) fn last_number(table: &'static str, key: &[u8]) -> Result<u64, DamagedRow> {
    let bytes = key
        .last_chunk::<8>()
        .ok_or(DamagedRow::new(table, "its key is too short"))?;
    Ok(u64::from_be_bytes(*bytes))
}

fn put_short(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u16(u16::try_from(bytes.len()).expect("names, keys and headers are limited far below 64 KiB"));
    out.put_slice(bytes);
}

/// Reads rows of one table; whatever does not fit is damage.
struct Reader<'a> {
    table: &'static str,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(table: &'static str, bytes: &'a [u8]) -> Result<Self, DamagedRow> {
        let mut reader = Self { table, bytes };
        if reader.number::<1>()? == u64::from(ROW_VERSION) {
            Ok(reader)
        } else {
            Err(reader.damaged("its version is unknown"))
        }
    }

    fn damaged(&self, what: &'static str) -> DamagedRow {
        DamagedRow::new(self.table, what)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DamagedRow> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(count)
            .ok_or(DamagedRow::new(self.table, "it ends early"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DamagedRow> {
        Ok(self.take(N)?.try_into().expect("taken at this length"))
    }

    fn number<const N: usize>(&mut self) -> Result<u64, DamagedRow> {
        Ok(self.take(N)?.get_uint(N))
    }

    fn short(&mut self) -> Result<&'a [u8], DamagedRow> {
        let count = self.take(2)?.get_u16();
        self.take(count.into())
    }

    fn text(&mut self) -> Result<String, DamagedRow> {
        let bytes = self.short()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.damaged("a text is not UTF-8"))
    }

    fn end(&self) -> Result<(), DamagedRow> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(self.damaged("it goes on after its end"))
        }
    }
}

impl MessageRow {
    const TABLE: &'static str = "synod:outbox";

    pub(crate) fn name(&self) -> Bytes {
        name(&self.topic, &self.key)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.body.len() + 256);
        out.put_u8(ROW_VERSION);
        put_short(&mut out, self.topic.as_bytes());
        put_short(&mut out, &self.key);
        out.put_slice(&self.id.0);
        out.put_u64(self.sequence.0);
        out.put_u64(self.published_at.0);
        out.put_u64(self.deliver_at.0);
        out.put_u16(u16::try_from(self.headers.len()).expect("headers are limited"));
        for (name, value) in &self.headers {
            put_short(&mut out, name.as_bytes());
            put_short(&mut out, value.as_bytes());
        }
        out.put_slice(&self.body);
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DamagedRow> {
        let mut reader = Reader::new(Self::TABLE, bytes)?;
        let topic = reader.text()?;
        let key = Bytes::copy_from_slice(reader.short()?);
        let id = MessageId(reader.array()?);
        let sequence = Sequence(reader.number::<8>()?);
        let published_at = UnixMillis(reader.number::<8>()?);
        let deliver_at = UnixMillis(reader.number::<8>()?);
        let mut headers = BTreeMap::new();
        for _ in 0..reader.number::<2>()? {
            headers.insert(reader.text()?, reader.text()?);
        }
        Ok(Self {
            topic,
            key,
            id,
            sequence,
            published_at,
            deliver_at,
            headers,
            body: Bytes::copy_from_slice(reader.bytes),
        })
    }

    /// The topic alone.
    pub(crate) fn topic_of(bytes: &[u8]) -> Result<&str, DamagedRow> {
        let mut reader = Reader::new(Self::TABLE, bytes)?;
        std::str::from_utf8(reader.short()?).map_err(|_| reader.damaged("a text is not UTF-8"))
    }

    /// When it may go out, and whose message it is.
    pub(crate) fn due_of(bytes: &[u8]) -> Result<(UnixMillis, MessageId, Bytes), DamagedRow> {
        let mut reader = Reader::new(Self::TABLE, bytes)?;
        let (topic, key) = (reader.short()?, reader.short()?);
        let topic = std::str::from_utf8(topic).map_err(|_| reader.damaged("a text is not UTF-8"))?;
        let id = MessageId(reader.array()?);
        reader.take(16)?;
        Ok((UnixMillis(reader.number::<8>()?), id, name(topic, key)))
    }

    /// The stored message as the relay sees one at this place of which no attempt has failed.
    pub(crate) fn relay_row(position: Position, message: &[u8]) -> Result<Row, DamagedRow> {
        let key = Self::due_of(message)?.2;
        Ok(Row {
            position,
            topic: topic_of_name(&key),
            key,
            byte_count: message.len(),
            failed_count: 0,
            is_dead: false,
        })
    }
}

impl FailureRow {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.failed_count);
        out.put_u64(self.at.0);
        put_short(out, self.reason.as_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DamagedRow> {
        Ok(Self {
            failed_count: reader.take(4)?.get_u32(),
            at: UnixMillis(reader.number::<8>()?),
            reason: reader.text()?,
        })
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(ROW_VERSION);
        self.put(&mut out);
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DamagedRow> {
        let mut reader = Reader::new("synod:outbox_failed", bytes)?;
        let row = Self::read(&mut reader)?;
        reader.end()?;
        Ok(row)
    }
}

impl LetterRow {
    /// Of a message that waits behind a dead letter.
    pub(crate) const fn waiting() -> Self {
        Self::blank(LetterState::Waiting)
    }

    /// Of a message that an operator has taken back.
    pub(crate) const fn cancelled() -> Self {
        Self::blank(LetterState::Cancelled)
    }

    const fn blank(state: LetterState) -> Self {
        let failure = FailureRow {
            failed_count: 0,
            at: UnixMillis(0),
            reason: String::new(),
        };
        Self { state, failure }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state == LetterState::Dead
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.state == LetterState::Cancelled
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(ROW_VERSION);
        out.put_u8(match self.state {
            LetterState::Dead => 0,
            LetterState::Requeued => 1,
            LetterState::Waiting => 2,
            LetterState::Cancelled => 3,
        });
        self.failure.put(&mut out);
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DamagedRow> {
        let mut reader = Reader::new("synod:outbox_letter", bytes)?;
        let state = match reader.number::<1>()? {
            0 => LetterState::Dead,
            1 => LetterState::Requeued,
            2 => LetterState::Waiting,
            3 => LetterState::Cancelled,
            _ => return Err(reader.damaged("its state is unknown")),
        };
        let failure = FailureRow::read(&mut reader)?;
        reader.end()?;
        Ok(Self { state, failure })
    }
}

impl InboxRow {
    pub(crate) const fn is_cancelled(self) -> bool {
        self.at.0 == 0
    }

    pub(crate) fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(25);
        out.put_u8(ROW_VERSION);
        out.put_slice(&self.id.0);
        out.put_u64(self.at.0);
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DamagedRow> {
        let mut reader = Reader::new("synod:inbox", bytes)?;
        let row = Self {
            id: MessageId(reader.array()?),
            at: UnixMillis(reader.number::<8>()?),
        };
        reader.end()?;
        Ok(row)
    }
}

pub(crate) fn encode_low_water(low_water: &LowWater) -> Bytes {
    let mut out = BytesMut::with_capacity(16 + low_water.unsettled.len() * 8);
    out.put_u8(ROW_VERSION);
    out.put_u64(low_water.mark.0);
    for position in &low_water.unsettled {
        out.put_u64(position.0);
    }
    out.freeze()
}

pub(crate) fn decode_low_water(bytes: &[u8]) -> Result<LowWater, DamagedRow> {
    let mut reader = Reader::new("synod:inbox_origin", bytes)?;
    let mark = Position(reader.number::<8>()?);
    let mut unsettled = Vec::new();
    while !reader.bytes.is_empty() {
        unsettled.push(Position(reader.number::<8>()?));
    }
    Ok(LowWater { mark, unsettled })
}
