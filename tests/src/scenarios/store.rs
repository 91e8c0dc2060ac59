//! Of the store under a participant: what the real session never asks of it, since ids are fresh (T2), and other users of
//! the contract may.

use crate::checkers::{Check, Violation};
use synod::BoxError;
use synod::conformance::{self, Claims, Harness, ImageDirectory, Instances, Verdict};
use synod::resource::ResourceError;
use synod::resource::redb::{RedbResource, RedbTransaction};

/// Traps C3: whatever comes after an abort of its branch is refused.
pub(super) fn late_work() -> Check {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Violation(format!("no runtime: {error}")))?;
    let check = conformance::run_check(&Redb, conformance::Check::LateWorkIsRefused);
    match runtime.block_on(check).verdict {
        Verdict::Passed => Ok(()),
        Verdict::Failed(failure) => Err(Violation(failure.to_string()).by("conformance")),
        Verdict::Skipped(why) => Err(Violation(format!("skipped: {why}"))),
    }
}

/// The embedded store on a file: its work is to add one.
struct Redb;

impl Harness for Redb {
    type Store = RedbResource;
    type Database = ImageDirectory;

    fn claims(&self) -> Claims {
        Claims {
            items_are_independent: true,
            reads_repeat: true,
            looking_is_read_only: true,
            instances: Instances::One,
        }
    }

    async fn create(&self, _check: &str) -> Result<ImageDirectory, BoxError> {
        Ok(ImageDirectory::new()?)
    }

    async fn open(&self, database: &ImageDirectory) -> Result<RedbResource, ResourceError> {
        RedbResource::open(database.path().join("store.redb"))
    }

    async fn crash(&self, database: &ImageDirectory) -> Result<(), BoxError> {
        Ok(database.crash()?)
    }

    async fn work(&self, tx: &mut RedbTransaction, item: &str) -> Result<(), ResourceError> {
        let count = tx.get_u64_for_update("items", item).await?.unwrap_or(0);
        tx.put_u64("items", item, count + 1).await
    }

    async fn look(&self, tx: &mut RedbTransaction, item: &str) -> Result<u64, ResourceError> {
        Ok(tx.get_u64("items", item).await?.unwrap_or(0))
    }

    async fn lock(&self, tx: &mut RedbTransaction, item: &str) -> Result<Option<u64>, ResourceError> {
        Ok(Some(tx.get_u64_for_update("items", item).await?.unwrap_or(0)))
    }

    async fn effect(&self, store: &RedbResource, item: &str) -> Result<u64, BoxError> {
        let row = store.snapshot()?.get("items", item)?;
        Ok(row
            .map_or(Ok([0; 8]), |row| row[..].try_into())
            .map(u64::from_be_bytes)?)
    }
}
