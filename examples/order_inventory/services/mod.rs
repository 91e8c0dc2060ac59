//! The four services, each a gRPC server over its own redb file. [`orders`] and [`inventory`] are what a participant of one's
//! own looks like, [`notifications`] and [`billing`] what a consumer of messages; here is what the driver needs of them.

use std::error::Error;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::bytes::Bytes;
use synod::inbox::Inbox;
use synod::resource::ResourceError;
use synod::resource::redb::{RedbFile, Row, Snapshot};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::audit::Ledger;
use synod_examples::process::{self, Process, ProcessError};

pub(crate) mod billing;
pub(crate) mod inventory;
pub(crate) mod notifications;
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
    pub(crate) mod notifications {
        tonic::include_proto!("shop.notifications.v1");
    }
    pub(crate) mod billing {
        tonic::include_proto!("shop.billing.v1");
    }
}

/// How long a participant waits for a coordinator that is losing its leader just now.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// In a service's process: runs it until the driver ends it.
pub(crate) fn main<A>(
    args: A,
    run: impl AsyncFnOnce(A, CancellationToken) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    process::start_trace(std::io::stderr);
    let shutdown = process::until_driver_ends();
    tokio::runtime::Runtime::new()?.block_on(run(args, shutdown))
}

/// In a consumer's process: takes messages until `shutdown`.
async fn serve_inbox(
    inbox: &Inbox,
    listen: SocketAddr,
    shutdown: CancellationToken,
) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::from_std(process::bind(listen)?)?;
    process::announce(listener.local_addr()?)?;
    Server::builder()
        .add_service(inbox.server())
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.cancelled_owned(),
        )
        .await?;
    Ok(())
}

/// The key of a customer's row with this number. Rows of a customer lie in the order of their numbers.
fn numbered(customer: &[u8], number: u64) -> Vec<u8> {
    [customer, &number.to_be_bytes()].concat()
}

/// The opposite of [`numbered`].
fn customer_and_number(key: &[u8]) -> Result<(String, u64), String> {
    let (customer, number) = key
        .split_last_chunk()
        .ok_or("the key is too short for a number")?;
    Ok((utf8(customer)?, u64::from_be_bytes(*number)))
}

/// The services' names; each is also its process's name, and with `.redb` its file's.
const ORDERS: &str = "orders";
const INVENTORY: &str = "inventory";
const NOTIFICATIONS: &str = "notifications";
const BILLING: &str = "billing";

fn file(data: &Path, service: &str) -> PathBuf {
    data.join(format!("{service}.redb"))
}

/// In the driver: the services as processes. Dropping them kills them.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) orders: Process,
    pub(crate) inventory: Process,
    notifications: Process,
    pub(crate) billing: Process,
    launch: Launch,
}

/// How services are started.
#[derive(Debug)]
struct Launch {
    data: PathBuf,
    traces: PathBuf,
    coordinators: String,
}

impl Launch {
    /// At `address` again, or anywhere; with more arguments than every service has.
    async fn start(
        &self,
        service: &str,
        address: Option<SocketAddr>,
        more: &[&str],
    ) -> Result<Process, ProcessError> {
        let mut args: Vec<OsString> = vec![
            format!("{service}-service").into(),
            "--database".into(),
            file(&self.data, service).into(),
        ];
        if let Some(address) = address {
            args.extend(["--listen".into(), address.to_string().into()]);
        }
        args.extend(more.iter().map(OsString::from));
        Process::start(service, args, &self.traces).await
    }

    async fn consumer(&self, service: &str, address: Option<SocketAddr>) -> Result<Process, ProcessError> {
        self.start(service, address, &[]).await
    }

    async fn inventory(&self, address: Option<SocketAddr>) -> Result<Process, ProcessError> {
        let more = ["--coordinators", &self.coordinators];
        self.start(INVENTORY, address, &more).await
    }

    /// Needs to know where its messages go.
    async fn orders(
        &self,
        address: Option<SocketAddr>,
        notifications: SocketAddr,
        billing: SocketAddr,
    ) -> Result<Process, ProcessError> {
        let (notifications, billing) = (format!("http://{notifications}"), format!("http://{billing}"));
        let more = [
            "--coordinators",
            &self.coordinators,
            "--notifications",
            &notifications,
            "--billing",
            &billing,
        ];
        self.start(ORDERS, address, &more).await
    }
}

impl Services {
    /// Starts all, each with a file in `data`.
    pub(crate) async fn start(
        data: &Path,
        traces: &Path,
        coordinators: &[String],
    ) -> Result<Self, ProcessError> {
        let launch = Launch {
            data: data.to_owned(),
            traces: traces.to_owned(),
            coordinators: coordinators.join(","),
        };
        let (inventory, notifications, billing) = tokio::try_join!(
            launch.inventory(None),
            launch.consumer(NOTIFICATIONS, None),
            launch.consumer(BILLING, None)
        )?;
        let orders = launch
            .orders(None, notifications.address, billing.address)
            .await?;
        Ok(Self {
            orders,
            inventory,
            notifications,
            billing,
            launch,
        })
    }

    pub(crate) fn processes(&self) -> [&Process; 4] {
        [&self.orders, &self.inventory, &self.notifications, &self.billing]
    }

    /// Starts inventory again, which was killed, on its port and with its file.
    pub(crate) async fn restart_inventory(&mut self) -> Result<(), ProcessError> {
        self.inventory.gone().await?;
        self.inventory = self.launch.inventory(Some(self.inventory.address)).await?;
        Ok(())
    }

    /// Starts orders again, which was killed, on its port and with its file; and with it the relay.
    pub(crate) async fn restart_orders(&mut self) -> Result<(), ProcessError> {
        self.orders.gone().await?;
        let (notifications, billing) = (self.notifications.address, self.billing.address);
        let address = Some(self.orders.address);
        self.orders = self.launch.orders(address, notifications, billing).await?;
        Ok(())
    }

    /// Starts billing again, which was killed, on its port and with its file.
    pub(crate) async fn restart_billing(&mut self) -> Result<(), ProcessError> {
        self.billing.gone().await?;
        self.billing = self.launch.consumer(BILLING, Some(self.billing.address)).await?;
        Ok(())
    }

    /// Resolves when one of them ends by itself.
    pub(crate) async fn unexpected_end(&mut self) -> ProcessError {
        tokio::select! {
            error = self.orders.unexpected_end() => error,
            error = self.inventory.unexpected_end() => error,
            error = self.notifications.unexpected_end() => error,
            error = self.billing.unexpected_end() => error,
        }
    }

    /// Stops all gracefully; the relay first, whose streams the consumers would wait for.
    pub(crate) async fn stop(&mut self) -> Result<(), ProcessError> {
        self.orders.stop().await?;
        self.inventory.stop().await?;
        self.notifications.stop().await?;
        self.billing.stop().await
    }
}

/// How many rows are read at a time.
const PAGE_COUNT: usize = 10_000;

/// Reads all files, after the services have ended: not through any code of theirs.
pub(crate) fn read_files(data: &Path) -> Result<Ledger, ResourceError> {
    let open = |service| RedbFile::open(file(data, service))?.snapshot();
    let (orders, inventory) = (open(ORDERS)?, open(INVENTORY)?);
    let (notifications, billing) = (open(NOTIFICATIONS)?, open(BILLING)?);
    let mut ledger = Ledger {
        in_doubt: orders.in_doubt()?.len() + inventory.in_doubt()?.len(),
        ..Ledger::default()
    };
    each_row(&orders, orders::ORDERS, |(id, row)| {
        ledger.orders.insert(utf8(&id)?, decode(row)?);
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
    each_row(&notifications, notifications::NOTIFICATIONS, |(key, row)| {
        let (customer, number) = customer_and_number(&key)?;
        let rows = ledger.notifications.entry(customer).or_default();
        rows.push((number, decode(row)?));
        Ok(())
    })?;
    each_row(&billing, billing::INVOICES, |(key, row)| {
        let (customer, number) = customer_and_number(&key)?;
        let rows = ledger.invoices.entry(customer).or_default();
        rows.push((number, decode(row)?));
        Ok(())
    })?;
    each_row(&billing, billing::ACCOUNTS, |(customer, row)| {
        ledger.accounts.insert(utf8(&customer)?, decode(row)?);
        Ok(())
    })?;
    Ok(ledger)
}

fn decode<M: prost::Message + Default>(row: Bytes) -> Result<M, String> {
    M::decode(row).map_err(|error| error.to_string())
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
