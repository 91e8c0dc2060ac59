//! What concurrent branches on one redb store see of each other: exactly what the module documentation says.

mod redb_support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use redb_support::{
    NOW, branch, branch_of, context, load, options, prepare_put, row, store, until_waiting, within,
};
use synod::UnixMillis;
use synod::resource::redb::RedbResource;
use synod::resource::{BranchContext, Effect, Remedy, ResourceError, ResourceManager, Vote};

/// The default: what ends at once ends long before.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

async fn add_one(store: &RedbResource, number: u64) -> Result<(), ResourceError> {
    let context = context(branch(number));
    let mut tx = store.begin(&context).await?;
    let count = tx.get_u64_for_update("counts", "a").await?.unwrap_or(0);
    tx.put_u64("counts", "a", count + 1).await?;
    store.prepare(&context, tx).await?;
    assert_eq!(store.commit(&context.branch).await?, Effect::Applied);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_increment_is_lost_under_contention() {
    let store = store().await;
    let adders = (1..=100).map(|number| {
        let store = store.clone();
        tokio::spawn(async move { add_one(&store, number).await.unwrap() })
    });
    for done in within(futures::future::join_all(adders)).await {
        done.unwrap();
    }
    assert_eq!(
        row(&store, "counts", "a").unwrap().as_bytes(),
        100u64.to_be_bytes()
    );
    assert_eq!(store.lock_counts(), (0, 0));
}

/// A plain read followed by a write of the same key: the later one is refused, not lost.
#[tokio::test]
async fn a_lost_update_is_a_conflict() {
    let store = store().await;
    load(&store, "t", "k", "10").await;
    let (first, second) = (context(branch(1)), context(branch(2)));
    let mut one = store.begin(&first).await.unwrap();
    let mut two = store.begin(&second).await.unwrap();
    assert_eq!(one.get("t", "k").await.unwrap(), Some("10".into()));
    assert_eq!(two.get("t", "k").await.unwrap(), Some("10".into()));
    one.put("t", "k", "11").await.unwrap();
    store.prepare(&first, one).await.unwrap();
    store.commit(&first.branch).await.unwrap();
    // Repeatable for the second, and then not writable.
    assert_eq!(two.get("t", "k").await.unwrap(), Some("10".into()));
    let refused = two.put("t", "k", "11").await.unwrap_err();
    assert!(matches!(refused, ResourceError::Conflict { .. }), "{refused}");
    assert_eq!(refused.remedy(), Remedy::NewTransaction);
    // The error cannot be overlooked: nothing of the branch can be prepared.
    assert!(matches!(
        two.put("t", "other", "x").await,
        Err(ResourceError::RolledBack { .. })
    ));
    assert!(matches!(
        store.prepare(&second, two).await,
        Err(ResourceError::RolledBack { .. })
    ));
    assert_eq!(
        (row(&store, "t", "k"), row(&store, "t", "other")),
        (Some("11".into()), None)
    );
}

#[tokio::test]
async fn a_row_that_was_scanned_over_is_checked_when_it_is_written() {
    let store = store().await;
    load(&store, "t", "a1", "old").await;
    for key in ["a1", "a2"] {
        let mut tx = store.begin_local().unwrap();
        let seen = tx.scan("t", "a").await.unwrap().len();
        load(&store, "t", key, &format!("changed behind it, {seen}")).await;
        assert!(
            matches!(tx.put("t", key, "new").await, Err(ResourceError::Conflict { .. })),
            "{key}"
        );
    }
    // Outside the scanned range, and where nothing was read, the latest is written over.
    let mut tx = store.begin_local().unwrap();
    tx.scan("t", "b").await.unwrap();
    load(&store, "t", "a1", "changed").await;
    tx.put("t", "a1", "new").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(row(&store, "t", "a1"), Some("new".into()));
}

/// The stated limits, so that nobody takes them for promises.
#[tokio::test]
async fn write_skew_and_phantoms_are_possible_as_documented() {
    let store = store().await;
    load(&store, "duty", "ada", "on").await;
    load(&store, "duty", "bob", "on").await;
    let mut one = store.begin_local().unwrap();
    let mut two = store.begin_local().unwrap();
    assert_eq!(one.get("duty", "bob").await.unwrap(), Some("on".into()));
    assert_eq!(two.get("duty", "ada").await.unwrap(), Some("on".into()));
    one.put("duty", "ada", "off").await.unwrap();
    two.put("duty", "bob", "off").await.unwrap();
    one.commit().await.unwrap();
    two.commit().await.unwrap();
    let mut tx = store.begin_local().unwrap();
    assert_eq!(tx.scan("duty", "").await.unwrap().len(), 2);
    load(&store, "duty", "eve", "on").await;
    tx.put("summary", "count", "2").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(row(&store, "summary", "count"), Some("2".into()));
}

/// A prepared branch's rows show nowhere before its commit, and its locks hold off writers but no plain
/// reader.
#[tokio::test]
async fn readers_never_wait_and_never_see_undecided_rows() {
    let store = store().await;
    load(&store, "t", "k", "old").await;
    prepare_put(&store, branch(1), "t", "k", "new").await;
    let mut tx = store.begin_local().unwrap();
    assert_eq!(within(tx.get("t", "k")).await.unwrap(), Some("old".into()));
    assert_eq!(
        within(tx.scan("t", "")).await.unwrap(),
        [("k".into(), "old".into())]
    );
    let writer = tokio::spawn(async move {
        let value = tx.get_for_update("t", "k").await;
        (value, tx)
    });
    within(until_waiting(&store, 1)).await;
    assert!(!writer.is_finished());
    store.commit(&branch(1)).await.unwrap();
    // It had read the old value without a lock: now it must not write on that ground.
    assert!(matches!(
        within(writer).await.unwrap().0,
        Err(ResourceError::Conflict { .. })
    ));
    let mut tx = store.begin_local().unwrap();
    assert_eq!(tx.get_for_update("t", "k").await.unwrap(), Some("new".into()));
}

#[tokio::test]
async fn a_wait_ends_by_the_lock_timeout_or_the_deadline_whichever_is_first() {
    let lock_timeout = Duration::from_millis(200);
    let options = options().lock_timeout(lock_timeout);
    let store = redb_support::bound(
        options
            .open_backend(redb::backends::InMemoryBackend::new)
            .unwrap(),
    )
    .await;
    prepare_put(&store, branch(1), "t", "k", "v").await;
    let wait = async |deadline: u64| {
        let context = BranchContext {
            deadline: UnixMillis(deadline),
            ..context(branch(deadline))
        };
        let started = Instant::now();
        let mut tx = store.begin(&context).await.unwrap();
        let error = within(tx.put("t", "k", "mine")).await.unwrap_err();
        (started.elapsed(), error)
    };
    let (waited, error) = wait(NOW.0 + 60_000).await;
    assert!(waited >= lock_timeout, "{waited:?}");
    assert!(matches!(error, ResourceError::LockTimeout { .. }), "{error}");
    let (waited, error) = wait(NOW.0 + 50).await;
    assert!(waited >= Duration::from_millis(50), "{waited:?}");
    assert!(matches!(error, ResourceError::DeadlineExceeded), "{error}");
    // Who gave up holds up nobody.
    store.commit(&branch(1)).await.unwrap();
    assert_eq!(store.lock_counts(), (0, 0));
}

/// A deadline that passes while the branch works is a vote to abort (T14).
#[tokio::test]
async fn nothing_is_prepared_after_its_deadline() {
    let clock = Arc::new(AtomicU64::new(NOW.0));
    let store = redb_support::bound(
        options()
            .clock({
                let clock = clock.clone();
                move || UnixMillis(clock.load(Ordering::Relaxed))
            })
            .open_backend(redb::backends::InMemoryBackend::new)
            .unwrap(),
    )
    .await;
    let context = BranchContext {
        deadline: UnixMillis(NOW.0 + 10),
        ..context(branch(1))
    };
    let mut tx = store.begin(&context).await.unwrap();
    tx.put("t", "k", "v").await.unwrap();
    clock.store(NOW.0 + 10, Ordering::Relaxed);
    assert!(matches!(
        store.prepare(&context, tx).await,
        Err(ResourceError::DeadlineExceeded)
    ));
    assert!(matches!(
        store.begin(&context).await,
        Err(ResourceError::DeadlineExceeded)
    ));
    assert_eq!(
        (store.in_doubt().await.unwrap(), store.lock_counts()),
        (vec![], (0, 0))
    );
}

/// A deadlock ends at once, with one victim, and the other goes on.
#[tokio::test]
async fn a_deadlock_ends_in_one_abort_and_not_in_a_hang() {
    let store = store().await;
    let (first, second) = (context(branch(1)), context(branch(2)));
    let mut one = store.begin(&first).await.unwrap();
    let mut two = store.begin(&second).await.unwrap();
    one.put("t", "x", "1").await.unwrap();
    two.put("t", "y", "2").await.unwrap();
    let waiter = tokio::spawn(async move {
        one.put("t", "y", "1").await.unwrap();
        one
    });
    within(until_waiting(&store, 1)).await;
    let started = Instant::now();
    let victim = two.put("t", "x", "2").await.unwrap_err();
    assert!(matches!(victim, ResourceError::Deadlock { .. }), "{victim}");
    // The victim's locks pass on with the error, not with its drop.
    let one = within(waiter).await.unwrap();
    assert!(started.elapsed() < LOCK_TIMEOUT);
    assert_eq!(store.prepare(&first, one).await.unwrap().vote, Vote::Commit);
    store.commit(&first.branch).await.unwrap();
    assert!(store.prepare(&second, two).await.is_err());
    assert_eq!(
        (row(&store, "t", "x"), row(&store, "t", "y")),
        (Some("1".into()), Some("1".into()))
    );
}

/// Traps C15: two branches of one transaction on one row are refused at once, whether the first works or is
/// prepared.
#[tokio::test]
async fn c15_branches_of_one_transaction_do_not_wait_for_each_other() {
    let store = store().await;
    let first = context(branch_of(1, 1));
    let mut one = store.begin(&first).await.unwrap();
    one.put("t", "k", "1").await.unwrap();
    let started = Instant::now();
    for number in 2..=3 {
        let mut two = store.begin(&context(branch_of(1, number))).await.unwrap();
        let refused = two.put("t", "k", "2").await.unwrap_err();
        assert!(
            matches!(&refused, ResourceError::OwnBranch { holder, .. } if *holder == first.branch),
            "{refused}"
        );
        assert_eq!(refused.remedy(), Remedy::Fix);
        if number == 2 {
            // Other rows are no problem.
            let mut three = store.begin(&context(branch_of(1, 9))).await.unwrap();
            three.put("t", "other", "3").await.unwrap();
            store
                .prepare(
                    &first,
                    std::mem::replace(&mut one, store.begin(&context(branch(7))).await.unwrap()),
                )
                .await
                .unwrap();
        }
    }
    assert!(started.elapsed() < LOCK_TIMEOUT);
}

/// Traps C16: a lock is a promise to others, so a branch that only locked votes to commit, and keeps the
/// lock.
#[tokio::test]
async fn c16_a_locking_read_is_not_read_only() {
    let store = store().await;
    let reader = context(branch(1));
    let mut tx = store.begin(&reader).await.unwrap();
    assert_eq!(tx.get_for_update("t", "k").await.unwrap(), None);
    assert_eq!(store.prepare(&reader, tx).await.unwrap().vote, Vote::Commit);
    assert_eq!(store.lock_counts(), (1, 0));
    store.commit(&reader.branch).await.unwrap();
    assert_eq!(
        (store.lock_counts(), store.snapshot().unwrap().tables().unwrap()),
        ((0, 0), vec![])
    );
    let plain = context(branch(2));
    let tx = store.begin(&plain).await.unwrap();
    assert_eq!(store.prepare(&plain, tx).await.unwrap().vote, Vote::ReadOnly);
}

/// Cancelled waiters leave the queue; a cancelled one that was just granted the lock does not lose it, nor its
/// waking (traps A19).
#[tokio::test]
async fn cancelled_waits_leave_no_trace() {
    let store = store().await;
    prepare_put(&store, branch(1), "t", "k", "1").await;
    let mut cancelled = store.begin_local().unwrap();
    {
        let mut wait = Box::pin(cancelled.put("t", "k", "2"));
        assert!(futures::poll!(wait.as_mut()).is_pending());
        assert_eq!(store.lock_counts(), (1, 1));
    }
    assert_eq!(store.lock_counts(), (1, 0));
    {
        let mut wait = Box::pin(cancelled.put("t", "k", "2"));
        assert!(futures::poll!(wait.as_mut()).is_pending());
        store.commit(&branch(1)).await.unwrap();
    }
    // Granted, then cancelled before it noticed: it may ask again, and ends like any other.
    cancelled.put("t", "k", "2").await.unwrap();
    cancelled.commit().await.unwrap();
    assert_eq!(
        (row(&store, "t", "k"), store.lock_counts()),
        (Some("2".into()), (0, 0))
    );
}

/// An abort reaches a branch that waits for a lock.
#[tokio::test]
async fn an_abort_ends_a_wait() {
    let store = store().await;
    prepare_put(&store, branch(1), "t", "k", "1").await;
    let waiter = tokio::spawn({
        let store = store.clone();
        async move {
            store
                .begin(&context(branch(2)))
                .await
                .unwrap()
                .put("t", "k", "2")
                .await
        }
    });
    within(until_waiting(&store, 1)).await;
    assert_eq!(store.abort(&branch(2)).await.unwrap(), Effect::Applied);
    let ended = within(waiter).await.unwrap();
    assert!(
        matches!(ended, Err(ResourceError::Aborted { branch: aborted }) if aborted == branch(2)),
        "{ended:?}"
    );
}

#[tokio::test]
async fn insert_and_delete_tell_what_was_there() {
    let store = store().await;
    let mut tx = store.begin_local().unwrap();
    assert!(tx.insert("t", "k", "1").await.unwrap());
    assert!(!tx.insert("t", "k", "2").await.unwrap());
    assert!(tx.delete("t", "k").await.unwrap());
    assert!(!tx.delete("t", "k").await.unwrap());
    assert!(tx.insert("t", "k", "3").await.unwrap());
    tx.put_u64("numbers", "n", 5).await.unwrap();
    assert_eq!(tx.get_u64("numbers", "n").await.unwrap(), Some(5));
    assert_eq!(tx.get_text("t", "k").await.unwrap(), Some("3".into()));
    assert!(matches!(
        tx.get_u64("t", "k").await,
        Err(ResourceError::Invalid { .. })
    ));
    tx.commit().await.unwrap();
    assert_eq!(row(&store, "t", "k"), Some("3".into()));
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8, u8),
    Delete(u8, u8),
    Lock(u8, u8),
    End(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..2u8, 0..6u8, any::<u8>()).prop_map(|(table, key, value)| Step::Put(table, key, value)),
        2 => (0..2u8, 0..6u8).prop_map(|(table, key)| Step::Delete(table, key)),
        1 => (0..2u8, 0..6u8).prop_map(|(table, key)| Step::Lock(table, key)),
        1 => any::<bool>().prop_map(Step::End),
    ];
    proptest::collection::vec(step, 0..40)
}

type Model = BTreeMap<(u8, Vec<u8>), Bytes>;

/// Keys that share prefixes, with the byte 0xff at a prefix's end.
fn key(number: u8) -> Vec<u8> {
    [&b"a"[..], b"a\xff", b"a\xff\xff", b"ab", b"b", b"\xff"][usize::from(number)].to_vec()
}

async fn run_against_model(steps: Vec<Step>) {
    let store = store().await;
    let tables = ["one", "two"];
    let mut committed = Model::new();
    let mut model = committed.clone();
    let mut tx = store.begin_local().unwrap();
    for step in steps {
        match step {
            Step::Put(table, number, value) => {
                tx.put(tables[usize::from(table)], key(number), [value])
                    .await
                    .unwrap();
                model.insert((table, key(number)), Bytes::copy_from_slice(&[value]));
            }
            Step::Delete(table, number) => {
                let existed = tx.delete(tables[usize::from(table)], key(number)).await.unwrap();
                assert_eq!(existed, model.remove(&(table, key(number))).is_some());
            }
            Step::Lock(table, number) => {
                let value = tx
                    .get_for_update(tables[usize::from(table)], key(number))
                    .await
                    .unwrap();
                assert_eq!(value.as_ref(), model.get(&(table, key(number))));
            }
            Step::End(is_committed) => {
                let ended = std::mem::replace(&mut tx, store.begin_local().unwrap());
                if is_committed {
                    ended.commit().await.unwrap();
                    committed = model.clone();
                } else {
                    drop(ended);
                    model = committed.clone();
                }
                // The new one was begun before that commit, but reads as of its first read.
            }
        }
        for (number, table) in (0..).zip(tables) {
            for prefix in [&b""[..], b"a", b"a\xff", b"\xff", b"c"] {
                let expected: Vec<_> = model
                    .iter()
                    .filter(|((of, key), _)| *of == number && key.starts_with(prefix))
                    .map(|((_, key), value)| (Bytes::from(key.clone()), value.clone()))
                    .collect();
                assert_eq!(tx.scan(table, prefix).await.unwrap(), expected);
                let mut paged = Vec::new();
                loop {
                    let after: Option<Bytes> = paged.last().map(|(key, _): &(Bytes, Bytes)| key.clone());
                    let page = tx.scan_page(table, prefix, after.as_deref(), 2).await.unwrap();
                    if page.is_empty() {
                        break;
                    }
                    paged.extend(page);
                }
                assert_eq!(paged, expected);
            }
            for number_of_key in 0..6 {
                let value = tx.get(table, key(number_of_key)).await.unwrap();
                assert_eq!(value.as_ref(), model.get(&(number, key(number_of_key))));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Reads, scans and pages show the committed rows merged with the transaction's own, as a map would.
    #[test]
    fn a_transaction_reads_its_own_writes_merged_with_committed_rows(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(within(run_against_model(steps)));
    }
}
