//! A call arrives under a global transaction (step 2): may work be done for it (T11, T14), and what goes back with its
//! reply (T2, T3, T4).

use crate::transaction::{BranchVote, Doom, Ledger, OpenCalls, Reply};
use core::fmt;
use synod_proto::ids::{CallId, ExecutionId, Gtid, Lineage, UnixMillis};
use synod_proto::limits::{CLOCK_SKEW_MS_MAX, DEADLINE_MS_MAX};
use synod_proto::planted;
use synod_proto::session::{AbortCause, AbortKind};

/// What a call says of the transaction that it is made under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallContext {
    /// The coordinator under which the transaction runs (T11).
    pub lineage: Lineage,
    /// The transaction.
    pub gtid: Gtid,
    /// This call, by its caller (T2).
    pub call: CallId,
    /// When the transaction's branches give up.
    pub deadline: UnixMillis,
}

/// Why no work is done for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArrivalRefused {
    /// It runs under another coordinator (T11).
    ForeignLineage {
        /// The transaction.
        gtid: Gtid,
        /// Its coordinator.
        found: Lineage,
        /// This service's.
        own: Lineage,
    },
    /// It began further in this machine's future than clocks may differ (T14).
    FromFuture {
        /// The transaction.
        gtid: Gtid,
        /// By how much, in milliseconds.
        ahead_ms: u64,
    },
    /// Its deadline is further from its begin than any may be.
    DeadlineTooFar {
        /// The transaction.
        gtid: Gtid,
    },
    /// Its deadline has passed.
    DeadlinePassed {
        /// The transaction.
        gtid: Gtid,
    },
    /// The transaction is decided: this work could never be part of it.
    Decided {
        /// The transaction.
        gtid: Gtid,
    },
}

impl fmt::Display for ArrivalRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignLineage { gtid, found, own } => {
                write!(
                    f,
                    "{gtid} runs under coordinator {found}, and this service under {own}"
                )
            }
            Self::FromFuture { gtid, ahead_ms } => {
                write!(f, "{gtid} began {ahead_ms} ms in this service's future")
            }
            Self::DeadlineTooFar { gtid } => {
                write!(
                    f,
                    "the deadline of {gtid} is more than {DEADLINE_MS_MAX} ms after its begin"
                )
            }
            Self::DeadlinePassed { gtid } => write!(f, "the deadline of {gtid} has passed"),
            Self::Decided { gtid } => write!(f, "{gtid} is already decided: this is late work"),
        }
    }
}

impl core::error::Error for ArrivalRefused {}

impl CallContext {
    /// What must hold before any work is done under the context, by this machine's wall clock. `is_settled`: see
    /// [`Session::is_settled`](crate::session::Session::is_settled).
    ///
    /// # Errors
    /// See [`ArrivalRefused`]; nothing may be done.
    pub fn check(&self, own: Lineage, wall: UnixMillis, is_settled: bool) -> Result<(), ArrivalRefused> {
        let Self {
            lineage: found,
            gtid,
            deadline,
            ..
        } = *self;
        let began_at = gtid.began_at();
        if found != own {
            return Err(ArrivalRefused::ForeignLineage { gtid, found, own });
        }
        if began_at > wall.plus(CLOCK_SKEW_MS_MAX) {
            let ahead_ms = began_at.0 - wall.0;
            return Err(ArrivalRefused::FromFuture { gtid, ahead_ms });
        }
        if deadline > began_at.plus(DEADLINE_MS_MAX) {
            return Err(ArrivalRefused::DeadlineTooFar { gtid });
        }
        if deadline <= wall {
            return Err(ArrivalRefused::DeadlinePassed { gtid });
        }
        if is_settled {
            return Err(ArrivalRefused::Decided { gtid });
        }
        Ok(())
    }
}

/// One execution of an arrived call: its own branch goes by the caller's call id, all further ones by fresh ids (T2).
#[derive(Clone, Debug)]
pub struct Execution {
    call: CallId,
    execution: ExecutionId,
    own: Own,
    is_handed_up: bool,
}

#[derive(Clone, Debug)]
enum Own {
    None,
    Open,
    Voted(BranchVote),
    /// It stays open, and is prepared with the commit (T3).
    LeftOpen(OpenCalls),
}

impl Execution {
    /// A fresh execution of the call. `execution` must be fresh randomness.
    #[must_use]
    pub fn new(call: CallId, execution: ExecutionId) -> Self {
        let execution = if planted!(RepeatRunsUnderSameId) {
            ExecutionId(call.0)
        } else {
            execution
        };
        Self {
            call,
            execution,
            own: Own::None,
            is_handed_up: false,
        }
    }

    /// The execution's own branch begins, if it has none yet; otherwise a branch is a call of its own.
    pub fn begin_own(&mut self) -> Option<(CallId, ExecutionId)> {
        if self.is_handed_up || !matches!(self.own, Own::None) {
            return None;
        }
        self.own = Own::Open;
        Some((self.call, self.execution))
    }

    /// The execution's own branch has voted.
    pub fn on_own_vote(&mut self, vote: BranchVote) {
        self.own = Own::Voted(vote);
    }

    /// The execution's own work was done in a branch that stays open, its own or an earlier call's.
    pub fn on_own_left_open(&mut self, calls: OpenCalls) {
        self.own = Own::LeftOpen(calls);
    }

    /// Whether the reply has gone up: no call can be made under it any more.
    #[must_use]
    pub const fn is_handed_up(&self) -> bool {
        self.is_handed_up
    }

    /// What goes up with the reply: the own vote and the calls' ledger. An own branch that has not voted by now dooms.
    pub fn hand_up(&mut self, ledger: &Ledger) -> Reply {
        self.is_handed_up = true;
        let own = match &self.own {
            Own::Voted(vote) => Some(vote.clone()),
            Own::None | Own::Open | Own::LeftOpen(_) => None,
        };
        let mut reply = ledger.reply(self.execution, own);
        if let Own::LeftOpen(calls) = self.own {
            reply.add_open(calls);
        }
        if matches!(self.own, Own::Open) {
            reply.dooms.push(Doom {
                call: self.call,
                cause: AbortCause::new(
                    AbortKind::Doomed,
                    "the branch had not voted when the method answered",
                ),
            });
        }
        reply
    }

    /// Ends the execution without a reply.
    pub fn close(&mut self) {
        self.is_handed_up = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use bytes::Bytes;
    use synod_proto::ids::ResourceId;
    use synod_proto::session::Vote;

    const OWN: Lineage = Lineage([1; 16]);
    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn context(began_at: u64, deadline: u64) -> CallContext {
        CallContext {
            lineage: OWN,
            gtid: Gtid::new(UnixMillis(began_at), [0; 10]),
            call: CallId(1),
            deadline: UnixMillis(deadline),
        }
    }

    /// T11, T14: each reason by name, at its edge.
    #[test]
    fn work_is_refused_under_another_coordinator_from_the_future_and_after_the_deadline() {
        let skew = CLOCK_SKEW_MS_MAX;
        let check = |context: CallContext| context.check(OWN, NOW, false);
        assert_eq!(check(context(NOW.0, NOW.0 + 1)), Ok(()));
        assert_eq!(check(context(NOW.0 + skew, NOW.0 + skew + 1)), Ok(()));
        let late = context(NOW.0 - 5, NOW.0);
        assert_eq!(
            check(late),
            Err(ArrivalRefused::DeadlinePassed { gtid: late.gtid })
        );
        let early = context(NOW.0 + skew + 1, NOW.0 + skew + 2);
        assert_eq!(
            check(early),
            Err(ArrivalRefused::FromFuture {
                gtid: early.gtid,
                ahead_ms: skew + 1
            })
        );
        let far = context(NOW.0, NOW.0 + DEADLINE_MS_MAX + 1);
        assert_eq!(check(far), Err(ArrivalRefused::DeadlineTooFar { gtid: far.gtid }));
        let one = context(NOW.0, NOW.0 + 1);
        assert_eq!(
            one.check(OWN, NOW, true),
            Err(ArrivalRefused::Decided { gtid: one.gtid })
        );
        let found = Lineage([2; 16]);
        let foreign = CallContext {
            lineage: found,
            ..one
        };
        let gtid = one.gtid;
        assert_eq!(
            check(foreign),
            Err(ArrivalRefused::ForeignLineage {
                gtid,
                found,
                own: OWN
            })
        );
    }

    /// T2, T4: one branch goes by the call's own id; one that has not voted dooms; nothing follows the reply.
    #[test]
    fn an_execution_has_one_branch_of_its_own_and_answers_for_it() {
        let one = context(NOW.0, NOW.0 + 1);
        let ledger = Ledger::new(OWN, one.gtid, one.deadline, 7);
        let mut execution = Execution::new(one.call, ExecutionId(5));
        assert_eq!(execution.begin_own(), Some((CallId(1), ExecutionId(5))));
        assert_eq!(execution.begin_own(), None);
        let mut unvoted = execution.clone();
        assert_eq!(unvoted.hand_up(&ledger).dooms.len(), 1);
        execution.on_own_vote(BranchVote {
            call: CallId(1),
            execution: ExecutionId(5),
            resource: ResourceId([0; 16]),
            vote: Vote::Abort { cause: String::new() },
            digest: 0,
            database_transaction: Bytes::new(),
        });
        let reply = execution.hand_up(&ledger);
        assert_eq!(
            (reply.execution, reply.votes.len(), reply.dooms.len()),
            (ExecutionId(5), 1, 0)
        );
        let mut fresh = Execution::new(one.call, ExecutionId(6));
        fresh.close();
        assert!(fresh.is_handed_up() && fresh.begin_own().is_none());
    }
}
