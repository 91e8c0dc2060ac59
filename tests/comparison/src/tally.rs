//! What the load generators of the others count: in a closed loop, as `synod bench` does.

use crate::{Failure, processes};
use hdrhistogram::Histogram;
use serde_json::json;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Latencies above ten minutes are not told apart, in microseconds.
const LATENCY_US_MAX: u64 = 600_000_000;

/// What began within the time counts with its whole latency: so long is waited for it.
const REST: Duration = Duration::from_millis(500);

/// Arguments of every load generator.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LoadArgs {
    #[arg(long, value_delimiter = ',')]
    pub(crate) endpoints: Vec<String>,
    #[arg(long)]
    pub(crate) sessions: u32,
    #[arg(long)]
    pub(crate) in_flight: u32,
    #[arg(long)]
    seconds: f64,
    #[arg(long)]
    warm_up: f64,
    /// The processes that are measured.
    #[arg(long)]
    process: Vec<u32>,
}

impl LoadArgs {
    /// How many of the requests in flight are this session's.
    pub(crate) fn share(&self, session: u32) -> u32 {
        (self.in_flight + self.sessions - 1 - session) / self.sessions
    }
}

/// Counts and latencies.
pub(crate) struct Tally {
    latencies_us: Histogram<u64>,
    count: u64,
    pub(crate) failed_count: u64,
    gap_max: Duration,
    last_end: Instant,
    since: Instant,
    until: Option<Instant>,
}

impl Tally {
    /// One that counts after the warm-up, which begins now.
    pub(crate) fn new(args: &LoadArgs) -> Result<Rc<RefCell<Self>>, Failure> {
        let since = Instant::now() + Duration::from_secs_f64(args.warm_up);
        Ok(Rc::new(RefCell::new(Self {
            latencies_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?,
            count: 0,
            failed_count: 0,
            gap_max: Duration::ZERO,
            last_end: since,
            since,
            until: None,
        })))
    }

    /// One that began at `begun` has ended.
    pub(crate) fn end(&mut self, begun: Instant, now: Instant) {
        if now >= self.since && self.until.is_none() {
            self.count += 1;
            self.gap_max = self.gap_max.max(now - self.last_end);
            self.last_end = now;
        }
        if begun >= self.since && self.until.is_none_or(|until| begun <= until) {
            let us = u64::try_from((now - begun).as_micros()).unwrap_or(u64::MAX);
            self.latencies_us.saturating_record(us.max(1));
        }
    }

    /// Whether the measured time is over.
    pub(crate) fn is_over(&self) -> bool {
        self.until.is_some()
    }
}

/// Waits while the load runs beside; returns what it came to.
pub(crate) async fn measure(args: &LoadArgs, tally: &Rc<RefCell<Tally>>) -> serde_json::Value {
    let since = tally.borrow().since;
    sleep_until(since).await;
    let before = processes::cpu(&args.process);
    sleep_until(since + Duration::from_secs_f64(args.seconds)).await;
    let after = processes::cpu(&args.process);
    let now = Instant::now();
    {
        let mut tally = tally.borrow_mut();
        tally.until = Some(now);
        tally.gap_max = tally.gap_max.max(now.saturating_duration_since(tally.last_end));
    }
    sleep(REST).await;
    let tally = tally.borrow();
    #[expect(
        clippy::cast_precision_loss,
        reason = "a count of requests stays far below 2^52"
    )]
    let count = tally.count as f64;
    let cpu = before.zip(after).filter(|_| tally.count > 0);
    json!({
        "per_second": count / (now - since).as_secs_f64(),
        "transactions": tally.count,
        "failed": tally.failed_count,
        "latency_us": {
            "p50": tally.latencies_us.value_at_quantile(0.5),
            "p99": tally.latencies_us.value_at_quantile(0.99),
        },
        "gap_ms_max": tally.gap_max.as_secs_f64() * 1e3,
        "cpu_us": cpu.map(|(before, after)| after.saturating_sub(before).as_secs_f64() * 1e6 / count),
    })
}
