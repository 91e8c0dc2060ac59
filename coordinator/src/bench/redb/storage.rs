//! A service's file, with its syncs and written bytes counted: what the kernel does not tell of a single file.

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was done to a file so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    sync_count: Arc<AtomicU64>,
    written_bytes: Arc<AtomicU64>,
}

/// [`Counts`] at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    pub(super) sync_count: u64,
    pub(super) written_bytes: u64,
}

impl Counts {
    pub(super) fn now(&self) -> Counted {
        Counted {
            sync_count: self.sync_count.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
        }
    }
}

/// redb's own file backend, counted. Clones are handles to the same file.
#[derive(Clone, Debug)]
pub(super) struct CountedFile {
    file: Arc<FileBackend>,
    counts: Counts,
}

impl CountedFile {
    /// Makes the file; it must not exist.
    pub(super) fn create(path: &Path) -> Result<Self, DatabaseError> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        Ok(Self {
            file: Arc::new(FileBackend::new(file)?),
            counts: Counts::default(),
        })
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts.clone()
    }
}

impl StorageBackend for CountedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.counts.sync_count.fetch_add(1, Ordering::Relaxed);
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.counts
            .written_bytes
            .fetch_add(data.len() as u64, Ordering::Relaxed);
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::ReadableDatabase as _;

    /// A commit with two phases syncs twice or more, and writes its pages; nothing is counted that was not done.
    #[test]
    fn what_redb_does_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let file = CountedFile::create(&directory.path().join("file")).unwrap();
        let counts = file.counts();
        let database = redb::Database::builder().create_with_backend(file).unwrap();
        let before = counts.now();
        drop(database.begin_read().unwrap());
        let idle = counts.now();
        assert_eq!(
            (idle.sync_count, idle.written_bytes),
            (before.sync_count, before.written_bytes)
        );
        let mut write = database.begin_write().unwrap();
        write.set_two_phase_commit(true);
        let table = redb::TableDefinition::<u64, u64>::new("t");
        write.open_table(table).unwrap().insert(1, 2).unwrap();
        write.commit().unwrap();
        let after = counts.now();
        assert!(after.sync_count >= before.sync_count + 2, "{before:?} {after:?}");
        assert!(after.written_bytes > before.written_bytes, "{before:?} {after:?}");
    }
}
