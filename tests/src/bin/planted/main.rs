//! `cargo planted`: finds the bugs that are planted on purpose, and says how long it took.
//!
//! ```text
//! cargo planted --list                     every bug, and the rule that it breaks
//! cargo planted --all                      finds every bug; then the same seeds without any, which must find nothing
//! cargo planted --all --markdown           the same, as the table of tests/PLANTED.md
//! cargo planted --bug NAME [--seeds N]     finds one
//! cargo planted --rotation COMMIT          four of them, others for another commit
//! ```
//!
//! Each bug is looked for in a process of its own, in which it is selected for good; what finds it must find nothing in
//! another process that has not selected it. The table goes to standard output,
//! progress to standard error. Exit code 0: every bug was found within its stated number of seeds. 1: one was not, or
//! something was found where there is no bug. 2: the command line cannot be used, or the build holds no bugs.

#[cfg(planted)]
mod command;
#[cfg(planted)]
mod hunt;
#[cfg(planted)]
mod table;

use std::process::ExitCode;

#[cfg(planted)]
fn main() -> ExitCode {
    command::main()
}

#[cfg(not(planted))]
fn main() -> ExitCode {
    eprintln!("This build holds no planted bugs. Build and run the one that does with `cargo planted`,");
    eprintln!(
        "or, for another profile, with RUSTC_WORKSPACE_WRAPPER=$PWD/tests/plant cargo run -p synod-tests --bin planted"
    );
    ExitCode::from(2)
}
