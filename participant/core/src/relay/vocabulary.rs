//! The relay's words: what it is told, what it asks for, and the numbers that bound it.

use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;
use synod_proto::ids::{Fence, Position};

/// The most messages of one key that wait in memory; the others are read when these are settled, so that one long key
/// leaves room for the others.
pub const KEY_QUEUE_COUNT_MAX: usize = 8;

/// The most messages in memory that are on their way or wait for a turn, without their bodies: some 3 MiB with the longest keys.
pub const WINDOW_COUNT_MAX: usize = 4096;

/// The most keys of one topic that may wait for their next attempt or for an operator before no more of its keys are read: each
/// costs memory, some 12 MiB together with the longest keys. Other topics go on.
pub const WAITING_COUNT_MAX: usize = 16 << 10;

/// The most messages, and the most bytes of bodies, that one session has in flight.
pub const SESSION_COUNT_MAX: usize = 256;
/// See [`SESSION_COUNT_MAX`].
pub const SESSION_BYTES_MAX: usize = 4 << 20;

/// The most that one topic has in flight, for each session that is open: what hangs in one topic leaves room for another.
pub const TOPIC_SHARE_COUNT_MAX: usize = SESSION_COUNT_MAX / 4 * 3;
/// See [`TOPIC_SHARE_COUNT_MAX`].
pub const TOPIC_SHARE_BYTES_MAX: usize = SESSION_BYTES_MAX / 4 * 3;

/// The most rows that one read asks for.
pub const READ_COUNT_MAX: usize = 512;

/// The most results in one settlement.
pub const SETTLEMENT_COUNT_MAX: usize = 1024;

/// At so many results that wait to be written nothing more is sent, so that a store that is slow or fails is not outrun: with
/// those that are in flight, and their reasons, a few MiB.
pub const UNWRITTEN_COUNT_MAX: usize = 4 * SETTLEMENT_COUNT_MAX;

/// How many messages may be settled before the inbox is told so, and how long at most it is not told.
pub const LOW_WATER_COUNT: u64 = 256;
/// See [`LOW_WATER_COUNT`].
pub const LOW_WATER_DELAY: Duration = Duration::from_secs(1);

const _: () = assert!(READ_COUNT_MAX + KEY_QUEUE_COUNT_MAX < WINDOW_COUNT_MAX);
const _: () = assert!(SESSION_COUNT_MAX <= WINDOW_COUNT_MAX);
const _: () = assert!(
    synod_proto::limits::MESSAGE_BODY_BYTES_MAX + synod_proto::limits::HEADER_BYTES_MAX
        <= TOPIC_SHARE_BYTES_MAX,
    "the largest message fits into an empty session"
);

/// What happens to the later messages of a key one of whose messages is dead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeadLetterPolicy {
    /// They wait until the dead letter is requeued or discarded: the key's order is kept (traps H9).
    #[default]
    HoldKey,
    /// They go on without it. Requeued, it comes after them.
    Skip,
}

/// How one consumer is served.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    /// After so many failed attempts a message is a dead letter.
    pub attempt_count_max: u32,
    /// What a dead letter does to its key.
    pub policy: DeadLetterPolicy,
    /// The wait after the first failed attempt; doubled with each further one, and jittered (traps B19).
    pub backoff_first: Duration,
    /// The longest wait between two attempts.
    pub backoff_max: Duration,
    /// A session that answers nothing for so long, while something is in flight, is given up.
    pub answer_timeout: Duration,
    /// See [`WAITING_COUNT_MAX`]; at least 1.
    pub waiting_count_max: usize,
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self {
            // With these waits it is five to eleven minutes until the last one has failed: a restart, or a short outage of what a
            // handler calls, makes no dead letters.
            attempt_count_max: 20,
            policy: DeadLetterPolicy::HoldKey,
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(60),
            answer_timeout: Duration::from_secs(45),
            waiting_count_max: WAITING_COUNT_MAX,
        }
    }
}

/// One stream to the consumer. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelaySession(pub u64);

/// A visible message that is not settled for this consumer, as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its place.
    pub position: Position,
    /// What it is about.
    pub topic: Bytes,
    /// Its topic and key, as one name: what is ordered.
    pub key: Bytes,
    /// What it weighs on its way, in bytes.
    pub byte_count: usize,
    /// How many attempts have failed, as far as was recorded.
    pub failed_count: u32,
    /// It is a dead letter.
    pub is_dead: bool,
}

/// What to read from the store next: committed rows in the order of their positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Unsettled messages behind `after`.
    All {
        /// The last position that was read.
        after: Position,
        /// How many rows at most.
        count_max: usize,
    },
    /// Unsettled messages of one topic behind `after`.
    Topic {
        /// The topic.
        topic: Bytes,
        /// The last position that was read.
        after: Position,
        /// How many rows at most.
        count_max: usize,
    },
    /// Unsettled messages of one key behind `after`.
    Key {
        /// The key.
        key: Bytes,
        /// The last position that was read.
        after: Position,
        /// How many rows at most.
        count_max: usize,
    },
}

/// What a [`Read`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The rows, rising. Settled messages are not among them.
    pub rows: Vec<Row>,
    /// Every row up to here was looked at, whether or not it is among `rows`.
    pub up_to: Position,
    /// There was nothing behind `up_to`.
    pub is_end: bool,
}

/// An attempt that failed, or that the consumer did not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The message.
    pub position: Position,
    /// How many attempts have failed by now. One that was not made does not count.
    pub failed_count: u32,
    /// Why the last one failed, or was not made.
    pub reason: String,
}

/// What is to be written to the store, in one local transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settlement {
    /// Acknowledged by the consumer: delivered (traps H6).
    pub delivered: Vec<Position>,
    /// Cancelled, and the consumer has confirmed that they never take effect.
    pub cancelled: Vec<Position>,
    /// Failed or not made, to be tried again.
    pub failed: Vec<Failure>,
    /// Failed for the last time.
    pub dead: Vec<Failure>,
}

impl Settlement {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    pub(super) fn count(&self) -> usize {
        self.delivered.len() + self.cancelled.len() + self.failed.len() + self.dead.len()
    }
}

/// A message to be sent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// To where.
    pub session: RelaySession,
    /// Which message.
    pub position: Position,
    /// This sending of it.
    pub fence: Fence,
    /// Counts the sendings of this message, from 1; over restarts only the failed ones.
    pub attempt: u32,
    /// The last message of its key that was acknowledged.
    pub previous: Option<Position>,
}

/// Why an input changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// The session has ended, or never was.
    UnknownSession,
    /// No such message is in flight there, or by another sending: a late answer.
    NotInFlight,
}
