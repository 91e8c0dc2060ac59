//! `synod bench`: drives a cluster as real clients do, and says what it measured.

use super::client;
use super::exit::{Exit, Failure};
use super::output::print;
use crate::bench::{self, BenchError, Pace, Plan, Transport};
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
    /// How many sessions, each on a connection of its own.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    sessions: u32,
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
    /// delivered and acknowledged. 0: commits of one read-only vote, which need no delivery.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=63))]
    branches: u32,
    /// What the branches' databases are.
    #[arg(long, value_enum, default_value_t = Participants::Memory)]
    participants: Participants,
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
}

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
    let Participants::Memory = args.participants;
    let plan = Plan {
        endpoints: args
            .endpoints
            .iter()
            .map(|one| client::address(one).to_owned())
            .collect(),
        session_count: args.sessions as usize,
        in_flight: args.in_flight as usize,
        branch_count: args.branches as usize,
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
            eprintln!(
                "{phase}: {:.0}/s, aborted {}, overloaded {}, resent {}",
                told.per_second, told.aborted_count, told.overloaded_count, told.resent_count
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
