//! The session stream: requests of a participant, responses of the coordinator.

use super::open::open_branches;
use super::{
    Malformed, gtid, gtid_bytes, id_bytes, instance, limited, lineage, present, required_text, resource,
    status, text, unary, unknown,
};
use crate::command::clip_text;
use crate::ids::{BranchId, CallId, ExecutionId, OpenToken, ReplicaId, RequestId, UnixMillis};
use crate::limits::{COMMAND_BYTES_MAX, LOW_WATER_COUNT_MAX, RESOURCE_COUNT_MAX};
use crate::session::{Answer, Outcome, Request, Response};
use crate::v1;
use crate::v1::session_request::Request as WireRequest;
use crate::v1::session_response::Response as WireResponse;

/// The number under which a request waits for its answer, so that a malformed one can be refused by number instead
/// of ending its session and everybody else's requests with it. `None` for the kinds that have no number.
#[must_use]
pub fn request_number(wire: &v1::SessionRequest) -> Option<RequestId> {
    match wire.request.as_ref()? {
        WireRequest::Register(register) => Some(RequestId(register.request)),
        WireRequest::Decide(decide) => Some(RequestId(decide.request)),
        WireRequest::Outcome(outcome) => Some(RequestId(outcome.request)),
        WireRequest::AwaitDelivery(delivery) => Some(RequestId(delivery.request)),
        WireRequest::Settle(settle) => Some(RequestId(settle.request)),
        WireRequest::List(list) => Some(RequestId(list.request)),
        WireRequest::ListInDoubt(list) => Some(RequestId(list.request)),
        WireRequest::PrepareAndDecide(decide) => Some(RequestId(decide.request)),
        WireRequest::Inquire(_)
        | WireRequest::Acknowledge(_)
        | WireRequest::Hazard(_)
        | WireRequest::Introduce(_)
        | WireRequest::Voted(_) => None,
    }
}

impl From<Request> for v1::SessionRequest {
    fn from(request: Request) -> Self {
        let request = match request {
            Request::Register {
                request,
                lineage,
                resources,
            } => WireRequest::Register(v1::Register {
                request: request.0,
                lineage: lineage.map(|lineage| id_bytes(&lineage.0)),
                resources: resources.iter().map(|resource| id_bytes(&resource.0)).collect(),
            }),
            Request::Decide { request, command } => WireRequest::Decide(v1::Decide {
                request: request.0,
                command,
            }),
            Request::Introduce { instance } => WireRequest::Introduce(v1::Introduce {
                instance: id_bytes(&instance.0),
            }),
            Request::PrepareAndDecide {
                request,
                command,
                open,
            } => WireRequest::PrepareAndDecide(v1::PrepareAndDecide {
                request: request.0,
                command,
                open: open.into_iter().map(Into::into).collect(),
            }),
            Request::Voted {
                branch,
                resource,
                vote,
            } => WireRequest::Voted(v1::Voted {
                branch: Some(branch.into()),
                resource: id_bytes(&resource.0),
                vote: Some(vote.into()),
            }),
            Request::Inquire {
                branch,
                resource,
                lineage,
                deadline,
            } => WireRequest::Inquire(v1::Inquire {
                branch: Some(branch.into()),
                resource: id_bytes(&resource.0),
                lineage: id_bytes(&lineage.0),
                deadline_unix_ms: deadline.0,
            }),
            Request::Acknowledge { branch, resource } => WireRequest::Acknowledge(v1::Acknowledge {
                branch: Some(branch.into()),
                resource: id_bytes(&resource.0),
            }),
            Request::Hazard {
                branch,
                resource,
                text,
            } => WireRequest::Hazard(v1::Hazard {
                branch: Some(branch.into()),
                resource: id_bytes(&resource.0),
                text: clip_text(text),
            }),
            Request::Outcome { request, gtid } => WireRequest::Outcome(v1::QueryOutcome {
                request: request.0,
                gtid: gtid_bytes(gtid),
            }),
            Request::AwaitDelivery { request, gtid } => WireRequest::AwaitDelivery(v1::AwaitDelivery {
                request: request.0,
                gtid: gtid_bytes(gtid),
            }),
            Request::Settle {
                request,
                branch,
                author,
                reason,
            } => WireRequest::Settle(v1::Settle {
                request: request.0,
                branch: Some(branch.into()),
                author,
                reason,
            }),
            Request::List {
                request,
                after,
                unfinished_only,
                count_max,
            } => WireRequest::List(v1::ListTransactions {
                request: request.0,
                after: after.map(gtid_bytes),
                unfinished_only,
                count_max,
            }),
            Request::ListInDoubt {
                request,
                after,
                count_max,
            } => WireRequest::ListInDoubt(v1::ListTransactionsInDoubt {
                request: request.0,
                after: after.map(gtid_bytes),
                count_max,
            }),
        };
        Self {
            request: Some(request),
        }
    }
}

impl TryFrom<v1::SessionRequest> for Request {
    type Error = Malformed;

    fn try_from(wire: v1::SessionRequest) -> Result<Self, Malformed> {
        Ok(match present("SessionRequest.request", wire.request)? {
            WireRequest::Register(wire) => {
                limited(
                    "Register.resources",
                    "resources",
                    wire.resources.len(),
                    RESOURCE_COUNT_MAX,
                )?;
                Self::Register {
                    request: RequestId(wire.request),
                    lineage: wire
                        .lineage
                        .map(|id| lineage("Register.lineage", &id))
                        .transpose()?,
                    resources: wire
                        .resources
                        .iter()
                        .map(|id| resource("Register.resources", id))
                        .collect::<Result<_, _>>()?,
                }
            }
            WireRequest::Decide(wire) => {
                limited("Decide.command", "bytes", wire.command.len(), COMMAND_BYTES_MAX)?;
                Self::Decide {
                    request: RequestId(wire.request),
                    command: wire.command,
                }
            }
            WireRequest::Introduce(wire) => Self::Introduce {
                instance: instance("Introduce.instance", &wire.instance)?,
            },
            WireRequest::PrepareAndDecide(wire) => {
                limited(
                    "PrepareAndDecide.command",
                    "bytes",
                    wire.command.len(),
                    COMMAND_BYTES_MAX,
                )?;
                Self::PrepareAndDecide {
                    request: RequestId(wire.request),
                    command: wire.command,
                    open: open_branches("PrepareAndDecide.open", wire.open)?,
                }
            }
            WireRequest::Voted(wire) => Self::Voted {
                branch: branch("Voted.branch", wire.branch)?,
                resource: resource("Voted.resource", &wire.resource)?,
                vote: present("Voted.vote", wire.vote)?.try_into()?,
            },
            WireRequest::Inquire(wire) => Self::Inquire {
                branch: branch("Inquire.branch", wire.branch)?,
                resource: resource("Inquire.resource", &wire.resource)?,
                lineage: lineage("Inquire.lineage", &wire.lineage)?,
                deadline: UnixMillis(wire.deadline_unix_ms),
            },
            WireRequest::Acknowledge(wire) => Self::Acknowledge {
                branch: branch("Acknowledge.branch", wire.branch)?,
                resource: resource("Acknowledge.resource", &wire.resource)?,
            },
            WireRequest::Hazard(wire) => Self::Hazard {
                branch: branch("Hazard.branch", wire.branch)?,
                resource: resource("Hazard.resource", &wire.resource)?,
                text: text("Hazard.text", wire.text)?,
            },
            WireRequest::Outcome(wire) => Self::Outcome {
                request: RequestId(wire.request),
                gtid: gtid("QueryOutcome.gtid", &wire.gtid)?,
            },
            WireRequest::AwaitDelivery(wire) => Self::AwaitDelivery {
                request: RequestId(wire.request),
                gtid: gtid("AwaitDelivery.gtid", &wire.gtid)?,
            },
            WireRequest::Settle(wire) => Self::Settle {
                request: RequestId(wire.request),
                branch: branch("Settle.branch", wire.branch)?,
                author: required_text("Settle.author", wire.author)?,
                reason: required_text("Settle.reason", wire.reason)?,
            },
            WireRequest::List(wire) => Self::List {
                request: RequestId(wire.request),
                after: wire
                    .after
                    .map(|id| gtid("ListTransactions.after", &id))
                    .transpose()?,
                unfinished_only: wire.unfinished_only,
                count_max: unary::page_length("ListTransactions.count_max", wire.count_max)?,
            },
            WireRequest::ListInDoubt(wire) => Self::ListInDoubt {
                request: RequestId(wire.request),
                after: wire
                    .after
                    .map(|id| gtid("ListTransactionsInDoubt.after", &id))
                    .transpose()?,
                count_max: unary::page_length("ListTransactionsInDoubt.count_max", wire.count_max)?,
            },
        })
    }
}

/// Writes a response. `address` gives the host:port of a replica, for the refusals that send the client to the leader.
#[must_use]
pub fn response(response: Response, address: impl Fn(ReplicaId) -> Option<String>) -> v1::SessionResponse {
    let response = match response {
        Response::Registered { request, lineage } => WireResponse::Registered(v1::Registered {
            request: request.0,
            lineage: id_bytes(&lineage.0),
        }),
        Response::Decided { request, decision } => WireResponse::Decided(v1::Decided {
            request: request.0,
            decision: Some(decision.into()),
        }),
        Response::Answered { branch, answer } => WireResponse::Answered(v1::Answered {
            branch: Some(branch.into()),
            answer: v1::Answer::from(answer).into(),
        }),
        Response::Deliver {
            branch,
            resource,
            outcome,
        } => WireResponse::Deliver(v1::Deliver {
            branch: Some(branch.into()),
            resource: id_bytes(&resource.0),
            outcome: v1::Outcome::from(outcome).into(),
        }),
        Response::Prepare {
            branch,
            resource,
            token,
            call_count,
        } => WireResponse::Prepare(v1::PrepareBranch {
            branch: Some(branch.into()),
            resource: id_bytes(&resource.0),
            token: token.0,
            call_count,
        }),
        Response::LowWater {
            resource,
            mark,
            unfinished,
        } => WireResponse::LowWater(v1::LowWater {
            resource: id_bytes(&resource.0),
            mark_unix_ms: mark.0,
            unfinished: unfinished.into_iter().map(gtid_bytes).collect(),
        }),
        Response::Status { request, status } => WireResponse::Outcome(v1::QueriedOutcome {
            request: request.0,
            status: Some(status.into()),
        }),
        Response::Delivered { request, gtid } => WireResponse::Delivered(v1::Delivered {
            request: request.0,
            gtid: gtid_bytes(gtid),
        }),
        Response::Listed {
            request,
            transactions,
        } => WireResponse::Listed(v1::Listed {
            request: request.0,
            transactions: transactions.into_iter().map(Into::into).collect(),
        }),
        Response::ListedInDoubt { request, page } => WireResponse::ListedInDoubt(v1::ListedInDoubt {
            request: request.0,
            page: Some(page.into()),
        }),
        Response::Refused { request, refusal } => WireResponse::Refused(v1::Refused {
            request: request.0,
            refusal: Some(status::refusal(refusal, address)),
        }),
    };
    v1::SessionResponse {
        response: Some(response),
    }
}

/// Without the leader's address: for senders that know none. A coordinator uses [`response`].
impl From<Response> for v1::SessionResponse {
    fn from(value: Response) -> Self {
        response(value, |_| None)
    }
}

impl TryFrom<v1::SessionResponse> for Response {
    type Error = Malformed;

    fn try_from(wire: v1::SessionResponse) -> Result<Self, Malformed> {
        Ok(match present("SessionResponse.response", wire.response)? {
            WireResponse::Registered(wire) => Self::Registered {
                request: RequestId(wire.request),
                lineage: lineage("Registered.lineage", &wire.lineage)?,
            },
            WireResponse::Decided(wire) => Self::Decided {
                request: RequestId(wire.request),
                decision: present("Decided.decision", wire.decision)?.try_into()?,
            },
            WireResponse::Answered(wire) => Self::Answered {
                branch: branch("Answered.branch", wire.branch)?,
                answer: answer("Answered.answer", wire.answer)?,
            },
            WireResponse::Deliver(wire) => Self::Deliver {
                branch: branch("Deliver.branch", wire.branch)?,
                resource: resource("Deliver.resource", &wire.resource)?,
                outcome: outcome("Deliver.outcome", wire.outcome)?,
            },
            WireResponse::Prepare(wire) => Self::Prepare {
                branch: branch("PrepareBranch.branch", wire.branch)?,
                resource: resource("PrepareBranch.resource", &wire.resource)?,
                token: OpenToken(wire.token),
                call_count: wire.call_count,
            },
            WireResponse::LowWater(wire) => {
                limited(
                    "LowWater.unfinished",
                    "gtids",
                    wire.unfinished.len(),
                    LOW_WATER_COUNT_MAX,
                )?;
                Self::LowWater {
                    resource: resource("LowWater.resource", &wire.resource)?,
                    mark: UnixMillis(wire.mark_unix_ms),
                    unfinished: wire
                        .unfinished
                        .iter()
                        .map(|bytes| gtid("LowWater.unfinished", bytes))
                        .collect::<Result<_, _>>()?,
                }
            }
            WireResponse::Outcome(wire) => Self::Status {
                request: RequestId(wire.request),
                status: present("QueriedOutcome.status", wire.status)?.try_into()?,
            },
            WireResponse::Delivered(wire) => Self::Delivered {
                request: RequestId(wire.request),
                gtid: gtid("Delivered.gtid", &wire.gtid)?,
            },
            WireResponse::Listed(wire) => Self::Listed {
                request: RequestId(wire.request),
                transactions: unary::page("Listed.transactions", wire.transactions)?,
            },
            WireResponse::ListedInDoubt(wire) => Self::ListedInDoubt {
                request: RequestId(wire.request),
                page: present("ListedInDoubt.page", wire.page)?.try_into()?,
            },
            WireResponse::Refused(wire) => Self::Refused {
                request: RequestId(wire.request),
                refusal: present("Refused.refusal", wire.refusal)?.try_into()?,
            },
        })
    }
}

impl From<BranchId> for v1::Branch {
    fn from(branch: BranchId) -> Self {
        Self {
            gtid: gtid_bytes(branch.gtid),
            call: branch.call.0,
            execution: branch.execution.0,
        }
    }
}

impl TryFrom<v1::Branch> for BranchId {
    type Error = Malformed;

    fn try_from(wire: v1::Branch) -> Result<Self, Malformed> {
        Ok(Self {
            gtid: gtid("Branch.gtid", &wire.gtid)?,
            call: CallId(wire.call),
            execution: ExecutionId(wire.execution),
        })
    }
}

fn branch(field: &'static str, wire: Option<v1::Branch>) -> Result<BranchId, Malformed> {
    present(field, wire)?.try_into()
}

impl From<Answer> for v1::Answer {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Committed => Self::Committed,
            Answer::Aborted => Self::Aborted,
            Answer::Undecided => Self::Undecided,
        }
    }
}

// The unspecified value 0 is refused, not guessed: a guess here would be an outcome.
fn answer(field: &'static str, wire: i32) -> Result<Answer, Malformed> {
    match v1::Answer::try_from(wire) {
        Ok(v1::Answer::Committed) => Ok(Answer::Committed),
        Ok(v1::Answer::Aborted) => Ok(Answer::Aborted),
        Ok(v1::Answer::Undecided) => Ok(Answer::Undecided),
        Ok(v1::Answer::Unspecified) | Err(_) => Err(unknown(field, wire)),
    }
}

impl From<Outcome> for v1::Outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Committed => Self::Committed,
            Outcome::Aborted => Self::Aborted,
        }
    }
}

fn outcome(field: &'static str, wire: i32) -> Result<Outcome, Malformed> {
    match v1::Outcome::try_from(wire) {
        Ok(v1::Outcome::Committed) => Ok(Outcome::Committed),
        Ok(v1::Outcome::Aborted) => Ok(Outcome::Aborted),
        Ok(v1::Outcome::Unspecified) | Err(_) => Err(unknown(field, wire)),
    }
}
