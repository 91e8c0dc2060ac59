//! One machine with one replica, driven by the contract of `synod_coordinator_core` in its four steps.

use crate::checkers::{Check, Violation};
use crate::clocks::Clocks;
use crate::log_disk::{End, LogDisk, Written};
use crate::schedule::Micros;
use crate::store::{Store, UnsyncedWrite};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use synod_coordinator_core::effects::{Effects, Fetch, GroupCommit, Notice, Synced, Told, Unsynced};
use synod_coordinator_core::paxos::{Envelope, Slot};
use synod_coordinator_core::replica::{Config, Input, Replica, WriteFailure};
use synod_proto::ids::{ProcessNonce, ReplicaId, SessionId};

/// What became of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// It writes; a sync takes this long.
    Healthy(Micros),
    /// The next write fails like this.
    Failing(WriteFailure),
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    /// The core.
    pub replica: Replica,
    group: GroupCommit,
    inbox: Vec<Input>,
    /// The sessions that have reached it.
    pub sessions: BTreeSet<SessionId>,
    /// Nothing is written, and nothing that waits for a write leaves, after a failure (L9).
    is_writable: bool,
    /// When it is woken, if that is arranged.
    pub wake_at: Option<Micros>,
    /// It does nothing before: a pause of the process or of its machine.
    pub paused_until: Micros,
    /// How long inputs wait before the process looks at them, at most: what arrives meanwhile is taken in one step.
    pub mail_us_max: Micros,
}

/// One machine.
#[derive(Debug)]
pub struct Host {
    /// The replica.
    pub config: Config,
    /// Its directory, as it must be.
    pub store: Store,
    /// The real log in it, where the run has one: compared with the model at every turn.
    pub log: Option<LogDisk>,
    /// What faults took from its disk that was synced there: what a quorum held, it held, whatever became of it.
    pub lost: BTreeMap<Slot, BTreeSet<Bytes>>,
    /// Its disk.
    pub disk: Disk,
    /// Its clocks.
    pub clocks: Clocks,
    /// Counts its processes: what was meant for a former one does not reach the next.
    pub life: u64,
    /// The process, if one runs.
    pub process: Option<Process>,
}

/// What a process asked of the world in one turn.
#[derive(Debug, Default)]
pub struct Output {
    /// Envelopes to peers.
    pub envelopes: Vec<Envelope>,
    /// What sessions are told.
    pub told: Vec<Told>,
    /// Sessions to end after that.
    pub ended: Vec<SessionId>,
    /// Reads of the disk.
    pub fetches: Vec<Fetch>,
    /// Lines for the trace.
    pub notices: Vec<Notice>,
    /// A write has begun.
    pub write_began: bool,
    /// The disk has just failed, in this way.
    pub failed: Option<&'static str>,
    /// The disk failed for good: the process has ended (L9).
    pub is_over: bool,
    /// The machine has stopped, at an operation of its disk that was planned.
    pub is_stopped: bool,
}

impl Host {
    /// A machine whose replica does not run yet.
    #[must_use]
    pub fn new(config: Config, store: Store) -> Self {
        let clocks = Clocks::new(0, 0, 0, 0);
        Self {
            config,
            store,
            log: None,
            lost: BTreeMap::new(),
            disk: Disk::Healthy(300),
            clocks,
            life: 0,
            process: None,
        }
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> ReplicaId {
        self.config.replica
    }

    /// The core, if the process runs.
    #[must_use]
    pub fn replica(&self) -> Option<&Replica> {
        self.process.as_ref().map(|process| &process.replica)
    }

    /// Whether everything that the replica has asked to be written is on disk. After a failed write it is not, for the rest of
    /// the process.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.process
            .as_ref()
            .is_none_or(|process| process.is_writable && process.group.is_idle())
    }

    /// Starts a process on the directory.
    ///
    /// # Errors
    /// The log holds something else than it should.
    pub fn start(&mut self, now: Micros, seed: u64, mail_us_max: Micros) -> Result<Output, Violation> {
        assert!(self.process.is_none(), "one process at a time");
        self.life += 1;
        self.config.incarnation = self.store.incarnation;
        let (recovered, values) = match &mut self.log {
            Some(log) => log.start(&self.store)?,
            None => self.store.recover(),
        };
        let mut replica = Replica::new(self.config.clone(), recovered, ProcessNonce(seed), seed);
        for value in values {
            replica.load(value);
        }
        let effects = replica.start(self.clocks.read(now));
        self.process = Some(Process {
            replica,
            group: GroupCommit::default(),
            inbox: Vec::new(),
            sessions: BTreeSet::new(),
            is_writable: true,
            wake_at: None,
            paused_until: 0,
            mail_us_max,
        });
        let mut output = Output::default();
        self.route(effects, &mut output);
        self.turn(now, &mut output);
        Ok(output)
    }

    /// The process ends, with its machine or alone.
    ///
    /// # Errors
    /// The log does not show what its disk must hold.
    pub fn crash(&mut self, end: End) -> Check {
        self.process = None;
        match (&mut self.log, end) {
            (Some(log), _) => log.crash(&mut self.store, end),
            (None, End::Stop(unsynced)) => {
                self.store.crash(unsynced);
                Ok(())
            }
            (None, End::Planned | End::Exit) => {
                self.store.crash(UnsyncedWrite::Lost);
                Ok(())
            }
        }
    }

    /// The directory is another one, or holds less, from now on. While no process runs.
    pub fn replace(&mut self, store: Store, log: Option<LogDisk>) {
        for (slot, (_, value)) in self.store.records() {
            if store.record(*slot).is_none_or(|(_, left)| left != value) {
                self.lost.entry(*slot).or_default().insert(value.clone());
            }
        }
        (self.store, self.log) = (store, log);
    }

    /// Whether this value of a slot is on its disk, or was until a fault took it.
    #[must_use]
    pub fn has_synced(&self, slot: Slot, value: &Bytes) -> bool {
        let is_on_disk = self
            .store
            .records()
            .get(&slot)
            .is_some_and(|(_, held)| held == value);
        is_on_disk || self.lost.get(&slot).is_some_and(|lost| lost.contains(value))
    }

    /// Reads slots for a lagging peer.
    ///
    /// # Errors
    /// The log holds something else than it should.
    pub fn fetch(&self, fetch: Fetch) -> Result<Option<Vec<bytes::Bytes>>, Violation> {
        match &self.log {
            Some(log) => log.fetch(fetch, &self.store),
            None => Ok(self.store.fetch(fetch)),
        }
    }

    /// Puts an input where the process finds it at its next turn. Returns how many wait there now.
    pub fn post(&mut self, input: Input) -> usize {
        let Some(process) = &mut self.process else {
            return 0;
        };
        if let Input::Request { session, .. } = &input {
            process.sessions.insert(*session);
        }
        process.inbox.push(input);
        process.inbox.len()
    }

    /// The process takes its mail.
    pub fn wake(&mut self, now: Micros) -> Output {
        let mut output = Output::default();
        self.turn(now, &mut output);
        output
    }

    /// The write under way has ended.
    ///
    /// # Errors
    /// The log refuses what a sound disk takes.
    pub fn on_synced(&mut self, now: Micros) -> Result<Output, Violation> {
        let mut output = Output::default();
        let Some(process) = &mut self.process else {
            return Ok(output);
        };
        let batch = self.store.under_way().expect("a write is under way");
        match self.disk {
            Disk::Healthy(_) => {
                let written = match &mut self.log {
                    Some(log) => log.append(batch, &self.store)?,
                    None => Written::Synced,
                };
                match written {
                    Written::Synced => {
                        self.store.complete();
                        for synced in process.group.on_synced() {
                            self.send_gated(synced, &mut output);
                        }
                    }
                    Written::Stopped => {
                        output.is_stopped = true;
                        return Ok(output);
                    }
                    Written::Failed(kind, how) => self.on_write_failed(kind, how, &mut output),
                }
            }
            Disk::Failing(kind) => {
                if let Some(log) = &mut self.log {
                    log.fail(batch);
                }
                let how = match kind {
                    WriteFailure::Full => "no write fits any more",
                    WriteFailure::Broken => "no write succeeds any more",
                };
                self.on_write_failed(kind, how, &mut output);
            }
        }
        self.turn(now, &mut output);
        Ok(output)
    }

    fn on_write_failed(&mut self, kind: WriteFailure, how: &'static str, output: &mut Output) {
        let Some(process) = &mut self.process else { return };
        process.is_writable = false;
        process.group = GroupCommit::default();
        process.inbox.push(Input::WriteFailed {
            text: "the disk failed".to_string(),
            kind,
        });
        output.failed = Some(how);
        output.is_over = kind == WriteFailure::Broken;
    }

    /// Steps until nothing is left to do but to wait, then starts a write if the disk is free.
    fn turn(&mut self, now: Micros, output: &mut Output) {
        let now = self.clocks.read(now);
        loop {
            let Some(process) = &mut self.process else { return };
            let inputs = std::mem::take(&mut process.inbox);
            let effects = process.replica.step_many(now, inputs);
            self.route(effects, output);
            if self
                .process
                .as_ref()
                .is_none_or(|process| process.inbox.is_empty())
            {
                break;
            }
        }
        if let Some(process) = &mut self.process
            && process.is_writable
            && let Some(batch) = process.group.next_write()
        {
            self.store.begin(batch);
            output.write_began = true;
        }
    }

    fn route(&mut self, mut effects: Effects<Unsynced>, output: &mut Output) {
        for envelope in effects.take_early() {
            self.send(envelope, output);
        }
        output.told.extend(effects.take_told());
        output.ended.extend(effects.take_ended());
        output.notices.extend(effects.take_notices());
        let Some(process) = &mut self.process else { return };
        if process.is_writable
            && let Some(synced) = process.group.push(effects)
        {
            self.send_gated(synced, output);
        }
    }

    fn send_gated(&mut self, mut synced: Effects<Synced>, output: &mut Output) {
        output.fetches.extend(synced.take_fetches());
        for envelope in synced.into_gated() {
            self.send(envelope, output);
        }
    }

    fn send(&mut self, envelope: Envelope, output: &mut Output) {
        if envelope.to == self.id() {
            self.post(Input::Envelope(envelope));
        } else {
            output.envelopes.push(envelope);
        }
    }
}
