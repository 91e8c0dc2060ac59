//! `synod outbox`: the messages of one service, by its outbox's admin service. A service's outbox is its own; the coordinator
//! knows nothing of it.

mod cancel;
mod operate;
mod records;
mod status;
mod unsubscribe;

use super::client::{REPLICA_TIMEOUT, address, block_on};
use super::exit::{Exit, Failure};
use super::output::{age, now_unix_ms, print, print_json, table};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use synod_proto::limits::UNSETTLED_COUNT_MAX;
use synod_proto::v1;
use synod_proto::v1::outbox_admin_client::OutboxAdminClient;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long the service may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest page to ask for at once.
const PAGE_COUNT: u32 = 500;

/// A page of messages, whose keys and reasons are bounded, fits.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Verbs of `synod outbox`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// The outbox at a glance: what it holds, and how each of its consumers stands.
    Status(Service),
    /// The messages that are still stored, in the order of their positions.
    List {
        #[command(flatten)]
        scope: Scope,
        #[command(flatten)]
        page: Page,
    },
    /// Messages that were given up after their last attempt, and why.
    Dead {
        #[command(flatten)]
        scope: Scope,
        #[command(flatten)]
        page: Page,
    },
    /// Send a dead letter again, as if it had never been tried; or all of a consumer's.
    Requeue(operate::Requeue),
    /// Give a dead letter up: it is never sent again, and its key goes on.
    Discard(operate::Discard),
    /// Messages that wait for their time, in the order of their times.
    Scheduled(operate::Scheduled),
    /// Take a message back, before its time or before it takes effect at a consumer.
    Cancel(cancel::Cancel),
    /// Take whatever database answers for a consumer next as its own, after it was replaced or restored.
    Readmit(operate::Readmit),
    /// Drop what a consumer that is not named any more has not got, and forget it; or what is left of one topic that was taken
    /// away from it.
    Unsubscribe(unsubscribe::Unsubscribe),
    /// What operators did and why, and what became of the messages that they cancelled, the latest first.
    Records(records::Records),
}

/// Whom to ask.
#[derive(Debug, clap::Args)]
pub(super) struct Service {
    /// The service whose outbox it is, as HOST:PORT.
    #[arg(long = "service", value_name = "ADDR")]
    address: String,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Whom to ask, and about whom.
#[derive(Debug, clap::Args)]
pub(super) struct Scope {
    #[command(flatten)]
    service: Service,
    /// Only what concerns this consumer.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    consumer: String,
}

/// Which part of a list.
#[derive(Debug, clap::Args)]
pub(super) struct Page {
    /// Only positions above this one.
    #[arg(long, value_name = "POSITION", default_value_t = 0)]
    after: u64,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 100)]
    count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MessageId([u8; 16]);

/// A UUID, with or without hyphens.
fn parse_id(text: &str) -> Result<MessageId, String> {
    let digits: String = text.chars().filter(|letter| *letter != '-').collect();
    let is_hex = digits.len() == 32 && digits.chars().all(|digit| digit.is_ascii_hexdigit());
    let number = is_hex.then(|| u128::from_str_radix(&digits, 16).ok()).flatten();
    number
        .map(|number| MessageId(number.to_be_bytes()))
        .ok_or_else(|| "a message id has 32 hex digits, as `synod outbox dead` shows it".to_owned())
}

#[derive(Serialize)]
struct Entry {
    id: String,
    position: u64,
    topic: String,
    /// As text, with what is no UTF-8 replaced; exact in `key_hex`.
    key: String,
    key_hex: String,
    sequence: u64,
    published_at_unix_ms: u64,
    body_bytes: u32,
    states: Vec<State>,
}

#[derive(Serialize)]
struct State {
    consumer: String,
    state: String,
    attempt_count: u32,
    reason: Option<String>,
}

#[derive(Serialize)]
struct Letter {
    consumer: String,
    attempt_count: u32,
    reason: String,
    died_at_unix_ms: u64,
    #[serde(flatten)]
    entry: Entry,
}

pub(super) fn run(verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Status(service) => status::run(&service),
        Verb::List { scope, page } => list(&scope, &page),
        Verb::Dead { scope, page } => dead(&scope, &page),
        Verb::Requeue(requeue) => operate::requeue(requeue),
        Verb::Discard(discard) => operate::discard(discard),
        Verb::Scheduled(scheduled) => operate::scheduled(&scheduled),
        Verb::Cancel(cancel) => cancel::run(cancel),
        Verb::Readmit(readmit) => operate::readmit(readmit),
        Verb::Unsubscribe(unsubscribe) => unsubscribe::run(unsubscribe),
        Verb::Records(records) => records::run(&records),
    }
}

fn page_length(wanted: usize) -> u32 {
    u32::try_from(wanted).unwrap_or(PAGE_COUNT).min(PAGE_COUNT)
}

fn list(scope: &Scope, page: &Page) -> Result<Exit, Failure> {
    let entries = block_on(async {
        let mut client = connect(&scope.service).await?;
        let mut entries = Vec::new();
        let mut after = page.after;
        while entries.len() < page.count {
            let request = v1::OutboxListRequest {
                consumer: scope.consumer.clone(),
                after,
                count_max: page_length(page.count - entries.len()),
            };
            let reply = answered(&scope.service, client.list(request)).await?;
            entries.extend(reply.entries.into_iter().map(entry));
            match reply.next_after {
                Some(next) => after = next,
                None => break,
            }
        }
        Ok(entries)
    })?;
    if scope.service.json {
        print_json(&entries)?;
        return Ok(Exit::Success);
    }
    let now = now_unix_ms();
    let header = [
        "POSITION",
        "ID",
        "TOPIC",
        "KEY",
        "SEQUENCE",
        "PUBLISHED",
        "BYTES",
        "STATE",
    ];
    let rows: Vec<_> = entries.iter().map(|entry| entry_row(entry, now)).collect();
    print(&table(&header, &rows))?;
    Ok(Exit::Success)
}

fn entry_row(entry: &Entry, now_unix_ms: u64) -> Vec<String> {
    let states = entry.states.iter().map(|state| match &state.reason {
        Some(reason) => format!(
            "{}: {} after {} attempts: {reason}",
            state.consumer, state.state, state.attempt_count
        ),
        None => format!("{}: {}", state.consumer, state.state),
    });
    vec![
        entry.position.to_string(),
        entry.id.clone(),
        printable(&entry.topic),
        printable(&entry.key),
        entry.sequence.to_string(),
        age(now_unix_ms, entry.published_at_unix_ms),
        entry.body_bytes.to_string(),
        printable(&states.collect::<Vec<_>>().join("; ")),
    ]
}

fn dead(scope: &Scope, page: &Page) -> Result<Exit, Failure> {
    let letters = block_on(async {
        let mut client = connect(&scope.service).await?;
        let letters = collect_dead(&mut client, scope, page).await?;
        let status = answered(&scope.service, client.status(v1::OutboxStatusRequest {})).await?;
        for consumer in status.consumers {
            if let Some(warning) = warning(&consumer) {
                eprintln!("synod: {warning}");
            }
        }
        Ok(letters)
    })?;
    if scope.service.json {
        print_json(&letters)?;
        return Ok(Exit::Success);
    }
    let now = now_unix_ms();
    let header = [
        "ID", "CONSUMER", "TOPIC", "KEY", "SEQUENCE", "DIED", "ATTEMPTS", "REASON",
    ];
    let rows: Vec<_> = letters.iter().map(|letter| letter_row(letter, now)).collect();
    print(&table(&header, &rows))?;
    Ok(Exit::Success)
}

fn letter_row(letter: &Letter, now_unix_ms: u64) -> Vec<String> {
    vec![
        letter.entry.id.clone(),
        printable(&letter.consumer),
        printable(&letter.entry.topic),
        printable(&letter.entry.key),
        letter.entry.sequence.to_string(),
        age(now_unix_ms, letter.died_at_unix_ms),
        letter.attempt_count.to_string(),
        printable(&letter.reason),
    ]
}

/// A page holds so many letters of each consumer: complete up to the lowest last position of those that may have more.
async fn collect_dead(
    client: &mut OutboxAdminClient<Channel>,
    scope: &Scope,
    page: &Page,
) -> Result<Vec<Letter>, Failure> {
    let count_max = page_length(page.count).max(1);
    let mut found: BTreeMap<(u64, String), Letter> = BTreeMap::new();
    let mut after = page.after;
    loop {
        let request = v1::OutboxDeadRequest {
            consumer: scope.consumer.clone(),
            count_max,
            after,
        };
        let reply = answered(&scope.service, client.dead(request)).await?;
        let mut of_consumers: BTreeMap<String, (u32, u64)> = BTreeMap::new();
        for letter in reply.letters.into_iter().map(letter) {
            let (count, last) = of_consumers.entry(letter.consumer.clone()).or_default();
            *count += 1;
            *last = (*last).max(letter.entry.position);
            found.insert((letter.entry.position, letter.consumer.clone()), letter);
        }
        let full = of_consumers.values().filter(|(count, _)| *count >= count_max);
        let complete_up_to = full.map(|(_, last)| *last).min();
        let is_enough = |up_to: u64| found.range(..=(up_to, String::new())).count() >= page.count;
        match complete_up_to {
            Some(up_to) if up_to > after && !is_enough(up_to) => after = up_to,
            _ => return Ok(found.into_values().take(page.count).collect()),
        }
    }
}

/// What the dead letters cost, where it has no bound any more.
fn warning(consumer: &v1::ConsumerStatus) -> Option<String> {
    let v1::ConsumerStatus {
        consumer,
        unsettled_count,
        dead_count,
        ..
    } = consumer;
    (*unsettled_count >= UNSETTLED_COUNT_MAX as u64).then(|| {
        format!(
            "{consumer}: {unsettled_count} messages are dead ({dead_count}), requeued or cancelled, or wait behind such, as many as are told \
             apart: until some are settled, delivered messages are kept as well, here and at the consumer"
        )
    })
}

async fn connect(service: &Service) -> Result<OutboxAdminClient<Channel>, Failure> {
    let service = address(&service.address);
    let endpoint = Endpoint::from_shared(format!("http://{service}"))
        .map_err(|error| Failure::new(Exit::Usage, format!("`{service}` is not HOST:PORT: {error}")))?
        .connect_timeout(REPLICA_TIMEOUT)
        .tcp_nodelay(true);
    let unreachable = |text: String| Failure::new(Exit::Unreachable, text);
    match timeout(REPLICA_TIMEOUT, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(OutboxAdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)),
        Ok(Err(_)) | Err(_) => Err(unreachable(format!(
            "no service answers at {service}: is it running, and is that its address?"
        ))),
    }
}

async fn answered<T>(
    service: &Service,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Failure> {
    let service = address(&service.address);
    match timeout(ANSWER_TIMEOUT, call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) if status.code() == Code::Unimplemented => Err(Failure::new(
            Exit::Failed,
            format!(
                "the service at {service} does not serve its outbox's admin service: add it to its server"
            ),
        )),
        Ok(Err(status)) => Err(Failure::new(Exit::Failed, printable(status.message()))),
        Err(_) => Err(Failure::new(
            Exit::Unreachable,
            format!(
                "no answer from {service} within {} s; whatever was asked for may be repeated",
                ANSWER_TIMEOUT.as_secs()
            ),
        )),
    }
}

fn entry(entry: v1::OutboxEntry) -> Entry {
    let state = |state: v1::EntryState| State {
        consumer: state.consumer,
        state: state.state,
        attempt_count: state.attempt_count,
        reason: Some(state.reason).filter(|reason| !reason.is_empty()),
    };
    Entry {
        id: uuid(&entry.id),
        position: entry.position,
        topic: entry.topic,
        key: String::from_utf8_lossy(&entry.key).into_owned(),
        key_hex: hex(&entry.key),
        sequence: entry.sequence,
        published_at_unix_ms: entry.published_at_unix_ms,
        body_bytes: entry.body_bytes,
        states: entry.states.into_iter().map(state).collect(),
    }
}

fn letter(letter: v1::DeadLetterEntry) -> Letter {
    Letter {
        consumer: letter.consumer,
        attempt_count: letter.attempt_count,
        reason: letter.reason,
        died_at_unix_ms: letter.died_at_unix_ms,
        entry: entry(letter.entry.unwrap_or_default()),
    }
}

/// No line of a table is broken, and no terminal steered, by what a message holds.
fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { '\u{fffd}' } else { letter })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An id as a UUID is written.
fn uuid(bytes: &[u8]) -> String {
    let digits = hex(bytes);
    if digits.len() != 32 {
        return digits;
    }
    let parts = [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_shown() {
        let bytes: [u8; 16] = std::array::from_fn(|index| u8::try_from(index * 16).expect("small"));
        assert_eq!(uuid(&bytes), "00102030-4050-6070-8090-a0b0c0d0e0f0");
        assert_eq!(parse_id(&uuid(&bytes)), Ok(MessageId(bytes)));
        for text in [
            "",
            "00",
            "00102030-4050-6070-8090-a0b0c0d0e0fg",
            "+0102030405060708090a0b0c0d0e0f0",
        ] {
            assert!(parse_id(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_full_list_is_warned_of() {
        let consumer = |unsettled_count| v1::ConsumerStatus {
            consumer: "billing".into(),
            unsettled_count,
            dead_count: 3,
            ..v1::ConsumerStatus::default()
        };
        let full = UNSETTLED_COUNT_MAX as u64;
        assert_eq!(warning(&consumer(full - 1)), None);
        let warning = warning(&consumer(full)).expect("a warning");
        assert!(
            warning.contains("billing: 4096 messages are dead (3)"),
            "{warning}"
        );
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let hostile = || "a\u{1b}[2J\nb".to_owned();
        assert_eq!(printable(&hostile()), "a\u{fffd}[2J\u{fffd}b");
        let stored = || v1::OutboxEntry {
            topic: hostile(),
            key: hostile().into(),
            states: vec![v1::EntryState {
                consumer: hostile(),
                state: "pending".into(),
                attempt_count: 1,
                reason: hostile(),
            }],
            ..v1::OutboxEntry::default()
        };
        let dead = v1::DeadLetterEntry {
            consumer: hostile(),
            entry: Some(stored()),
            reason: hostile(),
            ..v1::DeadLetterEntry::default()
        };
        let scheduled = v1::ScheduledEntry {
            topic: hostile(),
            key: hostile().into(),
            ..v1::ScheduledEntry::default()
        };
        let rows = [
            entry_row(&entry(stored()), 0),
            letter_row(&letter(dead), 0),
            operate::scheduled_row(&operate::entry(scheduled), 0),
        ];
        for row in rows {
            assert!(row.iter().any(|cell| cell.contains("[2J")), "{row:?}");
            assert!(!row.concat().contains(char::is_control), "{row:?}");
        }
    }
}
