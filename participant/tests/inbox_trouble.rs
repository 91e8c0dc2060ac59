//! What is in a consumer's way and no fault of its messages: they wait, and whoever asks is told why.

mod outbox_support;

use std::time::Duration;

use outbox_support::{
    TOPIC, append, appending, consumer, effects, eventually, memory, open, publish, run, serve, serve_at,
    stored, within,
};
use synod::Position;
use synod::inbox::Inbox;
use synod::outbox::{EntryState, Outbox};
use synod::resource::redb::RedbOptions;
use synod_proto::v1;
use synod_proto::v1::delivery_answer::Answer;
use synod_proto::v1::messages_client::MessagesClient;
use synod_proto::v1::{inbox_frame, relay_frame};
use tokio_stream::wrappers::ReceiverStream;

/// How the first message stands: attempts that failed, and why the last one did or was not made.
async fn first(outbox: &Outbox) -> Option<(u32, String)> {
    let listed = outbox.list(None, Position(0), 1).await.expect("readable");
    match listed.into_iter().next()?.states.into_iter().next()?.1 {
        EntryState::Pending { failed_count, reason } => Some((failed_count, reason)),
        other => panic!("{other:?}"),
    }
}

/// H9: a lock that somebody else holds, a branch in doubt for example, is not the message's fault, whoever wraps the error: at one
/// attempt at most it is no dead letter.
#[tokio::test]
async fn h9_a_lock_that_is_held_elsewhere_makes_no_dead_letter() {
    within(async {
        let orders = memory();
        let billing = RedbOptions::default()
            .lock_timeout(Duration::from_millis(20))
            .open_backend(redb::backends::InMemoryBackend::new)
            .expect("opens");
        let inbox = Inbox::builder(&billing)
            .handle(TOPIC, async |delivery, mut tx| {
                let appended = append(&mut tx, &delivery.key, &delivery.body).await;
                appended.map_err(|error| synod::RetryError::Work {
                    attempt_count: 1,
                    source: error,
                })?;
                Ok(())
            })
            .build();
        let server = serve(&inbox).await;
        let outbox = open(&orders, [consumer("billing", server.url()).attempt_count_max(1)]).await;
        let _relay = run(outbox.relay());
        let mut held = billing.begin_local().unwrap();
        held.get_for_update("effects", "a").await.unwrap();
        publish(&outbox, &orders, "a", "1").await;
        publish(&outbox, &orders, "b", "2").await;
        eventually("it says why", async || {
            first(&outbox)
                .await
                .is_some_and(|(failed_count, reason)| failed_count == 0 && reason.contains("stayed locked"))
        })
        .await;
        eventually("the other key goes on", async || effects(&billing, "b") == "2").await;
        drop(held);
        eventually("its effect", async || effects(&billing, "a") == "1").await;
        eventually("nothing is left", async || stored(&outbox).await == (0, 0, 0)).await;
    })
    .await;
}

/// G5: a message that has no handler shows so, with no attempt that failed; a handler that comes later gets it.
#[tokio::test]
async fn g5_a_message_without_a_handler_says_so() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let server = serve(&Inbox::builder(&billing).build()).await;
        let outbox = open(&orders, [consumer("billing", server.url()).attempt_count_max(1)]).await;
        let _relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        eventually("it says why", async || {
            first(&outbox)
                .await
                .is_some_and(|(failed_count, reason)| failed_count == 0 && reason.contains("no handler"))
        })
        .await;
        let address = server.kill();
        let _server = serve_at(&appending(&billing), address).await;
        eventually("its effect", async || effects(&billing, "a") == "1").await;
        eventually("nothing is left", async || stored(&outbox).await == (0, 0, 0)).await;
    })
    .await;
}

/// A consumer's address that is another one's inbox: what is not for it is refused, and waits for the right address.
#[tokio::test]
async fn an_inbox_takes_only_what_is_for_its_name() {
    within(async {
        let (orders, notifications) = (memory(), memory());
        let inbox = Inbox::builder(&notifications)
            .name("notifications")
            .handle(TOPIC, async |delivery, mut tx| {
                append(&mut tx, &delivery.key, &delivery.body).await
            })
            .build();
        let server = serve(&inbox).await;
        let outbox = open(
            &orders,
            [
                consumer("billing", server.url()),
                consumer("notifications", server.url()),
            ],
        )
        .await;
        let _relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        eventually("it says why", async || {
            let status = outbox.status().await.unwrap();
            let billing = status.consumers.iter().find(|row| row.consumer == "billing");
            billing.is_some_and(|billing| billing.trouble.contains("the inbox of notifications"))
        })
        .await;
        eventually("the right one has it", async || {
            effects(&notifications, "a") == "1"
        })
        .await;
        publish(&outbox, &orders, "a", "2").await;
        eventually("once each", async || effects(&notifications, "a") == "1 2").await;
        assert_eq!(stored(&outbox).await, (2, 0, 0), "both are kept for billing");
    })
    .await;
}

/// An error that cannot even be shown.
#[derive(Debug)]
struct Unspeakable;

impl std::fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("no words")
    }
}

impl std::error::Error for Unspeakable {}

/// H9: what asks a handler's error is the handler's code, too: where it panics, the message has its answer all the same.
#[tokio::test]
async fn h9_an_error_that_panics_is_a_failure_like_others() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let inbox = Inbox::builder(&billing)
            .handle(TOPIC, async |_, _tx| Err(Unspeakable.into()))
            .build();
        let server = serve(&inbox).await;
        let outbox = open(&orders, [consumer("billing", server.url()).attempt_count_max(1)]).await;
        let _relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        eventually("it is dead", async || stored(&outbox).await.2 == 1).await;
        let letters = outbox.dead_letters(None, Position(0), 1).await.unwrap();
        assert_eq!(letters[0].reason, "the handler panicked: no words");
    })
    .await;
}

/// A relay that says what it is told to.
struct Line {
    frames: tokio::sync::mpsc::Sender<v1::RelayFrame>,
    answers: tonic::Streaming<v1::InboxFrame>,
}

impl Line {
    async fn open(url: String) -> Self {
        let (frames, outgoing) = tokio::sync::mpsc::channel(1);
        let mut client = MessagesClient::connect(url).await.expect("connects");
        let hello = v1::RelayHello {
            source: vec![1; 16].into(),
            lineage: None,
            consumer: "billing".to_owned(),
            mark: 1,
        };
        let opening = client.deliver(ReceiverStream::new(outgoing));
        let said = frames.send(v1::RelayFrame {
            frame: Some(relay_frame::Frame::Hello(hello)),
        });
        let (opened, said) = tokio::join!(opening, said);
        said.expect("open");
        let mut line = Self {
            frames,
            answers: opened.expect("taken").into_inner(),
        };
        let welcome = line.next().await;
        assert!(matches!(welcome, inbox_frame::Frame::Welcome(_)));
        line
    }

    async fn say(&self, frame: relay_frame::Frame) {
        let frame = v1::RelayFrame { frame: Some(frame) };
        self.frames.send(frame).await.expect("open");
    }

    async fn next(&mut self) -> inbox_frame::Frame {
        let frame = self.answers.message().await.expect("open").expect("more");
        frame.frame.expect("of a kind")
    }

    async fn answer(&mut self, delivery: v1::MessageDelivery) -> Answer {
        let deliveries = vec![delivery];
        self.say(relay_frame::Frame::Batch(v1::DeliveryBatch { deliveries }))
            .await;
        match self.next().await {
            inbox_frame::Frame::Answers(mut answers) => answers.answers.remove(0).answer.expect("of a kind"),
            other => panic!("{other:?}"),
        }
    }
}

fn delivery(position: u64, id: u8, fence: u64) -> v1::MessageDelivery {
    v1::MessageDelivery {
        id: vec![id; 16].into(),
        position,
        fence,
        attempt: 1,
        topic: TOPIC.to_owned(),
        key: "a".into(),
        body: id.to_string().into(),
        ..v1::MessageDelivery::default()
    }
}

/// G1, H7, H8, T11: what an inbox says of a delivery that it has, of another one in its place, and of one whose predecessor it acknowledged
/// and does not have; none of them takes effect.
#[tokio::test]
async fn what_was_lost_at_either_end_is_named() {
    within(async {
        let billing = memory();
        let server = serve(&appending(&billing)).await;
        let mut line = Line::open(server.url()).await;
        assert!(matches!(line.answer(delivery(1, 1, 1)).await, Answer::Applied(_)));
        assert!(matches!(
            line.answer(delivery(1, 1, 2)).await,
            Answer::Duplicate(_)
        ));
        match line.answer(delivery(1, 2, 3)).await {
            Answer::Failed(text) => assert!(text.contains("position 1 was message"), "{text}"),
            other => panic!("{other:?}"),
        }
        let behind_a_gap = v1::MessageDelivery {
            previous: Some(3),
            ..delivery(4, 4, 4)
        };
        assert_eq!(line.answer(behind_a_gap).await, Answer::Gap(3));
        let behind_the_first = v1::MessageDelivery {
            previous: Some(1),
            ..delivery(5, 5, 5)
        };
        assert!(matches!(line.answer(behind_the_first).await, Answer::Applied(_)));
        assert!(matches!(line.answer(delivery(6, 6, 5)).await, Answer::Stale(_)));
        assert_eq!(effects(&billing, "a"), "1 5");
    })
    .await;
}

/// H16: a mark that rises by more than one local transaction deletes leaves no rows behind until the next one.
#[tokio::test]
async fn h16_a_mark_that_rises_by_much_leaves_no_rows() {
    const COUNT: u64 = 4200;
    within(async {
        let billing = memory();
        let inbox = Inbox::builder(&billing)
            .handle(TOPIC, async |_, _tx| Ok(()))
            .build();
        let server = serve(&inbox).await;
        let mut line = Line::open(server.url()).await;
        for first in (1..=COUNT).step_by(100) {
            let deliveries = (first..first + 100).map(|position| v1::MessageDelivery {
                key: position.to_be_bytes().to_vec().into(),
                ..delivery(position, 1, position)
            });
            let deliveries = deliveries.collect();
            line.say(relay_frame::Frame::Batch(v1::DeliveryBatch { deliveries }))
                .await;
            let mut answered = 0;
            while answered < 100 {
                match line.next().await {
                    inbox_frame::Frame::Answers(answers) => answered += answers.answers.len(),
                    other => panic!("{other:?}"),
                }
            }
        }
        let rows = || billing.snapshot().unwrap().scan("synod:inbox", "").unwrap().len() as u64;
        assert_eq!(rows(), COUNT);
        let mark = COUNT + 1;
        let unsettled = Vec::new();
        line.say(relay_frame::Frame::LowWater(v1::OutboxLowWater {
            mark,
            unsettled,
        }))
        .await;
        assert_eq!(line.next().await, inbox_frame::Frame::LowWaterReached(mark));
        assert_eq!(rows(), 0);
    })
    .await;
}
