//! A message that an operator takes back: it keeps its place in its key until the consumer has said what became of it.

use super::*;

/// The one that waits for its next attempt goes at once, in its place, and what the consumer says of it is told apart.
#[test]
fn a_cancelled_message_is_sent_until_the_consumer_has_confirmed() {
    for (said, is_confirmed) in [
        (Answer::Settled, true),
        (Answer::Duplicate, false),
        (Answer::Applied, false),
    ] {
        let mut relay = relay(options());
        relay.on_session_opened(NOW, S);
        read(&mut relay, vec![row(1, "a"), row(2, "a")]);
        let first = sends(&mut relay);
        answer(&mut relay, &first[0], failed("no"));
        assert!(positions(&mut relay).is_empty(), "waits for its next attempt");
        relay.on_cancelled(NOW, &row(1, "a"), low_water(1));
        let again = sends(&mut relay);
        assert_eq!((again[0].position, again.len()), (Position(1), 1));
        answer(&mut relay, &again[0], said);
        let settled = relay.poll_settlement().expect("something to write");
        let (one, none) = (vec![Position(1)], vec![]);
        let expected = if is_confirmed { (none, one) } else { (one, none) };
        assert_eq!((settled.delivered, settled.cancelled), expected);
        if let Some(Read::Key { .. }) = relay.poll_read() {
            relay.on_rows(&rows(vec![row(2, "a")]));
        }
        let next = sends(&mut relay);
        assert_eq!(
            (next[0].position, next[0].previous),
            (Position(2), Some(Position(1)))
        );
    }
}

/// Without a cancellation the same answer is of a message that was settled long ago.
#[test]
fn what_is_not_cancelled_is_delivered_whatever_the_consumer_calls_it() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a")]);
    let sent = sends(&mut relay);
    answer(&mut relay, &sent[0], Answer::Settled);
    let settled = relay.poll_settlement().expect("something to write");
    assert_eq!(
        (settled.delivered, settled.cancelled),
        (vec![Position(1)], vec![])
    );
}

/// It does not die, however often it fails or whatever failed before: whether it took effect is not known.
#[test]
fn a_cancelled_message_does_not_die() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a")]);
    for attempt in 1..10 {
        let sent = sends(&mut relay);
        if attempt == 2 {
            relay.on_cancelled(NOW, &row(1, "a"), low_water(1));
        }
        answer(&mut relay, &sent[0], failed("no"));
        let settled = relay.poll_settlement().expect("something to write");
        assert_eq!((settled.failed.len(), settled.dead.len()), (1, 0), "{attempt}");
        relay.on_settled(NOW, true, &settled, low_water(1));
        let at = relay.next_timeout().expect("waits");
        relay.on_timeout(at);
    }
    assert_eq!(positions(&mut relay), [1]);
}

/// One that is sent as cancelled, since the store had it so at the start, does not die either.
#[test]
fn what_was_sent_as_cancelled_is_known_as_such() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a")]);
    let sent = sends(&mut relay);
    relay.on_sent_cancelled(Position(1));
    answer(&mut relay, &sent[0], Answer::Settled);
    let settled = relay.poll_settlement().expect("something to write");
    assert_eq!(settled.cancelled, [Position(1)]);
}

/// The operator was faster than the write of the dead letter, which then is none: before or after that write is known here, and
/// whatever a dead letter does to its key.
#[test]
fn one_that_was_to_die_is_sent_all_the_same() {
    for policy in [DeadLetterPolicy::HoldKey, DeadLetterPolicy::Skip] {
        for is_told_first in [true, false] {
            let mut relay = relay(RelayOptions { policy, ..options() });
            relay.on_session_opened(NOW, S);
            read(&mut relay, vec![row(1, "a")]);
            let written = fail_until_dead(&mut relay);
            if is_told_first {
                relay.on_cancelled(NOW, &row(1, "a"), low_water(1));
            }
            relay.on_settled(NOW, true, &written, low_water(1));
            if !is_told_first {
                relay.on_cancelled(NOW, &row(1, "a"), low_water(1));
            }
            assert_eq!(
                positions(&mut relay),
                [1],
                "{policy:?}, told first: {is_told_first}"
            );
            assert!(!relay.is_held(&row(1, "a").key));
        }
    }
}

/// What was not read yet, or is left to be read, is read in its turn, and nothing of its key is overtaken.
#[test]
fn one_that_is_not_in_memory_is_read_in_its_turn() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    relay.on_cancelled(NOW, &row(2, "a"), low_water(1));
    assert!(positions(&mut relay).is_empty());
    read(&mut relay, vec![row(1, "a"), row(2, "a"), row(3, "a")]);
    let sent = sends(&mut relay);
    assert_eq!(sent.len(), 1);
    answer(&mut relay, &sent[0], failed("no"));
    // What is behind it was put back into the store.
    relay.on_cancelled(NOW, &row(2, "a"), low_water(1));
    assert!(positions(&mut relay).is_empty());
    let at = relay.next_timeout().expect("waits");
    relay.on_timeout(at);
    assert_eq!(positions(&mut relay), [1]);
}
