//! What the relay of an outbox and the inbox of a consumer say to each other (steps 6 and 7 of a transaction).
//!
//! A relay opens a stream with [`Hello`], the inbox answers with [`Welcome`] or refuses the stream; then come deliveries
//! one way, and one answer to each of them the other way.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

use crate::ids::{Fence, Lineage, MessageId, Position, ResourceId, Sequence, UnixMillis};

/// A relay's first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The database with the outbox.
    pub source: ResourceId,
    /// The coordinator that this database belongs to, if it ever met one (T11).
    pub lineage: Option<Lineage>,
    /// The name under which the outbox knows the consumer.
    pub consumer: String,
    /// The outbox's low-water mark for this consumer: an inbox that knows a higher one knows a later outbox than this.
    pub mark: Position,
}

/// An inbox's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The consumer's database.
    pub resource: ResourceId,
    /// The highest low-water mark of this source that the inbox has on disk.
    pub mark: Position,
    /// The highest position that took effect in this database, or lies just below the mark; 0 before the first. One below what it
    /// acknowledged once is of a database that has lost messages.
    pub highest_applied: Position,
    /// It knows what a cancelled delivery is. To one that does not it must not be sent: it would be applied.
    pub takes_cancelled: bool,
}

/// One message on its way to one consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The message, the same at every redelivery.
    pub id: MessageId,
    /// Its place in the outbox.
    pub position: Position,
    /// This sending of it.
    pub fence: Fence,
    /// Counts the deliveries of this message, from 1; as far as the sender remembers.
    pub attempt: u32,
    /// The last message of the same key that this consumer acknowledged, where the sender remembers one.
    pub previous: Option<Position>,
    /// What it is about.
    pub topic: String,
    /// What it is ordered by.
    pub key: Bytes,
    /// Its number within its key.
    pub sequence: Sequence,
    /// Metadata, as it was published.
    pub headers: BTreeMap<String, String>,
    /// The content.
    pub body: Bytes,
    /// When it was published, by the clock of the database that it was published in.
    pub published_at: UnixMillis,
    /// An operator has taken it back: it comes without headers and body, and takes no effect unless it has taken effect before.
    pub is_cancelled: bool,
}

/// How far the outbox is settled for a consumer (T13, traps H8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LowWater {
    /// Every message below this position is settled, and will never be sent again, except for those listed.
    pub mark: Position,
    /// Positions below the mark that may still be sent, rising.
    pub unsettled: Vec<Position>,
}

impl LowWater {
    /// Whether no delivery of this position is to be applied any more.
    #[must_use]
    pub fn is_settled(&self, position: Position) -> bool {
        position < self.mark && self.unsettled.binary_search(&position).is_err()
    }
}

/// What became of one sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The effect and the inbox row are on the consumer's disk, by this delivery.
    Applied,
    /// They were there already.
    Duplicate,
    /// Below the low-water mark: settled long ago. Or cancelled, which is on the consumer's disk: it never takes effect.
    Settled,
    /// The handler failed, and nothing took effect: send it again later.
    Failed {
        /// Why, for people.
        text: String,
    },
    /// The message named as the previous one of this key never took effect here. Nothing took effect.
    Gap {
        /// That message.
        missing: Position,
    },
    /// A later sending of this key was seen: this one is refused.
    Stale,
    /// The inbox is full, or its store is closed: send it again later. Says nothing about the message.
    Busy {
        /// Why, for people.
        text: String,
    },
}

/// The answer to one sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The message's place in the outbox.
    pub position: Position,
    /// The sending.
    pub fence: Fence,
    /// What became of it.
    pub answer: Answer,
}

/// A frame from a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayFrame {
    /// Must be the first one, and no other.
    Hello(Hello),
    /// Messages.
    Deliver(Vec<Delivery>),
    /// What the inbox may forget.
    LowWater(LowWater),
}

/// A frame from an inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboxFrame {
    /// Must be the first one, and no other.
    Welcome(Welcome),
    /// Answers, in any order.
    Answers(Vec<Answered>),
    /// The low-water mark is on the consumer's disk.
    LowWaterReached(Position),
}
