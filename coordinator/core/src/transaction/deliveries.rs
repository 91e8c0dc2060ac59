//! Delivery: every branch of a commit is told, again and again, until it acknowledges (step 5).
//!
//! A branch is told through any session that registered its database, since any instance that reaches the database can
//! finish the branch (traps C9); repeats go round the sessions. Per database a bounded number of branches is under way,
//! so that a participant that comes back to a long list is not flooded; branches that were told often without an answer
//! no longer count against that bound, so that one stuck branch never holds up others (traps B19, B20).

mod unfinished;

use crate::effects::{Effects, Unsynced};
use crate::time::Timestamp;
use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use synod_proto::command::NamedBranch;
use synod_proto::ids::{BranchId, Gtid, RequestId, ResourceId, SessionId, UnixMillis};
use synod_proto::limits::LOW_WATER_COUNT_MAX;
use synod_proto::planted;
use synod_proto::session::{DeliveryStatus, Outcome, Response};
use unfinished::{Awaiting, Schedule, Target, Unfinished};

/// Branches of one database that are told and unanswered, at most.
const WINDOW_BRANCHES: usize = 1024;

/// After so many unanswered deliveries a branch no longer counts against the window.
const STUCK_AFTER_ATTEMPTS: u32 = 3;

/// Whose word ends the delivery to a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FinishedBy {
    /// This database acknowledged. Another one's word on the branch counts for nothing (T11).
    Database(ResourceId),
    /// An operator took it as settled.
    Operator,
}

#[derive(Clone, Debug, Default, Hash)]
struct Resource {
    sessions: Vec<SessionId>,
    waiting: BTreeSet<BranchId>,
    /// Told, unanswered, and not stuck.
    window: BTreeSet<BranchId>,
    /// Told often, or under a hazard: no longer counted against the window.
    stuck: BTreeSet<BranchId>,
    /// The highest low-water mark that it was told.
    low_water: UnixMillis,
}

impl Resource {
    /// Whether one more branch may be told.
    fn has_room(&self) -> bool {
        !self.sessions.is_empty() && self.window.len() < WINDOW_BRANCHES
    }

    /// Takes a branch out of the window, if it is there.
    fn note_stuck(&mut self, branch: BranchId) {
        if self.window.remove(&branch) {
            self.stuck.insert(branch);
        }
    }
}

/// The leader's deliveries.
#[derive(Clone, Debug)]
pub(crate) struct Deliveries {
    unfinished: BTreeMap<Gtid, Unfinished>,
    resources: BTreeMap<ResourceId, Resource>,
    sessions: BTreeMap<SessionId, BTreeSet<ResourceId>>,
    schedule: Schedule,
    awaiting: BTreeMap<Gtid, Awaiting>,
}

/// For checkers: without the instants and the spread of the repeats, which say when a branch is told and never what.
/// Attempts count up to where they stop to matter.
impl Hash for Deliveries {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            unfinished,
            resources,
            sessions,
            schedule: _,
            awaiting,
        } = self;
        for (gtid, Unfinished { targets, look_at: _ }) in unfinished {
            (gtid, targets.len()).hash(state);
            for Target {
                call,
                execution,
                resource,
                attempts,
                told_until,
                hazard,
            } in targets
            {
                let is_told = told_until.is_some();
                let attempts = (*attempts).min(STUCK_AFTER_ATTEMPTS);
                (call, execution, resource, attempts, is_told, hazard).hash(state);
            }
        }
        (unfinished.len(), resources, sessions, awaiting).hash(state);
    }
}

impl Deliveries {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            unfinished: BTreeMap::new(),
            resources: BTreeMap::new(),
            sessions: BTreeMap::new(),
            schedule: Schedule::new(seed),
            awaiting: BTreeMap::new(),
        }
    }

    /// The session delivers to these databases from now on. What waits for them goes out.
    pub(crate) fn register(
        &mut self,
        session: SessionId,
        resources: &[ResourceId],
        now: Timestamp,
        effects: &mut Effects<Unsynced>,
    ) {
        let known = self.sessions.entry(session).or_default();
        let mut fresh = Vec::new();
        for resource in resources {
            if known.insert(*resource) {
                fresh.push(*resource);
            }
        }
        for id in fresh {
            let resource = self.resources.entry(id).or_default();
            resource.sessions.push(session);
            // Whatever was told to a former session of this database may be lost with it.
            let told: Vec<BranchId> = resource.window.iter().chain(&resource.stuck).copied().collect();
            for branch in told {
                if let Some(target) = self.target_mut(branch) {
                    target.told_until = None;
                }
                self.tell(branch, now, effects);
            }
            self.fill_window(id, now, effects);
        }
    }

    pub(crate) fn close_session(&mut self, session: SessionId) {
        for id in self.sessions.remove(&session).unwrap_or_default() {
            if let Some(resource) = self.resources.get_mut(&id) {
                resource.sessions.retain(|one| *one != session);
            }
        }
        self.awaiting
            .retain(|_, awaiting| awaiting.retain_others_than(session));
    }

    /// A commit whose branches are to be told.
    pub(crate) fn add<'a>(
        &mut self,
        gtid: Gtid,
        branches: impl Iterator<Item = &'a NamedBranch>,
        now: Timestamp,
        effects: &mut Effects<Unsynced>,
    ) {
        let targets: Vec<Target> = branches
            .map(|named| Target {
                call: named.call,
                execution: named.execution,
                resource: named.resource,
                attempts: 0,
                told_until: None,
                hazard: None,
            })
            .collect();
        if targets.is_empty() {
            return;
        }
        let count = targets.len();
        let unfinished = Unfinished {
            targets,
            look_at: None,
        };
        let replaced = self.unfinished.insert(gtid, unfinished);
        assert!(
            replaced.is_none() || planted!(SecondOutcomeOverwrites),
            "a leader takes up a commit once"
        );
        for index in 0..count {
            // Nothing finishes meanwhile, so every index stays.
            let Some(unfinished) = self.unfinished.get_mut(&gtid) else {
                return;
            };
            let target = &unfinished.targets[index];
            let (branch, id) = (target.branch(gtid), target.resource);
            let resource = self.resources.entry(id).or_default();
            // The common case first: nothing waits, and the branch goes out at once.
            if resource.has_room() && resource.waiting.is_empty() {
                resource.window.insert(branch);
                self.schedule
                    .tell(unfinished, index, branch, &resource.sessions, now, effects);
            } else {
                resource.waiting.insert(branch);
                self.fill_window(id, now, effects);
            }
        }
    }

    /// T6: an abort is told once, best effort; inquiries do the rest.
    pub(crate) fn tell_abort(
        &mut self,
        gtid: Gtid,
        branches: &[NamedBranch],
        effects: &mut Effects<Unsynced>,
    ) {
        for named in branches {
            let Some(session) = self
                .resources
                .get(&named.resource)
                .and_then(|one| one.sessions.first())
            else {
                continue;
            };
            let branch = BranchId {
                gtid,
                call: named.call,
                execution: named.execution,
            };
            let response = Response::Deliver {
                branch,
                resource: named.resource,
                outcome: Outcome::Aborted,
            };
            effects.tell(*session, response);
        }
    }

    /// The branch has acknowledged, or an operator took it as settled. Returns `None` if it was not under way, or not to
    /// this database; else whether it was the last of its transaction.
    pub(crate) fn finish(
        &mut self,
        branch: BranchId,
        by: FinishedBy,
        now: Timestamp,
        effects: &mut Effects<Unsynced>,
    ) -> Option<bool> {
        let gtid = branch.gtid;
        let Entry::Occupied(mut entry) = self.unfinished.entry(gtid) else {
            return None;
        };
        let unfinished = entry.get_mut();
        let index = unfinished.index_of(branch)?;
        let id = unfinished.targets[index].resource;
        if by != FinishedBy::Operator && by != FinishedBy::Database(id) {
            return None;
        }
        unfinished.targets.remove(index);
        let is_last = unfinished.targets.is_empty();
        if is_last {
            self.schedule.forget(gtid, unfinished);
            entry.remove();
        }
        if let Some(resource) = self.resources.get_mut(&id) {
            if !resource.window.remove(&branch) && !resource.stuck.remove(&branch) {
                resource.waiting.remove(&branch);
            }
            if !resource.waiting.is_empty() {
                self.fill_window(id, now, effects);
            }
        }
        if !is_last && !planted!(DeliveryForgottenEarly) {
            return Some(false);
        }
        if let Some(awaiting) = self.awaiting.remove(&gtid) {
            for (session, request) in awaiting.into_all() {
                effects.tell(session, Response::Delivered { request, gtid });
            }
        }
        Some(true)
    }

    /// A participant found that its store lost or settled the branch (T8). Told again all the same, slowly: an operator
    /// may restore the store. Returns whether the branch is under way to this database and this is news.
    pub(crate) fn note_hazard(&mut self, branch: BranchId, id: ResourceId, text: String) -> Option<bool> {
        let target = self.target_mut(branch).filter(|target| target.resource == id)?;
        target.attempts = target.attempts.max(STUCK_AFTER_ATTEMPTS);
        let is_news = target.hazard.as_ref() != Some(&text);
        target.hazard = Some(text);
        if let Some(resource) = self.resources.get_mut(&id) {
            resource.note_stuck(branch);
        }
        Some(is_news)
    }

    /// Adds a session that wants to hear of the last acknowledgement.
    pub(crate) fn await_delivery(&mut self, gtid: Gtid, session: SessionId, request: RequestId) {
        match self.awaiting.entry(gtid) {
            Entry::Vacant(vacant) => {
                vacant.insert(Awaiting::new(session, request));
            }
            Entry::Occupied(mut occupied) => occupied.get_mut().push(session, request),
        }
    }

    /// Tells again what has waited long enough.
    pub(crate) fn repeat_due(&mut self, now: Timestamp, effects: &mut Effects<Unsynced>) {
        while !planted!(DeliveryToldOnce)
            && let Some(gtid) = self.schedule.pop_due(now)
        {
            for (branch, id, attempts) in self.take_late(gtid, now) {
                if attempts >= STUCK_AFTER_ATTEMPTS
                    && let Some(resource) = self.resources.get_mut(&id)
                {
                    resource.note_stuck(branch);
                }
                self.tell(branch, now, effects);
                self.fill_window(id, now, effects);
            }
            if let Some(unfinished) = self.unfinished.get_mut(&gtid) {
                self.schedule.look_again(gtid, unfinished);
            }
        }
    }

    /// The branches of a transaction whose answer is late. They count as untold from here on, and the transaction is
    /// looked at by no instant.
    fn take_late(&mut self, gtid: Gtid, now: Timestamp) -> Vec<(BranchId, ResourceId, u32)> {
        let Some(unfinished) = self.unfinished.get_mut(&gtid) else {
            return Vec::new();
        };
        unfinished.look_at = None;
        unfinished
            .targets
            .iter_mut()
            .filter(|target| target.told_until.is_some_and(|at| at <= now))
            .map(|target| {
                target.told_until = None;
                (target.branch(gtid), target.resource, target.attempts)
            })
            .collect()
    }

    /// T13: tells each reachable database up to where it may delete its proofs, except for the commits listed.
    /// `unfinished` are the commits below the mark, as the log has them, each with the databases that it names.
    pub(crate) fn tell_low_water<'a>(
        &mut self,
        mark: UnixMillis,
        unfinished: impl Iterator<Item = (Gtid, &'a [NamedBranch])>,
        effects: &mut Effects<Unsynced>,
    ) {
        let mut listed: BTreeMap<ResourceId, Vec<Gtid>> = BTreeMap::new();
        for (gtid, branches) in unfinished {
            for named in branches {
                let gtids = listed.entry(named.resource).or_default();
                if gtids.last() != Some(&gtid) {
                    gtids.push(gtid);
                }
            }
        }
        for (id, resource) in &mut self.resources {
            let unfinished = listed.remove(id).unwrap_or_default();
            let Some(session) = resource.sessions.first() else {
                continue;
            };
            if resource.low_water < mark && unfinished.len() <= LOW_WATER_COUNT_MAX {
                resource.low_water = mark;
                effects.tell(
                    *session,
                    Response::LowWater {
                        resource: *id,
                        mark,
                        unfinished,
                    },
                );
            }
        }
    }

    pub(crate) fn status(&self, branch: BranchId) -> DeliveryStatus {
        match self.target(branch) {
            None => DeliveryStatus::Acknowledged,
            Some(Target {
                hazard: Some(text), ..
            }) => DeliveryStatus::Hazard(text.clone()),
            Some(_) => DeliveryStatus::Pending,
        }
    }

    pub(crate) fn is_open(&self, gtid: Gtid) -> bool {
        self.unfinished.contains_key(&gtid)
    }

    pub(crate) fn hazard_count(&self) -> usize {
        self.unfinished
            .values()
            .flat_map(|unfinished| &unfinished.targets)
            .filter(|target| target.hazard.is_some())
            .count()
    }

    pub(crate) fn session_count(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        self.sessions.keys().copied().collect()
    }

    pub(crate) fn take_awaiting(&mut self) -> Vec<(SessionId, RequestId)> {
        core::mem::take(&mut self.awaiting)
            .into_values()
            .flat_map(Awaiting::into_all)
            .collect()
    }

    fn fill_window(&mut self, id: ResourceId, now: Timestamp, effects: &mut Effects<Unsynced>) {
        loop {
            let Some(resource) = self.resources.get_mut(&id) else {
                return;
            };
            if !resource.has_room() {
                return;
            }
            let Some(branch) = resource.waiting.pop_first() else {
                return;
            };
            resource.window.insert(branch);
            self.tell(branch, now, effects);
        }
    }

    /// Tells a branch and schedules the repeat; without a session it waits for one.
    fn tell(&mut self, branch: BranchId, now: Timestamp, effects: &mut Effects<Unsynced>) {
        let Some(unfinished) = self.unfinished.get_mut(&branch.gtid) else {
            return;
        };
        let Some(index) = unfinished.index_of(branch) else {
            return;
        };
        let Some(resource) = self.resources.get_mut(&unfinished.targets[index].resource) else {
            return;
        };
        if resource.sessions.is_empty() {
            resource.window.remove(&branch);
            resource.stuck.remove(&branch);
            resource.waiting.insert(branch);
            return;
        }
        self.schedule
            .tell(unfinished, index, branch, &resource.sessions, now, effects);
    }

    fn target(&self, branch: BranchId) -> Option<&Target> {
        let unfinished = self.unfinished.get(&branch.gtid)?;
        unfinished.targets.get(unfinished.index_of(branch)?)
    }

    fn target_mut(&mut self, branch: BranchId) -> Option<&mut Target> {
        let unfinished = self.unfinished.get_mut(&branch.gtid)?;
        let index = unfinished.index_of(branch)?;
        unfinished.targets.get_mut(index)
    }
}
