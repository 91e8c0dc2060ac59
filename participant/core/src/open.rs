//! Open branches of one instance: local transactions that several calls share, and that are prepared when the commit is
//! asked for (steps 2 and 3, rule T3).
//!
//! ```text
//!   Working --Prepare, all as the commit says--> Preparing --the store's answer--> Voted
//!      `--a call failed, came twice, or the count differs; idle, late, decided without it--> Voted (to abort)
//! ```
//! Invariants it owns: a call id runs once in a branch (T2); the branch votes to commit only with exactly the calls that
//! their callers counted, all of them ended (T4); after Prepare no call runs in it; every Prepare of it hears the same
//! vote (traps B14: what was once answered stays answered). All of it lives in memory only: a restarted process has
//! another [`InstanceId`], knows no token, and its answer is a vote to abort.

use crate::branch::{Branch, Durable, Voted, Working};
use crate::time::{Now, Timers, Timestamp};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use core::mem;
use core::time::Duration;
use synod_proto::command::clip_text;
use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, InstanceId, OpenToken, ResourceId, UnixMillis};
use synod_proto::limits::CLOCK_SKEW_MS_MAX;
use synod_proto::session::{AskedVote, OpenBranch, Vote};

/// The bounds of an instance's open branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most that are open at a time: each holds locks, and a connection where the store has such.
    pub open_count_max: usize,
    /// The most calls of one branch.
    pub call_count_max: usize,
    /// The most ended ones whose vote is remembered, the latest of them.
    pub ended_count_max: usize,
    /// How long a branch may wait for its next call, or for Prepare, before it is rolled back: its callers are gone.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            open_count_max: 4096,
            call_count_max: 1024,
            ended_count_max: 16_384,
            idle_timeout: Duration::from_secs(10),
        }
    }
}

/// A call that wants to run in the open branch of its transaction on a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The transaction.
    pub gtid: Gtid,
    /// The database.
    pub resource: ResourceId,
    /// The call.
    pub call: CallId,
    /// The transaction's deadline.
    pub deadline: UnixMillis,
    /// Names the branch, if this call opens it; fresh.
    pub execution: ExecutionId,
    /// Names the open local transaction, if this call opens it; fresh randomness.
    pub token: OpenToken,
}

/// A call may run in this branch, when those before it have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The branch, with one call counted: what the call's reply says of it.
    pub open: OpenBranch,
    /// Which call of the branch it is, from 1.
    pub ordinal: u32,
    /// Whether it is the first: the local transaction is to be begun.
    pub is_first: bool,
}

/// Why a call may not run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// The call ran here before: sent twice on its way. The branch was rolled back, because its caller cannot tell which
    /// reply it heard.
    Duplicate,
    /// The branch was asked for its vote: the commit is under way, without this call.
    AfterPrepare,
    /// The branch was rolled back.
    RolledBack {
        /// Why.
        cause: String,
    },
    /// Too many branches are open in this process: back off, then begin a new transaction.
    TooManyOpen,
    /// Too many calls in one branch. It was rolled back.
    TooManyCalls,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate => f.write_str("the call came twice, and its open branch was rolled back"),
            Self::AfterPrepare => f.write_str("its open branch is prepared already: this call came too late"),
            Self::RolledBack { cause } => write!(f, "its open branch was rolled back: {cause}"),
            Self::TooManyOpen => f.write_str("too many branches are open in this process: back off"),
            Self::TooManyCalls => {
                f.write_str("too many calls in one open branch, which was rolled back: split the transaction")
            }
        }
    }
}

impl core::error::Error for Refused {}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Have the store prepare the open local transaction, and say what it answered.
    Prepare {
        /// Which.
        branch: BranchId,
    },
    /// Drop the open local transaction; whatever runs in it is cancelled.
    RollBack {
        /// Which.
        branch: BranchId,
    },
    /// Answer the coordinator.
    Vote {
        /// Which branch.
        branch: BranchId,
        /// In which database.
        resource: ResourceId,
        /// The vote.
        vote: AskedVote,
    },
}

#[derive(Debug)]
enum State {
    /// The open local transaction, and how many of its calls have not ended.
    Working(Branch<Working>, u32),
    Preparing(Branch<Working>),
    Voted(Branch<Voted>),
    /// Between two states; never seen outside one function.
    Moving,
}

#[derive(Debug)]
struct Entry {
    token: OpenToken,
    deadline: UnixMillis,
    calls: BTreeSet<CallId>,
    state: State,
}

/// See the module.
#[derive(Debug)]
pub struct OpenBranches {
    instance: InstanceId,
    limits: Limits,
    entries: BTreeMap<BranchId, Entry>,
    /// The branch that a transaction has on a database here, whatever became of it.
    current: BTreeMap<(Gtid, ResourceId), BranchId>,
    open_count: usize,
    ended: VecDeque<BranchId>,
    timers: Timers<BranchId>,
}

impl OpenBranches {
    /// No branch is open. The instance must be fresh randomness.
    #[must_use]
    pub const fn new(instance: InstanceId, limits: Limits) -> Self {
        Self {
            instance,
            limits,
            entries: BTreeMap::new(),
            current: BTreeMap::new(),
            open_count: 0,
            ended: VecDeque::new(),
            timers: Timers::new(),
        }
    }

    /// This run of this process.
    #[must_use]
    pub const fn instance(&self) -> InstanceId {
        self.instance
    }

    /// How many local transactions are open.
    #[must_use]
    pub const fn open_count(&self) -> usize {
        self.open_count
    }

    /// When to call [`on_time`](Self::on_time), if nothing happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    /// The same for what may happen to one branch.
    #[must_use]
    pub fn next_timeout_of(&self, branch: BranchId) -> Option<Timestamp> {
        self.timers.of(&branch)
    }

    /// Why the branch was rolled back, if it was.
    #[must_use]
    pub fn cause(&self, branch: BranchId) -> Option<String> {
        match &self.entries.get(&branch)?.state {
            State::Voted(voted) => match &voted.vote().vote {
                Vote::Abort { cause } => Some(cause.clone()),
                Vote::Commit | Vote::ReadOnly => None,
            },
            _ => None,
        }
    }

    // ---- calls (step 2) ----

    /// A call arrives. Admitted calls run one after the other, in this order, and each is ended by
    /// [`on_call_ended`](Self::on_call_ended).
    ///
    /// # Errors
    /// See [`Refused`]; the call has not run by this arrival.
    pub fn on_call(
        &mut self,
        now: Now,
        arrival: Arrival,
        effects: &mut Vec<Effect>,
    ) -> Result<Admission, Refused> {
        let Arrival {
            gtid,
            resource,
            call,
            deadline,
            execution,
            token,
        } = arrival;
        let Some(branch) = self.current.get(&(gtid, resource)).copied() else {
            if self.open_count >= self.limits.open_count_max {
                return Err(Refused::TooManyOpen);
            }
            let branch = BranchId {
                gtid,
                call,
                execution,
            };
            let entry = Entry {
                token,
                deadline,
                calls: BTreeSet::from([call]),
                state: State::Working(Branch::new(branch, resource), 1),
            };
            self.entries.insert(branch, entry);
            self.current.insert((gtid, resource), branch);
            self.open_count += 1;
            self.schedule(now, branch);
            return Ok(self.admission(branch, resource, token, 1));
        };
        let Some(entry) = self.entries.get_mut(&branch) else {
            return Err(Refused::TooManyOpen);
        };
        match &mut entry.state {
            State::Working(..) if entry.calls.contains(&call) => {
                self.roll_back(now, branch, "a call of the open branch came twice", effects);
                Err(Refused::Duplicate)
            }
            State::Working(..) if entry.calls.len() >= self.limits.call_count_max => {
                self.roll_back(now, branch, "too many calls in one open branch", effects);
                Err(Refused::TooManyCalls)
            }
            State::Working(_, running_count) => {
                *running_count += 1;
                entry.calls.insert(call);
                let (ordinal, token) = (counted(&entry.calls), entry.token);
                self.schedule(now, branch);
                Ok(self.admission(branch, resource, token, ordinal))
            }
            State::Preparing(_) => Err(Refused::AfterPrepare),
            State::Voted(voted) => Err(match &voted.vote().vote {
                Vote::Abort { cause } => Refused::RolledBack { cause: cause.clone() },
                Vote::Commit | Vote::ReadOnly => Refused::AfterPrepare,
            }),
            State::Moving => unreachable!("no branch is left between two states"),
        }
    }

    /// An admitted call has ended. A failed one has left a part of its work in the local transaction, which is rolled back
    /// as a whole.
    pub fn on_call_ended(
        &mut self,
        now: Now,
        branch: BranchId,
        ended: Result<(), String>,
        effects: &mut Vec<Effect>,
    ) {
        match ended {
            Err(cause) => self.roll_back(now, branch, &cause, effects),
            Ok(()) => {
                if let Some(Entry {
                    state: State::Working(_, running_count),
                    ..
                }) = self.entries.get_mut(&branch)
                {
                    *running_count = running_count.saturating_sub(1);
                    self.schedule(now, branch);
                }
            }
        }
    }

    /// The branch is not to go on: its transaction was decided without it, or its local transaction is lost.
    pub fn give_up(&mut self, now: Now, branch: BranchId, cause: &str, effects: &mut Vec<Effect>) {
        self.roll_back(now, branch, cause, effects);
    }

    // ---- prepare (step 3) ----

    /// The coordinator asks for a branch's vote. Any difference to what the commit says is a vote to abort (T3).
    pub fn on_prepare(
        &mut self,
        now: Now,
        branch: BranchId,
        resource: ResourceId,
        (token, call_count): (OpenToken, u32),
        effects: &mut Vec<Effect>,
    ) {
        let refuse = |cause: &str, effects: &mut Vec<Effect>| {
            let voted = Branch::new(branch, resource).rolled_back(cause);
            effects.push(vote_of(&voted));
        };
        let Some(entry) = self.entries.get_mut(&branch) else {
            return refuse("this instance knows no such open branch", effects);
        };
        let is_other = match &entry.state {
            State::Working(known, _) | State::Preparing(known) => known.resource() != resource,
            State::Voted(known) => known.resource() != resource,
            State::Moving => true,
        };
        // Not this branch's matter: it goes on.
        if entry.token != token || is_other {
            return refuse("the open branch is another one than the commit names", effects);
        }
        let difference = match &entry.state {
            State::Working(_, 0) if counted(&entry.calls) == call_count => None,
            State::Working(_, 0) => Some(format!(
                "{} calls ran in the open branch, and the commit counts {call_count}",
                entry.calls.len()
            )),
            State::Working(_, running_count) => Some(format!(
                "{running_count} calls of the open branch had not ended when it was to be prepared"
            )),
            // Its vote is on the way.
            State::Preparing(_) => return,
            State::Voted(voted) => return effects.push(vote_of(voted)),
            State::Moving => return,
        };
        if let Some(difference) = difference {
            self.roll_back(now, branch, &difference, effects);
        } else if now.wall >= entry.deadline {
            let cause = "the deadline passed before the open branch was prepared";
            self.roll_back(now, branch, cause, effects);
        } else {
            if let State::Working(working, _) = mem::replace(&mut entry.state, State::Moving) {
                entry.state = State::Preparing(working);
            }
            self.timers.cancel(branch);
            return effects.push(Effect::Prepare { branch });
        }
        if let Some(Entry {
            state: State::Voted(voted),
            ..
        }) = self.entries.get(&branch)
        {
            effects.push(vote_of(voted));
        }
    }

    /// The store's answer to [`Effect::Prepare`], after its sync (C1); or why it refused and rolled back.
    pub fn on_prepared(
        &mut self,
        now: Now,
        branch: BranchId,
        answer: Result<(Durable, u64, Bytes), String>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.entries.get_mut(&branch) else {
            return;
        };
        match mem::replace(&mut entry.state, State::Moving) {
            State::Preparing(working) => {
                let voted = match answer {
                    Ok((durable, digest, database_transaction)) => {
                        working.prepared(durable, digest, database_transaction)
                    }
                    Err(cause) => working.rolled_back(cause),
                };
                effects.push(vote_of(&voted));
                entry.state = State::Voted(voted);
                self.note_ended(now, branch);
            }
            other => entry.state = other,
        }
    }

    // ---- time ----

    /// Rolls back what was left idle or is past its deadline, and forgets old votes.
    pub fn on_time(&mut self, now: Now, effects: &mut Vec<Effect>) {
        while let Some(branch) = self.timers.pop_due(now.monotonic) {
            let Some(entry) = self.entries.get(&branch) else {
                continue;
            };
            match &entry.state {
                State::Working(..) if now.wall >= entry.deadline => {
                    self.roll_back(now, branch, "the deadline passed before the commit", effects);
                }
                State::Working(_, 0) => {
                    let cause = "no call and no commit came for too long";
                    self.roll_back(now, branch, cause, effects);
                }
                State::Working(..) => self.schedule(now, branch),
                State::Voted(_) => self.forget(branch),
                State::Preparing(_) | State::Moving => {}
            }
        }
    }

    // ---- helpers ----

    fn admission(&self, branch: BranchId, resource: ResourceId, token: OpenToken, ordinal: u32) -> Admission {
        Admission {
            open: OpenBranch {
                call: branch.call,
                execution: branch.execution,
                resource,
                instance: self.instance,
                token,
                call_count: 1,
            },
            ordinal,
            is_first: ordinal == 1,
        }
    }

    /// A working branch ends by itself at its deadline, and before that when nothing comes for long.
    fn schedule(&mut self, now: Now, branch: BranchId) {
        let Some(entry) = self.entries.get(&branch) else {
            return;
        };
        let until_deadline = Duration::from_millis(entry.deadline.0.saturating_sub(now.wall.0));
        let delay = match entry.state {
            State::Working(_, 0) => until_deadline.min(self.limits.idle_timeout),
            _ => until_deadline,
        };
        self.timers.set(
            branch,
            now.monotonic.plus_duration(delay.max(Duration::from_millis(1))),
        );
    }

    fn roll_back(&mut self, now: Now, branch: BranchId, cause: &str, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(&branch) else {
            return;
        };
        match mem::replace(&mut entry.state, State::Moving) {
            State::Working(working, _) => {
                entry.state = State::Voted(working.rolled_back(clip_text(cause.to_string())));
                effects.push(Effect::RollBack { branch });
                self.note_ended(now, branch);
            }
            // The store is preparing it: its answer is the vote. Or it has voted, and waits (T8).
            other => entry.state = other,
        }
    }

    /// The branch has voted. The vote is remembered until no leader asks for it any more: past the deadline it proposes
    /// to abort.
    fn note_ended(&mut self, now: Now, branch: BranchId) {
        self.open_count -= 1;
        if let Some(entry) = self.entries.get(&branch) {
            let until = entry
                .deadline
                .plus(CLOCK_SKEW_MS_MAX)
                .0
                .saturating_sub(now.wall.0);
            let at = now.monotonic.plus_duration(Duration::from_millis(until));
            self.timers.set(branch, at);
        }
        self.ended.push_back(branch);
        while self.ended.len() > self.limits.ended_count_max {
            if let Some(oldest) = self.ended.pop_front() {
                self.forget(oldest);
            }
        }
    }

    fn forget(&mut self, branch: BranchId) {
        self.timers.cancel(branch);
        if let Some(Entry {
            state: State::Voted(voted),
            ..
        }) = self.entries.remove(&branch)
        {
            let key = (branch.gtid, voted.resource());
            self.current.remove(&key);
        }
        // In the order of their ends, which is nearly that of their deadlines.
        if self.ended.front() == Some(&branch) {
            self.ended.pop_front();
        } else {
            self.ended.retain(|ended| *ended != branch);
        }
    }
}

fn counted(calls: &BTreeSet<CallId>) -> u32 {
    u32::try_from(calls.len()).unwrap_or(u32::MAX)
}

fn vote_of(voted: &Branch<Voted>) -> Effect {
    let vote = voted.vote();
    Effect::Vote {
        branch: voted.id(),
        resource: voted.resource(),
        vote: AskedVote {
            vote: vote.vote.clone(),
            digest: vote.digest,
            database_transaction: vote.database_transaction.clone(),
        },
    }
}

#[cfg(test)]
mod tests;
