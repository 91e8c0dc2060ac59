//! Synod beside etcd and dtmrs, on one machine in one run. Started by `tests/compare`, which installs and builds what it needs.
//!
//! A decision of Synod is compared with a put of etcd: each is one small record that a majority of three replicas has
//! synced before it is acknowledged, and what a service without a coordinator would write its outcome to. Both run as
//! three processes on loopback with their data on the same disk, with fresh directories for every measurement, in turn
//! (A B A B), driven by a load generator in a process of its own. What counts is the ratio within each pair: the machine
//! may be busy, and is so for both.
//!
//! stdout gets the table and, with `--json`, one line of JSON at its end; everything else goes to stderr.
#![forbid(unsafe_code)]

mod chart;
mod cluster;
mod dtmrs;
mod etcd;
mod failover;
mod figures;
mod grpc;
mod idle;
mod in_memory;
mod instructions;
mod processes;
mod tally;

use clap::Parser;
use cluster::{Cluster, Kind, Load};
use figures::{DTMRS_IN_FLIGHT, Dtmrs, Figures, Measurement, Shape};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// The replicas in memory allocate as `synod` does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What may go wrong ends the program with its text; nobody handles it.
type Failure = Box<dyn Error>;

#[derive(Debug, Parser)]
#[command(name = "compare")]
enum Verb {
    /// Run the comparison.
    Run(Run),
    /// Put load on etcd; the comparison starts this in a process of its own.
    EtcdLoad(tally::LoadArgs),
    /// Put load on dtmrs, likewise.
    DtmrsLoad(tally::LoadArgs),
    /// Count instructions per decision, early and late.
    Instructions(Instructions),
    /// Three replicas in memory, for that.
    InMemory(instructions::Args),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// The program `synod`.
    #[arg(long)]
    synod: PathBuf,
    /// The program `etcd`.
    #[arg(long)]
    etcd: PathBuf,
    /// The program `dtmrs`.
    #[arg(long, requires = "redis")]
    dtmrs: Option<PathBuf>,
    /// The program `redis-server`, under it.
    #[arg(long)]
    redis: Option<PathBuf>,
    /// Why there is no dtmrs.
    #[arg(long, default_value = "no program was given")]
    dtmrs_missing: String,
    /// Where the data of all replicas goes; it should be a real disk.
    #[arg(long)]
    data: PathBuf,
    /// Three pairs and three leaders killed, instead of five and ten.
    #[arg(long)]
    quick: bool,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
    /// Where to write the chart.
    #[arg(long)]
    chart: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Instructions {
    /// Where callgrind's output goes.
    #[arg(long)]
    data: PathBuf,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
    /// Where the early window begins, in decisions.
    #[arg(long, default_value_t = instructions::Plan::default().early)]
    early: u64,
    /// Where the late one begins.
    #[arg(long, default_value_t = instructions::Plan::default().late)]
    late: u64,
    /// How long each is.
    #[arg(long, default_value_t = instructions::Plan::default().count)]
    count: u64,
    /// Decisions in a second of the cluster's clock.
    #[arg(long, default_value_t = instructions::Plan::default().per_second)]
    per_second: u64,
}

fn main() -> ExitCode {
    let result = match Verb::parse() {
        Verb::Run(args) => run(&args),
        Verb::EtcdLoad(args) => etcd::load(&args),
        Verb::DtmrsLoad(args) => dtmrs::load(&args),
        Verb::Instructions(args) => count_instructions(&args),
        Verb::InMemory(args) => instructions::run_in_memory(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Run) -> Result<(), Failure> {
    std::fs::create_dir_all(&args.data)?;
    let directory = tempfile::tempdir_in(&args.data)?;
    let programs = cluster::Programs {
        synod: args.synod.clone(),
        etcd: args.etcd.clone(),
        directory: directory.path().to_owned(),
    };
    let (pair_count, trial_count) = if args.quick { (3, 3) } else { (5, 10) };
    // Outcomes stay in the register for ten minutes: a longer run at full speed would fill it.
    let (seconds, warm_up) = if args.quick { (3.0, 1.0) } else { (4.0, 1.0) };
    let mut figures = Figures::default();
    for pair in 1..=pair_count {
        for shape in Shape::ALL {
            let load = |kind| -> Result<Measurement, Failure> {
                let cluster = Cluster::start(&programs, kind)?;
                let load = Load {
                    sessions: shape.sessions(),
                    in_flight: shape.in_flight(),
                    branches: if kind == Kind::Synod { shape.branches() } else { 0 },
                    seconds,
                    warm_up,
                };
                Measurement::read(&cluster.load(&programs, load)?)
            };
            // The two-branch transaction is compared with the puts of its own pair.
            let (etcd, synod) = (load(Kind::Etcd)?, load(Kind::Synod)?);
            eprintln!(
                "pair {pair}/{pair_count}, {}: etcd {:.0}/s p50 {:.2} ms p99 {:.2} ms, synod {:.0}/s p50 {:.2} ms p99 {:.2} ms",
                shape.name(),
                etcd.per_second,
                etcd.p50_us / 1e3,
                etcd.p99_us / 1e3,
                synod.per_second,
                synod.p50_us / 1e3,
                synod.p99_us / 1e3
            );
            figures.add(shape, etcd, synod);
        }
    }
    figures.dtmrs = match (&args.dtmrs, &args.redis) {
        (Some(dtmrs), Some(redis)) => {
            let dtmrs = dtmrs::Programs {
                dtmrs: dtmrs.clone(),
                redis: redis.clone(),
            };
            beside_dtmrs(&programs, &dtmrs, pair_count, seconds, warm_up)
        }
        _ => Dtmrs::Missing {
            reason: args.dtmrs_missing.clone(),
        },
    };
    for trial in 1..=trial_count {
        let etcd = failover::trial(&programs, Kind::Etcd)?;
        let synod = failover::trial(&programs, Kind::Synod)?;
        eprintln!(
            "leader killed {trial}/{trial_count}: etcd {:.0} ms, synod {:.0} ms, aborted by it {}",
            etcd.gap_ms, synod.gap_ms, synod.aborted
        );
        figures.etcd_failovers.push(etcd);
        figures.synod_failovers.push(synod);
    }
    figures.idle_percent = idle::cpu_percent(&programs)?;
    print!("{}", figures.table(&cluster::versions(&programs)));
    if let Some(path) = &args.chart {
        std::fs::write(path, chart::svg(&figures))?;
        eprintln!("chart: {}", path.display());
    }
    if args.json {
        println!("{}", serde_json::to_string(&figures.summary())?);
    }
    Ok(())
}

/// Pairs of dtmrs and Synod. dtmrs that does not work is no reason to lose the other figures.
fn beside_dtmrs(
    programs: &cluster::Programs,
    dtmrs: &dtmrs::Programs,
    pair_count: u32,
    seconds: f64,
    warm_up: f64,
) -> Dtmrs {
    let load = Load {
        sessions: 4,
        in_flight: DTMRS_IN_FLIGHT,
        branches: 2,
        seconds,
        warm_up,
    };
    let pair = || -> Result<(Measurement, Measurement), Failure> {
        let dtmrs = dtmrs::run(dtmrs, &programs.directory, load)?;
        let cluster = Cluster::start(programs, Kind::Synod)?;
        Ok((dtmrs, Measurement::read(&cluster.load(programs, load)?)?))
    };
    let mut pairs = Vec::new();
    for number in 1..=pair_count {
        match pair() {
            Ok((dtmrs, synod)) => {
                eprintln!(
                    "pair {number}/{pair_count}, two branches, {DTMRS_IN_FLIGHT} in flight: dtmrs {:.0}/s p50 {:.2} ms, synod {:.0}/s p50 \
                     {:.2} ms",
                    dtmrs.per_second,
                    dtmrs.p50_us / 1e3,
                    synod.per_second,
                    synod.p50_us / 1e3
                );
                pairs.push((dtmrs, synod));
            }
            Err(error) => {
                let reason = error.to_string();
                eprintln!("dtmrs: {reason}");
                return Dtmrs::Missing { reason };
            }
        }
    }
    Dtmrs::Pairs(pairs)
}

fn count_instructions(args: &Instructions) -> Result<(), Failure> {
    std::fs::create_dir_all(&args.data)?;
    let directory = tempfile::tempdir_in(&args.data)?;
    let plan = instructions::Plan {
        early: args.early,
        late: args.late,
        count: args.count,
        per_second: args.per_second,
    };
    let windows = instructions::count(plan, directory.path())?;
    print!("{}", instructions::text(&windows, plan));
    if args.json {
        let [early, late] = windows.map(|window| window.per_decision());
        println!(
            "{}",
            serde_json::json!({
                "instructions_per_decision_early": early,
                "instructions_per_decision_late": late,
                "instructions_ratio": late / early,
            })
        );
    }
    Ok(())
}
