//! Replicas and whole clusters die, or end in good order, while many transfers are on their way.

use std::collections::BTreeSet;

use synod_tests::process::bank::Verdict;
use synod_tests::process::cluster::REPLICAS;
use synod_tests::process::ledger;
use synod_tests::process::load::{Answers, Load, account_of};
use synod_tests::process::stage::{LONG_MS, SHORT_MS, Stage};
use synod_tests::process::within;
use tokio::task::LocalSet;

const CALLER_COUNT: usize = 16;

/// Commits between two blows: enough that every caller is in the middle of something.
const COMMIT_COUNT: usize = 60;

/// Waits for the last effect, ends the offices, and compares what callers were told with what the files say.
async fn close_and_check(mut stage: Stage, answers: &Answers) {
    stage.settled().await;
    let (here, there) = stage.close_offices().await;
    let booked = ledger::check(&here, &there, account_of);
    for (transfer, answer) in answers {
        match answer.as_ref().map(|reply| (reply.verdict(), reply)) {
            Some((Verdict::Committed, _)) => assert!(booked.contains(transfer), "{transfer} is lost"),
            Some((Verdict::Aborted | Verdict::Refused, _)) => {
                assert!(!booked.contains(transfer), "{transfer} took effect");
            }
            Some((Verdict::Unspecified, reply)) => panic!("{transfer}: {}", reply.text),
            // The call broke off: the ledgers agree with each other on it, and that is all that was promised.
            None => {}
        }
    }
    let asked: BTreeSet<_> = answers.keys().cloned().collect();
    assert!(
        booked.is_subset(&asked),
        "nothing took effect that nobody asked for"
    );
}

/// Every single transfer committed.
fn assert_none_lost(answers: &Answers) {
    for (transfer, answer) in answers {
        let reply = answer
            .as_ref()
            .unwrap_or_else(|| panic!("{transfer} was not answered"));
        assert_eq!(reply.verdict(), Verdict::Committed, "{transfer}: {}", reply.text);
    }
}

/// T1, T7: two leaders in a row die under load; callers see a delay, and no transaction is aborted by it.
#[tokio::test]
async fn leaders_killed_under_load_abort_nothing() {
    within(LocalSet::new().run_until(async {
        let mut stage = Stage::start("load-leader").await;
        let load = Load::start(&stage.here, CALLER_COUNT, LONG_MS);
        for _ in 0..2 {
            load.commits(COMMIT_COUNT).await;
            let leader = stage.cluster.leader().await;
            stage.cluster.kill(leader).await;
            load.commits(COMMIT_COUNT).await;
            stage.cluster.start_replica(leader).await;
        }
        load.commits(COMMIT_COUNT).await;
        let answers = load.stop().await;
        assert_none_lost(&answers);
        stage.cluster.leader().await;
        close_and_check(stage, &answers).await;
    }))
    .await;
}

/// The machine room goes dark in the middle of it, twice. What anybody was told stands; what nobody was told is whole or
/// not at all (B1, B11, L2, L7).
#[tokio::test]
async fn power_cuts_under_load_lose_nothing_that_was_told() {
    within(LocalSet::new().run_until(async {
        let mut stage = Stage::start("load-power").await;
        let load = Load::start(&stage.here, CALLER_COUNT, SHORT_MS);
        for _ in 0..2 {
            load.commits(COMMIT_COUNT).await;
            stage.cut_power().await;
            stage.restore_power().await;
        }
        load.commits(COMMIT_COUNT).await;
        let answers = load.stop().await;
        close_and_check(stage, &answers).await;
    }))
    .await;
}

/// Participants die as well: first the one that only votes, then the one that begins.
#[tokio::test]
async fn offices_killed_under_load_come_back_and_agree() {
    within(LocalSet::new().run_until(async {
        let mut stage = Stage::start("load-offices").await;
        let load = Load::start(&stage.here, CALLER_COUNT, SHORT_MS);
        load.commits(COMMIT_COUNT).await;
        stage.there.kill().await;
        stage.there.start().await;
        load.commits(COMMIT_COUNT).await;
        stage.here.kill().await;
        stage.here.start().await;
        load.commits(COMMIT_COUNT).await;
        let answers = load.stop().await;
        close_and_check(stage, &answers).await;
    }))
    .await;
}

/// SIGTERM to each replica in turn, as an upgrade does it: each ends with 0, and no transaction notices.
#[tokio::test]
async fn replicas_that_end_in_good_order_lose_nothing() {
    within(LocalSet::new().run_until(async {
        let mut stage = Stage::start("load-orderly").await;
        let load = Load::start(&stage.here, CALLER_COUNT, LONG_MS);
        // The leader last of all would be an accident; the leader first and then whoever leads is the hard case.
        let first = stage.cluster.leader().await;
        let order = REPLICAS.map(|offset| (first + offset - 2) % 3 + 1);
        assert_eq!(order[0], first);
        for id in order {
            load.commits(COMMIT_COUNT).await;
            assert_eq!(
                stage.cluster.terminate(id).await,
                Some(0),
                "SIGTERM is an orderly end"
            );
            load.commits(COMMIT_COUNT).await;
            stage.cluster.start_replica(id).await;
            stage.cluster.leader().await;
        }
        let answers = load.stop().await;
        assert_none_lost(&answers);
        close_and_check(stage, &answers).await;
    }))
    .await;
}
