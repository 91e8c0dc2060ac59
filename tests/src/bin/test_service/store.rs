//! The ready-made redb store with points around it: the library itself knows nothing of them.

use synod::resource::redb::{RedbResource, RedbTransaction};
use synod::resource::{
    BranchContext, BranchState, Effect, Identity, InDoubtBranch, LowWater, Prepared, ResourceError,
    ResourceManager,
};
use synod::{BranchId, Lineage};
use synod_tests::process::Point;

use crate::points::Points;

/// Hands every operation on, and stops before and after those that make something durable.
#[derive(Debug)]
pub(crate) struct PausingStore {
    redb: RedbResource,
    points: Points,
}

impl PausingStore {
    pub(crate) fn new(redb: RedbResource, points: Points) -> Self {
        Self { redb, points }
    }
}

impl ResourceManager for PausingStore {
    type Transaction = RedbTransaction;

    async fn begin(&self, context: &BranchContext) -> Result<RedbTransaction, ResourceError> {
        self.redb.begin(context).await
    }

    async fn prepare(&self, context: &BranchContext, tx: RedbTransaction) -> Result<Prepared, ResourceError> {
        self.points.at(Point::Worked, context.branch.gtid).await;
        let prepared = self.redb.prepare(context, tx).await?;
        self.points.at(Point::Prepared, context.branch.gtid).await;
        Ok(prepared)
    }

    async fn commit(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        self.points.at(Point::Delivered, branch.gtid).await;
        let effect = self.redb.commit(branch).await?;
        self.points.at(Point::Applied, branch.gtid).await;
        Ok(effect)
    }

    async fn abort(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        self.redb.abort(branch).await
    }

    async fn status(&self, branch: &BranchId) -> Result<BranchState, ResourceError> {
        self.redb.status(branch).await
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubtBranch>, ResourceError> {
        self.redb.in_doubt().await
    }

    async fn identity(&self, bind: Option<Lineage>) -> Result<Identity, ResourceError> {
        self.redb.identity(bind).await
    }

    async fn forget(&self, low_water: &LowWater) -> Result<u64, ResourceError> {
        self.redb.forget(low_water).await
    }
}
