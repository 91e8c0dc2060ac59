//! T3, T5: a commit with open branches, against what those branches themselves voted.
//!
//! Two oracles, neither of which shares anything with the coordinator: the rule for what a request is told, written a
//! second time ([`Prepared`]), and the votes as they left the services.

use super::{Check, require};
use crate::linearizability::prepared::Prepared;
use std::collections::BTreeMap;
use synod_coordinator_core::machine::outcomes::{Record, Verdict};
use synod_proto::command::{NamedBranch, Proposal};
use synod_proto::ids::{BranchId, Gtid};
use synod_proto::session::{AskedVote, Decision, OpenBranch, Vote};

/// What open branches voted when they were asked.
#[derive(Debug, Default)]
pub struct OpenVotes {
    votes: BTreeMap<BranchId, Vec<AskedVote>>,
}

impl OpenVotes {
    /// A branch votes.
    pub fn on_voted(&mut self, branch: BranchId, vote: &AskedVote) {
        let votes = self.votes.entry(branch).or_default();
        if !votes.contains(vote) {
            votes.push(vote.clone());
        }
    }

    /// A request to commit with open branches was told Committed, and `record` is what the log says.
    ///
    /// # Errors
    /// The record names a branch that did not vote to commit as it stands there, or leaves out one that did not vote
    /// read-only.
    pub fn check_committed(&self, gtid: Gtid, record: &Record, open: &[OpenBranch]) -> Check {
        let Verdict::Committed { branches, .. } = &record.verdict else {
            return Ok(());
        };
        for one in open {
            let branch = BranchId {
                gtid,
                call: one.call,
                execution: one.execution,
            };
            let votes = self.votes.get(&branch).map_or(&[][..], Vec::as_slice);
            let named = branches
                .iter()
                .find(|named| (named.call, named.execution) == (one.call, one.execution));
            let is_so = match named {
                Some(named) => named.resource == one.resource && votes.iter().any(|vote| is_of(vote, named)),
                None => votes.iter().any(|vote| vote.vote == Vote::ReadOnly),
            };
            require(is_so, || {
                let what = if named.is_some() { "names" } else { "leaves out" };
                format!("the record {what} the open branch {branch}, which voted {votes:?}")
            })?;
        }
        Ok(())
    }
}

fn is_of(vote: &AskedVote, named: &NamedBranch) -> bool {
    vote.vote == Vote::Commit
        && vote.digest == named.digest
        && vote.database_transaction == named.database_transaction
}

/// What a request to commit with open branches is told, when the log says `record`.
#[must_use]
pub fn decision_of(record: &Record, proposal: &Proposal, open: &[OpenBranch]) -> Decision {
    match (&record.verdict, Prepared::new(proposal, open)) {
        (Verdict::Aborted(cause), _) => Decision::Aborted(cause.clone()),
        (
            Verdict::Committed {
                branches,
                read_only_count,
                ..
            },
            Some(asked),
        ) if !asked.may_be(branches, *read_only_count) => Decision::Mismatch,
        (Verdict::Committed { .. }, _) => Decision::Committed,
    }
}

#[cfg(test)]
mod tests {
    use super::{OpenVotes, decision_of};
    use bytes::Bytes;
    use std::collections::BTreeSet;
    use synod_coordinator_core::machine::outcomes::{Record, Verdict};
    use synod_proto::command::{NamedBranch, Proposal};
    use synod_proto::ids::{
        BranchId, CallId, ExecutionId, Gtid, InstanceId, OpenToken, ResourceId, UnixMillis,
    };
    use synod_proto::session::{AskedVote, Decision, OpenBranch, Vote};

    const RESOURCE: ResourceId = ResourceId([1; 16]);

    fn gtid() -> Gtid {
        Gtid::new(UnixMillis(1_000), [3; 10])
    }

    fn named(number: u64) -> NamedBranch {
        NamedBranch {
            call: CallId(number),
            execution: ExecutionId(number),
            resource: RESOURCE,
            digest: number,
            database_transaction: Bytes::new(),
        }
    }

    fn open(number: u64) -> OpenBranch {
        OpenBranch {
            call: CallId(number),
            execution: ExecutionId(number),
            resource: RESOURCE,
            instance: InstanceId([1; 16]),
            token: OpenToken(1),
            call_count: 1,
        }
    }

    fn commit(numbers: &[u64], read_only_count: u32) -> Proposal {
        Proposal::Commit {
            branches: numbers.iter().copied().map(named).collect(),
            read_only_count,
        }
    }

    fn record(numbers: &[u64], read_only_count: u32) -> Record {
        let verdict = Verdict::Committed {
            branches: numbers.iter().copied().map(named).collect(),
            read_only_count,
            settled: BTreeSet::new(),
        };
        Record {
            verdict,
            decided_at: UnixMillis(2_000),
        }
    }

    fn voted(number: u64, vote: Vote) -> OpenVotes {
        let mut votes = OpenVotes::default();
        let branch = BranchId {
            gtid: gtid(),
            call: CallId(number),
            execution: ExecutionId(number),
        };
        let digest = if vote == Vote::Commit { number } else { 0 };
        let vote = AskedVote {
            vote,
            digest,
            database_transaction: Bytes::new(),
        };
        votes.on_voted(branch, &vote);
        votes
    }

    /// T5: found where `MismatchToldCommitted` is planted in the rule for open branches as well.
    #[test]
    fn b5_another_record_than_the_requests_is_a_mismatch() {
        let asked = |record: &Record| decision_of(record, &commit(&[1], 0), &[open(2), open(3)]);
        assert_eq!(asked(&record(&[1, 2, 3], 0)), Decision::Committed);
        assert_eq!(asked(&record(&[1, 2], 1)), Decision::Committed);
        assert_eq!(asked(&record(&[1], 2)), Decision::Committed);
        for another in [
            record(&[1, 2], 0),
            record(&[1, 2], 2),
            record(&[2, 3], 0),
            record(&[1, 2, 3, 4], 0),
            record(&[1, 4], 1),
            record(&[1, 1, 2], 1),
        ] {
            assert_eq!(asked(&another), Decision::Mismatch, "{another:?}");
        }
    }

    /// A branch that voted to commit, and that the record counts as read-only, would be told Aborted: half an order commits.
    #[test]
    fn b5_a_prepared_branch_that_is_left_out_is_found() {
        let left_out = voted(2, Vote::Commit).check_committed(gtid(), &record(&[1], 1), &[open(2)]);
        assert!(left_out.expect_err("found").0.contains("leaves out"));
        let named = voted(2, Vote::Commit).check_committed(gtid(), &record(&[1, 2], 0), &[open(2)]);
        assert_eq!(named, Ok(()));
    }

    /// C1: nobody commits a branch that has not said that it can.
    #[test]
    fn c1_a_branch_that_did_not_vote_and_is_named_is_found() {
        let abort = Vote::Abort {
            cause: "no".to_string(),
        };
        for votes in [OpenVotes::default(), voted(2, Vote::ReadOnly), voted(2, abort)] {
            let named = votes.check_committed(gtid(), &record(&[1, 2], 0), &[open(2)]);
            assert!(named.expect_err("found").0.contains("names"));
        }
        let read_only = voted(2, Vote::ReadOnly).check_committed(gtid(), &record(&[1], 1), &[open(2)]);
        assert_eq!(read_only, Ok(()));
    }
}
