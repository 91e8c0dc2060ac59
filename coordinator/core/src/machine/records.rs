//! Finished records in the order of their gtids, kept by when these began: what finding, adding and forgetting one costs
//! depends on how many began at about the same time, and not on how many there are.
//!
//! A gtid begins with its time (UUIDv7), so that a chapter of it is a range of gtids, and the watermark passes chapter after
//! chapter. A commit is packed into its chapter's bytes: it waits there for ten minutes and is hardly ever read, takes half of
//! the memory, and goes with its chapter instead of one by one.

use super::outcomes::{Record, Verdict};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use bytes::{Buf as _, BufMut as _};
use core::cmp::Ordering;
use core::hash::{Hash, Hasher};
use core::ops::Bound::{Excluded, Unbounded};
use synod_proto::command::NamedBranch;
use synod_proto::ids::{CallId, ExecutionId, Gtid, ResourceId, UnixMillis};

/// A chapter is 2^5 ms: at the rate that fills the register, a hundred records in each of some ten thousand chapters.
const CHAPTER_MS_BITS: u32 = 5;

/// What the watermark has passed goes in steps of 2^8 ms. When a record goes is part of what the log says: a replica of
/// another version must not differ in it, however long its chapters are.
const FORGOTTEN_MS_BITS: u32 = 8;

const _: () = assert!(CHAPTER_MS_BITS <= FORGOTTEN_MS_BITS, "chapters go as a whole");

/// So many of the newest chapters are looked at one by one before all are searched.
const NEWEST_COUNT: usize = 8;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    /// In the order of their numbers. None of them is empty.
    chapters: VecDeque<Chapter>,
    count: usize,
}

#[derive(Clone, Debug)]
struct Chapter {
    number: u64,
    places: BTreeMap<Gtid, Place>,
    packed: Vec<u8>,
}

/// Where a record is.
#[derive(Clone, Debug)]
enum Place {
    /// A commit: where its bytes begin.
    Packed(usize),
    /// Everything else: there are few, with texts.
    Apart(Box<Record>),
}

/// Records are equal if they hold the same, however it is packed.
impl PartialEq for Records {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.above(None).eq(other.above(None))
    }
}

impl Eq for Records {}

impl Hash for Records {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.count.hash(state);
        self.above(None).for_each(|one| one.hash(state));
    }
}

fn chapter_of(began_at: UnixMillis) -> u64 {
    began_at.0 >> CHAPTER_MS_BITS
}

/// The first chapter that a watermark leaves.
fn first_kept(mark: UnixMillis) -> u64 {
    mark.0 >> FORGOTTEN_MS_BITS << (FORGOTTEN_MS_BITS - CHAPTER_MS_BITS)
}

impl Records {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, gtid: Gtid) -> Option<Record> {
        let position = self.position(chapter_of(gtid.began_at())).ok()?;
        let chapter = &self.chapters[position];
        chapter.places.get(&gtid).map(|place| chapter.read(place))
    }

    /// Adds a record. Returns whether there was none.
    pub(super) fn insert(&mut self, gtid: Gtid, record: Record) -> bool {
        let number = chapter_of(gtid.began_at());
        let position = self.position(number).unwrap_or_else(|position| {
            self.chapters.insert(position, Chapter::new(number));
            position
        });
        let is_new = self.chapters[position].insert(gtid, record);
        self.count += usize::from(is_new);
        is_new
    }

    /// The oldest gtid.
    pub(super) fn first(&self) -> Option<Gtid> {
        let (gtid, _) = self.chapters.front()?.places.first_key_value()?;
        Some(*gtid)
    }

    /// Those above `after`.
    pub(super) fn above(&self, after: Option<Gtid>) -> impl Iterator<Item = (Gtid, Record)> {
        let first = after.map_or(0, |after| chapter_of(after.began_at()));
        let position = self.position(first).unwrap_or_else(|position| position);
        let bounds = (after.map_or(Unbounded, Excluded), Unbounded);
        self.chapters.range(position..).flat_map(move |chapter| {
            let places = chapter.places.range(bounds);
            places.map(|(gtid, place)| (*gtid, chapter.read(place)))
        })
    }

    /// Drops the chapters that ended before the mark: what began below it is gone at the latest 2^8 ms later. Record by
    /// record would cost as much as adding them did.
    pub(super) fn forget_below(&mut self, mark: UnixMillis) {
        let first = first_kept(mark);
        while let Some(chapter) = self.chapters.pop_front_if(|chapter| chapter.number < first) {
            self.count -= chapter.places.len();
        }
    }

    /// Where the chapter is, or would be.
    fn position(&self, number: u64) -> Result<usize, usize> {
        // Most of what begins or finishes is of the last moments.
        let newest = self.chapters.iter().enumerate().rev().take(NEWEST_COUNT);
        for (position, chapter) in newest {
            match chapter.number.cmp(&number) {
                Ordering::Less => return Err(position + 1),
                Ordering::Equal => return Ok(position),
                Ordering::Greater => {}
            }
        }
        self.chapters
            .binary_search_by_key(&number, |chapter| chapter.number)
    }
}

impl Chapter {
    fn new(number: u64) -> Self {
        Self {
            number,
            places: BTreeMap::new(),
            packed: Vec::new(),
        }
    }

    fn insert(&mut self, gtid: Gtid, record: Record) -> bool {
        let place = match &record.verdict {
            Verdict::Committed {
                branches,
                read_only_count,
                settled,
            } if settled.is_empty() => {
                let at = self.packed.len();
                pack(&mut self.packed, record.decided_at, *read_only_count, branches);
                Place::Packed(at)
            }
            _ => Place::Apart(Box::new(record)),
        };
        self.places.insert(gtid, place).is_none()
    }

    fn read(&self, place: &Place) -> Record {
        match place {
            Place::Packed(at) => unpack(&self.packed[*at..]),
            Place::Apart(record) => record.as_ref().clone(),
        }
    }
}

/// `decided_at u64 | read_only_count u32 | count u32 | count x (call, execution u64 | resource 16 bytes | digest u64 |
/// length u32 | database transaction)`. Only ever in this process's memory.
fn pack(out: &mut Vec<u8>, decided_at: UnixMillis, read_only_count: u32, branches: &[NamedBranch]) {
    let count = |count: usize| u32::try_from(count).expect("counts are limited far below 2^32");
    out.put_u64(decided_at.0);
    out.put_u32(read_only_count);
    out.put_u32(count(branches.len()));
    for branch in branches {
        out.put_u64(branch.call.0);
        out.put_u64(branch.execution.0);
        out.put_slice(&branch.resource.0);
        out.put_u64(branch.digest);
        out.put_u32(count(branch.database_transaction.len()));
        out.put_slice(&branch.database_transaction);
    }
}

fn unpack(mut packed: &[u8]) -> Record {
    let packed = &mut packed;
    let decided_at = UnixMillis(packed.get_u64());
    let read_only_count = packed.get_u32();
    let count = packed.get_u32();
    let mut branch = || NamedBranch {
        call: CallId(packed.get_u64()),
        execution: ExecutionId(packed.get_u64()),
        resource: ResourceId(packed.get_u128().to_be_bytes()),
        digest: packed.get_u64(),
        database_transaction: {
            let length = packed.get_u32() as usize;
            packed.copy_to_bytes(length)
        },
    };
    Record {
        verdict: Verdict::Committed {
            branches: (0..count).map(|_| branch()).collect(),
            read_only_count,
            settled: BTreeSet::new(),
        },
        decided_at,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::super::outcomes::{Record, Verdict};
    use super::Records;
    use alloc::collections::{BTreeMap, BTreeSet};
    use alloc::vec;
    use alloc::vec::Vec;
    use bytes::Bytes;
    use core::hash::{Hash as _, Hasher as _};
    use std::hash::DefaultHasher;
    use synod_proto::command::NamedBranch;
    use synod_proto::ids::{CallId, ExecutionId, Gtid, ResourceId, UnixMillis};
    use synod_proto::random::Random;
    use synod_proto::session::{AbortCause, AbortKind};

    /// An abort, or a commit of some branches.
    fn record(at: u64) -> Record {
        let branch = |call| NamedBranch {
            call: CallId(call),
            execution: ExecutionId(at),
            resource: ResourceId((u128::from(at) << 77 | u128::from(call)).to_be_bytes()),
            digest: !at,
            // None, some, and as many as it may be.
            database_transaction: Bytes::from(vec![9; usize::try_from((call - 1) * 32).expect("small")]),
        };
        let verdict = match at % 4 {
            0 => Verdict::Aborted(AbortCause::new(AbortKind::Requested, "")),
            count => Verdict::Committed {
                branches: (1..=count).map(branch).collect(),
                read_only_count: u32::try_from(at % 7).expect("small"),
                settled: BTreeSet::new(),
            },
        };
        Record {
            verdict,
            decided_at: UnixMillis(at),
        }
    }

    fn hash(records: &Records) -> u64 {
        let mut hasher = DefaultHasher::new();
        records.hash(&mut hasher);
        hasher.finish()
    }

    /// They are one ordered map, whatever is added, asked for and forgotten.
    #[test]
    fn chapters_do_not_show() {
        for seed in 0..50 {
            let mut random = Random::new(seed);
            let (mut records, mut model) = (Records::default(), BTreeMap::<Gtid, Record>::new());
            let spread = [10, 1_000, 100_000][usize::try_from(random.between(0, 2)).expect("small")];
            for step in 0..400 {
                let at = UnixMillis(1_700_000_000_000 + random.between(0, spread));
                let mut bytes = [0; 10];
                bytes[9] = u8::try_from(random.between(0, 3)).expect("small");
                let gtid = Gtid::new(at, bytes);
                match random.between(0, 9) {
                    0 => {
                        records.forget_below(at);
                        model.retain(|gtid: &Gtid, _| gtid.began_at().0 >> 8 >= at.0 >> 8);
                    }
                    1 => {
                        let after = (random.between(0, 3) > 0).then_some(gtid);
                        let found: Vec<_> = records.above(after).collect();
                        let expected = model
                            .iter()
                            .filter(|(one, _)| after.is_none_or(|after| **one > after));
                        assert_eq!(
                            found,
                            expected
                                .map(|(one, record)| (*one, record.clone()))
                                .collect::<Vec<_>>()
                        );
                    }
                    2 => assert_eq!(records.get(gtid).as_ref(), model.get(&gtid)),
                    _ => {
                        let is_new = records.insert(gtid, record(step));
                        assert_eq!(is_new, model.insert(gtid, record(step)).is_none());
                    }
                }
                assert_eq!(records.count(), model.len());
                assert_eq!(records.first(), model.keys().next().copied());
                assert!(records.chapters.iter().all(|chapter| !chapter.places.is_empty()));
                assert!(records.chapters.iter().is_sorted_by_key(|chapter| chapter.number));
            }
            // Another replica may have packed the same in another order.
            let mut other = Records::default();
            for (gtid, record) in model.iter().rev() {
                other.insert(*gtid, record.clone());
            }
            assert_eq!(records, other);
            assert_eq!(hash(&records), hash(&other));
            let Some((gtid, _)) = model.first_key_value() else {
                continue;
            };
            other.insert(*gtid, record(1_000));
            assert_ne!(records, other);
        }
    }
}
