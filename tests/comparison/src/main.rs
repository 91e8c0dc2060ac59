//! Synod beside etcd, on one machine in one run. Started by `tests/compare`, which installs and builds what it needs.
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
mod etcd;
mod failover;
mod figures;
mod processes;

use clap::Parser;
use cluster::{Cluster, Kind, Load};
use figures::{Figures, Measurement, Shape};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// What may go wrong ends the program with its text; nobody handles it.
type Failure = Box<dyn Error>;

#[derive(Debug, Parser)]
#[command(name = "compare")]
enum Verb {
    /// Run the comparison.
    Run(Run),
    /// Put load on etcd; the comparison starts this in a process of its own.
    EtcdLoad(etcd::Args),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// The program `synod`.
    #[arg(long)]
    synod: PathBuf,
    /// The program `etcd`.
    #[arg(long)]
    etcd: PathBuf,
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

fn main() -> ExitCode {
    let result = match Verb::parse() {
        Verb::Run(args) => run(&args),
        Verb::EtcdLoad(args) => etcd::load(&args),
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
    let (seconds, warm_up) = if args.quick { (3.0, 1.0) } else { (8.0, 2.0) };
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
