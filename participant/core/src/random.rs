//! Chance as an argument: one seeded generator per machine, and the backoff that draws from it.

use core::time::Duration;

/// SplitMix64 (Steele, Lea, Flood: *Fast Splittable Pseudorandom Number Generators*, figure 16). Not for secrets.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A delay between half of `delay` and all of it, so that what failed together does not return together.
    pub(crate) fn jittered(&mut self, delay: Duration) -> Duration {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        let half = micros / 2;
        Duration::from_micros(half + self.next() % (micros - half + 1))
    }

    /// The delay before attempt number `attempt` (from 0): doubled each time up to the cap, jittered (traps B19).
    pub(crate) fn backoff(&mut self, attempt: u32, first: Duration, cap: Duration) -> Duration {
        let doubled = first.saturating_mul(1u32.checked_shl(attempt.min(31)).unwrap_or(u32::MAX));
        self.jittered(doubled.min(cap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B19: capped and jittered; the same seed gives the same delays.
    #[test]
    fn backoff_doubles_up_to_its_cap_and_stays_within_half() {
        let (first, cap) = (Duration::from_millis(10), Duration::from_millis(80));
        let mut random = Random::new(7);
        for attempt in 0..40 {
            let full = first.saturating_mul(1 << attempt.min(3)).min(cap);
            let delay = random.backoff(attempt, first, cap);
            assert!(
                delay >= full / 2 && delay <= full,
                "attempt {attempt}: {delay:?} of {full:?}"
            );
        }
        let (mut one, mut two) = (Random::new(3), Random::new(3));
        assert_eq!(one.backoff(5, first, cap), two.backoff(5, first, cap));
    }
}
