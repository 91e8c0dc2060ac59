//! Arbitrary inputs, from peers and clients, in every role.

use super::coordinator::{DATABASE, LINEAGE, SESSION, commit, gtid, serving};
use super::{Bench, WALL, accepted, ballot, disk, establish, value};
use crate::entry;
use crate::paxos::acceptor::ACCEPT_WINDOW_SLOTS;
use crate::paxos::{Ballot, Envelope, Message, Slot};
use crate::random::Random;
use crate::replica::{Input, WriteFailure};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::command::{Command, Decide, Proposal};
use synod_proto::ids::{
    BranchId, CallId, ExecutionId, Gtid, Incarnation, Lineage, ProcessNonce, ReplicaId, RequestId,
    ResourceId, SessionId, UnixMillis,
};
use synod_proto::session::Request;

/// Anything at all, from peers and clients, in every role: nothing panics, and what is written never breaks the acceptor's
/// invariants (PMMC, invariant A1: "an acceptor can only adopt strictly increasing ballot numbers"; "only a single value is
/// chosen" per slot, PMS 2.1).
#[test]
fn arbitrary_inputs_panic_nowhere_and_break_no_invariant() {
    for seed in 0..250 {
        let mut random = Random::new(seed);
        let mut bench = match seed % 4 {
            0 => Bench::fresh(3),
            1 => serving(),
            2 => {
                let mut bench = Bench::fresh(3);
                bench.serve();
                bench
            }
            _ => {
                let records = (1..=3)
                    .map(|slot| accepted(slot, ballot(2, 2), value(&Command::Noop)))
                    .collect();
                let (mut recovered, values) = disk(records, 2);
                recovered.unreadable.insert(Slot(1));
                Bench::admitted(3, recovered, values)
            }
        };
        let mut promised = bench.meta().promised;
        let mut chosen: Vec<(Slot, Bytes)> = Vec::new();
        for _ in 0..150 {
            let input = any_input(&mut random, &bench);
            let mut out = bench.step(input);
            if random.between(0, 3) > 0 {
                out = bench.sync(&out);
            }
            drop(out);
            bench.wait(random.between(0, 80_000));
            assert!(bench.meta().promised >= promised, "seed {seed}: the promise fell");
            promised = bench.meta().promised;
            for (slot, value) in &chosen {
                let now = bench.replica.decided_value(*slot);
                assert!(
                    now.is_none_or(|now| now == value),
                    "seed {seed}: slot {slot} was decided twice"
                );
            }
            let up_to = bench.meta().decided_up_to;
            chosen.extend(
                bench
                    .replica
                    .decided_value(up_to)
                    .map(|value| (up_to, value.clone())),
            );
        }
    }
}

fn any_number(random: &mut Random) -> u64 {
    match random.between(0, 9) {
        0 => 0,
        1..=6 => random.between(1, 5),
        7 => ACCEPT_WINDOW_SLOTS,
        8 => u64::MAX - 1,
        _ => u64::MAX,
    }
}

fn any_value(random: &mut Random) -> Bytes {
    match random.between(0, 5) {
        0 => entry::noop(),
        1 => Bytes::from_static(b"\x09 of a newer program"),
        2 => value(&Command::Decide(commit(&[1, 2]))),
        3 => value(&Command::Delivered(vec![gtid()])),
        4 => entry::encode(
            UnixMillis(u64::MAX),
            UnixMillis(any_number(random)),
            &[Command::Noop.encode()],
        ),
        _ => establish(1),
    }
}

fn any_ballot(random: &mut Random, bench: &Bench) -> Ballot {
    match random.between(0, 3) {
        0 => bench.replica.own_ballot().unwrap_or(bench.meta().promised),
        1 => Ballot::DECIDED,
        _ => Ballot {
            round: any_number(random),
            replica: ReplicaId(u8::try_from(random.between(0, 4)).expect("small")),
            start: random.between(0, 2),
        },
    }
}

fn any_message(random: &mut Random, bench: &Bench) -> Message {
    let slot = Slot(any_number(random));
    let up_to = Slot(any_number(random));
    let any = any_ballot(random, bench);
    let yes = random.between(0, 1) == 0;
    match random.between(0, 12) {
        0 => Message::Hello {
            incarnation: Incarnation([u8::try_from(random.between(1, 3)).expect("small"); 16]),
            start: any_number(random),
            process: ProcessNonce(random.between(1, 3)),
            promised: any,
            accepted_up_to: up_to,
        },
        1 => Message::HelloAnswer {
            start: any_number(random),
            process: ProcessNonce(random.between(1, 3)),
            contradiction: None,
            ballot: Ballot::ZERO,
            slot: Slot::ZERO,
        },
        2 => Message::PreVote {
            attempt: any_number(random),
        },
        3 => Message::PreVoteAnswer {
            attempt: any_number(random),
            granted: yes,
            round: 1,
            decided_up_to: up_to,
        },
        4 => Message::Prepare {
            ballot: any,
            above: slot,
        },
        5 => Message::Promise {
            ballot: any,
            decided_up_to: up_to,
            first_retained: slot,
            accepted: vec![accepted(
                any_number(random),
                any_ballot(random, bench),
                any_value(random),
            )],
            unreadable: vec![Slot(any_number(random))],
        },
        6 => Message::Accept {
            ballot: any,
            slot,
            value: any_value(random),
            decided_up_to: up_to,
        },
        7 => Message::Accepted { ballot: any, slot },
        8 => Message::Nack {
            ballot: any,
            promised: any_ballot(random, bench),
        },
        9 => Message::Heartbeat {
            ballot: any,
            decided_up_to: up_to,
            sequence: any_number(random),
            has_quorum: yes,
        },
        10 => Message::HeartbeatAnswer {
            ballot: any,
            sequence: any_number(random),
            wall: UnixMillis(any_number(random)),
        },
        11 => Message::CatchUp { above: slot },
        _ => Message::Decided {
            first: slot,
            values: vec![any_value(random), any_value(random)],
            decided_up_to: up_to,
        },
    }
}

fn any_request(random: &mut Random) -> Request {
    let request = RequestId(any_number(random));
    let gtid = match random.between(0, 2) {
        0 => gtid(),
        1 => Gtid::new(UnixMillis(any_number(random)), [1; 10]),
        _ => Gtid::new(WALL, [2; 10]),
    };
    let branch = BranchId {
        gtid,
        call: CallId(random.between(1, 2)),
        execution: ExecutionId(random.between(101, 102)),
    };
    let lineage = if random.between(0, 3) == 0 {
        Lineage([8; 16])
    } else {
        LINEAGE
    };
    let proposal = match random.between(0, 2) {
        0 => Proposal::Commit {
            branches: vec![],
            read_only_count: 1,
        },
        _ => commit(&[1]).proposal,
    };
    match random.between(0, 9) {
        0 => Request::Register {
            request,
            lineage: Some(lineage),
            resources: vec![DATABASE, ResourceId([4; 16])],
        },
        1 => {
            let deadline = UnixMillis(any_number(random));
            let decide = Decide {
                lineage,
                gtid,
                deadline,
                proposal,
                guards: vec![],
            };
            Request::Decide {
                request,
                command: decide.encode(),
            }
        }
        2 => Request::Inquire {
            branch,
            resource: DATABASE,
            lineage,
            deadline: UnixMillis(any_number(random)),
        },
        3 => Request::Acknowledge {
            branch,
            resource: DATABASE,
        },
        4 => Request::Hazard {
            branch,
            resource: DATABASE,
            text: String::from("lost"),
        },
        5 => Request::Outcome { request, gtid },
        6 => Request::AwaitDelivery { request, gtid },
        7 => Request::Settle {
            request,
            branch,
            author: "o".to_string(),
            reason: "r".to_string(),
        },
        8 => Request::ListInDoubt {
            request,
            after: None,
            count_max: 0,
        },
        _ => Request::List {
            request,
            after: Some(gtid),
            unfinished_only: false,
            count_max: u32::MAX,
        },
    }
}

fn any_input(random: &mut Random, bench: &Bench) -> Input {
    let session = SessionId(SESSION.0 + random.between(0, 1));
    match random.between(0, 30) {
        0 => Input::PeerConnected(ReplicaId(2)),
        1 => Input::SessionClosed(session),
        2 if random.between(0, 20) == 0 => Input::WriteFailed {
            text: "full".to_string(),
            kind: WriteFailure::Full,
        },
        3..=12 => Input::Request {
            session,
            request: any_request(random),
        },
        _ => Input::Envelope(Envelope {
            from: ReplicaId(u8::try_from(random.between(2, 4)).expect("small")),
            to: ReplicaId(1),
            message: any_message(random, bench),
        }),
    }
}
