//! Exhaustive exploration of small worlds over the real cores.
//!
//! Seeded runs sample; this enumerates. A world is small (three replicas, two values; one transaction), its faults are
//! counted, and within the counts everything that can happen in any order happens: [`search`] walks the states breadth
//! first and prints a shortest trace to the first broken invariant. Time has no numbers in here: any timer may fire.
//!
//! | file | holds |
//! |---|---|
//! | [`search`] | the walk: visited set, trace, counts |
//! | [`pool`] | states and events by number; the cores run once for each pair of them |
//! | [`fingerprint`], [`table`] | what a state is known by, and where that is kept |
//! | [`paxos`] | the first world: agreement |
//! | [`transaction`] | the second world: one transaction |
//! | [`worlds`] | what is explored, within which bounds |
//!
//! `cargo run -p synod-tests --bin explore` explores them all.

pub mod fingerprint;
pub mod paxos;
pub mod pool;
pub mod search;
pub mod table;
pub mod transaction;
pub mod worlds;
