//! How faults take hold in the world.

use super::held::Way;
use super::{Event, World};
use crate::actors::service::ServiceFault;
use crate::chance::place_of;
use crate::checkers::Check;
use crate::faults::Fault;
use crate::host::Disk;
use crate::log_disk::damage::{Aim, Damage};
use crate::log_disk::{End, LogDisk};
use crate::store::UnsyncedWrite;
use synod_coordinator_core::paxos::Slot;
use synod_coordinator_core::replica::{Input, RoleName};
use synod_proto::ids::{ReplicaId, SessionId};

/// A service takes at least so long to find that its session's other end is gone.
const NOTICE_US_MIN: u64 = 1_000;

/// Longer than any pause that plans had before there were long ones.
const LONG_PAUSE_US: u64 = 1_500_000;

impl World {
    /// Makes a fault happen now.
    ///
    /// # Errors
    /// A checker found something.
    pub fn on_fault(&mut self, fault: Fault) -> Check {
        let effect = self.effect_of(&fault);
        self.inflict(fault)?;
        self.note_effect(effect);
        Ok(())
    }

    fn inflict(&mut self, fault: Fault) -> Check {
        if self.ended_by(&fault).is_some_and(|id| self.must_remember(id)) {
            return Ok(());
        }
        if let Fault::Damage(id, ..)
        | Fault::Corrupt(id, _)
        | Fault::Wipe(id)
        | Fault::PutBack(id)
        | Fault::Rollback(id) = fault
        {
            self.doubtful.insert(id);
        }
        match fault {
            Fault::Crash(id, unsynced) => self.crash(id, unsynced)?,
            Fault::CrashLeader(unsynced) => {
                if let Some(id) = self.serving() {
                    self.crash(id, unsynced)?;
                }
            }
            Fault::CrashAt(id, point, down_us) => {
                if let Some(log) = &mut self.host(id).log {
                    log.plan_crash(point);
                    self.down_us.insert(id, down_us);
                }
            }
            Fault::FailOperation(id, fault, after) => {
                if let Some(log) = &self.hosts[&id].log {
                    log.plan_fault(fault, after);
                }
            }
            Fault::Damage(id, damage, aim, pick) => self.damage(id, damage, aim, pick)?,
            Fault::PutBack(id) => self.put_back(id)?,
            Fault::Swap(one, other) => self.swap(one, other)?,
            Fault::Start(id) => {
                if self.hosts[&id].process.is_none() && !self.is_swapped(id) {
                    self.start(id)?;
                }
            }
            Fault::Drain(id) => {
                if self.hosts[&id].process.is_some() {
                    self.drained.insert(id);
                    self.post(id, Input::Drain);
                }
            }
            Fault::Pause(id, length) => {
                let until = self.now() + length;
                if let Some(process) = &mut self.host(id).process {
                    process.paused_until = until;
                    if length > LONG_PAUSE_US {
                        self.checkers
                            .points
                            .count("machine", "a replica paused for more than 1.5 s", 1);
                    }
                }
            }
            Fault::Cut(from, to) => self.network.cut(from, to),
            Fault::Clog(from, to, length) => self.hold_up(Way::Link(from, to), length),
            Fault::Topology(open) => self.set_topology(|from, to| open.contains(&(from, to))),
            Fault::Hush(pick) => self.hush(pick),
            Fault::Rush(count, gap_us) => self.rush(count, gap_us),
            Fault::Mend => self.set_topology(|_, _| true),
            Fault::Weather(weather) => self.network.weather = weather,
            Fault::WallClock(id, offset_ms) => self.host(id).clocks.wall_offset_ms = offset_ms,
            Fault::SlowDisk(id, sync_us) => {
                if let Disk::Healthy(_) = self.hosts[&id].disk {
                    self.host(id).disk = Disk::Healthy(sync_us);
                }
            }
            Fault::FailDisk(id, kind) => {
                if self.hosts[&id].process.is_some() {
                    self.host(id).disk = Disk::Failing(kind);
                }
            }
            Fault::Corrupt(id, pick) => {
                self.crash(id, UnsyncedWrite::Kept)?;
                self.corrupt(id, pick)?;
            }
            Fault::Wipe(id) => {
                self.crash(id, UnsyncedWrite::Lost)?;
                self.checkers.points.on_disk_fault("wiped");
                self.empty(id);
                self.start(id)?;
            }
            Fault::Backup(id) => {
                let host = &self.hosts[&id];
                let backup = match &host.log {
                    Some(log) => {
                        let (copy, log) = log.backup(&host.store)?;
                        (copy, Some(log))
                    }
                    None => {
                        let mut copy = host.store.clone();
                        copy.crash(UnsyncedWrite::Lost);
                        (copy, None)
                    }
                };
                self.backups.insert(id, backup);
            }
            Fault::Rollback(id) => {
                if let Some((copy, log)) = self.backups.remove(&id) {
                    self.crash(id, UnsyncedWrite::Lost)?;
                    self.lose_directory(id, copy, log, "rolled back");
                    self.start(id)?;
                }
            }
            Fault::CutLine(actor, replica, direction, length) => {
                self.cut_line(actor, replica, direction, length);
            }
            Fault::ClogLine(actor, replica, length) => {
                self.hold_up(Way::Line(actor, replica, true), length);
                self.hold_up(Way::Line(actor, replica, false), length);
            }
            Fault::PauseActor(id, length) => self.hold_up(Way::Service(id), length),
            Fault::CrashActor(id) => {
                let owned: Vec<SessionId> = self
                    .sessions
                    .iter()
                    .filter(|(_, one)| one.owner == Some(id) && one.is_open)
                    .map(|(session, _)| *session)
                    .collect();
                for session in owned {
                    self.close_session(session);
                }
                self.actors.get_mut(&id).expect("an actor of this world").life += 1;
                self.with_actor(id, |actor, scene| actor.on_start(scene))?;
                // The next process does not stand still; what waits is for the last one, or late.
                self.release(Way::Service(id))?;
            }
            Fault::Service(id, ServiceFault::WallClock(offset_ms)) => {
                self.actors
                    .get_mut(&id)
                    .expect("an actor of this world")
                    .wall_offset_ms = offset_ms;
            }
            Fault::Service(id, fault) => {
                self.with_actor(id, |actor, scene| actor.on_service_fault(scene, fault))?;
            }
            Fault::BreakSessions => self.break_sessions(|_| true),
        }
        Ok(())
    }

    /// Ends every fault: all links hold, all replicas run on healthy disks with true clocks, the weather is calm.
    ///
    /// # Errors
    /// A checker found something.
    pub fn heal(&mut self) -> Check {
        self.healed_at = Some(self.now());
        self.left_out.clear();
        self.on_fault(Fault::Mend)?;
        self.release_all()?;
        self.network.weather = crate::network::Weather::CALM;
        self.setup.lines.loss_ppm = 0;
        for cast in self.actors.values_mut() {
            cast.wall_offset_ms = 0;
        }
        if let Some((one, other)) = self.swapped {
            self.swap(one, other)?;
        }
        for host in self.hosts.values_mut() {
            host.log.iter_mut().for_each(LogDisk::mend);
        }
        self.await_refusals()?;
        let sync_us = self.setup.sync_us;
        for id in self.replicas() {
            let needs_restart = self.hosts[&id]
                .replica()
                .is_some_and(|replica| replica.status().failure.is_some() || self.is_drained(id));
            if needs_restart {
                self.crash(id, UnsyncedWrite::Kept)?;
            }
            let host = self.host(id);
            host.disk = Disk::Healthy(sync_us);
            host.clocks.wall_offset_ms = 0;
            if let Some(process) = &mut host.process {
                process.paused_until = 0;
            }
            self.on_fault(Fault::Start(id))?;
            let now = self.now();
            self.arrange_wake(id, now);
        }
        Ok(())
    }

    pub(super) fn crash(&mut self, id: ReplicaId, unsynced: UnsyncedWrite) -> Check {
        self.crash_by(id, End::Stop(unsynced))
    }

    pub(super) fn crash_by(&mut self, id: ReplicaId, end: End) -> Check {
        self.drained.remove(&id);
        self.break_sessions(|replica| replica == id);
        self.host(id).crash(end)
    }

    /// The machine has stopped at the operation of its disk that was planned; it starts again after a while.
    pub(super) fn on_planned_crash(&mut self, id: ReplicaId) -> Check {
        self.crash_by(id, End::Planned)?;
        self.checkers.points.on_disk_fault("crash at an operation");
        let (_, in_repair) = self.hosts[&id]
            .log
            .as_ref()
            .map_or((0, 0), |log| log.planned_crash_count);
        if in_repair > 0 {
            self.checkers.points.on_disk_fault("crash during recovery");
        }
        let down_us = self.down_us.remove(&id).unwrap_or_default();
        self.schedule.after(down_us, Event::Fault(Fault::Start(id)));
        Ok(())
    }

    /// The replica whose process a fault would end, if there is one that must not be ended for what it remembers.
    fn ended_by(&self, fault: &Fault) -> Option<ReplicaId> {
        match fault {
            Fault::Crash(id, _)
            | Fault::CrashAt(id, ..)
            | Fault::FailDisk(id, _)
            | Fault::FailOperation(id, ..)
            | Fault::Corrupt(id, _)
            | Fault::Damage(id, ..)
            | Fault::Wipe(id)
            | Fault::Drain(id)
            | Fault::PutBack(id)
            | Fault::Rollback(id)
            | Fault::Swap(id, _) => Some(*id),
            Fault::CrashLeader(_) => self.serving(),
            _ => None,
        }
    }

    /// The directories of two replicas change places, or change back: each is refused on the other's machine.
    fn swap(&mut self, one: ReplicaId, other: ReplicaId) -> Check {
        if self.swapped.take().is_some() {
            return Ok(());
        }
        if one == other || self.hosts[&one].log.is_none() || self.must_remember(other) {
            return Ok(());
        }
        self.swapped = Some((one, other));
        for (id, at) in [(one, other), (other, one)] {
            self.crash(id, UnsyncedWrite::Lost)?;
            if let Some(log) = &self.hosts[&id].log {
                log.check_refused_by(at)?;
                self.checkers.points.on_disk_fault("swapped directory refused");
            }
        }
        Ok(())
    }

    fn is_swapped(&self, id: ReplicaId) -> bool {
        self.swapped.is_some_and(|(one, other)| one == id || other == id)
    }

    pub(super) fn is_drained(&self, id: ReplicaId) -> bool {
        self.drained.contains(&id)
    }

    fn break_sessions(&mut self, is_meant: impl Fn(ReplicaId) -> bool) {
        let broken: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, one)| one.is_open && is_meant(one.replica))
            .map(|(session, _)| *session)
            .collect();
        for session in broken {
            let delay = self.random.between(NOTICE_US_MIN, self.setup.notice_us_max);
            if delay > 2_000_000 {
                self.checkers
                    .points
                    .count("network", "a session broke and nobody noticed for 2 s", 1);
            }
            self.schedule.after(delay, Event::SessionLost { session });
        }
    }

    fn corrupt(&mut self, id: ReplicaId, pick: u64) -> Check {
        let slots: Vec<Slot> = self.hosts[&id].store.readable().collect();
        if slots.is_empty() {
            return Ok(());
        }
        let slot = slots[place_of(pick, slots.len())];
        if self.hosts[&id].log.is_some() {
            let aim = match pick >> 63 {
                0 => Aim::AnywhereBeforeClose,
                _ => Aim::LastBeforeClose,
            };
            return self.damage(id, Damage::Flip, aim, pick);
        }
        self.host(id).store.corrupt(slot);
        Ok(())
    }

    /// Whoever is ahead in the race for leadership is not heard by some, or does not hear some.
    fn hush(&mut self, pick: u64) {
        let ahead = self
            .hosts
            .values()
            .filter_map(|host| Some((host.replica()?.status(), host.id())))
            .filter(|(status, _)| status.role != RoleName::Follower)
            .max_by_key(|(status, _)| status.ballot)
            .map(|(_, id)| id);
        let is_cut_off = |peer: ReplicaId| pick >> (peer.0 % 32) & 1 == 1;
        let is_heard = pick >> 63 == 1;
        self.set_topology(|from, to| {
            let (one, peer) = if is_heard { (to, from) } else { (from, to) };
            Some(one) != ahead || !is_cut_off(peer)
        });
    }

    pub(super) fn set_topology(&mut self, is_open: impl Fn(ReplicaId, ReplicaId) -> bool) {
        let all = self.replicas();
        for from in &all {
            // A replica has no line to itself.
            for to in all.iter().filter(|to| *to != from) {
                if is_open(*from, *to) {
                    if self.network.mend(*from, *to) {
                        self.schedule.after(
                            20_000,
                            Event::Connected {
                                replica: *from,
                                peer: *to,
                            },
                        );
                        self.schedule.after(
                            20_000,
                            Event::Connected {
                                replica: *to,
                                peer: *from,
                            },
                        );
                    }
                } else {
                    self.network.cut(*from, *to);
                }
            }
        }
    }

    pub(super) fn host(&mut self, id: ReplicaId) -> &mut crate::host::Host {
        self.hosts.get_mut(&id).expect("a replica of this world")
    }
}
