//! A load generator for etcd: the closed loop of `synod bench`, with puts.
//!
//! The messages are those of etcd's `etcdserverpb`, with the few fields that are needed here.

use crate::Failure;
use crate::grpc::Client;
use crate::tally::{LoadArgs, Tally, measure};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep};
use tonic::Status;

/// How long one call may take; a put that was lost with its leader is asked again after it. Far above the latency under
/// full load, and short enough to find the next leader soon.
const CALL_TIMEOUT: Duration = Duration::from_millis(500);

/// Before another try at a cluster that has no leader.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// With the key as long as the record of a decision without branches: the same bytes for both.
const VALUE_BYTES: usize = 35;

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

/// Runs the load and writes its figures as JSON.
pub(crate) fn load(args: &LoadArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let figures = runtime.block_on(LocalSet::new().run_until(drive(args)))?;
    println!("{figures}");
    Ok(())
}

async fn drive(args: &LoadArgs) -> Result<serde_json::Value, Failure> {
    // The leader answers soonest: a follower would hand each put on.
    let first = leader_of(&args.endpoints).await?.unwrap_or(0);
    let tally = Tally::new(args)?;
    for session in 0..args.sessions {
        let (endpoints, tally) = (args.endpoints.clone(), tally.clone());
        tokio::task::spawn_local(keep(endpoints, first, session, args.share(session), tally));
    }
    Ok(measure(args, &tally).await)
}

/// One session: a connection, and a loop for each of its puts. When it breaks, the next member is tried.
async fn keep(endpoints: Vec<String>, first: usize, session: u32, share: u32, tally: Rc<RefCell<Tally>>) {
    let mut next = first;
    let mut counter = 0u64;
    loop {
        if let Ok(client) = Client::connect(&endpoints[next % endpoints.len()], CALL_TIMEOUT).await {
            let counters = Rc::new(RefCell::new(counter));
            let puts = (0..share)
                .map(|_| put_until_failure(client.clone(), session, counters.clone(), tally.clone()));
            // Each put that fails waits for the others: they fail with the same connection.
            futures::future::join_all(puts).await;
            counter = *counters.borrow();
        }
        next += 1;
        sleep(RETRY_PAUSE).await;
    }
}

async fn put_until_failure(
    mut client: Client,
    session: u32,
    counter: Rc<RefCell<u64>>,
    tally: Rc<RefCell<Tally>>,
) {
    loop {
        let number = {
            let mut counter = counter.borrow_mut();
            *counter += 1;
            *counter
        };
        // Sixteen bytes in rising order, as a gtid is.
        let mut key = number.to_be_bytes().to_vec();
        key.extend_from_slice(&u64::from(session).to_be_bytes());
        let put = PutRequest {
            key,
            value: vec![0x5a; VALUE_BYTES],
        };
        let begun = Instant::now();
        let answer: Result<PutResponse, Status> = client.call("/etcdserverpb.KV/Put", put).await;
        let now = Instant::now();
        let mut tally = tally.borrow_mut();
        match answer {
            Ok(_) => tally.end(begun, now),
            Err(status) => {
                tally.failed_count += 1;
                // A member without a leader leaves puts unanswered; it will have one again.
                if status.code() != tonic::Code::DeadlineExceeded {
                    return;
                }
            }
        }
    }
}

/// Which member leads, by its place among the endpoints.
pub(crate) fn leader(endpoints: &[String]) -> Result<Option<usize>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(leader_of(endpoints))
}

async fn leader_of(endpoints: &[String]) -> Result<Option<usize>, Failure> {
    for (index, endpoint) in endpoints.iter().enumerate() {
        let Ok(mut client) = Client::connect(endpoint, CALL_TIMEOUT).await else {
            continue;
        };
        let status: Result<StatusResponse, Status> = client
            .call("/etcdserverpb.Maintenance/Status", StatusRequest {})
            .await;
        if let Ok(StatusResponse {
            header: Some(header),
            leader,
        }) = status
            && header.member_id == leader
        {
            return Ok(Some(index));
        }
    }
    Ok(None)
}
