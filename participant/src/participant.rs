//! The entrance: one [`Participant`] per process, connected to one coordinator.

use std::sync::Arc;
use std::time::Duration;

use synod_participant_core::arrival::{ArrivalRefused, CallContext};
use synod_proto::environment::{Connector, WallClock};
use synod_proto::ids::{BranchId, Gtid, Lineage, ResourceId, UnixMillis};
use synod_proto::limits::{DEADLINE_MS_DEFAULT, DEADLINE_MS_MAX};
use synod_proto::session::TransactionStatus;
use tonic::Status;

use crate::branch::Resource;
use crate::error::{AttachError, ConnectError, OutcomeError};
use crate::resource::{ResourceError, ResourceManager};
use crate::scope::Scope;
use crate::server::TransactionLayer;
use crate::session::{SessionHandle, SessionOptions};
use crate::transaction::Transaction;

/// How long [`ParticipantBuilder::connect`] waits for a leader unless told otherwise.
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// How long a commit waits for the log's answer before it is in doubt, unless told otherwise. Well above the
/// time in which a cluster replaces a dead leader, so that such a change is a delay and not an error.
const DECIDE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

/// This process's connection to the coordinator: begins transactions, and takes part in those of others.
/// Cheap to clone; one per process is enough, and its session is shared by everything in it.
#[derive(Clone)]
pub struct Participant {
    inner: Arc<Inner>,
}

struct Inner {
    session: SessionHandle,
    lineage: Lineage,
    clock: WallClock,
}

impl std::fmt::Debug for Participant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Participant")
            .field("lineage", &self.inner.lineage)
            .finish_non_exhaustive()
    }
}

/// Configures a [`Participant`].
#[derive(Clone, Debug)]
pub struct ParticipantBuilder {
    coordinators: Vec<String>,
    connect_timeout: Duration,
    decide_timeout: Duration,
    clock: WallClock,
    connector: Connector,
}

impl ParticipantBuilder {
    /// The coordinator's replicas, each as `http://host:port`. One that answers is enough to find the
    /// others' leader, but a client that knows only a dead replica finds nobody: name them all.
    #[must_use]
    pub fn coordinators(mut self, addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.coordinators = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// How long [`connect`](Self::connect) waits for a leader; 10 s by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a commit waits for the log's answer before it is [in doubt](crate::CommitError::InDoubt); 15
    /// s by default. The request is repeated to each new leader in between.
    #[must_use]
    pub fn decide_timeout(mut self, timeout: Duration) -> Self {
        self.decide_timeout = timeout;
        self
    }

    /// The wall clock that deadlines are compared with; the system's by default.
    #[must_use]
    pub fn clock(mut self, clock: WallClock) -> Self {
        self.clock = clock;
        self
    }

    /// How the coordinator is reached; by TCP unless told otherwise. Calls to other participants go through
    /// channels of the caller's own.
    #[must_use]
    pub fn connector(mut self, connector: Connector) -> Self {
        self.connector = connector;
        self
    }

    /// Opens the session, and learns the coordinator's lineage. From then on the session is kept up in the
    /// background, across leader changes and restarts of replicas.
    ///
    /// # Errors
    /// [`ConnectError::Invalid`]: no address, or one that is none. [`ConnectError::Unavailable`]: no leader
    /// answered in time.
    pub async fn connect(self) -> Result<Participant, ConnectError> {
        if self.coordinators.is_empty() {
            return Err(ConnectError::Invalid {
                text: "no coordinator address".to_owned(),
            });
        }
        let options = SessionOptions {
            decide_timeout: self.decide_timeout,
            clock: self.clock.clone(),
            connector: self.connector,
        };
        let session =
            SessionHandle::start(self.coordinators, options).map_err(|error| ConnectError::Invalid {
                text: error.to_string(),
            })?;
        match session.ready(self.connect_timeout).await {
            Ok(lineage) => Ok(Participant {
                inner: Arc::new(Inner {
                    session,
                    lineage,
                    clock: self.clock,
                }),
            }),
            Err(source) => {
                session.shutdown().await;
                Err(ConnectError::Unavailable {
                    waited: self.connect_timeout,
                    source: source.into(),
                })
            }
        }
    }
}

/// How one transaction differs from the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransactionOptions {
    /// How long after begin the branches may still work and vote; 30 s by default, at most 5 minutes. A
    /// branch that has voted waits for the outcome whatever the deadline (T8), and after it may have the
    /// outcome forced to abort (T6).
    pub deadline: Duration,
}

impl Default for TransactionOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_millis(DEADLINE_MS_DEFAULT),
        }
    }
}

impl TransactionOptions {
    /// With this deadline, clipped to 1 ms up to 5 minutes (T14).
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

impl Participant {
    /// Starts the configuration.
    #[must_use]
    pub fn builder() -> ParticipantBuilder {
        ParticipantBuilder {
            coordinators: Vec::new(),
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            decide_timeout: DECIDE_TIMEOUT_DEFAULT,
            clock: WallClock::system(),
            connector: Connector::tcp(),
        }
    }

    /// Begins a global transaction with the default options. Costs no round trip: the id is made here (T1).
    pub fn begin(&self) -> Transaction {
        self.begin_with(TransactionOptions::default())
    }

    /// Begins a global transaction.
    pub fn begin_with(&self, options: TransactionOptions) -> Transaction {
        let now = self.now();
        let mut random = [0; 10];
        fill_random(&mut random);
        let deadline_ms = u64::try_from(options.deadline.as_millis())
            .unwrap_or(u64::MAX)
            .clamp(1, DEADLINE_MS_MAX);
        Transaction::new(Scope::begun(
            self.clone(),
            Gtid::new(now, random),
            now.plus(deadline_ms),
        ))
    }

    /// Attaches a database: binds it to the coordinator's lineage if it never met one, registers it with the
    /// session for deliveries, and takes up every branch that it holds in doubt, whoever prepared it (traps
    /// C9).
    ///
    /// # Errors
    /// [`AttachError::ForeignLineage`]: the database belongs to another coordinator. The others: see there.
    pub async fn resource<R: ResourceManager>(&self, manager: R) -> Result<Resource<R>, AttachError> {
        let lineage = self.inner.lineage;
        let manager = Arc::new(manager);
        let identity = match manager.identity(Some(lineage)).await {
            Ok(identity) => identity,
            Err(ResourceError::ForeignLineage { expected, found }) => {
                let resource = manager
                    .identity(None)
                    .await
                    .map_or(ResourceId([0; 16]), |identity| identity.resource);
                return Err(AttachError::ForeignLineage {
                    resource,
                    expected,
                    found,
                });
            }
            Err(error) => return Err(AttachError::Resource(error)),
        };
        let session = &self.inner.session;
        session
            .add_resource(manager.clone())
            .await
            .map_err(|error| AttachError::Session(error.into()))?;
        Ok(Resource::new(self.clone(), manager, identity.resource))
    }

    /// The server side's tower layer: `Server::builder().layer(participant.layer())`. It reads and checks the
    /// context of every call, and puts the votes on the replies. Calls without a context pass through
    /// untouched.
    #[must_use]
    pub fn layer(&self) -> TransactionLayer {
        TransactionLayer::new(self.clone())
    }

    /// The coordinator's identity (T11).
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        self.inner.lineage
    }

    /// What the coordinator's register says of a transaction.
    ///
    /// # Errors
    /// No leader answered: ask again.
    pub async fn outcome(&self, gtid: Gtid) -> Result<TransactionStatus, OutcomeError> {
        self.inner
            .session
            .outcome(gtid)
            .await
            .map_err(|source| OutcomeError {
                gtid,
                source: source.into(),
            })
    }

    /// The branches of the attached databases that voted and wait for their outcome, with their age (T8). An
    /// age above a few seconds means that the coordinator cannot be reached, or that the initiator died
    /// before its deadline.
    #[must_use]
    pub fn in_doubt(&self) -> Vec<(BranchId, ResourceId, Duration)> {
        self.inner.session.in_doubt()
    }

    /// Ends the session. Prepared branches stay as they are, in their databases, for the next process (traps
    /// J2).
    pub async fn shutdown(&self) {
        self.inner.session.shutdown().await;
    }

    pub(crate) fn session(&self) -> &SessionHandle {
        &self.inner.session
    }

    /// By this machine's clock, or what was given for it (T14).
    pub(crate) fn now(&self) -> UnixMillis {
        self.inner.clock.now()
    }

    /// What a call's context must satisfy before any work is done under it (T11, T14).
    #[allow(clippy::result_large_err, reason = "gRPC's own error type")]
    pub(crate) fn check(&self, context: &CallContext, now: UnixMillis) -> Result<(), Status> {
        let is_settled = self.inner.session.is_aborted(context.gtid);
        context
            .check(self.inner.lineage, now, is_settled)
            .map_err(|refused| {
                let text = refused.to_string();
                match refused {
                    ArrivalRefused::DeadlineTooFar { .. } => Status::invalid_argument(text),
                    ArrivalRefused::DeadlinePassed { .. } => Status::deadline_exceeded(text),
                    _ => Status::failed_precondition(text),
                }
            })
    }
}

/// A fresh random number from the operating system: ids must not repeat in forked or restored processes (T2).
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    u64::from_be_bytes(bytes)
}

/// A fresh random id, for the same reason.
pub(crate) fn random_id() -> [u8; 16] {
    let mut bytes = [0; 16];
    fill_random(&mut bytes);
    bytes
}

fn fill_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system gives random bytes");
}
