//! What is refused: by name, at once, and without a trace in the log (T11, T14; trap A20).

use crate::{decide, is_invalid, refusal, stage};
use bytes::Bytes;
use synod_proto::command::{Decide, Guard, Proposal};
use synod_proto::ids::Lineage;
use synod_proto::session::{Decision, Refusal, Request, Response};
use synod_tests::run::resource;
use synod_tests::script::{Desk, abort, commit, gtid, lineage, named, propose, settled_with};
use synod_tests::world::Setup;

/// T11, T14 and the bounds of a proposal: each gets its own refusal, and nothing enters the log.
#[test]
fn what_breaks_a_rule_is_refused_by_name_and_leaves_no_trace() {
    let (mut world, mut desk) = stage(5);
    let ours = gtid(&world, 1, 0);
    let good = commit(&world, ours, vec![named(1, resource(0))]);
    let slots = world.checkers.log.decided_up_to();

    let foreign = Decide {
        lineage: Lineage([7; 16]),
        ..good.clone()
    };
    let expected = lineage(&world);
    assert_eq!(
        refusal(&mut world, &mut desk, &foreign),
        Refusal::ForeignLineage { expected }
    );

    let guarded = Decide {
        guards: vec![Guard {
            name: Bytes::from_static(b"lock"),
            token: 1,
        }],
        ..good.clone()
    };
    assert!(is_invalid(&refusal(&mut world, &mut desk, &guarded), "guards"));

    let unknown = Decide {
        proposal: commit(&world, ours, vec![named(1, resource(50))]).proposal,
        ..good.clone()
    };
    assert!(is_invalid(
        &refusal(&mut world, &mut desk, &unknown),
        "never registered"
    ));

    let empty = commit(&world, ours, vec![]);
    assert!(is_invalid(
        &refusal(&mut world, &mut desk, &empty),
        "at least one branch"
    ));

    let endless = Decide {
        deadline: ours.began_at().plus(300_001),
        ..good.clone()
    };
    assert!(is_invalid(&refusal(&mut world, &mut desk, &endless), "deadline"));

    let future = gtid(&world, 2, 11_000);
    let early = commit(&world, future, vec![named(1, resource(0))]);
    assert!(matches!(
        refusal(&mut world, &mut desk, &early),
        Refusal::FromFuture {
            ahead_ms: 10_900..=11_000
        }
    ));

    let answer = desk.ask(&mut world, |request| Request::Decide {
        request,
        command: Bytes::from_static(b"\x02"),
    });
    assert!(matches!(answer, Ok(Response::Refused { refusal, .. }) if is_invalid(&refusal, "malformed")));

    let answer = desk.ask(&mut world, |request| Request::Register {
        request,
        lineage: Some(Lineage([7; 16])),
        resources: vec![resource(0)],
    });
    assert!(
        matches!(
            answer,
            Ok(Response::Refused {
                refusal: Refusal::ForeignLineage { .. },
                ..
            })
        ),
        "{answer:?}"
    );
    assert_eq!(
        world.checkers.log.decided_up_to(),
        slots,
        "nothing entered the log"
    );

    // T5: a commit of read-only votes alone is logged, with their count.
    let read_only = propose(
        &world,
        ours,
        Proposal::Commit {
            branches: vec![],
            read_only_count: 2,
        },
    );
    assert_eq!(decide(&mut world, &mut desk, &read_only), Decision::Committed);
}

/// T14: bounded by count. What is known is still answered, what is new is refused, and nothing of it is lost.
#[test]
fn t14_a_full_register_refuses_new_gtids_as_overloaded() {
    let adapt = |config: &mut synod_coordinator_core::replica::Config| config.limits.register_count_max = 3;
    let (mut world, _) = settled_with(Setup::scripted(6, 3), 1, adapt).expect("settles");
    let mut desk = Desk::at_leader(&mut world);
    let proposals: Vec<Decide> = (1..=4)
        .map(|number| abort(&world, gtid(&world, number, 0)))
        .collect();
    for proposal in &proposals[..3] {
        assert!(matches!(
            decide(&mut world, &mut desk, proposal),
            Decision::Aborted(_)
        ));
    }
    assert!(matches!(
        refusal(&mut world, &mut desk, &proposals[3]),
        Refusal::Overloaded { .. }
    ));
    assert!(matches!(
        decide(&mut world, &mut desk, &proposals[0]),
        Decision::Aborted(_)
    ));
}

/// A20: a queue of one, a pipeline of one: the third at a time is told so, at once.
#[test]
fn a_full_queue_refuses_as_overloaded() {
    let adapt = |config: &mut synod_coordinator_core::replica::Config| {
        config.limits.queue_count_max = 1;
        config.limits.pipeline_depth = 1;
    };
    let (mut world, _) = settled_with(Setup::scripted(7, 3), 1, adapt).expect("settles");
    let mut desk = Desk::at_leader(&mut world);
    for number in 1..=3 {
        let command = abort(&world, gtid(&world, number, 0)).encode();
        let request = desk.number();
        world.ask(desk.session, Request::Decide { request, command });
    }
    world.run_for(100_000).expect("nothing is wrong");
    let answers = world.take_responses(desk.session);
    let refused = answers.iter().filter(|one| {
        matches!(
            one,
            Response::Refused {
                refusal: Refusal::Overloaded { .. },
                ..
            }
        )
    });
    assert_eq!((answers.len(), refused.count()), (3, 2), "{answers:?}");
}
