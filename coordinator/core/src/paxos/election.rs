//! Who may try to lead, and when.
//!
//! A replica that has heard no leader for its (random) timeout asks whether a quorum would promise. Replicas deny while
//! they hear a leader that itself hears a quorum. A denial changes nothing anywhere, so a replica on the wrong side of
//! a partition does not raise ballots. Whether the candidate's log is up to date is not asked: a winner that lacks
//! decided slots fetches them before it proposes (L5), which keeps topologies live in which only a lagging replica
//! reaches a quorum (Omni-Paxos, section 3).

use crate::random::Random;
use crate::replica::Timing;
use crate::time::Timestamp;
use alloc::collections::BTreeSet;
use core::hash::{Hash, Hasher};
use synod_proto::ids::ReplicaId;

/// The election's state at one replica.
#[derive(Clone, Debug)]
pub(crate) struct Election {
    /// When to try, unless a leader is heard before.
    pub(crate) deadline: Timestamp,
    /// When a leader that hears a quorum was last heard.
    heard_leader_at: Option<Timestamp>,
    /// Counts pre-votes; starts at a random number, so that answers to a former process do not count.
    attempt: u64,
    granted: BTreeSet<ReplicaId>,
    /// The highest round seen anywhere: the next ballot goes above it.
    pub(crate) round_max: u64,
}

/// For checkers: without the instants, see [`Replica::hash_state`](crate::replica::Replica::hash_state).
impl Hash for Election {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            deadline: _,
            heard_leader_at,
            attempt,
            granted,
            round_max,
        } = self;
        (heard_leader_at.is_some(), attempt, granted, round_max).hash(state);
    }
}

impl Election {
    pub(crate) fn new(random: &mut Random, round_max: u64) -> Self {
        Self {
            deadline: Timestamp(u64::MAX),
            heard_leader_at: None,
            attempt: random.next_u64() >> 1,
            granted: BTreeSet::new(),
            round_max,
        }
    }

    /// Waits a fresh random timeout. Also at start: silence is counted from now, not from before the process lived
    /// (traps A16).
    pub(crate) fn rest(&mut self, now: Timestamp, timing: &Timing, random: &mut Random) {
        self.granted.clear();
        self.deadline =
            now.plus(random.between(timing.election_timeout_us_min, timing.election_timeout_us_max));
    }

    /// The leader resigned: try soon, at a random moment, so that two replicas do not collide.
    pub(crate) fn hurry(&mut self, now: Timestamp, timing: &Timing, random: &mut Random) {
        self.heard_leader_at = None;
        let soon = now.plus(random.between(0, timing.heartbeat_us));
        self.deadline = self.deadline.min(soon);
    }

    pub(crate) fn hear_leader(&mut self, now: Timestamp, timing: &Timing, random: &mut Random) {
        self.heard_leader_at = Some(now);
        self.rest(now, timing, random);
    }

    /// Whether a pre-vote is to be granted.
    pub(crate) fn would_promise(&self, now: Timestamp, timing: &Timing) -> bool {
        self.heard_leader_at
            .is_none_or(|at| now.since(at) >= timing.election_timeout_us_min)
    }

    pub(crate) fn see_round(&mut self, round: u64) {
        self.round_max = self.round_max.max(round);
    }

    /// Starts a pre-vote and returns its number. The replica grants itself.
    pub(crate) fn begin_attempt(
        &mut self,
        own: ReplicaId,
        now: Timestamp,
        timing: &Timing,
        random: &mut Random,
    ) -> u64 {
        self.rest(now, timing, random);
        self.attempt += 1;
        self.granted = BTreeSet::from([own]);
        self.attempt
    }

    /// Counts an answer; returns whether it completes a quorum.
    pub(crate) fn on_granted(&mut self, attempt: u64, from: ReplicaId, quorum_count: usize) -> bool {
        if attempt != self.attempt || self.granted.is_empty() {
            return false;
        }
        self.granted.insert(from) && self.granted.len() == quorum_count
    }

    /// Whether the replica's own grant is a quorum already.
    pub(crate) fn has_quorum_alone(&self, quorum_count: usize) -> bool {
        self.granted.len() >= quorum_count
    }
}
