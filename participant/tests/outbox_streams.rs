//! A relay and what it meets at the other end of its stream: answers that say that somebody lost data, and ends that are deaf, hasty
//! or not who they should be.

mod outbox_support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use outbox_support::scripted::{Script, Scripted};
use outbox_support::{
    appending, consumer, effects, eventually, memory, open, publish, publish_message, run, serve, serve_at,
    stored, within,
};
use synod::Position;
use synod::outbox::parts::OpenStore;
use synod::outbox::{Consumer, EntryState, Message, Outbox};
use synod::resource::redb::{MemoryDisk, RedbOptions, RedbResource};
use synod_participant_core::Timestamp;
use synod_participant_core::relay::{Failure, RelayOptions, RelaySession, Settlement, TOPIC_SHARE_BYTES_MAX};
use synod_proto::v1::Nothing;
use synod_proto::v1::delivery_answer::Answer;

const NOTHING: Nothing = Nothing {};

async fn trouble(outbox: &Outbox) -> String {
    outbox.status().await.expect("readable").consumers[0]
        .trouble
        .clone()
}

/// T11: an inbox that does not know the message before, which it acknowledged, has lost it: the next ones of its key go no further than
/// a dead letter, which says so, and on from there when an operator has readmitted the database.
#[tokio::test]
async fn t11_a_gap_is_a_dead_letter_until_the_consumer_is_readmitted() {
    within(async {
        let orders = memory();
        let forgetful = Scripted::new(Script::Answer(|delivery| match delivery.previous {
            Some(previous) => Answer::Gap(previous),
            None => Answer::Applied(NOTHING),
        }));
        let server = forgetful.serve().await;
        let outbox = open(&orders, [consumer("billing", server.url()).attempt_count_max(2)]).await;
        let mut tx = orders.begin_local().unwrap();
        let mut ids = Vec::new();
        for body in ["1", "2"] {
            let message = Message::new(outbox_support::TOPIC, "a", body);
            ids.push(outbox.publish(&mut tx, message).await.unwrap());
        }
        tx.commit().await.unwrap();
        let _relay = run(outbox.relay());
        eventually("the second one is dead", async || stored(&outbox).await.2 == 1).await;
        let letters = outbox.dead_letters(None, Position(0), 10).await.unwrap();
        assert_eq!((letters[0].entry.id, letters[0].failed_count), (ids[1], 2));
        assert!(
            letters[0]
                .reason
                .contains("has not applied message 1 of this key"),
            "{}",
            letters[0].reason
        );
        outbox
            .readmit("billing", "ops", "1 was entered by hand")
            .await
            .unwrap();
        outbox.requeue(ids[1], None, "ops", "readmitted").await.unwrap();
        eventually("it goes on", async || stored(&outbox).await == (0, 0, 0)).await;
        let bodies: Vec<_> = forgetful
            .delivered()
            .into_iter()
            .map(|(_, sent)| sent.body)
            .collect();
        assert_eq!(bodies, ["1", "2", "2", "2"]);
    })
    .await;
}

/// An outbox whose first message is stuck, so that its mark stands still; a second one was applied, after the backup was made.
async fn put_back(folder: &Path, billing: &RedbResource) -> (RedbResource, Consumer) {
    let [path, backup] = ["orders.redb", "backup.redb"].map(|name| folder.join(name));
    let server = serve(&appending(billing)).await;
    let stuck = consumer("billing", server.url())
        .topic("no handler")
        .attempt_count_max(2);
    {
        let orders = RedbResource::open(&path).unwrap();
        let outbox = open(&orders, [stuck.clone()]).await;
        publish_message(&outbox, &orders, Message::new("no handler", "z", "")).await;
        drop(outbox);
        orders.close().await.unwrap();
    }
    std::fs::copy(&path, &backup).unwrap();
    let orders = RedbResource::open(&path).unwrap();
    let outbox = open(&orders, [stuck.clone()]).await;
    let relay = run(outbox.relay());
    publish(&outbox, &orders, "a", "1").await;
    eventually("it is applied", async || effects(billing, "a") == "1").await;
    relay.kill().await;
    // Another process of the consumer: it remembers no sendings.
    let address = server.kill();
    std::mem::forget(serve_at(&appending(billing), address).await);
    (RedbResource::open(&backup).unwrap(), stuck)
}

/// T11: an outbox that was put back from a backup while its mark stood still would give places again that its consumer has: it sends
/// nothing, and says why.
#[tokio::test]
async fn t11_an_outbox_put_back_under_the_same_mark_is_noticed() {
    within(async {
        let (folder, billing) = (tempfile::tempdir().unwrap(), memory());
        let (orders, stuck) = put_back(folder.path(), &billing).await;
        let outbox = open(&orders, [stuck]).await;
        let _relay = run(outbox.relay());
        eventually("it says why", async || {
            trouble(&outbox)
                .await
                .contains("`billing` has applied position 2, and the next one to be given here is 2")
        })
        .await;
        publish(&outbox, &orders, "a", "another first").await;
        assert_eq!(effects(&billing, "a"), "1");
    })
    .await;
}

/// T11: and one that had given them again before it met its consumer is told at each of them: none is taken for the one before.
#[tokio::test]
async fn t11_a_place_that_was_given_twice_is_a_dead_letter() {
    within(async {
        let (folder, billing) = (tempfile::tempdir().unwrap(), memory());
        let (orders, stuck) = put_back(folder.path(), &billing).await;
        let outbox = open(&orders, [stuck]).await;
        let second = publish(&outbox, &orders, "a", "another first").await;
        publish(&outbox, &orders, "b", "2").await;
        let _relay = run(outbox.relay());
        eventually("it is dead", async || stored(&outbox).await.2 == 1).await;
        let letters = outbox.dead_letters(None, Position(0), 10).await.unwrap();
        assert_eq!(letters[0].entry.id, second);
        assert!(
            letters[0].reason.contains("position 2 was message")
                && letters[0].reason.contains("the outbox has lost data"),
            "{}",
            letters[0].reason
        );
        eventually("a place that is free", async || effects(&billing, "b") == "2").await;
        assert_eq!(effects(&billing, "a"), "1");
    })
    .await;
}

/// What fills the stream's window, and is on its way at once.
async fn publish_much(outbox: &Outbox, orders: &RedbResource) {
    for key in 0..10 {
        let message = Message::new(outbox_support::TOPIC, [key], vec![key; 300 << 10]);
        publish_message(outbox, orders, message).await;
    }
}

/// A consumer that neither reads nor answers is given up in time, also when its stream takes nothing more.
#[tokio::test]
async fn a_deaf_consumer_is_given_up() {
    within(async {
        let orders = memory();
        let deaf = Scripted::new(Script::Deaf);
        let server = deaf.serve().await;
        let patience = Duration::from_millis(300);
        let outbox = open(
            &orders,
            [consumer("billing", server.url()).answer_timeout(patience)],
        )
        .await;
        publish_much(&outbox, &orders).await;
        let _relay = run(outbox.relay());
        eventually("another stream", async || deaf.stream_count() > 1).await;
    })
    .await;
}

/// A store on a disk in memory.
fn on(disk: &MemoryDisk) -> RedbResource {
    let disk = disk.clone();
    let options = RedbOptions::default();
    options.open_backend(move || disk.backend()).expect("opens")
}

/// Writes fifty rows, each in a local transaction of its own: beside them the file has room for a few more, and not for fifty.
async fn write_rows(store: &RedbResource) {
    for row in 0..50_u8 {
        let mut tx = store.begin_local().unwrap();
        tx.put("orders", [row], vec![7; 512 << 10]).await.unwrap();
        tx.commit().await.unwrap();
    }
}

/// H12: while messages wait for the transport, nothing of the store is held for them: what is overwritten meanwhile is free again.
#[tokio::test]
async fn h12_nothing_is_held_while_messages_wait_for_the_transport() {
    within(async {
        let disk = MemoryDisk::default();
        let orders = on(&disk);
        let deaf = Scripted::new(Script::Deaf);
        let server = deaf.serve().await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        publish_much(&outbox, &orders).await;
        write_rows(&orders).await;
        let before = disk.byte_count();
        let _relay = run(outbox.relay());
        eventually("a stream", async || deaf.stream_count() == 1).await;
        for _ in 0..3 {
            write_rows(&orders).await;
        }
        assert_eq!(disk.byte_count(), before);
        let held = orders.snapshot().unwrap();
        write_rows(&orders).await;
        assert!(disk.byte_count() > before, "what is held makes the file grow");
        drop(held);
    })
    .await;
}

/// B19: a consumer whose streams end after the welcome is not asked again and again without a pause.
#[tokio::test]
async fn b19_streams_that_end_at_once_are_opened_ever_more_slowly() {
    within(async {
        let orders = memory();
        let hasty = Scripted::new(Script::End);
        let server = hasty.serve().await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        publish(&outbox, &orders, "a", "1").await;
        let begun = Instant::now();
        let _relay = run(outbox.relay());
        eventually("some streams", async || hasty.stream_count() >= 7).await;
        // Half of 50 + 100 + … + 1600 ms, where 50 ms each would be 300 ms.
        assert!(
            begun.elapsed() > Duration::from_millis(1500),
            "{:?}",
            begun.elapsed()
        );
    })
    .await;
}

/// T11: two relays that meet two databases under one address, neither known yet: one of them is the consumer's, and the other gets
/// nothing.
#[tokio::test]
#[allow(clippy::await_holding_lock, reason = "it is the disk that waits")]
async fn t11_a_consumer_has_one_database_from_the_first_moment() {
    within(async {
        let disk = MemoryDisk::default();
        let orders = on(&disk);
        let both = Scripted::welcoming_together(Script::Answer(|_| Answer::Applied(NOTHING)), 2);
        let server = both.serve().await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        // More than one stream takes at once.
        let mut tx = orders.begin_local().unwrap();
        for key in 0..300_u16 {
            let message = Message::new(outbox_support::TOPIC, key.to_be_bytes(), "1");
            outbox.publish(&mut tx, message).await.unwrap();
        }
        tx.commit().await.unwrap();
        let streams = || {
            let delivered = both.delivered().into_iter();
            delivered.map(|(stream, _)| stream).collect::<BTreeSet<_>>()
        };
        let held = disk.hold_syncs();
        let _relays = [run(outbox.relay()), run(outbox.relay())];
        eventually("one of them is taken, and the other refused", async || {
            !streams().is_empty() && both.stream_count() > 2 || streams().len() > 1
        })
        .await;
        drop(held);
        eventually("all are delivered", async || stored(&outbox).await == (0, 0, 0)).await;
        assert_eq!(streams().len(), 1, "{:?}", streams());
    })
    .await;
}

/// T11: what the earlier database of a consumer has answered is not taken for the word of the one that is readmitted.
#[tokio::test]
#[allow(clippy::await_holding_lock, reason = "it is the disk that waits")]
async fn t11_answers_that_wait_to_be_written_are_not_the_readmitted_databases() {
    within(async {
        let disk = MemoryDisk::default();
        let orders = on(&disk);
        // It never says that it has anything: each of its streams comes to a database that is empty.
        let empty = Scripted::new(Script::Answer(|_| Answer::Applied(NOTHING)));
        let server = empty.serve().await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        for body in ["1", "2", "3"] {
            publish(&outbox, &orders, "a", body).await;
        }
        let held = disk.hold_syncs();
        let _relay = run(outbox.relay());
        // The third goes out when the second is answered, and what is written meanwhile began before the first was.
        eventually("two are answered", async || empty.delivered().len() == 3).await;
        let readmitting = outbox.readmit("billing", "ops", "replaced");
        tokio::pin!(readmitting);
        for _ in 0..100 {
            assert!(futures::poll!(readmitting.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        drop(held);
        readmitting.await.unwrap();
        publish(&outbox, &orders, "a", "4").await;
        eventually("it goes on", async || stored(&outbox).await == (0, 0, 0)).await;
    })
    .await;
}

/// T11: nor is a database that was asked who it is before the consumer was readmitted, and says so afterwards.
#[tokio::test]
async fn t11_a_database_that_was_asked_before_is_not_the_readmitted_one() {
    within(async {
        let orders = memory();
        // Each stream waits for this test before it is welcomed.
        let late = Scripted::welcoming_together(Script::Answer(|_| Answer::Applied(NOTHING)), 2);
        let server = late.serve().await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        publish(&outbox, &orders, "a", "1").await;
        let _relay = run(outbox.relay());
        eventually("the old one is asked", async || late.stream_count() == 1).await;
        outbox.readmit("billing", "ops", "replaced").await.unwrap();
        late.welcome().await;
        eventually("it asks again", async || {
            late.stream_count() == 2 || !late.delivered().is_empty()
        })
        .await;
        assert!(late.delivered().is_empty());
        late.welcome().await;
        eventually("it is delivered", async || stored(&outbox).await == (0, 0, 0)).await;
        let streams: Vec<_> = late.delivered().into_iter().map(|(stream, _)| stream).collect();
        assert_eq!(streams, [1]);
    })
    .await;
}

/// What a letter weighs on its way after a start is all of it: its headers fill a session too.
#[tokio::test]
async fn a_letter_weighs_its_whole_row() {
    within(async {
        let (orders, count) = (memory(), 180);
        let topics = vec![outbox_support::TOPIC.to_owned()];
        let opened = OpenStore::open(&orders, vec![("billing".to_owned(), topics)])
            .await
            .unwrap();
        for number in 1..=count {
            let message = Message::new(outbox_support::TOPIC, [number], vec![0; 15 << 10])
                .header("note", "x".repeat(8000));
            let mut tx = orders.begin_local().unwrap();
            let id = synod::MessageId([number; 16]);
            opened.publish(&mut tx, message, id).await.unwrap();
            tx.commit().await.unwrap();
        }
        let dead = (1..=u64::from(count)).map(|position| Failure {
            position: Position(position),
            failed_count: 1,
            reason: "no".to_owned(),
        });
        let settlement = Settlement {
            dead: dead.collect(),
            ..Settlement::default()
        };
        opened.settle("billing", settlement, None, None).await.unwrap();
        for position in 1..=u64::from(count) {
            let requeued = opened.operate("billing", Position(position), true).await.unwrap();
            assert!(requeued.is_some());
        }
        let mut relay = opened.relay("billing", RelayOptions::default(), 7).unwrap();
        relay.on_session_opened(Timestamp(0), RelaySession(1));
        let sent = std::iter::from_fn(|| relay.poll_send(Timestamp(0))).count();
        // By their bodies alone all of them would go.
        let row_count = TOPIC_SHARE_BYTES_MAX / ((15 << 10) + 8000);
        assert!(
            (row_count - 5..=row_count).contains(&sent),
            "{sent} of {row_count}"
        );
    })
    .await;
}

/// An outbox that nobody forwards says so, also after somebody did.
#[tokio::test]
async fn an_outbox_without_a_relay_says_so() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let server = serve(&appending(&billing)).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        assert_eq!(trouble(&outbox).await, "no relay is connected");
        let relay = run(outbox.relay());
        eventually("it is connected", async || trouble(&outbox).await.is_empty()).await;
        relay.kill().await;
        eventually("it says so", async || {
            trouble(&outbox).await == "no relay is connected"
        })
        .await;
    })
    .await;
}

/// J7: an operator whose call is cut short after it was written is heard by the relay all the same.
#[tokio::test]
#[allow(clippy::await_holding_lock, reason = "it is the disk that waits")]
async fn j7_an_operators_word_counts_although_its_caller_is_gone() {
    within(async {
        let disk = MemoryDisk::default();
        let orders = on(&disk);
        let failing = Scripted::new(Script::Answer(|delivery| match &delivery.body[..] {
            b"poison" if delivery.attempt == 1 => Answer::Failed("once".to_owned()),
            _ => Answer::Applied(NOTHING),
        }));
        let server = failing.serve().await;
        let outbox = open(&orders, [consumer("billing", server.url()).attempt_count_max(1)]).await;
        let _relay = run(outbox.relay());
        let id = publish(&outbox, &orders, "a", "poison").await;
        publish(&outbox, &orders, "a", "behind").await;
        eventually("it is dead", async || stored(&outbox).await.2 == 1).await;
        while stored(&outbox).await.2 == 1 {
            let discarding = outbox.discard(id, None, "ops", "not wanted");
            tokio::pin!(discarding);
            let (held, before) = (disk.hold_syncs(), disk.operation_count());
            // It is cut short while it is being written.
            while disk.operation_count() == before && futures::poll!(discarding.as_mut()).is_pending() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(held);
        }
        eventually("its key goes on", async || stored(&outbox).await == (0, 0, 0)).await;
        let behind = failing.delivered().pop().unwrap().1;
        assert_eq!(behind.body, "behind");
    })
    .await;
}

/// H17: an outbox whose fences begin anew, since it was put back, says why nothing goes out.
#[tokio::test]
async fn h17_a_message_that_stays_behind_later_sendings_says_so() {
    within(async {
        let orders = memory();
        let ahead = Scripted::new(Script::Answer(|_| Answer::Stale(NOTHING)));
        let server = ahead.serve().await;
        let outbox = open(&orders, [consumer("billing", server.url()).attempt_count_max(1)]).await;
        let _relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        eventually("it says why", async || {
            let listed = outbox.list(None, Position(0), 1).await.unwrap();
            matches!(
                &listed[0].states[0].1,
                EntryState::Pending { failed_count: 0, reason } if reason.contains("a later sending")
            )
        })
        .await;
    })
    .await;
}
