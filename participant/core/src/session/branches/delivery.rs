//! From being told an outcome to the acknowledgement of it (step 5): the store's answers, and what each allows.

use super::{ABSENT_COUNT_MIN, Branch, Told, Unknown, range_of};
use crate::session::{Effect, Finished, Ignored, Notice, Session, Timer};
use crate::time::{Now, Timestamp};
use alloc::string::String;
use alloc::vec::Vec;
use synod_proto::command::clip_text;
use synod_proto::ids::{BranchId, Gtid, ResourceId};
use synod_proto::planted;
use synod_proto::session::{Outcome, Request};

/// A store's word that a commit has happened. There is no other way to an acknowledgement (T8).
struct Proof(());

impl Proof {
    fn of(finished: &Finished) -> Option<Self> {
        match finished {
            Finished::Applied | Finished::AlreadyApplied => Some(Self(())),
            Finished::Unknown { .. } if planted!(UnknownAcknowledged) => Some(Self(())),
            Finished::Unknown { .. } | Finished::Failed { .. } => None,
        }
    }

    fn acknowledge(self, branch: BranchId, resource: ResourceId) -> Request {
        let Self(()) = self;
        Request::Acknowledge { branch, resource }
    }
}

impl Session {
    pub(in crate::session) fn on_deliver(
        &mut self,
        now: Now,
        branch: BranchId,
        resource: ResourceId,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        if !self.resources.contains_key(&resource) {
            return effects.push(Effect::Ignored(Ignored::UnknownResource));
        }
        if !self.branches.contains_key(&branch) && self.branches.len() >= self.config.branch_count_max {
            return effects.push(Effect::Ignored(Ignored::TooManyBranches));
        }
        self.tell(now, branch, Some(resource), outcome, effects);
        self.settle(branch.gtid, effects);
    }

    /// The log aborted the whole transaction: every branch of it here is told.
    pub(in crate::session) fn on_transaction_aborted(
        &mut self,
        now: Now,
        gtid: Gtid,
        effects: &mut Vec<Effect>,
    ) {
        let in_doubt: Vec<BranchId> = self
            .branches
            .range(range_of(gtid))
            .filter(|(_, entry)| matches!(entry, Branch::InDoubt(_)))
            .map(|(branch, _)| *branch)
            .collect();
        for branch in in_doubt {
            self.tell(now, branch, None, Outcome::Aborted, effects);
        }
    }

    /// The transaction is decided: work that has not voted can never be part of it.
    pub(in crate::session) fn settle(&mut self, gtid: Gtid, effects: &mut Vec<Effect>) {
        if !self.settled.insert(gtid) {
            return;
        }
        if self.settled.len() > self.config.settled_count_max {
            self.settled.pop_first();
        }
        for (branch, entry) in self.branches.range(range_of(gtid)) {
            if let Branch::Working = entry {
                effects.push(Effect::Cancel { branch: *branch });
            }
        }
    }

    pub(super) fn tell(
        &mut self,
        now: Now,
        branch: BranchId,
        delivered_to: Option<ResourceId>,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        let (resource, prepared_at, inquiry_count) = match self.branches.get(&branch) {
            Some(Branch::Told(told)) if told.outcome != outcome => {
                return effects.push(Effect::Notice(Notice::Contradiction {
                    branch,
                    first: told.outcome,
                }));
            }
            // Deliveries repeat; one attempt is enough, and a failing store is not hurried by them.
            Some(Branch::Told(told)) => {
                let reason = if told.is_in_flight {
                    Ignored::FinishInFlight
                } else {
                    Ignored::FinishScheduled
                };
                return effects.push(Effect::Ignored(reason));
            }
            // The work is cancelled by `settle`; should it have prepared meanwhile, it will ask and be told.
            Some(Branch::Working) if outcome == Outcome::Aborted => return,
            Some(Branch::InDoubt(known)) => (Some(known.resource), known.prepared_at, known.inquiry_count),
            Some(Branch::Working) | None => (delivered_to, now.wall, 0),
        };
        let Some(resource) = resource else {
            return effects.push(Effect::Ignored(Ignored::UnknownBranch));
        };
        let told = Told {
            resource,
            outcome,
            prepared_at,
            inquiry_count,
            is_in_flight: true,
            attempt_count: 0,
            unknown: None,
            hazard: None,
        };
        self.branches.insert(branch, Branch::Told(told));
        self.timers.cancel(Timer::Branch(branch));
        if planted!(AcknowledgedBeforeEffect) && outcome == Outcome::Committed {
            self.send(Request::Acknowledge { branch, resource }, effects);
        }
        effects.push(Effect::Finish {
            branch,
            resource,
            outcome,
        });
    }

    pub(in crate::session) fn on_finished(
        &mut self,
        now: Now,
        branch: BranchId,
        outcome: Outcome,
        finished: Finished,
        effects: &mut Vec<Effect>,
    ) {
        let Some(Branch::Told(told)) = self.branches.get_mut(&branch) else {
            return effects.push(Effect::Ignored(Ignored::UnknownBranch));
        };
        if !told.is_in_flight || told.outcome != outcome {
            return effects.push(Effect::Ignored(Ignored::UnknownBranch));
        }
        told.is_in_flight = false;
        let resource = told.resource;
        if let Some(proof) = Proof::of(&finished) {
            self.forget(branch);
            if outcome == Outcome::Committed {
                // Without a stream the word is lost, the delivery comes again, and the store has the proof.
                self.send(proof.acknowledge(branch, resource), effects);
            }
            return;
        }
        match finished {
            // Nothing is left to roll back, and an abort needs no acknowledgement. Should the store list the branch
            // after all, the listing brings it back, and it asks again (C11).
            Finished::Unknown { .. } if outcome == Outcome::Aborted => self.forget(branch),
            Finished::Unknown { detail } => self.on_unknown(now, branch, detail, effects),
            Finished::Failed { text } => {
                let again_at = self.schedule_finish(now, branch);
                effects.push(Effect::Notice(Notice::FinishFailed {
                    branch,
                    text,
                    again_at,
                }));
            }
            Finished::Applied | Finished::AlreadyApplied => {}
        }
    }

    /// A branch that must commit, and a store that knows nothing of it: never an acknowledgement, never a rollback (C2,
    /// C5). Tried again for as long as the store lists it, then reported as a hazard, and tried again still.
    fn on_unknown(&mut self, now: Now, branch: BranchId, detail: String, effects: &mut Vec<Effect>) {
        let patience = self.config.unknown_patience;
        let Some(Branch::Told(told)) = self.branches.get_mut(&branch) else {
            return;
        };
        let unknown = told.unknown.get_or_insert(Unknown {
            since: now.monotonic,
            absent_count: 0,
        });
        let is_proven = unknown.absent_count >= ABSENT_COUNT_MIN
            && now.monotonic.duration_since(unknown.since) >= patience;
        if is_proven {
            let (resource, text) = (told.resource, clip_text(detail));
            let is_news = told.hazard.as_ref() != Some(&text);
            told.hazard = Some(text.clone());
            if is_news {
                effects.push(Effect::Notice(Notice::Hazard {
                    branch,
                    text: text.clone(),
                }));
            }
            // Repeated with every attempt: a new leader has not heard it.
            self.send(
                Request::Hazard {
                    branch,
                    resource,
                    text,
                },
                effects,
            );
        }
        self.schedule_finish(now, branch);
    }

    fn schedule_finish(&mut self, now: Now, branch: BranchId) -> Timestamp {
        let (first, cap) = (self.config.finish_backoff, self.config.finish_backoff_max);
        let Some(Branch::Told(told)) = self.branches.get_mut(&branch) else {
            return now.monotonic;
        };
        let at = now
            .monotonic
            .plus_duration(self.random.backoff(told.attempt_count, first, cap));
        told.attempt_count = told.attempt_count.saturating_add(1);
        self.timers.set(Timer::Branch(branch), at);
        at
    }

    fn forget(&mut self, branch: BranchId) {
        self.branches.remove(&branch);
        self.timers.cancel(Timer::Branch(branch));
    }
}
