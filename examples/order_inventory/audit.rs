//! The count at the end: the services' own files, opened after the services have ended, against what the initiator was
//! told. [`Ledger::check`] is pure; every way in which it can fail has a test.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::input::{Input, Order, Stock};
use crate::services::shop;

mod messages;

/// What the count found, whether or not it adds up.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Audit {
    pub(crate) order_rows: usize,
    pub(crate) stock_before: u64,
    pub(crate) stock_after: u64,
    pub(crate) items_ordered: u64,
    pub(crate) notifications: usize,
    pub(crate) invoices: usize,
    pub(crate) owed_cents: u64,
    pub(crate) in_doubt: usize,
}

/// The committed content of all files.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ledger {
    /// Every row of the table `orders`, by order id.
    pub(crate) orders: BTreeMap<String, shop::orders::OrderRow>,
    /// Every row of the table `stock`.
    pub(crate) stock: Stock,
    /// Each customer's rows of the table `notifications`, with their numbers, which rise.
    pub(crate) notifications: BTreeMap<String, Vec<(u64, shop::notifications::Notification)>>,
    /// The same of the table `invoices`.
    pub(crate) invoices: BTreeMap<String, Vec<(u64, shop::billing::Invoice)>>,
    /// Every row of the table `accounts`, by customer.
    pub(crate) accounts: BTreeMap<String, shop::billing::Account>,
    /// Branches of both participants' files that are prepared and do not know their outcome.
    pub(crate) in_doubt: usize,
}

/// What the initiator was told about one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its global transaction is committed.
    Placed,
    /// Not enough in stock: aborted.
    Refused,
}

impl Ledger {
    /// Counts, and names everything that does not add up. `verdicts` has one entry for each order of the input.
    pub(crate) fn check(&self, input: &Input, verdicts: &[Verdict]) -> (Audit, Vec<String>) {
        let mut problems = Vec::new();
        let mut ordered: BTreeMap<&str, u64> = BTreeMap::new();
        for row in self.orders.values().filter_map(|row| row.order.as_ref()) {
            *ordered.entry(&row.sku).or_default() += u64::from(row.quantity);
        }
        let mut expected = BTreeMap::new();
        for (order, verdict) in input.orders.iter().zip(verdicts) {
            match verdict {
                Verdict::Placed => drop(expected.insert(order.id.as_str(), row(order))),
                Verdict::Refused => self.check_refusal(order, &mut problems),
            }
        }
        for (id, row) in &expected {
            match self.orders.get(*id) {
                None => problems.push(format!(
                    "order {id} was placed, but orders' file has no row for it"
                )),
                Some(found) if found.order.as_ref() != Some(row) => {
                    problems.push(format!("order {id} has another row than was placed: {found:?}"));
                }
                Some(_) => {}
            }
        }
        for id in self
            .orders
            .keys()
            .filter(|id| !expected.contains_key(id.as_str()))
        {
            problems.push(format!("orders' file has a row for {id}, which was not placed"));
        }
        for (sku, &before) in &input.stock {
            let after = self.stock.get(sku).copied();
            let sold = ordered.remove(sku.as_str()).unwrap_or_default();
            if after.map(|after| after + sold) != Some(before) {
                let after = after.map_or("no row".to_owned(), |after| after.to_string());
                problems.push(format!(
                    "{sku}: {before} in stock before, {after} after, but {sold} ordered"
                ));
            }
        }
        problems.extend(
            ordered
                .keys()
                .map(|sku| format!("{sku} was ordered, but never in stock")),
        );
        problems.extend(
            self.stock
                .keys()
                .filter(|&sku| !input.stock.contains_key(sku))
                .map(|sku| format!("inventory's file has a row for {sku}, which was never in stock")),
        );
        self.check_messages(&mut problems);
        if self.in_doubt > 0 {
            problems.push(format!("{} branch(es) are left in doubt", self.in_doubt));
        }
        let audit = Audit {
            order_rows: self.orders.len(),
            stock_before: input.stock.values().sum(),
            stock_after: self.stock.values().sum(),
            items_ordered: self.items().sum(),
            notifications: self.notifications.values().map(Vec::len).sum(),
            invoices: self.invoices.values().map(Vec::len).sum(),
            owed_cents: self.accounts.values().map(|account| account.balance_cents).sum(),
            in_doubt: self.in_doubt,
        };
        (audit, problems)
    }

    fn items(&self) -> impl Iterator<Item = u64> {
        let orders = self.orders.values().filter_map(|row| row.order.as_ref());
        orders.map(|order| order.quantity.into())
    }

    /// Stock only falls while the shop is open: what could be served at the end could have been served before.
    fn check_refusal(&self, order: &Order, problems: &mut Vec<String>) {
        let left = self.stock.get(&order.sku).copied().unwrap_or_default();
        if left >= order.quantity.into() {
            problems.push(format!(
                "order {} over {} was refused, but {left} are in stock",
                order.id, order.quantity
            ));
        }
    }
}

/// An order as it is sent, and as its row says it.
pub(crate) fn row(order: &Order) -> shop::orders::Order {
    shop::orders::Order {
        customer: order.customer.clone(),
        sku: order.sku.clone(),
        quantity: order.quantity,
    }
}

#[cfg(test)]
mod tests {
    use super::{Audit, Ledger, Verdict, row};
    use crate::input::{Input, Order, Stock};
    use crate::services::shop::billing::{Account, Invoice};
    use crate::services::shop::notifications::Notification;
    use crate::services::shop::orders::OrderRow;

    fn order(id: &str, quantity: u32) -> Order {
        Order {
            id: id.into(),
            customer: "Ada".into(),
            sku: "MUG".into(),
            quantity,
        }
    }

    /// Five mugs at 4.50; A takes two, B wanted four, C takes three.
    pub(super) fn good() -> (Input, [Verdict; 3], Ledger) {
        let orders = vec![order("A", 2), order("B", 4), order("C", 3)];
        let ledger = Ledger {
            orders: [0, 2]
                .map(|index: usize| {
                    let placed = OrderRow {
                        order: Some(row(&orders[index])),
                        number: index as u64 / 2 + 1,
                    };
                    (orders[index].id.clone(), placed)
                })
                .into(),
            stock: Stock::from([("MUG".into(), 0)]),
            notifications: [("Ada".into(), vec![notification(1, "A"), notification(2, "C")])].into(),
            invoices: [(
                "Ada".into(),
                vec![invoice(1, "A", 900, 900), invoice(2, "C", 1350, 2250)],
            )]
            .into(),
            accounts: [(
                "Ada".into(),
                Account {
                    invoice_count: 2,
                    balance_cents: 2250,
                },
            )]
            .into(),
            in_doubt: 0,
        };
        let stock = Stock::from([("MUG".into(), 5)]);
        (
            Input {
                orders,
                stock,
                faults: vec![],
            },
            [Verdict::Placed, Verdict::Refused, Verdict::Placed],
            ledger,
        )
    }

    fn notification(number: u64, id: &str) -> (u64, Notification) {
        let order_id = id.into();
        (number, Notification { order_id })
    }

    fn invoice(number: u64, id: &str, amount_cents: u64, balance_cents: u64) -> (u64, Invoice) {
        let invoice = Invoice {
            order_id: id.into(),
            amount_cents,
            balance_cents,
        };
        (number, invoice)
    }

    pub(super) fn problems(change: impl FnOnce(&mut [Verdict; 3], &mut Ledger)) -> Vec<String> {
        let (input, mut verdicts, mut ledger) = good();
        change(&mut verdicts, &mut ledger);
        ledger.check(&input, &verdicts).1
    }

    #[test]
    fn a_good_ledger_adds_up() {
        let (input, verdicts, ledger) = good();
        let audit = Audit {
            order_rows: 2,
            stock_before: 5,
            stock_after: 0,
            items_ordered: 5,
            notifications: 2,
            invoices: 2,
            owed_cents: 2250,
            in_doubt: 0,
        };
        assert_eq!(ledger.check(&input, &verdicts), (audit, vec![]));
    }

    /// Half an order: the row is there and the stock is not taken, or the other way round.
    #[test]
    fn half_an_order_is_found() {
        assert_eq!(
            problems(|_, ledger| drop(ledger.orders.remove("C")))[..2],
            [
                "order C was placed, but orders' file has no row for it",
                "MUG: 5 in stock before, 0 after, but 2 ordered"
            ]
        );
        assert_eq!(
            problems(|_, ledger| _ = ledger.stock.insert("MUG".into(), 3)),
            ["MUG: 5 in stock before, 3 after, but 5 ordered"]
        );
    }

    #[test]
    fn stock_taken_twice_or_lost_is_found() {
        assert_eq!(
            problems(|_, ledger| ledger.stock.clear()),
            ["MUG: 5 in stock before, no row after, but 5 ordered"]
        );
        assert_eq!(
            problems(|_, ledger| _ = ledger.stock.insert("CUP".into(), 1)),
            ["inventory's file has a row for CUP, which was never in stock"]
        );
    }

    #[test]
    fn a_row_that_nobody_placed_is_found() {
        assert_eq!(
            problems(|verdicts, _| verdicts[0] = Verdict::Refused),
            ["orders' file has a row for A, which was not placed"]
        );
    }

    #[test]
    fn another_row_than_was_placed_is_found() {
        let found = problems(|_, ledger| {
            let row = ledger.orders.get_mut("A").expect("a row");
            row.order.as_mut().expect("an order").sku = "CUP".into();
        });
        assert!(found[0].starts_with("order A has another row"), "{found:?}");
    }

    #[test]
    fn a_refusal_without_a_reason_is_found() {
        let found = problems(|verdicts, ledger| {
            verdicts[2] = Verdict::Refused;
            ledger.orders.remove("C");
            ledger.stock.insert("MUG".into(), 3);
        });
        assert_eq!(found[0], "order C over 3 was refused, but 3 are in stock");
    }

    #[test]
    fn a_branch_in_doubt_is_found() {
        assert_eq!(
            problems(|_, ledger| ledger.in_doubt = 1),
            ["1 branch(es) are left in doubt"]
        );
    }
}
