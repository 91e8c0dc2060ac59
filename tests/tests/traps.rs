//! `tests/TRAPS.md` is kept true: each known failure has a row, each row names tests that exist and run, and what is not covered
//! is in the README under its id. So is the README itself, as far as a program can read it: its table of guarantees names tests
//! that exist and run, its links lead somewhere, and it knows every verb of the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The lists that were walked item by item, and how long they are.
const WALKED: [(char, usize); 6] = [('A', 20), ('B', 22), ('C', 17), ('F', 5), ('H', 17), ('J', 10)];

/// The rules of the design.
const RULES: [(char, usize); 2] = [('T', 16), ('L', 10)];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// One row of a table: its cells, of which the first is an id and the last the verdict.
struct Row {
    cells: Vec<String>,
}

impl Row {
    fn id(&self) -> &str {
        &self.cells[0]
    }

    fn verdict(&self) -> Verdict {
        let cell = &self.cells[self.cells.len() - 1];
        if cell == "limit" {
            return Verdict::Limit;
        }
        if let Some(feature) = cell.strip_prefix("later: ") {
            return Verdict::Later(feature.to_owned());
        }
        let tests = quoted(cell).map(|named| match named.split_once("::") {
            Some((path, name)) => (path.to_owned(), name.to_owned()),
            None => panic!("{}: `{named}` is not PATH::TEST", self.id()),
        });
        Verdict::Tests(tests.collect())
    }
}

enum Verdict {
    Tests(Vec<(String, String)>),
    Limit,
    Later(String),
}

/// What stands between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Whether this is an id (`A7`) or a range of them (`D1-D11`).
fn is_id(cell: &str) -> bool {
    cell.split('-').all(|part| {
        let number = part.strip_prefix(|letter: char| letter.is_ascii_uppercase());
        number.is_some_and(|number| !number.is_empty() && number.chars().all(|digit| digit.is_ascii_digit()))
    })
}

fn rows() -> Vec<Row> {
    let text = read("tests/TRAPS.md");
    let cells = |line: &str| -> Option<Vec<String>> {
        let inner = line.strip_prefix("| ")?.strip_suffix(" |")?;
        Some(inner.split(" | ").map(|cell| cell.trim().to_owned()).collect())
    };
    text.lines()
        .filter_map(cells)
        .filter(|cells| is_id(&cells[0]))
        .map(|cells| Row { cells })
        .collect()
}

/// The text of the test of this name, from its documentation to its end, if it is one that is run: with the attribute, or made
/// by a list of contract tests.
fn test_in<'text>(text: &'text str, name: &str) -> Option<Vec<&'text str>> {
    let lines: Vec<&str> = text.lines().collect();
    let (plain, generic) = (format!("fn {name}("), format!("fn {name}<"));
    for (at, line) in lines.iter().enumerate() {
        if !line.contains(&plain) && !line.contains(&generic) {
            continue;
        }
        let is_above = |line: &str| ["#[", "//"].iter().any(|start| line.trim().starts_with(start));
        let above = lines[..at].iter().rev().take_while(|line| is_above(line)).count();
        let attributes = || lines[at - above..at].iter().map(|line| line.trim());
        let is_test =
            attributes().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"));
        if is_test && !attributes().any(|line| line.starts_with("#[ignore")) {
            let closing = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
            let length = lines[at..].iter().take_while(|line| **line != closing).count();
            return Some(lines[at - above..at + length].to_vec());
        }
    }
    let made = lines
        .iter()
        .skip_while(|line| line.trim() != "contract_tests!(")
        .skip(1);
    let mut made = made.take_while(|line| line.trim() != ");");
    made.find(|line| line.trim().strip_suffix(',') == Some(name))
        .map(|line| vec![*line])
}

/// Whether `text` holds the id as a word of its own.
fn mentions(text: &str, id: &str) -> bool {
    text.split(|letter: char| !letter.is_ascii_alphanumeric())
        .any(|word| word == id)
}

fn expected(lists: &[(char, usize)]) -> BTreeSet<String> {
    let ids = lists
        .iter()
        .flat_map(|(letter, count)| (1..=*count).map(move |number| format!("{letter}{number}")));
    ids.collect()
}

#[test]
fn every_known_failure_and_every_rule_has_one_row() {
    let mut found = BTreeMap::new();
    for row in rows() {
        *found.entry(row.id().to_owned()).or_insert(0) += 1;
    }
    let twice: Vec<_> = found.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "more than one row: {twice:?}");
    let required = &expected(&WALKED) | &expected(&RULES);
    let missing: Vec<_> = required.iter().filter(|id| !found.contains_key(*id)).collect();
    assert!(missing.is_empty(), "no row in tests/TRAPS.md: {missing:?}");
}

/// At least one of a row's tests says, in its name or its text, what it is there for: who changes it will see.
#[test]
fn every_named_test_exists_and_runs_and_one_of_each_row_cites_it() {
    let mut texts = BTreeMap::new();
    let mut faults = Vec::new();
    for row in rows() {
        let Verdict::Tests(tests) = row.verdict() else {
            continue;
        };
        if tests.is_empty() {
            faults.push(format!(
                "{}: neither a test, nor `limit`, nor `later: …`",
                row.id()
            ));
        }
        let mut is_cited = false;
        for (path, name) in tests {
            let text: &String = texts.entry(path.clone()).or_insert_with(|| read(&path));
            match test_in(text, &name) {
                Some(lines) => {
                    let prefix = format!("{}_", row.id().to_lowercase());
                    is_cited |=
                        name.starts_with(&prefix) || lines.iter().any(|line| mentions(line, row.id()));
                }
                None => faults.push(format!("{}: {path} has no test `{name}`", row.id())),
            }
        }
        if !is_cited {
            faults.push(format!("{}: none of its tests cites it", row.id()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A rule lives in files that exist, and that say so.
#[test]
fn every_rule_is_where_its_row_says() {
    let rules = expected(&RULES);
    let mut faults = Vec::new();
    for row in rows().iter().filter(|row| rules.contains(row.id())) {
        let is_later = matches!(row.verdict(), Verdict::Later(_));
        let files: Vec<&str> = quoted(&row.cells[2]).collect();
        if files.is_empty() {
            faults.push(format!("{}: no file is named", row.id()));
        }
        for path in files {
            let text = read(path);
            if !is_later && !mentions(&text, row.id()) {
                faults.push(format!("{}: {path} does not mention it", row.id()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_no_test_covers_is_in_the_readme() {
    let readme = read("README.md");
    let (_, limits) = readme
        .split_once("## Assumptions and limits")
        .expect("the README has the section");
    let limits = limits.split("\n## ").next().expect("a section");
    // As words, wherever its lines are broken.
    let words = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut faults = Vec::new();
    for row in rows() {
        let is_told = row.id().split('-').all(|id| mentions(limits, id));
        match row.verdict() {
            Verdict::Limit if !is_told => {
                faults.push(format!("{}: a limit, and not among the README's", row.id()));
            }
            Verdict::Later(feature) if !is_told => {
                faults.push(format!(
                    "{}: comes with {feature}, and the README does not say so",
                    row.id()
                ));
            }
            Verdict::Later(feature) if !words.contains(&feature) => {
                faults.push(format!("{}: the README does not know of {feature}", row.id()));
            }
            _ => {}
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// `[text](path)` of Markdown, without those that lead to another place or within the page.
fn links(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let ends = text.match_indices("](").map(|(at, _)| at);
    ends.filter_map(|at| {
        let (before, after) = (&text[..at], &text[at + 2..]);
        let (shown, target) = (&before[before.rfind('[')? + 1..], &after[..after.find(')')?]);
        let is_here = !target.starts_with('#') && !target.contains("://");
        is_here.then_some((shown, target))
    })
}

fn section<'text>(text: &'text str, heading: &str) -> &'text str {
    let (_, section) = text
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("the README has no section `{heading}`"));
    section.split("\n## ").next().expect("a section")
}

#[test]
fn every_guarantee_of_the_readme_names_a_condition_and_tests_that_run() {
    let readme = read("README.md");
    let mut faults = Vec::new();
    let mut guarantee_count = 0;
    let rows = section(&readme, "Guarantees")
        .lines()
        .filter(|line| line.starts_with("| **"));
    for row in rows {
        guarantee_count += 1;
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [guarantee, condition, tests] = cells[..] else {
            faults.push(format!("not three cells: {row}"));
            continue;
        };
        if condition.trim().is_empty() {
            faults.push(format!("no condition, not even `–`: {guarantee}"));
        }
        let named: Vec<_> = links(tests).collect();
        if named.is_empty() {
            faults.push(format!("no test: {guarantee}"));
        }
        for (name, path) in named {
            let is_there = test_in(&read(path), name.trim_matches('`')).is_some();
            if !is_there {
                faults.push(format!("{path} has no test {name}: {guarantee}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(
        guarantee_count >= 15,
        "the table was not understood: {guarantee_count} rows"
    );
}

#[test]
fn the_readmes_links_lead_somewhere() {
    let readme = read("README.md");
    let dead: Vec<_> = links(&readme)
        .filter(|(_, target)| !root().join(target.split('#').next().expect("a path")).exists())
        .collect();
    assert!(dead.is_empty(), "{dead:?}");
}

/// What `synod`'s own table of verbs lists is in the README's reference, too.
#[test]
fn the_readme_knows_every_verb() {
    let (readme, cli) = (read("README.md"), read("coordinator/src/cli/mod.rs"));
    let (reference, _) = section(&readme, "Reference")
        .split_once("| exit code ")
        .expect("the verbs come first");
    // The words before the arguments; one row may list two verbs as `requeue\|discard`.
    let rows = cli.lines().filter_map(|line| line.strip_prefix("//! | `synod "));
    let verbs = rows.flat_map(|row| {
        let is_name = |word: &&str| word.starts_with(|first: char| first.is_ascii_lowercase());
        let words: Vec<&str> = row.split([' ', '`']).take_while(is_name).collect();
        let (last, group) = words.split_last().expect("a verb");
        let choices = if *group == ["outbox"] {
            last.split("\\|").collect()
        } else {
            vec![*last]
        };
        let named = choices
            .into_iter()
            .map(|choice| [group, &[choice]].concat().join(" "));
        named.collect::<Vec<_>>()
    });
    let verbs: BTreeSet<String> = verbs.collect();
    assert!(verbs.len() >= 10, "the table was not understood: {verbs:?}");
    let unknown: Vec<_> = verbs
        .iter()
        .filter(|verb| !reference.contains(&format!("`{verb}")))
        .collect();
    assert!(unknown.is_empty(), "not in the README: {unknown:?}");
}

/// The reader of the table is not fooled by what looks like a test.
#[test]
fn only_tests_that_run_count() {
    let text = "
        #[test]
        fn plain() {}
        #[tokio::test(flavor = \"multi_thread\")]
        async fn with_runtime() {}
        /// Says what.
        #[test]
        #[should_panic(expected = \"x\")]
        fn with_more() {}
        #[test]
        #[ignore = \"slow\"]
        fn ignored() {}
        fn helper() {}
        // fn in_a_comment()
        contract_tests!(
            made,
        );
    ";
    let found: Vec<&str> = [
        "plain",
        "with_runtime",
        "with_more",
        "ignored",
        "helper",
        "in_a_comment",
        "made",
        "absent",
    ]
    .into_iter()
    .filter(|name| test_in(text, name).is_some())
    .collect();
    assert_eq!(found, ["plain", "with_runtime", "with_more", "made"]);
    assert!(mentions("traps (A17, C7)", "A17") && !mentions("A170, AA17", "A17"));
    assert!(is_id("T1") && is_id("D1-D11") && !is_id("id") && !is_id("---") && !is_id("A"));
}
