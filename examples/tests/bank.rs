//! `bank` as a user runs it, for a few seconds instead of a minute.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// For one run, on a machine that is busy building.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);

fn run(args: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bank"));
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

#[test]
fn no_money_is_made_or_lost_under_random_kills() {
    let (code, summary) = run(&["--json", "--seconds", "12", "--seed", "5", "--accounts", "10"]);
    assert_eq!((code, &summary["problems"]), (Some(0), &json!([])), "{summary}");
    assert_eq!(summary["cents_after"], 20_000, "{summary}");
    assert_eq!(
        (&summary["in_doubt"], &summary["unfinished"]),
        (&json!(0), &json!(0)),
        "{summary}"
    );
    let kills: u64 = ["leaders", "followers", "banks"]
        .iter()
        .filter_map(|who| summary["kills"][who].as_u64())
        .sum();
    assert!(kills > 0 && summary["transfers"].as_u64() > Some(0), "{summary}");
}
