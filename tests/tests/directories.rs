//! L10 and L3 in a cluster: a directory that was wiped, swapped or put back neither promises nor accepts, and a record that cannot be
//! read is neither used nor taken for absent.

use synod_coordinator_core::paxos::{Ballot, Slot};
use synod_coordinator_core::replica::{Admission, WriteFailure};
use synod_proto::ids::ReplicaId;
use synod_proto::session::{Decision, Refusal, Request, Response};
use synod_tests::actors::ActorId;
use synod_tests::actors::initiator::{Habits, Initiator};
use synod_tests::faults::{Fault, topology};
use synod_tests::run::{converge_after, resource};
use synod_tests::script::{Desk, ELECTION_US, commit, gtid, named, prepare, settled, settled_on_logs};
use synod_tests::store::UnsyncedWrite;
use synod_tests::world::{Setup, World};

fn stage(seed: u64) -> (World, Vec<ActorId>, ReplicaId, Vec<ReplicaId>) {
    let (mut world, participants) = settled(Setup::scripted(seed, 3), 2).expect("settles");
    let replicas = world.replicas();
    let leader = world.serving().expect("a leader");
    world.add_actor(Initiator::new(
        replicas.clone(),
        participants.clone(),
        Habits::single(),
    ));
    world.run_for(500_000).expect("a transaction runs");
    let followers = replicas.into_iter().filter(|one| *one != leader).collect();
    (world, participants, leader, followers)
}

fn admission(world: &World, id: ReplicaId) -> Admission {
    world.hosts[&id].replica().expect("runs").status().admission
}

fn contradiction(world: &World, id: ReplicaId) -> String {
    match admission(world, id) {
        Admission::Refused { contradiction } => contradiction,
        other => panic!("replica {id} is {other:?}"),
    }
}

/// A commit of one branch of the first database, prepared there.
fn one_branch(world: &mut World, number: u8) -> synod_proto::command::Decide {
    let gtid = gtid(world, number, 0);
    let named = named(u64::from(number), resource(0));
    prepare(world, gtid, &named);
    commit(world, gtid, vec![named])
}

/// A12: a replica that lost its disk forgot its promises. It learns, and neither promises nor accepts: with it alone
/// beside the leader there is no quorum.
#[test]
fn l10_a_wiped_replica_learns_but_does_not_count() {
    let (mut world, _, leader, followers) = stage(1);
    world.on_fault(Fault::Wipe(followers[0])).expect("wiped");
    world.run_for(1_000_000).expect("nothing is wrong");
    assert!(contradiction(&world, followers[0]).contains("wiped or replaced"));
    let status = world.hosts[&followers[0]].replica().expect("runs").status();
    assert_eq!(
        status.decided_up_to,
        world.checkers.log.decided_up_to(),
        "it learns"
    );
    assert_eq!(
        world.hosts[&followers[0]].store.meta().promised,
        Ballot::ZERO,
        "it promised nothing"
    );
    // Two replicas still decide ...
    let decide = one_branch(&mut world, 1);
    let mut desk = Desk::open(&mut world, leader);
    assert!(matches!(
        desk.decide(&mut world, &decide),
        Ok(Response::Decided {
            decision: Decision::Committed,
            ..
        })
    ));
    // ... and without the last sound follower nobody does.
    world
        .on_fault(Fault::Crash(followers[1], UnsyncedWrite::Lost))
        .expect("crash");
    let decide = one_branch(&mut world, 2);
    let answer = desk.decide(&mut world, &decide);
    let is_refused = matches!(
        &answer,
        Ok(Response::Refused {
            refusal: Refusal::NotLeader { .. },
            ..
        })
    );
    assert!(is_refused || answer.is_err(), "{answer:?}");
    world.run_for(3_000_000).expect("nothing is wrong");
    assert_eq!(world.serving(), None);
    world.on_fault(Fault::Start(followers[1])).expect("start");
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}

/// An older copy of the directory: the leader remembers what the replica acknowledged since, and its word counts even
/// after another peer, which knows nothing, has made a majority.
#[test]
fn l10_a_directory_put_back_from_a_copy_is_refused() {
    for is_leader_alone in [true, false] {
        let (mut world, participants, leader, followers) = stage(2);
        world.on_fault(Fault::Backup(followers[0])).expect("copied");
        let replicas = world.replicas();
        world.add_actor(Initiator::new(replicas, participants, Habits::single()));
        world.run_for(1_000_000).expect("a transaction runs");
        if is_leader_alone {
            let links = topology(&[(leader.0, followers[0].0), (leader.0, followers[1].0)]);
            world.on_fault(Fault::Topology(links)).expect("cut");
        }
        world.on_fault(Fault::Rollback(followers[0])).expect("put back");
        world.run_for(1_000_000).expect("nothing is wrong");
        assert!(contradiction(&world, followers[0]).contains("lost what was synced"));
        converge_after(&mut world, 1_000_000).expect("comes to rest");
    }
}

/// Twice restarted since the copy was made: any peer knows the count of starts.
#[test]
fn l10_an_old_count_of_starts_is_refused_by_every_peer() {
    let (mut world, _, leader, followers) = stage(3);
    world.on_fault(Fault::Backup(followers[0])).expect("copied");
    for _ in 0..2 {
        world
            .on_fault(Fault::Crash(followers[0], UnsyncedWrite::Lost))
            .expect("crash");
        world.on_fault(Fault::Start(followers[0])).expect("start");
        world.run_for(300_000).expect("nothing is wrong");
    }
    world
        .on_fault(Fault::Topology(topology(&[
            (followers[0].0, followers[1].0),
            (leader.0, followers[1].0),
        ])))
        .expect("cut");
    world.on_fault(Fault::Rollback(followers[0])).expect("put back");
    world.run_for(1_000_000).expect("nothing is wrong");
    assert!(contradiction(&world, followers[0]).contains("older copy"));
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}

/// Restarted once since the copy was made: the process on the copy comes in the very start that the peers have seen another
/// process in. They have it on disk: that they restart meanwhile, and forget what was acknowledged to them, helps nobody.
#[test]
fn l10_a_copy_that_comes_back_in_a_start_already_seen_is_refused_by_peers_that_restarted() {
    let (mut world, participants, leader, followers) = stage(10);
    world.on_fault(Fault::Backup(followers[0])).expect("copied");
    world
        .on_fault(Fault::Crash(followers[0], UnsyncedWrite::Lost))
        .expect("crash");
    world.on_fault(Fault::Start(followers[0])).expect("start");
    let replicas = world.replicas();
    world.add_actor(Initiator::new(replicas, participants, Habits::single()));
    world.run_for(1_000_000).expect("a transaction runs");
    let start = world.hosts[&followers[0]].store.meta().start;
    world
        .on_fault(Fault::Crash(followers[0], UnsyncedWrite::Lost))
        .expect("crash");
    for id in [followers[1], leader] {
        world
            .on_fault(Fault::Crash(id, UnsyncedWrite::Lost))
            .expect("crash");
        world.on_fault(Fault::Start(id)).expect("start");
        world.run_for(1_000_000).expect("nothing is wrong");
    }
    world.on_fault(Fault::Rollback(followers[0])).expect("put back");
    world.run_for(1_000_000).expect("nothing is wrong");
    assert_eq!(
        world.hosts[&followers[0]].store.meta().start,
        start,
        "the same start"
    );
    assert!(contradiction(&world, followers[0]).contains("an older copy was put back"));
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}

/// The directories of two replicas change places, behind the back of whatever checks the replica's number at start.
#[test]
fn l10_swapped_directories_are_refused() {
    let (mut world, _, _, followers) = stage(4);
    for id in &followers {
        world
            .on_fault(Fault::Crash(*id, UnsyncedWrite::Lost))
            .expect("crash");
    }
    let first = world.hosts[&followers[0]].store.clone();
    let second = std::mem::replace(
        &mut world.hosts.get_mut(&followers[1]).expect("a host").store,
        first,
    );
    world.hosts.get_mut(&followers[0]).expect("a host").store = second;
    for id in &followers {
        world.on_fault(Fault::Start(*id)).expect("start");
    }
    world.run_for(1_000_000).expect("nothing is wrong");
    for id in &followers {
        assert!(contradiction(&world, *id).contains("wiped or replaced"));
    }
    // Changed back, they are what they were.
    for id in &followers {
        world
            .on_fault(Fault::Crash(*id, UnsyncedWrite::Lost))
            .expect("crash");
    }
    let first = world.hosts[&followers[0]].store.clone();
    let second = std::mem::replace(
        &mut world.hosts.get_mut(&followers[1]).expect("a host").store,
        first,
    );
    world.hosts.get_mut(&followers[0]).expect("a host").store = second;
    converge_after(&mut world, 1_000_000).expect("comes to rest");
    assert!(
        followers
            .iter()
            .all(|id| admission(&world, *id) == Admission::Admitted)
    );
}

/// A10: a rotten record of a decided slot is learned again from a peer.
#[test]
fn l3_an_unreadable_decided_slot_is_repaired_from_a_peer() {
    let (mut world, _, _, followers) = stage(5);
    let slots: Vec<Slot> = world.hosts[&followers[0]].store.readable().collect();
    assert!(slots.len() >= 4);
    for place in 0..slots.len() as u64 {
        world
            .on_fault(Fault::Corrupt(followers[0], place))
            .expect("corrupt");
        world.on_fault(Fault::Start(followers[0])).expect("start");
        world.run_for(1_500_000).expect("nothing is wrong");
        let status = world.hosts[&followers[0]].replica().expect("runs").status();
        assert_eq!(
            (status.unreadable_count, status.decided_up_to),
            (0, world.checkers.log.decided_up_to()),
            "place {place} of {}",
            slots.len()
        );
    }
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}

/// A10 with the real log: one flipped bit anywhere in what was synced, but for the last batch, is noticed, costs no vote,
/// and is mended from a peer.
#[test]
fn a10_a_flipped_bit_in_the_log_is_noticed_and_mended() {
    let (mut world, participants) = settled_on_logs(Setup::scripted(9, 3), 2, 32 << 10).expect("settles");
    let replicas = world.replicas();
    let leader = world.serving().expect("a leader");
    let victim = replicas
        .iter()
        .copied()
        .find(|one| *one != leader)
        .expect("a follower");
    let mut lost_count = 0;
    for round in 0..60_u64 {
        world.add_actor(Initiator::new(
            replicas.clone(),
            participants.clone(),
            Habits::single(),
        ));
        world.run_for(300_000).expect("a transaction runs");
        let pick = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        world
            .on_fault(Fault::Corrupt(victim, pick))
            .expect("the log notices");
        lost_count += world.hosts[&victim].store.recover().0.unreadable.len();
        world.on_fault(Fault::Start(victim)).expect("start");
        world.run_for(700_000).expect("nothing is wrong");
        let status = world.hosts[&victim].replica().expect("runs").status();
        let is_mended = (status.unreadable_count, status.admission) == (0, Admission::Admitted);
        assert!(
            is_mended && status.decided_up_to == world.checkers.log.decided_up_to(),
            "round {round}"
        );
    }
    assert!(lost_count > 20, "{lost_count} records were hit");
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}

/// L9: a follower with a full disk stays up, acknowledges nothing, says so, and the cluster goes on.
#[test]
fn l9_a_full_disk_leaves_a_replica_up_and_read_only() {
    let (mut world, _, leader, followers) = stage(7);
    world
        .on_fault(Fault::FailDisk(followers[0], WriteFailure::Full))
        .expect("full");
    let decide = one_branch(&mut world, 1);
    let mut desk = Desk::open(&mut world, leader);
    assert!(matches!(
        desk.decide(&mut world, &decide),
        Ok(Response::Decided {
            decision: Decision::Committed,
            ..
        })
    ));
    world.run_for(1_000_000).expect("nothing is wrong");
    let status = world.hosts[&followers[0]].replica().expect("runs").status();
    assert_eq!(status.failure.as_deref(), Some("the disk failed"));
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}

/// L9 at the leader: it resigns by silence, and another one answers.
#[test]
fn l9_a_leader_whose_disk_fails_leads_no_more() {
    for kind in [WriteFailure::Full, WriteFailure::Broken] {
        let (mut world, _, leader, _) = stage(8);
        world.on_fault(Fault::FailDisk(leader, kind)).expect("failing");
        let decide = one_branch(&mut world, 1);
        let mut desk = Desk::open(&mut world, leader);
        let number = desk.number();
        world.ask(
            desk.session,
            Request::Decide {
                request: number,
                command: decide.encode(),
            },
        );
        let has_another = |world: &World| world.serving().is_some_and(|id| id != leader);
        world
            .run_while_not(ELECTION_US, "another leader", has_another)
            .expect("elected");
        if kind == WriteFailure::Full {
            let mut desk = Desk::open(&mut world, leader);
            let answer = desk.decide(&mut world, &decide).expect("an answer");
            assert!(matches!(answer, Response::Refused { .. }), "{answer:?}");
        }
        let mut desk = Desk::at_leader(&mut world);
        let answer = desk.decide(&mut world, &decide).expect("an answer");
        assert!(
            matches!(
                answer,
                Response::Decided {
                    decision: Decision::Committed,
                    ..
                }
            ),
            "{answer:?}"
        );
        converge_after(&mut world, 1_000_000).expect("comes to rest");
    }
}
