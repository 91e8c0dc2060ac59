//! The command line of `synod`. One file per verb; data goes to stdout, everything else to stderr.
//!
//! # Verbs
//! | verb | does |
//! |---|---|
//! | `synod dev [--data DIR] [--ports P,P,P]` | three replicas in one process on 127.0.0.1; without `--data` in a temporary directory that is removed at the end |
//! | `synod start --replica N --cluster NAME --data DIR --peer 1=HOST:PORT ... [--listen ADDR] \| --config FILE` | one replica; flags override the file |
//! | `synod status [--endpoints LIST] [--json]` | what every replica says of itself |
//! | `synod txn get GTID [--json]` | what became of a transaction |
//! | `synod txn list [--unfinished] [--after GTID] [--count N] [--json]` | the transactions in the register, by begin |
//! | `synod txn list --in-doubt [--after GTID] [--count N] [--json]` | what keeps databases waiting, by begin: unfinished commits from the log, undecided transactions that prepared branches inquired for from the leader's memory |
//! | `synod txn resolve GTID (--abort \| --settle CALL/EXECUTION) --author A --reason R [--json]` | an operator's hand, entered in the log |
//! | `synod dump --data DIR [--slot N \| --from N --up-to N] [--json]` | what a stopped replica's directory, or a copy of one, holds; never writes to it |
//! | `synod outbox status --service ADDR [--json]` | the outbox at a glance: what it holds, and how each of its consumers stands |
//! | `synod outbox list --service ADDR [--consumer NAME] [--after POSITION] [--count N] [--json]` | the messages that a service's outbox holds |
//! | `synod outbox dead --service ADDR [--consumer NAME] [--after POSITION] [--count N] [--json]` | those that were given up, and why; on stderr, whether they keep what was delivered from being deleted |
//! | `synod outbox requeue\|discard ID --service ADDR [--consumer NAME] --author A --reason R [--json]` | a dead letter is sent again, or given up for good |
//! | `synod outbox requeue --all --service ADDR --consumer NAME [--topic NAME] --author A --reason R [--json]` | all dead letters of a consumer are sent again |
//! | `synod outbox scheduled --service ADDR [--count N] [--json]`, `synod outbox cancel ID --service ADDR [--consumer NAME] --author A --reason R [--json]` | messages that wait for their time; one of them is taken back, or one that is stored and pending, for one consumer or all |
//! | `synod outbox readmit CONSUMER --service ADDR --author A --reason R [--json]` | whatever database answers for the consumer next is taken as its own |
//! | `synod outbox unsubscribe CONSUMER --service ADDR [--topic NAME] [--yes --author A --reason R] [--json]` | what a consumer that is not named any more, or of a topic that was taken away from it, has not got is dropped; without `--yes`, which wants author and reason, only how much it is is told |
//! | `synod outbox records --service ADDR [--count N] [--json]` | what operators did and why, and what became of the messages that they cancelled, the latest first |
//! | `synod completions bash\|zsh\|fish` | a script for the shell |
//! | `synod bench [--participants memory\|redb] [--data DIR] [--sessions N] [--in-flight N] [--branches N] [--seconds S] [--warm-up S] [--rate PER_SECOND] [--unary] [--json]` | a load generator |
//!
//! `status` and `txn` also take `--endpoints LIST`, the replicas to ask, and `--timeout-ms MS`, how long `txn` looks for a
//! leader and waits for its answer; `bench` takes `--endpoints`.
//!
//! `dev` and `start` print one line to stdout once the address is theirs and the log is read (`listening ADDRESS`), and
//! `dev` one more once a leader serves (`ready ADDRESS,ADDRESS,ADDRESS`). They end on SIGTERM or SIGINT.
//!
//! # Ports
//! | port | for |
//! |---|---|
//! | 7401, 7402, 7403 | replicas 1, 2, 3 of `synod dev`, and the endpoints that the other verbs ask by default |
//!
//! One port a replica carries everything: gRPC for participants and scripts, health, reflection, and the other replicas.
//!
//! # Configuration
//! See [`config`](crate::config) for the keys. The trace's filter comes from `--trace`, else the environment variable
//! `SYNOD_TRACE`, else the key `trace`, else `info` for `start` and `warn` for the other verbs.
//!
//! # Exit codes
//! See [`Exit`].
//!
//! # JSON
//! Numbers named `_unix_ms` are milliseconds since 1970; ids are UUIDs; `call` and `execution` are 16 hex digits.
//!
//! | verb | fields |
//! |---|---|
//! | `status` | a list of `address`, `reachable`, `error`, and if reachable: `cluster`, `replica`, `incarnation`, `lineage`, `role` (`leader`, `candidate`, `follower`), `leader`, `ballot` {`round`, `replica`, `start`}, `decided_up_to`, `applied_up_to`, `stamp_unix_ms`, `mark_unix_ms` (both null before the first entry), `outcome_count`, `unfinished_count`, `hazard_count`, `session_count`, `admission` (`admitted`, `pending`, `refused`), `admission_text` (null if admitted, else whom it waits for or what contradicts its directory), `read_only` (null, or why its log cannot be written), `peers` [{`replica`, `address`, `connected`}], `version`, `process_id`, `log_write_count` (writes to its log since its start, each with a sync) |
//! | `txn get` | `gtid`, `began_at_unix_ms`, `status` (`committed`, `aborted`, `undecided`, `expired`), `branches` [{`call`, `execution`, `resource`, `delivery` (`pending`, `acknowledged`, `hazard`, `settled`), `hazard`}], `read_only_count`, `cause` {`kind`, `call`, `execution`, `text`} |
//! | `txn list` | a list of the same, each with `decided_at_unix_ms` |
//! | `txn list --in-doubt` | `transactions` [{`gtid`, `began_at_unix_ms`, `state` (`unfinished`, `undecided`), `since_unix_ms` (decided; first inquired for at this leader), `deadline_unix_ms` (null if unfinished), `branches` [{`call`, `execution`, `resource`, `waits_for` (`acknowledgement`, `outcome`), `hazard`}]}], `inquiries_since_unix_ms` (since when the leader remembers inquiries), `inquiries_dropped_count` (inquiries that it had no room for) |
//! | `txn resolve` | `gtid`, `decision` (`committed`, `aborted`, `mismatch`, `expired`, `settled`), `cause` |
//! | `dump` | `directory`, `identity` {`cluster`, `replica`, `replicas` (null if unreadable), `incarnation`}, `problems` [text], `corrupt` [{`segment`, `offset`, `damage`}], `torn` (null, or {`segment`, `offset`, `bytes`}), `start`, `promised` {`round`, `replica`, `start`}, `decided_up_to` (may trail what the others know), `accepted_up_to`, `peers` [{`replica`, `incarnation`, `start`}], `readable_count`, `unreadable` [{`first`, `up_to`}], `applied_up_to` (the outcomes are those after slots 1 to this one), `applied_stopped_by`, `applied_hash`, `lineage`, `stamp_unix_ms`, `mark_unix_ms`, `outcomes` [{`gtid`, `status`, `decided_at_unix_ms`, `unfinished`, `branch_count`, `cause`}], `slots` [{`slot`, `ballot`, `decided`, `bytes`, `hash`}]; hashes are SHA-256 in hex, the same wherever the same is decided |
//! | `dump --slot` | one of `slots`, with `stamp_unix_ms`, `mark_unix_ms`, `commands` [{`kind` and its fields}], `problem` |
//! | `outbox status` | `source`, `next_position`, `stored_count`, `scheduled_count`, `consumers` [{`consumer`, `endpoint` (null if it is not named any more), `topics`, `retired_topics`, `mark`, `dead_count`, `unsettled_count`, `trouble` (null, or why it gets no messages now, or none of more keys of a topic)}] |
//! | `outbox list` | a list of `id`, `position`, `topic`, `key`, `key_hex`, `sequence`, `published_at_unix_ms`, `body_bytes`, `states` [{`consumer`, `state` (`pending`, `delivered`, `dead`, `cancelled`), `attempt_count`, `reason`}] |
//! | `outbox dead` | a list of the same, each with `consumer`, `attempt_count`, `reason`, `died_at_unix_ms` |
//! | `outbox requeue`, `discard` | `id`, `action` (`requeued`, `discarded`), `consumers` |
//! | `outbox requeue --all` | `action` (`requeued`), `consumer`, `count` |
//! | `outbox scheduled` | a list of `id`, `deliver_at_unix_ms`, `topic`, `key`, `key_hex`, `published_at_unix_ms`, `body_bytes` |
//! | `outbox cancel`; `outbox readmit` | `id`, `action` (`cancelled`), `consumers` (empty for a scheduled one); `consumer`, `action` (`readmitted`) |
//! | `outbox unsubscribe` | `action` (`unsubscribed`; null without `--yes`), `consumer`, `topic` (null for the consumer as a whole), `count` (messages that it had not got) |
//! | `outbox records` | a list of `number`, `recorded_at_unix_ms`, `text` |
//! | `bench` | `sessions`, `in_flight`, `branches`, `participants` (`memory`, `redb`), `transport` (`session`, `unary`), `rate_asked`, `seconds`, `transactions`, `per_second`, `latency_us` {`p50`, `p90`, `p99`, `p99_9`, `max`}, `gap_ms_max`, `aborted`, `overloaded`, `resent` (asked again of another leader), `failed` (work that failed and was begun anew), `drained`, `unfinished`; for each transaction `cpu_us`, `syncs`, `written_bytes` (of all replicas), `generator_cpu_us` (with redb the services' too), `database_syncs`, `database_written_bytes` (of all services' files); `replicas` [{`address`, `role`, `version`, `cpu_us`, `syncs`, `written_bytes`}], `databases` [{`file`, `syncs`, `written_bytes`}], `not_measured` (why something is null) |

mod bench;
mod client;
mod completions;
mod dev;
mod dump;
mod exit;
mod outbox;
mod output;
mod start;
mod status;
mod txn;

pub use exit::Exit;

use crate::config;
use clap::{Parser, Subcommand};
use exit::Failure;
use std::io::IsTerminal as _;
use std::process::ExitCode;

/// A distributed transaction coordinator: one outcome for every global transaction, whatever crashes.
#[derive(Debug, Parser)]
#[command(name = "synod", version, about)]
struct Cli {
    /// Filter of the trace on stderr, such as `info` or `synod_coordinator=debug` [env: SYNOD_TRACE].
    #[arg(long, global = true, value_name = "FILTER")]
    trace: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run three replicas in this process, for development.
    Dev(dev::Args),
    /// Run one replica.
    Start(start::Args),
    /// Show what every replica says of itself.
    Status(status::Args),
    /// Put load on a cluster, and measure it.
    Bench(bench::Args),
    /// Look at transactions, and resolve them by hand.
    #[command(subcommand)]
    Txn(txn::Verb),
    /// Show what a stopped replica's data directory holds, without touching it.
    Dump(dump::Args),
    /// Look at a service's messages, and settle its dead letters.
    #[command(subcommand)]
    Outbox(outbox::Verb),
    /// Write a script that completes this command line.
    Completions(completions::Args),
}

/// Parses the arguments, runs the verb, and says why it failed.
#[must_use]
pub fn main() -> ExitCode {
    // clap prints its own usage errors, and ends with 2, which is `Exit::Usage`.
    let cli = Cli::parse();
    if let Some(warning) = synod_proto::planted::WARNING {
        eprintln!("synod: {warning}");
    }
    let trace = cli.trace.or_else(|| std::env::var("SYNOD_TRACE").ok());
    let result = match cli.verb {
        Verb::Dev(args) => init_trace(trace.as_deref().unwrap_or("warn")).and_then(|()| dev::run(&args)),
        Verb::Start(args) => start::run(args, trace.as_deref()),
        Verb::Status(args) => {
            init_trace(trace.as_deref().unwrap_or("warn")).and_then(|()| status::run(&args))
        }
        Verb::Bench(args) => init_trace(trace.as_deref().unwrap_or("warn")).and_then(|()| bench::run(&args)),
        Verb::Dump(args) => init_trace(trace.as_deref().unwrap_or("warn")).and_then(|()| dump::run(&args)),
        Verb::Outbox(verb) => init_trace(trace.as_deref().unwrap_or("warn")).and_then(|()| outbox::run(verb)),
        Verb::Completions(args) => completions::run(&args),
        Verb::Txn(verb) => init_trace(trace.as_deref().unwrap_or("warn")).and_then(|()| txn::run(verb)),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(Failure { exit, text }) => {
            eprintln!("synod: {text}");
            exit.into()
        }
    }
}

/// Sends the trace to stderr.
fn init_trace(filter: &str) -> Result<(), Failure> {
    let filter = config::trace_filter(filter).map_err(|text| Failure::new(Exit::Configuration, text))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}
