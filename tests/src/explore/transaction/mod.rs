//! The second world: one transaction of two branches, from the first call to the last acknowledgement.
//!
//! Four processes: the coordinator (one or three real replicas, see [`cluster`]), an initiator (the real ledger and
//! session), two participants (the real session, the real gate between prepare and vote, a database of a few rows). It
//! begins when the sessions are registered and the two calls are on their way. As in the first world, whatever was sent
//! may arrive at any later time, never, or again and again: calls (which run as further executions, T2), replies with
//! votes, requests, answers, deliveries, acknowledgements; only a stream that has ended carries nothing more.
//!
//! **Invariants**, after every step: the log never says two outcomes; a branch has committed only if the record names it;
//! it was rolled back only if the log says so, by an abort or by a commit that does not name it; a named branch is
//! prepared or committed; one execution of a call takes effect at most; the initiator is told what the log says, and
//! only after that; a commit names both calls; a commit counts as delivered only when both branches have committed.
//! **From every state** looked at (all that are at rest, and every [`Bounds::heal_every`]th) there is a way to the end:
//! after the faults, with and without the initiator, every branch is settled, the register has nothing unfinished, the
//! initiator knows the outcome, and the money is conserved.
//!
//! **Simplifications.** The coordinator answers a request in the step in which it arrives, or dies over it; questions to
//! followers are not asked. A branch prepares in the step in which its call arrives; work that was cancelled half way,
//! read-only branches and votes to abort from the work itself are left to other tests. A database answers at once. A
//! participant's wall clock stands still. Of a session's timers the next one
//! fires, or after a long silence all of them: states that differ only in the lengths of delays count as one.
//!
//! **Ways to break it**: see [`plant`]. By hand in the core: let the last `Decide` win, answer `Inquire` by gtid, finish
//! a delivery on the first acknowledgement, drop unfinished deliveries when the leader changes.

pub mod cluster;
pub mod event;
pub mod initiator;
pub mod line;
pub mod participant;
pub mod plant;
pub mod player;

use super::pool::Troupe;
use super::search::{Broken, Model, Successors};
use cluster::{Cluster, Recorded};
use event::{BEGIN, Event, Place, Reach};
use initiator::Initiator;
use participant::{Participant, Row};
use plant::Plant;
use player::{Facts, Player};
use std::collections::{BTreeSet, VecDeque};
use synod_proto::command::NamedBranch;
use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, Lineage};
use synod_proto::session::Outcome;

/// The words of a state before its messages: the processes, then what is used up.
const HEAD: usize = 5;
/// Rounds of every timer until all must be settled.
const HEAL_ROUND_COUNT_MAX: usize = 40;
/// Messages in one such round.
const HEAL_MESSAGE_COUNT_MAX: usize = 2000;

/// What may happen, and how often. Each below 16.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Replicas of the coordinator.
    pub replica_count: u8,
    /// How often each call may run, at most.
    pub execution_count_max: u64,
    /// How many timers of sessions fire, in all.
    pub timer_count: u32,
    /// How often the coordinator's timers do.
    pub wait_count: u32,
    /// How many leaders die.
    pub leader_death_count: u32,
    /// How many participants' processes die.
    pub crash_count: u32,
    /// Whether the deadline may pass.
    pub may_be_late: bool,
    /// From every so manieth state the way to the end is looked for.
    pub heal_every: u64,
    /// The bug that is planted.
    pub plant: Option<Plant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used(u32);

impl Used {
    const TIMER: u32 = 0;
    const WAIT: u32 = 1;
    const DEATH: u32 = 2;
    const CRASH: u32 = 3;

    fn count(self, what: u32) -> u32 {
        (self.0 >> (4 * what)) & 15
    }

    fn one_more(self, what: u32) -> Self {
        Self(self.0 + (1 << (4 * what)))
    }
}

/// See the module.
#[derive(Debug)]
pub struct TransactionWorld {
    bounds: Bounds,
    troupe: Troupe<Player>,
    checked_count: u64,
    healed_count: u64,
    sights: BTreeSet<&'static str>,
}

impl TransactionWorld {
    /// The world within these bounds.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            troupe: Troupe::new(),
            checked_count: 0,
            healed_count: 0,
            sights: BTreeSet::new(),
        }
    }

    /// How many states of processes, and how many of their steps, were met.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        self.troupe.counts()
    }

    /// What was seen at least once: invariants that hold because nothing ever happens are worth nothing.
    #[must_use]
    pub fn sights(&self) -> &BTreeSet<&'static str> {
        &self.sights
    }

    fn note_sights(&mut self, locals: &[u32]) {
        let mut seen = Vec::new();
        let (recorded, is_finished, is_late) = self.recorded(locals);
        let rows = || {
            Place::PARTICIPANTS
                .into_iter()
                .flat_map(|place| self.rows(locals, place))
        };
        match recorded {
            Some(Recorded::Committed(_)) => {
                seen.push("a commit in the log");
                if is_finished {
                    seen.push("a commit delivered everywhere");
                }
                if is_late {
                    seen.push("a commit before the deadline that has passed");
                }
                if rows().any(|(_, row)| *row == Row::RolledBack) {
                    seen.push("an execution that the commit does not name, rolled back");
                }
            }
            Some(Recorded::Aborted) => {
                seen.push("an abort in the log");
                if matches!(
                    self.troupe.facts(locals[Place::Initiator.index()]),
                    Facts::Initiator { is_open: true, .. }
                ) {
                    seen.push("an abort by an inquiry");
                }
            }
            None => {}
        }
        if let Facts::Initiator { told, .. } = self.troupe.facts(locals[Place::Initiator.index()]) {
            seen.extend(told.iter().map(|outcome| match outcome {
                Outcome::Committed => "an initiator told of a commit",
                Outcome::Aborted => "an initiator told of an abort",
            }));
        }
        self.sights.extend(seen);
    }

    /// From how many states the way to the end was looked for.
    #[must_use]
    pub fn healed_count(&self) -> u64 {
        self.healed_count
    }

    fn happen(
        &mut self,
        state: &[u32],
        event: &Event,
        used: Used,
        next: &mut Successors,
    ) -> Result<(), Broken> {
        let event = self.troupe.event(event);
        self.happen_by_number(state, event, used, next)
    }

    fn happen_by_number(
        &mut self,
        state: &[u32],
        event: u32,
        used: Used,
        next: &mut Successors,
    ) -> Result<(), Broken> {
        let place = self.troupe.event_of(event).place().index();
        let follower = self.troupe.follower(state, HEAD, place, event)?;
        if let Some(mut follower) = follower {
            follower[HEAD - 1] = used.0;
            next.push(event, follower);
        }
        Ok(())
    }

    fn rows<'a>(&'a self, locals: &[u32], place: Place) -> &'a [(BranchId, Row)] {
        match self.troupe.facts(locals[place.index()]) {
            Facts::Participant(rows) => rows,
            _ => &[],
        }
    }

    fn recorded<'a>(&'a self, locals: &[u32]) -> (Option<&'a Recorded>, bool, bool) {
        match self.troupe.facts(locals[Place::Coordinator.index()]) {
            Facts::Coordinator {
                recorded,
                is_finished,
                is_late,
            } => (recorded.as_ref(), *is_finished, *is_late),
            _ => (None, false, false),
        }
    }

    /// The invariants of a state.
    fn look(&self, locals: &[u32]) -> Result<(), String> {
        let (recorded, is_finished, _) = self.recorded(locals);
        for place in Place::PARTICIPANTS {
            let rows = self.rows(locals, place);
            for (branch, row) in rows {
                let is_named = names(recorded, *branch);
                match row {
                    Row::Committed if !is_named => {
                        return Err(format!(
                            "{place:?} committed {branch}, and the log says {recorded:?}"
                        ));
                    }
                    Row::RolledBack if is_named || recorded.is_none() => {
                        return Err(format!(
                            "{place:?} rolled back {branch}, and the log says {recorded:?}"
                        ));
                    }
                    _ => {}
                }
            }
            if rows.iter().filter(|(_, row)| *row == Row::Committed).count() > 1 {
                return Err(format!("T2: {place:?}'s call took effect twice"));
            }
            let Some(Recorded::Committed(branches)) = recorded else {
                continue;
            };
            let named = branches
                .iter()
                .find(|named| named.resource == Participant::resource(place));
            let Some(named) = named else {
                return Err(format!(
                    "T4: a commit leaves out the call to {place:?}: {branches:?}"
                ));
            };
            let held = rows
                .iter()
                .find(|(branch, _)| is_same(*branch, named))
                .map(|(_, row)| *row);
            if !matches!(held, Some(Row::Prepared | Row::Committed)) {
                return Err(format!(
                    "C1: the log names {named:?}, and {place:?} holds {held:?}"
                ));
            }
            if is_finished && held != Some(Row::Committed) {
                return Err(format!(
                    "the commit counts as delivered, and {place:?} holds {held:?}"
                ));
            }
        }
        if let Facts::Initiator { told, .. } = self.troupe.facts(locals[Place::Initiator.index()])
            && let Some(outcome) = told
                .iter()
                .find(|told| recorded.map(Recorded::outcome) != Some(**told))
        {
            return Err(format!(
                "the initiator was told {outcome}, and the log says {recorded:?}"
            ));
        }
        Ok(())
    }

    /// Whether all is over.
    fn is_settled(&self, locals: &[u32], with_initiator: bool) -> bool {
        let is_quiet = |place| {
            self.rows(locals, place)
                .iter()
                .all(|(_, row)| *row != Row::Prepared)
        };
        let knows = match self.troupe.facts(locals[Place::Initiator.index()]) {
            Facts::Initiator { told, has_asked, .. } => !with_initiator || !has_asked || !told.is_empty(),
            _ => true,
        };
        self.recorded(locals).1 && knows && Place::PARTICIPANTS.into_iter().all(is_quiet)
    }

    /// The faults are over, what was on its way is lost, and every timer fires in turn until all is settled.
    fn heal(&mut self, state: &[u32], with_initiator: bool) -> Result<(), String> {
        let mut locals = state[..HEAD - 1].to_vec();
        let mut events: VecDeque<u32> = VecDeque::new();
        // A transport tells an end of a stream for sure, sooner or later.
        if let Player::Coordinator(cluster) = self.troupe.process(locals[0]) {
            for event in cluster.ended() {
                events.push_back(self.troupe.event(&event));
            }
        }
        if !self.recorded(&locals).2 {
            events.push_back(self.troupe.event(&Event::DeadlinePasses));
        }
        for _ in 0..HEAL_ROUND_COUNT_MAX {
            for _ in 0..HEAL_MESSAGE_COUNT_MAX {
                let Some(event) = events.pop_front() else { break };
                let place = self.troupe.event_of(event).place();
                if place == Place::Initiator && !with_initiator {
                    continue;
                }
                let step = self.troupe.step(locals[place.index()], event);
                if let Some(text) = &step.broken {
                    return Err(format!("on the way to the end: {text}"));
                }
                locals[place.index()] = step.local;
                events.extend(&step.sent);
                self.look(&locals)
                    .map_err(|text| format!("on the way to the end: {text}"))?;
            }
            if self.is_settled(&locals, with_initiator) {
                return self.look_at_money(&locals);
            }
            for place in [Place::Debit, Place::Credit, Place::Initiator] {
                events.push_back(self.troupe.event(&Event::Silence(place)));
            }
            events.push_back(self.troupe.event(&Event::Wait));
        }
        let rows = Place::PARTICIPANTS.map(|place| self.rows(&locals, place).to_vec());
        let facts = self.troupe.facts(locals[Place::Initiator.index()]);
        let who = if with_initiator {
            "the initiator"
        } else {
            "no initiator"
        };
        Err(format!(
            "with {who} it is never settled: {:?}, {rows:?}, {facts:?}",
            self.recorded(&locals)
        ))
    }

    fn look_at_money(&self, locals: &[u32]) -> Result<(), String> {
        let moved = Place::PARTICIPANTS.map(|place| {
            self.rows(locals, place)
                .iter()
                .filter(|(_, row)| *row == Row::Committed)
                .count()
        });
        if moved[0] != moved[1] {
            return Err(format!(
                "money is not conserved: debited {} times, credited {} times",
                moved[0], moved[1]
            ));
        }
        Ok(())
    }

    fn heal_both(&mut self, state: &[u32]) -> Result<(), String> {
        self.healed_count += 1;
        self.heal(state, true)?;
        self.heal(state, false)
    }
}

fn is_same(branch: BranchId, named: &NamedBranch) -> bool {
    let key: (CallId, ExecutionId) = (branch.call, branch.execution);
    key == (named.call, named.execution)
}

fn names(recorded: Option<&Recorded>, branch: BranchId) -> bool {
    match recorded {
        Some(Recorded::Committed(branches)) => branches.iter().any(|named| is_same(branch, named)),
        _ => false,
    }
}

impl Model for TransactionWorld {
    fn initial(&mut self) -> Vec<u32> {
        let gtid = Gtid::new(BEGIN, [7; 10]);
        let cluster = Cluster::new(self.bounds.replica_count, gtid, self.bounds.plant);
        let lineage = cluster.lineage().unwrap_or(Lineage([0; 16]));
        let (max, plant) = (self.bounds.execution_count_max, self.bounds.plant);
        let debit = Participant::new(Place::Debit, gtid, lineage, max, plant).expect("starts");
        let credit = Participant::new(Place::Credit, gtid, lineage, max, plant).expect("starts");
        let initiator = Initiator::new(gtid, lineage, plant).expect("starts");
        let mut sent = Vec::new();
        let mut players = vec![Player::Coordinator(Box::new(cluster))];
        players.push(Player::Initiator(Box::new(initiator.0)));
        sent.extend(initiator.1);
        for (participant, asks) in [debit, credit] {
            players.push(Player::Participant(Box::new(participant)));
            sent.extend(asks);
        }
        let mut state: Vec<u32> = players.iter().map(|player| self.troupe.local(player)).collect();
        // The calls are what is explored; everybody's registration comes before.
        let (calls, rest): (Vec<Event>, Vec<Event>) = sent
            .into_iter()
            .partition(|event| matches!(event, Event::Call { .. }));
        let mut events: VecDeque<u32> = rest.iter().map(|event| self.troupe.event(event)).collect();
        while let Some(event) = events.pop_front() {
            let place = self.troupe.event_of(event).place().index();
            let step = self.troupe.step(state[place], event);
            assert_eq!(step.broken, None, "the scripted start");
            state[place] = step.local;
            events.extend(&step.sent);
        }
        state.push(Used::default().0);
        let mut letters: Vec<u32> = calls.iter().map(|event| self.troupe.event(event)).collect();
        letters.sort_unstable();
        state.extend(letters);
        state
    }

    fn expand(&mut self, state: &[u32], next: &mut Successors) -> Result<(), Broken> {
        let used = Used(state[HEAD - 1]);
        let bounds = self.bounds;
        let may_die = used.count(Used::DEATH) < bounds.leader_death_count;
        for letter in &state[HEAD..] {
            self.happen_by_number(state, *letter, used, next)?;
            let ask = self.troupe.event_of(*letter).clone();
            if may_die && matches!(ask, Event::Ask { .. }) {
                let reaches: &[Reach] = match bounds.replica_count {
                    1 => &[Reach::Nowhere, Reach::OwnDisk],
                    _ => &[Reach::Nowhere, Reach::OwnDisk, Reach::OneFollower],
                };
                for reach in reaches {
                    let event = Event::AskAndDie {
                        ask: Box::new(ask.clone()),
                        reach: *reach,
                    };
                    self.happen(state, &event, used.one_more(Used::DEATH), next)?;
                }
            }
        }
        if may_die {
            self.happen(state, &Event::LeaderDies, used.one_more(Used::DEATH), next)?;
        }
        if bounds.may_be_late && !self.recorded(state).2 {
            self.happen(state, &Event::DeadlinePasses, used, next)?;
        }
        if used.count(Used::WAIT) < bounds.wait_count {
            self.happen(state, &Event::Wait, used.one_more(Used::WAIT), next)?;
        }
        if used.count(Used::TIMER) < bounds.timer_count {
            for place in [Place::Initiator, Place::Debit, Place::Credit] {
                self.happen(state, &Event::Timer(place), used.one_more(Used::TIMER), next)?;
                self.happen(state, &Event::Silence(place), used.one_more(Used::TIMER), next)?;
            }
        }
        if used.count(Used::CRASH) < bounds.crash_count {
            for place in Place::PARTICIPANTS {
                self.happen(state, &Event::Crash(place), used.one_more(Used::CRASH), next)?;
            }
        }
        if matches!(
            self.troupe.facts(state[Place::Initiator.index()]),
            Facts::Initiator { is_open: true, .. }
        ) {
            self.happen(state, &Event::Commit, used, next)?;
            self.happen(state, &Event::Abandon, used, next)?;
        }
        Ok(())
    }

    fn check(&mut self, state: &[u32]) -> Result<(), String> {
        self.look(state)?;
        self.note_sights(state);
        self.checked_count += 1;
        if self.checked_count.is_multiple_of(self.bounds.heal_every) {
            self.heal_both(state)
        } else {
            Ok(())
        }
    }

    fn at_rest(&mut self, state: &[u32]) -> Result<(), String> {
        self.heal_both(state)
    }

    fn describe(&self, action: u32) -> String {
        self.troupe.event_of(action).to_string()
    }
}
