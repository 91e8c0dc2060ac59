//! Whether what clients saw at the same time could have happened one after another.
//!
//! A history is *linearizable* if every answered operation can be given one moment between its question and its answer
//! so that, taken in the order of these moments, the answers are those of a sequential [`Model`] (Herlihy and Wing,
//! *Linearizability: A Correctness Condition for Concurrent Objects*, 1990). An operation whose answer was lost may have
//! taken effect at any moment after its question, or never.
//!
//! The search is that of Wing and Gong (*Testing and Verifying Concurrent Objects*, 1993) with Lowe's memo of visited
//! configurations (*Testing for Linearizability*, 2017). Linearizability is local: a history is linearizable if its part
//! for every key is, so callers search key by key ([`register`]: one gtid each).
//!
//! | what | where |
//! |---|---|
//! | the search, over any model | here |
//! | the outcome register of one gtid | [`register`] |
//! | recording of histories in a simulated run | [`checkers::linearizability`](crate::checkers::linearizability) |

pub mod prepared;
pub mod register;

use std::collections::BTreeMap;
use std::fmt::Debug;

/// What an object would do if its operations came one after another.
pub trait Model {
    /// Everything that decides later answers.
    type State: Clone + PartialEq + Debug;
    /// What is asked.
    type Input: Clone + Debug;
    /// What is answered.
    type Output: Clone + Debug;

    /// The state before the first operation.
    fn initial(&self) -> Self::State;

    /// The states that `input` can lead to from `state` with this answer; none if the answer is impossible there.
    /// Without an answer: every state that a lost answer could hide.
    fn successors(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Vec<Self::State>;

    /// Whether the operation may be taken here and now without losing anything, once it leaves `state` as it is: it must
    /// be so that from every later state it would also leave that state as it is, or be impossible. Only speeds the
    /// search up, but a wrong `true` makes it refuse histories that it should take.
    fn is_only_a_read(&self, _state: &Self::State, _input: &Self::Input, _output: &Self::Output) -> bool {
        false
    }
}

/// One operation of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<I, O> {
    /// When it was asked: any count that rises as things happen.
    pub asked: u64,
    /// What was asked.
    pub input: I,
    /// When it was answered, and how; `None` where no answer was seen.
    pub answer: Option<(u64, O)>,
}

impl<I, O> Operation<I, O> {
    /// An answered operation.
    pub fn answered(asked: u64, input: I, at: u64, output: O) -> Self {
        Self {
            asked,
            input,
            answer: Some((at, output)),
        }
    }

    /// An operation whose answer was lost.
    pub fn unanswered(asked: u64, input: I) -> Self {
        Self {
            asked,
            input,
            answer: None,
        }
    }
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// Taken in this order (places in the history), the operations explain every answer.
    Linearizable(Vec<usize>),
    /// No order explains every answer.
    NotLinearizable {
        /// The longest order that explains what it holds.
        longest: Vec<usize>,
        /// The answered operations none of which can come next there.
        stuck: Vec<usize>,
    },
    /// The search ended without an answer.
    TooManySteps,
}

/// Searches for an order that explains `history`, in at most `steps_max` steps (one step asks the model once).
///
/// # Panics
/// An answer comes before its question.
pub fn check<M: Model>(model: &M, history: &[Operation<M::Input, M::Output>], steps_max: u64) -> Conclusion {
    Search::new(model, history, steps_max).run()
}

/// A set of operations, one bit each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Places(Vec<u64>);

impl Places {
    fn none(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    fn has(&self, place: usize) -> bool {
        self.0[place / 64] >> (place % 64) & 1 == 1
    }

    fn flip(&mut self, place: usize) {
        self.0[place / 64] ^= 1 << (place % 64);
    }
}

/// A configuration on the way down: what can still be tried from it.
#[derive(Debug)]
struct Level<S> {
    /// The operation that led here; `None` at the root.
    place: Option<usize>,
    untried: Vec<(usize, S)>,
}

#[derive(Debug)]
struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a [Operation<M::Input, M::Output>],
    /// Places in the order in which the operations were asked.
    by_question: Vec<usize>,
    steps_left: u64,
    taken: Places,
    answered_left: usize,
    /// Lowe's memo: what is taken, and the states in which it was found before.
    visited: BTreeMap<Places, Vec<M::State>>,
    longest: Vec<usize>,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, history: &'a [Operation<M::Input, M::Output>], steps_max: u64) -> Self {
        for operation in history {
            let is_in_order = operation
                .answer
                .as_ref()
                .is_none_or(|(at, _)| *at >= operation.asked);
            assert!(is_in_order, "answered before it was asked: {operation:?}");
        }
        let mut by_question: Vec<usize> = (0..history.len()).collect();
        by_question.sort_by_key(|place| history[*place].asked);
        Self {
            model,
            history,
            by_question,
            steps_left: steps_max,
            taken: Places::none(history.len()),
            answered_left: history.iter().filter(|one| one.answer.is_some()).count(),
            visited: BTreeMap::new(),
            longest: Vec::new(),
        }
    }

    fn run(mut self) -> Conclusion {
        let initial = self.model.initial();
        let Some(untried) = self.untried(&initial) else {
            return Conclusion::TooManySteps;
        };
        let mut levels = vec![Level { place: None, untried }];
        // An own stack: a history may be longer than a thread's stack is deep.
        while let Some(level) = levels.last_mut() {
            if self.answered_left == 0 {
                return Conclusion::Linearizable(order(&levels));
            }
            let Some((place, state)) = level.untried.pop() else {
                if let Some(place) = level.place {
                    self.flip(place);
                }
                levels.pop();
                continue;
            };
            self.flip(place);
            if !self.is_new(&state) {
                self.flip(place);
                continue;
            }
            let Some(untried) = self.untried(&state) else {
                return Conclusion::TooManySteps;
            };
            levels.push(Level {
                place: Some(place),
                untried,
            });
            if levels.len() - 1 > self.longest.len() {
                self.longest = order(&levels);
            }
        }
        self.not_linearizable()
    }

    /// Takes an operation, or gives it back.
    fn flip(&mut self, place: usize) {
        self.taken.flip(place);
        if self.history[place].answer.is_some() {
            let is_taken = self.taken.has(place);
            self.answered_left = if is_taken {
                self.answered_left - 1
            } else {
                self.answered_left + 1
            };
        }
    }

    fn is_new(&mut self, state: &M::State) -> bool {
        let states = self.visited.entry(self.taken.clone()).or_default();
        let is_new = !states.contains(state);
        if is_new {
            states.push(state.clone());
        }
        is_new
    }

    /// The operations that may come next: those that were asked before the first open answer.
    fn candidates(&self) -> Vec<usize> {
        let mut candidates = Vec::new();
        let mut first_answer = u64::MAX;
        for place in self
            .by_question
            .iter()
            .copied()
            .filter(|place| !self.taken.has(*place))
        {
            let operation = &self.history[place];
            if operation.asked > first_answer {
                break;
            }
            candidates.push(place);
            if let Some((at, _)) = &operation.answer {
                first_answer = first_answer.min(*at);
            }
        }
        candidates
    }

    /// What can be tried from `state`, the most promising last; `None` when the steps are used up.
    fn untried(&mut self, state: &M::State) -> Option<Vec<(usize, M::State)>> {
        let (mut answered, mut lost) = (Vec::new(), Vec::new());
        for place in self.candidates() {
            self.steps_left = self.steps_left.checked_sub(1)?;
            let Operation { input, answer, .. } = &self.history[place];
            let output = answer.as_ref().map(|(_, output)| output);
            let successors = self.model.successors(state, input, output);
            match output {
                Some(output) => {
                    let stays = !successors.is_empty() && successors.iter().all(|next| next == state);
                    if stays && self.model.is_only_a_read(state, input, output) {
                        return Some(vec![(place, state.clone())]);
                    }
                    answered.extend(successors.into_iter().map(|next| (place, next)));
                }
                // One that changes nothing explains nothing: leaving it out is as good.
                None => lost.extend(
                    successors
                        .into_iter()
                        .filter(|next| next != state)
                        .map(|next| (place, next)),
                ),
            }
        }
        answered.reverse();
        lost.extend(answered);
        Some(lost)
    }

    fn not_linearizable(mut self) -> Conclusion {
        self.taken = Places::none(self.history.len());
        let longest = std::mem::take(&mut self.longest);
        longest.iter().for_each(|place| self.taken.flip(*place));
        let mut stuck = self.candidates();
        stuck.retain(|place| self.history[*place].answer.is_some());
        Conclusion::NotLinearizable { longest, stuck }
    }
}

fn order<S>(levels: &[Level<S>]) -> Vec<usize> {
    levels.iter().filter_map(|level| level.place).collect()
}
