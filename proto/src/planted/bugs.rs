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

/// By what a bug must be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// Whole clusters with everything that goes wrong: within so many seeds.
    Seeds(u64),
    /// Every order of everything in a small world, one of those that `synod-tests` gives a name for this.
    Exploration(&'static str),
    /// A script of what must go wrong together, which chance hardly ever brings; `synod-tests` has it by this name.
    Scenario(&'static str),
}

macro_rules! bugs {
    ($($name:ident: $rule:literal, $sentence:literal, $means:expr;)*) => {
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

            /// By what it must be found.
            #[must_use]
            pub const fn means(self) -> Means {
                use Means::{Exploration, Scenario, Seeds};
                match self {
                    $(Self::$name => $means,)*
                }
            }
        }
    };
}

// By what they break, so that bugs that lie apart here are looked for together in a rotation.
bugs! {
    // The log of slots.
    ReplyBeforeSync: "L2", "what rests on a write leaves before the write is synced", Seeds(20);
    PromiseNotPersisted: "L2", "a promise is given and not written", Seeds(20);
    AcceptedNotPersisted: "L2", "a value is accepted and not written", Seeds(20);
    BallotReusedAfterRestart: "L1", "a replica that starts again counts the same start again", Seeds(20);
    AcceptedBelowPromise: "P1a", "a value is accepted in a ballot below the promised one", Seeds(60);
    AcceptsCountedOverBallots: "P2b", "what was accepted in one ballot is counted for another", Exploration("restart-in-office");
    MinorityDecides: "P2b", "one acceptance less than a quorum decides", Seeds(20);
    HighestNotProposedAgain: "P2c", "a new leader puts a no-op where it heard of an accepted value", Seeds(60);
    LowestProposedAgain: "P2c", "a new leader proposes the accepted value of the lowest ballot again", Seeds(500);
    NoopOverUnreadable: "L3", "a new leader puts a no-op over a slot of which too few reports can be read", Scenario("last-record-lost");
    LowerValueOverUnreadable: "L3", "a new leader proposes what it heard of a slot of which too few reports can be read", Scenario("lower-value-beside-lost-record");
    UnreadableReportedEmpty: "L3", "an unreadable slot is reported as one in which nothing was accepted", Scenario("last-record-lost");
    StaleValueTakenAsDecided: "L4", "a leader's word of a decided prefix is believed of a value of another ballot", Seeds(60);
    CandidateDoesNotCatchUp: "L5", "a candidate proposes in slots that one of its promises calls decided", Seeds(300);
    WipedReplicaVotes: "L10", "a wiped or older directory votes, though a peer contradicts it", Seeds(40);
    MajorityAdmitsNewDirectory: "L10", "a directory that was never admitted votes on the word of a majority", Scenario("two-directories-wiped");
    // The log on disk.
    TruncatedAtFirstBad: "L7", "the log is cut at the first bad record, whatever follows it", Seeds(200);
    ChecksumNotChecked: "L7", "a record is taken whatever its checksum says", Seeds(40);
    SyncRetried: "L9", "a sync that failed is tried again", Seeds(40);
    // The coordinator.
    SecondOutcomeOverwrites: "T9", "a second outcome takes the place of the first", Seeds(100);
    WatermarkNotChecked: "T9", "an outcome is taken for a gtid below the watermark", Seeds(200);
    UnfinishedForgotten: "T9", "a commit with an unacknowledged branch is forgotten below the watermark", Scenario("branch-sleeps-past-watermark");
    MarkAskedBeforeRecord: "T9", "below the watermark a branch is told aborted before its record is looked up", Scenario("branch-sleeps-past-watermark");
    AbortToldBeforeDecided: "T6", "a branch is told aborted when an abort is proposed", Seeds(20);
    AnsweredPerGtid: "T5", "a branch is told what became of its gtid, whether or not the record names it", Seeds(20);
    MismatchToldCommitted: "T5", "a commit of other branches than the recorded ones is called committed", Seeds(20);
    UndecidedToldUnconfirmed: "T10", "a leader says that there is no outcome without asking a quorum", Seeds(20);
    ServesBeforeBarrier: "A4", "a new leader serves before it has applied all that was chosen before it", Seeds(100);
    DeliveryForgottenEarly: "B10", "a delivery is forgotten once one branch has acknowledged", Seeds(20);
    DeliveryToldOnce: "T8", "a delivery is not repeated", Seeds(20);
    // The participant.
    UnknownAcknowledged: "T8", "a store that does not know a branch is taken as having committed it", Seeds(60);
    AcknowledgedBeforeEffect: "T8", "a commit is acknowledged before it has happened", Seeds(20);
    RecoveryRollsBack: "C2", "a process that starts rolls back what it finds prepared", Seeds(20);
    UndecidedTakenAsAborted: "T6", "a branch that is told that there is no outcome yet rolls back", Seeds(20);
    RolledBackAtDeadline: "T8", "a branch in doubt rolls back at its deadline", Seeds(20);
    CommitWithCallUnanswered: "T4", "a commit is proposed while a call is unanswered", Seeds(100);
    RepeatRunsUnderSameId: "T2", "a repeated request runs under the same branch id", Seeds(100);
    StoreAnswersBeforeSync: "C1", "the store says prepared or committed before its write is synced", Seeds(20);
    ProofNotWritten: "T8", "a commit leaves no proof of itself in the store", Seeds(20);
    LateWorkPrepared: "C3", "work is prepared after its branch was rolled back", Scenario("late-work-in-a-store");
}
