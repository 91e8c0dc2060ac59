//! No process outlives its test, also where the test itself is killed and runs no destructor.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};

/// Becomes `command`; returns only if that fails. The wish to die with the parent survives the change of program, and
/// the process id stays the same, so that signals reach the program itself.
pub(crate) fn exec(command: &[String]) -> io::Error {
    let Some((program, arguments)) = command.split_first() else {
        return io::Error::other("no command");
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    Command::new(program).args(arguments).exec()
}
