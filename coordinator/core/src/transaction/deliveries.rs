//! Delivery: every branch of a commit is told, again and again, until it acknowledges (step 5).
//!
//! A branch is told through any session that registered its database, since any instance that reaches the database can
//! finish the branch (traps C9); repeats go round the sessions. Per database a bounded number of branches is under way,
//! so that a participant that comes back to a long list is not flooded; branches that were told often without an answer
//! no longer count against that bound, so that one stuck branch never holds up others (traps B19, B20).

use crate::effects::{Effects, Unsynced};
use crate::random::Random;
use crate::time::Timestamp;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use synod_proto::command::NamedBranch;
use synod_proto::ids::{BranchId, Gtid, RequestId, ResourceId, SessionId, UnixMillis};
use synod_proto::limits::LOW_WATER_COUNT_MAX;
use synod_proto::planted;
use synod_proto::session::{DeliveryStatus, Outcome, Response};

/// Branches of one database that are told and unanswered, at most.
const WINDOW_BRANCHES: usize = 1024;

/// The wait before a branch is told again, at first and at most, in microseconds. Generous at first: a delivery is
/// repeated at once when its database's session comes back, and this timer only serves what was lost on the way.
const REPEAT_US_MIN: u64 = 1_000_000;
/// See [`REPEAT_US_MIN`].
const REPEAT_US_MAX: u64 = 30_000_000;

/// After so many unanswered deliveries a branch no longer counts against the window.
const STUCK_AFTER_ATTEMPTS: u32 = 3;

const _: () = assert!(REPEAT_US_MIN < REPEAT_US_MAX);

#[derive(Clone, Debug)]
struct Target {
    resource: ResourceId,
    attempts: u32,
    /// `None` while it waits for room in the window or for a session.
    told_until: Option<Timestamp>,
    hazard: Option<String>,
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
    random: Random,
    targets: BTreeMap<BranchId, Target>,
    /// How many branches of each unfinished transaction are unanswered.
    open: BTreeMap<Gtid, usize>,
    resources: BTreeMap<ResourceId, Resource>,
    sessions: BTreeMap<SessionId, BTreeSet<ResourceId>>,
    due: BTreeSet<(Timestamp, BranchId)>,
    awaiting: BTreeMap<Gtid, Vec<(SessionId, RequestId)>>,
}

/// For checkers: without the instants and the spread of the repeats, which say when a branch is told and never what.
/// Attempts count up to where they stop to matter.
impl Hash for Deliveries {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            random: _,
            targets,
            open,
            resources,
            sessions,
            due: _,
            awaiting,
        } = self;
        for (
            branch,
            Target {
                resource,
                attempts,
                told_until,
                hazard,
            },
        ) in targets
        {
            let is_told = told_until.is_some();
            (
                branch,
                resource,
                (*attempts).min(STUCK_AFTER_ATTEMPTS),
                is_told,
                hazard,
            )
                .hash(state);
        }
        (targets.len(), open, resources, sessions, awaiting).hash(state);
    }
}

impl Deliveries {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            targets: BTreeMap::new(),
            open: BTreeMap::new(),
            resources: BTreeMap::new(),
            sessions: BTreeMap::new(),
            due: BTreeSet::new(),
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
                self.unschedule(branch);
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
        for waiting in self.awaiting.values_mut() {
            waiting.retain(|(one, _)| *one != session);
        }
    }

    /// A commit whose branches are to be told.
    pub(crate) fn add<'a>(
        &mut self,
        gtid: Gtid,
        branches: impl Iterator<Item = &'a NamedBranch>,
        now: Timestamp,
        effects: &mut Effects<Unsynced>,
    ) {
        let mut count = 0;
        for named in branches {
            let branch = BranchId {
                gtid,
                call: named.call,
                execution: named.execution,
            };
            let target = Target {
                resource: named.resource,
                attempts: 0,
                told_until: None,
                hazard: None,
            };
            self.targets.insert(branch, target);
            count += 1;
            let resource = self.resources.entry(named.resource).or_default();
            // The common case first: nothing waits, and the branch goes out at once.
            if resource.has_room() && resource.waiting.is_empty() {
                resource.window.insert(branch);
                self.tell(branch, now, effects);
            } else {
                resource.waiting.insert(branch);
                self.fill_window(named.resource, now, effects);
            }
        }
        if count > 0 {
            self.open.insert(gtid, count);
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

    /// The branch has acknowledged, or an operator took it as settled. Returns `None` if it was not under way, else
    /// whether it was the last of its transaction.
    pub(crate) fn finish(
        &mut self,
        branch: BranchId,
        now: Timestamp,
        effects: &mut Effects<Unsynced>,
    ) -> Option<bool> {
        let target = self.targets.remove(&branch)?;
        if let Some(at) = target.told_until {
            self.due.remove(&(at, branch));
        }
        if let Some(resource) = self.resources.get_mut(&target.resource)
            && !resource.window.remove(&branch)
            && !resource.stuck.remove(&branch)
        {
            resource.waiting.remove(&branch);
        }
        self.fill_window(target.resource, now, effects);
        let open = self.open.get_mut(&branch.gtid)?;
        *open -= 1;
        if *open > 0 && !planted!(DeliveryForgottenEarly) {
            return Some(false);
        }
        self.open.remove(&branch.gtid);
        for (session, request) in self.awaiting.remove(&branch.gtid).unwrap_or_default() {
            effects.tell(
                session,
                Response::Delivered {
                    request,
                    gtid: branch.gtid,
                },
            );
        }
        Some(true)
    }

    /// A participant found that its store lost or settled the branch (T8). Told again all the same, slowly: an operator
    /// may restore the store. Returns whether the branch is under way and this is news.
    pub(crate) fn note_hazard(&mut self, branch: BranchId, text: String) -> Option<bool> {
        let target = self.targets.get_mut(&branch)?;
        target.attempts = target.attempts.max(STUCK_AFTER_ATTEMPTS);
        let is_news = target.hazard.as_ref() != Some(&text);
        target.hazard = Some(text);
        if let Some(resource) = self.resources.get_mut(&target.resource) {
            resource.note_stuck(branch);
        }
        Some(is_news)
    }

    /// Adds a session that wants to hear of the last acknowledgement.
    pub(crate) fn await_delivery(&mut self, gtid: Gtid, session: SessionId, request: RequestId) {
        self.awaiting.entry(gtid).or_default().push((session, request));
    }

    /// Tells again what has waited long enough.
    pub(crate) fn repeat_due(&mut self, now: Timestamp, effects: &mut Effects<Unsynced>) {
        while let Some((at, branch)) = self.due.first().copied() {
            if at > now || planted!(DeliveryToldOnce) {
                break;
            }
            self.unschedule(branch);
            let Some(target) = self.targets.get(&branch) else {
                continue;
            };
            let id = target.resource;
            if target.attempts >= STUCK_AFTER_ATTEMPTS
                && let Some(resource) = self.resources.get_mut(&id)
            {
                resource.note_stuck(branch);
            }
            self.tell(branch, now, effects);
            self.fill_window(id, now, effects);
        }
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
        match self.targets.get(&branch) {
            None => DeliveryStatus::Acknowledged,
            Some(Target {
                hazard: Some(text), ..
            }) => DeliveryStatus::Hazard(text.clone()),
            Some(_) => DeliveryStatus::Pending,
        }
    }

    /// Whether the branch is being delivered to this database. Another one's word on it counts for nothing (T11).
    pub(crate) fn is_delivered_to(&self, branch: BranchId, resource: ResourceId) -> bool {
        self.targets
            .get(&branch)
            .is_some_and(|target| target.resource == resource)
    }

    pub(crate) fn is_open(&self, gtid: Gtid) -> bool {
        self.open.contains_key(&gtid)
    }

    pub(crate) fn hazard_count(&self) -> usize {
        self.targets
            .values()
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
            .flatten()
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
        let Some(target) = self.targets.get_mut(&branch) else {
            return;
        };
        let Some(resource) = self.resources.get_mut(&target.resource) else {
            return;
        };
        if resource.sessions.is_empty() {
            resource.window.remove(&branch);
            resource.stuck.remove(&branch);
            resource.waiting.insert(branch);
            return;
        }
        let session = resource.sessions[target.attempts as usize % resource.sessions.len()];
        target.attempts = target.attempts.saturating_add(1);
        let ceiling = (REPEAT_US_MIN << target.attempts.min(5)).min(REPEAT_US_MAX);
        let at = now.plus(self.random.between(ceiling / 2, ceiling));
        target.told_until = Some(at);
        self.due.insert((at, branch));
        let response = Response::Deliver {
            branch,
            resource: target.resource,
            outcome: Outcome::Committed,
        };
        effects.tell(session, response);
    }

    fn unschedule(&mut self, branch: BranchId) {
        if let Some(at) = self
            .targets
            .get_mut(&branch)
            .and_then(|target| target.told_until.take())
        {
            self.due.remove(&(at, branch));
        }
    }
}
