//! How replicas live in the world: their processes start, are woken, hear of their writes, and are done what they ask for.

use super::services::drift;
use super::{Event, World};
use crate::checkers::{Check, require};
use crate::clocks::Clocks;
use crate::host::{Disk, Output};
use crate::log_disk::End;
use crate::schedule::Micros;
use synod_coordinator_core::replica::Input;
use synod_proto::ids::ReplicaId;

/// How soon a process that sleeps is looked at again.
const LOOK_AGAIN_US: Micros = 20_000;

impl World {
    /// Starts a replica's process.
    ///
    /// # Errors
    /// A checker found something.
    pub fn start(&mut self, id: ReplicaId) -> Check {
        let now = self.now();
        let (seed, base) = (self.random.next_u64(), self.random.between(0, 1 << 40));
        let most = u64::from(self.setup.drift_ppm_max.0);
        let drift_ppm = drift(self.random.between(0, 2 * most), most);
        self.count_drift(drift_ppm, "a replica's clock is off by more than a tenth");
        let mail_us_max = self.setup.mail_us_max;
        let host = self.hosts.get_mut(&id).expect("a replica of this world");
        host.clocks = Clocks::new(now, base, drift_ppm, host.clocks.wall_offset_ms);
        if let Disk::Failing(_) = host.disk {
            host.disk = Disk::Healthy(self.setup.sync_us);
        }
        let output = host.start(now, seed, mail_us_max)?;
        for peer in self.replicas() {
            if peer != id {
                self.schedule.after(1_000, Event::Connected { replica: id, peer });
                self.schedule.after(
                    1_000,
                    Event::Connected {
                        replica: peer,
                        peer: id,
                    },
                );
            }
        }
        self.on_output(id, output)
    }

    pub(super) fn post(&mut self, id: ReplicaId, input: Input) {
        let now = self.now();
        let host = self.hosts.get_mut(&id).expect("a replica of this world");
        let Some(process) = &host.process else { return };
        let delay = self.random.between(0, process.mail_us_max);
        let mail_count = host.post(input);
        self.checkers.queues.on_mail(mail_count);
        self.arrange_wake(id, now + delay);
    }

    pub(super) fn arrange_wake(&mut self, id: ReplicaId, at: Micros) {
        let host = self.hosts.get_mut(&id).expect("a replica of this world");
        let life = host.life;
        let Some(process) = &mut host.process else { return };
        let at = at.max(process.paused_until);
        if process.wake_at.is_none_or(|arranged| at < arranged) {
            process.wake_at = Some(at);
            self.schedule.at(
                at,
                Event::Wake {
                    replica: id,
                    life,
                    at,
                },
            );
        }
    }

    pub(super) fn on_wake(&mut self, id: ReplicaId, life: u64, at: Micros) -> Check {
        let now = self.now();
        let host = self.hosts.get_mut(&id).expect("a replica of this world");
        let Some(process) = &mut host.process else {
            return Ok(());
        };
        if host.life != life || process.wake_at != Some(at) {
            return Ok(());
        }
        process.wake_at = None;
        if process.paused_until > now {
            self.arrange_wake(id, now);
            return Ok(());
        }
        let output = host.wake(now);
        self.on_output(id, output)
    }

    pub(super) fn on_synced(&mut self, id: ReplicaId, life: u64) -> Check {
        let now = self.now();
        let host = self.hosts.get_mut(&id).expect("a replica of this world");
        let Some(process) = &host.process else {
            return Ok(());
        };
        if host.life != life {
            return Ok(());
        }
        if process.paused_until > now {
            // Again and again, since healing may wake it before its time.
            let at = process.paused_until.min(now + LOOK_AGAIN_US);
            self.schedule.at(at, Event::Synced { replica: id, life });
            return Ok(());
        }
        let output = host.on_synced(now)?;
        if output.is_stopped {
            return self.on_planned_crash(id);
        }
        self.on_output(id, output)
    }

    fn on_output(&mut self, id: ReplicaId, output: Output) -> Check {
        let now = self.now();
        self.checkers
            .after_turn(now, &self.hosts, id, &output, &self.databases)?;
        let host = &self.hosts[&id];
        let life = host.life;
        if let Some(how) = output.failed {
            self.checkers.points.on_disk_fault(how);
        }
        if output.write_began {
            let sync_us = match host.disk {
                Disk::Healthy(sync_us) => sync_us,
                Disk::Failing(_) => self.setup.sync_us,
            };
            let jitter = if self.setup.mail_us_max == 0 {
                0
            } else {
                self.random.between(0, sync_us)
            };
            self.schedule
                .after(sync_us + jitter, Event::Synced { replica: id, life });
        }
        for notice in &output.notices {
            self.trace
                .note(now, 100, format_args!("replica {id}: {notice:?}"));
        }
        for envelope in output.envelopes {
            for delay in self.network.carry(envelope.from, envelope.to) {
                self.schedule.after(delay, Event::Envelope(envelope.clone()));
            }
        }
        for fetch in output.fetches {
            self.fetch_count += 1;
            self.schedule.after(
                self.setup.sync_us,
                Event::Fetched {
                    replica: id,
                    life,
                    fetch,
                },
            );
        }
        for told in output.told {
            self.carry(Event::Response {
                session: told.session,
                response: told.response,
            });
        }
        for session in output.ended {
            self.ended_sessions.insert(session);
            self.carry(Event::SessionLost { session });
        }
        if output.is_over {
            return self.crash_by(id, End::Exit);
        }
        let timeout = self.hosts[&id]
            .replica()
            .and_then(|replica| replica.next_timeout());
        if let Some(timeout) = timeout {
            let clocks = self.hosts[&id].clocks;
            require(timeout > clocks.read(now).monotonic, || {
                format!("replica {id}: its timer stands still")
            })?;
            self.arrange_wake(id, clocks.moment(timeout));
        }
        Ok(())
    }
}
