//! Crashes at any moment, with any part of what was not synced on the disk: nothing synced is lost, nothing is made up
//! (L2, L7).

mod log_support;

use log_support::{
    BLOCK, Dice, State, accepted, batch, create, identity, open, random_batch, segment, segments_of,
    unfinished, written,
};
use proptest::prelude::*;
use std::io;
use std::sync::Arc;
use synod_coordinator::log::{Disk, Log, LogError, MemoryDisk};
use synod_coordinator_core::durable::{Batch, Meta};

/// How a crash picks, for every sector and name that was not synced, what is left of it.
#[derive(Clone, Copy, Debug)]
enum Crash {
    /// Nothing arrived.
    Nothing,
    /// Everything arrived.
    Everything,
    /// The first so many sectors arrived.
    Prefix(usize),
    /// Any of them.
    Subset(u64),
}

impl Crash {
    fn image(self, disk: &MemoryDisk) -> MemoryDisk {
        let mut dice = Dice(if let Self::Subset(seed) = self { seed } else { 0 });
        let mut count = 0;
        disk.crash(|bound| {
            count += 1;
            match self {
                Self::Nothing => 0,
                Self::Everything => bound - 1,
                Self::Prefix(arrived) => usize::from(count <= arrived) * (bound - 1),
                Self::Subset(_) => dice.roll(bound),
            }
        })
    }
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![
        Just(Crash::Nothing),
        Just(Crash::Everything),
        (0usize..40).prop_map(Crash::Prefix),
        any::<u64>().prop_map(Crash::Subset),
        any::<u64>().prop_map(Crash::Subset),
    ]
}

/// One life of a process: how many operations its disk takes before the machine stops, how that leaves the disk, and
/// whether the next start stops as well, after so many operations.
#[derive(Clone, Debug)]
struct Life {
    operations: u64,
    crash: Crash,
    interrupted_start: Option<(u64, Crash)>,
}

fn life() -> impl Strategy<Value = Life> {
    (0u64..30, crash(), proptest::option::of((0u64..4, crash()))).prop_map(
        |(operations, crash, interrupted_start)| Life {
            operations,
            crash,
            interrupted_start,
        },
    )
}

fn live(blocks: u64, lives: &[Life], seed: u64) {
    let options = segments_of(blocks);
    let mut dice = Dice(seed);
    let (mut disk, log) = create(options);
    drop(log);
    let mut batches: Vec<Batch> = Vec::new();
    for life in lives {
        let mut opened = open(&disk, options).expect("a crashed log opens");
        assert_eq!(State::of(&opened), State::after(&batches));
        disk.halt(life.operations);
        let mut meta = batches
            .last()
            .map_or_else(Meta::default, |batch| batch.meta.clone());
        let interrupted = loop {
            let next = random_batch(&meta, &mut dice, 3 * BLOCK);
            match opened.log.append(&next) {
                Ok(()) => {
                    meta = next.meta.clone();
                    batches.push(next);
                }
                Err(_) => break next,
            }
        };
        disk = life.crash.image(&disk);
        if let Some((operations, crash)) = life.interrupted_start {
            disk.halt(operations);
            open(&disk, options).ok();
            disk = crash.image(&disk);
        }
        let opened = open(&disk, options).expect("a crashed log opens");
        let state = State::of(&opened);
        assert!(
            opened.report.corrupt.is_empty(),
            "a crash is not corruption: {:?}",
            opened.report
        );
        let mut with_interrupted = batches.clone();
        with_interrupted.push(interrupted);
        // The interrupted batch may have arrived whole; then it counts from now on.
        if state == State::after(&with_interrupted) {
            batches = with_interrupted;
        } else {
            assert_eq!(
                state,
                State::after(&batches),
                "what was synced is there, and nothing else"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    /// L7: whatever a power cut leaves of the last writes, the synced batches are there, and nothing that was never written.
    #[test]
    fn a_crash_loses_nothing_synced_and_invents_nothing(
        blocks in 1u64..12,
        lives in proptest::collection::vec(life(), 1..6),
        seed in any::<u64>(),
    ) {
        live(blocks, &lives, seed);
    }

    /// Bytes that nobody wrote never panic the start, whatever they are.
    #[test]
    fn arbitrary_damage_never_panics(
        seed in any::<u64>(),
        damage in proptest::collection::vec((any::<u32>(), 1usize..5000, any::<u8>()), 1..6),
    ) {
        let mut dice = Dice(seed);
        let options = segments_of(4);
        let (disk, mut log) = create(options);
        let mut meta = Meta::default();
        for _ in 0..8 {
            let next = random_batch(&meta, &mut dice, 2 * BLOCK);
            meta = next.meta.clone();
            log.append(&next).expect("appends");
        }
        drop(log);
        for (at, length, byte) in damage {
            let number = u64::from(at % 3) + 1;
            if let Some(file) = disk.contents(&segment(number)) {
                let start = at as usize / 3 % file.len();
                disk.overwrite(&segment(number), start..(start + length).min(file.len()), byte);
            }
        }
        if let Ok(opened) = open(&disk, options) {
            let found = State::of(&opened);
            prop_assert!(found.meta.accepted_up_to <= meta.accepted_up_to);
        }
    }
}

/// A longer batch is torn, a shorter one takes its place, and the machine stops again: what was left of the longer one
/// must not come back behind it.
#[test]
fn what_is_left_of_a_torn_batch_never_comes_back() {
    // Some blocks, and more than is zeroed at once.
    for blocks in [4, 700] {
        let options = segments_of(1000);
        let short = |slot| batch(1, 0, slot, vec![accepted(slot, 1, "short")]);
        let long = batch(1, 0, 2, vec![accepted(2, 1, vec![9; blocks * BLOCK])]);
        let (disk, mut log) = create(options);
        log.append(&short(1)).expect("appends");
        disk.halt(1);
        log.append(&long).expect_err("stopped");
        // All of it but the first sector arrives.
        let mut is_first = true;
        let disk = disk.crash(|bound| usize::from(!std::mem::take(&mut is_first)) * (bound - 1));

        let mut opened = open(&disk, options).expect("opens");
        let torn = opened.report.torn.expect("a torn tail");
        assert!(torn.bytes >= (blocks * BLOCK) as u64);
        let rest = disk
            .contents(&segment(1))
            .expect("it exists")
            .split_off(2 * BLOCK);
        assert!(rest.iter().all(|byte| *byte == 0));
        opened.log.append(&short(2)).expect("appends");
        let disk = disk.crash(|_| 0);
        let opened = open(&disk, options).expect("opens");
        assert_eq!(opened.report.torn, None);
        assert_eq!(State::of(&opened), State::after(&[short(1), short(2)]));
    }
}

/// The operations of a segment's making: creation, header, its sync, the name, the sync of the directory.
const MAKING: u64 = 5;

fn every_crash() -> impl Iterator<Item = Crash> {
    let subsets = (0..40).map(Crash::Subset);
    [Crash::Nothing, Crash::Everything].into_iter().chain(subsets)
}

/// Every moment of the making of a log: afterwards there is none yet, or an empty one, and making it again works.
#[test]
fn a_crash_while_a_log_is_made_leaves_it_to_be_made_again() {
    for operations in 0..MAKING {
        for crash in every_crash() {
            let disk = MemoryDisk::default();
            disk.halt(operations);
            let made = Log::create(&Arc::new(disk.clone()), &identity(), segments_of(2));
            assert!(made.is_err());
            let disk = crash.image(&disk);
            match open(&disk, segments_of(2)) {
                Ok(opened) => assert_eq!(State::of(&opened), State::default()),
                Err(error) => assert!(matches!(error, LogError::NoSegments), "{error}"),
            }
            // What the directory does with a log whose making it had not finished.
            for name in disk.list().expect("lists") {
                disk.remove(&name).expect("removed");
            }
            Log::create(&Arc::new(disk.clone()), &identity(), segments_of(2)).expect("creates");
            assert_eq!(
                State::of(&open(&disk, segments_of(2)).expect("opens")),
                State::default()
            );
        }
    }
}

/// L3, A10: every moment of the making of the next segment, ahead of need or when it is needed, with any part of it on the
/// disk, and again while what it left is removed: nothing synced is lost, nothing is taken for corruption, and the log
/// goes on.
#[test]
fn l3_a_crash_at_every_step_of_a_segments_making_costs_nothing() {
    let options = segments_of(2);
    let batches: Vec<Batch> = (1..=2)
        .map(|slot| batch(1, 0, slot, vec![accepted(slot, 1, format!("value {slot}"))]))
        .collect();
    let third = batch(1, 0, 3, vec![accepted(3, 1, "value 3")]);
    let (mut left_unfinished, mut left_ready) = (0, 0);
    for is_ahead in [false, true] {
        for operations in 0..MAKING {
            for crash in every_crash() {
                let disk = written(options, &batches);
                let mut log = open(&disk, options).expect("opens").log;
                disk.halt(operations);
                if is_ahead {
                    log.make_next_segment().expect_err("stopped");
                } else {
                    log.append(&third).expect_err("stopped");
                }
                let disk = crash.image(&disk);
                left_unfinished += u64::from(disk.contents(&unfinished(2)).is_some());
                left_ready += u64::from(disk.contents(&segment(2)).is_some());
                // The start stops as well, at its first operations.
                for again in 0..4 {
                    let disk = disk.fork();
                    disk.halt(again);
                    open(&disk, options).ok();
                    check_goes_on(&crash.image(&disk), &batches, &third);
                }
                check_goes_on(&disk, &batches, &third);
            }
        }
    }
    assert!(
        left_unfinished > 20 && left_ready > 20,
        "{left_unfinished} {left_ready}"
    );
}

fn check_goes_on(disk: &MemoryDisk, batches: &[Batch], third: &Batch) {
    let options = segments_of(2);
    let before = disk.contents(&unfinished(2)).is_some();
    let mut opened = open(disk, options).expect("a crashed log opens");
    assert_eq!(State::of(&opened), State::after(batches));
    assert_eq!(opened.report.corrupt, []);
    assert_eq!(opened.report.torn, None);
    assert_eq!(opened.report.unfinished.len(), usize::from(before));
    assert_eq!(
        disk.contents(&unfinished(2)),
        None,
        "what was being made is removed"
    );
    opened.log.append(third).expect("goes on");
    let disk = disk.crash(|_| 0);
    let mut all = batches.to_vec();
    all.push(third.clone());
    assert_eq!(
        State::of(&open(&disk, options).expect("opens")),
        State::after(&all)
    );
}

/// A making that fails, by any of its operations, leaves nothing in the way of the next try or the next start.
#[test]
fn a_making_that_failed_is_tried_once_more_and_overwrites_nothing() {
    let options = segments_of(2);
    let first = batch(1, 0, 1, vec![accepted(1, 1, "v")]);
    for failing in 0..MAKING {
        // With the removal of what it left behind, or without.
        for second_failing in [None, Some(failing + 1)] {
            let disk = written(options, std::slice::from_ref(&first));
            let mut log = open(&disk, options).expect("opens").log;
            disk.fail(failing, io::ErrorKind::Other);
            if let Some(second) = second_failing {
                disk.fail(second, io::ErrorKind::Other);
            }
            let error = log.make_next_segment().expect_err("failed");
            assert!(matches!(error, LogError::Broken { .. }), "{error}");
            disk.mend();
            let tried_again = log.make_next_segment();
            // A name that could not be taken back is left alone: the next start uses the segment.
            let is_named = disk.contents(&segment(2)).is_some();
            assert!(tried_again.is_ok() || (is_named && second_failing.is_some()));
            drop(log);
            let mut opened = open(&disk, options).expect("opens");
            assert_eq!(State::of(&opened), State::after(std::slice::from_ref(&first)));
            for slot in 2..6 {
                let next = batch(1, 0, slot, vec![accepted(slot, 1, "w")]);
                opened.log.append(&next).expect("goes on");
            }
        }
    }
}
