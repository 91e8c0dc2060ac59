//! `seats` as a user runs it. (The conformance kit on its store is among the program's own tests.)

mod support;

use std::time::Duration;

/// For one run, on a machine that is busy building.
const RUN_TIMEOUT: Duration = Duration::from_secs(120);

/// 60 guests for 3 rows of 10 seats, of whom every fifth is too poor: each row sells out.
#[test]
fn every_seat_is_paid_for_although_the_leader_is_killed() {
    let args = ["--guests", "60", "--rows", "3", "--seats-per-row", "10"];
    let (code, summary) = support::summary(env!("CARGO_BIN_EXE_seats"), &args, RUN_TIMEOUT);
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
