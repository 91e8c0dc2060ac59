//! `explore`: walks every small world and prints what it found, one line a world.
//!
//! Exit code 1 if an invariant is broken, with a shortest trace on stderr, if a world that is meant to be explored
//! completely was not, or if fewer than a million states of one that is cut off were seen.

use clap::Parser;
use std::process::ExitCode;
use synod_tests::explore::worlds::{Explored, World, all};

/// Explores small worlds over the real cores.
#[derive(Debug, Parser)]
#[command(name = "explore")]
struct Arguments {
    /// Only worlds whose name contains this.
    name: Option<String>,
    /// Where worlds that are too large to be explored completely are cut off.
    #[arg(long, default_value_t = 2_000_000)]
    states: usize,
    /// Also the worlds that take a minute or more.
    #[arg(long)]
    long: bool,
}

/// What is not explored completely shows at least so many distinct states.
const CUT_OFF_STATES_MIN: usize = 1_000_000;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let is_wanted = |world: &World| {
        arguments
            .name
            .as_ref()
            .is_none_or(|name| world.name.contains(name.as_str()))
    };
    let worlds: Vec<World> = all()
        .into_iter()
        .filter(|world| is_wanted(world) && (arguments.long || !world.is_long))
        .collect();
    if worlds.is_empty() {
        eprintln!(
            "no world has that name; there are: {}",
            all()
                .iter()
                .map(|world| world.name)
                .collect::<Vec<_>>()
                .join(", ")
        );
        return ExitCode::from(2);
    }
    let mut is_clean = true;
    println!("world                      states  transitions  depth   at rest  core steps  seconds  end");
    for world in worlds {
        let Explored {
            report,
            core_counts: (_, steps),
        } = world.explore(arguments.states);
        let end = match (&report.violation, report.is_complete) {
            (Some(_), _) => "VIOLATION",
            (None, true) => "complete",
            (None, false) if world.width_max.is_none() => "NOT COMPLETE",
            (None, false) => "cut off",
        };
        println!(
            "{:<22} {:>10} {:>12} {:>6} {:>9} {:>11} {:>8.1}  {end}: {}",
            world.name,
            report.state_count,
            report.transition_count,
            report.depth,
            report.rest_count,
            steps,
            report.took.as_secs_f64(),
            world.what,
        );
        if let Some(violation) = &report.violation {
            eprintln!("{}: {violation}\nbounds: {:?}", world.name, world.bounds);
        }
        let is_enough = report.is_complete
            || world.width_max.is_some() && report.state_count >= CUT_OFF_STATES_MIN.min(arguments.states);
        is_clean &= report.violation.is_none() && is_enough;
    }
    if is_clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
