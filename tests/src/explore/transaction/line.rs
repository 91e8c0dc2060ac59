//! A process's line to the coordinator: the real session core, with a driver that opens every stream at once.

use super::event::{BEGIN, Event, Place};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::time::Duration;
use synod_participant_core::session::{Config, ConnectionId, Effect, Input, Notice, Session};
use synod_participant_core::{Now, Timestamp};

/// The most streams of one process. The world numbers the streams of all lives of a process; each life counts from
/// its own base.
const STREAM_COUNT_MAX: u64 = 100;

/// Longer than any delay of a session's default configuration.
const SILENCE: Duration = Duration::from_secs(20);

/// See the module.
#[derive(Clone, Debug)]
pub struct Line {
    place: Place,
    session: Session,
    life: u64,
    connection: ConnectionId,
    now: Timestamp,
}

impl Line {
    /// The session of a process in this life, not connected yet.
    #[must_use]
    pub fn new(place: Place, life: u64) -> Self {
        let session = Session::new(Config::new(vec!["http://coordinator".to_string()]), place as u64);
        Self {
            place,
            session,
            life,
            connection: ConnectionId(0),
            now: Timestamp(0),
        }
    }

    /// Feeds what tells states apart.
    pub fn hash_state(&self, state: &mut impl Hasher) {
        self.session.hash_state(state);
        (self.place, self.life, self.connection).hash(state);
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The process's life.
    #[must_use]
    pub fn life(&self) -> u64 {
        self.life
    }

    /// What the coordinator's message, or the end of a stream, is to the session; `None` for a former life's.
    #[must_use]
    pub fn input_of(&self, event: &Event) -> Option<Input> {
        let own = |connection: u64| {
            (connection / STREAM_COUNT_MAX == self.life)
                .then_some(ConnectionId(connection % STREAM_COUNT_MAX))
        };
        match event {
            Event::Hear {
                connection, response, ..
            } => Some(Input::Received {
                connection: own(*connection)?,
                response: response.clone(),
                leader: None,
            }),
            Event::Lost { connection, .. } => Some(Input::Lost {
                connection: own(*connection)?,
                reason: "the stream ended".to_string(),
            }),
            _ => None,
        }
    }

    /// Time passes to the next timer.
    ///
    /// # Errors
    /// See [`Line::step`].
    pub fn fire(&mut self, sent: &mut Vec<Event>) -> Result<Vec<Effect>, String> {
        let Some(at) = self.session.next_timeout() else {
            return Ok(Vec::new());
        };
        self.now = self.now.max(at);
        self.step(Input::Tick, sent)
    }

    /// Time passes until every timer has fired.
    ///
    /// # Errors
    /// See [`Line::step`].
    pub fn fire_all(&mut self, sent: &mut Vec<Event>) -> Result<Vec<Effect>, String> {
        self.now = self.now.plus_duration(SILENCE);
        self.step(Input::Tick, sent)
    }

    /// Steps the session; returns what is for its database and its callers.
    ///
    /// # Errors
    /// The session says that a branch was told both outcomes, or that a store lost a branch: neither may happen here.
    pub fn step(&mut self, input: Input, sent: &mut Vec<Event>) -> Result<Vec<Effect>, String> {
        let now = Now {
            monotonic: self.now,
            wall: BEGIN,
        };
        let mut rest = Vec::new();
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for effect in self.session.step(now, input) {
                match effect {
                    Effect::Connect { connection, .. } => {
                        assert!(connection.0 < STREAM_COUNT_MAX, "a small world has few streams");
                        self.connection = connection;
                        inputs.push_back(Input::Opened { connection });
                    }
                    Effect::Send(request) => {
                        let connection = self.life * STREAM_COUNT_MAX + self.connection.0;
                        sent.push(Event::Ask {
                            from: self.place,
                            connection,
                            request,
                        });
                    }
                    Effect::Notice(notice @ (Notice::Contradiction { .. } | Notice::Hazard { .. })) => {
                        return Err(format!("{:?}: {notice:?}", self.place));
                    }
                    Effect::Finish { .. } | Effect::List { .. } | Effect::Reply { .. } => rest.push(effect),
                    _ => {}
                }
            }
        }
        Ok(rest)
    }
}
