//! One replica, one step, the whole output. Each test quotes the sentence that it checks, or names the rule.
//!
//! *PMS* is Lamport, *Paxos Made Simple* (2001); *PMMC* is van Renesse and Altinbuken, *Paxos Made
//! Moderately Complex* (2015); *CTC* is Gray and Lamport, *Consensus on Transaction Commit* (2006).

mod arbitrary;
mod attacks;
mod bounds;
mod coordinator;
mod deliveries;
mod gate;
mod group_member;
mod handshake;
mod log;
mod preparing;
mod register;

use super::{Admission, Config, Input, Replica, RoleName};
use crate::durable::{Batch, Meta, PeerSeen, Recovered};
use crate::effects::{Effects, Fetch, GroupCommit, Notice, Told, Unsynced};
use crate::entry;
use crate::paxos::{Accepted, Ballot, Envelope, Message, Slot};
use crate::time::{Now, Timestamp};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::command::Command;
use synod_proto::ids::{Incarnation, Lineage, ProcessNonce, ReplicaId, SessionId, UnixMillis};

/// The wall clock of every replica here.
const WALL: UnixMillis = UnixMillis(1_767_225_600_000);

/// The process of replica 1 here.
const PROCESS: ProcessNonce = ProcessNonce(1);

/// All that a step asked for. Gated envelopes are listed as they leave after the sync.
#[derive(Debug, Default, PartialEq, Eq)]
struct Out {
    batch: Option<Batch>,
    early: Vec<Envelope>,
    gated: Vec<Envelope>,
    told: Vec<Told>,
    ended: Vec<SessionId>,
    fetches: Vec<Fetch>,
    notices: Vec<Notice>,
}

fn open(mut effects: Effects<Unsynced>) -> Out {
    let mut out = Out {
        batch: effects.batch().cloned(),
        early: effects.take_early(),
        told: effects.take_told(),
        ended: effects.take_ended(),
        fetches: Vec::new(),
        notices: effects.take_notices(),
        gated: Vec::new(),
    };
    let mut group = GroupCommit::just_before(&effects);
    let synced = match group.push(effects) {
        Some(synced) => vec![synced],
        None => {
            group.next_write().expect("what is gated waits for a write");
            group.on_synced()
        }
    };
    for mut synced in synced {
        out.fetches.extend(synced.take_fetches());
        out.gated.extend(synced.into_gated());
    }
    out
}

/// A replica with what a test needs around it.
struct Bench {
    replica: Replica,
    now: Now,
}

impl Bench {
    /// Replica 1 of `count`, started on `recovered` and not admitted yet, unless it is alone.
    fn started(count: u8, recovered: Recovered, values: Vec<Accepted>) -> (Self, Out) {
        let config = Config::new(
            ReplicaId(1),
            (1..=count).map(ReplicaId).collect(),
            Incarnation([1; 16]),
        );
        let now = Now {
            monotonic: Timestamp(1_000_000),
            wall: WALL,
        };
        let mut replica = Replica::new(config, recovered, PROCESS, 7);
        for value in values {
            replica.load(value);
        }
        let out = open(replica.start(now));
        (Self { replica, now }, out)
    }

    /// Replica 1 of `count`, admitted on the word of all the others.
    fn admitted(count: u8, recovered: Recovered, values: Vec<Accepted>) -> Self {
        let (mut bench, _) = Self::started(count, recovered, values);
        let start = bench.replica.acceptor.meta().start;
        for peer in 2..=count {
            let (ballot, slot) = (Ballot::ZERO, Slot::ZERO);
            bench.hear(
                peer,
                Message::HelloAnswer {
                    start,
                    process: PROCESS,
                    contradiction: None,
                    ballot,
                    slot,
                },
            );
        }
        assert_eq!(bench.replica.status().admission, Admission::Admitted);
        bench
    }

    fn fresh(count: u8) -> Self {
        Self::admitted(count, Recovered::default(), vec![])
    }

    fn step(&mut self, input: Input) -> Out {
        open(self.replica.step(self.now, input))
    }

    fn hear(&mut self, from: u8, message: Message) -> Out {
        self.step(Input::Envelope(Envelope {
            from: ReplicaId(from),
            to: ReplicaId(1),
            message,
        }))
    }

    /// Lets time pass, and the replica see it.
    fn wait(&mut self, micros: u64) -> Out {
        self.now.monotonic = self.now.monotonic.plus(micros);
        self.now.wall = self.now.wall.plus(micros / 1000);
        self.step(Input::Tick)
    }

    /// Feeds the replica what it sent to itself, as a driver does after the sync.
    fn sync(&mut self, out: &Out) -> Out {
        let own = out
            .gated
            .iter()
            .filter(|envelope| envelope.to == ReplicaId(1))
            .cloned();
        let inputs: Vec<Input> = own.map(Input::Envelope).collect();
        open(self.replica.step_many(self.now, inputs))
    }

    /// The election timer runs out; returns the number of the pre-vote.
    fn begin_pre_vote(&mut self) -> u64 {
        let out = self.wait(600_000);
        match out.early.last().map(|envelope| &envelope.message) {
            Some(Message::PreVote { attempt }) => *attempt,
            other => panic!("no pre-vote but {other:?}"),
        }
    }

    /// Stands in phase 1: returns its ballot and the output of the step that began it.
    fn stand(&mut self) -> (Ballot, Out) {
        let attempt = self.begin_pre_vote();
        let grant = Message::PreVoteAnswer {
            attempt,
            granted: true,
            round: 0,
            decided_up_to: Slot::ZERO,
        };
        let out = self.hear(2, grant);
        (self.replica.own_ballot().expect("stands"), out)
    }

    /// Leads after phase 1 with an empty report of replica 2; its first entry is on its way.
    fn lead(&mut self) -> (Ballot, Out) {
        let (ballot, standing) = self.stand();
        self.sync(&standing);
        let out = self.hear(2, promise(ballot, vec![]));
        assert_eq!(self.replica.status().role, RoleName::Leading);
        (ballot, out)
    }

    /// Leads and serves: its first entry is decided.
    fn serve(&mut self) -> Ballot {
        let (ballot, out) = self.lead();
        self.sync(&out);
        self.hear(
            2,
            Message::Accepted {
                ballot,
                slot: Slot(1),
            },
        );
        assert_eq!(self.replica.status().role, RoleName::Serving);
        ballot
    }

    fn meta(&self) -> Meta {
        self.replica.acceptor.meta().clone()
    }
}

fn ballot(round: u64, replica: u8) -> Ballot {
    Ballot {
        round,
        replica: ReplicaId(replica),
        start: 1,
    }
}

fn promise(ballot: Ballot, accepted: Vec<Accepted>) -> Message {
    Message::Promise {
        ballot,
        decided_up_to: Slot::ZERO,
        first_retained: Slot(1),
        accepted,
        unreadable: vec![],
    }
}

fn to(peer: u8, message: Message) -> Envelope {
    Envelope {
        from: ReplicaId(1),
        to: ReplicaId(peer),
        message,
    }
}

/// The same message to replicas 2 and 3.
fn to_both(message: &Message) -> Vec<Envelope> {
    vec![to(2, message.clone()), to(3, message.clone())]
}

/// An entry of one command, with no clock in it.
fn value(command: &Command) -> Bytes {
    entry::encode(UnixMillis(0), UnixMillis(0), &[command.encode()])
}

fn establish(number: u8) -> Bytes {
    value(&Command::Establish(Lineage([number; 16])))
}

fn accepted(slot: u64, ballot: Ballot, value: Bytes) -> Accepted {
    Accepted {
        slot: Slot(slot),
        ballot,
        value,
    }
}

/// A disk that holds these records, with the latest one's ballot promised.
fn disk(records: Vec<Accepted>, decided_up_to: u64) -> (Recovered, Vec<Accepted>) {
    let last = records.last().expect("a record");
    let meta = Meta {
        promised: last.ballot,
        start: 1,
        decided_up_to: Slot(decided_up_to),
        accepted_up_to: last.slot,
        peers: BTreeMap::from([(
            ReplicaId(2),
            PeerSeen {
                incarnation: Incarnation([2; 16]),
                start: 1,
                process: ProcessNonce(2),
            },
        )]),
    };
    let readable = records.iter().map(|one| (one.slot, one.ballot)).collect();
    (
        Recovered {
            meta,
            readable,
            unreadable: BTreeSet::new(),
        },
        records,
    )
}
