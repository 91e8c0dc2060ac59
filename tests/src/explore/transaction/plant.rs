//! Bugs that are planted to prove that the exploration finds bugs. Each changes what one side says or stores; the cores
//! stay as they are.

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plant {
    /// An inquiring branch is told what became of its gtid, and not what became of itself (T5).
    AnswerPerGtid,
    /// "No outcome yet" is told as "aborted" (T6).
    AbsenceIsAbort,
    /// A commit is told before it is in the log (traps B1).
    TellBeforeDecided,
    /// An abort is told before it is in the log (T6).
    TellAbortBeforeDecided,
    /// A vote leaves before its branch is durable (C1).
    VoteBeforePrepare,
    /// A commit is acknowledged before it has happened (T8).
    AcknowledgeEarly,
    /// A commit is proposed while a call is unanswered (T4).
    CommitUnanswered,
    /// A delivery is forgotten once one branch has acknowledged (traps B10).
    ForgetDelivery,
    /// A participant that starts rolls back whatever it finds prepared (C2).
    RollBackAtStart,
}

impl Plant {
    /// Every bug.
    pub const ALL: [Self; 9] = [
        Self::AnswerPerGtid,
        Self::AbsenceIsAbort,
        Self::TellBeforeDecided,
        Self::TellAbortBeforeDecided,
        Self::VoteBeforePrepare,
        Self::AcknowledgeEarly,
        Self::CommitUnanswered,
        Self::ForgetDelivery,
        Self::RollBackAtStart,
    ];
}
