//! The binary `synod`. Everything is in the library, so that tests run the same code.

use std::process::ExitCode;

/// A decision is many small, short-lived allocations on one thread: the system's allocator takes a sixth of a leader's
/// time for them. Built without huge pages (`no_thp`): where the kernel gives them on request, a tenth of the time went
/// into clearing them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    synod_coordinator::cli::main()
}
