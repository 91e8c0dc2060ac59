//! The gate between a branch's work and its vote (step 3, rule T3, trap C1): a vote to commit can be made only from
//! the store's own answer that the branch is durable, a vote to abort only by giving the branch up.
//!
//! ```text
//!   Branch<Working> --prepared(answer of the store)--> Branch<Voted> --vote()--> BranchVote
//!          \---------rolled_back(cause)--------------/
//! ```
//! A `Branch<Working>` has no method that yields a vote.

use crate::transaction::BranchVote;
use alloc::string::String;
use bytes::Bytes;
use core::fmt;
use synod_proto::command::clip_text;
use synod_proto::ids::{BranchId, ResourceId, UnixMillis};
use synod_proto::session::Vote;

/// The branch's local transaction is open; nothing is durable.
#[derive(Debug)]
pub struct Working(());

/// The branch has answered prepare and decides nothing more by itself.
#[derive(Debug)]
pub struct Voted {
    vote: BranchVote,
}

/// What the store answered to prepare, after its sync. Made by whoever ran `ResourceManager::prepare`, from its
/// successful result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// The branch can commit, whatever crashes.
    Prepared,
    /// Nothing was written and nothing locked (T15): there is nothing to keep.
    ReadOnly,
}

/// Why a branch whose work has ended well is not prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// Whoever waited for it has gone: nobody would hear its vote.
    Abandoned,
    /// Its transaction's deadline has passed (T14).
    DeadlinePassed,
}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Abandoned => "the caller went away",
            Self::DeadlinePassed => "the deadline has passed",
        })
    }
}

/// Whether the caller of a branch still waits for its vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// It waits.
    Waits,
    /// It has gone.
    IsGone,
}

/// Whether a branch whose work has ended well may be prepared now. From the prepare on it waits for its outcome (T8), so
/// this is the last moment to give it up.
///
/// # Errors
/// See [`GivenUp`]: roll it back.
pub fn may_prepare(caller: Caller, deadline: UnixMillis, wall: UnixMillis) -> Result<(), GivenUp> {
    if caller == Caller::IsGone {
        return Err(GivenUp::Abandoned);
    }
    if wall >= deadline {
        return Err(GivenUp::DeadlinePassed);
    }
    Ok(())
}

/// One branch on its way to a vote.
#[derive(Debug)]
#[must_use]
pub struct Branch<S> {
    id: BranchId,
    resource: ResourceId,
    state: S,
}

impl Branch<Working> {
    /// Work begins.
    pub const fn new(id: BranchId, resource: ResourceId) -> Self {
        Self {
            id,
            resource,
            state: Working(()),
        }
    }

    /// The store has answered prepare. `digest` is 0 and `database_transaction` empty where the store has none.
    pub fn prepared(self, durable: Durable, digest: u64, database_transaction: Bytes) -> Branch<Voted> {
        let vote = match durable {
            Durable::Prepared => Vote::Commit,
            Durable::ReadOnly => Vote::ReadOnly,
        };
        self.voted(vote, digest, database_transaction)
    }

    /// The work failed or was given up before prepare began, or the store refused it and rolled it back: it can never
    /// commit.
    pub fn rolled_back(self, cause: impl Into<String>) -> Branch<Voted> {
        self.voted(
            Vote::Abort {
                cause: clip_text(cause.into()),
            },
            0,
            Bytes::new(),
        )
    }

    fn voted(self, vote: Vote, digest: u64, database_transaction: Bytes) -> Branch<Voted> {
        let (call, execution) = (self.id.call, self.id.execution);
        let vote = BranchVote {
            call,
            execution,
            resource: self.resource,
            vote,
            digest,
            database_transaction,
        };
        Branch {
            id: self.id,
            resource: self.resource,
            state: Voted { vote },
        }
    }
}

impl Branch<Voted> {
    /// The vote, for the reply's metadata.
    #[must_use]
    pub fn vote(&self) -> &BranchVote {
        &self.state.vote
    }
}

impl<S> Branch<S> {
    /// The branch's id.
    #[must_use]
    pub const fn id(&self) -> BranchId {
        self.id
    }

    /// The branch's database.
    #[must_use]
    pub const fn resource(&self) -> ResourceId {
        self.resource
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T14, C1: nothing becomes durable that nobody would hear of, or that is late.
    #[test]
    fn a_branch_is_given_up_before_its_prepare_or_never() {
        let (deadline, before) = (UnixMillis(10), UnixMillis(9));
        assert_eq!(may_prepare(Caller::Waits, deadline, before), Ok(()));
        assert_eq!(
            may_prepare(Caller::Waits, deadline, deadline),
            Err(GivenUp::DeadlinePassed)
        );
        assert_eq!(
            may_prepare(Caller::IsGone, deadline, before),
            Err(GivenUp::Abandoned)
        );
    }
}
