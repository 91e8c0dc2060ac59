//! The coordinator: when a leader serves, what it answers, and what a change of leader does to both.

use super::{Bench, Out, WALL, accepted, ballot, disk, establish, promise, to_both, value};
use crate::effects::{Notice, Told};
use crate::entry;
use crate::paxos::{Accepted, Message, Slot};
use crate::replica::{Ignored, Input, RoleName};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::command::{Command, Decide, NamedBranch, Proposal};
use synod_proto::ids::{
    BranchId, CallId, ExecutionId, Gtid, Lineage, ReplicaId, RequestId, ResourceId, SessionId,
};
use synod_proto::session::{
    AbortCause, AbortKind, Answer, Decision, InDoubt, InDoubtState, InquiringBranch, Outcome, Refusal,
    Request, Response, TransactionStatus,
};

pub(super) const SESSION: SessionId = SessionId(5);
pub(super) const DATABASE: ResourceId = ResourceId([9; 16]);
pub(super) const LINEAGE: Lineage = Lineage([1; 16]);

pub(super) fn gtid() -> Gtid {
    Gtid::new(WALL, [3; 10])
}

pub(super) fn named(call: u64) -> NamedBranch {
    NamedBranch {
        call: CallId(call),
        execution: ExecutionId(call + 100),
        resource: DATABASE,
        digest: 0,
        database_transaction: Bytes::new(),
    }
}

pub(super) fn branch(call: u64) -> BranchId {
    BranchId {
        gtid: gtid(),
        call: CallId(call),
        execution: ExecutionId(call + 100),
    }
}

pub(super) fn propose(proposal: Proposal) -> Decide {
    Decide {
        lineage: LINEAGE,
        gtid: gtid(),
        deadline: WALL.plus(30_000),
        proposal,
        guards: vec![],
    }
}

pub(super) fn commit(calls: &[u64]) -> Decide {
    propose(Proposal::Commit {
        branches: calls.iter().map(|call| named(*call)).collect(),
        read_only_count: 0,
    })
}

pub(super) fn abort() -> Decide {
    propose(Proposal::Abort {
        cause: AbortCause::new(AbortKind::Requested, "why"),
        branches: vec![],
    })
}

pub(super) fn told(response: Response) -> Told {
    Told {
        session: SESSION,
        response,
    }
}

pub(super) fn decided(request: u64, decision: Decision) -> Told {
    told(Response::Decided {
        request: RequestId(request),
        decision,
    })
}

pub(super) fn deliver(call: u64) -> Told {
    told(Response::Deliver {
        branch: branch(call),
        resource: DATABASE,
        outcome: Outcome::Committed,
    })
}

/// What a log of this coordinator begins with: its lineage, and the database.
pub(super) fn log(commands: &[Command]) -> Vec<Accepted> {
    let mut records = vec![
        accepted(1, ballot(1, 2), establish(1)),
        accepted(2, ballot(1, 2), value(&Command::Enrol(vec![DATABASE]))),
    ];
    for (slot, command) in (3..).zip(commands) {
        records.push(accepted(slot, ballot(1, 2), value(command)));
    }
    records
}

/// A replica alone, with this log behind it, that serves; the session has registered the database.
pub(super) fn serving_after(commands: &[Command]) -> (Bench, Out) {
    let (recovered, values) = disk(log(commands), 2 + commands.len() as u64);
    let mut bench = Bench::admitted(1, recovered, values);
    let mut out = bench.wait(600_000);
    while bench.replica.status().role != RoleName::Serving {
        assert!(!out.gated.is_empty(), "a replica alone leads at once");
        out = bench.sync(&out);
    }
    let out = bench.ask(Request::Register {
        request: RequestId(0),
        lineage: Some(LINEAGE),
        resources: vec![DATABASE],
    });
    (bench, out)
}

pub(super) fn serving() -> Bench {
    serving_after(&[]).0
}

impl Bench {
    pub(super) fn ask(&mut self, request: Request) -> Out {
        self.step(Input::Request {
            session: SESSION,
            request,
        })
    }

    /// Asks for a decision, lets the disk sync, and returns what is told.
    pub(super) fn decide(&mut self, number: u64, decide: &Decide) -> Vec<Told> {
        let mut out = self.ask(Request::Decide {
            request: RequestId(number),
            command: decide.encode(),
        });
        let mut told = out.told.clone();
        while !out.gated.is_empty() {
            out = self.sync(&out);
            told.extend(out.told.clone());
        }
        told
    }
}

/// B1, T6: nobody hears of an outcome before a quorum holds it on disk; alone, a replica is its own quorum.
#[test]
fn b1_an_outcome_is_told_after_its_sync_with_its_deliveries_first() {
    let mut bench = serving();
    let out = bench.ask(Request::Decide {
        request: RequestId(1),
        command: commit(&[1, 2]).encode(),
    });
    assert_eq!(out.told, vec![]);
    assert_eq!(
        out.batch.as_ref().map(|batch| batch.accepted.len()),
        Some(1),
        "one entry"
    );
    let out = bench.sync(&out);
    assert_eq!(
        out.told,
        vec![deliver(1), deliver(2), decided(1, Decision::Committed)]
    );
}

/// "Once an RM has entered the committed or aborted state, it remains in that state forever." (CTC, section 2, stability)
/// The first proposal in the log wins, and everybody else is told it (traps B4, B7, B8).
#[test]
fn the_first_proposal_wins_and_all_others_are_told_it() {
    let mut bench = serving();
    bench.decide(1, &commit(&[1]));
    let slots = bench.replica.status().decided_up_to;
    assert_eq!(bench.decide(2, &abort()), vec![decided(2, Decision::Committed)]);
    assert_eq!(
        bench.decide(3, &commit(&[1])),
        vec![decided(3, Decision::Committed)]
    );
    assert_eq!(
        bench.decide(4, &commit(&[1, 2])),
        vec![decided(4, Decision::Mismatch)]
    );
    assert_eq!(
        bench.decide(5, &commit(&[2])),
        vec![decided(5, Decision::Mismatch)]
    );
    assert_eq!(
        bench.replica.status().decided_up_to,
        slots,
        "none of them needed an entry"
    );

    let mut bench = serving();
    let Proposal::Abort { cause, .. } = abort().proposal else {
        panic!("an abort")
    };
    assert_eq!(
        bench.decide(1, &abort()),
        vec![decided(1, Decision::Aborted(cause.clone()))]
    );
    assert_eq!(
        bench.decide(2, &commit(&[1])),
        vec![decided(2, Decision::Aborted(cause))]
    );
}

/// Two proposals on their way at once: the log's order decides, not that of arrival at somebody's ear.
#[test]
fn two_proposals_in_one_entry_get_one_outcome() {
    let mut bench = serving();
    let ask = |number, decide: Decide| Input::Request {
        session: SESSION,
        request: Request::Decide {
            request: RequestId(number),
            command: decide.encode(),
        },
    };
    let out = super::open(
        bench
            .replica
            .step_many(bench.now, [ask(1, abort()), ask(2, commit(&[1]))]),
    );
    let out = bench.sync(&out);
    let Proposal::Abort { cause, .. } = abort().proposal else {
        panic!("an abort")
    };
    let both = vec![
        decided(1, Decision::Aborted(cause.clone())),
        decided(2, Decision::Aborted(cause)),
    ];
    assert_eq!(out.told, both);
}

/// T6: nothing is concluded from absence. Before the deadline the answer is "ask again"; after it the inquiry proposes the
/// abort and is answered once that is in the log (presumed nothing: contrast Mohan, Lindsay and Obermarck, *Transaction
/// Management in the R\* Distributed Database Management System*, 1986, where absence means abort).
#[test]
fn t6_an_inquiry_is_answered_by_the_log_and_never_by_absence() {
    let mut bench = serving();
    let inquire = Request::Inquire {
        branch: branch(1),
        resource: DATABASE,
        lineage: LINEAGE,
        deadline: WALL.plus(5_000),
    };
    let out = bench.ask(inquire.clone());
    assert_eq!(
        out.told,
        vec![told(Response::Answered {
            branch: branch(1),
            answer: Answer::Undecided
        })]
    );
    assert_eq!(out.batch, None);
    for _ in 0..100 {
        bench.wait(50_000);
    }
    let out = bench.ask(inquire);
    assert_eq!(out.told, vec![]);
    assert!(out.batch.is_some(), "an abort is proposed");
    let out = bench.sync(&out);
    assert_eq!(
        out.told,
        vec![told(Response::Answered {
            branch: branch(1),
            answer: Answer::Aborted
        })]
    );
}

/// T5: the answer is per branch. An execution that the record does not name is told Aborted.
#[test]
fn t5_only_a_named_branch_is_told_committed() {
    let mut bench = serving();
    bench.decide(1, &commit(&[1]));
    let ask = |bench: &mut Bench, branch| {
        bench
            .ask(Request::Inquire {
                branch,
                resource: DATABASE,
                lineage: LINEAGE,
                deadline: WALL,
            })
            .told
    };
    let answer = |branch, answer| vec![told(Response::Answered { branch, answer })];
    assert_eq!(ask(&mut bench, branch(1)), answer(branch(1), Answer::Committed));
    assert_eq!(ask(&mut bench, branch(2)), answer(branch(2), Answer::Aborted));
    let other = BranchId {
        execution: ExecutionId(0),
        ..branch(1)
    };
    assert_eq!(ask(&mut bench, other), answer(other, Answer::Aborted));
}

/// A4: a new leader serves nothing until it has applied everything chosen before its ballot. What is asked meanwhile
/// waits, and is answered then.
#[test]
fn a4_no_answer_before_the_barrier_is_applied() {
    let (recovered, values) = disk(log(&[]), 2);
    let mut bench = Bench::admitted(3, recovered, values);
    let (own, standing) = bench.stand();
    bench.sync(&standing);
    let before = accepted(3, ballot(1, 2), value(&Command::Decide(commit(&[1]))));
    let mut report = promise(own, vec![before]);
    if let Message::Promise { decided_up_to, .. } = &mut report {
        *decided_up_to = Slot(2);
    }
    let leading = bench.hear(2, report);
    assert_eq!(bench.replica.status().role, RoleName::Leading);
    let out = bench.ask(Request::Outcome {
        request: RequestId(1),
        gtid: gtid(),
    });
    assert_eq!(out, Out::default());
    bench.sync(&leading);
    // The value of the former leader alone is not enough: the own first entry behind it is the barrier.
    assert_eq!(
        bench.hear(
            2,
            Message::Accepted {
                ballot: own,
                slot: Slot(4)
            }
        ),
        Out::default()
    );
    let out = bench.hear(
        2,
        Message::Accepted {
            ballot: own,
            slot: Slot(3),
        },
    );
    assert_eq!(out.notices, vec![Notice::Leading(own)]);
    let [
        Told {
            response: Response::Status { status, .. },
            ..
        },
    ] = &out.told[..]
    else {
        panic!("{:?}", out.told)
    };
    assert!(
        matches!(status, TransactionStatus::Committed { branches, .. } if branches.len() == 1),
        "{status:?}"
    );
}

/// A new leader finishes what the old one began (CTC, section 4, on the failure of the leader): it takes every unfinished
/// delivery from the register, and none that is finished.
#[test]
fn a_new_leader_resumes_every_unfinished_delivery() {
    let finished = Gtid::new(WALL, [4; 10]);
    let done = Decide {
        gtid: finished,
        ..commit(&[7])
    };
    let commands = [
        Command::Decide(commit(&[1, 2])),
        Command::Decide(done),
        Command::Delivered(vec![finished]),
    ];
    let (mut bench, out) = serving_after(&commands);
    let registered = told(Response::Registered {
        request: RequestId(0),
        lineage: LINEAGE,
    });
    assert_eq!(out.told, vec![registered, deliver(1), deliver(2)]);

    // B10, B11: forgotten only after all have acknowledged; an acknowledgement that comes twice changes nothing.
    let acknowledge = |call| Request::Acknowledge {
        branch: branch(call),
        resource: DATABASE,
    };
    assert_eq!(bench.ask(acknowledge(1)), Out::default());
    bench.ask(acknowledge(1));
    assert_eq!(bench.replica.ignored(), &[Ignored::UnknownDelivery]);
    assert_eq!(bench.replica.status().unfinished_count, 1);
    let out = bench.ask(acknowledge(2));
    let batch = out.batch.as_ref().expect("an entry says that it is delivered");
    let entry = entry::decode(&batch.accepted[0].value)
        .expect("decodes")
        .expect("is no no-op");
    assert_eq!(entry.commands, vec![Command::Delivered(vec![gtid()])]);
    bench.sync(&out);
    assert_eq!(bench.replica.status().unfinished_count, 0);
}

/// T16: who waits for delivery hears of the last acknowledgement, before it is in the log: the effects are there.
#[test]
fn t16_the_last_acknowledgement_ends_the_wait() {
    let mut bench = serving();
    bench.decide(1, &commit(&[1, 2]));
    let acknowledge = |call| Request::Acknowledge {
        branch: branch(call),
        resource: DATABASE,
    };
    assert_eq!(
        bench.ask(Request::AwaitDelivery {
            request: RequestId(2),
            gtid: gtid()
        }),
        Out::default()
    );
    assert_eq!(bench.ask(acknowledge(2)).told, vec![]);
    let delivered = |request| {
        told(Response::Delivered {
            request: RequestId(request),
            gtid: gtid(),
        })
    };
    assert_eq!(bench.ask(acknowledge(1)).told, vec![delivered(2)]);
    assert_eq!(
        bench
            .ask(Request::AwaitDelivery {
                request: RequestId(3),
                gtid: gtid()
            })
            .told,
        vec![delivered(3)]
    );
}

/// A leader that hears no quorum resigns, sends away who waits, and keeps nobody from promising to another.
#[test]
fn a_leader_without_a_quorum_resigns_and_answers_whoever_waits() {
    let mut bench = Bench::fresh(3);
    let own = bench.serve();
    let request = |number| Request::Decide {
        request: RequestId(number),
        command: abort_under(&bench_lineage(&bench)).encode(),
    };
    let (first, second) = (request(1), request(2));
    bench.ask(first);
    bench.ask(second);
    let mut out = Out::default();
    for _ in 0..12 {
        out = bench.wait(50_000);
        if bench.replica.status().role == RoleName::Follower {
            break;
        }
    }
    let farewell = Message::Heartbeat {
        ballot: own,
        decided_up_to: Slot(1),
        sequence: 11,
        has_quorum: false,
    };
    let refused = |number| {
        let refusal = Refusal::NotLeader { leader: None };
        told(Response::Refused {
            request: RequestId(number),
            refusal,
        })
    };
    let expected = Out {
        early: to_both(&farewell),
        told: vec![refused(1), refused(2)],
        notices: vec![Notice::SteppedDown {
            reason: "no quorum was heard",
        }],
        ..Out::default()
    };
    assert_eq!(out, expected);
}

/// A5: a follower says who leads, and never "not found".
#[test]
fn a5_a_follower_sends_to_the_leader_it_knows() {
    let (recovered, values) = disk(log(&[]), 2);
    let mut bench = Bench::admitted(3, recovered, values);
    let ask = |bench: &mut Bench| {
        bench.ask(Request::Outcome {
            request: RequestId(1),
            gtid: gtid(),
        })
    };
    let refused = |leader| {
        let refusal = Refusal::NotLeader { leader };
        Out {
            told: vec![told(Response::Refused {
                request: RequestId(1),
                refusal,
            })],
            ..Out::default()
        }
    };
    assert_eq!(ask(&mut bench), refused(None));
    let heartbeat = Message::Heartbeat {
        ballot: ballot(2, 3),
        decided_up_to: Slot(2),
        sequence: 1,
        has_quorum: true,
    };
    bench.hear(3, heartbeat);
    assert_eq!(ask(&mut bench), refused(Some(ReplicaId(3))));
}

/// T10: "no outcome yet" is told only once a quorum has confirmed, later than the question, that nobody else leads.
#[test]
fn t10_undecided_is_told_after_a_quorum_round() {
    let mut bench = Bench::fresh(3);
    let own = bench.serve();
    let out = bench.ask(Request::Outcome {
        request: RequestId(1),
        gtid: gtid(),
    });
    let [first, _] = &out.early[..] else {
        panic!("a round of heartbeats: {:?}", out.early)
    };
    let Message::Heartbeat { sequence, .. } = first.message else {
        panic!("a heartbeat: {first:?}")
    };
    assert_eq!(out.told, vec![]);
    let answer = |sequence| Message::HeartbeatAnswer {
        ballot: own,
        sequence,
        wall: WALL,
    };
    assert_eq!(
        bench.hear(2, answer(sequence - 1)),
        Out::default(),
        "an answer from before the question"
    );
    let status = TransactionStatus::Undecided;
    let expected = vec![told(Response::Status {
        request: RequestId(1),
        status,
    })];
    assert_eq!(bench.hear(3, answer(sequence)).told, expected);
}

/// T10: questions that come while a round is under way are not answered by it, since a new leader may have been elected after
/// its heartbeats left. They share the next one, which does not wait for the heartbeats' timer.
#[test]
fn t10_questions_that_come_during_a_quorum_round_share_the_next_one_at_once() {
    let mut bench = Bench::fresh(3);
    let own = bench.serve();
    let sequence_of = |out: &Out| match &out.early[..] {
        [first, second] if first.message == second.message => match first.message {
            Message::Heartbeat { sequence, .. } => sequence,
            _ => panic!("a heartbeat: {first:?}"),
        },
        other => panic!("one round of heartbeats: {other:?}"),
    };
    let ask = |bench: &mut Bench, request| {
        bench.ask(Request::Outcome {
            request: RequestId(request),
            gtid: gtid(),
        })
    };
    let undecided = |request| {
        told(Response::Status {
            request: RequestId(request),
            status: TransactionStatus::Undecided,
        })
    };
    let answer = |sequence| Message::HeartbeatAnswer {
        ballot: own,
        sequence,
        wall: WALL,
    };
    let first_round = sequence_of(&ask(&mut bench, 1));
    for request in [2, 3] {
        assert_eq!(ask(&mut bench, request), Out::default(), "a round is under way");
    }
    let out = bench.hear(2, answer(first_round));
    assert_eq!(out.told, vec![undecided(1)]);
    let second_round = sequence_of(&out);
    assert_eq!(second_round, first_round + 1);
    assert_eq!(
        bench.hear(3, answer(first_round)),
        Out::default(),
        "the first round is over, the second one is under way"
    );
    let out = bench.hear(3, answer(second_round));
    let expected = Out {
        told: vec![undecided(2), undecided(3)],
        ..Out::default()
    };
    assert_eq!(out, expected, "nobody waits: no third round");
}

/// T10, A5: what keeps databases waiting is told after a quorum round. An inquiry leaves a line until the outcome comes, and a
/// commit until its branch acknowledges.
#[test]
fn t10_what_is_in_doubt_is_told_after_a_quorum_round_and_until_it_is_resolved() {
    let mut bench = Bench::fresh(3);
    let own = bench.serve();
    let lineage = bench_lineage(&bench);
    let began_at = bench.now.wall;
    let inquire = Request::Inquire {
        branch: branch(1),
        resource: DATABASE,
        lineage,
        deadline: WALL.plus(30_000),
    };
    bench.ask(inquire.clone());
    bench.wait(1_000);
    bench.ask(inquire);

    let list = Request::ListInDoubt {
        request: RequestId(9),
        after: None,
        count_max: 0,
    };
    let out = bench.ask(list.clone());
    assert_eq!(out.told, vec![], "not before a quorum has confirmed the leader");
    let sequence = out
        .early
        .iter()
        .find_map(|envelope| match &envelope.message {
            Message::Heartbeat { sequence, .. } => Some(*sequence),
            _ => None,
        })
        .expect("a round begins at once");
    let confirm = |bench: &mut Bench, sequence| {
        let wall = bench.now.wall;
        let out = bench.hear(
            2,
            Message::HeartbeatAnswer {
                ballot: own,
                sequence,
                wall,
            },
        );
        out.told
    };
    let listed = |told: Vec<Told>| match &told[..] {
        [
            Told {
                response: Response::ListedInDoubt { page, .. },
                ..
            },
        ] => page.clone(),
        other => panic!("{other:?}"),
    };
    let page = listed(confirm(&mut bench, sequence));
    assert_eq!(
        page.transactions,
        vec![InDoubt {
            gtid: gtid(),
            state: InDoubtState::Undecided {
                inquired_since: began_at,
                deadline: WALL.plus(30_000),
                branches: vec![InquiringBranch {
                    call: CallId(1),
                    execution: ExecutionId(101),
                    resource: DATABASE,
                }],
            },
        }],
        "once, since the first of its inquiries"
    );
    assert!(page.inquiries_since <= began_at);
    assert_eq!(page.inquiries_dropped_count, 0);

    // The outcome is in the log: nothing is in doubt any more.
    let out = bench.ask(Request::Decide {
        request: RequestId(1),
        command: abort_under(&lineage).encode(),
    });
    bench.sync(&out);
    let slot = bench.replica.status().decided_up_to.next();
    bench.hear(2, Message::Accepted { ballot: own, slot });
    let out = bench.ask(list);
    let sequence = out
        .early
        .iter()
        .find_map(|envelope| match &envelope.message {
            Message::Heartbeat { sequence, .. } => Some(*sequence),
            _ => None,
        })
        .expect("a round begins at once");
    assert_eq!(listed(confirm(&mut bench, sequence)).transactions, vec![]);
}

/// The same list shows commits that wait for an acknowledgement, from the log, and pages follow each other.
#[test]
fn unfinished_commits_are_in_doubt_until_acknowledged() {
    let mut bench = serving();
    bench.decide(1, &commit(&[1, 2]));
    let list = |bench: &mut Bench, after| {
        let mut out = bench.ask(Request::ListInDoubt {
            request: RequestId(9),
            after,
            count_max: 1,
        });
        if out.told.is_empty() {
            out = bench.wait(200_000);
        }
        let page = out.told.into_iter().find_map(|told| match told.response {
            Response::ListedInDoubt { page, .. } => Some(page.transactions),
            _ => None,
        });
        page.expect("alone, a replica confirms itself")
    };
    let waiting = |bench: &mut Bench| {
        let branches = list(bench, None).into_iter().map(|one| match one.state {
            InDoubtState::Unfinished { branches, .. } => branches.iter().map(|one| one.call.0).collect(),
            other => panic!("{other:?}"),
        });
        branches.collect::<Vec<Vec<u64>>>()
    };
    assert_eq!(waiting(&mut bench), vec![vec![1, 2]]);
    let acknowledge = |call| Request::Acknowledge {
        branch: branch(call),
        resource: DATABASE,
    };
    bench.ask(acknowledge(1));
    assert_eq!(waiting(&mut bench), vec![vec![2]]);
    assert_eq!(list(&mut bench, Some(gtid())), vec![], "the end of the list");
    bench.ask(acknowledge(2));
    assert_eq!(waiting(&mut bench), Vec::<Vec<u64>>::new());
}

/// A20: whoever inquires names any gtid; what the leader remembers for operators is bounded, and it says what it dropped.
#[test]
fn a20_remembered_inquiries_are_bounded_and_told_to_be() {
    use crate::transaction::inquiring::{INQUIRING_COUNT_MAX, Inquiring};
    let mut inquiring = Inquiring::default();
    let note = |inquiring: &mut Inquiring, number: usize, mark| {
        let began_at = WALL.plus(u64::try_from(number).expect("small"));
        let gtid = Gtid::new(began_at, [3; 10]);
        let branch = BranchId {
            gtid,
            call: CallId(1),
            execution: ExecutionId(1),
        };
        inquiring.note(WALL, mark, branch, DATABASE, WALL);
    };
    for number in 0..INQUIRING_COUNT_MAX + 5 {
        note(&mut inquiring, number, WALL);
    }
    assert_eq!(
        (inquiring.above(None).count(), inquiring.dropped_count()),
        (INQUIRING_COUNT_MAX, 5)
    );
    // What the watermark has passed makes room.
    note(&mut inquiring, INQUIRING_COUNT_MAX + 5, WALL.plus(10));
    assert_eq!(
        (inquiring.above(None).count(), inquiring.dropped_count()),
        (INQUIRING_COUNT_MAX - 9, 5)
    );
}

fn bench_lineage(bench: &Bench) -> Lineage {
    bench
        .replica
        .machine()
        .lineage()
        .expect("a serving leader has one")
}

fn abort_under(lineage: &Lineage) -> Decide {
    let cause = AbortCause::new(AbortKind::Requested, String::new());
    let proposal = Proposal::Abort {
        cause,
        branches: vec![],
    };
    Decide {
        lineage: *lineage,
        gtid: gtid(),
        deadline: WALL.plus(1),
        proposal,
        guards: vec![],
    }
}
