//! What the programs begin and end with: the directory that a run keeps its files in, and the exit code.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use synod::BoxError;
use tempfile::TempDir;

use crate::process;

/// Why a run has no directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Nobody's files are written over.
    #[error("--keep {0}: the directory must be new or empty")]
    NotEmpty(String),
    /// The file system refused.
    #[error("{0}: {1}")]
    Refused(String, #[source] std::io::Error),
}

/// Where a run keeps databases, logs and traces. A temporary one is removed when this is dropped.
#[derive(Debug)]
pub struct Directory {
    /// For databases and logs.
    pub data: PathBuf,
    /// For a trace of each process.
    pub traces: PathBuf,
    _temporary: Option<TempDir>,
}

impl Directory {
    /// Takes the directory of `--keep`, or else a temporary one whose name begins with the example's, and starts this process's
    /// own trace there, in a file of this name.
    ///
    /// # Errors
    /// The directory is not empty, or cannot be written.
    pub fn choose(example: &str, keep: Option<&Path>, own_trace: &str) -> Result<Self, DirectoryError> {
        let refused = |path: &Path, error| DirectoryError::Refused(path.display().to_string(), error);
        let (data, temporary) = match keep {
            Some(data) => {
                std::fs::create_dir_all(data).map_err(|error| refused(data, error))?;
                let mut files = std::fs::read_dir(data).map_err(|error| refused(data, error))?;
                if files.next().is_some() {
                    return Err(DirectoryError::NotEmpty(data.display().to_string()));
                }
                (
                    std::path::absolute(data).map_err(|error| refused(data, error))?,
                    None,
                )
            }
            None => {
                let temporary = tempfile::Builder::new()
                    .prefix(&format!("{example}-"))
                    .tempdir()
                    .map_err(|error| refused(&std::env::temp_dir(), error))?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let traces = data.join("traces");
        std::fs::create_dir(&traces).map_err(|error| refused(&traces, error))?;
        let trace = traces.join(own_trace);
        process::start_trace(std::fs::File::create(&trace).map_err(|error| refused(&trace, error))?);
        Ok(Self {
            data,
            traces,
            _temporary: temporary,
        })
    }
}

/// What a run found out, for people and as JSON.
pub trait Report: Serialize {
    /// Whether everything adds up.
    fn adds_up(&self) -> bool;

    /// The figures, in lines.
    fn figures(&self) -> String;

    /// What holds, where everything adds up.
    fn verdict(&self) -> &'static str;

    /// What does not.
    fn problems(&self) -> &[String];
}

/// Runs an example and prints its report, the only thing that goes to stdout. Whether everything adds up.
///
/// # Errors
/// There is no report, or nobody to print it to.
pub fn drive<R: Report>(
    is_json: bool,
    run: impl Future<Output = Result<R, BoxError>>,
) -> Result<bool, BoxError> {
    let report = tokio::runtime::Runtime::new()?.block_on(run)?;
    let mut out = std::io::stdout();
    if is_json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(report.adds_up());
    }
    writeln!(out, "{}", report.figures())?;
    match report.problems() {
        [] => writeln!(out, "it adds up: {}", report.verdict())?,
        problems => problems
            .iter()
            .try_for_each(|problem| writeln!(out, "PROBLEM: {problem}"))?,
    }
    Ok(report.adds_up())
}

/// Ends a process that is not the driver: its error goes to stderr, which is its trace, whose end the driver shows.
///
/// # Errors
/// The process's own.
pub fn of_process(result: Result<(), Box<dyn std::error::Error>>) -> Result<bool, BoxError> {
    result.map(|()| true).map_err(|error| error.to_string().into())
}

/// The exit code: 0 only if everything adds up.
#[must_use]
pub fn exit(result: Result<bool, BoxError>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
