//! A global transaction as its initiator sees it: commit, abort, drop, doubt. Two services with a
//! store each, over real gRPC, against a coordinator in memory.

mod support;

use std::time::Duration;

use support::coordinator::TestCoordinator;
use support::shop::{ShopClient, item};
use support::store::MemoryStore;
use support::{DELIVERY, Service, adding, eventually, numbers, within};
use synod::resource::ResourceError;
use synod::{
    AbortKind, BoxError, BranchFailure, CommitError, Lineage, TransactionOptions, TransactionStatus,
};
use synod_proto::command::Proposal;
use tonic::Code;

/// The whole of it: the initiator's own branch and another service's take effect together.
#[tokio::test]
async fn two_branches_commit_together() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let (orders, inventory) = (
            Service::start(&coordinator).await,
            Service::start(&coordinator).await,
        );
        let channel = inventory.serve(adding(&inventory)).await;

        let txn = orders.participant.begin();
        let gtid = txn.gtid();
        let reply = txn
            .client(&channel, ShopClient::new)
            .call(item("bolt", 5))
            .await
            .expect("in stock");
        assert_eq!(reply.into_inner(), item("bolt", 5));
        let row = txn
            .branch(&orders.resource, async |mut tx| Ok(tx.add("order", 1)))
            .await
            .expect("no conflict");
        assert_eq!(row, 1);
        assert_eq!(
            (orders.store.numbers(), inventory.store.numbers()),
            (numbers(&[]), numbers(&[]))
        );

        let committed = txn.commit().await.expect("both voted to commit");
        assert_eq!(committed.gtid(), gtid);
        committed.delivered(DELIVERY).await.expect("both acknowledge");
        assert_eq!(
            (orders.store.numbers(), inventory.store.numbers()),
            (numbers(&[("order", 1)]), numbers(&[("bolt", 5)]))
        );

        // T5: the record names exactly the branches that took effect, in order, with what they said of
        // themselves.
        let mut expected: Vec<_> = [
            (&orders, orders.resource.id()),
            (&inventory, inventory.resource.id()),
        ]
        .into_iter()
        .map(|(service, resource)| {
            (
                service.store.committed()[0].call,
                service.store.committed()[0].execution,
                resource,
                7,
            )
        })
        .collect();
        expected.sort();
        let [
            Proposal::Commit {
                branches,
                read_only_count: 0,
            },
        ] = &coordinator.proposals_for(gtid)[..]
        else {
            panic!(
                "one commit request was sent: {:?}",
                coordinator.proposals_for(gtid)
            )
        };
        let named: Vec<_> = branches
            .iter()
            .map(|branch| (branch.call, branch.execution, branch.resource, branch.digest))
            .collect();
        assert_eq!(named, expected);
        assert!(matches!(
            orders.participant.outcome(gtid).await,
            Ok(TransactionStatus::Committed { .. })
        ));
    })
    .await;
}

/// T4: a business refusal reaches the caller as the method's own status, and nothing of the transaction can
/// commit.
#[tokio::test]
async fn a_refused_call_dooms_the_transaction() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let (orders, inventory) = (
            Service::start(&coordinator).await,
            Service::start(&coordinator).await,
        );
        let channel = inventory.serve(adding(&inventory)).await;

        let txn = orders.participant.begin();
        let gtid = txn.gtid();
        txn.branch(&orders.resource, async |mut tx| Ok(tx.add("order", 1)))
            .await
            .expect("no conflict");
        let status = txn
            .client(&channel, ShopClient::new)
            .call(item("bolt", -1))
            .await
            .expect_err("out of stock");
        assert_eq!(
            (status.code(), status.message()),
            (Code::OutOfRange, "out of stock")
        );
        let call = synod::call_id(status.metadata()).expect("the channel names the call");

        match txn.commit().await {
            Err(CommitError::Doomed {
                gtid: doomed,
                call: by,
                is_retryable: false,
                text,
                ..
            }) => {
                assert_eq!((doomed, by), (gtid, call));
                assert!(text.contains("out of stock"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        eventually("the prepared branch is rolled back", || {
            orders.store.prepared().is_empty()
        })
        .await;
        assert_eq!(
            (orders.store.numbers(), inventory.store.numbers()),
            (numbers(&[]), numbers(&[]))
        );
        let causes = coordinator.abort_causes(gtid);
        assert_eq!(
            (causes.len(), causes[0].kind),
            (1, AbortKind::VotedAbort),
            "{causes:?}"
        );
    })
    .await;
}

/// T4: discarded by name, a failed call keeps nothing from committing, and is no part of the commit.
#[tokio::test]
async fn a_discarded_call_does_not_doom() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let (orders, inventory) = (
            Service::start(&coordinator).await,
            Service::start(&coordinator).await,
        );
        let channel = inventory.serve(adding(&inventory)).await;

        let txn = orders.participant.begin();
        let mut client = txn.client(&channel, ShopClient::new);
        let refused = client.call(item("bolt", -1)).await.expect_err("out of stock");
        txn.discard(synod::call_id(refused.metadata()).expect("named"))
            .expect("made here");
        // A call that succeeded can be discarded as well: its branch is prepared and must not take effect.
        let unwanted = client.call(item("nut", 3)).await.expect("added");
        txn.discard(synod::call_id(unwanted.metadata()).expect("named"))
            .expect("made here");
        let failed = txn
            .branch(&orders.resource, async |_tx| Err::<(), _>("no".into()))
            .await
            .expect_err("rejected");
        txn.discard(failed.call.expect("named")).expect("made here");
        txn.branch(&orders.resource, async |mut tx| Ok(tx.add("order", 1)))
            .await
            .expect("no conflict");

        txn.commit()
            .await
            .expect("nothing dooms it")
            .delivered(DELIVERY)
            .await
            .expect("acknowledged");
        assert_eq!(
            (orders.store.numbers(), inventory.store.numbers()),
            (numbers(&[("order", 1)]), numbers(&[]))
        );
        // The discarded branch asks, and is told Aborted (T5).
        eventually("the unnamed branch is rolled back", || {
            inventory.store.prepared().is_empty()
        })
        .await;
        assert_eq!(inventory.store.numbers(), numbers(&[]));
    })
    .await;
}

/// A dropped transaction is aborted in the background, and its branches are told at once.
#[tokio::test]
async fn dropping_aborts() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let orders = Service::start(&coordinator).await;
        let txn = orders.participant.begin();
        let gtid = txn.gtid();
        txn.branch(&orders.resource, async |mut tx| Ok(tx.add("order", 1)))
            .await
            .expect("no conflict");
        assert_eq!(orders.store.prepared().len(), 1);
        drop(txn);
        eventually("the branch is rolled back", || orders.store.prepared().is_empty()).await;
        assert_eq!(orders.store.numbers(), numbers(&[]));
        let kinds: Vec<_> = coordinator
            .abort_causes(gtid)
            .into_iter()
            .map(|cause| cause.kind)
            .collect();
        assert_eq!(kinds, [AbortKind::Dropped]);
        // Nothing was done under this one, so nobody has to hear of it.
        drop(orders.participant.begin());
    })
    .await;
}

#[tokio::test]
async fn abort_waits_for_the_log() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let orders = Service::start(&coordinator).await;
        let txn = orders.participant.begin();
        let gtid = txn.gtid();
        txn.branch(&orders.resource, async |mut tx| Ok(tx.add("order", 1)))
            .await
            .expect("no conflict");
        txn.abort("changed my mind").await.expect("the log says aborted");
        let causes: Vec<_> = coordinator
            .abort_causes(gtid)
            .into_iter()
            .map(|cause| (cause.kind, cause.text))
            .collect();
        assert_eq!(causes, [(AbortKind::Requested, "changed my mind".to_owned())]);
        eventually("the branch is rolled back", || orders.store.prepared().is_empty()).await;
    })
    .await;
}

/// T7: from its first poll on the commit request is on its way; a dropped future does not take it back.
#[tokio::test]
async fn a_dropped_commit_future_still_commits() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let orders = Service::start(&coordinator).await;
        let txn = orders.participant.begin();
        let gtid = txn.gtid();
        txn.branch(&orders.resource, async |mut tx| Ok(tx.add("order", 1)))
            .await
            .expect("no conflict");
        {
            let mut commit = Box::pin(txn.commit());
            assert!(futures::poll!(&mut commit).is_pending());
        }
        eventually("the transaction takes effect", || {
            orders.store.numbers() == numbers(&[("order", 1)])
        })
        .await;
        assert_eq!(coordinator.abort_causes(gtid), []);
    })
    .await;
}

/// T7: handed over and unanswered is in doubt, never an abort; `resolve` finds what the log says (B8, B16).
#[tokio::test]
async fn an_unanswered_commit_is_in_doubt_and_resolves() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let participant = synod::Participant::builder()
            .coordinators([coordinator.address()])
            .decide_timeout(Duration::from_millis(300))
            .connect()
            .await
            .expect("the coordinator answers");
        let store = MemoryStore::default();
        let resource = participant.resource(store.clone()).await.expect("attaches");
        let txn = participant.begin();
        let gtid = txn.gtid();
        txn.branch(&resource, async |mut tx| Ok(tx.add("order", 1)))
            .await
            .expect("no conflict");
        coordinator.set_silent(true);
        let Err(error @ CommitError::InDoubt(_)) = txn.commit().await else {
            panic!("nobody answered")
        };
        assert!(!error.is_retryable(), "its work may have taken effect");
        let CommitError::InDoubt(in_doubt) = error else {
            unreachable!()
        };
        assert_eq!(in_doubt.gtid(), gtid);
        coordinator.set_silent(false);
        let committed = in_doubt.resolve().await.expect("the log says committed");
        committed.delivered(DELIVERY).await.expect("acknowledged");
        assert_eq!(store.numbers(), numbers(&[("order", 1)]));
        assert_eq!(coordinator.abort_causes(gtid), []);
    })
    .await;
}

/// B7: an abort that was first in the log is what a later commit request is told.
#[tokio::test]
async fn the_first_proposal_wins() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let orders = Service::start(&coordinator).await;
        let txn = orders.participant.begin();
        let gtid = txn.gtid();
        txn.branch(&orders.resource, async |mut tx| Ok(tx.add("order", 1)))
            .await
            .expect("no conflict");
        coordinator.abort_first(gtid, AbortKind::Deadline);
        match txn.commit().await {
            Err(error @ CommitError::Aborted { .. }) => {
                assert_eq!(error.to_string(), format!("{gtid} aborted: deadline: first"));
                assert!(error.is_retryable());
            }
            other => panic!("{other:?}"),
        }
        eventually("the branch is rolled back", || orders.store.prepared().is_empty()).await;
        assert_eq!(orders.store.numbers(), numbers(&[]));
    })
    .await;
}

/// T5, B5: no branches is never success; only read-only votes are a commit that says so.
#[tokio::test]
async fn nothing_to_commit_and_only_read_only() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let orders = Service::start(&coordinator).await;
        match orders.participant.begin().commit().await {
            Err(CommitError::Invalid(text)) => {
                assert_eq!(text, "no branch voted: there is nothing to commit");
            }
            other => panic!("{other:?}"),
        }
        let txn = orders.participant.begin();
        let gtid = txn.gtid();
        let seen = txn
            .branch(&orders.resource, async |tx| Ok(tx.get("order")))
            .await
            .expect("read");
        assert_eq!(seen, 0);
        txn.commit()
            .await
            .expect("read-only")
            .delivered(DELIVERY)
            .await
            .expect("nobody to wait for");
        assert_eq!(
            coordinator.proposals_for(gtid),
            [Proposal::Commit {
                branches: vec![],
                read_only_count: 1
            }]
        );
    })
    .await;
}

#[tokio::test]
async fn more_than_64_branches_are_invalid() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let orders = Service::start(&coordinator).await;
        let txn = orders.participant.begin();
        for n in 0..65 {
            txn.branch(
                &orders.resource,
                async move |mut tx| Ok(tx.add(&n.to_string(), 1)),
            )
            .await
            .expect("no conflict");
        }
        match txn.commit().await {
            Err(CommitError::Invalid(text)) => assert_eq!(text, "65 branches, at most 64 are possible"),
            other => panic!("{other:?}"),
        }
        eventually("those that were told are rolled back", || {
            orders.store.prepared().len() <= 1
        })
        .await;
        assert_eq!(orders.store.numbers(), numbers(&[]));
    })
    .await;
}

/// A branch that fails says how, with the cause in its chain, and rolls back.
#[tokio::test]
async fn failures_of_a_local_branch() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let orders = Service::start(&coordinator).await;
        let txn = orders.participant.begin();
        let (resource, store) = (&orders.resource, &orders.store);

        let rejected = txn
            .branch(resource, async |mut tx| {
                tx.add("order", 1);
                Err::<(), BoxError>(std::io::Error::other("disk on fire").into())
            })
            .await
            .expect_err("rejected");
        let cause = std::error::Error::source(&rejected).and_then(std::error::Error::source).expect("a chain");
        assert_eq!((cause.to_string(), cause.is::<std::io::Error>()), ("disk on fire".to_owned(), true));

        let panicked = txn.branch(resource, async |_tx| -> Result<(), BoxError> { panic!("boom") }).await;
        assert!(matches!(panicked.map_err(|error| error.failure), Err(BranchFailure::Panicked(text)) if text == "boom"));

        store.fail_next_prepare(ResourceError::DeadlineExceeded);
        let refused = txn.branch(resource, async |mut tx| Ok(tx.add("order", 1))).await;
        let failure = refused.map_err(|error| error.failure);
        assert!(matches!(failure, Err(BranchFailure::Resource(ResourceError::DeadlineExceeded))), "{failure:?}");

        let (keep, kept) = tokio::sync::oneshot::channel();
        let held = txn.branch(resource, async move |tx| {
                // Handed out of the closure, which must not end while somebody can still write.
                assert!(keep.send(tx).is_ok());
                Ok(())
            })
            .await;
        assert!(matches!(held.map_err(|error| error.failure), Err(BranchFailure::StillHeld)));
        drop(kept);

        assert_eq!((store.numbers(), store.prepared()), (numbers(&[]), vec![]));
        assert!(matches!(txn.commit().await, Err(CommitError::Doomed { .. })));
    })
    .await;
}

/// T14: work that outlasts the deadline is cut off, and its vote is abort.
#[tokio::test]
async fn work_ends_at_the_deadline() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let orders = Service::start(&coordinator).await;
        let options = TransactionOptions::default().deadline(Duration::from_millis(50));
        let txn = orders.participant.begin_with(options);
        let failure = txn
            .branch(&orders.resource, async |mut tx| {
                tx.add("order", 1);
                std::future::pending::<()>().await;
                Ok(())
            })
            .await
            .map_err(|error| error.failure);
        assert!(
            matches!(failure, Err(BranchFailure::DeadlineExceeded { .. })),
            "{failure:?}"
        );
        assert_eq!(
            (orders.store.numbers(), orders.store.prepared()),
            (numbers(&[]), vec![])
        );
    })
    .await;
}

/// T11: a database that belongs to another coordinator takes no branches, and stays as it is.
#[tokio::test]
async fn a_foreign_database_is_refused() {
    within(async {
        let coordinator = TestCoordinator::start().await;
        let orders = Service::start(&coordinator).await;
        let foreign = MemoryStore::bound_to(Lineage([9; 16]));
        match orders.participant.resource(foreign).await {
            Err(synod::AttachError::ForeignLineage { expected, found, .. }) => {
                assert_eq!((expected, found), (Lineage([1; 16]), Lineage([9; 16])));
            }
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[tokio::test]
async fn connect_says_what_is_wrong() {
    within(async {
        let nothing = synod::Participant::builder().connect().await;
        assert!(
            matches!(nothing, Err(synod::ConnectError::Invalid { .. })),
            "{nothing:?}"
        );
        let silent = synod::Participant::builder()
            .coordinators(["http://127.0.0.1:9"])
            .connect_timeout(Duration::from_millis(100))
            .connect()
            .await;
        assert!(
            matches!(silent, Err(synod::ConnectError::Unavailable { .. })),
            "{silent:?}"
        );
    })
    .await;
}
