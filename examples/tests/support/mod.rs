//! Runs an example as a user does, with a deadline.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The example's command line, with its streams in pipes.
pub(crate) fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits for the end; the output is small enough for the pipes to hold it.
pub(crate) fn finish(mut child: Child, run_timeout: Duration) -> Output {
    let begun = Instant::now();
    while child.try_wait().expect("the child can be waited for").is_none() {
        if begun.elapsed() > run_timeout {
            child.kill().expect("the child can be killed");
            panic!("no end after {run_timeout:?}: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("the child's output")
}

/// The exit code and the summary of a run with `--json`. What the example says on stderr is shown.
pub(crate) fn summary(program: &str, args: &[&str], run_timeout: Duration) -> (Option<i32>, Value) {
    let mut command = command(program, args);
    command.arg("--json").stderr(Stdio::inherit());
    let output = finish(command.spawn().expect("the example starts"), run_timeout);
    let summary = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    (output.status.code(), summary)
}
