//! The bank: transfers over the library's real participant and the real redb store, in a simulated cluster. That it does
//! what it says, and that its checkers notice what they are there for.

use std::collections::BTreeMap;
use synod_tests::actors::ActorId;
use synod_tests::actors::service::{Sabotage, ServiceFault};
use synod_tests::faults::Fault;
use synod_tests::run::{Draw, play_with};
use synod_tests::trace::Detail;
use synod_tests::workloads::bank::Bank;

/// A run of a bank alone, for 20 seconds.
fn draw(seed: u64) -> Draw {
    let mut draw = Draw::new(seed, Detail::Hash);
    draw.plan.clear();
    draw.faults_us = 20_000_000;
    draw.is_long = false;
    draw.setup.lines.loss_ppm = 0;
    draw
}

/// Plays a bank and returns what it came past, or what was found.
fn play(draw: &Draw, sabotage: Option<Sabotage>) -> Result<BTreeMap<&'static str, u64>, String> {
    let bank = match sabotage {
        Some(sabotage) => Bank::sabotaged(draw.seed, draw.service_count, sabotage),
        None => Bank::new(draw.seed, draw.service_count),
    };
    let books = bank.books();
    let (result, _world) = play_with(draw, vec![Box::new(bank)]);
    result.map_err(|violation| format!("seed {}: {violation}", draw.seed))?;
    Ok(books.take().counts)
}

fn add(counts: &mut BTreeMap<&'static str, u64>, more: &BTreeMap<&'static str, u64>) {
    for (what, count) in more {
        *counts.entry(what).or_default() += count;
    }
}

fn every(pause_us: u64, fault: impl Fn(u64) -> Fault) -> Vec<(u64, Fault)> {
    (1..20_000_000 / pause_us)
        .map(|number| (number * pause_us, fault(number)))
        .collect()
}

/// T4, T5: without faults most transfers commit, and each does all that it was asked for.
#[test]
fn a_bank_in_peace_does_what_it_is_asked_for() {
    let mut counts = BTreeMap::new();
    for seed in 1..=6 {
        add(&mut counts, &play(&draw(seed), None).expect("nothing is wrong"));
    }
    let count = |what: &str| counts.get(what).copied().unwrap_or_default();
    assert!(count("committed") > 60, "{counts:?}");
    assert!(count("vote: read-only") > 0, "{counts:?}");
    assert!(count("a call taken out by name") > 0, "{counts:?}");
    assert!(count("refused to commit") > 0, "{counts:?}");
}

/// T2, T8: calls that are lost and repeated, services that crash at any moment, in the middle of a write above all.
#[test]
fn calls_come_again_and_services_crash_in_the_middle_of_a_write() {
    let mut counts = BTreeMap::new();
    for seed in 1..=6 {
        let mut draw = draw(seed);
        draw.setup.lines.loss_ppm = 30_000;
        let count = u64::from(draw.service_count);
        draw.plan = every(1_300_000, |number| {
            let service = ActorId(u32::try_from(number % count).expect("few"));
            let fault = match number % 3 {
                0 => ServiceFault::CrashAtOperation(number % 11 + 1),
                1 => ServiceFault::FailAtOperation(number % 7 + 1),
                _ => return Fault::CrashActor(service),
            };
            Fault::Service(service, fault)
        });
        add(&mut counts, &play(&draw, None).expect("nothing is wrong"));
    }
    for what in [
        "committed",
        "a call executed again",
        "a start with prepared branches",
        "power lost in the middle of a write",
        "a store opened again by its process",
    ] {
        assert!(counts.contains_key(what), "{what}: {counts:?}");
    }
}

/// T8: a branch that somebody rolled back behind the library's back is reported as a hazard, and never acknowledged; the
/// operator settles it.
#[test]
fn a_branch_rolled_back_by_hand_is_a_hazard() {
    let mut counts = BTreeMap::new();
    for seed in 1..=4 {
        let mut draw = draw(seed);
        let count = u64::from(draw.service_count);
        draw.plan = every(150_000, |number| {
            let service = ActorId(u32::try_from(number % count).expect("few"));
            Fault::Service(service, ServiceFault::RollBackByHand(number))
        });
        add(&mut counts, &play(&draw, None).expect("nothing is wrong"));
    }
    assert!(counts.contains_key("a hazard noticed"), "{counts:?}");
}

/// The checkers are there for something: each broken rule is found within so many seeds.
#[test]
fn every_sabotage_is_found() {
    for (sabotage, seed_count, found) in [
        (Sabotage::AcknowledgesUnknown, 10, "was acknowledged"),
        (Sabotage::ForgetsFailedCalls, 10, "asked for"),
        (Sabotage::RollsBackAtStart, 30, "its database"),
        (Sabotage::DiskLies, 30, "its tables say"),
    ] {
        let result = (1..=seed_count).find_map(|seed| {
            let mut draw = draw(seed);
            let count = u64::from(draw.service_count);
            draw.plan = every(900_000, |number| {
                Fault::CrashActor(ActorId(u32::try_from(number % count).expect("few")))
            });
            play(&draw, Some(sabotage)).err()
        });
        let text = result.unwrap_or_else(|| panic!("{sabotage:?} was not found in {seed_count} seeds"));
        println!("{sabotage:?}: {text}");
        assert!(text.contains(found), "{sabotage:?} was found as {text}");
    }
}
