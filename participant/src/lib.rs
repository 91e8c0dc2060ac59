//! Global transactions over the databases of several services: all of them commit, or none does, whatever
//! crashes.
//!
//! A *global transaction* is work in several databases, each reached by a service of its own, that takes
//! effect everywhere or nowhere. The *initiator* begins it and asks for its commit; each piece of work is a
//! *branch*, which ends in a *vote*; a small cluster, the *coordinator* (the binary `synod`), writes the
//! *outcome* into a replicated log and tells every branch, again and again, until it has taken effect. This
//! crate is what a service embeds to be one of the *participants*.
//!
//! This page leads from nothing to services that take part. [`recipes`] answers "how do I …", each item says
//! what it guarantees and what its errors ask for, and the README of the repository has the guarantees with the
//! test that checks each, the command line, and the limits.
//!
//! # What you run
//! *The coordinator.* On a machine with Rust, `cargo run --release --bin synod -- dev` in the repository is a
//! whole one, on 127.0.0.1 at the ports 7401 to 7403, whose data goes with it (`--data DIR` keeps it). In
//! earnest it is three processes `synod start` on three machines: any two of them are enough. It needs no
//! database, and knows nothing of your services but what they tell it.
//!
//! *Your services*, each with this crate and a database of its own. They connect to the coordinator, never the
//! reverse; among themselves they call each other by gRPC, as they would without it.
//!
//! ```toml
//! [dependencies]
//! synod-participant = { path = "../synod/participant" } # the library is called `synod`
//! tokio = { version = "1", features = ["full"] }
//! tonic = "0.14"                                        # your own services, as always
//! tonic-prost = "0.14"
//! prost = "0.14"
//! ```
//!
//! # The first transaction
//! One process, two databases, all that there is to it. `coordinators` are the replicas' addresses, such as
//! `http://127.0.0.1:7401`: name them all, since a client that knows only a dead one finds nobody.
//! ```
//! # mod coordinator { include!("doc_coordinator.rs"); }
//! use std::path::PathBuf;
//! use std::time::Duration;
//! use synod::{BoxError, Participant, resource::redb::RedbResource};
//!
//! async fn first(coordinators: Vec<String>, directory: PathBuf) -> Result<(), BoxError> {
//!     // Once in a process; from then on it keeps itself connected to whichever replica leads.
//!     let participant = Participant::builder().coordinators(coordinators).connect().await?;
//!     // An embedded database is a file. Attaching it also finishes what an earlier process left in doubt.
//!     let orders = participant.resource(RedbResource::open(directory.join("orders.redb"))?).await?;
//!     let stock = participant.resource(RedbResource::open(directory.join("stock.redb"))?).await?;
//!
//!     let txn = participant.begin();
//!     txn.branch(&orders, async |mut tx| Ok(tx.put("orders", "order-1", "2 bolts").await?)).await?;
//!     txn.branch(&stock, async |mut tx| Ok(tx.put_u64("stock", "bolt", 8).await?)).await?;
//!     // Decided, once and for ever, when this returns; in effect everywhere when the next line does.
//!     let committed = txn.commit().await?;
//!     committed.delivered(Duration::from_secs(10)).await?;
//!
//!     let row = orders.manager().snapshot()?.get("orders", "order-1")?;
//!     assert_eq!(row.as_deref(), Some(&b"2 bolts"[..]));
//!     participant.shutdown().await;
//!     Ok(())
//! }
//! # coordinator::run(first);
//! ```
//! A branch whose closure returns an error is rolled back, and the transaction can no longer commit: that is how
//! a rule of the business says no. Dropping `txn` without `commit` aborts it.
//!
//! # Calling another service
//! A call under the transaction goes through a client that is bound to it. The other side's branch prepares
//! there, and its vote comes back with the reply:
//! ```no_run
//! # mod shop { include!("doc_shop.rs"); }
//! # use shop::{InventoryClient, ReserveRequest};
//! # use synod::{BoxError, Committed, Participant, Resource, resource::redb::RedbResource};
//! # async fn run(participant: &Participant, orders: &Resource<RedbResource>) -> Result<Committed, BoxError> {
//! let inventory = tonic::transport::Endpoint::from_static("http://127.0.0.1:9001").connect_lazy();
//!
//! let txn = participant.begin();
//! let request = ReserveRequest { sku: "bolt".to_owned(), quantity: 2 };
//! let reply = txn.client(&inventory, InventoryClient::new).reserve(request).await?.into_inner();
//! txn.branch(orders, async move |mut tx| {
//!     Ok(tx.put("orders", "order-1", format!("2 bolts, {} left", reply.left)).await?)
//! })
//! .await?;
//! Ok(txn.commit().await?)
//! # }
//! ```
//! `InventoryClient` is what `tonic` generates. Calls that are not part of the transaction go through the plain
//! channel.
//!
//! # Being called
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
//! The order of a service's start and end is in [`recipes`](recipes#a-service-from-start-to-end).
//!
//! # Errors, and what to do
//! | you have | so it is | do |
//! |---|---|---|
//! | [`CommitError::Aborted`] | final: the log says so, nothing took effect | begin a new one, if [`is_retryable`](CommitError::is_retryable) |
//! | [`CommitError::Doomed`], or a call or branch that failed | nothing takes effect | the same; or [discard](Transaction::discard) that call by name before the commit |
//! | [`CommitError::Unavailable`], [`CommitError::Overloaded`] | the request was not handed over | back off, begin a new one |
//! | [`CommitError::InDoubt`] | committed or aborted, and the answer was lost | [`InDoubt::resolve`]; never run the work again before |
//! | [`CommitError::Invalid`], [`CommitError::Mismatch`] | a bug, or a wrong clock | mend it |
//! | [`DeliveryError::Pending`] | committed, and some service is away | go on; it will take effect there |
//! | [`BranchError`] | rolled back, with the closure's own error in the chain of sources | look at [`BranchFailure`] |
//! | [`resource::ResourceError`] | the store refused | what its [`remedy`](resource::ResourceError::remedy) says |
//! | [`ConnectError`], [`AttachError`] | the process cannot take part yet | what it says; a service may try again |
//!
//! [`retry`] runs the whole again where that may help, and only there. By gRPC a branch's failure is a status:
//! `ABORTED` and `UNAVAILABLE` may succeed in a new transaction, `FAILED_PRECONDITION` is a mistake in the
//! program or in its deployment, `DEADLINE_EXCEEDED` is the transaction's deadline, and every other code is the
//! service's own.
//!
//! # Several calls on one open branch
//! By default each call is a branch of its own, which is prepared when the call ends and keeps its locks: a second call of
//! the transaction to the same rows is refused. With [`Resource::open_branch`] in the method, or [`Transaction::open_branch`]
//! at the initiator, all such calls of a transaction share one local transaction, which the commit prepares. It costs one
//! round trip more.
//!
//! # Messages
//! What need not be atomic, only certain, is a message: written with the business row by an [`outbox`], sent until confirmed
//! by its relay, and applied once by an [`inbox`]. Each key's order is kept. A message can be
//! [delayed](outbox::Message::delay); one that its consumer fails again and again becomes a
//! [dead letter](outbox::DeadLetter), behind which its key is [held or goes on](outbox::DeadLetterPolicy), and which an
//! operator requeues or discards. The consumer of messages needs no coordinator.
//!
//! # A store of one's own
//! Databases take part through [`resource::ResourceManager`]. [`resource::redb`] is ready-made and embedded; the trait's
//! documentation is the contract for others, with a complete example, and [`conformance`] is the test of it: checks by
//! name, with crashes between every two steps of a branch.
//!
//! # Testing a service
//! Against a coordinator in a process beside the test ([recipe](recipes#testing)), on files in a temporary directory or
//! on a [disk in memory](resource::redb::MemoryDisk) that fails and loses power as it is told; with a
//! [clock](ParticipantBuilder::clock) and a [network](ParticipantBuilder::connector) of one's own where the test needs them.
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
//!   *aborted*, both from the log, and [`InDoubt`], which [resolves](InDoubt::resolve) (T7).
//!
//! # What is not there
//! - Isolation across databases: between the first branch's effect and the last one's, a reader of both sees
//!   one without the other. Each branch holds its own locks until its own effect; [`Committed::delivered`]
//!   waits for all.
//! - Streaming calls under a transaction: a client-streaming method does not compile as a transactional one,
//!   a streamed reply is cut off.
//! - Messages other than protobuf in a transactional method, and more than 64 branches in one transaction.
//! - Two branches of one transaction on the same rows: the second one is refused, give the two one branch.
//! - Any promise if a machine's clock is wrong by more than ten seconds, except safety: its work may be
//!   refused.
//! - Other consumers of messages than an [`inbox`]: no broker is spoken to.
//!
//! # Words
//! [`Gtid`] names a transaction, [`BranchId`] a branch. Times are milliseconds since 1970
//! ([`UnixMillis`]). A transaction's deadline, 30 s by default and at most 5 minutes, bounds its branches'
//! work and votes, and not the wait for an outcome.
#![forbid(unsafe_code)]

pub mod conformance;
pub mod inbox;
pub mod outbox;
pub mod recipes;
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
pub use synod_proto::environment::{Connector, Io, WallClock};
pub use synod_proto::ids::{
    BranchId, CallId, ExecutionId, Gtid, Lineage, MessageId, Position, ResourceId, Sequence, UnixMillis,
};
pub use synod_proto::session::{AbortCause, AbortKind, BranchStatus, DeliveryStatus, TransactionStatus};
pub use transaction::{Committed, InDoubt, Transaction};
