//! `synod status`, `synod txn` and `synod dump` as operators of a real cluster see them: what they tell of real transactions and
//! of replicas that go away. (The fields of `status` are pinned in `coordinator/tests/cli.rs`.)

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use synod_tests::process::bank::Verdict;
use synod_tests::process::cluster::REPLICAS;
use synod_tests::process::program::{command, run};
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

/// Exit code, JSON and stderr of `synod dump`.
async fn dump(data: &Path, arguments: &[&str]) -> (Option<i32>, Value, String) {
    let mut verb = command("synod");
    verb.args(["dump", "--json"])
        .args(arguments)
        .arg("--data")
        .arg(data);
    let output = run(verb).await;
    (
        output.status.code(),
        serde_json::from_slice(&output.stdout).unwrap_or_default(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(directory).expect("readable");
    entries
        .map(|entry| {
            let entry = entry.expect("readable");
            let name = entry.file_name().into_string().expect("text");
            (name, std::fs::read(entry.path()).expect("readable"))
        })
        .collect()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().expect("a list")
}

/// A10, L3, J3: what a directory holds is shown without touching it. Where replicas have decided, their dumps agree; what is lost
/// is named, and the rest is shown all the same.
#[tokio::test]
async fn dump_shows_what_replicas_agree_on_and_what_is_lost() {
    within(async {
        let mut stage = Stage::start("dumped").await;
        let reply = stage
            .transfer("t", 0, LONG_MS)
            .await
            .expect("no panic")
            .expect("an answer");
        assert_eq!(reply.verdict(), Verdict::Committed, "{}", reply.text);
        stage.settled().await;

        let (code, _, text) = dump(&stage.cluster.data(1), &[]).await;
        assert_eq!(
            (code, text.contains("in use by a running replica")),
            (Some(3), true),
            "{text}"
        );
        let (code, _, text) = dump(&stage.path().join("nowhere"), &[]).await;
        assert_eq!(
            (code, text.contains("is no data directory")),
            (Some(3), true),
            "{text}"
        );

        stage.close_offices().await;
        for id in REPLICAS {
            assert_eq!(stage.cluster.terminate(id).await, Some(0));
        }
        let before = files(&stage.cluster.data(1));
        let mut hashes: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        let mut informed_count = 0;
        let mut first = Value::Null;
        for id in REPLICAS {
            let (code, dump, text) = dump(&stage.cluster.data(id), &[]).await;
            assert_eq!(
                (code, &dump["identity"]["replica"]),
                (Some(0), &json!(id)),
                "{text}"
            );
            assert_eq!(dump["identity"]["replicas"], json!(REPLICAS));
            assert_eq!(dump["applied_up_to"], dump["decided_up_to"]);
            for slot in list(&dump["slots"])
                .iter()
                .filter(|slot| slot["decided"] == json!(true))
            {
                let number = slot["slot"].as_u64().expect("a number");
                let hash = slot["hash"].as_str().expect("hex").to_owned();
                hashes.entry(number).or_default().insert(hash);
            }
            let outcome = list(&dump["outcomes"])
                .iter()
                .find(|one| one["gtid"] == json!(reply.gtid));
            if let Some(outcome) = outcome {
                assert_eq!(
                    (&outcome["status"], &outcome["branch_count"]),
                    (&json!("committed"), &json!(2))
                );
                informed_count += 1;
            }
            if id == 1 {
                first = dump;
            }
        }
        assert!(informed_count >= 1, "whoever led has decided it");
        assert!(hashes.len() >= 3, "{hashes:?}");
        assert!(
            hashes.values().all(|hashes| hashes.len() == 1),
            "one slot, one value: {hashes:?}"
        );
        assert_eq!(files(&stage.cluster.data(1)), before, "nothing was touched");

        // The commit itself, in the slot that holds it.
        let mut found = None;
        for slot in list(&first["slots"]) {
            let slot = slot["slot"].to_string();
            let (code, content, text) = dump(&stage.cluster.data(1), &["--slot", &slot]).await;
            assert_eq!(code, Some(0), "{text}");
            let commands = list(&content["commands"]).clone();
            found = commands
                .into_iter()
                .find(|command| command["gtid"] == json!(reply.gtid))
                .or(found);
        }
        let commit = found.expect("one slot holds the commit");
        assert_eq!(
            (
                &commit["kind"],
                &commit["proposal"],
                list(&commit["branches"]).len()
            ),
            (&json!("decide"), &json!("commit"), 2)
        );
        let (code, _, text) = dump(&stage.cluster.data(1), &["--slot", "999999"]).await;
        assert_eq!(
            (code, text.contains("there is no record of slot 999999")),
            (Some(1), true),
            "{text}"
        );

        // A copy, without its lock, and with a batch that has rotted.
        let copy = stage.path().join("copy");
        std::fs::create_dir(&copy).expect("new");
        for (name, bytes) in before.iter().filter(|(name, _)| *name != "lock") {
            std::fs::write(copy.join(name), bytes).expect("written");
        }
        let (code, of_copy, text) = dump(&copy, &[]).await;
        assert_eq!((code, &of_copy["slots"]), (Some(0), &first["slots"]), "{text}");
        let segment = before
            .keys()
            .find(|name| name.starts_with("segment-"))
            .expect("a segment");
        let mut rotten = before[segment].clone();
        for byte in &mut rotten[3 * 4096 + 8..3 * 4096 + 64] {
            *byte ^= 0x55;
        }
        std::fs::write(copy.join(segment), rotten).expect("written");
        let (code, damaged, text) = dump(&copy, &[]).await;
        assert_eq!(
            (code, list(&damaged["corrupt"]).is_empty()),
            (Some(1), false),
            "{text}{damaged}"
        );
        assert!(!list(&damaged["slots"]).is_empty(), "the rest is shown");

        // Nothing says whose it is but the segments themselves.
        std::fs::write(copy.join("identity"), "format = what").expect("written");
        let (code, anonymous, text) = dump(&copy, &[]).await;
        assert_eq!(
            (
                code,
                &anonymous["identity"]["cluster"],
                &anonymous["identity"]["replicas"]
            ),
            (Some(1), &json!("dumped"), &Value::Null),
            "{text}"
        );
        assert_eq!(list(&anonymous["problems"]).len(), 1, "{anonymous}");
        assert_eq!(anonymous["slots"], damaged["slots"]);

        // Cut short: the end is lost, and said to be.
        std::fs::write(copy.join(segment), &before[segment][..5 * 4096]).expect("written");
        let (code, cut, _) = dump(&copy, &[]).await;
        let problems = cut["problems"].to_string();
        assert_eq!(
            (code, problems.contains("the end of the log is lost")),
            (Some(1), true),
            "{problems}"
        );
        std::fs::remove_file(copy.join(segment)).expect("removed");
        let (code, _, text) = dump(&copy, &[]).await;
        let says = text.contains("no readable identity and no readable segment");
        assert_eq!((code, says), (Some(3), true), "{text}");
    })
    .await;
}
