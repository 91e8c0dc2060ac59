//! One proposer and one value per ballot and slot; one serving leader per ballot; and calm after healing.

use super::{Check, require};
use crate::host::{Host, Output};
use crate::schedule::Micros;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use synod_coordinator_core::effects::Notice;
use synod_coordinator_core::paxos::{Ballot, Message, Slot};
use synod_proto::ids::ReplicaId;

/// Watches ballots.
#[derive(Debug, Default)]
pub struct BallotChecker {
    proposed: BTreeMap<(Ballot, Slot), Bytes>,
    /// The process, by its count on its machine, that stood in a ballot.
    owners: BTreeMap<Ballot, u64>,
    /// Who has said that it accepted in a ballot and slot; it says so after its sync.
    accepted: BTreeMap<(Ballot, Slot), BTreeSet<ReplicaId>>,
    led: BTreeMap<Ballot, Micros>,
    stood: BTreeMap<Ballot, Micros>,
}

impl BallotChecker {
    /// How many ballots were begun in `from..to`.
    #[must_use]
    pub fn begun_between(&self, from: Micros, to: Micros) -> usize {
        self.stood.values().filter(|at| (from..to).contains(at)).count()
    }

    /// In how many ballots a leader began to serve.
    #[must_use]
    pub fn led_count(&self) -> usize {
        self.led.len()
    }

    /// The value that was proposed in a ballot and slot.
    #[must_use]
    pub fn proposed(&self, ballot: Ballot, slot: Slot) -> Option<&Bytes> {
        self.proposed.get(&(ballot, slot))
    }

    /// How many replicas have said that they accepted in a ballot and slot; a leader does not say so to itself.
    #[must_use]
    pub fn accepted_count(&self, ballot: Ballot, slot: Slot) -> usize {
        self.accepted.get(&(ballot, slot)).map_or(0, BTreeSet::len)
    }

    /// Looks at a turn.
    ///
    /// # Errors
    /// Two values in one ballot and slot, a ballot of a former process or of another replica, a second leader, or one
    /// that serves before it has applied `decided_up_to`, which somebody has learned by now (traps A4).
    pub fn after_turn(&mut self, now: Micros, host: &Host, output: &Output, decided_up_to: Slot) -> Check {
        let id = host.id();
        for envelope in &output.envelopes {
            match &envelope.message {
                Message::Prepare { ballot, .. } => {
                    self.stood.entry(*ballot).or_insert(now);
                    self.check_owner(*ballot, host)?;
                }
                Message::Accepted { ballot, slot } => {
                    self.accepted.entry((*ballot, *slot)).or_default().insert(id);
                }
                Message::Accept {
                    ballot, slot, value, ..
                } => {
                    self.check_owner(*ballot, host)?;
                    let first = self
                        .proposed
                        .entry((*ballot, *slot))
                        .or_insert_with(|| value.clone());
                    require(first == value, || {
                        format!("replica {id} proposed two values in slot {slot}, ballot {ballot}")
                    })?;
                }
                _ => {}
            }
        }
        for notice in &output.notices {
            if let Notice::Leading(ballot) = notice {
                let is_new = self.led.insert(*ballot, now).is_none();
                require(is_new && ballot.replica == id, || {
                    format!("replica {id} leads in ballot {ballot} as a second one")
                })?;
                let applied_up_to = host.replica().map(|replica| replica.machine().applied_up_to());
                let chosen_up_to = decided_up_to.min(self.chosen_before(*ballot));
                require(applied_up_to >= Some(chosen_up_to), || {
                    format!(
                        "replica {id} serves in ballot {ballot}, has applied {applied_up_to:?}, and slot {chosen_up_to} \
                         was decided before"
                    )
                })?;
            }
        }
        Ok(())
    }

    /// The slots that can only have been decided in this ballot or lower ones. A replica that slept may learn in one turn that
    /// it won, and that others have gone on in a higher ballot: of what they decided it knows nothing, and needs not.
    fn chosen_before(&self, ballot: Ballot) -> Slot {
        let higher = self.proposed.keys().filter(|(one, _)| *one > ballot);
        let first = higher.map(|(_, slot)| slot.0).min();
        Slot(first.map_or(u64::MAX, |first| first.saturating_sub(1)))
    }

    fn check_owner(&mut self, ballot: Ballot, host: &Host) -> Check {
        let life = *self.owners.entry(ballot).or_insert(host.life);
        require(ballot.replica == host.id() && life == host.life, || {
            format!(
                "process {} of replica {} proposes in ballot {ballot} of process {life}",
                host.life,
                host.id()
            )
        })
    }
}
