//! What is held up on its way, and comes all at once and in order when that ends. Neither a cut nor a slow network does
//! that: what arrives is old, whole, and too much for one turn.

use super::{Event, Session, World};
use crate::actors::{ActorId, Carriage};
use crate::checkers::Check;
use crate::faults::lines::Direction;
use crate::schedule::Micros;
use std::collections::BTreeMap;
use synod_proto::ids::{ReplicaId, SessionId};

/// Where things are held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// From a replica to another.
    Link(ReplicaId, ReplicaId),
    /// Between a service and a replica; to the replica, or to the service.
    Line(ActorId, ReplicaId, bool),
    /// To a service that stands still, its own timers included.
    Service(ActorId),
}

impl Way {
    /// The point that a run comes past when something was held up there.
    fn point(self) -> &'static str {
        match self {
            Self::Link(..) => "a clogged link delivered what it held",
            Self::Line(..) => "a clogged line to a replica delivered what it held",
            Self::Service(_) => "a paused service woke to what had come",
        }
    }
}

/// The ways on which nothing arrives, and what waits there, in its order.
#[derive(Debug, Default)]
pub(super) struct Held {
    ways: BTreeMap<Way, (Micros, Vec<Event>)>,
    /// Lines that lose what they carry, and until when; by service, replica, and whether it goes to the replica.
    cut: BTreeMap<(ActorId, ReplicaId, bool), Micros>,
}

impl World {
    /// Nothing arrives on this way for so long; if it is held up already, until the later end.
    pub(super) fn hold_up(&mut self, way: Way, length: Micros) {
        let end = self.now() + length;
        let (until, _) = self.held.ways.entry(way).or_default();
        *until = (*until).max(end);
        self.schedule.at(end, Event::Released(way));
    }

    /// Keeps the event if its way is held up, and returns it otherwise.
    pub(super) fn pass(&mut self, event: Event) -> Option<Event> {
        let event = self.pass_cuts(event)?;
        if self.held.ways.is_empty() {
            return Some(event);
        }
        for way in self.ways_of(&event).into_iter().flatten() {
            if let Some((_, waiting)) = self.held.ways.get_mut(&way) {
                waiting.push(event);
                return None;
            }
        }
        Some(event)
    }

    /// The ways that an event comes by, the first of them first.
    fn ways_of(&self, event: &Event) -> [Option<Way>; 2] {
        if let Some((session, is_to_replica)) = session_of(event) {
            let Some(&Session {
                owner: Some(owner),
                replica,
                ..
            }) = self.sessions.get(&session)
            else {
                return [None, None];
            };
            let service = (!is_to_replica).then_some(Way::Service(owner));
            return [Some(Way::Line(owner, replica, is_to_replica)), service];
        }
        match event {
            Event::Envelope(envelope) => [Some(Way::Link(envelope.from, envelope.to)), None],
            Event::Speech { to, .. } => [Some(Way::Service(*to)), None],
            Event::ActorWake { actor, .. } => [Some(Way::Service(*actor)), None],
            _ => [None, None],
        }
    }

    /// A line loses what it carries for so long.
    pub(super) fn cut_line(
        &mut self,
        actor: ActorId,
        replica: ReplicaId,
        direction: Direction,
        length: Micros,
    ) {
        let end = self.now() + length;
        for is_to_replica in [true, false].into_iter().filter(|one| direction.covers(*one)) {
            let until = self.held.cut.entry((actor, replica, is_to_replica)).or_default();
            *until = (*until).max(end);
        }
    }

    /// Drops what was said on a line that is cut, or on a stream that has lost something before. That a session has ended
    /// is heard when the line holds again.
    fn pass_cuts(&mut self, event: Event) -> Option<Event> {
        let Some((session, is_to_replica)) = session_of(&event) else {
            return Some(event);
        };
        let now = self.now();
        let Some(one) = self.sessions.get_mut(&session) else {
            return Some(event);
        };
        let Some(owner) = one.owner else {
            return Some(event);
        };
        let until = self.held.cut.get(&(owner, one.replica, is_to_replica));
        let until = until.copied().filter(|until| *until > now);
        let is_said = matches!(event, Event::Request { .. } | Event::Response { .. });
        let severed = if is_to_replica {
            &mut one.is_severed.0
        } else {
            &mut one.is_severed.1
        };
        match until {
            None if is_said && *severed => None,
            None => Some(event),
            Some(until) if !is_said => {
                self.schedule.at(until, event);
                None
            }
            Some(until) => {
                self.checkers
                    .points
                    .count("network", "a cut line to a replica lost what it carried", 1);
                if one.carriage == Carriage::Stream && !std::mem::replace(severed, true) {
                    self.checkers
                        .points
                        .count("network", "a stream went silent and nobody said so", 1);
                    self.schedule.at(until, Event::SessionLost { session });
                }
                None
            }
        }
    }

    /// The time of a hold has come: it ends, unless it was made longer.
    pub(super) fn on_released(&mut self, way: Way) -> Check {
        let now = self.now();
        match self.held.ways.get(&way) {
            Some((until, _)) if *until <= now => self.release(way),
            _ => Ok(()),
        }
    }

    /// Ends every hold.
    pub(super) fn release_all(&mut self) -> Check {
        self.held.cut.clear();
        let ways: Vec<Way> = self.held.ways.keys().copied().collect();
        ways.into_iter().try_for_each(|way| self.release(way))
    }

    pub(super) fn release(&mut self, way: Way) -> Check {
        let Some((_, waiting)) = self.held.ways.remove(&way) else {
            return Ok(());
        };
        if !waiting.is_empty() {
            self.checkers.points.count("network", way.point(), 1);
        }
        waiting.into_iter().try_for_each(|event| self.on_event(event))
    }
}

/// The session that an event travels on, and whether it goes to the replica.
fn session_of(event: &Event) -> Option<(SessionId, bool)> {
    match event {
        Event::Request { session, .. } | Event::SessionClosed { session } => Some((*session, true)),
        Event::Response { session, .. } | Event::SessionLost { session } => Some((*session, false)),
        _ => None,
    }
}
