//! MUST 1 and 2: local transactions.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::Duration;

use futures::FutureExt as _;

use super::super::trial::{Answer, Checked, Finish, Trial, broken, expect_equal, shown, within};
use super::super::{Harness, Rule};
use crate::Lineage;
use crate::resource::{BranchContext, BranchState, Remedy, ResourceError, ResourceManager};

const RULE: Rule = Rule::Must(1);

/// A read that takes longer is waiting for a lock, which is no dirty read.
const READ_LIMIT: Duration = Duration::from_secs(1);

pub(super) async fn is_invisible_until_commit<H: Harness>(harness: &H) -> Checked {
    let trial = Trial::bound(harness, "work_is_invisible_until_commit").await?;
    for (number, finish, before) in [(1, Finish::Commit, 0), (2, Finish::Abort, 1)] {
        let context = trial.context(number);
        let tx = trial.work(&context, "item").await?;
        trial
            .expect_state(RULE, "after the work", &context.branch, BranchState::Working)
            .await?;
        seen_by_nobody(&trial, 10 * number, "after the work", before).await?;
        trial.prepare(&context, tx).await?;
        trial
            .expect_state(
                Rule::Must(4),
                "after the vote",
                &context.branch,
                BranchState::Prepared,
            )
            .await?;
        seen_by_nobody(&trial, 10 * number + 1, "after the vote", before).await?;
        trial
            .expect_finish(
                Rule::Must(4),
                "a prepared branch",
                &context.branch,
                finish,
                Answer::Applied,
            )
            .await?;
        trial
            .expect_state(RULE, "after the outcome", &context.branch, finish.state())
            .await?;
        trial
            .expect_effect(Rule::Must(8), "after the outcome", "item", 1)
            .await?;
    }
    // An abort of what still works.
    let context = trial.context(3);
    let tx = trial.work(&context, "item").await?;
    trial
        .expect_finish(
            Rule::Must(9),
            "a working branch",
            &context.branch,
            Finish::Abort,
            Answer::Applied,
        )
        .await?;
    drop(tx);
    trial
        .expect_effect(RULE, "after the abort of a working branch", "item", 1)
        .await
}

/// Neither from outside nor from within another transaction.
async fn seen_by_nobody<H: Harness>(trial: &Trial<'_, H>, number: u64, step: &str, before: u64) -> Checked {
    trial.expect_effect(RULE, step, "item", before).await?;
    let context = trial.context(1000 + number);
    let look = async {
        let mut tx = trial.store().begin(&context).await?;
        trial.harness.look(&mut tx, "item").await
    };
    match within(READ_LIMIT, look).await {
        // It waits, or is refused: it sees nothing.
        None | Some(Err(_)) => Ok(()),
        Some(Ok(seen)) => expect_equal(RULE, &format!("{step}: look from another branch"), &before, &seen),
    }
}

pub(super) async fn dropped_leaves_nothing<H: Harness>(harness: &H) -> Checked {
    let trial = Trial::bound(harness, "dropped_work_leaves_nothing").await?;
    let dropped = trial.context(1);
    drop(trial.work(&dropped, "item").await?);
    left_nothing(&trial, "after a dropped transaction", &dropped, 0).await?;

    let panicked = trial.context(2);
    let tx = trial.work(&panicked, "item").await?;
    let panic = AssertUnwindSafe(async move {
        let _tx = tx;
        // Without the message on stderr that `panic!` would make.
        resume_unwind(Box::new("the user's code"));
    });
    let _ = panic.catch_unwind().await;
    left_nothing(&trial, "after a panic", &panicked, 1).await
}

/// And the next one gets the item, at once.
async fn left_nothing<H: Harness>(
    trial: &Trial<'_, H>,
    step: &str,
    context: &BranchContext,
    before: u64,
) -> Checked {
    trial.expect_effect(RULE, step, "item", before).await?;
    trial.expect_in_doubt(RULE, step, []).await?;
    trial
        .expect_state(RULE, step, &context.branch, BranchState::Unknown)
        .await?;
    trial
        .expect_finish(
            Rule::Must(9),
            step,
            &context.branch,
            Finish::Commit,
            Answer::Unknown,
        )
        .await?;
    let mut next = trial.context(100 + before);
    next.deadline = super::super::trial::now().plus(3_000);
    if let Err(error) = trial.attempt(&next, "item").await {
        let step = format!("{step}: the next branch on the same item");
        return Err(broken(RULE, step, "the lock is free", shown(&error)));
    }
    trial
        .expect_finish(Rule::Must(4), step, &next.branch, Finish::Commit, Answer::Applied)
        .await?;
    trial.expect_effect(Rule::Must(8), step, "item", before + 1).await
}

pub(super) async fn foreign_and_passed_is_refused<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(2);
    let trial = Trial::bound(harness, "foreign_and_passed_work_is_refused").await?;
    let foreign = BranchContext {
        lineage: Lineage([8; 16]),
        ..trial.context(1)
    };
    let step = "begin for another coordinator";
    match trial.store().begin(&foreign).await {
        Ok(_) => return Err(broken(RULE, step, "ForeignLineage", "a local transaction")),
        Err(ResourceError::ForeignLineage { .. }) => {}
        Err(error) => return Err(broken(RULE, step, "ForeignLineage", shown(&error))),
    }
    let step = "begin with a deadline that has passed";
    match trial.store().begin(&trial.context_of(trial.branch(2), 0)).await {
        Ok(_) => return Err(broken(RULE, step, "DeadlineExceeded", "a local transaction")),
        Err(error) if error.remedy() == Remedy::NewTransaction => {}
        Err(error) => return Err(broken(RULE, step, "DeadlineExceeded", shown(&error))),
    }
    // A transaction that is prepared under a context that is not its own.
    let own = trial.context(3);
    let tx = trial.work(&own, "item").await?;
    let foreign = BranchContext {
        lineage: Lineage([8; 16]),
        ..own.clone()
    };
    let step = "prepare for another coordinator than begin";
    match trial.store().prepare(&foreign, tx).await {
        Ok(prepared) => return Err(broken(RULE, step, "an error", format!("{prepared:?}"))),
        Err(ResourceError::ForeignLineage { .. } | ResourceError::Invalid { .. }) => {}
        Err(error) => return Err(broken(RULE, step, "ForeignLineage, or Invalid", shown(&error))),
    }
    trial.expect_in_doubt(Rule::Must(7), step, []).await?;
    trial.expect_effect(Rule::Must(1), step, "item", 0).await
}
