//! Which cases there are.

use super::script::{Outcome, Reference};
use super::{Act, Case, IMAGE_COUNT, Machine};
use std::collections::BTreeMap;

/// Each operation with each image.
#[must_use]
pub fn crashes(variant: u8, operation_counts: &[(Machine, u64)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (machine, count) in operation_counts {
        for operation in 0..*count {
            cases.extend((0..IMAGE_COUNT).map(|image| Case {
                variant,
                machine: *machine,
                act: Act::Crash(operation, image, None),
            }));
        }
    }
    cases
}

/// A second crash at each operation of the repair that these crashes caused, for every `nth` of them; the second image
/// takes its turn.
#[must_use]
pub fn double_crashes(singles: &[(Case, Outcome)], nth: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (case, outcome) in singles.iter().step_by(nth.max(1)) {
        let Act::Crash(operation, image, None) = case.act else {
            continue;
        };
        for after in 0..outcome.repair_operation_count {
            let again = (after, cases.len() % IMAGE_COUNT);
            let act = Act::Crash(operation, image, Some(again));
            cases.push(Case { act, ..*case });
        }
    }
    cases
}

/// Of the places that can be damaged, so many of each class, spread evenly from the oldest to the newest.
#[must_use]
pub fn damages(variant: u8, reference: &Reference, of_class: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (replica, sites) in &reference.sites {
        let mut classes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (number, site) in sites.iter().enumerate() {
            classes.entry(site.class).or_default().push(number);
        }
        for numbers in classes.values() {
            let count = numbers.len().min(of_class);
            cases.extend((0..count).map(|place| Case {
                variant,
                machine: Machine::Replica(*replica),
                act: Act::Damage(numbers[(2 * place + 1) * numbers.len() / (2 * count)]),
            }));
        }
    }
    cases
}
