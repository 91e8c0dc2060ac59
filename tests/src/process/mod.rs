//! Real processes: the binary `synod` three times, two offices of a bank (`test_service`) that embed the library, and stations
//! that send messages to each other, each with a directory or file of its own. Tests kill them, stop them and start them again, and at the end read the files.
//!
//! | part | is |
//! |---|---|
//! | [`program`] | one process: its lines, its signals, its end, its trace |
//! | [`proxy`] | a wire that loses what goes one way |
//! | [`cluster`] | three `synod start` |
//! | [`service`] | one `test_service`: its port, its file, its [points](Point) |
//! | [`office`] | one that begins transfers, and answers for accounts |
//! | [`station`] | one that sends messages, or receives them |
//! | [`stage`] | coordinator and offices, and what a test does with the whole |
//! | [`load`] | transfers from many callers at once, and what each was told |
//! | [`ledger`] | the offices' files, read when nobody has them open |
//!
//! The programs are taken from beside the test itself, `target/<profile>/`: `cargo build --bins` puts them there.
//! Nothing is synchronised by sleeping: a test waits for lines, for answers, or asks [again and again](eventually).

pub mod cluster;
pub mod ledger;
pub mod load;
pub mod office;
pub mod program;
pub mod proxy;
pub mod service;
pub mod stage;
pub mod station;

/// Generated from `proto/bank.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod bank {
    tonic::include_proto!("bank.v1");
}

/// Generated from `proto/post.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod post {
    tonic::include_proto!("post.v1");
}

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// A test ends by then, or fails. Generous: the machine may be busy building.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A single step ends by then, or fails.
pub const STEP: Duration = Duration::from_secs(30);

/// Between two questions.
const POLL: Duration = Duration::from_millis(15);

/// The offices' table of balances.
pub const ACCOUNTS: &str = "accounts";

/// The offices' table of transfers: the amount as a big-endian `i64` under the transfer's name.
pub const TRANSFERS: &str = "transfers";

/// How many accounts each office keeps.
pub const ACCOUNT_COUNT: usize = 64;

/// What each account holds in the beginning.
pub const OPENING_BALANCE: u64 = 1_000_000;

/// The name of an account.
#[must_use]
pub fn account(index: usize) -> String {
    format!("account-{:02}", index % ACCOUNT_COUNT)
}

/// Where a service can be stopped. The steps are those of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Step 2: a branch's work is done, nothing is prepared.
    Worked,
    /// Step 3: a branch is durable, its vote has not left.
    Prepared,
    /// Step 3: the initiator has every vote, and has not asked for the commit.
    Voted,
    /// Step 4: the initiator has handed over the commit request, and does not look at the answer.
    Requested,
    /// Step 4: the initiator's commit is in doubt, and it has not begun to resolve it.
    Doubted,
    /// Step 5: a commit was delivered, the local transaction has not committed.
    Delivered,
    /// Step 5: the local transaction has committed, nothing is acknowledged.
    Applied,
    /// Step 6: the relay has a consumer's acknowledgement, and has written nothing of it.
    Answered,
}

impl Point {
    /// The name on the wire between a test and its service.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worked => "worked",
            Self::Prepared => "prepared",
            Self::Voted => "voted",
            Self::Requested => "requested",
            Self::Doubted => "doubted",
            Self::Delivered => "delivered",
            Self::Applied => "applied",
            Self::Answered => "answered",
        }
    }

    /// Whether it is the initiator that stops there; else the other participant.
    #[must_use]
    pub const fn is_initiators(self) -> bool {
        matches!(self, Self::Voted | Self::Requested | Self::Doubted)
    }
}

/// Runs a test within [`DEADLINE`].
///
/// # Panics
/// The test takes longer.
pub async fn within<T>(test: impl Future<Output = T>) -> T {
    timeout(DEADLINE, test)
        .await
        .expect("the test ends within its deadline")
}

/// Asks again until there is an answer.
///
/// # Panics
/// There is none within [`STEP`]; says what was waited for.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + STEP;
    loop {
        // Also a question that is never answered is one that was asked in vain.
        if let Ok(Some(answer)) = timeout(STEP, ask()).await {
            return answer;
        }
        assert!(Instant::now() < deadline, "within {STEP:?}: {what}");
        sleep(POLL).await;
    }
}
