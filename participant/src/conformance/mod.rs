//! The conformance kit: whether a store keeps the contract of [`ResourceManager`], shown by running it.
//!
//! Who writes a resource manager writes a [`Harness`] beside it, about fifty lines that say how to make a
//! database, open it, kill it, and do one piece of work in it. [`run`] then walks through every [`Check`], each
//! on a database of its own, and tells by name which MUSTs hold, and of those that do not: at which step, what
//! was expected, and what was found. The stores that ship with Synod are tested with nothing else first.
//!
//! What it cannot see: power failures, unless the harness's [`crash`](Harness::crash) takes what was not
//! synced; failures of the disk; and rates. Stores with a disk of their own want tests for these, too.
//!
//! # In a test of your own
//! The *work* of a harness is the smallest thing that the store is for, done to an *item* that others compete
//! for: add one to a counter, book one more seat of a row. Its *effect* is how often that has been committed.
//! That is all the kit has to know, so it fits a store that is no table of rows.
//!
//! ```
//! use synod::BoxError;
//! use synod::conformance::{self, Claims, Harness, ImageDirectory, Instances};
//! use synod::resource::ResourceError;
//! use synod::resource::redb::{RedbResource, RedbTransaction};
//!
//! struct Redb;
//!
//! impl Harness for Redb {
//!     type Store = RedbResource;
//!     type Database = ImageDirectory;
//!
//!     fn claims(&self) -> Claims {
//!         Claims {
//!             items_are_independent: true,
//!             reads_repeat: true,
//!             looking_is_read_only: true,
//!             instances: Instances::One,
//!         }
//!     }
//!
//!     async fn create(&self, _check: &str) -> Result<ImageDirectory, BoxError> {
//!         Ok(ImageDirectory::new()?)
//!     }
//!
//!     async fn open(&self, database: &ImageDirectory) -> Result<RedbResource, ResourceError> {
//!         RedbResource::open(database.path().join("store.redb"))
//!     }
//!
//!     async fn crash(&self, database: &ImageDirectory) -> Result<(), BoxError> {
//!         Ok(database.crash()?)
//!     }
//!
//!     async fn work(&self, tx: &mut RedbTransaction, item: &str) -> Result<(), ResourceError> {
//!         let count = tx.get_u64_for_update("items", item).await?.unwrap_or(0);
//!         tx.put_u64("items", item, count + 1).await
//!     }
//!
//!     async fn look(&self, tx: &mut RedbTransaction, item: &str) -> Result<u64, ResourceError> {
//!         Ok(tx.get_u64("items", item).await?.unwrap_or(0))
//!     }
//!
//!     async fn lock(&self, tx: &mut RedbTransaction, item: &str) -> Result<Option<u64>, ResourceError> {
//!         Ok(Some(tx.get_u64_for_update("items", item).await?.unwrap_or(0)))
//!     }
//!
//!     async fn effect(&self, store: &RedbResource, item: &str) -> Result<u64, BoxError> {
//!         let row = store.snapshot()?.get("items", item)?;
//!         Ok(row.map_or(Ok([0; 8]), |row| row[..].try_into()).map(u64::from_be_bytes)?)
//!     }
//! }
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! // In a `#[tokio::test]`; here only some of them, for the sake of time.
//! for check in [conformance::Check::LateWorkIsRefused, conformance::Check::CrashAtEveryStep] {
//!     conformance::run_check(&Redb, check).await.assert_passed();
//! }
//! // All of them: conformance::run(&Redb).await.assert_passed();
//! # });
//! ```

mod checks;
mod image;
mod report;
mod trial;

use std::fmt;
use std::future::Future;

use crate::BoxError;
use crate::resource::{ResourceError, ResourceManager};

pub use checks::Check;
pub use image::ImageDirectory;
pub use report::{Entry, Failure, Report, Rule, Verdict};

/// The local transaction of a harness's store.
pub type TransactionOf<H> = <<H as Harness>::Store as ResourceManager>::Transaction;

/// What the kit must know of a store, beside the trait that it implements.
///
/// The kit runs in one task of a tokio runtime with timers, and opens one handle at a time except where a check
/// is about two.
pub trait Harness {
    /// The store under test.
    type Store: ResourceManager;
    /// One database: a directory, a schema on a server. Dropping it may delete it.
    type Database;

    /// What the store promises beside the contract.
    fn claims(&self) -> Claims;

    /// Makes a new, empty database, bound to no coordinator yet. `check` is the name of the check that wants
    /// it, which may become part of a name.
    ///
    /// # Errors
    /// Why it could not be made: the check fails with it.
    fn create(&self, check: &str) -> impl Future<Output = Result<Self::Database, BoxError>>;

    /// Opens the database as a starting process does.
    ///
    /// # Errors
    /// What the store says.
    fn open(&self, database: &Self::Database) -> impl Future<Output = Result<Self::Store, ResourceError>>;

    /// The process that has the database open dies at this instant, as by SIGKILL: what lay in its memory only
    /// is lost, what it handed to the operating system or to the server is not (or only what it synced, where
    /// the harness can play a power failure). Handles and local transactions still live at this moment, and are
    /// dropped next; nothing that they do from now on may reach the database. For files, [`ImageDirectory`]
    /// does that. For a server: kill the sessions.
    ///
    /// # Errors
    /// The harness itself failed: the check fails with it.
    fn crash(&self, database: &Self::Database) -> impl Future<Output = Result<(), BoxError>>;

    /// Arms a crash in the middle of what comes next: as if [`crash`](Self::crash) had been called right after
    /// `write_count` more writes reached the database, 0 being before the next one. The next `crash` then
    /// leaves what that instant left, and disarms it. `None`, the default, means that the harness cannot do that, and skips one
    /// check.
    fn crash_after_writes(&self, database: &Self::Database, write_count: u64) -> Option<Fuse> {
        let _ = (database, write_count);
        None
    }

    /// Does one piece of work to an item, which need not exist before: one more. It must lock the item as
    /// real work does (read for update, then write), so that no concurrent work on the same item is lost.
    ///
    /// # Errors
    /// What the store says: the local transaction is rolled back, or will be when it is dropped.
    fn work(
        &self,
        tx: &mut TransactionOf<Self>,
        item: &str,
    ) -> impl Future<Output = Result<(), ResourceError>>;

    /// How many pieces of work the transaction sees on an item, its own included, by the store's plain read:
    /// the one that takes no lock, if there is one.
    ///
    /// # Errors
    /// What the store says.
    fn look(
        &self,
        tx: &mut TransactionOf<Self>,
        item: &str,
    ) -> impl Future<Output = Result<u64, ResourceError>>;

    /// Locks an item without changing it, and reads it. `None`, the default, if the store cannot.
    ///
    /// # Errors
    /// As for [`work`](Self::work).
    fn lock(
        &self,
        tx: &mut TransactionOf<Self>,
        item: &str,
    ) -> impl Future<Output = Result<Option<u64>, ResourceError>> {
        let _ = (tx, item);
        async { Ok(None) }
    }

    /// How many pieces of work on an item have been committed, as somebody outside every transaction sees it.
    ///
    /// # Errors
    /// It cannot be read: the check fails with it.
    fn effect(&self, store: &Self::Store, item: &str) -> impl Future<Output = Result<u64, BoxError>>;
}

/// What a store promises beside the contract; the kit checks what is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Branches on different items do not wait for each other. Not so where one lock guards the database.
    pub items_are_independent: bool,
    /// Within a transaction, [`Harness::look`] at an item that others changed meanwhile sees what it saw
    /// before.
    pub reads_repeat: bool,
    /// A branch that only [looked](Harness::look) votes read-only. Where this is not claimed it may.
    pub looking_is_read_only: bool,
    /// Who may open a database that is open.
    pub instances: Instances,
}

/// Who may open a database that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instances {
    /// Anybody, as with a server: each instance finishes what another one prepared.
    Many,
    /// Nobody: the second one is refused with [`ResourceError::AlreadyOpen`].
    One,
    /// The harness's database cannot be opened twice, and nothing is checked.
    NotTested,
}

/// Tells whether a crash that was [armed](Harness::crash_after_writes) has come.
pub struct Fuse(Box<dyn Fn() -> bool>);

impl Fuse {
    /// Of something that tells.
    pub fn new(is_burnt: impl Fn() -> bool + 'static) -> Self {
        Self(Box::new(is_burnt))
    }

    /// Whether it has.
    #[must_use]
    pub fn is_burnt(&self) -> bool {
        (self.0)()
    }
}

impl fmt::Debug for Fuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fuse").field(&self.is_burnt()).finish()
    }
}

/// Runs every check, each on a database of its own, in the order of a branch's life.
pub async fn run<H: Harness>(harness: &H) -> Report {
    let mut entries = Vec::new();
    for check in Check::ALL {
        entries.push(run_check(harness, check).await);
    }
    Report::new(entries)
}

/// Runs one check. A panic of the store and a hang are failures, too.
pub async fn run_check<H: Harness>(harness: &H, check: Check) -> Entry {
    Entry {
        check,
        verdict: checks::verdict(harness, check).await,
    }
}
