//! The commit request is handed over and its answer never comes (T7): `InDoubt`, and what `resolve` makes of it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use synod_proto::ids::Gtid;
use synod_proto::session::{AbortCause, AbortKind, TransactionStatus};
use synod_tests::process::bank::Verdict;
use synod_tests::process::program::{command, run};
use synod_tests::process::stage::{LONG_MS, Stage};
use synod_tests::process::{Point, account, ledger, within};

/// Well above a round trip, and well below the time in which a new leader is found out about by a silent session.
const DECIDE_TIMEOUT: Duration = Duration::from_millis(300);

/// A leader that stands still takes the request into its socket and answers nothing. Returns the stage with the initiator
/// in doubt, the replica that stands still, and the transaction.
async fn in_doubt(cluster: &str) -> (Stage, u32, Gtid, tokio::task::JoinHandle<(Verdict, bool)>) {
    let mut stage = Stage::without_offices(cluster).await;
    stage.here.decide_timeout = DECIDE_TIMEOUT;
    stage.here.start().await;
    stage.there.start().await;
    stage.here.arm(Point::Voted).await;
    stage.here.arm(Point::Doubted).await;
    let transfer = stage.transfer("t", 0, LONG_MS);
    let gtid = stage.here.paused(Point::Voted).await;
    let old = stage.cluster.leader().await;
    stage.cluster.stop(old);
    stage.here.go().await;
    assert_eq!(stage.here.paused(Point::Doubted).await, gtid);
    let answer = tokio::spawn(async move {
        let reply = transfer.await.expect("no panic").expect("an answer");
        (reply.verdict(), reply.was_in_doubt)
    });
    // The others have a leader by now, or will.
    assert_ne!(stage.cluster.leader().await, old);
    (stage, old, gtid, answer)
}

async fn close(mut stage: Stage, expected: &[&str]) {
    stage.settled().await;
    let (here, there) = stage.close_offices().await;
    let expected: BTreeSet<_> = expected.iter().map(ToString::to_string).collect();
    assert_eq!(ledger::check(&here, &there, |_| account(0)), expected);
}

/// B8: the reply is lost with the leader; the same request to the next one has the same outcome.
#[tokio::test]
async fn a_commit_in_doubt_is_resolved_to_what_the_log_says() {
    within(async {
        let (mut stage, old, gtid, answer) = in_doubt("doubt-commit").await;
        stage.cluster.kill(old).await;
        stage.here.go().await;
        assert_eq!(answer.await.expect("no panic"), (Verdict::Committed, true));
        assert!(stage.is_committed(gtid).await);
        stage.cluster.start_replica(old).await;
        close(stage, &["t"]).await;
    })
    .await;
}

/// B7: meanwhile an operator's abort gets into the log first. It wins, and the initiator is told.
#[tokio::test]
async fn a_commit_in_doubt_learns_that_it_lost() {
    within(async {
        let (mut stage, old, gtid, answer) = in_doubt("doubt-abort").await;
        let mut resolve = command("synod");
        resolve.args([
            "txn",
            "resolve",
            &gtid.to_string(),
            "--abort",
            "--author",
            "ada",
            "--reason",
            "stuck",
        ]);
        // The replica that stands still takes connections; the others know better.
        let leader = stage.cluster.leader().await;
        let resolved = run({
            resolve.args(["--endpoints", &stage.cluster.address(leader), "--json"]);
            resolve
        })
        .await;
        let text: Value = serde_json::from_slice(&resolved.stdout).expect("JSON");
        assert_eq!(
            (resolved.status.code(), &text["decision"]),
            (Some(0), &json!("aborted")),
            "{text}"
        );

        stage.cluster.kill(old).await;
        stage.here.go().await;
        assert_eq!(answer.await.expect("no panic"), (Verdict::Aborted, true));
        let cause = AbortCause::new(AbortKind::Operator, "ada: stuck");
        assert_eq!(
            stage.cluster.outcome(gtid).await,
            TransactionStatus::Aborted(cause)
        );
        stage.cluster.start_replica(old).await;
        close(stage, &[]).await;
    })
    .await;
}

/// A5, T10: the old leader wakes up, having slept through an election with a request in its socket. It must decide nothing
/// and answer nothing from its memory.
#[tokio::test]
async fn a_leader_that_slept_decides_nothing() {
    within(async {
        let (mut stage, old, gtid, answer) = in_doubt("doubt-sleep").await;
        stage.cluster.wake(old);
        stage.here.go().await;
        assert_eq!(answer.await.expect("no panic"), (Verdict::Committed, true));
        stage.cluster.leader().await;
        assert!(stage.is_committed(gtid).await);
        close(stage, &["t"]).await;
    })
    .await;
}
