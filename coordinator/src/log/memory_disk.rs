//! A disk in memory that fails as disks do: for tests and for the simulator, which run the log's own code on it.
//!
//! It keeps, beside what a running process sees, what is on the platter, and the writes in between. A
//! [`crash`](MemoryDisk::crash) leaves any subset of the unsynced sectors, chosen by the caller. A failed sync behaves as
//! the page cache does (traps A11): what it was to make durable stays visible, is not on the platter, and no later
//! sync brings it there.

mod image;

pub use image::CrashImage;

use super::disk::{Disk, DiskFile};
use image::Survival;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a disk writes as a whole, in bytes: a torn write leaves whole sectors.
pub const SECTOR_BYTES: usize = 512;

/// What changes a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// A write into a file.
    Write,
    /// A sync of a file.
    Sync,
    /// The creation of a file.
    Create,
    /// The change of a name.
    Rename,
    /// The removal of a name.
    Remove,
    /// A sync of the directory.
    SyncDirectory,
}

/// A disk in memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

/// An open file of a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryFile {
    state: Arc<Mutex<State>>,
    /// The file's identity: it outlives a removal of the name, as an open file does.
    id: u64,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, Contents>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// The names that were given or taken since the last good sync of the directory.
    changed_names: BTreeSet<String>,
    next_id: u64,
    /// The most bytes that files may have together.
    capacity: Option<u64>,
    /// Counts writes, syncs, creations, renamings, removals and directory syncs.
    operation_count: u64,
    counts: BTreeMap<Operation, u64>,
    faults: BTreeMap<u64, io::ErrorKind>,
    /// Faults by kind: the operation, and which of its kind.
    faults_of: BTreeMap<(Operation, u64), io::ErrorKind>,
    halts_at: Option<u64>,
    /// The operation at which the machine stopped, once it has.
    halted_in: Option<Operation>,
    /// How many operations failed because they were told to.
    failed_count: u64,
    /// The last write that took place: file and range.
    last_write: Option<(u64, Range<usize>)>,
    /// Sectors that cannot be read: file name, index of the sector.
    unreadable: BTreeSet<(String, u64)>,
}

#[derive(Clone, Debug, Default)]
struct Contents {
    /// What a running process reads.
    visible: Vec<u8>,
    /// What is on the platter.
    durable: Vec<u8>,
    /// Sectors written since the last good sync, each with every content it may have after a crash but the durable one.
    unsynced: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl MemoryDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no thread panics while it holds a disk's state")
    }

    /// How many operations that change the disk were tried so far. Reads do not count.
    #[must_use]
    pub fn operation_count(&self) -> u64 {
        self.state().operation_count
    }

    /// Lets one operation fail: the `after`-th from now, counted from 0. A failed write writes nothing; a failed sync
    /// loses what it was to make durable, though it stays visible.
    pub fn fail(&self, after: u64, kind: io::ErrorKind) {
        let mut state = self.state();
        let at = state.operation_count + after;
        state.faults.insert(at, kind);
    }

    /// Lets one operation of a kind fail: the `after`-th from now, counted from 0. A creation fails only by its effect:
    /// no file is left behind.
    pub fn fail_of(&self, operation: Operation, after: u64, kind: io::ErrorKind) {
        let mut state = self.state();
        let at = state.counts.get(&operation).copied().unwrap_or_default() + after;
        state.faults_of.insert((operation, at), kind);
    }

    /// How many operations have failed because [`fail`](Self::fail), [`fail_of`](Self::fail_of) or
    /// [`limit`](Self::limit) told them to.
    #[must_use]
    pub fn failed_count(&self) -> u64 {
        self.state().failed_count
    }

    /// The operation at which the machine stopped, if it has: see [`halt`](Self::halt).
    #[must_use]
    pub fn halted_in(&self) -> Option<Operation> {
        self.state().halted_in
    }

    /// Whether an operation is still to fail, or there is a limit to what files may have.
    #[must_use]
    pub fn has_faults(&self) -> bool {
        let state = self.state();
        !state.faults.is_empty() || !state.faults_of.is_empty() || state.capacity.is_some()
    }

    /// Forgets the faults that are still to come, as a disk that was looked after: what it holds stays, in the cache and
    /// on the platter.
    pub fn mend(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.faults_of.clear();
        state.halts_at = None;
        state.halted_in = None;
        state.capacity = None;
    }

    /// Where the last write went that took place.
    #[must_use]
    pub fn last_write(&self) -> Option<(String, Range<usize>)> {
        let state = self.state();
        let (id, range) = state.last_write.clone()?;
        // The file that was made last is the likeliest, and has the highest name.
        let (name, _) = state.names.iter().rev().find(|(_, named)| **named == id)?;
        Some((name.clone(), range))
    }

    /// The bytes that all files have together.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Lets the machine stop at the `after`-th operation from now, counted from 0: that one may still take effect in
    /// part (its sectors are among the unsynced ones), all later ones fail.
    pub fn halt(&self, after: u64) {
        let mut state = self.state();
        state.halts_at = Some(state.operation_count + after);
    }

    /// Limits the bytes that all files may have together.
    pub fn limit(&self, capacity: Option<u64>) {
        self.state().capacity = capacity;
    }

    /// Flips one bit of a file, on the platter and in what is read.
    ///
    /// # Panics
    /// There is no such file, or it is shorter.
    pub fn flip(&self, name: &str, byte: usize, bit: u8) {
        let mut state = self.state();
        let id = state.names[name];
        let contents = state.files.get_mut(&id).expect("a name has a file");
        contents.visible[byte] ^= 1 << bit;
        contents.durable[byte] ^= 1 << bit;
    }

    /// Overwrites part of a file, on the platter and in what is read.
    ///
    /// # Panics
    /// There is no such file, or it is shorter.
    pub fn overwrite(&self, name: &str, range: Range<usize>, byte: u8) {
        let mut state = self.state();
        let id = state.names[name];
        let contents = state.files.get_mut(&id).expect("a name has a file");
        contents.visible[range.clone()].fill(byte);
        contents.durable[range].fill(byte);
    }

    /// Overwrites part of a file, on the platter and in what is read: a write that was meant for another place.
    ///
    /// # Panics
    /// There is no such file, or it is shorter.
    pub fn paste(&self, name: &str, offset: usize, data: &[u8]) {
        let mut state = self.state();
        let id = state.names[name];
        let contents = state.files.get_mut(&id).expect("a name has a file");
        contents.visible[offset..offset + data.len()].copy_from_slice(data);
        contents.durable[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Cuts a file short.
    ///
    /// # Panics
    /// There is no such file.
    pub fn truncate(&self, name: &str, length: usize) {
        let mut state = self.state();
        let id = state.names[name];
        let contents = state.files.get_mut(&id).expect("a name has a file");
        contents.visible.truncate(length);
        contents.durable.truncate(length);
        contents.unsynced.clear();
    }

    /// Makes the sector at this byte of a file unreadable.
    pub fn spoil(&self, name: &str, byte: usize) {
        self.state()
            .unreadable
            .insert((name.to_owned(), (byte / SECTOR_BYTES) as u64));
    }

    /// What a running process reads of a file, or `None` if there is none.
    #[must_use]
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        Some(state.files[state.names.get(name)?].visible.clone())
    }

    /// A part of what a running process reads of a file, or `None` where there is none.
    #[must_use]
    pub fn part(&self, name: &str, range: Range<usize>) -> Option<Vec<u8>> {
        let state = self.state();
        let contents = &state.files[state.names.get(name)?];
        contents.visible.get(range).map(<[u8]>::to_vec)
    }

    /// A disk with the same visible content, all of it synced, and no faults planned.
    #[must_use]
    pub fn fork(&self) -> Self {
        let state = self.state();
        let contents = |contents: &Contents| Contents {
            visible: contents.visible.clone(),
            durable: contents.visible.clone(),
            unsynced: BTreeMap::new(),
        };
        let forked = State {
            files: state
                .files
                .iter()
                .map(|(id, file)| (*id, contents(file)))
                .collect(),
            names: state.names.clone(),
            durable_names: state.names.clone(),
            next_id: state.next_id,
            last_write: state.last_write.clone(),
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(forked)),
        }
    }

    /// The disk as a machine finds it that lost power now. `choose(n)` picks, below `n`, for every unsynced sector which of
    /// the contents written since the last sync it has, 0 being the old one; and for every name whose creation or
    /// removal was not synced whether that happened (1) or not (0). A renaming is both: after a crash the file may be found
    /// under either name, under both or under none.
    #[must_use]
    pub fn crash(&self, choose: impl FnMut(usize) -> usize) -> Self {
        self.survive(image::Chosen(choose))
    }

    /// The disk as a machine finds it that lost power now, with one of the images that crashes leave.
    #[must_use]
    pub fn crash_to(&self, image: CrashImage) -> Self {
        let sector_count = self.state().unsynced_sector_count();
        self.survive(image::Imaged::new(image, sector_count))
    }

    fn survive(&self, mut survival: impl Survival) -> Self {
        let state = self.state();
        let mut names = state.durable_names.clone();
        for name in &state.changed_names {
            if let Some(id) = state.names.get(name)
                && state.durable_names.get(name) != Some(id)
                && survival.has_name()
            {
                names.insert(name.clone(), *id);
            }
        }
        for name in &state.changed_names {
            let is_removed = state.durable_names.contains_key(name) && !state.names.contains_key(name);
            if is_removed && survival.has_name() {
                names.remove(name);
            }
        }
        let mut files = BTreeMap::new();
        for id in names.values() {
            let contents = &state.files[id];
            let mut durable = contents.durable.clone();
            for (sector, written) in &contents.unsynced {
                let start = sector * SECTOR_BYTES;
                let end = (start + SECTOR_BYTES).min(durable.len());
                survival.sector(&mut durable[start..end], written);
            }
            files.insert(
                *id,
                Contents {
                    visible: durable.clone(),
                    durable,
                    unsynced: BTreeMap::new(),
                },
            );
        }
        let crashed = State {
            files,
            durable_names: names.clone(),
            names,
            next_id: state.next_id,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(crashed)),
        }
    }
}

impl State {
    /// Gives a name to a file, or takes it.
    fn name(&mut self, name: &str, file: Option<u64>) {
        self.changed_names.insert(name.to_owned());
        match file {
            Some(id) => self.names.insert(name.to_owned(), id),
            None => self.names.remove(name),
        };
    }

    /// Counts an operation and says whether it takes place.
    fn operation(&mut self, operation: Operation) -> io::Result<()> {
        let index = self.operation_count;
        self.operation_count += 1;
        let of_kind = self.counts.entry(operation).or_default();
        let fault_of = self.faults_of.remove(&(operation, *of_kind));
        *of_kind += 1;
        if self.halts_at.is_some_and(|at| index >= at) {
            self.halted_in.get_or_insert(operation);
            return Err(io::Error::other("the machine has stopped"));
        }
        match self.faults.remove(&index).or(fault_of) {
            Some(kind) => {
                self.failed_count += 1;
                Err(kind.into())
            }
            None => Ok(()),
        }
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .map(|id| self.files[id].visible.len() as u64)
            .sum()
    }

    /// The sectors that may be on the platter or not.
    fn unsynced_sector_count(&self) -> usize {
        let files = self.names.values().map(|id| &self.files[id]);
        let sectors = files.flat_map(|file| file.unsynced.values());
        sectors.filter(|written| !written.is_empty()).count()
    }

    /// Whether the operation that is about to be counted is the one at which the machine stops.
    fn is_halting(&self) -> bool {
        self.halts_at == Some(self.operation_count)
    }
}

impl Contents {
    fn write(&mut self, data: &[u8], offset: usize) {
        self.visible[offset..offset + data.len()].copy_from_slice(data);
        for sector in offset / SECTOR_BYTES..(offset + data.len()).div_ceil(SECTOR_BYTES) {
            let start = sector * SECTOR_BYTES;
            let end = (start + SECTOR_BYTES).min(self.visible.len());
            let content = self.visible[start..end].to_vec();
            let written = self.unsynced.entry(sector).or_default();
            // A sector that reads as it is on the platter already cannot be torn.
            if written.last().map_or(&self.durable[start..end], Vec::as_slice) != content {
                written.push(content);
            }
        }
    }

    /// Brings what was written since the last sync to the platter, and nothing else: what a failed sync has dropped is
    /// clean in the cache, so that no later sync writes it (traps A11).
    fn settle(&mut self) {
        for sector in core::mem::take(&mut self.unsynced).into_keys() {
            let start = sector * SECTOR_BYTES;
            let end = (start + SECTOR_BYTES).min(self.visible.len());
            self.durable[start..end].copy_from_slice(&self.visible[start..end]);
        }
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<MemoryFile> {
        let id = *self.state().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(MemoryFile {
            state: Arc::clone(&self.state),
            id,
        })
    }

    fn create(&self, name: &str, length: u64) -> io::Result<MemoryFile> {
        let mut state = self.state();
        let is_halting = state.is_halting();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let done = state.operation(Operation::Create);
        if !is_halting {
            done?;
        }
        if state
            .capacity
            .is_some_and(|capacity| state.used() + length > capacity)
        {
            state.failed_count += 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        let id = state.next_id;
        state.next_id += 1;
        // The machine that stops meanwhile leaves a file of half the length.
        let length =
            usize::try_from(if is_halting { length / 2 } else { length }).map_err(io::Error::other)?;
        let zeros = vec![0; length];
        state.files.insert(
            id,
            Contents {
                visible: zeros.clone(),
                durable: zeros,
                unsynced: BTreeMap::new(),
            },
        );
        state.name(name, Some(id));
        if is_halting {
            return Err(io::Error::other("the machine has stopped"));
        }
        Ok(MemoryFile {
            state: Arc::clone(&self.state),
            id,
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let is_halting = state.is_halting();
        let done = state.operation(Operation::Rename);
        if done.is_ok() || is_halting {
            let id = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            state.name(from, None);
            state.name(to, Some(id));
        }
        done
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let is_halting = state.is_halting();
        let done = state.operation(Operation::Remove);
        if done.is_ok() || is_halting {
            state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
            state.name(name, None);
        }
        done
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.state();
        state.operation(Operation::SyncDirectory)?;
        for name in core::mem::take(&mut state.changed_names) {
            match state.names.get(&name).copied() {
                Some(id) => state.durable_names.insert(name, id),
                None => state.durable_names.remove(&name),
            };
        }
        Ok(())
    }
}

impl MemoryFile {
    fn with<R>(&self, change: impl FnOnce(&mut State, &mut Contents) -> R) -> R {
        let mut state = self
            .state
            .lock()
            .expect("no thread panics while it holds a disk's state");
        let mut contents = state
            .files
            .remove(&self.id)
            .expect("a file's content outlives its name");
        let result = change(&mut state, &mut contents);
        state.files.insert(self.id, contents);
        result
    }
}

fn range(length: usize, offset: u64, count: usize) -> io::Result<Range<usize>> {
    let start = usize::try_from(offset).map_err(io::Error::other)?;
    let end = start
        .checked_add(count)
        .filter(|end| *end <= length)
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(start..end)
}

impl DiskFile for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        self.with(|_, contents| Ok(contents.visible.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|state, contents| {
            let range = range(contents.visible.len(), offset, buffer.len())?;
            let is_spoiled = state.unreadable.iter().any(|(name, sector)| {
                let start = usize::try_from(*sector)
                    .unwrap_or(usize::MAX)
                    .saturating_mul(SECTOR_BYTES);
                state.names.get(name) == Some(&self.id)
                    && start < range.end
                    && range.start < start + SECTOR_BYTES
            });
            if is_spoiled {
                return Err(io::Error::other("a sector cannot be read"));
            }
            buffer.copy_from_slice(&contents.visible[range]);
            Ok(())
        })
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let id = self.id;
        self.with(|state, contents| {
            let range = range(contents.visible.len(), offset, data.len())?;
            let is_halting = state.is_halting();
            let done = state.operation(Operation::Write);
            if done.is_ok() || is_halting {
                contents.write(data, range.start);
                state.last_write = Some((id, range));
            }
            done
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state, contents| {
            let is_halting = state.is_halting();
            let done = state.operation(Operation::Sync);
            if done.is_ok() {
                contents.settle();
            } else if !is_halting {
                // The kernel has dropped the dirty pages: clean in the cache, never on the platter.
                contents.unsynced.clear();
            }
            done
        })
    }
}
