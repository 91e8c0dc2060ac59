//! What the user sees: the summary as a table or as JSON. Data goes to stdout; progress and complaints to stderr.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::audit::Audit;
use crate::cli::Victim;
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
    pub(crate) settled_ms: f64,
    pub(crate) longest_gap_ms: Option<f64>,
    pub(crate) kill: Option<Kill>,
    pub(crate) kills: Vec<ProcessKill>,
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

/// A death, and what followed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ProcessKill {
    pub(crate) victim: Victim,
    pub(crate) process: String,
    pub(crate) after_orders: usize,
    pub(crate) commits_stood_still_ms: Option<f64>,
    pub(crate) away_ms: f64,
    pub(crate) new_leader: Option<u8>,
}

impl Summary {
    /// One JSON object, on several lines, in the order of the fields.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            audit, latency_ms, ..
        } = self;
        let mut row = |name: &str, value: String, note: String| {
            let line = format!("  {name:<26} {value:>10}   {note}");
            writeln!(f, "{}", line.trim_end())
        };
        row("orders", self.orders.to_string(), String::new())?;
        if self.skipped_lines > 0 {
            row(
                "lines skipped",
                self.skipped_lines.to_string(),
                "named above".into(),
            )?;
        }
        row(
            "placed",
            self.placed.to_string(),
            format!("{} delivered to orders and inventory", self.delivered),
        )?;
        row("refused", self.refused.to_string(), "out of stock".into())?;
        row(
            "rows in orders' file",
            audit.order_rows.to_string(),
            String::new(),
        )?;
        let change = format!("{} before, {} ordered", audit.stock_before, audit.items_ordered);
        row("items in inventory's file", audit.stock_after.to_string(), change)?;
        let once = "each once, in order for each customer".to_owned();
        row(
            "notifications",
            audit.notifications.to_string(),
            if self.adds_up { once.clone() } else { String::new() },
        )?;
        let owed = format!("{}.{:02} owed", audit.owed_cents / 100, audit.owed_cents % 100);
        row(
            "invoices",
            audit.invoices.to_string(),
            if self.adds_up {
                format!("{once}; {owed}")
            } else {
                owed
            },
        )?;
        row(
            "branches left in doubt",
            audit.in_doubt.to_string(),
            String::new(),
        )?;
        for kill in &self.kills {
            let name = match kill.victim {
                Victim::Leader => "leader killed",
                Victim::Inventory => "participant killed",
                Victim::Relay => "relay killed",
                Victim::Billing => "consumer killed",
            };
            let mut note = format!(
                "without a commit; SIGKILL to {} after {} orders, ",
                kill.process, kill.after_orders
            );
            match kill.new_leader {
                Some(leader) => {
                    let is_caught_up = self.kill.as_ref().is_some_and(|kill| kill.caught_up);
                    let caught_up = if is_caught_up {
                        "caught up"
                    } else {
                        "did NOT catch up"
                    };
                    note += &format!("then replica {leader} led; {caught_up}");
                }
                None => note += &format!("back after {:.0} ms", kill.away_ms),
            }
            row(name, in_millis(kill.commits_stood_still_ms), note)?;
        }
        if self.kills.is_empty() {
            let gap = in_millis(self.longest_gap_ms);
            row("longest gap", gap, "between two commits".into())?;
        }
        let share = format!("orders, {} at a time", self.in_flight);
        row("speed", format!("{:.0} /s", self.orders_per_second), share)?;
        let rest = format!(
            "99 %: {:.1} ms, longest: {:.1} ms",
            latency_ms.p99, latency_ms.max
        );
        row("an order took, median", format!("{:.1} ms", latency_ms.p50), rest)?;
        if let Some(data) = &self.data {
            row("kept in", String::new(), data.display().to_string())?;
        }
        writeln!(f)?;
        if self.adds_up {
            return f.write_str(
                "Everything adds up: each order was placed once or not at all, no item got lost,\n\
                 and every message took effect once and in order.",
            );
        }
        write!(f, "This does NOT add up:")?;
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

/// A gap, where there was one.
fn in_millis(gap: Option<f64>) -> String {
    gap.map_or_else(|| "-".to_owned(), |gap| format!("{gap:.0} ms"))
}
