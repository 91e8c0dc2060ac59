//! The conformance kit finds what it is for: seventeen resource managers that are broken on purpose, each found by
//! the check that is about its fault, and by no check that has nothing to do with it.

mod redb_support;

use redb_support::broken::{Fault, OnLyingDisk};
use synod::conformance::{self, Check, Rule};

/// What the check that is about the fault says, and every other check that fails with it, in their order.
struct Found {
    check: Check,
    rule: Rule,
    /// A part of the failure's step.
    step: &'static str,
    /// A part of what was found.
    found: &'static str,
    also: &'static [Check],
    /// What may fail too, as the store's pages happen to lie.
    perhaps: &'static [Check],
}

async fn is_found(fault: Fault, expected: Found) {
    let report = conformance::run(&OnLyingDisk(fault)).await;
    let own = report.failed().find(|(check, _)| *check == expected.check);
    let (_, failure) = own.unwrap_or_else(|| panic!("{fault:?} was not found\n{report}"));
    let is_its_own = failure.rule == expected.rule
        && failure.step.contains(expected.step)
        && failure.found.contains(expected.found);
    assert!(is_its_own, "{fault:?} was found for another reason\n{report}");
    let failed: Vec<_> = report.failed().map(|(check, _)| check).collect();
    let mut all = expected.also.to_vec();
    all.push(expected.check);
    all.extend(expected.perhaps.iter().filter(|one| failed.contains(one)));
    all.sort();
    assert_eq!(
        failed, all,
        "{fault:?} fails other checks than it should\n{report}"
    );
}

macro_rules! found {
    ($name:ident, $fault:ident, $check:ident, $rule:expr, $step:literal, $found:literal, [$($also:ident),*] $(, perhaps [$($perhaps:ident),*])?) => {
        #[tokio::test]
        async fn $name() {
            let found = Found {
                check: Check::$check,
                rule: $rule,
                step: $step,
                found: $found,
                also: &[$(Check::$also),*],
                perhaps: &[$($(Check::$perhaps),*)?],
            };
            is_found(Fault::$fault, found).await;
        }
    };
}

found!(
    a_vote_before_it_is_durable,
    VotesBeforeItIsDurable,
    CrashAtEveryStep,
    Rule::Must(4),
    "now after Prepare",
    "Unknown",
    [
        AnExecutionRunsOnce,
        NothingIsSettledByItself,
        LocksSurviveACrash,
        OddAndLargeInput
    ],
    perhaps[ManyBranches]
);

found!(
    a_commit_before_it_is_durable,
    CommitsBeforeItIsDurable,
    CrashAtEveryStep,
    Rule::Must(8),
    "now after Finish",
    "Prepared",
    [
        AnExecutionRunsOnce,
        InDoubtListsEveryBranch,
        ProofIsKeptUntilForgotten,
        OddAndLargeInput
    ],
    perhaps[ManyBranches]
);

found!(
    repeated_commits_that_add_up,
    RepeatedCommitsAddUp,
    OutcomesAreIdempotent,
    Rule::Must(9),
    "the second time",
    "2 time(s)",
    [DroppedCallsRunToTheirEnd, CrashAtEveryStep]
);

found!(
    an_empty_abort_that_leaves_nothing,
    EmptyAbortsLeaveNothing,
    LateWorkIsRefused,
    Rule::Must(7),
    "work after an empty abort",
    "Commit",
    [DroppedCallsRunToTheirEnd]
);

found!(
    unknown_that_is_acknowledged,
    UnknownIsAcknowledged,
    UnknownIsNoAcknowledgement,
    Rule::Must(9),
    "never was here",
    "AlreadyApplied",
    [DroppedWorkLeavesNothing, OutcomesAreIdempotent, CrashAtEveryStep]
);

found!(
    a_list_of_this_process_only,
    ListsOnlyItsOwn,
    InDoubtListsEveryBranch,
    Rule::Must(12),
    "after a crash",
    "[]",
    [
        AnExecutionRunsOnce,
        NothingIsSettledByItself,
        CrashAtEveryStep,
        ForgetLeavesWhatIsPrepared,
        OddAndLargeInput,
        ManyBranches
    ]
);

found!(
    a_list_without_deadlines,
    ListsNoDeadlines,
    InDoubtListsEveryBranch,
    Rule::Must(12),
    "contexts of in_doubt",
    "UnixMillis(0)",
    []
);

found!(
    dirty_reads,
    ReadsAreDirty,
    WorkIsInvisibleUntilCommit,
    Rule::Must(1),
    "after the vote",
    "1 time(s)",
    [RivalsWaitOrAreRefused, NothingIsSettledByItself, CrashAtEveryStep]
);

found!(
    forget_that_ends_what_is_prepared,
    ForgetEndsWhatIsPrepared,
    ForgetLeavesWhatIsPrepared,
    Rule::Must(5),
    "forget above prepared branches",
    "BranchId",
    []
);

found!(
    an_identity_made_at_open,
    IdentityIsMadeAtOpen,
    IdentityIsKept,
    Rule::Must(13),
    "after a crash",
    "ResourceId",
    [OneLineageForEver]
);

found!(
    readers_that_write_and_vote_read_only,
    ReadersThatWriteAreReadOnly,
    ReadOnlyVotesAreHonest,
    Rule::Must(6),
    "LooksThenWrites",
    "ReadOnly",
    []
);

found!(
    locks_that_vote_read_only,
    LocksAreReadOnly,
    ReadOnlyVotesAreHonest,
    Rule::Must(6),
    "Locks",
    "ReadOnly",
    []
);

found!(
    a_branch_settled_at_its_deadline,
    SettlesAtTheDeadline,
    NothingIsSettledByItself,
    Rule::Must(5),
    "past its deadline",
    "[]",
    []
);

found!(
    proof_in_memory,
    ProofIsInMemory,
    ProofIsKeptUntilForgotten,
    Rule::Must(11),
    "nothing was forgotten yet",
    "Unknown",
    [AnExecutionRunsOnce, DroppedCallsRunToTheirEnd, CrashAtEveryStep]
);

found!(
    dropped_commits_that_stay_busy,
    DroppedCommitsStayBusy,
    DroppedCallsRunToTheirEnd,
    Rule::Must(14),
    "a Commit that was dropped",
    "Busy",
    []
);

found!(
    unknown_while_preparing,
    UnknownWhilePreparing,
    CommitWaitsForItsPrepare,
    Rule::Must(10),
    "commit while prepare runs",
    "Unknown",
    []
);

found!(
    work_of_any_lineage,
    TakesAnyLineage,
    ForeignAndPassedWorkIsRefused,
    Rule::Must(2),
    "begin for another coordinator",
    "a local transaction",
    []
);
