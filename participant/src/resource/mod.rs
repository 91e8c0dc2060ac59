//! Resource managers: how a database takes part in global transactions (steps 2, 3 and 5).
//!
//! [`ResourceManager`] is the one trait that a new kind of store implements; its documentation is the
//! contract, and [`conformance`](crate::conformance) tests it. [`redb`] is the embedded store that needs no
//! server.

mod error;
pub mod redb;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use synod_proto::ids::{BranchId, Gtid, Lineage, ResourceId, UnixMillis};

pub use error::{Remedy, ResourceError};
pub use synod_proto::session::Vote;

/// What a branch is, for the store: everything that a process which never saw it needs to finish it (T12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchContext {
    /// The branch.
    pub branch: BranchId,
    /// The coordinator that will decide.
    pub lineage: Lineage,
    /// When the branch gives up, if it has not voted by then. Milliseconds since 1970.
    pub deadline: UnixMillis,
}

/// A branch's vote, and what the commit record keeps of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// [`Vote::Commit`] or [`Vote::ReadOnly`]. A vote to abort is an error of `prepare`.
    pub vote: Vote,
    /// A digest of the branch's work, for comparison by people; 0 where the store makes none.
    pub digest: u64,
    /// The database's own transaction id, where it can prove effects by it; at most 64 bytes, else empty.
    pub database_transaction: Bytes,
}

/// What a database says of itself (T11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The database's random id, made with its tables.
    pub resource: ResourceId,
    /// The coordinator that it belongs to; `None` before it first met one.
    pub lineage: Option<Lineage>,
}

/// A prepared branch whose outcome the store does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InDoubtBranch {
    /// The branch.
    pub context: BranchContext,
    /// When it was prepared, by the clock of the process that prepared it.
    pub prepared_at: UnixMillis,
}

/// The answer of `commit` and `abort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Done now, durably.
    Applied,
    /// Done before: the store has proof of it.
    AlreadyApplied,
    /// The store has neither such a prepared branch nor proof that it did what is asked. Never an
    /// acknowledgement (T8).
    Unknown {
        /// What was found instead, for people.
        detail: String,
    },
}

/// What a store knows of one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BranchState {
    /// Its local transaction is open, or just being prepared.
    Working,
    /// Durable, waiting for the outcome.
    Prepared,
    /// Its local transaction has committed: proven.
    Committed,
    /// Rolled back: proven.
    Aborted,
    /// No trace. It may never have been here, may have been rolled back while working, or lies below the
    /// low-water mark.
    Unknown,
}

/// How far rows that only serve as proof may be deleted (T13), as the coordinator's leader tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowWater {
    /// No transaction that began before this instant will ever be asked about again, except for the listed
    /// ones.
    pub mark: UnixMillis,
    /// Transactions from before the mark that still wait for an acknowledgement of this database.
    pub unfinished: Vec<Gtid>,
}

/// A database that takes part in global transactions. One value stands for one database; it is shared by all
/// tasks of the process.
///
/// # The contract
/// An implementation that breaks one of these breaks atomicity for every transaction that it takes part in.
/// *Durable* means: still there after the power failed.
///
/// **Work**
/// 1. Nothing that a [`Transaction`](Self::Transaction) writes MUST be visible to others, or durable, before
///    `commit`. Dropping a transaction MUST roll it back and release its locks, also in a panic.
/// 2. `begin` and `prepare` MUST refuse a context of another lineage than the database's
///    ([`ResourceError::ForeignLineage`]), one whose deadline has passed
///    ([`ResourceError::DeadlineExceeded`]), and a transaction that began below the low-water mark
///    ([`ResourceError::BelowLowWater`]); `prepare` MUST check the mark in the local transaction that it
///    makes durable, not before.
/// 3. Waiting for a lock MUST end: at the context's deadline at the latest, and with an error.
///
/// **Prepare**
/// 4. When `prepare` returns [`Vote::Commit`], the branch MUST be durable together with its context, and
///    `commit` MUST succeed from then on whatever crashes (constraints checked, space taken, locks held). The
///    locks MUST survive a restart: they are held again before new work begins.
/// 5. A prepared branch MUST be neither committed nor rolled back by the store's own decision, at no age
///    (T8).
/// 6. [`Vote::ReadOnly`] MUST be returned only if nothing was written and no locking read was made (T15,
///    traps C16). The branch is over then.
/// 7. An error of `prepare` is a vote to abort: the branch MUST NOT be prepared afterwards. If that cannot be
///    known (a broken connection), the branch may turn up in `in_doubt`; it will be told Aborted, since
///    nobody heard a vote. After [`abort`](Self::abort) of a branch, its `prepare` MUST fail
///    ([`ResourceError::Aborted`]). So MUST a second `prepare` under the id of a branch that is prepared, or
///    that has committed: an execution runs once (T2).
///
/// **Finish**
/// 8. `commit` MUST apply the whole branch and record its proof in one local transaction, durable before it
///    returns [`Effect::Applied`].
/// 9. `commit` and `abort` MUST be idempotent, at any later time, from any process that reaches the database,
///    and while another call for the same branch runs (traps C9). A repeated commit answers
///    [`Effect::AlreadyApplied`], from proof: a marker row of the branch's own local transaction, or the
///    database's status of that very transaction. "No such prepared transaction" is **not** proof (traps C5):
///    without any, answer [`Effect::Unknown`].
/// 10. While the branch's `prepare` still runs, `commit` MUST wait for it or answer [`ResourceError::Busy`],
///     never `Unknown`.
/// 11. Proof MUST be kept until `forget` allows its deletion; never deleted by age.
/// 12. `in_doubt` MUST list every prepared branch of this database, and only those with an id that Synod made
///     (traps C10); an error is right where the list would be partial (traps C11).
///
/// **Identity**
/// 13. The id in `identity` MUST lie in the database itself, be random, and be the same for ever (T11).
///     `identity(Some(lineage))` MUST bind an unbound database durably, and MUST refuse to change an existing
///     binding.
///
/// **Futures**
/// 14. Dropping the future of `prepare`, `commit` or `abort` MUST leave the operation either not begun or
///     running to its end (traps C13): hand the work to a task or thread of its own.
///
/// # Example: a store of one's own
/// A file of text that is replaced as a whole, with one lock for all its rows. Slow, but it keeps every MUST
/// above, which is what makes it a resource manager. [`conformance`](crate::conformance) tests that of any
/// store; the library's own tests run it on this one, too.
///
/// ```
#[doc = include_str!("example.rs")]
/// ```
pub trait ResourceManager: Send + Sync + 'static {
    /// An open local transaction: what the user works with. Rolled back when dropped.
    type Transaction: Send + 'static;

    /// Opens a local transaction for a branch.
    ///
    /// # Errors
    /// Contract 2; the store is unavailable. Nothing was begun.
    fn begin(
        &self,
        context: &BranchContext,
    ) -> impl Future<Output = Result<Self::Transaction, ResourceError>> + Send;

    /// Makes the branch durable and able to commit, and returns its vote.
    ///
    /// # Errors
    /// A vote to abort: the branch is rolled back (contract 7).
    fn prepare(
        &self,
        context: &BranchContext,
        tx: Self::Transaction,
    ) -> impl Future<Output = Result<Prepared, ResourceError>> + Send;

    /// Commits a prepared branch; durable when it returns.
    ///
    /// # Errors
    /// Not known whether it took effect: call again.
    fn commit(&self, branch: &BranchId) -> impl Future<Output = Result<Effect, ResourceError>> + Send;

    /// Rolls a branch back, prepared or still working; durable when it returns. (A dropped transaction is
    /// rolled back by itself and needs no call.) [`Effect::Unknown`] means that the store has proof of the
    /// contrary.
    ///
    /// # Errors
    /// Not known whether it took effect: call again.
    fn abort(&self, branch: &BranchId) -> impl Future<Output = Result<Effect, ResourceError>> + Send;

    /// What the store knows of a branch.
    ///
    /// # Errors
    /// The store is unavailable.
    fn status(&self, branch: &BranchId) -> impl Future<Output = Result<BranchState, ResourceError>> + Send;

    /// Every prepared branch, in the order of their ids.
    ///
    /// # Errors
    /// The store is unavailable, or the list would be partial.
    fn in_doubt(&self) -> impl Future<Output = Result<Vec<InDoubtBranch>, ResourceError>> + Send;

    /// The database's identity. With a lineage: binds a database that has none yet, durably (T11).
    ///
    /// # Errors
    /// [`ResourceError::ForeignLineage`] when it is bound to another one.
    fn identity(&self, bind: Option<Lineage>)
    -> impl Future<Output = Result<Identity, ResourceError>> + Send;

    /// Records the low-water mark and deletes proof below it, except for what is listed (T13). From then on
    /// new work below the mark is refused. A mark below the recorded one changes nothing but may delete.
    /// Returns how many rows were deleted; a store may leave some to the next call.
    ///
    /// # Errors
    /// The store is unavailable.
    fn forget(&self, low_water: &LowWater) -> impl Future<Output = Result<u64, ResourceError>> + Send;
}

impl<R: ResourceManager> ResourceManager for Arc<R> {
    type Transaction = R::Transaction;

    fn begin(
        &self,
        context: &BranchContext,
    ) -> impl Future<Output = Result<Self::Transaction, ResourceError>> + Send {
        R::begin(self, context)
    }

    fn prepare(
        &self,
        context: &BranchContext,
        tx: Self::Transaction,
    ) -> impl Future<Output = Result<Prepared, ResourceError>> + Send {
        R::prepare(self, context, tx)
    }

    fn commit(&self, branch: &BranchId) -> impl Future<Output = Result<Effect, ResourceError>> + Send {
        R::commit(self, branch)
    }

    fn abort(&self, branch: &BranchId) -> impl Future<Output = Result<Effect, ResourceError>> + Send {
        R::abort(self, branch)
    }

    fn status(&self, branch: &BranchId) -> impl Future<Output = Result<BranchState, ResourceError>> + Send {
        R::status(self, branch)
    }

    fn in_doubt(&self) -> impl Future<Output = Result<Vec<InDoubtBranch>, ResourceError>> + Send {
        R::in_doubt(self)
    }

    fn identity(
        &self,
        bind: Option<Lineage>,
    ) -> impl Future<Output = Result<Identity, ResourceError>> + Send {
        R::identity(self, bind)
    }

    fn forget(&self, low_water: &LowWater) -> impl Future<Output = Result<u64, ResourceError>> + Send {
        R::forget(self, low_water)
    }
}
