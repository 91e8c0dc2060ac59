//! `synod dev`, `synod status` and `synod txn` as their users see them: lines, fields and exit codes are stable, and
//! pinned here.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use synod_tests::process::bank::Verdict;
use synod_tests::process::program::{Program, command, run};
use synod_tests::process::stage::{LONG_MS, Stage};
use synod_tests::process::within;

/// Exit code and JSON of a verb.
async fn ask(arguments: &[&str], endpoints: &str) -> (Option<i32>, Value) {
    let mut verb = command("synod");
    verb.args(arguments).args(["--endpoints", endpoints, "--json"]);
    let output = run(verb).await;
    let text = String::from_utf8_lossy(&output.stdout);
    let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"));
    (output.status.code(), json)
}

fn fields(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect()
}

const STATUS_FIELDS: [&str; 25] = [
    "address",
    "admission",
    "admission_text",
    "applied_up_to",
    "ballot",
    "cluster",
    "decided_up_to",
    "error",
    "hazard_count",
    "incarnation",
    "leader",
    "lineage",
    "log_write_count",
    "mark_unix_ms",
    "outcome_count",
    "peers",
    "process_id",
    "reachable",
    "read_only",
    "replica",
    "role",
    "session_count",
    "stamp_unix_ms",
    "unfinished_count",
    "version",
];

/// The first minute of a new user: start, look, ask for a transaction that is none, stop.
#[tokio::test]
async fn dev_shows_three_replicas_and_ends_by_sigterm() {
    within(async {
        let directory = tempfile::tempdir().expect("a directory");
        let mut dev = command("synod");
        dev.args(["dev", "--ports", "0,0,0"])
            .arg("--data")
            .arg(directory.path().join("data"));
        let mut dev = Program::start("dev", dev, directory.path());
        let addresses = dev.line("listening").await;
        assert_eq!(dev.line("ready").await, addresses);

        let (code, status) = ask(&["status"], &addresses).await;
        assert_eq!(code, Some(0));
        let replicas = status.as_array().expect("a list");
        let seen: Vec<_> = replicas
            .iter()
            .map(|replica| (&replica["replica"], &replica["cluster"]))
            .collect();
        assert_eq!(
            seen,
            [1, 2, 3]
                .map(|id| (json!(id), json!("dev")))
                .each_ref()
                .map(|(id, dev)| (id, dev))
        );
        for replica in replicas {
            assert_eq!(fields(replica), BTreeSet::from(STATUS_FIELDS));
            assert_eq!(
                fields(&replica["ballot"]),
                BTreeSet::from(["replica", "round", "start"])
            );
            assert_eq!(
                fields(&replica["peers"][0]),
                BTreeSet::from(["address", "connected", "replica"])
            );
        }
        assert_eq!(
            replicas
                .iter()
                .filter(|replica| replica["role"] == "leader")
                .count(),
            1
        );

        // Below the watermark: 7, there is no outcome to tell.
        let gtid = "01932f5e-7a3b-7000-8000-000000000001";
        let (code, old) = ask(&["txn", "get", gtid], &addresses).await;
        assert_eq!((code, &old["gtid"]), (Some(7), &json!(gtid)), "{old}");
        assert_eq!(dev.terminate().await, Some(0));
    })
    .await;
}

/// A real transaction through the operator's eyes, and replicas that go away one after the other.
#[tokio::test]
async fn status_and_txn_tell_what_happened() {
    within(async {
        let mut stage = Stage::start("looked-at").await;
        let reply = stage
            .transfer("t", 0, LONG_MS)
            .await
            .expect("no panic")
            .expect("an answer");
        assert_eq!(reply.verdict(), Verdict::Committed, "{}", reply.text);
        stage.settled().await;
        let addresses = stage.cluster.addresses();

        let (code, got) = ask(&["txn", "get", &reply.gtid], &addresses).await;
        assert_eq!(
            (code, &got["gtid"], &got["status"]),
            (Some(0), &json!(reply.gtid), &json!("committed"))
        );
        let expected = [
            "began_at_unix_ms",
            "branches",
            "cause",
            "gtid",
            "read_only_count",
            "status",
        ];
        assert_eq!(fields(&got), BTreeSet::from(expected));
        let branches = got["branches"].as_array().expect("a list");
        assert_eq!(branches.len(), 2, "{got}");
        for branch in branches {
            assert_eq!(
                fields(branch),
                BTreeSet::from(["call", "delivery", "execution", "hazard", "resource"])
            );
            assert_eq!(
                (&branch["delivery"], &branch["hazard"]),
                (&json!("acknowledged"), &Value::Null)
            );
        }
        let (code, list) = ask(&["txn", "list"], &addresses).await;
        assert_eq!(
            (code, list[0]["gtid"].as_str(), list.as_array().map(Vec::len)),
            (Some(0), Some(&*reply.gtid), Some(1))
        );
        assert_eq!(
            ask(&["txn", "list", "--unfinished"], &addresses).await,
            (Some(0), json!([]))
        );

        let leader = stage.cluster.leader().await;
        let status = ask(&["status"], &addresses).await.1;
        let of_leader = status
            .as_array()
            .expect("a list")
            .iter()
            .find(|view| view["role"] == "leader")
            .expect("one");
        let counts = [
            "replica",
            "outcome_count",
            "unfinished_count",
            "hazard_count",
            "session_count",
        ];
        assert_eq!(
            counts.map(|name| of_leader[name].clone()),
            [leader, 1, 0, 0, 2].map(|count| json!(count))
        );
        assert_eq!(
            (&of_leader["cluster"], &of_leader["read_only"]),
            (&json!("looked-at"), &Value::Null)
        );

        // One replica less is told, and is no failure; without a quorum nobody leads: 1; without anybody: 6.
        stage.cluster.kill(leader).await;
        stage.cluster.leader().await;
        let (code, status) = ask(&["status"], &addresses).await;
        let reachable = |status: &Value| {
            status
                .as_array()
                .expect("a list")
                .iter()
                .filter(|view| view["reachable"] == json!(true))
                .count()
        };
        assert_eq!((code, reachable(&status)), (Some(0), 2), "{status}");
        let gone = status
            .as_array()
            .expect("a list")
            .iter()
            .find(|view| view["reachable"] == json!(false));
        assert_eq!(
            fields(gone.expect("one")),
            BTreeSet::from(["address", "error", "reachable"])
        );
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
        stage.cluster.kill(others[0]).await;
        synod_tests::process::eventually("a leader without a quorum resigns", async || {
            let (code, status) = ask(&["status"], &addresses).await;
            (code == Some(1) && reachable(&status) == 1).then_some(())
        })
        .await;
        stage.cluster.kill(others[1]).await;
        let (code, status) = ask(&["status"], &addresses).await;
        assert_eq!((code, reachable(&status)), (Some(6), 0), "{status}");
        stage.close_offices().await;
    })
    .await;
}
