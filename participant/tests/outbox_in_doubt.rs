//! Messages published in branches: visible if the branch commits, and a branch in doubt holds back the keys that it wrote, and no
//! others. And many writers with two relays.

mod outbox_support;
mod redb_support;

use outbox_support::{
    TOPIC, appending, consumer, effects, eventually, memory, open, publish, run, serve, stored, within,
};
use redb_support::{branch, context};
use synod::outbox::{Message, PublishError};
use synod::resource::redb::RedbOptions;
use synod::resource::{Effect, ResourceError, ResourceManager, Vote};

/// H1, H2, H3, H4: what a branch published appears when it commits, behind everything that became visible meanwhile; in between its
/// keys' publishers wait, and all other keys go on. Also over a restart of the process.
#[tokio::test]
async fn h2_a_branch_in_doubt_holds_back_only_the_keys_that_it_wrote() {
    within(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orders.redb");
        let options = || {
            let options = RedbOptions::default();
            options.lock_timeout(std::time::Duration::from_millis(20))
        };
        let billing = memory();
        let server = serve(&appending(&billing)).await;
        let orders = redb_support::bound(options().open(&path).unwrap()).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        let doubtful = context(branch(1));
        let mut tx = orders.begin(&doubtful).await.unwrap();
        for (key, body) in [("a", "2"), ("b", "1")] {
            outbox
                .publish(&mut tx, Message::new(TOPIC, key, body))
                .await
                .unwrap();
        }
        assert_eq!(orders.prepare(&doubtful, tx).await.unwrap().vote, Vote::Commit);
        relay.kill().await;
        drop(outbox);
        orders.close().await.unwrap();
        drop(orders);

        let orders = options().open(&path).unwrap();
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let _relay = run(outbox.relay());
        for number in 1..=10 {
            publish(&outbox, &orders, "c", &number.to_string()).await;
        }
        eventually("other keys go on", async || {
            effects(&billing, "c") == "1 2 3 4 5 6 7 8 9 10"
        })
        .await;
        let mut tx = orders.begin_local().unwrap();
        let refused = outbox
            .publish(&mut tx, Message::new(TOPIC, "a", "too early"))
            .await;
        let Err(PublishError::Resource(ResourceError::LockTimeout { .. })) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(
            (effects(&billing, "a"), effects(&billing, "b")),
            ("1".into(), String::new())
        );
        eventually("the mark does not wait for it", async || {
            stored(&outbox).await == (0, 0, 0)
        })
        .await;

        assert_eq!(orders.commit(&branch(1)).await.unwrap(), Effect::Applied);
        publish(&outbox, &orders, "a", "3").await;
        eventually("its messages come in their order", async || {
            effects(&billing, "a") == "1 2 3" && effects(&billing, "b") == "1"
        })
        .await;
        // F5: a repeated commit publishes nothing again.
        assert_eq!(orders.commit(&branch(1)).await.unwrap(), Effect::AlreadyApplied);
        eventually("nothing is left", async || stored(&outbox).await == (0, 0, 0)).await;
        assert_eq!(effects(&billing, "a"), "1 2 3");
    })
    .await;
}

#[tokio::test]
async fn an_aborted_branch_publishes_nothing_and_frees_its_keys() {
    within(async {
        let (orders, billing) = (redb_support::bound(memory()).await, memory());
        let server = serve(&appending(&billing)).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let _relay = run(outbox.relay());
        let aborted = context(branch(1));
        let mut tx = orders.begin(&aborted).await.unwrap();
        outbox
            .publish(&mut tx, Message::new(TOPIC, "a", "never"))
            .await
            .unwrap();
        orders.prepare(&aborted, tx).await.unwrap();
        assert_eq!(orders.abort(&branch(1)).await.unwrap(), Effect::Applied);
        publish(&outbox, &orders, "a", "1").await;
        eventually("only what was committed", async || effects(&billing, "a") == "1").await;
    })
    .await;
}

/// H5, H10, H13: 32 writers publish to 10 keys while two relays send, one of which is killed and replaced again and again: each
/// message takes effect once, of a key in the order of its sequence numbers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h5_many_writers_and_two_relays_keep_each_keys_order() {
    const WRITER_COUNT: u64 = 32;
    const MESSAGE_COUNT: u64 = 20;
    within(async {
        let (orders, billing) = (memory(), memory());
        let server = serve(&appending(&billing)).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let steady = run(outbox.relay());
        let writers: Vec<_> = (0..WRITER_COUNT)
            .map(|writer| {
                let (outbox, orders) = (outbox.clone(), orders.clone());
                tokio::spawn(async move {
                    for number in 0..MESSAGE_COUNT {
                        let key = format!("k{}", (writer + number) % 10);
                        // The number under the key's lock is the order in which publishers got it.
                        let mut tx = orders.begin_local().unwrap();
                        let at = tx.get_u64_for_update("counts", &key).await.unwrap().unwrap_or(0) + 1;
                        tx.put_u64("counts", &key, at).await.unwrap();
                        outbox
                            .publish(&mut tx, Message::new(TOPIC, &key, at.to_string()))
                            .await
                            .unwrap();
                        tx.commit().await.unwrap();
                    }
                })
            })
            .collect();
        let killer = {
            let outbox = outbox.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    let second = run(outbox.relay());
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    second.kill().await;
                }
            })
        };
        for writer in writers {
            writer.await.unwrap();
        }
        killer.await.unwrap();
        let snapshot = orders.snapshot().unwrap();
        let count = |key: &str| {
            let count = snapshot.get("counts", key).unwrap().unwrap();
            u64::from_be_bytes(count.as_ref().try_into().unwrap())
        };
        let expected: Vec<(String, String)> = (0..10)
            .map(|key| {
                let key = format!("k{key}");
                let numbers: Vec<_> = (1..=count(&key)).map(|number| number.to_string()).collect();
                (key, numbers.join(" "))
            })
            .collect();
        assert_eq!(
            (0..10).map(|key| count(&format!("k{key}"))).sum::<u64>(),
            WRITER_COUNT * MESSAGE_COUNT
        );
        eventually("all effects in order", async || {
            expected
                .iter()
                .all(|(key, numbers)| effects(&billing, key) == *numbers)
        })
        .await;
        eventually("nothing is left", async || stored(&outbox).await == (0, 0, 0)).await;
        drop(steady);
    })
    .await;
}
