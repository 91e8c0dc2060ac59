//! The limits that both sides must agree on, each with its reason, and tied to its neighbours.

/// The longest gRPC message that a client may send, in bytes. Larger ones are refused before they are decoded.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The most branches that one global transaction may name. A commit record is read by every replica and delivered
/// branch by branch; a transaction wider than this wants another design (traps A20: bound what the client sizes).
pub const BRANCH_COUNT_MAX: usize = 64;

/// The longest text (cause of an abort, author or reason of an operator), in bytes.
pub const TEXT_BYTES_MAX: usize = 512;

/// The longest database transaction id that a vote may carry, in bytes (PostgreSQL: 8, MariaDB: up to 64).
pub const DATABASE_TRANSACTION_BYTES_MAX: usize = 64;

/// The most lock guards that one transaction may carry, and the longest lock name in bytes.
pub const GUARD_COUNT_MAX: usize = 16;
/// See [`GUARD_COUNT_MAX`].
pub const GUARD_NAME_BYTES_MAX: usize = 128;

/// The most resources that one session may register.
pub const RESOURCE_COUNT_MAX: usize = 64;

/// The page that a list gets when it names no length, and the longest page, in transactions: what one answer may cost
/// a leader that is busy deciding.
pub const LIST_COUNT_DEFAULT: u32 = 100;
/// See [`LIST_COUNT_DEFAULT`].
pub const LIST_COUNT_MAX: u32 = 1000;

/// How far ahead of the reader's clock a gtid or a deadline may be, in milliseconds (T14).
pub const CLOCK_SKEW_MS_MAX: u64 = 10_000;

/// The deadline that a transaction gets when its initiator names none, in milliseconds after begin (T14).
pub const DEADLINE_MS_DEFAULT: u64 = 30_000;

/// The latest deadline, in milliseconds after begin (T14). A prepared branch holds its locks until the outcome is
/// known, so this bounds how long an initiator's death can block others.
pub const DEADLINE_MS_MAX: u64 = 300_000;

/// How far the watermark trails the log's stamps, in milliseconds, unless configured (T14).
pub const WATERMARK_LAG_MS_DEFAULT: u64 = 600_000;

/// The most unfinished gtids in one low-water message. A database with more below the watermark is told nothing, and
/// deletes nothing, until an operator has looked at it.
pub const LOW_WATER_COUNT_MAX: usize = 4096;

/// The longest encoded command: the largest commit record with every optional field at its bound must fit.
pub const COMMAND_BYTES_MAX: usize = 64 << 10;

/// The longest name of a topic or of a consumer, in bytes.
pub const TOPIC_BYTES_MAX: usize = 128;

/// The longest key of a message, in bytes: keys are kept in memory while their messages are on their way.
pub const MESSAGE_KEY_BYTES_MAX: usize = 512;

/// The longest body of a message, in bytes. What is larger is stored elsewhere, and the message says where.
pub const MESSAGE_BODY_BYTES_MAX: usize = 512 << 10;

/// The most headers of a message, and the most bytes of all their names and values.
pub const HEADER_COUNT_MAX: usize = 64;
/// See [`HEADER_COUNT_MAX`].
pub const HEADER_BYTES_MAX: usize = 8 << 10;

/// The most deliveries, or answers, in one frame between relay and inbox, and the size at which a frame is full: one
/// more may be added below that size.
pub const DELIVERY_COUNT_MAX: usize = 128;
/// See [`DELIVERY_COUNT_MAX`].
pub const DELIVERY_BYTES_FULL: usize = 256 << 10;

/// The most messages below an outbox's low-water mark that are not settled: dead letters, what was requeued, and what waits
/// behind them. With more, the mark waits for an operator.
pub const UNSETTLED_COUNT_MAX: usize = 4096;

const _: () = assert!(
    DELIVERY_BYTES_FULL
        + MESSAGE_BODY_BYTES_MAX
        + HEADER_BYTES_MAX
        + HEADER_COUNT_MAX * 16
        + DELIVERY_COUNT_MAX * (TOPIC_BYTES_MAX + MESSAGE_KEY_BYTES_MAX + 128)
        < MESSAGE_BYTES_MAX,
    "a full frame of deliveries fits into a message"
);
const _: () = assert!(DELIVERY_COUNT_MAX * (TEXT_BYTES_MAX + 64) < MESSAGE_BYTES_MAX);
const _: () = assert!(UNSETTLED_COUNT_MAX * 10 < MESSAGE_BYTES_MAX);

const _: () = assert!(
    WATERMARK_LAG_MS_DEFAULT >= 2 * DEADLINE_MS_MAX,
    "T14: the lag is at least twice the longest deadline"
);
const _: () = assert!(DEADLINE_MS_DEFAULT <= DEADLINE_MS_MAX);
const _: () = assert!(DEADLINE_MS_MAX <= 600_000, "T14: at most ten minutes");
const _: () = assert!(0 < LIST_COUNT_DEFAULT && LIST_COUNT_DEFAULT <= LIST_COUNT_MAX);
const _: () = assert!(COMMAND_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(
    BRANCH_COUNT_MAX * (64 + DATABASE_TRANSACTION_BYTES_MAX)
        + GUARD_COUNT_MAX * (16 + GUARD_NAME_BYTES_MAX)
        + 2 * TEXT_BYTES_MAX
        + 256
        < COMMAND_BYTES_MAX
);
