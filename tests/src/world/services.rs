//! Sessions between services and replicas, the test's own sessions, and the turns of the actors.

use super::{Event, Session, World};
use crate::actors::{Actor, ActorId, Carriage, Command, Scene, Speech};
use crate::checkers::Check;
use crate::clocks::{Clocks, true_wall};
use crate::schedule::Micros;
use synod_coordinator_core::random::Random;
use synod_coordinator_core::time::Timestamp;
use synod_proto::ids::{ReplicaId, SessionId};
use synod_proto::session::{Request, Response};

/// How soon a service hears that no process listens at a replica.
const STREAM_REFUSED_US: Micros = 2_000;

/// How many of a million business messages come twice on a network that loses nothing.
const REPEATED_PPM: u64 = 5_000;

impl World {
    /// Opens a session for the test itself.
    pub fn open_session(&mut self, replica: ReplicaId) -> SessionId {
        self.next_session += 1;
        let session = SessionId(self.next_session);
        self.add_session(session, None, replica, Carriage::Loose);
        session
    }

    fn add_session(
        &mut self,
        session: SessionId,
        owner: Option<ActorId>,
        replica: ReplicaId,
        carriage: Carriage,
    ) {
        let host = &self.hosts[&replica];
        let (life, is_up) = (host.life, host.process.is_some());
        self.sessions.insert(
            session,
            Session {
                owner,
                replica,
                is_open: true,
                carriage,
                life,
                busy_until: (0, 0),
                is_severed: (false, false),
            },
        );
        if carriage == Carriage::Stream && !is_up {
            // Nobody listens there.
            self.schedule
                .after(STREAM_REFUSED_US, Event::SessionLost { session });
        }
    }

    /// Whether what was said on the session reaches the replica: a stream ends with the process that it was opened with.
    pub(super) fn reaches(&self, session: &Session) -> bool {
        session.is_open
            && (session.carriage == Carriage::Loose || self.hosts[&session.replica].life == session.life)
    }

    /// Sends a request of the test itself.
    pub fn ask(&mut self, session: SessionId, request: Request) {
        self.checkers.on_asked(self.now(), session, &request);
        self.carry(Event::Request { session, request });
    }

    /// What the test's session was told since the last look.
    pub fn take_responses(&mut self, session: SessionId) -> Vec<Response> {
        self.mailboxes.remove(&session).unwrap_or_default()
    }

    /// Whether the test's session has been told anything.
    #[must_use]
    pub fn has_responses(&self, session: SessionId) -> bool {
        self.mailboxes.contains_key(&session)
    }

    /// Ends a session of the test itself.
    pub fn close_session(&mut self, session: SessionId) {
        if let Some(one) = self.sessions.get_mut(&session) {
            one.is_open = false;
        }
        self.schedule
            .after(self.setup.lines.delay_us.0, Event::SessionClosed { session });
    }

    pub(super) fn carry(&mut self, event: Event) {
        let streamed = match &event {
            Event::Request { session, .. } => Some((*session, true)),
            Event::Response { session, .. } | Event::SessionLost { session } => Some((*session, false)),
            _ => None,
        };
        if let Some((session, is_up)) = streamed
            && self
                .sessions
                .get(&session)
                .is_some_and(|one| one.carriage == Carriage::Stream)
        {
            return self.carry_on_stream(session, is_up, event);
        }
        if let Event::Speech {
            speech: Speech::Service(_),
            ..
        } = &event
        {
            return self.carry_between_services(event);
        }
        let lines = self.setup.lines;
        let delay = self.random.between(lines.delay_us.0, lines.delay_us.1);
        let is_lost =
            self.random.between(0, 999_999) < lines.loss_ppm && !matches!(event, Event::SessionLost { .. });
        if !is_lost {
            self.schedule.after(delay, event);
        }
    }

    /// In order. What is lost on the way is sent again by the transport, and holds up what follows it; now and then the
    /// stream breaks instead.
    fn carry_on_stream(&mut self, session: SessionId, is_up: bool, event: Event) {
        let lines = self.setup.lines;
        let now = self.now();
        let random = &mut self.streams_random;
        let mut delay = random.between(lines.delay_us.0, lines.delay_us.1);
        let is_lost = random.between(0, 999_999) < lines.loss_ppm;
        if is_lost {
            delay += random.between(200_000, 900_000);
        }
        let breaks = is_lost && random.between(0, 3) == 0;
        let one = self.sessions.get_mut(&session).expect("looked at by the caller");
        let busy_until = if is_up {
            &mut one.busy_until.0
        } else {
            &mut one.busy_until.1
        };
        *busy_until = (*busy_until).max(now + delay);
        let at = *busy_until;
        if breaks {
            self.schedule.at(at, Event::SessionLost { session });
        } else {
            self.schedule.at(at, event);
        }
    }

    /// Business calls are lost and overtake each other as calls to a service do that is reached over several connections,
    /// and a proxy may repeat one.
    fn carry_between_services(&mut self, event: Event) {
        let lines = self.setup.lines;
        let random = &mut self.streams_random;
        let delay = random.between(lines.delay_us.0, lines.delay_us.1);
        let is_lost = random.between(0, 999_999) < lines.loss_ppm;
        let is_repeated = random.between(0, 999_999) < lines.loss_ppm / 2 + REPEATED_PPM;
        let later = random.between(0, 500_000);
        if is_lost {
            return;
        }
        if is_repeated {
            self.schedule.after(delay + later, event.clone());
        }
        self.schedule.after(delay, event);
    }

    pub(super) fn on_response(&mut self, session: SessionId, response: Response) -> Check {
        match self.sessions.get(&session).copied() {
            Some(Session {
                owner: Some(owner),
                is_open: true,
                ..
            }) => self.with_actor(owner, |actor, scene| actor.on_response(scene, session, response)),
            Some(Session { owner: None, .. }) => {
                self.mailboxes.entry(session).or_default().push(response);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn on_session_lost(&mut self, session: SessionId) -> Check {
        let Some(one) = self.sessions.get_mut(&session) else {
            return Ok(());
        };
        if !std::mem::replace(&mut one.is_open, false) {
            return Ok(());
        }
        let owner = one.owner;
        self.schedule.after(0, Event::SessionClosed { session });
        match owner {
            Some(owner) => self.with_actor(owner, |actor, scene| actor.on_session_lost(scene, session)),
            None => Ok(()),
        }
    }

    /// From a stream of its own.
    pub(super) fn draw_service_drift(&mut self, id: ActorId) -> i32 {
        let most = u64::from(self.setup.drift_ppm_max.1);
        let mut random = Random::new(self.setup.seed ^ 0x6472_6966_7400 ^ (u64::from(id.0) << 48));
        let drift_ppm = drift(random.between(0, 2 * most), most);
        self.count_drift(drift_ppm, "a service's clock is off by more than a tenth");
        drift_ppm
    }

    pub(super) fn count_drift(&mut self, drift_ppm: i32, name: &'static str) {
        if drift_ppm.abs() > 100_000 {
            self.checkers.points.count("clock", name, 1);
        }
    }

    /// Lets an actor do something, and carries out what it says.
    pub(super) fn with_actor(
        &mut self,
        id: ActorId,
        act: impl FnOnce(&mut dyn Actor, &mut Scene<'_>),
    ) -> Check {
        let now = self.now();
        let cast = self.actors.get_mut(&id).expect("an actor of this world");
        let life = cast.life;
        let drift_ppm = cast.drift_ppm;
        let clocks = Clocks::new(0, 0, drift_ppm, 0);
        let shown = clocks.read(now).monotonic.0;
        let mut scene = Scene {
            own: id,
            now: shown,
            wall: synod_proto::ids::UnixMillis(true_wall(now).0.saturating_add_signed(cast.wall_offset_ms)),
            random: &mut self.actors_random,
            databases: &mut self.databases,
            next_session: &mut self.next_session,
            commands: Vec::new(),
        };
        act(cast.actor.as_mut(), &mut scene);
        let commands = scene.commands;
        self.checkers.on_databases(&mut self.databases)?;
        for command in commands {
            match command {
                Command::Open(session, replica, carriage) => {
                    self.add_session(session, Some(id), replica, carriage);
                }
                Command::Close(session) => self.close_session(session),
                Command::Ask(session, request) => {
                    self.checkers.on_service_asks(&request, &self.databases)?;
                    self.ask(session, request);
                }
                Command::Say(to, speech) => self.carry(Event::Speech { from: id, to, speech }),
                Command::Wake(delay, token) => {
                    let at = match drift_ppm == 0 {
                        true => now.saturating_add(delay),
                        false => clocks.moment(Timestamp(shown.saturating_add(delay))),
                    };
                    self.schedule.at(
                        at,
                        Event::ActorWake {
                            actor: id,
                            life,
                            token,
                        },
                    );
                }
            }
        }
        Ok(())
    }
}

/// A drift of at most `most`, from a number of at most twice that.
pub(super) fn drift(number: u64, most: u64) -> i32 {
    i32::try_from(number).expect("small") - i32::try_from(most).expect("small")
}
