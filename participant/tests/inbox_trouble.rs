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
