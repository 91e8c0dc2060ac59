//! Who may deliver to whom, and what an operator's service answers.

mod outbox_support;
mod redb_support;

use outbox_support::{
    appending, consumer, effects, eventually, memory, open, publish, run, serve, serve_at, stored, within,
};
use redb_support::LINEAGE;
use synod::inbox::Inbox;
use synod::outbox::Outbox;
use synod::resource::ResourceManager;
use synod::{Lineage, Position};
use synod_proto::v1;
use synod_proto::v1::messages_client::MessagesClient;
use synod_proto::v1::outbox_admin_client::OutboxAdminClient;

/// T11: a staging copy of a service does not take the messages of production.
#[tokio::test]
async fn t11_an_outbox_of_another_coordinator_is_refused() {
    within(async {
        let (orders, billing) = (redb_support::bound(memory()).await, memory());
        billing.identity(Some(Lineage([9; 16]))).await.unwrap();
        let server = serve(&appending(&billing)).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let _relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        eventually("it says why", async || {
            let status = outbox.status().await.unwrap();
            status.consumers[0].trouble.contains(&LINEAGE.to_string())
        })
        .await;
        assert_eq!(
            (effects(&billing, "a"), stored(&outbox).await.0),
            (String::new(), 1)
        );
    })
    .await;
}

/// T11: another database that answers at a consumer's address, or one that lost what it confirmed, is not taken for it until an
/// operator says so.
#[tokio::test]
async fn a_consumer_with_another_database_is_left_alone_until_it_is_readmitted() {
    within(async {
        let (orders, billing, other) = (memory(), memory(), memory());
        let server = serve(&appending(&billing)).await;
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let _relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "1").await;
        eventually("the first one", async || effects(&billing, "a") == "1").await;
        let address = server.kill();
        let _server = serve_at(&appending(&other), address).await;
        publish(&outbox, &orders, "a", "2").await;
        eventually("it says why", async || {
            let status = outbox.status().await.unwrap();
            status.consumers[0].trouble.contains("readmit")
        })
        .await;
        assert_eq!(effects(&other, "a"), "");
        outbox
            .readmit("billing", "ops", "replaced by an empty one")
            .await
            .unwrap();
        eventually("the new one gets what is left", async || {
            effects(&other, "a") == "2"
        })
        .await;
    })
    .await;
}

/// An outbox that was restored from a backup gives its positions again: the inbox that knows better refuses it.
#[tokio::test]
async fn an_outbox_that_lost_its_memory_is_refused() {
    within(async {
        let folder = tempfile::tempdir().unwrap();
        let (path, backup) = (
            folder.path().join("orders.redb"),
            folder.path().join("backup.redb"),
        );
        let billing = memory();
        let server = serve(&appending(&billing)).await;
        {
            let orders = synod::resource::redb::RedbResource::open(&path).unwrap();
            drop(open(&orders, [consumer("billing", server.url())]).await);
            orders.close().await.unwrap();
        }
        std::fs::copy(&path, &backup).unwrap();
        {
            let orders = synod::resource::redb::RedbResource::open(&path).unwrap();
            let outbox = open(&orders, [consumer("billing", server.url())]).await;
            let relay = run(outbox.relay());
            publish(&outbox, &orders, "a", "1").await;
            eventually("the inbox knows the mark", async || {
                effects(&billing, "a") == "1"
                    && billing
                        .snapshot()
                        .unwrap()
                        .scan("synod:inbox", "")
                        .unwrap()
                        .is_empty()
            })
            .await;
            relay.kill().await;
        }
        let orders = synod::resource::redb::RedbResource::open(&backup).unwrap();
        let outbox = open(&orders, [consumer("billing", server.url())]).await;
        let _relay = run(outbox.relay());
        publish(&outbox, &orders, "a", "another first").await;
        eventually("it says why", async || {
            outbox.status().await.unwrap().consumers[0]
                .trouble
                .contains("has lost data")
        })
        .await;
        assert_eq!(effects(&billing, "a"), "1");
    })
    .await;
}

/// What is no hello, too long, or of no known kind ends its stream with a reason, and nobody else's.
#[tokio::test]
async fn malformed_frames_are_refused() {
    within(async {
        let billing = memory();
        let server = serve(&Inbox::builder(&billing).build()).await;
        let mut client = MessagesClient::connect(server.url()).await.unwrap();
        let hello = |consumer: String| v1::RelayFrame {
            frame: Some(v1::relay_frame::Frame::Hello(v1::RelayHello {
                source: vec![1; 16].into(),
                lineage: None,
                consumer,
                mark: 1,
            })),
        };
        let batch = |topic: String| v1::RelayFrame {
            frame: Some(v1::relay_frame::Frame::Batch(v1::DeliveryBatch {
                deliveries: vec![v1::MessageDelivery {
                    id: vec![1; 16].into(),
                    position: 1,
                    topic,
                    ..v1::MessageDelivery::default()
                }],
            })),
        };
        for frames in [
            vec![v1::RelayFrame { frame: None }],
            vec![batch("t".to_owned())],
            vec![hello(String::new())],
            vec![hello("c".repeat(200))],
            vec![hello("c".to_owned()), hello("c".to_owned())],
            vec![hello("c".to_owned()), batch("t".repeat(200))],
        ] {
            let shown = format!("{frames:?}");
            let refused = match client.deliver(tokio_stream::iter(frames)).await {
                Err(status) => status,
                Ok(response) => {
                    let mut answers = response.into_inner();
                    loop {
                        match answers.message().await {
                            Ok(Some(_)) => {}
                            Ok(None) => panic!("{shown} was taken"),
                            Err(status) => break status,
                        }
                    }
                }
            };
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{shown}: {refused}");
        }
    })
    .await;
}

async fn admin_client(outbox: &Outbox) -> OutboxAdminClient<tonic::transport::Channel> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let admin = tonic::transport::Server::builder()
        .add_service(outbox.admin_server())
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    tokio::spawn(admin);
    OutboxAdminClient::connect(format!("http://{address}"))
        .await
        .unwrap()
}

/// A name that no consumer and no topic can have is refused, whatever is asked.
#[tokio::test]
async fn operators_names_have_a_limit() {
    within(async {
        let orders = memory();
        let outbox = open(&orders, [consumer("billing", "http://127.0.0.1:1".to_owned())]).await;
        let mut client = admin_client(&outbox).await;
        let long = || "n".repeat(129);
        let (id, by) = (vec![7; 16], "ops".to_owned());
        let settle = v1::OutboxSettleRequest {
            id: id.clone().into(),
            consumer: long(),
            author: by.clone(),
            reason: by.clone(),
        };
        let requeue_all = |consumer: String, topic: String| v1::OutboxRequeueAllRequest {
            consumer,
            topic,
            author: by.clone(),
            reason: by.clone(),
        };
        let list = v1::OutboxListRequest {
            consumer: long(),
            ..v1::OutboxListRequest::default()
        };
        let dead = v1::OutboxDeadRequest {
            consumer: long(),
            ..v1::OutboxDeadRequest::default()
        };
        let cancel = v1::OutboxCancelRequest {
            id: id.into(),
            consumer: long(),
            author: by.clone(),
            reason: by.clone(),
            position: Some(1),
            ..v1::OutboxCancelRequest::default()
        };
        let readmit = v1::OutboxReadmitRequest {
            consumer: long(),
            author: by.clone(),
            reason: by.clone(),
        };
        let unsubscribe = |consumer: String, topic: String| v1::OutboxUnsubscribeRequest {
            consumer,
            topic,
            author: by.clone(),
            reason: by.clone(),
        };
        let count = |consumer: String, topic: String| v1::OutboxUndeliveredCountRequest { consumer, topic };
        let billing = || "billing".to_owned();
        let told = [
            client.list(list).await.map(|_| ()),
            client.dead(dead).await.map(|_| ()),
            client.requeue(settle.clone()).await.map(|_| ()),
            client.discard(settle).await.map(|_| ()),
            client
                .requeue_all(requeue_all(long(), String::new()))
                .await
                .map(|_| ()),
            client
                .requeue_all(requeue_all(billing(), long()))
                .await
                .map(|_| ()),
            client.cancel(cancel).await.map(|_| ()),
            client.readmit(readmit).await.map(|_| ()),
            client
                .unsubscribe(unsubscribe(long(), String::new()))
                .await
                .map(|_| ()),
            client
                .unsubscribe(unsubscribe(billing(), long()))
                .await
                .map(|_| ()),
            client
                .undelivered_count(count(long(), String::new()))
                .await
                .map(|_| ()),
            client
                .undelivered_count(count(billing(), long()))
                .await
                .map(|_| ()),
        ];
        for (number, told) in told.into_iter().enumerate() {
            let refused = told.expect_err("is too long");
            assert_eq!(
                refused.code(),
                tonic::Code::InvalidArgument,
                "{number}: {refused}"
            );
            assert!(
                refused.message().contains("has at most 128 bytes"),
                "{number}: {refused}"
            );
        }
    })
    .await;
}

/// The operator's service: status, list, dead letters, requeue and discard, with what was done and by whom.
#[tokio::test]
async fn operators_see_and_settle_dead_letters() {
    within(async {
        let (orders, billing) = (memory(), memory());
        let failing = Inbox::builder(&billing)
            .handle(outbox_support::TOPIC, async |_, _tx| Err("never".into()))
            .build();
        let server = serve(&failing).await;
        let outbox = open(&orders, [consumer("billing", server.url()).attempt_count_max(2)]).await;
        let _relay = run(outbox.relay());
        let mut client = admin_client(&outbox).await;
        let ids = [
            publish(&outbox, &orders, "a", "1").await,
            publish(&outbox, &orders, "b", "2").await,
        ];
        eventually("both are dead", async || stored(&outbox).await.2 == 2).await;
        let status = client
            .status(v1::OutboxStatusRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!((status.stored_count, status.consumers[0].dead_count), (2, 2));
        assert_eq!(&status.source[..], outbox.source().0);
        let dead = client
            .dead(v1::OutboxDeadRequest::default())
            .await
            .unwrap()
            .into_inner()
            .letters;
        let shown: Vec<_> = dead
            .iter()
            .map(|letter| {
                (
                    letter.consumer.as_str(),
                    letter.attempt_count,
                    letter.reason.as_str(),
                )
            })
            .collect();
        assert_eq!(shown, [("billing", 2, "never"); 2]);
        let request = |id: &synod::MessageId, reason: &str| v1::OutboxSettleRequest {
            id: id.0.to_vec().into(),
            consumer: String::new(),
            author: "ops".to_owned(),
            reason: reason.to_owned(),
        };
        let nameless = client.discard(request(&ids[0], "")).await.unwrap_err();
        assert_eq!(nameless.code(), tonic::Code::InvalidArgument);
        let discarded = client
            .discard(request(&ids[0], "a test order"))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(discarded.consumers, ["billing"]);
        let unknown = client.requeue(request(&ids[0], "too late")).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
        client.requeue(request(&ids[1], "once more")).await.unwrap();
        eventually("it died again, and the other one is gone", async || {
            stored(&outbox).await == (1, 0, 1)
        })
        .await;
        let page = client
            .list(v1::OutboxListRequest {
                count_max: 1,
                ..v1::OutboxListRequest::default()
            })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (page.entries[0].states[0].state.as_str(), page.next_after),
            ("dead", Some(2))
        );
        let records = outbox.records(10).await.unwrap();
        assert!(
            records[0].contains("requeued") && records[1].contains("a test order"),
            "{records:?}"
        );
        let mut pages = Vec::new();
        let mut before = None;
        loop {
            let request = v1::OutboxRecordsRequest { before, count_max: 1 };
            let mut page = client.records(request).await.unwrap().into_inner();
            before = page.next_before;
            pages.extend(page.records.pop());
            assert_eq!(page.records, [], "one at a time");
            if before.is_none() {
                break;
            }
        }
        let whole = pages.iter().map(|record| {
            let v1::OutboxRecord {
                recorded_at_unix_ms,
                text,
                ..
            } = record;
            format!("{recorded_at_unix_ms} ms: {text}")
        });
        assert_eq!(whole.collect::<Vec<_>>(), records);
        let numbers: Vec<_> = pages.iter().map(|record| record.number).collect();
        assert_eq!(numbers, [2, 1]);
        let all = client.records(v1::OutboxRecordsRequest::default()).await.unwrap();
        assert_eq!(all.into_inner().records, pages);
        assert_eq!(outbox.list(None, Position(2), 10).await.unwrap(), []);
    })
    .await;
}

/// T11: a consumer whose database was put back from a backup, while the mark stood still: what was delivered since is gone there and
/// will not come again, so it is not taken for its later self until an operator says so. Then its keys go on.
#[tokio::test]
async fn a_consumer_put_back_under_the_same_mark_is_noticed() {
    within(async {
        let folder = tempfile::tempdir().unwrap();
        let [path, backup] = ["billing.redb", "backup.redb"].map(|name| folder.path().join(name));
        let orders = memory();
        // A message that is not taken holds the mark where it is.
        let stuck = |url: String| consumer("billing", url).topic("no handler");
        let billing = synod::resource::redb::RedbResource::open(&path).unwrap();
        let server = serve(&appending(&billing)).await;
        let outbox = open(&orders, [stuck(server.url())]).await;
        let relay = run(outbox.relay());
        let message = synod::outbox::Message::new("no handler", "z", "");
        outbox_support::publish_message(&outbox, &orders, message).await;
        publish(&outbox, &orders, "a", "1").await;
        eventually("the first one", async || effects(&billing, "a") == "1").await;
        let address = server.kill();
        billing.close().await.unwrap();
        std::fs::copy(&path, &backup).unwrap();

        let billing = synod::resource::redb::RedbResource::open(&path).unwrap();
        let server = serve_at(&appending(&billing), address).await;
        publish(&outbox, &orders, "a", "2").await;
        eventually("its answer is written", async || {
            let listed = outbox.list(None, Position(2), 10).await.unwrap();
            listed
                .iter()
                .all(|entry| entry.states[0].1 == synod::outbox::EntryState::Delivered)
                && effects(&billing, "a") == "1 2"
        })
        .await;
        let address = server.kill();
        drop(billing);

        let billing = synod::resource::redb::RedbResource::open(&backup).unwrap();
        let _server = serve_at(&appending(&billing), address).await;
        publish(&outbox, &orders, "a", "3").await;
        eventually("it says why", async || {
            let status = outbox.status().await.unwrap();
            status.consumers[0]
                .trouble
                .contains("has lost messages: it acknowledged position 3")
        })
        .await;
        assert_eq!(effects(&billing, "a"), "1");
        let nameless = outbox.readmit("billing", "", "restored").await;
        assert!(nameless.is_err());
        outbox
            .readmit("billing", "ops", "restored; 2 was entered by hand")
            .await
            .unwrap();
        eventually("what is left", async || effects(&billing, "a") == "1 3").await;
        assert!(outbox.records(1).await.unwrap()[0].contains("ops readmitted consumer billing"));
        relay.kill().await;
    })
    .await;
}

/// An `open` that is given up half way leaves the outbox closed, and none of its tasks.
#[tokio::test]
async fn an_open_that_is_given_up_can_be_repeated() {
    within(async {
        let orders = memory();
        for count in 0..20 {
            let builder = synod::outbox::Outbox::builder(&orders);
            let opening = builder
                .consumer(consumer("billing", "http://127.0.0.1:1".to_owned()))
                .open();
            tokio::pin!(opening);
            for _ in 0..count {
                if futures::poll!(opening.as_mut()).is_ready() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
        let outbox = open(&orders, [consumer("billing", "http://127.0.0.1:1".to_owned())]).await;
        publish(&outbox, &orders, "a", "1").await;
        assert_eq!(stored(&outbox).await.0, 1);
    })
    .await;
}
