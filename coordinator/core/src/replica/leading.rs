//! What a leader does in the log: re-propose, propose, count, decide, apply, and make sure that it still leads.

use super::{Ignored, Replica, Role};
use crate::effects::{Effects, Notice, Unsynced};
use crate::entry;
use crate::machine::outcomes::Verdict;
use crate::paxos::acceptor::AcceptVerdict;
use crate::paxos::proposer::{Heard, InFlight, Leader};
use crate::paxos::{Ballot, Message, Slot};
use crate::time::Now;
use crate::transaction::{Leading, Origin};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::command::Command;
use synod_proto::ids::{Lineage, ReplicaId, UnixMillis};
use synod_proto::planted;

/// After how long without an entry an idle leader writes an empty one, so that the watermark moves and finished
/// outcomes leave the register, in microseconds.
const IDLE_ENTRY_US: u64 = 5_000_000;

/// How often databases are told up to where they may delete their proofs (T13), in microseconds. A proof lives for the
/// watermark's lag anyhow; this adds little to it.
const LOW_WATER_US: u64 = 15_000_000;

/// Room for so many commands is kept from one entry to the next. Entries under load hold hundreds.
const KEPT_COMMAND_COUNT_MAX: usize = 4_096;

impl Replica {
    pub(super) fn begin_leading(
        &mut self,
        now: Now,
        ballot: Ballot,
        values: Vec<Bytes>,
        effects: &mut Effects<Unsynced>,
    ) {
        let first = self.acceptor.meta().decided_up_to.next();
        self.role = Role::Leader(Box::new(Leader {
            ballot,
            next_slot: first,
            in_flight: BTreeMap::new(),
            barrier: Slot(u64::MAX),
            since: now.monotonic,
            heartbeat_at: now.monotonic,
            sequence: 0,
            heard: BTreeMap::new(),
            stamp: self.machine.stamp(),
            entry_at: now.monotonic,
            low_water_at: now.monotonic,
            leading: Leading::new(self.random.next_u64()),
        }));
        for value in values {
            self.propose(now, &value, Vec::new(), effects);
        }
        // The leader's own first entry. When it is applied, so is all that was chosen before (traps A4), and the
        // coordinator has its lineage (T11).
        let command = match self.machine.lineage() {
            Some(_) => Command::Noop,
            None => Command::Establish(Lineage(self.random.bytes16())),
        };
        let (stamp, mark) = (self.machine.stamp(), self.machine.mark());
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        leader.barrier = leader.next_slot;
        self.propose(
            now,
            &entry::encode(stamp, mark, &[command.encode()]),
            vec![Origin::Internal],
            effects,
        );
        self.on_heartbeat_time(now, effects);
    }

    /// Starts phase 2 for the next slot.
    fn propose(&mut self, now: Now, value: &Bytes, origins: Vec<Origin>, effects: &mut Effects<Unsynced>) {
        let decided_up_to = self.acceptor.meta().decided_up_to;
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let (ballot, slot) = (leader.ballot, leader.next_slot);
        leader.next_slot = slot.next();
        leader.entry_at = now.monotonic;
        let in_flight = InFlight {
            value: value.clone(),
            accepted_by: BTreeSet::new(),
            sent_at: now.monotonic,
            origins,
        };
        // In flight before it is accepted: if it cannot be, whoever waits for it is refused with all others.
        leader.in_flight.insert(slot, in_flight);
        if self.acceptor.accept(ballot, slot, value) != AcceptVerdict::Accepted {
            return self.step_down(
                now,
                "its own acceptor is bound to another ballot or value",
                effects,
            );
        }
        // L2: requests to others may leave before the leader's own sync; its own count waits for it.
        for peer in self.peers() {
            let message = Message::Accept {
                ballot,
                slot,
                value: value.clone(),
                decided_up_to,
            };
            effects.send_early(self.envelope(peer, message));
        }
        effects.send_gated(self.envelope(self.config.replica, Message::Accepted { ballot, slot }));
    }

    /// Forms entries of the commands that wait, while the pipeline has room. No timers: what waits, goes.
    pub(super) fn propose_waiting(&mut self, now: Now, effects: &mut Effects<Unsynced>) {
        loop {
            let (depth, bytes_max) = (
                self.config.limits.pipeline_depth,
                self.config.limits.entry_bytes_max,
            );
            let (quorum_count, lag) = (self.config.quorum_count(), self.config.watermark_lag_ms);
            let Role::Leader(leader) = &mut self.role else {
                return;
            };
            if !leader.leading.is_serving() || leader.in_flight.len() >= depth {
                return;
            }
            let Some((commands, origins)) = leader.leading.take_entry(bytes_max) else {
                return;
            };
            let last = leader.stamp.max(self.machine.stamp());
            leader.stamp = leader.clock(now, quorum_count, last);
            let mark = self.machine.mark().max(leader.stamp.minus(lag));
            let value = entry::encode(leader.stamp, mark, &commands);
            self.propose(now, &value, origins, effects);
        }
    }

    pub(super) fn on_accepted(
        &mut self,
        now: Now,
        from: ReplicaId,
        ballot: Ballot,
        slot: Slot,
        effects: &mut Effects<Unsynced>,
    ) {
        if from != self.config.replica {
            self.acknowledge(from, ballot, slot);
        }
        let Role::Leader(leader) = &mut self.role else {
            return self.ignore(Ignored::NotLeading);
        };
        if leader.ballot != ballot && !planted!(AcceptsCountedOverBallots) {
            return self.ignore(Ignored::StaleBallot);
        }
        let Some(in_flight) = leader.in_flight.get_mut(&slot) else {
            return self.ignore(Ignored::StaleSlot);
        };
        in_flight.accepted_by.insert(from);
        self.advance_leading(now, effects);
    }

    /// Decides the slots after the decided prefix that a quorum has accepted in this ballot, in order (traps A13).
    fn advance_leading(&mut self, now: Now, effects: &mut Effects<Unsynced>) {
        loop {
            let quorum_count = self.config.quorum_count();
            let slot = self.acceptor.meta().decided_up_to.next();
            let Role::Leader(leader) = &mut self.role else {
                return;
            };
            let is_chosen = leader.in_flight.get(&slot).is_some_and(|one| {
                one.accepted_by.len() + usize::from(planted!(MinorityDecides)) >= quorum_count
            });
            if !is_chosen {
                return;
            }
            let Some(in_flight) = leader.in_flight.remove(&slot) else {
                return;
            };
            self.acceptor.mark_decided(slot);
            let mut commands = core::mem::take(&mut self.commands);
            let is_applied = self.begin_entry(slot, &in_flight.value, &mut commands, effects);
            if is_applied {
                self.apply_and_tell(now, slot, &mut commands, in_flight.origins, effects);
            }
            self.give_back(commands);
            if !is_applied {
                return self.step_down(now, "a decided entry cannot be applied", effects);
            }
        }
    }

    /// Decides what a follower may take as decided on the word of a leader (L4).
    pub(super) fn advance_following(&mut self, ballot: Ballot, up_to: Slot, effects: &mut Effects<Unsynced>) {
        self.advance_while(Some(ballot), up_to, effects);
    }

    /// Decides what is known without a leader's word: from disk, or learned as decided.
    pub(super) fn advance_known(&mut self, effects: &mut Effects<Unsynced>) {
        self.advance_while(None, Slot::ZERO, effects);
    }

    fn advance_while(&mut self, ballot: Option<Ballot>, up_to: Slot, effects: &mut Effects<Unsynced>) {
        while let Some(slot) = self.learner.next_decided(&self.acceptor, ballot, up_to) {
            let Some((_, value)) = self.acceptor.value(slot) else {
                return;
            };
            let value = value.clone();
            self.acceptor.mark_decided(slot);
            let mut commands = core::mem::take(&mut self.commands);
            if self.begin_entry(slot, &value, &mut commands, effects) {
                for command in commands.drain(..) {
                    self.machine.apply_command(command);
                }
                self.machine.end_entry();
            }
            self.give_back(commands);
        }
    }

    /// `false`: the replica cannot apply, now or since earlier (A8). It goes on accepting for others, and never leads.
    fn begin_entry(
        &mut self,
        slot: Slot,
        value: &Bytes,
        commands: &mut Vec<Command>,
        effects: &mut Effects<Unsynced>,
    ) -> bool {
        if self.cannot_apply.is_some() {
            return false;
        }
        let Err(error) = self.machine.begin_entry(slot, value, commands) else {
            return true;
        };
        let text = error.to_string();
        self.cannot_apply = Some(text.clone());
        effects.notice(Notice::CannotApply { slot, text });
        false
    }

    /// Keeps the vector of an entry's commands for the next one: growing a fresh one for every entry costs more than
    /// reading the commands.
    fn give_back(&mut self, mut commands: Vec<Command>) {
        commands.clear();
        commands.shrink_to(KEPT_COMMAND_COUNT_MAX);
        self.commands = commands;
    }

    // ---- staying leader ----

    pub(super) fn on_heartbeat_time(&mut self, now: Now, effects: &mut Effects<Unsynced>) {
        let (timing, quorum_count) = (self.config.timing, self.config.quorum_count());
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if !leader.has_quorum(now.monotonic, timing.election_timeout_us_max, quorum_count) {
            return self.step_down(now, "no quorum was heard", effects);
        }
        leader.heartbeat_at = now.monotonic.plus(timing.heartbeat_us);
        let has_collectable = self.machine.outcomes().oldest_finished().is_some();
        leader.leading.on_heartbeat(now.monotonic, effects);
        if has_collectable && now.monotonic.since(leader.entry_at) >= IDLE_ENTRY_US {
            leader.leading.push_noop();
        }
        self.advance_preparing(now, effects);
        self.tell_low_water(now, effects);
        self.send_heartbeats(now, effects);
        let late: Vec<Slot> = match &self.role {
            Role::Leader(leader) => leader
                .in_flight
                .iter()
                .filter(|(_, one)| now.monotonic.since(one.sent_at) >= 4 * timing.heartbeat_us)
                .map(|(slot, _)| *slot)
                .collect(),
            _ => Vec::new(),
        };
        for slot in late {
            self.resend(slot, None, effects);
            if let Role::Leader(leader) = &mut self.role
                && let Some(one) = leader.in_flight.get_mut(&slot)
            {
                one.sent_at = now.monotonic;
            }
        }
    }

    fn tell_low_water(&mut self, now: Now, effects: &mut Effects<Unsynced>) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if !leader.leading.is_serving() || now.monotonic.since(leader.low_water_at) < LOW_WATER_US {
            return;
        }
        leader.low_water_at = now.monotonic;
        let mark = self.machine.mark();
        let below = self
            .machine
            .outcomes()
            .unfinished()
            .take_while(|(gtid, _)| gtid.began_at() < mark);
        let below = below.filter_map(|(gtid, record)| match &record.verdict {
            Verdict::Committed { branches, .. } => Some((gtid, branches.as_slice())),
            Verdict::Aborted(_) => None,
        });
        leader.leading.deliveries.tell_low_water(mark, below, effects);
    }

    /// A round of heartbeats: also what a read that must not be stale waits for (T10).
    pub(super) fn send_heartbeats(&mut self, now: Now, effects: &mut Effects<Unsynced>) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        leader.sequence += 1;
        for peer in self.peers() {
            self.send_heartbeat_to(peer, now, effects);
        }
        self.answer_confirmed_reads(effects);
    }

    pub(super) fn send_heartbeat_to(&mut self, peer: ReplicaId, now: Now, effects: &mut Effects<Unsynced>) {
        let decided_up_to = self.acceptor.meta().decided_up_to;
        let (timing, quorum_count) = (self.config.timing, self.config.quorum_count());
        let Role::Leader(leader) = &self.role else { return };
        let has_quorum = leader.has_quorum(now.monotonic, timing.election_timeout_us_min, quorum_count);
        let heartbeat = Message::Heartbeat {
            ballot: leader.ballot,
            decided_up_to,
            sequence: leader.sequence,
            has_quorum,
        };
        effects.send_early(self.envelope(peer, heartbeat));
    }

    pub(super) fn on_heartbeat_answer(
        &mut self,
        now: Now,
        from: ReplicaId,
        ballot: Ballot,
        sequence: u64,
        wall: UnixMillis,
        effects: &mut Effects<Unsynced>,
    ) {
        let Role::Leader(leader) = &mut self.role else {
            return self.ignore(Ignored::NotLeading);
        };
        if leader.ballot != ballot {
            return self.ignore(Ignored::StaleBallot);
        }
        // An answer to a round that was never sent would confirm reads that nobody has asked yet.
        if sequence > leader.sequence {
            return self.ignore(Ignored::Malformed);
        }
        let heard = leader.heard.entry(from).or_insert(Heard {
            at: now.monotonic,
            sequence,
            wall,
        });
        if sequence < heard.sequence {
            return self.ignore(Ignored::StaleAnswer);
        }
        *heard = Heard {
            at: now.monotonic,
            sequence,
            wall,
        };
        self.answer_confirmed_reads(effects);
        self.begin_waiting_round(now, effects);
    }

    pub(super) fn resend_in_flight_to(&mut self, peer: ReplicaId, effects: &mut Effects<Unsynced>) {
        let Role::Leader(leader) = &self.role else { return };
        for slot in leader.in_flight.keys().copied().collect::<Vec<_>>() {
            self.resend(slot, Some(peer), effects);
        }
    }

    fn resend(&self, slot: Slot, only: Option<ReplicaId>, effects: &mut Effects<Unsynced>) {
        let Role::Leader(leader) = &self.role else { return };
        let Some(one) = leader.in_flight.get(&slot) else {
            return;
        };
        let decided_up_to = self.acceptor.meta().decided_up_to;
        for peer in self.peers().filter(|peer| only.is_none_or(|only| only == *peer)) {
            if !one.accepted_by.contains(&peer) {
                let message = Message::Accept {
                    ballot: leader.ballot,
                    slot,
                    value: one.value.clone(),
                    decided_up_to,
                };
                effects.send_early(self.envelope(peer, message));
            }
        }
    }

    /// Resigns from leading or standing. Requests that were not answered are refused, so that they are sent to the
    /// next leader; whether they entered the log, the log will tell (T7).
    pub(super) fn step_down(&mut self, now: Now, reason: &'static str, effects: &mut Effects<Unsynced>) {
        if let Role::Leader(leader) = &self.role {
            let farewell = Message::Heartbeat {
                ballot: leader.ballot,
                decided_up_to: self.acceptor.meta().decided_up_to,
                sequence: leader.sequence,
                has_quorum: false,
            };
            for peer in self.peers() {
                effects.send_early(self.envelope(peer, farewell.clone()));
            }
        }
        self.become_follower(Some(now), reason, effects);
    }

    /// `now` is absent where no timer matters any more.
    pub(super) fn become_follower(
        &mut self,
        now: Option<Now>,
        reason: &'static str,
        effects: &mut Effects<Unsynced>,
    ) {
        if let Role::Leader(leader) = &mut self.role {
            let in_flight = core::mem::take(&mut leader.in_flight);
            leader
                .leading
                .refuse_all(in_flight.into_values().flat_map(|one| one.origins), effects);
            effects.notice(Notice::SteppedDown { reason });
        }
        self.role = Role::Follower { leader: None };
        if let Some(now) = now {
            self.election
                .rest(now.monotonic, &self.config.timing, &mut self.random);
        }
    }
}
