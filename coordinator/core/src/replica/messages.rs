//! Messages between replicas, in protocol order: handshake, pre-vote, phase 1, phase 2, heartbeats.
//!
//! # What the handshake remembers (L10)
//!
//! A directory is named by its incarnation, a life of it by its count of starts, and the process that lives it by a random
//! number. Who remembers what, and for how long:
//!
//! | who | what | until |
//! |---|---|---|
//! | the directory | its count of starts, on disk before the first message of the start leaves (L1) | for ever |
//! | the process | its number; in memory only | it ends |
//! | each peer, on disk before its answer leaves | the directory's incarnation, its highest start, the process that came in it | the directory comes in a higher start |
//! | each peer, in memory | the highest ballot and slot that the replica acknowledged to it | the peer's process ends |
//!
//! The number need not be on the directory's own disk: a process increments the count and syncs it before it says anything,
//! so whoever comes after it on the same directory comes in a higher start. Hence a second number in one start can only
//! mean that the directory exists twice, or that an older copy of it came back: peers contradict it, and an answer counts
//! only if it quotes start *and* number of the asking process. At the peer the number must be durable, together with the
//! start: else a peer that restarts would believe the next process that comes in that start, whichever it is.
//!
//! What this does not see: a copy that is put back before any other process has started on the original. It comes in a
//! start that nobody has heard of, like after any crash, and only what it acknowledged since can tell; that is what peers
//! hold in memory. And of two processes on two copies each may first be heard by another peer. Both are then refused by
//! the peer that heard the other one, but with three replicas each may take part until that answer comes.

use super::{Acknowledged, Admission, Ignored, Replica, Role};
use crate::durable::PeerSeen;
use crate::effects::{Effects, Notice, Unsynced};
use crate::paxos::acceptor::AcceptVerdict;
use crate::paxos::proposer::{Candidate, PhaseOne, Report};
use crate::paxos::{Ballot, Envelope, Message, Slot};
use crate::time::Now;
use alloc::format;
use alloc::string::String;
use bytes::Bytes;
use synod_proto::ids::{ProcessNonce, ReplicaId};
use synod_proto::planted;

impl Replica {
    pub(super) fn on_envelope(&mut self, now: Now, envelope: Envelope, effects: &mut Effects<Unsynced>) {
        let Envelope { from, to, message } = envelope;
        if to != self.config.replica || !self.config.replicas.contains(&from) {
            return self.ignore(Ignored::UnknownReplica);
        }
        if !is_plausible(from, &message) || (from == to && !is_own_acceptors(&message)) {
            return self.ignore(Ignored::Malformed);
        }
        match message {
            Message::Hello {
                incarnation,
                start,
                process,
                ..
            } => {
                let seen = PeerSeen {
                    incarnation,
                    start,
                    process,
                };
                self.on_hello(from, seen, effects);
            }
            Message::HelloAnswer {
                start,
                process,
                contradiction,
                ballot,
                slot,
            } => {
                self.on_hello_answer(
                    now,
                    from,
                    (start, process),
                    contradiction,
                    Acknowledged { ballot, slot },
                    effects,
                );
            }
            Message::PreVote { attempt } => self.on_pre_vote(now, from, attempt, effects),
            Message::PreVoteAnswer {
                attempt,
                granted,
                round,
                decided_up_to,
            } => {
                self.election.see_round(round);
                self.hear_decided(now, from, decided_up_to, effects);
                self.on_pre_vote_answer(now, from, attempt, granted, effects);
            }
            Message::Prepare { ballot, above } => self.on_prepare(now, from, ballot, above, effects),
            Message::Promise {
                ballot,
                decided_up_to,
                first_retained,
                accepted,
                unreadable,
            } => {
                let report = Report::new(decided_up_to, first_retained, accepted, unreadable);
                self.on_promise(now, from, ballot, report, effects);
            }
            Message::Accept {
                ballot,
                slot,
                value,
                decided_up_to,
            } => {
                self.on_accept(now, from, ballot, slot, &value, effects);
                self.hear_decided_by_leader(now, ballot, decided_up_to, effects);
            }
            Message::Accepted { ballot, slot } => self.on_accepted(now, from, ballot, slot, effects),
            Message::Nack { ballot, promised } => self.on_nack(now, ballot, promised, effects),
            Message::Heartbeat {
                ballot,
                decided_up_to,
                sequence,
                has_quorum,
            } => {
                self.on_heartbeat(now, from, ballot, (sequence, has_quorum), effects);
                self.hear_decided_by_leader(now, ballot, decided_up_to, effects);
            }
            Message::HeartbeatAnswer {
                ballot,
                sequence,
                wall,
            } => {
                self.on_heartbeat_answer(now, from, ballot, sequence, wall, effects);
            }
            Message::CatchUp { above } => self.on_catch_up(from, above, effects),
            Message::Decided {
                first,
                values,
                decided_up_to,
            } => {
                self.on_decided(now, from, first, values, decided_up_to, effects);
            }
        }
    }

    // ---- handshake (L10) ----

    pub(super) fn say_hello(&mut self, now: Now, effects: &mut Effects<Unsynced>) {
        self.hello_at = now.monotonic.plus(4 * self.config.timing.heartbeat_us);
        for peer in self.peers() {
            let hello = self.hello();
            effects.send_gated(self.envelope(peer, hello));
        }
    }

    fn hello(&self) -> Message {
        let meta = self.acceptor.meta();
        Message::Hello {
            incarnation: self.config.incarnation,
            start: meta.start,
            process: self.process,
            promised: meta.promised,
            accepted_up_to: meta.accepted_up_to,
        }
    }

    pub(super) fn on_peer_connected(&mut self, now: Now, peer: ReplicaId, effects: &mut Effects<Unsynced>) {
        if !self.config.replicas.contains(&peer) || peer == self.config.replica {
            return self.ignore(Ignored::UnknownReplica);
        }
        self.connected.insert(peer);
        let hello = self.hello();
        effects.send_gated(self.envelope(peer, hello));
        if matches!(self.role, Role::Leader(_)) {
            self.send_heartbeat_to(peer, now, effects);
            self.resend_in_flight_to(peer, effects);
        }
    }

    /// Compares what a peer says of its directory with the incarnation and start that this replica has on disk for it,
    /// and tells it what it acknowledged to this process.
    fn on_hello(&mut self, from: ReplicaId, came: PeerSeen, effects: &mut Effects<Unsynced>) {
        let PeerSeen {
            incarnation,
            start,
            process,
        } = came;
        let known = self.acceptor.meta().peers.get(&from).copied();
        let Acknowledged { ballot, slot } = self.acknowledged.get(&from).copied().unwrap_or_default();
        let contradiction = match known {
            Some(seen) if seen.incarnation != incarnation => Some(format!(
                "replica {from} came with directory {incarnation}, but replica {} knows it with directory {}: the directory was wiped or replaced",
                self.config.replica, seen.incarnation
            )),
            Some(seen) if seen.start > start => Some(format!(
                "replica {from} came in its start {start}, but replica {} has seen start {}: an older copy of the directory was put back",
                self.config.replica, seen.start
            )),
            Some(seen) if seen.start == start && seen.process != process => Some(format!(
                "replica {from} came in its start {start} as process {process}, but replica {} has seen process {} in that start: two processes run on copies of one directory, or an older copy was put back",
                self.config.replica, seen.process
            )),
            _ => None,
        };
        match &contradiction {
            None if self.is_writable() => self.acceptor.note_peer(from, came),
            None => {}
            Some(contradiction) => {
                let before = self.contradicted.insert(from, process);
                if before != Some(process) {
                    effects.notice(Notice::PeerContradicted {
                        contradiction: contradiction.clone(),
                    });
                }
            }
        }
        let answer = self.envelope(
            from,
            Message::HelloAnswer {
                start,
                process,
                contradiction,
                ballot,
                slot,
            },
        );
        effects.send_gated(answer);
    }

    /// A contradiction counts whenever it comes: a majority may have admitted this replica on the word of peers to which
    /// the lost directory had acknowledged nothing. What was acknowledged is compared here, with the state as it is now
    /// and not as it was when the question left, so that no order of the messages makes a contradiction where none is.
    fn on_hello_answer(
        &mut self,
        now: Now,
        from: ReplicaId,
        asked_by: (u64, ProcessNonce),
        contradiction: Option<String>,
        acknowledged: Acknowledged,
        effects: &mut Effects<Unsynced>,
    ) {
        let meta = self.acceptor.meta();
        if asked_by != (meta.start, self.process) || matches!(self.admission, Admission::Refused { .. }) {
            return self.ignore(Ignored::StaleAnswer);
        }
        let Acknowledged { ballot, slot } = acknowledged;
        let has_lost = meta.promised < ballot || meta.accepted_up_to < slot;
        // What only the peer's memory knows is forgotten when it restarts; and the start that it has on disk is passed by a
        // copy that is started often enough, be it one from before the first admission. A directory of another replica is
        // whole where it belongs, and the peers know another one here, for ever.
        let is_to_be_noted = has_lost || !meta.is_of_another(self.config.replica, self.config.incarnation);
        let contradiction = contradiction.or_else(|| {
            has_lost.then(|| {
                format!(
                    "replica {} stands at ballot {} and slot {}, but it acknowledged ballot {ballot} and slot {slot} to replica {from}: its directory has lost what was synced",
                    self.config.replica, meta.promised, meta.accepted_up_to
                )
            })
        });
        if let Some(contradiction) = contradiction.filter(|_| !planted!(WipedReplicaVotes)) {
            if self.own_ballot().is_some() {
                self.step_down(now, "the directory is not admitted", effects);
            }
            effects.notice(Notice::NotAdmitted {
                contradiction: contradiction.clone(),
            });
            self.admission = Admission::Refused { contradiction };
            if is_to_be_noted && self.is_writable() {
                let own = PeerSeen::lost(self.config.incarnation, self.process);
                self.acceptor.note_peer(self.config.replica, own);
            }
            return;
        }
        // A directory that was never admitted may be a wiped one, and what was wiped was acknowledged to *some* quorum:
        // only when every replica has spoken is it known to be new.
        let needed_count = match self
            .acceptor
            .meta()
            .was_admitted(self.config.replica, self.config.incarnation)
        {
            true => self.config.quorum_count(),
            false if planted!(MajorityAdmitsNewDirectory) => self.config.quorum_count(),
            false => self.config.replicas.len(),
        };
        let Admission::Pending { consistent } = &mut self.admission else {
            return self.ignore(Ignored::StaleAnswer);
        };
        consistent.insert(from);
        if consistent.len() >= needed_count {
            self.admit(effects);
        }
    }

    pub(super) fn admit(&mut self, effects: &mut Effects<Unsynced>) {
        self.admission = Admission::Admitted;
        effects.notice(Notice::Admitted);
        if self.is_writable() {
            let seen = PeerSeen {
                incarnation: self.config.incarnation,
                start: self.acceptor.meta().start,
                process: self.process,
            };
            self.acceptor.note_peer(self.config.replica, seen);
        }
    }

    // ---- pre-vote ----

    pub(super) fn begin_pre_vote(&mut self, now: Now, effects: &mut Effects<Unsynced>) {
        let own = self.config.replica;
        let attempt = self
            .election
            .begin_attempt(own, now.monotonic, &self.config.timing, &mut self.random);
        self.role = Role::Follower { leader: None };
        if self.election.has_quorum_alone(self.config.quorum_count()) {
            return self.begin_phase_one(now, effects);
        }
        for peer in self.peers() {
            effects.send_early(self.envelope(peer, Message::PreVote { attempt }));
        }
    }

    fn on_pre_vote(&mut self, now: Now, from: ReplicaId, attempt: u64, effects: &mut Effects<Unsynced>) {
        if !self.may_take_part() {
            return;
        }
        let timing = self.config.timing;
        let granted = match &self.role {
            Role::Leader(leader) => !leader.has_quorum(
                now.monotonic,
                timing.election_timeout_us_min,
                self.config.quorum_count(),
            ),
            _ => self.election.would_promise(now.monotonic, &timing),
        };
        let round = self.election.round_max.max(self.acceptor.promised().round);
        let decided_up_to = self.acceptor.meta().decided_up_to;
        let answer = Message::PreVoteAnswer {
            attempt,
            granted,
            round,
            decided_up_to,
        };
        effects.send_early(self.envelope(from, answer));
    }

    fn on_pre_vote_answer(
        &mut self,
        now: Now,
        from: ReplicaId,
        attempt: u64,
        granted: bool,
        effects: &mut Effects<Unsynced>,
    ) {
        let is_waiting = matches!(self.role, Role::Follower { leader: None });
        if !granted
            || !is_waiting
            || !self
                .election
                .on_granted(attempt, from, self.config.quorum_count())
        {
            return self.ignore(Ignored::StaleAnswer);
        }
        if self.may_take_part() {
            self.begin_phase_one(now, effects);
        }
    }

    // ---- phase 1 ----

    fn begin_phase_one(&mut self, now: Now, effects: &mut Effects<Unsynced>) {
        let round = self
            .election
            .round_max
            .max(self.acceptor.promised().round)
            .saturating_add(1);
        self.election.see_round(round);
        let ballot = Ballot {
            round,
            replica: self.config.replica,
            start: self.acceptor.meta().start,
        };
        let above = self.acceptor.meta().decided_up_to;
        let deadline = now.monotonic.plus(self.config.timing.election_timeout_us_max);
        self.role = Role::Candidate(Candidate::new(ballot, deadline));
        for peer in self.peers() {
            effects.send_early(self.envelope(peer, Message::Prepare { ballot, above }));
        }
        // The own promise is counted like any other: once it is on disk (L2).
        let promise = self.acceptor.on_prepare(ballot, above);
        effects.send_gated(self.envelope(self.config.replica, promise));
    }

    fn on_prepare(
        &mut self,
        now: Now,
        from: ReplicaId,
        ballot: Ballot,
        above: Slot,
        effects: &mut Effects<Unsynced>,
    ) {
        if !self.may_take_part() {
            return;
        }
        self.election.see_round(ballot.round);
        let answer = self.acceptor.on_prepare(ballot, above);
        if matches!(answer, Message::Promise { .. }) {
            if self.own_ballot().is_some_and(|own| own < ballot) {
                self.step_down(now, "another replica stands with a higher ballot", effects);
            }
            // The candidate gets its time before this replica tries itself.
            self.election
                .rest(now.monotonic, &self.config.timing, &mut self.random);
        }
        effects.send_gated(self.envelope(from, answer));
    }

    fn on_promise(
        &mut self,
        now: Now,
        from: ReplicaId,
        ballot: Ballot,
        report: Report,
        effects: &mut Effects<Unsynced>,
    ) {
        self.acknowledge(from, ballot, Slot::ZERO);
        let decided_up_to = self.acceptor.meta().decided_up_to;
        let Role::Candidate(candidate) = &mut self.role else {
            return self.ignore(Ignored::StaleBallot);
        };
        if candidate.ballot != ballot {
            return self.ignore(Ignored::StaleBallot);
        }
        if !report.is_plausible(decided_up_to) {
            return self.ignore(Ignored::Malformed);
        }
        candidate.on_promise(from, report);
        self.look_at_phase_one(now, effects);
    }

    /// After a promise, and after the candidate's decided prefix has grown.
    pub(super) fn look_at_phase_one(&mut self, now: Now, effects: &mut Effects<Unsynced>) {
        let Role::Candidate(candidate) = &self.role else {
            return;
        };
        let ballot = candidate.ballot;
        match candidate.phase_one(self.acceptor.meta().decided_up_to, self.config.quorum_count()) {
            PhaseOne::NeedsPromises | PhaseOne::NeedsReadable(_) | PhaseOne::NeedsCheckpoint(..) => {}
            PhaseOne::NeedsSlots(replica, up_to) => self.hear_decided(now, replica, up_to, effects),
            PhaseOne::Done(values) => self.begin_leading(now, ballot, values, effects),
        }
    }

    fn on_nack(&mut self, now: Now, ballot: Ballot, promised: Ballot, effects: &mut Effects<Unsynced>) {
        self.election.see_round(promised.round);
        if self.own_ballot() != Some(ballot) {
            return self.ignore(Ignored::StaleBallot);
        }
        self.step_down(now, "another replica has promised a higher ballot", effects);
    }

    // ---- phase 2, at the acceptor ----

    fn on_accept(
        &mut self,
        now: Now,
        from: ReplicaId,
        ballot: Ballot,
        slot: Slot,
        value: &Bytes,
        effects: &mut Effects<Unsynced>,
    ) {
        if !self.may_take_part() {
            return;
        }
        match self.acceptor.on_accept(ballot, slot, value) {
            AcceptVerdict::Accepted => {
                self.follow(now, ballot, effects);
                effects.send_gated(self.envelope(from, Message::Accepted { ballot, slot }));
            }
            AcceptVerdict::Nack(promised) => {
                effects.send_gated(self.envelope(from, Message::Nack { ballot, promised }));
            }
            AcceptVerdict::TooFarAhead => self.ignore(Ignored::TooFarAhead),
            AcceptVerdict::Superseded => self.ignore(Ignored::StaleSlot),
            AcceptVerdict::Conflict => {
                effects.notice(Notice::Conflict { from, slot, ballot });
                self.ignore(Ignored::Conflict);
            }
        }
    }

    // ---- heartbeats, at the follower ----

    fn on_heartbeat(
        &mut self,
        now: Now,
        from: ReplicaId,
        ballot: Ballot,
        (sequence, has_quorum): (u64, bool),
        effects: &mut Effects<Unsynced>,
    ) {
        self.election.see_round(ballot.round);
        if ballot < self.acceptor.promised() {
            if self.may_take_part() {
                let promised = self.acceptor.promised();
                effects.send_gated(self.envelope(from, Message::Nack { ballot, promised }));
            }
            return self.ignore(Ignored::StaleBallot);
        }
        if !has_quorum {
            if matches!(self.role, Role::Follower { leader: Some(known) } if known == ballot) {
                self.role = Role::Follower { leader: None };
                self.election
                    .hurry(now.monotonic, &self.config.timing, &mut self.random);
            }
            // A leader that looks for its quorum is answered, so that it can find one.
        } else {
            self.follow(now, ballot, effects);
        }
        // A replica that is not admitted may have forgotten promises: its answer must confirm nobody.
        if self.may_take_part() {
            let answer = Message::HeartbeatAnswer {
                ballot,
                sequence,
                wall: now.wall,
            };
            effects.send_early(self.envelope(from, answer));
        }
    }

    /// A leader in `ballot` lives.
    fn follow(&mut self, now: Now, ballot: Ballot, effects: &mut Effects<Unsynced>) {
        if ballot.replica == self.config.replica {
            return;
        }
        if self.own_ballot().is_some_and(|own| own < ballot) {
            self.step_down(now, "another replica leads in a higher ballot", effects);
        }
        if self.own_ballot().is_some() {
            return;
        }
        self.election
            .hear_leader(now.monotonic, &self.config.timing, &mut self.random);
        if !matches!(self.role, Role::Follower { leader: Some(known) } if known == ballot) {
            self.role = Role::Follower { leader: Some(ballot) };
            effects.notice(Notice::Following(ballot.replica));
        }
    }

    // ---- helpers ----

    pub(super) fn acknowledge(&mut self, peer: ReplicaId, ballot: Ballot, slot: Slot) {
        let acknowledged = self.acknowledged.entry(peer).or_default();
        acknowledged.ballot = acknowledged.ballot.max(ballot);
        acknowledged.slot = acknowledged.slot.max(slot);
    }

    /// The ballot in which this replica stands or leads.
    pub(super) fn own_ballot(&self) -> Option<Ballot> {
        match &self.role {
            Role::Follower { .. } => None,
            Role::Candidate(candidate) => Some(candidate.ballot),
            Role::Leader(leader) => Some(leader.ballot),
        }
    }

    pub(super) fn on_time(&mut self, now: Now, effects: &mut Effects<Unsynced>) {
        if matches!(&self.admission, Admission::Pending { .. }) && now.monotonic >= self.hello_at {
            self.say_hello(now, effects);
        }
        match &self.role {
            Role::Follower { .. } if now.monotonic >= self.election.deadline => {
                let is_able = self.admission == Admission::Admitted && self.is_writable();
                if is_able && !self.is_draining && self.cannot_apply.is_none() {
                    self.begin_pre_vote(now, effects);
                } else {
                    self.role = Role::Follower { leader: None };
                    self.election
                        .rest(now.monotonic, &self.config.timing, &mut self.random);
                }
            }
            Role::Candidate(candidate) if now.monotonic >= candidate.deadline => {
                self.become_follower(Some(now), "no quorum promised in time", effects);
            }
            Role::Leader(leader) if now.monotonic >= leader.heartbeat_at => {
                self.on_heartbeat_time(now, effects);
            }
            _ => {}
        }
    }
}

/// Whether a replica may say this to itself: only what its own acceptor answers. Anything else would count it as a peer
/// beside itself: its answer to its own heartbeat would make a quorum (T10), its hello an admission (L10).
fn is_own_acceptors(message: &Message) -> bool {
    matches!(
        message,
        Message::Promise { .. } | Message::Nack { .. } | Message::Accepted { .. }
    )
}

/// Whether a replica that follows the protocol could have sent this. What a ballot claims is not believed of a sender
/// that does not own it, and no round may leave room for none above it.
fn is_plausible(from: ReplicaId, message: &Message) -> bool {
    match message {
        Message::Prepare { ballot, .. }
        | Message::Accept { ballot, .. }
        | Message::Heartbeat { ballot, .. } => ballot.replica == from && ballot.is_proposable(),
        Message::Promise { ballot, .. }
        | Message::Accepted { ballot, .. }
        | Message::HeartbeatAnswer { ballot, .. } => ballot.is_proposable(),
        Message::Nack { promised, .. } => promised.is_proposable(),
        Message::PreVoteAnswer { round, .. } => *round < Ballot::DECIDED.round,
        Message::Hello { .. }
        | Message::HelloAnswer { .. }
        | Message::PreVote { .. }
        | Message::CatchUp { .. }
        | Message::Decided { .. } => true,
    }
}
