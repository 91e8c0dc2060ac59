//! Shows the whole workflow, through three kills: an order which two services must place together is placed by both or by
//! neither, and two more services hear of each placed order, once and in order:
//!
//! ```text
//! cargo run --release -p synod-examples --bin order_inventory
//! ```
//!
//! Eight processes talk gRPC on loopback: three replicas of the coordinator, the services *orders*, *inventory*, *notifications*
//! and *billing*, each with a redb file of its own, and this one, the **initiator**. It begins a global transaction for each line
//! of a CSV file, calls `Orders.Place` and `Inventory.Reserve` under it, and asks the coordinator to commit. If inventory has too
//! few items, its error aborts the transaction, and the order's row vanishes with it.
//!
//! With its row, orders publishes a message in its outbox: visible if the transaction commits, and gone with the row otherwise. The
//! relay in orders' process forwards it to notifications and to billing until both have confirmed it, in the order in which the
//! customer's orders were placed; each consumer's inbox lets it take effect once, as a numbered notification, and as an invoice
//! with the balance that is then owed.
//!
//! While all this goes on, the leader among the replicas gets SIGKILL, then inventory, a participant, then orders' process with
//! the relay in it; each is started again, on its port and with its files. A call that finds nobody dooms its transaction, which
//! is aborted and tried again with a new gtid; a branch that had voted asks for its outcome after the restart; a message whose
//! confirmation was not seen is sent again, and recognised. At the end the initiator opens the services' own files and counts.
//!
//! Where to look: [`services::orders`] and [`services::inventory`] are what a participant looks like, [`services::notifications`]
//! and [`services::billing`] what a consumer, [`workload`] what an initiator. The rest is scenery: [`input`] the CSV files,
//! [`synod_examples`] and [`kills`] the processes and their deaths, [`audit`] the count, [`measure`] and [`report`] the figures,
//! [`driver`] the order in which all of it happens.
//!
//! # What `--keep DIR` leaves
//! `orders.redb`, `inventory.redb`, `notifications.redb` and `billing.redb`, the services' databases; `replica-1` to `replica-3`, the replicas' logs; and `traces`, a
//! text file for each process, of which `SYNOD_TRACE` (for example `info,order_inventory=debug`, which has a line for each order)
//! chooses the detail.
//!
//! # The summary for programs
//! `--json` prints one object on stdout:
//!
//! | field | type | meaning |
//! |---|---|---|
//! | `adds_up` | bool | every check passed; the exit code is 0 exactly then |
//! | `problems` | [string] | what does not add up |
//! | `orders` | integer | orders that were tried: the usable lines of the file |
//! | `skipped_lines` | integer | unusable lines of both input files, named on stderr |
//! | `placed` | integer | orders whose global transaction committed |
//! | `refused` | integer | orders that aborted because too few items were in stock |
//! | `delivered` | integer | placed orders whose effects orders and inventory have confirmed |
//! | `transactions` | integer | global transactions begun: `orders`, and one for each retry |
//! | `resolved` | integer | commits that were in doubt and whose outcome was then asked for |
//! | `in_flight` | integer | orders at the same time, at most |
//! | `elapsed_ms` | number | from the first begin to the last decision |
//! | `orders_per_second` | number | `orders` over `elapsed_ms` |
//! | `latency_ms` | object | `p50`, `p99`, `max`: from an order's first begin to its decision, retries included |
//! | `settled_ms` | number | from the last decision until every effect and every message was confirmed |
//! | `longest_gap_ms` | number or null | longest time between two consecutive commits; null with fewer than two |
//! | `kill` | object or null | the leader's death, the first one; null if it was not killed |
//! | `kill.replica` | integer | the leader that was killed |
//! | `kill.after_orders` | integer | orders that were decided by then |
//! | `kill.commits_stood_still_ms` | number or null | longest time between two consecutive commits, of those gaps that end after the kill; null if no commit came before or none came after it |
//! | `kill.new_leader` | integer | the replica that led next |
//! | `kill.caught_up` | bool | every killed replica was started again and has applied what the leader had applied at the end |
//! | `kills` | [object] | every death, in this order |
//! | `kills[].victim` | string | `leader`, `inventory`, `relay` or `billing` |
//! | `kills[].process` | string | what got SIGKILL: `replica 1` to `replica 3`, `inventory` or `orders` |
//! | `kills[].after_orders` | integer | orders that were decided by then |
//! | `kills[].commits_stood_still_ms` | number or null | as above, of those gaps that begin before the next kill |
//! | `kills[].away_ms` | number | from the kill until the process listened again; a replica is started again once another one leads |
//! | `kills[].new_leader` | integer or null | the replica that led next; null for a service |
//! | `order_rows` | integer | rows in orders' file |
//! | `stock_before`, `stock_after` | integer | items in the stock file, and in inventory's file at the end |
//! | `items_ordered` | integer | sum of the quantities in orders' file |
//! | `notifications`, `invoices` | integer | rows in notifications' and billing's files |
//! | `owed_cents` | integer | sum of the balances in billing's file |
//! | `in_doubt` | integer | branches in orders' and inventory's files that are prepared and do not know their outcome |
//! | `unfinished` | integer | committed transactions that the coordinator has not delivered to every branch |
//! | `data` | string or null | the directory of `--keep` |

use std::process::ExitCode;

use clap::Parser as _;
use synod_examples::replica;

mod audit;
mod cli;
mod driver;
mod input;
mod kills;
mod measure;
mod report;
mod services;
mod workload;

/// The cluster's name: only replicas of the same cluster talk to each other.
const CLUSTER: &str = "order-inventory";

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let result = match cli.role {
        None => return driver::main(&cli.run),
        Some(cli::Role::Replica(args)) => replica::main(CLUSTER, &args),
        Some(cli::Role::OrdersService(args)) => services::main(args, services::orders::run),
        Some(cli::Role::InventoryService(args)) => services::main(args, services::inventory::run),
        Some(cli::Role::NotificationsService(args)) => services::main(args, services::notifications::run),
        Some(cli::Role::BillingService(args)) => services::main(args, services::billing::run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Into the trace, whose end the driver shows.
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
