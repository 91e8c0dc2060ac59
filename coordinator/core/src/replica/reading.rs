//! What a replica answers without the log: positive facts of its own applied state, and at the leader, after a quorum
//! round, that there is none (T10).

use super::{Replica, Role};
use crate::effects::{Effects, Unsynced};
use crate::machine::outcomes::{Record, Verdict};
use crate::time::Now;
use crate::transaction::{Question, Read};
use alloc::vec::Vec;
use synod_proto::ids::{BranchId, Gtid, RequestId, SessionId};
use synod_proto::limits::{LIST_COUNT_DEFAULT, LIST_COUNT_MAX};
use synod_proto::planted;
use synod_proto::session::{
    Answer, BranchStatus, DeliveryStatus, InDoubt, InDoubtPage, InDoubtState, Request, Response,
    TransactionStatus, TransactionSummary,
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
                let page = self
                    .machine
                    .outcomes()
                    .page(*after, *unfinished_only, page_length(*count_max));
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
                        status: self.status_of(gtid, &record),
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
            Some(record) => Some(self.status_of(gtid, &record)),
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
        question: Question,
        effects: &mut Effects<Unsynced>,
    ) {
        let settled_before = self.latest_clock(now).minus(self.config.watermark_lag_ms);
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        // The watermark of an idle log stands still; an entry moves it over what is past all deadlines, so that whoever
        // asks again is told that it expired.
        if let Question::Outcome(gtid) = question
            && gtid.began_at() < settled_before
        {
            leader.leading.push_noop();
        }
        let is_first = !leader.leading.has_reads();
        leader.leading.push_read(Read {
            sequence: leader.sequence + 1,
            session,
            request,
            question,
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
            let request = read.request;
            let response = match read.question {
                Question::Outcome(gtid) => Response::Status {
                    request,
                    status: self.known_status(gtid).unwrap_or(TransactionStatus::Undecided),
                },
                Question::InDoubt { after, count_max } => Response::ListedInDoubt {
                    request,
                    page: self.page_in_doubt(after, count_max),
                },
            };
            effects.tell(read.session, response);
        }
    }

    /// What keeps databases waiting: from the log, what is not acknowledged; from this leader's memory, what was inquired
    /// for in vain.
    fn page_in_doubt(&self, after: Option<Gtid>, count_max: usize) -> InDoubtPage {
        let Role::Leader(leader) = &self.role else {
            unreachable!("only a leader's reads are confirmed");
        };
        let inquiring = &leader.leading.inquiring;
        let unfinished = self
            .machine
            .outcomes()
            .unfinished_above(after)
            .filter_map(|(gtid, record)| Some((gtid, self.unfinished_state(gtid, record)?)));
        let undecided = inquiring.above(after).filter(|(gtid, _)| {
            self.machine.outcomes().record(*gtid).is_none() && !self.machine.is_below_mark(*gtid)
        });
        let mut transactions: Vec<InDoubt> = unfinished
            .take(count_max)
            .chain(undecided.take(count_max))
            .map(|(gtid, state)| InDoubt { gtid, state })
            .collect();
        transactions.sort_by_key(|one| one.gtid);
        transactions.truncate(count_max);
        let mut branch_count = 0;
        let fitting = transactions.iter().take_while(|one| {
            let fits = branch_count < LIST_BRANCH_COUNT_MAX;
            branch_count += match &one.state {
                InDoubtState::Unfinished { branches, .. } => branches.len(),
                InDoubtState::Undecided { branches, .. } => branches.len(),
            };
            fits
        });
        let fitting_count = fitting.count();
        transactions.truncate(fitting_count);
        InDoubtPage {
            transactions,
            inquiries_since: inquiring.since(),
            inquiries_dropped_count: inquiring.dropped_count(),
        }
    }

    /// `None` where every branch has acknowledged and only the log does not say so yet.
    fn unfinished_state(&self, gtid: Gtid, record: &Record) -> Option<InDoubtState> {
        let TransactionStatus::Committed { mut branches, .. } = self.status_of(gtid, record) else {
            return None;
        };
        branches.retain(|one| matches!(one.delivery, DeliveryStatus::Pending | DeliveryStatus::Hazard(_)));
        (!branches.is_empty()).then_some(InDoubtState::Unfinished {
            decided_at: record.decided_at,
            branches,
        })
    }
}

/// The length of a page; 0 takes the default.
pub(super) fn page_length(count_max: u32) -> usize {
    let count_max = match count_max {
        0 => LIST_COUNT_DEFAULT,
        count_max => count_max.min(LIST_COUNT_MAX),
    };
    count_max as usize
}
