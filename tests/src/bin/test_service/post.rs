//! Sender and receiver of messages: each text lies in the sender's book and, once it took effect, in the receiver's, in a line
//! per key, so that the two files can be compared.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use synod::inbox::Inbox;
use synod::outbox::{Consumer, Message, Outbox};
use synod::resource::ResourceError;
use synod::resource::redb::{RedbResource, RedbTransaction};
use synod_tests::process::post::letterbox_server::{Letterbox, LetterboxServer};
use synod_tests::process::post::post_server::{Post, PostServer};
use synod_tests::process::post::{MendReply, MendRequest, ReadReply, ReadRequest, SendReply, SendRequest};
use synod_tests::process::station::{BOOK, RECEIVER, SENDER_HEADER, TOPIC, line};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::{listen, shutdown};

#[derive(Debug, clap::Args)]
pub(crate) struct SendArgs {
    /// The sender's name: its lines in the receiver's book carry it.
    #[arg(long)]
    name: String,
    #[arg(long)]
    database: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
    /// The receiver.
    #[arg(long)]
    to: SocketAddr,
    /// The name under which the receiver is known.
    #[arg(long, default_value = RECEIVER)]
    consumer: String,
    /// After so many failed attempts a message is a dead letter.
    #[arg(long)]
    attempts: u32,
    /// How many relays share the outbox.
    #[arg(long)]
    relays: u32,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReceiveArgs {
    #[arg(long)]
    database: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
}

/// Adds a text to a line.
async fn add(tx: &mut RedbTransaction, line: &str, text: &str) -> Result<(), ResourceError> {
    let before = tx.get_for_update(BOOK, line).await?.unwrap_or_default();
    let mut texts = before.to_vec();
    if !texts.is_empty() {
        texts.push(b' ');
    }
    texts.extend_from_slice(text.as_bytes());
    tx.put(BOOK, line, texts).await
}

struct Sender {
    name: String,
    store: RedbResource,
    outbox: Outbox,
}

#[tonic::async_trait]
impl Post for Sender {
    async fn send(&self, request: Request<SendRequest>) -> Result<Response<SendReply>, Status> {
        let SendRequest { key, text } = request.into_inner();
        let mut tx = self.store.begin_local()?;
        add(&mut tx, &line(&self.name, &key), &text).await?;
        let message = Message::new(TOPIC, &key, text).header(SENDER_HEADER, &self.name);
        let id = self.outbox.publish(&mut tx, message).await?;
        tx.commit().await?;
        Ok(Response::new(SendReply { id: id.0.to_vec() }))
    }
}

pub(crate) async fn send(args: &SendArgs) -> Result<(), Box<dyn Error>> {
    let stdin_closed = crate::trace_and_points().1;
    let store = RedbResource::open(&args.database)?;
    let consumer = Consumer::new(&args.consumer, format!("http://{}", args.to))
        .topic(TOPIC)
        .attempt_count_max(args.attempts);
    let outbox = Outbox::builder(&store).consumer(consumer).open().await?;
    for _ in 0..args.relays {
        tokio::spawn(outbox.relay().run());
    }
    let sender = Sender {
        name: args.name.clone(),
        store,
        outbox: outbox.clone(),
    };
    let incoming = listen(args.listen).await?;
    Server::builder()
        .add_service(outbox.admin_server())
        .add_service(PostServer::new(sender))
        .serve_with_incoming_shutdown(incoming, shutdown(stdin_closed)?)
        .await?;
    Ok(())
}

struct Receiver {
    store: RedbResource,
    is_mended: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl Letterbox for Receiver {
    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadReply>, Status> {
        let ReadRequest { sender, key } = request.into_inner();
        let texts = self.store.snapshot()?.get(BOOK, line(&sender, &key))?;
        let texts = String::from_utf8_lossy(&texts.unwrap_or_default()).into_owned();
        Ok(Response::new(ReadReply { texts }))
    }

    async fn mend(&self, request: Request<MendRequest>) -> Result<Response<MendReply>, Status> {
        self.is_mended
            .store(request.into_inner().is_mended, Ordering::SeqCst);
        Ok(Response::new(MendReply {}))
    }
}

pub(crate) async fn receive(args: &ReceiveArgs) -> Result<(), Box<dyn Error>> {
    let stdin_closed = crate::trace_and_points().1;
    let store = RedbResource::open(&args.database)?;
    let is_mended = Arc::new(AtomicBool::new(false));
    let inbox = Inbox::builder(&store)
        .handle(TOPIC, {
            let is_mended = is_mended.clone();
            move |delivery, mut tx| {
                let is_mended = is_mended.clone();
                async move {
                    let text = String::from_utf8(delivery.body.to_vec())?;
                    if text.starts_with("poison") && !is_mended.load(Ordering::SeqCst) {
                        return Err(format!("{text} cannot be read").into());
                    }
                    let sender = delivery.headers.get(SENDER_HEADER).ok_or("who sent this?")?;
                    let key = String::from_utf8(delivery.key.to_vec())?;
                    add(&mut tx, &line(sender, &key), &text).await?;
                    Ok(())
                }
            }
        })
        .build();
    let receiver = Receiver { store, is_mended };
    let incoming = listen(args.listen).await?;
    Server::builder()
        .add_service(inbox.server())
        .add_service(LetterboxServer::new(receiver))
        .serve_with_incoming_shutdown(incoming, shutdown(stdin_closed)?)
        .await?;
    Ok(())
}
