//! One service's part of one transaction, with the real ledger: calls, branches, commit. Plays `scope.rs`, `branch.rs` and
//! `transaction.rs` of the library.

use super::desk::{Answered, Desk};
use super::{Message, Sabotage, Work};
use crate::actors::ActorId;
use crate::schedule::Micros;
use futures::channel::mpsc;
use futures::future::{Either, select};
use futures::{FutureExt, StreamExt};
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use synod::resource::redb::RedbTransaction;
use synod::resource::{BranchContext, ResourceManager};
use synod_participant_core::arrival::{CallContext, Execution};
use synod_participant_core::branch::{Branch, Caller, Durable, GivenUp, Voted, may_prepare};
use synod_participant_core::session::{Input, Question, Undecided};
use synod_participant_core::transaction::{Commit, Ledger, Reply};
use synod_proto::command::Decide;
use synod_proto::ids::{BranchId, CallId, Gtid, Lineage, UnixMillis};
use synod_proto::session::{Decision, Vote};

/// How long a proposal waits for its answer before it is in doubt, in milliseconds.
const DECIDE_PATIENCE_MS: (u64, u64) = (100, 5_000);

/// See the module.
pub(super) struct Scope {
    pub(super) desk: Rc<Desk>,
    pub(super) gtid: Gtid,
    pub(super) deadline: UnixMillis,
    pub(super) lineage: Lineage,
    pub(super) ledger: RefCell<Ledger>,
    /// Of the call that arrived here; `None` at the initiator.
    execution: RefCell<Option<Execution>>,
    pub(super) caller_waits: Rc<Cell<bool>>,
}

/// How a call is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) attempts: u32,
    pub(super) timeout_us: Micros,
}

impl Scope {
    /// Of a transaction that begins here.
    pub(super) fn begun(desk: &Rc<Desk>, lineage: Lineage, gtid: Gtid, deadline: UnixMillis) -> Rc<Self> {
        Self::new(desk, lineage, gtid, deadline, None, Rc::new(Cell::new(true)))
    }

    /// Of a call that arrived here: a fresh execution of it (T2).
    pub(super) fn arrived(desk: &Rc<Desk>, context: &CallContext, caller_waits: Rc<Cell<bool>>) -> Rc<Self> {
        let execution = Execution::new(context.call, desk.execution());
        let CallContext {
            lineage,
            gtid,
            deadline,
            ..
        } = *context;
        Self::new(desk, lineage, gtid, deadline, Some(execution), caller_waits)
    }

    fn new(
        desk: &Rc<Desk>,
        lineage: Lineage,
        gtid: Gtid,
        deadline: UnixMillis,
        execution: Option<Execution>,
        caller_waits: Rc<Cell<bool>>,
    ) -> Rc<Self> {
        let seed = desk.random(synod_coordinator_core::random::Random::next_u64);
        Rc::new(Self {
            desk: desk.clone(),
            gtid,
            deadline,
            lineage,
            ledger: RefCell::new(Ledger::new(lineage, gtid, deadline, seed)),
            execution: RefCell::new(execution),
            caller_waits,
        })
    }

    fn remaining_us(&self) -> Micros {
        self.deadline
            .0
            .saturating_sub(self.desk.clock.wall().0)
            .saturating_mul(1_000)
    }

    /// Calls another service, again and again under the same id. The call's id comes back in any case.
    pub(super) async fn call(
        self: &Rc<Self>,
        to: ActorId,
        work: &Work,
        patience: Patience,
    ) -> (Option<CallId>, Result<(), String>) {
        let call = match self.ledger.borrow_mut().call() {
            Ok(call) => call,
            Err(refused) => return (None, Err(refused.to_string())),
        };
        let context = CallContext {
            lineage: self.lineage,
            gtid: self.gtid,
            call,
            deadline: self.deadline,
        };
        let (sender, mut answers) = mpsc::unbounded();
        let mut numbers = Vec::new();
        let mut answered = None;
        for attempt in 0..patience.attempts {
            if attempt > 0 {
                self.desk.count("a call made again");
            }
            numbers.push(self.desk.request(to, context, work.clone(), sender.clone()));
            let timeout = self
                .desk
                .clock
                .sleep(patience.timeout_us.min(self.remaining_us()));
            if let Either::Left((Some(answer), _)) = select(answers.next(), timeout).await {
                answered = Some(answer);
                break;
            }
        }
        self.desk.forget_requests(&numbers);
        for number in numbers {
            self.desk.say(to, Message::Gone { number });
        }
        let mut ledger = self.ledger.borrow_mut();
        let (noted, result) = match answered {
            Some(Answered {
                result: Ok(()),
                votes: Some(votes),
            }) => {
                let doom = votes.dooms.first().map(|doom| doom.cause.to_string());
                (ledger.on_reply(call, votes), doom.map_or(Ok(()), Err))
            }
            Some(Answered {
                result: Ok(()),
                votes: None,
            }) => {
                let text = "the reply carries no vote".to_string();
                (ledger.on_failure(call, text.clone()), Err(text))
            }
            Some(Answered {
                result: Err(text),
                votes: Some(votes),
            }) => (ledger.on_failed_reply(call, votes, text.clone()), Err(text)),
            Some(Answered {
                result: Err(text),
                votes: None,
            }) => (ledger.on_failure(call, text.clone()), Err(text)),
            None => {
                let text = "no answer came".to_string();
                (ledger.on_failure(call, text.clone()), Err(text))
            }
        };
        let _late_answers_change_nothing = noted;
        if result.is_err() && self.desk.sabotage == Some(Sabotage::ForgetsFailedCalls) {
            let _is_known = ledger.discard(call);
            return (Some(call), Ok(()));
        }
        (Some(call), result)
    }

    /// A branch on this process's own database.
    pub(super) async fn branch(
        self: &Rc<Self>,
        work: impl AsyncFnOnce(&mut RedbTransaction, BranchId) -> Result<(), String>,
    ) -> (Option<CallId>, Result<(), String>) {
        let own = self
            .execution
            .borrow_mut()
            .as_mut()
            .and_then(Execution::begin_own);
        let (call, execution) = match own {
            Some(ids) => ids,
            None => match self.ledger.borrow_mut().call() {
                Ok(call) => (call, self.desk.execution()),
                Err(refused) => return (None, Err(refused.to_string())),
            },
        };
        let Some(store) = &self.desk.store else {
            return (Some(call), Err("this service has no database".to_string()));
        };
        let branch = BranchId {
            gtid: self.gtid,
            call,
            execution,
        };
        self.desk.books.borrow_mut().note_begun(branch);
        let (voted, result) = match self.work_and_prepare(branch, work).await {
            Ok(voted) => (voted, Ok(())),
            Err(text) => (
                Branch::new(branch, store.resource).rolled_back(text.clone()),
                Err(text),
            ),
        };
        let vote = voted.vote().clone();
        if own.is_some()
            && let Some(execution) = self.execution.borrow_mut().as_mut()
        {
            execution.on_own_vote(vote);
        } else {
            let reply = Reply {
                execution,
                votes: vec![vote],
                dooms: Vec::new(),
                open: Vec::new(),
                unnamed: Vec::new(),
            };
            let _is_first = self.ledger.borrow_mut().on_reply(call, reply);
        }
        (Some(call), result)
    }

    /// A call's work in the open branch of its transaction on this process's own database (T3).
    pub(super) async fn open_branch(self: &Rc<Self>, work: &Work) -> (Option<CallId>, Result<(), String>) {
        let own = self
            .execution
            .borrow_mut()
            .as_mut()
            .and_then(Execution::begin_own);
        let (call, execution) = match own {
            Some(ids) => ids,
            None => match self.ledger.borrow_mut().call() {
                Ok(call) => (call, self.desk.execution()),
                Err(refused) => return (None, Err(refused.to_string())),
            },
        };
        let Some(store) = &self.desk.store else {
            return (Some(call), Err("this service has no database".to_string()));
        };
        let ids = (call, execution);
        self.desk.books.borrow_mut().note_begun(BranchId {
            gtid: self.gtid,
            call,
            execution,
        });
        let called = self.desk.opens.call(self, ids, store.resource, work).await;
        let mut reply = Reply {
            execution,
            votes: Vec::new(),
            dooms: Vec::new(),
            open: Vec::new(),
            unnamed: Vec::new(),
        };
        let mut arrived = self.execution.borrow_mut();
        let own = arrived.as_mut().filter(|_| own.is_some());
        let result = match called {
            Ok(calls) => {
                if let Some(own) = own {
                    own.on_own_left_open(calls);
                    return (Some(call), Ok(()));
                }
                reply.open.push(calls);
                Ok(())
            }
            Err(text) => {
                let branch = BranchId {
                    gtid: self.gtid,
                    call,
                    execution,
                };
                let voted = Branch::new(branch, store.resource).rolled_back(text.clone());
                if let Some(own) = own {
                    own.on_own_vote(voted.vote().clone());
                    return (Some(call), Err(text));
                }
                reply.votes.push(voted.vote().clone());
                Err(text)
            }
        };
        let _is_first = self.ledger.borrow_mut().on_reply(call, reply);
        (Some(call), result)
    }

    async fn work_and_prepare(
        &self,
        branch: BranchId,
        work: impl AsyncFnOnce(&mut RedbTransaction, BranchId) -> Result<(), String>,
    ) -> Result<Branch<Voted>, String> {
        let desk = &self.desk;
        let store = desk.store.as_ref().expect("looked at by the caller");
        if desk.core.borrow().is_settled(self.gtid) {
            return Err("it is already decided".to_string());
        }
        let context = BranchContext {
            branch,
            lineage: self.lineage,
            deadline: self.deadline,
        };
        let (guard, cancelled) = desk.branch_started(branch);
        let working = async {
            let mut tx = store
                .redb
                .begin(&context)
                .await
                .map_err(|error| error.to_string())?;
            work(&mut tx, branch).await?;
            Ok::<_, String>(tx)
        };
        let ended = async {
            match select(cancelled, desk.clock.sleep(self.remaining_us())).await {
                Either::Left((Ok(()), _)) => "it was decided without this branch",
                Either::Left((Err(_), sleep)) => {
                    sleep.await;
                    "the deadline has passed"
                }
                Either::Right(_) => "the deadline has passed",
            }
        };
        let tx = match select(pin!(working), pin!(ended)).await {
            Either::Left((worked, _)) => worked?,
            Either::Right((text, _)) => return Err(text.to_string()),
        };
        if let Some(doom) = self
            .ledger
            .borrow()
            .doom()
            .filter(|_| self.execution.borrow().is_some())
        {
            desk.count("work given up because of a call below it");
            return Err(doom.cause.to_string());
        }
        let caller = match self.caller_waits.get() {
            true => Caller::Waits,
            false => Caller::IsGone,
        };
        may_prepare(caller, self.deadline, desk.clock.wall()).map_err(|given_up| {
            desk.count(match given_up {
                GivenUp::Abandoned => "given up: the caller has gone",
                GivenUp::DeadlinePassed => "given up: the deadline has passed",
            });
            given_up.to_string()
        })?;
        desk.work_on_disk().await;
        let prepared = store.redb.prepare(&context, tx).await;
        store.touch(branch, Some(context.clone()));
        let prepared = prepared.map_err(|error| {
            desk.count("a prepare that failed");
            error.to_string()
        })?;
        desk.count(match prepared.vote {
            Vote::ReadOnly => "vote: read-only",
            _ => "vote: commit",
        });
        desk.work_on_disk().await;
        if prepared.vote == Vote::Commit {
            desk.input(Input::Prepared {
                branch,
                resource: store.resource,
                lineage: self.lineage,
                deadline: self.deadline,
            });
        }
        drop(guard);
        let durable = match prepared.vote {
            Vote::Commit => Durable::Prepared,
            Vote::ReadOnly => Durable::ReadOnly,
            Vote::Abort { cause } => return Err(cause),
        };
        Ok(Branch::new(branch, store.resource).prepared(
            durable,
            prepared.digest,
            prepared.database_transaction,
        ))
    }

    /// What goes up with the reply.
    pub(super) fn hand_up(&self) -> Option<Reply> {
        let mut execution = self.execution.borrow_mut();
        Some(execution.as_mut()?.hand_up(&self.ledger.borrow()))
    }

    fn patience(&self) -> Duration {
        let (low, high) = DECIDE_PATIENCE_MS;
        Duration::from_millis(self.desk.random(|random| random.between(low, high)))
    }

    /// Asks for the commit, and waits for the answer.
    pub(super) async fn commit(&self, commit: &Commit) -> Result<Decision, Undecided> {
        let Commit { decide, open } = commit;
        if open.is_empty() {
            return self.decide(decide).await;
        }
        let (gtid, command, open) = (self.gtid, decide.encode(), open.clone());
        self.propose(Question::PrepareAndDecide { gtid, command, open })
            .await
    }

    /// Proposes, and waits for the answer.
    pub(super) async fn decide(&self, decide: &Decide) -> Result<Decision, Undecided> {
        let (gtid, command) = (self.gtid, decide.encode());
        self.propose(Question::Decide { gtid, command }).await
    }

    async fn propose(&self, question: Question) -> Result<Decision, Undecided> {
        match self.desk.ask(question, self.patience()).await {
            Ok(reply) => reply.decision(),
            Err(_process_is_gone) => futures::future::pending().boxed_local().await,
        }
    }

    /// Proposes, and waits for nothing.
    pub(super) fn decide_in_background(&self, decide: Option<Decide>) {
        if let Some(decide) = decide {
            let question = Question::Decide {
                gtid: self.gtid,
                command: decide.encode(),
            };
            drop(self.desk.ask(question, self.patience()));
        }
    }
}
