//! Writing to stdout: JSON, or a table for people.

use super::exit::{Exit, Failure};
use serde::Serialize;
use std::io::Write as _;

/// Writes text to stdout. A reader that went away (`synod txn list | head`) is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(
            Exit::Failed,
            format!("cannot write to stdout: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Writes a value as indented JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write JSON: {error}")))?;
    text.push('\n');
    print(&text)
}

/// Lays out rows in columns as wide as their widest cell.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// This machine's clock, in milliseconds since 1970.
pub(super) fn now_unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

/// How long ago, for people: the two largest units. The other machine's clock may be a little ahead of this one's.
pub(super) fn age(now_unix_ms: u64, then_unix_ms: u64) -> String {
    let seconds = now_unix_ms.saturating_sub(then_unix_ms) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days}d {}h ago", hours % 24)
    } else if hours > 0 {
        format!("{hours}h {}m ago", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {}s ago", seconds % 60)
    } else {
        format!("{seconds}s ago")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_two_units_at_most() {
        let ages = [0, 59_999, 60_000, 3_661_000, 90_000_000].map(|ms| age(ms + 7, 7));
        assert_eq!(ages, ["0s ago", "59s ago", "1m 0s ago", "1h 1m ago", "1d 1h ago"]);
        assert_eq!(age(5, 7), "0s ago");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["1".to_owned(), "leader".to_owned()],
            vec!["22222222".to_owned(), "-".to_owned()],
        ];
        assert_eq!(
            table(&["REPLICA", "ROLE"], &rows),
            "REPLICA   ROLE\n1         leader\n22222222  -\n"
        );
    }
}
