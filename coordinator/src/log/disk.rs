//! What the log needs of a disk, and no more: files by name in one directory.
//!
//! The log runs over [`FileDisk`](super::FileDisk) in production and over [`MemoryDisk`](super::MemoryDisk) where faults
//! are injected. Both honour the same contract:
//!
//! - Bytes written are on disk once [`DiskFile::sync`] has returned `Ok`; before that, after a crash, any subset of the
//!   sectors written may have arrived.
//! - A name created, changed or removed is so after a crash once [`Disk::sync_directory`] has returned `Ok`; before that,
//!   after a crash, each name may be there or not, whatever has become of the file's content.
//! - After a failed sync nothing is known of what was written since the last good one, and a later `Ok` does not say
//!   otherwise (traps A11: the kernel may drop dirty pages and report the error once).

use std::fmt::Debug;
use std::io;

/// The unit in which the log writes: the largest physical sector in common use. A synced block is never written again
/// with other content, so that a torn write cannot reach what a replica has acknowledged.
pub const BLOCK_BYTES: usize = 4096;

/// The next multiple of [`BLOCK_BYTES`].
pub(crate) const fn round_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES as u64)
}

/// One directory of files. Shared by the thread that writes and the ones that read or prepare segments.
pub trait Disk: Debug + Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;

    /// The names of the files, sorted.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file to read and write it.
    ///
    /// # Errors
    /// There is none of this name, or it cannot be opened.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Creates a file of `length` zero bytes, all allocated and synced, so that writing into it later needs no space and
    /// changes no metadata. Leaves no file behind if it fails.
    ///
    /// # Errors
    /// There is one of this name; or no space ([`io::ErrorKind::StorageFull`]); or the disk failed.
    fn create(&self, name: &str, length: u64) -> io::Result<Self::File>;

    /// Gives a file another name, at once for whoever looks by name. What has it open keeps it open.
    ///
    /// # Errors
    /// There is none of the old name; or one of the new name ([`io::ErrorKind::AlreadyExists`]), which stays; or the disk
    /// failed.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// There is none of this name, or it cannot be removed.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names as they are now durable: creations, changes and removals.
    ///
    /// # Errors
    /// They may not be durable.
    fn sync_directory(&self) -> io::Result<()>;
}

/// One open file of a [`Disk`].
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// Its length in bytes.
    ///
    /// # Errors
    /// The disk failed.
    fn length(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// The file ends before ([`io::ErrorKind::UnexpectedEof`]), or the disk failed.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `data` at `offset`, within the file's length.
    ///
    /// # Errors
    /// The disk failed; part of `data` may be written.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// Nothing is known of what was written since the last good sync. Never try again (L9).
    fn sync(&self) -> io::Result<()>;

    /// Writes and syncs, in one request where the disk can.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at) and [`sync`](Self::sync).
    fn write_synced_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(data, offset)?;
        self.sync()
    }
}

/// A reusable buffer that begins at a multiple of [`BLOCK_BYTES`] in memory, as direct IO asks.
#[derive(Debug, Default)]
pub(crate) struct AlignedBuffer {
    bytes: Vec<u8>,
}

impl AlignedBuffer {
    /// `length` bytes of unspecified content (what an earlier use left, or zeros).
    pub(crate) fn take(&mut self, length: usize) -> &mut [u8] {
        let needed = length + BLOCK_BYTES;
        if self.bytes.len() < needed {
            // Not `resize`: the old content need not be copied.
            self.bytes = vec![0; needed.next_power_of_two()];
        }
        // `align_offset` may decline; then the buffer is merely unaligned, and a direct writer falls back.
        let start = self.bytes.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        &mut self.bytes[start..start + length]
    }
}
