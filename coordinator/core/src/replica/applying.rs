//! What follows from an applied entry at the leader: its proposers are answered, its branches are told, and once the
//! leader's own first entry is applied, it serves (steps 4 and 5; traps A4).

use super::{Replica, Role};
use crate::effects::{Effects, Notice, Unsynced};
use crate::machine::Applied;
use crate::machine::outcomes::Verdict;
use crate::paxos::Slot;
use crate::time::Now;
use crate::transaction::Origin;
use crate::transaction::deliveries::FinishedBy;
use alloc::format;
use alloc::vec::Vec;
use synod_proto::command::{Command, Settle};
use synod_proto::ids::{BranchId, Gtid};
use synod_proto::planted;
use synod_proto::session::{Answer, Decision, Refusal, Response};

impl Replica {
    /// Applies the commands of an entry that the machine has begun, and tells of each what it did.
    pub(super) fn apply_and_tell(
        &mut self,
        now: Now,
        slot: Slot,
        commands: &mut Vec<Command>,
        origins: Vec<Origin>,
        effects: &mut Effects<Unsynced>,
    ) {
        let mut origins = origins.into_iter();
        for command in commands.drain(..) {
            let origin = origins.next().unwrap_or(Origin::Internal);
            let applied = self.machine.apply_command(command);
            self.tell_applied(now, applied, origin, effects);
        }
        self.machine.end_entry();
        self.begin_serving_at(now, slot, effects);
    }

    fn tell_applied(&mut self, now: Now, applied: Applied, origin: Origin, effects: &mut Effects<Unsynced>) {
        let expected = self.machine.lineage();
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let leading = &mut leader.leading;
        match (applied, origin) {
            (
                Applied::Decided {
                    gtid,
                    decision,
                    first,
                    aborted,
                },
                origin,
            ) => {
                if first && leading.is_serving() {
                    match &decision {
                        Decision::Aborted(_) => {
                            leading.deliveries.tell_abort(gtid, &aborted, effects);
                        }
                        _ => {
                            let branches = self.machine.outcomes().unfinished_branches(gtid).iter();
                            leading.deliveries.add(gtid, branches, now.monotonic, effects);
                        }
                    }
                }
                leading.inquiring.forget(gtid);
                self.conclude_preparing(gtid, &decision, effects);
                match origin {
                    Origin::Session(session, request) => {
                        effects.tell(session, Response::Decided { request, decision });
                    }
                    Origin::Inquiry(gtid) => self.answer_inquiries(gtid, effects),
                    Origin::Internal | Origin::Register(..) => {}
                }
            }
            (Applied::Settled(settle, is_settled), Origin::Session(session, request)) => {
                let Settle {
                    gtid,
                    call,
                    execution,
                    ..
                } = settle;
                let branch = BranchId {
                    gtid,
                    call,
                    execution,
                };
                let response = if is_settled {
                    let by = FinishedBy::Operator;
                    if leading.deliveries.finish(branch, by, now.monotonic, effects) == Some(true) {
                        leading.note_delivered(gtid);
                    }
                    Response::Decided {
                        request,
                        decision: Decision::Settled,
                    }
                } else {
                    let text = format!("no unfinished commit names branch {branch}");
                    Response::Refused {
                        request,
                        refusal: Refusal::NotFound { text },
                    }
                };
                effects.tell(session, response);
            }
            (Applied::Enrolled, Origin::Register(session, request, resources))
                if leading.is_open(session) =>
            {
                if let Some(lineage) = expected {
                    effects.tell(session, Response::Registered { request, lineage });
                }
                leading
                    .deliveries
                    .register(session, &resources, now.monotonic, effects);
            }
            (Applied::ForeignLineage, Origin::Session(session, request)) => {
                if let Some(expected) = expected {
                    let refusal = Refusal::ForeignLineage { expected };
                    effects.tell(session, Response::Refused { request, refusal });
                }
            }
            (Applied::Nothing | Applied::ForeignLineage | Applied::Enrolled | Applied::Settled(..), _) => {}
        }
    }

    fn answer_inquiries(&mut self, gtid: Gtid, effects: &mut Effects<Unsynced>) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        for (session, branch) in leader.leading.take_inquiries(gtid) {
            // The record is there, or the gtid fell below the watermark while the proposal was on its way.
            let answer = self
                .machine
                .outcomes()
                .record(gtid)
                .map_or(Answer::Aborted, |record| {
                    record.answer_for(branch.call, branch.execution)
                });
            effects.tell(session, Response::Answered { branch, answer });
        }
    }

    /// The leader's own first entry is applied: take up every unfinished delivery, and what has waited.
    fn begin_serving_at(&mut self, now: Now, slot: Slot, effects: &mut Effects<Unsynced>) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if leader.leading.is_serving() || (slot < leader.barrier && !planted!(ServesBeforeBarrier)) {
            return;
        }
        let parked = leader.leading.begin_serving();
        leader.leading.inquiring.begin(now.wall);
        for (gtid, record) in self.machine.outcomes().unfinished() {
            if let Verdict::Committed {
                branches, settled, ..
            } = &record.verdict
            {
                let open = branches
                    .iter()
                    .filter(|named| !settled.contains(&(named.call, named.execution)));
                leader.leading.deliveries.add(gtid, open, now.monotonic, effects);
                if !leader.leading.deliveries.is_open(gtid) {
                    leader.leading.note_delivered(gtid);
                }
            }
        }
        effects.notice(Notice::Leading(leader.ballot));
        for (session, request) in parked {
            self.on_request(now, session, request, effects);
        }
    }
}
