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

fn deliver(inbox: &mut Inbox, session: InboxSession, key: &Bytes, fence: Fence) -> Result<Ticket, Refused> {
    let topic = Bytes::from_static(b"orders");
    inbox.on_delivery(session, &origin(), &topic, key, fence, 10)
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
    let first = deliver(&mut inbox, A, &key("k"), Fence(1)).unwrap();
    let second = deliver(&mut inbox, B, &key("k"), Fence(2)).unwrap();
    let other = deliver(&mut inbox, A, &key("l"), Fence(3)).unwrap();
    assert_eq!(starts(&mut inbox), [first, other]);
    inbox.on_finished(first);
    assert_eq!(starts(&mut inbox), [second]);
    inbox.on_finished(second);
    inbox.on_finished(other);
    assert_eq!(inbox.counts(), (0, 0));
    assert!(inbox.gates.is_empty() && inbox.tickets.is_empty() && inbox.shares.is_empty());
    assert!(inbox.turns.is_empty());
}

/// H5, H17: what a relay that is gone left on its way is refused once its successor's sending was seen.
#[test]
fn h17_a_sending_that_was_overtaken_is_refused() {
    let mut inbox = Inbox::new();
    deliver(&mut inbox, B, &key("k"), Fence(9)).unwrap();
    assert_eq!(deliver(&mut inbox, A, &key("k"), Fence(4)), Err(Refused::Stale));
    assert_eq!(deliver(&mut inbox, A, &key("k"), Fence(9)), Err(Refused::Stale));
    deliver(&mut inbox, A, &key("other"), Fence(4)).unwrap();
    // Also when nothing is known of the single key any more.
    inbox.on_origin_idle(&origin());
    assert_eq!(
        deliver(&mut inbox, A, &key("third"), Fence(9)),
        Err(Refused::Stale)
    );
    deliver(&mut inbox, A, &key("third"), Fence(10)).unwrap();
}

/// The memory of fences is bounded; what is forgotten is refused rather than run.
#[test]
fn forgotten_keys_lie_below_the_floor() {
    let mut inbox = Inbox::new();
    for number in 0..FENCE_COUNT_MAX as u64 + 10 {
        let name = Bytes::copy_from_slice(&number.to_be_bytes());
        let ticket = deliver(&mut inbox, A, &name, Fence(number + 1)).unwrap();
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
        deliver(&mut inbox, A, &key("new"), Fence(10)),
        Err(Refused::Stale)
    );
}

/// A stream that ends takes what waits with it; what runs goes on, and keeps its key until it ends.
#[test]
fn a_closed_stream_takes_back_what_waits() {
    let mut inbox = Inbox::new();
    let running = deliver(&mut inbox, A, &key("k"), Fence(1)).unwrap();
    assert_eq!(starts(&mut inbox), [running]);
    let void = deliver(&mut inbox, A, &key("k"), Fence(2)).unwrap();
    let waiting = deliver(&mut inbox, A, &key("l"), Fence(3)).unwrap();
    assert_eq!(inbox.on_session_closed(A), vec![void, waiting]);
    let next = deliver(&mut inbox, B, &key("k"), Fence(4)).unwrap();
    let beside = deliver(&mut inbox, B, &key("l"), Fence(5)).unwrap();
    assert_eq!(starts(&mut inbox), [beside]);
    inbox.on_finished(running);
    assert_eq!(starts(&mut inbox), [next]);
    inbox.on_finished(next);
    inbox.on_finished(beside);
    assert_eq!(inbox.counts(), (0, 0));
}

/// Streams that come and go while a topic's handlers hang leave nothing behind, however often.
#[test]
fn closed_streams_leave_nothing_behind_a_full_share() {
    let mut inbox = Inbox::new();
    let mut fence = 0;
    let mut deliver = |inbox: &mut Inbox, session, number: u64| {
        fence += 1;
        let key = Bytes::copy_from_slice(&number.to_be_bytes());
        super::tests::deliver(inbox, session, &key, Fence(fence)).unwrap()
    };
    let share = SHARE_RUNNING_COUNT_MAX as u64;
    for number in 0..share {
        deliver(&mut inbox, A, number);
    }
    let hanging = starts(&mut inbox);
    for session in 10..20 {
        for number in share..share + 5 {
            deliver(&mut inbox, InboxSession(session), number);
        }
        assert_eq!(inbox.on_session_closed(InboxSession(session)).len(), 5);
    }
    let ready: usize = inbox.shares.values().map(|shared| shared.ready.len()).sum();
    assert_eq!(
        (ready, inbox.turns.len(), inbox.gates.len()),
        (0, 0, hanging.len())
    );
    let next = deliver(&mut inbox, B, share);
    inbox.on_finished(hanging[0]);
    assert_eq!(starts(&mut inbox), [next]);
}

#[test]
fn what_runs_and_what_waits_is_bounded() {
    let mut inbox = Inbox::new();
    let mut fence = 0;
    let mut deliver = |inbox: &mut Inbox, number: u64| {
        fence += 1;
        let key = Bytes::copy_from_slice(&number.to_be_bytes());
        super::tests::deliver(inbox, A, &key, Fence(fence))
    };
    for number in 0..WAITING_COUNT_MAX as u64 {
        deliver(&mut inbox, number).unwrap();
    }
    assert_eq!(deliver(&mut inbox, 0), Err(Refused::Busy));
    assert_eq!(starts(&mut inbox).len(), SHARE_RUNNING_COUNT_MAX);
    deliver(&mut inbox, 1 << 40).unwrap();
}

/// Bytes are bounded as well as messages: what is refused is sent again when some have run.
#[test]
fn the_bytes_that_wait_are_bounded() {
    let mut inbox = Inbox::new();
    let byte_count = synod_proto::limits::MESSAGE_BODY_BYTES_MAX;
    let topic = Bytes::from_static(b"orders");
    let deliver = |inbox: &mut Inbox, number: u64| {
        let key = Bytes::copy_from_slice(&number.to_be_bytes());
        inbox.on_delivery(A, &origin(), &topic, &key, Fence(number), byte_count)
    };
    let count = (1..)
        .take_while(|number| deliver(&mut inbox, *number).is_ok())
        .count();
    assert_eq!(count, WAITING_BYTES_MAX / byte_count);
    assert!(
        count < WAITING_COUNT_MAX / 8,
        "the bytes stopped it, not the count"
    );
    let ticket = inbox.poll_start().expect("waits");
    deliver(&mut inbox, 1 << 40).unwrap();
    inbox.on_finished(ticket);
    assert_eq!(inbox.on_session_closed(A).len(), count);
    assert_eq!((inbox.waiting_count, inbox.waiting_bytes), (0, 0));
}

/// H9: handlers that hang in one topic hold up neither another topic nor another sender.
#[test]
fn h9_a_topic_that_hangs_has_its_share_and_no_more() {
    let mut inbox = Inbox::new();
    let (hangs, runs) = (Bytes::from_static(b"hangs"), Bytes::from_static(b"runs"));
    let other = Origin {
        source: ResourceId([2; 16]),
        consumer: "billing".into(),
    };
    for number in 1..=2 * RUNNING_COUNT_MAX as u64 {
        let key = Bytes::copy_from_slice(&number.to_be_bytes());
        inbox
            .on_delivery(A, &origin(), &hangs, &key, Fence(number), 10)
            .unwrap();
    }
    assert_eq!(starts(&mut inbox).len(), SHARE_RUNNING_COUNT_MAX);
    let beside = inbox
        .on_delivery(A, &origin(), &runs, &key("k"), Fence(1 << 20), 10)
        .unwrap();
    let elsewhere = inbox
        .on_delivery(B, &other, &hangs, &key("k"), Fence(1), 10)
        .unwrap();
    assert_eq!(starts(&mut inbox), [beside, elsewhere]);
    inbox.on_finished(beside);
    assert_eq!(starts(&mut inbox), [], "the share is still full");
    inbox.on_finished(elsewhere);
    assert_eq!(inbox.shares.len(), 1);
}

/// The memory of origins is bounded: one that has gone makes room for a new one, and one that is connected does not.
#[test]
fn an_origin_without_a_stream_makes_room_for_a_new_one() {
    let mut inbox = Inbox::new();
    let topic = Bytes::from_static(b"orders");
    let deliver = |inbox: &mut Inbox, number: usize| {
        let origin = Origin {
            source: ResourceId((number as u128).to_be_bytes()),
            consumer: "billing".into(),
        };
        let ticket = inbox.on_delivery(A, &origin, &topic, &key("k"), Fence(1), 10)?;
        assert_eq!(starts(inbox), [ticket]);
        inbox.on_finished(ticket);
        Ok::<_, Refused>(origin)
    };
    let origins: Vec<_> = (0..ORIGIN_COUNT_MAX)
        .map(|number| deliver(&mut inbox, number).unwrap())
        .collect();
    assert_eq!(deliver(&mut inbox, ORIGIN_COUNT_MAX), Err(Refused::Busy));
    inbox.on_origin_idle(&origins[7]);
    deliver(&mut inbox, ORIGIN_COUNT_MAX).unwrap();
    assert_eq!(inbox.origins.len(), ORIGIN_COUNT_MAX);
    assert!(!inbox.origins.contains_key(&origins[7]) && inbox.origins.contains_key(&origins[8]));
}
