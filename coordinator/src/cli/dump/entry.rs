//! One slot's content: the commands of its entry, field by field.

use super::{Ballot, hex};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{print, print_json};
use crate::log::inspect::{Inspection, ReadOnlyDisk};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use synod_coordinator_core::entry;
use synod_coordinator_core::paxos::Slot;
use synod_proto::command::{Command, Decide, NamedBranch, Proposal};

#[derive(Serialize)]
struct Content {
    slot: u64,
    ballot: Ballot,
    decided: bool,
    bytes: usize,
    hash: String,
    /// Null in an empty value, which fills a gap; or where it cannot be understood.
    stamp_unix_ms: Option<u64>,
    mark_unix_ms: Option<u64>,
    commands: Vec<Value>,
    problem: Option<String>,
}

/// Shows what a slot holds. Ends with 1 where it holds nothing, or nothing that can be read.
pub(super) fn show(log: &mut Inspection<ReadOnlyDisk>, slot: Slot, json: bool) -> Result<Exit, Failure> {
    let failed = |text: String| Failure::new(Exit::Failed, text);
    if log.unreadable.contains(&slot) {
        return Err(failed(format!(
            "slot {slot} cannot be read: its record is lost; another replica may have it"
        )));
    }
    let Some(accepted) = log.read(slot).map_err(|error| failed(error.to_string()))? else {
        return Err(failed(format!(
            "there is no record of slot {slot} here; the log goes up to slot {}",
            log.meta.accepted_up_to
        )));
    };
    let mut content = Content {
        slot: slot.0,
        ballot: accepted.ballot.into(),
        decided: slot <= log.meta.decided_up_to,
        bytes: accepted.value.len(),
        hash: hex(&Sha256::digest(&accepted.value)),
        stamp_unix_ms: None,
        mark_unix_ms: None,
        commands: Vec::new(),
        problem: None,
    };
    match entry::decode(&accepted.value) {
        Ok(Some(entry)) => {
            content.stamp_unix_ms = Some(entry.stamp.0);
            content.mark_unix_ms = Some(entry.mark.0);
            content.commands = entry.commands.iter().map(command).collect();
        }
        Ok(None) => {}
        Err(error) => content.problem = Some(error.to_string()),
    }
    if json {
        print_json(&content)?;
    } else {
        print(&people(&content))?;
    }
    Ok(if content.problem.is_some() {
        Exit::Failed
    } else {
        Exit::Success
    })
}

fn command(command: &Command) -> Value {
    let texts = |ids: Vec<String>| ids;
    match command {
        Command::Noop => json!({ "kind": "noop" }),
        Command::Establish(lineage) => json!({ "kind": "establish", "lineage": lineage.to_string() }),
        Command::Decide(decide) => self::decide(decide),
        Command::Delivered(gtids) => json!({
            "kind": "delivered",
            "gtids": texts(gtids.iter().map(ToString::to_string).collect()),
        }),
        Command::Settle(settle) => json!({
            "kind": "settle",
            "gtid": settle.gtid.to_string(),
            "call": number(settle.call.0),
            "execution": number(settle.execution.0),
            "author": settle.author,
            "reason": settle.reason,
        }),
        Command::Enrol(resources) => json!({
            "kind": "enrol",
            "resources": texts(resources.iter().map(ToString::to_string).collect()),
        }),
    }
}

fn decide(decide: &Decide) -> Value {
    let mut fields = json!({
        "kind": "decide",
        "gtid": decide.gtid.to_string(),
        "lineage": decide.lineage.to_string(),
        "deadline_unix_ms": decide.deadline.0,
    });
    let (proposal, branches) = match &decide.proposal {
        Proposal::Commit {
            branches,
            read_only_count,
        } => {
            fields["read_only_count"] = json!(read_only_count);
            ("commit", branches)
        }
        Proposal::Abort { cause, branches } => {
            fields["cause"] = json!({
                "kind": cause.kind.to_string(),
                "text": cause.text,
            });
            ("abort", branches)
        }
    };
    fields["proposal"] = json!(proposal);
    fields["branches"] = branches.iter().map(branch).collect();
    fields
}

fn branch(branch: &NamedBranch) -> Value {
    json!({
        "call": number(branch.call.0),
        "execution": number(branch.execution.0),
        "resource": branch.resource.to_string(),
        "digest": number(branch.digest),
        "database_transaction": hex(&branch.database_transaction),
    })
}

fn number(number: u64) -> String {
    format!("{number:016x}")
}

fn people(content: &Content) -> String {
    let Ballot {
        round,
        replica,
        start,
    } = &content.ballot;
    let mut lines = vec![
        format!("slot      {}", content.slot),
        format!("ballot    {round}.{replica}.{start}"),
        format!(
            "state     {}",
            if content.decided { "decided" } else { "accepted" }
        ),
        format!("bytes     {}", content.bytes),
        format!("hash      {}", content.hash),
    ];
    match (content.stamp_unix_ms, content.mark_unix_ms) {
        (Some(stamp), Some(mark)) => lines.extend([
            format!("stamp     {stamp} ms since 1970"),
            format!("mark      {mark} ms since 1970"),
        ]),
        _ if content.problem.is_none() => lines.push("empty     it fills a gap".to_owned()),
        _ => {}
    }
    if let Some(problem) = &content.problem {
        lines.push(format!("problem   {problem}"));
    }
    for command in &content.commands {
        let Value::Object(fields) = command else { continue };
        lines.push(format!("command   {}", plain(&command["kind"])));
        for (name, value) in fields.iter().filter(|(name, _)| *name != "kind") {
            match value {
                Value::Array(items) => {
                    lines.extend(
                        items
                            .iter()
                            .map(|item| format!("          {name}: {}", plain(item))),
                    );
                }
                value => lines.push(format!("          {name}: {}", plain(value))),
            }
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// A value for people: texts without quotes, objects as `name value` pairs.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            let pairs: Vec<_> = fields
                .iter()
                .map(|(name, value)| format!("{name} {}", plain(value)))
                .collect();
            pairs.join(", ")
        }
        other => other.to_string(),
    }
}
