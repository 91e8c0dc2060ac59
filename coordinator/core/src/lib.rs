//! Synod's coordinator as a value: everything that must be right, and nothing that moves.
//!
//! [`Replica::step`](replica::Replica::step) takes the time and one input and returns [`Effects`](effects::Effects):
//! what to write, what to send, what to tell. It reads no clock, opens no file, starts no thread and draws no random
//! number that a seed did not give it. `no_std` makes the compiler check that.
//!
//! The contract with a driver, in steps:
//!
//! 1. Recover the log: [`Replica::new`](replica::Replica::new), then [`load`](replica::Replica::load) every readable
//!    slot in ascending order, then [`start`](replica::Replica::start).
//! 2. Call [`step`](replica::Replica::step) for every message, request and, at
//!    [`next_timeout`](replica::Replica::next_timeout), for the time. `now` never goes back.
//! 3. Of what a step returns, send the early messages and tell the sessions; give the rest to
//!    [`GroupCommit`](effects::GroupCommit), write and sync the batches that it returns, one at a time and in order,
//!    and report each sync. Do the fetches and send the gated messages that it then returns; those to this very replica
//!    go back into `step`.
//! 4. A write or sync that fails is reported as an input and never tried again (L9).
//!
//! Messages between replicas may be lost, repeated, delayed and reordered.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod durable;
pub mod effects;
pub mod entry;
pub mod machine;
pub mod paxos;
pub mod replica;
mod transaction;

pub use synod_proto::{random, time};
