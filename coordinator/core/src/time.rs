//! Time as an argument: monotonic for timers, wall for what other machines compare, and never one for the other (T14).

use synod_proto::ids::UnixMillis;

/// Microseconds of a monotonic clock since some fixed point of this process.
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
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For timers. Never goes back.
    pub monotonic: Timestamp,
    /// What this machine takes for the time of day. May lie.
    pub wall: UnixMillis,
}
