//! Counting, and latencies in a histogram.

use hdrhistogram::Histogram;
use std::time::Duration;
use tokio::time::Instant;

/// The longest latency that is told apart, in microseconds: ten minutes.
const LATENCY_US_MAX: u64 = 600_000_000;

/// What was counted.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Latencies in microseconds, of the transactions that began in the measured window; three significant digits.
    pub(crate) latencies_us: Histogram<u64>,
    /// Transactions that ended within the measured window.
    pub(crate) count: u64,
    /// Transactions that the log says aborted, at any time. The generator proposes only commits.
    pub(crate) aborted_count: u64,
    /// Requests that were told to come back later, at any time.
    pub(crate) overloaded_count: u64,
    /// Requests that were sent again to another leader, at any time.
    pub(crate) resent_count: u64,
    /// Transactions whose work failed before anybody was asked for a commit, and that were begun anew, at any time.
    pub(crate) failed_count: u64,
    /// The longest time within the measured window without a transaction's end.
    pub(crate) gap_max: Duration,
    window: Window,
    last_end: Option<Instant>,
    ended_count: u64,
    told: Told,
}

/// What the last line of progress said.
#[derive(Clone, Copy, Debug)]
struct Told {
    at: Option<Instant>,
    ended_count: u64,
}

#[derive(Clone, Copy, Debug)]
enum Window {
    Before,
    Open { since: Instant },
    Closed { since: Instant, until: Instant },
}

/// One line of progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) is_measuring: bool,
    pub(crate) per_second: f64,
    /// Half of what was measured so far took so long, in microseconds, and 99 % of it.
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) aborted_count: u64,
    pub(crate) overloaded_count: u64,
    pub(crate) resent_count: u64,
    pub(crate) failed_count: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            latencies_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are valid"),
            count: 0,
            aborted_count: 0,
            overloaded_count: 0,
            resent_count: 0,
            failed_count: 0,
            gap_max: Duration::ZERO,
            window: Window::Before,
            last_end: None,
            ended_count: 0,
            told: Told {
                at: None,
                ended_count: 0,
            },
        }
    }
}

impl Tally {
    /// From here on it counts.
    pub(crate) fn open(&mut self, now: Instant) {
        self.window = Window::Open { since: now };
        self.last_end = Some(now);
    }

    /// Ends the window. Returns how long it was.
    pub(crate) fn close(&mut self, now: Instant) -> Duration {
        let Window::Open { since } = self.window else {
            return Duration::ZERO;
        };
        self.note_gap(now);
        self.window = Window::Closed { since, until: now };
        now - since
    }

    /// A transaction that began, or was due, at `begun` has ended.
    pub(crate) fn end(&mut self, begun: Instant, now: Instant) {
        self.ended_count += 1;
        let (since, until) = match self.window {
            Window::Before => return,
            Window::Open { since } => {
                self.count += 1;
                self.note_gap(now);
                (since, now)
            }
            Window::Closed { since, until } => (since, until),
        };
        if since <= begun && begun <= until {
            let us = u64::try_from((now - begun).as_micros()).unwrap_or(u64::MAX);
            self.latencies_us.saturating_record(us.max(1));
        }
    }

    fn note_gap(&mut self, now: Instant) {
        if let Some(last) = self.last_end.replace(now) {
            self.gap_max = self.gap_max.max(now - last);
        }
    }

    /// What happened since the last call.
    pub(crate) fn progress(&mut self, now: Instant) -> Progress {
        let elapsed = self
            .told
            .at
            .map_or(Duration::from_secs(1), |at| now.saturating_duration_since(at));
        let count = self.ended_count - self.told.ended_count;
        self.told = Told {
            at: Some(now),
            ended_count: self.ended_count,
        };
        Progress {
            is_measuring: matches!(self.window, Window::Open { .. }),
            per_second: per(count, elapsed),
            p50_us: self.latencies_us.value_at_quantile(0.5),
            p99_us: self.latencies_us.value_at_quantile(0.99),
            aborted_count: self.aborted_count,
            overloaded_count: self.overloaded_count,
            resent_count: self.resent_count,
            failed_count: self.failed_count,
        }
    }
}

/// A rate per second.
pub(crate) fn per(count: u64, elapsed: Duration) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate of a bench run is far below 2^52"
    )]
    let count = count as f64;
    if elapsed.is_zero() {
        0.0
    } else {
        count / elapsed.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No coordinated omission (traps J10): a request that began in the window counts with its whole latency though it ended after
    /// it, one that began before does not; and a stall is told as the longest gap.
    #[test]
    fn latencies_count_by_when_a_request_began() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut tally = Tally::default();
        tally.end(at(0), at(10));
        tally.open(at(100));
        tally.end(at(50), at(110));
        tally.end(at(110), at(120));
        tally.end(at(120), at(620));
        assert_eq!(tally.close(at(700)), Duration::from_millis(600));
        tally.end(at(650), at(1_650));
        tally.end(at(701), at(702));
        assert_eq!(tally.count, 3);
        assert_eq!(tally.gap_max, Duration::from_millis(500));
        let latencies: Vec<_> = tally
            .latencies_us
            .iter_recorded()
            .map(|value| value.value_iterated_to() / 1_000)
            .collect();
        assert_eq!(latencies, [10, 500, 1_000]);
    }

    #[test]
    fn progress_tells_what_is_new() {
        let start = Instant::now();
        let mut tally = Tally::default();
        tally.progress(start);
        for _ in 0..50 {
            tally.end(start, start);
        }
        let told = tally.progress(start + Duration::from_millis(500));
        assert_eq!((told.per_second.round(), told.is_measuring), (100.0, false));
        assert_eq!(tally.progress(start + Duration::from_secs(1)).per_second, 0.0);
    }
}
