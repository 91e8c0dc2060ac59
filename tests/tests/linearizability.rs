//! The linearizability checker on histories whose verdict is known, and against a search that tries every order.

use bytes::Bytes;
use proptest::prelude::*;
use synod_coordinator_core::machine::outcomes::{Record, Verdict};
use synod_proto::command::{NamedBranch, Proposal};
use synod_proto::ids::{CallId, ExecutionId, InstanceId, OpenToken, ResourceId, UnixMillis};
use synod_proto::session::{
    AbortCause, AbortKind, Answer, BranchStatus, Decision, DeliveryStatus, OpenBranch, Outcome,
    TransactionStatus,
};
use synod_tests::linearizability::register::{Input, Output, RegisterModel};
use synod_tests::linearizability::{Conclusion, Model, Operation, check};

type History = Vec<Operation<Input, Output>>;

/// Far above what any history here needs: a search that explodes fails instead of running on.
const STEPS_MAX: u64 = 200_000;

fn branch(number: u64) -> NamedBranch {
    NamedBranch {
        call: CallId(number),
        execution: ExecutionId(number),
        resource: ResourceId([1; 16]),
        digest: 0,
        database_transaction: Bytes::new(),
    }
}

fn commit(numbers: &[u64]) -> Proposal {
    Proposal::Commit {
        branches: numbers.iter().copied().map(branch).collect(),
        read_only_count: 0,
    }
}

fn cause(text: &str) -> AbortCause {
    AbortCause::new(AbortKind::Requested, text)
}

fn deadline() -> AbortCause {
    AbortCause::new(AbortKind::Deadline, "past its deadline")
}

fn abort(text: &str) -> Proposal {
    Proposal::Abort {
        cause: cause(text),
        branches: Vec::new(),
    }
}

fn open(number: u64) -> OpenBranch {
    OpenBranch {
        call: CallId(number),
        execution: ExecutionId(number),
        resource: ResourceId([1; 16]),
        instance: InstanceId([1; 16]),
        token: OpenToken(1),
        call_count: 1,
    }
}

fn prepared(voted: &[u64], opened: &[u64]) -> Input {
    Input::ProposePrepared(commit(voted), opened.iter().copied().map(open).collect())
}

fn status(numbers: &[u64]) -> Output {
    status_with(numbers, 0)
}

fn status_with(numbers: &[u64], read_only_count: u32) -> Output {
    let branches = numbers
        .iter()
        .map(|number| BranchStatus {
            call: CallId(*number),
            execution: ExecutionId(*number),
            resource: ResourceId([1; 16]),
            delivery: DeliveryStatus::Pending,
        })
        .collect();
    Output::Status(TransactionStatus::Committed {
        branches,
        read_only_count,
    })
}

fn proposed(asked: u64, proposal: Proposal, at: u64, decision: Decision) -> Operation<Input, Output> {
    Operation::answered(asked, Input::Propose(proposal), at, Output::Decision(decision))
}

fn asked_prepared(asked: u64, input: Input, at: u64, decision: Decision) -> Operation<Input, Output> {
    Operation::answered(asked, input, at, Output::Decision(decision))
}

fn queried(asked: u64, at: u64, output: Output) -> Operation<Input, Output> {
    Operation::answered(asked, Input::Query, at, output)
}

fn inquired(asked: u64, number: u64, at: u64, outcome: Outcome) -> Operation<Input, Output> {
    Operation::answered(
        asked,
        Input::Inquire(CallId(number), ExecutionId(number)),
        at,
        Output::Told(outcome),
    )
}

fn undecided() -> Output {
    Output::Status(TransactionStatus::Undecided)
}

fn search(history: &History) -> Conclusion {
    check(&RegisterModel, history, STEPS_MAX)
}

fn accepts(history: &History) -> bool {
    match search(history) {
        Conclusion::Linearizable(_) => true,
        Conclusion::NotLinearizable { .. } => false,
        Conclusion::TooManySteps => panic!("the search explodes: {history:#?}"),
    }
}

#[track_caller]
fn assert_accepted(history: impl AsRef<[Operation<Input, Output>]>) {
    let history = history.as_ref().to_vec();
    assert!(accepts(&history), "{:#?}", search(&history));
}

#[track_caller]
fn assert_refused(history: impl AsRef<[Operation<Input, Output>]>) {
    let history = history.as_ref().to_vec();
    assert!(!accepts(&history), "{:#?}", search(&history));
}

#[test]
fn one_after_another() {
    let history = vec![
        queried(1, 2, undecided()),
        proposed(3, commit(&[1, 2]), 4, Decision::Committed),
        queried(5, 6, status(&[1, 2])),
        inquired(7, 1, 8, Outcome::Committed),
        inquired(9, 3, 10, Outcome::Aborted),
    ];
    assert_eq!(search(&history), Conclusion::Linearizable(vec![0, 1, 2, 3, 4]));
}

#[test]
fn the_conclusion_shows_how_far_it_came_and_where_it_is_stuck() {
    let history = vec![
        proposed(1, commit(&[1]), 2, Decision::Committed),
        queried(3, 4, status(&[1])),
        queried(5, 6, undecided()),
    ];
    assert_eq!(
        search(&history),
        Conclusion::NotLinearizable {
            longest: vec![0, 1],
            stuck: vec![2]
        }
    );
}

/// B7: a timeout's abort races the commit, the first in the log wins, and the loser is told the outcome.
#[test]
fn a_race_has_one_winner_and_the_loser_is_told() {
    let race = |commit_told: Decision, abort_told: Decision| {
        vec![
            proposed(1, commit(&[1]), 10, commit_told),
            proposed(2, abort("timeout"), 9, abort_told),
        ]
    };
    assert_accepted(race(Decision::Committed, Decision::Committed));
    assert_accepted(race(
        Decision::Aborted(cause("timeout")),
        Decision::Aborted(cause("timeout")),
    ));
    assert_refused(race(Decision::Committed, Decision::Aborted(cause("timeout"))));
    assert_refused(race(Decision::Aborted(cause("timeout")), Decision::Committed));
}

#[test]
fn two_outcomes_are_refused_however_far_apart() {
    assert_refused(vec![
        proposed(1, commit(&[1]), 2, Decision::Committed),
        inquired(1_000, 1, 1_001, Outcome::Aborted),
    ]);
    assert_refused(vec![
        proposed(1, abort("a"), 2, Decision::Aborted(cause("a"))),
        queried(1_000, 1_001, status(&[1])),
    ]);
    // A named branch hears a delivery of an abort.
    let heard = Input::Hear(CallId(1), ExecutionId(1));
    assert_refused(vec![
        proposed(1, commit(&[1]), 2, Decision::Committed),
        Operation::answered(3, heard, 3, Output::Told(Outcome::Aborted)),
    ]);
}

/// T10: "undecided" is told only while it is true.
#[test]
fn a_stale_read_after_the_decision_is_refused() {
    assert_refused(vec![
        proposed(1, commit(&[1]), 2, Decision::Committed),
        queried(3, 4, undecided()),
    ]);
    // Asked while the proposal was under way, it may still have been undecided.
    assert_accepted(vec![
        proposed(1, commit(&[1]), 5, Decision::Committed),
        queried(2, 8, undecided()),
    ]);
    // But not after another has read the outcome.
    assert_refused(vec![
        proposed(1, commit(&[1]), 9, Decision::Committed),
        queried(2, 3, status(&[1])),
        queried(4, 5, undecided()),
    ]);
}

/// T7, B8: a commit without an answer may have happened, at any time, or not; but not both.
#[test]
fn a_lost_answer_explains_either_outcome_once() {
    let lost = || Operation::unanswered(1, Input::Propose(commit(&[1])));
    assert_accepted(vec![lost(), queried(50, 51, status(&[1]))]);
    assert_accepted(vec![lost(), queried(50, 51, undecided())]);
    assert_accepted(vec![
        lost(),
        queried(50, 51, undecided()),
        queried(60, 61, status(&[1])),
    ]);
    assert_accepted(vec![
        lost(),
        proposed(50, abort("a"), 51, Decision::Aborted(cause("a"))),
    ]);
    assert_accepted(vec![lost(), proposed(50, abort("a"), 51, Decision::Committed)]);
    assert_refused(vec![
        lost(),
        queried(50, 51, status(&[1])),
        queried(60, 61, undecided()),
    ]);
    assert_refused(vec![
        lost(),
        proposed(50, abort("a"), 51, Decision::Aborted(cause("a"))),
        queried(60, 61, status(&[1])),
    ]);
    // Nobody may read it before it was asked.
    assert_refused(vec![queried(0, 0, status(&[1])), lost()]);
}

/// T5, B5: committed is told only to a proposal of exactly the recorded branches.
#[test]
fn another_set_of_branches_is_a_mismatch() {
    assert_accepted(vec![
        proposed(1, commit(&[1]), 2, Decision::Committed),
        proposed(3, commit(&[1, 2]), 4, Decision::Mismatch),
        proposed(5, commit(&[1]), 6, Decision::Committed),
    ]);
    assert_refused(vec![
        proposed(1, commit(&[1]), 2, Decision::Committed),
        proposed(3, commit(&[1, 2]), 4, Decision::Committed),
    ]);
    assert_refused(vec![
        proposed(1, commit(&[1]), 2, Decision::Committed),
        proposed(3, commit(&[1]), 4, Decision::Mismatch),
    ]);
    assert_refused(vec![proposed(1, commit(&[1]), 2, Decision::Mismatch)]);
    // Two executions of one call (T2): only the named one commits.
    assert_refused(vec![
        proposed(1, commit(&[1]), 2, Decision::Committed),
        inquired(3, 2, 4, Outcome::Committed),
    ]);
}

/// T3, B5: a commit with open branches names those that had voted, and of the open ones whichever voted to commit; the
/// others it counts as read-only. Whoever looks sees one such record.
#[test]
fn b5_a_commit_with_open_branches_is_one_of_its_records() {
    let commits = || asked_prepared(1, prepared(&[1], &[2, 3]), 2, Decision::Committed);
    for (named, read_only_count) in [(&[1, 2, 3][..], 0), (&[1, 2], 1), (&[1, 3], 1), (&[1], 2)] {
        assert_accepted([commits(), queried(3, 4, status_with(named, read_only_count))]);
    }
    for (named, read_only_count) in [
        (&[1, 2, 3][..], 1),
        (&[1, 2], 0),
        (&[2, 3], 1),
        (&[1, 4], 1),
        (&[1, 2, 2], 0),
    ] {
        assert_refused([commits(), queried(3, 4, status_with(named, read_only_count))]);
    }
    assert_refused([
        commits(),
        queried(3, 4, status_with(&[1, 2], 1)),
        queried(5, 6, status_with(&[1, 3], 1)),
    ]);
}

/// T5, B5: what a branch is told has to fit what everybody else is told; no two of these answers are wrong by themselves.
#[test]
fn b5_an_open_branch_is_told_what_the_record_says() {
    let commits = || asked_prepared(1, prepared(&[1], &[2, 3]), 2, Decision::Committed);
    let told = |at: u64, number: u64, outcome| inquired(at, number, at + 1, outcome);
    assert_accepted([
        commits(),
        told(3, 2, Outcome::Committed),
        told(5, 3, Outcome::Aborted),
        queried(7, 8, status_with(&[1, 2], 1)),
    ]);
    assert_refused([commits(), told(3, 1, Outcome::Aborted)]);
    assert_refused([commits(), told(3, 4, Outcome::Committed)]);
    assert_refused([
        commits(),
        told(3, 2, Outcome::Committed),
        told(5, 2, Outcome::Aborted),
    ]);
    assert_refused([
        commits(),
        told(3, 2, Outcome::Aborted),
        queried(5, 6, status_with(&[1, 2], 1)),
    ]);
}

/// T3, B5, B8: the same request again is told the same; another one is told Mismatch, once the record is known.
#[test]
fn b8_a_repeated_commit_with_open_branches_is_told_the_same() {
    let commits = |at, decision| asked_prepared(at, prepared(&[1], &[2, 3]), at + 1, decision);
    assert_accepted([commits(1, Decision::Committed), commits(3, Decision::Committed)]);
    assert_refused([commits(1, Decision::Committed), commits(3, Decision::Mismatch)]);
    assert_refused([
        commits(1, Decision::Committed),
        commits(3, Decision::Aborted(deadline())),
    ]);
    let exact = || proposed(1, commit(&[1, 2]), 2, Decision::Committed);
    let asked = |decision| asked_prepared(3, prepared(&[1], &[2]), 4, decision);
    assert_accepted([exact(), asked(Decision::Committed)]);
    assert_refused([exact(), asked(Decision::Mismatch)]);
    assert_accepted([exact(), commits(3, Decision::Mismatch)]);
    assert_refused([exact(), commits(3, Decision::Committed)]);
}

/// T6, T7: a request whose answer was lost may have committed, or have been aborted by a vote: one of the two.
#[test]
fn a_lost_commit_with_open_branches_explains_either_outcome_once() {
    let lost = || Operation::unanswered(1, prepared(&[1], &[2]));
    let aborted = |at, text| {
        queried(
            at,
            at + 1,
            Output::Status(TransactionStatus::Aborted(cause(text))),
        )
    };
    assert_accepted([lost(), queried(3, 4, status(&[1, 2]))]);
    assert_accepted([lost(), aborted(3, "voted to abort")]);
    assert_refused([lost(), queried(3, 4, status(&[1, 2])), aborted(5, "no")]);
    assert_refused([lost(), aborted(3, "one"), aborted(5, "another")]);
}

/// T6, B14: past the deadline an inquiry writes an abort, and everybody is told the same cause, the late commit too.
#[test]
fn an_inquiry_may_write_the_abort() {
    assert_accepted(vec![
        inquired(1, 1, 2, Outcome::Aborted),
        proposed(3, commit(&[1]), 4, Decision::Aborted(deadline())),
        queried(5, 6, Output::Status(TransactionStatus::Aborted(deadline()))),
    ]);
    assert_accepted(vec![
        Operation::unanswered(1, Input::Inquire(CallId(1), ExecutionId(1))),
        proposed(3, commit(&[1]), 4, Decision::Aborted(deadline())),
    ]);
    // Not without anybody who proposed it.
    assert_refused(vec![proposed(3, commit(&[1]), 4, Decision::Aborted(deadline()))]);
    // Not with a cause that nobody gave.
    assert_refused(vec![
        inquired(1, 1, 2, Outcome::Aborted),
        proposed(3, abort("late"), 4, Decision::Aborted(cause("late"))),
    ]);
}

#[test]
fn the_cause_of_an_abort_does_not_change() {
    assert_refused(vec![
        proposed(1, abort("a"), 2, Decision::Aborted(cause("a"))),
        proposed(3, abort("b"), 4, Decision::Aborted(cause("b"))),
    ]);
}

/// T9, B9: below the watermark nothing is written any more.
#[test]
fn expired_is_final_but_the_truth_may_still_be_told() {
    let expired = || Output::Status(TransactionStatus::Expired);
    assert_accepted(vec![
        proposed(1, commit(&[1]), 2, Decision::Committed),
        queried(3, 4, expired()),
        // A replica that lags.
        queried(5, 6, status(&[1])),
    ]);
    assert_accepted(vec![
        queried(1, 2, expired()),
        inquired(3, 1, 4, Outcome::Aborted),
    ]);
    assert_accepted(vec![
        inquired(1, 1, 2, Outcome::Aborted),
        proposed(3, commit(&[1]), 4, Decision::Expired),
    ]);
    assert_refused(vec![
        queried(1, 2, expired()),
        proposed(3, commit(&[1]), 4, Decision::Committed),
    ]);
    assert_refused(vec![queried(1, 2, expired()), queried(3, 4, undecided())]);
    assert_refused(vec![
        proposed(1, commit(&[1]), 2, Decision::Committed),
        queried(3, 4, expired()),
        inquired(5, 1, 6, Outcome::Aborted),
    ]);
}

/// Everything at once, with an answer that cannot be: the memo and the reads keep the search from trying all orders.
#[test]
fn wide_histories_end_within_few_steps() {
    let mut history: History = (0..60).map(|_| queried(1, 100, status(&[1]))).collect();
    history.extend((0..60).map(|_| queried(1, 100, undecided())));
    history.extend((0..10).map(|number| Operation::unanswered(1, Input::Propose(commit(&[number])))));
    history.extend((0..10).map(|_| Operation::unanswered(1, Input::Inquire(CallId(1), ExecutionId(1)))));
    assert!(matches!(
        check(&RegisterModel, &history, 20_000),
        Conclusion::Linearizable(_)
    ));
    history.push(inquired(101, 1, 102, Outcome::Aborted));
    assert!(matches!(
        check(&RegisterModel, &history, 20_000),
        Conclusion::NotLinearizable { .. }
    ));
}

#[test]
fn a_long_history_is_searched_in_steps_that_grow_with_its_length() {
    let mut history = vec![proposed(0, commit(&[1]), 1, Decision::Committed)];
    history.extend((1..5_000).map(|number| queried(10 * number, 10 * number + 15, status(&[1]))));
    assert!(matches!(
        check(&RegisterModel, &history, 20_000),
        Conclusion::Linearizable(_)
    ));
}

#[test]
fn the_search_says_when_it_gives_up() {
    assert_eq!(
        check(&RegisterModel, &[queried(1, 2, undecided())], 0),
        Conclusion::TooManySteps
    );
}

// ---- against a search that tries every order ----

/// Every order of every set that holds all answered operations.
fn some_order_explains<M: Model>(model: &M, history: &[Operation<M::Input, M::Output>]) -> bool {
    fn extend<M: Model>(
        model: &M,
        history: &[Operation<M::Input, M::Output>],
        taken: &mut Vec<bool>,
        state: &M::State,
    ) -> bool {
        let is_open = |place: usize, taken: &[bool]| !taken[place] && history[place].answer.is_some();
        if (0..history.len()).all(|place| !is_open(place, taken)) {
            return true;
        }
        for place in 0..history.len() {
            let operation = &history[place];
            let comes_too_late = (0..history.len()).any(|other| {
                is_open(other, taken)
                    && history[other]
                        .answer
                        .as_ref()
                        .is_some_and(|(at, _)| *at < operation.asked)
            });
            if taken[place] || comes_too_late {
                continue;
            }
            taken[place] = true;
            let output = operation.answer.as_ref().map(|(_, output)| output);
            let successors = model.successors(state, &operation.input, output);
            if successors.iter().any(|next| extend(model, history, taken, next)) {
                return true;
            }
            taken[place] = false;
        }
        false
    }
    extend(model, history, &mut vec![false; history.len()], &model.initial())
}

/// A counter that can be set, added to and read: a model in which operations undo each other, unlike the register.
#[derive(Clone, Copy, Debug)]
struct Counter;

#[derive(Clone, Copy, Debug)]
enum CounterInput {
    Set(u8),
    AddAndRead(u8),
}

impl Model for Counter {
    type State = u8;
    type Input = CounterInput;
    type Output = u8;

    fn initial(&self) -> u8 {
        0
    }

    fn successors(&self, state: &u8, input: &CounterInput, output: Option<&u8>) -> Vec<u8> {
        let next = match input {
            CounterInput::Set(value) => *value,
            CounterInput::AddAndRead(more) => (state + more) % 4,
        };
        let is_told = match input {
            CounterInput::Set(_) => true,
            CounterInput::AddAndRead(_) => output.is_none_or(|output| *output == next),
        };
        if is_told { vec![next] } else { Vec::new() }
    }
}

fn counter_operations() -> impl Strategy<Value = Vec<Operation<CounterInput, u8>>> {
    let input = prop_oneof![
        (0u8..4).prop_map(CounterInput::Set),
        (0u8..3).prop_map(CounterInput::AddAndRead)
    ];
    let operation = (0u64..12, 0u64..8, input, prop::option::weighted(0.8, 0u8..4)).prop_map(
        |(asked, length, input, output)| match output {
            Some(output) => Operation::answered(asked, input, asked + length, output),
            None => Operation::unanswered(asked, input),
        },
    );
    prop::collection::vec(operation, 0..6)
}

fn proposal() -> impl Strategy<Value = Proposal> {
    prop_oneof![
        Just(commit(&[1])),
        Just(commit(&[1, 2])),
        Just(abort("a")),
        Just(abort("b")),
    ]
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        3 => proposal().prop_map(Input::Propose),
        1 => prop::sample::select(vec![prepared(&[1], &[2]), prepared(&[1], &[2, 3])]),
        2 => Just(Input::Query),
        3 => (1u64..4).prop_map(|number| Input::Inquire(CallId(number), ExecutionId(number))),
    ]
}

/// Any answer that fits the question's form.
fn any_operation() -> impl Strategy<Value = Operation<Input, Output>> {
    let decision = prop::sample::select(vec![
        Decision::Committed,
        Decision::Aborted(cause("a")),
        Decision::Aborted(deadline()),
        Decision::Mismatch,
        Decision::Expired,
    ]);
    let told = prop::sample::select(vec![
        undecided(),
        status(&[1]),
        status(&[1, 2]),
        Output::Status(TransactionStatus::Aborted(cause("a"))),
        Output::Status(TransactionStatus::Expired),
    ]);
    let outcome = prop::sample::select(vec![Outcome::Committed, Outcome::Aborted]);
    (0u64..12, 0u64..8, input(), any::<bool>(), decision, told, outcome).prop_map(
        |(asked, length, input, is_answered, decision, told, outcome)| {
            let output = match &input {
                Input::Propose(_) | Input::ProposePrepared(..) => Output::Decision(decision),
                Input::Query => told,
                Input::Inquire(..) | Input::Hear(..) => Output::Told(outcome),
            };
            match is_answered || length > 3 {
                true => Operation::answered(asked, input, asked + length, output),
                false => Operation::unanswered(asked, input),
            }
        },
    )
}

/// What one client does: when it asks, how long until the effect and from there to the answer, and what is lost.
#[derive(Clone, Debug)]
struct Deed {
    asked: u64,
    effect_after: u64,
    answer_after: u64,
    input: Input,
    is_request_lost: bool,
    is_answer_lost: bool,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = (0u64..200, 0u64..60, 0u64..60, input(), 0u8..10).prop_map(
        |(asked, effect_after, answer_after, input, fate)| Deed {
            asked,
            effect_after,
            answer_after,
            input,
            is_request_lost: fate == 0,
            is_answer_lost: fate == 1 || fate == 2,
        },
    );
    prop::collection::vec(deed, 1..40)
}

/// Lets the deeds happen one at a time on the coordinator's own records, and returns what the clients saw.
fn happen(mut deeds: Vec<Deed>) -> (History, Option<Record>) {
    deeds.sort_by_key(|deed| deed.asked + deed.effect_after);
    let mut record: Option<Record> = None;
    let history = deeds
        .into_iter()
        .map(|deed| {
            if deed.is_request_lost {
                return Operation::unanswered(deed.asked, deed.input);
            }
            let output = answer(&mut record, &deed.input);
            let at = deed.asked + deed.effect_after + deed.answer_after;
            match output.filter(|_| !deed.is_answer_lost) {
                Some(output) => Operation::answered(deed.asked, deed.input, at, output),
                None => Operation::unanswered(deed.asked, deed.input),
            }
        })
        .collect();
    (history, record)
}

fn record_of(proposal: &Proposal) -> Record {
    let verdict = match proposal {
        Proposal::Commit {
            branches,
            read_only_count,
        } => Verdict::Committed {
            branches: branches.clone(),
            read_only_count: *read_only_count,
            settled: std::collections::BTreeSet::new(),
        },
        Proposal::Abort { cause, .. } => Verdict::Aborted(cause.clone()),
    };
    Record {
        verdict,
        decided_at: UnixMillis(0),
    }
}

fn answer(record: &mut Option<Record>, input: &Input) -> Option<Output> {
    match input {
        Input::Propose(proposal) => {
            let record = record.get_or_insert_with(|| record_of(proposal));
            Some(Output::Decision(record.decision_for(proposal)))
        }
        // Even open branches vote to commit, odd ones read-only.
        Input::ProposePrepared(proposal, open) => {
            let Proposal::Commit { branches, .. } = proposal else {
                return None;
            };
            let (even, odd): (Vec<&OpenBranch>, Vec<&OpenBranch>) =
                open.iter().partition(|one| one.call.0 % 2 == 0);
            let even = even.into_iter().map(|one| branch(one.call.0));
            let decided = Proposal::Commit {
                branches: branches.iter().cloned().chain(even).collect(),
                read_only_count: u32::try_from(odd.len()).expect("few"),
            };
            let record = record.get_or_insert_with(|| record_of(&decided));
            Some(Output::Decision(record.decision_for_open(proposal, open)))
        }
        Input::Query => Some(match record.as_ref().map(|record| &record.verdict) {
            None => undecided(),
            Some(Verdict::Aborted(cause)) => Output::Status(TransactionStatus::Aborted(cause.clone())),
            Some(Verdict::Committed {
                branches,
                read_only_count,
                ..
            }) => {
                let named: Vec<u64> = branches.iter().map(|branch| branch.call.0).collect();
                status_with(&named, *read_only_count)
            }
        }),
        Input::Inquire(call, execution) => {
            // Odd branches are past their deadline, even ones are told to ask again.
            if record.is_none() && call.0 % 2 == 0 {
                return Output::of_answer(Answer::Undecided);
            }
            let proposal = Proposal::Abort {
                cause: deadline(),
                branches: Vec::new(),
            };
            let record = record.get_or_insert_with(|| record_of(&proposal));
            Output::of_answer(record.answer_for(*call, *execution))
        }
        Input::Hear(..) => None,
    }
}

fn end_of(history: &History) -> u64 {
    let times = history
        .iter()
        .map(|one| one.answer.as_ref().map_or(one.asked, |(at, _)| *at));
    times.max().unwrap_or(0) + 1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_search_agrees_with_one_that_tries_every_order(history in counter_operations()) {
        let is_explained = some_order_explains(&Counter, &history);
        let conclusion = check(&Counter, &history, STEPS_MAX);
        prop_assert_eq!(matches!(conclusion, Conclusion::Linearizable(_)), is_explained);
    }

    #[test]
    fn so_it_does_on_the_register(history in prop::collection::vec(any_operation(), 0..6)) {
        prop_assert_eq!(accepts(&history), some_order_explains(&RegisterModel, &history));
    }

    /// An order that is returned is a proof: it can be replayed.
    #[test]
    fn the_order_that_is_found_explains_every_answer(deeds in deeds()) {
        let (history, _) = happen(deeds);
        let Conclusion::Linearizable(order) = search(&history) else {
            return Err(TestCaseError::fail("what happened was refused"));
        };
        let mut states = vec![RegisterModel.initial()];
        for place in &order {
            let Operation { input, answer, .. } = &history[*place];
            let output = answer.as_ref().map(|(_, output)| output);
            states = states.iter().flat_map(|state| RegisterModel.successors(state, input, output)).collect();
            prop_assert!(!states.is_empty());
        }
        for (at, place) in order.iter().enumerate() {
            for later in &order[at..] {
                let answered = history[*later].answer.as_ref().map_or(u64::MAX, |(at, _)| *at);
                prop_assert!(answered >= history[*place].asked);
            }
        }
        prop_assert!((0..history.len()).all(|place| history[place].answer.is_none() || order.contains(&place)));
    }

    /// One answer more, which contradicts the record, is refused if the record was told to anybody.
    #[test]
    fn a_history_with_one_impossible_answer_is_refused(deeds in deeds(), kind in 0u8..4) {
        let (mut history, record) = happen(deeds);
        // "Aborted" to a branch that no commit names, or "undecided", fits more than one record.
        let tells = |input: &Input, output: &Output| match output {
            Output::Told(Outcome::Aborted) => *input == Input::Inquire(CallId(1), ExecutionId(1)),
            other => *other != undecided(),
        };
        let was_told =
            history.iter().any(|one| one.answer.as_ref().is_some_and(|(_, output)| tells(&one.input, output)));
        prop_assume!(was_told);
        let (at, record) = (end_of(&history), record.expect("what was told is recorded"));
        let is_committed = matches!(record.verdict, Verdict::Committed { .. });
        history.push(match kind {
            0 => queried(at, at + 1, undecided()),
            1 if is_committed => inquired(at, 1, at + 1, Outcome::Aborted),
            1 => inquired(at, 1, at + 1, Outcome::Committed),
            2 if is_committed => proposed(at, abort("z"), at + 1, Decision::Aborted(cause("z"))),
            2 => proposed(at, commit(&[1]), at + 1, Decision::Committed),
            // Nobody ever proposed these branches.
            _ => queried(at, at + 1, status(&[7, 8])),
        });
        prop_assert!(!accepts(&history));
    }
}
