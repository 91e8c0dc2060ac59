//! One process. Its stdout is read line by line, its stderr goes to a file that is shown when the test fails.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};

use rustix::process::{Pid, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpSocket;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::STEP;

pub use rustix::process::Signal;

/// A program of this workspace, from beside the running test.
///
/// # Panics
/// It was not built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own file");
    // target/<profile>/deps/<test>
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("a test lies in target/<profile>/deps");
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is missing: build it first, with `cargo build --bins`",
        path.display()
    );
    path
}

/// A command that dies with this test, however the test ends: see `test_service guard`.
#[must_use]
pub fn command(name: &str) -> Command {
    let mut command = Command::new(binary("test_service"));
    command
        .arg("guard")
        .arg("--")
        .arg(binary(name))
        .env_remove("SYNOD_TRACE")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs a command to its end.
///
/// # Panics
/// It does not end within [`STEP`].
pub async fn run(mut command: Command) -> Output {
    timeout(STEP, command.output())
        .await
        .expect("the command ends in time")
        .expect("the command starts")
}

/// A port of this machine that nobody else gets while this value lives.
///
/// The socket is bound and never listens. A process that sets `SO_REUSEADDR`, as servers do, can bind and listen beside
/// it, be killed, and come back; port 0 and outgoing connections never get such a port.
#[derive(Debug)]
pub struct ReservedPort {
    socket: TcpSocket,
}

impl ReservedPort {
    /// Takes any free port.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn take() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .set_reuseaddr(true)
            .expect("an option that every socket has");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        Self { socket }
    }

    /// `127.0.0.1:PORT`.
    ///
    /// # Panics
    /// Never: the socket is bound.
    #[must_use]
    pub fn address(&self) -> String {
        self.socket
            .local_addr()
            .expect("a bound socket has an address")
            .to_string()
    }
}

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    trace: PathBuf,
}

impl Program {
    /// Starts a process; its stderr is added to `NAME.txt` in the folder `traces`.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn start(name: &str, mut command: Command, traces: &Path) -> Self {
        let trace = traces.join(format!("{name}.txt"));
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(&trace)
            .expect("the folder of traces can be written");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let stdin = child.stdin.take();
        Self {
            name: name.to_owned(),
            child,
            stdin,
            lines,
            trace,
        }
    }

    /// The rest of the next line, which begins with `word`.
    ///
    /// # Panics
    /// The next line is another one, or none comes within [`STEP`].
    pub async fn line(&mut self, word: &str) -> String {
        let line = match timeout(STEP, self.lines.next_line()).await {
            Ok(line) => line.expect("its stdout is text"),
            Err(_) => panic!("{} says nothing within {STEP:?}; expected `{word}`", self.name),
        };
        let Some(line) = line else {
            panic!(
                "{} ended; expected `{word}`. Its trace:\n{}",
                self.name,
                self.trace()
            )
        };
        match line.strip_prefix(word) {
            Some(rest) => rest.trim_start().to_owned(),
            None => panic!("{} says `{line}`; expected `{word}`", self.name),
        }
    }

    /// Says a line to the process.
    ///
    /// # Panics
    /// It does not listen.
    pub async fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open until the end");
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// The process has ended.
    pub fn signal(&self, signal: Signal) {
        let id = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let id = id.unwrap_or_else(|| panic!("{} has ended already", self.name));
        kill_process(id, signal).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Waits for the end: the exit code, or nothing after a signal.
    ///
    /// # Panics
    /// It does not end within [`STEP`].
    pub async fn end(&mut self) -> Option<i32> {
        let status: ExitStatus = timeout(STEP, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("{} does not end within {STEP:?}", self.name))
            .expect("a child can be waited for");
        assert!(
            matches!(status.signal(), None | Some(9)),
            "{} ended by {status}",
            self.name
        );
        status.code()
    }

    /// Kills the process, which gets no chance to do anything, and waits until it is gone.
    ///
    /// # Panics
    /// It had ended by itself.
    pub async fn kill(mut self) {
        self.signal(Signal::KILL);
        let code = self.end().await;
        assert_eq!(
            code,
            None,
            "{} ended by itself before it was killed. Its trace:\n{}",
            self.name,
            self.trace()
        );
    }

    /// Ends the process by SIGTERM: the exit code.
    ///
    /// # Panics
    /// It does not end within [`STEP`].
    pub async fn terminate(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.end().await
    }

    /// Everything that it wrote to stderr, in this life and in earlier ones of the same name.
    #[must_use]
    pub fn trace(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.trace).unwrap_or_default()).into_owned()
    }
}
