//! Damage to what was synced, and exactly what it may cost.
//!
//! The model knows where every synced batch lies, so it knows which records a strike destroys, without asking the log. What
//! the log then says is judged: a destroyed record must be reported as unreadable, never used, never left out; an
//! intact one may be reported as unreadable only behind a batch that is lost as a whole, of which nothing says which slots
//! it held (L3, traps A10). There are two exceptions, and no others:
//!
//! - **The limit of L7.** Where a strike destroys part of *the last synced batch*, the log may take that batch for a torn
//!   write and show the state before it, all of it.
//! - **A refusal.** Where a strike hits the last batch's segment or one behind it, or puts something in the place of a
//!   header, the log may refuse to open ([`LogError::EndLost`], [`LogError::Foreign`]), because a promise may be lost.

use super::{LogDisk, SECTOR_BYTES, difference, holds};
use crate::chance::place_of;
use crate::checkers::{Check, Violation, require};
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use synod_coordinator::log::{BLOCK_BYTES, Disk, Log, LogError, MemoryDisk, Opened};
use synod_coordinator_core::durable::{Batch, Recovered};
use synod_coordinator_core::paxos::{Accepted, Slot};

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// One bit is another.
    Flip,
    /// A file ends early.
    Truncate,
    /// A sector's content lies at another place, too.
    Misdirect,
    /// A sector's content lies at another place, and at its own there are zeros.
    MisdirectAway,
}

/// Where damage is aimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aim {
    /// Anywhere on the disk.
    Anywhere,
    /// Anywhere, after the log was closed in an orderly way: nothing that matters can be taken for torn.
    AnywhereBeforeClose,
    /// At the last few batches.
    Last,
    /// At the last few batches, after the log was closed in an orderly way.
    LastBeforeClose,
}

/// How many batches count as the last few.
const LAST_COUNT: usize = 2;

/// One strike, byte by byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strike {
    /// A bit of a byte.
    Flip {
        /// The file's name.
        file: String,
        /// The byte.
        byte: usize,
        /// The bit.
        bit: u8,
    },
    /// The file's new length.
    Truncate {
        /// The file's name.
        file: String,
        /// Its new length in bytes.
        length: usize,
    },
    /// A sector's content lands elsewhere.
    Misdirect {
        /// The file's name and the sector's index.
        from: (String, usize),
        /// Where it lands.
        to: (String, usize),
        /// Whether it is missing where it belongs.
        is_moved: bool,
    },
}

/// What a strike came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing was destroyed, or what was is not needed.
    Harmless,
    /// Records are unreadable, and known to be.
    Unreadable,
    /// The last synced batch was taken for a torn write: the limit of L7.
    LastBatchCut,
    /// The log refuses to open.
    Refused,
}

/// A disk that was struck, with what is left of it.
#[derive(Debug)]
pub struct Struck {
    /// What it came to.
    pub verdict: Verdict,
    /// The model of what is left. Of a refused directory: what it was.
    pub store: Store,
    /// The log.
    pub log: LogDisk,
}

/// What a strike destroyed.
#[derive(Debug, Default)]
struct Destroyed {
    /// Slots whose latest record is gone.
    slots: BTreeSet<Slot>,
    /// Whether a batch is lost as a whole, and with it the knowledge which slots it held.
    has_lost_batch: bool,
    /// Whether part of the last synced batch is gone.
    hits_last: bool,
    /// Whether anything was changed that decides where the log ends, or whose it is.
    hits_end: bool,
}

impl Aim {
    /// Whether the log is closed in an orderly way before.
    #[must_use]
    pub fn is_before_close(self) -> bool {
        matches!(self, Self::AnywhereBeforeClose | Self::LastBeforeClose)
    }
}

impl LogDisk {
    /// A strike of this kind, the rest picked by a number. `None` if there is nothing to strike.
    #[must_use]
    pub fn aim(&self, damage: Damage, aim: Aim, pick: u64) -> Option<Strike> {
        let names = self.disk.list().ok()?;
        let closing_count = usize::from(aim.is_before_close());
        let places: Vec<(String, usize)> = match aim {
            // Bytes that say something: of the blocks that batches fill up, most is padding.
            Aim::Anywhere | Aim::AnywhereBeforeClose => {
                names.iter().flat_map(|name| self.used_bytes(name)).collect()
            }
            Aim::Last | Aim::LastBeforeClose => {
                let batches = self.placed.iter().rev().skip(closing_count).take(LAST_COUNT);
                batches
                    .flat_map(|one| (one.range.start..one.values_end()).map(|byte| (one.file.clone(), byte)))
                    .collect()
            }
        };
        if places.is_empty() {
            return None;
        }
        let (file, byte) = places[place_of(pick, places.len())].clone();
        let rest = pick.rotate_left(32);
        match damage {
            Damage::Flip => {
                let bit = u8::try_from(rest % 8).expect("below eight");
                Some(Strike::Flip { file, byte, bit })
            }
            Damage::Truncate => Some(Strike::Truncate { file, length: byte }),
            Damage::Misdirect | Damage::MisdirectAway => {
                let name = names[place_of(rest, names.len())].clone();
                let sector_count = self.disk.contents(&name)?.len() / SECTOR_BYTES;
                if sector_count == 0 {
                    return None;
                }
                let other = (name, place_of(rest >> 8, sector_count));
                let own = (file, byte / SECTOR_BYTES);
                // What is aimed at is overwritten, or is what lands elsewhere.
                let (from, to) = if rest & 1 == 0 { (other, own) } else { (own, other) };
                let is_moved = damage == Damage::MisdirectAway;
                (from != to).then_some(Strike::Misdirect { from, to, is_moved })
            }
        }
    }

    fn used_bytes(&self, name: &str) -> Vec<(String, usize)> {
        let contents = self.disk.contents(name).unwrap_or_default();
        let used = contents.iter().enumerate().filter(|(_, byte)| **byte != 0);
        used.map(|(place, _)| (name.to_string(), place)).collect()
    }

    /// An orderly end: one more batch, without records, behind everything that is worth damaging. While no process runs.
    ///
    /// # Errors
    /// The log does not open or close.
    pub fn close(&mut self, store: &Store) -> Check {
        let opened = self.open_through()?;
        let batch = Batch {
            meta: store.meta().clone(),
            accepted: Vec::new(),
        };
        opened
            .log
            .close()
            .map_err(|error| Violation(format!("close: {error}")))?;
        self.place(&batch, store.undo_of(&batch));
        Ok(())
    }

    /// Strikes a copy of the disk, while no process runs, and judges what the log makes of it.
    ///
    /// # Errors
    /// The log uses, leaves out or cuts off what it must not.
    pub fn struck(&self, store: &Store, strike: &Strike) -> Result<Struck, Violation> {
        self.struck_as_opened_by(store, strike, Log::open)
    }

    /// As [`struck`](Self::struck), with another way to open the log: for the test that a wrong one is found out.
    ///
    /// # Errors
    /// As [`struck`](Self::struck).
    pub fn struck_as_opened_by(
        &self,
        store: &Store,
        strike: &Strike,
        open: impl FnOnce(
            Arc<MemoryDisk>,
            synod_coordinator::log::Identity,
            synod_coordinator::log::Options,
        ) -> Result<Opened<MemoryDisk>, LogError>,
    ) -> Result<Struck, Violation> {
        let mut log = self.copy();
        log.planned = self.planned;
        let destroyed = log.suffer(strike);
        let mut store = store.clone();
        let told = |text: String| Violation(format!("replica {}: after {strike:?}: {text}", self.replica));
        let opened = match open(Arc::clone(&log.disk), log.identity(), log.options) {
            Ok(opened) => opened,
            Err(error) => {
                let is_refusal = matches!(error, LogError::EndLost { .. } | LogError::Foreign { .. });
                if !is_refusal || !destroyed.hits_end {
                    return Err(told(format!("the log does not open: {error}")));
                }
                let verdict = Verdict::Refused;
                return Ok(Struck { verdict, store, log });
            }
        };
        let mut values = Vec::new();
        let loaded = opened.log.load(|accepted| values.push(accepted));
        loaded.map_err(|error| told(format!("load: {error}")))?;
        let found = opened.recovered;
        let verdict = match judge(&found, &values, &store, &destroyed) {
            Ok(verdict) => verdict,
            Err(_) if destroyed.hits_last => {
                let last = log.placed.pop().expect("the last batch was hit");
                store.take_back(last.undo);
                let left = Destroyed {
                    // The strike may have hit more than the last batch.
                    slots: destroyed
                        .slots
                        .difference(&last.values.iter().map(|(slot, _)| *slot).collect())
                        .copied()
                        .collect(),
                    has_lost_batch: destroyed.has_lost_batch,
                    ..Destroyed::default()
                };
                judge(&found, &values, &store, &left).map_err(|error| told(error.0))?;
                Verdict::LastBatchCut
            }
            Err(violation) => return Err(told(violation.0)),
        };
        for (slot, ballot) in &found.readable {
            store.fall_back(*slot, *ballot);
        }
        store.lose(found.unreadable.clone());
        require(holds(&found, &store), || {
            format!(
                "replica {}: {}",
                self.replica,
                difference(&found, &store.recover().0)
            )
        })?;
        log.arm();
        Ok(Struck { verdict, store, log })
    }

    /// Changes the bytes, and says what that destroyed.
    fn suffer(&mut self, strike: &Strike) -> Destroyed {
        let contents = |disk: &MemoryDisk| -> BTreeMap<String, Vec<u8>> {
            let names = disk.list().unwrap_or_default();
            let files = names.into_iter().filter_map(|name| {
                let bytes = disk.contents(&name)?;
                Some((name, bytes))
            });
            files.collect()
        };
        let before = contents(&self.disk);
        strike.hit(&self.disk);
        let after = contents(&self.disk);
        let is_hit =
            |file: &str, range: Range<usize>| before[file].get(range.clone()) != after[file].get(range);
        let mut destroyed = Destroyed {
            hits_end: self.hits_end(strike),
            ..Destroyed::default()
        };
        let mut newer = BTreeSet::new();
        for (age, one) in self.placed.iter().rev().enumerate() {
            // A batch whose end is gone with its file is lost, whatever of it can be read.
            let is_cut = after[&one.file].len() < one.range.end;
            let is_lost = is_cut || is_hit(&one.file, one.range.start..one.header_end());
            let mut is_any_lost = is_lost;
            for (slot, range) in one.values.iter().rev() {
                let is_lost = is_lost || is_hit(&one.file, range.clone());
                is_any_lost |= is_lost;
                if newer.insert(*slot) && is_lost {
                    destroyed.slots.insert(*slot);
                }
            }
            destroyed.has_lost_batch |= is_lost;
            destroyed.hits_last |= age == 0 && is_any_lost;
        }
        destroyed
    }

    /// Whether a strike touches the file of the last batch or one behind it, or puts something in the place of a header.
    fn hits_end(&self, strike: &Strike) -> bool {
        let last = self
            .placed
            .last()
            .map(|one| one.file.as_str())
            .unwrap_or_default();
        let is_end = |file: &String| file.as_str() >= last;
        match strike {
            Strike::Flip { file, .. } | Strike::Truncate { file, .. } => is_end(file),
            Strike::Misdirect { from, to, is_moved } => {
                let is_header = to.1 < BLOCK_BYTES / SECTOR_BYTES;
                is_end(&to.0) || is_header || (*is_moved && is_end(&from.0))
            }
        }
    }
}

impl super::Placed {
    fn header_end(&self) -> usize {
        self.range.start + self.header_bytes
    }

    fn values_end(&self) -> usize {
        self.values
            .last()
            .map_or(self.header_end(), |(_, range)| range.end)
    }
}

impl Strike {
    fn hit(&self, disk: &MemoryDisk) {
        match self {
            Self::Flip { file, byte, bit } => disk.flip(file, *byte, *bit),
            Self::Truncate { file, length } => disk.truncate(file, *length),
            Self::Misdirect { from, to, is_moved } => {
                let sector = |index: usize| index * SECTOR_BYTES..(index + 1) * SECTOR_BYTES;
                let contents = disk.contents(&from.0).unwrap_or_default();
                let target_bytes = disk.contents(&to.0).map_or(0, |bytes| bytes.len());
                // In a file that was cut short there may be no such sector any more.
                let Some(content) = contents.get(sector(from.1)) else {
                    return;
                };
                if target_bytes < sector(to.1).end {
                    return;
                }
                if *is_moved {
                    disk.overwrite(&from.0, sector(from.1), 0);
                }
                disk.paste(&to.0, to.1 * SECTOR_BYTES, content);
            }
        }
    }
}

/// Whether the log says of every record what is true.
fn judge(
    found: &Recovered,
    values: &[Accepted],
    store: &Store,
    destroyed: &Destroyed,
) -> Result<Verdict, Violation> {
    require(found.meta == *store.meta(), || {
        format!("the log found {:?}, not {:?}", found.meta, store.meta())
    })?;
    let read: BTreeMap<Slot, &Accepted> = values.iter().map(|one| (one.slot, one)).collect();
    for (slot, (ballot, value)) in store.records() {
        let is_lost = destroyed.slots.contains(slot) || store.unreadable().contains(slot);
        let is_reported = found.unreadable.contains(slot);
        match read.get(slot) {
            Some(one) => {
                // Of a decided slot every record that can still be read below the lost one holds the decided value.
                let is_stand_in = *slot <= store.meta().decided_up_to && one.ballot < *ballot;
                require(
                    one.value == *value && (one.ballot == *ballot || is_stand_in),
                    || format!("slot {slot} reads as {one:?}; ballot {ballot} was synced last"),
                )?;
                require(!is_lost || is_stand_in, || {
                    format!("slot {slot} is read, though its record was destroyed")
                })?;
                require(!is_reported, || format!("slot {slot} is both read and reported"))?;
            }
            None => {
                require(is_reported, || {
                    format!("slot {slot} is reported as empty, though it was synced in ballot {ballot}")
                })?;
                require(is_lost || destroyed.has_lost_batch, || {
                    format!("slot {slot} is reported as unreadable, though nothing happened to it")
                })?;
            }
        }
    }
    let unknown = values.iter().find(|one| !store.records().contains_key(&one.slot));
    require(unknown.is_none(), || format!("{unknown:?} was never written"))?;
    let is_as_before = found.unreadable == *store.unreadable();
    require(
        is_as_before || destroyed.has_lost_batch || !destroyed.slots.is_empty(),
        || format!("{:?} are reported as unreadable", found.unreadable),
    )?;
    Ok(match is_as_before {
        true => Verdict::Harmless,
        false => Verdict::Unreadable,
    })
}
