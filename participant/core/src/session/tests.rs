//! The session: set up, one step, compare the whole output.

use super::*;
use alloc::string::ToString;
use alloc::vec;
use bytes::Bytes;
use core::time::Duration;
use synod_proto::ids::{CallId, ExecutionId, ReplicaId};
use synod_proto::session::{AbortCause, AbortKind, Decision, Outcome, Refusal};

mod branches;
mod questions;
mod random;

pub(super) const LINEAGE: Lineage = Lineage([1; 16]);
pub(super) const RESOURCE: ResourceId = ResourceId([2; 16]);
pub(super) const WALL_AT_START: u64 = 1_000_000;
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// `ms` after the start, on both clocks.
pub(super) fn at(ms: u64) -> Now {
    Now {
        monotonic: Timestamp(ms * 1000),
        wall: UnixMillis(WALL_AT_START + ms),
    }
}

pub(super) fn gtid(number: u8) -> Gtid {
    Gtid::new(UnixMillis(WALL_AT_START + u64::from(number)), [number; 10])
}

pub(super) fn branch(number: u8) -> BranchId {
    BranchId {
        gtid: gtid(number),
        call: CallId(u64::from(number)),
        execution: ExecutionId(100),
    }
}

pub(super) fn addresses() -> Vec<String> {
    vec![
        "http://a:1".to_string(),
        "http://b:1".to_string(),
        "http://c:1".to_string(),
    ]
}

pub(super) fn session() -> Session {
    Session::new(Config::new(addresses()), 42)
}

pub(super) fn received(connection: u64, response: Response) -> Input {
    Input::Received {
        connection: ConnectionId(connection),
        response,
        leader: None,
    }
}

pub(super) fn redirect(connection: u64, request: u64, leader: Option<&str>) -> Input {
    let refusal = Refusal::NotLeader {
        leader: leader.map(|_| ReplicaId(2)),
    };
    let response = Response::Refused {
        request: RequestId(request),
        refusal,
    };
    Input::Received {
        connection: ConnectionId(connection),
        response,
        leader: leader.map(str::to_string),
    }
}

pub(super) fn lost(address: &str, reason: &str) -> Effect {
    Effect::Notice(Notice::Lost {
        address: address.to_string(),
        reason: reason.to_string(),
    })
}

pub(super) fn connect(connection: u64, address: &str) -> Effect {
    Effect::Connect {
        connection: ConnectionId(connection),
        address: address.to_string(),
    }
}

/// Opens and registers this connection, which the session has asked for; returns what was sent besides.
pub(super) fn register(session: &mut Session, now: Now, connection: u64) -> Vec<Effect> {
    let effects = session.step(
        now,
        Input::Opened {
            connection: ConnectionId(connection),
        },
    );
    let [Effect::Send(Request::Register { request, .. })] = effects[..] else {
        panic!("{effects:?}")
    };
    let mut effects = session.step(
        now,
        received(
            connection,
            Response::Registered {
                request,
                lineage: LINEAGE,
            },
        ),
    );
    assert_eq!(effects.remove(0), Effect::Ready(LINEAGE));
    effects
}

/// A session that is registered with the first address on connection 1, and serves [`RESOURCE`], which lists nothing.
pub(super) fn serving() -> Session {
    let mut session = session();
    session.step(at(0), Input::Attach { resource: RESOURCE });
    session.step(
        at(0),
        Input::Listed {
            resource: RESOURCE,
            branches: Some(vec![]),
        },
    );
    register(&mut session, at(0), 1);
    session
}

/// Steps the session at every timeout up to `until_ms`, answering listings with nothing; returns everything else.
pub(super) fn run_until(session: &mut Session, until_ms: u64) -> Vec<(u64, Effect)> {
    let mut seen = Vec::new();
    while let Some(next) = session.next_timeout().filter(|next| next.0 <= until_ms * 1000) {
        let now = Now {
            monotonic: next,
            wall: UnixMillis(WALL_AT_START + next.0 / 1000),
        };
        for effect in session.step(now, Input::Tick) {
            if let Effect::List { resource } = effect {
                assert_eq!(
                    session.step(
                        now,
                        Input::Listed {
                            resource,
                            branches: Some(vec![])
                        }
                    ),
                    vec![]
                );
            } else {
                seen.push((next.0 / 1000, effect));
            }
        }
    }
    seen
}

pub(super) fn lose(session: &mut Session, now: Now, connection: u64) -> Vec<Effect> {
    session.step(
        now,
        Input::Lost {
            connection: ConnectionId(connection),
            reason: "broken".to_string(),
        },
    )
}

// ---- the link ----

#[test]
fn a_session_connects_registers_and_learns_the_lineage() {
    let mut session = session();
    assert_eq!(session.next_timeout(), Some(Timestamp(0)));
    assert_eq!(session.step(at(0), Input::Tick), vec![connect(1, "http://a:1")]);
    let register = Request::Register {
        request: RequestId(1),
        lineage: None,
        resources: vec![],
    };
    assert_eq!(
        session.step(
            at(1),
            Input::Opened {
                connection: ConnectionId(1)
            }
        ),
        vec![Effect::Send(register)]
    );
    let registered = Response::Registered {
        request: RequestId(1),
        lineage: LINEAGE,
    };
    assert_eq!(
        session.step(at(2), received(1, registered)),
        vec![Effect::Ready(LINEAGE)]
    );
    assert_eq!(session.lineage(), Some(LINEAGE));
    assert_eq!(session.next_timeout(), None);
}

/// Design, section 3: followers answer with the leader's address, and it is followed at once.
#[test]
fn a_redirect_is_followed_at_once() {
    let mut session = session();
    session.step(at(0), Input::Tick);
    session.step(
        at(1),
        Input::Opened {
            connection: ConnectionId(1),
        },
    );
    assert_eq!(
        session.step(at(2), redirect(1, 1, Some("d:9"))),
        vec![
            Effect::Disconnect {
                connection: ConnectionId(1)
            },
            lost("http://a:1", "the replica does not lead"),
            connect(2, "http://d:9"),
        ]
    );
}

/// B19: replicas that do not know the leader, or send a client in circles, are asked in turn, with growing delays.
#[test]
fn circles_of_redirects_are_slowed_down() {
    let mut session = session();
    session.step(at(0), Input::Tick);
    let mut immediate_count = 0;
    for connection in 1..=4 {
        let now = at(connection);
        session.step(
            now,
            Input::Opened {
                connection: ConnectionId(connection),
            },
        );
        let address = if connection % 2 == 0 { "x:1" } else { "y:1" };
        let effects = session.step(now, redirect(connection, connection, Some(address)));
        immediate_count += usize::from(matches!(effects.last(), Some(Effect::Connect { .. })));
    }
    assert_eq!(immediate_count, 3);

    // Without a hint: every address in turn, and the delays grow up to their cap.
    let mut session = self::session();
    let mut tried = Vec::new();
    let mut delays = Vec::new();
    let mut now = Timestamp(0);
    for attempt in 1..=12u64 {
        let step_at = Now {
            monotonic: now,
            wall: UnixMillis(0),
        };
        let effects = session.step(step_at, Input::Tick);
        let [Effect::Connect { address, .. }] = &effects[..] else {
            panic!("{effects:?}")
        };
        tried.push(address.clone());
        lose(&mut session, step_at, attempt);
        let next = session.next_timeout().unwrap();
        delays.push(next.duration_since(now));
        now = next;
    }
    assert_eq!(tried[..4], [&addresses()[..], &addresses()[..1]].concat());
    let cap = Config::new(vec![]).connect_backoff_max;
    assert!(delays[0] <= Duration::from_millis(10), "{delays:?}");
    assert!(
        delays[8..].iter().all(|delay| *delay >= cap / 2 && *delay <= cap),
        "{delays:?}"
    );
}

/// T11: a replica of another coordinator behind a known address is refused, and what it delivers is not heard.
#[test]
fn a_foreign_coordinator_is_refused() {
    let mut session = serving();
    lose(&mut session, at(10), 1);
    let connecting = run_until(&mut session, 30);
    assert_eq!(
        connecting.last().map(|(_, effect)| effect),
        Some(&connect(2, "http://b:1"))
    );
    session.step(
        at(30),
        Input::Opened {
            connection: ConnectionId(2),
        },
    );
    let deliver = Response::Deliver {
        branch: branch(1),
        resource: RESOURCE,
        outcome: Outcome::Committed,
    };
    assert_eq!(
        session.step(at(30), received(2, deliver)),
        vec![Effect::Ignored(Ignored::StaleConnection)]
    );

    let other = Lineage([9; 16]);
    let registered = Response::Registered {
        request: RequestId(2),
        lineage: other,
    };
    assert_eq!(
        session.step(at(31), received(2, registered)),
        vec![
            Effect::Notice(Notice::ForeignCoordinator {
                address: "http://b:1".to_string(),
                expected: LINEAGE,
                found: other
            }),
            Effect::Disconnect {
                connection: ConnectionId(2)
            },
            lost(
                "http://b:1",
                &alloc::format!("the replica belongs to coordinator {other}")
            ),
        ]
    );
    assert_eq!(session.lineage(), Some(LINEAGE));
}

#[test]
fn every_database_is_registered_again_on_every_stream() {
    let mut session = serving();
    let second = ResourceId([3; 16]);
    let register = Request::Register {
        request: RequestId(2),
        lineage: Some(LINEAGE),
        resources: vec![second],
    };
    assert_eq!(
        session.step(at(5), Input::Attach { resource: second }),
        vec![Effect::List { resource: second }, Effect::Send(register)]
    );
    let registered = Response::Registered {
        request: RequestId(2),
        lineage: LINEAGE,
    };
    let registered_second = Effect::Registered { resource: second };
    assert_eq!(
        session.step(at(6), received(1, registered)),
        vec![registered_second.clone()]
    );
    assert_eq!(
        session.step(at(6), Input::Attach { resource: second }),
        vec![Effect::Ignored(Ignored::SameResource), registered_second]
    );

    lose(&mut session, at(10), 1);
    run_until(&mut session, 30);
    let resources = vec![RESOURCE, second];
    let register = Request::Register {
        request: RequestId(3),
        lineage: Some(LINEAGE),
        resources,
    };
    assert_eq!(
        session.step(
            at(30),
            Input::Opened {
                connection: ConnectionId(2)
            }
        ),
        vec![Effect::Send(register)]
    );
}

#[test]
fn a_replica_that_does_not_register_in_time_is_given_up() {
    let mut session = session();
    session.step(at(0), Input::Tick);
    session.step(
        at(1),
        Input::Opened {
            connection: ConnectionId(1),
        },
    );
    let seen = run_until(&mut session, 2_000);
    assert_eq!(
        seen,
        vec![
            (
                2_000,
                Effect::Disconnect {
                    connection: ConnectionId(1)
                }
            ),
            (
                2_000,
                lost("http://a:1", "the replica did not register the session in time")
            ),
        ]
    );
}

pub(super) fn aborted() -> Decision {
    Decision::Aborted(AbortCause::new(AbortKind::Requested, "no"))
}

pub(super) fn decide(number: u8) -> Question {
    Question::Decide {
        gtid: gtid(number),
        command: Bytes::from(vec![number]),
    }
}

pub(super) fn ask(session: &mut Session, now: Now, ticket: u64, question: Question) -> Vec<Effect> {
    session.step(
        now,
        Input::Ask {
            ticket: Ticket(ticket),
            question,
            patience: PATIENCE,
        },
    )
}

pub(super) fn reply(ticket: u64, reply: Reply) -> Effect {
    Effect::Reply {
        ticket: Ticket(ticket),
        reply,
    }
}

/// B20: a database that the coordinator does not take concerns nobody else; it is offered again, by itself.
#[test]
fn a_refused_database_does_not_keep_the_others_out() {
    let mut session = serving();
    let second = ResourceId([3; 16]);
    session.step(at(5), Input::Attach { resource: second });
    let refusal = Refusal::Overloaded {
        what: "enrolled databases".to_string(),
    };
    let refused = |request| Response::Refused {
        request: RequestId(request),
        refusal: refusal.clone(),
    };
    let told = Effect::RegistrationRefused {
        resource: second,
        refusal: refusal.clone(),
    };
    assert_eq!(session.step(at(6), received(1, refused(2))), vec![told]);

    let offer = |request, resource| {
        let (request, resources) = (RequestId(request), vec![resource]);
        Effect::Send(Request::Register {
            request,
            lineage: Some(LINEAGE),
            resources,
        })
    };
    session.step(
        at(6),
        Input::Listed {
            resource: second,
            branches: Some(vec![]),
        },
    );
    assert_eq!(
        run_until(&mut session, 6_000)
            .into_iter()
            .map(|(_, effect)| effect)
            .next(),
        Some(offer(3, second))
    );

    lose(&mut session, at(6_001), 1);
    run_until(&mut session, 6_020);
    let opened = session.step(
        at(6_020),
        Input::Opened {
            connection: ConnectionId(2),
        },
    );
    assert_eq!(opened, vec![offer(4, RESOURCE)]);
    let registered = Response::Registered {
        request: RequestId(4),
        lineage: LINEAGE,
    };
    assert_eq!(
        session.step(at(6_021), received(2, registered)),
        vec![Effect::Ready(LINEAGE), offer(5, second)]
    );
}
