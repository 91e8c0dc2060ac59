//! One `test_service`, running or not: its port, its file, its points.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::Point;
use super::program::{Program, ReservedPort, Signal};

/// A service's process, and what outlives it.
#[derive(Debug)]
pub struct Service {
    name: &'static str,
    directory: PathBuf,
    port: ReservedPort,
    program: Option<Program>,
}

impl Service {
    pub(super) fn new(name: &'static str, directory: &Path) -> Self {
        Self {
            name,
            directory: directory.to_owned(),
            port: ReservedPort::take(),
            program: None,
        }
    }

    /// Starts the process, or starts it again, and waits until it serves.
    pub(super) async fn start_by(&mut self, mut command: Command) {
        assert!(self.program.is_none(), "{} runs already", self.name);
        command.args(["--listen", &self.address()]);
        command.arg("--database").arg(self.database());
        let mut program = Program::start(self.name, command, &self.directory);
        assert_eq!(program.line("listening").await, self.address());
        self.program = Some(program);
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Where it listens, running or not.
    #[must_use]
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// Its redb file.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.directory.join(format!("{}.redb", self.name))
    }

    /// Whether it was started, and not ended by the test.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.program.is_some()
    }

    fn program(&mut self) -> &mut Program {
        self.program
            .as_mut()
            .unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    fn take_program(&mut self) -> Program {
        self.program
            .take()
            .unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    /// Kills the process with SIGKILL.
    ///
    /// # Panics
    /// It does not run.
    pub async fn kill(&mut self) {
        self.take_program().kill().await;
    }

    /// Ends the process by SIGTERM.
    ///
    /// # Panics
    /// It does not run, or does not end well.
    pub async fn terminate(&mut self) {
        let status = self.take_program().terminate().await;
        assert_eq!(status, Some(0), "{} ends well", self.name);
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.program().signal(signal);
    }

    /// Makes whoever comes by next stop there.
    ///
    /// # Panics
    /// The process does not answer.
    pub async fn arm(&mut self, point: Point) {
        self.program().tell(&format!("arm {}", point.name())).await;
        assert_eq!(self.program().line("armed").await, point.name());
    }

    /// Waits until somebody stands at the armed point: who.
    ///
    /// # Panics
    /// Nobody comes.
    pub async fn paused(&mut self, point: Point) -> String {
        let line = self.program().line("paused").await;
        let who = line.strip_prefix(point.name());
        who.unwrap_or_else(|| panic!("paused at `{line}` instead of {point:?}"))
            .trim_start()
            .to_owned()
    }

    /// Lets whoever stands at a point go on.
    pub async fn go(&mut self) {
        self.program().tell("go").await;
    }
}
