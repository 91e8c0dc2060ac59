//! Outbox and inbox on disks that lose power at every single operation, one after the other: publishing, marking, deduplicating.

mod outbox_support;
mod redb_support;

use std::time::Duration;

use outbox_support::{appending, consumer, effects, open, run, serve};
use redb_support::{branch, context, formatted, lose_power_if_failed, within};
use synod::outbox::{Message, Outbox};
use synod::resource::redb::{MemoryDisk as Disk, PowerLoss, RedbResource};
use synod::resource::{Effect, ResourceError, ResourceManager};
use synod::{BoxError, Position};

fn options() -> synod::resource::redb::RedbOptions {
    redb_support::options().lock_timeout(Duration::from_millis(50))
}

fn open_store(disk: &Disk) -> Result<RedbResource, ResourceError> {
    let disk = disk.clone();
    options().open_backend(move || disk.backend())
}

/// How far the script came, as its caller was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    First,
    Prepared,
    Committed,
    Third,
}

async fn publish(outbox: &Outbox, store: &RedbResource, body: &str) -> Result<(), BoxError> {
    let mut tx = store.begin_local()?;
    tx.put("orders", body, body).await?;
    outbox
        .publish(&mut tx, Message::new(outbox_support::TOPIC, "a", body.to_owned()))
        .await?;
    tx.commit().await?;
    Ok(())
}

/// One message in a local transaction, one in a branch, one more.
async fn script(store: &RedbResource, url: &str, told: &mut Told) -> Result<(), BoxError> {
    store.identity(Some(redb_support::LINEAGE)).await?;
    let outbox = Outbox::builder(store)
        .consumer(consumer("billing", url.to_owned()))
        .open()
        .await?;
    publish(&outbox, store, "1").await?;
    *told = Told::First;
    let second = context(branch(1));
    let mut tx = store.begin(&second).await?;
    tx.put("orders", "2", "2").await?;
    outbox
        .publish(&mut tx, Message::new(outbox_support::TOPIC, "a", "2"))
        .await?;
    store.prepare(&second, tx).await?;
    *told = Told::Prepared;
    store.commit(&second.branch).await?;
    *told = Told::Committed;
    publish(&outbox, store, "3").await?;
    *told = Told::Third;
    Ok(())
}

/// H11, F2, F4, B12: at every operation of the sender's disk: the messages that are there are those of the rows that are there, in their
/// order, each under its own position; what was acknowledged is there.
#[tokio::test]
async fn power_loss_at_every_operation_while_publishing() {
    let url = "http://127.0.0.1:1";
    let count = {
        let disk = formatted();
        let before = disk.operation_count();
        let store = open_store(&disk).unwrap();
        within(script(&store, url, &mut Told::Nothing)).await.unwrap();
        drop(store);
        disk.operation_count() - before
    };
    assert!(count > 40, "{count}");
    for operation in 1..=count {
        for power_loss in [PowerLoss::Lost, PowerLoss::Kept, PowerLoss::Torn(operation)] {
            within(publishing(url, operation, power_loss)).await;
        }
    }
}

async fn publishing(url: &str, operation: u64, power_loss: PowerLoss) {
    let disk = formatted();
    disk.fail_from(disk.operation_count() + operation);
    let mut told = Told::Nothing;
    if let Ok(store) = open_store(&disk) {
        let _ = script(&store, url, &mut told).await;
    }
    disk.lose_power(power_loss);
    let store = open_store(&disk).unwrap();
    for in_doubt in store.in_doubt().await.unwrap() {
        assert_eq!(
            store.commit(&in_doubt.context.branch).await.unwrap(),
            Effect::Applied
        );
    }
    let outbox = open(&store, [consumer("billing", url.to_owned())]).await;
    let listed = outbox.list(None, Position(0), 100).await.unwrap();
    let rows = store.snapshot().unwrap().scan("orders", "").unwrap();
    let context = format!("operation {operation}, {power_loss:?}, told {told:?}: {listed:?}");
    assert_eq!(listed.len(), rows.len(), "{context}");
    let expected_count_min = match told {
        Told::Nothing => 0,
        Told::First => 1,
        Told::Prepared | Told::Committed => 2,
        Told::Third => 3,
    };
    assert!(listed.len() >= expected_count_min, "{context}");
    assert!(
        listed.windows(2).all(|pair| pair[0].sequence < pair[1].sequence),
        "{context}"
    );
    let keys = store.snapshot().unwrap().scan("synod:outbox_key", "").unwrap();
    assert_eq!(keys.len(), rows.len(), "{context}");
    publish(&outbox, &store, "9").await.unwrap();
}

/// H7, H8, F5: at every operation of the sender's disk while a relay marks, and of the consumer's disk while its inbox deduplicates and
/// forgets: after everybody was started again, each message has taken effect once and in order, and nothing is left of it.
#[tokio::test]
async fn power_loss_at_every_operation_while_delivering() {
    for is_consumer in [false, true] {
        let mut operation = 1;
        loop {
            let has_failed = tokio::time::timeout(Duration::from_secs(30), delivery(is_consumer, operation))
                .await
                .unwrap_or_else(|_| panic!("consumer {is_consumer}, operation {operation}: never delivered"));
            if !has_failed {
                break;
            }
            operation += 1;
        }
        assert!(
            operation > 10,
            "the script is shorter than it should be: {operation}"
        );
    }
}

/// Whether the disk got as far as the operation.
async fn delivery(is_consumer: bool, operation: u64) -> bool {
    let disks = [formatted(), formatted()];
    let disk = &disks[usize::from(is_consumer)];
    let expected = ["1", "2", "3"];
    {
        let orders = open_store(&disks[0]).unwrap();
        let billing = open_store(&disks[1]).unwrap();
        let server = serve(&appending(&billing)).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        for body in expected {
            publish(&outbox, &orders, body).await.unwrap();
        }
        disk.fail_from(disk.operation_count() + operation);
        let relay = run(outbox.relay());
        let is_done = async || {
            let is_forgotten = billing
                .snapshot()
                .is_ok_and(|snapshot| snapshot.scan("synod:inbox", "").is_ok_and(|rows| rows.is_empty()));
            let status = outbox.status().await;
            is_forgotten
                && status.is_ok_and(|status| status.stored_count == 0)
                && effects(&billing, "a") == "1 2 3"
        };
        while !disk.has_failed() && !is_done().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        relay.kill().await;
        server.kill();
        // Both processes are gone: nothing of theirs writes any more.
        for store in [orders, billing] {
            let _ = store.close().await;
        }
    }
    let has_failed = lose_power_if_failed(disk, operation);
    let orders = open_store(&disks[0]).unwrap();
    let billing = open_store(&disks[1]).unwrap();
    let server = serve(&appending(&billing)).await;
    let outbox = open(&orders, [consumer("billing", server.url())]).await;
    let _relay = run(outbox.relay());
    loop {
        let status = outbox.status().await.unwrap();
        if status.stored_count == 0 && effects(&billing, "a") == "1 2 3" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    has_failed
}
