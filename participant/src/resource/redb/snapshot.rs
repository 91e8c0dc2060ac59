//! Reading committed rows: in the process that has the store open, or from the file of one that is gone.

use std::sync::Arc;

use ::redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle,
};
use bytes::Bytes;
use synod_proto::ids::{BranchId, Gtid, Lineage, ResourceId, UnixMillis};

use super::super::{BranchState, Identity, InDoubtBranch, LowWater, ResourceError};
use super::format::{
    self, FORMAT, IDENTITY, MARKER, Marker, NAME_FORMAT, NAME_LINEAGE, NAME_LOW_WATER, NAME_RESOURCE,
    PREPARED, PreparedRow, RESERVED_PREFIX,
};

type ReadTable = ::redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

/// A row: its key and its value.
pub type Row = (Bytes, Bytes);

/// The most rows that one `scan` returns; `scan_page` reads on.
pub const SCAN_ROWS_MAX: usize = 65_536;

/// The committed state of a store at one instant. Later commits do not show in it, and it blocks none; but
/// the pages that it sees cannot be reused while it lives, so do not keep it.
///
/// Reading is synchronous: from redb's cache, or with a read of the file.
#[derive(Clone)]
pub struct Snapshot {
    tx: Arc<ReadTransaction>,
    /// Of a file that nobody else holds open: redb ends the reading with the database. Dropped after `tx`.
    _database: Option<Arc<Database>>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Snapshot")
    }
}

pub(super) fn failed(error: impl Into<::redb::Error>) -> ResourceError {
    ResourceError::Failed(Arc::new(error.into()))
}

pub(super) fn damaged(error: format::DamagedRow) -> ResourceError {
    ResourceError::Failed(Arc::new(error))
}

/// The first key that does not begin with `prefix`; `None` when there is none.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// The range of the keys that begin with `prefix` and come after `after`.
pub(super) fn prefix_range<'a>(
    prefix: &'a [u8],
    after: Option<&'a [u8]>,
) -> (std::ops::Bound<&'a [u8]>, Option<Vec<u8>>) {
    use std::ops::Bound::{Excluded, Included};
    let start = match after {
        Some(after) if after >= prefix => Excluded(after),
        _ => Included(prefix),
    };
    (start, prefix_end(prefix))
}

impl Snapshot {
    pub(super) fn begin(database: &impl ReadableDatabase) -> Result<Self, ResourceError> {
        Ok(Self {
            tx: Arc::new(database.begin_read().map_err(failed)?),
            _database: None,
        })
    }

    /// A snapshot that keeps its database open.
    pub(super) fn begin_owning(database: Arc<Database>) -> Result<Self, ResourceError> {
        let tx = Self::begin(&*database)?.tx;
        Ok(Self {
            tx,
            _database: Some(database),
        })
    }

    pub(super) fn tx(&self) -> &ReadTransaction {
        &self.tx
    }

    /// The value of a row, or `None`.
    ///
    /// # Errors
    /// The file cannot be read; the table is not one of byte keys and byte values.
    pub fn get(&self, table: &str, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, ResourceError> {
        let Some(table) = self.open(table)? else {
            return Ok(None);
        };
        Ok(table
            .get(key.as_ref())
            .map_err(failed)?
            .map(|value| Bytes::copy_from_slice(value.value())))
    }

    /// All rows of which the key begins with `prefix`, in the order of their keys. An empty prefix reads the
    /// table.
    ///
    /// # Errors
    /// More than [`SCAN_ROWS_MAX`] rows; else as for [`get`](Self::get).
    pub fn scan(&self, table: &str, prefix: impl AsRef<[u8]>) -> Result<Vec<Row>, ResourceError> {
        let rows = self.scan_page(table, prefix, None, SCAN_ROWS_MAX + 1)?;
        if rows.len() > SCAN_ROWS_MAX {
            Err(too_many_rows(table))
        } else {
            Ok(rows)
        }
    }

    /// Up to `count_max` rows of which the key begins with `prefix` and comes after `after`, in the order of
    /// their keys.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub fn scan_page(
        &self,
        table: &str,
        prefix: impl AsRef<[u8]>,
        after: Option<&[u8]>,
        count_max: usize,
    ) -> Result<Vec<Row>, ResourceError> {
        self.rows(table, prefix.as_ref(), after)?
            .take(count_max)
            .collect()
    }

    /// An iterator over the rows of a range, for merging.
    pub(super) fn rows(
        &self,
        table: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> Result<impl Iterator<Item = Result<Row, ResourceError>> + use<>, ResourceError> {
        use std::ops::Bound::{Excluded, Unbounded};
        let (start, end) = prefix_range(prefix, after);
        let end = end.as_deref().map_or(Unbounded, Excluded);
        let range = match self.open(table)? {
            None => None,
            Some(table) => Some(table.range::<&[u8]>((start, end)).map_err(failed)?),
        };
        Ok(range.into_iter().flatten().map(|row| {
            let (key, value) = row.map_err(failed)?;
            Ok((
                Bytes::copy_from_slice(key.value()),
                Bytes::copy_from_slice(value.value()),
            ))
        }))
    }

    /// The user's tables, in the order of their names. A table exists from its first committed row on.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn tables(&self) -> Result<Vec<String>, ResourceError> {
        let mut names: Vec<String> = self
            .tx
            .list_tables()
            .map_err(failed)?
            .map(|table| table.name().to_owned())
            .filter(|name| !name.starts_with(RESERVED_PREFIX))
            .collect();
        names.sort();
        Ok(names)
    }

    /// The database's identity (T11).
    ///
    /// # Errors
    /// The file cannot be read, or no resource manager ever opened it.
    pub fn identity(&self) -> Result<Identity, ResourceError> {
        self.try_identity()?.ok_or_else(|| ResourceError::Invalid {
            text: "the database holds no identity: it was never opened as a resource manager".into(),
        })
    }

    /// `None` for a database that has not been one of Synod's yet.
    pub(super) fn try_identity(&self) -> Result<Option<Identity>, ResourceError> {
        let table = match self.tx.open_table(IDENTITY) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let Some(version) = table.get(NAME_FORMAT).map_err(failed)? else {
            return Ok(None);
        };
        let version = u32::from_be_bytes(format::array(NAME_FORMAT, version.value()).map_err(damaged)?);
        if version != FORMAT {
            return Err(ResourceError::Invalid {
                text: format!(
                    "the database has format {version}, and this program knows {FORMAT} only: upgrade it"
                ),
            });
        }
        let id = |name| match table.get(name).map_err(failed)? {
            Some(value) => format::array::<16>(name, value.value())
                .map(Some)
                .map_err(damaged),
            None => Ok(None),
        };
        let resource = id(NAME_RESOURCE)?.ok_or_else(|| ResourceError::Invalid {
            text: "the database's resource id is missing".into(),
        })?;
        Ok(Some(Identity {
            resource: ResourceId(resource),
            lineage: id(NAME_LINEAGE)?.map(Lineage),
        }))
    }

    /// The low-water mark (T13); 0 when none was set.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn low_water(&self) -> Result<UnixMillis, ResourceError> {
        let table = self.tx.open_table(IDENTITY).map_err(failed)?;
        match table.get(NAME_LOW_WATER).map_err(failed)? {
            None => Ok(UnixMillis(0)),
            Some(value) => Ok(UnixMillis(u64::from_be_bytes(
                format::array(NAME_LOW_WATER, value.value()).map_err(damaged)?,
            ))),
        }
    }

    /// Every prepared branch whose outcome was not applied yet, in the order of their ids.
    ///
    /// # Errors
    /// The file cannot be read, or a row is damaged: never a partial list (traps C11).
    pub fn in_doubt(&self) -> Result<Vec<InDoubtBranch>, ResourceError> {
        let rows = self.prepared()?.into_iter();
        Ok(rows
            .map(|row| InDoubtBranch {
                context: row.context,
                prepared_at: row.prepared_at,
            })
            .collect())
    }

    pub(super) fn prepared(&self) -> Result<Vec<PreparedRow>, ResourceError> {
        let table = self.tx.open_table(PREPARED).map_err(failed)?;
        let rows = table.iter().map_err(failed)?;
        rows.map(|row| {
            let (key, value) = row.map_err(failed)?;
            let branch = format::parse_branch_key("synod:prepared", key.value()).map_err(damaged)?;
            PreparedRow::decode(branch, value.value()).map_err(damaged)
        })
        .collect()
    }

    /// What the rows prove of a branch: prepared, committed, aborted, or nothing.
    ///
    /// # Errors
    /// The file cannot be read, or a row is damaged.
    pub fn status(&self, branch: &BranchId) -> Result<BranchState, ResourceError> {
        let key = format::branch_key(branch);
        let prepared = self.tx.open_table(PREPARED).map_err(failed)?;
        if prepared.get(&key[..]).map_err(failed)?.is_some() {
            return Ok(BranchState::Prepared);
        }
        let markers = self.tx.open_table(MARKER).map_err(failed)?;
        match markers.get(&key[..]).map_err(failed)? {
            None => Ok(BranchState::Unknown),
            Some(marker) => Ok(match Marker::decode(marker.value()).map_err(damaged)? {
                Marker::Committed { .. } => BranchState::Committed,
                Marker::Aborted { .. } => BranchState::Aborted,
            }),
        }
    }

    /// How many marker rows there are: branches that finished and were not [forgotten](LowWater) yet.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn marker_count(&self) -> Result<u64, ResourceError> {
        use ::redb::ReadableTableMetadata;
        self.tx.open_table(MARKER).map_err(failed)?.len().map_err(failed)
    }

    /// Checks that the user's table can be one of ours, if it exists.
    pub(super) fn check_table(&self, table: &str) -> Result<(), ResourceError> {
        self.open(table).map(|_| ())
    }

    fn open(&self, table: &str) -> Result<Option<ReadTable>, ResourceError> {
        match self.tx.open_table(TableDefinition::<&[u8], &[u8]>::new(table)) {
            Ok(table) => Ok(Some(table)),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(TableError::Storage(error)) => Err(failed(error)),
            Err(other) => Err(ResourceError::Invalid {
                text: other.to_string(),
            }),
        }
    }
}

pub(super) fn too_many_rows(table: &str) -> ResourceError {
    ResourceError::Invalid {
        text: format!("`{table}` has more than {SCAN_ROWS_MAX} such rows: read them with scan_page"),
    }
}

/// Whether a marker row may go (T13).
pub(super) fn is_unfinished(low_water: &LowWater, gtid: Gtid) -> bool {
    low_water.unfinished.contains(&gtid)
}
