//! The coordinator as one process of this world: one or three real replicas, with everything among them done at once.
//!
//! What replicas say to each other in every order is the first world's matter. Here a request is decided in the step in
//! which it arrives, unless the leader dies over it, which it may do with its entry nowhere, on its own disk, or on that
//! of a follower too; whoever leads next finds that, or does not.

use super::event::{BEGIN, Event, LATE, Place, Reach};
use super::plant::Plant;
use crate::explore::fingerprint::Fingerprint;
use crate::store::{Store, UnsyncedWrite};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use synod_coordinator_core::effects::{Effects, GroupCommit, Synced, Told, Unsynced};
use synod_coordinator_core::machine::outcomes::Verdict;
use synod_coordinator_core::paxos::Envelope;
use synod_coordinator_core::replica::{Admission, Config, Input, Replica, RoleName};
use synod_coordinator_core::time::{Now, Timestamp};
use synod_proto::command::{Decide, NamedBranch, Proposal};
use synod_proto::ids::{BranchId, Gtid, Incarnation, Lineage, ProcessNonce, ReplicaId, SessionId};
use synod_proto::session::{Answer, Decision, Outcome, Request, Response};

/// The most timers that fire until something must have come of them. An election takes a few dozen.
const TIMER_COUNT_MAX: usize = 4000;
/// Connections of one place; its sessions' numbers begin at this times the place.
const CONNECTION_COUNT_MAX: u64 = 1000;

/// What the log says of the transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Recorded {
    /// Committed, with these branches.
    Committed(Vec<NamedBranch>),
    /// Aborted.
    Aborted,
}

impl Recorded {
    /// Without the branches.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Committed(_) => Outcome::Committed,
            Self::Aborted => Outcome::Aborted,
        }
    }
}

#[derive(Clone, Debug)]
struct Node {
    replica: Replica,
    group: GroupCommit,
    store: Store,
    is_up: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Cluster {
    gtid: Gtid,
    plant: Option<Plant>,
    nodes: Vec<Node>,
    now: Timestamp,
    is_late: bool,
    /// The stream of each place that the leader serves, and the last one that ended.
    open: BTreeMap<Place, u64>,
    closed: BTreeMap<Place, u64>,
    /// For checkers: what the log ever said.
    recorded: Option<Recorded>,
}

/// What a step of the coordinator sets off.
#[derive(Debug, Default)]
struct Outbox {
    events: Vec<Event>,
    envelopes: VecDeque<Envelope>,
}

impl Cluster {
    /// Replicas that have elected a leader which serves.
    #[must_use]
    pub fn new(replica_count: u8, gtid: Gtid, plant: Option<Plant>) -> Self {
        let replicas: BTreeSet<ReplicaId> = (1..=replica_count).map(ReplicaId).collect();
        let mut cluster = Self {
            gtid,
            plant,
            nodes: Vec::new(),
            now: Timestamp(0),
            is_late: false,
            open: BTreeMap::new(),
            closed: BTreeMap::new(),
            recorded: None,
        };
        let mut outbox = Outbox::default();
        for id in &replicas {
            let config = Config::new(*id, replicas.clone(), Incarnation([id.0; 16]));
            let store = Store::new(config.incarnation);
            let replica = Replica::new(
                config,
                store.recover().0,
                ProcessNonce(u64::from(id.0)),
                u64::from(id.0),
            );
            cluster.nodes.push(Node {
                replica,
                group: GroupCommit::default(),
                store,
                is_up: true,
            });
        }
        for index in 0..cluster.nodes.len() {
            let clocks = cluster.read_clocks();
            let effects = cluster.nodes[index].replica.start(clocks);
            cluster.route(index, effects, &mut outbox);
        }
        cluster.settle(&mut outbox);
        cluster.elect(&mut outbox);
        cluster
    }

    /// The coordinator's lineage.
    #[must_use]
    pub fn lineage(&self) -> Option<Lineage> {
        self.nodes.first()?.replica.machine().lineage()
    }

    /// What the log ever said of the transaction.
    #[must_use]
    pub fn recorded(&self) -> Option<&Recorded> {
        self.recorded.as_ref()
    }

    /// Whether every named branch is known to have acknowledged, where there is a commit.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.leader()
            .is_some_and(|leader| self.nodes[leader].replica.machine().outcomes().unfinished_count() == 0)
    }

    /// Whether the deadline has passed.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.is_late
    }

    /// The streams that have ended, whether or not the other side has heard of it.
    #[must_use]
    pub fn ended(&self) -> Vec<Event> {
        let lost = |(to, connection): (&Place, &u64)| Event::Lost {
            to: *to,
            connection: *connection,
        };
        self.closed.iter().map(lost).collect()
    }

    /// Feeds what tells states apart.
    pub fn hash_state(&self, fingerprint: &mut Fingerprint) {
        for node in &self.nodes {
            node.replica.hash_log_state(fingerprint);
            (&node.store, node.is_up).hash(fingerprint);
        }
        (self.is_late, &self.open, &self.closed, &self.recorded).hash(fingerprint);
        fingerprint.write_u8(u8::try_from(self.leader().unwrap_or(self.nodes.len())).unwrap_or(u8::MAX));
    }

    /// Something happens. Returns what is on its way because of it.
    ///
    /// # Errors
    /// The register says something else than before.
    pub fn react(&mut self, event: &Event) -> Result<Vec<Event>, String> {
        let mut outbox = Outbox::default();
        match event {
            Event::Ask {
                from,
                connection,
                request,
            } => self.on_ask(*from, *connection, request, &mut outbox),
            Event::AskAndDie { ask, reach } => {
                if let Event::Ask {
                    from,
                    connection,
                    request,
                } = &**ask
                    && self.open.get(from) == Some(connection)
                {
                    self.on_ask_and_die(*from, *connection, request, *reach, &mut outbox);
                }
            }
            Event::LeaderDies => self.kill_leader(UnsyncedWrite::Lost, &mut outbox),
            Event::DeadlinePasses => {
                self.is_late = true;
                // A round of heartbeats, so that the leader has heard of its peers' clocks.
                self.advance(&mut outbox, |_, outbox, fired| {
                    fired > 3 || !outbox.events.is_empty()
                });
            }
            Event::Wait => {
                let fired_min = 2 * self.nodes.len();
                self.advance(&mut outbox, |cluster, outbox, fired| {
                    !outbox.events.is_empty() || (fired >= fired_min && cluster.is_finished())
                });
            }
            _ => {}
        }
        self.note_recorded()?;
        Ok(outbox.events)
    }

    fn on_ask(&mut self, from: Place, connection: u64, request: &Request, outbox: &mut Outbox) {
        let last = self
            .open
            .get(&from)
            .or(self.closed.get(&from))
            .copied()
            .unwrap_or(0);
        match request {
            Request::Register { .. } if connection > last => {
                if let Some(earlier) = self.open.insert(from, connection) {
                    self.closed.insert(from, earlier);
                    self.give(Input::SessionClosed(session_of(from, earlier)), outbox);
                }
            }
            _ if self.open.get(&from) == Some(&connection) => {}
            // The stream is gone, and what it carried with it.
            _ => return,
        }
        self.tell_early(from, connection, request, outbox);
        self.give(
            Input::Request {
                session: session_of(from, connection),
                request: request.clone(),
            },
            outbox,
        );
        if self.plant == Some(Plant::ForgetDelivery)
            && let Request::Acknowledge { branch, resource } = request
            && let Some(Recorded::Committed(branches)) = self.recorded.clone()
        {
            for named in branches.iter().filter(|named| named.resource != *resource) {
                let (call, execution) = (named.call, named.execution);
                let branch = BranchId {
                    call,
                    execution,
                    ..*branch
                };
                let request = Request::Acknowledge {
                    branch,
                    resource: named.resource,
                };
                self.give(
                    Input::Request {
                        session: session_of(from, connection),
                        request,
                    },
                    outbox,
                );
            }
        }
    }

    fn on_ask_and_die(
        &mut self,
        from: Place,
        connection: u64,
        request: &Request,
        reach: Reach,
        outbox: &mut Outbox,
    ) {
        self.tell_early(from, connection, request, outbox);
        let Some(leader) = self.leader() else { return };
        let clocks = self.read_clocks();
        let input = Input::Request {
            session: session_of(from, connection),
            request: request.clone(),
        };
        let node = &mut self.nodes[leader];
        let mut effects = node.replica.step(clocks, input);
        let early = effects.take_early();
        if node.group.push(effects).is_none()
            && let Some(batch) = node.group.next_write()
        {
            node.store.begin(batch);
        }
        if reach == Reach::OneFollower {
            let follower = (leader + 1) % self.nodes.len();
            let mut unheard = Outbox::default();
            for envelope in early
                .into_iter()
                .filter(|envelope| usize::from(envelope.to.0) == follower + 1)
            {
                self.step(follower, Input::Envelope(envelope), &mut unheard);
            }
        }
        let unsynced = if reach == Reach::Nowhere {
            UnsyncedWrite::Lost
        } else {
            UnsyncedWrite::Kept
        };
        self.kill_leader(unsynced, outbox);
    }

    /// The leader dies, another leads, and the dead one comes back and catches up. A lone replica comes back first.
    fn kill_leader(&mut self, unsynced: UnsyncedWrite, outbox: &mut Outbox) {
        let Some(leader) = self.leader() else { return };
        self.nodes[leader].is_up = false;
        self.nodes[leader].store.crash(unsynced);
        for (to, connection) in std::mem::take(&mut self.open) {
            self.closed.insert(to, connection);
            outbox.events.push(Event::Lost { to, connection });
        }
        if self.nodes.len() > 1 {
            self.elect(outbox);
        }
        self.restart(leader, outbox);
        self.elect(outbox);
    }

    fn restart(&mut self, index: usize, outbox: &mut Outbox) {
        let id = ReplicaId(u8::try_from(index + 1).unwrap_or(u8::MAX));
        let replicas = (1..=self.nodes.len())
            .map(|id| ReplicaId(u8::try_from(id).unwrap_or(u8::MAX)))
            .collect();
        let clocks = self.read_clocks();
        let node = &mut self.nodes[index];
        let (recovered, values) = node.store.recover();
        let config = Config::new(id, replicas, node.store.incarnation);
        let seed = u64::from(id.0) + 100 * (recovered.meta.start + 1);
        node.replica = Replica::new(config, recovered, ProcessNonce(seed), seed);
        node.group = GroupCommit::default();
        node.is_up = true;
        for value in values {
            node.replica.load(value);
        }
        let effects = node.replica.start(clocks);
        self.route(index, effects, outbox);
        self.settle(outbox);
    }

    /// Time passes until one replica serves, and all that are up have applied what it has.
    fn elect(&mut self, outbox: &mut Outbox) {
        self.advance(outbox, |cluster, _, fired| {
            let up = || cluster.nodes.iter().filter(|node| node.is_up);
            let applied: BTreeSet<_> = up().map(|node| node.replica.machine().applied_up_to()).collect();
            let is_admitted = up().all(|node| node.replica.status().admission == Admission::Admitted);
            fired > 0 && cluster.leader().is_some() && applied.len() == 1 && is_admitted
        });
        assert!(self.leader().is_some(), "an election ends");
    }

    fn leader(&self) -> Option<usize> {
        self.nodes
            .iter()
            .position(|node| node.is_up && node.replica.status().role == RoleName::Serving)
    }

    /// Timers fire in their order until it is enough.
    fn advance(&mut self, outbox: &mut Outbox, is_enough: impl Fn(&Self, &Outbox, usize) -> bool) {
        for fired in 0..TIMER_COUNT_MAX {
            if is_enough(self, outbox, fired) {
                return;
            }
            let up = self.nodes.iter().enumerate().filter(|(_, node)| node.is_up);
            let next = up
                .filter_map(|(index, node)| Some((node.replica.next_timeout()?, index)))
                .min();
            let Some((at, index)) = next else { return };
            self.now = self.now.max(at);
            self.step(index, Input::Tick, outbox);
            self.settle(outbox);
        }
    }

    fn read_clocks(&self) -> Now {
        Now {
            monotonic: self.now,
            wall: if self.is_late { LATE } else { BEGIN },
        }
    }

    /// Gives an input to the leader.
    fn give(&mut self, input: Input, outbox: &mut Outbox) {
        if let Some(leader) = self.leader() {
            self.step(leader, input, outbox);
            self.settle(outbox);
        }
    }

    fn settle(&mut self, outbox: &mut Outbox) {
        while let Some(envelope) = outbox.envelopes.pop_front() {
            self.step(usize::from(envelope.to.0) - 1, Input::Envelope(envelope), outbox);
        }
    }

    fn step(&mut self, index: usize, input: Input, outbox: &mut Outbox) {
        if self.nodes[index].is_up {
            let clocks = self.read_clocks();
            let effects = self.nodes[index].replica.step(clocks, input);
            self.route(index, effects, outbox);
        }
    }

    fn route(&mut self, index: usize, mut effects: Effects<Unsynced>, outbox: &mut Outbox) {
        outbox.envelopes.extend(effects.take_early());
        let (told, ended) = (effects.take_told(), effects.take_ended());
        let node = &mut self.nodes[index];
        let mut open: Vec<Effects<Synced>> = node.group.push(effects).into_iter().collect();
        while let Some(batch) = node.group.next_write() {
            node.store.begin(batch);
            node.store.complete();
            open.extend(node.group.on_synced());
        }
        for mut synced in open {
            for fetch in synced.take_fetches() {
                let values = self.nodes[index].store.fetch(fetch);
                self.step(index, Input::Fetched { fetch, values }, outbox);
            }
            outbox.envelopes.extend(synced.into_gated());
        }
        for Told { session, response } in told {
            self.tell(session, response, outbox);
        }
        for session in ended {
            if let Some((to, connection)) = place_of(session)
                && self.open.get(&to) == Some(&connection)
            {
                self.open.remove(&to);
                self.closed.insert(to, connection);
                outbox.events.push(Event::Lost { to, connection });
            }
        }
    }

    fn tell(&mut self, session: SessionId, response: Response, outbox: &mut Outbox) {
        let Some((to, connection)) = place_of(session) else {
            return;
        };
        if self.open.get(&to) != Some(&connection) {
            return;
        }
        let response = match (self.plant, response) {
            (
                Some(Plant::AbsenceIsAbort),
                Response::Answered {
                    branch,
                    answer: Answer::Undecided,
                },
            ) => Response::Answered {
                branch,
                answer: Answer::Aborted,
            },
            (Some(Plant::AnswerPerGtid), Response::Answered { branch, .. })
                if matches!(self.recorded, Some(Recorded::Committed(_))) =>
            {
                Response::Answered {
                    branch,
                    answer: Answer::Committed,
                }
            }
            (_, response) => response,
        };
        outbox.events.push(Event::Hear {
            to,
            connection,
            response,
        });
    }

    /// [`Plant::TellBeforeDecided`], [`Plant::TellAbortBeforeDecided`].
    fn tell_early(&mut self, from: Place, connection: u64, request: &Request, outbox: &mut Outbox) {
        let Request::Decide { request, command } = request else {
            return;
        };
        let Ok(Decide { proposal, .. }) = Decide::decode(command) else {
            return;
        };
        let decision = match (self.plant, proposal) {
            (Some(Plant::TellBeforeDecided), Proposal::Commit { .. }) => Decision::Committed,
            (Some(Plant::TellAbortBeforeDecided), Proposal::Abort { cause, .. }) => Decision::Aborted(cause),
            _ => return,
        };
        self.tell(
            session_of(from, connection),
            Response::Decided {
                request: *request,
                decision,
            },
            outbox,
        );
    }

    fn note_recorded(&mut self) -> Result<(), String> {
        for node in &self.nodes {
            let record = node.replica.machine().outcomes().record(self.gtid);
            let Some(record) = record else { continue };
            let recorded = match &record.verdict {
                Verdict::Committed { branches, .. } => Recorded::Committed(branches.clone()),
                Verdict::Aborted(_) => Recorded::Aborted,
            };
            match &self.recorded {
                None => self.recorded = Some(recorded),
                Some(first) if *first == recorded => {}
                Some(first) => {
                    return Err(format!(
                        "one outcome: the log said {first:?}, and now {recorded:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

fn session_of(place: Place, connection: u64) -> SessionId {
    SessionId(place as u64 * CONNECTION_COUNT_MAX + connection)
}

fn place_of(session: SessionId) -> Option<(Place, u64)> {
    let place = usize::try_from(session.0 / CONNECTION_COUNT_MAX).ok()?;
    Some((*Place::ALL.get(place)?, session.0 % CONNECTION_COUNT_MAX))
}
