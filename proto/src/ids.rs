//! Identifiers. One newtype for every number that could be swapped with another.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;
use uuid::Uuid;

/// Milliseconds since 1970, on some machine's wall clock. A wall clock may lie: nothing that must be safe
/// rests on one (T14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// This instant plus `millis`, saturating.
    #[must_use]
    pub const fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// This instant less `millis`, not below 0.
    #[must_use]
    pub const fn minus(self, millis: u64) -> Self {
        Self(self.0.saturating_sub(millis))
    }
}

/// A text that is not the identifier it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseIdError {
    what: &'static str,
    text: String,
}

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not {}", self.text, self.what)
    }
}

impl core::error::Error for ParseIdError {}

/// A global transaction's id: a UUIDv7 made by the initiator (T1). Its first 48 bits are the initiator's wall clock
/// at begin, in milliseconds, which is what the watermark compares.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gtid {
    // Two numbers, since ordered maps compare gtids all the time: numbers compare at a third of what bytes cost.
    /// The first 8 bytes, big-endian.
    high: u64,
    /// The last 8 bytes, big-endian.
    low: u64,
}

impl Gtid {
    /// Makes the id of a transaction that begins at `now`; `random` must be fresh for each one.
    #[must_use]
    pub fn new(now: UnixMillis, random: [u8; 10]) -> Self {
        let millis = now.0 & 0xffff_ffff_ffff;
        let mut bytes = [0u8; 16];
        bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        bytes[6] = (bytes[6] & 0x0f) | 0x70;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self::of(bytes)
    }

    const fn of(bytes: [u8; 16]) -> Self {
        let number = u128::from_be_bytes(bytes);
        Self {
            high: (number >> 64) as u64,
            #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
            low: number as u64,
        }
    }

    /// Takes 16 bytes that claim to be a gtid.
    ///
    /// # Errors
    /// They are not a UUID of version 7 (RFC 9562).
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, ParseIdError> {
        if bytes[6] & 0xf0 == 0x70 && bytes[8] & 0xc0 == 0x80 {
            Ok(Self::of(bytes))
        } else {
            Err(ParseIdError {
                what: "a gtid (UUID version 7)",
                text: Uuid::from_bytes(bytes).to_string(),
            })
        }
    }

    /// The 16 bytes, in the order in which gtids sort.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        (((self.high as u128) << 64) | self.low as u128).to_be_bytes()
    }

    /// When the transaction began, by the initiator's clock.
    #[must_use]
    pub fn began_at(self) -> UnixMillis {
        UnixMillis(self.high >> 16)
    }
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Uuid::from_bytes(self.to_bytes()), f)
    }
}

impl fmt::Debug for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gtid({self})")
    }
}

impl FromStr for Gtid {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = || ParseIdError {
            what: "a gtid (UUID version 7)",
            text: text.chars().take(64).collect(),
        };
        let uuid = Uuid::try_parse(text).map_err(|_| error())?;
        Self::from_bytes(*uuid.as_bytes()).map_err(|_| error())
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&Uuid::from_bytes(self.0), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                Uuid::try_parse(text)
                    .map(|uuid| Self(*uuid.as_bytes()))
                    .map_err(|_| ParseIdError { what: $what, text: text.chars().take(64).collect() })
            }
        }
    };
}

uuid_id!(
    /// One coordinator, for ever: made when its log is born, kept in every participant database and carried by every
    /// vote and delivery, so that two coordinators never decide for one database (T11).
    Lineage,
    "a lineage (UUID)"
);
uuid_id!(
    /// One participant database, for ever: a random id in a row of that database (T11).
    ResourceId,
    "a resource id (UUID)"
);
uuid_id!(
    /// One run of a participant process: random, made with its session. Open branches live in its memory, so that only
    /// this very instance can prepare them (T3).
    InstanceId,
    "an instance (UUID)"
);
uuid_id!(
    /// One message of an outbox, for ever: random, made when it is published, the same at every redelivery.
    MessageId,
    "a message id (UUID)"
);
uuid_id!(
    /// One life of a replica's data directory: made with the directory (L10).
    Incarnation,
    "an incarnation (UUID)"
);

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

/// One process of a replica: random, drawn when it starts and kept nowhere but at its peers. Two processes on copies of one
/// directory count the same starts; this tells them apart (L10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessNonce(pub u64);

impl fmt::Display for ProcessNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

number_id!(
    /// A call made under a transaction: random, chosen by the caller (T2).
    CallId(u64)
);
number_id!(
    /// One execution of a call: random, chosen by the participant that runs it (T2). A call that is sent twice runs
    /// as two executions, and the commit record names at most one of them.
    ExecutionId(u64)
);
number_id!(
    /// An open local transaction of an instance: random, made when it was opened and kept in memory only, so that what
    /// was opened anew never passes for what was lost (T3).
    OpenToken(u64)
);
number_id!(
    /// A request on a session, counted by the client; its answer carries the same number.
    RequestId(u64)
);
number_id!(
    /// A session at the leader: a participant's stream, or one unary call. Never reused within a process.
    SessionId(u64)
);
number_id!(
    /// A message's place in its outbox, from 1: given in the local transaction in which the message becomes visible, so
    /// that the order of positions is the order of those commits (traps H1, H2).
    Position(u64)
);
number_id!(
    /// A message's number within its key: rising in the order in which the key's messages were published, not without
    /// gaps (traps H4).
    Sequence(u64)
);
number_id!(
    /// One sending of one message: rising over all sendings of an outbox, also over restarts, so that what an earlier
    /// sending left on its way is told apart (traps H5, H17).
    Fence(u64)
);
number_id!(
    /// A replica of the coordinator, from 1.
    ReplicaId(u8)
);

/// One execution of one call of one global transaction at one participant: the unit that votes, is named by a commit
/// record, and is delivered to (T2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchId {
    /// The global transaction.
    pub gtid: Gtid,
    /// The call, by its caller.
    pub call: CallId,
    /// The execution, by its executor.
    pub execution: ExecutionId,
}

impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:016x}/{:016x}", self.gtid, self.call.0, self.execution.0)
    }
}

/// The name of a coordinator cluster, as its operator writes it: 1 to 40 of `[a-z0-9-]`, starting with a letter. It
/// keeps replicas of two clusters apart; [`Lineage`] keeps their transactions apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(String);

impl ClusterId {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClusterId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let is_valid = (1..=40).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if is_valid {
            Ok(Self(text.to_string()))
        } else {
            Err(ParseIdError {
                what: "a cluster id (1 to 40 of a-z, 0-9 and -, starting with a letter)",
                text: text.chars().take(64).collect(),
            })
        }
    }
}
