//! The bytes on disk, pinned: a log that was written must be readable by every later version (traps J9).

mod log_support;

use log_support::{BLOCK, State, accepted, batch, open, segment, segments_of, written};
use synod_coordinator::log::{Disk, DiskFile, LogError, MemoryDisk};
use synod_coordinator_core::durable::Batch;

fn golden_batches() -> [Batch; 2] {
    [
        batch(1, 0, 2, vec![accepted(1, 1, "one"), accepted(2, 1, "")]),
        batch(2, 1, 2, vec![accepted(2, 2, "two")]),
    ]
}

/// Offset and bytes of everything in segment 1 that is not zero padding.
const GOLDEN: &[(usize, &str)] = &[
    (
        0,
        "53594e4f444c4f47020000000010000001000000000000000050000000000000696e6361726e6174696f6e2d30313233\
         020474657374000000000000000000000000000000000000000000000000000000000000000000000000ab7653fa",
    ),
    (
        4096,
        "53594e4f44424154c6000000c90000000100000000000000010000000000000001000000000000000010000000000000\
         010000000000000001030000000000000001000000000000000000000000000000020000000000000001000307070707\
         070707070707070707070707020000000000000009090909090909090200000001000000000000000100000000000000\
         0103000000000000000300000061d7d8400200000000000000010000000000000001030000000000000000000000ba01\
         caa4f5263a296f6e65",
    ),
    (
        8192,
        "53594e4f44424154a5000000a80000000100000000000000020000000000000001000000000000000020000000000000\
         020000000000000001030000000000000001000000000000000100000000000000020000000000000001000307070707\
         070707070707070707070707020000000000000009090909090909090100000002000000000000000200000000000000\
         0103000000000000000300000099b8ea84fc6432f874776f",
    ),
];

#[test]
fn the_format_is_what_it_was() {
    let disk = written(segments_of(4), &golden_batches());
    let file = disk.contents(&segment(1)).expect("it exists");
    let mut expected = vec![0; 5 * BLOCK];
    for (offset, bytes) in GOLDEN {
        let bytes = hex::decode(bytes).expect("hexadecimal");
        expected[*offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    let print = |file: &[u8]| {
        let end = |block: &[u8]| {
            block
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1)
        };
        file.chunks(BLOCK)
            .map(|block| hex::encode(&block[..end(block)]))
            .collect::<Vec<_>>()
    };
    assert_eq!(print(&file), print(&expected));
}

/// The other direction: the golden bytes alone are a log (traps J9).
#[test]
fn a_log_of_format_2_is_read() {
    let disk = MemoryDisk::default();
    let file = disk.create(&segment(1), 5 * BLOCK as u64).expect("creates");
    for (offset, bytes) in GOLDEN {
        file.write_at(&hex::decode(bytes).expect("hexadecimal"), *offset as u64)
            .expect("writes");
    }
    let opened = open(&disk, segments_of(4)).expect("opens");
    assert_eq!(State::of(&opened), State::after(&golden_batches()));
}

#[test]
fn a_later_format_is_refused_and_left_alone() {
    let disk = written(segments_of(4), &golden_batches());
    let mut header = disk.contents(&segment(1)).expect("it exists")[..BLOCK].to_vec();
    header[8..12].copy_from_slice(&3u32.to_le_bytes());
    let checksum = crc32c::crc32c(&header[..90]);
    header[90..94].copy_from_slice(&checksum.to_le_bytes());
    disk.open(&segment(1))
        .expect("opens")
        .write_at(&header, 0)
        .expect("writes");
    let before = disk.contents(&segment(1));
    assert!(matches!(
        open(&disk, segments_of(4)),
        Err(LogError::UnknownFormat {
            found: 3,
            known: 2,
            ..
        })
    ));
    assert_eq!(disk.contents(&segment(1)), before);
}
