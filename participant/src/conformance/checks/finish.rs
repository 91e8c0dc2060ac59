//! MUST 8 to 10 and 14: commit and abort, however often and from wherever they come.

use std::future::Future;
use std::time::Duration;

use super::super::trial::{Answer, Checked, Finish, Stop, Trial, broken, shown};
use super::super::{Harness, Instances, Rule};
use crate::resource::{BranchState, Effect, Remedy, ResourceError, ResourceManager};

pub(super) async fn outcomes_are_idempotent<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(9);
    let trial = Trial::bound(harness, "outcomes_are_idempotent").await?;
    let mut effect = 0;
    for (round, finish) in Finish::BOTH.into_iter().enumerate() {
        let number = round as u64 * 10;
        // One after the other.
        let context = trial.prepared(number + 1, "item").await?;
        let branch = &context.branch;
        effect += finish.effect();
        trial
            .expect_finish(Rule::Must(4), "the first time", branch, finish, Answer::Applied)
            .await?;
        for step in ["the second time", "the third time"] {
            trial
                .expect_finish(RULE, step, branch, finish, Answer::AlreadyApplied)
                .await?;
            trial.expect_effect(RULE, step, "item", effect).await?;
        }
        let step = "the contrary of what was done";
        trial
            .expect_finish(RULE, step, branch, finish.contrary(), Answer::Unknown)
            .await?;
        trial.expect_state(RULE, step, branch, finish.state()).await?;
        trial
            .expect_finish(RULE, "and the same again", branch, finish, Answer::AlreadyApplied)
            .await?;
        trial.expect_effect(RULE, step, "item", effect).await?;
        // Many at once.
        let context = trial.prepared(number + 2, "item").await?;
        effect += finish.effect();
        let all = (0..8).map(|_| trial.finish(&context.branch, finish));
        let mut applied_count = 0;
        for answer in futures::future::join_all(all).await {
            match answer {
                Ok(Effect::Applied) => applied_count += 1,
                Ok(Effect::AlreadyApplied) => {}
                Ok(effect) => return Err(broken(RULE, "eight at once", "Applied", format!("{effect:?}"))),
                Err(error) => return Err(broken(RULE, "eight at once", "Applied", shown(&error))),
            }
        }
        if applied_count != 1 {
            let found = format!("{applied_count} times Applied");
            return Err(broken(
                RULE,
                "eight at once",
                "once Applied, else AlreadyApplied",
                found,
            ));
        }
        trial.expect_effect(RULE, "eight at once", "item", effect).await?;
    }
    Ok(())
}

pub(super) async fn unknown_is_no_acknowledgement<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(9);
    let trial = Trial::bound(harness, "unknown_is_no_acknowledgement").await?;
    let never = trial.branch(1);
    let step = "a branch that never was here";
    trial
        .expect_state(RULE, step, &never, BranchState::Unknown)
        .await?;
    trial
        .expect_finish(RULE, step, &never, Finish::Commit, Answer::Unknown)
        .await?;
    trial
        .expect_finish(RULE, "the same again", &never, Finish::Commit, Answer::Unknown)
        .await?;
    // Another execution of a call that committed (T2) is another branch.
    let context = trial.prepared(2, "item").await?;
    trial
        .expect_finish(
            Rule::Must(4),
            "a branch",
            &context.branch,
            Finish::Commit,
            Answer::Applied,
        )
        .await?;
    let mut other = context.branch;
    other.execution.0 += 1;
    let step = "another execution of a call that committed";
    trial
        .expect_finish(RULE, step, &other, Finish::Commit, Answer::Unknown)
        .await?;
    trial.expect_effect(RULE, step, "item", 1).await
}

pub(super) async fn commit_waits_for_its_prepare<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(10);
    let trial = Trial::bound(harness, "commit_waits_for_its_prepare").await?;
    for number in 1..=20 {
        let context = trial.context(number);
        let tx = trial.work(&context, "item").await?;
        let commit = async {
            let step = "commit while prepare runs";
            loop {
                match trial.store().commit(&context.branch).await {
                    Ok(Effect::Applied) => return Ok(()),
                    Ok(effect) => return Err(broken(RULE, step, "Applied, or Busy", format!("{effect:?}"))),
                    Err(error) if error.remedy() == Remedy::CallAgain => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    Err(error) => return Err(broken(RULE, step, "Applied, or Busy", shown(&error))),
                }
            }
        };
        // Polled in this order: the prepare is on its way when the commit comes.
        let (voted, committed) = tokio::join!(biased; trial.prepare(&context, tx), commit);
        committed?;
        voted?;
        trial
            .expect_effect(Rule::Must(8), "after both", "item", number)
            .await?;
    }
    Ok(())
}

/// Polls so often, at most, and drops what is not done then.
async fn poll_and_drop<T>(work: impl Future<Output = T>, poll_count: u32) {
    let mut work = Box::pin(work);
    for _ in 0..poll_count {
        if futures::poll!(work.as_mut()).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

pub(super) async fn dropped_calls_run_to_their_end<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(14);
    let trial = Trial::bound(harness, "dropped_calls_run_to_their_end").await?;
    let (mut number, mut effect) = (0, 0);
    for poll_count in 0..6 {
        number += 1;
        let context = trial.context_of(trial.branch(number), 20_000);
        let tx = trial.work(&context, "item").await?;
        poll_and_drop(trial.store().prepare(&context, tx), poll_count).await;
        // Nobody heard a vote, so it is told Aborted, whatever became of it.
        let step = format!("a prepare that was dropped after {poll_count} poll(s)");
        trial
            .expect_finish(RULE, &step, &context.branch, Finish::Abort, Answer::Done)
            .await?;
        settled(&trial, &step, &context.branch, BranchState::Aborted).await?;
        trial.expect_in_doubt(RULE, &step, []).await?;
        trial.expect_effect(RULE, &step, "item", effect).await?;

        for finish in Finish::BOTH {
            number += 1;
            let context = trial.context_of(trial.branch(number), 20_000);
            let step = format!("a {finish:?} that was dropped after {poll_count} poll(s)");
            let vote = trial.attempt(&context, "item").await;
            vote.map_err(|error| {
                broken(
                    RULE,
                    format!("work before {step}"),
                    "the item is free",
                    shown(&error),
                )
            })?;
            match finish {
                Finish::Commit => poll_and_drop(trial.store().commit(&context.branch), poll_count).await,
                Finish::Abort => poll_and_drop(trial.store().abort(&context.branch), poll_count).await,
            }
            effect += finish.effect();
            trial
                .expect_finish(RULE, &step, &context.branch, finish, Answer::Done)
                .await?;
            settled(&trial, &step, &context.branch, finish.state()).await?;
            trial.expect_in_doubt(RULE, &step, []).await?;
            trial.expect_effect(RULE, &step, "item", effect).await?;
        }
    }
    Ok(())
}

/// What still runs in the background must come to the same end.
async fn settled<H: Harness>(
    trial: &Trial<'_, H>,
    step: &str,
    branch: &crate::BranchId,
    expected: BranchState,
) -> Checked {
    let mut found = trial.store().status(branch).await;
    for _ in 0..200 {
        if !matches!(found, Ok(BranchState::Working)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        found = trial.store().status(branch).await;
    }
    match found {
        Ok(found) if found == expected => Ok(()),
        Ok(found) => Err(broken(
            Rule::Must(14),
            step,
            format!("{expected:?}"),
            format!("{found:?}"),
        )),
        Err(error) => Err(broken(
            Rule::Must(14),
            step,
            format!("{expected:?}"),
            shown(&error),
        )),
    }
}

pub(super) async fn another_instance_finishes<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(9);
    let instances = harness.claims().instances;
    if instances == Instances::NotTested {
        return Err(Stop::Skipped("the harness cannot open a database twice"));
    }
    let mut trial = Trial::bound(harness, "another_instance_finishes").await?;
    let committed = trial.prepared(1, "item").await?;
    let opened = harness.open(&trial.database).await;
    if instances == Instances::One {
        let rule = Rule::Claim("nobody may open a database that is open");
        match opened {
            Err(ResourceError::AlreadyOpen { .. }) => {}
            Err(error) => return Err(broken(rule, "open it twice", "AlreadyOpen", shown(&error))),
            Ok(_) => return Err(broken(rule, "open it twice", "AlreadyOpen", "a second handle")),
        }
        // Another process, after this one.
        trial.reopen().await?;
        let step = "the next process";
        trial
            .expect_finish(RULE, step, &committed.branch, Finish::Commit, Answer::Applied)
            .await?;
        return trial.expect_effect(RULE, step, "item", 1).await;
    }
    let step = "an instance beside the one that prepared";
    let other = opened.map_err(|error| broken(RULE, step, "it opens", shown(&error)))?;
    let listed = other.in_doubt().await;
    let listed = listed.map_err(|error| broken(RULE, step, "a list", shown(&error)))?;
    if !listed.iter().any(|branch| branch.context == committed) {
        return Err(broken(
            Rule::Must(12),
            step,
            format!("{committed:?} listed"),
            format!("{listed:?}"),
        ));
    }
    // While the preparing session is attached (T8): done, or not yet possible, and never Unknown.
    let mut is_applied = false;
    for _ in 0..20 {
        match other.commit(&committed.branch).await {
            Ok(Effect::Applied | Effect::AlreadyApplied) => {
                is_applied = true;
                break;
            }
            Err(error) if error.remedy() == Remedy::CallAgain => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(effect) => return Err(broken(RULE, step, "Applied, or Busy", format!("{effect:?}"))),
            Err(error) => return Err(broken(RULE, step, "Applied, or Busy", shown(&error))),
        }
    }
    trial
        .expect_effect(RULE, step, "item", u64::from(is_applied))
        .await?;
    // The one that prepared is gone; the other one is what is left.
    trial.replace(other);
    let step = "an instance after the one that prepared";
    trial
        .expect_finish(RULE, step, &committed.branch, Finish::Commit, Answer::Done)
        .await?;
    trial
        .expect_finish(
            RULE,
            step,
            &committed.branch,
            Finish::Commit,
            Answer::AlreadyApplied,
        )
        .await?;
    trial.expect_effect(RULE, step, "item", 1).await?;
    // And it aborts what another one prepares now.
    let aborted = trial.prepared(2, "item").await?;
    let other = harness.open(&trial.database).await;
    let other = other.map_err(|error| broken(RULE, step, "it opens", shown(&error)))?;
    trial.replace(other);
    trial
        .expect_finish(RULE, step, &aborted.branch, Finish::Abort, Answer::Applied)
        .await?;
    trial.expect_effect(RULE, step, "item", 1).await
}
