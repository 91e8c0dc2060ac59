//! redb under virtual time. The store has a writer thread of its own, and virtual time must not run ahead of it: whatever
//! waits for that thread is waited for without giving the reactor a turn.

use futures::executor::block_on;
use synod::resource::redb::{MemoryDisk as Disk, RedbOptions, RedbResource, RedbTransaction};
use synod::resource::{
    BranchContext, BranchState, Effect, Identity, InDoubtBranch, LowWater, Prepared, ResourceError,
    ResourceManager,
};
use synod::{BranchId, Lineage};
use synod_proto::environment::WallClock;

use crate::ledger::{ACCOUNT_COUNT, ACCOUNTS, OPENING_BALANCE, account};

/// Opens the file, as a process that starts does, and opens the accounts once in its life.
pub fn open(disk: &Disk, clock: WallClock) -> Result<RedbResource, ResourceError> {
    let disk = disk.clone();
    let redb = RedbOptions::default()
        .lock_timeout(std::time::Duration::from_millis(400))
        .cache_bytes(4 << 20)
        .clock(move || clock.now())
        .open_backend(move || disk.backend())?;
    if redb.snapshot()?.get(ACCOUNTS, account(0))?.is_none() {
        block_on(redb.local(async |tx| {
            for index in 0..ACCOUNT_COUNT {
                tx.put_u64(ACCOUNTS, &account(index), OPENING_BALANCE).await?;
            }
            Ok::<_, ResourceError>(())
        }))?;
    }
    Ok(redb)
}

/// Hands every operation on, and blocks until it is done.
#[derive(Debug)]
pub struct BlockingStore(pub RedbResource);

impl ResourceManager for BlockingStore {
    type Transaction = RedbTransaction;

    async fn begin(&self, context: &BranchContext) -> Result<RedbTransaction, ResourceError> {
        block_on(self.0.begin(context))
    }

    async fn prepare(&self, context: &BranchContext, tx: RedbTransaction) -> Result<Prepared, ResourceError> {
        block_on(self.0.prepare(context, tx))
    }

    async fn commit(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        block_on(self.0.commit(branch))
    }

    async fn abort(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        block_on(self.0.abort(branch))
    }

    async fn status(&self, branch: &BranchId) -> Result<BranchState, ResourceError> {
        block_on(self.0.status(branch))
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubtBranch>, ResourceError> {
        block_on(self.0.in_doubt())
    }

    async fn identity(&self, bind: Option<Lineage>) -> Result<Identity, ResourceError> {
        block_on(self.0.identity(bind))
    }

    async fn forget(&self, low_water: &LowWater) -> Result<u64, ResourceError> {
        block_on(self.0.forget(low_water))
    }
}
