//! What must hold at the end. It sees what was asked, what was told, what the register says and what the databases hold, and
//! knows nothing of how that came about.

use std::collections::BTreeMap;

use synod::resource::ResourceError;
use synod::resource::redb::Snapshot;
use synod::{Gtid, TransactionStatus};
use synod_tests::process::bank::Verdict;

use crate::ledger::{ACCOUNT_COUNT, ACCOUNTS, Attempt, Entries, OPENING_BALANCE, TRANSFERS, account};

/// What an office's database holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    pub balances: BTreeMap<String, u64>,
    /// The amount under each transfer's name.
    pub transfers: BTreeMap<String, i64>,
    pub prepared_count: usize,
}

impl Book {
    fn opening() -> Self {
        let balances = (0..ACCOUNT_COUNT).map(|index| (account(index), OPENING_BALANCE));
        Self {
            balances: balances.collect(),
            ..Self::default()
        }
    }

    pub fn read(snapshot: &Snapshot) -> Result<Self, ResourceError> {
        let mut book = Self {
            prepared_count: snapshot.in_doubt()?.len(),
            ..Self::default()
        };
        for (key, value) in snapshot.scan(ACCOUNTS, "")? {
            let bytes = value.as_ref().try_into().expect("balances are 8 bytes");
            book.balances.insert(text(&key), u64::from_be_bytes(bytes));
        }
        for (key, value) in snapshot.scan(TRANSFERS, "")? {
            let bytes = value.as_ref().try_into().expect("amounts are 8 bytes");
            book.transfers.insert(text(&key), i64::from_be_bytes(bytes));
        }
        Ok(book)
    }
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

/// Everything that does not hold, one sentence each.
pub fn violations(
    entries: &Entries,
    outcomes: &BTreeMap<Gtid, TransactionStatus>,
    books: &[Book; 2],
) -> Vec<String> {
    let mut found = Vec::new();
    told(entries, outcomes, &mut found);
    effects(entries, outcomes, books, &mut found);
    for (office, book) in (1..).zip(books) {
        if book.prepared_count > 0 {
            found.push(format!(
                "office {office} still holds {} prepared branches (T8)",
                book.prepared_count
            ));
        }
    }
    let total: u64 = books.iter().flat_map(|book| book.balances.values()).sum();
    let opening = 2 * ACCOUNT_COUNT as u64 * OPENING_BALANCE;
    if total != opening {
        found.push(format!(
            "there are {total} in all accounts, and there were {opening}"
        ));
    }
    found
}

fn is_committed(status: Option<&TransactionStatus>) -> bool {
    matches!(status, Some(TransactionStatus::Committed { .. }))
}

/// Whoever was told something was told what the log says (T6, T7).
fn told(entries: &Entries, outcomes: &BTreeMap<Gtid, TransactionStatus>, found: &mut Vec<String>) {
    let mut check = |gtid: &str, verdict: Verdict, status: Option<&TransactionStatus>, who: &str| {
        let holds = match verdict {
            Verdict::Committed => is_committed(status),
            Verdict::Aborted => matches!(status, Some(TransactionStatus::Aborted(_))),
            Verdict::Refused => !is_committed(status),
            // An answer that the library can give only after a bug.
            Verdict::Unspecified => false,
        };
        if !holds {
            found.push(format!(
                "{who} of {gtid} was told {verdict:?}, and the register says {status:?}"
            ));
        }
    };
    for (gtid, attempt) in &entries.attempts {
        if let Some(verdict) = attempt.told {
            check(&gtid.to_string(), verdict, outcomes.get(gtid), "the initiator");
        }
    }
    for (gtid, verdict) in &entries.replies {
        let status = gtid.parse().ok().and_then(|gtid: Gtid| outcomes.get(&gtid));
        check(gtid, *verdict, status, "the caller");
    }
}

/// The databases hold exactly what was committed, once (T2), whole (T4), at both offices.
fn effects(
    entries: &Entries,
    outcomes: &BTreeMap<Gtid, TransactionStatus>,
    books: &[Book; 2],
    found: &mut Vec<String>,
) {
    let mut wanted = [Book::opening(), Book::opening()];
    for (gtid, attempt) in &entries.attempts {
        if !is_committed(outcomes.get(gtid)) {
            continue;
        }
        let Attempt {
            transfer,
            office,
            account,
            amount,
            ..
        } = attempt;
        for (number, book) in (1..).zip(&mut wanted) {
            let amount = if number == *office { -amount } else { *amount };
            if book.transfers.insert(transfer.clone(), amount).is_some() {
                found.push(format!(
                    "{transfer} was committed twice, the second time as {gtid} (T2)"
                ));
            }
            let balance = book.balances.entry(account.clone()).or_default();
            *balance = balance.wrapping_add_signed(amount);
        }
    }
    for (office, (wanted, book)) in (1..).zip(wanted.iter().zip(books)) {
        if wanted.transfers != book.transfers {
            found.push(format!(
                "office {office} holds the transfers {:?}, and these were committed: {:?}",
                book.transfers, wanted.transfers
            ));
        }
        if wanted.balances != book.balances {
            found.push(format!(
                "office {office} has the balances {:?} instead of {:?}",
                book.balances, wanted.balances
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use synod::{AbortCause, AbortKind, UnixMillis};

    fn gtid(number: u8) -> Gtid {
        Gtid::new(UnixMillis(1), [number; 10])
    }

    /// One transfer that was committed, and everybody says so.
    fn sound() -> (Entries, BTreeMap<Gtid, TransactionStatus>, [Book; 2]) {
        let mut entries = Entries::default();
        let attempt = Attempt {
            transfer: "t".to_owned(),
            office: 1,
            account: account(0),
            amount: 10,
            told: Some(Verdict::Committed),
            was_in_doubt: false,
        };
        entries.attempts.insert(gtid(1), attempt);
        entries.replies.push((gtid(1).to_string(), Verdict::Committed));
        let status = TransactionStatus::Committed {
            branches: Vec::new(),
            read_only_count: 0,
        };
        let books = [-10, 10].map(|amount| {
            let mut book = Book::opening();
            book.balances
                .insert(account(0), OPENING_BALANCE.wrapping_add_signed(amount));
            book.transfers.insert("t".to_owned(), amount);
            book
        });
        (entries, [(gtid(1), status)].into(), books)
    }

    #[test]
    fn a_sound_end_has_no_violations() {
        let (entries, outcomes, books) = sound();
        assert_eq!(violations(&entries, &outcomes, &books), Vec::<String>::new());
    }

    /// Each thing that may go wrong is found, by the sentence made for it.
    #[test]
    fn every_kind_of_unsound_end_is_found() {
        let aborted = TransactionStatus::Aborted(AbortCause {
            kind: AbortKind::Deadline,
            branch: None,
            text: String::new(),
        });
        let (entries, _, books) = sound();
        let found = violations(&entries, &[(gtid(1), aborted)].into(), &books);
        assert!(
            found.iter().any(|text| text.contains("the initiator of")),
            "{found:?}"
        );
        assert!(
            found.iter().any(|text| text.contains("the caller of")),
            "{found:?}"
        );
        assert!(
            found.iter().any(|text| text.contains("holds the transfers")),
            "{found:?}"
        );

        let (entries, outcomes, mut books) = sound();
        books[1].transfers.clear();
        let found = violations(&entries, &outcomes, &books);
        assert!(
            found[0].starts_with("office 2 holds the transfers {}"),
            "{found:?}"
        );

        let (entries, outcomes, mut books) = sound();
        books[0].balances.insert(account(1), 0);
        let found = violations(&entries, &outcomes, &books);
        assert!(found[0].starts_with("office 1 has the balances"), "{found:?}");
        assert!(found[1].starts_with("there are 9000 in all"), "{found:?}");

        let (entries, outcomes, mut books) = sound();
        books[0].prepared_count = 1;
        let found = violations(&entries, &outcomes, &books);
        assert_eq!(found, ["office 1 still holds 1 prepared branches (T8)"]);

        let (mut entries, mut outcomes, books) = sound();
        entries
            .attempts
            .insert(gtid(2), entries.attempts[&gtid(1)].clone());
        outcomes.insert(gtid(2), outcomes[&gtid(1)].clone());
        let found = violations(&entries, &outcomes, &books);
        assert!(found[0].contains("committed twice"), "{found:?}");
    }
}
