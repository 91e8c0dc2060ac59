//! Prepare on request: the branches of a commit request whose local transactions are still open (step 3, rule T3).
//!
//! The leader asks each branch's own instance, all at once, and proposes an outcome when it has every vote: Commit of all
//! branches, or Abort as soon as one votes so, its instance has gone, or the deadline passes. Nothing of this is in the log
//! before that proposal: a new leader gets the same request from the initiator and asks again, and the instances answer
//! the same. Nothing here decides (T9): an outcome that enters the log meanwhile is the outcome, and votes that come
//! later change nothing.

use crate::effects::{Effects, Unsynced};
use crate::time::Timestamp;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::hash::{Hash, Hasher};
use synod_proto::command::{Decide, NamedBranch, Proposal};
use synod_proto::ids::{
    BranchId, CallId, ExecutionId, Gtid, InstanceId, RequestId, ResourceId, SessionId, UnixMillis,
};
use synod_proto::limits::DEADLINE_MS_MAX;
use synod_proto::session::{AbortCause, AbortKind, AskedVote, OpenBranch, Outcome, Response, Vote};

/// The most commit requests that collect votes at a time (traps A20). What comes beyond is told to try again.
pub(crate) const PENDING_COUNT_MAX: usize = 16_384;

/// The wait before an instance is asked again, in microseconds. A stream loses nothing while it lasts, and a new one of
/// the same instance is asked at once; this serves what neither side noticed.
const REPEAT_US: u64 = 1_000_000;

/// How long an instance may be without a session before its branches count as lost, in microseconds: long enough for a
/// session to find a new leader, short against the default deadline, since a restarted process has another instance.
const ABSENCE_US: u64 = 3_000_000;

const _: () = assert!(REPEAT_US < ABSENCE_US && ABSENCE_US < DEADLINE_MS_MAX * 1000);

type Key = (CallId, ExecutionId);

/// One open branch of a commit request.
#[derive(Clone, Debug)]
struct Awaited {
    open: OpenBranch,
    vote: Option<AskedVote>,
    asked_at: Option<Timestamp>,
    absent_since: Option<Timestamp>,
}

/// A commit request that waits for votes, or for the log.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    /// What it names as voted, in the initiator's bytes: the same request has the same ones.
    command: Bytes,
    decide: Decide,
    awaited: BTreeMap<Key, Awaited>,
    waiting: Vec<(SessionId, RequestId)>,
    since: Timestamp,
    /// Why it is to be aborted, once it is.
    abort: Option<AbortCause>,
    is_proposed: bool,
}

/// For checkers: without instants, of which only the order of the repeats follows.
impl Hash for Pending {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            command,
            decide: _,
            awaited,
            waiting,
            since: _,
            abort,
            is_proposed,
        } = self;
        for (key, one) in awaited {
            let Awaited {
                open,
                vote,
                asked_at,
                absent_since,
            } = one;
            (key, open, vote, asked_at.is_some(), absent_since.is_some()).hash(state);
        }
        (command, awaited.len(), waiting, abort, is_proposed).hash(state);
    }
}

impl Pending {
    /// The request, for the record's answer to it.
    pub(crate) fn request(&self) -> (&Proposal, Vec<OpenBranch>) {
        (&self.decide.proposal, self.open().collect())
    }

    /// Who waits for the answer.
    pub(crate) fn waiting(&self) -> &[(SessionId, RequestId)] {
        &self.waiting
    }

    fn open(&self) -> impl Iterator<Item = OpenBranch> + '_ {
        self.awaited.values().map(|one| one.open)
    }

    fn branch(&self, open: &OpenBranch) -> BranchId {
        BranchId {
            gtid: self.decide.gtid,
            call: open.call,
            execution: open.execution,
        }
    }

    /// What is to be proposed now, if anything is.
    fn proposal(&self) -> Option<Decide> {
        let Proposal::Commit {
            branches,
            read_only_count,
        } = &self.decide.proposal
        else {
            return None;
        };
        let proposal = if let Some(cause) = &self.abort {
            // The open ones are told by their instances' sessions, where alone somebody can listen.
            let (cause, branches) = (cause.clone(), branches.clone());
            Proposal::Abort { cause, branches }
        } else {
            let mut branches = branches.clone();
            let mut read_only_count = *read_only_count;
            for one in self.awaited.values() {
                let asked = one.vote.as_ref()?;
                match asked.vote {
                    Vote::Commit => branches.push(NamedBranch {
                        call: one.open.call,
                        execution: one.open.execution,
                        resource: one.open.resource,
                        digest: asked.digest,
                        database_transaction: asked.database_transaction.clone(),
                    }),
                    Vote::ReadOnly => read_only_count = read_only_count.saturating_add(1),
                    Vote::Abort { .. } => return None,
                }
            }
            branches.sort_by_key(|branch| (branch.call, branch.execution));
            Proposal::Commit {
                branches,
                read_only_count,
            }
        };
        Some(Decide {
            proposal,
            ..self.decide.clone()
        })
    }

    fn give_up(&mut self, kind: AbortKind, open: OpenBranch, text: impl Into<String>) {
        self.abort
            .get_or_insert_with(|| AbortCause::new(kind, text).with_branch(open.call, open.execution));
    }
}

/// What became of a commit request with open branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// Its branches were asked.
    First,
    /// The same request waits already; this one waits with it.
    Joined,
    /// Another request for the same gtid waits, with other branches (traps B4).
    Differs,
    /// Too many wait.
    Full,
}

/// Why a vote changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unasked;

/// The leader's commit requests that wait for votes, and where each instance is.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Preparing {
    pending: BTreeMap<Gtid, Pending>,
    instances: BTreeMap<InstanceId, SessionId>,
    sessions: BTreeMap<SessionId, InstanceId>,
}

impl Preparing {
    pub(crate) fn count(&self) -> usize {
        self.pending.len()
    }

    /// A commit request with open branches: each is asked by its own instance, all at once.
    pub(crate) fn begin(
        &mut self,
        now: Timestamp,
        (session, request): (SessionId, RequestId),
        (command, decide): (Bytes, Decide),
        open: Vec<OpenBranch>,
        effects: &mut Effects<Unsynced>,
    ) -> Begun {
        let gtid = decide.gtid;
        if let Some(pending) = self.pending.get_mut(&gtid) {
            if pending.command != command || !pending.open().eq(open) {
                return Begun::Differs;
            }
            // Repeated on a new session of the same process, or by a client that lost its answer.
            if !pending.waiting.contains(&(session, request)) {
                pending.waiting.push((session, request));
            }
            return Begun::Joined;
        }
        if self.pending.len() >= PENDING_COUNT_MAX {
            return Begun::Full;
        }
        let awaited = open.into_iter().map(|open| {
            let one = Awaited {
                open,
                vote: None,
                asked_at: None,
                absent_since: None,
            };
            ((open.call, open.execution), one)
        });
        let mut pending = Pending {
            command,
            decide,
            awaited: awaited.collect(),
            waiting: Vec::from([(session, request)]),
            since: now,
            abort: None,
            is_proposed: false,
        };
        for one in pending.awaited.values_mut() {
            ask(&self.instances, gtid, one, now, effects);
        }
        self.pending.insert(gtid, pending);
        Begun::First
    }

    /// The session speaks for this instance from now on. What waits for it is asked, again perhaps.
    pub(crate) fn introduce(
        &mut self,
        session: SessionId,
        instance: InstanceId,
        now: Timestamp,
        effects: &mut Effects<Unsynced>,
    ) {
        if let Some(former) = self.sessions.insert(session, instance)
            && former != instance
            && self.instances.get(&former) == Some(&session)
        {
            self.instances.remove(&former);
        }
        if self.instances.insert(instance, session) == Some(session) {
            return;
        }
        for (gtid, pending) in &mut self.pending {
            for one in pending.awaited.values_mut() {
                if one.open.instance == instance && one.vote.is_none() {
                    ask(&self.instances, *gtid, one, now, effects);
                }
            }
        }
    }

    /// A branch has answered. The first vote counts; its instance repeats the same one.
    pub(crate) fn note_vote(
        &mut self,
        session: SessionId,
        branch: BranchId,
        resource: ResourceId,
        vote: AskedVote,
    ) -> Result<(), Unasked> {
        let pending = self.pending.get_mut(&branch.gtid).ok_or(Unasked)?;
        let key = (branch.call, branch.execution);
        let one = pending.awaited.get_mut(&key).ok_or(Unasked)?;
        let is_its_own = self.sessions.get(&session) == Some(&one.open.instance);
        if !is_its_own || one.open.resource != resource || one.vote.is_some() || pending.is_proposed {
            return Err(Unasked);
        }
        let open = one.open;
        let abort = match &vote.vote {
            Vote::Abort { cause } => Some(cause.clone()),
            Vote::Commit | Vote::ReadOnly => None,
        };
        one.vote = Some(vote);
        if let Some(cause) = abort {
            pending.give_up(AbortKind::VotedAbort, open, cause);
        }
        Ok(())
    }

    /// Asks again what has not answered, and gives up what cannot answer any more. `clock` is what deadlines are compared
    /// with.
    pub(crate) fn on_heartbeat(
        &mut self,
        now: Timestamp,
        clock: UnixMillis,
        effects: &mut Effects<Unsynced>,
    ) {
        for (gtid, pending) in &mut self.pending {
            if pending.is_proposed || pending.abort.is_some() {
                continue;
            }
            let is_late =
                clock >= pending.decide.deadline || now.since(pending.since) >= DEADLINE_MS_MAX * 1000;
            let mut lost = None;
            for one in pending.awaited.values_mut() {
                if one.vote.is_some() {
                    continue;
                }
                if is_late {
                    lost = Some((
                        AbortKind::Deadline,
                        one.open,
                        "the branch had not voted at the deadline",
                    ));
                    break;
                }
                if self.instances.contains_key(&one.open.instance) {
                    one.absent_since = None;
                    if one.asked_at.is_none_or(|at| now.since(at) >= REPEAT_US) {
                        ask(&self.instances, *gtid, one, now, effects);
                    }
                } else if now.since(*one.absent_since.get_or_insert(now)) >= ABSENCE_US {
                    let text = "the instance that holds the open branch is gone";
                    lost = Some((AbortKind::VotedAbort, one.open, text));
                    break;
                }
            }
            if let Some((kind, open, text)) = lost {
                let text = if kind == AbortKind::VotedAbort {
                    format!("{text} ({})", open.instance)
                } else {
                    text.into()
                };
                pending.give_up(kind, open, text);
            }
        }
    }

    /// What is ready to be proposed. Each is returned until [`note_proposed`](Self::note_proposed) says that it is in line.
    pub(crate) fn ready(&self) -> Vec<Decide> {
        self.pending
            .values()
            .filter(|pending| !pending.is_proposed)
            .filter_map(Pending::proposal)
            .collect()
    }

    /// The same, of one transaction.
    pub(crate) fn ready_of(&self, gtid: Gtid) -> Option<Decide> {
        self.pending
            .get(&gtid)
            .filter(|pending| !pending.is_proposed)
            .and_then(Pending::proposal)
    }

    pub(crate) fn note_proposed(&mut self, gtid: Gtid) {
        if let Some(pending) = self.pending.get_mut(&gtid) {
            pending.is_proposed = true;
        }
    }

    /// The log has an outcome: the request is over, whoever proposed what.
    pub(crate) fn take(&mut self, gtid: Gtid) -> Option<Pending> {
        self.pending.remove(&gtid)
    }

    /// T6: the instances of an aborted request are told once, best effort. An open branch elsewhere ends by itself.
    pub(crate) fn tell_abort(&self, pending: &Pending, effects: &mut Effects<Unsynced>) {
        for open in pending.open() {
            if let Some(session) = self.instances.get(&open.instance) {
                let response = Response::Deliver {
                    branch: pending.branch(&open),
                    resource: open.resource,
                    outcome: Outcome::Aborted,
                };
                effects.tell(*session, response);
            }
        }
    }

    /// The session's own questions are dropped, not the requests: they were handed over, and go on (T7).
    pub(crate) fn close_session(&mut self, session: SessionId) {
        if let Some(instance) = self.sessions.remove(&session)
            && self.instances.get(&instance) == Some(&session)
        {
            self.instances.remove(&instance);
        }
        for pending in self.pending.values_mut() {
            pending.waiting.retain(|(waiting, _)| *waiting != session);
        }
    }

    /// Everybody who waits.
    pub(crate) fn take_waiting(&mut self) -> Vec<(SessionId, RequestId)> {
        core::mem::take(&mut self.pending)
            .into_values()
            .flat_map(|pending| pending.waiting)
            .collect()
    }
}

/// Sends Prepare to the branch's instance, if it has a session.
fn ask(
    instances: &BTreeMap<InstanceId, SessionId>,
    gtid: Gtid,
    one: &mut Awaited,
    now: Timestamp,
    effects: &mut Effects<Unsynced>,
) {
    let OpenBranch {
        call,
        execution,
        resource,
        instance,
        token,
        call_count,
    } = one.open;
    let Some(session) = instances.get(&instance) else {
        return;
    };
    one.asked_at = Some(now);
    let response = Response::Prepare {
        branch: BranchId {
            gtid,
            call,
            execution,
        },
        resource,
        token,
        call_count,
    };
    effects.tell(*session, response);
}
