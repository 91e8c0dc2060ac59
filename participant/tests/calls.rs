//! Business calls under a global transaction: what travels with them, what a server refuses, nested calls,
//! repeated executions, and callers that go away.

mod support;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use support::coordinator::TestCoordinator;
use support::shop::{Handler, Item, ShopClient, handler, item};
use support::store::MemoryStore;
use support::{Service, eventually, serve_bare, within};
use synod::resource::ResourceError;
use synod::{AbortKind, CommitError, Gtid, Joined, TransactionOptions, UnixMillis};
use tokio::sync::Notify;
use tonic::metadata::BinaryMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

const DELIVERY: Duration = Duration::from_secs(5);

fn numbers(pairs: &[(&str, i64)]) -> BTreeMap<String, i64> {
    pairs
        .iter()
        .map(|(name, number)| ((*name).to_owned(), *number))
        .collect()
}

fn adding(service: &Service) -> Handler {
    let resource = service.resource.clone();
    handler(move |request| {
        let resource = resource.clone();
        async move {
            resource
                .branch(request, async move |mut tx, item: Item| {
                    if item.amount < 0 {
                        return Err(Status::not_found("no such item"));
                    }
                    Ok(support::shop::item(&item.name, tx.add(&item.name, item.amount)))
                })
                .await
        }
    })
}

/// Its own branch, and a call to the next service within it.
fn forwarding(service: &Service, next: &Channel, swallows_failure: bool) -> Handler {
    let (resource, next) = (service.resource.clone(), next.clone());
    handler(move |request| {
        let (resource, next) = (resource.clone(), next.clone());
        async move {
            resource
                .branch(request, async move |mut tx, item: Item| {
                    tx.add("forwarded", 1);
                    match tx.client(&next, ShopClient::new).call(item.clone()).await {
                        Ok(reply) => Ok(reply.into_inner()),
                        Err(_) if swallows_failure => Ok(item),
                        Err(status) => Err(status),
                    }
                })
                .await
        }
    })
}

/// T3: nested votes go up with the reply, and the initiator's commit names all of them.
#[tokio::test]
async fn nested_votes_go_up() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let (initiator, front, back) = (
            Service::start(&coordinator).await,
            Service::start(&coordinator).await,
            Service::start(&coordinator).await,
        );
        let back_channel = back.serve(adding(&back)).await;
        let front_channel = front.serve(forwarding(&front, &back_channel, false)).await;
        let txn = initiator.participant.begin();
        let gtid = txn.gtid();
        let reply = txn
            .client(&front_channel, ShopClient::new)
            .call(item("bolt", 4))
            .await
            .expect("both work");
        assert_eq!(reply.into_inner(), item("bolt", 4));
        txn.commit()
            .await
            .expect("two votes")
            .delivered(DELIVERY)
            .await
            .expect("acknowledged");
        assert_eq!(front.store.numbers(), numbers(&[("forwarded", 1)]));
        assert_eq!(back.store.numbers(), numbers(&[("bolt", 4)]));
        assert_eq!(coordinator.proposals_for(gtid)[..].len(), 1);
    })
    .await;
}

/// T4: a nested failure dooms upwards, even where the method in between swallowed it.
#[tokio::test]
async fn a_nested_failure_dooms_upwards() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let (initiator, front, back) = (
            Service::start(&coordinator).await,
            Service::start(&coordinator).await,
            Service::start(&coordinator).await,
        );
        let back_channel = back.serve(adding(&back)).await;
        let front_channel = front.serve(forwarding(&front, &back_channel, true)).await;
        let txn = initiator.participant.begin();
        let status = txn
            .client(&front_channel, ShopClient::new)
            .call(item("bolt", -1))
            .await
            .expect_err("doomed below");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("no such item"), "{}", status.message());
        assert!(matches!(
            txn.commit().await,
            Err(CommitError::Doomed {
                is_retryable: false,
                ..
            })
        ));
        assert_eq!((front.store.prepared(), back.store.prepared()), (vec![], vec![]));
    })
    .await;
}

/// A conflict two services down is still a conflict for the initiator's retry.
#[tokio::test]
async fn a_nested_conflict_stays_retryable() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let (initiator, front, back) = (
            Service::start(&coordinator).await,
            Service::start(&coordinator).await,
            Service::start(&coordinator).await,
        );
        let back_channel = back.serve(adding(&back)).await;
        let front_channel = front.serve(forwarding(&front, &back_channel, false)).await;
        back.store.fail_next_prepare(ResourceError::Deadlock {
            table: "stock".to_owned(),
            key: "bolt".to_owned(),
        });
        let txn = initiator.participant.begin();
        let status = txn
            .client(&front_channel, ShopClient::new)
            .call(item("bolt", 1))
            .await
            .expect_err("a deadlock");
        assert_eq!(status.code(), Code::Aborted);
        match txn.commit().await {
            Err(error @ CommitError::Doomed { .. }) => assert!(error.is_retryable()),
            other => panic!("{other:?}"),
        }
    })
    .await;
}

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

/// C13: the method's work goes on to its end when its caller goes away, but nothing is prepared that nobody
/// would hear of. T4: for the caller the call is unanswered, and dooms.
#[tokio::test]
async fn a_caller_that_goes_away() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let service = Service::start(&coordinator).await;
        let [begun, gone, go_on, ended] = [(); 4].map(|()| Arc::new(Notify::new()));
        let slow = {
            let resource = service.resource.clone();
            let signals = [begun.clone(), gone.clone(), go_on.clone(), ended.clone()];
            handler(move |request| {
                let resource = resource.clone();
                let [begun, gone, go_on, ended] = signals.clone();
                async move {
                    // Dropped with the method's future, which is how a server learns that its caller is gone.
                    let _gone = NotifyOnDrop(gone);
                    resource
                        .branch(request, async move |mut tx, item: Item| {
                            tx.add(&item.name, item.amount);
                            begun.notify_one();
                            go_on.notified().await;
                            ended.notify_one();
                            Ok(item)
                        })
                        .await
                }
            })
        };
        let channel = service.serve(slow).await;
        let txn = service.participant.begin();
        let mut client = txn.client(&channel, ShopClient::new);
        tokio::select! {
            reply = client.call(item("bolt", 1)) => panic!("nobody told it to go on: {reply:?}"),
            () = begun.notified() => {}
        }
        gone.notified().await;
        go_on.notify_one();
        ended.notified().await;
        match txn.commit().await {
            Err(CommitError::Doomed { text, .. }) => {
                assert!(text.contains("dropped before its reply"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(
            (service.store.prepare_count(), service.store.numbers()),
            (0, numbers(&[]))
        );
    })
    .await;
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
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

/// A reply cannot hand up more branches than a transaction may name; the caller is told, and cannot commit.
#[tokio::test]
async fn a_reply_with_too_many_branches_is_refused() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let service = Service::start(&coordinator).await;
        let resource = service.resource.clone();
        let many = handler(move |request| {
            let resource = resource.clone();
            async move {
                let joined = Joined::of(&request)?;
                for n in 0..65 {
                    joined
                        .branch(&resource, async move |mut tx| Ok(tx.add(&n.to_string(), 1)))
                        .await?;
                }
                Ok(Response::new(request.into_inner()))
            }
        });
        let channel = service.serve(many).await;
        let txn = service.participant.begin();
        let status = txn
            .client(&channel, ShopClient::new)
            .call(item("bolt", 1))
            .await
            .expect_err("too many");
        assert_eq!(
            (status.code(), status.message()),
            (
                Code::FailedPrecondition,
                "65 branches under one call; at most 64 may commit together"
            )
        );
        assert!(matches!(txn.commit().await, Err(CommitError::Doomed { .. })));
        assert_eq!(service.store.numbers(), numbers(&[]));
    })
    .await;
}

/// Runs every request twice, one after the other, and returns the last reply: what a hedging or retrying
/// channel does.
#[derive(Clone)]
struct Twice(Channel);

impl tower::Service<http::Request<tonic::body::Body>> for Twice {
    type Response = http::Response<tonic::body::Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower::Service::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let mut channel = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = collect(body).await;
            let copy = |()| {
                http::Request::from_parts(parts.clone(), tonic::body::Body::new(Whole(Some(body.clone()))))
            };
            let first = send(&mut channel, copy(())).await?;
            collect(first.into_body()).await;
            send(&mut channel, copy(())).await
        })
    }
}

async fn send(
    channel: &mut Channel,
    request: http::Request<tonic::body::Body>,
) -> Result<http::Response<tonic::body::Body>, tonic::transport::Error> {
    std::future::poll_fn(|cx| tower::Service::poll_ready(channel, cx)).await?;
    tower::Service::call(channel, request).await
}

async fn collect(mut body: tonic::body::Body) -> bytes::Bytes {
    let mut whole = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx))
        .await
        .transpose()
        .expect("well")
    {
        whole.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
    }
    whole.into()
}

struct Whole(Option<bytes::Bytes>);

impl http_body::Body for Whole {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
        Poll::Ready(self.0.take().map(|data| Ok(http_body::Frame::data(data))))
    }
}

/// T2: a repeated request is a second execution of the same call. Both prepare, one is named, the other one
/// asks and is rolled back: the work takes effect once.
#[tokio::test]
async fn a_repeated_request_takes_effect_once() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let service = Service::start(&coordinator).await;
        let channel = service.serve(adding(&service)).await;
        let txn = service.participant.begin();
        let gtid = txn.gtid();
        txn.client(&Twice(channel), ShopClient::new)
            .call(item("bolt", 1))
            .await
            .expect("added");
        let prepared = service.store.prepared();
        assert_eq!(prepared.len(), 2);
        assert_eq!(prepared[0].call, prepared[1].call);
        txn.commit()
            .await
            .expect("one vote")
            .delivered(DELIVERY)
            .await
            .expect("acknowledged");
        eventually("the unnamed execution is rolled back", || {
            service.store.prepared().is_empty()
        })
        .await;
        assert_eq!(
            (service.store.committed().len(), service.store.numbers()),
            (1, numbers(&[("bolt", 1)]))
        );
        assert_eq!(coordinator.proposals_for(gtid).len(), 1);
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

/// A method with two branches of its own and no database call in common: both go up, under ids of their own.
#[tokio::test]
async fn a_joined_method_with_two_databases() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let (a, b) = (
            Service::start(&coordinator).await,
            Service::start(&coordinator).await,
        );
        let both = {
            let (a, b) = (a.resource.clone(), b.resource.clone());
            handler(move |request| {
                let (a, b) = (a.clone(), b.clone());
                async move {
                    let joined = Joined::of(&request)?;
                    let Item { name, amount } = request.into_inner();
                    let (for_a, for_b) = (name.clone(), name.clone());
                    let (left, right) = tokio::try_join!(
                        joined.branch(&a, async move |mut tx| Ok(tx.add(&for_a, amount))),
                        joined.branch(&b, async move |mut tx| Ok(tx.add(&for_b, amount))),
                    )?;
                    Ok(Response::new(item(&name, left + right)))
                }
            })
        };
        let channel = a.serve(both).await;
        let txn = b.participant.begin();
        let reply = txn
            .client(&channel, ShopClient::new)
            .call(item("bolt", 2))
            .await
            .expect("both prepare");
        assert_eq!(reply.into_inner(), item("bolt", 4));
        txn.commit()
            .await
            .expect("two votes")
            .delivered(DELIVERY)
            .await
            .expect("acknowledged");
        assert_eq!(
            (a.store.numbers(), b.store.numbers()),
            (numbers(&[("bolt", 2)]), numbers(&[("bolt", 2)]))
        );
    })
    .await;
}

/// A failed branch that the method discards by name does not doom; everything else of the reply stays.
#[tokio::test]
async fn a_joined_method_discards_a_nested_call() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let (front, back) = (
            Service::start(&coordinator).await,
            Service::start(&coordinator).await,
        );
        let back_channel = back.serve(adding(&back)).await;
        let trying = {
            let (resource, next) = (front.resource.clone(), back_channel.clone());
            handler(move |request| {
                let (resource, next) = (resource.clone(), next.clone());
                async move {
                    resource
                        .branch(request, async move |mut tx, item: Item| {
                            tx.add("tried", 1);
                            if let Err(status) = tx.client(&next, ShopClient::new).call(item.clone()).await {
                                let call = synod::call_id(status.metadata()).expect("named");
                                tx.discard(call)
                                    .map_err(|error| Status::internal(error.to_string()))?;
                            }
                            Ok(item)
                        })
                        .await
                }
            })
        };
        let channel = front.serve(trying).await;
        let txn = front.participant.begin();
        txn.client(&channel, ShopClient::new)
            .call(item("bolt", -1))
            .await
            .expect("the failure was discarded");
        txn.commit()
            .await
            .expect("one vote")
            .delivered(DELIVERY)
            .await
            .expect("acknowledged");
        assert_eq!(
            (front.store.numbers(), back.store.numbers()),
            (numbers(&[("tried", 1)]), numbers(&[]))
        );
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
