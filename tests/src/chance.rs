//! Choices among a few, from the streams of chance.

use synod_coordinator_core::random::Random;

/// The place in a list of `count` that a number drawn before stands for.
pub(crate) fn place_of(number: u64, count: usize) -> usize {
    usize::try_from(number % count as u64).expect("below a length")
}

/// A place in a list of `count`.
pub(crate) fn place(random: &mut Random, count: usize) -> usize {
    place_of(random.between(0, count as u64 - 1), count)
}

/// One of a list.
pub(crate) fn pick<T: Copy>(random: &mut Random, list: &[T]) -> T {
    list[place(random, list.len())]
}

/// A small number, from `low` to `high`.
pub(crate) fn small(random: &mut Random, low: u32, high: u32) -> u32 {
    u32::try_from(random.between(low.into(), high.into())).expect("between small numbers")
}
