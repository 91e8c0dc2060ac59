//! One transaction, explored: within small bounds, every order of everything; and the planted bugs are found.

use std::collections::BTreeSet;
use synod_tests::explore::search::{Bound, Report, explore};
use synod_tests::explore::transaction::plant::Plant;
use synod_tests::explore::transaction::{Bounds, TransactionWorld};
use synod_tests::explore::worlds::TRANSACTION;

fn run(bounds: Bounds, state_count_max: usize) -> Report {
    explore(&mut TransactionWorld::new(bounds), Bound::states(state_count_max))
}

fn completely(bounds: Bounds, state_count_min: usize) {
    let report = run(bounds, 1_000_000);
    assert_eq!(report.violation, None);
    assert!(
        report.is_complete && report.state_count >= state_count_min,
        "{report:?}"
    );
}

/// T2, T5, T6: calls that run twice, commit or abort, the deadline, with every message lost, repeated and late.
#[test]
fn messages_alone() {
    completely(TRANSACTION, 1_000);
}

/// T6, T7, T8: a timer of any session at any moment: inquiries before and after the deadline, a commit request that is
/// sent again over another stream, an initiator in doubt.
#[test]
fn a_timer_at_any_moment() {
    completely(
        Bounds {
            timer_count: 1,
            wait_count: 1,
            ..TRANSACTION
        },
        100_000,
    );
}

/// What the invariants are about happens: both outcomes, by whoever proposes them, and an execution that is not named.
#[test]
fn the_interesting_things_happen() {
    let mut world = TransactionWorld::new(Bounds {
        timer_count: 1,
        ..TRANSACTION
    });
    let report = explore(&mut world, Bound::states(1_000_000));
    assert_eq!(report.violation, None);
    let expected = BTreeSet::from([
        "a commit before the deadline that has passed",
        "a commit delivered everywhere",
        "a commit in the log",
        "an abort by an inquiry",
        "an abort in the log",
        "an execution that the commit does not name, rolled back",
        "an initiator told of a commit",
        "an initiator told of an abort",
    ]);
    assert_eq!(*world.sights(), expected);
}

/// T1, traps B8, B11: the leader dies at any moment, also over a request; the next one finds what got into the log.
#[test]
fn the_leader_dies_at_any_moment() {
    let death = Bounds {
        leader_death_count: 1,
        wait_count: 1,
        ..TRANSACTION
    };
    completely(death, 10_000);
    completely(
        Bounds {
            replica_count: 3,
            ..death
        },
        10_000,
    );
}

/// T8, C1, C2: a participant dies at any moment and starts on what its database holds.
#[test]
fn a_participant_dies_at_any_moment() {
    let crash = Bounds {
        execution_count_max: 1,
        crash_count: 1,
        wait_count: 1,
        ..TRANSACTION
    };
    completely(crash, 1_000);
}

/// All of it at once, as far as a test's time goes; `explore` goes further.
#[test]
fn everything_at_once_up_to_a_bound() {
    let bounds = Bounds {
        replica_count: 3,
        timer_count: 1,
        wait_count: 1,
        leader_death_count: 1,
        crash_count: 1,
        ..TRANSACTION
    };
    let report = run(bounds, 60_000);
    assert_eq!(report.violation, None);
    assert_eq!(report.state_count, 60_000);
}

/// The explorer is worth something only if it finds bugs: each within the stated number of states, with a trace.
#[test]
fn every_planted_bug_is_found() {
    let bounds = Bounds {
        timer_count: 1,
        wait_count: 1,
        leader_death_count: 1,
        crash_count: 1,
        ..TRANSACTION
    };
    for plant in Plant::ALL {
        let report = run(
            Bounds {
                plant: Some(plant),
                ..bounds
            },
            200_000,
        );
        let Some(violation) = report.violation else {
            panic!("{plant:?} was not found: {report:?}")
        };
        assert!(!violation.trace.is_empty());
        println!("{plant:?}: {} states, {violation}", report.state_count);
    }
}

/// The same twice gives the same counts: nothing in the walk depends on chance or on addresses.
#[test]
fn the_same_world_has_the_same_size_twice() {
    let bounds = Bounds {
        replica_count: 3,
        leader_death_count: 1,
        ..TRANSACTION
    };
    let sizes = [(); 2].map(|()| {
        let report = run(bounds, 20_000);
        (
            report.state_count,
            report.transition_count,
            report.depth,
            report.rest_count,
        )
    });
    assert_eq!(sizes[0], sizes[1]);
}
