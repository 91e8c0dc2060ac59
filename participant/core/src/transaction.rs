//! The ledger of one global transaction, as its initiator or one nested caller keeps it (steps 1, 2 and 4).
//!
//! It answers: which calls were made, what did each vote, may this transaction commit, and what exactly does the commit
//! name. Invariants it owns: one execution per call is named (T2); no commit while a call is unanswered or has failed
//! (T4); the commit names every branch, sorted, once (T5); after the hand-over there is no way back (T7).
//!
//! A server that runs nested calls keeps a ledger of its own and hands it up with [`Ledger::reply`]; the caller's ledger
//! takes the whole with [`Ledger::on_reply`]. Only the root's ledger is handed over.
//!
//! ```text
//!   Open --hand_over--> HandedOver --on_decision--> Decided
//!     |  <--take_back--    (nothing was sent, or every send was refused)
//!     `--propose_abort / on_drop--> AbortProposed --on_decision--> Decided
//! ```

mod vocabulary;

pub use vocabulary::{
    BranchVote, CALL_COUNT_MAX, CallRefused, Commit, CommitRefused, CommitSet, Doom, Ignored, OpenCalls,
    Reply, State,
};

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use synod_proto::command::{Decide, NamedBranch, Proposal, clip_text};
use synod_proto::ids::{CallId, ExecutionId, Gtid, Lineage, UnixMillis};
use synod_proto::limits::BRANCH_COUNT_MAX;
use synod_proto::planted;
use synod_proto::random::Random;
use synod_proto::session::{AbortCause, AbortKind, Decision, OpenBranch, Vote};

#[derive(Clone, Debug, Hash)]
enum Call {
    Unanswered,
    Answered(Reply),
    Failed(AbortCause),
    /// Keeps what is known to be prepared, so that an abort can tell it at once.
    Discarded(Vec<NamedBranch>),
}

/// See the module.
#[derive(Clone, Debug, Hash)]
pub struct Ledger {
    lineage: Lineage,
    gtid: Gtid,
    deadline: UnixMillis,
    random: Random,
    calls: BTreeMap<CallId, Call>,
    state: State,
}

impl Ledger {
    /// The empty ledger of a transaction that begins here, or that a call has brought here. The seed must be fresh
    /// randomness: call ids are drawn from it, and two callers of one transaction must not draw the same.
    #[must_use]
    pub const fn new(lineage: Lineage, gtid: Gtid, deadline: UnixMillis, seed: u64) -> Self {
        Self {
            lineage,
            gtid,
            deadline,
            random: Random::new(seed),
            calls: BTreeMap::new(),
            state: State::Open,
        }
    }

    /// The transaction.
    #[must_use]
    pub const fn gtid(&self) -> Gtid {
        self.gtid
    }

    /// The coordinator that the transaction belongs to.
    #[must_use]
    pub const fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// The transaction's deadline.
    #[must_use]
    pub const fn deadline(&self) -> UnixMillis {
        self.deadline
    }

    /// Where it stands.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    // ---- step 2: calls and votes ----

    /// Opens a call: from now on it must be answered for (T4). A branch of the caller's own is a call as well.
    ///
    /// # Errors
    /// See [`CallRefused`]; nothing was opened.
    pub fn call(&mut self) -> Result<CallId, CallRefused> {
        if self.state != State::Open {
            return Err(CallRefused::Closed);
        }
        if self.calls.len() >= CALL_COUNT_MAX {
            return Err(CallRefused::TooManyCalls);
        }
        let call = loop {
            let call = CallId(self.random.next_u64());
            if !self.calls.contains_key(&call) {
                break call;
            }
        };
        self.calls.insert(call, Call::Unanswered);
        Ok(call)
    }

    /// A call's reply has arrived, of success or of failure: what counts is what it says of the transaction. The first
    /// answer of a call is its answer (T2).
    ///
    /// # Errors
    /// See [`Ignored`]; nothing changed.
    pub fn on_reply(&mut self, call: CallId, reply: Reply) -> Result<(), Ignored> {
        let entry = self.answerable(call)?;
        match entry {
            Call::Unanswered => {}
            Call::Answered(first) if first.execution == reply.execution => return Err(Ignored::SameReply),
            Call::Answered(_) => return Err(Ignored::OtherExecution),
            Call::Failed(_) => return Err(Ignored::AfterFailure),
            Call::Discarded(_) => return Err(Ignored::Discarded),
        }
        *entry = Call::Answered(normalised(reply));
        Ok(())
    }

    /// A call has no usable answer: transport error, timeout, a dropped future, a reply without votes. Its branch may or
    /// may not have prepared; it will never be named (C2: this is "unknown", so the transaction is doomed and not decided).
    ///
    /// # Errors
    /// See [`Ignored`]; nothing changed.
    pub fn on_failure(&mut self, call: CallId, text: impl Into<String>) -> Result<(), Ignored> {
        let entry = self.answerable(call)?;
        match entry {
            Call::Unanswered => {}
            Call::Answered(_) => return Err(Ignored::SameReply),
            Call::Failed(_) => return Err(Ignored::AfterFailure),
            Call::Discarded(_) => return Err(Ignored::Discarded),
        }
        *entry = Call::Failed(AbortCause::new(AbortKind::Doomed, text));
        Ok(())
    }

    /// The caller sees a call fail, and its reply carries votes all the same. They are kept: they say who voted to abort,
    /// and whom to tell. If they do not doom the transaction, the failure does (T4).
    ///
    /// # Errors
    /// See [`Ignored`]; nothing changed.
    pub fn on_failed_reply(
        &mut self,
        call: CallId,
        mut reply: Reply,
        text: impl Into<String>,
    ) -> Result<(), Ignored> {
        let has_abort = reply
            .votes
            .iter()
            .any(|vote| matches!(vote.vote, Vote::Abort { .. }));
        if reply.dooms.is_empty() && !has_abort {
            let cause = AbortCause::new(AbortKind::Doomed, text);
            reply.dooms.push(Doom { call, cause });
        }
        self.on_reply(call, reply)
    }

    /// The user takes a call out of the transaction by name: none of its branches will be named, whatever they voted,
    /// and it dooms nothing. Also takes away the doom that a nested call's failure has brought up.
    ///
    /// # Errors
    /// See [`Ignored`]; nothing changed.
    pub fn discard(&mut self, call: CallId) -> Result<(), Ignored> {
        if self.state != State::Open {
            return Err(Ignored::Closed);
        }
        if let Some(entry) = self.calls.get_mut(&call) {
            let prepared = match entry {
                Call::Answered(reply) => prepared_of(reply).collect(),
                Call::Unanswered | Call::Failed(_) => Vec::new(),
                Call::Discarded(_) => return Err(Ignored::Discarded),
            };
            *entry = Call::Discarded(prepared);
            return Ok(());
        }
        let mut is_known = false;
        for entry in self.calls.values_mut() {
            if let Call::Answered(reply) = entry {
                let before = reply.dooms.len();
                reply.dooms.retain(|doom| doom.call != call);
                is_known |= reply.dooms.len() != before;
            }
        }
        if is_known {
            Ok(())
        } else {
            Err(Ignored::UnknownCall)
        }
    }

    /// What keeps the transaction from committing: the first failed, aborting or unanswered call, in the order of calls.
    #[must_use]
    pub fn doom(&self) -> Option<Doom> {
        self.calls.iter().find_map(|(call, entry)| doom_of(*call, entry))
    }

    /// The nested ledger, to be handed up in the reply of the execution that made these calls. `own` is the vote of the
    /// execution's own branch, if it ran one. An unanswered call is reported as doomed: the caller above cannot wait for it.
    #[must_use]
    pub fn reply(&self, execution: ExecutionId, own: Option<BranchVote>) -> Reply {
        let mut reply = Reply {
            execution,
            votes: own.into_iter().collect(),
            dooms: Vec::new(),
            open: Vec::new(),
            unnamed: Vec::new(),
        };
        for (call, entry) in &self.calls {
            match entry {
                Call::Unanswered => reply.dooms.push(Doom {
                    call: *call,
                    cause: unanswered(),
                }),
                Call::Failed(cause) => reply.dooms.push(Doom {
                    call: *call,
                    cause: cause.clone(),
                }),
                Call::Discarded(prepared) => reply.unnamed.extend(prepared.iter().cloned()),
                Call::Answered(below) if below.dooms.is_empty() => {
                    reply.votes.extend(below.votes.iter().cloned());
                    below.open.iter().for_each(|calls| reply.add_open(*calls));
                    reply.unnamed.extend(below.unnamed.iter().cloned());
                }
                // If somebody above discards the failed call by name, what voted beneath it must not be named either.
                Call::Answered(below) => {
                    reply.dooms.extend(below.dooms.iter().cloned());
                    reply.unnamed.extend(prepared_of(below));
                }
            }
        }
        reply
    }

    // ---- step 4: the outcome ----

    /// The Commit request, ready for the transport; from here on only the log says what became of the transaction (T7).
    ///
    /// # Errors
    /// See [`CommitRefused`]; nothing changed, and the transaction is still open if it was.
    pub fn hand_over(&mut self) -> Result<Commit, CommitRefused> {
        let CommitSet {
            branches,
            read_only_count,
            open,
        } = self.commit_set()?;
        self.state = State::HandedOver;
        let decide = self.decide(Proposal::Commit {
            branches,
            read_only_count,
        });
        Ok(Commit { decide, open })
    }

    /// The Commit request never reached the transport, or every send of it was refused: the transaction is open again.
    /// After any other end of the request this would be a lie, and the caller must not call it.
    pub fn take_back(&mut self) {
        if self.state == State::HandedOver {
            self.state = State::Open;
        }
    }

    /// The Commit request came back undone, see [`take_back`](Self::take_back), and the caller has given its last word on the
    /// transaction with it: aborts.
    pub fn on_undone(&mut self) -> Option<Decide> {
        self.take_back();
        self.on_drop()
    }

    /// A proposal to abort, naming every branch known to have prepared so that it is told at once. After a hand-over it
    /// is a proposal like any other and the state stays: the log says which came first (T7).
    pub fn propose_abort(&mut self, cause: AbortCause) -> Decide {
        if self.state == State::Open {
            self.state = State::AbortProposed;
        }
        let branches = self.known_prepared();
        self.decide(Proposal::Abort { cause, branches })
    }

    /// The user let go of the transaction. Aborts it, if it is open and any call was made (T7).
    pub fn on_drop(&mut self) -> Option<Decide> {
        if self.state != State::Open || self.calls.is_empty() {
            return None;
        }
        let cause = match self.doom() {
            Some(Doom { cause, .. }) => cause,
            None => AbortCause::new(AbortKind::Dropped, "dropped without commit"),
        };
        Some(self.propose_abort(cause))
    }

    /// The log has said. A decision is never replaced by another (B6).
    ///
    /// # Errors
    /// [`Ignored::Closed`] if another decision was recorded before; the first one stands.
    pub fn on_decision(&mut self, decision: Decision) -> Result<(), Ignored> {
        match &self.state {
            State::Decided(first) if *first != decision => Err(Ignored::Closed),
            _ => {
                self.state = State::Decided(decision);
                Ok(())
            }
        }
    }

    /// What a commit would name.
    ///
    /// # Errors
    /// See [`CommitRefused`].
    pub fn commit_set(&self) -> Result<CommitSet, CommitRefused> {
        if self.state != State::Open {
            return Err(CommitRefused::Closed);
        }
        if let Some((call, _)) = self
            .calls
            .iter()
            .find(|(_, entry)| matches!(entry, Call::Unanswered) && !planted!(CommitWithCallUnanswered))
        {
            return Err(CommitRefused::Unanswered { call: *call });
        }
        if let Some(doom) = self.doom() {
            return Err(CommitRefused::Doomed(doom));
        }
        let mut named: BTreeMap<CallId, &BranchVote> = BTreeMap::new();
        let mut open: Vec<OpenCalls> = Vec::new();
        for (call, entry) in &self.calls {
            let Call::Answered(reply) = entry else { continue };
            for calls in &reply.open {
                let opened = calls.branch;
                if opened.call == *call && opened.execution != reply.execution {
                    return Err(CommitRefused::Contradiction { call: opened.call });
                }
                add_calls(&mut open, calls);
            }
            for vote in &reply.votes {
                // T2: a reply speaks for one execution of its call, and a call id is never used twice.
                let is_foreign = vote.call == *call && vote.execution != reply.execution;
                let is_other = named.insert(vote.call, vote).is_some_and(|first| first != vote);
                if is_foreign || is_other {
                    return Err(CommitRefused::Contradiction { call: vote.call });
                }
            }
        }
        let branches: Vec<NamedBranch> = named
            .values()
            .filter(|vote| vote.vote == Vote::Commit)
            .map(|vote| vote.named())
            .collect();
        let read_only_count = named.len() - branches.len();
        if named.is_empty() && open.is_empty() {
            return Err(CommitRefused::Empty);
        }
        let count = branches.len() + open.len();
        if count > BRANCH_COUNT_MAX {
            return Err(CommitRefused::TooManyBranches { count });
        }
        open.sort_by_key(|calls| (calls.branch.call, calls.branch.execution));
        for (index, calls) in open.iter().enumerate() {
            let OpenBranch { call, call_count, .. } = calls.branch;
            // One call is one branch, of one kind, in one place.
            let is_twice = index > 0 && open[index - 1].branch.call == call;
            if is_twice || named.contains_key(&call) {
                return Err(CommitRefused::Contradiction { call });
            }
            if calls.count_seen > call_count {
                return Err(CommitRefused::CallCount {
                    call,
                    counted: call_count,
                    seen: calls.count_seen,
                });
            }
        }
        Ok(CommitSet {
            branches,
            read_only_count: u32::try_from(read_only_count).unwrap_or(u32::MAX),
            open: open.into_iter().map(|calls| calls.branch).collect(),
        })
    }

    // ---- helpers ----

    fn answerable(&mut self, call: CallId) -> Result<&mut Call, Ignored> {
        if self.state != State::Open {
            return Err(Ignored::Closed);
        }
        self.calls.get_mut(&call).ok_or(Ignored::UnknownCall)
    }

    fn decide(&self, proposal: Proposal) -> Decide {
        let Self {
            lineage,
            gtid,
            deadline,
            ..
        } = *self;
        Decide {
            lineage,
            gtid,
            deadline,
            proposal,
            guards: Vec::new(),
        }
    }

    /// Every branch that may hold locks, in order, each once, as many as a record may name.
    fn known_prepared(&self) -> Vec<NamedBranch> {
        let mut known: BTreeMap<(CallId, ExecutionId), NamedBranch> = BTreeMap::new();
        let mut add = |branch: NamedBranch| {
            known.insert((branch.call, branch.execution), branch);
        };
        for entry in self.calls.values() {
            match entry {
                Call::Answered(reply) => prepared_of(reply).for_each(&mut add),
                Call::Discarded(prepared) => prepared.iter().cloned().for_each(&mut add),
                Call::Unanswered | Call::Failed(_) => {}
            }
        }
        known.into_values().take(BRANCH_COUNT_MAX).collect()
    }
}

impl Reply {
    /// Counts these calls on an open branch together with those that it tells already.
    pub fn add_open(&mut self, calls: OpenCalls) {
        add_calls(&mut self.open, &calls);
    }
}

fn unanswered() -> AbortCause {
    AbortCause::new(AbortKind::Doomed, "the call was left unanswered")
}

fn prepared_of(reply: &Reply) -> impl Iterator<Item = NamedBranch> + '_ {
    let voted = reply
        .votes
        .iter()
        .filter(|vote| vote.vote == Vote::Commit)
        .map(BranchVote::named);
    let open = reply.open.iter().map(OpenCalls::named);
    voted.chain(open).chain(reply.unnamed.iter().cloned())
}

/// Counts calls on an open branch together with those known before.
fn add_calls(all: &mut Vec<OpenCalls>, calls: &OpenCalls) {
    if let Some(known) = all.iter_mut().find(|known| known.is_same(calls)) {
        let sum = known.branch.call_count.saturating_add(calls.branch.call_count);
        known.branch.call_count = sum;
        known.count_seen = known.count_seen.max(calls.count_seen);
    } else {
        all.push(*calls);
    }
}

fn doom_of(call: CallId, entry: &Call) -> Option<Doom> {
    match entry {
        Call::Discarded(_) => None,
        Call::Unanswered if planted!(CommitWithCallUnanswered) => None,
        Call::Unanswered => Some(Doom {
            call,
            cause: unanswered(),
        }),
        Call::Failed(cause) => Some(Doom {
            call,
            cause: cause.clone(),
        }),
        Call::Answered(reply) => reply.dooms.first().cloned(),
    }
}

/// A vote to abort dooms like a failed call, and is discarded like one.
fn normalised(mut reply: Reply) -> Reply {
    let (votes, aborts): (Vec<_>, Vec<_>) = reply
        .votes
        .into_iter()
        .partition(|vote| matches!(vote.vote, Vote::Commit | Vote::ReadOnly));
    let mut dooms: Vec<Doom> = aborts.into_iter().map(doom_of_vote).collect();
    dooms.append(&mut reply.dooms);
    Reply {
        votes,
        dooms,
        ..reply
    }
}

fn doom_of_vote(vote: BranchVote) -> Doom {
    let text = match vote.vote {
        Vote::Abort { cause } => clip_text(cause),
        Vote::Commit | Vote::ReadOnly => String::new(),
    };
    let branch = Some((vote.call, vote.execution));
    Doom {
        call: vote.call,
        cause: AbortCause {
            kind: AbortKind::VotedAbort,
            branch,
            text,
        },
    }
}

#[cfg(test)]
mod tests;
