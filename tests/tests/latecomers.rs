//! What comes late, or in another order than it was sent: transactions that overtake each other, and replicas that slept.

use synod_proto::command::Decide;
use synod_proto::session::{Decision, Refusal, Request, Response, TransactionStatus};
use synod_tests::faults::{Fault, topology};
use synod_tests::run::{converge_after, resource};
use synod_tests::script::{Desk, ELECTION_US, abort, commit, gtid, named, prepare, settled};
use synod_tests::store::UnsyncedWrite;
use synod_tests::world::{Setup, World};

fn decide(world: &mut World, desk: &mut Desk, proposal: &Decide) -> Decision {
    match desk.decide(world, proposal).expect("an answer") {
        Response::Decided { decision, .. } => decision,
        other => panic!("{other:?}"),
    }
}

/// A6: duplicates are known by their gtid, not by a highest number seen. Transactions that began earlier, and are asked for in
/// the reverse order of their begin, each get an outcome of their own, at the next leader too; and a repeat of any of them is
/// answered as it was, though later ones lie in the log.
#[test]
fn a6_a_later_transaction_hides_no_earlier_one() {
    let (mut world, _) = settled(Setup::scripted(21, 3), 2).expect("settles");
    let mut desk = Desk::at_leader(&mut world);
    let proposals: Vec<Decide> = (1..=6)
        .map(|number| {
            let gtid = gtid(&world, number, i64::from(number));
            let branch = named(u64::from(number), resource(u32::from(number % 2)));
            prepare(&mut world, gtid, &branch);
            commit(&world, gtid, vec![branch])
        })
        .collect();
    for proposal in proposals[3..].iter().rev() {
        assert_eq!(decide(&mut world, &mut desk, proposal), Decision::Committed);
    }
    world
        .on_fault(Fault::CrashLeader(UnsyncedWrite::Lost))
        .expect("crash");
    world
        .run_while_not(ELECTION_US, "another leader", |world| world.serving().is_some())
        .expect("elected");
    // The new leader's session counts its requests from one again, and begins with the oldest transactions.
    let mut desk = Desk::at_leader(&mut world);
    for proposal in proposals[..3].iter().rev().chain(&proposals) {
        assert_eq!(decide(&mut world, &mut desk, proposal), Decision::Committed);
    }
    assert_eq!(world.checkers.outcomes.records().len(), proposals.len());
    converge_after(&mut world, 1_000_000).expect("comes to rest");
    assert_eq!(
        world.databases.committed_count(),
        proposals.len(),
        "each took effect once"
    );
}

/// A7: a command is acknowledged when it is applied, and not when a leader took it. One that a cut-off leader took is refused
/// there in the end, is unknown to the next leader, loses to what that one decides, and stays so when its old record comes back
/// into reach.
#[test]
fn a7_what_a_cut_off_leader_took_is_neither_acknowledged_nor_decided_later() {
    let (mut world, _) = settled(Setup::scripted(23, 3), 1).expect("settles");
    let old = world.serving().expect("a leader");
    let others: Vec<_> = world.replicas().into_iter().filter(|one| *one != old).collect();
    let mut desk = Desk::open(&mut world, old);
    world
        .on_fault(Fault::Topology(topology(&[(others[0].0, others[1].0)])))
        .expect("cut");
    let gtid = gtid(&world, 1, 0);
    let branch = named(1, resource(0));
    prepare(&mut world, gtid, &branch);
    let proposal = commit(&world, gtid, vec![branch]);
    let request = desk.number();
    world.ask(
        desk.session,
        Request::Decide {
            request,
            command: proposal.encode(),
        },
    );
    world
        .run_while_not(ELECTION_US, "another leader", |world| {
            world.serving().is_some_and(|one| one != old)
        })
        .expect("elected");
    let refused = Response::Refused {
        request,
        refusal: Refusal::NotLeader { leader: None },
    };
    assert_eq!(desk.wait(&mut world), Ok(refused));

    let mut desk = Desk::at_leader(&mut world);
    let asked = desk.ask(&mut world, |request| Request::Outcome { request, gtid });
    assert!(
        matches!(
            asked,
            Ok(Response::Status {
                status: TransactionStatus::Undecided,
                ..
            })
        ),
        "{asked:?}"
    );
    let contrary = abort(&world, gtid);
    let Decision::Aborted(cause) = decide(&mut world, &mut desk, &contrary) else {
        panic!("aborted")
    };
    world.on_fault(Fault::Mend).expect("mend");
    world.run_for(1_000_000).expect("nothing is wrong");
    let mut desk = Desk::at_leader(&mut world);
    assert_eq!(decide(&mut world, &mut desk, &proposal), Decision::Aborted(cause));
    converge_after(&mut world, 1_000_000).expect("comes to rest");
    assert_eq!(world.databases.committed_count(), 0);
}

/// A16: a follower that slept through many election timeouts, and one whose process starts, have heard nobody for long; that
/// silence was their own. Neither deposes the leader that the others hear.
#[test]
fn a16_a_follower_that_slept_or_starts_deposes_nobody() {
    let (mut world, _) = settled(Setup::scripted(22, 3), 1).expect("settles");
    let leader = world.serving().expect("a leader");
    let followers: Vec<_> = world
        .replicas()
        .into_iter()
        .filter(|one| *one != leader)
        .collect();
    let from = world.now();
    for round in 0..10 {
        let follower = followers[round % 2];
        world.on_fault(Fault::Pause(follower, 3_000_000)).expect("sleeps");
        world.run_for(4_000_000).expect("nothing is wrong");
        world
            .on_fault(Fault::Crash(follower, UnsyncedWrite::Lost))
            .expect("crash");
        world.run_for(2_000_000).expect("nothing is wrong");
        world.on_fault(Fault::Start(follower)).expect("start");
        world.run_for(2_000_000).expect("nothing is wrong");
    }
    let ballots = world.checkers.ballots.begun_between(from, world.now());
    assert_eq!((world.serving(), ballots), (Some(leader), 0));
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}
