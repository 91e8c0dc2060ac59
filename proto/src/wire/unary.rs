//! The single calls, for scripts and other languages. They end in the same commands and requests as the session.

use super::{
    EMPTY, Malformed, Reason, gtid, gtid_bytes, limited, lineage, present, required_text, resource, text,
};
use crate::command::{Decide, NamedBranch, Proposal};
use crate::ids::{BranchId, CallId, ExecutionId, Gtid, Lineage, RequestId, UnixMillis};
use crate::limits::{
    BRANCH_COUNT_MAX, DATABASE_TRANSACTION_BYTES_MAX, DEADLINE_MS_DEFAULT, LIST_COUNT_DEFAULT,
    LIST_COUNT_MAX, TEXT_BYTES_MAX,
};
use crate::session::{AbortCause, AbortKind, Decision, Request, TransactionStatus, TransactionSummary};
use crate::v1;
use crate::v1::resolve_request::Action as WireAction;
use bytes::Bytes;

/// Sorts the branches, which may come in any order. A branch that is named twice is refused: which digest and which
/// database transaction id would be the right one?
///
/// A commit that names no branch says that all were read-only: "no branches" alone never means success (T5).
impl TryFrom<v1::CommitRequest> for Decide {
    type Error = Malformed;

    fn try_from(wire: v1::CommitRequest) -> Result<Self, Malformed> {
        const BRANCHES: &str = "CommitRequest.branches";
        let branches = named_branches(BRANCHES, wire.branches)?;
        if branches.is_empty() && wire.read_only_count == 0 {
            return Err(Malformed {
                field: BRANCHES,
                reason: Reason::Missing,
            });
        }
        if let Some(pair) = branches.windows(2).find(|pair| pair[0].call == pair[1].call) {
            return Err(Malformed {
                field: BRANCHES,
                reason: Reason::TwoExecutions { call: pair[0].call },
            });
        }
        Ok(Self {
            lineage: lineage("CommitRequest.lineage", &wire.lineage)?,
            gtid: gtid("CommitRequest.gtid", &wire.gtid)?,
            deadline: UnixMillis(wire.deadline_unix_ms),
            proposal: Proposal::Commit {
                branches,
                read_only_count: wire.read_only_count,
            },
            guards: Vec::new(),
        })
    }
}

/// As for a commit, but two executions of one call may be named: both can be told.
impl TryFrom<v1::AbortRequest> for Decide {
    type Error = Malformed;

    fn try_from(wire: v1::AbortRequest) -> Result<Self, Malformed> {
        let text = text("AbortRequest.reason", wire.reason)?;
        Ok(Self {
            lineage: lineage("AbortRequest.lineage", &wire.lineage)?,
            gtid: gtid("AbortRequest.gtid", &wire.gtid)?,
            deadline: UnixMillis(wire.deadline_unix_ms),
            proposal: Proposal::Abort {
                cause: AbortCause {
                    kind: AbortKind::Requested,
                    branch: None,
                    text,
                },
                branches: named_branches("AbortRequest.branches", wire.branches)?,
            },
            guards: Vec::new(),
        })
    }
}

impl From<NamedBranch> for v1::NamedBranch {
    fn from(branch: NamedBranch) -> Self {
        Self {
            call: branch.call.0,
            execution: branch.execution.0,
            resource: Bytes::copy_from_slice(&branch.resource.0),
            digest: branch.digest,
            database_transaction: branch.database_transaction,
        }
    }
}

impl TryFrom<v1::NamedBranch> for NamedBranch {
    type Error = Malformed;

    fn try_from(wire: v1::NamedBranch) -> Result<Self, Malformed> {
        limited(
            "NamedBranch.database_transaction",
            "bytes",
            wire.database_transaction.len(),
            DATABASE_TRANSACTION_BYTES_MAX,
        )?;
        Ok(Self {
            call: CallId(wire.call),
            execution: ExecutionId(wire.execution),
            resource: resource("NamedBranch.resource", &wire.resource)?,
            digest: wire.digest,
            database_transaction: wire.database_transaction,
        })
    }
}

fn named_branches(field: &'static str, wire: Vec<v1::NamedBranch>) -> Result<Vec<NamedBranch>, Malformed> {
    limited(field, "branches", wire.len(), BRANCH_COUNT_MAX)?;
    let mut branches = wire
        .into_iter()
        .map(NamedBranch::try_from)
        .collect::<Result<Vec<_>, _>>()?;
    branches.sort_unstable_by_key(|branch| (branch.call, branch.execution));
    for pair in branches.windows(2) {
        let (call, execution) = (pair[0].call, pair[0].execution);
        if (call, execution) == (pair[1].call, pair[1].execution) {
            return Err(Malformed {
                field,
                reason: Reason::Repeated { call, execution },
            });
        }
    }
    Ok(branches)
}

impl From<Decision> for v1::DecisionReply {
    fn from(decision: Decision) -> Self {
        Self {
            decision: Some(decision.into()),
        }
    }
}

impl TryFrom<v1::DecisionReply> for Decision {
    type Error = Malformed;

    fn try_from(wire: v1::DecisionReply) -> Result<Self, Malformed> {
        present("DecisionReply.decision", wire.decision)?.try_into()
    }
}

impl From<Gtid> for v1::OutcomeRequest {
    fn from(gtid: Gtid) -> Self {
        Self {
            gtid: gtid_bytes(gtid),
        }
    }
}

impl TryFrom<v1::OutcomeRequest> for Gtid {
    type Error = Malformed;

    fn try_from(wire: v1::OutcomeRequest) -> Result<Self, Malformed> {
        gtid("OutcomeRequest.gtid", &wire.gtid)
    }
}

impl From<TransactionStatus> for v1::OutcomeReply {
    fn from(status: TransactionStatus) -> Self {
        Self {
            status: Some(status.into()),
        }
    }
}

impl TryFrom<v1::OutcomeReply> for TransactionStatus {
    type Error = Malformed;

    fn try_from(wire: v1::OutcomeReply) -> Result<Self, Malformed> {
        present("OutcomeReply.status", wire.status)?.try_into()
    }
}

/// An operator's hand: both verbs become entries of the log (traps J7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolve {
    /// The transaction.
    pub gtid: Gtid,
    /// Who; at least one byte.
    pub author: String,
    /// Why; at least one byte.
    pub reason: String,
    /// What.
    pub action: ResolveAction,
}

/// What an operator may do to a transaction. Forcing a commit is not among them: votes are the only ground for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveAction {
    /// Propose abort. Where the log already says committed, that is the answer and nothing changes.
    Abort,
    /// Take the delivery to one branch as settled: its database is never told again.
    Settle {
        /// The branch's call.
        call: CallId,
        /// The branch's execution.
        execution: ExecutionId,
    },
}

impl Resolve {
    /// The request that carries this out. An abort proposes under `lineage`, the coordinator's own.
    #[must_use]
    pub fn into_request(self, request: RequestId, lineage: Lineage) -> Request {
        let Self {
            gtid,
            author,
            reason,
            action,
        } = self;
        match action {
            ResolveAction::Abort => {
                let decide = Decide {
                    lineage,
                    gtid,
                    // An operator does not know the deadline, and an abort depends on none.
                    deadline: gtid.began_at().plus(DEADLINE_MS_DEFAULT),
                    proposal: Proposal::Abort {
                        cause: AbortCause::new(AbortKind::Operator, operator_text(&author, &reason)),
                        branches: Vec::new(),
                    },
                    guards: Vec::new(),
                };
                Request::Decide {
                    request,
                    command: decide.encode(),
                }
            }
            ResolveAction::Settle { call, execution } => Request::Settle {
                request,
                branch: BranchId {
                    gtid,
                    call,
                    execution,
                },
                author,
                reason,
            },
        }
    }
}

fn operator_text(author: &str, reason: &str) -> String {
    format!("{author}: {reason}")
}

impl From<Resolve> for v1::ResolveRequest {
    fn from(resolve: Resolve) -> Self {
        Self {
            gtid: gtid_bytes(resolve.gtid),
            author: resolve.author,
            reason: resolve.reason,
            action: Some(match resolve.action {
                ResolveAction::Abort => WireAction::Abort(EMPTY),
                ResolveAction::Settle { call, execution } => WireAction::Settle(v1::SettleBranch {
                    call: call.0,
                    execution: execution.0,
                }),
            }),
        }
    }
}

impl TryFrom<v1::ResolveRequest> for Resolve {
    type Error = Malformed;

    fn try_from(wire: v1::ResolveRequest) -> Result<Self, Malformed> {
        let author = required_text("ResolveRequest.author", wire.author)?;
        let reason = required_text("ResolveRequest.reason", wire.reason)?;
        let action = match present("ResolveRequest.action", wire.action)? {
            WireAction::Abort(_) => {
                // The record of an abort has one text for both: what would not fit is refused, since an operator's
                // words are never cut.
                let joined = operator_text(&author, &reason).len();
                limited(
                    "ResolveRequest.reason",
                    "bytes (with its author)",
                    joined,
                    TEXT_BYTES_MAX,
                )?;
                ResolveAction::Abort
            }
            WireAction::Settle(branch) => ResolveAction::Settle {
                call: CallId(branch.call),
                execution: ExecutionId(branch.execution),
            },
        };
        Ok(Self {
            gtid: gtid("ResolveRequest.gtid", &wire.gtid)?,
            author,
            reason,
            action,
        })
    }
}

/// One page of the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List {
    /// Only gtids above this one.
    pub after: Option<Gtid>,
    /// Only committed transactions with an unacknowledged branch.
    pub unfinished_only: bool,
    /// The longest page, from 1 to [`LIST_COUNT_MAX`].
    pub count_max: u32,
}

impl List {
    /// The session's form of the same question.
    #[must_use]
    pub fn into_request(self, request: RequestId) -> Request {
        let Self {
            after,
            unfinished_only,
            count_max,
        } = self;
        Request::List {
            request,
            after,
            unfinished_only,
            count_max,
        }
    }
}

impl From<List> for v1::ListRequest {
    fn from(list: List) -> Self {
        Self {
            after: list.after.map(gtid_bytes),
            unfinished_only: list.unfinished_only,
            count_max: list.count_max,
        }
    }
}

impl TryFrom<v1::ListRequest> for List {
    type Error = Malformed;

    fn try_from(wire: v1::ListRequest) -> Result<Self, Malformed> {
        Ok(Self {
            after: wire.after.map(|id| gtid("ListRequest.after", &id)).transpose()?,
            unfinished_only: wire.unfinished_only,
            count_max: page_length("ListRequest.count_max", wire.count_max)?,
        })
    }
}

/// Reads the length of a page; 0 takes the default.
pub(super) fn page_length(field: &'static str, count_max: u32) -> Result<u32, Malformed> {
    if count_max == 0 {
        return Ok(LIST_COUNT_DEFAULT);
    }
    let (actual, max) = (count_max as usize, LIST_COUNT_MAX as usize);
    limited(field, "transactions", actual, max)?;
    Ok(count_max)
}

/// Reads a page.
pub(super) fn page(
    field: &'static str,
    wire: Vec<v1::TransactionSummary>,
) -> Result<Vec<TransactionSummary>, Malformed> {
    limited(field, "transactions", wire.len(), LIST_COUNT_MAX as usize)?;
    wire.into_iter().map(TryInto::try_into).collect()
}

impl From<Vec<TransactionSummary>> for v1::ListReply {
    fn from(transactions: Vec<TransactionSummary>) -> Self {
        Self {
            transactions: transactions.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::ListReply> for Vec<TransactionSummary> {
    type Error = Malformed;

    fn try_from(wire: v1::ListReply) -> Result<Self, Malformed> {
        page("ListReply.transactions", wire.transactions)
    }
}
