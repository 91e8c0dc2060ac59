//! What a run found, for people.

use std::fmt;

use super::Check;

/// What a failed check rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A MUST of [`ResourceManager`](crate::resource::ResourceManager), by its number.
    Must(u8),
    /// Something that the harness's [`Claims`](super::Claims) say.
    Claim(&'static str),
    /// Ordinary work succeeds; or the harness itself failed.
    Ordinary,
}

/// The contract in a line each, for messages; the trait's documentation has the whole of it.
const MUSTS: [&str; 14] = [
    "nothing that a local transaction writes is visible or durable before commit; dropping it rolls it back and \
     releases its locks, also in a panic",
    "begin and prepare refuse another lineage and a passed deadline, and what began below the low-water mark",
    "waiting for a lock ends, at the context's deadline at the latest, with an error",
    "after a vote to commit the branch is durable with its context and its locks, and commit succeeds whatever \
     crashes",
    "a prepared branch is never settled by the store's own decision, at no age",
    "a read-only vote only if nothing was written and no locking read was made; the branch is over then",
    "after an error of prepare, or after abort, the branch is not prepared; an execution is prepared once",
    "commit applies the whole branch and its proof in one local transaction, durable before it answers",
    "commit and abort are idempotent at any time, from any process, beside each other; AlreadyApplied only from \
     proof, else Unknown",
    "while the branch's prepare still runs, commit waits for it or answers Busy, never Unknown",
    "proof is kept until forget allows its deletion",
    "in_doubt lists every prepared branch of this database, with its context, and nothing else",
    "the identity lies in the database, is random, and never changes; a binding is durable and is never replaced",
    "a dropped future of prepare, commit or abort leaves the operation not begun, or running to its end",
];

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Must(number) => match MUSTS.get(usize::from(*number).wrapping_sub(1)) {
                Some(text) => write!(f, "MUST {number}: {text}"),
                None => write!(f, "MUST {number}"),
            },
            Self::Claim(claim) => write!(f, "the harness claims: {claim}"),
            Self::Ordinary => f.write_str("ordinary work succeeds, or nothing can be checked"),
        }
    }
}

/// Where and how a store broke a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The rule.
    pub rule: Rule,
    /// What the check had done.
    pub step: String,
    /// What should have been found then.
    pub expected: String,
    /// What was found.
    pub found: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            step,
            expected,
            found,
        } = self;
        write!(
            f,
            "step:     {step}\nexpected: {expected}\nfound:    {found}\nsince     {rule}"
        )
    }
}

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was as it must be.
    Passed,
    /// The first thing that was not.
    Failed(Failure),
    /// The harness cannot do this, or does not claim it.
    Skipped(&'static str),
}

/// One check and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The check.
    pub check: Check,
    /// How it ended.
    pub verdict: Verdict,
}

impl Entry {
    /// For a test.
    ///
    /// # Panics
    /// The check failed; the message says all of it.
    #[track_caller]
    pub fn assert_passed(&self) {
        assert!(!matches!(self.verdict, Verdict::Failed(_)), "\n{self}");
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, proves) = (self.check.name(), self.check.proves());
        let musts: Vec<_> = self.check.musts().iter().map(u8::to_string).collect();
        let musts = musts.join(", ");
        match &self.verdict {
            Verdict::Passed => write!(f, "passed   {name}: {proves} (MUST {musts})"),
            Verdict::Skipped(why) => write!(f, "skipped  {name}: {why}"),
            Verdict::Failed(failure) => {
                write!(f, "FAILED   {name}: {proves} (MUST {musts})")?;
                for line in failure.to_string().lines() {
                    write!(f, "\n         {line}")?;
                }
                Ok(())
            }
        }
    }
}

/// Every check of a run, in order. Its text has a line for each, and four more for each that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    entries: Vec<Entry>,
}

impl Report {
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        Self { entries }
    }

    /// All of them.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Those that failed.
    pub fn failed(&self) -> impl Iterator<Item = (Check, &Failure)> {
        self.entries.iter().filter_map(|entry| match &entry.verdict {
            Verdict::Failed(failure) => Some((entry.check, failure)),
            Verdict::Passed | Verdict::Skipped(_) => None,
        })
    }

    /// For a test.
    ///
    /// # Panics
    /// At least one check failed; the message is the whole report.
    #[track_caller]
    pub fn assert_passed(&self) {
        assert!(self.failed().next().is_none(), "\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.entries {
            writeln!(f, "{entry}")?;
        }
        let skipped = self
            .entries
            .iter()
            .filter(|entry| matches!(entry.verdict, Verdict::Skipped(_)));
        write!(
            f,
            "{} checks: {} failed, {} skipped",
            self.entries.len(),
            self.failed().count(),
            skipped.count()
        )
    }
}
