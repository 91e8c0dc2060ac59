//! Participants' databases: prepared branches survive their process, outcomes are applied once.

use std::collections::{BTreeMap, BTreeSet};
use synod::resource::BranchContext;
use synod_proto::ids::{BranchId, Lineage, ResourceId, UnixMillis};
use synod_proto::session::Outcome;

/// What a database holds of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowState {
    /// Able to commit, whatever crashes.
    Prepared,
    /// Its effect is there; the marker row proves it (T8).
    Committed,
    /// Rolled back.
    Aborted,
}

/// One branch in its database, with what recovery needs (T12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where it stands.
    pub state: RowState,
    /// The lineage it was prepared under.
    pub lineage: Lineage,
    /// The transaction's deadline.
    pub deadline: UnixMillis,
}

/// Every database of the world.
#[derive(Debug, Default)]
pub struct Databases {
    rows: BTreeMap<(ResourceId, BranchId), Row>,
    lineages: BTreeMap<ResourceId, Lineage>,
    settled: BTreeSet<BranchId>,
    effects: Vec<(BranchId, Outcome)>,
    /// Prepared branches that somebody rolled back behind the library's back.
    by_hand: BTreeSet<BranchId>,
    violations: Vec<String>,
}

impl Databases {
    /// The lineage that the database knows.
    #[must_use]
    pub fn lineage(&self, resource: ResourceId) -> Option<Lineage> {
        self.lineages.get(&resource).copied()
    }

    /// The database meets its coordinator.
    ///
    /// # Panics
    /// It knows another one (T11).
    pub fn set_lineage(&mut self, resource: ResourceId, lineage: Lineage) {
        let known = *self.lineages.entry(resource).or_insert(lineage);
        assert_eq!(known, lineage, "a database meets one coordinator for ever");
    }

    /// Makes a branch durable and able to commit.
    pub fn prepare(
        &mut self,
        resource: ResourceId,
        branch: BranchId,
        lineage: Lineage,
        deadline: UnixMillis,
    ) {
        let row = Row {
            state: RowState::Prepared,
            lineage,
            deadline,
        };
        let replaced = self.rows.insert((resource, branch), row);
        assert!(replaced.is_none(), "T2: an execution runs once");
    }

    /// Applies an outcome to a prepared branch; applied before, it changes nothing (traps F5). Returns what the database
    /// holds then.
    pub fn finish(&mut self, resource: ResourceId, branch: BranchId, outcome: Outcome) -> Option<RowState> {
        let row = self.rows.get_mut(&(resource, branch))?;
        if row.state == RowState::Prepared {
            row.state = match outcome {
                Outcome::Committed => RowState::Committed,
                Outcome::Aborted => RowState::Aborted,
            };
            self.effects.push((branch, outcome));
        }
        Some(row.state)
    }

    /// What the real tables of a database hold of a branch by now, as they were read. `context`: where it is known.
    ///
    /// What is prepared stays until its outcome, and what has an outcome keeps it, whatever crashes.
    pub fn observe(
        &mut self,
        resource: ResourceId,
        branch: BranchId,
        context: Option<&BranchContext>,
        observed: Option<RowState>,
    ) {
        let is_by_hand = self.by_hand.contains(&branch);
        let known = self.rows.get(&(resource, branch)).copied();
        match (known.map(|row| row.state), observed) {
            (None, None | Some(RowState::Aborted)) => return,
            (known, observed) if known == observed => return,
            (None, Some(_)) => {}
            (Some(RowState::Prepared), Some(RowState::Committed | RowState::Aborted)) => {}
            (known, observed) => {
                let text =
                    format!("branch {branch} of {resource} was {known:?}, and its tables say {observed:?}");
                return self.note_violation(text);
            }
        }
        let Some(state) = observed else { return };
        let (lineage, deadline) = match (known, context) {
            (Some(row), _) => (row.lineage, row.deadline),
            (None, Some(context)) => (context.lineage, context.deadline),
            (None, None) => (Lineage([0; 16]), UnixMillis(0)),
        };
        let row = Row {
            state,
            lineage,
            deadline,
        };
        self.rows.insert((resource, branch), row);
        match state {
            RowState::Prepared => {}
            RowState::Committed => self.effects.push((branch, Outcome::Committed)),
            RowState::Aborted if is_by_hand => {}
            RowState::Aborted => self.effects.push((branch, Outcome::Aborted)),
        }
    }

    /// Every branch that was seen in a database.
    #[must_use]
    pub fn branches(&self, resource: ResourceId) -> Vec<BranchId> {
        let of_resource = self.rows.keys().filter(|(one, _)| *one == resource);
        of_resource.map(|(_, branch)| *branch).collect()
    }

    /// An operator is about to roll a prepared branch back in its database.
    pub fn note_hand(&mut self, branch: BranchId) {
        self.by_hand.insert(branch);
    }

    /// Whether one has.
    #[must_use]
    pub fn is_by_hand(&self, branch: BranchId) -> bool {
        self.by_hand.contains(&branch)
    }

    /// The branches that were rolled back by hand.
    pub fn by_hand(&self) -> impl Iterator<Item = BranchId> + '_ {
        self.by_hand.iter().copied()
    }

    /// Somebody who looks at databases saw what must not be.
    pub fn note_violation(&mut self, text: String) {
        self.violations.push(text);
    }

    /// What was seen since the last look.
    pub fn take_violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations)
    }

    /// What the database holds of a branch.
    #[must_use]
    pub fn state(&self, resource: ResourceId, branch: BranchId) -> Option<RowState> {
        self.rows.get(&(resource, branch)).map(|row| row.state)
    }

    /// The prepared branches of one database: its own list (T12).
    #[must_use]
    pub fn in_doubt(&self, resource: ResourceId) -> Vec<(BranchId, Row)> {
        let rows = self
            .rows
            .iter()
            .filter(|((one, _), row)| *one == resource && row.state == RowState::Prepared);
        rows.map(|((_, branch), row)| (*branch, *row)).collect()
    }

    /// Every branch, with what its database holds of it.
    pub fn rows(&self) -> impl Iterator<Item = (ResourceId, BranchId, Row)> {
        self.rows
            .iter()
            .map(|((resource, branch), row)| (*resource, *branch, *row))
    }

    /// Every prepared branch.
    pub fn prepared(&self) -> impl Iterator<Item = (ResourceId, BranchId)> {
        self.rows
            .iter()
            .filter(|(_, row)| row.state == RowState::Prepared)
            .map(|((resource, branch), _)| (*resource, *branch))
    }

    /// How many branches took effect.
    #[must_use]
    pub fn committed_count(&self) -> usize {
        self.rows
            .values()
            .filter(|row| row.state == RowState::Committed)
            .count()
    }

    /// An operator has taken the branch's delivery as settled.
    pub fn note_settled(&mut self, branch: BranchId) {
        self.settled.insert(branch);
    }

    /// Whether an operator has.
    #[must_use]
    pub fn is_settled(&self, branch: BranchId) -> bool {
        self.settled.contains(&branch)
    }

    /// The outcomes applied since the last look.
    pub fn take_effects(&mut self) -> Vec<(BranchId, Outcome)> {
        std::mem::take(&mut self.effects)
    }
}
