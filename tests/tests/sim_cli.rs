//! `cargo sim` as people use it: what it runs, prints, writes and exits with.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use synod_proto::ids::ReplicaId;
use synod_tests::faults::Fault;
use synod_tests::plan::Plan;

fn sim(directory: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(arguments)
        .current_dir(directory)
        .output();
    output.expect("the simulator starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The line of standard error that names the run.
fn trace_hash(output: &Output) -> String {
    let all = text(&output.stderr);
    let line = all.lines().find(|line| line.starts_with("trace hash "));
    line.unwrap_or_else(|| panic!("no trace hash: {all}")).to_owned()
}

/// A short plan: what a seed draws, up to its fifth second.
fn short_plan() -> Plan {
    let mut plan = Plan::of_seed(26);
    plan.draw.setup.replica_count = 3;
    plan.draw.faults_us = 5_000_000;
    plan.draw.is_long = false;
    plan.draw.plan.clear();
    plan
}

/// A plan that no protocol survives: two of three directories are wiped (L10).
fn lost_majority() -> Plan {
    let mut plan = short_plan();
    plan.draw.plan = vec![
        (500_000, Fault::BreakSessions),
        (1_000_000, Fault::Wipe(ReplicaId(1))),
        (1_000_000, Fault::Wipe(ReplicaId(2))),
    ];
    plan
}

/// A seed is a bug report: the same one does the same, to the byte, in another process as well.
#[test]
fn a_commit_hash_is_a_seed_and_the_same_one_leaves_the_same_trace() {
    let folder = tempfile::tempdir().expect("a folder");
    let commit = "91b2889657131c2e67e8c042d2e5f03fc24c9c33";
    let first = sim(folder.path(), &["--seed", commit, "--trace", "100000"]);
    let second = sim(folder.path(), &["--seed", commit, "--trace", "100000"]);
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert_eq!(
        text(&first.stderr),
        text(&second.stderr),
        "every event is the same"
    );
    assert_eq!(first.stdout, second.stdout);
    // The first sixteen digits are the seed.
    let as_number = 0x91b2_8896_5713_1c2e_u64.to_string();
    let third = sim(folder.path(), &["--seed", &as_number, "--trace", "100000"]);
    assert_eq!(trace_hash(&third), trace_hash(&first));
    let other = sim(folder.path(), &["--seed", "5"]);
    assert_ne!(trace_hash(&other), trace_hash(&first));
}

#[test]
fn a_hunt_prints_its_figures_and_runs_fixed_seeds_beside_those_of_a_commit() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = [
        "--fixed",
        "2",
        "--seed",
        "fb8f17e566947560e15ffd6018263acce235b612",
        "--seeds",
        "4",
    ];
    let output = sim(folder.path(), &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (figures, progress) = (text(&output.stdout), text(&output.stderr));
    for figure in [
        "simulated hours",
        "4  runs",
        "0  failed",
        "ballots in the minute after healing, at most; 10 allowed",
        "commands that waited to enter the log, at most",
        "crash of the leader",
        "sent: paxos prepare",
    ] {
        assert!(figures.contains(figure), "{figure}: {figures}");
    }
    assert!(progress.contains("seeds 1 to 2, then "), "{progress}");
}

#[test]
fn a_hunt_by_time_ends_with_its_figures_as_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = sim(folder.path(), &["--minutes", "0.01", "--seed", "7", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert!(report["runs"].as_u64().is_some_and(|count| count > 0), "{report}");
    assert_eq!(report["failures"], serde_json::json!([]));
}

/// What fails says how to replay it in one line, and is made smaller on the way.
#[test]
fn a_failure_prints_the_line_that_replays_it_and_leaves_a_smaller_plan() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("lost.json");
    fs::write(&file, lost_majority().to_text()).expect("a plan is written");
    let output = sim(folder.path(), &["--plan", "lost.json", "--shrink"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let printed = text(&output.stdout);
    assert!(
        printed
            .lines()
            .any(|line| line.starts_with("cargo sim --plan lost.json")),
        "{printed}"
    );
    let shrunk = folder.path().join("target/sim/seed-26.shrunk.json");
    assert!(
        printed.contains("target/sim/seed-26.shrunk.json # 2 faults"),
        "{printed}"
    );
    let small = Plan::read(&shrunk).expect("the shrunk plan");
    assert_eq!(
        small.draw.plan.len(),
        2,
        "the session that broke was not the cause"
    );
    assert!(small.violation.is_some());
    let again = sim(folder.path(), &["--plan", "target/sim/seed-26.shrunk.json"]);
    assert_eq!(again.status.code(), Some(1));
}

#[test]
fn what_a_seed_drew_can_be_written_and_replayed_without_the_generator() {
    let folder = tempfile::tempdir().expect("a folder");
    let drawn = sim(folder.path(), &["--seed", "5", "--write", "five.json"]);
    assert!(drawn.status.success(), "{}", text(&drawn.stderr));
    let replayed = sim(folder.path(), &["--plan", "five.json"]);
    assert!(replayed.status.success(), "{}", text(&replayed.stderr));
    assert_eq!(trace_hash(&replayed), trace_hash(&drawn));
}

#[test]
fn what_cannot_be_run_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    for (arguments, reason) in [
        (["--seed", "main"], "neither a number nor a commit hash"),
        (["--plan", "none.json"], "the plan cannot be read"),
        (["--minutes", "-1"], "unexpected argument"),
        (["--minutes", "inf"], "from 0 to a million"),
    ] {
        let output = sim(folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            text(&output.stderr).contains(reason),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
    }
}
