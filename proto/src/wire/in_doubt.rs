//! What keeps databases waiting, on the wire.

use super::{Malformed, gtid, gtid_bytes, id_bytes, limited, present, resource, unary};
use crate::ids::{CallId, ExecutionId, Gtid, RequestId, UnixMillis};
use crate::limits::{BRANCH_COUNT_MAX, LIST_COUNT_MAX};
use crate::session::{InDoubt, InDoubtPage, InDoubtState, InquiringBranch, Request};
use crate::v1;
use crate::v1::transaction_in_doubt::State as WireState;

/// One page of what keeps databases waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListInDoubt {
    /// Only gtids above this one.
    pub after: Option<Gtid>,
    /// The longest page, from 1 to [`LIST_COUNT_MAX`].
    pub count_max: u32,
}

impl ListInDoubt {
    /// The session's form of the same question.
    #[must_use]
    pub fn into_request(self, request: RequestId) -> Request {
        let Self { after, count_max } = self;
        Request::ListInDoubt {
            request,
            after,
            count_max,
        }
    }
}

impl From<ListInDoubt> for v1::ListInDoubtRequest {
    fn from(list: ListInDoubt) -> Self {
        Self {
            after: list.after.map(gtid_bytes),
            count_max: list.count_max,
        }
    }
}

impl TryFrom<v1::ListInDoubtRequest> for ListInDoubt {
    type Error = Malformed;

    fn try_from(wire: v1::ListInDoubtRequest) -> Result<Self, Malformed> {
        Ok(Self {
            after: wire
                .after
                .map(|id| gtid("ListInDoubtRequest.after", &id))
                .transpose()?,
            count_max: unary::page_length("ListInDoubtRequest.count_max", wire.count_max)?,
        })
    }
}

impl From<InDoubtPage> for v1::ListInDoubtReply {
    fn from(page: InDoubtPage) -> Self {
        Self {
            transactions: page.transactions.into_iter().map(Into::into).collect(),
            inquiries_since_unix_ms: page.inquiries_since.0,
            inquiries_dropped_count: page.inquiries_dropped_count,
        }
    }
}

impl TryFrom<v1::ListInDoubtReply> for InDoubtPage {
    type Error = Malformed;

    fn try_from(wire: v1::ListInDoubtReply) -> Result<Self, Malformed> {
        limited(
            "ListInDoubtReply.transactions",
            "transactions",
            wire.transactions.len(),
            LIST_COUNT_MAX as usize,
        )?;
        Ok(Self {
            transactions: wire
                .transactions
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            inquiries_since: UnixMillis(wire.inquiries_since_unix_ms),
            inquiries_dropped_count: wire.inquiries_dropped_count,
        })
    }
}

impl From<InDoubt> for v1::TransactionInDoubt {
    fn from(transaction: InDoubt) -> Self {
        let state = match transaction.state {
            InDoubtState::Unfinished { decided_at, branches } => {
                WireState::Unfinished(v1::UnfinishedCommit {
                    decided_at_unix_ms: decided_at.0,
                    branches: branches.into_iter().map(Into::into).collect(),
                })
            }
            InDoubtState::Undecided {
                inquired_since,
                deadline,
                branches,
            } => WireState::Undecided(v1::UndecidedTransaction {
                inquired_since_unix_ms: inquired_since.0,
                deadline_unix_ms: deadline.0,
                branches: branches.into_iter().map(Into::into).collect(),
            }),
        };
        Self {
            gtid: gtid_bytes(transaction.gtid),
            state: Some(state),
        }
    }
}

impl TryFrom<v1::TransactionInDoubt> for InDoubt {
    type Error = Malformed;

    fn try_from(wire: v1::TransactionInDoubt) -> Result<Self, Malformed> {
        let state = match present("TransactionInDoubt.state", wire.state)? {
            WireState::Unfinished(wire) => {
                branch_limit("UnfinishedCommit.branches", wire.branches.len())?;
                InDoubtState::Unfinished {
                    decided_at: UnixMillis(wire.decided_at_unix_ms),
                    branches: wire
                        .branches
                        .into_iter()
                        .map(TryInto::try_into)
                        .collect::<Result<_, _>>()?,
                }
            }
            WireState::Undecided(wire) => {
                branch_limit("UndecidedTransaction.branches", wire.branches.len())?;
                InDoubtState::Undecided {
                    inquired_since: UnixMillis(wire.inquired_since_unix_ms),
                    deadline: UnixMillis(wire.deadline_unix_ms),
                    branches: wire
                        .branches
                        .into_iter()
                        .map(TryInto::try_into)
                        .collect::<Result<_, _>>()?,
                }
            }
        };
        Ok(Self {
            gtid: gtid("TransactionInDoubt.gtid", &wire.gtid)?,
            state,
        })
    }
}

fn branch_limit(field: &'static str, count: usize) -> Result<(), Malformed> {
    limited(field, "branches", count, BRANCH_COUNT_MAX)
}

impl From<InquiringBranch> for v1::InquiringBranch {
    fn from(branch: InquiringBranch) -> Self {
        Self {
            call: branch.call.0,
            execution: branch.execution.0,
            resource: id_bytes(&branch.resource.0),
        }
    }
}

impl TryFrom<v1::InquiringBranch> for InquiringBranch {
    type Error = Malformed;

    fn try_from(wire: v1::InquiringBranch) -> Result<Self, Malformed> {
        Ok(Self {
            call: CallId(wire.call),
            execution: ExecutionId(wire.execution),
            resource: resource("InquiringBranch.resource", &wire.resource)?,
        })
    }
}
