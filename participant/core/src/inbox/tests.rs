//! The inbox on paper.

use super::*;
use alloc::vec;
use alloc::vec::Vec;

const A: InboxSession = InboxSession(1);
const B: InboxSession = InboxSession(2);

fn origin() -> Origin {
    Origin {
        source: ResourceId([1; 16]),
        consumer: "billing".into(),
    }
}

fn key(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn starts(inbox: &mut Inbox) -> Vec<Ticket> {
    core::iter::from_fn(|| inbox.poll_start()).collect()
}

fn message(number: u8) -> MessageId {
    MessageId([number; 16])
}

fn low_water(mark: u64, unsettled: &[u64]) -> LowWater {
    LowWater {
        mark: Position(mark),
        unsettled: unsettled.iter().copied().map(Position).collect(),
    }
}

/// H7, H8, G1: the row first, then the mark, then the order; each has its own answer.
#[test]
fn a_delivery_is_next_duplicate_gap_or_below_the_mark() {
    let at = Position(7);
    let decide = |previous: Option<u64>, row, low_water: &LowWater, has_previous| {
        super::decide(
            message(1),
            at,
            previous.map(Position),
            row,
            low_water,
            has_previous,
        )
    };
    let none = low_water(0, &[]);
    assert_eq!(decide(None, None, &none, true), Decision::Next);
    assert_eq!(decide(None, Some(message(1)), &none, true), Decision::Duplicate);
    assert_eq!(
        decide(None, Some(message(2)), &none, true),
        Decision::Conflict { found: message(2) }
    );
    assert_eq!(
        decide(None, None, &low_water(8, &[]), true),
        Decision::BelowLowWater
    );
    assert_eq!(decide(None, None, &low_water(7, &[]), true), Decision::Next);
    assert_eq!(
        decide(None, None, &low_water(9, &[7]), true),
        Decision::Next,
        "requeued"
    );
    assert_eq!(
        decide(Some(5), None, &none, false),
        Decision::Gap { missing: Position(5) }
    );
    assert_eq!(decide(Some(5), None, &none, true), Decision::Next);
    assert_eq!(
        decide(Some(5), None, &low_water(6, &[]), false),
        Decision::Next,
        "its row was deleted, as it should be"
    );
}

/// H10: one key, one at a time, whatever stream; other keys beside it.
#[test]
fn deliveries_of_one_key_run_one_after_the_other() {
    let mut inbox = Inbox::new();
    let first = inbox.on_delivery(A, &origin(), &key("k"), Fence(1)).unwrap();
    let second = inbox.on_delivery(B, &origin(), &key("k"), Fence(2)).unwrap();
    let other = inbox.on_delivery(A, &origin(), &key("l"), Fence(3)).unwrap();
    assert_eq!(starts(&mut inbox), [first, other]);
    inbox.on_finished(first);
    assert_eq!(starts(&mut inbox), [second]);
    inbox.on_finished(second);
    inbox.on_finished(other);
    assert_eq!(inbox.counts(), (0, 0));
    assert!(inbox.gates.is_empty() && inbox.tickets.is_empty());
}

/// H5, H17: what a relay that is gone left on its way is refused once its successor's sending was seen.
#[test]
fn h17_a_sending_that_was_overtaken_is_refused() {
    let mut inbox = Inbox::new();
    inbox.on_delivery(B, &origin(), &key("k"), Fence(9)).unwrap();
    assert_eq!(
        inbox.on_delivery(A, &origin(), &key("k"), Fence(4)),
        Err(Refused::Stale)
    );
    assert_eq!(
        inbox.on_delivery(A, &origin(), &key("k"), Fence(9)),
        Err(Refused::Stale)
    );
    inbox.on_delivery(A, &origin(), &key("other"), Fence(4)).unwrap();
    // Also when nothing is known of the single key any more.
    inbox.on_origin_idle(&origin());
    assert_eq!(
        inbox.on_delivery(A, &origin(), &key("third"), Fence(9)),
        Err(Refused::Stale)
    );
    inbox.on_delivery(A, &origin(), &key("third"), Fence(10)).unwrap();
}

/// The memory of fences is bounded; what is forgotten is refused rather than run.
#[test]
fn forgotten_keys_lie_below_the_floor() {
    let mut inbox = Inbox::new();
    for number in 0..FENCE_COUNT_MAX as u64 + 10 {
        let name = Bytes::copy_from_slice(&number.to_be_bytes());
        let ticket = inbox.on_delivery(A, &origin(), &name, Fence(number + 1)).unwrap();
        assert_eq!(starts(&mut inbox), [ticket]);
        inbox.on_finished(ticket);
    }
    let known = &inbox.origins[&origin()];
    assert_eq!(
        (known.keys.len(), known.by_fence.len()),
        (FENCE_COUNT_MAX, FENCE_COUNT_MAX)
    );
    assert_eq!(known.floor, Fence(10));
    assert_eq!(
        inbox.on_delivery(A, &origin(), &key("new"), Fence(10)),
        Err(Refused::Stale)
    );
}

/// A stream that ends takes what waits with it; what runs goes on, and keeps its key until it ends.
#[test]
fn a_closed_stream_takes_back_what_waits() {
    let mut inbox = Inbox::new();
    let running = inbox.on_delivery(A, &origin(), &key("k"), Fence(1)).unwrap();
    assert_eq!(starts(&mut inbox), [running]);
    let void = inbox.on_delivery(A, &origin(), &key("k"), Fence(2)).unwrap();
    let waiting = inbox.on_delivery(A, &origin(), &key("l"), Fence(3)).unwrap();
    assert_eq!(inbox.on_session_closed(A), vec![void, waiting]);
    let next = inbox.on_delivery(B, &origin(), &key("k"), Fence(4)).unwrap();
    let beside = inbox.on_delivery(B, &origin(), &key("l"), Fence(5)).unwrap();
    assert_eq!(starts(&mut inbox), [beside]);
    inbox.on_finished(running);
    assert_eq!(starts(&mut inbox), [next]);
    inbox.on_finished(next);
    inbox.on_finished(beside);
    assert_eq!(inbox.counts(), (0, 0));
}

#[test]
fn what_runs_and_what_waits_is_bounded() {
    let mut inbox = Inbox::new();
    let mut fence = 0;
    let mut deliver = |inbox: &mut Inbox, number: u64| {
        fence += 1;
        inbox.on_delivery(
            A,
            &origin(),
            &Bytes::copy_from_slice(&number.to_be_bytes()),
            Fence(fence),
        )
    };
    for number in 0..WAITING_COUNT_MAX as u64 {
        deliver(&mut inbox, number).unwrap();
    }
    assert_eq!(deliver(&mut inbox, 0), Err(Refused::Busy));
    assert_eq!(starts(&mut inbox).len(), RUNNING_COUNT_MAX);
    deliver(&mut inbox, 1 << 40).unwrap();
}
