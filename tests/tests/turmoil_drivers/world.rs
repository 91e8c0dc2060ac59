//! One seed: the hosts, the plan's faults at their times, healing, the audit, the last look into the databases.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use synod::resource::redb::{MemoryDisk as Disk, PowerLoss};
use synod::{AbortKind, TransactionStatus};
use synod_proto::environment::WallClock;
use synod_proto::ids::UnixMillis;
use synod_tests::process::bank::Verdict;
use turmoil::{Builder, Sim};

use crate::audit::{self, Findings};
use crate::ledger::Ledger;
use crate::plan::{Fault, Plan, TURBULENCE, What, hosts, ordered};
use crate::verify::{Book, violations};
use crate::{clerk, office, panics, replica, store};

const TICK: Duration = Duration::from_millis(1);
/// The first moment of every run: some day in 2026.
const EPOCH_MS: u64 = 1_770_000_000_000;
/// No run lasts longer, in virtual time.
const DURATION_MAX: Duration = Duration::from_secs(300);

/// What is wrong on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    None,
    /// An office's disk says that it synced, and did not.
    OfficeDiskLies,
    /// A replica's disk goes back to where it was when the process started.
    ReplicaForgets,
    /// An initiator says "committed" when it does not know.
    InitiatorGuesses,
}

/// What a run that held was like.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub attempt_count: u64,
    pub committed_count: u64,
    pub aborted_count: u64,
    /// Of those aborted: by an inquiry after the deadline (T6).
    pub deadline_count: u64,
    pub in_doubt_count: u64,
    /// Initiators that died, or whose caller went away, before they heard the outcome.
    pub untold_count: u64,
    pub failed_call_count: u64,
    pub round_max: u64,
    /// How long after healing the slowest seed was at rest, and which seed that was.
    pub rest_ms_max: (u128, u64),
    pub virtual_ms: u128,
    pub faults: BTreeMap<&'static str, u64>,
}

impl Report {
    pub fn add(&mut self, other: &Self) {
        self.attempt_count += other.attempt_count;
        self.committed_count += other.committed_count;
        self.aborted_count += other.aborted_count;
        self.deadline_count += other.deadline_count;
        self.in_doubt_count += other.in_doubt_count;
        self.untold_count += other.untold_count;
        self.failed_call_count += other.failed_call_count;
        self.round_max = self.round_max.max(other.round_max);
        self.rest_ms_max = self.rest_ms_max.max(other.rest_ms_max);
        self.virtual_ms += other.virtual_ms;
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} transactions: {} committed, {} aborted ({} by an inquiry), {} were in doubt, {} untold; {} calls failed; at most {} rounds; at rest \
             within {} ms (seed {}); {} s of virtual time; faults: {:?}",
            self.attempt_count,
            self.committed_count,
            self.aborted_count,
            self.deadline_count,
            self.in_doubt_count,
            self.untold_count,
            self.failed_call_count,
            self.round_max,
            self.rest_ms_max.0,
            self.rest_ms_max.1,
            self.virtual_ms / 1_000,
            self.faults
        )
    }
}

/// The time of the whole simulation, for wall clocks: they are read from other threads too.
#[derive(Clone, Debug, Default)]
struct Time(Arc<AtomicU64>);

impl Time {
    fn wall(&self, offset_ms: i64) -> WallClock {
        let now = self.0.clone();
        WallClock::new(move || {
            UnixMillis((EPOCH_MS + now.load(Ordering::Relaxed)).saturating_add_signed(offset_ms))
        })
    }
}

/// What happens to the hosts at one moment.
#[derive(Clone, Debug)]
struct Change {
    at_ms: u64,
    what: What,
    is_end: bool,
}

fn changes(faults: &[Fault]) -> Vec<Change> {
    let both = |fault: &Fault| {
        let change = |at_ms, is_end| Change {
            at_ms,
            what: fault.what.clone(),
            is_end,
        };
        [
            change(fault.at_ms, false),
            change(fault.at_ms + fault.for_ms, true),
        ]
    };
    let mut changes: Vec<_> = faults.iter().flat_map(both).collect();
    changes.sort_by_key(|change| change.at_ms);
    changes
}

struct World<'a> {
    sim: Sim<'a>,
    time: Time,
    random: StdRng,
    replicas: BTreeMap<String, replica::Start>,
    disks: BTreeMap<String, Disk>,
    /// Links that a fault holds now.
    disturbed: BTreeSet<(String, String)>,
    latency_max: Duration,
}

/// Runs a seed.
///
/// # Errors
/// What does not hold.
pub fn run(plan: &Plan, sabotage: Sabotage) -> Result<Report, String> {
    panics::take();
    let ledger = Ledger::default();
    let mut world = World::new(plan, &ledger, sabotage);
    let is_over = Arc::new(AtomicBool::new(false));
    let clerk_is_over = is_over.clone();
    let (calls, clerk_ledger) = (plan.calls.clone(), ledger.clone());
    world.sim.host("clerk", move || {
        let (calls, ledger, is_over) = (calls.clone(), clerk_ledger.clone(), clerk_is_over.clone());
        async move {
            clerk::run(calls, ledger).await;
            is_over.store(true, Ordering::Relaxed);
            Ok(())
        }
    });
    let turbulence_ms = u64::try_from(TURBULENCE.as_millis()).expect("seconds");
    let mut changes = changes(&plan.faults).into_iter().peekable();
    for now_ms in 0..turbulence_ms {
        while let Some(change) = changes.next_if(|change| change.at_ms <= now_ms) {
            world.apply(&change);
        }
        world.step()?;
    }
    for change in changes.filter(|change| change.is_end) {
        world.apply(&change);
    }
    // Callers are patient for a while; what they began is part of the run.
    while !is_over.load(Ordering::Relaxed) {
        world.step()?;
    }
    let findings = Findings::default();
    let auditor = audit::run(ledger.clone(), world.time.wall(0), findings.clone());
    world.sim.client("auditor", auditor);
    while !world.step()? {}
    let virtual_ms = world.sim.elapsed().as_millis();
    let books = world.books()?;
    let panicked = panics::take();
    if !panicked.is_empty() {
        return Err(format!("panics: {}", panicked.join("; ")));
    }

    let entries = ledger.entries().clone();
    let found = findings.take();
    let violations = violations(&entries, &found.outcomes, &books);
    if !violations.is_empty() {
        return Err(violations.join("\n"));
    }
    let outcome_count = |is: fn(&TransactionStatus) -> bool| {
        found.outcomes.values().filter(|status| is(status)).count() as u64
    };
    let mut faults = BTreeMap::new();
    for fault in &plan.faults {
        *faults.entry(fault.what.kind()).or_default() += 1;
    }
    let attempts = entries.attempts.values();
    Ok(Report {
        attempt_count: attempts.len() as u64,
        committed_count: outcome_count(|status| matches!(status, TransactionStatus::Committed { .. })),
        aborted_count: outcome_count(|status| matches!(status, TransactionStatus::Aborted(_))),
        deadline_count: outcome_count(
            |status| matches!(status, TransactionStatus::Aborted(cause) if cause.kind == AbortKind::Deadline),
        ),
        in_doubt_count: attempts
            .clone()
            .filter(|attempt| attempt.was_in_doubt && attempt.told != Some(Verdict::Unspecified))
            .count() as u64,
        untold_count: attempts.filter(|attempt| attempt.told.is_none()).count() as u64,
        failed_call_count: entries.failed_call_count,
        round_max: found.round,
        rest_ms_max: (found.rest_ms, plan.seed),
        virtual_ms,
        faults,
    })
}

impl<'a> World<'a> {
    fn new(plan: &Plan, ledger: &Ledger, sabotage: Sabotage) -> Self {
        let latency_max = Duration::from_millis(plan.latency_ms_max);
        let mut sim = Builder::new()
            .rng_seed(plan.seed)
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_millis(EPOCH_MS))
            .tick_duration(TICK)
            .min_message_latency(Duration::ZERO)
            .max_message_latency(latency_max)
            .simulation_duration(DURATION_MAX)
            .tcp_capacity(4_096)
            .enable_random_order()
            .build();
        let time = Time::default();
        let mut replicas = BTreeMap::new();
        for number in 1..=3 {
            let host = replica::host(number);
            let clock = time.wall(plan.clock_offsets_ms[&host]);
            let latency = Duration::from_micros(plan.sync_latency_us);
            let start = replica::Start::new(number, plan.seed, clock, latency);
            if sabotage == Sabotage::ReplicaForgets {
                start.forget();
            }
            replicas.insert(host.clone(), start.clone());
            sim.host(host, move || replica::run(start.clone()));
        }
        let mut disks = BTreeMap::new();
        for number in 1..=2 {
            let host = office::host(number);
            let start = office::Start {
                office: number,
                disk: Disk::default(),
                clock: time.wall(plan.clock_offsets_ms[&host]),
                ledger: ledger.clone(),
                guesses: sabotage == Sabotage::InitiatorGuesses,
            };
            if sabotage == Sabotage::OfficeDiskLies {
                start.disk.lie();
            }
            disks.insert(host.clone(), start.disk.clone());
            sim.host(host, move || office::run(start.clone()));
        }
        Self {
            sim,
            time,
            random: StdRng::seed_from_u64(plan.seed),
            replicas,
            disks,
            disturbed: BTreeSet::new(),
            latency_max,
        }
    }

    /// One tick. Says whether the auditor has ended.
    fn step(&mut self) -> Result<bool, String> {
        let ended = self.sim.step().map_err(|error| error.to_string())?;
        let now_ms = u64::try_from(self.sim.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.time.0.store(now_ms, Ordering::Relaxed);
        Ok(ended)
    }

    fn apply(&mut self, change: &Change) {
        tracing::info!(at_ms = change.at_ms, what = ?change.what, is_end = change.is_end, "fault");
        let links = change.what.links();
        if change.is_end {
            self.end(&change.what);
            for link in &links {
                self.disturbed.remove(link);
            }
        } else {
            self.begin(&change.what);
            self.disturbed.extend(links);
        }
    }

    fn begin(&mut self, what: &What) {
        match what {
            What::Kill(host) => self.crash(host),
            What::PowerLoss(host) => {
                // Nothing that the dying process says arrives, not even the end of its connections.
                let quiet: Vec<_> = hosts()
                    .iter()
                    .map(String::as_str)
                    .chain(["clerk"])
                    .filter(|other| other != host && !self.disturbed.contains(&ordered(host, other)))
                    .map(str::to_owned)
                    .collect();
                for other in &quiet {
                    self.sim.partition(host.as_str(), other.as_str());
                }
                self.crash(host);
                for other in &quiet {
                    self.sim.repair(host.as_str(), other.as_str());
                }
            }
            What::Stop(number) => self.replicas[&replica::host(*number)].stop(),
            What::Partition(a, b) => self.sim.partition(a.as_str(), b.as_str()),
            What::OneWay(from, to) => self.sim.partition_oneway(from.as_str(), to.as_str()),
            What::Isolate(_) => {
                for (a, b) in what.links() {
                    self.sim.partition(a, b);
                }
            }
            What::Hold(a, b) => self.sim.hold(a.as_str(), b.as_str()),
            What::Slow(a, b, latency_ms) => {
                let latency = Duration::from_millis(*latency_ms);
                self.sim
                    .set_link_max_message_latency(a.as_str(), b.as_str(), latency);
            }
        }
    }

    fn end(&mut self, what: &What) {
        match what {
            What::Kill(host) | What::PowerLoss(host) => self.sim.bounce(host.as_str()),
            What::Stop(number) => {
                // A replica that did not end in time is killed: that too happens.
                let host = replica::host(*number);
                self.crash(&host);
                self.sim.bounce(host);
            }
            What::Partition(a, b) => self.sim.repair(a.as_str(), b.as_str()),
            What::OneWay(from, to) => self.sim.repair_oneway(from.as_str(), to.as_str()),
            What::Isolate(_) => {
                for (a, b) in what.links() {
                    self.sim.repair(a, b);
                }
            }
            What::Hold(a, b) => self.sim.release(a.as_str(), b.as_str()),
            What::Slow(a, b, _) => {
                let latency = self.latency_max;
                self.sim
                    .set_link_max_message_latency(a.as_str(), b.as_str(), latency);
            }
        }
    }

    fn crash(&mut self, host: &str) {
        if let Some(disk) = self.disks.get(host) {
            disk.lose_power(PowerLoss::Lost);
        }
        self.sim.crash(host);
        if let Some(replica) = self.replicas.get(host) {
            let random = &mut self.random;
            replica.crash(|count| random.random_range(0..count));
        }
    }

    /// Ends the offices and reads their files.
    fn books(&mut self) -> Result<[Book; 2], String> {
        let mut books = [Book::default(), Book::default()];
        for (number, book) in (1..).zip(&mut books) {
            let host = office::host(number);
            self.crash(&host);
            let read = || Book::read(&store::open(&self.disks[&host], self.time.wall(0))?.snapshot()?);
            *book = read().map_err(|error| format!("the file of {host}: {error}"))?;
        }
        Ok(books)
    }
}
