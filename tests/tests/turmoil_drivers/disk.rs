//! The disk under an office's redb file: it outlives the host that crashes, and loses what was not synced.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// A disk. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    synced: Vec<u8>,
    current: Vec<u8>,
    /// Only every third sync is one.
    is_lying: bool,
    sync_count: u64,
    /// Counts the crashes: whoever opened the disk before the last one no longer reaches it.
    life: u64,
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }

    /// Says from now on that it has synced when it has not.
    pub fn lie(&self) {
        self.state().is_lying = true;
    }

    /// The storage for one opening of the file.
    pub fn backend(&self) -> Backend {
        Backend {
            life: self.state().life,
            disk: self.clone(),
        }
    }

    /// The machine stops here: what a dying process still writes does not arrive.
    pub fn crash(&self) {
        let mut state = self.state();
        state.life += 1;
        state.current = state.synced.clone();
    }
}

/// See [`Disk::backend`].
#[derive(Debug)]
pub struct Backend {
    disk: Disk,
    life: u64,
}

impl Backend {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.life == self.life {
            Ok(state)
        } else {
            Err(io::Error::other("the machine has stopped"))
        }
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("the file fits into memory")
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state()?;
        let start = index(offset);
        let bytes = state.current.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::other("a read past the end"))?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.state()?.current.resize(index(length), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state()?;
        state.sync_count += 1;
        if !state.is_lying || state.sync_count % 3 == 0 {
            state.synced = state.current.clone();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state()?;
        let start = index(offset);
        state.current[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}
