//! What can go wrong, as data: a plan is a list of moments and faults, drawn from a seed or written by hand.

pub mod clog;
pub mod lines;
pub mod storm;

use crate::actors::ActorId;
use crate::actors::service::ServiceFault;
use crate::chance::{pick, place};
use crate::log_disk::damage::{Aim, Damage};
use crate::log_disk::{CrashPoint, OperationFault};
use crate::network::Weather;
use crate::schedule::Micros;
use crate::store::UnsyncedWrite;
use std::collections::BTreeSet;
use synod_coordinator::log::CrashImage;
use synod_coordinator_core::random::Random;
use synod_coordinator_core::replica::WriteFailure;
use synod_proto::ids::ReplicaId;

/// One fault. One that does not apply (the crash of a replica that is down) changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A replica's machine crashes.
    Crash(ReplicaId, UnsyncedWrite),
    /// The replica that leads crashes.
    CrashLeader(UnsyncedWrite),
    /// A replica's process starts, if it does not run.
    Start(ReplicaId),
    /// A replica resigns and ends in an orderly way.
    Drain(ReplicaId),
    /// A replica does nothing for a while, and then everything at once.
    Pause(ReplicaId, Micros),
    /// One direction between two replicas is cut.
    Cut(ReplicaId, ReplicaId),
    /// One direction between two replicas holds what it carries for so long, and then delivers all of it in order.
    Clog(ReplicaId, ReplicaId, Micros),
    /// Exactly these pairs of replicas hear each other.
    Topology(BTreeSet<(ReplicaId, ReplicaId)>),
    /// The replica that stands or leads in the highest ballot is cut off in one direction from those peers that the number
    /// picks; all others hear each other.
    Hush(u64),
    /// So many proposals one after the other, with this pause between them, to every replica: each the abort of a transaction
    /// of its own.
    Rush(u64, Micros),
    /// Every replica hears every other.
    Mend,
    /// The network behaves otherwise.
    Weather(Weather),
    /// A replica's wall clock shows another time (T14).
    WallClock(ReplicaId, i64),
    /// A replica's syncs take this long.
    SlowDisk(ReplicaId, Micros),
    /// A replica's next write fails.
    FailDisk(ReplicaId, WriteFailure),
    /// A replica's machine stops at an operation of its log's disk, and starts again so long after that.
    CrashAt(ReplicaId, CrashPoint, Micros),
    /// The operation of this number (of its kind, from now) fails on a replica's disk, while the machine goes on.
    FailOperation(ReplicaId, OperationFault, u64),
    /// A replica's machine crashes, and what was synced is damaged, at a place that the number picks.
    Damage(ReplicaId, Damage, Aim, u64),
    /// The copy kept aside is put back, if what peers know of the directory suffices for the promise of L10, and the
    /// process starts.
    PutBack(ReplicaId),
    /// The directories of two replicas change places, or back; neither starts meanwhile.
    Swap(ReplicaId, ReplicaId),
    /// A replica's machine crashes, and one of its synced records (picked by the number) cannot be read afterwards.
    Corrupt(ReplicaId, u64),
    /// A replica's directory is replaced by an empty one, and its process starts on it.
    Wipe(ReplicaId),
    /// A copy of a replica's directory is kept aside.
    Backup(ReplicaId),
    /// The copy kept aside is put back, and the process starts on it.
    Rollback(ReplicaId),
    /// The line between a service and a replica loses what it carries, in one direction or both, for so long, and nobody says
    /// so; a stream that lost something never carries again, and is found broken when that is over.
    CutLine(ActorId, ReplicaId, lines::Direction, Micros),
    /// The line between a service and a replica holds what it carries for so long, and then delivers all of it in order.
    ClogLine(ActorId, ReplicaId, Micros),
    /// A service does nothing for a while, and then everything at once.
    PauseActor(ActorId, Micros),
    /// A service's process crashes and starts again.
    CrashActor(ActorId),
    /// Something goes wrong in the machine of a service over the library.
    Service(ActorId, ServiceFault),
    /// Every session breaks.
    BreakSessions,
}

/// When what happens.
pub type Plan = Vec<(Micros, Fault)>;

/// Both directions of every pair in `links`.
#[must_use]
pub fn topology(links: &[(u8, u8)]) -> BTreeSet<(ReplicaId, ReplicaId)> {
    links
        .iter()
        .flat_map(|(a, b)| [(ReplicaId(*a), ReplicaId(*b)), (ReplicaId(*b), ReplicaId(*a))])
        .collect()
}

/// Draws a plan. Each seed enables its own mix of kinds (swarm testing: Groce et al., ISSTA 2012), since a kind that is
/// always there can keep another from ever mattering. Between two faults lie at most `gap_us_max`.
#[must_use]
pub fn draw(
    random: &mut Random,
    replicas: &BTreeSet<ReplicaId>,
    actors: &[ActorId],
    length: Micros,
    gap_us_max: Micros,
) -> Plan {
    let all: Vec<ReplicaId> = replicas.iter().copied().collect();
    let enabled: Vec<bool> = (0..13).map(|_| random.between(0, 2) > 0).collect();
    // Faults that destroy what was synced strike one replica only: more than a minority of them is beyond any log.
    let victim = pick(random, &all);
    let is_destructive = random.between(0, 2) == 0;
    let incident = (random.between(0, 7) == 0).then(|| random.between(3_000_000, length));
    let mut plan = Vec::new();
    let mut at = 500_000;
    loop {
        at += random.between(50_000, gap_us_max);
        if at >= length {
            break;
        }
        let replica = pick(random, &all);
        let unsynced = if random.between(0, 1) == 0 {
            UnsyncedWrite::Kept
        } else {
            UnsyncedWrite::Lost
        };
        let kind = place(random, 14);
        if enabled.get(kind) == Some(&false) {
            continue;
        }
        match kind {
            0 => {
                plan.push((at, Fault::Crash(replica, unsynced)));
                plan.push((at + random.between(1_000, 4_000_000), Fault::Start(replica)));
            }
            1 => {
                plan.push((at, Fault::CrashLeader(unsynced)));
                let back = at + random.between(1_000, 2_000_000);
                plan.extend(all.iter().map(|one| (back, Fault::Start(*one))));
            }
            2 => plan.push((at, draw_partition(random, &all))),
            3 => plan.push((at, Fault::Mend)),
            4 => plan.push((at, Fault::Pause(replica, random.between(10_000, 1_500_000)))),
            5 => plan.push((at, Fault::Weather(draw_weather(random)))),
            6 => plan.push((at, Fault::SlowDisk(replica, random.between(50, 150_000)))),
            7 => plan.push((at, Fault::WallClock(replica, draw_offset(random)))),
            8 => plan.push((at, Fault::CrashActor(pick(random, actors)))),
            9 => plan.push((
                at,
                if random.between(0, 1) == 0 {
                    Fault::BreakSessions
                } else {
                    Fault::Drain(replica)
                },
            )),
            10 => {
                let kind = if random.between(0, 1) == 0 {
                    WriteFailure::Full
                } else {
                    WriteFailure::Broken
                };
                plan.push((at, Fault::FailDisk(replica, kind)));
                let back = at + random.between(100_000, 3_000_000);
                plan.push((back, Fault::Crash(replica, unsynced)));
                plan.push((back + 1, Fault::Start(replica)));
            }
            11 => {
                let down_us = random.between(1_000, 2_000_000);
                plan.push((at, Fault::CrashAt(replica, draw_crash_point(random), down_us)));
            }
            12 => {
                let fault = pick(
                    random,
                    &[OperationFault::Write, OperationFault::Sync, OperationFault::Full],
                );
                plan.push((at, Fault::FailOperation(replica, fault, random.between(0, 20))));
                // A process that ended starts again, on whatever its disk shows; one that stayed up must first end.
                let back = at + random.between(500_000, 3_000_000);
                if fault == OperationFault::Full {
                    plan.push((back, Fault::Crash(replica, unsynced)));
                }
                plan.push((back + 1, Fault::Start(replica)));
            }
            // In such runs the incident is the only loss.
            _ if is_destructive && incident.is_none() => add_loss(random, &mut plan, at, victim, &all),
            // Their directories are whole: nothing is lost but their time.
            _ if incident.is_none() && random.between(0, 3) == 0 => {
                let other = pick(random, &all);
                plan.push((at, Fault::Swap(replica, other)));
                let back = at + random.between(500_000, 2_000_000);
                plan.push((back, Fault::Swap(replica, other)));
                plan.extend([replica, other].map(|one| (back + 1, Fault::Start(one))));
            }
            _ => {}
        }
    }
    if let Some(at) = incident {
        let is_wiped = random.between(0, 1) == 0;
        add_directory_incident(&mut plan, at, victim, &all, is_wiped);
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

/// What was synced is lost in part, at any moment: rot, a file cut short, a write that went elsewhere, an empty directory, an old
/// one. Of one replica, the same in the whole run.
fn add_loss(random: &mut Random, plan: &mut Plan, at: Micros, victim: ReplicaId, all: &[ReplicaId]) {
    let back = at + random.between(1_000, 2_000_000);
    match random.between(0, 9) {
        0 => plan.push((at, Fault::Corrupt(victim, random.next_u64()))),
        1..=4 => {
            // Truncation mostly costs the directory, after which nothing is left to damage.
            let kinds = [
                Damage::Flip,
                Damage::Flip,
                Damage::Flip,
                Damage::Misdirect,
                Damage::Misdirect,
                Damage::MisdirectAway,
                Damage::Truncate,
            ];
            let aims = [
                Aim::Anywhere,
                Aim::AnywhereBeforeClose,
                Aim::Last,
                Aim::LastBeforeClose,
            ];
            let (damage, aim) = (pick(random, &kinds), pick(random, &aims));
            plan.push((at, Fault::Damage(victim, damage, aim, random.next_u64())));
        }
        5 | 6 => {
            // Damage to the last slots, while an election between this replica and one that lags needs its word: what it
            // reports as unreadable must hold that up.
            let aim = Aim::LastBeforeClose;
            let lagging = pick(random, all);
            let cut_at = at - random.between(50_000, 400_000);
            for one in all.iter().filter(|one| **one != lagging && lagging != victim) {
                plan.push((cut_at, Fault::Cut(*one, lagging)));
            }
            plan.push((at, Fault::CrashLeader(UnsyncedWrite::Kept)));
            plan.push((at, Fault::Mend));
            plan.push((at, Fault::Damage(victim, Damage::Flip, aim, random.next_u64())));
            plan.push((at + random.between(1_000, 100_000), Fault::Start(victim)));
            plan.extend(all.iter().map(|one| (at + 3_000_000, Fault::Start(*one))));
        }
        7 => {
            // A replica that is catching up forgets early slots, while what it was sent is still on its way.
            let late = Weather {
                delay_us: (100, 200_000),
                loss_ppm: 0,
                duplicate_ppm: 500_000,
                replay_us_max: 3_000_000,
            };
            plan.push((at, Fault::Crash(victim, UnsyncedWrite::Kept)));
            plan.push((at, Fault::Weather(late)));
            plan.push((at + 1_000_000, Fault::Start(victim)));
            let again = at + 1_000_000 + random.between(50_000, 800_000);
            let aim = Aim::AnywhereBeforeClose;
            plan.push((again, Fault::Damage(victim, Damage::Flip, aim, random.next_u64())));
            plan.push((again + 1_000, Fault::Start(victim)));
            plan.push((again + 2_000_000, Fault::Weather(Weather::CALM)));
        }
        8 => plan.push((at, Fault::Wipe(victim))),
        _ => {
            plan.push((at, Fault::Backup(victim)));
            plan.push((back, Fault::PutBack(victim)));
        }
    }
    plan.push((back, Fault::Start(victim)));
}

fn draw_crash_point(random: &mut Random) -> CrashPoint {
    let image = draw_image(random);
    let again = (random.between(0, 2) == 0).then(|| (random.between(0, 4), draw_image(random)));
    CrashPoint {
        after: random.between(0, 40),
        image,
        again,
    }
}

fn draw_image(random: &mut Random) -> CrashImage {
    match random.between(0, 3) {
        0 => CrashImage::Nothing,
        1 => CrashImage::Everything,
        2 => CrashImage::Subset(random.next_u64()),
        _ => CrashImage::Torn(random.next_u64()),
    }
}

/// Somebody wipes a replica's directory, or puts an older copy back, while all others are up and hear it: L10 rests on the
/// peers that know better being heard before they are gone, too. Around that moment nothing else goes wrong.
fn add_directory_incident(plan: &mut Plan, at: Micros, victim: ReplicaId, all: &[ReplicaId], is_wiped: bool) {
    let quiet = at.saturating_sub(4_000_000)..at + 4_000_000;
    plan.retain(|(when, fault)| {
        !quiet.contains(when)
            && !matches!(
                fault,
                Fault::FailDisk(..) | Fault::FailOperation(..) | Fault::CrashAt(..)
            )
    });
    plan.push((quiet.start, Fault::Backup(victim)));
    plan.extend([
        (quiet.start, Fault::Mend),
        (quiet.start, Fault::Weather(Weather::CALM)),
    ]);
    plan.extend(
        all.iter()
            .map(|one| (quiet.start + 1_000_000, Fault::Start(*one))),
    );
    plan.push((
        at,
        if is_wiped {
            Fault::Wipe(victim)
        } else {
            Fault::Rollback(victim)
        },
    ));
}

fn draw_offset(random: &mut Random) -> i64 {
    match random.between(0, 3) {
        0 => random.between(0, 4_000) as i64 - 2_000,
        1 => random.between(0, 3_600_000) as i64,
        2 => 100 * 365 * 86_400_000,
        _ => -(random.between(0, 3_600_000) as i64),
    }
}

fn draw_weather(random: &mut Random) -> Weather {
    match random.between(0, 3) {
        0 => Weather::CALM,
        _ => Weather {
            delay_us: (100, random.between(200, 80_000)),
            loss_ppm: random.between(0, 200_000),
            duplicate_ppm: random.between(0, 200_000),
            replay_us_max: random.between(0, 4_000_000),
        },
    }
}

fn draw_partition(random: &mut Random, all: &[ReplicaId]) -> Fault {
    let hub = pick(random, all);
    let pairs = all.iter().flat_map(|from| all.iter().map(move |to| (*from, *to)));
    match random.between(0, 4) {
        0 => {
            let (from, to) = (pick(random, all), pick(random, all));
            Fault::Cut(from, to)
        }
        // One replica alone.
        1 => Fault::Topology(pairs.filter(|(from, to)| *from != hub && *to != hub).collect()),
        // Only one replica hears the others: quorum loss for all but one.
        2 => Fault::Topology(pairs.filter(|(from, to)| *from == hub || *to == hub).collect()),
        // A chain.
        3 => Fault::Topology(pairs.filter(|(from, to)| from.0.abs_diff(to.0) == 1).collect()),
        // Two sides.
        _ => {
            let side = |one: &ReplicaId| one.0 <= hub.0;
            Fault::Topology(pairs.filter(|(from, to)| side(from) == side(to)).collect())
        }
    }
}
