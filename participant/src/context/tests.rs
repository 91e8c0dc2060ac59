//! The metadata's form: round trips, bounds, and what is refused.

use super::*;
use proptest::prelude::*;

fn headers(key: &HeaderName, bytes: &[u8]) -> HeaderMap {
    HeaderMap::from_iter([(key.clone(), binary(bytes))])
}

fn bytes(headers: &HeaderMap, key: &HeaderName) -> Vec<u8> {
    let map = MetadataMap::from_headers(headers.clone());
    map.get_bin(key.as_str())
        .expect("it is there")
        .to_bytes()
        .expect("base64")
        .to_vec()
}

fn any_context() -> impl Strategy<Value = CallContext> {
    any::<([u8; 16], u64, [u8; 10], u64, u64)>().prop_map(|(lineage, began_at, random, call, deadline)| {
        CallContext {
            lineage: Lineage(lineage),
            gtid: Gtid::new(UnixMillis(began_at), random),
            call: CallId(call),
            deadline: UnixMillis(deadline),
        }
    })
}

fn any_text() -> impl Strategy<Value = String> {
    // At most four bytes a character: within the limit, so that nothing is cut.
    prop::collection::vec(any::<char>(), 0..=REPLY_TEXT_BYTES_MAX / 4).prop_map(String::from_iter)
}

fn any_vote() -> impl Strategy<Value = BranchVote> {
    let transaction = prop::collection::vec(any::<u8>(), 0..=DATABASE_TRANSACTION_BYTES_MAX);
    let vote = prop_oneof![
        4 => (any::<u64>(), transaction).prop_map(|(digest, bytes)| (Vote::Commit, digest, Bytes::from(bytes))),
        1 => Just((Vote::ReadOnly, 0, Bytes::new())),
    ];
    (any::<(u64, u64, [u8; 16])>(), vote).prop_map(|((call, execution, resource), vote)| BranchVote {
        call: CallId(call),
        execution: ExecutionId(execution),
        resource: ResourceId(resource),
        vote: vote.0,
        digest: vote.1,
        database_transaction: vote.2,
    })
}

fn any_doom() -> impl Strategy<Value = Doom> {
    let kind = prop_oneof![Just(AbortKind::Doomed), Just(AbortKind::VotedAbort)];
    (any::<u64>(), kind, any::<Option<(u64, u64)>>(), any_text()).prop_map(|(call, kind, branch, text)| {
        let branch = branch.map(|(call, execution)| (CallId(call), ExecutionId(execution)));
        Doom {
            call: CallId(call),
            cause: AbortCause { kind, branch, text },
        }
    })
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let votes = prop::collection::vec(any_vote(), 0..=BRANCH_COUNT_MAX / 4);
    let open = prop::collection::vec(any_open(), 0..=BRANCH_COUNT_MAX / 4);
    let unnamed = prop::collection::vec(any_vote(), 0..=BRANCH_COUNT_MAX / 2);
    let dooms = prop::collection::vec(any_doom(), 0..=DOOM_COUNT_MAX);
    (any::<u64>(), votes, dooms, open, unnamed).prop_map(|(execution, votes, dooms, open, unnamed)| {
        let named = |vote: BranchVote| NamedBranch {
            call: vote.call,
            execution: vote.execution,
            resource: vote.resource,
            digest: vote.digest,
            database_transaction: vote.database_transaction,
        };
        let unnamed = unnamed.into_iter().map(named).collect();
        Reply {
            execution: ExecutionId(execution),
            votes,
            dooms,
            open,
            unnamed,
        }
    })
}

fn any_open() -> impl Strategy<Value = OpenCalls> {
    let ids = (any::<u64>(), any::<u64>(), any::<[u8; 16]>(), any::<[u8; 16]>());
    (ids, any::<u64>(), 1..=u32::MAX, any::<u32>()).prop_map(
        |((call, execution, resource, instance), token, call_count, count_seen)| OpenCalls {
            branch: OpenBranch {
                call: CallId(call),
                execution: ExecutionId(execution),
                resource: ResourceId(resource),
                instance: InstanceId(instance),
                token: OpenToken(token),
                call_count,
            },
            count_seen,
        },
    )
}

proptest! {
    #[test]
    fn contexts_round_trip(context in any_context()) {
        let mut headers = HeaderMap::new();
        write_context(&context, &mut headers);
        prop_assert_eq!(read_context(&headers), Ok(Some(context)));
    }

    #[test]
    fn votes_round_trip(reply in any_reply()) {
        let mut headers = HeaderMap::new();
        write_votes(&reply, &mut headers).expect("within the limits");
        prop_assert_eq!(read_votes(&headers), Ok(Some(reply)));
    }

    /// A20: whatever a peer sends is a value or an error, never a panic or a large allocation.
    #[test]
    fn arbitrary_bytes_are_refused_or_read(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(first) = bytes.first_mut() {
            *first = if *first & 1 == 0 { VERSION } else { VERSION_OPEN };
        }
        let _value_or_error = read_context(&headers(&CONTEXT_KEY, &bytes));
        let _value_or_error = read_votes(&headers(&VOTES_KEY, &bytes));
    }

    /// Every proper prefix and every extension is refused: one value has one form.
    #[test]
    fn nothing_may_be_missing_or_added(reply in any_reply(), cut in any::<prop::sample::Index>()) {
        let mut map = HeaderMap::new();
        write_votes(&reply, &mut map).expect("within the limits");
        let mut whole = bytes(&map, &VOTES_KEY);
        prop_assert!(read_votes(&headers(&VOTES_KEY, &whole[..cut.index(whole.len())])).is_err());
        whole.push(0);
        prop_assert!(read_votes(&headers(&VOTES_KEY, &whole)).is_err());
    }
}

/// The form is pinned: services of two versions talk to each other (J9).
#[test]
fn the_context_has_these_bytes() {
    let context = CallContext {
        lineage: Lineage([1; 16]),
        gtid: Gtid::new(UnixMillis(0x0102_0304_0506), [0xff; 10]),
        call: CallId(2),
        deadline: UnixMillis(3),
    };
    let mut headers = HeaderMap::new();
    write_context(&context, &mut headers);
    let expected = [
        &[1][..],
        &[1; 16],
        &[
            1, 2, 3, 4, 5, 6, 0x7f, 0xff, 0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ],
        &[0, 0, 0, 0, 0, 0, 0, 2],
        &[0, 0, 0, 0, 0, 0, 0, 3],
    ]
    .concat();
    assert_eq!(bytes(&headers, &CONTEXT_KEY), expected);
}

#[test]
fn a_context_that_is_there_twice_is_refused() {
    let mut headers = HeaderMap::new();
    let context = CallContext {
        lineage: Lineage([1; 16]),
        gtid: Gtid::new(UnixMillis(1), [0; 10]),
        call: CallId(2),
        deadline: UnixMillis(3),
    };
    write_context(&context, &mut headers);
    headers.append(CONTEXT_KEY, HeaderValue::from_static("AQ"));
    let refused = read_context(&headers).map_err(|malformed| malformed.to_string());
    assert_eq!(
        refused,
        Err("malformed metadata `synod-context-bin`: it is there twice".to_owned())
    );
    assert_eq!(read_context(&HeaderMap::new()), Ok(None));
    headers.insert(CONTEXT_KEY, HeaderValue::from_static("?"));
    let refused = read_context(&headers).map_err(|malformed| malformed.to_string());
    assert_eq!(
        refused,
        Err("malformed metadata `synod-context-bin`: it is not base64".to_owned())
    );
}

/// The bounds of one reply: too many branches are an error, long texts and further failures are cut.
#[test]
fn a_reply_is_bounded() {
    let vote = |call: u64, vote| BranchVote {
        call: CallId(call),
        execution: ExecutionId(1),
        resource: ResourceId([0; 16]),
        vote,
        digest: 0,
        database_transaction: Bytes::new(),
    };
    let reply = |votes| Reply {
        execution: ExecutionId(1),
        votes,
        dooms: Vec::new(),
        open: Vec::new(),
        unnamed: Vec::new(),
    };
    let mut headers = HeaderMap::new();
    let many = reply((0..65).map(|call| vote(call, Vote::Commit)).collect());
    assert_eq!(
        write_votes(&many, &mut headers),
        Err(TooManyVotes { branch_count: 65 })
    );
    let aborts = reply(
        (0..65)
            .map(|call| {
                vote(
                    call,
                    Vote::Abort {
                        cause: "ä".repeat(1000),
                    },
                )
            })
            .collect(),
    );
    write_votes(&aborts, &mut headers).expect("four are enough");
    let told = read_votes(&headers).expect("well-formed").expect("there");
    let cut = Vote::Abort {
        cause: "ä".repeat(REPLY_TEXT_BYTES_MAX / 2),
    };
    assert_eq!(told, reply((0..4).map(|call| vote(call, cut.clone())).collect()));
}
