//! The service *orders*: a row for each order, and a message for each row, which others consume.

use std::error::Error;

use prost::Message as _;
use synod::outbox::{Consumer, Message, Outbox};
use synod::resource::redb::RedbResource;
use synod::{Participant, Resource};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::shop::orders::orders_server::{Orders, OrdersServer};
use super::shop::orders::{OrderPlaced, OrderRow, PlaceReply, PlaceRequest};
use crate::cli::OrdersArgs;
use synod_examples::process;

/// Order id to encoded `OrderRow`.
pub(super) const ORDERS: &str = "orders";

/// Customer to the number of orders, as `put_u64` stores it.
const CUSTOMERS: &str = "customers";

/// The topic of `OrderPlaced`.
pub(super) const PLACED: &str = "orders.placed";

struct OrdersService {
    database: Resource<RedbResource>,
    outbox: Outbox,
}

#[tonic::async_trait]
impl Orders for OrdersService {
    async fn place(&self, request: Request<PlaceRequest>) -> Result<Response<PlaceReply>, Status> {
        let outbox = self.outbox.clone();
        self.database
            .branch(request, async move |mut tx, request| {
                let PlaceRequest { order_id, order } = request;
                let order = order.ok_or_else(|| Status::invalid_argument("the order is missing"))?;
                // Locks the customer until the global transaction's outcome, so that the numbers have no gap.
                let number = 1 + tx
                    .get_u64_for_update(CUSTOMERS, &order.customer)
                    .await?
                    .unwrap_or(0);
                tx.put_u64(CUSTOMERS, &order.customer, number).await?;
                let row = OrderRow {
                    order: Some(order.clone()),
                    number,
                };
                // Answers false if there is such a row: an order is placed once, however often it is tried.
                if !tx.insert(ORDERS, &order_id, row.encode_to_vec()).await? {
                    return Err(Status::already_exists(format!(
                        "order {order_id} is placed already"
                    )));
                }
                // In the branch, so it goes out if the global transaction commits, and never otherwise. A customer's
                // messages arrive in the order in which they were published.
                let key = order.customer.clone();
                let placed = OrderPlaced {
                    order_id,
                    order: Some(order),
                };
                let message = Message::new(PLACED, key, placed.encode_to_vec());
                outbox.publish(&mut tx, message).await?;
                Ok(PlaceReply {})
            })
            .await
    }
}

/// Runs the service, and the relay of its messages, until `shutdown`.
pub(crate) async fn run(args: OrdersArgs, shutdown: CancellationToken) -> Result<(), Box<dyn Error>> {
    let participant = Participant::builder()
        .coordinators(&args.participant.coordinators)
        .connect_timeout(super::CONNECT_TIMEOUT)
        .connect()
        .await?;
    // Also takes up the branches that an earlier process left in doubt.
    let store = RedbResource::open(&args.participant.service.database)?;
    let database = participant.resource(store.clone()).await?;
    // What an earlier process did not see confirmed is sent again.
    let outbox = Outbox::builder(&store)
        .consumer(Consumer::new("notifications", args.notifications).topic(PLACED))
        .consumer(Consumer::new("billing", args.billing).topic(PLACED))
        .open()
        .await?;
    let relay = tokio::spawn(outbox.relay().run());
    let listener = TcpListener::from_std(process::bind(args.participant.service.listen)?)?;
    process::announce(listener.local_addr()?)?;
    Server::builder()
        .layer(participant.layer())
        // For operators: what is waiting, and dead letters.
        .add_service(outbox.admin_server())
        .add_service(OrdersServer::new(OrdersService { database, outbox }))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.cancelled_owned(),
        )
        .await?;
    relay.abort();
    participant.shutdown().await;
    Ok(())
}
