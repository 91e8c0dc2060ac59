//! What is unanswered, by transaction, when it is told again, and who waits for the end of it. Part of the deliveries
//! (step 5).

use crate::effects::{Effects, Unsynced};
use crate::random::Random;
use crate::time::Timestamp;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, RequestId, ResourceId, SessionId};
use synod_proto::session::{Outcome, Response};

/// The wait before a branch is told again, at first and at most, in microseconds. Generous at first: a delivery is
/// repeated at once when its database's session comes back, and this timer only serves what was lost on the way.
const REPEAT_US_MIN: u64 = 1_000_000;
/// See [`REPEAT_US_MIN`].
const REPEAT_US_MAX: u64 = 30_000_000;

const _: () = assert!(REPEAT_US_MIN < REPEAT_US_MAX);

#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) call: CallId,
    pub(super) execution: ExecutionId,
    pub(super) resource: ResourceId,
    pub(super) attempts: u32,
    /// `None` while it waits for room in the window or for a session.
    pub(super) told_until: Option<Timestamp>,
    pub(super) hazard: Option<String>,
}

/// A commit of which branches are unanswered. One place for all of them: a transaction has few, and they are told and
/// acknowledged together.
#[derive(Clone, Debug)]
pub(super) struct Unfinished {
    /// The unanswered branches, at least one.
    pub(super) targets: Vec<Target>,
    /// When to look whether one is to be told again: not after any `told_until`. `None` if none is told.
    pub(super) look_at: Option<Timestamp>,
}

impl Unfinished {
    pub(super) fn index_of(&self, branch: BranchId) -> Option<usize> {
        self.targets
            .iter()
            .position(|target| (target.call, target.execution) == (branch.call, branch.execution))
    }
}

impl Target {
    pub(super) fn branch(&self, gtid: Gtid) -> BranchId {
        BranchId {
            gtid,
            call: self.call,
            execution: self.execution,
        }
    }
}

/// When which transaction's branches may have to be told again.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    random: Random,
    due: BTreeSet<(Timestamp, Gtid)>,
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            due: BTreeSet::new(),
        }
    }

    /// Takes the first transaction whose time has come.
    pub(super) fn pop_due(&mut self, now: Timestamp) -> Option<Gtid> {
        let (at, gtid) = self.due.first().copied()?;
        if at > now {
            return None;
        }
        self.due.pop_first();
        Some(gtid)
    }

    /// After a look: when the next one is due, if any branch is told.
    pub(super) fn look_again(&mut self, gtid: Gtid, unfinished: &mut Unfinished) {
        if let Some(next) = unfinished.targets.iter().filter_map(|one| one.told_until).min() {
            self.look_by(gtid, unfinished, next);
        }
    }

    /// The transaction has no unanswered branch any more.
    pub(super) fn forget(&mut self, gtid: Gtid, unfinished: &Unfinished) {
        if let Some(at) = unfinished.look_at {
            self.due.remove(&(at, gtid));
        }
    }

    /// When a branch that is told now is told again. Branches of one transaction share the instant where they can, so
    /// that it is looked at once.
    fn repeat_at(&mut self, unfinished: &Unfinished, attempts: u32, now: Timestamp) -> Timestamp {
        let ceiling = (REPEAT_US_MIN << attempts.min(5)).min(REPEAT_US_MAX);
        let (earliest, latest) = (now.plus(ceiling / 2), now.plus(ceiling));
        unfinished
            .look_at
            .filter(|at| (earliest..=latest).contains(at))
            .unwrap_or_else(|| now.plus(self.random.between(ceiling / 2, ceiling)))
    }

    /// Tells a branch, through the next of its database's sessions, and schedules the repeat.
    pub(super) fn tell(
        &mut self,
        unfinished: &mut Unfinished,
        index: usize,
        branch: BranchId,
        sessions: &[SessionId],
        now: Timestamp,
        effects: &mut Effects<Unsynced>,
    ) {
        let attempts = unfinished.targets[index].attempts.saturating_add(1);
        let at = self.repeat_at(unfinished, attempts, now);
        self.look_by(branch.gtid, unfinished, at);
        let target = &mut unfinished.targets[index];
        let session = sessions[target.attempts as usize % sessions.len()];
        target.attempts = attempts;
        target.told_until = Some(at);
        let response = Response::Deliver {
            branch,
            resource: target.resource,
            outcome: Outcome::Committed,
        };
        effects.tell(session, response);
    }

    /// The transaction is looked at by then.
    fn look_by(&mut self, gtid: Gtid, unfinished: &mut Unfinished, at: Timestamp) {
        if unfinished.look_at.is_some_and(|set| set <= at) {
            return;
        }
        if let Some(later) = unfinished.look_at.replace(at) {
            self.due.remove(&(later, gtid));
        }
        self.due.insert((at, gtid));
    }
}

/// Who waits for one transaction's last acknowledgement, in the order in which they asked: its initiator, and seldom
/// somebody else.
#[derive(Clone, Debug, Hash)]
pub(super) struct Awaiting {
    first: (SessionId, RequestId),
    others: Vec<(SessionId, RequestId)>,
}

impl Awaiting {
    pub(super) fn new(session: SessionId, request: RequestId) -> Self {
        Self {
            first: (session, request),
            others: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, session: SessionId, request: RequestId) {
        self.others.push((session, request));
    }

    pub(super) fn into_all(self) -> impl Iterator<Item = (SessionId, RequestId)> {
        core::iter::once(self.first).chain(self.others)
    }

    /// Whether anybody is left without this session.
    pub(super) fn retain_others_than(&mut self, session: SessionId) -> bool {
        self.others.retain(|(one, _)| *one != session);
        if self.first.0 == session {
            if self.others.is_empty() {
                return false;
            }
            self.first = self.others.remove(0);
        }
        true
    }
}
