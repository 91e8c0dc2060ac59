//! The checks, in the order of a branch's life, and what each proves.

mod crash;
mod finish;
mod forget;
mod identity;
mod isolation;
mod load;
mod prepare;
mod work;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;

use super::trial::{Stop, broken};
use super::{Harness, Rule, Verdict};

/// How long a check may take. Hangs are failures; the longest check takes a few seconds.
const CHECK_LIMIT: Duration = Duration::from_secs(120);

/// One thing that every store is tried for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
#[expect(missing_docs, reason = "`proves` says it, in the words that reports use")]
pub enum Check {
    IdentityIsKept,
    OneLineageForEver,
    WorkIsInvisibleUntilCommit,
    DroppedWorkLeavesNothing,
    ForeignAndPassedWorkIsRefused,
    WaitingEnds,
    RivalsWaitOrAreRefused,
    DifferentItemsDoNotWait,
    NoUpdateIsLost,
    ReadsRepeat,
    ReadOnlyVotesAreHonest,
    LateWorkIsRefused,
    AnExecutionRunsOnce,
    InDoubtListsEveryBranch,
    NothingIsSettledByItself,
    OutcomesAreIdempotent,
    UnknownIsNoAcknowledgement,
    CommitWaitsForItsPrepare,
    DroppedCallsRunToTheirEnd,
    CrashAtEveryStep,
    CrashWithinEveryStep,
    LocksSurviveACrash,
    AnotherInstanceFinishes,
    ProofIsKeptUntilForgotten,
    WorkBelowTheMarkIsRefused,
    ForgetLeavesWhatIsPrepared,
    OddAndLargeInput,
    ManyBranches,
}

impl Check {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 28] = [
        Self::IdentityIsKept,
        Self::OneLineageForEver,
        Self::WorkIsInvisibleUntilCommit,
        Self::DroppedWorkLeavesNothing,
        Self::ForeignAndPassedWorkIsRefused,
        Self::WaitingEnds,
        Self::RivalsWaitOrAreRefused,
        Self::DifferentItemsDoNotWait,
        Self::NoUpdateIsLost,
        Self::ReadsRepeat,
        Self::ReadOnlyVotesAreHonest,
        Self::LateWorkIsRefused,
        Self::AnExecutionRunsOnce,
        Self::InDoubtListsEveryBranch,
        Self::NothingIsSettledByItself,
        Self::OutcomesAreIdempotent,
        Self::UnknownIsNoAcknowledgement,
        Self::CommitWaitsForItsPrepare,
        Self::DroppedCallsRunToTheirEnd,
        Self::CrashAtEveryStep,
        Self::CrashWithinEveryStep,
        Self::LocksSurviveACrash,
        Self::AnotherInstanceFinishes,
        Self::ProofIsKeptUntilForgotten,
        Self::WorkBelowTheMarkIsRefused,
        Self::ForgetLeavesWhatIsPrepared,
        Self::OddAndLargeInput,
        Self::ManyBranches,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.about().0
    }

    /// The check of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|check| check.name() == name)
    }

    /// The MUSTs of [`ResourceManager`](crate::resource::ResourceManager) that it tries.
    #[must_use]
    pub fn musts(self) -> &'static [u8] {
        self.about().1
    }

    /// What it proves, in a sentence.
    #[must_use]
    pub fn proves(self) -> &'static str {
        self.about().2
    }

    fn about(self) -> (&'static str, &'static [u8], &'static str) {
        match self {
            Self::IdentityIsKept => (
                "identity_is_kept",
                &[13],
                "every database has an id of its own, and the same one after a crash",
            ),
            Self::OneLineageForEver => (
                "one_lineage_for_ever",
                &[2, 13],
                "a database is bound once, durably, and to one coordinator",
            ),
            Self::WorkIsInvisibleUntilCommit => (
                "work_is_invisible_until_commit",
                &[1],
                "nobody sees a branch's work before its commit, and nobody ever sees it after its abort",
            ),
            Self::DroppedWorkLeavesNothing => (
                "dropped_work_leaves_nothing",
                &[1],
                "work that is dropped, also by a panic, has no effect and holds no lock",
            ),
            Self::ForeignAndPassedWorkIsRefused => (
                "foreign_and_passed_work_is_refused",
                &[2],
                "work of another coordinator, or past its deadline, is refused, and by an error that says so",
            ),
            Self::WaitingEnds => (
                "waiting_ends",
                &[3],
                "who wants an item that a branch keeps hears an error by the deadline; also within one transaction",
            ),
            Self::RivalsWaitOrAreRefused => (
                "rivals_wait_or_are_refused",
                &[1, 4],
                "work on an item that a prepared branch changed waits for the outcome, or is told to try again",
            ),
            Self::DifferentItemsDoNotWait => (
                "different_items_do_not_wait",
                &[4],
                "branches on different items run side by side, whatever is in doubt",
            ),
            Self::NoUpdateIsLost => (
                "no_update_is_lost",
                &[1, 8],
                "of concurrent work on one item, exactly what committed is in effect",
            ),
            Self::ReadsRepeat => (
                "reads_repeat",
                &[1],
                "a transaction sees its own work, and of others' what it saw before",
            ),
            Self::ReadOnlyVotesAreHonest => (
                "read_only_votes_are_honest",
                &[6],
                "who wrote or locked votes to commit; a read-only branch is over with its vote",
            ),
            Self::LateWorkIsRefused => (
                "late_work_is_refused",
                &[7],
                "an abort that overtakes its branch, or the branch's prepare, wins, also over a crash",
            ),
            Self::AnExecutionRunsOnce => (
                "an_execution_runs_once",
                &[7],
                "a second prepare under the id of a branch that was prepared, or is over, is refused",
            ),
            Self::InDoubtListsEveryBranch => (
                "in_doubt_lists_every_branch",
                &[12],
                "the list has every prepared branch with lineage, gtid, call, execution and deadline, nothing else, \
                 also after a crash",
            ),
            Self::NothingIsSettledByItself => (
                "nothing_is_settled_by_itself",
                &[5],
                "a prepared branch waits for its outcome beyond its deadline",
            ),
            Self::OutcomesAreIdempotent => (
                "outcomes_are_idempotent",
                &[8, 9],
                "commits and aborts that come twice, or at once, take effect once, and the contrary is never \
                 acknowledged",
            ),
            Self::UnknownIsNoAcknowledgement => (
                "unknown_is_no_acknowledgement",
                &[9],
                "without proof the answer to a commit is Unknown",
            ),
            Self::CommitWaitsForItsPrepare => (
                "commit_waits_for_its_prepare",
                &[10],
                "a commit that meets the running prepare waits or hears Busy",
            ),
            Self::DroppedCallsRunToTheirEnd => (
                "dropped_calls_run_to_their_end",
                &[14],
                "a caller that goes away leaves no half-done prepare, commit or abort",
            ),
            Self::CrashAtEveryStep => (
                "crash_at_every_step",
                &[1, 4, 8, 9, 11],
                "a crash between any two steps of a branch, or between all, changes nothing that was promised",
            ),
            Self::CrashWithinEveryStep => (
                "crash_within_every_step",
                &[4, 8, 9],
                "a crash between any two writes of prepare, commit, abort and forget leaves the branch before or \
                 after it",
            ),
            Self::LocksSurviveACrash => (
                "locks_survive_a_crash",
                &[4],
                "after a restart a prepared branch has its items locked before anybody works on them",
            ),
            Self::AnotherInstanceFinishes => (
                "another_instance_finishes",
                &[9],
                "any process that reaches the database finishes a branch, and Unknown is no answer while the one \
                 that prepared it is there; or it is refused the database",
            ),
            Self::ProofIsKeptUntilForgotten => (
                "proof_is_kept_until_forgotten",
                &[11],
                "a commit can be proven until the coordinator lets the proof go",
            ),
            Self::WorkBelowTheMarkIsRefused => (
                "work_below_the_mark_is_refused",
                &[2],
                "what began below the low-water mark neither begins nor prepares, also after a crash",
            ),
            Self::ForgetLeavesWhatIsPrepared => (
                "forget_leaves_what_is_prepared",
                &[5, 12],
                "a prepared branch below the mark stays, and can be finished",
            ),
            Self::OddAndLargeInput => (
                "odd_and_large_input",
                &[4, 8],
                "odd names and large branches take effect exactly, or are refused",
            ),
            Self::ManyBranches => (
                "many_branches",
                &[4, 8, 12],
                "many branches, a crash among them, and every one ends as it was decided",
            ),
        }
    }
}

/// Runs one check to its verdict.
pub(super) async fn verdict<H: Harness>(harness: &H, check: Check) -> Verdict {
    let work = AssertUnwindSafe(run(harness, check)).catch_unwind();
    let ended = match tokio::time::timeout(CHECK_LIMIT, work).await {
        Ok(Ok(checked)) => checked,
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(broken(
                Rule::Ordinary,
                "somewhere in the check",
                "no panic",
                text.unwrap_or("a panic"),
            ))
        }
        Err(_) => Err(broken(
            Rule::Ordinary,
            "somewhere in the check",
            format!("an end within {CHECK_LIMIT:?}"),
            "it hangs",
        )),
    };
    match ended {
        Ok(()) => Verdict::Passed,
        Err(Stop::Failed(failure)) => Verdict::Failed(failure),
        Err(Stop::Skipped(why)) => Verdict::Skipped(why),
    }
}

async fn run<H: Harness>(harness: &H, check: Check) -> Result<(), Stop> {
    match check {
        Check::IdentityIsKept => identity::is_kept(harness).await,
        Check::OneLineageForEver => identity::one_lineage_for_ever(harness).await,
        Check::WorkIsInvisibleUntilCommit => work::is_invisible_until_commit(harness).await,
        Check::DroppedWorkLeavesNothing => work::dropped_leaves_nothing(harness).await,
        Check::ForeignAndPassedWorkIsRefused => work::foreign_and_passed_is_refused(harness).await,
        Check::WaitingEnds => isolation::waiting_ends(harness).await,
        Check::RivalsWaitOrAreRefused => isolation::rivals_wait_or_are_refused(harness).await,
        Check::DifferentItemsDoNotWait => isolation::different_items_do_not_wait(harness).await,
        Check::NoUpdateIsLost => isolation::no_update_is_lost(harness).await,
        Check::ReadsRepeat => isolation::reads_repeat(harness).await,
        Check::ReadOnlyVotesAreHonest => prepare::read_only_votes_are_honest(harness).await,
        Check::LateWorkIsRefused => prepare::late_work_is_refused(harness).await,
        Check::AnExecutionRunsOnce => prepare::an_execution_runs_once(harness).await,
        Check::InDoubtListsEveryBranch => prepare::in_doubt_lists_every_branch(harness).await,
        Check::NothingIsSettledByItself => prepare::nothing_is_settled_by_itself(harness).await,
        Check::OutcomesAreIdempotent => finish::outcomes_are_idempotent(harness).await,
        Check::UnknownIsNoAcknowledgement => finish::unknown_is_no_acknowledgement(harness).await,
        Check::CommitWaitsForItsPrepare => finish::commit_waits_for_its_prepare(harness).await,
        Check::DroppedCallsRunToTheirEnd => finish::dropped_calls_run_to_their_end(harness).await,
        Check::CrashAtEveryStep => crash::at_every_step(harness).await,
        Check::CrashWithinEveryStep => crash::within_every_step(harness).await,
        Check::LocksSurviveACrash => crash::locks_survive(harness).await,
        Check::AnotherInstanceFinishes => finish::another_instance_finishes(harness).await,
        Check::ProofIsKeptUntilForgotten => forget::proof_is_kept_until_forgotten(harness).await,
        Check::WorkBelowTheMarkIsRefused => forget::work_below_the_mark_is_refused(harness).await,
        Check::ForgetLeavesWhatIsPrepared => forget::leaves_what_is_prepared(harness).await,
        Check::OddAndLargeInput => load::odd_and_large_input(harness).await,
        Check::ManyBranches => load::many_branches(harness).await,
    }
}
