//! What an operator does to a service's messages, and the list of those that wait for their time.

use super::super::client::block_on;
use super::super::exit::{Exit, Failure};
use super::super::output::{age, now_unix_ms, print, print_json, table};
use super::{MessageId, Scope, Service, answered, connect, hex, page_length, parse_id, printable, uuid};
use serde::Serialize;
use synod_proto::v1;
use synod_proto::v1::outbox_admin_client::OutboxAdminClient;
use tonic::transport::Channel;

/// On whose word.
#[derive(Debug, clap::Args)]
pub(in super::super) struct Word {
    /// Who decides this.
    #[arg(long)]
    pub(super) author: String,
    /// Why.
    #[arg(long)]
    pub(super) reason: String,
}

/// Which letter.
#[derive(Debug, clap::Args)]
pub(in super::super) struct Discard {
    /// The message's id, as `synod outbox dead` shows it.
    #[arg(value_name = "ID", value_parser = parse_id)]
    id: MessageId,
    #[command(flatten)]
    word: Word,
    #[command(flatten)]
    scope: Scope,
}

/// Which letters.
#[derive(Debug, clap::Args)]
pub(in super::super) struct Requeue {
    /// The message's id, as `synod outbox dead` shows it.
    #[arg(value_name = "ID", value_parser = parse_id, required_unless_present = "all", conflicts_with = "all")]
    id: Option<MessageId>,
    /// All dead letters of the consumer that `--consumer` names.
    #[arg(long)]
    all: bool,
    /// With `--all`: only those of this topic.
    #[arg(
        long,
        value_name = "NAME",
        requires = "all",
        default_value = "",
        hide_default_value = true
    )]
    topic: String,
    #[command(flatten)]
    word: Word,
    #[command(flatten)]
    scope: Scope,
}

/// Which part of the list.
#[derive(Debug, clap::Args)]
pub(in super::super) struct Scheduled {
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 100)]
    count: usize,
    #[command(flatten)]
    service: Service,
}

/// Which consumer.
#[derive(Debug, clap::Args)]
pub(in super::super) struct Readmit {
    /// The consumer's name.
    #[arg(value_name = "CONSUMER")]
    consumer: String,
    #[command(flatten)]
    word: Word,
    #[command(flatten)]
    service: Service,
}

#[derive(Serialize)]
struct Settled {
    id: String,
    action: &'static str,
    consumers: Vec<String>,
}

#[derive(Serialize)]
struct RequeuedAll {
    action: &'static str,
    consumer: String,
    count: u64,
}

#[derive(Serialize)]
struct Readmitted {
    consumer: String,
    action: &'static str,
}

#[derive(Serialize)]
pub(super) struct ScheduledEntry {
    id: String,
    deliver_at_unix_ms: u64,
    topic: String,
    /// As text, with what is no UTF-8 replaced; exact in `key_hex`.
    key: String,
    key_hex: String,
    published_at_unix_ms: u64,
    body_bytes: u32,
}

pub(super) fn requeue(requeue: Requeue) -> Result<Exit, Failure> {
    let Requeue {
        id,
        topic,
        word,
        scope,
        ..
    } = requeue;
    match id {
        Some(id) => settle(id, word, &scope, "requeued"),
        None => requeue_all(topic, word, scope),
    }
}

pub(super) fn discard(discard: Discard) -> Result<Exit, Failure> {
    settle(discard.id, discard.word, &discard.scope, "discarded")
}

fn settle(id: MessageId, word: Word, scope: &Scope, action: &'static str) -> Result<Exit, Failure> {
    let request = v1::OutboxSettleRequest {
        id: id.0.to_vec().into(),
        consumer: scope.consumer.clone(),
        author: word.author,
        reason: word.reason,
    };
    let reply = block_on(async {
        let mut client = connect(&scope.service).await?;
        if action == "requeued" {
            answered(&scope.service, client.requeue(request)).await
        } else {
            answered(&scope.service, client.discard(request)).await
        }
    })?;
    let settled = Settled {
        id: uuid(&id.0),
        action,
        consumers: reply.consumers,
    };
    let text = format!("{}: {action} for {}\n", settled.id, settled.consumers.join(", "));
    show(&scope.service, &settled, &text)
}

fn requeue_all(topic: String, word: Word, scope: Scope) -> Result<Exit, Failure> {
    if scope.consumer.is_empty() {
        return Err(Failure::new(Exit::Usage, "`--all` wants `--consumer NAME`"));
    }
    let request = v1::OutboxRequeueAllRequest {
        consumer: scope.consumer.clone(),
        topic,
        author: word.author,
        reason: word.reason,
    };
    let reply = block_on(async {
        let mut client = connect(&scope.service).await?;
        answered(&scope.service, client.requeue_all(request)).await
    })?;
    let requeued = RequeuedAll {
        action: "requeued",
        consumer: scope.consumer,
        count: reply.count,
    };
    let text = format!("{} messages requeued for {}\n", requeued.count, requeued.consumer);
    show(&scope.service, &requeued, &text)
}

pub(super) fn scheduled(asked: &Scheduled) -> Result<Exit, Failure> {
    let entries = block_on(async {
        let mut client = connect(&asked.service).await?;
        let mut entries = Vec::new();
        while entries.len() < asked.count {
            let count = page_length(asked.count - entries.len());
            let page = scheduled_page(&asked.service, &mut client, entries.last(), count).await?;
            let is_last = page.len() < count as usize;
            entries.extend(page);
            if is_last {
                break;
            }
        }
        Ok(entries)
    })?;
    let entries: Vec<_> = entries.into_iter().map(entry).collect();
    if asked.service.json {
        print_json(&entries)?;
        return Ok(Exit::Success);
    }
    let now = now_unix_ms();
    let rows: Vec<_> = entries.iter().map(|entry| scheduled_row(entry, now)).collect();
    let header = ["ID", "DELIVER AT (UNIX MS)", "TOPIC", "KEY", "PUBLISHED", "BYTES"];
    print(&table(&header, &rows))?;
    Ok(Exit::Success)
}

pub(super) fn scheduled_row(entry: &ScheduledEntry, now_unix_ms: u64) -> Vec<String> {
    vec![
        entry.id.clone(),
        entry.deliver_at_unix_ms.to_string(),
        printable(&entry.topic),
        printable(&entry.key),
        age(now_unix_ms, entry.published_at_unix_ms),
        entry.body_bytes.to_string(),
    ]
}

pub(super) async fn scheduled_page(
    service: &Service,
    client: &mut OutboxAdminClient<Channel>,
    after: Option<&v1::ScheduledEntry>,
    count_max: u32,
) -> Result<Vec<v1::ScheduledEntry>, Failure> {
    let request = v1::OutboxScheduledRequest {
        after_deliver_at_unix_ms: after.map_or(0, |entry| entry.deliver_at_unix_ms),
        after_id: after.map(|entry| entry.id.clone()),
        count_max,
    };
    Ok(answered(service, client.scheduled(request)).await?.entries)
}

pub(super) fn entry(entry: v1::ScheduledEntry) -> ScheduledEntry {
    ScheduledEntry {
        id: uuid(&entry.id),
        deliver_at_unix_ms: entry.deliver_at_unix_ms,
        topic: entry.topic,
        key: String::from_utf8_lossy(&entry.key).into_owned(),
        key_hex: hex(&entry.key),
        published_at_unix_ms: entry.published_at_unix_ms,
        body_bytes: entry.body_bytes,
    }
}

pub(super) fn readmit(readmit: Readmit) -> Result<Exit, Failure> {
    let Readmit {
        consumer,
        word,
        service,
    } = readmit;
    let request = v1::OutboxReadmitRequest {
        consumer: consumer.clone(),
        author: word.author,
        reason: word.reason,
    };
    block_on(async {
        let mut client = connect(&service).await?;
        answered(&service, client.readmit(request)).await
    })?;
    let readmitted = Readmitted {
        consumer,
        action: "readmitted",
    };
    let text = format!("{}: readmitted\n", readmitted.consumer);
    show(&service, &readmitted, &text)
}

pub(super) fn show(service: &Service, what: &impl Serialize, text: &str) -> Result<Exit, Failure> {
    if service.json {
        print_json(what)?;
    } else {
        print(text)?;
    }
    Ok(Exit::Success)
}
