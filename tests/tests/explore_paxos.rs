//! Three replicas, explored: within small bounds, every order of everything; and the planted bugs are found.

use synod_tests::explore::paxos::host::{Rounds, Syncs};
use synod_tests::explore::paxos::plant::Plant;
use synod_tests::explore::paxos::{Beginning, Bounds, PaxosWorld};
use synod_tests::explore::search::{Bound, Report, explore};

const CALM: Bounds = Bounds {
    beginning: Beginning::Led,
    syncs: Syncs::AtOnce,
    rounds: Rounds::Highest,
    stand_count: [0, 1, 0],
    beat_count: 0,
    value_count: 1,
    crash_count: 0,
    plant: None,
};

fn run(bounds: Bounds, state_count_max: usize) -> Report {
    explore(&mut PaxosWorld::new(bounds), Bound { state_count_max })
}

/// A leader with a value under way, and a second replica that takes over: all of it.
#[test]
fn a_change_of_leaders_is_explored_completely() {
    let report = run(CALM, 100_000);
    assert_eq!(report.violation, None);
    assert!(report.is_complete);
    assert!(report.state_count > 10_000, "{report:?}");
}

/// The same twice gives the same counts: nothing in the walk depends on chance or on addresses.
#[test]
fn the_same_world_has_the_same_size_twice() {
    let sizes = [(); 2].map(|()| {
        let report = run(CALM, 20_000);
        (report.state_count, report.transition_count, report.depth)
    });
    assert_eq!(sizes[0], sizes[1]);
}

/// L1, L2: a crash of any replica at any step, with what it had not synced lost or kept.
#[test]
fn a_crash_beside_a_change_of_leaders() {
    let crash = Bounds { crash_count: 1, ..CALM };
    for bounds in [crash, Bounds { syncs: Syncs::AtAnyTime, ..crash }] {
        let report = run(bounds, 30_000);
        assert_eq!(report.violation, None);
        assert!(report.state_count >= 30_000, "{report:?}");
    }
}

/// Two replicas that start from nothing and stand against each other.
#[test]
fn two_candidates_from_the_beginning() {
    let bounds = Bounds { beginning: Beginning::Fresh, stand_count: [1, 1, 0], value_count: 0, ..CALM };
    let report = run(bounds, 60_000);
    assert_eq!(report.violation, None);
}

/// A bug, and the smallest bounds that were found to show it.
fn planted(plant: Plant) -> Bounds {
    let with_crash = Bounds { crash_count: 1, plant: Some(plant), ..CALM };
    match plant {
        Plant::CountAnyBallot => Bounds { stand_count: [1, 0, 0], ..with_crash },
        Plant::ForgetPromise | Plant::ForgetAccepted | Plant::SendBeforeSync => with_crash,
        Plant::DropReports => Bounds { crash_count: 0, ..with_crash },
        Plant::ChooseLowest => Bounds { stand_count: [1, 1, 0], crash_count: 0, ..with_crash },
        Plant::ReuseStart => Bounds {
            beginning: Beginning::Fresh,
            syncs: Syncs::AtAnyTime,
            rounds: Rounds::Own,
            stand_count: [2, 0, 0],
            value_count: 0,
            ..with_crash
        },
        Plant::BelieveAnyPrefix => Bounds { beat_count: 1, crash_count: 0, ..with_crash },
    }
}

/// The explorer is worth something only if it finds bugs. Each is found within the stated number of states, and the
/// trace that it prints is not empty.
#[test]
fn every_planted_bug_is_found() {
    for plant in Plant::ALL {
        let report = run(planted(plant), 400_000);
        let Some(violation) = report.violation else { panic!("{plant:?} was not found: {report:?}") };
        assert!(!violation.trace.is_empty());
        println!("{plant:?}: {} states, {violation}", report.state_count);
    }
}
