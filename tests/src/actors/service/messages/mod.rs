//! A service's outbox and inbox: the real cores over the real rows of the store, with frames that travel like everything else
//! that services say.
//!
//! | file | plays |
//! |---|---|
//! | here | `outbox/mod.rs`: opening, scheduled messages, the operator |
//! | `lane` | `outbox/lane.rs`, `outbox/relay.rs`: the relay to one consumer |
//! | `inbox` | `inbox/server.rs`: streams from relays, and what runs when |
//! | `stream` | gRPC: frames in order, or the stream breaks |
//! | `work` | a user's code: what is published, and its handlers |
//! | `books` | nothing: what the checkers know of it |

mod books;
mod inbox;
mod lane;
mod stream;
mod work;

pub use books::{Handled, MessageBooks, SharedMessageBooks};
pub use stream::Frame;
pub(crate) use work::{APPLIED, NOTED, PUBLISHED, TOPICS};

use super::Message;
use super::desk::Desk;
use crate::actors::ActorId;
use crate::actors::databases::{Databases, RowState};
use crate::schedule::Micros;
use inbox::InboxSide;
use lane::Lane;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use synod::outbox::parts::OpenStore;
use synod::resource::redb::RedbTransaction;
use synod_participant_core::relay::RelayOptions;
use synod_proto::ids::{BranchId, ResourceId};

/// How long the opening of an outbox, or of a store that fails, is left alone.
const RETRY_US: Micros = 200_000;

/// The longest sleep until a scheduled message is due, as the library has it.
const DUE_SLEEP_US_MAX: Micros = 1_000_000;

/// Dead letters that an operator looks at in one go.
const LETTERS_MAX: usize = 16;

/// A consumer of a service's messages.
#[derive(Clone, Debug)]
pub struct ConsumerSetup {
    /// Its name, which is that of its inbox.
    pub name: String,
    /// Its process.
    pub to: ActorId,
    /// What it takes.
    pub topics: Vec<&'static str>,
    /// How patiently it is served.
    pub options: RelayOptions,
}

/// What a service has to do with messages.
#[derive(Clone, Debug)]
pub struct MessageSetup {
    /// The name of its inbox.
    pub name: String,
    /// Who gets what it publishes.
    pub consumers: Vec<ConsumerSetup>,
    /// How many local transactions of its own publish, and the longest pause before each.
    pub local: (u64, Micros),
    /// How many of a million messages meet a handler that fails for a while, or for good.
    pub poison_ppm: u64,
    /// What checkers know of messages.
    pub books: SharedMessageBooks,
}

/// The outbox and the inbox of one life of a process.
pub(super) struct Messages {
    setup: MessageSetup,
    resource: ResourceId,
    /// Of all lives of the service.
    begun_count: Rc<Cell<u64>>,
    is_resting: Rc<Cell<bool>>,
    outbox: RefCell<Option<Rc<OpenStore>>>,
    lanes: RefCell<BTreeMap<String, Rc<Lane>>>,
    inbox: InboxSide,
    published_count: Cell<u64>,
    /// When to look for scheduled messages next.
    due_look_at: Cell<Micros>,
    is_releasing: Cell<bool>,
    /// Whether the tables were empty, if nothing was done since.
    has_nothing_left: Cell<Option<bool>>,
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages")
            .field("name", &self.setup.name)
            .finish_non_exhaustive()
    }
}

impl Messages {
    pub(super) fn new(
        setup: &MessageSetup,
        resource: ResourceId,
        begun_count: &Rc<Cell<u64>>,
        is_resting: &Rc<Cell<bool>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            setup: setup.clone(),
            resource,
            begun_count: begun_count.clone(),
            is_resting: is_resting.clone(),
            outbox: RefCell::default(),
            lanes: RefCell::default(),
            inbox: InboxSide::new(&setup.name),
            published_count: Cell::new(0),
            due_look_at: Cell::new(0),
            is_releasing: Cell::new(false),
            has_nothing_left: Cell::new(None),
        })
    }

    fn count(&self, what: &'static str) {
        self.setup.books.borrow_mut().count(what);
    }

    /// Opens the outbox, and begins to publish.
    pub(super) fn begin(self: &Rc<Self>, desk: &Rc<Desk>) {
        let (own, desk_of_task) = (self.clone(), desk.clone());
        desk.spawn(async move {
            while own.open(&desk_of_task).await.is_none() {
                desk_of_task.clock.sleep(RETRY_US).await;
            }
            work::publish_locally(&own, &desk_of_task).await;
        });
    }

    async fn open(&self, desk: &Desk) -> Option<()> {
        let store = &desk.store.as_ref()?.redb;
        desk.work_on_disk().await;
        let named = self.setup.consumers.iter().map(|one| {
            let topics = one.topics.iter().map(ToString::to_string).collect();
            (one.name.clone(), topics)
        });
        let outbox = Rc::new(OpenStore::open(store, named.collect()).await.ok()?);
        let mut lanes = BTreeMap::new();
        for consumer in &self.setup.consumers {
            let seed = desk.random(synod_coordinator_core::random::Random::next_u64);
            let relay = outbox
                .relay(&consumer.name, consumer.options.clone(), seed)
                .ok()?;
            lanes.insert(consumer.name.clone(), Lane::new(consumer, relay));
        }
        *self.lanes.borrow_mut() = lanes;
        *self.outbox.borrow_mut() = Some(outbox);
        Some(())
    }

    fn lanes(&self) -> Vec<Rc<Lane>> {
        self.lanes.borrow().values().cloned().collect()
    }

    /// Does what can be done now.
    pub(super) fn pump(self: &Rc<Self>, desk: &Rc<Desk>) {
        self.has_nothing_left.set(None);
        self.inbox.pump(self, desk);
        let Some(outbox) = self.outbox.borrow().clone() else {
            return;
        };
        let published = outbox.published_count();
        let has_published = self.published_count.replace(published) != published;
        for lane in self.lanes() {
            if has_published {
                lane.on_published();
            }
            lane.pump(self, desk, &outbox);
        }
        if !self.is_releasing.get() && (has_published || self.due_look_at.get() <= desk.clock.now()) {
            self.look_for_due(desk, outbox);
        }
    }

    /// Lets scheduled messages go when their time has come.
    fn look_for_due(self: &Rc<Self>, desk: &Rc<Desk>, outbox: Rc<OpenStore>) {
        let (now, wall) = (desk.clock.now(), desk.clock.wall());
        match outbox.next_due() {
            Ok(None) => self.due_look_at.set(Micros::MAX),
            Ok(Some(at)) if at > wall => {
                let sleep = (at.0 - wall.0).saturating_mul(1_000).min(DUE_SLEEP_US_MAX);
                self.due_look_at.set(now + sleep);
            }
            Ok(Some(_)) => {
                self.is_releasing.set(true);
                let (own, desk_of_task) = (self.clone(), desk.clone());
                desk.spawn(async move {
                    desk_of_task.work_on_disk().await;
                    match outbox.release().await {
                        Ok(_) => {
                            own.count("a scheduled message released");
                            own.lanes().iter().for_each(|lane| lane.on_published());
                        }
                        Err(_) => desk_of_task.clock.sleep(RETRY_US).await,
                    }
                    own.due_look_at.set(0);
                    own.is_releasing.set(false);
                });
            }
            Err(_) => self.due_look_at.set(now + RETRY_US),
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Micros> {
        let outbox = self.outbox.borrow();
        let due = Some(self.due_look_at.get()).filter(|at| {
            // What is being released is looked at again when that is done.
            outbox.is_some() && !self.is_releasing.get() && *at < Micros::MAX
        });
        let lanes = self.lanes.borrow();
        let lanes = lanes.values().filter_map(|lane| lane.next_timeout()).min();
        due.into_iter()
            .chain(lanes)
            .chain(self.inbox.next_timeout())
            .min()
    }

    /// Another service speaks.
    pub(super) fn on_message(self: &Rc<Self>, desk: &Rc<Desk>, from: ActorId, message: Message) {
        match message {
            Message::Frame {
                stream,
                number,
                frame: Frame::ToInbox(frame),
            } => self.inbox.on_frame(self, desk, from, (stream, number), frame),
            Message::Frame {
                stream,
                number,
                frame: Frame::ToRelay(frame),
            } => {
                let lanes = self.lanes();
                let lane = lanes.iter().find(|lane| lane.is_of(stream));
                match lane {
                    Some(lane) => lane.on_frame(self, desk, (stream, number), frame),
                    None => desk.say(
                        from,
                        Message::StreamLost {
                            stream,
                            is_to_inbox: true,
                        },
                    ),
                }
            }
            Message::StreamAlive {
                stream,
                count,
                is_to_inbox: true,
            } => self.inbox.on_alive(desk, (from, stream), count),
            Message::StreamAlive {
                stream,
                count,
                is_to_inbox: false,
            } => {
                for lane in self.lanes().iter().filter(|lane| lane.is_of(stream)) {
                    lane.on_alive(desk, count);
                }
            }
            Message::StreamLost {
                stream,
                is_to_inbox: true,
            } => self.inbox.on_lost(self, desk, from, stream),
            Message::StreamLost {
                stream,
                is_to_inbox: false,
            } => {
                for lane in self.lanes().iter().filter(|lane| lane.is_of(stream)) {
                    lane.lose_stream(self, desk);
                }
            }
            Message::Operate => self.operate(desk),
            Message::Request { .. } | Message::Answer { .. } | Message::Gone { .. } => {}
        }
    }

    /// An operator looks at dead letters, and sends them again or gives them up.
    fn operate(self: &Rc<Self>, desk: &Rc<Desk>) {
        let Some(outbox) = self.outbox.borrow().clone() else {
            return;
        };
        for lane in self.lanes() {
            let (own, desk_of_task, outbox) = (self.clone(), desk.clone(), outbox.clone());
            desk.spawn(async move {
                let consumer = lane.consumer();
                for position in outbox.dead_letters(consumer, LETTERS_MAX).unwrap_or_default() {
                    let requeues = desk_of_task.happens(500_000);
                    if requeues && desk_of_task.happens(700_000) {
                        // Whatever its handler stumbled over is mended first.
                        own.setup
                            .books
                            .borrow_mut()
                            .mend(own.resource, consumer, position);
                    }
                    desk_of_task.work_on_disk().await;
                    let operated = outbox.operate(consumer, position, requeues).await;
                    desk_of_task.work_on_disk().await;
                    match operated {
                        Ok(Some((row, low_water))) => {
                            own.count(match requeues {
                                true => "a dead letter requeued",
                                false => "a dead letter discarded",
                            });
                            lane.on_operated(&desk_of_task, requeues, &row, low_water);
                        }
                        Ok(None) => {}
                        Err(_) => own.count("an operator's call that the store could not answer"),
                    }
                }
            });
        }
    }

    /// A branch's work publishes, now and then.
    pub(super) async fn publish_in_branch(
        &self,
        desk: &Desk,
        tx: &mut RedbTransaction,
        branch: BranchId,
    ) -> Result<(), String> {
        let Some(outbox) = self.outbox.borrow().clone() else {
            return Ok(());
        };
        work::publish_in_branch(self, desk, &outbox, tx, branch).await
    }

    /// Whether nothing is left to publish, to deliver or to forget.
    pub(super) fn is_at_rest(&self, desk: &Desk) -> bool {
        let is_begun_out = self.is_resting.get() || self.begun_count.get() >= self.setup.local.0;
        let outbox = self.outbox.borrow();
        let (Some(outbox), true) = (outbox.as_ref(), is_begun_out && self.inbox.is_at_rest()) else {
            return false;
        };
        if !self.lanes.borrow().values().all(|lane| lane.is_at_rest()) {
            return false;
        }
        let known = self.has_nothing_left.get();
        let found = known.unwrap_or_else(|| {
            let store = desk.store.as_ref().expect("it has an outbox");
            let is_empty = |table: &str| {
                let page = store
                    .redb
                    .snapshot()
                    .and_then(|snapshot| snapshot.scan_page(table, [], None, 1));
                page.is_ok_and(|page| page.is_empty())
            };
            // The marks have passed everything that there ever was.
            let has_passed_all = outbox.next_position().is_ok_and(|next| {
                let lanes = self.lanes.borrow();
                lanes.values().all(|lane| lane.mark() == next)
            });
            let tables = ["synod:outbox", "synod:outbox_due", "synod:inbox"];
            has_passed_all && tables.into_iter().all(is_empty)
        });
        self.has_nothing_left.set(Some(found));
        found
    }

    /// Nothing that a branch published may be seen before the branch has committed (traps H2).
    pub(super) fn look(&self, databases: &mut Databases) {
        let mut books = self.setup.books.borrow_mut();
        for Handled { source, branch, id } in std::mem::take(&mut books.handled) {
            let state = branch.and_then(|branch| databases.state(source, branch));
            if branch.is_some() && state != Some(RowState::Committed) {
                let text = format!("message {id} was delivered, and its branch {branch:?} is {state:?}");
                books.violations.push(text);
            }
            let in_doubt = databases.in_doubt(source);
            if in_doubt.iter().any(|(branch, _)| books.has_published(*branch)) {
                books.count("a message delivered while a branch in doubt held its own back");
            }
        }
        for text in books.violations.drain(..) {
            databases.note_violation(text);
        }
    }

    /// The process ends: what it was in the middle of.
    pub(super) fn count_end(&self) {
        if self.lanes().iter().any(|lane| lane.has_unwritten()) {
            self.count("a relay killed between an acknowledgement and its mark");
        }
        if self.inbox.has_unanswered() {
            self.count("a consumer killed between an effect and its answer");
        }
    }
}
