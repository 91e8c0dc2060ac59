//! `synod::retry`: the whole transaction again, where that may help.

mod support;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use support::coordinator::TestCoordinator;
use support::{DELIVERY, Service, numbers, within};
use synod::resource::ResourceError;
use synod::{BoxError, RetryError, RetryOptions};
use synod_proto::v1::StatusRequest;
use synod_proto::v1::coordinator_client::CoordinatorClient;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

/// `retry` runs the whole again after a conflict, under a new gtid each time, and commits for the closure.
#[tokio::test]
async fn retry_after_a_conflict() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let orders = Service::start(&coordinator).await;
        let attempts = AtomicU32::new(0);
        let gtids = Mutex::new(std::collections::BTreeSet::new());
        let (value, committed) = synod::retry(&orders.participant, RetryOptions::default(), async |txn| {
            gtids.lock().expect("unpoisoned").insert(txn.gtid());
            if attempts.fetch_add(1, Ordering::Relaxed) < 2 {
                let (table, key) = ("stock".to_owned(), "bolt".to_owned());
                orders
                    .store
                    .fail_next_prepare(ResourceError::Deadlock { table, key });
            }
            Ok(txn
                .branch(&orders.resource, async |mut tx| Ok(tx.add("order", 1)))
                .await?)
        })
        .await
        .expect("the third attempt succeeds");
        committed.delivered(DELIVERY).await.expect("acknowledged");
        assert_eq!(
            (
                value,
                gtids.lock().expect("unpoisoned").len(),
                orders.store.numbers()
            ),
            (1, 3, numbers(&[("order", 1)]))
        );
    })
    .await;
}

/// A service that dies in the middle of a call is an outage, though its status is not `UNAVAILABLE`: nobody was left to say so.
#[tokio::test]
async fn retry_after_a_service_died_in_the_middle_of_a_call() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let orders = Service::start(&coordinator).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let dying = tokio::spawn(async move {
            // Ends with the call's bytes unread, and then nobody listens.
            let (mut connection, _) = listener.accept().await.expect("a connection");
            let mut some = [0; 64];
            connection.read_exact(&mut some).await.expect("a call");
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect_lazy();
        let codes = Mutex::new(Vec::new());
        let ((), committed) = synod::retry(&orders.participant, RetryOptions::default(), async |txn| {
            if codes.lock().expect("unpoisoned").len() < 2 {
                let mut client = txn.client(&channel, CoordinatorClient::new);
                let died = client.status(StatusRequest {}).await.expect_err("nobody answers");
                codes.lock().expect("unpoisoned").push(died.code());
                return Err(died.into());
            }
            txn.branch(&orders.resource, async |mut tx| Ok(tx.add("order", 1)))
                .await?;
            Ok(())
        })
        .await
        .expect("the third attempt succeeds");
        committed.delivered(DELIVERY).await.expect("acknowledged");
        dying.await.expect("no panic");
        let codes = codes.into_inner().expect("unpoisoned");
        assert!(codes[0] != Code::Unavailable, "died in the middle: {codes:?}");
        assert_eq!(codes[1], Code::Unavailable, "nobody listens: {codes:?}");
    })
    .await;
}

/// B19, G4: a business refusal is final; attempts are bounded.
#[tokio::test]
async fn retry_gives_up() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let orders = Service::start(&coordinator).await;
        let refused = synod::retry(&orders.participant, RetryOptions::default(), async |_txn| {
            Err::<(), BoxError>(Status::resource_exhausted("out of stock").into())
        });
        assert!(matches!(
            refused.await,
            Err(RetryError::Work { attempt_count: 1, .. })
        ));

        let options = RetryOptions::default().attempt_count_max(3);
        let unlucky = synod::retry(&orders.participant, options, async |_txn| {
            Err::<(), BoxError>(Status::aborted("conflict").into())
        });
        assert!(matches!(
            unlucky.await,
            Err(RetryError::Work { attempt_count: 3, .. })
        ));
    })
    .await;
}

/// `retry` can be used where futures must be `Send`.
#[tokio::test]
async fn retry_runs_in_a_spawned_task() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let Service {
            participant,
            store,
            resource,
        } = Service::start(&coordinator).await;
        let task = tokio::spawn(async move {
            let work = async |txn: Arc<synod::Transaction>| {
                Ok(txn.branch(&resource, async |mut tx| Ok(tx.add("a", 1))).await?)
            };
            let (_, committed) = synod::retry(&participant, RetryOptions::default(), work).await?;
            committed.delivered(DELIVERY).await?;
            Ok::<_, BoxError>(())
        });
        task.await.expect("no panic").expect("committed");
        assert_eq!(store.numbers(), numbers(&[("a", 1)]));
    })
    .await;
}
