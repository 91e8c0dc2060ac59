//! Participants' databases: prepared branches survive their process, outcomes are applied once.

use std::collections::{BTreeMap, BTreeSet};
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
