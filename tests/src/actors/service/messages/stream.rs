//! Streams between two services: what the network loses, repeats and turns round comes in order, or the stream breaks.

use crate::schedule::Micros;
use std::collections::BTreeMap;
use synod_proto::message::{InboxFrame, RelayFrame};

/// What travels on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// From a relay.
    ToInbox(RelayFrame),
    /// From an inbox.
    ToRelay(InboxFrame),
}

/// How long a transport waits for what is missing before it gives its stream up.
const PATIENCE_US: Micros = 1_500_000;

/// How often a relay asks whether the other end is there, and after how long a silence it is gone.
pub(super) const ALIVE_US: Micros = 3_000_000;
/// See [`ALIVE_US`].
pub(super) const SILENCE_US_MAX: Micros = 8_000_000;

/// One direction of a stream, at its receiver.
#[derive(Debug)]
pub(super) struct Incoming<T> {
    next: u64,
    early: BTreeMap<u64, T>,
    /// Since when a frame is missing.
    missing_since: Option<Micros>,
}

impl<T> Default for Incoming<T> {
    fn default() -> Self {
        Self {
            next: 0,
            early: BTreeMap::new(),
            missing_since: None,
        }
    }
}

impl<T> Incoming<T> {
    /// A frame has come; returns what can be read now.
    pub(super) fn take(&mut self, now: Micros, number: u64, frame: T) -> Vec<T> {
        if number >= self.next {
            self.early.insert(number, frame);
        }
        let mut ready = Vec::new();
        while let Some(frame) = self.early.remove(&self.next) {
            self.next += 1;
            ready.push(frame);
        }
        self.missing_since = match (self.early.is_empty(), ready.is_empty()) {
            (true, _) => None,
            (false, true) => self.missing_since.or(Some(now)),
            (false, false) => Some(now),
        };
        ready
    }

    /// The other end has sent so many frames.
    pub(super) fn expect(&mut self, now: Micros, count: u64) {
        if self.next < count {
            self.missing_since.get_or_insert(now);
        }
    }

    /// When the stream breaks.
    pub(super) fn breaks_at(&self) -> Option<Micros> {
        self.missing_since.map(|since| since + PATIENCE_US)
    }
}
