//! The clocks of one machine: monotonic ones drift and start anywhere, wall clocks may lie (T14).

use crate::schedule::Micros;
use synod_coordinator_core::time::{Now, Timestamp};
use synod_proto::ids::UnixMillis;

/// The true time of day when a run begins: 2026-01-01.
pub const WORLD_BEGAN_AT: UnixMillis = UnixMillis(1_767_225_600_000);

/// The true time of day. Only checkers and honest machines know it.
#[must_use]
pub fn true_wall(now: Micros) -> UnixMillis {
    WORLD_BEGAN_AT.plus(now / 1000)
}

/// One machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    booted_at: Micros,
    base: u64,
    drift_ppm: i32,
    /// How far the wall clock is ahead of the truth, in milliseconds.
    pub wall_offset_ms: i64,
}

impl Clocks {
    /// Clocks of a process that starts at `booted_at`, whose monotonic clock shows `base` then and gains `drift_ppm`
    /// microseconds a second.
    #[must_use]
    pub fn new(booted_at: Micros, base: u64, drift_ppm: i32, wall_offset_ms: i64) -> Self {
        assert!(drift_ppm.abs() < 500_000, "a clock runs forward");
        Self {
            booted_at,
            base,
            drift_ppm,
            wall_offset_ms,
        }
    }

    /// What the machine reads at `now`.
    #[must_use]
    pub fn read(&self, now: Micros) -> Now {
        let elapsed = i128::from(now.saturating_sub(self.booted_at));
        let shown = elapsed * i128::from(1_000_000 + self.drift_ppm) / 1_000_000;
        let monotonic = Timestamp(self.base + u64::try_from(shown).expect("a clock runs forward"));
        Now {
            monotonic,
            wall: UnixMillis(true_wall(now).0.saturating_add_signed(self.wall_offset_ms)),
        }
    }

    /// The first moment at which the monotonic clock shows at least `timestamp`.
    #[must_use]
    pub fn moment(&self, timestamp: Timestamp) -> Micros {
        let shown = i128::from(timestamp.0.saturating_sub(self.base));
        let elapsed = shown * 1_000_000 / i128::from(1_000_000 + self.drift_ppm) + 1;
        self.booted_at
            .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::Clocks;
    use synod_coordinator_core::time::Timestamp;

    #[test]
    fn a_timer_set_on_a_drifting_clock_fires_not_before_its_time() {
        for drift_ppm in [-200_000, -1, 0, 1, 333, 200_000] {
            let clocks = Clocks::new(17, 1000, drift_ppm, 0);
            for due in (1000..60_000).step_by(977) {
                let moment = clocks.moment(Timestamp(due));
                assert!(
                    clocks.read(moment).monotonic >= Timestamp(due),
                    "drift {drift_ppm}, due {due}"
                );
            }
        }
    }
}
