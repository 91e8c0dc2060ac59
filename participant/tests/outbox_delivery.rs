//! Messages from an outbox to inboxes over real loopback gRPC: order, fan-out, consumers that fail or are away.

mod outbox_support;

use outbox_support::{
    appending, consumer, effects, eventually, memory, open, publish, run, serve, stored, within,
};

/// publish -> relay -> inbox -> effect; and when the consumer has confirmed it, nothing of it is left in the outbox.
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
        let expected = |from: u32| {
            (from..from + 20)
                .map(|n| n.to_string())
                .collect::<Vec<_>>()
                .join(" ")
        };
        eventually("all effects", async || {
            effects(&billing, "a") == expected(1) && effects(&billing, "b") == expected(101)
        })
        .await;
        eventually("the outbox is empty", async || stored(&outbox).await == (0, 0, 0)).await;
    })
    .await;
}
