//! Open branches: set up, one input, compare the whole output.

use super::*;
use alloc::vec;
use proptest::prelude::*;

const RESOURCE: ResourceId = ResourceId([2; 16]);
const INSTANCE: InstanceId = InstanceId([3; 16]);
const WALL_AT_START: u64 = 1_000_000;

/// `ms` after the start, on both clocks.
fn at(ms: u64) -> Now {
    Now {
        monotonic: Timestamp(ms * 1000),
        wall: UnixMillis(WALL_AT_START + ms),
    }
}

fn gtid() -> Gtid {
    Gtid::new(UnixMillis(WALL_AT_START), [7; 10])
}

/// Every arrival brings a fresh execution and token; only the first one's are used.
fn arrival(call: u64) -> Arrival {
    Arrival {
        gtid: gtid(),
        resource: RESOURCE,
        call: CallId(call),
        deadline: UnixMillis(WALL_AT_START + 30_000),
        execution: ExecutionId(call + 100),
        token: OpenToken(call + 1000),
    }
}

fn branch() -> BranchId {
    BranchId {
        gtid: gtid(),
        call: CallId(1),
        execution: ExecutionId(101),
    }
}

fn vote(vote: Vote) -> Effect {
    Effect::Vote {
        branch: branch(),
        resource: RESOURCE,
        vote: AskedVote {
            vote,
            digest: 0,
            database_transaction: Bytes::new(),
        },
    }
}

fn vote_abort(cause: &str) -> Effect {
    vote(Vote::Abort {
        cause: cause.to_string(),
    })
}

const ROLL_BACK: fn() -> Effect = || Effect::RollBack { branch: branch() };

struct Host(OpenBranches);

impl Host {
    fn new() -> Self {
        Self(OpenBranches::new(INSTANCE, Limits::default()))
    }

    /// With this many calls, all ended.
    fn after(calls: u64) -> Self {
        let mut host = Self::new();
        for call in 1..=calls {
            host.call(0, call).0.expect("admitted");
            assert_eq!(host.ended(0, Ok(())), vec![]);
        }
        host
    }

    fn call(&mut self, ms: u64, call: u64) -> (Result<Admission, Refused>, Vec<Effect>) {
        let mut effects = Vec::new();
        let admitted = self.0.on_call(at(ms), arrival(call), &mut effects);
        (admitted, effects)
    }

    fn ended(&mut self, ms: u64, ended: Result<(), &str>) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.0
            .on_call_ended(at(ms), branch(), ended.map_err(ToString::to_string), &mut effects);
        effects
    }

    fn prepare(&mut self, ms: u64, call_count: u32) -> Vec<Effect> {
        self.prepare_as(ms, OpenToken(1001), call_count)
    }

    fn prepare_as(&mut self, ms: u64, token: OpenToken, call_count: u32) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.0
            .on_prepare(at(ms), branch(), RESOURCE, (token, call_count), &mut effects);
        effects
    }

    fn prepared(&mut self, ms: u64, answer: Result<Durable, &str>) -> Vec<Effect> {
        let mut effects = Vec::new();
        let answer = answer
            .map(|durable| (durable, 0, Bytes::new()))
            .map_err(ToString::to_string);
        self.0.on_prepared(at(ms), branch(), answer, &mut effects);
        effects
    }

    fn time(&mut self, ms: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.0.on_time(at(ms), &mut effects);
        effects
    }
}

/// T3: all calls of one transaction on one database are one branch, by the first call's id; each reply counts one call and
/// says how many there were.
#[test]
fn calls_share_the_branch_that_the_first_one_opened() {
    let mut host = Host::new();
    let open = OpenBranch {
        call: CallId(1),
        execution: ExecutionId(101),
        resource: RESOURCE,
        instance: INSTANCE,
        token: OpenToken(1001),
        call_count: 1,
    };
    for (call, ordinal) in [(1, 1), (2, 2), (3, 3)] {
        let admission = Admission {
            open,
            ordinal,
            is_first: ordinal == 1,
        };
        assert_eq!(host.call(0, call), (Ok(admission), vec![]));
    }
    let elsewhere = Arrival {
        resource: ResourceId([9; 16]),
        ..arrival(4)
    };
    let other = host
        .0
        .on_call(at(0), elsewhere, &mut Vec::new())
        .expect("admitted");
    assert_eq!((other.open.call, other.is_first), (CallId(4), true));
    assert_eq!(host.0.open_count(), 2);
}

/// C1, T3: the vote to commit is the store's answer, and every Prepare hears the same one.
#[test]
fn the_same_vote_to_every_prepare() {
    let mut host = Host::after(2);
    assert_eq!(host.prepare(1, 2), vec![Effect::Prepare { branch: branch() }]);
    // Asked again while the store is at it, by a new leader perhaps.
    assert_eq!(host.prepare(2, 2), vec![]);
    assert_eq!(host.prepared(3, Ok(Durable::Prepared)), vec![vote(Vote::Commit)]);
    assert_eq!(host.prepare(4, 2), vec![vote(Vote::Commit)]);
    // The same to whoever asks for something else: it has voted, and waits (T8).
    assert_eq!(host.prepare(5, 3), vec![vote(Vote::Commit)]);
    let mut reading = Host::after(1);
    reading.prepare(1, 1);
    assert_eq!(
        reading.prepared(2, Ok(Durable::ReadOnly)),
        vec![vote(Vote::ReadOnly)]
    );
    assert_eq!(reading.prepare(3, 1), vec![vote(Vote::ReadOnly)]);
    let mut failing = Host::after(1);
    failing.prepare(1, 1);
    assert_eq!(
        failing.prepared(2, Err("disk full")),
        vec![vote_abort("disk full")]
    );
    assert_eq!(failing.prepare(3, 1), vec![vote_abort("disk full")]);
}

/// T3: "any difference is a vote to abort".
#[test]
fn any_difference_is_a_vote_to_abort() {
    let mut fewer = Host::after(2);
    let cause = "2 calls ran in the open branch, and the commit counts 1";
    assert_eq!(fewer.prepare(1, 1), vec![ROLL_BACK(), vote_abort(cause)]);
    assert_eq!(
        fewer.prepare(2, 2),
        vec![vote_abort(cause)],
        "there is no second try"
    );

    let mut running = Host::after(1);
    running.call(0, 2).0.expect("admitted");
    let cause = "1 calls of the open branch had not ended when it was to be prepared";
    assert_eq!(running.prepare(1, 2), vec![ROLL_BACK(), vote_abort(cause)]);

    let mut late = Host::after(1);
    let cause = "the deadline passed before the open branch was prepared";
    assert_eq!(late.prepare(30_000, 1), vec![ROLL_BACK(), vote_abort(cause)]);

    // A restarted process, or another transaction's token: the branch that is open here is not touched.
    let mut other = Host::after(1);
    let cause = "the open branch is another one than the commit names";
    assert_eq!(other.prepare_as(1, OpenToken(7), 1), vec![vote_abort(cause)]);
    assert_eq!(other.prepare(2, 1), vec![Effect::Prepare { branch: branch() }]);
    let cause = "this instance knows no such open branch";
    assert_eq!(Host::new().prepare(1, 1), vec![vote_abort(cause)]);
}

/// T2: a call id runs once. The second arrival ends the branch; so does a call that failed half way.
#[test]
fn a_call_that_comes_twice_or_fails_ends_the_branch() {
    let mut host = Host::after(2);
    assert_eq!(host.call(1, 2), (Err(Refused::Duplicate), vec![ROLL_BACK()]));
    let cause = "a call of the open branch came twice".to_string();
    let rolled_back = Refused::RolledBack { cause: cause.clone() };
    assert_eq!(host.call(2, 3), (Err(rolled_back), vec![]));
    assert_eq!(host.prepare(3, 2), vec![vote_abort(&cause)]);

    let mut failing = Host::new();
    failing.call(0, 1).0.expect("admitted");
    assert_eq!(failing.ended(1, Err("out of stock")), vec![ROLL_BACK()]);
    assert_eq!(failing.prepare(2, 1), vec![vote_abort("out of stock")]);
    assert_eq!(failing.0.cause(branch()), Some("out of stock".to_string()));
}

/// T3, B3: a call that comes after Prepare is refused, and what has voted stays.
#[test]
fn a_call_after_prepare_is_refused() {
    let mut host = Host::after(1);
    host.prepare(1, 1);
    assert_eq!(host.call(2, 2), (Err(Refused::AfterPrepare), vec![]));
    host.prepared(3, Ok(Durable::Prepared));
    assert_eq!(host.call(4, 2), (Err(Refused::AfterPrepare), vec![]));
    assert_eq!(host.prepare(5, 1), vec![vote(Vote::Commit)]);
    // Neither does giving up undo a vote (T8).
    let mut effects = Vec::new();
    host.0.give_up(at(6), branch(), "decided", &mut effects);
    assert_eq!(effects, vec![]);
    assert_eq!(host.prepare(7, 1), vec![vote(Vote::Commit)]);
}

/// A20: a branch that nobody comes back to gives its locks back; a call that runs long is no idleness, and its end is the
/// deadline.
#[test]
fn idle_branches_and_late_ones_are_rolled_back() {
    let mut idle = Host::after(1);
    assert_eq!(idle.0.next_timeout(), Some(at(10_000).monotonic));
    assert_eq!(idle.time(9_999), vec![]);
    assert_eq!(idle.time(10_000), vec![ROLL_BACK()]);
    assert_eq!(idle.0.open_count(), 0);

    let mut busy = Host::new();
    busy.call(0, 1).0.expect("admitted");
    assert_eq!(busy.time(29_999), vec![]);
    assert_eq!(busy.time(30_000), vec![ROLL_BACK()]);
    // The vote is remembered while a leader may still ask, and no longer.
    let cause = "the deadline passed before the commit";
    assert_eq!(busy.prepare(39_999, 1), vec![vote_abort(cause)]);
    assert_eq!(busy.time(40_000), vec![]);
    assert_eq!(busy.0.next_timeout(), None);
    let unknown = "this instance knows no such open branch";
    assert_eq!(busy.prepare(40_001, 1), vec![vote_abort(unknown)]);
}

/// A20: what callers make here is bounded: open branches, calls of one, and remembered votes.
#[test]
fn open_branches_are_bounded() {
    let limits = Limits {
        open_count_max: 2,
        call_count_max: 2,
        ended_count_max: 3,
        idle_timeout: Duration::from_secs(10),
    };
    let mut host = OpenBranches::new(INSTANCE, limits);
    let mut effects = Vec::new();
    let of = |number: u8, call: u64| Arrival {
        gtid: Gtid::new(UnixMillis(WALL_AT_START), [number; 10]),
        ..arrival(call)
    };
    for number in [1, 2] {
        host.on_call(at(0), of(number, 1), &mut effects)
            .expect("admitted");
    }
    assert_eq!(
        host.on_call(at(0), of(3, 1), &mut effects),
        Err(Refused::TooManyOpen)
    );
    host.on_call(at(0), of(1, 2), &mut effects).expect("admitted");
    assert_eq!(
        host.on_call(at(0), of(1, 3), &mut effects),
        Err(Refused::TooManyCalls)
    );
    for number in 3..20 {
        let admitted = host.on_call(at(0), of(number, 1), &mut effects).expect("room");
        let branch = BranchId {
            gtid: of(number, 1).gtid,
            call: admitted.open.call,
            execution: admitted.open.execution,
        };
        host.give_up(at(0), branch, "why", &mut effects);
    }
    assert_eq!(host.entries.len(), 1 + 3, "one open, three remembered");
    assert_eq!(
        (host.current.len(), host.ended.len(), host.open_count()),
        (4, 3, 1)
    );
}

#[derive(Clone, Debug)]
enum Step {
    Call(u64),
    Ended(bool),
    Prepare(u32),
    Prepared(bool),
    GiveUp,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6_u64).prop_map(Step::Call),
        4 => prop::bool::weighted(0.9).prop_map(Step::Ended),
        2 => (0..5_u32).prop_map(Step::Prepare),
        2 => any::<bool>().prop_map(Step::Prepared),
        1 => Just(Step::GiveUp),
        1 => (0..12_000_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever arrives in whatever order, of one branch: it votes once and always the same; to commit only after the store
    /// was asked, once, with exactly the calls that were admitted and no other running; never a call after that.
    #[test]
    fn whatever_arrives_it_votes_once(steps in prop::collection::vec(step(), 0..40)) {
        let mut host = Host::new();
        let (mut ms, mut running, mut admitted) = (0, 0_u32, 0_u32);
        let (mut asked, mut is_at_store, mut first_vote) = (0, false, None::<AskedVote>);
        let mut is_rolled_back = false;
        for step in steps {
            let effects = match step {
                Step::Call(call) => {
                    // Later runs of the transaction on this instance would be other branches: one is looked at.
                    let (result, effects) = host.call(ms, call);
                    if let Ok(admission) = result {
                        prop_assert!(first_vote.is_none() && asked == 0 && !is_rolled_back);
                        if branch_of(&admission) != branch() { return Ok(()); }
                        admitted += 1;
                        running += 1;
                        prop_assert_eq!(admission.ordinal, admitted);
                    }
                    effects
                }
                Step::Ended(is_well) if running > 0 => {
                    running -= 1;
                    host.ended(ms, if is_well { Ok(()) } else { Err("failed") })
                }
                Step::Prepare(count) => {
                    let effects = host.prepare(ms, count);
                    if effects.contains(&(Effect::Prepare { branch: branch() })) {
                        prop_assert_eq!((count, running), (admitted, 0));
                    }
                    effects
                }
                Step::Prepared(is_well) if is_at_store => {
                    is_at_store = false;
                    host.prepared(ms, if is_well { Ok(Durable::Prepared) } else { Err("full") })
                }
                Step::GiveUp => {
                    let mut effects = Vec::new();
                    host.0.give_up(at(ms), branch(), "decided", &mut effects);
                    effects
                }
                Step::Wait(wait) => {
                    ms += wait;
                    host.time(ms)
                }
                Step::Ended(_) | Step::Prepared(_) => vec![],
            };
            if ms >= 30_000 { return Ok(()); }
            for effect in effects {
                match effect {
                    Effect::Prepare { .. } => {
                        asked += 1;
                        is_at_store = true;
                        prop_assert!(asked == 1 && !is_rolled_back);
                    }
                    Effect::RollBack { .. } => {
                        prop_assert!(!is_rolled_back && asked == 0);
                        is_rolled_back = true;
                    }
                    Effect::Vote { vote, .. } if admitted > 0 => {
                        if vote.vote == Vote::Commit {
                            prop_assert!(asked == 1 && !is_rolled_back);
                        }
                        let first = first_vote.get_or_insert_with(|| vote.clone());
                        prop_assert_eq!(&vote, first);
                    }
                    Effect::Vote { vote, .. } => prop_assert!(vote.vote != Vote::Commit),
                }
            }
        }
    }
}

fn branch_of(admission: &Admission) -> BranchId {
    BranchId {
        gtid: gtid(),
        call: admission.open.call,
        execution: admission.open.execution,
    }
}
