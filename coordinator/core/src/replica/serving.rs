//! What sessions ask of a leader. Reads are in `reading.rs`; commits with open branches in `preparing.rs`; what is told once a proposal is applied, in `applying.rs`.

use super::reading::page_length;
use super::{Ignored, Replica, Role};
use crate::effects::{Effects, Notice, Unsynced};
use crate::machine::outcomes::Verdict;
use crate::time::Now;
use crate::transaction::deliveries::FinishedBy;
use crate::transaction::{Inquired, Origin, Question, invalid, request_id};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::command::{Command, Decide, Proposal, Settle, clip_text};
use synod_proto::ids::{BranchId, Gtid, Lineage, RequestId, ResourceId, SessionId, UnixMillis};
use synod_proto::limits::{CLOCK_SKEW_MS_MAX, DEADLINE_MS_MAX, RESOURCE_COUNT_MAX};
use synod_proto::planted;
use synod_proto::session::{AbortCause, AbortKind, Answer, Decision, OpenBranch, Refusal, Request, Response};

/// A full register still takes aborts that prepared branches inquire for, up to this part of its bound above it: they
/// hold locks, and an abort frees them (T14). Beyond, they are told to ask again.
const INQUIRY_RESERVE_DIVISOR: usize = 8;

impl Replica {
    pub(super) fn on_request(
        &mut self,
        now: Now,
        session: SessionId,
        request: Request,
        effects: &mut Effects<Unsynced>,
    ) {
        let number = request_id(&request);
        if let Err(refusal) = self.take_request(now, session, request, effects)
            && let Some(request) = number
        {
            effects.tell(session, Response::Refused { request, refusal });
        }
    }

    fn take_request(
        &mut self,
        now: Now,
        session: SessionId,
        request: Request,
        effects: &mut Effects<Unsynced>,
    ) -> Result<(), Refusal> {
        if self.answer_from_applied(session, &request, effects) {
            return Ok(());
        }
        let leader = self.leader();
        let Role::Leader(leading) = &mut self.role else {
            return Err(match &self.storage {
                super::Storage::Failed { text, .. } if leader.is_none() => {
                    Refusal::ReadOnly { text: text.clone() }
                }
                _ => Refusal::NotLeader { leader },
            });
        };
        if !leading.leading.is_serving() {
            return leading.leading.park(session, request, &self.config.limits);
        }
        match request {
            Request::Register {
                request,
                lineage,
                resources,
            } => self.on_register(now, (session, request), lineage, resources, effects),
            Request::Decide { request, command } => self.on_decide(now, (session, request), command, effects),
            Request::Introduce { instance } => {
                self.on_introduce(now, session, instance, effects);
                Ok(())
            }
            Request::PrepareAndDecide {
                request,
                command,
                open,
            } => self.on_prepare_and_decide(now, (session, request), command, open, effects),
            Request::Voted {
                branch,
                resource,
                vote,
            } => {
                self.on_voted(session, branch, resource, vote);
                Ok(())
            }
            Request::Inquire {
                branch,
                resource,
                lineage,
                deadline,
            } => {
                self.on_inquire(now, session, (branch, resource), lineage, deadline, effects);
                Ok(())
            }
            Request::Acknowledge { branch, resource } => {
                self.on_acknowledge(now, branch, resource, effects);
                Ok(())
            }
            Request::Hazard {
                branch,
                resource,
                text,
            } => {
                self.on_hazard(branch, resource, text, effects);
                Ok(())
            }
            Request::Outcome { request, gtid } => {
                self.check_begun(now, gtid)?;
                self.read_confirmed(now, session, request, Question::Outcome(gtid), effects);
                Ok(())
            }
            Request::ListInDoubt {
                request,
                after,
                count_max,
            } => {
                let count_max = page_length(count_max);
                self.read_confirmed(
                    now,
                    session,
                    request,
                    Question::InDoubt { after, count_max },
                    effects,
                );
                Ok(())
            }
            Request::AwaitDelivery { request, gtid } => {
                self.on_await_delivery(session, request, gtid, effects)
            }
            Request::Settle {
                request,
                branch,
                author,
                reason,
            } => self.on_settle((session, request), branch, author, reason),
            Request::List { .. } => unreachable!("answered from applied state"),
        }
    }

    // ---- at the leader ----

    fn on_register(
        &mut self,
        now: Now,
        (session, request): (SessionId, RequestId),
        lineage: Option<Lineage>,
        resources: Vec<ResourceId>,
        effects: &mut Effects<Unsynced>,
    ) -> Result<(), Refusal> {
        let expected = self.lineage();
        if lineage.is_some_and(|lineage| lineage != expected) {
            return Err(Refusal::ForeignLineage { expected });
        }
        if resources.len() > RESOURCE_COUNT_MAX {
            return Err(invalid(format!(
                "more than {RESOURCE_COUNT_MAX} databases in one request"
            )));
        }
        let fresh: Vec<ResourceId> = resources
            .iter()
            .copied()
            .filter(|resource| !self.machine.is_enrolled(*resource))
            .collect();
        let limits = self.config.limits;
        if self.machine.resource_count() + fresh.len() > limits.resource_count_max {
            return Err(Refusal::Overloaded {
                what: "enrolled databases".to_string(),
            });
        }
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        if fresh.is_empty() {
            // The answer first: a session takes no delivery before it knows that it is registered.
            effects.tell(
                session,
                Response::Registered {
                    request,
                    lineage: expected,
                },
            );
            leader
                .leading
                .deliveries
                .register(session, &resources, now.monotonic, effects);
            return Ok(());
        }
        let command = Command::Enrol(fresh).encode();
        leader
            .leading
            .push_enrolment(command, (session, request), resources, &limits)
    }

    /// A proposed outcome. What is refused here has not entered the log and never will by this request.
    fn on_decide(
        &mut self,
        now: Now,
        (session, request): (SessionId, RequestId),
        command: Bytes,
        effects: &mut Effects<Unsynced>,
    ) -> Result<(), Refusal> {
        let decide =
            Decide::decode(&command).map_err(|error| invalid(format!("malformed proposal: {error}")))?;
        self.check_decide(now, &decide, &[])?;
        // A repeated proposal is answered from the record (traps B8); it needs no second entry.
        let known = self
            .machine
            .outcomes()
            .record(decide.gtid)
            .map(|record| record.decision_for(&decide.proposal));
        let expired = || {
            self.machine
                .is_below_mark(decide.gtid)
                .then_some(Decision::Expired)
        };
        if let Some(decision) = known.or_else(expired) {
            effects.tell(session, Response::Decided { request, decision });
            return Ok(());
        }
        let limits = self.config.limits;
        let outcome_count = self.machine.outcomes().count();
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        if outcome_count + leader.leading.queue_count() >= limits.register_count_max {
            return Err(Refusal::Overloaded {
                what: "outcomes in the register".to_string(),
            });
        }
        leader
            .leading
            .push(command, Origin::Session(session, request), &limits)
    }

    pub(super) fn check_decide(&self, now: Now, decide: &Decide, open: &[OpenBranch]) -> Result<(), Refusal> {
        let expected = self.lineage();
        if decide.lineage != expected {
            return Err(Refusal::ForeignLineage { expected });
        }
        if !decide.guards.is_empty() {
            return Err(invalid("lock guards are not supported by this version"));
        }
        self.check_begun(now, decide.gtid)?;
        let began_at = decide.gtid.began_at();
        if decide.deadline > began_at.plus(DEADLINE_MS_MAX) {
            return Err(invalid(format!(
                "the deadline is more than {DEADLINE_MS_MAX} ms after the begin"
            )));
        }
        if let Proposal::Commit {
            branches,
            read_only_count,
        } = &decide.proposal
        {
            if branches.is_empty() && *read_only_count == 0 && open.is_empty() {
                return Err(invalid(
                    "a commit names at least one branch, or counts a read-only one",
                ));
            }
            let voted = branches
                .iter()
                .map(|branch| (branch.call, branch.execution, branch.resource));
            let asked = open
                .iter()
                .map(|branch| (branch.call, branch.execution, branch.resource));
            if let Some((call, execution, resource)) = voted
                .chain(asked)
                .find(|(_, _, resource)| !self.machine.is_enrolled(*resource))
            {
                return Err(invalid(format!(
                    "branch {:016x}/{:016x} is of resource {resource}, which never registered with this coordinator",
                    call.0, execution.0
                )));
            }
        }
        Ok(())
    }

    /// T6: past the deadline an inquiry for an unknown gtid proposes Abort and is answered with what the log says.
    fn on_inquire(
        &mut self,
        now: Now,
        session: SessionId,
        (branch, resource): (BranchId, ResourceId),
        lineage: Lineage,
        deadline: UnixMillis,
        effects: &mut Effects<Unsynced>,
    ) {
        let expected = self.lineage();
        if lineage != expected {
            return self.ignore(Ignored::ForeignLineage);
        }
        // Whatever the inquirer says: no deadline lies before its transaction's begin, else one wrong number would put the
        // abort of a gtid of the far future into the register, where no watermark frees it for years.
        let began_at = branch.gtid.began_at();
        let deadline = deadline.clamp(began_at, began_at.plus(DEADLINE_MS_MAX));
        let mark = self.machine.mark();
        if let Role::Leader(leader) = &mut self.role {
            leader
                .leading
                .inquiring
                .note(now.wall, mark, branch, resource, deadline);
        }
        if self.deadline_clock(now) < deadline {
            return effects.tell(
                session,
                Response::Answered {
                    branch,
                    answer: Answer::Undecided,
                },
            );
        }
        if planted!(AbortToldBeforeDecided) {
            let answer = Answer::Aborted;
            effects.tell(session, Response::Answered { branch, answer });
        }
        let limits = self.config.limits;
        let outcome_count = self.machine.outcomes().count();
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let reserve = limits.register_count_max / INQUIRY_RESERVE_DIVISOR;
        if outcome_count + leader.leading.queue_count() >= limits.register_count_max + reserve {
            return effects.tell(
                session,
                Response::Answered {
                    branch,
                    answer: Answer::Undecided,
                },
            );
        }
        let is_told_to_ask_again = match leader.leading.note_inquiry(session, branch) {
            Inquired::Joined => false,
            Inquired::Full => true,
            Inquired::First => {
                let text = "no outcome at the deadline; a prepared branch inquired";
                let proposal = Proposal::Abort {
                    cause: AbortCause::new(AbortKind::Deadline, text),
                    branches: Vec::new(),
                };
                let decide = Decide {
                    lineage,
                    gtid: branch.gtid,
                    deadline,
                    proposal,
                    guards: Vec::new(),
                };
                let is_full = leader
                    .leading
                    .push(decide.encode(), Origin::Inquiry(branch.gtid), &limits)
                    .is_err();
                if is_full {
                    leader.leading.take_inquiries(branch.gtid);
                }
                is_full
            }
        };
        if is_told_to_ask_again {
            effects.tell(
                session,
                Response::Answered {
                    branch,
                    answer: Answer::Undecided,
                },
            );
        }
    }

    fn on_acknowledge(
        &mut self,
        now: Now,
        branch: BranchId,
        resource: ResourceId,
        effects: &mut Effects<Unsynced>,
    ) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let by = FinishedBy::Database(resource);
        match leader
            .leading
            .deliveries
            .finish(branch, by, now.monotonic, effects)
        {
            Some(true) => leader.leading.note_delivered(branch.gtid),
            Some(false) => {}
            // Acknowledged before, or known from a former leader (traps B11); or another database's.
            None => self.ignore(Ignored::UnknownDelivery),
        }
    }

    fn on_hazard(
        &mut self,
        branch: BranchId,
        resource: ResourceId,
        text: String,
        effects: &mut Effects<Unsynced>,
    ) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let text = clip_text(text);
        match leader
            .leading
            .deliveries
            .note_hazard(branch, resource, text.clone())
        {
            Some(true) => effects.notice(Notice::Hazard { branch, text }),
            Some(false) => {}
            None => self.ignore(Ignored::UnknownDelivery),
        }
    }

    fn on_await_delivery(
        &mut self,
        session: SessionId,
        request: RequestId,
        gtid: Gtid,
        effects: &mut Effects<Unsynced>,
    ) -> Result<(), Refusal> {
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        if leader.leading.deliveries.is_open(gtid) {
            leader.leading.deliveries.await_delivery(gtid, session, request);
            return Ok(());
        }
        let record = self.machine.outcomes().record(gtid);
        match record.as_ref().map(|record| &record.verdict) {
            Some(Verdict::Committed { .. }) => {
                effects.tell(session, Response::Delivered { request, gtid });
                Ok(())
            }
            Some(Verdict::Aborted(cause)) => Err(invalid(format!(
                "{gtid} was aborted ({cause}): nothing is delivered"
            ))),
            None => Err(Refusal::NotFound {
                text: format!("no outcome of {gtid} is in the register"),
            }),
        }
    }

    fn on_settle(
        &mut self,
        (session, request): (SessionId, RequestId),
        branch: BranchId,
        author: String,
        reason: String,
    ) -> Result<(), Refusal> {
        if author.trim().is_empty() || reason.trim().is_empty() {
            return Err(invalid("an operator's word carries an author and a reason"));
        }
        let limits = self.config.limits;
        let BranchId {
            gtid,
            call,
            execution,
        } = branch;
        let settle = Settle {
            gtid,
            call,
            execution,
            author: clip_text(author),
            reason: clip_text(reason),
        };
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        leader.leading.push(
            Command::Settle(settle).encode(),
            Origin::Session(session, request),
            &limits,
        )
    }

    /// A gtid from the future is refused: nothing true can be said of it (T14).
    fn check_begun(&self, now: Now, gtid: Gtid) -> Result<(), Refusal> {
        let ahead_ms = gtid.began_at().0.saturating_sub(self.latest_clock(now).0);
        if ahead_ms > CLOCK_SKEW_MS_MAX {
            Err(Refusal::FromFuture { ahead_ms })
        } else {
            Ok(())
        }
    }

    // ---- helpers ----

    /// The coordinator's lineage, at a serving leader.
    fn lineage(&self) -> Lineage {
        self.machine
            .lineage()
            .expect("a serving leader has applied the entry that established the lineage")
    }

    /// The later of the own clock and the median of the replicas' clocks: a gtid is from the future only if it is so for
    /// the most generous honest clock, since refusing is no matter of safety.
    pub(super) fn latest_clock(&self, now: Now) -> UnixMillis {
        match &self.role {
            Role::Leader(leader) => {
                let median = leader.median_clock(now, self.config.quorum_count());
                now.wall.max(median.unwrap_or_default()).max(self.machine.stamp())
            }
            _ => now.wall,
        }
    }

    /// What a deadline is compared with: the median of a quorum's clocks, whatever the own one shows. A stamp takes the
    /// lower of the two, since the watermark must not run ahead; but an abort is safe at any time, and under a leader
    /// whose clock is an hour behind, a branch would hold its locks for an hour.
    pub(super) fn deadline_clock(&self, now: Now) -> UnixMillis {
        let median = match &self.role {
            Role::Leader(leader) => leader.median_clock(now, self.config.quorum_count()),
            _ => None,
        };
        median.unwrap_or_default().max(self.machine.stamp())
    }
}
