//! Calls from the command line: to one replica, or to whichever leads.

use super::exit::{Exit, Failure};
use crate::service::LEADER_METADATA_KEY;
use std::collections::VecDeque;
use std::time::Duration;
use synod_proto::v1::coordinator_client::CoordinatorClient;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long one replica may take to be connected to and to answer a status.
pub(super) const REPLICA_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two rounds over all endpoints.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// How many redirects are followed in one round.
const REDIRECT_COUNT_MAX: u32 = 3;

/// A page of a list and its texts fit; see the coordinator's own limit.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

pub(super) type Client = CoordinatorClient<Channel>;

/// Where to find the coordinator.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Endpoints {
    /// The replicas to ask, as a list of HOST:PORT.
    #[arg(
        long = "endpoints",
        alias = "endpoint",
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"
    )]
    pub(super) list: Vec<String>,
    /// How long to look for a leader and wait for its answer, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    timeout_ms: u64,
}

/// Runs a verb that talks to the coordinator.
pub(super) fn block_on<T>(verb: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?
        .block_on(verb)
}

/// `host:port`, whether or not it was given as a URL.
pub(super) fn address(endpoint: &str) -> &str {
    endpoint
        .strip_prefix("http://")
        .unwrap_or(endpoint)
        .trim_end_matches('/')
}

/// Connects to one replica.
pub(super) async fn connect(endpoint: &str) -> Result<Client, String> {
    let endpoint = Endpoint::from_shared(format!("http://{}", address(endpoint)))
        .map_err(|error| format!("`{endpoint}` is not HOST:PORT: {error}"))?
        .connect_timeout(REPLICA_TIMEOUT)
        .tcp_nodelay(true);
    match timeout(REPLICA_TIMEOUT, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(CoordinatorClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)),
        Ok(Err(error)) => {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(source) = cause.source() {
                cause = source;
            }
            Err(cause.to_string())
        }
        Err(_) => Err(format!("no answer within {} ms", REPLICA_TIMEOUT.as_millis())),
    }
}

/// Makes a call at the leader: follows redirects, goes round the endpoints, and tries again while there is no leader.
/// Every call of the service may be repeated: a proposal for a gtid is answered alike each time.
pub(super) async fn at_leader<T>(
    endpoints: &Endpoints,
    call: impl AsyncFn(&mut Client) -> Result<T, Status>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + Duration::from_millis(endpoints.timeout_ms);
    let mut next: VecDeque<String> = endpoints.list.iter().cloned().collect();
    let mut last = String::from("no endpoint was given");
    let mut redirect_count = 0;
    loop {
        let Some(endpoint) = next.pop_front() else {
            if Instant::now() >= deadline {
                let text = format!("no leader was found at {}: {last}", endpoints.list.join(", "));
                return Err(Failure::new(Exit::Unreachable, text));
            }
            sleep(ROUND_PAUSE).await;
            redirect_count = 0;
            next.extend(endpoints.list.iter().cloned());
            continue;
        };
        let mut client = match connect(&endpoint).await {
            Ok(client) => client,
            Err(error) => {
                last = format!("{endpoint}: {error}");
                continue;
            }
        };
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(REPLICA_TIMEOUT);
        let status = match timeout(left, call(&mut client)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer in time; what was asked is open: ask again"),
        };
        let leader = status
            .metadata()
            .get(LEADER_METADATA_KEY)
            .and_then(|value| value.to_str().ok());
        match (status.code(), leader) {
            // Two replicas that take each other for the leader, during an election, must not keep us busy.
            (_, Some(leader)) if redirect_count < REDIRECT_COUNT_MAX => {
                redirect_count += 1;
                next.push_front(leader.to_owned());
            }
            (Code::FailedPrecondition, Some(_)) => {}
            (Code::Unavailable, None) => {}
            (Code::DeadlineExceeded, None) => return Err(Failure::new(Exit::Unreachable, status.message())),
            _ => return Err(Failure::new(Exit::Failed, status.message())),
        }
        last = format!("{endpoint}: {}", status.message());
    }
}
