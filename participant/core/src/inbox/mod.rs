//! The inbox of a consumer, as a value (step 7 of a transaction): which deliveries are run when, and which are refused.
//!
//! Two parts. [`decide`] compares a delivery with what the consumer's database says, within the local transaction that
//! would hold its effect. [`Inbox`] is what a process knows besides: deliveries of one key run one after the other, whatever
//! stream they came on, and one that a later sending has overtaken is refused; so a copy that was left on its way by a relay
//! that is gone comes neither beside nor after what that relay's successor sends (traps H5, H17).
//!
//! Handlers that hang hold up their own topic of their own origin: each of these has a share of what runs at once. What waits is
//! bounded by count and by bytes; above that it is refused as busy, and sent again later.

#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use bytes::Bytes;
use synod_proto::ids::{Fence, MessageId, Position, ResourceId};
use synod_proto::message::LowWater;

/// The most deliveries that run at once: each holds a local transaction open.
pub const RUNNING_COUNT_MAX: usize = 256;

/// The most deliveries of one topic of one origin that run at once, so that it takes several that hang to hold up the others.
pub const SHARE_RUNNING_COUNT_MAX: usize = RUNNING_COUNT_MAX / 4;

/// The most deliveries that wait: above it they are refused as busy.
pub const WAITING_COUNT_MAX: usize = 8192;

/// The most bytes of deliveries that wait: above it they are refused as busy.
pub const WAITING_BYTES_MAX: usize = 64 << 20;

const _: () = assert!(
    synod_proto::limits::MESSAGE_BODY_BYTES_MAX + synod_proto::limits::HEADER_BYTES_MAX
        <= WAITING_BYTES_MAX / 8,
    "a few of the largest messages do not fill it"
);

/// The most keys of one origin whose last sending is remembered. Of the others it is known that it was not above a floor.
pub const FENCE_COUNT_MAX: usize = 8192;

/// The most origins that are remembered. Above it one without a stream is forgotten for a new one.
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

/// A key of an origin, by its topic and its name: what is ordered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Gated {
    share: Share,
    key: Bytes,
}

/// A topic of an origin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Share {
    origin: Origin,
    topic: Bytes,
}

/// Which deliveries of a process run when. The [module](self) says what it guarantees.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    origins: BTreeMap<Origin, Known>,
    gates: BTreeMap<Gated, Gate>,
    /// Where each ticket waits or runs.
    tickets: BTreeMap<Ticket, Gated>,
    shares: BTreeMap<Share, Shared>,
    /// Whose turn it is: shares with ready gates.
    turns: VecDeque<Share>,
    running_count: usize,
    waiting_count: usize,
    waiting_bytes: usize,
    ticket_count: u64,
}

/// The last sending of each key of an origin.
#[derive(Clone, Debug, Default)]
struct Known {
    floor: Fence,
    highest: Fence,
    keys: BTreeMap<Bytes, Fence>,
    by_fence: BTreeMap<Fence, Bytes>,
    /// No stream of it is open.
    is_idle: bool,
}

#[derive(Clone, Debug, Default)]
struct Gate {
    running: Option<Ticket>,
    waiting: VecDeque<Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    session: InboxSession,
    ticket: Ticket,
    byte_count: usize,
}

/// What runs of a share, and what could.
#[derive(Clone, Debug, Default)]
struct Shared {
    running_count: usize,
    /// Keys whose gates nothing runs behind, and that something waits at. It is in `turns` while there are any.
    ready: VecDeque<Bytes>,
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

    /// A delivery has arrived. It runs when [`poll_start`](Self::poll_start) names its ticket. `key` is the name that is ordered
    /// within the origin, topic included; `byte_count` is what it weighs in memory.
    ///
    /// # Errors
    /// It is not run; nothing changed, or only what is known of its key.
    pub fn on_delivery(
        &mut self,
        session: InboxSession,
        origin: &Origin,
        topic: &Bytes,
        key: &Bytes,
        fence: Fence,
        byte_count: usize,
    ) -> Result<Ticket, Refused> {
        if self.waiting_count >= WAITING_COUNT_MAX || self.waiting_bytes + byte_count > WAITING_BYTES_MAX {
            return Err(Refused::Busy);
        }
        if !self.origins.contains_key(origin) {
            if self.origins.len() >= ORIGIN_COUNT_MAX && !self.forget_an_idle_origin() {
                return Err(Refused::Busy);
            }
            self.origins.insert(origin.clone(), Known::default());
        }
        let known = self.origins.get_mut(origin).expect("just there");
        known.is_idle = false;
        if !known.advance(key, fence) {
            return Err(Refused::Stale);
        }
        self.ticket_count += 1;
        let ticket = Ticket(self.ticket_count);
        let gated = Gated {
            share: Share {
                origin: origin.clone(),
                topic: topic.clone(),
            },
            key: key.clone(),
        };
        let gate = self.gates.entry(gated.clone()).or_default();
        gate.waiting.push_back(Waiting {
            session,
            ticket,
            byte_count,
        });
        self.waiting_count += 1;
        self.waiting_bytes += byte_count;
        if gate.running.is_none() && gate.waiting.len() == 1 {
            self.make_ready(gated.clone());
        }
        self.tickets.insert(ticket, gated);
        Ok(ticket)
    }

    /// The rows in the database keep "once"; only which of its late copies are stale is forgotten, and they came on streams that
    /// are closed.
    fn forget_an_idle_origin(&mut self) -> bool {
        let idle = self.origins.iter().find(|(_, known)| known.is_idle);
        let Some(origin) = idle.map(|(origin, _)| origin.clone()) else {
            return false;
        };
        self.origins.remove(&origin);
        true
    }

    fn make_ready(&mut self, gated: Gated) {
        let Gated { share, key } = gated;
        let shared = self.shares.entry(share.clone()).or_default();
        shared.ready.push_back(key);
        if shared.ready.len() == 1 {
            self.turns.push_back(share);
        }
    }

    /// The next delivery to run: shares take turns, and within a share its keys.
    pub fn poll_start(&mut self) -> Option<Ticket> {
        // A turn of each: those that have their share running stay in line.
        for _ in 0..self.turns.len() {
            if self.running_count >= RUNNING_COUNT_MAX {
                return None;
            }
            let share = self.turns.pop_front()?;
            let ticket = self.start_of(&share);
            if !self.shares[&share].ready.is_empty() {
                self.turns.push_back(share);
            }
            if ticket.is_some() {
                return ticket;
            }
        }
        None
    }

    fn start_of(&mut self, share: &Share) -> Option<Ticket> {
        let shared = self.shares.get_mut(share).expect("has a turn");
        if shared.running_count >= SHARE_RUNNING_COUNT_MAX {
            return None;
        }
        let gated = Gated {
            share: share.clone(),
            key: shared.ready.pop_front().expect("has a turn"),
        };
        let gate = self.gates.get_mut(&gated).expect("something waits there");
        let next = gate.waiting.pop_front().expect("else it is not ready");
        gate.running = Some(next.ticket);
        self.waiting_count -= 1;
        self.waiting_bytes -= next.byte_count;
        self.running_count += 1;
        shared.running_count += 1;
        Some(next.ticket)
    }

    /// A delivery that ran has ended, in whatever way.
    pub fn on_finished(&mut self, ticket: Ticket) {
        let Some(gated) = self.tickets.remove(&ticket) else {
            return;
        };
        let Some(gate) = self.gates.get_mut(&gated) else {
            return;
        };
        if gate.running != Some(ticket) {
            return;
        }
        gate.running = None;
        let has_more = !gate.waiting.is_empty();
        self.running_count -= 1;
        let shared = self.shares.get_mut(&gated.share).expect("runs one");
        shared.running_count -= 1;
        if has_more {
            self.make_ready(gated);
            return;
        }
        if shared.running_count == 0 && shared.ready.is_empty() {
            self.shares.remove(&gated.share);
        }
        self.gates.remove(&gated);
    }

    /// A stream is gone: what waits from it will not run. What runs, goes on. Returns the tickets that are void.
    pub fn on_session_closed(&mut self, session: InboxSession) -> alloc::vec::Vec<Ticket> {
        let mut void = alloc::vec::Vec::new();
        let mut void_bytes = 0;
        for gate in self.gates.values_mut() {
            gate.waiting.retain(|waiting| {
                let is_void = waiting.session == session;
                if is_void {
                    void.push(waiting.ticket);
                    void_bytes += waiting.byte_count;
                }
                !is_void
            });
        }
        self.gates
            .retain(|_, gate| gate.running.is_some() || !gate.waiting.is_empty());
        self.drop_turns();
        self.waiting_count -= void.len();
        self.waiting_bytes -= void_bytes;
        for ticket in &void {
            self.tickets.remove(ticket);
        }
        void
    }

    /// Where nothing waits any more, nothing is ready: streams that come and go leave nothing behind a share that is full.
    fn drop_turns(&mut self) {
        for (share, shared) in &mut self.shares {
            shared.ready.retain(|key| {
                let gated = Gated {
                    share: share.clone(),
                    key: key.clone(),
                };
                self.gates.contains_key(&gated)
            });
        }
        self.shares
            .retain(|_, shared| shared.running_count > 0 || !shared.ready.is_empty());
        let shares = &self.shares;
        self.turns
            .retain(|share| shares.get(share).is_some_and(|shared| !shared.ready.is_empty()));
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
            known.is_idle = true;
        }
    }
}
