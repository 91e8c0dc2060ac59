//! Agreement per slot, for all replicas and all time; a gap-free applied prefix; equal state at equal slots.

use super::ballots::BallotChecker;
use super::{Violation, require};
use crate::host::Host;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use synod_coordinator_core::machine::outcomes::Record;
use synod_coordinator_core::machine::{Applied, Machine};
use synod_coordinator_core::paxos::{Ballot, Slot};
use synod_coordinator_core::replica::RoleName;
use synod_proto::ids::{Gtid, ReplicaId};

/// Every so many slots a copy of the reference state is kept, against which replicas that stop there are compared.
const CHECKPOINT_SLOTS: u64 = 16;

/// How many copies are kept.
const CHECKPOINT_COUNT_MAX: usize = 16;

/// What a replica has shown so far.
#[derive(Clone, Debug, Default)]
struct Seen {
    life: u64,
    decided_up_to: Slot,
    /// In which ballot it led at the end of its last turn.
    led: Option<Ballot>,
    /// Decided, but not compared yet: the value left memory before it was on disk.
    open: BTreeSet<Slot>,
}

/// The one log that every replica must hold a prefix of, and the state that follows from it.
#[derive(Debug, Default)]
pub struct LogChecker {
    values: BTreeMap<Slot, Bytes>,
    reference: Machine,
    checkpoints: BTreeMap<Slot, Machine>,
    seen: BTreeMap<ReplicaId, Seen>,
}

impl LogChecker {
    /// The state after every slot that any replica has decided.
    #[must_use]
    pub fn reference(&self) -> &Machine {
        &self.reference
    }

    /// The value of a slot, once any replica has decided it.
    #[must_use]
    pub fn value(&self, slot: Slot) -> Option<&Bytes> {
        self.values.get(&slot)
    }

    /// The last slot that any replica has decided.
    #[must_use]
    pub fn decided_up_to(&self) -> Slot {
        self.reference.applied_up_to()
    }

    /// Looks at what the replica has decided since the last look. Returns the outcomes that are new to the world.
    ///
    /// # Errors
    /// Two values for one slot, a decided value without a quorum of disks, a prefix that shrank, or another state than
    /// the log gives.
    pub fn after_turn(
        &mut self,
        hosts: &BTreeMap<ReplicaId, Host>,
        host: &Host,
        ballots: &BallotChecker,
    ) -> Result<Vec<(Gtid, Record)>, Violation> {
        let Some(replica) = host.replica() else {
            return Ok(Vec::new());
        };
        let id = host.id();
        let mut seen = self.seen.remove(&id).unwrap_or_default();
        if seen.life != host.life {
            seen = Seen {
                life: host.life,
                ..Seen::default()
            };
        }
        let from = seen.decided_up_to;
        let status = replica.status();
        require(status.decided_up_to >= from, || {
            format!(
                "replica {id}: the decided prefix fell from {from} to {}",
                status.decided_up_to
            )
        })?;
        seen.decided_up_to = status.decided_up_to;
        let is_leader = matches!(status.role, RoleName::Leading | RoleName::Serving);
        // One turn may hear the last acceptance and then of a higher ballot: what was decided then, was decided as a leader.
        let led = seen.led;
        seen.led = is_leader.then_some(status.ballot);
        let mut fresh = Vec::new();
        seen.open.extend((from.0 + 1..=status.decided_up_to.0).map(Slot));
        for slot in seen.open.clone() {
            // A value that no longer lies in memory is on disk, once the disk has caught up; what a leader proposed was
            // seen when it left.
            let proposed = || ballots.proposed(status.ballot, slot).filter(|_| is_leader);
            let held = replica.decided_value(slot).or_else(proposed);
            let on_disk = || {
                host.store
                    .record(slot)
                    .filter(|_| host.is_synced())
                    .map(|(_, value)| value)
            };
            let proposed_before = || {
                let ballot = led?;
                let told_count = ballots.accepted_count(ballot, slot) + 1;
                let is_decided = told_count >= host.config.quorum_count();
                ballots.proposed(ballot, slot).filter(|_| is_decided)
            };
            let Some(value) = held.or_else(on_disk).or_else(proposed_before) else {
                // Known from another replica, it is compared later; unknown, nothing behind it can be taken before it.
                if self.values.contains_key(&slot) {
                    continue;
                } else {
                    break;
                }
            };
            seen.open.remove(&slot);
            match self.values.get(&slot) {
                Some(known) => require(known == value, || {
                    format!("slot {slot}: replica {id} decided another value than was decided before")
                })?,
                None => {
                    self.check_quorum(hosts, host, slot, value)?;
                    // P2b: a leader that decides first has been told by enough others that they accepted in its ballot.
                    let told_count = ballots.accepted_count(status.ballot, slot) + 1;
                    require(!is_leader || told_count >= host.config.quorum_count(), || {
                        format!(
                            "slot {slot}: replica {id} decided in ballot {} on the word of {told_count}",
                            status.ballot
                        )
                    })?;
                    let value = value.clone();
                    fresh.extend(self.take(slot, &value)?);
                    self.values.insert(slot, value);
                }
            }
        }
        self.seen.insert(id, seen);
        let machine = replica.machine();
        require(
            status.failure.is_some() || machine.applied_up_to() == status.decided_up_to,
            || {
                format!(
                    "replica {id} decided up to {} but applied up to {}",
                    status.decided_up_to,
                    machine.applied_up_to()
                )
            },
        )?;
        // Comparing takes time: once per slot at which the replica stops.
        if status.decided_up_to > from
            && let Some(expected) = self.checkpoints.get(&machine.applied_up_to())
        {
            require(machine == expected, || {
                format!(
                    "replica {id}: another state after slot {}",
                    machine.applied_up_to()
                )
            })?;
        }
        Ok(fresh)
    }

    /// A state that claims to follow from the whole log.
    ///
    /// # Errors
    /// It does not.
    pub fn check_final(&self, host: &Host) -> super::Check {
        let Some(replica) = host.replica() else {
            return Ok(());
        };
        require(replica.machine() == &self.reference, || {
            format!(
                "replica {} ended at slot {} with another state than the log gives at slot {}",
                host.id(),
                replica.machine().applied_up_to(),
                self.reference.applied_up_to()
            )
        })
    }

    /// Traps B1: when a value is first taken as decided, a quorum holds it on disk, or held it until a fault took it.
    fn check_quorum(
        &self,
        hosts: &BTreeMap<ReplicaId, Host>,
        host: &Host,
        slot: Slot,
        value: &Bytes,
    ) -> Result<(), Violation> {
        let count = hosts.values().filter(|one| one.has_synced(slot, value)).count();
        require(count >= host.config.quorum_count(), || {
            format!(
                "slot {slot}: replica {} decided a value that {count} disks hold",
                host.id()
            )
        })
    }

    fn take(&mut self, slot: Slot, value: &Bytes) -> Result<Vec<(Gtid, Record)>, Violation> {
        let applied = self.reference.apply(slot, value).map_err(|error| {
            Violation(format!(
                "slot {slot}: a value that is no entry was decided: {error}"
            ))
        })?;
        let mut fresh = Vec::new();
        for one in applied {
            // A record may be finished, and gone below the watermark, within the entry that made it.
            if let Applied::Decided {
                gtid, first: true, ..
            } = one
                && let Some(record) = self.reference.outcomes().record(gtid)
            {
                fresh.push((gtid, record.into_owned()));
            }
        }
        if slot.0.is_multiple_of(CHECKPOINT_SLOTS) {
            self.checkpoints.insert(slot, self.reference.clone());
            while self.checkpoints.len() > CHECKPOINT_COUNT_MAX {
                self.checkpoints.pop_first();
            }
        }
        Ok(fresh)
    }
}
