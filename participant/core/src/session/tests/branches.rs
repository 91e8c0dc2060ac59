//! Branches that voted: they ask, are told, are finished, and a commit is acknowledged on proof (T8).

use super::*;
use crate::session::branches::ABSENT_COUNT_MIN;
use synod_proto::session::Answer;

const OTHER: ResourceId = ResourceId([3; 16]);
const FAR_DEADLINE: UnixMillis = UnixMillis(WALL_AT_START + 300_000);

fn prepared(number: u8) -> Input {
    Input::Prepared {
        branch: branch(number),
        resource: RESOURCE,
        lineage: LINEAGE,
        deadline: FAR_DEADLINE,
    }
}

fn deliver(connection: u64, number: u8, outcome: Outcome) -> Input {
    received(
        connection,
        Response::Deliver {
            branch: branch(number),
            resource: RESOURCE,
            outcome,
        },
    )
}

fn answered(number: u8, answer: Answer) -> Input {
    received(
        1,
        Response::Answered {
            branch: branch(number),
            answer,
        },
    )
}

fn finish(number: u8, outcome: Outcome) -> Effect {
    Effect::Finish {
        branch: branch(number),
        resource: RESOURCE,
        outcome,
    }
}

fn finished(number: u8, outcome: Outcome, finished: Finished) -> Input {
    Input::Finished {
        branch: branch(number),
        outcome,
        finished,
    }
}

fn acknowledge(number: u8) -> Effect {
    Effect::Send(Request::Acknowledge {
        branch: branch(number),
        resource: RESOURCE,
    })
}

fn inquire(number: u8) -> Effect {
    let (branch, resource) = (branch(number), RESOURCE);
    Effect::Send(Request::Inquire {
        branch,
        resource,
        lineage: LINEAGE,
        deadline: FAR_DEADLINE,
    })
}

fn listed(number: u8) -> ListedBranch {
    let (branch, prepared_at) = (branch(number), UnixMillis(WALL_AT_START - 5_000));
    ListedBranch {
        branch,
        lineage: LINEAGE,
        deadline: FAR_DEADLINE,
        prepared_at,
    }
}

fn list(branches: Vec<ListedBranch>) -> Input {
    Input::Listed {
        resource: RESOURCE,
        branches: Some(branches),
    }
}

/// The plain way: prepared, delivered, committed, acknowledged, forgotten.
#[test]
fn a_delivered_commit_is_acknowledged_after_the_store_has_it() {
    let mut session = serving();
    assert_eq!(session.step(at(1), Input::Started { branch: branch(1) }), vec![]);
    assert_eq!(session.step(at(2), prepared(1)), vec![]);
    assert_eq!(
        session.step(at(2), Input::Ended { branch: branch(1) }),
        vec![Effect::Ignored(Ignored::InDoubt)]
    );
    assert_eq!(
        session.step(at(3), deliver(1, 1, Outcome::Committed)),
        vec![finish(1, Outcome::Committed)]
    );
    let applied = finished(1, Outcome::Committed, Finished::Applied);
    assert_eq!(session.step(at(4), applied), vec![acknowledge(1)]);
    assert_eq!(session.unfinished(at(4).wall), vec![]);
}

/// B11: deliveries repeat. While one is being applied the others collapse; later ones are answered from the store's proof.
#[test]
fn duplicate_deliveries_collapse_and_later_ones_are_acknowledged_again() {
    let mut session = serving();
    assert_eq!(
        session.step(at(1), deliver(1, 1, Outcome::Committed)),
        vec![finish(1, Outcome::Committed)]
    );
    assert_eq!(
        session.step(at(2), deliver(1, 1, Outcome::Committed)),
        vec![Effect::Ignored(Ignored::FinishInFlight)]
    );
    session.step(at(3), finished(1, Outcome::Committed, Finished::Applied));
    assert_eq!(
        session.step(at(4), deliver(1, 1, Outcome::Committed)),
        vec![finish(1, Outcome::Committed)]
    );
    assert_eq!(
        session.step(at(5), finished(1, Outcome::Committed, Finished::AlreadyApplied)),
        vec![acknowledge(1)]
    );
}

/// C2, B20: a store's error is retried with a growing delay, acknowledges nothing, and delays no other branch.
#[test]
fn a_failing_store_is_tried_again_and_holds_nothing_else_up() {
    let mut session = serving();
    session.step(at(1), deliver(1, 1, Outcome::Committed));
    let failed = Finished::Failed {
        text: "locked".to_string(),
    };
    let effects = session.step(at(2), finished(1, Outcome::Committed, failed));
    let again_at = session.next_timeout().unwrap();
    assert!(again_at > at(2).monotonic.plus_duration(Duration::from_millis(49)));
    let text = "locked".to_string();
    assert_eq!(
        effects,
        vec![Effect::Notice(Notice::FinishFailed {
            branch: branch(1),
            text,
            again_at
        })]
    );
    assert_eq!(
        session.step(at(3), deliver(1, 1, Outcome::Committed)),
        vec![Effect::Ignored(Ignored::FinishScheduled)]
    );

    session.step(at(3), deliver(1, 2, Outcome::Committed));
    let applied = finished(2, Outcome::Committed, Finished::Applied);
    assert_eq!(session.step(at(4), applied), vec![acknowledge(2)]);

    let again: Vec<_> = run_until(&mut session, 150)
        .into_iter()
        .map(|(_, effect)| effect)
        .collect();
    assert_eq!(again, vec![finish(1, Outcome::Committed)]);
    assert_eq!(
        session.step(at(151), finished(1, Outcome::Committed, Finished::Applied)),
        vec![acknowledge(1)]
    );
}

/// T8, C5, C11: "unknown" of a branch that must commit is never an acknowledgement and never a rollback. It is a hazard only
/// after the patience and two listings without the branch, and it is tried again even then.
#[test]
fn unknown_is_a_hazard_only_when_it_is_certain() {
    let mut session = serving();
    let unknown = || {
        finished(
            1,
            Outcome::Committed,
            Finished::Unknown {
                detail: "no row".to_string(),
            },
        )
    };
    session.step(at(1), deliver(1, 1, Outcome::Committed));
    assert_eq!(session.step(at(2), unknown()), vec![]);

    let mut attempts = Vec::new();
    let mut hazards = Vec::new();
    let mut list_count = 0;
    while hazards.is_empty() {
        let next = session.next_timeout().unwrap();
        assert!(next.0 < 60_000_000, "no hazard within a minute");
        let now = Now {
            monotonic: next,
            wall: UnixMillis(WALL_AT_START + next.0 / 1000),
        };
        for effect in session.step(now, Input::Tick) {
            let answers = match effect {
                Effect::List { .. } => {
                    list_count += 1;
                    session.step(now, list(vec![]))
                }
                Effect::Finish { .. } => {
                    attempts.push(next);
                    session.step(now, unknown())
                }
                other => panic!("{other:?}"),
            };
            hazards.extend(answers);
        }
    }
    let text = || "no row".to_string();
    let hazard = Request::Hazard {
        branch: branch(1),
        resource: RESOURCE,
        text: text(),
    };
    assert_eq!(
        hazards,
        vec![
            Effect::Notice(Notice::Hazard {
                branch: branch(1),
                text: text()
            }),
            Effect::Send(hazard)
        ]
    );
    assert!(list_count >= ABSENT_COUNT_MIN && attempts.last() >= Some(&Timestamp(10_000_000)));
    assert_eq!(session.unfinished(at(20_000).wall)[0].hazard, Some(text()));

    // The row comes back (a database was restored to a later point): then it is a commit like any other.
    let again = run_until(&mut session, 60_000);
    assert_eq!(again[0].1, finish(1, Outcome::Committed));
    assert_eq!(
        session.step(at(60_001), finished(1, Outcome::Committed, Finished::Applied)),
        vec![acknowledge(1)]
    );
}

/// T8: as long as the store lists the branch, "unknown" is not the last word (a database that answers so while the preparing
/// session lives).
#[test]
fn unknown_while_the_store_lists_the_branch_is_no_hazard() {
    let mut session = serving();
    let unknown = || {
        finished(
            1,
            Outcome::Committed,
            Finished::Unknown {
                detail: "no row".to_string(),
            },
        )
    };
    session.step(at(1), deliver(1, 1, Outcome::Committed));
    session.step(at(2), unknown());
    let mut seen = Vec::new();
    while let Some(next) = session
        .next_timeout()
        .filter(|next| *next < Timestamp(120_000_000))
    {
        let now = Now {
            monotonic: next,
            wall: UnixMillis(0),
        };
        for effect in session.step(now, Input::Tick) {
            seen.extend(match effect {
                Effect::List { .. } => session.step(now, list(vec![listed(1)])),
                Effect::Finish { .. } => session.step(now, unknown()),
                other => vec![other],
            });
        }
    }
    assert_eq!(seen, vec![]);
}

/// T6, T8: a branch asks after one to two seconds, then less and less often, and asks on for ever.
#[test]
fn a_branch_in_doubt_asks_with_backoff() {
    let mut session = serving();
    session.step(at(0), prepared(1));
    let asked = run_until(&mut session, 120_000);
    assert!(asked.iter().all(|(_, effect)| *effect == inquire(1)), "{asked:?}");
    let times: Vec<u64> = asked.iter().map(|(ms, _)| *ms).collect();
    assert!((1_000..=2_000).contains(&times[0]), "{times:?}");
    let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        gaps[3..].iter().all(|gap| (7_499..=15_000).contains(gap)),
        "{gaps:?}"
    );
    let count = u32::try_from(times.len()).unwrap();
    let shown = Unfinished {
        branch: branch(1),
        resource: RESOURCE,
        age_ms: 120_000,
        told: None,
        inquiry_count: count,
        hazard: None,
    };
    assert_eq!(session.unfinished(at(120_000).wall), vec![shown]);
}

/// T6: the first inquiry after the deadline is an abort proposal, so it comes soon after the deadline.
#[test]
fn a_branch_asks_right_after_its_deadline() {
    let mut session = serving();
    let deadline = UnixMillis(WALL_AT_START + 300);
    session.step(
        at(0),
        Input::Prepared {
            branch: branch(1),
            resource: RESOURCE,
            lineage: LINEAGE,
            deadline,
        },
    );
    let asked = run_until(&mut session, 600);
    assert!(
        matches!(asked[..], [(300..=550, Effect::Send(Request::Inquire { .. }))]),
        "{asked:?}"
    );
}

/// T8: only the outcome ends a branch that voted; "undecided" is not one.
#[test]
fn an_answer_ends_a_branch_and_undecided_does_not() {
    let mut session = serving();
    session.step(at(0), prepared(1));
    session.step(at(0), prepared(2));
    assert_eq!(
        session.step(at(1), answered(1, Answer::Undecided)),
        vec![Effect::Ignored(Ignored::Undecided)]
    );
    assert_eq!(
        session.step(at(2), answered(1, Answer::Committed)),
        vec![finish(1, Outcome::Committed)]
    );
    assert_eq!(
        session.step(at(2), answered(2, Answer::Aborted)),
        vec![finish(2, Outcome::Aborted)]
    );
    // An abort needs no acknowledgement, and nothing is left to roll back.
    let unknown = Finished::Unknown {
        detail: "gone".to_string(),
    };
    assert_eq!(
        session.step(at(3), finished(2, Outcome::Aborted, unknown)),
        vec![]
    );
    assert_eq!(
        session.step(at(3), finished(1, Outcome::Committed, Finished::Applied)),
        vec![acknowledge(1)]
    );
    assert_eq!(session.unfinished(at(4).wall), vec![]);
}

/// C9: what an earlier life, or another instance, has prepared is asked about at once after a start.
#[test]
fn what_a_store_lists_at_the_start_asks_at_once() {
    let mut session = session();
    session.step(at(0), Input::Attach { resource: RESOURCE });
    assert_eq!(session.step(at(0), list(vec![listed(1), listed(2)])), vec![]);
    let registered = Effect::Registered { resource: RESOURCE };
    assert_eq!(
        register(&mut session, at(5), 1),
        vec![registered, inquire(1), inquire(2)]
    );

    // Later listings find branches of living processes too: those ask like everybody else.
    run_until(&mut session, 0);
    assert_eq!(
        session.step(at(6), list(vec![listed(1), listed(2), listed(3)])),
        vec![]
    );
}

/// T11, C10: a branch of another coordinator is not ours to ask about.
#[test]
fn a_listed_branch_of_another_lineage_is_left_alone() {
    let mut session = serving();
    let foreign = ListedBranch {
        lineage: Lineage([9; 16]),
        ..listed(1)
    };
    assert_eq!(session.step(at(1), list(vec![foreign])), vec![]);
    assert_eq!(session.unfinished(at(1).wall), vec![]);
}

/// Another process's branch is forgotten when its store no longer lists it; our own only by its outcome (T8, C11).
#[test]
fn a_branch_that_another_process_finished_is_forgotten() {
    let mut session = serving();
    session.step(at(1), list(vec![listed(1)]));
    session.step(at(1), prepared(2));
    session.step(at(2), list(vec![listed(2)]));
    assert_eq!(
        session.unfinished(at(2).wall).len(),
        2,
        "one absence proves nothing"
    );
    session.step(at(3), list(vec![]));
    let left: Vec<BranchId> = session
        .unfinished(at(3).wall)
        .iter()
        .map(|one| one.branch)
        .collect();
    assert_eq!(left, vec![branch(2)]);
    session.step(at(4), list(vec![]));
    assert_eq!(session.unfinished(at(4).wall).len(), 1);
}

/// C3: work of a decided transaction is cancelled, and late work is told at once; neither rests on it (T13).
#[test]
fn work_of_a_decided_transaction_is_cancelled() {
    let mut session = serving();
    let sibling = BranchId {
        execution: ExecutionId(101),
        ..branch(1)
    };
    session.step(at(1), Input::Started { branch: sibling });
    session.step(at(1), prepared(1));
    assert_eq!(
        session.step(at(2), deliver(1, 1, Outcome::Aborted)),
        vec![finish(1, Outcome::Aborted), Effect::Cancel { branch: sibling }]
    );
    assert!(session.is_settled(gtid(1)));
    let late = BranchId {
        execution: ExecutionId(102),
        ..branch(1)
    };
    assert_eq!(
        session.step(at(3), Input::Started { branch: late }),
        vec![Effect::Cancel { branch: late }]
    );
    // It was preparing at that very moment: it voted, so it asks, and asks at once.
    let Input::Prepared {
        resource,
        lineage,
        deadline,
        ..
    } = prepared(1)
    else {
        unreachable!()
    };
    let inquire = Request::Inquire {
        branch: late,
        resource,
        lineage,
        deadline,
    };
    assert_eq!(
        session.step(
            at(4),
            Input::Prepared {
                branch: late,
                resource,
                lineage,
                deadline
            }
        ),
        vec![Effect::Send(inquire)]
    );
}

/// The initiator's own branches learn of an abort from the answer to its own proposal.
#[test]
fn an_aborted_proposal_finishes_the_branches_of_this_process() {
    let mut session = serving();
    session.step(at(1), prepared(1));
    ask(&mut session, at(2), 7, decide(1));
    let decided = Response::Decided {
        request: RequestId(2),
        decision: aborted(),
    };
    assert_eq!(
        session.step(at(3), received(1, decided)),
        vec![reply(7, Reply::Decided(aborted())), finish(1, Outcome::Aborted)]
    );
}

/// B6: the first outcome that was told stands, loudly.
#[test]
fn a_second_outcome_is_a_contradiction() {
    let mut session = serving();
    session.step(at(1), prepared(1));
    session.step(at(2), deliver(1, 1, Outcome::Committed));
    let notice = Notice::Contradiction {
        branch: branch(1),
        first: Outcome::Committed,
    };
    assert_eq!(
        session.step(at(3), deliver(1, 1, Outcome::Aborted)),
        vec![Effect::Notice(notice)]
    );
}

/// B11: an acknowledgement that found no stream is not lost for good; the delivery comes again.
#[test]
fn an_acknowledgement_without_a_stream_is_made_good_by_the_next_delivery() {
    let mut session = serving();
    session.step(at(1), deliver(1, 1, Outcome::Committed));
    lose(&mut session, at(2), 1);
    assert_eq!(
        session.step(at(3), finished(1, Outcome::Committed, Finished::Applied)),
        vec![]
    );
    run_until(&mut session, 20);
    register(&mut session, at(20), 2);
    assert_eq!(
        session.step(at(21), deliver(2, 1, Outcome::Committed)),
        vec![finish(1, Outcome::Committed)]
    );
    assert_eq!(
        session.step(at(22), finished(1, Outcome::Committed, Finished::AlreadyApplied)),
        vec![acknowledge(1)]
    );
}

/// An inquiry that falls due without a stream is made as soon as there is one.
#[test]
fn inquiries_wait_for_a_stream() {
    let mut session = serving();
    session.step(at(1), prepared(1));
    lose(&mut session, at(2), 1);
    session.step(at(20), Input::Tick);
    assert_eq!(
        session
            .step(
                at(21),
                Input::Opened {
                    connection: ConnectionId(2)
                }
            )
            .len(),
        1
    );
    session.step(at(1_990), Input::Tick);
    let registered = Response::Registered {
        request: RequestId(2),
        lineage: LINEAGE,
    };
    let effects = session.step(at(1_999), received(2, registered));
    assert_eq!(effects[0], Effect::Ready(LINEAGE));
    let inquiries = run_until(&mut session, 2_002)
        .into_iter()
        .map(|(_, effect)| effect);
    assert_eq!(
        effects[1..].iter().cloned().chain(inquiries).collect::<Vec<_>>(),
        vec![inquire(1)]
    );
}

#[test]
fn deliveries_to_an_unknown_database_and_above_the_bound_are_named() {
    let mut session = Session::new(
        Config {
            branch_count_max: 1,
            ..Config::new(addresses())
        },
        1,
    );
    session.step(at(0), Input::Attach { resource: RESOURCE });
    register(&mut session, at(0), 1);
    let stray = Response::Deliver {
        branch: branch(1),
        resource: OTHER,
        outcome: Outcome::Committed,
    };
    assert_eq!(
        session.step(at(1), received(1, stray)),
        vec![Effect::Ignored(Ignored::UnknownResource)]
    );
    session.step(at(1), deliver(1, 1, Outcome::Committed));
    assert_eq!(
        session.step(at(1), deliver(1, 2, Outcome::Committed)),
        vec![Effect::Ignored(Ignored::TooManyBranches)]
    );
    // A branch that this process has prepared is tracked whatever the bound: it holds locks.
    session.step(at(2), prepared(3));
    assert_eq!(session.unfinished(at(2).wall).len(), 2);
}

/// C11: a listing that failed proves nothing, and is asked for again.
#[test]
fn a_failed_listing_is_repeated() {
    let mut session = serving();
    assert_eq!(
        session.step(
            at(1),
            Input::Listed {
                resource: RESOURCE,
                branches: None
            }
        ),
        vec![Effect::Ignored(Ignored::ListFailed)]
    );
    let next = session.next_timeout().unwrap();
    let now = Now {
        monotonic: next,
        wall: UnixMillis(0),
    };
    assert_eq!(
        session.step(now, Input::Tick),
        vec![Effect::List { resource: RESOURCE }]
    );
    assert!((2_500..=5_001).contains(&(next.0 / 1000)));
}

/// T13: proofs go by the coordinator's word, with the commits that it still has to deliver, and never by age. A database
/// that this process does not serve is none of its business.
#[test]
fn t13_a_low_water_mark_goes_to_the_store_that_it_names() {
    let mut session = serving();
    let low_water = |resource| {
        let (mark, unfinished) = (UnixMillis(500), vec![branch(1).gtid]);
        received(
            1,
            Response::LowWater {
                resource,
                mark,
                unfinished,
            },
        )
    };
    assert_eq!(
        session.step(at(1), low_water(RESOURCE)),
        vec![Effect::Forget {
            resource: RESOURCE,
            mark: UnixMillis(500),
            unfinished: vec![branch(1).gtid]
        }]
    );
    assert_eq!(
        session.step(at(2), low_water(ResourceId([99; 16]))),
        vec![Effect::Ignored(Ignored::UnknownResource)]
    );
}
