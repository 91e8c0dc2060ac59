//! Breadth first through every state of a small world, so that the first violation found has a shortest trace.
//!
//! A state is a short list of numbers that a [`Model`] gives meaning to. What was seen is kept as a fingerprint, where
//! it came from as the number of its parent and the number of the action: 24 bytes a state, and the frontier.

use super::fingerprint::{of_words, scramble};
use super::table::Table;
use std::fmt;
use std::time::{Duration, Instant};

/// A world to explore.
pub trait Model {
    /// The state to begin with.
    fn initial(&mut self) -> Vec<u32>;

    /// Everything that may happen in a state.
    ///
    /// # Errors
    /// Something that may happen breaks an invariant by itself, or makes the system under test panic.
    fn expand(&mut self, state: &[u32], next: &mut Successors) -> Result<(), Broken>;

    /// The invariants of one state.
    ///
    /// # Errors
    /// One is broken; says which.
    fn check(&mut self, state: &[u32]) -> Result<(), String>;

    /// A state in which nothing more can happen.
    ///
    /// # Errors
    /// It must not be one, or what should follow from it does not.
    fn at_rest(&mut self, state: &[u32]) -> Result<(), String>;

    /// An action, for people.
    fn describe(&self, action: u32) -> String;
}

/// An action that breaks an invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The action.
    pub action: u32,
    /// What is broken.
    pub text: String,
}

/// The states that follow one state.
#[derive(Debug, Default)]
pub struct Successors {
    words: Vec<u32>,
    ends: Vec<(u32, usize)>,
}

impl Successors {
    /// Adds one.
    pub fn push(&mut self, action: u32, state: impl IntoIterator<Item = u32>) {
        self.words.extend(state);
        self.ends.push((action, self.words.len()));
    }

    fn clear(&mut self) {
        self.words.clear();
        self.ends.clear();
    }
}

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// No further state is entered after so many.
    pub state_count_max: usize,
    /// Of each level, at most so many states are followed up, chosen by their fingerprints. All are checked. A world
    /// that is too large to be seen whole is seen to its end that way, instead of its first steps only.
    pub width_max: usize,
}

impl Bound {
    /// Everything, up to a count of states.
    #[must_use]
    pub const fn states(state_count_max: usize) -> Self {
        Self {
            state_count_max,
            width_max: usize::MAX,
        }
    }
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Distinct states.
    pub state_count: usize,
    /// Actions tried that led to any state.
    pub transition_count: u64,
    /// The longest shortest path from the first state.
    pub depth: usize,
    /// States in which nothing more could happen.
    pub rest_count: u64,
    /// Whether every reachable state was seen.
    pub is_complete: bool,
    /// How long it took.
    pub took: Duration,
    /// The first violation, if there is one.
    pub violation: Option<Violation>,
}

/// A broken invariant, and a shortest way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What is broken.
    pub text: String,
    /// The actions, in order.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for (index, action) in self.trace.iter().enumerate() {
            writeln!(f, "{:>4}  {action}", index + 1)?;
        }
        Ok(())
    }
}

/// Where each state came from.
#[derive(Debug, Default)]
struct Origins {
    parents: Vec<u32>,
    actions: Vec<u32>,
}

impl Origins {
    fn trace(&self, model: &impl Model, state: u32, last: Option<u32>) -> Vec<String> {
        let mut actions: Vec<u32> = last.into_iter().collect();
        let mut at = state as usize;
        while at > 0 {
            actions.push(self.actions[at]);
            at = self.parents[at] as usize;
        }
        actions.reverse();
        actions.into_iter().map(|action| model.describe(action)).collect()
    }
}

/// One level of the search: states of equal distance from the first.
#[derive(Debug, Default)]
struct Level {
    words: Vec<u32>,
    /// Each state's number and where its words end.
    ends: Vec<(u32, usize)>,
}

impl Level {
    fn states(&self) -> impl Iterator<Item = (u32, &[u32])> {
        let begins = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        self.ends
            .iter()
            .zip(begins)
            .map(|((number, end), begin)| (*number, &self.words[begin..*end]))
    }

    fn push(&mut self, number: u32, state: &[u32]) {
        self.words.extend_from_slice(state);
        self.ends.push((number, self.words.len()));
    }

    /// At most `width_max` of the states. Which ones depends on nothing but the states.
    fn thinned(self, width_max: usize) -> Self {
        if self.ends.len() <= width_max {
            return self;
        }
        let mut keys: Vec<u64> = self
            .states()
            .map(|(_, state)| scramble(of_words(state)))
            .collect();
        let (_, limit, _) = keys.select_nth_unstable(width_max);
        let limit = *limit;
        let mut kept = Self::default();
        for (number, state) in self
            .states()
            .filter(|(_, state)| scramble(of_words(state)) < limit)
        {
            kept.push(number, state);
        }
        kept
    }
}

/// Explores a world.
pub fn explore(model: &mut impl Model, bound: Bound) -> Report {
    let began = Instant::now();
    let mut visited = Table::new();
    let mut origins = Origins::default();
    let mut report = Report {
        state_count: 1,
        transition_count: 0,
        depth: 0,
        rest_count: 0,
        is_complete: true,
        took: Duration::ZERO,
        violation: None,
    };
    let initial = model.initial();
    visited.insert(of_words(&initial), 0);
    origins.parents.push(0);
    origins.actions.push(0);
    let mut level = Level::default();
    level.ends.push((0, initial.len()));
    level.words = initial;
    if let Err(text) = model.check(&level.words) {
        report.violation = Some(Violation {
            text,
            trace: Vec::new(),
        });
    }
    let mut successors = Successors::default();
    'levels: while report.violation.is_none() && !level.ends.is_empty() {
        let mut next = Level::default();
        for (number, state) in level.states() {
            successors.clear();
            if let Err(Broken { action, text }) = model.expand(state, &mut successors) {
                let trace = origins.trace(model, number, Some(action));
                report.violation = Some(Violation { text, trace });
                break 'levels;
            }
            if successors.ends.is_empty() {
                report.rest_count += 1;
                if let Err(text) = model.at_rest(state) {
                    report.violation = Some(Violation {
                        text,
                        trace: origins.trace(model, number, None),
                    });
                    break 'levels;
                }
            }
            let mut from = 0;
            for (action, to) in &successors.ends {
                let follower = &successors.words[from..*to];
                from = *to;
                report.transition_count += 1;
                let Ok(next_number) = u32::try_from(origins.parents.len()) else {
                    break 'levels;
                };
                let key = of_words(follower);
                if visited.len() >= bound.state_count_max {
                    report.is_complete &= visited.find(key).is_some();
                    continue;
                }
                if !visited.insert(key, next_number) {
                    continue;
                }
                origins.parents.push(number);
                origins.actions.push(*action);
                if let Err(text) = model.check(follower) {
                    report.violation = Some(Violation {
                        text,
                        trace: origins.trace(model, next_number, None),
                    });
                    break 'levels;
                }
                next.push(next_number, follower);
            }
            if visited.len() >= bound.state_count_max && !report.is_complete {
                break 'levels;
            }
        }
        if !next.ends.is_empty() {
            report.depth += 1;
        }
        report.is_complete &= next.ends.len() <= bound.width_max;
        level = next.thinned(bound.width_max);
    }
    report.is_complete &= report.violation.is_none();
    report.state_count = visited.len();
    report.took = began.elapsed();
    report
}
