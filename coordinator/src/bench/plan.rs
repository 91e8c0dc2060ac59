//! What to run.

use std::path::PathBuf;
use std::time::Duration;

/// One run of the load generator.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The replicas, as `host:port`.
    pub(crate) endpoints: Vec<String>,
    /// How many sessions, each a connection of its own: one for every process of a real deployment. At least one.
    pub(crate) session_count: usize,
    /// How many transactions are under way at one time, over all sessions. At least one a session.
    pub(crate) in_flight: usize,
    /// Branches that each transaction names. Zero: a commit of one read-only vote, which needs no delivery.
    pub(crate) branch_count: usize,
    /// How they travel.
    pub(crate) transport: Transport,
    /// What the branches' databases are.
    pub(crate) participants: Participants,
    /// When they begin.
    pub(crate) pace: Pace,
    /// How long before anything counts.
    pub(crate) warm_up: Duration,
    /// How long it counts.
    pub(crate) measured: Duration,
}

/// How transactions reach the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Many on one stream: what the participant library does.
    Session,
    /// A gRPC call for each: what a script does.
    Unary,
}

/// What the branches' databases are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Participants {
    /// Nothing is stored: a delivery is acknowledged at once.
    Memory,
    /// A service with a redb file for each session.
    Redb {
        /// Where their directory is made; a temporary place unless told.
        directory: Option<PathBuf>,
    },
}

/// When transactions begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// One as soon as one has ended.
    Closed,
    /// So many a second, whatever the answers do.
    Open { per_second: f64 },
}
