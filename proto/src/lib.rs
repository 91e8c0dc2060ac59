//! Synod's vocabulary, shared by coordinator and participant: identifiers ([`ids`]), what the two say to each
//! other ([`session`]), what relays and inboxes do ([`message`]), the log's command format ([`command`]), time and chance as the cores' arguments ([`time`],
//! [`random`]), and, with the `grpc` feature, the generated gRPC code ([`v1`]), the one place where wire messages become domain values or are refused ([`wire`]), and
//! what a process takes from the machine that it runs on ([`environment`]). [`planted`](mod@planted) is for tests alone.
//!
//! Without the feature `grpc` the crate is `no_std`; the two cores depend on it in that form.
#![cfg_attr(not(feature = "grpc"), no_std)]

extern crate alloc;

pub mod command;
#[cfg(feature = "grpc")]
pub mod environment;
pub mod ids;
pub mod limits;
pub mod message;
pub mod planted;
pub mod random;
pub mod session;
pub mod time;

#[cfg(feature = "grpc")]
pub mod wire;

/// Generated code of the package `synod.v1`.
#[cfg(feature = "grpc")]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::disallowed_types)]
pub mod v1 {
    tonic::include_proto!("synod.v1");
    /// The encoded file descriptors, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/synod.v1.bin"));
}
