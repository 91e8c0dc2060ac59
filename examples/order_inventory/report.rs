//! What the user sees: the summary as a table or as JSON. Data goes to stdout; progress and complaints to stderr.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::audit::Audit;
use crate::measure::Latency;

/// Everything that the run found out. Its fields are the JSON of `--json`, documented in the module doc of `main.rs`
/// and stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) adds_up: bool,
    pub(crate) problems: Vec<String>,
    pub(crate) orders: usize,
    pub(crate) skipped_lines: usize,
    pub(crate) placed: usize,
    pub(crate) refused: usize,
    pub(crate) delivered: usize,
    pub(crate) transactions: u64,
    pub(crate) resolved: u64,
    pub(crate) in_flight: u16,
    pub(crate) elapsed_ms: f64,
    pub(crate) orders_per_second: f64,
    pub(crate) latency_ms: Latency,
    pub(crate) longest_gap_ms: Option<f64>,
    pub(crate) kill: Option<Kill>,
    #[serde(flatten)]
    pub(crate) audit: Audit,
    pub(crate) unfinished: u64,
    pub(crate) data: Option<PathBuf>,
}

/// The death of the leader and what followed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Kill {
    pub(crate) replica: u8,
    pub(crate) after_orders: usize,
    pub(crate) commits_stood_still_ms: Option<f64>,
    pub(crate) new_leader: u8,
    pub(crate) caught_up: bool,
}

impl Summary {
    /// One JSON object, on several lines, in the order of the fields.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<25} {value}");
        let audit = &self.audit;
        row("orders", self.orders.to_string())?;
        if self.skipped_lines > 0 {
            row("lines skipped", self.skipped_lines.to_string())?;
        }
        row(
            "placed",
            format!(
                "{:>6}   {} of them delivered to both services",
                self.placed, self.delivered
            ),
        )?;
        row("refused, out of stock", format!("{:>6}", self.refused))?;
        row("rows in orders' file", format!("{:>6}", audit.order_rows))?;
        row(
            "stock in inventory's file",
            format!(
                "{:>6}   = {} before - {} ordered",
                audit.stock_after, audit.stock_before, audit.items_ordered
            ),
        )?;
        row("branches left in doubt", format!("{:>6}", audit.in_doubt))?;
        row(
            "speed",
            format!(
                "{:.0} orders/s, {} at a time",
                self.orders_per_second, self.in_flight
            ),
        )?;
        let Latency { p50, p99, max } = self.latency_ms;
        row(
            "an order took",
            format!("{p50:.1} ms (median), {p99:.1} ms (99 %), {max:.1} ms (longest)"),
        )?;
        match &self.kill {
            Some(kill) => {
                row(
                    "leader killed",
                    format!(
                        "replica {}, after {} orders (SIGKILL)",
                        kill.replica, kill.after_orders
                    ),
                )?;
                let gap = kill
                    .commits_stood_still_ms
                    .map_or("not seen: no commit followed".into(), |gap| {
                        format!("{gap:.0} ms")
                    });
                row("commits stood still", gap)?;
                let caught_up = if kill.caught_up {
                    "and caught up"
                } else {
                    "and did NOT catch up"
                };
                row(
                    "since then",
                    format!(
                        "replica {} leads; replica {} was restarted {caught_up}",
                        kill.new_leader, kill.replica
                    ),
                )?;
            }
            None => row(
                "longest gap",
                self.longest_gap_ms
                    .map_or("-".into(), |gap| format!("{gap:.0} ms between two commits")),
            )?,
        }
        if let Some(data) = &self.data {
            row("kept in", data.display().to_string())?;
        }
        writeln!(f)?;
        if self.adds_up {
            return f.write_str(
                "Everything adds up: each order was placed once or not at all, and no item got lost.",
            );
        }
        write!(f, "This does NOT add up:")?;
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}
