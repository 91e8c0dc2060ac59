//! What a replica answers without the log: positive facts of its own applied state, and at the leader, after a quorum
//! round, that there is none (T10).

use super::{Replica, Role};
use crate::effects::{Effects, Unsynced};
use crate::machine::outcomes::{Record, Verdict};
use crate::time::Now;
use crate::transaction::Read;
use synod_proto::ids::{BranchId, Gtid, RequestId, SessionId};
use synod_proto::limits::{LIST_COUNT_DEFAULT, LIST_COUNT_MAX};
use synod_proto::planted;
use synod_proto::session::{
    Answer, BranchStatus, DeliveryStatus, Request, Response, TransactionStatus, TransactionSummary,
};

/// The most branches in one page of a list, beyond its first transaction: a page fits a message of 1 MiB even where
/// every branch reports a hazard of 512 bytes.
const LIST_BRANCH_COUNT_MAX: usize = 1024;

impl Replica {
    /// T10: any replica answers from its own applied state what can never be untrue again: that an outcome is in the
    /// log. A list is a page of just that.
    pub(super) fn answer_from_applied(
        &self,
        session: SessionId,
        request: &Request,
        effects: &mut Effects<Unsynced>,
    ) -> bool {
        match request {
            Request::Outcome { request, gtid } => match self.known_status(*gtid) {
                Some(status) => effects.tell(
                    session,
                    Response::Status {
                        request: *request,
                        status,
                    },
                ),
                None => return false,
            },
            Request::Inquire { branch, lineage, .. } if Some(*lineage) == self.machine.lineage() => {
                let answer = match self.machine.outcomes().record(branch.gtid) {
                    Some(record)
                        if !(planted!(MarkAskedBeforeRecord) && self.machine.is_below_mark(branch.gtid)) =>
                    {
                        record.answer_for(branch.call, branch.execution)
                    }
                    // T9: below the watermark a commit that named it would still be here.
                    _ if self.machine.is_below_mark(branch.gtid) => Answer::Aborted,
                    _ => return false,
                };
                effects.tell(
                    session,
                    Response::Answered {
                        branch: *branch,
                        answer,
                    },
                );
            }
            Request::List {
                request,
                after,
                unfinished_only,
                count_max,
            } => {
                let count_max = if *count_max == 0 {
                    LIST_COUNT_DEFAULT
                } else {
                    (*count_max).min(LIST_COUNT_MAX)
                };
                let page = self
                    .machine
                    .outcomes()
                    .page(*after, *unfinished_only, count_max as usize);
                let mut branch_count = 0;
                let transactions = page
                    .into_iter()
                    .take_while(|(_, record)| {
                        let fits = branch_count < LIST_BRANCH_COUNT_MAX;
                        branch_count += record.branch_count();
                        fits
                    })
                    .map(|(gtid, record)| TransactionSummary {
                        gtid,
                        status: self.status_of(gtid, record),
                        decided_at: record.decided_at,
                    })
                    .collect();
                effects.tell(
                    session,
                    Response::Listed {
                        request: *request,
                        transactions,
                    },
                );
            }
            _ => return false,
        }
        true
    }

    fn known_status(&self, gtid: Gtid) -> Option<TransactionStatus> {
        match self.machine.outcomes().record(gtid) {
            Some(record) => Some(self.status_of(gtid, record)),
            None => self
                .machine
                .is_below_mark(gtid)
                .then_some(TransactionStatus::Expired),
        }
    }

    fn status_of(&self, gtid: Gtid, record: &Record) -> TransactionStatus {
        let (branches, read_only_count, settled) = match &record.verdict {
            Verdict::Aborted(cause) => return TransactionStatus::Aborted(cause.clone()),
            Verdict::Committed {
                branches,
                read_only_count,
                settled,
            } => (branches, *read_only_count, settled),
        };
        let is_unfinished = self.machine.outcomes().is_unfinished(gtid);
        let delivery = |call, execution| match &self.role {
            _ if settled.contains(&(call, execution)) => DeliveryStatus::Settled,
            _ if !is_unfinished => DeliveryStatus::Acknowledged,
            Role::Leader(leader) if leader.leading.is_serving() => {
                leader.leading.deliveries.status(BranchId {
                    gtid,
                    call,
                    execution,
                })
            }
            _ => DeliveryStatus::Pending,
        };
        let branches = branches
            .iter()
            .map(|named| BranchStatus {
                call: named.call,
                execution: named.execution,
                resource: named.resource,
                delivery: delivery(named.call, named.execution),
            })
            .collect();
        TransactionStatus::Committed {
            branches,
            read_only_count,
        }
    }

    /// T10: "no outcome yet" is no positive fact. It is told only after a quorum has confirmed, later than the question
    /// came, that no other replica leads.
    pub(super) fn read_confirmed(
        &mut self,
        now: Now,
        session: SessionId,
        request: RequestId,
        gtid: Gtid,
        effects: &mut Effects<Unsynced>,
    ) {
        let settled_before = self.latest_clock(now).minus(self.config.watermark_lag_ms);
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        // The watermark of an idle log stands still; an entry moves it over what is past all deadlines, so that whoever
        // asks again is told that it expired.
        if gtid.began_at() < settled_before {
            leader.leading.push_noop();
        }
        let is_first = !leader.leading.has_reads();
        leader.leading.push_read(Read {
            sequence: leader.sequence + 1,
            session,
            request,
            gtid,
        });
        if is_first {
            self.send_heartbeats(now, effects);
        }
    }

    /// Questions that came while a round was under way share the next one, which begins as soon as that one is confirmed: an
    /// answer takes two rounds at most, and there is never more than one under way for them.
    pub(super) fn begin_waiting_round(&mut self, now: Now, effects: &mut Effects<Unsynced>) {
        let Role::Leader(leader) = &self.role else {
            return;
        };
        let is_over = leader.confirmed_sequence(self.config.quorum_count()) == leader.sequence;
        if is_over && leader.leading.has_reads() {
            self.send_heartbeats(now, effects);
        }
    }

    pub(super) fn answer_confirmed_reads(&mut self, effects: &mut Effects<Unsynced>) {
        let quorum_count = self.config.quorum_count();
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if !leader.leading.has_reads() {
            return;
        }
        let confirmed = leader.confirmed_sequence(quorum_count);
        for read in leader.leading.take_confirmed_reads(confirmed) {
            let status = self
                .known_status(read.gtid)
                .unwrap_or(TransactionStatus::Undecided);
            effects.tell(
                read.session,
                Response::Status {
                    request: read.request,
                    status,
                },
            );
        }
    }
}
