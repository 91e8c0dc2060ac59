//! The few functions that a decision spends its time in, for a group of 128 decisions: what one entry holds at 256
//! transactions in flight. Run with `cargo bench -p synod-coordinator`.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message as _;
use std::hint::black_box;
use synod_coordinator_core::entry;
use synod_coordinator_core::machine::Machine;
use synod_coordinator_core::paxos::Slot;
use synod_proto::command::{Command, Decide, NamedBranch, Proposal};
use synod_proto::ids::{CallId, ExecutionId, Gtid, Lineage, RequestId, ResourceId, UnixMillis};
use synod_proto::session::{Decision, Request, Response};
use synod_proto::{v1, wire};

/// Decisions in one entry.
const GROUP_COUNT: u64 = 128;

/// Outcomes in the register that the entry is applied to: the maps' depth counts.
const REGISTER_COUNT: u64 = 100_000;

const LINEAGE: Lineage = Lineage([7; 16]);
const RESOURCES: [ResourceId; 2] = [ResourceId([1; 16]), ResourceId([2; 16])];
const BEGUN: UnixMillis = UnixMillis(1_700_000_000_000);

/// A commit of two branches; `number` tells it from the others.
fn decide(number: u64) -> Decide {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    let branch = |index: usize| NamedBranch {
        call: CallId(index as u64),
        execution: ExecutionId(number),
        resource: RESOURCES[index],
        digest: 0,
        database_transaction: Bytes::new(),
    };
    Decide {
        lineage: LINEAGE,
        gtid: Gtid::new(BEGUN.plus(number / 100), random),
        deadline: BEGUN.plus(30_000),
        proposal: Proposal::Commit {
            branches: vec![branch(0), branch(1)],
            read_only_count: 0,
        },
        guards: Vec::new(),
    }
}

fn commands(from: u64) -> Vec<Bytes> {
    (from..from + GROUP_COUNT)
        .map(|number| decide(number).encode())
        .collect()
}

fn value(commands: &[Bytes]) -> Bytes {
    entry::encode(BEGUN, UnixMillis(0), commands)
}

/// A register that has been in use for a while.
fn machine() -> Machine {
    let mut machine = Machine::default();
    let first = [
        Command::Establish(LINEAGE).encode(),
        Command::Enrol(RESOURCES.to_vec()).encode(),
    ];
    machine.apply(Slot(1), &value(&first)).expect("a valid entry");
    for group in 0..REGISTER_COUNT / GROUP_COUNT {
        let slot = machine.applied_up_to().next();
        machine
            .apply(slot, &value(&commands(group * GROUP_COUNT)))
            .expect("a valid entry");
    }
    machine
}

fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("128 decisions");
    group.throughput(Throughput::Elements(GROUP_COUNT));
    let encoded = commands(REGISTER_COUNT);

    group.bench_function("validate the proposals", |bencher| {
        bencher.iter(|| {
            for command in &encoded {
                black_box(Decide::decode(command).expect("a valid command"));
            }
        });
    });
    group.bench_function("form the entry", |bencher| {
        bencher.iter(|| black_box(value(&encoded)));
    });
    let (machine, entry) = (machine(), value(&encoded));
    group.bench_function("apply the entry", |bencher| {
        bencher.iter_batched_ref(
            || machine.clone(),
            |machine| {
                let slot = machine.applied_up_to().next();
                black_box(machine.apply(slot, &entry).expect("a valid entry"))
            },
            BatchSize::LargeInput,
        );
    });

    let requests = encoded.iter().zip(1..).map(|(command, number)| {
        v1::SessionRequest::from(Request::Decide {
            request: RequestId(number),
            command: command.clone(),
        })
    });
    let message = Bytes::from(
        v1::SessionRequests {
            requests: requests.collect(),
        }
        .encode_to_vec(),
    );
    group.bench_function("read a session's message", |bencher| {
        bencher.iter(|| {
            let message = v1::SessionRequests::decode(message.clone()).expect("a valid message");
            for request in message.requests {
                black_box(Request::try_from(request).expect("a valid request"));
            }
        });
    });
    group.bench_function("write a session's message", |bencher| {
        bencher.iter(|| {
            let response = |number| {
                let decided = Response::Decided {
                    request: RequestId(number),
                    decision: Decision::Committed,
                };
                wire::response(decided, |_| None)
            };
            let responses = (0..GROUP_COUNT).map(response).collect();
            black_box(v1::SessionResponses { responses }.encode_to_vec())
        });
    });
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
