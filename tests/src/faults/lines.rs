//! Lines between services and replicas that fail one by one, and machines that stand still for long. A service then hears a
//! follower but not the leader, or is heard and does not hear; a process wakes to a world that has gone on without it.

use super::{Fault, Plan};
use crate::actors::ActorId;
use crate::chance::pick;
use crate::schedule::Micros;
use std::collections::BTreeSet;
use synod_coordinator_core::random::Random;
use synod_proto::ids::ReplicaId;

/// Which way of a line between a service and a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What the service says.
    ToReplica,
    /// What the replica says.
    ToService,
    /// All of it.
    Both,
}

impl Direction {
    /// Whether it covers what goes to the replica, or what goes to the service.
    #[must_use]
    pub fn covers(self, is_to_replica: bool) -> bool {
        match self {
            Self::ToReplica => is_to_replica,
            Self::ToService => !is_to_replica,
            Self::Both => true,
        }
    }
}

/// Longer than any patience with a session.
const CUT_US_MAX: Micros = 8_000_000;
const CLOG_US_MAX: Micros = 5_000_000;
/// Longer than most deadlines of a run, and than every election.
const PAUSE_US_MAX: Micros = 10_000_000;

/// Draws what befalls lines: in half of the runs, with at most `gap_us_max` between two.
#[must_use]
pub fn draw(
    random: &mut Random,
    replicas: &BTreeSet<ReplicaId>,
    actors: &[ActorId],
    length: Micros,
    gap_us_max: Micros,
) -> Plan {
    let all: Vec<ReplicaId> = replicas.iter().copied().collect();
    let mut plan = Vec::new();
    if random.between(0, 1) == 0 {
        return plan;
    }
    let has_cuts = random.between(0, 2) > 0;
    let mut at = 500_000;
    loop {
        at += random.between(50_000, gap_us_max);
        if at >= length {
            return plan;
        }
        let (actor, replica) = (pick(random, actors), pick(random, &all));
        let direction = pick(
            random,
            &[Direction::ToReplica, Direction::ToService, Direction::Both],
        );
        let (cut_us, clog_us) = (
            random.between(10_000, CUT_US_MAX),
            random.between(10_000, CLOG_US_MAX),
        );
        match random.between(0, 4) {
            0 | 1 => plan.push((at, Fault::ClogLine(actor, replica, clog_us))),
            _ if !has_cuts => {}
            // The replica goes on among its peers, and no service reaches it, or hears it.
            2 => plan.extend(
                actors
                    .iter()
                    .map(|actor| (at, Fault::CutLine(*actor, replica, direction, cut_us))),
            ),
            _ => plan.push((at, Fault::CutLine(actor, replica, direction, cut_us))),
        }
    }
}

/// Draws long pauses, of services and, if `replicas` has any, of replicas: in a third of the runs.
#[must_use]
pub fn draw_pauses(
    random: &mut Random,
    replicas: &BTreeSet<ReplicaId>,
    actors: &[ActorId],
    length: Micros,
    gap_us_max: Micros,
) -> Plan {
    let all: Vec<ReplicaId> = replicas.iter().copied().collect();
    let mut plan = Vec::new();
    if random.between(0, 2) > 0 {
        return plan;
    }
    let mut at = 500_000;
    loop {
        at += random.between(500_000, 2 * gap_us_max);
        if at >= length {
            return plan;
        }
        let pause_us = random.between(10_000, PAUSE_US_MAX);
        plan.push(match random.between(0, 2) {
            0 if !all.is_empty() => (at, Fault::Pause(pick(random, &all), pause_us)),
            _ => (at, Fault::PauseActor(pick(random, actors), pause_us)),
        });
    }
}
