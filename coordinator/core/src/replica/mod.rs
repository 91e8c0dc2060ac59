//! One replica: a Paxos group member and, while it leads, the coordinator.
//!
//! [`Replica::step`] is the entrance. The handlers lie beside this file: [`paxos`](self) messages in `messages.rs`
//! and `catching_up.rs`, what a leader does in `leading.rs`, sessions' requests in `serving.rs` and `reading.rs`, and what they are told once an
//! entry is applied in `applying.rs`.

mod applying;
mod catching_up;
mod config;
mod leading;
mod messages;
mod preparing;
mod reading;
mod serving;
mod status;
#[cfg(test)]
mod tests;

pub use crate::transaction::PARKED_COUNT_MAX;
pub use config::{Config, Limits, Timing};
pub use status::{Queues, RoleName, Status};

use crate::durable::Recovered;
use crate::effects::{Effects, Fetch, Notice, StepId, Told, Unsynced};
use crate::machine::Machine;
use crate::paxos::acceptor::Acceptor;
use crate::paxos::election::Election;
use crate::paxos::learner::Learner;
use crate::paxos::proposer::{Candidate, Leader};
use crate::paxos::{Accepted, Ballot, Envelope, Message, Slot};
use crate::random::Random;
use crate::time::{Now, Timestamp};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::hash::{Hash, Hasher};
use synod_proto::command::Command;
use synod_proto::ids::{ProcessNonce, ReplicaId, SessionId};
use synod_proto::session::Request;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time passed.
    Tick,
    /// A message from a replica; also from this replica itself, after a sync.
    Envelope(Envelope),
    /// A link to this peer is up.
    PeerConnected(ReplicaId),
    /// The link to this peer is down. Changes nothing but the status: silence is what counts.
    PeerDisconnected(ReplicaId),
    /// A session asks.
    Request {
        /// The session.
        session: SessionId,
        /// The request.
        request: Request,
    },
    /// A session is gone.
    SessionClosed(SessionId),
    /// A fetch is done: the values of its slots from the first on, in order, and as many as were read; `None` if the
    /// first could not be read.
    Fetched {
        /// The question.
        fetch: Fetch,
        /// The values.
        values: Option<Vec<Bytes>>,
    },
    /// The log could not be written. It is not tried again (L9).
    WriteFailed {
        /// What the log says.
        text: String,
        /// What follows.
        kind: WriteFailure,
    },
    /// The process is about to end: resign, so that another replica leads soon.
    Drain,
}

/// Why the log could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteFailure {
    /// No room. The replica stays up, read-only.
    Full,
    /// Anything else. The process ends.
    Broken,
}

/// Room for so much that is told is kept from one step to the next.
const KEPT_TOLD_COUNT_MAX: usize = 8_192;

/// Whether this replica's directory may promise and accept (L10).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Admission {
    /// Not compared yet with the knowledge of a majority, or, for a directory that was never admitted, of every replica.
    Pending {
        /// Replicas, this one included, whose knowledge does not contradict it.
        consistent: BTreeSet<ReplicaId>,
    },
    /// It may.
    Admitted,
    /// It contradicts what a peer knows: it learns, and does nothing that counts.
    Refused {
        /// The contradiction.
        contradiction: String,
    },
}

/// What a replica does in the log.
#[derive(Clone, Debug, Hash)]
pub(crate) enum Role {
    Follower { leader: Option<Ballot> },
    Candidate(Candidate),
    Leader(Box<Leader>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Storage {
    Writable,
    Failed { text: String, kind: WriteFailure },
}

/// What a peer once acknowledged to this process, against which its next life is compared (L10).
#[derive(Clone, Copy, Debug, Default, Hash)]
struct Acknowledged {
    ballot: Ballot,
    slot: Slot,
}

/// One replica of the coordinator.
#[derive(Clone, Debug)]
pub struct Replica {
    config: Config,
    random: Random,
    acceptor: Acceptor,
    learner: Learner,
    election: Election,
    role: Role,
    admission: Admission,
    hello_at: Timestamp,
    /// Of this very process; drawn anew by the next one.
    process: ProcessNonce,
    /// Counts the steps of this process, its start included: see [`GroupCommit`](crate::effects::GroupCommit).
    step_count: u64,
    acknowledged: BTreeMap<ReplicaId, Acknowledged>,
    /// The process of each peer that was last contradicted, so that it is told to the trace once.
    contradicted: BTreeMap<ReplicaId, ProcessNonce>,
    connected: BTreeSet<ReplicaId>,
    machine: Machine,
    cannot_apply: Option<String>,
    storage: Storage,
    is_draining: bool,
    ignored: Vec<Ignored>,
    /// Empty: the room for the commands of the entry that is applied next.
    commands: Vec<Command>,
    /// Empty: the room for what the next step tells.
    told: Vec<Told>,
    /// Values from disk are still being loaded; nothing may be stepped.
    loading: bool,
}

/// Why an input changed nothing. For tests and traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Ignored {
    /// A message for, or from, a replica that is none of this coordinator's.
    UnknownReplica,
    /// The directory is not admitted.
    NotAdmitted,
    /// The log cannot be written.
    NotWritable,
    /// The message speaks of a ballot that is over.
    StaleBallot,
    /// An answer to a question of a former attempt or process.
    StaleAnswer,
    /// The slot is decided, or not in flight.
    StaleSlot,
    /// The slot lies too far above the decided prefix.
    TooFarAhead,
    /// No replica that follows the protocol could have sent it.
    Malformed,
    /// A second value in one ballot and slot.
    Conflict,
    /// Decided values that do not continue the decided prefix.
    Discontinuous,
    /// The replica does not lead, and the message is for a leader.
    NotLeading,
    /// An acknowledgement or hazard of a branch that is not being delivered.
    UnknownDelivery,
    /// A vote that nobody waits for: late, repeated, or of another instance than was asked.
    UnknownVote,
    /// An inquiry under another coordinator's lineage (T11).
    ForeignLineage,
}

impl Replica {
    /// A replica that found `recovered` on its disk. [`load`](Self::load) and [`start`](Self::start) follow. `process` must
    /// be drawn from the operating system, anew by every process: what L10 says of copies of a directory rests on it.
    /// `seed` is for what only needs to differ.
    ///
    /// # Panics
    /// The configuration contradicts itself.
    #[must_use]
    pub fn new(config: Config, recovered: Recovered, process: ProcessNonce, seed: u64) -> Self {
        config.check();
        let mut random = Random::new(seed);
        let election = Election::new(&mut random, recovered.meta.promised.round);
        let known_from_disk_up_to = recovered.meta.decided_up_to;
        let admission = match recovered.meta.has_lost(config.replica, config.incarnation) {
            true => Admission::Refused {
                contradiction:
                    "in a former start this directory was found to have lost what was synced: give this \
                                replica an empty one, and have it admitted again"
                        .into(),
            },
            false => Admission::Pending {
                consistent: BTreeSet::from([config.replica]),
            },
        };
        let mut acceptor = Acceptor::new(recovered);
        acceptor.set_decided_at_start(Slot::ZERO);
        Self {
            admission,
            config,
            random,
            acceptor,
            learner: Learner::new(known_from_disk_up_to),
            election,
            role: Role::Follower { leader: None },
            hello_at: Timestamp(0),
            process,
            step_count: 0,
            acknowledged: BTreeMap::new(),
            contradicted: BTreeMap::new(),
            connected: BTreeSet::new(),
            machine: Machine::default(),
            cannot_apply: None,
            storage: Storage::Writable,
            is_draining: false,
            ignored: Vec::new(),
            commands: Vec::new(),
            told: Vec::new(),
            loading: true,
        }
    }

    /// Takes a value found on disk: every readable slot, once, in ascending order. What is known as decided is applied
    /// and need not stay in memory.
    ///
    /// # Panics
    /// The replica has started.
    pub fn load(&mut self, accepted: Accepted) {
        assert!(self.loading, "values are loaded before the start");
        self.acceptor.load(accepted);
        let mut effects = Effects::default();
        self.advance_known(&mut effects);
        self.acceptor.trim(self.config.limits.retained_bytes_max);
    }

    /// Begins a new life of the directory (L1): nothing leaves before the count of starts is on disk.
    pub fn start(&mut self, now: Now) -> Effects<Unsynced> {
        assert!(self.loading, "a replica starts once");
        self.loading = false;
        let mut effects = self.begin_step();
        self.acceptor.begin_start();
        self.election
            .rest(now.monotonic, &self.config.timing, &mut self.random);
        if self.config.replicas.len() == 1 {
            self.admit(&mut effects);
        }
        self.say_hello(now, &mut effects);
        if let Some(text) = &self.cannot_apply {
            let slot = self.machine.applied_up_to().next();
            effects.notice(Notice::CannotApply {
                slot,
                text: text.clone(),
            });
        }
        self.finish_step(&mut effects);
        effects
    }

    /// Takes one input. The same as [`step_many`](Self::step_many) with one.
    pub fn step(&mut self, now: Now, input: Input) -> Effects<Unsynced> {
        self.step_many(now, [input])
    }

    /// Takes the inputs that have arrived, in order, and then forms entries of all the commands that wait: what
    /// arrives together travels together.
    pub fn step_many(&mut self, now: Now, inputs: impl IntoIterator<Item = Input>) -> Effects<Unsynced> {
        assert!(!self.loading, "a replica starts before it steps");
        self.ignored.clear();
        let mut effects = self.begin_step();
        for input in inputs {
            self.on_input(now, input, &mut effects);
        }
        self.on_time(now, &mut effects);
        self.propose_waiting(now, &mut effects);
        self.finish_step(&mut effects);
        effects
    }

    fn on_input(&mut self, now: Now, input: Input, effects: &mut Effects<Unsynced>) {
        match input {
            Input::Tick => {}
            Input::Envelope(envelope) => self.on_envelope(now, envelope, effects),
            Input::PeerConnected(peer) => self.on_peer_connected(now, peer, effects),
            Input::PeerDisconnected(peer) => {
                self.connected.remove(&peer);
            }
            Input::Request { session, request } => self.on_request(now, session, request, effects),
            Input::SessionClosed(session) => {
                if let Role::Leader(leader) = &mut self.role {
                    leader.leading.close_session(session);
                }
            }
            Input::Fetched { fetch, values } => self.on_fetched(fetch, values, effects),
            Input::WriteFailed { text, kind } => self.on_write_failed(text, kind, effects),
            Input::Drain => {
                self.is_draining = true;
                self.step_down(now, "the process is about to end", effects);
            }
        }
    }

    /// When to call [`step`](Self::step) with [`Input::Tick`], if nothing else happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Timestamp> {
        let own = match &self.role {
            Role::Follower { .. } => self.election.deadline,
            Role::Candidate(candidate) => candidate.deadline,
            Role::Leader(leader) => leader.heartbeat_at,
        };
        match self.admission {
            Admission::Pending { .. } => Some(own.min(self.hello_at)),
            _ => Some(own),
        }
    }

    /// Gives back the vector of what a step told, once it is delivered, so that a later step need not grow a new one.
    /// Left out, nothing but time is lost.
    pub fn reuse_told(&mut self, mut told: Vec<Told>) {
        told.clear();
        told.shrink_to(KEPT_TOLD_COUNT_MAX);
        self.told = told;
    }

    /// Why inputs of the last step changed nothing.
    #[must_use]
    pub fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }

    /// The applied state. For checkers: its value is equal at equal slots on all replicas.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The value decided in a slot, while it lies in memory. For checkers.
    #[must_use]
    pub fn decided_value(&self, slot: Slot) -> Option<&Bytes> {
        if slot > self.acceptor.meta().decided_up_to {
            return None;
        }
        self.acceptor.value(slot).map(|(_, value)| value)
    }

    /// Feeds what the replica will do next, and may say, to a hasher. For checkers that look whether they have met a
    /// state before: instants and the seeded stream are left out, so that two states differ only if the protocol tells
    /// them apart, given that any timer may fire at any moment.
    pub fn hash_state<H: Hasher>(&self, state: &mut H) {
        let Self {
            acceptor,
            learner,
            election,
            role,
            admission,
            process,
            acknowledged,
            contradicted,
            connected,
            machine,
            ..
        } = self;
        (acceptor, learner, election, role, admission).hash(state);
        (process, acknowledged, contradicted, connected, machine).hash(state);
        (&self.cannot_apply, &self.storage, self.is_draining).hash(state);
    }

    /// Like [`hash_state`](Self::hash_state), but only what agreement rests on. Left out as well is what decides when
    /// somebody stands, whom clients are sent to, and what peers acknowledged to this process (L10: it is compared with
    /// what they say after a restart, and can contradict it only if a directory has lost something).
    pub fn hash_log_state<H: Hasher>(&self, state: &mut H) {
        let Self {
            acceptor,
            learner,
            role,
            admission,
            machine,
            ..
        } = self;
        (acceptor, learner, admission, machine).hash(state);
        match role {
            Role::Follower { leader: _ } => 0u8.hash(state),
            Role::Candidate(candidate) => (1u8, candidate).hash(state),
            Role::Leader(leader) => (2u8, leader).hash(state),
        }
        (&self.cannot_apply, &self.storage, self.is_draining).hash(state);
    }

    /// The highest ballot and slot that `peer` acknowledged to this process (L10). For checkers.
    #[must_use]
    pub fn acknowledged_by(&self, peer: ReplicaId) -> (Ballot, Slot) {
        let Acknowledged { ballot, slot } = self.acknowledged.get(&peer).copied().unwrap_or_default();
        (ballot, slot)
    }

    /// The leader this replica knows of.
    #[must_use]
    pub fn leader(&self) -> Option<ReplicaId> {
        match &self.role {
            Role::Follower { leader } => leader.map(|ballot| ballot.replica),
            Role::Candidate(_) => None,
            Role::Leader(_) => Some(self.config.replica),
        }
    }

    fn peers(&self) -> impl Iterator<Item = ReplicaId> + use<> {
        let own = self.config.replica;
        self.config
            .replicas
            .clone()
            .into_iter()
            .filter(move |replica| *replica != own)
    }

    fn envelope(&self, to: ReplicaId, message: Message) -> Envelope {
        Envelope {
            from: self.config.replica,
            to,
            message,
        }
    }

    fn ignore(&mut self, reason: Ignored) {
        self.ignored.push(reason);
    }

    fn is_writable(&self) -> bool {
        self.storage == Storage::Writable
    }

    /// May promise, accept and lead.
    fn may_take_part(&mut self) -> bool {
        if self.admission != Admission::Admitted {
            self.ignore(Ignored::NotAdmitted);
            return false;
        }
        if !self.is_writable() {
            self.ignore(Ignored::NotWritable);
            return false;
        }
        true
    }

    fn on_write_failed(&mut self, text: String, kind: WriteFailure, effects: &mut Effects<Unsynced>) {
        self.storage = Storage::Failed { text, kind };
        // What inputs before this one changed in the same step will never be on disk, and what rests on it never leaves.
        drop(self.acceptor.take_batch());
        effects.drop_gated();
        // Nothing that this step says may rest on the lost write, so the resignation is by silence.
        self.become_follower(None, "the log cannot be written", effects);
    }

    fn begin_step(&mut self) -> Effects<Unsynced> {
        self.step_count += 1;
        let step = StepId {
            replica: self.config.replica,
            process: self.process,
            number: self.step_count,
        };
        Effects::of_step(step, core::mem::take(&mut self.told))
    }

    /// Every step ends here: what the acceptor changed goes into the step's batch.
    fn finish_step(&mut self, effects: &mut Effects<Unsynced>) {
        self.acceptor.trim(self.config.limits.retained_bytes_max);
        if let Some(batch) = self.acceptor.take_batch() {
            assert!(
                self.is_writable(),
                "nothing durable changes once the log cannot be written (L9)"
            );
            effects.write(batch);
        }
    }
}
