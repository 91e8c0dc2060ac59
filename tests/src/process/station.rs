//! One sender or receiver of messages: a `test_service`, its calls, its book.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use bytes::Bytes;
use synod::resource::redb::RedbFile;
use synod_proto::v1::outbox_admin_client::OutboxAdminClient;
use synod_proto::v1::{OutboxStatusReply, OutboxStatusRequest};
use tonic::transport::{Channel, Endpoint};

use super::post::letterbox_client::LetterboxClient;
use super::post::post_client::PostClient;
use super::post::{MendRequest, ReadRequest, SendRequest};
use super::program::command;
use super::service::Service;
use super::{STEP, eventually};

/// The table of a station's book.
pub const BOOK: &str = "book";

/// The one topic.
pub const TOPIC: &str = "texts";

/// The header with the sender's name.
pub const SENDER_HEADER: &str = "sender";

/// The name under which senders know the receiver.
pub const RECEIVER: &str = "receiver";

/// The line of a book that holds the texts of a sender's key.
#[must_use]
pub fn line(sender: &str, key: &str) -> String {
    format!("{sender}/{key}")
}

/// A sender or a receiver, running or not.
#[derive(Debug)]
pub struct Station {
    service: Service,
    /// The verb, and what only this kind of station is told.
    arguments: Vec<String>,
}

impl Deref for Station {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl DerefMut for Station {
    fn deref_mut(&mut self) -> &mut Service {
        &mut self.service
    }
}

impl Station {
    fn new(name: &'static str, directory: &Path, arguments: Vec<String>) -> Self {
        Self {
            service: Service::new(name, directory),
            arguments,
        }
    }

    /// A receiver, not started.
    #[must_use]
    pub fn receiver(directory: &Path) -> Self {
        Self::new(RECEIVER, directory, vec!["receive".into()])
    }

    /// A sender to this receiver, not started: after so many attempts a message is a dead letter, and so many relays share the
    /// outbox.
    #[must_use]
    pub fn sender(name: &'static str, directory: &Path, to: &Self, attempts: u32, relays: u32) -> Self {
        let (attempts, relays) = (attempts.to_string(), relays.to_string());
        let options = [
            ("--name", name),
            ("--to", &to.address()),
            ("--attempts", &attempts),
            ("--relays", &relays),
        ];
        let options = options.into_iter().flat_map(|(option, value)| [option, value]);
        Self::new(
            name,
            directory,
            std::iter::once("send")
                .chain(options)
                .map(str::to_owned)
                .collect(),
        )
    }

    /// Starts the process, or starts it again, and waits until it serves.
    ///
    /// # Panics
    /// It runs already, or does not come to serve.
    pub async fn start(&mut self) {
        let mut station = command("test_service");
        station.args(&self.arguments);
        self.service.start_by(station).await;
    }

    /// From its next start on this sender knows its receiver, which is at the same address, by another name; the one that it was
    /// known by is named no more.
    pub fn rename_consumer(&mut self, name: &str) {
        let named = self
            .arguments
            .iter()
            .position(|argument| argument == "--consumer");
        if let Some(option) = named {
            self.arguments.truncate(option);
        }
        self.arguments.extend(["--consumer".to_owned(), name.to_owned()]);
    }

    fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address())).expect("an address");
        endpoint.connect_timeout(STEP).timeout(STEP).connect_lazy()
    }

    /// A client that sends texts by this sender. It connects when it is used, and again after the process was started again.
    #[must_use]
    pub fn post(&self) -> PostClient<Channel> {
        PostClient::new(self.channel())
    }

    /// Sends a text.
    ///
    /// # Panics
    /// The sender refuses it.
    pub async fn send(&self, key: &str, text: &str) {
        let (key, text) = (key.to_owned(), text.to_owned());
        let sent = self.post().send(SendRequest { key, text }).await;
        sent.unwrap_or_else(|status| panic!("{}: {status}", self.name()));
    }

    /// The sender's outbox, as its own admin service sees it; nothing while it does not answer.
    pub async fn outbox(&self) -> Option<OutboxStatusReply> {
        let mut admin = OutboxAdminClient::new(self.channel());
        Some(admin.status(OutboxStatusRequest {}).await.ok()?.into_inner())
    }

    /// Waits until everything that was sent has been acknowledged.
    pub async fn is_through(&self) {
        eventually(&format!("{}'s outbox is empty", self.name()), async || {
            (self.outbox().await?.stored_count == 0).then_some(())
        })
        .await;
    }

    /// What took effect at this receiver for a sender's key; nothing while it does not answer.
    pub async fn texts(&self, sender: &Self, key: &str) -> Option<String> {
        let (sender, key) = (sender.name().to_owned(), key.to_owned());
        let mut letterbox = LetterboxClient::new(self.channel());
        let reply = letterbox.read(ReadRequest { sender, key }).await;
        Some(reply.ok()?.into_inner().texts)
    }

    /// Waits until just this has taken effect at this receiver.
    pub async fn has(&self, sender: &Self, key: &str, texts: &str) {
        eventually(&format!("{} has `{texts}`", self.name()), async || {
            (self.texts(sender, key).await? == texts).then_some(())
        })
        .await;
    }

    /// Whether this receiver takes poisoned texts from now on.
    ///
    /// # Panics
    /// It does not answer.
    pub async fn mend(&self, is_mended: bool) {
        let mut letterbox = LetterboxClient::new(self.channel());
        letterbox
            .mend(MendRequest { is_mended })
            .await
            .unwrap_or_else(|status| panic!("{}: {status}", self.name()));
    }

    /// How many rows a table of its file has. No process may have the file open.
    ///
    /// # Panics
    /// The file cannot be read.
    #[must_use]
    pub fn row_count(&self, table: &str) -> usize {
        rows(&self.database(), table).len()
    }

    /// The lines of its book, by sender and key. No process may have the file open.
    ///
    /// # Panics
    /// The file cannot be read.
    #[must_use]
    pub fn book(&self) -> BTreeMap<String, String> {
        let text = |bytes: Bytes| String::from_utf8(bytes.into()).expect("text");
        let rows = rows(&self.database(), BOOK).into_iter();
        rows.map(|(line, texts)| (text(line), text(texts))).collect()
    }
}

fn rows(path: &Path, table: &str) -> Vec<(Bytes, Bytes)> {
    let file = RedbFile::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let rows = file.snapshot().and_then(|rows| rows.scan(table, ""));
    rows.expect("a store's file")
}
