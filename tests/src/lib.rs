//! The whole cluster in one thread and in virtual time, over the real coordinator core.
//!
//! A [`World`](world::World) owns replicas ([`host`]) with a disk each ([`store`]) and a clock each ([`clocks`]), a
//! network that loses, repeats, delays and reorders ([`network`]), and services that use the coordinator ([`actors`]).
//! Every step draws from seeded streams and from nothing else: the same seed gives the same bytes, and a test says so.
//!
//! What must hold is checked by [`checkers`], which know nothing of how the system works inside: they see what is
//! decided, what leaves a replica, what is on its disk, and what services are told.
//!
//! Beside it, [`process`] starts the real programs on real sockets and disks; it shares nothing with the rest.
//!
//! | to add | touch |
//! |---|---|
//! | a workload | a new file in [`workloads`], with its [`Actor`](actors::Actor)s, checker, points and faults, and its line in [`workloads::of`] |
//! | a kind of fault | [`Fault`](faults::Fault), and where it takes hold in [`World`](world::World) |
//! | a property | a new file in [`checkers`], and its calls in [`Checkers`](checkers::Checkers) |
//! | what must go wrong together | a script in [`scenarios`] |
#![forbid(unsafe_code)]

pub mod actors;
mod chance;
pub mod checkers;
pub mod clocks;
pub mod exhaustive;
pub mod explore;
pub mod faults;
pub mod host;
pub mod linearizability;
pub mod log_disk;
pub mod network;
pub mod plan;
pub mod process;
pub mod run;
pub mod scenarios;
pub mod schedule;
pub mod script;
pub mod store;
pub mod trace;
pub mod workloads;
pub mod world;
