//! The storage thread: the one thread that owns a replica's log (design section 2, L7).
//!
//! It takes batches, one write and one sync each, and looks up reads, which a second thread carries out so that a peer's
//! catch-up delays no acknowledgement. A third, short-lived one prepares the next segment. The driver talks to it by
//! channels; what it answers to an append is the sync that L2 waits for.
//!
//! A caller that has nothing else to do may write in its own thread instead ([`Storage::append_now`]): two hand-offs less.
//!
//! The thread starts before the replica does, and whoever stops it waits until nothing writes any more
//! (traps A18): only then may another be started on the same directory.

mod inline;

use super::disk::Disk;
use super::segment::Segment;
use super::{Log, LogError, ReadError, ReadPlan};
use inline::Inline;
use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use synod_coordinator_core::durable::Batch;
use synod_coordinator_core::paxos::{Accepted, Slot};
use tokio::sync::oneshot;

/// The most reads that wait. Each is one peer's catch-up, which asks again.
const READ_COUNT_MAX: usize = 64;
/// How long to wait after a failed preparation of a segment before the next try, while the current one has room.
const PREPARE_RETRY: Duration = Duration::from_secs(1);

/// A write that took longer than this sends the following ones to the thread, for as long as [`SLOW_PAUSE`]: a disk that
/// stalls must not hold up its caller again and again.
const SLOW_WRITE: Duration = Duration::from_millis(20);
/// See [`SLOW_WRITE`].
const SLOW_PAUSE: Duration = Duration::from_secs(1);

/// A running storage thread. Dropping it stops the thread, and waits until it has ended.
#[derive(Debug)]
pub struct Storage {
    to: To,
    thread: Option<JoinHandle<()>>,
}

/// Who carries the commands out.
#[derive(Debug)]
enum To {
    Thread {
        commands: mpsc::Sender<Command>,
        shared: Arc<dyn AppendNow>,
        /// Appends on their way to the thread or being done by it.
        append_count: Arc<AtomicUsize>,
    },
    Caller(Arc<Inline>),
}

/// A worker of any disk, for a write in the caller's thread.
trait AppendNow: std::fmt::Debug + Send + Sync {
    fn append_now(&self, batch: &Batch) -> Option<Result<(), LogError>>;
}

#[derive(Debug)]
enum Command {
    Append {
        batch: Batch,
        answer: oneshot::Sender<Result<(), LogError>>,
    },
    Read {
        range: RangeInclusive<Slot>,
        bytes_max: usize,
        answer: oneshot::Sender<ReadAnswer>,
    },
    Stop {
        answer: Option<oneshot::Sender<Result<(), LogError>>>,
    },
}

type ReadAnswer = Result<Vec<Accepted>, ReadError>;
type Preparing<F> = JoinHandle<Result<Segment<F>, LogError>>;

impl Storage {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start<D: Disk>(log: Log<D>) -> io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let (reads, reads_inbox) = mpsc::sync_channel(READ_COUNT_MAX);
        let reader = spawn("synod-log-read", move || run_reads::<D>(&reads_inbox))?;
        let shared = Arc::new(Shared(Mutex::new(Some(Worker {
            log,
            reads,
            preparing: None,
            prepare_after: None,
            slow_until: None,
        }))));
        let append_count = Arc::new(AtomicUsize::new(0));
        let (worker, counted) = (shared.clone(), append_count.clone());
        let thread = spawn("synod-log", move || {
            let answer = worker.run(&inbox, &counted);
            // The log is closed and its files released before whoever stops the thread is told.
            let result = worker
                .lock()
                .take()
                .map_or(Err(LogError::Stopped), Worker::finish);
            reader.join().ok();
            if let Some(answer) = answer {
                answer.send(result).ok();
            }
        })?;
        Ok(Self {
            to: To::Thread {
                commands,
                shared,
                append_count,
            },
            thread: Some(thread),
        })
    }

    /// Without a thread: each batch is written by the task that awaits it, after `latency` of tokio's time. For a
    /// simulation, whose virtual time would run ahead of a thread. A write whose future is dropped before is lost, as by a
    /// crash.
    pub fn inline<D: Disk>(log: Log<D>, latency: Duration) -> Self {
        Self {
            to: To::Caller(Arc::new(Inline::new(log, latency))),
            thread: None,
        }
    }

    /// Writes and syncs a batch. The future may be dropped; the write goes on. Batches are written in the order of the
    /// calls.
    ///
    /// # Errors
    /// As [`Log::append`]; [`LogError::Stopped`] also if the thread panicked: then too nothing is known of the batch.
    pub fn append(
        &self,
        batch: Batch,
    ) -> impl Future<Output = Result<(), LogError>> + Send + 'static + use<> {
        let (answer, receiver) = oneshot::channel();
        let command = Command::Append { batch, answer };
        let later = self.give(command);
        async move {
            if let Some((inline, command)) = later {
                inline.run(command).await;
            }
            // A command that was not taken drops its sender, as a panic does.
            receiver.await.unwrap_or(Err(LogError::Stopped))
        }
    }

    /// Writes and syncs a batch in the caller's thread, which is blocked meanwhile, as long as that is cheap: `None`, and
    /// nothing done, where the write would wait for another one or for a new segment, or where the disk was slow lately.
    /// For a follower, which is one serial loop: what it would do meanwhile waits for this very sync.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn append_now(&self, batch: &Batch) -> Option<Result<(), LogError>> {
        match &self.to {
            To::Thread {
                shared, append_count, ..
            } if append_count.load(Ordering::Acquire) == 0 => shared.append_now(batch),
            To::Thread { .. } | To::Caller(_) => None,
        }
    }

    /// Reads the values of the slots of `range` that have one, as [`Log::read_range`], beside the writes.
    ///
    /// # Errors
    /// A value cannot be read, or too many reads wait.
    pub fn read_range(
        &self,
        range: RangeInclusive<Slot>,
        bytes_max: usize,
    ) -> impl Future<Output = Result<Vec<Accepted>, ReadError>> + Send + 'static + use<> {
        let (answer, receiver) = oneshot::channel();
        let later = self.give(Command::Read {
            range,
            bytes_max,
            answer,
        });
        async move {
            if let Some((inline, command)) = later {
                inline.run(command).await;
            }
            receiver.await.unwrap_or(Err(ReadError::Stopped))
        }
    }

    /// Hands a command to the thread, or gives it back to be run by the caller.
    fn give(&self, command: Command) -> Option<(Arc<Inline>, Command)> {
        match &self.to {
            To::Thread {
                commands,
                append_count,
                ..
            } => {
                if matches!(command, Command::Append { .. }) {
                    append_count.fetch_add(1, Ordering::AcqRel);
                }
                commands.send(command).ok();
                None
            }
            To::Caller(inline) => Some((inline.clone(), command)),
        }
    }

    /// Finishes the writes asked for, marks the orderly end ([`Log::close`]) and stops the thread. When it returns, every
    /// file is closed.
    ///
    /// # Errors
    /// The log failed, now or earlier.
    pub async fn stop(mut self) -> Result<(), LogError> {
        let (answer, receiver) = oneshot::channel();
        if let Some((inline, command)) = self.give(Command::Stop { answer: Some(answer) }) {
            inline.run(command).await;
        }
        let result = receiver.await.unwrap_or(Err(LogError::Stopped));
        // It has answered as its last act, or panicked: this does not block for long.
        self.join();
        result
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic was told to whoever waited for an answer, and is printed by the panic hook.
            thread.join().ok();
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // Inline nothing goes on by itself, so there is nothing to stop.
        let _ = self.give(Command::Stop { answer: None });
        self.join();
    }
}

fn spawn<R: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> R + Send + 'static,
) -> io::Result<JoinHandle<R>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

#[derive(Debug)]
struct Worker<D: Disk> {
    log: Log<D>,
    reads: mpsc::SyncSender<(ReadPlan<D>, oneshot::Sender<ReadAnswer>)>,
    preparing: Option<Preparing<D::File>>,
    prepare_after: Option<Instant>,
    slow_until: Option<Instant>,
}

type StopAnswer = Option<oneshot::Sender<Result<(), LogError>>>;

/// The worker, for the storage thread and for the driver's own; `None` once it has stopped. The two never want it at the
/// same time, but for a peer's catch-up that is being looked up.
#[derive(Debug)]
struct Shared<D: Disk>(Mutex<Option<Worker<D>>>);

impl<D: Disk> AppendNow for Shared<D> {
    fn append_now(&self, batch: &Batch) -> Option<Result<(), LogError>> {
        self.0.try_lock().ok()?.as_mut()?.append_now(batch)
    }
}

impl<D: Disk> Shared<D> {
    /// A panic while it was held ended the storage thread, or the replica: nobody takes what it left for a success.
    fn lock(&self) -> MutexGuard<'_, Option<Worker<D>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out commands until one says stop.
    fn run(&self, inbox: &mpsc::Receiver<Command>, append_count: &AtomicUsize) -> StopAnswer {
        loop {
            let command = match inbox.recv() {
                Ok(Command::Stop { answer }) => return answer,
                Ok(command) => command,
                // The handle sends `Stop` before it goes; without it there is nobody to wait for.
                Err(mpsc::RecvError) => return None,
            };
            let mut worker = self.lock();
            let worker = worker.as_mut()?;
            match command {
                Command::Append { batch, answer } => {
                    let result = worker.append(&batch);
                    append_count.fetch_sub(1, Ordering::AcqRel);
                    // A driver that has gone away needs no answer.
                    answer.send(result).ok();
                    worker.prepare();
                }
                Command::Read {
                    range,
                    bytes_max,
                    answer,
                } => worker.read(range, bytes_max, answer),
                Command::Stop { .. } => unreachable!("taken above"),
            }
        }
    }
}

impl<D: Disk> Worker<D> {
    fn append_now(&mut self, batch: &Batch) -> Option<Result<(), LogError>> {
        let begun = Instant::now();
        if self.log.rolls_for(batch) || self.slow_until.is_some_and(|until| begun < until) {
            return None;
        }
        let result = self.append(batch);
        self.prepare();
        self.slow_until = (begun.elapsed() > SLOW_WRITE).then(|| begun + SLOW_PAUSE);
        Some(result)
    }

    fn append(&mut self, batch: &Batch) -> Result<(), LogError> {
        let is_ready = self.preparing.as_ref().is_some_and(JoinHandle::is_finished);
        if is_ready || self.log.rolls_for(batch) {
            self.await_preparation();
        }
        self.log.append(batch)
    }

    fn read(&self, range: RangeInclusive<Slot>, bytes_max: usize, answer: oneshot::Sender<ReadAnswer>) {
        let refused = match self.log.plan_read(range, bytes_max) {
            Ok(plan) => match self.reads.try_send((plan, answer)) {
                Ok(()) => return,
                Err(mpsc::TrySendError::Full((_, answer))) => (answer, ReadError::Busy),
                Err(mpsc::TrySendError::Disconnected((_, answer))) => (answer, ReadError::Stopped),
            },
            Err(error) => (answer, error),
        };
        let (answer, error) = refused;
        answer.send(Err(error)).ok();
    }

    /// Starts preparing the next segment, if it is time.
    fn prepare(&mut self) {
        let is_waiting =
            self.preparing.is_some() || self.prepare_after.is_some_and(|after| Instant::now() < after);
        if is_waiting {
            return;
        }
        if let Some(preparation) = self.log.preparation() {
            // Without a thread the segment is made when it is needed: slower, not wrong.
            self.preparing = spawn("synod-log-next", move || preparation.run()).ok();
        }
    }

    /// Waits for the segment that is being prepared, if one is.
    fn await_preparation(&mut self) {
        let Some(preparing) = self.preparing.take() else {
            return;
        };
        match preparing.join().unwrap_or(Err(LogError::Stopped)) {
            Ok(segment) => {
                self.prepare_after = None;
                self.log.adopt(segment);
            }
            Err(error) => {
                // Not yet a failure of the log: nothing was written that anybody waits for. When the segment is
                // needed, its creation is tried once more, and that answer counts.
                tracing::warn!(%error, "the next log segment could not be prepared");
                self.prepare_after = Some(Instant::now() + PREPARE_RETRY);
            }
        }
    }

    fn finish(mut self) -> Result<(), LogError> {
        self.await_preparation();
        self.log.close()
    }
}

/// The thread that reads: ends when the storage thread has dropped its end of the channel.
fn run_reads<D: Disk>(inbox: &mpsc::Receiver<(ReadPlan<D>, oneshot::Sender<ReadAnswer>)>) {
    while let Ok((plan, answer)) = inbox.recv() {
        answer.send(plan.run()).ok();
    }
}
