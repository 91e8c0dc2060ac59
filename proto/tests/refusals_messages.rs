//! Malformed frames between relay and inbox, and malformed lists of what is in doubt, are refused with the name of their field,
//! before anything is done with them (A20).

use bytes::Bytes;
use synod_proto::ids::{Gtid, Position, UnixMillis};
use synod_proto::limits::{
    BRANCH_COUNT_MAX, DELIVERY_COUNT_MAX, HEADER_BYTES_MAX, HEADER_COUNT_MAX, LIST_COUNT_DEFAULT,
    LIST_COUNT_MAX, MESSAGE_BODY_BYTES_MAX, MESSAGE_KEY_BYTES_MAX, TEXT_BYTES_MAX, TOPIC_BYTES_MAX,
    UNSETTLED_COUNT_MAX,
};
use synod_proto::message::{Answer, Answered, InboxFrame, LowWater, RelayFrame};
use synod_proto::session::InDoubtPage;
use synod_proto::v1;
use synod_proto::v1::delivery_answer::Answer as WireAnswer;
use synod_proto::v1::inbox_frame::Frame as FromInbox;
use synod_proto::v1::relay_frame::Frame as FromRelay;
use synod_proto::v1::transaction_in_doubt::State;
use synod_proto::wire::{ListInDoubt, Malformed, Reason};

fn id() -> Bytes {
    Bytes::from_static(&[0x42; 16])
}

fn malformed(field: &'static str, reason: Reason) -> Malformed {
    Malformed { field, reason }
}

fn missing(field: &'static str) -> Malformed {
    malformed(field, Reason::Missing)
}

fn limit(field: &'static str, unit: &'static str, max: usize) -> Malformed {
    let actual = max + 1;
    malformed(field, Reason::Limit { unit, max, actual })
}

fn short(field: &'static str) -> Malformed {
    let (expected, actual) = (16, 3);
    malformed(field, Reason::Length { expected, actual })
}

fn from_relay(frame: FromRelay) -> Malformed {
    RelayFrame::try_from(v1::RelayFrame { frame: Some(frame) }).expect_err("refused")
}

fn from_inbox(frame: FromInbox) -> Malformed {
    InboxFrame::try_from(v1::InboxFrame { frame: Some(frame) }).expect_err("refused")
}

#[test]
fn a_frame_says_what_it_is() {
    let empty = RelayFrame::try_from(v1::RelayFrame::default());
    assert_eq!(empty, Err(missing("RelayFrame.frame")));
    let empty = InboxFrame::try_from(v1::InboxFrame::default());
    assert_eq!(empty, Err(missing("InboxFrame.frame")));
}

/// T11: who sends and who receives is told by ids, whole or not at all.
#[test]
fn a_hello_and_a_welcome_name_both_sides() {
    let hello = v1::RelayHello {
        source: id(),
        lineage: None,
        consumer: "billing".into(),
        mark: 1,
    };
    let refused = |hello| from_relay(FromRelay::Hello(hello));
    let nobody = v1::RelayHello {
        source: Bytes::new(),
        ..hello.clone()
    };
    assert_eq!(refused(nobody), missing("RelayHello.source"));
    let half = v1::RelayHello {
        source: Bytes::from_static(&[1; 3]),
        ..hello.clone()
    };
    assert_eq!(refused(half), short("RelayHello.source"));
    // Absent is "never met a coordinator"; present and empty is a bug.
    let empty = v1::RelayHello {
        lineage: Some(Bytes::new()),
        ..hello.clone()
    };
    assert_eq!(refused(empty), missing("RelayHello.lineage"));
    let unnamed = v1::RelayHello {
        consumer: String::new(),
        ..hello.clone()
    };
    assert_eq!(refused(unnamed), missing("RelayHello.consumer"));
    let long = v1::RelayHello {
        consumer: "c".repeat(TOPIC_BYTES_MAX + 1),
        ..hello
    };
    assert_eq!(
        refused(long),
        limit("RelayHello.consumer", "bytes", TOPIC_BYTES_MAX)
    );

    let welcome = |resource| {
        let mark = 1;
        let highest_applied = 0;
        from_inbox(FromInbox::Welcome(v1::InboxWelcome {
            resource,
            mark,
            highest_applied,
            takes_cancelled: true,
        }))
    };
    assert_eq!(welcome(Bytes::new()), missing("InboxWelcome.resource"));
    assert_eq!(
        welcome(Bytes::from_static(&[1; 3])),
        short("InboxWelcome.resource")
    );
}

fn delivery() -> v1::MessageDelivery {
    v1::MessageDelivery {
        id: id(),
        position: 1,
        topic: "orders".into(),
        ..v1::MessageDelivery::default()
    }
}

#[test]
fn every_part_of_a_delivery_has_its_limit() {
    let refused = |delivery| {
        let deliveries = vec![delivery];
        from_relay(FromRelay::Batch(v1::DeliveryBatch { deliveries }))
    };
    let header = |count: usize, bytes: usize| {
        let header = |n: usize| (format!("{n:02}"), "v".repeat(bytes));
        (0..count).map(header).collect()
    };
    let key = vec![0; MESSAGE_KEY_BYTES_MAX + 1].into();
    let body = vec![0; MESSAGE_BODY_BYTES_MAX + 1].into();
    // One name of two bytes, and a value that is one byte too long.
    let long = HEADER_BYTES_MAX - 1;
    for (delivery, expected) in [
        (
            v1::MessageDelivery {
                id: Bytes::new(),
                ..delivery()
            },
            missing("MessageDelivery.id"),
        ),
        (
            v1::MessageDelivery {
                id: Bytes::from_static(&[1; 3]),
                ..delivery()
            },
            short("MessageDelivery.id"),
        ),
        (
            v1::MessageDelivery {
                position: 0,
                ..delivery()
            },
            malformed("MessageDelivery.position", Reason::Unknown { value: 0 }),
        ),
        (
            v1::MessageDelivery {
                previous: Some(0),
                ..delivery()
            },
            malformed("MessageDelivery.previous", Reason::Unknown { value: 0 }),
        ),
        (
            v1::MessageDelivery {
                topic: String::new(),
                ..delivery()
            },
            missing("MessageDelivery.topic"),
        ),
        (
            v1::MessageDelivery {
                topic: "t".repeat(TOPIC_BYTES_MAX + 1),
                ..delivery()
            },
            limit("MessageDelivery.topic", "bytes", TOPIC_BYTES_MAX),
        ),
        (
            v1::MessageDelivery { key, ..delivery() },
            limit("MessageDelivery.key", "bytes", MESSAGE_KEY_BYTES_MAX),
        ),
        (
            v1::MessageDelivery { body, ..delivery() },
            limit("MessageDelivery.body", "bytes", MESSAGE_BODY_BYTES_MAX),
        ),
        (
            v1::MessageDelivery {
                headers: header(HEADER_COUNT_MAX + 1, 0),
                ..delivery()
            },
            limit("MessageDelivery.headers", "headers", HEADER_COUNT_MAX),
        ),
        (
            v1::MessageDelivery {
                headers: header(1, long),
                ..delivery()
            },
            limit("MessageDelivery.headers", "bytes", HEADER_BYTES_MAX),
        ),
    ] {
        assert_eq!(refused(delivery), expected);
    }
    let deliveries = vec![delivery(); DELIVERY_COUNT_MAX + 1];
    assert_eq!(
        from_relay(FromRelay::Batch(v1::DeliveryBatch { deliveries })),
        limit("DeliveryBatch.deliveries", "deliveries", DELIVERY_COUNT_MAX)
    );
}

/// T13: what the inbox may forget is a place and a bounded list, whose order is not taken on trust.
#[test]
fn a_low_water_mark_is_a_place_and_a_bounded_list() {
    let low_water = |mark, unsettled| FromRelay::LowWater(v1::OutboxLowWater { mark, unsettled });
    assert_eq!(
        from_relay(low_water(0, Vec::new())),
        malformed("OutboxLowWater.mark", Reason::Unknown { value: 0 })
    );
    assert_eq!(
        from_relay(low_water(9, vec![1; UNSETTLED_COUNT_MAX + 1])),
        limit("OutboxLowWater.unsettled", "positions", UNSETTLED_COUNT_MAX)
    );
    let frame = Some(low_water(9, vec![7, 2, 5]));
    let expected = RelayFrame::LowWater(LowWater {
        mark: Position(9),
        unsettled: [2, 5, 7].map(Position).into(),
    });
    assert_eq!(RelayFrame::try_from(v1::RelayFrame { frame }), Ok(expected));
}

fn answer(answer: Option<WireAnswer>) -> v1::DeliveryAnswer {
    v1::DeliveryAnswer {
        position: 1,
        fence: 1,
        answer,
    }
}

#[test]
fn an_answer_says_to_what_and_what() {
    let refused = |answers| from_inbox(FromInbox::Answers(v1::DeliveryAnswers { answers }));
    assert_eq!(refused(vec![answer(None)]), missing("DeliveryAnswer.answer"));
    let applied = answer(Some(WireAnswer::Applied(v1::Nothing {})));
    let nowhere = v1::DeliveryAnswer {
        position: 0,
        ..applied.clone()
    };
    let zero = Reason::Unknown { value: 0 };
    assert_eq!(refused(vec![nowhere]), malformed("DeliveryAnswer.position", zero));
    let gap = answer(Some(WireAnswer::Gap(0)));
    assert_eq!(refused(vec![gap]), malformed("DeliveryAnswer.gap", zero));
    let long = || "x".repeat(TEXT_BYTES_MAX + 1);
    assert_eq!(
        refused(vec![answer(Some(WireAnswer::Failed(long())))]),
        limit("DeliveryAnswer.failed", "bytes", TEXT_BYTES_MAX)
    );
    assert_eq!(
        refused(vec![answer(Some(WireAnswer::Busy(long())))]),
        limit("DeliveryAnswer.busy", "bytes", TEXT_BYTES_MAX)
    );
    assert_eq!(
        refused(vec![applied; DELIVERY_COUNT_MAX + 1]),
        limit("DeliveryAnswers.answers", "answers", DELIVERY_COUNT_MAX)
    );
}

/// Why a handler failed is cut, not refused: an answer with a long error chain must not take the stream with it.
#[test]
fn a_long_reason_arrives_cut_at_a_character() {
    // 511 bytes, then two-byte characters.
    let text = format!("{}{}", "x".repeat(511), "ä".repeat(1000));
    for (said, heard) in [
        (
            Answer::Failed { text: text.clone() },
            Answer::Failed {
                text: "x".repeat(511),
            },
        ),
        (
            Answer::Busy { text },
            Answer::Busy {
                text: "x".repeat(511),
            },
        ),
    ] {
        let answered = |answer| {
            InboxFrame::Answers(vec![Answered {
                position: Position(1),
                fence: synod_proto::ids::Fence(1),
                answer,
            }])
        };
        let wire = v1::InboxFrame::from(answered(said));
        assert_eq!(InboxFrame::try_from(wire), Ok(answered(heard)));
    }
}

// ---- what is in doubt ----

fn gtid() -> Bytes {
    let gtid = Gtid::new(UnixMillis(1_645_557_742_000), [7; 10]);
    gtid.to_bytes().to_vec().into()
}

fn page(transactions: Vec<v1::TransactionInDoubt>) -> Malformed {
    let page = v1::ListInDoubtReply {
        transactions,
        ..v1::ListInDoubtReply::default()
    };
    InDoubtPage::try_from(page).expect_err("refused")
}

#[test]
fn a_list_in_doubt_is_bounded_and_says_of_what() {
    let transaction = |state| v1::TransactionInDoubt { gtid: gtid(), state };
    let unfinished = |branches| {
        let decided_at_unix_ms = 1;
        Some(State::Unfinished(v1::UnfinishedCommit {
            decided_at_unix_ms,
            branches,
        }))
    };
    let undecided = |branches| {
        Some(State::Undecided(v1::UndecidedTransaction {
            branches,
            ..v1::UndecidedTransaction::default()
        }))
    };
    assert_eq!(page(vec![transaction(None)]), missing("TransactionInDoubt.state"));
    let unnamed = v1::TransactionInDoubt {
        gtid: Bytes::new(),
        state: undecided(Vec::new()),
    };
    assert_eq!(page(vec![unnamed]), missing("TransactionInDoubt.gtid"));
    let no_version_seven = v1::TransactionInDoubt {
        gtid: id(),
        state: undecided(Vec::new()),
    };
    assert_eq!(
        page(vec![no_version_seven]),
        malformed("TransactionInDoubt.gtid", Reason::NotGtid)
    );
    let many = vec![v1::BranchStatus::default(); BRANCH_COUNT_MAX + 1];
    assert_eq!(
        page(vec![transaction(unfinished(many))]),
        limit("UnfinishedCommit.branches", "branches", BRANCH_COUNT_MAX)
    );
    let many = vec![v1::InquiringBranch::default(); BRANCH_COUNT_MAX + 1];
    assert_eq!(
        page(vec![transaction(undecided(many))]),
        limit("UndecidedTransaction.branches", "branches", BRANCH_COUNT_MAX)
    );
    let anonymous = vec![v1::InquiringBranch::default()];
    assert_eq!(
        page(vec![transaction(undecided(anonymous))]),
        missing("InquiringBranch.resource")
    );
    let long = vec![transaction(undecided(Vec::new())); LIST_COUNT_MAX as usize + 1];
    assert_eq!(
        page(long),
        limit(
            "ListInDoubtReply.transactions",
            "transactions",
            LIST_COUNT_MAX as usize
        )
    );
}

#[test]
fn a_question_for_what_is_in_doubt_has_a_bounded_page() {
    let ask = |after, count_max| ListInDoubt::try_from(v1::ListInDoubtRequest { after, count_max });
    let default = ListInDoubt {
        after: None,
        count_max: LIST_COUNT_DEFAULT,
    };
    assert_eq!(ask(None, 0), Ok(default));
    assert!(ask(None, LIST_COUNT_MAX).is_ok());
    let field = "ListInDoubtRequest.count_max";
    assert_eq!(ask(None, LIST_COUNT_MAX + 1).expect_err("refused").field, field);
    let field = "ListInDoubtRequest.after";
    assert_eq!(ask(Some(Bytes::new()), 1), Err(missing(field)));
    assert_eq!(ask(Some(id()), 1), Err(malformed(field, Reason::NotGtid)));
}
