//! The scripts of what must go wrong together: each passes, and its planted bug is found by it (`cargo planted`).

use synod_tests::scenarios::{ALL, named};

fn play(name: &str) {
    let scenario = named(name).expect("a script of that name");
    (scenario.play)().unwrap_or_else(|violation| panic!("{}: {violation}", scenario.what));
}

/// L3.
#[test]
fn l3_nothing_is_decided_over_a_lost_record() {
    play("last-record-lost");
}

/// L3.
#[test]
fn l3_a_value_of_a_lower_ballot_does_not_stand_in_for_a_lost_record() {
    play("lower-value-beside-lost-record");
}

/// L5.
#[test]
fn l5_a_candidate_learns_what_its_promises_call_decided_first() {
    play("candidate-behind-its-promises");
}

/// L10.
#[test]
fn l10_two_wiped_replicas_do_not_believe_each_other() {
    play("two-directories-wiped");
}

/// T9.
#[test]
fn t9_a_branch_that_slept_past_the_watermark_is_told_committed() {
    play("branch-sleeps-past-watermark");
}

/// C3.
#[test]
fn c3_a_store_refuses_late_work() {
    play("late-work-in-a-store");
}

#[test]
fn names_are_not_used_twice() {
    for one in ALL {
        assert_eq!(ALL.iter().filter(|other| other.name == one.name).count(), 1);
    }
}
