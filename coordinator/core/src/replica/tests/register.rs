//! The register through the watermark, the bounds and an operator's word: T5, T6, T9, T14.

use super::coordinator::{DATABASE, LINEAGE, abort, branch, commit, decided, deliver, gtid, log, named, serving, told};
use super::{Bench, Out, WALL, disk};
use crate::effects::Told;
use crate::entry;
use crate::machine::Machine;
use crate::paxos::{Message, Slot};
use crate::replica::Ignored;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use synod_proto::command::{Command, Decide, Guard, Proposal};
use synod_proto::ids::{BranchId, ExecutionId, Gtid, Lineage, RequestId, ResourceId, UnixMillis};
use synod_proto::session::{AbortCause, AbortKind, Answer, Decision, Refusal, Request, Response, TransactionStatus};

fn inquire(branch: BranchId, deadline: UnixMillis) -> Request {
    Request::Inquire { branch, resource: DATABASE, lineage: LINEAGE, deadline }
}

fn answered(branch: BranchId, answer: Answer) -> Vec<Told> {
    vec![told(Response::Answered { branch, answer })]
}

fn refused(request: u64, refusal: Refusal) -> Vec<Told> {
    vec![told(Response::Refused { request: RequestId(request), refusal })]
}

fn at(offset_ms: u64, number: u8) -> Gtid {
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
        self.machine.apply(self.machine.applied_up_to().next(), &value).expect("applies");
    }
}

/// T9: "look up the record first, the mark second", and both in `apply`. A record that the mark has passed in this very
/// entry still answers; without one, a decide below the mark changes nothing.
#[test]
fn t9_a_decide_below_the_watermark_changes_nothing() {
    let mut log = Log::new();
    log.apply(UnixMillis(0), &[Command::Decide(commit(&[1]))]);
    let late = Decide { gtid: at(1, 4), ..commit(&[1]) };
    log.apply(WALL.plus(10), &[Command::Decide(late.clone()), Command::Decide(abort())]);
    assert_eq!(log.machine.outcomes().record(late.gtid), None);
    let record = log.machine.outcomes().record(gtid()).expect("a commit with an unacknowledged branch");
    assert_eq!(record.answer_for(named(1).call, named(1).execution), Answer::Committed);
    assert_eq!(record.decision_for(&abort().proposal), Decision::Committed);
}

/// B10, T9: a commit is forgotten only after every participant acknowledged, however old it is; then the watermark frees it.
#[test]
fn b10_an_unacknowledged_commit_is_kept_for_ever() {
    let mut log = Log::new();
    log.apply(UnixMillis(0), &[Command::Decide(commit(&[1]))]);
    log.apply(WALL.plus(3_600_000), &[Command::Noop]);
    assert_eq!(log.machine.outcomes().unfinished().map(|(gtid, _)| gtid).collect::<Vec<_>>(), [gtid()]);
    log.apply(WALL.plus(3_600_000), &[Command::Delivered(vec![gtid()]), Command::Delivered(vec![gtid()])]);
    assert_eq!(log.machine.outcomes().count(), 0, "finished below the mark");
}

/// J7, T9: an operator's word ends the delivery, not the record. A branch whose database comes back years later is told
/// Committed; "Aborted" would leave half a transaction. (It used to be forgotten with the watermark.)
#[test]
fn j7_a_settled_commit_is_never_forgotten() {
    let mut bench = serving();
    bench.decide(1, &commit(&[1, 2]));
    bench.ask(Request::Acknowledge { branch: branch(1), resource: DATABASE });
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
    bench.decide(3, &Decide { gtid: Gtid::new(now, [5; 10]), deadline: now, ..abort() });
    let status = bench.replica.status();
    assert!(status.mark > WALL && status.unfinished_count == 0, "{status:?}");
    assert_eq!(bench.ask(inquire(branch(2), WALL)).told, answered(branch(2), Answer::Committed));
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
    let cause = AbortCause::new(AbortKind::Deadline, "no outcome at the deadline; a prepared branch inquired");
    assert_eq!(bench.decide(1, &commit(&[1])), vec![decided(1, Decision::Aborted(cause))]);
}

/// B15, T6: an inquiry's abort and a commit on their way together: the log decides once, and the branch is told that.
#[test]
fn b15_a_commit_before_an_inquirys_abort_in_the_log_wins() {
    let mut bench = serving();
    bench.wait(31_000_000);
    let entry = bench.ask(Request::Decide { request: RequestId(1), command: commit(&[1]).encode() });
    let inquiry = bench.ask(inquire(branch(1), WALL.plus(30_000)));
    assert_eq!(bench.sync(&entry).told, vec![deliver(1), decided(1, Decision::Committed)]);
    assert_eq!(bench.sync(&inquiry).told, answered(branch(1), Answer::Committed));
}

/// T5, B5: "no branches" never means success: a commit names its branches or counts read-only votes.
#[test]
fn b5_an_empty_commit_is_refused_and_a_read_only_one_is_logged() {
    let mut bench = serving();
    let proposal = |read_only_count| Proposal::Commit { branches: vec![], read_only_count };
    let text = "a commit names at least one branch, or counts a read-only one".to_string();
    let empty = Decide { proposal: proposal(0), ..commit(&[1]) };
    assert_eq!(bench.decide(1, &empty), refused(1, Refusal::Invalid { text }));
    let read_only = Decide { proposal: proposal(2), ..commit(&[1]) };
    assert_eq!(bench.decide(2, &read_only), vec![decided(2, Decision::Committed)]);
    let other_count = Decide { proposal: proposal(3), ..commit(&[1]) };
    assert_eq!(bench.decide(3, &other_count), vec![decided(3, Decision::Mismatch)]);
    let request = RequestId(4);
    let status = TransactionStatus::Committed { branches: vec![], read_only_count: 2 };
    let outcome = Request::Outcome { request, gtid: gtid() };
    assert_eq!(bench.ask(outcome).told, vec![told(Response::Status { request, status })]);
}

/// T5: the same gtid, the same calls, another execution: that work is not what was committed.
#[test]
fn t5_another_execution_of_a_call_is_a_mismatch() {
    let mut bench = serving();
    bench.decide(1, &commit(&[1]));
    let mut again = named(1);
    again.execution = ExecutionId(999);
    let proposal = Proposal::Commit { branches: vec![again.clone()], read_only_count: 0 };
    assert_eq!(bench.decide(2, &Decide { proposal, ..commit(&[1]) }), vec![decided(2, Decision::Mismatch)]);
    let unnamed = BranchId { execution: again.execution, ..branch(1) };
    assert_eq!(bench.ask(inquire(unnamed, WALL)).told, answered(unnamed, Answer::Aborted));
}

/// T9: below the watermark a whole transaction is told Expired, and an inquiring branch Aborted: a commit that named it
/// would still be there.
#[test]
fn t9_below_the_watermark_absence_is_known() {
    let mut bench = serving();
    bench.wait(700_000_000);
    let now = bench.now.wall;
    bench.decide(1, &Decide { gtid: Gtid::new(now, [5; 10]), deadline: now, ..abort() });
    assert_eq!(bench.decide(2, &commit(&[1])), vec![decided(2, Decision::Expired)]);
    assert_eq!(bench.ask(inquire(branch(1), WALL)).told, answered(branch(1), Answer::Aborted));
    let request = RequestId(3);
    let status = TransactionStatus::Expired;
    let outcome = Request::Outcome { request, gtid: gtid() };
    assert_eq!(bench.ask(outcome).told, vec![told(Response::Status { request, status })]);
}

/// What a proposal must be to enter the log: of this lineage (T11), without guards, not of the future (T14), with a deadline
/// in reach, and of databases that this coordinator knows.
#[test]
fn what_breaks_a_rule_does_not_enter_the_log() {
    let mut bench = serving();
    let slots = bench.replica.status().decided_up_to;
    let guards = vec![Guard { name: "lock".into(), token: 1 }];
    let unknown = ResourceId([4; 16]);
    let mut foreign = named(1);
    foreign.resource = unknown;
    let proposal = Proposal::Commit { branches: vec![foreign], read_only_count: 0 };
    let invalid = |text: &str| Refusal::Invalid { text: text.to_string() };
    let not_registered = alloc::format!(
        "branch {:016x}/{:016x} is of resource {unknown}, which never registered with this coordinator",
        1,
        101
    );
    let cases: [(Decide, Refusal); 5] = [
        (Decide { lineage: Lineage([8; 16]), ..abort() }, Refusal::ForeignLineage { expected: LINEAGE }),
        (Decide { guards, ..abort() }, invalid("lock guards are not supported by this version")),
        (Decide { gtid: at(620_000, 1), ..abort() }, Refusal::FromFuture { ahead_ms: 619_400 }),
        (
            Decide { deadline: WALL.plus(300_001), ..abort() },
            invalid("the deadline is more than 300000 ms after the begin"),
        ),
        (Decide { proposal, ..abort() }, invalid(&not_registered)),
    ];
    for (decide, refusal) in cases {
        assert_eq!(bench.decide(1, &decide), refused(1, refusal), "{decide:?}");
    }
    let text = String::from("malformed proposal: the command's bytes end early or go on too long");
    let cut = abort().encode().slice(..20);
    let out = bench.ask(Request::Decide { request: RequestId(1), command: cut });
    assert_eq!(out, Out { told: refused(1, Refusal::Invalid { text }), ..Out::default() });
    assert_eq!(bench.replica.status().decided_up_to, slots);
}

/// T14, A20: at its bound the register takes no new gtid, still answers for the known ones, and keeps a reserve for the
/// aborts that prepared branches inquire for; beyond that they are told to ask again.
#[test]
fn t14_a_full_register_refuses_new_gtids_and_answers_known_ones() {
    let mut bench = serving();
    bench.replica.config.limits.register_count_max = 8;
    for number in 1..=8 {
        bench.decide(1, &Decide { gtid: at(0, number), ..abort() });
    }
    let refusal = Refusal::Overloaded { what: "outcomes in the register".to_string() };
    assert_eq!(bench.decide(2, &Decide { gtid: at(0, 9), ..abort() }), refused(2, refusal));
    let Proposal::Abort { cause, .. } = abort().proposal else { panic!("an abort") };
    assert_eq!(
        bench.decide(3, &Decide { gtid: at(0, 8), ..abort() }),
        vec![decided(3, Decision::Aborted(cause))]
    );
    let idle = bench.wait(31_000_000);
    bench.sync(&idle);
    let inquire_for = |bench: &mut Bench, number| {
        let branch = BranchId { gtid: at(0, number), ..branch(1) };
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
    let branch = BranchId { gtid: at(1_000_000_000, 1), ..branch(1) };
    let out = bench.ask(inquire(branch, UnixMillis(0)));
    assert_eq!(out, Out { told: answered(branch, Answer::Undecided), ..Out::default() });
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
        bench.hear(2, Message::Accepted { ballot, slot: Slot(3) });
        bench.now.wall = own;
        bench.hear(2, Message::HeartbeatAnswer { ballot, sequence: 1, wall: other });
        let out = bench.ask(Request::Decide { request: RequestId(1), command: abort().encode() });
        let batch = out.batch.unwrap_or_else(|| panic!("an entry: {:?}", out.told));
        let entry = entry::decode(&batch.accepted[0].value).expect("decodes").expect("no no-op");
        (entry.stamp, entry.mark)
    };
    let expected = (WALL, WALL.minus(600_000));
    assert_eq!(stamp_with(WALL, WALL), expected);
    assert_eq!(stamp_with(WALL.plus(YEAR_MS), WALL), expected, "the leader's own clock");
    assert_eq!(stamp_with(WALL, WALL.plus(YEAR_MS)), expected, "a follower's");
    assert_eq!(stamp_with(WALL, UnixMillis(5)), (UnixMillis(5), UnixMillis(0)), "two clocks: the lower one");
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
