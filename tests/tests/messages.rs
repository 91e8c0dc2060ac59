//! Messages between the services of the simulator's bank, over the real outbox, relay and inbox.

use synod_tests::run::{self, Draw};
use synod_tests::trace::Detail;

fn draw(seed: u64) -> Draw {
    let draw = Draw::new(seed, Detail::Hash);
    Draw {
        has_messages: true,
        ..draw
    }
}

/// What was counted of messages in a run that must pass.
fn counts(draw: &Draw) -> (u64, impl Fn(&str) -> u64) {
    let (result, world) = run::play(draw);
    if let Err(violation) = result {
        panic!("seed {}: {violation}", draw.seed);
    }
    let world = world.expect("it has run");
    let counts = world.checkers.points.counts();
    let count = move |name: &str| {
        let of_messages = counts
            .iter()
            .find(|(point, _)| point.0 == "messages" && point.1 == name);
        of_messages.map_or(0, |(_, count)| *count)
    };
    (world.trace.hash(), count)
}

/// H6, H7: without faults everything that was published takes effect, and hardly anything is sent twice.
#[test]
fn a_quiet_world_delivers_everything() {
    let mut draw = draw(3);
    draw.plan.clear();
    draw.setup.lines.loss_ppm = 0;
    draw.core = None;
    let (_, count) = counts(&draw);
    assert!(count("applied") > 20, "{}", count("applied"));
    assert!(count("a message published in a branch") > 0);
    assert!(count("a local transaction that published") > 0);
    assert_eq!(count("a session of a relay ended"), 0);
}

/// Same seed, same bytes, with messages too.
#[test]
fn the_same_seed_gives_the_same_run() {
    let draw = draw(5);
    let (first, count) = counts(&draw);
    assert!(count("applied") > 0);
    assert_eq!(first, counts(&draw).0);
}
