//! Time as an argument of both cores: monotonic for timers, wall for what other machines compare, and never one for the other (T14).

use crate::ids::UnixMillis;
use core::time::Duration;

/// Microseconds of a monotonic clock since some fixed point of this process. Means nothing outside of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This instant plus `micros`.
    #[must_use]
    pub const fn plus(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// Microseconds since `earlier`, 0 if it lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This instant plus `duration`, saturating.
    #[must_use]
    pub fn plus_duration(self, duration: Duration) -> Self {
        self.plus(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }

    /// How long after `earlier` this is; zero if it lies ahead.
    #[must_use]
    pub const fn duration_since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.since(earlier))
    }
}

/// Both clocks, read together: the time at which a step runs. Delays are measured on the monotonic clock only; the wall
/// clock is read for what another process wrote, a deadline or an age (traps B21).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For timers. Never goes back.
    pub monotonic: Timestamp,
    /// What this machine takes for the time of day. May lie.
    pub wall: UnixMillis,
}
