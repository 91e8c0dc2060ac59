//! Wire messages to domain values and back: the one place where malformed input of clients, and of the coordinator
//! to them, is refused.
//!
//! A domain value becomes a generated one by `From`, which cannot fail; the way back is `TryFrom` with [`Malformed`].
//! Every length and count is checked against a [limit](crate::limits) here, so that what lies behind needs no second
//! look (traps A20). Texts that only explain (causes, refusals, hazards) are cut to their limit when they are
//! written, because losing the end of a text is better than losing the message; an operator's author and reason are
//! never cut, they are refused.
//!
//! Three things stay opaque here: the bytes of [`Request::Decide`](crate::session::Request::Decide), which the
//! coordinator validates and logs as they are; the address in a `NotLeader`, which no core knows
//! ([`refusal`], [`leader_address`]); and `StatusReply`, which has no domain form.
//!
//! The submodule `session` holds the stream, `message` what relays and inboxes say, `status` what both ways share, `unary` the single calls.

mod in_doubt;
mod message;
mod open;
mod session;
mod status;
mod unary;

use crate::ids::{CallId, ExecutionId, Gtid, InstanceId, Lineage, ReplicaId, ResourceId};
use crate::limits::TEXT_BYTES_MAX;
use crate::session::Refusal;
use crate::v1;
use bytes::Bytes;
use std::fmt;

pub use in_doubt::ListInDoubt;
pub use session::{request_number, response};
pub use status::{leader_address, refusal};
pub use unary::{List, Resolve, ResolveAction};

/// A message that no client or coordinator of this version sends. Sending it again gives the same answer: it is a bug
/// in the sender, or a newer sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The field, as `Message.field` of the .proto file.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Absent, empty, or of a kind that was added after this version.
    Missing,
    /// An id of the wrong length.
    Length {
        /// The only valid length, in bytes.
        expected: usize,
        /// The length found, in bytes.
        actual: usize,
    },
    /// 16 bytes that are not a UUID of version 7.
    NotGtid,
    /// An enum's value or a number that names nothing.
    Unknown {
        /// The value.
        value: i64,
    },
    /// More than a limit allows.
    Limit {
        /// What is counted: "bytes", "branches".
        unit: &'static str,
        /// The most that is allowed.
        max: usize,
        /// What was found.
        actual: usize,
    },
    /// One branch, named twice.
    Repeated {
        /// The branch's call.
        call: CallId,
        /// The branch's execution.
        execution: ExecutionId,
    },
    /// Branches that are not in the order of (call, execution).
    Disordered,
    /// Two executions of one call in a commit: the work would take effect twice (T2).
    TwoExecutions {
        /// The call.
        call: CallId,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.field, self.reason)
    }
}

impl std::error::Error for Malformed {}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Missing => f.write_str("is missing, or of a kind that this version does not know"),
            Self::Length { expected, actual } => write!(f, "has {actual} bytes instead of {expected}"),
            Self::NotGtid => f.write_str("is not a gtid (UUID version 7)"),
            Self::Unknown { value } => write!(f, "has the unknown value {value}"),
            Self::Limit { unit, max, actual } => write!(f, "has {actual} {unit}, more than {max}"),
            Self::Repeated { call, execution } => {
                write!(f, "names the branch {:016x}/{:016x} twice", call.0, execution.0)
            }
            Self::Disordered => f.write_str("are not in the order of (call, execution)"),
            Self::TwoExecutions { call } => write!(f, "names two executions of the call {:016x}", call.0),
        }
    }
}

/// What the coordinator answers to a malformed request.
impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self::Invalid {
            text: malformed.to_string(),
        }
    }
}

// ---- readers of single fields ----

fn present<T>(field: &'static str, value: Option<T>) -> Result<T, Malformed> {
    value.ok_or(Malformed {
        field,
        reason: Reason::Missing,
    })
}

fn limited(field: &'static str, unit: &'static str, actual: usize, max: usize) -> Result<(), Malformed> {
    if actual > max {
        Err(Malformed {
            field,
            reason: Reason::Limit { unit, max, actual },
        })
    } else {
        Ok(())
    }
}

fn sixteen(field: &'static str, bytes: &Bytes) -> Result<[u8; 16], Malformed> {
    // Protobuf does not tell an empty field from an absent one, and "missing" is what the caller did.
    if bytes.is_empty() {
        return Err(Malformed {
            field,
            reason: Reason::Missing,
        });
    }
    <[u8; 16]>::try_from(&bytes[..]).map_err(|_| Malformed {
        field,
        reason: Reason::Length {
            expected: 16,
            actual: bytes.len(),
        },
    })
}

fn gtid(field: &'static str, bytes: &Bytes) -> Result<Gtid, Malformed> {
    Gtid::from_bytes(sixteen(field, bytes)?).map_err(|_| Malformed {
        field,
        reason: Reason::NotGtid,
    })
}

fn lineage(field: &'static str, bytes: &Bytes) -> Result<Lineage, Malformed> {
    sixteen(field, bytes).map(Lineage)
}

fn resource(field: &'static str, bytes: &Bytes) -> Result<ResourceId, Malformed> {
    sixteen(field, bytes).map(ResourceId)
}

fn instance(field: &'static str, bytes: &Bytes) -> Result<InstanceId, Malformed> {
    sixteen(field, bytes).map(InstanceId)
}

/// Reads a text that may be empty.
fn text(field: &'static str, text: String) -> Result<String, Malformed> {
    limited(field, "bytes", text.len(), TEXT_BYTES_MAX)?;
    Ok(text)
}

/// Reads a text that must say something.
fn required_text(field: &'static str, value: String) -> Result<String, Malformed> {
    if value.is_empty() {
        Err(Malformed {
            field,
            reason: Reason::Missing,
        })
    } else {
        text(field, value)
    }
}

/// Reads a replica's number; 0 is "none known".
fn replica(field: &'static str, number: u32) -> Result<Option<ReplicaId>, Malformed> {
    match u8::try_from(number) {
        Ok(0) => Ok(None),
        Ok(id) => Ok(Some(ReplicaId(id))),
        Err(_) => Err(Malformed {
            field,
            reason: Reason::Unknown {
                value: i64::from(number),
            },
        }),
    }
}

fn unknown(field: &'static str, value: i32) -> Malformed {
    Malformed {
        field,
        reason: Reason::Unknown {
            value: i64::from(value),
        },
    }
}

// ---- writers ----

fn id_bytes(id: &[u8; 16]) -> Bytes {
    Bytes::copy_from_slice(id)
}

fn gtid_bytes(gtid: Gtid) -> Bytes {
    id_bytes(&gtid.to_bytes())
}

const EMPTY: v1::Empty = v1::Empty {};
