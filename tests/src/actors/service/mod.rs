//! A service over the library's own parts: the real session, ledger and branch gate, and the real redb store on a disk
//! that fails. Only what the library's drivers do (moving data and time) is done here by other hands.
//!
//! | file | plays |
//! |---|---|
//! | `process` | `session/driver.rs`: one life of the process |
//! | `desk` | `session/handle.rs`: what tasks ask for |
//! | `open` | `session/open.rs`, `open.rs`: branches that stay open between calls |
//! | `scope` | `scope.rs`, `branch.rs`, `transaction.rs` |
//! | `store` | a store's opening, and the look at its tables |
//! | `disks` | nothing: it counts the operations under the stores |
//! | `tasks` | tokio, in virtual time |
//! | `messages` | `outbox`, `inbox`: the relays and the inbox of the process |
//! | `bank` | a user's code |

mod bank;
mod desk;
mod disks;
mod message;
mod messages;
mod open;
mod process;
mod scope;
mod store;
mod tasks;

pub(crate) use bank::{ACCOUNT_COUNT, ACCOUNTS, BALANCE, JOURNAL};
pub use bank::{Books, Leg, LegKind, Shape, SharedBooks, Work, journal_row};
pub use desk::Answered;
pub use disks::Disks;
pub use message::Message;
pub(crate) use messages::{APPLIED, NOTED, PUBLISHED, TOPICS};
pub use messages::{ConsumerSetup, Frame, Handled, MessageBooks, MessageSetup, SharedMessageBooks};
pub use store::StoreHabits;

use super::{Actor, ActorId, Scene, Speech};
use crate::schedule::Micros;
use messages::Messages;
use process::Process;
use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use store::Store;
use synod::resource::ResourceManager;
use synod::resource::redb::{MemoryDisk, PowerLoss};
use synod_coordinator_core::random::Random;
use synod_proto::ids::{BranchId, ReplicaId, ResourceId, SessionId};
use synod_proto::session::Response;
use tasks::Clock;

/// What goes wrong in a service's machine, beside the crash of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceFault {
    /// Power is lost at the so-manieth operation of the disk from now on.
    CrashAtOperation(u64),
    /// Every operation of the disk fails from the so-manieth on; the process is restarted, or opens its store again.
    FailAtOperation(u64),
    /// The disk is full for a while.
    Full,
    /// Operations of the disk take up to this many microseconds.
    Slow(Micros),
    /// Somebody rolls a prepared branch, picked by the number, back by hand.
    RollBackByHand(u64),
    /// The wall clock shows another time.
    WallClock(i64),
}

/// A service that breaks a rule, so that a test can show that somebody notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// "Unknown" is taken for done (T8).
    AcknowledgesUnknown,
    /// Failed calls do not count (T4).
    ForgetsFailedCalls,
    /// What a former life prepared is rolled back at the start (T8, C2).
    RollsBackAtStart,
    /// Its disk says that it has synced when it has not.
    DiskLies,
}

/// A moment at which a service's machine loses power, by the operations of its store's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopPoint {
    /// The operation that does not take place, counted from 0 at the beginning: a write, a sync or a change of length.
    pub after: u64,
    /// What is left of what was not synced.
    pub power_loss: PowerLoss,
    /// Power is lost once more, at this operation from the loss on, with this left.
    pub again: Option<(u64, PowerLoss)>,
}

/// How a service is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The coordinator.
    pub replicas: Vec<ReplicaId>,
    /// Its database, if it has one.
    pub store: Option<(ResourceId, StoreHabits)>,
    /// How many transactions it begins, and the longest pause before each.
    pub transactions: (u64, Micros),
    /// Everybody that may be called: the service's process and its database.
    pub banks: Vec<(ActorId, ResourceId)>,
    /// Whatever else is left to chance.
    pub seed: u64,
    /// What checkers know of the business.
    pub books: SharedBooks,
    /// What it does wrong, if anything.
    pub sabotage: Option<Sabotage>,
    /// When its machine loses power by plan, if it does.
    pub stop: Option<StopPoint>,
    /// What it has to do with messages, if anything.
    pub messages: Option<MessageSetup>,
}

/// The service's own timers, above those of a process.
const START: u64 = 2;
const RECOVER: u64 = 3;

/// How long a machine stays down that lost power by plan, or while its store was being opened.
const PLANNED_DOWN_US: Micros = 100_000;

/// The service: a machine with a disk, and at most one process on it.
pub struct Service {
    setup: Setup,
    random: Random,
    disk: MemoryDisk,
    process: Option<Process>,
    begun_count: Rc<Cell<u64>>,
    /// Local transactions that publish.
    published_count: Rc<Cell<u64>>,
    is_resting: Rc<Cell<bool>>,
    /// The disk's next failure is the end of the machine.
    dies_with_disk: bool,
    /// What its disk was last told to fail by.
    disk_fails_as: &'static str,
    /// The next loss of power by plan.
    stop: Option<StopPoint>,
    is_recovering: bool,
    disk_us_max: Micros,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// A service whose database, if any, is laid out and holds the bank's accounts.
    ///
    /// # Panics
    /// None does: its disk works.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let mut random = Random::new(setup.seed);
        let disk = MemoryDisk::default();
        if let Some((resource, habits)) = setup.store {
            let redb = store::open(&disk, &Clock::default(), resource, habits.quick_repair)
                .expect("a disk that works");
            bank::open_accounts(&redb);
            drop(redb);
            if setup.sabotage == Some(Sabotage::DiskLies) {
                disk.lie();
            }
            setup.books.borrow_mut().disks.note(resource, &disk);
        }
        let disk_us_max = setup.store.map_or(1, |(_, habits)| habits.disk_us_max);
        let mut own = Self {
            begun_count: Rc::default(),
            published_count: Rc::default(),
            disk,
            process: None,
            is_resting: Rc::default(),
            dies_with_disk: false,
            disk_fails_as: "a disk of a service failed",
            stop: setup.stop,
            is_recovering: false,
            disk_us_max,
            random: Random::new(random.next_u64()),
            setup,
        };
        own.arm();
        own
    }

    fn arm(&mut self) {
        if let Some(stop) = self.stop {
            self.dies_with_disk = true;
            self.disk.fail_from(self.disk.operation_count() + stop.after + 1);
        }
    }

    /// Power is lost, by plan or as drawn. Returns whether by plan.
    fn lose_power(&mut self, drawn: PowerLoss) -> bool {
        (self.dies_with_disk, self.is_recovering) = (false, false);
        let planned = self.stop.take_if(|_| self.disk.has_failed());
        self.disk
            .lose_power(planned.map_or(drawn, |stop| stop.power_loss));
        if let (Some(stop), Some((resource, _))) = (planned, self.setup.store) {
            self.setup
                .books
                .borrow_mut()
                .disks
                .note_stop(resource, &self.disk);
            self.stop = stop.again.map(|(after, power_loss)| StopPoint {
                after,
                power_loss,
                again: None,
            });
            self.arm();
        }
        planned.is_some()
    }

    /// A fault of the machine.
    fn on_fault(&mut self, scene: &mut Scene<'_>, fault: ServiceFault) {
        match fault {
            ServiceFault::CrashAtOperation(count) => {
                self.dies_with_disk = true;
                self.disk.fail_from(self.disk.operation_count() + count);
            }
            ServiceFault::FailAtOperation(count) => {
                self.disk_fails_as = "a disk of a service failed";
                self.disk.fail_from(self.disk.operation_count() + count);
            }
            ServiceFault::Full => {
                self.disk_fails_as = "a disk of a service was full";
                self.disk.set_capacity(Some(0));
            }
            ServiceFault::Slow(disk_us_max) => {
                self.disk_us_max = disk_us_max.max(1);
                if let Some(process) = &self.process {
                    process.desk.disk_us_max.set(self.disk_us_max);
                }
            }
            ServiceFault::RollBackByHand(pick) => self.roll_back_by_hand(scene, pick),
            // The world's: it owns the clocks.
            ServiceFault::WallClock(_) => {}
        }
        self.after_turn(scene);
    }

    /// An operator aborts a prepared branch in the store itself, behind the library's back.
    fn roll_back_by_hand(&self, scene: &mut Scene<'_>, pick: u64) {
        let Some(store) = self
            .process
            .as_ref()
            .and_then(|process| process.desk.store.as_ref())
        else {
            return;
        };
        let prepared: Vec<BranchId> = scene
            .databases
            .in_doubt(store.resource)
            .into_iter()
            .map(|(branch, _)| branch)
            .collect();
        if prepared.is_empty() {
            return;
        }
        self.count("a branch rolled back by hand");
        let branch = prepared[crate::chance::place_of(pick, prepared.len())];
        scene.databases.note_hand(branch);
        let _is_done = tasks::at_once(store.redb.abort(&branch));
        store.touch(branch, None);
    }

    fn count(&self, what: &'static str) {
        self.setup.books.borrow_mut().count(what);
    }

    fn crash(&mut self, scene: &mut Scene<'_>) {
        let Some(process) = self.process.take() else {
            return;
        };
        if let Some((resource, _)) = self.setup.store {
            self.setup.books.borrow_mut().stores.remove(&resource);
        }
        let seed = self.random.next_u64();
        let power_loss = match seed % 4 {
            0 => PowerLoss::Lost,
            1 => PowerLoss::Kept,
            2 => PowerLoss::Subset(seed),
            _ => PowerLoss::Torn(seed),
        };
        if let Some(messages) = &process.desk.messages {
            messages.count_end();
        }
        // First the power, then the process: what its end would write does not arrive.
        let is_planned = self.lose_power(power_loss);
        drop(process);
        let pause = match self.random.between(0, 3) {
            _ if is_planned => PLANNED_DOWN_US,
            0 => 1,
            _ => self.random.between(1_000, 2_000_000),
        };
        scene.wake_after(pause, START);
    }

    fn start(&mut self, scene: &mut Scene<'_>) {
        if self.process.is_some() {
            return;
        }
        let clock = Clock::default();
        clock.set(scene.now, scene.wall);
        let store = match self.setup.store {
            None => None,
            Some((resource, habits)) => {
                match store::open(&self.disk, &clock, resource, habits.quick_repair) {
                    Ok(redb) => {
                        self.setup
                            .books
                            .borrow_mut()
                            .disks
                            .note_opened(resource, &self.disk);
                        self.setup
                            .books
                            .borrow_mut()
                            .stores
                            .insert(resource, redb.clone());
                        let store = Store::new(redb, resource, habits);
                        if !scene.databases.in_doubt(resource).is_empty() {
                            self.count("a start with prepared branches");
                        }
                        store.look_at_all(scene.databases);
                        if self.setup.sabotage == Some(Sabotage::RollsBackAtStart) {
                            for (branch, _) in scene.databases.in_doubt(resource) {
                                let _is_done = tasks::at_once(store.redb.abort(&branch));
                                store.touch(branch, None);
                            }
                        }
                        Some(store)
                    }
                    Err(_) if self.disk.has_failed() => {
                        // A second crash, during the recovery from the first.
                        self.count("a crash during the opening of a store");
                        let drawn = PowerLoss::Torn(self.random.next_u64());
                        self.lose_power(drawn);
                        return scene.wake_after(PLANNED_DOWN_US, START);
                    }
                    Err(error) => {
                        let text = format!("service {}: its store does not open: {error}", scene.own.0);
                        return scene.databases.note_violation(text);
                    }
                }
            }
        };
        let messages = self.setup.messages.as_ref().zip(self.setup.store);
        let messages = messages.map(|(setup, (resource, _))| {
            Messages::new(setup, resource, &self.published_count, &self.is_resting)
        });
        let process = Process::new(scene, &self.setup, clock, store, messages);
        process.desk.disk_us_max.set(self.disk_us_max);
        if let Some(messages) = &process.desk.messages {
            messages.begin(&process.desk);
        }
        self.process = Some(process);
        bank::begin(self);
        self.turn(scene);
    }

    fn turn(&mut self, scene: &mut Scene<'_>) {
        if let Some(process) = &mut self.process {
            process.turn(scene);
        }
        self.after_turn(scene);
    }

    fn after_turn(&mut self, scene: &mut Scene<'_>) {
        let Some(process) = &mut self.process else { return };
        process
            .violations
            .drain(..)
            .for_each(|text| scene.databases.note_violation(text));
        if let Some(store) = &process.desk.store {
            store.look(scene.databases);
        }
        if let Some(messages) = &process.desk.messages {
            messages.look(scene.databases);
        }
        if self.disk.has_failed() && !self.is_recovering {
            if self.dies_with_disk {
                self.count("power lost in the middle of a write");
                return self.crash(scene);
            }
            self.is_recovering = true;
            self.count(self.disk_fails_as);
            let pause = self.random.between(1_000, 1_000_000);
            scene.wake_after(pause, RECOVER);
        }
    }

    /// After the disk failed: the store is opened again, by the process (traps F4) or by its next life.
    fn recover(&mut self, scene: &mut Scene<'_>) {
        let Some(process) = self.process.as_ref().filter(|_| self.is_recovering) else {
            return;
        };
        if self.random.between(0, 1) == 0 {
            return self.crash(scene);
        }
        self.disk.mend();
        self.is_recovering = false;
        if let Some(store) = &process.desk.store {
            self.count("a store opened again by its process");
            match tasks::at_once(store.redb.reopen()) {
                Ok(()) => store.look_at_all(scene.databases),
                Err(error) => scene
                    .databases
                    .note_violation(format!("a store does not open again: {error}")),
            }
        }
        self.turn(scene);
    }
}

impl Actor for Service {
    fn on_start(&mut self, scene: &mut Scene<'_>) {
        if self.process.is_some() {
            self.crash(scene);
        } else {
            scene.wake_after(1, START);
        }
    }

    fn on_response(&mut self, scene: &mut Scene<'_>, session: SessionId, response: Response) {
        if let Some(process) = &mut self.process {
            process.on_response(session, response);
        }
        self.turn(scene);
    }

    fn on_session_lost(&mut self, scene: &mut Scene<'_>, session: SessionId) {
        if let Some(process) = &mut self.process {
            process.on_session_lost(session);
        }
        self.turn(scene);
    }

    fn on_speech(&mut self, scene: &mut Scene<'_>, from: ActorId, speech: Speech) {
        let (Speech::Service(message), Some(process)) = (speech, &mut self.process) else {
            return;
        };
        match *message {
            Message::Request {
                number,
                context,
                work,
            } => bank::serve(process, from, number, &context, work),
            Message::Answer { number, answered } => process.on_answer(number, answered),
            Message::Gone { number } => process.desk.on_caller_gone(from, number),
            message => {
                if let Some(messages) = &process.desk.messages {
                    messages.on_message(&process.desk, from, message);
                }
            }
        }
        self.turn(scene);
    }

    fn on_wake(&mut self, scene: &mut Scene<'_>, token: u64) {
        match token {
            START => return self.start(scene),
            RECOVER => return self.recover(scene),
            _ => {}
        }
        if let Some(process) = &mut self.process {
            process.on_wake(scene, token);
        }
        self.turn(scene);
    }

    fn on_service_fault(&mut self, scene: &mut Scene<'_>, fault: ServiceFault) {
        self.on_fault(scene, fault);
    }

    fn on_rest(&mut self) {
        self.is_resting.set(true);
        self.dies_with_disk = false;
        self.disk_us_max = self.setup.store.map_or(1, |(_, habits)| habits.disk_us_max);
        if let Some(process) = &self.process {
            process.desk.disk_us_max.set(self.disk_us_max);
        }
        // A disk that has failed is mended where its process hears of it.
        if !self.disk.has_failed() {
            self.disk.mend();
        }
    }

    fn is_idle(&self) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| process.desk.is_at_rest() && process.desk.are_messages_at_rest())
            && (self.is_resting.get() || self.begun_count.get() >= self.setup.transactions.0)
    }
}
