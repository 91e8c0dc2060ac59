//! The binary `synod`. Everything is in the library, so that tests run the same code.

use std::process::ExitCode;

fn main() -> ExitCode {
    synod_coordinator::cli::main()
}
