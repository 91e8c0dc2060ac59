//! The scripted run with services over the real participant and the real redb store, each on a disk of its own: transfers
//! between their accounts while a follower and a leader crash. What is done is that a service's machine loses power, at any
//! operation of its redb file's disk: at a prepare, a local commit, a rollback, a deletion of old rows or an opening (C1,
//! T8, F2, F5). The checkers are those of every world, and the bank's: the stores' own tables add up.

use super::script::{ENDS_AT, Outcome, REPLICA_COUNT, plan_crashes};
use super::{Case, Machine};
use crate::actors::service::{Sabotage, SharedBooks};
use crate::checkers::{Violation, require};
use crate::run::converge_after;
use crate::schedule::Micros;
use crate::workloads::bank::{Bank, Script};
use crate::world::{Setup, World};

/// How many services have a redb file; one more has none.
pub const STORE_COUNT: u32 = 2;

/// How many transactions each service begins, and the longest pause before each.
const TRANSACTIONS: (u64, Micros) = (4, 600_000);

/// From one batch a segment of the replicas' logs to more than the run fills.
const SEGMENT_BYTES: u64 = 32 << 10;

/// So long after the end of the script a machine that stopped twice runs again.
const RUNS_AGAIN_US: Micros = 400_000;

/// Nothing else draws from these seeds.
const SEED_BASE: u64 = 0x7265_6462_0000;

/// What is known of a variant before its cases are run.
#[derive(Clone, Debug)]
pub struct Reference {
    /// How many operations each service's disk has, by the end of the script.
    pub operation_counts: Vec<(Machine, u64)>,
    /// Outcomes in the log.
    pub outcome_count: usize,
    /// Branches that took effect in a store.
    pub effect_count: usize,
    /// What happened how often, by the services' own words.
    pub counts: Vec<(&'static str, u64)>,
}

fn stage(variant: u8, script: Script) -> Result<(World, SharedBooks), Violation> {
    let seed = SEED_BASE + u64::from(variant);
    let mut world = World::new(Setup::scripted(seed, REPLICA_COUNT))?;
    world.attach_logs(SEGMENT_BYTES);
    let bank = Bank::scripted(seed, STORE_COUNT, script);
    let books = bank.books();
    world.add_workload(Box::new(bank));
    plan_crashes(&mut world, variant);
    Ok((world, books))
}

const UNDISTURBED: Script = Script {
    transactions: TRANSACTIONS,
    stop: None,
    sabotage: None,
};

/// Runs a variant with nothing else done to it.
///
/// # Errors
/// A checker found something.
pub fn reference(variant: u8) -> Result<Reference, Violation> {
    let (mut world, books) = stage(variant, UNDISTURBED)?;
    world.run_until(ENDS_AT)?;
    let counts: Vec<u64> = books
        .borrow()
        .disks
        .operation_counts()
        .map(|(_, count)| count)
        .collect();
    converge_after(&mut world, 200_000)?;
    let books = books.borrow();
    Ok(Reference {
        operation_counts: (0..).map(Machine::Service).zip(counts).collect(),
        outcome_count: world.checkers.outcomes.records().len(),
        effect_count: world.databases.committed_count(),
        counts: books.counts.iter().map(|(what, count)| (*what, *count)).collect(),
    })
}

/// Runs a case.
///
/// # Errors
/// A checker found something, or what the case is about did not happen.
pub(super) fn run(case: &Case) -> Result<Outcome, Violation> {
    run_sabotaged(case, None)
}

/// Runs a case with services that do something wrong: to show that somebody notices.
///
/// # Errors
/// As [`super::script::run`].
pub fn run_sabotaged(case: &Case, sabotage: Option<Sabotage>) -> Result<Outcome, Violation> {
    let (Machine::Service(number), Some(stop)) = (case.machine, case.stop_point()) else {
        return Err(Violation("a service's machine only loses power".to_string()));
    };
    let script = Script {
        stop: Some((number, stop)),
        sabotage,
        ..UNDISTURBED
    };
    let (mut world, books) = stage(case.variant, script)?;
    world.run_until(ENDS_AT + RUNS_AGAIN_US)?;
    let (stop_count, repair_operation_count) = {
        let books = books.borrow();
        (books.disks.stop_count(), books.disks.repair_operation_count())
    };
    require(stop_count > 0, || "the operation was never reached".to_string())?;
    require(stop_count == 1 + u64::from(stop.again.is_some()), || {
        "the repair ended before the second loss of power".to_string()
    })?;
    converge_after(&mut world, 200_000)?;
    Ok(Outcome {
        repair_operation_count,
        verdict: None,
    })
}
