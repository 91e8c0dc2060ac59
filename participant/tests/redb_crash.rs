//! The redb store on a disk that fails or loses power at every single operation, one after the other.

mod redb_support;

use std::time::Duration;

use redb_support::{LINEAGE, branch, context, formatted, load, prepare_put, row, within};
use synod::resource::redb::{MemoryDisk as Disk, PowerLoss, RedbOptions, RedbResource};
use synod::resource::{BranchState, Effect, Remedy, ResourceError, ResourceManager, Vote};

/// Nobody waits long for a lock here: where one is held, it stays held.
fn options() -> RedbOptions {
    redb_support::options().lock_timeout(Duration::from_millis(1))
}

fn open(disk: &Disk, options: RedbOptions) -> Result<RedbResource, ResourceError> {
    let disk = disk.clone();
    options.open_backend(move || disk.backend())
}

/// How far the script came before the disk failed, as its caller was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    Loaded,
    FirstPrepared,
    FirstCommitted,
    SecondPrepared,
    SecondAborted,
}

/// Stock of 10. The first branch takes 3 and commits, the second takes 2 and is aborted; each writes two
/// tables.
async fn script(store: &RedbResource, told: &mut Told) -> Result<(), ResourceError> {
    store.identity(Some(LINEAGE)).await?;
    let mut tx = store.begin_local()?;
    tx.put("stock", "bolt", "10").await?;
    tx.commit().await?;
    *told = Told::Loaded;
    let first = context(branch(1));
    let mut tx = store.begin(&first).await?;
    tx.put("stock", "bolt", "7").await?;
    tx.put("orders", "o1", "3 bolts").await?;
    assert_eq!(store.prepare(&first, tx).await?.vote, Vote::Commit);
    *told = Told::FirstPrepared;
    assert_eq!(store.commit(&first.branch).await?, Effect::Applied);
    *told = Told::FirstCommitted;
    let second = context(branch(2));
    let mut tx = store.begin(&second).await?;
    tx.put("stock", "bolt", "5").await?;
    tx.delete("orders", "o1").await?;
    tx.put("orders", "o2", "2 bolts").await?;
    store.prepare(&second, tx).await?;
    *told = Told::SecondPrepared;
    assert_eq!(store.abort(&second.branch).await?, Effect::Applied);
    *told = Told::SecondAborted;
    Ok(())
}

/// What must hold after everything was read back from the disk.
async fn check_and_finish(store: &RedbResource, told: Told) {
    let (first, second) = (branch(1), branch(2));
    let orders = |store: &RedbResource| {
        (
            row(store, "stock", "bolt"),
            row(store, "orders", "o1"),
            row(store, "orders", "o2"),
        )
    };
    let expected = |stock: &str, o1: Option<&str>| (Some(stock.to_owned()), o1.map(str::to_owned), None);
    if told < Told::Loaded {
        // Whatever is there is there as a whole, and the script can be run.
        let mut told = Told::Nothing;
        script(store, &mut told).await.unwrap();
        assert_eq!(orders(store), expected("7", Some("3 bolts")));
        return;
    }
    let prepared: Vec<_> = store
        .in_doubt()
        .await
        .unwrap()
        .into_iter()
        .map(|branch| branch.context.branch)
        .collect();
    match store.status(&first).await.unwrap() {
        BranchState::Unknown => {
            assert!(
                told < Told::FirstPrepared,
                "C1: a vote was given and the branch is gone"
            );
            assert_eq!((prepared, orders(store)), (vec![], expected("10", None)));
            assert!(
                matches!(store.commit(&first).await.unwrap(), Effect::Unknown { .. }),
                "C5"
            );
            return;
        }
        BranchState::Prepared => {
            assert!(told < Told::FirstCommitted, "T8: an acknowledged commit is gone");
            assert_eq!((prepared, orders(store)), (vec![first], expected("10", None)));
            // Its locks are held: the row cannot be had before the outcome.
            let mut tx = store.begin_local().unwrap();
            let refused = tx.get_for_update("stock", "bolt").await.unwrap_err();
            assert!(matches!(refused, ResourceError::LockTimeout { .. }), "{refused}");
            drop(tx);
            assert_eq!(store.commit(&first).await.unwrap(), Effect::Applied);
        }
        BranchState::Committed => {
            assert_eq!(store.commit(&first).await.unwrap(), Effect::AlreadyApplied, "F5");
            match store.status(&second).await.unwrap() {
                BranchState::Unknown => assert!(told < Told::SecondPrepared && prepared.is_empty()),
                BranchState::Prepared => {
                    assert!(told < Told::SecondAborted);
                    assert_eq!(prepared, [second]);
                    assert_eq!(store.abort(&second).await.unwrap(), Effect::Applied);
                }
                BranchState::Aborted => {
                    assert_eq!(store.abort(&second).await.unwrap(), Effect::AlreadyApplied);
                }
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(orders(store), expected("7", Some("3 bolts")));
    assert_eq!(store.in_doubt().await.unwrap(), []);
    load(store, "stock", "bolt", "6").await;
}

/// The number of the disk's operations in the whole script, from the opening to the closing.
async fn operation_count(options: RedbOptions) -> u64 {
    let disk = formatted();
    let before = disk.operation_count();
    let store = open(&disk, options).unwrap();
    script(&store, &mut Told::Nothing).await.unwrap();
    drop(store);
    disk.operation_count() - before
}

/// Traps B12, B17, C1, C4, F2, F3, F5, and T8, L8, at every operation of the disk: power is lost, and of the
/// unsynced writes none, all, some, or some sectors remain.
#[tokio::test]
async fn power_loss_at_every_operation_of_the_disk() {
    for quick_repair in [true, false] {
        let options = || options().quick_repair(quick_repair);
        let operations = within(operation_count(options())).await;
        assert!(
            operations > 40,
            "the script is shorter than it should be: {operations}"
        );
        for operation in 1..=operations {
            for power_loss in [
                PowerLoss::Lost,
                PowerLoss::Kept,
                PowerLoss::Subset(operation),
                PowerLoss::Torn(operation),
            ] {
                let disk = formatted();
                disk.fail_from(disk.operation_count() + operation);
                let mut told = Told::Nothing;
                if let Ok(store) = open(&disk, options()) {
                    // The last operations are those of closing.
                    if let Err(error) = within(script(&store, &mut told)).await {
                        assert_eq!(error.remedy(), Remedy::Reopen, "{error}");
                    }
                }
                assert!(disk.has_failed() || told == Told::SecondAborted);
                disk.lose_power(power_loss);
                let store = open(&disk, options()).unwrap_or_else(|error| {
                    panic!("power loss at operation {operation}, {power_loss:?}, told {told:?}: {error:?}")
                });
                within(check_and_finish(&store, told)).await;
            }
        }
    }
}

/// Traps F4, C12: after a failed write the store says so to every call, also of other tasks, until it has read
/// everything back.
#[tokio::test]
async fn f4_a_failed_write_closes_the_store_until_it_is_reopened() {
    let operations = within(operation_count(options())).await;
    for operation in 1..=operations {
        let disk = formatted();
        disk.fail_from(disk.operation_count() + operation);
        let Ok(store) = open(&disk, options()) else {
            continue;
        };
        let mut told = Told::Nothing;
        if within(script(&store, &mut told)).await.is_ok() {
            continue;
        }
        let branch = branch(1);
        let failed = |result: Result<(), ResourceError>| matches!(result, Err(ResourceError::Failed(_)));
        assert!(failed(store.commit(&branch).await.map(drop)));
        assert!(failed(store.abort(&branch).await.map(drop)));
        assert!(failed(store.status(&branch).await.map(drop)));
        assert!(
            failed(store.in_doubt().await.map(drop)),
            "C11: never an empty list for an unknown one"
        );
        assert!(failed(store.identity(None).await.map(drop)));
        assert!(failed(store.begin(&context(branch)).await.map(drop)));
        assert!(failed(store.snapshot().map(drop)));
        assert!(failed(store.begin_local().map(drop)));
        // The disk still fails, or works again: reopening may be tried until it does.
        let _ = store.reopen().await;
        disk.mend();
        within(store.reopen()).await.unwrap();
        within(check_and_finish(&store, told)).await;
    }
}

/// Local transactions from before a failure are over, and whoever waits for a lock is told at once.
#[tokio::test]
async fn a_failure_ends_open_transactions_and_waits() {
    let disk = Disk::default();
    let store = redb_support::bound(open(&disk, redb_support::options()).unwrap()).await;
    prepare_put(&store, branch(1), "t", "k", "1").await;
    let mut before = store.begin(&context(branch(2))).await.unwrap();
    before.put("t", "other", "x").await.unwrap();
    let waiter = tokio::spawn({
        let store = store.clone();
        async move { store.begin_local().unwrap().get_for_update("t", "k").await }
    });
    within(redb_support::until_waiting(&store, 1)).await;
    disk.fail_from(disk.operation_count() + 1);
    assert!(matches!(
        store.commit(&branch(1)).await,
        Err(ResourceError::Failed(_))
    ));
    assert!(matches!(
        within(waiter).await.unwrap(),
        Err(ResourceError::Failed(_))
    ));
    disk.mend();
    within(store.reopen()).await.unwrap();
    let late = store.prepare(&context(branch(2)), before).await.unwrap_err();
    assert_eq!(late.remedy(), Remedy::NewTransaction, "{late}");
    assert_eq!(store.status(&branch(2)).await.unwrap(), BranchState::Unknown);
    // Reopening a store that works does nothing.
    store.reopen().await.unwrap();
    assert!(matches!(
        store.commit(&branch(1)).await.unwrap(),
        Effect::Applied | Effect::AlreadyApplied
    ));
    assert_eq!(row(&store, "t", "k"), Some("1".into()));
}

/// Group commit: what queues up while a commit syncs shares the next one.
#[tokio::test]
// Held to keep the disk waiting while the calls are polled.
#[expect(clippy::await_holding_lock)]
async fn concurrent_branches_share_syncs() {
    const BRANCH_COUNT: u64 = 64;
    let disk = Disk::default();
    let store = redb_support::bound(open(&disk, options()).unwrap()).await;
    let before = disk.sync_count();
    for step in ["prepare", "commit"] {
        let held = disk.hold_syncs();
        let mut calls: Vec<_> = (1..=BRANCH_COUNT)
            .map(|number| {
                let store = store.clone();
                Box::pin(async move {
                    match step {
                        "prepare" => prepare_put(&store, branch(number), "t", &number.to_string(), "x").await,
                        _ => assert_eq!(store.commit(&branch(number)).await.unwrap(), Effect::Applied),
                    }
                })
            })
            .collect();
        for call in &mut calls {
            assert!(futures::poll!(call).is_pending(), "answered before the sync");
        }
        drop(held);
        within(futures::future::join_all(calls)).await;
    }
    // In each step, what the writer took first, and then all the rest: two commits of two syncs.
    let syncs = disk.sync_count() - before;
    assert!(syncs <= 8, "{syncs} syncs for {BRANCH_COUNT} branches");
    assert_eq!(
        store.snapshot().unwrap().scan("t", "").unwrap().len() as u64,
        BRANCH_COUNT
    );
}

/// A repeated delivery writes nothing.
#[tokio::test]
async fn what_changes_nothing_costs_no_sync() {
    let disk = Disk::default();
    let store = redb_support::bound(open(&disk, options()).unwrap()).await;
    prepare_put(&store, branch(1), "t", "k", "v").await;
    store.commit(&branch(1)).await.unwrap();
    let before = disk.operation_count();
    assert_eq!(
        within(store.commit(&branch(1))).await.unwrap(),
        Effect::AlreadyApplied
    );
    assert!(matches!(
        within(store.commit(&branch(2))).await.unwrap(),
        Effect::Unknown { .. }
    ));
    within(store.identity(Some(LINEAGE))).await.unwrap();
    // Only reads: a vote without a single write (T15).
    let reader = context(branch(3));
    let mut tx = store.begin(&reader).await.unwrap();
    tx.get("t", "k").await.unwrap();
    tx.scan("t", "").await.unwrap();
    assert_eq!(store.prepare(&reader, tx).await.unwrap().vote, Vote::ReadOnly);
    assert_eq!(disk.operation_count(), before);
}
