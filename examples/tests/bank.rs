//! `bank` as a user runs it, for a few seconds instead of a minute.

mod support;

use std::time::Duration;

use serde_json::json;

/// For one run, on a machine that is busy building.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);

#[test]
fn no_money_is_made_or_lost_under_random_kills() {
    let args = ["--seconds", "12", "--seed", "5", "--accounts", "10"];
    let (code, summary) = support::summary(env!("CARGO_BIN_EXE_bank"), &args, RUN_TIMEOUT);
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
