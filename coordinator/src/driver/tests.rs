//! The driver over a disk that fails (L9), and over none that does.

use super::*;
use crate::log::{self, Log, MemoryDisk, Opened, Options};
use crate::sessions::{Responses, outbox};
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use synod_coordinator_core::replica::Config;
use synod_proto::command::{Decide, Proposal};
use synod_proto::ids::{Gtid, Incarnation, Lineage, ProcessNonce, RequestId, SessionId, UnixMillis};
use synod_proto::session::{AbortCause, AbortKind, Decision, Refusal, Request, Response};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Code;

const STEP: Duration = Duration::from_secs(10);

/// A coordinator of one replica, so that its own disk is all that counts.
struct Alone {
    disk: Arc<MemoryDisk>,
    events: mpsc::Sender<SessionEvent>,
    health: watch::Receiver<Health>,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), StorageBroken>>,
    _links: mpsc::Sender<LinkEvent>,
}

impl Alone {
    fn start() -> Self {
        let disk = Arc::new(MemoryDisk::default());
        let (own, incarnation) = (ReplicaId(1), Incarnation([7; 16]));
        let identity = log::Identity {
            cluster: "test".parse().expect("a cluster id"),
            replica: own,
            incarnation,
        };
        let options = Options {
            segment_bytes: 64 << 10,
        };
        Log::create(&disk, &identity, options).expect("a new log");
        let Opened { log, recovered, .. } = Log::open(disk.clone(), identity, options).expect("an empty log");
        let config = Config::new(own, [own].into(), incarnation);
        let replica = Replica::new(config, recovered, ProcessNonce(42), 42);
        let (published, health) = watch::channel(Health::NotServing);
        let storage = Storage::start(log).expect("a thread");
        let (events, sessions) = mpsc::channel(16);
        let (link_events, links) = mpsc::channel(1);
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let running = tokio::spawn(async move {
            let mut driver = Driver::new(own, replica, storage, WallClock::system(), published);
            let mut inbox = Inbox { links, sessions };
            let result = driver.run(&mut inbox, &stop).await;
            result.and(driver.close().await)
        });
        Self {
            disk,
            events,
            health,
            shutdown,
            running,
            _links: link_events,
        }
    }

    async fn healthy(&mut self, wanted: Health) {
        let changed = self.health.wait_for(|health| *health == wanted);
        timeout(STEP, changed)
            .await
            .expect("in time")
            .expect("the driver runs");
    }

    async fn open(&self, session: u64) -> Responses {
        let (outbox, responses) = outbox();
        self.events
            .send(SessionEvent::Opened(SessionId(session), outbox))
            .await
            .expect("the driver runs");
        responses
    }

    async fn lineage(&self) -> Lineage {
        let (answer, status) = oneshot::channel();
        self.events
            .send(SessionEvent::Status(answer))
            .await
            .expect("the driver runs");
        status
            .await
            .expect("an answer")
            .lineage()
            .expect("a serving leader has one")
    }

    async fn abort(&self, session: u64, request: u64, lineage: Lineage) {
        let gtid = Gtid::new(self.clock(), [u8::try_from(request % 251).unwrap_or(0); 10]);
        let cause = AbortCause::new(AbortKind::Requested, "x".repeat(500));
        let proposal = Proposal::Abort {
            cause,
            branches: Vec::new(),
        };
        let decide = Decide {
            lineage,
            gtid,
            deadline: gtid.began_at().plus(1_000),
            proposal,
            guards: Vec::new(),
        };
        let command: Bytes = decide.encode();
        let request = Request::Decide {
            request: RequestId(request),
            command,
        };
        self.events
            .send(SessionEvent::Requests(SessionId(session), vec![request]))
            .await
            .expect("the driver runs");
    }

    fn clock(&self) -> UnixMillis {
        WallClock::system().now()
    }

    async fn end(self) -> Result<(), StorageBroken> {
        timeout(STEP, self.running)
            .await
            .expect("in time")
            .expect("no panic")
    }
}

async fn next(responses: &mut Responses) -> Option<Response> {
    timeout(STEP, responses.next()).await.expect("in time")
}

/// An orderly end closes the log, and what was answered is found again.
#[tokio::test]
async fn one_replica_leads_itself_and_ends_in_good_order() {
    let mut alone = Alone::start();
    alone.healthy(Health::Serving).await;
    let mut responses = alone.open(1).await;
    let lineage = alone.lineage().await;
    alone.abort(1, 1, lineage).await;
    let Some(Response::Decided {
        request: RequestId(1),
        decision: Decision::Aborted(_),
    }) = next(&mut responses).await
    else {
        panic!("not aborted")
    };
    alone.shutdown.cancel();
    let shutdown = next(&mut responses).await;
    assert_eq!(
        (shutdown, responses.closing().expect("a reason").code()),
        (None, Code::Unavailable)
    );
    assert_eq!(alone.end().await, Ok(()));
}

/// L9: a full disk leaves the replica up, read-only and saying so; what it cannot write it does not acknowledge.
#[tokio::test]
async fn a_full_disk_leaves_the_replica_up_and_read_only() {
    let mut alone = Alone::start();
    alone.healthy(Health::Serving).await;
    let mut responses = alone.open(1).await;
    let lineage = alone.lineage().await;
    alone.disk.limit(Some(0));
    // The current segment is allocated and takes some more; the next one cannot be made.
    let mut request = 0;
    loop {
        request += 1;
        alone.abort(1, request, lineage).await;
        match next(&mut responses).await {
            Some(Response::Decided { .. }) => {}
            // What waited for the lost write is sent to the next leader, if there is one; the session ends.
            None
            | Some(Response::Refused {
                refusal: Refusal::NotLeader { leader: None },
                ..
            }) => break,
            other => panic!("{other:?}"),
        }
        assert!(request < 10_000, "the disk never became full");
    }
    let mut responses = alone.open(2).await;
    alone.abort(2, 1_000_000, lineage).await;
    let refused = next(&mut responses).await;
    let Some(Response::Refused {
        refusal: Refusal::ReadOnly { text },
        ..
    }) = refused
    else {
        panic!("{refused:?}")
    };
    assert!(text.contains("no space for log segment"), "{text}");
    alone.healthy(Health::NotServing).await;
    // Given room again, it does not try again: only a restart reads what is really there.
    alone.disk.limit(None);
    let mut responses = alone.open(3).await;
    alone.abort(3, 2_000_000, lineage).await;
    assert!(matches!(
        next(&mut responses).await,
        Some(Response::Refused {
            refusal: Refusal::ReadOnly { .. },
            ..
        })
    ));
    assert!(!alone.running.is_finished());
    alone.shutdown.cancel();
    assert_eq!(alone.end().await, Ok(()));
}

/// L9, A11: after a failed write nothing is acknowledged, sessions are ended, and the replica ends with the disk's words.
#[tokio::test]
async fn a_failed_write_ends_the_replica() {
    let mut alone = Alone::start();
    alone.healthy(Health::Serving).await;
    let mut responses = alone.open(1).await;
    let lineage = alone.lineage().await;
    // More than one operation: the next segment may be in the making, and its failure is nobody's yet.
    for after in 0..16 {
        alone.disk.fail(after, io::ErrorKind::Other);
    }
    alone.abort(1, 1, lineage).await;
    match next(&mut responses).await {
        None => {}
        // A refusal says that nothing was done, and nothing was.
        Some(Response::Refused { .. }) => assert_eq!(next(&mut responses).await, None),
        Some(other) => panic!("acknowledged: {other:?}"),
    }
    let StorageBroken(text) = alone.end().await.expect_err("the log is broken");
    assert!(text.contains("the disk failed to write"), "{text}");
}
