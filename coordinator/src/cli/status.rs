//! `synod status`: every replica's view of itself, side by side.

use super::client::{self, Endpoints, REPLICA_TIMEOUT};
use super::exit::{Exit, Failure};
use super::output::{print, print_json, table};
use serde::Serialize;
use synod_proto::ids::{Incarnation, Lineage};
use synod_proto::v1;
use tokio::time::timeout;

/// Arguments of `synod status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    endpoints: Endpoints,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Replica {
    address: String,
    reachable: bool,
    error: Option<String>,
    #[serde(flatten)]
    view: Option<View>,
}

#[derive(Serialize)]
struct View {
    cluster: String,
    replica: u32,
    incarnation: String,
    lineage: Option<String>,
    role: String,
    leader: Option<u32>,
    ballot: Ballot,
    decided_up_to: u64,
    applied_up_to: u64,
    stamp_unix_ms: u64,
    mark_unix_ms: u64,
    outcome_count: u64,
    unfinished_count: u64,
    hazard_count: u64,
    session_count: u64,
    admission: String,
    read_only: Option<String>,
    peers: Vec<Peer>,
    version: String,
    process_id: u32,
    log_write_count: u64,
}

#[derive(Serialize)]
struct Ballot {
    round: u64,
    replica: u32,
    start: u64,
}

#[derive(Serialize)]
struct Peer {
    replica: u32,
    address: String,
    connected: bool,
}

/// Asks all replicas at once. Negative where some answered but none leads.
pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let replicas: Vec<Replica> = client::block_on(async {
        let asked = args.endpoints.list.iter().map(|endpoint| ask(endpoint));
        Ok(futures::future::join_all(asked).await)
    })?;
    if args.json {
        print_json(&replicas)?;
    } else {
        print(&people(&replicas))?;
    }
    let views = || replicas.iter().filter_map(|replica| replica.view.as_ref());
    if views().next().is_none() {
        let text = format!(
            "no replica answers at {}: is the coordinator running?",
            args.endpoints.list.join(", ")
        );
        return Err(Failure::new(Exit::Unreachable, text));
    }
    Ok(if views().any(|view| view.role == "leader") {
        Exit::Success
    } else {
        Exit::Failed
    })
}

async fn ask(endpoint: &str) -> Replica {
    let answer = async {
        let mut client = client::connect(endpoint).await?;
        let reply = client
            .status(v1::StatusRequest {})
            .await
            .map_err(|status| status.message().to_owned())?;
        Ok::<_, String>(reply.into_inner())
    };
    let late = || Err(format!("no answer within {} ms", REPLICA_TIMEOUT.as_millis()));
    let answer = timeout(REPLICA_TIMEOUT, answer).await.unwrap_or_else(|_| late());
    let address = client::address(endpoint).to_owned();
    match answer {
        Ok(reply) => Replica {
            address,
            reachable: true,
            error: None,
            view: Some(view(reply)),
        },
        Err(error) => Replica {
            address,
            reachable: false,
            error: Some(error),
            view: None,
        },
    }
}

fn view(reply: v1::StatusReply) -> View {
    let ballot = reply.ballot.unwrap_or_default();
    let peer = |peer: v1::PeerStatus| Peer {
        replica: peer.replica,
        address: peer.address,
        connected: peer.connected,
    };
    View {
        cluster: reply.cluster,
        replica: reply.replica,
        incarnation: <[u8; 16]>::try_from(&reply.incarnation[..])
            .map(|id| Incarnation(id).to_string())
            .unwrap_or_default(),
        lineage: <[u8; 16]>::try_from(&reply.lineage[..])
            .ok()
            .map(|id| Lineage(id).to_string()),
        role: reply.role,
        leader: Some(reply.leader).filter(|leader| *leader != 0),
        ballot: Ballot {
            round: ballot.round,
            replica: ballot.replica,
            start: ballot.start,
        },
        decided_up_to: reply.decided_up_to,
        applied_up_to: reply.applied_up_to,
        stamp_unix_ms: reply.stamp_unix_ms,
        mark_unix_ms: reply.mark_unix_ms,
        outcome_count: reply.outcome_count,
        unfinished_count: reply.unfinished_count,
        hazard_count: reply.hazard_count,
        session_count: reply.session_count,
        admission: reply.admission,
        read_only: Some(reply.read_only).filter(|text| !text.is_empty()),
        peers: reply.peers.into_iter().map(peer).collect(),
        version: reply.version,
        process_id: reply.process_id,
        log_write_count: reply.log_write_count,
    }
}

fn people(replicas: &[Replica]) -> String {
    let header = [
        "ADDRESS",
        "REPLICA",
        "ROLE",
        "LEADER",
        "BALLOT",
        "DECIDED",
        "APPLIED",
        "OUTCOMES",
        "UNFINISHED",
        "HAZARDS",
        "SESSIONS",
        "STATE",
    ];
    let row = |replica: &Replica| {
        let Some(view) = &replica.view else {
            let mut row = vec![replica.address.clone()];
            row.extend(std::iter::repeat_n("-".to_owned(), header.len() - 2));
            row.push(format!(
                "unreachable: {}",
                replica.error.as_deref().unwrap_or_default()
            ));
            return row;
        };
        let ballot = &view.ballot;
        vec![
            replica.address.clone(),
            view.replica.to_string(),
            view.role.clone(),
            view.leader
                .map_or_else(|| "-".to_owned(), |leader| leader.to_string()),
            format!("{}.{}.{}", ballot.round, ballot.replica, ballot.start),
            view.decided_up_to.to_string(),
            view.applied_up_to.to_string(),
            view.outcome_count.to_string(),
            view.unfinished_count.to_string(),
            view.hazard_count.to_string(),
            view.session_count.to_string(),
            view.read_only
                .as_ref()
                .map_or_else(|| view.admission.clone(), |text| format!("read-only: {text}")),
        ]
    };
    table(&header, &replicas.iter().map(row).collect::<Vec<_>>())
}
