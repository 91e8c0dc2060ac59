//! The real disk: a directory of files.
//!
//! Where the file system allows, batches are written past the page cache and made durable in the same request
//! (`O_DIRECT` with `RWF_DSYNC`): one system call a batch, and no dirty page that could be read back as if it were
//! durable after a failed sync (traps A11). Elsewhere: a write and `fdatasync`.

use super::disk::{AlignedBuffer, BLOCK_BYTES, Disk, DiskFile};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// How many zeros are written at once when a file is created: enough for throughput, little enough to leave the disk
/// to the log's own writes in between.
const ZERO_BYTES: usize = 1 << 20;

/// A directory on a file system. Clones share it.
#[derive(Clone, Debug)]
pub struct FileDisk {
    path: PathBuf,
    /// Held for as long as anything can reach the files, so that a second process stays locked out until the last
    /// thread has let go (traps A18).
    _lock: Option<Arc<DirectoryLock>>,
}

/// A locked file. Unlocked by name when dropped: closing it would not do, while a child process that is just being
/// started still has a copy.
#[derive(Debug)]
pub(crate) struct DirectoryLock(File);

impl DirectoryLock {
    /// Locks `file`, or says that somebody else has.
    pub(crate) fn take(file: File) -> Result<Self, TryLockError> {
        file.try_lock()?;
        Ok(Self(file))
    }

    /// Keeps everybody out who would lock `file` for himself, and nobody who shares it like this.
    pub(crate) fn share(file: File) -> Result<Self, TryLockError> {
        file.try_lock_shared()?;
        Ok(Self(file))
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        self.0.unlock().ok();
    }
}

/// An open file of a [`FileDisk`].
#[derive(Debug)]
pub struct OpenFile {
    /// The name that it was opened by. A file that was created has its direct handle before it can get another.
    path: PathBuf,
    file: File,
    /// Opened at the first synced write; `None` inside where direct IO does not work.
    direct: OnceLock<Option<File>>,
}

impl FileDisk {
    /// The files of the directory at `path`, which must exist. Does not lock it: see
    /// [`Directory`](crate::directory::Directory).
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            _lock: None,
        }
    }

    /// As [`new`](Self::new), and keeps `lock` open for as long as the disk or a clone of it lives.
    pub(crate) fn locked(path: PathBuf, lock: DirectoryLock) -> Self {
        Self {
            path,
            _lock: Some(Arc::new(lock)),
        }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open_file(path: PathBuf, options: &mut OpenOptions) -> io::Result<OpenFile> {
        let file = options.read(true).write(true).open(&path)?;
        Ok(OpenFile {
            path,
            file,
            direct: OnceLock::new(),
        })
    }
}

impl Disk for FileDisk {
    type File = OpenFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<OpenFile> {
        Self::open_file(self.path.join(name), &mut OpenOptions::new())
    }

    fn create(&self, name: &str, length: u64) -> io::Result<OpenFile> {
        let path = self.path.join(name);
        let open = Self::open_file(path.clone(), OpenOptions::new().create_new(true))?;
        let fill = || {
            reserve(&open.file, length)?;
            open.write_zeros(length)?;
            open.file.sync_all()
        };
        match fill() {
            Ok(()) => Ok(open),
            Err(error) => {
                // On a full disk a half-made segment would hold the very space that is missing.
                fs::remove_file(path).ok();
                Err(error)
            }
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let to = self.path.join(to);
        // Nobody else makes names here while the directory is locked, so nothing comes in between.
        match fs::symlink_metadata(&to) {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(self.path.join(from), to),
            Err(error) => Err(error),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl OpenFile {
    /// Whether writes go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct().is_some()
    }

    fn write_zeros(&self, length: u64) -> io::Result<()> {
        let mut buffer = AlignedBuffer::default();
        let zeros = buffer.take(ZERO_BYTES);
        let mut offset = 0;
        while offset < length {
            let count = usize::try_from(length - offset).map_or(ZERO_BYTES, |rest| rest.min(ZERO_BYTES));
            // Through the same handle that the batches will use: no page of zeros is left in the cache to be thrown out
            // by every later write.
            match self.direct().filter(|_| is_aligned(&zeros[..count], offset)) {
                Some(direct) => direct.write_all_at(&zeros[..count], offset)?,
                None => self.file.write_all_at(&zeros[..count], offset)?,
            }
            offset += count as u64;
        }
        Ok(())
    }

    fn direct(&self) -> Option<&File> {
        self.direct.get_or_init(|| open_direct(&self.path)).as_ref()
    }
}

impl DiskFile for OpenFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_synced_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        match self.direct().filter(|_| is_aligned(data, offset)) {
            Some(direct) => write_direct(direct, data, offset),
            None => {
                self.write_at(data, offset)?;
                self.sync()
            }
        }
    }
}

fn is_aligned(data: &[u8], offset: u64) -> bool {
    data.as_ptr().addr().is_multiple_of(BLOCK_BYTES)
        && data.len().is_multiple_of(BLOCK_BYTES)
        && offset.is_multiple_of(BLOCK_BYTES as u64)
}

/// Takes the space before the zeros are written, so that a full disk says so at once and with nothing to clean up.
#[cfg(target_os = "linux")]
fn reserve(file: &File, length: u64) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, length) {
        // Not every file system can; writing the zeros then takes the space.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}

/// Opens `path` for direct IO, if a block can be read that way: some file systems take the flag and refuse the IO, or
/// have larger sectors than a block.
#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flag = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).ok()?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flag)
        .open(path)
        .ok()?;
    let mut buffer = AlignedBuffer::default();
    let block = buffer.take(BLOCK_BYTES);
    if !is_aligned(block, 0) {
        return None;
    }
    file.read_at(block, 0).is_ok().then_some(file)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path) -> Option<File> {
    None
}

#[cfg(target_os = "linux")]
fn write_direct(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    use rustix::io::{Errno, ReadWriteFlags, pwritev2};
    let mut done = 0;
    while done < data.len() {
        let slices = [io::IoSlice::new(&data[done..])];
        match pwritev2(file, &slices, offset + done as u64, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn write_direct(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(data, offset)?;
    file.sync_data()
}
