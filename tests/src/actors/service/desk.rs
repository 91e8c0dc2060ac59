//! What the tasks of one process share: its clock, its session, its store, and who waits for what.

use super::messages::Messages;
use super::open::Opens;
use super::process::{Waiting, to_service};
use super::store::Store;
use super::tasks::Clock;
use super::{Message, Sabotage, SharedBooks, Work};
use crate::actors::{ActorId, Speech};
use futures::channel::{mpsc, oneshot};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use synod_coordinator_core::random::Random;
use synod_participant_core::arrival::CallContext;
use synod_participant_core::session::{Input, Question, Reply, Session, Ticket};
use synod_participant_core::transaction;
use synod_proto::ids::{BranchId, ExecutionId, InstanceId, Lineage};

/// How a call was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The method's own result.
    pub result: Result<(), String>,
    /// What it hands up; `None` if no transactional method ran.
    pub votes: Option<transaction::Reply>,
}

pub(super) type BoxTask = Pin<Box<dyn Future<Output = ()>>>;

/// Whether the caller of an attempt still waits for it.
pub(super) type Presence = Rc<Cell<bool>>;

/// What tasks ask for; done at the end of their turn.
#[derive(Default)]
pub(super) struct Outgoing {
    pub(super) inputs: Vec<Input>,
    pub(super) says: Vec<(ActorId, Speech)>,
    pub(super) spawned: Vec<BoxTask>,
}

/// See the module.
pub(super) struct Desk {
    pub(super) own: ActorId,
    pub(super) clock: Clock,
    pub(super) core: RefCell<Session>,
    pub(super) store: Option<Store>,
    pub(super) messages: Option<Rc<Messages>>,
    pub(super) books: SharedBooks,
    pub(super) sabotage: Option<Sabotage>,
    pub(super) lineage: Cell<Option<Lineage>>,
    pub(super) is_attached: Cell<bool>,
    /// The longest time that an operation of the disk takes.
    pub(super) disk_us_max: Cell<u64>,
    /// How many transactions have begun here and are not over.
    pub(super) active_count: Cell<usize>,
    random: RefCell<Random>,
    outgoing: RefCell<Outgoing>,
    answers: RefCell<BTreeMap<Ticket, oneshot::Sender<Reply>>>,
    waiting: RefCell<Waiting>,
    working: RefCell<BTreeMap<BranchId, oneshot::Sender<()>>>,
    /// Calls that are served, and whether their caller still waits.
    served: RefCell<BTreeMap<(ActorId, u64), Presence>>,
    next: Cell<u64>,
    /// The branches that calls have left open here.
    pub(super) opens: Opens,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl Desk {
    pub(super) fn new(
        own: ActorId,
        clock: Clock,
        core: Session,
        store: Option<Store>,
        messages: Option<Rc<Messages>>,
        setup: &super::Setup,
        seed: u64,
    ) -> Self {
        let mut random = Random::new(seed);
        let instance = InstanceId(random.bytes16());
        Self {
            own,
            clock,
            core: RefCell::new(core),
            store,
            messages,
            books: setup.books.clone(),
            sabotage: setup.sabotage,
            lineage: Cell::new(None),
            is_attached: Cell::new(false),
            disk_us_max: Cell::new(1_000),
            active_count: Cell::new(0),
            random: RefCell::new(random),
            outgoing: RefCell::default(),
            answers: RefCell::default(),
            waiting: RefCell::default(),
            working: RefCell::default(),
            served: RefCell::default(),
            // Numbers of an earlier life must not be taken for those of this one.
            next: Cell::new(seed >> 1),
            opens: Opens::new(instance),
        }
    }

    /// Notes that something happened that a set of runs should not be without.
    pub(super) fn count(&self, what: &'static str) {
        self.books.borrow_mut().count(what);
    }

    /// Whether nothing was begun here that is not over.
    pub(super) fn is_at_rest(&self) -> bool {
        self.active_count.get() == 0 && self.served.borrow().is_empty() && self.opens.open_count() == 0
    }

    pub(super) fn are_messages_at_rest(&self) -> bool {
        let messages = self.messages.as_ref();
        messages.is_none_or(|messages| messages.is_at_rest(self))
    }

    pub(super) fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.random.borrow_mut())
    }

    pub(super) fn happens(&self, ppm: u64) -> bool {
        self.random(|random| random.between(0, 999_999)) < ppm
    }

    pub(super) fn next(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    /// Time passes while something is written or synced.
    pub(super) async fn work_on_disk(&self) {
        let length = self.random(|random| random.between(1, self.disk_us_max.get()));
        self.clock.sleep(length).await;
    }

    // ---- what tasks ask for ----

    pub(super) fn input(&self, input: Input) {
        self.outgoing.borrow_mut().inputs.push(input);
    }

    pub(super) fn say(&self, to: ActorId, message: Message) {
        self.outgoing.borrow_mut().says.push(to_service(to, message));
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.outgoing.borrow_mut().spawned.push(Box::pin(task));
    }

    pub(super) fn take_outgoing(&self) -> Outgoing {
        self.outgoing.take()
    }

    // ---- questions to the coordinator ----

    /// Asks, and waits for nothing.
    pub(super) fn ask(&self, question: Question, patience: Duration) -> oneshot::Receiver<Reply> {
        let ticket = Ticket(self.next());
        let (answer, answered) = oneshot::channel();
        self.answers.borrow_mut().insert(ticket, answer);
        self.input(Input::Ask {
            ticket,
            question,
            patience,
        });
        answered
    }

    pub(super) fn on_reply(&self, ticket: Ticket, reply: Reply) {
        if let Some(answer) = self.answers.borrow_mut().remove(&ticket) {
            let _nobody_waits = answer.send(reply);
        }
    }

    // ---- calls ----

    /// Sends a request whose answer comes to `answers`; returns its number.
    pub(super) fn request(
        &self,
        to: ActorId,
        context: CallContext,
        work: Work,
        answers: mpsc::UnboundedSender<Answered>,
    ) -> u64 {
        let number = self.next();
        self.waiting.borrow_mut().insert(number, answers);
        self.say(
            to,
            Message::Request {
                number,
                context,
                work,
            },
        );
        number
    }

    pub(super) fn on_answer(&self, number: u64, answered: Answered) {
        if let Some(answers) = self.waiting.borrow_mut().remove(&number) {
            let _nobody_waits = answers.unbounded_send(answered);
        }
    }

    pub(super) fn forget_requests(&self, numbers: &[u64]) {
        let mut waiting = self.waiting.borrow_mut();
        for number in numbers {
            waiting.remove(number);
        }
    }

    // ---- work ----

    pub(super) fn begin_serving(&self, from: ActorId, number: u64) -> Presence {
        let is_waiting = Rc::new(Cell::new(true));
        self.served
            .borrow_mut()
            .insert((from, number), is_waiting.clone());
        is_waiting
    }

    pub(super) fn end_serving(&self, from: ActorId, number: u64) {
        self.served.borrow_mut().remove(&(from, number));
    }

    pub(super) fn on_caller_gone(&self, from: ActorId, number: u64) {
        if let Some(is_waiting) = self.served.borrow().get(&(from, number)) {
            is_waiting.set(false);
        }
    }

    /// Work on a branch begins; the receiver hears when its transaction was decided without it.
    pub(super) fn branch_started(self: &Rc<Self>, branch: BranchId) -> (WorkGuard, oneshot::Receiver<()>) {
        let (cancel, cancelled) = oneshot::channel();
        self.working.borrow_mut().insert(branch, cancel);
        self.input(Input::Started { branch });
        let desk = self.clone();
        (WorkGuard { desk, branch }, cancelled)
    }

    pub(super) fn cancel(&self, branch: BranchId) {
        if let Some(cancel) = self.working.borrow_mut().remove(&branch) {
            let _work_is_over = cancel.send(());
        }
    }

    pub(super) fn execution(&self) -> ExecutionId {
        ExecutionId(self.random(Random::next_u64))
    }
}

/// Its end says that the work on a branch is over.
pub(super) struct WorkGuard {
    desk: Rc<Desk>,
    branch: BranchId,
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        self.desk.working.borrow_mut().remove(&self.branch);
        self.desk.input(Input::Ended { branch: self.branch });
    }
}
