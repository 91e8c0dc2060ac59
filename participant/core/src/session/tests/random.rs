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
        6 => (1..6u64).prop_map(|request| {
            received(1, Response::Registered { request: RequestId(request), lineage: LINEAGE })
        }),
        6 => (1..6u64).prop_map(|id| Input::Opened { connection: ConnectionId(id) }),
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

/// What the sessions of all cases have done, so that this test cannot pass by doing nothing.
#[derive(Default)]
struct Seen {
    acknowledgement_count: usize,
    connection_count: usize,
    repeated_proposal_count: usize,
}

/// The stream that the session talks on, as a driver knows it.
struct Current {
    connection: ConnectionId,
    registration: RequestId,
}

impl Current {
    /// Most inputs are about the current stream, as they are in the world; the others are late or forged.
    fn place(&self, input: Input) -> Input {
        match input {
            Input::Opened { .. } => Input::Opened {
                connection: self.connection,
            },
            Input::Lost { reason, .. } => Input::Lost {
                connection: self.connection,
                reason,
            },
            Input::Received {
                response: Response::Registered { lineage, .. },
                leader,
                ..
            } => Input::Received {
                connection: self.connection,
                response: Response::Registered {
                    request: self.registration,
                    lineage,
                },
                leader,
            },
            Input::Received { response, leader, .. } => Input::Received {
                connection: self.connection,
                response,
                leader,
            },
            other => other,
        }
    }
}

/// Style 13: the same seed and inputs give the same outputs. T8: an acknowledgement leaves only in the very step in which a
/// store proved the commit that it had been asked for. One finish at a time for each branch. A request's number always carries
/// the same content (T1).
#[test]
fn no_order_of_events_breaks_an_invariant() {
    let event = (0..400u64, input(), prop::bool::weighted(0.85));
    let cases = (prop::collection::vec(event, 1..200), any::<u64>());
    let seen = core::cell::RefCell::new(Seen::default());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&cases, |(events, seed)| run(events, seed, &mut seen.borrow_mut()));
    result.unwrap_or_else(|failure| panic!("{failure}"));
    let Seen {
        acknowledgement_count,
        connection_count,
        repeated_proposal_count,
    } = seen.into_inner();
    assert!(
        acknowledgement_count > 30,
        "{acknowledgement_count} acknowledgements"
    );
    assert!(connection_count > 30, "{connection_count} connections");
    assert!(
        repeated_proposal_count > 10,
        "{repeated_proposal_count} repeated proposals"
    );
}

fn run(events: Vec<(u64, Input, bool)>, seed: u64, seen: &mut Seen) -> Result<(), TestCaseError> {
    let config = Config {
        unknown_patience: Duration::from_millis(100),
        ..Config::new(addresses())
    };
    let (mut one, mut two) = (Session::new(config.clone(), seed), Session::new(config, seed));
    let mut now_ms = 0;
    let mut in_flight: BTreeMap<BranchId, Outcome> = BTreeMap::new();
    let mut commands: BTreeMap<RequestId, Bytes> = BTreeMap::new();
    let mut current = Current {
        connection: ConnectionId(0),
        registration: RequestId(0),
    };
    let attach = (0, Input::Attach { resource: RESOURCE }, true);
    for (delay_ms, input, is_placed) in core::iter::once(attach).chain(events) {
        now_ms += delay_ms;
        let input = if is_placed { current.place(input) } else { input };
        // A driver answers only what it was asked.
        let input = match input {
            Input::Finished { finished, .. } => {
                let Some((branch, outcome)) = in_flight.pop_first() else {
                    continue;
                };
                Input::Finished {
                    branch,
                    outcome,
                    finished,
                }
            }
            other => other,
        };
        let effects = one.step(at(now_ms), input.clone());
        prop_assert_eq!(&effects, &two.step(at(now_ms), input.clone()));
        for effect in effects {
            match effect {
                Effect::Connect { connection, .. } => {
                    seen.connection_count += 1;
                    prop_assert!(
                        connection > current.connection,
                        "a connection's number was used twice"
                    );
                    current.connection = connection;
                }
                Effect::Send(Request::Register { request, .. }) => current.registration = request,
                Effect::Finish { branch, outcome, .. } => {
                    prop_assert!(
                        in_flight.insert(branch, outcome).is_none(),
                        "two at a time for {}",
                        branch
                    );
                }
                Effect::Send(Request::Acknowledge {
                    branch: acknowledged, ..
                }) => {
                    seen.acknowledgement_count += 1;
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
                    if let Some(first) = commands.get(&request) {
                        seen.repeated_proposal_count += 1;
                        prop_assert_eq!(first, &command);
                    }
                    commands.insert(request, command);
                }
                _ => {}
            }
        }
        if let Some(next) = one.next_timeout() {
            prop_assert!(next > at(now_ms).monotonic, "a timer is left behind");
        }
    }
    Ok(())
}
