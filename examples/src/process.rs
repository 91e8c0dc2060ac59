//! One process of the example, seen from the driver ([`Process`]) and from itself ([`announce`], [`told`], [`until_driver_ends`]).
//!
//! A process binds port 0, so that no port can be taken by somebody else between choosing and binding, and says its address on stdout.
//! Its stdin is a pipe that the driver holds open: when the pipe closes, the process ends gracefully. The kernel closes it
//! as well when the driver is killed, so no process outlives the driver.

use std::ffi::OsString;
use std::io::{BufRead as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How long a process may take from its start to its address. Generous: the machine may be busy building.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a process may take to end gracefully; the driver waits a little longer than the process gives itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);
const OWN_STOP_TIMEOUT: Duration = Duration::from_secs(10);
const _: () = assert!(OWN_STOP_TIMEOUT.as_secs() < STOP_TIMEOUT.as_secs());

/// How long a restarted process waits for its old port.
const PORT_TIMEOUT: Duration = Duration::from_secs(10);

/// How many lines of a process's trace are shown when it failed.
const TRACE_LINE_COUNT: usize = 12;

/// A process did not do what it should; says so with the end of its trace.
#[derive(Debug, thiserror::Error)]
#[error("{name} {what}\n{trace}")]
pub struct ProcessError {
    name: String,
    what: String,
    trace: String,
}

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    /// What it is called in messages.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// The operating system's number of it.
    pub id: u32,
    child: Child,
    stdin: Option<ChildStdin>,
    trace: PathBuf,
    is_killed: bool,
}

impl Process {
    /// Starts this executable with a hidden sub-command and waits for its address. Its stderr goes to a file in
    /// `traces`.
    pub async fn start(name: &str, args: Vec<OsString>, traces: &Path) -> Result<Self, ProcessError> {
        let trace = traces.join(format!("{}.txt", name.replace(' ', "-")));
        let fail = |what: String| ProcessError {
            name: name.to_owned(),
            what,
            trace: last_lines(&trace),
        };
        let spawn = || {
            let stderr = std::fs::File::options().create(true).append(true).open(&trace)?;
            Command::new(std::env::current_exe()?)
                .args(&args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(stderr)
                .kill_on_drop(true)
                // A group of its own: Ctrl-C reaches the driver alone, which then ends everybody in order.
                .process_group(0)
                .spawn()
        };
        let mut child = spawn().map_err(|error| fail(format!("could not be started: {error}")))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or_else(|| fail("has no stdout".into()))?;
        let mut line = String::new();
        let mut stdout = BufReader::new(stdout);
        let read = tokio::time::timeout(START_TIMEOUT, stdout.read_line(&mut line)).await;
        match (read, line.trim_end().parse()) {
            (Ok(Ok(_)), Ok(address)) => {
                let id = child.id().unwrap_or_default();
                Ok(Self {
                    name: name.to_owned(),
                    address,
                    id,
                    child,
                    stdin,
                    trace,
                    is_killed: false,
                })
            }
            (Err(_), _) => Err(fail(format!("said no address within {START_TIMEOUT:?}"))),
            // End of file comes when the process ends, just before its status can be read.
            _ => match tokio::time::timeout(STOP_TIMEOUT, child.wait()).await {
                Ok(Ok(status)) => Err(fail(format!("ended before it was ready: {}", ended(status)))),
                _ => Err(fail(format!("said `{}` instead of its address", line.trim_end()))),
            },
        }
    }

    /// Sends a line to the process.
    pub async fn tell(&mut self, line: &str) -> Result<(), ProcessError> {
        let Some(stdin) = self.stdin.as_mut() else {
            return Err(self.error("was stopped already".into()));
        };
        match stdin.write_all(format!("{line}\n").as_bytes()).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.error(format!("does not listen: {error}"))),
        }
    }

    /// Sends SIGKILL: the process gets no chance to do anything.
    pub fn send_kill(&mut self) -> Result<(), ProcessError> {
        self.is_killed = true;
        self.child
            .start_kill()
            .map_err(|error| self.error(format!("could not be killed: {error}")))
    }

    /// Waits for the end of a process that must not end by itself. The end of one that was killed is expected.
    pub async fn unexpected_end(&mut self) -> ProcessError {
        if self.is_killed {
            return std::future::pending().await;
        }
        let status = self.child.wait().await;
        self.error(format!(
            "ended unexpectedly: {}",
            status.map_or_else(|error| error.to_string(), ended)
        ))
    }

    /// Waits until a killed process is gone, so that its port is free.
    pub async fn gone(&mut self) -> Result<(), ProcessError> {
        match tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.error(error.to_string())),
            Err(_) => Err(self.error(format!("was killed, but lives after {STOP_TIMEOUT:?}"))),
        }
    }

    /// Closes the pipe, waits for the graceful end, and takes nothing but success.
    pub async fn stop(&mut self) -> Result<(), ProcessError> {
        self.stdin = None;
        match tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.error(format!("did not stop cleanly: {}", ended(status)))),
            Ok(Err(error)) => Err(self.error(error.to_string())),
            Err(_) => Err(self.error(format!("did not stop within {STOP_TIMEOUT:?}"))),
        }
    }

    /// What went wrong with this process, with the end of its trace.
    pub fn error(&self, what: String) -> ProcessError {
        ProcessError {
            name: self.name.clone(),
            what,
            trace: last_lines(&self.trace),
        }
    }
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}

fn last_lines(trace: &Path) -> String {
    let text = std::fs::read(trace).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(TRACE_LINE_COUNT)..];
    let shown: String = shown.iter().map(|line| format!("  | {line}\n")).collect();
    format!(
        "  its trace, {}, ends with:\n{}",
        trace.display(),
        if shown.is_empty() {
            "  | (nothing)\n"
        } else {
            &shown
        }
    )
}

/// In the process: listens at the address, for tokio. On a restart the kernel may take a moment to give the killed process's port
/// free.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let begun_at = Instant::now();
    let listener = loop {
        match TcpListener::bind(address) {
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrInUse && begun_at.elapsed() < PORT_TIMEOUT =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            bound => break bound?,
        }
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// In the process: says the address to the driver.
pub fn announce(address: SocketAddr) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{address}")?;
    stdout.flush()
}

/// In the process: waits for a line from the driver.
pub fn told() -> std::io::Result<String> {
    let mut line = String::new();
    if std::io::stdin().lock().read_line(&mut line)? == 0 {
        return Err(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            "the driver is gone",
        ));
    }
    Ok(line.trim_end().to_owned())
}

/// In the process: cancelled when the driver closes the pipe, or is gone. A process that is not gone after a while then
/// ends the hard way.
pub fn until_driver_ends() -> CancellationToken {
    let token = CancellationToken::new();
    let ended = token.clone();
    std::thread::spawn(move || {
        // An error means that nobody holds the pipe, like the end of file.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        ended.cancel();
        std::thread::sleep(OWN_STOP_TIMEOUT);
        eprintln!("not stopped within {OWN_STOP_TIMEOUT:?}: ending now");
        std::process::exit(1);
    });
    token
}

/// Lets this process's trace go somewhere: a process's own to stderr, which the driver leads into a file. `SYNOD_TRACE` filters
/// it, in the syntax of `tracing-subscriber`; `info` by default.
pub fn start_trace(writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    let filter = EnvFilter::try_from_env("SYNOD_TRACE").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false)
        .init();
}
