//! Every way in which an input file can be wrong, one test each: the whole result is compared.

use super::{Fault, FileError, Input, InputError, Order, Stock, parse_orders, parse_stock, read};
use std::path::Path;

const HEADER: &str = "order_id,customer,sku,quantity\n";

fn order(id: &str, quantity: u32) -> Order {
    Order {
        id: id.into(),
        customer: "Ada".into(),
        sku: "MUG".into(),
        quantity,
    }
}

fn fault(line: usize, text: &str) -> Fault {
    Fault {
        line,
        text: text.into(),
    }
}

fn stock() -> Stock {
    Stock::from([("MUG".into(), 5)])
}

fn orders(bytes: impl AsRef<[u8]>) -> (Result<Vec<Order>, FileError>, Vec<Fault>) {
    parse_orders(bytes.as_ref(), &stock())
}

/// The lines below the header, between two good ones: only they are faulty.
fn between_good(lines: &[u8]) -> Vec<Fault> {
    let bytes = [HEADER.as_bytes(), b"A,Ada,MUG,1\n", lines, b"\nZ,Ada,MUG,2\n"].concat();
    let (result, faults) = orders(bytes);
    assert_eq!(result, Ok(vec![order("A", 1), order("Z", 2)]));
    faults
}

#[test]
fn a_good_file() {
    assert_eq!(
        orders("order_id,customer,sku,quantity\nA,Ada,MUG,1"),
        (Ok(vec![order("A", 1)]), vec![])
    );
    assert_eq!(parse_stock(b"sku,quantity\nMUG,5\n"), (Ok(stock()), vec![]));
}

#[test]
fn quoted_fields_and_white_space_around_fields() {
    let (result, faults) = orders(format!("{HEADER} A , \"Café \"\"Süd\"\", Århus\" , MUG ,\t3\n"));
    // Quotes after white space are not quotes in RFC 4180, so this line has one field too many.
    assert_eq!(
        (result, faults),
        (
            Err(FileError::NothingUsable),
            vec![fault(2, "long line: 5 field(s), but the header names 4")]
        )
    );
    let (result, faults) = orders(format!("{HEADER} A ,\"Café \"\"Süd\"\", Århus\", MUG ,\t3\n"));
    let expected = Order {
        customer: "Café \"Süd\", Århus".into(),
        ..order("A", 3)
    };
    assert_eq!((result, faults), (Ok(vec![expected]), vec![]));
}

#[test]
fn missing_header() {
    let error = FileError::Header {
        line: 1,
        found: "A,Ada,MUG,1".into(),
        expected: "order_id,customer,sku,quantity".into(),
    };
    assert_eq!(orders("A,Ada,MUG,1\nB,Ada,MUG,1\n"), (Err(error), vec![]));
}

#[test]
fn wrong_header() {
    let error = FileError::Header {
        line: 2,
        found: "sku;quantity".into(),
        expected: "sku,quantity".into(),
    };
    assert_eq!(parse_stock(b"\nsku;quantity\nMUG;5\n"), (Err(error), vec![]));
}

#[test]
fn empty_file_and_file_without_a_usable_line() {
    assert_eq!(
        orders(""),
        (
            Err(FileError::Empty("order_id,customer,sku,quantity".into())),
            vec![]
        )
    );
    assert_eq!(
        orders("\u{feff}\r\n\r\n"),
        (
            Err(FileError::Empty("order_id,customer,sku,quantity".into())),
            vec![]
        )
    );
    assert_eq!(orders(HEADER), (Err(FileError::NothingUsable), vec![]));
    assert_eq!(
        parse_stock(b"sku,quantity\n"),
        (Err(FileError::NothingUsable), vec![])
    );
}

#[test]
fn crlf_lines_keep_their_numbers() {
    let (result, faults) = orders(
        "order_id,customer,sku,quantity\r\nA,Ada,MUG,1\r\n\r\nB,Ada,MUG,zwei\r\nC,Ada,MUG,2\r\nD,Ada,MUG\r\n",
    );
    assert_eq!(result, Ok(vec![order("A", 1), order("C", 2)]));
    let short = "short line: 3 field(s), but the header names 4";
    assert_eq!(
        faults,
        vec![fault(4, "quantity `zwei` is not a whole number"), fault(6, short)]
    );
}

#[test]
fn byte_order_mark() {
    assert_eq!(
        orders(format!("\u{feff}{HEADER}A,Ada,MUG,1\n")),
        (Ok(vec![order("A", 1)]), vec![])
    );
}

#[test]
fn duplicate_order_id() {
    assert_eq!(
        between_good(b"A,Eve,MUG,3"),
        vec![fault(3, "duplicate order_id `A`: line 2 has it already")]
    );
    // The first line with this id is not usable, so the second one is no duplicate.
    let (result, faults) = orders(format!("{HEADER}A,Ada,MUG,0\nA,Ada,MUG,2\n"));
    assert_eq!(result, Ok(vec![order("A", 2)]));
    assert_eq!(
        faults,
        vec![fault(2, "quantity is zero: an order takes at least 1")]
    );
}

#[test]
fn duplicate_sku() {
    assert_eq!(
        parse_stock(b"sku,quantity\nMUG,5\nMUG,7\n"),
        (Ok(stock()), vec![fault(3, "duplicate sku `MUG`")])
    );
}

#[test]
fn unknown_sku() {
    assert_eq!(
        between_good(b"B,Ada,CUP,1"),
        vec![fault(3, "unknown sku `CUP`: it is not in the stock file")]
    );
}

#[test]
fn zero_quantity() {
    assert_eq!(
        between_good(b"B,Ada,MUG,0"),
        vec![fault(3, "quantity is zero: an order takes at least 1")]
    );
    let sold_out = Stock::from([("MUG".into(), 0)]);
    assert_eq!(parse_stock(b"sku,quantity\nMUG,0\n"), (Ok(sold_out), vec![]));
}

#[test]
fn negative_quantity() {
    assert_eq!(
        between_good(b"B,Ada,MUG,-3"),
        vec![fault(3, "quantity -3 is negative")]
    );
    assert_eq!(
        parse_stock(b"sku,quantity\nMUG,-1\n").1,
        vec![fault(2, "quantity -1 is negative")]
    );
}

#[test]
fn overflowing_quantity() {
    let too_large = "quantity 4294967296 is too large: at most 4294967295";
    assert_eq!(between_good(b"B,Ada,MUG,4294967296"), vec![fault(3, too_large)]);
    assert_eq!(
        parse_stock(b"sku,quantity\nMUG,4294967296\n").1,
        vec![fault(2, too_large)]
    );
    assert_eq!(parse_stock(b"sku,quantity\nMUG,4294967295\n").1, vec![]);
}

#[test]
fn quantity_that_is_no_number() {
    for (field, shown) in [
        ("", ""),
        ("1.5", "1.5"),
        ("0x10", "0x10"),
        ("--1", "--1"),
        ("1 000", "1 000"),
    ] {
        let expected = vec![fault(3, &format!("quantity `{shown}` is not a whole number"))];
        assert_eq!(
            between_good(format!("B,Ada,MUG,{field}").as_bytes()),
            expected,
            "{field}"
        );
    }
}

#[test]
fn short_and_long_lines() {
    assert_eq!(
        between_good(b"B,Ada,MUG"),
        vec![fault(3, "short line: 3 field(s), but the header names 4")]
    );
    assert_eq!(
        between_good(b"B"),
        vec![fault(3, "short line: 1 field(s), but the header names 4")]
    );
    assert_eq!(
        between_good(b"B,Ada,MUG,1,"),
        vec![fault(3, "long line: 5 field(s), but the header names 4")]
    );
}

#[test]
fn text_that_is_not_utf8_empty_too_long_or_holds_control_characters() {
    assert_eq!(
        between_good(b"B,Jos\xe9,MUG,1"),
        vec![fault(3, "`Jos\u{fffd}` is not UTF-8")]
    );
    assert_eq!(between_good(b"B, ,MUG,1"), vec![fault(3, "customer is empty")]);
    let long = "x".repeat(201);
    assert_eq!(
        between_good(format!("{long},Ada,MUG,1").as_bytes()),
        vec![fault(3, "order_id has 201 bytes: at most 200 are taken")]
    );
    assert_eq!(
        between_good(b"B\x07,Ada,MUG,1"),
        vec![fault(3, "order_id `B\\u{7}` holds a control character")]
    );
}

#[test]
fn a_quotation_mark_left_open_says_how_far_it_reached() {
    let (result, faults) = orders(format!(
        "{HEADER}A,Ada,MUG,1\nB,\"Ada,MUG,1\nC,Ada,MUG,1\nD,Ada,MUG,1\n"
    ));
    assert_eq!(result, Ok(vec![order("A", 1)]));
    assert_eq!(
        faults,
        vec![fault(
            3,
            "the record runs over 3 lines: a quotation mark is left open"
        )]
    );
}

#[test]
fn the_shipped_files_are_clean_and_some_of_their_stock_runs_out() {
    let Input {
        orders,
        stock,
        faults,
    } = read(None, None, true).expect("the shipped files");
    assert_eq!((orders.len(), stock.len(), faults), (400, 25, vec![]));
    let ordered = |sku: &str| {
        orders
            .iter()
            .filter(|order| order.sku == sku)
            .map(|order| u64::from(order.quantity))
            .sum::<u64>()
    };
    assert!(stock.iter().any(|(sku, &quantity)| ordered(sku) > quantity));
}

#[test]
fn a_file_that_cannot_be_read() {
    let Err(InputError::File {
        file,
        error: FileError::Unreadable(_),
        faults,
    }) = read(Some(Path::new("/no/such/orders.csv")), None, false)
    else {
        panic!("must be refused")
    };
    assert_eq!((file.as_str(), faults), ("/no/such/orders.csv", vec![]));
}
