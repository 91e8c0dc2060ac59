//! The log's format is pinned: a log written by any released version is read by every later one (J9).

mod fixture;

use bytes::Bytes;
use std::collections::BTreeMap;
use synod_proto::command::{Command, CommandError, Decide, Guard, NamedBranch, Proposal, Settle};
use synod_proto::ids::{CallId, ExecutionId, Gtid, Lineage, ResourceId, UnixMillis};
use synod_proto::limits::{
    BRANCH_COUNT_MAX, COMMAND_BYTES_MAX, DATABASE_TRANSACTION_BYTES_MAX, TEXT_BYTES_MAX,
};
use synod_proto::session::{AbortCause, AbortKind};

/// The fixture file.
fn fixtures() -> BTreeMap<&'static str, Bytes> {
    fixture::read(include_str!("fixtures/commands.txt"))
}

fn gtid() -> Gtid {
    "017f22e2-79b0-7cc3-98c4-dc0c0c07398f".parse().expect("a gtid")
}

fn branch(call: u64, execution: u64, resource: u8) -> NamedBranch {
    NamedBranch {
        call: CallId(call),
        execution: ExecutionId(execution),
        resource: ResourceId([resource; 16]),
        digest: 0,
        database_transaction: Bytes::new(),
    }
}

fn decide(proposal: Proposal) -> Decide {
    Decide {
        lineage: Lineage([0x11; 16]),
        gtid: gtid(),
        deadline: gtid().began_at().plus(30_000),
        proposal,
        guards: Vec::new(),
    }
}

fn abort(kind: AbortKind) -> Command {
    Command::Decide(decide(Proposal::Abort {
        cause: AbortCause::new(kind, ""),
        branches: Vec::new(),
    }))
}

/// What the fixtures say.
fn commands() -> BTreeMap<&'static str, Command> {
    let with_proof = NamedBranch {
        digest: 0x0123_4567_89ab_cdef,
        database_transaction: Bytes::copy_from_slice(&762u64.to_be_bytes()),
        ..branch(7, u64::MAX, 0x22)
    };
    let commit = Proposal::Commit {
        branches: vec![with_proof, branch(8, 1, 0x33)],
        read_only_count: 3,
    };
    let guarded = Decide {
        guards: vec![Guard {
            name: Bytes::from_static(b"stock"),
            token: 42,
        }],
        ..decide(Proposal::Commit {
            branches: Vec::new(),
            read_only_count: 0,
        })
    };
    let voted = Proposal::Abort {
        cause: AbortCause::new(AbortKind::VotedAbort, "out of stock!").with_branch(CallId(7), ExecutionId(9)),
        branches: vec![branch(7, 8, 0x22)],
    };
    let later = Gtid::new(gtid().began_at().plus(1), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0f]);
    BTreeMap::from([
        ("noop", Command::Noop),
        ("establish", Command::Establish(Lineage([0x11; 16]))),
        ("commit", Command::Decide(decide(commit))),
        ("commit with guards", Command::Decide(guarded)),
        ("abort by a branch", Command::Decide(decide(voted))),
        ("abort requested", abort(AbortKind::Requested)),
        ("abort doomed", abort(AbortKind::Doomed)),
        ("abort dropped", abort(AbortKind::Dropped)),
        ("abort deadline", abort(AbortKind::Deadline)),
        ("abort operator", abort(AbortKind::Operator)),
        ("delivered", Command::Delivered(vec![gtid(), later])),
        (
            "settle",
            Command::Settle(Settle {
                gtid: gtid(),
                call: CallId(7),
                execution: ExecutionId(9),
                author: "ann".into(),
                reason: "disk was öld".into(),
            }),
        ),
        ("enrol", Command::Enrol(vec![ResourceId([0x22; 16])])),
    ])
}

#[test]
fn commands_have_the_bytes_of_the_fixtures() {
    let encoded: BTreeMap<_, _> = commands()
        .into_iter()
        .map(|(name, command)| (name, command.encode()))
        .collect();
    assert_eq!(encoded, fixtures());
}

#[test]
fn the_fixtures_are_read_as_these_commands() {
    let decoded: BTreeMap<_, _> = fixtures()
        .into_iter()
        .map(|(name, bytes)| (name, Command::decode(&bytes)))
        .collect();
    let expected: BTreeMap<_, _> = commands()
        .into_iter()
        .map(|(name, command)| (name, Ok(command)))
        .collect();
    assert_eq!(decoded, expected);
}

/// Every variant has a fixture: this match does not compile when one is added, and the one who adds it reads this.
#[test]
fn no_command_is_without_a_fixture() {
    let tag = |command: &Command| match command {
        Command::Noop => 0,
        Command::Establish(_) => 1,
        Command::Decide(_) => 2,
        Command::Delivered(_) => 3,
        Command::Settle(_) => 4,
        Command::Enrol(_) => 5,
    };
    let tags: std::collections::BTreeSet<u8> = commands().values().map(tag).collect();
    assert!(tags.into_iter().eq(0..=5));
}

/// The fixture's bytes with one place overwritten.
fn patched(name: &str, at: usize, bytes: &[u8]) -> Bytes {
    let mut command = fixtures()[name].to_vec();
    command[at..at + bytes.len()].copy_from_slice(bytes);
    command.into()
}

/// What no encoder writes is refused with its own reason (A20).
#[test]
fn strange_commands_are_refused_by_name() {
    let decode = |bytes: Bytes| Command::decode(&bytes).expect_err("refused");
    let unknown = |what, tag| CommandError::Unknown { what, tag };
    let limit = |what, max| CommandError::Limit { what, max };

    assert_eq!(decode(Bytes::new()), CommandError::Length);
    assert_eq!(decode(patched("noop", 0, &[6])), unknown("command", 6));
    assert_eq!(
        decode(patched("commit", 1, &[2])),
        unknown("version of Decide", 2)
    );
    // Byte 24 holds the version of the UUID: 2 bytes of head, 16 of lineage, 6 of time.
    assert_eq!(
        decode(patched("commit", 24, &[0x4c])),
        CommandError::Malformed { what: "gtid" }
    );
    assert_eq!(decode(patched("commit", 42, &[3])), unknown("verdict", 3));
    assert_eq!(
        decode(patched("commit", 47, &65u16.to_be_bytes())),
        limit("branches", BRANCH_COUNT_MAX)
    );
    assert_eq!(
        decode(patched("commit", 89, &65u16.to_be_bytes())),
        limit(
            "bytes of a database transaction id",
            DATABASE_TRANSACTION_BYTES_MAX
        )
    );
    // The second branch's call made smaller than, then equal to, the first one's.
    assert_eq!(
        decode(patched("commit", 99, &6u64.to_be_bytes())),
        CommandError::Order
    );
    assert_eq!(
        decode(patched("abort requested", 43, &[0])),
        unknown("abort cause", 0)
    );
    assert_eq!(
        decode(patched("abort requested", 44, &[2])),
        unknown("optional", 2)
    );
    assert_eq!(
        decode(patched("abort requested", 45, &513u16.to_be_bytes())),
        limit("cause", TEXT_BYTES_MAX)
    );
    assert_eq!(
        decode(patched("settle", 35, &[0xff])),
        CommandError::Malformed { what: "author" }
    );
    assert_eq!(
        decode(patched("delivered", 1, &1025u16.to_be_bytes())),
        limit("gtids", 1024)
    );
    assert_eq!(
        decode(patched("enrol", 1, &65u16.to_be_bytes())),
        limit("resources", 64)
    );
    assert_eq!(
        decode(vec![0; COMMAND_BYTES_MAX + 1].into()),
        limit("bytes of command", COMMAND_BYTES_MAX)
    );
    assert_eq!(Decide::decode(&fixtures()["noop"]), Err(unknown("proposal", 0)));
}

/// T2: a commit names one execution of a call; an abort may tell both.
#[test]
fn a_commit_names_one_execution_of_a_call() {
    let two = vec![branch(7, 1, 0x22), branch(7, 2, 0x22)];
    let commit = decide(Proposal::Commit {
        branches: two.clone(),
        read_only_count: 0,
    });
    assert_eq!(Decide::decode(&commit.encode()), Err(CommandError::TwoExecutions));
    let abort = decide(Proposal::Abort {
        cause: AbortCause::new(AbortKind::Doomed, ""),
        branches: two,
    });
    assert_eq!(Decide::decode(&abort.encode()), Ok(abort));
}

/// T5: a branch named twice, or branches in another order, are another set only in appearance.
#[test]
fn branches_come_in_order_and_once() {
    for pair in [[(7, 1), (7, 1)], [(7, 2), (7, 1)], [(8, 1), (7, 1)]] {
        let branches = pair
            .map(|(call, execution)| branch(call, execution, 0x22))
            .to_vec();
        let commit = decide(Proposal::Commit {
            branches,
            read_only_count: 0,
        });
        assert_eq!(
            Decide::decode(&commit.encode()),
            Err(CommandError::Order),
            "{pair:?}"
        );
    }
}

/// The largest commit record fits its limit with room for what is reserved (A20).
#[test]
fn the_largest_commit_fits() {
    let widest = |call| NamedBranch {
        database_transaction: vec![0xff; DATABASE_TRANSACTION_BYTES_MAX].into(),
        ..branch(call, u64::MAX, 0xff)
    };
    let count = u64::try_from(BRANCH_COUNT_MAX).expect("small");
    let largest = Decide {
        guards: vec![
            Guard {
                name: vec![0xff; 128].into(),
                token: u64::MAX
            };
            16
        ],
        deadline: UnixMillis(u64::MAX),
        ..decide(Proposal::Commit {
            branches: (0..count).map(widest).collect(),
            read_only_count: u32::MAX,
        })
    };
    let bytes = largest.encode();
    assert!(bytes.len() <= COMMAND_BYTES_MAX, "{} bytes", bytes.len());
    assert_eq!(Decide::decode(&bytes), Ok(largest));
}

/// What would decode nowhere must not reach the log (A8): the leader that made it fails before it proposes.
#[test]
#[should_panic(expected = "a command that no replica could read")]
fn an_unreadable_command_is_not_encoded() {
    let _ = Command::Delivered(vec![gtid(); 1025]).encode();
}
