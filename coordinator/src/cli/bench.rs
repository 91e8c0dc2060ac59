//! `synod bench`: drives a cluster as real clients do, and says what it measured.

use super::client;
use super::exit::{Exit, Failure};
use super::output::print;
use crate::bench::{self, BenchError, Pace, Plan, Transport};
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `synod bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The replicas, as a list of HOST:PORT.
    #[arg(
        long = "endpoints",
        alias = "endpoint",
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"
    )]
    endpoints: Vec<String>,
    /// How many sessions, each on a connection of its own; with `--participants redb` each is a service. 4 unless told,
    /// 2 with redb.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    sessions: Option<u32>,
    /// How many transactions are under way at one time, over all sessions. At least one a session.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    in_flight: u32,
    /// How long to measure, in seconds.
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    seconds: f64,
    /// How long to run before that, in seconds.
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    warm_up: f64,
    /// How many branches each transaction names; a transaction has ended when it is decided and every branch was
    /// delivered and acknowledged. 0: commits of one read-only vote, which need no delivery. 0 unless told, 2 with redb.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=63))]
    branches: Option<u32>,
    /// What the branches' databases are.
    #[arg(long, value_enum, default_value_t = Participants::Memory)]
    participants: Participants,
    /// Where the services' files go, in a directory that is removed at the end; a temporary place unless told, which may
    /// be no real disk.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Make a gRPC call of each proposal instead of sending many on a session.
    #[arg(long)]
    unary: bool,
    /// Open loop: begin so many transactions a second, whatever the answers do. `--in-flight` then bounds how many may
    /// be under way; what is due beyond waits, and its latency counts from when it was due.
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// Write JSON, in one line.
    #[arg(long)]
    json: bool,
}

/// What the branches' databases are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Participants {
    /// Nothing is stored: a delivery is acknowledged at once.
    Memory,
    /// Each session is a service in this process: the participant library, with a redb file and a gRPC server of its
    /// own. Branches work, prepare and commit on their files, and vote with the reply.
    Redb,
}

/// Services each have threads and a file.
const SERVICE_COUNT_MAX: u32 = 64;

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let seconds = |name: &str, value: f64, min: f64| {
        if value.is_finite() && (min..=86_400.0).contains(&value) {
            Ok(Duration::from_secs_f64(value))
        } else {
            let text = format!("--{name} takes {min} to 86400 seconds, not {value}");
            Err(Failure::new(Exit::Usage, text))
        }
    };
    let pace = match args.rate {
        None => Pace::Closed,
        Some(per_second) if per_second.is_finite() && (0.1..=1e7).contains(&per_second) => {
            Pace::Open { per_second }
        }
        Some(per_second) => {
            let text = format!("--rate takes 0.1 to 10000000 a second, not {per_second}");
            return Err(Failure::new(Exit::Usage, text));
        }
    };
    let usage = |text: &str| Failure::new(Exit::Usage, text.to_owned());
    let (sessions, branches, participants) = match args.participants {
        Participants::Memory if args.data.is_some() => {
            return Err(usage("--data is for --participants redb"));
        }
        Participants::Memory => (
            args.sessions.unwrap_or(4),
            args.branches.unwrap_or(0),
            bench::Participants::Memory,
        ),
        Participants::Redb if args.unary => {
            return Err(usage(
                "--unary is not for --participants redb: the library's requests go by its session",
            ));
        }
        Participants::Redb if args.branches == Some(0) => {
            return Err(usage("--participants redb takes --branches 1 or more"));
        }
        Participants::Redb if args.sessions > Some(SERVICE_COUNT_MAX) => {
            let text = format!("--participants redb takes --sessions up to {SERVICE_COUNT_MAX}");
            return Err(usage(&text));
        }
        Participants::Redb => (
            args.sessions.unwrap_or(2),
            args.branches.unwrap_or(2),
            bench::Participants::Redb {
                directory: args.data.clone(),
            },
        ),
    };
    let plan = Plan {
        endpoints: args
            .endpoints
            .iter()
            .map(|one| client::address(one).to_owned())
            .collect(),
        session_count: sessions as usize,
        in_flight: args.in_flight.max(sessions) as usize,
        branch_count: branches as usize,
        participants,
        transport: if args.unary {
            Transport::Unary
        } else {
            Transport::Session
        },
        pace,
        warm_up: seconds("warm-up", args.warm_up, 0.0)?,
        measured: seconds("seconds", args.seconds, 0.1)?,
    };
    let report = client::block_on(async {
        let progress = |told: &bench::Progress| {
            let phase = if told.is_measuring {
                "measuring"
            } else {
                "warming up"
            };
            let ms = |us| Duration::from_micros(us).as_secs_f64() * 1e3;
            let latency = if told.is_measuring {
                format!(", p50 {:.3} ms, p99 {:.3} ms", ms(told.p50_us), ms(told.p99_us))
            } else {
                String::new()
            };
            eprintln!(
                "{phase}: {:.0}/s{latency}, aborted {}, overloaded {}, resent {}, failed {}",
                told.per_second,
                told.aborted_count,
                told.overloaded_count,
                told.resent_count,
                told.failed_count
            );
        };
        bench::run(plan, progress).await.map_err(|error| {
            let exit = match &error {
                BenchError::Unreachable { .. } => Exit::Unreachable,
                BenchError::Refused(_) | BenchError::Wrong(_) => Exit::Failed,
            };
            Failure::new(exit, error.to_string())
        })
    })?;
    if args.json {
        let mut line = serde_json::to_string(&report)
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot write JSON: {error}")))?;
        line.push('\n');
        print(&line)?;
    } else {
        print(&report.text())?;
    }
    // A run that left work behind measured something else than it says.
    Ok(if report.drained && report.unfinished == Some(0) {
        Exit::Success
    } else {
        Exit::Failed
    })
}
