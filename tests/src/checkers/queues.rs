//! Everything that waits has a bound, and keeps it. The most that ever waited is a figure of the run.

use super::{Check, require};
use crate::host::Host;

/// The most that ever waited in a run, at any one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// Commands that waited to enter the log.
    pub command_count: usize,
    /// Their bytes.
    pub command_bytes: usize,
    /// Requests that waited for a new leader to serve.
    pub parked_count: usize,
    /// Entries in flight.
    pub in_flight_count: usize,
    /// Inputs that waited for the process: what arrived while it was paused.
    pub mail_count: usize,
}

impl Waited {
    /// Names and values, as they are shown.
    #[must_use]
    pub fn named(&self) -> [(&'static str, usize); 5] {
        [
            ("commands that waited to enter the log", self.command_count),
            ("bytes of such commands", self.command_bytes),
            ("requests that waited for a new leader", self.parked_count),
            ("entries in flight", self.in_flight_count),
            ("inputs that waited for a process", self.mail_count),
        ]
    }

    /// The larger of each.
    pub fn raise(&mut self, other: &Self) {
        self.command_count = self.command_count.max(other.command_count);
        self.command_bytes = self.command_bytes.max(other.command_bytes);
        self.parked_count = self.parked_count.max(other.parked_count);
        self.in_flight_count = self.in_flight_count.max(other.in_flight_count);
        self.mail_count = self.mail_count.max(other.mail_count);
    }
}

/// Watches what waits.
#[derive(Debug, Default)]
pub struct QueueChecker {
    most: Waited,
}

impl QueueChecker {
    /// The most that ever waited.
    #[must_use]
    pub fn most(&self) -> Waited {
        self.most
    }

    /// Mail waits for a process.
    pub fn on_mail(&mut self, count: usize) {
        self.most.mail_count = self.most.mail_count.max(count);
    }

    /// Looks at a replica after its turn.
    ///
    /// # Errors
    /// More waits than its limits allow.
    pub fn after_turn(&mut self, host: &Host) -> Check {
        let Some(replica) = host.replica() else {
            return Ok(());
        };
        let (queues, limits) = (replica.queues(), &host.config.limits);
        let is_bounded =
            queues.command_count <= limits.queue_count_max && queues.command_bytes <= limits.queue_bytes_max;
        require(is_bounded, || {
            format!(
                "replica {}: more waits than may: {queues:?}, {limits:?}",
                host.id()
            )
        })?;
        self.most.raise(&Waited {
            command_count: queues.command_count,
            command_bytes: queues.command_bytes,
            parked_count: queues.parked_count,
            in_flight_count: queues.in_flight_count,
            mail_count: 0,
        });
        Ok(())
    }
}
