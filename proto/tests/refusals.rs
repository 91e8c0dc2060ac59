//! Malformed input is refused with the name of its field, in one place, before anything is done with it (A20): the
//! session stream. The single calls are in `refusals_unary.rs`.

use bytes::Bytes;
use synod_proto::ids::{CallId, ExecutionId, Gtid, ReplicaId, ResourceId, UnixMillis};
use synod_proto::limits::{
    BRANCH_COUNT_MAX, COMMAND_BYTES_MAX, DATABASE_TRANSACTION_BYTES_MAX, LIST_COUNT_MAX, RESOURCE_COUNT_MAX,
    TEXT_BYTES_MAX,
};
use synod_proto::session::{BranchStatus, DeliveryStatus, Refusal, Request, Response, TransactionStatus};
use synod_proto::v1;
use synod_proto::v1::session_request::Request as WireRequest;
use synod_proto::v1::session_response::Response as WireResponse;
use synod_proto::wire::{Malformed, Reason};

fn id() -> Bytes {
    Bytes::from_static(&[0x42; 16])
}

fn gtid() -> Bytes {
    Gtid::new(UnixMillis(1_645_557_742_000), [7; 10])
        .to_bytes()
        .to_vec()
        .into()
}

fn branch() -> Option<v1::Branch> {
    Some(v1::Branch {
        gtid: gtid(),
        call: 1,
        execution: 2,
    })
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

fn refused(request: WireRequest) -> Malformed {
    Request::try_from(v1::SessionRequest {
        request: Some(request),
    })
    .expect_err("refused")
}

fn refused_response(response: WireResponse) -> Malformed {
    Response::try_from(v1::SessionResponse {
        response: Some(response),
    })
    .expect_err("refused")
}

#[test]
fn ids_are_sixteen_bytes_and_gtids_are_uuids_of_version_7() {
    let query = |gtid: &[u8]| {
        refused(WireRequest::Outcome(v1::QueryOutcome {
            request: 1,
            gtid: Bytes::copy_from_slice(gtid),
        }))
    };
    let field = "QueryOutcome.gtid";
    assert_eq!(query(&[]), malformed(field, Reason::Missing));
    assert_eq!(
        query(&[1; 15]),
        malformed(
            field,
            Reason::Length {
                expected: 16,
                actual: 15
            }
        )
    );
    assert_eq!(
        query(&[1; 17]),
        malformed(
            field,
            Reason::Length {
                expected: 16,
                actual: 17
            }
        )
    );
    assert_eq!(query(&[1; 16]), malformed(field, Reason::NotGtid));

    let register = |lineage, resources| {
        refused(WireRequest::Register(v1::Register {
            request: 1,
            lineage,
            resources,
        }))
    };
    assert_eq!(
        register(Some(Bytes::from_static(b"short")), Vec::new()),
        malformed(
            "Register.lineage",
            Reason::Length {
                expected: 16,
                actual: 5
            }
        )
    );
    // Absent is "never met a coordinator"; present and empty is a bug.
    assert_eq!(
        register(Some(Bytes::new()), Vec::new()),
        malformed("Register.lineage", Reason::Missing)
    );
    assert_eq!(
        register(None, vec![id(), Bytes::new()]),
        malformed("Register.resources", Reason::Missing)
    );
}

#[test]
fn a_request_without_its_parts_is_refused() {
    let empty = Request::try_from(v1::SessionRequest::default());
    assert_eq!(empty, Err(malformed("SessionRequest.request", Reason::Missing)));

    let inquire = v1::Inquire {
        branch: branch(),
        resource: id(),
        lineage: id(),
        deadline_unix_ms: 1,
    };
    assert_eq!(
        refused(WireRequest::Inquire(v1::Inquire {
            branch: None,
            ..inquire.clone()
        })),
        malformed("Inquire.branch", Reason::Missing)
    );
    assert_eq!(
        refused(WireRequest::Inquire(v1::Inquire {
            branch: Some(v1::Branch::default()),
            ..inquire.clone()
        })),
        malformed("Branch.gtid", Reason::Missing)
    );
    assert_eq!(
        refused(WireRequest::Inquire(v1::Inquire {
            resource: Bytes::new(),
            ..inquire.clone()
        })),
        malformed("Inquire.resource", Reason::Missing)
    );
    // T11: a branch that does not say its lineage is answered by nobody.
    assert_eq!(
        refused(WireRequest::Inquire(v1::Inquire {
            lineage: Bytes::new(),
            ..inquire
        })),
        malformed("Inquire.lineage", Reason::Missing)
    );
    assert_eq!(
        refused(WireRequest::Acknowledge(v1::Acknowledge {
            branch: branch(),
            resource: Bytes::new()
        })),
        malformed("Acknowledge.resource", Reason::Missing)
    );
}

/// J7: an operator's word has an author and a reason, and neither is ever cut.
#[test]
fn an_operator_says_who_and_why() {
    let settle = v1::Settle {
        request: 1,
        branch: branch(),
        author: "ann".into(),
        reason: "gone".into(),
    };
    assert_eq!(
        refused(WireRequest::Settle(v1::Settle {
            author: String::new(),
            ..settle.clone()
        })),
        malformed("Settle.author", Reason::Missing)
    );
    assert_eq!(
        refused(WireRequest::Settle(v1::Settle {
            reason: "x".repeat(TEXT_BYTES_MAX + 1),
            ..settle
        })),
        limit("Settle.reason", "bytes", TEXT_BYTES_MAX)
    );
}

#[test]
fn every_list_text_and_length_has_its_limit() {
    let resources = vec![id(); RESOURCE_COUNT_MAX + 1];
    assert_eq!(
        refused(WireRequest::Register(v1::Register {
            request: 1,
            lineage: None,
            resources
        })),
        limit("Register.resources", "resources", RESOURCE_COUNT_MAX)
    );
    let command = Bytes::from(vec![0; COMMAND_BYTES_MAX + 1]);
    assert_eq!(
        refused(WireRequest::Decide(v1::Decide { request: 1, command })),
        limit("Decide.command", "bytes", COMMAND_BYTES_MAX)
    );
    let text = "x".repeat(TEXT_BYTES_MAX + 1);
    assert_eq!(
        refused(WireRequest::Hazard(v1::Hazard {
            branch: branch(),
            resource: id(),
            text: text.clone()
        })),
        limit("Hazard.text", "bytes", TEXT_BYTES_MAX)
    );
    let list = v1::ListTransactions {
        request: 1,
        after: None,
        unfinished_only: false,
        count_max: LIST_COUNT_MAX + 1,
    };
    assert_eq!(
        refused(WireRequest::List(list)),
        limit(
            "ListTransactions.count_max",
            "transactions",
            LIST_COUNT_MAX as usize
        )
    );
    let cause = v1::AbortCause {
        kind: v1::AbortKind::Doomed.into(),
        call: None,
        execution: None,
        text,
    };
    let decision = v1::Decision {
        decision: Some(v1::decision::Decision::Aborted(cause)),
    };
    assert_eq!(
        refused_response(WireResponse::Decided(v1::Decided {
            request: 1,
            decision: Some(decision)
        })),
        limit("AbortCause.text", "bytes", TEXT_BYTES_MAX)
    );
    let one = v1::BranchStatus {
        call: 1,
        execution: 1,
        resource: id(),
        delivery: Some(v1::branch_status::Delivery::Pending(v1::Empty {})),
    };
    let committed = v1::CommittedStatus {
        branches: vec![one; BRANCH_COUNT_MAX + 1],
        read_only_count: 0,
    };
    let status = v1::TransactionStatus {
        status: Some(v1::transaction_status::Status::Committed(committed)),
    };
    assert_eq!(
        TransactionStatus::try_from(status),
        Err(limit("CommittedStatus.branches", "branches", BRANCH_COUNT_MAX))
    );
    let transactions = vec![v1::TransactionSummary::default(); LIST_COUNT_MAX as usize + 1];
    assert_eq!(
        refused_response(WireResponse::Listed(v1::Listed {
            request: 1,
            transactions
        })),
        limit("Listed.transactions", "transactions", LIST_COUNT_MAX as usize)
    );
}

/// An unknown or unspecified value is never guessed: the guess would be an outcome.
#[test]
fn unknown_outcomes_are_refused() {
    for value in [0, 3, -1, 99] {
        let deliver = v1::Deliver {
            branch: branch(),
            resource: id(),
            outcome: value,
        };
        let reason = Reason::Unknown {
            value: i64::from(value),
        };
        assert_eq!(
            refused_response(WireResponse::Deliver(deliver)),
            malformed("Deliver.outcome", reason)
        );
    }
    for value in [0, 4] {
        let answered = v1::Answered {
            branch: branch(),
            answer: value,
        };
        let reason = Reason::Unknown {
            value: i64::from(value),
        };
        assert_eq!(
            refused_response(WireResponse::Answered(answered)),
            malformed("Answered.answer", reason)
        );
    }
    let no_decision = v1::Decided {
        request: 1,
        decision: Some(v1::Decision { decision: None }),
    };
    assert_eq!(
        refused_response(WireResponse::Decided(no_decision)),
        malformed("Decision.decision", Reason::Missing)
    );
    let cause = |kind, call| {
        let cause = v1::AbortCause {
            kind,
            call,
            execution: None,
            text: String::new(),
        };
        let aborted = v1::decision::Decision::Aborted(cause);
        let decision = Some(v1::Decision {
            decision: Some(aborted),
        });
        refused_response(WireResponse::Decided(v1::Decided { request: 1, decision }))
    };
    assert_eq!(
        cause(7, None),
        malformed("AbortCause.kind", Reason::Unknown { value: 7 })
    );
    assert_eq!(
        cause(1, Some(1)),
        malformed("AbortCause.execution", Reason::Missing)
    );
    let not_leader = v1::NotLeader {
        leader: 256,
        address: String::new(),
    };
    let refusal = v1::Refusal {
        refusal: Some(v1::refusal::Refusal::NotLeader(not_leader)),
    };
    assert_eq!(
        Refusal::try_from(refusal),
        Err(malformed("NotLeader.leader", Reason::Unknown { value: 256 }))
    );
}

/// The sentence that the caller reads names the field, what it holds and what it may hold.
#[test]
fn refusals_read_as_sentences() {
    let sentence = |malformed: Malformed| match Refusal::from(malformed) {
        Refusal::Invalid { text } => text,
        other => panic!("{other:?}"),
    };
    let sentences = [
        malformed("Inquire.branch", Reason::Missing),
        malformed(
            "QueryOutcome.gtid",
            Reason::Length {
                expected: 16,
                actual: 3,
            },
        ),
        malformed("QueryOutcome.gtid", Reason::NotGtid),
        malformed("Deliver.outcome", Reason::Unknown { value: 9 }),
        limit("CommitRequest.branches", "branches", 64),
        malformed(
            "CommitRequest.branches",
            Reason::Repeated {
                call: CallId(1),
                execution: ExecutionId(2),
            },
        ),
        malformed(
            "CommitRequest.branches",
            Reason::TwoExecutions { call: CallId(1) },
        ),
    ]
    .map(sentence);
    assert_eq!(
        sentences,
        [
            "`Inquire.branch` is missing, or of a kind that this version does not know",
            "`QueryOutcome.gtid` has 3 bytes instead of 16",
            "`QueryOutcome.gtid` is not a gtid (UUID version 7)",
            "`Deliver.outcome` has the unknown value 9",
            "`CommitRequest.branches` has 65 branches, more than 64",
            "`CommitRequest.branches` names the branch 0000000000000001/0000000000000002 twice",
            "`CommitRequest.branches` names two executions of the call 0000000000000001",
        ]
    );
}

/// Long explanations are cut by their sender, so that a refusal is never itself refused.
#[test]
fn long_explanations_arrive_cut() {
    let long = "é".repeat(TEXT_BYTES_MAX);
    let wire = v1::Refusal::from(Refusal::Overloaded { what: long });
    assert_eq!(
        Refusal::try_from(wire),
        Ok(Refusal::Overloaded {
            what: "é".repeat(TEXT_BYTES_MAX / 2)
        })
    );
    let found = |text: String| Request::Hazard {
        branch: branch().expect("given").try_into().expect("valid"),
        resource: ResourceId([0x42; 16]),
        text,
    };
    let wire = v1::SessionRequest::from(found("é".repeat(TEXT_BYTES_MAX)));
    assert_eq!(Request::try_from(wire), Ok(found("é".repeat(TEXT_BYTES_MAX / 2))));

    let status = |text: String| BranchStatus {
        call: CallId(1),
        execution: ExecutionId(2),
        resource: ResourceId([0x42; 16]),
        delivery: DeliveryStatus::Hazard(text),
    };
    let wire = v1::BranchStatus::from(status("é".repeat(TEXT_BYTES_MAX)));
    assert_eq!(
        BranchStatus::try_from(wire),
        Ok(status("é".repeat(TEXT_BYTES_MAX / 2)))
    );
}

/// A core knows numbers, not addresses: a refusal without one still says who leads.
#[test]
fn a_leader_without_an_address_keeps_its_number() {
    let nobody = v1::Refusal::from(Refusal::NotLeader {
        leader: Some(ReplicaId(3)),
    });
    assert_eq!(
        Refusal::try_from(nobody),
        Ok(Refusal::NotLeader {
            leader: Some(ReplicaId(3))
        })
    );
}

/// T3, B5: the open branches of a commit are some, each once and counted, in the order in which it will name them.
#[test]
fn open_branches_come_in_order_counted_and_once() {
    let open = |call, execution| v1::OpenBranch {
        call,
        execution,
        resource: id(),
        instance: id(),
        token: 1,
        call_count: 2,
    };
    let asked = |open| {
        let command = Bytes::new();
        refused(WireRequest::PrepareAndDecide(v1::PrepareAndDecide {
            request: 1,
            command,
            open,
        }))
    };
    let field = "PrepareAndDecide.open";
    assert_eq!(asked(vec![]), malformed(field, Reason::Missing));
    assert_eq!(
        asked(vec![open(2, 1), open(1, 1)]),
        malformed(field, Reason::Disordered)
    );
    let (call, execution) = (CallId(1), ExecutionId(1));
    assert_eq!(
        asked(vec![open(1, 1), open(1, 1)]),
        malformed(field, Reason::Repeated { call, execution })
    );
    assert_eq!(
        asked(vec![open(1, 1), open(1, 2)]),
        malformed(field, Reason::TwoExecutions { call })
    );
    let uncounted = v1::OpenBranch {
        call_count: 0,
        ..open(1, 1)
    };
    assert_eq!(
        asked(vec![uncounted]),
        malformed("OpenBranch.call_count", Reason::Missing)
    );
    let many = (0..=BRANCH_COUNT_MAX as u64).map(|call| open(call, 1)).collect();
    assert_eq!(asked(many), limit(field, "branches", BRANCH_COUNT_MAX));
    let unidentified = v1::OpenBranch {
        instance: Bytes::new(),
        ..open(1, 1)
    };
    assert_eq!(
        asked(vec![unidentified]),
        malformed("OpenBranch.instance", Reason::Missing)
    );
}

/// A vote that says nothing is none.
#[test]
fn a_vote_says_which() {
    let voted = |vote| {
        refused(WireRequest::Voted(v1::Voted {
            branch: branch(),
            resource: id(),
            vote,
        }))
    };
    assert_eq!(voted(None), malformed("Voted.vote", Reason::Missing));
    let commit = v1::CommitVote {
        digest: 0,
        database_transaction: vec![0; DATABASE_TRANSACTION_BYTES_MAX + 1].into(),
    };
    assert_eq!(
        voted(Some(v1::voted::Vote::Commit(commit))),
        limit(
            "CommitVote.database_transaction",
            "bytes",
            DATABASE_TRANSACTION_BYTES_MAX
        )
    );
    let text = "x".repeat(TEXT_BYTES_MAX + 1);
    assert_eq!(
        voted(Some(v1::voted::Vote::Abort(text))),
        limit("Voted.abort", "bytes", TEXT_BYTES_MAX)
    );
}
