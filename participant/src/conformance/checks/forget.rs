//! MUST 2, 5 and 11 (T13): proof, and the low-water mark.

use super::super::trial::{Answer, Checked, Finish, Trial, broken, shown};
use super::super::{Harness, Rule};
use crate::UnixMillis;
use crate::resource::{BranchContext, Effect, LowWater, ResourceError, ResourceManager};

pub(super) async fn proof_is_kept_until_forgotten<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(11);
    let mut trial = Trial::bound(harness, "proof_is_kept_until_forgotten").await?;
    for number in 1..=4 {
        let context = trial.prepared(number, "item").await?;
        trial
            .expect_finish(
                Rule::Must(4),
                "a branch",
                &context.branch,
                Finish::Commit,
                Answer::Applied,
            )
            .await?;
    }
    trial.crash(()).await?;
    for number in 1..=4 {
        let step = "nothing was forgotten yet";
        trial
            .expect_finish(
                RULE,
                step,
                &trial.branch(number),
                Finish::Commit,
                Answer::AlreadyApplied,
            )
            .await?;
    }
    // Below the mark: 1, 2 and 3. Somebody still waits for 2.
    let low_water = trial.low_water(trial.began_at(4), &[2]);
    let back = LowWater {
        mark: UnixMillis(0),
        unfinished: vec![],
    };
    for step in [
        "after forget",
        "after forget and a crash",
        "after a mark that goes back",
    ] {
        match step {
            "after forget" => trial.forget(step, &low_water).await?,
            "after forget and a crash" => trial.crash(()).await?,
            _ => trial.forget(step, &back).await?,
        }
        for number in [2, 4] {
            let step = format!("{step}: number {number} is listed, or above the mark");
            let branch = trial.branch(number);
            trial
                .expect_finish(RULE, &step, &branch, Finish::Commit, Answer::AlreadyApplied)
                .await?;
        }
        for number in [1, 3] {
            match trial.finish(&trial.branch(number), Finish::Commit).await {
                Ok(Effect::AlreadyApplied | Effect::Unknown { .. }) => {}
                Ok(Effect::Applied) => return Err(broken(Rule::Must(9), step, "not again", "Applied")),
                Err(error) => return Err(broken(Rule::Must(9), step, "an answer", shown(&error))),
            }
        }
        trial.expect_effect(Rule::Must(8), step, "item", 4).await?;
    }
    Ok(())
}

pub(super) async fn work_below_the_mark_is_refused<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(2);
    let mut trial = Trial::bound(harness, "work_below_the_mark_is_refused").await?;
    let refused = |step: &str, answer: Option<ResourceError>| match answer {
        Some(ResourceError::BelowLowWater { .. }) => Ok(()),
        Some(error) => Err(broken(RULE, step, "BelowLowWater", shown(&error))),
        None => Err(broken(RULE, step, "BelowLowWater", "it succeeds")),
    };
    // It begins before the mark moves, and prepares after it.
    let slow = trial.context(2);
    let tx = trial.work(&slow, "item").await?;
    trial
        .forget("while a branch works", &trial.low_water(trial.began_at(10), &[3]))
        .await?;
    let step = "prepare of what began below the mark";
    refused(step, trial.store().prepare(&slow, tx).await.err())?;
    trial.expect_in_doubt(Rule::Must(7), step, []).await?;
    for step in ["begin below the mark", "begin below the mark, after a crash"] {
        for number in [1, 3, 9] {
            let begun = trial.store().begin(&trial.context(number)).await;
            refused(&format!("{step}, number {number}"), begun.err())?;
        }
        trial.crash(()).await?;
    }
    trial
        .expect_effect(Rule::Must(1), "after all of it", "item", 0)
        .await?;
    let at_the_mark = trial.prepared(10, "item").await?;
    trial
        .expect_finish(
            RULE,
            "at the mark",
            &at_the_mark.branch,
            Finish::Commit,
            Answer::Applied,
        )
        .await
}

pub(super) async fn leaves_what_is_prepared<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(5);
    let mut trial = Trial::bound(harness, "forget_leaves_what_is_prepared").await?;
    let contexts: Vec<BranchContext> = if harness.claims().items_are_independent {
        vec![trial.prepared(1, "one").await?, trial.prepared(2, "two").await?]
    } else {
        vec![trial.prepared(1, "one").await?]
    };
    for step in ["forget above prepared branches", "and a crash after it"] {
        trial
            .forget(step, &trial.low_water(trial.began_at(10), &[1]))
            .await?;
        trial.expect_in_doubt(RULE, step, &contexts).await?;
        trial.crash(()).await?;
        trial.expect_in_doubt(RULE, step, &contexts).await?;
    }
    let mut finishes = [Finish::Commit, Finish::Abort].into_iter();
    for (context, item) in contexts.iter().zip(["one", "two"]) {
        let finish = finishes.next().unwrap_or(Finish::Commit);
        let step = format!("a branch below the mark, on {item:?}");
        trial
            .expect_finish(RULE, &step, &context.branch, finish, Answer::Applied)
            .await?;
        trial
            .expect_effect(Rule::Must(8), &step, item, finish.effect())
            .await?;
    }
    // The commit's proof: the transaction is listed as unfinished, so it is kept.
    trial
        .forget("forget again", &trial.low_water(trial.began_at(10), &[1]))
        .await?;
    let (rule, branch) = (Rule::Must(11), &contexts[0].branch);
    trial
        .expect_finish(
            rule,
            "its proof is still waited for",
            branch,
            Finish::Commit,
            Answer::AlreadyApplied,
        )
        .await
}
