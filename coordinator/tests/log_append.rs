//! Appending, reading and starting again, on a disk that does its duty or says that it does not (L2, L7, L9).

mod log_support;

use log_support::{
    BLOCK, State, accepted, batch, create, identity, open, segment, segments_of, unfinished, written,
};
use std::io;
use std::sync::Arc;
use synod_coordinator::log::{
    Disk, FileDisk, Identity, Log, LogError, MemoryDisk, OpenReport, Options, ReadError,
};
use synod_coordinator_core::durable::{Batch, Recovered};
use synod_coordinator_core::paxos::Slot;
use synod_proto::ids::ReplicaId;

fn slots(first: u64, up_to: u64) -> std::ops::RangeInclusive<Slot> {
    Slot(first)..=Slot(up_to)
}

#[test]
fn a_new_log_is_empty() {
    let (disk, log) = create(segments_of(4));
    drop(log);
    let opened = open(&disk, segments_of(4)).expect("opens");
    assert_eq!(opened.recovered, Recovered::default());
    assert_eq!(
        opened.report,
        OpenReport {
            segment_count: 1,
            ..OpenReport::default()
        }
    );
    assert_eq!(opened.log.read(Slot(1)).expect("no error"), None);
}

#[test]
fn what_was_appended_is_found_again() {
    let batches = [
        batch(1, 0, 0, vec![]),
        batch(1, 0, 2, vec![accepted(1, 1, "one"), accepted(2, 1, "")]),
        batch(
            2,
            1,
            3,
            vec![accepted(2, 2, "two, again"), accepted(3, 2, vec![3; 9000])],
        ),
    ];
    let disk = written(segments_of(8), &batches);
    let opened = open(&disk, segments_of(8)).expect("opens");
    assert_eq!(State::of(&opened), State::after(&batches));
    let report = OpenReport {
        segment_count: 1,
        batch_count: 3,
        ..OpenReport::default()
    };
    assert_eq!(opened.report, report);
}

#[test]
fn for_one_slot_the_later_record_wins_within_a_batch_too() {
    let batches = [batch(
        2,
        0,
        1,
        vec![accepted(1, 1, "first"), accepted(1, 2, "second")],
    )];
    let opened = open(&written(segments_of(4), &batches), segments_of(4)).expect("opens");
    assert_eq!(
        opened.log.read(Slot(1)).expect("readable"),
        Some(accepted(1, 2, "second"))
    );
}

#[test]
fn full_segments_are_left_behind_and_a_large_batch_gets_a_segment_of_its_own() {
    let large = vec![5; 5 * BLOCK];
    let batches = [
        batch(1, 0, 1, vec![accepted(1, 1, "a")]),
        batch(1, 0, 2, vec![accepted(2, 1, "b")]),
        batch(1, 0, 3, vec![accepted(3, 1, large)]),
        batch(1, 0, 4, vec![accepted(4, 1, "c")]),
    ];
    let disk = written(segments_of(2), &batches);
    let lengths: Vec<_> = (1..=4)
        .map(|number| disk.contents(&segment(number)).map(|file| file.len()))
        .collect();
    assert_eq!(lengths, [Some(3 * BLOCK), Some(7 * BLOCK), Some(3 * BLOCK), None]);
    assert_eq!(
        State::of(&open(&disk, segments_of(2)).expect("opens")),
        State::after(&batches)
    );
}

#[test]
fn the_segment_length_may_change_between_starts() {
    let mut batches: Vec<Batch> = (1..=5)
        .map(|slot| batch(1, 0, slot, vec![accepted(slot, 1, "v")]))
        .collect();
    let disk = written(segments_of(2), &batches);
    let mut log = open(&disk, segments_of(9)).expect("opens").log;
    for slot in 6..=20 {
        batches.push(batch(1, 5, slot, vec![accepted(slot, 1, "w")]));
        log.append(batches.last().expect("pushed")).expect("appends");
    }
    assert_eq!(
        State::of(&open(&disk, segments_of(3)).expect("opens")),
        State::after(&batches)
    );
}

#[test]
fn a_batch_costs_one_write_and_one_sync() {
    let (disk, mut log) = create(segments_of(8));
    let before = disk.operation_count();
    log.append(&batch(
        1,
        0,
        2,
        vec![accepted(1, 1, "a"), accepted(2, 1, vec![1; 9000])],
    ))
    .expect("appends");
    assert_eq!(disk.operation_count() - before, 2);
}

#[test]
fn a_range_read_stops_at_its_bound_and_leaves_gaps_out() {
    let records = vec![
        accepted(1, 1, vec![1; 10]),
        accepted(2, 1, vec![2; 10]),
        accepted(5, 1, vec![5; 10]),
    ];
    let (_disk, mut log) = create(segments_of(4));
    log.append(&batch(1, 0, 5, records.clone())).expect("appends");
    assert_eq!(
        log.read_range(slots(1, 9), usize::MAX).expect("readable"),
        records
    );
    assert_eq!(log.read_range(slots(1, 9), 20).expect("readable"), records[..2]);
    assert_eq!(
        log.read_range(slots(2, 9), 5).expect("readable"),
        records[1..2],
        "at least one"
    );
    assert_eq!(log.read_range(slots(3, 4), 5).expect("readable"), []);
    let (first, up_to) = (Slot(2), Slot(1));
    assert_eq!(log.read_range(first..=up_to, 5).expect("readable"), []);
}

/// L9: after a failed write the log answers with that error and touches the disk no more.
#[test]
fn after_a_failed_write_or_sync_every_call_answers_the_first_error() {
    for failing in [0, 1] {
        let (disk, mut log) = create(segments_of(4));
        log.append(&batch(1, 0, 1, vec![accepted(1, 1, "kept")]))
            .expect("appends");
        disk.fail(failing, io::ErrorKind::TimedOut);
        let first = log
            .append(&batch(1, 0, 2, vec![accepted(2, 1, "lost")]))
            .expect_err("the disk failed");
        assert!(
            matches!(&first, LogError::Broken { source, .. } if source.kind() == io::ErrorKind::TimedOut)
        );
        let operations = disk.operation_count();
        let second = log.append(&batch(1, 0, 2, vec![])).expect_err("poisoned");
        assert_eq!(first.to_string(), second.to_string());
        assert_eq!(disk.operation_count(), operations, "a sync is never tried again");
        assert_eq!(log.read(Slot(1)).expect("readable"), Some(accepted(1, 1, "kept")));
        assert_eq!(
            log.read(Slot(2)).expect("readable"),
            None,
            "nothing rests on a failed write (L2)"
        );
        assert!(log.close().is_err());
    }
}

/// Traps A11: the page cache shows what a failed sync lost. What a start reports must be on the platter by then.
#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_made_durable_before_it_is_reported() {
    let (disk, mut log) = create(segments_of(4));
    let batches = [
        batch(1, 0, 1, vec![accepted(1, 1, "one")]),
        batch(2, 0, 2, vec![accepted(2, 2, "two")]),
    ];
    log.append(&batches[0]).expect("appends");
    disk.fail(1, io::ErrorKind::Other);
    log.append(&batches[1]).expect_err("the sync failed");
    drop(log);
    // Without a start in between, the power cut shows the loss.
    assert_eq!(
        State::of(&open(&disk.crash(|_| 0), segments_of(4)).expect("opens")),
        State::after(&batches[..1])
    );
    // The process restarts, the machine does not.
    assert_eq!(
        State::of(&open(&disk, segments_of(4)).expect("opens")),
        State::after(&batches)
    );
    assert_eq!(
        State::of(&open(&disk.crash(|_| 0), segments_of(4)).expect("opens")),
        State::after(&batches)
    );
}

/// L9: a full disk is told apart, between two batches; reads go on, and freeing space and a restart are enough.
#[test]
fn a_full_disk_is_found_at_the_end_of_a_segment_and_not_in_a_batch() {
    let (disk, mut log) = create(segments_of(2));
    disk.limit(Some(2 * 3 * BLOCK as u64));
    let mut batches = Vec::new();
    let error = loop {
        let slot = batches.len() as u64 + 1;
        let next = batch(1, 0, slot, vec![accepted(slot, 1, "v")]);
        match log.append(&next) {
            Ok(()) => batches.push(next),
            Err(error) => break error,
        }
    };
    assert_eq!(batches.len(), 4, "two segments of two");
    assert!(error.is_full() && matches!(error, LogError::Full { segment: 3, .. }));
    assert!(log.append(&batches[3]).expect_err("poisoned").is_full());
    assert_eq!(
        log.read_range(slots(1, 9), usize::MAX).expect("readable").len(),
        4
    );
    drop(log);
    disk.limit(None);
    let mut opened = open(&disk, segments_of(2)).expect("opens");
    assert_eq!(State::of(&opened), State::after(&batches));
    opened
        .log
        .append(&batch(1, 0, 5, vec![accepted(5, 1, "v")]))
        .expect("there is room again");
}

#[test]
fn a_segment_that_cannot_be_created_for_another_reason_is_a_broken_disk() {
    let (disk, mut log) = create(segments_of(2));
    log.append(&batch(1, 0, 0, vec![])).expect("appends");
    log.append(&batch(1, 0, 0, vec![])).expect("appends");
    disk.fail(0, io::ErrorKind::PermissionDenied);
    let error = log.append(&batch(1, 0, 0, vec![])).expect_err("no next segment");
    assert!(matches!(error, LogError::Broken { .. }) && !error.is_full());
}

/// Segments that a crash left unused: one that was ready is used, one that was half made is removed.
#[test]
fn an_unused_segment_behind_the_last_batch_does_no_harm() {
    let batches = [
        batch(1, 0, 1, vec![accepted(1, 1, "v")]),
        batch(1, 0, 2, vec![accepted(2, 1, "w")]),
    ];
    let usable = written(segments_of(2), &batches);
    let third = batch(1, 0, 3, vec![accepted(3, 1, "x")]);
    // The third batch begins segment 2; its write does not arrive.
    let mut log = open(&usable, segments_of(2)).expect("opens").log;
    usable.halt(5);
    log.append(&third).expect_err("stopped");
    let usable = usable.crash(|_| 0);
    let half_made = usable.fork();
    half_made
        .rename(&segment(2), &unfinished(2))
        .expect("has another name");
    half_made.truncate(&unfinished(2), BLOCK - 7);
    for (disk, left) in [(usable, segment(2)), (half_made, unfinished(2))] {
        assert!(disk.contents(&left).is_some());
        let mut opened = open(&disk, segments_of(2)).expect("opens");
        assert_eq!(State::of(&opened), State::after(&batches));
        assert_eq!(opened.report.torn, None);
        assert_eq!(disk.contents(&unfinished(2)), None);
        opened.log.append(&third).expect("appends");
        let all = [batches[0].clone(), batches[1].clone(), third.clone()];
        assert_eq!(
            State::of(&open(&disk, segments_of(2)).expect("opens")),
            State::after(&all)
        );
    }
}

/// L10, traps J4: a log of somebody else is refused, and stays as it is.
#[test]
fn a_log_of_another_replica_cluster_or_directory_is_refused() {
    let disk = written(segments_of(2), &[batch(1, 0, 1, vec![accepted(1, 1, "v")])]);
    let before = disk.contents(&segment(1));
    let others = [
        Identity {
            cluster: "other".parse().expect("a cluster id"),
            ..identity()
        },
        Identity {
            replica: ReplicaId(1),
            ..identity()
        },
        Identity {
            incarnation: synod_proto::ids::Incarnation([1; 16]),
            ..identity()
        },
    ];
    for other in others {
        let error = Log::open(Arc::new(disk.clone()), other, segments_of(2)).expect_err("foreign");
        assert!(matches!(error, LogError::Foreign { .. }), "{error}");
    }
    assert_eq!(disk.contents(&segment(1)), before);

    let empty = MemoryDisk::default();
    assert!(matches!(open(&empty, segments_of(2)), Err(LogError::NoSegments)));
}

#[test]
#[should_panic(expected = "a promise never falls")]
fn a_batch_that_takes_a_promise_back_does_not_reach_the_disk() {
    let (_disk, mut log) = create(segments_of(2));
    log.append(&batch(2, 0, 0, vec![])).expect("appends");
    log.append(&batch(1, 0, 0, vec![])).ok();
}

#[test]
#[should_panic(expected = "meta covers every record")]
fn a_batch_whose_meta_does_not_cover_its_records_does_not_reach_the_disk() {
    let (_disk, mut log) = create(segments_of(2));
    log.append(&batch(1, 0, 1, vec![accepted(2, 1, "v")])).ok();
}

#[test]
fn the_log_works_on_real_files() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = Arc::new(FileDisk::new(directory.path()));
    let options = segments_of(3);
    Log::create(&disk, &identity(), options).expect("creates");
    let mut batches = Vec::new();
    for round in 1..=4 {
        let mut opened = Log::open(Arc::clone(&disk), identity(), options).expect("opens");
        assert_eq!(State::of(&opened), State::after(&batches));
        for slot in round * 10..round * 10 + 5 {
            let value = vec![7; usize::try_from(slot * 130).expect("small")];
            batches.push(batch(round, 0, slot, vec![accepted(slot, round, value)]));
            opened
                .log
                .append(batches.last().expect("pushed"))
                .expect("appends");
        }
    }
    let opened = Log::open(Arc::clone(&disk), identity(), options).expect("opens");
    assert_eq!(State::of(&opened), State::after(&batches));
    assert!(
        opened.report.segment_count > 3 && opened.report.corrupt.is_empty() && opened.report.torn.is_none()
    );
    assert_eq!(
        disk.create(&segment(1), 1).expect_err("it exists").kind(),
        io::ErrorKind::AlreadyExists
    );
}

#[test]
fn a_segment_is_never_shorter_than_its_header_and_one_batch() {
    let options = Options { segment_bytes: 1 };
    let batches = [
        batch(1, 0, 1, vec![accepted(1, 1, "v")]),
        batch(1, 0, 2, vec![accepted(2, 1, "w")]),
    ];
    let disk = written(options, &batches);
    assert_eq!(disk.contents(&segment(2)).map(|file| file.len()), Some(2 * BLOCK));
    assert_eq!(
        State::of(&open(&disk, options).expect("opens")),
        State::after(&batches)
    );
    assert!(matches!(
        open(&disk, options).expect("opens").log.read(Slot(3)),
        Ok(None)
    ));
    assert!(!matches!(
        open(&disk, options).expect("opens").log.read(Slot(1)),
        Err(ReadError::Corrupt { .. })
    ));
}
