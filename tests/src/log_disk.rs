//! The real log on a disk that fails as disks do, beside the model of it in [`store`](crate::store): whatever a crash
//! leaves of the sectors written, the log must find either all of the batch that was under way or nothing of it, all that
//! was synced before, and nothing else (L3, L7, traps A10).
//!
//! | what goes wrong | where |
//! |---|---|
//! | the machine stops, at any operation of the disk, with any [image](CrashImage); again while the log is repaired | here |
//! | an operation fails, the disk is full | here |
//! | what was synced rots, is cut short or overwritten | [`damage`], [`sites`] |

pub mod damage;
pub mod sites;

use crate::chance::place;
use crate::checkers::{Check, Violation, require};
use crate::store::{Store, Undo, UnsyncedWrite};
use bytes::Bytes;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use synod_coordinator::log::{
    CrashImage, Identity, Log, LogError, MemoryDisk, Opened, Operation, Options, SECTOR_BYTES,
};
use synod_coordinator_core::durable::{Batch, Recovered};
use synod_coordinator_core::effects::Fetch;
use synod_coordinator_core::paxos::{Accepted, Slot};
use synod_coordinator_core::random::Random;
use synod_coordinator_core::replica::WriteFailure;
use synod_proto::ids::{Incarnation, ReplicaId};

/// More operations than an append or the repair at an open has: after so many the write under way is whole.
const OPERATION_COUNT: u64 = 7;

/// A moment in the life of a disk at which its machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CrashPoint {
    /// The operation that is cut short, counted from 0 at the moment this is planned: a write, a sync, a creation, a
    /// removal or a sync of the directory. Crashes in between do not start the count anew.
    pub after: u64,
    /// What is left of what was not synced.
    pub image: CrashImage,
    /// The machine stops once more, at this operation of the repair that follows (or, if that has fewer, at one after it),
    /// with this image.
    pub again: Option<(u64, CrashImage)>,
}

/// How the process on the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The machine stops, with what is under way lost or kept.
    Stop(UnsyncedWrite),
    /// The machine has stopped at the point that was planned.
    Planned,
    /// Only the process ends: the page cache stays.
    Exit,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is on disk.
    Synced,
    /// The machine has stopped meanwhile.
    Stopped,
    /// The disk failed, in this operation.
    Failed(WriteFailure, &'static str),
}

/// The error of a failed sync: the log treats all alike, but a run counts them apart from failed writes.
const SYNC_FAILED: ErrorKind = ErrorKind::TimedOut;

/// A failure of one operation, for which the machine goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationFault {
    /// A write fails.
    Write,
    /// A sync fails: what was to become durable stays in the page cache only (traps A11).
    Sync,
    /// There is no space for another segment.
    Full,
}

/// Where a synced batch lies.
#[derive(Clone, Debug)]
struct Placed {
    file: String,
    /// All of it, with the padding.
    range: Range<usize>,
    header_bytes: usize,
    /// Its values, in the order of the batch.
    values: Vec<(Slot, Range<usize>)>,
    /// What it replaced.
    undo: Undo,
}

/// A replica's log and the disk under it.
#[derive(Debug)]
pub struct LogDisk {
    /// The replica to whose machine the disk is attached.
    pub replica: ReplicaId,
    incarnation: Incarnation,
    options: Options,
    random: Random,
    disk: Arc<MemoryDisk>,
    /// `None` between a crash and the next start.
    log: Option<Log<MemoryDisk>>,
    placed: Vec<Placed>,
    /// Segments are made ahead of need, as the storage thread does, or when they are needed.
    makes_ahead: bool,
    /// The operations of the disk's lives before this one.
    former_operation_count: u64,
    /// The machine stopped behind the sync of a batch of which nobody was told: it is on disk for sure.
    is_batch_behind_stop: bool,
    planned: Option<CrashPoint>,
    /// How many crashes happened at a point that was planned, and of these while the log was opened.
    pub planned_crash_count: (u64, u64),
    /// The operations of the log's last opening.
    open_operation_count: u64,
    /// The operations of the opening that followed the last crash at a point that was planned.
    pub repair_operation_count: u64,
}

impl LogDisk {
    /// An empty log in segments of this length.
    ///
    /// # Panics
    /// A sound disk refuses.
    #[must_use]
    pub fn new(replica: ReplicaId, incarnation: Incarnation, segment_bytes: u64, seed: u64) -> Self {
        let mut own = Self {
            replica,
            incarnation,
            options: Options { segment_bytes },
            random: Random::new(seed),
            disk: Arc::new(MemoryDisk::default()),
            log: None,
            placed: Vec::new(),
            makes_ahead: seed.is_multiple_of(2),
            former_operation_count: 0,
            is_batch_behind_stop: false,
            planned: None,
            planned_crash_count: (0, 0),
            open_operation_count: 0,
            repair_operation_count: 0,
        };
        Log::create(&own.disk, &own.identity(), own.options).expect("a sound disk holds a log");
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
        self.with_disk(self.disk.fork())
    }

    /// A copy of the directory, as somebody makes one at any time, and the model of what it holds. A write whose failure was
    /// reported may be in the page cache nevertheless: then the copy has it, whatever becomes of the original.
    ///
    /// # Errors
    /// The copy shows neither the state before the write under way nor the one behind it.
    pub fn backup(&self, store: &Store) -> Result<(Store, Self), Violation> {
        let (mut held, mut copy) = (store.clone(), self.copy());
        // Looked at in a second copy: opening repairs, and the first is to be put back as it was made.
        let mut seen = copy.copy();
        seen.crash(&mut held, End::Exit)?;
        copy.placed = seen.placed;
        Ok((held, copy))
    }

    fn with_disk(&self, disk: MemoryDisk) -> Self {
        Self {
            replica: self.replica,
            incarnation: self.incarnation,
            options: self.options,
            random: self.random.clone(),
            disk: Arc::new(disk),
            log: None,
            placed: self.placed.clone(),
            makes_ahead: self.makes_ahead,
            former_operation_count: self.operation_count(),
            is_batch_behind_stop: false,
            planned: None,
            planned_crash_count: self.planned_crash_count,
            open_operation_count: self.open_operation_count,
            repair_operation_count: self.repair_operation_count,
        }
    }

    /// How many operations that change the disk were tried, in all its lives.
    #[must_use]
    pub fn operation_count(&self) -> u64 {
        self.former_operation_count + self.disk.operation_count()
    }

    /// Plans a crash.
    pub fn plan_crash(&mut self, point: CrashPoint) {
        let after = self.operation_count() + point.after;
        self.planned = Some(CrashPoint { after, ..point });
        self.arm();
    }

    /// Lets the `after`-th operation of a kind fail, or leaves no space for another segment.
    pub fn plan_fault(&self, fault: OperationFault, after: u64) {
        match fault {
            OperationFault::Write => self.disk.fail_of(Operation::Write, after, ErrorKind::Other),
            OperationFault::Sync => self.disk.fail_of(Operation::Sync, after, SYNC_FAILED),
            OperationFault::Full => self.disk.limit(Some(self.disk.used())),
        }
    }

    /// The disk fails in the middle of a write, and does not say how far it came.
    pub fn fail(&mut self, batch: &Batch) {
        let after = self.random.between(0, 1);
        self.disk.fail(after, ErrorKind::StorageFull);
        // Whether it shows an error or, with nothing left to do, none: the process is told that it failed.
        let _ = self.log.as_mut().map(|log| log.append(batch));
    }

    /// Whether a crash or a failure of this disk is still to come.
    #[must_use]
    pub fn has_plans(&self) -> bool {
        self.planned.is_some() || self.disk.has_faults()
    }

    /// Nothing that was planned happens any more; there is space again.
    pub fn mend(&mut self) {
        self.planned = None;
        self.disk.mend();
    }

    /// Writes and syncs a batch; `store` does not hold it yet.
    ///
    /// # Errors
    /// The log refuses for another reason than the disk.
    pub fn append(&mut self, batch: &Batch, store: &Store) -> Result<Written, Violation> {
        let log = self.log.as_mut().expect("a running process has its log open");
        let failed_before = self.disk.failed_count();
        let appended = log.append(batch);
        match appended {
            Ok(()) => {
                self.place(batch, store.undo_of(batch));
                // As the storage thread takes it: a failure counts when the segment is needed.
                let log = self.log.as_mut().expect("it is open");
                if self.makes_ahead && log.make_next_segment().is_err() && self.has_halted() {
                    self.is_batch_behind_stop = true;
                    return Ok(Written::Stopped);
                }
                Ok(Written::Synced)
            }
            Err(_) if self.has_halted() => Ok(Written::Stopped),
            Err(error) => {
                require(self.disk.failed_count() > failed_before, || {
                    format!("append to a sound disk: {error}")
                })?;
                Ok(match error {
                    LogError::Full { .. } => Written::Failed(WriteFailure::Full, "the disk is full"),
                    LogError::Broken { source, .. } if source.kind() == SYNC_FAILED => {
                        Written::Failed(WriteFailure::Broken, "a sync failed")
                    }
                    _ => Written::Failed(WriteFailure::Broken, "a write failed"),
                })
            }
        }
    }

    /// The process on the machine ends, with at most one write under way, of which any part may be on disk. Says what became
    /// of it, by opening the log.
    ///
    /// # Errors
    /// The log shows neither the state before that write nor the one behind it.
    pub fn crash(&mut self, store: &mut Store, end: End) -> Check {
        let under_way = store.under_way().cloned();
        let undo = under_way.as_ref().map(|batch| store.undo_of(batch));
        if let (End::Stop(unsynced), Some(batch), Some(log)) = (end, &under_way, &mut self.log) {
            if unsynced == UnsyncedWrite::Lost {
                self.disk.halt(self.random.between(0, OPERATION_COUNT));
            }
            let _ = log.append(batch);
        }
        let last_write = self.disk.last_write();
        let is_none_kept =
            end == End::Planned && self.planned.is_some_and(|one| one.image == CrashImage::Nothing);
        self.log = None;
        match end {
            End::Stop(_) => self.lose_power(),
            End::Planned => self.lose_power_as_planned(),
            // Faults still to come stay; the page cache, too.
            End::Exit => {}
        }
        if matches!(end, End::Stop(_)) && self.random.between(0, 3) == 0 {
            // The machine stops once more, while the log is being repaired.
            self.disk.halt(self.random.between(0, OPERATION_COUNT));
            let _ = self.open();
            self.lose_power();
        }
        if end == End::Exit {
            self.disk.mend();
            self.arm();
        }
        let found = self.open_through()?.recovered;
        if end == End::Planned {
            self.repair_operation_count = self.open_operation_count;
        }
        let must_be_kept = std::mem::take(&mut self.is_batch_behind_stop);
        let before = store.recover().0;
        if holds(&found, store) && !must_be_kept {
            store.crash(UnsyncedWrite::Lost);
            return Ok(());
        }
        store.crash(UnsyncedWrite::Kept);
        let may_be_kept = must_be_kept || !is_none_kept;
        require(holds(&found, store) && may_be_kept, || {
            let (before, after) = (
                difference(&found, &before),
                difference(&found, &store.recover().0),
            );
            format!(
                "replica {}: after {end:?} the log shows neither the state before the write under way ({before}) nor, if it \
                 may, the one behind it ({after})",
                self.replica
            )
        })?;
        if let (Some(batch), Some(undo), false) = (&under_way, undo, must_be_kept) {
            self.place_at(batch, undo, last_write);
        }
        Ok(())
    }

    /// A process starts: what it finds, compared with the model, value by value.
    ///
    /// # Errors
    /// The log cannot be opened, or holds something else.
    pub fn start(&mut self, store: &Store) -> Result<(Recovered, Vec<Accepted>), Violation> {
        let opened = self.open_through()?;
        let mut values = Vec::new();
        opened
            .log
            .load(|accepted| values.push(accepted))
            .map_err(|error| Violation(format!("load: {error}")))?;
        let (recovered, expected) = store.recover();
        require(opened.recovered == recovered && values == expected, || {
            let first = values.iter().zip(&expected).find(|(one, other)| one != other);
            format!(
                "replica {}: the log loaded other than its disk holds: {}, {first:?}",
                self.replica,
                difference(&opened.recovered, &recovered)
            )
        })?;
        self.log = Some(opened.log);
        Ok((recovered, values))
    }

    /// The directory stands on another replica's machine: it must be refused there (L10).
    ///
    /// # Errors
    /// It is not, or for another reason.
    pub fn check_refused_by(&self, other: ReplicaId) -> Check {
        let identity = Identity {
            replica: other,
            ..self.identity()
        };
        let opened = Log::open(Arc::new(self.disk.fork()), identity, self.options);
        require(matches!(opened, Err(LogError::Foreign { .. })), || {
            let what = opened.map(|opened| opened.recovered);
            format!(
                "replica {other} opened the directory of replica {}: {what:?}",
                self.replica
            )
        })
    }

    /// Reads for a lagging peer.
    ///
    /// # Errors
    /// The log holds something else than the model.
    pub fn fetch(&self, fetch: Fetch, store: &Store) -> Result<Option<Vec<Bytes>>, Violation> {
        let log = self.log.as_ref().expect("a running process has its log open");
        let expected = store.fetch(fetch);
        let count = expected.as_ref().map_or(1, Vec::len) as u64;
        let up_to = Slot(fetch.first.0 + count - 1);
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

    fn place(&mut self, batch: &Batch, undo: Undo) {
        let last_write = self.disk.last_write();
        self.place_at(batch, undo, last_write);
    }

    /// Notes where a batch lies, for damage that is to hit it and for what that damage may cost.
    fn place_at(&mut self, batch: &Batch, undo: Undo, write: Option<(String, Range<usize>)>) {
        let (file, range) = write.expect("a batch is written");
        // The format: magic, header length, length.
        let at = range.start + 8;
        let field = self
            .disk
            .part(&file, at..at + 4)
            .expect("the file is there, and holds the batch");
        let header_bytes = u32::from_le_bytes(field.try_into().expect("four bytes")) as usize;
        let mut at = range.start + header_bytes;
        let values = batch.accepted.iter().map(|accepted| {
            let start = at;
            at += accepted.value.len();
            (accepted.slot, start..at)
        });
        self.placed.push(Placed {
            values: values.collect(),
            file,
            range,
            header_bytes,
            undo,
        });
    }

    fn has_halted(&self) -> bool {
        self.disk.halted_in().is_some()
    }

    fn arm(&self) {
        if let Some(point) = self.planned {
            // One that is past, by the operations of a machine that was stopping, is the next.
            self.disk.halt(point.after.saturating_sub(self.operation_count()));
        }
    }

    fn replace_disk(&mut self, disk: MemoryDisk) {
        self.former_operation_count = self.operation_count();
        self.disk = Arc::new(disk);
        self.arm();
    }

    fn lose_power(&mut self) {
        let random = &mut self.random;
        let disk = self.disk.crash(|count| place(random, count));
        self.replace_disk(disk);
    }

    fn lose_power_as_planned(&mut self) {
        let point = self.planned.take().expect("the machine stopped as planned");
        self.planned_crash_count.0 += 1;
        self.planned = point.again.map(|(after, image)| CrashPoint {
            after: self.operation_count() + after,
            image,
            again: None,
        });
        self.replace_disk(self.disk.crash_to(point.image));
    }

    /// Opens the log, through every crash and every failure that is planned for that.
    fn open_through(&mut self) -> Result<Opened<MemoryDisk>, Violation> {
        loop {
            let (before, failed_before) = (self.operation_count(), self.disk.failed_count());
            let opened = self.open();
            if opened.is_err() && !self.has_halted() && self.disk.failed_count() > failed_before {
                // L9: the disk failed in the repair, and the process did not start. Somebody looks after the disk, and
                // starts it again.
                self.disk.mend();
                self.arm();
                continue;
            }
            if opened.is_err() && self.has_halted() {
                self.planned_crash_count.1 += 1;
                self.lose_power_as_planned();
                continue;
            }
            self.open_operation_count = self.operation_count() - before;
            return opened.map_err(|error| {
                Violation(format!(
                    "replica {}: the log does not open: {error}",
                    self.replica
                ))
            });
        }
    }

    fn open(&self) -> Result<Opened<MemoryDisk>, LogError> {
        Log::open(Arc::clone(&self.disk), self.identity(), self.options)
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

/// In what two states differ, for people.
fn difference(found: &Recovered, expected: &Recovered) -> String {
    if found.meta != expected.meta {
        return format!("found {:?}, not {:?}", found.meta, expected.meta);
    }
    let of = |one: &Recovered, other: &Recovered| -> Vec<Slot> {
        let is_other = |slot: &Slot| one.readable.get(slot) != other.readable.get(slot);
        one.readable.keys().copied().filter(is_other).collect()
    };
    format!(
        "reads slots {:?}, should read {:?}; reports {:?}, should report {:?}",
        of(found, expected),
        of(expected, found),
        found.unreadable,
        expected.unreadable
    )
}

/// Whether what the log found is exactly what is known to be on disk.
fn holds(found: &Recovered, store: &Store) -> bool {
    store.recover().0 == *found
}
