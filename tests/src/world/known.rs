//! What the peers know of a directory that has lost something (L10), and so which losses the protocol promises to survive.
//!
//! A directory that came back with less than it acknowledged is refused when a peer says so: every peer has on disk in
//! which start it met the directory last, and in memory what the directory acknowledged to *its own* process. Until it is
//! refused it waits for the answers of a majority, itself included (a directory that was never admitted: of all). So the
//! promise holds exactly if those peers that know nothing are too few to make that majority, for as long as it waits.
//! Beyond it lie, for example, a copy that is put back after the only peer which counted its acknowledgements has
//! restarted; nothing that is on any disk could tell that apart from a crash. Plans do not go there: such a copy
//! is not put back, and a peer whose memory is needed is not ended before it was heard.
//!
//! A directory that is emptied is a new one, which waits for the word of every replica: one peer that has the old one on
//! disk suffices to refuse it, whoever restarts. Where no peer has, nobody ever counted on it.
//!
//! Every other loss must end in a refusal: see [`DirectoryChecker`](crate::checkers::directories::DirectoryChecker).

use super::World;
use crate::checkers::{Check, Violation};
use crate::host::Disk;
use crate::log_disk::LogDisk;
use crate::log_disk::damage::{Aim, Damage, Strike, Verdict};
use crate::schedule::Micros;
use crate::store::{Store, UnsyncedWrite};
use bytes::Bytes;
use synod_coordinator_core::paxos::{Ballot, Slot};
use synod_coordinator_core::replica::Admission;
use synod_proto::ids::{Incarnation, ReplicaId};

/// How long a healed world may take until a directory that lost something is refused: handshakes are repeated.
const REFUSAL_US: Micros = 5_000_000;

/// What happened to a directory that is a new one.
const EMPTIED: &str = "emptied";

impl World {
    /// Puts the copy that was kept aside back, if the protocol promises to survive that. Not while something else is being
    /// found out about the directory.
    pub(super) fn put_back(&mut self, id: ReplicaId) -> Check {
        let Some((copy, log)) = self.backups.remove(&id) else {
            return Ok(());
        };
        self.crash(id, UnsyncedWrite::Lost)?;
        if copy.incarnation != self.hosts[&id].store.incarnation || !self.is_survivable(id, &copy) {
            self.checkers
                .points
                .on_disk_fault("put back: nobody would know, left out");
            return self.start(id);
        }
        self.checkers.points.on_disk_fault("put back");
        self.lose_directory(id, copy, log, "put back");
        self.start(id)
    }

    /// Damages the directory of a replica, whose machine crashes. The replica does not start.
    pub(super) fn damage(&mut self, id: ReplicaId, damage: Damage, aim: Aim, pick: u64) -> Check {
        self.crash(id, UnsyncedWrite::Kept)?;
        let host = self.host(id);
        let Some(log) = &mut host.log else { return Ok(()) };
        log.mend();
        if aim.is_before_close() {
            log.close(&host.store)?;
        }
        let Some(strike) = log.aim(damage, aim, pick) else {
            return Ok(());
        };
        self.strike(id, &strike, false).map(drop)
    }

    /// Damages the directory of a replica in one place, its machine having crashed. The replica does not start. Returns what
    /// that came to.
    ///
    /// # Errors
    /// The log uses, leaves out or cuts off what it must not.
    pub fn strike(
        &mut self,
        id: ReplicaId,
        strike: &Strike,
        is_before_close: bool,
    ) -> Result<Option<Verdict>, Violation> {
        self.crash(id, UnsyncedWrite::Kept)?;
        let host = self.host(id);
        let Some(log) = &mut host.log else { return Ok(None) };
        if is_before_close {
            log.close(&host.store)?;
        }
        let struck = log.struck(&host.store, strike)?;
        let verdict = struck.verdict;
        self.checkers.points.on_disk_fault(match strike {
            Strike::Flip { .. } => "bit flip",
            Strike::Truncate { .. } => "truncated file",
            Strike::Misdirect { .. } => "misdirected write",
        });
        match verdict {
            Verdict::Harmless | Verdict::Unreadable => {
                self.host(id).replace(struck.store, Some(struck.log));
            }
            Verdict::LastBatchCut if self.is_survivable(id, &struck.store) => {
                self.checkers
                    .points
                    .on_disk_fault("rot in the last batch (limit of L7)");
                self.lose_directory(id, struck.store, Some(struck.log), "cut");
            }
            Verdict::LastBatchCut => {
                self.checkers
                    .points
                    .on_disk_fault("rot in the last batch: nobody would know, left out");
            }
            // What its error says to do: "give it an empty directory".
            Verdict::Refused => {
                self.checkers.points.on_disk_fault("refused to open, emptied");
                self.empty(id);
            }
        }
        Ok(Some(verdict))
    }

    /// Replaces the directory of a replica that is down by an empty one.
    pub(super) fn empty(&mut self, id: ReplicaId) {
        let incarnation = self.new_incarnation();
        let host = self.host(id);
        let log = host.log.as_ref().map(|log| log.renewed(incarnation));
        host.replace(Store::new(incarnation), log);
        self.awaiting_refusal.remove(&id);
        let is_known = self.is_known_otherwise(id, incarnation);
        if is_known {
            self.checkers.directories.on_lost(id, incarnation, EMPTIED);
        }
        self.excuse_unknown();
    }

    /// Replaces the directory by one that holds less.
    pub(super) fn lose_directory(
        &mut self,
        id: ReplicaId,
        left: Store,
        log: Option<LogDisk>,
        what: &'static str,
    ) {
        self.checkers.gate.on_rolled_back(id, &left);
        if !is_as_good(&left, &self.hosts[&id].store) && self.is_survivable(id, &left) {
            self.awaiting_refusal.insert(id);
            self.checkers.directories.on_lost(id, left.incarnation, what);
        } else if !is_as_good(&left, &self.hosts[&id].store) {
            self.checkers
                .points
                .on_disk_fault("an older directory that nobody would know");
            self.checkers.directories.on_forgotten(id, left.incarnation);
        }
        self.host(id).replace(left, log);
        self.excuse_unknown();
    }

    /// Whether a peer has another directory of this replica on disk.
    fn is_known_otherwise(&self, id: ReplicaId, incarnation: Incarnation) -> bool {
        self.hosts.values().any(|peer| {
            let seen = peer.store.meta().peers.get(&id);
            peer.id() != id && seen.is_some_and(|seen| seen.incarnation != incarnation)
        })
    }

    /// Nothing is expected any more of an emptied directory, once nobody is left who knows the one before it: that peer's
    /// own directory is gone as well.
    fn excuse_unknown(&mut self) {
        for id in self.replicas() {
            let incarnation = self.hosts[&id].store.incarnation;
            let is_emptied = self.checkers.directories.what(id, incarnation) == Some(EMPTIED);
            if is_emptied && !self.is_known_otherwise(id, incarnation) {
                self.checkers.directories.on_forgotten(id, incarnation);
            }
        }
    }

    /// Whether the replica must keep its memory, since a directory that lost something is not refused yet.
    pub(super) fn must_remember(&mut self, id: ReplicaId) -> bool {
        let hosts = &self.hosts;
        self.awaiting_refusal.retain(|one| {
            let replica = hosts[one].replica();
            !replica.is_some_and(|replica| matches!(replica.status().admission, Admission::Refused { .. }))
                || replica.is_some_and(|replica| replica.status().failure.is_some())
                || !hosts[one].is_synced()
        });
        self.awaiting_refusal.iter().any(|one| *one != id)
    }

    /// Lets every directory that lost something be refused, all links being open.
    pub(super) fn await_refusals(&mut self) -> Check {
        let waiting: Vec<ReplicaId> = self.awaiting_refusal.iter().copied().collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let now = self.now();
        for id in self.replicas() {
            if let Some(process) = &mut self.host(id).process {
                process.paused_until = 0;
            }
            self.arrange_wake(id, now);
        }
        for id in waiting {
            // A replica that cannot write says nothing, and so hears nothing of itself.
            let has_failed =
                |replica: &synod_coordinator_core::replica::Replica| replica.status().failure.is_some();
            if self.hosts[&id].replica().is_some_and(has_failed) {
                self.crash(id, UnsyncedWrite::Kept)?;
            }
            if self.hosts[&id].process.is_none() {
                self.start(id)?;
            }
        }
        let end = self.now() + REFUSAL_US;
        while self.must_remember(ReplicaId(0)) && self.now() < end {
            self.run_for(10_000)?;
        }
        let left = std::mem::take(&mut self.awaiting_refusal);
        let hosts = left.iter().map(|id| &self.hosts[id]);
        let refused = self.checkers.directories.check_refused(hosts);
        refused.map_err(|violation| violation.by("directories"))
    }

    /// Whether a directory of which only `left` is left does no harm: it holds every vote that it held, or too few peers
    /// would take it for what it was.
    fn is_survivable(&self, id: ReplicaId, left: &Store) -> bool {
        let host = &self.hosts[&id];
        if is_as_good(left, &host.store) {
            return true;
        }
        let needed_count = match left.meta().was_admitted(id, left.incarnation) {
            true => host.config.quorum_count(),
            false => self.hosts.len(),
        };
        let unknowing = self
            .hosts
            .keys()
            .filter(|peer| **peer != id && !self.knows_better(**peer, id, left));
        unknowing.count() + 1 < needed_count
    }

    /// Whether a peer will contradict the directory when it comes up as `left`.
    fn knows_better(&self, peer: ReplicaId, id: ReplicaId, left: &Store) -> bool {
        let host = &self.hosts[&peer];
        let coming = left.meta().start + 1;
        let has_on_disk = host
            .store
            .meta()
            .peers
            .get(&id)
            .is_some_and(|seen| seen.incarnation == left.incarnation && seen.start >= coming);
        let is_about_to_end = host.log.as_ref().is_some_and(LogDisk::has_plans) || self.is_drained(peer);
        let is_sound = matches!(host.disk, Disk::Healthy(_)) && !is_about_to_end;
        let has_in_memory = host.replica().is_some_and(|replica| {
            let (ballot, slot) = replica.acknowledged_by(id);
            let may_answer = replica.status().failure.is_none() && is_sound;
            may_answer && (ballot > left.meta().promised || slot > left.meta().accepted_up_to)
        });
        has_on_disk || has_in_memory
    }
}

/// Whether `left` holds every vote of `whole`: its promise, what it accepted, and in which life.
fn is_as_good(left: &Store, whole: &Store) -> bool {
    let is_kept = |slot: &Slot, (ballot, value): &(Ballot, Bytes)| {
        // What was learned as decided is no vote.
        *ballot == Ballot::DECIDED
            || whole.unreadable().contains(slot)
            || left
                .record(*slot)
                .is_some_and(|held| held == &(*ballot, value.clone()))
    };
    let (one, other) = (left.meta(), whole.meta());
    left.incarnation == whole.incarnation
        && one.start == other.start
        && one.promised == other.promised
        && whole.records().iter().all(|(slot, record)| is_kept(slot, record))
}
