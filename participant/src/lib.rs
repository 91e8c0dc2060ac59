//! Global transactions over the databases of several services.
#![forbid(unsafe_code)]

pub mod resource;

mod branch;
mod channel;
mod context;
mod error;
mod participant;
mod retry;
mod scope;
mod server;
mod session;
mod transaction;

pub use branch::{BranchTransaction, Resource};
pub use channel::{BoundChannel, ReplyBody, call_id};
pub use error::{
    AbortError, AttachError, BoxError, BranchError, BranchFailure, CommitError, ConnectError, DeliveryError, OutcomeError,
    ResolveError, UnknownCall,
};
pub use participant::{Participant, ParticipantBuilder, TransactionOptions};
pub use retry::{RetryError, RetryOptions, retry};
pub use server::{Joined, TransactionLayer, TransactionService, VotedBody};
pub use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, Lineage, ResourceId, UnixMillis};
pub use synod_proto::session::{AbortCause, AbortKind, BranchStatus, DeliveryStatus, TransactionStatus};
pub use transaction::{Committed, InDoubt, Transaction};
