//! What was measured, and what it comes to: medians, and the medians of the ratios within each pair.

use crate::Failure;
use crate::failover::Failover;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shape {
    One,
    SixtyFour,
    Many,
    ManySessions,
    TwoBranches,
}

impl Shape {
    pub(crate) const ALL: [Self; 5] = [
        Self::One,
        Self::SixtyFour,
        Self::Many,
        Self::ManySessions,
        Self::TwoBranches,
    ];

    pub(crate) fn in_flight(self) -> u32 {
        match self {
            Self::One => 1,
            Self::SixtyFour => 64,
            Self::Many | Self::ManySessions | Self::TwoBranches => 256,
        }
    }

    pub(crate) fn sessions(self) -> u32 {
        match self {
            Self::One => 1,
            Self::ManySessions => 64,
            Self::SixtyFour | Self::Many | Self::TwoBranches => 4,
        }
    }

    pub(crate) fn branches(self) -> u32 {
        match self {
            Self::TwoBranches => 2,
            _ => 0,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One => "1 in flight, 1 session",
            Self::SixtyFour => "64 in flight, 4 sessions",
            Self::Many => "256 in flight, 4 sessions",
            Self::ManySessions => "256 in flight, 64 sessions",
            Self::TwoBranches => "256 in flight, 4 sessions, two branches delivered",
        }
    }
}

/// One run of a load generator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measurement {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) cpu_us: Option<f64>,
    pub(crate) syncs: Option<f64>,
}

impl Measurement {
    /// Reads what a generator printed. A run in which something went wrong is no measurement.
    pub(crate) fn read(figures: &serde_json::Value) -> Result<Self, Failure> {
        for name in ["aborted", "overloaded", "failed", "unfinished"] {
            if let Some(count) = figures[name].as_u64().filter(|count| *count > 0) {
                return Err(
                    format!("{count} transactions {name}, so its rate says nothing: {figures}").into(),
                );
            }
        }
        if figures["drained"] == false {
            return Err(format!("the load did not come to an end: {figures}").into());
        }
        let number = |value: &serde_json::Value, name: &str| {
            value
                .as_f64()
                .ok_or_else(|| format!("the load generator gave no {name}: {figures}"))
        };
        Ok(Self {
            per_second: number(&figures["per_second"], "rate")?,
            p50_us: number(&figures["latency_us"]["p50"], "p50")?,
            p99_us: number(&figures["latency_us"]["p99"], "p99")?,
            cpu_us: figures["cpu_us"].as_f64(),
            syncs: figures["syncs"].as_f64(),
        })
    }
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pairs: BTreeMap<Shape, Vec<(Measurement, Measurement)>>,
    pub(crate) etcd_failovers: Vec<Failover>,
    pub(crate) synod_failovers: Vec<Failover>,
    /// dtmrs and Synod with two branches, 64 in flight; or why there is none.
    pub(crate) dtmrs: Dtmrs,
    /// Each idle replica's share of a core, in percent.
    pub(crate) idle_percent: Vec<f64>,
}

/// The comparison with dtmrs.
#[derive(Clone, Debug)]
pub(crate) enum Dtmrs {
    Missing { reason: String },
    Pairs(Vec<(Measurement, Measurement)>),
}

impl Default for Dtmrs {
    fn default() -> Self {
        Self::Pairs(Vec::new())
    }
}

/// How many transactions of two branches are in flight beside dtmrs.
pub(crate) const DTMRS_IN_FLIGHT: u32 = 64;

/// The line of JSON. `null` is not measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    decisions_ratio_256: Option<f64>,
    decisions_ratio_64: Option<f64>,
    decisions_ratio_256_s64: Option<f64>,
    p99_ratio_256: Option<f64>,
    p50_ratio_1: Option<f64>,
    cpu_us_per_decision_256: Option<f64>,
    syncs_per_decision_64: Option<f64>,
    two_branch_ratio_256: Option<f64>,
    failover_ms_median: Option<f64>,
    failover_ms_worst: Option<f64>,
    dtmrs_ratio_64: Option<f64>,
    postgres_ratio_16: Option<f64>,
    lock_ratio_64: Option<f64>,
    idle_cpu_percent: Option<f64>,
}

/// Medians of one system under one load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Medians {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) cpu_us: Option<f64>,
    pub(crate) syncs: Option<f64>,
}

impl Figures {
    pub(crate) fn add(&mut self, shape: Shape, etcd: Measurement, synod: Measurement) {
        self.pairs.entry(shape).or_default().push((etcd, synod));
    }

    fn pairs(&self, shape: Shape) -> &[(Measurement, Measurement)] {
        self.pairs.get(&shape).map_or(&[], Vec::as_slice)
    }

    /// Etcd's and Synod's medians.
    pub(crate) fn medians(&self, shape: Shape) -> Option<(Medians, Medians)> {
        let pairs = self.pairs(shape);
        let of = |pick: fn(&(Measurement, Measurement)) -> Measurement| {
            let all = || pairs.iter().map(pick);
            Some(Medians {
                per_second: median(all().map(|one| one.per_second))?,
                p50_us: median(all().map(|one| one.p50_us))?,
                p99_us: median(all().map(|one| one.p99_us))?,
                cpu_us: median(all().filter_map(|one| one.cpu_us)),
                syncs: median(all().filter_map(|one| one.syncs)),
            })
        };
        Some((of(|pair| pair.0)?, of(|pair| pair.1)?))
    }

    /// The median over the pairs of Synod's figure divided by etcd's.
    fn ratio(&self, shape: Shape, pick: fn(&Measurement) -> f64) -> Option<f64> {
        median(
            self.pairs(shape)
                .iter()
                .map(|(etcd, synod)| pick(synod) / pick(etcd)),
        )
    }

    fn dtmrs_ratio(&self) -> Option<f64> {
        match &self.dtmrs {
            Dtmrs::Missing { .. } => None,
            Dtmrs::Pairs(pairs) => median(
                pairs
                    .iter()
                    .map(|(dtmrs, synod)| synod.per_second / dtmrs.per_second),
            ),
        }
    }

    /// The lines on dtmrs.
    fn dtmrs_text(&self) -> String {
        let pairs = match &self.dtmrs {
            Dtmrs::Missing { reason } => return format!("dtmrs was not measured: {reason}\n"),
            Dtmrs::Pairs(pairs) => pairs,
        };
        let of = |pick: fn(&(Measurement, Measurement)) -> f64| number(median(pairs.iter().map(pick)), 0);
        let ms = |pick: fn(&(Measurement, Measurement)) -> f64| number(median(pairs.iter().map(pick)), 2);
        format!(
            "Two branches, {DTMRS_IN_FLIGHT} in flight, 4 sessions: dtmrs 0.13 (one server, a saga over gRPC, its state in Redis \
             that syncs before each answer) {} transactions/s, p50 {} ms, p99 {} ms; Synod (three replicas) {} transactions/s, p50 {} \
             ms, p99 {} ms; ratio {}. Branches do nothing in either. Counted are transactions of which both branches were called \
             (dtmrs), or told and heard (Synod).\n",
            of(|pair| pair.0.per_second),
            ms(|pair| pair.0.p50_us / 1e3),
            ms(|pair| pair.0.p99_us / 1e3),
            of(|pair| pair.1.per_second),
            ms(|pair| pair.1.p50_us / 1e3),
            ms(|pair| pair.1.p99_us / 1e3),
            number(self.dtmrs_ratio(), 1),
        )
    }

    pub(crate) fn summary(&self) -> Summary {
        let rate = |shape| self.ratio(shape, |one| one.per_second).map(rounded);
        let synod = |shape| self.medians(shape).map(|(_, synod)| synod);
        let gaps = || self.synod_failovers.iter().map(|one| one.gap_ms);
        Summary {
            decisions_ratio_256: rate(Shape::Many),
            decisions_ratio_64: rate(Shape::SixtyFour),
            decisions_ratio_256_s64: rate(Shape::ManySessions),
            p99_ratio_256: self.ratio(Shape::Many, |one| one.p99_us).map(rounded),
            p50_ratio_1: self.ratio(Shape::One, |one| one.p50_us).map(rounded),
            cpu_us_per_decision_256: synod(Shape::Many).and_then(|one| one.cpu_us).map(rounded),
            syncs_per_decision_64: synod(Shape::SixtyFour).and_then(|one| one.syncs).map(rounded),
            two_branch_ratio_256: rate(Shape::TwoBranches),
            failover_ms_median: median(gaps()).map(rounded),
            failover_ms_worst: gaps().reduce(f64::max).map(rounded),
            dtmrs_ratio_64: self.dtmrs_ratio().map(rounded),
            postgres_ratio_16: None,
            lock_ratio_64: None,
            // The busiest replica's.
            idle_cpu_percent: self.idle_percent.iter().copied().reduce(f64::max).map(rounded),
        }
    }

    /// The table for people.
    pub(crate) fn table(&self, versions: &[String]) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "| load | etcd puts/s | Synod decisions/s | ratio | etcd p50, p99 ms | Synod p50, p99 ms | etcd CPU us | Synod CPU us | Synod syncs |"
        );
        let _ = writeln!(text, "|---|--:|--:|--:|--:|--:|--:|--:|--:|");
        for shape in Shape::ALL {
            let Some((etcd, synod)) = self.medians(shape) else {
                continue;
            };
            let ratio = self.ratio(shape, |one| one.per_second).unwrap_or(f64::NAN);
            let _ = writeln!(
                text,
                "| {} | {:.0} | {:.0} | {ratio:.1} | {:.2}, {:.2} | {:.2}, {:.2} | {} | {} | {} |",
                shape.name(),
                etcd.per_second,
                synod.per_second,
                etcd.p50_us / 1e3,
                etcd.p99_us / 1e3,
                synod.p50_us / 1e3,
                synod.p99_us / 1e3,
                number(etcd.cpu_us, 0),
                number(synod.cpu_us, 1),
                number(synod.syncs, 3),
            );
        }
        for (name, failovers) in [("etcd", &self.etcd_failovers), ("Synod", &self.synod_failovers)] {
            let gaps = || failovers.iter().map(|one| one.gap_ms);
            let aborted: u64 = failovers.iter().map(|one| one.aborted).sum();
            let _ = writeln!(
                text,
                "\nLeader of {name} killed under load, {} times: next write after {} ms in the median, {} ms at worst; {aborted} transactions aborted by it.",
                failovers.len(),
                number(median(gaps()), 0),
                number(gaps().reduce(f64::max), 0),
            );
        }
        let _ = write!(text, "\n{}", self.dtmrs_text());
        let idle: Vec<String> = self
            .idle_percent
            .iter()
            .map(|one| format!("{one:.1} %"))
            .collect();
        let _ = writeln!(
            text,
            "\nCPU of an idle replica of Synod: {} of a core.",
            if idle.is_empty() {
                "-".to_owned()
            } else {
                idle.join(", ")
            }
        );
        let _ = writeln!(
            text,
            "\nCPU and syncs are over three replicas, for each put or decision. Ratios are medians over the pairs. Not measured: a \
             database under the branches (`synod bench --participants redb`); PostgreSQL under them and locks (postgres_ratio_16, \
             lock_ratio_64), which are not built yet."
        );
        let _ = writeln!(text, "{}", versions.join("; "));
        text
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Four digits after the point: more would be noise.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The middle one, or the mean of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(per_second: f64) -> Measurement {
        Measurement {
            per_second,
            p50_us: 100.0,
            p99_us: 200.0,
            cpu_us: None,
            syncs: None,
        }
    }

    /// The machine's mood falls on both of a pair (traps J10): the median of the ratios, not the ratio of the medians.
    #[test]
    fn ratios_are_taken_within_pairs() {
        let mut figures = Figures::default();
        for (etcd, synod) in [(10.0, 100.0), (1.0, 20.0), (100.0, 800.0)] {
            figures.add(Shape::Many, measured(etcd), measured(synod));
        }
        let summary = figures.summary();
        assert_eq!(summary.decisions_ratio_256, Some(10.0));
        assert_eq!(
            (summary.decisions_ratio_64, summary.failover_ms_median),
            (None, None)
        );
        assert_eq!((summary.postgres_ratio_16, summary.lock_ratio_64), (None, None));
    }

    /// What was not measured is null, and the text says why.
    #[test]
    fn without_dtmrs_there_is_no_ratio_but_a_reason() {
        let mut figures = Figures {
            dtmrs: Dtmrs::Missing {
                reason: "no network".to_owned(),
            },
            ..Figures::default()
        };
        assert_eq!(figures.summary().dtmrs_ratio_64, None);
        assert!(figures.table(&[]).contains("dtmrs was not measured: no network"));
        figures.dtmrs = Dtmrs::Pairs(vec![
            (measured(10.0), measured(200.0)),
            (measured(8.0), measured(80.0)),
        ]);
        assert_eq!(figures.summary().dtmrs_ratio_64, Some(15.0));
    }

    /// The busiest replica counts, since any of them may be the leader.
    #[test]
    fn the_busiest_idle_replica_counts() {
        let figures = Figures {
            idle_percent: vec![0.1, 0.7, 0.2],
            ..Figures::default()
        };
        assert_eq!(figures.summary().idle_cpu_percent, Some(0.7));
    }

    #[test]
    fn a_run_in_which_something_went_wrong_is_no_measurement() {
        let good = serde_json::json!({
            "per_second": 10.0, "latency_us": {"p50": 1, "p99": 2}, "aborted": 0, "unfinished": null, "drained": true,
        });
        assert!(Measurement::read(&good).is_ok());
        for (name, value) in [
            ("overloaded", 1.into()),
            ("aborted", 3.into()),
            ("drained", false.into()),
        ] {
            let mut bad = good.clone();
            bad[name] = value;
            assert!(Measurement::read(&bad).is_err(), "{name}");
        }
    }

    #[test]
    fn an_even_count_has_its_median_in_the_middle() {
        assert_eq!(median([4.0, 1.0, 3.0, 2.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }
}
