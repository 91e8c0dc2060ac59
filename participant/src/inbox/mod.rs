//! The inbox: a consumer of messages, each of which takes effect once (step 7 of a transaction).
//!
//! A delivery's effect and the row that says that it happened are one local transaction of the consumer's database: either both
//! are there or none, so that a repeated delivery is recognised, however late it comes (traps H7, H8).
//!
//! ```no_run
//! use synod::inbox::Inbox;
//! use synod::resource::redb::RedbResource;
//!
//! # async fn run() -> Result<(), synod::BoxError> {
//! let billing = RedbResource::open("billing.redb")?;
//! let inbox = Inbox::builder(&billing)
//!     .name("billing")
//!     .handle("orders.placed", async |delivery, mut tx| {
//!         let customer = String::from_utf8_lossy(&delivery.key).into_owned();
//!         let count = tx.get_u64_for_update("invoices", &customer).await?.unwrap_or(0);
//!         tx.put_u64("invoices", &customer, count + 1).await?;
//!         Ok(())
//!     })
//!     .build();
//! tonic::transport::Server::builder()
//!     .add_service(inbox.server())
//!     .serve("127.0.0.1:9100".parse()?)
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is guaranteed
//! - **Once**: a message's effect in this database takes place once, whatever is repeated and whoever crashes. What a handler does
//!   elsewhere (a mail, a call) may be repeated: give it the message's id.
//! - **In order** per topic and key: one after the other, in the order in which they were published.
//! - **An error, a panic or a timeout of a handler is a retry**: everything it wrote is rolled back, and the message comes again,
//!   until its sender makes it a dead letter.
//! - **What is not the message's fault does not count**, and its sender is told why it waits: a topic without a handler (traps G5),
//!   an inbox that is full, and a store that could not serve the handler: a lock that a branch in doubt holds, a conflict, a store
//!   that is closed or out of reach. The last are known by a [`ResourceError`](crate::resource::ResourceError) among the sources of
//!   the handler's error whose [remedy](crate::resource::ResourceError::remedy) is to try again: return it with `?`, not as text.
//! - **Shares**: 256 handlers run at once, and 64 of one topic of one sender, so that it takes four topics that hang to hold up the
//!   others. 8192 messages of 64 MiB together wait; more are sent again later.
//! - A handler may publish to an outbox of the same store, with the same `tx`: chains are as certain as their parts.
//!
//! Rows that say that a message took effect are deleted when the sender's low-water mark has passed them, never by age (T13).

mod apply;
#[doc(hidden)]
pub mod parts;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use synod_proto::ids::{MessageId, ResourceId, Sequence, UnixMillis};

use crate::error::BoxError;
use crate::resource::redb::{LocalTransaction, RedbResource, RedbTransaction};

pub use server::InboxService;

/// How long a handler may run unless told otherwise. Shorter than a relay's patience.
const HANDLER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(20);

/// A message as its handler gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// The message, the same at every redelivery: what an outside service may recognise a repetition by.
    pub id: MessageId,
    /// The database that it was published in.
    pub source: ResourceId,
    /// Counts the deliveries, from 1, as far as the sender remembers.
    pub attempt: u32,
    /// What it is about.
    pub topic: String,
    /// What it is ordered by.
    pub key: Bytes,
    /// Its number within its key: rising in the order of publishing, not without gaps.
    pub sequence: Sequence,
    /// Metadata, as it was published.
    pub headers: BTreeMap<String, String>,
    /// The content.
    pub body: Bytes,
    /// When it was published, by the clock of the database that it was published in.
    pub published_at: UnixMillis,
}

/// The local transaction of one delivery, as its handler holds it: the store's own transaction, by dereference. Dropping it is how
/// the handler gives it back to be committed.
#[derive(Debug)]
pub struct InboxTransaction {
    tx: Option<LocalTransaction>,
    slot: Slot,
}

type Slot = Arc<Mutex<Option<LocalTransaction>>>;

impl InboxTransaction {
    fn new(tx: LocalTransaction) -> (Self, Slot) {
        let slot = Slot::default();
        let lent = Self {
            tx: Some(tx),
            slot: slot.clone(),
        };
        (lent, slot)
    }
}

impl Deref for InboxTransaction {
    type Target = RedbTransaction;

    fn deref(&self) -> &RedbTransaction {
        self.tx.as_ref().expect("held until drop")
    }
}

impl DerefMut for InboxTransaction {
    fn deref_mut(&mut self) -> &mut RedbTransaction {
        self.tx.as_mut().expect("held until drop")
    }
}

impl Drop for InboxTransaction {
    fn drop(&mut self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = self.tx.take();
    }
}

type Handler =
    Arc<dyn Fn(Delivery, InboxTransaction) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync>;

/// A consumer's inbox. The [module](self) says what it guarantees. Cheap to clone; all clones, and all servers made of them, are one
/// inbox.
#[derive(Clone)]
pub struct Inbox {
    shared: Arc<server::Shared>,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox")
            .field("topics", &self.shared.handlers.keys())
            .finish_non_exhaustive()
    }
}

/// Configures an [`Inbox`].
#[must_use = "the inbox exists when `build` has returned"]
pub struct InboxBuilder {
    store: RedbResource,
    names: BTreeSet<String>,
    handlers: BTreeMap<String, Handler>,
    handler_timeout: Duration,
}

impl std::fmt::Debug for InboxBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InboxBuilder")
            .field("topics", &self.handlers.keys())
            .finish_non_exhaustive()
    }
}

impl InboxBuilder {
    /// The name under which outboxes know this consumer ([`Consumer::new`](crate::outbox::Consumer::new)): messages for another
    /// one, which come where its address is wrong, are refused. Called again, another name that is its own as well. Without a name
    /// it takes what comes, and would apply messages for two names twice.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.insert(name.into());
        self
    }

    /// Names the handler of a topic; a second one replaces the first. It gets the delivery and the local transaction for its effect,
    /// and runs again from the beginning if it fails.
    pub fn handle<F, Fut>(mut self, topic: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Delivery, InboxTransaction) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |delivery, tx| Box::pin(handler(delivery, tx)));
        self.handlers.insert(topic.into(), handler);
        self
    }

    /// How long a handler may run before it counts as failed; 20 s by default. Should be shorter than the sender's
    /// [answer timeout](crate::outbox::Consumer::answer_timeout).
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.handler_timeout = timeout;
        self
    }

    /// The inbox.
    #[must_use]
    pub fn build(self) -> Inbox {
        Inbox {
            shared: Arc::new(server::Shared::new(
                self.store,
                self.names,
                self.handlers,
                self.handler_timeout,
            )),
        }
    }
}

impl Inbox {
    /// Starts the configuration of an inbox in this store. One store has one inbox.
    pub fn builder(store: &RedbResource) -> InboxBuilder {
        InboxBuilder {
            store: store.clone(),
            names: BTreeSet::new(),
            handlers: BTreeMap::new(),
            handler_timeout: HANDLER_TIMEOUT_DEFAULT,
        }
    }

    /// How many deliveries run now, and how many wait for their turn: for metrics.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        self.shared.counts()
    }
}
