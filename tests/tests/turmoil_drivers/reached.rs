//! What the drivers' own trace says they went through. A run that never loses a stream proves nothing about lost streams.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt, registry};

thread_local! {
    static IS_COUNTING: Cell<bool> = const { Cell::new(false) };
}

/// How often each line was written, by text and reason.
static LINES: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

fn lines() -> MutexGuard<'static, BTreeMap<String, u64>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What must have been reached in an ordinary run, each with the words that its line holds.
pub const POINTS: [(&str, &[&str]); 12] = [
    ("a replica was elected", &["leading"]),
    ("a leader stepped down", &["stepped down"]),
    ("a leader resigned before its end", &["draining"]),
    ("a restarted replica was admitted", &["admitted"]),
    ("a link broke", &["lost the connection to a peer"]),
    (
        "a link closed in good order",
        &["lost the connection to a peer", "closed by"],
    ),
    ("a link could not be opened", &["no connection to a peer"]),
    ("a session was redirected", &["not connected", "does not lead"]),
    (
        "a resigning leader closed a session",
        &["not connected", "no longer leads"],
    ),
    ("a session's stream broke", &["not connected", "Connection reset"]),
    ("a silent session was given up", &["not connected", "broken pipe"]),
    (
        "a replica could not be reached",
        &["not connected", "transport error"],
    ),
];

/// From now on the product's lines of this thread count.
pub fn count() {
    IS_COUNTING.set(true);
}

/// Listens to the product's lines, and prints what `RUST_LOG` asks for.
pub fn watch() {
    let printed = fmt::layer()
        .with_writer(std::io::stderr)
        .with_timer(VirtualTime)
        .with_ansi(false)
        .with_filter(EnvFilter::from_default_env());
    let counted = Counted.with_filter(LevelFilter::INFO);
    // Another test of this process may have been first.
    let _is_set = registry().with(counted).with(printed).try_init();
}

/// How often each point was reached.
pub fn counts() -> BTreeMap<&'static str, u64> {
    let lines = lines();
    let count = |words: &[&str]| {
        let has_all = |line: &String| words.iter().all(|word| line.contains(word));
        lines
            .iter()
            .filter(|(line, _)| has_all(line))
            .map(|(_, count)| count)
            .sum()
    };
    POINTS
        .into_iter()
        .map(|(name, words)| (name, count(words)))
        .collect()
}

/// Every line, for whoever adds a point.
pub fn all() -> String {
    let line = |(line, count): (&String, &u64)| format!("{count:>6} {line}\n");
    lines().iter().map(line).collect()
}

/// Seconds since the simulation began, or nothing outside of one.
struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        let elapsed = turmoil::sim_elapsed().unwrap_or_default();
        write!(writer, "{:>9.3}", elapsed.as_secs_f64())
    }
}

struct Counted;

impl<S: Subscriber> Layer<S> for Counted {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if IS_COUNTING.get() && event.metadata().target().starts_with("synod") {
            let mut text = Text::default();
            event.record(&mut text);
            *lines().entry(text.0).or_default() += 1;
        }
    }
}

/// The fields that are the same whoever writes the line.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if matches!(field.name(), "message" | "reason") {
            let _infallible = write!(self.0, "{value:?} ");
        }
    }
}
