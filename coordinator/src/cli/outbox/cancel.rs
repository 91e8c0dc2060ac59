//! `synod outbox cancel`: a message is taken back, wherever it waits. It is looked for first: the store finds a scheduled one by its
//! time, and a stored one by its position.

use super::super::client::block_on;
use super::super::exit::{Exit, Failure};
use super::operate::{Word, scheduled_page, show};
use super::{MessageId, PAGE_COUNT, Scope, Service, answered, connect, parse_id, uuid};
use serde::Serialize;
use synod_proto::v1;
use synod_proto::v1::outbox_admin_client::OutboxAdminClient;
use tonic::transport::Channel;

/// Which message.
#[derive(Debug, clap::Args)]
pub(in super::super) struct Cancel {
    /// The message's id, as `synod outbox list` or `synod outbox scheduled` shows it.
    #[arg(value_name = "ID", value_parser = parse_id)]
    id: MessageId,
    #[command(flatten)]
    word: Word,
    #[command(flatten)]
    scope: Scope,
}

#[derive(Serialize)]
struct Cancelled {
    id: String,
    action: &'static str,
    /// Empty for a scheduled message: it was nobody's yet.
    consumers: Vec<String>,
}

/// Where a message waits.
enum Place {
    Scheduled { deliver_at_unix_ms: u64 },
    Stored { position: u64 },
}

pub(super) fn run(cancel: Cancel) -> Result<Exit, Failure> {
    let Cancel { id, word, scope } = cancel;
    let service = &scope.service;
    let reply = block_on(async {
        let mut client = connect(service).await?;
        // First where a message is earlier in its life: one that goes out meanwhile is found all the same.
        let place = match find_scheduled(service, &mut client, id).await? {
            Some(place) => Some(place),
            None => find_stored(service, &mut client, id).await?,
        };
        let Some(place) = place else {
            let text = format!(
                "the outbox holds no message {}, neither scheduled nor for a consumer: everyone has got it, or it was given up or cancelled",
                uuid(&id.0)
            );
            return Err(Failure::new(Exit::Failed, text));
        };
        let (deliver_at_unix_ms, position) = match place {
            Place::Scheduled { deliver_at_unix_ms } => (deliver_at_unix_ms, None),
            Place::Stored { position } => (0, Some(position)),
        };
        let request = v1::OutboxCancelRequest {
            id: id.0.to_vec().into(),
            deliver_at_unix_ms,
            position,
            consumer: scope.consumer.clone(),
            author: word.author,
            reason: word.reason,
        };
        answered(service, client.cancel(request)).await
    })?;
    let cancelled = Cancelled {
        id: uuid(&id.0),
        action: "cancelled",
        consumers: reply.consumers,
    };
    let text = if cancelled.consumers.is_empty() {
        format!("{}: cancelled\n", cancelled.id)
    } else {
        format!(
            "{}: cancelled for {}: it never takes effect there, or it does before the consumer has heard of this (a copy may be on its way); \
             `synod outbox records` says which of the two it was once that is known\n",
            cancelled.id,
            cancelled.consumers.join(", ")
        )
    };
    show(service, &cancelled, &text)
}

async fn find_scheduled(
    service: &Service,
    client: &mut OutboxAdminClient<Channel>,
    id: MessageId,
) -> Result<Option<Place>, Failure> {
    let mut last: Option<v1::ScheduledEntry> = None;
    loop {
        let mut page = scheduled_page(service, client, last.as_ref(), PAGE_COUNT).await?;
        if let Some(found) = page.iter().find(|entry| entry.id[..] == id.0) {
            let deliver_at_unix_ms = found.deliver_at_unix_ms;
            return Ok(Some(Place::Scheduled { deliver_at_unix_ms }));
        }
        if page.len() < PAGE_COUNT as usize {
            return Ok(None);
        }
        last = page.pop();
    }
}

async fn find_stored(
    service: &Service,
    client: &mut OutboxAdminClient<Channel>,
    id: MessageId,
) -> Result<Option<Place>, Failure> {
    let mut after = 0;
    loop {
        let request = v1::OutboxListRequest {
            consumer: String::new(),
            after,
            count_max: PAGE_COUNT,
        };
        let reply = answered(service, client.list(request)).await?;
        if let Some(found) = reply.entries.iter().find(|entry| entry.id[..] == id.0) {
            let position = found.position;
            return Ok(Some(Place::Stored { position }));
        }
        match reply.next_after {
            Some(next) => after = next,
            None => return Ok(None),
        }
    }
}
