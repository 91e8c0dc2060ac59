//! The replicated log on disk (L7): what makes a promise or an accepted value outlive the process.
//!
//! It stands behind step 4 of a transaction: the commit point is a quorum's [`append`](Log::append). Segments of fixed
//! size are allocated and zeroed before use, so that a batch costs one write and one sync and no metadata; each batch
//! begins at a block of its own and names the end of the one before, so that nothing that was synced is ever written
//! again with other content, and nothing that was lost goes unnoticed.
//!
//! | file | holds |
//! |---|---|
//! | [`mod@format`] | the bytes of a segment |
//! | `recover` | what a start makes of the bytes it finds: torn tail or corruption |
//! | [`report`] | what it found, for the trace |
//! | [`inspect`] | the same for a reader that touches nothing |
//! | `segment` | creation of segments, ahead of need, under another name until they are whole |
//! | [`storage`] | the one thread that owns the log |
//! | [`disk`], [`file_disk`], [`memory_disk`] | the disk, real and faulty |
//!
//! **Invariants.** A batch is acknowledged only after its sync. After the first failed write nothing is acknowledged any
//! more (L9). A record that was acknowledged is afterwards found readable, or reported as unreadable, never as absent
//! (L3), but for one limit: *rot in exactly the last synced batch of a crashed replica* looks like the torn write of a
//! batch that nobody was told of, and is cut. An orderly stop closes that gap (see [`Log::close`]).
//!
//! The log is kept whole: nothing removes segments yet.

pub mod disk;
mod error;
pub mod file_disk;
pub mod format;
pub mod inspect;
pub mod memory_disk;
mod recover;
pub mod report;
mod segment;
pub mod storage;

pub use disk::{BLOCK_BYTES, Disk, DiskFile};
pub use error::{LogError, ReadError};
pub use file_disk::FileDisk;
pub use format::BATCH_BYTES_MAX;
pub use memory_disk::{CrashImage, MemoryDisk, Operation, SECTOR_BYTES};
pub use report::OpenReport;
pub use storage::Storage;

use bytes::Bytes;
use disk::AlignedBuffer;
use format::{
    BatchSize, DATA_START, Link, Position, Record, Salt, checked_value, encode_batch, segment_name,
};
use segment::{Preparation, Segment};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use synod_coordinator_core::durable::{Batch, Meta, Recovered};
use synod_coordinator_core::paxos::{Accepted, Slot};
use synod_proto::ids::{ClusterId, Incarnation, ReplicaId};
use synod_proto::planted;

/// Whose log this is. Written into every segment; a log of another replica, cluster or directory is refused (L10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The replica.
    pub replica: ReplicaId,
    /// The directory.
    pub incarnation: Incarnation,
}

/// How the log lays out its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The length of a new segment in bytes, rounded up to [`BLOCK_BYTES`]. May differ from start to start.
    pub segment_bytes: u64,
}

impl Options {
    /// The shortest segment: its header and one batch.
    pub const SEGMENT_BYTES_MIN: u64 = 2 * BLOCK_BYTES as u64;
}

impl Default for Options {
    /// Segments of 16 MiB: long enough that the next one is ready before this one is full, short enough that giving
    /// one back matters.
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
        }
    }
}

/// What [`Log::open`] gives.
#[derive(Debug)]
pub struct Opened<D: Disk> {
    /// The log, ready for appending.
    pub log: Log<D>,
    /// What the replica's core starts from.
    pub recovered: Recovered,
    /// For the trace.
    pub report: OpenReport,
}

/// The log of one replica. One thread owns it.
#[derive(Debug)]
pub struct Log<D: Disk> {
    disk: Arc<D>,
    identity: Identity,
    options: Options,
    current: Segment<D::File>,
    /// The next segment, if it has been prepared.
    next: Option<Segment<D::File>>,
    /// Behind the last batch.
    end: Position,
    /// The last batch's sequence; 0 before the first.
    sequence: u64,
    meta: Meta,
    /// Where each slot's latest record lies.
    index: BTreeMap<Slot, Record>,
    /// Slots whose latest record is lost. A new record heals a slot.
    unreadable: BTreeSet<Slot>,
    buffer: AlignedBuffer,
    failed: Option<LogError>,
}

impl<D: Disk> Log<D> {
    /// Makes a new, empty log: its first segment. When this has returned, [`open`](Self::open) finds it.
    ///
    /// # Errors
    /// [`LogError::Full`] or [`LogError::Broken`]; nothing was acknowledged, so the caller may remove what there is and
    /// begin again.
    pub fn create(disk: &Arc<D>, identity: &Identity, options: Options) -> Result<(), LogError> {
        Preparation::new(disk, identity, 1, options.segment_bytes)
            .run()
            .map(drop)
    }

    /// Reads the log of `identity` on `disk`, cuts a torn tail, and makes sure that what it reports is on disk: the
    /// last batch is written once more, since a crashed process may have left it in the page cache only (traps A11).
    ///
    /// # Errors
    /// Each [`LogError`] says what to do. Corruption is no error: it is reported in [`Recovered::unreadable`] (L3).
    pub fn open(disk: Arc<D>, identity: Identity, options: Options) -> Result<Opened<D>, LogError> {
        recover::open(disk, identity, options)
    }

    /// Writes a batch and syncs it. When this returns `Ok`, the batch outlives a crash.
    ///
    /// # Errors
    /// The batch may or may not be found at the next start, and nothing may be said that rests on it (L2). Every further
    /// call answers the same error and touches the disk no more (L9).
    ///
    /// # Panics
    /// `meta` contradicts the batch or an earlier one: a bug in the core that must not reach the disk, because
    /// what is reported of lost batches rests on it.
    pub fn append(&mut self, batch: &Batch) -> Result<(), LogError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.check(batch);
        self.try_append(batch)
            .inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn try_append(&mut self, batch: &Batch) -> Result<(), LogError> {
        let size = BatchSize::of(batch);
        if size.padded > BATCH_BYTES_MAX {
            return Err(LogError::TooLarge { bytes: size.padded });
        }
        let previous_end = self.end;
        if self.must_roll(size) {
            self.roll(size)?;
        }
        let at = self.end;
        let bytes = self
            .buffer
            .take(usize::try_from(size.padded).expect("BATCH_BYTES_MAX fits"));
        let salt = Salt::new(&self.identity, at.segment);
        let sequence = self.sequence + 1;
        let records = encode_batch(
            batch,
            size,
            Link {
                sequence,
                at,
                previous_end,
            },
            salt,
            bytes,
        );
        self.current
            .file
            .write_synced_at(bytes, at.offset)
            .or_else(|error| match planted!(SyncRetried) {
                true => self.current.file.sync(),
                false => Err(error),
            })
            .map_err(|error| LogError::broken(format!("write to log segment {}", at.segment), error))?;
        for (slot, record) in records {
            self.index.insert(slot, record);
            self.unreadable.remove(&slot);
        }
        self.sequence = sequence;
        self.end = Position {
            segment: at.segment,
            offset: at.offset + size.padded,
        };
        self.meta.clone_from(&batch.meta);
        Ok(())
    }

    fn check(&self, batch: &Batch) {
        let (new, old) = (&batch.meta, &self.meta);
        assert!(new.promised >= old.promised, "a promise never falls");
        assert!(new.start >= old.start, "the count of starts never falls");
        assert!(
            new.decided_up_to >= old.decided_up_to,
            "the decided prefix never shrinks"
        );
        assert!(
            new.accepted_up_to >= old.accepted_up_to,
            "the highest accepted slot never falls"
        );
        for accepted in &batch.accepted {
            assert!(
                Slot::ZERO < accepted.slot && accepted.slot <= new.accepted_up_to,
                "meta covers every record of its batch"
            );
        }
    }

    fn must_roll(&self, size: BatchSize) -> bool {
        self.end.offset + size.padded > self.current.length
    }

    /// Whether appending `batch` begins a new segment.
    pub(crate) fn rolls_for(&self, batch: &Batch) -> bool {
        self.failed.is_none() && self.must_roll(BatchSize::of(batch))
    }

    /// Goes to the next segment: the one prepared, or one made now. A batch that no segment of the usual length holds
    /// gets a longer one. The segment left behind needs no mark: it is sealed by the first batch of a later one, which
    /// names its end.
    fn roll(&mut self, size: BatchSize) -> Result<(), LogError> {
        let number = self.current.number + 1;
        let needed = DATA_START + size.padded;
        let next = match self.next.take() {
            Some(next) if next.length >= needed => next,
            too_short => {
                if too_short.is_some() {
                    let removed = self.disk.remove(&segment_name(number));
                    removed.map_err(|error| {
                        LogError::broken(format!("remove the unused log segment {number}"), error)
                    })?;
                }
                let length = self.options.segment_bytes.max(needed);
                Preparation::new(&self.disk, &self.identity, number, length).run()?
            }
        };
        self.end = Position {
            segment: next.number,
            offset: DATA_START,
        };
        self.current = next;
        Ok(())
    }

    /// The creation of the next segment, once this one is a quarter full and there is none: for a thread off the hot
    /// path, whose result comes back by [`adopt`](Self::adopt). An idle replica keeps to one segment.
    pub(crate) fn preparation(&self) -> Option<Preparation<D>> {
        let is_due =
            self.next.is_none() && self.failed.is_none() && self.end.offset >= self.current.length / 4;
        is_due.then(|| {
            Preparation::new(
                &self.disk,
                &self.identity,
                self.current.number + 1,
                self.options.segment_bytes,
            )
        })
    }

    /// Takes the segment that a [`preparation`](Self::preparation) made.
    pub(crate) fn adopt(&mut self, next: Segment<D::File>) {
        assert_eq!(
            next.number,
            self.current.number + 1,
            "at most one preparation is under way, and it ends before a roll"
        );
        self.next = Some(next);
    }

    /// Makes the next segment now, if it is due: for a driver without the storage thread, which leaves it to another one.
    ///
    /// # Errors
    /// It could not be made. The log goes on: when the segment is needed, its creation is tried once more, and that answer
    /// counts.
    pub fn make_next_segment(&mut self) -> Result<(), LogError> {
        if let Some(preparation) = self.preparation() {
            let next = preparation.run()?;
            self.adopt(next);
        }
        Ok(())
    }

    /// Marks an orderly end: one more batch without records. With it, rot in the last batch that holds any is followed
    /// by a readable batch, and so told apart from a torn write. Nothing is acknowledged by it.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn close(mut self) -> Result<(), LogError> {
        let batch = Batch {
            meta: self.meta.clone(),
            accepted: Vec::new(),
        };
        self.append(&batch)
    }

    /// The state as of the last batch.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The value accepted last in `slot`, or `None` if there never was one.
    ///
    /// # Errors
    /// There is, or may be, one that cannot be read: that is not the same as none (L3).
    pub fn read(&self, slot: Slot) -> Result<Option<Accepted>, ReadError> {
        Ok(self.plan_read(slot..=slot, usize::MAX)?.run()?.pop())
    }

    /// The values of the slots of `range` that have one, ascending, until they exceed `bytes_max` together (but at
    /// least one). A caller that needs every slot looks for gaps.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn read_range(
        &self,
        range: RangeInclusive<Slot>,
        bytes_max: usize,
    ) -> Result<Vec<Accepted>, ReadError> {
        self.plan_read(range, bytes_max)?.run()
    }

    /// Passes every readable value to `load`, ascending by slot; for the start. Slots known to be unreadable are left
    /// out: [`Recovered::unreadable`] names them.
    ///
    /// # Errors
    /// A value that [`open`](Self::open) could read cannot be read any more.
    pub fn load(&self, mut load: impl FnMut(Accepted)) -> Result<(), ReadError> {
        let mut reader = Reader::new(&self.disk, &self.identity);
        for (slot, record) in &self.index {
            load(reader.read(*slot, record)?);
        }
        Ok(())
    }

    /// Looks up what a read needs, so that another thread can do it while appends go on: what the index names is synced
    /// and never changes.
    pub(crate) fn plan_read(
        &self,
        range: RangeInclusive<Slot>,
        bytes_max: usize,
    ) -> Result<ReadPlan<D>, ReadError> {
        if range.is_empty() {
            return Ok(ReadPlan {
                reader: Reader::new(&self.disk, &self.identity),
                wanted: Vec::new(),
            });
        }
        let mut wanted: Vec<(Slot, Record)> = Vec::new();
        let mut bytes = 0usize;
        let mut up_to = *range.end();
        for (slot, record) in self.index.range(range.clone()) {
            bytes = bytes.saturating_add(record.length as usize);
            if let Some((last, _)) = wanted.last()
                && bytes > bytes_max
            {
                up_to = *last;
                break;
            }
            wanted.push((*slot, *record));
        }
        // An unreadable slot among them is told; one behind them is left to the next read.
        if let Some(slot) = self.unreadable.range(*range.start()..=up_to).next() {
            return Err(ReadError::Unreadable { slot: *slot });
        }
        Ok(ReadPlan {
            reader: Reader::new(&self.disk, &self.identity),
            wanted,
        })
    }
}

/// A read that has been looked up and is to be done.
#[derive(Debug)]
pub(crate) struct ReadPlan<D: Disk> {
    reader: Reader<D>,
    wanted: Vec<(Slot, Record)>,
}

impl<D: Disk> ReadPlan<D> {
    pub(crate) fn run(mut self) -> Result<Vec<Accepted>, ReadError> {
        self.wanted
            .iter()
            .map(|(slot, record)| self.reader.read(*slot, record))
            .collect()
    }
}

/// Reads values, keeping the segment open that it read last: slots near each other lie near each other. (All of a
/// long log's segments kept open would use up a process's file descriptors.)
#[derive(Debug)]
struct Reader<D: Disk> {
    disk: Arc<D>,
    identity: Identity,
    open: Option<(u64, Salt, D::File)>,
}

impl<D: Disk> Reader<D> {
    fn new(disk: &Arc<D>, identity: &Identity) -> Self {
        Self {
            disk: Arc::clone(disk),
            identity: identity.clone(),
            open: None,
        }
    }

    fn read(&mut self, slot: Slot, record: &Record) -> Result<Accepted, ReadError> {
        let io = |source| ReadError::Io {
            slot,
            segment: record.segment,
            source,
        };
        let (segment, salt, file) = match self
            .open
            .take()
            .filter(|(segment, ..)| *segment == record.segment)
        {
            Some(open) => open,
            None => {
                let file = self.disk.open(&segment_name(record.segment)).map_err(io)?;
                (record.segment, Salt::new(&self.identity, record.segment), file)
            }
        };
        let mut value = vec![0; record.length as usize];
        file.read_at(&mut value, record.offset).map_err(io)?;
        self.open = Some((segment, salt, file));
        checked_value(slot, record, salt, Bytes::from(value)).ok_or(ReadError::Corrupt {
            slot,
            segment,
            offset: record.offset,
        })
    }
}
