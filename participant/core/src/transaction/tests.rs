//! The ledger: set up, one step, compare the whole output.

use super::*;
use alloc::string::ToString;
use alloc::vec;
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeSet;
use synod_proto::ids::{InstanceId, OpenToken, ResourceId};

const LINEAGE: Lineage = Lineage([1; 16]);
const RESOURCE: ResourceId = ResourceId([2; 16]);
const DEADLINE: UnixMillis = UnixMillis(31_000);

fn gtid() -> Gtid {
    Gtid::new(UnixMillis(1_000), [7; 10])
}

fn ledger(seed: u64) -> Ledger {
    Ledger::new(LINEAGE, gtid(), DEADLINE, seed)
}

fn vote(call: CallId, execution: u64, vote: Vote) -> BranchVote {
    let execution = ExecutionId(execution);
    BranchVote {
        call,
        execution,
        resource: RESOURCE,
        vote,
        digest: 9,
        database_transaction: Bytes::from_static(b"tx"),
    }
}

fn named(call: CallId, execution: u64) -> NamedBranch {
    vote(call, execution, Vote::Commit).named()
}

fn reply(execution: u64, votes: Vec<BranchVote>) -> Reply {
    Reply {
        execution: ExecutionId(execution),
        votes,
        dooms: vec![],
        open: vec![],
        unnamed: vec![],
    }
}

fn voted(call: CallId, execution: u64) -> Reply {
    reply(execution, vec![vote(call, execution, Vote::Commit)])
}

fn commit_of(branches: Vec<NamedBranch>, read_only_count: u32) -> Commit {
    let proposal = Proposal::Commit {
        branches,
        read_only_count,
    };
    let decide = Decide {
        lineage: LINEAGE,
        gtid: gtid(),
        deadline: DEADLINE,
        proposal,
        guards: vec![],
    };
    Commit { decide, open: vec![] }
}

fn abort_of(cause: AbortCause, branches: Vec<NamedBranch>) -> Decide {
    let proposal = Proposal::Abort { cause, branches };
    Decide {
        lineage: LINEAGE,
        gtid: gtid(),
        deadline: DEADLINE,
        proposal,
        guards: vec![],
    }
}

/// T5: the commit names every branch that voted to commit, in order, and counts the read-only ones.
#[test]
fn a_commit_names_every_branch_in_order() {
    let mut ledger = ledger(1);
    let calls: Vec<CallId> = (0..3).map(|_| ledger.call().unwrap()).collect();
    ledger.on_reply(calls[2], voted(calls[2], 12)).unwrap();
    ledger.on_reply(calls[0], voted(calls[0], 10)).unwrap();
    ledger
        .on_reply(calls[1], reply(11, vec![vote(calls[1], 11, Vote::ReadOnly)]))
        .unwrap();

    let mut branches = vec![named(calls[0], 10), named(calls[2], 12)];
    branches.sort();
    assert_eq!(ledger.hand_over(), Ok(commit_of(branches, 1)));
    assert_eq!(*ledger.state(), State::HandedOver);
}

/// T5, B5: only read-only votes are a commit with an empty list; no votes at all are nothing to commit.
#[test]
fn no_branches_is_never_success() {
    assert_eq!(ledger(1).hand_over(), Err(CommitRefused::Empty));

    let mut read_only = ledger(1);
    let call = read_only.call().unwrap();
    read_only
        .on_reply(call, reply(1, vec![vote(call, 1, Vote::ReadOnly)]))
        .unwrap();
    assert_eq!(read_only.hand_over(), Ok(commit_of(vec![], 1)));

    let mut discarded = ledger(1);
    let call = discarded.call().unwrap();
    discarded.on_reply(call, voted(call, 1)).unwrap();
    discarded.discard(call).unwrap();
    assert_eq!(discarded.hand_over(), Err(CommitRefused::Empty));
}

/// T4: a call without an answer, and one that failed, each keep the transaction from committing; discarding it by name
/// is the only way on.
#[test]
fn every_call_is_answered_for() {
    let mut ledger = ledger(2);
    let (good, late) = (ledger.call().unwrap(), ledger.call().unwrap());
    ledger.on_reply(good, voted(good, 1)).unwrap();
    assert_eq!(ledger.hand_over(), Err(CommitRefused::Unanswered { call: late }));

    ledger.on_failure(late, "connection reset").unwrap();
    let cause = AbortCause::new(AbortKind::Doomed, "connection reset");
    assert_eq!(
        ledger.hand_over(),
        Err(CommitRefused::Doomed(Doom { call: late, cause }))
    );

    // Its reply comes after all: the user has already seen the failure, so it stays one.
    assert_eq!(ledger.on_reply(late, voted(late, 2)), Err(Ignored::AfterFailure));
    ledger.discard(late).unwrap();
    assert_eq!(ledger.hand_over(), Ok(commit_of(vec![named(good, 1)], 0)));
}

/// T2: the same reply twice is one vote; of two executions of one call only the first is named, with everything nested in
/// it, and the other never.
#[test]
fn one_execution_of_a_call_is_named() {
    let mut ledger = ledger(3);
    let call = ledger.call().unwrap();
    let nested = |id| vote(CallId(id), id, Vote::Commit);
    let first = reply(1, vec![vote(call, 1, Vote::Commit), nested(501)]);
    let hedged = reply(2, vec![vote(call, 2, Vote::Commit), nested(502)]);
    assert_eq!(ledger.on_reply(call, first.clone()), Ok(()));
    assert_eq!(ledger.on_reply(call, first), Err(Ignored::SameReply));
    assert_eq!(ledger.on_reply(call, hedged), Err(Ignored::OtherExecution));

    let mut branches = vec![named(call, 1), named(CallId(501), 501)];
    branches.sort();
    assert_eq!(ledger.hand_over(), Ok(commit_of(branches, 0)));
}

/// A vote to abort dooms, names its branch as the cause, and is told to the branches that did prepare.
#[test]
fn a_vote_to_abort_is_the_cause_of_the_abort() {
    let mut ledger = ledger(4);
    let (good, bad) = (ledger.call().unwrap(), ledger.call().unwrap());
    ledger.on_reply(good, voted(good, 1)).unwrap();
    let abort = Vote::Abort {
        cause: "out of stock".to_string(),
    };
    ledger.on_reply(bad, reply(2, vec![vote(bad, 2, abort)])).unwrap();

    let branch = Some((bad, ExecutionId(2)));
    let cause = AbortCause {
        kind: AbortKind::VotedAbort,
        branch,
        text: "out of stock".to_string(),
    };
    let doom = Doom {
        call: bad,
        cause: cause.clone(),
    };
    assert_eq!(ledger.hand_over(), Err(CommitRefused::Doomed(doom)));
    assert_eq!(ledger.on_drop(), Some(abort_of(cause, vec![named(good, 1)])));
    assert_eq!(*ledger.state(), State::AbortProposed);
}

/// T4, upwards: a nested call that failed dooms the root through the reply between them, until somebody discards it by
/// name; and then nothing that ran beneath it is named either.
#[test]
fn doom_goes_up_through_nested_replies() {
    let mut root = ledger(5);
    let middle_call = root.call().unwrap();
    let mut middle = ledger(6);
    let leaf_call = middle.call().unwrap();
    let abort = Vote::Abort {
        cause: "no".to_string(),
    };
    let below = vote(CallId(77), 5, Vote::Commit);
    middle
        .on_reply(
            leaf_call,
            reply(3, vec![vote(leaf_call, 3, abort), below.clone()]),
        )
        .unwrap();

    let up = middle.reply(ExecutionId(2), Some(vote(middle_call, 2, Vote::Commit)));
    let cause = AbortCause {
        kind: AbortKind::VotedAbort,
        branch: Some((leaf_call, ExecutionId(3))),
        text: "no".to_string(),
    };
    let doom = Doom {
        call: leaf_call,
        cause,
    };
    let expected = Reply {
        execution: ExecutionId(2),
        votes: vec![vote(middle_call, 2, Vote::Commit)],
        dooms: vec![doom.clone()],
        open: vec![],
        unnamed: vec![below.named()],
    };
    assert_eq!(up, expected);

    root.on_reply(middle_call, up).unwrap();
    assert_eq!(root.hand_over(), Err(CommitRefused::Doomed(doom)));
    assert_eq!(root.discard(CallId(1)), Err(Ignored::UnknownCall));
    root.discard(leaf_call).unwrap();
    assert_eq!(root.hand_over(), Ok(commit_of(vec![named(middle_call, 2)], 0)));
}

/// T4: a handler that answers while a call of its own is open has left it unanswered for good.
#[test]
fn a_nested_call_left_open_dooms_the_reply() {
    let mut middle = ledger(6);
    let open = middle.call().unwrap();
    let up = middle.reply(ExecutionId(2), None);
    let expected = Reply {
        dooms: vec![Doom {
            call: open,
            cause: unanswered(),
        }],
        ..reply(2, vec![])
    };
    assert_eq!(up, expected);
}

/// T7: after the hand-over nothing changes what was named, and dropping aborts nothing.
#[test]
fn after_the_hand_over_there_is_no_way_back() {
    let mut ledger = ledger(7);
    let (call, other) = (ledger.call().unwrap(), ledger.call().unwrap());
    ledger.on_reply(call, voted(call, 1)).unwrap();
    ledger.discard(other).unwrap();
    ledger.hand_over().unwrap();

    assert_eq!(ledger.call(), Err(CallRefused::Closed));
    assert_eq!(ledger.on_reply(other, voted(other, 1)), Err(Ignored::Closed));
    assert_eq!(ledger.on_failure(call, "late"), Err(Ignored::Closed));
    assert_eq!(ledger.discard(call), Err(Ignored::Closed));
    assert_eq!(ledger.hand_over(), Err(CommitRefused::Closed));
    assert_eq!(ledger.on_drop(), None);

    // The initiator may still propose abort; the state says that a commit is out there.
    let cause = AbortCause::new(AbortKind::Requested, "changed my mind");
    assert_eq!(
        ledger.propose_abort(cause.clone()),
        abort_of(cause, vec![named(call, 1)])
    );
    assert_eq!(*ledger.state(), State::HandedOver);

    // B6: the first decision stands.
    assert_eq!(ledger.on_decision(Decision::Committed), Ok(()));
    assert_eq!(ledger.on_decision(Decision::Committed), Ok(()));
    assert_eq!(ledger.on_decision(Decision::Mismatch), Err(Ignored::Closed));
    assert_eq!(*ledger.state(), State::Decided(Decision::Committed));
}

/// T7: before anything was handed over, taking back opens the transaction again, and the same commit can be made.
#[test]
fn what_was_not_handed_over_can_be_taken_back() {
    let mut ledger = ledger(8);
    let call = ledger.call().unwrap();
    ledger.on_reply(call, voted(call, 1)).unwrap();
    let first = ledger.hand_over().unwrap();
    ledger.take_back();
    assert_eq!(*ledger.state(), State::Open);
    assert_eq!(ledger.hand_over(), Ok(first));
}

/// Begin costs nothing, and so does dropping what never made a call.
#[test]
fn an_untouched_transaction_needs_no_abort() {
    assert_eq!(ledger(9).on_drop(), None);
    let mut called = ledger(9);
    called.call().unwrap();
    assert_eq!(called.on_drop(), Some(abort_of(unanswered(), vec![])));
    assert_eq!(called.hand_over(), Err(CommitRefused::Closed));
}

/// B4: two replies that tell different things of one call are a bug somewhere, and nothing commits on it.
#[test]
fn contradicting_replies_are_refused() {
    let mut ledger = ledger(10);
    let (one, two) = (ledger.call().unwrap(), ledger.call().unwrap());
    let nested = CallId(99);
    ledger
        .on_reply(one, reply(1, vec![vote(nested, 5, Vote::Commit)]))
        .unwrap();
    ledger
        .on_reply(two, reply(2, vec![vote(nested, 6, Vote::Commit)]))
        .unwrap();
    assert_eq!(
        ledger.hand_over(),
        Err(CommitRefused::Contradiction { call: nested })
    );
}

/// A20: branches and calls are bounded.
#[test]
fn branches_and_calls_are_bounded() {
    let mut wide = ledger(11);
    for execution in 0..=BRANCH_COUNT_MAX as u64 {
        let call = wide.call().unwrap();
        wide.on_reply(call, voted(call, execution)).unwrap();
    }
    assert_eq!(
        wide.hand_over(),
        Err(CommitRefused::TooManyBranches {
            count: BRANCH_COUNT_MAX + 1
        })
    );
    let Some(Decide {
        proposal: Proposal::Abort { branches, .. },
        ..
    }) = wide.on_drop()
    else {
        panic!("no abort")
    };
    assert_eq!(
        branches.len(),
        BRANCH_COUNT_MAX,
        "an abort tells as many as a record may name"
    );

    let mut long = ledger(12);
    for _ in 0..CALL_COUNT_MAX {
        long.call().unwrap();
    }
    assert_eq!(long.call(), Err(CallRefused::TooManyCalls));
}

#[derive(Clone, Debug)]
enum Step {
    Call,
    Reply { call: usize, execution: u64, vote: Vote },
    Failure { call: usize },
    Discard { call: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let vote = prop_oneof![
        6 => Just(Vote::Commit),
        2 => Just(Vote::ReadOnly),
        1 => Just(Vote::Abort { cause: "no".to_string() }),
    ];
    let step = prop_oneof![
        3 => Just(Step::Call),
        5 => (0..8usize, 0..3u64, vote).prop_map(|(call, execution, vote)| Step::Reply { call, execution, vote }),
        1 => (0..8usize).prop_map(|call| Step::Failure { call }),
        1 => (0..8usize).prop_map(|call| Step::Discard { call }),
    ];
    prop::collection::vec(step, 0..40)
}

/// What a call came to, in a model that knows nothing of the ledger.
#[derive(Clone, Debug, PartialEq)]
enum Fate {
    Open,
    Voted(u64, Vote),
    Failed,
    Discarded,
}

proptest! {
    /// T2, T4, T5 against a model: a commit is handed over exactly when every call that was not discarded has voted to commit
    /// or read-only, and it names exactly their first executions. Every reply is delivered twice.
    #[test]
    fn the_ledger_agrees_with_its_model(steps in steps(), seed: u64) {
        let mut ledger = ledger(seed);
        let mut calls: Vec<CallId> = Vec::new();
        let mut fates: Vec<Fate> = Vec::new();
        for step in steps {
            match step {
                Step::Call if calls.len() < 8 => {
                    calls.push(ledger.call().unwrap());
                    fates.push(Fate::Open);
                }
                Step::Call => {}
                Step::Reply { call, execution, vote: answer } => {
                    let Some(id) = calls.get(call) else { continue };
                    let message = reply(execution, vec![vote(*id, execution, answer.clone())]);
                    let first = ledger.on_reply(*id, message.clone());
                    prop_assert_eq!(first.is_ok(), fates[call] == Fate::Open);
                    prop_assert!(ledger.on_reply(*id, message).is_err(), "a reply counted twice");
                    if fates[call] == Fate::Open {
                        fates[call] = Fate::Voted(execution, answer);
                    }
                }
                Step::Failure { call } => {
                    let Some(id) = calls.get(call) else { continue };
                    prop_assert_eq!(ledger.on_failure(*id, "lost").is_ok(), fates[call] == Fate::Open);
                    if fates[call] == Fate::Open {
                        fates[call] = Fate::Failed;
                    }
                }
                Step::Discard { call } => {
                    let Some(id) = calls.get(call) else { continue };
                    prop_assert_eq!(ledger.discard(*id).is_ok(), fates[call] != Fate::Discarded);
                    fates[call] = Fate::Discarded;
                }
            }
        }
        let mut branches = Vec::new();
        let mut read_only_count = 0;
        let mut may_commit = false;
        for (call, fate) in calls.iter().zip(&fates) {
            match fate {
                Fate::Voted(execution, Vote::Commit) => branches.push(named(*call, *execution)),
                Fate::Voted(_, Vote::ReadOnly) => read_only_count += 1,
                Fate::Discarded | Fate::Open | Fate::Failed | Fate::Voted(_, Vote::Abort { .. }) => {}
            }
            may_commit |= matches!(fate, Fate::Voted(..));
        }
        let is_doomed = fates
            .iter()
            .any(|fate| matches!(fate, Fate::Open | Fate::Failed | Fate::Voted(_, Vote::Abort { .. })));
        branches.sort();
        let handed_over = ledger.hand_over();
        if may_commit && !is_doomed {
            let expected = commit_of(branches, read_only_count);
            // What was handed over is a valid command (J9: encoded once, decoded by every replica).
            prop_assert_eq!(Decide::decode(&expected.decide.encode()), Ok(expected.decide.clone()));
            prop_assert_eq!(handed_over, Ok(expected));
            prop_assert_eq!(ledger.on_drop(), None);
        } else {
            prop_assert!(handed_over.is_err());
            prop_assert_eq!(ledger.state(), &State::Open);
        }
    }

    /// T4 over a tree of nested calls: the root commits exactly if no call anywhere in the tree failed, and names every
    /// branch of it. Each node is (its vote is to commit, its children's failures).
    #[test]
    fn a_tree_of_calls_commits_whole_or_not_at_all(
        tree in prop::collection::vec((prop::bool::weighted(0.9), prop::collection::vec(prop::bool::weighted(0.9), 0..4)), 1..5),
        seed: u64,
    ) {
        let mut root = ledger(seed);
        let mut execution = 0;
        let mut expected = BTreeSet::new();
        let mut is_whole = true;
        for (votes_commit, leaves) in tree {
            let call = root.call().unwrap();
            execution += 1;
            let mut middle = ledger(seed.wrapping_add(1_000 + execution));
            let own_execution = execution;
            for succeeds in leaves {
                let leaf = middle.call().unwrap();
                execution += 1;
                if succeeds {
                    middle.on_reply(leaf, voted(leaf, execution)).unwrap();
                    expected.insert(named(leaf, execution));
                } else {
                    middle.on_failure(leaf, "lost").unwrap();
                    is_whole = false;
                }
            }
            let answer = if votes_commit { Vote::Commit } else { Vote::Abort { cause: "no".to_string() } };
            is_whole &= votes_commit;
            expected.insert(named(call, own_execution));
            root.on_reply(call, middle.reply(ExecutionId(own_execution), Some(vote(call, own_execution, answer)))).unwrap();
        }
        match root.hand_over() {
            Ok(commit) => {
                prop_assert!(is_whole);
                prop_assert_eq!(commit, commit_of(expected.into_iter().collect(), 0));
            }
            Err(CommitRefused::Doomed(_)) => prop_assert!(!is_whole),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

fn opened(call: CallId, execution: u64, count_seen: u32) -> OpenCalls {
    OpenCalls {
        branch: OpenBranch {
            call,
            execution: ExecutionId(execution),
            resource: RESOURCE,
            instance: InstanceId([3; 16]),
            token: OpenToken(5),
            call_count: 1,
        },
        count_seen,
    }
}

fn left_open(execution: u64, calls: OpenCalls) -> Reply {
    Reply {
        open: vec![calls],
        ..reply(execution, vec![])
    }
}

/// T3, T4: calls on one open branch are one branch, with as many calls as were answered, here and further down; it is
/// handed over beside the branches that voted.
#[test]
fn calls_on_an_open_branch_are_counted_together() {
    let mut root = ledger(11);
    let first = root.call().unwrap();
    root.on_reply(first, left_open(1, opened(first, 1, 1))).unwrap();
    let agent = root.call().unwrap();
    let mut middle = ledger(12);
    for (execution, count_seen) in [(20, 2), (21, 3)] {
        let below = middle.call().unwrap();
        middle
            .on_reply(below, left_open(execution, opened(first, 1, count_seen)))
            .unwrap();
    }
    root.on_reply(agent, middle.reply(ExecutionId(2), None)).unwrap();
    let beside = root.call().unwrap();
    root.on_reply(beside, voted(beside, 3)).unwrap();
    let expected = Commit {
        open: vec![OpenBranch {
            call_count: 3,
            ..opened(first, 1, 3).branch
        }],
        ..commit_of(vec![named(beside, 3)], 0)
    };
    assert_eq!(root.hand_over(), Ok(expected));
}

/// T4: "the ledger checks that counts agree": a discarded call's work is still in the branch. An abort tells the branch
/// all the same.
#[test]
fn a_missing_call_of_an_open_branch_is_noticed() {
    let mut ledger = ledger(13);
    let (first, second) = (ledger.call().unwrap(), ledger.call().unwrap());
    ledger.on_reply(first, left_open(1, opened(first, 1, 1))).unwrap();
    ledger
        .on_reply(second, left_open(2, opened(first, 1, 2)))
        .unwrap();
    ledger.discard(first).unwrap();
    let refused = CommitRefused::CallCount {
        call: first,
        counted: 1,
        seen: 2,
    };
    assert_eq!(ledger.hand_over(), Err(refused));
    let cause = AbortCause::new(AbortKind::Requested, "so");
    let told = opened(first, 1, 2).named();
    assert_eq!(ledger.propose_abort(cause.clone()), abort_of(cause, vec![told]));
}

/// T2, B4: one call is one branch, of one kind, in one place.
#[test]
fn contradicting_replies_about_an_open_branch_are_refused() {
    let contradicting = |second: fn(CallId) -> Reply| {
        let mut ledger = ledger(14);
        let (first, other) = (ledger.call().unwrap(), ledger.call().unwrap());
        ledger.on_reply(first, left_open(1, opened(first, 1, 1))).unwrap();
        ledger.on_reply(other, second(first)).unwrap();
        assert_eq!(
            ledger.hand_over(),
            Err(CommitRefused::Contradiction { call: first })
        );
    };
    contradicting(|first| left_open(2, opened(first, 9, 1)));
    contradicting(|first| {
        let mut elsewhere = opened(first, 1, 1);
        elsewhere.branch.token = OpenToken(6);
        left_open(2, elsewhere)
    });
    contradicting(|first| reply(2, vec![vote(first, 1, Vote::Commit)]));
    // A reply speaks for one execution of its call.
    let mut ledger = ledger(15);
    let call = ledger.call().unwrap();
    ledger.on_reply(call, left_open(2, opened(call, 1, 1))).unwrap();
    assert_eq!(ledger.hand_over(), Err(CommitRefused::Contradiction { call }));
}
