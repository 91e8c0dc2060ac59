//! L2: what rests on a write leaves after it, through the one gate of the process.

use super::{Bench, ballot, establish};
use crate::effects::{Effects, GroupCommit, Unsynced};
use crate::paxos::{Envelope, Message, Slot};
use crate::replica::Input;
use synod_proto::ids::ReplicaId;

/// A follower that accepts, and is then asked to accept the same again: the second answer rests on the first one's write.
fn two_steps() -> [Effects<Unsynced>; 2] {
    let mut bench = Bench::fresh(3);
    let envelope = Envelope {
        from: ReplicaId(2),
        to: ReplicaId(1),
        message: Message::Accept {
            ballot: ballot(1, 2),
            slot: Slot(1),
            value: establish(1),
            decided_up_to: Slot::ZERO,
        },
    };
    let mut step = || bench.replica.step(bench.now, Input::Envelope(envelope.clone()));
    [step(), step()]
}

#[test]
fn l2_an_answer_without_a_write_of_its_own_waits_for_the_one_before() {
    let [first, second] = two_steps();
    assert!(second.batch().is_none(), "nothing new to write");
    let mut group = GroupCommit::just_before(&first);
    assert!(group.push(first).is_none());
    assert!(group.push(second).is_none());
    assert!(group.next_write().is_some());
    let left = group.on_synced().into_iter().flat_map(Effects::into_gated);
    assert_eq!(left.count(), 2);
}

/// The second gate knows of no write that is open, and would let the answer out before the first one's sync.
#[test]
#[should_panic(expected = "go through one gate")]
fn l2_a_second_gate_beside_the_first_is_refused() {
    let [first, second] = two_steps();
    let mut group = GroupCommit::just_before(&first);
    assert!(group.push(first).is_none());
    let _ = GroupCommit::default().push(second);
}

#[test]
#[should_panic(expected = "go through one gate")]
fn l2_a_gate_that_missed_a_step_is_refused() {
    let [first, second] = two_steps();
    let mut group = GroupCommit::just_before(&first);
    let _ = group.push(second);
}

/// The gate of one process is none for another, even where the numbers of their steps go on.
#[test]
#[should_panic(expected = "go through one gate")]
fn l2_the_gate_of_another_process_is_refused() {
    let [first, mut second] = two_steps();
    let mut group = GroupCommit::just_before(&first);
    assert!(group.push(first).is_none());
    second.pretend_process(synod_proto::ids::ProcessNonce(0xfeed));
    let _ = group.push(second);
}
