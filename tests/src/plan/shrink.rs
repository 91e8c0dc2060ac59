//! Making a failing plan smaller while the same checker fails: a bug is understood by what cannot be left out of it.
//!
//! Greedy, in the order of how much a step can save: the time after the failure, halves of the fault list and ever
//! smaller parts of it (Zeller and Hildebrandt, *Simplifying and Isolating Failure-Inducing Input*, 2002), single faults,
//! services and transactions, then the time between faults and within them. Repeated until nothing helps.

use super::Plan;
use super::play::{Failure, run};
use crate::faults::Fault;
use crate::network::Weather;
use crate::schedule::Micros;
use crate::trace::Detail;

/// What became of a plan.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest plan found.
    pub plan: Plan,
    /// What it comes to.
    pub failure: Failure,
    /// How many runs it took.
    pub run_count: u64,
}

/// Shrinks a plan that fails like `failure`, in at most `runs_max` runs. Each better plan is handed to `progress`.
pub fn shrink(plan: &Plan, failure: &Failure, runs_max: u64, progress: impl FnMut(&Plan, u64)) -> Shrunk {
    let fails = |plan: &Plan| run(plan, Detail::Hash).result.err();
    shrink_by(plan, failure, runs_max, fails, progress)
}

/// As [`shrink`], by any judge of plans.
pub fn shrink_by(
    plan: &Plan,
    failure: &Failure,
    runs_max: u64,
    fails: impl FnMut(&Plan) -> Option<Failure>,
    progress: impl FnMut(&Plan, u64),
) -> Shrunk {
    let best = Shrunk {
        plan: plan.clone(),
        failure: failure.clone(),
        run_count: 0,
    };
    let mut shrinker = Shrinker {
        kind: failure.kind(),
        best,
        runs_max,
        fails,
        progress,
    };
    // What never happens is not needed, and needs no run.
    let faults_us = shrinker.best.plan.draw.faults_us;
    shrinker.best.plan.draw.plan.retain(|(at, _)| *at < faults_us);
    while shrinker.pass() {}
    shrinker.best
}

struct Shrinker<F, P> {
    kind: String,
    best: Shrunk,
    runs_max: u64,
    fails: F,
    progress: P,
}

impl<F: FnMut(&Plan) -> Option<Failure>, P: FnMut(&Plan, u64)> Shrinker<F, P> {
    /// Tries everything once; returns whether anything helped.
    fn pass(&mut self) -> bool {
        let before = self.best.plan.draw.clone();
        self.end_early();
        self.drop_faults();
        self.drop_load();
        self.shorten();
        let after = &self.best.plan.draw;
        after.plan != before.plan
            || after.faults_us != before.faults_us
            || after.transaction_count != before.transaction_count
    }

    /// Keeps a plan that fails in the same way.
    fn keeps(&mut self, plan: Plan) -> bool {
        if self.best.run_count >= self.runs_max {
            return false;
        }
        self.best.run_count += 1;
        let Some(failure) = (self.fails)(&plan).filter(|failure| failure.kind() == self.kind) else {
            return false;
        };
        self.best.plan = plan;
        self.best.failure = failure;
        (self.progress)(&self.best.plan, self.best.run_count);
        true
    }

    fn keeps_with(&mut self, change: impl FnOnce(&mut Plan)) -> bool {
        let mut plan = self.best.plan.clone();
        change(&mut plan);
        self.keeps(plan)
    }

    /// Heals sooner: later faults go, and the rest of the phase.
    fn end_early(&mut self) {
        let mut step = self.best.plan.draw.faults_us / 2;
        while step >= 100_000 {
            let shorter = self.best.plan.draw.faults_us.saturating_sub(step);
            let helped = shorter > 0
                && self.keeps_with(|plan| {
                    plan.draw.faults_us = shorter;
                    plan.draw.plan.retain(|(at, _)| *at < shorter);
                });
            step = if helped { step.min(shorter / 2) } else { step / 2 };
        }
    }

    fn drop_faults(&mut self) {
        let mut size = self.best.plan.draw.plan.len().div_ceil(2);
        while size > 0 {
            let mut start = 0;
            while start < self.best.plan.draw.plan.len() {
                let end = (start + size).min(self.best.plan.draw.plan.len());
                let helped = self.keeps_with(|plan| drop(plan.draw.plan.drain(start..end)));
                start = if helped { start } else { end };
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
    }

    fn drop_load(&mut self) {
        while self.best.plan.draw.transaction_count > 1
            && self.keeps_with(|plan| plan.draw.transaction_count /= 2)
        {}
        while self.best.plan.draw.initiator_count > 1 && self.keeps_with(drop_last_initiator) {}
        while self.best.plan.draw.participant_count > 1 && self.keeps_with(drop_last_participant) {}
        if self.best.plan.draw.setup.lines.loss_ppm > 0 {
            self.keeps_with(|plan| plan.draw.setup.lines.loss_ppm = 0);
        }
        if self.best.plan.draw.is_long {
            self.keeps_with(|plan| plan.draw.is_long = false);
        }
        if self.best.plan.draw.core.is_some() {
            self.keeps_with(|plan| plan.draw.core = None);
        }
        if self.best.plan.draw.setup.weather != Weather::CALM {
            self.keeps_with(|plan| plan.draw.setup.weather = Weather::CALM);
        }
    }

    /// Brings neighbours closer, which shortens whatever one begins and the other ends, and shortens the faults that
    /// have a length of their own.
    fn shorten(&mut self) {
        for place in 0..self.best.plan.draw.plan.len() {
            while self.gap_before(place) > 1_000 {
                let by = self.gap_before(place) / 2;
                let helped = self.keeps_with(|plan| {
                    plan.draw.plan[place..].iter_mut().for_each(|(at, _)| *at -= by);
                    plan.draw.faults_us -= by;
                });
                if !helped {
                    break;
                }
            }
            while let Some(shorter) = halved(&self.best.plan.draw.plan[place].1) {
                if !self.keeps_with(|plan| plan.draw.plan[place].1 = shorter) {
                    break;
                }
            }
        }
    }

    /// Plans stand in the order of their drawing, which is not always that of time.
    fn gap_before(&self, place: usize) -> Micros {
        let plan = &self.best.plan.draw.plan;
        let earlier = if place == 0 { 0 } else { plan[place - 1].0 };
        let first_of_rest = plan[place..].iter().map(|(at, _)| *at).min().unwrap_or(0);
        first_of_rest.saturating_sub(earlier)
    }
}

/// Services are numbered from 0, participants first.
fn drop_last_initiator(plan: &mut Plan) {
    plan.draw.initiator_count -= 1;
    let count = plan.draw.participant_count + plan.draw.initiator_count;
    plan.draw
        .plan
        .retain(|(_, fault)| !matches!(fault, Fault::CrashActor(id) if id.0 >= count));
}

fn drop_last_participant(plan: &mut Plan) {
    plan.draw.participant_count -= 1;
    let gone = plan.draw.participant_count;
    plan.draw
        .plan
        .retain(|(_, fault)| !matches!(fault, Fault::CrashActor(id) if id.0 == gone));
    for (_, fault) in &mut plan.draw.plan {
        if let Fault::CrashActor(id) = fault
            && id.0 > gone
        {
            id.0 -= 1;
        }
    }
}

fn halved(fault: &Fault) -> Option<Fault> {
    match fault {
        Fault::Pause(id, length) if *length > 1_000 => Some(Fault::Pause(*id, length / 2)),
        Fault::Clog(from, to, length) if *length > 1_000 => Some(Fault::Clog(*from, *to, length / 2)),
        Fault::PauseActor(id, length) if *length > 1_000 => Some(Fault::PauseActor(*id, length / 2)),
        Fault::SlowDisk(id, sync_us) if *sync_us > 200 => Some(Fault::SlowDisk(*id, sync_us / 2)),
        Fault::WallClock(id, offset_ms) if offset_ms.abs() > 1 => Some(Fault::WallClock(*id, offset_ms / 2)),
        _ => None,
    }
}
