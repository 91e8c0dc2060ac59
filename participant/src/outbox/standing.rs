//! What an operator sees of an outbox.

use std::collections::BTreeSet;

use bytes::Bytes;
use synod_proto::ids::{MessageId, Position, ResourceId, Sequence, UnixMillis};
use synod_proto::limits::LIST_COUNT_MAX;

use super::{Outbox, OutboxError};
use crate::resource::ResourceError;
use crate::resource::redb::messages::{
    ConsumerRow, FailureRow, MessageRead, MessageRow, StoredState, TopicRange,
};

/// An outbox at a glance.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxStatus {
    /// The database.
    pub source: ResourceId,
    /// The position that the next visible message gets.
    pub next_position: Position,
    /// Messages with a position that are still stored.
    pub stored_count: u64,
    /// Messages that wait for their time.
    pub scheduled_count: u64,
    /// The consumers, by name; also those that are not named any more, and not unsubscribed yet.
    pub consumers: Vec<ConsumerStatus>,
}

/// A consumer at a glance.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStatus {
    /// Its name.
    pub consumer: String,
    /// Where it is reached; empty for one that is not named any more.
    pub address: String,
    /// What it takes.
    pub topics: Vec<String>,
    /// Topics that were taken away from it. What was visible of them is still its own, and what becomes visible later if nobody
    /// else takes it, until it is delivered, or [dropped by name](Outbox::unsubscribe_topic).
    pub retired_topics: Vec<String>,
    /// Every message below is settled, but for those that [`unsettled_count`](Self::unsettled_count) counts.
    pub mark: Position,
    /// Its dead letters.
    pub dead_count: u64,
    /// Messages below the mark that are not settled: dead, requeued, cancelled and not confirmed, or waiting behind such in their
    /// key. At 4096 of them the mark stops until some are settled, and from then on what is delivered is kept, too.
    pub unsettled_count: u64,
    /// Why it gets no messages now, or none of more keys of a topic; empty while a relay is connected and sends all.
    pub trouble: String,
}

/// A message in the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The message.
    pub id: MessageId,
    /// Its place.
    pub position: Position,
    /// What it is about.
    pub topic: String,
    /// What it is ordered by.
    pub key: Bytes,
    /// Its number within its key.
    pub sequence: Sequence,
    /// When it was published, by the database's clock.
    pub published_at: UnixMillis,
    /// The size of its body.
    pub body_bytes: usize,
    /// How it stands with each consumer that takes its topic.
    pub states: Vec<(String, EntryState)>,
}

/// How a message stands with one consumer. One that is on its way is pending: only an answer changes what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryState {
    /// To be sent, or on its way.
    Pending {
        /// Attempts that failed.
        failed_count: u32,
        /// Why the last one did, or why the consumer did not make it: it has no handler for the topic, no room, or a store that
        /// could not serve it. Empty before.
        reason: String,
    },
    /// Settled: acknowledged; or discarded, or cancelled with the consumer's word of what became of it, which
    /// [`records`](Outbox::records) tell. The message is still stored, since some mark, its own or another consumer's, has not
    /// passed it.
    Delivered,
    /// Waits for an operator.
    Dead {
        /// Attempts that failed.
        failed_count: u32,
        /// Why the last one did.
        reason: String,
    },
    /// Taken back by an operator. The consumer has yet to say whether it took effect before.
    Cancelled {
        /// Why the consumer has not said so yet; empty before it was asked.
        reason: String,
    },
}

/// A message that was given up for one consumer until an operator decides.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The consumer that did not take it.
    pub consumer: String,
    /// The message.
    pub entry: Entry,
    /// Attempts that failed.
    pub failed_count: u32,
    /// Why the last one did.
    pub reason: String,
    /// When it did, by the database's clock.
    pub died_at: UnixMillis,
}

/// A message that waits for its time. It has no position before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scheduled {
    /// The message.
    pub id: MessageId,
    /// When it becomes visible, by the database's clock.
    pub deliver_at: UnixMillis,
    /// What it is about.
    pub topic: String,
    /// What it is ordered by.
    pub key: Bytes,
    /// When it was published, by the database's clock.
    pub published_at: UnixMillis,
    /// The size of its body.
    pub body_bytes: usize,
}

fn scheduled(message: MessageRow) -> Scheduled {
    Scheduled {
        id: message.id,
        deliver_at: message.deliver_at,
        topic: message.topic,
        key: message.key,
        published_at: message.published_at,
        body_bytes: message.body.len(),
    }
}

fn entry(position: Position, message: MessageRow, states: Vec<(String, EntryState)>) -> Entry {
    Entry {
        id: message.id,
        position,
        topic: message.topic,
        key: message.key,
        sequence: message.sequence,
        published_at: message.published_at,
        body_bytes: message.body.len(),
        states,
    }
}

fn state(stored: StoredState) -> EntryState {
    match stored {
        StoredState::Delivered => EntryState::Delivered,
        StoredState::Pending(failure) => {
            let (failed_count, reason) =
                failure.map_or((0, String::new()), |row| (row.failed_count, row.reason));
            EntryState::Pending { failed_count, reason }
        }
        StoredState::Dead(FailureRow {
            failed_count, reason, ..
        }) => EntryState::Dead { failed_count, reason },
        StoredState::Cancelled(failure) => EntryState::Cancelled {
            reason: failure.map_or(String::new(), |row| row.reason),
        },
    }
}

/// The names of some of its topics.
fn topics(row: &ConsumerRow, is_asked: impl Fn(&TopicRange) -> bool) -> Vec<String> {
    let asked = row.topics.iter().filter(|range| is_asked(range));
    let names: BTreeSet<_> = asked.map(|range| range.topic.clone()).collect();
    names.into_iter().collect()
}

/// Dead letters of one consumer behind `after`.
fn dead(
    read: &MessageRead<'_>,
    consumer: &str,
    row: &ConsumerRow,
    after: Position,
    count_max: usize,
) -> Result<Vec<DeadLetter>, ResourceError> {
    let mut found = Vec::new();
    for (position, letter) in read.dead_letters(row.number, after, count_max)? {
        let Some(message) = read.message(position)? else {
            continue;
        };
        found.push(DeadLetter {
            consumer: consumer.to_owned(),
            entry: entry(position, message, Vec::new()),
            failed_count: letter.failure.failed_count,
            reason: letter.failure.reason,
            died_at: letter.failure.at,
        });
    }
    Ok(found)
}

impl Outbox {
    /// The outbox and its consumers.
    ///
    /// # Errors
    /// [`OutboxError::Resource`].
    pub async fn status(&self) -> Result<OutboxStatus, OutboxError> {
        let outbox = self.clone();
        let read = self.inner.store.read(move |snapshot| {
            let read = MessageRead(snapshot);
            let (stored_count, scheduled_count, _) = read.counts()?;
            let mut consumers = Vec::new();
            for (name, row) in read.consumers()? {
                let unsettled = read.letters_below(row.number, row.mark)?;
                let lane = outbox.inner.lanes.get(&name);
                consumers.push(ConsumerStatus {
                    address: lane.map(|lane| lane.consumer.address.clone()).unwrap_or_default(),
                    trouble: match lane {
                        Some(lane) => lane.trouble(),
                        None => "not named where the outbox is opened: name it, or unsubscribe it".to_owned(),
                    },
                    consumer: name,
                    topics: topics(&row, |range| range.until.is_none()),
                    retired_topics: topics(&row, |range| range.until.is_some()),
                    mark: row.mark,
                    dead_count: row.dead_count,
                    unsettled_count: unsettled.len() as u64,
                });
            }
            Ok(OutboxStatus {
                source: outbox.inner.source,
                next_position: read.next_position()?,
                stored_count,
                scheduled_count,
                consumers,
            })
        });
        Ok(read.await?)
    }

    /// Messages behind `after`, in the order of their positions; at most `count_max`, which is at most 1000. With a consumer: only
    /// how they stand with it.
    ///
    /// # Errors
    /// [`OutboxError::Resource`].
    pub async fn list(
        &self,
        consumer: Option<&str>,
        after: Position,
        count_max: usize,
    ) -> Result<Vec<Entry>, OutboxError> {
        let consumer = consumer.map(str::to_owned);
        let read = self.inner.store.read(move |snapshot| {
            let read = MessageRead(snapshot);
            let mut consumers = read.consumers()?;
            consumers.retain(|(name, _)| consumer.as_ref().is_none_or(|asked| asked == name));
            let mut entries = Vec::new();
            for (position, message) in read.page(after, count_max.min(LIST_COUNT_MAX as usize))? {
                let mut states = Vec::new();
                for (name, row) in consumers
                    .iter()
                    .filter(|(_, row)| row.takes(&message.topic, position))
                {
                    states.push((name.clone(), state(read.state(row, position)?)));
                }
                entries.push(entry(position, message, states));
            }
            Ok(entries)
        });
        Ok(read.await?)
    }

    /// Dead letters behind `after`, of one consumer or of all; at most `count_max` of each.
    ///
    /// # Errors
    /// [`OutboxError::Resource`].
    pub async fn dead_letters(
        &self,
        consumer: Option<&str>,
        after: Position,
        count_max: usize,
    ) -> Result<Vec<DeadLetter>, OutboxError> {
        let consumer = consumer.map(str::to_owned);
        let read = self.inner.store.read(move |snapshot| {
            let read = MessageRead(snapshot);
            let mut letters = Vec::new();
            for (name, row) in read.consumers()? {
                if consumer.as_ref().is_none_or(|asked| *asked == name) {
                    letters.extend(dead(&read, &name, &row, after, count_max)?);
                }
            }
            Ok(letters)
        });
        Ok(read.await?)
    }

    /// Messages that wait for their time, in the order of their times, behind one of them; at most `count_max`, which is at most
    /// 1000.
    ///
    /// # Errors
    /// [`OutboxError::Resource`].
    pub async fn scheduled(
        &self,
        after: Option<(UnixMillis, MessageId)>,
        count_max: usize,
    ) -> Result<Vec<Scheduled>, OutboxError> {
        let read = self.inner.store.read(move |snapshot| {
            let rows = MessageRead(snapshot).scheduled(after, count_max.min(LIST_COUNT_MAX as usize))?;
            Ok(rows.into_iter().map(scheduled).collect())
        });
        Ok(read.await?)
    }

    /// What operators did, and what became of cancelled messages, the latest first; the last 10,000 are kept.
    ///
    /// # Errors
    /// [`OutboxError::Resource`].
    pub async fn records(&self, count_max: usize) -> Result<Vec<String>, OutboxError> {
        let records = self.record_page(None, count_max).await?;
        Ok(records.into_iter().map(|(_, text)| text).collect())
    }

    /// The [records](Self::records) with numbers below `before`, each with its number.
    pub(super) async fn record_page(
        &self,
        before: Option<u64>,
        count_max: usize,
    ) -> Result<Vec<(u64, String)>, OutboxError> {
        let read = self
            .inner
            .store
            .read(move |snapshot| MessageRead(snapshot).records(before, count_max));
        Ok(read.await?)
    }
}
