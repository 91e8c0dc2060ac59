//! A commit whose open branches were prepared on request (T3), as far as its answers have shown it.
//!
//! Whoever asks for it names the branches that have voted, and those that are to be prepared now. The record then names
//! all of the former, and of the latter those that voted to commit; each of the others voted read-only and is counted.
//! Which is which is between the coordinator and the branches: here every division is possible that no answer has
//! excluded. This is the rule of T3 and T5 written a second time, on purpose: it shares nothing with the coordinator.

use std::collections::BTreeMap;
use synod_proto::command::{NamedBranch, Proposal};
use synod_proto::ids::{CallId, ExecutionId, ResourceId};
use synod_proto::session::{OpenBranch, Outcome};

/// A branch as a status shows it.
pub type Named = (CallId, ExecutionId, ResourceId);

/// What one branch that was open may have come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Open {
    resource: ResourceId,
    /// Whether the record names it, once that is known.
    is_named: Option<bool>,
}

/// All records that may follow from one commit with open branches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    voted: Vec<NamedBranch>,
    /// How many had voted read-only before.
    read_only_count: u32,
    open: BTreeMap<(CallId, ExecutionId), Open>,
}

impl Prepared {
    /// What follows from a proposal; `None` from one to abort.
    #[must_use]
    pub fn new(proposal: &Proposal, open: &[OpenBranch]) -> Option<Self> {
        let Proposal::Commit {
            branches,
            read_only_count,
        } = proposal
        else {
            return None;
        };
        let open = open.iter().map(|one| {
            let (resource, is_named) = (one.resource, None);
            ((one.call, one.execution), Open { resource, is_named })
        });
        Some(Self {
            voted: branches.clone(),
            read_only_count: *read_only_count,
            open: open.collect(),
        })
    }

    /// Whether this is what follows from the same proposal as `other`, whatever is known of either by now.
    #[must_use]
    pub fn is_asked_as(&self, other: &Self) -> bool {
        let asked = |one: &Self| -> Vec<_> {
            one.open
                .iter()
                .map(|(branch, open)| (*branch, open.resource))
                .collect()
        };
        (&self.voted, self.read_only_count) == (&other.voted, other.read_only_count)
            && asked(self) == asked(other)
    }

    /// Whether the record may be exactly this one.
    #[must_use]
    pub fn may_be(&self, branches: &[NamedBranch], read_only_count: u32) -> bool {
        let named: Vec<Named> = branches
            .iter()
            .map(|one| (one.call, one.execution, one.resource))
            .collect();
        self.voted.iter().all(|one| branches.contains(one)) && self.shown(&named, read_only_count).is_some()
    }

    /// What is left when the record was shown like this.
    #[must_use]
    pub fn shown(&self, named: &[Named], read_only_count: u32) -> Option<Self> {
        let mut next = self.clone();
        for ((call, execution), open) in &mut next.open {
            let is_named = named.contains(&(*call, *execution, open.resource));
            if *open.is_named.get_or_insert(is_named) != is_named {
                return None;
            }
        }
        let prepared_count = next
            .open
            .values()
            .filter(|one| one.is_named == Some(true))
            .count();
        let read_only = u32::try_from(next.open.len() - prepared_count).ok()?;
        let has_all_voted = self
            .voted
            .iter()
            .all(|one| named.contains(&(one.call, one.execution, one.resource)));
        // As many as there are in all: none twice, and no other.
        let is_whole = has_all_voted && named.len() == self.voted.len() + prepared_count;
        let is_counted = self.read_only_count.checked_add(read_only) == Some(read_only_count);
        (is_whole && is_counted).then_some(next)
    }

    /// What is left when a branch was told its outcome.
    #[must_use]
    pub fn told(&self, call: CallId, execution: ExecutionId, outcome: Outcome) -> Option<Self> {
        let is_named = outcome == Outcome::Committed;
        let has_voted = self
            .voted
            .iter()
            .any(|one| (one.call, one.execution) == (call, execution));
        let mut next = self.clone();
        let Some(open) = next.open.get_mut(&(call, execution)) else {
            return (has_voted == is_named).then_some(next);
        };
        if *open.is_named.get_or_insert(is_named) != is_named {
            return None;
        }
        Some(next)
    }
}
