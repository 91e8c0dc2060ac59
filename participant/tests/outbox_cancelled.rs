//! A message that an operator takes back before it takes effect: it never does, or it does before its consumer has heard of that, and
//! which of the two is said.

mod outbox_support;
mod redb_support;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use outbox_support::{
    TOPIC, append, appending, consumer, effects, eventually, memory, open, publish, publish_message, run,
    serve, serve_at, stored, within,
};
use redb_support::{formatted, lose_power_if_failed};
use synod::inbox::Inbox;
use synod::outbox::{DeadLetterPolicy, EntryState, Message, Outbox, OutboxError, Place};
use synod::resource::redb::{MemoryDisk as Disk, RedbOptions, RedbResource};
use synod::{MessageId, Position};
use synod_proto::random::Random;
use synod_proto::v1;
use synod_proto::v1::messages_server::{Messages, MessagesServer};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

const NOWHERE: &str = "http://127.0.0.1:1";

/// Where the outbox holds it, and how it stands with each consumer.
async fn standing(outbox: &Outbox, id: MessageId) -> Option<(Position, Vec<(String, EntryState)>)> {
    let entries = outbox.list(None, Position(0), 1000).await.expect("readable");
    let entry = entries.into_iter().find(|entry| entry.id == id)?;
    Some((entry.position, entry.states))
}

async fn cancel(outbox: &Outbox, id: MessageId, consumer: Option<&str>) -> Result<Vec<String>, OutboxError> {
    let place = standing(outbox, id).await.map_or(Position(1), |(place, _)| place);
    outbox
        .cancel(id, Place::Stored(place), consumer, "ops", "the wrong customer")
        .await
}

/// What was said about the last message.
async fn said(outbox: &Outbox) -> String {
    outbox.records(1).await.expect("readable").remove(0)
}

async fn is_empty(outbox: &Outbox) -> bool {
    stored(outbox).await == (0, 0, 0)
}

/// No state of a message outlives it.
fn is_without_leftovers(store: &RedbResource) -> bool {
    let states = [
        "outbox_done",
        "outbox_letter",
        "outbox_failed",
        "outbox_key",
        "outbox_sequence",
    ];
    states.iter().all(|table| {
        let rows = store
            .snapshot()
            .and_then(|rows| rows.scan(&format!("synod:{table}"), ""));
        rows.expect("readable").is_empty()
    })
}

/// J7: cancelled while its consumer is away, a message never takes effect there; its key goes on without it and without a gap, and
/// another consumer gets it.
#[tokio::test]
async fn what_is_cancelled_while_its_consumer_is_away_never_takes_effect() {
    within(async {
        let (orders, billing, mail) = (memory(), memory(), memory());
        let server = serve(&appending(&billing)).await;
        let other = serve(&appending(&mail)).await;
        let address = server.kill();
        let outbox = open(
            &orders,
            [
                consumer("billing", format!("http://{address}")),
                consumer("mail", other.url()),
            ],
        )
        .await;
        let relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        let wrong = publish(&outbox, &orders, "a", "wrong").await;
        publish(&outbox, &orders, "a", "3").await;
        eventually("the other one has all", async || {
            effects(&mail, "a") == "1 wrong 3"
        })
        .await;
        let nameless = outbox
            .cancel(wrong, Place::Stored(Position(2)), None, "ops", " ")
            .await;
        assert!(
            matches!(nameless, Err(OutboxError::Invalid { .. })),
            "{nameless:?}"
        );
        assert_eq!(cancel(&outbox, wrong, None).await.expect("pending"), ["billing"]);
        assert!(said(&outbox).await.contains("ops cancelled message"));
        let cancelled = EntryState::Cancelled {
            reason: String::new(),
        };
        let states = standing(&outbox, wrong).await.expect("is kept").1;
        assert_eq!(states[0], ("billing".to_owned(), cancelled));
        let again = cancel(&outbox, wrong, None)
            .await
            .expect_err("was cancelled")
            .to_string();
        assert!(
            again.contains(
                "it was cancelled for `billing` already; `mail` is done with it: it has got it, or it was"
            ),
            "{again}"
        );
        // It outlives the process.
        relay.kill().await;
        drop(outbox);
        let outbox = open(
            &orders,
            [
                consumer("billing", format!("http://{address}")),
                consumer("mail", other.url()),
            ],
        )
        .await;
        let _relay = run(outbox.relay());
        let _server = serve_at(&appending(&billing), address).await;
        publish(&outbox, &orders, "a", "4").await;
        eventually("the key goes on", async || effects(&billing, "a") == "1 3 4").await;
        eventually("nothing is left", async || is_empty(&outbox).await).await;
        assert!(is_without_leftovers(&orders));
        let said = said(&outbox).await;
        assert!(
            said.contains("consumer billing says that message") && said.ends_with("never takes effect"),
            "{said}"
        );
        let gone = cancel(&outbox, wrong, None)
            .await
            .expect_err("is gone")
            .to_string();
        assert!(gone.contains("the outbox does not hold it there"), "{gone}");
        eventually("the inbox forgets it", async || {
            let rows = billing.snapshot().and_then(|rows| rows.scan("synod:inbox", ""));
            rows.expect("readable").is_empty()
        })
        .await;
    })
    .await;
}

/// A handler that waits for a permit, then fails or appends.
fn gated(
    store: &RedbResource,
    gate: &Arc<Semaphore>,
    fails: &Arc<AtomicBool>,
    started: &Arc<AtomicUsize>,
) -> Inbox {
    let (gate, fails, started) = (gate.clone(), fails.clone(), started.clone());
    let handler = move |delivery: synod::inbox::Delivery, mut tx: synod::inbox::InboxTransaction| {
        let (gate, fails, started) = (gate.clone(), fails.clone(), started.clone());
        async move {
            started.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await?.forget();
            if fails.load(Ordering::SeqCst) {
                return Err("it fails".into());
            }
            append(&mut tx, &delivery.key, &delivery.body).await
        }
    };
    Inbox::builder(store).handle(TOPIC, handler).build()
}

/// A message that is on its way when it is cancelled: applied, and marked as that; or failed, and then it never takes effect, also
/// where that was its last attempt.
#[tokio::test]
async fn one_in_flight_ends_as_applied_or_as_cancelled_and_never_as_both() {
    within(async {
        for does_fail in [false, true] {
            let (orders, billing) = (memory(), memory());
            let gate = Arc::new(Semaphore::new(0));
            let fails = Arc::new(AtomicBool::new(does_fail));
            let started = Arc::new(AtomicUsize::new(0));
            let server = serve(&gated(&billing, &gate, &fails, &started)).await;
            let takes = consumer("billing", server.url()).attempt_count_max(1);
            let outbox = open(&orders, [takes]).await;
            let _relay = run(outbox.relay());
            let wrong = publish(&outbox, &orders, "a", "wrong").await;
            eventually("it is on its way", async || started.load(Ordering::SeqCst) == 1).await;
            assert_eq!(cancel(&outbox, wrong, None).await.expect("pending"), ["billing"]);
            gate.add_permits(1);
            eventually("it is known what became of it", async || is_empty(&outbox).await).await;
            let (effect, ends) = if does_fail {
                ("", "never takes effect")
            } else {
                (
                    "wrong",
                    "took effect before the consumer knew of the cancellation",
                )
            };
            assert_eq!(effects(&billing, "a"), effect);
            assert!(said(&outbox).await.ends_with(ends), "{}", said(&outbox).await);
            assert_eq!(
                started.load(Ordering::SeqCst),
                1,
                "no handler runs for what is cancelled"
            );
            fails.store(false, Ordering::SeqCst);
            gate.add_permits(1);
            publish(&outbox, &orders, "a", "next").await;
            let all = format!("{effect} next");
            eventually("the key goes on", async || effects(&billing, "a") == all.trim()).await;
            eventually("nothing is left", async || is_without_leftovers(&orders)).await;
        }
    })
    .await;
}

/// H7: a message took effect and nobody heard so, since the relay was gone: cancelled then, it is said that it had.
#[tokio::test]
async fn h7_what_took_effect_unheard_is_not_said_to_be_cancelled() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let gate = Arc::new(Semaphore::new(0));
        let started = Arc::new(AtomicUsize::new(0));
        let server = serve(&gated(&billing, &gate, &Arc::default(), &started)).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let relay = run(outbox.relay());
        let message = publish(&outbox, &orders, "a", "1").await;
        eventually("it is on its way", async || started.load(Ordering::SeqCst) == 1).await;
        relay.kill().await;
        gate.add_permits(1);
        eventually("it takes effect unheard", async || effects(&billing, "a") == "1").await;
        assert_eq!(
            cancel(&outbox, message, Some("billing")).await.expect("pending"),
            ["billing"]
        );
        let _relay = run(outbox.relay());
        eventually("it is known what became of it", async || is_empty(&outbox).await).await;
        assert_eq!(effects(&billing, "a"), "1");
        let said = said(&outbox).await;
        assert!(
            said.ends_with("took effect before the consumer knew of the cancellation"),
            "{said}"
        );
    })
    .await;
}

/// G5: a topic without a handler, whose messages never die: what waits of it can be taken back.
#[tokio::test]
async fn g5_a_message_without_a_handler_can_be_taken_back() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let server = serve(&appending(&billing)).await;
        let outbox = open(&orders, [consumer("billing", server.url()).topic("unknown")]).await;
        let _relay = run(outbox.relay());
        let waits = publish_message(&outbox, &orders, Message::new("unknown", "a", "1")).await;
        eventually("it says why it waits", async || {
            let states = standing(&outbox, waits).await.expect("is kept").1;
            matches!(&states[0].1, EntryState::Pending { reason, .. } if reason.contains("no handler"))
        })
        .await;
        assert_eq!(cancel(&outbox, waits, None).await.expect("pending"), ["billing"]);
        eventually("nothing is left", async || {
            is_empty(&outbox).await && is_without_leftovers(&orders)
        })
        .await;
        assert!(said(&outbox).await.ends_with("never takes effect"));
    })
    .await;
}

/// H9: behind a dead letter that holds its key, and beside one that does not: the cancelled one goes in its turn, and the dead one is
/// discarded, not cancelled.
#[tokio::test]
async fn h9_behind_a_dead_letter_it_keeps_its_turn() {
    within(async {
        for policy in [DeadLetterPolicy::HoldKey, DeadLetterPolicy::Skip] {
            let (orders, billing) = (memory(), memory());
            let inbox = Inbox::builder(&billing).handle(TOPIC, async |delivery, mut tx| {
                if delivery.body == "poison" {
                    return Err("poisoned".into());
                }
                append(&mut tx, &delivery.key, &delivery.body).await
            });
            let server = serve(&inbox.build()).await;
            let takes = consumer("billing", server.url())
                .attempt_count_max(1)
                .on_dead_letter(policy);
            let outbox = open(&orders, [takes]).await;
            let relay = run(outbox.relay());
            let dead = publish(&outbox, &orders, "a", "poison").await;
            eventually("it is dead", async || stored(&outbox).await.2 == 1).await;
            relay.kill().await;
            let wrong = publish(&outbox, &orders, "a", "wrong").await;
            publish(&outbox, &orders, "a", "3").await;
            let refused = cancel(&outbox, dead, None)
                .await
                .expect_err("is dead")
                .to_string();
            assert!(
                refused.contains("it is a dead letter of `billing`: discard it"),
                "{refused}"
            );
            assert_eq!(cancel(&outbox, wrong, None).await.expect("pending"), ["billing"]);
            let requeued = outbox.requeue(wrong, None, "ops", "is not dead").await;
            assert!(
                matches!(requeued, Err(OutboxError::NotDead { .. })),
                "{requeued:?}"
            );
            let _relay = run(outbox.relay());
            if policy == DeadLetterPolicy::Skip {
                eventually("the others go on", async || effects(&billing, "a") == "3").await;
            }
            outbox.discard(dead, None, "ops", "poison").await.expect("dead");
            eventually("the others go on", async || effects(&billing, "a") == "3").await;
            eventually("nothing is left", async || {
                is_empty(&outbox).await && is_without_leftovers(&orders)
            })
            .await;
        }
    })
    .await;
}

/// What became of each message, by the records: whether it took effect before its consumer knew of the cancellation.
async fn verdicts(outbox: &Outbox) -> BTreeMap<MessageId, Vec<bool>> {
    let mut found: BTreeMap<MessageId, Vec<bool>> = BTreeMap::new();
    for record in outbox.records(10_000).await.expect("readable") {
        let Some((_, told)) = record.split_once(" says that message ") else {
            continue;
        };
        let (id, told) = told.split_once(' ').expect("goes on");
        let id = id.parse().expect("an id");
        let has_effect = told.ends_with("took effect before the consumer knew of the cancellation");
        assert!(has_effect || told.ends_with("never takes effect"), "{record}");
        found.entry(id).or_default().push(has_effect);
    }
    found
}

fn below(random: &mut Random, count: usize) -> usize {
    usize::try_from(random.between(0, count as u64 - 1)).expect("small")
}

/// H7, H10, J7: messages are cancelled while handlers fail and dawdle, relays are killed, and the consumer is killed and comes back.
/// Each cancelled one has one verdict, and that is what happened; the others take effect once, each key in its order.
#[tokio::test]
async fn whatever_breaks_each_cancelled_message_has_one_verdict() {
    const KEYS: [&str; 4] = ["a", "b", "c", "d"];
    for seed in 1..=6u64 {
        within(async {
            let mut random = Random::new(seed);
            let (orders, billing) = (memory(), memory());
            let tried = Arc::new(AtomicUsize::new(0));
            let handler = move |delivery: synod::inbox::Delivery, mut tx: synod::inbox::InboxTransaction| {
                let number = tried.fetch_add(1, Ordering::SeqCst);
                async move {
                    tokio::time::sleep(Duration::from_millis(number as u64 % 4)).await;
                    if number.is_multiple_of(3) {
                        return Err("not now".into());
                    }
                    append(&mut tx, &delivery.key, &delivery.body).await
                }
            };
            let inbox = Inbox::builder(&billing).handle(TOPIC, handler).build();
            let address = serve(&inbox).await.kill();
            let takes = consumer("billing", format!("http://{address}")).attempt_count_max(1000);
            let outbox = open(&orders, [takes]).await;
            let mut relays = vec![run(outbox.relay())];
            let mut sent = Vec::new();
            let mut cancelled = BTreeSet::new();
            // While nobody answers there, and nobody has before.
            for (number, key) in KEYS.iter().chain(&KEYS).enumerate() {
                let id = publish(&outbox, &orders, key, &number.to_string()).await;
                sent.push((id, *key, number.to_string()));
                if number >= KEYS.len() {
                    assert_eq!(cancel(&outbox, id, None).await.expect("pending"), ["billing"]);
                    cancelled.insert(id);
                }
            }
            let in_time = cancelled.clone();
            let mut server = Some(serve_at(&inbox, address).await);
            for number in sent.len()..120 {
                let key = KEYS[below(&mut random, KEYS.len())];
                let id = publish(&outbox, &orders, key, &number.to_string()).await;
                sent.push((id, key, number.to_string()));
                match random.between(0, 11) {
                    0 => relays.clear(),
                    1..=3 => relays.push(run(outbox.relay())),
                    4 => drop(server.take()),
                    5 | 6 if server.is_none() => server = Some(serve_at(&inbox, address).await),
                    _ => {}
                }
                relays.truncate(2);
                if random.between(0, 1) == 0 {
                    let back = below(&mut random, sent.len().min(12));
                    let (id, _, _) = sent[sent.len() - 1 - back];
                    match cancel(&outbox, id, None).await {
                        Ok(_) => assert!(cancelled.insert(id), "cancelled twice"),
                        Err(OutboxError::NotPending { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            relays.push(run(outbox.relay()));
            if server.is_none() {
                server = Some(serve_at(&inbox, address).await);
            }
            eventually("all is through", async || is_empty(&outbox).await).await;
            assert!(is_without_leftovers(&orders), "seed {seed}");
            let verdicts = verdicts(&outbox).await;
            let judged: BTreeSet<_> = verdicts.keys().copied().collect();
            assert_eq!(judged, cancelled, "seed {seed}");
            let has_effect = |id: &MessageId| match verdicts.get(id).map(Vec::as_slice) {
                None => true,
                Some([verdict]) => *verdict,
                Some(several) => panic!("seed {seed}: {id} has several verdicts: {several:?}"),
            };
            for key in KEYS {
                let of_key = sent.iter().filter(|(id, of, _)| *of == key && has_effect(id));
                let expected: Vec<_> = of_key.map(|(_, _, body)| body.as_str()).collect();
                assert_eq!(effects(&billing, key), expected.join(" "), "seed {seed}, {key}");
            }
            for id in &in_time {
                assert!(
                    !has_effect(id),
                    "seed {seed}: {id} was cancelled before it was ever sent"
                );
            }
            drop(server);
        })
        .await;
    }
}

/// An inbox of an older version, which would apply a message whatever is said of its being cancelled.
struct OldInbox {
    deliveries: Arc<Mutex<Vec<v1::MessageDelivery>>>,
}

#[tonic::async_trait]
impl Messages for OldInbox {
    type DeliverStream = Pin<Box<dyn Stream<Item = Result<v1::InboxFrame, Status>> + Send>>;

    async fn deliver(
        &self,
        request: Request<Streaming<v1::RelayFrame>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        use v1::inbox_frame::Frame;
        let mut incoming = request.into_inner();
        let (answers, outgoing) = mpsc::channel(16);
        let told = |frame| Ok(v1::InboxFrame { frame: Some(frame) });
        let welcome = v1::InboxWelcome {
            resource: vec![9; 16].into(),
            ..v1::InboxWelcome::default()
        };
        answers.send(told(Frame::Welcome(welcome))).await.expect("open");
        let deliveries = self.deliveries.clone();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = incoming.message().await {
                let Some(v1::relay_frame::Frame::Batch(batch)) = frame.frame else {
                    continue;
                };
                let applied = |delivery: &v1::MessageDelivery| v1::DeliveryAnswer {
                    position: delivery.position,
                    fence: delivery.fence,
                    answer: Some(v1::delivery_answer::Answer::Applied(v1::Nothing {})),
                };
                let said = batch.deliveries.iter().map(applied).collect();
                deliveries.lock().expect("whole").extend(batch.deliveries);
                let said = v1::DeliveryAnswers { answers: said };
                let _ = answers.send(told(Frame::Answers(said))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// J9: a consumer of an older version does not know what a cancelled message is: it is not sent there, it is said why it waits, and
/// other keys go on.
#[tokio::test]
async fn j9_an_older_consumer_is_not_sent_what_was_cancelled() {
    within(async {
        let orders = memory();
        let deliveries = Arc::default();
        let old = OldInbox {
            deliveries: Arc::clone(&deliveries),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let server = tonic::transport::Server::builder().add_service(MessagesServer::new(old));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let outbox = open(&orders, [consumer("old", url)]).await;
        let wrong = publish(&outbox, &orders, "a", "wrong").await;
        publish(&outbox, &orders, "b", "right").await;
        assert_eq!(cancel(&outbox, wrong, None).await.expect("pending"), ["old"]);
        let _relay = run(outbox.relay());
        eventually("it says why it waits", async || {
            let states = standing(&outbox, wrong).await.expect("is kept").1;
            matches!(&states[0].1, EntryState::Cancelled { reason } if reason.contains("update the consumer"))
        })
        .await;
        eventually("the other is delivered", async || {
            !deliveries.lock().expect("whole").is_empty()
        })
        .await;
        let bodies: Vec<_> = deliveries
            .lock()
            .expect("whole")
            .iter()
            .map(|delivery| delivery.body.clone())
            .collect();
        assert_eq!(bodies, ["right"]);
    })
    .await;
}

fn open_store(disk: &Disk) -> Option<RedbResource> {
    let disk = disk.clone();
    RedbOptions::default().open_backend(move || disk.backend()).ok()
}

/// F2, J7: at every operation of the sender's disk while a message is cancelled and its consumer confirms: it is pending or
/// cancelled, a cancellation that was answered is there for good, and what is cancelled never takes effect.
#[tokio::test]
async fn power_loss_at_every_operation_while_a_message_is_cancelled() {
    let mut operation = 1;
    while within(cancelling(operation)).await {
        operation += 1;
    }
    assert!(
        operation > 6,
        "the script is shorter than it should be: {operation}"
    );
}

/// Whether the disk got as far as the operation.
async fn cancelling(operation: u64) -> bool {
    let (disk, billing) = (formatted(), memory());
    let server = serve(&appending(&billing)).await;
    let takes = || consumer("billing", server.url());
    let wrong = {
        let store = open_store(&disk).expect("opens");
        let outbox = open(&store, [consumer("billing", NOWHERE.to_owned())]).await;
        let wrong = publish(&outbox, &store, "a", "wrong").await;
        publish(&outbox, &store, "a", "2").await;
        drop(outbox);
        store.close().await.expect("closes");
        wrong
    };
    let mut is_cancelled = false;
    if let Some(store) = open_store(&disk) {
        disk.fail_from(disk.operation_count() + operation);
        if let Ok(outbox) = Outbox::builder(&store).consumer(takes()).open().await {
            let told = outbox
                .cancel(wrong, Place::Stored(Position(1)), None, "ops", "wrong")
                .await;
            is_cancelled = told.is_ok();
            if is_cancelled {
                let _relay = run(outbox.relay());
                let is_through = async || outbox.status().await.is_ok_and(|seen| seen.stored_count == 0);
                while !disk.has_failed() && !is_through().await {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        let _ = store.close().await;
    }
    let has_failed = lose_power_if_failed(&disk, operation);
    let store = open_store(&disk).expect("opens");
    let outbox = open(&store, [takes()]).await;
    let context = format!("operation {operation}, told: {is_cancelled}");
    let was_cancelled = match standing(&outbox, wrong).await {
        Some((_, states)) => matches!(states[0].1, EntryState::Cancelled { .. } | EntryState::Delivered),
        None => true,
    };
    assert!(was_cancelled || !is_cancelled, "{context}");
    let _relay = run(outbox.relay());
    eventually("all is through", async || is_empty(&outbox).await).await;
    let expected = if was_cancelled { "2" } else { "wrong 2" };
    assert_eq!(effects(&billing, "a"), expected, "{context}");
    assert!(is_without_leftovers(&store), "{context}");
    has_failed
}
