//! The proposer: phase 1 as [`Candidate`], phase 2 as [`Leader`]. What only a proposer has lives in here.

use super::acceptor::ACCEPT_WINDOW_SLOTS;
use super::{Accepted, Ballot, Slot};
use crate::entry;
use crate::time::Timestamp;
use crate::transaction::Leading;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use bytes::Bytes;
use core::hash::{Hash, Hasher};
use synod_proto::ids::{ReplicaId, UnixMillis};
use synod_proto::planted;

/// One acceptor's answer to phase 1.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Report {
    pub(crate) decided_up_to: Slot,
    pub(crate) first_retained: Slot,
    pub(crate) accepted: BTreeMap<Slot, (Ballot, Bytes)>,
    pub(crate) unreadable: BTreeSet<Slot>,
}

/// A replica in phase 1.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) ballot: Ballot,
    pub(crate) deadline: Timestamp,
    reports: BTreeMap<ReplicaId, Report>,
}

/// What phase 1 has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PhaseOne {
    /// Fewer promises than a quorum.
    NeedsPromises,
    /// This replica has decided slots that the candidate lacks (L5).
    NeedsSlots(ReplicaId, Slot),
    /// This replica has decided slots that the candidate lacks, and no longer has the first of them: only a checkpoint
    /// can help (L5, L8).
    NeedsCheckpoint(ReplicaId, Slot),
    /// A slot of which too few reports can be read (L3): another replica must answer.
    NeedsReadable(Slot),
    /// The values to propose, for every slot above the candidate's decided prefix that anybody reported.
    Done(Vec<Bytes>),
}

impl Candidate {
    pub(crate) fn new(ballot: Ballot, deadline: Timestamp) -> Self {
        Self {
            ballot,
            deadline,
            reports: BTreeMap::new(),
        }
    }

    pub(crate) fn on_promise(&mut self, from: ReplicaId, report: Report) {
        self.reports.insert(from, report);
    }

    /// Looks at the promises so far. `decided_up_to` is the candidate's own decided prefix now.
    pub(crate) fn phase_one(&self, decided_up_to: Slot, quorum_count: usize) -> PhaseOne {
        if self.reports.len() < quorum_count {
            return PhaseOne::NeedsPromises;
        }
        let ahead = self.reports.iter().max_by_key(|(_, report)| report.decided_up_to);
        if let Some((replica, report)) = ahead
            && report.decided_up_to > decided_up_to
            && !planted!(CandidateDoesNotCatchUp)
        {
            if report.first_retained > decided_up_to.next() {
                return PhaseOne::NeedsCheckpoint(*replica, report.first_retained);
            }
            return PhaseOne::NeedsSlots(*replica, report.decided_up_to);
        }
        let last = self
            .reports
            .values()
            .filter_map(Report::last_slot)
            .max()
            .unwrap_or(Slot::ZERO);
        let mut values = Vec::new();
        let mut slot = decided_up_to.next();
        while slot <= last {
            match self.choose(slot, quorum_count) {
                Some(value) => values.push(value),
                None => return PhaseOne::NeedsReadable(slot),
            }
            slot = slot.next();
        }
        PhaseOne::Done(values)
    }

    /// "The value of the highest-numbered proposal among the responses" (Paxos Made Simple, P2c), or a no-op where a
    /// quorum has accepted nothing. `None`: fewer readable reports than a quorum (L3).
    fn choose(&self, slot: Slot, quorum_count: usize) -> Option<Bytes> {
        let readable = self
            .reports
            .values()
            .filter(|report| !report.unreadable.contains(&slot));
        let accepted = readable.clone().filter_map(|report| report.accepted.get(&slot));
        let highest = if planted!(LowestProposedAgain) {
            accepted.min_by_key(|(ballot, _)| *ballot)
        } else {
            accepted.max_by_key(|(ballot, _)| *ballot)
        };
        // A value recorded as decided needs no quorum of reports.
        if let Some((Ballot::DECIDED, value)) = highest {
            return Some(value.clone());
        }
        let is_guessed = match highest {
            None => planted!(NoopOverUnreadable),
            Some(_) => planted!(LowerValueOverUnreadable),
        };
        if readable.count() < quorum_count && !is_guessed {
            return None;
        }
        if planted!(HighestNotProposedAgain) {
            return Some(entry::noop());
        }
        Some(highest.map_or_else(entry::noop, |(_, value)| value.clone()))
    }
}

impl Report {
    pub(crate) fn new(
        decided_up_to: Slot,
        first_retained: Slot,
        accepted: Vec<Accepted>,
        unreadable: Vec<Slot>,
    ) -> Self {
        Self {
            decided_up_to,
            first_retained,
            accepted: accepted
                .into_iter()
                .map(|one| (one.slot, (one.ballot, one.value)))
                .collect(),
            unreadable: unreadable.into_iter().collect(),
        }
    }

    /// Whether an acceptor can have made it: an acceptor has a record of every slot up to its decided prefix, and takes
    /// none that lies further above than its window. Asked of the slots above the candidate's own prefix, since a single
    /// slot far away would be filled up to with no-ops.
    pub(crate) fn is_plausible(&self, decided_up_to: Slot) -> bool {
        let mut last = self.decided_up_to.max(decided_up_to);
        let slots: BTreeSet<Slot> = self.accepted.keys().chain(&self.unreadable).copied().collect();
        slots.range(last.next()..).all(|slot| {
            let is_near = slot.0 - last.0 <= ACCEPT_WINDOW_SLOTS;
            last = *slot;
            is_near
        })
    }

    fn last_slot(&self) -> Option<Slot> {
        self.accepted
            .keys()
            .next_back()
            .max(self.unreadable.iter().next_back())
            .copied()
    }
}

/// A value in phase 2.
#[derive(Clone, Debug)]
pub(crate) struct InFlight {
    pub(crate) value: Bytes,
    pub(crate) accepted_by: BTreeSet<ReplicaId>,
    pub(crate) sent_at: Timestamp,
    /// Who proposed the commands of this entry, by their place; empty for a re-proposed value.
    pub(crate) origins: Vec<crate::transaction::Origin>,
}

/// What a leader heard from a follower.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) at: Timestamp,
    pub(crate) sequence: u64,
    pub(crate) wall: UnixMillis,
}

/// A replica in phase 2.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub(crate) ballot: Ballot,
    pub(crate) next_slot: Slot,
    pub(crate) in_flight: BTreeMap<Slot, InFlight>,
    /// The last slot that phase 1 brought. Until it is applied the leader serves nothing (traps A4).
    pub(crate) barrier: Slot,
    pub(crate) since: Timestamp,
    pub(crate) heartbeat_at: Timestamp,
    pub(crate) sequence: u64,
    pub(crate) heard: BTreeMap<ReplicaId, Heard>,
    pub(crate) stamp: UnixMillis,
    pub(crate) entry_at: Timestamp,
    pub(crate) low_water_at: Timestamp,
    pub(crate) leading: Leading,
}

/// For checkers: without the instants, see [`Replica::hash_state`](crate::replica::Replica::hash_state).
impl Hash for Candidate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            ballot,
            deadline: _,
            reports,
        } = self;
        (ballot, reports).hash(state);
    }
}

/// For checkers, like [`Candidate`].
impl Hash for InFlight {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            value,
            accepted_by,
            sent_at: _,
            origins,
        } = self;
        (value, accepted_by, origins).hash(state);
    }
}

/// For checkers, like [`Candidate`]. Rounds of heartbeats are only compared with each other.
impl Hash for Leader {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            ballot,
            next_slot,
            in_flight,
            barrier,
            sequence,
            heard,
            stamp,
            leading,
            ..
        } = self;
        for (
            replica,
            Heard {
                at: _,
                sequence: answered,
                wall,
            },
        ) in heard
        {
            (replica, sequence - answered, wall).hash(state);
        }
        (ballot, next_slot, in_flight, barrier, heard.len(), stamp, leading).hash(state);
    }
}

impl Leader {
    /// Whether followers that make a quorum with the leader were heard within `patience_us`. The leader's first
    /// moments count as heard: its promises are fresh.
    pub(crate) fn has_quorum(&self, now: Timestamp, patience_us: u64, quorum_count: usize) -> bool {
        let fresh = self
            .heard
            .values()
            .filter(|heard| now.since(heard.at) <= patience_us)
            .count();
        fresh + 1 >= quorum_count || now.since(self.since) <= patience_us
    }

    /// The highest heartbeat sequence that a quorum (with the leader) has answered.
    pub(crate) fn confirmed_sequence(&self, quorum_count: usize) -> u64 {
        let mut sequences: Vec<u64> = self.heard.values().map(|heard| heard.sequence).collect();
        sequences.sort_unstable_by(|left, right| right.cmp(left));
        match quorum_count {
            1 => self.sequence,
            _ => sequences.get(quorum_count - 2).copied().unwrap_or(0),
        }
    }

    /// T14: min(own clock, median of a quorum's clocks), never below the last stamp. Without a quorum of clocks the
    /// last stamp stands.
    pub(crate) fn clock(&self, now: crate::time::Now, quorum_count: usize, last: UnixMillis) -> UnixMillis {
        self.median_clock(now, quorum_count)
            .map_or(last, |median| last.max(now.wall.min(median)))
    }

    /// The median of the clocks of at least a quorum. Clocks heard earlier are moved on by the time that has passed.
    pub(crate) fn median_clock(&self, now: crate::time::Now, quorum_count: usize) -> Option<UnixMillis> {
        let others = || {
            let since = |heard: &Heard| heard.wall.plus(now.monotonic.since(heard.at) / 1000);
            self.heard.values().map(since)
        };
        let clocks = || others().chain([now.wall]);
        let count = self.heard.len() + 1;
        if count < quorum_count {
            return None;
        }
        // Without a sorted copy: every request asks, and there are few replicas.
        let lower_count = (count - 1) / 2;
        clocks().find(|one| {
            let below = clocks().filter(|other| other < one).count();
            let up_to = clocks().filter(|other| other <= one).count();
            (below..up_to).contains(&lower_count)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Candidate, PhaseOne, Report};
    use crate::paxos::{Accepted, Ballot, Slot};
    use crate::time::Timestamp;
    use alloc::vec;
    use alloc::vec::Vec;
    use bytes::Bytes;
    use synod_proto::ids::ReplicaId;

    fn ballot(round: u64) -> Ballot {
        Ballot {
            round,
            replica: ReplicaId(1),
            start: 1,
        }
    }

    fn accepted(slot: u64, round: u64, value: &'static [u8]) -> Accepted {
        Accepted {
            slot: Slot(slot),
            ballot: ballot(round),
            value: Bytes::from_static(value),
        }
    }

    fn candidate(reports: Vec<(u8, u64, Vec<Accepted>, Vec<Slot>)>) -> Candidate {
        let mut candidate = Candidate::new(ballot(9), Timestamp(0));
        for (replica, decided, accepted, unreadable) in reports {
            candidate.on_promise(
                ReplicaId(replica),
                Report::new(Slot(decided), Slot(1), accepted, unreadable),
            );
        }
        candidate
    }

    /// P2c: "v is the value of the highest-numbered proposal among all proposals numbered less than n accepted by the
    /// acceptors in S"; a slot below a reported one that nobody accepted is filled with a no-op.
    #[test]
    fn p2c_the_highest_accepted_value_is_proposed_again_and_holes_become_noops() {
        let candidate = candidate(vec![
            (
                1,
                0,
                vec![accepted(1, 2, b"low"), accepted(3, 2, b"three")],
                vec![],
            ),
            (2, 0, vec![accepted(1, 4, b"high")], vec![]),
        ]);
        let values = vec![
            Bytes::from_static(b"high"),
            Bytes::new(),
            Bytes::from_static(b"three"),
        ];
        assert_eq!(candidate.phase_one(Slot::ZERO, 2), PhaseOne::Done(values));
    }

    #[test]
    fn a_minority_of_promises_decides_nothing() {
        let candidate = candidate(vec![(1, 0, vec![accepted(1, 2, b"x")], vec![])]);
        assert_eq!(candidate.phase_one(Slot::ZERO, 2), PhaseOne::NeedsPromises);
    }

    /// L3: neither a no-op nor a lower value goes over a slot of which too few reports can be read.
    #[test]
    fn l3_an_unreadable_report_does_not_count() {
        let two = vec![
            (1, 0, vec![], vec![Slot(1)]),
            (2, 0, vec![accepted(1, 1, b"lower")], vec![]),
        ];
        assert_eq!(
            candidate(two.clone()).phase_one(Slot::ZERO, 2),
            PhaseOne::NeedsReadable(Slot(1))
        );
        let mut three = two;
        three.push((3, 0, vec![accepted(1, 5, b"higher")], vec![]));
        assert_eq!(
            candidate(three).phase_one(Slot::ZERO, 2),
            PhaseOne::Done(vec![Bytes::from_static(b"higher")])
        );
    }

    /// L5: a candidate catches up to the highest decided prefix among its promises before it proposes.
    #[test]
    fn l5_a_candidate_behind_its_promises_catches_up_first() {
        let reports = vec![(1, 0, vec![], vec![]), (2, 7, vec![accepted(8, 1, b"x")], vec![])];
        let candidate = candidate(reports);
        assert_eq!(
            candidate.phase_one(Slot(3), 2),
            PhaseOne::NeedsSlots(ReplicaId(2), Slot(7))
        );
        assert_eq!(
            candidate.phase_one(Slot(7), 2),
            PhaseOne::Done(vec![Bytes::from_static(b"x")])
        );
    }
}
