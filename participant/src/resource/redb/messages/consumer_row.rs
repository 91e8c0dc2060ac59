//! What the outbox knows of a consumer: how far it is, and which messages are its own.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use synod_proto::ids::{Position, ResourceId};

use super::super::format::DamagedRow;
use super::{ROW_VERSION, Reader, put_short};

/// A consumer, as the outbox knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConsumerRow {
    /// Stands for its name in other keys.
    pub(crate) number: u32,
    /// Everything below is settled, but for what has a [`LetterRow`](super::LetterRow).
    pub(crate) mark: Position,
    /// What the consumer's inbox has confirmed to know.
    pub(crate) confirmed: Position,
    /// The highest position that the consumer's database has acknowledged.
    pub(crate) acknowledged: Position,
    /// Its database, once it was met (T11).
    pub(crate) resource: Option<ResourceId>,
    /// Its dead letters.
    pub(crate) dead_count: u64,
    pub(crate) topics: Vec<TopicRange>,
}

/// The part of a topic that a consumer takes, by position: what becomes visible while the topic is named for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicRange {
    pub(crate) topic: String,
    /// The first position.
    pub(crate) from: Position,
    /// The first position that is not its own any more; `None` while the topic is named.
    pub(crate) until: Option<Position>,
}

impl TopicRange {
    pub(crate) fn contains(&self, position: Position) -> bool {
        self.from <= position && self.until.is_none_or(|until| position < until)
    }
}

impl ConsumerRow {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(128);
        out.put_u8(ROW_VERSION);
        out.put_u32(self.number);
        out.put_u64(self.mark.0);
        out.put_u64(self.confirmed.0);
        out.put_u64(self.acknowledged.0);
        out.put_u8(self.resource.is_some().into());
        out.put_slice(&self.resource.map_or([0; 16], |resource| resource.0));
        out.put_u64(self.dead_count);
        out.put_u16(u16::try_from(self.topics.len()).expect("topics are limited"));
        for range in &self.topics {
            put_short(&mut out, range.topic.as_bytes());
            out.put_u64(range.from.0);
            // No range ends at 0: positions begin at 1.
            out.put_u64(range.until.map_or(0, |until| until.0));
        }
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DamagedRow> {
        let mut reader = Reader::new("synod:outbox_consumer", bytes)?;
        let number = reader.take(4)?.get_u32();
        let mark = Position(reader.number::<8>()?);
        let confirmed = Position(reader.number::<8>()?);
        let acknowledged = Position(reader.number::<8>()?);
        let is_met = reader.number::<1>()? == 1;
        let resource = ResourceId(reader.array()?);
        let dead_count = reader.number::<8>()?;
        let mut topics = Vec::new();
        for _ in 0..reader.number::<2>()? {
            topics.push(TopicRange {
                topic: reader.text()?,
                from: Position(reader.number::<8>()?),
                until: Some(Position(reader.number::<8>()?)).filter(|until| until.0 != 0),
            });
        }
        reader.end()?;
        Ok(Self {
            number,
            mark,
            confirmed,
            acknowledged,
            resource: is_met.then_some(resource),
            dead_count,
            topics,
        })
    }

    /// Whether the message at this position, which has this topic, is one of its own.
    pub(crate) fn takes(&self, topic: &str, position: Position) -> bool {
        self.topics
            .iter()
            .any(|range| range.topic == topic && range.contains(position))
    }

    /// Whether the topic is named for it: it takes what becomes visible next.
    pub(crate) fn is_named(&self, topic: &str) -> bool {
        self.topics
            .iter()
            .any(|range| range.topic == topic && range.until.is_none())
    }
}
