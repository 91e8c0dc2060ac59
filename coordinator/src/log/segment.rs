//! Creation of segments, ahead of need.
//!
//! A segment gets its name when it is whole: until then its file has another one. So a file under a segment's name that
//! is shorter than it was made, or has no header, was damaged, and may have held what somebody was told of (L3).
//!
//! | a crash after | leaves | at the next start |
//! |---|---|---|
//! | nothing, or the creation | nothing, or `….log.new` of any length | it is removed |
//! | the writing of the header | `….log.new` with or without it | it is removed |
//! | its sync | `….log.new`, whole | it is removed |
//! | the renaming | `….log.new` or `….log`, both or neither, whole | the first is removed, the second used |
//! | the sync of the directory | `….log`, whole | it is used |

use super::disk::{AlignedBuffer, BLOCK_BYTES, Disk, DiskFile, round_up};
use super::format::{encode_segment_header, segment_name, unfinished_name};
use super::{Identity, LogError, Options};
use std::io;
use std::sync::Arc;

/// A segment that batches can be written to.
#[derive(Debug)]
pub(crate) struct Segment<F> {
    pub(crate) number: u64,
    pub(crate) length: u64,
    pub(crate) file: F,
}

/// The creation of one segment, as a value: the storage thread hands it to another thread, a simulator runs it in place.
#[derive(Debug)]
pub(crate) struct Preparation<D> {
    disk: Arc<D>,
    identity: Identity,
    number: u64,
    length: u64,
}

impl<D: Disk> Preparation<D> {
    pub(crate) fn new(disk: &Arc<D>, identity: &Identity, number: u64, length: u64) -> Self {
        let length = round_up(length.max(Options::SEGMENT_BYTES_MIN));
        Self {
            disk: Arc::clone(disk),
            identity: identity.clone(),
            number,
            length,
        }
    }

    /// Allocates and zeroes the file, writes its header, gives it its name and makes that durable, in this order: a name
    /// says that the whole file is there, and no batch is written to a file that a crash could take away.
    pub(crate) fn run(self) -> Result<Segment<D::File>, LogError> {
        let (unfinished, name) = (unfinished_name(self.number), segment_name(self.number));
        let creating = |error| LogError::creating(self.number, error);
        let file = self.create(&unfinished).map_err(creating)?;
        let mut buffer = AlignedBuffer::default();
        let block = buffer.take(BLOCK_BYTES);
        encode_segment_header(&self.identity, self.number, self.length, block);
        let named = file
            .write_synced_at(block, 0)
            .and_then(|()| self.disk.rename(&unfinished, &name));
        // Where it fails, nothing was ever written to it. Should it stay behind, the next start removes or uses it.
        named.map_err(|error| {
            self.disk.remove(&unfinished).ok();
            creating(error)
        })?;
        self.disk.sync_directory().map_err(|error| {
            self.disk.remove(&name).ok();
            creating(error)
        })?;
        Ok(Segment {
            number: self.number,
            length: self.length,
            file,
        })
    }

    /// An earlier try that failed may have left its file behind.
    fn create(&self, unfinished: &str) -> io::Result<D::File> {
        match self.disk.create(unfinished, self.length) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.remove(unfinished)?;
                self.disk.create(unfinished, self.length)
            }
            created => created,
        }
    }
}
