//! Messages between real processes, each with a redb file of its own: a relay that is killed after it was answered, a message
//! that no handler takes and the operator who decides about it, and many writers while a relay is killed again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use synod_tests::process::cluster::Cluster;
use synod_tests::process::post::SendRequest;
use synod_tests::process::program::{Signal, command, run};
use synod_tests::process::station::{RECEIVER, Station, TOPIC, line};
use synod_tests::process::{Point, eventually, within};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// After so many failed attempts a message is a dead letter.
const ATTEMPTS: u32 = 3;

const WRITER_COUNT: usize = 32;

const KEY_COUNT: usize = 10;

/// How often a sender is killed.
const KILL_COUNT: usize = 12;

/// What both senders have sent, and the killed one has delivered, between two kills.
const SENT_BETWEEN: usize = 60;

/// Between a call that found no sender and the next one.
const PAUSE: Duration = Duration::from_millis(20);

/// A receiver and these senders to it, all serving.
async fn stations<const N: usize>(names: [&'static str; N], relays: u32) -> (TempDir, Station, [Station; N]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut receiver = Station::receiver(directory.path());
    let mut senders = names.map(|name| Station::sender(name, directory.path(), &receiver, ATTEMPTS, relays));
    receiver.start().await;
    for sender in &mut senders {
        sender.start().await;
    }
    (directory, receiver, senders)
}

// ---- what the relay's death repeats ----

/// H6, H7: the relay's process is killed when it has the consumer's acknowledgement and has marked nothing. The message is delivered
/// again, and applied once.
#[tokio::test]
async fn a_relay_killed_between_acknowledgement_and_mark_repeats_nothing() {
    within(async {
        let (_directory, mut receiver, [mut sender]) = stations(["orders"], 1).await;
        sender.arm(Point::Answered).await;
        sender.send("a", "1").await;
        assert_eq!(sender.paused(Point::Answered).await, RECEIVER);
        receiver.has(&sender, "a", "1").await;
        sender.kill().await;
        // Its own file knows nothing of the delivery.
        let rows = ["synod:outbox", "synod:outbox_done"].map(|table| sender.row_count(table));
        assert_eq!(rows, [1, 0]);

        sender.start().await;
        sender.send("a", "2").await;
        // A message leaves the outbox by an answer only: the first one was delivered again.
        sender.is_through().await;
        receiver.has(&sender, "a", "1 2").await;
        sender.terminate().await;
        receiver.terminate().await;
        assert_eq!(receiver.book(), sender.book());
        assert_eq!(sender.row_count("synod:outbox"), 0);
    })
    .await;
}

// ---- the operator ----

/// Exit code, stdout and stderr of `synod outbox`.
async fn outbox(verb: &str, service: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut synod = command("synod");
    synod.args(["outbox", verb, "--service", service]).args(arguments);
    let Output {
        status,
        stdout,
        stderr,
    } = run(synod).await;
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

async fn json_of(verb: &str, service: &str, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    let (code, stdout, stderr) = outbox(verb, service, &arguments).await;
    assert_eq!(
        (code, stderr.as_str()),
        (Some(0), ""),
        "{verb} {arguments:?}: {stdout}"
    );
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{verb}: {error}: {stdout}"))
}

/// The one dead letter, once it is there.
async fn dead_letter(sender: &Station) -> Value {
    eventually("a dead letter", async || {
        let letters = json_of("dead", &sender.address(), &[]).await;
        let letters = letters.as_array().expect("a list");
        assert!(letters.len() < 2, "{letters:?}");
        letters.first().cloned()
    })
    .await
}

fn fields(value: &Value) -> BTreeSet<&str> {
    let fields = value.as_object().expect("an object").keys();
    fields.map(String::as_str).collect()
}

/// The words of each line of a table.
fn words(table: &str) -> Vec<Vec<&str>> {
    let lines = table.lines();
    lines.map(|line| line.split_whitespace().collect()).collect()
}

const BY: [&str; 4] = ["--author", "ada", "--reason", "looked at it"];

/// H9, J7: a poisoned message becomes a dead letter after its attempts, and holds back its own key alone. The operator sees it, over
/// a crash of its service too; requeued after the consumer was mended it comes in its place; discarded its key goes on without it.
#[tokio::test]
async fn an_operator_requeues_and_discards_dead_letters() {
    within(async {
        let (_directory, receiver, [mut sender]) = stations(["orders"], 1).await;
        let service = sender.address();
        for (key, text) in [("a", "1"), ("a", "poison-2"), ("b", "1"), ("a", "3"), ("b", "2")] {
            sender.send(key, text).await;
        }
        let letter = dead_letter(&sender).await;
        receiver.has(&sender, "b", "1 2").await;
        receiver.has(&sender, "a", "1").await;
        let expected = [
            "attempt_count",
            "body_bytes",
            "consumer",
            "died_at_unix_ms",
            "id",
            "key",
            "key_hex",
            "position",
            "published_at_unix_ms",
            "reason",
            "sequence",
            "states",
            "topic",
        ];
        assert_eq!(fields(&letter), BTreeSet::from(expected));
        let told = [
            "consumer",
            "key",
            "key_hex",
            "attempt_count",
            "reason",
            "topic",
            "position",
        ];
        assert_eq!(
            told.map(|field| letter[field].clone()),
            [
                json!(RECEIVER),
                json!("a"),
                json!("61"),
                json!(ATTEMPTS),
                json!("poison-2 cannot be read"),
                json!("texts"),
                json!(2),
            ]
        );
        assert!(letter["died_at_unix_ms"].as_u64() >= letter["published_at_unix_ms"].as_u64());
        let id = letter["id"].as_str().expect("an id").to_owned();

        sender.kill().await;
        let (code, _, stderr) = outbox("dead", &service, &[]).await;
        assert_eq!(code, Some(6), "nobody is there: {stderr}");
        assert!(stderr.contains("no service answers"), "{stderr}");
        sender.start().await;
        assert_eq!(dead_letter(&sender).await, letter, "it outlives its process");

        // All that is left is what waits: the letter, and what is behind it.
        let listed = eventually("the other key's messages are gone", async || {
            let listed = json_of("list", &service, &[]).await;
            (listed.as_array().map(Vec::len) == Some(2)).then_some(listed)
        })
        .await;
        let states = [&listed[0], &listed[1]].map(|entry| {
            let state = &entry["states"][0];
            assert_eq!(entry["states"].as_array().map(Vec::len), Some(1));
            ["consumer", "state", "attempt_count", "reason"].map(|field| state[field].clone())
        });
        let reason = json!("poison-2 cannot be read");
        assert_eq!(
            states[0],
            [json!(RECEIVER), json!("dead"), json!(ATTEMPTS), reason]
        );
        assert_eq!(
            states[1],
            [json!(RECEIVER), json!("pending"), json!(0), Value::Null]
        );
        let one = json_of(
            "list",
            &service,
            &["--consumer", RECEIVER, "--count", "1", "--after", "2"],
        )
        .await;
        assert_eq!((&one[0], one.as_array().map(Vec::len)), (&listed[1], Some(1)));
        assert_eq!(json_of("list", &service, &["--after", "1000"]).await, json!([]));
        assert_eq!(
            json_of("dead", &service, &["--consumer", "nobody"]).await,
            json!([])
        );

        tables(&service, &id).await;
        refusals(&service, &id, &receiver).await;

        receiver.mend(true).await;
        let requeued = json_of("requeue", &service, &[&[id.as_str()], &BY[..]].concat()).await;
        assert_eq!(
            requeued,
            json!({ "id": id, "action": "requeued", "consumers": [RECEIVER] })
        );
        receiver.has(&sender, "a", "1 poison-2 3").await;

        receiver.mend(false).await;
        sender.send("a", "poison-4").await;
        sender.send("a", "5").await;
        let id = dead_letter(&sender).await["id"]
            .as_str()
            .expect("an id")
            .to_owned();
        let arguments = [&[id.as_str(), "--consumer", RECEIVER], &BY[..]].concat();
        let (code, stdout, stderr) = outbox("discard", &service, &arguments).await;
        let said = format!("{id}: discarded for {RECEIVER}\n");
        assert_eq!((code, stdout, stderr.as_str()), (Some(0), said, ""));
        receiver.has(&sender, "a", "1 poison-2 3 5").await;
        in_bulk(&service, &receiver, &mut sender).await;
        sender.is_through().await;
        assert_eq!(json_of("dead", &service, &[]).await, json!([]));
        let (code, _, stderr) = outbox("discard", &service, &arguments).await;
        assert_eq!(code, Some(1), "it is none any more: {stderr}");
    })
    .await;
}

/// All dead letters at once, a readmission, and what is scheduled.
async fn in_bulk(service: &str, receiver: &Station, sender: &mut Station) {
    for key in ["c", "d"] {
        sender.send(key, &format!("poison-{key}")).await;
    }
    eventually("two dead letters", async || {
        let letters = json_of("dead", service, &[]).await;
        (letters.as_array().map(Vec::len) == Some(2)).then_some(())
    })
    .await;
    let (code, _, stderr) = outbox("requeue", service, &[&["--all"], &BY[..]].concat()).await;
    assert_eq!(code, Some(2), "whose? {stderr}");
    receiver.mend(true).await;
    let all = ["--all", "--consumer", RECEIVER];
    let other = json_of(
        "requeue",
        service,
        &[&all[..], &["--topic", "none"], &BY].concat(),
    )
    .await;
    assert_eq!(other["count"], json!(0));
    let requeued = json_of("requeue", service, &[&all[..], &BY].concat()).await;
    assert_eq!(
        requeued,
        json!({ "action": "requeued", "consumer": RECEIVER, "count": 2 })
    );
    for key in ["c", "d"] {
        receiver.has(sender, key, &format!("poison-{key}")).await;
    }
    let readmitted = json_of("readmit", service, &[&[RECEIVER], &BY[..]].concat()).await;
    assert_eq!(
        readmitted,
        json!({ "consumer": RECEIVER, "action": "readmitted" })
    );
    let (code, _, stderr) = outbox("readmit", service, &[&["nobody"], &BY[..]].concat()).await;
    assert_eq!((code, stderr.contains("nobody")), (Some(1), true), "{stderr}");
    assert_eq!(json_of("scheduled", service, &[]).await, json!([]));
    let nowhere = "00000000-0000-0000-0000-000000000001";
    let (code, _, stderr) = outbox("cancel", service, &[&[nowhere], &BY[..]].concat()).await;
    assert_eq!(
        (code, stderr.contains("neither scheduled nor for a consumer")),
        (Some(1), true),
        "{stderr}"
    );
}

/// J7: a message that has not taken effect is taken back: its consumer is told so when it comes back, and its key goes on.
#[tokio::test]
async fn an_operator_cancels_a_message_before_its_consumer_is_back() {
    within(async {
        let (_directory, mut receiver, [mut sender]) = stations(["orders"], 1).await;
        receiver.kill().await;
        for text in ["1", "wrong", "3"] {
            sender.send("a", text).await;
        }
        let service = sender.address();
        let listed = json_of("list", &service, &[]).await;
        let id = listed[1]["id"].as_str().expect("an id").to_owned();
        let elsewhere = [&[id.as_str(), "--consumer", "nobody"], &BY[..]].concat();
        let (code, _, stderr) = outbox("cancel", &service, &elsewhere).await;
        assert_eq!(
            (code, stderr.contains("for anybody who was asked about")),
            (Some(1), true),
            "{stderr}"
        );
        let arguments = [&[id.as_str()], &BY[..]].concat();
        let cancelled = json_of("cancel", &service, &arguments).await;
        assert_eq!(
            cancelled,
            json!({ "id": id, "action": "cancelled", "consumers": [RECEIVER] })
        );
        let (code, _, stderr) = outbox("cancel", &service, &arguments).await;
        assert_eq!(
            (code, stderr.contains("it was cancelled for `receiver` already")),
            (Some(1), true),
            "{stderr}"
        );
        let state = &json_of("list", &service, &[]).await[1]["states"][0];
        assert_eq!(state["state"], json!("cancelled"));
        status(&service, &receiver).await;

        // What was decided outlives the sender's process.
        sender.kill().await;
        sender.start().await;
        receiver.start().await;
        sender.is_through().await;
        receiver.has(&sender, "a", "1 3").await;
        let (code, _, stderr) = outbox("cancel", &service, &arguments).await;
        assert_eq!(
            (code, stderr.contains("neither scheduled nor for a consumer")),
            (Some(1), true),
            "{stderr}"
        );
        let records = json_of("records", &service, &[]).await;
        assert_eq!(
            fields(&records[0]),
            BTreeSet::from(["number", "recorded_at_unix_ms", "text"])
        );
        let texts = records.as_array().expect("a list").iter();
        let texts: Vec<_> = texts.map(|record| record["text"].clone()).collect();
        let verdict = format!("consumer receiver says that message {id} (position 2) never takes effect");
        let word = format!("ada cancelled message {id} (position 2) for consumer {RECEIVER}: looked at it");
        assert_eq!(texts, [json!(verdict), json!(word)]);
        assert!(records[0]["recorded_at_unix_ms"].as_u64() >= listed[1]["published_at_unix_ms"].as_u64());
        // What a person sees.
        receiver.kill().await;
        sender.send("a", "wrong-4").await;
        let listed = json_of("list", &service, &[]).await;
        let id = listed[0]["id"].as_str().expect("an id").to_owned();
        let (code, stdout, stderr) = outbox("cancel", &service, &[&[id.as_str()], &BY[..]].concat()).await;
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        let said = format!("{id}: cancelled for {RECEIVER}: it never takes effect there, or it does before the consumer has heard of this");
        assert!(stdout.starts_with(&said), "{stdout}");
        assert!(stdout.contains("`synod outbox records`"), "{stdout}");
        let (code, stdout, stderr) = outbox("records", &service, &["--count", "1"]).await;
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        let lines = words(&stdout);
        assert_eq!(
            (lines.len(), &lines[0][..]),
            (2, &["NUMBER", "RECORDED", "TEXT"][..]),
            "{stdout}"
        );
        assert_eq!(
            (lines[1][0], &lines[1][3..7]),
            ("3", &["ada", "cancelled", "message", &id][..]),
            "{stdout}"
        );
    })
    .await;
}

/// J7: what a consumer has not got that is not named any more is dropped by its name, after it was said how much that is; one that
/// is named, or never was, is refused.
#[tokio::test]
async fn an_operator_unsubscribes_a_consumer_that_is_gone() {
    within(async {
        let (_directory, mut receiver, [mut sender]) = stations(["orders"], 1).await;
        receiver.kill().await;
        for (key, text) in [("a", "1"), ("a", "2"), ("b", "1")] {
            sender.send(key, text).await;
        }
        let service = sender.address();
        let refused = async |arguments: &[&str], says: &str| {
            let arguments = [arguments, &BY].concat();
            let (code, stdout, stderr) = outbox("unsubscribe", &service, &arguments).await;
            assert_eq!((code, stdout.as_str()), (Some(1), ""), "{arguments:?}: {stderr}");
            assert!(stderr.contains(says), "{arguments:?}: {stderr}");
        };
        refused(
            &[RECEIVER, "--yes"],
            "is named where the outbox is opened: take it away there first",
        )
        .await;
        refused(&["nobody", "--yes"], "it has: `receiver`").await;
        let (code, _, stderr) = outbox("unsubscribe", &service, &[RECEIVER, "--yes"]).await;
        assert_eq!(code, Some(2), "on whose word? {stderr}");

        sender.terminate().await;
        sender.rename_consumer("archive");
        sender.start().await;
        sender.send("a", "3").await;
        refused(
            &[RECEIVER, "--topic", TOPIC, "--yes"],
            "was taken away from the consumer `receiver`; what was: none",
        )
        .await;
        // What was sent since is kept for it as well, until somebody drops it by name.
        refused(
            &[RECEIVER],
            "4 messages that `receiver` has not got would be dropped",
        )
        .await;
        let (code, stdout, stderr) = outbox("unsubscribe", &service, &[RECEIVER, "--json"]).await;
        assert_eq!((code, stderr.as_str()), (Some(1), ""));
        let told: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
        assert_eq!(
            told,
            json!({ "action": null, "consumer": RECEIVER, "topic": null, "count": 4 })
        );
        assert_eq!(
            sender.outbox().await.expect("answers").stored_count,
            4,
            "nothing was done"
        );
        let unsubscribed = json_of("unsubscribe", &service, &[&[RECEIVER, "--yes"], &BY[..]].concat()).await;
        assert_eq!(
            unsubscribed,
            json!({ "action": "unsubscribed", "consumer": RECEIVER, "topic": null, "count": 4 })
        );
        refused(&[RECEIVER, "--yes"], "it has: `archive`").await;

        receiver.start().await;
        receiver.has(&sender, "a", "3").await;
        sender.is_through().await;
        // What a person sees: a consumer that had got all.
        sender.terminate().await;
        sender.rename_consumer(RECEIVER);
        sender.start().await;
        let arguments = [&["archive", "--yes"], &BY[..]].concat();
        let (code, stdout, stderr) = outbox("unsubscribe", &service, &arguments).await;
        let said = "archive: unsubscribed, and 0 messages that it had not got were dropped\n";
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(0), said, ""));
    })
    .await;
}

/// Three messages for a consumer that is away, at a glance.
async fn status(service: &str, receiver: &Station) {
    let mut status = eventually("the relay has noticed that it is away", async || {
        let mut status = json_of("status", service, &[]).await;
        let trouble = status["consumers"][0]["trouble"].take();
        trouble.is_string().then_some(status)
    })
    .await;
    let source = status["source"].take();
    let consumer = json!({
        "consumer": RECEIVER,
        "endpoint": format!("http://{}", receiver.address()),
        "topics": [TOPIC],
        "retired_topics": [],
        "mark": 1,
        "dead_count": 0,
        "unsettled_count": 0,
        "trouble": null,
    });
    let expected = json!({
        "source": null,
        "next_position": 4,
        "stored_count": 3,
        "scheduled_count": 0,
        "consumers": [consumer],
    });
    assert_eq!(status, expected);
    let (code, stdout, stderr) = outbox("status", service, &[]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    let source = source.as_str().expect("an id");
    let first = format!("outbox {source}: 3 messages stored, 0 scheduled, next position 4\n");
    assert!(stdout.starts_with(&first), "{stdout}");
    let lines = words(&stdout);
    let header = [
        "CONSUMER",
        "ENDPOINT",
        "TOPICS",
        "RETIRED",
        "TOPICS",
        "MARK",
        "DEAD",
        "UNSETTLED",
        "TROUBLE",
    ];
    assert_eq!((lines.len(), &lines[1][..]), (3, &header[..]), "{stdout}");
    let endpoint = format!("http://{}", receiver.address());
    let row = [RECEIVER, &endpoint, TOPIC, "-", "1", "0", "0"];
    assert_eq!(lines[2][..7], row, "{stdout}");
    assert!(lines[2].len() > 8, "the trouble is told in words: {stdout}");
}

/// What a person sees.
async fn tables(service: &str, id: &str) {
    let (code, stdout, stderr) = outbox("list", service, &[]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    let lines = words(&stdout);
    let header = [
        "POSITION",
        "ID",
        "TOPIC",
        "KEY",
        "SEQUENCE",
        "PUBLISHED",
        "BYTES",
        "STATE",
    ];
    assert_eq!((lines.len(), &lines[0][..]), (3, &header[..]), "{stdout}");
    assert_eq!(lines[1][..4], ["2", id, "texts", "a"]);
    assert!(
        stdout.contains("receiver: dead after 3 attempts: poison-2 cannot be read"),
        "{stdout}"
    );
    assert!(lines[2].ends_with(&["receiver:", "pending"]), "{stdout}");

    let (code, stdout, stderr) = outbox("dead", service, &[]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    let lines = words(&stdout);
    let header = [
        "ID", "CONSUMER", "TOPIC", "KEY", "SEQUENCE", "DIED", "ATTEMPTS", "REASON",
    ];
    assert_eq!((lines.len(), &lines[0][..]), (2, &header[..]), "{stdout}");
    assert_eq!(lines[1][..4], [id, RECEIVER, "texts", "a"]);
    assert!(
        stdout.trim_end().ends_with("3         poison-2 cannot be read"),
        "{stdout}"
    );
}

/// What is refused, with its exit code, and that nothing comes of it.
async fn refusals(service: &str, id: &str, receiver: &Station) {
    let unknown = "00000000-0000-0000-0000-000000000001";
    let blank = ["--author", "ada", "--reason", " "];
    let elsewhere = ["--consumer", "nobody"];
    for (arguments, expected, says) in [
        ([&[id], &blank[..]].concat(), 1, "the reason has 1 to"),
        ([&[unknown], &BY[..]].concat(), 1, "is no dead letter"),
        ([&[id], &BY[..], &elsewhere[..]].concat(), 1, "is no dead letter"),
        ([&["17"], &BY[..]].concat(), 2, "32 hex digits"),
        (vec![id, "--author", "ada"], 2, "--reason"),
    ] {
        for verb in ["requeue", "discard"] {
            let (code, stdout, stderr) = outbox(verb, service, &arguments).await;
            assert_eq!(
                (code, stdout.as_str()),
                (Some(expected), ""),
                "{arguments:?}: {stderr}"
            );
            assert!(stderr.contains(says), "{arguments:?}: {stderr}");
        }
    }
    let (code, _, stderr) = outbox("list", &receiver.address(), &[]).await;
    assert_eq!(code, Some(1), "an inbox has no outbox: {stderr}");
    assert!(
        stderr.contains("does not serve its outbox's admin service"),
        "{stderr}"
    );
    let (code, _, stderr) = outbox("list", "not an address", &[]).await;
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("HOST:PORT"), "{stderr}");
}

/// A service that stands still takes the connection and answers nothing; a replica has no outbox, and says what is wrong.
#[tokio::test]
async fn a_service_that_does_not_answer_is_told_from_one_without_an_outbox() {
    within(async {
        let (directory, _receiver, [mut sender]) = stations(["orders"], 1).await;
        sender.signal(Signal::STOP);
        let (code, stdout, stderr) = outbox("list", &sender.address(), &[]).await;
        assert_eq!((code, stdout.as_str()), (Some(6), ""), "{stderr}");
        assert!(stderr.contains("no answer from"), "{stderr}");
        sender.signal(Signal::CONT);
        assert_eq!(json_of("list", &sender.address(), &[]).await, json!([]));

        let cluster = Cluster::start("no-outbox", directory.path()).await;
        let (code, _, stderr) = outbox("dead", &cluster.address(1), &[]).await;
        assert_eq!(code, Some(1), "{stderr}");
        assert!(
            stderr.contains("does not serve its outbox's admin service"),
            "{stderr}"
        );
    })
    .await;
}

// ---- many writers ----

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicUsize,
    is_over: AtomicBool,
}

/// One text after the other, of every key in turn: the lines and texts that were acknowledged.
async fn write(
    sender: usize,
    post: Post,
    name: &'static str,
    writer: usize,
    counts: Arc<[Counts; 2]>,
) -> Vec<(String, String)> {
    let mut post = post;
    let mut acknowledged = Vec::new();
    for number in writer.. {
        if counts[sender].is_over.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("key-{}", number % KEY_COUNT);
        let text = format!("{writer}.{number}");
        let request = SendRequest {
            key: key.clone(),
            text: text.clone(),
        };
        if post.send(request).await.is_ok() {
            counts[sender].sent.fetch_add(1, Ordering::SeqCst);
            acknowledged.push((line(name, &key), text));
        } else {
            sleep(PAUSE).await;
        }
    }
    acknowledged
}

type Post = synod_tests::process::post::post_client::PostClient<tonic::transport::Channel>;

/// H4, H5, H7, H10: 32 writers, ten keys, two processes with two relays each to one consumer, of which one is killed again and
/// again. Every message that was committed takes effect once, and each key's in the order in which they were committed; every one
/// that was acknowledged was committed.
#[tokio::test]
async fn many_writers_while_a_relay_is_killed_again_and_again() {
    within(async {
        let (_directory, mut receiver, mut senders) = stations(["left", "right"], 2).await;
        let counts: Arc<[Counts; 2]> = Arc::default();
        let mut writers = JoinSet::new();
        for writer in 0..WRITER_COUNT {
            let sender = writer % senders.len();
            let (post, name) = (senders[sender].post(), senders[sender].name());
            writers.spawn(write(sender, post, name, writer, counts.clone()));
        }
        let killed = &mut senders[0];
        for _ in 0..KILL_COUNT {
            let sent = [0, 1].map(|sender| counts[sender].sent.load(Ordering::SeqCst));
            let before = delivered(killed).await;
            eventually("both senders send, and the relay delivers", async || {
                let is_sent =
                    |sender: usize| counts[sender].sent.load(Ordering::SeqCst) >= sent[sender] + SENT_BETWEEN;
                let is_delivered = delivered(killed).await >= before + SENT_BETWEEN as u64;
                (is_sent(0) && is_sent(1) && is_delivered).then_some(())
            })
            .await;
            killed.kill().await;
            killed.start().await;
        }
        counts
            .iter()
            .for_each(|counts| counts.is_over.store(true, Ordering::SeqCst));
        let mut acknowledged = Vec::new();
        while let Some(written) = writers.join_next().await {
            acknowledged.extend(written.expect("no panic"));
        }
        for sender in &mut senders {
            sender.is_through().await;
            sender.terminate().await;
        }
        receiver.terminate().await;

        let mut sent: BTreeMap<String, String> = BTreeMap::new();
        for sender in &senders {
            sent.extend(sender.book());
            assert_eq!(sender.row_count("synod:outbox_letter"), 0, "nothing was given up");
        }
        assert_eq!(sent.len(), 2 * KEY_COUNT);
        assert_eq!(receiver.book(), sent, "once each, and in order");
        for (line, text) in &acknowledged {
            assert!(
                sent[line].split(' ').any(|sent| sent == text),
                "{line}: {text} is lost"
            );
        }
        eprintln!("{} messages acknowledged, {KILL_COUNT} kills", acknowledged.len());
    })
    .await;
}

/// How far the sender's mark is: so many messages have been settled.
async fn delivered(sender: &Station) -> u64 {
    eventually("the outbox answers", async || {
        Some(sender.outbox().await?.consumers.first()?.mark)
    })
    .await
}
