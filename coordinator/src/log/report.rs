//! What a start found, for the trace. It decides nothing.

use std::collections::BTreeSet;
use synod_coordinator_core::paxos::Slot;

/// What was found at start, for the trace. Decides nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Segments found.
    pub segment_count: u64,
    /// Readable batches.
    pub batch_count: u64,
    /// The interrupted write that was cut off.
    pub torn: Option<Torn>,
    /// Damage to what was synced once, in the order of the log.
    pub corrupt: Vec<CorruptPlace>,
    /// Files of segments whose making was interrupted. No batch was ever in them; a start removes them.
    pub unfinished: Vec<String>,
}

/// A tail that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The segment's number.
    pub segment: u64,
    /// The first damaged byte, from the segment's beginning.
    pub offset: u64,
    /// The length of what was cut, in bytes.
    pub bytes: u64,
}

/// Damage to what was synced once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorruptPlace {
    /// The segment's number.
    pub segment: u64,
    /// The first damaged byte, from the segment's beginning.
    pub offset: u64,
    /// What the place held.
    pub damage: Damage,
}

/// What was damaged, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// A segment's header. It costs nothing.
    SegmentHeader,
    /// Bytes that belong to no batch: the chain of batches shows that none is missing.
    Unused,
    /// The value of one slot.
    Value {
        /// The slot.
        slot: Slot,
    },
    /// Whole batches.
    Batches {
        /// How many.
        count: u64,
        /// The first slot that they may have held the latest record of.
        first: Slot,
        /// The last such slot, inclusive.
        up_to: Slot,
    },
}

impl OpenReport {
    /// Writes the report to the trace: a line in all, and a warning for each damaged place.
    pub fn trace(&self) {
        tracing::info!(
            segments = self.segment_count,
            batches = self.batch_count,
            "log opened"
        );
        if let Some(Torn {
            segment,
            offset,
            bytes,
        }) = self.torn
        {
            tracing::info!(
                segment,
                offset,
                bytes,
                "cut the write that the last stop interrupted"
            );
        }
        for name in &self.unfinished {
            tracing::info!(name, "removed a segment whose making the last stop interrupted");
        }
        for CorruptPlace {
            segment,
            offset,
            damage,
        } in &self.corrupt
        {
            tracing::warn!(segment, offset, ?damage, "the log is corrupt here");
        }
    }
}

impl Damage {
    /// Leaves out slots that a later record healed.
    pub(super) fn narrow(&mut self, lost: &BTreeSet<Slot>) {
        if let Self::Batches { first, up_to, .. } = self
            && first <= up_to
        {
            let mut still_lost = lost.range(*first..=*up_to);
            if let Some(lowest) = still_lost.next() {
                let highest = still_lost.next_back().unwrap_or(lowest);
                (*first, *up_to) = (*lowest, *highest);
            } else {
                *up_to = Slot(first.0.saturating_sub(1));
            }
        }
    }
}
