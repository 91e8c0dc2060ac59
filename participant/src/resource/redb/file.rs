//! The store's file: how a new one comes into being as a whole, and how the file of a process that is gone is
//! read without being changed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ::redb::backends::FileBackend;
use ::redb::{BackendError, Builder, Database, DatabaseError, StorageBackend};

use super::super::ResourceError;
use super::snapshot::Snapshot;

pub(super) fn open_error(what: &str, error: DatabaseError) -> ResourceError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => ResourceError::AlreadyOpen {
            what: what.to_owned(),
        },
        error => ResourceError::Open {
            what: what.to_owned(),
            source: Box::new(error),
        },
    }
}

/// Opens the database in this file, and makes it if there is none.
pub(super) fn open(builder: &Builder, path: &Path) -> Result<Database, ResourceError> {
    let what = path.display().to_string();
    if !path.exists() {
        create(builder, path).map_err(|error| open_error(&what, error))?;
    }
    builder.create(path).map_err(|error| open_error(&what, error))
}

/// A crash while redb initialises a file leaves one that it refuses to open ever after. So it is made under
/// another name, and linked to its own when it is whole and synced. A link does not replace what another
/// process made meanwhile.
fn create(builder: &Builder, path: &Path) -> Result<(), DatabaseError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.new", u64::from_be_bytes(random)));
    let unfinished = path.with_file_name(name);
    let made = builder.create(&unfinished).map(drop).and_then(|()| {
        match fs::hard_link(&unfinished, path) {
            // Another process was faster: its file is as good.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // File systems without hard links.
            Err(_) => fs::rename(&unfinished, path).map_err(DatabaseError::from),
            Ok(()) => Ok(()),
        }
    });
    // After a rename there is nothing to remove.
    let _ = fs::remove_file(&unfinished);
    made?;
    sync_directory(path)?;
    Ok(())
}

/// Makes the file's name durable, where directories can be synced.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// A store's file, opened for reading while no process has it open as a store: for audits and inspection.
/// Nothing in the file is changed, also if its process was killed: what redb repairs then, it repairs in
/// memory.
pub struct RedbFile {
    database: Arc<Database>,
}

impl std::fmt::Debug for RedbFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedbFile")
    }
}

impl RedbFile {
    /// Opens the file of a store. Other readers may have it open, too.
    ///
    /// # Errors
    /// [`ResourceError::AlreadyOpen`] while a process has it open as a store; [`ResourceError::Open`] when
    /// there is no such file, or it is not redb's.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ResourceError> {
        let path = path.as_ref();
        let open = || Database::builder().create_with_backend(Overlay::new(File::open(path)?)?);
        Ok(Self {
            database: Arc::new(open().map_err(|error| open_error(&path.display().to_string(), error))?),
        })
    }

    /// The rows, as the last commit left them. The snapshot may outlive this value.
    ///
    /// # Errors
    /// The file cannot be read; no resource manager ever opened it.
    pub fn snapshot(&self) -> Result<Snapshot, ResourceError> {
        let snapshot = Snapshot::begin_owning(Arc::clone(&self.database))?;
        snapshot.identity()?;
        Ok(snapshot)
    }
}

const PAGE_BYTES: u64 = 4096;
type Page = Box<[u8; 4096]>;

/// A file of which the changes stay in memory. Its locks are shared ones: readers beside readers, never
/// beside a writer.
#[derive(Debug)]
struct Overlay {
    file: FileBackend,
    state: Mutex<OverlayState>,
}

#[derive(Debug)]
struct OverlayState {
    length: u64,
    /// Up to here the file's own bytes count, where no page hides them.
    file_length: u64,
    pages: BTreeMap<u64, Page>,
}

impl Overlay {
    fn new(file: File) -> Result<Self, DatabaseError> {
        let file = FileBackend::new(file)?;
        let length = file.len()?;
        if length == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty").into());
        }
        Ok(Self {
            file,
            state: Mutex::new(OverlayState {
                length,
                file_length: length,
                pages: BTreeMap::new(),
            }),
        })
    }

    /// One page as of now, zeros past the file's end.
    fn page(&self, state: &OverlayState, number: u64) -> io::Result<Page> {
        if let Some(page) = state.pages.get(&number) {
            return Ok(page.clone());
        }
        let mut page: Page = Box::new([0; 4096]);
        let start = number * PAGE_BYTES;
        let count = state.file_length.saturating_sub(start).min(PAGE_BYTES);
        if count > 0 {
            self.file.read(start, &mut page[..to_index(count)])?;
        }
        Ok(page)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, OverlayState> {
        self.state
            .lock()
            .expect("no code panics while it holds the pages")
    }
}

fn to_index(within_page: u64) -> usize {
    usize::try_from(within_page).expect("at most a page")
}

/// The pages that a range of bytes touches: number, first byte within the page, count.
fn touched(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + length as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        let (number, within) = (at / PAGE_BYTES, at % PAGE_BYTES);
        let count = (PAGE_BYTES - within).min(end - at);
        at += count;
        (count > 0).then(|| (number, to_index(within), to_index(count)))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if offset + out.len() as u64 > state.length {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a read past the end",
            ));
        }
        let mut at = 0;
        for (number, within, count) in touched(offset, out.len()) {
            let page = self.page(&state, number)?;
            out[at..at + count].copy_from_slice(&page[within..within + count]);
            at += count;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.state();
        if length < state.length {
            // What grows back later must read as zeros.
            let last = length / PAGE_BYTES;
            let mut page = self.page(&state, last)?;
            page[to_index(length % PAGE_BYTES)..].fill(0);
            state.pages.retain(|number, _| *number < last);
            state.pages.insert(last, page);
            state.file_length = state.file_length.min(length);
        }
        state.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.length = state.length.max(offset + data.len() as u64);
        let mut at = 0;
        for (number, within, count) in touched(offset, data.len()) {
            let mut page = self.page(&state, number)?;
            page[within..within + count].copy_from_slice(&data[at..at + count]);
            state.pages.insert(number, page);
            at += count;
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
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
    use proptest::prelude::*;
    use std::io::Write as _;

    proptest! {
        /// Reads, writes and lengths behave as on a file, and the file keeps its bytes.
        #[test]
        fn an_overlay_is_a_file_that_never_changes(
            length in 1..20_000usize,
            steps in proptest::collection::vec((0..4u8, 0..30_000usize, 0..9_000usize, any::<u8>()), 0..30),
        ) {
            let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&bytes).unwrap();
            let overlay = Overlay::new(File::open(file.path()).unwrap()).unwrap();
            let mut model = bytes.clone();
            for (kind, at, count, byte) in steps {
                match kind {
                    0 => {
                        model.resize(at, 0);
                        overlay.set_len(at as u64).unwrap();
                    }
                    1 | 2 => {
                        let data = vec![byte; count];
                        model.resize(model.len().max(at + count), 0);
                        model[at..at + count].copy_from_slice(&data);
                        overlay.write(at as u64, &data).unwrap();
                    }
                    _ => {
                        let mut out = vec![1; count];
                        let read = overlay.read(at as u64, &mut out);
                        match model.get(at..at + count) {
                            Some(expected) => prop_assert_eq!(&out[..], expected),
                            None => prop_assert!(read.is_err()),
                        }
                    }
                }
                let mut whole = vec![1; model.len()];
                overlay.read(0, &mut whole).unwrap();
                prop_assert!(whole == model && overlay.len().unwrap() == model.len() as u64);
            }
            prop_assert!(std::fs::read(file.path()).unwrap() == bytes);
        }
    }
}
