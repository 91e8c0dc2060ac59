//! The log's errors: what happened, and what to do next.

use std::io;
use std::sync::Arc;
use synod_coordinator_core::paxos::Slot;

/// Opening the log or writing to it failed. Cloneable, because after the first failed write every further one answers
/// with the same error (L9).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// There is no space for the next segment. Segments are allocated before use, so no batch was cut in two: what was
    /// synced stays readable. The replica stays up, read-only (L9).
    #[error(
        "no space for log segment {segment}: free space in the data directory, then restart this replica"
    )]
    Full {
        /// The segment that could not be created.
        segment: u64,
        /// The disk's error.
        source: Arc<io::Error>,
    },
    /// A write, sync or read of the disk failed. The process must end: the page cache may no longer show what is on
    /// disk (traps A11).
    #[error("the disk failed to {action}: check it before restarting this replica")]
    Broken {
        /// What was tried.
        action: String,
        /// The disk's error.
        source: Arc<io::Error>,
    },
    /// The directory holds no segment at all.
    #[error(
        "the log has no segment, though its directory has an identity: restore the files, or give this replica an \
         empty directory and have it admitted again"
    )]
    NoSegments,
    /// A segment was written by another replica, cluster or directory, or under another name.
    #[error("`{name}` does not belong to this log: it is {found}, not {expected}; put back the right file")]
    Foreign {
        /// The file.
        name: String,
        /// What its header says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// A segment was written by a version of Synod whose format this one does not know.
    #[error(
        "`{name}` has log format {found}; this program reads format {known}: use the version that wrote it"
    )]
    UnknownFormat {
        /// The file.
        name: String,
        /// The file's format.
        found: u32,
        /// The one known here.
        known: u32,
    },
    /// More is unreadable at the log's end than one interrupted write explains: this replica's last promise may be
    /// lost, and with it the right to promise and accept (L7, L10).
    #[error(
        "the end of the log is lost ({reason} in segment {segment}): this replica may have forgotten a promise; \
         restore the files, or give it an empty directory and have it admitted again"
    )]
    EndLost {
        /// The first segment of which the content is not known.
        segment: u64,
        /// What was found.
        reason: &'static str,
    },
    /// A batch is larger than [`BATCH_BYTES_MAX`](super::BATCH_BYTES_MAX). Nothing was written.
    #[error("a batch of {bytes} bytes is larger than the log takes at once")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The storage thread has ended, orderly or by a panic: nothing more is written.
    #[error("the storage thread has ended: restart this replica")]
    Stopped,
}

impl LogError {
    pub(crate) fn broken(action: impl Into<String>, source: io::Error) -> Self {
        Self::Broken {
            action: action.into(),
            source: Arc::new(source),
        }
    }

    /// Tells a full disk from a broken one: only at the creation of a segment, where nothing is half written.
    pub(crate) fn creating(segment: u64, source: io::Error) -> Self {
        if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            Self::Full {
                segment,
                source: Arc::new(source),
            }
        } else {
            Self::broken(format!("create log segment {segment}"), source)
        }
    }

    /// Whether the disk is full, rather than broken: the replica may stay up and answer from what it has (L9).
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

/// A value cannot be read. Unreadable is not empty (L3).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The log knew at start that the latest record of this slot is, or may be, lost.
    #[error("slot {slot} was found unreadable at start")]
    Unreadable {
        /// The slot.
        slot: Slot,
    },
    /// The record's bytes are not those that were written.
    #[error("slot {slot} is corrupt on disk (segment {segment}, offset {offset})")]
    Corrupt {
        /// The slot.
        slot: Slot,
        /// The segment's number.
        segment: u64,
        /// Where its value begins in the segment, in bytes.
        offset: u64,
    },
    /// The disk failed.
    #[error("slot {slot} cannot be read from segment {segment}")]
    Io {
        /// The slot.
        slot: Slot,
        /// The segment's number.
        segment: u64,
        /// The disk's error.
        source: io::Error,
    },
    /// Too many reads wait already; ask again.
    #[error("too many reads of the log wait already")]
    Busy,
    /// The storage thread has ended.
    #[error("the storage thread has ended")]
    Stopped,
}
