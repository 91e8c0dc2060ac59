//! What the coordinator answers, and when, over a whole cluster: the rules T5 to T16 that a single replica cannot show.

use bytes::Bytes;
use synod_coordinator_core::machine::outcomes::Verdict;
use synod_proto::command::{Decide, Guard, NamedBranch, Proposal};
use synod_proto::ids::{ExecutionId, Gtid, Lineage, ResourceId, UnixMillis};
use synod_proto::session::{
    AbortKind, Answer, Decision, DeliveryStatus, Outcome, Refusal, Request, Response, TransactionStatus,
};
use synod_tests::actors::databases::RowState;
use synod_tests::faults::Fault;
use synod_tests::run::{converge_after, resource};
use synod_tests::script::{
    Desk, ELECTION_US, abort, branch, commit, gtid, lineage, named, prepare, propose, settled, settled_with,
};
use synod_tests::store::UnsyncedWrite;
use synod_tests::world::{Setup, World};

fn stage(seed: u64) -> (World, Desk) {
    let (mut world, _) = settled(Setup::scripted(seed, 3), 2).expect("settles");
    let desk = Desk::at_leader(&mut world);
    (world, desk)
}

fn decide(world: &mut World, desk: &mut Desk, proposal: &Decide) -> Decision {
    match desk.decide(world, proposal).expect("an answer") {
        Response::Decided { decision, .. } => decision,
        other => panic!("{other:?}"),
    }
}

fn refusal(world: &mut World, desk: &mut Desk, proposal: &Decide) -> Refusal {
    match desk.decide(world, proposal).expect("an answer") {
        Response::Refused { refusal, .. } => refusal,
        other => panic!("{other:?}"),
    }
}

fn status(world: &mut World, desk: &mut Desk, gtid: Gtid) -> TransactionStatus {
    match desk
        .ask(world, |request| Request::Outcome { request, gtid })
        .expect("an answer")
    {
        Response::Status { status, .. } => status,
        other => panic!("{other:?}"),
    }
}

fn inquire(world: &mut World, desk: &Desk, gtid: Gtid, named: &NamedBranch) -> Answer {
    let (branch, lineage) = (branch(gtid, named), lineage(world));
    let deadline = gtid.began_at().plus(3_000);
    world.ask(
        desk.session,
        Request::Inquire {
            branch,
            resource: named.resource,
            lineage,
            deadline,
        },
    );
    match desk.wait(world).expect("an answer") {
        Response::Answered { answer, .. } => answer,
        other => panic!("{other:?}"),
    }
}

/// Two prepared branches, one in each participant's database.
fn two_branches(world: &mut World, gtid: Gtid) -> Vec<NamedBranch> {
    let branches = vec![named(1, resource(0)), named(2, resource(1))];
    branches.iter().for_each(|one| prepare(world, gtid, one));
    branches
}

fn is_invalid(refusal: &Refusal, part: &str) -> bool {
    matches!(refusal, Refusal::Invalid { text } if text.contains(part))
}

/// The test's own session registers a database that never acknowledges.
fn register_silent(world: &mut World, desk: &mut Desk) -> ResourceId {
    let silent = resource(99);
    let answer = desk
        .ask(world, |request| Request::Register {
            request,
            lineage: None,
            resources: vec![silent],
        })
        .expect("an answer");
    assert!(matches!(answer, Response::Registered { .. }), "{answer:?}");
    silent
}

/// T5, B4, B5: the record names every branch; the same set is a retry, another one is told so.
#[test]
fn t5_a_commit_of_other_branches_is_a_mismatch_and_of_the_same_a_retry() {
    let (mut world, mut desk) = stage(1);
    let gtid = gtid(&world, 1, 0);
    let branches = two_branches(&mut world, gtid);
    let both = commit(&world, gtid, branches.clone());
    assert_eq!(decide(&mut world, &mut desk, &both), Decision::Committed);
    assert_eq!(decide(&mut world, &mut desk, &both), Decision::Committed);
    let one = commit(&world, gtid, branches[..1].to_vec());
    assert_eq!(decide(&mut world, &mut desk, &one), Decision::Mismatch);
    let counted = propose(
        &world,
        gtid,
        Proposal::Commit {
            branches: branches.clone(),
            read_only_count: 1,
        },
    );
    assert_eq!(decide(&mut world, &mut desk, &counted), Decision::Mismatch);
    // B7: an abort that comes second is told what the log says.
    let late_abort = abort(&world, gtid);
    assert_eq!(decide(&mut world, &mut desk, &late_abort), Decision::Committed);
    // T5: an execution that the record does not name is told Aborted.
    let unnamed = NamedBranch {
        execution: ExecutionId(7),
        ..branches[0].clone()
    };
    assert_eq!(inquire(&mut world, &desk, gtid, &unnamed), Answer::Aborted);
    assert_eq!(inquire(&mut world, &desk, gtid, &branches[0]), Answer::Committed);
    converge_after(&mut world, 500_000).expect("comes to rest");
}

/// B7, B8: the first proposal in the log is the outcome, and its cause is told to everybody, after a leader change too.
#[test]
fn b8_a_repeated_proposal_gets_the_same_answer_from_the_next_leader() {
    let (mut world, mut desk) = stage(2);
    let gtid = gtid(&world, 1, 0);
    let branches = two_branches(&mut world, gtid);
    let first = abort(&world, gtid);
    let Decision::Aborted(cause) = decide(&mut world, &mut desk, &first) else {
        panic!("aborted")
    };
    let late = commit(&world, gtid, branches);
    assert_eq!(
        decide(&mut world, &mut desk, &late),
        Decision::Aborted(cause.clone())
    );
    world
        .on_fault(Fault::CrashLeader(UnsyncedWrite::Lost))
        .expect("crash");
    world
        .run_while_not(ELECTION_US, "another leader", |world| world.serving().is_some())
        .expect("elected");
    let mut desk = Desk::at_leader(&mut world);
    assert_eq!(decide(&mut world, &mut desk, &late), Decision::Aborted(cause));
    converge_after(&mut world, 500_000).expect("comes to rest");
}

/// T6: an abort that names branches is told to them at once; nobody waits for the deadline.
#[test]
fn t6_an_abort_is_told_to_the_branches_it_names() {
    let (mut world, mut desk) = stage(3);
    let gtid = gtid(&world, 1, 0);
    let branches = two_branches(&mut world, gtid);
    let Proposal::Abort { cause, .. } = abort(&world, gtid).proposal else {
        panic!("an abort")
    };
    let proposal = propose(
        &world,
        gtid,
        Proposal::Abort {
            cause,
            branches: branches.clone(),
        },
    );
    assert!(matches!(
        decide(&mut world, &mut desk, &proposal),
        Decision::Aborted(_)
    ));
    world.run_for(5_000).expect("nothing is wrong");
    for one in &branches {
        assert_eq!(
            world.databases.state(one.resource, branch(gtid, one)),
            Some(RowState::Aborted)
        );
    }
}

/// T6, B9: before the deadline an unknown transaction is undecided; after it the inquiry itself proposes the abort,
/// however many ask, and a late commit finds it.
#[test]
fn t6_an_inquiry_past_the_deadline_aborts_through_the_log() {
    let (mut world, mut desk) = stage(4);
    let gtid = gtid(&world, 1, 0);
    let branch = named(1, ResourceId([9; 16]));
    assert_eq!(inquire(&mut world, &desk, gtid, &branch), Answer::Undecided);
    assert_eq!(status(&mut world, &mut desk, gtid), TransactionStatus::Undecided);
    world.run_for(3_100_000).expect("nothing is wrong");
    let lineage = lineage(&world);
    let slots = world.checkers.log.decided_up_to().0;
    for execution in 0..20 {
        let branch = synod_tests::script::branch(
            gtid,
            &NamedBranch {
                execution: ExecutionId(execution),
                ..branch.clone()
            },
        );
        let deadline = gtid.began_at().plus(3_000);
        world.ask(
            desk.session,
            Request::Inquire {
                branch,
                resource: ResourceId([9; 16]),
                lineage,
                deadline,
            },
        );
    }
    world.run_for(100_000).expect("nothing is wrong");
    let answers = world.take_responses(desk.session);
    assert_eq!(answers.len(), 20);
    assert!(
        answers.iter().all(|one| matches!(
            one,
            Response::Answered {
                answer: Answer::Aborted,
                ..
            }
        )),
        "{answers:?}"
    );
    assert_eq!(
        world.checkers.log.decided_up_to().0,
        slots + 1,
        "one proposal for all of them"
    );
    let late = commit(&world, gtid, vec![named(1, resource(0))]);
    let Decision::Aborted(cause) = decide(&mut world, &mut desk, &late) else {
        panic!("aborted")
    };
    assert_eq!(cause.kind, AbortKind::Deadline);
}

/// T11, T14 and the bounds of a proposal: each gets its own refusal, and nothing enters the log.
#[test]
fn what_breaks_a_rule_is_refused_by_name_and_leaves_no_trace() {
    let (mut world, mut desk) = stage(5);
    let ours = gtid(&world, 1, 0);
    let good = commit(&world, ours, vec![named(1, resource(0))]);
    let slots = world.checkers.log.decided_up_to();

    let foreign = Decide {
        lineage: Lineage([7; 16]),
        ..good.clone()
    };
    let expected = lineage(&world);
    assert_eq!(
        refusal(&mut world, &mut desk, &foreign),
        Refusal::ForeignLineage { expected }
    );

    let guarded = Decide {
        guards: vec![Guard {
            name: Bytes::from_static(b"lock"),
            token: 1,
        }],
        ..good.clone()
    };
    assert!(is_invalid(&refusal(&mut world, &mut desk, &guarded), "guards"));

    let unknown = Decide {
        proposal: commit(&world, ours, vec![named(1, resource(50))]).proposal,
        ..good.clone()
    };
    assert!(is_invalid(
        &refusal(&mut world, &mut desk, &unknown),
        "never registered"
    ));

    let empty = commit(&world, ours, vec![]);
    assert!(is_invalid(
        &refusal(&mut world, &mut desk, &empty),
        "at least one branch"
    ));

    let endless = Decide {
        deadline: ours.began_at().plus(300_001),
        ..good.clone()
    };
    assert!(is_invalid(&refusal(&mut world, &mut desk, &endless), "deadline"));

    let future = gtid(&world, 2, 11_000);
    let early = commit(&world, future, vec![named(1, resource(0))]);
    assert!(matches!(
        refusal(&mut world, &mut desk, &early),
        Refusal::FromFuture {
            ahead_ms: 10_900..=11_000
        }
    ));

    let answer = desk.ask(&mut world, |request| Request::Decide {
        request,
        command: Bytes::from_static(b"\x02"),
    });
    assert!(matches!(answer, Ok(Response::Refused { refusal, .. }) if is_invalid(&refusal, "malformed")));

    let answer = desk.ask(&mut world, |request| Request::Register {
        request,
        lineage: Some(Lineage([7; 16])),
        resources: vec![resource(0)],
    });
    assert!(
        matches!(
            answer,
            Ok(Response::Refused {
                refusal: Refusal::ForeignLineage { .. },
                ..
            })
        ),
        "{answer:?}"
    );
    assert_eq!(
        world.checkers.log.decided_up_to(),
        slots,
        "nothing entered the log"
    );

    // T5: a commit of read-only votes alone is logged, with their count.
    let read_only = propose(
        &world,
        ours,
        Proposal::Commit {
            branches: vec![],
            read_only_count: 2,
        },
    );
    assert_eq!(decide(&mut world, &mut desk, &read_only), Decision::Committed);
}

/// T14: bounded by count. What is known is still answered, what is new is refused, and nothing of it is lost.
#[test]
fn t14_a_full_register_refuses_new_gtids_as_overloaded() {
    let adapt = |config: &mut synod_coordinator_core::replica::Config| config.limits.register_count_max = 3;
    let (mut world, _) = settled_with(Setup::scripted(6, 3), 1, adapt).expect("settles");
    let mut desk = Desk::at_leader(&mut world);
    let proposals: Vec<Decide> = (1..=4)
        .map(|number| abort(&world, gtid(&world, number, 0)))
        .collect();
    for proposal in &proposals[..3] {
        assert!(matches!(
            decide(&mut world, &mut desk, proposal),
            Decision::Aborted(_)
        ));
    }
    assert!(matches!(
        refusal(&mut world, &mut desk, &proposals[3]),
        Refusal::Overloaded { .. }
    ));
    assert!(matches!(
        decide(&mut world, &mut desk, &proposals[0]),
        Decision::Aborted(_)
    ));
}

/// A20: a queue of one, a pipeline of one: the third at a time is told so, at once.
#[test]
fn a_full_queue_refuses_as_overloaded() {
    let adapt = |config: &mut synod_coordinator_core::replica::Config| {
        config.limits.queue_count_max = 1;
        config.limits.pipeline_depth = 1;
    };
    let (mut world, _) = settled_with(Setup::scripted(7, 3), 1, adapt).expect("settles");
    let mut desk = Desk::at_leader(&mut world);
    for number in 1..=3 {
        let command = abort(&world, gtid(&world, number, 0)).encode();
        let request = desk.number();
        world.ask(desk.session, Request::Decide { request, command });
    }
    world.run_for(100_000).expect("nothing is wrong");
    let answers = world.take_responses(desk.session);
    let refused = answers.iter().filter(|one| {
        matches!(
            one,
            Response::Refused {
                refusal: Refusal::Overloaded { .. },
                ..
            }
        )
    });
    assert_eq!((answers.len(), refused.count()), (3, 2), "{answers:?}");
}

/// A5, T10: a follower tells what it has applied, and sends every other question to the leader.
#[test]
fn a5_a_follower_tells_positive_facts_only() {
    let (mut world, mut desk) = stage(8);
    let known = gtid(&world, 1, 0);
    let unknown = gtid(&world, 2, 0);
    let proposal = abort(&world, known);
    decide(&mut world, &mut desk, &proposal);
    world.run_for(200_000).expect("nothing is wrong");
    let leader = world.serving();
    let follower = world
        .replicas()
        .into_iter()
        .find(|one| Some(*one) != leader)
        .expect("a follower");
    let mut desk = Desk::open(&mut world, follower);
    assert!(matches!(
        status(&mut world, &mut desk, known),
        TransactionStatus::Aborted(_)
    ));
    let answer = desk
        .ask(&mut world, |request| Request::Outcome {
            request,
            gtid: unknown,
        })
        .expect("an answer");
    assert!(
        matches!(&answer, Response::Refused { refusal: Refusal::NotLeader { leader: told }, .. } if *told == leader)
    );
    let listed = desk
        .ask(&mut world, |request| Request::List {
            request,
            after: None,
            unfinished_only: false,
            count_max: 10,
        })
        .expect("an answer");
    assert!(
        matches!(&listed, Response::Listed { transactions, .. } if transactions.len() == 1),
        "{listed:?}"
    );
}

/// T8, B10, J7: a hazard is no acknowledgement; the branch stays open until its database acknowledges or an operator,
/// by name, takes it as settled.
#[test]
fn j7_an_operator_settles_a_branch_that_never_acknowledges() {
    let (mut world, mut desk) = stage(9);
    let silent = register_silent(&mut world, &mut desk);
    let gtid = gtid(&world, 1, 0);
    let named = named(1, silent);
    let id = branch(gtid, &named);
    let proposal = commit(&world, gtid, vec![named]);
    let request = desk.number();
    world.ask(
        desk.session,
        Request::Decide {
            request,
            command: proposal.encode(),
        },
    );
    world.run_for(50_000).expect("nothing is wrong");
    let told = world.take_responses(desk.session);
    let delivery = Response::Deliver {
        branch: id,
        resource: silent,
        outcome: Outcome::Committed,
    };
    assert_eq!(
        told,
        vec![
            delivery,
            Response::Decided {
                request,
                decision: Decision::Committed
            }
        ]
    );

    world.ask(
        desk.session,
        Request::Hazard {
            branch: id,
            resource: silent,
            text: "row lock lost".to_string(),
        },
    );
    let TransactionStatus::Committed { branches, .. } = status(&mut world, &mut desk, gtid) else {
        panic!("committed")
    };
    assert_eq!(
        branches[0].delivery,
        DeliveryStatus::Hazard("row lock lost".to_string())
    );

    let settle = |author: &str, branch| {
        let (author, reason) = (author.to_string(), "looked at the database".to_string());
        move |request| Request::Settle {
            request,
            branch,
            author,
            reason,
        }
    };
    let anonymous = desk.ask(&mut world, settle(" ", id)).expect("an answer");
    assert!(
        matches!(
            anonymous,
            Response::Refused {
                refusal: Refusal::Invalid { .. },
                ..
            }
        ),
        "{anonymous:?}"
    );
    let other = synod_proto::ids::BranchId {
        execution: ExecutionId(0),
        ..id
    };
    let unknown = desk.ask(&mut world, settle("ann", other)).expect("an answer");
    assert!(
        matches!(
            unknown,
            Response::Refused {
                refusal: Refusal::NotFound { .. },
                ..
            }
        ),
        "{unknown:?}"
    );

    let waiting = desk.number();
    world.ask(
        desk.session,
        Request::AwaitDelivery {
            request: waiting,
            gtid,
        },
    );
    world.databases.note_settled(id);
    let settling = desk.number();
    world.ask(desk.session, settle("ann", id)(settling));
    world.run_for(200_000).expect("nothing is wrong");
    let told = world.take_responses(desk.session);
    assert!(
        told.contains(&Response::Delivered {
            request: waiting,
            gtid
        }),
        "{told:?}"
    );
    assert!(
        told.contains(&Response::Decided {
            request: settling,
            decision: Decision::Settled
        }),
        "{told:?}"
    );
    let TransactionStatus::Committed { branches, .. } = status(&mut world, &mut desk, gtid) else {
        panic!("committed")
    };
    assert_eq!(branches[0].delivery, DeliveryStatus::Settled);
    converge_after(&mut world, 500_000).expect("nothing is unfinished");
}

/// T16, Gray and Lamport: the new leader takes up every unfinished delivery; who waits is sent to it and waits there.
#[test]
fn t16_waiting_for_delivery_goes_on_at_the_next_leader() {
    let (mut world, mut desk) = stage(10);
    let silent = register_silent(&mut world, &mut desk);
    let gtid = gtid(&world, 1, 0);
    let named = named(1, silent);
    let id = branch(gtid, &named);
    prepare(&mut world, gtid, &named);
    let proposal = commit(&world, gtid, vec![named]);
    let request = desk.number();
    world.ask(
        desk.session,
        Request::Decide {
            request,
            command: proposal.encode(),
        },
    );
    world.run_for(50_000).expect("nothing is wrong");
    let waiting = desk.number();
    world.ask(
        desk.session,
        Request::AwaitDelivery {
            request: waiting,
            gtid,
        },
    );
    world.run_for(50_000).expect("nothing is wrong");
    world.take_responses(desk.session);
    let old = world.serving().expect("a leader");
    world.on_fault(Fault::Drain(old)).expect("resigns");
    world.run_for(50_000).expect("nothing is wrong");
    let refused = Response::Refused {
        request: waiting,
        refusal: Refusal::NotLeader { leader: None },
    };
    assert_eq!(world.take_responses(desk.session), vec![refused]);
    assert!(world.ended_sessions.contains(&desk.session));

    world
        .run_while_not(ELECTION_US, "another leader", |world| world.serving().is_some())
        .expect("elected");
    let mut desk = Desk::at_leader(&mut world);
    let waiting = desk.number();
    world.ask(
        desk.session,
        Request::AwaitDelivery {
            request: waiting,
            gtid,
        },
    );
    let registering = desk.number();
    let lineage = Some(lineage(&world));
    world.ask(
        desk.session,
        Request::Register {
            request: registering,
            lineage,
            resources: vec![silent],
        },
    );
    world.run_for(50_000).expect("nothing is wrong");
    let told = world.take_responses(desk.session);
    assert!(
        told.contains(&Response::Deliver {
            branch: id,
            resource: silent,
            outcome: Outcome::Committed
        }),
        "{told:?}"
    );
    world.databases.finish(silent, id, Outcome::Committed);
    world.ask(
        desk.session,
        Request::Acknowledge {
            branch: id,
            resource: silent,
        },
    );
    assert_eq!(
        desk.wait(&mut world),
        Ok(Response::Delivered {
            request: waiting,
            gtid
        })
    );
    converge_after(&mut world, 500_000).expect("comes to rest");
}

/// T9, B10, B11: the watermark passes finished outcomes, which are then Expired, and never an unfinished commit.
#[test]
fn t9_the_watermark_passes_what_is_finished_and_keeps_what_is_not() {
    let (mut world, mut desk) = stage(11);
    let silent = register_silent(&mut world, &mut desk);
    let (finished, open) = (gtid(&world, 1, 0), gtid(&world, 2, 0));
    let branches = two_branches(&mut world, finished);
    let first = commit(&world, finished, branches.clone());
    decide(&mut world, &mut desk, &first);
    let left = named(9, silent);
    prepare(&mut world, open, &left);
    let second = commit(&world, open, vec![left.clone()]);
    let request = desk.number();
    world.ask(
        desk.session,
        Request::Decide {
            request,
            command: second.encode(),
        },
    );
    world.run_for(620_000_000).expect("nothing is wrong");
    world.take_responses(desk.session);

    let slots = world.checkers.log.decided_up_to();
    assert_eq!(
        status(&mut world, &mut desk, finished),
        TransactionStatus::Expired
    );
    assert_eq!(decide(&mut world, &mut desk, &first), Decision::Expired);
    // Every branch that a commit names had acknowledged, so whoever still asks is not named.
    assert_eq!(
        inquire(&mut world, &desk, finished, &named(77, resource(0))),
        Answer::Aborted
    );
    let unheard_of = Gtid::new(finished.began_at(), [200; 10]);
    let late = commit(&world, unheard_of, branches);
    assert_eq!(decide(&mut world, &mut desk, &late), Decision::Expired);
    assert_eq!(
        world.checkers.log.decided_up_to(),
        slots,
        "nothing of this entered the log"
    );

    assert_eq!(inquire(&mut world, &desk, open, &left), Answer::Committed);
    assert_eq!(decide(&mut world, &mut desk, &second), Decision::Committed);
    world
        .databases
        .finish(silent, branch(open, &left), Outcome::Committed);
    world.ask(
        desk.session,
        Request::Acknowledge {
            branch: branch(open, &left),
            resource: silent,
        },
    );
    world.run_for(200_000).expect("nothing is wrong");
    assert_eq!(
        world.checkers.log.reference().outcomes().count(),
        0,
        "the register is empty"
    );
    converge_after(&mut world, 500_000).expect("comes to rest");
}

/// T14, A3, B21: one clock that lies moves neither stamp nor watermark, wherever it stands.
#[test]
fn t14_one_lying_clock_moves_no_watermark() {
    let century_ms = 100 * 365 * 86_400_000;
    for offset_ms in [century_ms, -3_600_000] {
        for lies_at_leader in [true, false] {
            let (mut world, mut desk) = stage(12);
            let leader = world.serving().expect("a leader");
            let liar = world
                .replicas()
                .into_iter()
                .find(|one| (*one == leader) == lies_at_leader)
                .expect("a replica");
            world.on_fault(Fault::WallClock(liar, offset_ms)).expect("lies");
            world.run_for(500_000).expect("nothing is wrong");
            let gtid = gtid(&world, 1, 0);
            let branches = two_branches(&mut world, gtid);
            let proposal = commit(&world, gtid, branches);
            assert_eq!(decide(&mut world, &mut desk, &proposal), Decision::Committed);
            let truth = synod_tests::clocks::true_wall(world.now());
            let reference = world.checkers.log.reference();
            assert!(
                reference.stamp() <= truth.plus(100),
                "offset {offset_ms} at leader: {lies_at_leader}"
            );
            assert!(reference.mark() <= UnixMillis(truth.0 - 599_000));
            let record = reference.outcomes().record(gtid).expect("a record");
            assert!(matches!(record.verdict, Verdict::Committed { .. }));
            converge_after(&mut world, 500_000).expect("comes to rest");
        }
    }
}

/// A leader whose clock is an hour behind still aborts what is past its deadline, by the median of the replicas' clocks:
/// an abort is safe at any time, and prepared branches hold locks.
#[test]
fn t14_a_slow_clock_at_the_leader_keeps_no_branch_in_doubt() {
    let (mut world, mut desk) = stage(13);
    let leader = world.serving().expect("a leader");
    world
        .on_fault(Fault::WallClock(leader, -3_600_000))
        .expect("lies");
    let gtid = gtid(&world, 1, 0);
    let left = named(1, resource(0));
    prepare(&mut world, gtid, &left);
    world.run_for(6_000_000).expect("nothing is wrong");
    assert_eq!(
        world.databases.state(resource(0), branch(gtid, &left)),
        Some(RowState::Aborted)
    );
    assert!(matches!(
        status(&mut world, &mut desk, gtid),
        TransactionStatus::Aborted(_)
    ));
}
