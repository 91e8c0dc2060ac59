//! The callers: a host that asks the offices for transfers, goes away sometimes, and asks again under the same name.

use std::time::Duration;

use futures::future::join_all;
use synod_tests::process::bank::bank_client::BankClient;
use synod_tests::process::bank::{TransferReply, TransferRequest, Verdict};
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;

use crate::ledger::Ledger;
use crate::office;
use crate::plan::Call;

/// Between two tries of one transfer.
const PAUSE: Duration = Duration::from_millis(150);

/// Makes every call of the plan at its time, and ends when the last one has ended.
pub async fn run(calls: Vec<Call>, ledger: Ledger) {
    let channels = [office::channel(1), office::channel(2)];
    let call = |call: Call| {
        let client = BankClient::new(channels[call.office - 1].clone());
        let ledger = ledger.clone();
        async move {
            sleep(Duration::from_millis(call.at_ms)).await;
            ask(client, &call, &ledger).await
        }
    };
    join_all(calls.into_iter().map(call)).await;
}

/// Asks until the transfer is committed or the plan says to leave it. Says what it heard last.
pub async fn ask(mut client: BankClient<Channel>, call: &Call, ledger: &Ledger) -> Option<Verdict> {
    let mut last = None;
    for try_number in 1..=call.try_count_max {
        let request = TransferRequest {
            transfer: call.transfer.clone(),
            account: call.account.clone(),
            amount: call.amount,
            deadline_ms: call.deadline_ms,
            extra_branch_count: 0,
        };
        let patience = Duration::from_millis(call.patience_ms);
        let answer = timeout(patience, client.transfer(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("the caller has gone")));
        match answer.map(tonic::Response::into_inner) {
            Ok(reply) => {
                let verdict = reply.verdict();
                let TransferReply { gtid, .. } = reply;
                ledger.entries().replies.push((gtid, verdict));
                last = Some(verdict);
                if verdict == Verdict::Committed {
                    break;
                }
            }
            Err(status) => {
                tracing::debug!(transfer = %call.transfer, %status, "a call failed");
                ledger.entries().failed_call_count += 1;
                last = None;
            }
        }
        if try_number < call.try_count_max {
            sleep(PAUSE).await;
        }
    }
    last
}
