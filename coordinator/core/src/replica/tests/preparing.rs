//! Prepare on request (T3): whom the leader asks, what it makes of the answers, and that only the log decides.

use super::coordinator::{
    DATABASE, LINEAGE, SESSION, abort, branch, commit, decided, deliver, gtid, named, propose, serving,
    serving_after,
};
use super::{Bench, Out};
use crate::effects::Told;
use crate::replica::{Ignored, Input};
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::command::{Command, Decide, NamedBranch, Proposal};
use synod_proto::ids::{
    CallId, ExecutionId, InstanceId, OpenToken, RequestId, ResourceId, SessionId, UnixMillis,
};
use synod_proto::limits::BRANCH_COUNT_MAX;
use synod_proto::session::{
    AbortCause, AbortKind, Answer, AskedVote, Decision, OpenBranch, Outcome, Refusal, Request, Response, Vote,
};

const INSTANCE: InstanceId = InstanceId([4; 16]);
const HOST: SessionId = SessionId(8);

fn open(call: u64) -> OpenBranch {
    OpenBranch {
        call: CallId(call),
        execution: ExecutionId(call + 100),
        resource: DATABASE,
        instance: INSTANCE,
        token: OpenToken(call + 1000),
        call_count: 2,
    }
}

fn request(number: u64, voted: &[u64], calls: &[u64]) -> Request {
    Request::PrepareAndDecide {
        request: RequestId(number),
        command: commit(voted).encode(),
        open: calls.iter().map(|call| open(*call)).collect(),
    }
}

fn asked(call: u64) -> Told {
    let response = Response::Prepare {
        branch: branch(call),
        resource: DATABASE,
        token: OpenToken(call + 1000),
        call_count: 2,
    };
    Told {
        session: HOST,
        response,
    }
}

fn voting(call: u64, vote: Vote) -> Request {
    Request::Voted {
        branch: branch(call),
        resource: DATABASE,
        vote: AskedVote {
            vote,
            digest: 0,
            database_transaction: Bytes::new(),
        },
    }
}

fn refusing(text: &str) -> Vote {
    Vote::Abort {
        cause: text.to_string(),
    }
}

fn voted_abort(call: u64, text: &str) -> Decision {
    let cause =
        AbortCause::new(AbortKind::VotedAbort, text).with_branch(CallId(call), ExecutionId(call + 100));
    Decision::Aborted(cause)
}

impl Bench {
    fn host(&mut self, request: Request) -> Vec<Told> {
        self.settle(Input::Request {
            session: HOST,
            request,
        })
    }

    fn initiator(&mut self, request: Request) -> Vec<Told> {
        self.settle(Input::Request {
            session: SESSION,
            request,
        })
    }

    /// Steps, lets the disk sync, and returns what is told.
    fn settle(&mut self, input: Input) -> Vec<Told> {
        let out = self.step(input);
        self.settled(out)
    }

    fn settled(&mut self, mut out: Out) -> Vec<Told> {
        let mut told = out.told.clone();
        while !out.gated.is_empty() {
            out = self.sync(&out);
            told.extend(out.told.clone());
        }
        told
    }

    fn wait_and_settle(&mut self, micros: u64) -> Vec<Told> {
        let out = self.wait(micros);
        self.settled(out)
    }
}

/// Serves, and the instance is there.
fn hosted() -> Bench {
    let mut bench = serving();
    assert_eq!(bench.host(Request::Introduce { instance: INSTANCE }), vec![]);
    bench
}

fn decide_of(branches: Vec<NamedBranch>, read_only_count: u32) -> Decide {
    propose(Proposal::Commit {
        branches,
        read_only_count,
    })
}

/// T3: "the leader sends Prepare to that very instance when it gets the commit request, all branches in parallel". Nothing
/// enters the log before the last vote; then one entry commits what had voted and what was asked.
#[test]
fn t3_open_branches_are_asked_in_parallel_and_committed_in_one_entry() {
    let mut bench = hosted();
    let slots = bench.replica.status().decided_up_to;
    assert_eq!(
        bench.initiator(request(1, &[1], &[2, 3])),
        vec![asked(2), asked(3)]
    );
    assert_eq!(bench.host(voting(3, Vote::Commit)), vec![]);
    assert_eq!(bench.replica.status().decided_up_to, slots, "no entry yet");
    let told = bench.host(voting(2, Vote::Commit));
    assert_eq!(
        told,
        vec![
            deliver(1),
            deliver(2),
            deliver(3),
            decided(1, Decision::Committed)
        ]
    );
    assert_eq!(bench.replica.status().decided_up_to, slots.next());
    // B8: the same request again, and a plain one of the same branches.
    assert_eq!(
        bench.initiator(request(2, &[1], &[2, 3])),
        vec![decided(2, Decision::Committed)]
    );
    assert_eq!(
        bench.decide(3, &commit(&[1, 2, 3])),
        vec![decided(3, Decision::Committed)]
    );
    // T5: with other branches it is a mismatch.
    assert_eq!(
        bench.initiator(request(4, &[1], &[2])),
        vec![decided(4, Decision::Mismatch)]
    );
}

/// T5, T15: a read-only vote is counted and not named; a commit of nothing else is in the log with its count.
#[test]
fn t15_read_only_votes_are_counted() {
    let mut bench = hosted();
    bench.initiator(request(1, &[], &[2, 3]));
    bench.host(voting(2, Vote::ReadOnly));
    let told = bench.host(voting(3, Vote::ReadOnly));
    assert_eq!(told, vec![decided(1, Decision::Committed)]);
    assert_eq!(
        bench.decide(2, &decide_of(vec![], 2)),
        vec![decided(2, Decision::Committed)]
    );
    assert_eq!(
        bench.initiator(request(3, &[], &[2])),
        vec![decided(3, Decision::Mismatch)]
    );
}

/// T3, T6: one vote to abort aborts at once, through the log; the others are told where they are.
#[test]
fn t3_a_vote_to_abort_aborts_without_the_others() {
    let mut bench = hosted();
    bench.initiator(request(1, &[], &[2, 3]));
    let told = bench.host(voting(2, refusing("counts differ")));
    let rolled_back = |call| Told {
        session: HOST,
        response: Response::Deliver {
            branch: branch(call),
            resource: DATABASE,
            outcome: Outcome::Aborted,
        },
    };
    assert_eq!(
        told,
        vec![
            decided(1, voted_abort(2, "counts differ")),
            rolled_back(2),
            rolled_back(3)
        ]
    );
    // A late vote changes nothing.
    assert_eq!(bench.host(voting(3, Vote::Commit)), vec![]);
    assert_eq!(bench.replica.ignored(), [Ignored::UnknownVote]);
    let inquiry = Request::Inquire {
        branch: branch(3),
        resource: DATABASE,
        lineage: LINEAGE,
        deadline: UnixMillis(0),
    };
    let answer = Answer::Aborted;
    assert_eq!(
        bench.host(inquiry),
        vec![Told {
            session: HOST,
            response: Response::Answered {
                branch: branch(3),
                answer
            }
        }]
    );
}

/// B7, T9: an abort that enters the log while votes are collected is the outcome, and the initiator hears it.
#[test]
fn b7_an_outcome_that_comes_first_wins_over_the_votes() {
    let mut bench = hosted();
    bench.initiator(request(1, &[], &[2]));
    let told = bench.decide(2, &abort());
    let why = Decision::Aborted(AbortCause::new(AbortKind::Requested, "why"));
    assert_eq!(told[0], decided(1, why.clone()));
    assert!(told.contains(&decided(2, why.clone())), "{told:?}");
    assert_eq!(bench.host(voting(2, Vote::Commit)), vec![]);
    assert_eq!(bench.initiator(request(3, &[], &[2])), vec![decided(3, why)]);
}

/// T1: a lost reply, or a new session of the initiator, repeats the request: it joins the one that waits, and nobody is
/// asked twice for it. B4: with other branches it is another request.
#[test]
fn a_repeated_request_joins_and_another_one_is_refused() {
    let mut bench = hosted();
    bench.initiator(request(1, &[], &[2]));
    assert_eq!(bench.initiator(request(2, &[], &[2])), vec![]);
    let other = bench.initiator(request(3, &[], &[2, 3]));
    assert!(
        matches!(
            &other[..],
            [Told {
                response: Response::Refused {
                    refusal: Refusal::Invalid { .. },
                    ..
                },
                ..
            }]
        ),
        "{other:?}"
    );
    let told = bench.host(voting(2, Vote::Commit));
    assert_eq!(
        told,
        vec![
            deliver(2),
            decided(1, Decision::Committed),
            decided(2, Decision::Committed)
        ]
    );
}

/// T7: the initiator goes away; its request was handed over, and goes on.
#[test]
fn t7_a_request_goes_on_without_its_initiator() {
    let mut bench = hosted();
    bench.initiator(request(1, &[], &[2]));
    bench.step(Input::SessionClosed(SESSION));
    assert_eq!(
        bench.host(voting(2, Vote::Commit)),
        vec![],
        "nobody is left to tell"
    );
    let known = bench.initiator(request(2, &[], &[2]));
    assert_eq!(known, vec![decided(2, Decision::Committed)]);
}

/// T3: a leader change loses nothing, for nothing was in the log: the next leader asks again, and hears the same. If the
/// former one's entry made it, the record answers.
#[test]
fn the_next_leader_asks_again_or_knows() {
    let mut former = hosted();
    former.initiator(request(1, &[], &[2]));
    let out = former.step(Input::Drain);
    let refusal = Refusal::NotLeader { leader: None };
    let refused = Told {
        session: SESSION,
        response: Response::Refused {
            request: RequestId(1),
            refusal,
        },
    };
    assert!(out.told.contains(&refused), "{out:?}");

    let mut next = hosted();
    assert_eq!(next.initiator(request(1, &[], &[2])), vec![asked(2)]);
    let told = next.host(voting(2, Vote::Commit));
    assert_eq!(told, vec![deliver(2), decided(1, Decision::Committed)]);

    let (mut knowing, _) = serving_after(&[Command::Decide(commit(&[2]))]);
    assert_eq!(
        knowing.initiator(request(1, &[], &[2])),
        vec![decided(1, Decision::Committed)]
    );
}

/// After a leader change the initiator may come before the instance: it is waited for. One that stays away is gone, and
/// its branch with it.
#[test]
fn an_instance_may_come_later_but_not_never() {
    let mut bench = serving();
    assert_eq!(bench.initiator(request(1, &[], &[2])), vec![]);
    assert_eq!(bench.wait_and_settle(1_000_000), vec![]);
    assert_eq!(
        bench.host(Request::Introduce { instance: INSTANCE }),
        vec![asked(2)]
    );
    // Asked again while it is silent; the stream may have lost what nobody noticed.
    assert_eq!(bench.wait_and_settle(1_000_000), vec![asked(2)]);
    bench.step(Input::SessionClosed(HOST));
    // The first heartbeat notices; three seconds later it counts.
    for _ in 0..4 {
        assert_eq!(bench.wait_and_settle(900_000), vec![]);
    }
    let told = bench.wait_and_settle(900_000);
    let text = "the instance that holds the open branch is gone";
    let gone = voted_abort(2, &alloc::format!("{text} ({INSTANCE})"));
    assert_eq!(told, vec![decided(1, gone)]);
}

/// T3: "collects votes with a deadline": the transaction's own.
#[test]
fn the_deadline_ends_the_collection() {
    let mut bench = hosted();
    bench.initiator(request(1, &[], &[2]));
    let mut told = Vec::new();
    for _ in 0..31 {
        told = bench.wait_and_settle(1_000_000);
        if told != [asked(2)] {
            break;
        }
    }
    let cause = AbortCause::new(AbortKind::Deadline, "the branch had not voted at the deadline")
        .with_branch(CallId(2), ExecutionId(102));
    assert_eq!(told[0], decided(1, Decision::Aborted(cause)));
}

/// T11: only the instance that was asked can vote, and only for the database that it was asked about.
#[test]
fn only_the_instance_that_was_asked_votes() {
    let mut bench = hosted();
    bench.initiator(request(1, &[], &[2]));
    assert_eq!(
        bench.initiator(voting(2, Vote::Commit)),
        vec![],
        "another session"
    );
    assert_eq!(bench.replica.ignored(), [Ignored::UnknownVote]);
    let elsewhere = Request::Voted {
        branch: branch(2),
        resource: ResourceId([7; 16]),
        vote: AskedVote {
            vote: Vote::Commit,
            digest: 0,
            database_transaction: Bytes::new(),
        },
    };
    assert_eq!(bench.host(elsewhere), vec![]);
    assert_eq!(bench.replica.ignored(), [Ignored::UnknownVote]);
    // Its session was replaced: the vote comes by the new one.
    let next = SessionId(9);
    let introduced = bench.settle(Input::Request {
        session: next,
        request: Request::Introduce { instance: INSTANCE },
    });
    let again = Told {
        session: next,
        ..asked(2)
    };
    assert_eq!(introduced, vec![again]);
    bench.step(Input::SessionClosed(HOST));
    let told = bench.settle(Input::Request {
        session: next,
        request: voting(2, Vote::Commit),
    });
    assert_eq!(told, vec![deliver(2), decided(1, Decision::Committed)]);
}

/// B5, T2, A20: what is no commit with open branches is refused by its reason, and nobody is asked.
#[test]
fn strange_requests_are_refused() {
    let mut bench = hosted();
    let mut refused = |command: &Decide, open: Vec<OpenBranch>| {
        let told = bench.initiator(Request::PrepareAndDecide {
            request: RequestId(1),
            command: command.encode(),
            open,
        });
        match &told[..] {
            [
                Told {
                    response:
                        Response::Refused {
                            refusal: Refusal::Invalid { text },
                            ..
                        },
                    ..
                },
            ] => text.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(&commit(&[1]), vec![]).contains("no open branch"));
    assert!(refused(&abort(), vec![open(2)]).contains("only a commit"));
    assert!(refused(&commit(&[]), vec![open(3), open(2)]).contains("order"));
    assert!(refused(&commit(&[2]), vec![open(2)]).contains("take effect twice"));
    let uncounted = OpenBranch {
        call_count: 0,
        ..open(2)
    };
    assert!(refused(&commit(&[]), vec![uncounted]).contains("counts no call"));
    let unknown = OpenBranch {
        resource: ResourceId([7; 16]),
        ..open(2)
    };
    assert!(refused(&commit(&[]), vec![unknown]).contains("never registered"));
    let many = (1..=BRANCH_COUNT_MAX as u64).map(open).collect();
    assert!(refused(&commit(&[0]), many).contains("more than 64"));
    assert_eq!(named(2).call, CallId(2));
    assert_eq!(bench.replica.machine().outcomes().record(gtid()), None);
}
