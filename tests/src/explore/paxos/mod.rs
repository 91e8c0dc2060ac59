//! The first world: three replicas, two of which may lead, and two values.
//!
//! The replicas are real cores with the driver's real group commit over an explicit disk. A state of the world is three
//! states of replicas, what of the bounds is used up, and every message ever sent: a message may arrive at any later
//! time, never, or again and again (as in Lamport's TLA+ specification of Paxos, where messages are a set that grows).
//!
//! **Invariants**, after every step: no slot is ever decided with two values, by whoever and whenever, across crashes; a
//! decided value lies on the disks of a quorum; the promise on a disk never falls; no ballot has two values in a slot, on
//! disk or on its way; two replicas do not lead in one ballot; the state machines are equal at equal slots; sessions are
//! told one outcome, and that is the one in the log. No message can leave before its sync unless the core itself put it
//! into the wrong lane: the gate is a type.
//!
//! **Simplifications.** Loss, repetition and replay have no bounds of their own. A crashed process is back at
//! once: being away is the same as slow messages. Time has no numbers: an election timer may fire at any moment, a
//! pre-vote is always granted and its messages are not in flight (safety must not rest on it); heartbeats leave only when
//! their timer fires, and are answered into the void (they only keep a leader in office). The handshake after a start is
//! answered with "no contradiction": what it finds out is tested elsewhere, and without loss of a directory there is
//! nothing to find (L10). A question for missing slots is asked again only after a timer has
//! fired. With [`Syncs::AtOnce`] a write is on disk in the step that made it or, when the process dies in that step, not
//! at all.
//!
//! **Ways to break it**: see [`plant`]: each is found, with a shortest trace, by the tests. Worth trying by hand in the
//! core: count an `Accepted` in `begin_leading`, accept below the promise, learn a value under the ballot of whoever told
//! it, propose before the candidate has caught up with its promises (L5).

pub mod event;
pub mod host;
pub mod plant;

use super::fingerprint::Fingerprint;
use super::pool::Troupe;
use super::search::{Broken, Model, Successors};
use bytes::Bytes;
use event::Event;
use host::{Facts, Host, Rounds, Syncs, WALL};
use plant::Plant;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use synod_coordinator_core::paxos::{Ballot, Envelope, Message, Slot};
use synod_coordinator_core::replica::RoleName;
use synod_proto::command::{Decide, Proposal};
use synod_proto::ids::{Gtid, Lineage, ReplicaId};
use synod_proto::session::{AbortCause, AbortKind, Outcome};

/// How many replicas there are.
const REPLICA_COUNT: usize = 3;
/// How many of them are a quorum.
const QUORUM_COUNT: usize = 2;
/// The words of a state before its messages: the replicas, then what is used up.
const HEAD: usize = REPLICA_COUNT + 1;

/// Where the exploration begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Admitted replicas with an empty log: whoever leads first writes an entry of its own that no other would.
    Fresh,
    /// The first replica leads and serves, and everybody has decided its first entry.
    Led,
}

/// What may happen, and how often. Each below 16.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Where to begin.
    pub beginning: Beginning,
    /// When writes are on disk.
    pub syncs: Syncs,
    /// Above which round whoever stands goes.
    pub rounds: Rounds,
    /// How often each replica may stand for election.
    pub stand_count: [u32; REPLICA_COUNT],
    /// How often a leader's heartbeat timer fires, in all.
    pub beat_count: u32,
    /// How many values sessions propose, at most two, each once: a commit and an abort of one transaction.
    pub value_count: usize,
    /// How many crashes, of whichever replica.
    pub crash_count: u32,
    /// The bug that is planted.
    pub plant: Option<Plant>,
}

/// What is used up, four bits each, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used(u32);

impl Used {
    const BEAT: u32 = 3;
    const CRASH: u32 = 4;
    const VALUES: u32 = 5;

    fn count(self, what: u32) -> u32 {
        (self.0 >> (4 * what)) & 15
    }

    fn one_more(self, what: u32) -> Self {
        Self(self.0 + (1 << (4 * what)))
    }

    /// How often anybody stood. Each raises the highest round by one.
    fn stands(self) -> u32 {
        (0..Self::BEAT).map(|replica| self.count(replica)).sum()
    }

    fn with_value(self, value: usize) -> Self {
        Self(self.0 | (1 << (4 * Self::VALUES + u32::try_from(value).unwrap_or(0))))
    }

    fn has_value(self, value: usize) -> bool {
        self.count(Self::VALUES) & (1 << value) != 0
    }
}

/// A request to accept: slot, ballot and the value's fingerprint.
type Proposed = (Slot, Ballot, u128);

/// See the module.
#[derive(Debug)]
pub struct PaxosWorld {
    bounds: Bounds,
    troupe: Troupe<Host>,
    values: Vec<Bytes>,
    /// What each message in flight, by its number, would have accepted.
    accepts: BTreeMap<u32, Option<Proposed>>,
    sights: BTreeSet<&'static str>,
}

impl PaxosWorld {
    /// The world within these bounds.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            troupe: Troupe::new(),
            values: Vec::new(),
            accepts: BTreeMap::new(),
            sights: BTreeSet::new(),
        }
    }

    /// What was seen at least once: invariants that hold because nothing ever happens are worth nothing.
    #[must_use]
    pub fn sights(&self) -> &BTreeSet<&'static str> {
        &self.sights
    }

    fn note_sights(&mut self, state: &[u32]) {
        let mut seen = Vec::new();
        let hosts = [0, 1, 2].map(|place| self.facts(state, place));
        let leads = |facts: &&&Facts| matches!(facts.role, RoleName::Leading | RoleName::Serving);
        if hosts.iter().filter(leads).count() == 2 {
            seen.push("two leaders at a time");
        }
        let values = |slot: usize| {
            let held = hosts
                .iter()
                .filter_map(move |facts| facts.on_disk.get(slot).copied().flatten());
            held.map(|(_, value)| value).collect::<BTreeSet<u64>>()
        };
        if (0..4).any(|slot| values(slot).len() > 1) {
            seen.push("two values accepted in a slot");
        }
        let is_behind = |facts: &Facts| {
            hosts
                .iter()
                .any(|other| other.applied.0.0 >= facts.applied.0.0 + 2)
        };
        if hosts
            .iter()
            .any(|facts| leads(&facts) && facts.promised.round > 1 && facts.applied.0.0 > 1)
        {
            seen.push("a second leader that decides");
        }
        if hosts.iter().any(|facts| is_behind(facts)) {
            seen.push("a replica two slots behind");
        }
        seen.extend(
            hosts
                .iter()
                .flat_map(|facts| &facts.told)
                .map(|outcome| match outcome {
                    Outcome::Committed => "a session told of a commit",
                    Outcome::Aborted => "a session told of an abort",
                }),
        );
        self.sights.extend(seen);
    }

    /// How many states of replicas, and how many of their steps, were met.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        self.troupe.counts()
    }

    /// What follows if this event happens.
    fn happen(&mut self, state: &[u32], event: u32, used: Used, next: &mut Successors) -> Result<(), Broken> {
        let place = usize::from(self.troupe.event_of(event).replica().0) - 1;
        if let Some(mut follower) = self.troupe.follower(state, HEAD, place, event)? {
            follower[HEAD - 1] = used.0;
            next.push(event, follower);
        }
        Ok(())
    }

    fn facts(&self, state: &[u32], place: usize) -> &Facts {
        self.troupe.facts(state[place])
    }

    /// An event, and the same with a crash in the middle.
    fn happen_or_die(
        &mut self,
        state: &[u32],
        event: u32,
        used: Used,
        next: &mut Successors,
    ) -> Result<(), Broken> {
        self.happen(state, event, used, next)?;
        // Where writes take their time, a crash is an event of its own.
        if used.count(Used::CRASH) < self.bounds.crash_count && self.bounds.syncs == Syncs::AtOnce {
            let crash = Event::CrashIn(Box::new(self.troupe.event_of(event).clone()));
            let crash = self.troupe.event(&crash);
            self.happen(state, crash, used.one_more(Used::CRASH), next)?;
        }
        Ok(())
    }

    fn doings(
        &mut self,
        state: &[u32],
        used: Used,
        place: usize,
        next: &mut Successors,
    ) -> Result<(), Broken> {
        let replica = ReplicaId(u8::try_from(place + 1).unwrap_or(u8::MAX));
        let facts = self.facts(state, place);
        let (role, is_admitted, is_writing) = (facts.role, facts.is_admitted, facts.is_writing);
        let is_leader = matches!(role, RoleName::Leading | RoleName::Serving);
        let stand = u32::try_from(place).unwrap_or(0);
        if is_admitted && !is_leader && used.count(stand) < self.bounds.stand_count[place] {
            let round = match self.bounds.rounds {
                Rounds::Highest => {
                    u64::from(used.stands() + u32::from(self.bounds.beginning == Beginning::Led))
                }
                Rounds::Own => 0,
            };
            let event = self.troupe.event(&Event::Stand { replica, round });
            self.happen_or_die(state, event, used.one_more(stand), next)?;
        }
        if is_leader && used.count(Used::BEAT) < self.bounds.beat_count {
            let event = self.troupe.event(&Event::Beat(replica));
            self.happen(state, event, used.one_more(Used::BEAT), next)?;
        }
        // Which of the two values comes first makes no difference to the log.
        if role == RoleName::Serving
            && let Some(value) = (0..self.bounds.value_count).find(|value| !used.has_value(*value))
        {
            let command = self.values[value].clone();
            let event = self.troupe.event(&Event::Submit { replica, command });
            self.happen_or_die(state, event, used.with_value(value), next)?;
        }
        if is_writing {
            let event = self.troupe.event(&Event::Synced(replica));
            self.happen(state, event, used, next)?;
        }
        if used.count(Used::CRASH) < self.bounds.crash_count {
            let event = self.troupe.event(&Event::Crash {
                replica,
                is_kept: false,
            });
            self.happen(state, event, used.one_more(Used::CRASH), next)?;
            if is_writing {
                let event = self.troupe.event(&Event::Crash {
                    replica,
                    is_kept: true,
                });
                self.happen(state, event, used.one_more(Used::CRASH), next)?;
            }
        }
        Ok(())
    }

    /// Runs without faults until no message is in flight.
    fn run_quiet(&mut self, hosts: &mut [u32], letters: &mut VecDeque<u32>) {
        while let Some(letter) = letters.pop_front() {
            let place = usize::from(self.troupe.event_of(letter).replica().0) - 1;
            let step = self.troupe.step(hosts[place], letter);
            assert_eq!(step.broken, None, "the scripted start");
            hosts[place] = step.local;
            letters.extend(&step.sent);
            // The start is not what is explored: writes end at once.
            while self.troupe.facts(hosts[place]).is_writing {
                let replica = ReplicaId(u8::try_from(place + 1).unwrap_or(u8::MAX));
                let synced = self.troupe.event(&Event::Synced(replica));
                let step = self.troupe.step(hosts[place], synced);
                hosts[place] = step.local;
                letters.extend(&step.sent);
            }
        }
    }

    fn propose_both(&mut self, lineage: Lineage) {
        let gtid = Gtid::new(WALL, [7; 10]);
        let cause = AbortCause::new(AbortKind::Requested, "the other value");
        let proposals = [
            Proposal::Commit {
                branches: Vec::new(),
                read_only_count: 1,
            },
            Proposal::Abort {
                cause,
                branches: Vec::new(),
            },
        ];
        let encode = |proposal| {
            Decide {
                lineage,
                gtid,
                deadline: WALL.plus(30_000),
                proposal,
                guards: Vec::new(),
            }
            .encode()
        };
        self.values = proposals.map(encode).to_vec();
    }

    fn accept_of(&mut self, letter: u32) -> Option<Proposed> {
        let Self { accepts, troupe, .. } = self;
        *accepts
            .entry(letter)
            .or_insert_with(|| match troupe.event_of(letter) {
                Event::Arrival(Envelope {
                    message:
                        Message::Accept {
                            ballot, slot, value, ..
                        },
                    ..
                }) => Some((*slot, *ballot, Fingerprint::of(value))),
                _ => None,
            })
    }
}

impl Model for PaxosWorld {
    fn initial(&mut self) -> Vec<u32> {
        let replicas: BTreeSet<ReplicaId> = (1..=3).map(ReplicaId).collect();
        let mut hosts = Vec::new();
        let mut letters = VecDeque::new();
        for replica in &replicas {
            let (host, sent) = Host::start(*replica, &replicas, &self.bounds);
            hosts.push(self.troupe.local(&host));
            for event in sent {
                letters.push_back(self.troupe.event(&event));
            }
        }
        for replica in &replicas {
            letters.push_front(self.troupe.event(&Event::Synced(*replica)));
        }
        if self.bounds.syncs == Syncs::AtOnce {
            letters.drain(..REPLICA_COUNT);
        }
        self.run_quiet(&mut hosts, &mut letters);
        let first = ReplicaId(1);
        if self.bounds.beginning == Beginning::Led {
            for event in [
                Event::Stand {
                    replica: first,
                    round: 0,
                },
                Event::Beat(first),
            ] {
                letters.push_back(self.troupe.event(&event));
                self.run_quiet(&mut hosts, &mut letters);
            }
        }
        let lineage = self
            .troupe
            .process(hosts[0])
            .lineage()
            .unwrap_or(Lineage([0; 16]));
        self.propose_both(lineage);
        hosts.push(Used::default().0);
        hosts
    }

    fn expand(&mut self, state: &[u32], next: &mut Successors) -> Result<(), Broken> {
        let used = Used(state[REPLICA_COUNT]);
        for letter in &state[HEAD..] {
            self.happen_or_die(state, *letter, used, next)?;
        }
        for place in 0..REPLICA_COUNT {
            self.doings(state, used, place, next)?;
        }
        Ok(())
    }

    fn check(&mut self, state: &[u32]) -> Result<(), String> {
        self.note_sights(state);
        let hosts = [0, 1, 2].map(|place| self.facts(state, place));
        let slot_count = hosts.iter().map(|facts| facts.decided.len()).max().unwrap_or(0);
        for slot in 0..slot_count {
            let mut decided = hosts
                .iter()
                .filter_map(|facts| facts.decided.get(slot).copied().flatten());
            let Some(value) = decided.next() else { continue };
            if decided.any(|other| other != value) {
                return Err(format!(
                    "agreement: slot {} was decided with two values",
                    slot + 1
                ));
            }
            let is_on_disk = |facts: &&&Facts| {
                facts
                    .on_disk
                    .get(slot)
                    .copied()
                    .flatten()
                    .is_some_and(|(_, held)| held == value)
            };
            if hosts.iter().filter(is_on_disk).count() < QUORUM_COUNT {
                return Err(format!(
                    "slot {} is decided, and no quorum has its value on disk",
                    slot + 1
                ));
            }
        }
        let mut told = hosts
            .iter()
            .flat_map(|facts| facts.told.iter().map(|outcome| (*outcome, facts.recorded)));
        if let Some((first, recorded)) = told.next() {
            let recorded: BTreeSet<_> = hosts
                .iter()
                .filter_map(|facts| facts.recorded)
                .chain(recorded)
                .collect();
            if told.any(|(other, _)| other != first) || recorded.iter().any(|one| *one != first) {
                return Err(format!(
                    "told {first}, and somebody was told, or holds, something else"
                ));
            }
        }
        for (one, left) in hosts.iter().enumerate() {
            for right in &hosts[one + 1..] {
                if left.applied.0 == right.applied.0 && left.applied.1 != right.applied.1 {
                    return Err(format!("state machines differ at slot {}", left.applied.0));
                }
                let leads = |facts: &Facts| matches!(facts.role, RoleName::Leading | RoleName::Serving);
                if leads(left) && leads(right) && left.promised == right.promised {
                    return Err(format!("two replicas lead in ballot {}", left.promised));
                }
                for (slot, (left, right)) in left.on_disk.iter().zip(&right.on_disk).enumerate() {
                    if let (Some((ballot, value)), Some((other_ballot, other))) = (left, right)
                        && ballot == other_ballot
                        && value != other
                    {
                        return Err(format!("ballot {ballot} has two values in slot {}", slot + 1));
                    }
                }
            }
        }
        self.check_accepts(state)
    }

    fn at_rest(&mut self, _state: &[u32]) -> Result<(), String> {
        Ok(())
    }

    fn describe(&self, action: u32) -> String {
        self.troupe.event_of(action).to_string()
    }
}

impl PaxosWorld {
    /// One ballot, one value a slot, also among the requests in flight (L1).
    fn check_accepts(&mut self, state: &[u32]) -> Result<(), String> {
        let mut proposed: Vec<Proposed> = Vec::new();
        for letter in &state[HEAD..] {
            let Some((slot, ballot, value)) = self.accept_of(*letter) else {
                continue;
            };
            if proposed
                .iter()
                .any(|one| (one.0, one.1) == (slot, ballot) && one.2 != value)
            {
                return Err(format!("ballot {ballot} proposes two values in slot {slot}"));
            }
            proposed.push((slot, ballot, value));
        }
        Ok(())
    }
}
