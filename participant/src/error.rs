//! What can go wrong, and what the caller does about it. One enum per operation; sources are kept, so walking
//! `std::error::Error::source` leads from "the branch was rolled back" to the very cause.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use synod_participant_core::transaction::CallRefused;
use synod_proto::ids::{CallId, Gtid, Lineage, ResourceId};
use synod_proto::session::{AbortCause, AbortKind};
use tonic::metadata::BinaryMetadataValue;
use tonic::{Code, Status};

use crate::context::CALL_KEY;
use crate::resource::{Remedy, ResourceError};
use crate::transaction::InDoubt;

/// Any error of the user's own, as a branch's closure returns it. `?` turns every error type into one.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// [`ParticipantBuilder::connect`](crate::ParticipantBuilder::connect) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// An address or an option is wrong: fix the configuration.
    #[error("invalid configuration: {text}")]
    Invalid {
        /// Which one, and why.
        text: String,
    },
    /// No replica of the coordinator answered in time: retry later, or look at the addresses.
    #[error("no leader of the coordinator answered within {waited:?}: {source}")]
    Unavailable {
        /// How long was waited.
        waited: Duration,
        /// The last thing that was seen.
        source: BoxError,
    },
}

/// [`Participant::resource`](crate::Participant::resource) failed: the database takes no branches.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The database belongs to another coordinator (T11): this is a copied or a mistaken database, or a
    /// mistaken coordinator address. Nothing was changed.
    #[error(
        "the database {resource} belongs to coordinator {found}, and this participant is connected to {expected}"
    )]
    ForeignLineage {
        /// The database, as far as it is known.
        resource: ResourceId,
        /// The lineage of the connected coordinator.
        expected: Lineage,
        /// The lineage in the database.
        found: Lineage,
    },
    /// The store failed: see the source.
    #[error("the resource manager failed: {0}")]
    Resource(#[from] ResourceError),
    /// The coordinator did not take the registration: see the source.
    #[error("the coordinator refused the resource: {0}")]
    Session(BoxError),
}

/// A branch did not come about: its local transaction is rolled back, and its vote is abort. The transaction
/// is doomed, unless this call is [discarded](crate::Transaction::discard) by name.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
#[non_exhaustive]
pub struct BranchError {
    /// The call's name, for `discard`. `None` where no call was made, so that there is nothing to discard.
    pub call: Option<CallId>,
    /// What went wrong.
    #[source]
    pub failure: BranchFailure,
}

/// Why a branch was rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BranchFailure {
    /// The closure returned this error.
    #[error("the branch was rolled back: {0}")]
    Rejected(#[source] BoxError),
    /// The closure panicked.
    #[error("the branch panicked and was rolled back: {0}")]
    Panicked(String),
    /// The store could not begin or prepare the branch: its [remedy](ResourceError::remedy) says what to do.
    #[error("the branch was rolled back: {0}")]
    Resource(#[from] ResourceError),
    /// The transaction's deadline passed before the branch had voted: begin a new one, with more time.
    #[error("the deadline of {gtid} passed before the branch had voted")]
    DeadlineExceeded {
        /// The transaction.
        gtid: Gtid,
    },
    /// The transaction is decided or being decided already: late work (traps C3). A bug if it is the
    /// initiator's own call, harmless otherwise.
    #[error("{gtid} takes no more work: {text}")]
    Closed {
        /// The transaction.
        gtid: Gtid,
        /// Why.
        text: String,
    },
    /// A call that this branch made under the transaction has no vote (T4), so nobody could commit it.
    #[error("the call {call:?} ({method}) under the branch dooms the transaction: {text}")]
    Doomed {
        /// The nested call.
        call: CallId,
        /// Its gRPC method, or the local branch.
        method: String,
        /// How it failed.
        text: String,
        /// Whether a new transaction may well succeed.
        is_retryable: bool,
    },
    /// The closure returned while a part of it still held the local transaction, in a task of its own for
    /// example: a bug.
    #[error("the closure returned, but its local transaction is still held elsewhere")]
    StillHeld,
    /// Whoever asked for the branch went away before it was prepared; nobody would have heard its vote.
    #[error("the caller went away before the branch was prepared")]
    Abandoned,
}

impl BranchFailure {
    /// Whether the same work may well succeed in a new transaction.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Rejected(error) => is_retryable(error.as_ref()),
            Self::Resource(error) => is_retryable_code(resource_code(error)),
            Self::Doomed { is_retryable, .. } => *is_retryable,
            Self::Panicked(_)
            | Self::DeadlineExceeded { .. }
            | Self::Closed { .. }
            | Self::StillHeld
            | Self::Abandoned => false,
        }
    }

    /// No call was opened.
    pub(crate) fn from_refused(gtid: Gtid) -> impl FnOnce(CallRefused) -> BranchError {
        move |refused| BranchError {
            call: None,
            failure: Self::Closed {
                gtid,
                text: refused.to_string(),
            },
        }
    }
}

/// The code by which a store's error travels: `ABORTED` where a new transaction may succeed (traps G4).
fn resource_code(error: &ResourceError) -> Code {
    match (error, error.remedy()) {
        (ResourceError::DeadlineExceeded, _) => Code::DeadlineExceeded,
        (_, Remedy::NewTransaction) => Code::Aborted,
        (ResourceError::Closed, _) | (_, Remedy::CallAgain) => Code::Unavailable,
        (_, Remedy::Reopen) => Code::Internal,
        (_, Remedy::Fix) => Code::FailedPrecondition,
    }
}

impl From<ResourceError> for Status {
    fn from(error: ResourceError) -> Self {
        let mut status = Self::new(resource_code(&error), error.to_string());
        status.set_source(Arc::new(error));
        status
    }
}

impl From<BranchFailure> for Status {
    fn from(failure: BranchFailure) -> Self {
        let code = match &failure {
            BranchFailure::Rejected(error) => match error.downcast_ref::<Self>() {
                // The method's own status goes to the caller as it is.
                Some(status) => return status.clone(),
                None => Code::Aborted,
            },
            BranchFailure::Panicked(_) | BranchFailure::StillHeld => Code::Internal,
            BranchFailure::Resource(error) => resource_code(error),
            BranchFailure::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            BranchFailure::Doomed {
                is_retryable: true, ..
            } => Code::Aborted,
            BranchFailure::Doomed { .. } | BranchFailure::Closed { .. } => Code::FailedPrecondition,
            BranchFailure::Abandoned => Code::Cancelled,
        };
        let mut status = Self::new(code, failure.to_string());
        status.set_source(Arc::new(failure));
        status
    }
}

impl From<BranchError> for Status {
    fn from(error: BranchError) -> Self {
        let mut status = Self::from(error.failure);
        if let Some(call) = error.call {
            write_call(&mut status, call);
        }
        status
    }
}

/// Names the call in its status, for `discard`.
pub(crate) fn write_call(status: &mut Status, call: CallId) {
    status
        .metadata_mut()
        .insert_bin(CALL_KEY, BinaryMetadataValue::from_bytes(&call.0.to_be_bytes()));
}

/// [`Participant::outcome`](crate::Participant::outcome) got no answer: ask again.
#[derive(Debug, thiserror::Error)]
#[error("the outcome of {gtid} is not known here: {source}")]
pub struct OutcomeError {
    /// The transaction.
    pub gtid: Gtid,
    /// What went wrong.
    pub source: BoxError,
}

/// [`Transaction::commit`](crate::Transaction::commit) did not answer *committed*.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The log says aborted: final. Nothing took effect anywhere; a new transaction may be tried.
    #[error("{gtid} aborted: {cause}")]
    Aborted {
        /// The transaction.
        gtid: Gtid,
        /// Who or what aborted it, as everybody is told.
        cause: AbortCause,
    },
    /// The commit request was handed over and its answer is not known yet (T7): ask with
    /// [`InDoubt::resolve`]. Do not run the work again before that.
    #[error(transparent)]
    InDoubt(InDoubt),
    /// Nothing was handed over, and nothing takes effect: the transaction is abandoned. Retry with a new one.
    #[error("the coordinator cannot be reached: {0}")]
    Unavailable(#[source] BoxError),
    /// A call made under the transaction failed or has no vote, and was not discarded by name (T4). The
    /// transaction is aborted; nothing takes effect.
    #[error("{gtid} is doomed by the call {call:?} ({method}): {text}")]
    Doomed {
        /// The transaction.
        gtid: Gtid,
        /// The call.
        call: CallId,
        /// Its gRPC method, or the local branch.
        method: String,
        /// How it failed.
        text: String,
        /// Whether a new attempt may well succeed: the call ran into a conflict or an outage, not a refusal.
        is_retryable: bool,
    },
    /// The coordinator has no room; the transaction is abandoned. Back off, then retry with a new one.
    #[error("the coordinator is overloaded: {0}")]
    Overloaded(String),
    /// The request breaks a rule (no branch at all, more than 64 branches, a clock far ahead): a bug, or a
    /// wrong clock. The transaction is abandoned; a retry would fail alike.
    #[error("the commit is invalid: {0}")]
    Invalid(String),
    /// The log says committed, with other branches than this transaction's (T5): somebody else proposed an
    /// outcome under the same gtid. A bug in a participant; look at `synod txn get`.
    #[error("{gtid} is committed with other branches than this transaction's")]
    Mismatch {
        /// The transaction.
        gtid: Gtid,
    },
}

impl CommitError {
    /// Whether the same work may well succeed in a new transaction. Never for [`InDoubt`](Self::InDoubt):
    /// its work may have taken effect.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Aborted { cause, .. } => matches!(
                cause.kind,
                AbortKind::Deadline | AbortKind::VotedAbort | AbortKind::Doomed
            ),
            Self::Unavailable(_) | Self::Overloaded(_) => true,
            Self::Doomed { is_retryable, .. } => *is_retryable,
            Self::InDoubt(_) | Self::Invalid(_) | Self::Mismatch { .. } => false,
        }
    }
}

/// [`Transaction::abort`](crate::Transaction::abort) was not answered *aborted*.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AbortError {
    /// The log says committed. Cannot happen to a transaction of which nobody asked for the commit.
    #[error("{gtid} is committed")]
    Committed {
        /// The transaction.
        gtid: Gtid,
    },
    /// The coordinator did not answer. Nothing will commit all the same, since only the initiator can ask
    /// for it; the branches learn of it after the deadline.
    #[error("the abort of {gtid} was not confirmed: {source}")]
    Unconfirmed {
        /// The transaction.
        gtid: Gtid,
        /// What went wrong.
        source: BoxError,
    },
}

/// [`InDoubt::resolve`] could not find the outcome.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The log says aborted: final.
    #[error("{gtid} aborted: {cause}")]
    Aborted {
        /// The transaction.
        gtid: Gtid,
        /// Why.
        cause: AbortCause,
    },
    /// Too late: the transaction lies below the watermark and its record is gone (T9). Look at the databases.
    #[error("the outcome of {gtid} can no longer be told: it lies below the watermark")]
    Expired {
        /// The transaction.
        gtid: Gtid,
    },
    /// The log says committed, with other branches (T5): a bug in a participant.
    #[error("{gtid} is committed with other branches than this transaction's")]
    Mismatch {
        /// The transaction.
        gtid: Gtid,
    },
    /// The coordinator refuses the question itself: a bug. Or this participant was shut down.
    #[error("nobody can be asked for the outcome of {gtid}: {text}")]
    Invalid {
        /// The transaction.
        gtid: Gtid,
        /// Why.
        text: String,
    },
}

/// [`Committed::delivered`](crate::Committed::delivered) was not answered in time. The transaction stays
/// committed, and every branch will take effect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeliveryError {
    /// Some branch has not acknowledged yet.
    #[error("{gtid} is committed, and not every branch acknowledged within {waited:?}: {source}")]
    Pending {
        /// The transaction.
        gtid: Gtid,
        /// How long was waited.
        waited: Duration,
        /// What the session saw last.
        source: BoxError,
    },
}

/// [`Transaction::discard`](crate::Transaction::discard) named a call that this transaction never made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no call {0:?} was made under this transaction")]
pub struct UnknownCall(pub CallId);

/// A conflict or an outage, by its gRPC status: the same work may succeed in a new transaction. `ABORTED` is
/// how branches report lock conflicts; a business refusal is any other code (traps G4).
pub(crate) fn is_retryable_code(code: Code) -> bool {
    matches!(code, Code::Aborted | Code::Unavailable)
}

/// A conflict or an outage, as a call's status shows it. A service that dies in the middle of a call cannot say `UNAVAILABLE`: the
/// broken connection arrives as `UNKNOWN`, `INTERNAL` or `CANCELLED`, and only the status's source says that it was no answer. A
/// timeout that the caller set itself is none of this.
pub(crate) fn is_retryable_status(status: &Status) -> bool {
    if is_retryable_code(status.code()) {
        return true;
    }
    let mut is_of_transport = false;
    let mut next = status.source();
    while let Some(error) = next {
        if error.is::<tonic::TimeoutExpired>() {
            return false;
        }
        is_of_transport |= error.is::<tonic::transport::Error>() || error.is::<hyper::Error>();
        next = error.source();
    }
    is_of_transport
}

/// Walks the chain of sources for something that a new transaction may not meet again.
pub(crate) fn is_retryable(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(status) = error.downcast_ref::<Status>() {
            return is_retryable_status(status);
        }
        if let Some(error) = error.downcast_ref::<CommitError>() {
            return error.is_retryable();
        }
        if let Some(failure) = error.downcast_ref::<BranchFailure>() {
            return failure.is_retryable();
        }
        if let Some(error) = error.downcast_ref::<ResourceError>() {
            return is_retryable_code(resource_code(error));
        }
        next = error.source();
    }
    false
}
