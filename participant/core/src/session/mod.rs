//! A participant process's side of the coordinator session (steps 4 and 5, rules T6-T8, T11).
//!
//! Invariants it owns:
//! - a question goes to each new leader with the same number and the same content, until it is answered or its patience
//!   ends; whether a send of it is unaccounted for decides between "nothing was done" and "in doubt" (T7);
//! - a branch that voted is ended by its outcome and by nothing else (T8, C1, C2): it asks, and waits;
//! - an acknowledgement is made from a store's proof that the commit happened (T8): see `branches/delivery.rs`, `Proof`;
//! - one branch that cannot be finished delays no other (B20); every retry is capped and jittered (B19);
//! - what a first outcome says is never replaced by another (B6).
//!
//! | file | holds |
//! |---|---|
//! | `vocabulary.rs` | inputs, effects, configuration |
//! | `link.rs` | which replica, registration, lineage |
//! | `questions.rs` | numbered requests and their answers |
//! | `branches.rs` | branches in doubt: listings, inquiries |
//! | `branches/delivery.rs` | deliveries, stores' answers, acknowledgements |
//!
//! The contract with the driver: it calls [`Session::step`] with every input and when [`Session::next_timeout`] is
//! reached, does the effects in their order, and passes what the world answers back as inputs.

mod branches;
mod link;
mod questions;
mod vocabulary;

pub use vocabulary::{
    Config, ConnectionId, Effect, Failure, Finished, Ignored, Input, ListedBranch, Notice, Question, Reply,
    Ticket, Undecided, Unfinished,
};

use crate::time::{Now, Timers, Timestamp};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use branches::{Branch, Resource};
use core::hash::{Hash, Hasher};
use link::Link;
use questions::Pending;
use synod_proto::ids::{BranchId, Gtid, InstanceId, Lineage, RequestId, ResourceId, UnixMillis};
use synod_proto::random::Random;
use synod_proto::session::{Request, Response};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Timer {
    Link,
    Question(RequestId),
    Branch(BranchId),
    List(ResourceId),
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Session {
    config: Config,
    random: Random,
    timers: Timers<Timer>,
    link: Link,
    /// Learned at the first registration, and required of every later one (T11).
    lineage: Option<Lineage>,
    /// Once this process holds open branches: what every leader must know to ask for them (T3).
    instance: Option<InstanceId>,
    /// The last thing that was seen of the coordinator, for errors.
    last_seen: String,
    request_count: u64,
    questions: BTreeMap<RequestId, Pending>,
    tickets: BTreeMap<Ticket, RequestId>,
    resources: BTreeMap<ResourceId, Resource>,
    branches: BTreeMap<BranchId, Branch>,
    /// Transactions known to be decided. Bounded; the oldest are forgotten first (T13: an optimisation only).
    settled: BTreeSet<Gtid>,
    is_closing: bool,
}

impl Session {
    /// A session that connects at its first step. The seed may be anything; it spreads retries.
    ///
    /// # Panics
    /// If the configuration names no address.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        assert!(!config.addresses.is_empty(), "a session needs an address");
        let mut timers = Timers::new();
        timers.set(Timer::Link, Timestamp(0));
        Self {
            config,
            random: Random::new(seed),
            timers,
            link: Link::new(),
            lineage: None,
            instance: None,
            last_seen: String::from("no replica was reached yet"),
            request_count: 0,
            questions: BTreeMap::new(),
            tickets: BTreeMap::new(),
            resources: BTreeMap::new(),
            branches: BTreeMap::new(),
            settled: BTreeSet::new(),
            is_closing: false,
        }
    }

    /// When to step next, if nothing happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    /// Takes one input; whatever is due at `now` is done as well.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Opened { connection } => self.on_opened(now, connection, &mut effects),
            Input::Lost { connection, reason } => self.on_lost(now, connection, reason, &mut effects),
            Input::Received {
                connection,
                response,
                leader,
            } => {
                self.on_received(now, connection, response, leader, &mut effects);
            }
            Input::Ask {
                ticket,
                question,
                patience,
            } => self.on_ask(now, ticket, question, patience, &mut effects),
            Input::Abandon { ticket } => self.on_abandon(ticket, &mut effects),
            Input::Attach { resource } => self.on_attach(now, resource, &mut effects),
            Input::Started { branch } => self.on_started(branch, &mut effects),
            Input::Prepared {
                branch,
                resource,
                lineage,
                deadline,
            } => {
                self.on_prepared(now, branch, resource, lineage, deadline, &mut effects);
            }
            Input::Introduce { instance } => {
                if self.instance.replace(instance) != Some(instance) {
                    self.send(Request::Introduce { instance }, &mut effects);
                }
            }
            // Without a stream the word is lost; the next leader asks again, and hears the same.
            Input::Voted {
                branch,
                resource,
                vote,
            } => {
                self.send(
                    Request::Voted {
                        branch,
                        resource,
                        vote,
                    },
                    &mut effects,
                );
            }
            Input::Ended { branch } => self.on_ended(branch, &mut effects),
            Input::Listed { resource, branches } => self.on_listed(now, resource, branches, &mut effects),
            Input::Finished {
                branch,
                outcome,
                finished,
            } => {
                self.on_finished(now, branch, outcome, finished, &mut effects);
            }
            Input::Close => self.on_close(&mut effects),
            Input::Tick => {}
        }
        while let Some(timer) = self.timers.pop_due(now.monotonic) {
            match timer {
                Timer::Link => self.on_link_timer(now, &mut effects),
                Timer::Question(request) => self.on_question_timer(now, request, &mut effects),
                Timer::Branch(branch) => self.on_branch_timer(now, branch, &mut effects),
                Timer::List(resource) => self.on_list_timer(now, resource, &mut effects),
            }
        }
        effects
    }

    fn on_received(
        &mut self,
        now: Now,
        connection: ConnectionId,
        response: Response,
        leader: Option<String>,
        effects: &mut Vec<Effect>,
    ) {
        if !self.link.hears(now, connection) {
            return effects.push(Effect::Ignored(Ignored::StaleConnection));
        }
        // A stream that has not registered may belong to a foreign coordinator: it has nothing to tell yet (T11).
        let is_registration = matches!(response, Response::Registered { .. } | Response::Refused { .. });
        if self.link.is_registering(connection) && !is_registration {
            return effects.push(Effect::Ignored(Ignored::StaleConnection));
        }
        match response {
            Response::Registered { request, lineage } => {
                self.on_registered(now, connection, request, lineage, effects);
            }
            Response::Refused { request, refusal } => {
                self.on_refused(now, connection, request, refusal, leader, effects);
            }
            Response::Decided { request, decision } => {
                self.on_reply(now, request, Reply::Decided(decision), effects);
            }
            Response::Status { request, status } => {
                self.on_reply(now, request, Reply::Status(status), effects);
            }
            Response::Delivered { request, .. } => self.on_reply(now, request, Reply::Delivered, effects),
            Response::Answered { branch, answer } => self.on_answered(now, branch, answer, effects),
            Response::Deliver {
                branch,
                resource,
                outcome,
            } => {
                self.on_deliver(now, branch, resource, outcome, effects);
            }
            Response::LowWater {
                resource,
                mark,
                unfinished,
            } => {
                if self.resources.contains_key(&resource) {
                    effects.push(Effect::Forget {
                        resource,
                        mark,
                        unfinished,
                    });
                } else {
                    effects.push(Effect::Ignored(Ignored::UnknownResource));
                }
            }
            Response::Prepare {
                branch,
                resource,
                token,
                call_count,
            } => effects.push(Effect::Prepare {
                branch,
                resource,
                token,
                call_count,
            }),
            // This session never asks for lists.
            Response::Listed { .. } | Response::ListedInDoubt { .. } => {
                effects.push(Effect::Ignored(Ignored::UnknownRequest));
            }
        }
    }

    // ---- getters ----

    /// Feeds what the session will do next to a hasher. For checkers that look whether they have met a state before:
    /// instants, counts that only stretch a delay, and the seeded stream are left out; the order in which timers are due
    /// is kept.
    pub fn hash_state<H: Hasher>(&self, state: &mut H) {
        let Self {
            timers,
            link,
            lineage,
            instance,
            request_count,
            questions,
            tickets,
            resources,
            branches,
            ..
        } = self;
        (timers, link, lineage, instance, request_count).hash(state);
        (questions, tickets).hash(state);
        (resources, branches, &self.settled, self.is_closing).hash(state);
    }

    /// The coordinator's lineage, once a leader has registered this session.
    #[must_use]
    pub const fn lineage(&self) -> Option<Lineage> {
        self.lineage
    }

    /// The last thing that was seen of the coordinator, for people.
    #[must_use]
    pub fn last_seen(&self) -> &str {
        &self.last_seen
    }

    /// Whether the transaction is known to be decided: work that begins now can never be part of it, whichever way it
    /// went. "No" proves nothing.
    #[must_use]
    pub fn is_settled(&self, gtid: Gtid) -> bool {
        self.settled.contains(&gtid)
    }

    /// Every branch that waits for its outcome, or for its application (T8).
    #[must_use]
    pub fn unfinished(&self, wall: UnixMillis) -> Vec<Unfinished> {
        self.branches
            .iter()
            .filter_map(|(branch, entry)| entry.unfinished(*branch, wall))
            .collect()
    }

    // ---- helpers of all files ----

    fn next_request(&mut self) -> RequestId {
        self.request_count += 1;
        RequestId(self.request_count)
    }

    /// Sends on the registered stream, if there is one. What is lost here is asked again by its own timer.
    fn send(&self, request: Request, effects: &mut Vec<Effect>) -> bool {
        let is_serving = self.link.serving().is_some();
        if is_serving {
            effects.push(Effect::Send(request));
        }
        is_serving
    }
}

#[cfg(test)]
mod tests;
