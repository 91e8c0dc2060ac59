//! A disk in memory under a store, that fails, fills up or loses power as it is told: for tests and
//! simulations. What was not synced survives a power loss as [`PowerLoss`] says, as on real disks: in any
//! part and in any order, torn at sectors.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redb::StorageBackend;

/// The unit that real disks write as a whole, or not at all.
const SECTOR_BYTES: usize = 512;

/// What becomes of the changes that were not synced when the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerLoss {
    /// None of them reached the disk.
    Lost,
    /// All of them did.
    Kept,
    /// A subset of whole writes that the seed chooses.
    Subset(u64),
    /// A subset of the written sectors that the seed chooses.
    Torn(u64),
}

/// The disk. Clones are handles to the same one. It outlives the stores that are opened on it.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    syncs: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// What reads see.
    current: Vec<u8>,
    /// What was done since the last sync, with what was there before.
    unsynced: Vec<Change>,
    operation_count: u64,
    sync_count: u64,
    fails_from: Option<u64>,
    bytes_max: Option<usize>,
    has_failed: bool,
    /// Only every third sync is one.
    is_lying: bool,
    /// Counts the power losses: whoever opened the disk before the last one no longer reaches it.
    life: u64,
}

#[derive(Debug)]
enum Change {
    Write {
        at: usize,
        before: Vec<u8>,
        after: Vec<u8>,
    },
    Length {
        /// The bytes that were cut off.
        cut: Vec<u8>,
        before: usize,
        after: usize,
    },
}

impl MemoryDisk {
    /// What a store is opened on, again and again:
    /// [`open_backend(move || disk.backend())`](super::RedbOptions::open_backend).
    #[must_use]
    pub fn backend(&self) -> MemoryDiskBackend {
        MemoryDiskBackend {
            life: self.state().life,
            disk: self.clone(),
        }
    }

    /// Says from now on that it has synced when it has not: to prove that a test would notice.
    pub fn lie(&self) {
        self.state().is_lying = true;
    }

    /// Every write, sync and change of length fails from the `operation`-th on, counted from the disk's
    /// first, as 1.
    pub fn fail_from(&self, operation: u64) {
        self.state().fails_from = Some(operation);
    }

    /// The disk holds so many bytes and no more; `None`: as many as one likes.
    pub fn set_capacity(&self, bytes_max: Option<usize>) {
        self.state().bytes_max = bytes_max;
    }

    /// How many writes, syncs and changes of length there were, failed ones included.
    #[must_use]
    pub fn operation_count(&self) -> u64 {
        self.state().operation_count
    }

    /// How many syncs succeeded.
    #[must_use]
    pub fn sync_count(&self) -> u64 {
        self.state().sync_count
    }

    /// The bytes in use.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.state().current.len()
    }

    /// Every sync waits until this is dropped.
    pub fn hold_syncs(&self) -> MutexGuard<'_, ()> {
        self.0.syncs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an operation has failed since the disk was last mended.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.state().has_failed
    }

    /// The disk works again, and has room; nothing was lost.
    pub fn mend(&self) {
        let mut state = self.state();
        state.fails_from = None;
        state.bytes_max = None;
        state.has_failed = false;
    }

    /// Power off and on. The disk works again. What the dying process still writes does not arrive: a backend
    /// from before answers with errors.
    pub fn lose_power(&self, power_loss: PowerLoss) {
        let mut guard = self.state();
        let state = &mut *guard;
        if power_loss != PowerLoss::Kept {
            for change in state.unsynced.iter().rev() {
                change.undo(&mut state.current);
            }
            for (number, change) in state.unsynced.iter().enumerate() {
                change.survive(&mut state.current, power_loss, number as u64);
            }
        }
        state.unsynced.clear();
        state.life += 1;
        drop(guard);
        self.mend();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin(&mut self) -> io::Result<()> {
        self.operation_count += 1;
        if self.fails_from.is_some_and(|from| self.operation_count >= from) {
            self.has_failed = true;
            return Err(io::Error::other("the disk in memory fails, as it was told"));
        }
        Ok(())
    }

    fn check_room(&mut self, end: usize) -> io::Result<()> {
        if end > self.current.len() && self.bytes_max.is_some_and(|bytes_max| end > bytes_max) {
            self.has_failed = true;
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the disk in memory is full",
            ));
        }
        Ok(())
    }
}

impl Change {
    fn undo(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { at, before, .. } => bytes[*at..*at + before.len()].copy_from_slice(before),
            Self::Length { cut, before, .. } => {
                bytes.resize(*before, 0);
                let from = before - cut.len();
                bytes[from..].copy_from_slice(cut);
            }
        }
    }

    /// Lengths are kept by the file system's journal; what was written is up to chance.
    fn survive(&self, bytes: &mut Vec<u8>, power_loss: PowerLoss, number: u64) {
        match (self, power_loss) {
            (_, PowerLoss::Kept) => {}
            (Self::Length { after, .. }, _) => bytes.resize(*after, 0),
            (Self::Write { .. }, PowerLoss::Lost) => {}
            (Self::Write { at, after, .. }, PowerLoss::Subset(seed)) => {
                if is_chosen(seed, number) {
                    bytes[*at..*at + after.len()].copy_from_slice(after);
                }
            }
            (Self::Write { at, after, .. }, PowerLoss::Torn(seed)) => {
                let mut done = 0;
                while done < after.len() {
                    let start = at + done;
                    let length = (SECTOR_BYTES - start % SECTOR_BYTES).min(after.len() - done);
                    if is_chosen(seed ^ number.rotate_left(32), (start / SECTOR_BYTES) as u64) {
                        bytes[start..start + length].copy_from_slice(&after[done..done + length]);
                    }
                    done += length;
                }
            }
        }
    }
}

/// One bit of a mix of both (SplitMix64): any spread will do, and the same seed must lose the same writes.
fn is_chosen(seed: u64, number: u64) -> bool {
    let mut mixed = seed.wrapping_add((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) & 1 == 0
}

/// The disk, as redb sees it.
#[derive(Debug)]
pub struct MemoryDiskBackend {
    disk: MemoryDisk,
    life: u64,
}

impl MemoryDiskBackend {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.life == self.life {
            Ok(state)
        } else {
            Err(io::Error::other("the machine has stopped"))
        }
    }
}

fn to_index(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(io::Error::other)
}

impl StorageBackend for MemoryDiskBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = to_index(offset)?;
        let state = self.state()?;
        let bytes = state.current.get(start..start.saturating_add(out.len()));
        out.copy_from_slice(
            bytes.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "a read past the end"))?,
        );
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let after = to_index(length)?;
        let mut guard = self.state()?;
        let state = &mut *guard;
        state.begin()?;
        state.check_room(after)?;
        let before = state.current.len();
        let cut = state.current.split_off(after.min(before));
        state.current.resize(after, 0);
        state.unsynced.push(Change::Length { cut, before, after });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let _held = self.disk.hold_syncs();
        let mut state = self.state()?;
        state.begin()?;
        state.sync_count += 1;
        if !state.is_lying || state.sync_count % 3 == 0 {
            state.unsynced.clear();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = to_index(offset)?;
        let mut guard = self.state()?;
        let state = &mut *guard;
        state.begin()?;
        let end = at + data.len();
        state.check_room(end)?;
        if end > state.current.len() {
            let before = state.current.len();
            state.current.resize(end, 0);
            state.unsynced.push(Change::Length {
                cut: Vec::new(),
                before,
                after: end,
            });
        }
        let before = state.current[at..end].to_vec();
        state.current[at..end].copy_from_slice(data);
        state.unsynced.push(Change::Write {
            at,
            before,
            after: data.to_vec(),
        });
        Ok(())
    }
}
