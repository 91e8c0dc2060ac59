//! The gRPC face of one cluster: limits, clear errors, health and reflection.

mod support;

use std::time::Duration;
use support::{
    Cluster, STEP, Session, abort_call, branch, client, commit, commit_call, eventually, gtid, gtid_at,
    named, now, resource, within,
};
use synod_proto::ids::{Lineage, RequestId};
use synod_proto::session::{Decision, Outcome, Refusal, Request, Response};
use synod_proto::v1;
use synod_proto::v1::link_message::Message as LinkMessage;
use synod_proto::v1::replication_client::ReplicationClient;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

/// Every kind of bad input to a single call has its own code, and a text that says what is wrong (J8). None leaves a
/// trace in the register.
#[tokio::test]
async fn bad_calls_are_refused_by_name() {
    within(async {
        let cluster = Cluster::start().await;
        let (leader, _, lineage) = cluster.roles().await;
        let mut client = cluster.client(leader).await;
        let (_session, _) = Session::registered(&mut client, resource(1)).await;
        let good = commit_call(gtid(), lineage, &[named(1, resource(1))]);

        let mut wide = good.clone();
        wide.branches = (0..65).map(|n| named(n, resource(1)).into()).collect();
        let mut twice = good.clone();
        twice.branches.push(good.branches[0].clone());
        let mut nobody = good.clone();
        nobody.branches.clear();
        let mut short = good.clone();
        short.gtid = good.gtid.slice(..15);
        let mut random = good.clone();
        random.gtid = vec![7; 16].into();
        let mut late = good.clone();
        late.deadline_unix_ms += 24 * 3_600_000;
        let future = commit_call(gtid_at(now().plus(60_000)), lineage, &[named(1, resource(1))]);
        let foreign = commit_call(gtid(), Lineage([9; 16]), &[named(1, resource(1))]);
        let unknown = commit_call(gtid(), lineage, &[named(1, resource(77))]);
        let past = commit_call(
            gtid_at(now().minus(24 * 3_600_000)),
            lineage,
            &[named(1, resource(1))],
        );

        let cases = [
            (
                wide,
                Code::InvalidArgument,
                "`CommitRequest.branches` has 65 branches, more than 64",
            ),
            (twice, Code::InvalidArgument, "twice"),
            (
                nobody,
                Code::InvalidArgument,
                "`CommitRequest.branches` is missing",
            ),
            (
                short,
                Code::InvalidArgument,
                "`CommitRequest.gtid` has 15 bytes instead of 16",
            ),
            (random, Code::InvalidArgument, "is not a gtid"),
            (late, Code::InvalidArgument, "the deadline is more than"),
            (future, Code::OutOfRange, "ahead of the coordinator's clock"),
            (foreign, Code::FailedPrecondition, "another coordinator"),
            (unknown, Code::InvalidArgument, "never registered"),
        ];
        for (call, code, text) in cases {
            let status = client.commit(call).await.expect_err(text);
            assert_eq!(
                (status.code(), status.message().contains(text)),
                (code, true),
                "{text}: {status}"
            );
        }
        let list = client
            .list(v1::ListRequest::default())
            .await
            .expect("a list")
            .into_inner();
        assert_eq!(list.transactions, Vec::new(), "nothing was half done");

        // Below the watermark the outcome can no longer be told, and is not made up (T9).
        let reply = client.commit(good).await.expect("an answer").into_inner();
        assert_eq!(Decision::try_from(reply), Ok(Decision::Committed));
        let reply = client.commit(past).await.expect("an answer").into_inner();
        assert_eq!(Decision::try_from(reply), Ok(Decision::Expired));
    })
    .await;
}

/// J6, A20: a message over 1 MiB is refused before it is decoded; the caller is told the sizes, and others go on.
#[tokio::test]
async fn messages_over_a_mebibyte_are_refused() {
    within(async {
        let cluster = Cluster::start().await;
        let (leader, _, lineage) = cluster.roles().await;
        let mut client = cluster.client(leader).await;
        let (mut other, _) = Session::registered(&mut client, resource(1)).await;

        let huge = abort_call(gtid(), lineage, &"x".repeat(1 << 20));
        let is_clear = |status: &Status| {
            status.code() == Code::OutOfRange
                && status.message().contains("too large")
                && status.message().contains("1048576")
        };
        let status = client.abort(huge).await.expect_err("too large");
        assert!(is_clear(&status), "{status}");

        let mut session = Session::open(&mut client).await;
        let command = vec![0; 1 << 20].into();
        let decide = v1::Decide { request: 1, command };
        session
            .send_wire(vec![v1::SessionRequest {
                request: Some(v1::session_request::Request::Decide(decide)),
            }])
            .await;
        let status = session.end().await;
        assert!(is_clear(&status), "{status}");

        let gtid = gtid();
        let command = commit(gtid, lineage, &[named(1, resource(1))]).encode();
        other
            .send([Request::Decide {
                request: RequestId(2),
                command,
            }])
            .await;
        let committed = Response::Decided {
            request: RequestId(2),
            decision: Decision::Committed,
        };
        while other.next().await != committed {}
    })
    .await;
}

/// One malformed request in a session is refused by its number; its neighbours are answered.
#[tokio::test]
async fn a_malformed_request_does_not_end_its_session() {
    within(async {
        let cluster = Cluster::start().await;
        let (leader, _, lineage) = cluster.roles().await;
        let mut client = cluster.client(leader).await;
        let (mut session, _) = Session::registered(&mut client, resource(1)).await;
        let good = Request::Decide {
            request: RequestId(3),
            command: commit(gtid(), lineage, &[named(1, resource(1))]).encode(),
        };
        let query = v1::QueryOutcome {
            request: 2,
            gtid: vec![1, 2, 3].into(),
        };
        let bad = v1::SessionRequest {
            request: Some(v1::session_request::Request::Outcome(query)),
        };
        let garbage = Request::Decide {
            request: RequestId(4),
            command: vec![1, 2, 3].into(),
        };
        session.send_wire(vec![bad, good.into(), garbage.into()]).await;
        let mut answers = Vec::new();
        while answers.len() < 3 {
            match session.next().await {
                Response::Refused {
                    request,
                    refusal: Refusal::Invalid { text },
                } => answers.push((request.0, text)),
                Response::Decided { request, decision } => answers.push((request.0, format!("{decision:?}"))),
                Response::Deliver { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        answers.sort();
        assert_eq!(
            answers[0],
            (2, "`QueryOutcome.gtid` has 3 bytes instead of 16".to_owned())
        );
        assert_eq!(answers[1], (3, "Committed".to_owned()));
        assert!(
            answers[2].0 == 4 && answers[2].1.starts_with("malformed proposal"),
            "{answers:?}"
        );

        // Without a number there is nobody to tell but the session as a whole.
        let nobody = v1::SessionRequest {
            request: Some(v1::session_request::Request::Acknowledge(
                v1::Acknowledge::default(),
            )),
        };
        session.send_wire(vec![nobody]).await;
        let status = session.end().await;
        assert_eq!(
            (status.code(), status.message().contains("`Acknowledge.branch`")),
            (Code::InvalidArgument, true),
            "{status}"
        );
    })
    .await;
}

/// A20: what one session may leave unanswered is bounded; above, it is told so, and answers make room again.
#[tokio::test]
async fn a_session_that_asks_too_much_is_told() {
    within(async {
        const UNANSWERED_COUNT_MAX: u64 = 16_384;
        let cluster = Cluster::start().await;
        let (leader, _, lineage) = cluster.roles().await;
        let mut client = cluster.client(leader).await;
        let (mut session, _) = Session::registered(&mut client, resource(1)).await;
        let gtid = gtid();
        let named = named(1, resource(1));
        let command = commit(gtid, lineage, std::slice::from_ref(&named)).encode();
        session
            .send([Request::Decide {
                request: RequestId(1),
                command,
            }])
            .await;
        let committed = Response::Decided {
            request: RequestId(1),
            decision: Decision::Committed,
        };
        while session.next().await != committed {}
        // Each waits for a delivery that is not acknowledged.
        let numbers: Vec<u64> = (2..=UNANSWERED_COUNT_MAX + 2).collect();
        for numbers in numbers.chunks(1_000) {
            session
                .send(numbers.iter().map(|n| Request::AwaitDelivery {
                    request: RequestId(*n),
                    gtid,
                }))
                .await;
        }
        let branch = branch(gtid, &named);
        let deliver = Response::Deliver {
            branch,
            resource: resource(1),
            outcome: Outcome::Committed,
        };
        let refused = loop {
            match session.next().await {
                repeated if repeated == deliver => {}
                other => break other,
            }
        };
        let Response::Refused {
            request,
            refusal: Refusal::Overloaded { what },
        } = refused
        else {
            panic!("{refused:?}")
        };
        assert_eq!(request, RequestId(UNANSWERED_COUNT_MAX + 2));
        assert_eq!(what, "16384 requests of this session wait for an answer");

        session
            .send([Request::Acknowledge {
                branch,
                resource: resource(1),
            }])
            .await;
        let mut delivered_count = 0;
        while delivered_count < UNANSWERED_COUNT_MAX {
            match session.next().await {
                Response::Delivered { .. } => delivered_count += 1,
                repeated if repeated == deliver => {}
                other => panic!("{other:?}"),
            }
        }
        session
            .send([Request::AwaitDelivery {
                request: RequestId(1),
                gtid,
            }])
            .await;
        assert_eq!(
            session.next().await,
            Response::Delivered {
                request: RequestId(1),
                gtid
            }
        );
    })
    .await;
}

/// A client that goes away leaves nothing behind: no session, no place, no deliveries to nobody.
#[tokio::test]
async fn a_session_ends_with_its_client() {
    within(async {
        let cluster = Cluster::start().await;
        let (leader, _, _) = cluster.roles().await;
        let mut client = cluster.client(leader).await;
        let (session, _) = Session::registered(&mut client, resource(1)).await;
        let count = async || Some(cluster.status(leader).await?.session_count);
        eventually("the session is counted", async || {
            (count().await? == 1).then_some(())
        })
        .await;
        drop(session);
        eventually("the session is gone", async || {
            (count().await? == 0).then_some(())
        })
        .await;
    })
    .await;
}

/// A call that the log cannot answer in its client's own time ends in DEADLINE_EXCEEDED, not in an outcome (T7).
#[tokio::test]
async fn a_clients_deadline_is_kept() {
    within(async {
        let mut cluster = Cluster::start().await;
        let (leader, followers, lineage) = cluster.roles().await;
        let mut client = cluster.client(leader).await;
        for follower in followers {
            cluster.kill(follower);
        }
        let mut request = tonic::Request::new(abort_call(gtid(), lineage, "nobody hears it"));
        request.set_timeout(Duration::from_millis(100));
        let status = timeout(STEP, client.abort(request))
            .await
            .expect("in time")
            .expect_err("no quorum");
        // The leader may have noticed its solitude first, and resigned.
        let codes = [Code::DeadlineExceeded, Code::Cancelled, Code::Unavailable];
        assert!(codes.contains(&status.code()), "{status}");
    })
    .await;
}

async fn channel(address: &str) -> Option<Channel> {
    Endpoint::from_shared(format!("http://{address}"))
        .ok()?
        .connect()
        .await
        .ok()
}

/// Load balancers see which replica serves; tools see what it serves.
#[tokio::test]
async fn health_and_reflection() {
    within(async {
        let mut cluster = Cluster::start().await;
        let (leader, followers, _) = cluster.roles().await;
        let check = async |address: &str, service: &str| {
            let mut health = HealthClient::new(channel(address).await?);
            let reply = health
                .check(HealthCheckRequest {
                    service: service.to_owned(),
                })
                .await
                .ok()?;
            Some(reply.into_inner().status())
        };
        for id in cluster.ids() {
            for service in ["", "synod.v1.Coordinator"] {
                eventually("a replica with a leader serves", async || {
                    (check(&cluster.peers[&id], service).await? == ServingStatus::Serving).then_some(())
                })
                .await;
            }
        }

        let address = cluster.peers[&leader].clone();
        let mut reflection = ServerReflectionClient::new(channel(&address).await.expect("connects"));
        let ask = tonic_reflection::pb::v1::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut answers = reflection
            .server_reflection_info(tokio_stream::once(ask))
            .await
            .expect("answers")
            .into_inner();
        let answer = answers.message().await.expect("no status").expect("an answer");
        let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else {
            panic!("{answer:?}")
        };
        let mut names: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
        names.sort();
        let expected = [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "synod.v1.Coordinator",
            "synod.v1.Replication",
        ];
        assert_eq!(names, expected);

        // The last one of three has no leader, and says so.
        cluster.kill(leader);
        cluster.kill(followers[0]);
        let last = cluster.peers[&followers[1]].clone();
        eventually("a replica without a leader does not serve", async || {
            (check(&last, "synod.v1.Coordinator").await? == ServingStatus::NotServing).then_some(())
        })
        .await;
    })
    .await;
}

/// A link from another cluster, an unknown replica, one with other members, or with the wrong address is refused, and says
/// which.
#[tokio::test]
async fn greetings_of_strangers_are_refused() {
    within(async {
        let cluster = Cluster::start().await;
        let (leader, _, _) = cluster.roles().await;
        let address = &cluster.peers[&leader];
        let greeting_among = |replicas: &[u32], cluster: &str, replica, to, protocol_version| {
            LinkMessage::Greeting(v1::Greeting {
                cluster: cluster.to_owned(),
                replica,
                to,
                protocol_version,
                replicas: replicas.to_vec(),
            })
        };
        let greeting = |cluster: &str, replica, to, protocol_version| {
            greeting_among(&[1, 2, 3], cluster, replica, to, protocol_version)
        };
        let own = u32::from(leader.0);
        let other = if own == 1 { 2 } else { 1 };
        let cases = [
            (
                greeting("staging", other, own, 3),
                "wrong cluster: that replica belongs to `staging`, this one to `test`",
            ),
            (
                greeting("test", 9, own, 3),
                "unknown replica 9: this cluster has 1, 2, 3",
            ),
            (greeting("test", other, 9, 3), "meant for replica 9, but replica"),
            (greeting("test", own, own, 3), "two processes claim to be replica"),
            (greeting("test", other, own, 99), "speaks version 99 of the links"),
            (
                greeting_among(&[other], "test", other, own, 3),
                "this one with 1, 2, 3: give every replica the same `peers`",
            ),
            (
                LinkMessage::Envelopes(v1::Envelopes::default()),
                "did not introduce itself",
            ),
        ];
        for (message, text) in cases {
            let mut link = ReplicationClient::connect(format!("http://{address}"))
                .await
                .expect("connects");
            let message = v1::LinkMessage {
                message: Some(message),
            };
            let status = link.link(tokio_stream::once(message)).await.expect_err(text);
            assert_eq!(
                (status.code(), status.message().contains(text)),
                (Code::FailedPrecondition, true),
                "{status}"
            );
        }
        // And a peer that says what no replica says is cut off, while the cluster goes on.
        let mut link = ReplicationClient::connect(format!("http://{address}"))
            .await
            .expect("connects");
        let broken = v1::Envelopes {
            messages: vec![v1::PaxosMessage { message: None }],
        };
        let messages = [greeting("test", other, own, 3), LinkMessage::Envelopes(broken)].map(|message| {
            v1::LinkMessage {
                message: Some(message),
            }
        });
        let mut answers = link
            .link(tokio_stream::iter(messages))
            .await
            .expect("greeted")
            .into_inner();
        assert!(matches!(
            answers.message().await.expect("a greeting").expect("one").message,
            Some(LinkMessage::Greeting(_))
        ));
        let status = answers.message().await.expect_err("malformed");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        client(address)
            .await
            .list(v1::ListRequest::default())
            .await
            .expect("the replica goes on");
    })
    .await;
}
