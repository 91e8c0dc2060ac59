//! The inbox of a consumer, as a value (step 7 of a transaction): which deliveries are run when, and which are refused.
//!
//! Two parts. [`decide`] compares a delivery with what the consumer's database says, within the local transaction that
//! would hold its effect. [`Inbox`] is what a process knows besides: deliveries of one key run one after the other, whatever
//! stream they came on, and one that a later sending has overtaken is refused; so a copy that was left on its way by a relay
//! that is gone comes neither beside nor after what that relay's successor sends (traps H5, H17).

#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use bytes::Bytes;
use synod_proto::ids::{Fence, MessageId, Position, ResourceId};
use synod_proto::message::LowWater;

/// The most deliveries that run at once: each holds a local transaction open.
pub const RUNNING_COUNT_MAX: usize = 64;

/// The most deliveries that wait: above it they are refused as busy.
pub const WAITING_COUNT_MAX: usize = 8192;

/// The most keys of one origin whose last sending is remembered. Of the others it is known that it was not above a floor.
pub const FENCE_COUNT_MAX: usize = 8192;

/// The most origins that are remembered.
pub const ORIGIN_COUNT_MAX: usize = 1024;

/// Where messages come from: an outbox, and the name that it has for this consumer. Positions and fences are counted within
/// one origin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The database with the outbox.
    pub source: ResourceId,
    /// Its name for this consumer.
    pub consumer: String,
}

/// One stream from a relay. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboxSession(pub u64);

/// A delivery that is run, or waits for its turn. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Why a delivery is not even looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A later sending of its key was seen.
    Stale,
    /// Too many are waiting.
    Busy,
}

/// What the consumer's database says of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Run it: its effect and its row are one local transaction.
    Next,
    /// Its row is there: it took effect before.
    Duplicate,
    /// Below the low-water mark: it took effect, or was given up, long ago.
    BelowLowWater,
    /// The one before it, which this consumer acknowledged, is not there: the consumer's database lost data.
    Gap {
        /// The missing one.
        missing: Position,
    },
    /// Another message has its place: the outbox lost data, and gave the place twice.
    Conflict {
        /// The other one.
        found: MessageId,
    },
}

/// Compares a delivery with the rows of its origin. `row` is what lies at its position, read under the row's lock; `low_water`
/// and `has_previous` are read after that lock was taken, since a mark that rises takes rows away.
#[must_use]
pub fn decide(
    id: MessageId,
    position: Position,
    previous: Option<Position>,
    row: Option<MessageId>,
    low_water: &LowWater,
    has_previous: bool,
) -> Decision {
    match row {
        Some(found) if found == id => return Decision::Duplicate,
        Some(found) => return Decision::Conflict { found },
        None => {}
    }
    if low_water.is_settled(position) {
        return Decision::BelowLowWater;
    }
    match previous {
        Some(missing) if !has_previous && !low_water.is_settled(missing) => Decision::Gap { missing },
        _ => Decision::Next,
    }
}

/// Which deliveries of a process run when. The [module](self) says what it guarantees.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    origins: BTreeMap<Origin, Known>,
    gates: BTreeMap<(Origin, Bytes), Gate>,
    /// Where each ticket waits or runs.
    tickets: BTreeMap<Ticket, (Origin, Bytes)>,
    /// Gates that nothing runs behind, and that something waits at.
    ready: VecDeque<(Origin, Bytes)>,
    running_count: usize,
    waiting_count: usize,
    ticket_count: u64,
}

/// The last sending of each key of an origin.
#[derive(Clone, Debug, Default)]
struct Known {
    floor: Fence,
    highest: Fence,
    keys: BTreeMap<Bytes, Fence>,
    by_fence: BTreeMap<Fence, Bytes>,
}

#[derive(Clone, Debug, Default)]
struct Gate {
    running: Option<Ticket>,
    waiting: VecDeque<(InboxSession, Ticket)>,
}

impl Known {
    /// Whether this sending is the latest of its key.
    fn advance(&mut self, key: &Bytes, fence: Fence) -> bool {
        let last = self.keys.get(key).copied().unwrap_or(self.floor);
        if fence <= last || fence <= self.floor {
            return false;
        }
        self.by_fence.remove(&last);
        self.keys.insert(key.clone(), fence);
        self.by_fence.insert(fence, key.clone());
        self.highest = self.highest.max(fence);
        if self.keys.len() > FENCE_COUNT_MAX
            && let Some((fence, key)) = self.by_fence.pop_first()
        {
            self.keys.remove(&key);
            self.floor = self.floor.max(fence);
        }
        true
    }
}

impl Inbox {
    /// An inbox that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A delivery has arrived. It runs when [`poll_start`](Self::poll_start) names its ticket.
    ///
    /// # Errors
    /// It is not run; nothing changed, or only what is known of its key.
    pub fn on_delivery(
        &mut self,
        session: InboxSession,
        origin: &Origin,
        key: &Bytes,
        fence: Fence,
    ) -> Result<Ticket, Refused> {
        if self.waiting_count >= WAITING_COUNT_MAX {
            return Err(Refused::Busy);
        }
        if !self.origins.contains_key(origin) {
            if self.origins.len() >= ORIGIN_COUNT_MAX {
                return Err(Refused::Busy);
            }
            self.origins.insert(origin.clone(), Known::default());
        }
        let known = self.origins.get_mut(origin).expect("just there");
        if !known.advance(key, fence) {
            return Err(Refused::Stale);
        }
        self.ticket_count += 1;
        let ticket = Ticket(self.ticket_count);
        let name = (origin.clone(), key.clone());
        let gate = self.gates.entry(name.clone()).or_default();
        gate.waiting.push_back((session, ticket));
        self.waiting_count += 1;
        if gate.running.is_none() && gate.waiting.len() == 1 {
            self.ready.push_back(name.clone());
        }
        self.tickets.insert(ticket, name);
        Ok(ticket)
    }

    /// The next delivery to run.
    pub fn poll_start(&mut self) -> Option<Ticket> {
        while self.running_count < RUNNING_COUNT_MAX {
            let name = self.ready.pop_front()?;
            let Some(gate) = self.gates.get_mut(&name) else {
                continue;
            };
            // A gate can have been named twice: when its stream ended and another one brought a delivery.
            if gate.running.is_some() {
                continue;
            }
            let Some((_, ticket)) = gate.waiting.pop_front() else {
                self.gates.remove(&name);
                continue;
            };
            gate.running = Some(ticket);
            self.waiting_count -= 1;
            self.running_count += 1;
            return Some(ticket);
        }
        None
    }

    /// A delivery that ran has ended, in whatever way.
    pub fn on_finished(&mut self, ticket: Ticket) {
        let Some(name) = self.tickets.remove(&ticket) else {
            return;
        };
        let Some(gate) = self.gates.get_mut(&name) else {
            return;
        };
        if gate.running != Some(ticket) {
            return;
        }
        gate.running = None;
        self.running_count -= 1;
        if gate.waiting.is_empty() {
            self.gates.remove(&name);
        } else {
            self.ready.push_back(name);
        }
    }

    /// A stream is gone: what waits from it will not run. What runs, goes on. Returns the tickets that are void.
    pub fn on_session_closed(&mut self, session: InboxSession) -> alloc::vec::Vec<Ticket> {
        let mut void = alloc::vec::Vec::new();
        for gate in self.gates.values_mut() {
            gate.waiting.retain(|(of, ticket)| {
                if *of == session {
                    void.push(*ticket);
                }
                *of != session
            });
        }
        // A gate that is in `ready` stays there, and is dropped when its turn finds nobody.
        self.gates
            .retain(|_, gate| gate.running.is_some() || !gate.waiting.is_empty());
        self.waiting_count -= void.len();
        for ticket in &void {
            self.tickets.remove(ticket);
        }
        void
    }

    /// How many deliveries run, and how many wait: for metrics.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.running_count, self.waiting_count)
    }

    /// No stream of this origin is open any more: what is known of its single keys is summed up, so that the memory is free.
    pub fn on_origin_idle(&mut self, origin: &Origin) {
        if let Some(known) = self.origins.get_mut(origin) {
            known.floor = known.highest;
            known.keys.clear();
            known.by_fence.clear();
        }
    }
}
