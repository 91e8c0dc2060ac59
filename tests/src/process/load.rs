//! Transfers from many callers at once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::bank::bank_client::BankClient;
use super::bank::{TransferReply, TransferRequest, Verdict};
use super::eventually;
use super::office::Office;
use super::{ACCOUNT_COUNT, account};

/// Between a call that found no office and the next one.
const PAUSE: Duration = Duration::from_millis(20);

/// What callers were told, by transfer. A call that broke off has no answer.
pub type Answers = BTreeMap<String, Option<TransferReply>>;

/// Callers in the background of a test. Runs on the test's own thread, within a `LocalSet`.
#[derive(Debug)]
pub struct Load {
    shared: Rc<Shared>,
    callers: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    answers: RefCell<Answers>,
    begun_count: Cell<usize>,
    is_over: Cell<bool>,
    deadline_ms: u64,
}

impl Load {
    /// Starts `caller_count` callers at an office. Each works on accounts of its own, so that they meet nobody's locks, and
    /// makes one transfer after the other.
    #[must_use]
    pub fn start(office: &Office, caller_count: usize, deadline_ms: u64) -> Self {
        assert!(caller_count <= ACCOUNT_COUNT, "each caller has an account");
        let shared = Rc::new(Shared {
            deadline_ms,
            ..Shared::default()
        });
        let mut callers = JoinSet::new();
        for caller in 0..caller_count {
            callers.spawn_local(call(office.client(), caller, caller_count, shared.clone()));
        }
        Self { shared, callers }
    }

    /// How many transfers were answered as committed.
    #[must_use]
    pub fn committed_count(&self) -> usize {
        let answers = self.shared.answers.borrow();
        answers
            .values()
            .flatten()
            .filter(|reply| reply.verdict() == Verdict::Committed)
            .count()
    }

    /// Waits for so many further commits.
    pub async fn commits(&self, more: usize) {
        let wanted = self.committed_count() + more;
        eventually(&format!("{more} more commits under load"), async || {
            (self.committed_count() >= wanted).then_some(())
        })
        .await;
    }

    /// Waits for the answers to the last calls, and returns all.
    ///
    /// # Panics
    /// A caller does not end.
    pub async fn stop(mut self) -> Answers {
        self.shared.is_over.set(true);
        let all = async { while self.callers.join_next().await.is_some() {} };
        tokio::time::timeout(super::STEP, all)
            .await
            .expect("the last calls are answered in time");
        self.shared.answers.take()
    }
}

/// The account that a transfer of a load with so many callers works on.
#[must_use]
pub fn account_of(transfer: &str) -> String {
    let index = transfer.split('-').nth(1).and_then(|index| index.parse().ok());
    account(index.expect("a load's transfers are named load-ACCOUNT-NUMBER"))
}

async fn call(
    mut bank: BankClient<tonic::transport::Channel>,
    caller: usize,
    step: usize,
    shared: Rc<Shared>,
) {
    // After a caller's transaction was left in doubt its account is locked: it goes on with the next of its own.
    let mut index = caller;
    while !shared.is_over.get() {
        let number = shared.begun_count.get();
        shared.begun_count.set(number + 1);
        let transfer = format!("load-{index}-{number}");
        let request = TransferRequest {
            transfer: transfer.clone(),
            account: account(index),
            amount: 1,
            deadline_ms: shared.deadline_ms,
            extra_branch_count: 0,
        };
        let answer = bank.transfer(request).await.ok().map(tonic::Response::into_inner);
        if answer
            .as_ref()
            .is_none_or(|reply| reply.verdict() != Verdict::Committed)
        {
            index = if index + step < ACCOUNT_COUNT {
                index + step
            } else {
                caller
            };
            sleep(PAUSE).await;
        }
        shared.answers.borrow_mut().insert(transfer, answer);
    }
}
