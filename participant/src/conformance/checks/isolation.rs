//! MUST 3 and 4: locks; and what a store claims of its isolation.

use std::time::{Duration, Instant};

use super::super::trial::{Answer, Checked, Finish, GRACE, Stop, Trial, broken, expect_equal, shown, within};
use super::super::{Harness, Rule};
use crate::resource::{BranchContext, Remedy, ResourceError, Vote};

/// How long those wait who must not wait for ever.
const SHORT_MS: u64 = 1_500;

pub(super) async fn waiting_ends<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(3);
    let trial = Trial::bound(harness, "waiting_ends").await?;
    let holder = trial.context(1);
    let tx = trial.work(&holder, "item").await?;
    let rival = trial.context_of(trial.branch(2), SHORT_MS);
    refused_in_time(&trial, RULE, "an item that a working branch holds", &rival).await?;
    trial.prepare(&holder, tx).await?;
    let rival = trial.context_of(trial.branch(3), SHORT_MS);
    refused_in_time(&trial, RULE, "an item that a prepared branch holds", &rival).await?;
    // Another call of the same transaction (traps C15): the outcome that it would wait for waits for it.
    let sibling = trial.context_of(trial.branch_of(1, 77), SHORT_MS);
    refused_in_time(
        &trial,
        RULE,
        "an item that a branch of the same transaction holds",
        &sibling,
    )
    .await?;
    let step = "after three refused rivals";
    trial.expect_in_doubt(Rule::Must(7), step, [&holder]).await?;
    trial
        .expect_finish(
            Rule::Must(4),
            step,
            &holder.branch,
            Finish::Commit,
            Answer::Applied,
        )
        .await?;
    trial.expect_effect(Rule::Must(8), step, "item", 1).await
}

async fn refused_in_time<H: Harness>(
    trial: &Trial<'_, H>,
    rule: Rule,
    step: &str,
    rival: &BranchContext,
) -> Checked {
    let limit = Duration::from_millis(SHORT_MS) + GRACE;
    match within(limit, trial.attempt(rival, "item")).await {
        None => Err(broken(
            rule,
            step,
            format!("an error within {SHORT_MS} ms"),
            "it still waits",
        )),
        Some(Ok(vote)) => Err(broken(
            Rule::Must(4),
            step,
            "an error: the lock is held",
            format!("{vote:?}"),
        )),
        Some(Err(error)) => match error.remedy() {
            Remedy::NewTransaction | Remedy::Fix => Ok(()),
            // Whoever called again would wait as long again, in a transaction that is over.
            _ => Err(broken(
                rule,
                step,
                "an error that says: a new transaction",
                shown(&error),
            )),
        },
    }
}

pub(super) async fn rivals_wait_or_are_refused<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(4);
    let trial = Trial::bound(harness, "rivals_wait_or_are_refused").await?;
    let mut effect = 0;
    for (round, finish) in Finish::BOTH.into_iter().enumerate() {
        let number = 10 * (round as u64 + 1);
        let holder = trial.prepared(number, "item").await?;
        effect += finish.effect();
        let rival = trial.context(number + 1);
        let mut waiting = Box::pin(trial.attempt(&rival, "item"));
        let early = within(Duration::from_millis(200), &mut waiting).await;
        let step = format!("work on an item in doubt, which ends in {finish:?}");
        if let Some(Ok(vote)) = early {
            return Err(broken(RULE, step, "it waits, or is refused", format!("{vote:?}")));
        }
        trial
            .expect_finish(RULE, &step, &holder.branch, finish, Answer::Applied)
            .await?;
        let answer = match early {
            Some(answer) => answer,
            None => waiting.await,
        };
        let (next, vote) = match answer {
            Ok(vote) => (rival.branch, vote),
            Err(error) if error.remedy() == Remedy::NewTransaction => {
                // So it was told; now the item is free.
                let again = trial.context(number + 2);
                let vote = trial.attempt(&again, "item").await;
                let vote =
                    vote.map_err(|error| broken(RULE, step.clone(), "the item is free now", shown(&error)))?;
                (again.branch, vote)
            }
            Err(error) => {
                return Err(broken(
                    RULE,
                    step,
                    "an error that says: a new transaction",
                    shown(&error),
                ));
            }
        };
        expect_equal(RULE, &step, &Vote::Commit, &vote)?;
        trial.expect_effect(Rule::Must(1), &step, "item", effect).await?;
        trial
            .expect_finish(RULE, &step, &next, Finish::Commit, Answer::Applied)
            .await?;
        effect += 1;
        trial
            .expect_effect(Rule::Must(8), "both on one item", "item", effect)
            .await?;
    }
    Ok(())
}

pub(super) async fn different_items_do_not_wait<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Claim("branches on different items do not wait for each other");
    if !harness.claims().items_are_independent {
        return Err(Stop::Skipped("the harness claims one lock for all items"));
    }
    let trial = Trial::bound(harness, "different_items_do_not_wait").await?;
    let in_doubt = trial.prepared(1, "one").await?;
    let working = trial.context(2);
    let open = trial.work(&working, "two").await?;
    for number in 3..=5 {
        let context = trial.context_of(trial.branch(number), SHORT_MS);
        let item = format!("item {number}");
        let step = format!("{item}, while others are in doubt and open");
        match within(Duration::from_millis(SHORT_MS), trial.attempt(&context, &item)).await {
            Some(Ok(Vote::Commit)) => {}
            Some(Ok(vote)) => return Err(broken(RULE, step, "a vote to commit", format!("{vote:?}"))),
            Some(Err(error)) => return Err(broken(RULE, step, "a vote to commit", shown(&error))),
            None => return Err(broken(RULE, step, "a vote to commit", "it waits")),
        }
        trial
            .expect_finish(RULE, &step, &context.branch, Finish::Commit, Answer::Applied)
            .await?;
        trial.expect_effect(RULE, &step, &item, 1).await?;
    }
    trial.prepare(&working, open).await?;
    for branch in [in_doubt.branch, working.branch] {
        trial
            .expect_finish(Rule::Must(4), "at last", &branch, Finish::Commit, Answer::Applied)
            .await?;
    }
    Ok(())
}

pub(super) async fn no_update_is_lost<H: Harness>(harness: &H) -> Checked {
    const WORKERS: u64 = 6;
    const PIECES: u64 = 5;
    const RULE: Rule = Rule::Must(8);
    let trial = Trial::bound(harness, "no_update_is_lost").await?;
    let begun = Instant::now();
    let worker = async |worker: u64| -> Checked {
        let (mut number, mut done) = (worker * 10_000, 0);
        while done < PIECES {
            number += 1;
            let context = trial.context_of(trial.branch(number), 10_000);
            let step = "concurrent work on one item";
            match trial.attempt(&context, "item").await {
                Ok(Vote::Commit) => {
                    let branch = &context.branch;
                    trial
                        .expect_finish(Rule::Must(4), step, branch, Finish::Commit, Answer::Applied)
                        .await?;
                    done += 1;
                }
                Ok(vote) => {
                    return Err(broken(
                        Rule::Must(6),
                        step,
                        "a vote to commit",
                        format!("{vote:?}"),
                    ));
                }
                Err(error) if error.remedy() == Remedy::NewTransaction => {
                    if begun.elapsed() > Duration::from_secs(60) {
                        return Err(broken(RULE, step, "it succeeds in the end", shown(&error)));
                    }
                }
                Err(error) => {
                    return Err(broken(
                        RULE,
                        step,
                        "an error that says: a new transaction",
                        shown(&error),
                    ));
                }
            }
        }
        Ok(())
    };
    futures::future::try_join_all((0..WORKERS).map(worker)).await?;
    trial
        .expect_effect(RULE, "after all of it", "item", WORKERS * PIECES)
        .await
}

pub(super) async fn reads_repeat<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Claim("a transaction's plain reads repeat");
    let trial = Trial::bound(harness, "reads_repeat").await?;
    let failed = |step: &'static str| {
        move |error: ResourceError| broken(Rule::Ordinary, step, "a count", shown(&error))
    };
    // Its own work, in any case.
    let context = trial.context(1);
    let mut tx = trial.work(&context, "item").await?;
    let seen = harness
        .look(&mut tx, "item")
        .await
        .map_err(failed("look at one's own work"))?;
    expect_equal(Rule::Must(1), "look at one's own work", &1, &seen)?;
    trial.prepare(&context, tx).await?;
    trial
        .expect_finish(
            Rule::Must(4),
            "the work",
            &context.branch,
            Finish::Commit,
            Answer::Applied,
        )
        .await?;

    let claims = harness.claims();
    if !claims.reads_repeat {
        return Ok(());
    }
    let reader = trial.context(2);
    let mut tx = trial.begin(&reader).await?;
    let first = harness
        .look(&mut tx, "item")
        .await
        .map_err(failed("a first look"))?;
    expect_equal(RULE, "a first look", &1, &first)?;
    if claims.items_are_independent {
        // Else nobody else gets in, which is one way to keep it.
        let writer = trial.context_of(trial.branch(3), SHORT_MS);
        // Where reads lock, the writer is refused.
        if trial.attempt(&writer, "item").await.is_ok() {
            let (rule, branch) = (Rule::Must(4), &writer.branch);
            trial
                .expect_finish(
                    rule,
                    "a writer beside a reader",
                    branch,
                    Finish::Commit,
                    Answer::Applied,
                )
                .await?;
        }
    }
    let second = harness
        .look(&mut tx, "item")
        .await
        .map_err(failed("a second look"))?;
    expect_equal(RULE, "a second look, after another one's commit", &first, &second)?;
    drop(tx);
    trial.expect_in_doubt(Rule::Must(12), "at the end", []).await
}
