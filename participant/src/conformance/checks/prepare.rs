//! MUST 4 to 7 and 12: votes, and what a prepared branch is.

use std::time::Duration;

use super::super::trial::{Answer, Checked, Finish, LINEAGE, Trial, broken, expect_equal, now, shown};
use super::super::{Harness, Rule};
use crate::resource::{BranchContext, BranchState, Prepared, Remedy, ResourceError, ResourceManager, Vote};
use crate::{BranchId, CallId, ExecutionId, Gtid};

/// What a branch does before its vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Nothing,
    Looks,
    Locks,
    Writes,
    LooksThenWrites,
}

pub(super) async fn read_only_votes_are_honest<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(6);
    let trial = Trial::bound(harness, "read_only_votes_are_honest").await?;
    let all = [
        Does::Nothing,
        Does::Looks,
        Does::Locks,
        Does::Writes,
        Does::LooksThenWrites,
    ];
    let mut effect = 0;
    for (number, does) in (1..).zip(all) {
        let context = trial.context(number);
        let mut tx = trial.begin(&context).await?;
        let done = async {
            Ok(match does {
                Does::Nothing => true,
                Does::Looks => harness.look(&mut tx, "item").await.map(|_| true)?,
                Does::Locks => harness.lock(&mut tx, "item").await?.is_some(),
                Does::Writes => harness.work(&mut tx, "item").await.map(|()| true)?,
                Does::LooksThenWrites => {
                    harness.look(&mut tx, "item").await?;
                    harness.work(&mut tx, "item").await.map(|()| true)?
                }
            })
        };
        let step = format!("a branch that {does:?}");
        let done = done.await;
        if !done
            .map_err(|error: ResourceError| broken(Rule::Ordinary, &*step, "it does so", shown(&error)))?
        {
            // The store has no locking read.
            continue;
        }
        let vote = trial.store().prepare(&context, tx).await;
        let vote = vote
            .map_err(|error| broken(Rule::Ordinary, &*step, "a vote", shown(&error)))?
            .vote;
        let must_commit = matches!(does, Does::Locks | Does::Writes | Does::LooksThenWrites);
        if must_commit {
            expect_equal(RULE, &step, &Vote::Commit, &vote)?;
        } else if harness.claims().looking_is_read_only {
            let rule = Rule::Claim("a branch that only looked votes read-only");
            expect_equal(rule, &step, &Vote::ReadOnly, &vote)?;
        }
        if vote == Vote::ReadOnly {
            trial
                .expect_in_doubt(RULE, &format!("{step}, and voted read-only"), [])
                .await?;
        } else {
            let rule = Rule::Must(4);
            trial
                .expect_in_doubt(rule, &format!("{step}, and voted to commit"), [&context])
                .await?;
            trial
                .expect_finish(rule, &step, &context.branch, Finish::Commit, Answer::Applied)
                .await?;
        }
        effect += u64::from(matches!(does, Does::Writes | Does::LooksThenWrites));
        trial.expect_effect(Rule::Must(8), &step, "item", effect).await?;
    }
    Ok(())
}

pub(super) async fn late_work_is_refused<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(7);
    let mut trial = Trial::bound(harness, "late_work_is_refused").await?;
    // The abort overtakes the prepare.
    let working = trial.context(1);
    let tx = trial.work(&working, "item").await?;
    let step = "the abort of a working branch";
    trial
        .expect_finish(
            Rule::Must(9),
            step,
            &working.branch,
            Finish::Abort,
            Answer::Applied,
        )
        .await?;
    refused(
        RULE,
        "prepare after that abort",
        trial.store().prepare(&working, tx).await,
    )?;
    trial
        .expect_finish(
            Rule::Must(9),
            step,
            &working.branch,
            Finish::Abort,
            Answer::AlreadyApplied,
        )
        .await?;
    // It overtakes everything (an *empty abort*, traps C3).
    let late = trial.context(2);
    let step = "the abort of a branch that never was here";
    trial
        .expect_finish(Rule::Must(9), step, &late.branch, Finish::Abort, Answer::Applied)
        .await?;
    for step in [
        "work after an empty abort",
        "work after an empty abort and a crash",
    ] {
        let vote = trial.attempt(&late, "item").await;
        refused(
            RULE,
            step,
            vote.map(|vote| Prepared {
                vote,
                digest: 0,
                database_transaction: Default::default(),
            }),
        )?;
        trial.expect_in_doubt(RULE, step, []).await?;
        trial.expect_effect(RULE, step, "item", 0).await?;
        let (rule, branch) = (Rule::Must(9), &late.branch);
        trial
            .expect_finish(rule, step, branch, Finish::Abort, Answer::AlreadyApplied)
            .await?;
        trial
            .expect_state(rule, step, branch, BranchState::Aborted)
            .await?;
        trial.crash(()).await?;
    }
    // Nobody else is kept from the item by all that.
    let next = trial.prepared(3, "item").await?;
    trial
        .expect_finish(
            Rule::Must(4),
            "the next one",
            &next.branch,
            Finish::Commit,
            Answer::Applied,
        )
        .await
}

fn refused(rule: Rule, step: &str, answer: Result<Prepared, ResourceError>) -> Checked {
    match answer {
        Ok(prepared) => Err(broken(rule, step, "Aborted", format!("{prepared:?}"))),
        Err(error) if error.remedy() == Remedy::NewTransaction => Ok(()),
        Err(error) => Err(broken(
            rule,
            step,
            "Aborted: an error that says, a new transaction",
            shown(&error),
        )),
    }
}

pub(super) async fn an_execution_runs_once<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(7);
    let mut trial = Trial::bound(harness, "an_execution_runs_once").await?;
    let context = trial.prepared(1, "item").await?;
    // Equal but for its deadline, so that a wait for its own lock ends.
    let again = async |trial: &Trial<'_, H>, step: &str| -> Checked {
        let again = trial.context_of(context.branch, 1_000);
        match trial.attempt(&again, "item").await {
            Ok(vote) => Err(broken(RULE, step, "an error", format!("{vote:?}"))),
            Err(_) => Ok(()),
        }
    };
    again(&trial, "work under the id of a prepared branch").await?;
    trial
        .expect_in_doubt(Rule::Must(12), "after a refused repetition", [&context])
        .await?;
    trial.crash(()).await?;
    again(&trial, "work under the id of a prepared branch, after a crash").await?;
    trial
        .expect_in_doubt(Rule::Must(12), "after a refused repetition", [&context])
        .await?;
    let step = "after refused repetitions";
    trial
        .expect_finish(
            Rule::Must(4),
            step,
            &context.branch,
            Finish::Commit,
            Answer::Applied,
        )
        .await?;
    again(&trial, "work under the id of a committed branch").await?;
    trial.crash(()).await?;
    again(&trial, "work under the id of a committed branch, after a crash").await?;
    trial.expect_in_doubt(RULE, step, []).await?;
    trial
        .expect_finish(
            Rule::Must(9),
            step,
            &context.branch,
            Finish::Commit,
            Answer::AlreadyApplied,
        )
        .await?;
    trial.expect_effect(RULE, step, "item", 1).await
}

pub(super) async fn in_doubt_lists_every_branch<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(12);
    let mut trial = Trial::bound(harness, "in_doubt_lists_every_branch").await?;
    trial.expect_in_doubt(RULE, "a new database", []).await?;
    // Ids at their limits: a call and an execution are any 64 bits, a gtid's random part is any 74.
    let branch_of = |gtid: Gtid, call: u64, execution: u64| BranchId {
        gtid,
        call: CallId(call),
        execution: ExecutionId(execution),
    };
    let (one, two) = (
        Gtid::new(trial.began_at(5), [0xff; 10]),
        Gtid::new(trial.began_at(5), [0; 10]),
    );
    let mut branches = vec![
        branch_of(one, 0, u64::MAX),
        branch_of(one, u64::MAX, 0),
        branch_of(one, 1 << 63, 1 << 63),
        branch_of(two, u64::MAX, u64::MAX),
        branch_of(two, 0, 0),
    ];
    branches.extend((10..20).map(|number| trial.branch(number)));
    if !harness.claims().items_are_independent {
        branches.truncate(1);
    }
    let begun = now();
    let mut contexts = Vec::new();
    for (number, branch) in (0..).zip(branches) {
        let context = BranchContext {
            branch,
            lineage: LINEAGE,
            deadline: begun.plus(300_000 + 1_001 * number),
        };
        let tx = trial.work(&context, &format!("item {number}")).await?;
        trial.prepare(&context, tx).await?;
        contexts.push(context);
    }
    // Who still works is not in doubt, and who is finished neither.
    let working = trial.context(30);
    let open = if harness.claims().items_are_independent {
        let done = trial.prepared(31, "done").await?;
        trial
            .expect_finish(
                Rule::Must(4),
                "one of them",
                &done.branch,
                Finish::Commit,
                Answer::Applied,
            )
            .await?;
        Some(trial.work(&working, "open").await?)
    } else {
        None
    };
    trial
        .expect_contexts(RULE, "with these prepared", &contexts)
        .await?;
    prepared_at_is_plausible(&trial, begun).await?;
    trial.crash(open).await?;
    trial
        .expect_contexts(RULE, "with these prepared, after a crash", &contexts)
        .await?;
    prepared_at_is_plausible(&trial, begun).await?;
    let step = "after some outcomes";
    while let Some(context) = contexts.pop() {
        let finish = Finish::BOTH[contexts.len() % 2];
        trial
            .expect_finish(Rule::Must(4), step, &context.branch, finish, Answer::Applied)
            .await?;
        trial.expect_in_doubt(RULE, step, &contexts).await?;
    }
    trial.crash(()).await?;
    trial
        .expect_in_doubt(RULE, "after all outcomes and a crash", [])
        .await
}

/// By the clock of whoever prepared: the database's may differ a little.
async fn prepared_at_is_plausible<H: Harness>(trial: &Trial<'_, H>, begun: crate::UnixMillis) -> Checked {
    const RULE: Rule = Rule::Must(12);
    let listed = trial.store().in_doubt().await;
    let listed = listed.map_err(|error| broken(RULE, "in_doubt", "a list", shown(&error)))?;
    let (from, to) = (begun.minus(10_000), now().plus(10_000));
    match listed
        .iter()
        .find(|branch| branch.prepared_at < from || branch.prepared_at > to)
    {
        None => Ok(()),
        Some(branch) => {
            let expected = format!("prepared_at from {from:?} to {to:?}");
            Err(broken(
                RULE,
                "in_doubt",
                expected,
                format!("{:?}", branch.prepared_at),
            ))
        }
    }
}

pub(super) async fn nothing_is_settled_by_itself<H: Harness>(harness: &H) -> Checked {
    /// Long enough to prepare on a busy machine.
    const DEADLINE_MS: u64 = 2_000;
    const RULE: Rule = Rule::Must(5);
    let mut trial = Trial::bound(harness, "nothing_is_settled_by_itself").await?;
    let mut effect = 0;
    for (number, finish) in [(1, Finish::Commit), (2, Finish::Abort)] {
        let context = trial.context_of(trial.branch(number), DEADLINE_MS);
        let tx = trial.work(&context, "item").await?;
        trial.prepare(&context, tx).await?;
        let left_ms = context.deadline.0.saturating_sub(now().0);
        tokio::time::sleep(Duration::from_millis(left_ms + 50)).await;
        for step in ["past its deadline", "past its deadline, after a crash"] {
            trial.expect_in_doubt(RULE, step, [&context]).await?;
            trial
                .expect_state(RULE, step, &context.branch, BranchState::Prepared)
                .await?;
            trial.expect_effect(RULE, step, "item", effect).await?;
            trial.crash(()).await?;
        }
        trial
            .expect_finish(
                RULE,
                "past its deadline",
                &context.branch,
                finish,
                Answer::Applied,
            )
            .await?;
        effect += finish.effect();
        trial
            .expect_effect(Rule::Must(8), "finished past its deadline", "item", effect)
            .await?;
    }
    Ok(())
}
