//! Chance as an argument: a seeded source of numbers for what only needs to differ (election timeouts, lineages), and the
//! backoff that draws from it. Both cores use it; neither has another.

use core::time::Duration;

/// SplitMix64 (Steele, Lea and Flood, *Fast Splittable Pseudorandom Number Generators*, 2014). Not for secrets.
#[derive(Clone, Debug, Hash)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `low` to `high`, both inclusive. The bias of the remainder is far below what a timeout notices.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        debug_assert!(low <= high);
        low + self.next_u64() % (high - low).saturating_add(1)
    }

    /// Sixteen bytes.
    pub fn bytes16(&mut self) -> [u8; 16] {
        let mut bytes = [0u8; 16];
        bytes[..8].copy_from_slice(&self.next_u64().to_be_bytes());
        bytes[8..].copy_from_slice(&self.next_u64().to_be_bytes());
        bytes
    }

    /// A delay between half of `delay` and all of it, so that what failed together does not return together.
    pub fn jittered(&mut self, delay: Duration) -> Duration {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        let half = micros / 2;
        Duration::from_micros(half + self.next_u64() % (micros - half + 1))
    }

    /// The delay before attempt number `attempt` (from 0): doubled each time up to the cap, jittered (traps B19).
    pub fn backoff(&mut self, attempt: u32, first: Duration, cap: Duration) -> Duration {
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
