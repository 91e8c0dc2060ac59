//! Plans as files: what is written is what runs, and what failed once never fails again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use synod_coordinator::log::CrashImage;
use synod_coordinator_core::replica::WriteFailure;
use synod_proto::ids::ReplicaId;
use synod_tests::actors::ActorId;
use synod_tests::actors::service::ServiceFault;
use synod_tests::faults::lines::Direction;
use synod_tests::faults::{Fault, topology};
use synod_tests::log_disk::damage::{Aim, Damage};
use synod_tests::log_disk::{CrashPoint, OperationFault};
use synod_tests::network::Weather;
use synod_tests::plan::play::{Failure, run};
use synod_tests::plan::shrink::{shrink, shrink_by};
use synod_tests::plan::{FAULT_KINDS, Plan, fault_kind};
use synod_tests::store::UnsyncedWrite;
use synod_tests::trace::Detail;
use synod_tests::world::{DRIFT_PPM_USUAL, NOTICE_US_USUAL};

const ONE: ReplicaId = ReplicaId(1);
const TWO: ReplicaId = ReplicaId(2);

fn every_fault() -> Vec<Fault> {
    vec![
        Fault::Crash(ONE, UnsyncedWrite::Lost),
        Fault::Crash(ONE, UnsyncedWrite::Kept),
        Fault::CrashLeader(UnsyncedWrite::Kept),
        Fault::Start(ONE),
        Fault::Drain(TWO),
        Fault::Pause(ONE, 5_000),
        Fault::Cut(ONE, TWO),
        Fault::Clog(TWO, ONE, 2_000_000),
        Fault::Topology(topology(&[(1, 2)])),
        Fault::Topology(BTreeSet::new()),
        Fault::Mend,
        Fault::Weather(Weather {
            delay_us: (1, 2),
            loss_ppm: 3,
            duplicate_ppm: 4,
            replay_us_max: 5,
        }),
        Fault::WallClock(TWO, -2_000),
        Fault::SlowDisk(ONE, 150_000),
        Fault::FailDisk(ONE, WriteFailure::Full),
        Fault::FailDisk(ONE, WriteFailure::Broken),
        Fault::Corrupt(ONE, u64::MAX),
        Fault::Wipe(ONE),
        Fault::Backup(ONE),
        Fault::Rollback(ONE),
        Fault::CutLine(ActorId(1), TWO, Direction::ToReplica, 3),
        Fault::CutLine(ActorId(1), TWO, Direction::ToService, 4),
        Fault::CutLine(ActorId(1), TWO, Direction::Both, 5),
        Fault::ClogLine(ActorId(0), ONE, 6),
        Fault::PauseActor(ActorId(1), 10_000_000),
        Fault::CrashActor(ActorId(1)),
        Fault::Service(ActorId(2), ServiceFault::CrashAtOperation(7)),
        Fault::Service(ActorId(2), ServiceFault::FailAtOperation(8)),
        Fault::Service(ActorId(3), ServiceFault::Full),
        Fault::Service(ActorId(3), ServiceFault::Slow(9_000)),
        Fault::Service(ActorId(4), ServiceFault::RollBackByHand(u64::MAX)),
        Fault::Service(ActorId(4), ServiceFault::WallClock(-3)),
        Fault::BreakSessions,
        Fault::CrashAt(
            ONE,
            CrashPoint {
                after: 7,
                image: CrashImage::Subset(3),
                again: Some((1, CrashImage::Everything)),
            },
            9,
        ),
        Fault::CrashAt(
            TWO,
            CrashPoint {
                after: 0,
                image: CrashImage::Torn(u64::MAX),
                again: Some((0, CrashImage::Nothing)),
            },
            9,
        ),
        Fault::FailOperation(ONE, OperationFault::Write, 1),
        Fault::FailOperation(ONE, OperationFault::Sync, 2),
        Fault::FailOperation(ONE, OperationFault::Full, 0),
        Fault::Damage(ONE, Damage::Flip, Aim::Anywhere, 1),
        Fault::Damage(ONE, Damage::Truncate, Aim::AnywhereBeforeClose, 2),
        Fault::Damage(ONE, Damage::Misdirect, Aim::Last, 3),
        Fault::Damage(ONE, Damage::MisdirectAway, Aim::LastBeforeClose, u64::MAX),
        Fault::PutBack(TWO),
        Fault::Swap(ONE, TWO),
        Fault::Hush(u64::MAX),
        Fault::Rush(3, 2_000),
    ]
}

fn small_plan(faults: Vec<(u64, Fault)>) -> Plan {
    let mut plan = Plan::of_seed(1);
    plan.about = "a test".to_string();
    plan.draw.participant_count = 1;
    plan.draw.initiator_count = 1;
    plan.draw.transaction_count = 2;
    plan.draw.service_count = 0;
    plan.draw.has_messages = true;
    plan.draw.setup.replica_count = 3;
    plan.draw.setup.lines.loss_ppm = 0;
    plan.draw.pause_us = (10_000, 400_000);
    plan.draw.is_long = false;
    plan.draw.core = None;
    plan.draw.setup.notice_us_max = NOTICE_US_USUAL;
    plan.draw.setup.drift_ppm_max = DRIFT_PPM_USUAL;
    plan.draw.faults_us = 4_000_000;
    plan.draw.plan = faults;
    plan
}

#[test]
fn every_kind_of_fault_has_a_form_and_a_name() {
    let faults: Vec<(u64, Fault)> = (1..).zip(every_fault()).collect();
    let mut plan = small_plan(faults.clone());
    plan.draw.service_count = 2;
    assert_eq!(
        Plan::parse(&plan.to_text()).expect("its own form").draw.plan,
        faults
    );
    let named: BTreeSet<&str> = every_fault().iter().map(fault_kind).collect();
    assert_eq!(named, FAULT_KINDS.into_iter().collect::<BTreeSet<_>>());
}

/// The form of the files in the tree: a change of it would lose them.
#[test]
fn the_form_of_a_plan() {
    let mut plan = small_plan(vec![
        (500_000, Fault::Crash(TWO, UnsyncedWrite::Kept)),
        (750_000, Fault::Topology(topology(&[(1, 3)]))),
        (900_000, Fault::Weather(Weather::CALM)),
        (1_000_000, Fault::Mend),
    ]);
    plan.draw.setup.lines.delay_us = (100, 200);
    plan.draw.setup.mail_us_max = 10;
    plan.draw.setup.sync_us = 50;
    plan.draw.limits.pipeline_depth = 4;
    plan.draw.limits.retained_bytes_max = 300;
    plan.draw.limits.queue_count_max = 16;
    plan.draw.pause_us = (10, 20);
    plan.violation = Some("two \"values\"".to_string());
    let text = r#"{
  "about": "a test",
  "violation": "two \"values\"",
  "world": {
    "seed": 1,
    "replica_count": 3,
    "participant_count": 1,
    "initiator_count": 1,
    "transaction_count": 2,
    "service_count": 0,
    "has_messages": true,
    "pause_us": [
      10,
      20
    ],
    "faults_us": 4000000,
    "weather": {
      "delay_us": [
        200,
        600
      ],
      "loss_ppm": 0,
      "duplicate_ppm": 0,
      "replay_us_max": 0
    },
    "lines": {
      "delay_us": [
        100,
        200
      ],
      "loss_ppm": 0
    },
    "mail_us_max": 10,
    "sync_us": 50,
    "pipeline_depth": 4,
    "retained_bytes_max": 300,
    "queue_count_max": 16,
    "is_long": false
  },
  "faults": [
    {"at_us":500000,"fault":{"crash":{"replica":2,"unsynced":"kept"}}},
    {"at_us":750000,"fault":{"topology":{"open":[[1,3],[3,1]]}}},
    {"at_us":900000,"fault":{"weather":{"delay_us":[200,600],"loss_ppm":0,"duplicate_ppm":0,"replay_us_max":0}}},
    {"at_us":1000000,"fault":"mend"}
  ]
}
"#;
    assert_eq!(plan.to_text(), text);
    assert_eq!(Plan::parse(text).expect("a plan").to_text(), text);
}

/// A file replays to the same trace as the seed that drew it, without the generator.
#[test]
fn a_plan_from_a_file_runs_like_the_seed_that_drew_it() {
    for seed in [2, 5] {
        let drawn = Plan::of_seed(seed);
        let read = Plan::parse(&drawn.to_text()).expect("its own form");
        let report = run(&drawn, Detail::Lines).result;
        assert!(report.is_ok(), "{report:?}");
        assert_eq!(run(&read, Detail::Lines).result, report);
    }
}

#[test]
fn a_plan_that_cannot_be_run_is_refused_with_its_reason() {
    let good = small_plan(vec![
        (5, Fault::Crash(TWO, UnsyncedWrite::Kept)),
        (6, Fault::CrashActor(ActorId(1))),
    ])
    .to_text();
    assert!(Plan::parse(&good).is_ok());
    for (from, to, reason) in [
        ("\"replica\":2", "\"replica\":4", "unknown replica"),
        ("\"replica\":2", "\"replica\":0", "unknown replica"),
        ("\"actor\":1", "\"actor\":2", "unknown service"),
        ("\"crash\":", "\"clash\":", "unknown variant `clash`"),
        ("\"seed\"", "\"sead\"", "unknown field `sead`"),
        ("\"at_us\":5", "\"at_ms\":5", "unknown field `at_ms`"),
        ("\"replica_count\": 3", "\"replica_count\": 0", "0 replicas"),
        (
            "\"participant_count\": 1",
            "\"participant_count\": 0",
            "0 participants",
        ),
        (
            "\"faults_us\": 4000000",
            "\"faults_us\": 999999999999",
            "faults for",
        ),
        (
            "\"delay_us\": [\n        200",
            "\"delay_us\": [\n        9999",
            "delays of (9999, 600) us",
        ),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from}");
        let error = Plan::parse(&bad).expect_err(reason).to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    assert!(Plan::read(Path::new("no/such/plan.json")).is_err());
}

fn failure(text: &str) -> Failure {
    Failure {
        text: text.to_string(),
        is_panic: false,
    }
}

#[test]
fn failures_of_one_checker_are_of_one_kind() {
    let kind = |text: &str| failure(text).kind();
    assert_eq!(
        kind("slot 248: replica 3 decided another value than was decided before"),
        kind("slot 7: replica 1 decided another value than was decided before")
    );
    assert_eq!(
        kind("branch 0199a-2/77 was answered Committed; the log says Some(Record { .. })"),
        kind("branch 0299b-9/12 was answered Committed; the log says None")
    );
    assert_ne!(kind("slot 7: no value"), kind("slot 7: two values"));
}

/// What is left is needed: two of twenty faults, and not a third that fails in another way.
#[test]
fn shrinking_leaves_what_the_failure_needs() {
    let faults: Vec<(u64, Fault)> = (1..=20).map(|at| (at * 100_000, Fault::Pause(ONE, at))).collect();
    let has = |plan: &Plan, length: u64| {
        plan.faults()
            .any(|(_, fault)| *fault == Fault::Pause(ONE, length))
    };
    let judge = |plan: &Plan| match (has(plan, 3), has(plan, 11)) {
        (true, true) => Some(failure("replica 1: two pauses")),
        // Another bug, which is easier to reach.
        (true, false) => Some(failure("replica 1: one pause")),
        _ => None,
    };
    let shrunk = shrink_by(
        &small_plan(faults),
        &failure("replica 2: two pauses"),
        500,
        judge,
        |_, _| {},
    );
    let left: Vec<Fault> = shrunk
        .plan
        .draw
        .plan
        .iter()
        .map(|(_, fault)| fault.clone())
        .collect();
    assert_eq!(left, [Fault::Pause(ONE, 3), Fault::Pause(ONE, 11)]);
    assert_eq!(shrunk.failure, failure("replica 1: two pauses"));
    assert_eq!(shrunk.plan.draw.transaction_count, 1);
    assert!(
        shrunk.plan.draw.plan[1].0 < 10_000,
        "windows are shortened: {:?}",
        shrunk.plan.draw.plan
    );
    assert!(shrunk.run_count < 200, "{} runs", shrunk.run_count);
}

#[test]
fn shrinking_ends_when_its_runs_are_used_up() {
    let faults: Vec<(u64, Fault)> = (1..=20).map(|at| (at * 100_000, Fault::Mend)).collect();
    let shrunk = shrink_by(
        &small_plan(faults),
        &failure("x"),
        3,
        |_| Some(failure("x")),
        |_, _| {},
    );
    assert_eq!(shrunk.run_count, 3);
}

/// A real one: two of three directories are wiped, which no log survives, among faults that do not matter. L10 keeps such
/// a cluster from deciding anything, so it does not come to rest.
#[test]
fn a_real_failure_is_shrunk_to_its_cause() {
    let plan = small_plan(vec![
        (400_000, Fault::BreakSessions),
        (700_000, Fault::Pause(ReplicaId(3), 10_000)),
        (1_000_000, Fault::Wipe(ONE)),
        (1_000_000, Fault::Wipe(TWO)),
        (1_500_000, Fault::Mend),
        (1_800_000, Fault::CrashActor(ActorId(0))),
    ]);
    let found = run(&plan, Detail::Hash).result.expect_err("a lost majority");
    let shrunk = shrink(&plan, &found, 80, |_, _| {});
    let left: Vec<Fault> = shrunk
        .plan
        .draw
        .plan
        .iter()
        .map(|(_, fault)| fault.clone())
        .collect();
    assert_eq!(
        left,
        [Fault::Wipe(ONE), Fault::Wipe(TWO)],
        "{}",
        shrunk.failure.text
    );
    assert_eq!(shrunk.failure.kind(), found.kind());
    assert_eq!(run(&shrunk.plan, Detail::Hash).result, Err(shrunk.failure));
}

fn kept_plans() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .expect("the folder of plans")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    files
}

/// Each plan is one bug that was found; its text says which.
#[test]
fn what_failed_once_does_not_fail_again() {
    for file in kept_plans() {
        let plan = Plan::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let result = run(&plan, Detail::Hash).result;
        assert!(
            result.is_ok(),
            "{}: {result:?}\ncargo sim --plan {}",
            file.display(),
            file.display()
        );
    }
}
