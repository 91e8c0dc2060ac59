//! Rot in what was synced once: unreadable is not empty, and a torn tail is not rot (L3, L7, traps A10).

mod log_support;

use log_support::{
    BLOCK, Dice, State, accepted, batch, create, identity, open, random_batch, segment, segments_of, written,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use synod_coordinator::log::report::{CorruptPlace, Damage, OpenReport, Torn};
use synod_coordinator::log::{Disk, Log, LogError, MemoryDisk, Opened, ReadError};
use synod_coordinator_core::durable::{Batch, Meta, Recovered};
use synod_coordinator_core::paxos::{Ballot, Slot};

/// Four batches of one block each, so that batch `n` begins at block `n`.
fn four_batches() -> [Batch; 4] {
    [
        batch(
            1,
            0,
            3,
            vec![
                accepted(1, 1, "one"),
                accepted(2, 1, "two"),
                accepted(3, 1, "three"),
            ],
        ),
        batch(1, 2, 5, vec![accepted(4, 1, "four"), accepted(5, 1, "five")]),
        batch(
            2,
            2,
            6,
            vec![accepted(3, 2, "three, again"), accepted(6, 2, "six")],
        ),
        batch(2, 4, 7, vec![accepted(7, 2, "seven")]),
    ]
}

fn ballots(slots: &[(u64, u64)]) -> BTreeMap<Slot, Ballot> {
    slots
        .iter()
        .map(|(slot, round)| (Slot(*slot), log_support::ballot(*round)))
        .collect()
}

fn unreadable(slots: &[u64]) -> BTreeSet<Slot> {
    slots.iter().copied().map(Slot).collect()
}

fn corrupt(opened: &Opened<MemoryDisk>) -> &[CorruptPlace] {
    assert_eq!(opened.report.torn, None, "corruption is never cut");
    &opened.report.corrupt
}

fn position_of(disk: &MemoryDisk, number: u64, text: &str) -> usize {
    let file = disk.contents(&segment(number)).expect("it exists");
    file.windows(text.len())
        .position(|window| window == text.as_bytes())
        .expect("the value is in it")
}

/// The rule of L3: what was decided before the gap is known, what no replica state behind the gap covers was not in
/// it, a later record is the latest; everything between is unknown.
#[test]
fn a_lost_batch_makes_every_slot_unreadable_that_it_may_have_held() {
    let batches = four_batches();
    let disk = written(segments_of(8), &batches);
    disk.flip(&segment(1), 3 * BLOCK + 60, 3);
    let opened = open(&disk, segments_of(8)).expect("corruption is no error");
    let expected = Recovered {
        meta: batches[3].meta.clone(),
        readable: ballots(&[(1, 1), (2, 1), (7, 2)]),
        unreadable: unreadable(&[3, 4, 5, 6]),
    };
    assert_eq!(opened.recovered, expected);
    let damage = Damage::Batches {
        count: 1,
        first: Slot(3),
        up_to: Slot(6),
    };
    assert_eq!(
        corrupt(&opened),
        [CorruptPlace {
            segment: 1,
            offset: 3 * BLOCK as u64,
            damage
        }]
    );
    assert!(matches!(
        opened.log.read(Slot(4)),
        Err(ReadError::Unreadable { slot: Slot(4) })
    ));
    let range = opened.log.read_range(Slot(1)..=Slot(7), usize::MAX);
    assert!(matches!(range, Err(ReadError::Unreadable { slot: Slot(3) })));
    assert_eq!(
        opened
            .log
            .read_range(Slot(1)..=Slot(2), usize::MAX)
            .expect("readable")
            .len(),
        2
    );
}

#[test]
fn a_rotten_value_costs_its_own_slot_and_no_older_value_stands_in_for_it() {
    let batches = four_batches();
    let disk = written(segments_of(8), &batches);
    let at = position_of(&disk, 1, "three, again");
    disk.flip(&segment(1), at, 0);
    let opened = open(&disk, segments_of(8)).expect("opens");
    let expected = Recovered {
        meta: batches[3].meta.clone(),
        readable: ballots(&[(1, 1), (2, 1), (4, 1), (5, 1), (6, 2), (7, 2)]),
        unreadable: unreadable(&[3]),
    };
    assert_eq!(opened.recovered, expected);
    let damage = Damage::Value { slot: Slot(3) };
    assert_eq!(
        corrupt(&opened),
        [CorruptPlace {
            segment: 1,
            offset: at as u64,
            damage
        }]
    );
}

#[test]
fn a_rotten_value_that_was_replaced_costs_nothing() {
    let batches = four_batches();
    let disk = written(segments_of(8), &batches);
    disk.flip(&segment(1), position_of(&disk, 1, "three"), 0);
    let opened = open(&disk, segments_of(8)).expect("opens");
    assert_eq!(State::of(&opened), State::after(&batches));
    assert_eq!(corrupt(&opened).len(), 1, "it is reported all the same");
}

#[test]
fn a_later_record_heals_a_slot_for_this_life_and_the_next() {
    let disk = written(segments_of(8), &four_batches());
    disk.flip(&segment(1), 3 * BLOCK + 60, 3);
    let mut opened = open(&disk, segments_of(8)).expect("opens");
    opened
        .log
        .append(&batch(3, 4, 7, vec![accepted(4, 3, "repaired")]))
        .expect("appends");
    assert_eq!(
        opened.log.read(Slot(4)).expect("readable"),
        Some(accepted(4, 3, "repaired"))
    );
    let again = open(&disk, segments_of(8)).expect("opens");
    assert_eq!(again.recovered.unreadable, unreadable(&[3, 5, 6]));
    assert_eq!(
        again.log.read(Slot(4)).expect("readable"),
        Some(accepted(4, 3, "repaired"))
    );
}

/// Bytes that vanish altogether are noticed by the gap in the batches' numbers.
#[test]
fn a_batch_that_turned_to_zeros_is_missed() {
    let disk = written(segments_of(8), &four_batches());
    disk.overwrite(&segment(1), 3 * BLOCK..4 * BLOCK, 0);
    let opened = open(&disk, segments_of(8)).expect("opens");
    assert_eq!(opened.recovered.unreadable, unreadable(&[3, 4, 5, 6]));
}

#[test]
fn a_missing_segment_in_the_middle_is_corruption_of_all_it_held() {
    let batches = four_batches();
    // One batch a segment: `expected` is what lies between the prefix decided before the gap and the highest slot
    // accepted behind it, less what the batches behind it hold themselves.
    for (gone, expected) in [(1, vec![1, 2]), (2, vec![1, 2, 4, 5]), (3, vec![3, 4, 5, 6])] {
        let disk = written(segments_of(1), &batches);
        disk.remove(&segment(gone)).expect("removed");
        let opened = open(&disk, segments_of(1)).expect("opens");
        assert_eq!(
            opened.recovered.unreadable,
            unreadable(&expected),
            "segment {gone}"
        );
        assert_eq!(opened.recovered.meta, batches[3].meta);
        assert!(matches!(
            corrupt(&opened),
            [CorruptPlace {
                damage: Damage::Batches { count: 1, .. },
                ..
            }]
        ));
    }
}

#[test]
fn a_sector_that_cannot_be_read_is_damage_like_any_other() {
    let disk = written(segments_of(8), &four_batches());
    disk.spoil(&segment(1), 3 * BLOCK + 1000);
    let opened = open(&disk, segments_of(8)).expect("opens");
    assert_eq!(opened.recovered.unreadable, unreadable(&[3, 4, 5, 6]));
}

#[test]
fn rot_after_the_start_is_an_error_and_not_a_wrong_or_missing_value() {
    let disk = written(segments_of(8), &four_batches());
    let opened = open(&disk, segments_of(8)).expect("opens");
    let at = position_of(&disk, 1, "five");
    disk.flip(&segment(1), at + 1, 7);
    let error = opened.log.read(Slot(5)).expect_err("rotten");
    assert!(
        matches!(error, ReadError::Corrupt { slot: Slot(5), segment: 1, offset } if offset == at as u64),
        "{error}"
    );
    assert!(matches!(
        opened.log.read_range(Slot(4)..=Slot(6), usize::MAX),
        Err(ReadError::Corrupt { .. })
    ));
    assert!(opened.log.load(drop).is_err());
    assert!(opened.log.read(Slot(4)).expect("readable").is_some());
}

/// The stated limit: what looks like the write that a crash interrupted is cut.
#[test]
fn damage_in_the_last_batch_alone_is_a_torn_tail() {
    let batches = four_batches();
    for at in [
        4 * BLOCK + 3,
        4 * BLOCK + 100,
        position_of(&written(segments_of(8), &batches), 1, "seven"),
    ] {
        let disk = written(segments_of(8), &batches);
        disk.flip(&segment(1), at, 1);
        let opened = open(&disk, segments_of(8)).expect("opens");
        assert_eq!(State::of(&opened), State::after(&batches[..3]));
        let torn = Some(Torn {
            segment: 1,
            offset: 4 * BLOCK as u64,
            bytes: BLOCK as u64,
        });
        assert_eq!(
            opened.report,
            OpenReport {
                segment_count: 1,
                batch_count: 3,
                torn,
                ..OpenReport::default()
            }
        );
        let file = disk.contents(&segment(1)).expect("it exists");
        assert!(
            file[4 * BLOCK..].iter().all(|byte| *byte == 0),
            "nothing is left to come back"
        );
        assert_eq!(open(&disk, segments_of(8)).expect("opens").report.torn, None);
    }
}

/// An orderly stop leaves a batch without records behind: the limit is that of a crashed replica only.
#[test]
fn after_an_orderly_stop_damage_in_the_last_records_is_corruption() {
    let batches = four_batches();
    let (disk, mut log) = create(segments_of(8));
    for batch in &batches {
        log.append(batch).expect("appends");
    }
    log.close().expect("closes");
    disk.flip(&segment(1), position_of(&disk, 1, "seven"), 1);
    let opened = open(&disk, segments_of(8)).expect("opens");
    assert_eq!(opened.recovered.unreadable, unreadable(&[7]));
    assert_eq!(opened.recovered.meta, batches[3].meta);
}

/// L7: an unreadable promise is no promise. More damage at the end than one write explains is refused, untouched.
#[test]
fn a_log_that_may_have_lost_its_last_promise_does_not_open() {
    type Damaging = fn(&MemoryDisk);
    let damage: [(&str, Damaging); 5] = [
        ("two headers", |disk| {
            disk.flip(&segment(3), BLOCK + 60, 1);
            disk.flip(&segment(3), 2 * BLOCK + 60, 1);
        }),
        ("a value, and the header behind it", |disk| {
            disk.flip(&segment(3), position_of(disk, 3, "value 5"), 1);
            disk.flip(&segment(3), 2 * BLOCK + 60, 1);
        }),
        ("two segments", |disk| {
            disk.flip(&segment(2), 2 * BLOCK + 60, 1);
            disk.overwrite(&segment(3), BLOCK..3 * BLOCK, 0x55);
        }),
        ("a file cut short", |disk| disk.truncate(&segment(3), 2 * BLOCK)),
        ("all of a segment", |disk| {
            disk.overwrite(&segment(3), 0..3 * BLOCK, 0x55);
        }),
    ];
    let batches: Vec<Batch> = (1..=6)
        .map(|slot| batch(1, 0, slot, vec![accepted(slot, 1, format!("value {slot}"))]))
        .collect();
    for (what, damage) in damage {
        let disk = written(segments_of(2), &batches);
        damage(&disk);
        let before: Vec<_> = (1..=3).map(|number| disk.contents(&segment(number))).collect();
        let opened = open(&disk, segments_of(2));
        assert!(
            matches!(opened, Err(LogError::EndLost { .. })),
            "{what}: {opened:?}"
        );
        let after: Vec<_> = (1..=3).map(|number| disk.contents(&segment(number))).collect();
        assert!(before == after, "{what}: a log that is refused is left as it is");
    }
}

#[test]
fn a_log_that_ends_before_a_segment_that_was_ready_does_not_open() {
    let batches: Vec<Batch> = (1..=3)
        .map(|slot| batch(1, 0, slot, vec![accepted(slot, 1, "v")]))
        .collect();
    let disk = written(segments_of(1), &batches);
    // The fourth batch creates segment 4, and does not arrive in it.
    let mut log = open(&disk, segments_of(1)).expect("opens").log;
    disk.halt(5);
    log.append(&batch(2, 0, 3, vec![])).expect_err("stopped");
    let crashed = disk.crash(|_| 0);
    assert!(crashed.contents(&segment(4)).is_some());
    // Segment 3 had the last promise.
    crashed.remove(&segment(3)).expect("removed");
    assert!(matches!(
        open(&crashed, segments_of(1)),
        Err(LogError::EndLost { segment: 3, .. })
    ));
}

/// L3, A10: a segment has its name since it was whole. Cut to nothing, within its header or at its end, the last segment
/// lost batches that were synced, and promises with them: it is never taken for one that was being made.
#[test]
fn l3_a_last_segment_that_was_cut_short_is_never_taken_for_an_empty_one() {
    let batches = four_batches();
    for (what, written_count) in [
        ("holds batches", 4),
        ("is the log's only one", 1),
        ("was never used", 3),
    ] {
        let disk = MemoryDisk::default();
        Log::create(&Arc::new(disk.clone()), &identity(), segments_of(1)).expect("creates");
        let mut log = open(&disk, segments_of(1)).expect("opens").log;
        for batch in &batches[..written_count] {
            log.append(batch).expect("appends");
        }
        if what == "was never used" {
            log.make_next_segment().expect("makes it");
        }
        drop(log);
        let last = disk.list().expect("lists").pop().expect("a segment");
        let whole = disk.contents(&last).expect("it exists").len();
        for length in [0, 1, 50, 93, 94, BLOCK - 1, BLOCK, BLOCK + 1, whole - 1] {
            let cut = disk.fork();
            cut.truncate(&last, length);
            let opened = open(&cut, segments_of(1));
            assert!(
                matches!(opened, Err(LogError::EndLost { .. })),
                "{what}, cut to {length}: {opened:?}"
            );
            let left = cut
                .contents(&last)
                .expect("a log that is refused is left as it is");
            assert_eq!(left.len(), length);
        }
    }
}

/// L3: a segment without a header that holds no batch is whole only where all but one byte of the header says so.
#[test]
fn l3_a_segment_without_its_header_is_not_known_to_be_empty() {
    let disk = written(segments_of(2), &four_batches()[..2]);
    let mut log = open(&disk, segments_of(2)).expect("opens").log;
    log.make_next_segment().expect("makes it");
    drop(log);
    let rotten = |byte: usize, bit: u8| {
        let disk = disk.fork();
        disk.flip(&segment(2), byte, bit);
        disk
    };
    for byte in 0..94 {
        let opened = open(&rotten(byte, 3), segments_of(2)).expect("one rotten byte is known to be one");
        assert_eq!(State::of(&opened), State::after(&four_batches()[..2]));
        let place = CorruptPlace {
            segment: 2,
            offset: 0,
            damage: Damage::SegmentHeader,
        };
        assert_eq!(corrupt(&opened), [place]);
    }
    let twice = rotten(40, 3);
    twice.flip(&segment(2), 41, 3);
    let zeros = disk.fork();
    zeros.overwrite(&segment(2), 0..3 * BLOCK, 0);
    for damaged in [twice, zeros] {
        let opened = open(&damaged, segments_of(2));
        assert!(
            matches!(opened, Err(LogError::EndLost { segment: 2, .. })),
            "{opened:?}"
        );
    }
}

/// L3: the segment made ahead of need shows that the one before it held a batch, if nothing else does.
#[test]
fn l3_the_segment_behind_shows_that_the_last_batch_was_synced() {
    let disk = written(segments_of(1), &four_batches());
    let cut = disk.fork();
    cut.flip(&segment(4), BLOCK + 60, 1);
    let opened = open(&cut, segments_of(1)).expect("the limit: it looks like a torn write");
    assert!(opened.report.torn.is_some());
    open(&disk, segments_of(1))
        .expect("opens")
        .log
        .make_next_segment()
        .expect("makes it");
    let damage: [fn(&MemoryDisk); 2] = [
        |disk| disk.flip(&segment(4), BLOCK + 60, 1),
        |disk| disk.overwrite(&segment(4), BLOCK..2 * BLOCK, 0),
    ];
    for damage in damage {
        let damaged = disk.fork();
        damage(&damaged);
        let opened = open(&damaged, segments_of(1));
        assert!(
            matches!(opened, Err(LogError::EndLost { segment: 4, .. })),
            "{opened:?}"
        );
    }
}

/// One flipped bit anywhere in a log: it changes nothing, or what it costs is reported, or it is in the last
/// batch and that one is cut.
#[test]
fn a_flipped_bit_in_any_sector_never_loses_anything_silently() {
    let mut dice = Dice(11);
    let mut batches = Vec::new();
    let (disk, mut log) = create(segments_of(5));
    let mut meta = Meta::default();
    while batches.len() < 14 {
        let next = random_batch(&meta, &mut dice, 3 * BLOCK);
        log.append(&next).expect("appends");
        meta = next.meta.clone();
        batches.push(next);
    }
    drop(log);
    let (whole, cut) = (
        State::after(&batches),
        State::after(&batches[..batches.len() - 1]),
    );
    let closed = disk.fork();
    open(&closed, segments_of(5))
        .expect("opens")
        .log
        .close()
        .expect("closes");
    assert!(
        disk.contents(&segment(4)).is_some(),
        "the log is long enough to have sealed segments"
    );

    let (mut untouched, mut reported, mut torn) = (0, 0, 0);
    for name in disk.list().expect("lists") {
        let length = disk.contents(&name).expect("it exists").len();
        for (sector, closes) in
            (0..length / 512).flat_map(|sector| [(sector, false), (sector, true)].repeat(4))
        {
            // Structure lies at the beginning of sectors, values anywhere.
            let byte = sector * 512 + [dice.roll(512), dice.roll(96)][dice.roll(2)];
            let bit = dice.byte() % 8;
            let rotten = if closes { closed.fork() } else { disk.fork() };
            rotten.flip(&name, byte, bit);
            let opened =
                open(&rotten, segments_of(5)).unwrap_or_else(|error| panic!("{name} {byte}: {error}"));
            let state = State::of(&opened);
            if state == whole {
                untouched += 1;
                continue;
            }
            if !closes && state == cut && opened.report.torn.is_some() {
                torn += 1;
                continue;
            }
            reported += 1;
            assert_eq!(state.meta, whole.meta, "{name} {byte}");
            assert!(
                !opened.report.corrupt.is_empty() && opened.report.torn.is_none(),
                "{name} {byte}"
            );
            for (slot, value) in &whole.values {
                let found = state.values.get(slot);
                assert!(
                    found == Some(value) || (found.is_none() && state.unreadable.contains(slot)),
                    "{name} {byte}: slot {slot}"
                );
            }
            // The next start says the same: nothing was cleaned away.
            assert_eq!(State::of(&open(&rotten, segments_of(5)).expect("opens")), state);
        }
    }
    assert!(
        untouched > 20 && reported > 20 && torn > 0,
        "{untouched} {reported} {torn}"
    );
}
