//! The storage thread: answers only after the sync, lets nobody wait for ever, and is gone when it says so (L2, L9,
//! traps A18).

mod log_support;

use log_support::{BLOCK, State, accepted, batch, identity, segment, segments_of};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use synod_coordinator::directory::{Directory, DirectoryError};
use synod_coordinator::log::{Disk, DiskFile, Log, LogError, MemoryDisk, ReadError, Storage};
use synod_coordinator_core::durable::Batch;
use synod_coordinator_core::paxos::Slot;
use synod_proto::ids::ReplicaId;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future)
        .await
        .expect("the storage thread answers")
}

fn one(slot: u64) -> Batch {
    batch(1, 0, slot, vec![accepted(slot, 1, format!("value {slot}"))])
}

fn start(disk: &MemoryDisk, blocks: u64) -> Storage {
    let shared = Arc::new(disk.clone());
    if disk.list().expect("lists").is_empty() {
        Log::create(&shared, &identity(), segments_of(blocks)).expect("creates");
    }
    let opened = Log::open(shared, identity(), segments_of(blocks)).expect("opens");
    Storage::start(opened.log).expect("a thread")
}

fn state(disk: &MemoryDisk, blocks: u64) -> State {
    State::of(&Log::open(Arc::new(disk.clone()), identity(), segments_of(blocks)).expect("opens"))
}

#[tokio::test]
async fn an_answered_append_outlives_a_power_cut_and_can_be_read() {
    let disk = MemoryDisk::default();
    let storage = start(&disk, 4);
    let batches: Vec<Batch> = (1..=40).map(one).collect();
    for (count, batch) in batches.iter().enumerate() {
        in_time(storage.append(batch.clone()))
            .await
            .expect("a sound disk");
        assert_eq!(state(&disk.crash(|_| 0), 4), State::after(&batches[..=count]));
        let slot = batch.accepted[0].slot;
        assert_eq!(
            in_time(storage.read_range(slot..=slot, 1))
                .await
                .expect("readable"),
            batch.accepted
        );
    }
    let all = in_time(storage.read_range(Slot(1)..=Slot(99), usize::MAX))
        .await
        .expect("readable");
    assert_eq!(
        all,
        batches
            .iter()
            .flat_map(|batch| batch.accepted.clone())
            .collect::<Vec<_>>()
    );
    in_time(storage.stop()).await.expect("an orderly stop");
    assert_eq!(state(&disk, 4), State::after(&batches));
}

/// L2: a write in the caller's thread is synced when it has returned, mixes with the thread's writes, and is left to the
/// thread where it would have to wait: for a write that is queued, or for the next segment.
#[tokio::test]
async fn an_append_in_the_callers_thread_is_as_durable() {
    let disk = MemoryDisk::default();
    let storage = start(&disk, 4);
    let batches: Vec<Batch> = (1..=40).map(one).collect();
    let mut handed_over_count = 0;
    for (count, batch) in batches.iter().enumerate() {
        match storage.append_now(batch) {
            Some(result) => result.expect("a sound disk"),
            None => {
                handed_over_count += 1;
                in_time(storage.append(batch.clone()))
                    .await
                    .expect("a sound disk");
            }
        }
        assert_eq!(state(&disk.crash(|_| 0), 4), State::after(&batches[..=count]));
    }
    // Four batches fill a segment, so every fourth one rolls; a thread that is busy with what it did before is waited
    // for as well.
    assert!(
        (9..40).contains(&handed_over_count),
        "{handed_over_count} batches went to the thread"
    );
    in_time(storage.stop()).await.expect("an orderly stop");
    assert_eq!(state(&disk, 4), State::after(&batches));
}

/// The next segment is made while this one fills, on another thread.
#[tokio::test]
async fn the_next_segment_is_ready_before_this_one_is_full() {
    let disk = MemoryDisk::default();
    let storage = start(&disk, 8);
    for slot in 1..=2 {
        in_time(storage.append(one(slot))).await.expect("appends");
    }
    let deadline = std::time::Instant::now() + DEADLINE;
    while disk.contents(&segment(2)).is_none() {
        assert!(std::time::Instant::now() < deadline, "no second segment");
        tokio::task::yield_now().await;
    }
    in_time(storage.stop()).await.expect("stops");
    assert_eq!(state(&disk, 8), State::after(&[one(1), one(2)]));
}

#[tokio::test]
async fn batches_asked_for_together_are_written_in_order_though_nobody_waits() {
    let disk = MemoryDisk::default();
    let storage = start(&disk, 4);
    let mut last = None;
    for slot in 1..=20 {
        last = Some(storage.append(one(slot)));
    }
    in_time(last.expect("asked")).await.expect("appends");
    in_time(storage.stop()).await.expect("stops");
    assert_eq!(
        state(&disk, 4),
        State::after(&(1..=20).map(one).collect::<Vec<_>>())
    );
}

/// L9: nothing is acknowledged after a failure, reads go on, and the stop says what happened.
#[tokio::test]
async fn a_failed_write_is_answered_as_such_for_ever() {
    let disk = MemoryDisk::default();
    // Long enough that no segment is prepared meanwhile, which would meet the fault instead.
    let storage = start(&disk, 64);
    in_time(storage.append(one(1))).await.expect("appends");
    disk.fail(1, io::ErrorKind::Other);
    for _ in 0..3 {
        let error = in_time(storage.append(one(2)))
            .await
            .expect_err("the disk failed");
        assert!(matches!(error, LogError::Broken { .. }));
    }
    let read = in_time(storage.read_range(Slot(1)..=Slot(9), usize::MAX))
        .await
        .expect("readable");
    assert_eq!(read, one(1).accepted);
    assert!(matches!(
        in_time(storage.stop()).await,
        Err(LogError::Broken { .. })
    ));
}

#[tokio::test]
async fn a_full_disk_is_answered_as_such_and_reads_go_on() {
    let disk = MemoryDisk::default();
    let storage = start(&disk, 4);
    disk.limit(Some(5 * BLOCK as u64));
    for slot in 1..=4 {
        in_time(storage.append(one(slot)))
            .await
            .expect("there is room in the segment");
    }
    assert!(
        in_time(storage.append(one(5)))
            .await
            .expect_err("no next segment")
            .is_full()
    );
    assert_eq!(
        in_time(storage.read_range(Slot(1)..=Slot(9), usize::MAX))
            .await
            .expect("readable")
            .len(),
        4
    );
    assert!(in_time(storage.stop()).await.expect_err("it failed").is_full());
}

#[tokio::test]
async fn space_that_is_freed_before_it_is_needed_is_taken() {
    let disk = MemoryDisk::default();
    let storage = start(&disk, 4);
    disk.limit(Some(5 * BLOCK as u64));
    // The next segment is prepared in vain.
    for slot in 1..=4 {
        in_time(storage.append(one(slot)))
            .await
            .expect("there is room in the segment");
    }
    disk.limit(None);
    in_time(storage.append(one(5)))
        .await
        .expect("there is room for the next");
    in_time(storage.stop()).await.expect("stops");
}

/// A disk whose writes panic once a batch contains a certain text.
#[derive(Debug)]
struct Panicking(MemoryDisk);

#[derive(Debug)]
struct PanickingFile<F>(F);

impl Disk for Panicking {
    type File = PanickingFile<<MemoryDisk as Disk>::File>;

    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn open(&self, name: &str) -> io::Result<Self::File> {
        self.0.open(name).map(PanickingFile)
    }

    fn create(&self, name: &str, length: u64) -> io::Result<Self::File> {
        self.0.create(name, length).map(PanickingFile)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.0.sync_directory()
    }
}

impl<F: DiskFile> DiskFile for PanickingFile<F> {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        assert!(
            !data.windows(5).any(|window| window == b"panic"),
            "as the test asked"
        );
        self.0.write_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

#[tokio::test]
async fn a_panic_of_the_storage_thread_is_a_failed_write() {
    let disk = Arc::new(Panicking(MemoryDisk::default()));
    Log::create(&disk, &identity(), segments_of(4)).expect("creates");
    let opened = Log::open(disk, identity(), segments_of(4)).expect("opens");
    let storage = Storage::start(opened.log).expect("a thread");
    let failed = storage.append(batch(1, 0, 1, vec![accepted(1, 1, "panic")]));
    assert!(matches!(in_time(failed).await, Err(LogError::Stopped)));
    assert!(matches!(
        in_time(storage.append(one(2))).await,
        Err(LogError::Stopped)
    ));
    let read = storage.read_range(Slot(1)..=Slot(1), 1);
    assert!(matches!(in_time(read).await, Err(ReadError::Stopped)));
    assert!(matches!(in_time(storage.stop()).await, Err(LogError::Stopped)));
}

/// Traps A18: whoever starts a replica again on the same directory finds it free once the old one is gone, and the old
/// one's last write in it.
#[tokio::test]
async fn when_the_storage_is_gone_its_directory_is_free() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let path = temporary.path().join("data");
    let open = |path: &Path| {
        Directory::open(
            path,
            &"test".parse().expect("a cluster id"),
            ReplicaId(1),
            &[ReplicaId(1)].into(),
            segments_of(4),
        )
    };
    let mut batches = Vec::new();
    for slot in 1..=12 {
        let directory = open(&path).expect("the directory is free");
        let opened =
            Log::open(directory.disk(), directory.identity().clone(), segments_of(4)).expect("opens");
        drop(directory);
        assert_eq!(State::of(&opened), State::after(&batches));
        let storage = Storage::start(opened.log).expect("a thread");
        assert!(matches!(open(&path), Err(DirectoryError::Locked { .. })));
        // Nobody waits for the write; it is finished all the same.
        drop(storage.append(one(slot)));
        batches.push(one(slot));
        if slot % 2 == 0 {
            drop(storage);
        } else {
            in_time(storage.stop()).await.expect("stops");
        }
    }
}

/// Without a thread: a batch is written when it is awaited, after the latency in virtual time; one that nobody awaits is lost, as
/// by a crash; after the stop nothing is.
#[tokio::test(start_paused = true)]
async fn inline_storage_writes_what_is_awaited() {
    let disk = MemoryDisk::default();
    let shared = Arc::new(disk.clone());
    Log::create(&shared, &identity(), segments_of(8)).expect("creates");
    let opened = Log::open(shared, identity(), segments_of(8)).expect("opens");
    let latency = Duration::from_millis(7);
    let storage = Storage::inline(opened.log, latency);
    let started = tokio::time::Instant::now();
    drop(storage.append(one(1)));
    let operation_count = disk.operation_count();
    in_time(storage.append(one(2))).await.expect("written");
    assert_eq!(started.elapsed(), latency);
    assert!(disk.operation_count() > operation_count);
    let read = in_time(storage.read_range(Slot(1)..=Slot(2), usize::MAX)).await;
    assert_eq!(read.expect("readable"), [accepted(2, 1, "value 2".to_owned())]);
    let late = storage.append(one(3));
    in_time(storage.stop()).await.expect("closes");
    assert!(matches!(in_time(late).await, Err(LogError::Stopped)));
}
