//! Commit requests with open branches, at the leader: see [`crate::transaction::preparing`] (step 3, rule T3).

use super::{Ignored, Replica, Role};
use crate::effects::{Effects, Unsynced};
use crate::time::Now;
use crate::transaction::preparing::{Begun, Unasked};
use crate::transaction::{Origin, invalid};
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::command::{Decide, Proposal};
use synod_proto::ids::{BranchId, Gtid, InstanceId, RequestId, ResourceId, SessionId};
use synod_proto::limits::BRANCH_COUNT_MAX;
use synod_proto::session::{AskedVote, Decision, OpenBranch, Refusal, Response};

impl Replica {
    pub(super) fn on_introduce(
        &mut self,
        now: Now,
        session: SessionId,
        instance: InstanceId,
        effects: &mut Effects<Unsynced>,
    ) {
        if let Role::Leader(leader) = &mut self.role {
            leader
                .leading
                .preparing
                .introduce(session, instance, now.monotonic, effects);
        }
    }

    /// What is refused here was not asked of any branch by this request.
    pub(super) fn on_prepare_and_decide(
        &mut self,
        now: Now,
        (session, request): (SessionId, RequestId),
        command: Bytes,
        open: Vec<OpenBranch>,
        effects: &mut Effects<Unsynced>,
    ) -> Result<(), Refusal> {
        let decide =
            Decide::decode(&command).map_err(|error| invalid(format!("malformed proposal: {error}")))?;
        check_open(&decide, &open)?;
        self.check_decide(now, &decide, &open)?;
        // A repeated request is answered from the record (traps B8).
        let known = self
            .machine
            .outcomes()
            .record(decide.gtid)
            .map(|record| record.decision_for_open(&decide.proposal, &open));
        let expired = || {
            self.machine
                .is_below_mark(decide.gtid)
                .then_some(Decision::Expired)
        };
        if let Some(decision) = known.or_else(expired) {
            effects.tell(session, Response::Decided { request, decision });
            return Ok(());
        }
        let outcome_count = self.machine.outcomes().count();
        let limits = self.config.limits;
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        let leading = &mut leader.leading;
        if outcome_count + leading.queue_count() + leading.preparing.count() >= limits.register_count_max {
            return Err(Refusal::Overloaded {
                what: "outcomes in the register".to_string(),
            });
        }
        let gtid = decide.gtid;
        let asked = (session, request);
        match leading
            .preparing
            .begin(now.monotonic, asked, (command, decide), open, effects)
        {
            Begun::First | Begun::Joined => Ok(()),
            Begun::Differs => Err(invalid(format!(
                "a commit of {gtid} with other branches is being prepared"
            ))),
            Begun::Full => Err(Refusal::Overloaded {
                what: "commits that wait for votes".to_string(),
            }),
        }
    }

    pub(super) fn on_voted(
        &mut self,
        session: SessionId,
        branch: BranchId,
        resource: ResourceId,
        vote: AskedVote,
    ) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let preparing = &mut leader.leading.preparing;
        match preparing.note_vote(session, branch, resource, vote) {
            Ok(()) => {
                if let Some(decide) = preparing.ready_of(branch.gtid) {
                    self.propose_prepared(&decide);
                }
            }
            // Late, repeated, or never asked for.
            Err(Unasked) => self.ignore(Ignored::UnknownVote),
        }
    }

    /// With every heartbeat: what has not voted is asked again or given up, and what found no room in the log's queue is
    /// proposed again.
    pub(super) fn advance_preparing(&mut self, now: Now, effects: &mut Effects<Unsynced>) {
        let clock = self.deadline_clock(now);
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let preparing = &mut leader.leading.preparing;
        if preparing.count() == 0 {
            return;
        }
        preparing.on_heartbeat(now.monotonic, clock, effects);
        for decide in preparing.ready() {
            self.propose_prepared(&decide);
        }
    }

    fn propose_prepared(&mut self, decide: &Decide) {
        let limits = self.config.limits;
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let leading = &mut leader.leading;
        // A full queue delays it to the next heartbeat: the branches are prepared, and nobody gains by asking again.
        if leading.push(decide.encode(), Origin::Internal, &limits).is_ok() {
            leading.preparing.note_proposed(decide.gtid);
        }
    }

    /// An outcome of this gtid was applied: whoever waits for it to be prepared is told what the log says.
    pub(super) fn conclude_preparing(
        &mut self,
        gtid: Gtid,
        decision: &Decision,
        effects: &mut Effects<Unsynced>,
    ) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(pending) = leader.leading.preparing.take(gtid) else {
            return;
        };
        // Without a record the gtid fell below the watermark on the way, and the decision says so.
        let decision = self.machine.outcomes().record(gtid).map_or_else(
            || decision.clone(),
            |record| {
                let (proposal, open) = pending.request();
                record.decision_for_open(proposal, &open)
            },
        );
        for (session, request) in pending.waiting() {
            let (request, decision) = (*request, decision.clone());
            effects.tell(*session, Response::Decided { request, decision });
        }
        if matches!(decision, Decision::Aborted(_)) {
            leader.leading.preparing.tell_abort(&pending, effects);
        }
    }
}

/// The open branches that a commit names beside those that have voted: some, in order, each call once (T2), within the
/// bound for all of them.
fn check_open(decide: &Decide, open: &[OpenBranch]) -> Result<(), Refusal> {
    let Proposal::Commit { branches, .. } = &decide.proposal else {
        return Err(invalid("only a commit can wait for branches to be prepared"));
    };
    if open.is_empty() {
        return Err(invalid("no open branch: propose the commit itself"));
    }
    if branches.len() + open.len() > BRANCH_COUNT_MAX {
        return Err(invalid(format!(
            "more than {BRANCH_COUNT_MAX} branches in one transaction"
        )));
    }
    if open.windows(2).any(|pair| pair[0].call >= pair[1].call) {
        return Err(invalid(
            "the open branches are not in the order of their calls, each once",
        ));
    }
    let voted = |open: &&OpenBranch| branches.iter().any(|branch| branch.call == open.call);
    if let Some(twice) = open.iter().find(voted) {
        return Err(invalid(format!(
            "call {:016x} is named as voted and as open: the work would take effect twice",
            twice.call.0
        )));
    }
    if let Some(uncounted) = open.iter().find(|open| open.call_count == 0) {
        return Err(invalid(format!(
            "the open branch {:016x}/{:016x} counts no call",
            uncounted.call.0, uncounted.execution.0
        )));
    }
    Ok(())
}
