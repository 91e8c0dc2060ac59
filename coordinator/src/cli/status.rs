//! `synod status`: what every replica says of itself, side by side.

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
    status: Option<Status>,
}

#[derive(Serialize)]
struct Status {
    cluster: String,
    replica: u32,
    incarnation: String,
    lineage: Option<String>,
    role: String,
    leader: Option<u32>,
    ballot: Ballot,
    decided_up_to: u64,
    applied_up_to: u64,
    stamp_unix_ms: Option<u64>,
    mark_unix_ms: Option<u64>,
    outcome_count: u64,
    unfinished_count: u64,
    hazard_count: u64,
    session_count: u64,
    admission: String,
    admission_text: Option<String>,
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
    let answers = || replicas.iter().filter_map(|replica| replica.status.as_ref());
    if answers().next().is_none() {
        let text = format!(
            "no replica answers at {}: is the coordinator running?",
            args.endpoints.list.join(", ")
        );
        return Err(Failure::new(Exit::Unreachable, text));
    }
    Ok(if answers().any(|status| status.role == "leader") {
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
            status: Some(status(reply)),
        },
        Err(error) => Replica {
            address,
            reachable: false,
            error: Some(error),
            status: None,
        },
    }
}

fn status(reply: v1::StatusReply) -> Status {
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    // 0: no entry was applied yet.
    let time = |unix_ms: u64| Some(unix_ms).filter(|_| reply.stamp_unix_ms != 0);
    let ballot = reply.ballot.unwrap_or_default();
    let peer = |peer: v1::PeerStatus| Peer {
        replica: peer.replica,
        address: peer.address,
        connected: peer.connected,
    };
    Status {
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
        stamp_unix_ms: time(reply.stamp_unix_ms),
        mark_unix_ms: time(reply.mark_unix_ms),
        outcome_count: reply.outcome_count,
        unfinished_count: reply.unfinished_count,
        hazard_count: reply.hazard_count,
        session_count: reply.session_count,
        admission: reply.admission,
        admission_text: text(reply.admission_text),
        read_only: text(reply.read_only),
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
    // What takes a sentence stands below the table, which stays as narrow as its numbers.
    let mut sentences = Vec::new();
    let mut rows = Vec::new();
    for replica in replicas {
        let Some(status) = &replica.status else {
            let mut row = vec![replica.address.clone()];
            row.extend(std::iter::repeat_n("-".to_owned(), header.len() - 2));
            row.push("unreachable".to_owned());
            rows.push(row);
            sentences.extend(replica.error.as_ref().map(|text| (&replica.address, text)));
            continue;
        };
        let ballot = &status.ballot;
        let state = if status.read_only.is_some() {
            "read-only"
        } else {
            status.admission.as_str()
        };
        rows.push(vec![
            replica.address.clone(),
            status.replica.to_string(),
            status.role.clone(),
            status
                .leader
                .map_or_else(|| "-".to_owned(), |leader| leader.to_string()),
            format!("{}.{}.{}", ballot.round, ballot.replica, ballot.start),
            status.decided_up_to.to_string(),
            status.applied_up_to.to_string(),
            status.outcome_count.to_string(),
            status.unfinished_count.to_string(),
            status.hazard_count.to_string(),
            status.session_count.to_string(),
            state.to_owned(),
        ]);
        let texts = [&status.read_only, &status.admission_text];
        sentences.extend(texts.into_iter().flatten().map(|text| (&replica.address, text)));
    }
    let mut text = table(&header, &rows);
    for (address, sentence) in sentences {
        text.push_str(&format!("{address}: {sentence}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(address: &str, reply: v1::StatusReply) -> Replica {
        Replica {
            address: address.to_owned(),
            reachable: true,
            error: None,
            status: Some(status(reply)),
        }
    }

    /// The table holds words, and what takes a sentence follows it.
    #[test]
    fn sentences_stand_below_the_table() {
        let good = v1::StatusReply {
            replica: 1,
            role: "leader".to_owned(),
            leader: 1,
            admission: "admitted".to_owned(),
            ..Default::default()
        };
        let pending = v1::StatusReply {
            replica: 2,
            role: "follower".to_owned(),
            admission: "pending".to_owned(),
            admission_text: "waits".to_owned(),
            read_only: "disk full".to_owned(),
            ..Default::default()
        };
        let gone = Replica {
            address: "c:1".to_owned(),
            reachable: false,
            error: Some("refused".to_owned()),
            status: None,
        };
        let replicas = [replica("a:1", good), replica("b:1", pending), gone];
        assert_eq!(
            people(&replicas),
            "\
ADDRESS  REPLICA  ROLE      LEADER  BALLOT  DECIDED  APPLIED  OUTCOMES  UNFINISHED  HAZARDS  SESSIONS  STATE
a:1      1        leader    1       0.0.0   0        0        0         0           0        0         admitted
b:1      2        follower  -       0.0.0   0        0        0         0           0        0         read-only
c:1      -        -         -       -       -        -        -         -           -        -         unreachable
b:1: disk full
b:1: waits
c:1: refused
"
        );
    }

    /// No number stands for "none".
    #[test]
    fn what_is_not_there_is_null() {
        let json = serde_json::to_value(status(v1::StatusReply::default())).expect("JSON");
        for key in [
            "lineage",
            "leader",
            "stamp_unix_ms",
            "mark_unix_ms",
            "admission_text",
            "read_only",
        ] {
            assert_eq!(json[key], serde_json::Value::Null, "{key}");
        }
        let stamped = v1::StatusReply {
            stamp_unix_ms: 5,
            ..Default::default()
        };
        let json = serde_json::to_value(status(stamped)).expect("JSON");
        assert_eq!(
            (&json["stamp_unix_ms"], &json["mark_unix_ms"]),
            (&5.into(), &0.into())
        );
    }
}
