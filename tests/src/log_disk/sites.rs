//! The places of a log that damage can hit, by what stands there.

use super::damage::Strike;
use super::{LogDisk, Placed, SECTOR_BYTES};
use synod_coordinator::log::Disk;

/// One place and what happens there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// What stands there, and what happens to it.
    pub class: &'static str,
    /// The strike.
    pub strike: Strike,
    /// Whether the log was closed in an orderly way before.
    pub is_before_close: bool,
}

/// The fields of a batch's header that lie at a fixed place: name, offset and length (see `synod_coordinator::log::format`).
const BATCH_FIELDS: [(&str, usize, usize); 16] = [
    ("batch: magic", 0, 8),
    ("batch: header length", 8, 4),
    ("batch: length", 12, 4),
    ("batch: segment", 16, 8),
    ("batch: sequence", 24, 8),
    ("batch: previous segment", 32, 8),
    ("batch: previous end", 40, 8),
    ("meta: promised round", 48, 8),
    ("meta: promised replica", 56, 1),
    ("meta: promised start", 57, 8),
    ("meta: start", 65, 8),
    ("meta: decided prefix", 73, 8),
    ("meta: accepted prefix", 81, 8),
    ("meta: peer count", 89, 2),
    ("meta: first peer", 91, 1),
    ("meta: first peer's directory", 92, 16),
];

/// The fields of a segment's header.
const SEGMENT_FIELDS: [(&str, usize, usize); 9] = [
    ("segment: magic", 0, 8),
    ("segment: format", 8, 4),
    ("segment: block", 12, 4),
    ("segment: number", 16, 8),
    ("segment: length", 24, 8),
    ("segment: incarnation", 32, 16),
    ("segment: replica", 48, 1),
    ("segment: cluster", 49, 41),
    ("segment: checksum", 90, 4),
];

/// A record in a batch's header: slot, ballot, length, checksum; the header's own checksum follows the last one.
const RECORD_FIELDS: [(&str, usize, usize); 6] = [
    ("record: slot", 0, 8),
    ("record: ballot round", 8, 8),
    ("record: ballot replica", 16, 1),
    ("record: ballot start", 17, 8),
    ("record: length", 25, 4),
    ("record: checksum", 29, 4),
];
const RECORD_BYTES: usize = 33;
const CHECKSUM_BYTES: usize = 4;

impl LogDisk {
    /// How many segments there are.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.disk.list().map_or(0, |names| names.len())
    }

    /// Every place, in a fixed order.
    #[must_use]
    pub fn sites(&self) -> Vec<Site> {
        let mut sites = Sites::default();
        let last = self.placed.len().saturating_sub(1);
        for (index, one) in self.placed.iter().enumerate() {
            sites.of_batch(one, index);
            let next = &self.placed[if index == last { 0 } else { index + 1 }];
            sites.misdirected("sector: a batch's first, over the next one's", one, next, false);
            sites.misdirected("sector: a batch's first, gone to the next one's", one, next, true);
            sites.misdirected("sector: a batch's first, over an older one's", next, one, false);
        }
        if let Some(one) = self.placed.last() {
            sites.add_open(
                "last batch of a crashed replica: header",
                one,
                48,
                index_bit(last),
            );
            if let Some((_, range)) = one.values.first() {
                sites.add_open(
                    "last batch of a crashed replica: value",
                    one,
                    range.start - one.range.start,
                    0,
                );
            }
        }
        for name in self.disk.list().unwrap_or_default() {
            let length = self.disk.contents(&name).map_or(0, |bytes| bytes.len());
            for (number, (class, offset, count)) in SEGMENT_FIELDS.into_iter().enumerate() {
                let byte = offset + number % count;
                sites.flip(class, &name, byte, index_bit(number));
            }
            for (class, length) in [
                ("truncated: to nothing", 0),
                ("truncated: within the header", 50),
                ("truncated: behind the header", 4096),
                ("truncated: by half", length / 2 + 7),
                ("truncated: by a byte", length.saturating_sub(1)),
            ] {
                let strike = Strike::Truncate {
                    file: name.clone(),
                    length,
                };
                sites.add(class, strike);
            }
        }
        sites.all
    }
}

fn index_bit(index: usize) -> u8 {
    u8::try_from(index % 8).expect("below eight")
}

#[derive(Default)]
struct Sites {
    all: Vec<Site>,
}

impl Sites {
    fn of_batch(&mut self, one: &Placed, index: usize) {
        let start = one.range.start;
        let bit = index_bit(index);
        for (class, offset, length) in BATCH_FIELDS {
            self.flip(class, &one.file, start + offset + index % length, bit);
        }
        let records_start = one.header_bytes - CHECKSUM_BYTES - RECORD_BYTES * one.values.len();
        self.flip(
            "batch: record count",
            &one.file,
            start + records_start - 4 + index % 4,
            bit,
        );
        let checksum = start + one.header_bytes - CHECKSUM_BYTES + index % CHECKSUM_BYTES;
        self.flip("batch: checksum", &one.file, checksum, bit);
        for (number, (_, range)) in one.values.iter().enumerate() {
            for (class, offset, length) in RECORD_FIELDS {
                let byte = start + records_start + RECORD_BYTES * number + offset + index % length;
                self.flip(class, &one.file, byte, bit);
            }
            if !range.is_empty() {
                self.flip("value: first byte", &one.file, range.start, bit);
                self.flip("value: middle", &one.file, range.start.midpoint(range.end), bit);
                self.flip("value: last byte", &one.file, range.end - 1, bit);
            }
        }
        self.flip("padding", &one.file, one.range.end - 1, bit);
    }

    fn misdirected(&mut self, class: &'static str, from: &Placed, to: &Placed, is_moved: bool) {
        let sector = |one: &Placed| (one.file.clone(), one.range.start / SECTOR_BYTES);
        if sector(from) != sector(to) {
            let (from, to) = (sector(from), sector(to));
            self.add(class, Strike::Misdirect { from, to, is_moved });
        }
    }

    fn flip(&mut self, class: &'static str, file: &str, byte: usize, bit: u8) {
        let file = file.to_string();
        self.add(class, Strike::Flip { file, byte, bit });
    }

    fn add_open(&mut self, class: &'static str, one: &Placed, offset: usize, bit: u8) {
        let strike = Strike::Flip {
            file: one.file.clone(),
            byte: one.range.start + offset,
            bit,
        };
        self.all.push(Site {
            class,
            strike,
            is_before_close: false,
        });
    }

    fn add(&mut self, class: &'static str, strike: Strike) {
        self.all.push(Site {
            class,
            strike,
            is_before_close: true,
        });
    }
}
