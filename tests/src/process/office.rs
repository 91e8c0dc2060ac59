//! One office of the bank: a `test_service`, its points, its calls.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use synod_proto::ids::Gtid;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::Point;
use super::bank::bank_client::BankClient;
use super::bank::{LookRequest, TransferReply, TransferRequest};
use super::program::command;
use super::service::Service;

/// How long a commit waits for the log before it is in doubt, unless a test wants it otherwise.
pub const DECIDE_TIMEOUT: Duration = Duration::from_secs(15);

/// An office, running or not.
#[derive(Debug)]
pub struct Office {
    service: Service,
    coordinators: String,
    other: String,
    /// See [`DECIDE_TIMEOUT`]; takes hold at the next start.
    pub decide_timeout: Duration,
}

impl Deref for Office {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl DerefMut for Office {
    fn deref_mut(&mut self) -> &mut Service {
        &mut self.service
    }
}

impl Office {
    /// Two offices that know each other, not started.
    #[must_use]
    pub fn pair(names: [&'static str; 2], coordinators: &str, directory: &Path) -> [Self; 2] {
        let [here, there] = names.map(|name| Service::new(name, directory));
        let (here_address, there_address) = (here.address(), there.address());
        [(here, there_address), (there, here_address)].map(|(service, other)| Self {
            service,
            coordinators: coordinators.to_owned(),
            other,
            decide_timeout: DECIDE_TIMEOUT,
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
        let mut serve = command("test_service");
        serve.args([
            "serve",
            "--coordinators",
            &self.coordinators,
            "--other",
            &self.other,
            "--decide-timeout-ms",
            &self.decide_timeout.as_millis().to_string(),
        ]);
        self.service.start_by(serve).await;
    }

    /// Waits until a transaction stands at the armed point: which one.
    ///
    /// # Panics
    /// None comes.
    pub async fn paused(&mut self, point: Point) -> Gtid {
        let who = self.service.paused(point).await;
        who.parse()
            .unwrap_or_else(|_| panic!("paused at {point:?} by `{who}`, which is no gtid"))
    }

    /// A client that connects when it is used, and again after the process was started again.
    ///
    /// # Panics
    /// Never: the address is one.
    #[must_use]
    pub fn client(&self) -> BankClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address())).expect("an address");
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
