//! redb as the conformance kit runs it: in a file that is killed, and on a disk that loses power.

use std::sync::atomic::{AtomicU64, Ordering};

use synod::BoxError;
use synod::conformance::{Claims, Fuse, Harness, ImageDirectory, Instances};
use synod::resource::ResourceError;
use synod::resource::redb::{MemoryDisk, PowerLoss, RedbOptions, RedbResource, RedbTransaction};

const TABLE: &str = "items";

pub const CLAIMS: Claims = Claims {
    items_are_independent: true,
    reads_repeat: true,
    looking_is_read_only: true,
    instances: Instances::One,
};

pub async fn work(tx: &mut RedbTransaction, item: &str) -> Result<(), ResourceError> {
    let count = tx.get_u64_for_update(TABLE, item).await?.unwrap_or(0);
    tx.put_u64(TABLE, item, count + 1).await
}

pub async fn look(tx: &mut RedbTransaction, item: &str) -> Result<u64, ResourceError> {
    Ok(tx.get_u64(TABLE, item).await?.unwrap_or(0))
}

pub async fn lock(tx: &mut RedbTransaction, item: &str) -> Result<Option<u64>, ResourceError> {
    Ok(Some(tx.get_u64_for_update(TABLE, item).await?.unwrap_or(0)))
}

pub fn effect(store: &RedbResource, item: &str) -> Result<u64, BoxError> {
    let row = store.snapshot()?.get(TABLE, item)?;
    Ok(row
        .map_or(Ok([0; 8]), |row| row[..].try_into())
        .map(u64::from_be_bytes)?)
}

/// In a file. A kill leaves what redb wrote, synced or not.
pub struct InFile {
    pub adapt: fn(RedbOptions) -> RedbOptions,
}

impl Harness for InFile {
    type Store = RedbResource;
    type Database = ImageDirectory;

    fn claims(&self) -> Claims {
        CLAIMS
    }

    async fn create(&self, _check: &str) -> Result<ImageDirectory, BoxError> {
        Ok(ImageDirectory::new()?)
    }

    async fn open(&self, database: &ImageDirectory) -> Result<RedbResource, ResourceError> {
        let options = (self.adapt)(RedbOptions::default());
        options.open(database.path().join("store.redb"))
    }

    async fn crash(&self, database: &ImageDirectory) -> Result<(), BoxError> {
        Ok(database.crash()?)
    }

    async fn work(&self, tx: &mut RedbTransaction, item: &str) -> Result<(), ResourceError> {
        work(tx, item).await
    }

    async fn look(&self, tx: &mut RedbTransaction, item: &str) -> Result<u64, ResourceError> {
        look(tx, item).await
    }

    async fn lock(&self, tx: &mut RedbTransaction, item: &str) -> Result<Option<u64>, ResourceError> {
        lock(tx, item).await
    }

    async fn effect(&self, store: &RedbResource, item: &str) -> Result<u64, BoxError> {
        effect(store, item)
    }
}

/// On a disk in memory. A crash is a power failure, which what was not synced survives in another way each
/// time, and can come at any operation of the disk.
#[derive(Default)]
pub struct OnDisk {
    crash_count: AtomicU64,
}

impl Harness for OnDisk {
    type Store = RedbResource;
    type Database = MemoryDisk;

    fn claims(&self) -> Claims {
        Claims {
            // The lock on the file is what keeps a second one out.
            instances: Instances::NotTested,
            ..CLAIMS
        }
    }

    async fn create(&self, _check: &str) -> Result<MemoryDisk, BoxError> {
        Ok(MemoryDisk::default())
    }

    async fn open(&self, disk: &MemoryDisk) -> Result<RedbResource, ResourceError> {
        let disk = disk.clone();
        RedbOptions::default().open_backend(move || disk.backend())
    }

    async fn crash(&self, disk: &MemoryDisk) -> Result<(), BoxError> {
        let count = self.crash_count.fetch_add(1, Ordering::Relaxed);
        disk.lose_power(match count % 4 {
            0 => PowerLoss::Lost,
            1 => PowerLoss::Kept,
            2 => PowerLoss::Subset(count),
            _ => PowerLoss::Torn(count),
        });
        Ok(())
    }

    fn crash_after_writes(&self, disk: &MemoryDisk, write_count: u64) -> Option<Fuse> {
        // Nothing arrives any more from then on, and the power is lost at the next `crash`.
        disk.fail_from(
            disk.operation_count()
                .saturating_add(write_count)
                .saturating_add(1),
        );
        let disk = disk.clone();
        Some(Fuse::new(move || disk.has_failed()))
    }

    async fn work(&self, tx: &mut RedbTransaction, item: &str) -> Result<(), ResourceError> {
        work(tx, item).await
    }

    async fn look(&self, tx: &mut RedbTransaction, item: &str) -> Result<u64, ResourceError> {
        look(tx, item).await
    }

    async fn lock(&self, tx: &mut RedbTransaction, item: &str) -> Result<Option<u64>, ResourceError> {
        lock(tx, item).await
    }

    async fn effect(&self, store: &RedbResource, item: &str) -> Result<u64, BoxError> {
        effect(store, item)
    }
}
