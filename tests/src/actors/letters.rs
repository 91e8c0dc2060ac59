//! An operator of outboxes: has services look at their dead letters, from time to time.

use super::{Actor, ActorId, Scene, Speech, service};
use crate::schedule::Micros;
use synod_proto::ids::SessionId;
use synod_proto::session::Response;

/// The pauses between two looks.
const LOOK_US: (Micros, Micros) = (500_000, 6_000_000);

/// See the module.
#[derive(Debug)]
pub struct LetterOperator {
    services: Vec<ActorId>,
}

impl LetterOperator {
    /// One who looks after these services.
    #[must_use]
    pub fn new(services: Vec<ActorId>) -> Self {
        Self { services }
    }

    fn look_later(scene: &mut Scene<'_>) {
        let pause = scene.random.between(LOOK_US.0, LOOK_US.1);
        scene.wake_after(pause, 1);
    }
}

impl Actor for LetterOperator {
    fn on_start(&mut self, scene: &mut Scene<'_>) {
        Self::look_later(scene);
    }

    fn on_response(&mut self, _scene: &mut Scene<'_>, _session: SessionId, _response: Response) {}

    fn on_session_lost(&mut self, _scene: &mut Scene<'_>, _session: SessionId) {}

    fn on_speech(&mut self, _scene: &mut Scene<'_>, _from: ActorId, _speech: Speech) {}

    fn on_wake(&mut self, scene: &mut Scene<'_>, _token: u64) {
        for service in &self.services {
            scene.say(*service, Speech::Service(Box::new(service::Message::Operate)));
        }
        Self::look_later(scene);
    }
}
