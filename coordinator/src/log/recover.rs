//! What a start makes of the bytes it finds: the replica's state, a torn tail, or corruption.
//!
//! Only one batch is ever on its way to the disk, into zeros. So a crash leaves at most one damaged batch, with nothing
//! behind it: that is a *torn tail*, nobody was told of it, and it is cut. Damage followed by a readable batch, in this
//! segment or a later one, was synced once: that is *corruption* (traps A10). It is never cut; the slots whose
//! latest record it may have held are reported as unreadable (L3). Batches are numbered without gaps and each names the
//! end of the one before, so a batch that has vanished is noticed even where zeros, or no file at all, took its place.
//!
//! A segment has its name only since it was whole, with its header: a shorter one, or one without, is damaged, and what
//! it held is not known. What lies under the name of a segment [being made](super::segment) held nothing and is removed.
//!
//! Damage at the end that one interrupted write cannot explain may have held the replica's last promise. Such a
//! replica must neither promise nor accept: [`LogError::EndLost`] (L7).

use super::disk::{AlignedBuffer, BLOCK_BYTES, Disk, DiskFile};
use super::format::{
    BatchHeader, DATA_START, FORMAT, Position, Record, Salt, SegmentHeader, decode_batch_header,
    decode_segment_header, encode_segment_header, is_mendable_header, looks_like_header, segment_name,
    segment_numbers, unfinished_names,
};
use super::report::{CorruptPlace, Damage, OpenReport, Torn};
use super::segment::Segment;
use super::{Identity, Log, LogError, Opened, Options};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use synod_coordinator_core::durable::{Meta, Recovered};
use synod_coordinator_core::paxos::Slot;
use synod_proto::planted;

/// How many zeros are written at once over a torn tail.
const CUT_BYTES: u64 = 1 << 20;
/// How many segments can lie behind the last batch's: the one made ahead of need.
const UNUSED_COUNT_MAX: usize = 1;
/// What stands in for a block that the disk refuses to read: surely damage, since no checksum covers it.
const UNREADABLE_BYTE: u8 = 0xa5;

pub(super) fn open<D: Disk>(
    disk: Arc<D>,
    identity: Identity,
    options: Options,
) -> Result<Opened<D>, LogError> {
    let names = disk
        .list()
        .map_err(|error| LogError::broken("list the data directory", error))?;
    let numbers = segment_numbers(&names);
    if numbers.is_empty() {
        return Err(LogError::NoSegments);
    }
    let mut scan = Scan::default();
    scan.report.unfinished = unfinished_names(&names);
    // The segment of the last batch that counts, and those behind it: two at most, if all is well.
    let mut founds: Vec<Found<D::File>> = Vec::new();
    for number in numbers {
        let (mut found, bytes) = Found::read(&*disk, &identity, number)?;
        scan.segment(&mut found, &bytes, Salt::new(&identity, number));
        founds.push(found);
        founds.retain(|found| found.segment.number >= scan.last.end.segment);
    }
    let torn = scan.judge_end(&founds)?;
    let Scan {
        last,
        index,
        lost,
        mut report,
        ..
    } = scan;
    for place in &mut report.corrupt {
        place.damage.narrow(&lost);
    }
    report.torn = torn;

    let Writable { current, next } = repair(&*disk, &identity, founds, torn, &last)?;
    remove_unfinished(&*disk, &report.unfinished)?;
    let recovered = Recovered {
        meta: last.meta.clone(),
        readable: index
            .iter()
            .map(|(slot, record)| (*slot, record.ballot))
            .collect(),
        unreadable: lost.clone(),
    };
    let log = Log {
        disk,
        identity,
        options,
        current,
        next,
        end: last.end,
        sequence: last.sequence,
        meta: last.meta,
        index,
        unreadable: lost,
        buffer: AlignedBuffer::default(),
        failed: None,
    };
    Ok(Opened {
        log,
        recovered,
        report,
    })
}

/// A segment as found.
pub(super) struct Found<F> {
    pub(super) segment: Segment<F>,
    header: HeaderFound,
    /// The file is shorter than it was made.
    is_short: bool,
    /// It holds something behind the last readable batch.
    is_dirty: bool,
}

/// What became of a segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeaderFound {
    Intact,
    /// All of it is known nevertheless, and so that the file is whole.
    Mendable,
    Lost,
}

impl<F: DiskFile> Found<F> {
    pub(super) fn read<D: Disk<File = F>>(
        disk: &D,
        identity: &Identity,
        number: u64,
    ) -> Result<(Self, Vec<u8>), LogError> {
        let name = segment_name(number);
        let broken = |error| LogError::broken(format!("read `{name}`"), error);
        let file = disk.open(&name).map_err(broken)?;
        let file_length = file.length().map_err(broken)?;
        let bytes = read_whole(&file, file_length).map_err(broken)?;
        let header = decode_segment_header(&bytes);
        if let Some(header) = &header {
            check_header(header, identity, number, &name)?;
        }
        // Whole blocks only; a file of another length was cut.
        let whole = file_length - file_length % BLOCK_BYTES as u64;
        let length = header.as_ref().map_or(whole, |header| header.length.min(whole));
        let is_short = match &header {
            Some(header) => file_length < header.length,
            None => whole < file_length || file_length < Options::SEGMENT_BYTES_MIN,
        };
        let segment = Segment { number, length, file };
        let header = match header {
            Some(_) => HeaderFound::Intact,
            None if is_mendable_header(&bytes, identity, number, file_length) => HeaderFound::Mendable,
            None => HeaderFound::Lost,
        };
        Ok((
            Self {
                segment,
                header,
                is_short,
                is_dirty: false,
            },
            bytes,
        ))
    }
}

fn check_header(
    header: &SegmentHeader,
    identity: &Identity,
    number: u64,
    name: &str,
) -> Result<(), LogError> {
    if header.format != FORMAT {
        return Err(LogError::UnknownFormat {
            name: name.into(),
            found: header.format,
            known: FORMAT,
        });
    }
    let describe = |segment, cluster: &str, replica, incarnation| {
        format!("segment {segment} of cluster {cluster}, replica {replica}, directory {incarnation}")
    };
    let found = describe(
        header.segment,
        &header.cluster,
        header.replica,
        header.incarnation,
    );
    let expected = describe(
        number,
        identity.cluster.as_str(),
        identity.replica,
        identity.incarnation,
    );
    if found == expected {
        Ok(())
    } else {
        Err(LogError::Foreign {
            name: name.into(),
            found,
            expected,
        })
    }
}

/// Reads a file. A sector that the disk refuses is damage like any other, and the rest is still wanted.
fn read_whole(file: &impl DiskFile, length: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
    let Err(error) = file.read_at(&mut bytes, 0) else {
        return Ok(bytes);
    };
    let mut is_any_readable = false;
    for (index, block) in bytes.chunks_mut(BLOCK_BYTES).enumerate() {
        if file.read_at(block, (index * BLOCK_BYTES) as u64).is_ok() {
            is_any_readable = true;
        } else {
            block.fill(UNREADABLE_BYTE);
        }
    }
    if is_any_readable { Ok(bytes) } else { Err(error) }
}

/// The last batch that counts, so far.
#[derive(Debug)]
pub(super) struct Last {
    sequence: u64,
    at: Position,
    pub(super) end: Position,
    pub(super) meta: Meta,
}

impl Default for Last {
    fn default() -> Self {
        let origin = Position {
            segment: 1,
            offset: DATA_START,
        };
        Self {
            sequence: 0,
            at: origin,
            end: origin,
            meta: Meta::default(),
        }
    }
}

/// Damaged bytes between two readable batches of one segment.
#[derive(Clone, Copy, Debug)]
struct Bad {
    segment: u64,
    offset: u64,
    end: u64,
    /// Blocks that begin like a batch. One write has only one.
    headers: u64,
}

/// A readable header, and which of its values are.
#[derive(Debug)]
struct Held {
    header: BatchHeader,
    is_readable: Vec<bool>,
}

#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) last: Last,
    pub(super) index: BTreeMap<Slot, Record>,
    pub(super) lost: BTreeSet<Slot>,
    /// A batch with an unreadable value, until it is known whether anything follows.
    held: Option<Held>,
    /// Damage since the last readable header.
    pending: Vec<Bad>,
    pub(super) report: OpenReport,
}

impl Scan {
    pub(super) fn segment<F>(&mut self, found: &mut Found<F>, bytes: &[u8], salt: Salt) {
        let number = found.segment.number;
        self.report.segment_count += 1;
        let bytes = &bytes[..usize::try_from(found.segment.length).expect("it was read whole")];
        let mut batch_count = 0;
        let mut bad: Option<Bad> = None;
        let mut offset = BLOCK_BYTES;
        while let Some(block) = bytes.get(offset..offset + BLOCK_BYTES) {
            let at = Position {
                segment: number,
                offset: offset as u64,
            };
            if block.iter().all(|byte| *byte == 0) {
                offset += BLOCK_BYTES;
            } else if let Some(header) = decode_batch_header(&bytes[offset..], salt, at)
                .filter(|header| header.sequence > self.sequence())
                .filter(|_| bad.is_none() || !planted!(TruncatedAtFirstBad))
            {
                self.pending.extend(bad.take());
                offset = usize::try_from(header.end.offset).expect("it lies within the segment");
                let is_readable = header.records.iter().map(|(slot, record)| {
                    let start = usize::try_from(record.offset).expect("it lies within the segment");
                    salt.value(*slot, &bytes[start..start + record.length as usize]) == record.checksum
                        || planted!(ChecksumNotChecked)
                });
                self.batch(Held {
                    is_readable: is_readable.collect(),
                    header,
                });
                batch_count += 1;
            } else {
                let bad = bad.get_or_insert(Bad {
                    segment: number,
                    offset: at.offset,
                    end: 0,
                    headers: 0,
                });
                bad.end = at.offset + BLOCK_BYTES as u64;
                bad.headers += u64::from(looks_like_header(block, number));
                offset += BLOCK_BYTES;
            }
        }
        // A held batch that is the last one may be torn: then it is what makes the segment dirty.
        found.is_dirty = bad.is_some()
            || self
                .held
                .as_ref()
                .is_some_and(|held| held.header.at.segment == number);
        self.pending.extend(bad);
        // Of a segment without a batch it is judged at the end what that costs.
        if found.header != HeaderFound::Intact && batch_count > 0 {
            self.corrupt(number, 0, Damage::SegmentHeader);
        }
    }

    fn sequence(&self) -> u64 {
        self.held
            .as_ref()
            .map_or(self.last.sequence, |held| held.header.sequence)
    }

    /// A readable header: whatever damage came before it was synced once.
    fn batch(&mut self, batch: Held) {
        if let Some(held) = self.held.take() {
            self.apply(held);
        }
        let header = &batch.header;
        if header.sequence == self.last.sequence + 1 && header.previous_end == self.last.end {
            for bad in std::mem::take(&mut self.pending) {
                self.corrupt(bad.segment, bad.offset, Damage::Unused);
            }
        } else {
            // A slot at or below the prefix that was decided before the gap has its decided value in an older record; one
            // above what had been accepted behind the gap cannot have been in it. Between them nothing is known until a
            // later record says it.
            let first = self.last.meta.decided_up_to.next();
            let up_to = header.meta.accepted_up_to;
            let count = header.sequence - self.last.sequence - 1;
            self.index.retain(|slot, _| *slot < first || *slot > up_to);
            self.lost.extend((first.0..=up_to.0).map(Slot));
            let place = self.pending.first().map_or(self.last.end, |bad| Position {
                segment: bad.segment,
                offset: bad.offset,
            });
            self.corrupt(
                place.segment,
                place.offset,
                Damage::Batches { count, first, up_to },
            );
            self.pending.clear();
        }
        if batch.is_readable.iter().all(|is_readable| *is_readable) {
            self.apply(batch);
        } else {
            self.held = Some(batch);
        }
    }

    fn apply(&mut self, batch: Held) {
        let Held { header, is_readable } = batch;
        for ((slot, record), is_readable) in header.records.into_iter().zip(is_readable) {
            if is_readable {
                self.index.insert(slot, record);
                self.lost.remove(&slot);
            } else {
                // An older record of the slot is not its latest: it must not stand in for the lost one.
                self.index.remove(&slot);
                self.lost.insert(slot);
                self.corrupt(record.segment, record.offset, Damage::Value { slot });
            }
        }
        self.report.batch_count += 1;
        self.last = Last {
            sequence: header.sequence,
            at: header.at,
            end: header.end,
            meta: header.meta,
        };
    }

    fn corrupt(&mut self, segment: u64, offset: u64, damage: Damage) {
        self.report.corrupt.push(CorruptPlace {
            segment,
            offset,
            damage,
        });
    }

    /// Judges what lies behind the last batch: nothing, one interrupted write, or more.
    pub(super) fn judge_end<F>(&mut self, founds: &[Found<F>]) -> Result<Option<Torn>, LogError> {
        let lost = |segment, reason| Err(LogError::EndLost { segment, reason });
        let current = self.last.end.segment;
        if founds.is_empty() {
            return lost(current, "no file");
        }
        for (expected, found) in (current..).zip(founds) {
            if found.segment.number != expected {
                return lost(expected, "no file");
            }
            if found.is_short {
                return lost(expected, "a file cut short");
            }
            let has_batch = self.last.sequence > 0 && expected == current;
            match found.header {
                HeaderFound::Lost if !has_batch => return lost(expected, "no readable header"),
                HeaderFound::Mendable if !has_batch => self.corrupt(expected, 0, Damage::SegmentHeader),
                HeaderFound::Intact | HeaderFound::Mendable | HeaderFound::Lost => {}
            }
        }
        // A segment is made once the one before it holds a batch, and no two are ahead of their use.
        if founds.len() > UNUSED_COUNT_MAX + 1 {
            return lost(
                current + 1,
                "no readable batch, though the segment behind it was made",
            );
        }
        let torn = match (self.held.take(), self.pending.as_slice()) {
            (None, []) => None,
            (None, [bad]) if bad.headers <= 1 || planted!(TruncatedAtFirstBad) => Some(Torn {
                segment: bad.segment,
                offset: bad.offset,
                bytes: bad.end - bad.offset,
            }),
            (Some(Held { header, .. }), []) => {
                let bytes = header.end.offset - header.at.offset;
                Some(Torn {
                    segment: header.at.segment,
                    offset: header.at.offset,
                    bytes,
                })
            }
            (Some(Held { header, .. }), _) => return lost(header.at.segment, "more than one damaged batch"),
            (None, [bad, ..]) => return lost(bad.segment, "more than one damaged batch"),
        };
        Ok(torn)
    }
}

/// Where the log goes on.
struct Writable<F> {
    current: Segment<F>,
    next: Option<Segment<F>>,
}

/// Brings the disk to the state that is about to be reported. A crash in the middle leaves a torn tail again.
fn repair<D: Disk>(
    disk: &D,
    identity: &Identity,
    founds: Vec<Found<D::File>>,
    torn: Option<Torn>,
    last: &Last,
) -> Result<Writable<D::File>, LogError> {
    let mut founds = founds.into_iter();
    let current = founds.next().expect("the end was judged");
    let number = current.segment.number;
    let file = &current.segment.file;
    let broken = |error| LogError::broken(format!("repair log segment {number}"), error);
    let mut buffer = AlignedBuffer::default();

    // Zeros first, and synced: a later, shorter batch must not leave the rest of a torn longer one behind it, where
    // the start after a second crash would find it.
    if let Some(torn) = torn.filter(|torn| torn.segment == number) {
        let (mut offset, end) = (torn.offset, torn.offset + torn.bytes);
        while offset < end {
            let count = (end - offset).min(CUT_BYTES);
            let zeros = buffer.take(usize::try_from(count).expect("CUT_BYTES fits"));
            zeros.fill(0);
            file.write_synced_at(zeros, offset).map_err(broken)?;
            offset += count;
        }
    }
    if current.header != HeaderFound::Intact {
        let block = buffer.take(BLOCK_BYTES);
        encode_segment_header(identity, number, current.segment.length, block);
        file.write_synced_at(block, 0).map_err(broken)?;
    }
    // The same bytes over themselves: if they were in the page cache only, they are on disk now (traps A11). What came
    // before them was synced before they were written.
    if last.sequence > 0 {
        let length = usize::try_from(last.end.offset - last.at.offset).expect("it was read whole");
        let bytes = buffer.take(length);
        file.read_at(bytes, last.at.offset).map_err(broken)?;
        let is_the_same = decode_batch_header(bytes, Salt::new(identity, number), last.at)
            .is_some_and(|header| header.sequence == last.sequence);
        if !is_the_same {
            return Err(broken(std::io::Error::other(
                "the last batch reads differently from a moment ago",
            )));
        }
        file.write_synced_at(bytes, last.at.offset).map_err(broken)?;
    }

    // A segment made ahead of need is kept, unless the write that was interrupted was its first.
    let mut next = None;
    for behind in founds {
        if behind.header == HeaderFound::Intact && !behind.is_dirty {
            next = Some(behind.segment);
            continue;
        }
        let name = segment_name(behind.segment.number);
        let done = disk.remove(&name).and_then(|()| disk.sync_directory());
        done.map_err(|error| LogError::broken(format!("remove the unused `{name}`"), error))?;
    }
    Ok(Writable {
        current: current.segment,
        next,
    })
}

/// Removes what is left of segments that were being made. Not synced: should one come back, the next start removes it.
fn remove_unfinished(disk: &impl Disk, names: &[String]) -> Result<(), LogError> {
    for name in names {
        let removed = disk.remove(name);
        removed.map_err(|error| LogError::broken(format!("remove the unfinished `{name}`"), error))?;
    }
    Ok(())
}
