//! What happened, as somebody outside saw it. It outlives every crash, and no host reads it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use synod::Gtid;
use synod_tests::process::bank::Verdict;

/// The table of balances.
pub const ACCOUNTS: &str = "accounts";
/// The table of transfers: the amount as a big-endian `i64` under the transfer's name.
pub const TRANSFERS: &str = "transfers";
/// Few, so that transfers meet at a lock.
pub const ACCOUNT_COUNT: usize = 5;
/// What each account holds in the beginning: enough that some transfers are refused for lack of it only late.
pub const OPENING_BALANCE: u64 = 1_000;

/// The name of an account.
pub fn account(index: usize) -> String {
    format!("account-{}", index % ACCOUNT_COUNT)
}

/// One global transaction.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub transfer: String,
    /// The office that began it, which pays.
    pub office: usize,
    pub account: String,
    pub amount: i64,
    /// The initiator's last word; `None` if it crashed or was cancelled before.
    pub told: Option<Verdict>,
    pub was_in_doubt: bool,
}

/// The attempts, and what callers were told about transfers. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<Entries>>);

/// See [`Ledger`].
#[derive(Clone, Debug, Default)]
pub struct Entries {
    pub attempts: BTreeMap<Gtid, Attempt>,
    /// Replies that reached the clerk: gtid and verdict.
    pub replies: Vec<(String, Verdict)>,
    /// Calls of the clerk that ended in an error, repeated where the plan allows it.
    pub failed_call_count: u64,
}

impl Ledger {
    pub fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().expect("no holder panics")
    }

    pub fn begun(&self, gtid: Gtid, attempt: Attempt) {
        let earlier = self.entries().attempts.insert(gtid, attempt);
        assert!(earlier.is_none(), "{gtid} was made twice (T1)");
    }

    pub fn told(&self, gtid: Gtid, verdict: Verdict, was_in_doubt: bool) {
        let mut entries = self.entries();
        let attempt = entries.attempts.get_mut(&gtid).expect("it was begun");
        attempt.told = Some(verdict);
        attempt.was_in_doubt = was_in_doubt;
    }
}
