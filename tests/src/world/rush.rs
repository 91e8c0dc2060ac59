//! Proposals one upon the other, whoever leads: what fills slot after slot while leaders come and go, so that values of several
//! ballots meet in them, and more is decided than the next leader has heard of.

use super::{Event, World};
use crate::clocks::true_wall;
use crate::faults::Fault;
use crate::schedule::Micros;
use crate::script::abort;
use std::collections::BTreeMap;
use synod_proto::ids::{Gtid, ReplicaId, RequestId, SessionId};
use synod_proto::session::Request;

/// Marks the gtids of proposals made here.
const MARK: [u8; 2] = *b"ru";

/// Who hurries.
#[derive(Debug, Default)]
pub(super) struct Rush {
    sessions: BTreeMap<ReplicaId, SessionId>,
    /// What was last proposed to each replica, in their order.
    last: Vec<Gtid>,
    gtid_count: u64,
    request_count: u64,
}

impl World {
    /// Proposes to every replica the abort of a transaction of its own, asks every replica what became of one that was
    /// proposed to another before, and does so again after `gap_us`, `count` times in all.
    pub(super) fn rush(&mut self, count: u64, gap_us: Micros) {
        let Some(left) = count.checked_sub(1) else { return };
        self.schedule
            .after(gap_us.max(1), Event::Fault(Fault::Rush(left, gap_us)));
        if self.checkers.log.reference().lineage().is_none() {
            return;
        }
        let before = std::mem::take(&mut self.rush.last);
        for (place, replica) in self.replicas().into_iter().enumerate() {
            let session = self.rush_session(replica);
            // Nobody waits for the answers; the checkers have seen them.
            self.take_responses(session);
            if let Some(gtid) = before.get((place + 1) % self.hosts.len()) {
                let (request, gtid) = (self.rush_request(), *gtid);
                self.ask(session, Request::Outcome { request, gtid });
            }
            self.rush.gtid_count += 1;
            let mut random = [0; 10];
            random[..2].copy_from_slice(&MARK);
            random[2..].copy_from_slice(&self.rush.gtid_count.to_be_bytes());
            let gtid = Gtid::new(true_wall(self.now()), random);
            let command = abort(self, gtid).encode();
            let request = self.rush_request();
            self.ask(session, Request::Decide { request, command });
            self.rush.last.push(gtid);
        }
    }

    fn rush_request(&mut self) -> RequestId {
        self.rush.request_count += 1;
        RequestId(self.rush.request_count)
    }

    fn rush_session(&mut self, replica: ReplicaId) -> SessionId {
        let known = self.rush.sessions.get(&replica).copied();
        if let Some(session) = known.filter(|one| self.sessions.get(one).is_some_and(|one| one.is_open)) {
            return session;
        }
        let session = self.open_session(replica);
        self.rush.sessions.insert(replica, session);
        session
    }
}
