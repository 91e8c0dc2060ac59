//! The inbox of one process: streams from relays, the real core that orders what they bring, and the tasks that apply it.

use super::stream::{Frame, Incoming};
use super::{Message, Messages, work};
use crate::actors::ActorId;
use crate::actors::service::desk::Desk;
use crate::schedule::Micros;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use synod::inbox::parts;
use synod_participant_core::inbox::{Inbox, InboxSession, Origin, RUNNING_COUNT_MAX, Refused, Ticket};
use synod_proto::message::{Answer, Answered, Delivery, InboxFrame, RelayFrame};

/// How long a service takes at most to find that a relay has gone, which has come back on another stream.
const NOTICE_US_MAX: Micros = 8_000_000;

/// A stream, at its service.
type StreamKey = (ActorId, u64);

#[derive(Default)]
struct Stream {
    incoming: Incoming<RelayFrame>,
    sent_count: u64,
    /// After the hello.
    session: Option<(InboxSession, Origin)>,
    queue: VecDeque<RelayFrame>,
    is_busy: bool,
}

struct Waiting {
    stream: StreamKey,
    origin: Origin,
    delivery: Delivery,
}

#[derive(Default)]
struct State {
    core: Inbox,
    streams: BTreeMap<StreamKey, Stream>,
    /// Streams that have ended: what comes late is not the beginning of another.
    ended: BTreeSet<StreamKey>,
    waiting: BTreeMap<Ticket, Waiting>,
    session_count: u64,
}

/// See the module.
pub(super) struct InboxSide {
    names: BTreeSet<String>,
    state: RefCell<State>,
    /// Effects that are on disk, and not answered yet.
    unanswered_count: Cell<usize>,
}

impl InboxSide {
    pub(super) fn new(name: &str) -> Self {
        Self {
            names: BTreeSet::from([name.to_string()]),
            state: RefCell::default(),
            unanswered_count: Cell::new(0),
        }
    }

    pub(super) fn has_unanswered(&self) -> bool {
        self.unanswered_count.get() > 0
    }

    pub(super) fn is_at_rest(&self) -> bool {
        let state = self.state.borrow();
        state.core.counts() == (0, 0)
            && state
                .streams
                .values()
                .all(|one| one.queue.is_empty() && !one.is_busy)
    }

    pub(super) fn next_timeout(&self) -> Option<Micros> {
        let state = self.state.borrow();
        let times = state.streams.values().filter_map(|one| one.incoming.breaks_at());
        times.min()
    }

    /// Does what can be done now.
    pub(super) fn pump(&self, messages: &Rc<Messages>, desk: &Rc<Desk>) {
        let now = desk.clock.now();
        let (late, ready) = {
            let state = self.state.borrow();
            let is_late = |one: &Stream| one.incoming.breaks_at().is_some_and(|at| at <= now);
            let late: Vec<StreamKey> = state
                .streams
                .iter()
                .filter(|(_, one)| is_late(one))
                .map(|(key, _)| *key)
                .collect();
            let ready: Vec<StreamKey> = state
                .streams
                .iter()
                .filter(|(_, one)| !one.is_busy && !one.queue.is_empty())
                .map(|(key, _)| *key)
                .collect();
            (late, ready)
        };
        for key in late {
            messages.count("a stream of messages broke");
            self.end(messages, desk, key);
        }
        for key in ready {
            if let Some(stream) = self.state.borrow_mut().streams.get_mut(&key) {
                stream.is_busy = true;
                let (messages, desk_of_task) = (messages.clone(), desk.clone());
                desk.spawn(async move { receive(&messages, &desk_of_task, key).await });
            }
        }
    }

    pub(super) fn on_frame(
        &self,
        messages: &Rc<Messages>,
        desk: &Desk,
        from: ActorId,
        (stream, number): (u64, u64),
        frame: RelayFrame,
    ) {
        let key = (from, stream);
        let mut state = self.state.borrow_mut();
        let is_known = state.streams.contains_key(&key);
        if !is_known && (number > 0 || state.ended.contains(&key)) {
            // Of an earlier life of this process, or given up: nobody listens.
            state.ended.insert(key);
            drop(state);
            return say_lost(desk, key);
        }
        let one = state.streams.entry(key).or_default();
        let ready = one.incoming.take(desk.clock.now(), number, frame);
        one.queue.extend(ready);
        let count = one.queue.len();
        if count > RUNNING_COUNT_MAX * 16 {
            let text = format!("{count} frames wait on one stream");
            messages.setup.books.borrow_mut().violations.push(text);
        }
    }

    /// A relay asks whether its stream is heard.
    pub(super) fn on_alive(&self, desk: &Desk, key: StreamKey, count: u64) {
        let mut state = self.state.borrow_mut();
        let Some(one) = state.streams.get_mut(&key) else {
            return say_lost(desk, key);
        };
        one.incoming.expect(desk.clock.now(), count);
        let alive = Message::StreamAlive {
            stream: key.1,
            count: one.sent_count,
            is_to_inbox: false,
        };
        desk.say(key.0, alive);
    }

    /// The other end says that the stream is gone.
    pub(super) fn on_lost(&self, messages: &Rc<Messages>, desk: &Desk, from: ActorId, stream: u64) {
        self.end(messages, desk, (from, stream));
    }

    fn end(&self, messages: &Messages, desk: &Desk, key: StreamKey) {
        let mut state = self.state.borrow_mut();
        state.ended.insert(key);
        let Some(stream) = state.streams.remove(&key) else {
            return;
        };
        if let Some((session, origin)) = stream.session {
            for void in state.core.on_session_closed(session) {
                state.waiting.remove(&void);
            }
            let is_idle = !state
                .streams
                .values()
                .any(|one| one.session.as_ref().is_some_and(|(_, open)| *open == origin));
            if is_idle {
                state.core.on_origin_idle(&origin);
                messages.count("an origin without a stream");
            }
        }
        drop(state);
        say_lost(desk, key);
    }

    fn say(&self, desk: &Desk, key: StreamKey, frame: InboxFrame) {
        let mut state = self.state.borrow_mut();
        // A stream that is gone asks again on the next one.
        let Some(stream) = state.streams.get_mut(&key) else {
            return;
        };
        let message = Message::Frame {
            stream: key.1,
            number: stream.sent_count,
            frame: Frame::ToRelay(frame),
        };
        stream.sent_count += 1;
        desk.say(key.0, message);
    }

    fn next_frame(&self, key: StreamKey) -> Option<RelayFrame> {
        let mut state = self.state.borrow_mut();
        let stream = state.streams.get_mut(&key)?;
        let next = stream.queue.pop_front();
        stream.is_busy = next.is_some();
        next
    }

    fn open(&self, key: StreamKey, origin: Origin) -> Vec<StreamKey> {
        let mut state = self.state.borrow_mut();
        state.session_count += 1;
        let session = InboxSession(state.session_count);
        let older = state
            .streams
            .iter()
            .filter(|(_, one)| one.session.as_ref().is_some_and(|(_, open)| *open == origin))
            .map(|(key, _)| *key)
            .collect();
        if let Some(stream) = state.streams.get_mut(&key) {
            stream.session = Some((session, origin));
        }
        older
    }

    /// Takes a delivery, or says why not.
    fn take(&self, messages: &Messages, key: StreamKey, delivery: Delivery) -> Option<Answered> {
        let mut state = self.state.borrow_mut();
        let (session, origin) = state.streams.get(&key)?.session.clone()?;
        let (name, topic) = parts::names_of(&delivery);
        let (position, fence) = (delivery.position, delivery.fence);
        let taken = state
            .core
            .on_delivery(session, &origin, &topic, &name, fence, delivery.body.len());
        let answer = match taken {
            Ok(ticket) => {
                let waiting = Waiting {
                    stream: key,
                    origin,
                    delivery,
                };
                state.waiting.insert(ticket, waiting);
                return None;
            }
            Err(Refused::Stale) => {
                messages.count("a delivery that a later one had overtaken");
                Answer::Stale
            }
            Err(Refused::Busy) => Answer::Busy {
                text: "too many messages are waiting".to_string(),
            },
        };
        Some(Answered {
            position,
            fence,
            answer,
        })
    }

    fn start_ready(&self, messages: &Rc<Messages>, desk: &Rc<Desk>) {
        loop {
            let (ticket, waiting) = {
                let mut state = self.state.borrow_mut();
                let Some(ticket) = state.core.poll_start() else {
                    return;
                };
                let waiting = state.waiting.remove(&ticket).expect("what has a ticket waits");
                (ticket, waiting)
            };
            let (messages, desk_of_task) = (messages.clone(), desk.clone());
            desk.spawn(async move { run(&messages, &desk_of_task, ticket, waiting).await });
        }
    }
}

fn say_lost(desk: &Desk, (from, stream): StreamKey) {
    let lost = Message::StreamLost {
        stream,
        is_to_inbox: false,
    };
    desk.say(from, lost);
}

/// Reads what has come on a stream, one frame after the other.
async fn receive(messages: &Rc<Messages>, desk: &Rc<Desk>, key: StreamKey) {
    let inbox = &messages.inbox;
    let Some(store) = &desk.store else { return };
    while let Some(frame) = inbox.next_frame(key) {
        match frame {
            RelayFrame::Hello(hello) => {
                let pause = desk.random(|random| random.between(1, 2_000));
                desk.clock.sleep(pause).await;
                match parts::admit(&store.redb, &inbox.names, &hello).await {
                    Ok(welcome) => {
                        let origin = Origin {
                            source: hello.source,
                            consumer: hello.consumer,
                        };
                        for older in inbox.open(key, origin) {
                            end_later(messages, desk, older);
                        }
                        inbox.say(desk, key, InboxFrame::Welcome(welcome));
                    }
                    Err(text) => {
                        if text.contains("has lost data") || text.contains("mend the") {
                            let text = format!("an inbox refuses an outbox that lost nothing: {text}");
                            messages.setup.books.borrow_mut().violations.push(text);
                        }
                        return inbox.end(messages, desk, key);
                    }
                }
            }
            RelayFrame::Deliver(deliveries) => {
                for delivery in deliveries {
                    if let Some(refused) = inbox.take(messages, key, delivery) {
                        inbox.say(desk, key, InboxFrame::Answers(vec![refused]));
                    }
                    inbox.start_ready(messages, desk);
                }
            }
            RelayFrame::LowWater(low_water) => {
                let open = inbox
                    .state
                    .borrow()
                    .streams
                    .get(&key)
                    .map(|one| one.session.clone());
                let Some(Some((_, origin))) = open else { return };
                let mark = low_water.mark;
                desk.work_on_disk().await;
                let done = parts::forget(&store.redb, &origin, low_water).await;
                desk.work_on_disk().await;
                match done {
                    Ok(()) => inbox.say(desk, key, InboxFrame::LowWaterReached(mark)),
                    Err(_) => return inbox.end(messages, desk, key),
                }
            }
        }
    }
}

/// The other end of an older stream is gone, and this one finds out after a while. Until then what came on it is worked on.
fn end_later(messages: &Rc<Messages>, desk: &Rc<Desk>, key: StreamKey) {
    let (messages, desk_of_task) = (messages.clone(), desk.clone());
    desk.spawn(async move {
        let notice = desk_of_task.random(|random| random.between(1, NOTICE_US_MAX));
        desk_of_task.clock.sleep(notice).await;
        messages.inbox.end(&messages, &desk_of_task, key);
    });
}

/// Applies a delivery, whatever becomes of its stream meanwhile.
async fn run(messages: &Rc<Messages>, desk: &Rc<Desk>, ticket: Ticket, waiting: Waiting) {
    let inbox = &messages.inbox;
    let Waiting {
        stream,
        origin,
        delivery,
    } = waiting;
    let (position, fence) = (delivery.position, delivery.fence);
    let Some(store) = &desk.store else { return };
    desk.work_on_disk().await;
    messages
        .setup
        .books
        .borrow_mut()
        .positions
        .insert((origin.source, origin.consumer.clone(), position), delivery.id);
    let handle = |delivery, tx| work::handle(messages, desk, delivery, tx);
    let answer = parts::apply(&store.redb, &origin, delivery, handle).await;
    let is_applied = answer == Answer::Applied;
    if is_applied {
        inbox.unanswered_count.set(inbox.unanswered_count.get() + 1);
    }
    messages.count(match &answer {
        Answer::Applied => "applied",
        Answer::Duplicate => "a duplicate answered from the inbox",
        Answer::Settled => "a delivery below the low-water mark",
        Answer::Failed { .. } => "a handler failed",
        Answer::Busy { .. } => "a delivery that its store could not serve",
        Answer::Gap { .. } => "a gap answered",
        Answer::Stale => "a delivery that a later one had overtaken",
    });
    if let Answer::Gap { missing } = answer {
        let text = format!("an inbox that lost nothing misses message {missing}");
        messages.setup.books.borrow_mut().violations.push(text);
    }
    desk.work_on_disk().await;
    if is_applied {
        inbox.unanswered_count.set(inbox.unanswered_count.get() - 1);
    }
    inbox.state.borrow_mut().core.on_finished(ticket);
    inbox.start_ready(messages, desk);
    let answered = Answered {
        position,
        fence,
        answer,
    };
    inbox.say(desk, stream, InboxFrame::Answers(vec![answered]));
}
