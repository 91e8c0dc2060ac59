//! The storage thread's work without the thread: see [`Storage::inline`](super::Storage::inline).

use super::{Command, ReadAnswer};
use crate::log::disk::Disk;
use crate::log::{Log, LogError, ReadError};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use synod_coordinator_core::durable::Batch;
use synod_coordinator_core::paxos::Slot;
use tokio::time::sleep;

/// A log of any disk.
trait AnyLog: Send {
    fn append(&mut self, batch: &Batch) -> Result<(), LogError>;
    fn read_range(&self, range: RangeInclusive<Slot>, bytes_max: usize) -> ReadAnswer;
    fn close(self: Box<Self>) -> Result<(), LogError>;
}

impl<D: Disk> AnyLog for Log<D> {
    fn append(&mut self, batch: &Batch) -> Result<(), LogError> {
        self.append(batch)
    }

    fn read_range(&self, range: RangeInclusive<Slot>, bytes_max: usize) -> ReadAnswer {
        self.read_range(range, bytes_max)
    }

    fn close(self: Box<Self>) -> Result<(), LogError> {
        Log::close(*self)
    }
}

/// The log, for whoever runs a command on it. `None` once it is closed.
pub(super) struct Inline {
    log: Mutex<Option<Box<dyn AnyLog>>>,
    latency: Duration,
}

impl Inline {
    pub(super) fn new<D: Disk>(log: Log<D>, latency: Duration) -> Self {
        Self {
            log: Mutex::new(Some(Box::new(log))),
            latency,
        }
    }

    /// Takes its time, then does the whole command at once and answers it.
    pub(super) async fn run(&self, command: Command) {
        sleep(self.latency).await;
        match command {
            Command::Append { batch, answer } => {
                let result = self
                    .log()
                    .as_mut()
                    .map_or(Err(LogError::Stopped), |log| log.append(&batch));
                answer.send(result).ok();
            }
            Command::Read {
                range,
                bytes_max,
                answer,
            } => {
                let result = match self.log().as_deref() {
                    Some(log) => log.read_range(range, bytes_max),
                    None => Err(ReadError::Stopped),
                };
                answer.send(result).ok();
            }
            Command::Stop { answer } => {
                let closed = self.log().take().map_or(Err(LogError::Stopped), AnyLog::close);
                if let Some(answer) = answer {
                    answer.send(closed).ok();
                }
            }
        }
    }

    /// A log that panicked half way says so itself, by what it wrote.
    fn log(&self) -> MutexGuard<'_, Option<Box<dyn AnyLog>>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Inline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inline")
            .field("latency", &self.latency)
            .finish_non_exhaustive()
    }
}
