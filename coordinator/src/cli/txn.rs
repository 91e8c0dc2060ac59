//! `synod txn`: look at transactions, and resolve them by hand.

mod in_doubt;

use super::client::{self, Endpoints};
use super::exit::{Exit, Failure};
use super::output::{print, print_json, table};
use serde::Serialize;
use synod_proto::ids::{CallId, ExecutionId, Gtid};
use synod_proto::session::{
    AbortCause, BranchStatus, Decision, DeliveryStatus, TransactionStatus, TransactionSummary,
};
use synod_proto::v1;
use synod_proto::wire::{List, Malformed, Resolve, ResolveAction};

/// The longest page to ask for at once.
const PAGE_COUNT: u32 = 500;

/// Verbs of `synod txn`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// What became of a transaction. Ends with 7 where there is no outcome to tell.
    Get {
        /// The global transaction id.
        gtid: Gtid,
        #[command(flatten)]
        endpoints: Endpoints,
        /// Write JSON.
        #[arg(long)]
        json: bool,
    },
    /// The transactions in the register, in the order in which they began.
    List {
        /// Only committed transactions with an unacknowledged branch.
        #[arg(long)]
        unfinished: bool,
        /// What keeps databases waiting: commits that a branch has not acknowledged, from the log; and transactions that
        /// prepared branches inquired for and that have no outcome, from the leader's memory.
        #[arg(long, conflicts_with = "unfinished")]
        in_doubt: bool,
        /// Only transactions after this one.
        #[arg(long, value_name = "GTID")]
        after: Option<Gtid>,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 100)]
        count: usize,
        #[command(flatten)]
        endpoints: Endpoints,
        /// Write JSON.
        #[arg(long)]
        json: bool,
    },
    /// Enter an operator's decision in the log. Ends with 1 where the log says otherwise.
    #[command(group = clap::ArgGroup::new("action").required(true).args(["abort", "settle"]))]
    Resolve {
        /// The global transaction id.
        gtid: Gtid,
        /// Propose abort. A transaction that is committed stays committed.
        #[arg(long)]
        abort: bool,
        /// Take the delivery to this branch as settled: its database is never told again. Look at that database first:
        /// if its branch is still prepared, it keeps its locks for ever.
        #[arg(long, value_name = "CALL/EXECUTION", value_parser = parse_branch)]
        settle: Option<(CallId, ExecutionId)>,
        /// Who decides this.
        #[arg(long)]
        author: String,
        /// Why.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        endpoints: Endpoints,
        /// Write JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Reads a branch as `synod txn get` writes it: two numbers of 16 hex digits.
fn parse_branch(text: &str) -> Result<(CallId, ExecutionId), String> {
    let number = |digits: &str| {
        let is_hex = digits.len() == 16 && digits.chars().all(|digit| digit.is_ascii_hexdigit());
        is_hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
    };
    text.split_once('/')
        .and_then(|(call, execution)| Some((CallId(number(call)?), ExecutionId(number(execution)?))))
        .ok_or_else(|| {
            "a branch is CALL/EXECUTION, each 16 hex digits, as `synod txn get` shows them".to_owned()
        })
}

#[derive(Serialize)]
struct Transaction {
    gtid: String,
    began_at_unix_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_at_unix_ms: Option<u64>,
    status: &'static str,
    branches: Vec<Branch>,
    read_only_count: u32,
    cause: Option<Cause>,
}

#[derive(Serialize)]
struct Branch {
    call: String,
    execution: String,
    resource: String,
    delivery: &'static str,
    hazard: Option<String>,
}

#[derive(Serialize)]
struct Cause {
    kind: String,
    call: Option<String>,
    execution: Option<String>,
    text: String,
}

#[derive(Serialize)]
struct Resolution {
    gtid: String,
    decision: &'static str,
    cause: Option<Cause>,
}

pub(super) fn run(verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Get {
            gtid,
            endpoints,
            json,
        } => get(gtid, &endpoints, json),
        Verb::List {
            unfinished: _,
            in_doubt: true,
            after,
            count,
            endpoints,
            json,
        } => in_doubt::list(after, count, &endpoints, json),
        Verb::List {
            unfinished,
            in_doubt: false,
            after,
            count,
            endpoints,
            json,
        } => list(unfinished, after, count, &endpoints, json),
        Verb::Resolve {
            gtid,
            abort: _,
            settle,
            author,
            reason,
            endpoints,
            json,
        } => {
            // clap's group holds exactly one of the two.
            let action = match settle {
                Some((call, execution)) => ResolveAction::Settle { call, execution },
                None => ResolveAction::Abort,
            };
            resolve(
                Resolve {
                    gtid,
                    author,
                    reason,
                    action,
                },
                &endpoints,
                json,
            )
        }
    }
}

fn get(gtid: Gtid, endpoints: &Endpoints, json: bool) -> Result<Exit, Failure> {
    let status: TransactionStatus = client::block_on(client::at_leader(endpoints, async |client| {
        client
            .outcome(v1::OutcomeRequest::from(gtid))
            .await
            .map(tonic::Response::into_inner)
    }))?
    .try_into()
    .map_err(unreadable)?;
    let exit = match &status {
        TransactionStatus::Committed { .. } | TransactionStatus::Aborted(_) => Exit::Success,
        TransactionStatus::Undecided | TransactionStatus::Expired => Exit::NoOutcome,
    };
    let transaction = transaction(gtid, status, None);
    if json {
        print_json(&transaction)?;
    } else {
        print(&people(&transaction))?;
    }
    Ok(exit)
}

fn list(
    unfinished_only: bool,
    after: Option<Gtid>,
    count: usize,
    endpoints: &Endpoints,
    json: bool,
) -> Result<Exit, Failure> {
    let found = client::block_on(async {
        let mut found: Vec<TransactionSummary> = Vec::new();
        while found.len() < count {
            let after = found.last().map(|summary| summary.gtid).or(after);
            let page = List {
                after,
                unfinished_only,
                count_max: page_length(count - found.len()),
            };
            let reply = client::at_leader(endpoints, async |client| {
                client
                    .list(v1::ListRequest::from(page))
                    .await
                    .map(tonic::Response::into_inner)
            });
            let page: Vec<TransactionSummary> = reply.await?.try_into().map_err(unreadable)?;
            // A page may be shorter than was asked for; an empty one is the end.
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        Ok(found)
    })?;
    let listed: Vec<_> = found
        .into_iter()
        .map(|summary| transaction(summary.gtid, summary.status, Some(summary.decided_at.0)))
        .collect();
    if json {
        print_json(&listed)?;
        return Ok(Exit::Success);
    }
    let row = |transaction: &Transaction| {
        let pending = transaction
            .branches
            .iter()
            .filter(|branch| !matches!(branch.delivery, "acknowledged" | "settled"));
        vec![
            transaction.gtid.clone(),
            transaction.status.to_owned(),
            transaction.branches.len().to_string(),
            pending.count().to_string(),
            transaction
                .cause
                .as_ref()
                .map_or_else(String::new, |cause| format!("{}: {}", cause.kind, cause.text)),
        ]
    };
    print(&table(
        &["GTID", "STATUS", "BRANCHES", "PENDING", "CAUSE"],
        &listed.iter().map(row).collect::<Vec<_>>(),
    ))?;
    Ok(Exit::Success)
}

/// How long a page to ask for when so many more are wanted.
fn page_length(wanted: usize) -> u32 {
    u32::try_from(wanted).unwrap_or(PAGE_COUNT).min(PAGE_COUNT)
}

fn resolve(resolve: Resolve, endpoints: &Endpoints, json: bool) -> Result<Exit, Failure> {
    let gtid = resolve.gtid;
    let wanted = resolve.action;
    let request = v1::ResolveRequest::from(resolve);
    let decision: Decision = client::block_on(client::at_leader(endpoints, async |client| {
        client
            .resolve(request.clone())
            .await
            .map(tonic::Response::into_inner)
    }))?
    .try_into()
    .map_err(unreadable)?;
    let is_done = matches!(
        (&decision, wanted),
        (Decision::Aborted(_), ResolveAction::Abort) | (Decision::Settled, ResolveAction::Settle { .. })
    );
    let (decision, answer) = match decision {
        Decision::Committed => ("committed", None),
        Decision::Aborted(answer) => ("aborted", Some(cause(answer))),
        Decision::Mismatch => ("mismatch", None),
        Decision::Expired => ("expired", None),
        Decision::Settled => ("settled", None),
    };
    if json {
        print_json(&Resolution {
            gtid: gtid.to_string(),
            decision,
            cause: answer,
        })?;
    } else {
        print(&format!("{gtid}: {decision}\n"))?;
    }
    Ok(match decision {
        _ if is_done => Exit::Success,
        "expired" => Exit::NoOutcome,
        _ => Exit::Failed,
    })
}

fn unreadable(malformed: Malformed) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("cannot read the coordinator's answer: {malformed}; run the same version on both sides"),
    )
}

fn transaction(gtid: Gtid, status: TransactionStatus, decided_at_unix_ms: Option<u64>) -> Transaction {
    let mut transaction = Transaction {
        gtid: gtid.to_string(),
        began_at_unix_ms: gtid.began_at().0,
        decided_at_unix_ms,
        status: "undecided",
        branches: Vec::new(),
        read_only_count: 0,
        cause: None,
    };
    match status {
        TransactionStatus::Undecided => {}
        TransactionStatus::Expired => transaction.status = "expired",
        TransactionStatus::Aborted(answer) => {
            transaction.status = "aborted";
            transaction.cause = Some(cause(answer));
        }
        TransactionStatus::Committed {
            branches,
            read_only_count,
        } => {
            transaction.status = "committed";
            transaction.branches = branches.into_iter().map(branch).collect();
            transaction.read_only_count = read_only_count;
        }
    }
    transaction
}

fn branch(status: BranchStatus) -> Branch {
    let (delivery, hazard) = match status.delivery {
        DeliveryStatus::Pending => ("pending", None),
        DeliveryStatus::Acknowledged => ("acknowledged", None),
        DeliveryStatus::Hazard(text) => ("hazard", Some(text)),
        DeliveryStatus::Settled => ("settled", None),
    };
    Branch {
        call: hex(status.call.0),
        execution: hex(status.execution.0),
        resource: status.resource.to_string(),
        delivery,
        hazard,
    }
}

fn cause(cause: AbortCause) -> Cause {
    Cause {
        kind: cause.kind.to_string(),
        call: cause.branch.map(|(call, _)| hex(call.0)),
        execution: cause.branch.map(|(_, execution)| hex(execution.0)),
        text: cause.text,
    }
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

fn people(transaction: &Transaction) -> String {
    let mut text = format!("{}: {}\n", transaction.gtid, transaction.status);
    if let Some(cause) = &transaction.cause {
        text.push_str(&format!("cause: {}: {}\n", cause.kind, cause.text));
    }
    if transaction.read_only_count > 0 {
        text.push_str(&format!("read-only branches: {}\n", transaction.read_only_count));
    }
    if !transaction.branches.is_empty() {
        let row = |branch: &Branch| {
            let delivery = match &branch.hazard {
                Some(hazard) => format!("{}: {hazard}", branch.delivery),
                None => branch.delivery.to_owned(),
            };
            vec![
                format!("{}/{}", branch.call, branch.execution),
                branch.resource.clone(),
                delivery,
            ]
        };
        let rows: Vec<_> = transaction.branches.iter().map(row).collect();
        text.push_str(&table(&["BRANCH", "RESOURCE", "DELIVERY"], &rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_is_read_as_it_is_shown() {
        assert_eq!(
            parse_branch("00000000000000ff/0000000000000001"),
            Ok((CallId(255), ExecutionId(1)))
        );
        for text in [
            "",
            "ff/1",
            "00000000000000ff",
            "00000000000000ff/000000000000000g",
            "+0000000000000ff/0000000000000001",
        ] {
            assert!(parse_branch(text).is_err(), "{text}");
        }
    }
}
