//! The service *inventory*: one table, with what is left of each sku.

use std::error::Error;

use synod::resource::redb::RedbResource;
use synod::{Participant, Resource};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::shop::inventory::inventory_server::{Inventory, InventoryServer};
use super::shop::inventory::{FillReply, FillRequest, ReserveReply, ReserveRequest, StockItem};
use crate::cli::ParticipantArgs;
use synod_examples::process;

/// Sku to quantity, as `put_u64` stores it.
pub(super) const STOCK: &str = "stock";

struct InventoryService {
    database: Resource<RedbResource>,
}

#[tonic::async_trait]
impl Inventory for InventoryService {
    async fn reserve(&self, request: Request<ReserveRequest>) -> Result<Response<ReserveReply>, Status> {
        self.database
            .branch(request, async |mut tx, request| {
                let ReserveRequest { sku, quantity } = request;
                // Locks the row until the global transaction's outcome: nobody changes it between this read and the write.
                let Some(stock) = tx.get_u64_for_update(STOCK, &sku).await? else {
                    return Err(Status::not_found(format!(
                        "{sku} is not in the range of this shop"
                    )));
                };
                let Some(left) = stock.checked_sub(quantity.into()) else {
                    return Err(Status::out_of_range(format!(
                        "{quantity} of {sku} are wanted, {stock} are left"
                    )));
                };
                tx.put_u64(STOCK, &sku, left).await?;
                Ok(ReserveReply { left })
            })
            .await
    }

    async fn fill(&self, request: Request<FillRequest>) -> Result<Response<FillReply>, Status> {
        // No other service takes part, so a local transaction is enough.
        let mut tx = self.database.manager().begin_local()?;
        for StockItem { sku, quantity } in request.into_inner().items {
            tx.put_u64(STOCK, sku, quantity).await?;
        }
        tx.commit().await?;
        Ok(Response::new(FillReply {}))
    }
}

/// Runs the service until `shutdown`.
pub(crate) async fn run(args: ParticipantArgs, shutdown: CancellationToken) -> Result<(), Box<dyn Error>> {
    let participant = Participant::builder()
        .coordinators(&args.coordinators)
        .connect_timeout(super::CONNECT_TIMEOUT)
        .connect()
        .await?;
    // Also takes up the branches that an earlier process left in doubt.
    let database = RedbResource::open(&args.service.database)?;
    let database = participant.resource(database).await?;
    let listener = TcpListener::from_std(process::bind(args.service.listen)?)?;
    process::announce(listener.local_addr()?)?;
    Server::builder()
        .layer(participant.layer())
        .add_service(InventoryServer::new(InventoryService { database }))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.cancelled_owned(),
        )
        .await?;
    participant.shutdown().await;
    Ok(())
}
