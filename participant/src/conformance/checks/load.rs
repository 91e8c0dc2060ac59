//! MUST 4, 8 and 12 with odd names, with large branches and with many of them.

use super::super::trial::{Answer, Checked, Finish, Trial, broken, expect_equal, shown};
use super::super::{Harness, Rule};
use crate::resource::{BranchContext, Remedy, Vote};

/// Names as users make them, on purpose or not.
const ODD: [&str; 10] = [
    "a b",
    "Größe 尺码 🪑",
    "it's \"quoted\" `so`",
    "'; DROP TABLE items; --",
    "back\\slash%_*?",
    "tab\tand\nline",
    "nul\0nul",
    "NULL",
    " ",
    "",
];

pub(super) async fn odd_and_large_input<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(8);
    let mut trial = Trial::bound(harness, "odd_and_large_input").await?;
    let long = "long ".repeat(300);
    let mut done = Vec::new();
    for (number, item) in (1..).zip(ODD.into_iter().chain([&*long])) {
        let context = trial.context(number);
        let step = format!("work on {item:?}");
        match trial.attempt(&context, item).await {
            Ok(vote) => {
                expect_equal(Rule::Must(6), &step, &Vote::Commit, &vote)?;
                let branch = &context.branch;
                trial
                    .expect_finish(Rule::Must(4), &step, branch, Finish::Commit, Answer::Applied)
                    .await?;
                done.push(item);
            }
            // No store takes everything; but it says so, and does not cut it.
            Err(error) if error.remedy() == Remedy::Fix => {
                trial.expect_in_doubt(Rule::Must(7), &step, []).await?;
            }
            Err(error) => {
                return Err(broken(
                    RULE,
                    step,
                    "a vote, or an error that says: fix it",
                    shown(&error),
                ));
            }
        }
    }
    trial.crash(()).await?;
    for item in done {
        trial.expect_effect(RULE, "odd names", item, 1).await?;
    }
    // One branch with much work on many items, some of it twice.
    let context = trial.context(100);
    let mut tx = trial.begin(&context).await?;
    for piece in 0..300 {
        let worked = harness.work(&mut tx, &format!("large {}", piece % 200)).await;
        worked.map_err(|error| {
            broken(
                RULE,
                format!("piece {piece} of a large branch"),
                "it works",
                shown(&error),
            )
        })?;
    }
    trial.prepare(&context, tx).await?;
    trial.crash(()).await?;
    let step = "a large branch, after a crash";
    trial.expect_in_doubt(Rule::Must(12), step, [&context]).await?;
    trial
        .expect_finish(
            Rule::Must(4),
            step,
            &context.branch,
            Finish::Commit,
            Answer::Applied,
        )
        .await?;
    for item in 0..200 {
        let expected = if item < 100 { 2 } else { 1 };
        trial
            .expect_effect(RULE, step, &format!("large {item}"), expected)
            .await?;
    }
    Ok(())
}

pub(super) async fn many_branches<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(8);
    const COUNT: u64 = 120;
    /// At the same time.
    const WIDTH: u64 = 24;
    let mut trial = Trial::bound(harness, "many_branches").await?;
    let width = if harness.claims().items_are_independent {
        WIDTH
    } else {
        1
    };
    let item = |number: u64| format!("item {}", number % 40);
    let finish = |number: u64| {
        if number.is_multiple_of(3) {
            Finish::Abort
        } else {
            Finish::Commit
        }
    };
    for first in (0..COUNT).step_by(usize::try_from(width).unwrap_or(1)) {
        let numbers: Vec<u64> = (first..COUNT.min(first + width)).collect();
        let prepared = numbers.iter().map(|&number| {
            let (trial, item) = (&trial, item(number));
            async move { trial.prepared(number, &item).await }
        });
        let prepared: Vec<BranchContext> = futures::future::try_join_all(prepared).await?;
        let step = format!("branches {first} and on");
        if first / width % 2 == 1 {
            trial.crash(()).await?;
        }
        trial.expect_in_doubt(Rule::Must(12), &step, &prepared).await?;
        let finished = numbers.iter().zip(&prepared).map(|(&number, context)| {
            let (trial, step) = (&trial, &step);
            let (rule, finish) = (Rule::Must(4), finish(number));
            async move {
                trial
                    .expect_finish(rule, step, &context.branch, finish, Answer::Applied)
                    .await
            }
        });
        futures::future::try_join_all(finished).await?;
    }
    trial.crash(()).await?;
    trial.expect_in_doubt(Rule::Must(12), "at the end", []).await?;
    for number in 0..40 {
        let of_item = (0..COUNT).filter(|other| other % 40 == number);
        let expected = of_item.map(|number| finish(number).effect()).sum();
        trial
            .expect_effect(RULE, "at the end", &item(number), expected)
            .await?;
    }
    for number in 0..COUNT {
        let (state, branch) = (finish(number).state(), trial.branch(number));
        trial
            .expect_state(Rule::Must(11), "at the end", &branch, state)
            .await?;
    }
    Ok(())
}
