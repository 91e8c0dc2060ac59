//! That the checker sees what must not be.

use super::*;

fn id(number: u8) -> MessageId {
    MessageId([number; 16])
}

fn business(topic: &str, number: u64) -> Business {
    Business {
        topic: topic.to_string(),
        key: "a".to_string(),
        number,
    }
}

/// Three messages of one key, of which the consumer has had these, in this order; and what operators did.
fn check(policy: DeadLetterPolicy, effects: &[u8], requeued: &[u8], discarded: &[u8]) -> Check {
    let published = (1..=3).map(|number| (id(number), business("moved", number.into())));
    let effects = effects
        .iter()
        .map(|number| (id(*number), business("moved", (*number).into())));
    let named = |numbers: &[u8]| {
        let numbers = numbers.iter();
        numbers
            .map(|number| ("billing".to_string(), id(*number).to_string()))
            .collect()
    };
    let record = Record {
        requeued: named(requeued),
        discarded: named(discarded),
    };
    let pair = Pair {
        text: "test".to_string(),
        consumer: "billing".to_string(),
        policy,
        topics: &["moved"],
    };
    let applied = Applied::from([(b"moved a".to_vec(), effects.collect())]);
    pair.check(&published.collect(), &record, &applied)
}

/// H1, H7, H9: once, in order, and all of them but for what was given up.
#[test]
fn a_consumer_has_had_everything_once_and_in_order() {
    use DeadLetterPolicy::{HoldKey, Skip};
    assert!(check(HoldKey, &[1, 2, 3], &[], &[]).is_ok());
    assert!(check(HoldKey, &[1, 3], &[], &[2]).is_ok());
    assert!(check(HoldKey, &[1, 2, 3], &[2], &[]).is_ok());
    assert!(check(Skip, &[1, 3, 2], &[2], &[]).is_ok());
    for (policy, effects, requeued, discarded) in [
        (HoldKey, &[1, 2][..], &[][..], &[][..]),
        (HoldKey, &[1, 2, 2, 3], &[], &[]),
        (HoldKey, &[1, 3, 2], &[], &[]),
        (HoldKey, &[1, 3, 2], &[2], &[]),
        (Skip, &[1, 3, 2], &[], &[]),
        (HoldKey, &[1, 2, 3], &[], &[2]),
        (HoldKey, &[1, 2, 3, 4], &[], &[]),
    ] {
        assert!(
            check(policy, effects, requeued, discarded).is_err(),
            "{policy:?}: {effects:?}, requeued {requeued:?}, discarded {discarded:?}"
        );
    }
}
