//! Branches that stay open for several calls and are prepared when the commit asks for it (T3), with three real replicas
//! of the coordinator and real redb files, over loopback.

#[path = "../../coordinator/tests/support/mod.rs"]
mod coordinator;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coordinator::{Cluster, within};
use support::shop::{Handler, Item, ShopClient, ShopServer, handler, item};
use support::twice::Twice;
use synod::resource::redb::{RedbOptions, RedbResource};
use synod::{AbortKind, CommitError, Joined, Participant, Resource, Transaction, TransactionStatus, call_id};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

const DELIVERY: Duration = Duration::from_secs(10);

/// One process: a participant with one database.
struct Service {
    participant: Participant,
    stock: Resource<RedbResource>,
    folder: Arc<TempDir>,
}

impl Service {
    async fn start(cluster: &Cluster) -> Self {
        Self::start_in(cluster, Arc::new(tempfile::tempdir().expect("a folder"))).await
    }

    /// Another run of the process, on the same file.
    async fn start_in(cluster: &Cluster, folder: Arc<TempDir>) -> Self {
        let addresses = cluster.peers.values().map(|address| format!("http://{address}"));
        let builder = Participant::builder().coordinators(addresses);
        let participant = builder.connect().await.expect("a leader answers");
        let store = RedbOptions::default()
            .lock_timeout(Duration::from_secs(2))
            .open(folder.path().join("stock.redb"))
            .expect("opens");
        let stock = participant.resource(store).await.expect("attaches");
        Self {
            participant,
            stock,
            folder,
        }
    }

    fn number(&self, key: &str) -> Option<u64> {
        let snapshot = self.stock.manager().snapshot().expect("readable");
        let bytes = snapshot.get("stock", key).expect("readable")?;
        Some(u64::from_be_bytes(
            bytes.as_ref().try_into().expect("eight bytes"),
        ))
    }

    /// Adds to a number in the open branch of the caller's transaction.
    fn adding(&self) -> Handler {
        let stock = self.stock.clone();
        handler(move |request| {
            let stock = stock.clone();
            async move {
                stock
                    .open_branch(request, async |mut tx, Item { name, amount }| {
                        let before = tx.get_u64_for_update("stock", &name).await?.unwrap_or(10);
                        let after = before
                            .checked_add_signed(amount)
                            .ok_or_else(|| Status::out_of_range("out of stock"))?;
                        tx.put_u64("stock", &name, after).await?;
                        Ok(item(&name, i64::try_from(after).unwrap_or(i64::MAX)))
                    })
                    .await
            }
        })
    }

    async fn serve(&self, handler: Handler) -> Channel {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let server = tonic::transport::Server::builder()
            .layer(self.participant.layer())
            .add_service(ShopServer::new(handler))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        tonic::transport::Endpoint::from_shared(format!("http://{address}"))
            .expect("an address")
            .connect_lazy()
    }

    /// Nothing is prepared and nothing is locked.
    async fn is_at_rest(&self) {
        coordinator::eventually("no lock is held", async || {
            (self.stock.manager().lock_counts().0 == 0 && self.participant.in_doubt().is_empty())
                .then_some(())
        })
        .await;
    }
}

async fn add(txn: &Transaction, to: &Channel, name: &str, amount: i64) -> Result<i64, Status> {
    let mut client = txn.client(to, ShopClient::new);
    Ok(client.call(item(name, amount)).await?.into_inner().amount)
}

/// How many branches the record names, and how many it counts as read-only.
async fn recorded(service: &Service, gtid: synod::Gtid) -> (usize, u32) {
    match service.participant.outcome(gtid).await.expect("an answer") {
        TransactionStatus::Committed {
            branches,
            read_only_count,
        } => (branches.len(), read_only_count),
        other => panic!("{other:?}"),
    }
}

fn aborted_kind(result: Result<synod::Committed, CommitError>) -> (AbortKind, String) {
    match result {
        Err(CommitError::Aborted { cause, .. }) => (cause.kind, cause.text),
        other => panic!("{other:?}"),
    }
}

/// T3: three calls, one local transaction, one branch. Later calls see what the earlier ones wrote and wait for no lock of
/// theirs; nothing shows before the commit; beside it a branch that voted with its reply.
#[tokio::test]
async fn calls_of_one_transaction_share_one_branch() {
    within(async {
        let cluster = Cluster::start().await;
        let (shop, buyer) = (Service::start(&cluster).await, Service::start(&cluster).await);
        let channel = shop.serve(shop.adding()).await;
        let txn = buyer.participant.begin();
        let gtid = txn.gtid();
        assert_eq!(add(&txn, &channel, "bolt", -3).await.expect("in stock"), 7);
        assert_eq!(add(&txn, &channel, "bolt", -3).await.expect("in stock"), 4);
        assert_eq!(add(&txn, &channel, "nut", 1).await.expect("in stock"), 11);
        txn.branch(&buyer.stock, async |mut tx| {
            Ok(tx.put_u64("stock", "paid", 1).await?)
        })
        .await
        .expect("prepared");
        assert_eq!(
            (shop.number("bolt"), shop.participant.in_doubt().len()),
            (None, 0)
        );
        let committed = txn.commit().await.expect("both branches");
        committed.delivered(DELIVERY).await.expect("acknowledged");
        assert_eq!(
            (shop.number("bolt"), shop.number("nut"), buyer.number("paid")),
            (Some(4), Some(11), Some(1))
        );
        assert_eq!(recorded(&buyer, gtid).await, (2, 0));
        shop.is_at_rest().await;
    })
    .await;
}

/// T15: an open branch that wrote nothing is counted and not named. The initiator's own database may stay open as well.
#[tokio::test]
async fn an_open_branch_may_be_read_only_or_the_initiators_own() {
    within(async {
        let cluster = Cluster::start().await;
        let service = Service::start(&cluster).await;
        let reading = {
            let stock = service.stock.clone();
            handler(move |request| {
                let stock = stock.clone();
                async move {
                    stock
                        .open_branch(request, async |mut tx, Item { name, .. }| {
                            let found = tx.get_u64("stock", &name).await?.unwrap_or(10);
                            Ok(item(&name, i64::try_from(found).unwrap_or(i64::MAX)))
                        })
                        .await
                }
            })
        };
        let channel = service.serve(reading).await;
        let own = Service::start(&cluster).await;
        let txn = own.participant.begin();
        let gtid = txn.gtid();
        for _ in 0..2 {
            assert_eq!(add(&txn, &channel, "bolt", 0).await.expect("readable"), 10);
        }
        for amount in [1, 2] {
            txn.open_branch(&own.stock, async move |mut tx| {
                let before = tx.get_u64_for_update("stock", "sum").await?.unwrap_or(0);
                Ok(tx.put_u64("stock", "sum", before + amount).await?)
            })
            .await
            .expect("open");
        }
        let committed = txn.commit().await.expect("one vote, one read-only");
        committed.delivered(DELIVERY).await.expect("acknowledged");
        assert_eq!(own.number("sum"), Some(3));
        assert_eq!(recorded(&own, gtid).await, (1, 1));
    })
    .await;
}

/// T4: calls that were made further down count, wherever they were made: the instance and the root agree on their number.
#[tokio::test]
async fn nested_calls_share_the_branch_with_direct_ones() {
    within(async {
        let cluster = Cluster::start().await;
        let (shop, buyer) = (Service::start(&cluster).await, Service::start(&cluster).await);
        let channel = shop.serve(shop.adding()).await;
        let below = channel.clone();
        let agent = Service::start(&cluster).await;
        let agents = agent
            .serve(handler(move |request: Request<Item>| {
                let below = below.clone();
                async move {
                    let joined = Joined::of(&request)?;
                    let wanted = request.into_inner();
                    let mut client = joined.client(&below, ShopClient::new);
                    client.call(wanted.clone()).await?;
                    client.call(wanted).await
                }
            }))
            .await;
        let txn = buyer.participant.begin();
        let gtid = txn.gtid();
        assert_eq!(add(&txn, &channel, "bolt", -1).await.expect("in stock"), 9);
        assert_eq!(add(&txn, &agents, "bolt", -2).await.expect("in stock"), 5);
        assert_eq!(add(&txn, &channel, "bolt", -1).await.expect("in stock"), 4);
        let committed = txn.commit().await.expect("one branch");
        committed.delivered(DELIVERY).await.expect("acknowledged");
        assert_eq!(shop.number("bolt"), Some(4));
        assert_eq!(recorded(&buyer, gtid).await, (1, 0));
    })
    .await;
}

/// T1, T3: nothing about open branches is in the log. The leader dies before the commit; the next one asks the instance.
#[tokio::test]
async fn the_next_leader_asks_as_the_first_would_have() {
    within(async {
        let mut cluster = Cluster::start().await;
        let (shop, buyer) = (Service::start(&cluster).await, Service::start(&cluster).await);
        let channel = shop.serve(shop.adding()).await;
        let txn = buyer.participant.begin();
        assert_eq!(add(&txn, &channel, "bolt", -3).await.expect("in stock"), 7);
        assert_eq!(add(&txn, &channel, "bolt", -3).await.expect("in stock"), 4);
        let (leader, _) = cluster.leader().await;
        cluster.kill(leader);
        let committed = txn.commit().await.expect("by the next leader");
        committed.delivered(DELIVERY).await.expect("acknowledged");
        assert_eq!(shop.number("bolt"), Some(4));
    })
    .await;
}

/// T2: the same call twice runs once in an open branch, and ends it: nobody can tell which of the replies was heard.
#[tokio::test]
async fn a_call_that_arrives_twice_aborts() {
    within(async {
        let cluster = Cluster::start().await;
        let (shop, buyer) = (Service::start(&cluster).await, Service::start(&cluster).await);
        let channel = shop.serve(shop.adding()).await;
        let txn = buyer.participant.begin();
        let repeated = txn
            .client(&Twice(channel.clone()), ShopClient::new)
            .call(item("bolt", -1))
            .await
            .expect_err("the second reply says so");
        assert_eq!(repeated.code(), Code::FailedPrecondition, "{repeated:?}");
        let late = add(&txn, &channel, "bolt", -1).await.expect_err("rolled back");
        assert!(late.message().contains("came twice"), "{late:?}");
        for status in [&repeated, &late] {
            let call = call_id(status.metadata()).expect("named");
            txn.discard(call).expect("made here");
        }
        match txn.commit().await {
            Err(CommitError::Invalid(text)) => assert!(text.contains("nothing to commit"), "{text}"),
            other => panic!("{other:?}"),
        }
        shop.is_at_rest().await;
        assert_eq!(shop.number("bolt"), None);
    })
    .await;
}

/// T4: a failed call takes its whole branch with it. Even if the caller goes on without that call, the instance votes to
/// abort: a part of the call's work had been done.
#[tokio::test]
async fn a_failed_call_takes_the_whole_branch_with_it() {
    within(async {
        let cluster = Cluster::start().await;
        let (shop, buyer) = (Service::start(&cluster).await, Service::start(&cluster).await);
        let channel = shop.serve(shop.adding()).await;
        let txn = buyer.participant.begin();
        assert_eq!(add(&txn, &channel, "bolt", -3).await.expect("in stock"), 7);
        let refused = add(&txn, &channel, "bolt", -8).await.expect_err("not enough");
        assert_eq!(refused.code(), Code::OutOfRange);
        txn.discard(call_id(refused.metadata()).expect("named"))
            .expect("made here");
        let (kind, text) = aborted_kind(txn.commit().await);
        assert_eq!(kind, AbortKind::VotedAbort, "{text}");
        assert!(text.contains("out of stock"), "{text}");
        shop.is_at_rest().await;
        assert_eq!(shop.number("bolt"), None);
    })
    .await;
}

/// T4: what a call did in an open branch cannot be taken out by discarding the call; the library says so before anything
/// is sent if it knows, and otherwise the count tells the instance.
#[tokio::test]
async fn a_discarded_call_of_an_open_branch_is_not_committed() {
    within(async {
        let cluster = Cluster::start().await;
        let (shop, buyer) = (Service::start(&cluster).await, Service::start(&cluster).await);
        let channel = shop.serve(shop.adding()).await;
        for (discarded, is_known) in [(0, true), (1, false)] {
            let txn = buyer.participant.begin();
            let mut calls = Vec::new();
            for _ in 0..2 {
                let reply = txn
                    .client(&channel, ShopClient::new)
                    .call(item("bolt", -1))
                    .await
                    .expect("in stock");
                calls.push(call_id(reply.metadata()).expect("named"));
            }
            txn.discard(calls[discarded]).expect("made here");
            match (txn.commit().await, is_known) {
                (Err(CommitError::Invalid(text)), true) => {
                    assert!(text.contains("ran 2 calls, of which 1"), "{text}");
                }
                (Err(CommitError::Aborted { cause, .. }), false) => {
                    assert!(cause.text.contains("2 calls ran"), "{cause}");
                }
                (other, _) => panic!("{other:?}"),
            }
            shop.is_at_rest().await;
        }
        assert_eq!(shop.number("bolt"), None);
    })
    .await;
}

/// T3: the open local transaction is gone with its process. Another process on the same database is another instance, and
/// the commit aborts as soon as it is clear that the first one does not come back.
#[tokio::test]
async fn a_restarted_instance_has_lost_what_was_open() {
    within(async {
        let cluster = Cluster::start().await;
        let buyer = Service::start(&cluster).await;
        let shop = Service::start(&cluster).await;
        let channel = shop.serve(shop.adding()).await;
        let txn = buyer.participant.begin();
        assert_eq!(add(&txn, &channel, "bolt", -3).await.expect("in stock"), 7);
        let folder = shop.folder.clone();
        shop.participant.shutdown().await;
        shop.stock.manager().close().await.expect("closed");
        drop(shop);
        let again = Service::start_in(&cluster, folder).await;
        let (kind, text) = aborted_kind(txn.commit().await);
        assert_eq!(kind, AbortKind::VotedAbort, "{text}");
        assert!(text.contains("instance"), "{text}");
        assert_eq!(again.number("bolt"), None);
        again.is_at_rest().await;
    })
    .await;
}

/// C13, T4: a caller that goes away in the middle of a call ends the branch; the initiator's abort reaches it too.
#[tokio::test]
async fn an_abandoned_call_and_an_abort_end_the_branch() {
    within(async {
        let cluster = Cluster::start().await;
        let (shop, buyer) = (Service::start(&cluster).await, Service::start(&cluster).await);
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let slow = {
            let (stock, begun, go_on) = (shop.stock.clone(), begun.clone(), go_on.clone());
            handler(move |request| {
                let (stock, begun, go_on) = (stock.clone(), begun.clone(), go_on.clone());
                async move {
                    stock
                        .open_branch(request, async move |mut tx, wanted: Item| {
                            tx.put_u64("stock", &wanted.name, 1).await?;
                            begun.notify_one();
                            go_on.notified().await;
                            Ok(wanted)
                        })
                        .await
                }
            })
        };
        let slowly = shop.serve(slow).await;
        let txn = buyer.participant.begin();
        tokio::select! {
            reply = add(&txn, &slowly, "bolt", 1) => panic!("nobody told it to go on: {reply:?}"),
            () = begun.notified() => {}
        }
        go_on.notify_one();
        shop.is_at_rest().await;
        assert!(matches!(txn.commit().await, Err(CommitError::Doomed { .. })));

        let channel = shop.serve(shop.adding()).await;
        let txn = buyer.participant.begin();
        assert_eq!(add(&txn, &channel, "bolt", -3).await.expect("in stock"), 7);
        txn.abort("changed my mind").await.expect("in the log");
        // Far below the idle timeout: the log's word ended it.
        tokio::time::timeout(Duration::from_secs(5), shop.is_at_rest())
            .await
            .expect("told");
        assert_eq!(shop.number("bolt"), None);
    })
    .await;
}

/// Many transactions at once over the same few keys, each of several calls, a leader killed in the middle: every commit
/// took effect as a whole, nothing else did.
#[tokio::test]
async fn money_is_conserved_over_many_open_branches_and_a_killed_leader() {
    const WORKER_COUNT: i64 = 4;
    within(async {
        let mut cluster = Cluster::start().await;
        let (left, right) = (Service::start(&cluster).await, Service::start(&cluster).await);
        let (to_left, to_right) = (left.serve(left.adding()).await, right.serve(right.adding()).await);
        let buyer = Arc::new(Service::start(&cluster).await);
        let mut running = tokio::task::JoinSet::new();
        let (committed_count, mut counted) = tokio::sync::watch::channel(0);
        for worker in 0..WORKER_COUNT {
            let (buyer, to_left, to_right) = (buyer.clone(), to_left.clone(), to_right.clone());
            let committed_count = committed_count.clone();
            running.spawn(async move {
                let mut moved: BTreeMap<String, i64> = BTreeMap::new();
                for round in 0..12_i64 {
                    let name = format!("key-{}", (worker + round) % 3);
                    let txn = buyer.participant.begin();
                    // Out of one, into the other, each in two calls.
                    let calls = async {
                        add(&txn, &to_left, &name, 2).await?;
                        add(&txn, &to_right, &name, 1).await?;
                        add(&txn, &to_left, &name, -1).await?;
                        add(&txn, &to_right, &name, -2).await
                    };
                    if calls.await.is_err() {
                        continue;
                    }
                    let committed = match txn.commit().await {
                        Ok(committed) => Some(committed),
                        Err(CommitError::InDoubt(in_doubt)) => in_doubt.resolve().await.ok(),
                        Err(_) => None,
                    };
                    if let Some(committed) = committed {
                        *moved.entry(name).or_default() += 1;
                        committed_count.send_modify(|count| *count += 1);
                        committed.delivered(DELIVERY).await.expect("delivered");
                    }
                }
                moved
            });
        }
        drop(committed_count);
        counted.wait_for(|count| *count >= 10).await.expect("ten commit");
        let (leader, _) = cluster.leader().await;
        cluster.kill(leader);
        let before = *counted.borrow();
        let mut moved: BTreeMap<String, i64> = BTreeMap::new();
        while let Some(ended) = running.join_next().await {
            for (name, count) in ended.expect("no panic") {
                *moved.entry(name).or_default() += count;
            }
        }
        left.is_at_rest().await;
        right.is_at_rest().await;
        // Each worker may have had one commit on its way when the leader died.
        let all = moved.values().sum::<i64>();
        assert!(
            all > before + WORKER_COUNT,
            "some commit under the next leader: {all}, {before} before"
        );
        for (name, count) in moved {
            let expected = |sum: i64| u64::try_from(10 + sum).ok();
            assert_eq!(left.number(&name), expected(count), "{name}");
            assert_eq!(right.number(&name), expected(-count), "{name}");
        }
    })
    .await;
}
