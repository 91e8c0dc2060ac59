//! One check's database, and the steps that checks are made of. Each step says what it expects.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, Lineage, UnixMillis};

use super::{Failure, Harness, Rule, TransactionOf};
use crate::BoxError;
use crate::resource::{
    BranchContext, BranchState, Effect, LowWater, Prepared, Remedy, ResourceError, ResourceManager, Vote,
};

/// The coordinator that all databases of the kit belong to.
pub(super) const LINEAGE: Lineage = Lineage([7; 16]);

/// Transactions of a check are numbered; this is the time of number 0, before now: marks must not lie ahead of
/// clocks.
const NUMBERS_BEFORE_NOW_MS: u64 = 10 * 60 * 1000;

/// How long a branch may work, unless its check is about that: longer than a check may take.
const DEADLINE_MS: u64 = 5 * 60 * 1000;

/// How long *call again* is heeded.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much later than its deadline a wait may end: a busy machine, not a rule.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// A check ends here, before its end.
#[derive(Debug)]
pub(super) enum Stop {
    Failed(Failure),
    Skipped(&'static str),
}

/// What a check returns.
pub(super) type Checked = Result<(), Stop>;

pub(super) fn broken(
    rule: Rule,
    step: impl Into<String>,
    expected: impl Display,
    found: impl Display,
) -> Stop {
    Stop::Failed(Failure {
        rule,
        step: step.into(),
        expected: expected.to_string(),
        found: found.to_string(),
    })
}

pub(super) fn expect_equal<T: PartialEq + Debug>(rule: Rule, step: &str, expected: &T, found: &T) -> Checked {
    if expected == found {
        return Ok(());
    }
    Err(broken(rule, step, format!("{expected:?}"), format!("{found:?}")))
}

/// An error as a report shows it: for people, and by its variant.
pub(super) fn shown(error: &ResourceError) -> String {
    format!("{error} ({error:?})")
}

pub(super) fn now() -> UnixMillis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// What a repeated answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Applied,
    AlreadyApplied,
    /// Either of them.
    Done,
    Unknown,
}

impl Answer {
    fn allows(self, effect: &Effect) -> bool {
        match (self, effect) {
            (Self::Applied | Self::Done, Effect::Applied)
            | (Self::AlreadyApplied | Self::Done, Effect::AlreadyApplied)
            | (Self::Unknown, Effect::Unknown { .. }) => true,
            (_, Effect::Applied | Effect::AlreadyApplied | Effect::Unknown { .. }) => false,
        }
    }
}

/// Which way a branch is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    Commit,
    Abort,
}

impl Finish {
    pub(super) const BOTH: [Self; 2] = [Self::Commit, Self::Abort];

    pub(super) fn contrary(self) -> Self {
        match self {
            Self::Commit => Self::Abort,
            Self::Abort => Self::Commit,
        }
    }

    /// How often the work of one branch shows afterwards.
    pub(super) fn effect(self) -> u64 {
        match self {
            Self::Commit => 1,
            Self::Abort => 0,
        }
    }

    pub(super) fn state(self) -> BranchState {
        match self {
            Self::Commit => BranchState::Committed,
            Self::Abort => BranchState::Aborted,
        }
    }
}

pub(super) struct Trial<'harness, H: Harness> {
    pub(super) harness: &'harness H,
    pub(super) database: H::Database,
    store: Option<H::Store>,
    /// The instant of transaction 0.
    base: UnixMillis,
}

impl<'harness, H: Harness> Trial<'harness, H> {
    /// A new database, open and bound.
    pub(super) async fn bound(harness: &'harness H, check: &str) -> Result<Self, Stop> {
        let trial = Self::unbound(harness, check).await?;
        let identity = trial.store().identity(Some(LINEAGE)).await;
        identity.map_err(|error| {
            broken(
                Rule::Must(13),
                "bind a new database",
                "it is bound",
                shown(&error),
            )
        })?;
        Ok(trial)
    }

    pub(super) async fn unbound(harness: &'harness H, check: &str) -> Result<Self, Stop> {
        let database = harness.create(check).await;
        let database = database.map_err(|error| of_harness("create a database", &error))?;
        let mut trial = Self {
            harness,
            database,
            store: None,
            base: now().minus(NUMBERS_BEFORE_NOW_MS),
        };
        trial.open().await?;
        Ok(trial)
    }

    async fn open(&mut self) -> Checked {
        let store = self.harness.open(&self.database).await;
        let store =
            store.map_err(|error| broken(Rule::Ordinary, "open the database", "it opens", shown(&error)))?;
        self.store = Some(store);
        Ok(())
    }

    pub(super) fn store(&self) -> &H::Store {
        self.store.as_ref().expect("open, but while it is opened anew")
    }

    /// The process dies with what `in_memory` holds, and another one starts.
    pub(super) async fn crash<T>(&mut self, in_memory: T) -> Checked {
        let crashed = self.harness.crash(&self.database).await;
        crashed.map_err(|error| of_harness("crash", &error))?;
        drop(in_memory);
        self.store = None;
        self.open().await
    }

    /// The process ends in good order, and another one starts.
    pub(super) async fn reopen(&mut self) -> Checked {
        self.store = None;
        self.open().await
    }

    /// The process ends in good order; another one is there already.
    pub(super) fn replace(&mut self, other: H::Store) {
        self.store = Some(other);
    }

    /// When the numbered transaction began.
    pub(super) fn began_at(&self, number: u64) -> UnixMillis {
        self.base.plus(number)
    }

    pub(super) fn branch(&self, number: u64) -> BranchId {
        self.branch_of(number, number)
    }

    /// The branch of one call of the numbered transaction.
    pub(super) fn branch_of(&self, number: u64, call: u64) -> BranchId {
        let mut random = [0; 10];
        random[2..].copy_from_slice(&number.to_be_bytes());
        BranchId {
            gtid: Gtid::new(self.began_at(number), random),
            call: CallId(call),
            execution: ExecutionId(call.wrapping_add(1_000_000)),
        }
    }

    pub(super) fn context(&self, number: u64) -> BranchContext {
        self.context_of(self.branch(number), DEADLINE_MS)
    }

    pub(super) fn context_of(&self, branch: BranchId, deadline_in_ms: u64) -> BranchContext {
        BranchContext {
            branch,
            lineage: LINEAGE,
            deadline: now().plus(deadline_in_ms),
        }
    }

    pub(super) fn low_water(&self, mark: UnixMillis, unfinished: &[u64]) -> LowWater {
        LowWater {
            mark,
            unfinished: unfinished
                .iter()
                .map(|number| self.branch(*number).gtid)
                .collect(),
        }
    }

    // The steps of a branch: what a healthy store does.

    pub(super) async fn begin(&self, context: &BranchContext) -> Result<TransactionOf<H>, Stop> {
        let begun = self.store().begin(context).await;
        begun.map_err(|error| broken(Rule::Ordinary, "begin a branch", "it begins", shown(&error)))
    }

    pub(super) async fn work(&self, context: &BranchContext, item: &str) -> Result<TransactionOf<H>, Stop> {
        let mut tx = self.begin(context).await?;
        let worked = self.harness.work(&mut tx, item).await;
        worked.map_err(|error| {
            broken(
                Rule::Ordinary,
                format!("work on {item:?}"),
                "it works",
                shown(&error),
            )
        })?;
        Ok(tx)
    }

    pub(super) async fn prepare(&self, context: &BranchContext, tx: TransactionOf<H>) -> Checked {
        let step = "prepare a branch that has written";
        match self.store().prepare(context, tx).await {
            Ok(Prepared {
                vote: Vote::Commit, ..
            }) => Ok(()),
            Ok(Prepared { vote, .. }) => Err(broken(
                Rule::Must(6),
                step,
                "a vote to commit",
                format!("{vote:?}"),
            )),
            Err(error) => Err(broken(Rule::Ordinary, step, "a vote to commit", shown(&error))),
        }
    }

    /// A branch that did one piece of work and is prepared.
    pub(super) async fn prepared(&self, number: u64, item: &str) -> Result<BranchContext, Stop> {
        let context = self.context(number);
        let tx = self.work(&context, item).await?;
        self.prepare(&context, tx).await?;
        Ok(context)
    }

    /// Tries all of that; `Err` is the store's refusal, at whatever step.
    pub(super) async fn attempt(&self, context: &BranchContext, item: &str) -> Result<Vote, ResourceError> {
        let mut tx = self.store().begin(context).await?;
        self.harness.work(&mut tx, item).await?;
        Ok(self.store().prepare(context, tx).await?.vote)
    }

    /// Commits or aborts, again while the store asks for it.
    pub(super) async fn finish(&self, branch: &BranchId, finish: Finish) -> Result<Effect, ResourceError> {
        let begun = Instant::now();
        loop {
            let answer = match finish {
                Finish::Commit => self.store().commit(branch).await,
                Finish::Abort => self.store().abort(branch).await,
            };
            match answer {
                Err(error) if error.remedy() == Remedy::CallAgain && begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                answer => return answer,
            }
        }
    }

    /// Commits or aborts, and looks at the answer.
    pub(super) async fn expect_finish(
        &self,
        rule: Rule,
        step: &str,
        branch: &BranchId,
        finish: Finish,
        answer: Answer,
    ) -> Checked {
        let step = format!("{step}, {finish:?}");
        match self.finish(branch, finish).await {
            Ok(effect) if answer.allows(&effect) => Ok(()),
            Ok(effect) => Err(broken(rule, step, format!("{answer:?}"), format!("{effect:?}"))),
            Err(error) => Err(broken(rule, step, format!("{answer:?}"), shown(&error))),
        }
    }

    pub(super) async fn expect_effect(&self, rule: Rule, step: &str, item: &str, expected: u64) -> Checked {
        let found = self.harness.effect(self.store(), item).await;
        let found = found.map_err(|error| of_harness("read an effect", &error))?;
        let times = |count: u64| format!("work on {item:?} in effect {count} time(s)");
        if found == expected {
            return Ok(());
        }
        Err(broken(rule, step, times(expected), times(found)))
    }

    pub(super) async fn expect_state(
        &self,
        rule: Rule,
        step: &str,
        branch: &BranchId,
        expected: BranchState,
    ) -> Checked {
        let found = self.store().status(branch).await;
        let found =
            found.map_err(|error| broken(rule, step, format!("status {expected:?}"), shown(&error)))?;
        expect_equal(rule, &format!("{step}: status"), &expected, &found)
    }

    /// The list is of exactly these branches, in the order of ids.
    pub(super) async fn expect_in_doubt(
        &self,
        rule: Rule,
        step: &str,
        expected: impl IntoIterator<Item = &BranchContext>,
    ) -> Checked {
        let found = self.in_doubt(rule, step).await?;
        let found: Vec<_> = found.into_iter().map(|context| context.branch).collect();
        let mut expected: Vec<_> = expected.into_iter().map(|context| context.branch).collect();
        expected.sort();
        expect_equal(rule, &format!("{step}: in_doubt"), &expected, &found)
    }

    /// And each with all that it takes to resolve it (T12).
    pub(super) async fn expect_contexts(
        &self,
        rule: Rule,
        step: &str,
        expected: impl IntoIterator<Item = &BranchContext>,
    ) -> Checked {
        let found = self.in_doubt(rule, step).await?;
        let mut expected: Vec<_> = expected.into_iter().cloned().collect();
        expected.sort_by_key(|context| context.branch);
        expect_equal(rule, &format!("{step}: contexts of in_doubt"), &expected, &found)
    }

    async fn in_doubt(&self, rule: Rule, step: &str) -> Result<Vec<BranchContext>, Stop> {
        let found = self.store().in_doubt().await;
        let found = found.map_err(|error| broken(rule, step, "a list of what is in doubt", shown(&error)))?;
        Ok(found.into_iter().map(|branch| branch.context).collect())
    }

    pub(super) async fn forget(&self, step: &str, low_water: &LowWater) -> Checked {
        let forgotten = self.store().forget(low_water).await;
        let forgotten =
            forgotten.map_err(|error| broken(Rule::Must(11), step, "forget succeeds", shown(&error)));
        forgotten.map(drop)
    }
}

/// What must not take longer than so; `None` if it does.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}

pub(super) fn of_harness(step: &str, error: &BoxError) -> Stop {
    broken(Rule::Ordinary, format!("harness: {step}"), "it succeeds", error)
}
