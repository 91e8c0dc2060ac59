//! `synod bench` against a real cluster: every transaction that it begins ends, and what it says adds up.

use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A whole test ends by then, or fails.
const DEADLINE: Duration = Duration::from_secs(90);

fn synod(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synod"));
    command
        .args(arguments)
        .env_remove("SYNOD_TRACE")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// A development cluster and its addresses.
async fn cluster() -> (Child, String) {
    let mut child = synod(&["dev", "--ports", "0,0,0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    while let Some(line) = lines.next_line().await.expect("readable") {
        if let Some(addresses) = line.strip_prefix("ready ") {
            return (child, addresses.to_owned());
        }
    }
    panic!("the cluster ended before it was ready");
}

/// Runs a short bench; returns what it measured and its progress.
async fn bench(addresses: &str, arguments: &[&str]) -> (Value, String) {
    let all = [
        &[
            "bench",
            "--json",
            "--endpoints",
            addresses,
            "--seconds",
            "1",
            "--warm-up",
            "0.2",
        ],
        arguments,
    ];
    let output = synod(&all.concat()).output().await.expect("it runs");
    let progress = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{progress}");
    let measured = serde_json::from_slice(&output.stdout).expect("stdout is JSON and nothing else");
    (measured, progress)
}

/// Both transports, with and without deliveries, in a closed and an open loop: nothing is refused, lost or aborted, and
/// latencies lie in order. With deliveries, nothing is left at the leader that waits for an acknowledgement (T8).
#[tokio::test]
async fn every_kind_of_load_ends_as_it_began() {
    let test = async {
        let (_cluster, addresses) = cluster().await;
        for arguments in [
            &["--sessions", "2", "--in-flight", "16"][..],
            &["--sessions", "3", "--in-flight", "5", "--branches", "2"],
            &[
                "--unary",
                "--sessions",
                "2",
                "--in-flight",
                "8",
                "--branches",
                "1",
            ],
            &["--rate", "200"],
            &["--participants", "redb", "--in-flight", "8"],
        ] {
            let (measured, progress) = bench(&addresses, arguments).await;
            assert!(progress.contains("measuring: "), "{arguments:?}: {progress}");
            assert!(
                measured["transactions"].as_u64() > Some(0),
                "{arguments:?}: {measured}"
            );
            for nothing in ["aborted", "overloaded", "failed", "unfinished"] {
                assert_eq!(measured[nothing], 0, "{arguments:?}: {nothing} in {measured}");
            }
            assert_eq!(measured["drained"], true, "{arguments:?}");
            let latency = &measured["latency_us"];
            let quantiles =
                ["p50", "p90", "p99", "p99_9", "max"].map(|name| latency[name].as_u64().expect("measured"));
            assert!(
                quantiles.is_sorted() && quantiles[0] > 0,
                "{arguments:?}: {latency}"
            );
            for used in ["syncs", "cpu_us", "written_bytes"] {
                assert!(
                    measured[used].as_f64() > Some(0.0),
                    "{arguments:?}: {used} in {measured}"
                );
            }
        }
    };
    timeout(DEADLINE, test).await.expect("it ends in time");
}

/// Services with real files: every branch's vote and effect is synced in its own service's file, and the files are gone with
/// the run. Also in an open loop, and with more branches than services, where a service takes several of one transaction.
#[tokio::test]
async fn services_with_databases_are_measured_with_their_files() {
    let test = async {
        let (_cluster, addresses) = cluster().await;
        let directory = tempfile::tempdir().expect("a directory");
        let data = directory.path().to_str().expect("a plain name");
        for (arguments, services, branches) in [
            (&["--in-flight", "1"][..], 2, 2.0),
            (
                &["--sessions", "3", "--branches", "4", "--in-flight", "6"],
                3,
                4.0,
            ),
            (&["--rate", "50", "--in-flight", "32"], 2, 2.0),
        ] {
            let arguments = [&["--participants", "redb", "--data", data], arguments].concat();
            let (measured, _) = bench(&addresses, &arguments).await;
            assert_eq!(measured["participants"], "redb", "{measured}");
            for nothing in ["aborted", "overloaded", "failed", "resent", "unfinished"] {
                assert_eq!(measured[nothing], 0, "{arguments:?}: {nothing} in {measured}");
            }
            let databases = measured["databases"].as_array().expect("measured");
            assert_eq!(databases.len(), services, "{measured}");
            for database in databases {
                for used in ["syncs", "written_bytes"] {
                    assert!(database[used].as_f64() > Some(0.0), "{arguments:?}: {measured}");
                }
            }
            // A branch is two commits of its file, each two syncs or shared; a few that others began lie at the edges.
            let syncs = measured["database_syncs"].as_f64().expect("measured");
            assert!(
                (0.1..6.0 * branches).contains(&syncs),
                "{syncs} for each transaction: {measured}"
            );
        }
        let left = std::fs::read_dir(directory.path()).expect("readable").count();
        assert_eq!(left, 0, "the files are removed");
    };
    timeout(DEADLINE, test).await.expect("it ends in time");
}

/// An open loop keeps its rate, whatever the answers do, and says which one was asked for.
#[tokio::test]
async fn an_open_loop_keeps_to_its_rate() {
    let test = async {
        let (_cluster, addresses) = cluster().await;
        let (measured, _) = bench(&addresses, &["--rate", "300"]).await;
        assert_eq!(measured["rate_asked"], 300.0);
        let per_second = measured["per_second"].as_f64().expect("measured");
        assert!((200.0..400.0).contains(&per_second), "{per_second}/s");
    };
    timeout(DEADLINE, test).await.expect("it ends in time");
}

/// Wrong arguments and an absent cluster have their own exit codes, and leave stdout empty.
#[tokio::test]
async fn a_bench_that_cannot_run_says_why() {
    let test = async {
        for (arguments, code, text) in [
            (&["bench", "--seconds", "0"][..], 2, "--seconds takes"),
            (&["bench", "--rate=0"], 2, "--rate takes"),
            (
                &["bench", "--participants", "redb", "--unary"],
                2,
                "--unary is not for --participants redb",
            ),
            (
                &["bench", "--participants", "redb", "--branches", "0"],
                2,
                "--branches 1 or more",
            ),
            (
                &["bench", "--participants", "redb", "--sessions", "65"],
                2,
                "--sessions up to 64",
            ),
            (&["bench", "--data", "."], 2, "--data is for"),
            (
                &["bench", "--participants", "redb", "--endpoints", "127.0.0.1:1"],
                6,
                "no leader was found at 127.0.0.1:1",
            ),
            (
                &["bench", "--endpoints", "127.0.0.1:1"],
                6,
                "no leader was found at 127.0.0.1:1",
            ),
        ] {
            let output = synod(arguments).output().await.expect("it runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{said}");
            assert!(said.contains(text) && output.stdout.is_empty(), "{said}");
        }
    };
    timeout(DEADLINE, test).await.expect("it ends in time");
}
