//! Single calls: each proposal is a gRPC call of its own. Deliveries still need a session, so there is one beside.

use super::generator::Generator;
use super::session::{Client, propose_later};
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use synod_proto::command::{Decide, Proposal};
use synod_proto::v1;
use synod_proto::v1::session_request::Request;
use tokio::time::Instant;

/// Makes the calls of one session.
#[derive(Clone)]
pub(super) struct Calls {
    session: usize,
    client: Client,
    /// Weak: the generator owns the connections that hold this.
    generator: Weak<RefCell<Generator>>,
}

impl Calls {
    pub(super) fn new(session: usize, client: Client, generator: &Rc<RefCell<Generator>>) -> Self {
        Self {
            session,
            client,
            generator: Rc::downgrade(generator),
        }
    }

    /// Makes a call of a proposal; gives back anything else.
    pub(super) fn take(&self, request: v1::SessionRequest) -> Option<v1::SessionRequest> {
        let Some(Request::Decide(decide)) = request.request else {
            return Some(request);
        };
        let call = commit_request(&decide);
        let (mut client, session, generator) = (self.client.clone(), self.session, self.generator.clone());
        let place = usize::try_from(decide.request).unwrap_or(usize::MAX);
        tokio::task::spawn_local(async move {
            let answer = client.commit(call).await;
            let Some(generator) = generator.upgrade() else {
                return;
            };
            match answer {
                Ok(reply) => {
                    let mut generator = generator.borrow_mut();
                    generator.on_decision(session, place, reply.into_inner().decision, Instant::now());
                    generator.flush();
                }
                // The leader is full or gone: the same gtid is asked again, of whoever leads then (T1).
                Err(status) => {
                    generator.borrow_mut().note_trouble(status.message().to_owned());
                    propose_later(session, place, &generator);
                }
            }
        });
        None
    }
}

fn commit_request(decide: &v1::Decide) -> v1::CommitRequest {
    let decide = Decide::decode(&decide.command).expect("the generator encoded it");
    let Proposal::Commit {
        branches,
        read_only_count,
    } = decide.proposal
    else {
        unreachable!("the generator proposes only commits");
    };
    let branches = branches.into_iter().map(|branch| v1::NamedBranch {
        call: branch.call.0,
        execution: branch.execution.0,
        resource: branch.resource.0.to_vec().into(),
        digest: branch.digest,
        database_transaction: branch.database_transaction,
    });
    v1::CommitRequest {
        gtid: decide.gtid.to_bytes().to_vec().into(),
        lineage: decide.lineage.0.to_vec().into(),
        deadline_unix_ms: decide.deadline.0,
        branches: branches.collect(),
        read_only_count,
    }
}
