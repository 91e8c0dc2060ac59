//! Everything is stored once and then named by a number, and the real cores run once for each pair of a process's state
//! and an event: a world's state is then a handful of numbers, and most of its steps are look-ups (the *collapse*
//! compression of the SPIN model checker, with the steps remembered as well).

use super::fingerprint::Fingerprint;
use super::search::Broken;
use super::table::Table;
use std::collections::BTreeMap;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Values by number, each once.
#[derive(Clone, Debug)]
pub struct Pool<T> {
    items: Vec<T>,
    numbers: BTreeMap<u128, u32>,
}

impl<T> Pool<T> {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self {
            items: Vec::new(),
            numbers: BTreeMap::new(),
        }
    }

    /// The number of the value with this fingerprint; the value is kept if it is the first one.
    ///
    /// # Panics
    /// There are more than 2^32 values.
    pub fn number(&mut self, fingerprint: u128, value: impl FnOnce() -> T) -> u32 {
        let next = u32::try_from(self.items.len()).expect("a small world has far fewer than 2^32 values");
        *self.numbers.entry(fingerprint).or_insert_with(|| {
            self.items.push(value());
            next
        })
    }

    /// The value of a number.
    #[must_use]
    pub fn item(&self, number: u32) -> &T {
        &self.items[number as usize]
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// A kind of process: a state and what an event makes of it, with nothing else to look at.
pub trait Process: Clone {
    /// What can happen to it. A message in flight is the event of its arrival.
    type Event: Clone + Hash;
    /// What a checker sees of it.
    type Facts;

    /// What tells its states apart.
    fn fingerprint(&self) -> u128;
    /// What a checker sees of it.
    fn facts(&self) -> Self::Facts;
    /// The event happens. Returns the events that it sets off elsewhere: messages.
    ///
    /// # Errors
    /// An invariant that concerns this step alone is broken.
    fn react(&mut self, event: &Self::Event) -> Result<Vec<Self::Event>, String>;
}

/// What an event makes of a process's state.
#[derive(Clone, Debug)]
pub struct Step {
    /// The state afterwards.
    pub local: u32,
    /// The messages sent, by the number of their arrival.
    pub sent: Box<[u32]>,
    /// What is broken, if something is.
    pub broken: Option<Box<str>>,
}

/// The processes' states, the events, and what each makes of the other.
#[derive(Debug)]
pub struct Troupe<P: Process> {
    locals: Pool<(P, P::Facts)>,
    events: Pool<P::Event>,
    step_numbers: Table,
    steps: Vec<Step>,
}

impl<P: Process> Troupe<P> {
    /// Nothing seen yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            locals: Pool::new(),
            events: Pool::new(),
            step_numbers: Table::new(),
            steps: Vec::new(),
        }
    }

    /// The number of a process's state.
    pub fn local(&mut self, process: &P) -> u32 {
        self.locals
            .number(process.fingerprint(), || (process.clone(), process.facts()))
    }

    /// The number of an event.
    pub fn event(&mut self, event: &P::Event) -> u32 {
        self.events.number(Fingerprint::of(event), || event.clone())
    }

    /// A state.
    #[must_use]
    pub fn process(&self, local: u32) -> &P {
        &self.locals.item(local).0
    }

    /// What a checker sees of a state.
    #[must_use]
    pub fn facts(&self, local: u32) -> &P::Facts {
        &self.locals.item(local).1
    }

    /// An event.
    #[must_use]
    pub fn event_of(&self, event: u32) -> &P::Event {
        self.events.item(event)
    }

    /// How many states of processes, and how many of their steps, were met.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.locals.len(), self.steps.len())
    }

    /// What an event makes of a state. A panic of the core is a broken invariant: its assertions are meant (rule 8 of
    /// the style: assert what only a bug can break).
    pub fn step(&mut self, local: u32, event: u32) -> &Step {
        let key = (u64::from(local) << 32) | u64::from(event);
        if let Some(number) = self.step_numbers.find(key) {
            return &self.steps[number as usize];
        }
        let mut process = self.process(local).clone();
        let happening = self.event_of(event).clone();
        let reaction = catch_unwind(AssertUnwindSafe(|| {
            process.react(&happening).map(|sent| (process, sent))
        }));
        let step = match reaction {
            Ok(Ok((process, sent))) => {
                let local = self.local(&process);
                let sent = sent.iter().map(|event| self.event(event)).collect();
                Step {
                    local,
                    sent,
                    broken: None,
                }
            }
            Ok(Err(text)) => Step {
                local,
                sent: Box::default(),
                broken: Some(text.into()),
            },
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()));
                let text = format!("the core panicked: {}", text.unwrap_or_default());
                Step {
                    local,
                    sent: Box::default(),
                    broken: Some(text.into()),
                }
            }
        };
        let number = u32::try_from(self.steps.len()).expect("a small world has far fewer than 2^32 steps");
        self.step_numbers.insert(key, number);
        self.steps.push(step);
        &self.steps[number as usize]
    }
}

impl<P: Process> Troupe<P> {
    /// The state of a world after an event at one place. Its first `head` words are the processes' states and what else
    /// the world keeps, the rest are the messages ever sent, in order. `None` if nothing changes.
    ///
    /// # Errors
    /// The event breaks an invariant.
    pub fn follower(
        &mut self,
        state: &[u32],
        head: usize,
        place: usize,
        event: u32,
    ) -> Result<Option<Vec<u32>>, Broken> {
        let step = self.step(state[place], event);
        if let Some(text) = &step.broken {
            return Err(Broken {
                action: event,
                text: text.to_string(),
            });
        }
        if step.local == state[place]
            && step
                .sent
                .iter()
                .all(|letter| state[head..].binary_search(letter).is_ok())
        {
            return Ok(None);
        }
        let mut follower = Vec::with_capacity(state.len() + step.sent.len());
        follower.extend_from_slice(state);
        follower[place] = step.local;
        for letter in &step.sent {
            if let Err(at) = follower[head..].binary_search(letter) {
                follower.insert(head + at, *letter);
            }
        }
        Ok(Some(follower))
    }
}

impl<P: Process> Default for Troupe<P> {
    fn default() -> Self {
        Self::new()
    }
}
