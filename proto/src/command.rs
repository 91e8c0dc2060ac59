//! The log's commands and their byte form.
//!
//! A [`Decide`] is encoded once, by the participant that proposes it. The coordinator validates those bytes and
//! copies them into a log entry; every replica decodes the same bytes in `apply` (traps A2). Integers are
//! big-endian; every length is checked against a limit before anything is allocated (traps A20). A decoder refuses
//! what an encoder would not have written, so that one command has one byte form.

use crate::ids::{CallId, ExecutionId, Gtid, Lineage, ResourceId, UnixMillis};
use crate::limits::{
    BRANCH_COUNT_MAX, COMMAND_BYTES_MAX, DATABASE_TRANSACTION_BYTES_MAX, GUARD_COUNT_MAX,
    GUARD_NAME_BYTES_MAX, RESOURCE_COUNT_MAX, TEXT_BYTES_MAX,
};
use crate::session::{AbortCause, AbortKind};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::{Buf as _, BufMut, Bytes, BytesMut};
use core::fmt;
use core::ops::Range;

/// One command of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Changes nothing. Fills a slot of which no replica of a quorum knows a value.
    Noop,
    /// Gives the coordinator its lineage. The first one in the log wins (T11).
    Establish(Lineage),
    /// Proposes an outcome. The first one for a gtid is the outcome.
    Decide(Decide),
    /// Every branch of these committed transactions has acknowledged.
    Delivered(Vec<Gtid>),
    /// An operator takes one branch's delivery as settled (traps J7).
    Settle(Settle),
    /// These databases belong to this coordinator: a commit record may name their branches.
    Enrol(Vec<ResourceId>),
}

/// A proposed outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Decide {
    /// The coordinator that the branches were prepared under (T11).
    pub lineage: Lineage,
    /// The transaction.
    pub gtid: Gtid,
    /// The transaction's deadline.
    pub deadline: UnixMillis,
    /// The outcome proposed.
    pub proposal: Proposal,
    /// Locks that must still be held for a commit to be valid. Reserved: refused until leases exist.
    pub guards: Vec<Guard>,
}

/// The outcome that a [`Decide`] proposes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Proposal {
    /// Commit exactly these branches, in the order of their ids, each once.
    Commit {
        /// The branches that voted to commit.
        branches: Vec<NamedBranch>,
        /// How many more voted read-only (T5: a commit without branches says so).
        read_only_count: u32,
    },
    /// Abort.
    Abort {
        /// Why.
        cause: AbortCause,
        /// The branches that the proposer knows of, so that they can be told at once. Proves nothing.
        branches: Vec<NamedBranch>,
    },
}

/// A branch as a commit record names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedBranch {
    /// The call.
    pub call: CallId,
    /// The execution of the call that counts (T2).
    pub execution: ExecutionId,
    /// The database.
    pub resource: ResourceId,
    /// A digest of the branch's work, where the store makes one; 0 without.
    pub digest: u64,
    /// The database's own transaction id, where it has one to prove effects by; else empty.
    pub database_transaction: Bytes,
}

/// A lock that guards a commit. Reserved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Guard {
    /// The lock's name.
    pub name: Bytes,
    /// The fencing token under which it was held.
    pub token: u64,
}

/// An operator's word that a branch needs no more delivery.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settle {
    /// The transaction.
    pub gtid: Gtid,
    /// The call.
    pub call: CallId,
    /// The execution.
    pub execution: ExecutionId,
    /// Who.
    pub author: String,
    /// Why.
    pub reason: String,
}

/// Bytes that are not a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// They end too early, or go on too long.
    Length,
    /// A tag or version that this program does not know. In a decided entry: a newer program wrote it, upgrade.
    Unknown {
        /// What was being read.
        what: &'static str,
        /// The tag.
        tag: u8,
    },
    /// A count or a length above its limit.
    Limit {
        /// What was being read.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// A gtid that is none, a text that is not UTF-8.
    Malformed {
        /// What was being read.
        what: &'static str,
    },
    /// Branches out of order, or one named twice.
    Order,
    /// A commit that names two executions of one call: the work would take effect twice (T2).
    TwoExecutions,
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => f.write_str("the command's bytes end early or go on too long"),
            Self::Unknown { what, tag } => write!(f, "unknown {what} {tag}"),
            Self::Limit { what, max } => write!(f, "more than {max} {what}"),
            Self::Malformed { what } => write!(f, "malformed {what}"),
            Self::Order => f.write_str("branches are not in the order of (call, execution), each once"),
            Self::TwoExecutions => f.write_str("a commit names two executions of one call"),
        }
    }
}

impl core::error::Error for CommandError {}

const TAG_NOOP: u8 = 0;
const TAG_ESTABLISH: u8 = 1;
const TAG_DECIDE: u8 = 2;
const TAG_DELIVERED: u8 = 3;
const TAG_SETTLE: u8 = 4;
const TAG_ENROL: u8 = 5;
const DECIDE_VERSION: u8 = 1;
const VERDICT_COMMIT: u8 = 1;
const VERDICT_ABORT: u8 = 2;

/// The most gtids in one `Delivered`.
pub const DELIVERED_COUNT_MAX: usize = 1024;

impl Command {
    /// The byte form.
    ///
    /// # Panics
    /// A list or a text of a `Delivered`, `Enrol` or `Settle` is above its limit. These are made by the leader: an
    /// entry that decodes nowhere would stop every replica, at every start, so the bug has to show before the log.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(128);
        match self {
            Self::Noop => out.put_u8(TAG_NOOP),
            Self::Establish(lineage) => {
                out.put_u8(TAG_ESTABLISH);
                out.put_slice(&lineage.0);
            }
            Self::Decide(decide) => return decide.encode(),
            Self::Delivered(gtids) => {
                assert!(
                    gtids.len() <= DELIVERED_COUNT_MAX,
                    "a command that no replica could read"
                );
                out.put_u8(TAG_DELIVERED);
                put_count(&mut out, gtids.len());
                for gtid in gtids {
                    out.put_slice(&gtid.to_bytes());
                }
            }
            Self::Settle(settle) => {
                let longest = settle.author.len().max(settle.reason.len());
                assert!(longest <= TEXT_BYTES_MAX, "a command that no replica could read");
                out.put_u8(TAG_SETTLE);
                out.put_slice(&settle.gtid.to_bytes());
                out.put_u64(settle.call.0);
                out.put_u64(settle.execution.0);
                put_bytes(&mut out, settle.author.as_bytes());
                put_bytes(&mut out, settle.reason.as_bytes());
            }
            Self::Enrol(resources) => {
                assert!(
                    resources.len() <= RESOURCE_COUNT_MAX,
                    "a command that no replica could read"
                );
                out.put_u8(TAG_ENROL);
                put_count(&mut out, resources.len());
                for resource in resources {
                    out.put_slice(&resource.0);
                }
            }
        }
        out.freeze()
    }

    /// Reads a command.
    ///
    /// # Errors
    /// The bytes are not exactly one command within the [limits](crate::limits).
    pub fn decode(bytes: &Bytes) -> Result<Self, CommandError> {
        Self::decode_part(bytes, 0..bytes.len())
    }

    /// Reads a command that lies within other bytes, such as a log entry's, without a handle on them for each command.
    ///
    /// # Errors
    /// The part's bytes are not exactly one command within the [limits](crate::limits).
    ///
    /// # Panics
    /// `part` goes beyond the bytes.
    pub fn decode_part(bytes: &Bytes, part: Range<usize>) -> Result<Self, CommandError> {
        let mut reader = Reader::new(bytes, part)?;
        let command = match reader.u8()? {
            TAG_NOOP => Self::Noop,
            TAG_ESTABLISH => Self::Establish(Lineage(reader.array()?)),
            TAG_DECIDE => Self::Decide(reader.decide()?),
            TAG_DELIVERED => {
                let count = reader.count("gtids", DELIVERED_COUNT_MAX)?;
                Self::Delivered((0..count).map(|_| reader.gtid()).collect::<Result<_, _>>()?)
            }
            TAG_SETTLE => Self::Settle(Settle {
                gtid: reader.gtid()?,
                call: CallId(reader.u64()?),
                execution: ExecutionId(reader.u64()?),
                author: reader.text("author")?,
                reason: reader.text("reason")?,
            }),
            TAG_ENROL => {
                let count = reader.count("resources", RESOURCE_COUNT_MAX)?;
                Self::Enrol(
                    (0..count)
                        .map(|_| Ok(ResourceId(reader.array()?)))
                        .collect::<Result<_, CommandError>>()?,
                )
            }
            tag => return Err(CommandError::Unknown { what: "command", tag }),
        };
        reader.finish()?;
        Ok(command)
    }
}

impl Decide {
    /// The byte form. The caller keeps within the [limits](crate::limits); `decode` at the coordinator refuses what
    /// does not. Only the text of a cause is cut here: it explains, and an abort must not fail on a long explanation.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(160);
        out.put_u8(TAG_DECIDE);
        out.put_u8(DECIDE_VERSION);
        out.put_slice(&self.lineage.0);
        out.put_slice(&self.gtid.to_bytes());
        out.put_u64(self.deadline.0);
        let branches = match &self.proposal {
            Proposal::Commit {
                branches,
                read_only_count,
            } => {
                out.put_u8(VERDICT_COMMIT);
                out.put_u32(*read_only_count);
                branches
            }
            Proposal::Abort { cause, branches } => {
                out.put_u8(VERDICT_ABORT);
                out.put_u8(abort_kind_tag(cause.kind));
                match cause.branch {
                    None => out.put_u8(0),
                    Some((call, execution)) => {
                        out.put_u8(1);
                        out.put_u64(call.0);
                        out.put_u64(execution.0);
                    }
                }
                put_bytes(&mut out, clip(&cause.text).as_bytes());
                branches
            }
        };
        put_count(&mut out, branches.len());
        for branch in branches {
            out.put_u64(branch.call.0);
            out.put_u64(branch.execution.0);
            out.put_slice(&branch.resource.0);
            out.put_u64(branch.digest);
            put_bytes(&mut out, &branch.database_transaction);
        }
        put_count(&mut out, self.guards.len());
        for guard in &self.guards {
            put_bytes(&mut out, &guard.name);
            out.put_u64(guard.token);
        }
        out.freeze()
    }

    /// Reads a `Decide`, and nothing else.
    ///
    /// # Errors
    /// The bytes are another command, or none.
    pub fn decode(bytes: &Bytes) -> Result<Self, CommandError> {
        match Command::decode(bytes)? {
            Command::Decide(decide) => Ok(decide),
            _ => Err(CommandError::Unknown {
                what: "proposal",
                tag: bytes[0],
            }),
        }
    }

    /// The branches that the proposal names.
    #[must_use]
    pub fn branches(&self) -> &[NamedBranch] {
        match &self.proposal {
            Proposal::Commit { branches, .. } | Proposal::Abort { branches, .. } => branches,
        }
    }
}

impl AbortCause {
    /// A cause without a branch; the text is cut to its limit.
    #[must_use]
    pub fn new(kind: AbortKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            branch: None,
            text: clip_text(text.into()),
        }
    }

    /// The same cause, laid at a branch's door.
    #[must_use]
    pub fn with_branch(self, call: CallId, execution: ExecutionId) -> Self {
        Self {
            branch: Some((call, execution)),
            ..self
        }
    }
}

/// Cuts a text to [`TEXT_BYTES_MAX`], at a character's edge.
#[must_use]
pub fn clip_text(mut text: String) -> String {
    text.truncate(clip(&text).len());
    text
}

fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

fn abort_kind_tag(kind: AbortKind) -> u8 {
    match kind {
        AbortKind::Requested => 1,
        AbortKind::VotedAbort => 2,
        AbortKind::Doomed => 3,
        AbortKind::Dropped => 4,
        AbortKind::Deadline => 5,
        AbortKind::Operator => 6,
    }
}

fn abort_kind(tag: u8) -> Result<AbortKind, CommandError> {
    Ok(match tag {
        1 => AbortKind::Requested,
        2 => AbortKind::VotedAbort,
        3 => AbortKind::Doomed,
        4 => AbortKind::Dropped,
        5 => AbortKind::Deadline,
        6 => AbortKind::Operator,
        tag => {
            return Err(CommandError::Unknown {
                what: "abort cause",
                tag,
            });
        }
    })
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u16(u16::try_from(count).expect("counts are limited far below 65,536"));
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.put_slice(bytes);
}

/// Reads from one command's bytes; slices share the command's allocation.
struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
    /// Where the command ends.
    end: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a Bytes, part: Range<usize>) -> Result<Self, CommandError> {
        assert!(
            part.start <= part.end && part.end <= bytes.len(),
            "a command's part lies within the bytes"
        );
        if part.len() > COMMAND_BYTES_MAX {
            return Err(CommandError::Limit {
                what: "bytes of command",
                max: COMMAND_BYTES_MAX,
            });
        }
        Ok(Self {
            bytes,
            at: part.start,
            end: part.end,
        })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], CommandError> {
        if count > self.end - self.at {
            return Err(CommandError::Length);
        }
        let end = self.at + count;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CommandError> {
        let mut array = [0u8; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, CommandError> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, CommandError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, CommandError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, CommandError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn count(&mut self, what: &'static str, max: usize) -> Result<usize, CommandError> {
        let count = usize::from(self.u16()?);
        if count > max {
            Err(CommandError::Limit { what, max })
        } else {
            Ok(count)
        }
    }

    fn sized(&mut self, what: &'static str, max: usize) -> Result<Bytes, CommandError> {
        let count = self.count(what, max)?;
        // Mostly there is none, and a slice of nothing is not free.
        if count == 0 {
            return Ok(Bytes::new());
        }
        let start = self.at;
        self.take(count)?;
        Ok(self.bytes.slice(start..start + count))
    }

    fn text(&mut self, what: &'static str) -> Result<String, CommandError> {
        let bytes = self.sized(what, TEXT_BYTES_MAX)?;
        core::str::from_utf8(&bytes)
            .map(String::from)
            .map_err(|_| CommandError::Malformed { what })
    }

    fn gtid(&mut self) -> Result<Gtid, CommandError> {
        Gtid::from_bytes(self.array()?).map_err(|_| CommandError::Malformed { what: "gtid" })
    }

    fn decide(&mut self) -> Result<Decide, CommandError> {
        match self.u8()? {
            DECIDE_VERSION => {}
            tag => {
                return Err(CommandError::Unknown {
                    what: "version of Decide",
                    tag,
                });
            }
        }
        let lineage = Lineage(self.array()?);
        let gtid = self.gtid()?;
        let deadline = UnixMillis(self.u64()?);
        let proposal = match self.u8()? {
            VERDICT_COMMIT => {
                let read_only_count = self.u32()?;
                let branches = self.branches()?;
                // Sorted by call, so two executions of one call are neighbours. An abort may name both: it tells them.
                if branches.windows(2).any(|pair| pair[0].call == pair[1].call) {
                    return Err(CommandError::TwoExecutions);
                }
                Proposal::Commit {
                    branches,
                    read_only_count,
                }
            }
            VERDICT_ABORT => {
                let kind = abort_kind(self.u8()?)?;
                let branch = match self.u8()? {
                    0 => None,
                    1 => Some((CallId(self.u64()?), ExecutionId(self.u64()?))),
                    tag => {
                        return Err(CommandError::Unknown {
                            what: "optional",
                            tag,
                        });
                    }
                };
                let text = self.text("cause")?;
                Proposal::Abort {
                    cause: AbortCause { kind, branch, text },
                    branches: self.branches()?,
                }
            }
            tag => return Err(CommandError::Unknown { what: "verdict", tag }),
        };
        let guard_count = self.count("guards", GUARD_COUNT_MAX)?;
        let guards = (0..guard_count)
            .map(|_| {
                Ok(Guard {
                    name: self.sized("bytes of a lock's name", GUARD_NAME_BYTES_MAX)?,
                    token: self.u64()?,
                })
            })
            .collect::<Result<_, CommandError>>()?;
        Ok(Decide {
            lineage,
            gtid,
            deadline,
            proposal,
            guards,
        })
    }

    fn branches(&mut self) -> Result<Vec<NamedBranch>, CommandError> {
        let count = self.count("branches", BRANCH_COUNT_MAX)?;
        let mut branches: Vec<NamedBranch> = Vec::with_capacity(count);
        for _ in 0..count {
            // One check of the length for all of it: every replica reads every branch.
            let mut fixed = self.take(8 + 8 + 16 + 8)?;
            let branch = NamedBranch {
                call: CallId(fixed.get_u64()),
                execution: ExecutionId(fixed.get_u64()),
                resource: ResourceId(fixed.get_u128().to_be_bytes()),
                digest: fixed.get_u64(),
                database_transaction: self.sized(
                    "bytes of a database transaction id",
                    DATABASE_TRANSACTION_BYTES_MAX,
                )?,
            };
            if branches
                .last()
                .is_some_and(|last| (last.call, last.execution) >= (branch.call, branch.execution))
            {
                return Err(CommandError::Order);
            }
            branches.push(branch);
        }
        Ok(branches)
    }

    fn finish(self) -> Result<(), CommandError> {
        if self.at == self.end {
            Ok(())
        } else {
            Err(CommandError::Length)
        }
    }
}
