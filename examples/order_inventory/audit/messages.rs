//! What came of the messages: for each placed order one notification and one invoice, in the order in which the customer's
//! orders were placed.

use std::collections::{BTreeMap, BTreeSet};

use super::Ledger;
use crate::services::billing::PRICE_CENTS;

impl Ledger {
    /// Names everything that is not as the rows of orders' file say.
    pub(super) fn check_messages(&self, problems: &mut Vec<String>) {
        let placed = self.placed(problems);
        let none = Vec::new();
        let customers: BTreeSet<_> = placed
            .keys()
            .copied()
            .chain(self.notifications.keys().map(String::as_str))
            .chain(self.invoices.keys().map(String::as_str))
            .chain(self.accounts.keys().map(String::as_str))
            .collect();
        for customer in customers {
            let placed = placed.get(customer).unwrap_or(&none);
            let rows = self.notifications.get(customer).into_iter().flatten();
            let notified = rows.map(|(number, row)| (*number, row.order_id.as_str()));
            compare("notification", customer, placed, notified, problems);
            let rows = self.invoices.get(customer).into_iter().flatten();
            let invoiced = rows.map(|(number, row)| (*number, row.order_id.as_str()));
            compare("invoice", customer, placed, invoiced, problems);
            self.check_account(customer, problems);
        }
    }

    /// Each customer's orders, in the order in which they were placed.
    fn placed(&self, problems: &mut Vec<String>) -> BTreeMap<&str, Vec<&str>> {
        let mut numbered: BTreeMap<&str, BTreeMap<u64, &str>> = BTreeMap::new();
        for (id, row) in &self.orders {
            let customer = row.order.as_ref().map_or("", |order| &order.customer);
            if let Some(other) = numbered.entry(customer).or_default().insert(row.number, id) {
                let number = row.number;
                problems.push(format!(
                    "{customer}: both {other} and {id} are number {number} in orders' file"
                ));
            }
        }
        let in_order = |(customer, ids): (_, BTreeMap<_, _>)| (customer, ids.into_values().collect());
        numbered.into_iter().map(in_order).collect()
    }

    /// Invoice by invoice, what is owed is the sum up to there; the account says the last one's.
    fn check_account(&self, customer: &str, problems: &mut Vec<String>) {
        let invoices = self.invoices.get(customer).map_or(&[][..], Vec::as_slice);
        let mut owed = 0;
        for (_, invoice) in invoices {
            let order = self.orders.get(&invoice.order_id);
            let quantity = order
                .and_then(|row| row.order.as_ref())
                .map_or(0, |order| order.quantity);
            let amount = u64::from(quantity) * PRICE_CENTS;
            owed += amount;
            if (invoice.amount_cents, invoice.balance_cents) != (amount, owed) {
                problems.push(format!(
                    "{customer}: the invoice of order {} is over {} and {} owed, but should be over {amount} and {owed}",
                    invoice.order_id, invoice.amount_cents, invoice.balance_cents
                ));
            }
        }
        let account = self.accounts.get(customer).copied().unwrap_or_default();
        if (account.invoice_count, account.balance_cents) != (invoices.len() as u64, owed) {
            problems.push(format!(
                "{customer} owes {} cents on {} invoice(s), says the account; the invoices say {owed} on {}",
                account.balance_cents,
                account.invoice_count,
                invoices.len()
            ));
        }
    }
}

/// Each order's effect is there once, none is there besides, and their order is that of the orders.
fn compare<'a>(
    what: &str,
    customer: &str,
    placed: &[&str],
    effects: impl Iterator<Item = (u64, &'a str)>,
    problems: &mut Vec<String>,
) {
    let mut found = Vec::new();
    let before = problems.len();
    for (expected, (number, id)) in (1..).zip(effects) {
        if number != expected {
            problems.push(format!(
                "{customer}: the {what} of order {id} has the number {number} instead of {expected}"
            ));
        }
        if found.contains(&id) {
            problems.push(format!("order {id} has more than one {what}"));
        } else if !placed.contains(&id) {
            problems.push(format!(
                "order {id} has one {what} too many: {customer} has no such order"
            ));
        }
        found.push(id);
    }
    for id in placed.iter().filter(|id| !found.contains(id)) {
        problems.push(format!("order {id} was placed, but has no {what}"));
    }
    // Only where the same orders are there is it about their order.
    if problems.len() == before && found != placed {
        problems.push(format!(
            "{customer}: placed {placed:?}, but the {what}s came as {found:?}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{good, problems};
    use crate::services::shop::billing::Account;

    #[test]
    fn a_message_that_got_lost_is_found() {
        let found = problems(|_, ledger| ledger.notifications.clear());
        assert_eq!(
            found,
            [
                "order A was placed, but has no notification",
                "order C was placed, but has no notification"
            ]
        );
        let found = problems(|_, ledger| drop(ledger.invoices.get_mut("Ada").expect("rows").pop()));
        assert_eq!(
            found,
            [
                "order C was placed, but has no invoice",
                "Ada owes 2250 cents on 2 invoice(s), says the account; the invoices say 900 on 1"
            ]
        );
    }

    #[test]
    fn a_message_that_took_effect_twice_is_found() {
        let found = problems(|_, ledger| {
            let rows = ledger.notifications.get_mut("Ada").expect("rows");
            rows.push((3, rows[1].1.clone()));
        });
        assert_eq!(found, ["order C has more than one notification"]);
        let found = problems(|_, ledger| {
            let account = ledger.accounts.get_mut("Ada").expect("a row");
            account.balance_cents += 450;
        });
        assert_eq!(
            found,
            ["Ada owes 2700 cents on 2 invoice(s), says the account; the invoices say 2250 on 2"]
        );
    }

    /// Of an order that was refused, or that nobody ever heard of.
    #[test]
    fn a_message_of_no_order_is_found() {
        let found = problems(|_, ledger| {
            let rows = ledger.notifications.get_mut("Ada").expect("rows");
            let mut row = rows[1].1.clone();
            row.order_id = "B".into();
            rows.push((3, row));
        });
        assert_eq!(
            found,
            ["order B has one notification too many: Ada has no such order"]
        );
        let found = problems(|_, ledger| {
            let account = Account {
                invoice_count: 1,
                balance_cents: 5,
            };
            ledger.accounts.insert("Eve".into(), account);
        });
        assert_eq!(
            found,
            ["Eve owes 5 cents on 1 invoice(s), says the account; the invoices say 0 on 0"]
        );
    }

    #[test]
    fn messages_in_another_order_are_found() {
        let found = problems(|_, ledger| {
            let rows = ledger.notifications.get_mut("Ada").expect("rows");
            let (first, second) = (rows[0].1.clone(), rows[1].1.clone());
            *rows = vec![(1, second), (2, first)];
        });
        assert_eq!(
            found,
            [r#"Ada: placed ["A", "C"], but the notifications came as ["C", "A"]"#]
        );
    }

    #[test]
    fn a_number_that_is_missing_is_found() {
        let found = problems(|_, ledger| {
            let rows = ledger.notifications.get_mut("Ada").expect("rows");
            rows[1].0 = 3;
        });
        assert_eq!(
            found,
            ["Ada: the notification of order C has the number 3 instead of 2"]
        );
    }

    #[test]
    fn an_invoice_over_another_amount_is_found() {
        let (.., ledger) = good();
        assert_eq!(ledger.accounts["Ada"].balance_cents, 2250);
        let found = problems(|_, ledger| {
            let rows = ledger.invoices.get_mut("Ada").expect("rows");
            rows[0].1.amount_cents = 1;
        });
        assert_eq!(
            found,
            ["Ada: the invoice of order A is over 1 and 900 owed, but should be over 900 and 900"]
        );
    }
}
