//! This process's session with the coordinator (steps 4 and 5): one task that owns one bidirectional stream and moves
//! data and time for `synod_participant_core::session`, which decides.
//!
//! | file | holds |
//! |---|---|
//! | `handle.rs` | what the rest of the library calls |
//! | `driver.rs` | the task: steps the core, does its effects |
//! | `stream.rs` | opening one stream, batching requests into messages, reading answers |
//! | `resource.rs` | the object-safe view of a resource manager that the driver needs |

mod driver;
mod handle;
mod resource;
mod stream;

pub(crate) use handle::{DecideError, SessionError, SessionHandle, SessionOptions};

#[cfg(test)]
mod tests;
