//! Figures from instants: latency percentiles, and the time during which nothing committed.

use std::time::{Duration, Instant};

use serde::Serialize;

/// How long orders took from begin to decision, retries included, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// Percentiles by nearest rank; all zero for no order.
pub(crate) fn latency(mut durations: Vec<Duration>) -> Latency {
    durations.sort_unstable();
    let rank = |percent: usize| {
        let rank = (durations.len() * percent).div_ceil(100).max(1);
        durations.get(rank - 1).copied().unwrap_or_default()
    };
    Latency {
        p50: millis(rank(50)),
        p99: millis(rank(99)),
        max: millis(rank(100)),
    }
}

/// The longest time between two consecutive commits of those gaps that end after `since`; `None` if no commit came
/// before or none after it. With the instant of the kill, that is how long commits stood still: a reply that was
/// already on its way when the leader died does not cut the real gap short. Gaps that begin at `until`, the next kill, or later
/// are not this one's.
pub(crate) fn longest_gap(
    commits: &[Instant],
    since: Option<Instant>,
    until: Option<Instant>,
) -> Option<Duration> {
    let mut commits = commits.to_vec();
    commits.sort_unstable();
    commits
        .windows(2)
        .filter(|pair| since.is_none_or(|since| pair[1] > since))
        .filter(|pair| until.is_none_or(|until| pair[0] < until))
        .filter(|_| since.is_none_or(|since| commits[0] <= since))
        .map(|pair| pair[1] - pair[0])
        .max()
}

/// Orders per second, to a tenth; 0 for no time at all.
pub(crate) fn per_second(count: usize, elapsed: Duration) -> f64 {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 {
        (f64::from(count) / seconds * 10.0).round() / 10.0
    } else {
        0.0
    }
}

/// Milliseconds, to a thousandth.
pub(crate) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::{Latency, latency, longest_gap};
    use std::time::{Duration, Instant};

    #[test]
    fn latencies_by_nearest_rank() {
        let durations = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(
            latency(durations),
            Latency {
                p50: 100.0,
                p99: 198.0,
                max: 200.0
            }
        );
        assert_eq!(
            latency(vec![Duration::from_micros(1500)]),
            Latency {
                p50: 1.5,
                p99: 1.5,
                max: 1.5
            }
        );
        assert_eq!(latency(vec![]), Latency::default());
    }

    #[test]
    fn the_gap_that_counts_ends_after_the_kill() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        // Out of order, as they arrive; a gap of 30 before the kill at 52, a stray reply at 53, then the election.
        let commits = [at(50), at(10), at(40), at(53), at(653), at(660)];
        assert_eq!(
            longest_gap(&commits, Some(at(52)), None),
            Some(Duration::from_millis(600))
        );
        assert_eq!(
            longest_gap(&commits[..3], None, None),
            Some(Duration::from_millis(30))
        );
        assert_eq!(
            longest_gap(&commits, Some(at(12)), Some(at(52))),
            Some(Duration::from_millis(30)),
            "the longer one belongs to the next kill"
        );
        assert_eq!(
            longest_gap(&commits, Some(at(660)), None),
            None,
            "no commit after the kill"
        );
        assert_eq!(
            longest_gap(&commits, Some(at(5)), None),
            None,
            "no commit before the kill"
        );
        assert_eq!(longest_gap(&[], None, None), None);
    }
}
