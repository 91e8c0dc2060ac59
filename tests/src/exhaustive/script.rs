//! The scripted run: the same in every case up to the moment that the case is about.

use super::{Act, Case, Machine, stores};
use crate::actors::initiator::Habits;
use crate::actors::participant;
use crate::checkers::{Violation, require};
use crate::faults::Fault;
use crate::log_disk::damage::Verdict;
use crate::log_disk::sites::Site;
use crate::run::{converge_after, populate};
use crate::schedule::Micros;
use crate::store::UnsyncedWrite;
use crate::world::{Setup, World};
use synod_coordinator_core::replica::Limits;
use synod_proto::ids::ReplicaId;

/// How many variants there are: other seeds and segment lengths, another follower that crashes.
pub const VARIANT_COUNT: u8 = 6;

/// How many replicas there are.
pub const REPLICA_COUNT: u8 = 3;

/// From one batch a segment to more than the run fills.
const SEGMENT_BYTES: [u64; 3] = [8 << 10, 32 << 10, 128 << 10];

/// A first leader is there, and the first transactions are decided.
const FOLLOWER_CRASHES_AT: Micros = 1_700_000;
const FOLLOWER_STARTS_AT: Micros = 2_100_000;
const LEADER_CRASHES_AT: Micros = 2_400_000;
const ALL_START_AT: Micros = 2_900_000;
/// Another leader serves, and all have caught up.
pub(super) const ENDS_AT: Micros = 4_200_000;

/// How long a machine stays down that stops by the case.
const DOWN_US: Micros = 150_000;

/// What a case came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many operations the repair after the crash had.
    pub repair_operation_count: u64,
    /// What the damage came to.
    pub verdict: Option<Verdict>,
}

/// What is known of a variant before its cases are run.
#[derive(Clone, Debug)]
pub struct Reference {
    /// How many operations each replica's disk has, by the end of the script.
    pub operation_counts: Vec<(Machine, u64)>,
    /// What can be damaged in each log then.
    pub sites: Vec<(ReplicaId, Vec<Site>)>,
    /// Outcomes in the log.
    pub outcome_count: usize,
    /// How often slots were read from a disk for a lagging replica.
    pub fetch_count: u64,
    /// Ballots in which a leader served.
    pub led_count: usize,
    /// The most segments that a log has.
    pub segment_count_max: usize,
}

fn stage(variant: u8) -> Result<World, Violation> {
    let setup = Setup::scripted(u64::from(variant) + 1, REPLICA_COUNT);
    let limits = Limits {
        // So little that a lagging peer is served from the disk at once.
        retained_bytes_max: 300,
        ..Limits::default()
    };
    let mut world = World::with_config(setup, |config| config.limits = limits)?;
    world.attach_logs(SEGMENT_BYTES[usize::from(variant) % SEGMENT_BYTES.len()]);
    let habits = Habits {
        transaction_count: 12,
        pause_us: (100_000, 200_000),
        ..Habits::single()
    };
    populate(&mut world, (2, participant::Habits::PLAIN), (2, &habits));
    plan_crashes(&mut world, variant);
    Ok(world)
}

/// What is done to the replicas in every run of every script.
pub(super) fn plan_crashes(world: &mut World, variant: u8) {
    let follower = ReplicaId(variant % REPLICA_COUNT + 1);
    world.plan(FOLLOWER_CRASHES_AT, Fault::Crash(follower, UnsyncedWrite::Lost));
    world.plan(FOLLOWER_STARTS_AT, Fault::Start(follower));
    world.plan(LEADER_CRASHES_AT, Fault::CrashLeader(UnsyncedWrite::Kept));
    for id in world.replicas() {
        world.plan(ALL_START_AT, Fault::Start(id));
    }
}

fn operation_count(world: &World, id: ReplicaId) -> u64 {
    let log = world.hosts[&id].log.as_ref().expect("a log under every replica");
    log.operation_count()
}

/// Runs a variant with nothing else done to it.
///
/// # Errors
/// A checker found something.
pub fn reference(variant: u8) -> Result<Reference, Violation> {
    let mut world = stage(variant)?;
    let replicas = world.replicas();
    // What was done before the first crash can strike is not counted.
    let before: Vec<u64> = replicas.iter().map(|id| operation_count(&world, *id)).collect();
    world.run_until(ENDS_AT)?;
    let counted = replicas.iter().zip(before);
    let operation_counts = counted
        .map(|(id, before)| (Machine::Replica(*id), operation_count(&world, *id) - before))
        .collect();
    let logs = || {
        world
            .hosts
            .values()
            .filter_map(|host| Some((host.id(), host.log.as_ref()?)))
    };
    let sites = logs().map(|(id, log)| (id, log.sites())).collect();
    let segment_count_max = logs()
        .map(|(_, log)| log.segment_count())
        .max()
        .unwrap_or_default();
    converge_after(&mut world, 200_000)?;
    Ok(Reference {
        operation_counts,
        sites,
        outcome_count: world.checkers.outcomes.records().len(),
        fetch_count: world.fetch_count,
        led_count: world.checkers.ballots.led_count(),
        segment_count_max,
    })
}

/// Runs a case.
///
/// # Errors
/// A checker found something, or what the case is about did not happen.
pub fn run(case: &Case) -> Result<Outcome, Violation> {
    let Machine::Replica(id) = case.machine else {
        return stores::run(case);
    };
    let mut world = stage(case.variant)?;
    let mut outcome = Outcome::default();
    match (case.act, case.point()) {
        (Act::Crash(..), Some(point)) => {
            world.on_fault(Fault::CrashAt(id, point, DOWN_US))?;
            world.run_until(ENDS_AT)?;
            let log = world.hosts[&id].log.as_ref().expect("a log under every replica");
            let (crash_count, in_repair_count) = log.planned_crash_count;
            require(crash_count > 0, || "the operation was never reached".to_string())?;
            require(point.again.is_none() || in_repair_count > 0, || {
                "the repair ended before the second crash".to_string()
            })?;
            outcome.repair_operation_count = log.repair_operation_count;
        }
        (Act::Damage(number), _) => {
            world.run_until(ENDS_AT)?;
            let log = world.hosts[&id].log.as_ref().expect("a log under every replica");
            let site = log.sites().into_iter().nth(number);
            let site = site.ok_or_else(|| Violation(format!("there is no site {number}")))?;
            outcome.verdict = world.strike(id, &site.strike, site.is_before_close)?;
            world.on_fault(Fault::Start(id))?;
        }
        (Act::Crash(..), None) => unreachable!("a crash has its point"),
    }
    converge_after(&mut world, 200_000)?;
    let status = world.hosts[&id].replica().expect("it runs").status();
    require(status.unreadable_count == 0, || {
        format!("{} slots were not repaired from peers", status.unreadable_count)
    })?;
    Ok(outcome)
}
