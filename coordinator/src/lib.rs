//! Synod's coordinator: the replica as a process, and the binary `synod`.
//!
//! Every decision is in `synod-coordinator-core`; this crate moves data and time. One replica is one task that owns the
//! core (`driver`), one thread that owns the log on disk ([`log`]), streams to the other replicas (`links`) and to
//! participants (`service`, `sessions`). [`replica_process::run`] puts them together, for the binary and for tests alike.
#![forbid(unsafe_code)]

mod bench;
pub mod cli;
pub mod config;
pub mod directory;
mod driver;
mod links;
pub mod log;
pub mod replica_process;
mod service;
mod sessions;
