//! The bugs, and which of them this process has selected.

use core::sync::atomic::{AtomicU8, Ordering};

/// The number of the bug that is selected; 0 for none.
static SELECTED: AtomicU8 = AtomicU8::new(0);

/// Selects a bug for the rest of the process.
///
/// # Panics
/// One was selected before: what a run finds would be due to either.
pub fn select(bug: Bug) {
    let before = SELECTED.swap(number(bug), Ordering::SeqCst);
    assert_eq!(before, 0, "one bug in one process");
}

/// The bug that this process has selected.
#[must_use]
pub fn selected() -> Option<Bug> {
    Bug::ALL.into_iter().find(|bug| is_selected(*bug))
}

/// Whether this is the bug that the process has selected.
#[must_use]
pub fn is_selected(bug: Bug) -> bool {
    SELECTED.load(Ordering::Relaxed) == number(bug)
}

const fn number(bug: Bug) -> u8 {
    bug as u8 + 1
}

macro_rules! bugs {
    ($($name:ident: $rule:literal, $sentence:literal, $seeds:literal;)*) => {
        /// A bug: what goes wrong, and which rule it breaks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Bug {
            $(#[doc = $sentence] $name,)*
        }

        impl Bug {
            /// Every bug.
            pub const ALL: [Self; [$($rule),*].len()] = [$(Self::$name),*];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// The rule of the design, or the trap, that it breaks.
            #[must_use]
            pub const fn rule(self) -> &'static str {
                match self {
                    $(Self::$name => $rule,)*
                }
            }

            /// What goes wrong.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$name => $sentence,)*
                }
            }

            /// Within how many seeds of whole clusters it must be found.
            #[must_use]
            pub const fn seed_count_max(self) -> u64 {
                match self {
                    $(Self::$name => $seeds,)*
                }
            }
        }
    };
}

bugs! {
    ReplyBeforeSync: "L2", "what rests on a write leaves before the write is synced", 20;
    PromiseNotPersisted: "L2", "a promise is given and not written", 20;
    BallotReusedAfterRestart: "L1", "a replica that starts again counts the same start again", 200;
    AcceptsCountedOverBallots: "P2b", "what was accepted in one ballot is counted for another", 200;
    HighestNotProposedAgain: "P2c", "a new leader puts a no-op where it heard of an accepted value", 50;
    LowestProposedAgain: "P2c", "a new leader proposes the accepted value of the lowest ballot again", 400;
}
