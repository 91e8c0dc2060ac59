//! The outcome register: a write-once cell per gtid (T9), the heart of the coordinator.
//!
//! Invariant: a record never changes its outcome or its branches. It moves from *unfinished* (a commit with an
//! unacknowledged branch: kept for ever) to *finished*, and leaves when the watermark has passed its gtid; or to *settled*,
//! on an operator's word (traps J7), and stays.

use super::records::Records;
use alloc::borrow::Cow;
use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::command::{NamedBranch, Proposal, Settle};
use synod_proto::ids::{CallId, ExecutionId, Gtid, UnixMillis};
use synod_proto::planted;
use synod_proto::session::{AbortCause, Answer, Decision, OpenBranch};

/// What the log says of one gtid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// The outcome.
    pub verdict: Verdict,
    /// The stamp of the entry that decided it.
    pub decided_at: UnixMillis,
}

/// An outcome with what it needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Committed: exactly these branches.
    Committed {
        /// The branches, in the order of (call, execution).
        branches: Vec<NamedBranch>,
        /// How many more voted read-only.
        read_only_count: u32,
        /// Branches that an operator took as settled.
        settled: BTreeSet<(CallId, ExecutionId)>,
    },
    /// Aborted.
    Aborted(AbortCause),
}

impl Record {
    /// How many branches it names.
    #[must_use]
    pub fn branch_count(&self) -> usize {
        match &self.verdict {
            Verdict::Committed { branches, .. } => branches.len(),
            Verdict::Aborted(_) => 0,
        }
    }

    /// Whether an operator took a branch of it as settled: such a record is never forgotten (traps J7).
    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(&self.verdict, Verdict::Committed { settled, .. } if !settled.is_empty())
    }

    /// What a proposer is told: the log's outcome, whatever was proposed (T5, traps B4, B7).
    #[must_use]
    pub fn decision_for(&self, proposal: &Proposal) -> Decision {
        match (&self.verdict, proposal) {
            (Verdict::Aborted(cause), _) => Decision::Aborted(cause.clone()),
            (Verdict::Committed { .. }, Proposal::Abort { .. }) => Decision::Committed,
            (
                Verdict::Committed {
                    branches,
                    read_only_count,
                    ..
                },
                Proposal::Commit {
                    branches: proposed,
                    read_only_count: proposed_count,
                },
            ) => {
                let is_the_same = branches == proposed && read_only_count == proposed_count;
                if is_the_same || planted!(MismatchToldCommitted) {
                    Decision::Committed
                } else {
                    Decision::Mismatch
                }
            }
        }
    }

    /// The same for a commit that had open branches prepared (T3): it is the recorded one if every branch that had voted is
    /// named as it was proposed, every other named branch is one of the open ones, and all others voted read-only.
    #[must_use]
    pub fn decision_for_open(&self, proposal: &Proposal, open: &[OpenBranch]) -> Decision {
        let (
            Verdict::Committed {
                branches,
                read_only_count,
                ..
            },
            Proposal::Commit {
                branches: voted,
                read_only_count: voted_count,
            },
        ) = (&self.verdict, proposal)
        else {
            return self.decision_for(proposal);
        };
        let is_named = |named: &NamedBranch| {
            open.iter().any(|open| {
                (open.call, open.execution, open.resource) == (named.call, named.execution, named.resource)
            })
        };
        let (known, prepared): (Vec<&NamedBranch>, Vec<&NamedBranch>) =
            branches.iter().partition(|named| voted.contains(named));
        let is_same = known.len() == voted.len()
            && prepared.iter().all(|named| is_named(named))
            && usize::try_from(*read_only_count).ok()
                == usize::try_from(*voted_count)
                    .ok()
                    .map(|count| count + open.len().saturating_sub(prepared.len()));
        if is_same {
            Decision::Committed
        } else {
            Decision::Mismatch
        }
    }

    /// What an inquiring branch is told: Committed only if the record names it (T5).
    #[must_use]
    pub fn answer_for(&self, call: CallId, execution: ExecutionId) -> Answer {
        match &self.verdict {
            Verdict::Committed { branches, .. }
                if branches
                    .iter()
                    .any(|branch| (branch.call, branch.execution) == (call, execution))
                    || planted!(AnsweredPerGtid) =>
            {
                Answer::Committed
            }
            _ => Answer::Aborted,
        }
    }
}

/// What a proposal came to.
pub(super) struct Decided {
    /// The answer to the proposer.
    pub(super) decision: Decision,
    /// Whether it made the record.
    pub(super) first: bool,
    /// The branches to tell of an abort that did.
    pub(super) aborted: Vec<NamedBranch>,
}

/// The register.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Outcomes {
    unfinished: BTreeMap<Gtid, Record>,
    finished: Records,
    /// Commits of which a branch is done with only by an operator's word. No branch of them is delivered any more, and
    /// none is forgotten: a branch whose database comes back after all must be told Committed, however late (T9).
    settled: BTreeMap<Gtid, Record>,
}

impl Outcomes {
    /// The record of a gtid. A finished one is unpacked for it.
    #[must_use]
    pub fn record(&self, gtid: Gtid) -> Option<Cow<'_, Record>> {
        let whole = || self.unfinished.get(&gtid).or_else(|| self.settled.get(&gtid));
        let packed = || self.finished.get(gtid).map(Cow::Owned);
        whole().map(Cow::Borrowed).or_else(packed)
    }

    /// The branches of an unfinished commit.
    pub(crate) fn unfinished_branches(&self, gtid: Gtid) -> &[NamedBranch] {
        match self.unfinished.get(&gtid).map(|record| &record.verdict) {
            Some(Verdict::Committed { branches, .. }) => branches,
            _ => &[],
        }
    }

    /// Commits with an unacknowledged branch, in the order of their gtids.
    pub fn unfinished(&self) -> impl Iterator<Item = (Gtid, &Record)> {
        self.unfinished.iter().map(|(gtid, record)| (*gtid, record))
    }

    /// Those above `after`.
    pub fn unfinished_above(&self, after: Option<Gtid>) -> impl Iterator<Item = (Gtid, &Record)> {
        use core::ops::Bound::{Excluded, Unbounded};
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        self.unfinished.range(range).map(|(gtid, record)| (*gtid, record))
    }

    /// Whether the gtid is a commit with an unacknowledged branch.
    #[must_use]
    pub fn is_unfinished(&self, gtid: Gtid) -> bool {
        self.unfinished.contains_key(&gtid)
    }

    /// Every record above `after`, at most `count_max`, in the order of their gtids; merged, since the maps are each in
    /// that order.
    #[must_use]
    pub fn page(
        &self,
        after: Option<Gtid>,
        unfinished_only: bool,
        count_max: usize,
    ) -> Vec<(Gtid, Cow<'_, Record>)> {
        use core::ops::Bound::{Excluded, Unbounded};
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        let mut page: Vec<_> = self
            .unfinished
            .range(range)
            .take(count_max)
            .map(borrowed)
            .collect();
        if !unfinished_only {
            let finished = self.finished.above(after).take(count_max);
            page.extend(finished.map(|(gtid, record)| (gtid, Cow::Owned(record))));
            page.extend(self.settled.range(range).take(count_max).map(borrowed));
            page.sort_by_key(|(gtid, _)| *gtid);
            page.truncate(count_max);
        }
        page
    }

    /// How many records there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.unfinished.len() + self.finished.count() + self.settled.len()
    }

    /// How many of them are unfinished.
    #[must_use]
    pub fn unfinished_count(&self) -> usize {
        self.unfinished.len()
    }

    /// The gtid of the oldest finished record: what the watermark would free next.
    #[must_use]
    pub fn oldest_finished(&self) -> Option<Gtid> {
        self.finished.first()
    }

    /// T9: the record first, the mark second; only then the proposal makes the record.
    pub(super) fn decide(
        &mut self,
        gtid: Gtid,
        proposal: Proposal,
        decided_at: UnixMillis,
        is_below_mark: bool,
    ) -> Decided {
        let unfinished = self.unfinished.entry(gtid);
        let known = match &unfinished {
            Entry::Occupied(entry) => Some(entry.get().decision_for(&proposal)),
            Entry::Vacant(_) => {
                let finished = self.finished.get(gtid);
                let record = finished.as_ref().or_else(|| self.settled.get(&gtid));
                record.map(|record| record.decision_for(&proposal))
            }
        };
        let known = known.filter(|_| !planted!(SecondOutcomeOverwrites));
        if let Some(decision) = known.or(is_below_mark.then_some(Decision::Expired)) {
            return Decided {
                decision,
                first: false,
                aborted: Vec::new(),
            };
        }
        let (verdict, decision, aborted) = match proposal {
            Proposal::Commit {
                mut branches,
                read_only_count,
            } => {
                branches.iter_mut().for_each(detach);
                let settled = BTreeSet::new();
                let verdict = Verdict::Committed {
                    branches,
                    read_only_count,
                    settled,
                };
                (verdict, Decision::Committed, Vec::new())
            }
            Proposal::Abort { cause, branches } => (
                Verdict::Aborted(cause.clone()),
                Decision::Aborted(cause),
                branches,
            ),
        };
        let awaits_delivery = matches!(&verdict, Verdict::Committed { branches, .. } if !branches.is_empty());
        let record = Record { verdict, decided_at };
        if awaits_delivery {
            unfinished.insert_entry(record);
        } else {
            let is_new = self.finished.insert(gtid, record);
            assert!(
                is_new || planted!(SecondOutcomeOverwrites),
                "a record is written once"
            );
        }
        Decided {
            decision,
            first: true,
            aborted,
        }
    }

    /// Every named branch has acknowledged, or an operator took it as settled. Repeated, or for a record that is gone: no
    /// change (traps B11).
    pub(super) fn finish(&mut self, gtid: Gtid) {
        if let Some(record) = self.unfinished.remove(&gtid) {
            if record.is_settled() {
                self.settled.insert(gtid, record);
            } else {
                self.finished.insert(gtid, record);
            }
        }
    }

    /// An operator takes one branch as settled. Returns whether the branch is settled now: it was among the unfinished,
    /// or the same was said before and the answer got lost (traps B8). The record finishes through `Delivered` like any
    /// other, once the leader knows of no branch left to tell.
    pub(super) fn settle(&mut self, settle: &Settle) -> bool {
        let key = (settle.call, settle.execution);
        if let Some(Record {
            verdict: Verdict::Committed { settled, .. },
            ..
        }) = self.settled.get(&settle.gtid)
        {
            return settled.contains(&key);
        }
        let Some(Record {
            verdict: Verdict::Committed {
                branches, settled, ..
            },
            ..
        }) = self.unfinished.get_mut(&settle.gtid)
        else {
            return false;
        };
        let is_named = branches
            .iter()
            .any(|branch| (branch.call, branch.execution) == key);
        if is_named {
            settled.insert(key);
        }
        is_named
    }

    /// Drops finished records below the watermark (T9). Commits with an unacknowledged branch stay, however old (traps
    /// B10): those that are still delivered, and those that an operator settled.
    pub(super) fn forget_below(&mut self, mark: UnixMillis) {
        self.finished.forget_below(mark);
        if planted!(UnfinishedForgotten) {
            self.unfinished.retain(|gtid, _| gtid.began_at() >= mark);
        }
    }
}

/// Takes the branch's hold off the log entry that it was decoded from: a record may outlive its entry by far.
fn detach(branch: &mut NamedBranch) {
    if !branch.database_transaction.is_empty() {
        branch.database_transaction = Bytes::copy_from_slice(&branch.database_transaction);
    }
}

fn borrowed<'a>((gtid, record): (&Gtid, &'a Record)) -> (Gtid, Cow<'a, Record>) {
    (*gtid, Cow::Borrowed(record))
}
