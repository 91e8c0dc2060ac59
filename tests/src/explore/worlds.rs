//! The worlds that are explored, with their bounds: each asks one question, and together they take about a minute on one
//! core. Bounds that reach everything are small on purpose; the widest
//! worlds are cut off instead: they are followed to their end, but not in their full width.

use super::paxos::host::{Rounds, Syncs};
use super::paxos::{self, Beginning, PaxosWorld};
use super::search::{Bound, Report, explore};
use super::transaction::{self, TransactionWorld};

/// Far above what any of the complete worlds holds: a world that outgrows it has changed.
const COMPLETE_COUNT_MAX: usize = 20_000_000;

/// What is explored.
#[derive(Clone, Copy, Debug)]
pub enum Bounds {
    /// Three replicas.
    Paxos(paxos::Bounds),
    /// One transaction.
    Transaction(transaction::Bounds),
}

/// One world.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Its name.
    pub name: &'static str,
    /// What may happen in it.
    pub what: &'static str,
    /// The same, in numbers.
    pub bounds: Bounds,
    /// How many states of each level are followed up; `None` if the world is explored completely.
    pub width_max: Option<usize>,
    /// Whether it takes a minute or more, and so is explored only when it is asked for.
    pub is_long: bool,
}

/// What came of one world.
#[derive(Clone, Debug)]
pub struct Explored {
    /// The walk.
    pub report: Report,
    /// How many states of single processes, and how many of their steps, the cores went through.
    pub core_counts: (usize, usize),
}

impl World {
    /// Explores it; a world that is not explored completely ends after `state_count_max` states at the latest.
    #[must_use]
    pub fn explore(&self, state_count_max: usize) -> Explored {
        let bound = match self.width_max {
            None => Bound::states(COMPLETE_COUNT_MAX),
            Some(width_max) => Bound {
                state_count_max,
                width_max,
            },
        };
        match self.bounds {
            Bounds::Paxos(bounds) => {
                let mut world = PaxosWorld::new(bounds);
                let report = explore(&mut world, bound);
                Explored {
                    report,
                    core_counts: world.counts(),
                }
            }
            Bounds::Transaction(bounds) => {
                let mut world = TransactionWorld::new(bounds);
                let report = explore(&mut world, bound);
                Explored {
                    report,
                    core_counts: world.counts(),
                }
            }
        }
    }
}

/// A leader with a value under way, and a second replica that takes over.
pub const TAKE_OVER: paxos::Bounds = paxos::Bounds {
    beginning: Beginning::Led,
    syncs: Syncs::AtOnce,
    rounds: Rounds::Highest,
    stand_count: [0, 1, 0],
    beat_count: 0,
    value_count: 1,
    crash_count: 0,
    plant: None,
};

/// One replica that stands again after a crash, while answers to its former ballot are still on their way.
pub const RESTART_IN_OFFICE: paxos::Bounds = paxos::Bounds {
    stand_count: [1, 0, 0],
    crash_count: 1,
    ..TAKE_OVER
};

/// The world of this name that a planted bug is looked for in.
#[must_use]
pub fn for_planted(name: &str) -> Option<paxos::Bounds> {
    match name {
        "restart-in-office" => Some(RESTART_IN_OFFICE),
        _ => None,
    }
}

/// One replica, no faults but what messages do: lost, repeated, in any order, each call sent again.
pub const TRANSACTION: transaction::Bounds = transaction::Bounds {
    replica_count: 1,
    execution_count_max: 2,
    timer_count: 0,
    wait_count: 0,
    leader_death_count: 0,
    crash_count: 0,
    may_be_late: true,
    heal_every: 16,
    plant: None,
};

/// Every world.
#[must_use]
pub fn all() -> Vec<World> {
    let rivals = paxos::Bounds {
        beginning: Beginning::Fresh,
        stand_count: [1, 1, 0],
        value_count: 0,
        ..TAKE_OVER
    };
    let transaction = transaction::Bounds {
        timer_count: 1,
        wait_count: 1,
        ..TRANSACTION
    };
    let with_death = transaction::Bounds {
        leader_death_count: 1,
        ..transaction
    };
    let everything = paxos::Bounds {
        stand_count: [1, 1, 0],
        beat_count: 1,
        value_count: 2,
        crash_count: 1,
        ..TAKE_OVER
    };
    let paxos = |name, what, bounds| World {
        name,
        what,
        bounds: Bounds::Paxos(bounds),
        width_max: None,
        is_long: false,
    };
    let of_one = |name, what, bounds| World {
        name,
        what,
        bounds: Bounds::Transaction(bounds),
        width_max: None,
        is_long: false,
    };
    vec![
        paxos(
            "take-over",
            "a leader with one value, another that takes over",
            TAKE_OVER,
        ),
        paxos(
            "take-over-crash",
            "the same, and one crash of any replica at any step",
            paxos::Bounds {
                crash_count: 1,
                ..TAKE_OVER
            },
        ),
        paxos(
            "take-over-heartbeat",
            "the same, and the word of a decided prefix by one heartbeat",
            paxos::Bounds {
                beat_count: 1,
                ..TAKE_OVER
            },
        ),
        paxos(
            "rivals-crash",
            "two candidates on empty logs, one crash",
            paxos::Bounds {
                crash_count: 1,
                ..rivals
            },
        ),
        paxos(
            "rivals-unaware",
            "two candidates that know no round but their own",
            paxos::Bounds {
                rounds: Rounds::Own,
                ..rivals
            },
        ),
        World {
            is_long: true,
            ..paxos(
                "take-over-two-values",
                "a leader with two values in the pipeline, another that takes over",
                paxos::Bounds {
                    value_count: 2,
                    ..TAKE_OVER
                },
            )
        },
        World {
            width_max: Some(6_000),
            ..paxos(
                "everything",
                "two values, two proposers, a heartbeat, one crash",
                everything,
            )
        },
        World {
            width_max: Some(8_000),
            ..paxos(
                "slow-syncs",
                "a take-over and a crash, each write on disk at any later time",
                paxos::Bounds {
                    syncs: Syncs::AtAnyTime,
                    crash_count: 1,
                    ..TAKE_OVER
                },
            )
        },
        of_one("retries", "calls that run twice, two timers, the deadline", {
            transaction::Bounds {
                timer_count: 2,
                ..transaction
            }
        }),
        of_one(
            "leader-death",
            "calls that run twice, a timer, the deadline, the leader dies",
            with_death,
        ),
        of_one(
            "participant-crash",
            "a timer, the deadline, the leader dies, a participant dies",
            transaction::Bounds {
                execution_count_max: 1,
                crash_count: 1,
                ..with_death
            },
        ),
        of_one(
            "three-replicas",
            "a timer, the deadline, one of three replicas dies as leader",
            transaction::Bounds {
                replica_count: 3,
                execution_count_max: 1,
                ..with_death
            },
        ),
        World {
            width_max: Some(20_000),
            ..of_one(
                "three-replicas-all",
                "all of the above at once",
                transaction::Bounds {
                    replica_count: 3,
                    crash_count: 1,
                    ..with_death
                },
            )
        },
    ]
}
