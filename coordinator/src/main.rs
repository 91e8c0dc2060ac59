//! The binary `synod`. Everything is in the library, so that tests run the same code.

use std::process::ExitCode;

/// A decision is many small, short-lived allocations on one thread: the system's allocator takes a sixth of a leader's
/// time for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    synod_coordinator::cli::main()
}
