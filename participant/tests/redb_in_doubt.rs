//! Branches that stay in doubt in a store with a single writer, and outcomes that race with their work.

mod redb_support;

use redb_support::{branch, context, load, prepare_put, row, store, within};
use synod::resource::{BranchState, Effect, ResourceError, ResourceManager, Vote};

/// Traps F1: redb has one writer, so neither a working branch nor one in doubt may occupy it. With both there for as long as it
/// takes, everybody else works, prepares, commits, aborts and reads; only their own rows wait for them.
#[tokio::test]
async fn f1_a_branch_in_doubt_holds_up_nothing_but_its_own_rows() {
    within(async {
        let store = store().await;
        let working = context(branch(2));
        prepare_put(&store, branch(1), "t", "in doubt", "1").await;
        let mut tx = store.begin(&working).await.unwrap();
        tx.put("t", "at work", "2").await.unwrap();

        for number in 3..=40 {
            prepare_put(&store, branch(number), "t", &number.to_string(), "x").await;
            let ended = match number % 2 {
                0 => store.commit(&branch(number)).await,
                _ => store.abort(&branch(number)).await,
            };
            assert_eq!(ended.unwrap(), Effect::Applied);
            load(&store, "local", &number.to_string(), "y").await;
        }
        let snapshot = store.snapshot().unwrap();
        assert_eq!(snapshot.scan("t", "").unwrap().len(), 19, "those that committed");
        assert_eq!(snapshot.scan("local", "").unwrap().len(), 38);

        let states = [
            store.status(&branch(1)).await.unwrap(),
            store.status(&branch(2)).await.unwrap(),
        ];
        assert_eq!(states, [BranchState::Prepared, BranchState::Working]);
        assert_eq!(store.lock_counts(), (2, 0), "their own rows, and nobody waits");
        assert_eq!(store.prepare(&working, tx).await.unwrap().vote, Vote::Commit);
        for number in [1, 2] {
            assert_eq!(store.commit(&branch(number)).await.unwrap(), Effect::Applied);
        }
        assert_eq!(
            (row(&store, "t", "in doubt"), row(&store, "t", "at work")),
            (Some("1".into()), Some("2".into()))
        );
    })
    .await;
}

/// Traps C6: the marker is put there by whoever comes first, in one step, and nobody looks for it beforehand. However aborts and
/// a prepare of one branch meet, all end, without a deadlock, and in the same state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c6_aborts_that_race_with_a_prepare_all_end_alike() {
    within(async {
        let store = store().await;
        let mut prepared_count = 0;
        for number in 1..=100 {
            let context = context(branch(number));
            let mut tx = store.begin(&context).await.unwrap();
            tx.put("t", "k", number.to_string()).await.unwrap();
            let aborts: Vec<_> = (0..3)
                .map(|_| {
                    let store = store.clone();
                    tokio::spawn(async move { store.abort(&branch(number)).await.unwrap() })
                })
                .collect();
            match store.prepare(&context, tx).await {
                Ok(prepared) => {
                    assert_eq!(prepared.vote, Vote::Commit);
                    prepared_count += 1;
                }
                Err(ResourceError::Aborted { branch: aborted }) => assert_eq!(aborted, branch(number)),
                Err(other) => panic!("{other}"),
            }
            let mut applied_count = 0;
            for abort in aborts {
                match abort.await.unwrap() {
                    Effect::Applied => applied_count += 1,
                    Effect::AlreadyApplied => {}
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(applied_count, 1, "one of them made the marker");
            assert_eq!(store.status(&branch(number)).await.unwrap(), BranchState::Aborted);
        }
        println!("{prepared_count} of 100 were prepared before they were aborted");
        assert_eq!((row(&store, "t", "k"), store.lock_counts()), (None, (0, 0)));
        assert_eq!(store.in_doubt().await.unwrap(), []);
    })
    .await;
}
