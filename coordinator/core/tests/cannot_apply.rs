//! A replica that decides what its program cannot read (traps A8): "accepting but not applying" is loud, and nobody is led
//! or served by it.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use synod_coordinator_core::durable::{Meta, Recovered};
use synod_coordinator_core::effects::{Effects, GroupCommit, Notice, Told, Unsynced};
use synod_coordinator_core::paxos::{Accepted, Ballot, Slot};
use synod_coordinator_core::replica::{Config, Input, Replica, RoleName};
use synod_coordinator_core::time::{Now, Timestamp};
use synod_proto::ids::{Gtid, Incarnation, ProcessNonce, ReplicaId, RequestId, SessionId, UnixMillis};
use synod_proto::session::{Refusal, Request, Response};

const ALONE: ReplicaId = ReplicaId(1);

fn at(ms: u64) -> Now {
    Now {
        monotonic: Timestamp(ms * 1_000),
        wall: UnixMillis(1_767_225_600_000 + ms),
    }
}

/// Syncs what the effects ask for and hands the replica its own messages, until nothing is left.
fn settle(
    replica: &mut Replica,
    group: &mut GroupCommit,
    now: Now,
    first: Effects<Unsynced>,
) -> (Vec<Notice>, Vec<Told>) {
    let (mut notices, mut told) = (Vec::new(), Vec::new());
    let mut next = Some(first);
    while let Some(mut effects) = next.take() {
        notices.extend(effects.take_notices());
        told.extend(effects.take_told());
        let mut ready: Vec<_> = group.push(effects).into_iter().collect();
        while group.next_write().is_some() {
            ready.extend(group.on_synced());
        }
        let gated = ready.into_iter().flat_map(Effects::into_gated);
        let own: Vec<Input> = gated.filter(|one| one.to == ALONE).map(Input::Envelope).collect();
        if !own.is_empty() {
            next = Some(replica.step_many(now, own));
        }
    }
    (notices, told)
}

/// A8: the value was accepted, not decided, when a newer program led; this one is elected, has to propose it again, and finds
/// at the decision that it cannot read it. It steps down before it has served anybody, says why, and never stands again.
#[test]
fn a8_a_leader_that_cannot_apply_steps_down_and_serves_nobody() {
    let ballot = Ballot {
        round: 1,
        replica: ALONE,
        start: 1,
    };
    let unreadable_here = Bytes::from_static(&[200, 1, 2]);
    let meta = Meta {
        promised: ballot,
        start: 1,
        accepted_up_to: Slot(1),
        ..Meta::default()
    };
    let recovered = Recovered {
        meta,
        readable: BTreeMap::from([(Slot(1), ballot)]),
        ..Recovered::default()
    };
    let config = Config::new(ALONE, BTreeSet::from([ALONE]), Incarnation([1; 16]));
    let mut replica = Replica::new(config, recovered, ProcessNonce(7), 7);
    replica.load(Accepted {
        slot: Slot(1),
        ballot,
        value: unreadable_here,
    });
    let mut group = GroupCommit::default();
    let started = replica.start(at(0));
    settle(&mut replica, &mut group, at(0), started);

    let elected = replica.step(at(600), Input::Tick);
    let (notices, _) = settle(&mut replica, &mut group, at(600), elected);
    let reason = "a decided entry cannot be applied";
    assert!(
        matches!(
            &notices[..],
            [Notice::CannotApply { slot: Slot(1), .. }, Notice::SteppedDown { reason: found }] if *found == reason
        ),
        "{notices:?}"
    );

    for second in 1..10 {
        let now = at(second * 1_000);
        let question = Input::Request {
            session: SessionId(1),
            request: Request::Outcome {
                request: RequestId(second),
                gtid: Gtid::new(now.wall, [1; 10]),
            },
        };
        let asked = replica.step_many(now, [question, Input::Tick]);
        let (notices, told) = settle(&mut replica, &mut group, now, asked);
        let refused = Told {
            session: SessionId(1),
            response: Response::Refused {
                request: RequestId(second),
                refusal: Refusal::NotLeader { leader: None },
            },
        };
        assert_eq!((notices, told), (vec![], vec![refused]));
        let status = replica.status();
        assert_eq!(
            (status.role, status.decided_up_to, status.applied_up_to),
            (RoleName::Follower, Slot(1), Slot::ZERO),
            "the lag shows in the status"
        );
        assert!(status.failure.is_some(), "and so does its cause");
    }
}
