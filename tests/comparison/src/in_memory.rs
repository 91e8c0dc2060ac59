//! Three replicas in this thread: the cores as they are, with disks that sync at once and a network that delivers at once.
//!
//! What is left is what a decision costs by itself: validation, the log, the machine, deliveries and acknowledgements, at the
//! leader and both followers. Frames, sockets and files are not in it.

use bytes::Bytes;
use std::collections::BTreeMap;
use synod_coordinator_core::durable::Recovered;
use synod_coordinator_core::effects::{Effects, GroupCommit, Synced, Told, Unsynced};
use synod_coordinator_core::paxos::Envelope;
use synod_coordinator_core::replica::{Config, Input, Replica, RoleName};
use synod_coordinator_core::time::{Now, Timestamp};
use synod_proto::command::{Decide, NamedBranch, Proposal};
use synod_proto::ids::{
    CallId, ExecutionId, Gtid, Incarnation, Lineage, ProcessNonce, ReplicaId, RequestId, ResourceId,
    SessionId, UnixMillis,
};
use synod_proto::limits::DEADLINE_MS_DEFAULT;
use synod_proto::session::{Decision, Outcome, Request, Response};

/// Decisions that reach the leader together: what one entry holds at 256 in flight.
pub(crate) const GROUP_COUNT: u64 = 128;

const SESSION_COUNT: u8 = 4;

const BRANCH_COUNT: u64 = 2;

/// The clock at the beginning.
const WALL: UnixMillis = UnixMillis(1_767_225_600_000);

/// Virtual time within which there must be a leader.
const ELECTION_MS_MAX: u64 = 60_000;

/// The cluster, its clients, and how far they are.
pub(crate) struct Cluster {
    replicas: BTreeMap<ReplicaId, One>,
    now: Now,
    told: Vec<Told>,
    leader: ReplicaId,
    lineage: Lineage,
    acknowledgements: Vec<Input>,
    decided_count: u64,
    per_second: u64,
}

struct One {
    replica: Replica,
    gate: GroupCommit,
    mail: Vec<Input>,
}

impl Cluster {
    /// Elects a leader and registers the sessions. The clock moves as if there were so many decisions a second.
    pub(crate) fn start(per_second: u64) -> Self {
        let ids: Vec<ReplicaId> = (1..=3).map(ReplicaId).collect();
        let one = |id: ReplicaId| {
            let config = Config::new(id, ids.iter().copied().collect(), Incarnation([id.0; 16]));
            let nonce = ProcessNonce(u64::from(id.0));
            let replica = Replica::new(config, Recovered::default(), nonce, u64::from(id.0));
            let connected = ids.iter().filter(|peer| **peer != id);
            One {
                replica,
                gate: GroupCommit::default(),
                mail: connected.copied().map(Input::PeerConnected).collect(),
            }
        };
        let mut cluster = Self {
            replicas: ids.iter().map(|id| (*id, one(*id))).collect(),
            now: Now {
                monotonic: Timestamp(1_000_000),
                wall: WALL,
            },
            told: Vec::new(),
            leader: ids[0],
            lineage: Lineage([0; 16]),
            acknowledgements: Vec::new(),
            decided_count: 0,
            per_second,
        };
        for id in ids {
            let now = cluster.now;
            let effects = cluster.one(id).replica.start(now);
            cluster.route(id, effects);
        }
        cluster.elect();
        cluster.register();
        cluster
    }

    /// How many decisions were made so far.
    pub(crate) fn decided_count(&self) -> u64 {
        self.decided_count
    }

    /// Outcomes in the leader's register.
    pub(crate) fn outcome_count(&self) -> usize {
        self.replicas[&self.leader].replica.machine().outcomes().count()
    }

    /// One group: the requests, and the acknowledgements of the last group's deliveries, until all is quiet.
    pub(crate) fn decide_group(&mut self) {
        let inputs = self.next_inputs();
        self.one(self.leader).mail.extend(inputs);
        self.turn();
        self.hear();
    }

    /// Everything that replicas do; the only part whose instructions are counted.
    #[inline(never)]
    fn turn(&mut self) {
        loop {
            let mut is_quiet = true;
            for id in [ReplicaId(1), ReplicaId(2), ReplicaId(3)] {
                let now = self.now;
                let one = self.one(id);
                if one.mail.is_empty() {
                    continue;
                }
                is_quiet = false;
                let mail = std::mem::take(&mut one.mail);
                let effects = one.replica.step_many(now, mail);
                self.route(id, effects);
            }
            if is_quiet {
                break;
            }
        }
    }

    fn route(&mut self, id: ReplicaId, mut effects: Effects<Unsynced>) {
        for envelope in effects.take_early() {
            self.send(envelope);
        }
        self.told.extend(effects.take_told());
        let free = self.one(id).gate.push(effects);
        self.release(free);
        // The disk writes and syncs at once.
        while self.one(id).gate.next_write().is_some() {
            let synced = self.one(id).gate.on_synced();
            self.release(synced);
        }
    }

    fn release(&mut self, synced: impl IntoIterator<Item = Effects<Synced>>) {
        for mut synced in synced {
            assert!(synced.take_fetches().is_empty(), "nobody lags here");
            for envelope in synced.into_gated() {
                self.send(envelope);
            }
        }
    }

    fn send(&mut self, envelope: Envelope) {
        self.one(envelope.to).mail.push(Input::Envelope(envelope));
    }

    fn one(&mut self, id: ReplicaId) -> &mut One {
        self.replicas.get_mut(&id).expect("there are three")
    }

    // ---- the clients ----

    fn wait(&mut self, micros: u64) {
        self.now.monotonic = self.now.monotonic.plus(micros);
        let since_start = self.now.monotonic.0 - 1_000_000;
        self.now.wall = WALL.plus(since_start / 1_000);
    }

    fn elect(&mut self) {
        for _ in 0..ELECTION_MS_MAX / 10 {
            self.wait(10_000);
            for one in self.replicas.values_mut() {
                one.mail.push(Input::Tick);
            }
            self.turn();
            let serving = |one: &One| one.replica.status().role == RoleName::Serving;
            if let Some((id, _)) = self.replicas.iter().find(|(_, one)| serving(one)) {
                self.leader = *id;
                return;
            }
        }
        panic!("no leader within {ELECTION_MS_MAX} ms of virtual time");
    }

    fn register(&mut self) {
        for session in 0..SESSION_COUNT {
            let request = Request::Register {
                request: RequestId(0),
                lineage: None,
                resources: vec![resource(session)],
            };
            let session = SessionId(u64::from(session));
            self.one(self.leader)
                .mail
                .push(Input::Request { session, request });
        }
        self.turn();
        for told in std::mem::take(&mut self.told) {
            if let Response::Registered { lineage, .. } = told.response {
                self.lineage = lineage;
            }
        }
        assert_ne!(self.lineage, Lineage([0; 16]), "the sessions are registered");
    }

    fn next_inputs(&mut self) -> Vec<Input> {
        self.wait(GROUP_COUNT * 1_000_000 / self.per_second);
        let mut inputs = std::mem::take(&mut self.acknowledgements);
        for number in self.decided_count..self.decided_count + GROUP_COUNT {
            let session = u8::try_from(number % u64::from(SESSION_COUNT)).expect("a few sessions");
            let mut random = [0; 10];
            // Ids of one millisecond come in any order.
            random[2..].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            let branch = |index: u64| NamedBranch {
                call: CallId(index),
                execution: ExecutionId(number),
                resource: resource((session + u8::try_from(index).expect("two branches")) % SESSION_COUNT),
                digest: 0,
                database_transaction: Bytes::new(),
            };
            let decide = Decide {
                lineage: self.lineage,
                gtid: Gtid::new(self.now.wall, random),
                deadline: self.now.wall.plus(DEADLINE_MS_DEFAULT),
                proposal: Proposal::Commit {
                    branches: (0..BRANCH_COUNT).map(branch).collect(),
                    read_only_count: 0,
                },
                guards: Vec::new(),
            };
            let request = Request::Decide {
                request: RequestId(number),
                command: decide.encode(),
            };
            inputs.push(Input::Request {
                session: SessionId(u64::from(session)),
                request,
            });
        }
        inputs
    }

    /// Every decision is a commit, and every delivery is acknowledged with the next group.
    fn hear(&mut self) {
        let mut decided = 0;
        for Told { session, response } in std::mem::take(&mut self.told) {
            match response {
                Response::Decided {
                    decision: Decision::Committed,
                    ..
                } => decided += 1,
                Response::Deliver {
                    branch,
                    resource,
                    outcome: Outcome::Committed,
                } => self.acknowledgements.push(Input::Request {
                    session,
                    request: Request::Acknowledge { branch, resource },
                }),
                Response::LowWater { .. } => {}
                other => panic!("a session was told {other:?}"),
            }
        }
        assert_eq!(
            decided, GROUP_COUNT,
            "every decision of the group is made within its turn"
        );
        self.decided_count += decided;
    }
}

fn resource(session: u8) -> ResourceId {
    ResourceId([session + 1; 16])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The register neither loses what it must keep nor grows beyond the watermark's lag: so much time has passed that most
    /// of what was decided is gone.
    #[test]
    fn the_register_follows_the_watermark() {
        let mut cluster = Cluster::start(1_000);
        while cluster.decided_count() < 700_000 {
            cluster.decide_group();
        }
        // A lag of ten minutes, at a thousand a second, and what one group brings.
        let held = cluster.outcome_count();
        assert!((600_000..610_000).contains(&held), "{held}");
    }
}
