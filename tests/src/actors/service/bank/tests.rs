//! That a drawn transaction is one whose money can be counted.

use super::*;
use crate::actors::service::Setup;

fn sum<'a>(parts: impl Iterator<Item = &'a Part>) -> i64 {
    let legs = parts.flat_map(|part| part.work.legs());
    legs.filter_map(|leg| leg.delta()).sum()
}

/// T4 lets a transaction commit without a call that was taken out by name, and no money may be missed then.
#[test]
fn no_money_is_made_or_lost_whichever_optional_calls_a_transaction_does_without() {
    let setup = Setup {
        replicas: Vec::new(),
        store: None,
        transactions: (0, 0),
        banks: (0..3)
            .map(|number| (ActorId(number), ResourceId([0; 16])))
            .collect(),
        seed: 0,
        books: SharedBooks::default(),
        sabotage: None,
        stop: None,
        messages: None,
    };
    let mut random = Random::new(7_100_268);
    let mut optional_open_count = 0;
    for number in 0..5_000 {
        let shape = Shape::draw(&mut random, &setup, number % 2 == 0);
        assert_eq!(sum(shape.parts.iter()), 0, "{shape:?}");
        for part in shape.parts.iter().filter(|part| part.is_optional) {
            assert_eq!(sum(std::iter::once(part)), 0, "{part:?} of {shape:?}");
            optional_open_count += u32::from(part.work.is_open);
        }
    }
    assert!(
        optional_open_count > 50,
        "{optional_open_count} optional calls in open branches"
    );
}
