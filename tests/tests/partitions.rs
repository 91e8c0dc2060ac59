//! Partial partitions in which other protocols elect without end, or never (Ng, Haridi and Carbone, *Omni-Paxos: Breaking
//! the Barriers of Partial Connectivity*, EuroSys 2023, figure 1 and section 2), and what a replica does that was away.

use synod_coordinator_core::replica::{RoleName, Timing};
use synod_proto::ids::ReplicaId;
use synod_tests::actors::ActorId;
use synod_tests::actors::initiator::{Habits, Initiator};
use synod_tests::checkers::Check;
use synod_tests::faults::lines::Direction;
use synod_tests::faults::{Fault, topology};
use synod_tests::run::{BALLOTS_PER_MINUTE_MAX, converge_after};
use synod_tests::script::{ELECTION_US, settled, settled_with};
use synod_tests::store::UnsyncedWrite;
use synod_tests::world::{Setup, World};

/// A busy initiator: twenty to thirty transactions a second, for ever.
fn busy(world: &mut World, participants: &[ActorId]) {
    let habits = Habits {
        transaction_count: u64::MAX / 2,
        pause_us: (30_000, 50_000),
        ..Habits::single()
    };
    let replicas = world.replicas();
    world.add_actor(Initiator::new(replicas, participants.to_vec(), habits));
}

/// Renumbers a link plan so that `leader` plays replica 1 of it and `hub` replica 2.
fn cast(world: &World, leader: ReplicaId, hub: ReplicaId, links: &[(u8, u8)]) -> Fault {
    let mut roles = vec![leader, hub];
    roles.extend(
        world
            .replicas()
            .into_iter()
            .filter(|one| *one != leader && *one != hub),
    );
    let links: Vec<(u8, u8)> = links
        .iter()
        .map(|(a, b)| (roles[usize::from(*a) - 1].0, roles[usize::from(*b) - 1].0))
        .collect();
    Fault::Topology(topology(&links))
}

fn other_than(world: &World, not: ReplicaId) -> ReplicaId {
    world
        .replicas()
        .into_iter()
        .find(|one| *one != not)
        .expect("more than one replica")
}

/// The log grows by ten slots within a few seconds, and for a minute there are few ballots.
fn goes_on_calmly(world: &mut World) -> Check {
    let (began_at, from) = (world.now(), world.checkers.log.decided_up_to());
    world.run_while_not(3 * ELECTION_US, "decisions", |world| {
        world.checkers.log.decided_up_to().0 >= from.0 + 10
    })?;
    world.run_until(began_at + 60_000_000)?;
    let ballots = world
        .checkers
        .ballots
        .begun_between(began_at, began_at + 60_000_000);
    let slots = world.checkers.log.decided_up_to().0 - from.0;
    assert!(ballots <= BALLOTS_PER_MINUTE_MAX, "{ballots} ballots in a minute");
    assert!(slots > 500, "only {slots} slots in a minute");
    Ok(())
}

/// Figure 1a, quorum loss: the leader and all others reach only one replica, the hub. The leader has lost its quorum but
/// still reaches the hub, the only one that could replace it.
#[test]
fn quorum_loss_the_hub_takes_over_from_a_leader_it_still_hears() {
    let (mut world, participants) = settled(Setup::scripted(1, 5), 2).expect("settles");
    busy(&mut world, &participants);
    let leader = world.serving().expect("a leader");
    let hub = other_than(&world, leader);
    world
        .on_fault(cast(&world, leader, hub, &[(2, 1), (2, 3), (2, 4), (2, 5)]))
        .expect("cut");
    goes_on_calmly(&mut world).expect("nothing is wrong");
    assert_eq!(world.serving(), Some(hub));
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}

/// Figure 1b, constrained election: only a replica that lags reaches a quorum, so whoever demands an up-to-date log of a
/// candidate elects nobody. Here it wins and catches up first (L5).
#[test]
fn constrained_election_a_lagging_replica_wins_and_catches_up() {
    let (mut world, participants) = settled(Setup::scripted(2, 5), 2).expect("settles");
    busy(&mut world, &participants);
    let leader = world.serving().expect("a leader");
    let hub = other_than(&world, leader);
    let without_hub = [(1, 3), (1, 4), (1, 5), (3, 4), (3, 5), (4, 5)];
    world
        .on_fault(cast(&world, leader, hub, &without_hub))
        .expect("cut");
    world.run_for(5_000_000).expect("nothing is wrong");
    let lag = |world: &World| {
        let hub = world.hosts[&hub].replica().expect("runs").status().decided_up_to;
        world.checkers.log.decided_up_to().0 - hub.0
    };
    assert!(lag(&world) > 100, "the hub lags by {} slots", lag(&world));
    world
        .on_fault(cast(&world, leader, hub, &[(2, 3), (2, 4), (2, 5)]))
        .expect("cut");
    goes_on_calmly(&mut world).expect("nothing is wrong");
    assert_eq!(world.serving(), Some(hub));
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}

/// Figure 1c, chain: two replicas at the ends do not hear each other, and the one in the middle hears both. The end that
/// hears no leader must not depose the other again and again.
#[test]
fn chained_the_end_that_hears_no_leader_deposes_nobody() {
    let (mut world, participants) = settled(Setup::scripted(3, 3), 2).expect("settles");
    busy(&mut world, &participants);
    let leader = world.serving().expect("a leader");
    let middle = other_than(&world, leader);
    world
        .on_fault(cast(&world, leader, middle, &[(1, 2), (2, 3)]))
        .expect("cut");
    let from = world.now();
    goes_on_calmly(&mut world).expect("nothing is wrong");
    assert_eq!(
        world.serving(),
        Some(leader),
        "the leader had its quorum all the time"
    );
    assert_eq!(world.checkers.ballots.begun_between(from, world.now()), 0);
    // The cut-off end still learns, from the middle.
    let end = world
        .replicas()
        .into_iter()
        .find(|one| *one != leader && *one != middle)
        .expect("an end");
    let behind = world.checkers.log.decided_up_to().0
        - world.hosts[&end]
            .replica()
            .expect("runs")
            .status()
            .decided_up_to
            .0;
    assert!(behind < 500, "the end lags by {behind} slots");
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}

/// A link that works one way only: a follower that hears nothing asks for votes, is denied, and disturbs nobody.
#[test]
fn one_way_a_deaf_follower_raises_no_ballots() {
    let (mut world, participants) = settled(Setup::scripted(4, 5), 2).expect("settles");
    busy(&mut world, &participants);
    let leader = world.serving().expect("a leader");
    let deaf = other_than(&world, leader);
    for peer in world.replicas().into_iter().filter(|peer| *peer != deaf) {
        world.on_fault(Fault::Cut(peer, deaf)).expect("cut");
    }
    let from = world.now();
    goes_on_calmly(&mut world).expect("nothing is wrong");
    assert_eq!(
        (
            world.serving(),
            world.checkers.ballots.begun_between(from, world.now())
        ),
        (Some(leader), 0)
    );
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}

/// A leader alone steps down within the longest election timeout and a heartbeat, and sends its sessions away.
#[test]
fn a_leader_without_a_quorum_steps_down_and_ends_its_sessions() {
    let (mut world, _) = settled(Setup::scripted(5, 3), 2).expect("settles");
    let leader = world.serving().expect("a leader");
    let others: Vec<ReplicaId> = world
        .replicas()
        .into_iter()
        .filter(|one| *one != leader)
        .collect();
    world
        .on_fault(Fault::Topology(topology(&[(others[0].0, others[1].0)])))
        .expect("cut");
    let timing = Timing::default();
    world
        .run_for(timing.election_timeout_us_max + 3 * timing.heartbeat_us)
        .expect("nothing is wrong");
    let status = world.hosts[&leader].replica().expect("runs").status();
    assert_eq!((status.role, status.leader), (RoleName::Follower, None));
    assert_eq!(world.ended_sessions.len(), 2, "both participants were sent away");
    world
        .run_while_not(ELECTION_US, "another leader", |world| world.serving().is_some())
        .expect("elected");
    assert_ne!(world.serving(), Some(leader));
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}

/// Hundreds of slots, more than lie in any memory: they are read from a disk, and applied in order (traps A13).
#[test]
fn a_replica_that_was_away_for_hundreds_of_slots_catches_up_from_a_disk() {
    let setup = Setup::scripted(6, 3);
    let (mut world, participants) =
        settled_with(setup, 2, |config| config.limits.retained_bytes_max = 2_000).expect("settles");
    busy(&mut world, &participants);
    let leader = world.serving().expect("a leader");
    let away = other_than(&world, leader);
    world
        .on_fault(Fault::Crash(away, UnsyncedWrite::Lost))
        .expect("crash");
    world.run_for(15_000_000).expect("nothing is wrong");
    assert!(world.checkers.log.decided_up_to().0 > 500);
    world.on_fault(Fault::Start(away)).expect("start");
    let is_current = |world: &World| {
        let own = world.hosts[&away].replica().expect("runs").status().decided_up_to;
        world.checkers.log.decided_up_to().0 < own.0 + 20
    };
    world
        .run_while_not(2_000_000, "it catches up", is_current)
        .expect("catches up");
    assert!(world.fetch_count > 0, "old slots came from a disk");
    converge_after(&mut world, 1_000_000).expect("comes to rest");
}

/// What a leader said is held up for longer than an election takes, and then comes all at once to followers of another
/// ballot: it is stale, and nobody's vote changes.
#[test]
fn what_a_clogged_link_held_comes_under_another_leader_and_changes_nothing() {
    let (mut world, participants) = settled(Setup::scripted(6, 3), 2).expect("settles");
    busy(&mut world, &participants);
    world.run_for(500_000).expect("nothing is wrong");
    let leader = world.serving().expect("a leader");
    for peer in world.replicas().into_iter().filter(|one| *one != leader) {
        world
            .on_fault(Fault::Clog(leader, peer, 2 * ELECTION_US))
            .expect("held up");
    }
    goes_on_calmly(&mut world).expect("nothing is wrong");
    assert_ne!(world.serving(), Some(leader));
    converge_after(&mut world, 1_000_000).expect("comes to rest");
    let clogged = ("network", "a clogged link delivered what it held");
    assert_eq!(world.checkers.points.counts().get(&clogged), Some(&2));
}

/// A majority of whole directories suffices, whichever minority stays down, cut off, deaf or mute (L3, L10); healed, it
/// catches up.
#[test]
fn a_majority_goes_on_whichever_minority_stays_broken() {
    for seed in 0..8 {
        let count = if seed % 2 == 0 { 3 } else { 5 };
        let (mut world, participants) = settled(Setup::scripted(7, count), 2).expect("settles");
        busy(&mut world, &participants);
        world.run_for(500_000).expect("nothing is wrong");
        world.heal_core(seed).expect("the others are healed");
        assert!(world.has_left_out(), "seed {seed}");
        goes_on_calmly(&mut world).expect("the others go on");
        world.heal_rest().expect("all are healed");
        assert!(!world.has_left_out());
        converge_after(&mut world, 1_000_000).expect("what was left broken catches up");
    }
}

/// A service that cannot speak with the leader for a while, one way or both, or hears it late, or stands still, decides
/// again afterwards; the replicas do not notice.
#[test]
fn a_line_to_the_leader_fails_alone_and_the_service_finds_back() {
    let (mut world, participants) = settled(Setup::scripted(8, 3), 2).expect("settles");
    busy(&mut world, &participants);
    world.run_for(500_000).expect("nothing is wrong");
    let service = ActorId(world.actor_count() - 1);
    let leader = world.serving().expect("a leader");
    for fault in [
        Fault::CutLine(service, leader, Direction::ToReplica, 3_000_000),
        Fault::CutLine(service, leader, Direction::ToService, 3_000_000),
        Fault::CutLine(service, leader, Direction::Both, 3_000_000),
        Fault::ClogLine(service, leader, 3_000_000),
        Fault::PauseActor(service, 3_000_000),
    ] {
        let from = world.checkers.log.decided_up_to();
        world.on_fault(fault.clone()).expect("takes hold");
        world.run_for(3_000_000).expect("nothing is wrong");
        world
            .run_while_not(10_000_000, "decisions", |world| {
                world.checkers.log.decided_up_to().0 >= from.0 + 10
            })
            .unwrap_or_else(|violation| panic!("after {fault:?}: {violation}"));
        assert_eq!(world.serving(), Some(leader), "after {fault:?}");
    }
    converge_after(&mut world, 1_000_000).expect("comes to rest");
    for name in [
        "a cut line to a replica lost what it carried",
        "a clogged line to a replica delivered what it held",
        "a paused service woke to what had come",
    ] {
        let counts = world.checkers.points.counts();
        assert!(counts.contains_key(&("network", name)), "{name}");
    }
}
