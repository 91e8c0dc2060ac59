//! The initiator: one global transaction for each order.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use synod::{CommitError, Committed, ConnectError, Participant, ResolveError, RetryError, RetryOptions};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::audit::{Verdict, row};
use crate::input::{Order, Stock};
use crate::kills::Turn;
use crate::services::shop::inventory::inventory_client::InventoryClient;
use crate::services::shop::inventory::{FillRequest, ReserveRequest, StockItem};
use crate::services::shop::orders::PlaceRequest;
use crate::services::shop::orders::orders_client::OrdersClient;
use synod_examples::cluster::endpoint;
use synod_proto::v1::outbox_admin_client::OutboxAdminClient;
use synod_proto::v1::{ConsumerStatus, OutboxStatusRequest};

/// An attempt fails only by a lock conflict or an outage. This many outlast an election, or the restart of a service, many times
/// over.
const ATTEMPT_COUNT_MAX: u32 = 200;

/// The pauses between two attempts, at most.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// How long all effects together may take to reach the services after the last commit.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the outbox is asked how far it is.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How many deliveries are asked for at the same time.
const DELIVERY_COUNT: usize = 256;

/// How many skus go into one message: far below gRPC's limit of 4 MiB for one.
const FILL_COUNT: usize = 1000;

/// The workload could not be finished. A refused order is no error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkloadError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the inventory could not be filled: {0}")]
    Fill(#[from] Status),
    #[error("order {order}: {source}")]
    Order {
        order: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The initiator's side of the shop.
#[derive(Debug)]
pub(crate) struct Shop {
    participant: Participant,
    orders: Channel,
    inventory: Channel,
}

/// How one order went.
#[derive(Debug)]
struct Placing {
    /// Its place in the input.
    index: usize,
    /// `None` if it was refused.
    committed: Option<Committed>,
    began_at: Instant,
    decided_at: Instant,
    transactions: u64,
    resolved: u64,
}

/// How all orders went, in the order of the input.
#[derive(Debug)]
pub(crate) struct Workload(Vec<Placing>);

impl Shop {
    /// Connects to the coordinator and, at the first call, to the services.
    pub(crate) async fn open(
        coordinators: &[String],
        orders: SocketAddr,
        inventory: SocketAddr,
    ) -> Result<Self, WorkloadError> {
        let participant = Participant::builder()
            .coordinators(coordinators)
            .connect()
            .await?;
        Ok(Self {
            participant,
            orders: endpoint(orders).connect_lazy(),
            inventory: endpoint(inventory).connect_lazy(),
        })
    }

    /// Puts the stock into inventory's database: a plain call, outside any global transaction.
    pub(crate) async fn fill(&self, stock: &Stock) -> Result<(), WorkloadError> {
        let items: Vec<_> = stock
            .iter()
            .map(|(sku, &quantity)| StockItem {
                sku: sku.clone(),
                quantity,
            })
            .collect();
        for items in items.chunks(FILL_COUNT) {
            InventoryClient::new(self.inventory.clone())
                .fill(FillRequest {
                    items: items.to_vec(),
                })
                .await?;
        }
        Ok(())
    }

    /// Places every order, `in_flight` of them at the same time.
    pub(crate) async fn place_all(
        &self,
        orders: &[Order],
        in_flight: u16,
        turn: &Turn,
        bar: &ProgressBar,
    ) -> Result<Workload, WorkloadError> {
        let placing = stream::iter(orders.iter().enumerate()).map(async |(index, order)| {
            turn.of(index).await;
            let placing = self.place(index, order).await?;
            turn.decided();
            bar.inc(1);
            Ok::<_, WorkloadError>(placing)
        });
        let mut placed: Vec<_> = placing
            .buffer_unordered(usize::from(in_flight))
            .try_collect()
            .await?;
        placed.sort_unstable_by_key(|placing| placing.index);
        Ok(Workload(placed))
    }

    /// Places one order in both services, or in neither.
    async fn place(&self, index: usize, order: &Order) -> Result<Placing, WorkloadError> {
        let began_at = Instant::now();
        let (transactions, mut resolved) = (Cell::new(0), 0);
        let options = RetryOptions::default()
            .attempt_count_max(ATTEMPT_COUNT_MAX)
            .pauses(PAUSE, PAUSE_MAX);
        let committed = loop {
            // Runs the closure under a new global transaction and commits it; again after a conflict or an outage. An
            // attempt that is told Aborted left nothing behind, and the order's id keeps a second row out in any case.
            let result = synod::retry(&self.participant, options, async |txn| {
                transactions.set(transactions.get() + 1);
                let mut orders = txn.client(&self.orders, OrdersClient::new);
                let mut inventory = txn.client(&self.inventory, InventoryClient::new);
                orders
                    .place(PlaceRequest {
                        order_id: order.id.clone(),
                        order: Some(row(order)),
                    })
                    .await?;
                inventory
                    .reserve(ReserveRequest {
                        sku: order.sku.clone(),
                        quantity: order.quantity,
                    })
                    .await?;
                Ok(())
            });
            match result.await {
                Ok(((), committed)) => break Some(committed),
                Err(RetryError::Work { source, .. }) if is_out_of_stock(source.as_ref()) => break None,
                // The request was on its way when the leader died: only the log knows, so ask it.
                Err(RetryError::Commit {
                    source: CommitError::InDoubt(in_doubt),
                    ..
                }) => {
                    resolved += 1;
                    match in_doubt.resolve().await {
                        Ok(committed) => break Some(committed),
                        Err(ResolveError::Aborted { .. }) => {}
                        Err(error) => return Err(failed(order, error.into())),
                    }
                }
                Err(error) => return Err(failed(order, error.into())),
            }
        };
        let decided_at = Instant::now();
        let gtid = committed.as_ref().map(Committed::gtid);
        tracing::debug!(order = order.id, sku = order.sku, ?gtid, took = ?decided_at - began_at, "decided");
        Ok(Placing {
            index,
            committed,
            began_at,
            decided_at,
            transactions: transactions.get(),
            resolved,
        })
    }

    /// Waits until both services have confirmed the effects of each placed order, so that their files show them. Returns
    /// how many have.
    pub(crate) async fn await_delivery(&self, workload: &Workload) -> usize {
        let deadline = Instant::now() + DELIVERY_TIMEOUT;
        let delivered = stream::iter(workload.0.iter().filter_map(|placing| placing.committed.as_ref()))
            .map(|committed| committed.delivered(deadline.saturating_duration_since(Instant::now())))
            .buffer_unordered(DELIVERY_COUNT);
        delivered
            .filter(|delivered| std::future::ready(delivered.is_ok()))
            .count()
            .await
    }

    /// Waits until both consumers have confirmed every message of orders' outbox. Returns what is missing, if the time is up
    /// before, or if there is a dead letter, which would wait for ever.
    pub(crate) async fn await_messages(&self) -> Vec<String> {
        let mut outbox = OutboxAdminClient::new(self.orders.clone());
        let deadline = Instant::now() + DELIVERY_TIMEOUT;
        loop {
            let missing = match outbox.status(OutboxStatusRequest {}).await {
                Ok(status) => {
                    let status = status.into_inner();
                    let missing = |consumer| missing(consumer, status.next_position);
                    if status
                        .consumers
                        .iter()
                        .all(|consumer| missing(consumer).is_none())
                    {
                        return Vec::new();
                    }
                    let is_dead = status.consumers.iter().any(|consumer| consumer.dead_count > 0);
                    let missing: Vec<_> = status.consumers.iter().filter_map(missing).collect();
                    if is_dead {
                        return missing;
                    }
                    missing
                }
                Err(status) => vec![format!("orders' outbox cannot be asked: {status}")],
            };
            if Instant::now() >= deadline {
                return missing;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Ends the session with the coordinator.
    pub(crate) async fn close(self) {
        self.participant.shutdown().await;
    }
}

/// What a consumer has not confirmed.
fn missing(consumer: &ConsumerStatus, next_position: u64) -> Option<String> {
    let ConsumerStatus {
        consumer,
        mark,
        dead_count,
        unsettled_count,
        trouble,
        ..
    } = consumer;
    if *dead_count > 0 {
        return Some(format!("{consumer} has {dead_count} dead letter(s)"));
    }
    let missing = next_position.saturating_sub(*mark) + unsettled_count;
    let why = if trouble.is_empty() {
        String::new()
    } else {
        format!(": {trouble}")
    };
    (missing > 0).then(|| format!("{consumer} has not confirmed the last {missing} message(s){why}"))
}

fn is_out_of_stock(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<Status>()
        .is_some_and(|status| status.code() == Code::OutOfRange)
}

fn failed(order: &Order, source: Box<dyn std::error::Error + Send + Sync>) -> WorkloadError {
    WorkloadError::Order {
        order: order.id.clone(),
        source,
    }
}

impl Workload {
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        self.0
            .iter()
            .map(|placing| {
                if placing.committed.is_some() {
                    Verdict::Placed
                } else {
                    Verdict::Refused
                }
            })
            .collect()
    }

    pub(crate) fn placed_count(&self) -> usize {
        self.commits().len()
    }

    /// When each commit was known.
    pub(crate) fn commits(&self) -> Vec<Instant> {
        self.0
            .iter()
            .filter(|placing| placing.committed.is_some())
            .map(|placing| placing.decided_at)
            .collect()
    }

    pub(crate) fn latencies(&self) -> Vec<Duration> {
        self.0
            .iter()
            .map(|placing| placing.decided_at - placing.began_at)
            .collect()
    }

    pub(crate) fn transactions(&self) -> u64 {
        self.0.iter().map(|placing| placing.transactions).sum()
    }

    pub(crate) fn resolved(&self) -> u64 {
        self.0.iter().map(|placing| placing.resolved).sum()
    }

    /// From the first begin to the last decision.
    pub(crate) fn elapsed(&self) -> Duration {
        let began_at = self.0.iter().map(|placing| placing.began_at).min();
        let decided_at = self.0.iter().map(|placing| placing.decided_at).max();
        began_at
            .zip(decided_at)
            .map_or(Duration::ZERO, |(began_at, decided_at)| decided_at - began_at)
    }
}
