//! Instructions per decision early and late: whether the ten-millionth decision costs more than the hundred-thousandth.
//!
//! A process with three replicas in memory ([`in_memory`](crate::in_memory)) runs under `valgrind --tool=callgrind`. Most of
//! the way nothing is counted, which is faster; within two windows everything is that the replicas do, and nothing of the
//! clients, by callgrind's own switch on one function.

use crate::Failure;
use crate::in_memory::{Cluster, GROUP_COUNT};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Arguments of `compare in-memory`, which runs under callgrind.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the windows begin, in decisions.
    #[arg(long, value_delimiter = ',')]
    windows: Vec<u64>,
    /// How long each is.
    #[arg(long)]
    count: u64,
    /// Decisions in a second of the cluster's clock.
    #[arg(long)]
    per_second: u64,
}

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) early: u64,
    pub(crate) late: u64,
    pub(crate) count: u64,
    /// By the watermark's lag of ten minutes it sets how many outcomes the register holds in the end.
    pub(crate) per_second: u64,
}

impl Default for Plan {
    /// Near the most that the register can hold: 1.8 of 2 million outcomes.
    fn default() -> Self {
        Self {
            early: 100_000,
            late: 10_000_000,
            count: 100_000,
            per_second: 3_000,
        }
    }
}

/// One window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) begin: u64,
    pub(crate) decision_count: u64,
    pub(crate) outcome_count: u64,
    pub(crate) instruction_count: u64,
}

impl Window {
    #[expect(clippy::cast_precision_loss, reason = "counts stay below 2^52")]
    pub(crate) fn per_decision(&self) -> f64 {
        self.instruction_count as f64 / self.decision_count as f64
    }
}

/// The process under callgrind. Says `window BEGIN OUTCOMES` before each window and `end DECISIONS` after it, and waits for
/// a line on stdin each time.
pub(crate) fn run_in_memory(args: &Args) -> Result<(), Failure> {
    let lines = Arc::new(AtomicU64::new(0));
    let reader = lines.clone();
    std::thread::spawn(move || {
        for _ in std::io::stdin().lines() {
            reader.fetch_add(1, Ordering::Release);
        }
        // Whoever counts is gone.
        std::process::exit(1);
    });
    let mut heard = 0;
    // Busy, not asleep: callgrind takes commands while code runs.
    let mut wait = || {
        heard += 1;
        while lines.load(Ordering::Acquire) < heard {
            std::thread::yield_now();
        }
    };
    let mut cluster = Cluster::start(args.per_second);
    for begin in &args.windows {
        while cluster.decided_count() < *begin {
            cluster.decide_group();
        }
        println!("window {} {}", cluster.decided_count(), cluster.outcome_count());
        wait();
        let first = cluster.decided_count();
        while cluster.decided_count() < begin + args.count {
            cluster.decide_group();
        }
        println!("end {}", cluster.decided_count() - first);
        wait();
    }
    Ok(())
}

/// Counts both windows.
pub(crate) fn count(plan: Plan, directory: &Path) -> Result<[Window; 2], Failure> {
    let output = directory.join("callgrind.out");
    let trace = fs::File::create(directory.join("valgrind.log"))?;
    let mut child = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--instr-atstart=no",
            "--toggle-collect=*in_memory*Cluster*turn*",
        ])
        .arg(format!("--callgrind-out-file={}", output.display()))
        .arg(std::env::current_exe()?)
        .arg("in-memory")
        .arg("--windows")
        .arg(format!("{},{}", plan.early, plan.late))
        .args([
            "--count",
            &plan.count.to_string(),
            "--per-second",
            &plan.per_second.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(trace)
        .spawn()
        .map_err(|error| format!("valgrind: {error}"))?;
    let mut counted = Counted {
        go: child.stdin.take().ok_or("stdin is piped")?,
        told: BufReader::new(child.stdout.take().ok_or("stdout is piped")?),
        output: output.display().to_string(),
        dump_count: 0,
        child,
    };
    let early = counted.window()?;
    eprintln!(
        "instructions: {:.0} for a decision from the {}th on",
        early.per_decision(),
        early.begin
    );
    let late = counted.window()?;
    eprintln!(
        "instructions: {:.0} for a decision from the {}th on",
        late.per_decision(),
        late.begin
    );
    counted.child.wait()?;
    Ok([early, late])
}

/// The process, and the way to it.
struct Counted {
    child: Child,
    go: ChildStdin,
    told: BufReader<ChildStdout>,
    output: String,
    dump_count: u32,
}

impl Counted {
    fn window(&mut self) -> Result<Window, Failure> {
        let [begin, outcome_count] = self.told("window")?;
        self.control(&["--instr=on"])?;
        self.control(&["--zero"])?;
        writeln!(self.go)?;
        let [decision_count] = self.told("end")?;
        self.control(&["--dump"])?;
        self.control(&["--instr=off"])?;
        self.dump_count += 1;
        let dump = fs::read_to_string(format!("{}.{}", self.output, self.dump_count))?;
        writeln!(self.go)?;
        Ok(Window {
            begin,
            decision_count,
            outcome_count,
            instruction_count: total(&dump).ok_or("callgrind's dump has no total")?,
        })
    }

    fn told<const N: usize>(&mut self, what: &str) -> Result<[u64; N], Failure> {
        let mut line = String::new();
        self.told.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        if words.next() != Some(what) {
            return Err(format!("the counted process said {line:?} and not `{what}`").into());
        }
        let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>()?;
        numbers
            .try_into()
            .map_err(|_| format!("the counted process said {line:?}").into())
    }

    fn control(&self, arguments: &[&str]) -> Result<(), Failure> {
        let output = Command::new("callgrind_control")
            .args(arguments)
            .arg(self.child.id().to_string())
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("callgrind_control: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("callgrind_control {arguments:?}: {text}").into())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Gone already where all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The instructions of a dump.
fn total(dump: &str) -> Option<u64> {
    let line = dump.lines().find_map(|line| line.strip_prefix("totals: "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What it comes to.
pub(crate) fn text([early, late]: &[Window; 2], plan: Plan) -> String {
    let more = (late.per_decision() / early.per_decision() - 1.0) * 100.0;
    let line = |window: &Window| {
        format!(
            "| {} to {} | {} | {:.0} |\n",
            window.begin,
            window.begin + window.decision_count,
            window.outcome_count,
            window.per_decision()
        )
    };
    format!(
        "| decisions | outcomes in the register before | instructions for each, over three replicas |\n|---|--:|--:|\n{}{}\n\
         Late against early: {more:+.2} %. Counted by callgrind: all that the cores of a leader and two followers do for a commit of \
         two branches that are delivered and acknowledged, in groups of {GROUP_COUNT}, with the clock at {} decisions a second and the \
         watermark ten minutes behind. Not counted: gRPC, frames, sockets, files, clients.\n",
        line(early),
        line(late),
        plan.per_second
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_has_its_total_at_the_end() {
        let dump = "events: Ir\nsummary: 12\n\nfn=(1) main\n1 12\n\ntotals: 4711\n";
        assert_eq!(total(dump), Some(4711));
        assert_eq!(total("events: Ir\n"), None);
    }
}
