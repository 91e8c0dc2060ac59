//! MUST 1, 4, 8, 9 and 11 over a crash: between every two steps of a branch, and within every step.

use super::super::trial::{Answer, Checked, Finish, Stop, Trial, broken, shown};
use super::super::{Harness, Rule};
use crate::resource::{BranchContext, BranchState, ResourceManager};

/// What happens to a branch, in this order. A vote, and an acknowledgement, are lost or heard elsewhere: for
/// the store a crash before it was sent is a crash after the step that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Begin,
    Work,
    Prepare,
    Finish,
    FinishAgain,
    Forget,
}

const STEPS: [Step; 6] = [
    Step::Begin,
    Step::Work,
    Step::Prepare,
    Step::Finish,
    Step::FinishAgain,
    Step::Forget,
];

/// Every set of the places between two steps where a crash may come: 2^6, for commit and for abort.
pub(super) async fn at_every_step<H: Harness>(harness: &H) -> Checked {
    let mut trial = Trial::bound(harness, "crash_at_every_step").await?;
    let mut number = 0;
    for finish in Finish::BOTH {
        for crashes in 0..1_u32 << STEPS.len() {
            number += 10;
            let is_after = |step: Step| crashes & (1 << step as u32) != 0;
            one_life(&mut trial, number, finish, is_after).await?;
        }
    }
    Ok(())
}

async fn one_life<H: Harness>(
    trial: &mut Trial<'_, H>,
    number: u64,
    finish: Finish,
    crashes_after: impl Fn(Step) -> bool,
) -> Checked {
    let context = trial.context(number);
    let (branch, item) = (&context.branch, &format!("item {number}"));
    let crashes: Vec<_> = STEPS.into_iter().filter(|step| crashes_after(*step)).collect();
    let at = |step: Step| format!("{finish:?}, crashes after {crashes:?}; now after {step:?}");
    let (step, text) = (Step::Begin, at(Step::Begin));
    let mut tx = trial.begin(&context).await?;
    if crashes_after(step) {
        trial.crash(tx).await?;
        return left_nothing(trial, &text, &context, item, finish).await;
    }
    let (step, text) = (Step::Work, at(Step::Work));
    let worked = trial.harness.work(&mut tx, item).await;
    worked.map_err(|error| broken(Rule::Ordinary, &*text, "it works", shown(&error)))?;
    if crashes_after(step) {
        trial.crash(tx).await?;
        return left_nothing(trial, &text, &context, item, finish).await;
    }
    let (step, text) = (Step::Prepare, at(Step::Prepare));
    trial.prepare(&context, tx).await?;
    if crashes_after(step) {
        trial.crash(()).await?;
    }
    trial
        .expect_state(Rule::Must(4), &text, branch, BranchState::Prepared)
        .await?;
    trial.expect_in_doubt(Rule::Must(4), &text, [&context]).await?;
    trial.expect_effect(Rule::Must(1), &text, item, 0).await?;

    for (step, answer) in [
        (Step::Finish, Answer::Applied),
        (Step::FinishAgain, Answer::AlreadyApplied),
    ] {
        let text = at(step);
        let rule = if step == Step::Finish {
            Rule::Must(4)
        } else {
            Rule::Must(9)
        };
        trial.expect_finish(rule, &text, branch, finish, answer).await?;
        if crashes_after(step) {
            trial.crash(()).await?;
        }
        trial
            .expect_state(Rule::Must(8), &text, branch, finish.state())
            .await?;
        trial
            .expect_effect(Rule::Must(8), &text, item, finish.effect())
            .await?;
        trial.expect_in_doubt(Rule::Must(12), &text, []).await?;
        trial
            .expect_finish(Rule::Must(9), &text, branch, finish.contrary(), Answer::Unknown)
            .await?;
    }
    let (step, text) = (Step::Forget, at(Step::Forget));
    trial
        .forget(&text, &trial.low_water(trial.began_at(number + 1), &[]))
        .await?;
    if crashes_after(step) {
        trial.crash(()).await?;
    }
    trial
        .expect_effect(Rule::Must(8), &text, item, finish.effect())
        .await?;
    // With its proof gone it may be unknown; it must not happen again, nor be undone.
    let again = trial.finish(branch, finish.contrary()).await;
    if finish == Finish::Abort && !matches!(again, Ok(crate::resource::Effect::Unknown { .. })) {
        return Err(broken(
            Rule::Must(9),
            format!("{text}, Commit"),
            "Unknown",
            format!("{again:?}"),
        ));
    }
    trial
        .expect_effect(Rule::Must(8), &text, item, finish.effect())
        .await
}

/// A crash before the vote: nobody will ever commit it, and nothing of it is left.
async fn left_nothing<H: Harness>(
    trial: &Trial<'_, H>,
    text: &str,
    context: &BranchContext,
    item: &str,
    finish: Finish,
) -> Checked {
    trial
        .expect_state(Rule::Must(1), text, &context.branch, BranchState::Unknown)
        .await?;
    trial.expect_in_doubt(Rule::Must(1), text, []).await?;
    let answer = match finish {
        Finish::Commit => Answer::Unknown,
        Finish::Abort => Answer::Applied,
    };
    trial
        .expect_finish(Rule::Must(9), text, &context.branch, finish, answer)
        .await?;
    trial.expect_effect(Rule::Must(1), text, item, 0).await
}

/// What a crash interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interrupted {
    Prepare,
    Finish(Finish),
    Forget,
}

/// More writes than any step makes.
const WRITES_MAX: u64 = 10_000;

pub(super) async fn within_every_step<H: Harness>(harness: &H) -> Checked {
    let mut trial = Trial::bound(harness, "crash_within_every_step").await?;
    if harness.crash_after_writes(&trial.database, u64::MAX).is_none() {
        return Err(Stop::Skipped("the harness cannot crash in the middle of a step"));
    }
    let mut number = 0;
    for interrupted in [
        Interrupted::Prepare,
        Interrupted::Finish(Finish::Commit),
        Interrupted::Finish(Finish::Abort),
        Interrupted::Forget,
    ] {
        for write_count in 0..WRITES_MAX {
            number += 10;
            if is_whole(&mut trial, number, interrupted, write_count).await? {
                break;
            }
        }
    }
    Ok(())
}

/// Interrupts the step after so many writes, and looks at what is left. Whether the step ended before.
async fn is_whole<H: Harness>(
    trial: &mut Trial<'_, H>,
    number: u64,
    interrupted: Interrupted,
    write_count: u64,
) -> Result<bool, Stop> {
    let context = trial.context(number);
    let (branch, item) = (&context.branch, &format!("item {number}"));
    let text = format!("a crash in {interrupted:?} after {write_count} write(s)");
    let arm = |trial: &Trial<'_, H>| {
        let fuse = trial.harness.crash_after_writes(&trial.database, write_count);
        fuse.ok_or_else(|| broken(Rule::Ordinary, "harness: arm a crash", "again a fuse", "none"))
    };
    let tx = trial.work(&context, item).await?;
    if interrupted == Interrupted::Prepare {
        let fuse = arm(trial)?;
        let vote = trial.store().prepare(&context, tx).await;
        let is_whole = !fuse.is_burnt();
        trial.crash(()).await?;
        let state = state(trial, &text, branch).await?;
        let is_prepared = state == BranchState::Prepared;
        if is_whole && !(vote.is_ok() && is_prepared) {
            return Err(broken(
                Rule::Must(4),
                text,
                "prepared",
                format!("{vote:?}, then {state:?}"),
            ));
        }
        trial
            .expect_in_doubt(Rule::Must(12), &text, is_prepared.then_some(&context))
            .await?;
        trial.expect_effect(Rule::Must(1), &text, item, 0).await?;
        // Prepared is prepared, whoever heard of it: it can be committed.
        let (finish, answer) = match (is_prepared, state) {
            (true, _) => (Finish::Commit, Answer::Applied),
            (false, BranchState::Unknown) => (Finish::Abort, Answer::Applied),
            (false, state) => {
                return Err(broken(
                    Rule::Must(4),
                    text,
                    "Prepared or Unknown",
                    format!("{state:?}"),
                ));
            }
        };
        trial
            .expect_finish(Rule::Must(4), &text, branch, finish, answer)
            .await?;
        trial
            .expect_effect(Rule::Must(8), &text, item, finish.effect())
            .await?;
        return Ok(is_whole);
    }
    trial.prepare(&context, tx).await?;
    let finish = match interrupted {
        Interrupted::Finish(finish) => finish,
        Interrupted::Prepare | Interrupted::Forget => Finish::Commit,
    };
    if interrupted == Interrupted::Forget {
        trial
            .expect_finish(Rule::Must(4), &text, branch, finish, Answer::Applied)
            .await?;
        let fuse = arm(trial)?;
        let _ = trial
            .store()
            .forget(&trial.low_water(trial.began_at(number + 1), &[]))
            .await;
        let is_whole = !fuse.is_burnt();
        trial.crash(()).await?;
        trial.expect_effect(Rule::Must(8), &text, item, 1).await?;
        trial.expect_in_doubt(Rule::Must(12), &text, []).await?;
        return Ok(is_whole);
    }
    let fuse = arm(trial)?;
    let _ = trial.finish(branch, finish).await;
    let is_whole = !fuse.is_burnt();
    trial.crash(()).await?;
    let state = state(trial, &text, branch).await?;
    let is_done = match state {
        BranchState::Prepared if !is_whole => false,
        state if state == finish.state() => true,
        state => {
            return Err(broken(
                Rule::Must(8),
                text,
                format!("{:?}", finish.state()),
                format!("{state:?}"),
            ));
        }
    };
    // The effect and its proof: both, or neither.
    trial
        .expect_effect(
            Rule::Must(8),
            &text,
            item,
            if is_done { finish.effect() } else { 0 },
        )
        .await?;
    trial
        .expect_in_doubt(Rule::Must(12), &text, (!is_done).then_some(&context))
        .await?;
    let answer = if is_done {
        Answer::AlreadyApplied
    } else {
        Answer::Applied
    };
    trial
        .expect_finish(Rule::Must(9), &text, branch, finish, answer)
        .await?;
    trial
        .expect_effect(Rule::Must(8), &text, item, finish.effect())
        .await?;
    Ok(is_whole)
}

async fn state<H: Harness>(
    trial: &Trial<'_, H>,
    text: &str,
    branch: &crate::BranchId,
) -> Result<BranchState, Stop> {
    let state = trial.store().status(branch).await;
    state.map_err(|error| broken(Rule::Must(9), text, "a status", shown(&error)))
}

pub(super) async fn locks_survive<H: Harness>(harness: &H) -> Checked {
    const RULE: Rule = Rule::Must(4);
    let mut trial = Trial::bound(harness, "locks_survive_a_crash").await?;
    let holder = trial.prepared(1, "item").await?;
    trial.crash(()).await?;
    let step = "work on an item in doubt, after a restart";
    if let Ok(vote) = trial
        .attempt(&trial.context_of(trial.branch(2), 1_000), "item")
        .await
    {
        return Err(broken(
            RULE,
            step,
            "an error by the deadline: the lock is held",
            format!("{vote:?}"),
        ));
    }
    trial
        .expect_finish(RULE, step, &holder.branch, Finish::Commit, Answer::Applied)
        .await?;
    let next = trial.prepared(3, "item").await?;
    trial
        .expect_finish(
            RULE,
            "the next one",
            &next.branch,
            Finish::Commit,
            Answer::Applied,
        )
        .await?;
    trial.expect_effect(Rule::Must(8), "after both", "item", 2).await
}
