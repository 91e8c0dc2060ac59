//! Storms of elections: whoever leads is soon not heard, or hears nobody, in the middle of what it proposes; and so is who
//! comes next. Different values then lie in one slot, on few replicas each, under several ballots, and messages of old
//! ballots arrive in new ones. Faults that strike at random moments hardly ever come to that.

use super::{Fault, Plan};
use crate::network::Weather;
use crate::schedule::Micros;
use crate::store::UnsyncedWrite;
use std::collections::BTreeSet;
use synod_coordinator_core::random::Random;
use synod_proto::ids::ReplicaId;

/// Services begin early in a run, and a storm that nothing is proposed in does no harm.
const BEGIN_US_MAX: Micros = 8_000_000;

/// How soon before a fault of a storm a rush of proposals begins, at most: what it proposes is then on its way.
const RUSH_AHEAD_US_MAX: Micros = 40_000;

/// Draws the storms of a run: in half of the runs, one or two.
#[must_use]
pub fn draw(random: &mut Random, replicas: &BTreeSet<ReplicaId>, length: Micros) -> Plan {
    let mut plan = Vec::new();
    if random.between(0, 1) > 0 {
        return plan;
    }
    for _ in 0..random.between(1, 2) {
        let mut at = random.between(500_000, BEGIN_US_MAX.min(length));
        if random.between(0, 1) == 0 {
            plan.push((at, Fault::Weather(draw_weather(random))));
        }
        let pause_us_max = random.between(300_000, 1_500_000);
        let is_rushed = random.between(0, 3) > 0;
        for _ in 0..random.between(2, 12) {
            if is_rushed && random.between(0, 3) > 0 {
                let begin = at.saturating_sub(random.between(0, RUSH_AHEAD_US_MAX));
                let (count, gap_us) = (random.between(2, 24), random.between(200, 12_000));
                plan.push((begin, Fault::Rush(count, gap_us)));
            }
            plan.push(match random.between(0, 9) {
                0 => (at, Fault::Mend),
                1 | 2 => (at, Fault::CrashLeader(UnsyncedWrite::Lost)),
                _ => (at, Fault::Hush(random.next_u64())),
            });
            at += random.between(20_000, pause_us_max);
            plan.extend(replicas.iter().map(|one| (at, Fault::Start(*one))));
        }
        plan.push((at, Fault::Mend));
        plan.push((at, Fault::Weather(Weather::CALM)));
    }
    plan
}

/// Late, and again and again, but not lost: an answer to a former ballot is to arrive.
fn draw_weather(random: &mut Random) -> Weather {
    Weather {
        delay_us: (100, random.between(1_000, 100_000)),
        loss_ppm: 0,
        duplicate_ppm: random.between(0, 600_000),
        replay_us_max: random.between(100_000, 2_000_000),
    }
}
