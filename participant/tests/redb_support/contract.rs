//! The contract of `ResourceManager` as a test, for any store: one test per group of MUSTs.

use std::future::Future;

use synod::resource::{
    BranchState, Effect, InDoubtBranch, LowWater, Remedy, ResourceError, ResourceManager, Vote,
};
use synod::{Lineage, UnixMillis};

use super::{LINEAGE, NOW, branch, branch_of, context, is_unknown};

/// A kind of store under test.
pub trait Subject {
    type Store: ResourceManager + Clone;

    /// Opens the one database of this subject; the last handle of an earlier opening is gone.
    fn open(&self) -> impl Future<Output = Self::Store>;

    /// Writes a row in a local transaction.
    fn put(
        tx: &mut <Self::Store as ResourceManager>::Transaction,
        key: &str,
        value: &str,
    ) -> impl Future<Output = ()>;

    /// The committed value.
    fn committed(store: &Self::Store, key: &str) -> impl Future<Output = Option<String>>;
}

/// Contracts 4, 6, 8, 9 and 12, with a restart between every two steps (traps C5, C9, F5).
pub async fn a_branch_survives_and_finishes_once<S: Subject>(subject: &S) {
    for (number, is_committed) in [(1, true), (2, false)] {
        let (branch, context) = (branch(number), context(branch(number)));
        let store = subject.open().await;
        store.identity(Some(LINEAGE)).await.unwrap();
        let mut tx = store.begin(&context).await.unwrap();
        S::put(&mut tx, "row", &number.to_string()).await;
        assert_eq!(store.status(&branch).await.unwrap(), BranchState::Working);
        assert_eq!(store.prepare(&context, tx).await.unwrap().vote, Vote::Commit);
        assert_ne!(
            S::committed(&store, "row").await,
            Some(number.to_string()),
            "contract 1: not before the commit"
        );
        drop(store);

        let store = subject.open().await;
        assert_eq!(store.status(&branch).await.unwrap(), BranchState::Prepared);
        let in_doubt = store.in_doubt().await.unwrap();
        assert_eq!(
            in_doubt,
            [InDoubtBranch {
                context: context.clone(),
                prepared_at: in_doubt[0].prepared_at
            }]
        );
        if is_committed {
            assert_eq!(store.commit(&branch).await.unwrap(), Effect::Applied);
        } else {
            assert_eq!(store.abort(&branch).await.unwrap(), Effect::Applied);
        }
        drop(store);

        for _ in 0..2 {
            let store = subject.open().await;
            let (commit, abort) = (
                store.commit(&branch).await.unwrap(),
                store.abort(&branch).await.unwrap(),
            );
            let (same, contrary) = if is_committed {
                (commit, abort)
            } else {
                (abort, commit)
            };
            assert_eq!(same, Effect::AlreadyApplied);
            assert!(is_unknown(&contrary), "{contrary:?}");
            let state = if is_committed {
                BranchState::Committed
            } else {
                BranchState::Aborted
            };
            assert_eq!(store.status(&branch).await.unwrap(), state);
            assert_eq!(store.in_doubt().await.unwrap(), []);
            assert_eq!(
                S::committed(&store, "row").await,
                Some("1".into()),
                "the aborted write must not show"
            );
        }
    }
}

/// Contracts 1 and 4: what was not prepared leaves nothing, and holds up nobody.
pub async fn unprepared_work_leaves_nothing<S: Subject>(subject: &S) {
    let store = subject.open().await;
    store.identity(Some(LINEAGE)).await.unwrap();
    let mut tx = store.begin(&context(branch(1))).await.unwrap();
    S::put(&mut tx, "row", "dropped").await;
    drop(tx);
    // Would wait for ever if the dropped one still held a lock.
    let mut tx = store.begin(&context(branch(2))).await.unwrap();
    S::put(&mut tx, "row", "lost with the process").await;
    drop((tx, store));
    let store = subject.open().await;
    assert_eq!(store.in_doubt().await.unwrap(), []);
    assert_eq!(store.status(&branch(2)).await.unwrap(), BranchState::Unknown);
    assert!(
        is_unknown(&store.commit(&branch(2)).await.unwrap()),
        "traps C5: no row is no proof"
    );
    assert_eq!(S::committed(&store, "row").await, None);
}

/// Contract 4: the lock of a prepared branch is held again after a restart, and passes on after its outcome.
pub async fn locks_of_prepared_branches_survive<S: Subject>(subject: &S) {
    let store = subject.open().await;
    store.identity(Some(LINEAGE)).await.unwrap();
    let first = context(branch(1));
    let mut tx = store.begin(&first).await.unwrap();
    S::put(&mut tx, "row", "first").await;
    store.prepare(&first, tx).await.unwrap();
    drop(store);

    let store = subject.open().await;
    let second = tokio::spawn({
        let store = store.clone();
        async move { store.begin(&context(branch(2))).await.unwrap() }
    });
    let writes = async {
        let mut tx = second.await.unwrap();
        S::put(&mut tx, "row", "second").await;
        let answer = store.prepare(&context(branch(2)), tx).await;
        assert_eq!(answer.unwrap().vote, Vote::Commit);
        assert_eq!(
            S::committed(&store, "row").await,
            Some("first".into()),
            "the second did not wait for the first"
        );
    };
    let commits = async {
        tokio::task::yield_now().await;
        assert_eq!(store.commit(&branch(1)).await.unwrap(), Effect::Applied);
    };
    tokio::join!(writes, commits);
    assert_eq!(store.commit(&branch(2)).await.unwrap(), Effect::Applied);
    assert_eq!(S::committed(&store, "row").await, Some("second".into()));
}

/// Contract 7 (traps C3): an abort that overtakes its work, or its prepare, wins.
pub async fn late_work_is_refused<S: Subject>(subject: &S) {
    let store = subject.open().await;
    store.identity(Some(LINEAGE)).await.unwrap();
    let working = context(branch(1));
    let mut tx = store.begin(&working).await.unwrap();
    S::put(&mut tx, "row", "late").await;
    assert_eq!(store.abort(&branch(1)).await.unwrap(), Effect::Applied);
    let refused = store.prepare(&working, tx).await.unwrap_err();
    assert_eq!(refused.remedy(), Remedy::NewTransaction, "{refused}");
    assert_eq!(store.abort(&branch(1)).await.unwrap(), Effect::AlreadyApplied);
    // An empty abort: nothing was here yet.
    assert_eq!(store.abort(&branch(2)).await.unwrap(), Effect::Applied);
    let late = match store.begin(&context(branch(2))).await {
        Err(error) => error,
        Ok(mut tx) => {
            S::put(&mut tx, "row", "late").await;
            store.prepare(&context(branch(2)), tx).await.unwrap_err()
        }
    };
    assert!(
        matches!(late, ResourceError::Aborted { branch: aborted } if aborted == branch(2)),
        "{late}"
    );
    assert_eq!(
        (store.in_doubt().await.unwrap(), S::committed(&store, "row").await),
        (vec![], None)
    );
}

/// Contracts 2 and 13 (T11): a database belongs to one coordinator for ever.
pub async fn a_foreign_lineage_is_refused<S: Subject>(subject: &S) {
    let store = subject.open().await;
    let unbound = store.identity(None).await.unwrap();
    assert_eq!(unbound.lineage, None);
    assert!(
        store.begin(&context(branch(1))).await.is_err(),
        "nobody could finish a branch of an unbound database"
    );
    let bound = store.identity(Some(LINEAGE)).await.unwrap();
    assert_eq!((bound.resource, bound.lineage), (unbound.resource, Some(LINEAGE)));
    drop(store);
    let store = subject.open().await;
    assert_eq!(store.identity(None).await.unwrap(), bound);
    let foreign = Lineage([8; 16]);
    let is_foreign = |error: ResourceError| {
        let ResourceError::ForeignLineage { expected, found } = error else {
            return false;
        };
        (expected, found) == (foreign, LINEAGE)
    };
    assert!(is_foreign(store.identity(Some(foreign)).await.unwrap_err()));
    let mut of_foreign = context(branch(1));
    of_foreign.lineage = foreign;
    assert!(is_foreign(store.begin(&of_foreign).await.err().unwrap()));
    assert_eq!(store.identity(None).await.unwrap(), bound);
}

/// Contracts 2 and 11 (T13): proof goes only below the mark and only if nobody waits for it; then late work
/// is refused.
pub async fn proof_is_kept_until_forgotten<S: Subject>(subject: &S) {
    let store = subject.open().await;
    store.identity(Some(LINEAGE)).await.unwrap();
    for number in 1..=4 {
        let context = context(branch(number));
        let mut tx = store.begin(&context).await.unwrap();
        S::put(&mut tx, "row", &number.to_string()).await;
        store.prepare(&context, tx).await.unwrap();
        store.commit(&branch(number)).await.unwrap();
    }
    // Work that began before the mark and prepares after it.
    let slow = context(branch_of(2, 9));
    let mut tx = store.begin(&slow).await.unwrap();
    S::put(&mut tx, "other row", "late").await;
    let low_water = LowWater {
        mark: UnixMillis(NOW.0 + 4),
        unfinished: vec![branch(2).gtid],
    };
    assert_eq!(store.forget(&low_water).await.unwrap(), 2);
    assert_eq!(store.forget(&low_water).await.unwrap(), 0);
    let below = |error| matches!(error, ResourceError::BelowLowWater { mark } if mark == low_water.mark);
    assert!(below(store.prepare(&slow, tx).await.unwrap_err()));
    drop(store);
    let store = subject.open().await;
    assert!(below(
        store.begin(&context(branch_of(3, 10))).await.err().unwrap()
    ));
    let mut answers = Vec::new();
    for number in 1..=4 {
        answers.push(store.commit(&branch(number)).await.unwrap() == Effect::AlreadyApplied);
    }
    assert_eq!(answers, [false, true, false, true]);
    // A mark that goes back changes nothing.
    assert_eq!(
        store
            .forget(&LowWater {
                mark: UnixMillis(0),
                unfinished: vec![]
            })
            .await
            .unwrap(),
        0
    );
    assert!(below(
        store.begin(&context(branch_of(3, 11))).await.err().unwrap()
    ));
    // Once it is acknowledged, the last proof below the mark goes as well.
    assert_eq!(
        store
            .forget(&LowWater {
                unfinished: vec![],
                ..low_water.clone()
            })
            .await
            .unwrap(),
        1
    );
}

/// Contract 10: a commit that comes while the prepare still runs is never answered with "no such branch".
pub async fn a_commit_during_prepare_is_not_unknown<S: Subject>(subject: &S) {
    let store = subject.open().await;
    store.identity(Some(LINEAGE)).await.unwrap();
    for number in 1..=20 {
        let context = context(branch(number));
        let mut tx = store.begin(&context).await.unwrap();
        S::put(&mut tx, "row", &number.to_string()).await;
        let prepare = store.prepare(&context, tx);
        let commit = async {
            loop {
                match store.commit(&branch(number)).await {
                    Ok(Effect::Applied) => break,
                    Err(ResourceError::Busy { .. }) => tokio::task::yield_now().await,
                    other => panic!("{other:?}"),
                }
            }
        };
        let (vote, ()) = tokio::join!(prepare, commit);
        assert_eq!(vote.unwrap().vote, Vote::Commit);
    }
}

/// Contracts 9 and 14 (traps C13): many deliveries at once, some of which nobody waits for, have one effect.
pub async fn dropped_and_repeated_calls_run_to_their_end<S: Subject>(subject: &S) {
    let store = subject.open().await;
    store.identity(Some(LINEAGE)).await.unwrap();
    let context = context(branch(1));
    let mut tx = store.begin(&context).await.unwrap();
    S::put(&mut tx, "row", "once").await;
    store.prepare(&context, tx).await.unwrap();
    {
        // Polled once, then dropped.
        let mut dropped = Box::pin(store.commit(&context.branch));
        let _ = futures::poll!(dropped.as_mut());
    }
    let mut commits = Vec::new();
    for _ in 0..8 {
        let store = store.clone();
        commits.push(tokio::spawn(
            async move { store.commit(&branch(1)).await.unwrap() },
        ));
    }
    let mut applied = 0;
    for commit in commits {
        match commit.await.unwrap() {
            Effect::Applied => applied += 1,
            Effect::AlreadyApplied => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(applied <= 1, "applied {applied} times");
    assert_eq!(S::committed(&store, "row").await, Some("once".into()));
}
