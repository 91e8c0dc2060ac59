//! The Paxos group member: promises, accepts, ballots, elections, learning.

use super::{Bench, Out, PROCESS, accepted, ballot, disk, establish, promise, to, to_both, value};
use crate::durable::{Batch, Meta, Recovered};
use crate::effects::{Fetch, GroupCommit, Notice};
use crate::entry;
use crate::paxos::{Ballot, Envelope, Message, Slot};
use crate::replica::{Admission, Ignored, Input, RoleName, WriteFailure};
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::command::Command;
use synod_proto::ids::{Incarnation, ReplicaId};

/// "Each proposer remembers (in stable storage) the highest-numbered proposal it has tried to issue" (PMS, 2.5). Here a
/// count of starts stands for it: it is written before the first message leaves (L1).
#[test]
fn l1_a_start_is_on_disk_before_anything_leaves() {
    let (_, out) = Bench::started(3, Recovered::default(), vec![]);
    let meta = Meta {
        start: 1,
        ..Meta::default()
    };
    let hello = Message::Hello {
        incarnation: Incarnation([1; 16]),
        start: 1,
        process: PROCESS,
        promised: crate::paxos::Ballot::ZERO,
        accepted_up_to: Slot::ZERO,
    };
    let expected = Out {
        batch: Some(Batch {
            meta,
            accepted: vec![],
        }),
        gated: to_both(&hello),
        ..Out::default()
    };
    assert_eq!(out, expected);
}

/// L10: before its directory was compared with what a majority knows, a replica promises nothing, not even by a nack.
#[test]
fn l10_a_replica_that_is_not_admitted_stays_out() {
    let (mut bench, _) = Bench::started(3, Recovered::default(), vec![]);
    for message in [
        Message::Prepare {
            ballot: ballot(1, 2),
            above: Slot::ZERO,
        },
        Message::PreVote { attempt: 1 },
        Message::Accept {
            ballot: ballot(1, 2),
            slot: Slot(1),
            value: entry::noop(),
            decided_up_to: Slot::ZERO,
        },
    ] {
        let out = bench.hear(2, message.clone());
        assert_eq!(
            (out, bench.replica.ignored()),
            (Out::default(), &[Ignored::NotAdmitted][..]),
            "{message:?}"
        );
    }
    let answer = Message::HelloAnswer {
        start: 1,
        process: PROCESS,
        contradiction: None,
        ballot: Ballot::ZERO,
        slot: Slot::ZERO,
    };
    bench.hear(2, answer.clone());
    assert_eq!(bench.hear(3, answer).notices, vec![Notice::Admitted]);
}

/// L10: an answer to a former process of the directory proves nothing for this one.
#[test]
fn l10_an_answer_to_a_former_start_does_not_count() {
    let (recovered, values) = disk(vec![accepted(1, ballot(1, 2), establish(1))], 1);
    let (mut bench, _) = Bench::started(3, recovered, values);
    assert_eq!(
        bench.hear(
            2,
            Message::HelloAnswer {
                start: 1,
                process: PROCESS,
                contradiction: None,
                ballot: Ballot::ZERO,
                slot: Slot::ZERO
            }
        ),
        Out::default()
    );
    assert_eq!(bench.replica.ignored(), &[Ignored::StaleAnswer]);
    let text = "an older copy".to_string();
    let out = bench.hear(
        2,
        Message::HelloAnswer {
            start: 2,
            process: PROCESS,
            contradiction: Some(text.clone()),
            ballot: Ballot::ZERO,
            slot: Slot::ZERO,
        },
    );
    assert_eq!(
        out.notices,
        vec![Notice::NotAdmitted {
            contradiction: text.clone()
        }]
    );
    assert_eq!(
        bench.replica.status().admission,
        Admission::Refused { contradiction: text }
    );
}

/// "An acceptor records its intended response in stable storage before actually sending the response." (PMS, 2.5; L2)
#[test]
fn phase_1b_a_promise_leaves_after_it_is_on_disk() {
    let mut bench = Bench::fresh(3);
    let out = bench.hear(
        2,
        Message::Prepare {
            ballot: ballot(4, 2),
            above: Slot::ZERO,
        },
    );
    let meta = Meta {
        promised: ballot(4, 2),
        ..bench.meta()
    };
    let expected = Out {
        batch: Some(Batch {
            meta,
            accepted: vec![],
        }),
        gated: vec![to(2, promise(ballot(4, 2), vec![]))],
        ..Out::default()
    };
    assert_eq!(out, expected);
}

/// "It accepts the proposal unless it has already responded to a prepare request having a number greater than n."
/// (PMS, 2.2, phase 2b)
#[test]
fn phase_2b_a_lower_ballot_is_refused_and_leaves_no_trace() {
    let mut bench = Bench::fresh(3);
    bench.hear(
        2,
        Message::Prepare {
            ballot: ballot(4, 2),
            above: Slot::ZERO,
        },
    );
    let accept = |ballot| Message::Accept {
        ballot,
        slot: Slot(1),
        value: establish(1),
        decided_up_to: Slot::ZERO,
    };
    let out = bench.hear(3, accept(ballot(3, 3)));
    let nack = Message::Nack {
        ballot: ballot(3, 3),
        promised: ballot(4, 2),
    };
    assert_eq!(
        out,
        Out {
            gated: vec![to(3, nack)],
            ..Out::default()
        }
    );

    let out = bench.hear(2, accept(ballot(4, 2)));
    let meta = Meta {
        accepted_up_to: Slot(1),
        ..bench.meta()
    };
    let expected = Out {
        batch: Some(Batch {
            meta,
            accepted: vec![accepted(1, ballot(4, 2), establish(1))],
        }),
        gated: vec![to(
            2,
            Message::Accepted {
                ballot: ballot(4, 2),
                slot: Slot(1),
            },
        )],
        notices: vec![Notice::Following(ReplicaId(2))],
        ..Out::default()
    };
    assert_eq!(out, expected);

    // Repeated, it is answered again and written once.
    let out = bench.hear(2, accept(ballot(4, 2)));
    let answer = Message::Accepted {
        ballot: ballot(4, 2),
        slot: Slot(1),
    };
    assert_eq!(
        out,
        Out {
            gated: vec![to(2, answer)],
            ..Out::default()
        }
    );
}

/// "A candidate only increments its term if it first learns from a majority of the cluster that they would be willing to
/// grant the candidate their votes." (Ongaro, *Consensus: Bridging Theory and Practice*, 9.6)
#[test]
fn a_pre_vote_changes_nothing_and_a_grant_begins_phase_1() {
    let mut bench = Bench::fresh(3);
    let before = bench.meta();
    let attempt = bench.begin_pre_vote();
    assert_eq!(bench.meta(), before);
    let answer = |granted| Message::PreVoteAnswer {
        attempt,
        granted,
        round: 6,
        decided_up_to: Slot::ZERO,
    };
    assert_eq!(bench.hear(3, answer(false)), Out::default());
    let out = bench.hear(2, answer(true));
    // The next round goes above the highest one heard of, so that it is not refused at once.
    let own = ballot(7, 1);
    let expected = Out {
        batch: Some(Batch {
            meta: Meta {
                promised: own,
                ..before
            },
            accepted: vec![],
        }),
        early: to_both(&Message::Prepare {
            ballot: own,
            above: Slot::ZERO,
        }),
        gated: vec![to(1, promise(own, vec![]))],
        ..Out::default()
    };
    assert_eq!(out, expected);
}

/// Replicas deny while they hear a leader that hears a quorum, and grant once that leader says it hears none (Omni-Paxos,
/// section 3: a replica must not keep another from leading by following one that cannot).
#[test]
fn a_pre_vote_is_denied_while_a_leader_with_a_quorum_is_heard() {
    let mut bench = Bench::fresh(3);
    let heartbeat = |has_quorum| Message::Heartbeat {
        ballot: ballot(1, 2),
        decided_up_to: Slot::ZERO,
        sequence: 1,
        has_quorum,
    };
    let answer = |granted| {
        let answer = Message::PreVoteAnswer {
            attempt: 9,
            granted,
            round: 1,
            decided_up_to: Slot::ZERO,
        };
        Out {
            early: vec![to(3, answer)],
            ..Out::default()
        }
    };
    bench.hear(2, heartbeat(true));
    assert_eq!(bench.hear(3, Message::PreVote { attempt: 9 }), answer(false));
    bench.hear(2, heartbeat(false));
    assert_eq!(bench.hear(3, Message::PreVote { attempt: 9 }), answer(true));
    bench.hear(2, heartbeat(true));
    bench.wait(250_000);
    assert_eq!(
        bench.hear(3, Message::PreVote { attempt: 9 }),
        answer(true),
        "silence is no leader"
    );
}

/// L2: "a replica's own promise ... only after the sync". A quorum of two needs the own promise on disk.
#[test]
fn l2_the_own_promise_counts_only_after_its_sync() {
    let mut bench = Bench::fresh(3);
    let (own, standing) = bench.stand();
    assert_eq!(bench.hear(2, promise(own, vec![])), Out::default());
    assert_eq!(bench.replica.status().role, RoleName::Candidate);
    let out = bench.sync(&standing);
    assert_eq!(bench.replica.status().role, RoleName::Leading);
    assert!(
        out.batch.is_some_and(|batch| batch.accepted.len() == 1),
        "its first entry is on its way"
    );
}

/// "v is the value of the highest-numbered proposal among the responses" (PMS, 2.2, phase 2a), and a gap is filled with
/// "a special 'no-op' command that leaves the state unchanged" (PMS, 3).
#[test]
fn phase_2a_reported_values_are_proposed_again_and_gaps_become_noops() {
    let (recovered, values) = disk(vec![accepted(1, ballot(1, 2), establish(1))], 0);
    let mut bench = Bench::admitted(3, recovered, values);
    let (own, standing) = bench.stand();
    bench.sync(&standing);
    let reported = vec![
        accepted(1, ballot(2, 3), establish(2)),
        accepted(3, ballot(2, 3), value(&Command::Noop)),
    ];
    let out = bench.hear(2, promise(own, reported));
    let accepts: Vec<(Slot, Bytes)> = out
        .early
        .iter()
        .filter(|envelope| envelope.to == ReplicaId(3))
        .filter_map(|envelope| match &envelope.message {
            Message::Accept {
                ballot, slot, value, ..
            } if *ballot == own => Some((*slot, value.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(
        accepts[..3],
        [
            (Slot(1), establish(2)),
            (Slot(2), entry::noop()),
            (Slot(3), value(&Command::Noop))
        ]
    );
    assert_eq!(accepts.len(), 4, "then its own first entry");
    assert_eq!(out.batch.map(|batch| batch.accepted.len()), Some(4));
}

/// L2: accept requests may leave before the leader's own sync; its own count waits for it. With one follower's word there
/// is no quorum until then.
#[test]
fn l2_the_own_accepted_counts_only_after_its_sync() {
    let mut bench = Bench::fresh(3);
    let (own, leading) = bench.lead();
    assert!(
        leading
            .early
            .iter()
            .any(|one| matches!(one.message, Message::Accept { slot: Slot(1), .. }))
    );
    let accepted = Message::Accepted {
        ballot: own,
        slot: Slot(1),
    };
    assert_eq!(bench.hear(2, accepted.clone()), Out::default());
    assert_eq!(
        bench.hear(2, accepted),
        Out::default(),
        "one follower is one, however often it says so"
    );
    assert_eq!(bench.replica.status().decided_up_to, Slot::ZERO);
    let out = bench.sync(&leading);
    assert_eq!(bench.replica.status().decided_up_to, Slot(1));
    assert_eq!(
        out,
        Out {
            notices: vec![Notice::Leading(own)],
            ..Out::default()
        }
    );
}

/// "A value is chosen when a single proposal with that value has been accepted by a majority of the acceptors." (PMS, 2.1)
/// Accepts of different ballots are never added up.
#[test]
fn accepts_of_another_ballot_do_not_count() {
    let mut bench = Bench::fresh(3);
    let (own, leading) = bench.lead();
    bench.sync(&leading);
    for other in [
        ballot(own.round, 2),
        ballot(own.round + 1, 1),
        crate::paxos::Ballot { start: 9, ..own },
    ] {
        assert_eq!(
            bench.hear(
                3,
                Message::Accepted {
                    ballot: other,
                    slot: Slot(1)
                }
            ),
            Out::default()
        );
        assert_eq!(bench.replica.ignored(), &[Ignored::StaleBallot]);
    }
    assert_eq!(bench.replica.status().decided_up_to, Slot::ZERO);
}

/// L4: "decided up to here" speaks of the leader's ballot. A value accepted in an older one may have lost, so the slot is
/// asked for.
#[test]
fn l4_a_value_of_an_older_ballot_is_fetched_and_not_taken() {
    let (recovered, values) = disk(vec![accepted(1, ballot(1, 2), establish(1))], 0);
    let mut bench = Bench::admitted(3, recovered, values);
    let heartbeat = Message::Heartbeat {
        ballot: ballot(2, 3),
        decided_up_to: Slot(1),
        sequence: 4,
        has_quorum: true,
    };
    let out = bench.hear(3, heartbeat);
    let answer = Message::HeartbeatAnswer {
        ballot: ballot(2, 3),
        sequence: 4,
        wall: bench.now.wall,
    };
    let expected = Out {
        early: vec![to(3, answer), to(3, Message::CatchUp { above: Slot::ZERO })],
        notices: vec![Notice::Following(ReplicaId(3))],
        ..Out::default()
    };
    assert_eq!(out, expected);
    let decided = Message::Decided {
        first: Slot(1),
        values: vec![establish(2)],
        decided_up_to: Slot(1),
    };
    let out = bench.hear(3, decided);
    let learned = accepted(1, crate::paxos::Ballot::DECIDED, establish(2));
    assert_eq!(out.batch.map(|batch| batch.accepted), Some(vec![learned]));
    assert_eq!(bench.replica.decided_value(Slot(1)), Some(&establish(2)));
}

/// What no longer lies in memory is read from the log by the driver.
#[test]
fn slots_that_left_memory_are_fetched_for_a_lagging_peer() {
    let records: Vec<_> = (1..=3)
        .map(|slot| accepted(slot, ballot(1, 2), value(&Command::Noop)))
        .collect();
    let (recovered, values) = disk(records, 3);
    let config = |bench: &mut Bench| bench.replica.config.limits.retained_bytes_max = 0;
    let mut bench = Bench::admitted(3, recovered, values);
    config(&mut bench);
    bench.wait(1);
    let fetch = Fetch {
        to: ReplicaId(3),
        first: Slot(1),
        up_to: Slot(3),
    };
    let out = bench.hear(3, Message::CatchUp { above: Slot::ZERO });
    assert_eq!(
        out,
        Out {
            fetches: vec![fetch],
            ..Out::default()
        }
    );
    let values = vec![value(&Command::Noop); 3];
    let out = bench.step(Input::Fetched {
        fetch,
        values: Some(values.clone()),
    });
    let decided = Message::Decided {
        first: Slot(1),
        values,
        decided_up_to: Slot(3),
    };
    assert_eq!(
        out,
        Out {
            early: vec![to(3, decided)],
            ..Out::default()
        }
    );
}

/// A slot that leaves memory may not be on disk yet, and the disk may hold an older record of it, of a ballot that lost:
/// the read waits for the sync. (Found by the cluster test: the older value was sent as decided.)
#[test]
fn a_fetch_waits_until_what_left_memory_is_on_disk() {
    let (recovered, values) = disk(vec![accepted(1, ballot(1, 2), establish(1))], 0);
    let mut bench = Bench::admitted(3, recovered, values);
    bench.replica.config.limits.retained_bytes_max = 0;
    let accept = |slot, decided_up_to| Message::Accept {
        ballot: ballot(2, 3),
        slot: Slot(slot),
        value: establish(2),
        decided_up_to: Slot(decided_up_to),
    };
    let mut group = GroupCommit::default();
    for message in [accept(1, 0), accept(2, 1), accept(3, 2)] {
        let envelope = Envelope {
            from: ReplicaId(3),
            to: ReplicaId(1),
            message,
        };
        let effects = bench.replica.step(bench.now, Input::Envelope(envelope));
        if group.is_idle() {
            group = GroupCommit::just_before(&effects);
        }
        assert!(group.push(effects).is_none());
    }
    let question = Envelope {
        from: ReplicaId(2),
        to: ReplicaId(1),
        message: Message::CatchUp { above: Slot::ZERO },
    };
    assert!(
        group
            .push(bench.replica.step(bench.now, Input::Envelope(question)))
            .is_none()
    );
    assert_eq!(group.next_write().map(|batch| batch.accepted.len()), Some(3));
    let fetches: Vec<Fetch> = group
        .on_synced()
        .into_iter()
        .flat_map(|mut synced| synced.take_fetches())
        .collect();
    assert_eq!(
        fetches,
        vec![Fetch {
            to: ReplicaId(2),
            first: Slot(1),
            up_to: Slot(2)
        }]
    );
}

/// L9: what is taken together with the news of a failed write is not written, and nothing that rests on it leaves.
#[test]
fn l9_after_a_failed_write_nothing_is_acknowledged() {
    let mut bench = Bench::fresh(3);
    let accept = |slot| Message::Accept {
        ballot: ballot(1, 2),
        slot: Slot(slot),
        value: establish(1),
        decided_up_to: Slot::ZERO,
    };
    let heard = Input::Envelope(crate::paxos::Envelope {
        from: ReplicaId(2),
        to: ReplicaId(1),
        message: accept(1),
    });
    let failed = Input::WriteFailed {
        text: "no room".to_string(),
        kind: WriteFailure::Full,
    };
    let out = super::open(bench.replica.step_many(bench.now, [heard, failed]));
    assert_eq!((out.batch, out.gated), (None, vec![]));
    assert_eq!(bench.hear(2, accept(2)), Out::default());
    assert_eq!(bench.replica.ignored(), &[Ignored::NotWritable]);
    assert_eq!(bench.replica.status().failure, Some("no room".to_string()));
}

/// A8: a decided entry of a newer program stops the applying, loudly; the replica goes on accepting and never leads.
#[test]
fn a8_a_replica_that_cannot_apply_says_so_and_does_not_stand() {
    let foreign = Bytes::from_static(&[200, 1, 2]);
    let (recovered, values) = disk(vec![accepted(1, ballot(1, 2), foreign)], 1);
    let (mut bench, out) = Bench::started(3, recovered, values);
    assert!(
        matches!(&out.notices[..], [Notice::CannotApply { slot: Slot(1), .. }]),
        "{:?}",
        out.notices
    );
    for peer in [2, 3] {
        let (ballot, slot) = (Ballot::ZERO, Slot::ZERO);
        bench.hear(
            peer,
            Message::HelloAnswer {
                start: 2,
                process: PROCESS,
                contradiction: None,
                ballot,
                slot,
            },
        );
    }
    assert_eq!(bench.wait(600_000), Out::default(), "no pre-vote");
    let accept = Message::Accept {
        ballot: ballot(2, 3),
        slot: Slot(2),
        value: entry::noop(),
        decided_up_to: Slot(1),
    };
    assert_eq!(bench.hear(3, accept).gated.len(), 1);
}
