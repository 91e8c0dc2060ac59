//! What the relay hears late: rows of a snapshot from before an operator's word, writes of which nobody knows whether they happened.

use super::*;

fn one_attempt() -> Relay {
    let mut relay = relay(RelayOptions {
        attempt_count_max: 1,
        ..options()
    });
    relay.on_session_opened(NOW, S);
    relay
}

fn begin_to_read(relay: &mut Relay) {
    relay.on_published();
    assert!(matches!(relay.poll_read(), Some(Read::All { .. })));
}

/// H9: a read that shows a dead letter as it was before an operator discarded it holds no key for ever.
#[test]
fn h9_a_letter_discarded_during_a_read_holds_nothing() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    begin_to_read(&mut relay);
    relay.on_discarded(NOW, &row(1, "a"), low_water(1));
    relay.on_rows(&rows(vec![dead(1, "a"), row(2, "a")]));
    assert!(!relay.is_held(&row(1, "a").key));
    assert_eq!(positions(&mut relay), [2]);
}

/// H9: and one that was requeued, or requeued and discarded after all, is no dead letter either.
#[test]
fn h9_a_letter_requeued_during_a_read_is_tried() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    begin_to_read(&mut relay);
    for position in [1, 3] {
        relay.on_requeued(NOW, &row(position, "a"), low_water(1));
    }
    relay.on_discarded(NOW, &row(3, "a"), low_water(1));
    relay.on_rows(&rows(vec![dead(1, "a"), row(2, "a"), dead(3, "a"), row(4, "b")]));
    let first = sends(&mut relay);
    assert_eq!(
        first.iter().map(|send| send.position.0).collect::<Vec<_>>(),
        [1, 4]
    );
    answer(&mut relay, &first[0], Answer::Applied);
    let second = sends(&mut relay);
    assert_eq!(second[0].position, Position(2));
    answer(&mut relay, &second[0], Answer::Applied);
    assert_eq!(positions(&mut relay), []);
    // The word is about that read: a letter that died of it later is dead.
    begin_to_read(&mut relay);
    relay.on_rows(&rows(vec![dead(5, "a")]));
    assert!(relay.is_held(&row(5, "a").key));
}

/// H9: a key keeps its order although an operator is faster than the relay, which has just begun to read: what is dead before the
/// requeued message holds it back.
#[test]
fn h9_a_requeued_letter_does_not_overtake_what_is_still_to_be_read() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    relay.on_requeued(NOW, &row(3, "a"), low_water(1));
    assert_eq!(positions(&mut relay), []);
    assert!(matches!(relay.poll_read(), Some(Read::All { .. })));
    relay.on_rows(&rows(vec![dead(1, "a"), row(3, "a")]));
    assert_eq!(positions(&mut relay), []);
    assert!(relay.is_held(&row(1, "a").key));
}

/// H9: a read that shows a message as it was while it was still tried brings it not back: else it would be in the way of its own
/// requeue.
#[test]
fn h9_a_message_that_is_dying_is_not_read_again() {
    let mut relay = one_attempt();
    read(&mut relay, vec![row(1, "a")]);
    let sent = sends(&mut relay);
    begin_to_read(&mut relay);
    answer(&mut relay, &sent[0], failed("poison"));
    relay.on_rows(&rows(vec![row(1, "a")]));
    let written = relay.poll_settlement().expect("a dead letter");
    relay.on_settled(NOW, true, &written, low_water(1));
    assert_eq!(relay.counts(), (0, 0));
    relay.on_requeued(NOW, &row(1, "a"), low_water(1));
    assert_eq!(positions(&mut relay), [1]);
}

/// J7: a write that was on disk although it failed is repeated without what an operator has taken back since, whichever of the two
/// is heard first.
#[test]
fn j7_a_repeated_write_does_not_undo_an_operators_word() {
    for is_operator_first in [true, false] {
        let mut relay = one_attempt();
        read(&mut relay, vec![row(1, "a"), row(2, "b")]);
        for sent in sends(&mut relay) {
            answer(&mut relay, &sent, failed("poison"));
        }
        let written = relay.poll_settlement().expect("two dead letters");
        if is_operator_first {
            relay.on_requeued(NOW, &row(1, "a"), low_water(1));
            relay.on_settle_failed(written);
        } else {
            relay.on_settle_failed(written);
            relay.on_requeued(NOW, &row(1, "a"), low_water(1));
        }
        let again = relay.poll_settlement().expect("the other one");
        let dead: Vec<u64> = again.dead.iter().map(|failure| failure.position.0).collect();
        assert_eq!(dead, [2]);
    }
}

/// A relay that has begun with a requeued message of a key, and a dead one behind it: the first is on its way.
fn behind_a_requeued_one(policy: DeadLetterPolicy) -> (Relay, Send) {
    let letters = [row(1, "a"), dead(2, "a")];
    let options = RelayOptions { policy, ..options() };
    let mut relay = Relay::new(options, 7, Fence(1 << 40), low_water(9), &letters);
    relay.on_session_opened(NOW, S);
    let mut sent = sends(&mut relay);
    assert_eq!(sent.len(), 1);
    (relay, sent.remove(0))
}

/// H9: a dead letter that was read behind what its key sends first, and is requeued before the key comes to it, is sent in its turn.
#[test]
fn h9_a_letter_requeued_while_its_key_is_busy_is_sent() {
    for policy in [DeadLetterPolicy::HoldKey, DeadLetterPolicy::Skip] {
        let (mut relay, first) = behind_a_requeued_one(policy);
        relay.on_requeued(NOW, &row(2, "a"), low_water(9));
        answer(&mut relay, &first, Answer::Applied);
        assert_eq!(positions(&mut relay), [2], "{policy:?}");
        assert!(!relay.is_held(&row(2, "a").key));
    }
}

/// H9: as do those that were read while the first one waited for its next attempt.
#[test]
fn h9_a_letter_requeued_after_a_wait_of_its_key_is_sent() {
    let mut relay = relay(RelayOptions {
        policy: DeadLetterPolicy::Skip,
        ..options()
    });
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a"), row(2, "a"), row(3, "a")]);
    let first = sends(&mut relay).remove(0);
    answer(&mut relay, &first, failed("no"));
    let at = relay.next_timeout().expect("waits");
    relay.on_timeout(at);
    let again = sends(&mut relay).remove(0);
    answer(&mut relay, &again, Answer::Applied);
    assert!(matches!(relay.poll_read(), Some(Read::Key { .. })));
    relay.on_rows(&rows(vec![row(2, "a"), dead(3, "a")]));
    let second = sends(&mut relay).remove(0);
    assert_eq!(second.position, Position(2));
    relay.on_requeued(NOW, &row(3, "a"), low_water(1));
    answer(&mut relay, &second, Answer::Applied);
    assert_eq!(positions(&mut relay), [3]);
}

/// H9: and one that is discarded holds nothing when its key comes to it, nor is it sent.
#[test]
fn h9_a_letter_discarded_while_its_key_is_busy_holds_nothing() {
    for policy in [DeadLetterPolicy::HoldKey, DeadLetterPolicy::Skip] {
        let (mut relay, first) = behind_a_requeued_one(policy);
        relay.on_discarded(NOW, &row(2, "a"), low_water(9));
        answer(&mut relay, &first, Answer::Applied);
        assert_eq!(positions(&mut relay), [], "{policy:?}");
        assert!(!relay.is_held(&row(2, "a").key), "{policy:?}");
        assert_eq!(relay.counts(), (0, 0), "{policy:?}");
    }
}

/// H9: a cancellation follows the requeue that made it possible, and may be heard before it.
#[test]
fn h9_a_letter_cancelled_while_its_key_is_busy_is_sent() {
    for policy in [DeadLetterPolicy::HoldKey, DeadLetterPolicy::Skip] {
        let (mut relay, first) = behind_a_requeued_one(policy);
        relay.on_cancelled(NOW, &row(2, "a"), low_water(9));
        relay.on_requeued(NOW, &row(2, "a"), low_water(9));
        answer(&mut relay, &first, Answer::Applied);
        let second = sends(&mut relay).remove(0);
        answer(&mut relay, &second, Answer::Settled);
        let settled = relay.poll_settlement().expect("both are settled");
        assert_eq!(settled.cancelled, [Position(2)], "{policy:?}");
    }
}
