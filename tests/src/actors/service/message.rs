//! What services say to each other.

use super::{Answered, Frame, Work};
use synod_participant_core::arrival::CallContext;

/// What services over the library say to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Do a piece of work under a transaction.
    Request {
        /// The caller's number for this attempt.
        number: u64,
        /// The transaction and the call.
        context: CallContext,
        /// What to do.
        work: Work,
    },
    /// The answer to one attempt.
    Answer {
        /// The attempt's number.
        number: u64,
        /// The answer.
        answered: Answered,
    },
    /// The caller of an attempt waits no longer.
    Gone {
        /// The attempt's number.
        number: u64,
    },
    /// A frame on a stream of messages.
    Frame {
        /// The stream, as its relay numbers it.
        stream: u64,
        /// The frame's number in its direction, from 0.
        number: u64,
        /// The frame.
        frame: Frame,
    },
    /// The other end of a stream of messages is there.
    StreamAlive {
        /// The stream.
        stream: u64,
        /// How many frames it has sent.
        count: u64,
        /// Whether it is the inbox that is told.
        is_to_inbox: bool,
    },
    /// A stream of messages is gone.
    StreamLost {
        /// The stream.
        stream: u64,
        /// Whether it is the inbox that is told.
        is_to_inbox: bool,
    },
    /// Look at the dead letters.
    Operate,
}
