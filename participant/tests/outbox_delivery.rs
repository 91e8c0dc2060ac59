//! Messages from an outbox to inboxes over real loopback gRPC: order, fan-out, consumers that fail or are away, relays that die.

mod outbox_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use outbox_support::{
    TOPIC, append, appending, consumer, effects, eventually, memory, open, publish, publish_message, run,
    serve, serve_at, stored, within,
};
use synod::UnixMillis;
use synod::inbox::Inbox;
use synod::outbox::{Consumer, DeadLetterPolicy, EntryState, Message, Outbox, OutboxError, PublishError};
use synod::resource::redb::{RedbOptions, RedbResource};
use tokio::sync::Semaphore;

fn numbers(from: u32, count: u32) -> String {
    (from..from + count)
        .map(|n| n.to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

/// publish -> relay -> inbox -> effect; and when the consumer has confirmed it, nothing of it is left in the outbox, nor, when it
/// was told so, in the inbox (H8, H11, H16).
#[tokio::test]
async fn a_published_message_takes_effect_once_and_in_order() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let server = serve(&appending(&billing)).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let _relay = run(outbox.relay());
        for number in 1..=20 {
            publish(&outbox, &orders, "a", &number.to_string()).await;
            publish(&outbox, &orders, "b", &(100 + number).to_string()).await;
        }
        eventually("all effects", async || {
            effects(&billing, "a") == numbers(1, 20) && effects(&billing, "b") == numbers(101, 20)
        })
        .await;
        eventually("the outbox is empty", async || stored(&outbox).await == (0, 0, 0)).await;
        eventually("the inbox is empty", async || {
            billing
                .snapshot()
                .unwrap()
                .scan("synod:inbox", "")
                .unwrap()
                .is_empty()
        })
        .await;
        for table in [
            "synod:outbox_key",
            "synod:outbox_sequence",
            "synod:outbox_done",
            "synod:outbox_failed",
        ] {
            assert_eq!(orders.snapshot().unwrap().scan(table, "").unwrap(), [], "{table}");
        }
        // A key that was forgotten goes on above what it was.
        publish(&outbox, &orders, "a", "21").await;
        eventually("the next one", async || effects(&billing, "a") == numbers(1, 21)).await;
    })
    .await;
}

/// A rolled back transaction publishes nothing, and one that commits publishes all.
#[tokio::test]
async fn what_is_rolled_back_is_not_published() {
    within(async {
        let orders = memory();
        let outbox = open(&orders, [consumer("billing", "http://127.0.0.1:1".to_owned())]).await;
        let mut tx = orders.begin_local().unwrap();
        outbox
            .publish(&mut tx, Message::new(TOPIC, "a", "never"))
            .await
            .unwrap();
        drop(tx);
        assert_eq!(stored(&outbox).await, (0, 0, 0));
        let mut tx = orders.begin_local().unwrap();
        for body in ["1", "2", "3"] {
            outbox
                .publish(&mut tx, Message::new(TOPIC, "a", body))
                .await
                .unwrap();
        }
        tx.commit().await.unwrap();
        let listed = outbox.list(None, synod::Position(0), 100).await.unwrap();
        let sequences: Vec<_> = listed.iter().map(|entry| entry.sequence.0).collect();
        assert_eq!(sequences, [1, 2, 3]);
        let positions: Vec<_> = listed.iter().map(|entry| entry.position.0).collect();
        assert_eq!(positions, [1, 2, 3]);
    })
    .await;
}

/// H6: what would go nowhere, or is too large, is refused where it is published, and the local transaction is as it was.
#[tokio::test]
async fn h6_a_message_without_a_consumer_is_an_error_of_its_publisher() {
    within(async {
        let orders = memory();
        let outbox = open(&orders, [consumer("billing", "http://127.0.0.1:1".to_owned())]).await;
        let mut tx = orders.begin_local().unwrap();
        tx.put("orders", "o1", "2 bolts").await.unwrap();
        let lost = outbox
            .publish(&mut tx, Message::new("orders.lost", "a", "x"))
            .await;
        assert!(matches!(lost, Err(PublishError::NoRoute { .. })), "{lost:?}");
        let large = outbox
            .publish(&mut tx, Message::new(TOPIC, "a", vec![0; 600 << 10]))
            .await;
        assert!(matches!(large, Err(PublishError::TooLarge { .. })), "{large:?}");
        let stranger = memory();
        let mut other = stranger.begin_local().unwrap();
        let foreign = outbox.publish(&mut other, Message::new(TOPIC, "a", "x")).await;
        assert!(
            matches!(foreign, Err(PublishError::Invalid { .. })),
            "{foreign:?}"
        );
        tx.commit().await.unwrap();
        assert_eq!(stored(&outbox).await, (0, 0, 0));
        assert!(matches!(
            Outbox::builder(&orders).open().await,
            Err(OutboxError::AlreadyOpen)
        ));
    })
    .await;
}

/// Each consumer of a topic gets every message of it, at its own pace: one that is away holds nothing up.
#[tokio::test]
async fn every_consumer_gets_every_message_of_its_topics() {
    within(async {
        let (orders, billing, notifications) = (memory(), memory(), memory());
        let first = serve(&appending(&billing)).await;
        // Its address is known, and nobody is there yet.
        let second = serve(&appending(&notifications)).await.kill();
        let outbox = open(
            &orders,
            [
                consumer("billing", first.url()),
                consumer("notifications", format!("http://{second}")),
                Consumer::new("audit", "http://127.0.0.1:1").topic("orders.other"),
            ],
        )
        .await;
        let _relay = run(outbox.relay());
        for number in 1..=30 {
            publish(&outbox, &orders, "a", &number.to_string()).await;
        }
        eventually("billing has all", async || {
            effects(&billing, "a") == numbers(1, 30)
        })
        .await;
        assert_eq!(effects(&notifications, "a"), "");
        assert_eq!(
            stored(&outbox).await,
            (30, 0, 0),
            "kept for the one that is away, and no dead letter"
        );
        let status = outbox.status().await.unwrap();
        let trouble = |name: &str| {
            status
                .consumers
                .iter()
                .find(|c| c.consumer == name)
                .unwrap()
                .trouble
                .clone()
        };
        assert_eq!(trouble("billing"), "");
        assert_ne!(trouble("notifications"), "");
        let _second = serve_at(&appending(&notifications), second).await;
        eventually("notifications has all", async || {
            effects(&notifications, "a") == numbers(1, 30)
        })
        .await;
        eventually("the outbox is empty", async || stored(&outbox).await == (0, 0, 0)).await;
    })
    .await;
}

/// H7: the relay is killed between delivery and mark: the message comes again, and does not take effect again.
#[tokio::test]
async fn h7_a_relay_killed_between_delivery_and_mark_repeats_nothing() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let deliveries = Arc::new(AtomicU32::new(0));
        let gate = Arc::new(Semaphore::new(0));
        let inbox = Inbox::builder(&billing)
            .handle(TOPIC, {
                let (deliveries, gate) = (deliveries.clone(), gate.clone());
                move |delivery, mut tx| {
                    let (deliveries, gate) = (deliveries.clone(), gate.clone());
                    async move {
                        deliveries.fetch_add(1, Ordering::SeqCst);
                        let _held = gate.acquire().await;
                        append(&mut tx, &delivery.key, &delivery.body).await
                    }
                }
            })
            .build();
        let server = serve(&inbox).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        publish(&outbox, &orders, "a", "2").await;
        eventually("the first one is being handled", async || {
            deliveries.load(Ordering::SeqCst) == 1
        })
        .await;
        // Its effect will be there, and nobody will have heard of it.
        relay.kill().await;
        gate.add_permits(100);
        eventually("the effect", async || effects(&billing, "a") == "1").await;
        assert_eq!(stored(&outbox).await.0, 2);
        let _relay = run(outbox.relay());
        eventually("both, once each", async || effects(&billing, "a") == "1 2").await;
        eventually("the outbox is empty", async || stored(&outbox).await == (0, 0, 0)).await;
        assert_eq!(
            deliveries.load(Ordering::SeqCst),
            2,
            "the repeated one never reached its handler"
        );
    })
    .await;
}

/// G5, and no lost messages: an error, a panic, a timeout and a missing handler are all retries; what the failed handler wrote is gone.
#[tokio::test]
async fn an_error_a_panic_and_a_timeout_are_retries() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let server = serve(&appending(&memory())).await;
        drop(server);
        let inbox = Inbox::builder(&billing)
            .handler_timeout(Duration::from_millis(200))
            .handle(TOPIC, async |delivery, mut tx| {
                append(&mut tx, &delivery.key, &delivery.body).await?;
                match delivery.attempt {
                    1 => Err("not today".into()),
                    2 => panic!("not like this"),
                    3 => std::future::pending().await,
                    4 => {
                        // Goes on after an error of the store, which had rolled everything back.
                        let _ = tx.put("", "k", "v").await;
                        Ok(())
                    }
                    _ => Ok(()),
                }
            })
            .build();
        let server = serve(&inbox).await;
        let outbox = open(
            &orders,
            [consumer("billing", server.url()).attempt_count_max(100)],
        )
        .await;
        let _relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        publish(&outbox, &orders, "a", "2").await;
        eventually("both, once each", async || effects(&billing, "a") == "1 2").await;
    })
    .await;
}

#[tokio::test]
async fn g5_a_topic_without_a_handler_waits_for_one() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let server = serve(&Inbox::builder(&billing).build()).await;
        let outbox = open(&orders, [consumer("billing", server.url()).attempt_count_max(1)]).await;
        let _relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        eventually("the relay is connected", async || {
            outbox.status().await.unwrap().consumers[0].trouble.is_empty()
        })
        .await;
        assert_eq!(stored(&outbox).await, (1, 0, 0));
        let address = server.kill();
        let _server = serve_at(&appending(&billing), address).await;
        eventually("its effect", async || effects(&billing, "a") == "1").await;
        assert_eq!(stored(&outbox).await.2, 0, "it was never a dead letter");
    })
    .await;
}

/// Refuses a body until it is allowed.
fn poisoned(store: &RedbResource, body: &'static str) -> (Inbox, Arc<AtomicBool>) {
    let is_allowed = Arc::new(AtomicBool::new(false));
    let inbox = Inbox::builder(store)
        .handle(TOPIC, {
            let is_allowed = is_allowed.clone();
            move |delivery, mut tx| {
                let is_allowed = is_allowed.clone();
                async move {
                    if delivery.body == body.as_bytes() && !is_allowed.load(Ordering::SeqCst) {
                        return Err("poisoned".into());
                    }
                    append(&mut tx, &delivery.key, &delivery.body).await
                }
            }
        })
        .build();
    (inbox, is_allowed)
}

/// H9, B19: a poisoned message becomes a dead letter with its reason and holds back its own key only; requeued it comes in its
/// place, discarded the key goes on without it; both are recorded.
#[tokio::test]
async fn h9_a_poisoned_message_holds_its_own_key_until_an_operator_decides() {
    for is_requeued in [true, false] {
        within(async {
            let (orders, billing) = (memory(), memory());
            let (inbox, is_allowed) = poisoned(&billing, "2");
            let server = serve(&inbox).await;
            let outbox = open(&orders, [consumer("billing", server.url()).attempt_count_max(3)]).await;
            let relay = run(outbox.relay());
            let mut poison = None;
            for number in 1..=20 {
                let id = publish(&outbox, &orders, "a", &number.to_string()).await;
                poison = if number == 2 { Some(id) } else { poison };
                publish(&outbox, &orders, "b", &number.to_string()).await;
            }
            let poison = poison.unwrap();
            eventually("b goes on", async || {
                effects(&billing, "b") == format!("1 {}", numbers(3, 18))
                    || effects(&billing, "b") == numbers(1, 20)
                    || {
                        // The same body is poisoned under both keys.
                        stored(&outbox).await.2 == 2
                    }
            })
            .await;
            assert_eq!(effects(&billing, "a"), "1");
            let letters = outbox
                .dead_letters(Some("billing"), synod::Position(0), 10)
                .await
                .unwrap();
            let letter = letters.iter().find(|letter| letter.entry.id == poison).unwrap();
            assert_eq!((letter.failed_count, letter.reason.as_str()), (3, "poisoned"));
            let listed = outbox
                .list(Some("billing"), synod::Position(0), 1000)
                .await
                .unwrap();
            let entry = listed.iter().find(|entry| entry.id == poison).unwrap();
            assert!(
                matches!(entry.states[0].1, EntryState::Dead { failed_count: 3, .. }),
                "{entry:?}"
            );
            // It outlives the relay, and the outbox.
            relay.kill().await;
            drop(outbox);
            let outbox = open(&orders, [consumer("billing", server.url()).attempt_count_max(3)]).await;
            let _relay = run(outbox.relay());
            assert!(
                outbox.requeue(poison, None, "ops", " ").await.is_err(),
                "a reason is asked for"
            );
            is_allowed.store(true, Ordering::SeqCst);
            for letter in letters {
                let id = letter.entry.id;
                let settled = if is_requeued {
                    outbox.requeue(id, None, "ops", "the parser is mended").await
                } else {
                    outbox
                        .discard(id, Some("billing"), "ops", "nobody needs it")
                        .await
                };
                assert_eq!(settled.unwrap(), ["billing"]);
                let again = outbox.discard(id, None, "ops", "twice").await;
                assert!(matches!(again, Err(OutboxError::NotDead { .. })), "{again:?}");
            }
            let expected = if is_requeued {
                numbers(1, 20)
            } else {
                format!("1 {}", numbers(3, 18))
            };
            eventually("both keys are through", async || {
                effects(&billing, "a") == expected && effects(&billing, "b") == expected
            })
            .await;
            eventually("the outbox is empty", async || stored(&outbox).await == (0, 0, 0)).await;
            let records = outbox.records(10).await.unwrap();
            assert_eq!(records.len(), 2);
            assert!(records.iter().all(|record| record.contains("ops")), "{records:?}");
        })
        .await;
    }
}

/// H9, as configured: the key goes on at once; requeued, the letter comes after it, although the mark has passed it.
#[tokio::test]
async fn a_skipped_dead_letter_can_be_requeued_long_after() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let (inbox, is_allowed) = poisoned(&billing, "2");
        let server = serve(&inbox).await;
        let consumer = consumer("billing", server.url())
            .attempt_count_max(2)
            .on_dead_letter(DeadLetterPolicy::Skip);
        let outbox = open(&orders, [consumer]).await;
        let _relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        let poison = publish(&outbox, &orders, "a", "2").await;
        publish(&outbox, &orders, "a", "3").await;
        eventually("the others", async || effects(&billing, "a") == "1 3").await;
        eventually("only the letter is left", async || {
            stored(&outbox).await == (1, 0, 1)
        })
        .await;
        eventually("the inbox knows the mark", async || {
            billing
                .snapshot()
                .unwrap()
                .scan("synod:inbox", "")
                .unwrap()
                .is_empty()
        })
        .await;
        is_allowed.store(true, Ordering::SeqCst);
        outbox.requeue(poison, None, "ops", "mended").await.unwrap();
        eventually("all", async || effects(&billing, "a") == "1 3 2").await;
        eventually("nothing is left", async || stored(&outbox).await == (0, 0, 0)).await;
    })
    .await;
}

/// H14: a message with a time of its own goes out when the database's clock says so, and its key does not wait for it.
#[tokio::test]
async fn h14_a_scheduled_message_waits_for_the_databases_clock() {
    within(async {
        let clock = Arc::new(AtomicU32::new(1_000));
        let orders = RedbOptions::default()
            .clock({
                let clock = clock.clone();
                move || UnixMillis(clock.load(Ordering::SeqCst).into())
            })
            .open_backend(redb::backends::InMemoryBackend::new)
            .unwrap();
        let billing = memory();
        let server = serve(&appending(&billing)).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let _relay = run(outbox.relay());
        let at = |body: &'static str, at| Message::new(TOPIC, "a", body).deliver_at(UnixMillis(at));
        publish_message(&outbox, &orders, at("third", 3_000)).await;
        publish_message(
            &outbox,
            &orders,
            Message::new(TOPIC, "a", "second").delay(Duration::from_secs(1)),
        )
        .await;
        publish_message(&outbox, &orders, at("first", 10)).await;
        eventually("what is due", async || effects(&billing, "a") == "first").await;
        assert_eq!(stored(&outbox).await.1, 2);
        clock.store(2_000, Ordering::SeqCst);
        eventually("what is due", async || effects(&billing, "a") == "first second").await;
        clock.store(60_000, Ordering::SeqCst);
        eventually("all", async || effects(&billing, "a") == "first second third").await;
        eventually("nothing is left", async || stored(&outbox).await == (0, 0, 0)).await;
    })
    .await;
}

/// A handler publishes with its own transaction: the chain is as certain as its parts.
#[tokio::test]
async fn a_handler_may_publish_itself() {
    within(async {
        let (orders, billing, mail) = (memory(), memory(), memory());
        let last = serve(
            &Inbox::builder(&mail)
                .handle("invoice", async |delivery, mut tx| {
                    append(&mut tx, &delivery.key, &delivery.body).await
                })
                .build(),
        )
        .await;
        let invoices = open(&billing, [Consumer::new("mail", last.url()).topic("invoice")]).await;
        let middle = Inbox::builder(&billing)
            .handle(TOPIC, {
                let invoices = invoices.clone();
                move |delivery, mut tx| {
                    let invoices = invoices.clone();
                    async move {
                        invoices
                            .publish(
                                &mut tx,
                                Message::new("invoice", &delivery.key, delivery.body.clone())
                                    .header("of", delivery.id.to_string()),
                            )
                            .await?;
                        // Fails with the message, the first time.
                        if delivery.attempt == 1 {
                            return Err("once more".into());
                        }
                        append(&mut tx, &delivery.key, &delivery.body).await
                    }
                }
            })
            .build();
        let server = serve(&middle).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let _relays = (run(outbox.relay()), run(invoices.relay()));
        for number in 1..=5 {
            publish(&outbox, &orders, "a", &number.to_string()).await;
        }
        eventually("the end of the chain", async || {
            effects(&mail, "a") == numbers(1, 5)
        })
        .await;
        assert_eq!(effects(&billing, "a"), numbers(1, 5));
    })
    .await;
}
