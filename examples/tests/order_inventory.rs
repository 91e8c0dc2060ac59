//! `order_inventory` as a user runs it: the binary, its exit code, its two streams, and what it leaves behind. Every run has
//! a deadline.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// For one run, on a machine that is busy building.
const RUN_TIMEOUT: Duration = Duration::from_secs(120);

const STOCK: &str = "sku,quantity\nMUG,6\nCUP,100\n";
const HEADER: &str = "order_id,customer,sku,quantity\n";

fn command(args: &[&str]) -> Command {
    support::command(env!("CARGO_BIN_EXE_order_inventory"), args)
}

fn finish(child: Child) -> Output {
    support::finish(child, RUN_TIMEOUT)
}

fn run(args: &[&str]) -> Output {
    finish(command(args).spawn().expect("the example starts"))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the output is UTF-8")
}

fn write(directory: &Path, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = directory.join(name);
    std::fs::write(&path, content).expect("the file can be written");
    path.display().to_string()
}

/// Forty cups that can be had, and ten times one mug of which there are six.
fn forty_and_ten() -> String {
    let line = |index: usize| {
        format!(
            "SO-{index},Ada,{},1\n",
            if usize::is_multiple_of(index, 5) {
                "MUG"
            } else {
                "CUP"
            }
        )
    };
    HEADER.to_owned() + &(0..50).map(line).collect::<String>()
}

/// Takes the figures that differ from run to run out of the summary, after a look at each.
fn without_figures(mut summary: Value) -> Value {
    let object = summary.as_object_mut().expect("an object");
    for field in ["elapsed_ms", "orders_per_second", "settled_ms", "longest_gap_ms"] {
        assert!(
            object
                .remove(field)
                .and_then(|value| value.as_f64())
                .expect(field)
                > 0.0,
            "{field}"
        );
    }
    let latency = object.remove("latency_ms").expect("latencies");
    let latency: Vec<_> = ["p50", "p99", "max"]
        .iter()
        .map(|field| latency[field].as_f64().expect("a number"))
        .collect();
    assert!(latency[0] > 0.0 && latency.is_sorted(), "{latency:?}");
    let transactions = object
        .remove("transactions")
        .and_then(|value| value.as_u64())
        .expect("transactions");
    let resolved = object
        .remove("resolved")
        .and_then(|value| value.as_u64())
        .expect("resolved");
    let orders = object["orders"].as_u64().expect("orders");
    assert!(
        transactions >= orders && resolved <= transactions,
        "{transactions} transactions, {resolved} resolved"
    );
    summary
}

/// The whole story on a small file: the leader, a participant and the relay die, and everything adds up. All orders are of one
/// customer, so that their messages have one order.
#[test]
fn leader_participant_and_relay_are_killed_and_nothing_is_lost_or_doubled() {
    let directory = tempfile::tempdir().expect("a directory");
    let orders = write(directory.path(), "orders.csv", forty_and_ten());
    let stock = write(directory.path(), "stock.csv", STOCK);
    let keep = directory.path().join("kept").display().to_string();
    let output = run(&[
        "--orders",
        &orders,
        "--stock",
        &stock,
        "--keep",
        &keep,
        "--in-flight",
        "8",
        "--json",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));

    let mut summary: Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
    let kill = summary
        .as_object_mut()
        .and_then(|object| object.remove("kill"))
        .expect("a kill");
    let gap = kill["commits_stood_still_ms"]
        .as_f64()
        .expect("a commit before the kill and one after it");
    assert!((1.0..30_000.0).contains(&gap), "{kill}");
    assert!(
        (13..=50).contains(&kill["after_orders"].as_u64().expect("a number")),
        "{kill}"
    );
    let (killed, leader) = (kill["replica"].as_u64(), kill["new_leader"].as_u64());
    assert!(
        killed != leader && [killed, leader].iter().all(|id| matches!(id, Some(1..=3))),
        "{kill}"
    );
    assert_eq!(kill["caught_up"], true);
    let kills = summary
        .as_object_mut()
        .and_then(|object| object.remove("kills"))
        .expect("kills");
    let victims: Vec<_> = kills
        .as_array()
        .expect("a list")
        .iter()
        .map(|kill| {
            for field in ["commits_stood_still_ms", "away_ms"] {
                let millis = kill[field].as_f64().expect(field);
                assert!((0.1..30_000.0).contains(&millis), "{field}: {kill}");
            }
            (
                kill["victim"].as_str().expect("a name"),
                kill["process"].as_str().expect("a name"),
            )
        })
        .collect();
    let replica = format!("replica {}", killed.expect("a number"));
    assert_eq!(
        victims,
        [
            ("leader", &replica[..]),
            ("inventory", "inventory"),
            ("relay", "orders")
        ]
    );
    let expected = json!({
        "adds_up": true, "problems": [], "orders": 50, "skipped_lines": 0, "placed": 46, "refused": 4, "delivered": 46,
        "in_flight": 8, "order_rows": 46, "stock_before": 106, "stock_after": 60, "items_ordered": 46,
        "notifications": 46, "invoices": 46, "owed_cents": 46 * 450, "in_doubt": 0, "unfinished": 0, "data": keep,
    });
    assert_eq!(without_figures(summary), expected);

    let kept = |name: &str| Path::new(&keep).join(name).exists();
    for name in [
        "orders.redb",
        "inventory.redb",
        "notifications.redb",
        "billing.redb",
        "replica-1",
        "replica-2",
        "replica-3",
        "traces/initiator.txt",
    ] {
        assert!(kept(name), "{name} is kept");
    }
    let again = run(&["--keep", &keep]);
    assert_eq!(
        again.status.code(),
        Some(2),
        "a directory with data is not used again"
    );
    assert!(
        text(&again.stderr).ends_with("the directory must be new or empty\n"),
        "{}",
        text(&again.stderr)
    );
}

#[test]
fn both_ends_of_the_messages_are_killed_and_each_takes_effect_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let orders = write(directory.path(), "orders.csv", forty_and_ten());
    let stock = write(directory.path(), "stock.csv", STOCK);
    let victims = ["billing", "relay", "billing"];
    let output = run(&[
        "--orders",
        &orders,
        "--stock",
        &stock,
        "--in-flight",
        "8",
        "--kill",
        &victims.join(","),
        "--json",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
    let kills = summary["kills"].as_array().expect("a list");
    let killed: Vec<_> = kills
        .iter()
        .map(|kill| kill["victim"].as_str().expect("a name"))
        .collect();
    assert_eq!(killed, victims);
    assert_eq!(summary["adds_up"], true, "{summary}");
    assert_eq!(
        (&summary["invoices"], &summary["owed_cents"]),
        (&json!(46), &json!(46 * 450))
    );
}

#[test]
fn without_a_kill_the_table_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let orders = write(
        directory.path(),
        "orders.csv",
        format!("\u{feff}{HEADER}A,Ada,MUG,2\r\nB,Eve,MUG,9\r\nC,Eve,CUP,0\r\n"),
    );
    let stock = write(directory.path(), "stock.csv", STOCK);
    let output = run(&[
        "--orders",
        &orders,
        "--stock",
        &stock,
        "--no-kill",
        "--in-flight",
        "1",
    ]);
    let (table, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(
        stderr.starts_with(&format!(
            "{orders}:4: quantity is zero: an order takes at least 1 (skipped)\n"
        )),
        "{stderr}"
    );
    let rows: BTreeMap<_, _> = table
        .lines()
        .filter_map(|line| line.trim().split_once("  "))
        .map(|(name, rest)| (name, rest.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    assert_eq!(rows["orders"], "2");
    assert_eq!(rows["lines skipped"], "1 named above");
    assert_eq!(rows["notifications"], "1 each once, in order for each customer");
    assert!(rows["invoices"].ends_with("; 9.00 owed"), "{table}");
    assert_eq!(rows["placed"], "1 1 delivered to orders and inventory");
    assert_eq!(rows["refused"], "1 out of stock");
    assert_eq!(rows["items in inventory's file"], "104 106 before, 2 ordered");
    assert!(!rows.contains_key("leader killed"), "{table}");
    assert!(table.contains("Everything adds up: "), "{table}");
}

/// `--strict` and whatever makes a file useless: nothing is started, nothing is written, and stdout stays empty.
#[test]
fn bad_input_is_refused_before_anything_ran() {
    let directory = tempfile::tempdir().expect("a directory");
    let stock = write(directory.path(), "stock.csv", STOCK);
    let keep = directory.path().join("kept");
    let header = "the header is `id,customer,sku,quantity`, but must be `order_id,customer,sku,quantity`";
    let cases: &[(&[u8], bool, &[&str])] = &[
        (
            b"order_id,customer,sku,quantity\nA,Ada,MUG,1\nA,Ada,MUG,1\nB,Ada,PEN,1\nC,Ada\n",
            true,
            &[
                ":3: duplicate order_id `A`: line 2 has it already",
                ":4: unknown sku `PEN`: it is not in the stock file",
                ":5: short line: 2 field(s), but the header names 4",
                "error: 3 unusable line(s), and --strict takes none",
            ],
        ),
        (
            b"id,customer,sku,quantity\nA,Ada,MUG,1\n",
            false,
            &[&format!("orders.csv: line 1: {header}")],
        ),
        (
            b"",
            false,
            &["orders.csv: the file is empty; its first line must be `order_id,customer,sku,quantity`"],
        ),
        (
            b"order_id,customer,sku,quantity\nA,Ada,MUG,-1\n",
            false,
            &[
                ":2: quantity -1 is negative",
                "orders.csv: the file holds no usable line beside its header",
            ],
        ),
        (
            b"\xff\xfeo\0r\0d\0e\0r\0",
            false,
            &["orders.csv: line 1: the header is"],
        ),
    ];
    for (content, strict, expected) in cases {
        let orders = write(directory.path(), "orders.csv", content);
        let mut args = vec![
            "--orders",
            &orders,
            "--stock",
            &stock,
            "--keep",
            keep.to_str().expect("UTF-8"),
        ];
        args.extend(strict.then_some("--strict"));
        let output = run(&args);
        let stderr = text(&output.stderr);
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(2), ""),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), expected.len(), "{stderr}");
        for (line, expected) in stderr.lines().zip(*expected) {
            assert!(line.contains(expected), "{line}\ndoes not hold\n{expected}");
        }
        assert!(!keep.exists());
    }
}

#[test]
fn a_bad_command_line_is_refused() {
    for args in [
        &["--in-flight", "0"][..],
        &["--in-flight", "1025"],
        &["--in-flight", "many"],
        &["--no-such-flag"],
        &["--kill", "everybody"],
        &["--kill", "leader", "--no-kill"],
        &["orders.csv"],
    ] {
        let output = run(args);
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(2), ""),
            "{args:?}"
        );
    }
    let missing = run(&["--stock", "/no/such/stock.csv"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(
        text(&missing.stderr).starts_with("error: /no/such/stock.csv: No such file"),
        "{}",
        text(&missing.stderr)
    );
    let help = run(&["-h"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(
        text(&help.stdout).contains("Examples (with cargo: ")
            && !text(&help.stdout).contains("orders-service"),
        "{}",
        text(&help.stdout)
    );
}

/// The example on its way: its three replicas and four services have introduced themselves, and orders are being placed.
struct Underway {
    driver: Child,
    stderr: BufReader<ChildStderr>,
    /// Name and process id, in the order of their introduction.
    processes: Vec<(String, u32)>,
}

/// One order at a time, so that there is time to disturb it.
fn underway(temporary: &Path) -> Underway {
    let mut command = command(&["--no-kill", "--in-flight", "1"]);
    let mut driver = command
        .env("TMPDIR", temporary)
        .spawn()
        .expect("the example starts");
    let mut stderr = BufReader::new(driver.stderr.take().expect("piped"));
    let mut processes = Vec::new();
    let mut line = String::new();
    while processes.len() < 7 && stderr.read_line(&mut line).expect("readable") > 0 {
        if let Some((name, rest)) = line.split_once("  ") {
            let id = rest
                .trim()
                .strip_prefix("process ")
                .and_then(|rest| rest.split(' ').next());
            processes.extend(id.and_then(|id| id.parse().ok()).map(|id| (name.to_owned(), id)));
        }
        line.clear();
    }
    let names: Vec<_> = processes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "replica 1",
            "replica 2",
            "replica 3",
            "orders",
            "inventory",
            "notifications",
            "billing"
        ]
    );
    Underway {
        driver,
        stderr,
        processes,
    }
}

fn signal(name: &str, id: u32) {
    let status = Command::new("sh")
        .args(["-c", &format!("kill {name} {id}")])
        .status()
        .expect("a shell");
    assert!(status.success(), "kill {name} {id}");
}

impl Underway {
    /// Waits for the driver, and then for the others: nobody outlives it. Returns its exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.driver.try_wait().expect("the driver can be waited for") {
                break status;
            }
            assert!(
                started.elapsed() < RUN_TIMEOUT,
                "the driver lives after {RUN_TIMEOUT:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        while let Some((name, _)) = self.processes.iter().find(|(_, id)| is_example(*id)) {
            assert!(started.elapsed() < RUN_TIMEOUT, "{name} outlived the driver");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).expect("readable");
        (status.code(), said)
    }
}

/// Whether there is such a process, and it is one of ours: its id may have gone to another one by now, and one that has
/// ended but that nobody waits for has no command line. Without /proc this sees nobody.
fn is_example(id: u32) -> bool {
    std::fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| text(&line).contains("order_inventory"))
}

/// SIGKILL gives the initiator no chance to stop anybody: the others see their pipes close, and end.
#[test]
fn no_process_outlives_a_killed_initiator() {
    let temporary = tempfile::tempdir().expect("a directory");
    let underway = underway(temporary.path());
    signal("-KILL", underway.driver.id());
    assert_eq!(underway.end().0, None, "ended by the signal");
}

#[test]
fn an_interrupted_run_cleans_up() {
    for name in ["-INT", "-TERM"] {
        let temporary = tempfile::tempdir().expect("a directory");
        let underway = underway(temporary.path());
        signal(name, underway.driver.id());
        let (code, said) = underway.end();
        assert_eq!(
            (code, said.as_str()),
            (Some(130), "error: interrupted\n"),
            "{name}"
        );
        let left = std::fs::read_dir(temporary.path())
            .expect("the directory")
            .count();
        assert_eq!(left, 0, "no temporary files are left");
    }
}

#[test]
fn a_service_that_dies_fails_the_run_and_shows_its_trace() {
    let temporary = tempfile::tempdir().expect("a directory");
    let underway = underway(temporary.path());
    signal("-KILL", underway.processes[4].1);
    let (code, said) = underway.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.starts_with("error: inventory ended unexpectedly: signal 9\n  its trace, "),
        "{said}"
    );
}
