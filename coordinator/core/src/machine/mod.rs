//! The replicated state machine: a function of the decided values, in order, and of nothing else (traps A2, A3).

pub mod outcomes;
mod records;

use crate::entry::{self, EntryError};
use crate::paxos::Slot;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use bytes::Bytes;
use outcomes::Outcomes;
use synod_proto::command::{Command, Decide, NamedBranch, Settle};
use synod_proto::ids::{Gtid, Lineage, ResourceId, UnixMillis};
use synod_proto::planted;
use synod_proto::session::Decision;

/// The state after a prefix of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Machine {
    applied_up_to: Slot,
    lineage: Option<Lineage>,
    stamp: UnixMillis,
    mark: UnixMillis,
    resources: BTreeSet<ResourceId>,
    outcomes: Outcomes,
}

/// What one command did, for whoever proposed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing to tell.
    Nothing,
    /// A `Decide`: what the register says now, and whether this command was the first.
    Decided {
        /// The transaction.
        gtid: Gtid,
        /// The answer to the proposer.
        decision: Decision,
        /// Whether it made the record.
        first: bool,
        /// The branches that it names, if it is an abort and the first: to be told.
        aborted: Vec<NamedBranch>,
    },
    /// A `Decide` of another coordinator: no change.
    ForeignLineage,
    /// A `Settle`; `false` where the branch is not among the unfinished.
    Settled(Settle, bool),
    /// An `Enrol`.
    Enrolled,
}

impl Machine {
    /// The last slot applied.
    #[must_use]
    pub fn applied_up_to(&self) -> Slot {
        self.applied_up_to
    }

    /// The coordinator's lineage, once a leader has established it.
    #[must_use]
    pub fn lineage(&self) -> Option<Lineage> {
        self.lineage
    }

    /// The highest stamp applied.
    #[must_use]
    pub fn stamp(&self) -> UnixMillis {
        self.stamp
    }

    /// The watermark.
    #[must_use]
    pub fn mark(&self) -> UnixMillis {
        self.mark
    }

    /// Whether the gtid lies below the watermark.
    #[must_use]
    pub fn is_below_mark(&self, gtid: Gtid) -> bool {
        gtid.began_at() < self.mark && !planted!(WatermarkNotChecked)
    }

    /// The outcome register.
    #[must_use]
    pub fn outcomes(&self) -> &Outcomes {
        &self.outcomes
    }

    /// Whether the database was enrolled.
    #[must_use]
    pub fn is_enrolled(&self, resource: ResourceId) -> bool {
        self.resources.contains(&resource)
    }

    /// How many databases are enrolled.
    #[must_use]
    pub fn resource_count(&self) -> usize {
        self.resources.len()
    }

    /// Applies the value of the next slot and returns, for each command, what it did.
    ///
    /// # Errors
    /// The value is not an entry that this program understands; the state is unchanged, and stays so (A8).
    ///
    /// # Panics
    /// `slot` is not the next one: applied is a gap-free prefix.
    pub fn apply(&mut self, slot: Slot, value: &Bytes) -> Result<Vec<Applied>, EntryError> {
        let mut commands = Vec::new();
        self.begin_entry(slot, value, &mut commands)?;
        let applied = commands
            .into_iter()
            .map(|command| self.apply_command(command))
            .collect();
        self.end_entry();
        Ok(applied)
    }

    /// The first of the three parts of [`apply`](Self::apply), for a caller that tells of each command while it applies
    /// them: reads the entry's commands into `commands`, which is empty, and moves the clock and the watermark.
    /// [`apply_command`](Self::apply_command) for each and [`end_entry`](Self::end_entry) follow.
    ///
    /// # Errors
    /// As `apply`: nothing has changed, and `commands` is empty.
    pub(crate) fn begin_entry(
        &mut self,
        slot: Slot,
        value: &Bytes,
        commands: &mut Vec<Command>,
    ) -> Result<(), EntryError> {
        assert_eq!(
            slot,
            self.applied_up_to.next(),
            "slots are applied in order, each once"
        );
        let header = entry::decode_into(value, commands)?;
        self.applied_up_to = slot;
        if let Some(header) = header {
            self.stamp = self.stamp.max(header.stamp);
            self.mark = self.mark.max(header.mark);
        }
        Ok(())
    }

    /// Every command of the entry is applied: what the watermark has passed goes.
    pub(crate) fn end_entry(&mut self) {
        self.outcomes.forget_below(self.mark);
    }

    pub(crate) fn apply_command(&mut self, command: Command) -> Applied {
        match command {
            Command::Noop => Applied::Nothing,
            Command::Establish(lineage) => {
                self.lineage.get_or_insert(lineage);
                Applied::Nothing
            }
            Command::Decide(decide) => self.apply_decide(decide),
            Command::Delivered(gtids) => {
                for gtid in gtids {
                    self.outcomes.finish(gtid);
                }
                Applied::Nothing
            }
            Command::Settle(settle) => {
                let settled = self.outcomes.settle(&settle);
                Applied::Settled(settle, settled)
            }
            Command::Enrol(resources) => {
                self.resources.extend(resources);
                Applied::Enrolled
            }
        }
    }

    /// T9: the record and the mark are looked at here and nowhere else.
    fn apply_decide(&mut self, decide: Decide) -> Applied {
        if Some(decide.lineage) != self.lineage {
            return Applied::ForeignLineage;
        }
        let gtid = decide.gtid;
        let is_below_mark = self.is_below_mark(gtid);
        let outcomes::Decided {
            decision,
            first,
            aborted,
        } = self
            .outcomes
            .decide(gtid, decide.proposal, self.stamp, is_below_mark);
        Applied::Decided {
            gtid,
            decision,
            first,
            aborted,
        }
    }
}
