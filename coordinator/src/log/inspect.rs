//! Looking at a log without touching it: nothing is cut, repaired or written again, and nothing stops it but a directory
//! that cannot be listed.

use super::disk::{BLOCK_BYTES, Disk, DiskFile};
use super::file_disk::DirectoryLock;
use super::format::{Record, Salt, decode_segment_header, segment_name, segment_numbers, unfinished_names};
use super::recover::{Found, Scan};
use super::report::OpenReport;
use super::{Identity, ReadError, Reader};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use synod_coordinator_core::durable::Meta;
use synod_coordinator_core::paxos::{Accepted, Ballot, Slot};

/// A directory of files that are read and never written: every writing operation answers an error.
#[derive(Clone, Debug)]
pub struct ReadOnlyDisk {
    path: PathBuf,
    /// Keeps replicas out while they could change what is being read.
    _lock: Option<Arc<DirectoryLock>>,
}

/// An open file of a [`ReadOnlyDisk`].
#[derive(Debug)]
pub struct ReadOnlyFile(File);

impl ReadOnlyDisk {
    pub(crate) fn new(path: PathBuf, lock: Option<DirectoryLock>) -> Self {
        Self {
            path,
            _lock: lock.map(Arc::new),
        }
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Disk for ReadOnlyDisk {
    type File = ReadOnlyFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<ReadOnlyFile> {
        File::open(self.path.join(name)).map(ReadOnlyFile)
    }

    fn create(&self, _: &str, _: u64) -> io::Result<ReadOnlyFile> {
        refused()
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn sync_directory(&self) -> io::Result<()> {
        refused()
    }
}

impl DiskFile for ReadOnlyFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        refused()
    }

    fn sync(&self) -> io::Result<()> {
        refused()
    }
}

/// A log as found.
#[derive(Debug)]
pub struct Inspection<D: Disk> {
    /// The state as of the last readable batch.
    pub meta: Meta,
    /// Slots of which the latest record is lost.
    pub unreadable: BTreeSet<Slot>,
    /// Torn tail, damaged places, and the segments whose making was interrupted.
    pub report: OpenReport,
    /// Why segments or the log's end cannot be read, one sentence each.
    pub problems: Vec<String>,
    index: BTreeMap<Slot, Record>,
    reader: Reader<D>,
}

/// Reads the log of `identity` on `disk`, as far as it can be read. Reads the whole log.
///
/// # Errors
/// The directory cannot be listed.
pub fn inspect<D: Disk>(disk: &Arc<D>, identity: &Identity) -> io::Result<Inspection<D>> {
    let mut scan = Scan::default();
    let mut founds = Vec::new();
    let mut problems = Vec::new();
    let names = disk.list()?;
    scan.report.unfinished = unfinished_names(&names);
    for number in segment_numbers(&names) {
        match Found::read(&**disk, identity, number) {
            Ok((mut found, bytes)) => {
                scan.segment(&mut found, &bytes, Salt::new(identity, number));
                founds.push(found);
                founds.retain(|found| found.segment.number >= scan.last.end.segment);
            }
            Err(error) => problems.push(sentence(&error)),
        }
    }
    let torn = scan.judge_end(&founds).unwrap_or_else(|error| {
        problems.push(sentence(&error));
        None
    });
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
    Ok(Inspection {
        meta: last.meta,
        unreadable: lost,
        report,
        problems,
        index,
        reader: Reader::new(disk, identity),
    })
}

impl<D: Disk> Inspection<D> {
    /// The slots that have a readable record, ascending, each with the ballot that it was accepted in.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, Ballot)> {
        self.index.iter().map(|(slot, record)| (*slot, record.ballot))
    }

    /// The value accepted last in a slot; `None` if there is no readable record of it.
    ///
    /// # Errors
    /// It cannot be read any more.
    pub fn read(&mut self, slot: Slot) -> Result<Option<Accepted>, ReadError> {
        let record = self.index.get(&slot).copied();
        record.map(|record| self.reader.read(slot, &record)).transpose()
    }
}

/// Whose log it is, by its segments' own headers: for a directory that has lost its identity.
///
/// # Errors
/// The directory cannot be listed.
pub fn identity_of_segments(disk: &impl Disk) -> io::Result<Option<Identity>> {
    for number in segment_numbers(&disk.list()?) {
        let mut block = vec![0; BLOCK_BYTES];
        let read = disk
            .open(&segment_name(number))
            .and_then(|file| file.read_at(&mut block, 0));
        let header = read.ok().and_then(|()| decode_segment_header(&block));
        if let Some(header) = header
            && let Ok(cluster) = header.cluster.parse()
        {
            return Ok(Some(Identity {
                cluster,
                replica: header.replica,
                incarnation: header.incarnation,
            }));
        }
    }
    Ok(None)
}

/// An error with its causes, in one line.
fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
