//! Scripts of what must go wrong together, for rules that chance hardly ever puts to the test: each is a few steps of a
//! world, watched by the same checkers, and passes as long as its rule is kept. The bugs that are planted against these
//! rules are found by them.

mod log;
mod outcomes;
mod store;

use crate::checkers::Check;

/// A script.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What goes wrong in it.
    pub what: &'static str,
    /// Plays it; an error if a checker found something, or the rule was not kept.
    pub play: fn() -> Check,
}

/// Every script.
pub const ALL: [Scenario; 6] = [
    Scenario {
        name: "last-record-lost",
        what: "the leader is gone, and the other record of what it decided last cannot be read",
        play: log::last_record_lost,
    },
    Scenario {
        name: "lower-value-beside-lost-record",
        what: "the same, and the third replica holds another value for that slot, of a lower ballot",
        play: log::lower_value_beside_lost_record,
    },
    Scenario {
        name: "candidate-behind-its-promises",
        what: "a candidate lacks what its only promise calls decided, and another replica does not know that it is",
        play: log::candidate_behind_its_promises,
    },
    Scenario {
        name: "two-directories-wiped",
        what: "two of three directories are wiped while the third replica is down",
        play: log::two_directories_wiped,
    },
    Scenario {
        name: "branch-sleeps-past-watermark",
        what: "a prepared branch asks for its outcome after the watermark has passed its transaction",
        play: outcomes::branch_sleeps_past_watermark,
    },
    Scenario {
        name: "late-work-in-a-store",
        what: "an abort comes to a store before the branch's work, or before its prepare",
        play: store::late_work,
    },
];

/// The script of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|one| one.name == name)
}
