//! The two services, each a gRPC server over its own redb file. [`orders`] and [`inventory`] are what a service of one's
//! own looks like; here is what the driver needs of them.

use std::error::Error;
use std::ffi::OsString;
use std::path::Path;

use prost::Message as _;
use synod::resource::ResourceError;
use synod::resource::redb::{RedbFile, Row, Snapshot};
use tokio_util::sync::CancellationToken;

use crate::audit::Ledger;
use crate::cli::ServiceArgs;
use synod_examples::process::{self, Process, ProcessError};

pub(crate) mod inventory;
pub(crate) mod orders;

/// Generated code of the services' .proto files.
#[allow(unreachable_pub, clippy::all)]
pub(crate) mod shop {
    pub(crate) mod orders {
        tonic::include_proto!("shop.orders.v1");
    }
    pub(crate) mod inventory {
        tonic::include_proto!("shop.inventory.v1");
    }
}

const ORDERS_FILE: &str = "orders.redb";
const INVENTORY_FILE: &str = "inventory.redb";

/// In a service's process: runs it until the driver ends it.
pub(crate) fn main(
    args: ServiceArgs,
    run: impl AsyncFnOnce(ServiceArgs, CancellationToken) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    process::start_trace(std::io::stderr);
    let shutdown = process::until_driver_ends();
    tokio::runtime::Runtime::new()?.block_on(run(args, shutdown))
}

/// In the driver: both services as processes.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) orders: Process,
    pub(crate) inventory: Process,
}

impl Services {
    /// Starts both, each with a file in `data`.
    pub(crate) async fn start(
        data: &Path,
        traces: &Path,
        coordinators: &[String],
    ) -> Result<Self, ProcessError> {
        let start = async |name: &str, role: &str, file: &str| {
            let args: Vec<OsString> = vec![
                role.into(),
                "--database".into(),
                data.join(file).into(),
                "--coordinators".into(),
                coordinators.join(",").into(),
            ];
            Process::start(name, args, traces).await
        };
        let (orders, inventory) = tokio::try_join!(
            start("orders", "orders-service", ORDERS_FILE),
            start("inventory", "inventory-service", INVENTORY_FILE)
        )?;
        Ok(Self { orders, inventory })
    }

    pub(crate) fn processes(&self) -> [&Process; 2] {
        [&self.orders, &self.inventory]
    }

    /// Resolves when one of them ends by itself.
    pub(crate) async fn unexpected_end(&mut self) -> ProcessError {
        tokio::select! {
            error = self.orders.unexpected_end() => error,
            error = self.inventory.unexpected_end() => error,
        }
    }

    /// Stops both gracefully.
    pub(crate) async fn stop(&mut self) -> Result<(), ProcessError> {
        self.orders.stop().await?;
        self.inventory.stop().await
    }
}

/// How many rows are read at a time.
const PAGE_COUNT: usize = 10_000;

/// Reads both files, after the services have ended: not through any code of theirs.
pub(crate) fn read_files(data: &Path) -> Result<Ledger, ResourceError> {
    let orders = RedbFile::open(data.join(ORDERS_FILE))?.snapshot()?;
    let inventory = RedbFile::open(data.join(INVENTORY_FILE))?.snapshot()?;
    let mut ledger = Ledger {
        in_doubt: orders.in_doubt()?.len() + inventory.in_doubt()?.len(),
        ..Ledger::default()
    };
    each_row(&orders, orders::ORDERS, |(id, row)| {
        let order = shop::orders::Order::decode(row).map_err(|error| error.to_string())?;
        ledger.orders.insert(utf8(&id)?, order);
        Ok(())
    })?;
    each_row(&inventory, inventory::STOCK, |(sku, row)| {
        let row = row
            .as_ref()
            .try_into()
            .map_err(|_| format!("{} bytes instead of 8", row.len()))?;
        ledger.stock.insert(utf8(&sku)?, u64::from_be_bytes(row));
        Ok(())
    })?;
    Ok(ledger)
}

fn each_row(
    snapshot: &Snapshot,
    table: &str,
    mut take: impl FnMut(Row) -> Result<(), String>,
) -> Result<(), ResourceError> {
    let mut after = None;
    loop {
        let rows = snapshot.scan_page(table, "", after.as_deref(), PAGE_COUNT)?;
        let Some((last, _)) = rows.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        for row in rows {
            let key = row.0.clone();
            take(row).map_err(|text| ResourceError::Invalid {
                text: format!("`{table}`/{key:?}: {text}"),
            })?;
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string())
}
