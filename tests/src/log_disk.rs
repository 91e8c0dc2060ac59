//! The real log on a disk that fails as disks do, beside the model of it in [`store`](crate::store): whatever a crash
//! leaves of the sectors written, the log must find either all of the batch that was under way or nothing of it, all that
//! was synced before, and nothing else (L3, L7, traps A10).

use crate::chance::{place, place_of};
use crate::checkers::{Check, Violation, require};
use crate::store::{Store, UnsyncedWrite};
use bytes::Bytes;
use std::sync::Arc;
use synod_coordinator::log::{BLOCK_BYTES, Disk, Identity, Log, MemoryDisk, Opened, Options};
use synod_coordinator_core::durable::{Batch, Recovered};
use synod_coordinator_core::effects::Fetch;
use synod_coordinator_core::paxos::Accepted;
use synod_coordinator_core::random::Random;
use synod_proto::ids::{Incarnation, ReplicaId};

/// More operations than an append or the repair at an open has: after so many the write under way is whole.
const OPERATION_COUNT: u64 = 6;

/// A replica's log and the disk under it.
#[derive(Debug)]
pub struct LogDisk {
    replica: ReplicaId,
    incarnation: Incarnation,
    options: Options,
    random: Random,
    disk: Arc<MemoryDisk>,
    /// `None` between a crash and the next start.
    log: Option<Log<MemoryDisk>>,
}

impl LogDisk {
    /// An empty log in segments of this length.
    ///
    /// # Panics
    /// A sound disk refuses.
    #[must_use]
    pub fn new(replica: ReplicaId, incarnation: Incarnation, segment_bytes: u64, seed: u64) -> Self {
        let disk = Arc::new(MemoryDisk::default());
        let (options, random) = (Options { segment_bytes }, Random::new(seed));
        let mut own = Self {
            replica,
            incarnation,
            options,
            random,
            disk,
            log: None,
        };
        Log::create(&own.disk, &own.identity(), options).expect("a sound disk holds a log");
        own.log = Some(own.open().expect("an empty log opens").log);
        own
    }

    /// An empty log in a new directory, on a disk of the same kind.
    #[must_use]
    pub fn renewed(&self, incarnation: Incarnation) -> Self {
        let seed = self.random.clone().next_u64();
        Self::new(self.replica, incarnation, self.options.segment_bytes, seed)
    }

    /// A copy of the directory, as somebody makes one while no process runs on it.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self {
            replica: self.replica,
            incarnation: self.incarnation,
            options: self.options,
            random: self.random.clone(),
            disk: Arc::new(self.disk.fork()),
            log: None,
        }
    }

    /// Writes and syncs a batch.
    ///
    /// # Errors
    /// The disk was told to fail.
    pub fn append(&mut self, batch: &Batch) -> Check {
        let log = self.log.as_mut().expect("a running process has its log open");
        log.append(batch)
            .map_err(|error| Violation(format!("append: {error}")))
    }

    /// The disk fails in the middle of a write, and does not say how far it came.
    pub fn fail(&mut self, batch: &Batch) {
        let after = self.random.between(0, 1);
        self.disk.fail(after, std::io::ErrorKind::StorageFull);
        // Whether it shows an error or, with nothing left to do, none: the process is told that it failed.
        let _ = self.log.as_mut().map(|log| log.append(batch));
    }

    /// The machine stops, with at most one write under way, of which any part may be on disk. Says what became of it, by
    /// opening the log.
    ///
    /// # Errors
    /// The log shows neither the state before that write nor the one behind it.
    pub fn crash(&mut self, store: &mut Store, unsynced: UnsyncedWrite) -> Check {
        if let (Some(batch), Some(log)) = (store.under_way(), &mut self.log) {
            if unsynced == UnsyncedWrite::Lost {
                self.disk.halt(self.random.between(0, OPERATION_COUNT));
            }
            let _ = log.append(batch);
        }
        self.log = None;
        self.lose_power();
        if self.random.between(0, 3) == 0 {
            // The machine stops once more, while the log is being repaired.
            self.disk.halt(self.random.between(0, OPERATION_COUNT));
            let _ = self.open();
            self.lose_power();
        }
        let found = self.open()?.recovered;
        if !holds(&found, store) {
            store.crash(UnsyncedWrite::Kept);
            require(holds(&found, store), || {
                format!(
                    "replica {}: the log found {found:?}, its disk holds {store:?}",
                    self.replica
                )
            })?;
        }
        store.crash(UnsyncedWrite::Lost);
        Ok(())
    }

    /// Flips a bit of what was synced, while no process runs. The last batch is spared: rot in exactly that one cannot be
    /// told from a torn write, which is a stated limit of the log. Returns what the log says is lost.
    ///
    /// # Errors
    /// The log takes damage for absence.
    pub fn corrupt(&mut self, store: &mut Store, pick: u64) -> Check {
        let names = self
            .disk
            .list()
            .map_err(|error| Violation(format!("list: {error}")))?;
        // Bytes that say something: of the blocks that batches fill up, most is padding.
        let mut used: Vec<(&str, usize)> = Vec::new();
        for name in &names {
            let contents = self.disk.contents(name).unwrap_or_default();
            let bytes = contents
                .iter()
                .enumerate()
                .skip(BLOCK_BYTES)
                .filter(|(_, byte)| **byte != 0);
            used.extend(bytes.map(|(place, _)| (name.as_str(), place)));
        }
        // An orderly end: one more batch, without records, behind everything that is worth damaging.
        self.open()?
            .log
            .close()
            .map_err(|error| Violation(format!("close: {error}")))?;
        if used.is_empty() {
            return Ok(());
        }
        let (name, byte) = used[place_of(pick, used.len())];
        self.disk
            .flip(name, byte, u8::try_from((pick >> 32) % 8).expect("below eight"));
        let found = self.open()?.recovered;
        require(found.meta == *store.meta(), || {
            format!("replica {}: rot changed {:?}", self.replica, found.meta)
        })?;
        store.lose(found.unreadable.clone());
        require(holds(&found, store), || {
            format!(
                "replica {}: the log found {found:?}, its disk holds {store:?}",
                self.replica
            )
        })
    }

    /// A process starts: what it finds, compared with the model, value by value.
    ///
    /// # Errors
    /// The log cannot be opened, or holds something else.
    pub fn start(&mut self, store: &Store) -> Result<(Recovered, Vec<Accepted>), Violation> {
        let opened = self.open()?;
        let mut values = Vec::new();
        opened
            .log
            .load(|accepted| values.push(accepted))
            .map_err(|error| Violation(format!("load: {error}")))?;
        let (recovered, expected) = store.recover();
        require(opened.recovered == recovered && values == expected, || {
            format!(
                "replica {}: the log loaded {:?}, its disk holds {recovered:?}",
                self.replica, opened.recovered
            )
        })?;
        self.log = Some(opened.log);
        Ok((recovered, values))
    }

    /// Reads for a lagging peer.
    ///
    /// # Errors
    /// The log holds something else than the model.
    pub fn fetch(&self, fetch: Fetch, store: &Store) -> Result<Option<Vec<Bytes>>, Violation> {
        let log = self.log.as_ref().expect("a running process has its log open");
        let expected = store.fetch(fetch);
        let count = expected.as_ref().map_or(1, Vec::len) as u64;
        let up_to = synod_coordinator_core::paxos::Slot(fetch.first.0 + count - 1);
        let found = log.read_range(fetch.first..=up_to, usize::MAX).ok();
        let found = found.map(|found| found.into_iter().map(|one| one.value).collect::<Vec<_>>());
        let found = found.filter(|found| !found.is_empty());
        require(found == expected, || {
            format!(
                "replica {}: {fetch:?} read {found:?}, the disk holds {expected:?}",
                self.replica
            )
        })?;
        Ok(found)
    }

    fn lose_power(&mut self) {
        let random = &mut self.random;
        self.disk = Arc::new(self.disk.crash(|count| place(random, count)));
    }

    fn open(&self) -> Result<Opened<MemoryDisk>, Violation> {
        Log::open(Arc::clone(&self.disk), self.identity(), self.options).map_err(|error| {
            Violation(format!(
                "replica {}: the log does not open: {error}",
                self.replica
            ))
        })
    }

    fn identity(&self) -> Identity {
        let cluster = "simulated".parse().expect("a cluster's name");
        Identity {
            cluster,
            replica: self.replica,
            incarnation: self.incarnation,
        }
    }
}

/// Whether what the log found is exactly what is known to be on disk.
fn holds(found: &Recovered, store: &Store) -> bool {
    store.recover().0 == *found
}
