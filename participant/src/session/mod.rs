//! This process's session with the coordinator (steps 4 and 5): one task that owns one bidirectional stream and moves
//! data and time for `synod_participant_core::session`, which decides.
//!
//! | file | holds |
//! |---|---|
//! | `handle.rs` | what the rest of the library calls |
//! | `driver.rs` | the task: steps the core, does its effects |
//! | `open.rs` | the open branches of this process, between their calls |
//! | `stream.rs` | opening one stream, batching requests into messages, reading answers |
//! | `resource.rs` | what the driver needs of a resource manager, object-safe |

mod driver;
mod handle;
mod open;
mod resource;
mod stream;

pub(crate) use handle::{DecideError, SessionError, SessionHandle, SessionOptions, WorkGuard};
pub(crate) use open::{OpenCallId, OpenTask, branch_of};
pub(crate) use stream::endpoint;

#[cfg(test)]
mod tests;
