//! What keys and topics in trouble do to the others: nothing.

use super::*;

/// A store that has what the test puts into it, and answers every read.
#[derive(Default)]
struct Shelf {
    rows: BTreeMap<u64, Row>,
    read_count: usize,
}

impl Shelf {
    fn put(&mut self, topic: &'static str, key: u64) {
        let position = self.rows.len() as u64 + 1;
        let key = alloc::format!("{topic} {key}");
        let row = Row {
            topic: Bytes::from_static(topic.as_bytes()),
            key: Bytes::from(key.into_bytes()),
            ..row(position, "")
        };
        self.rows.insert(position, row);
    }

    fn settle(&mut self, relay: &mut Relay) {
        while let Some(settlement) = relay.poll_settlement() {
            for position in &settlement.delivered {
                self.rows.remove(&position.0);
            }
            relay.on_settled(NOW, true, &settlement, low_water(1));
        }
    }

    /// Whatever is asked for, until there is room for no more.
    fn serve(&mut self, relay: &mut Relay) {
        relay.on_published();
        while let Some(asked) = relay.poll_read() {
            self.read_count += 1;
            let (after, count_max) = match &asked {
                Read::All { after, count_max }
                | Read::Topic { after, count_max, .. }
                | Read::Key { after, count_max, .. } => (after.0, *count_max),
            };
            let is_asked = |row: &&Row| match &asked {
                Read::All { .. } => true,
                Read::Topic { topic, .. } => row.topic == *topic,
                Read::Key { key, .. } => row.key == *key,
            };
            let found = self.rows.range(after + 1..).map(|(_, row)| row);
            let rows: Vec<Row> = found.filter(is_asked).take(count_max).cloned().collect();
            relay.on_rows(&Rows {
                is_end: rows.len() < count_max,
                up_to: rows.last().map_or(Position(after), |row| row.position),
                rows,
            });
        }
    }
}

fn busy() -> Answer {
    Answer::Busy {
        text: "no handler".into(),
    }
}

/// Answers all that is sent, until nothing is: what is applied.
fn exchange(relay: &mut Relay, shelf: &mut Shelf, mut answer_to: impl FnMut(u64) -> Answer) -> Vec<u64> {
    let mut applied = Vec::new();
    loop {
        shelf.serve(relay);
        let sent = sends(relay);
        if sent.is_empty() {
            return applied;
        }
        for send in sent {
            let reply = answer_to(send.position.0);
            if reply == Answer::Applied {
                applied.push(send.position.0);
            }
            answer(relay, &send, reply);
        }
        shelf.settle(relay);
    }
}

/// H9: however many keys wait for their next attempt, all others go on. With one window for both they stopped at 3,585.
#[test]
fn h9_keys_that_wait_fill_no_window() {
    let mut relay = relay(options());
    let mut shelf = Shelf::default();
    relay.on_session_opened(NOW, S);
    for key in 0..2 * WINDOW_COUNT_MAX as u64 {
        shelf.put("orders", key);
    }
    let last_refused = shelf.rows.len() as u64;
    for key in 0..100 {
        shelf.put("orders", 1_000_000 + key);
    }
    let applied = exchange(&mut relay, &mut shelf, |position| {
        if position <= last_refused {
            busy()
        } else {
            Answer::Applied
        }
    });
    assert_eq!(
        applied,
        (last_refused + 1..=last_refused + 100).collect::<Vec<_>>()
    );
    assert!(relay.full_topics().is_empty());
}

/// H9, G5: a topic without a handler stops no other one, however much of it waits, costs bounded memory, and is sent whole and in
/// order when the handler is there.
#[test]
fn h9_a_topic_of_which_too_many_keys_wait_is_left_in_the_store() {
    let mut relay = relay(options());
    let mut shelf = Shelf::default();
    relay.on_session_opened(NOW, S);
    let key_count = (WAITING_COUNT_MAX + 2 * WINDOW_COUNT_MAX) as u64;
    for key in 0..key_count {
        shelf.put("missing", key);
        if key.is_multiple_of(100) {
            shelf.put("orders", key);
        }
    }
    // Of a key that waits, and of one that was left.
    shelf.put("missing", 0);
    shelf.put("missing", key_count - 1);
    let is_missing: Vec<bool> = shelf
        .rows
        .values()
        .map(|row| &row.topic[..] == b"missing")
        .collect();
    let of = |position: u64| is_missing[usize::try_from(position - 1).unwrap()];
    let applied = exchange(&mut relay, &mut shelf, |position| {
        if of(position) { busy() } else { Answer::Applied }
    });
    assert_eq!(
        applied.len() as u64,
        key_count.div_ceil(100),
        "all of the other topic"
    );
    assert_eq!(relay.full_topics(), [Bytes::from_static(b"missing")]);
    assert!(relay.counts().0 <= WAITING_COUNT_MAX + WINDOW_COUNT_MAX);
    let reads = shelf.read_count;
    shelf.serve(&mut relay);
    assert!(shelf.read_count <= reads + 1, "it is not read again and again");
    // The handler is there.
    let mut applied = Vec::new();
    for _ in 0..100 {
        let now = NOW.plus_duration(Duration::from_secs(3600));
        relay.on_timeout(now);
        if let Some(session) = relay.poll_lost() {
            relay.on_session_closed(session);
            relay.on_session_opened(NOW, session);
        }
        applied.extend(exchange(&mut relay, &mut shelf, |_| Answer::Applied));
    }
    assert_eq!(applied.len() as u64, key_count + 2);
    let at = |position: u64| applied.iter().position(|applied| *applied == position);
    let last = is_missing.len() as u64;
    assert!(at(1) < at(last - 1), "the key that waited is in order");
    assert!(at(last - 2) < at(last), "the key that was left is in order");
    assert_eq!(relay.counts(), (0, 0));
    assert!(relay.full_topics().is_empty());
}

/// G5: why an attempt was not made is written once for each reason, and counts as no failure.
#[test]
fn g5_the_reason_of_a_refusal_is_written_and_does_not_count() {
    let mut relay = relay(options());
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a")]);
    let mut written = Vec::new();
    for text in ["no handler", "no handler", "the disk is full", "the disk is full"] {
        let sent = sends(&mut relay);
        answer(&mut relay, &sent[0], Answer::Busy { text: text.into() });
        if let Some(settlement) = relay.poll_settlement() {
            assert!(settlement.dead.is_empty() && settlement.delivered.is_empty());
            relay.on_settled(NOW, true, &settlement, low_water(1));
            written.extend(settlement.failed);
        }
        let at = relay.timers.next().expect("waits");
        relay.on_timeout(at.plus_duration(Duration::from_secs(2)));
    }
    let told = |reason: &str| Failure {
        position: Position(1),
        failed_count: 0,
        reason: reason.into(),
    };
    assert_eq!(written, [told("no handler"), told("the disk is full")]);
}

/// H9: unless told otherwise, a message is tried for more than five minutes before it is given up: an outage of what its handler
/// calls, or a restart, makes no dead letters.
#[test]
fn h9_a_short_outage_makes_no_dead_letter_by_default() {
    let mut relay = relay(RelayOptions::default());
    relay.on_session_opened(NOW, S);
    read(&mut relay, vec![row(1, "a")]);
    let mut now = NOW;
    let mut longest = Duration::ZERO;
    loop {
        let send = relay.poll_send(now).expect("is tried");
        relay
            .on_answer(now, S, send.position, send.fence, failed("not now"))
            .expect("in flight");
        let written = relay.poll_settlement().expect("something to write");
        if !written.dead.is_empty() {
            break;
        }
        relay.on_settled(now, true, &written, low_water(1));
        // The mark is told in between.
        while relay.timers.of(&Timer::LowWater) == relay.next_timeout() {
            now = relay.next_timeout().expect("waits");
            relay.on_timeout(now);
            let _ = relay.poll_low_water();
        }
        let at = relay.next_timeout().expect("waits");
        longest = longest.max(at.duration_since(now));
        now = at;
        relay.on_timeout(now);
    }
    let tried = now.duration_since(NOW);
    assert!(
        tried > Duration::from_secs(300) && tried < Duration::from_secs(700),
        "{tried:?}"
    );
    assert!(
        longest > Duration::from_secs(30),
        "the longest wait is reached: {longest:?}"
    );
}

/// A store that does not keep up is not outrun, and one that does gets full batches.
#[test]
fn results_that_cannot_be_written_stop_the_sending() {
    let mut relay = relay(options());
    let mut shelf = Shelf::default();
    relay.on_session_opened(NOW, S);
    for key in 0..3 * UNWRITTEN_COUNT_MAX as u64 {
        shelf.put("orders", key);
    }
    let mut answered = 0;
    loop {
        shelf.serve(&mut relay);
        let sent = sends(&mut relay);
        if sent.is_empty() {
            break;
        }
        answered += sent.len();
        for send in sent {
            answer(&mut relay, &send, Answer::Applied);
        }
    }
    assert!(answered < UNWRITTEN_COUNT_MAX + SESSION_COUNT_MAX, "{answered}");
    let batch = relay.poll_settlement().expect("something to write");
    assert_eq!(batch.delivered.len(), SETTLEMENT_COUNT_MAX);
    relay.on_settled(NOW, true, &batch, low_water(1));
    assert!(!sends(&mut relay).is_empty(), "there is room again");
}

/// H9: a topic whose handlers hang leaves room on the stream for another.
#[test]
fn h9_a_topic_that_hangs_does_not_fill_a_session() {
    let mut relay = relay(options());
    let mut shelf = Shelf::default();
    relay.on_session_opened(NOW, S);
    for key in 0..2 * SESSION_COUNT_MAX as u64 {
        shelf.put("hangs", key);
    }
    shelf.put("orders", 0);
    shelf.serve(&mut relay);
    let sent = sends(&mut relay);
    assert_eq!(sent.len(), TOPIC_SHARE_COUNT_MAX + 1);
    assert!(sent.iter().any(|send| send.position.0 == shelf.rows.len() as u64));
    relay.on_session_closed(S);
    relay.on_session_opened(NOW, T);
    assert_eq!(
        sends(&mut relay).len(),
        TOPIC_SHARE_COUNT_MAX + 1,
        "nothing is counted twice"
    );
}
