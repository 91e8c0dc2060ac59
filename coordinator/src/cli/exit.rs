//! Exit codes: the one place where they are defined.

use crate::log::LogError;
use crate::replica_process::RunError;
use std::process::ExitCode;

/// What `synod` ends with. Stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// 0: done, and the answer is positive.
    Success = 0,
    /// 1: the command failed, or the answer is negative: no replica leads, the log says otherwise than was asked for,
    /// a request was refused, a load left work behind, a directory is damaged.
    Failed = 1,
    /// 2: the command line is wrong.
    Usage = 2,
    /// 3: the configuration or the data directory is wrong, or the directory is another replica's, cluster's or set of
    /// replicas'; nothing was started.
    Configuration = 3,
    /// 4: the address to listen at is taken, or not this machine's.
    Address = 4,
    /// 5: the log could not be written. The replica acknowledged nothing more and ended (L9). Look at the disk before
    /// it is started again.
    Storage = 5,
    /// 6: no replica, or none that leads, or no service was reached in time.
    Unreachable = 6,
    /// 7: there is no outcome to tell: the transaction is undecided, or so old that its record is gone.
    NoOutcome = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a verb failed: the exit code, and a line for people that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) text: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self {
            exit,
            text: text.into(),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let exit = match &error {
            RunError::Log(LogError::Full { .. } | LogError::Broken { .. }) => Exit::Storage,
            RunError::Directory(_) | RunError::Log(_) => Exit::Configuration,
            RunError::Server(_) | RunError::Thread(_) | RunError::Random(_) => Exit::Failed,
            RunError::Storage(_) | RunError::Read(_) => Exit::Storage,
        };
        Self::new(exit, error.to_string())
    }
}
