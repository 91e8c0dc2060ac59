//! What clients asked and were told, as one history for each gtid, and whether the outcome register explains it.
//!
//! This checker knows nothing of the log: it would find two outcomes even if the log agreed with both. Answers count
//! from the moment they leave a replica, whether or not anybody hears them; that leaves the search less freedom than
//! what clients see, and no true history is refused by it, since the effect comes before the answer.

use super::{Check, Violation, require};
use crate::linearizability::register::{Input, Output, RegisterModel};
use crate::linearizability::{Conclusion, Operation, check};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use synod_coordinator_core::effects::Told;
use synod_proto::command::{Decide, Proposal};
use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, RequestId, SessionId};
use synod_proto::session::{Answer, Decision, Refusal, Request, Response};

/// How long the search for one gtid may be. The longest that a clean run needed was far below.
pub const STEPS_MAX: u64 = 2_000_000;

/// Where an operation lies: its gtid, and its place in that history.
type Place = (Gtid, usize);

/// The histories of a run.
#[derive(Debug, Default)]
pub struct HistoryChecker {
    /// Counts what is asked and told: finer than the clock, and as true.
    count: u64,
    histories: BTreeMap<Gtid, Vec<Operation<Input, Output>>>,
    asked: BTreeMap<(SessionId, RequestId), Place>,
    inquired: BTreeMap<(SessionId, BranchId), VecDeque<Place>>,
    /// Operations of which the coordinator says that it did nothing.
    refused: BTreeSet<Place>,
}

impl HistoryChecker {
    /// A session asks something.
    pub fn on_asked(&mut self, session: SessionId, request: &Request) {
        self.count += 1;
        match request {
            Request::Decide { request, command } => {
                // A malformed proposal is refused, and belongs to no gtid.
                if let Ok(Decide { gtid, proposal, .. }) = Decide::decode(command) {
                    self.note_request(session, *request, gtid, Input::Propose(proposal));
                }
            }
            Request::PrepareAndDecide {
                request,
                command,
                open,
            } => {
                if let Ok(Decide { gtid, proposal, .. }) = Decide::decode(command) {
                    let input = Input::ProposePrepared(proposal, open.clone());
                    self.note_request(session, *request, gtid, input);
                }
            }
            Request::Outcome { request, gtid } => self.note_request(session, *request, *gtid, Input::Query),
            Request::AwaitDelivery { request, gtid } => {
                self.note_request(session, *request, *gtid, Input::Hear(CallId(0), ExecutionId(0)));
            }
            Request::Inquire { branch, .. } => {
                let place = self.note(branch.gtid, Input::Inquire(branch.call, branch.execution));
                self.inquired
                    .entry((session, *branch))
                    .or_default()
                    .push_back(place);
            }
            Request::Register { .. }
            | Request::Acknowledge { .. }
            | Request::Hazard { .. }
            | Request::Introduce { .. }
            | Request::Voted { .. }
            | Request::Settle { .. }
            | Request::List { .. }
            | Request::ListInDoubt { .. } => {}
        }
    }

    /// A replica tells something.
    pub fn on_told(&mut self, told: &Told) {
        self.count += 1;
        let session = told.session;
        match &told.response {
            Response::Decided {
                decision: Decision::Settled,
                ..
            } => {}
            Response::Decided { request, decision } => {
                self.answer_request(session, *request, Output::Decision(decision.clone()));
            }
            Response::Status { request, status } => {
                self.answer_request(session, *request, Output::Status(status.clone()));
            }
            Response::Delivered { request, .. } => {
                self.answer_request(session, *request, Output::AllDelivered);
            }
            Response::Answered { branch, answer } => self.answer_inquiry(session, *branch, *answer),
            Response::Deliver { branch, outcome, .. } => {
                let input = Input::Hear(branch.call, branch.execution);
                self.note_answered(branch.gtid, self.count, input, Output::Told(*outcome));
            }
            Response::Listed { transactions, .. } => {
                for one in transactions {
                    self.note_answered(
                        one.gtid,
                        self.count,
                        Input::Query,
                        Output::Status(one.status.clone()),
                    );
                }
            }
            // Proposals of a replica that stops leading may be on their way through the log; the rest was not done.
            Response::Refused {
                refusal: Refusal::NotLeader { .. },
                ..
            } => {}
            Response::Refused { request, .. } => {
                if let Some(place) = self.asked.get(&(session, *request)) {
                    self.refused.insert(*place);
                }
            }
            Response::Registered { .. }
            | Response::LowWater { .. }
            | Response::Prepare { .. }
            | Response::ListedInDoubt { .. } => {}
        }
    }

    /// Searches every history. To be called when the run is over.
    ///
    /// # Errors
    /// A gtid's answers are not those of any order of its operations; the text shows them all.
    pub fn check_final(&self) -> Check {
        self.histories
            .iter()
            .try_for_each(|(gtid, history)| self.check_one(*gtid, history))
    }

    /// How many operations were recorded.
    #[must_use]
    pub fn operation_count(&self) -> usize {
        self.histories.values().map(Vec::len).sum()
    }

    fn check_one(&self, gtid: Gtid, history: &[Operation<Input, Output>]) -> Check {
        let was_done = |(place, one): &(usize, &Operation<Input, Output>)| {
            one.answer.is_some() || !self.refused.contains(&(gtid, *place))
        };
        let history: Vec<Operation<Input, Output>> = history
            .iter()
            .enumerate()
            .filter(was_done)
            .map(|(_, one)| one.clone())
            .collect();
        match check(&RegisterModel, &history, STEPS_MAX) {
            Conclusion::Linearizable(_) => Ok(()),
            Conclusion::NotLinearizable { stuck, .. } => Err(Violation(describe(gtid, &history, &stuck))),
            Conclusion::TooManySteps => require(false, || {
                format!(
                    "the history of {gtid} is too long to be searched: {} operations",
                    history.len()
                )
            }),
        }
    }

    fn note(&mut self, gtid: Gtid, input: Input) -> Place {
        let history = self.histories.entry(gtid).or_default();
        history.push(Operation::unanswered(self.count, input));
        (gtid, history.len() - 1)
    }

    fn note_answered(&mut self, gtid: Gtid, asked: u64, input: Input, output: Output) {
        let operation = Operation::answered(asked, input, self.count, output);
        self.histories.entry(gtid).or_default().push(operation);
    }

    fn note_request(&mut self, session: SessionId, request: RequestId, gtid: Gtid, input: Input) {
        // The same request again is the same operation, from its first question on.
        if !self.asked.contains_key(&(session, request)) {
            let place = self.note(gtid, input);
            self.asked.insert((session, request), place);
        }
    }

    fn answer_request(&mut self, session: SessionId, request: RequestId, output: Output) {
        if let Some(place) = self.asked.get(&(session, request)).copied() {
            self.answer(place, output);
        }
    }

    fn answer(&mut self, (gtid, place): Place, output: Output) {
        let history = self.histories.entry(gtid).or_default();
        let operation = &mut history[place];
        if operation.answer.is_none() {
            operation.answer = Some((self.count, output));
            return;
        }
        // Answered twice: the second answer has to be true as well.
        let (asked, input) = (operation.asked, operation.input.clone());
        self.note_answered(gtid, asked, input, output);
    }

    /// An answer may be to any of the inquiries that are open: the earliest gives the search the most freedom.
    fn answer_inquiry(&mut self, session: SessionId, branch: BranchId, answer: Answer) {
        let Some(open) = self.inquired.get_mut(&(session, branch)) else {
            return;
        };
        let history = &self.histories[&branch.gtid];
        // The last one stays, for answers beyond the number of questions.
        while open.len() > 1 && history[open[0].1].answer.is_some() {
            open.pop_front();
        }
        let place = open[0];
        match Output::of_answer(answer) {
            Some(output) => self.answer(place, output),
            None if open.len() > 1 => drop(open.pop_front()),
            None => {}
        }
    }
}

fn describe(gtid: Gtid, history: &[Operation<Input, Output>], stuck: &[usize]) -> String {
    let mut text = format!("no order of its operations explains what was told of {gtid}:");
    for (place, Operation { asked, input, answer }) in history.iter().enumerate() {
        let mark = if stuck.contains(&place) { '>' } else { ' ' };
        let what = match input {
            Input::Propose(Proposal::Commit { .. }) => "commit?".to_string(),
            Input::Propose(Proposal::Abort { .. }) => "abort?".to_string(),
            Input::ProposePrepared(_, open) => format!("commit with {} open?", open.len()),
            other => format!("{other:?}"),
        };
        // Writing to a string does not fail.
        let _ = match answer {
            Some((at, output)) => write!(text, "\n{mark} {asked:>6}..{at:<6} {what}: {output:?}"),
            None => write!(text, "\n{mark} {asked:>6}..       {what}"),
        };
    }
    text
}
