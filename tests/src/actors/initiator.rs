//! A service that begins transactions: it calls participants, collects votes, proposes an outcome and insists on the
//! answer (T7: after the Commit request was handed over, only the log's word counts).

use super::link::{Heard, Link};
use super::{Actor, ActorId, CallVote, Scene, Speech};
use crate::chance::place_of;
use crate::schedule::Micros;
use bytes::Bytes;
use std::collections::BTreeMap;
use synod_proto::command::{Decide, NamedBranch, Proposal};
use synod_proto::ids::{CallId, Gtid, Lineage, ReplicaId, RequestId, SessionId, UnixMillis};
use synod_proto::session::{AbortCause, AbortKind, Decision, Refusal, Request, Response};

/// How an initiator works.
#[derive(Clone, Debug)]
pub struct Habits {
    /// How many transactions it begins before it rests.
    pub transaction_count: u64,
    /// The shortest and the longest pause between two begins.
    pub pause_us: (Micros, Micros),
    /// The shortest and the longest time from begin to deadline, in milliseconds.
    pub deadline_ms: (u64, u64),
    /// The most calls of one transaction.
    pub call_count_max: u64,
    /// How many of a million transactions are given up instead of decided.
    pub give_up_ppm: u64,
    /// How many of a million are aborted on request.
    pub abort_ppm: u64,
    /// How many of a million ask for the delivery, or for the outcome, afterwards.
    pub ask_after_ppm: u64,
}

impl Habits {
    /// One transaction of two calls, at once.
    #[must_use]
    pub fn single() -> Self {
        Self {
            transaction_count: 1,
            pause_us: (0, 0),
            deadline_ms: (3_000, 3_000),
            call_count_max: 2,
            give_up_ppm: 0,
            abort_ppm: 0,
            ask_after_ppm: 0,
        }
    }

    /// A little of everything.
    #[must_use]
    pub fn mixed(transaction_count: u64) -> Self {
        Self {
            transaction_count,
            pause_us: (10_000, 400_000),
            deadline_ms: (1_500, 6_000),
            call_count_max: 4,
            give_up_ppm: 50_000,
            abort_ppm: 50_000,
            ask_after_ppm: 300_000,
        }
    }
}

/// How long a call may go unanswered before it is made again.
const CALL_TIMEOUT_US: Micros = 250_000;
/// How often a call is made before the transaction is given up.
const CALL_ATTEMPTS: u32 = 3;
/// How long a proposal may go unanswered before it is sent again.
const DECIDE_TIMEOUT_US: Micros = 800_000;

const BEGIN: u64 = 0;

#[derive(Clone, Debug)]
enum Stage {
    Calling {
        open: BTreeMap<CallId, ActorId>,
        votes: Vec<NamedBranch>,
        read_only_count: u32,
        attempts: u32,
    },
    Deciding {
        command: Bytes,
        is_commit: bool,
    },
    Awaiting {
        attempts: u32,
    },
}

#[derive(Clone, Debug)]
struct Transaction {
    gtid: Gtid,
    deadline: UnixMillis,
    lineage: Lineage,
    stage: Stage,
    asked: Option<RequestId>,
    /// Counts its timers: only the last one set counts.
    turn: u64,
}

/// A timer's token holds the transaction's in its lower bits and the timer's count above.
const TURN_SHIFT: u32 = 24;

/// The service.
#[derive(Debug)]
pub struct Initiator {
    habits: Habits,
    participants: Vec<ActorId>,
    link: Link,
    lineage: Option<Lineage>,
    begun_count: u64,
    next_token: u64,
    transactions: BTreeMap<u64, Transaction>,
    /// Outcomes that it was told, for whoever looks at the end.
    pub told: Vec<(Gtid, Decision)>,
}

impl Initiator {
    /// A service that calls these participants.
    #[must_use]
    pub fn new(replicas: Vec<ReplicaId>, participants: Vec<ActorId>, habits: Habits) -> Self {
        Self {
            habits,
            participants,
            link: Link::new(replicas, Vec::new()),
            lineage: None,
            begun_count: 0,
            next_token: BEGIN,
            transactions: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    fn begin(&mut self, scene: &mut Scene<'_>) {
        let Some(lineage) = self.lineage else { return };
        if self.begun_count >= self.habits.transaction_count {
            return;
        }
        self.begun_count += 1;
        self.next_token += 1;
        let mut random = [0u8; 10];
        random.copy_from_slice(&scene.random.bytes16()[..10]);
        let gtid = Gtid::new(scene.wall, random);
        let deadline = scene.wall.plus(
            scene
                .random
                .between(self.habits.deadline_ms.0, self.habits.deadline_ms.1),
        );
        let call_count = match self.habits.call_count_max {
            count @ 0..=2 => count,
            count => scene.random.between(1, count),
        };
        let mut open = BTreeMap::new();
        for number in 0..call_count {
            let count = self.participants.len();
            let place = place_of(scene.random.next_u64() % count as u64 + number, count);
            open.insert(CallId(scene.random.next_u64()), self.participants[place]);
        }
        let stage = Stage::Calling {
            open,
            votes: Vec::new(),
            read_only_count: 0,
            attempts: 0,
        };
        self.transactions.insert(
            self.next_token,
            Transaction {
                gtid,
                deadline,
                lineage,
                stage,
                asked: None,
                turn: 0,
            },
        );
        self.go_on(scene, self.next_token);
    }

    /// Does, or does again, what the transaction waits for.
    fn go_on(&mut self, scene: &mut Scene<'_>, token: u64) {
        let Some(transaction) = self.transactions.get_mut(&token) else {
            return;
        };
        transaction.turn += 1;
        let timer = token + (transaction.turn << TURN_SHIFT);
        let (gtid, deadline, lineage) = (transaction.gtid, transaction.deadline, transaction.lineage);
        match &mut transaction.stage {
            Stage::Calling { open, attempts, .. } => {
                *attempts += 1;
                if *attempts > CALL_ATTEMPTS {
                    return self.propose_abort(scene, token, AbortKind::Doomed);
                }
                for (call, participant) in open {
                    scene.say(
                        *participant,
                        Speech::Call {
                            gtid,
                            call: *call,
                            deadline,
                            lineage,
                        },
                    );
                }
                scene.wake_after(CALL_TIMEOUT_US, timer);
            }
            Stage::Deciding { command, is_commit } => {
                // T7: in doubt past its deadline, it proposes Abort, and is told what the log says.
                if *is_commit && scene.wall > deadline.plus(2_000) {
                    return self.propose_abort(scene, token, AbortKind::Requested);
                }
                let command = command.clone();
                if self.link.is_silent(scene.now) {
                    self.link.move_on(scene, None);
                } else if let Some(session) = self.link.ready() {
                    let request = self.link.number(scene.now);
                    self.note_asked(token, request);
                    scene.ask(session, Request::Decide { request, command });
                }
                scene.wake_after(DECIDE_TIMEOUT_US, timer);
            }
            Stage::Awaiting { attempts } => {
                *attempts += 1;
                if *attempts > 20 {
                    self.transactions.remove(&token);
                    return;
                }
                if let Some(session) = self.link.ready() {
                    let request = self.link.number(scene.now);
                    self.note_asked(token, request);
                    let ask_outcome = scene.happens(300_000);
                    scene.ask(
                        session,
                        match ask_outcome {
                            true => Request::Outcome { request, gtid },
                            false => Request::AwaitDelivery { request, gtid },
                        },
                    );
                }
                scene.wake_after(DECIDE_TIMEOUT_US, timer);
            }
        }
    }

    fn note_asked(&mut self, token: u64, request: RequestId) {
        if let Some(transaction) = self.transactions.get_mut(&token) {
            transaction.asked = Some(request);
        }
    }

    fn propose(&mut self, scene: &mut Scene<'_>, token: u64, proposal: Proposal) {
        let Some(transaction) = self.transactions.get_mut(&token) else {
            return;
        };
        let is_commit = matches!(proposal, Proposal::Commit { .. });
        let Transaction {
            gtid,
            deadline,
            lineage,
            ..
        } = *transaction;
        let command = Decide {
            lineage,
            gtid,
            deadline,
            proposal,
            guards: Vec::new(),
        }
        .encode();
        transaction.stage = Stage::Deciding { command, is_commit };
        self.go_on(scene, token);
    }

    fn propose_abort(&mut self, scene: &mut Scene<'_>, token: u64, kind: AbortKind) {
        let Some(transaction) = self.transactions.get(&token) else {
            return;
        };
        let mut branches = match &transaction.stage {
            Stage::Calling { votes, .. } => votes.clone(),
            _ => Vec::new(),
        };
        branches.sort_unstable();
        self.propose(
            scene,
            token,
            Proposal::Abort {
                cause: AbortCause::new(kind, "initiator"),
                branches,
            },
        );
    }

    fn on_reply(&mut self, scene: &mut Scene<'_>, gtid: Gtid, call: CallId, vote: CallVote) {
        let Some((token, transaction)) = self.transactions.iter_mut().find(|(_, one)| one.gtid == gtid)
        else {
            return;
        };
        let token = *token;
        let Stage::Calling {
            open,
            votes,
            read_only_count,
            ..
        } = &mut transaction.stage
        else {
            return;
        };
        // T2: the first execution that answers a call counts; a later one stays unnamed.
        if open.remove(&call).is_none() {
            return;
        }
        match vote {
            CallVote::Commit(named) => votes.push(named),
            CallVote::ReadOnly => *read_only_count += 1,
            CallVote::Abort => return self.propose_abort(scene, token, AbortKind::VotedAbort),
        }
        if !open.is_empty() {
            return;
        }
        let (mut branches, read_only_count) = (std::mem::take(votes), *read_only_count);
        branches.sort_unstable();
        if scene.happens(self.habits.give_up_ppm) {
            self.transactions.remove(&token);
        } else if scene.happens(self.habits.abort_ppm) {
            self.propose_abort(scene, token, AbortKind::Requested);
        } else {
            self.propose(
                scene,
                token,
                Proposal::Commit {
                    branches,
                    read_only_count,
                },
            );
        }
    }

    fn on_decision(&mut self, scene: &mut Scene<'_>, token: u64, decision: &Decision) {
        let Some(transaction) = self.transactions.get_mut(&token) else {
            return;
        };
        self.told.push((transaction.gtid, decision.clone()));
        if *decision == Decision::Committed && scene.happens(self.habits.ask_after_ppm) {
            transaction.stage = Stage::Awaiting { attempts: 0 };
            return self.go_on(scene, token);
        }
        self.transactions.remove(&token);
    }

    fn token_of(&self, request: RequestId) -> Option<u64> {
        self.transactions
            .iter()
            .find(|(_, one)| one.asked == Some(request))
            .map(|(token, _)| *token)
    }

    fn pause(&mut self, scene: &mut Scene<'_>) {
        if self.begun_count < self.habits.transaction_count {
            let pause = scene
                .random
                .between(self.habits.pause_us.0, self.habits.pause_us.1);
            scene.wake_after(pause.max(1_000), BEGIN);
        }
    }
}

impl Actor for Initiator {
    fn on_start(&mut self, scene: &mut Scene<'_>) {
        // What was under way is forgotten: its branches will ask (T8).
        self.transactions.clear();
        self.link.start(scene);
        self.pause(scene);
    }

    fn on_response(&mut self, scene: &mut Scene<'_>, session: SessionId, response: Response) {
        match self.link.on_response(scene, session, response) {
            Heard::Registered(lineage) => {
                self.lineage = Some(lineage);
                for token in self.transactions.keys().copied().collect::<Vec<_>>() {
                    if let Some(Stage::Deciding { .. }) = self.transactions.get(&token).map(|one| &one.stage)
                    {
                        self.go_on(scene, token);
                    }
                }
            }
            Heard::Response(Response::Decided { request, decision }) => {
                if let Some(token) = self.token_of(request) {
                    self.on_decision(scene, token, &decision);
                }
            }
            Heard::Response(Response::Delivered { request, .. } | Response::Status { request, .. }) => {
                if let Some(token) = self.token_of(request) {
                    self.transactions.remove(&token);
                }
            }
            Heard::Response(Response::Refused { request, refusal }) => {
                // Overloaded and from-the-future pass: the timer sends it again. The rest ends here.
                if let Some(token) = self.token_of(request)
                    && matches!(refusal, Refusal::Invalid { .. } | Refusal::NotFound { .. })
                {
                    self.transactions.remove(&token);
                }
            }
            Heard::Response(_) | Heard::Nothing => {}
        }
    }

    fn on_session_lost(&mut self, scene: &mut Scene<'_>, session: SessionId) {
        self.link.on_lost(scene, session);
    }

    fn on_speech(&mut self, scene: &mut Scene<'_>, _from: ActorId, speech: Speech) {
        if let Speech::Reply { gtid, call, vote } = speech {
            self.on_reply(scene, gtid, call, vote);
        }
    }

    fn on_wake(&mut self, scene: &mut Scene<'_>, token: u64) {
        match token {
            token if token >= Link::TOKEN_FLOOR => self.link.on_wake(scene, token),
            BEGIN => {
                self.begin(scene);
                self.pause(scene);
            }
            timer => {
                let token = timer & ((1 << TURN_SHIFT) - 1);
                if self
                    .transactions
                    .get(&token)
                    .is_some_and(|one| one.turn == timer >> TURN_SHIFT)
                {
                    self.go_on(scene, token);
                }
            }
        }
    }

    fn on_rest(&mut self) {
        self.begun_count = u64::MAX;
    }

    fn is_idle(&self) -> bool {
        self.transactions.is_empty() && self.begun_count >= self.habits.transaction_count
    }
}
