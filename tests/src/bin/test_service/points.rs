//! Named points at which the process stops until it is told to go on.
//!
//! | from the test, on stdin | answer, on stdout |
//! |---|---|
//! | `arm POINT` | `armed POINT`; later, once, `paused POINT GTID` |
//! | `go` | – |

use std::collections::BTreeSet;
use std::io::{BufRead as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use synod::Gtid;
use synod_tests::process::Point;
use tokio::sync::{oneshot, watch};

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
    pub(crate) async fn at(&self, point: Point, gtid: Gtid) {
        let is_armed = self
            .armed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(point.name());
        if is_armed {
            // Looked at before the test hears of the pause: a `go` that follows is seen.
            let mut go = self.go_count.subscribe();
            say(&format!("paused {} {gtid}", point.name()));
            let _never_closed = go.changed().await;
        }
    }
}

/// Says a line to the test. A test that has gone takes this process with it, whatever it hears.
pub(crate) fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
