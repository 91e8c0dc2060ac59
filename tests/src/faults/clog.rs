//! Links that hold what they carry for a while and then deliver all of it: a full buffer, a path that is being changed.
//! Nothing is lost, so nobody asks again; what a leader or a voter hears at last was said before whatever happened since.

use super::{Fault, Plan};
use crate::chance::pick;
use crate::schedule::Micros;
use std::collections::BTreeSet;
use synod_coordinator_core::random::Random;
use synod_proto::ids::ReplicaId;

/// Longer than an election takes, so that what was held comes under another leader.
const LENGTH_US_MAX: Micros = 5_000_000;

/// Draws the clogs of a run: in half of the runs, with at most `gap_us_max` between two.
#[must_use]
pub fn draw(random: &mut Random, replicas: &BTreeSet<ReplicaId>, length: Micros, gap_us_max: Micros) -> Plan {
    let all: Vec<ReplicaId> = replicas.iter().copied().collect();
    let mut plan = Vec::new();
    if random.between(0, 1) == 0 {
        return plan;
    }
    let mut at = 500_000;
    loop {
        at += random.between(50_000, gap_us_max);
        if at >= length {
            return plan;
        }
        let (from, to) = (pick(random, &all), pick(random, &all));
        let clog_us = random.between(10_000, LENGTH_US_MAX);
        let others = all.iter().copied();
        match random.between(0, 3) {
            // All that one says, or all that it hears.
            0 => plan.extend(others.map(|to| (at, Fault::Clog(from, to, clog_us)))),
            1 => plan.extend(others.map(|from| (at, Fault::Clog(from, to, clog_us)))),
            _ => plan.push((at, Fault::Clog(from, to, clog_us))),
        }
        plan.retain(|(_, fault)| !matches!(fault, Fault::Clog(from, to, _) if from == to));
    }
}
