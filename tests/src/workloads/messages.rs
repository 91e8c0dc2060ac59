//! What the bank's services tell each other by messages, over the real outbox and the real inbox.
//!
//! The checker looks at the tables of the business: each message has a row that was written with it, with a number that rises
//! within its key, and each effect has a row with what it was an effect of. It takes from the outbox only what operators did.

use super::Workload;
use super::bank::resource;
use crate::actors::ActorId;
use crate::actors::letters::LetterOperator;
use crate::actors::service::{
    APPLIED, ConsumerSetup, MessageSetup, NOTED, PUBLISHED, SharedBooks, SharedMessageBooks, TOPICS,
};
use crate::chance::small;
use crate::checkers::{Check, Violation, require};
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use synod::resource::redb::Snapshot;
use synod_coordinator_core::random::Random;
use synod_participant_core::relay::{DeadLetterPolicy, RelayOptions};
use synod_proto::ids::{MessageId, ResourceId};

/// The workload.
#[derive(Debug)]
pub struct Messages {
    seed: u64,
    first: u32,
    service_count: u32,
    bank: SharedBooks,
    books: SharedMessageBooks,
}

/// Each concern has a stream of its own.
fn stream(seed: u64, concern: u64) -> Random {
    Random::new(seed ^ 0x6d73_6773 ^ (concern << 40))
}

fn name_of(number: u32) -> String {
    format!("bank-{number}")
}

/// Who consumes what a service publishes: the next one, which holds a key behind a dead letter, and the one after that, which
/// skips it. Where there are two, the second is the service itself.
fn consumers_of(number: u32, count: u32) -> [(u32, DeadLetterPolicy, &'static [&'static str]); 2] {
    [
        ((number + 1) % count, DeadLetterPolicy::HoldKey, &TOPICS),
        ((number + 2) % count, DeadLetterPolicy::Skip, &TOPICS[..2]),
    ]
}

/// What the `number`-th service of a bank has to do with messages.
pub(super) fn setup_of(
    seed: u64,
    number: u32,
    banks: &[(ActorId, ResourceId)],
    books: &SharedMessageBooks,
) -> MessageSetup {
    let mut random = stream(seed, 1 + u64::from(number));
    let count = u32::try_from(banks.len()).expect("few services");
    let consumers = consumers_of(number, count).map(|(consumer, policy, topics)| ConsumerSetup {
        name: name_of(consumer),
        to: banks[consumer as usize].0,
        topics: topics.to_vec(),
        options: RelayOptions {
            attempt_count_max: small(&mut random, 2, 6),
            policy,
            backoff_first: Duration::from_millis(random.between(10, 200)),
            backoff_max: Duration::from_millis(random.between(500, 4_000)),
            answer_timeout: Duration::from_millis(random.between(2_000, 6_000)),
            ..RelayOptions::default()
        },
    });
    let poison_ppm = match random.between(0, 2) {
        0 => 0,
        _ => random.between(30_000, 250_000),
    };
    MessageSetup {
        name: name_of(number),
        consumers: consumers.to_vec(),
        local: (random.between(2, 8), random.between(100_000, 4_000_000)),
        poison_ppm,
        books: books.clone(),
    }
}

impl Messages {
    /// Between the services of a bank, the first of which has this number.
    #[must_use]
    pub fn new(seed: u64, first: u32, service_count: u32, bank: SharedBooks) -> Self {
        Self {
            seed,
            first,
            service_count,
            bank,
            books: SharedMessageBooks::default(),
        }
    }

    /// What its services say of themselves.
    #[must_use]
    pub fn books(&self) -> SharedMessageBooks {
        self.books.clone()
    }
}

impl Workload for Messages {
    fn actor_count(&self) -> u32 {
        // The services are the bank's; here is their operator.
        1
    }

    fn populate(&mut self, world: &mut World) {
        let services = (self.first..self.first + self.service_count).map(ActorId);
        world.add_actor(LetterOperator::new(services.collect()));
    }

    fn check_final(&self, _world: &World) -> Check {
        let bank = self.bank.borrow();
        let mut snapshots = Vec::new();
        for number in 0..self.service_count {
            let store = bank.stores.get(&resource(number));
            let snapshot = store.and_then(|store| store.snapshot().ok());
            let snapshot = snapshot.ok_or_else(|| Violation(format!("store {number} cannot be read")))?;
            snapshots.push(snapshot);
        }
        for (number, snapshot) in (0..).zip(&snapshots) {
            for table in EMPTY {
                let left = rows(snapshot, table)?.len();
                require(left == 0, || {
                    format!("{left} rows are left in {table} of service {number}, at rest")
                })?;
            }
            let published = published(snapshot)?;
            let record = Record::read(snapshot)?;
            for (consumer, policy, topics) in consumers_of(number, self.service_count) {
                let applied = applied(&snapshots[consumer as usize], resource(number))?;
                let pair = Pair {
                    text: format!("from service {number} to {consumer} (seed {})", self.seed),
                    consumer: name_of(consumer),
                    policy,
                    topics,
                };
                pair.check(&published, &record, &applied)?;
            }
        }
        Ok(())
    }

    fn points(&self) -> Vec<(&'static str, &'static str, u64)> {
        let books = self.books.borrow();
        let counts = books.counts.iter();
        counts.map(|(what, count)| ("messages", *what, *count)).collect()
    }
}

/// What must be empty when everything was delivered, and all low-water marks have passed it.
const EMPTY: [&str; 9] = [
    "synod:outbox",
    "synod:outbox_key",
    "synod:outbox_due",
    "synod:outbox_done",
    "synod:outbox_failed",
    "synod:outbox_letter",
    "synod:outbox_letter_id",
    "synod:outbox_sequence",
    "synod:inbox",
];

type Rows = Vec<(bytes::Bytes, bytes::Bytes)>;

fn rows(snapshot: &Snapshot, table: &str) -> Result<Rows, Violation> {
    let rows = snapshot.scan(table, []);
    rows.map_err(|error| Violation(format!("{table} cannot be read: {error}")))
}

/// What a business row says of a message: its topic and key, and its number within it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Business {
    topic: String,
    key: String,
    number: u64,
}

impl Business {
    fn parse(body: &[u8]) -> Result<Self, Violation> {
        let text = String::from_utf8_lossy(body).into_owned();
        let mut parts = text.split(' ');
        let (topic, key, number) = (parts.next(), parts.next(), parts.next());
        let number = number.and_then(|number| number.parse().ok());
        match (topic, key, number) {
            (Some(topic), Some(key), Some(number)) => Ok(Self {
                topic: topic.to_string(),
                key: key.to_string(),
                number,
            }),
            _ => Err(Violation(format!("{text} is no message of the bank"))),
        }
    }
}

fn id_of(bytes: &[u8]) -> Result<(MessageId, &[u8]), Violation> {
    let (id, rest) = bytes
        .split_first_chunk::<16>()
        .ok_or_else(|| Violation("a row of a message is too short".to_string()))?;
    Ok((MessageId(*id), rest))
}

fn published(snapshot: &Snapshot) -> Result<BTreeMap<MessageId, Business>, Violation> {
    let rows = rows(snapshot, PUBLISHED)?;
    let parsed = rows
        .iter()
        .map(|(key, body)| Ok((id_of(key)?.0, Business::parse(body)?)));
    parsed.collect()
}

/// Effects at a consumer of what one source published, by topic and key, in their order.
type Applied = BTreeMap<Vec<u8>, Vec<(MessageId, Business)>>;

fn applied(snapshot: &Snapshot, source: ResourceId) -> Result<Applied, Violation> {
    let mut found = Applied::new();
    let mut count = 0;
    for (key, row) in rows(snapshot, APPLIED)? {
        let Some(rest) = key.strip_prefix(&source.0[..]) else {
            continue;
        };
        let (id, body) = id_of(&row)?;
        let of_key = rest[..rest.len().saturating_sub(8)].to_vec();
        found
            .entry(of_key)
            .or_default()
            .push((id, Business::parse(body)?));
        count += 1;
    }
    let noted = rows(snapshot, NOTED)?;
    let noted_count = noted.iter().filter(|(key, _)| key.starts_with(&source.0)).count();
    require(noted_count == count, || {
        format!("{count} effects of {source}, and {noted_count} notes of them")
    })?;
    Ok(found)
}

/// What operators did, as the outbox keeps it: for which consumer, to which message.
#[derive(Debug, Default)]
struct Record {
    requeued: BTreeSet<(String, String)>,
    discarded: BTreeSet<(String, String)>,
}

impl Record {
    fn read(snapshot: &Snapshot) -> Result<Self, Violation> {
        let mut record = Self::default();
        for (_, text) in rows(snapshot, "synod:outbox_record")? {
            let text = String::from_utf8_lossy(&text).into_owned();
            let word_after = |word: &str| {
                let rest = text.split_once(word)?.1;
                let end = rest.find([' ', ':']).unwrap_or(rest.len());
                Some(rest[..end].to_string())
            };
            let (Some(id), Some(consumer)) = (word_after(" message "), word_after("for consumer ")) else {
                return Err(Violation(format!("an operator's record says {text}")));
            };
            match text.contains(" requeued ") {
                true => record.requeued.insert((consumer, id)),
                false => record.discarded.insert((consumer, id)),
            };
        }
        Ok(record)
    }
}

/// One source and one consumer.
struct Pair<'a> {
    text: String,
    consumer: String,
    policy: DeadLetterPolicy,
    topics: &'a [&'a str],
}

impl Pair<'_> {
    fn check(&self, published: &BTreeMap<MessageId, Business>, record: &Record, applied: &Applied) -> Check {
        let mut seen = BTreeSet::new();
        for (id, business) in applied.values().flatten() {
            require(published.get(id) == Some(business), || {
                format!(
                    "{}: message {id} took effect, and no transaction that committed has published it: {business:?}",
                    self.text
                )
            })?;
            require(seen.insert(*id), || {
                format!("{}: message {id} took effect twice", self.text)
            })?;
        }
        let named = |id: &MessageId| (self.consumer.clone(), id.to_string());
        for (id, business) in published {
            let is_its_own = self.topics.contains(&business.topic.as_str());
            let is_discarded = record.discarded.contains(&named(id));
            require(seen.contains(id) == (is_its_own && !is_discarded), || {
                format!(
                    "{}: message {id} {business:?}: took effect: {}, its own: {is_its_own}, discarded: {is_discarded}",
                    self.text,
                    seen.contains(id)
                )
            })?;
        }
        for effects in applied.values() {
            self.check_order(effects, |id| {
                self.policy == DeadLetterPolicy::Skip && record.requeued.contains(&named(id))
            })?;
        }
        Ok(())
    }

    /// Of one key, in the order in which they were published; but for what waited for its time, and for what a consumer that
    /// skips dead letters was sent again by an operator.
    fn check_order(&self, effects: &[(MessageId, Business)], is_free: impl Fn(&MessageId) -> bool) -> Check {
        let mut last = 0;
        for (id, business) in effects {
            if business.topic == TOPICS[2] || is_free(id) {
                continue;
            }
            require(business.number > last, || {
                format!(
                    "{}: message {id} {business:?} took effect after number {last} of its key",
                    self.text
                )
            })?;
            last = business.number;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
