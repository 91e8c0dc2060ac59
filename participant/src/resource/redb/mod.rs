//! The embedded store: one redb file, no server. The default resource manager.
//!
//! redb has one writer, so a branch does not hold a write transaction open between prepare and commit (traps
//! F1). Its writes are kept in memory under locks on their keys; `prepare` stores them as one durable
//! *intent* row, `commit` applies that row and writes a *marker* row in one more durable commit. Concurrent
//! branches share redb commits: one writer thread takes whatever has queued up.
//!
//! # Isolation
//! Rows are byte keys and byte values in named tables.
//! - A write, and [`get_for_update`](RedbTransaction::get_for_update), take an exclusive lock on the key,
//!   held until the branch's outcome took effect; also over a restart of the process. Waiting is fair, ends
//!   by the lock timeout or the branch's deadline, and a deadlock within the store ends at once, with one
//!   victim. A deadlock across stores ends by the lock timeout.
//! - [`get`](RedbTransaction::get) and [`scan`](RedbTransaction::scan) take no lock and never wait. They read
//!   one snapshot of committed rows, taken at the first of them, merged with the transaction's own writes.
//! - So there are no dirty reads, no unrepeatable reads and **no lost updates**: a key that was read (or
//!   scanned over) without a lock and is locked later must not have changed between, else
//!   [`Conflict`](super::ResourceError::Conflict).
//! - There **is** write skew: two transactions may each read what the other writes, if neither locks what it
//!   reads. And there are **phantoms**: no range locks; a row that another transaction inserts into a scanned
//!   range is not prevented. Lock one agreed key (a parent row) where such a rule must hold.
//! - Until a decided commit was delivered, plain reads see the old rows (T16); `get_for_update` waits.
//!
//! A transaction that only read plainly votes [read-only](synod_proto::session::Vote::ReadOnly); one that
//! locked anything votes to commit (T15).
//!
//! # Durability and failure
//! Every vote and every acknowledgement follows a redb commit with immediate durability and two phases (L8,
//! traps F2, F3). After a failed write or sync the store closes itself and answers
//! [`Failed`](super::ResourceError::Failed) until [`reopen`](RedbResource::reopen) has read everything back
//! from the file (traps F4). Tables under the store are written only through it.
//!
//! # Limits
//! Keys of [`KEY_BYTES_MAX`] bytes, values of [`VALUE_BYTES_MAX`], [`BRANCH_BYTES_MAX`] and
//! [`LOCK_COUNT_MAX`] keys per branch. One process at a time opens the file.

mod file;
mod format;
mod local;
mod locks;
mod memory_disk;
pub(crate) mod messages;
mod rows;
mod snapshot;
mod state;
mod transaction;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::redb::{Database, StorageBackend};
use bytes::Bytes;
use futures::future::BoxFuture;
use synod_proto::ids::{BranchId, Lineage, UnixMillis};
use synod_proto::session::Vote;

use super::{
    BranchContext, BranchState, Effect, Identity, InDoubtBranch, LowWater, Prepared, ResourceError,
    ResourceManager,
};
use file::open_error;
use format::PreparedRow;
use rows::unbound;
use state::{Core, Opener, Stage};
use writer::{Reply, Request, Work, Writer};

pub use file::RedbFile;
pub use local::LocalTransaction;
pub use memory_disk::{MemoryDisk, MemoryDiskBackend, PowerLoss};
pub use snapshot::{Row, SCAN_ROWS_MAX, Snapshot};
pub use transaction::RedbTransaction;

/// The longest table name, in bytes.
pub const TABLE_BYTES_MAX: usize = 64;
/// The longest key, in bytes: keys are kept in memory as locks.
pub const KEY_BYTES_MAX: usize = 2 << 10;
/// The longest value, in bytes: it is written twice, as an intent and as a row.
pub const VALUE_BYTES_MAX: usize = 8 << 20;
/// The most bytes of values that one branch writes: they are one row between prepare and commit.
pub const BRANCH_BYTES_MAX: usize = 16 << 20;
/// The most keys that one branch locks.
pub const LOCK_COUNT_MAX: usize = 16 << 10;

const _: () = assert!(VALUE_BYTES_MAX <= BRANCH_BYTES_MAX);
const _: () = assert!(
    BRANCH_BYTES_MAX + LOCK_COUNT_MAX * (KEY_BYTES_MAX + TABLE_BYTES_MAX + 16) < 64 << 20,
    "a prepared row stays small for redb"
);

/// How to open a store. Every option has a default that is right for most.
#[derive(Clone)]
pub struct RedbOptions {
    lock_timeout: Duration,
    cache_bytes: usize,
    quick_repair: bool,
    clock: Arc<dyn Fn() -> UnixMillis + Send + Sync>,
    timer: Timer,
    random: RandomSource,
    is_inline: bool,
}

type Timer = Arc<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>;
type RandomSource = Arc<dyn Fn(&mut [u8]) -> std::io::Result<()> + Send + Sync>;

impl Default for RedbOptions {
    fn default() -> Self {
        Self {
            lock_timeout: Duration::from_secs(5),
            cache_bytes: 64 << 20,
            quick_repair: true,
            clock: Arc::new(|| {
                let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
            }),
            timer: Arc::new(|length| Box::pin(tokio::time::sleep(length))),
            random: Arc::new(|bytes| {
                getrandom::fill(bytes).map_err(|error| std::io::Error::other(error.to_string()))
            }),
            is_inline: false,
        }
    }
}

impl std::fmt::Debug for RedbOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbOptions")
            .field("lock_timeout", &self.lock_timeout)
            .field("cache_bytes", &self.cache_bytes)
            .field("quick_repair", &self.quick_repair)
            .field("is_inline", &self.is_inline)
            .finish_non_exhaustive()
    }
}

impl RedbOptions {
    /// The longest wait for one lock; 5 s by default. A branch's deadline ends it earlier.
    #[must_use]
    pub fn lock_timeout(mut self, lock_timeout: Duration) -> Self {
        self.lock_timeout = lock_timeout;
        self
    }

    /// The size of redb's page cache in bytes; 64 MiB by default.
    #[must_use]
    pub fn cache_bytes(mut self, cache_bytes: usize) -> Self {
        self.cache_bytes = cache_bytes;
        self
    }

    /// Whether every commit also saves redb's allocator state, so that opening after a kill is immediate; on
    /// by default. Costs a write of about 1/16,000 of the file's size per commit: turn it off for files of
    /// many gigabytes, and opening after a kill reads the whole file (traps F3).
    #[must_use]
    pub fn quick_repair(mut self, quick_repair: bool) -> Self {
        self.quick_repair = quick_repair;
        self
    }

    /// The wall clock that deadlines are compared with; the system's by default.
    #[must_use]
    pub fn clock(mut self, clock: impl Fn() -> UnixMillis + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// How the wait for a lock ends: a future that is over after this time; tokio's timer by default. For
    /// runtimes other than tokio's, and for virtual time.
    #[must_use]
    pub fn timer(
        mut self,
        timer: impl Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        self.timer = Arc::new(timer);
        self
    }

    /// Where the random identity of a new file comes from (T11); the operating system by default. For runs
    /// that must repeat themselves to the byte, and for nothing else: two databases must never share one.
    #[must_use]
    pub fn random(
        mut self,
        random: impl Fn(&mut [u8]) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.random = Arc::new(random);
        self
    }

    /// No threads: every operation is done, synced and answered at the first poll of its future, by whoever
    /// polls it, one after the other; only a wait for a lock stays pending. Needs no tokio runtime if there
    /// is a [timer](Self::timer) of one's own. Blocks on the disk, and no two branches share a sync: for
    /// simulations and tools, not for servers.
    #[must_use]
    pub fn inline(mut self) -> Self {
        self.is_inline = true;
        self
    }

    /// Opens the store in this file, which is made if it does not exist. Blocks while redb repairs a file
    /// whose process was killed.
    ///
    /// # Errors
    /// [`ResourceError::AlreadyOpen`] by another process or handle; [`ResourceError::Open`] when the file
    /// cannot be opened or is not redb's.
    pub fn open(self, path: impl AsRef<Path>) -> Result<RedbResource, ResourceError> {
        let path = path.as_ref().to_owned();
        let cache_bytes = self.cache_bytes;
        self.start(Box::new(move || {
            let mut builder = Database::builder();
            builder.set_cache_size(cache_bytes);
            file::open(&builder, &path)
        }))
    }

    /// Opens the store on a storage of one's own, a simulated disk for example. `backend` is called again by
    /// [`RedbResource::reopen`], and then returns the same storage.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_backend<B: StorageBackend>(
        self,
        backend: impl Fn() -> B + Send + Sync + 'static,
    ) -> Result<RedbResource, ResourceError> {
        let cache_bytes = self.cache_bytes;
        self.start(Box::new(move || {
            let mut builder = Database::builder();
            builder.set_cache_size(cache_bytes);
            builder
                .create_with_backend(backend())
                .map_err(|error| open_error("the storage", error))
        }))
    }

    /// Opens the store in a database that is open already. Whoever else holds it must leave alone the tables
    /// that are used here, and must not keep write transactions open. It cannot be
    /// [reopened](RedbResource::reopen).
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn open_database(self, database: Arc<Database>) -> Result<RedbResource, ResourceError> {
        RedbResource::start(Core::new(self, database, None)?)
    }

    fn start(self, opener: Opener) -> Result<RedbResource, ResourceError> {
        let database = Arc::new(opener()?);
        RedbResource::start(Core::new(self, database, Some(opener))?)
    }
}

/// A redb file as a resource manager. The [module](self) says what it guarantees. Cheap to clone: clones are
/// handles to the same store; the file is closed when the last one, and the last local transaction, is
/// dropped.
#[derive(Clone)]
pub struct RedbResource {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for RedbResource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbResource")
            .field("options", &self.inner.core.options)
            .finish_non_exhaustive()
    }
}

struct Inner {
    core: Arc<Core>,
    writer: Writer,
}

impl Inner {
    /// Hands a request to the writer. It runs to its end even if this future is dropped (traps C13).
    async fn call<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, ResourceError> {
        let (reply, answer) = Reply::new();
        self.writer.take(&self.core, request(reply));
        answer
            .await
            .unwrap_or_else(|_| Err(self.core.state().end_error().unwrap_or(ResourceError::Closed)))
    }

    /// Runs what reads many pages, on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, ResourceError> + Send + 'static,
    ) -> Result<T, ResourceError> {
        if self.core.options.is_inline {
            return read();
        }
        let done = tokio::task::spawn_blocking(read).await;
        done.map_err(|error| ResourceError::Unavailable(Box::new(error)))?
    }
}

impl RedbResource {
    /// Opens the store in this file with default [options](RedbOptions), and makes it if it does not exist.
    ///
    /// # Errors
    /// As for [`RedbOptions::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ResourceError> {
        RedbOptions::default().open(path)
    }

    fn start(core: Core) -> Result<Self, ResourceError> {
        let core = Arc::new(core);
        let writer = Writer::start(&core)?;
        Ok(Self {
            inner: Arc::new(Inner { core, writer }),
        })
    }

    /// Reads the file back after a failed write (traps F4); does nothing to a store that works. Local
    /// transactions from before are rolled back; prepared branches are in doubt again, with their locks.
    ///
    /// # Errors
    /// The file cannot be opened: the store stays failed, and this may be called again.
    pub async fn reopen(&self) -> Result<(), ResourceError> {
        self.inner.call(|reply| Request::Reopen { reply }).await
    }

    /// Finishes what is queued, closes the file, and ends the store: every later call answers
    /// [`ResourceError::Closed`].
    ///
    /// # Errors
    /// It was closed already.
    pub async fn close(&self) -> Result<(), ResourceError> {
        self.inner.call(|reply| Request::Close { reply }).await
    }

    /// The committed rows as of now, outside any transaction.
    ///
    /// # Errors
    /// The store failed or is closed.
    pub fn snapshot(&self) -> Result<Snapshot, ResourceError> {
        self.inner.core.snapshot()
    }

    /// Reads committed rows, on a thread that may block.
    ///
    /// # Errors
    /// What `read` returns; the store failed or is closed.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T, ResourceError> + Send + 'static,
    ) -> Result<T, ResourceError> {
        let snapshot = self.snapshot()?;
        self.inner.read(move || read(&snapshot)).await
    }

    /// Opens a local transaction outside any global one: for loading data, and for what concerns this
    /// database alone. It takes the same locks.
    ///
    /// # Errors
    /// The store failed or is closed.
    pub fn begin_local(&self) -> Result<LocalTransaction, ResourceError> {
        Ok(LocalTransaction(RedbTransaction::begin(
            self.inner.clone(),
            None,
        )?))
    }

    /// Runs `work` in a local transaction and commits it; an error rolls it back. After a deadlock or a lock
    /// timeout it may be called again.
    ///
    /// # Errors
    /// The error of `work`; as for [`LocalTransaction::commit`].
    pub async fn local<T, E: From<ResourceError>>(
        &self,
        work: impl AsyncFnOnce(&mut RedbTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tx = self.begin_local()?;
        let value = work(&mut tx).await?;
        tx.commit().await?;
        Ok(value)
    }

    /// Writes rows of Synod's own that are not a branch's. Durable when it returns; runs to its end even if this future is
    /// dropped.
    pub(crate) async fn work<W: Work>(&self, work: W) -> Result<W::Output, ResourceError> {
        self.inner.call(|reply| Request::work(work, reply)).await
    }

    /// Changes with each commit by which messages became visible.
    pub(crate) fn published(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner.core.published()
    }

    pub(crate) fn try_open_outbox(&self) -> bool {
        self.inner.core.try_open_outbox()
    }

    pub(crate) fn close_outbox(&self) {
        self.inner.core.close_outbox();
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.inner.core.now()
    }

    pub(crate) fn is_same(&self, tx: &RedbTransaction) -> bool {
        tx.is_of(&self.inner)
    }

    /// How many keys are locked now, and how many local transactions wait for one: for metrics.
    #[must_use]
    pub fn lock_counts(&self) -> (usize, usize) {
        self.inner.core.state().lock_counts()
    }
}

impl ResourceManager for RedbResource {
    type Transaction = RedbTransaction;

    async fn begin(&self, context: &BranchContext) -> Result<RedbTransaction, ResourceError> {
        let core = &self.inner.core;
        let now = core.now();
        {
            let state = core.state();
            if let Some(error) = state.end_error() {
                return Err(error);
            }
            match state.identity.as_ref().and_then(|identity| identity.lineage) {
                Some(found) if found == context.lineage => {}
                Some(found) => {
                    return Err(ResourceError::ForeignLineage {
                        expected: context.lineage,
                        found,
                    });
                }
                None => return Err(unbound()),
            }
            // Early, for the caller's sake; what counts is the check in prepare (T13).
            if context.branch.gtid.began_at() < state.low_water {
                return Err(ResourceError::BelowLowWater {
                    mark: state.low_water,
                });
            }
        }
        if context.deadline <= now {
            return Err(ResourceError::DeadlineExceeded);
        }
        RedbTransaction::begin(self.inner.clone(), Some(context.clone()))
    }

    async fn prepare(&self, context: &BranchContext, tx: RedbTransaction) -> Result<Prepared, ResourceError> {
        if !tx.is_of(&self.inner) || tx.context() != Some(context) {
            return Err(ResourceError::Invalid {
                text: "the local transaction is not this branch's".into(),
            });
        }
        tx.check_votable()?;
        if tx.is_read_only() {
            return Ok(Prepared {
                vote: Vote::ReadOnly,
                digest: 0,
                database_transaction: Bytes::new(),
            });
        }
        let (owner, intents) = tx.hand_over();
        let row = PreparedRow {
            context: context.clone(),
            prepared_at: self.inner.core.now(),
            intents,
        };
        self.inner
            .call(|reply| Request::Prepare { owner, row, reply })
            .await
    }

    async fn commit(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        self.inner
            .call(|reply| Request::Commit {
                branch: *branch,
                reply,
            })
            .await
    }

    async fn abort(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        self.inner
            .call(|reply| Request::Abort {
                branch: *branch,
                reply,
            })
            .await
    }

    async fn status(&self, branch: &BranchId) -> Result<BranchState, ResourceError> {
        if let Some(Stage::Working(_)) = self.inner.core.state().branches.get(branch) {
            return Ok(BranchState::Working);
        }
        self.snapshot()?.status(branch)
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubtBranch>, ResourceError> {
        let state = self.inner.core.state();
        if let Some(error) = state.end_error() {
            return Err(error);
        }
        let prepared = state.branches.values().filter_map(|stage| match stage {
            Stage::Working(_) => None,
            Stage::Prepared {
                context, prepared_at, ..
            } => Some(InDoubtBranch {
                context: context.clone(),
                prepared_at: *prepared_at,
            }),
        });
        Ok(prepared.collect())
    }

    async fn identity(&self, bind: Option<Lineage>) -> Result<Identity, ResourceError> {
        let identity = {
            let state = self.inner.core.state();
            match (state.end_error(), &state.identity) {
                (None, Some(identity)) => identity.clone(),
                (error, _) => return Err(error.unwrap_or(ResourceError::Closed)),
            }
        };
        match (bind, identity.lineage) {
            (None, _) => Ok(identity),
            (Some(lineage), Some(found)) if lineage == found => Ok(identity),
            (Some(lineage), _) => self.inner.call(|reply| Request::Bind { lineage, reply }).await,
        }
    }

    async fn forget(&self, low_water: &LowWater) -> Result<u64, ResourceError> {
        self.inner
            .call(|reply| Request::Forget {
                low_water: low_water.clone(),
                reply,
            })
            .await
    }
}
