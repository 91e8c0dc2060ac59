//! One consumer of one outbox: the relay's core with its storage and its sessions. It decides nothing.
//!
//! All relays of the process share this lane, so that a message is on one session at a time (traps H5). Two tasks of its own
//! read rows and write results; what a session hears goes into the core under the lock and what comes out of it to the sessions.

mod readmission;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use synod_participant_core::Timestamp;
use synod_participant_core::relay::{
    Read, Relay, RelayOptions, RelaySession, Row, Rows, Send, Settlement, WAITING_COUNT_MAX,
};
use synod_proto::ids::{Fence, Position, ResourceId};
use synod_proto::message::{Answer, Answered, LowWater, Welcome};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::relay::another_database;
use super::{Consumer, OutboxError, STORE_RETRY_MAX};
use crate::error::BoxError;
use crate::resource::redb::messages::{
    ConsumerRow, MessageRead, Operated, OperatorAction, Settle, StoredState,
};
use crate::resource::redb::{RedbResource, Snapshot};
use crate::resource::{Identity, ResourceError};
use readmission::Readmission;

pub(super) use readmission::Began;

/// How far one settlement moves the mark at most: above it there may be more.
const MARK_STEP_FULL: u64 = 4096;

/// How long the mark may stay before messages that are not the consumer's.
const SKIP_DELAY: Duration = Duration::from_millis(500);

/// What a lane tells a session.
#[derive(Debug)]
pub(super) enum ToSession {
    Send(Send),
    LowWater(LowWater),
}

/// A session's end in its relay.
pub(super) struct Opened {
    pub(super) session: RelaySession,
    pub(super) orders: mpsc::UnboundedReceiver<ToSession>,
    /// Why it is to end, once it is. Not one of the orders: a session that waits for its transport takes none.
    pub(super) end: oneshot::Receiver<&'static str>,
}

/// A session's end in its lane.
struct Session {
    orders: mpsc::UnboundedSender<ToSession>,
    end: Option<oneshot::Sender<&'static str>>,
}

impl Session {
    fn end(&mut self, reason: &'static str) {
        if let Some(end) = self.end.take() {
            // One that has just ended says so itself.
            let _ = end.send(reason);
        }
    }
}

pub(super) struct Lane {
    pub(super) store: RedbResource,
    pub(super) identity: Identity,
    pub(super) consumer: Consumer,
    state: Mutex<State>,
    /// Held from the look at what is to be written until it is: a write of what was known of a consumer's database does not come
    /// behind the word that forgets it.
    writing: tokio::sync::Mutex<()>,
    started: Instant,
    to_read: Notify,
    to_settle: Notify,
}

struct State {
    relay: Relay,
    sessions: BTreeMap<RelaySession, Session>,
    session_count: u64,
    /// What the inbox has confirmed and is not written yet.
    confirmed: Option<Position>,
    /// The consumer's database, once it was met; and one that was met and is not written yet.
    resource: Option<ResourceId>,
    met: Option<ResourceId>,
    readmission: Readmission,
    /// Messages that are not this consumer's have come, and its mark may pass them.
    has_skipped: bool,
    /// Why there is no session; empty while there is one.
    trouble: String,
    /// Why the store cannot be read, and not be written; empty while it can.
    read_trouble: String,
    write_trouble: String,
}

const NO_RELAY: &str = "no relay is connected";

impl Lane {
    pub(super) fn open(
        store: &RedbResource,
        identity: Identity,
        consumer: &Consumer,
        run: u64,
        snapshot: &Snapshot,
    ) -> Result<Self, OutboxError> {
        let seed = crate::participant::random_u64();
        let relay = relay_of(&consumer.name, consumer.options.clone(), run, seed, snapshot)?;
        Ok(Self {
            store: store.clone(),
            identity,
            consumer: consumer.clone(),
            state: Mutex::new(State {
                relay,
                sessions: BTreeMap::new(),
                session_count: 0,
                confirmed: None,
                resource: row_of(&consumer.name, snapshot)?.resource,
                met: None,
                readmission: Readmission::default(),
                has_skipped: false,
                trouble: NO_RELAY.to_owned(),
                read_trouble: String::new(),
                write_trouble: String::new(),
            }),
            writing: tokio::sync::Mutex::new(()),
            started: Instant::now(),
            to_read: Notify::new(),
            to_settle: Notify::new(),
        })
    }

    pub(super) fn start(lane: &Arc<Self>) -> [JoinHandle<()>; 2] {
        [
            tokio::spawn(read_rows(lane.clone())),
            tokio::spawn(settle(lane.clone())),
        ]
    }

    pub(super) fn takes(&self, topic: &str) -> bool {
        self.consumer.topics.contains(topic)
    }

    fn now(&self) -> Timestamp {
        Timestamp::default().plus_duration(self.started.elapsed())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the lane")
    }

    /// Steps the core, and passes on what comes out of it.
    fn step<T>(&self, step: impl FnOnce(&mut Relay, Timestamp) -> T) -> T {
        let now = self.now();
        let mut state = self.state();
        let State { relay, sessions, .. } = &mut *state;
        let result = step(relay, now);
        let tell = |session: RelaySession, what: ToSession| {
            // A session that has just ended says so itself.
            if let Some(session) = sessions.get(&session) {
                let _ = session.orders.send(what);
            }
        };
        while let Some(send) = relay.poll_send(now) {
            tell(send.session, ToSession::Send(send));
        }
        while let Some((session, low_water)) = relay.poll_low_water() {
            tell(session, ToSession::LowWater(low_water));
        }
        while let Some(session) = relay.poll_lost() {
            if let Some(session) = sessions.get_mut(&session) {
                session.end("the consumer has answered nothing for too long");
            }
        }
        drop(state);
        self.to_read.notify_one();
        self.to_settle.notify_one();
        result
    }

    // ---- what sessions tell ----

    /// Opens a session to the database that the consumer has answered from, unless another one is known to be its own, or an
    /// operator has readmitted the consumer since the stream `began` (T11).
    pub(super) fn open_session(&self, began: Began, welcome: &Welcome) -> Result<Opened, BoxError> {
        // Bounded by what the core has in flight on one session.
        let (orders, receiver) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel();
        let session = {
            let mut state = self.state();
            if !state.readmission.admits(began) {
                return Err("the consumer was readmitted while it was asked for its database".into());
            }
            match state.resource {
                Some(known) if known != welcome.resource => {
                    return Err(another_database(&self.consumer.name, welcome, known));
                }
                Some(_) => {}
                None => {
                    state.resource = Some(welcome.resource);
                    state.met = Some(welcome.resource);
                }
            }
            state.session_count += 1;
            let session = RelaySession(state.session_count);
            let end = Some(end);
            state.sessions.insert(session, Session { orders, end });
            state.trouble.clear();
            session
        };
        self.step(|relay, now| relay.on_session_opened(now, session));
        Ok(Opened {
            session,
            orders: receiver,
            end: ended,
        })
    }

    pub(super) fn close_session(&self, session: RelaySession) {
        {
            let mut state = self.state();
            state.sessions.remove(&session);
            if state.sessions.is_empty() && state.trouble.is_empty() {
                NO_RELAY.clone_into(&mut state.trouble);
            }
        }
        self.step(|relay, _| relay.on_session_closed(session));
    }

    pub(super) fn on_answers(&self, session: RelaySession, answers: Vec<Answered>) {
        self.step(|relay, now| {
            for answered in answers {
                let Answered {
                    position,
                    fence,
                    answer,
                } = answered;
                if let Err(ignored) = relay.on_answer(now, session, position, fence, answer) {
                    tracing::debug!(%position, ?ignored, "an answer came too late");
                }
            }
        });
    }

    pub(super) fn on_low_water_reached(&self, session: RelaySession, mark: Position) {
        {
            let mut state = self.state();
            if !state.sessions.contains_key(&session) {
                return;
            }
            state.confirmed = Some(mark);
        }
        self.step(|relay, _| relay.on_low_water_reached(mark));
    }

    pub(super) fn on_published(&self) {
        self.step(|relay, _| relay.on_published());
    }

    pub(super) fn on_operated(&self, action: OperatorAction, operated: Operated) {
        let Operated { row, low_water } = operated;
        self.step(|relay, now| match action {
            OperatorAction::Requeue => relay.on_requeued(now, &row, low_water),
            OperatorAction::Discard => relay.on_discarded(now, &row, low_water),
            OperatorAction::Cancel => relay.on_cancelled(now, &row, low_water),
        });
    }

    /// The consumer does not know what a cancelled message is: it is not sent there, as if the consumer had had no room.
    pub(super) fn on_refused(&self, sends: &[Send]) {
        let answer = |send: &Send| {
            Answered {
            position: send.position,
            fence: send.fence,
            answer: Answer::Busy {
                text: "it was cancelled, and the consumer's version of this library cannot be told so: update the consumer"
                    .to_owned(),
            },
        }
        };
        for send in sends {
            self.on_answers(send.session, vec![answer(send)]);
        }
    }

    /// These go out as cancelled.
    pub(super) fn on_sent_cancelled(&self, positions: &BTreeSet<Position>) {
        let mut state = self.state();
        for position in positions {
            state.relay.on_sent_cancelled(*position);
        }
    }

    pub(super) fn on_requeued(&self, rows: &[Row], low_water: &LowWater) {
        self.step(|relay, now| {
            for row in rows {
                relay.on_requeued(now, row, low_water.clone());
            }
        });
    }

    pub(super) fn on_unsubscribed(&self, letters: &[Row], low_water: &LowWater) {
        self.step(|relay, now| {
            for row in letters {
                relay.on_discarded(now, row, low_water.clone());
            }
        });
    }

    /// What was to be sent is not the consumer's any more.
    pub(super) fn on_dropped(&self, sends: &[Send]) {
        self.step(|relay, now| {
            for send in sends {
                if let Err(ignored) = relay.on_dropped(now, send.session, send.position, send.fence) {
                    tracing::debug!(position = %send.position, ?ignored, "it was not in flight any more");
                }
            }
        });
    }

    /// Says why the store is in the way, for the operator; or that it is not any more.
    fn set_store_trouble(&self, trouble: impl FnOnce(&mut State) -> &mut String, now: String) {
        let mut state = self.state();
        let trouble = trouble(&mut state);
        if *trouble != now {
            if !now.is_empty() {
                tracing::warn!(consumer = %self.consumer.name, trouble = %now, "the outbox's store is in the way");
            }
            *trouble = now;
        }
    }

    /// Says why no stream is open, for the operator.
    pub(super) fn set_trouble(&self, trouble: String) {
        let mut state = self.state();
        if state.sessions.is_empty() && state.trouble != trouble {
            tracing::warn!(consumer = %self.consumer.name, %trouble, "the consumer gets no messages");
            state.trouble = trouble;
        }
    }

    /// Why nothing is sent, or not all.
    pub(super) fn trouble(&self) -> String {
        let state = self.state();
        for trouble in [&state.write_trouble, &state.read_trouble, &state.trouble] {
            if !trouble.is_empty() {
                return trouble.clone();
            }
        }
        let full = state.relay.full_topics();
        if full.is_empty() {
            return String::new();
        }
        let full: Vec<_> = full.iter().map(|topic| String::from_utf8_lossy(topic)).collect();
        format!(
            "no more keys are sent of the topic {}: {WAITING_COUNT_MAX} of its keys wait for their next attempt or an operator; see \
             the reasons of its messages",
            full.join(", ")
        )
    }

    pub(super) fn mark(&self) -> Position {
        self.state().relay.low_water().mark
    }
}

/// The core of a consumer's lane, as the store has it. `run` is the outbox's, and `seed` all that is left to chance.
pub(super) fn relay_of(
    consumer: &str,
    options: RelayOptions,
    run: u64,
    seed: u64,
    snapshot: &Snapshot,
) -> Result<Relay, OutboxError> {
    let read = MessageRead(snapshot);
    let row = read
        .consumer(consumer)?
        .ok_or_else(|| OutboxError::UnknownConsumer {
            consumer: consumer.to_owned(),
        })?;
    let mut letters = Vec::new();
    let mut unsettled = Vec::new();
    for (position, letter) in read.letters_below(row.number, row.mark)? {
        unsettled.push(position);
        let Some(message) = read.message(position)? else {
            continue;
        };
        let failed_count = match read.state(&row, position)? {
            StoredState::Pending(Some(failure)) => failure.failed_count,
            _ => 0,
        };
        letters.push(Row {
            position,
            topic: Bytes::copy_from_slice(message.topic.as_bytes()),
            key: message.name(),
            byte_count: message.encode().len(),
            failed_count,
            is_dead: letter.is_dead(),
        });
    }
    let low_water = LowWater {
        mark: row.mark,
        unsettled,
    };
    // Above every fence of an earlier run: no run sends 2^40 messages.
    let fence = Fence(run << 40);
    Ok(Relay::new(options, seed, fence, low_water, &letters))
}

pub(super) fn row_of(consumer: &str, snapshot: &Snapshot) -> Result<ConsumerRow, ResourceError> {
    let row = MessageRead(snapshot).consumer(consumer)?;
    row.ok_or_else(|| ResourceError::Invalid {
        text: format!("the consumer `{consumer}` was unsubscribed"),
    })
}

/// What the core asked for.
pub(super) fn find(consumer: &str, snapshot: &Snapshot, asked: &Read) -> Result<Rows, ResourceError> {
    let row = row_of(consumer, snapshot)?;
    let read = MessageRead(snapshot);
    match asked {
        Read::All { after, count_max } => read.all(&row, None, *after, *count_max),
        Read::Topic {
            topic,
            after,
            count_max,
        } => read.all(&row, Some(topic), *after, *count_max),
        Read::Key {
            key,
            after,
            count_max,
        } => read.of_key(&row, key, *after, *count_max),
    }
}

/// Reads what the core asks for, and tells it the time.
async fn read_rows(lane: Arc<Lane>) {
    let mut published = lane.store.published();
    let mut retry = Duration::from_millis(50);
    loop {
        let asked = lane.state().relay.poll_read();
        if let Some(asked) = asked {
            let after = match asked {
                Read::All { after, .. } => Some(after),
                Read::Topic { .. } | Read::Key { .. } => None,
            };
            let consumer = lane.consumer.name.clone();
            let found = lane
                .store
                .read(move |snapshot| find(&consumer, snapshot, &asked))
                .await;
            match found {
                Ok(found) => {
                    retry = Duration::from_millis(50);
                    lane.set_store_trouble(|state| &mut state.read_trouble, String::new());
                    lane.state().has_skipped |=
                        found.rows.is_empty() && after.is_some_and(|after| found.up_to > after);
                    // However much there is to read, time passes.
                    lane.step(|relay, now| {
                        relay.on_rows(&found);
                        relay.on_timeout(now);
                    });
                }
                Err(error) => {
                    let trouble = format!("the outbox cannot be read: {error}");
                    lane.set_store_trouble(|state| &mut state.read_trouble, trouble);
                    lane.state().relay.on_read_failed();
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(STORE_RETRY_MAX);
                }
            }
            continue;
        }
        let timeout = lane.state().relay.next_timeout();
        let due = async {
            match timeout {
                Some(at) => {
                    let delay = at.duration_since(Timestamp::default());
                    tokio::time::sleep_until(lane.started + delay).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => lane.step(Relay::on_timeout),
            () = lane.to_read.notified() => {}
            changed = published.changed() => {
                if changed.is_err() {
                    return;
                }
                lane.on_published();
            }
        }
    }
}

/// Writes what came of attempts: whatever has gathered while the last write synced, in one local transaction.
async fn settle(lane: Arc<Lane>) {
    let mut retry = Duration::from_millis(50);
    let mut has_more = false;
    let mut skip_at = None;
    loop {
        let mut writing = Some(lane.writing.lock().await);
        let (settlement, confirmed, resource) = {
            let mut state = lane.state();
            (
                state.relay.poll_settlement(),
                state.confirmed.take(),
                state.met.take(),
            )
        };
        if settlement.is_none() && confirmed.is_none() && resource.is_none() && !has_more {
            writing = None;
            if !lane.state().has_skipped {
                lane.to_settle.notified().await;
                continue;
            }
            // Nobody waits for it: one write for all that comes until then.
            tokio::select! {
                () = lane.to_settle.notified() => if !lane.is_skip_due(&mut skip_at) { continue },
                () = tokio::time::sleep(SKIP_DELAY) => {}
            }
            skip_at = None;
        }
        lane.state().has_skipped = false;
        let is_polled = settlement.is_some();
        let settlement = settlement.unwrap_or_default();
        let before = lane.mark();
        let delivered_count = settlement.delivered.len();
        tracing::trace!(consumer = %lane.consumer.name, delivered_count, "writes what came of attempts");
        let written = lane
            .store
            .work(Settle {
                consumer: lane.consumer.name.clone(),
                settlement: settlement.clone(),
                confirmed,
                resource,
            })
            .await;
        match written {
            Ok(low_water) => {
                retry = Duration::from_millis(50);
                lane.set_store_trouble(|state| &mut state.write_trouble, String::new());
                let low_water = low_water.unwrap_or_default();
                has_more = low_water.mark.0.saturating_sub(before.0) >= MARK_STEP_FULL;
                lane.step(|relay, now| relay.on_settled(now, is_polled, &settlement, low_water));
            }
            Err(error) => {
                let trouble = format!("results cannot be written: {error}");
                lane.set_store_trouble(|state| &mut state.write_trouble, trouble);
                lane.settle_failed(is_polled, settlement, confirmed, resource);
                drop(writing);
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(STORE_RETRY_MAX);
            }
        }
    }
}

impl Lane {
    /// Whether it is long enough since the first look, which `skip_at` remembers.
    fn is_skip_due(&self, skip_at: &mut Option<Instant>) -> bool {
        Instant::now() >= *skip_at.get_or_insert_with(|| Instant::now() + SKIP_DELAY)
    }

    fn settle_failed(
        &self,
        is_polled: bool,
        settlement: Settlement,
        confirmed: Option<Position>,
        resource: Option<ResourceId>,
    ) {
        let mut state = self.state();
        state.confirmed = state.confirmed.or(confirmed);
        state.met = state.met.or(resource);
        if is_polled {
            state.relay.on_settle_failed(settlement);
        }
    }
}
