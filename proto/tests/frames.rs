//! The bytes of messages between relay and inbox, of preparing on request and of the list of what is in doubt, are pinned: services
//! are upgraded one after the other, and an older one reads what a newer one says (J9).

mod fixture;

use bytes::Bytes;
use prost::Message as _;
use std::collections::BTreeMap;
use synod_proto::ids::{
    BranchId, CallId, ExecutionId, Fence, Gtid, InstanceId, Lineage, MessageId, OpenToken, Position,
    RequestId, ResourceId, Sequence, UnixMillis,
};
use synod_proto::message::{Answer, Answered, Delivery, Hello, InboxFrame, LowWater, RelayFrame, Welcome};
use synod_proto::session::{
    AskedVote, BranchStatus, DeliveryStatus, InDoubt, InDoubtPage, InDoubtState, InquiringBranch, OpenBranch,
    Request, Response, Vote,
};
use synod_proto::v1;
use synod_proto::wire::Malformed;

/// Whatever is said on one of the streams.
#[derive(Clone, Debug, PartialEq)]
enum Frame {
    Relay(RelayFrame),
    Inbox(InboxFrame),
    Request(Request),
    Response(Response),
}

impl Frame {
    fn encode(self) -> Bytes {
        match self {
            Self::Relay(frame) => v1::RelayFrame::from(frame).encode_to_vec(),
            Self::Inbox(frame) => v1::InboxFrame::from(frame).encode_to_vec(),
            Self::Request(request) => v1::SessionRequest::from(request).encode_to_vec(),
            Self::Response(response) => v1::SessionResponse::from(response).encode_to_vec(),
        }
        .into()
    }

    fn decode(name: &str, bytes: Bytes) -> Result<Self, Malformed> {
        const READABLE: &str = "a fixture is protobuf";
        Ok(match name.split(':').next() {
            Some("relay") => Self::Relay(v1::RelayFrame::decode(bytes).expect(READABLE).try_into()?),
            Some("inbox") => Self::Inbox(v1::InboxFrame::decode(bytes).expect(READABLE).try_into()?),
            Some("request") => Self::Request(v1::SessionRequest::decode(bytes).expect(READABLE).try_into()?),
            Some("response") => {
                Self::Response(v1::SessionResponse::decode(bytes).expect(READABLE).try_into()?)
            }
            other => panic!("no message is called {other:?}"),
        })
    }
}

fn fixtures() -> BTreeMap<&'static str, Bytes> {
    fixture::read(include_str!("fixtures/frames.txt"))
}

fn gtid() -> Gtid {
    "017f22e2-79b0-7cc3-98c4-dc0c0c07398f".parse().expect("a gtid")
}

const RESOURCE: ResourceId = ResourceId([0x22; 16]);

/// What the fixtures of relays and inboxes say.
fn messages() -> Vec<(&'static str, Frame)> {
    let first = Delivery {
        id: MessageId([0x33; 16]),
        position: Position(5),
        fence: Fence(1 << 40),
        attempt: 2,
        previous: Some(Position(4)),
        topic: "orders".into(),
        key: Bytes::from_static(b"a"),
        sequence: Sequence(3),
        headers: [("n".to_owned(), "v".to_owned())].into(),
        body: Bytes::from_static(b"hi"),
        published_at: gtid().began_at(),
        is_cancelled: false,
    };
    let cancelled = Delivery {
        headers: BTreeMap::new(),
        body: Bytes::new(),
        is_cancelled: true,
        ..first.clone()
    };
    let least = Delivery {
        id: MessageId([0x34; 16]),
        position: Position(6),
        fence: Fence(0),
        attempt: 0,
        previous: None,
        topic: "t".into(),
        key: Bytes::new(),
        sequence: Sequence(0),
        headers: BTreeMap::new(),
        body: Bytes::new(),
        published_at: UnixMillis(0),
        is_cancelled: false,
    };
    let hello = |lineage, consumer: &str, mark| {
        Frame::Relay(RelayFrame::Hello(Hello {
            source: ResourceId([0x11; 16]),
            lineage,
            consumer: consumer.into(),
            mark: Position(mark),
        }))
    };
    let answers = [
        Answer::Applied,
        Answer::Duplicate,
        Answer::Settled,
        Answer::Failed { text: "no".into() },
        Answer::Gap { missing: Position(4) },
        Answer::Stale,
        Answer::Busy { text: "full".into() },
    ];
    let answers = answers.into_iter().zip(1..).map(|(answer, number)| Answered {
        position: Position(number),
        fence: Fence(number + 10),
        answer,
    });
    vec![
        ("relay: hello", hello(Some(Lineage([0x22; 16])), "billing", 9)),
        ("relay: hello without lineage", hello(None, "c", 1)),
        (
            "relay: deliveries",
            Frame::Relay(RelayFrame::Deliver(vec![first, least])),
        ),
        (
            "relay: a cancelled delivery",
            Frame::Relay(RelayFrame::Deliver(vec![cancelled])),
        ),
        (
            "relay: low water",
            Frame::Relay(RelayFrame::LowWater(LowWater {
                mark: Position(1000),
                unsettled: vec![Position(5), Position(7), Position(300)],
            })),
        ),
        (
            "inbox: welcome",
            Frame::Inbox(InboxFrame::Welcome(Welcome {
                resource: ResourceId([0x44; 16]),
                mark: Position(99),
                highest_applied: Position(103),
                takes_cancelled: false,
            })),
        ),
        (
            "inbox: welcome to cancelled deliveries",
            Frame::Inbox(InboxFrame::Welcome(Welcome {
                resource: ResourceId([0x44; 16]),
                mark: Position(99),
                highest_applied: Position(103),
                takes_cancelled: true,
            })),
        ),
        (
            "inbox: answers",
            Frame::Inbox(InboxFrame::Answers(answers.collect())),
        ),
        (
            "inbox: low water reached",
            Frame::Inbox(InboxFrame::LowWaterReached(Position(1000))),
        ),
    ]
}

/// What the other fixtures say.
fn session() -> Vec<(&'static str, Frame)> {
    let branch = BranchId {
        gtid: gtid(),
        call: CallId(7),
        execution: ExecutionId(9),
    };
    let voted = |vote, digest, database_transaction| {
        Frame::Request(Request::Voted {
            branch,
            resource: RESOURCE,
            vote: AskedVote {
                vote,
                digest,
                database_transaction,
            },
        })
    };
    let open = OpenBranch {
        call: CallId(7),
        execution: ExecutionId(9),
        resource: RESOURCE,
        instance: InstanceId([0x55; 16]),
        token: OpenToken(3),
        call_count: 2,
    };
    let began_at = gtid().began_at();
    let unfinished = InDoubtState::Unfinished {
        decided_at: began_at,
        branches: vec![BranchStatus {
            call: CallId(7),
            execution: ExecutionId(9),
            resource: RESOURCE,
            delivery: DeliveryStatus::Pending,
        }],
    };
    let undecided = InDoubtState::Undecided {
        inquired_since: began_at.plus(1),
        deadline: began_at.plus(30_000),
        branches: vec![InquiringBranch {
            call: CallId(8),
            execution: ExecutionId(1),
            resource: ResourceId([0x33; 16]),
        }],
    };
    let page = InDoubtPage {
        transactions: [unfinished, undecided]
            .map(|state| InDoubt { gtid: gtid(), state })
            .into(),
        inquiries_since: UnixMillis(began_at.0 - 1000),
        inquiries_dropped_count: 5,
    };
    let abort = Vote::Abort { cause: "no".into() };
    vec![
        (
            "request: introduce",
            Frame::Request(Request::Introduce {
                instance: InstanceId([0x55; 16]),
            }),
        ),
        (
            "request: prepare and decide",
            Frame::Request(Request::PrepareAndDecide {
                request: RequestId(21),
                command: Bytes::from_static(&[0xa5, 0xa5]),
                open: vec![open],
            }),
        ),
        (
            "request: voted commit",
            voted(
                Vote::Commit,
                0x0123_4567_89ab_cdef,
                Bytes::copy_from_slice(&762u64.to_be_bytes()),
            ),
        ),
        ("request: voted read-only", voted(Vote::ReadOnly, 0, Bytes::new())),
        ("request: voted abort", voted(abort, 0, Bytes::new())),
        (
            "request: list in doubt",
            Frame::Request(Request::ListInDoubt {
                request: RequestId(22),
                after: Some(gtid()),
                count_max: 100,
            }),
        ),
        (
            "response: prepare",
            Frame::Response(Response::Prepare {
                branch,
                resource: RESOURCE,
                token: OpenToken(3),
                call_count: 2,
            }),
        ),
        (
            "response: listed in doubt",
            Frame::Response(Response::ListedInDoubt {
                request: RequestId(22),
                page,
            }),
        ),
    ]
}

fn frames() -> BTreeMap<&'static str, Frame> {
    messages().into_iter().chain(session()).collect()
}

#[test]
fn frames_have_the_bytes_of_the_fixtures() {
    let encoded: BTreeMap<_, _> = frames()
        .into_iter()
        .map(|(name, frame)| (name, frame.encode()))
        .collect();
    assert_eq!(encoded, fixtures());
}

#[test]
fn the_fixtures_are_read_as_these_frames() {
    let decoded: BTreeMap<_, _> = fixtures()
        .into_iter()
        .map(|(name, bytes)| (name, Frame::decode(name, bytes)))
        .collect();
    let expected: BTreeMap<_, _> = frames()
        .into_iter()
        .map(|(name, frame)| (name, Ok(frame)))
        .collect();
    assert_eq!(decoded, expected);
}

/// A newer service may say more: what this version does not know is passed over, and a frame of an unknown kind is refused by name.
#[test]
fn what_a_newer_service_adds_does_no_harm() {
    for (name, bytes) in fixtures() {
        // Field 1000 of the outer message, a number.
        let longer = Bytes::from([&bytes[..], &[0xc0, 0x3e, 0x01][..]].concat());
        assert_eq!(Frame::decode(name, longer), Ok(frames()[name].clone()), "{name}");
    }
    for name in ["relay:", "inbox:", "request:", "response:"] {
        let unknown = Frame::decode(name, Bytes::from_static(&[0xc0, 0x3e, 0x01]));
        assert!(unknown.is_err(), "{name}");
    }
}

/// Every kind has a fixture: these matches do not compile when one is added, and the one who adds it reads this.
#[test]
fn no_frame_between_relay_and_inbox_is_without_a_fixture() {
    let tag = |frame: &Frame| match frame {
        Frame::Relay(RelayFrame::Hello(_)) => 0,
        Frame::Relay(RelayFrame::Deliver(_)) => 1,
        Frame::Relay(RelayFrame::LowWater(_)) => 2,
        Frame::Inbox(InboxFrame::Welcome(_)) => 3,
        Frame::Inbox(InboxFrame::Answers(_)) => 4,
        Frame::Inbox(InboxFrame::LowWaterReached(_)) => 5,
        Frame::Request(_) | Frame::Response(_) => 6,
    };
    let tags: std::collections::BTreeSet<u8> = frames().values().map(tag).collect();
    assert!(tags.into_iter().eq(0..=6));
}
