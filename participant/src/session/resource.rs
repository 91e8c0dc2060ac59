//! What the session needs of a [`ResourceManager`], object-safe: finishing branches and listing them.

use crate::resource::{Effect, Identity, LowWater, ResourceError, ResourceManager};
use futures::future::BoxFuture;
use synod_participant_core::session::{Finished, ListedBranch};
use synod_proto::ids::BranchId;
use synod_proto::session::Outcome;

/// What the session asks of a store, whatever its transactions look like.
pub(crate) trait ErasedResource: Send + Sync + 'static {
    /// Applies the outcome to a prepared branch. Errors become [`Finished::Failed`]: the core decides what follows.
    fn finish(&self, branch: BranchId, outcome: Outcome) -> BoxFuture<'_, Finished>;

    /// The prepared branches of the database, whoever prepared them (C9).
    fn list(&self) -> BoxFuture<'_, Result<Vec<ListedBranch>, ResourceError>>;

    /// Deletes proofs below the low-water mark (T13).
    fn forget_below(&self, low_water: LowWater) -> BoxFuture<'_, Result<u64, ResourceError>>;

    /// The database's own identity (T11).
    fn recorded_identity(&self) -> BoxFuture<'_, Result<Identity, ResourceError>>;
}

impl<R: ResourceManager> ErasedResource for R {
    fn finish(&self, branch: BranchId, outcome: Outcome) -> BoxFuture<'_, Finished> {
        Box::pin(async move {
            let effect = match outcome {
                Outcome::Committed => self.commit(&branch).await,
                Outcome::Aborted => self.abort(&branch).await,
            };
            match effect {
                Ok(Effect::Applied) => Finished::Applied,
                Ok(Effect::AlreadyApplied) => Finished::AlreadyApplied,
                Ok(Effect::Unknown { detail }) => Finished::Unknown { detail },
                Err(error) => Finished::Failed {
                    text: error.to_string(),
                },
            }
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ListedBranch>, ResourceError>> {
        Box::pin(async move {
            let branches = self.in_doubt().await?;
            let listed = branches.into_iter().map(|found| ListedBranch {
                branch: found.context.branch,
                lineage: found.context.lineage,
                deadline: found.context.deadline,
                prepared_at: found.prepared_at,
            });
            Ok(listed.collect())
        })
    }

    fn forget_below(&self, low_water: LowWater) -> BoxFuture<'_, Result<u64, ResourceError>> {
        Box::pin(async move { self.forget(&low_water).await })
    }

    fn recorded_identity(&self) -> BoxFuture<'_, Result<Identity, ResourceError>> {
        Box::pin(self.identity(None))
    }
}
