//! Random inputs: the same seed gives the same outputs, and no order of events breaks an invariant.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use synod_proto::session::Answer;

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![Just(Outcome::Committed), Just(Outcome::Aborted)]
}

fn response() -> impl Strategy<Value = Response> {
    let request = || (1..12u64).prop_map(RequestId);
    let refusal = prop_oneof![
        Just(Refusal::NotLeader { leader: None }),
        Just(Refusal::Overloaded {
            what: "all".to_string()
        }),
        Just(Refusal::ReadOnly {
            text: "disk".to_string()
        }),
    ];
    let answer = prop_oneof![
        Just(Answer::Committed),
        Just(Answer::Aborted),
        Just(Answer::Undecided)
    ];
    prop_oneof![
        request().prop_map(|request| Response::Registered {
            request,
            lineage: LINEAGE
        }),
        request().prop_map(|request| Response::Decided {
            request,
            decision: Decision::Committed
        }),
        (request(), refusal).prop_map(|(request, refusal)| Response::Refused { request, refusal }),
        (0..4u8, answer).prop_map(|(number, answer)| Response::Answered {
            branch: branch(number),
            answer
        }),
        (0..4u8, outcome()).prop_map(|(number, outcome)| Response::Deliver {
            branch: branch(number),
            resource: RESOURCE,
            outcome
        }),
    ]
}

fn input() -> impl Strategy<Value = Input> {
    let finished = prop_oneof![
        Just(Finished::Applied),
        Just(Finished::AlreadyApplied),
        Just(Finished::Unknown {
            detail: "none".to_string()
        }),
        Just(Finished::Failed {
            text: "locked".to_string()
        }),
    ];
    let listed = prop::collection::vec(0..4u8, 0..3).prop_map(|numbers| {
        let (lineage, prepared_at) = (LINEAGE, UnixMillis(WALL_AT_START));
        let deadline = UnixMillis(WALL_AT_START + 30_000);
        let branches = numbers.into_iter();
        branches
            .map(|number| ListedBranch {
                branch: branch(number),
                lineage,
                deadline,
                prepared_at,
            })
            .collect()
    });
    prop_oneof![
        2 => Just(Input::Tick),
        2 => (1..6u64).prop_map(|id| Input::Opened { connection: ConnectionId(id) }),
        1 => (1..6u64).prop_map(|id| Input::Lost { connection: ConnectionId(id), reason: "broken".to_string() }),
        8 => (1..6u64, response()).prop_map(|(id, response)| received(id, response)),
        2 => (0..4u8, 0..50u64).prop_map(|(number, ticket)| Input::Ask {
            ticket: Ticket(ticket),
            question: decide(number),
            patience: Duration::from_secs(3),
        }),
        1 => (0..50u64).prop_map(|ticket| Input::Abandon { ticket: Ticket(ticket) }),
        1 => (0..4u8).prop_map(|number| Input::Started { branch: branch(number) }),
        2 => (0..4u8).prop_map(|number| Input::Prepared {
            branch: branch(number),
            resource: RESOURCE,
            lineage: LINEAGE,
            deadline: UnixMillis(WALL_AT_START + 30_000),
        }),
        1 => (0..4u8).prop_map(|number| Input::Ended { branch: branch(number) }),
        1 => listed.prop_map(|branches| Input::Listed { resource: RESOURCE, branches: Some(branches) }),
        6 => (0..4u8, outcome(), finished).prop_map(|(number, outcome, finished)| Input::Finished {
            branch: branch(number),
            outcome,
            finished,
        }),
    ]
}

proptest! {
    /// Style 13: the same seed and inputs give the same outputs. T8: an acknowledgement leaves only in the very step in which
    /// a store proved the commit that it had been asked for. One finish at a time for each branch. A request's number always
    /// carries the same content.
    #[test]
    fn no_order_of_events_breaks_an_invariant(
        inputs in prop::collection::vec((0..2_000u64, input()), 1..120),
        seed: u64,
    ) {
        let config = Config::new(addresses());
        let (mut one, mut two) = (Session::new(config.clone(), seed), Session::new(config, seed));
        let mut now_ms = 0;
        let mut in_flight: BTreeMap<BranchId, Outcome> = BTreeMap::new();
        let mut commands: BTreeMap<RequestId, Bytes> = BTreeMap::new();
        one.step(at(0), Input::Attach { resource: RESOURCE });
        two.step(at(0), Input::Attach { resource: RESOURCE });
        for (delay_ms, input) in inputs {
            now_ms += delay_ms;
            // A driver answers only what it was asked.
            if let Input::Finished { branch, outcome, .. } = &input {
                if in_flight.get(branch) != Some(outcome) {
                    continue;
                }
                in_flight.remove(branch);
            }
            let effects = one.step(at(now_ms), input.clone());
            prop_assert_eq!(&effects, &two.step(at(now_ms), input.clone()));
            for effect in effects {
                match effect {
                    Effect::Finish { branch, outcome, .. } => {
                        prop_assert!(in_flight.insert(branch, outcome).is_none(), "two at a time for {}", branch);
                    }
                    Effect::Send(Request::Acknowledge { branch: acknowledged, .. }) => {
                        let is_proven = matches!(
                            &input,
                            Input::Finished {
                                branch,
                                outcome: Outcome::Committed,
                                finished: Finished::Applied | Finished::AlreadyApplied,
                            } if *branch == acknowledged
                        );
                        prop_assert!(is_proven, "acknowledged by {:?}", input);
                    }
                    Effect::Send(Request::Decide { request, command }) => {
                        let first = commands.entry(request).or_insert_with(|| command.clone());
                        prop_assert_eq!(&*first, &command);
                    }
                    _ => {}
                }
            }
            if let Some(next) = one.next_timeout() {
                prop_assert!(next > at(now_ms).monotonic, "a timer is left behind");
            }
        }
    }
}
