//! What only the leader knows of transactions: who waits for which answer, what is to be delivered to whom.
//!
//! Steps 4 and 5 of a transaction. Nothing here is durable and nothing here decides: a new leader rebuilds it from the
//! register and from what sessions say again.

pub(crate) mod deliveries;
pub(crate) mod inquiring;
pub(crate) mod preparing;

use crate::effects::{Effects, Unsynced};
use crate::replica::Queues;
use crate::time::Timestamp;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use core::hash::{Hash, Hasher};
use deliveries::Deliveries;
use inquiring::Inquiring;
use preparing::Preparing;
use synod_proto::command::{Command, DELIVERED_COUNT_MAX};
use synod_proto::ids::{BranchId, Gtid, RequestId, ResourceId, SessionId};
use synod_proto::limits::BRANCH_COUNT_MAX;
use synod_proto::planted;
use synod_proto::session::{Answer, Refusal, Request, Response};

/// Requests held until a new leader serves. It takes one round trip; what comes beyond is told to try again.
pub const PARKED_COUNT_MAX: usize = 16_384;

/// Inquiries of one transaction that wait for the same abort. Inquiries are not counted at a session, since they are never
/// refused; what comes beyond is told to ask again (traps A20).
pub(crate) const INQUIRY_COUNT_MAX: usize = 4096;

const _: () = assert!(
    INQUIRY_COUNT_MAX >= 16 * BRANCH_COUNT_MAX,
    "a transaction's own branches always fit"
);

/// Who proposed a command, and so who is answered when it is applied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// The leader itself.
    Internal,
    /// A session that waits for the decision.
    Session(SessionId, RequestId),
    /// A session that enrolls databases and waits to be registered with them.
    Register(SessionId, RequestId, Vec<ResourceId>),
    /// Branches that inquired after the deadline.
    Inquiry(Gtid),
}

/// A query that may be answered once a quorum has confirmed the leader.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) sequence: u64,
    pub(crate) session: SessionId,
    pub(crate) request: RequestId,
    pub(crate) question: Question,
}

/// What a [`Read`] asks.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) enum Question {
    /// What became of this transaction.
    Outcome(Gtid),
    /// What keeps databases waiting, above this gtid.
    InDoubt { after: Option<Gtid>, count_max: usize },
}

/// For checkers: the order of reads is kept by whoever holds them, the count of heartbeats says nothing by itself.
impl Hash for Read {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            sequence: _,
            session,
            request,
            question,
        } = self;
        (session, request, question).hash(state);
    }
}

/// What became of an inquiry after the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inquired {
    /// The first one for its gtid: an abort is to be proposed.
    First,
    /// An abort is under way already.
    Joined,
    /// Too many wait for it.
    Full,
}

/// The leader's transactions.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Leading {
    is_serving: bool,
    queue: VecDeque<(Bytes, Origin)>,
    queue_bytes: usize,
    parked: VecDeque<(SessionId, Request)>,
    parked_bytes: usize,
    inquiries: BTreeMap<Gtid, BTreeSet<(SessionId, BranchId)>>,
    reads: VecDeque<Read>,
    /// Sessions that had databases enrolled and are still open: a session that closes while the log takes its databases
    /// must not be delivered to afterwards.
    enrolling: BTreeSet<SessionId>,
    delivered: Vec<Gtid>,
    delivered_is_due: bool,
    pub(crate) deliveries: Deliveries,
    pub(crate) preparing: Preparing,
    pub(crate) inquiring: Inquiring,
}

impl Leading {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            is_serving: false,
            queue: VecDeque::new(),
            queue_bytes: 0,
            parked: VecDeque::new(),
            parked_bytes: 0,
            inquiries: BTreeMap::new(),
            reads: VecDeque::new(),
            enrolling: BTreeSet::new(),
            delivered: Vec::new(),
            delivered_is_due: false,
            deliveries: Deliveries::new(seed),
            preparing: Preparing::default(),
            inquiring: Inquiring::default(),
        }
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.is_serving
    }

    /// The leader has applied all that was chosen before it (traps A4). Returns the requests that waited for that.
    pub(crate) fn begin_serving(&mut self) -> VecDeque<(SessionId, Request)> {
        self.is_serving = true;
        self.parked_bytes = 0;
        core::mem::take(&mut self.parked)
    }

    /// Holds a request until this leader serves. Their bytes are bounded like those of the queue that they will join.
    pub(crate) fn park(
        &mut self,
        session: SessionId,
        request: Request,
        limits: &crate::replica::Limits,
    ) -> Result<(), Refusal> {
        let bytes = self.parked_bytes + proposed_bytes(&request);
        if self.parked.len() >= PARKED_COUNT_MAX || bytes > limits.queue_bytes_max {
            return Err(Refusal::Overloaded {
                what: "requests that wait for the new leader".to_string(),
            });
        }
        self.parked_bytes = bytes;
        self.parked.push_back((session, request));
        Ok(())
    }

    /// Puts a command in line for the log.
    pub(crate) fn push(
        &mut self,
        command: Bytes,
        origin: Origin,
        limits: &crate::replica::Limits,
    ) -> Result<(), Refusal> {
        if self.queue.len() >= limits.queue_count_max
            || self.queue_bytes + command.len() > limits.queue_bytes_max
        {
            return Err(Refusal::Overloaded {
                what: "commands that wait to enter the log".to_string(),
            });
        }
        self.queue_bytes += command.len();
        self.queue.push_back((command, origin));
        Ok(())
    }

    /// Puts the enrolment of a session's databases in line for the log.
    pub(crate) fn push_enrolment(
        &mut self,
        command: Bytes,
        (session, request): (SessionId, RequestId),
        resources: Vec<ResourceId>,
        limits: &crate::replica::Limits,
    ) -> Result<(), Refusal> {
        self.push(command, Origin::Register(session, request, resources), limits)?;
        self.enrolling.insert(session);
        Ok(())
    }

    /// Whether a session that had databases enrolled is still open.
    pub(crate) fn is_open(&self, session: SessionId) -> bool {
        self.enrolling.contains(&session)
    }

    /// An empty entry, if nothing else is to be written.
    pub(crate) fn push_noop(&mut self) {
        if self.queue.is_empty() {
            let command = Command::Noop.encode();
            self.queue_bytes += command.len();
            self.queue.push_back((command, Origin::Internal));
        }
    }

    pub(crate) fn queue_count(&self) -> usize {
        self.queue.len()
    }

    /// What waits here.
    pub(crate) fn queues(&self) -> Queues {
        Queues {
            command_count: self.queue.len(),
            command_bytes: self.queue_bytes,
            parked_count: self.parked.len(),
            in_flight_count: 0,
        }
    }

    /// The next entry's commands with their origins. Finished deliveries ride along with other commands, and make an
    /// entry of their own only once a heartbeat found them waiting.
    pub(crate) fn take_entry(&mut self, bytes_max: usize) -> Option<(Vec<Bytes>, Vec<Origin>)> {
        let is_delivered_due = self.delivered_is_due && !self.delivered.is_empty();
        if self.queue.is_empty() && !is_delivered_due {
            return None;
        }
        let (mut commands, mut origins) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        if !self.delivered.is_empty() {
            let rest = self
                .delivered
                .split_off(self.delivered.len().min(DELIVERED_COUNT_MAX));
            let gtids = core::mem::replace(&mut self.delivered, rest);
            let command = Command::Delivered(gtids).encode();
            bytes += command.len();
            commands.push(command);
            origins.push(Origin::Internal);
            self.delivered_is_due = !self.delivered.is_empty() && self.delivered_is_due;
        }
        while let Some((command, _)) = self.queue.front() {
            if !commands.is_empty() && bytes + command.len() > bytes_max {
                break;
            }
            bytes += command.len();
            self.queue_bytes -= command.len();
            if let Some((command, origin)) = self.queue.pop_front() {
                commands.push(command);
                origins.push(origin);
            }
        }
        Some((commands, origins))
    }

    pub(crate) fn on_heartbeat(&mut self, now: Timestamp, effects: &mut Effects<Unsynced>) {
        self.delivered_is_due = true;
        self.deliveries.repeat_due(now, effects);
    }

    /// Every branch of the transaction has acknowledged: to be folded into a next entry.
    pub(crate) fn note_delivered(&mut self, gtid: Gtid) {
        self.delivered.push(gtid);
    }

    /// Adds an inquiring branch.
    pub(crate) fn note_inquiry(&mut self, session: SessionId, branch: BranchId) -> Inquired {
        let waiting = self.inquiries.entry(branch.gtid).or_default();
        if waiting.len() >= INQUIRY_COUNT_MAX {
            return Inquired::Full;
        }
        let is_first = waiting.is_empty();
        waiting.insert((session, branch));
        if is_first {
            Inquired::First
        } else {
            Inquired::Joined
        }
    }

    pub(crate) fn take_inquiries(&mut self, gtid: Gtid) -> BTreeSet<(SessionId, BranchId)> {
        self.inquiries.remove(&gtid).unwrap_or_default()
    }

    pub(crate) fn push_read(&mut self, read: Read) {
        self.reads.push_back(read);
    }

    pub(crate) fn has_reads(&self) -> bool {
        !self.reads.is_empty()
    }

    /// The reads that a round of heartbeats up to `sequence` has confirmed.
    pub(crate) fn take_confirmed_reads(&mut self, sequence: u64) -> Vec<Read> {
        let confirmed = self
            .reads
            .iter()
            .take_while(|read| read.sequence <= sequence || planted!(UndecidedToldUnconfirmed))
            .count();
        self.reads.drain(..confirmed).collect()
    }

    pub(crate) fn close_session(&mut self, session: SessionId) {
        self.deliveries.close_session(session);
        self.preparing.close_session(session);
        self.enrolling.remove(&session);
        self.parked.retain(|(parked, _)| *parked != session);
        self.parked_bytes = self
            .parked
            .iter()
            .map(|(_, request)| proposed_bytes(request))
            .sum();
        self.reads.retain(|read| read.session != session);
        for waiting in self.inquiries.values_mut() {
            waiting.retain(|(inquirer, _)| *inquirer != session);
        }
    }

    /// The leader resigned: whoever waits, for a command still queued or one already `in_flight`, is sent to the next
    /// leader, and sessions end.
    pub(crate) fn refuse_all(
        &mut self,
        in_flight: impl Iterator<Item = Origin>,
        effects: &mut Effects<Unsynced>,
    ) {
        let refusal = Refusal::NotLeader { leader: None };
        let mut refuse = |session, request| {
            effects.tell(
                session,
                Response::Refused {
                    request,
                    refusal: refusal.clone(),
                },
            );
        };
        for origin in in_flight.chain(self.queue.drain(..).map(|(_, origin)| origin)) {
            if let Origin::Session(session, request) | Origin::Register(session, request, _) = origin {
                refuse(session, request);
            }
        }
        for (session, request) in self.parked.drain(..) {
            if let Some(request) = request_id(&request) {
                refuse(session, request);
            }
        }
        for read in self.reads.drain(..) {
            refuse(read.session, read.request);
        }
        for (session, request) in self.deliveries.take_awaiting() {
            refuse(session, request);
        }
        for (session, request) in self.preparing.take_waiting() {
            refuse(session, request);
        }
        for waiting in core::mem::take(&mut self.inquiries).into_values() {
            for (session, branch) in waiting {
                effects.tell(
                    session,
                    Response::Answered {
                        branch,
                        answer: Answer::Undecided,
                    },
                );
            }
        }
        for session in self.deliveries.sessions() {
            effects.end(session);
        }
    }
}

/// The bytes that a request proposes for the log. All others are small.
fn proposed_bytes(request: &Request) -> usize {
    match request {
        Request::Decide { command, .. } | Request::PrepareAndDecide { command, .. } => command.len(),
        _ => 0,
    }
}

/// The number of a request that has one.
pub(crate) fn request_id(request: &Request) -> Option<RequestId> {
    match request {
        Request::Register { request, .. }
        | Request::Decide { request, .. }
        | Request::PrepareAndDecide { request, .. }
        | Request::Outcome { request, .. }
        | Request::AwaitDelivery { request, .. }
        | Request::Settle { request, .. }
        | Request::List { request, .. }
        | Request::ListInDoubt { request, .. } => Some(*request),
        Request::Inquire { .. }
        | Request::Acknowledge { .. }
        | Request::Hazard { .. }
        | Request::Introduce { .. }
        | Request::Voted { .. } => None,
    }
}

/// A refusal that names a bug in the caller.
pub(crate) fn invalid(text: impl Into<String>) -> Refusal {
    Refusal::Invalid { text: text.into() }
}
