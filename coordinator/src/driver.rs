//! The driver: one task that owns the replica and moves data and time. It decides nothing.
//!
//! Envelopes, requests, synced writes and the time go in; messages, answers and writes come out. Whatever has arrived
//! is taken together before a write begins, so that what waited for one sync shares the next one: the group commit
//! without a timer. There is no lock; everything else reaches the replica through bounded channels.

mod reads;
mod status;
#[cfg(test)]
mod tests;

pub(crate) use status::ReplicaStatus;

use crate::links::{LinkEvent, LinkSender, Sent};
use crate::log::{LogError, Storage};
use crate::service::shutting_down;
use crate::sessions::{SessionEvent, Sessions};
use futures::stream::FuturesUnordered;
use reads::Followed;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use synod_coordinator_core::effects::{Effects, GroupCommit, Notice, Synced, Unsynced};
use synod_coordinator_core::paxos::Envelope;
use synod_coordinator_core::replica::{Input, Replica, RoleName, WriteFailure};
use synod_coordinator_core::time::{Now, Timestamp};
use synod_proto::environment::WallClock;
use synod_proto::ids::ReplicaId;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// The most inputs that are taken before what they ask for is done. Bounds how long a flood keeps a write waiting.
const INPUT_COUNT_MAX: usize = 8_192;

/// How late the timer may fire before the replica looks at its mail first: silence that this process slept through, or
/// spent starting up, is not a peer's silence (A16).
const LATENESS_MAX: Duration = Duration::from_millis(50);

/// How long a drain waits for the write that is under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything that reaches the driver.
pub(crate) struct Inbox {
    pub(crate) links: mpsc::Receiver<LinkEvent>,
    pub(crate) sessions: mpsc::Receiver<SessionEvent>,
}

/// Whether clients find a leader through this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// It leads and serves, or follows a leader.
    Serving,
    NotServing,
}

/// The log can no longer be written. The process must end (L9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StorageBroken(pub(crate) String);

impl fmt::Display for StorageBroken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Both clocks of this machine.
#[derive(Debug)]
struct Clock {
    base: Instant,
    wall: WallClock,
}

impl Clock {
    fn now(&self) -> Now {
        Now {
            monotonic: Timestamp(u64::try_from(self.base.elapsed().as_micros()).unwrap_or(u64::MAX)),
            wall: self.wall.now(),
        }
    }

    fn instant(&self, timestamp: Timestamp) -> Instant {
        self.base + Duration::from_micros(timestamp.0)
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The task's state.
pub(crate) struct Driver {
    own: ReplicaId,
    replica: Replica,
    group: GroupCommit,
    storage: Storage,
    /// The write that is under way.
    writing: Option<BoxFuture<Result<(), LogError>>>,
    reading: FuturesUnordered<BoxFuture<reads::Read>>,
    /// Nothing is written, and nothing that waits for a write leaves, after a failure (L9).
    is_writable: bool,
    clock: Clock,
    links: BTreeMap<ReplicaId, LinkSender>,
    sessions: Sessions,
    inputs: Vec<Input>,
    /// Empty: the room for the inputs that gather after the next step. Growing it anew for every step is dear.
    stepped: Vec<Input>,
    leader: Option<ReplicaId>,
    /// Batches written and synced since the start.
    log_write_count: u64,
    health: watch::Sender<Health>,
}

impl Driver {
    pub(crate) fn new(
        own: ReplicaId,
        replica: Replica,
        storage: Storage,
        wall: WallClock,
        health: watch::Sender<Health>,
    ) -> Self {
        Self {
            own,
            replica,
            group: GroupCommit::default(),
            storage,
            writing: None,
            reading: FuturesUnordered::new(),
            is_writable: true,
            clock: Clock {
                base: Instant::now(),
                wall,
            },
            links: BTreeMap::new(),
            sessions: Sessions::default(),
            inputs: Vec::new(),
            stepped: Vec::new(),
            leader: None,
            log_write_count: 0,
            health,
        }
    }

    /// Runs until `shutdown`, or until the log breaks. Every session has been ended then.
    ///
    /// # Errors
    /// The log cannot be written, and not because the disk is full.
    pub(crate) async fn run(
        &mut self,
        inbox: &mut Inbox,
        shutdown: &CancellationToken,
    ) -> Result<(), StorageBroken> {
        let started = self.replica.start(self.clock.now());
        self.route(started);
        self.advance();
        let mut result = self.serve(inbox, shutdown).await;
        if result.is_ok() {
            result = self.drain().await;
        }
        self.sessions.close_all(&shutting_down());
        result
    }

    /// Closes the log. When this returns, nothing touches the directory any more (A18).
    ///
    /// # Errors
    /// The last write failed. After a full disk, which was told before, there is no other failure to tell.
    pub(crate) async fn close(self) -> Result<(), StorageBroken> {
        let result = self.storage.stop().await;
        if self.is_writable {
            result.map_err(|error| StorageBroken(chain(&error)))
        } else {
            Ok(())
        }
    }

    async fn serve(&mut self, inbox: &mut Inbox, shutdown: &CancellationToken) -> Result<(), StorageBroken> {
        let timer = sleep_until(Instant::now());
        tokio::pin!(timer);
        loop {
            let due = self.replica.next_timeout().map(|at| self.clock.instant(at));
            if let Some(due) = due
                && timer.deadline() != due
            {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                result = ended(&mut self.writing) => self.on_written(result)?,
                Some(read) = self.reading.next() => self.on_read(read),
                Some(event) = inbox.links.recv() => self.on_link(event),
                Some(event) = inbox.sessions.recv() => self.on_session(event),
                () = &mut timer, if due.is_some() => {
                    if timer.deadline().elapsed() > LATENESS_MAX {
                        // Lets the runtime look at the sockets and the links' tasks hand over what lay there.
                        for _ in 0..3 {
                            tokio::task::yield_now().await;
                        }
                    }
                }
            }
            self.take_all(inbox);
            self.advance();
        }
    }

    /// Takes what else has arrived.
    fn take_all(&mut self, inbox: &mut Inbox) {
        while self.inputs.len() < INPUT_COUNT_MAX
            && let Ok(event) = inbox.links.try_recv()
        {
            self.on_link(event);
        }
        while self.inputs.len() < INPUT_COUNT_MAX
            && let Ok(event) = inbox.sessions.try_recv()
        {
            self.on_session(event);
        }
    }

    fn on_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Envelopes(envelopes) => self.inputs.extend(envelopes.into_iter().map(Input::Envelope)),
            LinkEvent::Connected(peer, sender) => {
                self.links.insert(peer, sender);
                self.inputs.push(Input::PeerConnected(peer));
            }
            LinkEvent::Disconnected(peer) => {
                self.links.remove(&peer);
                self.inputs.push(Input::PeerDisconnected(peer));
            }
        }
    }

    fn on_session(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Opened(session, outbox) => self.sessions.open(session, outbox),
            SessionEvent::Requests(session, requests) => {
                let input = |request| Input::Request { session, request };
                self.inputs.extend(requests.into_iter().map(input));
            }
            SessionEvent::Closed(session) => {
                self.sessions.close(session);
                self.inputs.push(Input::SessionClosed(session));
            }
            SessionEvent::Status(answer) => {
                let status =
                    ReplicaStatus::new(self.replica.status(), self.sessions.count(), self.log_write_count);
                // An error: nobody waits for it any more, and there is nothing to do.
                let _ = answer.send(status);
            }
        }
    }

    fn on_written(&mut self, result: Result<(), LogError>) -> Result<(), StorageBroken> {
        let Err(error) = result else {
            self.on_synced();
            return Ok(());
        };
        let text = chain(&error);
        let kind = if error.is_full() {
            WriteFailure::Full
        } else {
            WriteFailure::Broken
        };
        tracing::error!(replica = %self.own, %text, "the log cannot be written; this replica acknowledges nothing more");
        self.is_writable = false;
        // What waited for a write waits for ever: it may be on disk or not, and nobody will know (L9).
        self.group = GroupCommit::default();
        self.inputs.push(Input::WriteFailed {
            text: text.clone(),
            kind,
        });
        self.advance();
        match kind {
            WriteFailure::Full => Ok(()),
            WriteFailure::Broken => Err(StorageBroken(text)),
        }
    }

    /// What rested on the write that has just ended leaves.
    fn on_synced(&mut self) {
        self.log_write_count += 1;
        for synced in self.group.on_synced() {
            self.send_gated(synced);
        }
    }

    fn on_read(&mut self, read: reads::Read) {
        match read.follow() {
            Followed::Told(input) => self.inputs.push(input),
            Followed::Again(fetch) => self.reading.push(Box::pin(reads::fetch(&self.storage, fetch))),
        }
    }

    /// Steps until nothing is left to do but to wait, with a write under way if there is something to write.
    fn advance(&mut self) {
        loop {
            std::mem::swap(&mut self.inputs, &mut self.stepped);
            let effects = self.replica.step_many(self.clock.now(), self.stepped.drain(..));
            self.stepped.shrink_to(INPUT_COUNT_MAX);
            self.route(effects);
            if self.inputs.is_empty() {
                self.write();
            }
            // What the replica sends to itself, it hears at once.
            if self.inputs.is_empty() {
                break;
            }
        }
        let leader = self.replica.leader();
        if leader != self.leader {
            self.leader = leader;
            self.publish_health();
        }
    }

    /// Starts a write if there is one to do and the disk is free. A follower does it here and now: it is one serial loop
    /// of append, sync and acknowledge, and would have nothing to do meanwhile but to gather the next batch, which the
    /// sockets do for it. A leader goes on serving.
    fn write(&mut self) {
        if !self.is_writable || self.writing.is_some() {
            return;
        }
        let Some(batch) = self.group.next_write() else {
            return;
        };
        let is_following = self.replica.leader().is_some_and(|leader| leader != self.own);
        let written = is_following.then(|| self.storage.append_now(&batch)).flatten();
        match written {
            Some(Ok(())) => self.on_synced(),
            Some(failed) => self.writing = Some(Box::pin(std::future::ready(failed))),
            None => self.writing = Some(Box::pin(self.storage.append(batch))),
        }
    }

    fn route(&mut self, mut effects: Effects<Unsynced>) {
        for envelope in effects.take_early() {
            self.send(envelope);
        }
        let mut told = effects.take_told();
        for one in told.drain(..) {
            self.sessions.tell(one);
        }
        self.replica.reuse_told(told);
        self.sessions.flush();
        for session in effects.take_ended() {
            let status = Status::unavailable(
                "this replica no longer leads; what was asked is open: ask the leader again",
            );
            self.sessions.end(session, status);
        }
        let notices = effects.take_notices();
        if self.is_writable
            && let Some(synced) = self.group.push(effects)
        {
            self.send_gated(synced);
        }
        if !notices.is_empty() {
            notices.iter().for_each(|notice| self.trace(notice));
            self.publish_health();
        }
    }

    fn send_gated(&mut self, mut synced: Effects<Synced>) {
        for fetch in synced.take_fetches() {
            self.reading.push(Box::pin(reads::fetch(&self.storage, fetch)));
        }
        for envelope in synced.into_gated() {
            self.send(envelope);
        }
    }

    fn send(&mut self, envelope: Envelope) {
        if envelope.to == self.own {
            self.inputs.push(Input::Envelope(envelope));
        } else if let Some(link) = self.links.get(&envelope.to)
            && link.send(envelope.message) == Sent::Dropped
        {
            tracing::debug!(peer = %envelope.to, "dropped a message to a peer that is too far behind");
        }
    }

    /// Resigns, waits for the write that is under way, and lets what rests on it leave.
    async fn drain(&mut self) -> Result<(), StorageBroken> {
        tracing::info!(replica = %self.own, "draining");
        self.inputs.push(Input::Drain);
        self.advance();
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        while self.writing.is_some() {
            tokio::select! {
                result = ended(&mut self.writing) => self.on_written(result)?,
                () = sleep_until(deadline) => {
                    tracing::warn!(replica = %self.own, "the disk did not finish its write in time");
                    return Ok(());
                }
            }
            self.advance();
        }
        Ok(())
    }

    fn publish_health(&self) {
        let status = self.replica.status();
        let is_serving = match status.role {
            RoleName::Serving => true,
            RoleName::Follower => status.leader.is_some(),
            RoleName::Candidate | RoleName::Leading => false,
        };
        let health = if is_serving && status.failure.is_none() {
            Health::Serving
        } else {
            Health::NotServing
        };
        self.health
            .send_if_modified(|published| std::mem::replace(published, health) != health);
    }

    fn trace(&self, notice: &Notice) {
        let replica = self.own;
        match notice {
            Notice::Leading(ballot) => tracing::info!(%replica, %ballot, "leading"),
            Notice::SteppedDown { reason } => tracing::info!(%replica, reason, "stepped down"),
            Notice::Following(leader) => tracing::info!(%replica, %leader, "following"),
            Notice::Admitted => tracing::info!(%replica, "admitted: nothing contradicts the data directory"),
            Notice::NotAdmitted { contradiction } => tracing::error!(
                %replica,
                %contradiction,
                "not admitted: the data directory is older than what a peer saw of it; this replica only learns"
            ),
            Notice::PeerContradicted { contradiction } => tracing::error!(
                %replica,
                %contradiction,
                "refused a peer's data directory; it only learns"
            ),
            Notice::CannotApply { slot, text } => {
                tracing::error!(%replica, %slot, %text, "cannot apply a decided entry; upgrade this replica");
            }
            Notice::Conflict { from, slot, ballot } => {
                tracing::error!(
                    %replica,
                    peer = %from,
                    %slot,
                    %ballot,
                    "refused a second value for a slot: the peer's disk or program is broken; stop it"
                );
            }
            Notice::Hazard { branch, text } => {
                tracing::warn!(%replica, %branch, %text, "a participant's store lost or settled a branch");
            }
        }
    }
}

/// Resolves when the write under way has ended; never while there is none.
async fn ended(writing: &mut Option<BoxFuture<Result<(), LogError>>>) -> Result<(), LogError> {
    let Some(write) = writing else {
        return std::future::pending().await;
    };
    let result = write.await;
    *writing = None;
    result
}

/// An error and its causes in one line: what was tried, and what the disk said.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
