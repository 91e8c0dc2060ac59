//! The relay to one consumer: the real core, with its reads, its writes and its stream. It decides nothing.

use super::stream::{ALIVE_US, Frame, Incoming, SILENCE_US_MAX};
use super::{ConsumerSetup, Message, Messages, RETRY_US};
use crate::actors::service::desk::Desk;
use crate::schedule::Micros;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use synod::outbox::parts::OpenStore;
use synod::resource::ResourceError;
use synod_participant_core::Timestamp;
use synod_participant_core::relay::{
    Read, Relay, RelaySession, Row, Send, Settlement, WAITING_COUNT_MAX, WINDOW_COUNT_MAX,
};
use synod_proto::ids::{Position, ResourceId};
use synod_proto::message::{Answer, Answered, InboxFrame, LowWater, RelayFrame, Welcome};

/// How far one settlement moves the mark at most, as the library has it.
const MARK_STEP_FULL: u64 = 4096;

/// How long the mark may stay before messages that are not the consumer's.
const SKIP_DELAY_US: Micros = 500_000;

/// How long a consumer may take for its welcome.
const WELCOME_US: Micros = 3_000_000;

/// The waits between two attempts to reach a consumer.
const RECONNECT_US: (Micros, Micros) = (50_000, 2_000_000);

/// What a session is told.
enum Order {
    Send(Send),
    LowWater(LowWater),
}

/// The stream to the consumer.
struct Stream {
    id: u64,
    sent_count: u64,
    incoming: Incoming<InboxFrame>,
    /// After the welcome.
    session: Option<RelaySession>,
    orders: VecDeque<Order>,
    is_sending: bool,
    /// Until when the other end must have been heard.
    heard_by: Micros,
    /// When the other end is asked again whether it is there.
    alive_at: Micros,
}

struct State {
    relay: Relay,
    stream: Option<Stream>,
    session_count: u64,
    reconnect_at: Micros,
    reconnect_us: Micros,
    is_reading: bool,
    is_settling: bool,
    has_more: bool,
    has_skipped: bool,
    skip_at: Option<Micros>,
    confirmed: Option<Position>,
    met: Option<ResourceId>,
    /// The highest mark that the inbox has confirmed in this life.
    confirmed_mark: Position,
    /// Acknowledged, and not on disk yet.
    unwritten_count: usize,
}

/// See the module.
pub(super) struct Lane {
    consumer: ConsumerSetup,
    state: RefCell<State>,
}

impl Lane {
    pub(super) fn new(consumer: &ConsumerSetup, relay: Relay) -> Rc<Self> {
        Rc::new(Self {
            consumer: consumer.clone(),
            state: RefCell::new(State {
                relay,
                stream: None,
                session_count: 0,
                reconnect_at: 0,
                reconnect_us: RECONNECT_US.0,
                is_reading: false,
                is_settling: false,
                has_more: false,
                has_skipped: false,
                skip_at: None,
                confirmed: None,
                met: None,
                confirmed_mark: Position(0),
                unwritten_count: 0,
            }),
        })
    }

    pub(super) fn consumer(&self) -> &str {
        &self.consumer.name
    }

    pub(super) fn is_of(&self, stream: u64) -> bool {
        let state = self.state.borrow();
        state.stream.as_ref().is_some_and(|one| one.id == stream)
    }

    pub(super) fn has_unwritten(&self) -> bool {
        self.state.borrow().unwritten_count > 0
    }

    pub(super) fn on_published(&self) {
        self.state.borrow_mut().relay.on_published();
    }

    pub(super) fn mark(&self) -> Position {
        self.state.borrow().relay.low_water().mark
    }

    pub(super) fn is_at_rest(&self) -> bool {
        let state = self.state.borrow();
        state.relay.counts() == (0, 0)
            && !state.is_settling
            && !state.is_reading
            && state.unwritten_count == 0
            && state.confirmed_mark == state.relay.low_water().mark
    }

    pub(super) fn next_timeout(&self) -> Option<Micros> {
        let state = self.state.borrow();
        let of_stream = match &state.stream {
            None => Some(state.reconnect_at),
            Some(one) => {
                let breaks_at = one.incoming.breaks_at();
                breaks_at.into_iter().chain([one.heard_by, one.alive_at]).min()
            }
        };
        let core = state.relay.next_timeout().map(|at| at.0);
        core.into_iter().chain(of_stream).chain(state.skip_at).min()
    }

    /// Does what can be done now.
    pub(super) fn pump(self: &Rc<Self>, messages: &Rc<Messages>, desk: &Rc<Desk>, outbox: &Rc<OpenStore>) {
        let now = desk.clock.now();
        let is_late = {
            let mut state = self.state.borrow_mut();
            if state.relay.next_timeout().is_some_and(|at| at.0 <= now) {
                state.relay.on_timeout(Timestamp(now));
            }
            match &state.stream {
                None => false,
                Some(one) => one.heard_by <= now || one.incoming.breaks_at().is_some_and(|at| at <= now),
            }
        };
        if is_late {
            messages.count("a stream of messages broke");
            self.lose_stream(messages, desk);
        }
        self.connect(desk, outbox);
        self.keep_alive(desk);
        self.give_orders(messages, desk);
        self.send(desk, outbox);
        self.read(desk, outbox);
        self.settle(messages, desk, outbox);
        let count = self.state.borrow().relay.counts().0;
        if count > WINDOW_COUNT_MAX + WAITING_COUNT_MAX {
            let text = format!("a relay holds {count} messages in memory");
            messages.setup.books.borrow_mut().violations.push(text);
        }
    }

    // ---- the stream ----

    fn connect(&self, desk: &Desk, outbox: &OpenStore) {
        let mut state = self.state.borrow_mut();
        let now = desk.clock.now();
        if state.stream.is_some() || state.reconnect_at > now {
            return;
        }
        let id = desk.next();
        let mut stream = Stream {
            id,
            sent_count: 0,
            incoming: Incoming::default(),
            session: None,
            orders: VecDeque::new(),
            is_sending: false,
            heard_by: now + WELCOME_US,
            alive_at: now + ALIVE_US,
        };
        let hello = outbox.hello(&self.consumer.name, state.relay.low_water().mark);
        self.say(desk, &mut stream, RelayFrame::Hello(hello));
        state.stream = Some(stream);
    }

    fn keep_alive(&self, desk: &Desk) {
        let mut state = self.state.borrow_mut();
        let now = desk.clock.now();
        let Some(stream) = state.stream.as_mut().filter(|one| one.alive_at <= now) else {
            return;
        };
        stream.alive_at = now + ALIVE_US;
        if stream.session.is_some() {
            let alive = Message::StreamAlive {
                stream: stream.id,
                count: stream.sent_count,
                is_to_inbox: true,
            };
            desk.say(self.consumer.to, alive);
        }
    }

    pub(super) fn on_alive(&self, desk: &Desk, count: u64) {
        let mut state = self.state.borrow_mut();
        let now = desk.clock.now();
        if let Some(stream) = state.stream.as_mut().filter(|one| one.session.is_some()) {
            stream.incoming.expect(now, count);
            stream.heard_by = now + SILENCE_US_MAX;
        }
    }

    fn say(&self, desk: &Desk, stream: &mut Stream, frame: RelayFrame) {
        let message = Message::Frame {
            stream: stream.id,
            number: stream.sent_count,
            frame: Frame::ToInbox(frame),
        };
        stream.sent_count += 1;
        desk.say(self.consumer.to, message);
    }

    /// The stream is gone, or is given up here; the other end hears of it, if the network lets it.
    pub(super) fn lose_stream(&self, messages: &Messages, desk: &Desk) {
        let mut state = self.state.borrow_mut();
        let Some(stream) = state.stream.take() else { return };
        if let Some(session) = stream.session {
            state.relay.on_session_closed(session);
            messages.count("a session of a relay ended");
        }
        let lost = Message::StreamLost {
            stream: stream.id,
            is_to_inbox: true,
        };
        desk.say(self.consumer.to, lost);
        let wait = state.reconnect_us / 2 + desk.random(|random| random.between(0, RECONNECT_US.0));
        state.reconnect_at = desk.clock.now() + wait;
        state.reconnect_us = (state.reconnect_us * 2).min(RECONNECT_US.1);
    }

    pub(super) fn on_frame(
        &self,
        messages: &Messages,
        desk: &Desk,
        (stream, number): (u64, u64),
        frame: InboxFrame,
    ) {
        let ready = {
            let mut state = self.state.borrow_mut();
            let Some(one) = state.stream.as_mut().filter(|one| one.id == stream) else {
                return;
            };
            one.incoming.take(desk.clock.now(), number, frame)
        };
        for frame in ready {
            match frame {
                InboxFrame::Welcome(welcome) => self.on_welcome(messages, desk, &welcome),
                InboxFrame::Answers(answers) => self.on_answers(messages, desk, answers),
                InboxFrame::LowWaterReached(mark) => {
                    messages.count("a low-water mark passed");
                    let mut state = self.state.borrow_mut();
                    state.confirmed = Some(mark);
                    state.confirmed_mark = mark;
                    state.relay.on_low_water_reached(mark);
                }
            }
        }
    }

    fn on_welcome(&self, messages: &Messages, desk: &Desk, welcome: &Welcome) {
        let outbox = messages.outbox.borrow().clone();
        let outbox = outbox.expect("a lane has an outbox");
        if let Err(trouble) = outbox.check(&self.consumer.name, welcome) {
            if trouble.downcast_ref::<ResourceError>().is_none() {
                messages.setup.books.borrow_mut().violations.push(format!(
                    "an outbox refuses its consumer, which lost nothing: {trouble}"
                ));
            }
            return self.lose_stream(messages, desk);
        }
        let mut state = self.state.borrow_mut();
        state.session_count += 1;
        let session = RelaySession(state.session_count);
        state.met = Some(welcome.resource);
        state.reconnect_us = RECONNECT_US.0;
        if let Some(stream) = &mut state.stream {
            stream.session = Some(session);
            stream.heard_by = desk.clock.now() + SILENCE_US_MAX;
        }
        let now = Timestamp(desk.clock.now());
        state.relay.on_session_opened(now, session);
    }

    fn on_answers(&self, messages: &Messages, desk: &Desk, answers: Vec<Answered>) {
        let mut state = self.state.borrow_mut();
        let Some(session) = state.stream.as_ref().and_then(|one| one.session) else {
            return;
        };
        for answered in answers {
            let is_done = matches!(
                answered.answer,
                Answer::Applied | Answer::Duplicate | Answer::Settled
            );
            let Answered {
                position,
                fence,
                answer,
            } = answered;
            let now = Timestamp(desk.clock.now());
            match state.relay.on_answer(now, session, position, fence, answer) {
                Ok(()) if is_done => state.unwritten_count += 1,
                Ok(()) => {}
                Err(_) => messages.count("an answer that came too late"),
            }
        }
    }

    /// What comes out of the core.
    fn give_orders(&self, messages: &Messages, desk: &Desk) {
        let now = Timestamp(desk.clock.now());
        let mut is_lost = false;
        {
            let mut state = self.state.borrow_mut();
            let State { relay, stream, .. } = &mut *state;
            let mut tell = |session: RelaySession, order: Order| {
                if let Some(one) = stream.as_mut().filter(|one| one.session == Some(session)) {
                    one.orders.push_back(order);
                }
            };
            while let Some(send) = relay.poll_send(now) {
                tell(send.session, Order::Send(send));
            }
            while let Some((session, low_water)) = relay.poll_low_water() {
                tell(session, Order::LowWater(low_water));
            }
            while let Some(session) = relay.poll_lost() {
                is_lost |= stream.as_ref().is_some_and(|one| one.session == Some(session));
            }
        }
        if is_lost {
            messages.count("a consumer that answered nothing for too long");
            self.lose_stream(messages, desk);
        }
    }

    /// Sends what was ordered, in its order.
    fn send(self: &Rc<Self>, desk: &Rc<Desk>, outbox: &Rc<OpenStore>) {
        let mut state = self.state.borrow_mut();
        let Some(stream) = state
            .stream
            .as_mut()
            .filter(|one| !one.is_sending && !one.orders.is_empty())
        else {
            return;
        };
        stream.is_sending = true;
        let id = stream.id;
        let (own, desk_of_task, outbox) = (self.clone(), desk.clone(), outbox.clone());
        desk.spawn(async move {
            while let Some((sends, low_water)) = own.take_orders(id) {
                let found = outbox.frames(&own.consumer.name, sends);
                // What was read is old when it goes out.
                let pause = desk_of_task.random(|random| random.between(1, 2_000));
                desk_of_task.clock.sleep(pause).await;
                let mut state = own.state.borrow_mut();
                let State { relay, stream, .. } = &mut *state;
                let Some(one) = stream.as_mut().filter(|one| one.id == id) else {
                    return;
                };
                let Ok(found) = found else {
                    // As the library does it: the session ends, and another begins.
                    one.heard_by = 0;
                    if let Some(session) = one.session.take() {
                        relay.on_session_closed(session);
                    }
                    return;
                };
                for send in &found.dropped {
                    let now = Timestamp(desk_of_task.clock.now());
                    let _late = relay.on_dropped(now, send.session, send.position, send.fence);
                }
                for position in found.cancelled {
                    relay.on_sent_cancelled(position);
                }
                for frame in found.frames {
                    own.say(&desk_of_task, one, RelayFrame::Deliver(frame));
                }
                if let Some(low_water) = low_water {
                    own.say(&desk_of_task, one, RelayFrame::LowWater(low_water));
                }
            }
        });
    }

    fn take_orders(&self, stream: u64) -> Option<(Vec<Send>, Option<LowWater>)> {
        let mut state = self.state.borrow_mut();
        let one = state.stream.as_mut().filter(|one| one.id == stream)?;
        let mut sends = Vec::new();
        loop {
            match one.orders.pop_front() {
                Some(Order::Send(send)) => sends.push(send),
                Some(Order::LowWater(low_water)) => return Some((sends, Some(low_water))),
                None if sends.is_empty() => {
                    one.is_sending = false;
                    return None;
                }
                None => return Some((sends, None)),
            }
        }
    }

    // ---- the store ----

    fn read(self: &Rc<Self>, desk: &Rc<Desk>, outbox: &Rc<OpenStore>) {
        let mut state = self.state.borrow_mut();
        if state.is_reading {
            return;
        }
        let Some(asked) = state.relay.poll_read() else {
            return;
        };
        state.is_reading = true;
        let (own, desk_of_task, outbox) = (self.clone(), desk.clone(), outbox.clone());
        desk.spawn(async move {
            let found = outbox.find(&own.consumer.name, &asked);
            let pause = desk_of_task.random(|random| random.between(1, 2_000));
            desk_of_task.clock.sleep(pause).await;
            match found {
                Ok(found) => {
                    let mut state = own.state.borrow_mut();
                    let is_skip = match asked {
                        Read::All { after, .. } => found.rows.is_empty() && found.up_to > after,
                        Read::Topic { .. } | Read::Key { .. } => false,
                    };
                    state.has_skipped |= is_skip;
                    state.relay.on_rows(&found);
                }
                Err(_) => {
                    own.state.borrow_mut().relay.on_read_failed();
                    desk_of_task.clock.sleep(RETRY_US).await;
                }
            }
            own.state.borrow_mut().is_reading = false;
        });
    }

    /// Writes what came of attempts: whatever has gathered while the last write synced.
    fn settle(self: &Rc<Self>, messages: &Rc<Messages>, desk: &Rc<Desk>, outbox: &Rc<OpenStore>) {
        let mut state = self.state.borrow_mut();
        if state.is_settling {
            return;
        }
        let (polled, confirmed, met) = (
            state.relay.poll_settlement(),
            state.confirmed.take(),
            state.met.take(),
        );
        if polled.is_none() && confirmed.is_none() && met.is_none() && !state.has_more {
            if !state.has_skipped {
                return;
            }
            let now = desk.clock.now();
            // Nobody waits for it: one write for all that comes until then.
            if *state.skip_at.get_or_insert(now + SKIP_DELAY_US) > now {
                return;
            }
        }
        state.skip_at = None;
        state.has_skipped = false;
        state.is_settling = true;
        let before = state.relay.low_water().mark;
        let (own, messages, desk_of_task, outbox) =
            (self.clone(), messages.clone(), desk.clone(), outbox.clone());
        desk.spawn(async move {
            let is_polled = polled.is_some();
            let settlement = polled.unwrap_or_default();
            desk_of_task.work_on_disk().await;
            let written = outbox.settle(&own.consumer.name, settlement.clone(), confirmed, met);
            let written = written.await;
            desk_of_task.work_on_disk().await;
            match written {
                Ok(low_water) => {
                    let mut state = own.state.borrow_mut();
                    state.has_more = low_water.mark.0.saturating_sub(before.0) >= MARK_STEP_FULL;
                    own.on_settled(
                        &mut state,
                        &messages,
                        &desk_of_task,
                        is_polled,
                        &settlement,
                        low_water,
                    );
                }
                Err(_) => {
                    messages.count("results of a relay that could not be written at first");
                    {
                        let mut state = own.state.borrow_mut();
                        state.confirmed = state.confirmed.or(confirmed);
                        state.met = state.met.or(met);
                        if is_polled {
                            state.relay.on_settle_failed(settlement);
                        }
                    }
                    desk_of_task.clock.sleep(RETRY_US).await;
                }
            }
            own.state.borrow_mut().is_settling = false;
        });
    }

    fn on_settled(
        &self,
        state: &mut State,
        messages: &Messages,
        desk: &Desk,
        is_polled: bool,
        settlement: &Settlement,
        low_water: LowWater,
    ) {
        state.unwritten_count = state.unwritten_count.saturating_sub(settlement.delivered.len());
        if !settlement.dead.is_empty() {
            messages.count("a dead letter");
        }
        let now = Timestamp(desk.clock.now());
        state.relay.on_settled(now, is_polled, settlement, low_water);
    }

    pub(super) fn on_operated(&self, desk: &Desk, requeues: bool, row: &Row, low_water: LowWater) {
        let now = Timestamp(desk.clock.now());
        let mut state = self.state.borrow_mut();
        match requeues {
            true => state.relay.on_requeued(now, row, low_water),
            false => state.relay.on_discarded(now, row, low_water),
        }
    }
}
