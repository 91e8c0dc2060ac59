//! Delivery (step 5): who is told, how often, and whose word ends it.

use super::coordinator::{
    DATABASE, LINEAGE, SESSION, abort, branch, commit, decided, deliver, gtid, named, serving, told,
};
use super::{Bench, Out, WALL};
use crate::effects::{Notice, Told};
use crate::replica::{Ignored, Input, RoleName};
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use synod_proto::command::{Decide, NamedBranch, Proposal};
use synod_proto::ids::{BranchId, CallId, Gtid, RequestId, ResourceId, SessionId, UnixMillis};
use synod_proto::limits::BRANCH_COUNT_MAX;
use synod_proto::session::{
    Answer, BranchStatus, Decision, DeliveryStatus, Outcome, Request, Response, TransactionStatus,
};

const LATER: SessionId = SessionId(6);
const OTHER_DATABASE: ResourceId = ResourceId([4; 16]);

fn register(resource: ResourceId) -> Request {
    Request::Register {
        request: RequestId(9),
        lineage: Some(LINEAGE),
        resources: vec![resource],
    }
}

fn registered(session: SessionId) -> Told {
    Told {
        session,
        response: Response::Registered {
            request: RequestId(9),
            lineage: LINEAGE,
        },
    }
}

fn acknowledge(call: u64, resource: ResourceId) -> Request {
    Request::Acknowledge {
        branch: branch(call),
        resource,
    }
}

impl Bench {
    fn ask_as(&mut self, session: SessionId, request: Request) -> Out {
        self.step(Input::Request { session, request })
    }
}

/// A session that goes away while the log takes its database is not delivered to afterwards: what is told to nobody would
/// count as told. (It used to stay among the database's sessions, and got every abort and low-water mark.)
#[test]
fn a_session_that_closed_during_its_enrolment_is_told_nothing() {
    let mut bench = serving();
    let enrolling = bench.ask_as(LATER, register(OTHER_DATABASE));
    bench.step(Input::SessionClosed(LATER));
    assert_eq!(bench.sync(&enrolling).told, vec![]);
    let there = NamedBranch {
        resource: OTHER_DATABASE,
        ..named(1)
    };
    let proposal = Proposal::Commit {
        branches: vec![there],
        read_only_count: 0,
    };
    let told_on_commit = bench.decide(
        1,
        &Decide {
            proposal,
            ..commit(&[1])
        },
    );
    assert_eq!(
        told_on_commit,
        vec![decided(1, Decision::Committed)],
        "nobody can deliver to it"
    );
    let next = SessionId(7);
    let response = Response::Deliver {
        branch: branch(1),
        resource: OTHER_DATABASE,
        outcome: Outcome::Committed,
    };
    let expected = vec![
        registered(next),
        Told {
            session: next,
            response,
        },
    ];
    assert_eq!(bench.ask_as(next, register(OTHER_DATABASE)).told, expected);
}

/// A session that repeats its registration is told nothing twice; a further session of the database is told at once what
/// the first one may have lost (traps C9: any process that reaches the database can finish the branch).
#[test]
fn a_repeated_registration_repeats_nothing_and_a_new_session_is_told_what_is_open() {
    let mut bench = serving();
    bench.decide(1, &commit(&[1]));
    assert_eq!(
        bench.ask(register(DATABASE)),
        Out {
            told: vec![registered(SESSION)],
            ..Out::default()
        }
    );
    let deliver = Told {
        session: LATER,
        ..deliver(1)
    };
    let told = vec![registered(LATER), deliver];
    assert_eq!(
        bench.ask_as(LATER, register(DATABASE)),
        Out {
            told,
            ..Out::default()
        }
    );
}

/// T11: only the database that the record names can acknowledge. A copy of it under another id cannot.
#[test]
fn t11_another_databases_acknowledgement_counts_for_nothing() {
    let mut bench = serving();
    bench.decide(1, &commit(&[1]));
    for request in [
        acknowledge(1, OTHER_DATABASE),
        Request::Hazard {
            branch: branch(1),
            resource: OTHER_DATABASE,
            text: "gone".to_string(),
        },
    ] {
        assert_eq!(bench.ask(request), Out::default());
        assert_eq!(bench.replica.ignored(), &[Ignored::UnknownDelivery]);
    }
    assert_eq!(
        (
            bench.replica.status().unfinished_count,
            bench.replica.status().hazard_count
        ),
        (1, 0)
    );
}

/// "A transaction can commit only if ... no RM has entered the aborted state" (CTC, section 2): what a branch reports after
/// the commit is a hazard, shown and never an abort, nor an acknowledgement (T8; traps B6).
#[test]
fn b6_a_hazard_after_the_commit_changes_no_outcome() {
    let mut bench = serving();
    bench.decide(1, &commit(&[1, 2]));
    let hazard = Request::Hazard {
        branch: branch(1),
        resource: DATABASE,
        text: "rolled back by hand".to_string(),
    };
    let notice = Notice::Hazard {
        branch: branch(1),
        text: "rolled back by hand".to_string(),
    };
    assert_eq!(
        bench.ask(hazard.clone()),
        Out {
            notices: vec![notice],
            ..Out::default()
        }
    );
    assert_eq!(bench.ask(hazard), Out::default(), "no news");
    let inquiry = Request::Inquire {
        branch: branch(1),
        resource: DATABASE,
        lineage: LINEAGE,
        deadline: WALL.plus(30_000),
    };
    let answered = told(Response::Answered {
        branch: branch(1),
        answer: Answer::Committed,
    });
    assert_eq!(bench.ask(inquiry).told, vec![answered]);
    let status = |call: u64, delivery| BranchStatus {
        call: CallId(call),
        execution: named(call).execution,
        resource: DATABASE,
        delivery,
    };
    let branches = vec![
        status(1, DeliveryStatus::Hazard("rolled back by hand".to_string())),
        status(2, DeliveryStatus::Pending),
    ];
    let status = TransactionStatus::Committed {
        branches,
        read_only_count: 0,
    };
    let request = RequestId(2);
    assert_eq!(
        bench
            .ask(Request::Outcome {
                request,
                gtid: gtid()
            })
            .told,
        vec![told(Response::Status { request, status })]
    );
}

/// B19, B20: branches that never answer fill a database's window; after a few attempts they stop to hold up the others.
#[test]
fn b20_stuck_branches_do_not_hold_up_the_others() {
    let mut bench = serving();
    let calls: Vec<u64> = (1..=BRANCH_COUNT_MAX as u64).collect();
    let in_window = 1024 / BRANCH_COUNT_MAX;
    for number in 1..=in_window {
        let gtid = Gtid::new(WALL, [u8::try_from(number).expect("small"); 10]);
        assert_eq!(
            bench
                .decide(
                    1,
                    &Decide {
                        gtid,
                        ..commit(&calls)
                    }
                )
                .len(),
            BRANCH_COUNT_MAX + 1
        );
    }
    let last = Gtid::new(WALL.plus(1), [1; 10]);
    assert_eq!(
        bench.decide(
            2,
            &Decide {
                gtid: last,
                ..commit(&[1])
            }
        ),
        vec![decided(2, Decision::Committed)]
    );
    let branch = BranchId {
        gtid: last,
        ..branch(1)
    };
    let deliver = told(Response::Deliver {
        branch,
        resource: DATABASE,
        outcome: Outcome::Committed,
    });
    let waited_s = (0..60).find(|_| bench.wait(1_000_000).told.contains(&deliver));
    assert!(
        waited_s.is_some(),
        "the branch behind the stuck ones was never told"
    );
}

/// Gray and Lamport: the transaction manager repeats its messages, since they may be lost (CTC, section 4). A commit is
/// repeated until it is acknowledged; an abort is told once, and inquiries do the rest (T6).
#[test]
fn t6_a_commit_is_repeated_and_an_abort_is_told_once() {
    let mut bench = serving();
    let other = Gtid::new(WALL, [4; 10]);
    let Proposal::Abort { cause, .. } = abort().proposal else {
        panic!("an abort")
    };
    let proposal = Proposal::Abort {
        cause: cause.clone(),
        branches: vec![named(3)],
    };
    let aborted = BranchId {
        gtid: other,
        ..branch(3)
    };
    let expected = vec![
        told(Response::Deliver {
            branch: aborted,
            resource: DATABASE,
            outcome: Outcome::Aborted,
        }),
        decided(1, Decision::Aborted(cause)),
    ];
    assert_eq!(
        bench.decide(
            1,
            &Decide {
                gtid: other,
                proposal,
                ..commit(&[1])
            }
        ),
        expected
    );
    bench.decide(2, &commit(&[1]));
    let mut repeated: Vec<Told> = Vec::new();
    for _ in 0..300 {
        let told = bench.wait(1_000_000).told;
        repeated.extend(
            told.into_iter()
                .filter(|told| matches!(told.response, Response::Deliver { .. })),
        );
        if bench.replica.status().role != RoleName::Serving {
            panic!("a replica alone keeps leading");
        }
    }
    assert!(repeated.len() >= 10, "at least every 30 s: {}", repeated.len());
    assert!(repeated.iter().all(|told| *told == deliver(1)), "{repeated:?}");
    bench.ask(acknowledge(1, DATABASE));
    assert_eq!(bench.wait(60_000_000).told, vec![]);
}

/// T13: a database is told up to where it may delete its proofs, and which commits below are still to be delivered to it;
/// every mark once. Another database is not told of them.
#[test]
fn t13_a_low_water_mark_lists_what_is_unfinished_below_it() {
    let mut bench = serving();
    let enrolling = bench.ask_as(LATER, register(OTHER_DATABASE));
    bench.sync(&enrolling);
    bench.decide(1, &commit(&[1]));
    bench.wait(700_000_000);
    let now = bench.now.wall;
    bench.decide(
        2,
        &Decide {
            gtid: Gtid::new(now, [5; 10]),
            deadline: now,
            ..abort()
        },
    );
    let mark = bench.replica.status().mark;
    assert_eq!(
        mark,
        now.minus(600_000),
        "T14: the mark trails the stamp by the lag"
    );
    let low_water = |bench: &mut Bench| -> Vec<Told> {
        let is_low_water = |told: &Told| matches!(told.response, Response::LowWater { .. });
        bench
            .wait(16_000_000)
            .told
            .into_iter()
            .filter(is_low_water)
            .collect()
    };
    let mark_for = |session, resource, mark: UnixMillis, unfinished: Vec<Gtid>| Told {
        session,
        response: Response::LowWater {
            resource,
            mark,
            unfinished,
        },
    };
    let expected = vec![
        mark_for(LATER, OTHER_DATABASE, mark, vec![]),
        mark_for(SESSION, DATABASE, mark, vec![gtid()]),
    ];
    assert_eq!(low_water(&mut bench), expected);
    assert_eq!(low_water(&mut bench), vec![], "the mark has not moved");
}

/// B19, B20: a branch that was told often waits long for the next time, but not for a session that comes back: that one is
/// told at once.
#[test]
fn b19_a_returning_session_is_told_what_was_told_often() {
    let mut bench = serving();
    bench.decide(1, &commit(&[1]));
    let deliver = |session| crate::effects::Told {
        session: SessionId(session),
        response: Response::Deliver {
            branch: branch(1),
            resource: DATABASE,
            outcome: Outcome::Committed,
        },
    };
    let repeats = (0..120).filter(|_| !bench.wait(500_000).told.is_empty()).count();
    assert!(repeats >= 3, "told {repeats} times in a minute");
    let request = Request::Register {
        request: RequestId(7),
        lineage: Some(LINEAGE),
        resources: vec![DATABASE],
    };
    let out = bench.step(Input::SessionClosed(SESSION));
    assert_eq!(out.told, vec![]);
    let out = bench.step(Input::Request {
        session: SessionId(77),
        request,
    });
    assert_eq!(out.told.last(), Some(&deliver(77)));
}

/// B19: the branches of one transaction are scheduled together, but one that has acknowledged takes nothing of the others'
/// repeats with it. Who waits for the last acknowledgement is told in the order of asking, without those that left.
#[test]
fn b19_a_branch_is_repeated_after_its_sibling_has_acknowledged() {
    let mut bench = serving();
    let expected = vec![deliver(1), deliver(2), decided(1, Decision::Committed)];
    assert_eq!(bench.decide(1, &commit(&[1, 2])), expected);
    assert_eq!(bench.ask(acknowledge(1, DATABASE)).told, vec![]);
    let repeats = |bench: &mut Bench| -> Vec<Told> {
        (0..80)
            .flat_map(|_| bench.wait(500_000).told)
            .filter(|told| matches!(told.response, Response::Deliver { .. }))
            .collect()
    };
    for _ in 0..3 {
        let repeated = repeats(&mut bench);
        assert!(
            !repeated.is_empty() && repeated.iter().all(|told| *told == deliver(2)),
            "{repeated:?}"
        );
    }
    let third = SessionId(7);
    let await_delivery = |number| Request::AwaitDelivery {
        request: RequestId(number),
        gtid: gtid(),
    };
    for (session, number) in [(LATER, 21), (third, 22), (SESSION, 23), (LATER, 24)] {
        assert_eq!(bench.ask_as(session, await_delivery(number)).told, vec![]);
    }
    bench.step(Input::SessionClosed(LATER));
    let delivered = |session, number| Told {
        session,
        response: Response::Delivered {
            request: RequestId(number),
            gtid: gtid(),
        },
    };
    assert_eq!(
        bench.ask(acknowledge(2, DATABASE)).told,
        vec![delivered(third, 22), delivered(SESSION, 23)]
    );
    assert_eq!(repeats(&mut bench), vec![], "nothing is left to repeat");
}
