//! The service *billing*: consumes placed orders, writes an invoice for each, and keeps what each customer owes. It takes part in
//! no global transaction, and knows no coordinator.

use std::error::Error;

use prost::Message as _;
use synod::inbox::Inbox;
use synod::resource::redb::RedbResource;
use tokio_util::sync::CancellationToken;

use super::orders::PLACED;
use super::shop::billing::{Account, Invoice};
use super::shop::orders::OrderPlaced;
use crate::cli::ServiceArgs;

/// Customer and number to encoded `Invoice`.
pub(super) const INVOICES: &str = "invoices";

/// Customer to encoded `Account`.
pub(super) const ACCOUNTS: &str = "accounts";

/// In this shop every item costs the same.
pub(crate) const PRICE_CENTS: u64 = 450;

/// Runs the service until `shutdown`.
pub(crate) async fn run(args: ServiceArgs, shutdown: CancellationToken) -> Result<(), Box<dyn Error>> {
    let database = RedbResource::open(&args.database)?;
    let inbox = Inbox::builder(&database)
        .name("billing")
        .handle(PLACED, async |delivery, mut tx| {
            let placed = OrderPlaced::decode(delivery.body)?;
            let order = placed.order.ok_or("the order is missing")?;
            let customer = delivery.key;
            let account = tx.get_for_update(ACCOUNTS, &customer).await?;
            let mut account = account.map(Account::decode).transpose()?.unwrap_or_default();
            let amount_cents = u64::from(order.quantity) * PRICE_CENTS;
            account.invoice_count += 1;
            account.balance_cents += amount_cents;
            let invoice = Invoice {
                order_id: placed.order_id,
                amount_cents,
                balance_cents: account.balance_cents,
            };
            let key = super::numbered(&customer, account.invoice_count);
            tx.put(INVOICES, key, invoice.encode_to_vec()).await?;
            tx.put(ACCOUNTS, &customer, account.encode_to_vec()).await?;
            Ok(())
        })
        .build();
    super::serve_inbox(&inbox, args.listen, shutdown).await
}
