//! Every kind of fault of a log's disk takes hold, costs what it may and no more; and a log that says less than the truth is
//! found out (L3, L7, L9, L10; traps A10, A11, A12).

use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::sync::Arc;
use synod_coordinator::log::{CrashImage, Disk, Log, MemoryDisk};
use synod_coordinator_core::replica::WriteFailure;
use synod_proto::ids::ReplicaId;
use synod_tests::actors::initiator::{Habits, Initiator};
use synod_tests::actors::service::Sabotage;
use synod_tests::exhaustive::cases::{crashes, damages, double_crashes};
use synod_tests::exhaustive::script::reference;
use synod_tests::exhaustive::sweep::sweep;
use synod_tests::exhaustive::{Act, Case, IMAGE_COUNT, Machine, stores};
use synod_tests::faults::Fault;
use synod_tests::log_disk::damage::{Aim, Damage, Strike, Verdict};
use synod_tests::log_disk::{CrashPoint, OperationFault};
use synod_tests::run::converge_after;
use synod_tests::script::settled_on_logs;
use synod_tests::store::UnsyncedWrite;
use synod_tests::world::{Setup, World};

/// A settled world on real logs, in which transactions run for a while; and a follower.
fn stage(seed: u64, segment_bytes: u64) -> (World, ReplicaId) {
    let (mut world, participants) =
        settled_on_logs(Setup::scripted(seed, 3), 2, segment_bytes).expect("settles");
    let replicas = world.replicas();
    let leader = world.serving().expect("a leader");
    let habits = Habits {
        transaction_count: 20,
        pause_us: (20_000, 60_000),
        ..Habits::single()
    };
    world.add_actor(Initiator::new(replicas.clone(), participants, habits));
    let follower = replicas
        .into_iter()
        .find(|one| *one != leader)
        .expect("a follower");
    (world, follower)
}

fn count(world: &World, name: &'static str) -> u64 {
    let counts = world.checkers.points.counts();
    counts.get(&("disk fault", name)).copied().unwrap_or_default()
}

/// A crash at an operation, and another one while the log is repaired, with every image.
#[test]
fn l7_a_planned_crash_strikes_at_its_operation_and_again_in_the_repair() {
    let images = [
        CrashImage::Nothing,
        CrashImage::Everything,
        CrashImage::Subset(7),
        CrashImage::Torn(7),
    ];
    for image in images {
        let (mut world, follower) = stage(1, 8 << 10);
        let point = CrashPoint {
            after: 9,
            image,
            again: Some((1, image)),
        };
        world
            .on_fault(Fault::CrashAt(follower, point, 100_000))
            .expect("planned");
        world.run_for(1_000_000).expect("nothing is wrong");
        let reached = (
            count(&world, "crash at an operation"),
            count(&world, "crash during recovery"),
        );
        assert_eq!(reached, (1, 1), "{image:?}");
        converge_after(&mut world, 500_000).expect("comes to rest");
    }
}

/// L9, A11: a failed write or sync ends the process, and it starts again on what the page cache shows; a full disk leaves it
/// up, and what it wrote before stays.
#[test]
fn l9_a_failing_operation_takes_hold_at_its_number() {
    for (fault, name) in [
        (OperationFault::Write, "a write failed"),
        (OperationFault::Sync, "a sync failed"),
    ] {
        let (mut world, follower) = stage(2, 32 << 10);
        world
            .on_fault(Fault::FailOperation(follower, fault, 5))
            .expect("planned");
        world.run_for(500_000).expect("nothing is wrong");
        assert_eq!(count(&world, name), 1, "{fault:?}");
        assert!(
            world.hosts[&follower].process.is_none(),
            "{fault:?}: it has ended"
        );
        world.on_fault(Fault::Start(follower)).expect("start");
        converge_after(&mut world, 500_000).expect("comes to rest");
    }
    let (mut world, follower) = stage(3, 8 << 10);
    world
        .on_fault(Fault::FailOperation(follower, OperationFault::Full, 0))
        .expect("planned");
    world.run_for(500_000).expect("nothing is wrong");
    let status = world.hosts[&follower].replica().expect("it is up").status();
    assert!(status.failure.is_some(), "{status:?}");
    converge_after(&mut world, 500_000).expect("comes to rest");
}

/// A10: whatever is damaged, wherever: what is lost is known as lost, and comes back from peers.
#[test]
fn a10_damage_of_every_kind_is_noticed_and_mended() {
    for (damage, name) in [
        (Damage::Flip, "bit flip"),
        (Damage::Truncate, "truncated file"),
        (Damage::Misdirect, "misdirected write"),
        (Damage::MisdirectAway, "misdirected write"),
    ] {
        let (mut world, follower) = stage(4, 16 << 10);
        let mut struck_count = 0;
        for (round, aim) in [
            Aim::Anywhere,
            Aim::Last,
            Aim::AnywhereBeforeClose,
            Aim::LastBeforeClose,
        ]
        .into_iter()
        .enumerate()
        {
            world.run_for(300_000).expect("nothing is wrong");
            let pick = (round as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let before = count(&world, name);
            world
                .on_fault(Fault::Damage(follower, damage, aim, pick))
                .expect("the log notices");
            struck_count += count(&world, name) - before;
            world.on_fault(Fault::Start(follower)).expect("start");
        }
        assert!(struck_count >= 2, "{damage:?} took hold {struck_count} times");
        converge_after(&mut world, 500_000).expect("comes to rest");
        let status = world.hosts[&follower].replica().expect("runs").status();
        assert_eq!(status.unreadable_count, 0, "{damage:?}");
    }
}

/// L10, A12: a copy is put back where every majority would hear of it, and left out where none might.
#[test]
fn l10_an_old_directory_is_put_back_only_where_the_peers_know_better() {
    let (mut world, follower) = stage(5, 16 << 10);
    world.on_fault(Fault::Backup(follower)).expect("copied");
    for _ in 0..2 {
        world
            .on_fault(Fault::Crash(follower, UnsyncedWrite::Lost))
            .expect("crash");
        world.on_fault(Fault::Start(follower)).expect("start");
        world.run_for(300_000).expect("nothing is wrong");
    }
    world.on_fault(Fault::PutBack(follower)).expect("put back");
    assert_eq!(count(&world, "put back"), 1);
    converge_after(&mut world, 500_000).expect("comes to rest");

    let (mut world, follower) = stage(6, 16 << 10);
    world.on_fault(Fault::Backup(follower)).expect("copied");
    world.run_for(300_000).expect("nothing is wrong");
    // Nobody who knew of what it acknowledged remembers.
    for id in world.replicas() {
        world
            .on_fault(Fault::Crash(id, UnsyncedWrite::Lost))
            .expect("crash");
    }
    world.on_fault(Fault::PutBack(follower)).expect("looked at");
    assert_eq!(count(&world, "put back: nobody would know, left out"), 1);
    converge_after(&mut world, 500_000).expect("comes to rest");
}

/// L9, L10: what a full disk reported as failed may be in the page cache, and so in a copy that somebody makes then. When the
/// copy is put back, the batch is there as if its machine had crashed behind the write.
#[test]
fn l10_a_copy_made_after_a_failed_write_holds_that_batch_or_not() {
    let mut has_held = BTreeSet::new();
    for seed in 1..=8 {
        let (mut world, follower) = stage(seed, 16 << 10);
        world
            .on_fault(Fault::FailDisk(follower, WriteFailure::Full))
            .expect("full");
        world.run_for(500_000).expect("nothing is wrong");
        let host = &world.hosts[&follower];
        let status = host.replica().expect("it is up").status();
        assert!(status.failure.is_some(), "seed {seed}: {status:?}");
        let before = host.store.meta().clone();
        let failed = host.store.under_way().expect("a write has failed").meta.clone();
        assert_ne!(before, failed, "seed {seed}: the write matters");
        world.on_fault(Fault::Backup(follower)).expect("copied");
        world.on_fault(Fault::PutBack(follower)).expect("put back");
        assert_eq!(count(&world, "put back"), 1, "seed {seed}");
        let after = world.hosts[&follower].store.meta();
        assert!(*after == before || *after == failed, "seed {seed}: {after:?}");
        has_held.insert(*after == failed);
        converge_after(&mut world, 500_000).expect("comes to rest");
    }
    assert_eq!(has_held.len(), 2, "both happen: {has_held:?}");
}

/// L10: on another replica's machine a directory does not open.
#[test]
fn l10_swapped_directories_do_not_open() {
    let (mut world, follower) = stage(7, 16 << 10);
    world.run_for(300_000).expect("nothing is wrong");
    let leader = world.serving().expect("a leader");
    world
        .on_fault(Fault::Swap(follower, leader))
        .expect("both are refused");
    assert_eq!(count(&world, "swapped directory refused"), 2);
    world.on_fault(Fault::Start(follower)).expect("it does not start");
    assert!(world.hosts[&follower].process.is_none());
    converge_after(&mut world, 500_000).expect("comes to rest");
}

/// The log of a follower that has stopped in an orderly way, and a strike that destroys a record in its middle.
fn middle_strike() -> (World, ReplicaId, Strike) {
    let (mut world, follower) = stage(8, 1 << 20);
    world.run_for(1_000_000).expect("nothing is wrong");
    world
        .on_fault(Fault::Crash(follower, UnsyncedWrite::Kept))
        .expect("crash");
    let log = world.hosts[&follower].log.as_ref().expect("a log");
    let values: Vec<Strike> = log
        .sites()
        .into_iter()
        .filter(|site| site.class == "value: middle")
        .map(|site| site.strike)
        .collect();
    let strike = values[values.len() / 2].clone();
    (world, follower, strike)
}

/// The checker is worth something only if a wrong log does not pass it.
#[test]
fn a10_a_log_that_truncates_uses_or_forgets_a_bad_record_is_found_out() {
    let (world, follower, strike) = middle_strike();
    let host = &world.hosts[&follower];
    let log = host.log.as_ref().expect("a log");
    let struck = log.struck(&host.store, &strike).expect("the real log passes");
    assert_eq!(struck.verdict, Verdict::Unreadable);
    let Strike::Flip { file, byte, .. } = strike.clone() else {
        panic!("a flip")
    };

    // It cuts off everything from the first bad record on.
    let truncates = log.struck_as_opened_by(&host.store, &strike, |disk, identity, options| {
        let length = disk.contents(&file).expect("the file").len();
        disk.overwrite(&file, byte / 4096 * 4096..length, 0);
        Log::open(disk, identity, options)
    });
    assert!(truncates.is_err(), "a log that truncates");

    // It says nothing of the slots that it cannot read.
    let forgets = log.struck_as_opened_by(&host.store, &strike, |disk, identity, options| {
        let mut opened = Log::open(disk, identity, options)?;
        opened.recovered.unreadable.clear();
        Ok(opened)
    });
    let text = forgets.expect_err("a log that reports a lost slot as empty").0;
    assert!(text.contains("reported as empty"), "{text}");

    // It takes what it finds, as if there were no checksum.
    let uses = log.struck_as_opened_by(&host.store, &strike, |disk, identity, options| {
        let intact: MemoryDisk = disk.fork();
        let Strike::Flip { file, byte, bit } = &strike else {
            panic!("a flip")
        };
        intact.flip(file, *byte, *bit);
        assert!(intact.list().is_ok_and(|names| !names.is_empty()));
        Log::open(Arc::new(intact), identity, options)
    });
    let text = uses.expect_err("a log that uses a lost record").0;
    assert!(text.contains("though its record was destroyed"), "{text}");
}

/// Issue 3, item 4a, in small: the whole is `cargo run -p synod-tests --bin crash_points`.
#[test]
fn l7_some_crash_points_second_crashes_and_damaged_places() {
    let reference = reference(1).expect("the script passes");
    let all = crashes(1, &reference.operation_counts);
    assert!(all.len() >= 300 * IMAGE_COUNT, "{} crash points", all.len());
    let some: Vec<Case> = all.into_iter().step_by(37).collect();
    let crashed = sweep(&some, 2);
    let again = sweep(&double_crashes(&crashed.passed, 8), 2);
    let places: Vec<Case> = damages(1, &reference, 1).into_iter().step_by(5).collect();
    let damaged = sweep(&places, 2);
    for swept in [&crashed, &again, &damaged] {
        assert!(swept.failed.is_empty(), "{:?}", swept.failed);
        assert!(!swept.passed.is_empty());
    }
}

/// C1, F2, F5, in small: the services' redb files, in the same program.
#[test]
fn c1_some_crash_points_of_redb_stores_and_second_crashes() {
    let reference = stores::reference(0).expect("the script passes");
    let all = crashes(0, &reference.operation_counts);
    assert!(all.len() >= 300 * IMAGE_COUNT, "{} crash points", all.len());
    assert!(reference.effect_count >= 8, "{reference:?}");
    let some: Vec<Case> = all.into_iter().step_by(101).collect();
    let crashed = sweep(&some, 2);
    let again = double_crashes(&crashed.passed, 6);
    let again: Vec<Case> = again.into_iter().step_by(3).collect();
    let crashed_again = sweep(&again, 2);
    for swept in [&crashed, &crashed_again] {
        assert!(swept.failed.is_empty(), "{:?}", swept.failed);
        assert!(!swept.passed.is_empty());
    }
    // The checkers are not blind: a disk that loses what it said was synced is found out.
    let lost: Vec<&Case> = some
        .iter()
        .filter(|case| matches!(case.act, Act::Crash(_, 0, _)))
        .collect();
    let is_found_out = |case: &Case| {
        let run = || stores::run_sabotaged(case, Some(Sabotage::DiskLies));
        !matches!(catch_unwind(run), Ok(Ok(_)))
    };
    let found_out = lost.iter().filter(|case| is_found_out(case)).count();
    assert!(found_out > 0, "none of {} crashes on a lying disk", lost.len());
}

#[test]
fn a_case_is_named_by_a_line_that_can_be_read_back() {
    let replica = Machine::Replica(ReplicaId(2));
    let service = Machine::Service(1);
    for (machine, act, text) in [
        (replica, Act::Crash(17, 3, None), "1/2/17:torn"),
        (
            replica,
            Act::Crash(0, 0, Some((2, 1))),
            "1/2/0:nothing/2:everything",
        ),
        (replica, Act::Damage(40), "1/2/site:40"),
        (service, Act::Crash(17, 3, None), "1/service-2/17:torn"),
        (
            service,
            Act::Crash(0, 0, Some((2, 1))),
            "1/service-2/0:nothing/2:everything",
        ),
    ] {
        let case = Case {
            variant: 1,
            machine,
            act,
        };
        assert_eq!(case.to_string(), text);
        assert_eq!(text.parse(), Ok(case));
    }
    for text in [
        "",
        "1/2",
        "1/4/0:torn",
        "9/1/0:torn",
        "1/2/0:gone",
        "1/2/0:torn/1:torn/2",
        "1/2/x:torn",
        "1/service-0/0:torn",
        "1/service-3/0:torn",
        "1/service-1/site:0",
    ] {
        assert!(text.parse::<Case>().is_err(), "{text}");
    }
}
