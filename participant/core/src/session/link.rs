//! Which replica this session talks to: leader hints first, then every address in turn, with capped and jittered
//! delays (B19); registration, and the comparison of lineages (T11).

use super::branches::Registration;
use super::{ConnectionId, Effect, Ignored, Notice, Session, Timer};
use crate::time::{Now, Timestamp};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use synod_proto::ids::{Lineage, RequestId, ResourceId};
use synod_proto::session::{Refusal, Request};

/// How many leader hints are followed without a delay. Replicas that have not heard of an election may send a client
/// in circles; a fresh hint is right nearly always.
const HINT_HOP_COUNT_MAX: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Until the link timer.
    Waiting,
    /// The driver opens the stream; the link timer ends it.
    Opening,
    /// `Register` was sent; the link timer ends it.
    Registering {
        request: RequestId,
    },
    Serving {
        last_heard: Timestamp,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Link {
    state: State,
    connection: ConnectionId,
    address: String,
    /// The stream that served last before this one. What it still says is from the same coordinator.
    previous: Option<ConnectionId>,
    /// The databases that each unanswered registration offers: the first one of the stream, and later ones.
    registrations: BTreeMap<RequestId, Vec<ResourceId>>,
    next_address: usize,
    hint: Option<String>,
    hop_count: u32,
    attempt_count: u32,
}

/// For checkers, see [`Session::hash_state`].
impl Hash for Link {
    fn hash<H: Hasher>(&self, state: &mut H) {
        core::mem::discriminant(&self.state).hash(state);
        let Self {
            connection,
            address,
            previous,
            registrations,
            next_address,
            hint,
            hop_count,
            ..
        } = self;
        (
            connection,
            address,
            previous,
            registrations,
            next_address,
            hint,
            hop_count,
        )
            .hash(state);
    }
}

impl Link {
    pub(super) const fn new() -> Self {
        Self {
            state: State::Waiting,
            connection: ConnectionId(0),
            address: String::new(),
            previous: None,
            registrations: BTreeMap::new(),
            next_address: 0,
            hint: None,
            hop_count: 0,
            attempt_count: 0,
        }
    }

    /// The stream that requests may be sent on.
    pub(super) fn serving(&self) -> Option<ConnectionId> {
        matches!(self.state, State::Serving { .. }).then_some(self.connection)
    }

    pub(super) fn last_heard(&self) -> Timestamp {
        if let State::Serving { last_heard } = self.state {
            last_heard
        } else {
            Timestamp(0)
        }
    }

    pub(super) fn is_registering(&self, connection: ConnectionId) -> bool {
        connection == self.connection && matches!(self.state, State::Registering { .. })
    }

    /// Whether this stream has anything to say; if it is the serving one, it was heard now.
    pub(super) fn hears(&mut self, now: Now, connection: ConnectionId) -> bool {
        if let State::Serving { last_heard } = &mut self.state
            && connection == self.connection
        {
            *last_heard = now.monotonic;
            return true;
        }
        self.is_registering(connection) || self.previous == Some(connection)
    }
}

impl Session {
    pub(super) fn on_link_timer(&mut self, now: Now, effects: &mut Vec<Effect>) {
        match self.link.state {
            State::Waiting => {
                // After a pause, hints are fresh again.
                self.link.hop_count = 0;
                self.connect(now, effects);
            }
            State::Opening | State::Registering { .. } => {
                self.give_up_link(
                    now,
                    String::from("the replica did not register the session in time"),
                    effects,
                );
            }
            State::Serving { .. } => {}
        }
    }

    pub(super) fn on_opened(&mut self, _now: Now, connection: ConnectionId, effects: &mut Vec<Effect>) {
        if connection != self.link.connection || self.link.state != State::Opening {
            return effects.push(Effect::Ignored(Ignored::StaleConnection));
        }
        let request = self.next_request();
        self.link.state = State::Registering { request };
        // One database that the coordinator does not take must not keep the others out (B20): it is offered by itself.
        let taken = self
            .resources
            .iter()
            .filter(|(_, state)| state.registration != Registration::Refused);
        let resources: Vec<ResourceId> = taken.map(|(resource, _)| *resource).collect();
        self.link.registrations.insert(request, resources.clone());
        effects.push(Effect::Send(Request::Register {
            request,
            lineage: self.lineage,
            resources,
        }));
    }

    pub(super) fn on_registered(
        &mut self,
        now: Now,
        connection: ConnectionId,
        request: RequestId,
        lineage: Lineage,
        effects: &mut Vec<Effect>,
    ) {
        if connection != self.link.connection {
            return effects.push(Effect::Ignored(Ignored::StaleConnection));
        }
        let Some(offered) = self.link.registrations.remove(&request) else {
            return effects.push(Effect::Ignored(Ignored::UnknownRequest));
        };
        if self.link.serving().is_some() {
            return self.note_registered(&offered, effects);
        }
        if let Some(expected) = self.lineage.filter(|expected| *expected != lineage) {
            let address = self.link.address.clone();
            effects.push(Effect::Notice(Notice::ForeignCoordinator {
                address,
                expected,
                found: lineage,
            }));
            return self.give_up_link(
                now,
                format!("the replica belongs to coordinator {lineage}"),
                effects,
            );
        }
        self.lineage = Some(lineage);
        self.link.state = State::Serving {
            last_heard: now.monotonic,
        };
        self.link.hop_count = 0;
        self.link.attempt_count = 0;
        self.timers.cancel(Timer::Link);
        self.last_seen = format!("connected to {}", self.link.address);
        effects.push(Effect::Ready(lineage));
        self.note_registered(&offered, effects);
        self.register_missing(&offered, effects);
        // Before the questions: one of them may be a commit of branches that are open here.
        if let Some(instance) = self.instance {
            effects.push(Effect::Send(Request::Introduce { instance }));
        }
        self.send_all_questions(now, effects);
        self.send_inquiries(now, effects);
    }

    pub(super) fn on_lost(
        &mut self,
        now: Now,
        connection: ConnectionId,
        reason: String,
        effects: &mut Vec<Effect>,
    ) {
        if connection != self.link.connection || self.link.state == State::Waiting {
            return effects.push(Effect::Ignored(Ignored::StaleConnection));
        }
        self.leave(now, reason, None, effects);
    }

    /// A replica that does not lead serves nobody; one that refuses the first registration for another reason is left too, and
    /// a later registration that is refused concerns only its database.
    pub(super) fn on_registration_refused(
        &mut self,
        now: Now,
        request: RequestId,
        refusal: &Refusal,
        leader: Option<String>,
        effects: &mut Vec<Effect>,
    ) {
        let offered = self.link.registrations.remove(&request).unwrap_or_default();
        let is_first = self.link.serving().is_none();
        if !matches!(refusal, Refusal::NotLeader { .. }) {
            self.note_registration_refused(&offered, refusal, effects);
            if !is_first {
                return;
            }
        }
        self.on_link_refused(now, refusal, leader, effects);
    }

    /// A refused session, or any refusal by a replica that does not lead: this stream serves no more.
    pub(super) fn on_link_refused(
        &mut self,
        now: Now,
        refusal: &Refusal,
        leader: Option<String>,
        effects: &mut Vec<Effect>,
    ) {
        let connection = self.link.connection;
        effects.push(Effect::Disconnect { connection });
        let (reason, hint) = match refusal {
            Refusal::NotLeader { .. } => (String::from("the replica does not lead"), leader),
            refused => {
                let address = self.link.address.clone();
                effects.push(Effect::Notice(Notice::Refused {
                    address,
                    refusal: refusal.clone(),
                }));
                (format!("the replica refused the session: {refused:?}"), None)
            }
        };
        self.leave(now, reason, hint, effects);
    }

    pub(super) fn is_registration(&self, connection: ConnectionId, request: RequestId) -> bool {
        connection == self.link.connection && self.link.registrations.contains_key(&request)
    }

    /// Closes a stream that answers too little or wrongly.
    pub(super) fn give_up_link(&mut self, now: Now, reason: String, effects: &mut Vec<Effect>) {
        let connection = self.link.connection;
        effects.push(Effect::Disconnect { connection });
        self.leave(now, reason, None, effects);
    }

    /// Offers a database to the leader while the stream serves.
    pub(super) fn register_late(&mut self, resource: ResourceId, effects: &mut Vec<Effect>) {
        let is_offered = self
            .link
            .registrations
            .values()
            .any(|offered| offered.contains(&resource));
        if self.link.serving().is_some() && !is_offered {
            let request = self.next_request();
            let resources = Vec::from([resource]);
            self.link.registrations.insert(request, resources.clone());
            effects.push(Effect::Send(Request::Register {
                request,
                lineage: self.lineage,
                resources,
            }));
        }
    }

    /// What was attached while the first registration was under way, or was refused before.
    fn register_missing(&mut self, offered: &[ResourceId], effects: &mut Vec<Effect>) {
        let missing: Vec<ResourceId> = self
            .resources
            .keys()
            .filter(|resource| !offered.contains(resource))
            .copied()
            .collect();
        for resource in missing {
            self.register_late(resource, effects);
        }
    }

    fn leave(&mut self, now: Now, reason: String, hint: Option<String>, effects: &mut Vec<Effect>) {
        if self.link.serving().is_some() {
            self.link.previous = Some(self.link.connection);
        }
        self.link.state = State::Waiting;
        self.link.registrations.clear();
        let address = self.link.address.clone();
        self.last_seen = format!("{address}: {reason}");
        effects.push(Effect::Notice(Notice::Lost { address, reason }));

        self.link.hint = hint
            .map(|hint| self.uri(hint))
            .filter(|hint| *hint != self.link.address);
        let is_hop = self.link.hint.is_some() && self.link.hop_count < HINT_HOP_COUNT_MAX;
        if is_hop {
            self.link.hop_count += 1;
            return self.connect(now, effects);
        }
        let (first, cap) = (self.config.connect_backoff, self.config.connect_backoff_max);
        let delay = self.random.backoff(self.link.attempt_count, first, cap);
        self.link.attempt_count = self.link.attempt_count.saturating_add(1);
        self.timers.set(Timer::Link, now.monotonic.plus_duration(delay));
    }

    fn connect(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let address = if let Some(hint) = self.link.hint.take() {
            hint
        } else {
            let address = self.config.addresses[self.link.next_address].clone();
            self.link.next_address = (self.link.next_address + 1) % self.config.addresses.len();
            address
        };
        self.link.connection = ConnectionId(self.link.connection.0 + 1);
        self.link.state = State::Opening;
        self.link.address.clone_from(&address);
        self.timers.set(
            Timer::Link,
            now.monotonic.plus_duration(self.config.register_timeout),
        );
        effects.push(Effect::Connect {
            connection: self.link.connection,
            address,
        });
    }

    /// A hint is `host:port`; it takes the scheme of the configured addresses.
    fn uri(&self, hint: String) -> String {
        if hint.contains("://") {
            return hint;
        }
        let scheme = self.config.addresses[0]
            .split_once("://")
            .map_or("http", |(scheme, _)| scheme);
        format!("{scheme}://{hint}")
    }
}
