//! The sessions: a connection and a stream each, to whichever replica leads.

use super::generator::{Connection, Generator, Next};
use super::plan::{Plan, Transport};
use super::{BenchError, POLL, unary};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use synod_proto::ids::Lineage;
use synod_proto::v1;
use synod_proto::v1::coordinator_client::CoordinatorClient;
use synod_proto::v1::session_response::Response;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// How long one replica may take to answer.
pub(super) const REPLICA_TIMEOUT: Duration = Duration::from_millis(1_000);

/// Between two looks for a leader: short, since the time without one is what a failover test measures.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// How long a request that found a full queue waits.
pub(super) const OVERLOADED_PAUSE: Duration = Duration::from_millis(20);

/// Flow-control windows, in bytes: deliveries must not wait for the generator's turn.
const WINDOW_BYTES: u32 = 8 << 20;

pub(super) type Client = CoordinatorClient<Channel>;

/// Connects every session, and keeps each connected until `stop`.
pub(super) async fn start(
    plan: &Plan,
    generator: &Rc<RefCell<Generator>>,
    stop: &CancellationToken,
) -> Result<(), BenchError> {
    for session in 0..plan.session_count.max(1) {
        let task = keep(session, plan.endpoints.clone(), generator.clone());
        let stop = stop.clone();
        tokio::task::spawn_local(async move { stop.run_until_cancelled_owned(task).await });
    }
    while !generator.borrow().is_connected() {
        if let Some(error) = generator.borrow().failure() {
            return Err(error);
        }
        sleep(POLL).await;
    }
    Ok(())
}

async fn keep(session: usize, endpoints: Vec<String>, generator: Rc<RefCell<Generator>>) {
    loop {
        match leader(&endpoints).await {
            Ok(client) => {
                if let Err(trouble) = serve(session, client, &generator).await {
                    generator.borrow_mut().note_trouble(trouble);
                }
                generator.borrow_mut().detach(session);
            }
            Err(trouble) => generator.borrow_mut().note_trouble(trouble),
        }
        sleep(LOOK_PAUSE).await;
    }
}

/// A connection of its own to one replica.
pub(super) async fn connect(endpoint: &str) -> Result<Client, String> {
    let address = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("`{address}` is not HOST:PORT: {error}"))?
        .connect_timeout(REPLICA_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let channel = timeout(REPLICA_TIMEOUT, endpoint.connect())
        .await
        .map_err(|_| format!("{address}: no answer in time"))?;
    Ok(CoordinatorClient::new(
        channel.map_err(|error| format!("{address}: {error}"))?,
    ))
}

/// A connection to the replica that says that it leads.
async fn leader(endpoints: &[String]) -> Result<Client, String> {
    let mut trouble = "no replica leads".to_owned();
    for endpoint in endpoints {
        let mut client = match connect(endpoint).await {
            Ok(client) => client,
            Err(error) => {
                trouble = error;
                continue;
            }
        };
        match timeout(REPLICA_TIMEOUT, client.status(v1::StatusRequest {})).await {
            Ok(Ok(status)) if status.get_ref().role == "leader" => return Ok(client),
            Ok(Ok(_)) => {}
            Ok(Err(status)) => trouble = format!("{endpoint}: {}", status.message()),
            Err(_) => trouble = format!("{endpoint}: no answer in time"),
        }
    }
    Err(trouble)
}

/// One life of a session: register, ask again what is open, then take what comes until the stream ends.
async fn serve(session: usize, mut client: Client, generator: &Rc<RefCell<Generator>>) -> Result<(), String> {
    let (requests, stream) = mpsc::unbounded_channel();
    let register = v1::Register {
        request: u64::MAX,
        lineage: None,
        resources: vec![generator.borrow().resource(session).0.to_vec().into()],
    };
    let register = v1::SessionRequest {
        request: Some(v1::session_request::Request::Register(register)),
    };
    let _ = requests.send(v1::SessionRequests {
        requests: vec![register],
    });
    let text = |status: tonic::Status| status.message().to_owned();
    let mut responses = timeout(
        REPLICA_TIMEOUT,
        client.session(UnboundedReceiverStream::new(stream)),
    )
    .await
    .map_err(|_| "the session was not answered in time".to_owned())?
    .map_err(text)?
    .into_inner();
    let registered = timeout(REPLICA_TIMEOUT, async {
        while let Some(message) = responses.message().await.map_err(text)? {
            for response in message.responses {
                match response.response {
                    Some(Response::Registered(registered)) => return Ok(registered),
                    Some(Response::Refused(refused)) => return Err(format!("not registered: {refused:?}")),
                    _ => {}
                }
            }
        }
        Err("the session ended before it was registered".to_owned())
    });
    let registered = registered
        .await
        .map_err(|_| "the registration was not answered in time".to_owned())??;
    let lineage = <[u8; 16]>::try_from(&registered.lineage[..])
        .map(Lineage)
        .map_err(|_| "the coordinator's lineage is malformed".to_owned())?;
    let calls = match generator.borrow().transport() {
        Transport::Session => None,
        Transport::Unary => Some(unary::Calls::new(session, client, generator)),
    };
    generator
        .borrow_mut()
        .attach(session, Connection { requests, calls }, lineage);
    while let Some(message) = responses.message().await.map_err(text)? {
        let (next, deferred) =
            generator
                .borrow_mut()
                .on_responses(session, message.responses, Instant::now());
        for place in deferred {
            propose_later(session, place, generator);
        }
        if next == Next::Leave {
            break;
        }
    }
    Ok(())
}

/// Proposes a refused transaction again after a pause.
pub(super) fn propose_later(session: usize, place: usize, generator: &Rc<RefCell<Generator>>) {
    let generator = generator.clone();
    tokio::task::spawn_local(async move {
        sleep(OVERLOADED_PAUSE).await;
        generator.borrow_mut().propose_again(session, place);
    });
}
