//! `synod txn list --in-doubt`: what keeps databases waiting, and since when.

use super::{branch, hex, page_length, unreadable};
use crate::cli::client::{self, Endpoints};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{age, now_unix_ms, print, print_json, table};
use serde::Serialize;
use synod_proto::ids::Gtid;
use synod_proto::session::{InDoubt, InDoubtPage, InDoubtState};
use synod_proto::v1;
use synod_proto::wire::ListInDoubt;

#[derive(Serialize)]
struct Report {
    transactions: Vec<Transaction>,
    inquiries_since_unix_ms: u64,
    inquiries_dropped_count: u64,
}

#[derive(Serialize)]
struct Transaction {
    gtid: String,
    began_at_unix_ms: u64,
    state: &'static str,
    since_unix_ms: u64,
    deadline_unix_ms: Option<u64>,
    branches: Vec<Branch>,
}

#[derive(Serialize)]
struct Branch {
    call: String,
    execution: String,
    resource: String,
    waits_for: &'static str,
    hazard: Option<String>,
}

pub(super) fn list(
    after: Option<Gtid>,
    count: usize,
    endpoints: &Endpoints,
    json: bool,
) -> Result<Exit, Failure> {
    let page = client::block_on(collect(after, count, endpoints))?;
    let report = Report {
        inquiries_since_unix_ms: page.inquiries_since.0,
        inquiries_dropped_count: page.inquiries_dropped_count,
        transactions: page.transactions.into_iter().map(transaction).collect(),
    };
    if json {
        print_json(&report)?;
        return Ok(Exit::Success);
    }
    let now = now_unix_ms();
    print(&people(&report, now))?;
    // What is no data, but must be known to read it.
    eprintln!(
        "synod: unfinished commits come from the log; undecided ones were inquired for at the present leader, which remembers \
         inquiries since {} and tells nothing of branches that have not asked it",
        age(now, report.inquiries_since_unix_ms)
    );
    if report.inquiries_dropped_count > 0 {
        eprintln!(
            "synod: the leader had no room to remember {} more inquiries",
            report.inquiries_dropped_count
        );
    }
    Ok(Exit::Success)
}

async fn collect(after: Option<Gtid>, count: usize, endpoints: &Endpoints) -> Result<InDoubtPage, Failure> {
    let mut found: Option<InDoubtPage> = None;
    loop {
        let transactions = found.as_ref().map_or(&[][..], |page| &page.transactions);
        let list = ListInDoubt {
            after: transactions.last().map(|last| last.gtid).or(after),
            // A page of one also tells since when the leader remembers, where none is wanted.
            count_max: page_length(count - transactions.len()).max(1),
        };
        let reply = client::at_leader(endpoints, async |client| {
            client
                .list_in_doubt(v1::ListInDoubtRequest::from(list))
                .await
                .map(tonic::Response::into_inner)
        });
        let page: InDoubtPage = reply.await?.try_into().map_err(unreadable)?;
        let is_end = page.transactions.is_empty();
        let all = match found {
            None => page,
            // The leader may be another one by now: the shorter memory holds for the whole.
            Some(mut all) => {
                all.transactions.extend(page.transactions);
                all.inquiries_since = all.inquiries_since.max(page.inquiries_since);
                all.inquiries_dropped_count = all.inquiries_dropped_count.max(page.inquiries_dropped_count);
                all
            }
        };
        if is_end || all.transactions.len() >= count {
            let mut all = all;
            all.transactions.truncate(count);
            return Ok(all);
        }
        found = Some(all);
    }
}

fn transaction(in_doubt: InDoubt) -> Transaction {
    let gtid = in_doubt.gtid;
    let (state, since, deadline, branches) = match in_doubt.state {
        InDoubtState::Unfinished { decided_at, branches } => {
            let owed = |status| {
                let super::Branch {
                    call,
                    execution,
                    resource,
                    hazard,
                    ..
                } = branch(status);
                Branch {
                    call,
                    execution,
                    resource,
                    waits_for: "acknowledgement",
                    hazard,
                }
            };
            (
                "unfinished",
                decided_at,
                None,
                branches.into_iter().map(owed).collect(),
            )
        }
        InDoubtState::Undecided {
            inquired_since,
            deadline,
            branches,
        } => {
            let asking = |branch: synod_proto::session::InquiringBranch| Branch {
                call: hex(branch.call.0),
                execution: hex(branch.execution.0),
                resource: branch.resource.to_string(),
                waits_for: "outcome",
                hazard: None,
            };
            (
                "undecided",
                inquired_since,
                Some(deadline.0),
                branches.into_iter().map(asking).collect(),
            )
        }
    };
    Transaction {
        gtid: gtid.to_string(),
        began_at_unix_ms: gtid.began_at().0,
        state,
        since_unix_ms: since.0,
        deadline_unix_ms: deadline,
        branches,
    }
}

/// One row a branch: it is databases that wait.
fn people(report: &Report, now_unix_ms: u64) -> String {
    let mut rows = Vec::new();
    for transaction in &report.transactions {
        for branch in &transaction.branches {
            let waits_for = match &branch.hazard {
                Some(hazard) => format!("{} (hazard: {hazard})", branch.waits_for),
                None => branch.waits_for.to_owned(),
            };
            rows.push(vec![
                transaction.gtid.clone(),
                transaction.state.to_owned(),
                age(now_unix_ms, transaction.since_unix_ms),
                format!("{}/{}", branch.call, branch.execution),
                branch.resource.clone(),
                waits_for,
            ]);
        }
    }
    table(
        &["GTID", "STATE", "SINCE", "BRANCH", "RESOURCE", "WAITS FOR"],
        &rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use synod_proto::ids::{CallId, ExecutionId, ResourceId, UnixMillis};
    use synod_proto::session::{BranchStatus, DeliveryStatus, InquiringBranch};

    #[test]
    fn a_row_a_waiting_branch() {
        let resource = ResourceId([7; 16]);
        let (call, execution) = (CallId(1), ExecutionId(2));
        let unfinished = InDoubtState::Unfinished {
            decided_at: UnixMillis(1_000),
            branches: vec![BranchStatus {
                call,
                execution,
                resource,
                delivery: DeliveryStatus::Hazard("lost".to_owned()),
            }],
        };
        let undecided = InDoubtState::Undecided {
            inquired_since: UnixMillis(60_000),
            deadline: UnixMillis(90_000),
            branches: vec![InquiringBranch {
                call,
                execution,
                resource,
            }],
        };
        let one = |state| {
            transaction(InDoubt {
                gtid: Gtid::new(UnixMillis(500), [0; 10]),
                state,
            })
        };
        let report = Report {
            transactions: vec![one(unfinished), one(undecided)],
            inquiries_since_unix_ms: 0,
            inquiries_dropped_count: 0,
        };
        let text = people(&report, 126_000);
        let cells: Vec<Vec<&str>> = text
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|cell| !cell.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            cells[1][1..4],
            ["unfinished", "2m 5s ago", "0000000000000001/0000000000000002"]
        );
        assert_eq!(cells[1][5], "acknowledgement (hazard: lost)");
        assert_eq!(
            (cells[2][1], cells[2][2], cells[2][5]),
            ("undecided", "1m 6s ago", "outcome")
        );
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(
            json["transactions"][0]["deadline_unix_ms"],
            serde_json::Value::Null
        );
        assert_eq!(json["transactions"][1]["deadline_unix_ms"], 90_000);
    }
}
