//! One replica with its directory, as a process of the pool: the real core, driven by its contract.

use crate::explore::fingerprint::Fingerprint;
use crate::explore::paxos::Bounds;
use crate::explore::paxos::event::Event;
use crate::explore::paxos::plant::Plant;
use crate::explore::pool::Process;
use crate::store::{Store, UnsyncedWrite};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use synod_coordinator_core::effects::{Effects, Fetch, GroupCommit, Synced, Told, Unsynced};
use synod_coordinator_core::machine::outcomes::Verdict;
use synod_coordinator_core::paxos::{Ballot, Envelope, Message, Slot};
use synod_coordinator_core::replica::{Admission, Config, Input, Replica, RoleName};
use synod_coordinator_core::time::{Now, Timestamp};
use synod_proto::ids::{Incarnation, Lineage, ProcessNonce, ReplicaId, RequestId, SessionId, UnixMillis};
use synod_proto::session::{Decision, Outcome, Request, Response};

/// The time of day, everywhere and always: the log is a matter of ballots.
pub const WALL: UnixMillis = UnixMillis(1_800_000_000_000);

/// When a write is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncs {
    /// At once, unless the process dies in the same step. What would come in between is the same as a slower message,
    /// but for what a replica does in memory ahead of its disk.
    AtOnce,
    /// Whenever the explorer says so; what is done meanwhile waits for the next write.
    AtAnyTime,
}

/// Which round a replica that stands goes above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounds {
    /// The highest there is: whoever said yes to its pre-vote knew it. It wins unless another stands later.
    Highest,
    /// The highest it knows itself. It may be refused.
    Own,
}

/// What a checker sees of a host.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its role.
    pub role: RoleName,
    /// Whether it may stand.
    pub is_admitted: bool,
    /// Whether a write is under way.
    pub is_writing: bool,
    /// The highest ballot promised, in memory.
    pub promised: Ballot,
    /// The value ever taken as decided here, by slot from 1, as a fingerprint; crashes do not take it away.
    pub decided: Vec<Option<u64>>,
    /// What is on disk, by slot from 1.
    pub on_disk: Vec<Option<(Ballot, u64)>>,
    /// The applied slot and a fingerprint of the state there.
    pub applied: (Slot, u64),
    /// What sessions were ever told of the transaction.
    pub told: BTreeSet<Outcome>,
    /// What the register says of it.
    pub recorded: Option<Outcome>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Host {
    config: Config,
    syncs: Syncs,
    rounds: Rounds,
    plant: Option<Plant>,
    replica: Replica,
    group: GroupCommit,
    store: Store,
    now: Timestamp,
    /// For checkers: what was ever decided and told here. No crash takes it away.
    decided: BTreeMap<Slot, Bytes>,
    told: BTreeSet<Outcome>,
}

/// A value in a few bytes. Checkers compare it.
pub(super) fn short(value: &impl Hash) -> u64 {
    let mut fingerprint = Fingerprint::new();
    value.hash(&mut fingerprint);
    fingerprint.finish()
}

/// What one event sends, and what is to be handled before it is over.
#[derive(Debug, Default)]
struct Outbox {
    sent: Vec<Event>,
    inputs: VecDeque<Input>,
    /// Heartbeats leave only when their timer fires.
    is_beat: bool,
}

impl Host {
    /// A host with an empty directory, started; and what it sends.
    #[must_use]
    pub fn start(id: ReplicaId, replicas: &BTreeSet<ReplicaId>, bounds: &Bounds) -> (Self, Vec<Event>) {
        let Bounds {
            syncs, rounds, plant, ..
        } = *bounds;
        let config = Config::new(id, replicas.clone(), Incarnation([id.0; 16]));
        let store = Store::new(config.incarnation);
        let (recovered, _) = store.recover();
        let replica = Replica::new(
            config.clone(),
            recovered,
            ProcessNonce(u64::from(id.0)),
            u64::from(id.0),
        );
        let mut host = Self {
            config,
            syncs,
            rounds,
            plant,
            replica,
            group: GroupCommit::default(),
            store,
            now: Timestamp(0),
            decided: BTreeMap::new(),
            told: BTreeSet::new(),
        };
        let mut outbox = Outbox::default();
        let effects = host.replica.start(host.read_clocks());
        host.route(effects, &mut outbox);
        host.settle(&mut outbox);
        (host, outbox.sent)
    }

    /// The coordinator's lineage as this replica knows it.
    #[must_use]
    pub fn lineage(&self) -> Option<Lineage> {
        self.replica.machine().lineage()
    }

    fn read_clocks(&self) -> Now {
        Now {
            monotonic: self.now,
            wall: WALL,
        }
    }

    /// Steps until nothing is left to do but to wait.
    fn settle(&mut self, outbox: &mut Outbox) {
        loop {
            while let Some(input) = outbox.inputs.pop_front() {
                let effects = self.replica.step(self.read_clocks(), input);
                self.route(effects, outbox);
            }
            if let Some(batch) = self.group.next_write() {
                self.store.begin(batch);
                if self.syncs == Syncs::AtOnce {
                    self.on_synced(outbox);
                }
            }
            if outbox.inputs.is_empty() {
                return;
            }
        }
    }

    fn on_synced(&mut self, outbox: &mut Outbox) {
        self.store.complete();
        for synced in self.group.on_synced() {
            self.send_gated(synced, outbox);
        }
    }

    fn route(&mut self, mut effects: Effects<Unsynced>, outbox: &mut Outbox) {
        self.take_free(&mut effects, outbox);
        self.leak(&effects, outbox);
        if let Some(synced) = self.group.push(effects) {
            self.send_gated(synced, outbox);
        }
    }

    /// [`Plant::SendBeforeSync`]: what waits for a sync leaves at once.
    fn leak(&mut self, effects: &Effects<Unsynced>, outbox: &mut Outbox) {
        if self.plant != Some(Plant::SendBeforeSync) {
            return;
        }
        // A copy of the gate, for which every write ends at once. What waits in it has left in earlier steps.
        let mut gate = self.group.clone();
        while gate.is_writing() || gate.next_write().is_some() {
            drop(gate.on_synced());
        }
        let mut open: Vec<Effects<Synced>> = gate.push(effects.clone()).into_iter().collect();
        while gate.is_writing() || gate.next_write().is_some() {
            open.extend(gate.on_synced());
        }
        for synced in open {
            self.send_gated(synced, outbox);
        }
    }

    /// The lanes that wait for no sync.
    fn take_free(&mut self, effects: &mut Effects<Unsynced>, outbox: &mut Outbox) {
        for envelope in effects.take_early() {
            self.send(envelope, outbox);
        }
        for Told { response, .. } in effects.take_told() {
            if let Response::Decided { decision, .. } = response {
                self.told.insert(match decision {
                    Decision::Committed | Decision::Mismatch => Outcome::Committed,
                    Decision::Aborted(_) | Decision::Expired | Decision::Settled => Outcome::Aborted,
                });
            }
        }
    }

    fn send_gated(&mut self, mut synced: Effects<Synced>, outbox: &mut Outbox) {
        for fetch in synced.take_fetches() {
            let values = self.store.fetch(fetch);
            outbox.inputs.push_back(Input::Fetched { fetch, values });
        }
        for envelope in synced.into_gated() {
            self.send(envelope, outbox);
        }
    }

    fn send(&mut self, envelope: Envelope, outbox: &mut Outbox) {
        if envelope.to == self.config.replica {
            let input = Input::Envelope(self.bend(envelope));
            return outbox.inputs.push_back(input);
        }
        match envelope.message {
            // The clock's part of the protocol is played by the explorer: see the world's simplifications.
            Message::PreVote { .. } | Message::PreVoteAnswer { .. } | Message::HeartbeatAnswer { .. } => {}
            Message::Heartbeat { .. } if !outbox.is_beat => {}
            Message::Hello { start, process, .. } => outbox.inputs.push_back(Input::Envelope(Envelope {
                from: envelope.to,
                to: envelope.from,
                message: Message::HelloAnswer {
                    start,
                    process,
                    contradiction: None,
                    ballot: Ballot::ZERO,
                    slot: Slot::ZERO,
                },
            })),
            _ => outbox.sent.push(Event::Arrival(envelope)),
        }
    }

    fn bend(&self, envelope: Envelope) -> Envelope {
        match self.plant {
            Some(plant) => plant.bend(envelope, self.replica.status().ballot),
            None => envelope,
        }
    }

    /// [`Plant::BelieveAnyPrefix`]: the own records up to a leader's prefix are learned as if they were decided.
    fn believe(&self, envelope: &Envelope) -> Option<Input> {
        let (Message::Accept { decided_up_to, .. } | Message::Heartbeat { decided_up_to, .. }) =
            &envelope.message
        else {
            return None;
        };
        if self.plant != Some(Plant::BelieveAnyPrefix) {
            return None;
        }
        let first = self.replica.status().decided_up_to.next();
        let fetch = Fetch {
            to: self.config.replica,
            first,
            up_to: *decided_up_to,
        };
        let values = if first <= *decided_up_to {
            self.store.fetch(fetch)?
        } else {
            return None;
        };
        let message = Message::Decided {
            first,
            values,
            decided_up_to: *decided_up_to,
        };
        Some(Input::Envelope(Envelope {
            from: envelope.from,
            to: self.config.replica,
            message,
        }))
    }

    /// What an event gives to the core. Time passes where the event is a timer.
    fn input_of(&mut self, event: &Event, outbox: &mut Outbox) -> Option<Input> {
        match event {
            Event::Arrival(envelope) => Some(Input::Envelope(self.bend(envelope.clone()))),
            Event::Stand { round, .. } => self.stand(*round),
            Event::Beat(_) => {
                self.now = self.now.max(self.replica.next_timeout()?);
                outbox.is_beat = true;
                Some(Input::Tick)
            }
            Event::Submit { command, .. } => {
                let request = Request::Decide {
                    request: RequestId(1),
                    command: command.clone(),
                };
                Some(Input::Request {
                    session: SessionId(1),
                    request,
                })
            }
            Event::Synced(_) | Event::Crash { .. } | Event::CrashIn(_) => None,
        }
    }

    /// The election timer fires until a pre-vote has begun, and a peer says yes. A candidate first gives up.
    fn stand(&mut self, round: u64) -> Option<Input> {
        let peer = self
            .config
            .replicas
            .iter()
            .copied()
            .find(|one| *one != self.config.replica)?;
        // Twice for a candidate, once more while a handshake is repeated.
        for _ in 0..4 {
            self.now = self.now.max(self.replica.next_timeout()?);
            let mut effects = self.replica.step(self.read_clocks(), Input::Tick);
            let asked = effects
                .take_early()
                .into_iter()
                .find_map(|envelope| match envelope.message {
                    Message::PreVote { attempt } => Some(attempt),
                    _ => None,
                });
            // A greeting that is repeated meanwhile is lost; what is to be written is not.
            drop(self.group.push(effects));
            if let Some(attempt) = asked {
                let message = Message::PreVoteAnswer {
                    attempt,
                    granted: true,
                    round,
                    decided_up_to: Slot::ZERO,
                };
                return Some(Input::Envelope(Envelope {
                    from: peer,
                    to: self.config.replica,
                    message,
                }));
            }
        }
        None
    }

    /// A new process on the same directory.
    fn restart(&mut self, unsynced: UnsyncedWrite, outbox: &mut Outbox) {
        self.store.crash(unsynced);
        let (mut recovered, mut values) = self.store.recover();
        if let Some(plant) = self.plant {
            plant.forget(&mut recovered, &mut values);
        }
        let seed = u64::from(self.config.replica.0) + 100 * (recovered.meta.start + 1);
        self.replica = Replica::new(self.config.clone(), recovered, ProcessNonce(seed), seed);
        self.group = GroupCommit::default();
        for value in values {
            self.replica.load(value);
        }
        let effects = self.replica.start(self.read_clocks());
        self.route(effects, outbox);
        // A second crash, in the start, is not among the bounds: the count of starts is on disk at once.
        while let Some(batch) = self.group.next_write() {
            self.store.begin(batch);
            self.on_synced(outbox);
        }
    }

    /// The step that dies half way: what waits for no sync has left, and nothing is written.
    fn die_in(&mut self, input: Input, outbox: &mut Outbox) {
        let mut effects = self.replica.step(self.read_clocks(), input);
        self.take_free(&mut effects, outbox);
        self.leak(&effects, outbox);
        outbox.inputs.clear();
        self.restart(UnsyncedWrite::Lost, outbox);
    }

    fn note_decided(&mut self) -> Result<(), String> {
        let up_to = self.replica.status().decided_up_to;
        for slot in (1..=up_to.0).map(Slot) {
            let Some(value) = self.replica.decided_value(slot) else {
                continue;
            };
            let first = self.decided.entry(slot).or_insert_with(|| value.clone());
            if first != value {
                return Err(format!(
                    "slot {slot} was decided here, and later with another value"
                ));
            }
        }
        Ok(())
    }
}

impl Process for Host {
    type Event = Event;
    type Facts = Facts;

    fn fingerprint(&self) -> u128 {
        let mut fingerprint = Fingerprint::new();
        self.config.replica.hash(&mut fingerprint);
        // A planted bug may be hidden by what L10 compares; without one there is nothing to be compared.
        if self.plant.is_some() || self.rounds == Rounds::Own {
            self.replica.hash_state(&mut fingerprint);
        } else {
            self.replica.hash_log_state(&mut fingerprint);
        }
        (&self.group, &self.store, &self.decided, &self.told).hash(&mut fingerprint);
        fingerprint.value()
    }

    fn facts(&self) -> Facts {
        let status = self.replica.status();
        let machine = self.replica.machine();
        let slot_count = self.store.meta().accepted_up_to.max(status.decided_up_to).0;
        let on_disk = |slot| {
            self.store
                .record(slot)
                .map(|(ballot, value)| (*ballot, short(value)))
        };
        let page = machine.outcomes().page(None, false, 1);
        let recorded = page.first().map(|(_, record)| match record.verdict {
            Verdict::Committed { .. } => Outcome::Committed,
            Verdict::Aborted(_) => Outcome::Aborted,
        });
        Facts {
            role: status.role,
            is_admitted: status.admission == Admission::Admitted,
            is_writing: self.group.is_writing(),
            promised: status.ballot,
            decided: (1..=slot_count)
                .map(|slot| self.decided.get(&Slot(slot)).map(short))
                .collect(),
            on_disk: (1..=slot_count).map(|slot| on_disk(Slot(slot))).collect(),
            applied: (machine.applied_up_to(), short(machine)),
            told: self.told.clone(),
            recorded,
        }
    }

    fn react(&mut self, event: &Event) -> Result<Vec<Event>, String> {
        let promised_before = self.store.meta().promised;
        let mut outbox = Outbox::default();
        match event {
            Event::Synced(_) => self.on_synced(&mut outbox),
            Event::Crash { is_kept: true, .. } => self.restart(UnsyncedWrite::Kept, &mut outbox),
            Event::Crash { is_kept: false, .. } => self.restart(UnsyncedWrite::Lost, &mut outbox),
            Event::CrashIn(event) => match self.input_of(event, &mut outbox) {
                Some(input) => self.die_in(input, &mut outbox),
                None => return Ok(Vec::new()),
            },
            event => {
                let input = self.input_of(event, &mut outbox);
                outbox.inputs.extend(input);
            }
        }
        self.settle(&mut outbox);
        if let Event::Arrival(envelope) = event {
            outbox.inputs.extend(self.believe(envelope));
            self.settle(&mut outbox);
        }
        self.note_decided()?;
        let promised = self.store.meta().promised;
        if promised < promised_before {
            return Err(format!(
                "the promise on disk fell from {promised_before} to {promised}"
            ));
        }
        Ok(outbox.sent)
    }
}
