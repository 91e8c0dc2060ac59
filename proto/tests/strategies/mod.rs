//! Arbitrary domain values, within their limits: what a correct sender may say.
#![allow(dead_code, reason = "each test binary uses its own part")]

use bytes::Bytes;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use synod_proto::command::{Command, DELIVERED_COUNT_MAX, Decide, Guard, NamedBranch, Proposal, Settle};
use synod_proto::ids::{
    BranchId, CallId, ExecutionId, Fence, Gtid, InstanceId, Lineage, MessageId, OpenToken, Position,
    ReplicaId, RequestId, ResourceId, Sequence, UnixMillis,
};
use synod_proto::limits::{
    BRANCH_COUNT_MAX, COMMAND_BYTES_MAX, DATABASE_TRANSACTION_BYTES_MAX, DELIVERY_COUNT_MAX, GUARD_COUNT_MAX,
    GUARD_NAME_BYTES_MAX, HEADER_COUNT_MAX, LIST_COUNT_MAX, MESSAGE_KEY_BYTES_MAX, RESOURCE_COUNT_MAX,
    TEXT_BYTES_MAX, UNSETTLED_COUNT_MAX,
};
use synod_proto::message::{self, Answered, Delivery, Hello, InboxFrame, LowWater, RelayFrame, Welcome};
use synod_proto::session::{
    AbortCause, AbortKind, Answer, AskedVote, BranchStatus, Decision, DeliveryStatus, InDoubt, InDoubtPage,
    InDoubtState, InquiringBranch, OpenBranch, Outcome, Refusal, Request, Response, TransactionStatus,
    TransactionSummary, Vote,
};
use synod_proto::wire::{List, Resolve, ResolveAction};

pub(crate) fn gtid() -> impl Strategy<Value = Gtid> {
    (any::<u64>(), any::<[u8; 10]>()).prop_map(|(millis, random)| Gtid::new(UnixMillis(millis), random))
}

pub(crate) fn lineage() -> impl Strategy<Value = Lineage> {
    any::<[u8; 16]>().prop_map(Lineage)
}

pub(crate) fn resource() -> impl Strategy<Value = ResourceId> {
    any::<[u8; 16]>().prop_map(ResourceId)
}

pub(crate) fn call() -> impl Strategy<Value = CallId> {
    any::<u64>().prop_map(CallId)
}

pub(crate) fn execution() -> impl Strategy<Value = ExecutionId> {
    any::<u64>().prop_map(ExecutionId)
}

pub(crate) fn request_number() -> impl Strategy<Value = RequestId> {
    any::<u64>().prop_map(RequestId)
}

pub(crate) fn millis() -> impl Strategy<Value = UnixMillis> {
    any::<u64>().prop_map(UnixMillis)
}

pub(crate) fn branch() -> impl Strategy<Value = BranchId> {
    (gtid(), call(), execution()).prop_map(|(gtid, call, execution)| BranchId {
        gtid,
        call,
        execution,
    })
}

/// Texts of every length up to the limit, with characters of one to four bytes.
pub(crate) fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => ".{0,40}",
        1 => ".{0,128}",
        1 => Just("x".repeat(TEXT_BYTES_MAX)),
    ]
}

/// A text that says something, as an operator's must.
pub(crate) fn words() -> impl Strategy<Value = String> {
    text().prop_map(|text| if text.is_empty() { "-".into() } else { text })
}

pub(crate) fn abort_kind() -> impl Strategy<Value = AbortKind> {
    prop::sample::select(&[
        AbortKind::Requested,
        AbortKind::VotedAbort,
        AbortKind::Doomed,
        AbortKind::Dropped,
        AbortKind::Deadline,
        AbortKind::Operator,
    ])
}

pub(crate) fn cause() -> impl Strategy<Value = AbortCause> {
    (abort_kind(), option::of((call(), execution())), text()).prop_map(|(kind, branch, text)| AbortCause {
        kind,
        branch,
        text,
    })
}

/// What a branch is beside its call and execution.
fn branch_rest() -> impl Strategy<Value = (ResourceId, u64, Bytes)> {
    let database_transaction = vec(any::<u8>(), 0..=DATABASE_TRANSACTION_BYTES_MAX).prop_map(Bytes::from);
    (resource(), any::<u64>(), database_transaction)
}

/// The branches of a commit: one execution of each call, in order.
fn branches_of_commit() -> impl Strategy<Value = Vec<NamedBranch>> {
    btree_map(call(), (execution(), branch_rest()), 0..=BRANCH_COUNT_MAX).prop_map(|branches| {
        let named = |(call, (execution, (resource, digest, database_transaction)))| NamedBranch {
            call,
            execution,
            resource,
            digest,
            database_transaction,
        };
        branches.into_iter().map(named).collect()
    })
}

/// The branches of an abort: several executions of one call may be among them.
fn branches_of_abort() -> impl Strategy<Value = Vec<NamedBranch>> {
    let call = prop_oneof![call(), (0..3u64).prop_map(CallId)];
    btree_map((call, execution()), branch_rest(), 0..=BRANCH_COUNT_MAX).prop_map(|branches| {
        let named = |((call, execution), (resource, digest, database_transaction))| NamedBranch {
            call,
            execution,
            resource,
            digest,
            database_transaction,
        };
        branches.into_iter().map(named).collect()
    })
}

fn proposal() -> impl Strategy<Value = Proposal> {
    prop_oneof![
        (branches_of_commit(), any::<u32>()).prop_map(|(branches, read_only_count)| Proposal::Commit {
            branches,
            read_only_count
        }),
        (cause(), branches_of_abort()).prop_map(|(cause, branches)| Proposal::Abort { cause, branches }),
    ]
}

fn guard() -> impl Strategy<Value = Guard> {
    (vec(any::<u8>(), 0..=GUARD_NAME_BYTES_MAX), any::<u64>()).prop_map(|(name, token)| Guard {
        name: Bytes::from(name),
        token,
    })
}

pub(crate) fn decide() -> impl Strategy<Value = Decide> {
    (
        lineage(),
        gtid(),
        millis(),
        proposal(),
        vec(guard(), 0..=GUARD_COUNT_MAX),
    )
        .prop_map(|(lineage, gtid, deadline, proposal, guards)| Decide {
            lineage,
            gtid,
            deadline,
            proposal,
            guards,
        })
}

pub(crate) fn command() -> impl Strategy<Value = Command> {
    let settle = (branch(), text(), text()).prop_map(|(branch, author, reason)| Settle {
        gtid: branch.gtid,
        call: branch.call,
        execution: branch.execution,
        author,
        reason,
    });
    prop_oneof![
        1 => Just(Command::Noop),
        1 => lineage().prop_map(Command::Establish),
        6 => decide().prop_map(Command::Decide),
        2 => vec(gtid(), 0..40).prop_map(Command::Delivered),
        1 => gtid().prop_map(|gtid| Command::Delivered(vec![gtid; DELIVERED_COUNT_MAX])),
        2 => settle.prop_map(Command::Settle),
        2 => vec(resource(), 0..=RESOURCE_COUNT_MAX).prop_map(Command::Enrol),
    ]
}

pub(crate) fn request() -> impl Strategy<Value = Request> {
    let register = (
        request_number(),
        option::of(lineage()),
        vec(resource(), 0..=RESOURCE_COUNT_MAX),
    )
        .prop_map(|(request, lineage, resources)| Request::Register {
            request,
            lineage,
            resources,
        });
    // Opaque here, so any bytes will do; the longest are rare.
    let bytes = prop_oneof![
        9 => vec(any::<u8>(), 0..200),
        1 => Just(vec![0xa5; COMMAND_BYTES_MAX]),
    ]
    .boxed();
    let decide = (request_number(), bytes.clone()).prop_map(|(request, bytes)| Request::Decide {
        request,
        command: Bytes::from(bytes),
    });
    let prepare_and_decide = (request_number(), bytes, open_branches()).prop_map(|(request, bytes, open)| {
        Request::PrepareAndDecide {
            request,
            command: Bytes::from(bytes),
            open,
        }
    });
    let voted = (branch(), resource(), asked_vote()).prop_map(|(branch, resource, vote)| Request::Voted {
        branch,
        resource,
        vote,
    });
    let inquire =
        (branch(), resource(), lineage(), millis()).prop_map(|(branch, resource, lineage, deadline)| {
            Request::Inquire {
                branch,
                resource,
                lineage,
                deadline,
            }
        });
    prop_oneof![
        register,
        decide,
        prepare_and_decide,
        voted,
        instance().prop_map(|instance| Request::Introduce { instance }),
        inquire,
        (branch(), resource()).prop_map(|(branch, resource)| Request::Acknowledge { branch, resource }),
        (branch(), resource(), text()).prop_map(|(branch, resource, text)| Request::Hazard {
            branch,
            resource,
            text
        }),
        (request_number(), gtid()).prop_map(|(request, gtid)| Request::Outcome { request, gtid }),
        (request_number(), gtid()).prop_map(|(request, gtid)| Request::AwaitDelivery { request, gtid }),
        (request_number(), branch(), words(), words()).prop_map(|(request, branch, author, reason)| {
            Request::Settle {
                request,
                branch,
                author,
                reason,
            }
        }),
        (request_number(), list()).prop_map(|(request, list)| list.into_request(request)),
        (request_number(), list()).prop_map(|(request, list)| Request::ListInDoubt {
            request,
            after: list.after,
            count_max: list.count_max
        }),
    ]
}

fn instance() -> impl Strategy<Value = InstanceId> {
    any::<[u8; 16]>().prop_map(InstanceId)
}

/// In order, each call once, at least one.
fn open_branches() -> impl Strategy<Value = Vec<OpenBranch>> {
    let one = (
        call(),
        execution(),
        resource(),
        instance(),
        any::<u64>(),
        1..=u32::MAX,
    );
    vec(one, 1..=BRANCH_COUNT_MAX).prop_map(|all| {
        let all = all
            .into_iter()
            .map(|(call, execution, resource, instance, token, call_count)| {
                let open = OpenBranch {
                    call,
                    execution,
                    resource,
                    instance,
                    token: OpenToken(token),
                    call_count,
                };
                (call, open)
            });
        let by_call: std::collections::BTreeMap<CallId, OpenBranch> = all.collect();
        by_call.into_values().collect()
    })
}

fn asked_vote() -> impl Strategy<Value = AskedVote> {
    let without = |vote| AskedVote {
        vote,
        digest: 0,
        database_transaction: Bytes::new(),
    };
    prop_oneof![
        (any::<u64>(), vec(any::<u8>(), 0..=DATABASE_TRANSACTION_BYTES_MAX)).prop_map(|(digest, bytes)| {
            AskedVote {
                vote: Vote::Commit,
                digest,
                database_transaction: bytes.into(),
            }
        }),
        Just(without(Vote::ReadOnly)),
        text().prop_map(move |cause| without(Vote::Abort { cause })),
    ]
}

pub(crate) fn list() -> impl Strategy<Value = List> {
    (option::of(gtid()), any::<bool>(), 1..=LIST_COUNT_MAX).prop_map(|(after, unfinished_only, count_max)| {
        List {
            after,
            unfinished_only,
            count_max,
        }
    })
}

pub(crate) fn resolve() -> impl Strategy<Value = Resolve> {
    let abort = (gtid(), "\\PC{1,40}", "\\PC{1,40}").prop_map(|(gtid, author, reason)| Resolve {
        gtid,
        author,
        reason,
        action: ResolveAction::Abort,
    });
    let settle = (branch(), words(), words()).prop_map(|(branch, author, reason)| Resolve {
        gtid: branch.gtid,
        author,
        reason,
        action: ResolveAction::Settle {
            call: branch.call,
            execution: branch.execution,
        },
    });
    prop_oneof![abort, settle]
}

pub(crate) fn decision() -> impl Strategy<Value = Decision> {
    prop_oneof![
        Just(Decision::Committed),
        cause().prop_map(Decision::Aborted),
        Just(Decision::Mismatch),
        Just(Decision::Expired),
        Just(Decision::Settled),
    ]
}

pub(crate) fn refusal() -> impl Strategy<Value = Refusal> {
    let leader = option::of((1..=u8::MAX).prop_map(ReplicaId));
    prop_oneof![
        leader.prop_map(|leader| Refusal::NotLeader { leader }),
        text().prop_map(|what| Refusal::Overloaded { what }),
        text().prop_map(|text| Refusal::Invalid { text }),
        any::<u64>().prop_map(|ahead_ms| Refusal::FromFuture { ahead_ms }),
        lineage().prop_map(|expected| Refusal::ForeignLineage { expected }),
        text().prop_map(|text| Refusal::NotFound { text }),
        text().prop_map(|text| Refusal::ReadOnly { text }),
    ]
}

fn branch_status() -> impl Strategy<Value = BranchStatus> {
    let delivery = prop_oneof![
        Just(DeliveryStatus::Pending),
        Just(DeliveryStatus::Acknowledged),
        text().prop_map(DeliveryStatus::Hazard),
        Just(DeliveryStatus::Settled),
    ];
    (call(), execution(), resource(), delivery).prop_map(|(call, execution, resource, delivery)| {
        BranchStatus {
            call,
            execution,
            resource,
            delivery,
        }
    })
}

pub(crate) fn status() -> impl Strategy<Value = TransactionStatus> {
    prop_oneof![
        Just(TransactionStatus::Undecided),
        (vec(branch_status(), 0..=BRANCH_COUNT_MAX), any::<u32>()).prop_map(|(branches, read_only_count)| {
            TransactionStatus::Committed {
                branches,
                read_only_count,
            }
        }),
        cause().prop_map(TransactionStatus::Aborted),
        Just(TransactionStatus::Expired),
    ]
}

pub(crate) fn summaries() -> impl Strategy<Value = Vec<TransactionSummary>> {
    let summary = (gtid(), status(), millis()).prop_map(|(gtid, status, decided_at)| TransactionSummary {
        gtid,
        status,
        decided_at,
    });
    vec(summary, 0..4)
}

pub(crate) fn in_doubt_page() -> impl Strategy<Value = InDoubtPage> {
    let inquiring =
        (call(), execution(), resource()).prop_map(|(call, execution, resource)| InquiringBranch {
            call,
            execution,
            resource,
        });
    let state = prop_oneof![
        (millis(), vec(branch_status(), 0..=BRANCH_COUNT_MAX))
            .prop_map(|(decided_at, branches)| { InDoubtState::Unfinished { decided_at, branches } }),
        (millis(), millis(), vec(inquiring, 0..=BRANCH_COUNT_MAX)).prop_map(
            |(inquired_since, deadline, branches)| InDoubtState::Undecided {
                inquired_since,
                deadline,
                branches,
            }
        ),
    ];
    let transaction = (gtid(), state).prop_map(|(gtid, state)| InDoubt { gtid, state });
    (vec(transaction, 0..4), millis(), any::<u64>()).prop_map(
        |(transactions, inquiries_since, inquiries_dropped_count)| InDoubtPage {
            transactions,
            inquiries_since,
            inquiries_dropped_count,
        },
    )
}

pub(crate) fn response() -> impl Strategy<Value = Response> {
    let answer = prop::sample::select(&[Answer::Committed, Answer::Aborted, Answer::Undecided]);
    let outcome = prop::sample::select(&[Outcome::Committed, Outcome::Aborted]);
    prop_oneof![
        (request_number(), lineage())
            .prop_map(|(request, lineage)| Response::Registered { request, lineage }),
        (request_number(), decision())
            .prop_map(|(request, decision)| Response::Decided { request, decision }),
        (branch(), answer).prop_map(|(branch, answer)| Response::Answered { branch, answer }),
        (branch(), resource(), outcome).prop_map(|(branch, resource, outcome)| Response::Deliver {
            branch,
            resource,
            outcome
        }),
        (branch(), resource(), any::<u64>(), any::<u32>()).prop_map(
            |(branch, resource, token, call_count)| Response::Prepare {
                branch,
                resource,
                token: OpenToken(token),
                call_count,
            }
        ),
        (resource(), millis(), vec(gtid(), 0..20)).prop_map(|(resource, mark, unfinished)| {
            Response::LowWater {
                resource,
                mark,
                unfinished,
            }
        }),
        (request_number(), status()).prop_map(|(request, status)| Response::Status { request, status }),
        (request_number(), gtid()).prop_map(|(request, gtid)| Response::Delivered { request, gtid }),
        (request_number(), summaries()).prop_map(|(request, transactions)| Response::Listed {
            request,
            transactions
        }),
        (request_number(), in_doubt_page())
            .prop_map(|(request, page)| Response::ListedInDoubt { request, page }),
        (request_number(), refusal()).prop_map(|(request, refusal)| Response::Refused { request, refusal }),
    ]
}

/// The name of a topic or of a consumer.
fn name() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{1,20}", Just("x".repeat(128))]
}

fn position() -> impl Strategy<Value = Position> {
    (1..=u64::MAX).prop_map(Position)
}

fn low_water() -> impl Strategy<Value = LowWater> {
    let unsettled = prop_oneof![
        4 => prop::collection::btree_set(position(), 0..20),
        1 => Just((1..=UNSETTLED_COUNT_MAX as u64).map(Position).collect()),
    ];
    (position(), unsettled).prop_map(|(mark, unsettled)| LowWater {
        mark,
        unsettled: unsettled.into_iter().collect(),
    })
}

fn delivery() -> impl Strategy<Value = Delivery> {
    let place = (
        any::<[u8; 16]>(),
        position(),
        any::<u64>(),
        any::<u32>(),
        option::of(position()),
    );
    let headers = prop_oneof![
        4 => btree_map(".{0,10}", ".{0,10}", 0..4),
        1 => Just((0..HEADER_COUNT_MAX).map(|n| (n.to_string(), String::new())).collect()),
    ];
    let content = (
        name(),
        vec(any::<u8>(), 0..=MESSAGE_KEY_BYTES_MAX),
        any::<u64>(),
        headers,
        vec(any::<u8>(), 0..200),
        millis(),
        any::<bool>(),
    );
    (place, content).prop_map(|(place, content)| {
        let (id, position, fence, attempt, previous) = place;
        let (topic, key, sequence, headers, body, published_at, is_cancelled) = content;
        Delivery {
            id: MessageId(id),
            position,
            fence: Fence(fence),
            attempt,
            previous,
            topic,
            key: key.into(),
            sequence: Sequence(sequence),
            headers,
            body: body.into(),
            published_at,
            is_cancelled,
        }
    })
}

pub(crate) fn relay_frame() -> impl Strategy<Value = RelayFrame> {
    let hello = (resource(), option::of(lineage()), name(), any::<u64>()).prop_map(
        |(source, lineage, consumer, mark)| {
            RelayFrame::Hello(Hello {
                source,
                lineage,
                consumer,
                mark: Position(mark),
            })
        },
    );
    prop_oneof![
        2 => hello,
        4 => vec(delivery(), 0..4).prop_map(RelayFrame::Deliver),
        1 => delivery().prop_map(|delivery| RelayFrame::Deliver(vec![delivery; DELIVERY_COUNT_MAX])),
        3 => low_water().prop_map(RelayFrame::LowWater),
    ]
}

fn answered() -> impl Strategy<Value = Answered> {
    let answer = prop_oneof![
        Just(message::Answer::Applied),
        Just(message::Answer::Duplicate),
        Just(message::Answer::Settled),
        text().prop_map(|text| message::Answer::Failed { text }),
        position().prop_map(|missing| message::Answer::Gap { missing }),
        Just(message::Answer::Stale),
        text().prop_map(|text| message::Answer::Busy { text }),
    ];
    (position(), any::<u64>(), answer).prop_map(|(position, fence, answer)| Answered {
        position,
        fence: Fence(fence),
        answer,
    })
}

pub(crate) fn inbox_frame() -> impl Strategy<Value = InboxFrame> {
    prop_oneof![
        (resource(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
            |(resource, mark, applied, takes_cancelled)| {
                InboxFrame::Welcome(Welcome {
                    resource,
                    mark: Position(mark),
                    highest_applied: Position(applied),
                    takes_cancelled,
                })
            }
        ),
        vec(answered(), 0..=DELIVERY_COUNT_MAX).prop_map(InboxFrame::Answers),
        any::<u64>().prop_map(|mark| InboxFrame::LowWaterReached(Position(mark))),
    ]
}
