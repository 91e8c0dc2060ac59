//! One service of the load: a participant with a file of its own, that begins transactions and takes part in the others'.
//!
//! It has a thread of its own with a runtime of its own, as it would have a process of its own: what it shares with the other
//! services is the tally and the loopback interface.

use super::super::plan::Pace;
use super::super::tally::Tally;
use super::super::{BenchError, session::OVERLOADED_PAUSE};
use super::storage::{CountedFile, Counts};
use super::work::{Row, TABLE, WorkClient, WorkServer};
use bytes::Bytes;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use synod::resource::redb::{RedbOptions, RedbResource};
use synod::{CommitError, Participant, ResolveError, Resource, Transaction};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

/// The length of the row that a branch writes: a small record.
const VALUE: &[u8; 100] = &[0x5a; 100];

/// How long a committed transaction may take to be in effect everywhere.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// How far the run is.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    Preparing,
    /// All services stand at these addresses; the load began at this moment.
    Running {
        addresses: Arc<[SocketAddr]>,
        begun: Instant,
    },
    /// Nothing new begins.
    Draining,
    /// All transactions have ended, or were waited for long enough.
    Over,
}

/// What a service says to the run.
#[derive(Debug)]
pub(super) enum Told {
    Ready {
        index: usize,
        address: SocketAddr,
        counts: Counts,
    },
    Drained,
    Failed(BenchError),
}

/// What a service is to be.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) index: usize,
    pub(super) service_count: usize,
    pub(super) place_count: usize,
    pub(super) branch_count: usize,
    pub(super) pace: Pace,
    pub(super) coordinators: Vec<String>,
    pub(super) path: PathBuf,
    pub(super) tally: Arc<Mutex<Tally>>,
}

/// A running service, as its transactions see it.
struct Service {
    setup: Setup,
    participant: Participant,
    database: Resource<RedbResource>,
    /// The way to each service; its own is not used.
    channels: Vec<Channel>,
    phase: watch::Receiver<Phase>,
}

/// What became of one attempt.
enum End {
    Committed,
    Aborted,
    /// Nothing takes effect: try again with a new transaction.
    Failed,
    Overloaded,
}

/// The body of the service's thread.
pub(super) fn run(setup: Setup, phase: watch::Receiver<Phase>, tell: &mpsc::UnboundedSender<Told>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = match runtime {
        Ok(runtime) => runtime.block_on(serve(setup, phase, tell)),
        Err(error) => Err(wrong("no runtime", error)),
    };
    if let Err(error) = served {
        // Nobody listens any more where the run has ended already.
        let _ = tell.send(Told::Failed(error));
    }
}

fn wrong(what: &str, error: impl std::fmt::Display) -> BenchError {
    BenchError::Wrong(format!("{what}: {error}"))
}

async fn serve(
    setup: Setup,
    mut phase: watch::Receiver<Phase>,
    tell: &mpsc::UnboundedSender<Told>,
) -> Result<(), BenchError> {
    let addresses = setup.coordinators.iter().map(|one| format!("http://{one}"));
    let participant = Participant::builder()
        .coordinators(addresses)
        .connect()
        .await
        .map_err(|error| BenchError::Unreachable {
            endpoints: setup.coordinators.join(", "),
            last: error.to_string(),
        })?;
    let what = setup.path.display().to_string();
    let file = CountedFile::create(&setup.path).map_err(|error| wrong(&what, error))?;
    let counts = file.counts();
    let store = RedbOptions::default()
        .open_backend(move || file.clone())
        .map_err(|error| wrong(&what, error))?;
    let database = participant
        .resource(store)
        .await
        .map_err(|error| wrong(&what, error))?;
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .map_err(|error| wrong("no address to listen at", error))?;
    let address = listener
        .local_addr()
        .map_err(|error| wrong("no address to listen at", error))?;
    let server = Server::builder()
        .layer(participant.layer())
        .add_service(WorkServer::new(database.clone()))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    let server = tokio::spawn(server);
    let index = setup.index;
    let _ = tell.send(Told::Ready {
        index,
        address,
        counts,
    });

    let is_over = |phase: &Phase| matches!(phase, Phase::Over);
    let running = phase
        .wait_for(|phase| matches!(phase, Phase::Running { .. }) || is_over(phase))
        .await
        .map(|phase| phase.clone());
    if let Ok(Phase::Running { addresses, begun }) = running {
        let channels = addresses.iter().map(|address| {
            Endpoint::from_shared(format!("http://{address}")).map(|one| one.tcp_nodelay(true).connect_lazy())
        });
        let service = Arc::new(Service {
            channels: channels
                .collect::<Result<_, _>>()
                .map_err(|error| wrong("an address of a service", error))?,
            setup,
            participant: participant.clone(),
            database,
            phase: phase.clone(),
        });
        let load = tokio::spawn(load(service, begun, tell.clone()));
        // The run is over for this service only when it is for all: the others' branches are served until then.
        let _ = phase.wait_for(is_over).await;
        load.abort();
    }
    participant.shutdown().await;
    server.abort();
    Ok(())
}

/// Begins transactions while the run lasts, then waits until all of them have ended.
async fn load(service: Arc<Service>, begun: Instant, tell: mpsc::UnboundedSender<Told>) {
    let place_count = service.setup.place_count;
    let (give_back, mut free) = mpsc::unbounded_channel();
    for place in 0..place_count {
        let _ = give_back.send(place);
    }
    let mut phase = service.phase.clone();
    let mut taken_count = 0;
    {
        let stop = phase.wait_for(|phase| !matches!(phase, Phase::Running { .. }));
        tokio::pin!(stop);
        for turn in 0.. {
            let due = service.due(begun, turn);
            let place = async {
                if let Some(due) = due {
                    sleep_until(due).await;
                }
                free.recv().await
            };
            let place = tokio::select! {
                biased;
                _ = &mut stop => break,
                place = place => place,
            };
            let Some(place) = place else { break };
            let (service, give_back, tell) = (service.clone(), give_back.clone(), tell.clone());
            tokio::spawn(async move {
                if let Err(error) = service.attempt(place, due.unwrap_or_else(Instant::now)).await {
                    let _ = tell.send(Told::Failed(error));
                }
                let _ = give_back.send(place);
            });
        }
    }
    while taken_count < place_count && free.recv().await.is_some() {
        taken_count += 1;
    }
    let _ = tell.send(Told::Drained);
}

impl Service {
    /// When the service's `turn`-th transaction is due, in an open loop: the services take turns.
    fn due(&self, begun: Instant, turn: u64) -> Option<Instant> {
        let Pace::Open { per_second } = self.setup.pace else {
            return None;
        };
        let number = turn * self.setup.service_count as u64 + self.setup.index as u64;
        #[expect(
            clippy::cast_precision_loss,
            reason = "a count of transactions stays far below 2^52"
        )]
        let offset = Duration::from_secs_f64(number as f64 / per_second);
        Some(begun + offset)
    }

    /// One transaction, begun anew until it is decided.
    async fn attempt(&self, place: usize, begun: Instant) -> Result<(), BenchError> {
        loop {
            let end = self.transaction(place).await?;
            {
                let mut tally = self.tally();
                match end {
                    End::Committed => tally.end(begun, Instant::now()),
                    End::Aborted => {
                        tally.aborted_count += 1;
                        tally.end(begun, Instant::now());
                    }
                    End::Failed => tally.failed_count += 1,
                    End::Overloaded => tally.overloaded_count += 1,
                }
            }
            let is_running = matches!(*self.phase.borrow(), Phase::Running { .. });
            if matches!(end, End::Committed | End::Aborted) || !is_running {
                return Ok(());
            }
            sleep(OVERLOADED_PAUSE).await;
        }
    }

    /// All seven steps' first five: begin, the work with its votes, the decision, the delivery to every branch.
    async fn transaction(&self, place: usize) -> Result<End, BenchError> {
        let txn = self.participant.begin();
        let work = (0..self.setup.branch_count).map(|branch| self.work(&txn, place, branch));
        if futures::future::try_join_all(work).await.is_err() {
            return Ok(End::Failed);
        }
        let committed = match txn.commit().await {
            Ok(committed) => committed,
            Err(CommitError::InDoubt(in_doubt)) => {
                self.tally().resent_count += 1;
                match in_doubt.resolve().await {
                    Ok(committed) => committed,
                    Err(ResolveError::Aborted { .. }) => return Ok(End::Aborted),
                    Err(error) => return Err(BenchError::Wrong(error.to_string())),
                }
            }
            Err(CommitError::Aborted { .. }) => return Ok(End::Aborted),
            Err(CommitError::Overloaded(_)) => return Ok(End::Overloaded),
            Err(CommitError::Unavailable(_) | CommitError::Doomed { .. }) => return Ok(End::Failed),
            Err(error) => return Err(BenchError::Refused(error.to_string())),
        };
        committed
            .delivered(DELIVERY_TIMEOUT)
            .await
            .map_err(|error| BenchError::Wrong(error.to_string()))?;
        Ok(End::Committed)
    }

    /// One branch. A place has one transaction at a time, so its rows are nobody else's.
    async fn work(&self, txn: &Transaction, place: usize, branch: usize) -> Result<(), ()> {
        let row = Row {
            key: Bytes::from(format!("{}/{place}/{branch}", self.setup.index)),
            value: Bytes::from_static(VALUE),
        };
        let owner = (self.setup.index + branch) % self.setup.service_count;
        if owner == self.setup.index {
            let work = async move |mut tx: synod::BranchTransaction<RedbResource>| {
                Ok(tx.put(TABLE, &row.key, &row.value).await?)
            };
            txn.branch(&self.database, work).await.map_err(drop)
        } else {
            let mut client = txn.client(&self.channels[owner], WorkClient::new);
            client.call(row).await.map(drop).map_err(drop)
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.setup.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
