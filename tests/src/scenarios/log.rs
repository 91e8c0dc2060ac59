//! Of the log: records that cannot be read, and directories that are gone.

use crate::actors::initiator::{Habits, Initiator};
use crate::checkers::{Check, Violation, require};
use crate::faults::{Fault, topology};
use crate::run::{converge_after, resource};
use crate::script::{Desk, ELECTION_US, commit, gtid, named, prepare, settled_with};
use crate::store::UnsyncedWrite;
use crate::world::{Setup, World};
use synod_coordinator_core::paxos::Slot;
use synod_coordinator_core::replica::{Config, RoleName};
use synod_proto::command::Decide;
use synod_proto::ids::ReplicaId;
use synod_proto::session::{Decision, Request, Response};

/// How many proposals a leader that is cut off takes: more than the next one has entries before its first commit.
const CUT_OFF_COUNT: u8 = 4;

/// A settled world that has seen a transaction; its leader, and the others.
fn stage(seed: u64) -> Result<(World, ReplicaId, [ReplicaId; 2]), Violation> {
    stage_with(seed, |_| {})
}

/// As [`stage`], with another configuration of the replicas.
fn stage_with(
    seed: u64,
    adapt: impl Fn(&mut Config),
) -> Result<(World, ReplicaId, [ReplicaId; 2]), Violation> {
    let (mut world, participants) = settled_with(Setup::scripted(seed, 3), 2, adapt)?;
    let replicas = world.replicas();
    let leader = world.serving().expect("a settled world has a leader");
    world.add_actor(Initiator::new(replicas.clone(), participants, Habits::single()));
    world.run_for(500_000)?;
    let followers: Vec<ReplicaId> = replicas.into_iter().filter(|one| *one != leader).collect();
    Ok((world, leader, [followers[0], followers[1]]))
}

/// A commit of one branch of the first database, prepared there.
fn one_branch(world: &mut World, number: u8) -> Decide {
    let gtid = gtid(world, number, 0);
    let named = named(u64::from(number), resource(0));
    prepare(world, gtid, &named);
    commit(world, gtid, vec![named])
}

fn expect_committed(world: &mut World, desk: &mut Desk, decide: &Decide) -> Check {
    let answer = desk.decide(world, decide)?;
    let is_committed = matches!(
        &answer,
        Response::Decided {
            decision: Decision::Committed,
            ..
        }
    );
    require(is_committed, || format!("a commit was answered {answer:?}"))
}

/// The machine stops, and the last record of its log rots. Returns its slot.
fn lose_last_record(world: &mut World, id: ReplicaId) -> Result<Slot, Violation> {
    let slots: Vec<Slot> = world.hosts[&id].store.readable().collect();
    let last = slots.last().copied().unwrap_or_default();
    world.on_fault(Fault::Corrupt(id, slots.len() as u64 - 1))?;
    Ok(last)
}

/// With the leader and a record gone, the other two decide nothing in that slot; with the leader back, all is as it was told.
fn expect_waiting(
    world: &mut World,
    [holder, other]: [ReplicaId; 2],
    leader: ReplicaId,
    slot: Slot,
    told: &Decide,
) -> Check {
    world.on_fault(Fault::Mend)?;
    world.on_fault(Fault::Start(holder))?;
    world.run_for(5_000_000)?;
    require(world.serving().is_none(), || {
        "a replica serves without knowing what was decided last".to_string()
    })?;
    for id in [holder, other] {
        let decided_up_to = decided_up_to(world, id);
        require(decided_up_to < Some(slot), || {
            format!("replica {id} has decided up to {decided_up_to:?}, and nobody could know slot {slot}")
        })?;
    }
    world.on_fault(Fault::Start(leader))?;
    converge_after(world, 1_000_000)?;
    let is_there = world.checkers.outcomes.committed_branches(told.gtid).is_some();
    require(is_there, || "what was told is not in the log".to_string())
}

/// L3: the last slot was accepted by the leader and one follower. The leader is gone, the follower's record is rotten, the
/// third never had it: neither a no-op nor anything else may be decided there until the leader is back.
pub(super) fn last_record_lost() -> Check {
    let (mut world, leader, [holder, away]) = stage(6)?;
    world.on_fault(Fault::Topology(topology(&[(leader.0, holder.0)])))?;
    let decide = one_branch(&mut world, 1);
    let mut desk = Desk::open(&mut world, leader);
    expect_committed(&mut world, &mut desk, &decide)?;
    world.on_fault(Fault::Crash(leader, UnsyncedWrite::Kept))?;
    let last = lose_last_record(&mut world, holder)?;
    expect_waiting(&mut world, [holder, away], leader, last, &decide)
}

/// L3: as above, but the third replica led before, was cut off, and holds values of its own in the same slots. Of lower
/// ballots: what it holds is not what was decided.
pub(super) fn lower_value_beside_lost_record() -> Check {
    let (mut world, old, others) = stage(7)?;
    world.on_fault(Fault::Topology(topology(&[(others[0].0, others[1].0)])))?;
    let mut desk = Desk::open(&mut world, old);
    for number in 1..=CUT_OFF_COUNT {
        let decide = one_branch(&mut world, number);
        let request = desk.number();
        let command = decide.encode();
        world.ask(desk.session, Request::Decide { request, command });
        // Each becomes an entry of its own.
        world.run_for(5_000)?;
    }
    let is_elected = |world: &World| world.serving().is_some_and(|one| one != old);
    world.run_while_not(ELECTION_US, "another leader", is_elected)?;
    let leader = world.serving().expect("just seen");
    let holder = if leader == others[0] { others[1] } else { others[0] };
    let decide = one_branch(&mut world, CUT_OFF_COUNT + 1);
    let mut desk = Desk::open(&mut world, leader);
    expect_committed(&mut world, &mut desk, &decide)?;
    world.on_fault(Fault::Crash(leader, UnsyncedWrite::Kept))?;
    let last = lose_last_record(&mut world, holder)?;
    let holds_another = world.hosts[&old].store.record(last).is_some();
    require(holds_another, || {
        format!("the script is out of step: replica {old} has nothing in slot {last}")
    })?;
    expect_waiting(&mut world, [holder, old], leader, last, &decide)
}

/// L10: whoever has lost its directory asks every replica before it votes. Two that have lost theirs would believe each
/// other that they are new, and forget what the third one knows.
pub(super) fn two_directories_wiped() -> Check {
    let (mut world, leader, followers) = stage(8)?;
    let decide = one_branch(&mut world, 1);
    let mut desk = Desk::open(&mut world, leader);
    expect_committed(&mut world, &mut desk, &decide)?;
    world.on_fault(Fault::Crash(leader, UnsyncedWrite::Kept))?;
    for id in followers {
        world.on_fault(Fault::Crash(id, UnsyncedWrite::Kept))?;
    }
    for id in followers {
        world.on_fault(Fault::Wipe(id))?;
    }
    world.run_for(5_000_000)?;
    require(world.serving().is_none(), || {
        "replicas that know nothing serve".to_string()
    })?;
    // The third one alone is no quorum, and the two do not become one by it.
    world.on_fault(Fault::Start(leader))?;
    world.run_for(5_000_000)?;
    require(world.serving().is_none(), || {
        "replicas that have lost their directories count".to_string()
    })
}

fn decided_up_to(world: &World, id: ReplicaId) -> Option<Slot> {
    let replica = world.hosts[&id].replica();
    replica.map(|replica| replica.status().decided_up_to)
}

/// L5: a promise does not report what it calls decided. The leader decides two slots at once, of which one follower knows
/// nothing, and the other not that they are decided; then it resigns, and promises the first of the two its votes. What that one
/// is behind it has to read from the leader's disk, which takes longer than the promise.
pub(super) fn candidate_behind_its_promises() -> Check {
    let (mut world, leader, [holder, behind]) = stage_with(9, |config| config.limits.retained_bytes_max = 1)?;
    world.on_fault(Fault::Cut(leader, behind))?;
    let before = decided_up_to(&world, leader).unwrap_or_default();
    let mut desk = Desk::open(&mut world, leader);
    let told = [1, 2].map(|number| one_branch(&mut world, number));
    for decide in &told {
        let (request, command) = (desk.number(), decide.encode());
        world.ask(desk.session, Request::Decide { request, command });
        // Each becomes an entry of its own, and the second one leaves before the first is decided.
        world.run_for(100)?;
    }
    let last = Slot(before.0 + 2);
    let is_decided = |world: &World| decided_up_to(world, leader) >= Some(last);
    world.run_while_not(ELECTION_US, "both are decided", is_decided)?;
    let links = topology(&[(leader.0, behind.0)]);
    world.on_fault(Fault::Topology(links))?;
    world.on_fault(Fault::Drain(leader))?;
    let of_others = [holder, behind].map(|id| decided_up_to(&world, id));
    require(of_others == [Some(before); 2], || {
        format!(
            "the script is out of step: the others have decided up to {of_others:?}, before that {before}"
        )
    })?;
    world.run_for(5_000_000)?;
    let role = world.hosts[&behind]
        .replica()
        .map(|replica| replica.status().role);
    require(
        matches!(role, Some(RoleName::Leading | RoleName::Serving)),
        || format!("the script is out of step: replica {behind} is {role:?}"),
    )?;
    converge_after(&mut world, 1_000_000)?;
    let is_there = |decide: &Decide| world.checkers.outcomes.committed_branches(decide.gtid).is_some();
    require(told.iter().all(is_there), || {
        "what was told is not in the log".to_string()
    })
}
