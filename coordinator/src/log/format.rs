//! The bytes of a segment, format 2. Little-endian throughout; pinned by golden bytes in the tests (traps J9).
//!
//! ```text
//! segment  = header block (4096) · batch · batch · … · zeros
//! header   = "SYNODLOG" · format u32 · block u32 · segment u64 · length u64 · incarnation [16] · replica u8
//!          · cluster length u8 · cluster [40] · crc u32
//! batch    = "SYNODBAT" · header length u32 · length u32 · segment u64 · sequence u64
//!          · previous segment u64 · previous end u64 · meta · record count u32 · records · crc u32 · values
//!          · zeros up to a multiple of 4096
//! meta     = promised ballot · start u64 · decided_up_to u64 · accepted_up_to u64 · peer count u16
//!          · (replica u8 · incarnation [16] · start u64 · process u64)*
//! record   = slot u64 · ballot · value length u32 · crc u32
//! ballot   = round u64 · replica u8 · start u64
//! ```
//!
//! The records' slots and ballots stand together in the header, so a rotten value costs its own slot and no other. Each
//! batch's header and each value has a CRC32C. They are salted with the directory's incarnation and the segment's
//! number: bytes of another segment, another directory or a user's value are never taken for a batch.

use super::Identity;
use super::disk::{BLOCK_BYTES, round_up};
use bytes::Bytes;
use std::collections::BTreeMap;
use synod_coordinator_core::durable::{Batch, Meta, PeerSeen};
use synod_coordinator_core::paxos::{Accepted, Ballot, Slot};
use synod_proto::ids::{Incarnation, ProcessNonce, ReplicaId};
use synod_proto::planted;

/// The format that this program writes.
pub const FORMAT: u32 = 2;
/// Where the first batch of a segment begins, in bytes: behind the header's block.
pub(crate) const DATA_START: u64 = BLOCK_BYTES as u64;
/// The longest batch, padding included, in bytes. Far above what a driver merges; lengths are 32 bits wide on disk.
pub const BATCH_BYTES_MAX: u64 = 1 << 30;

/// What a segment's name ends in until its file is whole.
const UNFINISHED_SUFFIX: &str = ".new";
const SEGMENT_MAGIC: &[u8; 8] = b"SYNODLOG";
const BATCH_MAGIC: &[u8; 8] = b"SYNODBAT";
const SEGMENT_HEADER_BYTES: usize = 8 + 4 + 4 + 8 + 8 + 16 + 1 + 1 + CLUSTER_BYTES + 4;
const CLUSTER_BYTES: usize = 40;
const BALLOT_BYTES: usize = 8 + 1 + 8;
const BATCH_FIXED_BYTES: usize = 8 + 4 + 4 + 8 + 8 + 8 + 8;
const META_FIXED_BYTES: usize = BALLOT_BYTES + 8 + 8 + 8 + 2;
const PEER_BYTES: usize = 1 + 16 + 8 + 8;
const RECORD_BYTES: usize = 8 + BALLOT_BYTES + 4 + 4;

const _: () = assert!(SEGMENT_HEADER_BYTES <= BLOCK_BYTES);
const _: () = assert!(BATCH_BYTES_MAX < u32::MAX as u64, "lengths are 32 bits wide");

/// A segment's file name. Ten digits keep names sorted for 160 PB of segments of 16 MiB.
pub(crate) fn segment_name(segment: u64) -> String {
    format!("segment-{segment:010}.log")
}

/// The name of a segment's file while it is being made. It holds nothing that anybody was told of.
pub(crate) fn unfinished_name(segment: u64) -> String {
    format!("{}{UNFINISHED_SUFFIX}", segment_name(segment))
}

/// The numbers of the segments among these files, in their order.
pub(crate) fn segment_numbers(names: &[String]) -> Vec<u64> {
    names.iter().filter_map(|name| segment_number(name)).collect()
}

/// Those of these files that are segments which were being made.
pub(crate) fn unfinished_names(names: &[String]) -> Vec<String> {
    let unfinished = names.iter().filter(|name| unfinished_number(name).is_some());
    unfinished.cloned().collect()
}

/// The number of the segment that was being made under this name, or `None` for any other name.
pub(crate) fn unfinished_number(name: &str) -> Option<u64> {
    segment_number(name.strip_suffix(UNFINISHED_SUFFIX)?)
}

/// The number in a segment's file name, or `None` for any other name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let number = name
        .strip_prefix("segment-")?
        .strip_suffix(".log")?
        .parse()
        .ok()?;
    (number > 0 && segment_name(number) == name).then_some(number)
}

/// A place between two batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

/// Where the initial value of every checksum of a segment comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Salt(u32);

impl Salt {
    pub(crate) fn new(identity: &Identity, segment: u64) -> Self {
        let salt = crc32c::crc32c(&identity.incarnation.0);
        let salt = crc32c::crc32c_append(salt, &[identity.replica.0]);
        let salt = crc32c::crc32c_append(salt, identity.cluster.as_str().as_bytes());
        Self(crc32c::crc32c_append(salt, &segment.to_le_bytes()))
    }

    fn header(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }

    /// The checksum of a slot's value. The slot takes part, so that no value stands in for another.
    pub(crate) fn value(self, slot: Slot, value: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c_append(self.0, &slot.0.to_le_bytes()), value)
    }
}

/// What a segment says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) format: u32,
    pub(crate) segment: u64,
    pub(crate) length: u64,
    pub(crate) incarnation: Incarnation,
    pub(crate) replica: ReplicaId,
    pub(crate) cluster: String,
}

/// Writes a segment's header into its first block.
pub(crate) fn encode_segment_header(identity: &Identity, segment: u64, length: u64, block: &mut [u8]) {
    block.fill(0);
    let mut writer = Writer { bytes: block, at: 0 };
    writer.put(SEGMENT_MAGIC);
    writer.u32(FORMAT);
    writer.u32(u32::try_from(BLOCK_BYTES).expect("a block is small"));
    writer.u64(segment);
    writer.u64(length);
    writer.put(&identity.incarnation.0);
    writer.u8(identity.replica.0);
    let cluster = identity.cluster.as_str().as_bytes();
    writer.u8(u8::try_from(cluster.len()).expect("a cluster id has at most 40 bytes"));
    let mut padded = [0; CLUSTER_BYTES];
    padded[..cluster.len()].copy_from_slice(cluster);
    writer.put(&padded);
    let checksum = crc32c::crc32c(&writer.bytes[..writer.at]);
    writer.u32(checksum);
}

/// Reads a segment's header, or `None` if these bytes are not one. Unsalted: it must be legible in a foreign directory
/// to say whose it is.
pub(crate) fn decode_segment_header(bytes: &[u8]) -> Option<SegmentHeader> {
    let bytes = bytes.get(..SEGMENT_HEADER_BYTES)?;
    let (covered, checksum) = bytes.split_at(SEGMENT_HEADER_BYTES - 4);
    let mut reader = Reader { bytes: covered };
    if reader.take(8)? != SEGMENT_MAGIC || checksum != crc32c::crc32c(covered).to_le_bytes() {
        return None;
    }
    let format = reader.u32()?;
    let _block = reader.u32()?;
    let segment = reader.u64()?;
    let length = reader.u64()?;
    let incarnation = Incarnation(reader.take(16)?.try_into().ok()?);
    let replica = ReplicaId(reader.u8()?);
    let cluster_length = usize::from(reader.u8()?);
    let cluster = String::from_utf8_lossy(reader.take(CLUSTER_BYTES)?.get(..cluster_length)?).into_owned();
    Some(SegmentHeader {
        format,
        segment,
        length,
        incarnation,
        replica,
        cluster,
    })
}

/// Whether these bytes are the header of this very segment but for one rotten byte, given the length of its file: then
/// the file is as long as it was made, and nothing that the header says is lost.
pub(crate) fn is_mendable_header(bytes: &[u8], identity: &Identity, segment: u64, length: u64) -> bool {
    let mut expected = vec![0; BLOCK_BYTES];
    encode_segment_header(identity, segment, length, &mut expected);
    bytes.get(..BLOCK_BYTES).is_some_and(|block| {
        let pairs = block.iter().zip(&expected);
        pairs.filter(|(found, expected)| found != expected).count() <= 1
    })
}

/// Where a value lies, and how to check it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) ballot: Ballot,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) checksum: u32,
}

/// A batch's header, with where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) at: Position,
    /// Behind the batch and its padding.
    pub(crate) end: Position,
    pub(crate) sequence: u64,
    pub(crate) previous_end: Position,
    pub(crate) meta: Meta,
    pub(crate) records: Vec<(Slot, Record)>,
}

/// How many bytes a batch takes: its header, all of it, and all of it with the padding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchSize {
    header: u64,
    length: u64,
    pub(crate) padded: u64,
}

impl BatchSize {
    pub(crate) fn of(batch: &Batch) -> Self {
        let header = BATCH_FIXED_BYTES
            + META_FIXED_BYTES
            + PEER_BYTES * batch.meta.peers.len()
            + 4
            + RECORD_BYTES * batch.accepted.len()
            + 4;
        let length = header
            + batch
                .accepted
                .iter()
                .map(|accepted| accepted.value.len())
                .sum::<usize>();
        Self {
            header: header as u64,
            length: length as u64,
            padded: round_up(length as u64),
        }
    }
}

/// A batch's place in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) sequence: u64,
    pub(crate) at: Position,
    pub(crate) previous_end: Position,
}

/// Encodes a batch into `bytes`, which has the batch's padded size. Returns where its values will lie.
pub(crate) fn encode_batch(
    batch: &Batch,
    size: BatchSize,
    link: Link,
    salt: Salt,
    bytes: &mut [u8],
) -> Vec<(Slot, Record)> {
    let Link {
        sequence,
        at,
        previous_end,
    } = link;
    let narrow = |length: u64| u32::try_from(length).expect("BATCH_BYTES_MAX was checked");
    let mut writer = Writer { bytes, at: 0 };
    writer.put(BATCH_MAGIC);
    writer.u32(narrow(size.header));
    writer.u32(narrow(size.length));
    writer.u64(at.segment);
    writer.u64(sequence);
    writer.u64(previous_end.segment);
    writer.u64(previous_end.offset);
    writer.meta(&batch.meta);
    writer.u32(narrow(batch.accepted.len() as u64));
    let mut records = Vec::with_capacity(batch.accepted.len());
    let mut offset = at.offset + size.header;
    for accepted in &batch.accepted {
        let Accepted { slot, ballot, value } = accepted;
        let length = narrow(value.len() as u64);
        let checksum = salt.value(*slot, value);
        writer.u64(slot.0);
        writer.ballot(*ballot);
        writer.u32(length);
        writer.u32(checksum);
        records.push((
            *slot,
            Record {
                ballot: *ballot,
                segment: at.segment,
                offset,
                length,
                checksum,
            },
        ));
        offset += u64::from(length);
    }
    let checksum = salt.header(&writer.bytes[..writer.at]);
    writer.u32(checksum);
    for accepted in &batch.accepted {
        writer.put(&accepted.value);
    }
    let end = writer.at;
    bytes[end..].fill(0);
    records
}

/// Reads the batch header at `at`, given the segment's bytes from there to its end. `None` if there is none: the
/// checksum fails, or it names another place than this.
pub(crate) fn decode_batch_header(bytes: &[u8], salt: Salt, at: Position) -> Option<BatchHeader> {
    let mut reader = Reader { bytes };
    if reader.take(8)? != BATCH_MAGIC {
        return None;
    }
    let header_length = reader.u32()? as usize;
    let length = u64::from(reader.u32()?);
    let header = bytes.get(..header_length)?;
    let (covered, checksum) = header.split_at_checked(header_length.checked_sub(4)?)?;
    if checksum != salt.header(covered).to_le_bytes() {
        return None;
    }
    // From here on the bytes are as they were written; what is checked further is that they lie where they belong.
    let mut reader = Reader {
        bytes: covered.get(16..)?,
    };
    let segment = reader.u64()?;
    let sequence = reader.u64()?;
    let previous_end = Position {
        segment: reader.u64()?,
        offset: reader.u64()?,
    };
    let meta = reader.meta()?;
    let record_count = reader.u32()? as usize;
    let mut records = Vec::with_capacity(record_count.min(covered.len() / RECORD_BYTES));
    let mut offset = header_length as u64;
    for _ in 0..record_count {
        let slot = Slot(reader.u64()?);
        let ballot = reader.ballot()?;
        let (length, checksum) = (reader.u32()?, reader.u32()?);
        records.push((
            slot,
            Record {
                ballot,
                segment,
                offset: at.offset + offset,
                length,
                checksum,
            },
        ));
        offset += u64::from(length);
    }
    let end = Position {
        segment,
        offset: at.offset + round_up(length),
    };
    let is_in_place = segment == at.segment
        && offset == length
        && reader.bytes.is_empty()
        && end.offset - at.offset <= bytes.len() as u64
        && if previous_end.segment == segment {
            previous_end.offset == at.offset
        } else {
            previous_end.segment < segment && at.offset == DATA_START
        };
    is_in_place.then_some(BatchHeader {
        at,
        end,
        sequence,
        previous_end,
        meta,
        records,
    })
}

/// Whether a block begins like a batch's header of this segment, though it may be damaged.
pub(crate) fn looks_like_header(block: &[u8], segment: u64) -> bool {
    block.starts_with(BATCH_MAGIC) && block.get(16..24) == Some(&segment.to_le_bytes())
}

/// Checks a value that was read and makes it an [`Accepted`].
pub(crate) fn checked_value(slot: Slot, record: &Record, salt: Salt, value: Bytes) -> Option<Accepted> {
    let is_intact = salt.value(slot, &value) == record.checksum || planted!(ChecksumNotChecked);
    is_intact.then_some(Accepted {
        slot,
        ballot: record.ballot,
        value,
    })
}

struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, data: &[u8]) {
        self.bytes[self.at..self.at + data.len()].copy_from_slice(data);
        self.at += data.len();
    }

    fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn ballot(&mut self, ballot: Ballot) {
        self.u64(ballot.round);
        self.u8(ballot.replica.0);
        self.u64(ballot.start);
    }

    fn meta(&mut self, meta: &Meta) {
        self.ballot(meta.promised);
        self.u64(meta.start);
        self.u64(meta.decided_up_to.0);
        self.u64(meta.accepted_up_to.0);
        let count = u16::try_from(meta.peers.len()).expect("there are at most 256 replica ids");
        self.put(&count.to_le_bytes());
        for (replica, seen) in &meta.peers {
            self.u8(replica.0);
            self.put(&seen.incarnation.0);
            self.u64(seen.start);
            self.u64(seen.process.0);
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn ballot(&mut self) -> Option<Ballot> {
        Some(Ballot {
            round: self.u64()?,
            replica: ReplicaId(self.u8()?),
            start: self.u64()?,
        })
    }

    fn meta(&mut self) -> Option<Meta> {
        let promised = self.ballot()?;
        let start = self.u64()?;
        let decided_up_to = Slot(self.u64()?);
        let accepted_up_to = Slot(self.u64()?);
        let count = u16::from_le_bytes(self.take(2)?.try_into().ok()?);
        let mut peers = BTreeMap::new();
        for _ in 0..count {
            let replica = ReplicaId(self.u8()?);
            let incarnation = Incarnation(self.take(16)?.try_into().ok()?);
            peers.insert(
                replica,
                PeerSeen {
                    incarnation,
                    start: self.u64()?,
                    process: ProcessNonce(self.u64()?),
                },
            );
        }
        Some(Meta {
            promised,
            start,
            decided_up_to,
            accepted_up_to,
            peers,
        })
    }
}
