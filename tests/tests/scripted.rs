//! One transaction of two branches, steps 2 to 5, with one fault before every single event of it: whatever is
//! interrupted, there is one outcome, every branch follows it, and nothing is left over. And since the deadline is far,
//! a change of leader aborts nothing (T1). Under every replica lies the real log; a crash leaves any part of a write.

use synod_coordinator_core::machine::outcomes::Verdict;
use synod_proto::ids::ReplicaId;
use synod_tests::actors::ActorId;
use synod_tests::actors::initiator::{Habits, Initiator};
use synod_tests::checkers::{Check, Violation};
use synod_tests::faults::Fault;
use synod_tests::network::Fate;
use synod_tests::run::converge_after;
use synod_tests::script::settled_on_logs;
use synod_tests::store::UnsyncedWrite;
use synod_tests::world::{Setup, World};

const SEED: u64 = 42;

/// Hardly more than one batch a segment: every few writes begin a new one.
const SEGMENT_BYTES: u64 = 16 << 10;

/// A settled world in which one initiator is about to begin.
fn stage(replica_count: u8) -> Result<(World, Vec<ActorId>), Violation> {
    let (mut world, participants) = settled_on_logs(Setup::scripted(SEED, replica_count), 2, SEGMENT_BYTES)?;
    let replicas = world.replicas();
    world.add_actor(Initiator::new(replicas, participants.clone(), Habits::single()));
    Ok((world, participants))
}

/// Whether the transaction has come to its end, in every database and in the log.
fn is_over(world: &World) -> bool {
    let outcomes = world.checkers.log.reference().outcomes();
    world.is_idle() && outcomes.count() == 1 && outcomes.unfinished_count() == 0
}

/// The events and the envelopes of the run without a fault.
fn quiet_run() -> (u64, u64) {
    let (mut world, _) = stage(3).expect("settles");
    let (events, envelopes) = (world.event_count(), world.network.sent_count());
    world
        .run_while_not(3_000_000, "the transaction ends", is_over)
        .expect("ends");
    (
        world.event_count() - events,
        world.network.sent_count() - envelopes,
    )
}

fn expect_committed(world: &World) -> Check {
    let records: Vec<_> = world.checkers.outcomes.records().values().collect();
    let is_committed = matches!(records[..], [record] if matches!(&record.verdict, Verdict::Committed { branches, .. } if branches.len() == 2));
    if is_committed && world.databases.committed_count() == 2 {
        return Ok(());
    }
    Err(Violation(format!(
        "{} effects, records {records:?}",
        world.databases.committed_count()
    )))
}

/// Runs `fault` before event number `k`, for every `k` of the quiet run, and expects a commit every time.
fn before_every_event(name: &str, fault: impl Fn(&mut World, &[ActorId]) -> Check) {
    let (event_count, _) = quiet_run();
    assert!(
        event_count > 60,
        "the run holds the whole transaction: {event_count} events"
    );
    for k in 0..=event_count {
        let result = stage(3).and_then(|(mut world, participants)| {
            for _ in 0..k {
                world.run_one()?;
            }
            fault(&mut world, &participants)?;
            // Time for a call, and a proposal, to be made again.
            world.run_for(2_500_000)?;
            converge_after(&mut world, 500_000)?;
            expect_committed(&world)
        });
        result.unwrap_or_else(|violation| panic!("{name} before event {k} of {event_count}: {violation}"));
    }
}

fn crash_leader(world: &mut World, unsynced: UnsyncedWrite) -> Result<ReplicaId, Violation> {
    let leader = world.serving().expect("a leader serves");
    world.on_fault(Fault::Crash(leader, unsynced))?;
    Ok(leader)
}

#[test]
fn the_leader_crashes_for_good_before_every_event() {
    before_every_event("crash", |world, _| {
        crash_leader(world, UnsyncedWrite::Lost)?;
        world.run_for(2_000_000)
    });
}

#[test]
fn the_leader_crashes_and_restarts_before_every_event() {
    for unsynced in [UnsyncedWrite::Lost, UnsyncedWrite::Kept] {
        before_every_event("restart", |world, _| {
            let leader = crash_leader(world, unsynced)?;
            world.run_for(3_000)?;
            world.on_fault(Fault::Start(leader))
        });
    }
}

/// The old leader lives on, alone, and believes that it leads until it hears no quorum.
#[test]
fn the_leader_is_cut_off_before_every_event() {
    before_every_event("isolation", |world, _| {
        let leader = world.serving().expect("a leader serves");
        for peer in world.replicas().into_iter().filter(|peer| *peer != leader) {
            world.on_fault(Fault::Cut(leader, peer))?;
            world.on_fault(Fault::Cut(peer, leader))?;
        }
        world.run_for(1_800_000)
    });
}

/// Only the answers are lost: a half-open link.
#[test]
fn the_leader_hears_nobody_before_every_event() {
    before_every_event("deafness", |world, _| {
        let leader = world.serving().expect("a leader serves");
        for peer in world.replicas().into_iter().filter(|peer| *peer != leader) {
            world.on_fault(Fault::Cut(peer, leader))?;
        }
        world.run_for(1_800_000)
    });
}

/// A pause longer than an election, after which the old leader acts on what it believed before.
#[test]
fn the_leader_pauses_before_every_event() {
    before_every_event("pause", |world, _| {
        let leader = world.serving().expect("a leader serves");
        world.on_fault(Fault::Pause(leader, 1_500_000))?;
        world.run_for(1_800_000)
    });
}

#[test]
fn everything_restarts_before_every_event() {
    before_every_event("restart of all", |world, participants| {
        for id in world.replicas() {
            world.on_fault(Fault::Crash(id, UnsyncedWrite::Lost))?;
        }
        for id in world.replicas() {
            world.on_fault(Fault::Start(id))?;
        }
        for participant in participants {
            world.on_fault(Fault::CrashActor(*participant))?;
        }
        Ok(())
    });
}

/// Two leaders in a row die: the second one as soon as it serves.
#[test]
fn two_leaders_crash_one_after_the_other() {
    before_every_event("double crash", |world, _| {
        let first = crash_leader(world, UnsyncedWrite::Kept)?;
        let has_another = |world: &World| world.serving().is_some_and(|id| id != first);
        world.run_while_not(2_500_000, "a second leader", has_another)?;
        world.on_fault(Fault::Start(first))?;
        crash_leader(world, UnsyncedWrite::Lost)?;
        Ok(())
    });
}

/// Each envelope between replicas, in turn, is lost, comes twice, or comes again a second later.
#[test]
fn every_single_envelope_is_lost_or_repeated() {
    let (_, envelope_count) = quiet_run();
    assert!(envelope_count >= 10, "{envelope_count} envelopes");
    for fate in [Fate::Lost, Fate::Repeated(0), Fate::Repeated(1_000_000)] {
        for number in 0..envelope_count {
            let result = stage(3).and_then(|(mut world, _)| {
                world.network.set_fate(number, fate);
                world.run_while_not(3_000_000, "the transaction ends", is_over)?;
                converge_after(&mut world, 1_500_000)?;
                expect_committed(&world)
            });
            result.unwrap_or_else(|violation| panic!("envelope {number} {fate:?}: {violation}"));
        }
    }
}

#[test]
fn every_envelope_comes_twice() {
    let (mut world, _) = stage(3).expect("settles");
    (0..10_000).for_each(|number| world.network.set_fate(number, Fate::Repeated(700)));
    world
        .run_while_not(3_000_000, "the transaction ends", is_over)
        .expect("ends");
    converge_after(&mut world, 1_500_000)
        .and_then(|()| expect_committed(&world))
        .expect("one outcome");
}

/// B2, C1: whichever service dies at whichever moment, its prepared branches get the log's outcome. The transaction may
/// abort here, since its initiator or the work may be lost, but nothing is left prepared and nothing is half done.
#[test]
fn participants_and_initiators_crash_before_every_event() {
    let (event_count, _) = quiet_run();
    for k in 0..=event_count {
        for victim in 0..3 {
            let result = stage(3).and_then(|(mut world, _)| {
                for _ in 0..k {
                    world.run_one()?;
                }
                world.on_fault(Fault::CrashActor(ActorId(victim)))?;
                world.run_for(1_000_000)?;
                converge_after(&mut world, 500_000)
            });
            result.unwrap_or_else(|violation| panic!("service {victim} before event {k}: {violation}"));
        }
    }
}

#[test]
fn the_quiet_run_commits() {
    let (mut world, _) = stage(3).expect("settles");
    world
        .run_while_not(3_000_000, "the transaction ends", is_over)
        .expect("ends");
    expect_committed(&world).expect("committed");
}
