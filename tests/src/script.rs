//! What scripted tests are written with: a world that has settled, sessions of the test's own, proposals.

use crate::actors::{ActorId, participant};
use crate::checkers::Violation;
use crate::clocks::true_wall;
use crate::run::{populate, resource};
use crate::schedule::Micros;
use crate::world::{Setup, World};
use bytes::Bytes;
use synod_coordinator_core::replica::Config;
use synod_proto::command::{Decide, NamedBranch, Proposal};
use synod_proto::ids::{
    BranchId, CallId, ExecutionId, Gtid, Lineage, ReplicaId, RequestId, ResourceId, SessionId, UnixMillis,
};
use synod_proto::session::{AbortCause, AbortKind, Request, Response};

/// How long a leader may take to be found: two election timeouts and some round trips.
pub const ELECTION_US: Micros = 2_500_000;

/// A world in which a leader serves and `participant_count` participants are registered with it.
///
/// # Errors
/// A checker found something, or no leader was elected in time.
pub fn settled(setup: Setup, participant_count: u32) -> Result<(World, Vec<ActorId>), Violation> {
    settled_with(setup, participant_count, |_| {})
}

/// As [`settled`], with another configuration of the replicas.
///
/// # Errors
/// As [`settled`].
pub fn settled_with(
    setup: Setup,
    participant_count: u32,
    adapt: impl Fn(&mut Config),
) -> Result<(World, Vec<ActorId>), Violation> {
    settle(World::with_config(setup, adapt)?, participant_count)
}

fn settle(mut world: World, participant_count: u32) -> Result<(World, Vec<ActorId>), Violation> {
    world.run_while_not(ELECTION_US, "a first leader", |world| world.serving().is_some())?;
    let habits = crate::actors::initiator::Habits::single();
    let (participants, _) = populate(
        &mut world,
        (participant_count, participant::Habits::PLAIN),
        (0, &habits),
    );
    let is_enrolled = |world: &World| {
        (0..participant_count).all(|number| world.checkers.log.reference().is_enrolled(resource(number)))
    };
    world.run_while_not(ELECTION_US, "participants are registered", is_enrolled)?;
    // Until the answers have reached them.
    world.run_for(100_000)?;
    Ok((world, participants))
}

/// As [`settled`], with the real log under every replica, in segments of this length.
///
/// # Errors
/// As [`settled`].
pub fn settled_on_logs(
    setup: Setup,
    participant_count: u32,
    segment_bytes: u64,
) -> Result<(World, Vec<ActorId>), Violation> {
    let mut world = World::new(setup)?;
    world.attach_logs(segment_bytes);
    settle(world, participant_count)
}

/// A session of the test itself.
#[derive(Clone, Copy, Debug)]
pub struct Desk {
    /// The session.
    pub session: SessionId,
    next_request: u64,
}

impl Desk {
    /// Opens a session with a replica.
    pub fn open(world: &mut World, replica: ReplicaId) -> Self {
        Self {
            session: world.open_session(replica),
            next_request: 0,
        }
    }

    /// Opens a session with the replica that serves.
    ///
    /// # Panics
    /// None does.
    pub fn at_leader(world: &mut World) -> Self {
        let leader = world.serving().expect("a replica serves");
        Self::open(world, leader)
    }

    /// A number for a request.
    pub fn number(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// A checker found something, or no answer came within the time of an election.
    pub fn ask(
        &mut self,
        world: &mut World,
        request: impl FnOnce(RequestId) -> Request,
    ) -> Result<Response, Violation> {
        let number = self.number();
        world.ask(self.session, request(number));
        self.wait(world)
    }

    /// Waits for what the session is told next, and returns the first of it.
    ///
    /// # Errors
    /// A checker found something, or nothing came within the time of an election.
    pub fn wait(&self, world: &mut World) -> Result<Response, Violation> {
        let session = self.session;
        world.run_while_not(ELECTION_US, "an answer", |world| world.has_responses(session))?;
        Ok(world.take_responses(session).remove(0))
    }

    /// Proposes an outcome, and waits for the answer.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn decide(&mut self, world: &mut World, decide: &Decide) -> Result<Response, Violation> {
        self.ask(world, |request| Request::Decide {
            request,
            command: decide.encode(),
        })
    }
}

/// The lineage of the world's coordinator.
///
/// # Panics
/// None is established yet.
#[must_use]
pub fn lineage(world: &World) -> Lineage {
    world
        .checkers
        .log
        .reference()
        .lineage()
        .expect("a lineage is established")
}

/// A gtid that begins `ahead_ms` from now by the true clock.
#[must_use]
pub fn gtid(world: &World, number: u8, ahead_ms: i64) -> Gtid {
    let began_at = UnixMillis(true_wall(world.now()).0.saturating_add_signed(ahead_ms));
    Gtid::new(began_at, [number; 10])
}

/// A branch of a database, as a commit record names it.
#[must_use]
pub fn named(number: u64, resource: ResourceId) -> NamedBranch {
    NamedBranch {
        call: CallId(number),
        execution: ExecutionId(number + 1_000),
        resource,
        digest: 0,
        database_transaction: Bytes::new(),
    }
}

/// The branch's full id.
#[must_use]
pub fn branch(gtid: Gtid, named: &NamedBranch) -> BranchId {
    BranchId {
        gtid,
        call: named.call,
        execution: named.execution,
    }
}

/// A commit of these branches, with a deadline three seconds after begin.
#[must_use]
pub fn commit(world: &World, gtid: Gtid, branches: Vec<NamedBranch>) -> Decide {
    propose(
        world,
        gtid,
        Proposal::Commit {
            branches,
            read_only_count: 0,
        },
    )
}

/// An abort on request.
#[must_use]
pub fn abort(world: &World, gtid: Gtid) -> Decide {
    let cause = AbortCause::new(AbortKind::Requested, "the test");
    propose(
        world,
        gtid,
        Proposal::Abort {
            cause,
            branches: Vec::new(),
        },
    )
}

/// A proposal with a deadline three seconds after begin.
#[must_use]
pub fn propose(world: &World, gtid: Gtid, proposal: Proposal) -> Decide {
    let deadline = gtid.began_at().plus(3_000);
    Decide {
        lineage: lineage(world),
        gtid,
        deadline,
        proposal,
        guards: Vec::new(),
    }
}

/// Prepares a branch in its database, as the participant would have done.
pub fn prepare(world: &mut World, gtid: Gtid, named: &NamedBranch) {
    let lineage = lineage(world);
    world.databases.prepare(
        named.resource,
        branch(gtid, named),
        lineage,
        gtid.began_at().plus(3_000),
    );
}
