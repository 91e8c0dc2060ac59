//! `cargo sim`: seeded runs of whole clusters in virtual time, on all cores.
//!
//! A run that fails leaves its plan as a file, and one line on standard output that replays it. Figures go to standard
//! output, progress to standard error. Exit code 0: nothing was found. 1: something was, or a point that so many seeds
//! have to reach was not, or they came to fewer simulated hours than asked for. 2: the command line or a plan cannot be
//! used.

mod hunt;

use clap::Parser;
use hunt::{Hunt, Seeds, Until};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use synod_tests::plan::Plan;
use synod_tests::plan::figures::Figures;
use synod_tests::plan::play::{Failure, run};
use synod_tests::plan::seed::parse_seed;
use synod_tests::plan::shrink::shrink_by;
use synod_tests::trace::Detail;

/// How many seeds run when nothing else is asked for.
const SEED_COUNT_DEFAULT: u64 = 200;

/// The most runs that shrinking one plan may take, and the longest time: a long run takes seconds.
const SHRINK_RUNS_MAX: u64 = 2_000;
const SHRINK_TIME_MAX: Duration = Duration::from_secs(90);

/// How many failures of one hunt are shrunk; most are the same bug.
const SHRUNK_COUNT_MAX: usize = 2;

/// Seeded runs of whole clusters in virtual time.
#[derive(Debug, Parser)]
#[command(name = "cargo sim", bin_name = "cargo sim")]
struct Arguments {
    /// The seed, or the first of several: a number, or a commit hash (its first 16 hexadecimal digits count).
    #[arg(long, value_name = "N|HASH", value_parser = parse_seed)]
    seed: Option<u64>,
    /// How many seeds, from --seed on, or from 1.
    #[arg(long, value_name = "N", conflicts_with_all = ["minutes", "plan"])]
    seeds: Option<u64>,
    /// Run seeds for so long, from --seed on, or from a random one.
    #[arg(long, value_name = "N", conflicts_with = "plan")]
    minutes: Option<f64>,
    /// How many of them are seeds 1, 2, 3 and so on instead, the same in every hunt.
    #[arg(long, value_name = "N", default_value_t = 0)]
    fixed: u64,
    /// Fails if they come to fewer simulated hours.
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    hours_min: f64,
    /// Run this plan instead of what a seed draws.
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    plan: Option<PathBuf>,
    /// Make the plans of failures as small as they still fail.
    #[arg(long)]
    shrink: bool,
    /// One JSON object on standard output instead of text.
    #[arg(long)]
    json: bool,
    /// How many threads; all cores by default.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Where plans of failures are written.
    #[arg(long, value_name = "DIR", default_value = "target/sim")]
    plans: PathBuf,
    /// Write the plan of a single run to this file, whatever comes of it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "minutes"])]
    write: Option<PathBuf>,
    /// How many of the last events of a single run are shown, whether or not it fails.
    #[arg(long, value_name = "N", default_value_t = 0)]
    trace: usize,
}

/// One failure as it is reported.
struct Found {
    failure: Failure,
    replay: String,
    file: Option<PathBuf>,
    shrunk: Option<(PathBuf, usize)>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.plan.as_deref().map(Plan::read) {
        Some(Ok(plan)) => run_one(&arguments, plan),
        Some(Err(error)) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
        None if arguments.seed.is_some() && arguments.seeds.is_none() && arguments.minutes.is_none() => {
            run_one(&arguments, Plan::of_seed(arguments.seed.unwrap_or_default()))
        }
        None => run_many(&arguments),
    }
}

/// One run in full detail.
fn run_one(arguments: &Arguments, plan: Plan) -> ExitCode {
    if let Some(Err(error)) = arguments
        .write
        .as_ref()
        .map(|file| std::fs::write(file, plan.to_text()))
    {
        eprintln!("--write: {error}");
        return ExitCode::from(2);
    }
    let detail = if arguments.trace > 0 {
        Detail::Lines
    } else {
        Detail::Hash
    };
    let ending = run(&plan, detail);
    if let Some(world) = &ending.world {
        world
            .trace
            .tail(arguments.trace)
            .iter()
            .for_each(|line| eprintln!("{line}"));
        if ending.result.is_err() {
            for (id, host) in &world.hosts {
                eprintln!(
                    "replica {id}: {:?}",
                    host.replica().map(|replica| replica.status())
                );
            }
        }
    }
    let mut figures = Figures::default();
    figures.add(&plan, &ending);
    if let Ok(report) = &ending.result {
        eprintln!("trace hash {:016x}", report.trace_hash);
    }
    let found = ending
        .result
        .err()
        .map(|failure| report_failure(arguments, plan, failure, true));
    finish(arguments, &figures, found.as_slice())
}

fn run_many(arguments: &Arguments) -> ExitCode {
    let until = match arguments.minutes {
        Some(minutes) if minutes.is_finite() && (0.0..=1e6).contains(&minutes) => {
            Until::Elapsed(Duration::from_secs_f64(minutes * 60.0))
        }
        Some(minutes) => {
            eprintln!("--minutes {minutes}: from 0 to a million");
            return ExitCode::from(2);
        }
        None => Until::Count(arguments.seeds.unwrap_or(SEED_COUNT_DEFAULT)),
    };
    let first = match (arguments.seed, until) {
        (Some(seed), _) => seed,
        (None, Until::Count(_)) => 1,
        (None, Until::Elapsed(_)) => match getrandom::u64() {
            Ok(seed) => seed,
            Err(error) => {
                eprintln!("no random seed: {error}; give one with --seed");
                return ExitCode::from(2);
            }
        },
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let thread_count = arguments.threads.unwrap_or(cores).max(1);
    let fixed_count = arguments.fixed;
    let fixed = match fixed_count {
        0 => String::new(),
        count => format!("1 to {count}, then "),
    };
    eprintln!("seeds {fixed}from {first} on, {thread_count} threads");
    silence_runs();
    let began_at = Instant::now();
    let result = Hunt::new(Seeds { fixed_count, first }, until).run(thread_count, show_progress);
    end_progress();
    eprintln!(
        "{:.0} s on {thread_count} threads",
        began_at.elapsed().as_secs_f64()
    );
    let found: Vec<Found> = result
        .failures
        .into_iter()
        .enumerate()
        .map(|(place, (plan, failure))| report_failure(arguments, plan, failure, place < SHRUNK_COUNT_MAX))
        .collect();
    finish(arguments, &result.figures, &found)
}

/// Panics of runs are findings, and are shown as such.
fn silence_runs() {
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some(hunt::THREAD_NAME) {
            show(panic);
        }
    }));
}

fn show_progress(figures: &Figures, elapsed: Duration) {
    let line = format!("{:>6.0} s  {}", elapsed.as_secs_f64(), figures.progress());
    let mut out = std::io::stderr();
    // Nobody is left to be told if standard error is closed.
    let _ = match out.is_terminal() {
        true => write!(out, "\r{line}   ").and_then(|()| out.flush()),
        false => writeln!(out, "{line}"),
    };
}

fn end_progress() {
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
}

/// Writes the plan of a failure, shrinks it if that is asked for, and says how to replay it.
fn report_failure(arguments: &Arguments, mut plan: Plan, failure: Failure, may_shrink: bool) -> Found {
    let commit = commit();
    let suffix = commit
        .as_ref()
        .map(|commit| format!(" # commit {commit}"))
        .unwrap_or_default();
    let seed = plan.draw.seed;
    let source = match &arguments.plan {
        Some(file) => format!("--plan {}", file.display()),
        None => format!("--seed {seed}"),
    };
    let replay = format!("cargo sim {source}{suffix}");
    plan.commit = commit.or(plan.commit);
    plan.violation = Some(failure.text.clone());
    let file = match arguments.plan.is_some() {
        true => None,
        false => write_plan(&arguments.plans, &format!("seed-{seed}.json"), &plan),
    };
    let shrunk = (arguments.shrink && may_shrink)
        .then(|| shrink_one(arguments, &plan, &failure))
        .flatten();
    Found {
        failure,
        replay,
        file,
        shrunk,
    }
}

fn shrink_one(arguments: &Arguments, plan: &Plan, failure: &Failure) -> Option<(PathBuf, usize)> {
    let shrunk = std::thread::scope(|scope| {
        // In a thread of the runs' name: its panics are findings too.
        let work = || {
            let began_at = Instant::now();
            let fails = |plan: &Plan| {
                let is_in_time = began_at.elapsed() < SHRINK_TIME_MAX;
                is_in_time.then(|| run(plan, Detail::Hash).result.err()).flatten()
            };
            let progress = |plan: &Plan, run_count| {
                let (seconds, count) = (plan.draw.faults_us as f64 / 1e6, plan.draw.plan.len());
                eprint!("\rshrinking: {count} faults in {seconds:.1} s after {run_count} runs   ");
            };
            shrink_by(plan, failure, SHRINK_RUNS_MAX, fails, progress)
        };
        silence_runs();
        let thread = std::thread::Builder::new()
            .name(hunt::THREAD_NAME.to_string())
            .spawn_scoped(scope, work);
        thread.ok().and_then(|thread| thread.join().ok())
    })?;
    eprintln!();
    let mut small = shrunk.plan;
    small.about = format!("seed {}, shrunk in {} runs", small.draw.seed, shrunk.run_count);
    small.violation = Some(shrunk.failure.text);
    let count = small.draw.plan.len();
    let name = format!("seed-{}.shrunk.json", small.draw.seed);
    write_plan(&arguments.plans, &name, &small).map(|file| (file, count))
}

fn write_plan(directory: &Path, name: &str, plan: &Plan) -> Option<PathBuf> {
    let file = directory.join(name);
    let written = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&file, plan.to_text()));
    match written {
        Ok(()) => Some(file),
        Err(error) => {
            eprintln!("{}: {error}", file.display());
            None
        }
    }
}

/// The commit that runs, marked where the tree differs from it. None outside of a repository.
fn commit() -> Option<String> {
    let described = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let text = String::from_utf8(described.stdout).ok()?.trim().to_string();
    (described.status.success() && !text.is_empty()).then_some(text)
}

fn finish(arguments: &Arguments, figures: &Figures, found: &[Found]) -> ExitCode {
    let is_complete = figures.reached_all() != Some(false);
    if arguments.json {
        let failures: Vec<serde_json::Value> = found
            .iter()
            .map(|one| {
                serde_json::json!({
                    "violation": one.failure.text,
                    "is_panic": one.failure.is_panic,
                    "replay": one.replay,
                    "plan": one.file.as_ref().map(|file| file.display().to_string()),
                    "shrunk_plan": one.shrunk.as_ref().map(|(file, _)| file.display().to_string()),
                })
            })
            .collect();
        let mut report = figures.to_json();
        report["failures"] = failures.into();
        println!("{report}");
    } else {
        print!("{}", figures.to_text());
        for one in found {
            println!("\n{}\n{}", one.failure.text, one.replay);
            if let Some(file) = &one.file {
                println!("cargo sim --plan {}", file.display());
            }
            if let Some((file, count)) = &one.shrunk {
                println!("cargo sim --plan {} # {count} faults", file.display());
            }
        }
    }
    if !is_complete {
        eprintln!(
            "{} runs never came past: {:?}; faults that never took hold: {:?}",
            figures.run_count,
            figures.points.missing(),
            figures.vain_faults()
        );
    }
    let is_short = figures.simulated_hours() < arguments.hours_min;
    if is_short {
        eprintln!(
            "{:.1} simulated hours, fewer than {}",
            figures.simulated_hours(),
            arguments.hours_min
        );
    }
    if found.is_empty() && is_complete && !is_short {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}
