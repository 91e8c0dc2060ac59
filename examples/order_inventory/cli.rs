//! The command line. The hidden sub-commands are how the driver starts its processes: each is this same executable.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use synod_examples::replica::ReplicaArgs;

/// The most orders at a time: each holds a prepared branch in both services, and each service bounds those.
const IN_FLIGHT_MAX: u16 = 1024;

const EXAMPLES: &str = "\
Examples (with cargo: cargo run --release -p synod-examples --bin order_inventory -- FLAGS):
  order_inventory                                      400 orders that ship with the example, and three kills
  order_inventory --kill leader                        only the leader is killed
  order_inventory --kill billing,relay,billing         both ends of the messages are
  order_inventory --no-kill                            nobody is, for comparison
  order_inventory --orders my.csv --stock stock.csv    your own files
  order_inventory --keep /tmp/shop                     leave databases, logs and traces behind
  order_inventory --json | jq .kills                   the summary for programs, on stdout

Exit codes:
  0    every order was placed or refused, and the services' files add up
  1    something does not add up, or the run could not be finished
  2    bad command line, input file or directory; nothing was started
  130  interrupted";

/// Places orders over two services, one global transaction each, tells two more by message, and kills the coordinator's
/// leader, a participant and the relay on the way.
///
/// Three coordinator replicas and the services `orders`, `inventory`, `notifications` and `billing` run as processes of
/// their own on loopback ports, each with its own files. At the end the services' files are read, and every order, item,
/// notification and invoice is counted.
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
    /// Who gets SIGKILL, one after the other, and is started again
    #[arg(
        long,
        value_name = "WHO,...",
        value_enum,
        value_delimiter = ',',
        default_value = "leader,inventory,relay"
    )]
    pub(crate) kill: Vec<Victim>,
    /// Let everybody live
    #[arg(long, conflicts_with = "kill")]
    pub(crate) no_kill: bool,
}

impl Run {
    /// Who is to be killed, in this order.
    pub(crate) fn victims(&self) -> &[Victim] {
        if self.no_kill { &[] } else { &self.kill }
    }
}

/// A process that can be killed without anything being lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Victim {
    /// The replica that leads the coordinator
    Leader,
    /// The service inventory: a participant
    Inventory,
    /// The service orders: a participant too, in whose process the relay runs
    Relay,
    /// The service billing: a consumer of messages
    Billing,
}

/// What a process that the driver started is.
#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// A replica of the coordinator
    #[command(hide = true)]
    Replica(ReplicaArgs),
    /// The service *orders*
    #[command(hide = true)]
    OrdersService(OrdersArgs),
    /// The service *inventory*
    #[command(hide = true)]
    InventoryService(ParticipantArgs),
    /// The service *notifications*
    #[command(hide = true)]
    NotificationsService(ServiceArgs),
    /// The service *billing*
    #[command(hide = true)]
    BillingService(ServiceArgs),
}

/// How the driver starts a service.
#[derive(Debug, Args)]
pub(crate) struct ServiceArgs {
    #[arg(long)]
    pub(crate) database: PathBuf,
    /// Where it listens: a killed service comes back on the same port
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
    pub(crate) listen: SocketAddr,
}

/// How the driver starts a service that takes part in global transactions.
#[derive(Debug, Args)]
pub(crate) struct ParticipantArgs {
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
    /// The replicas' addresses, `http://host:port`
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) coordinators: Vec<String>,
}

/// How the driver starts *orders*, which has messages for others.
#[derive(Debug, Args)]
pub(crate) struct OrdersArgs {
    #[command(flatten)]
    pub(crate) participant: ParticipantArgs,
    /// Where to reach notifications, `http://host:port`
    #[arg(long)]
    pub(crate) notifications: String,
    /// Where to reach billing, `http://host:port`
    #[arg(long)]
    pub(crate) billing: String,
}
