//! The outbox: messages that are written with the business row, in the same local transaction, and forwarded until every
//! consumer has confirmed them (step 6 of a transaction).
//!
//! What needs not be atomic, only certain, is a message. [`Outbox::publish`] writes it within a branch or a
//! [local transaction](crate::resource::redb::RedbResource::begin_local): it becomes visible exactly if that commits. A [`Relay`]
//! then sends it straight to the consumers' [inboxes](crate::inbox), until each has acknowledged that its effect is on disk.
//!
//! ```no_run
//! use synod::outbox::{Consumer, Message, Outbox};
//! use synod::resource::redb::RedbResource;
//!
//! # async fn run() -> Result<(), synod::BoxError> {
//! let orders = RedbResource::open("orders.redb")?;
//! let outbox = Outbox::builder(&orders)
//!     .consumer(Consumer::new("billing", "http://127.0.0.1:9100").topic("orders.placed"))
//!     .consumer(Consumer::new("notifications", "http://127.0.0.1:9101").topic("orders.placed"))
//!     .open()
//!     .await?;
//! tokio::spawn(outbox.relay().run());
//!
//! let mut tx = orders.begin_local()?;
//! tx.put("orders", "order-1", "2 bolts").await?;
//! outbox.publish(&mut tx, Message::new("orders.placed", "customer-7", "order-1: 2 bolts")).await?;
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```
//! In a branch of a global transaction it is the same call: `outbox.publish(&mut tx, …)` with the branch's `tx`.
//!
//! # What is guaranteed
//! - **Exactly the committed messages**, each delivered to each consumer of its topic at least once, and applied once by an inbox.
//! - **Order** per topic and key: the order in which they were published. A publisher locks the key until its transaction ends,
//!   so two transactions publish to one key one after the other, and a branch in doubt holds back the keys that it wrote, and no
//!   others (traps H2-H4). Keys are independent.
//! - **Nothing is dropped for its age.** A message is delivered, or it is a [dead letter](DeadLetter) with a reason, which an
//!   operator [requeues](Outbox::requeue) or [discards](Outbox::discard). A consumer that is away makes no dead letters. A pending
//!   message can be [cancelled](Outbox::cancel): then it never takes effect, or it does so before the consumer has heard of the
//!   cancellation (a copy may be on its way), and the consumer, unless it is unsubscribed first, says which.
//! - A topic that no consumer takes is an error where it is published, not a loss later (traps H6).
//! - **Consumers may change at each start.** What was visible for a consumer stays its own when its [topics](Consumer::topic)
//!   change or it is not named any more, until it is delivered or dropped by name
//!   ([`unsubscribe_topic`](Outbox::unsubscribe_topic), [`unsubscribe`](Outbox::unsubscribe)).
//! - **A message is kept for its own consumers alone**: it is deleted when the marks of all that take its topic have passed it,
//!   whoever else is away (traps H16).
//!
//! # What is not there
//! - Order between keys, topics or consumers; delivery at the same instant everywhere.
//! - Atomicity between the message's effect and its sender's: the effect comes later.
//! - Protection against a handler that kills its whole process each time: the message is sent again for ever, since nobody is
//!   left to say that it failed.
//! - A bound on what is kept for a consumer that is away, or busy or between attempts for one message: its mark waits there, and all
//!   that comes behind of its own topics is kept until it goes on, delivered or not.
//! - A consumer for a message that becomes visible (scheduled, or of a branch in doubt) after its topic's last consumer was
//!   unsubscribed: it stays stored, [listed](Outbox::list) without a consumer, until one that is new takes the topic [from its
//!   start](Consumer::from_start).
//! - A bound on what waits behind a dead letter that holds its key: these messages are kept until an operator has decided, and
//!   nothing of what was delivered meanwhile. Only where the messages that are dead, requeued or cancelled, and those that wait
//!   behind them, come to 4096 of one consumer is all that is delivered from then on kept as well, at both ends, until some are settled
//!   ([`ConsumerStatus::unsettled_count`]).
//!
//! # Limits
//! A body of 512 KiB, a key of 512 bytes, 64 headers of 8 KiB together, names of 128 bytes. One process has the outbox open.

mod admin;
mod consumer;
mod error;
mod lane;
mod message;
mod operate;
#[doc(hidden)]
pub mod parts;
mod relay;
mod standing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use synod_proto::ids::{MessageId, Position, ResourceId, Sequence, UnixMillis};
use tokio::task::JoinHandle;

use crate::resource::ResourceManager;
use crate::resource::redb::messages::{
    ConsumerRow, MessageRead, MessageRow, OpenOutbox, PUBLISH_TABLE, Readmit, Release, SEQUENCE_TABLE,
    Unsubscribe, is_dropped_with, name, named,
};
use crate::resource::redb::{RedbResource, RedbTransaction};
use lane::Lane;
use message::Time;

pub use admin::OutboxAdmin;
pub use consumer::Consumer;
pub use error::OutboxError;
pub use message::{Message, PublishError};
pub use operate::Place;
pub use relay::Relay;
pub use standing::{ConsumerStatus, DeadLetter, Entry, EntryState, OutboxStatus, Scheduled};
pub use synod_participant_core::relay::DeadLetterPolicy;

/// How long a store that fails is left alone before it is asked again, at most.
const STORE_RETRY_MAX: Duration = Duration::from_secs(5);

/// The longest sleep until a scheduled message is due: the clock may be set meanwhile.
const DUE_SLEEP_MAX: Duration = Duration::from_secs(1);

/// The outbox of one store. The [module](self) says what it guarantees. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    inner: Arc<Inner>,
}

struct Inner {
    store: RedbResource,
    source: ResourceId,
    lanes: BTreeMap<String, Arc<Lane>>,
    _running: Running,
}

/// What ends with the outbox, and with an [`open`](OutboxBuilder::open) that was given up half way.
struct Running {
    store: RedbResource,
    workers: Vec<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.abort();
        }
        self.store.close_outbox();
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox")
            .field("source", &self.inner.source)
            .field("consumers", &self.inner.lanes.keys())
            .finish_non_exhaustive()
    }
}

/// Configures an [`Outbox`].
#[derive(Debug)]
#[must_use = "the outbox exists when `open` has returned"]
pub struct OutboxBuilder {
    store: RedbResource,
    consumers: Vec<Consumer>,
}

impl OutboxBuilder {
    /// Adds a consumer. Every consumer of a topic gets every message of it, each at its own pace.
    pub fn consumer(mut self, consumer: Consumer) -> Self {
        self.consumers.push(consumer);
        self
    }

    /// Opens the outbox, and registers its consumers in the store: from then on messages are kept for them, whether or not they
    /// can be reached. A consumer that is no longer named here keeps its messages until it is
    /// [unsubscribed](Outbox::unsubscribe). Must be called within a tokio runtime. Given up half way, it leaves the outbox closed.
    ///
    /// # Errors
    /// [`OutboxError::AlreadyOpen`]; [`OutboxError::Invalid`] for a consumer without topic, with an address that is none, or
    /// named twice; [`OutboxError::Resource`].
    pub async fn open(self) -> Result<Outbox, OutboxError> {
        let mut registered = Vec::new();
        let mut names = std::collections::BTreeSet::new();
        for consumer in &self.consumers {
            consumer.check()?;
            if !names.insert(&consumer.name) {
                let text = format!("the consumer `{}` is named twice", consumer.name);
                return Err(OutboxError::Invalid { text });
            }
            registered.push((
                consumer.name.clone(),
                consumer.topics.iter().cloned().collect(),
                consumer.is_from_start,
            ));
        }
        if !self.store.try_open_outbox() {
            return Err(OutboxError::AlreadyOpen);
        }
        let running = Running {
            store: self.store,
            workers: Vec::new(),
        };
        Self::start(running, registered, &self.consumers).await
    }

    async fn start(
        mut running: Running,
        registered: Vec<(String, Vec<String>, bool)>,
        consumers: &[Consumer],
    ) -> Result<Outbox, OutboxError> {
        let store = running.store.clone();
        let identity = store.identity(None).await?;
        let opened = store
            .work(OpenOutbox {
                consumers: registered,
            })
            .await?;
        let run = opened.map_err(|text| OutboxError::Invalid { text })?;
        let snapshot = store.snapshot()?;
        let mut lanes = BTreeMap::new();
        for consumer in consumers {
            let lane = Arc::new(Lane::open(&store, identity.clone(), consumer, run, &snapshot)?);
            running.workers.extend(Lane::start(&lane));
            lanes.insert(consumer.name.clone(), lane);
        }
        let release = release_due(store.clone(), lanes.values().cloned().collect());
        running.workers.push(tokio::spawn(release));
        let inner = Inner {
            store,
            source: identity.resource,
            lanes,
            _running: running,
        };
        Ok(Outbox {
            inner: Arc::new(inner),
        })
    }
}

impl Outbox {
    /// Starts the configuration of a store's outbox.
    pub fn builder(store: &RedbResource) -> OutboxBuilder {
        OutboxBuilder {
            store: store.clone(),
            consumers: Vec::new(),
        }
    }

    /// Writes a message within the local transaction: it becomes visible if, and when, that commits. Locks the message's key for
    /// other publishers until the transaction ends, so publish late, and to several keys in one agreed order.
    ///
    /// # Errors
    /// [`PublishError::Resource`]: the transaction is rolled back. The others: it is as it was.
    pub async fn publish(
        &self,
        tx: &mut RedbTransaction,
        message: Message,
    ) -> Result<MessageId, PublishError> {
        message.check()?;
        if !self.inner.lanes.values().any(|lane| lane.takes(&message.topic)) {
            return Err(PublishError::NoRoute { topic: message.topic });
        }
        let id = MessageId(crate::participant::random_id());
        publish_as(&self.inner.store, tx, message, id).await?;
        Ok(id)
    }

    /// A relay: without one that runs nothing goes out. Several over one outbox share the work.
    #[must_use]
    pub fn relay(&self) -> Relay {
        Relay::new(self.clone())
    }

    /// The database's identity (T11), under which consumers know this outbox.
    #[must_use]
    pub fn source(&self) -> ResourceId {
        self.inner.source
    }

    /// Takes a consumer that is no longer named where the outbox is opened off the list, with its dead letters: nothing is kept
    /// for it any more. Answers how many messages it had not got, which it never gets now; `None` where there is no such consumer.
    /// Author and reason are kept. If it is cut short, a part was dropped: call it again.
    ///
    /// Registered again under its name, the consumer gets nothing that was settled for it before, [from its
    /// start](Consumer::from_start) or not; for all that is still stored give it another name.
    ///
    /// # Errors
    /// [`OutboxError::Invalid`] for a consumer that is still named, and without author or reason; [`OutboxError::Resource`].
    pub async fn unsubscribe(
        &self,
        consumer: &str,
        author: &str,
        reason: &str,
    ) -> Result<Option<u64>, OutboxError> {
        operate::check_words(author, reason)?;
        self.check_not_named(consumer, None)?;
        self.drop_for(consumer, None, author, reason).await
    }

    /// Drops what a consumer has not got of a topic that was taken away from it, dead letters included; what was taken away is in
    /// [`ConsumerStatus::retired_topics`]. Answers how many messages these were; `None` where no such topic was taken away. Author
    /// and reason are kept. If it is cut short, a part was dropped: call it again.
    ///
    /// # Errors
    /// [`OutboxError::Invalid`] for a topic that is still named for the consumer, and without author or reason;
    /// [`OutboxError::Resource`].
    pub async fn unsubscribe_topic(
        &self,
        consumer: &str,
        topic: &str,
        author: &str,
        reason: &str,
    ) -> Result<Option<u64>, OutboxError> {
        operate::check_words(author, reason)?;
        self.check_not_named(consumer, Some(topic))?;
        self.drop_for(consumer, Some(topic), author, reason).await
    }

    /// How many messages [`unsubscribe`](Self::unsubscribe), or with a topic [`unsubscribe_topic`](Self::unsubscribe_topic), would
    /// drop now; `None` where there is no such consumer, or no such topic was taken away from it.
    ///
    /// # Errors
    /// As for these, but for the words.
    pub async fn undelivered_count(
        &self,
        consumer: &str,
        topic: Option<&str>,
    ) -> Result<Option<u64>, OutboxError> {
        self.check_not_named(consumer, topic)?;
        let mut after = Position(0);
        let mut count = 0;
        loop {
            let (consumer, topic) = (consumer.to_owned(), topic.map(str::to_owned));
            let read = self.inner.store.read(move |snapshot| {
                let read = MessageRead(snapshot);
                let row = read.consumer(&consumer)?;
                let has_topic = |row: &ConsumerRow| {
                    let mut topics = row.topics.iter();
                    topic.is_none() || topics.any(|range| is_dropped_with(range, topic.as_deref()))
                };
                row.filter(has_topic)
                    .map(|row| read.unsettled_count(&row, topic.as_deref(), after))
                    .transpose()
            });
            let Some((part, next_after)) = read.await? else {
                return Ok(None);
            };
            count += part;
            match next_after {
                Some(next) => after = next,
                None => return Ok(Some(count)),
            }
        }
    }

    /// What is named where the outbox is opened would only come back with its next message.
    fn check_not_named(&self, consumer: &str, topic: Option<&str>) -> Result<(), OutboxError> {
        let Some(lane) = self.inner.lanes.get(consumer) else {
            return Ok(());
        };
        let what = match topic {
            None => format!("`{consumer}` is named"),
            Some(topic) if lane.takes(topic) => format!("`{topic}` is named for `{consumer}`"),
            Some(_) => return Ok(()),
        };
        let text = format!("{what} where the outbox is opened: take it away there first");
        Err(OutboxError::Invalid { text })
    }

    async fn drop_for(
        &self,
        consumer: &str,
        topic: Option<&str>,
        author: &str,
        reason: &str,
    ) -> Result<Option<u64>, OutboxError> {
        let mut dropped_count = None;
        loop {
            let work = Unsubscribe {
                consumer: consumer.to_owned(),
                topic: topic.map(str::to_owned),
                author: author.to_owned(),
                reason: reason.to_owned(),
            };
            let (outbox, name) = (self.clone(), consumer.to_owned());
            let dropped = operate::to_its_end(async move {
                let done = outbox.inner.store.work(work).await?;
                if let (Some(done), Some(lane)) = (&done, outbox.inner.lanes.get(&name)) {
                    lane.on_unsubscribed(&done.letters, &done.low_water);
                }
                Ok(done)
            });
            let Some(done) = dropped.await? else {
                return Ok(dropped_count);
            };
            dropped_count = Some(dropped_count.unwrap_or(0) + done.dropped_count);
            if !done.has_more {
                tracing::info!(
                    consumer,
                    topic,
                    dropped_count,
                    author,
                    reason,
                    "an operator unsubscribed a consumer or a topic"
                );
                return Ok(dropped_count);
            }
        }
    }

    /// Takes whatever database answers for the consumer next as its own, after it was replaced or restored. What the earlier one
    /// acknowledged and this one does not have is not sent again: bring it there by other means first. Author and reason are kept.
    ///
    /// # Errors
    /// [`OutboxError::UnknownConsumer`]; [`OutboxError::Invalid`] without author or reason; [`OutboxError::Resource`].
    pub async fn readmit(&self, consumer: &str, author: &str, reason: &str) -> Result<(), OutboxError> {
        let lane = self.lane(consumer)?;
        operate::check_words(author, reason)?;
        let work = Readmit {
            consumer: consumer.to_owned(),
            author: author.to_owned(),
            reason: reason.to_owned(),
        };
        let lane = lane.clone();
        operate::to_its_end(async move { Ok(lane.readmit(work).await?) }).await
    }

    fn lane(&self, consumer: &str) -> Result<&Arc<Lane>, OutboxError> {
        self.inner
            .lanes
            .get(consumer)
            .ok_or_else(|| OutboxError::UnknownConsumer {
                consumer: consumer.to_owned(),
            })
    }
}

/// Writes a checked message under this id.
async fn publish_as(
    store: &RedbResource,
    tx: &mut RedbTransaction,
    message: Message,
    id: MessageId,
) -> Result<(), PublishError> {
    if !store.is_same(tx) {
        let text = "the local transaction is of another store than the outbox".to_owned();
        return Err(PublishError::Invalid { text });
    }
    let name = name(&message.topic, &message.key);
    let sequence = match tx.lock_own(SEQUENCE_TABLE, &name).await? {
        Some(next) => <[u8; 8]>::try_from(&next[..])
            .map(u64::from_be_bytes)
            .map_err(|_| {
                let text = "a row of `synod:outbox_sequence` is damaged".to_owned();
                PublishError::Invalid { text }
            })?,
        // Nothing of this key is left: go on above all that there ever was, which had positions above their numbers.
        None => MessageRead(&tx.latest()?).next_position()?.0,
    };
    let next = Bytes::copy_from_slice(&(sequence + 1).to_be_bytes());
    tx.put_own(SEQUENCE_TABLE, &name, next).await?;
    let now = tx.now();
    let row = MessageRow {
        topic: message.topic,
        key: message.key,
        id,
        sequence: Sequence(sequence),
        published_at: now,
        deliver_at: match message.time {
            Time::Now => UnixMillis(0),
            Time::After(delay) => now.plus(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
            Time::At(at) => at,
        },
        headers: message.headers,
        body: message.body,
    };
    tx.put_own(PUBLISH_TABLE, &named(&name, sequence), row.encode())
        .await?;
    Ok(())
}

/// Lets scheduled messages go when their time has come.
async fn release_due(store: RedbResource, lanes: Vec<Arc<Lane>>) {
    let mut published = store.published();
    loop {
        let next = store
            .snapshot()
            .and_then(|snapshot| MessageRead(&snapshot).next_due());
        let sleep = match next {
            Ok(None) => None,
            Ok(Some(at)) if at <= store.now() => match store.work(Release).await {
                Ok(_) => {
                    lanes.iter().for_each(|lane| lane.on_published());
                    Some(Duration::ZERO)
                }
                Err(error) => {
                    tracing::warn!(error = %error, "scheduled messages cannot be released, trying again");
                    Some(STORE_RETRY_MAX)
                }
            },
            Ok(Some(at)) => Some(Duration::from_millis(at.0 - store.now().0.min(at.0)).min(DUE_SLEEP_MAX)),
            Err(_) => Some(STORE_RETRY_MAX),
        };
        let slept = async {
            match sleep {
                Some(sleep) => tokio::time::sleep(sleep).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = slept => {}
            changed = published.changed() => if changed.is_err() { return },
        }
    }
}
