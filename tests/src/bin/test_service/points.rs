//! Named points at which the process stops until it is told to go on.
//!
//! | from the test, on stdin | answer, on stdout |
//! |---|---|
//! | `arm POINT` | `armed POINT`; later, once, `paused POINT WHO`, a transaction or a consumer |
//! | `go` | – |

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::io::{BufRead as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use synod_tests::process::Point;
use tokio::sync::{oneshot, watch};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The points of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Points {
    armed: Arc<Mutex<BTreeSet<String>>>,
    /// How many times the test said `go`.
    go_count: Arc<watch::Sender<u64>>,
}

impl Points {
    /// Reads stdin from now on; the receiver is told when it is closed.
    pub(crate) fn listen() -> (Self, oneshot::Receiver<()>) {
        let points = Self {
            armed: Arc::default(),
            go_count: Arc::new(watch::Sender::new(0)),
        };
        let (closed, stdin_closed) = oneshot::channel();
        let of_thread = points.clone();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                of_thread.on_line(&line);
            }
            let _nobody_waits = closed.send(());
        });
        (points, stdin_closed)
    }

    fn on_line(&self, line: &str) {
        match line.split_once(' ') {
            Some(("arm", point)) => {
                self.armed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(point.to_owned());
                say(&format!("armed {point}"));
            }
            _ if line == "go" => self.go_count.send_modify(|count| *count += 1),
            _ => say(&format!("unknown {line}")),
        }
    }

    /// Stops here if the point is armed, which it is then no longer: everybody else passes.
    pub(crate) async fn at(&self, point: Point, who: impl Display) {
        if self.disarm(point) {
            // Looked at before the test hears of the pause: a `go` that follows is seen.
            let mut go = self.go_count.subscribe();
            say(&format!("paused {} {who}", point.name()));
            let _never_closed = go.changed().await;
        }
    }

    fn disarm(&self, point: Point) -> bool {
        self.armed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(point.name())
    }
}

/// Stops the whole service where the library traces that it has reached a point which no handler or store of the service sees.
pub(crate) struct AtEvents {
    points: Points,
}

impl AtEvents {
    pub(crate) const fn new(points: Points) -> Self {
        Self { points }
    }
}

/// What the event of [`Point::Answered`] says.
#[derive(Default)]
struct Answered {
    delivered_count: u64,
    consumer: String,
}

impl Visit for Answered {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "delivered_count" {
            self.delivered_count = value;
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "consumer" {
            self.consumer = format!("{value:?}");
        }
    }
}

impl<S: Subscriber> Layer<S> for AtEvents {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut answered = Answered::default();
        event.record(&mut answered);
        if answered.delivered_count > 0 {
            futures::executor::block_on(self.points.at(Point::Answered, answered.consumer));
        }
    }
}

/// Says a line to the test. A test that has gone takes this process with it, whatever it hears.
pub(crate) fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
