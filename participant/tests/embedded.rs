//! Global transactions over the embedded store: the same library as in `transactions.rs`, on real redb files.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use support::coordinator::TestCoordinator;
use support::{eventually, within};
use synod::resource::ResourceError;
use synod::resource::redb::{RedbFile, RedbOptions, RedbResource};
use synod::{BoxError, BranchFailure, CommitError, Participant, Resource, RetryOptions, Transaction};

const DELIVERY: Duration = Duration::from_secs(5);

async fn connect(coordinator: &TestCoordinator) -> Participant {
    let builder = Participant::builder().coordinators([coordinator.address()]);
    builder.connect().await.expect("the coordinator answers")
}

async fn open(participant: &Participant, path: &Path) -> Resource<RedbResource> {
    let store = RedbOptions::default()
        .lock_timeout(Duration::from_secs(5))
        .open(path)
        .expect("opens");
    participant.resource(store).await.expect("attaches")
}

async fn add(
    txn: &Transaction,
    to: &Resource<RedbResource>,
    key: &'static str,
    amount: i64,
) -> Result<u64, BoxError> {
    let added = txn.branch(to, async move |mut tx| {
        let before = tx.get_u64_for_update("accounts", key).await?.unwrap_or(100);
        let after = before.checked_add_signed(amount).ok_or("the account is empty")?;
        tx.put_u64("accounts", key, after).await?;
        Ok(after)
    });
    Ok(added.await?)
}

fn balance(resource: &Resource<RedbResource>, key: &str) -> Option<u64> {
    let bytes = resource
        .manager()
        .snapshot()
        .and_then(|snapshot| snapshot.get("accounts", key))
        .expect("readable")?;
    Some(u64::from_be_bytes(
        bytes.as_ref().try_into().expect("eight bytes"),
    ))
}

/// begin, two branches in two files, commit, delivered: and both files say so after everybody has gone.
#[tokio::test]
async fn two_files_commit_together() {
    within(async {
        let folder = tempfile::tempdir().expect("a folder");
        let (left, right) = (folder.path().join("left.redb"), folder.path().join("right.redb"));
        let coordinator = TestCoordinator::start().await;
        let participant = connect(&coordinator).await;
        let (a, b) = (open(&participant, &left).await, open(&participant, &right).await);
        let txn = participant.begin();
        assert_eq!(add(&txn, &a, "x", -30).await.expect("enough"), 70);
        assert_eq!(add(&txn, &b, "x", 30).await.expect("enough"), 130);
        assert_eq!(
            (balance(&a, "x"), balance(&b, "x")),
            (None, None),
            "nothing shows before the commit"
        );
        txn.commit()
            .await
            .expect("two votes")
            .delivered(DELIVERY)
            .await
            .expect("acknowledged");
        assert_eq!((balance(&a, "x"), balance(&b, "x")), (Some(70), Some(130)));
        assert_eq!(participant.in_doubt(), []);
        participant.shutdown().await;
        a.manager().close().await.expect("closes");
        b.manager().close().await.expect("closes");
        for (path, expected) in [(left, 70u64), (right, 130)] {
            let snapshot = RedbFile::open(path)
                .and_then(|file| file.snapshot())
                .expect("opens");
            let row = snapshot.get("accounts", "x").expect("readable").expect("there");
            assert_eq!(
                (row.as_ref(), snapshot.in_doubt().expect("readable")),
                (&expected.to_be_bytes()[..], vec![])
            );
        }
    })
    .await;
}

/// T8, C9: the process that prepared is gone and its transaction was decided meanwhile; whoever opens the file finishes
/// the branch, asking by itself.
#[tokio::test]
async fn a_restarted_service_finishes_what_it_finds() {
    within(async {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("accounts.redb");
        let coordinator = TestCoordinator::start().await;
        let initiator = connect(&coordinator).await;
        let service = connect(&coordinator).await;
        let a = open(&service, &path).await;

        // Prepared by the service, decided by nobody yet: then the service's session ends.
        let txn = service.begin();
        add(&txn, &a, "x", -30).await.expect("enough");
        let gtid = txn.gtid();
        service.shutdown().await;
        a.manager().close().await.expect("closes");
        // The transaction's owner is gone with its process; the register hears of a commit that names the branch.
        assert_eq!(coordinator.proposals_for(gtid), []);
        let found = RedbFile::open(&path)
            .and_then(|file| file.snapshot()?.in_doubt())
            .expect("readable");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].context.branch.gtid, gtid);
        coordinator.commit_first(found[0].context.branch, a.id());

        let restarted = open(&initiator, &path).await;
        assert_eq!(restarted.id(), a.id());
        eventually("the branch is finished", || balance(&restarted, "x") == Some(70)).await;
        eventually("nothing is in doubt", || initiator.in_doubt().is_empty()).await;
        drop(txn);
    })
    .await;
}

/// A lost update is impossible: rivals on one row are ordered by its lock, and a deadlock ends in a victim that is retried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rivals_conserve_the_sum() {
    within(async {
        let folder = tempfile::tempdir().expect("a folder");
        let coordinator = TestCoordinator::start().await;
        let participant = connect(&coordinator).await;
        let a = open(&participant, &folder.path().join("a.redb")).await;
        let rivals = (0..16).map(|n| {
            let (participant, a) = (participant.clone(), a.clone());
            tokio::spawn(async move {
                // Half of them lock the two rows in the other order.
                let (first, second) = if n % 2 == 0 { ("x", "y") } else { ("y", "x") };
                let options = RetryOptions::default().attempt_count_max(100);
                let moved = synod::retry(&participant, options, async |txn: Arc<Transaction>| {
                    let moved = txn.branch(&a, async move |mut tx| {
                        for (key, amount) in [(first, 1), (second, -1)] {
                            let before = tx.get_u64_for_update("accounts", key).await?.unwrap_or(100);
                            let after = before.checked_add_signed(amount).ok_or("the account is empty")?;
                            tx.put_u64("accounts", key, after).await?;
                        }
                        Ok(())
                    });
                    Ok(moved.await?)
                });
                let ((), committed) = moved.await.expect("commits in the end");
                committed.delivered(DELIVERY).await.expect("acknowledged");
            })
        });
        for rival in rivals.collect::<Vec<_>>() {
            rival.await.expect("no panic");
        }
        assert_eq!((balance(&a, "x"), balance(&a, "y")), (Some(100), Some(100)));
        assert_eq!(a.manager().lock_counts(), (0, 0));
    })
    .await;
}

/// C15: a second branch of the same transaction on a locked row is told so at once; it does not wait for itself.
#[tokio::test]
async fn a_transaction_does_not_wait_for_itself() {
    within(async {
        let folder = tempfile::tempdir().expect("a folder");
        let coordinator = TestCoordinator::start().await;
        let participant = connect(&coordinator).await;
        let a = open(&participant, &folder.path().join("a.redb")).await;
        let txn = participant.begin();
        add(&txn, &a, "x", 1).await.expect("free");
        let conflict = txn
            .branch(&a, async |mut tx| {
                Ok(tx.get_u64_for_update("accounts", "x").await?)
            })
            .await
            .expect_err("locked by the first branch");
        let BranchFailure::Rejected(source) = &conflict.failure else {
            panic!("{conflict}")
        };
        assert!(
            matches!(source.downcast_ref(), Some(ResourceError::OwnBranch { .. })),
            "{source}"
        );
        match txn.commit().await {
            Err(error @ CommitError::Doomed { .. }) => {
                assert!(!error.is_retryable(), "a retry would meet it again");
            }
            other => panic!("{other:?}"),
        }
        eventually("its locks are free again", || a.manager().lock_counts() == (0, 0)).await;
    })
    .await;
}

/// A dropped transaction lets its locks go, so that the next one need not wait for the deadline.
#[tokio::test]
async fn a_dropped_transaction_frees_its_locks() {
    within(async {
        let folder = tempfile::tempdir().expect("a folder");
        let coordinator = TestCoordinator::start().await;
        let participant = connect(&coordinator).await;
        let a = open(&participant, &folder.path().join("a.redb")).await;
        let first = participant.begin();
        add(&first, &a, "x", -30).await.expect("free");
        drop(first);
        let second = participant.begin();
        assert_eq!(add(&second, &a, "x", 5).await.expect("free again"), 105);
        second
            .commit()
            .await
            .expect("one vote")
            .delivered(DELIVERY)
            .await
            .expect("acknowledged");
        assert_eq!(balance(&a, "x"), Some(105));
    })
    .await;
}
