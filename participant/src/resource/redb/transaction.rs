//! The local transaction that the user works with: reads of a snapshot, writes kept in memory under key locks
//! until prepare.

mod locking;

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::sync::Arc;

use bytes::Bytes;

use super::super::{BranchContext, ResourceError};
use super::format::{Intent, RESERVED_PREFIX};
use super::locks::{LockKey, Owner};
use super::snapshot::{Row, SCAN_ROWS_MAX, Snapshot, prefix_range, too_many_rows};
use super::{Inner, KEY_BYTES_MAX, TABLE_BYTES_MAX, VALUE_BYTES_MAX};

/// A branch's local transaction, as [`RedbResource`](super::RedbResource) gives it to the branch's closure.
/// The [module](super) says what it isolates from what. Dropping it rolls it back.
///
/// Every error of a write or of a lock rolls the whole local transaction back at once, so that nothing can
/// commit without it; later calls answer [`ResourceError::RolledBack`].
pub struct RedbTransaction {
    store: Arc<Inner>,
    owner: Owner,
    branch: Option<BranchContext>,
    /// The keys that are locked, and what will be done to each.
    intents: BTreeMap<LockKey, Intent>,
    byte_count: usize,
    /// What plain reads see: taken at the first of them.
    snapshot: Option<Snapshot>,
    /// What plain reads have seen: must not have changed when it is locked later.
    read_keys: BTreeSet<LockKey>,
    read_prefixes: BTreeSet<LockKey>,
    checked_tables: BTreeSet<Arc<str>>,
    /// The error that rolled this back.
    ended: Option<String>,
    is_handed_over: bool,
}

impl std::fmt::Debug for RedbTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbTransaction")
            .field("branch", &self.branch)
            .field("intents", &self.intents.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl RedbTransaction {
    pub(super) fn begin(store: Arc<Inner>, branch: Option<BranchContext>) -> Result<Self, ResourceError> {
        let owner = store
            .core
            .state()
            .begin(branch.as_ref().map(|context| context.branch))?;
        Ok(Self {
            store,
            owner,
            branch,
            intents: BTreeMap::new(),
            byte_count: 0,
            snapshot: None,
            read_keys: BTreeSet::new(),
            read_prefixes: BTreeSet::new(),
            checked_tables: BTreeSet::new(),
            ended: None,
            is_handed_over: false,
        })
    }

    /// Reads a row, as of this transaction's snapshot or as this transaction wrote it. Takes no lock and
    /// never waits: the row may be changed by others at any time. If it is locked here later, and was
    /// changed, that is a [`Conflict`](ResourceError::Conflict); read with
    /// [`get_for_update`](Self::get_for_update) what will be written.
    ///
    /// # Errors
    /// The transaction was rolled back earlier; the file cannot be read.
    pub async fn get(&mut self, table: &str, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, ResourceError> {
        self.check_open()?;
        let key = lock_key(table, key.as_ref())?;
        match self.intents.get(&key) {
            Some(Intent::Put(value)) => Ok(Some(value.clone())),
            Some(Intent::Delete) => Ok(None),
            // Locked: nobody changes it, so the latest is what this transaction may rely on.
            Some(Intent::Lock) => self.core().snapshot()?.get(table, &key.key),
            None => {
                let value = self.snapshot()?.get(table, &key.key)?;
                self.read_keys.insert(key);
                Ok(value)
            }
        }
    }

    /// Locks a row, which need not exist, and reads its latest committed value. Nobody else changes or locks
    /// it until this branch's outcome took effect.
    ///
    /// # Errors
    /// The lock was not to be had ([`LockTimeout`](ResourceError::LockTimeout),
    /// [`Deadlock`](ResourceError::Deadlock), [`OwnBranch`](ResourceError::OwnBranch),
    /// [`DeadlineExceeded`](ResourceError::DeadlineExceeded), [`Conflict`](ResourceError::Conflict)): rolled
    /// back.
    pub async fn get_for_update(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Bytes>, ResourceError> {
        let key = self.lock(table, key.as_ref()).await?;
        match &self.intents[&key] {
            Intent::Put(value) => Ok(Some(value.clone())),
            Intent::Delete => Ok(None),
            Intent::Lock => self.core().snapshot()?.get(table, &key.key),
        }
    }

    /// Stores a value, whether or not the row exists.
    ///
    /// # Errors
    /// As for [`get_for_update`](Self::get_for_update); [`TooLarge`](ResourceError::TooLarge).
    pub async fn put(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<(), ResourceError> {
        let value = Bytes::copy_from_slice(value.as_ref());
        if value.len() > VALUE_BYTES_MAX {
            let what = "value";
            return Err(self.end(ResourceError::TooLarge {
                what,
                bytes: value.len(),
                bytes_max: VALUE_BYTES_MAX,
            }));
        }
        let key = self.lock(table, key.as_ref()).await?;
        self.write(key, Intent::Put(value))
    }

    /// Stores a value only if the row does not exist; answers whether it was stored. Two transactions never
    /// both insert.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn insert(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<bool, ResourceError> {
        if self.get_for_update(table, key.as_ref()).await?.is_some() {
            return Ok(false);
        }
        self.put(table, key, value).await?;
        Ok(true)
    }

    /// Removes a row; answers whether there was one.
    ///
    /// # Errors
    /// As for [`get_for_update`](Self::get_for_update).
    pub async fn delete(&mut self, table: &str, key: impl AsRef<[u8]>) -> Result<bool, ResourceError> {
        let existed = self.get_for_update(table, key.as_ref()).await?.is_some();
        let key = lock_key(table, key.as_ref())?;
        self.write(key, Intent::Delete)?;
        Ok(existed)
    }

    /// [`get`](Self::get) of a value that [`put_u64`](Self::put_u64) stored.
    ///
    /// # Errors
    /// The value is not of 8 bytes; else as for `get`.
    pub async fn get_u64(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<u64>, ResourceError> {
        to_u64(table, self.get(table, key).await?)
    }

    /// [`get_for_update`](Self::get_for_update) of a value that [`put_u64`](Self::put_u64) stored.
    ///
    /// # Errors
    /// The value is not of 8 bytes; else as for `get_for_update`.
    pub async fn get_u64_for_update(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<u64>, ResourceError> {
        to_u64(table, self.get_for_update(table, key).await?)
    }

    /// Stores a number, as 8 bytes, big-endian.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn put_u64(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
        value: u64,
    ) -> Result<(), ResourceError> {
        self.put(table, key, value.to_be_bytes()).await
    }

    /// [`get`](Self::get) of a text.
    ///
    /// # Errors
    /// The value is not UTF-8; else as for `get`.
    pub async fn get_text(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<String>, ResourceError> {
        let Some(value) = self.get(table, key).await? else {
            return Ok(None);
        };
        let text = String::from_utf8(value.into());
        text.map(Some).map_err(|_| ResourceError::Invalid {
            text: format!("a value of `{table}` is not UTF-8"),
        })
    }

    /// All rows of which the key begins with `prefix`, in the order of their keys: the snapshot's, merged
    /// with this transaction's own writes. Rows that others insert later do not show, and are not prevented.
    ///
    /// # Errors
    /// More than [`SCAN_ROWS_MAX`] rows; else as for [`get`](Self::get).
    pub async fn scan(&mut self, table: &str, prefix: impl AsRef<[u8]>) -> Result<Vec<Row>, ResourceError> {
        let rows = self.scan_page(table, prefix, None, SCAN_ROWS_MAX + 1).await?;
        if rows.len() > SCAN_ROWS_MAX {
            Err(too_many_rows(table))
        } else {
            Ok(rows)
        }
    }

    /// Up to `count_max` such rows, of which the key comes after `after`.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub async fn scan_page(
        &mut self,
        table: &str,
        prefix: impl AsRef<[u8]>,
        after: Option<&[u8]>,
        count_max: usize,
    ) -> Result<Vec<Row>, ResourceError> {
        self.check_open()?;
        let prefix = lock_key(table, prefix.as_ref())?;
        let (start, end) = prefix_range(&prefix.key, after);
        let is_within = |key: &LockKey| {
            let is_after_start = match start {
                std::ops::Bound::Excluded(start) => key.key > start,
                _ => key.key >= prefix.key,
            };
            is_after_start && end.as_deref().is_none_or(|end| &key.key[..] < end)
        };
        let mut own = Vec::new();
        let from_table = self.intents.range(
            LockKey {
                table: prefix.table.clone(),
                key: Bytes::new(),
            }..,
        );
        for (key, intent) in from_table
            .take_while(|(key, _)| key.table == prefix.table)
            .filter(|(key, _)| is_within(key))
        {
            let value = match intent {
                Intent::Put(value) => Some(value.clone()),
                Intent::Delete => None,
                Intent::Lock => self.core().snapshot()?.get(table, &key.key)?,
            };
            own.push((key.key.clone(), value));
        }
        let snapshot = self.snapshot()?.clone();
        self.read_prefixes.insert(prefix.clone());
        let (table, after) = (table.to_owned(), after.map(<[u8]>::to_vec));
        // A long scan reads many pages: not on a thread that serves others.
        let store = self.store.clone();
        store
            .read(move || {
                let rows = snapshot.rows(&table, &prefix.key, after.as_deref())?;
                merge(rows.peekable(), own, count_max)
            })
            .await
    }
}

impl Drop for RedbTransaction {
    fn drop(&mut self) {
        if !self.is_handed_over {
            self.roll_back();
        }
    }
}

pub(super) fn lock_key(table: &str, key: &[u8]) -> Result<LockKey, ResourceError> {
    if table.is_empty() || table.len() > TABLE_BYTES_MAX || table.starts_with(RESERVED_PREFIX) {
        return Err(ResourceError::Invalid {
            text: format!(
                "a table's name has 1 to {TABLE_BYTES_MAX} bytes and does not begin with `{RESERVED_PREFIX}`"
            ),
        });
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(ResourceError::TooLarge {
            what: "key",
            bytes: key.len(),
            bytes_max: KEY_BYTES_MAX,
        });
    }
    Ok(LockKey {
        table: table.into(),
        key: Bytes::copy_from_slice(key),
    })
}

fn to_u64(table: &str, value: Option<Bytes>) -> Result<Option<u64>, ResourceError> {
    let Some(value) = value else { return Ok(None) };
    match <[u8; 8]>::try_from(&value[..]) {
        Ok(bytes) => Ok(Some(u64::from_be_bytes(bytes))),
        Err(_) => Err(ResourceError::Invalid {
            text: format!("a value of `{table}` has {} bytes, not 8", value.len()),
        }),
    }
}

/// Merges committed rows with the transaction's own, both in the order of their keys; the own ones win,
/// `None` hides.
fn merge(
    mut rows: Peekable<impl Iterator<Item = Result<Row, ResourceError>>>,
    own: Vec<(Bytes, Option<Bytes>)>,
    count_max: usize,
) -> Result<Vec<Row>, ResourceError> {
    let mut merged = Vec::new();
    let mut own = own.into_iter().peekable();
    while merged.len() < count_max {
        let is_own_next = match (rows.peek(), own.peek()) {
            (None, None) => break,
            (_, None) | (Some(Err(_)), _) => false,
            (None, Some(_)) => true,
            (Some(Ok((key, _))), Some((own_key, _))) => own_key <= key,
        };
        if is_own_next {
            let (key, value) = own.next().expect("peeked");
            rows.next_if(|row| matches!(row, Ok((hidden, _)) if *hidden == key));
            merged.extend(value.map(|value| (key, value)));
        } else {
            merged.push(rows.next().expect("peeked")?);
        }
    }
    Ok(merged)
}
