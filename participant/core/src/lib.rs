//! Synod's participant as values: what a participant decides, without IO, clocks, randomness or threads.
//!
//! | module | step of the transaction | owns |
//! |---|---|---|
//! | [`transaction`] | 1 begin, 2 work, 4 outcome | the ledger of one global transaction: calls, votes, doom, hand-over (T2-T7) |
//! | [`arrival`] | 2 work | a call that arrives: whether work is done for it, and what its reply hands up (T2, T11, T14) |
//! | [`branch`] | 3 prepare | the gate between a prepared branch and its vote (C1) |
//! | [`open`] | 2 work, 3 prepare | branches that several calls share, prepared when the commit is asked for (T3) |
//! | [`session`] | 4 outcome, 5 delivery | this process's side of the coordinator session: requests, inquiries, acknowledgements (T7, T8) |
//! | [`relay`] | 6 relay | which messages of an outbox go to a consumer when (traps H5, H9, H10) |
//! | [`inbox`] | 7 inbox | which of the deliveries that arrive are run, and which are duplicates (traps H7, H8) |
//!
//! Time and chance are arguments: [`Now`] comes in with every step, `next_timeout` says when to step again, and a seed
//! is given at construction. The same seed and the same inputs give the same outputs.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod arrival;
pub mod branch;
pub mod inbox;
pub mod open;
pub mod relay;
pub mod session;
pub mod transaction;

mod time;

pub use time::{Now, Timestamp};
