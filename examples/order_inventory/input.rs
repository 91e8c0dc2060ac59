//! The two CSV files: orders (`order_id,customer,sku,quantity`) and stock (`sku,quantity`).
//!
//! UTF-8, with or without byte-order mark; lines end in LF or CRLF; fields may be quoted (RFC 4180); white space around
//! a field and empty lines are passed over. A line that cannot be used is a [`Fault`] with its line number: such lines
//! are skipped, or, with `--strict`, the whole file is refused before anything has run. A file whose *header* is wrong
//! is always refused, since then every line may mean something else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::IntErrorKind;
use std::path::{Path, PathBuf};

/// The longest file, in bytes: it is held in memory, and so is every order's result.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The longest order id, customer or sku, in bytes. An order id is a key of the services' databases.
const TEXT_BYTES_MAX: usize = 200;

const ORDERS_HEADER: &[&str] = &["order_id", "customer", "sku", "quantity"];
const STOCK_HEADER: &[&str] = &["sku", "quantity"];

/// The files that ship with the example, so that it runs from any directory.
const SHIPPED_ORDERS: &[u8] = include_bytes!("orders.csv");
const SHIPPED_STOCK: &[u8] = include_bytes!("stock.csv");

/// One order, as its line says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) customer: String,
    pub(crate) sku: String,
    pub(crate) quantity: u32,
}

/// How many of each sku are in stock before the shop opens.
pub(crate) type Stock = BTreeMap<String, u64>;

/// Both files, read and checked.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) orders: Vec<Order>,
    pub(crate) stock: Stock,
    /// Lines that were skipped, in the order of the files; each is ready to print.
    pub(crate) faults: Vec<String>,
}

/// A line that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Counted from 1, the header being line 1.
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// Why a file as a whole cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FileError {
    #[error("{0}")]
    Unreadable(String),
    #[error("the file is empty; its first line must be `{0}`")]
    Empty(String),
    #[error("line {line}: the header is `{found}`, but must be `{expected}`")]
    Header {
        line: usize,
        found: String,
        expected: String,
    },
    #[error("the file holds no usable line beside its header")]
    NothingUsable,
}

/// Why the run cannot start. Nothing has been started or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("{file}: {error}")]
    File {
        file: String,
        error: FileError,
        faults: Vec<String>,
    },
    #[error("{} unusable line(s), and --strict takes none", faults.len())]
    Strict { faults: Vec<String> },
}

impl InputError {
    /// The unusable lines that were found up to here.
    pub(crate) fn faults(&self) -> &[String] {
        match self {
            Self::File { faults, .. } | Self::Strict { faults } => faults,
        }
    }
}

/// Reads both files; `None` takes the one that ships with the example.
pub(crate) fn read(orders: Option<&Path>, stock: Option<&Path>, strict: bool) -> Result<Input, InputError> {
    let mut faults = Vec::new();
    let stock = one_file(stock, SHIPPED_STOCK, "stock.csv", &mut faults, parse_stock)?;
    let orders = one_file(orders, SHIPPED_ORDERS, "orders.csv", &mut faults, |bytes| {
        parse_orders(bytes, &stock)
    })?;
    if strict && !faults.is_empty() {
        return Err(InputError::Strict { faults });
    }
    Ok(Input {
        orders,
        stock,
        faults,
    })
}

fn one_file<T>(
    path: Option<&Path>,
    shipped: &[u8],
    shipped_name: &str,
    faults: &mut Vec<String>,
    parse: impl FnOnce(&[u8]) -> (Result<T, FileError>, Vec<Fault>),
) -> Result<T, InputError> {
    let name = path
        .map_or_else(|| PathBuf::from(shipped_name), Path::to_path_buf)
        .display()
        .to_string();
    let (result, found) = match path.map(load) {
        Some(Err(error)) => (Err(error), Vec::new()),
        Some(Ok(bytes)) => parse(&bytes),
        None => parse(shipped),
    };
    faults.extend(
        found
            .into_iter()
            .map(|fault| format!("{name}:{}: {}", fault.line, fault.text)),
    );
    result.map_err(|error| InputError::File {
        file: name,
        error,
        faults: std::mem::take(faults),
    })
}

fn load(path: &Path) -> Result<Vec<u8>, FileError> {
    let unreadable = |error: std::io::Error| FileError::Unreadable(error.to_string());
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > FILE_BYTES_MAX {
        return Err(FileError::Unreadable(format!(
            "{length} bytes, but at most {FILE_BYTES_MAX} are read"
        )));
    }
    std::fs::read(path).map_err(unreadable)
}

/// Every order that the shop can take, in the order of the file.
fn parse_orders(bytes: &[u8], stock: &Stock) -> (Result<Vec<Order>, FileError>, Vec<Fault>) {
    let mut orders = Vec::new();
    let mut seen = BTreeMap::new();
    let (header, faults) = each_line(bytes, ORDERS_HEADER, |line, fields| {
        let id = text("order_id", fields[0])?;
        let customer = text("customer", fields[1])?;
        let sku = text("sku", fields[2])?;
        let quantity = number(fields[3])?;
        if quantity == 0 {
            return Err("quantity is zero: an order takes at least 1".into());
        }
        if !stock.contains_key(sku) {
            return Err(format!(
                "unknown sku `{}`: it is not in the stock file",
                shown(sku)
            ));
        }
        // Only a line that is used claims its id: a bad line does not shut out a later good one.
        if let Some(first) = seen.get(id) {
            return Err(format!(
                "duplicate order_id `{}`: line {first} has it already",
                shown(id)
            ));
        }
        seen.insert(id.to_owned(), line);
        orders.push(Order {
            id: id.into(),
            customer: customer.into(),
            sku: sku.into(),
            quantity,
        });
        Ok(())
    });
    (
        header.and(if orders.is_empty() {
            Err(FileError::NothingUsable)
        } else {
            Ok(orders)
        }),
        faults,
    )
}

/// What is in stock. A quantity of zero is fine here: sold out.
fn parse_stock(bytes: &[u8]) -> (Result<Stock, FileError>, Vec<Fault>) {
    let mut stock = Stock::new();
    let (header, faults) = each_line(bytes, STOCK_HEADER, |_, fields| {
        let sku = text("sku", fields[0])?;
        let quantity = number(fields[1])?;
        if stock.contains_key(sku) {
            return Err(format!("duplicate sku `{}`", shown(sku)));
        }
        stock.insert(sku.to_owned(), quantity.into());
        Ok(())
    });
    (
        header.and(if stock.is_empty() {
            Err(FileError::NothingUsable)
        } else {
            Ok(stock)
        }),
        faults,
    )
}

/// Checks the header, then hands over each record that has as many fields as the header and is UTF-8.
fn each_line(
    bytes: &[u8],
    header: &[&str],
    mut take: impl FnMut(usize, &[&str]) -> Result<(), String>,
) -> (Result<(), FileError>, Vec<Fault>) {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(bytes);
    let mut record = csv::ByteRecord::new();
    let mut lines = LineCounter {
        bytes,
        at: 0,
        line: 1,
    };
    let mut faults = Vec::new();
    let mut is_first = true;
    // A reader over memory has no IO errors, and `flexible` leaves no others: `Ok(false)` is the end of the file.
    while let Ok(true) = reader.read_byte_record(&mut record) {
        let line = lines.first_of(record.position().map_or(0, csv::Position::byte));
        let last = lines.ahead(reader.position().byte());
        record.trim();
        if std::mem::take(&mut is_first) {
            if record.iter().ne(header.iter().map(|name| name.as_bytes())) {
                let found = record
                    .iter()
                    .map(String::from_utf8_lossy)
                    .collect::<Vec<_>>()
                    .join(",");
                return (
                    Err(FileError::Header {
                        line,
                        found: shown(&found),
                        expected: header.join(","),
                    }),
                    faults,
                );
            }
        } else if let Err(text) =
            check(&record, header.len(), last - line).and_then(|fields| take(line, &fields))
        {
            faults.push(Fault { line, text });
        }
    }
    (
        if is_first {
            Err(FileError::Empty(header.join(",")))
        } else {
            Ok(())
        },
        faults,
    )
}

fn check(record: &csv::ByteRecord, expected: usize, further_lines: usize) -> Result<Vec<&str>, String> {
    if further_lines > 0 {
        return Err(format!(
            "the record runs over {} lines: a quotation mark is left open",
            further_lines + 1
        ));
    }
    if record.len() != expected {
        let kind = if record.len() < expected { "short" } else { "long" };
        return Err(format!(
            "{kind} line: {} field(s), but the header names {expected}",
            record.len()
        ));
    }
    record
        .iter()
        .map(|field| {
            std::str::from_utf8(field)
                .map_err(|_| format!("`{}` is not UTF-8", shown(&String::from_utf8_lossy(field))))
        })
        .collect()
}

fn text<'a>(name: &str, field: &'a str) -> Result<&'a str, String> {
    if field.is_empty() {
        Err(format!("{name} is empty"))
    } else if field.len() > TEXT_BYTES_MAX {
        Err(format!(
            "{name} has {} bytes: at most {TEXT_BYTES_MAX} are taken",
            field.len()
        ))
    } else if field.chars().any(char::is_control) {
        Err(format!("{name} `{}` holds a control character", shown(field)))
    } else {
        Ok(field)
    }
}

fn number(field: &str) -> Result<u32, String> {
    field.parse().map_err(|error: std::num::ParseIntError| {
        let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if field.strip_prefix('-').is_some_and(is_digits) {
            format!("quantity {} is negative", shown(field))
        } else if *error.kind() == IntErrorKind::PosOverflow {
            format!("quantity {} is too large: at most {}", shown(field), u32::MAX)
        } else {
            format!("quantity `{}` is not a whole number", shown(field))
        }
    })
}

/// A field in a message: no control characters, and not the whole of a field that may be megabytes long.
fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let mut shown: String = text
        .chars()
        .take(CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Line numbers from byte offsets. The csv reader's own position is taken before it passes the LF of a CRLF and before
/// empty lines, so its line number would name an earlier line than an editor shows.
struct LineCounter<'a> {
    bytes: &'a [u8],
    at: usize,
    line: usize,
}

impl LineCounter<'_> {
    /// The line of the record that begins at or after `offset`. Offsets must rise.
    fn first_of(&mut self, offset: u64) -> usize {
        self.advance(offset);
        while matches!(self.bytes.get(self.at), Some(b'\r' | b'\n')) {
            self.advance(self.at as u64 + 1);
        }
        self.line
    }

    /// The line of the last byte of the record that ends before `offset`, without moving there.
    fn ahead(&self, offset: u64) -> usize {
        let mut ahead = LineCounter {
            bytes: self.bytes,
            at: self.at,
            line: self.line,
        };
        ahead.advance(offset);
        // The reader stops behind the terminator, which still belongs to the record's last line.
        ahead.line - usize::from(ahead.at > self.at && self.ends_line(ahead.at - 1))
    }

    fn advance(&mut self, offset: u64) {
        let to = usize::try_from(offset).map_or(self.bytes.len(), |to| to.min(self.bytes.len()));
        for at in self.at..to {
            self.line += usize::from(self.ends_line(at));
        }
        self.at = self.at.max(to);
    }

    /// LF, or a CR that no LF follows.
    fn ends_line(&self, at: usize) -> bool {
        self.bytes[at] == b'\n' || (self.bytes[at] == b'\r' && self.bytes.get(at + 1) != Some(&b'\n'))
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let customers: BTreeSet<_> = self.orders.iter().map(|order| &order.customer).collect();
        let items: u64 = self.stock.values().sum();
        write!(
            f,
            "{} orders of {} customers; {} skus, {items} items in stock",
            self.orders.len(),
            customers.len(),
            self.stock.len()
        )
    }
}

#[cfg(test)]
#[path = "input_tests.rs"]
mod tests;
