//! The contract's tests, on redb in a file, without quick repair, without a thread of its own, and on the store that the
//! documentation of `ResourceManager` shows.

mod redb_support;

/// The documentation's own example, byte for byte.
#[allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::cast_possible_truncation,
    clippy::default_trait_access
)]
#[path = "../src/resource/example.rs"]
mod example;

use example::{FileStore, FileTransaction};
use redb_support::contract::{self, Subject};
use redb_support::{options, within};
use synod::resource::redb::{RedbOptions, RedbResource, RedbTransaction};
use tempfile::TempDir;

struct Redb {
    directory: TempDir,
    adapt: fn(RedbOptions) -> RedbOptions,
}

impl Subject for Redb {
    type Store = RedbResource;

    async fn open(&self) -> RedbResource {
        (self.adapt)(options())
            .open(self.directory.path().join("store.redb"))
            .unwrap()
    }

    async fn put(tx: &mut RedbTransaction, key: &str, value: &str) {
        tx.put("rows", key, value).await.unwrap();
    }

    async fn committed(store: &RedbResource, key: &str) -> Option<String> {
        redb_support::row(store, "rows", key)
    }
}

struct File(TempDir);

impl Subject for File {
    type Store = FileStore;

    async fn open(&self) -> FileStore {
        FileStore::open(self.0.path()).unwrap()
    }

    async fn put(tx: &mut FileTransaction, key: &str, value: &str) {
        tx.put(key, Some(value)).unwrap();
    }

    async fn committed(store: &FileStore, key: &str) -> Option<String> {
        store.committed(key)
    }
}

impl FileStore {
    fn committed(&self, key: &str) -> Option<String> {
        self.rows().get(key).cloned()
    }
}

macro_rules! contract_tests {
    ($($test:ident),* $(,)?) => {
        mod of_redb {
            use super::*;
            $(#[tokio::test]
            async fn $test() {
                let variants: [fn(RedbOptions) -> RedbOptions; 3] =
                    [|plain| plain, |plain| plain.quick_repair(false), RedbOptions::inline];
                for adapt in variants {
                    within(contract::$test(&Redb { directory: TempDir::new().unwrap(), adapt })).await;
                }
            })*
        }

        mod of_the_documented_example {
            use super::*;
            $(#[tokio::test]
            async fn $test() {
                within(contract::$test(&File(TempDir::new().unwrap()))).await;
            })*
        }
    };
}

contract_tests!(
    a_branch_survives_and_finishes_once,
    unprepared_work_leaves_nothing,
    locks_of_prepared_branches_survive,
    late_work_is_refused,
    a_foreign_lineage_is_refused,
    proof_is_kept_until_forgotten,
    a_commit_during_prepare_is_not_unknown,
    dropped_and_repeated_calls_run_to_their_end,
);
