//! A local transaction's locks, and its end: by its own error, by an abort from outside, or by being handed
//! to the writer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use synod_proto::ids::{BranchId, UnixMillis};

use super::super::super::{BranchContext, ResourceError};
use super::super::format::Intent;
use super::super::locks::{LockKey, Owner, Requested};
use super::super::snapshot::Snapshot;
use super::super::state::Core;
use super::super::{BRANCH_BYTES_MAX, Inner, LOCK_COUNT_MAX};
use super::{RedbTransaction, lock_key};

impl RedbTransaction {
    /// Locks a key, or says why not; then the transaction is rolled back.
    pub(super) async fn lock(&mut self, table: &str, key: &[u8]) -> Result<LockKey, ResourceError> {
        self.check_open()?;
        let key = lock_key(table, key).map_err(|error| self.end(error))?;
        self.lock_checked(key).await
    }

    async fn lock_checked(&mut self, key: LockKey) -> Result<LockKey, ResourceError> {
        match self.try_lock(key).await {
            Ok(key) => Ok(key),
            Err(error) => Err(self.end(error)),
        }
    }

    /// Locks a row of one of Synod's own tables, and reads its latest committed value or what this transaction wrote.
    pub(crate) async fn lock_own(&mut self, table: &str, key: &[u8]) -> Result<Option<Bytes>, ResourceError> {
        self.check_open()?;
        let key = LockKey {
            table: table.into(),
            key: Bytes::copy_from_slice(key),
        };
        let key = self.lock_checked(key).await?;
        match &self.intents[&key] {
            Intent::Put(value) => Ok(Some(value.clone())),
            Intent::Delete => Ok(None),
            Intent::Lock => self.core().snapshot()?.get(table, &key.key),
        }
    }

    /// Writes a row of one of Synod's own tables.
    pub(crate) async fn put_own(
        &mut self,
        table: &str,
        key: &[u8],
        value: Bytes,
    ) -> Result<(), ResourceError> {
        self.lock_own(table, key).await?;
        let key = LockKey {
            table: table.into(),
            key: Bytes::copy_from_slice(key),
        };
        self.write(key, Intent::Put(value))
    }

    /// The latest committed rows, whatever this transaction has read before.
    pub(crate) fn latest(&self) -> Result<Snapshot, ResourceError> {
        self.core().snapshot()
    }

    /// By the database's clock.
    pub(crate) fn now(&self) -> UnixMillis {
        self.core().now()
    }

    async fn try_lock(&mut self, key: LockKey) -> Result<LockKey, ResourceError> {
        let table = &*key.table.clone();
        if self.intents.contains_key(&key) {
            return Ok(key);
        }
        if self.intents.len() >= LOCK_COUNT_MAX {
            return Err(ResourceError::Invalid {
                text: format!("a branch locks at most {LOCK_COUNT_MAX} rows"),
            });
        }
        if !self.checked_tables.contains(&key.table) {
            self.core().snapshot()?.check_table(table)?;
            self.checked_tables.insert(key.table.clone());
        }
        let patience = self.patience()?;
        let (requested, woken) = {
            let mut state = self.core().state();
            if !state.is_active(self.owner) {
                drop(state);
                return Err(self.end_error());
            }
            state.request_lock(self.owner, &key)
        };
        match (requested, woken) {
            (Requested::Queued, Some(woken)) => self.wait(&key, woken, patience).await?,
            (Requested::Deadlock, _) => {
                return Err(ResourceError::Deadlock {
                    table: table.to_owned(),
                    key: key.display_key(),
                });
            }
            (Requested::OwnBranch(holder), _) => {
                return Err(ResourceError::OwnBranch {
                    table: table.to_owned(),
                    key: key.display_key(),
                    holder,
                });
            }
            _ => {}
        }
        self.check_unchanged(&key)?;
        self.intents.insert(key.clone(), Intent::Lock);
        Ok(key)
    }

    async fn wait(
        &self,
        key: &LockKey,
        woken: tokio::sync::oneshot::Receiver<()>,
        patience: Duration,
    ) -> Result<(), ResourceError> {
        // Leaves the queue also when this future is dropped.
        let waiting = Waiting {
            core: self.core(),
            owner: self.owner,
        };
        match select(woken, (self.core().options.timer)(patience)).await {
            Either::Left((Ok(()), _)) => Ok(()),
            Either::Left((Err(_), _)) => Err(self.end_error()),
            Either::Right(_) if !waiting.withdraw() => Ok(()),
            Either::Right(_) if patience < self.core().options.lock_timeout => {
                Err(ResourceError::DeadlineExceeded)
            }
            Either::Right(_) => Err(ResourceError::LockTimeout {
                table: key.table.to_string(),
                key: key.display_key(),
                waited: patience,
            }),
        }
    }

    /// What was read before it was locked must be what it is now: else an update in between would be lost.
    fn check_unchanged(&self, key: &LockKey) -> Result<(), ResourceError> {
        let Some(snapshot) = &self.snapshot else {
            return Ok(());
        };
        let was_read = self.read_keys.contains(key)
            || self
                .read_prefixes
                .iter()
                .any(|prefix| prefix.table == key.table && key.key.starts_with(&prefix.key));
        if was_read
            && snapshot.get(&key.table, &key.key)? != self.core().snapshot()?.get(&key.table, &key.key)?
        {
            return Err(ResourceError::Conflict {
                table: key.table.to_string(),
                key: key.display_key(),
            });
        }
        Ok(())
    }

    pub(super) fn write(&mut self, key: LockKey, intent: Intent) -> Result<(), ResourceError> {
        let byte_count = |intent: &Intent| {
            if let Intent::Put(value) = intent {
                value.len()
            } else {
                0
            }
        };
        let bytes = self.byte_count - byte_count(&self.intents[&key]) + byte_count(&intent);
        if bytes > BRANCH_BYTES_MAX {
            let what = "values that one branch writes";
            return Err(self.end(ResourceError::TooLarge {
                what,
                bytes,
                bytes_max: BRANCH_BYTES_MAX,
            }));
        }
        self.byte_count = bytes;
        self.intents.insert(key, intent);
        Ok(())
    }

    /// How long a lock may be waited for from now on.
    fn patience(&self) -> Result<Duration, ResourceError> {
        let core = self.core();
        let Some(context) = &self.branch else {
            return Ok(core.options.lock_timeout);
        };
        let left_ms = context.deadline.0.saturating_sub(core.now().0);
        if left_ms == 0 {
            return Err(ResourceError::DeadlineExceeded);
        }
        Ok(core.options.lock_timeout.min(Duration::from_millis(left_ms)))
    }

    pub(super) fn snapshot(&mut self) -> Result<&Snapshot, ResourceError> {
        if self.snapshot.is_none() {
            self.snapshot = Some(self.core().snapshot()?);
        }
        Ok(self.snapshot.as_ref().expect("just set"))
    }

    pub(super) fn check_open(&self) -> Result<(), ResourceError> {
        match &self.ended {
            None => Ok(()),
            Some(cause) => Err(ResourceError::RolledBack { cause: cause.clone() }),
        }
    }

    /// Rolls back, at once: the locks pass on.
    pub(super) fn end(&mut self, error: ResourceError) -> ResourceError {
        self.ended = Some(error.to_string());
        self.roll_back();
        error
    }

    pub(super) fn roll_back(&mut self) {
        self.intents.clear();
        self.core()
            .state()
            .roll_back(self.owner, self.branch_id().as_ref());
    }

    /// Why the local transaction ended without its own doing.
    fn end_error(&self) -> ResourceError {
        let error = self.core().state().end_error();
        match (error, self.branch_id()) {
            (Some(error), _) => error,
            (None, Some(branch)) => ResourceError::Aborted { branch },
            // The store failed and was reopened meanwhile.
            (None, None) => ResourceError::RolledBack {
                cause: "the store was reopened".into(),
            },
        }
    }

    pub(super) fn branch_id(&self) -> Option<BranchId> {
        self.branch.as_ref().map(|context| context.branch)
    }

    pub(super) fn core(&self) -> &Core {
        &self.store.core
    }

    pub(in super::super) fn store(&self) -> Arc<Inner> {
        self.store.clone()
    }

    pub(in super::super) fn is_of(&self, store: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.store, store)
    }

    pub(in super::super) fn context(&self) -> Option<&BranchContext> {
        self.branch.as_ref()
    }

    /// Checks what a vote or a local commit needs. An error leaves the transaction to be dropped, and so
    /// rolled back.
    pub(in super::super) fn check_votable(&self) -> Result<(), ResourceError> {
        self.check_open()?;
        self.patience()?;
        if self.core().state().is_active(self.owner) {
            Ok(())
        } else {
            Err(self.end_error())
        }
    }

    /// Neither written nor locked anything (T15).
    pub(in super::super) fn is_read_only(&self) -> bool {
        self.intents.is_empty()
    }

    /// Gives the work and the duty to end the owner to the writer.
    pub(in super::super) fn hand_over(mut self) -> (Owner, Vec<(LockKey, Intent)>) {
        self.is_handed_over = true;
        (
            self.owner,
            std::mem::take(&mut self.intents).into_iter().collect(),
        )
    }
}

/// A place in a lock's queue.
struct Waiting<'a> {
    core: &'a Core,
    owner: Owner,
}

impl Waiting<'_> {
    /// `false` if the lock was granted meanwhile.
    fn withdraw(&self) -> bool {
        self.core.state().withdraw(self.owner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}
