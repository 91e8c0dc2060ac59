//! The command line, and the processes in which bugs are looked for.

use crate::hunt::{Outcome, look, look_for_nothing};
use crate::table;
use clap::Parser;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use synod_proto::planted::{Bug, Means, select};
use synod_tests::plan::seed::parse_seed;

/// How many bugs are looked for in rotation.
const ROTATION_COUNT: usize = 4;

/// A rotation is a part of every test run, and so of bugs that are found within so many seeds.
const ROTATION_SEEDS_MAX: u64 = 60;

/// The control runs at least so many seeds.
const CONTROL_SEED_COUNT: u64 = 100;

/// Finds the bugs that are planted on purpose.
#[derive(Debug, Parser)]
#[command(name = "cargo planted", bin_name = "cargo planted")]
#[command(group(clap::ArgGroup::new("what").required(true).args(["list", "all", "bug", "control", "without", "rotation"])))]
struct Arguments {
    /// Every bug, and the rule that it breaks.
    #[arg(long)]
    list: bool,
    /// Every bug, and then the same seeds without any.
    #[arg(long)]
    all: bool,
    /// One bug.
    #[arg(long, value_name = "NAME", value_parser = parse_bug)]
    bug: Option<Bug>,
    /// No bug: nothing must be found.
    #[arg(long)]
    control: bool,
    /// Looks where this bug was found, without it: nothing must be found there.
    #[arg(long, value_name = "NAME", value_parser = parse_bug, hide = true)]
    without: Option<Bug>,
    /// Four bugs, others for another commit (its first 16 hexadecimal digits count) or number.
    #[arg(long, value_name = "COMMIT|N", value_parser = parse_seed)]
    rotation: Option<u64>,
    /// How many seeds at most, instead of the stated number of each bug.
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, value_name = "SEED", default_value = "1", value_parser = parse_seed)]
    from: u64,
    /// How many threads; all cores by default.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// The table in Markdown.
    #[arg(long)]
    markdown: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// How long the search for one bug may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    patience: u64,
}

fn parse_bug(text: &str) -> Result<Bug, String> {
    Bug::ALL
        .into_iter()
        .find(|bug| bug.name().eq_ignore_ascii_case(text))
        .ok_or_else(|| "no bug of that name; --list shows them".to_string())
}

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let thread_count = arguments.threads.unwrap_or(cores).max(1);
    if arguments.list {
        print!("{}", table::list());
        return ExitCode::SUCCESS;
    }
    if arguments.bug.is_some() || arguments.control || arguments.without.is_some() {
        return look_for_one(&arguments, thread_count);
    }
    let bugs = match arguments.rotation {
        Some(number) => rotation(number),
        None => Bug::ALL.to_vec(),
    };
    look_for_many(&arguments, &bugs, thread_count)
}

/// Four bugs that lie apart: neighbours in the list break the same part.
fn rotation(number: u64) -> Vec<Bug> {
    let is_quick = |bug: &Bug| !matches!(bug.means(), Means::Seeds(count) if count > ROTATION_SEEDS_MAX);
    let quick: Vec<Bug> = Bug::ALL.into_iter().filter(is_quick).collect();
    let stride = quick.len().div_ceil(ROTATION_COUNT);
    let first = usize::try_from(number % stride as u64).expect("below the number of bugs");
    quick.into_iter().skip(first).step_by(stride).collect()
}

fn seed_count_max(arguments: &Arguments, bug: Option<Bug>) -> u64 {
    let stated = match bug {
        Some(bug) => stated_seeds(bug),
        // As many as any bug may take: what is found there would be taken for the bug.
        None => CONTROL_SEED_COUNT.max(Bug::ALL.into_iter().map(stated_seeds).max().unwrap_or_default()),
    };
    arguments.seeds.unwrap_or(stated)
}

fn stated_seeds(bug: Bug) -> u64 {
    match bug.means() {
        Means::Seeds(count) => count,
        Means::Exploration(_) | Means::Scenario(_) => 0,
    }
}

fn look_for_one(arguments: &Arguments, thread_count: usize) -> ExitCode {
    // Panics of runs are findings, and are shown as such.
    std::panic::set_hook(Box::new(|_| {}));
    let name = arguments.bug.map_or("", Bug::name);
    if let Some(bug) = arguments.bug {
        select(bug);
    }
    let (first, seed_count_max) = (
        arguments.from,
        seed_count_max(arguments, arguments.bug.or(arguments.without)),
    );
    let (ended, outcome) = mpsc::channel();
    // A bug may keep a run from ever ending, so it is not waited for.
    let bug = arguments.bug.or(arguments.without);
    thread::spawn(move || {
        let outcome = match bug {
            Some(bug) => look(bug, (first, seed_count_max), thread_count),
            None => look_for_nothing((first, seed_count_max), thread_count),
        };
        ended.send(outcome)
    });
    let Ok(mut outcome) = outcome.recv_timeout(Duration::from_secs(arguments.patience)) else {
        eprintln!("{name}: nothing was found in {} s", arguments.patience);
        return ExitCode::from(1);
    };
    // What is found without the bug as well says nothing of it.
    if let (Some(bug), Some(found)) = (arguments.bug, &outcome.found)
        && !is_clean_without(arguments, bug, found.seed.unwrap_or(first))
    {
        eprintln!(
            "{name}: {} finds it without the bug, too: {}",
            found.checker, found.text
        );
        outcome.found = None;
    }
    if arguments.json {
        println!(
            "{}",
            serde_json::to_string(&outcome).expect("an outcome has a form")
        );
    } else {
        print!("{}", table::text(&outcome));
    }
    if outcome.found.is_some() == arguments.bug.is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

fn look_for_many(arguments: &Arguments, bugs: &[Bug], thread_count: usize) -> ExitCode {
    let waiting: Mutex<VecDeque<Bug>> = Mutex::new(bugs.iter().copied().collect());
    let outcomes: Mutex<Vec<(Bug, Option<Outcome>)>> = Mutex::default();
    let work = || {
        loop {
            let bug = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(bug) = bug else { return };
            let outcome = look_in_process(arguments, Some(bug), 1);
            eprint!("{}", table::progress(bug, outcome.as_ref()));
            let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            outcomes.push((bug, outcome));
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread_count {
            scope.spawn(work);
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|(bug, _)| *bug);
    let control = arguments
        .all
        .then(|| look_in_process(arguments, None, thread_count));
    print!(
        "{}",
        table::table(&outcomes, control.as_ref(), arguments.markdown)
    );
    let are_found = outcomes
        .iter()
        .all(|(_, outcome)| outcome.as_ref().is_some_and(|one| one.found.is_some()));
    let is_clean = control.is_none_or(|control| control.is_some_and(|one| one.found.is_none()));
    if are_found && is_clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

/// Looks for one bug in a process of its own. `None`: it took too long, or could not be done at all.
fn look_in_process(arguments: &Arguments, bug: Option<Bug>, thread_count: usize) -> Option<Outcome> {
    let own = std::env::current_exe().ok()?;
    let mut command = Command::new(own);
    match bug {
        Some(bug) => command.args(["--bug", bug.name()]),
        None => command.arg("--control"),
    };
    command.arg("--json");
    for (flag, number) in [
        ("--seeds", seed_count_max(arguments, bug)),
        ("--from", arguments.from),
        ("--threads", thread_count as u64),
        ("--patience", arguments.patience),
    ] {
        command.arg(flag).arg(number.to_string());
    }
    let output = command.stderr(Stdio::inherit()).output();
    let output = output
        .inspect_err(|error| eprintln!("{}", describe(error.kind())))
        .ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

/// Looks once more where a bug was found, in a process that has not selected it.
fn is_clean_without(arguments: &Arguments, bug: Bug, seed: u64) -> bool {
    let Ok(own) = std::env::current_exe() else {
        return false;
    };
    let (seed, patience) = (seed.to_string(), arguments.patience.to_string());
    let mut command = Command::new(own);
    command.args(["--without", bug.name(), "--seeds", "1", "--from", &seed]);
    command.args(["--threads", "1", "--patience", &patience]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::inherit()).status();
    status
        .inspect_err(|error| eprintln!("{}", describe(error.kind())))
        .is_ok_and(|status| status.success())
}

fn describe(error: ErrorKind) -> String {
    format!("this program cannot start itself again: {error}")
}
