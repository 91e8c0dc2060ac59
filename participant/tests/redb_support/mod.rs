//! What the tests of resource managers share: ids, and redb for the conformance kit.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod broken;
pub mod conformance;

use std::future::Future;
use std::time::Duration;

use synod::resource::redb::{MemoryDisk, PowerLoss, RedbOptions, RedbResource};
use synod::resource::{BranchContext, Effect, ResourceManager};
use synod::{BranchId, CallId, ExecutionId, Gtid, Lineage, UnixMillis};

pub const LINEAGE: Lineage = Lineage([7; 16]);

/// The tests' clock stands still here, unless a test says otherwise.
pub const NOW: UnixMillis = UnixMillis(1_000_000);

/// The branch with this number: each of a transaction of its own, in the order of the numbers.
pub fn branch(number: u64) -> BranchId {
    branch_of(number, number)
}

pub fn branch_of(transaction: u64, call: u64) -> BranchId {
    let gtid = Gtid::new(UnixMillis(NOW.0 + transaction), [0; 10]);
    BranchId {
        gtid,
        call: CallId(call),
        execution: ExecutionId(call + 100),
    }
}

/// Takes the power from a disk that was to fail at this operation, if it came to that, and mends it otherwise. Returns whether
/// it did. What survives differs from one operation to the next.
pub fn lose_power_if_failed(disk: &MemoryDisk, operation: u64) -> bool {
    let has_failed = disk.has_failed();
    if has_failed {
        disk.lose_power(match operation % 3 {
            0 => PowerLoss::Lost,
            1 => PowerLoss::Kept,
            _ => PowerLoss::Subset(operation),
        });
    } else {
        disk.mend();
    }
    has_failed
}

/// A context that real clocks have not passed either.
pub fn context(branch: BranchId) -> BranchContext {
    BranchContext {
        branch,
        lineage: LINEAGE,
        deadline: UnixMillis(u64::MAX),
    }
}

/// A store in memory, bound to [`LINEAGE`].
pub async fn store() -> RedbResource {
    bound(
        options()
            .open_backend(redb::backends::InMemoryBackend::new)
            .unwrap(),
    )
    .await
}

/// A disk with an empty redb file. (That a new file comes into being as a whole is not redb's doing: see
/// `a_crash_while_the_file_is_made_leaves_none`.)
pub fn formatted() -> MemoryDisk {
    let disk = MemoryDisk::default();
    drop(
        redb::Database::builder()
            .create_with_backend(disk.backend())
            .unwrap(),
    );
    disk
}

pub fn options() -> RedbOptions {
    RedbOptions::default().clock(|| NOW)
}

pub async fn bound(store: RedbResource) -> RedbResource {
    store.identity(Some(LINEAGE)).await.unwrap();
    store
}

/// Puts one row in a local transaction.
pub async fn load(store: &RedbResource, table: &str, key: &str, value: &str) {
    let mut tx = store.begin_local().unwrap();
    tx.put(table, key, value).await.unwrap();
    tx.commit().await.unwrap();
}

/// A branch that puts one row, prepared.
pub async fn prepare_put(store: &RedbResource, branch: BranchId, table: &str, key: &str, value: &str) {
    let context = context(branch);
    let mut tx = store.begin(&context).await.unwrap();
    tx.put(table, key, value).await.unwrap();
    store.prepare(&context, tx).await.unwrap();
}

pub fn row(store: &RedbResource, table: &str, key: &str) -> Option<String> {
    let value = store.snapshot().unwrap().get(table, key).unwrap();
    value.map(|value| String::from_utf8(value.into()).unwrap())
}

pub fn is_unknown(effect: &Effect) -> bool {
    matches!(effect, Effect::Unknown { .. })
}

/// Every test has a deadline: a hang is a failure, not a wait.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("the test hangs")
}

/// Until so many transactions wait for a lock: other tasks run meanwhile.
pub async fn until_waiting(store: &RedbResource, count: usize) {
    while store.lock_counts().1 != count {
        tokio::task::yield_now().await;
    }
}
