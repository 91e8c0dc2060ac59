//! Global transactions over the databases of several services: all of them commit, or none does, whatever
//! crashes.
//!
//! A *global transaction* is work in several databases, each reached by a service of its own, that takes
//! effect everywhere or nowhere. The *initiator* begins it and asks for its commit; each piece of work is a
//! *branch*, which ends in a *vote*; a small cluster, the *coordinator* (the binary `synod`), writes the
//! *outcome* into a replicated log and tells every branch, again and again, until it has taken effect. This
//! crate is what a service embeds to be one of the *participants*.
//!
//! # A transaction
//! ```no_run
//! # mod shop { include!("doc_shop.rs"); }
//! # use shop::{InventoryClient, ReserveRequest};
//! use std::time::Duration;
//! use synod::{Participant, resource::redb::RedbResource};
//!
//! # async fn run() -> Result<(), synod::BoxError> {
//! let participant = Participant::builder()
//!     .coordinators(["http://127.0.0.1:7401", "http://127.0.0.1:7402", "http://127.0.0.1:7403"])
//!     .connect()
//!     .await?;
//! let orders = participant.resource(RedbResource::open("orders.redb")?).await?;
//! let inventory = tonic::transport::Endpoint::from_static("http://127.0.0.1:9001").connect_lazy();
//!
//! let txn = participant.begin();
//! // A call to another service: its branch prepares there, and the vote comes back with the reply.
//! let request = ReserveRequest { sku: "bolt".to_owned(), quantity: 2 };
//! txn.client(&inventory, InventoryClient::new).reserve(request).await?;
//! // A branch on a database of one's own.
//! txn.branch(&orders, async |mut tx| Ok(tx.put("orders", "order-1", "2 bolts").await?)).await?;
//! // Decided, once and for ever, when this returns; in effect everywhere when the next line does.
//! let committed = txn.commit().await?;
//! committed.delivered(Duration::from_secs(5)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # The other side
//! A method that takes part is one closure over the service's local transaction, behind one layer of the
//! server:
//! ```no_run
//! # mod shop { include!("doc_shop.rs"); }
//! # use shop::{ReserveReply, ReserveRequest};
//! use synod::{Resource, resource::redb::RedbResource};
//! use tonic::{Request, Response, Status};
//!
//! struct InventoryService {
//!     database: Resource<RedbResource>,
//! }
//!
//! impl InventoryService {
//!     async fn reserve(&self, request: Request<ReserveRequest>) -> Result<Response<ReserveReply>, Status> {
//!         self.database
//!             .branch(request, async |mut tx, ReserveRequest { sku, quantity }| {
//!                 let stock = tx.get_u64_for_update("stock", &sku).await?.unwrap_or(0);
//!                 let left = stock.checked_sub(quantity).ok_or_else(|| Status::out_of_range("out of stock"))?;
//!                 tx.put_u64("stock", &sku, left).await?;
//!                 Ok(ReserveReply { left })
//!             })
//!             .await
//!     }
//! }
//! # fn serve(participant: &synod::Participant) {
//! // Once, where the server is built:
//! let server = tonic::transport::Server::builder().layer(participant.layer());
//! # }
//! ```
//! `Ok` prepares the branch, `Err` rolls it back, and so do a panic, a caller that went away and a passed
//! deadline. Further calls belong under the same transaction when they are made through
//! [`BranchTransaction::client`]. A method with several databases, or with none, uses [`Joined`]. Outside a
//! global transaction such a method is refused, and has done nothing.
//!
//! # What is guaranteed
//! - **One outcome.** It is a record in a log that a quorum of replicas has on disk before anybody hears it;
//!   the first one proposed wins, and everybody is told that one (T5, T6).
//! - **Whole or not at all.** A commit names exactly the branches that voted. It is refused while a call has
//!   failed or has no answer, unless the caller [discards](Transaction::discard) that call by name (T4).
//! - **Once.** A request that is retried or hedged on its way runs as two branches, of which a commit names
//!   one (T2).
//! - **No lost effects.** A branch that voted is durable in its own database, keeps its locks, and waits for
//!   the outcome across restarts; any process that attaches the database finishes it (T8). A commit counts
//!   as delivered only when its local transaction has committed.
//! - **Honest answers.** After the commit request was handed over the only answers are *committed*,
//!   *aborted*, both from the log, and [`InDoubt`], which [resolves](InDoubt::resolve) (T7). Every error
//!   says what to do about it: [`CommitError`].
//!
//! Databases take part through [`resource::ResourceManager`]. [`resource::redb`] is ready-made and embedded;
//! the trait's documentation is the contract for others, with a complete example, and [`conformance`] tests it.
//!
//! # Messages
//! What need not be atomic, only certain, is a message: written with the business row by an [`outbox`], forwarded until confirmed,
//! and applied once by an [`inbox`].
//!
//! # What is not there
//! - Isolation across databases: between the first branch's effect and the last one's, a reader of both sees
//!   one without the other. Each branch holds its own locks until its own effect; [`Committed::delivered`]
//!   waits for all.
//! - Streaming calls under a transaction: a client-streaming method does not compile as a transactional one,
//!   a streamed reply is cut off.
//! - Messages other than protobuf in a transactional method, and more than 64 branches in one transaction.
//! - Two branches of one transaction on the same rows: the second one is refused, give the two one branch. Calls
//!   that belong together share one by [`Resource::open_branch`], which stays open until the commit.
//! - Any promise if a machine's clock is wrong by more than ten seconds, except safety: its work may be
//!   refused.
//!
//! # Words
//! [`Gtid`] names a transaction, [`BranchId`] a branch. Times are milliseconds since the Unix epoch
//! ([`UnixMillis`]). A transaction's deadline, 30 s by default and at most 5 minutes, bounds its branches'
//! work and votes, and not the wait for an outcome.
#![forbid(unsafe_code)]

pub mod conformance;
pub mod inbox;
pub mod outbox;
pub mod resource;

mod branch;
mod channel;
mod context;
mod error;
mod open;
mod participant;
mod retry;
mod scope;
mod server;
mod session;
mod transaction;

pub use branch::{BranchTransaction, Resource};
pub use channel::{BoundChannel, ReplyBody, call_id};
pub use error::{
    AbortError, AttachError, BoxError, BranchError, BranchFailure, CommitError, ConnectError, DeliveryError,
    OutcomeError, ResolveError, UnknownCall,
};
pub use participant::{Participant, ParticipantBuilder, TransactionOptions};
pub use retry::{RetryError, RetryOptions, retry};
pub use server::{Joined, TransactionLayer, TransactionService, VotedBody};
pub use synod_proto::ids::{
    BranchId, CallId, ExecutionId, Gtid, Lineage, MessageId, Position, ResourceId, Sequence, UnixMillis,
};
pub use synod_proto::session::{AbortCause, AbortKind, BranchStatus, DeliveryStatus, TransactionStatus};
pub use transaction::{Committed, InDoubt, Transaction};
