//! The driver over real streams, against a coordinator that each test plays itself: `fake.rs` hands it every stream.

mod fake;

use super::handle::{DecideError, SessionError, SessionHandle, SessionOptions};
use crate::resource::{BranchContext, LowWater};
use fake::{Fake, LINEAGE, RESOURCE, Store, branch, decide, gtid, within};
use std::sync::Arc;
use std::time::Duration;
use synod_participant_core::session::{Config, Finished, ListedBranch};
use synod_proto::environment::{Connector, WallClock};
use synod_proto::ids::{BranchId, ExecutionId, RequestId, UnixMillis};
use synod_proto::session::{
    AbortCause, AbortKind, Answer, Decision, Outcome, Refusal, Request, Response, TransactionStatus,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn config(addresses: &[&str]) -> Config {
    let addresses = addresses
        .iter()
        .map(|address| format!("http://{address}"))
        .collect();
    Config {
        finish_backoff: Duration::from_millis(10),
        ..Config::new(addresses)
    }
}

fn options(decide_timeout: Duration) -> SessionOptions {
    SessionOptions {
        decide_timeout,
        clock: WallClock::system(),
        connector: Connector::tcp(),
    }
}

fn start(addresses: &[&str]) -> SessionHandle {
    SessionHandle::start_with(config(addresses), options(PATIENCE)).expect("a session starts")
}

fn committed(request: RequestId) -> Response {
    Response::Decided {
        request,
        decision: Decision::Committed,
    }
}

fn deliver(branch: BranchId, outcome: Outcome) -> Response {
    Response::Deliver {
        branch,
        resource: RESOURCE,
        outcome,
    }
}

fn acknowledge(branch: BranchId) -> Request {
    Request::Acknowledge {
        branch,
        resource: RESOURCE,
    }
}

fn context(branch: BranchId) -> BranchContext {
    BranchContext {
        branch,
        lineage: LINEAGE,
        deadline: UnixMillis(u64::MAX),
    }
}

/// Starts a session, plays its registration, and attaches the store.
async fn serving(fake: &mut Fake, store: &Arc<Store>) -> (SessionHandle, fake::Stream) {
    let session = start(&[&fake.address]);
    let mut stream = fake.stream().await;
    assert_eq!(stream.register().await, (None, vec![]));
    within(session.ready(PATIENCE)).await.expect("registered");
    let (attached, registration) = tokio::join!(session.add_resource(store.clone()), stream.register());
    assert_eq!(
        (attached, registration),
        (Ok(RESOURCE), (Some(LINEAGE), vec![RESOURCE]))
    );
    (session, stream)
}

#[tokio::test]
async fn a_decision_comes_back_to_its_caller() {
    let mut fake = Fake::start().await;
    let session = start(&[&fake.address]);
    let mut stream = fake.stream().await;
    stream.register().await;
    assert_eq!(within(session.ready(PATIENCE)).await, Ok(LINEAGE));
    assert_eq!(session.lineage(), Some(LINEAGE));

    let deciding = tokio::spawn({
        let session = session.clone();
        async move { session.decide(decide(1)).await }
    });
    let Request::Decide { request, command } = stream.request().await else {
        panic!("not a proposal")
    };
    assert_eq!(command, decide(1).encode());
    stream.say(committed(request)).await;
    assert_eq!(within(deciding).await.unwrap(), Ok(Decision::Committed));

    let asking = tokio::spawn({
        let session = session.clone();
        async move { session.outcome(gtid(2)).await }
    });
    let Request::Outcome { request, gtid: asked } = stream.request().await else {
        panic!("not a question")
    };
    assert_eq!(asked, gtid(2));
    stream
        .say(Response::Status {
            request,
            status: TransactionStatus::Expired,
        })
        .await;
    assert_eq!(within(asking).await.unwrap(), Ok(TransactionStatus::Expired));
    assert!(session.is_aborted(gtid(2)));
}

/// Requests that are asked together travel together: a message costs, not a request.
#[tokio::test]
async fn requests_are_batched_without_timers() {
    let mut fake = Fake::start().await;
    let session = start(&[&fake.address]);
    let mut stream = fake.stream().await;
    stream.register().await;
    within(session.ready(PATIENCE)).await.unwrap();
    let message_count = stream.message_count();
    for number in 0..100 {
        session.decide_in_background(decide(number));
    }
    for number in 0..100 {
        let Request::Decide { command, .. } = stream.request().await else {
            panic!("not a proposal")
        };
        assert_eq!(
            command,
            decide(number).encode(),
            "in the order in which they were asked"
        );
    }
    let spent = stream.message_count() - message_count;
    assert!(
        spent < 10,
        "{spent} messages for 100 requests that were asked at once"
    );
}

/// T1, T7: a stream that breaks in the middle of a decision, and the same request goes to the next leader.
#[tokio::test]
async fn a_stream_that_breaks_in_the_middle_of_a_decision() {
    let (mut first, mut second) = (Fake::start().await, Fake::start().await);
    let session = start(&[&first.address, &second.address]);
    let mut stream = first.stream().await;
    stream.register().await;
    within(session.ready(PATIENCE)).await.unwrap();
    let deciding = tokio::spawn({
        let session = session.clone();
        async move { session.decide(decide(1)).await }
    });
    let sent = stream.request().await;
    stream.break_off();

    let mut stream = second.stream().await;
    assert_eq!(stream.register().await, (Some(LINEAGE), vec![]));
    let again = stream.request().await;
    assert_eq!(
        again, sent,
        "the same number, and byte for byte the same proposal"
    );
    let Request::Decide { request, .. } = again else {
        panic!("not a proposal")
    };
    let cause = AbortCause::new(AbortKind::Deadline, "too late");
    stream
        .say(Response::Decided {
            request,
            decision: Decision::Aborted(cause.clone()),
        })
        .await;
    assert_eq!(within(deciding).await.unwrap(), Ok(Decision::Aborted(cause)));
}

/// Followers answer with the leader's address, also one that the configuration does not name (J1).
#[tokio::test]
async fn a_redirect_leads_to_the_leader() {
    let (mut follower, mut leader) = (Fake::start().await, Fake::start().await);
    let session = start(&[&follower.address]);
    let mut stream = follower.stream().await;
    let Request::Register { request, .. } = stream.request().await else {
        panic!("not a registration")
    };
    stream.redirect(request, &leader.address).await;
    let mut stream = leader.stream().await;
    stream.register().await;
    assert_eq!(within(session.ready(PATIENCE)).await, Ok(LINEAGE));

    // And a leader that steps down in the middle of a decision.
    let deciding = tokio::spawn({
        let session = session.clone();
        async move { session.decide(decide(1)).await }
    });
    let Request::Decide { request, .. } = stream.request().await else {
        panic!("not a proposal")
    };
    stream.redirect(request, &follower.address).await;
    let mut stream = follower.stream().await;
    stream.register().await;
    assert!(matches!(stream.request().await, Request::Decide { request: again, .. } if again == request));
    stream.say(committed(request)).await;
    assert_eq!(within(deciding).await.unwrap(), Ok(Decision::Committed));
}

/// T7, J8: what nobody took is unavailable, what somebody took and nobody answered is in doubt, what was refused is refused.
#[tokio::test]
async fn the_end_of_the_patience_says_whether_it_was_handed_over() {
    let mut fake = Fake::start().await;
    let impatient = Duration::from_millis(300);
    let session = SessionHandle::start_with(config(&[&fake.address]), options(impatient)).unwrap();
    let waiting = within(session.decide(decide(1))).await;
    assert!(
        matches!(
            &waiting,
            Err(DecideError::NotHandedOver {
                source: SessionError::Unavailable { .. }
            })
        ),
        "{waiting:?}"
    );

    let mut stream = fake.stream().await;
    stream.register().await;
    within(session.ready(PATIENCE)).await.unwrap();
    let waiting = within(session.decide(decide(2))).await;
    assert!(
        matches!(&waiting, Err(DecideError::InDoubt { gtid: asked, .. }) if *asked == gtid(2)),
        "{waiting:?}"
    );
    assert!(matches!(stream.request().await, Request::Decide { .. }));

    let deciding = tokio::spawn({
        let session = session.clone();
        async move { session.decide(decide(3)).await }
    });
    let Request::Decide { request, .. } = stream.request().await else {
        panic!("not a proposal")
    };
    let refusal = Refusal::Invalid {
        text: "65 branches".to_owned(),
    };
    stream
        .say(Response::Refused {
            request,
            refusal: refusal.clone(),
        })
        .await;
    assert_eq!(
        within(deciding).await.unwrap(),
        Err(DecideError::Refused(refusal))
    );
}

/// T16.
#[tokio::test]
async fn an_awaited_delivery_ends_with_its_timeout_or_its_answer() {
    let mut fake = Fake::start().await;
    let session = start(&[&fake.address]);
    let mut stream = fake.stream().await;
    stream.register().await;
    within(session.ready(PATIENCE)).await.unwrap();
    let early = within(session.await_delivery(gtid(1), Duration::from_millis(50))).await;
    assert!(matches!(early, Err(SessionError::Unanswered { .. })), "{early:?}");
    stream.request().await;

    let waiting = tokio::spawn({
        let session = session.clone();
        async move { session.await_delivery(gtid(1), PATIENCE).await }
    });
    let Request::AwaitDelivery { request, gtid } = stream.request().await else {
        panic!("not a wait")
    };
    stream.say(Response::Delivered { request, gtid }).await;
    assert_eq!(within(waiting).await.unwrap(), Ok(()));
}

/// B11: duplicate deliveries in flight are one commit in the store; a later one is acknowledged from its proof.
#[tokio::test]
async fn duplicate_deliveries_commit_once() {
    let mut fake = Fake::start().await;
    let store = Store::new();
    let (_session, mut stream) = serving(&mut fake, &store).await;
    let hold = store.hold().await;
    for _ in 0..3 {
        stream.say(deliver(branch(1), Outcome::Committed)).await;
    }
    assert_eq!(store.call().await, (branch(1), Outcome::Committed));
    // The answer to this proves that the driver has seen the deliveries before it.
    stream.say(deliver(branch(2), Outcome::Aborted)).await;
    assert_eq!(store.call().await, (branch(2), Outcome::Aborted));
    drop(hold);
    assert_eq!(stream.request().await, acknowledge(branch(1)));

    store.answer(Finished::AlreadyApplied);
    stream.say(deliver(branch(1), Outcome::Committed)).await;
    assert_eq!(store.call().await, (branch(1), Outcome::Committed));
    assert_eq!(stream.request().await, acknowledge(branch(1)));
}

/// T13: the low-water mark reaches the store as the coordinator said it.
#[tokio::test]
async fn t13_a_low_water_mark_reaches_the_store() {
    let mut fake = Fake::start().await;
    let store = Store::new();
    let (_session, stream) = serving(&mut fake, &store).await;
    let (mark, unfinished) = (UnixMillis(500), vec![gtid(1)]);
    stream
        .say(Response::LowWater {
            resource: RESOURCE,
            mark,
            unfinished: unfinished.clone(),
        })
        .await;
    within(async {
        while store.forgotten().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(store.forgotten(), vec![LowWater { mark, unfinished }]);
}

/// C2, C5: an error, an "unknown" and a panic of the store are tried again, and acknowledge nothing.
#[tokio::test]
async fn a_store_that_fails_first_and_then_succeeds() {
    let mut fake = Fake::start().await;
    let store = Store::new();
    let (session, mut stream) = serving(&mut fake, &store).await;
    store.answer(Finished::Failed {
        text: "locked".to_owned(),
    });
    store.answer(Finished::Unknown {
        detail: "no row".to_owned(),
    });
    store.panic_next();
    store.answer(Finished::Applied);
    session.branch_prepared(&context(branch(1)), RESOURCE);
    stream.say(deliver(branch(1), Outcome::Committed)).await;
    for _ in 0..4 {
        assert_eq!(store.call().await, (branch(1), Outcome::Committed));
    }
    assert_eq!(stream.request().await, acknowledge(branch(1)));
    assert_eq!(session.in_doubt(), vec![]);
}

/// A new stream registers everything again, and what the old leader had not heard is delivered again by the new one.
#[tokio::test]
async fn a_reconnect_registers_every_database_again() {
    let mut fake = Fake::start().await;
    let store = Store::new();
    let (_session, stream) = serving(&mut fake, &store).await;
    stream.break_off();
    let mut stream = fake.stream().await;
    assert_eq!(stream.register().await, (Some(LINEAGE), vec![RESOURCE]));
    stream.say(deliver(branch(1), Outcome::Committed)).await;
    store.call().await;
    assert_eq!(stream.request().await, acknowledge(branch(1)));
}

/// C9: what the database lists at the start is asked about at once, whoever prepared it.
#[tokio::test]
async fn branches_of_an_earlier_life_are_resolved() {
    let mut fake = Fake::start().await;
    let store = Store::new();
    let deadline = UnixMillis(5);
    let listed = ListedBranch {
        branch: branch(1),
        lineage: LINEAGE,
        deadline,
        prepared_at: UnixMillis(4),
    };
    store.list(vec![listed]);
    let (session, mut stream) = serving(&mut fake, &store).await;
    let inquiry = Request::Inquire {
        branch: branch(1),
        resource: RESOURCE,
        lineage: LINEAGE,
        deadline,
    };
    assert_eq!(stream.request().await, inquiry);
    let shown = session.in_doubt();
    assert_eq!((shown[0].0, shown[0].1), (branch(1), RESOURCE));
    store.list(vec![]);
    stream
        .say(Response::Answered {
            branch: branch(1),
            answer: Answer::Committed,
        })
        .await;
    assert_eq!(store.call().await, (branch(1), Outcome::Committed));
    assert_eq!(stream.request().await, acknowledge(branch(1)));
    assert_eq!(session.in_doubt(), vec![]);
}

/// C3: work of a transaction that was aborted meanwhile is cancelled, and late work is known to be late.
#[tokio::test]
async fn work_of_an_aborted_transaction_is_cancelled() {
    let mut fake = Fake::start().await;
    let store = Store::new();
    let (session, stream) = serving(&mut fake, &store).await;
    let sibling = BranchId {
        execution: ExecutionId(9),
        ..branch(1)
    };
    let working = session.branch_started(sibling);
    assert!(!session.is_aborted(gtid(1)));
    stream.say(deliver(branch(1), Outcome::Aborted)).await;
    within(working.cancelled()).await;
    assert!(session.is_aborted(gtid(1)));
}

/// T11: a database of another coordinator, or of none, is not served.
#[tokio::test]
async fn a_database_of_another_lineage_is_refused() {
    let mut fake = Fake::start().await;
    let session = start(&[&fake.address]);
    fake.stream_registered().await;
    within(session.ready(PATIENCE)).await.unwrap();
    let unbound = Store::bound_to(None);
    let expected = SessionError::ForeignResource {
        resource: RESOURCE,
        expected: LINEAGE,
        found: None,
    };
    assert_eq!(within(session.add_resource(unbound)).await, Err(expected));
}

/// B20, J2: a shutdown waits for a commit that is being applied and for its acknowledgement, and for nothing else.
#[tokio::test]
async fn a_shutdown_finishes_what_is_in_flight() {
    let mut fake = Fake::start().await;
    let store = Store::new();
    let (session, mut stream) = serving(&mut fake, &store).await;
    let hold = store.hold().await;
    stream.say(deliver(branch(1), Outcome::Committed)).await;
    store.call().await;
    let deciding = tokio::spawn({
        let session = session.clone();
        async move { session.decide(decide(2)).await }
    });
    assert!(matches!(stream.request().await, Request::Decide { .. }));
    let ending = tokio::spawn({
        let session = session.clone();
        async move { session.shutdown().await }
    });
    let decided = within(deciding).await.unwrap();
    assert!(matches!(decided, Err(DecideError::InDoubt { .. })), "{decided:?}");
    assert!(!ending.is_finished(), "a commit is still being applied");
    drop(hold);
    assert_eq!(stream.request().await, acknowledge(branch(1)));
    stream.finish().await;
    within(ending).await.unwrap();

    let closed = within(session.decide(decide(3))).await;
    assert_eq!(
        closed,
        Err(DecideError::NotHandedOver {
            source: SessionError::Closed
        })
    );
    within(session.shutdown()).await;
}

#[tokio::test]
async fn an_address_that_is_none_is_refused_at_the_start() {
    for address in ["", "localhost", "http://", "ftp://a:1"] {
        let started = SessionHandle::start(vec![address.to_owned()], options(PATIENCE));
        assert!(
            matches!(started, Err(SessionError::Address { .. })),
            "{address}: {started:?}"
        );
    }
    assert!(matches!(
        SessionHandle::start(vec![], options(PATIENCE)),
        Err(SessionError::Address { .. })
    ));
}

/// A process without a coordinator learns so from `ready`, with what was seen last.
#[tokio::test]
async fn without_a_coordinator_ready_says_what_was_seen() {
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let session = start(&[&unused.to_string()]);
    let Err(SessionError::Unavailable { last }) = within(session.ready(Duration::from_millis(300))).await
    else {
        panic!("there is nobody to be ready")
    };
    assert!(last.contains(&unused.to_string()), "{last}");
}
