//! Killing a store that lives in files, without killing a process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A temporary directory that can crash: what its files hold at that instant is all that the next opening finds,
/// which is what SIGKILL leaves. Whoever had it open goes on with the old files, which nobody looks at any more.
///
/// The instant must be one at which the store writes nothing, since files are copied one after the other; at
/// every step of the kit but those of [`crash_after_writes`](super::Harness::crash_after_writes) it is.
#[derive(Debug)]
pub struct ImageDirectory {
    root: PathBuf,
    crash_count: Mutex<u64>,
}

impl ImageDirectory {
    /// Makes a new, empty one under the system's temporary directory; deleted when dropped.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let name = format!(
            "synod-conformance-{:016x}-{}",
            u64::from_be_bytes(random),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let image = Self {
            root: std::env::temp_dir().join(name),
            crash_count: Mutex::new(0),
        };
        std::fs::create_dir_all(image.path())?;
        Ok(image)
    }

    /// Where the files lie, until the next crash.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let crash_count = self.crash_count.lock().unwrap_or_else(PoisonError::into_inner);
        self.root.join(crash_count.to_string())
    }

    /// From now on [`path`](Self::path) is a directory with a copy of every file as it is now.
    ///
    /// # Errors
    /// The files cannot be copied.
    pub fn crash(&self) -> io::Result<()> {
        let mut crash_count = self.crash_count.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.root.join(crash_count.to_string());
        copy(&old, &self.root.join((*crash_count + 1).to_string()))?;
        *crash_count += 1;
        Ok(())
    }
}

impl Drop for ImageDirectory {
    fn drop(&mut self) {
        // Left behind at worst, in a directory for such things.
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
