//! How the simulator records what is asked and told: which answer belongs to which question, and what a lost or refused
//! question may have done.

use bytes::Bytes;
use std::borrow::Borrow;
use synod_coordinator_core::effects::Told;
use synod_proto::command::{Decide, NamedBranch, Proposal};
use synod_proto::ids::{
    BranchId, CallId, ExecutionId, Gtid, InstanceId, Lineage, OpenToken, RequestId, ResourceId, SessionId,
    UnixMillis,
};
use synod_proto::session::{
    AbortCause, AbortKind, Answer, Decision, OpenBranch, Outcome, Refusal, Request, Response,
    TransactionStatus,
};
use synod_tests::checkers::linearizability::HistoryChecker;

const RESOURCE: ResourceId = ResourceId([1; 16]);
const LINEAGE: Lineage = Lineage([2; 16]);
const BRANCH: NamedBranch = NamedBranch {
    call: CallId(1),
    execution: ExecutionId(1),
    resource: RESOURCE,
    digest: 0,
    database_transaction: Bytes::new(),
};

fn gtid() -> Gtid {
    Gtid::new(UnixMillis(1_000), [3; 10])
}

fn branch() -> BranchId {
    BranchId {
        gtid: gtid(),
        call: BRANCH.call,
        execution: BRANCH.execution,
    }
}

/// Records one step a line.
#[derive(Default)]
struct Recorder(HistoryChecker);

impl Recorder {
    fn ask(mut self, session: u64, request: impl Borrow<Request>) -> Self {
        self.0.on_asked(SessionId(session), request.borrow());
        self
    }

    fn propose(self, session: u64, number: u64, proposal: Proposal) -> Self {
        let decide = Decide {
            lineage: LINEAGE,
            gtid: gtid(),
            deadline: UnixMillis(2_000),
            proposal,
            guards: Vec::new(),
        };
        self.ask(
            session,
            Request::Decide {
                request: RequestId(number),
                command: decide.encode(),
            },
        )
    }

    fn commit(self, session: u64, number: u64) -> Self {
        self.propose(
            session,
            number,
            Proposal::Commit {
                branches: vec![BRANCH],
                read_only_count: 0,
            },
        )
    }

    fn abort(self, session: u64, number: u64) -> Self {
        self.propose(
            session,
            number,
            Proposal::Abort {
                cause: cause(),
                branches: Vec::new(),
            },
        )
    }

    fn inquire(self, session: u64) -> Self {
        let deadline = UnixMillis(2_000);
        self.ask(
            session,
            Request::Inquire {
                branch: branch(),
                resource: RESOURCE,
                lineage: LINEAGE,
                deadline,
            },
        )
    }

    fn query(self, session: u64, number: u64) -> Self {
        self.ask(
            session,
            Request::Outcome {
                request: RequestId(number),
                gtid: gtid(),
            },
        )
    }

    fn tell(mut self, session: u64, response: Response) -> Self {
        self.0.on_told(&Told {
            session: SessionId(session),
            response,
        });
        self
    }

    fn decided(self, session: u64, number: u64, decision: Decision) -> Self {
        self.tell(
            session,
            Response::Decided {
                request: RequestId(number),
                decision,
            },
        )
    }

    fn refused(self, session: u64, number: u64, refusal: Refusal) -> Self {
        self.tell(
            session,
            Response::Refused {
                request: RequestId(number),
                refusal,
            },
        )
    }

    fn answered(self, session: u64, answer: Answer) -> Self {
        self.tell(
            session,
            Response::Answered {
                branch: branch(),
                answer,
            },
        )
    }

    fn undecided(self, session: u64, number: u64) -> Self {
        let status = TransactionStatus::Undecided;
        self.tell(
            session,
            Response::Status {
                request: RequestId(number),
                status,
            },
        )
    }

    fn delivered(self, session: u64, outcome: Outcome) -> Self {
        self.tell(
            session,
            Response::Deliver {
                branch: branch(),
                resource: RESOURCE,
                outcome,
            },
        )
    }

    #[track_caller]
    fn holds(self) {
        self.0.check_final().expect("an order explains it");
    }

    #[track_caller]
    fn fails(self) {
        let violation = self.0.check_final().expect_err("no order explains it");
        assert!(
            violation
                .0
                .starts_with("no order of its operations explains what was told of"),
            "{violation}"
        );
    }
}

fn cause() -> AbortCause {
    AbortCause::new(AbortKind::Requested, "asked for")
}

fn not_leader() -> Refusal {
    Refusal::NotLeader { leader: None }
}

fn overloaded() -> Refusal {
    Refusal::Overloaded {
        what: "queue".to_string(),
    }
}

#[test]
fn a_transaction_from_its_commit_to_its_delivery() {
    let recorder = Recorder::default()
        .query(2, 1)
        .commit(1, 1)
        .delivered(3, Outcome::Committed)
        .decided(1, 1, Decision::Committed)
        .undecided(2, 1)
        .abort(2, 2)
        .decided(2, 2, Decision::Committed);
    assert_eq!(recorder.0.operation_count(), 4);
    recorder.holds();
}

/// A replica that stops leading does not know what becomes of the proposals that are on their way (T7).
#[test]
fn a_proposal_refused_by_one_who_leads_no_more_may_still_win() {
    Recorder::default()
        .commit(1, 1)
        .refused(1, 1, not_leader())
        .delivered(3, Outcome::Committed)
        .holds();
    Recorder::default()
        .commit(1, 1)
        .refused(1, 1, not_leader())
        .query(2, 1)
        .undecided(2, 1)
        .holds();
}

/// Every other refusal says that nothing was done.
#[test]
fn a_refused_proposal_that_wins_is_found() {
    Recorder::default()
        .commit(1, 1)
        .refused(1, 1, overloaded())
        .delivered(3, Outcome::Committed)
        .fails();
    // The same request again, and answered: it was done then.
    Recorder::default()
        .commit(1, 1)
        .refused(1, 1, overloaded())
        .commit(1, 1)
        .decided(1, 1, Decision::Committed)
        .delivered(3, Outcome::Committed)
        .holds();
}

/// T10: an answer that comes after another was told the outcome.
#[test]
fn a_stale_status_is_found() {
    Recorder::default()
        .commit(1, 1)
        .decided(1, 1, Decision::Committed)
        .query(2, 1)
        .undecided(2, 1)
        .fails();
    Recorder::default()
        .commit(1, 1)
        .delivered(3, Outcome::Committed)
        .query(2, 1)
        .undecided(2, 1)
        .fails();
}

#[test]
fn a_second_answer_to_one_question_has_to_be_true_as_well() {
    let once = || {
        Recorder::default()
            .commit(1, 1)
            .decided(1, 1, Decision::Committed)
    };
    once().decided(1, 1, Decision::Committed).holds();
    once().decided(1, 1, Decision::Aborted(cause())).fails();
}

/// The numbers of two sessions have nothing to do with each other.
#[test]
fn requests_of_two_sessions_are_kept_apart() {
    Recorder::default()
        .commit(1, 1)
        .abort(2, 1)
        .decided(2, 1, Decision::Aborted(cause()))
        .decided(1, 1, Decision::Aborted(cause()))
        .holds();
}

/// T6: "undecided" promises nothing, so the inquiry's abort may still come; a decided answer binds.
#[test]
fn inquiries() {
    let late = AbortCause::new(AbortKind::Deadline, "late");
    Recorder::default()
        .inquire(1)
        .answered(1, Answer::Undecided)
        .commit(2, 1)
        .decided(2, 1, Decision::Aborted(late.clone()))
        .holds();
    Recorder::default()
        .inquire(1)
        .answered(1, Answer::Aborted)
        .commit(2, 1)
        .decided(2, 1, Decision::Committed)
        .fails();
    // Two questions, one of which was lost; and then two answers to the second.
    let asked = || {
        Recorder::default()
            .inquire(1)
            .inquire(1)
            .answered(1, Answer::Aborted)
    };
    asked()
        .answered(1, Answer::Aborted)
        .commit(2, 1)
        .decided(2, 1, Decision::Aborted(late))
        .holds();
    asked().answered(1, Answer::Committed).fails();
    // Nobody proposed what a branch is told.
    Recorder::default()
        .inquire(1)
        .answered(1, Answer::Committed)
        .fails();
}

/// T16: "delivered" is told of commits only.
#[test]
fn an_aborted_transaction_is_not_delivered() {
    let asked = || {
        let request = Request::AwaitDelivery {
            request: RequestId(9),
            gtid: gtid(),
        };
        Recorder::default().commit(1, 1).ask(1, request)
    };
    let delivered = || Response::Delivered {
        request: RequestId(9),
        gtid: gtid(),
    };
    asked().tell(1, delivered()).holds();
    asked()
        .abort(2, 1)
        .decided(2, 1, Decision::Aborted(cause()))
        .tell(1, delivered())
        .fails();
}

#[test]
fn what_belongs_to_no_history_is_left_alone() {
    let recorder = Recorder::default()
        .ask(
            1,
            Request::Decide {
                request: RequestId(1),
                command: Bytes::from_static(b"nonsense"),
            },
        )
        .refused(
            1,
            1,
            Refusal::Invalid {
                text: "malformed".to_string(),
            },
        )
        .ask(
            1,
            Request::Acknowledge {
                branch: branch(),
                resource: RESOURCE,
            },
        );
    assert_eq!(recorder.0.operation_count(), 0);
    recorder.holds();
}

/// T3: a commit with open branches is a proposal like others, and its gtid's history is searched.
#[test]
fn b5_a_commit_with_open_branches_belongs_to_the_history() {
    let asked = || {
        let decide = Decide {
            lineage: LINEAGE,
            gtid: gtid(),
            deadline: UnixMillis(2_000),
            proposal: Proposal::Commit {
                branches: Vec::new(),
                read_only_count: 0,
            },
            guards: Vec::new(),
        };
        let open = OpenBranch {
            call: BRANCH.call,
            execution: BRANCH.execution,
            resource: RESOURCE,
            instance: InstanceId([4; 16]),
            token: OpenToken(1),
            call_count: 1,
        };
        let request = Request::PrepareAndDecide {
            request: RequestId(1),
            command: decide.encode(),
            open: vec![open],
        };
        Recorder::default().ask(1, request)
    };
    let committed = || asked().decided(1, 1, Decision::Committed);
    committed().inquire(2).answered(2, Answer::Committed).holds();
    committed().query(3, 9).undecided(3, 9).fails();
    committed()
        .abort(2, 1)
        .decided(2, 1, Decision::Aborted(cause()))
        .fails();
}
