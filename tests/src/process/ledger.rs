//! The offices' own files, read when no process has them open: what really happened.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use synod::resource::redb::RedbFile;

use super::{ACCOUNT_COUNT, ACCOUNTS, OPENING_BALANCE, TRANSFERS, account};

/// The committed rows of one office.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Balances by account.
    pub accounts: BTreeMap<String, u64>,
    /// Amounts by transfer; money that left is negative.
    pub transfers: BTreeMap<String, i64>,
    /// Branches that are prepared and do not know their outcome.
    pub in_doubt_count: usize,
}

impl Ledger {
    /// Reads an office's file.
    ///
    /// # Panics
    /// It cannot be read, or a process has it open.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let file = RedbFile::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let rows = file.snapshot().expect("a store's file");
        let scan = |table| rows.scan(table, "").expect("rows").into_iter();
        let name = |key: &[u8]| String::from_utf8(key.to_vec()).expect("names are text");
        let number = |value: &[u8]| <[u8; 8]>::try_from(value).expect("eight bytes");
        Self {
            accounts: scan(ACCOUNTS)
                .map(|(key, value)| (name(&key), u64::from_be_bytes(number(&value))))
                .collect(),
            transfers: scan(TRANSFERS)
                .map(|(key, value)| (name(&key), i64::from_be_bytes(number(&value))))
                .collect(),
            in_doubt_count: rows.in_doubt().expect("a list").len(),
        }
    }
}

/// Checks two offices against each other: nothing in doubt, every transfer at both or at neither, with one amount, and every
/// account off by exactly its transfers. `account_of` tells the account of a transfer. Returns the transfers that took
/// effect.
///
/// # Panics
/// Anything does not add up; says what.
pub fn check(here: &Ledger, there: &Ledger, account_of: impl Fn(&str) -> String) -> BTreeSet<String> {
    assert_eq!(
        (here.in_doubt_count, there.in_doubt_count),
        (0, 0),
        "nobody is in doubt"
    );
    let mirrored: BTreeMap<_, _> = there
        .transfers
        .iter()
        .map(|(name, amount)| (name.clone(), -amount))
        .collect();
    assert_eq!(
        here.transfers, mirrored,
        "a transfer is booked at both offices, or at neither"
    );
    let opening: BTreeMap<_, _> = (0..ACCOUNT_COUNT)
        .map(|index| (account(index), OPENING_BALANCE))
        .collect();
    for (ledger, who) in [(here, "the first office"), (there, "the second office")] {
        let mut expected = opening.clone();
        for (transfer, amount) in &ledger.transfers {
            let balance = expected.get_mut(&account_of(transfer)).expect("a known account");
            *balance = balance
                .checked_add_signed(*amount)
                .expect("nobody has less than nothing");
        }
        assert_eq!(
            ledger.accounts, expected,
            "{who}: every balance is what its transfers make it"
        );
    }
    let total: u64 = here.accounts.values().chain(there.accounts.values()).sum();
    assert_eq!(
        total,
        2 * OPENING_BALANCE * ACCOUNT_COUNT as u64,
        "no money is made or lost"
    );
    here.transfers.keys().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(account: &str, transfer: &str, amount: i64) -> Ledger {
        let mut ledger = Ledger::default();
        for index in 0..ACCOUNT_COUNT {
            ledger.accounts.insert(super::account(index), OPENING_BALANCE);
        }
        let balance = ledger.accounts.get_mut(account).expect("known");
        *balance = balance.checked_add_signed(amount).expect("small");
        ledger.transfers.insert(transfer.to_owned(), amount);
        ledger
    }

    fn outcome(here: &Ledger, there: &Ledger) -> Result<BTreeSet<String>, String> {
        let checked = std::panic::catch_unwind(|| check(here, there, |_| account(0)));
        checked.map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
    }

    /// The check itself is checked: each way of not adding up is found.
    #[test]
    fn what_does_not_add_up_is_found() {
        let (here, there) = (ledger("account-00", "t", -5), ledger("account-00", "t", 5));
        assert_eq!(outcome(&here, &there), Ok(["t".to_owned()].into()));

        let half = Ledger {
            transfers: BTreeMap::new(),
            ..there.clone()
        };
        assert!(outcome(&here, &half).is_err_and(|text| text.contains("at both offices, or at neither")));
        let twice = ledger("account-00", "t", 10);
        assert!(outcome(&here, &twice).is_err_and(|text| text.contains("at both offices, or at neither")));
        let mut unbooked = there.clone();
        *unbooked.accounts.get_mut("account-07").expect("known") += 1;
        assert!(outcome(&here, &unbooked).is_err_and(|text| text.contains("every balance")));
        let waiting = Ledger {
            in_doubt_count: 1,
            ..there
        };
        assert!(outcome(&here, &waiting).is_err_and(|text| text.contains("in doubt")));
    }
}
