//! Consumers that come, change their topics and go: nothing is dropped by it that nobody has dropped by name, and nothing is kept
//! that nobody is to get.

mod outbox_support;
mod redb_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outbox_support::{
    Serving, TOPIC, append, consumer, effects, eventually, memory, open, publish, publish_message, run,
    serve, within,
};
use redb_support::{branch, context, formatted};
use synod::inbox::Inbox;
use synod::outbox::{Consumer, Message, Outbox, OutboxError, OutboxStatus, Place, PublishError};
use synod::resource::redb::{MemoryDisk as Disk, PowerLoss, RedbOptions, RedbResource};
use synod::resource::{ResourceError, ResourceManager};
use synod::{BoxError, Position, UnixMillis};

const OTHER: &str = "orders.refused";
const NOWHERE: &str = "http://127.0.0.1:1";

/// Appends every message of both topics, but for the body `poison`.
fn appending_both(store: &RedbResource) -> Inbox {
    let handler = async |delivery: synod::inbox::Delivery, mut tx: synod::inbox::InboxTransaction| {
        if delivery.body == "poison" {
            return Err("poisoned".into());
        }
        append(&mut tx, &delivery.key, &delivery.body).await
    };
    Inbox::builder(store)
        .handle(TOPIC, handler)
        .handle(OTHER, handler)
        .build()
}

/// Of the topics that are named here, and no other.
fn taking(name: &str, server: &Serving, topics: &[&str]) -> Consumer {
    let consumer = Consumer::new(name, server.url()).attempt_count_max(1);
    topics
        .iter()
        .fold(consumer, |consumer, topic| consumer.topic(*topic))
}

async fn publish_to(outbox: &Outbox, store: &RedbResource, topic: &str, key: &str, body: &str) {
    publish_message(outbox, store, Message::new(topic, key, body.to_owned())).await;
}

async fn status(outbox: &Outbox) -> OutboxStatus {
    outbox.status().await.expect("readable")
}

async fn drop_topic(outbox: &Outbox, consumer: &str, topic: &str) -> Option<u64> {
    let dropped = outbox.unsubscribe_topic(consumer, topic, "ops", "moved").await;
    dropped.expect("works")
}

async fn drop_consumer(outbox: &Outbox, consumer: &str) -> Option<u64> {
    outbox.unsubscribe(consumer, "ops", "moved").await.expect("works")
}

fn row_count(store: &RedbResource, table: &str) -> usize {
    let rows = store.snapshot().and_then(|snapshot| snapshot.scan(table, ""));
    rows.expect("readable").len()
}

fn with_clock() -> (RedbResource, Arc<AtomicU64>) {
    let clock = Arc::new(AtomicU64::new(redb_support::NOW.0));
    let now = clock.clone();
    let store = RedbOptions::default()
        .clock(move || UnixMillis(now.load(Ordering::SeqCst)))
        .open_backend(redb::backends::InMemoryBackend::new)
        .expect("opens");
    (store, clock)
}

/// H6: a topic that is taken away from its only consumer stays its own as far as messages were published: those that are visible,
/// scheduled, or of a branch in doubt.
#[tokio::test]
async fn h6_a_topic_that_is_taken_away_is_delivered_as_far_as_it_was_published() {
    within(async {
        let ((orders, clock), billing) = (with_clock(), memory());
        let orders = redb_support::bound(orders).await;
        let server = serve(&appending_both(&billing)).await;
        let outbox = open(&orders, [taking("billing", &server, &[TOPIC, OTHER])]).await;
        publish_to(&outbox, &orders, TOPIC, "visible", "1").await;
        let later = UnixMillis(clock.load(Ordering::SeqCst) + 60_000);
        publish_message(
            &outbox,
            &orders,
            Message::new(TOPIC, "scheduled", "1").deliver_at(later),
        )
        .await;
        let doubtful = context(branch(1));
        let mut tx = orders.begin(&doubtful).await.expect("open");
        let message = Message::new(TOPIC, "doubtful", "1");
        outbox.publish(&mut tx, message).await.expect("published");
        orders.prepare(&doubtful, tx).await.expect("prepared");
        drop(outbox);

        let outbox = open(&orders, [taking("billing", &server, &[OTHER])]).await;
        let mut tx = orders.begin_local().expect("open");
        let refused = outbox.publish(&mut tx, Message::new(TOPIC, "new", "1")).await;
        assert!(
            matches!(refused, Err(PublishError::NoRoute { .. })),
            "{refused:?}"
        );
        drop(tx);
        publish_to(&outbox, &orders, OTHER, "other", "1").await;
        let _relay = run(outbox.relay());
        eventually("what was visible", async || {
            effects(&billing, "visible") == "1" && effects(&billing, "other") == "1"
        })
        .await;
        let seen = status(&outbox).await.consumers.remove(0);
        assert_eq!(
            (seen.topics, seen.retired_topics),
            (vec![OTHER.to_owned()], vec![TOPIC.to_owned()])
        );
        orders.commit(&doubtful.branch).await.expect("commits");
        clock.fetch_add(120_000, Ordering::SeqCst);
        eventually("what became visible later", async || {
            effects(&billing, "doubtful") == "1" && effects(&billing, "scheduled") == "1"
        })
        .await;
        eventually("nothing is left", async || {
            status(&outbox).await.stored_count == 0 && row_count(&orders, "synod:outbox_done") == 0
        })
        .await;
    })
    .await;
}

/// A topic that goes over from one consumer to another: what was visible is the first one's, what becomes visible later the other's,
/// and no message is both's.
#[tokio::test]
async fn a_topic_that_goes_over_to_another_consumer_is_split_where_it_went_over() {
    within(async {
        let ((orders, clock), first, second) = (with_clock(), memory(), memory());
        let servers = [
            serve(&appending_both(&first)).await,
            serve(&appending_both(&second)).await,
        ];
        let outbox = open(&orders, [taking("first", &servers[0], &[TOPIC, OTHER])]).await;
        publish_to(&outbox, &orders, TOPIC, "a", "1").await;
        let later = UnixMillis(clock.load(Ordering::SeqCst) + 60_000);
        publish_message(&outbox, &orders, Message::new(TOPIC, "a", "3").deliver_at(later)).await;
        drop(outbox);
        let consumers = [
            taking("first", &servers[0], &[OTHER]),
            taking("second", &servers[1], &[TOPIC]),
        ];
        let outbox = open(&orders, consumers).await;
        publish_to(&outbox, &orders, TOPIC, "a", "2").await;
        clock.fetch_add(120_000, Ordering::SeqCst);
        let _relay = run(outbox.relay());
        eventually("each has its part", async || {
            effects(&first, "a") == "1" && effects(&second, "a") == "2 3"
        })
        .await;
        eventually("nothing is left", async || {
            status(&outbox).await.stored_count == 0
        })
        .await;
        assert_eq!(
            (effects(&first, "a"), effects(&second, "a")),
            ("1".into(), "2 3".into())
        );
    })
    .await;
}

/// A topic that is added begins with what becomes visible then, also for a consumer whose mark is behind; taken away and named
/// again with nothing between, it is as if it had never been away.
#[tokio::test]
async fn a_topic_that_is_added_begins_with_what_becomes_visible_then() {
    within(async {
        let (orders, billing, mail) = (memory(), memory(), memory());
        let servers = [
            serve(&appending_both(&billing)).await,
            serve(&appending_both(&mail)).await,
        ];
        let mail_takes = |topics: &[&str]| taking("mail", &servers[1], topics);
        let outbox = open(
            &orders,
            [taking("billing", &servers[0], &[OTHER]), mail_takes(&[TOPIC])],
        )
        .await;
        publish_to(&outbox, &orders, OTHER, "billing", "1").await;
        publish_to(&outbox, &orders, TOPIC, "a", "early").await;
        drop(outbox);
        let both = [OTHER, TOPIC];
        let outbox = open(
            &orders,
            [taking("billing", &servers[0], &both), mail_takes(&[TOPIC])],
        )
        .await;
        publish_to(&outbox, &orders, TOPIC, "a", "1").await;
        drop(outbox);
        drop(
            open(
                &orders,
                [taking("billing", &servers[0], &[OTHER]), mail_takes(&[TOPIC])],
            )
            .await,
        );
        let outbox = open(
            &orders,
            [taking("billing", &servers[0], &both), mail_takes(&[TOPIC])],
        )
        .await;
        publish_to(&outbox, &orders, TOPIC, "a", "2").await;
        let _relay = run(outbox.relay());
        eventually("all is delivered", async || {
            status(&outbox).await.stored_count == 0
                && effects(&billing, "billing") == "1"
                && effects(&mail, "a") == "early 1 2"
        })
        .await;
        assert_eq!(effects(&billing, "a"), "1 2");
        assert!(
            status(&outbox)
                .await
                .consumers
                .iter()
                .all(|seen| seen.retired_topics.is_empty())
        );
    })
    .await;
}

/// What is left of a topic that was taken away can be dropped by name: dead letters and what waits behind them, pending ones, and
/// those that a relay has in its hands. Others' messages stay.
#[tokio::test]
async fn a_retired_topic_is_dropped_by_name_and_nothing_else() {
    within(async {
        let (orders, billing, mail) = (memory(), memory(), memory());
        let server = serve(&appending_both(&billing)).await;
        // It has no handler for one of the topics: those messages wait.
        let other = Inbox::builder(&mail).handle(OTHER, async |delivery, mut tx| {
            append(&mut tx, &delivery.key, &delivery.body).await
        });
        let other = serve(&other.build()).await;
        let mail_takes = || taking("mail", &other, &[TOPIC, OTHER]);
        let outbox = open(
            &orders,
            [taking("billing", &server, &[TOPIC, OTHER]), mail_takes()],
        )
        .await;
        let relay = run(outbox.relay());
        publish_to(&outbox, &orders, TOPIC, "a", "poison").await;
        publish_to(&outbox, &orders, TOPIC, "a", "behind").await;
        publish_to(&outbox, &orders, OTHER, "b", "1").await;
        eventually("the letter, and the mark behind it", async || {
            let seen = status(&outbox).await;
            seen.consumers[0].dead_count == 1 && seen.consumers[0].mark == seen.next_position
        })
        .await;
        let named = outbox.unsubscribe_topic("billing", TOPIC, "ops", "moved").await;
        assert!(matches!(named, Err(OutboxError::Invalid { .. })), "{named:?}");
        let left = outbox.undelivered_count("billing", Some(TOPIC)).await;
        assert!(matches!(left, Err(OutboxError::Invalid { .. })), "{left:?}");
        assert_eq!(drop_topic(&outbox, "billing", "unknown").await, None);
        let left = outbox.undelivered_count("billing", Some("unknown")).await;
        assert_eq!(left.expect("readable"), None);
        relay.kill().await;
        drop(outbox);
        let consumers = [
            taking("billing", &server, &[OTHER]),
            taking("mail", &other, &[OTHER]),
        ];
        let outbox = open(&orders, consumers).await;
        let _relay = run(outbox.relay());
        eventually("the relay has it in its hands", async || {
            status(&outbox).await.consumers[1].trouble.is_empty()
        })
        .await;
        let left = outbox.undelivered_count("billing", Some(TOPIC)).await;
        assert_eq!(left.expect("readable"), Some(2));
        let nameless = outbox.unsubscribe_topic("billing", TOPIC, "ops", " ").await;
        assert!(
            matches!(nameless, Err(OutboxError::Invalid { .. })),
            "{nameless:?}"
        );
        assert_eq!(drop_topic(&outbox, "billing", TOPIC).await, Some(2));
        let records = outbox.records(10).await.expect("readable");
        assert_eq!(records.len(), 1, "{records:?}");
        let told = "ops dropped what was left of topic orders.placed for consumer billing with 2 undelivered messages";
        assert!(records[0].contains(told), "{records:?}");
        let seen = status(&outbox).await;
        assert_eq!(
            (seen.stored_count, seen.consumers[0].dead_count),
            (3, 0),
            "mail's are still there"
        );
        publish_to(&outbox, &orders, OTHER, "b", "2").await;
        eventually("all others", async || {
            effects(&billing, "b") == "1 2" && effects(&mail, "b") == "1 2"
        })
        .await;
        assert_eq!(drop_topic(&outbox, "mail", TOPIC).await, Some(2));
        publish_to(&outbox, &orders, OTHER, "b", "3").await;
        eventually("nothing is left", async || {
            let seen = status(&outbox).await;
            let states = ["outbox_done", "outbox_letter", "outbox_failed", "outbox_key"];
            let states = states.map(|table| row_count(&orders, &format!("synod:{table}")));
            seen.stored_count == 0 && states == [0; 4]
        })
        .await;
        assert_eq!(
            (effects(&billing, "a"), effects(&mail, "b")),
            (String::new(), "1 2 3".into())
        );
    })
    .await;
}

/// A consumer from the start beside another one's old dead letter: the letter's message is its own, too, whatever becomes of the
/// letter.
#[tokio::test]
async fn a_consumer_from_the_start_gets_the_message_of_anothers_dead_letter() {
    within(async {
        let (orders, billing, mail) = (memory(), memory(), memory());
        let server = serve(&appending_both(&billing)).await;
        let outbox = open(&orders, [taking("billing", &server, &[TOPIC])]).await;
        let relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        let poison = publish(&outbox, &orders, "a", "poison").await;
        publish(&outbox, &orders, "b", "1").await;
        eventually("only the letter is left", async || {
            let seen = status(&outbox).await;
            (seen.stored_count, seen.consumers[0].dead_count) == (1, 1)
                && seen.consumers[0].mark == seen.next_position
        })
        .await;
        relay.kill().await;
        drop(outbox);
        let seen = outbox_support::appending(&mail);
        let other = serve(&seen).await;
        let outbox = open(
            &orders,
            [
                taking("billing", &server, &[TOPIC]),
                consumer("mail", other.url()).from_start(),
            ],
        )
        .await;
        outbox
            .discard(poison, Some("billing"), "ops", "a test order")
            .await
            .expect("dead");
        let _relay = run(outbox.relay());
        eventually("it got the message", async || effects(&mail, "a") == "poison").await;
        publish(&outbox, &orders, "a", "2").await;
        eventually("the lane goes on", async || effects(&mail, "a") == "poison 2").await;
        eventually("nothing is left", async || {
            status(&outbox).await.stored_count == 0
        })
        .await;
    })
    .await;
}

/// A consumer that was unsubscribed and comes back under its name, from the start: its inbox takes it, nothing takes effect twice,
/// and what it had not got and is still stored comes now.
#[tokio::test]
async fn a_consumer_that_comes_back_gets_nothing_twice() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let server = serve(&appending_both(&billing)).await;
        let away = || Consumer::new("away", NOWHERE).topic(TOPIC);
        let billing_takes = || taking("billing", &server, &[TOPIC]);
        let outbox = open(&orders, [billing_takes(), away()]).await;
        let relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        publish(&outbox, &orders, "a", "2").await;
        eventually("the inbox knows the mark", async || {
            effects(&billing, "a") == "1 2" && row_count(&billing, "synod:inbox") == 0
        })
        .await;
        let named = outbox.unsubscribe("billing", "ops", "moved").await;
        assert!(matches!(named, Err(OutboxError::Invalid { .. })), "{named:?}");
        relay.kill().await;
        publish(&outbox, &orders, "a", "3").await;
        drop(outbox);
        let outbox = open(&orders, [away()]).await;
        let left = outbox.undelivered_count("billing", None).await;
        assert_eq!(left.expect("readable"), Some(1));
        assert_eq!(drop_consumer(&outbox, "billing").await, Some(1));
        assert_eq!(drop_consumer(&outbox, "billing").await, None);
        let left = outbox.undelivered_count("billing", None).await;
        assert_eq!(left.expect("readable"), None);
        publish(&outbox, &orders, "a", "4").await;
        assert_eq!(status(&outbox).await.stored_count, 4);
        drop(outbox);
        let outbox = open(&orders, [billing_takes().from_start(), away()]).await;
        let _relay = run(outbox.relay());
        eventually("what it had not got", async || {
            effects(&billing, "a") == "1 2 3 4"
        })
        .await;
        publish(&outbox, &orders, "a", "5").await;
        eventually("it goes on", async || effects(&billing, "a") == "1 2 3 4 5").await;
    })
    .await;
}

/// H16: a consumer that is away keeps the messages of its own topics, and nobody else's; unsubscribed, it keeps none.
#[tokio::test]
async fn h16_a_consumer_that_is_away_keeps_its_own_messages_and_no_others() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let server = serve(&appending_both(&billing)).await;
        let consumers = || [taking("billing", &server, &[TOPIC, OTHER])];
        let away = Consumer::new("away", NOWHERE).topic(OTHER);
        let [takes] = consumers();
        let outbox = open(&orders, [takes, away]).await;
        let relay = run(outbox.relay());
        for number in 1..=5 {
            publish_to(&outbox, &orders, TOPIC, "a", &number.to_string()).await;
        }
        for number in 1..=3 {
            publish_to(&outbox, &orders, OTHER, "b", &number.to_string()).await;
        }
        eventually("only the away one's are kept", async || {
            let seen = status(&outbox).await;
            seen.stored_count == 3 && seen.consumers[1].mark == seen.next_position
        })
        .await;
        assert_eq!(
            (effects(&billing, "a"), effects(&billing, "b")),
            ("1 2 3 4 5".into(), "1 2 3".into())
        );
        relay.kill().await;
        drop(outbox);
        let outbox = open(&orders, consumers()).await;
        assert_eq!(drop_consumer(&outbox, "away").await, Some(3));
        assert_eq!(status(&outbox).await.stored_count, 0);
        assert_eq!(row_count(&orders, "synod:outbox_sequence"), 0);
    })
    .await;
}

/// H6: a message that becomes visible when nobody takes its topic any more, and nobody did last, is kept and shown until a consumer
/// from the start takes it.
#[tokio::test]
async fn h6_a_message_without_any_consumer_is_kept_until_there_is_one() {
    within(async {
        let ((orders, clock), billing) = (with_clock(), memory());
        let server = serve(&appending_both(&billing)).await;
        let later = UnixMillis(clock.load(Ordering::SeqCst) + 60_000);
        let outbox = open(&orders, [Consumer::new("gone", NOWHERE).topic(TOPIC)]).await;
        publish_message(&outbox, &orders, Message::new(TOPIC, "a", "1").deliver_at(later)).await;
        drop(outbox);
        let other = || taking("billing", &server, &[OTHER]);
        let outbox = open(&orders, [other()]).await;
        assert_eq!(drop_consumer(&outbox, "gone").await, Some(0));
        let relay = run(outbox.relay());
        clock.fetch_add(120_000, Ordering::SeqCst);
        publish_to(&outbox, &orders, OTHER, "b", "1").await;
        eventually("it is visible, and passed by others", async || {
            let seen = status(&outbox).await;
            effects(&billing, "b") == "1"
                && (seen.stored_count, seen.scheduled_count) == (1, 0)
                && seen.consumers[0].mark == seen.next_position
        })
        .await;
        let listed = outbox.list(None, Position(0), 10).await.expect("readable");
        assert_eq!((listed.len(), listed[0].states.len()), (1, 0));
        relay.kill().await;
        drop(outbox);
        let new = taking("new", &server, &[TOPIC]).from_start();
        let outbox = open(&orders, [other(), new]).await;
        let _relay = run(outbox.relay());
        eventually("it has come", async || effects(&billing, "a") == "1").await;
        eventually("nothing is left", async || {
            status(&outbox).await.stored_count == 0
        })
        .await;
    })
    .await;
}

/// J7: a consumer was promised to say what became of a cancelled message; dropped by name before that, it is said that nobody knows.
#[tokio::test]
async fn j7_what_was_cancelled_and_is_dropped_unheard_is_told() {
    within(async {
        for is_whole in [true, false] {
            let orders = memory();
            let stays = |topics: &[&str]| {
                let consumer = Consumer::new("billing", NOWHERE).topic("kept");
                topics
                    .iter()
                    .fold(consumer, |consumer, topic| consumer.topic(*topic))
            };
            let outbox = open(&orders, [stays(&[TOPIC])]).await;
            for body in ["1", "wrong", "3"] {
                publish_to(&outbox, &orders, TOPIC, "a", body).await;
            }
            let wrong = outbox.list(None, Position(0), 10).await.expect("readable")[1].id;
            let place = Place::Stored(Position(2));
            let cancelled = outbox.cancel(wrong, place, None, "ops", "wrong").await;
            assert_eq!(cancelled.expect("pending"), ["billing"]);
            drop(outbox);
            let outbox = if is_whole {
                let outbox = open(&orders, [Consumer::new("other", NOWHERE).topic(OTHER)]).await;
                assert_eq!(drop_consumer(&outbox, "billing").await, Some(3));
                outbox
            } else {
                let outbox = open(&orders, [stays(&[])]).await;
                assert_eq!(drop_topic(&outbox, "billing", TOPIC).await, Some(3));
                outbox
            };
            let records = outbox.records(10).await.expect("readable");
            let told: Vec<_> = records.iter().filter(|record| record.contains(" was cancelled for ")).collect();
            let expected = format!(
                "message {wrong} (position 2) was cancelled for consumer billing, which was unsubscribed{} before it said what became \
                 of it",
                if is_whole { String::new() } else { format!(" from topic {TOPIC}") }
            );
            assert!(told.len() == 1 && told[0].ends_with(&expected), "{records:?}");
        }
    })
    .await;
}

/// More messages than one local transaction drops: an unsubscription goes on until nothing is left.
#[tokio::test]
async fn a_consumer_with_many_messages_is_unsubscribed_in_parts() {
    within(async {
        let orders = memory();
        let keeps = || Consumer::new("keeps", NOWHERE).topic(OTHER);
        let outbox = open(&orders, [keeps(), Consumer::new("goes", NOWHERE).topic(TOPIC)]).await;
        let mut tx = orders.begin_local().expect("open");
        for number in 0..5000 {
            let message = Message::new(TOPIC, format!("{}", number % 7), "x");
            outbox.publish(&mut tx, message).await.expect("published");
        }
        outbox
            .publish(&mut tx, Message::new(OTHER, "a", "x"))
            .await
            .expect("published");
        tx.commit().await.expect("commits");
        drop(outbox);
        let outbox = open(&orders, [keeps()]).await;
        let left = outbox.undelivered_count("goes", None).await;
        assert_eq!(left.expect("readable"), Some(5000));
        assert_eq!(drop_consumer(&outbox, "goes").await, Some(5000));
        let records = outbox.records(10).await.expect("readable");
        assert_eq!(records.len(), 2, "one for each part: {records:?}");
        let seen = status(&outbox).await;
        assert_eq!((seen.stored_count, seen.consumers.len()), (1, 1));
        assert_eq!(row_count(&orders, "synod:outbox_key"), 1);
    })
    .await;
}

fn open_store(disk: &Disk) -> Result<RedbResource, ResourceError> {
    let disk = disk.clone();
    redb_support::options().open_backend(move || disk.backend())
}

async fn try_open(
    store: &RedbResource,
    consumers: impl IntoIterator<Item = Consumer>,
) -> Result<Outbox, BoxError> {
    let builder = Outbox::builder(store);
    let builder = consumers
        .into_iter()
        .fold(builder, |builder, consumer| builder.consumer(consumer));
    Ok(builder.open().await?)
}

/// How far the changes came, as their caller was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    Published,
    Dropped,
    Unsubscribed,
}

/// A topic is taken away, dropped by name, and its other consumer is unsubscribed.
async fn change(store: &RedbResource, told: &mut Told) -> Result<(), BoxError> {
    let away = |name: &str| Consumer::new(name, NOWHERE);
    let both = away("first").topic(TOPIC).topic(OTHER);
    let outbox = try_open(store, [both, away("second").topic(TOPIC)]).await?;
    let mut tx = store.begin_local()?;
    for (topic, body) in [(TOPIC, "1"), (TOPIC, "2"), (OTHER, "3")] {
        outbox.publish(&mut tx, Message::new(topic, "a", body)).await?;
    }
    tx.commit().await?;
    *told = Told::Published;
    drop(outbox);
    let outbox = try_open(store, [away("first").topic(OTHER)]).await?;
    outbox.unsubscribe_topic("first", TOPIC, "ops", "moved").await?;
    *told = Told::Dropped;
    outbox.unsubscribe("second", "ops", "moved").await?;
    *told = Told::Unsubscribed;
    Ok(())
}

/// F2, H11: at every operation of the disk while topics and consumers go: what nobody has dropped is there, and what was dropped is
/// gone once the call is repeated, with its states.
#[tokio::test]
async fn power_loss_at_every_operation_while_consumers_change() {
    let count = {
        let disk = formatted();
        let before = disk.operation_count();
        let store = open_store(&disk).expect("opens");
        within(change(&store, &mut Told::Nothing))
            .await
            .expect("no power loss");
        drop(store);
        disk.operation_count() - before
    };
    assert!(count > 20, "{count}");
    for operation in 1..=count {
        for power_loss in [PowerLoss::Lost, PowerLoss::Kept, PowerLoss::Torn(operation)] {
            within(changing(operation, power_loss)).await;
        }
    }
}

async fn changing(operation: u64, power_loss: PowerLoss) {
    let disk = formatted();
    disk.fail_from(disk.operation_count() + operation);
    let mut told = Told::Nothing;
    if let Ok(store) = open_store(&disk) {
        let _ = change(&store, &mut told).await;
    }
    disk.lose_power(power_loss);
    let store = open_store(&disk).expect("opens");
    let outbox = open(&store, [Consumer::new("first", NOWHERE).topic(OTHER)]).await;
    let listed = outbox.list(None, Position(0), 10).await.expect("readable");
    let topics: Vec<_> = listed.iter().map(|entry| entry.topic.as_str()).collect();
    let context = format!("operation {operation}, {power_loss:?}, told {told:?}: {topics:?}");
    let expected: &[&[&str]] = match told {
        Told::Nothing => &[&[], &[TOPIC, TOPIC, OTHER]],
        Told::Published => &[&[TOPIC, TOPIC, OTHER]],
        // The second one's are still there, or its unsubscription was on its way.
        Told::Dropped => &[&[TOPIC, TOPIC, OTHER], &[OTHER]],
        Told::Unsubscribed => &[&[OTHER]],
    };
    assert!(expected.contains(&&topics[..]), "{context}");
    outbox
        .unsubscribe_topic("first", TOPIC, "ops", "moved")
        .await
        .expect("works");
    outbox.unsubscribe("second", "ops", "moved").await.expect("works");
    let left = status(&outbox).await;
    let expected_count = u64::from(!topics.is_empty());
    assert_eq!(
        (left.stored_count, left.consumers.len()),
        (expected_count, 1),
        "{context}"
    );
    let keys = row_count(&store, "synod:outbox_key");
    assert_eq!(keys as u64, expected_count, "{context}");
    assert_eq!(row_count(&store, "synod:outbox_letter"), 0, "{context}");
}
