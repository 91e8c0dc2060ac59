//! Delivery: every named branch is told until it acknowledges, whoever leads (T6, T8, T16; traps B10, J7).

use crate::{decide, register_silent, stage, status, two_branches};
use synod_proto::command::Proposal;
use synod_proto::ids::ExecutionId;
use synod_proto::session::{
    Decision, DeliveryStatus, Outcome, Refusal, Request, Response, TransactionStatus,
};
use synod_tests::actors::databases::RowState;
use synod_tests::faults::Fault;
use synod_tests::run::converge_after;
use synod_tests::script::{Desk, ELECTION_US, abort, branch, commit, gtid, lineage, named, prepare, propose};

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
