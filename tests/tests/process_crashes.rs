//! SIGKILL at every step: the leader, a follower, the participant, the initiator, or everything at once, while a
//! transaction stands at a known point between work and acknowledgement.
//!
//! What must come out is in [`is_committed_after`], and nothing else is allowed: the log, the answer to the caller
//! and the offices' own files agree (B1, B6, B7, B10, C1, C2, C9, J1).

use std::collections::BTreeSet;

use synod_proto::ids::Gtid;
use synod_tests::process::bank::{TransferReply, TransferRequest, Verdict};
use synod_tests::process::stage::{LONG_MS, SHORT_MS, Stage};
use synod_tests::process::{Point, account, eventually, ledger, within};

const POINTS: [Point; 6] = [
    Point::Worked,
    Point::Prepared,
    Point::Voted,
    Point::Requested,
    Point::Delivered,
    Point::Applied,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Leader,
    Follower,
    Participant,
    Initiator,
    Everything,
}

/// The outcome of a transaction that stands at `point` when `victim` is killed.
///
/// - A replica's death aborts nothing: another one goes on (T1).
/// - Without the participant's vote, nothing can commit; with it, the participant is not needed for the decision.
/// - Without the initiator nobody asks for the commit, so the deadline aborts (T6); once the log has it, it stands.
fn is_committed_after(victim: Victim, point: Point) -> bool {
    match victim {
        Victim::Leader | Victim::Follower => true,
        Victim::Participant => point > Point::Prepared,
        Victim::Initiator | Victim::Everything => point > Point::Voted,
    }
}

async fn kill_at_every_point(victim: Victim) {
    within(async {
        let mut stage = Stage::start("crashes").await;
        let mut committed = BTreeSet::new();
        for (index, point) in POINTS.into_iter().enumerate() {
            let name = format!("{victim:?} killed at {point:?}");
            if kill_at(&mut stage, victim, point, &name, index).await {
                committed.insert(name);
            }
        }
        let (here, there) = stage.close_offices().await;
        let index = |name: &str| {
            POINTS
                .iter()
                .position(|point| name.ends_with(&format!("{point:?}")))
        };
        let booked = ledger::check(&here, &there, |name| {
            account(index(name).expect("one of the points"))
        });
        assert_eq!(booked, committed, "what took effect is what the log says");
    })
    .await;
}

/// One transaction and one death; tells whether the transaction committed.
async fn kill_at(stage: &mut Stage, victim: Victim, point: Point, name: &str, index: usize) -> bool {
    let expected = is_committed_after(victim, point);
    // What is expected to commit must not be aborted for being late; the others must not make the test wait.
    let deadline_ms = if expected { LONG_MS } else { SHORT_MS };
    let office = if point.is_initiators() {
        &mut stage.here
    } else {
        &mut stage.there
    };
    office.arm(point).await;
    let mut transfer = stage.transfer(name, index, deadline_ms);
    let office = if point.is_initiators() {
        &mut stage.here
    } else {
        &mut stage.there
    };
    let gtid = office.paused(point).await;
    let is_initiator_gone = matches!(victim, Victim::Initiator | Victim::Everything);
    if point == Point::Requested && is_initiator_gone {
        // Handed over is not decided: a kill right now may find the request anywhere. Here it has arrived.
        assert!(stage.is_committed(gtid).await, "{name}");
    }

    let mut answer = None;
    if point >= Point::Delivered {
        // T16: the answer comes at the decision, whoever else still waits for the delivery.
        answer = Some((&mut transfer).await.expect("no panic"));
    }

    let killed = kill(stage, victim).await;
    let is_paused_alive = if point.is_initiators() {
        stage.here.is_running()
    } else {
        stage.there.is_running()
    };
    if is_paused_alive {
        let office = if point.is_initiators() {
            &mut stage.here
        } else {
            &mut stage.there
        };
        office.go().await;
    }
    let answer = match answer {
        Some(answer) => answer,
        None => transfer.await.expect("no panic"),
    };
    if is_initiator_gone && point < Point::Delivered {
        assert!(answer.is_err(), "{name}: nobody was there to answer: {answer:?}");
    } else {
        check_answer(
            name,
            gtid,
            expected,
            &answer.unwrap_or_else(|status| panic!("{name}: {status}")),
        );
    }
    if victim == Victim::Participant && expected {
        // B10: as long as it is away it is owed the commit.
        let leader = stage.cluster.leader().await;
        let status = eventually("the leader answers", async || stage.cluster.status(leader).await).await;
        assert_eq!(status.unfinished_count, 1, "{name}");
    }
    // The whole must work without the replica that was killed: it comes back when everything is settled.
    let is_replica = matches!(victim, Victim::Leader | Victim::Follower);
    if is_replica {
        stage.settled().await;
    }
    restart(stage, victim, killed).await;
    stage.settled().await;
    assert_eq!(stage.is_committed(gtid).await, expected, "{name}");
    expected
}

async fn kill(stage: &mut Stage, victim: Victim) -> u32 {
    // Not asked for before it is needed: a paused transaction should not wait for the test.
    let leader = match victim {
        Victim::Leader | Victim::Follower => stage.cluster.leader().await,
        _ => 0,
    };
    let follower = leader % 3 + 1;
    match victim {
        Victim::Leader => stage.cluster.kill(leader).await,
        Victim::Follower => stage.cluster.kill(follower).await,
        Victim::Participant => stage.there.kill().await,
        Victim::Initiator => stage.here.kill().await,
        Victim::Everything => stage.cut_power().await,
    }
    if victim == Victim::Follower {
        follower
    } else {
        leader
    }
}

async fn restart(stage: &mut Stage, victim: Victim, replica: u32) {
    match victim {
        Victim::Leader | Victim::Follower => stage.cluster.start_replica(replica).await,
        Victim::Participant => stage.there.start().await,
        Victim::Initiator => stage.here.start().await,
        Victim::Everything => stage.restore_power().await,
    }
    // A replica that came back has caught up when the leader is asked for the next time.
    stage.cluster.leader().await;
}

fn check_answer(name: &str, gtid: Gtid, is_committed: bool, answer: &TransferReply) {
    assert_eq!(answer.gtid, gtid.to_string(), "{name}");
    let expected = if is_committed {
        Verdict::Committed
    } else {
        Verdict::Refused
    };
    assert_eq!(answer.verdict(), expected, "{name}: {}", answer.text);
}

/// T1, B7: a leader's death is a delay, at every step.
#[tokio::test]
async fn the_leader_is_killed_at_every_step() {
    kill_at_every_point(Victim::Leader).await;
}

#[tokio::test]
async fn a_follower_is_killed_at_every_step() {
    kill_at_every_point(Victim::Follower).await;
}

/// T8, C1, C9: what voted comes back in doubt, with its locks, and gets the outcome; what had not voted is gone.
#[tokio::test]
async fn the_participant_is_killed_at_every_step() {
    kill_at_every_point(Victim::Participant).await;
}

/// T6, B9: without its initiator an undecided transaction is aborted after its deadline, a decided one is delivered.
#[tokio::test]
async fn the_initiator_is_killed_at_every_step() {
    kill_at_every_point(Victim::Initiator).await;
}

/// B1, B11, L2: whatever was told to anybody is on disk.
#[tokio::test]
async fn everything_is_killed_at_every_step() {
    kill_at_every_point(Victim::Everything).await;
}

/// T8, C1: the process that voted is gone, its vote stands. Started again it is in doubt with its locks, before it takes new
/// work, and gives them back with the outcome.
#[tokio::test]
async fn a_branch_in_doubt_keeps_its_locks_over_a_restart() {
    within(async {
        let mut stage = Stage::start("locks").await;
        stage.here.arm(Point::Voted).await;
        let first = stage.transfer("first", 0, LONG_MS);
        stage.here.paused(Point::Voted).await;
        stage.there.kill().await;
        stage.there.start().await;
        eventually("the branch is in doubt again", async || {
            (stage.there.in_doubt_count().await? == 1).then_some(())
        })
        .await;

        // The other way round, so that the lock that is met first is the one that must have survived.
        let request = |transfer: &str| TransferRequest {
            transfer: transfer.to_owned(),
            account: account(0),
            amount: 1,
            deadline_ms: LONG_MS,
            extra_branch_count: 0,
        };
        let refused = stage
            .there
            .transfer(request("second"))
            .await
            .expect("no panic")
            .expect("an answer");
        assert_eq!(refused.verdict(), Verdict::Refused, "{}", refused.text);
        assert!(refused.text.contains("stayed locked"), "{}", refused.text);

        stage.here.go().await;
        let first = first.await.expect("no panic").expect("an answer");
        assert_eq!(first.verdict(), Verdict::Committed, "{}", first.text);
        stage.settled().await;
        let third = stage
            .there
            .transfer(request("third"))
            .await
            .expect("no panic")
            .expect("an answer");
        assert_eq!(third.verdict(), Verdict::Committed, "{}", third.text);
        stage.settled().await;
        let (here, there) = stage.close_offices().await;
        let booked = ledger::check(&here, &there, |_| account(0));
        assert_eq!(booked, ["first", "third"].map(str::to_owned).into());
    })
    .await;
}

/// T7: the initiator dies with its request anywhere between its own memory and the log. Either outcome is right; half of one is
/// not, and no branch may wait for ever.
#[tokio::test]
async fn an_initiator_dies_with_its_request_on_the_way() {
    within(async {
        let mut stage = Stage::start("on-the-way").await;
        let mut transactions = Vec::new();
        for index in 0..6 {
            let name = format!("t-{index}");
            stage.here.arm(Point::Requested).await;
            let transfer = stage.transfer(&name, index, SHORT_MS);
            transactions.push((stage.here.paused(Point::Requested).await, name));
            stage.here.kill().await;
            assert!(
                transfer.await.expect("no panic").is_err(),
                "nobody was there to answer"
            );
            stage.here.start().await;
        }
        stage.settled().await;
        let mut committed = BTreeSet::new();
        for (gtid, name) in transactions {
            if stage.is_committed(gtid).await {
                committed.insert(name);
            }
        }
        let (here, there) = stage.close_offices().await;
        let index = |name: &str| name[2..].parse().expect("a number");
        assert_eq!(
            ledger::check(&here, &there, |name| account(index(name))),
            committed
        );
    })
    .await;
}
