//! What is held up on its way, and comes all at once and in order when that ends. Neither a cut nor a slow network does
//! that: what arrives is old, whole, and too much for one turn.

use super::{Event, World};
use crate::checkers::Check;
use crate::schedule::Micros;
use std::collections::BTreeMap;
use synod_proto::ids::ReplicaId;

/// Where things are held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// From a replica to another.
    Link(ReplicaId, ReplicaId),
}

impl Way {
    /// The point that a run comes past when something was held up there.
    fn point(self) -> &'static str {
        match self {
            Self::Link(..) => "a clogged link delivered what it held",
        }
    }
}

/// The ways on which nothing arrives, and what waits there, in its order.
#[derive(Debug, Default)]
pub(super) struct Held {
    ways: BTreeMap<Way, (Micros, Vec<Event>)>,
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
        if self.held.ways.is_empty() {
            return Some(event);
        }
        let waiting = self.way_of(&event).and_then(|way| self.held.ways.get_mut(&way));
        match waiting {
            Some((_, waiting)) => {
                waiting.push(event);
                None
            }
            None => Some(event),
        }
    }

    fn way_of(&self, event: &Event) -> Option<Way> {
        match event {
            Event::Envelope(envelope) => Some(Way::Link(envelope.from, envelope.to)),
            _ => None,
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
        let ways: Vec<Way> = self.held.ways.keys().copied().collect();
        ways.into_iter().try_for_each(|way| self.release(way))
    }

    fn release(&mut self, way: Way) -> Check {
        let Some((_, waiting)) = self.held.ways.remove(&way) else {
            return Ok(());
        };
        if !waiting.is_empty() {
            self.checkers.points.count("network", way.point(), 1);
        }
        waiting.into_iter().try_for_each(|event| self.on_event(event))
    }
}
