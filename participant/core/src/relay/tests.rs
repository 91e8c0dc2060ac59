//! The relay on paper: one situation, one step, the whole answer. `cancelled.rs` has what an operator takes back, `trouble.rs` what
//! keys and topics in trouble do to the others, `late.rs` what is heard late; `random.rs` plays it against an executable model.

mod cancelled;
mod late;
mod random;
mod trouble;

use super::*;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

const NOW: Timestamp = Timestamp(1_000_000);

fn options() -> RelayOptions {
    RelayOptions {
        attempt_count_max: 3,
        backoff_first: Duration::from_millis(100),
        backoff_max: Duration::from_secs(1),
        ..RelayOptions::default()
    }
}

fn relay(options: RelayOptions) -> Relay {
    Relay::new(options, 7, Fence(0), low_water(1), &[])
}

fn low_water(mark: u64) -> LowWater {
    LowWater {
        mark: Position(mark),
        unsettled: Vec::new(),
    }
}

fn row(position: u64, key: &'static str) -> Row {
    Row {
        position: Position(position),
        topic: Bytes::from_static(b"t"),
        key: Bytes::from_static(key.as_bytes()),
        byte_count: 10,
        failed_count: 0,
        is_dead: false,
    }
}

fn dead(position: u64, key: &'static str) -> Row {
    Row {
        is_dead: true,
        ..row(position, key)
    }
}

fn rows(rows: Vec<Row>) -> Rows {
    Rows {
        up_to: rows.last().map_or(Position(0), |row| row.position),
        rows,
        is_end: true,
    }
}

fn read(relay: &mut Relay, found: Vec<Row>) {
    relay.on_published();
    assert!(matches!(relay.poll_read(), Some(Read::All { .. })));
    relay.on_rows(&rows(found));
}

fn sends(relay: &mut Relay) -> Vec<Send> {
    core::iter::from_fn(|| relay.poll_send(NOW)).collect()
}

fn positions(relay: &mut Relay) -> Vec<u64> {
    sends(relay).iter().map(|send| send.position.0).collect()
}

fn answer(relay: &mut Relay, send: &Send, answer: Answer) {
    relay
        .on_answer(NOW, send.session, send.position, send.fence, answer)
        .expect("in flight");
}

fn failed(text: &str) -> Answer {
    Answer::Failed { text: text.into() }
}

const S: RelaySession = RelaySession(1);
const T: RelaySession = RelaySession(2);

/// H4, H10: of one key one message at a time, in the order of positions; keys do not wait for each other.
#[test]
fn a_key_sends_its_next_message_when_the_one_before_is_acknowledged() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a"), row(2, "a"), row(3, "b")]);
    let first = sends(&mut relay);
    assert_eq!(
        first,
        [
            Send {
                session: S,
                position: Position(1),
                fence: Fence(1),
                attempt: 1,
                previous: None
            },
            Send {
                session: S,
                position: Position(3),
                fence: Fence(2),
                attempt: 1,
                previous: None
            }
        ]
    );
    answer(&mut relay, &first[0], Answer::Applied);
    assert_eq!(
        sends(&mut relay),
        [Send {
            session: S,
            position: Position(2),
            fence: Fence(3),
            attempt: 1,
            previous: Some(Position(1))
        }]
    );
    let settled = relay.poll_settlement().expect("something to write");
    assert_eq!(settled.delivered, [Position(1)]);
    assert!(settled.failed.is_empty() && settled.dead.is_empty());
}

/// H5: two relays never have one key at once, and each key goes wherever there is room.
#[test]
fn two_sessions_share_the_keys() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    relay.on_session_opened(NOW, T);
    read(
        &mut relay,
        vec![row(1, "a"), row(2, "a"), row(3, "b"), row(4, "c")],
    );
    let sent: Vec<_> = sends(&mut relay)
        .iter()
        .map(|send| (send.session, send.position.0))
        .collect();
    assert_eq!(sent, [(S, 1), (T, 3), (S, 4)]);
}

/// A session that breaks loses nothing and fails nothing: what was in flight is pending again, with a fence above the old one.
#[test]
fn a_lost_session_puts_its_messages_back() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a"), row(2, "a")]);
    let before = sends(&mut relay);
    relay.on_session_closed(S);
    assert!(sends(&mut relay).is_empty(), "there is no session");
    relay.on_session_opened(NOW, T);
    let after = sends(&mut relay);
    assert_eq!(
        after,
        [Send {
            session: T,
            position: Position(1),
            fence: Fence(2),
            attempt: 2,
            previous: None
        }]
    );
    let late = relay.on_answer(NOW, S, Position(1), before[0].fence, Answer::Applied);
    assert_eq!(late, Err(Ignored::UnknownSession));
    let stale = relay.on_answer(NOW, T, Position(1), before[0].fence, Answer::Applied);
    assert_eq!(stale, Err(Ignored::NotInFlight));
    assert!(relay.poll_settlement().is_none());
}

/// A consumer that is away for however long makes no dead letter.
#[test]
fn only_answers_count_as_failures() {
    let mut relay = relay(options());
    read(&mut relay, vec![row(1, "a")]);
    for number in 1..100 {
        relay.on_session_opened(NOW, RelaySession(number));
        assert_eq!(positions(&mut relay), [1]);
        relay.on_session_closed(RelaySession(number));
    }
    assert!(relay.poll_settlement().is_none());
}

/// B19: a failed message waits, doubled and jittered up to the cap; others go on meanwhile.
#[test]
fn b19_a_failed_message_waits_and_holds_back_its_key_alone() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(
        &mut relay,
        vec![row(1, "a"), row(2, "a"), row(3, "b"), row(4, "b")],
    );
    let first = sends(&mut relay);
    answer(&mut relay, &first[0], failed("no"));
    answer(&mut relay, &first[1], Answer::Applied);
    assert_eq!(positions(&mut relay), [4]);
    let at = relay.next_timeout().expect("waits");
    let delay = at.duration_since(NOW);
    assert!(
        delay >= Duration::from_millis(50) && delay <= Duration::from_millis(100),
        "{delay:?}"
    );
    relay.on_timeout(at);
    let again = sends(&mut relay);
    assert_eq!((again[0].position, again[0].attempt), (Position(1), 2));
    let settled = relay.poll_settlement().expect("something to write");
    let failure = Failure {
        position: Position(1),
        failed_count: 1,
        reason: "no".into(),
    };
    assert_eq!(
        settled,
        Settlement {
            delivered: vec![Position(3)],
            failed: vec![failure],
            ..Settlement::default()
        }
    );
}

fn fail_until_dead(relay: &mut Relay) -> Settlement {
    let mut written = Settlement::default();
    for _ in 0..3 {
        let sent = sends(relay);
        let send = sent
            .iter()
            .find(|send| send.position == Position(1))
            .expect("is tried");
        answer(relay, send, failed("poison"));
        if let Some(at) = relay
            .next_timeout()
            .filter(|at| at.duration_since(NOW) < Duration::from_secs(1))
        {
            relay.on_timeout(at);
        }
        written = relay.poll_settlement().expect("something to write");
        if written.dead.is_empty() {
            relay.on_settled(NOW, true, &written, low_water(1));
        }
    }
    assert_eq!(
        written.dead,
        [Failure {
            position: Position(1),
            failed_count: 3,
            reason: "poison".into()
        }]
    );
    assert!(
        positions(relay).iter().all(|sent| *sent > 2),
        "waits for the disk"
    );
    written
}

/// H9: after N failures a message is dead, and holds back its own key only, until an operator decides.
#[test]
fn h9_a_dead_letter_holds_its_own_key() {
    for is_requeued in [true, false] {
        let mut relay = relay(options());
        relay.on_session_opened(NOW, S);
        read(&mut relay, vec![row(1, "a"), row(2, "a")]);
        let written = fail_until_dead(&mut relay);
        relay.on_settled(NOW, true, &written, low_water(1));
        assert!(relay.is_held(&row(1, "a").key));
        read(&mut relay, vec![row(3, "b"), row(4, "a")]);
        assert_eq!(positions(&mut relay), [3]);
        if is_requeued {
            relay.on_requeued(NOW, &row(1, "a"), low_water(1));
            assert_eq!(positions(&mut relay), [1]);
        } else {
            relay.on_discarded(NOW, &row(1, "a"), low_water(1));
            let Some(Read::Key { after, .. }) = relay.poll_read() else {
                panic!("the key's rows are read again")
            };
            assert_eq!(after, Position(1));
            relay.on_rows(&rows(vec![row(2, "a"), row(4, "a")]));
            assert_eq!(positions(&mut relay), [2]);
        }
    }
}

/// H9, as configured: the key goes on without it, but not before the dead letter is on disk.
#[test]
fn a_skipped_dead_letter_lets_its_key_go_on() {
    let mut relay = relay(RelayOptions {
        policy: DeadLetterPolicy::Skip,
        ..options()
    });
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a"), row(2, "a")]);
    let written = fail_until_dead(&mut relay);
    relay.on_settled(NOW, true, &written, low_water(1));
    // It was shed while the first one failed, and is read again.
    if let Some(Read::Key { .. }) = relay.poll_read() {
        relay.on_rows(&rows(vec![row(2, "a")]));
    }
    let second = sends(&mut relay);
    assert_eq!(second.iter().map(|send| send.position.0).collect::<Vec<_>>(), [2]);
    relay.on_requeued(NOW, &row(1, "a"), low_water(1));
    answer(&mut relay, &second[0], Answer::Applied);
    assert_eq!(positions(&mut relay), [1]);
}

/// The operator's word may overtake the relay's own write of the dead letter.
#[test]
fn an_operator_who_is_faster_than_the_write_is_heard() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a")]);
    let written = fail_until_dead(&mut relay);
    relay.on_requeued(NOW, &row(1, "a"), low_water(1));
    assert_eq!(positions(&mut relay), [1]);
    relay.on_settled(NOW, true, &written, low_water(1));
    assert!(!relay.is_held(&row(1, "a").key));
}

/// What was dead or requeued at the start lies below the mark, and is known all the same.
#[test]
fn letters_below_the_mark_are_taken_up_at_the_start() {
    let letters = [dead(3, "a"), row(5, "b")];
    let mut relay = Relay::new(options(), 7, Fence(1 << 40), low_water(9), &letters);
    relay.on_session_opened(NOW, S);
    assert_eq!(positions(&mut relay), [5]);
    assert!(relay.is_held(&row(3, "a").key));
    assert_eq!(
        relay.poll_read(),
        Some(Read::All {
            after: Position(8),
            count_max: READ_COUNT_MAX
        })
    );
}

/// A key with a million messages leaves room for the others, and none of its own are forgotten.
#[test]
fn a_long_key_does_not_fill_the_window() {
    let mut relay = relay(options());
    let found: Vec<Row> = (1..=500)
        .map(|n| row(n, "long"))
        .chain([row(501, "short")])
        .collect();
    read(&mut relay, found);
    assert_eq!(relay.counts().0, KEY_QUEUE_COUNT_MAX + 1);
    relay.on_session_opened(NOW, S);
    let mut applied = Vec::new();
    loop {
        while let Some(asked) = relay.poll_read() {
            let after = match asked {
                Read::Key { after, .. } => after.0,
                Read::All { .. } => 501,
                Read::Topic { .. } => panic!("nothing of the topic was left"),
            };
            let found = (after + 1..=500)
                .take(KEY_QUEUE_COUNT_MAX)
                .map(|n| row(n, "long"))
                .collect::<Vec<_>>();
            let up_to = found.last().map_or(Position(after), |row| row.position);
            relay.on_rows(&Rows {
                is_end: up_to.0 >= 500,
                rows: found,
                up_to,
            });
        }
        let sent = sends(&mut relay);
        if sent.is_empty() {
            break;
        }
        for send in sent {
            applied.push(send.position.0);
            answer(&mut relay, &send, Answer::Applied);
        }
    }
    applied.retain(|position| *position != 501);
    assert_eq!(applied, (1..=500).collect::<Vec<_>>());
    assert_eq!(relay.counts(), (0, 0));
}

/// Memory is bounded: reading stops at a full window, and a session's messages and bytes have their limits.
#[test]
fn the_window_and_the_sessions_are_bounded() {
    let mut relay = relay(options());
    let mut position = 0u64;
    while let Some(Read::All { count_max, .. }) = relay.poll_read() {
        let found: Vec<Row> = (0..count_max as u64)
            .map(|_| {
                position += 1;
                Row {
                    key: Bytes::copy_from_slice(&position.to_be_bytes()),
                    byte_count: 100_000,
                    ..row(position, "")
                }
            })
            .collect();
        let up_to = Position(position);
        relay.on_rows(&Rows {
            rows: found,
            up_to,
            is_end: false,
        });
    }
    assert!(relay.counts().0 <= WINDOW_COUNT_MAX);
    relay.on_session_opened(NOW, S);
    assert_eq!(sends(&mut relay).len(), TOPIC_SHARE_BYTES_MAX / 100_000);
}

/// Keys take turns: one with much to do does not come again before the others.
#[test]
fn keys_take_turns() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(
        &mut relay,
        vec![row(1, "a"), row(2, "a"), row(3, "b"), row(4, "c")],
    );
    let mut order = Vec::new();
    let mut waiting: VecDeque<Send> = sends(&mut relay).into();
    while let Some(send) = waiting.pop_front() {
        order.push(send.position.0);
        answer(&mut relay, &send, Answer::Applied);
        waiting.extend(sends(&mut relay));
    }
    assert_eq!(order, [1, 3, 4, 2]);
}

/// H15: a consumer that has fallen silent is left, one that answers slowly is not.
#[test]
fn a_silent_session_is_given_up() {
    let mut relay = relay(options());
    let timeout = options().answer_timeout;
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a"), row(2, "b")]);
    let sent = sends(&mut relay);
    let later = NOW.plus_duration(timeout / 2);
    relay
        .on_answer(later, S, Position(1), sent[0].fence, Answer::Applied)
        .expect("in flight");
    relay.on_timeout(NOW.plus_duration(timeout));
    assert_eq!(relay.poll_lost(), None);
    relay.on_timeout(later.plus_duration(timeout));
    assert_eq!(relay.poll_lost(), Some(S));
}

/// H8: the inbox is told what it may forget when that is on disk, in groups, and again by the next session until it has confirmed.
#[test]
fn h8_the_low_water_mark_is_told_until_it_is_confirmed() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    relay.on_timeout(NOW.plus_duration(LOW_WATER_DELAY));
    assert_eq!(relay.poll_low_water(), Some((S, low_water(1))));
    relay.on_low_water_reached(Position(1));
    relay.on_settled(NOW, true, &Settlement::default(), low_water(5));
    assert_eq!(relay.poll_low_water(), None, "not for each message");
    relay.on_timeout(NOW.plus_duration(LOW_WATER_DELAY));
    assert_eq!(relay.poll_low_water(), Some((S, low_water(5))));
    assert_eq!(relay.poll_low_water(), None);
    relay.on_session_closed(S);
    relay.on_session_opened(NOW, T);
    relay.on_timeout(NOW.plus_duration(LOW_WATER_DELAY));
    assert_eq!(
        relay.poll_low_water(),
        Some((T, low_water(5))),
        "nobody has confirmed it"
    );
    relay.on_low_water_reached(Position(5));
    relay.on_settled(NOW, true, &Settlement::default(), low_water(5 + LOW_WATER_COUNT));
    assert_eq!(
        relay.poll_low_water(),
        Some((T, low_water(5 + LOW_WATER_COUNT))),
        "many at once"
    );
}

/// A write that failed is written again, whole and in order.
#[test]
fn a_failed_write_is_repeated() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a"), row(2, "a")]);
    let first = sends(&mut relay);
    answer(&mut relay, &first[0], Answer::Applied);
    let written = relay.poll_settlement().expect("something to write");
    let second = sends(&mut relay);
    answer(&mut relay, &second[0], Answer::Duplicate);
    assert_eq!(relay.poll_settlement(), None, "one at a time");
    relay.on_settle_failed(written);
    let again = relay.poll_settlement().expect("something to write");
    assert_eq!(again.delivered, [Position(1), Position(2)]);
}

/// A consumer that has seen a later sending says nothing about the message; that it does so is told once.
#[test]
fn stale_is_no_failure_and_has_a_reason() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a")]);
    for _ in 0..20 {
        let sent = sends(&mut relay);
        answer(&mut relay, &sent[0], Answer::Stale);
        let at = relay.timers.next().expect("waits");
        relay.on_timeout(at.plus_duration(Duration::from_secs(2)));
    }
    let settled = relay.poll_settlement().expect("why it waits");
    let failures: Vec<_> = settled
        .failed
        .iter()
        .map(|failure| failure.failed_count)
        .collect();
    assert_eq!((failures, settled.dead), (vec![0], vec![]));
    assert!(settled.failed[0].reason.contains("a later sending"));
}

/// What was dropped for the consumer by name while it was on its way frees its key, and is recorded nowhere.
#[test]
fn a_message_that_was_dropped_frees_its_key() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a"), row(2, "a")]);
    let send = &sends(&mut relay)[0];
    let dropped = |relay: &mut Relay, fence| relay.on_dropped(NOW, S, send.position, fence);
    assert_eq!(dropped(&mut relay, Fence(99)), Err(Ignored::NotInFlight));
    assert_eq!(dropped(&mut relay, send.fence), Ok(()));
    assert_eq!(dropped(&mut relay, send.fence), Err(Ignored::NotInFlight));
    assert_eq!(relay.poll_settlement(), None);
    assert_eq!(positions(&mut relay), [2]);
}

/// T11: a database that was readmitted is not asked for what an earlier one acknowledged, and is told the mark anew.
#[test]
fn a_readmitted_consumer_owes_nothing_of_an_earlier_one() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a"), row(2, "a")]);
    let first = sends(&mut relay).remove(0);
    answer(&mut relay, &first, Answer::Applied);
    let settlement = relay.poll_settlement().expect("one is delivered");
    relay.on_settled(NOW, true, &settlement, low_water(300));
    assert_eq!(relay.poll_low_water(), Some((S, low_water(300))));
    relay.on_low_water_reached(Position(300));
    relay.on_session_closed(S);

    relay.on_readmitted(NOW);
    relay.on_session_opened(NOW, T);
    let second = sends(&mut relay).remove(0);
    assert_eq!((second.position, second.previous), (Position(2), None));
    assert_eq!(relay.poll_low_water(), Some((T, low_water(300))));
}
