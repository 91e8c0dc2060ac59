//! L10: a directory takes part only after it was compared with what a majority knows of it.

use super::{Bench, Out, PROCESS, ballot, disk, establish, promise, to, value};
use crate::durable::{Batch, Meta, PeerSeen, Recovered};
use crate::effects::Notice;
use crate::paxos::{Accepted, Ballot, Message, Slot};
use crate::replica::{Admission, Ignored};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use synod_proto::command::Command;
use synod_proto::ids::{Incarnation, ProcessNonce, ReplicaId};

/// The process of replica 2 here, in whatever start.
const PEER_PROCESS: ProcessNonce = ProcessNonce(2);

fn hello(directory: u8, start: u64, promised: Ballot, accepted_up_to: u64) -> Message {
    Message::Hello {
        incarnation: Incarnation([directory; 16]),
        start,
        process: PEER_PROCESS,
        promised,
        accepted_up_to: Slot(accepted_up_to),
    }
}

/// What replica 1 hears from a peer of its own directory.
fn answer(start: u64, contradiction: Option<String>) -> Message {
    answer_to(PROCESS, start, contradiction)
}

fn answer_to(process: ProcessNonce, start: u64, contradiction: Option<String>) -> Message {
    Message::HelloAnswer {
        start,
        process,
        contradiction,
        ballot: Ballot::ZERO,
        slot: Slot::ZERO,
    }
}

/// What replica 1 does with a hello of replica 2 that it contradicts for the first time.
fn contradicted(start: u64, process: ProcessNonce, text: &str) -> Out {
    Out {
        gated: vec![to(2, answer_to(process, start, Some(text.into())))],
        notices: vec![Notice::PeerContradicted {
            contradiction: text.into(),
        }],
        ..Out::default()
    }
}

/// Admitted, with replica 2 known on disk by directory 2 in its start 1.
fn knows_replica_2() -> Bench {
    let (recovered, values) = disk(vec![super::accepted(1, ballot(1, 2), value(&Command::Noop))], 1);
    Bench::admitted(3, recovered, values)
}

/// What a replica has seen of a peer's directory is on disk before the peer is told that it fits.
#[test]
fn a_peers_directory_is_noted_on_disk_before_the_answer_leaves() {
    let mut bench = knows_replica_2();
    let out = bench.hear(2, hello(2, 4, ballot(1, 2), 1));
    let mut meta = bench.meta();
    meta.peers.insert(
        ReplicaId(2),
        PeerSeen {
            incarnation: Incarnation([2; 16]),
            start: 4,
            process: PEER_PROCESS,
        },
    );
    let expected = Out {
        batch: Some(Batch {
            meta,
            accepted: vec![],
        }),
        gated: vec![to(2, answer_to(PEER_PROCESS, 4, None))],
        ..Out::default()
    };
    assert_eq!(out, expected);
    let again = bench.hear(2, hello(2, 4, ballot(1, 2), 1));
    assert_eq!(
        again,
        Out {
            gated: vec![to(2, answer_to(PEER_PROCESS, 4, None))],
            ..Out::default()
        },
        "no news, no write"
    );
}

/// A12: "a node that lost its disk must not rejoin under the old identity": another directory under a known number.
#[test]
fn a12_a_wiped_directory_is_contradicted() {
    let mut bench = knows_replica_2();
    let text = format!(
        "replica 2 came with directory {}, but replica 1 knows it with directory {}: the directory was wiped or replaced",
        Incarnation([3; 16]),
        Incarnation([2; 16])
    );
    let out = bench.hear(2, hello(3, 9, Ballot::ZERO, 0));
    assert_eq!(out, contradicted(9, PEER_PROCESS, &text));
}

/// An older copy of the directory shows by its count of starts.
#[test]
fn a_directory_that_was_put_back_is_contradicted() {
    let mut bench = knows_replica_2();
    let text = "replica 2 came in its start 0, but replica 1 has seen start 1: an older copy of the directory was put back";
    let out = bench.hear(2, hello(2, 0, ballot(9, 2), 9));
    assert_eq!(out, contradicted(0, PEER_PROCESS, text));
}

/// One start is one process: its count is on disk before anything is heard of it. A second process in the same start runs
/// on a copy of the directory, or on one that was put back, whatever it says of its ballots. The trace says so once.
#[test]
fn l10_a_second_process_in_one_start_is_contradicted() {
    let mut bench = knows_replica_2();
    bench.hear(2, hello(2, 4, ballot(1, 2), 1));
    let copy = Message::Hello {
        incarnation: Incarnation([2; 16]),
        start: 4,
        process: ProcessNonce(0xfeed),
        promised: ballot(9, 2),
        accepted_up_to: Slot(9),
    };
    let text = "replica 2 came in its start 4 as process 000000000000feed, but replica 1 has seen process 0000000000000002 in \
                that start: two processes run on copies of one directory, or an older copy was put back";
    assert_eq!(
        bench.hear(2, copy.clone()),
        contradicted(4, ProcessNonce(0xfeed), text)
    );
    let again = Out {
        notices: vec![],
        ..contradicted(4, ProcessNonce(0xfeed), text)
    };
    assert_eq!(bench.hear(2, copy), again);
    assert_eq!(
        bench.hear(2, hello(2, 4, ballot(1, 2), 1)).gated,
        vec![to(2, answer_to(PEER_PROCESS, 4, None))],
        "the first one is known"
    );
    let next = Message::Hello {
        incarnation: Incarnation([2; 16]),
        start: 5,
        process: ProcessNonce(3),
        promised: ballot(1, 2),
        accepted_up_to: Slot(1),
    };
    assert_eq!(
        bench.hear(2, next).gated,
        vec![to(2, answer_to(ProcessNonce(3), 5, None))],
        "a higher start is another process"
    );
}

/// What was seen of a peer outlives this process: a copy of the peer's directory is contradicted by a peer that restarted.
#[test]
fn l10_the_process_seen_in_a_start_outlives_the_one_that_saw_it() {
    let meta = {
        let mut bench = knows_replica_2();
        bench.hear(2, hello(2, 4, ballot(1, 2), 1));
        bench.meta()
    };
    let (recovered, values) = disk(vec![super::accepted(1, ballot(1, 2), value(&Command::Noop))], 1);
    let (mut bench, _) = Bench::started(3, Recovered { meta, ..recovered }, values);
    let out = bench.hear(
        2,
        Message::Hello {
            incarnation: Incarnation([2; 16]),
            start: 4,
            process: ProcessNonce(7),
            promised: ballot(1, 2),
            accepted_up_to: Slot(1),
        },
    );
    assert_eq!(out.notices.len(), 1, "contradicted before it is admitted itself");
}

/// An answer to another process counts for nothing, even in the same start: it is late, or meant for a process on a copy of
/// this directory. Neither its consent nor its contradiction is about this process.
#[test]
fn l10_an_answer_to_another_process_of_the_same_start_does_not_count() {
    let (mut bench, _) = Bench::started(3, admitted_before(), vec![]);
    for contradiction in [None, Some("put back".into())] {
        let late = answer_to(ProcessNonce(0xfeed), 2, contradiction);
        assert_eq!(bench.hear(2, late), Out::default());
        assert_eq!(bench.replica.ignored(), &[Ignored::StaleAnswer]);
        let consistent = [ReplicaId(1)].into();
        assert_eq!(
            bench.replica.status().admission,
            Admission::Pending { consistent }
        );
    }
    assert_eq!(bench.hear(2, answer(2, None)).notices, vec![Notice::Admitted]);
}

/// "Highest ballot and slot you acknowledged to me": a peer that restarts is told them.
#[test]
fn a_peer_is_told_what_it_acknowledged() {
    let mut bench = knows_replica_2();
    let (own, standing) = bench.stand();
    bench.sync(&standing);
    let report = Message::Promise {
        ballot: own,
        decided_up_to: Slot(1),
        first_retained: Slot(1),
        accepted: vec![],
        unreadable: vec![],
    };
    let leading = bench.hear(2, report);
    bench.sync(&leading);
    bench.hear(
        2,
        Message::Accepted {
            ballot: own,
            slot: Slot(2),
        },
    );
    let out = bench.hear(2, hello(2, 2, own, 2));
    let answer = Message::HelloAnswer {
        start: 2,
        process: PEER_PROCESS,
        contradiction: None,
        ballot: own,
        slot: Slot(2),
    };
    assert_eq!(out.gated, vec![to(2, answer)]);
}

/// A directory that no longer holds what it acknowledged has lost what was synced. The news counts whenever it comes, to a
/// leader too: a majority may have known nothing of it.
#[test]
fn a_directory_that_forgot_what_it_acknowledged_takes_no_part_any_more() {
    for (ballot, slot) in [(ballot(9, 3), Slot::ZERO), (Ballot::ZERO, Slot(5))] {
        let mut bench = Bench::fresh(3);
        let own = bench.serve();
        let out = bench.hear(
            3,
            Message::HelloAnswer {
                start: 1,
                process: PROCESS,
                contradiction: None,
                ballot,
                slot,
            },
        );
        let contradiction = format!(
            "replica 1 stands at ballot {own} and slot 1, but it acknowledged ballot {ballot} and slot {slot} to \
             replica 3: its directory has lost what was synced"
        );
        let notices = vec![
            Notice::SteppedDown {
                reason: "the directory is not admitted",
            },
            Notice::NotAdmitted {
                contradiction: contradiction.clone(),
            },
        ];
        assert_eq!(out.notices, notices);
        assert_eq!(
            bench.replica.status().admission,
            Admission::Refused { contradiction }
        );
    }
}

/// The peer that remembers may restart, and forget: what was found out once is on disk, and the next start knows it.
#[test]
fn l10_a_directory_that_has_lost_something_stays_refused_after_a_restart() {
    let mut bench = Bench::fresh(3);
    bench.serve();
    let reminder = Message::HelloAnswer {
        start: 1,
        process: PROCESS,
        contradiction: None,
        ballot: Ballot::ZERO,
        slot: Slot(5),
    };
    let batch = bench.hear(3, reminder).batch.expect("the finding is written");
    let recovered = Recovered {
        meta: batch.meta,
        ..Recovered::default()
    };
    let (mut bench, _) = Bench::started(3, recovered, vec![]);
    for peer in [2, 3] {
        bench.hear(peer, answer(2, None));
    }
    let admission = bench.replica.status().admission;
    assert!(matches!(admission, Admission::Refused { .. }), "{admission:?}");
}

/// A copy that was put back comes in starts that peers have seen, until it has been started as often as the original. Then
/// nobody would contradict it any more; so it is on its own disk that it was contradicted.
#[test]
fn l10_a_copy_that_was_contradicted_stays_refused_when_its_starts_have_caught_up() {
    // One made before the first admission, too: its peers admit it on their word alone, since it knows of none.
    for (copied, start) in [(admitted_before(), 2), (Recovered::default(), 1)] {
        let (mut bench, _) = Bench::started(3, copied, vec![]);
        let out = bench.hear(3, answer(start, Some("this start was seen before".into())));
        let meta = out.batch.expect("the finding is written").meta;
        assert!(meta.has_lost(ReplicaId(1), Incarnation([1; 16])));
        let recovered = Recovered {
            meta,
            ..Recovered::default()
        };
        let (mut bench, _) = Bench::started(3, recovered, vec![]);
        for peer in [2, 3] {
            bench.hear(peer, answer(start + 1, None));
        }
        let admission = bench.replica.status().admission;
        assert!(matches!(admission, Admission::Refused { .. }), "{admission:?}");
    }
}

/// A directory that stands at another replica's place is refused there, and whole where it belongs.
#[test]
fn l10_a_directory_at_anothers_place_is_not_marked() {
    let owner = PeerSeen {
        incarnation: Incarnation([1; 16]),
        start: 1,
        process: PROCESS,
    };
    let recovered = Recovered {
        meta: Meta {
            start: 1,
            peers: [(ReplicaId(2), owner)].into(),
            ..Meta::default()
        },
        ..Recovered::default()
    };
    let (mut bench, _) = Bench::started(3, recovered, vec![]);
    let out = bench.hear(3, answer(2, Some("another directory was seen".into())));
    let admission = bench.replica.status().admission;
    assert!(matches!(admission, Admission::Refused { .. }), "{admission:?}");
    assert!(out.batch.is_none(), "nothing is noted on it");
}

/// What this replica's directory looks like on disk once it has been admitted.
fn admitted_before() -> Recovered {
    let own = PeerSeen {
        incarnation: Incarnation([1; 16]),
        start: 1,
        process: PROCESS,
    };
    let meta = Meta {
        start: 1,
        peers: [(ReplicaId(1), own)].into(),
        ..Meta::default()
    };
    Recovered {
        meta,
        ..Recovered::default()
    }
}

/// Five replicas: for a directory that was admitted before, two answers and its own word make a majority; one is not
/// enough, and one answer twice is one.
#[test]
fn a_majority_of_five_is_three() {
    let (mut bench, _) = Bench::started(5, admitted_before(), vec![]);
    for from in [2, 2] {
        assert_eq!(bench.hear(from, answer(2, None)), Out::default());
        let consistent = [1, 2].map(ReplicaId).into();
        assert_eq!(
            bench.replica.status().admission,
            Admission::Pending { consistent }
        );
    }
    assert_eq!(bench.hear(3, answer(2, None)).notices, vec![Notice::Admitted]);
}

/// A directory that was never admitted may be a wiped one whose quorum is among those that have not spoken yet: two
/// replicas that lost their disks must not admit each other. It waits for everybody, and remembers that it was admitted.
#[test]
fn l10_a_new_directory_waits_for_every_replica() {
    let (mut bench, _) = Bench::started(3, Recovered::default(), vec![]);
    assert_eq!(bench.hear(2, answer(1, None)), Out::default());
    let consistent = [1, 2].map(ReplicaId).into();
    assert_eq!(
        bench.replica.status().admission,
        Admission::Pending { consistent }
    );
    let out = bench.hear(3, answer(1, None));
    assert_eq!(bench.replica.status().admission, Admission::Admitted);
    let own = PeerSeen {
        incarnation: Incarnation([1; 16]),
        start: 1,
        process: PROCESS,
    };
    assert_eq!(
        out.batch.map(|batch| batch.meta.peers),
        Some([(ReplicaId(1), own)].into())
    );
}

/// A refused directory does not come back by later, kinder answers; it still learns what is decided.
#[test]
fn a_refused_directory_stays_refused_and_learns() {
    let (mut bench, _) = Bench::started(3, Recovered::default(), vec![]);
    bench.hear(2, answer(1, Some("wiped".into())));
    bench.hear(3, answer(1, None));
    bench.hear(2, answer(1, None));
    assert_eq!(
        bench.replica.status().admission,
        Admission::Refused {
            contradiction: "wiped".into()
        }
    );
    assert_eq!(
        bench.hear(
            2,
            Message::Prepare {
                ballot: ballot(1, 2),
                above: Slot::ZERO
            }
        ),
        Out::default()
    );
    assert_eq!(bench.hear(2, Message::PreVote { attempt: 1 }), Out::default());
    bench.hear(
        2,
        Message::Decided {
            first: Slot(1),
            values: vec![establish(2)],
            decided_up_to: Slot(1),
        },
    );
    assert_eq!(bench.replica.decided_value(Slot(1)), Some(&establish(2)));
    assert_eq!(bench.meta().promised, Ballot::ZERO);
    let quiet: Vec<_> = (0..10).flat_map(|_| bench.wait(600_000).early).collect();
    assert_eq!(quiet, vec![], "it never stands");
}

/// L1, L10: an acceptor that restarts finds its promise again and keeps it (PMS, 2.5: "this information must be preserved
/// even if the acceptor fails").
#[test]
fn a_promise_outlives_the_process() {
    let meta = Meta {
        promised: ballot(7, 3),
        start: 1,
        ..Meta::default()
    };
    let mut bench = Bench::admitted(
        3,
        Recovered {
            meta,
            ..Recovered::default()
        },
        Vec::<Accepted>::new(),
    );
    let lower = bench.hear(
        2,
        Message::Prepare {
            ballot: ballot(6, 2),
            above: Slot::ZERO,
        },
    );
    let nack = Message::Nack {
        ballot: ballot(6, 2),
        promised: ballot(7, 3),
    };
    assert_eq!(
        lower,
        Out {
            gated: vec![to(2, nack)],
            ..Out::default()
        }
    );
    let higher = bench.hear(
        2,
        Message::Prepare {
            ballot: ballot(8, 2),
            above: Slot::ZERO,
        },
    );
    assert_eq!(higher.gated, vec![to(2, promise(ballot(8, 2), vec![]))]);
}
