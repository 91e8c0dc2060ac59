//! Three replicas on real sockets and disks: outcomes, redirects, and what a crash, a shutdown and a restart leave.

mod support;

use support::{
    Cluster, Session, abort_call, branch, commit, commit_call, eventually, gtid, named, resource, within,
};
use synod_proto::ids::{Gtid, RequestId};
use synod_proto::session::{
    AbortKind, BranchStatus, Decision, DeliveryStatus, Outcome, Refusal, Request, Response,
    TransactionStatus, TransactionSummary,
};
use synod_proto::v1;
use synod_proto::wire::List;
use tonic::Code;
use tonic::transport::Channel;

type Client = v1::coordinator_client::CoordinatorClient<Channel>;

async fn outcome(client: &mut Client, gtid: Gtid) -> TransactionStatus {
    let reply = client
        .outcome(v1::OutcomeRequest::from(gtid))
        .await
        .expect("an answer");
    reply.into_inner().try_into().expect("well formed")
}

async fn decided(client: &mut Client, call: v1::CommitRequest) -> Decision {
    client
        .commit(call)
        .await
        .expect("an answer")
        .into_inner()
        .try_into()
        .expect("well formed")
}

/// B8, T5, T6: the first proposal is the outcome; every later one is told it, in the same words.
#[tokio::test]
async fn single_calls_decide_once() {
    within(async {
        let cluster = Cluster::start().await;
        let (leader, _, lineage) = cluster.roles().await;
        let mut client = cluster.client(leader).await;
        let (_session, registered) = Session::registered(&mut client, resource(1)).await;
        assert_eq!(registered, lineage);

        let one = gtid();
        let branches = [named(1, resource(1)), named(2, resource(1))];
        assert_eq!(outcome(&mut client, one).await, TransactionStatus::Undecided);
        for _ in 0..2 {
            assert_eq!(
                decided(&mut client, commit_call(one, lineage, &branches)).await,
                Decision::Committed
            );
        }
        assert_eq!(
            decided(&mut client, commit_call(one, lineage, &branches[..1])).await,
            Decision::Mismatch
        );
        let aborted = client
            .abort(abort_call(one, lineage, "too late"))
            .await
            .expect("an answer")
            .into_inner();
        assert_eq!(
            Decision::try_from(aborted),
            Ok(Decision::Committed),
            "the commit was first"
        );
        let pending = |named: &synod_proto::command::NamedBranch| BranchStatus {
            call: named.call,
            execution: named.execution,
            resource: named.resource,
            delivery: DeliveryStatus::Pending,
        };
        let committed = TransactionStatus::Committed {
            branches: branches.iter().map(pending).collect(),
            read_only_count: 0,
        };
        assert_eq!(outcome(&mut client, one).await, committed);

        let two = gtid();
        let aborted = client
            .abort(abort_call(two, lineage, "changed my mind"))
            .await
            .expect("an answer")
            .into_inner();
        let Ok(Decision::Aborted(cause)) = Decision::try_from(aborted) else {
            panic!("not aborted")
        };
        assert_eq!(
            (cause.kind, cause.text.as_str()),
            (AbortKind::Requested, "changed my mind")
        );
        let late = decided(&mut client, commit_call(two, lineage, &branches)).await;
        assert_eq!(late, Decision::Aborted(cause.clone()));

        let list = |unfinished_only| List {
            after: None,
            unfinished_only,
            count_max: 10,
        };
        let mut gtids = Vec::new();
        for unfinished_only in [false, true] {
            let reply = client
                .list(v1::ListRequest::from(list(unfinished_only)))
                .await
                .expect("a list")
                .into_inner();
            let page: Vec<TransactionSummary> = reply.try_into().expect("well formed");
            gtids.push(page.into_iter().map(|summary| summary.gtid).collect::<Vec<_>>());
        }
        assert_eq!(gtids, [vec![one.min(two), one.max(two)], vec![one]]);
    })
    .await;
}

/// T16, B10: a session is told the decision, then to deliver, and again until it acknowledges.
#[tokio::test]
async fn a_session_decides_delivers_and_acknowledges() {
    within(async {
        let cluster = Cluster::start().await;
        let (leader, _, lineage) = cluster.roles().await;
        let mut client = cluster.client(leader).await;
        let (mut session, _) = Session::registered(&mut client, resource(1)).await;
        let gtid = gtid();
        let named = named(7, resource(1));
        let command = commit(gtid, lineage, std::slice::from_ref(&named)).encode();
        let decide = Request::Decide {
            request: RequestId(2),
            command,
        };
        let wait = Request::AwaitDelivery {
            request: RequestId(3),
            gtid,
        };
        session.send([decide]).await;
        let branch = branch(gtid, &named);
        let deliver = Response::Deliver {
            branch,
            resource: resource(1),
            outcome: Outcome::Committed,
        };
        let mut told = vec![session.next().await, session.next().await];
        told.sort_by_key(|response| matches!(response, Response::Deliver { .. }));
        let committed = Response::Decided {
            request: RequestId(2),
            decision: Decision::Committed,
        };
        assert_eq!(told, [committed, deliver.clone()]);

        session.send([wait]).await;
        assert_eq!(
            session.next().await,
            deliver,
            "told again while it does not acknowledge"
        );
        session
            .send([Request::Acknowledge {
                branch,
                resource: resource(1),
            }])
            .await;
        let delivered = loop {
            match session.next().await {
                repeated if repeated == deliver => {}
                other => break other,
            }
        };
        assert_eq!(
            delivered,
            Response::Delivered {
                request: RequestId(3),
                gtid
            }
        );
        eventually("every branch is known as acknowledged", async || {
            let status = outcome(&mut client, gtid).await;
            let TransactionStatus::Committed { branches, .. } = status else {
                panic!("{status:?}")
            };
            (branches[0].delivery == DeliveryStatus::Acknowledged).then_some(())
        })
        .await;
    })
    .await;
}

/// A5, T10: a replica that does not lead names the leader, on both ways in, and says no word about what it does not know.
#[tokio::test]
async fn followers_send_clients_to_the_leader() {
    within(async {
        let cluster = Cluster::start().await;
        let (leader, followers, lineage) = cluster.roles().await;
        let address = cluster.peers[&leader].clone();
        for follower in followers {
            let mut client = cluster.client(follower).await;
            let refused = client
                .commit(commit_call(gtid(), lineage, &[named(1, resource(1))]))
                .await
                .expect_err("refused");
            assert_eq!(refused.code(), Code::FailedPrecondition);
            assert_eq!(
                refused
                    .metadata()
                    .get("synod-leader")
                    .map(|value| value.as_bytes()),
                Some(address.as_bytes())
            );
            let refused = client
                .outcome(v1::OutcomeRequest::from(gtid()))
                .await
                .expect_err("refused");
            assert_eq!(refused.code(), Code::FailedPrecondition);

            let mut session = Session::open(&mut client).await;
            session
                .send([Request::Register {
                    request: RequestId(1),
                    lineage: None,
                    resources: Vec::new(),
                }])
                .await;
            let response = session.next_wire().await.expect("no status").expect("a response");
            let Some(v1::session_response::Response::Refused(refused)) = response.response else {
                panic!("not refused")
            };
            let refusal = refused.refusal.expect("a refusal");
            assert_eq!(
                synod_proto::wire::leader_address(&refusal),
                Some(address.as_str())
            );
            assert_eq!(
                Refusal::try_from(refusal),
                Ok(Refusal::NotLeader { leader: Some(leader) })
            );
        }
    })
    .await;
}

/// A4, B8: what the old leader decided, the new one answers; what it begins, the old one's sessions do not miss.
#[tokio::test]
async fn a_killed_leader_is_replaced_and_nothing_is_forgotten() {
    within(async {
        let mut cluster = Cluster::start().await;
        let (first, _, lineage) = cluster.roles().await;
        let mut client = cluster.client(first).await;
        let (mut session, _) = Session::registered(&mut client, resource(1)).await;
        let gtid = gtid();
        let branches = [named(1, resource(1))];
        let call = commit_call(gtid, lineage, &branches);
        assert_eq!(decided(&mut client, call.clone()).await, Decision::Committed);

        cluster.kill(first);
        assert!(matches!(
            session.end().await.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
        ));
        let (second, _, same) = cluster.roles().await;
        assert_eq!(same, lineage, "T11: the lineage is for ever");
        let mut client = cluster.client(second).await;
        assert_eq!(decided(&mut client, call).await, Decision::Committed);
        // The delivery that nobody acknowledged is resumed by the new leader.
        let (mut session, _) = Session::registered(&mut client, resource(1)).await;
        let branch = branch(gtid, &branches[0]);
        let deliver = Response::Deliver {
            branch,
            resource: resource(1),
            outcome: Outcome::Committed,
        };
        assert_eq!(session.next().await, deliver);

        // The one that died comes back, catches up and follows.
        cluster.start_replica(first).await;
        let (leader, followers, _) = cluster.roles().await;
        assert!(leader == second || followers.contains(&second));
        let decided_up_to = cluster.status(leader).await.expect("a status").decided_up_to;
        eventually("the replica that was away has caught up", async || {
            (cluster.status(first).await?.applied_up_to >= decided_up_to).then_some(())
        })
        .await;
    })
    .await;
}

/// L1, L2: what was answered is on disk: all replicas die at once and the outcomes are there.
#[tokio::test]
async fn outcomes_survive_the_restart_of_all() {
    within(async {
        let mut cluster = Cluster::start().await;
        let (leader, _, lineage) = cluster.roles().await;
        let mut client = cluster.client(leader).await;
        let (session, _) = Session::registered(&mut client, resource(1)).await;
        let (one, two) = (gtid(), gtid());
        let branches = [named(1, resource(1))];
        assert_eq!(
            decided(&mut client, commit_call(one, lineage, &branches)).await,
            Decision::Committed
        );
        client
            .abort(abort_call(two, lineage, "no"))
            .await
            .expect("an answer");
        drop(session);
        let ids = cluster.ids();
        for id in &ids {
            cluster.kill(*id);
        }
        for id in &ids {
            cluster.start_replica(*id).await;
        }
        let (leader, _, same) = cluster.roles().await;
        assert_eq!(same, lineage);
        let mut client = cluster.client(leader).await;
        assert_eq!(
            decided(&mut client, commit_call(one, lineage, &branches)).await,
            Decision::Committed
        );
        let TransactionStatus::Aborted(cause) = outcome(&mut client, two).await else {
            panic!("not aborted")
        };
        assert_eq!((cause.kind, cause.text.as_str()), (AbortKind::Requested, "no"));
    })
    .await;
}

/// A replica that is told to end resigns, tells its sessions, closes its log and returns; the others go on.
#[tokio::test]
async fn a_graceful_shutdown_ends_sessions_and_resigns() {
    within(async {
        let mut cluster = Cluster::start().await;
        let (leader, _, lineage) = cluster.roles().await;
        let mut client = cluster.client(leader).await;
        let (mut session, _) = Session::registered(&mut client, resource(1)).await;
        let one = gtid();
        let command = commit(one, lineage, &[named(1, resource(1))]).encode();
        session
            .send([Request::Decide {
                request: RequestId(2),
                command,
            }])
            .await;
        let committed = Response::Decided {
            request: RequestId(2),
            decision: Decision::Committed,
        };
        while session.next().await != committed {}

        cluster.shut_down(leader).expect("an orderly end");
        let end = session.end().await;
        assert_eq!(end.code(), Code::Unavailable, "{end}");
        let (next, _, _) = cluster.roles().await;
        assert_ne!(next, leader);
        let mut client = cluster.client(next).await;
        let (_session, _) = Session::registered(&mut client, resource(1)).await;
        let two = gtid();
        let aborted = client
            .abort(abort_call(two, lineage, "after"))
            .await
            .expect("an answer")
            .into_inner();
        assert!(matches!(Decision::try_from(aborted), Ok(Decision::Aborted(_))));
        // Without a quorum the last one answers nothing that it cannot know, and no longer calls itself the leader.
        for id in cluster.ids().into_iter().filter(|id| *id != next) {
            cluster.shut_down(id).expect("an orderly end");
        }
        eventually("a leader without a quorum resigns", async || {
            (cluster.status(next).await?.role != "leader").then_some(())
        })
        .await;
        let refused = client
            .abort(abort_call(gtid(), lineage, "alone"))
            .await
            .expect_err("refused");
        assert!(
            matches!(refused.code(), Code::Unavailable | Code::DeadlineExceeded),
            "{refused}"
        );
        let committed = outcome(&mut client, one).await;
        assert!(
            matches!(committed, TransactionStatus::Committed { .. }),
            "T10: a positive fact: {committed:?}"
        );
    })
    .await;
}
