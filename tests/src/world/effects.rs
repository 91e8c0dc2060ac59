//! Whether a fault that was planned takes hold: a run in which every fault found nothing to strike has tested nothing.

use super::World;
use crate::actors::service::ServiceFault;
use crate::checkers::points::TOOK_HOLD_LATER;
use crate::faults::Fault;
use crate::host::Disk;
use crate::network::Weather;
use crate::plan::fault_kind;
use crate::schedule::Micros;
use std::collections::BTreeSet;
use synod_proto::ids::ReplicaId;

/// By what it shows.
enum Evidence {
    /// By what has changed since.
    Change(Box<Snapshot>),
    /// By this, which is known before.
    Known(bool),
}

/// A fault that is about to happen.
pub(super) struct Effect {
    kind: &'static str,
    evidence: Evidence,
}

/// What faults change at once.
#[derive(PartialEq)]
struct Snapshot {
    machines: Vec<Machine>,
    cut: Vec<(ReplicaId, ReplicaId)>,
    weather: Weather,
    drained: BTreeSet<ReplicaId>,
    swapped: Option<(ReplicaId, ReplicaId)>,
}

#[derive(PartialEq)]
struct Machine {
    life: u64,
    paused_until: Option<Micros>,
    disk: Disk,
    wall_offset_ms: i64,
}

impl World {
    /// What to look for, to see whether the fault takes hold; `None` where that shows later, at a named point
    /// ([`TOOK_HOLD_LATER`]), or where nobody counts: when the world is being healed.
    pub(super) fn effect_of(&self, fault: &Fault) -> Option<Effect> {
        let kind = fault_kind(fault);
        let shows_later = TOOK_HOLD_LATER.iter().any(|(one, _)| *one == kind);
        if shows_later || self.healed_at.is_some() {
            return None;
        }
        let evidence = match fault {
            Fault::Crash(..)
            | Fault::CrashLeader(_)
            | Fault::Start(_)
            | Fault::Drain(_)
            | Fault::Pause(..)
            | Fault::Cut(..)
            | Fault::Topology(_)
            | Fault::Hush(_)
            | Fault::Mend
            | Fault::Weather(_)
            | Fault::WallClock(..)
            | Fault::SlowDisk(..)
            | Fault::Swap(..) => Evidence::Change(Box::new(self.snapshot())),
            Fault::Rollback(id) => Evidence::Known(self.backups.contains_key(id)),
            Fault::BreakSessions => Evidence::Known(self.sessions.values().any(|one| one.is_open)),
            Fault::Service(id, ServiceFault::WallClock(offset_ms)) => {
                let known = self.actors.get(id).map(|cast| cast.wall_offset_ms);
                Evidence::Known(known != Some(*offset_ms))
            }
            // They always find something: a directory, a service, a link.
            _ => Evidence::Known(true),
        };
        Some(Effect { kind, evidence })
    }

    /// The fault has happened.
    pub(super) fn note_effect(&mut self, effect: Option<Effect>) {
        let Some(Effect { kind, evidence }) = effect else {
            return;
        };
        let took_hold = match evidence {
            Evidence::Change(before) => *before != self.snapshot(),
            Evidence::Known(took_hold) => took_hold,
        };
        self.checkers.points.on_fault(kind, took_hold);
    }

    fn snapshot(&self) -> Snapshot {
        let machines = self.hosts.values().map(|host| Machine {
            // A crashed process shows in its pause: it has none.
            life: host.life,
            paused_until: host.process.as_ref().map(|process| process.paused_until),
            disk: host.disk,
            wall_offset_ms: host.clocks.wall_offset_ms,
        });
        let all = self.replicas();
        let pairs = all.iter().flat_map(|from| all.iter().map(|to| (*from, *to)));
        Snapshot {
            machines: machines.collect(),
            cut: pairs
                .filter(|(from, to)| !self.network.is_open(*from, *to))
                .collect(),
            weather: self.network.weather,
            drained: self.drained.clone(),
            swapped: self.swapped,
        }
    }
}
