//! What the stream and the single calls share: decisions, refusals, causes, and what the register says of a gtid.

use super::{
    EMPTY, Malformed, gtid, gtid_bytes, id_bytes, limited, lineage, present, replica, resource, text, unknown,
};
use crate::command::clip_text;
use crate::ids::{CallId, ExecutionId, ReplicaId, UnixMillis};
use crate::limits::BRANCH_COUNT_MAX;
use crate::session::{
    AbortCause, AbortKind, BranchStatus, Decision, DeliveryStatus, Refusal, TransactionStatus,
    TransactionSummary,
};
use crate::v1;
use crate::v1::branch_status::Delivery as WireDelivery;
use crate::v1::decision::Decision as WireDecision;
use crate::v1::refusal::Refusal as WireRefusal;
use crate::v1::transaction_status::Status as WireStatus;

impl From<Decision> for v1::Decision {
    fn from(decision: Decision) -> Self {
        let decision = match decision {
            Decision::Committed => WireDecision::Committed(EMPTY),
            Decision::Aborted(cause) => WireDecision::Aborted(cause.into()),
            Decision::Mismatch => WireDecision::Mismatch(EMPTY),
            Decision::Expired => WireDecision::Expired(EMPTY),
            Decision::Settled => WireDecision::Settled(EMPTY),
        };
        Self {
            decision: Some(decision),
        }
    }
}

impl TryFrom<v1::Decision> for Decision {
    type Error = Malformed;

    fn try_from(wire: v1::Decision) -> Result<Self, Malformed> {
        Ok(match present("Decision.decision", wire.decision)? {
            WireDecision::Committed(_) => Self::Committed,
            WireDecision::Aborted(cause) => Self::Aborted(cause.try_into()?),
            WireDecision::Mismatch(_) => Self::Mismatch,
            WireDecision::Expired(_) => Self::Expired,
            WireDecision::Settled(_) => Self::Settled,
        })
    }
}

/// Writes a refusal. `address` gives the host:port of a replica; a core knows only its number.
#[must_use]
pub fn refusal(refusal: Refusal, address: impl Fn(ReplicaId) -> Option<String>) -> v1::Refusal {
    let refusal = match refusal {
        Refusal::NotLeader { leader } => WireRefusal::NotLeader(v1::NotLeader {
            leader: leader.map_or(0, |leader| u32::from(leader.0)),
            address: leader.and_then(address).unwrap_or_default(),
        }),
        Refusal::Overloaded { what } => WireRefusal::Overloaded(clip_text(what)),
        Refusal::Invalid { text } => WireRefusal::Invalid(clip_text(text)),
        Refusal::FromFuture { ahead_ms } => WireRefusal::FromFutureMs(ahead_ms),
        Refusal::ForeignLineage { expected } => WireRefusal::ForeignLineage(id_bytes(&expected.0)),
        Refusal::NotFound { text } => WireRefusal::NotFound(clip_text(text)),
        Refusal::ReadOnly { text } => WireRefusal::ReadOnly(clip_text(text)),
    };
    v1::Refusal {
        refusal: Some(refusal),
    }
}

/// Where to send the request instead: the host:port in a `NotLeader`, where the refusing replica knew one.
#[must_use]
pub fn leader_address(refusal: &v1::Refusal) -> Option<&str> {
    match refusal.refusal.as_ref()? {
        WireRefusal::NotLeader(not_leader) if !not_leader.address.is_empty() => Some(&not_leader.address),
        _ => None,
    }
}

/// Without the leader's address: for senders that know none. A coordinator uses [`refusal`].
impl From<Refusal> for v1::Refusal {
    fn from(value: Refusal) -> Self {
        refusal(value, |_| None)
    }
}

impl TryFrom<v1::Refusal> for Refusal {
    type Error = Malformed;

    fn try_from(wire: v1::Refusal) -> Result<Self, Malformed> {
        Ok(match present("Refusal.refusal", wire.refusal)? {
            WireRefusal::NotLeader(wire) => Self::NotLeader {
                leader: replica("NotLeader.leader", wire.leader)?,
            },
            WireRefusal::Overloaded(what) => Self::Overloaded {
                what: text("Refusal.overloaded", what)?,
            },
            WireRefusal::Invalid(why) => Self::Invalid {
                text: text("Refusal.invalid", why)?,
            },
            WireRefusal::FromFutureMs(ahead_ms) => Self::FromFuture { ahead_ms },
            WireRefusal::ForeignLineage(id) => Self::ForeignLineage {
                expected: lineage("Refusal.foreign_lineage", &id)?,
            },
            WireRefusal::NotFound(what) => Self::NotFound {
                text: text("Refusal.not_found", what)?,
            },
            WireRefusal::ReadOnly(why) => Self::ReadOnly {
                text: text("Refusal.read_only", why)?,
            },
        })
    }
}

impl From<AbortKind> for v1::AbortKind {
    fn from(kind: AbortKind) -> Self {
        match kind {
            AbortKind::Requested => Self::Requested,
            AbortKind::VotedAbort => Self::VotedAbort,
            AbortKind::Doomed => Self::Doomed,
            AbortKind::Dropped => Self::Dropped,
            AbortKind::Deadline => Self::Deadline,
            AbortKind::Operator => Self::Operator,
        }
    }
}

fn abort_kind(field: &'static str, wire: i32) -> Result<AbortKind, Malformed> {
    match v1::AbortKind::try_from(wire) {
        Ok(v1::AbortKind::Requested) => Ok(AbortKind::Requested),
        Ok(v1::AbortKind::VotedAbort) => Ok(AbortKind::VotedAbort),
        Ok(v1::AbortKind::Doomed) => Ok(AbortKind::Doomed),
        Ok(v1::AbortKind::Dropped) => Ok(AbortKind::Dropped),
        Ok(v1::AbortKind::Deadline) => Ok(AbortKind::Deadline),
        Ok(v1::AbortKind::Operator) => Ok(AbortKind::Operator),
        Ok(v1::AbortKind::Unspecified) | Err(_) => Err(unknown(field, wire)),
    }
}

impl From<AbortCause> for v1::AbortCause {
    fn from(cause: AbortCause) -> Self {
        Self {
            kind: v1::AbortKind::from(cause.kind).into(),
            call: cause.branch.map(|(call, _)| call.0),
            execution: cause.branch.map(|(_, execution)| execution.0),
            text: clip_text(cause.text),
        }
    }
}

impl TryFrom<v1::AbortCause> for AbortCause {
    type Error = Malformed;

    fn try_from(wire: v1::AbortCause) -> Result<Self, Malformed> {
        let branch = match (wire.call, wire.execution) {
            (None, None) => None,
            (call, execution) => Some((
                CallId(present("AbortCause.call", call)?),
                ExecutionId(present("AbortCause.execution", execution)?),
            )),
        };
        Ok(Self {
            kind: abort_kind("AbortCause.kind", wire.kind)?,
            branch,
            text: text("AbortCause.text", wire.text)?,
        })
    }
}

impl From<TransactionStatus> for v1::TransactionStatus {
    fn from(status: TransactionStatus) -> Self {
        let status = match status {
            TransactionStatus::Undecided => WireStatus::Undecided(EMPTY),
            TransactionStatus::Committed {
                branches,
                read_only_count,
            } => WireStatus::Committed(v1::CommittedStatus {
                branches: branches.into_iter().map(Into::into).collect(),
                read_only_count,
            }),
            TransactionStatus::Aborted(cause) => WireStatus::Aborted(cause.into()),
            TransactionStatus::Expired => WireStatus::Expired(EMPTY),
        };
        Self { status: Some(status) }
    }
}

impl TryFrom<v1::TransactionStatus> for TransactionStatus {
    type Error = Malformed;

    fn try_from(wire: v1::TransactionStatus) -> Result<Self, Malformed> {
        Ok(match present("TransactionStatus.status", wire.status)? {
            WireStatus::Undecided(_) => Self::Undecided,
            WireStatus::Committed(wire) => {
                limited(
                    "CommittedStatus.branches",
                    "branches",
                    wire.branches.len(),
                    BRANCH_COUNT_MAX,
                )?;
                Self::Committed {
                    branches: wire
                        .branches
                        .into_iter()
                        .map(TryInto::try_into)
                        .collect::<Result<_, _>>()?,
                    read_only_count: wire.read_only_count,
                }
            }
            WireStatus::Aborted(cause) => Self::Aborted(cause.try_into()?),
            WireStatus::Expired(_) => Self::Expired,
        })
    }
}

impl From<BranchStatus> for v1::BranchStatus {
    fn from(branch: BranchStatus) -> Self {
        Self {
            call: branch.call.0,
            execution: branch.execution.0,
            resource: id_bytes(&branch.resource.0),
            delivery: Some(match branch.delivery {
                DeliveryStatus::Pending => WireDelivery::Pending(EMPTY),
                DeliveryStatus::Acknowledged => WireDelivery::Acknowledged(EMPTY),
                DeliveryStatus::Hazard(text) => WireDelivery::Hazard(clip_text(text)),
                DeliveryStatus::Settled => WireDelivery::Settled(EMPTY),
            }),
        }
    }
}

impl TryFrom<v1::BranchStatus> for BranchStatus {
    type Error = Malformed;

    fn try_from(wire: v1::BranchStatus) -> Result<Self, Malformed> {
        Ok(Self {
            call: CallId(wire.call),
            execution: ExecutionId(wire.execution),
            resource: resource("BranchStatus.resource", &wire.resource)?,
            delivery: match present("BranchStatus.delivery", wire.delivery)? {
                WireDelivery::Pending(_) => DeliveryStatus::Pending,
                WireDelivery::Acknowledged(_) => DeliveryStatus::Acknowledged,
                WireDelivery::Hazard(found) => DeliveryStatus::Hazard(text("BranchStatus.hazard", found)?),
                WireDelivery::Settled(_) => DeliveryStatus::Settled,
            },
        })
    }
}

impl From<TransactionSummary> for v1::TransactionSummary {
    fn from(summary: TransactionSummary) -> Self {
        Self {
            gtid: gtid_bytes(summary.gtid),
            status: Some(summary.status.into()),
            decided_at_unix_ms: summary.decided_at.0,
        }
    }
}

impl TryFrom<v1::TransactionSummary> for TransactionSummary {
    type Error = Malformed;

    fn try_from(wire: v1::TransactionSummary) -> Result<Self, Malformed> {
        Ok(Self {
            gtid: gtid("TransactionSummary.gtid", &wire.gtid)?,
            status: present("TransactionSummary.status", wire.status)?.try_into()?,
            decided_at: UnixMillis(wire.decided_at_unix_ms),
        })
    }
}
