//! Every value that one side can say, the other side hears: domain value -> bytes -> domain value, through real
//! protobuf and through the log's own form. And no bytes at all make a reader panic (A20).

mod strategies;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use strategies::{
    command, decide, decision, gtid, in_doubt_page, inbox_frame, lineage, list, refusal, relay_frame,
    request, request_number, resolve, response, status, summaries,
};
use synod_proto::command::{Command, Decide, Proposal};
use synod_proto::ids::{Gtid, ReplicaId, RequestId};
use synod_proto::message::{InboxFrame, RelayFrame};
use synod_proto::session::{
    Decision, InDoubtPage, Refusal, Request, Response, TransactionStatus, TransactionSummary,
};
use synod_proto::v1;
use synod_proto::wire::{self, List, ListInDoubt, Malformed, Resolve, ResolveAction};

/// Through the bytes of a message: what leaves as `W` arrives as `W`.
fn over_the_wire<W: Message + Default>(wire: &W) -> W {
    W::decode(&wire.encode_to_vec()[..]).expect("a reader of the same version reads it")
}

/// A domain value through its wire form and back.
fn there_and_back<W, D>(value: D) -> Result<D, Malformed>
where
    W: Message + Default + From<D>,
    D: TryFrom<W, Error = Malformed>,
{
    D::try_from(over_the_wire(&W::from(value)))
}

/// Whatever the bytes, reading them ends in a value or an error; and what was understood is said again alike.
fn is_refused_or_stable<W, D>(bytes: &[u8]) -> Result<(), TestCaseError>
where
    W: Message + Default + From<D>,
    D: TryFrom<W, Error = Malformed> + Clone + PartialEq + std::fmt::Debug,
{
    if let Ok(wire) = W::decode(bytes)
        && let Ok(value) = D::try_from(wire)
    {
        prop_assert_eq!(there_and_back::<W, D>(value.clone()), Ok(value));
    }
    Ok(())
}

/// Damage to a message: cut off, then one byte changed.
fn damage(mut bytes: Vec<u8>, cut: prop::sample::Index, at: prop::sample::Index, flip: u8) -> Vec<u8> {
    bytes.truncate(cut.index(bytes.len() + 1));
    if !bytes.is_empty() {
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
    }
    bytes
}

proptest! {
    #[test]
    fn requests(request in request()) {
        prop_assert_eq!(there_and_back::<v1::SessionRequest, _>(request.clone()), Ok(request));
    }

    #[test]
    fn responses(response in response()) {
        prop_assert_eq!(there_and_back::<v1::SessionResponse, _>(response.clone()), Ok(response));
    }

    #[test]
    fn decisions(decision in decision()) {
        prop_assert_eq!(there_and_back::<v1::Decision, _>(decision.clone()), Ok(decision.clone()));
        prop_assert_eq!(there_and_back::<v1::DecisionReply, _>(decision.clone()), Ok(decision));
    }

    #[test]
    fn refusals(refusal in refusal()) {
        prop_assert_eq!(there_and_back::<v1::Refusal, _>(refusal.clone()), Ok(refusal));
    }

    #[test]
    fn statuses(status in status()) {
        prop_assert_eq!(there_and_back::<v1::TransactionStatus, _>(status.clone()), Ok(status.clone()));
        prop_assert_eq!(there_and_back::<v1::OutcomeReply, _>(status.clone()), Ok(status));
    }

    #[test]
    fn pages(page in summaries()) {
        prop_assert_eq!(there_and_back::<v1::ListReply, Vec<TransactionSummary>>(page.clone()), Ok(page));
    }

    #[test]
    fn pages_in_doubt(page in in_doubt_page(), list in list()) {
        prop_assert_eq!(there_and_back::<v1::ListInDoubtReply, InDoubtPage>(page.clone()), Ok(page));
        let list = ListInDoubt { after: list.after, count_max: list.count_max };
        prop_assert_eq!(there_and_back::<v1::ListInDoubtRequest, _>(list), Ok(list));
    }

    #[test]
    fn messages(relay in relay_frame(), inbox in inbox_frame()) {
        prop_assert_eq!(there_and_back::<v1::RelayFrame, _>(relay.clone()), Ok(relay));
        prop_assert_eq!(there_and_back::<v1::InboxFrame, _>(inbox.clone()), Ok(inbox));
    }

    #[test]
    fn questions(gtid in gtid(), list in list(), resolve in resolve()) {
        prop_assert_eq!(there_and_back::<v1::OutcomeRequest, _>(gtid), Ok(gtid));
        prop_assert_eq!(there_and_back::<v1::ListRequest, _>(list), Ok(list));
        prop_assert_eq!(there_and_back::<v1::ResolveRequest, _>(resolve.clone()), Ok(resolve));
    }

    /// The address rides along where it is known, is absent where it is not, and changes nothing else.
    #[test]
    fn leaders_address(refusal in refusal(), number in request_number()) {
        let address = |replica: ReplicaId| Some(format!("replica-{replica}.example:7401"));
        let expected = match &refusal {
            Refusal::NotLeader { leader: Some(replica) } => address(*replica),
            _ => None,
        };
        let wire = over_the_wire(&wire::refusal(refusal.clone(), address));
        prop_assert_eq!(wire::leader_address(&wire), expected.as_deref());
        let anonymous = v1::Refusal::from(refusal.clone());
        prop_assert_eq!(wire::leader_address(&anonymous), None);
        prop_assert_eq!(Refusal::try_from(wire), Ok(refusal.clone()));

        let refused = Response::Refused { request: number, refusal };
        let wire = over_the_wire(&wire::response(refused.clone(), address));
        prop_assert_eq!(Response::try_from(wire), Ok(refused));
    }

    /// A request that is malformed can still be refused by its number.
    #[test]
    fn numbers(request in request()) {
        let expected = match &request {
            Request::Register { request, .. }
            | Request::Decide { request, .. }
            | Request::PrepareAndDecide { request, .. }
            | Request::Outcome { request, .. }
            | Request::AwaitDelivery { request, .. }
            | Request::Settle { request, .. }
            | Request::List { request, .. }
            | Request::ListInDoubt { request, .. } => Some(*request),
            Request::Inquire { .. }
            | Request::Acknowledge { .. }
            | Request::Hazard { .. }
            | Request::Introduce { .. }
            | Request::Voted { .. } => None,
        };
        prop_assert_eq!(wire::request_number(&request.into()), expected);
    }

    /// A script may name its branches in any order: the proposal is the one that the library would have encoded, so a
    /// repeated request is no mismatch (T5).
    #[test]
    fn unary_proposals(decide in decide(), rotation in any::<prop::sample::Index>()) {
        let Decide { lineage, gtid, deadline, proposal, .. } = decide;
        let mut branches: Vec<v1::NamedBranch> = match &proposal {
            Proposal::Commit { branches, .. } | Proposal::Abort { branches, .. } => {
                branches.iter().cloned().map(Into::into).collect()
            }
        };
        branches.reverse();
        if !branches.is_empty() {
            let by = rotation.index(branches.len());
            branches.rotate_left(by);
        }
        let (gtid_bytes, lineage_bytes) = (gtid.to_bytes().to_vec().into(), lineage.0.to_vec().into());
        let (read, expected) = match proposal {
            Proposal::Commit { branches: named, read_only_count } => {
                // "No branches" alone is no commit: see the refusals.
                let read_only_count = read_only_count.max(u32::from(named.is_empty()));
                let wire = v1::CommitRequest {
                    gtid: gtid_bytes,
                    lineage: lineage_bytes,
                    deadline_unix_ms: deadline.0,
                    branches,
                    read_only_count,
                };
                (Decide::try_from(over_the_wire(&wire)), Proposal::Commit { branches: named, read_only_count })
            }
            Proposal::Abort { mut cause, branches: named } => {
                cause.kind = synod_proto::session::AbortKind::Requested;
                cause.branch = None;
                let wire = v1::AbortRequest {
                    gtid: gtid_bytes,
                    lineage: lineage_bytes,
                    deadline_unix_ms: deadline.0,
                    reason: cause.text.clone(),
                    branches,
                };
                (Decide::try_from(over_the_wire(&wire)), Proposal::Abort { cause, branches: named })
            }
        };
        let expected = Decide { lineage, gtid, deadline, proposal: expected, guards: Vec::new() };
        prop_assert_eq!(read.as_ref(), Ok(&expected));
        prop_assert_eq!(Decide::decode(&expected.encode()), Ok(expected));
    }

    /// An operator's abort is a proposal like every other: the coordinator can decode it, and it names who and why (J7).
    #[test]
    fn operators_requests(resolve in resolve(), lineage in lineage(), number in request_number()) {
        let Resolve { gtid, author, reason, action } = resolve.clone();
        match (action, resolve.into_request(number, lineage)) {
            (ResolveAction::Abort, Request::Decide { request, command }) => {
                prop_assert_eq!(request, number);
                let decide = Decide::decode(&command).expect("the coordinator reads it");
                prop_assert_eq!((decide.gtid, decide.lineage), (gtid, lineage));
                let Proposal::Abort { cause, branches } = decide.proposal else { panic!("proposes a commit") };
                prop_assert_eq!((cause.text, branches), (format!("{author}: {reason}"), Vec::new()));
            }
            (ResolveAction::Settle { call, execution }, Request::Settle { request, branch, author: a, reason: r }) => {
                prop_assert_eq!((request, a, r), (number, author, reason));
                prop_assert_eq!((branch.gtid, branch.call, branch.execution), (gtid, call, execution));
            }
            (action, request) => panic!("{action:?} became {request:?}"),
        }
    }

    /// A20: no stranger's bytes make a reader panic.
    #[test]
    fn arbitrary_messages_are_refused_or_stable(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        is_refused_or_stable::<v1::SessionRequest, Request>(&bytes)?;
        is_refused_or_stable::<v1::SessionResponse, Response>(&bytes)?;
        is_refused_or_stable::<v1::ResolveRequest, Resolve>(&bytes)?;
        is_refused_or_stable::<v1::ListRequest, List>(&bytes)?;
        is_refused_or_stable::<v1::ListInDoubtRequest, ListInDoubt>(&bytes)?;
        is_refused_or_stable::<v1::OutcomeRequest, Gtid>(&bytes)?;
        is_refused_or_stable::<v1::RelayFrame, RelayFrame>(&bytes)?;
        is_refused_or_stable::<v1::InboxFrame, InboxFrame>(&bytes)?;
        let _ = v1::CommitRequest::decode(&bytes[..]).map(Decide::try_from);
        let _ = v1::AbortRequest::decode(&bytes[..]).map(Decide::try_from);
    }

    /// The same for bytes that are nearly right, which get further into the readers.
    #[test]
    fn damaged_messages_are_refused_or_stable(
        request in request(),
        response in response(),
        decision in decision(),
        status in status(),
        page in in_doubt_page(),
        relay in relay_frame(),
        inbox in inbox_frame(),
        cut in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        flip in 1..=u8::MAX,
    ) {
        let requests = v1::SessionRequest::from(request).encode_to_vec();
        is_refused_or_stable::<v1::SessionRequest, Request>(&damage(requests, cut, at, flip))?;
        let responses = v1::SessionResponse::from(response).encode_to_vec();
        is_refused_or_stable::<v1::SessionResponse, Response>(&damage(responses, cut, at, flip))?;
        let decisions = v1::Decision::from(decision).encode_to_vec();
        is_refused_or_stable::<v1::Decision, Decision>(&damage(decisions, cut, at, flip))?;
        let pages = v1::ListInDoubtReply::from(page).encode_to_vec();
        is_refused_or_stable::<v1::ListInDoubtReply, InDoubtPage>(&damage(pages, cut, at, flip))?;
        let relays = v1::RelayFrame::from(relay).encode_to_vec();
        is_refused_or_stable::<v1::RelayFrame, RelayFrame>(&damage(relays, cut, at, flip))?;
        let inboxes = v1::InboxFrame::from(inbox).encode_to_vec();
        is_refused_or_stable::<v1::InboxFrame, InboxFrame>(&damage(inboxes, cut, at, flip))?;
        let statuses = v1::TransactionStatus::from(status).encode_to_vec();
        is_refused_or_stable::<v1::TransactionStatus, TransactionStatus>(&damage(statuses, cut, at, flip))?;
    }

    #[test]
    fn commands(command in command()) {
        let bytes = command.encode();
        prop_assert_eq!(Command::decode(&bytes), Ok(command.clone()));
        match command {
            Command::Decide(decide) => prop_assert_eq!(Decide::decode(&bytes), Ok(decide)),
            _ => prop_assert!(Decide::decode(&bytes).is_err()),
        }
    }

    /// One command has one byte form: a changed byte is another command or none, and what is read at all was written
    /// that way. Mismatch (T5) and the replicas' agreement (A2) compare values, hashes compare bytes: both see the same.
    #[test]
    fn a_command_has_one_byte_form(command in command(), at in any::<prop::sample::Index>(), flip in 1..=u8::MAX) {
        let mut bytes = command.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let bytes = Bytes::from(bytes);
        if let Ok(other) = Command::decode(&bytes) {
            prop_assert_ne!(&other, &command);
            prop_assert_eq!(other.encode(), bytes);
        }
    }

    /// A cut or lengthened command is no command.
    #[test]
    fn a_command_has_one_length(command in command(), cut in any::<prop::sample::Index>(), more in 1..20usize) {
        let bytes = command.encode();
        prop_assert!(Command::decode(&bytes.slice(..cut.index(bytes.len()))).is_err());
        let mut longer = bytes.to_vec();
        longer.resize(bytes.len() + more, 0);
        prop_assert!(Command::decode(&longer.into()).is_err());
    }

    /// A20: no bytes make the decoder panic. The first byte is drawn from the tags, so that most cases get past it.
    #[test]
    fn arbitrary_commands_never_panic(tag in 0..8u8, version in 0..3u8, rest in prop::collection::vec(any::<u8>(), 0..300)) {
        for head in [&[tag][..], &[tag, version][..]] {
            let bytes = Bytes::from([head, &rest[..]].concat());
            if let Ok(command) = Command::decode(&bytes) {
                prop_assert_eq!(command.encode(), bytes);
            }
        }
    }
}

/// Causes are cut, not refused, so that an abort never fails on a long error chain (traps A20).
#[test]
fn a_long_cause_is_cut_at_a_character_in_both_forms() {
    use synod_proto::ids::{CallId, ExecutionId, Lineage, UnixMillis};
    use synod_proto::session::{AbortCause, AbortKind};

    let branch = Some((CallId(1), ExecutionId(2)));
    // 511 bytes, then two-byte characters, over the 65,535 that the length field could hold.
    let text = format!("{}{}", "x".repeat(511), "ä".repeat(40_000));
    let long = AbortCause {
        kind: AbortKind::VotedAbort,
        branch,
        text,
    };
    let cut = AbortCause {
        kind: AbortKind::VotedAbort,
        branch,
        text: "x".repeat(511),
    };

    assert_eq!(there_and_back::<v1::AbortCause, _>(long.clone()), Ok(cut.clone()));
    let decide = |cause| Decide {
        lineage: Lineage([1; 16]),
        gtid: Gtid::new(UnixMillis(1), [0; 10]),
        deadline: UnixMillis(2),
        proposal: Proposal::Abort {
            cause,
            branches: Vec::new(),
        },
        guards: Vec::new(),
    };
    assert_eq!(Decide::decode(&decide(long).encode()), Ok(decide(cut)));
}

/// An answer to a request that was sent without a number would wake somebody else's; 0 is a number like any other.
#[test]
fn request_number_zero_is_a_number() {
    let wire = v1::SessionRequest::from(Request::Outcome {
        request: RequestId(0),
        gtid: Gtid::new(synod_proto::ids::UnixMillis(1), [0; 10]),
    });
    assert_eq!(wire::request_number(&wire), Some(RequestId(0)));
    assert_eq!(wire::request_number(&v1::SessionRequest::default()), None);
}
