//! What can go wrong in a store, and what the caller does about it.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use synod_proto::ids::{BranchId, Lineage, UnixMillis};

/// An operation of a [`ResourceManager`](super::ResourceManager) that did not happen, or of which the store
/// cannot say whether it did. [`remedy`](Self::remedy) tells the cases apart for a program.
///
/// No error of `prepare`, `commit` or `abort` says anything about the *outcome* of the global transaction: a
/// branch that voted stays in doubt until the coordinator told its outcome, whatever its store answers (T8,
/// traps C2).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResourceError {
    /// The branch is just being prepared or finished elsewhere: call again shortly.
    #[error("branch {branch} is busy: call again")]
    Busy {
        /// The branch.
        branch: BranchId,
    },
    /// A lock was not granted within the configured lock timeout: roll back, retry with a new transaction.
    #[error("`{table}`/{key} stayed locked for {waited:?}")]
    LockTimeout {
        /// The table.
        table: String,
        /// The key, as text where it is text, else in hexadecimal.
        key: String,
        /// How long was waited.
        waited: Duration,
    },
    /// Waiting would never end: this transaction is the victim of a deadlock. Roll back, retry with a new
    /// one.
    #[error("deadlock on `{table}`/{key}; this transaction is the victim")]
    Deadlock {
        /// The table.
        table: String,
        /// The key.
        key: String,
    },
    /// Another branch of the *same* global transaction holds the lock (traps C15). It keeps it until the
    /// outcome, which waits for this branch: give the two one branch, or let them touch different rows. A
    /// retried call meets it too.
    #[error(
        "`{table}`/{key} is locked by branch {holder} of the same global transaction; use one branch for both"
    )]
    OwnBranch {
        /// The table.
        table: String,
        /// The key.
        key: String,
        /// The branch that holds the lock.
        holder: BranchId,
    },
    /// What the transaction had read was changed by another one before it was locked: writing now would lose
    /// that update. Roll back, retry with a new transaction; read with `get_for_update` what will be written.
    #[error("`{table}`/{key} was changed by another transaction after it was read here")]
    Conflict {
        /// The table.
        table: String,
        /// The key.
        key: String,
    },
    /// The branch's deadline passed before it voted: rolled back. Retry with a new transaction and more time.
    #[error("the branch's deadline passed before it was prepared")]
    DeadlineExceeded,
    /// The transaction began before the low-water mark (T13); it is long over. Retry with a new one; look at
    /// the clocks when it is not an old one.
    #[error("the transaction began before the store's low-water mark ({mark:?}): late work is refused")]
    BelowLowWater {
        /// The mark.
        mark: UnixMillis,
    },
    /// The branch was aborted before this work came (traps C3, *late work*): nothing to do, it can never
    /// commit.
    #[error("branch {branch} was aborted already: late work is refused")]
    Aborted {
        /// The branch.
        branch: BranchId,
    },
    /// This local transaction was rolled back by an earlier error, which is told here again: roll back.
    #[error("the local transaction was rolled back earlier: {cause}")]
    RolledBack {
        /// That error.
        cause: String,
    },
    /// Work or binding under another coordinator's lineage (T11): a copied database or a mistaken coordinator
    /// address. Nothing was changed; fix the configuration.
    #[error("the database belongs to coordinator {found}, not to {expected}")]
    ForeignLineage {
        /// The lineage that the caller came with.
        expected: Lineage,
        /// The lineage in the database.
        found: Lineage,
    },
    /// Above a documented limit; nothing was written. Change the program.
    #[error("{what}: {bytes} bytes, and at most {bytes_max} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The call breaks a rule of the store, or the store cannot take part (traps C14): a bug or a
    /// configuration to fix.
    #[error("{text}")]
    Invalid {
        /// Which rule.
        text: String,
    },
    /// Another process, or another handle of this one, has the database open: stop it, or wait for its end.
    #[error("{what} is open already, in another process or under another handle")]
    AlreadyOpen {
        /// The file.
        what: String,
    },
    /// The database could not be opened: see the source.
    #[error("cannot open {what}: {source}")]
    Open {
        /// The file.
        what: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The store could not be reached, or the connection broke: whether the operation took effect is **not
    /// known**. Call again; every operation on a branch is idempotent.
    #[error("the store is unavailable, the operation may or may not have taken effect: {0}")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// Writing to the disk failed earlier, and the store closed itself (traps F4): whether the last
    /// operations took effect is known only after it was reopened. Reopen it (for redb:
    /// `RedbResource::reopen`), or restart the process.
    #[error("the store closed itself after a failed write, reopen it: {0}")]
    Failed(#[source] Arc<dyn Error + Send + Sync>),
    /// The store was closed: a bug, or the process is ending.
    #[error("the store is closed")]
    Closed,
}

/// What the caller of a store does about a [`ResourceError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Make the same call again, with backoff.
    CallAgain,
    /// Roll back (a vote to abort), and run the work again in a *new* transaction: it may well succeed.
    NewTransaction,
    /// Reopen the store, or restart the process; then call again.
    Reopen,
    /// Calling again cannot help: change the program or the configuration.
    Fix,
}

impl ResourceError {
    /// What to do.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Busy { .. } | Self::Unavailable(_) => Remedy::CallAgain,
            Self::LockTimeout { .. }
            | Self::Deadlock { .. }
            | Self::Conflict { .. }
            | Self::DeadlineExceeded
            | Self::BelowLowWater { .. }
            | Self::Aborted { .. }
            | Self::RolledBack { .. } => Remedy::NewTransaction,
            Self::Failed(_) => Remedy::Reopen,
            Self::OwnBranch { .. }
            | Self::ForeignLineage { .. }
            | Self::TooLarge { .. }
            | Self::Invalid { .. }
            | Self::AlreadyOpen { .. }
            | Self::Open { .. }
            | Self::Closed => Remedy::Fix,
        }
    }
}
