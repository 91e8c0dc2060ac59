//! Three replicas, explored: within small bounds, every order of everything; and the planted bugs are found.

use std::collections::BTreeSet;
use synod_tests::explore::paxos::host::{Rounds, Syncs};
use synod_tests::explore::paxos::plant::Plant;
use synod_tests::explore::paxos::{Beginning, Bounds, PaxosWorld};
use synod_tests::explore::search::{Bound, Report, explore};
use synod_tests::explore::worlds::TAKE_OVER;

fn run(bounds: Bounds, state_count_max: usize) -> Report {
    explore(&mut PaxosWorld::new(bounds), Bound::states(state_count_max))
}

/// A leader with a value under way, and a second replica that takes over: all of it.
#[test]
fn a_change_of_leaders_is_explored_completely() {
    let report = run(TAKE_OVER, 100_000);
    assert_eq!(report.violation, None);
    assert!(report.is_complete);
    assert!(report.state_count > 10_000, "{report:?}");
}

/// What the invariants are about happens: leaders overlap, values compete, replicas lag, sessions are told.
#[test]
fn the_interesting_things_happen() {
    let mut sights = BTreeSet::new();
    let rivals = Bounds {
        beginning: Beginning::Fresh,
        stand_count: [1, 1, 0],
        value_count: 0,
        ..TAKE_OVER
    };
    for bounds in [TAKE_OVER, rivals] {
        let mut world = PaxosWorld::new(bounds);
        let report = explore(&mut world, Bound::states(60_000));
        assert_eq!(report.violation, None);
        sights.extend(world.sights().clone());
    }
    let expected = BTreeSet::from([
        "a replica two slots behind",
        "a second leader that decides",
        "a session told of a commit",
        "two leaders at a time",
        "two values accepted in a slot",
    ]);
    assert_eq!(sights, expected);
}

/// The same twice gives the same counts: nothing in the walk depends on chance or on addresses.
#[test]
fn the_same_world_has_the_same_size_twice() {
    let sizes = [(); 2].map(|()| {
        let report = run(TAKE_OVER, 20_000);
        (report.state_count, report.transition_count, report.depth)
    });
    assert_eq!(sizes[0], sizes[1]);
}

/// L1, L2: a crash of any replica at any step, with what it had not synced lost or kept.
#[test]
fn a_crash_beside_a_change_of_leaders() {
    let crash = Bounds {
        crash_count: 1,
        ..TAKE_OVER
    };
    for bounds in [
        crash,
        Bounds {
            syncs: Syncs::AtAnyTime,
            ..crash
        },
    ] {
        let report = run(bounds, 30_000);
        assert_eq!(report.violation, None);
        assert!(report.state_count >= 30_000, "{report:?}");
    }
}

/// Two replicas that start from nothing and stand against each other.
#[test]
fn two_candidates_from_the_beginning() {
    let bounds = Bounds {
        beginning: Beginning::Fresh,
        stand_count: [1, 1, 0],
        value_count: 0,
        ..TAKE_OVER
    };
    let report = run(bounds, 60_000);
    assert_eq!(report.violation, None);
}

/// A bug, and the smallest bounds that were found to show it.
fn planted(plant: Plant) -> Bounds {
    let with_crash = Bounds {
        crash_count: 1,
        plant: Some(plant),
        ..TAKE_OVER
    };
    match plant {
        Plant::CountAnyBallot => Bounds {
            stand_count: [1, 0, 0],
            ..with_crash
        },
        Plant::ForgetPromise | Plant::ForgetAccepted | Plant::SendBeforeSync => with_crash,
        Plant::DropReports => Bounds {
            crash_count: 0,
            ..with_crash
        },
        Plant::ChooseLowest => Bounds {
            stand_count: [1, 1, 0],
            crash_count: 0,
            ..with_crash
        },
        Plant::ReuseStart => Bounds {
            beginning: Beginning::Fresh,
            syncs: Syncs::AtAnyTime,
            rounds: Rounds::Own,
            stand_count: [2, 0, 0],
            value_count: 0,
            ..with_crash
        },
        Plant::BelieveAnyPrefix => Bounds {
            beat_count: 1,
            crash_count: 0,
            ..with_crash
        },
    }
}

/// The explorer is worth something only if it finds bugs. Each is found within the stated number of states, and the
/// trace that it prints is not empty.
#[test]
fn every_planted_bug_is_found() {
    for plant in Plant::ALL {
        let report = run(planted(plant), 400_000);
        let Some(violation) = report.violation else {
            panic!("{plant:?} was not found: {report:?}")
        };
        assert!(!violation.trace.is_empty());
        println!("{plant:?}: {} states, {violation}", report.state_count);
    }
}
