//! Transfers between accounts in several databases, over the library's real participant and the real redb store.
//!
//! The checker looks at the tables. Every leg of a transfer leaves a row in the journal of its database, so that what a
//! transaction did can be compared with what it was asked to do (T4, T5), effects can be counted (T2), and the money with
//! it.

use super::{Workload, messages};
use crate::actors::ActorId;
use crate::actors::operator::Operator;
use crate::actors::service::{
    ACCOUNT_COUNT, ACCOUNTS, BALANCE, Books, JOURNAL, Leg, LegKind, Sabotage, Service, ServiceFault, Setup,
    SharedBooks, SharedMessageBooks, StopPoint, StoreHabits, journal_row,
};
use crate::chance::small;
use crate::checkers::{Check, Violation, require};
use crate::faults::{self, Fault};
use crate::schedule::Micros;
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};
use synod::resource::ResourceError;
use synod::resource::redb::{SCAN_ROWS_MAX, Snapshot};
use synod_coordinator_core::machine::outcomes::Verdict;
use synod_coordinator_core::random::Random;
use synod_proto::ids::{BranchId, Gtid, ResourceId};
use synod_proto::session::Decision;

/// The workload.
#[derive(Debug)]
pub struct Bank {
    seed: u64,
    service_count: u32,
    books: SharedBooks,
    sabotage: Option<Sabotage>,
    script: Option<Script>,
    /// What checkers know of its services' messages, if there are any.
    messages: Option<SharedMessageBooks>,
}

/// What is not left to chance in a bank that is part of a script.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// How many transactions each service begins, and the longest pause before each.
    pub transactions: (u64, Micros),
    /// Whose machine loses power by plan, counted from 0, and when.
    pub stop: Option<(u32, StopPoint)>,
    /// What its services do wrong, if anything.
    pub sabotage: Option<Sabotage>,
}

/// The longest time that an operation of a scripted bank's disks takes.
const SCRIPTED_DISK_US_MAX: Micros = 300;

/// The most services of a drawn bank.
pub const SERVICE_COUNT_DRAWN_MAX: u32 = 4;

impl Bank {
    /// A bank of so many services. What else there is to draw, the seed draws.
    #[must_use]
    pub fn new(seed: u64, service_count: u32) -> Self {
        Self {
            seed,
            service_count,
            books: SharedBooks::default(),
            sabotage: None,
            script: None,
            messages: None,
        }
    }

    /// As [`new`](Self::new), and its services publish messages and consume each other's.
    #[must_use]
    pub fn with_messages(self, books: SharedMessageBooks) -> Self {
        Self {
            messages: Some(books),
            ..self
        }
    }

    /// As [`new`](Self::new), with this told.
    #[must_use]
    pub fn scripted(seed: u64, service_count: u32, script: Script) -> Self {
        Self {
            script: Some(script),
            sabotage: script.sabotage,
            ..Self::new(seed, service_count)
        }
    }

    /// As [`new`](Self::new), with services that do something wrong.
    #[must_use]
    pub fn sabotaged(seed: u64, service_count: u32, sabotage: Sabotage) -> Self {
        Self {
            sabotage: Some(sabotage),
            ..Self::new(seed, service_count)
        }
    }

    /// How many services the seed's bank has.
    #[must_use]
    pub fn draw_service_count(seed: u64) -> u32 {
        small(&mut stream(seed, 0), 2, SERVICE_COUNT_DRAWN_MAX)
    }

    /// What its services and the tables say of themselves.
    #[must_use]
    pub fn books(&self) -> SharedBooks {
        self.books.clone()
    }
}

/// Each concern has a stream of its own.
fn stream(seed: u64, concern: u64) -> Random {
    Random::new(seed ^ 0x6261_6e6b ^ (concern << 40))
}

/// The id of the `number`-th database.
pub(super) fn resource(number: u32) -> ResourceId {
    ResourceId((0xba4c_0000_u128 + u128::from(number)).to_be_bytes())
}

impl Workload for Bank {
    fn actor_count(&self) -> u32 {
        // One service without a database, and the operator.
        self.service_count + 2
    }

    fn populate(&mut self, world: &mut World) {
        let mut random = stream(self.seed, 1);
        let replicas = world.replicas();
        let first = world.actor_count();
        let banks: Vec<(ActorId, ResourceId)> = (0..self.service_count)
            .map(|number| (ActorId(first + number), resource(number)))
            .collect();
        // Every fourth bank runs on a store that hides branches.
        let is_veiled = random.between(0, 3) == 0 || self.sabotage == Some(Sabotage::AcknowledgesUnknown);
        let veil_ppm = if is_veiled { 150_000 } else { 0 };
        for number in 0..=self.service_count {
            let habits = StoreHabits {
                quick_repair: random.between(0, 1) == 0,
                veil_ppm,
                disk_us_max: random.between(50, 5_000),
            };
            let store = (number < self.service_count).then(|| (resource(number), habits));
            let count = match random.between(0, 2) {
                0 => 0,
                _ => random.between(4, 16),
            };
            let mut setup = Setup {
                replicas: replicas.clone(),
                store,
                transactions: (count, random.between(20_000, 3_000_000)),
                banks: banks.clone(),
                seed: random.next_u64(),
                books: self.books.clone(),
                sabotage: self.sabotage,
                stop: None,
                messages: self
                    .messages
                    .as_ref()
                    .filter(|_| number < self.service_count)
                    .map(|books| messages::setup_of(self.seed, number, &banks, books)),
            };
            if let Some(script) = self.script {
                script.apply(number, &mut setup);
            }
            world.add_actor(Service::new(setup));
        }
        world.add_actor(Operator::new(replicas));
    }

    fn check_final(&self, world: &World) -> Check {
        check_money(&self.books.borrow(), world)
    }

    fn points(&self) -> Vec<(&'static str, &'static str, u64)> {
        let books = self.books.borrow();
        books
            .counts
            .iter()
            .map(|(what, count)| ("bank", *what, *count))
            .collect()
    }

    fn faults(&self, first: u32, length: Micros) -> faults::Plan {
        let mut random = stream(self.seed, 2);
        let enabled: Vec<bool> = (0..7).map(|_| random.between(0, 2) > 0).collect();
        let uses_hand = random.between(0, 3) == 0;
        // A long run is one of long quiet times, too: each start of a service reads its whole store.
        let gap_us_max = if length > 60_000_000 {
            30_000_000
        } else {
            4_000_000
        };
        let mut plan = Vec::new();
        let mut at = 0;
        loop {
            at += random.between(50_000, gap_us_max);
            if at >= length {
                return plan;
            }
            let service = ActorId(first + small(&mut random, 0, self.service_count));
            let kind = crate::chance::place(&mut random, 7);
            if !enabled[kind] {
                continue;
            }
            let fault = match kind {
                0 => Fault::CrashActor(service),
                1 => Fault::Service(service, ServiceFault::CrashAtOperation(random.between(1, 25))),
                2 => Fault::Service(service, ServiceFault::FailAtOperation(random.between(1, 25))),
                3 => Fault::Service(service, ServiceFault::Full),
                4 => Fault::Service(service, ServiceFault::Slow(random.between(50, 400_000))),
                5 if uses_hand => Fault::Service(service, ServiceFault::RollBackByHand(random.next_u64())),
                5 => Fault::CrashActor(service),
                _ => Fault::Service(service, ServiceFault::WallClock(draw_offset(&mut random))),
            };
            plan.push((at, fault));
        }
    }
}

impl Script {
    fn apply(&self, number: u32, setup: &mut Setup) {
        setup.transactions = self.transactions;
        if let Some((_, habits)) = &mut setup.store {
            *habits = StoreHabits {
                quick_repair: number.is_multiple_of(2),
                veil_ppm: 0,
                disk_us_max: SCRIPTED_DISK_US_MAX,
            };
        }
        setup.stop = self.stop.filter(|(own, _)| *own == number).map(|(_, stop)| stop);
    }
}

fn draw_offset(random: &mut Random) -> i64 {
    let small_ms = i64::try_from(random.between(0, 6_000)).expect("small") - 3_000;
    match random.between(0, 5) {
        0 => small_ms * 20,
        _ => small_ms,
    }
}

/// What the tables hold in the end, against what was asked for and what the log decided.
fn check_money(books: &Books, world: &World) -> Check {
    let again = books.begun_again;
    require(again.is_none(), || {
        format!("T2: work was begun on branch {again:?} twice")
    })?;
    let mut done: BTreeMap<Gtid, Vec<Leg>> = BTreeMap::new();
    let mut executions: BTreeMap<(Gtid, u64), u64> = BTreeMap::new();
    let mut numbers: BTreeSet<(Gtid, u32)> = BTreeSet::new();
    for (resource, redb) in &books.stores {
        let readable = |error: ResourceError| Violation(format!("{resource} cannot be read: {error}"));
        let snapshot = redb.snapshot().map_err(readable)?;
        let rows = journal(&snapshot).map_err(readable)?;
        check_balances(*resource, &snapshot, &rows)?;
        for (branch, leg) in rows {
            // T2: an id runs once, and of a call's executions one takes effect.
            let key = (branch.gtid, branch.call.0);
            let first = *executions.entry(key).or_insert(branch.execution.0);
            let is_once = first == branch.execution.0 && numbers.insert((branch.gtid, leg.number));
            require(is_once, || {
                format!("call {} of {} took effect twice", branch.call.0, branch.gtid)
            })?;
            done.entry(branch.gtid).or_default().push(leg);
        }
        let open = snapshot.in_doubt().map_err(readable)?;
        require(open.is_empty(), || {
            format!("{resource} still holds {open:?} prepared")
        })?;
    }
    let records = world.checkers.outcomes.records();
    let by_hand: BTreeSet<Gtid> = world.databases.by_hand().map(|branch| branch.gtid).collect();
    for (gtid, legs) in &mut done {
        legs.sort_by_key(|leg| leg.number);
        let is_committed = matches!(
            records.get(gtid).map(|record| &record.verdict),
            Some(Verdict::Committed { .. })
        );
        require(is_committed, || {
            format!("{gtid} left {legs:?}, and the log does not say committed")
        })?;
    }
    for (gtid, asked) in &books.asked {
        let is_committed = matches!(
            records.get(gtid).map(|record| &record.verdict),
            Some(Verdict::Committed { .. })
        );
        let found = done.get(gtid).map_or(&[][..], Vec::as_slice);
        if is_committed && !by_hand.contains(gtid) {
            require(found == asked, || {
                format!("{gtid} asked for {asked:?} and did {found:?}")
            })?;
            let sum: i64 = found.iter().filter_map(Leg::delta).sum();
            require(sum == 0, || format!("{gtid} made {sum} of money with {found:?}"))?;
        }
        require(!is_committed || !books.undone.contains(gtid), || {
            format!("{gtid} is committed, and its initiator was told that nothing was done")
        })?;
        if let Some(told) = books.told.get(gtid) {
            let is_so = match told {
                Decision::Committed => is_committed,
                Decision::Aborted(_) => !is_committed,
                // The watermark has passed it; whether it may is another checker's.
                Decision::Expired => true,
                Decision::Mismatch | Decision::Settled => false,
            };
            require(is_so, || format!("{gtid}: its initiator was told {told:?}"))?;
        }
    }
    let unasked = done.keys().find(|gtid| !books.asked.contains_key(gtid));
    require(unasked.is_none(), || {
        format!("{unasked:?} took effect, and nobody asked for its commit")
    })
}

fn journal(snapshot: &Snapshot) -> Result<Vec<(BranchId, Leg)>, ResourceError> {
    let mut rows = Vec::new();
    let mut after = None;
    loop {
        let page = snapshot.scan_page(JOURNAL, [], after.as_deref(), SCAN_ROWS_MAX)?;
        let Some((last, _)) = page.last() else {
            return Ok(rows);
        };
        after = Some(last.to_vec());
        rows.extend(page.iter().filter_map(|(key, value)| journal_row(key, value)));
    }
}

/// Each balance is what the journal says: nothing was applied twice, and nothing by half.
fn check_balances(resource: ResourceId, snapshot: &Snapshot, rows: &[(BranchId, Leg)]) -> Check {
    let mut balances: BTreeMap<u32, i64> = (0..ACCOUNT_COUNT)
        .map(|account| (account, i64::try_from(BALANCE).expect("small")))
        .collect();
    for (_, leg) in rows {
        if let LegKind::Move { account, delta } = leg.kind {
            *balances.entry(account).or_default() += delta;
        }
    }
    for (account, expected) in balances {
        let found = snapshot
            .get(ACCOUNTS, account.to_be_bytes())
            .map_err(|error| Violation(error.to_string()))?
            .and_then(|value| value[..].try_into().ok())
            .map(u64::from_be_bytes);
        let is_so = found.is_some_and(|found| i64::try_from(found) == Ok(expected));
        require(is_so, || {
            format!("account {account} of {resource} holds {found:?}; its journal says {expected}")
        })?;
    }
    Ok(())
}
