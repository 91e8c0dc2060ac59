//! The seat map's file: a journal of records that is only appended to, each synced before anybody is answered. Opening
//! replays it.
//!
//! A record is a line: a checksum, a blank, and JSON. The last line may be torn by a crash, since nobody was answered
//! yet, and is cut off. Damage anywhere else is an error and nothing is cut.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use synod::resource::BranchContext;
use synod::{BranchId, CallId, ExecutionId, Gtid, Lineage, UnixMillis};

/// A row's name, the seats of it and who has them.
pub(crate) type Bookings = BTreeMap<String, BTreeMap<u32, String>>;

/// What happened, in the order in which it happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Record {
    /// The first record: the database's random id (T11).
    Made { resource: String },
    /// Bound to a coordinator, for ever.
    Bound { lineage: String },
    /// A branch voted, and these seats are its to have.
    Prepared {
        branch: Name,
        lineage: String,
        deadline_ms: u64,
        prepared_at_ms: u64,
        bookings: Bookings,
        /// Rows that are locked without a booking.
        locked: Vec<String>,
    },
    /// Its seats are taken. This record is effect and proof at once.
    Committed { branch: Name },
    /// It has no seats, and never will.
    Aborted { branch: Name },
    /// In a journal that was written anew: all the seats that are taken.
    Taken { bookings: Bookings },
    /// The low-water mark, and who is not over although it began below (T13).
    Forgot { mark_ms: u64, unfinished: Vec<String> },
}

/// A branch's id as text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Name {
    gtid: String,
    call: u64,
    execution: u64,
}

impl From<&BranchId> for Name {
    fn from(branch: &BranchId) -> Self {
        Self {
            gtid: branch.gtid.to_string(),
            call: branch.call.0,
            execution: branch.execution.0,
        }
    }
}

impl Name {
    pub(crate) fn id(&self) -> Option<BranchId> {
        Some(BranchId {
            gtid: self.gtid.parse::<Gtid>().ok()?,
            call: CallId(self.call),
            execution: ExecutionId(self.execution),
        })
    }
}

/// The context that a [`Record::Prepared`] carries (T12).
pub(crate) fn context(branch: &Name, lineage: &str, deadline_ms: u64) -> Option<BranchContext> {
    Some(BranchContext {
        branch: branch.id()?,
        lineage: lineage.parse::<Lineage>().ok()?,
        deadline: UnixMillis(deadline_ms),
    })
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
}

impl Journal {
    /// Opens the journal, or makes it, and returns what it holds.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Vec<Record>)> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(path)?;
        let bytes = std::fs::read(path)?;
        let mut records = Vec::new();
        let mut end = 0;
        while let Some(length) = bytes[end..].iter().position(|byte| *byte == b'\n') {
            let line = &bytes[end..end + length];
            match parse(line) {
                Some(record) => records.push(record),
                // The last line, whole but for its content: its sync did not end.
                None if end + length + 1 == bytes.len() => break,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!(
                            "{}: line {} is damaged and others follow it: restore the file from a copy",
                            path.display(),
                            records.len() + 1
                        ),
                    ));
                }
            }
            end += length + 1;
        }
        if end < bytes.len() {
            tracing::warn!(bytes = bytes.len() - end, "cut off a record that a crash tore");
            file.set_len(end as u64)?;
        }
        // What the last process wrote may not be synced, and will be built upon.
        file.sync_all()?;
        sync_directory(path)?;
        file.flush()?;
        Ok((Self { file }, records))
    }

    /// Durable when it returns. After an error nobody knows what the file holds: it must be opened again.
    pub(crate) fn append(&mut self, record: &Record) -> io::Result<()> {
        self.file.write_all(&line(record)?)?;
        self.file.sync_data()
    }
}

/// Replaces the journal by one with these records, in one step: before or after, there is a whole one.
pub(crate) fn replace(path: &Path, records: &[Record]) -> io::Result<Journal> {
    let temporary: PathBuf = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    for record in records {
        file.write_all(&line(record)?)?;
    }
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_directory(path)?;
    let file = OpenOptions::new().append(true).open(path)?;
    Ok(Journal { file })
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn line(record: &Record) -> io::Result<Vec<u8>> {
    let json = serde_json::to_string(record)?;
    Ok(format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())).into_bytes())
}

fn parse(line: &[u8]) -> Option<Record> {
    let (sum, json) = (line.get(..8)?, line.get(9..)?);
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    (line[8] == b' ' && sum == crc32c::crc32c(json)).then_some(())?;
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
    use super::{Journal, Record};

    /// Traps A10: a torn end is cut, damage in the middle is not.
    #[test]
    fn a10_a_torn_end_is_cut_and_damage_elsewhere_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("journal");
        let bound = |number: u32| Record::Bound {
            lineage: number.to_string(),
        };
        let (mut journal, records) = Journal::open(&path).expect("a new one");
        assert!(records.is_empty());
        (0..3).for_each(|number| journal.append(&bound(number)).expect("room"));
        let whole = std::fs::read(&path).expect("the file");
        let last = whole.len() / 3 * 2;
        for length in last..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("room");
            let (_, records) = Journal::open(&path).expect("a torn end is no damage");
            assert_eq!(records.len(), 2, "cut at {length}");
            assert_eq!(std::fs::read(&path).expect("the file").len(), last);
        }
        for at in 0..last - 1 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).expect("room");
            assert!(Journal::open(&path).is_err(), "a bit at {at}");
            assert_eq!(std::fs::read(&path).expect("the file"), damaged, "nothing is cut");
        }
    }
}
