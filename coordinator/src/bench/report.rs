//! The results: as JSON, and as a text for people that says what was not measured.

use super::plan::{Pace, Participants, Plan, Transport};
use super::replicas::Used;
use super::tally::{Tally, per};
use serde::Serialize;
use std::fmt::Write as _;
use std::time::Duration;

/// What a run came to. `null` where something was not measured; [`not_measured`](Self::not_measured) says why.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) sessions: usize,
    pub(crate) in_flight: usize,
    pub(crate) branches: usize,
    pub(crate) participants: &'static str,
    pub(crate) transport: &'static str,
    /// The rate asked for, in an open loop.
    pub(crate) rate_asked: Option<f64>,
    pub(crate) seconds: f64,
    pub(crate) transactions: u64,
    pub(crate) per_second: f64,
    pub(crate) latency_us: Latency,
    /// The longest time without a transaction's end.
    pub(crate) gap_ms_max: f64,
    pub(crate) aborted: u64,
    pub(crate) overloaded: u64,
    pub(crate) resent: u64,
    /// Transactions whose work failed and that were begun anew.
    pub(crate) failed: u64,
    /// Whether every transaction that was begun has ended.
    pub(crate) drained: bool,
    /// Commits with an unacknowledged branch at the leader, after the run.
    pub(crate) unfinished: Option<u64>,
    /// Over all replicas, for each transaction.
    pub(crate) cpu_us: Option<f64>,
    pub(crate) syncs: Option<f64>,
    pub(crate) written_bytes: Option<f64>,
    /// The load generator's own, for each transaction.
    pub(crate) generator_cpu_us: Option<f64>,
    pub(crate) replicas: Vec<Replica>,
    /// Over all of the services' files, for each transaction; `null` where there are none.
    pub(crate) database_syncs: Option<f64>,
    pub(crate) database_written_bytes: Option<f64>,
    pub(crate) databases: Vec<DatabaseShare>,
    pub(crate) not_measured: Vec<String>,
}

/// Of the transactions that began in the measured time.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p99_9: u64,
    pub(crate) max: u64,
}

/// One replica's share, for each transaction.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Replica {
    pub(crate) address: String,
    pub(crate) role: String,
    pub(crate) version: String,
    pub(crate) cpu_us: Option<f64>,
    pub(crate) syncs: Option<f64>,
    pub(crate) written_bytes: Option<f64>,
}

/// One service's file, for each transaction.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DatabaseShare {
    pub(crate) file: String,
    pub(crate) syncs: f64,
    pub(crate) written_bytes: f64,
}

/// What was done to one service's file in the measured time.
#[derive(Clone, Debug)]
pub(super) struct Database {
    pub(super) file: String,
    pub(super) sync_count: u64,
    pub(super) written_bytes: u64,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        tally: &Tally,
        elapsed: Duration,
        used: Used,
        is_drained: bool,
        unfinished_count: Option<u64>,
    ) -> Self {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a count of transactions stays far below 2^52"
        )]
        let count = tally.count as f64;
        let share = |total: f64| (count > 0.0).then_some(total / count);
        #[expect(
            clippy::cast_precision_loss,
            reason = "a run writes far fewer than 2^52 bytes"
        )]
        let share_of = |total: u64| share(total as f64);
        let micros = |cpu: Duration| share(cpu.as_secs_f64() * 1e6);
        let replicas: Vec<Replica> = used
            .replicas
            .into_iter()
            .map(|one| Replica {
                address: one.endpoint,
                role: one.role,
                version: one.version,
                cpu_us: one.cpu.and_then(micros),
                syncs: one.sync_count.and_then(share_of),
                written_bytes: one.written_bytes.and_then(share_of),
            })
            .collect();
        let syncs = replicas.iter().map(|one| one.syncs).sum();
        let latencies = &tally.latencies_us;
        let mut report = Self {
            sessions: plan.session_count,
            in_flight: plan.in_flight,
            branches: plan.branch_count,
            participants: match plan.participants {
                Participants::Memory => "memory",
                Participants::Redb { .. } => "redb",
            },
            transport: match plan.transport {
                Transport::Session => "session",
                Transport::Unary => "unary",
            },
            rate_asked: match plan.pace {
                Pace::Closed => None,
                Pace::Open { per_second } => Some(per_second),
            },
            seconds: elapsed.as_secs_f64(),
            transactions: tally.count,
            per_second: per(tally.count, elapsed),
            latency_us: Latency {
                p50: latencies.value_at_quantile(0.5),
                p90: latencies.value_at_quantile(0.9),
                p99: latencies.value_at_quantile(0.99),
                p99_9: latencies.value_at_quantile(0.999),
                max: latencies.max(),
            },
            gap_ms_max: tally.gap_max.as_secs_f64() * 1e3,
            aborted: tally.aborted_count,
            overloaded: tally.overloaded_count,
            resent: tally.resent_count,
            failed: tally.failed_count,
            drained: is_drained,
            unfinished: unfinished_count,
            cpu_us: used.cpu.and_then(micros),
            syncs,
            written_bytes: used.written_bytes.and_then(share_of),
            generator_cpu_us: used.own_cpu.and_then(micros),
            replicas,
            database_syncs: None,
            database_written_bytes: None,
            databases: Vec::new(),
            not_measured: Vec::new(),
        };
        report.not_measured = report.list_unmeasured(plan, used.is_shared);
        report
    }

    /// Adds what was done to the services' files while so many transactions ended.
    pub(super) fn set_databases(&mut self, databases: Vec<Database>, transaction_count: u64) {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a run writes far fewer than 2^52 bytes"
        )]
        let share = |total: u64| total as f64 / transaction_count as f64;
        if transaction_count == 0 {
            return;
        }
        self.databases = databases
            .into_iter()
            .map(|one| DatabaseShare {
                file: one.file,
                syncs: share(one.sync_count),
                written_bytes: share(one.written_bytes),
            })
            .collect();
        self.database_syncs = Some(self.databases.iter().map(|one| one.syncs).sum());
        self.database_written_bytes = Some(self.databases.iter().map(|one| one.written_bytes).sum());
    }

    fn list_unmeasured(&self, plan: &Plan, is_shared: bool) -> Vec<String> {
        let mut list = Vec::new();
        if let Participants::Redb { .. } = plan.participants {
            list.push(
                "CPU of the services by themselves: they share the load generator's process".to_owned(),
            );
            list.push("networks and machines between services: they are on loopback".to_owned());
        } else {
            list.push(
                "business calls, local transactions and prepares of a participant: transactions begin with the proposal"
                    .to_owned(),
            );
            if self.branches == 0 {
                list.push("delivery: these commits name no branch (--branches)".to_owned());
            } else {
                list.push(
                    "a database: branches are in memory and acknowledge at once (--participants redb)"
                        .to_owned(),
                );
            }
        }
        if self.cpu_us.is_none() || self.written_bytes.is_none() {
            list.push(
                "CPU and bytes of replicas that are not processes of this machine on a loopback address, or that ended"
                    .to_owned(),
            );
        }
        if plan.pace == Pace::Closed {
            list.push("queueing under independent arrivals: the loop is closed (--rate)".to_owned());
        } else {
            list.push("latency below 1 ms: the schedule is looked at every millisecond".to_owned());
        }
        if is_shared {
            list.push(
                "CPU and bytes of each replica by itself: the replicas share one process (`synod dev`)"
                    .to_owned(),
            );
        }
        list
    }

    /// The text for people.
    pub(crate) fn text(&self) -> String {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "not measured".to_owned(), |value| format!("{value:.digits$}"))
        };
        let mut text = String::new();
        let latency = &self.latency_us;
        let _ = writeln!(
            text,
            "{:.0} transactions/s ({} in {:.1} s)",
            self.per_second, self.transactions, self.seconds
        );
        let _ = writeln!(
            text,
            "latency ms: p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3}",
            ms(latency.p50),
            ms(latency.p90),
            ms(latency.p99),
            ms(latency.p99_9),
            ms(latency.max)
        );
        let _ = writeln!(
            text,
            "longest time without one: {:.1} ms; aborted {}, overloaded {}, resent {}, failed {}",
            self.gap_ms_max, self.aborted, self.overloaded, self.resent, self.failed
        );
        let _ = writeln!(
            text,
            "for each, over all replicas: CPU us {}, syncs {}, bytes written {}",
            number(self.cpu_us, 2),
            number(self.syncs, 4),
            number(self.written_bytes, 0)
        );
        for one in &self.replicas {
            let _ = writeln!(
                text,
                "  {} {}: CPU us {}, syncs {}, bytes written {}",
                one.address,
                one.role,
                number(one.cpu_us, 2),
                number(one.syncs, 4),
                number(one.written_bytes, 0)
            );
        }
        let _ = writeln!(
            text,
            "  load generator: CPU us {}",
            number(self.generator_cpu_us, 2)
        );
        if !self.databases.is_empty() {
            let _ = writeln!(
                text,
                "for each, over all services' files: syncs {}, bytes written {}",
                number(self.database_syncs, 4),
                number(self.database_written_bytes, 0)
            );
        }
        for one in &self.databases {
            let _ = writeln!(
                text,
                "  {}: syncs {:.4}, bytes written {:.0}",
                one.file, one.syncs, one.written_bytes
            );
        }
        if !self.drained {
            let _ = writeln!(text, "NOT all transactions ended after the run");
        }
        match self.unfinished {
            Some(0) => {}
            Some(count) => {
                let _ = writeln!(
                    text,
                    "NOT acknowledged at the leader after the run: {count} commits"
                );
            }
            None => {
                let _ = writeln!(text, "no leader answered after the run");
            }
        }
        for one in &self.not_measured {
            let _ = writeln!(text, "not measured: {one}");
        }
        text
    }
}

fn ms(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64() * 1e3
}
