//! Numbered requests: sent to each new leader with the same content until answered, and what may be said when they
//! are not (T7).

use super::{ConnectionId, Effect, Failure, Ignored, Question, Reply, Session, Ticket, Timer};
use crate::time::{Now, Timestamp};
use alloc::string::String;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use core::time::Duration;
use synod_proto::ids::{Gtid, RequestId};
use synod_proto::session::{Decision, Refusal, Request, TransactionStatus};

/// The first delay before a question is repeated to a leader that could not take it, and the longest.
const REPEAT_BACKOFF: Duration = Duration::from_millis(50);
/// See [`REPEAT_BACKOFF`].
const REPEAT_BACKOFF_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(super) struct Pending {
    /// `None` once the caller has gone.
    ticket: Option<Ticket>,
    question: Question,
    ends_at: Timestamp,
    sent_at: Timestamp,
    /// The streams on which it was handed over and not refused: as long as there is one, its fate is unknown (T7).
    unanswered: Vec<ConnectionId>,
    /// When to repeat it to a leader that could not take it.
    again_at: Option<Timestamp>,
    refusal_count: u32,
    last_refusal: Option<Refusal>,
}

/// For checkers, see [`Session::hash_state`].
impl Hash for Pending {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            ticket,
            question,
            unanswered,
            again_at,
            last_refusal,
            ..
        } = self;
        (ticket, question, unanswered, again_at.is_some(), last_refusal).hash(state);
    }
}

impl Pending {
    /// A proposal may take effect; anything else only reads.
    fn is_proposal(&self) -> bool {
        matches!(
            self.question,
            Question::Decide { .. } | Question::PrepareAndDecide { .. }
        )
    }

    /// An awaited delivery may well take longer than any silence: a branch's service may be down. So may an open branch,
    /// until it has prepared.
    fn expects_speed(&self) -> bool {
        !matches!(
            self.question,
            Question::AwaitDelivery(_) | Question::PrepareAndDecide { .. }
        )
    }

    fn fits(&self, reply: &Reply) -> bool {
        matches!(
            (&self.question, reply),
            (
                Question::Decide { .. } | Question::PrepareAndDecide { .. },
                Reply::Decided(_)
            ) | (Question::Outcome(_), Reply::Status(_))
                | (Question::AwaitDelivery(_), Reply::Delivered)
        )
    }

    fn gtid(&self) -> Gtid {
        match self.question {
            Question::Decide { gtid, .. }
            | Question::PrepareAndDecide { gtid, .. }
            | Question::Outcome(gtid)
            | Question::AwaitDelivery(gtid) => gtid,
        }
    }

    fn failure(self, last_seen: &str) -> Failure {
        let last = String::from(last_seen);
        match self.last_refusal {
            _ if !self.unanswered.is_empty() => Failure::Unanswered { last },
            Some(refusal) => Failure::Refused(refusal),
            None => Failure::NotHandedOver { last },
        }
    }
}

impl Session {
    pub(super) fn on_ask(
        &mut self,
        now: Now,
        ticket: Ticket,
        question: Question,
        patience: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let limit = self.config.question_count_max;
        if self.questions.len() >= limit {
            return effects.push(Effect::Reply {
                ticket,
                reply: Reply::Failed(Failure::Overloaded { limit }),
            });
        }
        if self.is_closing {
            let last = String::from("the session is being shut down");
            let reply = Reply::Failed(Failure::NotHandedOver { last });
            return effects.push(Effect::Reply { ticket, reply });
        }
        let request = self.next_request();
        let pending = Pending {
            ticket: Some(ticket),
            question,
            ends_at: now.monotonic.plus_duration(patience),
            sent_at: now.monotonic,
            unanswered: Vec::new(),
            again_at: None,
            refusal_count: 0,
            last_refusal: None,
        };
        self.timers.set(Timer::Question(request), pending.ends_at);
        self.questions.insert(request, pending);
        self.tickets.insert(ticket, request);
        self.send_question(now, request, effects);
    }

    pub(super) fn on_abandon(&mut self, ticket: Ticket, effects: &mut Vec<Effect>) {
        let Some(request) = self.tickets.remove(&ticket) else {
            return effects.push(Effect::Ignored(Ignored::UnknownRequest));
        };
        if let Some(pending) = self.questions.get_mut(&request) {
            if pending.is_proposal() {
                pending.ticket = None;
            } else {
                self.questions.remove(&request);
                self.timers.cancel(Timer::Question(request));
            }
        }
    }

    /// An answer is an answer whichever stream brings it: it is what the log said, under this process's own number.
    pub(super) fn on_reply(&mut self, now: Now, request: RequestId, reply: Reply, effects: &mut Vec<Effect>) {
        let Some(pending) = self.questions.get(&request) else {
            return effects.push(Effect::Ignored(Ignored::UnknownRequest));
        };
        if !pending.fits(&reply) {
            return effects.push(Effect::Ignored(Ignored::WrongAnswer));
        }
        let gtid = pending.gtid();
        let is_aborted = matches!(
            reply,
            Reply::Decided(Decision::Aborted(_)) | Reply::Status(TransactionStatus::Aborted(_))
        );
        let is_undecided = matches!(reply, Reply::Status(TransactionStatus::Undecided));
        self.conclude(request, reply, effects);
        if is_aborted {
            self.on_transaction_aborted(now, gtid, effects);
        }
        if !is_undecided {
            self.settle(gtid, effects);
        }
    }

    pub(super) fn on_refused(
        &mut self,
        now: Now,
        connection: ConnectionId,
        request: RequestId,
        refusal: Refusal,
        leader: Option<String>,
        effects: &mut Vec<Effect>,
    ) {
        if self.is_registration(connection, request) {
            return self.on_registration_refused(now, request, &refusal, leader, effects);
        }
        let Some(pending) = self.questions.get_mut(&request) else {
            return effects.push(Effect::Ignored(Ignored::UnknownRequest));
        };
        // A request goes only to a replica that registered this session, as the leader. If it says now that it does not
        // lead, it has resigned, and the request may lie in a slot that the next leader re-proposes: that send stays
        // unaccounted for (T7).
        if let Refusal::NotLeader { .. } = refusal {
            if self.link.serving() == Some(connection) {
                self.on_link_refused(now, &refusal, leader, effects);
            }
            return;
        }
        // Any other refusal is made before the request enters the log: nothing was done by this send.
        pending.unanswered.retain(|sent_on| *sent_on != connection);
        let is_certain = pending.unanswered.is_empty() || !pending.is_proposal();
        // A leader that cannot write is about to be replaced; everything else is for the caller to know.
        let is_passing = matches!(refusal, Refusal::ReadOnly { .. }) && pending.is_proposal();
        if is_certain && !is_passing {
            return self.conclude(request, Reply::Failed(Failure::Refused(refusal)), effects);
        }
        let delay = self
            .random
            .backoff(pending.refusal_count, REPEAT_BACKOFF, REPEAT_BACKOFF_MAX);
        pending.refusal_count = pending.refusal_count.saturating_add(1);
        pending.last_refusal = Some(refusal);
        let again_at = now.monotonic.plus_duration(delay);
        pending.again_at = Some(again_at);
        self.timers
            .set(Timer::Question(request), again_at.min(pending.ends_at));
    }

    pub(super) fn on_question_timer(&mut self, now: Now, request: RequestId, effects: &mut Vec<Effect>) {
        let Some(pending) = self.questions.get_mut(&request) else {
            return;
        };
        if now.monotonic >= pending.ends_at {
            if let Some(pending) = self.questions.remove(&request)
                && let Some(ticket) = pending.ticket
            {
                self.tickets.remove(&ticket);
                let reply = Reply::Failed(pending.failure(&self.last_seen));
                effects.push(Effect::Reply { ticket, reply });
            }
            return;
        }
        if pending.again_at.is_some_and(|again_at| now.monotonic >= again_at) {
            return self.send_question(now, request, effects);
        }
        let silence_timeout = self.config.silence_timeout;
        let heard = self.link.last_heard().max(pending.sent_at);
        let silent_at = heard.plus_duration(silence_timeout);
        let waits_here = self
            .link
            .serving()
            .is_some_and(|serving| pending.unanswered.contains(&serving));
        if waits_here && pending.expects_speed() && now.monotonic >= silent_at {
            self.timers.set(Timer::Question(request), pending.ends_at);
            return self.give_up_link(now, String::from("the replica has fallen silent"), effects);
        }
        let next = if waits_here && pending.expects_speed() {
            silent_at.min(pending.ends_at)
        } else {
            pending.ends_at
        };
        self.timers.set(Timer::Question(request), next);
    }

    /// After a registration: everything that waits goes to this leader, in the order in which it was asked.
    pub(super) fn send_all_questions(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let requests: Vec<RequestId> = self.questions.keys().copied().collect();
        for request in requests {
            self.send_question(now, request, effects);
        }
    }

    pub(super) fn on_close(&mut self, effects: &mut Vec<Effect>) {
        self.is_closing = true;
        for (request, pending) in core::mem::take(&mut self.questions) {
            self.timers.cancel(Timer::Question(request));
            if let Some(ticket) = pending.ticket {
                let reply = Reply::Failed(pending.failure("the session is being shut down"));
                effects.push(Effect::Reply { ticket, reply });
            }
        }
        self.tickets.clear();
    }

    fn send_question(&mut self, now: Now, request: RequestId, effects: &mut Vec<Effect>) {
        let Some(connection) = self.link.serving() else {
            return;
        };
        let Some(pending) = self.questions.get_mut(&request) else {
            return;
        };
        if !pending.unanswered.contains(&connection) {
            pending.unanswered.push(connection);
        }
        pending.sent_at = now.monotonic;
        pending.again_at = None;
        let next = if pending.expects_speed() {
            now.monotonic
                .plus_duration(self.config.silence_timeout)
                .min(pending.ends_at)
        } else {
            pending.ends_at
        };
        self.timers.set(Timer::Question(request), next);
        effects.push(Effect::Send(match &pending.question {
            Question::Decide { command, .. } => Request::Decide {
                request,
                command: command.clone(),
            },
            Question::PrepareAndDecide { command, open, .. } => Request::PrepareAndDecide {
                request,
                command: command.clone(),
                open: open.clone(),
            },
            Question::Outcome(gtid) => Request::Outcome { request, gtid: *gtid },
            Question::AwaitDelivery(gtid) => Request::AwaitDelivery { request, gtid: *gtid },
        }));
    }

    fn conclude(&mut self, request: RequestId, reply: Reply, effects: &mut Vec<Effect>) {
        self.timers.cancel(Timer::Question(request));
        if let Some(pending) = self.questions.remove(&request)
            && let Some(ticket) = pending.ticket
        {
            self.tickets.remove(&ticket);
            effects.push(Effect::Reply { ticket, reply });
        }
    }
}
