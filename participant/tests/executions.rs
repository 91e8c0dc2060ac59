//! Calls that run more often, or longer, than their caller knows.

mod support;

use std::sync::Arc;

use support::coordinator::TestCoordinator;
use support::shop::{Item, ShopClient, handler, item};
use support::twice::Twice;
use support::{DELIVERY, Service, adding, eventually, numbers, within};
use synod::CommitError;
use tokio::sync::Notify;

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

/// T2, B18: a repeated request is a second execution of the same call. Both prepare, one is named, the other
/// one asks and is rolled back: the work takes effect once.
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
