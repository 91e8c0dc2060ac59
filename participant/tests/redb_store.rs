//! The redb store's edges: its file, its limits, its own tables, bad input.

mod redb_support;

use std::sync::Arc;

use redb::Database;
use redb_support::{
    LINEAGE, NOW, bound, branch, branch_of, context, load, options, prepare_put, row, store, within,
};
use synod::resource::redb::{
    BRANCH_BYTES_MAX, KEY_BYTES_MAX, LOCK_COUNT_MAX, MemoryDisk, PowerLoss, RedbFile, RedbResource,
    TABLE_BYTES_MAX, VALUE_BYTES_MAX,
};
use synod::resource::{BranchState, Effect, InDoubtBranch, LowWater, ResourceError, ResourceManager};
use synod::{ResourceId, UnixMillis};
use tempfile::TempDir;

#[tokio::test]
async fn a_second_opening_of_the_file_is_refused_by_name() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.redb");
    let store = bound(options().open(&path).unwrap()).await;
    for refused in [
        RedbResource::open(&path).map(drop),
        RedbFile::open(&path).map(drop),
    ] {
        assert_eq!(
            refused.unwrap_err().to_string(),
            format!(
                "{} is open already, in another process or under another handle",
                path.display()
            )
        );
    }
    // Closed by name, or with its last handle: the file is free at once.
    store.close().await.unwrap();
    assert!(matches!(
        store.status(&branch(1)).await,
        Err(ResourceError::Closed)
    ));
    assert!(matches!(store.reopen().await, Err(ResourceError::Closed)));
    for _ in 0..20 {
        drop(RedbResource::open(&path).unwrap());
    }
}

/// Traps C14: what cannot take part is refused when it is opened, and not at the first transaction.
#[tokio::test]
async fn what_is_no_store_is_refused_and_left_alone() {
    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("missing/store.redb");
    assert!(matches!(
        RedbResource::open(&missing),
        Err(ResourceError::Open { .. })
    ));
    assert!(matches!(
        RedbFile::open(directory.path().join("none.redb")),
        Err(ResourceError::Open { .. })
    ));
    let text = directory.path().join("letter.txt");
    std::fs::write(&text, "Dear Ada, this is not a database.".repeat(400)).unwrap();
    assert!(matches!(
        RedbResource::open(&text),
        Err(ResourceError::Open { .. })
    ));
    assert!(std::fs::read_to_string(&text).unwrap().starts_with("Dear Ada"));
    // Traps J9: a newer layout is not guessed at.
    let newer = directory.path().join("newer.redb");
    drop(RedbResource::open(&newer).unwrap());
    {
        let database = Database::open(&newer).unwrap();
        let tx = database.begin_write().unwrap();
        let identity = redb::TableDefinition::<&str, &[u8]>::new("synod:identity");
        tx.open_table(identity)
            .unwrap()
            .insert("format", &2u32.to_be_bytes()[..])
            .unwrap();
        tx.commit().unwrap();
    }
    let refused = RedbResource::open(&newer).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the database has format 2, and this program knows 1 only: upgrade it"
    );
}

/// The audit of a process that was killed: its file is read without being changed.
#[tokio::test]
async fn a_file_can_be_read_after_its_process_is_gone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.redb");
    let store = bound(options().open(&path).unwrap()).await;
    load(&store, "stock", "bolt", "10").await;
    load(&store, "stock", "nut", "20").await;
    prepare_put(&store, branch(1), "orders", "o1", "open").await;
    prepare_put(&store, branch(2), "orders", "o2", "done").await;
    store.commit(&branch(2)).await.unwrap();
    let identity = store.identity(None).await.unwrap();
    // As a kill leaves it: the bytes on disk while the process still runs.
    let copy = directory.path().join("copy.redb");
    std::fs::copy(&path, &copy).unwrap();
    drop(store);
    let other_reader = RedbFile::open(&path).unwrap();
    assert!(matches!(
        RedbResource::open(&path),
        Err(ResourceError::AlreadyOpen { .. })
    ));
    for path in [&path, &copy] {
        let before = std::fs::read(path).unwrap();
        let file = RedbFile::open(path).unwrap();
        let snapshot = file.snapshot().unwrap();
        assert_eq!(snapshot.tables().unwrap(), ["orders", "stock"]);
        assert_eq!(
            snapshot.scan("stock", "").unwrap(),
            [("bolt".into(), "10".into()), ("nut".into(), "20".into())]
        );
        assert_eq!(
            snapshot.scan("orders", "").unwrap(),
            [("o2".into(), "done".into())]
        );
        assert_eq!(
            snapshot.scan_page("stock", "", Some(b"bolt"), 5).unwrap(),
            [("nut".into(), "20".into())]
        );
        assert_eq!(snapshot.get("nothing", "x").unwrap(), None);
        assert_eq!(
            snapshot.in_doubt().unwrap(),
            [InDoubtBranch {
                context: context(branch(1)),
                prepared_at: NOW
            }]
        );
        assert_eq!(snapshot.identity().unwrap(), identity);
        let states = [1, 2, 3].map(|number| snapshot.status(&branch(number)).unwrap());
        assert_eq!(
            states,
            [
                BranchState::Prepared,
                BranchState::Committed,
                BranchState::Unknown
            ]
        );
        assert_eq!(snapshot.marker_count().unwrap(), 1);
        drop((snapshot, file));
        assert!(std::fs::read(path).unwrap() == before, "reading changed the file");
    }
    drop(other_reader);
    drop(RedbResource::open(&path).unwrap());
    // A redb file of somebody else.
    let foreign = directory.path().join("foreign.redb");
    drop(Database::create(&foreign).unwrap());
    assert!(matches!(
        RedbFile::open(&foreign).unwrap().snapshot(),
        Err(ResourceError::Invalid { .. })
    ));
}

/// redb ends every reading when its database is dropped: a snapshot keeps the database, so that an audit may hold on to
/// the snapshot alone.
#[tokio::test]
async fn a_snapshot_outlives_the_file_that_it_was_taken_of() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.redb");
    let store = bound(options().open(&path).unwrap()).await;
    for number in 0..200 {
        load(&store, "stock", &format!("sku-{number:03}"), &"x".repeat(500)).await;
    }
    store.close().await.unwrap();
    let snapshot = RedbFile::open(&path).unwrap().snapshot().unwrap();
    assert_eq!(snapshot.scan("stock", "").unwrap().len(), 200);
    assert_eq!(snapshot.clone().in_doubt().unwrap(), []);
}

/// What a crash leaves of a file that was being made is not in the way of the next start, nor is it taken for
/// a store.
#[tokio::test]
async fn a_crash_while_the_file_is_made_leaves_none() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.redb");
    std::fs::write(
        directory.path().join("store.redb.0123456789abcdef.new"),
        [0; 8192],
    )
    .unwrap();
    let openings = (0..8).map(|_| {
        let path = path.clone();
        std::thread::spawn(move || RedbResource::open(path))
    });
    let opened: Vec<_> = openings
        .collect::<Vec<_>>()
        .into_iter()
        .map(|opening| opening.join().unwrap())
        .collect();
    // Of processes that start at once, one makes it; the others find it, and find it open.
    assert_eq!(
        opened.iter().filter(|opened| opened.is_ok()).count(),
        1,
        "{opened:?}"
    );
    let errors = opened.iter().filter_map(|opened| opened.as_ref().err());
    assert!(
        errors
            .into_iter()
            .all(|error| matches!(error, ResourceError::AlreadyOpen { .. })),
        "{opened:?}"
    );
    drop(opened);
    let mut names: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["store.redb", "store.redb.0123456789abcdef.new"]);
}

#[tokio::test]
async fn a_database_that_is_open_already_can_be_shared() {
    let database = Arc::new(
        Database::builder()
            .create_with_backend(redb::backends::InMemoryBackend::new())
            .unwrap(),
    );
    let own = redb::TableDefinition::<u64, u64>::new("their own");
    let tx = database.begin_write().unwrap();
    tx.open_table(own).unwrap().insert(1, 2).unwrap();
    tx.commit().unwrap();
    let store = bound(options().open_database(database.clone()).unwrap()).await;
    load(&store, "t", "k", "v").await;
    // A table of other types is refused before anything is promised, and the store goes on.
    let mut tx = store.begin_local().unwrap();
    assert!(matches!(
        tx.put("their own", "k", "v").await,
        Err(ResourceError::Invalid { .. })
    ));
    drop(store);
    let store = options().open_database(database).unwrap();
    assert_eq!(row(&store, "t", "k"), Some("v".into()));
    assert_eq!(store.identity(None).await.unwrap().lineage, Some(LINEAGE));
}

/// Traps C8: an overlong value is an error before anything is written, never a value that was cut.
#[tokio::test]
async fn limits_are_errors_and_roll_back() {
    let store = store().await;
    let begin = || store.begin_local().unwrap();
    let too_large = |result: Result<(), ResourceError>, max: usize| {
        let Err(ResourceError::TooLarge { bytes_max, .. }) = result else {
            return false;
        };
        bytes_max == max
    };
    let value = vec![1; VALUE_BYTES_MAX];
    assert!(too_large(
        begin().put("t", "k", [&value[..], b"1"].concat()).await,
        VALUE_BYTES_MAX
    ));
    assert!(too_large(
        begin().put("t", vec![1; KEY_BYTES_MAX + 1], "v").await,
        KEY_BYTES_MAX
    ));
    let invalid = |result: Result<(), ResourceError>| matches!(result, Err(ResourceError::Invalid { .. }));
    let long = "t".repeat(TABLE_BYTES_MAX + 1);
    for table in ["", "synod:prepared", "synod:anything", &long] {
        assert!(invalid(begin().put(table, "k", "v").await), "{table}");
        assert!(invalid(begin().get(table, "k").await.map(drop)), "{table}");
        assert!(invalid(begin().scan(table, "k").await.map(drop)), "{table}");
    }
    // The largest branch is taken, survives, and takes effect.
    let largest = context(branch(1));
    let mut tx = store.begin(&largest).await.unwrap();
    for at in 0..BRANCH_BYTES_MAX / VALUE_BYTES_MAX {
        tx.put(&long[1..], vec![u8::try_from(at).unwrap(); KEY_BYTES_MAX], &value)
            .await
            .unwrap();
    }
    // Writing over counts once.
    tx.put(&long[1..], vec![0; KEY_BYTES_MAX], &value).await.unwrap();
    store.prepare(&largest, tx).await.unwrap();
    assert_eq!(
        within(store.commit(&largest.branch)).await.unwrap(),
        Effect::Applied
    );
    assert_eq!(
        store
            .snapshot()
            .unwrap()
            .get(&long[1..], vec![1; KEY_BYTES_MAX])
            .unwrap()
            .unwrap(),
        value
    );
    let mut tx = begin();
    for at in 0..BRANCH_BYTES_MAX / VALUE_BYTES_MAX {
        tx.put("t", [u8::try_from(at).unwrap()], &value).await.unwrap();
    }
    assert!(too_large(tx.put("t", "one more", "1").await, BRANCH_BYTES_MAX));
    assert!(matches!(tx.commit().await, Err(ResourceError::RolledBack { .. })));
    let mut tx = begin();
    for at in 0..LOCK_COUNT_MAX {
        tx.get_for_update("t", at.to_be_bytes()).await.unwrap();
    }
    assert!(invalid(tx.put("t", "one more", "1").await));
    assert_eq!(store.lock_counts(), (0, 0));
}

#[tokio::test]
async fn calls_that_break_a_rule_are_named() {
    let store = store().await;
    let (first, second) = (context(branch(1)), context(branch(2)));
    let tx = store.begin(&first).await.unwrap();
    // T2: an execution runs once.
    assert!(matches!(
        store.begin(&first).await.map(drop),
        Err(ResourceError::Invalid { .. })
    ));
    assert!(matches!(
        store.prepare(&second, tx).await.map(drop),
        Err(ResourceError::Invalid { .. })
    ));
    // The refused transaction was rolled back: its id is free, and it left nothing.
    assert_eq!(store.status(&first.branch).await.unwrap(), BranchState::Unknown);
    let other = redb_support::store().await;
    let tx = other.begin(&first).await.unwrap();
    assert!(matches!(
        store.prepare(&first, tx).await.map(drop),
        Err(ResourceError::Invalid { .. })
    ));
}

/// Contract 10 (traps C5): a branch that is here and has not voted is not *unknown*.
#[tokio::test]
async fn a_working_branch_is_busy() {
    let store = store().await;
    let working = context(branch(1));
    let tx = store.begin(&working).await.unwrap();
    let busy = |answer| matches!(answer, Err(ResourceError::Busy { branch: busy }) if busy == branch(1));
    assert!(busy(store.commit(&branch(1)).await));
    drop(tx);
    assert!(matches!(
        store.commit(&branch(1)).await,
        Ok(Effect::Unknown { .. })
    ));
}

/// T13: proof below the mark goes in bounded portions, so that others get their turn.
#[tokio::test]
async fn a_long_history_is_forgotten_in_portions() {
    let store = store().await;
    // Empty aborts leave a row each.
    let aborts = (0..10_300).map(|number| {
        let store = &store;
        async move { store.abort(&branch_of(number % 7, number)).await.unwrap() }
    });
    assert!(
        within(futures::future::join_all(aborts))
            .await
            .iter()
            .all(|effect| *effect == Effect::Applied)
    );
    assert_eq!(store.snapshot().unwrap().marker_count().unwrap(), 10_300);
    let low_water = LowWater {
        mark: UnixMillis(NOW.0 + 7),
        unfinished: vec![],
    };
    assert_eq!(within(store.forget(&low_water)).await.unwrap(), 10_000);
    assert_eq!(within(store.forget(&low_water)).await.unwrap(), 300);
    assert_eq!(store.snapshot().unwrap().marker_count().unwrap(), 0);
    // Nothing below the mark needs a row any more to be refused.
    assert_eq!(store.abort(&branch(1)).await.unwrap(), Effect::AlreadyApplied);
    assert_eq!(store.snapshot().unwrap().marker_count().unwrap(), 0);
}

/// T8: a prepared branch is never forgotten, however old it is.
#[tokio::test]
async fn a_prepared_branch_outlives_the_mark() {
    let store = store().await;
    prepare_put(&store, branch(1), "t", "k", "v").await;
    store
        .forget(&LowWater {
            mark: UnixMillis(NOW.0 + 1_000),
            unfinished: vec![],
        })
        .await
        .unwrap();
    assert_eq!(store.in_doubt().await.unwrap().len(), 1);
    assert_eq!(store.commit(&branch(1)).await.unwrap(), Effect::Applied);
    assert_eq!(store.commit(&branch(1)).await.unwrap(), Effect::AlreadyApplied);
    assert_eq!(row(&store, "t", "k"), Some("v".into()));
}

#[tokio::test]
async fn local_transactions_commit_or_leave_nothing() {
    let store = store().await;
    let sum: Result<usize, ResourceError> = store
        .local(async |tx| {
            tx.put("t", "a", "1").await?;
            tx.put("t", "b", "2").await?;
            Ok(tx.scan("t", "").await?.len())
        })
        .await;
    assert_eq!(sum.unwrap(), 2);
    let refused: Result<(), ResourceError> = store
        .local(async |tx| {
            tx.delete("t", "a").await?;
            Err(ResourceError::Invalid {
                text: "changed my mind".into(),
            })
        })
        .await;
    assert_eq!(refused.unwrap_err().to_string(), "changed my mind");
    let rows = store.read(|snapshot| snapshot.scan("t", "")).await.unwrap();
    assert_eq!(rows, [("a".into(), "1".into()), ("b".into(), "2".into())]);
    assert_eq!(store.lock_counts(), (0, 0));
}

/// Without a thread, without a runtime and without a clock: every operation is done at its first poll, and a wait for a
/// lock ends by the timer that was given.
#[test]
fn an_inline_store_needs_neither_thread_nor_runtime() {
    use futures::FutureExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    let is_over = Arc::new(AtomicBool::new(false));
    let timer_is_over = is_over.clone();
    let disk = MemoryDisk::default();
    let store = options()
        .inline()
        .random(|bytes| {
            bytes.fill(9);
            Ok(())
        })
        .timer(move |_| {
            let is_over = timer_is_over.clone();
            Box::pin(futures::future::poll_fn(move |_| {
                if is_over.load(Ordering::Relaxed) {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            }))
        })
        .open_backend(move || disk.backend())
        .unwrap();
    let now = |future: futures::future::BoxFuture<'_, ()>| future.now_or_never().expect("done at once");
    now(Box::pin(async {
        store.identity(Some(LINEAGE)).await.unwrap();
        assert_eq!(store.identity(None).await.unwrap().resource, ResourceId([9; 16]));
        prepare_put(&store, branch(1), "rows", "a", "1").await;
        assert_eq!(store.read(|rows| rows.get("rows", "a")).await.unwrap(), None);
    }));
    let context = context(branch(2));
    let mut tx = store.begin(&context).now_or_never().unwrap().unwrap();
    {
        let mut waiting = Box::pin(tx.put("rows", "a", "2"));
        assert!(waiting.as_mut().now_or_never().is_none(), "the row is locked");
        is_over.store(true, Ordering::Relaxed);
        let error = waiting.now_or_never().expect("its time is over").unwrap_err();
        assert!(matches!(error, ResourceError::LockTimeout { .. }), "{error}");
    }
    now(Box::pin(async {
        assert_eq!(store.commit(&branch(1)).await.unwrap(), Effect::Applied);
        assert_eq!(row(&store, "rows", "a").as_deref(), Some("1"));
        store.close().await.unwrap();
        assert!(matches!(store.close().await, Err(ResourceError::Closed)));
    }));
}

/// What a dying process still writes does not reach its disk: the next one opens what was synced.
#[test]
fn a_dead_process_writes_no_more() {
    let disk = MemoryDisk::default();
    let open = |disk: MemoryDisk| options().inline().open_backend(move || disk.backend()).unwrap();
    let store = open(disk.clone());
    disk.lose_power(PowerLoss::Lost);
    let operations = disk.operation_count();
    drop(store);
    assert_eq!(disk.operation_count(), operations, "the closing wrote nothing");
    drop(open(disk));
}
