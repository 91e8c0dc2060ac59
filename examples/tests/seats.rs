//! `seats` as a user runs it. (The conformance kit on its store is among the program's own tests.)

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// For one run, on a machine that is busy building.
const RUN_TIMEOUT: Duration = Duration::from_secs(120);

fn run(args: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seats"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the example starts");
    let begun = Instant::now();
    while child.try_wait().expect("the child can be waited for").is_none() {
        if begun.elapsed() > RUN_TIMEOUT {
            child.kill().expect("the child can be killed");
            panic!("no end after {RUN_TIMEOUT:?}: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("the child's output");
    let summary = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    (output.status.code(), summary)
}

/// 60 guests for 3 rows of 10 seats, of whom every fifth is too poor: each row sells out.
#[test]
fn every_seat_is_paid_for_although_the_leader_is_killed() {
    let (code, summary) = run(&["--json", "--guests", "60", "--rows", "3", "--seats-per-row", "10"]);
    assert_eq!(
        (code, &summary["problems"]),
        (Some(0), &serde_json::json!([])),
        "{summary}"
    );
    for (field, expected) in [
        ("sold", 30),
        ("seats_taken", 30),
        ("purses_charged", 30),
        ("in_doubt", 0),
    ] {
        assert_eq!(summary[field], expected, "{field} in {summary}");
    }
    let refused = summary["too_poor"].as_u64().zip(summary["sold_out"].as_u64());
    assert_eq!(
        refused.map(|(too_poor, sold_out)| too_poor + sold_out),
        Some(30),
        "{summary}"
    );
    assert!(summary["killed_leader"].is_u64(), "{summary}");
}
