//! What the tests of the public API run against: a coordinator in memory that keeps the register's rules, a
//! store in memory that keeps the resource manager's contract, and a gRPC service whose methods are closures.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

pub mod coordinator;
pub mod shop;
pub mod store;
pub mod twice;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use synod::{Participant, Resource};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use coordinator::TestCoordinator;
use shop::{Handler, Item, ShopServer, handler};
use store::MemoryStore;
use tonic::Status;

/// No test may hang: everything below takes milliseconds.
pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("the test ends in time")
}

/// Waits for a state that another task brings about.
pub async fn eventually(what: &str, mut is_reached: impl FnMut() -> bool) {
    let reached = async {
        while !is_reached() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reached)
        .await
        .unwrap_or_else(|_| panic!("never reached: {what}"));
}

/// One process of the tests: a participant with one database.
pub struct Service {
    pub participant: Participant,
    pub store: MemoryStore,
    pub resource: Resource<MemoryStore>,
}

impl Service {
    pub async fn start(coordinator: &TestCoordinator) -> Self {
        let participant = Participant::builder()
            .coordinators([coordinator.address()])
            .decide_timeout(Duration::from_secs(5))
            .connect()
            .await
            .expect("the coordinator answers");
        let store = MemoryStore::default();
        let resource = participant
            .resource(store.clone())
            .await
            .expect("the store attaches");
        Self {
            participant,
            store,
            resource,
        }
    }

    /// Serves the shop's methods behind the participant's layer.
    pub async fn serve(&self, handler: Handler) -> tonic::transport::Channel {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let server = tonic::transport::Server::builder()
            .layer(self.participant.layer())
            .add_service(ShopServer::new(handler))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        channel(address)
    }
}

/// Serves without the participant's layer.
pub async fn serve_bare(handler: Handler) -> tonic::transport::Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let server = tonic::transport::Server::builder()
        .add_service(ShopServer::new(handler))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    channel(address)
}

fn channel(address: SocketAddr) -> tonic::transport::Channel {
    tonic::transport::Endpoint::from_shared(format!("http://{address}"))
        .expect("an address")
        .connect_lazy()
}

/// How long effects may take.
pub const DELIVERY: Duration = Duration::from_secs(5);

/// What a store is expected to hold.
pub fn numbers(pairs: &[(&str, i64)]) -> BTreeMap<String, i64> {
    pairs
        .iter()
        .map(|(name, number)| ((*name).to_owned(), *number))
        .collect()
}

/// A transactional method: adds an amount to a number. A negative result is a business refusal.
pub fn adding(service: &Service) -> Handler {
    let resource = service.resource.clone();
    handler(move |request| {
        let resource = resource.clone();
        async move {
            resource
                .branch(request, async move |mut tx, item: Item| {
                    match tx.add(&item.name, item.amount) {
                        left if left < 0 => Err(Status::out_of_range("out of stock")),
                        left => Ok(shop::item(&item.name, left)),
                    }
                })
                .await
        }
    })
}
