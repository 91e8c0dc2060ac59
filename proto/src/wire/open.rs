//! Branches that are prepared on request: how a commit names them, and what they answer (T3).

use super::{EMPTY, Malformed, Reason, id_bytes, instance, limited, resource, text};
use crate::command::clip_text;
use crate::ids::{CallId, ExecutionId, OpenToken};
use crate::limits::{BRANCH_COUNT_MAX, DATABASE_TRANSACTION_BYTES_MAX};
use crate::session::{AskedVote, OpenBranch, Vote};
use crate::v1;
use crate::v1::voted::Vote as WireVote;
use bytes::Bytes;

impl From<OpenBranch> for v1::OpenBranch {
    fn from(open: OpenBranch) -> Self {
        Self {
            call: open.call.0,
            execution: open.execution.0,
            resource: id_bytes(&open.resource.0),
            instance: id_bytes(&open.instance.0),
            token: open.token.0,
            call_count: open.call_count,
        }
    }
}

/// The open branches of a commit: some, not too many, in order, each call once (T2), each with a call.
pub(super) fn open_branches(
    field: &'static str,
    wire: Vec<v1::OpenBranch>,
) -> Result<Vec<OpenBranch>, Malformed> {
    limited(field, "branches", wire.len(), BRANCH_COUNT_MAX)?;
    let mut open: Vec<OpenBranch> = Vec::with_capacity(wire.len());
    for wire in wire {
        let one = OpenBranch {
            call: CallId(wire.call),
            execution: ExecutionId(wire.execution),
            resource: resource("OpenBranch.resource", &wire.resource)?,
            instance: instance("OpenBranch.instance", &wire.instance)?,
            token: OpenToken(wire.token),
            call_count: wire.call_count,
        };
        if one.call_count == 0 {
            return Err(absent("OpenBranch.call_count"));
        }
        if let Some(last) = open.last() {
            let (call, execution) = (one.call, one.execution);
            if (last.call, last.execution) == (call, execution) {
                return Err(Malformed {
                    field,
                    reason: Reason::Repeated { call, execution },
                });
            }
            if last.call == call {
                let reason = Reason::TwoExecutions { call };
                return Err(Malformed { field, reason });
            }
            if last.call > call {
                let reason = Reason::Disordered;
                return Err(Malformed { field, reason });
            }
        }
        open.push(one);
    }
    if open.is_empty() {
        return Err(absent(field));
    }
    Ok(open)
}

impl From<AskedVote> for WireVote {
    fn from(asked: AskedVote) -> Self {
        match asked.vote {
            Vote::Commit => Self::Commit(v1::CommitVote {
                digest: asked.digest,
                database_transaction: asked.database_transaction,
            }),
            Vote::ReadOnly => Self::ReadOnly(EMPTY),
            Vote::Abort { cause } => Self::Abort(clip_text(cause)),
        }
    }
}

impl TryFrom<WireVote> for AskedVote {
    type Error = Malformed;

    fn try_from(wire: v1::voted::Vote) -> Result<Self, Malformed> {
        let without = |vote| Self {
            vote,
            digest: 0,
            database_transaction: Bytes::new(),
        };
        Ok(match wire {
            WireVote::Commit(wire) => {
                limited(
                    "CommitVote.database_transaction",
                    "bytes",
                    wire.database_transaction.len(),
                    DATABASE_TRANSACTION_BYTES_MAX,
                )?;
                Self {
                    vote: Vote::Commit,
                    digest: wire.digest,
                    database_transaction: wire.database_transaction,
                }
            }
            WireVote::ReadOnly(_) => without(Vote::ReadOnly),
            WireVote::Abort(cause) => without(Vote::Abort {
                cause: text("Voted.abort", cause)?,
            }),
        })
    }
}

const fn absent(field: &'static str) -> Malformed {
    Malformed {
        field,
        reason: Reason::Missing,
    }
}
