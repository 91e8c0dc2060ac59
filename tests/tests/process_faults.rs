//! Faults that end nobody's process for good: a leader that sleeps, an answer that is lost, an initiator that never comes back in
//! time, a participant that is away while it is owed a commit.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use synod_tests::process::bank::Verdict;
use synod_tests::process::load::{Answers, Load, account_of};
use synod_tests::process::program::{command, run};
use synod_tests::process::proxy::Proxy;
use synod_tests::process::stage::{LONG_MS, SHORT_MS, Stage};
use synod_tests::process::{Point, account, eventually, ledger, within};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until};

const CALLER_COUNT: usize = 8;

const COMMIT_COUNT: usize = 40;

/// How long the leader sleeps. It is the fault itself: nothing is waited for by it.
const PAUSE: Duration = Duration::from_secs(10);

/// How soon work goes on once the offices have found the leader that took over.
const RESUME: Duration = Duration::from_secs(2);

/// How long a participant stays away from its delivery.
const AWAY: Duration = Duration::from_secs(60);

/// How soon idle offices are with the next leader when theirs falls silent: the keep-alive's 2.5 s, an election's half second, a
/// redirect, and what a busy machine adds.
const NOTICE: Duration = Duration::from_secs(5);

/// What `synod txn list --in-doubt` shows.
async fn in_doubt(stage: &Stage) -> Vec<Value> {
    let mut list = command("synod");
    list.args(["txn", "list", "--in-doubt", "--json"]);
    list.args(["--endpoints", &stage.cluster.addresses()]);
    let output = run(list).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["inquiries_dropped_count"], json!(0));
    report["transactions"].as_array().expect("a list").clone()
}

/// No answer is wrong: what was told committed is in the files, once, and nothing else is. An office hears of a silent leader only
/// when its session's keep-alive fails, and until then its finished branches hold their locks: whoever wants one of them may be
/// refused for that, and for nothing else.
async fn close_with_no_wrong_answer(mut stage: Stage, answers: &Answers) {
    let mut committed = BTreeSet::new();
    for (transfer, answer) in answers {
        let reply = answer
            .as_ref()
            .unwrap_or_else(|| panic!("{transfer} was not answered"));
        match reply.verdict() {
            Verdict::Committed => {
                committed.insert(transfer.clone());
            }
            Verdict::Refused if reply.text.contains("stayed locked") => {}
            other => panic!("{transfer}: {other:?}: {}", reply.text),
        }
    }
    stage.settled().await;
    let (here, there) = stage.close_offices().await;
    assert_eq!(ledger::check(&here, &there, account_of), committed);
}

/// A5, A16, T1: the leader stops for ten seconds in the middle of the load and wakes up as if nothing had been. Another one has
/// taken over, work has gone on, no answer is wrong, and the old leader follows.
#[tokio::test]
async fn a_leader_that_sleeps_under_load_is_replaced_and_steps_down() {
    within(LocalSet::new().run_until(async {
        let mut stage = Stage::start("pause").await;
        let load = Load::start(&stage.here, CALLER_COUNT, LONG_MS);
        load.commits(COMMIT_COUNT).await;
        let old = stage.cluster.leader().await;
        stage.cluster.stop(old);
        let woken_at = Instant::now() + PAUSE;

        let new = stage.cluster.leader().await;
        assert_ne!(new, old);
        eventually("both offices found the new leader", async || {
            (stage.cluster.status(new).await?.session_count >= 2).then_some(())
        })
        .await;
        let found_at = Instant::now();
        load.commits(1).await;
        assert!(found_at.elapsed() < RESUME, "{:?}", found_at.elapsed());
        load.commits(COMMIT_COUNT).await;

        sleep_until(woken_at).await;
        stage.cluster.wake(old);
        eventually("the old leader follows", async || {
            let status = stage.cluster.status(old).await?;
            (status.role == "follower" && status.leader != old).then_some(())
        })
        .await;
        load.commits(COMMIT_COUNT).await;
        let answers = load.stop().await;
        close_with_no_wrong_answer(stage, &answers).await;
    }))
    .await;
}

/// A5, B10: a leader stops while nobody asks it for anything, and its connections stay open. Idle participants notice, and are with
/// its successor before anybody could owe them a delivery for long.
#[tokio::test]
async fn idle_participants_notice_a_silent_leader() {
    within(async {
        let mut stage = Stage::start("silent").await;
        let reply = stage.transfer("t", 0, LONG_MS).await.expect("no panic");
        assert_eq!(reply.expect("an answer").verdict(), Verdict::Committed);
        stage.settled().await;
        let old = stage.cluster.leader().await;
        stage.cluster.stop(old);
        let stopped_at = Instant::now();
        let new = stage.cluster.leader().await;
        let elected = stopped_at.elapsed();
        eventually("both offices found the new leader", async || {
            (stage.cluster.status(new).await?.session_count >= 2).then_some(())
        })
        .await;
        let noticed = stopped_at.elapsed();
        eprintln!("the next leader served after {elected:?}, both offices were with it after {noticed:?}");
        assert!(noticed < NOTICE, "{noticed:?}");
        stage.cluster.wake(old);
        stage.settled().await;
        let (here, there) = stage.close_offices().await;
        assert_eq!(
            ledger::check(&here, &there, |_| account(0)),
            ["t".to_owned()].into()
        );
    })
    .await;
}

/// B8: the request went through, the log has decided, and the answer is lost with its connection. Asked again, the coordinator
/// says the same, and the work took effect once.
#[tokio::test]
async fn a_commit_whose_reply_is_lost_is_told_the_same_again() {
    within(async {
        let mut stage = Stage::without_offices("reply-lost").await;
        let leader = stage.cluster.leader().await;
        let wire = Proxy::start(stage.cluster.address(leader)).await;
        stage.here.connect_by(wire.address());
        stage.here.start().await;
        stage.there.start().await;
        stage.here.arm(Point::Voted).await;
        let transfer = stage.transfer("t", 0, LONG_MS);
        let gtid = stage.here.paused(Point::Voted).await;
        wire.lose_replies();
        stage.here.go().await;
        // The log has it, so it was answered; and the answer is on a wire that loses it.
        assert!(stage.is_committed(gtid).await);
        let before = stage.cluster.outcome(gtid).await;
        assert!(!transfer.is_finished(), "nobody was told");
        wire.cut();
        let reply = transfer.await.expect("no panic").expect("an answer");
        assert_eq!(
            (reply.verdict(), reply.gtid),
            (Verdict::Committed, gtid.to_string()),
            "{}",
            reply.text
        );
        stage.settled().await;
        let named = |status| match status {
            synod_proto::session::TransactionStatus::Committed { branches, .. } => branches
                .into_iter()
                .map(|branch| (branch.call, branch.execution))
                .collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(named(stage.cluster.outcome(gtid).await), named(before));
        let (here, there) = stage.close_offices().await;
        let booked = ledger::check(&here, &there, |_| account(0));
        assert_eq!(booked, ["t".to_owned()].into());
    })
    .await;
}

/// T6, T8: the initiator is gone between votes and commit, and stays away. The other branch asks, an operator sees since when,
/// the deadline aborts it without anybody's help, and nothing in doubt remains.
#[tokio::test]
async fn branches_without_their_initiator_abort_after_the_deadline() {
    within(async {
        let mut stage = Stage::start("orphans").await;
        stage.here.arm(Point::Voted).await;
        let transfer = stage.transfer("t", 0, 2 * SHORT_MS);
        let gtid = stage.here.paused(Point::Voted).await;
        stage.here.kill().await;
        assert!(transfer.await.expect("no panic").is_err());

        let orphan = eventually("the branch inquires, and the operator is shown it", async || {
            in_doubt(&stage).await.into_iter().next()
        })
        .await;
        assert_eq!(
            (&orphan["gtid"], &orphan["state"]),
            (&json!(gtid.to_string()), &json!("undecided"))
        );
        assert!(orphan["since_unix_ms"].as_u64() >= orphan["began_at_unix_ms"].as_u64());
        let deadline = gtid.began_at().plus(2 * SHORT_MS).0;
        let told = orphan["deadline_unix_ms"].as_u64().expect("a time");
        assert!(told.abs_diff(deadline) < 1_000, "{told} {deadline}");
        let branches = orphan["branches"].as_array().expect("a list");
        assert_eq!(branches.len(), 1, "only the other office is alive to ask");
        assert_eq!(branches[0]["waits_for"], json!("outcome"));

        eventually("the branch there is not in doubt any more", async || {
            (stage.there.in_doubt_count().await? == 0).then_some(())
        })
        .await;
        assert!(!stage.is_committed(gtid).await);
        assert_eq!(in_doubt(&stage).await, Vec::<Value>::new());
        stage.here.start().await;
        stage.settled().await;
        let (here, there) = stage.close_offices().await;
        assert!(ledger::check(&here, &there, |_| account(0)).is_empty());
    })
    .await;
}

/// B10, B20, T8: a participant is away while it is owed a commit. The commit stays unfinished, over a change of leader too, an
/// operator is shown whom it waits for, others' work goes on, and the participant gets it when it is back.
#[tokio::test]
async fn a_commit_waits_for_a_participant_that_is_away() {
    within(async {
        let mut stage = Stage::start("away").await;
        stage.there.arm(Point::Delivered).await;
        let transfer = stage.transfer("t", 0, LONG_MS);
        let gtid = stage.there.paused(Point::Delivered).await;
        let reply = transfer.await.expect("no panic").expect("an answer");
        assert_eq!(reply.verdict(), Verdict::Committed, "{}", reply.text);
        stage.there.kill().await;
        let back_at = Instant::now() + AWAY;

        let owed = async |stage: &Stage| {
            let found = eventually("one commit waits for one branch", async || {
                let found = in_doubt(stage).await;
                let is_here_done = found
                    .first()
                    .is_some_and(|one| one["branches"].as_array().map(Vec::len) == Some(1));
                is_here_done.then_some(found)
            })
            .await;
            assert_eq!(found.len(), 1, "{found:?}");
            let one = &found[0];
            assert_eq!(
                (&one["gtid"], &one["state"], &one["deadline_unix_ms"]),
                (&json!(gtid.to_string()), &json!("unfinished"), &Value::Null)
            );
            assert_eq!(one["branches"][0]["waits_for"], json!("acknowledgement"));
            (
                one["since_unix_ms"].clone(),
                one["branches"][0]["resource"].clone(),
            )
        };
        let first = owed(&stage).await;
        // From the log: the next leader knows it as well, since the same moment.
        let leader = stage.cluster.leader().await;
        stage.cluster.kill(leader).await;
        stage.cluster.leader().await;
        assert_eq!(owed(&stage).await, first);
        stage.cluster.start_replica(leader).await;
        sleep_until(back_at).await;
        assert_eq!(owed(&stage).await, first, "it is never given up");

        stage.there.start().await;
        stage.settled().await;
        assert_eq!(in_doubt(&stage).await, Vec::<Value>::new());
        let (here, there) = stage.close_offices().await;
        let booked = ledger::check(&here, &there, |_| account(0));
        assert_eq!(booked, ["t".to_owned()].into());
    })
    .await;
}
