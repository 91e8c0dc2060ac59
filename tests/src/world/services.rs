//! Sessions between services and replicas, the test's own sessions, and the turns of the actors.

use super::{Event, Session, World};
use crate::actors::{Actor, ActorId, Command, Scene};
use crate::checkers::Check;
use crate::clocks::true_wall;
use synod_proto::ids::{ReplicaId, SessionId};
use synod_proto::session::{Request, Response};

impl World {
    /// Opens a session for the test itself.
    pub fn open_session(&mut self, replica: ReplicaId) -> SessionId {
        self.next_session += 1;
        let session = SessionId(self.next_session);
        self.sessions.insert(
            session,
            Session {
                owner: None,
                replica,
                is_open: true,
            },
        );
        session
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
        let lines = self.setup.lines;
        let delay = self.random.between(lines.delay_us.0, lines.delay_us.1);
        let is_lost =
            self.random.between(0, 999_999) < lines.loss_ppm && !matches!(event, Event::SessionLost { .. });
        if !is_lost {
            self.schedule.after(delay, event);
        }
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

    /// Lets an actor do something, and carries out what it says.
    pub(super) fn with_actor(
        &mut self,
        id: ActorId,
        act: impl FnOnce(&mut dyn Actor, &mut Scene<'_>),
    ) -> Check {
        let now = self.now();
        let cast = self.actors.get_mut(&id).expect("an actor of this world");
        let life = cast.life;
        let mut scene = Scene {
            own: id,
            now,
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
                Command::Open(session, replica) => {
                    self.sessions.insert(
                        session,
                        Session {
                            owner: Some(id),
                            replica,
                            is_open: true,
                        },
                    );
                }
                Command::Close(session) => self.close_session(session),
                Command::Ask(session, request) => self.ask(session, request),
                Command::Say(to, speech) => self.carry(Event::Speech { from: id, to, speech }),
                Command::Wake(delay, token) => self.schedule.after(
                    delay,
                    Event::ActorWake {
                        actor: id,
                        life,
                        token,
                    },
                ),
            }
        }
        Ok(())
    }
}
