//! `synod dump`: what a replica's data directory holds, read and never written.
//!
//! Two replicas' dumps can be laid side by side: decided values are the same bytes everywhere, so a slot that both have
//! decided shows the same hash, and so does the prefix up to the same slot. Ballots may differ: a value may have been
//! proposed again.

mod entry;

use super::exit::{Exit, Failure};
use super::output::{print, print_json, table};
use crate::directory::Untouched;
use crate::log::inspect::{Inspection, ReadOnlyDisk, inspect};
use crate::log::report::{Damage, Torn};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use synod_coordinator_core::machine::Machine;
use synod_coordinator_core::machine::outcomes::{Record, Verdict};
use synod_coordinator_core::paxos::{self, Slot};
use synod_proto::ids::Gtid;

/// Arguments of `synod dump`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The replica's data directory, or a copy of it. A running replica's own is refused.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Show what this slot holds, and nothing else.
    #[arg(long, value_name = "SLOT")]
    slot: Option<u64>,
    /// List slots from this one on.
    #[arg(long, value_name = "SLOT", default_value_t = 1, conflicts_with = "slot")]
    from: u64,
    /// List slots up to this one, inclusive.
    #[arg(long, value_name = "SLOT", default_value_t = u64::MAX, conflicts_with = "slot")]
    up_to: u64,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Dump {
    directory: String,
    /// Null where nothing says whose it is; the rest is empty then.
    identity: Option<Identity>,
    problems: Vec<String>,
    corrupt: Vec<Place>,
    torn: Option<Tail>,
    /// Files of segments whose making was interrupted; they hold nothing.
    unfinished: Vec<String>,
    start: u64,
    promised: Ballot,
    decided_up_to: u64,
    accepted_up_to: u64,
    peers: Vec<Peer>,
    readable_count: usize,
    unreadable: Vec<Range>,
    /// Of which slots the outcomes are, from 1; nothing is applied behind a slot that cannot be read.
    applied_up_to: u64,
    applied_stopped_by: Option<String>,
    applied_hash: String,
    lineage: Option<String>,
    stamp_unix_ms: u64,
    mark_unix_ms: u64,
    outcomes: Vec<Outcome>,
    slots: Vec<SlotLine>,
}

#[derive(Serialize)]
struct Identity {
    cluster: String,
    replica: u8,
    replicas: Option<BTreeSet<u8>>,
    incarnation: String,
}

#[derive(Serialize)]
struct Place {
    segment: u64,
    offset: u64,
    damage: String,
}

#[derive(Serialize)]
struct Tail {
    segment: u64,
    offset: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Ballot {
    round: u64,
    replica: u8,
    start: u64,
}

#[derive(Serialize)]
struct Peer {
    replica: u8,
    incarnation: String,
    start: u64,
}

#[derive(Serialize)]
struct Range {
    first: u64,
    up_to: u64,
}

#[derive(Serialize)]
struct Outcome {
    gtid: String,
    status: &'static str,
    decided_at_unix_ms: u64,
    unfinished: bool,
    branch_count: usize,
    cause: Option<String>,
}

#[derive(Serialize)]
struct SlotLine {
    slot: u64,
    ballot: Ballot,
    decided: bool,
    bytes: usize,
    hash: String,
}

impl From<paxos::Ballot> for Ballot {
    fn from(ballot: paxos::Ballot) -> Self {
        Self {
            round: ballot.round,
            replica: ballot.replica.0,
            start: ballot.start,
        }
    }
}

/// Ends with 1 where something of the directory is lost, having shown the rest.
pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let configuration = |text: String| Failure::new(Exit::Configuration, text);
    let directory = Untouched::open(&args.data).map_err(|error| configuration(error.to_string()))?;
    let Some(identity) = &directory.identity else {
        return Err(configuration(format!(
            "`{}` holds no readable identity and no readable segment: {}",
            args.data.display(),
            directory.problems.join("; ")
        )));
    };
    let cannot_list = |error| configuration(format!("cannot list `{}`: {error}", args.data.display()));
    let mut log = inspect(&directory.disk, identity).map_err(cannot_list)?;
    if let Some(slot) = args.slot {
        return entry::show(&mut log, Slot(slot), args.json);
    }
    let dump = dump(args, &directory, &mut log);
    if args.json {
        print_json(&dump)?;
    } else {
        print(&people(&dump))?;
    }
    let is_whole = dump.problems.is_empty() && dump.corrupt.is_empty() && dump.unreadable.is_empty();
    Ok(if is_whole { Exit::Success } else { Exit::Failed })
}

fn dump(args: &Args, directory: &Untouched, log: &mut Inspection<ReadOnlyDisk>) -> Dump {
    let mut problems = directory.problems.clone();
    problems.append(&mut log.problems);
    let decided_up_to = log.meta.decided_up_to;
    let mut machine = Machine::default();
    let mut applied_hash = Sha256::new();
    let mut stopped_by = None;
    let mut slots = Vec::new();
    let indexed: Vec<_> = log.slots().collect();
    for (slot, ballot) in &indexed {
        let value = match log.read(*slot) {
            Ok(Some(accepted)) => accepted.value,
            // It was readable a moment ago.
            Ok(None) => continue,
            Err(error) => {
                problems.push(error.to_string());
                log.unreadable.insert(*slot);
                continue;
            }
        };
        let hash = Sha256::digest(&value);
        if (args.from..=args.up_to).contains(&slot.0) {
            slots.push(SlotLine {
                slot: slot.0,
                ballot: (*ballot).into(),
                decided: *slot <= decided_up_to,
                bytes: value.len(),
                hash: hex(&hash),
            });
        }
        if *slot <= decided_up_to && *slot == machine.applied_up_to().next() && stopped_by.is_none() {
            match machine.apply(*slot, &value) {
                Ok(_) => applied_hash.update(hash),
                Err(error) => stopped_by = Some(format!("slot {slot}: {error}")),
            }
        }
    }
    if machine.applied_up_to() < decided_up_to && stopped_by.is_none() {
        stopped_by = Some(format!("slot {} cannot be read", machine.applied_up_to().next()));
    }
    let outcomes = machine.outcomes();
    let record =
        |(gtid, record): (Gtid, Cow<'_, Record>)| outcome(gtid, &record, outcomes.is_unfinished(gtid));
    Dump {
        directory: args.data.display().to_string(),
        identity: directory.identity.as_ref().map(|identity| Identity {
            cluster: identity.cluster.to_string(),
            replica: identity.replica.0,
            replicas: directory
                .replicas
                .as_ref()
                .map(|replicas| replicas.iter().map(|replica| replica.0).collect()),
            incarnation: identity.incarnation.to_string(),
        }),
        problems,
        corrupt: log
            .report
            .corrupt
            .iter()
            .map(|place| Place {
                segment: place.segment,
                offset: place.offset,
                damage: damage(place.damage),
            })
            .collect(),
        torn: log.report.torn.map(|torn| {
            let Torn {
                segment,
                offset,
                bytes,
            } = torn;
            Tail {
                segment,
                offset,
                bytes,
            }
        }),
        unfinished: log.report.unfinished.clone(),
        start: log.meta.start,
        promised: log.meta.promised.into(),
        decided_up_to: decided_up_to.0,
        accepted_up_to: log.meta.accepted_up_to.0,
        peers: log
            .meta
            .peers
            .iter()
            .map(|(replica, seen)| Peer {
                replica: replica.0,
                incarnation: seen.incarnation.to_string(),
                start: seen.start,
            })
            .collect(),
        readable_count: indexed.len(),
        unreadable: ranges(&log.unreadable),
        applied_up_to: machine.applied_up_to().0,
        applied_stopped_by: stopped_by,
        applied_hash: hex(&applied_hash.finalize()),
        lineage: machine.lineage().map(|lineage| lineage.to_string()),
        stamp_unix_ms: machine.stamp().0,
        mark_unix_ms: machine.mark().0,
        outcomes: outcomes
            .page(None, false, usize::MAX)
            .into_iter()
            .map(record)
            .collect(),
        slots,
    }
}

fn outcome(gtid: Gtid, record: &Record, unfinished: bool) -> Outcome {
    let (status, cause) = match &record.verdict {
        Verdict::Committed { .. } => ("committed", None),
        Verdict::Aborted(cause) => ("aborted", Some(format!("{}: {}", cause.kind, cause.text))),
    };
    Outcome {
        gtid: gtid.to_string(),
        status,
        decided_at_unix_ms: record.decided_at.0,
        unfinished,
        branch_count: record.branch_count(),
        cause,
    }
}

fn damage(damage: Damage) -> String {
    match damage {
        Damage::SegmentHeader => "the segment's header; it costs nothing".to_owned(),
        Damage::Unused => "bytes that belong to no batch; it costs nothing".to_owned(),
        Damage::Value { slot } => format!("the value of slot {slot}"),
        Damage::Batches { count, first, up_to } if first > up_to => {
            format!("{count} batches, all of whose slots were written again later")
        }
        Damage::Batches { count, first, up_to } => {
            format!("{count} batches, which may have held slots {first} to {up_to}")
        }
    }
}

fn ranges(slots: &BTreeSet<Slot>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for slot in slots {
        match ranges.last_mut() {
            Some(range) if range.up_to + 1 == slot.0 => range.up_to = slot.0,
            _ => ranges.push(Range {
                first: slot.0,
                up_to: slot.0,
            }),
        }
    }
    ranges
}

/// A SHA-256 as 64 hex digits.
fn hex(hash: &[u8]) -> String {
    let mut text = String::with_capacity(2 * hash.len());
    for byte in hash {
        let _never_fails = write!(text, "{byte:02x}");
    }
    text
}

/// What of a hash is enough for eyes.
const HASH_DIGITS: usize = 16;

fn people(dump: &Dump) -> String {
    let ballot = |ballot: &Ballot| format!("{}.{}.{}", ballot.round, ballot.replica, ballot.start);
    let list = |replicas: &BTreeSet<u8>| {
        let numbers: Vec<_> = replicas.iter().map(u8::to_string).collect();
        numbers.join(", ")
    };
    let mut lines = vec![format!("directory    {}", dump.directory)];
    if let Some(identity) = &dump.identity {
        let among = identity
            .replicas
            .as_ref()
            .map_or_else(String::new, |replicas| format!(" of {}", list(replicas)));
        lines.push(format!("cluster      {}", identity.cluster));
        lines.push(format!("replica      {}{among}", identity.replica));
        lines.push(format!("incarnation  {}", identity.incarnation));
    }
    lines.push(format!("start        {}", dump.start));
    lines.push(format!("promised     {}", ballot(&dump.promised)));
    lines.push(format!("decided      up to {} at least", dump.decided_up_to));
    lines.push(format!("accepted     up to {}", dump.accepted_up_to));
    for peer in &dump.peers {
        lines.push(format!(
            "knows        replica {} as {}, start {}",
            peer.replica, peer.incarnation, peer.start
        ));
    }
    if let Some(lineage) = &dump.lineage {
        lines.push(format!("lineage      {lineage}"));
    }
    lines.push(format!(
        "applied      slots 1 to {}, hash {}",
        dump.applied_up_to,
        &dump.applied_hash[..HASH_DIGITS]
    ));
    if let Some(stopped_by) = &dump.applied_stopped_by {
        lines.push(format!("             no further: {stopped_by}"));
    }
    if let Some(torn) = &dump.torn {
        lines.push(format!(
            "torn         {} bytes at {} of segment {}: a write that the last stop interrupted; nobody was told of it",
            torn.bytes, torn.offset, torn.segment
        ));
    }
    for name in &dump.unfinished {
        lines.push(format!(
            "unfinished   {name}: a segment that was being made; it holds nothing"
        ));
    }
    for range in &dump.unreadable {
        lines.push(format!("unreadable   slots {} to {}", range.first, range.up_to));
    }
    for place in &dump.corrupt {
        lines.push(format!(
            "corrupt      at {} of segment {}: {}",
            place.offset, place.segment, place.damage
        ));
    }
    for problem in &dump.problems {
        lines.push(format!("problem      {problem}"));
    }
    let mut text = lines.join("\n");
    let _never_fails = write!(
        text,
        "\n\nOutcomes in the register after slots 1 to {}, {}:\n",
        dump.applied_up_to,
        dump.outcomes.len()
    );
    let outcome = |outcome: &Outcome| {
        vec![
            outcome.gtid.clone(),
            outcome.status.to_owned(),
            outcome.branch_count.to_string(),
            if outcome.unfinished { "unfinished" } else { "" }.to_owned(),
            outcome.cause.clone().unwrap_or_default(),
        ]
    };
    let header = ["GTID", "STATUS", "BRANCHES", "DELIVERY", "CAUSE"];
    text.push_str(&table(
        &header,
        &dump.outcomes.iter().map(outcome).collect::<Vec<_>>(),
    ));
    let _never_fails = write!(
        text,
        "\nSlots, {} of {} readable ones:\n",
        dump.slots.len(),
        dump.readable_count
    );
    let slot = |slot: &SlotLine| {
        vec![
            slot.slot.to_string(),
            ballot(&slot.ballot),
            if slot.decided { "decided" } else { "accepted" }.to_owned(),
            slot.bytes.to_string(),
            slot.hash[..HASH_DIGITS].to_owned(),
        ]
    };
    text.push_str(&table(
        &["SLOT", "BALLOT", "STATE", "BYTES", "HASH"],
        &dump.slots.iter().map(slot).collect::<Vec<_>>(),
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_range() {
        let slots = [1, 2, 3, 7, 9, 10].map(Slot).into();
        let ranges: Vec<_> = ranges(&slots)
            .iter()
            .map(|range| (range.first, range.up_to))
            .collect();
        assert_eq!(ranges, [(1, 3), (7, 7), (9, 10)]);
    }
}
