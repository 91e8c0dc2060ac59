//! Questions: sent again with the same content, and what is said when no answer comes (T7).

use super::*;
use synod_proto::ids::{InstanceId, OpenToken};
use synod_proto::session::{OpenBranch, TransactionStatus};

fn sent(request: u64, number: u8) -> Effect {
    Effect::Send(Request::Decide {
        request: RequestId(request),
        command: Bytes::from(vec![number]),
    })
}

fn decided(request: u64, decision: Decision) -> Response {
    Response::Decided {
        request: RequestId(request),
        decision,
    }
}

fn refused(request: u64, refusal: Refusal) -> Response {
    Response::Refused {
        request: RequestId(request),
        refusal,
    }
}

fn overloaded() -> Refusal {
    Refusal::Overloaded {
        what: "register".to_string(),
    }
}

fn unanswered(last: &str) -> Reply {
    Reply::Failed(Failure::Unanswered {
        last: last.to_string(),
    })
}

#[test]
fn a_proposal_is_sent_at_once_and_its_answer_goes_to_the_caller() {
    let mut session = serving();
    assert_eq!(ask(&mut session, at(1), 7, decide(1)), vec![sent(2, 1)]);
    assert_eq!(
        session.step(at(2), received(1, decided(2, Decision::Committed))),
        vec![reply(7, Reply::Decided(Decision::Committed))]
    );
    assert_eq!(
        session.step(at(3), received(1, decided(2, Decision::Committed))),
        vec![Effect::Ignored(Ignored::UnknownRequest)]
    );
    assert!(session.is_settled(gtid(1)));
}

/// T1, T7: a leader change aborts nothing; the same request, under the same number, goes to the new leader.
#[test]
fn a_broken_stream_sends_the_same_request_to_the_next_leader() {
    let mut session = serving();
    ask(&mut session, at(1), 7, decide(1));
    assert_eq!(lose(&mut session, at(2), 1), vec![lost("http://a:1", "broken")]);
    run_until(&mut session, 20);
    assert_eq!(register(&mut session, at(20), 2), vec![sent(2, 1)]);
    assert_eq!(
        session.step(at(21), received(2, decided(2, aborted()))),
        vec![reply(7, Reply::Decided(aborted()))]
    );
}

/// T7: handed over and never answered is in doubt; never handed over is not.
#[test]
fn whether_it_was_handed_over_decides_between_unavailable_and_in_doubt() {
    let mut handed_over = serving();
    ask(&mut handed_over, at(1), 7, decide(1));
    lose(&mut handed_over, at(2), 1);
    let mut replies = run_until(&mut handed_over, 10_001);
    replies.retain(|(_, effect)| matches!(effect, Effect::Reply { .. }));
    let last = "http://b:1: the replica did not register the session in time";
    assert!(
        matches!(
            &replies[..],
            [(
                10_001,
                Effect::Reply {
                    reply: Reply::Failed(Failure::Unanswered { .. }),
                    ..
                }
            )]
        ),
        "{replies:?}"
    );

    let mut never = session();
    never.step(at(0), Input::Tick);
    never.step(
        at(1),
        Input::Ask {
            ticket: Ticket(8),
            question: decide(1),
            patience: Duration::from_millis(2_500),
        },
    );
    lose(&mut never, at(2), 1);
    let mut replies = run_until(&mut never, 3_000);
    replies.retain(|(_, effect)| matches!(effect, Effect::Reply { .. }));
    let failure = Failure::NotHandedOver {
        last: last.to_string(),
    };
    assert_eq!(replies, vec![(2_501, reply(8, Reply::Failed(failure)))]);
}

/// T7: a refusal is the whole truth only if no other send is unaccounted for.
#[test]
fn a_refusal_after_a_lost_send_proves_nothing() {
    let mut certain = serving();
    ask(&mut certain, at(1), 7, decide(1));
    assert_eq!(
        certain.step(at(2), received(1, refused(2, overloaded()))),
        vec![reply(7, Reply::Failed(Failure::Refused(overloaded())))]
    );

    let mut uncertain = serving();
    ask(&mut uncertain, at(1), 7, decide(1));
    lose(&mut uncertain, at(2), 1);
    run_until(&mut uncertain, 20);
    register(&mut uncertain, at(20), 2);
    assert_eq!(
        uncertain.step(at(21), received(2, refused(2, overloaded()))),
        vec![]
    );
    // It is sent again, and the log's answer is the answer.
    let again = run_until(&mut uncertain, 100);
    assert_eq!(
        again.into_iter().map(|(_, effect)| effect).collect::<Vec<_>>(),
        vec![sent(2, 1)]
    );
    assert_eq!(
        uncertain.step(at(101), received(2, decided(2, Decision::Committed))),
        vec![reply(7, Reply::Decided(Decision::Committed))]
    );
}

/// T7: a leader that resigns refuses what it has in flight as "not the leader", and the next one may decide it all the same:
/// such a request is in doubt, not undone (B13).
#[test]
fn a_request_that_a_resigning_leader_refused_is_in_doubt() {
    let mut session = serving();
    ask(&mut session, at(1), 7, decide(1));
    assert_eq!(
        session.step(at(2), redirect(1, 2, None)),
        vec![
            Effect::Disconnect {
                connection: ConnectionId(1)
            },
            lost("http://a:1", "the replica does not lead"),
        ]
    );
    let mut replies = run_until(&mut session, 10_001);
    replies.retain(|(_, effect)| matches!(effect, Effect::Reply { .. }));
    assert!(
        matches!(
            &replies[..],
            [(
                10_001,
                Effect::Reply {
                    reply: Reply::Failed(Failure::Unanswered { .. }),
                    ..
                }
            )]
        ),
        "{replies:?}"
    );
}

/// A leader that steps down refuses one request after the other; the rest of its words, on the stream that was just left, count.
#[test]
fn the_last_words_of_a_stream_that_was_left_count() {
    let mut session = serving();
    ask(&mut session, at(1), 7, decide(1));
    ask(&mut session, at(1), 8, decide(2));
    ask(&mut session, at(1), 9, decide(3));
    let effects = session.step(at(2), redirect(1, 2, Some("b:1")));
    assert_eq!(effects.last(), Some(&connect(2, "http://b:1")));
    assert_eq!(session.step(at(2), redirect(1, 3, Some("b:1"))), vec![]);
    assert_eq!(
        session.step(at(2), received(1, decided(4, Decision::Committed))),
        vec![reply(9, Reply::Decided(Decision::Committed))]
    );
    assert_eq!(register(&mut session, at(3), 2), vec![sent(2, 1), sent(3, 2)]);
    // The old leader may have had it in flight, so this refusal is not the whole truth (T7).
    assert_eq!(session.step(at(4), received(2, refused(3, overloaded()))), vec![]);
}

/// A leader whose disk is full is about to be replaced: a proposal waits for the next one.
#[test]
fn a_read_only_leader_is_asked_again() {
    let mut session = serving();
    ask(&mut session, at(1), 7, decide(1));
    let read_only = Refusal::ReadOnly {
        text: "disk full".to_string(),
    };
    assert_eq!(
        session.step(at(2), received(1, refused(2, read_only.clone()))),
        vec![]
    );
    let again = run_until(&mut session, 60);
    assert_eq!(
        again.into_iter().map(|(_, effect)| effect).collect::<Vec<_>>(),
        vec![sent(2, 1)]
    );
    session.step(at(61), received(1, refused(2, read_only.clone())));
    let mut ended = session.step(at(10_001), Input::Tick);
    ended.retain(|effect| matches!(effect, Effect::Reply { .. }));
    assert_eq!(ended, vec![reply(7, Reply::Failed(Failure::Refused(read_only)))]);
}

/// The bound is local, and says so before anything is sent (design, section 3: `Overloaded`).
#[test]
fn too_many_questions_are_refused_locally() {
    let mut session = Session::new(
        Config {
            question_count_max: 1,
            ..Config::new(addresses())
        },
        1,
    );
    ask(&mut session, at(0), 1, decide(1));
    assert_eq!(
        ask(&mut session, at(1), 2, decide(2)),
        vec![reply(2, Reply::Failed(Failure::Overloaded { limit: 1 }))]
    );
}

/// A stream that is open and says nothing, while something is awaited, is as good as broken.
#[test]
fn a_silent_replica_is_given_up() {
    let mut session = serving();
    // An idle stream is not silent.
    ask(&mut session, at(60_000), 7, decide(1));
    assert_eq!(
        run_until(&mut session, 62_999)
            .into_iter()
            .map(|(_, effect)| effect)
            .collect::<Vec<_>>(),
        vec![]
    );
    assert_eq!(
        session.step(at(63_000), Input::Tick)[..2],
        [
            Effect::Disconnect {
                connection: ConnectionId(1)
            },
            lost("http://a:1", "the replica has fallen silent")
        ]
    );
}

/// An awaited delivery may take long: a branch's service may be down. The stream is not to blame.
#[test]
fn an_awaited_delivery_is_no_silence() {
    let mut session = serving();
    ask(&mut session, at(1), 7, Question::AwaitDelivery(gtid(1)));
    let failed = unanswered("connected to http://a:1");
    assert_eq!(run_until(&mut session, 20_000), vec![(10_001, reply(7, failed))]);
}

/// A caller that went away takes its reading question with it; a proposal goes on (T7).
#[test]
fn an_abandoned_proposal_goes_on() {
    let mut session = serving();
    ask(&mut session, at(1), 7, Question::Outcome(gtid(1)));
    ask(&mut session, at(1), 8, decide(2));
    assert_eq!(session.step(at(2), Input::Abandon { ticket: Ticket(7) }), vec![]);
    assert_eq!(session.step(at(2), Input::Abandon { ticket: Ticket(8) }), vec![]);
    lose(&mut session, at(3), 1);
    run_until(&mut session, 20);
    assert_eq!(register(&mut session, at(20), 2), vec![sent(3, 2)]);
}

#[test]
fn an_answer_of_another_kind_changes_nothing() {
    let mut session = serving();
    ask(&mut session, at(1), 7, decide(1));
    let status = Response::Status {
        request: RequestId(2),
        status: TransactionStatus::Undecided,
    };
    assert_eq!(
        session.step(at(2), received(1, status)),
        vec![Effect::Ignored(Ignored::WrongAnswer)]
    );
}

/// Nobody waits for ever at the end of a process, and nobody is told a lie (T7).
#[test]
fn closing_answers_every_question_with_what_is_known() {
    let mut session = serving();
    ask(&mut session, at(1), 7, decide(1));
    lose(&mut session, at(2), 1);
    ask(&mut session, at(2), 8, decide(2));
    let last = || "the session is being shut down".to_string();
    assert_eq!(
        session.step(at(3), Input::Close),
        vec![
            reply(7, Reply::Failed(Failure::Unanswered { last: last() })),
            reply(8, Reply::Failed(Failure::NotHandedOver { last: last() })),
        ]
    );
    assert_eq!(
        ask(&mut session, at(4), 9, decide(3)),
        vec![reply(9, Reply::Failed(Failure::NotHandedOver { last: last() }))]
    );
}

/// T3: every leader is told where this instance is before it is asked anything; a commit with open branches is repeated to
/// it as it is, and may take longer than any silence.
#[test]
fn t3_a_new_leader_is_introduced_before_it_is_asked() {
    let mut session = session();
    session.step(at(0), Input::Tick);
    let instance = InstanceId([4; 16]);
    assert_eq!(session.step(at(0), Input::Introduce { instance }), vec![]);
    let introduce = Effect::Send(Request::Introduce { instance });
    assert_eq!(register(&mut session, at(1), 1), vec![introduce.clone()]);
    let open = vec![OpenBranch {
        call: CallId(1),
        execution: ExecutionId(2),
        resource: RESOURCE,
        instance,
        token: OpenToken(5),
        call_count: 2,
    }];
    let command = Bytes::from_static(b"the branches that have voted");
    let question = Question::PrepareAndDecide {
        gtid: gtid(1),
        command: command.clone(),
        open: open.clone(),
    };
    let asked = ask(&mut session, at(2), 7, question);
    let [Effect::Send(Request::PrepareAndDecide { request, .. })] = asked[..] else {
        panic!("{asked:?}")
    };
    let sent = Effect::Send(Request::PrepareAndDecide {
        request,
        command,
        open,
    });
    assert_eq!(asked, vec![sent.clone()]);
    // Longer than the silence after which a plain question gives the stream up.
    let quiet = session.step(at(9_000), Input::Tick);
    assert_eq!(quiet, vec![]);
    let reason = "the stream ended".to_string();
    let connection = ConnectionId(1);
    session.step(at(9_001), Input::Lost { connection, reason });
    session.step(at(9_200), Input::Tick);
    assert_eq!(register(&mut session, at(9_201), 2), vec![introduce, sent]);
    let decision = Decision::Committed;
    let told = session.step(at(9_300), received(2, Response::Decided { request, decision }));
    let reply = Reply::Decided(Decision::Committed);
    assert_eq!(
        told,
        vec![Effect::Reply {
            ticket: Ticket(7),
            reply
        }]
    );
}
