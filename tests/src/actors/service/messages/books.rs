//! What checkers know of messages, beside the tables.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use synod_proto::ids::{BranchId, MessageId, Position, ResourceId};

/// What a message meets at its consumers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is applied.
    Fine,
    /// Its handler locks an account besides, which a branch in doubt may hold.
    Locks(u32),
    /// The handler fails so many times.
    Fails(u32),
    /// The handler panics so many times.
    Panics(u32),
    /// The handler hangs so many times.
    Hangs(u32),
    /// The handler fails until it is mended.
    Poison,
}

/// A message that somebody wanted to publish, whatever became of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) source: ResourceId,
    /// The branch that publishes it, if one does.
    pub(super) branch: Option<BranchId>,
    pub(super) fate: Fate,
}

/// A handler has been given a message.
#[derive(Clone, Copy, Debug)]
pub struct Handled {
    /// Where it was published.
    pub source: ResourceId,
    /// The branch that published it, if one did.
    pub branch: Option<BranchId>,
    /// The message.
    pub id: MessageId,
}

/// See the module.
#[derive(Debug, Default)]
pub struct MessageBooks {
    pub(super) planned: BTreeMap<MessageId, Planned>,
    /// Branches whose work wanted to publish.
    pub(super) branches: BTreeSet<BranchId>,
    /// How often a handler of a consumer was given a message.
    pub(super) attempts: BTreeMap<(MessageId, String), u32>,
    /// At which positions messages were met: what an operator can name.
    pub(super) positions: BTreeMap<(ResourceId, String, Position), MessageId>,
    /// Messages whose handlers were mended, by consumer.
    mended: Vec<(MessageId, String)>,
    /// What was handled since the last look.
    pub handled: Vec<Handled>,
    /// How often things happened that a set of runs should not be without.
    pub counts: BTreeMap<&'static str, u64>,
    /// What no run may bring about.
    pub violations: Vec<String>,
}

/// Shared by the services of one world and the checker.
pub type SharedMessageBooks = Rc<RefCell<MessageBooks>>;

impl MessageBooks {
    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Whether the branch's work wanted to publish.
    pub(super) fn has_published(&self, branch: BranchId) -> bool {
        self.branches.contains(&branch)
    }

    pub(super) fn mend(&mut self, source: ResourceId, consumer: &str, position: Position) {
        let found = self.positions.get(&(source, consumer.to_string(), position));
        if let Some(id) = found {
            self.mended.push((*id, consumer.to_string()));
        }
    }

    pub(super) fn is_mended(&self, id: MessageId, consumer: &str) -> bool {
        self.mended
            .iter()
            .any(|(one, name)| *one == id && name == consumer)
    }
}
