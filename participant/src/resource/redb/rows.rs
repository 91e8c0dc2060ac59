//! What the writer does to the rows, request by request, within one redb transaction.

use ::redb::{Database, ReadableTable, Table, TableDefinition, WriteTransaction};
use bytes::Bytes;
use synod_proto::ids::{BranchId, Lineage, UnixMillis};
use synod_proto::planted;
use synod_proto::session::Vote;

use super::super::{Effect, Identity, LowWater, Prepared, ResourceError};
use super::RedbOptions;
use super::format::{
    self, IDENTITY, Intent, MARKER, Marker, NAME_LINEAGE, NAME_LOW_WATER, PREPARED, PreparedRow,
};
use super::locks::{LockKey, Owner};
use super::messages::{PUBLISH_TABLE, publish_row};
use super::snapshot::is_unfinished;
use super::state::{Core, Stage};
use super::writer::Job;

/// The most marker rows that one `forget` deletes: the next one goes on, and others get their turn between.
const FORGET_ROWS_MAX: usize = 10_000;

/// What ends the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error(transparent)]
    Redb(#[from] ::redb::Error),
    #[error(transparent)]
    Damaged(#[from] format::DamagedRow),
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<::redb::$error> for WriteError {
            fn from(error: ::redb::$error) -> Self {
                Self::Redb(error.into())
            }
        }
    )*};
}
from_redb!(StorageError, TableError, TransactionError, CommitError);

impl RedbOptions {
    /// A write transaction that is durable when its commit returns (L8, traps F2), and never half there
    /// (traps F3).
    pub(super) fn begin_write(&self, database: &Database) -> Result<WriteTransaction, ::redb::Error> {
        let mut tx = database.begin_write()?;
        tx.set_durability(if planted!(StoreAnswersBeforeSync) {
            ::redb::Durability::None
        } else {
            ::redb::Durability::Immediate
        })?;
        tx.set_two_phase_commit(true);
        tx.set_quick_repair(self.quick_repair);
        Ok(tx)
    }
}

type ByteRows<'tx> = Table<'tx, &'static [u8], &'static [u8]>;

/// The rows during one batch. Every method checks first and changes then: a refused request has changed
/// nothing.
pub(super) struct Rows<'tx> {
    core: &'tx Core,
    tx: &'tx WriteTransaction,
    identity: Table<'tx, &'static str, &'static [u8]>,
    prepared: ByteRows<'tx>,
    marker: ByteRows<'tx>,
    now: UnixMillis,
    pub(super) is_dirty: bool,
    /// A message has become visible.
    pub(super) has_published: bool,
}

impl<'tx> Rows<'tx> {
    pub(super) fn open(core: &'tx Core, tx: &'tx WriteTransaction) -> Result<Self, WriteError> {
        Ok(Self {
            core,
            tx,
            identity: tx.open_table(IDENTITY)?,
            prepared: tx.open_table(PREPARED)?,
            marker: tx.open_table(MARKER)?,
            now: core.now(),
            is_dirty: false,
            has_published: false,
        })
    }

    pub(super) fn prepare(
        &mut self,
        owner: Owner,
        row: &PreparedRow,
    ) -> Result<Result<Prepared, ResourceError>, WriteError> {
        let branch = row.context.branch;
        // T13: in the branch's own transaction, where no `forget` can come between the check and the row.
        let mark = self.low_water()?;
        if branch.gtid.began_at() < mark {
            return Ok(Err(ResourceError::BelowLowWater { mark }));
        }
        match self.lineage()? {
            Some(found) if found == row.context.lineage => {}
            Some(found) => {
                return Ok(Err(ResourceError::ForeignLineage {
                    expected: row.context.lineage,
                    found,
                }));
            }
            None => return Ok(Err(unbound())),
        }
        match self.marker(&branch)? {
            // Traps C3: the abort came first, earlier in this very batch perhaps.
            Some(Marker::Aborted { .. }) if planted!(LateWorkPrepared) => {}
            Some(Marker::Aborted { .. }) => return Ok(Err(ResourceError::Aborted { branch })),
            // T2: its effect is there; a repeated commit of this second row would add to it.
            Some(Marker::Committed { .. }) => {
                return Ok(Err(ResourceError::Invalid {
                    text: format!("branch {branch} has committed already: an execution id runs once"),
                }));
            }
            None => {}
        }
        if !self.core.state().is_active(owner) {
            return Ok(Err(ResourceError::Aborted { branch }));
        }
        let (bytes, digest) = row.encode();
        self.prepared
            .insert(&format::branch_key(&branch)[..], &bytes[..])?;
        self.is_dirty = true;
        Ok(Ok(Prepared {
            vote: Vote::Commit,
            digest,
            database_transaction: Bytes::new(),
        }))
    }

    pub(super) fn commit(&mut self, branch: &BranchId) -> Result<Result<Effect, ResourceError>, WriteError> {
        let key = format::branch_key(branch);
        let Some(row) = self.take_prepared(branch)? else {
            return self.commit_without_row(branch);
        };
        self.apply(&row.intents)?;
        // The proof is in the same local transaction as the effect (traps C4, F5).
        if !planted!(ProofNotWritten) {
            self.marker
                .insert(&key[..], &Marker::Committed { at: self.now }.encode()[..])?;
        }
        self.is_dirty = true;
        Ok(Ok(Effect::Applied))
    }

    /// No such prepared branch: that alone proves nothing (traps C5); the marker row does.
    fn commit_without_row(&self, branch: &BranchId) -> Result<Result<Effect, ResourceError>, WriteError> {
        let detail = match self.marker(branch)? {
            Some(Marker::Committed { .. }) => return Ok(Ok(Effect::AlreadyApplied)),
            Some(Marker::Aborted { at }) => {
                format!("the branch was rolled back at {} ms since 1970", at.0)
            }
            None if matches!(self.core.state().branches.get(branch), Some(Stage::Working(_))) => {
                return Ok(Err(ResourceError::Busy { branch: *branch }));
            }
            None if branch.gtid.began_at() < self.low_water()? => {
                "neither prepared nor marked; its marker row may have been deleted, below the low-water mark"
                    .into()
            }
            None => "neither prepared nor marked as committed in this database".into(),
        };
        Ok(Ok(Effect::Unknown { detail }))
    }

    pub(super) fn abort(&mut self, branch: &BranchId) -> Result<Result<Effect, ResourceError>, WriteError> {
        let was_prepared = self.take_prepared(branch)?.is_some();
        if !was_prepared {
            match self.marker(branch)? {
                Some(Marker::Aborted { .. }) => return Ok(Ok(Effect::AlreadyApplied)),
                Some(Marker::Committed { at }) => {
                    let detail = format!("the branch was committed at {} ms since 1970", at.0);
                    return Ok(Ok(Effect::Unknown { detail }));
                }
                // Below the mark no work begins any more, so that nothing is left to be prevented.
                None if branch.gtid.began_at() < self.low_water()? => return Ok(Ok(Effect::AlreadyApplied)),
                None => {}
            }
        }
        // Also for a branch that never was here (an *empty abort*): the row refuses a late prepare (traps
        // C3).
        self.marker.insert(
            &format::branch_key(branch)[..],
            &Marker::Aborted { at: self.now }.encode()[..],
        )?;
        self.is_dirty = true;
        Ok(Ok(Effect::Applied))
    }

    pub(super) fn local(
        &mut self,
        owner: Owner,
        intents: &[(LockKey, Intent)],
    ) -> Result<Result<(), ResourceError>, WriteError> {
        if !self.core.state().is_active(owner) {
            return Ok(Err(ResourceError::Closed));
        }
        self.apply(intents)?;
        self.is_dirty = true;
        Ok(Ok(()))
    }

    pub(super) fn bind(&mut self, lineage: Lineage) -> Result<Result<Identity, ResourceError>, WriteError> {
        let identity = self
            .core
            .state()
            .identity
            .clone()
            .expect("an open store has an identity");
        match self.lineage()? {
            Some(found) if found != lineage => {
                return Ok(Err(ResourceError::ForeignLineage {
                    expected: lineage,
                    found,
                }));
            }
            Some(_) => {}
            None => {
                self.identity.insert(NAME_LINEAGE, &lineage.0[..])?;
                self.is_dirty = true;
            }
        }
        Ok(Ok(Identity {
            lineage: Some(lineage),
            ..identity
        }))
    }

    pub(super) fn forget(&mut self, low_water: &LowWater) -> Result<u64, WriteError> {
        if low_water.mark > self.low_water()? {
            self.identity
                .insert(NAME_LOW_WATER, &low_water.mark.0.to_be_bytes()[..])?;
            self.is_dirty = true;
        }
        let end = format::mark_key(low_water.mark);
        let mut deleted = Vec::new();
        for row in self.marker.range::<&[u8]>(..&end[..])? {
            if deleted.len() == FORGET_ROWS_MAX {
                break;
            }
            let branch = format::parse_branch_key("synod:marker", row?.0.value())?;
            if !is_unfinished(low_water, branch.gtid) {
                deleted.push(branch);
            }
        }
        for branch in &deleted {
            self.marker.remove(&format::branch_key(branch)[..])?;
            self.is_dirty = true;
        }
        Ok(deleted.len() as u64)
    }

    fn apply(&mut self, intents: &[(LockKey, Intent)]) -> Result<(), WriteError> {
        for of_table in intents.chunk_by(|(a, _), (b, _)| a.table == b.table) {
            if &*of_table[0].0.table == PUBLISH_TABLE {
                for (_, intent) in of_table {
                    if let Intent::Put(message) = intent {
                        publish_row(self.tx, message, self.now)?;
                        self.has_published = true;
                    }
                }
                continue;
            }
            if of_table.iter().all(|(_, intent)| *intent == Intent::Lock) {
                continue;
            }
            let mut table = self
                .tx
                .open_table(TableDefinition::<&[u8], &[u8]>::new(&of_table[0].0.table))?;
            for (key, intent) in of_table {
                match intent {
                    Intent::Lock => {}
                    Intent::Put(value) => drop(table.insert(&key.key[..], &value[..])?),
                    Intent::Delete => drop(table.remove(&key.key[..])?),
                }
            }
        }
        Ok(())
    }

    /// Anything else that is written to rows of Synod's own.
    pub(super) fn work(&mut self, job: &mut dyn Job) -> Result<(), WriteError> {
        self.is_dirty |= job.apply(self.tx, self.now)?;
        Ok(())
    }

    fn take_prepared(&mut self, branch: &BranchId) -> Result<Option<PreparedRow>, WriteError> {
        match self.prepared.remove(&format::branch_key(branch)[..])? {
            None => Ok(None),
            Some(row) => Ok(Some(PreparedRow::decode(*branch, row.value())?)),
        }
    }

    fn marker(&self, branch: &BranchId) -> Result<Option<Marker>, WriteError> {
        match self.marker.get(&format::branch_key(branch)[..])? {
            None => Ok(None),
            Some(marker) => Ok(Some(Marker::decode(marker.value())?)),
        }
    }

    fn low_water(&self) -> Result<UnixMillis, WriteError> {
        match self.identity.get(NAME_LOW_WATER)? {
            None => Ok(UnixMillis(0)),
            Some(value) => Ok(UnixMillis(u64::from_be_bytes(format::array(
                NAME_LOW_WATER,
                value.value(),
            )?))),
        }
    }

    fn lineage(&self) -> Result<Option<Lineage>, WriteError> {
        match self.identity.get(NAME_LINEAGE)? {
            None => Ok(None),
            Some(value) => Ok(Some(Lineage(format::array(NAME_LINEAGE, value.value())?))),
        }
    }
}

pub(super) fn unbound() -> ResourceError {
    ResourceError::Invalid {
        text: "the database is not bound to a coordinator yet: call identity(Some(lineage)) first".into(),
    }
}
