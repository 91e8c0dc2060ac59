//! Business calls under a global transaction: what travels with them, and what a server refuses.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use support::coordinator::TestCoordinator;
use support::shop::{Item, ShopClient, handler, item};
use support::store::MemoryStore;
use support::{DELIVERY, Service, adding, eventually, numbers, serve_bare, within};
use synod::{AbortKind, CommitError, Gtid, TransactionOptions, UnixMillis};
use tonic::metadata::BinaryMetadataValue;
use tonic::{Code, Request, Response, Status};

/// A transactional method does not silently work outside: nothing runs without a context.
#[tokio::test]
async fn a_call_without_context_is_refused() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let service = Service::start(&coordinator).await;
        let channel = service.serve(adding(&service)).await;
        let status = ShopClient::new(channel).call(item("bolt", 1)).await.expect_err("no context");
        assert_eq!(
            (status.code(), status.message()),
            (
                Code::FailedPrecondition,
                "this method must be called inside a global transaction: make the client with `txn.client(&channel, ..)`"
            )
        );
        assert_eq!((service.store.numbers(), service.store.prepared()), (numbers(&[]), vec![]));
    })
    .await;
}

/// A server without the layer could return no vote, so its transactional methods refuse; a plain method's
/// reply carries none.
#[tokio::test]
async fn a_reply_without_votes_dooms() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let service = Service::start(&coordinator).await;
        let txn = service.participant.begin();
        let bare = serve_bare(adding(&service)).await;
        let status = txn
            .client(&bare, ShopClient::new)
            .call(item("bolt", 1))
            .await
            .expect_err("no layer");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(
            status.message().contains("participant.layer()"),
            "{}",
            status.message()
        );
        drop(txn);

        let plain = service
            .serve(handler(async |request: Request<Item>| {
                Ok(Response::new(request.into_inner()))
            }))
            .await;
        let txn = service.participant.begin();
        txn.client(&plain, ShopClient::new)
            .call(item("bolt", 1))
            .await
            .expect("the method itself works");
        match txn.commit().await {
            Err(CommitError::Doomed { text, method, .. }) => {
                assert!(text.contains("not transactional"), "{text}");
                assert_eq!(method, "/test.Shop/Call");
            }
            other => panic!("{other:?}"),
        }
    })
    .await;
}

/// T14, T11 and A20 at the server's edge: what must not run is refused before the method is reached, each
/// with its own error.
#[tokio::test]
async fn bad_contexts_are_refused() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let service = Service::start(&coordinator).await;
        let channel = service.serve(adding(&service)).await;
        let now = UnixMillis(
            u64::try_from(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis())
                .expect("in range"),
        );
        let context =
            |lineage, began_at, deadline| context_bytes(lineage, Gtid::new(began_at, [0; 10]), deadline);
        let good = context(1, now, now.plus(5_000));
        let cases = [
            (
                context(9, now, now.plus(5_000)),
                Code::FailedPrecondition,
                "runs under coordinator",
            ),
            (
                context(1, now.plus(60_000), now.plus(65_000)),
                Code::FailedPrecondition,
                "ms in this service's future",
            ),
            (
                context(1, now, now.plus(900_000)),
                Code::InvalidArgument,
                "ms after its begin",
            ),
            (
                context(1, now.minus(9_000), now.minus(1)),
                Code::DeadlineExceeded,
                "has passed",
            ),
            (good[..20].to_vec(), Code::InvalidArgument, "ends early"),
            (
                [&good[..], &[0]].concat(),
                Code::InvalidArgument,
                "goes on after its end",
            ),
            (
                [&[2], &good[1..]].concat(),
                Code::InvalidArgument,
                "upgrade this service",
            ),
        ];
        for (bytes, code, text) in cases {
            let mut request = Request::new(item("bolt", 1));
            request
                .metadata_mut()
                .insert_bin("synod-context-bin", BinaryMetadataValue::from_bytes(&bytes));
            let status = ShopClient::new(channel.clone())
                .call(request)
                .await
                .expect_err(text);
            assert_eq!(status.code(), code, "{text}: {}", status.message());
            assert!(status.message().contains(text), "{}", status.message());
        }
        assert_eq!(
            (service.store.numbers(), service.store.prepared()),
            (numbers(&[]), vec![])
        );
    })
    .await;
}

/// The metadata of a request, as another implementation would write it.
fn context_bytes(lineage: u8, gtid: Gtid, deadline: UnixMillis) -> Vec<u8> {
    [
        &[1][..],
        &[lineage; 16],
        &gtid.to_bytes(),
        &7u64.to_be_bytes(),
        &deadline.0.to_be_bytes(),
    ]
    .concat()
}

/// A panic in a method is a vote to abort, and the server goes on.
#[tokio::test]
async fn a_panic_is_a_vote_to_abort() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let service = Service::start(&coordinator).await;
        let resource = service.resource.clone();
        let panicking = handler(move |request| {
            let resource = resource.clone();
            async move {
                let work = async |mut tx: synod::BranchTransaction<MemoryStore>,
                                  item: Item|
                       -> Result<Item, Status> {
                    tx.add(&item.name, item.amount);
                    panic!("out of cheese")
                };
                resource.branch(request, work).await
            }
        });
        let channel = service.serve(panicking).await;
        for _ in 0..2 {
            let txn = service.participant.begin();
            let gtid = txn.gtid();
            let status = txn
                .client(&channel, ShopClient::new)
                .call(item("bolt", 1))
                .await
                .expect_err("it panics");
            assert_eq!(
                (status.code(), status.message()),
                (
                    Code::Internal,
                    "the branch panicked and was rolled back: out of cheese"
                )
            );
            assert!(matches!(txn.commit().await, Err(CommitError::Doomed { .. })));
            eventually("the abort is proposed", || {
                !coordinator.abort_causes(gtid).is_empty()
            })
            .await;
            assert_eq!(coordinator.abort_causes(gtid)[0].kind, AbortKind::VotedAbort);
        }
        assert_eq!(
            (service.store.numbers(), service.store.prepared()),
            (numbers(&[]), vec![])
        );
    })
    .await;
}

/// T14: the deadline ends a call that nobody answers, and the branch behind it is rolled back.
#[tokio::test]
async fn a_call_ends_at_the_deadline() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let service = Service::start(&coordinator).await;
        let resource = service.resource.clone();
        let stuck = handler(move |request| {
            let resource = resource.clone();
            async move {
                resource
                    .branch(request, async |mut tx, item: Item| {
                        tx.add(&item.name, item.amount);
                        std::future::pending().await
                    })
                    .await
            }
        });
        let channel = service.serve(stuck).await;
        let options = TransactionOptions::default().deadline(Duration::from_millis(200));
        let txn = service.participant.begin_with(options);
        let ended = txn.client(&channel, ShopClient::new).call(item("bolt", 1)).await;
        assert!(ended.is_err(), "{ended:?}");
        assert!(matches!(txn.commit().await, Err(CommitError::Doomed { .. })));
        assert_eq!(
            (service.store.prepare_count(), service.store.numbers()),
            (0, numbers(&[]))
        );
    })
    .await;
}

/// C3, *late work*: a request that arrives after its transaction was aborted does not run.
#[tokio::test]
async fn late_work_is_refused() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let (initiator, service) = (
            Service::start(&coordinator).await,
            Service::start(&coordinator).await,
        );
        let channel = service.serve(adding(&service)).await;
        let txn = initiator.participant.begin();
        let (gtid, deadline) = (txn.gtid(), txn.deadline());
        txn.client(&channel, ShopClient::new)
            .call(item("bolt", 1))
            .await
            .expect("added");
        txn.abort("not needed").await.expect("the log says aborted");
        eventually("the service is told", || service.store.prepared().is_empty()).await;
        let mut late = Request::new(item("bolt", 1));
        let bytes = context_bytes(1, gtid, deadline);
        late.metadata_mut()
            .insert_bin("synod-context-bin", BinaryMetadataValue::from_bytes(&bytes));
        let status = ShopClient::new(channel).call(late).await.expect_err("too late");
        assert_eq!(
            (status.code(), status.message()),
            (
                Code::FailedPrecondition,
                &*format!("{gtid} is already decided: this is late work")
            )
        );
        assert_eq!(service.store.prepare_count(), 1);
    })
    .await;
}

/// Streaming calls cannot take part, and say so, at both ends.
#[tokio::test]
async fn a_streamed_reply_is_refused() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let service = Service::start(&coordinator).await;
        let channel = service.serve(adding(&service)).await;
        let txn = service.participant.begin();
        let mut client = txn.client(&channel, ShopClient::new);
        let mut replies = client
            .stream(item("bolt", 1))
            .await
            .expect("it begins well")
            .into_inner();
        let status = loop {
            match replies.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("both messages came through"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("stream"), "{}", status.message());
        assert!(matches!(txn.commit().await, Err(CommitError::Doomed { .. })));
        eventually("nothing is left prepared", || service.store.prepared().is_empty()).await;
        assert_eq!(service.store.numbers(), numbers(&[]));
    })
    .await;
}

/// After the hand-over no call can become part of the transaction any more (B3).
#[tokio::test]
async fn a_call_after_the_commit_is_refused() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let service = Service::start(&coordinator).await;
        let calls = Arc::new(AtomicU32::new(0));
        let counting = {
            let (calls, adding) = (calls.clone(), adding(&service));
            handler(move |request| {
                calls.fetch_add(1, Ordering::Relaxed);
                adding(request)
            })
        };
        let channel = service.serve(counting).await;
        let txn = service.participant.begin();
        let mut client = txn.client(&channel, ShopClient::new);
        client.call(item("bolt", 1)).await.expect("added");
        txn.commit()
            .await
            .expect("one vote")
            .delivered(DELIVERY)
            .await
            .expect("acknowledged");
        let status = client.call(item("bolt", 1)).await.expect_err("too late");
        assert_eq!(
            (status.code(), status.message()),
            (
                Code::FailedPrecondition,
                "the transaction was already committed or aborted: begin a new one"
            )
        );
        assert_eq!(
            (calls.load(Ordering::Relaxed), service.store.numbers()),
            (1, numbers(&[("bolt", 1)]))
        );
    })
    .await;
}

/// A service that cannot be reached dooms, and may be retried.
#[tokio::test]
async fn an_unreachable_service_dooms() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let service = Service::start(&coordinator).await;
        let nowhere = tonic::transport::Endpoint::from_static("http://127.0.0.1:9").connect_lazy();
        let txn = service.participant.begin();
        let status = txn
            .client(&nowhere, ShopClient::new)
            .call(item("bolt", 1))
            .await
            .expect_err("nobody listens");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(synod::call_id(status.metadata()).is_some());
        match txn.commit().await {
            Err(error @ CommitError::Doomed { .. }) => assert!(error.is_retryable(), "{error}"),
            other => panic!("{other:?}"),
        }
    })
    .await;
}
