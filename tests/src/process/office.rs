//! One office of the bank: a `test_service`, its points, its calls.

use std::path::{Path, PathBuf};
use std::time::Duration;

use synod_proto::ids::Gtid;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::Point;
use super::bank::bank_client::BankClient;
use super::bank::{LookRequest, TransferReply, TransferRequest};
use super::program::{Program, ReservedPort, command};

/// How long a commit waits for the log before it is in doubt, unless a test wants it otherwise.
pub const DECIDE_TIMEOUT: Duration = Duration::from_secs(15);

/// An office, running or not.
#[derive(Debug)]
pub struct Office {
    name: &'static str,
    directory: PathBuf,
    coordinators: String,
    port: ReservedPort,
    other: String,
    /// See [`DECIDE_TIMEOUT`]; takes hold at the next start.
    pub decide_timeout: Duration,
    program: Option<Program>,
}

impl Office {
    /// Two offices that know each other, not started.
    #[must_use]
    pub fn pair(names: [&'static str; 2], coordinators: &str, directory: &Path) -> [Self; 2] {
        let (here, there) = (ReservedPort::take(), ReservedPort::take());
        let addresses = [here.address(), there.address()];
        let [here_address, there_address] = addresses;
        [(names[0], here, there_address), (names[1], there, here_address)].map(|(name, port, other)| Self {
            name,
            directory: directory.to_owned(),
            coordinators: coordinators.to_owned(),
            port,
            other,
            decide_timeout: DECIDE_TIMEOUT,
            program: None,
        })
    }

    /// Reaches the coordinator at this address alone, from the next start on.
    pub fn connect_by(&mut self, address: &str) {
        self.coordinators = address.to_owned();
    }

    /// Starts the process, or starts it again, and waits until it serves.
    ///
    /// # Panics
    /// It runs already, or does not come to serve.
    pub async fn start(&mut self) {
        assert!(self.program.is_none(), "{} runs already", self.name);
        let mut serve = command("test_service");
        serve.args([
            "serve",
            "--coordinators",
            &self.coordinators,
            "--listen",
            &self.port.address(),
            "--other",
            &self.other,
        ]);
        serve.args([
            "--decide-timeout-ms",
            &self.decide_timeout.as_millis().to_string(),
        ]);
        serve.arg("--database").arg(self.database());
        let mut program = Program::start(self.name, serve, &self.directory);
        assert_eq!(program.line("listening").await, self.port.address());
        self.program = Some(program);
    }

    /// Its redb file.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.directory.join(format!("{}.redb", self.name))
    }

    /// Kills the process with SIGKILL.
    ///
    /// # Panics
    /// It does not run.
    pub async fn kill(&mut self) {
        self.program
            .take()
            .unwrap_or_else(|| panic!("{} does not run", self.name))
            .kill()
            .await;
    }

    /// Ends the process by SIGTERM.
    ///
    /// # Panics
    /// It does not run, or does not end well.
    pub async fn terminate(&mut self) {
        let program = self
            .program
            .take()
            .unwrap_or_else(|| panic!("{} does not run", self.name));
        assert_eq!(program.terminate().await, Some(0), "{} ends well", self.name);
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

    /// Makes the next transaction that comes by stop there.
    ///
    /// # Panics
    /// The process does not answer.
    pub async fn arm(&mut self, point: Point) {
        self.program().tell(&format!("arm {}", point.name())).await;
        assert_eq!(self.program().line("armed").await, point.name());
    }

    /// Waits until a transaction stands at the armed point: which one.
    ///
    /// # Panics
    /// None comes.
    pub async fn paused(&mut self, point: Point) -> Gtid {
        let line = self.program().line("paused").await;
        let gtid = line
            .strip_prefix(point.name())
            .map(|gtid| gtid.trim_start().parse());
        gtid.and_then(Result::ok)
            .unwrap_or_else(|| panic!("paused at `{line}` instead of {point:?}"))
    }

    /// Lets whoever stands at a point go on.
    pub async fn go(&mut self) {
        self.program().tell("go").await;
    }

    /// A client that connects when it is used, and again after the process was started again.
    ///
    /// # Panics
    /// Never: the address is one.
    #[must_use]
    pub fn client(&self) -> BankClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.port.address())).expect("an address");
        BankClient::new(endpoint.connect_timeout(Duration::from_secs(2)).connect_lazy())
    }

    /// Begins a transfer to the other office in the background: nobody has to listen for it to go on.
    #[must_use]
    pub fn transfer(
        &self,
        request: TransferRequest,
    ) -> tokio::task::JoinHandle<Result<TransferReply, Status>> {
        let mut client = self.client();
        tokio::spawn(async move { Ok(client.transfer(request).await?.into_inner()) })
    }

    /// How many of its branches wait for an outcome; nothing while it does not answer.
    pub async fn in_doubt_count(&self) -> Option<u32> {
        Some(
            self.client()
                .look(LookRequest {})
                .await
                .ok()?
                .into_inner()
                .in_doubt_count,
        )
    }
}
