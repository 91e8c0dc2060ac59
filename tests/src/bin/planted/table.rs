//! What is printed.

use crate::hunt::Outcome;
use std::fmt::Write;
use synod_proto::planted::{Bug, Means};

/// How much of a checker's words is shown.
const WORDS_MAX: usize = 14;

/// Every bug, one a line.
pub(crate) fn list() -> String {
    let mut text = String::new();
    for bug in Bug::ALL {
        line(
            &mut text,
            format_args!(
                "{:<28} {:<5} {:<42} {}",
                bug.name(),
                bug.rule(),
                means(bug),
                bug.sentence()
            ),
        );
    }
    text
}

/// One outcome in full.
pub(crate) fn text(outcome: &Outcome) -> String {
    let mut text = String::new();
    match &outcome.found {
        Some(found) => {
            let whence = found.seed.map_or(String::new(), |seed| {
                format!(" in seed {seed}, after {} seeds", outcome.seed_count)
            });
            line(
                &mut text,
                format_args!("found by {}{whence}, {:.1} s", found.checker, outcome.seconds),
            );
            line(&mut text, format_args!("{}", found.text));
        }
        None => line(
            &mut text,
            format_args!(
                "nothing found in {} seeds and {:.1} s",
                outcome.seed_count, outcome.seconds
            ),
        ),
    }
    text
}

/// One line while the rest is looked for.
pub(crate) fn progress(bug: Bug, outcome: Option<&Outcome>) -> String {
    let what = match outcome {
        None => "ended without a result".to_string(),
        Some(Outcome {
            found: Some(found),
            seed_count,
            seconds,
            ..
        }) => format!(
            "{:<12} {}, {seconds:>6.1} s",
            found.checker,
            taken(bug, *seed_count)
        ),
        Some(Outcome {
            seed_count, seconds, ..
        }) => format!("NOT FOUND    {}, {seconds:>6.1} s", taken(bug, *seed_count)),
    };
    format!("{:<28} {what}\n", bug.name())
}

/// The table; `control` is what came of the same seeds without a bug.
pub(crate) fn table(
    outcomes: &[(Bug, Option<Outcome>)],
    control: Option<&Option<Outcome>>,
    is_markdown: bool,
) -> String {
    let rows: Vec<[String; 6]> = outcomes
        .iter()
        .map(|(bug, outcome)| row(*bug, outcome.as_ref()))
        .collect();
    let mut text = String::new();
    let heads = ["bug", "rule", "what goes wrong", "stated", "taken", "found by"];
    if is_markdown {
        line(&mut text, format_args!("| {} |", heads.join(" | ")));
        line(&mut text, format_args!("|---|---|---|--:|--:|---|"));
        for row in &rows {
            line(&mut text, format_args!("| {} |", row.join(" | ")));
        }
    } else {
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].as_str());
            cells
                .chain([heads[column]])
                .map(str::len)
                .max()
                .unwrap_or_default()
        };
        for row in [heads.map(str::to_string)].iter().chain(&rows) {
            for (column, cell) in row.iter().enumerate() {
                let _ = write!(text, "{cell:<width$}  ", width = width(column));
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
    }
    if let Some(control) = control {
        let what = match control {
            None => "ended without a result".to_string(),
            Some(Outcome {
                found: Some(found), ..
            }) => format!("{}: {} (seed {:?})", found.checker, found.text, found.seed),
            Some(Outcome { seed_count, .. }) => format!("nothing found in {seed_count} seeds"),
        };
        line(&mut text, format_args!("\nWithout a bug: {what}."));
    }
    text
}

/// By what it must be found.
fn means(bug: Bug) -> String {
    match bug.means() {
        Means::Seeds(count) => format!("{count} seeds"),
        Means::Exploration(name) => format!("exploration {name}"),
        Means::Scenario(name) => format!("script {name}"),
    }
}

/// What it took.
fn taken(bug: Bug, seed_count: u64) -> String {
    match (bug.means(), seed_count) {
        (Means::Seeds(_), 1) => "1 seed".to_string(),
        (Means::Seeds(_), count) => format!("{count} seeds"),
        _ => "once".to_string(),
    }
}

fn row(bug: Bug, outcome: Option<&Outcome>) -> [String; 6] {
    let found = outcome.and_then(|outcome| outcome.found.as_ref());
    let cost = match (outcome, found) {
        (Some(outcome), Some(_)) => taken(bug, outcome.seed_count),
        _ => "-".to_string(),
    };
    let by = found.map_or("NOT FOUND".to_string(), |found| {
        format!("{}: {}", found.checker, shortened(&found.text))
    });
    [
        bug.name().to_string(),
        bug.rule().to_string(),
        bug.sentence().to_string(),
        means(bug),
        cost,
        by,
    ]
}

/// The first words, on one line, without what would break a table.
fn shortened(text: &str) -> String {
    let mut words = text.split_whitespace();
    let mut short: Vec<&str> = words.by_ref().take(WORDS_MAX).collect();
    if words.next().is_some() {
        short.push("...");
    }
    short.join(" ").replace('|', "/")
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{arguments}");
}
