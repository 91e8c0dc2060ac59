//! A key that waits for an operator, and all the others: what is kept meanwhile, at both ends, and what is not.

mod outbox_support;
mod redb_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outbox_support::{
    Serving, TOPIC, append, consumer, effects, eventually, memory, open, publish, run, serve, within,
};
use redb_support::{formatted, lose_power_if_failed};
use synod::Position;
use synod::inbox::Inbox;
use synod::outbox::{Consumer, ConsumerStatus, Message, Outbox};
use synod::resource::redb::{MemoryDisk as Disk, RedbResource};

/// Refuses the body `poison` until it is mended.
fn poisoned(store: &RedbResource, is_mended: &Arc<AtomicBool>) -> Inbox {
    let is_mended = is_mended.clone();
    Inbox::builder(store)
        .handle(TOPIC, move |delivery, mut tx| {
            let is_mended = is_mended.clone();
            async move {
                if delivery.body == "poison" && !is_mended.load(Ordering::SeqCst) {
                    return Err("poisoned".into());
                }
                append(&mut tx, &delivery.key, &delivery.body).await
            }
        })
        .build()
}

fn impatient(server: &Serving) -> Consumer {
    consumer("billing", server.url()).attempt_count_max(1)
}

async fn status(outbox: &Outbox) -> ConsumerStatus {
    outbox.status().await.expect("readable").consumers.remove(0)
}

fn row_count(store: &RedbResource, table: &str) -> usize {
    store
        .snapshot()
        .and_then(|snapshot| snapshot.scan(table, ""))
        .expect("readable")
        .len()
}

/// Publishes many messages of one key in one local transaction.
async fn publish_many(
    outbox: &Outbox,
    store: &RedbResource,
    key: &str,
    bodies: impl Iterator<Item = String>,
) {
    let mut tx = store.begin_local().expect("open");
    for body in bodies {
        outbox
            .publish(&mut tx, Message::new(TOPIC, key, body))
            .await
            .expect("published");
    }
    tx.commit().await.expect("commits");
}

/// H8, H9, H16, T13: a dead letter holds its key, and nothing else: what the others' messages leave is gone from both ends while
/// it lies there. What waits behind it is kept, over a restart too, and comes in its order when the operator has decided.
#[tokio::test]
async fn a_held_key_keeps_its_own_messages_and_no_others() {
    for is_requeued in [true, false] {
        within(async {
            let (orders, billing) = (memory(), memory());
            let is_mended = Arc::new(AtomicBool::new(false));
            let server = serve(&poisoned(&billing, &is_mended)).await;
            let outbox = open(&orders, [impatient(&server)]).await;
            let relay = run(outbox.relay());
            publish(&outbox, &orders, "held", "1").await;
            let poison = publish(&outbox, &orders, "held", "poison").await;
            eventually("the letter", async || status(&outbox).await.dead_count == 1).await;
            // More than a key keeps in memory, so that both ways of taking them up again are gone.
            for number in 0..12 {
                publish(&outbox, &orders, "held", &number.to_string()).await;
                publish_many(&outbox, &orders, "free", (0..100).map(|n| n.to_string())).await;
            }
            eventually("nothing of the other key is left at either end", async || {
                let seen = outbox.status().await.expect("readable");
                seen.stored_count == 13
                    && seen.consumers[0].mark == seen.next_position
                    && row_count(&orders, "synod:outbox_done") == 0
                    && row_count(&billing, "synod:inbox") == 0
            })
            .await;
            assert_eq!(status(&outbox).await.unsettled_count, 13);
            let listed = outbox.list(None, Position(0), 100).await.expect("readable");
            assert!(listed.iter().all(|entry| entry.key == "held"));

            relay.kill().await;
            drop(outbox);
            let outbox = open(&orders, [impatient(&server)]).await;
            let relay = run(outbox.relay());
            publish(&outbox, &orders, "free", "last").await;
            eventually("the others go on", async || {
                effects(&billing, "free").ends_with("last")
            })
            .await;
            assert_eq!(effects(&billing, "held"), "1");
            is_mended.store(true, Ordering::SeqCst);
            let waiting = (0..12).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
            let expected = if is_requeued {
                outbox.requeue(poison, None, "ops", "mended").await.expect("dead");
                format!("1 poison {waiting}")
            } else {
                outbox
                    .discard(poison, None, "ops", "not needed")
                    .await
                    .expect("dead");
                format!("1 {waiting}")
            };
            // In the middle of it the relay is started again: what is behind it is below the mark, and not behind a letter any more.
            eventually("the first ones", async || effects(&billing, "held").len() > 4).await;
            relay.kill().await;
            drop(outbox);
            let outbox = open(&orders, [impatient(&server)]).await;
            let _relay = run(outbox.relay());
            eventually("all, in order", async || effects(&billing, "held") == expected).await;
            eventually("nothing is left", async || {
                let seen = outbox.status().await.expect("readable");
                (seen.stored_count, seen.consumers[0].unsettled_count) == (0, 0)
                    && row_count(&orders, "synod:outbox_letter") == 0
                    && row_count(&orders, "synod:outbox_sequence") == 0
            })
            .await;
        })
        .await;
    }
}

/// A20, H16: the list of what the mark has passed is bounded. Above it the mark waits, delivered messages are kept, too; when the
/// operator has decided, it goes on.
#[tokio::test]
async fn the_mark_passes_a_bounded_number_of_messages() {
    const UNSETTLED_COUNT_MAX: u64 = 4096;
    within(async {
        let (orders, billing) = (memory(), memory());
        let is_mended = Arc::new(AtomicBool::new(false));
        let server = serve(&poisoned(&billing, &is_mended)).await;
        let outbox = open(&orders, [impatient(&server)]).await;
        let _relay = run(outbox.relay());
        let poison = publish(&outbox, &orders, "held", "poison").await;
        eventually("the letter", async || status(&outbox).await.dead_count == 1).await;
        let count = usize::try_from(UNSETTLED_COUNT_MAX).expect("small");
        publish_many(&outbox, &orders, "held", (0..count).map(|_| "x".to_owned())).await;
        publish(&outbox, &orders, "free", "1").await;
        eventually("the other key goes on", async || effects(&billing, "free") == "1").await;
        eventually("the list is full", async || {
            status(&outbox).await.unsettled_count == UNSETTLED_COUNT_MAX
        })
        .await;
        let seen = outbox.status().await.expect("readable");
        assert!(seen.consumers[0].mark < seen.next_position, "{seen:?}");
        assert_eq!(seen.stored_count, UNSETTLED_COUNT_MAX + 2);

        outbox
            .discard(poison, None, "ops", "not needed")
            .await
            .expect("dead");
        eventually("the key goes on, and the mark with it", async || {
            let seen = outbox.status().await.expect("readable");
            let consumer = &seen.consumers[0];
            consumer.mark == seen.next_position
                && consumer.unsettled_count < UNSETTLED_COUNT_MAX - 100
                && seen.stored_count == consumer.unsettled_count
        })
        .await;
        assert!(effects(&billing, "held").split(' ').count() > 100);
        assert_eq!(effects(&billing, "free"), "1");
    })
    .await;
}

fn open_store(disk: &Disk) -> RedbResource {
    let disk = disk.clone();
    redb_support::options()
        .lock_timeout(Duration::from_millis(50))
        .open_backend(move || disk.backend())
        .expect("opens")
}

/// H8, H9, F2: at every operation of the sender's disk, from the first delivery until the mark has passed a dead letter and what
/// waits behind it: after everybody was started again and the letter was requeued, each message has taken effect once and in order.
#[tokio::test]
async fn power_loss_at_every_operation_of_the_sender_while_a_key_is_held() {
    at_every_operation(false).await;
}

/// The same at every operation of the consumer's disk.
#[tokio::test]
async fn power_loss_at_every_operation_of_the_consumer_while_a_key_is_held() {
    at_every_operation(true).await;
}

async fn at_every_operation(is_consumer: bool) {
    let mut operation = 1;
    while tokio::time::timeout(Duration::from_secs(30), held(is_consumer, operation))
        .await
        .unwrap_or_else(|_| panic!("operation {operation}: hangs"))
    {
        operation += 1;
    }
    assert!(
        operation > 10,
        "the script is shorter than it should be: {operation}"
    );
}

/// Whether the disk got as far as the operation.
async fn held(is_consumer: bool, operation: u64) -> bool {
    let disks = [formatted(), formatted()];
    let disk = &disks[usize::from(is_consumer)];
    let is_mended = Arc::new(AtomicBool::new(false));
    {
        let (orders, billing) = (open_store(&disks[0]), open_store(&disks[1]));
        let server = serve(&poisoned(&billing, &is_mended)).await;
        let outbox = open(&orders, [impatient(&server)]).await;
        for (key, body) in [
            ("a", "1"),
            ("a", "poison"),
            ("b", "2"),
            ("a", "3"),
            ("b", "4"),
            ("a", "5"),
        ] {
            publish(&outbox, &orders, key, body).await;
        }
        disk.fail_from(disk.operation_count() + operation);
        let relay = run(outbox.relay());
        let is_done = async || {
            let inbox = billing
                .snapshot()
                .and_then(|snapshot| snapshot.scan("synod:inbox", ""));
            let seen = outbox.status().await;
            inbox.is_ok_and(|rows| rows.is_empty())
                && seen.is_ok_and(|seen| seen.stored_count == 3 && seen.consumers[0].unsettled_count == 3)
        };
        while !disk.has_failed() && !is_done().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        relay.kill().await;
        server.kill();
        for store in [orders, billing] {
            let _ = store.close().await;
        }
    }
    let has_failed = lose_power_if_failed(disk, operation);
    let (orders, billing) = (open_store(&disks[0]), open_store(&disks[1]));
    let server = serve(&poisoned(&billing, &is_mended)).await;
    let outbox = open(&orders, [impatient(&server)]).await;
    let _relay = run(outbox.relay());
    eventually("b is through, a is held", async || {
        effects(&billing, "b") == "2 4" && status(&outbox).await.dead_count == 1
    })
    .await;
    assert_eq!(effects(&billing, "a"), "1");
    is_mended.store(true, Ordering::SeqCst);
    let letters = outbox
        .dead_letters(None, Position(0), 10)
        .await
        .expect("readable");
    let requeued = outbox.requeue(letters[0].entry.id, None, "ops", "mended").await;
    requeued.expect("dead");
    eventually("nothing is left", async || {
        effects(&billing, "a") == "1 poison 3 5"
            && outbox.status().await.is_ok_and(|seen| seen.stored_count == 0)
    })
    .await;
    has_failed
}
