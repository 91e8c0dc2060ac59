//! What the process knows of an open store besides its rows: locks, open local transactions, prepared
//! branches. Everything here that matters after a crash is derived from the rows when the store opens.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use ::redb::Database;
use synod_proto::ids::{BranchId, ResourceId, UnixMillis};
use tokio::sync::{oneshot, watch};

use super::super::{BranchContext, Identity, ResourceError};
use super::RedbOptions;
use super::format::{FORMAT, IDENTITY, MARKER, NAME_FORMAT, NAME_RESOURCE, PREPARED};
use super::locks::{LockKey, Locks, Owner, Requested};
use super::snapshot::{Snapshot, failed};

/// How far a branch is that is not over.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// Its local transaction is open, or its prepare is queued.
    Working(Owner),
    Prepared {
        owner: Owner,
        context: BranchContext,
        prepared_at: UnixMillis,
    },
}

pub(super) type Opener = Box<dyn Fn() -> Result<Database, ResourceError> + Send + Sync>;

/// Shared by the handles, the local transactions and the writer.
pub(super) struct Core {
    pub(super) options: RedbOptions,
    opener: Option<Opener>,
    state: Mutex<State>,
    /// Counts the commits by which messages became visible.
    published: watch::Sender<u64>,
    /// Somebody serves this store's outbox.
    is_outbox_open: AtomicBool,
}

#[derive(Default)]
pub(super) struct State {
    /// `None` once the store failed or was closed.
    database: Option<Arc<Database>>,
    failure: Option<Arc<dyn Error + Send + Sync>>,
    locks: Locks,
    /// Owners in a queue of `locks`, and how to wake them. Dropping a sender says that the transaction is
    /// over.
    wakers: BTreeMap<Owner, oneshot::Sender<()>>,
    /// Local transactions that may still be prepared or committed.
    active: BTreeSet<Owner>,
    pub(super) branches: BTreeMap<BranchId, Stage>,
    pub(super) identity: Option<Identity>,
    pub(super) low_water: UnixMillis,
    owner_count: u64,
}

impl Core {
    pub(super) fn new(
        options: RedbOptions,
        database: Arc<Database>,
        opener: Option<Opener>,
    ) -> Result<Self, ResourceError> {
        let state = State::load(database, &options, 0)?;
        Ok(Self {
            options,
            opener,
            state: Mutex::new(state),
            published: watch::Sender::new(0),
            is_outbox_open: AtomicBool::new(false),
        })
    }

    /// The state. The guard must not be held across anything that blocks: it is taken on every operation.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code panics while it holds the state")
    }

    pub(super) fn tell_published(&self) {
        self.published.send_modify(|count| *count += 1);
    }

    pub(super) fn published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// `false` if somebody has it open.
    pub(super) fn try_open_outbox(&self) -> bool {
        !self.is_outbox_open.swap(true, Ordering::AcqRel)
    }

    pub(super) fn close_outbox(&self) {
        self.is_outbox_open.store(false, Ordering::Release);
    }

    pub(super) fn now(&self) -> UnixMillis {
        (self.options.clock)()
    }

    pub(super) fn snapshot(&self) -> Result<Snapshot, ResourceError> {
        let database = self.state().database()?;
        // The store may fail while this reads: then the cause is what the caller must hear.
        Snapshot::begin(&*database).map_err(|error| self.state().end_error().unwrap_or(error))
    }

    /// Closes the store after an I/O error (traps F4): nothing that is in memory can be trusted any more.
    pub(super) fn fail(&self, error: Arc<dyn Error + Send + Sync>) {
        let mut state = self.state();
        state.failure = Some(error);
        let database = state.close();
        drop(state);
        // Closing flushes, and may block.
        drop(database);
    }

    /// Ends the store for good.
    pub(super) fn close(&self) {
        let database = self.state().close();
        drop(database);
    }

    /// Reads everything back from the file after a failure. Called by the writer only, so that nothing runs
    /// beside it.
    pub(super) fn reopen(&self) -> Result<(), ResourceError> {
        let owner_count = {
            let state = self.state();
            if state.database.is_some() {
                return Ok(());
            }
            if state.failure.is_none() {
                return Err(ResourceError::Closed);
            }
            state.owner_count
        };
        let opener = self.opener.as_ref().ok_or_else(|| ResourceError::Invalid {
            text: "a store over a database that was handed in cannot reopen it: open it anew".into(),
        })?;
        let state = State::load(Arc::new(opener()?), &self.options, owner_count)?;
        *self.state() = state;
        Ok(())
    }
}

impl State {
    /// Reads the file, and makes its tables when it is new.
    fn load(database: Arc<Database>, options: &RedbOptions, owner_count: u64) -> Result<Self, ResourceError> {
        let mut snapshot = Snapshot::begin(&*database)?;
        if snapshot.try_identity()?.is_none() {
            migrate(&database, options)?;
            snapshot = Snapshot::begin(&*database)?;
        }
        let mut state = Self {
            identity: Some(snapshot.identity()?),
            low_water: snapshot.low_water()?,
            // Counted on over a reopening: an owner from before it must never pass for one of after it.
            owner_count,
            ..Self::default()
        };
        for row in snapshot.prepared()? {
            let owner = state.next_owner();
            let branch = row.context.branch;
            state.locks.enlist(owner, branch);
            for (key, _) in &row.intents {
                if state.locks.request(owner, key) != Requested::Granted {
                    return Err(ResourceError::Invalid {
                        text: format!(
                            "two prepared branches lock `{}`/{}: the file is damaged",
                            key.table,
                            key.display_key()
                        ),
                    });
                }
            }
            state.branches.insert(
                branch,
                Stage::Prepared {
                    owner,
                    context: row.context,
                    prepared_at: row.prepared_at,
                },
            );
        }
        state.database = Some(database);
        Ok(state)
    }

    pub(super) fn database(&self) -> Result<Arc<Database>, ResourceError> {
        self.database
            .clone()
            .ok_or_else(|| self.end_error().unwrap_or(ResourceError::Closed))
    }

    /// Why the store takes no more calls, if so.
    pub(super) fn end_error(&self) -> Option<ResourceError> {
        match (&self.database, &self.failure) {
            (Some(_), _) => None,
            (None, Some(failure)) => Some(ResourceError::Failed(failure.clone())),
            (None, None) => Some(ResourceError::Closed),
        }
    }

    fn close(&mut self) -> Option<Arc<Database>> {
        self.wakers.clear();
        self.active.clear();
        self.branches.clear();
        self.locks = Locks::default();
        self.database.take()
    }

    fn next_owner(&mut self) -> Owner {
        self.owner_count += 1;
        Owner(self.owner_count)
    }

    /// Opens a local transaction, for a branch or for none.
    pub(super) fn begin(&mut self, branch: Option<BranchId>) -> Result<Owner, ResourceError> {
        self.database()?;
        let owner = self.next_owner();
        if let Some(branch) = branch {
            if self.branches.contains_key(&branch) {
                return Err(ResourceError::Invalid {
                    text: format!("branch {branch} was begun already: an execution id runs once"),
                });
            }
            self.branches.insert(branch, Stage::Working(owner));
            self.locks.enlist(owner, branch);
        }
        self.active.insert(owner);
        Ok(owner)
    }

    /// Whether the local transaction has not been ended by an abort or a failure.
    pub(super) fn is_active(&self, owner: Owner) -> bool {
        self.active.contains(&owner)
    }

    /// Asks for a lock; `Queued` comes with the receiver to wait on.
    pub(super) fn request_lock(
        &mut self,
        owner: Owner,
        key: &LockKey,
    ) -> (Requested, Option<oneshot::Receiver<()>>) {
        let requested = self.locks.request(owner, key);
        if requested != Requested::Queued {
            return (requested, None);
        }
        let (waker, woken) = oneshot::channel();
        self.wakers.insert(owner, waker);
        (requested, Some(woken))
    }

    /// Stops waiting. `false` if the owner was granted the lock meanwhile.
    pub(super) fn withdraw(&mut self, owner: Owner) -> bool {
        self.wakers.remove(&owner);
        self.locks.withdraw(owner)
    }

    /// Ends a local transaction or a prepared branch: its locks go to those who wait.
    pub(super) fn release(&mut self, owner: Owner) {
        self.active.remove(&owner);
        self.wakers.remove(&owner);
        for granted in self.locks.release(owner) {
            if let Some(waker) = self.wakers.remove(&granted) {
                // An error means that the waiter was just cancelled; its transaction holds the lock until it
                // ends.
                let _ = waker.send(());
            }
        }
    }

    /// Rolls a working branch back.
    pub(super) fn roll_back(&mut self, owner: Owner, branch: Option<&BranchId>) {
        if let Some(branch) = branch
            && matches!(self.branches.get(branch), Some(Stage::Working(working)) if *working == owner)
        {
            self.branches.remove(branch);
        }
        self.release(owner);
    }

    /// The branch is durable: its owner keeps the locks, but takes no more work.
    pub(super) fn on_prepared(&mut self, owner: Owner, context: BranchContext, prepared_at: UnixMillis) {
        self.active.remove(&owner);
        self.branches.insert(
            context.branch,
            Stage::Prepared {
                owner,
                context,
                prepared_at,
            },
        );
    }

    /// The branch is over.
    pub(super) fn on_finished(&mut self, branch: &BranchId) {
        if let Some(Stage::Working(owner) | Stage::Prepared { owner, .. }) = self.branches.remove(branch) {
            self.release(owner);
        }
    }

    /// How many locks are held and how many transactions wait for one.
    pub(super) fn lock_counts(&self) -> (usize, usize) {
        self.locks.counts()
    }
}

/// Makes the tables and the identity (T11). The id is random; a copied file keeps it, which the lineage
/// guards against.
fn migrate(database: &Database, options: &RedbOptions) -> Result<(), ResourceError> {
    let mut resource = [0; 16];
    (options.random)(&mut resource).map_err(|error| ResourceError::Unavailable(Box::new(error)))?;
    let resource = ResourceId(resource);
    let tx = options
        .begin_write(database)
        .map_err(|error| ResourceError::Failed(Arc::new(error)))?;
    {
        let mut identity = tx.open_table(IDENTITY).map_err(failed)?;
        identity
            .insert(NAME_FORMAT, &FORMAT.to_be_bytes()[..])
            .map_err(failed)?;
        identity.insert(NAME_RESOURCE, &resource.0[..]).map_err(failed)?;
        tx.open_table(PREPARED).map_err(failed)?;
        tx.open_table(MARKER).map_err(failed)?;
    }
    tx.commit().map_err(failed)
}
