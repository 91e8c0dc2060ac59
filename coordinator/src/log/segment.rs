//! Creation of segments, ahead of need.

use super::disk::{AlignedBuffer, BLOCK_BYTES, Disk, DiskFile, round_up};
use super::format::{encode_segment_header, segment_name};
use super::{Identity, LogError, Options};
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

    /// Allocates and zeroes the file, writes its header, and makes its name durable, in this order: a valid header says
    /// that the whole file is there, and no batch is written to a file that a crash could take away.
    pub(crate) fn run(self) -> Result<Segment<D::File>, LogError> {
        let name = segment_name(self.number);
        let file = self
            .disk
            .create(&name, self.length)
            .map_err(|error| LogError::creating(self.number, error))?;
        let mut buffer = AlignedBuffer::default();
        let block = buffer.take(BLOCK_BYTES);
        encode_segment_header(&self.identity, self.number, self.length, block);
        let finished = file
            .write_synced_at(block, 0)
            .and_then(|()| self.disk.sync_directory());
        if let Err(error) = finished {
            // Nothing was ever written to it. Should it stay behind, the next start removes it.
            self.disk.remove(&name).ok();
            return Err(LogError::creating(self.number, error));
        }
        Ok(Segment {
            number: self.number,
            length: self.length,
            file,
        })
    }
}
