//! What a set of runs came to, added up: the figures that `cargo sim` prints.

use super::play::Ending;
use super::{FAULT_KINDS, Plan, fault_kind};
use crate::checkers::points::{Points, REQUIRED};
use crate::checkers::queues::Waited;
use crate::run::BALLOTS_PER_MINUTE_MAX;
use crate::schedule::Micros;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// A thousand seeds have to come past every required point; a handful cannot be expected to.
pub const REQUIRED_FROM_SEEDS: u64 = 1_000;

/// The sums. A run that failed counts by its points and faults, not by its results.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Runs.
    pub run_count: u64,
    /// Of these, failed.
    pub failed_count: u64,
    /// Virtual time of those that passed.
    pub simulated_us: Micros,
    /// Events of those that passed.
    pub event_count: u64,
    /// Outcomes in their logs.
    pub outcome_count: u64,
    /// Branches that took effect.
    pub effect_count: u64,
    /// Answers and deliveries that were compared with the log.
    pub told_count: u64,
    /// Faults that were planned to happen, by kind. Which of them took hold, the points say.
    pub faults: BTreeMap<&'static str, u64>,
    /// The most ballots that any run began in the minute after its healing.
    pub ballots_after_healing_max: usize,
    /// The most that ever waited.
    pub waited: Waited,
    /// How often each named point was reached.
    pub points: Points,
}

impl Figures {
    /// Adds one run.
    pub fn add(&mut self, plan: &Plan, ending: &Ending) {
        self.run_count += 1;
        match &ending.result {
            Ok(report) => {
                self.simulated_us += report.length_us;
                self.event_count += report.event_count;
                self.outcome_count += report.outcome_count as u64;
                self.effect_count += report.effect_count as u64;
                self.told_count += report.told_count;
                self.ballots_after_healing_max =
                    self.ballots_after_healing_max.max(report.ballots_after_healing);
                self.waited.raise(&report.waited);
            }
            Err(_) => self.failed_count += 1,
        }
        for (_, fault) in plan.faults() {
            *self.faults.entry(fault_kind(fault)).or_default() += 1;
        }
        self.points.add(&ending.points);
    }

    /// Adds another set of runs.
    pub fn merge(&mut self, other: &Self) {
        self.run_count += other.run_count;
        self.failed_count += other.failed_count;
        self.simulated_us += other.simulated_us;
        self.event_count += other.event_count;
        self.outcome_count += other.outcome_count;
        self.effect_count += other.effect_count;
        self.told_count += other.told_count;
        self.ballots_after_healing_max = self
            .ballots_after_healing_max
            .max(other.ballots_after_healing_max);
        self.waited.raise(&other.waited);
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        self.points.add(&other.points);
    }

    /// Virtual hours.
    #[must_use]
    pub fn simulated_hours(&self) -> f64 {
        self.simulated_us as f64 / 3_600_000_000.0
    }

    /// Whether so many runs came past every required point, and every kind of fault took hold in them; `None` where there were too few to say.
    #[must_use]
    pub fn reached_all(&self) -> Option<bool> {
        let is_complete = || self.points.missing().is_empty() && self.vain_faults().is_empty();
        (self.run_count >= REQUIRED_FROM_SEEDS).then(is_complete)
    }

    /// Kinds of faults that were planned, and never took hold.
    #[must_use]
    pub fn vain_faults(&self) -> Vec<&'static str> {
        let planned = self.faults.keys().copied();
        planned
            .filter(|kind| self.points.took_hold_count(kind) == 0)
            .collect()
    }

    /// The line that shows that it goes on.
    #[must_use]
    pub fn progress(&self) -> String {
        format!(
            "{} runs, {:.1} simulated hours, {} outcomes, {} failed",
            self.run_count,
            self.simulated_hours(),
            self.outcome_count,
            self.failed_count
        )
    }

    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |count: u64, what: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{count:>12}  {what}");
        };
        line(self.run_count, "runs");
        line(self.failed_count, "failed");
        line(self.event_count, "events");
        line(self.outcome_count, "outcomes");
        line(self.effect_count, "branches took effect");
        line(self.told_count, "answers and deliveries compared with the log");
        line(
            self.ballots_after_healing_max as u64,
            &format!("ballots in the minute after healing, at most; {BALLOTS_PER_MINUTE_MAX} allowed"),
        );
        for (what, count) in self.waited.named() {
            line(count as u64, &format!("{what}, at most"));
        }
        let mut text = format!(
            "{:>12.1}  simulated hours\n{text}\nfaults: planned, took hold, found nothing to strike\n",
            self.simulated_hours()
        );
        for kind in FAULT_KINDS {
            let _ = writeln!(
                text,
                "{:>12} {:>9} {:>9}  {kind}",
                self.faults.get(kind).copied().unwrap_or(0),
                self.points.took_hold_count(kind),
                self.points.dropped_count(kind)
            );
        }
        text.push_str("\npoints reached\n");
        for ((group, name), count) in self.points.counts() {
            let note = match count {
                0 if REQUIRED.contains(&(group, name)) => "   <- never",
                0 => "   <- never; not required",
                _ => "",
            };
            let _ = writeln!(text, "{count:>12}  {group}: {name}{note}");
        }
        text
    }

    /// For programs, with the same names.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let points: BTreeMap<String, u64> = self
            .points
            .counts()
            .into_iter()
            .map(|((group, name), count)| (format!("{group}: {name}"), count))
            .collect();
        let by_kind = |count: &dyn Fn(&'static str) -> u64| -> BTreeMap<&str, u64> {
            FAULT_KINDS.into_iter().map(|kind| (kind, count(kind))).collect()
        };
        let faults = by_kind(&|kind| self.faults.get(kind).copied().unwrap_or(0));
        json!({
            "runs": self.run_count,
            "failed": self.failed_count,
            "simulated_hours": self.simulated_hours(),
            "events": self.event_count,
            "outcomes": self.outcome_count,
            "effects": self.effect_count,
            "answers_compared": self.told_count,
            "ballots_after_healing_max": self.ballots_after_healing_max,
            "waited_max": self.waited.named().into_iter().collect::<BTreeMap<_, _>>(),
            "faults": faults,
            "faults_that_took_hold": by_kind(&|kind| self.points.took_hold_count(kind)),
            "faults_that_found_nothing": by_kind(&|kind| self.points.dropped_count(kind)),
            "points": points,
        })
    }
}
