//! Of the outcome register: what is asked for late.

use crate::checkers::{Check, Violation, require};
use crate::run::converge_after;
use crate::script::{Desk, abort, branch, commit, gtid, lineage, named, prepare, settled};
use crate::world::{Setup, World};
use synod_proto::ids::ResourceId;
use synod_proto::limits::WATERMARK_LAG_MS_DEFAULT;
use synod_proto::session::{Answer, Decision, Outcome, Request, Response};

/// Of a service that sleeps.
const SLEEPER: ResourceId = ResourceId([0x51; 16]);

/// A session in which the sleeper's database is registered.
fn registered(world: &mut World) -> Result<Desk, Violation> {
    let lineage = lineage(world);
    let mut desk = Desk::at_leader(world);
    let answer = desk.ask(world, |request| Request::Register {
        request,
        lineage: Some(lineage),
        resources: vec![SLEEPER],
    })?;
    require(matches!(answer, Response::Registered { .. }), || {
        format!("a service that registers was answered {answer:?}")
    })?;
    Ok(desk)
}

/// T9: a commit with an unacknowledged branch is kept for ever, and the record is looked up before the mark. The branch
/// sleeps until the watermark has passed its transaction, and is told Committed all the same.
pub(super) fn branch_sleeps_past_watermark() -> Check {
    let (mut world, _) = settled(Setup::scripted(31, 3), 1)?;
    let mut desk = registered(&mut world)?;
    let gtid = self::gtid(&world, 1, 0);
    let named = named(1, SLEEPER);
    prepare(&mut world, gtid, &named);
    let decide = commit(&world, gtid, vec![named.clone()]);
    let answer = desk.decide(&mut world, &decide)?;
    let is_committed = matches!(
        &answer,
        Response::Decided {
            decision: Decision::Committed,
            ..
        } | Response::Deliver { .. }
    );
    require(is_committed, || format!("a commit was answered {answer:?}"))?;
    // A later one, which is over at once: for its sake the watermark moves.
    world.run_for(10_000)?;
    let over = self::gtid(&world, 2, 0);
    let mut other = Desk::at_leader(&mut world);
    let abort = abort(&world, over);
    other.decide(&mut world, &abort)?;
    world.close_session(desk.session);
    world.run_for((WATERMARK_LAG_MS_DEFAULT + 30_000) * 1_000)?;
    let is_passed = world.checkers.log.reference().mark() > gtid.began_at();
    require(is_passed, || {
        "the script is out of step: the watermark has not passed".to_string()
    })?;

    let desk = registered(&mut world)?;
    let branch = branch(gtid, &named);
    let lineage = lineage(&world);
    let inquiry = Request::Inquire {
        branch,
        resource: SLEEPER,
        lineage,
        deadline: decide.deadline,
    };
    world.ask(desk.session, inquiry);
    world.run_for(500_000)?;
    let told = world.take_responses(desk.session);
    let is_answered = told.iter().any(|one| {
        matches!(one, Response::Answered { branch: asked, answer: Answer::Committed } if *asked == branch)
    });
    let is_delivered = told
        .iter()
        .any(|one| matches!(one, Response::Deliver { branch: of, .. } if *of == branch));
    require(is_answered && is_delivered, || {
        format!("a branch that comes back after the watermark was told {told:?}")
    })?;
    world.databases.finish(SLEEPER, branch, Outcome::Committed);
    let resource = SLEEPER;
    world.ask(desk.session, Request::Acknowledge { branch, resource });
    converge_after(&mut world, 1_000_000)
}
