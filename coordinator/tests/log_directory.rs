//! The data directory: whose it is, one process at a time, and never begun afresh by mistake (L10, traps J3, J4).

mod log_support;

use log_support::{accepted, batch, segment, segments_of, unfinished};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use synod_coordinator::directory::{Directory, DirectoryError};
use synod_coordinator::log::{Disk, LogError, Options};
use synod_coordinator_core::paxos::Slot;
use synod_proto::ids::{ClusterId, ReplicaId};

const OPTIONS: Options = Options {
    segment_bytes: 5 * 4096,
};

fn cluster(name: &str) -> ClusterId {
    name.parse().expect("a cluster id")
}

fn replicas(ids: &[u8]) -> BTreeSet<ReplicaId> {
    ids.iter().copied().map(ReplicaId).collect()
}

fn open(path: &Path) -> Result<Directory, DirectoryError> {
    Directory::open(
        path,
        &cluster("test"),
        ReplicaId(1),
        &replicas(&[1, 2, 3]),
        OPTIONS,
    )
}

/// What is in a directory: names and content.
fn listing(path: &Path) -> Vec<(String, Option<Vec<u8>>)> {
    let mut names: Vec<_> = fs::read_dir(path)
        .expect("readable")
        .map(|entry| entry.expect("readable").path())
        .map(|path| {
            (
                path.file_name().expect("a name").to_string_lossy().into_owned(),
                fs::read(&path).ok(),
            )
        })
        .collect();
    names.sort();
    names
}

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let path = temporary.path().join("some/where");
    (temporary, path)
}

#[test]
fn a_new_directory_is_made_and_keeps_its_identity() {
    let (_temporary, path) = temporary();
    let directory = open(&path).expect("is made");
    assert!(directory.is_new());
    let identity = directory.identity().clone();
    assert_eq!(
        (identity.cluster.as_str(), identity.replica),
        ("test", ReplicaId(1))
    );
    let (mut log, recovered) = directory.open_log(OPTIONS).expect("an empty log");
    assert_eq!(recovered, synod_coordinator_core::durable::Recovered::default());
    log.append(&batch(1, 0, 1, vec![accepted(1, 1, "v")]))
        .expect("appends");
    drop((directory, log));

    let directory = open(&path).expect("opens");
    assert!(!directory.is_new());
    assert_eq!(*directory.identity(), identity);
    let (log, _) = directory.open_log(OPTIONS).expect("the same log");
    assert_eq!(log.read(Slot(1)).expect("readable"), Some(accepted(1, 1, "v")));
    let names: Vec<String> = listing(&path).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["identity", "lock", "segment-0000000001.log"]);
}

#[test]
fn two_directories_are_two_incarnations() {
    let (_first, first) = temporary();
    let (_second, second) = temporary();
    let incarnation = |path: &Path| open(path).expect("is made").identity().incarnation;
    assert_ne!(incarnation(&first), incarnation(&second));
}

#[test]
fn an_empty_directory_and_a_fresh_file_system_are_taken() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(temporary.path().join("lost+found")).expect("is made");
    assert!(open(temporary.path()).expect("is made").is_new());
    assert!(!open(temporary.path()).expect("opens").is_new());
}

/// In this test's second process: says whether the directory is locked.
#[test]
#[ignore = "run by `a_second_process_is_locked_out`"]
fn second_process() {
    let path = std::env::var_os("SYNOD_TEST_DIRECTORY").expect("set by the first process");
    let result = open(Path::new(&path));
    println!(
        "second process: {}",
        if matches!(result, Err(DirectoryError::Locked { .. })) {
            "locked"
        } else {
            "free"
        }
    );
}

#[test]
fn a_second_process_is_locked_out_for_as_long_as_the_log_is_open() {
    let (_temporary, path) = temporary();
    let ask = || {
        let output = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "second_process", "--ignored", "--nocapture"])
            .env("SYNOD_TEST_DIRECTORY", &path)
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ["locked", "free"]
            .into_iter()
            .find(|answer| text.contains(&format!("second process: {answer}")))
            .expect("it answers")
    };
    let directory = open(&path).expect("is made");
    assert_eq!(ask(), "locked");
    assert!(
        matches!(open(&path), Err(DirectoryError::Locked { .. })),
        "nor twice by one process"
    );
    let (log, _) = directory.open_log(OPTIONS).expect("opens");
    drop(directory);
    assert_eq!(ask(), "locked", "whoever can write holds the lock");
    drop(log);
    assert_eq!(ask(), "free");
}

#[test]
fn another_cluster_or_replica_is_refused() {
    let (_temporary, path) = temporary();
    drop(open(&path).expect("is made"));
    let before = listing(&path);
    let all = replicas(&[1, 2, 3]);
    let other =
        Directory::open(&path, &cluster("other"), ReplicaId(1), &all, OPTIONS).expect_err("another cluster");
    assert_eq!(
        other.to_string(),
        format!(
            "`{}` belongs to cluster `test`, not `other`: name the right cluster or another directory",
            path.display()
        )
    );
    let other =
        Directory::open(&path, &cluster("test"), ReplicaId(2), &all, OPTIONS).expect_err("another replica");
    assert!(matches!(
        other,
        DirectoryError::OtherReplica {
            found: ReplicaId(1),
            expected: ReplicaId(2),
            ..
        }
    ));
    assert!(before == listing(&path));
}

/// L6: a log says nothing about the quorums of another set of replicas. A replica of a larger set would count promises of
/// replicas that never promised; one that once led itself would bring its own decisions into a cluster of three.
#[test]
fn another_set_of_replicas_is_refused() {
    for (made_for, started_with) in [
        (&[1, 2, 3][..], &[1][..]),
        (&[1, 2, 3], &[1, 2]),
        (&[1, 2, 3], &[1, 2, 4]),
        (&[1, 2, 3], &[1, 2, 3, 4, 5]),
        (&[1], &[1, 2, 3]),
    ] {
        let (_temporary, path) = temporary();
        let open =
            |set: &[u8]| Directory::open(&path, &cluster("test"), ReplicaId(1), &replicas(set), OPTIONS);
        drop(open(made_for).expect("is made"));
        let before = listing(&path);
        let error = open(started_with).expect_err("another set");
        let expected = format!("{:?} {:?}", replicas(made_for), replicas(started_with));
        match &error {
            DirectoryError::OtherReplicas {
                found,
                expected: given,
                ..
            } => {
                assert_eq!(format!("{found:?} {given:?}"), expected);
            }
            other => panic!("{other}"),
        }
        assert!(before == listing(&path));
        assert!(!open(made_for).expect("the same set, in any order").is_new());
    }
    let (_temporary, path) = temporary();
    drop(open(&path).expect("is made"));
    let error = Directory::open(&path, &cluster("test"), ReplicaId(1), &replicas(&[1]), OPTIONS);
    assert_eq!(
        error.expect_err("another set").to_string(),
        format!(
            "`{}` was made for the replicas 1, 2, 3, but `peers` names 1: name the same replicas as before; a cluster's \
             members cannot be changed yet",
            path.display()
        )
    );
}

#[test]
fn a_foreign_directory_is_refused_and_left_as_it_was() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    fs::write(temporary.path().join("thesis.txt"), "irreplaceable").expect("writes");
    let before = listing(temporary.path());
    let error = open(temporary.path()).expect_err("foreign");
    assert!(
        matches!(&error, DirectoryError::Foreign { entry, .. } if entry == "thesis.txt"),
        "{error}"
    );
    assert!(before == listing(temporary.path()), "not even a lock file");

    let file = temporary.path().join("thesis.txt");
    assert!(matches!(open(&file), Err(DirectoryError::NotADirectory { .. })));
    assert!(matches!(
        open(&file.join("below")),
        Err(DirectoryError::Unwritable { .. })
    ));
}

#[test]
fn a_directory_that_cannot_be_made_is_refused() {
    // The one file system on every Linux machine in which not even root can make a directory.
    let error = open(Path::new("/proc/synod-test")).expect_err("not in /proc");
    assert!(matches!(error, DirectoryError::Unwritable { .. }), "{error}");
}

/// Traps J4: a log without its identity is a loss, not a new beginning.
#[test]
fn a_log_without_identity_is_refused() {
    let (_temporary, path) = temporary();
    drop(open(&path).expect("is made"));
    fs::remove_file(path.join("identity")).expect("removed");
    assert!(matches!(open(&path), Err(DirectoryError::IdentityMissing { .. })));
    // A stale announcement does not help either, once the log has more than its first segment.
    fs::write(path.join("identity.new"), "").expect("writes");
    fs::copy(path.join(segment(1)), path.join(segment(2))).expect("copies");
    let before = listing(&path);
    assert!(matches!(open(&path), Err(DirectoryError::IdentityMissing { .. })));
    assert!(before == listing(&path));
}

/// Traps J4, the other way round.
#[test]
fn an_identity_without_log_is_refused() {
    let (_temporary, path) = temporary();
    drop(open(&path).expect("is made"));
    fs::remove_file(path.join(segment(1))).expect("removed");
    let directory = open(&path).expect("the identity is there");
    assert!(matches!(directory.open_log(OPTIONS), Err(LogError::NoSegments)));
}

#[test]
fn another_format_or_a_damaged_identity_is_refused() {
    let (_temporary, path) = temporary();
    drop(open(&path).expect("is made"));
    let text = fs::read_to_string(path.join("identity")).expect("readable");
    let refused = |text: &str| {
        fs::write(path.join("identity"), text).expect("writes");
        open(&path).expect_err("refused")
    };
    let later = text.replace("format = 2", "format = 3\nnovelty = true");
    assert!(matches!(
        refused(&later),
        DirectoryError::UnknownFormat { found: 3, .. }
    ));
    // The format before did not name the replicas.
    let earlier = text
        .replace("format = 2", "format = 1")
        .replace("replicas = [1, 2, 3]\n", "");
    assert!(matches!(
        refused(&earlier),
        DirectoryError::UnknownFormat { found: 1, .. }
    ));
    let damaged = [
        String::new(),
        "format = ".to_owned(),
        text.replace("format = 2", ""),
        text.replace("replicas = ", "others = "),
        text.replace("replica = 1", "replica = 1000"),
        text.replace("cluster = \"test\"", "cluster = \"Not A Name\""),
        text.replace("incarnation = \"", "incarnation = \"x"),
        format!("{text}\nunknown = 1"),
    ];
    for damaged in damaged {
        assert!(
            matches!(refused(&damaged), DirectoryError::IdentityUnreadable { .. }),
            "{damaged}"
        );
    }
    fs::write(path.join("identity"), text).expect("writes");
    assert!(open(&path).is_ok());
}

/// A crash at any step of the making: the next start begins again.
#[test]
fn a_making_that_was_interrupted_is_begun_again() {
    let remains: [&[&str]; 7] = [
        &[],
        &["lock"],
        &["lock", "identity.new"],
        &["lock", "identity.new", "segment-0000000001.log"],
        &["lock", "identity.new", "segment-0000000001.log.new"],
        &[
            "lock",
            "identity.new",
            "segment-0000000001.log",
            "segment-0000000001.log.new",
        ],
        &["lock", "identity.new", "lost+found"],
    ];
    for remains in remains {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        for name in remains {
            fs::write(temporary.path().join(name), "half").expect("writes");
        }
        let directory = open(temporary.path()).expect("is made");
        assert!(directory.is_new(), "{remains:?}");
        directory.open_log(segments_of(4)).expect("an empty log");
        assert!(!temporary.path().join("identity.new").exists());
        assert!(!temporary.path().join(unfinished(1)).exists());
    }
}

/// L3, traps J4: once a directory has its identity, its first segment was whole, and a file that is being made is no log.
#[test]
fn a_first_segment_that_was_cut_or_lost_is_refused() {
    let (_temporary, path) = temporary();
    drop(open(&path).expect("is made"));
    let whole = fs::read(path.join(segment(1))).expect("readable");
    for length in [0, 50, 4096] {
        fs::write(path.join(segment(1)), &whole[..length]).expect("writes");
        let opened = open(&path).expect("the identity is there").open_log(OPTIONS);
        assert!(
            matches!(opened, Err(LogError::EndLost { segment: 1, .. })),
            "{length}"
        );
    }
    fs::rename(path.join(segment(1)), path.join(unfinished(1))).expect("renames");
    let opened = open(&path).expect("the identity is there").open_log(OPTIONS);
    assert!(matches!(opened, Err(LogError::NoSegments)));
    assert!(
        path.join(unfinished(1)).exists(),
        "a log that is refused is left as it is"
    );
}

/// On real files: what an interrupted making left is removed, and a segment never replaces another.
#[test]
fn an_unfinished_segment_is_removed_at_the_start() {
    let (_temporary, path) = temporary();
    let directory = open(&path).expect("is made");
    fs::write(path.join(unfinished(2)), "half").expect("writes");
    let (mut log, _) = directory.open_log(OPTIONS).expect("opens");
    assert!(!path.join(unfinished(2)).exists());
    // One that appears meanwhile is in nobody's way either.
    fs::write(path.join(unfinished(2)), "half").expect("writes");
    for slot in 1..=9 {
        let value = vec![7; 5000];
        log.append(&batch(1, 0, slot, vec![accepted(slot, 1, value)]))
            .expect("appends");
    }
    let names: Vec<String> = listing(&path).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names[2..], [1, 2, 3, 4, 5].map(segment), "{names:?}");

    let disk = directory.disk();
    disk.create(&unfinished(9), 4096).expect("is made");
    let error = disk
        .rename(&unfinished(9), &segment(1))
        .expect_err("there is one");
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert!(disk.rename("nothing", &segment(9)).is_err());
}
