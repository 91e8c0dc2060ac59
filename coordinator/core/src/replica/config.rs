//! How a replica is set up: who its peers are, its timers and its bounds.

use crate::paxos::acceptor::PIPELINE_DEPTH_MAX;
use alloc::collections::BTreeSet;
use synod_proto::ids::{Incarnation, ReplicaId};
use synod_proto::limits;

/// How a replica is set up. Nothing in here is read by `apply` (traps A3).
#[derive(Clone, Debug)]
pub struct Config {
    /// This replica.
    pub replica: ReplicaId,
    /// Every replica of the coordinator, this one included.
    pub replicas: BTreeSet<ReplicaId>,
    /// This replica's directory (L10).
    pub incarnation: Incarnation,
    /// Its timers.
    pub timing: Timing,
    /// Its bounds.
    pub limits: Limits,
    /// How far the watermark trails the stamps, in milliseconds (T14).
    pub watermark_lag_ms: u64,
}

/// Timers, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between a leader's heartbeats.
    pub heartbeat_us: u64,
    /// The shortest silence after which a follower tries to lead.
    pub election_timeout_us_min: u64,
    /// The longest one. A leader that hears no quorum for so long steps down.
    pub election_timeout_us_max: u64,
}

/// Bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries in flight. Two or more keep the disks busy while answers travel.
    pub pipeline_depth: usize,
    /// Bytes of commands in one entry, unless a single command is larger.
    pub entry_bytes_max: usize,
    /// Commands that wait to enter the log; more are refused as overloaded.
    pub queue_count_max: usize,
    /// Bytes of commands that wait to enter the log.
    pub queue_bytes_max: usize,
    /// Outcomes in the register; above, new gtids are refused as overloaded (T14).
    pub register_count_max: usize,
    /// Enrolled databases.
    pub resource_count_max: usize,
    /// Bytes of decided values held in memory for replicas that lag; older ones are read from disk.
    pub retained_bytes_max: usize,
}

impl Default for Timing {
    /// Heartbeats every 50 ms; an election after 250 to 500 ms of silence.
    fn default() -> Self {
        Self {
            heartbeat_us: 50_000,
            election_timeout_us_min: 250_000,
            election_timeout_us_max: 500_000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pipeline_depth: 8,
            entry_bytes_max: 256 << 10,
            queue_count_max: 65_536,
            queue_bytes_max: 64 << 20,
            register_count_max: 2_000_000,
            resource_count_max: 100_000,
            retained_bytes_max: 8 << 20,
        }
    }
}

impl Config {
    /// A set-up with default timers and bounds.
    #[must_use]
    pub fn new(replica: ReplicaId, replicas: BTreeSet<ReplicaId>, incarnation: Incarnation) -> Self {
        Self {
            replica,
            replicas,
            incarnation,
            timing: Timing::default(),
            limits: Limits::default(),
            watermark_lag_ms: limits::WATERMARK_LAG_MS_DEFAULT,
        }
    }

    /// How many replicas are a quorum, in both phases.
    #[must_use]
    pub fn quorum_count(&self) -> usize {
        self.replicas.len() / 2 + 1
    }

    pub(super) fn check(&self) {
        assert!(
            self.replicas.contains(&self.replica),
            "a replica is one of the replicas"
        );
        assert!(
            self.timing.heartbeat_us * 3 <= self.timing.election_timeout_us_min,
            "two heartbeats may be lost"
        );
        assert!(
            self.timing.election_timeout_us_min < self.timing.election_timeout_us_max,
            "timeouts must differ"
        );
        assert!(
            (1..=PIPELINE_DEPTH_MAX).contains(&self.limits.pipeline_depth),
            "the pipeline is bounded"
        );
        assert!(
            self.watermark_lag_ms >= 2 * limits::DEADLINE_MS_MAX,
            "T14: the lag is twice the longest deadline"
        );
    }
}
