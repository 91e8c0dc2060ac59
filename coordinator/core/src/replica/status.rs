//! What a replica says of itself, to operators and to tests.

use super::{Admission, Replica, Role, Storage};
use crate::paxos::{Ballot, Slot};
use alloc::collections::BTreeSet;
use alloc::string::String;
use synod_proto::ids::{Lineage, ReplicaId, UnixMillis};

/// What a replica says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its role.
    pub role: RoleName,
    /// The leader it knows of.
    pub leader: Option<ReplicaId>,
    /// The highest ballot it promised.
    pub ballot: Ballot,
    /// Its decided prefix.
    pub decided_up_to: Slot,
    /// Its applied prefix; behind the decided one only if it cannot apply (A8).
    pub applied_up_to: Slot,
    /// The coordinator's lineage.
    pub lineage: Option<Lineage>,
    /// The highest stamp applied.
    pub stamp: UnixMillis,
    /// The watermark.
    pub mark: UnixMillis,
    /// Outcomes in the register.
    pub outcome_count: usize,
    /// Commits with an unacknowledged branch.
    pub unfinished_count: usize,
    /// Branches under a reported hazard; known to the leader only.
    pub hazard_count: usize,
    /// Registered sessions; at the leader only.
    pub session_count: usize,
    /// Whether it may promise and accept.
    pub admission: Admission,
    /// Why it cannot write, or cannot apply.
    pub failure: Option<String>,
    /// Slots of its log that it cannot read.
    pub unreadable_count: usize,
    /// Peers with a link.
    pub connected: BTreeSet<ReplicaId>,
}

/// The name of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleName {
    /// Follows, or waits for a leader.
    Follower,
    /// In phase 1.
    Candidate,
    /// In phase 2, but still applying what was chosen before.
    Leading,
    /// Leads and serves.
    Serving,
}

/// How much waits at a replica. Each has its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queues {
    /// Commands that wait to enter the log: at most [`queue_count_max`](super::Limits::queue_count_max).
    pub command_count: usize,
    /// Their bytes: at most [`queue_bytes_max`](super::Limits::queue_bytes_max).
    pub command_bytes: usize,
    /// Requests that wait for a new leader to serve: at most [`PARKED_COUNT_MAX`](super::PARKED_COUNT_MAX).
    pub parked_count: usize,
    /// Entries in flight: no new one above [`pipeline_depth`](super::Limits::pipeline_depth), but what phase 1 brought.
    pub in_flight_count: usize,
}

impl Replica {
    /// What waits.
    #[must_use]
    pub fn queues(&self) -> Queues {
        match &self.role {
            Role::Leader(leader) => Queues {
                in_flight_count: leader.in_flight.len(),
                ..leader.leading.queues()
            },
            Role::Follower { .. } | Role::Candidate(_) => Queues::default(),
        }
    }

    /// What the replica says of itself.
    #[must_use]
    pub fn status(&self) -> Status {
        let (role, hazard_count, session_count) = match &self.role {
            Role::Follower { .. } => (RoleName::Follower, 0, 0),
            Role::Candidate(_) => (RoleName::Candidate, 0, 0),
            Role::Leader(leader) => {
                let role = if leader.leading.is_serving() {
                    RoleName::Serving
                } else {
                    RoleName::Leading
                };
                (
                    role,
                    leader.leading.deliveries.hazard_count(),
                    leader.leading.deliveries.session_count(),
                )
            }
        };
        let failure = match &self.storage {
            Storage::Failed { text, .. } => Some(text.clone()),
            Storage::Writable => self.cannot_apply.clone(),
        };
        Status {
            role,
            leader: self.leader(),
            ballot: self.acceptor.promised(),
            decided_up_to: self.acceptor.meta().decided_up_to,
            applied_up_to: self.machine.applied_up_to(),
            lineage: self.machine.lineage(),
            stamp: self.machine.stamp(),
            mark: self.machine.mark(),
            outcome_count: self.machine.outcomes().count(),
            unfinished_count: self.machine.outcomes().unfinished_count(),
            hazard_count,
            session_count,
            admission: self.admission.clone(),
            failure,
            unreadable_count: self.acceptor.unreadable_count(),
            connected: self.connected.clone(),
        }
    }
}
