//! The binary itself: what it prints where, how it ends, and what it says to a wrong start.

use serde_json::Value;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// A single command ends by then, or the test fails.
const STEP: Duration = Duration::from_secs(20);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synod"));
    command
        .args(arguments)
        .env_remove("SYNOD_TRACE")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn run(arguments: &[&str]) -> Output {
    timeout(STEP, command(arguments).output())
        .await
        .expect("it ends in time")
        .expect("it runs")
}

/// Exit code and stderr of a command that says nothing on stdout.
async fn fails(arguments: &[&str]) -> (i32, String) {
    let output = run(arguments).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{arguments:?}");
    (
        output.status.code().expect("no signal"),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("stdout is JSON and nothing else")
}

/// A `synod dev` or `synod start` in the background.
struct Daemon {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Daemon {
    fn start(arguments: &[&str]) -> Self {
        let mut child = command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    /// The rest of the next line, which begins with `word`.
    async fn line(&mut self, word: &str) -> String {
        let line = timeout(STEP, self.lines.next_line())
            .await
            .expect("in time")
            .expect("readable")
            .expect("a line");
        line.strip_prefix(word)
            .unwrap_or_else(|| panic!("`{line}` begins with `{word}`"))
            .to_owned()
    }

    async fn terminate(mut self) -> i32 {
        let id = self.child.id().expect("it runs").to_string();
        let killed = Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .await
            .expect("kill runs");
        assert!(killed.success());
        timeout(STEP, self.child.wait())
            .await
            .expect("in time")
            .expect("it ends")
            .code()
            .expect("no signal")
    }
}

async fn dev(data: &Path) -> (Daemon, String) {
    let data = data.to_str().expect("UTF-8");
    let mut daemon = Daemon::start(&["dev", "--ports", "0,0,0", "--data", data]);
    let addresses = daemon.line("listening ").await;
    assert_eq!(daemon.line("ready ").await, addresses);
    (daemon, addresses)
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// The first two minutes of a new user: start, look, resolve, stop, start again.
#[tokio::test]
async fn dev_serves_and_keeps_what_it_decided() {
    let data = directory();
    let (daemon, addresses) = dev(data.path()).await;

    let status = run(&["status", "--endpoints", &addresses, "--json"]).await;
    assert_eq!(status.status.code(), Some(0));
    let status = json(&status);
    let replicas = status.as_array().expect("a list");
    assert_eq!(replicas.len(), 3);
    let expected = [
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
    for replica in replicas {
        let mut fields: Vec<_> = replica
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        fields.sort_unstable();
        assert_eq!(fields, expected, "documented fields, stable from now on");
        for (object, expected) in [
            (&replica["ballot"], &["replica", "round", "start"]),
            (&replica["peers"][0], &["address", "connected", "replica"]),
        ] {
            let mut fields: Vec<_> = object
                .as_object()
                .expect("an object")
                .keys()
                .map(String::as_str)
                .collect();
            fields.sort_unstable();
            assert_eq!(fields, expected);
        }
        assert_eq!(replica["cluster"], "dev");
        assert_eq!(replica["read_only"], Value::Null);
    }
    assert_eq!(
        replicas
            .iter()
            .filter(|replica| replica["role"] == "leader")
            .count(),
        1
    );
    let people = run(&["status", "--endpoints", &addresses]).await;
    let text = String::from_utf8_lossy(&people.stdout).into_owned();
    // Below the table may stand why a replica is not admitted yet.
    let rows: Vec<_> = text.lines().take(4).collect();
    let firsts: Vec<_> = rows
        .iter()
        .filter_map(|row| row.split_whitespace().next())
        .collect();
    let expected: Vec<_> = std::iter::once("ADDRESS").chain(addresses.split(',')).collect();
    assert_eq!((firsts, text.contains("leader")), (expected, true), "{text}");

    let random: [u8; 10] = *b"0123456789";
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    let now = synod_proto::ids::UnixMillis(u64::try_from(now.as_millis()).expect("small"));
    let gtid = synod_proto::ids::Gtid::new(now, random).to_string();
    let get = ["txn", "get", &gtid, "--endpoints", &addresses, "--json"];
    let undecided = run(&get).await;
    assert_eq!(
        (undecided.status.code(), &json(&undecided)["status"]),
        (Some(7), &Value::from("undecided"))
    );
    let future = synod_proto::ids::UnixMillis(now.0 + 3_600_000);
    let future = synod_proto::ids::Gtid::new(future, random).to_string();
    let (code, text) = fails(&["txn", "get", &future, "--endpoints", &addresses]).await;
    assert_eq!(
        (code, text.contains("too far ahead of the coordinator's clock")),
        (1, true),
        "nothing true can be said of it: {text}"
    );
    let who = ["--author", "me", "--reason", "stuck"];
    let resolve = [
        &[
            "txn",
            "resolve",
            &gtid,
            "--abort",
            "--endpoints",
            &addresses,
            "--json",
        ][..],
        &who,
    ]
    .concat();
    for _ in 0..2 {
        let resolved = run(&resolve).await;
        assert_eq!(
            (resolved.status.code(), &json(&resolved)["decision"]),
            (Some(0), &Value::from("aborted"))
        );
    }
    let settle = "0000000000000001/0000000000000002";
    let settle = [
        &[
            "txn",
            "resolve",
            &gtid,
            "--settle",
            settle,
            "--endpoints",
            &addresses,
        ][..],
        &who,
    ]
    .concat();
    assert_eq!(
        fails(&settle).await.0,
        1,
        "there is nothing to settle in an aborted transaction"
    );

    assert_eq!(daemon.terminate().await, 0, "SIGTERM is an orderly end");
    let (daemon, addresses) = dev(data.path()).await;
    let again = run(&["txn", "get", &gtid, "--endpoints", &addresses, "--json"]).await;
    let expected = serde_json::json!({
        "gtid": gtid,
        "began_at_unix_ms": now.0,
        "status": "aborted",
        "branches": [],
        "read_only_count": 0,
        "cause": { "kind": "operator", "call": null, "execution": null, "text": "me: stuck" },
    });
    assert_eq!((again.status.code(), json(&again)), (Some(0), expected));
    let listed = json(&run(&["txn", "list", "--endpoints", &addresses, "--json"]).await);
    assert_eq!(
        (listed.as_array().map(Vec::len), &listed[0]["gtid"]),
        (Some(1), &Value::from(gtid))
    );
    assert!(listed[0]["decided_at_unix_ms"].is_u64());
    let in_doubt = json(&run(&["txn", "list", "--in-doubt", "--endpoints", &addresses, "--json"]).await);
    let mut fields: Vec<_> = in_doubt
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "inquiries_dropped_count",
            "inquiries_since_unix_ms",
            "transactions"
        ]
    );
    assert_eq!(in_doubt["transactions"], Value::Array(Vec::new()));
    assert!(in_doubt["inquiries_since_unix_ms"].as_u64() > Some(now.0));
    let people = run(&["txn", "list", "--in-doubt", "--endpoints", &addresses]).await;
    assert_eq!(
        String::from_utf8_lossy(&people.stdout),
        "GTID  STATE  SINCE  BRANCH  RESOURCE  WAITS FOR\n"
    );
    assert!(String::from_utf8_lossy(&people.stderr).contains("remembers inquiries since"));
    let unfinished = run(&["txn", "list", "--unfinished", "--endpoints", &addresses, "--json"]).await;
    assert_eq!(json(&unfinished), Value::Array(Vec::new()));
    assert_eq!(daemon.terminate().await, 0);
}

/// J3, J4: every wrong start has its own code and says what to do; nothing is begun.
#[tokio::test]
async fn wrong_starts_are_refused_by_name() {
    let data = directory();
    let path = |name: &str| data.path().join(name).to_str().expect("UTF-8").to_owned();
    let peers = [
        "--peer",
        "1=127.0.0.1:7411",
        "--peer",
        "2=127.0.0.1:7412",
        "--peer",
        "3=127.0.0.1:7413",
    ];
    let start = |cluster: &str, replica: &str, data: &str, listen: &str| {
        let mut arguments: Vec<String> = [
            "start",
            "--cluster",
            cluster,
            "--replica",
            replica,
            "--data",
            data,
            "--listen",
            listen,
        ]
        .map(str::to_owned)
        .into();
        arguments.extend(peers.map(str::to_owned));
        arguments
    };
    let refused =
        async |arguments: Vec<String>| fails(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let any = "127.0.0.1:0";

    let (code, text) = refused(start("orders", "4", &path("new"), any)).await;
    assert_eq!(
        (code, text.contains("replica 4 is not among the peers (1, 2, 3)")),
        (3, true),
        "{text}"
    );
    let (code, text) = refused(start("Orders", "1", &path("new"), any)).await;
    assert_eq!(
        (code, text.contains("`Orders` is not a cluster id")),
        (3, true),
        "{text}"
    );
    let (code, text) = fails(&["start"]).await;
    assert_eq!((code, text.contains("`cluster` is missing")), (3, true), "{text}");
    let (code, text) = fails(&["start", "--config", &path("none.toml")]).await;
    assert_eq!(
        (code, text.contains("none.toml: cannot read the configuration")),
        (3, true),
        "{text}"
    );
    let (code, _) = fails(&["begin"]).await;
    assert_eq!(code, 2, "clap's own");
    assert!(!data.path().join("new").exists(), "nothing was begun");

    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let (code, text) = refused(start("orders", "1", &path("new"), &address)).await;
    assert_eq!(
        (code, text.contains("another process listens there")),
        (4, true),
        "{text}"
    );

    std::fs::create_dir(path("foreign")).expect("a directory");
    std::fs::write(path("foreign/letter.txt"), "dear").expect("a file");
    let (code, text) = refused(start("orders", "1", &path("foreign"), any)).await;
    assert_eq!(
        (code, text.contains("is not a Synod data directory and not empty")),
        (3, true),
        "{text}"
    );
    std::fs::write(path("file"), "").expect("a file");
    let (code, text) = refused(start("orders", "1", &path("file"), any)).await;
    assert_eq!((code, text.contains("is not a directory")), (3, true), "{text}");

    let arguments = start("orders", "1", &path("mine"), any);
    let mut daemon = Daemon::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let address = daemon.line("listening ").await;
    let status = run(&["status", "--endpoints", &address, "--json"]).await;
    let own = &json(&status)[0];
    assert_eq!(
        (status.status.code(), &own["role"], &own["admission"]),
        (Some(1), &Value::from("follower"), &Value::from("pending")),
        "alone, no leader"
    );
    let waits = own["admission_text"].as_str().expect("a sentence");
    assert!(waits.starts_with("waits to hear from replica 2, 3"), "{waits}");
    for key in ["stamp_unix_ms", "mark_unix_ms", "read_only", "lineage", "leader"] {
        assert_eq!(own[key], Value::Null, "{key}");
    }
    let people = run(&["status", "--endpoints", &address]).await;
    let text = String::from_utf8_lossy(&people.stdout).into_owned();
    assert!(
        text.contains(&format!("  pending\n{address}: waits to hear")),
        "{text}"
    );
    let (code, text) = refused(start("orders", "1", &path("mine"), any)).await;
    assert_eq!(
        (code, text.contains("is in use by another process")),
        (3, true),
        "{text}"
    );
    assert_eq!(daemon.terminate().await, 0);
    let (code, text) = refused(start("billing", "1", &path("mine"), any)).await;
    assert_eq!(
        (code, text.contains("belongs to cluster `orders`, not `billing`")),
        (3, true),
        "{text}"
    );
    let (code, text) = refused(start("orders", "2", &path("mine"), any)).await;
    assert_eq!(
        (code, text.contains("belongs to replica 1, not 2")),
        (3, true),
        "{text}"
    );

    // L6: one that was made for three is not one of another three, and does not lead itself.
    for other in [
        &peers[..2],
        &[
            peers[0],
            peers[1],
            peers[2],
            peers[3],
            "--peer",
            "4=127.0.0.1:7414",
        ],
    ] {
        let mut arguments = start("orders", "1", &path("mine"), any);
        arguments.truncate(arguments.len() - peers.len());
        arguments.extend(other.iter().map(ToString::to_string));
        let given = if other.len() == 2 { "1" } else { "1, 2, 4" };
        let expected = format!("was made for the replicas 1, 2, 3, but `peers` names {given}: name the same");
        let (code, text) = refused(arguments).await;
        assert_eq!((code, text.contains(&expected)), (3, true), "{text}");
    }
}

/// The same for `dev`: it begins nothing among files that are not its own, and says `listening` when all three listen.
#[tokio::test]
async fn wrong_developments_are_refused_by_name() {
    let data = directory();
    let dev = async |data: &Path, ports: &str| {
        fails(&["dev", "--ports", ports, "--data", data.to_str().expect("UTF-8")]).await
    };
    std::fs::write(data.path().join("letter.txt"), "dear").expect("a file");
    let (code, text) = dev(data.path(), "0,0,0").await;
    assert_eq!(
        (
            code,
            text.contains("holds `letter.txt`, which `synod dev` has not made")
        ),
        (3, true),
        "{text}"
    );
    let names: Vec<_> = std::fs::read_dir(data.path())
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    assert_eq!(names, ["letter.txt"], "nothing was begun");
    let (code, text) = dev(&data.path().join("letter.txt"), "0,0,0").await;
    assert_eq!((code, text.contains("is not a directory")), (3, true), "{text}");

    let data = directory();
    std::fs::write(data.path().join("replica-2"), "").expect("a file");
    let (code, text) = dev(data.path(), "0,0,0").await;
    assert_eq!(
        (
            code,
            text.contains("replica 2: ") && text.contains("is not a directory")
        ),
        (3, true),
        "{text}"
    );
    let (code, text) = dev(&data.path().join("new"), "7431,7432,7431").await;
    assert_eq!(
        (code, text.contains("--ports names 7431 twice")),
        (2, true),
        "{text}"
    );
    assert!(!data.path().join("new").exists(), "nothing was begun");
}

/// J4: a file with a misspelt key or a bad value is refused with its line, whatever flags say beside it.
#[tokio::test]
async fn a_configuration_file_is_read_or_refused_with_its_line() {
    let data = directory();
    let file = data.path().join("synod.toml");
    let file_name = file.to_str().expect("UTF-8");
    let good = format!(
        "cluster = \"orders\"\nreplica = 1\ndata = {:?}\nlisten = \"127.0.0.1:0\"\ntrace = \"warn\"\n\n[peers]\n1 = \"127.0.0.1:7421\"\n",
        data.path().join("data").to_str().expect("UTF-8")
    );
    let cases = [
        (
            good.replace("replica = 1", "replicas = 1"),
            "synod.toml:2: unknown field `replicas`",
        ),
        (
            good.replace("replica = 1", "replica = -1"),
            "synod.toml:2: invalid value",
        ),
        (
            good.replace("127.0.0.1:7421", "nowhere"),
            "synod.toml:8: `nowhere` is not HOST:PORT",
        ),
        (
            good.replace("trace = \"warn\"", "watermark_lag_ms = 5"),
            "synod.toml:5: 5 is out of range",
        ),
        (
            good.replace("trace = \"warn\"", "trace = \"a=b=c\""),
            "synod.toml:5: the trace's filter `a=b=c`",
        ),
        (good.replace("[peers]", "[peers"), "synod.toml:7: "),
    ];
    for (text, expected) in cases {
        std::fs::write(&file, text).expect("written");
        let (code, text) = fails(&["start", "--config", file_name]).await;
        assert_eq!(
            (code, text.contains(expected)),
            (3, true),
            "{text}\nexpected: {expected}"
        );
    }
    // One replica is a coordinator as well: it leads itself.
    std::fs::write(&file, good).expect("written");
    let mut daemon = Daemon::start(&["start", "--config", file_name]);
    let address = daemon.line("listening ").await;
    let gtid = "01932f5e-7a3b-7000-8000-000000000001";
    let answer = run(&["txn", "get", gtid, "--endpoints", &address, "--json"]).await;
    assert_eq!(answer.status.code(), Some(7));
    assert_eq!(daemon.terminate().await, 0);
}

/// The same for a service's outbox.
#[tokio::test]
async fn an_outbox_that_does_not_answer_is_told() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address").to_string()
    };
    let (code, text) = fails(&["outbox", "list", "--service", &closed]).await;
    assert_eq!(
        (code, text.contains("no service answers at")),
        (6, true),
        "{text}"
    );
    let data = directory();
    let (daemon, addresses) = dev(data.path()).await;
    let replica = addresses.split(',').next().expect("one");
    let (code, text) = fails(&["outbox", "dead", "--service", replica]).await;
    assert_eq!(
        (code, text.contains("does not serve its outbox's admin service")),
        (1, true),
        "{text}"
    );
    assert_eq!(daemon.terminate().await, 0);
    let (code, _) = fails(&[
        "outbox",
        "requeue",
        "1",
        "--service",
        replica,
        "--author",
        "a",
        "--reason",
        "r",
    ])
    .await;
    assert_eq!(code, 2, "no id");
}

/// What cannot be reached is told apart from what says no.
#[tokio::test]
async fn unreachable_replicas_and_bad_arguments() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address").to_string()
    };
    let output = run(&["status", "--endpoints", &closed, "--json"]).await;
    assert_eq!(output.status.code(), Some(6));
    let status = json(&output);
    assert_eq!(
        (&status[0]["reachable"], status[0]["error"].is_string()),
        (&Value::from(false), true)
    );
    let gtid = "01932f5e-7a3b-7000-8000-000000000001";
    let (code, text) = fails(&["txn", "get", gtid, "--endpoints", &closed, "--timeout-ms", "300"]).await;
    assert_eq!((code, text.contains("no leader was found")), (6, true), "{text}");
    for arguments in [
        &["txn", "get", "not-a-gtid"][..],
        &["txn", "get", "550e8400-e29b-41d4-a716-446655440000"],
        &["txn", "resolve", gtid, "--author", "me", "--reason", "none"],
        &[
            "txn", "resolve", gtid, "--settle", "1/2", "--author", "me", "--reason", "none",
        ],
        &["dev", "--ports", "1,2"],
    ] {
        let (code, text) = fails(arguments).await;
        assert_eq!(code, 2, "{arguments:?}: {text}");
    }
}
