//! The service *notifications*: consumes placed orders, and writes a row for each, numbered for each customer. It takes part in no
//! global transaction, and knows no coordinator.

use std::error::Error;

use prost::Message as _;
use synod::inbox::Inbox;
use synod::resource::redb::RedbResource;
use tokio_util::sync::CancellationToken;

use super::orders::PLACED;
use super::shop::notifications::Notification;
use super::shop::orders::OrderPlaced;
use crate::cli::ServiceArgs;

/// Customer and number to encoded `Notification`.
pub(super) const NOTIFICATIONS: &str = "notifications";

/// Customer to the number of notifications, as `put_u64` stores it.
const CUSTOMERS: &str = "customers";

/// Runs the service until `shutdown`.
pub(crate) async fn run(args: ServiceArgs, shutdown: CancellationToken) -> Result<(), Box<dyn Error>> {
    let database = RedbResource::open(&args.database)?;
    let inbox = Inbox::builder(&database)
        .name("notifications")
        // What is written with this `tx` and the inbox's own row are one local transaction: a message that comes twice is
        // recognised, and counts once.
        .handle(PLACED, async |delivery, mut tx| {
            let placed = OrderPlaced::decode(delivery.body)?;
            let customer = delivery.key;
            let number = 1 + tx.get_u64_for_update(CUSTOMERS, &customer).await?.unwrap_or(0);
            tx.put_u64(CUSTOMERS, &customer, number).await?;
            let notification = Notification {
                order_id: placed.order_id,
            };
            let key = super::numbered(&customer, number);
            tx.put(NOTIFICATIONS, key, notification.encode_to_vec()).await?;
            Ok(())
        })
        .build();
    super::serve_inbox(&inbox, args.listen, shutdown).await
}
