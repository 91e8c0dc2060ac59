//! A user's code: accounts in several databases, and transfers between them by calls that may be nested, retried,
//! read-only, failing, given up and taken out of their transaction by name.

use super::desk::{Answered, Desk};
use super::process::Process;
use super::scope::{Patience, Scope};
use super::{Disks, Message, Service, tasks};
use crate::actors::ActorId;
use crate::chance::{pick, place};
use futures::future::{Either, join_all, select};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use synod::resource::redb::{RedbResource, RedbTransaction};
use synod_coordinator_core::random::Random;
use synod_participant_core::arrival::CallContext;
use synod_participant_core::session::{Question, Undecided};
use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, ResourceId};
use synod_proto::session::{AbortCause, AbortKind, Decision};

/// Accounts in each database. Few, so that transfers meet.
pub(crate) const ACCOUNT_COUNT: u32 = 6;
/// What each holds at first.
pub(crate) const BALANCE: u64 = 1_000;

/// The table of balances.
pub(crate) const ACCOUNTS: &str = "accounts";
/// One row for every leg that took effect.
pub(crate) const JOURNAL: &str = "journal";

/// What one branch does to its database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegKind {
    /// Changes an account's balance, under its lock.
    Move {
        /// The account.
        account: u32,
        /// The change.
        delta: i64,
    },
    /// Pays in without touching an account: no lock keeps two executions of it from both being prepared.
    Slip {
        /// The amount.
        amount: i64,
    },
    /// Reads a balance, without a lock.
    Read {
        /// The account.
        account: u32,
    },
    /// Locks an account and leaves it as it is.
    Lock {
        /// The account.
        account: u32,
    },
}

/// One branch's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Its number within the transaction.
    pub number: u32,
    /// The work.
    pub kind: LegKind,
}

impl Leg {
    /// What it adds to the money in its database; `None` if it leaves no row.
    #[must_use]
    pub fn delta(&self) -> Option<i64> {
        match self.kind {
            LegKind::Move { delta, .. } => Some(delta),
            LegKind::Slip { amount } => Some(amount),
            LegKind::Read { .. } | LegKind::Lock { .. } => None,
        }
    }

    /// The same leg with another amount, if it moves any.
    fn move_instead(&mut self, amount: i64) {
        if let LegKind::Move { delta, .. } = &mut self.kind {
            *delta = amount;
        }
    }
}

/// What one call asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Its own branch.
    pub leg: Leg,
    /// Further calls that it makes: to whom, what, and whether it takes them out of the transaction by name, whatever they
    /// answer.
    pub below: Vec<(ActorId, Work, bool)>,
    /// Whether it ends with an error after all was done.
    pub fails: bool,
    /// Whether its own branch is the one that its transaction has open there, to be prepared with the commit.
    pub is_open: bool,
}

impl Work {
    fn legs(&self) -> Vec<Leg> {
        let kept = self.below.iter().filter(|(_, _, is_discarded)| !is_discarded);
        let below = kept.flat_map(|(_, work, _)| work.legs());
        std::iter::once(self.leg).chain(below).collect()
    }
}

/// One call or own branch of a transaction, at its initiator.
#[derive(Clone, Debug)]
struct Part {
    /// `None`: a branch on the initiator's own database.
    to: Option<ActorId>,
    work: Work,
    /// The transaction does without it, if it fails and now and then if it does not; its legs cancel out.
    is_optional: bool,
}

/// What a transaction looks like.
#[derive(Clone, Debug)]
pub struct Shape {
    parts: Vec<Part>,
    is_parallel: bool,
}

/// What checkers know of the business, beside the tables.
#[derive(Debug, Default)]
pub struct Books {
    /// The disks under the stores.
    pub disks: Disks,
    /// The stores that are open.
    pub stores: BTreeMap<ResourceId, RedbResource>,
    /// What a transaction whose Commit request was made must do, if it commits.
    pub asked: BTreeMap<Gtid, Vec<Leg>>,
    /// Transactions of which the library said that nothing was done.
    pub undone: BTreeSet<Gtid>,
    /// What initiators were told.
    pub told: BTreeMap<Gtid, Decision>,
    /// Calls that were executed.
    pub executed: BTreeSet<(Gtid, CallId)>,
    /// Branches on which work was begun.
    pub begun: BTreeSet<BranchId>,
    /// The first on which it was begun again.
    pub begun_again: Option<BranchId>,
    /// How often things happened that a run should not be without.
    pub counts: BTreeMap<&'static str, u64>,
}

/// Shared by the services of one world and the checker.
pub type SharedBooks = Rc<RefCell<Books>>;

impl Books {
    /// Work begins on a branch, or in one that calls share, under the id that this call goes by.
    pub(super) fn note_begun(&mut self, branch: BranchId) {
        if !self.begun.insert(branch) {
            self.begun_again.get_or_insert(branch);
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

// ---- tables ----

/// Lays the accounts out.
pub(super) fn open_accounts(redb: &RedbResource) {
    tasks::at_once(async {
        let mut tx = redb.begin_local().expect("a new store");
        for account in 0..ACCOUNT_COUNT {
            tx.put_u64(ACCOUNTS, account.to_be_bytes(), BALANCE)
                .await
                .expect("a new store");
        }
        tx.commit().await.expect("a new store");
    });
}

/// A branch that several calls share leaves a row for each of their legs.
fn row_key(branch: BranchId, leg: Leg) -> Vec<u8> {
    let BranchId {
        gtid,
        call,
        execution,
    } = branch;
    [
        &gtid.to_bytes()[..],
        &call.0.to_be_bytes(),
        &execution.0.to_be_bytes(),
        &leg.number.to_be_bytes(),
    ]
    .concat()
}

fn row_value(leg: Leg) -> Vec<u8> {
    let account = match leg.kind {
        LegKind::Move { account, .. } | LegKind::Read { account } | LegKind::Lock { account } => account,
        LegKind::Slip { .. } => u32::MAX,
    };
    let delta = leg.delta().unwrap_or_default();
    [
        &leg.number.to_be_bytes()[..],
        &account.to_be_bytes(),
        &delta.to_be_bytes(),
    ]
    .concat()
}

/// Which branch did what, from a row of the journal; `None` if it is none.
#[must_use]
pub fn journal_row(key: &[u8], value: &[u8]) -> Option<(BranchId, Leg)> {
    let (gtid, rest) = key.split_first_chunk::<16>()?;
    let (call, rest) = rest.split_first_chunk::<8>()?;
    let (execution, _) = rest.split_first_chunk::<8>()?;
    let branch = BranchId {
        gtid: Gtid::from_bytes(*gtid).ok()?,
        call: CallId(u64::from_be_bytes(*call)),
        execution: ExecutionId(u64::from_be_bytes(*execution)),
    };
    let (number, rest) = value.split_first_chunk::<4>()?;
    let (account, rest) = rest.split_first_chunk::<4>()?;
    let (delta, _) = rest.split_first_chunk::<8>()?;
    let (account, delta) = (u32::from_be_bytes(*account), i64::from_be_bytes(*delta));
    let kind = match account {
        u32::MAX => LegKind::Slip { amount: delta },
        account => LegKind::Move { account, delta },
    };
    let number = u32::from_be_bytes(*number);
    Some((branch, Leg { number, kind }))
}

async fn do_leg(tx: &mut RedbTransaction, branch: BranchId, leg: Leg) -> Result<(), String> {
    let text = |error: synod::resource::ResourceError| error.to_string();
    match leg.kind {
        LegKind::Move { account, delta } => {
            let key = account.to_be_bytes();
            let balance = tx
                .get_u64_for_update(ACCOUNTS, key)
                .await
                .map_err(text)?
                .unwrap_or_default();
            let balance = balance
                .checked_add_signed(delta)
                .ok_or("the account does not hold so much")?;
            tx.put_u64(ACCOUNTS, key, balance).await.map_err(text)?;
        }
        LegKind::Slip { .. } => {}
        LegKind::Read { account } => {
            return tx
                .get_u64(ACCOUNTS, account.to_be_bytes())
                .await
                .map(drop)
                .map_err(text);
        }
        LegKind::Lock { account } => {
            let locked = tx.get_u64_for_update(ACCOUNTS, account.to_be_bytes()).await;
            return locked.map(drop).map_err(text);
        }
    }
    tx.put(JOURNAL, row_key(branch, leg), row_value(leg))
        .await
        .map_err(text)
}

// ---- the server's side ----

/// A call arrives.
pub(super) fn serve(process: &Process, from: ActorId, number: u64, context: &CallContext, work: Work) {
    let desk = process.desk.clone();
    let lineage = desk.lineage.get().filter(|_| process.is_open());
    let checked = match lineage {
        None => Err("the service is not up yet".to_string()),
        Some(lineage) => {
            let is_settled = desk.core.borrow().is_settled(context.gtid);
            context
                .check(lineage, desk.clock.wall(), is_settled)
                .map_err(|refused| refused.to_string())
        }
    };
    if let Err(text) = checked {
        let answered = Answered {
            result: Err(text),
            votes: None,
        };
        desk.count("a call refused at its arrival");
        return desk.say(from, Message::Answer { number, answered });
    }
    let is_first = desk
        .books
        .borrow_mut()
        .executed
        .insert((context.gtid, context.call));
    if !is_first {
        desk.count("a call executed again");
    }
    let caller_waits = desk.begin_serving(from, number);
    let scope = Scope::arrived(&desk, context, caller_waits);
    process.desk.spawn(async move {
        let (_, result) = do_work(&scope, &work).await;
        let votes = scope.hand_up();
        desk.end_serving(from, number);
        let answered = Answered { result, votes };
        desk.say(from, Message::Answer { number, answered });
    });
}

async fn do_work(scope: &Rc<Scope>, work: &Work) -> (Option<CallId>, Result<(), String>) {
    if work.is_open {
        return scope.open_branch(work).await;
    }
    let worked = scope.branch(async |tx, branch| do_in(scope, work, tx, branch).await);
    worked.await
}

/// A call's work in a local transaction.
pub(super) async fn do_in(
    scope: &Rc<Scope>,
    work: &Work,
    tx: &mut RedbTransaction,
    branch: BranchId,
) -> Result<(), String> {
    do_leg(tx, branch, work.leg).await?;
    if let Some(messages) = &scope.desk.messages {
        messages.publish_in_branch(&scope.desk, tx, branch).await?;
    }
    for (to, below, is_discarded) in &work.below {
        let (call, result) = scope.call(*to, below, draw_patience(&scope.desk)).await;
        match call {
            Some(call) if *is_discarded => {
                let _is_known = scope.ledger.borrow_mut().discard(call);
            }
            _ => result?,
        }
    }
    match work.fails {
        true => Err("the work fails, as it was told".to_string()),
        false => Ok(()),
    }
}

fn draw_patience(desk: &Desk) -> Patience {
    desk.random(|random| Patience {
        attempts: crate::chance::small(random, 1, 3),
        timeout_us: random.between(30_000, 900_000),
    })
}

// ---- the initiator's side ----

/// The process begins its transactions.
pub(super) fn begin(service: &Service) {
    let Some(process) = &service.process else { return };
    let (count, pause_us) = service.setup.transactions;
    if count == 0 {
        return;
    }
    let (desk, setup) = (process.desk.clone(), service.setup.clone());
    let (begun, is_resting) = (service.begun_count.clone(), service.is_resting.clone());
    process.desk.spawn(async move {
        loop {
            let pause = desk.random(|random| random.between(1_000, pause_us.max(1_000)));
            desk.clock.sleep(pause).await;
            if is_resting.get() || begun.get() >= count {
                break;
            }
            if desk.lineage.get().is_none() || (desk.store.is_some() && !desk.is_attached.get()) {
                continue;
            }
            begun.set(begun.get() + 1);
            desk.active_count.set(desk.active_count.get() + 1);
            let (one, setup) = (desk.clone(), setup.clone());
            desk.spawn(async move {
                transact(&one, &setup).await;
                one.active_count.set(one.active_count.get() - 1);
            });
        }
    });
}

async fn transact(desk: &Rc<Desk>, setup: &super::Setup) {
    let Some(lineage) = desk.lineage.get() else { return };
    let began_at = desk.clock.wall();
    let mut entropy = [0; 10];
    entropy.copy_from_slice(&desk.random(Random::bytes16)[..10]);
    let gtid = Gtid::new(began_at, entropy);
    let deadline = began_at.plus(desk.random(|random| random.between(800, 6_000)));
    let shape = desk.random(|random| Shape::draw(random, setup, desk.store.is_some()));
    let scope = Scope::begun(desk, lineage, gtid, deadline);
    let mut legs = Vec::new();
    let mut has_failed = false;
    let answers = if shape.is_parallel {
        join_all(shape.parts.iter().map(|part| do_part(&scope, part))).await
    } else {
        let mut answers = Vec::new();
        for part in &shape.parts {
            answers.push(match part.to.is_some() && is_hasty(gtid) {
                true => do_part_in_haste(&scope, part).await,
                false => do_part(&scope, part).await,
            });
        }
        answers
    };
    for (part, (call, result)) in shape.parts.iter().zip(answers) {
        let does_without = part.is_optional && (result.is_err() || desk.happens(300_000));
        match call {
            Some(call) if does_without => {
                let _is_known = scope.ledger.borrow_mut().discard(call);
                setup.books.borrow_mut().count("a call taken out by name");
            }
            _ => {
                has_failed |= result.is_err();
                legs.extend(part.work.legs());
            }
        }
    }
    legs.retain(|leg| leg.delta().is_some());
    legs.sort_by_key(|leg| leg.number);
    let books = &setup.books;
    match desk.random(|random| random.between(0, 99)) {
        // The process forgets it, as one does that dies: its branches ask (T8).
        0..=3 => books.borrow_mut().count("forgotten"),
        4..=6 => {
            let abort = scope.ledger.borrow_mut().on_drop();
            scope.decide_in_background(abort);
        }
        7..=11 => {
            let cause = AbortCause::new(AbortKind::Requested, "changed its mind");
            let abort = scope.ledger.borrow_mut().propose_abort(cause);
            if let Ok(decision) = scope.decide(&abort).await {
                let _is_first = scope.ledger.borrow_mut().on_decision(decision.clone());
                books.borrow_mut().told.insert(gtid, decision);
            }
        }
        _ => commit(desk, setup, &scope, legs, has_failed).await,
    }
}

/// Whether the user of this transaction does not wait for all of its calls: one in sixteen, by the gtid.
fn is_hasty(gtid: Gtid) -> bool {
    gtid.to_bytes()[15].is_multiple_of(16)
}

/// Begins a part, and goes on after a moment, whatever has become of it. The user takes it for done, and so its work is
/// among what is asked for; the library must not (T4).
async fn do_part_in_haste(scope: &Rc<Scope>, part: &Part) -> (Option<CallId>, Result<(), String>) {
    let wait_us = 500 * (1 + u64::from(scope.gtid.to_bytes()[14]));
    let (done, wait) = (do_part(scope, part), scope.desk.clock.sleep(wait_us));
    match select(pin!(done), pin!(wait)).await {
        Either::Left((answer, _)) => answer,
        Either::Right(((), _)) => {
            scope.desk.count("a call that its user did not wait for");
            (None, Ok(()))
        }
    }
}

async fn do_part(scope: &Rc<Scope>, part: &Part) -> (Option<CallId>, Result<(), String>) {
    match part.to {
        None => do_work(scope, &part.work).await,
        Some(to) => scope.call(to, &part.work, draw_patience(&scope.desk)).await,
    }
}

async fn commit(desk: &Rc<Desk>, setup: &super::Setup, scope: &Rc<Scope>, legs: Vec<Leg>, has_failed: bool) {
    let (gtid, books) = (scope.gtid, &setup.books);
    let handed_over = scope.ledger.borrow_mut().hand_over();
    let Ok(request) = handed_over else {
        books.borrow_mut().count("refused to commit");
        let abort = scope.ledger.borrow_mut().on_drop();
        return scope.decide_in_background(abort);
    };
    // T4: whoever saw a call fail and kept it must not get as far as this; the checker compares what it asked for.
    books.borrow_mut().asked.insert(gtid, legs);
    if has_failed {
        books.borrow_mut().count("handed over in spite of a failed call");
    }
    let mut was_in_doubt = false;
    let decision = loop {
        match scope.commit(&request).await {
            Ok(decision) => break decision,
            Err(Undecided::NotDone(_)) if !was_in_doubt => {
                books.borrow_mut().count("handed over and undone");
                books.borrow_mut().undone.insert(gtid);
                let abort = scope.ledger.borrow_mut().on_undone();
                return scope.decide_in_background(abort);
            }
            Err(_) => was_in_doubt = true,
        }
        books.borrow_mut().count("in doubt");
        if desk.happens(300_000) {
            // T7: the initiator may propose Abort, and is told what the log says.
            let cause = AbortCause::new(AbortKind::Requested, "waited too long");
            let abort = scope.ledger.borrow_mut().propose_abort(cause);
            if let Ok(decision) = scope.decide(&abort).await {
                break decision;
            }
        }
        let pause = desk.random(|random| random.between(50_000, 1_500_000));
        desk.clock.sleep(pause).await;
    };
    let _is_first = scope.ledger.borrow_mut().on_decision(decision.clone());
    let is_committed = decision == Decision::Committed;
    books.borrow_mut().count(match is_committed {
        true => "committed",
        false => "aborted by the log",
    });
    books.borrow_mut().told.insert(gtid, decision);
    if is_committed && desk.happens(300_000) {
        let question = match desk.happens(700_000) {
            true => Question::AwaitDelivery(gtid),
            false => Question::Outcome(gtid),
        };
        let _answer = desk.ask(question, Duration::from_secs(10)).await;
    }
}

impl Shape {
    fn draw(random: &mut Random, setup: &super::Setup, has_own: bool) -> Self {
        let mut draft = Draft {
            random,
            setup,
            next: 0,
        };
        let amount = i64::try_from(draft.random.between(2, 120)).expect("small");
        let mut parts = match draft.random.between(0, 13) {
            0 | 1 => vec![draft.part(-amount), draft.part(amount)],
            2 | 3 => vec![draft.nested(amount)],
            4 => {
                let mut outer = draft.nested(amount);
                let (to, _) = draft.bank();
                let extra = draft.work(amount);
                outer.work.below.push((to, extra, true));
                vec![outer]
            }
            5 => {
                let half = amount / 2;
                let mut outer = draft.part(-amount);
                let mut middle = draft.work(half);
                let (inner, (to, _)) = (draft.work(amount - half), draft.bank());
                middle.below.push((to, inner, false));
                let (to, _) = draft.bank();
                outer.work.below.push((to, middle, false));
                vec![outer]
            }
            6 if has_own => {
                let mut own = draft.part(-amount);
                own.to = None;
                vec![own, draft.part(amount)]
            }
            6 | 7 => {
                let account = draft.account();
                let kinds = [LegKind::Read { account }, LegKind::Lock { account }];
                let mut look = draft.part(0);
                look.work.leg.kind = pick(draft.random, &kinds);
                match draft.random.between(0, 2) {
                    0 => vec![look],
                    _ => vec![draft.part(-amount), look, draft.part(amount)],
                }
            }
            8 => {
                let mut failing = draft.nested(amount);
                failing.work.fails = true;
                failing.is_optional = draft.random.between(0, 2) > 0;
                vec![draft.part(-amount), draft.part(amount), failing]
            }
            9..=12 => draft.open_parts(amount, has_own),
            _ => (0..draft.random.between(2, 4))
                .flat_map(|_| [draft.part(-amount), draft.part(amount)])
                .collect(),
        };
        if draft.random.between(0, 4) == 0 {
            let mut fee = draft.nested(1);
            fee.is_optional = true;
            parts.push(fee);
        }
        let is_parallel = draft.random.between(0, 1) == 0;
        Self { parts, is_parallel }
    }
}

struct Draft<'a> {
    random: &'a mut Random,
    setup: &'a super::Setup,
    next: u32,
}

impl Draft<'_> {
    fn bank(&mut self) -> (ActorId, ResourceId) {
        pick(self.random, &self.setup.banks)
    }

    fn account(&mut self) -> u32 {
        u32::try_from(place(self.random, ACCOUNT_COUNT as usize)).expect("few accounts")
    }

    fn work(&mut self, delta: i64) -> Work {
        self.next += 1;
        let account = self.account();
        let kind = match self.random.between(0, 2) {
            0 if delta > 0 => LegKind::Slip { amount: delta },
            _ => LegKind::Move { account, delta },
        };
        Work {
            leg: Leg {
                number: self.next,
                kind,
            },
            below: Vec::new(),
            fails: false,
            is_open: false,
        }
    }

    fn part(&mut self, delta: i64) -> Part {
        let (to, _) = self.bank();
        Part {
            to: Some(to),
            work: self.work(delta),
            is_optional: false,
        }
    }

    /// Both sides in two calls each, of which each pair shares a branch that stays open; or one such side. Now and then a
    /// look besides, or a call that the transaction tries to do without, which an open branch does not allow (T4).
    fn open_parts(&mut self, amount: i64, has_own: bool) -> Vec<Part> {
        let (from, to) = (self.bank().0, self.bank().0);
        let from = (!has_own || self.random.between(0, 2) > 0).then_some(from);
        let third = amount / 3;
        let mut parts: Vec<Part> = [-third, third - amount]
            .into_iter()
            .map(|delta| self.open_part(from, delta))
            .collect();
        if self.random.between(0, 1) == 0 {
            parts.push(self.part(amount));
        } else {
            for delta in [third, amount - third] {
                parts.push(self.open_part(Some(to), delta));
            }
        }
        match self.random.between(0, 7) {
            0 | 1 => {
                let (looked_at, account) = (self.bank().0, self.account());
                let mut look = self.open_part(Some(looked_at), 0);
                look.work.leg.kind = LegKind::Read { account };
                parts.push(look);
            }
            2 => {
                // It stays out without a word if it failed before it reached the branch. Then no money may be missing.
                parts[0].work.leg.move_instead(0);
                parts[1].work.leg.move_instead(-amount);
                parts[0].is_optional = true;
            }
            _ => {}
        }
        parts
    }

    fn open_part(&mut self, to: Option<ActorId>, delta: i64) -> Part {
        let mut work = self.work(delta);
        work.is_open = true;
        Part {
            to,
            work,
            is_optional: false,
        }
    }

    /// One call that takes from its own database and has another one paid in below it.
    fn nested(&mut self, amount: i64) -> Part {
        let mut outer = self.part(-amount);
        let ((to, _), below) = (self.bank(), self.work(amount));
        outer.work.below.push((to, below, false));
        outer
    }
}

#[cfg(test)]
mod tests;
