//! A disk in memory that fails or loses power at a chosen operation. What was not synced survives a power
//! loss in part, as the seed says: any subset of the writes, as real disks do.

use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>, Arc<Mutex<()>>);

#[derive(Debug, Default)]
struct State {
    /// What a power loss cannot take.
    synced: Vec<u8>,
    /// What reads see.
    current: Vec<u8>,
    unsynced: Vec<Change>,
    operation_count: u64,
    sync_count: u64,
    fails_from: Option<u64>,
    has_failed: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => bytes.resize(*length, 0),
        Change::Write(at, data) => {
            let end = at + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(data);
        }
    }
}

impl Disk {
    pub fn backend(&self) -> Backend {
        Backend(self.clone())
    }

    /// Every write, sync and change of length fails from the `operation`-th on, counted from the disk's
    /// first.
    pub fn fail_from(&self, operation: u64) {
        self.0.lock().unwrap().fails_from = Some(operation);
    }

    pub fn operation_count(&self) -> u64 {
        self.0.lock().unwrap().operation_count
    }

    pub fn sync_count(&self) -> u64 {
        self.0.lock().unwrap().sync_count
    }

    /// Every sync waits until this is dropped.
    pub fn hold_syncs(&self) -> std::sync::MutexGuard<'_, ()> {
        self.1.lock().unwrap()
    }

    pub fn has_failed(&self) -> bool {
        self.0.lock().unwrap().has_failed
    }

    /// The disk works again; nothing was lost.
    pub fn mend(&self) {
        let mut state = self.0.lock().unwrap();
        state.fails_from = None;
        state.has_failed = false;
    }

    /// Power off and on: of the unsynced changes, those remain that the seed chooses. The disk works again.
    pub fn lose_power(&self, seed: u64) {
        let mut state = self.0.lock().unwrap();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = std::mem::take(&mut state.synced);
        for change in std::mem::take(&mut state.unsynced) {
            // xorshift64: any spread of bits will do here, and the same seed must lose the same writes.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let is_kept = match seed {
                0 => false,
                1 => true,
                _ => random & 1 == 0,
            };
            if is_kept || matches!(change, Change::Length(_)) {
                apply(&mut bytes, &change);
            }
        }
        state.current = bytes.clone();
        state.synced = bytes;
        drop(state);
        self.mend();
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.operation()?;
        apply(&mut state.current, &change);
        state.unsynced.push(change);
        Ok(())
    }

    fn operation(&self) -> io::Result<std::sync::MutexGuard<'_, State>> {
        let mut state = self.0.lock().unwrap();
        state.operation_count += 1;
        if state.fails_from.is_some_and(|from| state.operation_count >= from) {
            state.has_failed = true;
            return Err(io::Error::other("the test's disk failed"));
        }
        Ok(state)
    }
}

#[derive(Debug)]
pub struct Backend(Disk);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.0.lock().unwrap().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let bytes = state.current.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::other("a read past the end"))?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.change(Change::Length(usize::try_from(length).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let _held = self.0.hold_syncs();
        let mut state = self.0.operation()?;
        state.sync_count += 1;
        state.unsynced.clear();
        state.synced = state.current.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0
            .change(Change::Write(usize::try_from(offset).unwrap(), data.to_vec()))
    }
}
