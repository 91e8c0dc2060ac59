//! Bad input, end to end: each gets its own clear error, and leaves nothing behind.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use synod_proto::ids::{Gtid, Lineage, ResourceId, UnixMillis};
use synod_proto::session::Decision;
use synod_proto::v1;
use synod_tests::process::bank::{LookRequest, MoveRequest, TransferRequest, Verdict};
use synod_tests::process::cluster::Cluster;
use synod_tests::process::ledger;
use synod_tests::process::program::{Program, ReservedPort, binary, command, run};
use synod_tests::process::stage::{LONG_MS, Stage};
use synod_tests::process::{account, eventually, within};
use tokio::process::Command;
use tonic::Code;

/// Runs `synod` where it must refuse to: the exit code, and stderr.
async fn refused(start: Command) -> (Option<i32>, String) {
    let output = run(start).await;
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn start(arguments: &[&str], data: &Path) -> Command {
    let mut start = command("synod");
    start.arg("start").args(arguments).arg("--data").arg(data);
    start
}

fn assert_refused((code, text): &(Option<i32>, String), expected_code: i32, sentence: &str) {
    assert!(text.contains(sentence), "expected: {sentence}\nfound: {text}");
    assert_eq!(*code, Some(expected_code), "{text}");
}

/// J3: who it is and where it listens is settled before anything is opened.
#[tokio::test]
async fn a_replica_that_is_not_among_its_peers_or_has_no_port_does_not_start() {
    within(async {
        let directory = tempfile::tempdir().expect("a directory");
        let data = directory.path().join("data");
        let peers = [
            "--peer",
            "1=127.0.0.1:7901",
            "--peer",
            "2=127.0.0.1:7902",
            "--cluster",
            "orders",
        ];
        let with = |more: &[&str]| refused(start(&[&peers, more].concat(), &data));

        let text = "replica 4 is not among the peers (1, 2): name every replica there, this one included";
        assert_refused(&with(&["--replica", "4"]).await, 3, text);
        let wide = with(&["--replica", "1", "--peer", "256=127.0.0.1:7903"]).await;
        assert_refused(&wide, 3, "--peer: `256` is not a replica's number: 1 to 255");
        let same = with(&["--replica", "1", "--peer", "3=127.0.0.1:7902"]).await;
        assert_refused(&same, 3, "replicas 2 and 3 have the same address 127.0.0.1:7902");

        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("bound").to_string();
        let occupied = with(&["--replica", "1", "--listen", &address]).await;
        assert_refused(&occupied, 4, &format!("cannot listen at {address}"));
        assert_refused(
            &occupied,
            4,
            "another process listens there: end it, or choose another port",
        );
        assert!(!data.exists(), "nothing was begun");
    })
    .await;
}

/// J3, L10: a directory that is not this replica's own is not touched.
#[tokio::test]
async fn a_directory_that_is_not_the_replicas_own_is_refused() {
    within(async {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let port = ReservedPort::take();
        let peer = format!("1={}", port.address());
        let of = |cluster: &'static str| {
            ["--cluster", cluster, "--replica", "1", "--peer", &peer].map(str::to_owned)
        };
        let open = |cluster, data: &Path| {
            let arguments = of(cluster);
            start(&arguments.each_ref().map(String::as_str), data)
        };

        std::fs::create_dir(path("foreign")).expect("a directory");
        std::fs::write(path("foreign/letter.txt"), "dear").expect("a file");
        let foreign = refused(open("orders", &path("foreign"))).await;
        assert_refused(&foreign, 3, "is not a Synod data directory and not empty");
        let names: Vec<_> = std::fs::read_dir(path("foreign"))
            .expect("there")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert_eq!(names, ["letter.txt"], "what is not ours stays as it was");

        // Nobody can make a directory there, whoever runs this test.
        assert_refused(
            &refused(open("orders", Path::new("/proc/synod"))).await,
            3,
            "/proc/synod",
        );

        let mut running = Program::start("first", open("orders", &path("mine")), directory.path());
        running.line("listening").await;
        eventually("the first process holds the directory", async || {
            path("mine/identity").exists().then_some(())
        })
        .await;
        // Another address, so that only the directory is in the way.
        let mut second = open("orders", &path("mine"));
        second.args(["--listen", "127.0.0.1:0"]);
        assert_refused(&refused(second).await, 3, "is in use by another process");
        assert_eq!(running.terminate().await, Some(0));
        assert_refused(
            &refused(open("billing", &path("mine"))).await,
            3,
            "belongs to cluster `orders`, not `billing`",
        );
    })
    .await;
}

/// J4: a value that cannot be read is not replaced by a default.
#[tokio::test]
async fn a_configuration_file_is_refused_with_its_line() {
    within(async {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("synod.toml");
        let good = "cluster = \"orders\"\nreplica = 1\ndata = \"data\"\nheartbeat_ms = 50\n\n[peers]\n1 = \"127.0.0.1:7911\"\n";
        let cases = [
            ("heartbeat_ms", "heartbeet_ms", "synod.toml:4: unknown field `heartbeet_ms`"),
            ("= 50", "= \"fast\"", "synod.toml:4: invalid type: string \"fast\", expected u64"),
            ("= 50", "= 0", "synod.toml:4: 0 is out of range: 1 to 60000"),
            ("7911", "port", "synod.toml:7: `127.0.0.1:port` is not HOST:PORT"),
        ];
        for (right, wrong, sentence) in cases {
            std::fs::write(&file, good.replace(right, wrong)).expect("a file");
            let mut start = command("synod");
            start.arg("start").arg("--config").arg(&file).current_dir(&directory);
            assert_refused(&refused(start).await, 3, sentence);
        }
        assert!(!directory.path().join("data").exists(), "nothing was begun");
    })
    .await;
}

/// J1: two clusters whose addresses got mixed up keep apart, and say so.
#[tokio::test]
async fn replicas_of_another_cluster_are_not_listened_to() {
    within(async {
        let directory = tempfile::tempdir().expect("a directory");
        let cluster = Cluster::start("orders", directory.path()).await;
        cluster.leader().await;
        let stranger_port = ReservedPort::take();
        let peers = [format!("1={}", cluster.address(1)), format!("2={}", cluster.address(2)), format!("3={}", stranger_port.address())];
        let mut start = start(&["--cluster", "billing", "--replica", "3"], &directory.path().join("stranger"));
        for peer in &peers {
            start.args(["--peer", peer]);
        }
        let mut stranger = Program::start("stranger", start, directory.path());
        stranger.line("listening").await;
        let ours = "wrong cluster: that replica belongs to `billing`, this one to `orders`: check the addresses under `peers`";
        eventually("both sides say what is wrong", async || {
            let is_told = cluster.trace(1).contains(ours) && cluster.trace(2).contains(ours);
            (is_told && stranger.trace().contains("wrong cluster")).then_some(())
        })
        .await;
        // It is alone, and disturbs nobody.
        let leader = cluster.leader().await;
        assert!(cluster.status(leader).await.expect("it answers").peers.iter().all(|peer| peer.connected));
        assert_eq!(stranger.terminate().await, Some(0));
    })
    .await;
}

fn gtid_at(ms: u64) -> Gtid {
    let mut random = [0; 10];
    getrandom::fill(&mut random).expect("random numbers");
    Gtid::new(UnixMillis(ms), random)
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("this age")
}

fn commit(gtid: Gtid, lineage: Lineage, resource: ResourceId, branch_count: u64) -> v1::CommitRequest {
    let branch = |call| v1::NamedBranch {
        call,
        execution: call,
        resource: resource.0.to_vec().into(),
        ..Default::default()
    };
    v1::CommitRequest {
        gtid: gtid.to_bytes().to_vec().into(),
        lineage: lineage.0.to_vec().into(),
        deadline_unix_ms: gtid.began_at().plus(30_000).0,
        branches: (1..=branch_count).map(branch).collect(),
        read_only_count: 0,
    }
}

/// L6: a replica that counts other replicas than its peers is kept out, and both ends say which sets there are.
#[tokio::test]
async fn replicas_with_other_members_are_not_listened_to() {
    within(async {
        let directory = tempfile::tempdir().expect("a directory");
        let cluster = Cluster::start("orders", directory.path()).await;
        cluster.leader().await;
        let (own_port, fourth_port) = (ReservedPort::take(), ReservedPort::take());
        let mut start = start(
            &["--cluster", "orders", "--replica", "3"],
            &directory.path().join("stranger"),
        );
        let addresses = [
            cluster.address(1),
            cluster.address(2),
            own_port.address(),
            fourth_port.address(),
        ];
        for (id, address) in (1..).zip(&addresses) {
            start.arg("--peer").arg(format!("{id}={address}"));
        }
        let mut stranger = Program::start("stranger", start, directory.path());
        stranger.line("listening").await;
        let told = "other members: replica 3 was started with the replicas 1, 2, 3, 4, this one with 1, 2, 3: give every \
                    replica the same `peers`";
        eventually("both sides say what is wrong", async || {
            let is_told = cluster.trace(1).contains(told) && cluster.trace(2).contains(told);
            (is_told && stranger.trace().contains(told)).then_some(())
        })
        .await;
        let leader = cluster.leader().await;
        let status = cluster.status(leader).await.expect("it answers");
        assert!(status.peers.iter().all(|peer| peer.connected), "the cluster goes on");
        assert_eq!(stranger.terminate().await, Some(0));
    })
    .await;
}

/// J6, J8, A20, T5, T9, T11, T14: each bad request is refused by name, and the register holds nothing of it.
#[tokio::test]
async fn bad_requests_are_refused_and_leave_no_trace() {
    within(async {
        let mut stage = Stage::start("bad-requests").await;
        let (mut client, lineage) = stage.cluster.leader_client().await;
        let unknown = ResourceId([7; 16]);

        let future = commit(gtid_at(now() + 3_600_000), lineage, unknown, 1);
        let wide = commit(gtid_at(now()), lineage, unknown, 65);
        let nobody = commit(gtid_at(now()), lineage, unknown, 1);
        let foreign = commit(gtid_at(now()), Lineage([9; 16]), unknown, 1);
        let cases = [
            (
                future,
                Code::OutOfRange,
                "too far ahead of the coordinator's clock; check the caller's clock",
            ),
            (
                wide,
                Code::InvalidArgument,
                "`CommitRequest.branches` has 65 branches, more than 64",
            ),
            (nobody, Code::InvalidArgument, "never registered"),
            (
                foreign,
                Code::FailedPrecondition,
                "the request belongs to another coordinator",
            ),
        ];
        for (request, code, sentence) in cases {
            let status = client.commit(request).await.expect_err(sentence);
            assert!(
                status.message().contains(sentence),
                "expected: {sentence}\nfound: {status}"
            );
            assert_eq!(status.code(), code, "{status}");
        }
        let huge = v1::AbortRequest {
            gtid: gtid_at(now()).to_bytes().to_vec().into(),
            lineage: lineage.0.to_vec().into(),
            deadline_unix_ms: now() + 30_000,
            reason: "x".repeat(1 << 20),
            branches: Vec::new(),
        };
        let status = client.abort(huge).await.expect_err("too large");
        assert_eq!(status.code(), Code::OutOfRange, "{status}");
        assert!(
            status.message().contains("too large") && status.message().contains("1048576"),
            "{status}"
        );

        // T9: older than every record that the register may have forgotten. The mark moves through the log, with the
        // stamps of its entries: it lies 10 minutes back, so a gtid of an hour ago is below it.
        let past = commit(gtid_at(now() - 3_600_000), lineage, unknown, 1);
        let look = stage
            .here
            .client()
            .look(LookRequest {})
            .await
            .expect("an answer")
            .into_inner();
        let resource = ResourceId(look.resource[..].try_into().expect("16 bytes"));
        let past = v1::CommitRequest {
            branches: commit(gtid_at(now()), lineage, resource, 1).branches,
            ..past
        };
        let decision = Decision::try_from(client.commit(past).await.expect("an answer").into_inner());
        assert_eq!(decision, Ok(Decision::Expired));

        let list = client
            .list(v1::ListRequest::default())
            .await
            .expect("a list")
            .into_inner();
        assert_eq!(list.transactions, [], "nothing is half done");
        stage.close_offices().await;
    })
    .await;
}

/// Through the library: what a service or its caller can do wrong, and the money stays where it was.
#[tokio::test]
async fn wrong_use_of_a_service_is_refused_and_changes_nothing() {
    within(async {
        let mut stage = Stage::start("bad-use").await;
        let alone = MoveRequest {
            transfer: "alone".to_owned(),
            account: account(0),
            amount: 1,
        };
        let status = stage
            .there
            .client()
            .r#move(alone)
            .await
            .expect_err("outside a transaction");
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(
            status
                .message()
                .contains("this method must be called inside a global transaction"),
            "{status}"
        );

        let transfer = |name: &str, account: String, amount, extra_branch_count| TransferRequest {
            transfer: name.to_owned(),
            account,
            amount,
            deadline_ms: LONG_MS,
            extra_branch_count,
        };
        let ask = async |request| {
            stage
                .here
                .transfer(request)
                .await
                .expect("no panic")
                .expect("an answer")
        };
        // 1 here, 1 there, and 63 more.
        let wide = ask(transfer("wide", account(1), 1, 63)).await;
        assert_eq!(wide.verdict(), Verdict::Refused, "{}", wide.text);
        assert!(wide.text.contains("65 branches"), "{}", wide.text);
        let stranger = ask(transfer("stranger", "nobody".to_owned(), 1, 0)).await;
        assert_eq!(stranger.verdict(), Verdict::Refused, "{}", stranger.text);
        assert!(stranger.text.contains("no account nobody"), "{}", stranger.text);
        let good = ask(transfer("good", account(2), 5, 0)).await;
        assert_eq!(good.verdict(), Verdict::Committed, "{}", good.text);

        stage.settled().await;
        let (here, there) = stage.close_offices().await;
        let booked = ledger::check(&here, &there, |_| account(2));
        assert_eq!(booked, ["good".to_owned()].into());
    })
    .await;
}

/// The programs are there: a test that finds none says what to do, and this is where it would be seen first.
#[test]
fn the_programs_are_beside_the_tests() {
    assert!(binary("synod").is_file() && binary("test_service").is_file());
}
