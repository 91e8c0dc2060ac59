//! A healing that leaves some replicas broken: what the protocol promises to a majority, a majority must do alone.
//!
//! What suffices is a majority of replicas that run and hear each other, whose directories are whole. Whole is a directory
//! that was admitted (one that never was needs the word of every replica, L10), that lost nothing which it had acknowledged
//! or was admitted anew since (L10), and that can read all of its slots (L3 asks for a majority of readable reports). The
//! minority that stays broken is drawn among those that leave such a majority.

use super::World;
use crate::chance::{pick, place};
use crate::checkers::Check;
use crate::store::UnsyncedWrite;
use std::collections::BTreeMap;
use synod_coordinator_core::random::Random;
use synod_coordinator_core::replica::Admission;
use synod_proto::ids::ReplicaId;

/// How a replica stays broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// Its process does not run.
    Down,
    /// No replica hears it, and it hears none.
    CutOff,
    /// It hears no replica, and is heard.
    Deaf,
    /// It hears every replica, and none hears it.
    Mute,
}

impl Broken {
    fn point(self) -> &'static str {
        match self {
            Self::Down => "left down",
            Self::CutOff => "left cut off",
            Self::Deaf => "left deaf",
            Self::Mute => "left mute",
        }
    }

    fn hears(self) -> bool {
        self == Self::Mute
    }

    fn is_heard(self) -> bool {
        self == Self::Deaf
    }
}

impl World {
    /// Heals all but a minority of the replicas, which `seed` draws.
    ///
    /// # Errors
    /// A checker found something.
    pub fn heal_core(&mut self, seed: u64) -> Check {
        self.heal()?;
        let mut random = Random::new(seed);
        let mut candidates = self.replicas();
        let quorum_count = candidates.len() / 2 + 1;
        let count = 1 + place(&mut random, (candidates.len() - quorum_count).max(1));
        let mut left_out = BTreeMap::new();
        while left_out.len() < count && !candidates.is_empty() {
            let id = candidates.remove(place(&mut random, candidates.len()));
            let kinds = [
                Broken::Down,
                Broken::Down,
                Broken::CutOff,
                Broken::Deaf,
                Broken::Mute,
            ];
            let broken = pick(&mut random, &kinds);
            let rest = self
                .hosts
                .keys()
                .filter(|one| **one != id && !left_out.contains_key(*one));
            if rest.filter(|one| self.is_whole(**one)).count() >= quorum_count {
                left_out.insert(id, broken);
            }
        }
        if left_out.is_empty() {
            self.checkers
                .points
                .count("core", "no majority of whole directories without one", 1);
        }
        for (id, broken) in &left_out {
            self.checkers.points.count("core", broken.point(), 1);
            if *broken == Broken::Down {
                self.crash(*id, UnsyncedWrite::Kept)?;
            }
        }
        self.set_topology(|from, to| {
            left_out.get(&from).is_none_or(|broken| broken.is_heard())
                && left_out.get(&to).is_none_or(|broken| broken.hears())
        });
        self.left_out = left_out;
        Ok(())
    }

    /// Heals what was left broken. The moment of the healing stays that of the core's.
    ///
    /// # Errors
    /// A checker found something.
    pub fn heal_rest(&mut self) -> Check {
        let healed_at = self.healed_at;
        self.heal()?;
        self.healed_at = healed_at;
        Ok(())
    }

    /// Whether some replicas were left broken.
    #[must_use]
    pub fn has_left_out(&self) -> bool {
        !self.left_out.is_empty()
    }

    /// The machines that were not left broken.
    pub fn core(&self) -> impl Iterator<Item = &crate::host::Host> {
        self.hosts
            .values()
            .filter(|host| !self.left_out.contains_key(&host.id()))
    }

    fn is_whole(&self, id: ReplicaId) -> bool {
        let host = &self.hosts[&id];
        let admission = host.replica().map(|replica| replica.status().admission);
        let is_admitted = match admission {
            Some(Admission::Admitted) => true,
            Some(Admission::Refused { .. }) => false,
            Some(Admission::Pending { .. }) | None => !self.doubtful.contains(&id),
        };
        is_admitted
            && host.store.meta().was_admitted(id, host.store.incarnation)
            && host.store.unreadable().is_empty()
    }
}
