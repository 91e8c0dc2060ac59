//! Watermark and clocks (T9, T14; traps A3, B10, B11, B21).

use crate::{decide, inquire, register_silent, stage, status, two_branches};
use synod_coordinator_core::machine::outcomes::Verdict;
use synod_proto::ids::{Gtid, UnixMillis};
use synod_proto::session::{Answer, Decision, Outcome, Request, TransactionStatus};
use synod_tests::actors::databases::RowState;
use synod_tests::faults::Fault;
use synod_tests::run::{converge_after, resource};
use synod_tests::script::{branch, commit, gtid, named, prepare};

/// T9, B10, B11: the watermark passes finished outcomes, which are then Expired, and never an unfinished commit.
#[test]
fn t9_the_watermark_passes_what_is_finished_and_keeps_what_is_not() {
    let (mut world, mut desk) = stage(11);
    let silent = register_silent(&mut world, &mut desk);
    let (finished, open) = (gtid(&world, 1, 0), gtid(&world, 2, 0));
    let branches = two_branches(&mut world, finished);
    let first = commit(&world, finished, branches.clone());
    decide(&mut world, &mut desk, &first);
    let left = named(9, silent);
    prepare(&mut world, open, &left);
    let second = commit(&world, open, vec![left.clone()]);
    let request = desk.number();
    world.ask(
        desk.session,
        Request::Decide {
            request,
            command: second.encode(),
        },
    );
    world.run_for(620_000_000).expect("nothing is wrong");
    world.take_responses(desk.session);

    let slots = world.checkers.log.decided_up_to();
    assert_eq!(
        status(&mut world, &mut desk, finished),
        TransactionStatus::Expired
    );
    assert_eq!(decide(&mut world, &mut desk, &first), Decision::Expired);
    // Every branch that a commit names had acknowledged, so whoever still asks is not named.
    assert_eq!(
        inquire(&mut world, &desk, finished, &named(77, resource(0))),
        Answer::Aborted
    );
    let unheard_of = Gtid::new(finished.began_at(), [200; 10]);
    let late = commit(&world, unheard_of, branches);
    assert_eq!(decide(&mut world, &mut desk, &late), Decision::Expired);
    assert_eq!(
        world.checkers.log.decided_up_to(),
        slots,
        "nothing of this entered the log"
    );

    assert_eq!(inquire(&mut world, &desk, open, &left), Answer::Committed);
    assert_eq!(decide(&mut world, &mut desk, &second), Decision::Committed);
    world
        .databases
        .finish(silent, branch(open, &left), Outcome::Committed);
    world.ask(
        desk.session,
        Request::Acknowledge {
            branch: branch(open, &left),
            resource: silent,
        },
    );
    world.run_for(200_000).expect("nothing is wrong");
    assert_eq!(
        world.checkers.log.reference().outcomes().count(),
        0,
        "the register is empty"
    );
    converge_after(&mut world, 500_000).expect("comes to rest");
}

/// T14, A3, B21: one clock that lies moves neither stamp nor watermark, wherever it stands.
#[test]
fn t14_one_lying_clock_moves_no_watermark() {
    let century_ms = 100 * 365 * 86_400_000;
    for offset_ms in [century_ms, -3_600_000] {
        for lies_at_leader in [true, false] {
            let (mut world, mut desk) = stage(12);
            let leader = world.serving().expect("a leader");
            let liar = world
                .replicas()
                .into_iter()
                .find(|one| (*one == leader) == lies_at_leader)
                .expect("a replica");
            world.on_fault(Fault::WallClock(liar, offset_ms)).expect("lies");
            world.run_for(500_000).expect("nothing is wrong");
            let gtid = gtid(&world, 1, 0);
            let branches = two_branches(&mut world, gtid);
            let proposal = commit(&world, gtid, branches);
            assert_eq!(decide(&mut world, &mut desk, &proposal), Decision::Committed);
            let truth = synod_tests::clocks::true_wall(world.now());
            let reference = world.checkers.log.reference();
            assert!(
                reference.stamp() <= truth.plus(100),
                "offset {offset_ms} at leader: {lies_at_leader}"
            );
            assert!(reference.mark() <= UnixMillis(truth.0 - 599_000));
            let record = reference.outcomes().record(gtid).expect("a record");
            assert!(matches!(record.verdict, Verdict::Committed { .. }));
            converge_after(&mut world, 500_000).expect("comes to rest");
        }
    }
}

/// A leader whose clock is an hour behind still aborts what is past its deadline, by the median of the replicas' clocks:
/// an abort is safe at any time, and prepared branches hold locks.
#[test]
fn t14_a_slow_clock_at_the_leader_keeps_no_branch_in_doubt() {
    let (mut world, mut desk) = stage(13);
    let leader = world.serving().expect("a leader");
    world
        .on_fault(Fault::WallClock(leader, -3_600_000))
        .expect("lies");
    let gtid = gtid(&world, 1, 0);
    let left = named(1, resource(0));
    prepare(&mut world, gtid, &left);
    world.run_for(6_000_000).expect("nothing is wrong");
    assert_eq!(
        world.databases.state(resource(0), branch(gtid, &left)),
        Some(RowState::Aborted)
    );
    assert!(matches!(
        status(&mut world, &mut desk, gtid),
        TransactionStatus::Aborted(_)
    ));
}
