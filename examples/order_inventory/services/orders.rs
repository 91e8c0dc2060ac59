//! The service *orders*: one table, with a row for each order.

use std::error::Error;
use std::net::Ipv4Addr;

use prost::Message as _;
use synod::resource::redb::RedbResource;
use synod::{Participant, Resource};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::shop::orders::orders_server::{Orders, OrdersServer};
use super::shop::orders::{PlaceReply, PlaceRequest};
use crate::cli::ServiceArgs;
use synod_examples::process;

/// Order id to encoded `Order`.
pub(super) const ORDERS: &str = "orders";

struct OrdersService {
    database: Resource<RedbResource>,
}

#[tonic::async_trait]
impl Orders for OrdersService {
    async fn place(&self, request: Request<PlaceRequest>) -> Result<Response<PlaceReply>, Status> {
        self.database
            .branch(request, async |mut tx, request| {
                let PlaceRequest { order_id, order } = request;
                let order = order.ok_or_else(|| Status::invalid_argument("the order is missing"))?;
                // Answers false if there is such a row: an order is placed once, however often it is tried.
                if !tx.insert(ORDERS, &order_id, order.encode_to_vec()).await? {
                    return Err(Status::already_exists(format!(
                        "order {order_id} is placed already"
                    )));
                }
                Ok(PlaceReply {})
            })
            .await
    }
}

/// Runs the service until `shutdown`.
pub(crate) async fn run(args: ServiceArgs, shutdown: CancellationToken) -> Result<(), Box<dyn Error>> {
    let participant = Participant::builder()
        .coordinators(&args.coordinators)
        .connect()
        .await?;
    // Also takes up the branches that an earlier process left in doubt.
    let database = participant.resource(RedbResource::open(&args.database)?).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    process::announce(listener.local_addr()?)?;
    Server::builder()
        .layer(participant.layer())
        .add_service(OrdersServer::new(OrdersService { database }))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.cancelled_owned(),
        )
        .await?;
    participant.shutdown().await;
    Ok(())
}
