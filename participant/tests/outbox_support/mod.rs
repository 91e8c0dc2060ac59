//! What the tests of outbox and inbox share: services in this process that talk over real loopback gRPC, and the record of what
//! took effect.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod scripted;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use synod::inbox::Inbox;
use synod::outbox::{Consumer, Message, Outbox, Relay};
use synod::resource::redb::{RedbOptions, RedbResource};
use synod::{BoxError, MessageId};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::server::Router;

pub const TOPIC: &str = "orders.placed";

/// Every test has a deadline: a hang is a failure, not a wait.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("the test hangs")
}

/// Waits for a state that others bring about.
pub async fn eventually(what: &str, mut is_reached: impl AsyncFnMut() -> bool) {
    let reached = async {
        while !is_reached().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reached)
        .await
        .unwrap_or_else(|_| panic!("never reached: {what}"));
}

pub fn memory() -> RedbResource {
    RedbOptions::default()
        .open_backend(redb::backends::InMemoryBackend::new)
        .expect("opens")
}

/// A server in a runtime of its own, which dies with everything in it when this is dropped, as if its process had been killed.
pub struct Serving {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Serving {
    /// Streams and handlers end where they are.
    pub fn kill(self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

pub async fn serve(inbox: &Inbox) -> Serving {
    serve_at(inbox, "127.0.0.1:0".parse().expect("an address")).await
}

pub async fn serve_at(inbox: &Inbox, address: SocketAddr) -> Serving {
    let mut server = tonic::transport::Server::builder();
    serve_router(server.add_service(inbox.server()), address).await
}

async fn serve_router(router: Router, address: SocketAddr) -> Serving {
    let listener = loop {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => break listener,
            // The one before is still closing.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("settable");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        router
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .expect("serves");
    });
    Serving {
        address,
        runtime: Some(runtime),
    }
}

/// The consumer's effect: appends the body to a list per key, and counts what it has seen.
pub async fn append(
    tx: &mut synod::inbox::InboxTransaction,
    key: &[u8],
    body: &[u8],
) -> Result<(), BoxError> {
    let mut list = tx
        .get_for_update("effects", key)
        .await?
        .unwrap_or_default()
        .to_vec();
    if !list.is_empty() {
        list.push(b' ');
    }
    list.extend_from_slice(body);
    tx.put("effects", key, list).await?;
    Ok(())
}

/// An inbox that appends every message of [`TOPIC`].
pub fn appending(store: &RedbResource) -> Inbox {
    Inbox::builder(store)
        .handle(TOPIC, async |delivery, mut tx| {
            append(&mut tx, &delivery.key, &delivery.body).await
        })
        .build()
}

/// What took effect for a key.
pub fn effects(store: &RedbResource, key: &str) -> String {
    let value = store
        .snapshot()
        .expect("open")
        .get("effects", key)
        .expect("readable");
    String::from_utf8(value.unwrap_or_default().into()).expect("text")
}

pub async fn open(store: &RedbResource, consumers: impl IntoIterator<Item = Consumer>) -> Outbox {
    let builder = consumers
        .into_iter()
        .fold(Outbox::builder(store), |builder, consumer| {
            builder.consumer(consumer)
        });
    builder.open().await.expect("opens")
}

/// A consumer that is retried fast.
pub fn consumer(name: &str, url: String) -> Consumer {
    Consumer::new(name, url)
        .topic(TOPIC)
        .backoff(Duration::from_millis(2), Duration::from_millis(20))
}

/// A relay in a task, which ends with this.
pub struct Running(JoinHandle<()>);

pub fn run(relay: Relay) -> Running {
    Running(tokio::spawn(async move {
        let never = relay.run().await;
        match never {}
    }))
}

impl Running {
    pub async fn kill(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Publishes one message in a local transaction of its own.
pub async fn publish(outbox: &Outbox, store: &RedbResource, key: &str, body: &str) -> MessageId {
    publish_message(outbox, store, Message::new(TOPIC, key, body.to_owned())).await
}

pub async fn publish_message(outbox: &Outbox, store: &RedbResource, message: Message) -> MessageId {
    let mut tx = store.begin_local().expect("open");
    let id = outbox.publish(&mut tx, message).await.expect("published");
    tx.commit().await.expect("commits");
    id
}

/// The rows that remain: messages, scheduled ones, and dead letters.
pub async fn stored(outbox: &Outbox) -> (u64, u64, u64) {
    let status = outbox.status().await.expect("readable");
    let dead = status.consumers.iter().map(|consumer| consumer.dead_count).sum();
    (status.stored_count, status.scheduled_count, dead)
}
