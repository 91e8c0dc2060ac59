//! A service with a database: it prepares branches, votes, applies outcomes and asks for those that do not come.
//!
//! Steps 2, 3 and 5 of a transaction, by the rules T8 (a branch that voted waits and asks), T11 (lineage) and T14
//! (refuses work past its deadline or too far ahead).

use super::link::{Heard, Link};
use super::{Actor, ActorId, CallVote, Scene, Speech};
use crate::schedule::Micros;
use bytes::Bytes;
use synod_proto::command::NamedBranch;
use synod_proto::ids::{BranchId, ExecutionId, Lineage, ReplicaId, ResourceId, SessionId, UnixMillis};
use synod_proto::limits::CLOCK_SKEW_MS_MAX;
use synod_proto::session::{Answer, Outcome, Request, Response};

/// How often prepared branches are looked through for those past their deadline.
const INQUIRY_US: Micros = 700_000;

/// What a participant does of its own accord.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// How many of a million calls are read-only.
    pub read_only_ppm: u64,
    /// How many of a million calls are voted down.
    pub abort_ppm: u64,
    /// How many of a million acknowledgements are forgotten.
    pub forget_ppm: u64,
}

impl Habits {
    /// Commits everything, acknowledges everything.
    pub const PLAIN: Self = Self {
        read_only_ppm: 0,
        abort_ppm: 0,
        forget_ppm: 0,
    };
    /// A little of everything.
    pub const MIXED: Self = Self {
        read_only_ppm: 100_000,
        abort_ppm: 50_000,
        forget_ppm: 100_000,
    };
}

const LOOK: u64 = 1;

/// The service.
#[derive(Debug)]
pub struct Participant {
    resource: ResourceId,
    habits: Habits,
    link: Link,
    /// A fresh process asks for everything it finds prepared, whatever its deadline.
    is_fresh: bool,
}

impl Participant {
    /// A service over one database.
    #[must_use]
    pub fn new(resource: ResourceId, replicas: Vec<ReplicaId>, habits: Habits) -> Self {
        Self {
            resource,
            habits,
            link: Link::new(replicas, vec![resource]),
            is_fresh: true,
        }
    }

    fn on_call(
        &mut self,
        scene: &mut Scene<'_>,
        branch: BranchId,
        lineage: Lineage,
        deadline: UnixMillis,
    ) -> CallVote {
        let known = scene.databases.lineage(self.resource);
        let is_ahead = branch.gtid.began_at() > scene.wall.plus(CLOCK_SKEW_MS_MAX);
        if known != Some(lineage)
            || is_ahead
            || scene.wall >= deadline
            || scene.happens(self.habits.abort_ppm)
        {
            return CallVote::Abort;
        }
        if scene.happens(self.habits.read_only_ppm) {
            return CallVote::ReadOnly;
        }
        scene.databases.prepare(self.resource, branch, lineage, deadline);
        let BranchId { call, execution, .. } = branch;
        let database_transaction = Bytes::new();
        CallVote::Commit(NamedBranch {
            call,
            execution,
            resource: self.resource,
            digest: 0,
            database_transaction,
        })
    }

    fn inquire(&mut self, scene: &mut Scene<'_>) {
        let Some(session) = self.link.ready() else { return };
        for (branch, row) in scene.databases.in_doubt(self.resource) {
            if self.is_fresh || scene.wall >= row.deadline {
                let (resource, lineage, deadline) = (self.resource, row.lineage, row.deadline);
                scene.ask(
                    session,
                    Request::Inquire {
                        branch,
                        resource,
                        lineage,
                        deadline,
                    },
                );
            }
        }
        self.is_fresh = false;
    }

    fn on_outcome(&mut self, scene: &mut Scene<'_>, session: SessionId, branch: BranchId, outcome: Outcome) {
        scene.databases.finish(self.resource, branch, outcome);
        if outcome == Outcome::Committed && !scene.happens(self.habits.forget_ppm) {
            scene.ask(
                session,
                Request::Acknowledge {
                    branch,
                    resource: self.resource,
                },
            );
        }
    }
}

impl Actor for Participant {
    fn on_start(&mut self, scene: &mut Scene<'_>) {
        self.is_fresh = true;
        self.link.start(scene);
        scene.wake_after(INQUIRY_US, LOOK);
    }

    fn on_response(&mut self, scene: &mut Scene<'_>, session: SessionId, response: Response) {
        match self.link.on_response(scene, session, response) {
            Heard::Registered(_) => self.inquire(scene),
            Heard::Response(Response::Deliver { branch, outcome, .. }) => {
                self.on_outcome(scene, session, branch, outcome);
            }
            Heard::Response(Response::Answered { branch, answer }) => match answer {
                Answer::Committed => self.on_outcome(scene, session, branch, Outcome::Committed),
                Answer::Aborted => self.on_outcome(scene, session, branch, Outcome::Aborted),
                Answer::Undecided => {}
            },
            Heard::Response(_) | Heard::Nothing => {}
        }
    }

    fn on_session_lost(&mut self, scene: &mut Scene<'_>, session: SessionId) {
        self.link.on_lost(scene, session);
    }

    fn on_speech(&mut self, scene: &mut Scene<'_>, from: ActorId, speech: Speech) {
        if let Speech::Call {
            gtid,
            call,
            deadline,
            lineage,
        } = speech
        {
            let branch = BranchId {
                gtid,
                call,
                execution: ExecutionId(scene.random.next_u64()),
            };
            let vote = self.on_call(scene, branch, lineage, deadline);
            scene.say(from, Speech::Reply { gtid, call, vote });
        }
    }

    fn on_wake(&mut self, scene: &mut Scene<'_>, token: u64) {
        if token >= Link::TOKEN_FLOOR {
            return self.link.on_wake(scene, token);
        }
        self.inquire(scene);
        let pause = INQUIRY_US + scene.random.between(0, INQUIRY_US);
        scene.wake_after(pause, LOOK);
    }
}
