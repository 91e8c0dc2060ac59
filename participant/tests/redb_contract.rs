//! The conformance kit on the stores that are here: redb in a file, plain, without quick repair and without a
//! thread of its own, redb on a disk that loses power, and the store that the documentation of `ResourceManager` shows.

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
use redb_support::conformance::{InFile, OnDisk};
use redb_support::{NOW, branch, prepare_put, store};
use synod::conformance::{self, Check, Claims, Harness, ImageDirectory, Instances};
use synod::resource::redb::RedbOptions;
use synod::resource::{LowWater, ResourceError, ResourceManager};
use synod::{BoxError, UnixMillis};

struct File;

impl Harness for File {
    type Store = FileStore;
    type Database = ImageDirectory;

    fn claims(&self) -> Claims {
        Claims {
            items_are_independent: false,
            reads_repeat: true,
            looking_is_read_only: false,
            instances: Instances::One,
        }
    }

    async fn create(&self, _check: &str) -> Result<ImageDirectory, BoxError> {
        Ok(ImageDirectory::new()?)
    }

    async fn open(&self, database: &ImageDirectory) -> Result<FileStore, ResourceError> {
        FileStore::open(&database.path())
    }

    async fn crash(&self, database: &ImageDirectory) -> Result<(), BoxError> {
        Ok(database.crash()?)
    }

    async fn work(&self, tx: &mut FileTransaction, item: &str) -> Result<(), ResourceError> {
        let count = self.look(tx, item).await?;
        tx.put(item, Some(&(count + 1).to_string()))
    }

    async fn look(&self, tx: &mut FileTransaction, item: &str) -> Result<u64, ResourceError> {
        Ok(tx.get(item).map_or(0, |count| count.parse().unwrap()))
    }

    async fn effect(&self, store: &FileStore, item: &str) -> Result<u64, BoxError> {
        Ok(store.rows().get(item).map_or(Ok(0), |count| count.parse())?)
    }
}

macro_rules! contract_tests {
    ($($test:ident),* $(,)?) => {
        /// Every check has a test.
        #[test]
        fn the_tests_are_the_kits_checks() {
            assert_eq!(Check::ALL.map(Check::name), [$(stringify!($test)),*]);
        }

        mod of_redb_in_a_file {
            use super::*;
            $(#[tokio::test]
            async fn $test() {
                let variants: [fn(RedbOptions) -> RedbOptions; 3] =
                    [|plain| plain, |plain| plain.quick_repair(false), RedbOptions::inline];
                for adapt in variants {
                    let check = Check::named(stringify!($test)).unwrap();
                    conformance::run_check(&InFile { adapt }, check).await.assert_passed();
                }
            })*
        }

        mod of_redb_on_a_disk_that_loses_power {
            use super::*;
            $(#[tokio::test]
            async fn $test() {
                let check = Check::named(stringify!($test)).unwrap();
                conformance::run_check(&OnDisk::default(), check).await.assert_passed();
            })*
        }

        mod of_the_documented_example {
            use super::*;
            $(#[tokio::test]
            async fn $test() {
                let check = Check::named(stringify!($test)).unwrap();
                conformance::run_check(&File, check).await.assert_passed();
            })*
        }
    };
}

contract_tests!(
    identity_is_kept,
    one_lineage_for_ever,
    work_is_invisible_until_commit,
    dropped_work_leaves_nothing,
    foreign_and_passed_work_is_refused,
    waiting_ends,
    rivals_wait_or_are_refused,
    different_items_do_not_wait,
    no_update_is_lost,
    reads_repeat,
    read_only_votes_are_honest,
    late_work_is_refused,
    an_execution_runs_once,
    in_doubt_lists_every_branch,
    nothing_is_settled_by_itself,
    outcomes_are_idempotent,
    unknown_is_no_acknowledgement,
    commit_waits_for_its_prepare,
    dropped_calls_run_to_their_end,
    crash_at_every_step,
    crash_within_every_step,
    locks_survive_a_crash,
    another_instance_finishes,
    proof_is_kept_until_forgotten,
    work_below_the_mark_is_refused,
    forget_leaves_what_is_prepared,
    odd_and_large_input,
    many_branches,
);

/// T13: the number that `forget` returns, of which the contract leaves much to the store.
#[tokio::test]
async fn forget_counts_the_proofs_that_it_deletes() {
    let store = store().await;
    for number in 1..=4 {
        prepare_put(&store, branch(number), "rows", "row", "value").await;
        store.commit(&branch(number)).await.unwrap();
    }
    let forget = async |mark: u64, unfinished: &[u64]| {
        let low_water = LowWater {
            mark: UnixMillis(mark),
            unfinished: unfinished.iter().map(|number| branch(*number).gtid).collect(),
        };
        store.forget(&low_water).await.unwrap()
    };
    assert_eq!(forget(NOW.0 + 4, &[2]).await, 2);
    assert_eq!(forget(NOW.0 + 4, &[2]).await, 0);
    assert_eq!(forget(0, &[]).await, 0);
    assert_eq!(forget(NOW.0 + 4, &[]).await, 1);
}
