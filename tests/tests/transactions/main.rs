//! What the coordinator answers, and when, over a whole cluster: the rules T5 to T16 that a single replica cannot show.

mod delivery;
mod record;
mod refusals;
mod time;

use synod_proto::command::{Decide, NamedBranch};
use synod_proto::ids::{Gtid, ResourceId};
use synod_proto::session::{Answer, Decision, Refusal, Request, Response, TransactionStatus};
use synod_tests::run::resource;
use synod_tests::script::{Desk, branch, lineage, named, prepare, settled};
use synod_tests::world::{Setup, World};

pub(crate) fn stage(seed: u64) -> (World, Desk) {
    let (mut world, _) = settled(Setup::scripted(seed, 3), 2).expect("settles");
    let desk = Desk::at_leader(&mut world);
    (world, desk)
}

pub(crate) fn decide(world: &mut World, desk: &mut Desk, proposal: &Decide) -> Decision {
    match desk.decide(world, proposal).expect("an answer") {
        Response::Decided { decision, .. } => decision,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn refusal(world: &mut World, desk: &mut Desk, proposal: &Decide) -> Refusal {
    match desk.decide(world, proposal).expect("an answer") {
        Response::Refused { refusal, .. } => refusal,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn status(world: &mut World, desk: &mut Desk, gtid: Gtid) -> TransactionStatus {
    match desk
        .ask(world, |request| Request::Outcome { request, gtid })
        .expect("an answer")
    {
        Response::Status { status, .. } => status,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn inquire(world: &mut World, desk: &Desk, gtid: Gtid, named: &NamedBranch) -> Answer {
    let (branch, lineage) = (branch(gtid, named), lineage(world));
    let deadline = gtid.began_at().plus(3_000);
    world.ask(
        desk.session,
        Request::Inquire {
            branch,
            resource: named.resource,
            lineage,
            deadline,
        },
    );
    match desk.wait(world).expect("an answer") {
        Response::Answered { answer, .. } => answer,
        other => panic!("{other:?}"),
    }
}

/// Two prepared branches, one in each participant's database.
pub(crate) fn two_branches(world: &mut World, gtid: Gtid) -> Vec<NamedBranch> {
    let branches = vec![named(1, resource(0)), named(2, resource(1))];
    branches.iter().for_each(|one| prepare(world, gtid, one));
    branches
}

pub(crate) fn is_invalid(refusal: &Refusal, part: &str) -> bool {
    matches!(refusal, Refusal::Invalid { text } if text.contains(part))
}

/// The test's own session registers a database that never acknowledges.
pub(crate) fn register_silent(world: &mut World, desk: &mut Desk) -> ResourceId {
    let silent = resource(99);
    let answer = desk
        .ask(world, |request| Request::Register {
            request,
            lineage: None,
            resources: vec![silent],
        })
        .expect("an answer");
    assert!(matches!(answer, Response::Registered { .. }), "{answer:?}");
    silent
}
