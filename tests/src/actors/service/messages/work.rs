//! A user's code: what is published, each message with a row of its own business, and handlers that fail, panic, hang and stumble
//! over locks. Each keeps a count of its own for every key, so that a checker can tell the order without asking the outbox.

use super::books::{Fate, Handled, Planned};
use super::{MessageSetup, Messages};
use crate::actors::service::bank::{ACCOUNT_COUNT, ACCOUNTS};
use crate::actors::service::desk::Desk;
use crate::chance::{pick, small};
use crate::schedule::Micros;
use futures::future::{Either, select};
use std::pin::pin;
use std::rc::Rc;
use synod::inbox::{Delivery, InboxTransaction, parts};
use synod::outbox::Message;
use synod::outbox::parts::OpenStore;
use synod::resource::ResourceError;
use synod::resource::redb::RedbTransaction;
use synod_coordinator_core::random::Random;
use synod_proto::ids::{BranchId, MessageId};
use synod_proto::message::Answer;

/// One row for every message, by id: written with it.
pub(crate) const PUBLISHED: &str = "messages_published";
/// The next number of each key.
const NUMBERS: &str = "messages_numbers";
/// One row for every effect, in the order of the effects of a key of a source.
pub(crate) const APPLIED: &str = "messages_applied";
/// How many effects a key of a source has had.
const APPLIED_COUNT: &str = "messages_applied_count";
/// One row for every message that had its effect.
pub(crate) const NOTED: &str = "messages_noted";

/// What branches publish, what local transactions publish, and what waits for its time.
pub(crate) const TOPICS: [&str; 3] = ["moved", "noted", "later"];
const MOVED: &str = TOPICS[0];
const LOCAL: &str = TOPICS[1];
const LATER: &str = TOPICS[2];

/// Few, so that messages follow each other.
const KEYS: [&str; 3] = ["a", "b", "c"];

/// How many of a million pieces of a branch's work publish.
const BRANCH_PPM: u64 = 200_000;

/// How long a handler may run.
const HANDLER_US: Micros = 1_500_000;

/// The longest time until a scheduled message is due.
const LATER_MS_MAX: u64 = 8_000;

/// A branch's work publishes, now and then.
pub(super) async fn publish_in_branch(
    messages: &Messages,
    desk: &Desk,
    outbox: &OpenStore,
    tx: &mut RedbTransaction,
    branch: BranchId,
) -> Result<(), String> {
    if !desk.happens(BRANCH_PPM) {
        return Ok(());
    }
    let key = desk.random(|random| pick(random, &KEYS));
    publish(messages, desk, outbox, tx, (MOVED, key), Some(branch)).await?;
    messages.count("a message published in a branch");
    Ok(())
}

async fn publish(
    messages: &Messages,
    desk: &Desk,
    outbox: &OpenStore,
    tx: &mut RedbTransaction,
    (topic, key): (&'static str, &'static str),
    branch: Option<BranchId>,
) -> Result<(), String> {
    let text = |error: ResourceError| error.to_string();
    let id = MessageId(desk.random(Random::bytes16));
    let fate = desk.random(|random| draw_fate(random, &messages.setup));
    let planned = Planned {
        source: messages.resource,
        branch,
        fate,
    };
    {
        let mut books = messages.setup.books.borrow_mut();
        books.planned.insert(id, planned);
        books.branches.extend(branch);
    }
    let began_at = desk.clock.now();
    let number_key = format!("{topic} {key}");
    let number = tx.get_u64_for_update(NUMBERS, &number_key).await.map_err(text)?;
    let number = number.unwrap_or_default() + 1;
    tx.put_u64(NUMBERS, &number_key, number).await.map_err(text)?;
    if desk.clock.now() > began_at {
        messages.count("a publisher that waited for its key");
    }
    let body = format!("{topic} {key} {number}");
    tx.put(PUBLISHED, id.0, body.clone()).await.map_err(text)?;
    let mut message = Message::new(topic, key, body);
    if topic == LATER {
        let delay = desk.random(|random| random.between(1, LATER_MS_MAX));
        message = message.delay(std::time::Duration::from_millis(delay));
    }
    let published = outbox.publish(tx, message, id).await;
    published.map_err(|error| error.to_string())
}

fn draw_fate(random: &mut Random, setup: &MessageSetup) -> Fate {
    if random.between(0, 999_999) >= setup.poison_ppm {
        return match random.between(0, 9) {
            0 => Fate::Locks(small(random, 0, ACCOUNT_COUNT - 1)),
            _ => Fate::Fine,
        };
    }
    let count = small(random, 1, 6);
    match random.between(0, 9) {
        0..=3 => Fate::Fails(count),
        4 | 5 => Fate::Panics(count),
        6 => Fate::Hangs(1),
        _ => Fate::Poison,
    }
}

/// Publishes in local transactions, of which some are rolled back.
pub(super) async fn publish_locally(messages: &Rc<Messages>, desk: &Rc<Desk>) {
    let (count, pause_us) = messages.setup.local;
    let Some(outbox) = messages.outbox.borrow().clone() else {
        return;
    };
    while !messages.is_resting.get() && messages.begun_count.get() < count {
        let pause = desk.random(|random| random.between(1_000, pause_us.max(1_000)));
        desk.clock.sleep(pause).await;
        if messages.is_resting.get() {
            return;
        }
        messages.begun_count.set(messages.begun_count.get() + 1);
        match publish_some(messages, desk, &outbox).await {
            Ok(true) => messages.count("a local transaction that published"),
            Ok(false) => messages.count("a local transaction rolled back with its messages"),
            Err(_) => messages.count("a local transaction that could not publish"),
        }
    }
}

async fn publish_some(messages: &Messages, desk: &Desk, outbox: &OpenStore) -> Result<bool, String> {
    let store = &desk.store.as_ref().expect("it has an outbox").redb;
    let text = |error: ResourceError| error.to_string();
    let mut tx = store.begin_local().map_err(text)?;
    for _ in 0..desk.random(|random| random.between(1, 3)) {
        let key = desk.random(|random| pick(random, &KEYS));
        let topic = match desk.happens(200_000) {
            true => LATER,
            false => LOCAL,
        };
        publish(messages, desk, outbox, &mut tx, (topic, key), None).await?;
    }
    desk.work_on_disk().await;
    if desk.happens(150_000) {
        return Ok(false);
    }
    tx.commit().await.map_err(text)?;
    Ok(true)
}

/// Runs the handler, for as long as it may take.
pub(super) async fn handle(
    messages: &Rc<Messages>,
    desk: &Rc<Desk>,
    delivery: Delivery,
    tx: InboxTransaction,
) -> Result<(), Answer> {
    let (working, timeout) = (
        work_on(messages, desk, delivery, tx),
        desk.clock.sleep(HANDLER_US),
    );
    match select(pin!(working), pin!(timeout)).await {
        Either::Left((handled, _)) => handled,
        Either::Right(_) => {
            messages.count("a handler that hung");
            Err(Answer::Failed {
                text: "the handler did not end in time".to_string(),
            })
        }
    }
}

async fn work_on(
    messages: &Messages,
    desk: &Desk,
    delivery: Delivery,
    mut tx: InboxTransaction,
) -> Result<(), Answer> {
    let (id, source) = (delivery.id, delivery.source);
    let name = messages.setup.name.clone();
    let (planned, attempt, is_mended) = {
        let mut books = messages.setup.books.borrow_mut();
        let attempt = books.attempts.entry((id, name.clone())).or_default();
        *attempt += 1;
        let attempt = *attempt;
        let planned = books.planned.get(&id).copied();
        let Some(planned) = planned.filter(|planned| planned.source == source) else {
            books
                .violations
                .push(format!("message {id} of {source} was never published"));
            return Ok(());
        };
        let branch = planned.branch;
        books.handled.push(Handled { source, branch, id });
        (planned, attempt, books.is_mended(id, &name))
    };
    apply(messages, &delivery, &mut tx)
        .await
        .map_err(|error| parts::answer_of(&error))?;
    let failed = |text: &str| {
        Err(Answer::Failed {
            text: text.to_string(),
        })
    };
    match planned.fate {
        Fate::Locks(account) => {
            let locked = tx.get_u64_for_update(ACCOUNTS, account.to_be_bytes()).await;
            locked.map(drop).map_err(|error| parts::answer_of(&error))
        }
        Fate::Fails(count) if attempt <= count => failed("the handler fails for a while"),
        Fate::Panics(count) if attempt <= count => {
            messages.count("a handler that panicked");
            failed("the handler panicked")
        }
        Fate::Hangs(count) if attempt <= count => {
            desk.clock.sleep(HANDLER_US * 2).await;
            Ok(())
        }
        Fate::Poison if !is_mended => failed("the handler cannot take it"),
        _ => Ok(()),
    }
}

/// The effect.
async fn apply(
    messages: &Messages,
    delivery: &Delivery,
    tx: &mut InboxTransaction,
) -> Result<(), ResourceError> {
    let source = delivery.source.0;
    let noted = [&source[..], &delivery.id.0].concat();
    let of_key = [&source[..], delivery.topic.as_bytes(), b" ", &delivery.key].concat();
    if tx.get(NOTED, &noted).await?.is_some() {
        let text = format!("message {} takes effect for a second time", delivery.id);
        messages.setup.books.borrow_mut().violations.push(text);
    }
    let count = tx.get_u64_for_update(APPLIED_COUNT, &of_key).await?;
    let count = count.unwrap_or_default() + 1;
    tx.put_u64(APPLIED_COUNT, &of_key, count).await?;
    let row_key = [&of_key[..], &count.to_be_bytes()].concat();
    let row = [&delivery.id.0[..], &delivery.body].concat();
    tx.put(APPLIED, row_key, row).await?;
    tx.put(NOTED, noted, [1]).await
}
