//! The load: which transactions are under way, what each still waits for, and when the next ones begin.
//!
//! One thread owns it. Each session has a fixed number of *places*; a transaction takes one from its begin to its end,
//! and its call ids name the place, so that a decision or a delivery finds its transaction without a look-up. Branch `i`
//! of a transaction belongs to the database of the `i`-th session after its own: as in a real deployment, a delivery
//! mostly goes to another process than the initiator's.

use super::BenchError;
use super::plan::{Pace, Plan, Transport};
use super::tally::{Progress, Tally};
use super::unary;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use synod_proto::command::{Decide, NamedBranch, Proposal};
use synod_proto::ids::{CallId, ExecutionId, Gtid, Lineage, ResourceId, UnixMillis};
use synod_proto::limits::{BRANCH_COUNT_MAX, DEADLINE_MS_DEFAULT};
use synod_proto::v1;
use synod_proto::v1::session_request::Request;
use synod_proto::v1::session_response::Response;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How often an open loop looks at its schedule: the timer's own resolution. What is due in between waits for it, and
/// that wait is part of its latency.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// Places of a session, at most: their number shares a call id with the session's and the branch's.
const PLACE_COUNT_MAX: usize = 1 << 24;

const _: () = assert!(BRANCH_COUNT_MAX <= 1 << 8);

/// Where a session's requests go.
pub(super) type Requests = mpsc::UnboundedSender<v1::SessionRequests>;

/// Whether the session may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    /// The replica does not lead any more: connect again.
    Leave,
}

/// The load generator's state.
pub(super) struct Generator {
    branch_count: usize,
    transport: Transport,
    pace: Pace,
    lineage: Option<Lineage>,
    sessions: Vec<Session>,
    /// In an open loop: what was due and found no free place, by when it was due.
    backlog: VecDeque<Instant>,
    schedule: Schedule,
    next_session: usize,
    is_running: bool,
    random: u64,
    tally: Tally,
    failure: Option<BenchError>,
    trouble: String,
}

struct Session {
    resource: ResourceId,
    connection: Option<Connection>,
    pending: Vec<v1::SessionRequest>,
    places: Vec<Place>,
    free: Vec<usize>,
}

/// The two ways to the leader.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) requests: Requests,
    pub(super) calls: Option<unary::Calls>,
}

struct Place {
    /// Counts the place's transactions; the branches' execution id.
    turn: u64,
    begun: Instant,
    command: Bytes,
    is_taken: bool,
    is_decided: bool,
    /// One bit for each branch.
    undelivered: u64,
}

#[derive(Clone, Copy)]
struct Schedule {
    begun: Instant,
    due_count: u64,
}

impl Generator {
    pub(super) fn new(plan: &Plan) -> Result<Self, BenchError> {
        let no_random = |error| BenchError::Wrong(format!("no random numbers: {error}"));
        let now = Instant::now();
        let session_count = plan.session_count.max(1);
        let place_count = plan.in_flight.div_ceil(session_count).clamp(1, PLACE_COUNT_MAX);
        let mut sessions = Vec::with_capacity(session_count);
        for index in 0..session_count {
            let mut resource = [0; 16];
            getrandom::fill(&mut resource).map_err(no_random)?;
            // The first sessions take what does not divide.
            let extra = plan.in_flight.max(session_count) - (place_count - 1) * session_count;
            let count = if index < extra {
                place_count
            } else {
                place_count - 1
            };
            let place = || Place {
                turn: 0,
                begun: now,
                command: Bytes::new(),
                is_taken: false,
                is_decided: false,
                undelivered: 0,
            };
            sessions.push(Session {
                resource: ResourceId(resource),
                connection: None,
                pending: Vec::new(),
                places: (0..count).map(|_| place()).collect(),
                free: (0..count).rev().collect(),
            });
        }
        Ok(Self {
            branch_count: plan.branch_count,
            transport: plan.transport,
            pace: plan.pace,
            lineage: None,
            sessions,
            backlog: VecDeque::new(),
            schedule: Schedule {
                begun: now,
                due_count: 0,
            },
            next_session: 0,
            is_running: false,
            random: getrandom::u64().map_err(no_random)?,
            tally: Tally::default(),
            failure: None,
            trouble: "no replica answered".to_owned(),
        })
    }

    pub(super) fn resource(&self, session: usize) -> ResourceId {
        self.sessions[session].resource
    }

    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    // ---- the run ----

    /// Every session is connected: the load begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.is_running = true;
        self.schedule.begun = now;
        if self.pace == Pace::Closed {
            for session in 0..self.sessions.len() {
                while let Some(place) = self.sessions[session].free.pop() {
                    self.begin_transaction(session, place, now);
                }
            }
        }
        self.flush();
    }

    pub(super) fn measure(&mut self, now: Instant) {
        self.tally.open(now);
    }

    /// Nothing counts any more and nothing begins any more. Returns how long it counted.
    pub(super) fn end_measuring(&mut self, now: Instant) -> Duration {
        self.is_running = false;
        self.backlog.clear();
        self.tally.close(now)
    }

    pub(super) fn is_drained(&self) -> bool {
        self.sessions
            .iter()
            .all(|session| session.free.len() == session.places.len())
    }

    pub(super) fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// How it goes, and why it cannot go on.
    pub(super) fn look(&mut self) -> (Progress, Option<BenchError>) {
        (self.tally.progress(Instant::now()), self.failure())
    }

    pub(super) fn failure(&self) -> Option<BenchError> {
        self.failure.clone()
    }

    fn fail(&mut self, error: BenchError) {
        self.failure.get_or_insert(error);
    }

    /// Why the last attempt to connect failed.
    pub(super) fn trouble(&self) -> String {
        self.trouble.clone()
    }

    pub(super) fn note_trouble(&mut self, trouble: String) {
        self.trouble = trouble;
    }

    // ---- the connections ----

    pub(super) fn is_connected(&self) -> bool {
        self.sessions.iter().all(|session| session.connection.is_some())
    }

    /// The session stands, and is registered: what was under way is asked again, since the log answers a repeated
    /// proposal alike (T1).
    pub(super) fn attach(&mut self, session: usize, connection: Connection, lineage: Lineage) {
        if *self.lineage.get_or_insert(lineage) != lineage {
            return self.fail(BenchError::Wrong(format!(
                "the endpoints belong to two coordinators: one has the lineage {lineage}"
            )));
        }
        let one = &mut self.sessions[session];
        one.connection = Some(connection);
        one.pending.clear();
        let open: Vec<usize> = (0..one.places.len())
            .filter(|place| one.places[*place].is_taken && !one.places[*place].is_decided)
            .collect();
        self.tally.resent_count += open.len() as u64;
        for place in open {
            self.propose(session, place);
        }
        self.flush();
    }

    pub(super) fn detach(&mut self, session: usize) {
        self.sessions[session].connection = None;
        self.sessions[session].pending.clear();
    }

    // ---- transactions ----

    /// Open loop: begins what is due.
    pub(super) fn on_tick(&mut self, now: Instant) {
        let Pace::Open { per_second } = self.pace else {
            return;
        };
        if !self.is_running {
            return;
        }
        loop {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a count of transactions stays far below 2^52"
            )]
            let offset = Duration::from_secs_f64(self.schedule.due_count as f64 / per_second);
            let due = self.schedule.begun + offset;
            if due > now {
                break;
            }
            self.schedule.due_count += 1;
            self.backlog.push_back(due);
        }
        for _ in 0..self.sessions.len() {
            let session = self.next_session;
            self.next_session = (session + 1) % self.sessions.len();
            // Spread evenly: each session takes its share of what waits now.
            let share = self.backlog.len().div_ceil(self.sessions.len());
            for _ in 0..share {
                let Some(place) = self.sessions[session].free.pop() else {
                    break;
                };
                let Some(due) = self.backlog.pop_front() else {
                    self.sessions[session].free.push(place);
                    break;
                };
                self.begin_transaction(session, place, due);
            }
        }
        self.flush();
    }

    fn begin_transaction(&mut self, session: usize, place: usize, begun: Instant) {
        let turn = self.sessions[session].places[place].turn + 1;
        let call = |index: usize| CallId((session as u64) << 32 | (place as u64) << 8 | index as u64);
        let branches: Vec<NamedBranch> = (0..self.branch_count)
            .map(|index| NamedBranch {
                call: call(index),
                execution: ExecutionId(turn),
                resource: self.sessions[(session + index) % self.sessions.len()].resource,
                digest: 0,
                database_transaction: Bytes::new(),
            })
            .collect();
        let now = unix_now();
        let mut random = [0; 10];
        random[..8].copy_from_slice(&self.next_random().to_be_bytes());
        random[8..].copy_from_slice(&self.next_random().to_be_bytes()[..2]);
        let decide = Decide {
            lineage: self.lineage.unwrap_or(Lineage([0; 16])),
            gtid: Gtid::new(now, random),
            deadline: now.plus(DEADLINE_MS_DEFAULT),
            proposal: Proposal::Commit {
                read_only_count: u32::from(branches.is_empty()),
                branches,
            },
            guards: Vec::new(),
        };
        self.sessions[session].places[place] = Place {
            turn,
            begun,
            command: decide.encode(),
            is_taken: true,
            is_decided: false,
            undelivered: (1u64 << self.branch_count).wrapping_sub(1),
        };
        self.propose(session, place);
    }

    /// SplitMix64: ids need to differ, no more.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn propose(&mut self, session: usize, place: usize) {
        let one = &mut self.sessions[session];
        let decide = v1::Decide {
            request: place as u64,
            command: one.places[place].command.clone(),
        };
        one.pending.push(v1::SessionRequest {
            request: Some(Request::Decide(decide)),
        });
    }

    /// Proposes again what was refused for a while.
    pub(super) fn propose_again(&mut self, session: usize, place: usize) {
        let one = &self.sessions[session];
        if one.connection.is_some() && one.places[place].is_taken && !one.places[place].is_decided {
            self.propose(session, place);
            self.flush();
        }
    }

    /// Sends what the last inputs made, as one message to each session.
    pub(super) fn flush(&mut self) {
        for session in 0..self.sessions.len() {
            let one = &mut self.sessions[session];
            if one.pending.is_empty() {
                continue;
            }
            let requests = std::mem::take(&mut one.pending);
            let Some(connection) = &one.connection else {
                continue;
            };
            let requests = match &connection.calls {
                None => requests,
                Some(calls) => requests
                    .into_iter()
                    .filter_map(|request| calls.take(request))
                    .collect(),
            };
            // A stream that has just ended: its reader connects again, and then everything open is asked again.
            if !requests.is_empty() {
                let _ = connection.requests.send(v1::SessionRequests { requests });
            }
        }
    }

    // ---- answers ----

    /// Takes one message of a session, and sends what follows from it. Returns the places to propose again later.
    pub(super) fn on_responses(
        &mut self,
        session: usize,
        responses: Vec<v1::SessionResponse>,
        now: Instant,
    ) -> (Next, Vec<usize>) {
        let mut next = Next::Stay;
        let mut deferred = Vec::new();
        for response in responses {
            match response.response {
                Some(Response::Decided(decided)) => {
                    let place = usize::try_from(decided.request).unwrap_or(usize::MAX);
                    self.on_decision(session, place, decided.decision, now);
                }
                Some(Response::Deliver(deliver)) => self.on_deliver(session, &deliver, now),
                Some(Response::Refused(refused)) => {
                    let place = usize::try_from(refused.request).unwrap_or(usize::MAX);
                    match refused.refusal.and_then(|refusal| refusal.refusal) {
                        Some(v1::refusal::Refusal::NotLeader(_)) => next = Next::Leave,
                        Some(v1::refusal::Refusal::Overloaded(_)) => {
                            self.tally.overloaded_count += 1;
                            deferred.push(place);
                        }
                        refusal => self.fail(BenchError::Refused(format!("{refusal:?}"))),
                    }
                }
                // Low-water marks speak of proofs, which memory has none of; nothing else was asked for.
                _ => {}
            }
        }
        self.flush();
        (next, deferred)
    }

    /// What the log says of a place's transaction.
    pub(super) fn on_decision(
        &mut self,
        session: usize,
        place: usize,
        decision: Option<v1::Decision>,
        now: Instant,
    ) {
        use v1::decision::Decision;
        let Some(one) = self.sessions[session].places.get_mut(place) else {
            return self.fail(BenchError::Wrong(format!(
                "an answer to request {place}, which was never made"
            )));
        };
        if !one.is_taken || one.is_decided {
            return;
        }
        one.is_decided = true;
        match decision.and_then(|decision| decision.decision) {
            Some(Decision::Committed(_)) => {}
            Some(Decision::Aborted(_)) => {
                one.undelivered = 0;
                self.tally.aborted_count += 1;
            }
            other => self.fail(BenchError::Wrong(format!("a commit was answered with {other:?}"))),
        }
        self.end_if_done(session, place, now);
    }

    /// A branch in memory commits at once, and acknowledges each time it is told (T8).
    fn on_deliver(&mut self, session: usize, deliver: &v1::Deliver, now: Instant) {
        let Some(branch) = &deliver.branch else { return };
        if deliver.outcome != v1::Outcome::Committed as i32 {
            return;
        }
        let acknowledge = v1::Acknowledge {
            branch: Some(branch.clone()),
            resource: deliver.resource.clone(),
        };
        self.sessions[session].pending.push(v1::SessionRequest {
            request: Some(Request::Acknowledge(acknowledge)),
        });
        let number =
            |shift: u32, mask: u64| usize::try_from((branch.call >> shift) & mask).unwrap_or(usize::MAX);
        let (owner, place, index) = (number(32, 0xffff_ffff), number(8, 0xff_ffff), number(0, 0xff));
        // A delivery to a database of a former run, or of a turn that has ended, is acknowledged and no more.
        let Some(one) = self
            .sessions
            .get_mut(owner)
            .and_then(|one| one.places.get_mut(place))
        else {
            return;
        };
        if one.is_taken && one.turn == branch.execution {
            one.undelivered &= !(1 << index);
            self.end_if_done(owner, place, now);
        }
    }

    fn end_if_done(&mut self, session: usize, place: usize, now: Instant) {
        let one = &mut self.sessions[session].places[place];
        if !one.is_decided || one.undelivered != 0 {
            return;
        }
        one.is_taken = false;
        let begun = one.begun;
        self.tally.end(begun, now);
        match self.pace {
            Pace::Closed if self.is_running => self.begin_transaction(session, place, now),
            Pace::Open { .. } if let Some(due) = self.backlog.pop_front() => {
                self.begin_transaction(session, place, due);
            }
            _ => self.sessions[session].free.push(place),
        }
    }
}

fn unix_now() -> UnixMillis {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
