//! What a step asks the world to do, and the gate between what may leave at once and what must wait (L2).
//!
//! | lane | holds | leaves |
//! |---|---|---|
//! | [`early`](Effects::take_early) | requests that promise nothing: `Accept`, `Prepare`, `Heartbeat`, ... | at once |
//! | gated | `Promise`, `Accepted` (to peers and to itself, for counting), `HelloAnswer` | after the sync of this step's records, and of all before |
//! | told | answers and deliveries to sessions | they are made by applying decided slots, that is after a quorum's sync |
//! | fetches | reads of the log for lagging peers | with the gated lane: what left memory may not be on disk yet |
//!
//! `Effects<Unsynced>` has no way to reach the gated lane. [`GroupCommit`] turns it into `Effects<Synced>` when the
//! driver reports the sync, and merges the effects of the steps that arrive meanwhile into the next write: that is the
//! group commit.
//!
//! The one way through, and only after [`GroupCommit::on_synced`] where there is something to write:
//!
//! ```
//! use synod_coordinator_core::effects::{Effects, GroupCommit, Synced, Unsynced};
//! use synod_coordinator_core::paxos::Envelope;
//!
//! fn send_all(group: &mut GroupCommit, effects: Effects<Unsynced>) -> Vec<Envelope> {
//!     let free: Option<Effects<Synced>> = group.push(effects);
//!     free.into_iter().flat_map(Effects::into_gated).collect()
//! }
//! ```
//!
//! What does not compile: to take the gated messages or the fetches before the sync, to look into the lane, to call
//! unsynced effects synced, to make synced ones out of parts.
//!
//! ```compile_fail,E0599
//! # use synod_coordinator_core::effects::{Effects, Unsynced};
//! fn leak(effects: Effects<Unsynced>) {
//!     drop(effects.into_gated());
//! }
//! ```
//! ```compile_fail,E0599
//! # use synod_coordinator_core::effects::{Effects, Unsynced};
//! fn leak(mut effects: Effects<Unsynced>) {
//!     drop(effects.take_fetches());
//! }
//! ```
//! ```compile_fail,E0616
//! # use synod_coordinator_core::effects::{Effects, Unsynced};
//! fn leak(effects: Effects<Unsynced>) {
//!     drop(effects.gated);
//! }
//! ```
//! ```compile_fail,E0624
//! # use synod_coordinator_core::effects::{Effects, Unsynced};
//! fn leak(effects: Effects<Unsynced>) {
//!     drop(effects.into_synced());
//! }
//! ```
//! ```compile_fail,E0308
//! # use synod_coordinator_core::effects::{Effects, Synced, Unsynced};
//! fn leak(effects: Effects<Unsynced>) -> Effects<Synced> {
//!     effects
//! }
//! ```
//! ```compile_fail
//! # use synod_coordinator_core::effects::{Effects, Synced, Unsynced};
//! fn leak(effects: Effects<Unsynced>) -> Effects<Synced> {
//!     Effects { ..effects }
//! }
//! ```

use crate::durable::Batch;
use crate::paxos::{Envelope, Slot};
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;
use synod_proto::ids::{ProcessNonce, ReplicaId, SessionId};
use synod_proto::planted;
use synod_proto::session::Response;

/// Which steps of which process effects come from. What a step leaves may rest on what the steps before it write, so all of
/// them must go through one gate, in order; this is how the gate notices that one did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepId {
    pub(crate) replica: ReplicaId,
    pub(crate) process: ProcessNonce,
    /// Counts the process's steps, from 1.
    pub(crate) number: u64,
}

/// Something rests on a write that is not known to be on disk.
#[derive(Clone, Debug)]
pub enum Unsynced {}

/// Everything it rests on is on disk.
#[derive(Clone, Debug)]
pub enum Synced {}

/// A message to a session. Made only from applied state or as a refusal that promises nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The session.
    pub session: SessionId,
    /// The message.
    pub response: Response,
}

/// "Read these decided slots from the log and send them to this peer, as `Decided`." The values no longer lie in
/// memory. The driver answers with [`Input::Fetched`](crate::replica::Input::Fetched).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fetch {
    /// For whom; this replica itself, to apply them after a restart.
    pub to: ReplicaId,
    /// The first slot.
    pub first: Slot,
    /// The last slot, inclusive.
    pub up_to: Slot,
}

/// Something worth a line in the trace. Decides nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// This replica leads and serves.
    Leading(crate::paxos::Ballot),
    /// It no longer leads.
    SteppedDown {
        /// Why.
        reason: &'static str,
    },
    /// It follows this leader.
    Following(ReplicaId),
    /// Its directory was compared with what a majority knows (L10).
    Admitted,
    /// Its directory contradicts what a peer knows: it learns, and neither promises nor accepts (L10).
    NotAdmitted {
        /// What the peer says.
        contradiction: alloc::string::String,
    },
    /// A peer's directory contradicts what this replica knows of it, and it was told so (L10). Here as well, since of two
    /// processes under one number only the one at the peer's address hears the answer.
    PeerContradicted {
        /// The contradiction.
        contradiction: alloc::string::String,
    },
    /// An entry that this program cannot read was decided: the replica stops applying and must be upgraded (A8).
    CannotApply {
        /// Where.
        slot: Slot,
        /// Why.
        text: alloc::string::String,
    },
    /// A peer sent a second value for a slot and ballot, or for a decided slot in a later ballot: its disk or its
    /// program is broken. Nothing was accepted.
    Conflict {
        /// The peer.
        from: ReplicaId,
        /// Where.
        slot: Slot,
        /// In which ballot.
        ballot: crate::paxos::Ballot,
    },
    /// A participant reported a hazard.
    Hazard {
        /// The branch.
        branch: synod_proto::ids::BranchId,
        /// What it found.
        text: alloc::string::String,
    },
}

/// What one step, or several merged ones, ask for.
#[derive(Clone, Debug)]
#[must_use]
pub struct Effects<S> {
    /// `None`: made by no step, and empty.
    step: Option<StepId>,
    batch: Option<Batch>,
    early: Vec<Envelope>,
    gated: Vec<Envelope>,
    told: Vec<Told>,
    ended: Vec<SessionId>,
    fetches: Vec<Fetch>,
    notices: Vec<Notice>,
    state: PhantomData<S>,
}

impl<S> Default for Effects<S> {
    fn default() -> Self {
        Self {
            step: None,
            batch: None,
            early: Vec::new(),
            gated: Vec::new(),
            told: Vec::new(),
            ended: Vec::new(),
            fetches: Vec::new(),
            notices: Vec::new(),
            state: PhantomData,
        }
    }
}

/// For checkers: what waits for a sync. The other lanes have been taken by then. A message that waits twice is one that
/// the network repeats, so it counts once.
impl<S> Hash for Effects<S> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for (index, envelope) in self.gated.iter().enumerate() {
            if !self.gated[..index].contains(envelope) {
                envelope.hash(state);
            }
        }
        (&self.batch, &self.fetches).hash(state);
    }
}

impl<S> Effects<S> {
    /// Messages that promise nothing and may leave before any sync.
    pub fn take_early(&mut self) -> Vec<Envelope> {
        core::mem::take(&mut self.early)
    }

    /// Answers and deliveries, in order. They follow from decided slots and wait for no write of this replica.
    pub fn take_told(&mut self) -> Vec<Told> {
        core::mem::take(&mut self.told)
    }

    /// Sessions to end, after what they were told: this replica no longer leads, and they belong at another.
    pub fn take_ended(&mut self) -> Vec<SessionId> {
        core::mem::take(&mut self.ended)
    }

    /// Lines for the trace.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        core::mem::take(&mut self.notices)
    }
}

impl Effects<Unsynced> {
    /// `told` is empty: it gives its room.
    pub(crate) fn of_step(step: StepId, told: Vec<Told>) -> Self {
        Self {
            step: Some(step),
            told,
            ..Self::default()
        }
    }

    pub(crate) fn write(&mut self, batch: Batch) {
        match &mut self.batch {
            None => self.batch = Some(batch),
            Some(earlier) => {
                earlier.meta = batch.meta;
                earlier.accepted.extend(batch.accepted);
            }
        }
    }

    pub(crate) fn send_early(&mut self, envelope: Envelope) {
        self.early.push(envelope);
    }

    pub(crate) fn send_gated(&mut self, envelope: Envelope) {
        self.gated.push(envelope);
    }

    /// L9: no write will ever end for what waits here.
    pub(crate) fn drop_gated(&mut self) {
        self.gated.clear();
        self.fetches.clear();
    }

    pub(crate) fn tell(&mut self, session: SessionId, response: Response) {
        self.told.push(Told { session, response });
    }

    pub(crate) fn end(&mut self, session: SessionId) {
        self.ended.push(session);
    }

    pub(crate) fn fetch(&mut self, fetch: Fetch) {
        self.fetches.push(fetch);
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.notices.push(notice);
    }

    /// Adds what a later step asks for.
    fn merge(&mut self, later: Self) {
        if let Some(batch) = later.batch {
            self.write(batch);
        }
        self.early.extend(later.early);
        self.gated.extend(later.gated);
        self.told.extend(later.told);
        self.ended.extend(later.ended);
        self.fetches.extend(later.fetches);
        self.notices.extend(later.notices);
    }

    /// What must be written before the gated messages may leave.
    #[must_use]
    pub fn batch(&self) -> Option<&Batch> {
        self.batch.as_ref()
    }

    #[cfg(test)]
    pub(crate) fn pretend_process(&mut self, process: ProcessNonce) {
        if let Some(step) = &mut self.step {
            step.process = process;
        }
    }

    fn is_gated(&self) -> bool {
        self.batch.is_some() || !self.gated.is_empty() || !self.fetches.is_empty()
    }

    fn into_synced(self) -> Effects<Synced> {
        Effects {
            step: self.step,
            batch: None,
            early: self.early,
            gated: self.gated,
            told: self.told,
            ended: self.ended,
            fetches: self.fetches,
            notices: self.notices,
            state: PhantomData,
        }
    }
}

impl Effects<Synced> {
    /// Reads that the driver does for the core. They wait for the sync as well: until then the log may hold an older
    /// record of a slot, of a ballot that lost, and it would be sent as decided.
    pub fn take_fetches(&mut self) -> Vec<Fetch> {
        core::mem::take(&mut self.fetches)
    }

    /// The messages that waited for the sync: to peers, and to this replica itself (feed those back into `step`).
    #[must_use]
    pub fn into_gated(self) -> Vec<Envelope> {
        self.gated
    }
}

/// Puts steps' effects in line for the disk: at most one write is under way, and all that arrives meanwhile forms the
/// next one.
///
/// The driver's loop: [`push`](Self::push) the effects of every step (after taking the free lanes), start a write with
/// [`next_write`](Self::next_write) whenever none is under way, and report it with [`on_synced`](Self::on_synced).
/// Every process of a replica has one, and it takes the effects of every step: those without a batch rest on the batches
/// before them, and this is what knows of them. Steps are numbered, and [`push`](Self::push) refuses to go on when one is
/// missing: with a second `GroupCommit` beside this one, either of them misses steps, whichever way they are shared out.
/// A failed write is never reported: the driver calls [`Input::WriteFailed`](crate::replica::Input::WriteFailed), and
/// what waited here is dropped for ever (L9).
#[derive(Clone, Debug, Default)]
pub struct GroupCommit {
    under_way: Option<Effects<Unsynced>>,
    waiting: Option<Effects<Unsynced>>,
    pushed_up_to: Option<StepId>,
}

/// For checkers: what waits. The count of steps is no state of the protocol.
impl Hash for GroupCommit {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            under_way,
            waiting,
            pushed_up_to: _,
        } = self;
        (under_way, waiting).hash(state);
    }
}

impl GroupCommit {
    /// Takes a step's effects. Returns them as synced at once if they rest on no write.
    ///
    /// # Panics
    /// They are not those of the step after the last one pushed, or of the process's first: what they rest on went elsewhere,
    /// and nobody could say whether it is on disk (L2). A bug in the driver.
    pub fn push(&mut self, mut effects: Effects<Unsynced>) -> Option<Effects<Synced>> {
        if let Some(step) = effects.step {
            let expected = self.pushed_up_to.map_or(1, |last| last.number + 1);
            assert!(
                step.number == expected
                    && self
                        .pushed_up_to
                        .is_none_or(|last| (last.replica, last.process) == (step.replica, step.process)),
                "the effects of all steps of one process go through one gate, in order: {step:?} came after {:?}",
                self.pushed_up_to
            );
            self.pushed_up_to = Some(step);
        }
        if !effects.is_gated() {
            return Some(effects.into_synced());
        }
        if self.under_way.is_none() && self.waiting.is_none() && effects.batch.is_none() {
            return Some(effects.into_synced());
        }
        let early = planted!(ReplyBeforeSync).then(|| Effects {
            gated: core::mem::take(&mut effects.gated),
            ..Effects::default()
        });
        match &mut self.waiting {
            None => self.waiting = Some(effects),
            Some(waiting) => waiting.merge(effects),
        }
        early
    }

    /// The next batch to write and sync, if none is under way and there is one.
    pub fn next_write(&mut self) -> Option<Batch> {
        if self.under_way.is_some() {
            return None;
        }
        let mut effects = self.waiting.take()?;
        let batch = effects
            .batch
            .take()
            .expect("effects wait only for a batch that waits with them or before them");
        self.under_way = Some(effects);
        Some(batch)
    }

    /// The batch that [`next_write`](Self::next_write) gave is on disk. Returns what may leave now.
    ///
    /// # Panics
    /// No write is under way: a bug in the driver.
    pub fn on_synced(&mut self) -> Vec<Effects<Synced>> {
        let mut ready = Vec::with_capacity(2);
        ready.push(
            self.under_way
                .take()
                .expect("a sync is reported only for the write under way")
                .into_synced(),
        );
        // What waited without a batch of its own rested on the write that has just ended.
        if self
            .waiting
            .as_ref()
            .is_some_and(|waiting| waiting.batch.is_none())
        {
            ready.extend(self.waiting.take().map(Effects::into_synced));
        }
        ready
    }

    /// A gate that every step before the one with these effects went through, and none of them left anything to wait for.
    #[cfg(test)]
    pub(crate) fn just_before(effects: &Effects<Unsynced>) -> Self {
        let before = |step: StepId| StepId {
            number: step.number - 1,
            ..step
        };
        Self {
            pushed_up_to: effects.step.map(before).filter(|step| step.number > 0),
            ..Self::default()
        }
    }

    /// Whether nothing waits for the disk.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.under_way.is_none() && self.waiting.is_none()
    }

    /// Whether a write is under way.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.under_way.is_some()
    }
}
