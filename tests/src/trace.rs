//! What a run did, as one number, and as lines where somebody wants to read.

use crate::schedule::Micros;
use std::fmt;

/// How much a run keeps of what it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// The hash of the events' times and kinds.
    Hash,
    /// Every event as a line, in the hash and in memory.
    Lines,
}

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    detail: Detail,
    hash: u64,
    count: u64,
    lines: Vec<String>,
}

impl Trace {
    /// An empty trace.
    #[must_use]
    pub fn new(detail: Detail) -> Self {
        Self {
            detail,
            hash: 0xcbf2_9ce4_8422_2325,
            count: 0,
            lines: Vec::new(),
        }
    }

    /// Notes one event. `line` is formatted only where lines are kept.
    pub fn note(&mut self, at: Micros, kind: u64, line: fmt::Arguments<'_>) {
        self.count += 1;
        self.fold(at);
        self.fold(kind);
        if self.detail == Detail::Lines {
            let line = format!("{:>12.3} ms  {line}", at as f64 / 1000.0);
            for byte in line.bytes() {
                self.fold(u64::from(byte));
            }
            self.lines.push(line);
        }
    }

    /// FNV-1a over all that was noted.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many events there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last lines, at most `count_max`.
    #[must_use]
    pub fn tail(&self, count_max: usize) -> &[String] {
        &self.lines[self.lines.len().saturating_sub(count_max)..]
    }

    fn fold(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3);
    }
}
