//! Relay and inbox against an executable model of everything around them: a store that writes late or fails, streams that break
//! and leave copies on their way, relays and consumers that crash at any step, handlers that fail, an operator. Whatever
//! happens: each message takes effect once, of a key in the order of publishing, and in the end nothing is left.

mod store;

use super::super::*;
use crate::inbox::{Decision, Inbox, InboxSession, Origin, Refused, Ticket, decide};
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;
use store::{Letter, Store, name, topic};
use synod_proto::ids::{MessageId, ResourceId};

const KEY_COUNT: u64 = 12;
/// So few keys may wait that topics are left behind and read later all the time.
const WAITING_COUNT_MAX: usize = 1;
const STEP_COUNT: usize = 600;

/// What lies in the consumer's database.
#[derive(Default)]
struct Consumer {
    rows: BTreeSet<u64>,
    low_water: LowWater,
    effects: Vec<u64>,
}

#[derive(Clone)]
enum Frame {
    Delivery(Send),
    LowWater(LowWater),
}

struct Stream {
    id: RelaySession,
    frames: VecDeque<Frame>,
    answers: VecDeque<(Position, Fence, Answer)>,
}

/// What the store has done for the relay's process, which has not heard of it yet.
enum Done {
    /// A write, with the mark, or an error that says nothing about it.
    Settled(Settlement, Option<LowWater>),
    Requeued(Row, LowWater),
    Discarded(Row, LowWater),
}

struct World {
    random: Random,
    policy: DeadLetterPolicy,
    now: Timestamp,
    store: Store,
    /// What a read has found. It is of its snapshot's time, not of the time at which the relay gets it.
    found: Option<Rows>,
    done: VecDeque<Done>,
    consumer: Consumer,
    relay: Relay,
    inbox: Inbox,
    streams: Vec<Stream>,
    stream_count: u64,
    /// Copies that broken streams left on their way.
    zombies: VecDeque<(RelaySession, Frame)>,
    waiting: BTreeMap<Ticket, (RelaySession, Send)>,
    running: Vec<(Ticket, RelaySession, Send)>,
    /// How often a message will still fail.
    poison: BTreeMap<u64, u32>,
    /// What has been a dead letter.
    died: BTreeSet<u64>,
    /// How often was read what had been left of a topic.
    topic_read_count: usize,
    is_healed: bool,
}

fn origin() -> Origin {
    Origin {
        source: ResourceId([1; 16]),
        consumer: "c".into(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let policy = if seed.is_multiple_of(3) {
            DeadLetterPolicy::Skip
        } else {
            DeadLetterPolicy::HoldKey
        };
        let mut store = Store {
            mark: 1,
            ..Store::default()
        };
        Self {
            random: Random::new(seed),
            policy,
            now: Timestamp(0),
            relay: store.relay(seed, policy),
            store,
            found: None,
            done: VecDeque::new(),
            consumer: Consumer::default(),
            inbox: Inbox::new(),
            streams: vec![],
            stream_count: 0,
            zombies: VecDeque::new(),
            waiting: BTreeMap::new(),
            running: vec![],
            poison: BTreeMap::new(),
            died: BTreeSet::new(),
            topic_read_count: 0,
            is_healed: false,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    fn publish(&mut self) {
        let key = self.below(KEY_COUNT);
        self.publish_to(key);
        if self.below(6) == 0 {
            let count = u32::try_from(self.below(5)).unwrap() + 1;
            self.poison.insert(self.store.keys.len() as u64, count);
        }
    }

    fn publish_to(&mut self, key: u64) {
        self.store.keys.push(key);
        self.store.stored.insert(self.store.keys.len() as u64);
        self.relay.on_published();
    }

    /// What the core wants sent goes onto its streams.
    fn pump(&mut self) {
        while let Some(send) = self.relay.poll_send(self.now) {
            let stream = self.streams.iter_mut().find(|stream| stream.id == send.session);
            stream
                .expect("an open stream")
                .frames
                .push_back(Frame::Delivery(send));
        }
        while let Some((session, low_water)) = self.relay.poll_low_water() {
            let stream = self.streams.iter_mut().find(|stream| stream.id == session);
            stream
                .expect("an open stream")
                .frames
                .push_back(Frame::LowWater(low_water));
        }
        while let Some(session) = self.relay.poll_lost() {
            if let Some(at) = self.streams.iter().position(|stream| stream.id == session) {
                self.break_stream(at);
            }
        }
    }

    fn open_stream(&mut self) {
        if self.streams.len() < 2 {
            self.stream_count += 1;
            let id = RelaySession(self.stream_count);
            self.streams.push(Stream {
                id,
                frames: VecDeque::new(),
                answers: VecDeque::new(),
            });
            self.relay.on_session_opened(self.now, id);
        }
    }

    /// The relay's end is gone; what it sent may still arrive, and the consumer may not notice for a while.
    fn break_stream(&mut self, at: usize) {
        let stream = self.streams.remove(at);
        self.relay.on_session_closed(stream.id);
        self.zombies
            .extend(stream.frames.into_iter().map(|frame| (stream.id, frame)));
        if self.below(2) == 0 {
            for void in self.inbox.on_session_closed(InboxSession(stream.id.0)) {
                self.waiting.remove(&void);
            }
        }
    }

    fn crash_relay(&mut self) {
        while !self.streams.is_empty() {
            self.break_stream(0);
        }
        let seed = self.random.next_u64();
        self.found = None;
        self.done.clear();
        self.relay = self.store.relay(seed, self.policy);
    }

    fn crash_consumer(&mut self) {
        while !self.streams.is_empty() {
            self.break_stream(0);
        }
        self.zombies.clear();
        self.waiting.clear();
        self.running.clear();
        self.inbox = Inbox::new();
    }

    /// A frame arrives at the consumer.
    fn arrive(&mut self, session: RelaySession, frame: Frame) {
        match frame {
            Frame::Delivery(send) => {
                if !self.is_healed && self.below(4) == 0 {
                    let text = ["no room", "no handler"][usize::from(self.below(2) == 0)].into();
                    return self.answer(session, &send, Answer::Busy { text });
                }
                let key = self.store.key(send.position.0);
                let session_here = InboxSession(session.0);
                match self
                    .inbox
                    .on_delivery(session_here, &origin(), &topic(key), &name(key), send.fence, 1)
                {
                    Ok(ticket) => drop(self.waiting.insert(ticket, (session, send))),
                    Err(refused) => {
                        assert_eq!(refused, Refused::Stale);
                        self.answer(session, &send, Answer::Stale);
                    }
                }
            }
            Frame::LowWater(low_water) => {
                if low_water.mark >= self.consumer.low_water.mark {
                    let known = core::mem::take(&mut self.consumer.low_water);
                    let mut low_water = low_water.clone();
                    low_water
                        .unsettled
                        .retain(|position| !known.is_settled(*position));
                    self.consumer.low_water = low_water.clone();
                    self.consumer
                        .rows
                        .retain(|row| !low_water.is_settled(Position(*row)));
                }
                if self.streams.iter().any(|stream| stream.id == session) {
                    self.relay.on_low_water_reached(low_water.mark);
                }
            }
        }
    }

    fn answer(&mut self, session: RelaySession, send: &Send, answer: Answer) {
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == session) {
            stream.answers.push_back((send.position, send.fence, answer));
        }
    }

    fn start(&mut self) {
        while let Some(ticket) = self.inbox.poll_start() {
            let (session, send) = self.waiting.remove(&ticket).expect("waits");
            self.running.push((ticket, session, send));
        }
    }

    /// A handler ends: its effect and its row are one local transaction.
    fn finish(&mut self, at: usize) {
        let (ticket, session, send) = self.running.swap_remove(at);
        let Position(position) = send.position;
        let id = MessageId([0; 16]);
        let row = self.consumer.rows.contains(&position).then_some(id);
        let has_previous = send
            .previous
            .is_none_or(|previous| self.consumer.rows.contains(&previous.0));
        let answer = match decide(
            id,
            send.position,
            send.previous,
            row,
            &self.consumer.low_water,
            has_previous,
        ) {
            Decision::Next => {
                let poison = self.poison.entry(position).or_default();
                if *poison > 0 {
                    *poison -= 1;
                    Answer::Failed {
                        text: "poison".into(),
                    }
                } else {
                    self.consumer.rows.insert(position);
                    self.apply(position);
                    Answer::Applied
                }
            }
            Decision::Duplicate => Answer::Duplicate,
            Decision::BelowLowWater => Answer::Settled,
            other => panic!("{other:?}: nobody lost data"),
        };
        self.inbox.on_finished(ticket);
        self.answer(session, &send, answer);
    }

    fn is_exempt(&self, position: u64) -> bool {
        self.policy == DeadLetterPolicy::Skip && self.died.contains(&position)
    }

    fn apply(&mut self, position: u64) {
        let effects = &self.consumer.effects;
        assert!(
            !effects.contains(&position),
            "message {position} took effect twice"
        );
        let key = self.store.key(position);
        // A dead letter that was skipped may come later; all others of the key keep their order.
        if self.policy == DeadLetterPolicy::HoldKey || !self.died.contains(&position) {
            let last = effects
                .iter()
                .rev()
                .find(|effect| self.store.key(**effect) == key && !self.is_exempt(**effect));
            assert!(
                last.is_none_or(|last| *last < position),
                "{position} after {last:?}"
            );
        }
        self.consumer.effects.push(position);
    }

    /// The read that is under way ends, or another one begins.
    fn read(&mut self) {
        match self.found.take() {
            Some(_) if !self.is_healed && self.below(16) == 0 => self.relay.on_read_failed(),
            Some(found) => self.relay.on_rows(&found),
            None => {
                let asked = self.relay.poll_read();
                let is_of_a_topic = matches!(asked, Some(Read::Topic { .. }));
                self.topic_read_count += usize::from(is_of_a_topic);
                self.found = asked.map(|asked| self.store.find(&asked));
            }
        }
    }

    fn settle(&mut self) {
        let Some(settlement) = self.relay.poll_settlement() else {
            return;
        };
        self.died
            .extend(settlement.dead.iter().map(|failure| failure.position.0));
        let low_water = match if self.is_healed { 0 } else { self.below(8) } {
            // On disk, and nobody knows.
            1 => {
                self.store.settle(&settlement);
                None
            }
            2 => None,
            _ => Some(self.store.settle(&settlement)),
        };
        self.done.push_back(Done::Settled(settlement, low_water));
    }

    fn operate(&mut self) {
        let dead: Vec<u64> = self
            .store
            .letters
            .iter()
            .filter(|(_, letter)| **letter == Letter::Dead)
            .map(|(position, _)| *position)
            .collect();
        if dead.is_empty() {
            return;
        }
        let position = dead[usize::try_from(self.below(dead.len() as u64)).unwrap()];
        let done = if self.below(2) == 0 {
            self.store.letters.insert(position, Letter::Requeued);
            let (row, low_water) = (self.store.row(position), self.store.advance());
            Done::Requeued(row, low_water)
        } else {
            self.store.letters.remove(&position);
            self.store.discarded.insert(position);
            if position >= self.store.mark {
                self.store.done.insert(position);
            }
            let low_water = self.store.advance();
            Done::Discarded(self.store.row(position), low_water)
        };
        self.done.push_back(done);
    }

    /// The relay's process hears of what the store has done: through several tasks, so in any order.
    fn hear(&mut self) {
        if self.done.is_empty() {
            return;
        }
        let at = self.below(self.done.len() as u64);
        match self.done.remove(usize::try_from(at).unwrap()).expect("below") {
            Done::Settled(settlement, None) => self.relay.on_settle_failed(settlement),
            Done::Settled(settlement, Some(low_water)) => {
                self.relay.on_settled(self.now, true, &settlement, low_water);
            }
            Done::Requeued(row, low_water) => self.relay.on_requeued(self.now, &row, low_water),
            Done::Discarded(row, low_water) => self.relay.on_discarded(self.now, &row, low_water),
        }
    }

    fn step(&mut self) {
        let choice = if self.is_healed {
            self.below(80)
        } else {
            self.below(100)
        };
        match choice {
            0..20 => self.read(),
            20..40 => {
                let at = self.below(2);
                let stream = self.streams.get_mut(usize::try_from(at).unwrap());
                if let Some((id, frame)) =
                    stream.and_then(|stream| Some((stream.id, stream.frames.pop_front()?)))
                {
                    self.arrive(id, frame);
                }
            }
            40..50 => {
                self.start();
                if !self.running.is_empty() {
                    let at = self.below(self.running.len() as u64);
                    self.finish(usize::try_from(at).unwrap());
                }
            }
            50..60 => {
                let at = self.below(2);
                let stream = self.streams.get_mut(usize::try_from(at).unwrap());
                if let Some((id, answer)) =
                    stream.and_then(|stream| Some((stream.id, stream.answers.pop_front()?)))
                {
                    let (position, fence, answer) = answer;
                    self.relay
                        .on_answer(self.now, id, position, fence, answer)
                        .expect("in flight");
                }
            }
            60..64 => self.settle(),
            64..68 => self.hear(),
            68..72 => self.open_stream(),
            // Nobody is away any more: answers come faster than timeouts, for the most part.
            72..78 if !self.is_healed || self.below(4) == 0 => {
                self.now = self.relay.next_timeout().map_or(self.now, |at| self.now.max(at));
                self.relay.on_timeout(self.now);
            }
            78 => self.operate(),
            79 => self.arrive_late(),
            80..90 => self.publish(),
            90..92 if !self.streams.is_empty() => self.break_stream(0),
            92 => self.crash_relay(),
            93 => self.crash_consumer(),
            94..97 => self.arrive_late(),
            97.. => self.operate(),
            _ => {}
        }
        self.pump();
        assert!(self.relay.counts().0 <= WINDOW_COUNT_MAX);
    }

    fn arrive_late(&mut self) {
        if let Some((session, frame)) = self.zombies.pop_front() {
            self.arrive(session, frame);
        }
    }

    /// Nothing breaks any more, and an operator settles whatever is dead.
    fn heal(&mut self) {
        self.is_healed = true;
        self.poison.clear();
        for _ in 0..40_000 {
            self.step();
            let is_settled = self.store.mark > self.store.keys.len() as u64 && self.store.letters.is_empty();
            if is_settled
                && self.consumer.rows.is_empty()
                && self.zombies.is_empty()
                && self.running.is_empty()
            {
                return;
            }
        }
        panic!(
            "not settled: mark {} of {}, letters {:?}, rows {:?}, {} late frames, {} running, {} waiting",
            self.store.mark,
            self.store.keys.len(),
            self.store.letters,
            self.consumer.rows,
            self.zombies.len(),
            self.running.len(),
            self.waiting.len(),
        );
    }
}

/// H5, H7, H8, H9, H10, H16: exactly once, in order per key, and nothing left behind, whatever breaks.
#[test]
fn each_message_takes_effect_once_and_in_order_whatever_breaks() {
    let (mut effect_count, mut topic_read_count) = (0, 0);
    for seed in 0..300 {
        let mut world = World::new(seed);
        for _ in 0..STEP_COUNT {
            world.step();
        }
        world.heal();
        // A key that waits for what is gone would show only now.
        (0..KEY_COUNT).for_each(|key| world.publish_to(key));
        world.heal();
        for position in 1..=world.store.keys.len() as u64 {
            let is_applied = world.consumer.effects.contains(&position);
            let is_discarded = world.store.discarded.contains(&position);
            assert!(
                is_applied || is_discarded,
                "seed {seed}: message {position} was lost"
            );
        }
        assert_eq!(world.relay.counts(), (0, 0), "seed {seed}");
        effect_count += world.consumer.effects.len();
        topic_read_count += world.topic_read_count;
    }
    assert!(
        effect_count > 5_000 && topic_read_count > 100,
        "the worlds are too quiet: {effect_count} effects, {topic_read_count} topics read later"
    );
}

/// A seed is a bug report: the same one gives the same run.
#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut world = World::new(11);
        for _ in 0..STEP_COUNT {
            world.step();
        }
        (world.consumer.effects, world.now, world.stream_count)
    };
    assert_eq!(run(), run());
}
