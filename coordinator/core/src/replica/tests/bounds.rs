//! What may enter the register: the rules of a proposal, bounds, clocks (T11, T14).

use super::coordinator::{DATABASE, LINEAGE, SESSION, abort, branch, decided, log, named, serving};
use super::register::{answered, at, inquire, refused};
use super::{Bench, Out, WALL, disk};
use crate::entry;
use crate::paxos::{Message, Slot};
use crate::replica::{Ignored, Input};
use crate::transaction::INQUIRY_COUNT_MAX;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use synod_proto::command::{Decide, Guard, Proposal};
use synod_proto::ids::{BranchId, ExecutionId, Lineage, RequestId, ResourceId, SessionId, UnixMillis};
use synod_proto::session::{Answer, Decision, Refusal, Request};

/// What a proposal must be to enter the log: of this lineage (T11), without guards, not of the future (T14), with a deadline
/// in reach, and of databases that this coordinator knows.
#[test]
fn what_breaks_a_rule_does_not_enter_the_log() {
    let mut bench = serving();
    let slots = bench.replica.status().decided_up_to;
    let guards = vec![Guard {
        name: "lock".into(),
        token: 1,
    }];
    let unknown = ResourceId([4; 16]);
    let mut foreign = named(1);
    foreign.resource = unknown;
    let proposal = Proposal::Commit {
        branches: vec![foreign],
        read_only_count: 0,
    };
    let invalid = |text: &str| Refusal::Invalid {
        text: text.to_string(),
    };
    let not_registered = alloc::format!(
        "branch {:016x}/{:016x} is of resource {unknown}, which never registered with this coordinator",
        1,
        101
    );
    let cases: [(Decide, Refusal); 5] = [
        (
            Decide {
                lineage: Lineage([8; 16]),
                ..abort()
            },
            Refusal::ForeignLineage { expected: LINEAGE },
        ),
        (
            Decide { guards, ..abort() },
            invalid("lock guards are not supported by this version"),
        ),
        (
            Decide {
                gtid: at(620_000, 1),
                ..abort()
            },
            Refusal::FromFuture { ahead_ms: 619_400 },
        ),
        (
            Decide {
                deadline: WALL.plus(300_001),
                ..abort()
            },
            invalid("the deadline is more than 300000 ms after the begin"),
        ),
        (Decide { proposal, ..abort() }, invalid(&not_registered)),
    ];
    for (decide, refusal) in cases {
        assert_eq!(bench.decide(1, &decide), refused(1, refusal), "{decide:?}");
    }
    let text = String::from("malformed proposal: the command's bytes end early or go on too long");
    let cut = abort().encode().slice(..20);
    let out = bench.ask(Request::Decide {
        request: RequestId(1),
        command: cut,
    });
    assert_eq!(
        out,
        Out {
            told: refused(1, Refusal::Invalid { text }),
            ..Out::default()
        }
    );
    assert_eq!(bench.replica.status().decided_up_to, slots);
}

/// T14, A20: at its bound the register takes no new gtid, still answers for the known ones, and keeps a reserve for the
/// aborts that prepared branches inquire for; beyond that they are told to ask again.
#[test]
fn t14_a_full_register_refuses_new_gtids_and_answers_known_ones() {
    let mut bench = serving();
    bench.replica.config.limits.register_count_max = 8;
    for number in 1..=8 {
        bench.decide(
            1,
            &Decide {
                gtid: at(0, number),
                ..abort()
            },
        );
    }
    let refusal = Refusal::Overloaded {
        what: "outcomes in the register".to_string(),
    };
    assert_eq!(
        bench.decide(
            2,
            &Decide {
                gtid: at(0, 9),
                ..abort()
            }
        ),
        refused(2, refusal)
    );
    let Proposal::Abort { cause, .. } = abort().proposal else {
        panic!("an abort")
    };
    assert_eq!(
        bench.decide(
            3,
            &Decide {
                gtid: at(0, 8),
                ..abort()
            }
        ),
        vec![decided(3, Decision::Aborted(cause))]
    );
    let idle = bench.wait(31_000_000);
    bench.sync(&idle);
    let inquire_for = |bench: &mut Bench, number| {
        let branch = BranchId {
            gtid: at(0, number),
            ..branch(1)
        };
        let mut out = bench.ask(inquire(branch, WALL));
        if !out.gated.is_empty() {
            out = bench.sync(&out);
        }
        (out.told, branch)
    };
    let (heard, branch) = inquire_for(&mut bench, 10);
    assert_eq!(heard, answered(branch, Answer::Aborted), "the reserve");
    let (heard, branch) = inquire_for(&mut bench, 11);
    assert_eq!(heard, answered(branch, Answer::Undecided));
    assert_eq!(bench.replica.status().outcome_count, 9);
}

/// T14: no deadline lies before its transaction's begin. An inquiry for a gtid of the far future, whatever deadline it
/// carries, puts nothing into the register, where no watermark would free it. (It used to.)
#[test]
fn t14_an_inquiry_for_a_gtid_of_the_future_is_undecided() {
    let mut bench = serving();
    let branch = BranchId {
        gtid: at(1_000_000_000, 1),
        ..branch(1)
    };
    let out = bench.ask(inquire(branch, UnixMillis(0)));
    assert_eq!(
        out,
        Out {
            told: answered(branch, Answer::Undecided),
            ..Out::default()
        }
    );
}

/// T14: stamp = max(last stamp, min(own clock, median of a quorum's clocks)). One clock that runs a year ahead moves
/// neither the stamp nor the mark, whoever it belongs to; with one that lags, time goes on at the lower of the two.
#[test]
fn t14_one_lying_clock_moves_no_stamp() {
    const YEAR_MS: u64 = 365 * 24 * 3_600_000;
    let stamp_with = |own: UnixMillis, other: UnixMillis| {
        let (recovered, values) = disk(log(&[]), 2);
        let mut bench = Bench::admitted(3, recovered, values);
        let (ballot, standing) = bench.stand();
        bench.sync(&standing);
        let report = Message::Promise {
            ballot,
            decided_up_to: Slot(2),
            first_retained: Slot(1),
            accepted: vec![],
            unreadable: vec![],
        };
        let leading = bench.hear(2, report);
        bench.sync(&leading);
        bench.hear(
            2,
            Message::Accepted {
                ballot,
                slot: Slot(3),
            },
        );
        bench.now.wall = own;
        bench.hear(
            2,
            Message::HeartbeatAnswer {
                ballot,
                sequence: 1,
                wall: other,
            },
        );
        let out = bench.ask(Request::Decide {
            request: RequestId(1),
            command: abort().encode(),
        });
        let batch = out.batch.unwrap_or_else(|| panic!("an entry: {:?}", out.told));
        let entry = entry::decode(&batch.accepted[0].value)
            .expect("decodes")
            .expect("no no-op");
        (entry.stamp, entry.mark)
    };
    let expected = (WALL, WALL.minus(600_000));
    assert_eq!(stamp_with(WALL, WALL), expected);
    assert_eq!(
        stamp_with(WALL.plus(YEAR_MS), WALL),
        expected,
        "the leader's own clock"
    );
    assert_eq!(stamp_with(WALL, WALL.plus(YEAR_MS)), expected, "a follower's");
    assert_eq!(
        stamp_with(WALL, UnixMillis(5)),
        (UnixMillis(5), UnixMillis(0)),
        "two clocks: the lower one"
    );
}

/// T11: a branch that was prepared under another coordinator gets no answer here, not even "ask again".
#[test]
fn t11_a_foreign_inquiry_is_ignored() {
    let mut bench = serving();
    let foreign = Request::Inquire {
        branch: branch(1),
        resource: DATABASE,
        lineage: Lineage([8; 16]),
        deadline: WALL,
    };
    assert_eq!(bench.ask(foreign), Out::default());
    assert_eq!(bench.replica.ignored(), &[Ignored::ForeignLineage]);
}

/// A20: inquiries are counted nowhere before, since they are never refused. A session that makes up executions of one call
/// by the thousand is told to ask again beyond a bound; all others get the answer of the log.
#[test]
fn a20_the_inquiries_that_wait_for_one_abort_are_bounded() {
    let mut bench = serving();
    bench.wait(31_000_000);
    let execution = |number: usize| BranchId {
        execution: ExecutionId(number as u64),
        ..branch(1)
    };
    let first = bench.ask(inquire(execution(0), WALL));
    for number in 1..INQUIRY_COUNT_MAX {
        assert_eq!(bench.ask(inquire(execution(number), WALL)).told, vec![]);
    }
    let beyond = execution(INQUIRY_COUNT_MAX);
    assert_eq!(
        bench.ask(inquire(beyond, WALL)).told,
        answered(beyond, Answer::Undecided)
    );
    let expected: Vec<_> = (0..INQUIRY_COUNT_MAX)
        .flat_map(|number| answered(execution(number), Answer::Aborted))
        .collect();
    assert_eq!(bench.sync(&first).told, expected);
}

/// A20: what waits for a new leader to serve is bounded in bytes, too, and a session that goes makes room.
#[test]
fn a20_what_waits_for_a_new_leader_is_bounded_in_bytes() {
    let mut bench = Bench::fresh(3);
    let command = abort().encode();
    bench.replica.config.limits.queue_bytes_max = 2 * command.len();
    bench.lead();
    let mut ask = |number, session| {
        let request = Request::Decide {
            request: RequestId(number),
            command: command.clone(),
        };
        bench.step(Input::Request { session, request }).told
    };
    assert_eq!(ask(1, SESSION), vec![]);
    assert_eq!(ask(2, SessionId(6)), vec![]);
    let refusal = Refusal::Overloaded {
        what: "requests that wait for the new leader".to_string(),
    };
    assert_eq!(ask(3, SESSION), refused(3, refusal));
    bench.step(Input::SessionClosed(SessionId(6)));
    let request = Request::Decide {
        request: RequestId(4),
        command,
    };
    assert_eq!(
        bench
            .step(Input::Request {
                session: SESSION,
                request
            })
            .told,
        vec![]
    );
}
