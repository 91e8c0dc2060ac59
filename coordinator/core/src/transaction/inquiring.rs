//! Which transactions prepared branches inquired for in vain, and since when: for operators.
//!
//! It decides nothing and is told as what it is, one leader's memory. It is bounded: whoever asks may name any gtid, and a
//! branch that never asks again leaves its line until the outcome or the watermark comes (traps A20).

use alloc::collections::BTreeMap;
use core::hash::{Hash, Hasher};
use core::ops::Bound::{Excluded, Unbounded};
use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, ResourceId, UnixMillis};
use synod_proto::limits::BRANCH_COUNT_MAX;
use synod_proto::session::{InDoubtState, InquiringBranch};

/// Transactions remembered, at most: more than an operator reads, and with all their branches 10 MB.
pub(crate) const INQUIRING_COUNT_MAX: usize = 4096;

/// The leader's memory of inquiries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inquiring {
    since: UnixMillis,
    transactions: BTreeMap<Gtid, Inquired>,
    dropped_count: u64,
}

#[derive(Clone, Debug)]
struct Inquired {
    since: UnixMillis,
    deadline: UnixMillis,
    branches: BTreeMap<(CallId, ExecutionId), ResourceId>,
}

/// For checkers: nothing that a replica does later depends on it, only what it shows to an operator who asks.
impl Hash for Inquiring {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Inquiring {
    /// This leader remembers from now on.
    pub(crate) fn begin(&mut self, now: UnixMillis) {
        self.since = now;
    }

    /// A branch asks, and there is no outcome. What lies below `mark` makes room first: its outcome is told by now.
    pub(crate) fn note(
        &mut self,
        now: UnixMillis,
        mark: UnixMillis,
        branch: BranchId,
        resource: ResourceId,
        deadline: UnixMillis,
    ) {
        if self.transactions.len() >= INQUIRING_COUNT_MAX && !self.transactions.contains_key(&branch.gtid) {
            self.transactions.retain(|gtid, _| gtid.began_at() >= mark);
            if self.transactions.len() >= INQUIRING_COUNT_MAX {
                self.dropped_count += 1;
                return;
            }
        }
        let inquired = self.transactions.entry(branch.gtid).or_insert_with(|| Inquired {
            since: now,
            deadline,
            branches: BTreeMap::new(),
        });
        inquired.deadline = inquired.deadline.min(deadline);
        let key = (branch.call, branch.execution);
        if inquired.branches.len() < BRANCH_COUNT_MAX || inquired.branches.contains_key(&key) {
            inquired.branches.insert(key, resource);
        } else {
            self.dropped_count += 1;
        }
    }

    /// The transaction has an outcome.
    pub(crate) fn forget(&mut self, gtid: Gtid) {
        self.transactions.remove(&gtid);
    }

    /// The transactions above `after`, in the order of their gtids.
    pub(crate) fn above(&self, after: Option<Gtid>) -> impl Iterator<Item = (Gtid, InDoubtState)> {
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        self.transactions.range(range).map(|(gtid, inquired)| {
            let branch =
                |(&(call, execution), &resource): (&(CallId, ExecutionId), &ResourceId)| InquiringBranch {
                    call,
                    execution,
                    resource,
                };
            let state = InDoubtState::Undecided {
                inquired_since: inquired.since,
                deadline: inquired.deadline,
                branches: inquired.branches.iter().map(branch).collect(),
            };
            (*gtid, state)
        })
    }

    /// Since when it remembers.
    pub(crate) fn since(&self) -> UnixMillis {
        self.since
    }

    /// How many inquiries found no room.
    pub(crate) fn dropped_count(&self) -> u64 {
        self.dropped_count
    }
}
