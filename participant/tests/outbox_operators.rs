//! What an operator does to many messages at once, and to those that wait for their time.

mod outbox_support;
mod redb_support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use outbox_support::{
    TOPIC, append, appending, consumer, effects, eventually, memory, open, publish, publish_message, run,
    serve, within,
};
use redb_support::{formatted, lose_power_if_failed};
use synod::inbox::Inbox;
use synod::outbox::{Consumer, DeadLetterPolicy, Message, OutboxError, Place};
use synod::resource::redb::{MemoryDisk as Disk, RedbOptions, RedbResource};
use synod::{MessageId, Position, UnixMillis};

const NOWHERE: &str = "http://127.0.0.1:1";

fn row_count(store: &RedbResource, table: &str) -> usize {
    let rows = store.snapshot().and_then(|snapshot| snapshot.scan(table, ""));
    rows.expect("readable").len()
}

/// A20: dead letters are counted, listed page by page and requeued all at once, also more of them than one local transaction takes;
/// those of another topic are left alone.
#[tokio::test]
async fn all_dead_letters_are_requeued_at_once() {
    const COUNT: usize = 600;
    within(async {
        let (orders, billing) = (memory(), memory());
        let is_mended = Arc::new(AtomicBool::new(false));
        let mended = is_mended.clone();
        let handler = move |delivery: synod::inbox::Delivery, mut tx: synod::inbox::InboxTransaction| {
            let is_mended = mended.load(Ordering::SeqCst);
            async move {
                if !is_mended {
                    return Err("not yet".into());
                }
                append(&mut tx, &delivery.key, &delivery.body).await
            }
        };
        let inbox = Inbox::builder(&billing)
            .handle(TOPIC, handler.clone())
            .handle("another", handler);
        let server = serve(&inbox.build()).await;
        let takes = consumer("billing", server.url()).topic("another");
        let takes = takes.attempt_count_max(1).on_dead_letter(DeadLetterPolicy::Skip);
        let outbox = open(&orders, [takes]).await;
        let _relay = run(outbox.relay());
        let mut tx = orders.begin_local().expect("open");
        for number in 0..COUNT {
            let message = Message::new(TOPIC, format!("key {number}"), "x");
            outbox.publish(&mut tx, message).await.expect("published");
        }
        tx.commit().await.expect("commits");
        let other = publish_message(&outbox, &orders, Message::new("another", "b", "y")).await;
        let dead_count = async || outbox.status().await.expect("readable").consumers[0].dead_count;
        eventually("all are dead", async || dead_count().await == COUNT as u64 + 1).await;
        assert_eq!(row_count(&orders, "synod:outbox_letter_id"), COUNT + 1);

        let mut listed = BTreeSet::new();
        let mut after = Position(0);
        loop {
            let page = outbox.dead_letters(None, after, 100).await.expect("readable");
            let Some(last) = page.last() else { break };
            assert!(page.len() <= 100);
            after = last.entry.position;
            for letter in page {
                assert!(listed.insert(letter.entry.id), "twice");
            }
        }
        assert_eq!(listed.len(), COUNT + 1);

        let unknown = outbox.requeue_all("nobody", None, "ops", "mended").await;
        assert!(
            matches!(unknown, Err(OutboxError::UnknownConsumer { .. })),
            "{unknown:?}"
        );
        let nameless = outbox.requeue_all("billing", None, "", "mended").await;
        assert!(
            matches!(nameless, Err(OutboxError::Invalid { .. })),
            "{nameless:?}"
        );
        is_mended.store(true, Ordering::SeqCst);
        let requeued = outbox.requeue_all("billing", Some(TOPIC), "ops", "mended").await;
        assert_eq!(requeued.expect("works"), COUNT as u64);
        eventually("all of the topic", async || {
            row_count(&billing, "effects") == COUNT
        })
        .await;
        assert_eq!((dead_count().await, effects(&billing, "b")), (1, String::new()));
        assert_eq!(
            outbox.records(10).await.expect("readable").len(),
            2,
            "one for each part"
        );
        let requeued = outbox.requeue_all("billing", None, "ops", "mended").await;
        assert_eq!(requeued.expect("works"), 1);
        eventually("nothing is left", async || {
            let seen = outbox.status().await.expect("readable");
            seen.stored_count == 0 && effects(&billing, "b") == "y"
        })
        .await;
        assert_eq!(row_count(&orders, "synod:outbox_letter_id"), 0);
        let gone = outbox.requeue(other, None, "ops", "again").await;
        assert!(matches!(gone, Err(OutboxError::NotDead { .. })), "{gone:?}");
    })
    .await;
}

/// An operator who hangs up at any moment leaves the relay with what the store says: what was requeued is sent.
#[tokio::test]
async fn an_operator_who_hangs_up_stops_nothing_half_way() {
    for is_all in [false, true] {
        let mut poll_count = 1;
        while within(hanging_up(is_all, poll_count)).await {
            poll_count += 1;
        }
        assert!(poll_count > 1, "the call has ended at once");
    }
}

/// Whether the call was still under way after so many looks at it.
async fn hanging_up(is_all: bool, poll_count: usize) -> bool {
    let (orders, billing) = (memory(), memory());
    let is_mended = Arc::new(AtomicBool::new(false));
    let mended = is_mended.clone();
    let inbox = Inbox::builder(&billing).handle(TOPIC, move |delivery, mut tx| {
        let is_mended = mended.load(Ordering::SeqCst);
        async move {
            if !is_mended {
                return Err("not yet".into());
            }
            append(&mut tx, &delivery.key, &delivery.body).await
        }
    });
    let server = serve(&inbox.build()).await;
    let outbox = open(&orders, [consumer("billing", server.url()).attempt_count_max(1)]).await;
    let _relay = run(outbox.relay());
    let id = publish(&outbox, &orders, "a", "1").await;
    let dead_count = async || outbox.status().await.expect("readable").consumers[0].dead_count;
    eventually("it is dead", async || dead_count().await == 1).await;
    is_mended.store(true, Ordering::SeqCst);
    let mut is_under_way = true;
    {
        let mut call = Box::pin(async {
            if is_all {
                let requeued = outbox.requeue_all("billing", None, "ops", "mended").await;
                requeued.expect("works");
            } else {
                let requeued = outbox.requeue(id, None, "ops", "mended").await;
                requeued.expect("works");
            }
        });
        for _ in 0..poll_count {
            is_under_way = futures::poll!(&mut call).is_pending();
            if !is_under_way {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    // What was asked of the store before this has come about.
    publish(&outbox, &orders, "b", "1").await;
    if dead_count().await == 0 {
        eventually("it is sent", async || effects(&billing, "a") == "1").await;
    }
    is_under_way
}

fn clocked(clock: &Arc<AtomicU64>) -> RedbOptions {
    let clock = clock.clone();
    RedbOptions::default().clock(move || UnixMillis(clock.load(Ordering::SeqCst)))
}

fn scheduled(key: &str, body: &'static str, at: u64) -> Message {
    Message::new(TOPIC, key, body).deliver_at(UnixMillis(at))
}

/// H14: messages that wait for their time are listed in its order, and each can be taken back, once, until it has gone out.
#[tokio::test]
async fn h14_scheduled_messages_are_listed_and_cancelled() {
    within(async {
        let clock = Arc::new(AtomicU64::new(1_000));
        let orders = clocked(&clock)
            .open_backend(redb::backends::InMemoryBackend::new)
            .expect("opens");
        let billing = memory();
        let server = serve(&appending(&billing)).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let _relay = run(outbox.relay());
        let late = publish_message(&outbox, &orders, scheduled("a", "late", 3_000)).await;
        let early = publish_message(&outbox, &orders, scheduled("a", "early", 2_000)).await;
        let never = publish_message(&outbox, &orders, scheduled("b", "never", 2_500)).await;
        let all = outbox.scheduled(None, 10).await.expect("readable");
        let shown: Vec<_> = all
            .iter()
            .map(|entry| (entry.id, entry.deliver_at.0, entry.body_bytes))
            .collect();
        assert_eq!(shown, [(early, 2_000, 5), (never, 2_500, 5), (late, 3_000, 4)]);
        let after = Some((all[0].deliver_at, all[0].id));
        let page = outbox.scheduled(after, 1).await.expect("readable");
        assert_eq!(page, all[1..2]);

        let cancel = async |at: u64| {
            outbox
                .cancel(
                    never,
                    Place::Scheduled(UnixMillis(at)),
                    None,
                    "ops",
                    "sent by mistake",
                )
                .await
        };
        assert!(matches!(
            cancel(2_501).await,
            Err(OutboxError::NotScheduled { .. })
        ));
        cancel(2_500).await.expect("waits");
        assert!(matches!(
            cancel(2_500).await,
            Err(OutboxError::NotScheduled { .. })
        ));
        assert!(outbox.records(1).await.expect("readable")[0].contains("ops cancelled message"));
        clock.store(60_000, Ordering::SeqCst);
        eventually("the others", async || effects(&billing, "a") == "early late").await;
        eventually("nothing is left", async || {
            let seen = outbox.status().await.expect("readable");
            (seen.stored_count, seen.scheduled_count) == (0, 0)
        })
        .await;
        assert_eq!(effects(&billing, "b"), "");
        assert_eq!(row_count(&orders, "synod:outbox_sequence"), 0);
    })
    .await;
}

/// H14: more messages come due at once than one local transaction releases.
#[tokio::test]
async fn h14_many_messages_come_due_at_once() {
    const COUNT: u64 = 5_000;
    within(async {
        let clock = Arc::new(AtomicU64::new(1_000));
        let orders = clocked(&clock)
            .open_backend(redb::backends::InMemoryBackend::new)
            .expect("opens");
        let outbox = open(&orders, [consumer("billing", NOWHERE.to_owned())]).await;
        let mut tx = orders.begin_local().expect("open");
        for number in 0..COUNT {
            let message = scheduled(&(number % 10).to_string(), "x", 2_000 + number % 3);
            outbox.publish(&mut tx, message).await.expect("published");
        }
        tx.commit().await.expect("commits");
        clock.store(60_000, Ordering::SeqCst);
        eventually("all have their places", async || {
            let seen = outbox.status().await.expect("readable");
            (seen.stored_count, seen.scheduled_count) == (COUNT, 0)
        })
        .await;
    })
    .await;
}

/// H14: a clock that is set back delays what is scheduled, and loses and repeats nothing.
#[tokio::test]
async fn h14_a_clock_that_is_set_back_delays_and_loses_nothing() {
    within(async {
        let clock = Arc::new(AtomicU64::new(100_000));
        let orders = clocked(&clock)
            .open_backend(redb::backends::InMemoryBackend::new)
            .expect("opens");
        let billing = memory();
        let server = serve(&appending(&billing)).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let _relay = run(outbox.relay());
        publish_message(&outbox, &orders, scheduled("a", "first", 101_000)).await;
        clock.store(50_000, Ordering::SeqCst);
        let delayed = Message::new(TOPIC, "a", "second").delay(Duration::from_secs(10));
        publish_message(&outbox, &orders, delayed).await;
        publish(&outbox, &orders, "b", "now").await;
        eventually("what has no time", async || effects(&billing, "b") == "now").await;
        clock.store(70_000, Ordering::SeqCst);
        eventually("what the clock of its publishing says", async || {
            effects(&billing, "a") == "second"
        })
        .await;
        clock.store(200_000, Ordering::SeqCst);
        eventually("all", async || effects(&billing, "a") == "second first").await;
        clock.store(50_000, Ordering::SeqCst);
        publish(&outbox, &orders, "a", "third").await;
        eventually("nothing comes again", async || {
            effects(&billing, "a") == "second first third"
        })
        .await;
    })
    .await;
}

fn open_at(disk: &Disk, now: u64) -> RedbResource {
    let disk = disk.clone();
    clocked(&Arc::new(AtomicU64::new(now)))
        .open_backend(move || disk.backend())
        .expect("opens")
}

/// F2, H14: at every operation of the disk while scheduled messages are released and one is cancelled, each message either waits for
/// its time or has its place; never both, and never neither unless it was cancelled.
#[tokio::test]
async fn power_loss_at_every_operation_while_messages_come_due() {
    let mut operation = 1;
    while tokio::time::timeout(Duration::from_secs(30), coming_due(operation))
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
async fn coming_due(operation: u64) -> bool {
    let disk = formatted();
    let away = || [Consumer::new("billing", NOWHERE).topic(TOPIC)];
    let mut ids: Vec<MessageId> = Vec::new();
    {
        let store = open_at(&disk, 1_000);
        let outbox = open(&store, away()).await;
        for (key, at) in [("a", 2_000), ("b", 2_000), ("a", 3_000), ("late", 1_000_000)] {
            ids.push(publish_message(&outbox, &store, scheduled(key, "x", at)).await);
        }
        drop(outbox);
        store.close().await.expect("closes");
    }
    let mut is_cancelled = None;
    {
        let store = open_at(&disk, 60_000);
        disk.fail_from(disk.operation_count() + operation);
        let builder = synod::outbox::Outbox::builder(&store);
        let [billing] = away();
        if let Ok(outbox) = builder.consumer(billing).open().await {
            let cancelled = outbox
                .cancel(
                    ids[3],
                    Place::Scheduled(UnixMillis(1_000_000)),
                    None,
                    "ops",
                    "no need",
                )
                .await;
            is_cancelled = cancelled.is_ok().then_some(());
            let is_done = async || outbox.status().await.is_ok_and(|seen| seen.scheduled_count == 0);
            while !disk.has_failed() && !is_done().await {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let _ = store.close().await;
    }
    let has_failed = lose_power_if_failed(&disk, operation);
    // By this clock nothing is due, so that what is seen is what the crash left.
    let store = open_at(&disk, 1_000);
    let outbox = open(&store, away()).await;
    let waiting = outbox.scheduled(None, 10).await.expect("readable");
    let placed = outbox.list(None, Position(0), 10).await.expect("readable");
    let mut seen: Vec<_> = waiting.iter().map(|entry| entry.id).collect();
    seen.extend(placed.iter().map(|entry| entry.id));
    let context = format!("operation {operation}: {waiting:?}, {placed:?}");
    for id in &ids[..3] {
        assert_eq!(seen.iter().filter(|seen| *seen == id).count(), 1, "{context}");
    }
    if is_cancelled.is_some() {
        assert!(!seen.contains(&ids[3]), "{context}");
    }
    assert_eq!(row_count(&store, "synod:outbox_key"), placed.len(), "{context}");
    has_failed
}
