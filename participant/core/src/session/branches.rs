//! Branches that voted: they ask, are told, are finished in their store, and a commit is acknowledged on proof (T8).
//!
//! ```text
//!   Working --Prepared--> InDoubt --told by delivery or answer--> Told --the store's proof--> acknowledged and forgotten
//!      `--Ended--> forgotten   ^                                  ^  `--error, "unknown"--> Told, later, again
//!                              `-- listed by a store (C9)         `-- delivered to a process that knows nothing of it
//! ```

mod delivery;

use super::{Effect, Ignored, ListedBranch, Session, Timer, Unfinished};
use crate::time::{Now, Timestamp};
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use core::time::Duration;
use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, Lineage, ResourceId, UnixMillis};
use synod_proto::planted;
use synod_proto::session::{Answer, Outcome, Refusal, Request};

/// How many listings in a row must miss a branch before that means anything (C11).
pub(super) const ABSENT_COUNT_MIN: u32 = 2;

/// The spread of the inquiry that a branch makes right after its deadline, so that not all ask at once.
const DEADLINE_SPREAD: Duration = Duration::from_millis(250);

#[derive(Clone, Debug)]
pub(super) struct Resource {
    /// When the running listing was asked for, if one runs.
    listing_since: Option<Timestamp>,
    pub(super) registration: Registration,
    /// Whether a listing has been answered: what the first one finds was left by an earlier life and asks at once.
    is_listed: bool,
}

/// Whether the coordinator knows a database. It takes only commits whose databases it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Registration {
    New,
    Registered,
    Refused,
}

#[derive(Clone, Debug, Hash)]
pub(super) enum Branch {
    /// This process works on it; nothing is durable.
    Working,
    InDoubt(InDoubt),
    Told(Told),
}

#[derive(Clone, Debug)]
pub(super) struct InDoubt {
    resource: ResourceId,
    lineage: Lineage,
    deadline: UnixMillis,
    prepared_at: UnixMillis,
    inquiry_count: u32,
    /// Prepared by this process. Another process's branch is forgotten when the store lists it no longer.
    is_own: bool,
    absent_count: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Told {
    resource: ResourceId,
    outcome: Outcome,
    prepared_at: UnixMillis,
    inquiry_count: u32,
    is_in_flight: bool,
    attempt_count: u32,
    unknown: Option<Unknown>,
    hazard: Option<String>,
}

/// The store says "unknown" of a branch that must commit. Evidence is gathered until it is a hazard (C5, C11).
#[derive(Clone, Debug)]
struct Unknown {
    since: Timestamp,
    absent_count: u32,
}

/// For checkers, see [`Session::hash_state`].
impl Hash for Resource {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            listing_since,
            registration,
            is_listed,
        } = self;
        (listing_since.is_some(), registration, is_listed).hash(state);
    }
}

/// For checkers, see [`Session::hash_state`].
impl Hash for InDoubt {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            resource,
            lineage,
            deadline,
            is_own,
            absent_count,
            ..
        } = self;
        (
            resource,
            lineage,
            deadline,
            is_own,
            absent_count.min(&ABSENT_COUNT_MIN),
        )
            .hash(state);
    }
}

/// For checkers, see [`Session::hash_state`].
impl Hash for Told {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            resource,
            outcome,
            is_in_flight,
            unknown,
            hazard,
            ..
        } = self;
        let absent_count = unknown
            .as_ref()
            .map(|unknown| unknown.absent_count.min(ABSENT_COUNT_MIN));
        (resource, outcome, is_in_flight, absent_count, hazard).hash(state);
    }
}

impl Branch {
    pub(super) fn unfinished(&self, branch: BranchId, wall: UnixMillis) -> Option<Unfinished> {
        let age_ms = |prepared_at: UnixMillis| wall.0.saturating_sub(prepared_at.0);
        match self {
            Self::Working => None,
            Self::InDoubt(InDoubt {
                resource,
                prepared_at,
                inquiry_count,
                ..
            }) => Some(Unfinished {
                branch,
                resource: *resource,
                age_ms: age_ms(*prepared_at),
                told: None,
                inquiry_count: *inquiry_count,
                hazard: None,
            }),
            Self::Told(Told {
                resource,
                prepared_at,
                inquiry_count,
                outcome,
                hazard,
                ..
            }) => Some(Unfinished {
                branch,
                resource: *resource,
                age_ms: age_ms(*prepared_at),
                told: Some(*outcome),
                inquiry_count: *inquiry_count,
                hazard: hazard.clone(),
            }),
        }
    }
}

impl Session {
    // ---- databases ----

    pub(super) fn on_attach(&mut self, now: Now, resource: ResourceId, effects: &mut Vec<Effect>) {
        if let Some(known) = self.resources.get(&resource) {
            effects.push(Effect::Ignored(Ignored::SameResource));
            return match known.registration {
                Registration::Registered => effects.push(Effect::Registered { resource }),
                Registration::New | Registration::Refused => self.register_late(resource, effects),
            };
        }
        let state = Resource {
            listing_since: Some(now.monotonic),
            registration: Registration::New,
            is_listed: false,
        };
        self.resources.insert(resource, state);
        effects.push(Effect::List { resource });
        self.register_late(resource, effects);
    }

    pub(super) fn on_list_timer(&mut self, now: Now, resource: ResourceId, effects: &mut Vec<Effect>) {
        if let Some(state) = self.resources.get_mut(&resource)
            && state.listing_since.is_none()
        {
            state.listing_since = Some(now.monotonic);
            effects.push(Effect::List { resource });
            if state.registration == Registration::Refused {
                self.register_late(resource, effects);
            }
        }
    }

    pub(super) fn note_registered(&mut self, offered: &[ResourceId], effects: &mut Vec<Effect>) {
        for resource in offered {
            if let Some(state) = self.resources.get_mut(resource)
                && state.registration != Registration::Registered
            {
                state.registration = Registration::Registered;
                effects.push(Effect::Registered { resource: *resource });
            }
        }
    }

    pub(super) fn note_registration_refused(
        &mut self,
        offered: &[ResourceId],
        refusal: &Refusal,
        effects: &mut Vec<Effect>,
    ) {
        for resource in offered {
            if let Some(state) = self.resources.get_mut(resource)
                && state.registration != Registration::Registered
            {
                state.registration = Registration::Refused;
                let (resource, refusal) = (*resource, refusal.clone());
                effects.push(Effect::RegistrationRefused { resource, refusal });
            }
        }
    }

    pub(super) fn on_listed(
        &mut self,
        now: Now,
        resource: ResourceId,
        branches: Option<Vec<ListedBranch>>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(state) = self.resources.get_mut(&resource) else {
            return effects.push(Effect::Ignored(Ignored::UnknownResource));
        };
        let asked_at = state.listing_since.take().unwrap_or(now.monotonic);
        let interval = self.random.jittered(self.config.list_interval);
        self.timers
            .set(Timer::List(resource), now.monotonic.plus_duration(interval));
        let Some(branches) = branches else {
            return effects.push(Effect::Ignored(Ignored::ListFailed));
        };
        let is_first = !state.is_listed;
        state.is_listed = true;

        let present: BTreeSet<BranchId> = branches.iter().map(|listed| listed.branch).collect();
        for listed in branches {
            self.take_up(now, resource, listed, is_first, effects);
        }
        self.note_absent(resource, &present, asked_at);
    }

    /// A prepared branch that a store lists is this process's to resolve, whoever prepared it (C9).
    fn take_up(
        &mut self,
        now: Now,
        resource: ResourceId,
        listed: ListedBranch,
        is_first: bool,
        effects: &mut Vec<Effect>,
    ) {
        let ListedBranch {
            branch,
            lineage,
            deadline,
            prepared_at,
        } = listed;
        // Another coordinator's branch is not ours to ask about (T11, C10).
        if self.lineage.is_some_and(|ours| ours != lineage) {
            return;
        }
        let is_full = self.branches.len() >= self.config.branch_count_max;
        let is_working = match self.branches.get_mut(&branch) {
            Some(Branch::InDoubt(known)) => {
                known.absent_count = 0;
                return;
            }
            Some(Branch::Told(told)) => {
                // The store still has it: "unknown" was not the last word.
                told.unknown = None;
                return;
            }
            // Its prepare is durable, and the word of it is on its way.
            Some(Branch::Working) => true,
            None if is_full => {
                return effects.push(Effect::Ignored(Ignored::TooManyBranches));
            }
            None => false,
        };
        let in_doubt = InDoubt {
            resource,
            lineage,
            deadline,
            prepared_at,
            inquiry_count: 0,
            is_own: is_working,
            absent_count: 0,
        };
        self.branches.insert(branch, Branch::InDoubt(in_doubt));
        if is_first && !is_working && planted!(RecoveryRollsBack) {
            self.tell(now, branch, None, Outcome::Aborted, effects);
        } else if is_first && !is_working {
            self.inquire(now, branch, effects);
        } else {
            self.schedule_inquiry(now, branch);
        }
    }

    fn note_absent(&mut self, resource: ResourceId, present: &BTreeSet<BranchId>, asked_at: Timestamp) {
        let mut gone = Vec::new();
        for (branch, entry) in &mut self.branches {
            match entry {
                Branch::InDoubt(known) if known.resource == resource && !present.contains(branch) => {
                    known.absent_count += 1;
                    // Another process has finished it. Our own is ended by its outcome only (T8, C11).
                    if !known.is_own && known.absent_count >= ABSENT_COUNT_MIN {
                        gone.push(*branch);
                    }
                }
                Branch::Told(told) if told.resource == resource && !present.contains(branch) => {
                    if let Some(unknown) = told.unknown.as_mut().filter(|unknown| unknown.since <= asked_at) {
                        unknown.absent_count += 1;
                    }
                }
                Branch::Working | Branch::InDoubt(_) | Branch::Told(_) => {}
            }
        }
        for branch in gone {
            self.branches.remove(&branch);
            self.timers.cancel(Timer::Branch(branch));
        }
    }

    // ---- work and prepare ----

    pub(super) fn on_started(&mut self, branch: BranchId, effects: &mut Vec<Effect>) {
        if self.branches.contains_key(&branch) {
            return effects.push(Effect::Ignored(Ignored::SameBranch));
        }
        self.branches.insert(branch, Branch::Working);
        if self.settled.contains(&branch.gtid) {
            effects.push(Effect::Cancel { branch });
        }
    }

    pub(super) fn on_prepared(
        &mut self,
        now: Now,
        branch: BranchId,
        resource: ResourceId,
        lineage: Lineage,
        deadline: UnixMillis,
        effects: &mut Vec<Effect>,
    ) {
        match self.branches.get_mut(&branch) {
            Some(Branch::InDoubt(listed)) => {
                listed.is_own = true;
                return effects.push(Effect::Ignored(Ignored::SameBranch));
            }
            Some(Branch::Told(_)) => return effects.push(Effect::Ignored(Ignored::SameBranch)),
            Some(Branch::Working) | None => {}
        }
        let in_doubt = InDoubt {
            resource,
            lineage,
            deadline,
            prepared_at: now.wall,
            inquiry_count: 0,
            is_own: true,
            absent_count: 0,
        };
        self.branches.insert(branch, Branch::InDoubt(in_doubt));
        // Its transaction is decided, and this vote came too late to be named: only the answer is missing.
        if self.settled.contains(&branch.gtid) {
            self.inquire(now, branch, effects);
        } else {
            self.schedule_inquiry(now, branch);
        }
    }

    pub(super) fn on_ended(&mut self, branch: BranchId, effects: &mut Vec<Effect>) {
        match self.branches.get(&branch) {
            Some(Branch::Working) => {
                self.branches.remove(&branch);
            }
            Some(Branch::InDoubt(_) | Branch::Told(_)) => effects.push(Effect::Ignored(Ignored::InDoubt)),
            None => effects.push(Effect::Ignored(Ignored::UnknownBranch)),
        }
    }

    // ---- inquiries ----

    pub(super) fn on_branch_timer(&mut self, now: Now, branch: BranchId, effects: &mut Vec<Effect>) {
        match self.branches.get_mut(&branch) {
            Some(Branch::InDoubt(known)) if planted!(RolledBackAtDeadline) && now.wall >= known.deadline => {
                self.tell(now, branch, None, Outcome::Aborted, effects);
            }
            Some(Branch::InDoubt(_)) => self.inquire(now, branch, effects),
            Some(Branch::Told(told)) if !told.is_in_flight => {
                told.is_in_flight = true;
                let (resource, outcome) = (told.resource, told.outcome);
                effects.push(Effect::Finish {
                    branch,
                    resource,
                    outcome,
                });
            }
            Some(Branch::Working | Branch::Told(_)) | None => {}
        }
    }

    /// After a registration every branch in doubt asks at once: what a former leader said, an abort above all, may have
    /// been lost with it, and locks are held until it is known.
    pub(super) fn send_inquiries(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let is_in_doubt = |entry: &Branch| matches!(entry, Branch::InDoubt(_));
        let in_doubt: Vec<BranchId> = self
            .branches
            .iter()
            .filter(|(_, entry)| is_in_doubt(entry))
            .map(|(branch, _)| *branch)
            .collect();
        for branch in in_doubt {
            self.inquire(now, branch, effects);
        }
    }

    fn inquire(&mut self, now: Now, branch: BranchId, effects: &mut Vec<Effect>) {
        let is_serving = self.link.serving().is_some();
        let Some(Branch::InDoubt(known)) = self.branches.get_mut(&branch) else {
            return;
        };
        if !is_serving {
            return;
        }
        known.inquiry_count = known.inquiry_count.saturating_add(1);
        let InDoubt {
            resource,
            lineage,
            deadline,
            ..
        } = *known;
        effects.push(Effect::Send(Request::Inquire {
            branch,
            resource,
            lineage,
            deadline,
        }));
        self.schedule_inquiry(now, branch);
    }

    /// The next inquiry: by backoff, or just after the deadline if that comes first, because from then on the answer is
    /// an outcome (T6).
    fn schedule_inquiry(&mut self, now: Now, branch: BranchId) {
        let Some(Branch::InDoubt(known)) = self.branches.get(&branch) else {
            return;
        };
        // Doubled, because the jitter takes up to half: the first one comes one to two backoffs after the prepare.
        let first = self.config.inquire_backoff.saturating_mul(2);
        let mut delay = self
            .random
            .backoff(known.inquiry_count, first, self.config.inquire_backoff_max);
        if known.deadline > now.wall {
            let until_deadline = Duration::from_millis(known.deadline.0 - now.wall.0);
            delay = delay.min(until_deadline + self.random.jittered(DEADLINE_SPREAD));
        }
        self.timers
            .set(Timer::Branch(branch), now.monotonic.plus_duration(delay));
    }

    pub(super) fn on_answered(
        &mut self,
        now: Now,
        branch: BranchId,
        answer: Answer,
        effects: &mut Vec<Effect>,
    ) {
        let outcome = match (self.branches.get(&branch), answer) {
            (None | Some(Branch::Working), _) => {
                return effects.push(Effect::Ignored(Ignored::UnknownBranch));
            }
            (Some(_), Answer::Undecided) if planted!(UndecidedTakenAsAborted) => Outcome::Aborted,
            (Some(_), Answer::Undecided) => return effects.push(Effect::Ignored(Ignored::Undecided)),
            (Some(_), Answer::Committed) => Outcome::Committed,
            (Some(_), Answer::Aborted) => Outcome::Aborted,
        };
        self.tell(now, branch, None, outcome, effects);
        self.settle(branch.gtid, effects);
    }
}

fn range_of(gtid: Gtid) -> core::ops::RangeInclusive<BranchId> {
    let first = BranchId {
        gtid,
        call: CallId(0),
        execution: ExecutionId(0),
    };
    let last = BranchId {
        gtid,
        call: CallId(u64::MAX),
        execution: ExecutionId(u64::MAX),
    };
    first..=last
}
