//! 128 bits for a state of one process, 64 bits for a state of the world.
//!
//! Two different states with one fingerprint would hide one of them. For the processes (well under a million states)
//! 128 bits make that impossible in practice; for a world of ten million states 64 bits leave a chance of about 3 in a
//! million that a single state is missed, which is what hash compaction costs (Holzmann, *An Analysis of Bitstate
//! Hashing*).

use std::hash::{DefaultHasher, Hash, Hasher};

/// A fingerprint of whatever is fed to it.
#[derive(Clone, Debug)]
pub struct Fingerprint {
    left: DefaultHasher,
    right: DefaultHasher,
}

impl Fingerprint {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let mut right = DefaultHasher::new();
        right.write_u64(0x5359_4e4f_4400_0001);
        Self {
            left: DefaultHasher::new(),
            right,
        }
    }

    /// The fingerprint of one value.
    #[must_use]
    pub fn of(value: &impl Hash) -> u128 {
        let mut fingerprint = Self::new();
        value.hash(&mut fingerprint);
        fingerprint.value()
    }

    /// All 128 bits.
    #[must_use]
    pub fn value(&self) -> u128 {
        (u128::from(self.left.finish()) << 64) | u128::from(self.right.finish())
    }
}

impl Default for Fingerprint {
    fn default() -> Self {
        Self::new()
    }
}

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        self.left.write(bytes);
        self.right.write(bytes);
    }

    fn finish(&self) -> u64 {
        self.left.finish()
    }
}

/// The fingerprint of a state of the world, which is a short list of numbers.
#[must_use]
pub fn of_words(words: &[u32]) -> u64 {
    let mut mixed = 0x9e37_79b9_7f4a_7c15 ^ words.len() as u64;
    for word in words {
        mixed = scramble(mixed ^ u64::from(*word)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
    scramble(mixed)
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every bit of the input reaches every bit of the output.
#[must_use]
pub const fn scramble(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
