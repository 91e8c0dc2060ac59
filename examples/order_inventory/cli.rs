//! The command line. The hidden sub-commands are how the driver starts its processes: each is this same executable.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use synod_examples::replica::ReplicaArgs;

/// The most orders at a time: each holds a prepared branch in both services, and each service bounds those.
const IN_FLIGHT_MAX: u16 = 1024;

const EXAMPLES: &str = "\
Examples (with cargo: cargo run --release -p synod-examples --bin order_inventory -- FLAGS):
  order_inventory                                      400 orders that ship with the example; the leader is killed
  order_inventory --no-kill                            the same without the kill, for comparison
  order_inventory --orders my.csv --stock stock.csv    your own files
  order_inventory --keep /tmp/shop                     leave databases, logs and traces behind
  order_inventory --json | jq .kill                    the summary for programs, on stdout

Exit codes:
  0    every order was placed or refused, and the services' files add up
  1    something does not add up, or the run could not be finished
  2    bad command line, input file or directory; nothing was started
  130  interrupted";

/// Places orders over two services, one global transaction each, and kills the coordinator's leader half way.
///
/// Three coordinator replicas and the services `orders` and `inventory` run as processes of their own on loopback
/// ports, each with its own files. At the end the services' files are read and every order and item is counted.
#[derive(Debug, Parser)]
#[command(name = "order_inventory", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
#[command(override_usage = "order_inventory [OPTIONS]", disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(subcommand)]
    pub(crate) role: Option<Role>,
}

/// What the user asks for.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// CSV file with the header `order_id,customer,sku,quantity` [default: 400 orders that ship with the example]
    #[arg(long, value_name = "FILE")]
    pub(crate) orders: Option<PathBuf>,
    /// CSV file with the header `sku,quantity` [default: 25 skus that ship with the example]
    #[arg(long, value_name = "FILE")]
    pub(crate) stock: Option<PathBuf>,
    /// Refuse a file with an unusable line before anything has run, instead of skipping that line
    #[arg(long)]
    pub(crate) strict: bool,
    /// How many orders are placed at the same time, 1 to 1024
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=i64::from(IN_FLIGHT_MAX)))]
    pub(crate) in_flight: u16,
    /// Put databases, logs and traces into DIR (new or empty) and leave them there [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Print the summary as JSON on stdout instead of the table
    #[arg(long)]
    pub(crate) json: bool,
    /// Let the leader live
    #[arg(long)]
    pub(crate) no_kill: bool,
}

/// What a process that the driver started is.
#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// A replica of the coordinator
    #[command(hide = true)]
    Replica(ReplicaArgs),
    /// The service *orders*
    #[command(hide = true)]
    OrdersService(ServiceArgs),
    /// The service *inventory*
    #[command(hide = true)]
    InventoryService(ServiceArgs),
}

/// How the driver starts a service.
#[derive(Debug, Args)]
pub(crate) struct ServiceArgs {
    #[arg(long)]
    pub(crate) database: PathBuf,
    /// The replicas' addresses, `http://host:port`
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) coordinators: Vec<String>,
}
