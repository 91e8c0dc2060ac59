//! Somebody who asks of other people's transactions, at whatever replica: an operator, a script, a request that comes
//! again long after. What it is told must be as true as what anybody is told, and nothing that it proposes may change
//! what is decided.
//!
//! | asks | of | so that |
//! |---|---|---|
//! | for the outcome | the latest transactions, at any replica | a replica that leads no longer is caught with what it no longer knows (T10) |
//! | for an abort, or a commit of other branches | transactions that took effect | the first outcome stands, and another set of branches is a mismatch (T5, T9) |
//! | for an abort | the same, once the watermark has passed them | it is told that they expired (T9) |

use super::{Actor, ActorId, Scene, Speech};
use crate::actors::databases::{Row, RowState};
use crate::chance::pick;
use crate::schedule::Micros;
use std::collections::BTreeMap;
use synod_proto::command::{Decide, Proposal};
use synod_proto::ids::{Gtid, ReplicaId, RequestId, SessionId};
use synod_proto::limits::WATERMARK_LAG_MS_DEFAULT;
use synod_proto::session::{AbortCause, AbortKind, Request, Response};

/// How long it waits between two visits.
const PAUSE_US: (Micros, Micros) = (20_000, 400_000);

/// Among how many of the latest transactions it chooses.
const LATEST_COUNT: usize = 6;

/// When it comes back to what it remembers: after the watermark has passed it.
const LATE_US: Micros = WATERMARK_LAG_MS_DEFAULT * 1_000 + 15_000_000;

/// How many transactions it comes back to.
const LATE_COUNT: usize = 8;

const VISIT: u64 = 1;
const LATE: u64 = 2;

/// The asker.
#[derive(Debug)]
pub struct Stranger {
    replicas: Vec<ReplicaId>,
    session: Option<SessionId>,
    next_request: u64,
    is_resting: bool,
}

impl Stranger {
    /// Somebody who asks these replicas.
    #[must_use]
    pub fn new(replicas: Vec<ReplicaId>) -> Self {
        Self {
            replicas,
            session: None,
            next_request: 0,
            is_resting: false,
        }
    }

    /// The latest transactions of which some database holds a branch, each with its last branch.
    fn latest(scene: &Scene<'_>, count: usize) -> Vec<(Gtid, Row)> {
        let mut latest: BTreeMap<Gtid, Row> = BTreeMap::new();
        for (_, branch, row) in scene.databases.rows() {
            let first = latest.first_key_value().map(|(gtid, _)| *gtid);
            if latest.len() < count || first.is_some_and(|first| branch.gtid >= first) {
                latest.insert(branch.gtid, row);
            }
            if latest.len() > count {
                latest.pop_first();
            }
        }
        latest.into_iter().rev().collect()
    }

    fn visit(&mut self, scene: &mut Scene<'_>) {
        if let Some(former) = self.session.take() {
            scene.close(former);
        }
        let latest = Self::latest(scene, LATEST_COUNT);
        if latest.is_empty() {
            return;
        }
        let replica = pick(scene.random, &self.replicas);
        let session = scene.open(replica);
        self.session = Some(session);
        for _ in 0..scene.random.between(1, 4) {
            let (gtid, row) = pick(scene.random, &latest);
            let request = self.number();
            match scene.random.between(0, 4) {
                0 if row.state == RowState::Committed => {
                    self.propose(scene, session, gtid, row, abort());
                }
                1 if row.state == RowState::Committed => {
                    self.propose(scene, session, gtid, row, other_commit());
                }
                _ => scene.ask(session, Request::Outcome { request, gtid }),
            }
        }
    }

    /// Proposes once more what was decided long ago, everywhere: whoever leads answers.
    fn come_back(&mut self, scene: &mut Scene<'_>) {
        for replica in self.replicas.clone() {
            let session = scene.open(replica);
            for (gtid, row) in Self::latest(scene, LATE_COUNT) {
                if row.state == RowState::Committed {
                    self.propose(scene, session, gtid, row, abort());
                }
            }
        }
    }

    fn propose(
        &mut self,
        scene: &mut Scene<'_>,
        session: SessionId,
        gtid: Gtid,
        row: Row,
        proposal: Proposal,
    ) {
        let decide = Decide {
            lineage: row.lineage,
            gtid,
            deadline: row.deadline,
            proposal,
            guards: Vec::new(),
        };
        let request = self.number();
        let command = decide.encode();
        scene.ask(session, Request::Decide { request, command });
    }

    fn number(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    fn wait(scene: &mut Scene<'_>) {
        let pause = scene.random.between(PAUSE_US.0, PAUSE_US.1);
        scene.wake_after(pause, VISIT);
    }
}

fn abort() -> Proposal {
    Proposal::Abort {
        cause: AbortCause::new(AbortKind::Requested, "a stranger's wish"),
        branches: Vec::new(),
    }
}

/// A commit that names nobody cannot be the one that took effect.
fn other_commit() -> Proposal {
    Proposal::Commit {
        branches: Vec::new(),
        read_only_count: 1,
    }
}

impl Actor for Stranger {
    fn on_start(&mut self, scene: &mut Scene<'_>) {
        self.session = None;
        Self::wait(scene);
    }

    fn on_response(&mut self, _: &mut Scene<'_>, _: SessionId, _: Response) {}

    fn on_session_lost(&mut self, _: &mut Scene<'_>, session: SessionId) {
        if self.session == Some(session) {
            self.session = None;
        }
    }

    fn on_speech(&mut self, _: &mut Scene<'_>, _: ActorId, _: Speech) {}

    fn on_wake(&mut self, scene: &mut Scene<'_>, token: u64) {
        match (token, self.is_resting) {
            (LATE, _) => self.come_back(scene),
            (_, true) => scene.wake_after(LATE_US, LATE),
            (_, false) => {
                self.visit(scene);
                Self::wait(scene);
            }
        }
    }

    fn on_rest(&mut self) {
        self.is_resting = true;
    }
}
