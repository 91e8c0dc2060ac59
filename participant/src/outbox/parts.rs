//! The outbox without its tasks, sockets and clocks: what its drivers ask of the store, for whoever moves data and time by other
//! hands. No part of the library's interface.

use std::collections::BTreeSet;

use synod_participant_core::relay::{self, Read, RelayOptions, Row, Rows, Send, Settlement};
use synod_proto::ids::{MessageId, Position, ResourceId, UnixMillis};
use synod_proto::message::{Delivery, Hello, LowWater, Welcome};

use super::{Message, OutboxError, PublishError, lane, publish_as};
use crate::error::BoxError;
use crate::resource::redb::messages::{
    MessageRead, OpenOutbox, Operate, Operated, OperatorAction, Release, Settle,
};
use crate::resource::redb::{RedbResource, RedbTransaction};
use crate::resource::{Identity, ResourceError, ResourceManager};

/// The outbox of one store, open.
#[derive(Clone, Debug)]
pub struct OpenStore {
    store: RedbResource,
    identity: Identity,
    run: u64,
}

/// What is to be sent, as the store has it now.
#[derive(Clone, Debug)]
pub struct Frames {
    /// Full, or the last one.
    pub frames: Vec<Vec<Delivery>>,
    /// Of what is not the consumer's any more.
    pub dropped: Vec<Send>,
    /// Those among the frames' that were cancelled.
    pub cancelled: BTreeSet<Position>,
}

impl OpenStore {
    /// Registers the consumers, each with its topics.
    ///
    /// # Errors
    /// The store's, or too many topics.
    pub async fn open(
        store: &RedbResource,
        consumers: Vec<(String, Vec<String>)>,
    ) -> Result<Self, OutboxError> {
        let identity = store.identity(None).await?;
        let consumers = consumers
            .into_iter()
            .map(|(name, topics)| (name, topics, false))
            .collect();
        let opened = store.work(OpenOutbox { consumers }).await?;
        let run = opened.map_err(|text| OutboxError::Invalid { text })?;
        Ok(Self {
            store: store.clone(),
            identity,
            run,
        })
    }

    /// The core of a consumer's lane.
    ///
    /// # Errors
    /// The store's, or there is no such consumer.
    pub fn relay(
        &self,
        consumer: &str,
        options: RelayOptions,
        seed: u64,
    ) -> Result<relay::Relay, OutboxError> {
        lane::relay_of(consumer, options, self.run, seed, &self.store.snapshot()?)
    }

    /// Writes a message under this id.
    ///
    /// # Errors
    /// As [`Outbox::publish`](super::Outbox::publish) does, but for a topic that nobody takes.
    pub async fn publish(
        &self,
        tx: &mut RedbTransaction,
        message: Message,
        id: MessageId,
    ) -> Result<(), PublishError> {
        message.check()?;
        publish_as(&self.store, tx, message, id).await
    }

    /// Grows with every local transaction that makes messages visible.
    #[must_use]
    pub fn published_count(&self) -> u64 {
        *self.store.published().borrow()
    }

    /// The first frame of a stream.
    #[must_use]
    pub fn hello(&self, consumer: &str, mark: Position) -> Hello {
        Hello {
            source: self.identity.resource,
            lineage: self.identity.lineage,
            consumer: consumer.to_owned(),
            mark,
        }
    }

    /// Whether the stream may go on after this welcome.
    ///
    /// # Errors
    /// It may not, or the store cannot be read.
    pub fn check(&self, consumer: &str, welcome: &Welcome) -> Result<(), BoxError> {
        super::relay::check(&self.store, consumer, welcome)
    }

    /// What the core asked for.
    ///
    /// # Errors
    /// The store's.
    pub fn find(&self, consumer: &str, asked: &Read) -> Result<Rows, ResourceError> {
        lane::find(consumer, &self.store.snapshot()?, asked)
    }

    /// What the core ordered to be sent.
    ///
    /// # Errors
    /// The store's.
    pub fn frames(&self, consumer: &str, sends: Vec<Send>) -> Result<Frames, ResourceError> {
        let snapshot = self.store.snapshot()?;
        let row = MessageRead(&snapshot).consumer(consumer)?;
        let ready = super::relay::read(&MessageRead(&snapshot), row.as_ref(), sends, true)?;
        Ok(Frames {
            frames: ready.frames,
            dropped: ready.dropped,
            cancelled: ready.cancelled,
        })
    }

    /// Writes what came of attempts.
    ///
    /// # Errors
    /// The store's: it may or may not be on disk.
    pub async fn settle(
        &self,
        consumer: &str,
        settlement: Settlement,
        confirmed: Option<Position>,
        resource: Option<ResourceId>,
    ) -> Result<LowWater, ResourceError> {
        let work = Settle {
            consumer: consumer.to_owned(),
            settlement,
            confirmed,
            resource,
        };
        Ok(self.store.work(work).await?.unwrap_or_default())
    }

    /// The position that the next visible message gets.
    ///
    /// # Errors
    /// The store's.
    pub fn next_position(&self) -> Result<Position, ResourceError> {
        MessageRead(&self.store.snapshot()?).next_position()
    }

    /// When the next scheduled message is due.
    ///
    /// # Errors
    /// The store's.
    pub fn next_due(&self) -> Result<Option<UnixMillis>, ResourceError> {
        MessageRead(&self.store.snapshot()?).next_due()
    }

    /// Lets scheduled messages go whose time has come; answers how many.
    ///
    /// # Errors
    /// The store's.
    pub async fn release(&self) -> Result<usize, ResourceError> {
        self.store.work(Release).await
    }

    /// Where a consumer's dead letters are.
    ///
    /// # Errors
    /// The store's.
    pub fn dead_letters(&self, consumer: &str, count_max: usize) -> Result<Vec<Position>, ResourceError> {
        let snapshot = self.store.snapshot()?;
        let number = lane::row_of(consumer, &snapshot)?.number;
        let found = MessageRead(&snapshot).dead_letters(number, Position(0), count_max)?;
        Ok(found.into_iter().map(|(position, _)| position).collect())
    }

    /// An operator requeues a dead letter, or discards it; `None` where it is none.
    ///
    /// # Errors
    /// The store's: it may or may not be done.
    pub async fn operate(
        &self,
        consumer: &str,
        position: Position,
        requeues: bool,
    ) -> Result<Option<(Row, LowWater)>, ResourceError> {
        let Some(message) = MessageRead(&self.store.snapshot()?).message(position)? else {
            return Ok(None);
        };
        let work = Operate {
            consumer: consumer.to_owned(),
            id: message.id,
            position,
            action: match requeues {
                true => OperatorAction::Requeue,
                false => OperatorAction::Discard,
            },
            author: "an operator".to_owned(),
            reason: "a look".to_owned(),
        };
        let operated = self.store.work(work).await?;
        Ok(operated.map(|Operated { row, low_water }| (row, low_water)))
    }
}
