//! The register through the watermark and an operator's word: T5, T6, T9.

use super::WALL;
use super::coordinator::{
    DATABASE, LINEAGE, abort, branch, commit, decided, deliver, gtid, log, named, serving, told,
};
use crate::effects::Told;
use crate::entry;
use crate::machine::Machine;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use synod_proto::command::{Command, Decide, Proposal};
use synod_proto::ids::{BranchId, ExecutionId, Gtid, RequestId, UnixMillis};
use synod_proto::session::{
    AbortCause, AbortKind, Answer, Decision, Refusal, Request, Response, TransactionStatus,
};

pub(super) fn inquire(branch: BranchId, deadline: UnixMillis) -> Request {
    Request::Inquire {
        branch,
        resource: DATABASE,
        lineage: LINEAGE,
        deadline,
    }
}

pub(super) fn answered(branch: BranchId, answer: Answer) -> Vec<Told> {
    vec![told(Response::Answered { branch, answer })]
}

pub(super) fn refused(request: u64, refusal: Refusal) -> Vec<Told> {
    vec![told(Response::Refused {
        request: RequestId(request),
        refusal,
    })]
}

pub(super) fn at(offset_ms: u64, number: u8) -> Gtid {
    Gtid::new(WALL.plus(offset_ms), [number; 10])
}

/// A machine after the log's beginning, and a way to put entries on it.
struct Log {
    machine: Machine,
}

impl Log {
    fn new() -> Self {
        let mut machine = Machine::default();
        for record in log(&[]) {
            machine.apply(record.slot, &record.value).expect("applies");
        }
        Self { machine }
    }

    fn apply(&mut self, mark: UnixMillis, commands: &[Command]) {
        let encoded: Vec<_> = commands.iter().map(Command::encode).collect();
        let value = entry::encode(mark.plus(600_000), mark, &encoded);
        self.machine
            .apply(self.machine.applied_up_to().next(), &value)
            .expect("applies");
    }
}

/// T9: "look up the record first, the mark second", and both in `apply`. A record that the mark has passed in this very
/// entry still answers; without one, a decide below the mark changes nothing.
#[test]
fn t9_a_decide_below_the_watermark_changes_nothing() {
    let mut log = Log::new();
    log.apply(UnixMillis(0), &[Command::Decide(commit(&[1]))]);
    let late = Decide {
        gtid: at(1, 4),
        ..commit(&[1])
    };
    log.apply(
        WALL.plus(10),
        &[Command::Decide(late.clone()), Command::Decide(abort())],
    );
    assert_eq!(log.machine.outcomes().record(late.gtid), None);
    let record = log
        .machine
        .outcomes()
        .record(gtid())
        .expect("a commit with an unacknowledged branch");
    assert_eq!(
        record.answer_for(named(1).call, named(1).execution),
        Answer::Committed
    );
    assert_eq!(record.decision_for(&abort().proposal), Decision::Committed);
}

/// B10, T9: a commit is forgotten only after every participant acknowledged, however old it is; then the watermark frees it.
#[test]
fn b10_an_unacknowledged_commit_is_kept_for_ever() {
    let mut log = Log::new();
    log.apply(UnixMillis(0), &[Command::Decide(commit(&[1]))]);
    log.apply(WALL.plus(3_600_000), &[Command::Noop]);
    assert_eq!(
        log.machine
            .outcomes()
            .unfinished()
            .map(|(gtid, _)| gtid)
            .collect::<Vec<_>>(),
        [gtid()]
    );
    log.apply(
        WALL.plus(3_600_000),
        &[Command::Delivered(vec![gtid()]), Command::Delivered(vec![gtid()])],
    );
    assert_eq!(log.machine.outcomes().count(), 0, "finished below the mark");
}

/// J7, T9: an operator's word ends the delivery, not the record. A branch whose database comes back years later is told
/// Committed; "Aborted" would leave half a transaction. (It used to be forgotten with the watermark.)
#[test]
fn j7_a_settled_commit_is_never_forgotten() {
    let mut bench = serving();
    bench.decide(1, &commit(&[1, 2]));
    bench.ask(Request::Acknowledge {
        branch: branch(1),
        resource: DATABASE,
    });
    let settle = |number| Request::Settle {
        request: RequestId(number),
        branch: branch(2),
        author: "ada".to_string(),
        reason: "the database burnt down".to_string(),
    };
    let mut out = bench.ask(settle(2));
    let mut heard = Vec::new();
    while !out.gated.is_empty() {
        out = bench.sync(&out);
        heard.extend(out.told.clone());
    }
    assert_eq!(heard, vec![decided(2, Decision::Settled)]);
    bench.wait(100_000);
    let out = bench.wait(100_000);
    bench.sync(&out);
    bench.wait(3_600_000_000);
    let now = bench.now.wall;
    bench.decide(
        3,
        &Decide {
            gtid: Gtid::new(now, [5; 10]),
            deadline: now,
            ..abort()
        },
    );
    let status = bench.replica.status();
    assert!(status.mark > WALL && status.unfinished_count == 0, "{status:?}");
    assert_eq!(
        bench.ask(inquire(branch(2), WALL)).told,
        answered(branch(2), Answer::Committed)
    );
    // B8: the same word again gets the same answer.
    let mut out = bench.ask(settle(4));
    while !out.gated.is_empty() {
        out = bench.sync(&out);
    }
    assert_eq!(out.told, vec![decided(4, Decision::Settled)]);
}

/// J7: an operator's word carries an author and a reason, and names a branch that is unfinished.
#[test]
fn j7_a_word_without_a_name_or_a_branch_is_refused() {
    let mut bench = serving();
    let settle = |author: &str| Request::Settle {
        request: RequestId(1),
        branch: branch(1),
        author: author.to_string(),
        reason: "why".to_string(),
    };
    let text = "an operator's word carries an author and a reason".to_string();
    assert_eq!(bench.ask(settle(" ")).told, refused(1, Refusal::Invalid { text }));
    let out = bench.ask(settle("ada"));
    let text = alloc::format!("no unfinished commit names branch {}", branch(1));
    assert_eq!(bench.sync(&out).told, refused(1, Refusal::NotFound { text }));
}

/// B9: an inquiry past the deadline leaves the abort in the register, so that a commit request that was delayed all the
/// while is told Aborted and cannot revive the transaction (B15: the register serialises the two).
#[test]
fn b9_a_commit_after_an_inquirys_abort_is_told_aborted() {
    let mut bench = serving();
    bench.wait(31_000_000);
    let out = bench.ask(inquire(branch(1), WALL.plus(30_000)));
    assert_eq!(out.told, vec![]);
    assert_eq!(bench.sync(&out).told, answered(branch(1), Answer::Aborted));
    let cause = AbortCause::new(
        AbortKind::Deadline,
        "no outcome at the deadline; a prepared branch inquired",
    );
    assert_eq!(
        bench.decide(1, &commit(&[1])),
        vec![decided(1, Decision::Aborted(cause))]
    );
}

/// B15, T6: an inquiry's abort and a commit on their way together: the log decides once, and the branch is told that.
#[test]
fn b15_a_commit_before_an_inquirys_abort_in_the_log_wins() {
    let mut bench = serving();
    bench.wait(31_000_000);
    let entry = bench.ask(Request::Decide {
        request: RequestId(1),
        command: commit(&[1]).encode(),
    });
    let inquiry = bench.ask(inquire(branch(1), WALL.plus(30_000)));
    assert_eq!(
        bench.sync(&entry).told,
        vec![deliver(1), decided(1, Decision::Committed)]
    );
    assert_eq!(bench.sync(&inquiry).told, answered(branch(1), Answer::Committed));
}

/// T5, B5: "no branches" never means success: a commit names its branches or counts read-only votes.
#[test]
fn b5_an_empty_commit_is_refused_and_a_read_only_one_is_logged() {
    let mut bench = serving();
    let proposal = |read_only_count| Proposal::Commit {
        branches: vec![],
        read_only_count,
    };
    let text = "a commit names at least one branch, or counts a read-only one".to_string();
    let empty = Decide {
        proposal: proposal(0),
        ..commit(&[1])
    };
    assert_eq!(bench.decide(1, &empty), refused(1, Refusal::Invalid { text }));
    let read_only = Decide {
        proposal: proposal(2),
        ..commit(&[1])
    };
    assert_eq!(bench.decide(2, &read_only), vec![decided(2, Decision::Committed)]);
    let other_count = Decide {
        proposal: proposal(3),
        ..commit(&[1])
    };
    assert_eq!(
        bench.decide(3, &other_count),
        vec![decided(3, Decision::Mismatch)]
    );
    let request = RequestId(4);
    let status = TransactionStatus::Committed {
        branches: vec![],
        read_only_count: 2,
    };
    let outcome = Request::Outcome {
        request,
        gtid: gtid(),
    };
    assert_eq!(
        bench.ask(outcome).told,
        vec![told(Response::Status { request, status })]
    );
}

/// T5: the same gtid, the same calls, another execution: that work is not what was committed.
#[test]
fn t5_another_execution_of_a_call_is_a_mismatch() {
    let mut bench = serving();
    bench.decide(1, &commit(&[1]));
    let mut again = named(1);
    again.execution = ExecutionId(999);
    let proposal = Proposal::Commit {
        branches: vec![again.clone()],
        read_only_count: 0,
    };
    assert_eq!(
        bench.decide(
            2,
            &Decide {
                proposal,
                ..commit(&[1])
            }
        ),
        vec![decided(2, Decision::Mismatch)]
    );
    let unnamed = BranchId {
        execution: again.execution,
        ..branch(1)
    };
    assert_eq!(
        bench.ask(inquire(unnamed, WALL)).told,
        answered(unnamed, Answer::Aborted)
    );
}

/// T9: below the watermark a whole transaction is told Expired, and an inquiring branch Aborted: a commit that named it
/// would still be there.
#[test]
fn t9_below_the_watermark_absence_is_known() {
    let mut bench = serving();
    bench.wait(700_000_000);
    let now = bench.now.wall;
    bench.decide(
        1,
        &Decide {
            gtid: Gtid::new(now, [5; 10]),
            deadline: now,
            ..abort()
        },
    );
    assert_eq!(
        bench.decide(2, &commit(&[1])),
        vec![decided(2, Decision::Expired)]
    );
    assert_eq!(
        bench.ask(inquire(branch(1), WALL)).told,
        answered(branch(1), Answer::Aborted)
    );
    let request = RequestId(3);
    let status = TransactionStatus::Expired;
    let outcome = Request::Outcome {
        request,
        gtid: gtid(),
    };
    assert_eq!(
        bench.ask(outcome).told,
        vec![told(Response::Status { request, status })]
    );
}

/// T14: of a gtid from the future nothing true can be said; and an old one that nobody decided expires by being asked
/// about, even if the log is idle.
#[test]
fn t14_a_question_about_the_future_is_refused_and_one_about_the_past_moves_the_watermark() {
    let mut bench = serving();
    let ask = |gtid| Request::Outcome {
        request: RequestId(1),
        gtid,
    };
    let ahead = Gtid::new(bench.now.wall.plus(3_600_000), [1; 10]);
    let refusal = Refusal::FromFuture { ahead_ms: 3_600_000 };
    assert_eq!(
        bench.ask(ask(ahead)).told,
        vec![told(Response::Refused {
            request: RequestId(1),
            refusal
        })]
    );
    let old = Gtid::new(bench.now.wall.minus(7_200_000), [1; 10]);
    let out = bench.ask(ask(old));
    bench.sync(&out);
    let status = TransactionStatus::Expired;
    assert_eq!(
        bench.ask(ask(old)).told,
        vec![told(Response::Status {
            request: RequestId(1),
            status
        })]
    );
}
