//! What an old message, a broken peer or a careless client may send: refused by name, with no effect and no panic.

use super::coordinator::{LINEAGE, gtid, serving, told};
use super::{Bench, Out, WALL, accepted, ballot, disk, establish, promise, to, value};
use crate::effects::Notice;
use crate::paxos::acceptor::ACCEPT_WINDOW_SLOTS;
use crate::paxos::{Accepted, Ballot, Message, Slot};
use crate::replica::{Ignored, Input, RoleName};
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::command::Command;
use synod_proto::ids::{Incarnation, ProcessNonce, ReplicaId, RequestId, ResourceId};
use synod_proto::limits::RESOURCE_COUNT_MAX;
use synod_proto::session::{Refusal, Request, Response};

fn accept(ballot: Ballot, slot: u64, value: Bytes) -> Message {
    Message::Accept {
        ballot,
        slot: Slot(slot),
        value,
        decided_up_to: Slot::ZERO,
    }
}

/// A leader that was deposed while its request was on the way proposes another value for a slot that this replica has
/// learned as decided without ever promising the ballot that won. The request is old, not wrong: it is ignored.
/// (It used to stop the process.)
#[test]
fn an_old_accept_for_a_slot_learned_as_decided_is_ignored() {
    let mut bench = Bench::fresh(3);
    bench.hear(
        2,
        Message::Prepare {
            ballot: ballot(1, 2),
            above: Slot::ZERO,
        },
    );
    let decided = Message::Decided {
        first: Slot(1),
        values: vec![establish(3)],
        decided_up_to: Slot(1),
    };
    bench.hear(3, decided);
    let before = bench.meta();
    assert_eq!(
        bench.hear(2, accept(ballot(1, 2), 1, establish(2))),
        Out::default()
    );
    assert_eq!(bench.replica.ignored(), &[Ignored::StaleSlot]);
    assert_eq!(
        (bench.meta(), bench.replica.decided_value(Slot(1))),
        (before, Some(&establish(3)))
    );
}

/// PMMC, invariant A4: for one ballot and slot "there can be at most one proposed command under consideration by the set of
/// acceptors". A second one is refused, loudly, before and after the first is decided.
#[test]
fn a_second_value_in_one_ballot_is_refused_and_reported() {
    let mut bench = Bench::fresh(3);
    bench.hear(2, accept(ballot(1, 2), 1, establish(2)));
    let conflict = Out {
        notices: vec![Notice::Conflict {
            from: ReplicaId(2),
            slot: Slot(1),
            ballot: ballot(1, 2),
        }],
        ..Out::default()
    };
    assert_eq!(bench.hear(2, accept(ballot(1, 2), 1, establish(3))), conflict);
    assert_eq!(bench.replica.ignored(), &[Ignored::Conflict]);
    let heartbeat = Message::Heartbeat {
        ballot: ballot(1, 2),
        decided_up_to: Slot(1),
        sequence: 1,
        has_quorum: true,
    };
    bench.hear(2, heartbeat);
    assert_eq!(bench.hear(2, accept(ballot(1, 2), 1, establish(3))), conflict);
    assert_eq!(bench.replica.decided_value(Slot(1)), Some(&establish(2)));
}

/// A later ballot cannot bring another value for a decided slot (PMMC, invariant A5): nothing is promised to it either.
#[test]
fn a_later_ballot_with_another_value_for_a_decided_slot_gets_no_promise() {
    let mut bench = Bench::fresh(3);
    bench.hear(2, accept(ballot(1, 2), 1, establish(2)));
    let heartbeat = Message::Heartbeat {
        ballot: ballot(1, 2),
        decided_up_to: Slot(1),
        sequence: 1,
        has_quorum: true,
    };
    bench.hear(2, heartbeat);
    let out = bench.hear(3, accept(ballot(2, 3), 1, establish(3)));
    let notices = vec![Notice::Conflict {
        from: ReplicaId(3),
        slot: Slot(1),
        ballot: ballot(2, 3),
    }];
    assert_eq!(
        out,
        Out {
            notices,
            ..Out::default()
        }
    );
    assert_eq!(bench.meta().promised, ballot(1, 2));
}

/// Ballots of which the sender is not the proposer, and rounds that leave no room above them, come from no replica that
/// follows the protocol.
#[test]
fn what_no_replica_could_have_sent_is_ignored() {
    let last = Ballot {
        round: u64::MAX,
        ..ballot(1, 2)
    };
    let messages = [
        Message::Prepare {
            ballot: ballot(1, 3),
            above: Slot::ZERO,
        },
        Message::Prepare {
            ballot: last,
            above: Slot::ZERO,
        },
        Message::Prepare {
            ballot: Ballot {
                round: 0,
                ..ballot(1, 2)
            },
            above: Slot::ZERO,
        },
        accept(ballot(1, 3), 1, establish(1)),
        accept(Ballot::DECIDED, 1, establish(1)),
        Message::Heartbeat {
            ballot: ballot(1, 1),
            decided_up_to: Slot(9),
            sequence: 1,
            has_quorum: true,
        },
        Message::Nack {
            ballot: ballot(1, 1),
            promised: Ballot::DECIDED,
        },
        Message::PreVoteAnswer {
            attempt: 0,
            granted: true,
            round: u64::MAX,
            decided_up_to: Slot::ZERO,
        },
        promise(Ballot::DECIDED, vec![]),
    ];
    let mut bench = Bench::fresh(3);
    let before = bench.meta();
    for message in messages {
        assert_eq!(bench.hear(2, message.clone()), Out::default(), "{message:?}");
        assert_eq!(bench.replica.ignored(), &[Ignored::Malformed], "{message:?}");
    }
    assert_eq!(bench.meta(), before);
}

/// T10: an answer to a round of heartbeats that was never sent confirms nothing, neither now nor later.
#[test]
fn t10_an_answer_to_a_round_that_was_never_sent_confirms_no_read() {
    let mut bench = Bench::fresh(3);
    let own = bench.serve();
    let answer = Message::HeartbeatAnswer {
        ballot: own,
        sequence: u64::MAX,
        wall: WALL,
    };
    assert_eq!(bench.hear(2, answer), Out::default());
    assert_eq!(bench.replica.ignored(), &[Ignored::Malformed]);
    let outcome = Request::Outcome {
        request: RequestId(1),
        gtid: gtid(),
    };
    assert_eq!(bench.ask(outcome).told, vec![]);
}

/// A slot far above all others in a promise would have the candidate fill everything below it with no-ops.
#[test]
fn a_promise_with_a_slot_beyond_every_window_is_no_promise() {
    let mut bench = Bench::fresh(3);
    let (own, standing) = bench.stand();
    bench.sync(&standing);
    for slot in [ACCEPT_WINDOW_SLOTS + 1, u64::MAX] {
        let out = bench.hear(2, promise(own, vec![accepted(slot, ballot(1, 2), establish(2))]));
        assert_eq!(
            (out, bench.replica.ignored()),
            (Out::default(), &[Ignored::Malformed][..])
        );
    }
    assert_eq!(bench.replica.status().role, RoleName::Candidate);
}

/// A new leader proposes again whatever phase 1 brought, even a whole window of it, and its own first entry on top.
/// (It used to stop the process: its own acceptor found that entry too far ahead.)
#[test]
fn a_full_window_is_proposed_again() {
    let mut bench = Bench::fresh(3);
    let (own, standing) = bench.stand();
    bench.sync(&standing);
    let report = (1..=ACCEPT_WINDOW_SLOTS)
        .map(|slot| accepted(slot, ballot(1, 2), value(&Command::Noop)))
        .collect();
    let out = bench.hear(2, promise(own, report));
    assert_eq!(bench.replica.status().role, RoleName::Leading);
    let slots: Vec<u64> = out
        .batch
        .expect("a batch")
        .accepted
        .iter()
        .map(|one| one.slot.0)
        .collect();
    assert_eq!(slots, (1..=ACCEPT_WINDOW_SLOTS + 1).collect::<Vec<_>>());
}

/// The highest slot there is may be named; nothing is added to it.
#[test]
fn the_last_slot_overflows_nothing() {
    let mut bench = Bench::fresh(3);
    assert_eq!(
        bench.hear(
            2,
            Message::CatchUp {
                above: Slot(u64::MAX)
            }
        ),
        Out::default()
    );
    assert_eq!(bench.replica.ignored(), &[Ignored::StaleSlot]);
    let out = bench.hear(
        2,
        Message::Prepare {
            ballot: ballot(1, 2),
            above: Slot(u64::MAX),
        },
    );
    assert_eq!(out.gated, vec![to(2, promise(ballot(1, 2), vec![]))]);
    let accept = accept(ballot(1, 2), u64::MAX, establish(1));
    assert_eq!(bench.hear(2, accept), Out::default());
    assert_eq!(bench.replica.ignored(), &[Ignored::TooFarAhead]);
}

/// A20: a list that sizes an entry is bounded where it is taken, whatever lies before.
#[test]
fn a20_a_request_for_too_many_databases_is_refused() {
    let mut bench = serving();
    let resources = (0..=RESOURCE_COUNT_MAX)
        .map(|one| ResourceId([u8::try_from(one).expect("small"); 16]))
        .collect();
    let out = bench.ask(Request::Register {
        request: RequestId(1),
        lineage: Some(LINEAGE),
        resources,
    });
    let refusal = Refusal::Invalid {
        text: "more than 64 databases in one request".to_string(),
    };
    let refused = told(Response::Refused {
        request: RequestId(1),
        refusal,
    });
    assert_eq!(
        out,
        Out {
            told: vec![refused],
            ..Out::default()
        }
    );
}

/// What the disk holds may be as strange: an unreadable slot with decided ones above it, and then an old accept for one of
/// those. (It used to stop the process.)
#[test]
fn an_old_accept_for_a_decided_slot_above_an_unreadable_one_is_ignored() {
    let learned: Vec<Accepted> = vec![accepted(2, Ballot::DECIDED, establish(3))];
    let (mut recovered, values) = disk(vec![accepted(2, ballot(1, 2), establish(3))], 2);
    recovered.readable.insert(Slot(2), Ballot::DECIDED);
    recovered.unreadable.insert(Slot(1));
    drop(values);
    let mut bench = Bench::admitted(3, recovered, learned);
    assert_eq!(
        bench.replica.status().decided_up_to,
        Slot::ZERO,
        "slot 1 cannot be read"
    );
    assert_eq!(
        bench.hear(2, accept(ballot(1, 2), 2, establish(2))),
        Out::default()
    );
    assert_eq!(bench.replica.ignored(), &[Ignored::StaleSlot]);
}

/// T10, L10: a replica is no peer of its own. A heartbeat that it answered itself would make a quorum of two out of one, and its
/// own hello would be on its disk as an admission: a driver that connects it to itself changes nothing.
#[test]
fn t10_a_replica_that_is_connected_to_itself_confirms_nothing() {
    let mut bench = Bench::fresh(3);
    let own = bench.serve();
    let before = bench.meta();
    assert_eq!(bench.step(Input::PeerConnected(ReplicaId(1))), Out::default());
    assert_eq!(bench.replica.ignored(), &[Ignored::UnknownReplica]);
    let asked = bench.ask(Request::Outcome {
        request: RequestId(1),
        gtid: gtid(),
    });
    let Some(Message::Heartbeat { sequence, .. }) = asked.early.first().map(|one| &one.message) else {
        panic!("a round of heartbeats: {:?}", asked.early)
    };
    let answer = Message::HeartbeatAnswer {
        ballot: own,
        sequence: *sequence,
        wall: WALL,
    };
    let hello = Message::Hello {
        incarnation: Incarnation([9; 16]),
        start: 9,
        process: ProcessNonce(9),
        promised: own,
        accepted_up_to: Slot(1),
    };
    for message in [asked.early[0].message.clone(), answer, hello] {
        assert_eq!(bench.hear(1, message), Out::default());
        assert_eq!(bench.replica.ignored(), &[Ignored::Malformed]);
    }
    assert_eq!(bench.meta(), before);
}
