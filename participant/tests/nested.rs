//! Calls under calls, and methods with several branches: what goes up with a reply.

mod support;

use support::coordinator::TestCoordinator;
use support::shop::{Handler, Item, ShopClient, handler, item};
use support::{DELIVERY, Service, adding, numbers, within};
use synod::resource::ResourceError;
use synod::{CommitError, Joined};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

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
        assert!(status.message().contains("out of stock"), "{}", status.message());
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
