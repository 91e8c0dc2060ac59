//! How faults take hold in the world.

use super::{Event, World};
use crate::chance::place_of;
use crate::checkers::Check;
use crate::faults::Fault;
use crate::host::Disk;
use crate::log_disk::LogDisk;
use crate::store::{Store, UnsyncedWrite};
use synod_coordinator_core::paxos::Slot;
use synod_coordinator_core::replica::Input;
use synod_proto::ids::{ReplicaId, SessionId};

/// How long a service takes to find that its session's other end is gone.
const NOTICE_US: (u64, u64) = (1_000, 300_000);

impl World {
    /// Makes a fault happen now.
    ///
    /// # Errors
    /// A checker found something.
    pub fn on_fault(&mut self, fault: Fault) -> Check {
        match fault {
            Fault::Crash(id, unsynced) => self.crash(id, unsynced)?,
            Fault::CrashLeader(unsynced) => {
                if let Some(id) = self.serving() {
                    self.crash(id, unsynced)?;
                }
            }
            Fault::Start(id) => {
                if self.hosts[&id].process.is_none() {
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
                }
            }
            Fault::Cut(from, to) => self.network.cut(from, to),
            Fault::Topology(open) => self.set_topology(|from, to| open.contains(&(from, to))),
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
                let incarnation = self.new_incarnation();
                self.checkers.log.disks_are_whole = false;
                let host = self.host(id);
                host.store = Store::new(incarnation);
                host.log = host.log.as_ref().map(|log| log.renewed(incarnation));
                self.start(id)?;
            }
            Fault::Backup(id) => {
                let host = &self.hosts[&id];
                let (mut copy, log) = (host.store.clone(), host.log.as_ref().map(LogDisk::copy));
                copy.crash(UnsyncedWrite::Lost);
                self.backups.insert(id, (copy, log));
            }
            Fault::Rollback(id) => {
                if let Some((copy, log)) = self.backups.remove(&id) {
                    self.crash(id, UnsyncedWrite::Lost)?;
                    self.checkers.log.disks_are_whole = false;
                    self.checkers.gate.on_rolled_back(copy.incarnation);
                    let host = self.host(id);
                    (host.store, host.log) = (copy, log);
                    self.start(id)?;
                }
            }
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
        self.on_fault(Fault::Mend)?;
        self.network.weather = crate::network::Weather::CALM;
        self.setup.lines.loss_ppm = 0;
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
        self.drained.remove(&id);
        self.break_sessions(|replica| replica == id);
        self.host(id).crash(unsynced)
    }

    fn is_drained(&self, id: ReplicaId) -> bool {
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
            let delay = self.random.between(NOTICE_US.0, NOTICE_US.1);
            self.schedule.after(delay, Event::SessionLost { session });
        }
    }

    fn corrupt(&mut self, id: ReplicaId, pick: u64) -> Check {
        let slots: Vec<Slot> = self.hosts[&id].store.readable().collect();
        if slots.is_empty() {
            return Ok(());
        }
        let slot = slots[place_of(pick, slots.len())];
        self.checkers.log.disks_are_whole = false;
        let host = self.host(id);
        match &mut host.log {
            Some(log) => log.corrupt(&mut host.store, pick),
            None => {
                host.store.corrupt(slot);
                Ok(())
            }
        }
    }

    fn set_topology(&mut self, is_open: impl Fn(ReplicaId, ReplicaId) -> bool) {
        let all = self.replicas();
        for from in &all {
            for to in &all {
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

    fn host(&mut self, id: ReplicaId) -> &mut crate::host::Host {
        self.hosts.get_mut(&id).expect("a replica of this world")
    }
}
