//! Everything together: hosts, network, services, time, and the checkers that watch.

mod effects;
mod faulty;
mod held;
mod known;
mod replicas;
mod rush;
mod services;
mod sufficient;

use crate::actors::databases::Databases;
use crate::actors::{Actor, ActorId, Carriage, Speech};
use crate::checkers::{Check, Checkers, Violation, require};
use crate::host::{Disk, Host};
use crate::log_disk::LogDisk;
use crate::network::{Network, Weather};
use crate::schedule::{Micros, Schedule};
use crate::store::Store;
use crate::trace::{Detail, Trace};
use crate::workloads::Workload;
use std::collections::{BTreeMap, BTreeSet};
use synod_coordinator_core::effects::Fetch;
use synod_coordinator_core::paxos::Envelope;
use synod_coordinator_core::random::Random;
use synod_coordinator_core::replica::{Config, Input, RoleName};
use synod_proto::ids::{Incarnation, ReplicaId, SessionId};
use synod_proto::session::{Request, Response};

/// Something that happens at a moment.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Envelope(Envelope),
    Wake {
        replica: ReplicaId,
        life: u64,
        at: Micros,
    },
    Synced {
        replica: ReplicaId,
        life: u64,
    },
    Fetched {
        replica: ReplicaId,
        life: u64,
        fetch: Fetch,
    },
    Connected {
        replica: ReplicaId,
        peer: ReplicaId,
    },
    Request {
        session: SessionId,
        request: Request,
    },
    SessionClosed {
        session: SessionId,
    },
    Response {
        session: SessionId,
        response: Response,
    },
    SessionLost {
        session: SessionId,
    },
    Speech {
        from: ActorId,
        to: ActorId,
        speech: Speech,
    },
    ActorWake {
        actor: ActorId,
        life: u64,
        token: u64,
    },
    Fault(crate::faults::Fault),
    Released(held::Way),
}

/// How services' traffic behaves.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    /// The shortest and the longest way of a message between a service and a replica or another service.
    pub delay_us: (Micros, Micros),
    /// How many of a million are lost.
    pub loss_ppm: u64,
}

/// How long a service usually takes at most to find that its session's other end is gone: a machine that ends closes its
/// connections, or a peer on the way says that it is not there.
pub const NOTICE_US_USUAL: Micros = 300_000;

/// What quartz does, and services with clocks like the world's.
pub const DRIFT_PPM_USUAL: (u32, u32) = (200, 0);

/// How a world is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Everything that is left to chance.
    pub seed: u64,
    /// How many replicas, numbered from 1.
    pub replica_count: u8,
    /// Between replicas.
    pub weather: Weather,
    /// Between services, and between services and replicas.
    pub lines: Lines,
    /// How long mail waits at a replica, at most.
    pub mail_us_max: Micros,
    /// How long a sync takes, at first.
    pub sync_us: Micros,
    /// How long a service takes at most to find that its session's other end is gone.
    pub notice_us_max: Micros,
    /// How many microseconds a second monotonic clocks gain or lose at most: of replicas, and of services.
    pub drift_ppm_max: (u32, u32),
    /// How much of the run is kept.
    pub detail: Detail,
}

impl Setup {
    /// A quiet world in which nothing is left to chance but what the replicas draw themselves.
    #[must_use]
    pub fn scripted(seed: u64, replica_count: u8) -> Self {
        Self {
            seed,
            replica_count,
            weather: Weather::EVEN,
            lines: Lines {
                delay_us: (300, 300),
                loss_ppm: 0,
            },
            mail_us_max: 0,
            sync_us: 200,
            notice_us_max: NOTICE_US_USUAL,
            drift_ppm_max: DRIFT_PPM_USUAL,
            detail: Detail::Hash,
        }
    }
}

#[derive(Debug)]
struct Cast {
    actor: Box<dyn Actor>,
    life: u64,
    wall_offset_ms: i64,
    drift_ppm: i32,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    /// `None`: the test itself.
    owner: Option<ActorId>,
    replica: ReplicaId,
    is_open: bool,
    carriage: Carriage,
    /// Whether a stream has lost something and carries nothing more: to the replica, and from it.
    is_severed: (bool, bool),
    /// The life of the replica's process that the session was opened with.
    life: u64,
    /// Until when what was said on a stream before is on its way: to the replica, and from it.
    busy_until: (Micros, Micros),
}

/// The world.
#[derive(Debug)]
pub struct World {
    setup: Setup,
    schedule: Schedule<Event>,
    /// The machines of the coordinator.
    pub hosts: BTreeMap<ReplicaId, Host>,
    /// The network between them.
    pub network: Network,
    /// Participants' databases.
    pub databases: Databases,
    /// What watches.
    pub checkers: Checkers,
    /// What has happened.
    pub trace: Trace,
    actors: BTreeMap<ActorId, Cast>,
    workloads: Vec<Box<dyn Workload>>,
    sessions: BTreeMap<SessionId, Session>,
    next_session: u64,
    mailboxes: BTreeMap<SessionId, Vec<Response>>,
    rush: rush::Rush,
    held: held::Held,
    random: Random,
    actors_random: Random,
    /// Of streams, and of what services over the library say to each other.
    streams_random: Random,
    backups: BTreeMap<ReplicaId, (Store, Option<LogDisk>)>,
    incarnation_count: u64,
    event_count: u64,
    drained: BTreeSet<ReplicaId>,
    /// Directories that lost something which peers remember, and are not refused yet.
    awaiting_refusal: BTreeSet<ReplicaId>,
    /// Replicas whose directories have changed places.
    swapped: Option<(ReplicaId, ReplicaId)>,
    /// How long a machine stays down that stops as planned.
    down_us: BTreeMap<ReplicaId, Micros>,
    healed_at: Option<Micros>,
    /// Replicas that the last healing left broken.
    left_out: BTreeMap<ReplicaId, sufficient::Broken>,
    /// Replicas whose directories may have lost something, at any time.
    doubtful: BTreeSet<ReplicaId>,
    /// How often slots were read from a disk for a lagging replica.
    pub fetch_count: u64,
    /// Sessions that the coordinator ended, for tests that ask.
    pub ended_sessions: BTreeSet<SessionId>,
}

impl World {
    /// A world in which every replica has an empty directory and runs.
    ///
    /// # Errors
    /// A checker found something, at the very start.
    pub fn new(setup: Setup) -> Result<Self, Violation> {
        Self::with_config(setup, |_| {})
    }

    /// A world whose replicas are configured otherwise.
    ///
    /// # Errors
    /// A checker found something, at the very start.
    pub fn with_config(setup: Setup, adapt: impl Fn(&mut Config)) -> Result<Self, Violation> {
        let replicas: BTreeSet<ReplicaId> = (1..=setup.replica_count).map(ReplicaId).collect();
        let mut world = Self {
            setup,
            schedule: Schedule::default(),
            hosts: BTreeMap::new(),
            network: Network::new(setup.seed ^ 0x6e65_7477, setup.weather),
            databases: Databases::default(),
            checkers: Checkers::default(),
            trace: Trace::new(setup.detail),
            actors: BTreeMap::new(),
            workloads: Vec::new(),
            sessions: BTreeMap::new(),
            next_session: 0,
            mailboxes: BTreeMap::new(),
            rush: rush::Rush::default(),
            held: held::Held::default(),
            random: Random::new(setup.seed ^ 0x776f_726c),
            actors_random: Random::new(setup.seed ^ 0x6163_746f),
            streams_random: Random::new(setup.seed ^ 0x7374_7265),
            backups: BTreeMap::new(),
            incarnation_count: 0,
            event_count: 0,
            drained: BTreeSet::new(),
            awaiting_refusal: BTreeSet::new(),
            swapped: None,
            down_us: BTreeMap::new(),
            healed_at: None,
            left_out: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            fetch_count: 0,
            ended_sessions: BTreeSet::new(),
        };
        for id in &replicas {
            let incarnation = world.new_incarnation();
            let mut config = Config::new(*id, replicas.clone(), incarnation);
            adapt(&mut config);
            let mut host = Host::new(config, Store::new(incarnation));
            host.disk = Disk::Healthy(setup.sync_us);
            world.hosts.insert(*id, host);
        }
        for id in &replicas {
            world.start(*id)?;
        }
        Ok(world)
    }

    /// Puts the real log under every replica, on a disk of its own. Before anything was written.
    pub fn attach_logs(&mut self, segment_bytes: u64) {
        for host in self.hosts.values_mut() {
            assert_eq!(host.store.meta().start, 0, "nothing was written");
            let seed = self.setup.seed ^ (u64::from(host.id().0) << 32);
            host.log = Some(LogDisk::new(
                host.id(),
                host.store.incarnation,
                segment_bytes,
                seed,
            ));
        }
    }

    /// Adds a service and starts it.
    pub fn add_actor(&mut self, actor: impl Actor + 'static) -> ActorId {
        let id = ActorId(self.actor_count());
        let drift_ppm = self.draw_service_drift(id);
        self.actors.insert(
            id,
            Cast {
                actor: Box::new(actor),
                life: 1,
                wall_offset_ms: 0,
                drift_ppm,
            },
        );
        self.with_actor(id, |actor, scene| actor.on_start(scene))
            .expect("a start says nothing that is checked");
        id
    }

    /// Adds the services of a workload, and has it look at the end.
    pub fn add_workload(&mut self, mut workload: Box<dyn Workload>) {
        workload.populate(self);
        self.workloads.push(workload);
    }

    /// The workloads.
    pub fn workloads(&self) -> impl Iterator<Item = &dyn Workload> {
        self.workloads.iter().map(AsRef::as_ref)
    }

    /// Adds what the workloads counted to the run's points.
    pub fn take_points(&mut self) {
        for (group, name, count) in self.workloads.iter().flat_map(|one| one.points()) {
            self.checkers.points.count(group, name, count);
        }
    }

    /// How many services there are; the next one has this number.
    ///
    /// # Panics
    /// More than four thousand million.
    #[must_use]
    pub fn actor_count(&self) -> u32 {
        u32::try_from(self.actors.len()).expect("few actors")
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Micros {
        self.schedule.now()
    }

    /// How many events have happened.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.event_count
    }

    /// When every fault was last ended, if that has happened.
    #[must_use]
    pub fn healed_at(&self) -> Option<Micros> {
        self.healed_at
    }

    /// The replicas' ids.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaId> {
        self.hosts.keys().copied().collect()
    }

    /// The replica that serves, in the highest ballot if several believe they do.
    #[must_use]
    pub fn serving(&self) -> Option<ReplicaId> {
        let running = self
            .hosts
            .values()
            .filter_map(|host| Some((host.id(), host.replica()?.status())));
        running
            .filter(|(_, status)| status.role == RoleName::Serving)
            .max_by_key(|(_, status)| status.ballot)
            .map(|(id, _)| id)
    }

    /// Plans a fault.
    pub fn plan(&mut self, at: Micros, fault: crate::faults::Fault) {
        self.schedule.at(at, Event::Fault(fault));
    }

    /// Whether every service has nothing left to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.actors.values().all(|cast| cast.actor.is_idle())
    }

    /// Tells every service to begin nothing new.
    pub fn rest(&mut self) {
        for cast in self.actors.values_mut() {
            cast.actor.on_rest();
        }
    }

    /// Runs until `end`.
    ///
    /// # Errors
    /// A checker found something.
    pub fn run_until(&mut self, end: Micros) -> Check {
        while self.schedule.next_at().is_some_and(|at| at <= end) {
            self.run_one()?;
        }
        self.schedule.advance_to(end);
        Ok(())
    }

    /// Runs for a while.
    ///
    /// # Errors
    /// A checker found something.
    pub fn run_for(&mut self, length: Micros) -> Check {
        self.run_until(self.now() + length)
    }

    /// Runs until `condition` holds, looking after every event.
    ///
    /// # Errors
    /// A checker found something, or it does not hold within `length`.
    pub fn run_while_not(&mut self, length: Micros, what: &str, condition: impl Fn(&Self) -> bool) -> Check {
        let end = self.now() + length;
        while !condition(self) {
            let is_due = self.schedule.next_at().is_some_and(|at| at <= end);
            require(is_due, || {
                format!("{what}: not within {length} us of {}", end - length)
            })?;
            self.run_one()?;
        }
        Ok(())
    }

    /// Runs one event.
    ///
    /// # Errors
    /// A checker found something.
    pub fn run_one(&mut self) -> Check {
        let Some(event) = self.schedule.pop() else {
            return Ok(());
        };
        self.event_count += 1;
        let now = self.now();
        self.trace.note(now, kind(&event), format_args!("{event:?}"));
        self.on_event(event)
    }

    fn on_event(&mut self, event: Event) -> Check {
        let Some(event) = self.pass(event) else {
            return Ok(());
        };
        match event {
            Event::Envelope(envelope) => {
                if self.network.is_open(envelope.from, envelope.to) {
                    self.post(envelope.to, Input::Envelope(envelope));
                }
                Ok(())
            }
            Event::Wake { replica, life, at } => self.on_wake(replica, life, at),
            Event::Synced { replica, life } => self.on_synced(replica, life),
            Event::Fetched { replica, life, fetch } => {
                // It counts its lives from start to start: one that has ended reads nothing more.
                let host = &self.hosts[&replica];
                if host.life == life && host.process.is_some() {
                    let values = host.fetch(fetch)?;
                    self.post(replica, Input::Fetched { fetch, values });
                }
                Ok(())
            }
            Event::Connected { replica, peer } => {
                let are_up = self.hosts[&replica].process.is_some() && self.hosts[&peer].process.is_some();
                if are_up && self.network.is_open(replica, peer) && self.network.is_open(peer, replica) {
                    self.post(replica, Input::PeerConnected(peer));
                }
                Ok(())
            }
            Event::Request { session, request } => {
                if let Some(one) = self
                    .sessions
                    .get(&session)
                    .copied()
                    .filter(|one| self.reaches(one))
                {
                    self.post(one.replica, Input::Request { session, request });
                }
                Ok(())
            }
            Event::SessionClosed { session } => {
                let replica = self.sessions[&session].replica;
                if self.hosts[&replica]
                    .process
                    .as_ref()
                    .is_some_and(|one| one.sessions.contains(&session))
                {
                    self.post(replica, Input::SessionClosed(session));
                }
                Ok(())
            }
            Event::Response { session, response } => self.on_response(session, response),
            Event::SessionLost { session } => self.on_session_lost(session),
            Event::Speech { from, to, speech } => {
                self.with_actor(to, |actor, scene| actor.on_speech(scene, from, speech))
            }
            Event::ActorWake { actor, life, token } if self.actors[&actor].life == life => {
                self.with_actor(actor, |actor, scene| actor.on_wake(scene, token))
            }
            Event::ActorWake { .. } => Ok(()),
            Event::Fault(fault) => self.on_fault(fault),
            Event::Released(way) => self.on_released(way),
        }
    }

    fn new_incarnation(&mut self) -> Incarnation {
        self.incarnation_count += 1;
        Incarnation(u128::from(self.incarnation_count).to_be_bytes())
    }
}

fn kind(event: &Event) -> u64 {
    match event {
        Event::Envelope(envelope) => u64::from(envelope.from.0) << 8 | u64::from(envelope.to.0),
        Event::Wake { replica, .. } => 1 << 16 | u64::from(replica.0),
        Event::Synced { replica, .. } => 2 << 16 | u64::from(replica.0),
        Event::Fetched { replica, .. } => 3 << 16 | u64::from(replica.0),
        Event::Connected { replica, .. } => 4 << 16 | u64::from(replica.0),
        Event::Request { session, .. } => 5 << 16 | session.0 << 24,
        Event::SessionClosed { session } => 6 << 16 | session.0 << 24,
        Event::Response { session, .. } => 7 << 16 | session.0 << 24,
        Event::SessionLost { session } => 8 << 16 | session.0 << 24,
        Event::Speech { to, .. } => 9 << 16 | u64::from(to.0),
        Event::ActorWake { actor, .. } => 10 << 16 | u64::from(actor.0),
        Event::Fault(_) => 11 << 16,
        Event::Released(_) => 12 << 16,
    }
}
