//! The writer: one thread that owns redb's write transaction and takes whatever has queued up into one
//! durable commit. No timers: while one commit syncs, the next batch gathers.
//!
//! Requests are applied in the order in which they were queued; so a commit that follows a prepare sees the
//! prepared row, in the same batch or a later one. Nobody is answered, and no lock passes on, before the
//! batch is synced.
//!
//! Without a thread (see [`RedbOptions::inline`](super::RedbOptions::inline)) each request is a batch of its
//! own, run by its caller.

use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ::redb::{Database, WriteTransaction};
use synod_proto::ids::{BranchId, Lineage, UnixMillis};
use tokio::sync::oneshot;

use super::super::{Effect, Identity, LowWater, Prepared, ResourceError};
use super::format::{Intent, PreparedRow};
use super::locks::{LockKey, Owner};
use super::rows::{Rows, WriteError};
use super::state::Core;

/// The most requests in one durable commit, and the most bytes of rows that they write: bounds how long the
/// first of them waits for the others, and the memory of a batch.
const BATCH_COUNT_MAX: usize = 512;
const BATCH_BYTES_MAX: usize = 32 << 20;

/// Where an answer goes, and the answer until its batch is synced.
pub(super) struct Reply<T> {
    sender: oneshot::Sender<Result<T, ResourceError>>,
    result: Option<Result<T, ResourceError>>,
}

impl<T> Reply<T> {
    pub(super) fn new() -> (Self, oneshot::Receiver<Result<T, ResourceError>>) {
        let (sender, receiver) = oneshot::channel();
        (Self { sender, result: None }, receiver)
    }

    fn is_ok(&self) -> bool {
        matches!(self.result, Some(Ok(_)))
    }

    /// The caller may have gone; what was done stays done.
    fn send(self) {
        let result = self.result.expect("a request was applied before it is answered");
        let _ = self.sender.send(result);
    }
}

/// A change of rows that are not a branch's: what it writes shares the batch's local transaction.
pub(crate) trait Work: Send + 'static {
    /// What the caller is told once it is durable.
    type Output: Send + 'static;

    /// Writes, and says whether anything was written.
    fn apply(&mut self, tx: &WriteTransaction, now: UnixMillis) -> Result<(Self::Output, bool), WriteError>;
}

/// Some [`Work`] with the way back to its caller.
pub(super) trait Job: Send {
    fn apply(&mut self, tx: &WriteTransaction, now: UnixMillis) -> Result<bool, WriteError>;
    fn send(self: Box<Self>);
    fn refuse(self: Box<Self>, error: ResourceError);
}

struct WorkJob<W: Work> {
    work: W,
    reply: Reply<W::Output>,
}

impl<W: Work> Job for WorkJob<W> {
    fn apply(&mut self, tx: &WriteTransaction, now: UnixMillis) -> Result<bool, WriteError> {
        let (output, is_dirty) = self.work.apply(tx, now)?;
        self.reply.result = Some(Ok(output));
        Ok(is_dirty)
    }

    fn send(self: Box<Self>) {
        self.reply.send();
    }

    fn refuse(self: Box<Self>, error: ResourceError) {
        let _ = self.reply.sender.send(Err(error));
    }
}

pub(super) enum Request {
    Work(Box<dyn Job>),
    Prepare {
        owner: Owner,
        row: PreparedRow,
        reply: Reply<Prepared>,
    },
    Commit {
        branch: BranchId,
        reply: Reply<Effect>,
    },
    Abort {
        branch: BranchId,
        reply: Reply<Effect>,
    },
    /// A local transaction outside any global one.
    Local {
        owner: Owner,
        intents: Vec<(LockKey, Intent)>,
        reply: Reply<()>,
    },
    Bind {
        lineage: Lineage,
        reply: Reply<Identity>,
    },
    Forget {
        low_water: LowWater,
        reply: Reply<u64>,
    },
    Reopen {
        reply: Reply<()>,
    },
    Close {
        reply: Reply<()>,
    },
}

impl Request {
    pub(super) fn work<W: Work>(work: W, reply: Reply<W::Output>) -> Self {
        Self::Work(Box::new(WorkJob { work, reply }))
    }

    fn byte_count(&self) -> usize {
        let (Self::Prepare {
            row: PreparedRow { intents, .. },
            ..
        }
        | Self::Local { intents, .. }) = self
        else {
            return 0;
        };
        intents
            .iter()
            .map(|(key, intent)| {
                key.key.len()
                    + if let Intent::Put(value) = intent {
                        value.len()
                    } else {
                        0
                    }
            })
            .sum()
    }

    /// Answers with an error, whatever was applied.
    fn refuse(self, error: ResourceError) {
        match self {
            Self::Work(job) => job.refuse(error),
            Self::Prepare { reply, .. } => drop(reply.sender.send(Err(error))),
            Self::Commit { reply, .. } | Self::Abort { reply, .. } => drop(reply.sender.send(Err(error))),
            Self::Local { reply, .. } | Self::Reopen { reply } | Self::Close { reply } => {
                drop(reply.sender.send(Err(error)));
            }
            Self::Bind { reply, .. } => drop(reply.sender.send(Err(error))),
            Self::Forget { reply, .. } => drop(reply.sender.send(Err(error))),
        }
    }
}

/// Says so when the writer dies of a bug: nobody would answer any more.
struct FailOnPanic<'a>(&'a Core);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .fail(Arc::new(std::io::Error::other("the writer thread panicked")));
        }
    }
}

/// Where requests go.
pub(super) enum Writer {
    Thread {
        /// `None` only while this is dropped.
        requests: Option<Sender<Request>>,
        thread: Option<JoinHandle<()>>,
    },
    /// The caller's own thread, one request at a time.
    Inline(Mutex<()>),
}

impl Writer {
    pub(super) fn start(core: &Arc<Core>) -> Result<Self, ResourceError> {
        if core.options.is_inline {
            return Ok(Self::Inline(Mutex::new(())));
        }
        let (requests, received) = mpsc::channel();
        let core = core.clone();
        let thread = std::thread::Builder::new()
            .name("synod-redb".into())
            .spawn(move || run(&core, &received))
            .map_err(|error| ResourceError::Unavailable(Box::new(error)))?;
        Ok(Self::Thread {
            requests: Some(requests),
            thread: Some(thread),
        })
    }

    pub(super) fn take(&self, core: &Core, request: Request) {
        match self {
            Self::Thread { requests, .. } => {
                let requests = requests.as_ref().expect("set until the drop");
                // After `close` nobody receives; the state says why.
                let _ = requests.send(request);
            }
            Self::Inline(turn) => {
                let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                let _guard = FailOnPanic(core);
                run_one(core, request);
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let Self::Thread { requests, thread } = self else {
            return;
        };
        *requests = None;
        // The file is closed when this returns, so that it can be opened again at once: the writer ends after the batch
        // in hand. It holds no handle; but a caller's future may die with its last reference, in the writer's `send`.
        if let Some(thread) = thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// The thread's whole life. Ends when every handle is gone, or on `Close`.
pub(super) fn run(core: &Core, requests: &Receiver<Request>) {
    let _guard = FailOnPanic(core);
    let mut next = requests.recv().ok();
    while let Some(first) = next.take() {
        match first {
            Request::Reopen { mut reply } => {
                reply.result = Some(core.reopen());
                reply.send();
            }
            Request::Close { mut reply } => {
                core.close();
                reply.result = Some(Ok(()));
                reply.send();
                return;
            }
            first => {
                let mut byte_count = first.byte_count();
                let mut batch = vec![first];
                while batch.len() < BATCH_COUNT_MAX && byte_count < BATCH_BYTES_MAX && next.is_none() {
                    match requests.try_recv() {
                        Ok(control @ (Request::Reopen { .. } | Request::Close { .. })) => {
                            next = Some(control);
                        }
                        Ok(request) => {
                            byte_count += request.byte_count();
                            batch.push(request);
                        }
                        Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                    }
                }
                process(core, batch);
            }
        }
        if next.is_none() {
            next = requests.recv().ok();
        }
    }
    core.close();
}

fn run_one(core: &Core, request: Request) {
    match request {
        Request::Reopen { mut reply } => {
            reply.result = Some(core.reopen());
            reply.send();
        }
        Request::Close { mut reply } => {
            // A store that is closed already says so, as one does whose thread is gone.
            if let Some(error @ ResourceError::Closed) = core.state().end_error() {
                reply.result = Some(Err(error));
            } else {
                core.close();
                reply.result = Some(Ok(()));
            }
            reply.send();
        }
        request => process(core, vec![request]),
    }
}

fn process(core: &Core, mut batch: Vec<Request>) {
    let database = core.state().database();
    let database = match database {
        Ok(database) => database,
        Err(_) => return refuse_all(core, batch),
    };
    let written = write(core, &database, &mut batch);
    // Before a failure closes the store: it must be able to drop the last reference.
    drop(database);
    if let Err(error) = written {
        tracing::error!(error = %error, "a redb commit failed; the store closes itself until it is reopened");
        core.fail(Arc::new(error));
        return refuse_all(core, batch);
    }
    let mut state = core.state();
    for request in &batch {
        match request {
            Request::Prepare { owner, row, reply } if reply.is_ok() => {
                state.on_prepared(*owner, row.context.clone(), row.prepared_at);
            }
            Request::Prepare { owner, row, .. } => state.roll_back(*owner, Some(&row.context.branch)),
            Request::Commit { branch, reply } | Request::Abort { branch, reply } => {
                if matches!(reply.result, Some(Ok(Effect::Applied))) {
                    state.on_finished(branch);
                }
            }
            Request::Local { owner, .. } => state.release(*owner),
            Request::Bind { reply, .. } => {
                if let Some(Ok(identity)) = &reply.result {
                    state.identity = Some(identity.clone());
                }
            }
            Request::Forget { low_water, .. } => state.low_water = state.low_water.max(low_water.mark),
            Request::Work(_) | Request::Reopen { .. } | Request::Close { .. } => {}
        }
    }
    drop(state);
    for request in batch {
        match request {
            Request::Work(job) => job.send(),
            Request::Prepare { reply, .. } => reply.send(),
            Request::Commit { reply, .. } | Request::Abort { reply, .. } => reply.send(),
            Request::Local { reply, .. } | Request::Reopen { reply } | Request::Close { reply } => {
                reply.send();
            }
            Request::Bind { reply, .. } => reply.send(),
            Request::Forget { reply, .. } => reply.send(),
        }
    }
}

fn refuse_all(core: &Core, batch: Vec<Request>) {
    for request in batch {
        let error = core.state().end_error().unwrap_or(ResourceError::Closed);
        request.refuse(error);
    }
}

/// One durable commit of the whole batch, or none if no request changes a row.
fn write(core: &Core, database: &Database, batch: &mut [Request]) -> Result<(), WriteError> {
    let tx = core.options.begin_write(database)?;
    let (is_dirty, has_published) = {
        let mut rows = Rows::open(core, &tx)?;
        for request in batch {
            match request {
                Request::Work(job) => rows.work(&mut **job)?,
                Request::Prepare { owner, row, reply } => reply.result = Some(rows.prepare(*owner, row)?),
                Request::Commit { branch, reply } => reply.result = Some(rows.commit(branch)?),
                Request::Abort { branch, reply } => reply.result = Some(rows.abort(branch)?),
                Request::Local {
                    owner,
                    intents,
                    reply,
                } => reply.result = Some(rows.local(*owner, intents)?),
                Request::Bind { lineage, reply } => reply.result = Some(rows.bind(*lineage)?),
                Request::Forget { low_water, reply } => reply.result = Some(Ok(rows.forget(low_water)?)),
                Request::Reopen { .. } | Request::Close { .. } => {
                    unreachable!("control requests are not batched")
                }
            }
        }
        (rows.is_dirty, rows.has_published)
    };
    if is_dirty {
        tx.commit().map_err(::redb::Error::from)?;
        if has_published {
            core.tell_published();
        }
    } else {
        tx.abort().map_err(::redb::Error::from)?;
    }
    Ok(())
}
