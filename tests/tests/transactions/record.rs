//! The record of a transaction: who is told what of it, when and by whom (T5, T6, T10; traps A5, B4, B5, B7 to B9).

use crate::{decide, inquire, stage, status, two_branches};
use synod_proto::command::{NamedBranch, Proposal};
use synod_proto::ids::{ExecutionId, ResourceId};
use synod_proto::session::{AbortKind, Answer, Decision, Refusal, Request, Response, TransactionStatus};
use synod_tests::faults::Fault;
use synod_tests::run::{converge_after, resource};
use synod_tests::script::{Desk, ELECTION_US, abort, commit, gtid, lineage, named, propose};
use synod_tests::store::UnsyncedWrite;

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
