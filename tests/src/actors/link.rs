//! A service's session with the leader: found by asking, kept, and found again when it is lost.

use super::Scene;
use crate::chance::place;
use crate::schedule::Micros;
use synod_proto::ids::{Lineage, ReplicaId, RequestId, ResourceId, SessionId};
use synod_proto::session::{Refusal, Request, Response};

/// How long a registration may go unanswered before another replica is tried.
const REGISTER_TIMEOUT_US: Micros = 600_000;

/// After so much silence while something is asked, the session is taken for dead.
const SILENCE_US: Micros = 2_000_000;

/// What the link made of a response.
#[derive(Debug)]
pub enum Heard {
    /// It was the link's own business.
    Nothing,
    /// The session has become usable.
    Registered(Lineage),
    /// For the service.
    Response(Response),
}

/// A session that looks for the leader.
#[derive(Debug)]
pub struct Link {
    replicas: Vec<ReplicaId>,
    resources: Vec<ResourceId>,
    target: usize,
    session: Option<SessionId>,
    is_registered: bool,
    next_request: u64,
    attempt: u64,
    /// When something was asked, if nothing was heard since.
    waiting_since: Option<Micros>,
}

impl Link {
    /// The link's timers carry tokens from here on; services use lower ones.
    pub const TOKEN_FLOOR: u64 = 1 << 48;

    /// A link for these databases.
    #[must_use]
    pub fn new(replicas: Vec<ReplicaId>, resources: Vec<ResourceId>) -> Self {
        Self {
            replicas,
            resources,
            target: 0,
            session: None,
            is_registered: false,
            next_request: 0,
            attempt: 0,
            waiting_since: None,
        }
    }

    /// The session, if it can be used.
    #[must_use]
    pub fn ready(&self) -> Option<SessionId> {
        self.session.filter(|_| self.is_registered)
    }

    /// Whether the session has said nothing for so long that one who waits for an answer should try another replica.
    #[must_use]
    pub fn is_silent(&self, now: Micros) -> bool {
        self.is_registered && self.waiting_since.is_some_and(|since| now - since > SILENCE_US)
    }

    /// A number for the next request, which is about to be asked.
    pub fn number(&mut self, now: Micros) -> RequestId {
        self.waiting_since.get_or_insert(now);
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// Leaves the session and tries the next replica, or the one that is said to lead.
    pub fn move_on(&mut self, scene: &mut Scene<'_>, leader: Option<ReplicaId>) {
        self.leave(scene);
        let place = leader.and_then(|leader| self.replicas.iter().position(|one| *one == leader));
        self.target = place.unwrap_or((self.target + 1) % self.replicas.len());
        let pause = scene.random.between(5_000, 60_000);
        self.wait(scene, pause);
    }

    /// Begins anew after a start of the process.
    pub fn start(&mut self, scene: &mut Scene<'_>) {
        let (replicas, resources, attempt) = (self.replicas.clone(), self.resources.clone(), self.attempt);
        let target = place(scene.random, replicas.len());
        *self = Self {
            target,
            attempt,
            ..Self::new(replicas, resources)
        };
        self.wait(scene, 0);
    }

    /// Takes a response; what is not of the current session is dropped.
    pub fn on_response(&mut self, scene: &mut Scene<'_>, session: SessionId, response: Response) -> Heard {
        if self.session != Some(session) {
            return Heard::Nothing;
        }
        self.waiting_since = None;
        match response {
            Response::Registered { lineage, .. } => {
                for resource in &self.resources {
                    scene.databases.set_lineage(*resource, lineage);
                }
                if self.is_registered {
                    return Heard::Nothing;
                }
                self.is_registered = true;
                Heard::Registered(lineage)
            }
            Response::Refused {
                refusal: Refusal::NotLeader { leader },
                ..
            } => {
                self.move_on(scene, leader);
                Heard::Nothing
            }
            Response::Refused {
                refusal: Refusal::ReadOnly { .. },
                ..
            } => {
                self.move_on(scene, None);
                Heard::Nothing
            }
            other => Heard::Response(other),
        }
    }

    /// The session has ended; returns whether it was the current one.
    pub fn on_lost(&mut self, scene: &mut Scene<'_>, session: SessionId) {
        if self.session == Some(session) {
            self.session = None;
            self.waiting_since = None;
            self.is_registered = false;
            let pause = scene.random.between(5_000, 60_000);
            self.target = (self.target + 1) % self.replicas.len();
            self.wait(scene, pause);
        }
    }

    /// A timer of the link.
    pub fn on_wake(&mut self, scene: &mut Scene<'_>, token: u64) {
        if token != Self::TOKEN_FLOOR + self.attempt || self.is_registered {
            return;
        }
        if self.session.is_some() {
            return self.move_on(scene, None);
        }
        let session = scene.open(self.replicas[self.target]);
        self.session = Some(session);
        let request = self.number(scene.now);
        let lineage = self
            .resources
            .first()
            .and_then(|resource| scene.databases.lineage(*resource));
        scene.ask(
            session,
            Request::Register {
                request,
                lineage,
                resources: self.resources.clone(),
            },
        );
        self.wait(scene, REGISTER_TIMEOUT_US);
    }

    fn leave(&mut self, scene: &mut Scene<'_>) {
        if let Some(session) = self.session.take() {
            scene.close(session);
        }
        self.waiting_since = None;
        self.is_registered = false;
    }

    fn wait(&mut self, scene: &mut Scene<'_>, delay: Micros) {
        self.attempt += 1;
        scene.wake_after(delay, Self::TOKEN_FLOOR + self.attempt);
    }
}
