//! Records in the order of their gtids, kept by when these began: what finding, adding and forgetting one costs depends on
//! how many began at about the same time, and not on how many there are.
//!
//! A gtid begins with its time (UUIDv7), so that a chapter of it is a range of gtids, and the watermark passes chapter after
//! chapter.

use super::outcomes::Record;
use alloc::collections::BTreeMap;
use core::ops::Bound::{Excluded, Unbounded};
use synod_proto::ids::{Gtid, UnixMillis};

/// A chapter is 2^8 ms: at the rate that fills the register, some hundred records in each of some thousand chapters.
const CHAPTER_MS_BITS: u32 = 8;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Records {
    /// None of them is empty.
    chapters: BTreeMap<u64, BTreeMap<Gtid, Record>>,
    count: usize,
}

fn chapter_of(began_at: UnixMillis) -> u64 {
    began_at.0 >> CHAPTER_MS_BITS
}

impl Records {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, gtid: Gtid) -> Option<&Record> {
        self.chapters.get(&chapter_of(gtid.began_at()))?.get(&gtid)
    }

    /// Adds a record. Returns the one that it takes the place of.
    pub(super) fn insert(&mut self, gtid: Gtid, record: Record) -> Option<Record> {
        let chapter = self.chapters.entry(chapter_of(gtid.began_at())).or_default();
        let replaced = chapter.insert(gtid, record);
        self.count += usize::from(replaced.is_none());
        replaced
    }

    /// The oldest gtid.
    pub(super) fn first(&self) -> Option<Gtid> {
        let (_, chapter) = self.chapters.first_key_value()?;
        chapter.first_key_value().map(|(gtid, _)| *gtid)
    }

    /// Those above `after`.
    pub(super) fn above(&self, after: Option<Gtid>) -> impl Iterator<Item = (Gtid, &Record)> {
        let first = after.map_or(0, |after| chapter_of(after.began_at()));
        let bounds = (after.map_or(Unbounded, Excluded), Unbounded);
        self.chapters
            .range(first..)
            .flat_map(move |(_, chapter)| chapter.range(bounds))
            .map(|(gtid, record)| (*gtid, record))
    }

    /// Drops the chapters that ended before the mark: what began below it is gone at the latest 2^8 ms later. Record by
    /// record would cost as much as adding them did.
    pub(super) fn forget_below(&mut self, mark: UnixMillis) {
        while let Some(chapter) = self.chapters.first_entry()
            && *chapter.key() < chapter_of(mark)
        {
            self.count -= chapter.remove().len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcomes::{Record, Verdict};
    use super::{Records, chapter_of};
    use alloc::collections::BTreeMap;
    use alloc::vec::Vec;
    use synod_proto::ids::{Gtid, UnixMillis};
    use synod_proto::random::Random;
    use synod_proto::session::{AbortCause, AbortKind};

    fn record(at: u64) -> Record {
        Record {
            verdict: Verdict::Aborted(AbortCause::new(AbortKind::Requested, "")),
            decided_at: UnixMillis(at),
        }
    }

    /// They are one ordered map, whatever is added, asked for and forgotten.
    #[test]
    fn chapters_do_not_show() {
        for seed in 0..50 {
            let mut random = Random::new(seed);
            let (mut records, mut model) = (Records::default(), BTreeMap::new());
            let spread = [10, 1_000, 100_000][usize::try_from(random.between(0, 2)).expect("small")];
            for step in 0..400 {
                let at = UnixMillis(1_700_000_000_000 + random.between(0, spread));
                let mut bytes = [0; 10];
                bytes[9] = u8::try_from(random.between(0, 3)).expect("small");
                let gtid = Gtid::new(at, bytes);
                match random.between(0, 9) {
                    0 => {
                        records.forget_below(at);
                        model.retain(|gtid: &Gtid, _| chapter_of(gtid.began_at()) >= chapter_of(at));
                    }
                    1 => {
                        let after = (random.between(0, 3) > 0).then_some(gtid);
                        let found: Vec<_> = records.above(after).collect();
                        let expected = model
                            .iter()
                            .filter(|(one, _)| after.is_none_or(|after| **one > after));
                        assert_eq!(
                            found,
                            expected.map(|(one, record)| (*one, record)).collect::<Vec<_>>()
                        );
                    }
                    2 => assert_eq!(records.get(gtid), model.get(&gtid)),
                    _ => {
                        let replaced = records.insert(gtid, record(step));
                        assert_eq!(replaced, model.insert(gtid, record(step)));
                    }
                }
                assert_eq!(records.count(), model.len());
                assert_eq!(records.first(), model.keys().next().copied());
                assert!(records.chapters.values().all(|chapter| !chapter.is_empty()));
            }
        }
    }
}
