//! Malformed single calls are refused with the name of their field, before anything is done with them (A20).

use bytes::Bytes;
use synod_proto::command::{Decide, Proposal};
use synod_proto::ids::{CallId, ExecutionId, Gtid, UnixMillis};
use synod_proto::limits::{BRANCH_COUNT_MAX, DATABASE_TRANSACTION_BYTES_MAX, TEXT_BYTES_MAX};
use synod_proto::v1;
use synod_proto::wire::{List, Malformed, Reason, Resolve};

fn id() -> Bytes {
    Bytes::from_static(&[0x42; 16])
}

fn gtid() -> Bytes {
    Gtid::new(UnixMillis(1_645_557_742_000), [7; 10])
        .to_bytes()
        .to_vec()
        .into()
}

fn malformed(field: &'static str, reason: Reason) -> Malformed {
    Malformed { field, reason }
}

fn limit(field: &'static str, unit: &'static str, max: usize) -> Malformed {
    malformed(
        field,
        Reason::Limit {
            unit,
            max,
            actual: max + 1,
        },
    )
}

fn named(call: u64, execution: u64) -> v1::NamedBranch {
    v1::NamedBranch {
        call,
        execution,
        resource: id(),
        digest: 0,
        database_transaction: Bytes::new(),
    }
}

fn commit(branches: Vec<v1::NamedBranch>, read_only_count: u32) -> Result<Decide, Malformed> {
    Decide::try_from(v1::CommitRequest {
        gtid: gtid(),
        lineage: id(),
        deadline_unix_ms: 1,
        branches,
        read_only_count,
    })
}

#[test]
fn a_commit_names_each_branch_once_and_at_most_sixty_four() {
    let field = "CommitRequest.branches";
    let sixty_four: Vec<_> = (0..64).rev().map(|call| named(call, 1)).collect();
    let Proposal::Commit { branches, .. } = commit(sixty_four, 0).expect("within the limit").proposal else {
        panic!("a commit is a commit")
    };
    assert!(branches.iter().map(|branch| branch.call.0).eq(0..64), "sorted");

    let sixty_five = (0..65).map(|call| named(call, 1)).collect();
    assert_eq!(
        commit(sixty_five, 0),
        Err(limit(field, "branches", BRANCH_COUNT_MAX))
    );
    assert_eq!(
        commit(vec![named(1, 2), named(3, 4), named(1, 2)], 0),
        Err(malformed(
            field,
            Reason::Repeated {
                call: CallId(1),
                execution: ExecutionId(2)
            }
        ))
    );
    // T2: the work would take effect twice.
    assert_eq!(
        commit(vec![named(1, 2), named(1, 3)], 0),
        Err(malformed(field, Reason::TwoExecutions { call: CallId(1) }))
    );
    let database_transaction = Bytes::from(vec![0; DATABASE_TRANSACTION_BYTES_MAX + 1]);
    assert_eq!(
        commit(
            vec![v1::NamedBranch {
                database_transaction,
                ..named(1, 2)
            }],
            0
        ),
        Err(limit(
            "NamedBranch.database_transaction",
            "bytes",
            DATABASE_TRANSACTION_BYTES_MAX
        ))
    );
}

/// T5: "no branches" never means success; a count of read-only votes does.
#[test]
fn a_commit_of_nothing_is_refused() {
    assert_eq!(
        commit(Vec::new(), 0),
        Err(malformed("CommitRequest.branches", Reason::Missing))
    );
    let read_only = commit(Vec::new(), 1).expect("every branch was read-only");
    assert_eq!(
        read_only.proposal,
        Proposal::Commit {
            branches: Vec::new(),
            read_only_count: 1
        }
    );
}

#[test]
fn an_abort_may_tell_two_executions_of_a_call() {
    let abort = |branches| {
        Decide::try_from(v1::AbortRequest {
            gtid: gtid(),
            lineage: id(),
            deadline_unix_ms: 1,
            reason: String::new(),
            branches,
        })
    };
    let two = abort(vec![named(1, 3), named(1, 2)]).expect("an abort tells both");
    assert!(
        two.branches().iter().map(|branch| branch.execution.0).eq(2..=3),
        "sorted"
    );
    assert_eq!(
        abort(vec![named(1, 2), named(1, 2)]),
        Err(malformed(
            "AbortRequest.branches",
            Reason::Repeated {
                call: CallId(1),
                execution: ExecutionId(2)
            }
        ))
    );
}

/// J7: an operator's word has an author and a reason, and neither is ever cut.
#[test]
fn an_operator_says_who_and_why() {
    let resolve = v1::ResolveRequest {
        gtid: gtid(),
        author: "ann".into(),
        reason: "gone".into(),
        action: Some(v1::resolve_request::Action::Abort(v1::Empty {})),
    };
    assert!(Resolve::try_from(resolve.clone()).is_ok());
    assert_eq!(
        Resolve::try_from(v1::ResolveRequest {
            reason: String::new(),
            ..resolve.clone()
        }),
        Err(malformed("ResolveRequest.reason", Reason::Missing))
    );
    assert_eq!(
        Resolve::try_from(v1::ResolveRequest {
            action: None,
            ..resolve.clone()
        }),
        Err(malformed("ResolveRequest.action", Reason::Missing))
    );
    // The abort's record has one text for "ann: " and the reason.
    let reason = "x".repeat(TEXT_BYTES_MAX - "ann: ".len() + 1);
    assert_eq!(
        Resolve::try_from(v1::ResolveRequest { reason, ..resolve }),
        Err(limit(
            "ResolveRequest.reason",
            "bytes (with its author)",
            TEXT_BYTES_MAX
        ))
    );
}

#[test]
fn a_page_without_a_length_has_the_default_one() {
    let list = v1::ListRequest {
        after: None,
        unfinished_only: true,
        count_max: 0,
    };
    assert_eq!(
        List::try_from(list),
        Ok(List {
            after: None,
            unfinished_only: true,
            count_max: 100
        })
    );
}
