//! An operator: looks for committed transactions whose delivery has met a hazard, and takes them as settled, by name,
//! after looking at the database (traps J7).

use super::link::{Heard, Link};
use super::{Actor, ActorId, Scene, Speech};
use crate::schedule::Micros;
use synod_proto::ids::{BranchId, ReplicaId, SessionId};
use synod_proto::session::{DeliveryStatus, Request, Response, TransactionStatus};

/// How often the operator looks.
const LOOK_US: Micros = 4_000_000;
const LOOK: u64 = 1;

/// See the module.
#[derive(Debug)]
pub struct Operator {
    link: Link,
}

impl Operator {
    /// One who asks these replicas.
    #[must_use]
    pub fn new(replicas: Vec<ReplicaId>) -> Self {
        Self {
            link: Link::new(replicas, Vec::new()),
        }
    }

    fn look(&mut self, scene: &mut Scene<'_>) {
        if self.link.is_silent(scene.now) {
            return self.link.move_on(scene, None);
        }
        // Where nobody has laid a hand on a database there is nothing to find.
        if scene.databases.by_hand().next().is_none() {
            return;
        }
        if let Some(session) = self.link.ready() {
            let request = self.link.number(scene.now);
            scene.ask(
                session,
                Request::List {
                    request,
                    after: None,
                    unfinished_only: true,
                    count_max: 1_000,
                },
            );
        }
    }

    fn settle(&mut self, scene: &mut Scene<'_>, session: SessionId, branch: BranchId, found: &str) {
        scene.databases.note_settled(branch);
        let request = self.link.number(scene.now);
        scene.ask(
            session,
            Request::Settle {
                request,
                branch,
                author: "the operator".to_string(),
                reason: format!("rolled back by hand: {found}"),
            },
        );
    }
}

impl Actor for Operator {
    fn on_start(&mut self, scene: &mut Scene<'_>) {
        self.link.start(scene);
        scene.wake_after(LOOK_US, LOOK);
    }

    fn on_response(&mut self, scene: &mut Scene<'_>, session: SessionId, response: Response) {
        let Heard::Response(Response::Listed { transactions, .. }) =
            self.link.on_response(scene, session, response)
        else {
            return;
        };
        for one in transactions {
            let TransactionStatus::Committed { branches, .. } = one.status else {
                continue;
            };
            for status in branches {
                if let DeliveryStatus::Hazard(found) = &status.delivery {
                    let branch = BranchId {
                        gtid: one.gtid,
                        call: status.call,
                        execution: status.execution,
                    };
                    self.settle(scene, session, branch, found);
                }
            }
        }
    }

    fn on_session_lost(&mut self, scene: &mut Scene<'_>, session: SessionId) {
        self.link.on_lost(scene, session);
    }

    fn on_speech(&mut self, _scene: &mut Scene<'_>, _from: ActorId, _speech: Speech) {}

    fn on_wake(&mut self, scene: &mut Scene<'_>, token: u64) {
        if token >= Link::TOKEN_FLOOR {
            return self.link.on_wake(scene, token);
        }
        self.look(scene);
        scene.wake_after(LOOK_US, LOOK);
    }
}
