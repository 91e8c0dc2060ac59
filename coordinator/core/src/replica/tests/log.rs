//! The log across leaders: unreadable slots, holes, lagging candidates, deposed leaders.

use super::coordinator::{DATABASE, abort, gtid, told};
use super::{Bench, Out, WALL, accepted, ballot, disk, establish, promise, to, to_both, value};
use crate::durable::Recovered;
use crate::effects::Notice;
use crate::entry;
use crate::paxos::{Ballot, Message, Slot};
use crate::replica::{Ignored, Input, RoleName};
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;
use synod_proto::command::{Command, Decide};
use synod_proto::ids::{BranchId, CallId, ExecutionId, ReplicaId, RequestId, UnixMillis};
use synod_proto::session::{Answer, Refusal, Request, Response};

fn report(ballot: Ballot, decided_up_to: u64, accepted: Vec<crate::paxos::Accepted>) -> Message {
    let Message::Promise {
        first_retained,
        unreadable,
        ..
    } = promise(ballot, vec![])
    else {
        panic!("a promise")
    };
    Message::Promise {
        ballot,
        decided_up_to: Slot(decided_up_to),
        first_retained,
        accepted,
        unreadable,
    }
}

fn accepts(out: &Out) -> Vec<u64> {
    let slot = |one: &crate::paxos::Envelope| match &one.message {
        Message::Accept { slot, .. } if one.to == ReplicaId(2) => Some(slot.0),
        _ => None,
    };
    out.early.iter().filter_map(slot).collect()
}

/// L3: a slot whose record the candidate cannot read is not empty. With one readable report it waits; the third replica's
/// report makes a quorum of readable ones, and the highest of them is proposed.
#[test]
fn l3_a_candidate_waits_for_a_quorum_of_readable_reports() {
    let recovered = Recovered {
        unreadable: BTreeSet::from([Slot(1)]),
        ..Recovered::default()
    };
    let mut bench = Bench::admitted(3, recovered, vec![]);
    let (own, standing) = bench.stand();
    bench.sync(&standing);
    let out = bench.hear(2, promise(own, vec![accepted(1, ballot(1, 2), establish(2))]));
    assert_eq!(out, Out::default(), "neither the lower value nor a no-op");
    let out = bench.hear(3, promise(own, vec![accepted(1, ballot(2, 3), establish(3))]));
    let batch = out.batch.as_ref().expect("a batch");
    assert_eq!(batch.accepted[0], accepted(1, own, establish(3)));
    assert_eq!(
        accepts(&out),
        vec![1, 2],
        "the value, and the leader's own first entry"
    );
}

/// L5: "a candidate first catches up to the highest of them and proposes nothing below".
#[test]
fn l5_a_candidate_fetches_what_its_voters_know_as_decided() {
    let mut bench = Bench::fresh(3);
    let (own, standing) = bench.stand();
    bench.sync(&standing);
    let out = bench.hear(2, report(own, 2, vec![]));
    let ask = to(2, Message::CatchUp { above: Slot::ZERO });
    assert_eq!(
        out,
        Out {
            early: vec![ask],
            ..Out::default()
        }
    );
    let values = vec![establish(2), value(&Command::Noop)];
    let out = bench.hear(
        2,
        Message::Decided {
            first: Slot(1),
            values,
            decided_up_to: Slot(2),
        },
    );
    assert_eq!(bench.replica.status().role, RoleName::Leading);
    assert_eq!(accepts(&out), vec![3]);
}

/// A replica grants whether or not the candidate's log is up to date (Omni-Paxos, section 3: else a topology in which only a
/// lagging replica reaches a quorum has no leader).
#[test]
fn a_lagging_replica_gets_its_pre_vote() {
    let (recovered, values) = disk(
        (1..=3)
            .map(|slot| accepted(slot, ballot(1, 2), establish(2)))
            .collect(),
        3,
    );
    let mut bench = Bench::admitted(3, recovered, values);
    let answer = Message::PreVoteAnswer {
        attempt: 5,
        granted: true,
        round: 1,
        decided_up_to: Slot(3),
    };
    assert_eq!(
        bench.hear(3, Message::PreVote { attempt: 5 }),
        Out {
            early: vec![to(3, answer)],
            ..Out::default()
        }
    );
}

/// A13; "the leader can propose command 141 before it learns that its proposed command 140 has been chosen" (PMS, 3), but
/// nothing above a hole is applied: 141's proposer hears after 140's.
#[test]
fn a13_what_is_chosen_above_a_hole_waits_for_it() {
    let mut bench = Bench::fresh(3);
    let own = bench.serve();
    let lineage = bench.replica.machine().lineage().expect("established");
    let ask = |bench: &mut Bench, number: u8| {
        let gtid = synod_proto::ids::Gtid::new(WALL, [number; 10]);
        let command = Decide {
            lineage,
            gtid,
            ..abort()
        }
        .encode();
        bench.ask(Request::Decide {
            request: RequestId(u64::from(number)),
            command,
        })
    };
    let first = ask(&mut bench, 1);
    let second = ask(&mut bench, 2);
    bench.sync(&first);
    bench.sync(&second);
    assert_eq!(
        bench
            .hear(
                2,
                Message::Accepted {
                    ballot: own,
                    slot: Slot(3)
                }
            )
            .told,
        vec![]
    );
    assert_eq!(bench.replica.status().decided_up_to, Slot(1));
    let out = bench.hear(
        2,
        Message::Accepted {
            ballot: own,
            slot: Slot(2),
        },
    );
    let requests: Vec<RequestId> = out
        .told
        .iter()
        .map(|told| match told.response {
            Response::Decided { request, .. } => request,
            _ => panic!("{told:?}"),
        })
        .collect();
    assert_eq!(requests, [RequestId(1), RequestId(2)]);
    assert_eq!(bench.replica.status().decided_up_to, Slot(3));
}

/// PMMC, section 2.3: a leader that learns of a higher ballot is preempted and must not go on in its own.
#[test]
fn a_nack_deposes_a_leader_and_a_late_accepted_decides_nothing() {
    let mut bench = Bench::fresh(3);
    let own = bench.serve();
    let lineage = bench.replica.machine().lineage().expect("established");
    let command = Decide { lineage, ..abort() }.encode();
    let out = bench.ask(Request::Decide {
        request: RequestId(1),
        command,
    });
    bench.sync(&out);
    let farewell = Message::Heartbeat {
        ballot: own,
        decided_up_to: Slot(1),
        sequence: 1,
        has_quorum: false,
    };
    let refusal = Refusal::NotLeader { leader: None };
    let expected = Out {
        early: to_both(&farewell),
        told: vec![told(Response::Refused {
            request: RequestId(1),
            refusal,
        })],
        notices: vec![Notice::SteppedDown {
            reason: "another replica has promised a higher ballot",
        }],
        ..Out::default()
    };
    assert_eq!(
        bench.hear(
            3,
            Message::Nack {
                ballot: own,
                promised: ballot(5, 3)
            }
        ),
        expected
    );
    assert_eq!(
        bench.hear(
            2,
            Message::Accepted {
                ballot: own,
                slot: Slot(2)
            }
        ),
        Out::default()
    );
    assert_eq!(bench.replica.ignored(), &[Ignored::NotLeading]);
}

/// A9: a timed act of a leader is a proposal in its ballot. Deposed before it is decided, it aborts nothing: the branch is
/// told to ask again. T10: nor is a read answered that no quorum confirmed.
#[test]
fn a9_a_deposed_leaders_timeout_aborts_nothing() {
    let mut bench = Bench::fresh(3);
    bench.serve();
    let lineage = bench.replica.machine().lineage().expect("established");
    let branch = BranchId {
        gtid: gtid(),
        call: CallId(1),
        execution: ExecutionId(2),
    };
    // A second clock, so that the leader knows the time.
    let own = bench.replica.own_ballot().expect("leads");
    bench.now.wall = WALL.plus(40_000);
    bench.hear(
        2,
        Message::HeartbeatAnswer {
            ballot: own,
            sequence: 1,
            wall: WALL.plus(40_000),
        },
    );
    let inquiry = Request::Inquire {
        branch,
        resource: DATABASE,
        lineage,
        deadline: WALL.plus(30_000),
    };
    let out = bench.ask(inquiry);
    assert_eq!(
        (out.told.len(), out.batch.is_some()),
        (0, true),
        "an abort is proposed"
    );
    bench.ask(Request::Outcome {
        request: RequestId(1),
        gtid: gtid(),
    });
    let out = bench.hear(
        3,
        Message::Prepare {
            ballot: ballot(9, 3),
            above: Slot(1),
        },
    );
    let refusal = Refusal::NotLeader { leader: None };
    let expected = vec![
        told(Response::Refused {
            request: RequestId(1),
            refusal,
        }),
        told(Response::Answered {
            branch,
            answer: Answer::Undecided,
        }),
    ];
    assert_eq!(out.told, expected);
    assert_eq!(bench.replica.machine().outcomes().count(), 0);
}

/// A16: silence is counted from the replica's own start, and a denied pre-vote from the attempt, not from before it lived.
#[test]
fn a16_a_replica_does_not_count_its_own_start_as_silence() {
    let mut bench = Bench::fresh(3);
    let is_pre_vote = |out: &Out| {
        out.early
            .iter()
            .any(|one| matches!(one.message, Message::PreVote { .. }))
    };
    assert!(
        !is_pre_vote(&bench.wait(249_000)),
        "the shortest timeout is 250 ms after the start"
    );
    assert!(is_pre_vote(&bench.wait(251_000)), "the longest is 500 ms");
}

/// A2, A3; PMMC, R3: the state is a function of the decided values and of nothing else. A leader that decided them one by
/// one, and a replica that learned them together at another time, hold the same.
#[test]
fn a3_the_state_is_a_function_of_the_log() {
    let mut leader = Bench::fresh(3);
    let own = leader.serve();
    let lineage = leader.replica.machine().lineage().expect("established");
    let command = Decide { lineage, ..abort() }.encode();
    let out = leader.ask(Request::Decide {
        request: RequestId(1),
        command,
    });
    leader.sync(&out);
    leader.hear(
        2,
        Message::Accepted {
            ballot: own,
            slot: Slot(2),
        },
    );
    let values: Vec<_> = (1..=2)
        .map(|slot| leader.replica.decided_value(Slot(slot)).expect("decided").clone())
        .collect();
    let mut follower = Bench::fresh(3);
    follower.now.wall = UnixMillis(1);
    follower.hear(
        2,
        Message::Decided {
            first: Slot(1),
            values,
            decided_up_to: Slot(2),
        },
    );
    assert_eq!(follower.replica.machine(), leader.replica.machine());
    assert_eq!(follower.replica.machine().outcomes().count(), 1);
}

/// PMMC, A1: "an acceptor can only adopt strictly increasing ballot numbers": the same one again is answered and not
/// written, a lower one is refused.
#[test]
fn a_repeated_prepare_is_answered_again_and_written_once() {
    let mut bench = Bench::fresh(3);
    let prepare = |round| Message::Prepare {
        ballot: ballot(round, 2),
        above: Slot::ZERO,
    };
    assert!(bench.hear(2, prepare(4)).batch.is_some());
    let again = Out {
        gated: vec![to(2, promise(ballot(4, 2), vec![]))],
        ..Out::default()
    };
    assert_eq!(bench.hear(2, prepare(4)), again);
    let nack = Message::Nack {
        ballot: ballot(3, 2),
        promised: ballot(4, 2),
    };
    assert_eq!(
        bench.hear(2, prepare(3)),
        Out {
            gated: vec![to(2, nack)],
            ..Out::default()
        }
    );
}

/// A request that came before the news of a failed write is not lost in silence, and the replica stays a reader (L9).
#[test]
fn l9_a_full_disk_leaves_a_reader() {
    let mut bench = Bench::fresh(3);
    bench.serve();
    let full = Input::WriteFailed {
        text: "no space".into(),
        kind: crate::replica::WriteFailure::Full,
    };
    bench.step(full);
    let ask = |bench: &mut Bench, request| bench.ask(request).told;
    let refusal = Refusal::ReadOnly {
        text: "no space".into(),
    };
    let outcome = Request::Outcome {
        request: RequestId(1),
        gtid: gtid(),
    };
    assert_eq!(
        ask(&mut bench, outcome),
        vec![told(Response::Refused {
            request: RequestId(1),
            refusal
        })]
    );
    let list = Request::List {
        request: RequestId(2),
        after: None,
        unfinished_only: false,
        count_max: 0,
    };
    let listed = told(Response::Listed {
        request: RequestId(2),
        transactions: vec![],
    });
    assert_eq!(ask(&mut bench, list), vec![listed]);
    let silent: Vec<_> = (0..10).flat_map(|_| bench.wait(600_000).early).collect();
    assert_eq!(silent, vec![], "it stands for nothing");
    assert_eq!(entry::decode(&entry::noop()), Ok(None));
}
