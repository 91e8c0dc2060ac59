//! How often a run came past each named point of the system. It finds nothing wrong with a run, but with a *set* of runs
//! that claims to have tested what it never reached: see [`REQUIRED`].

use crate::host::{Host, Output};
use std::collections::BTreeMap;
use synod_coordinator_core::effects::Notice;
use synod_coordinator_core::paxos::Message;
use synod_coordinator_core::replica::Ignored;
use synod_proto::session::{Answer, Decision, Outcome, Refusal, Response, TransactionStatus};

/// A point: its group and its name.
pub type Point = (&'static str, &'static str);

/// The points that any thousand seeds must reach. Points of other names are counted where they occur.
///
/// Not required, since no seed's workload leads there: a foreign lineage, a full queue and an unreadable entry are
/// brought about by scripted tests.
pub const REQUIRED: &[Point] = &[
    ("sent", "hello"),
    ("sent", "hello answer"),
    ("sent", "hello answer with a contradiction"),
    ("sent", "pre-vote"),
    ("sent", "pre-vote granted"),
    ("sent", "pre-vote denied"),
    ("sent", "paxos prepare"),
    ("sent", "promise"),
    ("sent", "promise with accepted values"),
    ("sent", "promise with unreadable slots"),
    ("sent", "accept"),
    ("sent", "accepted"),
    ("sent", "nack"),
    ("sent", "heartbeat"),
    ("sent", "heartbeat answer"),
    ("sent", "catch up"),
    ("sent", "decided values"),
    ("told", "registered"),
    ("told", "decided committed"),
    ("told", "decided aborted"),
    ("told", "answered committed"),
    ("told", "answered aborted"),
    ("told", "answered undecided"),
    ("told", "deliver committed"),
    ("told", "deliver aborted"),
    ("told", "delivered"),
    ("told", "decided mismatch"),
    ("told", "decided expired"),
    ("told", "status committed"),
    ("told", "status aborted"),
    ("told", "status undecided"),
    ("told", "status expired"),
    ("told", "prepare"),
    ("told", "listed"),
    ("told", "settled"),
    ("told", "low water"),
    ("told", "refused: overloaded"),
    ("told", "refused: from the future"),
    ("told", "refused: not the leader"),
    ("notice", "leading"),
    ("notice", "following"),
    ("notice", "admitted"),
    ("notice", "not admitted"),
    ("notice", "peer contradicted"),
    ("notice", "hazard"),
    ("stepped down", "another replica leads in a higher ballot"),
    ("stepped down", "another replica has promised a higher ballot"),
    ("stepped down", "no quorum was heard"),
    ("stepped down", "the process is about to end"),
    ("ignored", "stale ballot"),
    ("ignored", "stale answer"),
    ("ignored", "stale slot"),
    ("ignored", "not leading"),
    ("ignored", "not admitted"),
    ("ignored", "not writable"),
    ("ignored", "unknown delivery"),
    ("ignored", "discontinuous"),
    ("disk", "write"),
    ("disk", "read for a lagging replica"),
    ("disk", "failed for good"),
    ("disk fault", "an operation failed"),
    ("disk fault", "bit flip"),
    ("disk fault", "crash at an operation"),
    ("disk fault", "crash during recovery"),
    ("disk fault", "misdirected write"),
    ("disk fault", "put back"),
    ("disk fault", "swapped directory refused"),
    ("disk fault", "truncated file"),
    ("disk fault", "wiped"),
    ("bank", "a branch rolled back by hand"),
    ("bank", "a branch unknown to its store"),
    ("bank", "a call executed again"),
    ("bank", "a call made again"),
    ("bank", "a call refused by its open branch"),
    ("bank", "a call taken out by name"),
    ("bank", "a further call in an open branch"),
    ("bank", "a hazard noticed"),
    ("bank", "a prepare that failed"),
    ("bank", "a start with prepared branches"),
    ("bank", "an open branch asked for its vote"),
    ("bank", "an open branch votes: abort"),
    ("bank", "an open branch votes: commit"),
    ("bank", "an open branch votes: read-only"),
    ("bank", "an outcome applied before"),
    ("bank", "an outcome that could not be applied at first"),
    ("bank", "committed"),
    ("bank", "forgotten"),
    ("bank", "handed over and undone"),
    ("bank", "in doubt"),
    ("bank", "power lost in the middle of a write"),
    ("bank", "vote: commit"),
    ("bank", "vote: read-only"),
];

/// Counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Points {
    counts: BTreeMap<Point, u64>,
}

impl Points {
    /// After every turn of a replica.
    pub(super) fn after_turn(&mut self, host: &Host, output: &Output) {
        for envelope in &output.envelopes {
            self.pass("sent", name_of_message(&envelope.message));
        }
        for told in &output.told {
            self.pass("told", name_of_response(&told.response));
        }
        for notice in &output.notices {
            match notice {
                Notice::SteppedDown { reason } => self.pass("stepped down", reason),
                other => self.pass("notice", name_of_notice(other)),
            }
        }
        for reason in host.replica().into_iter().flat_map(|replica| replica.ignored()) {
            self.pass("ignored", name_of_ignored(*reason));
        }
        for (is_passed, name) in [
            (output.write_began, "write"),
            (!output.fetches.is_empty(), "read for a lagging replica"),
            (output.is_over, "failed for good"),
        ] {
            if is_passed {
                self.pass("disk", name);
            }
        }
    }

    /// A fault of a disk took hold: a plan may ask for what its run has no occasion for.
    pub(crate) fn on_disk_fault(&mut self, name: &'static str) {
        self.pass("disk fault", name);
    }

    /// Counts what a workload says of itself.
    pub fn count(&mut self, group: &'static str, name: &'static str, count: u64) {
        *self.counts.entry((group, name)).or_default() += count;
    }

    fn pass(&mut self, group: &'static str, name: &'static str) {
        *self.counts.entry((group, name)).or_default() += 1;
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (point, count) in &other.counts {
            *self.counts.entry(*point).or_default() += count;
        }
    }

    /// Every required point and every other that was reached, with its count.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Point, u64> {
        let mut counts: BTreeMap<Point, u64> = REQUIRED.iter().map(|point| (*point, 0)).collect();
        counts.extend(&self.counts);
        counts
    }

    /// The required points that were never reached.
    #[must_use]
    pub fn missing(&self) -> Vec<Point> {
        REQUIRED
            .iter()
            .copied()
            .filter(|point| !self.counts.contains_key(point))
            .collect()
    }
}

fn name_of_message(message: &Message) -> &'static str {
    match message {
        Message::Hello { .. } => "hello",
        Message::HelloAnswer {
            contradiction: None, ..
        } => "hello answer",
        Message::HelloAnswer {
            contradiction: Some(_),
            ..
        } => "hello answer with a contradiction",
        Message::PreVote { .. } => "pre-vote",
        Message::PreVoteAnswer { granted: true, .. } => "pre-vote granted",
        Message::PreVoteAnswer { granted: false, .. } => "pre-vote denied",
        Message::Prepare { .. } => "paxos prepare",
        Message::Promise { unreadable, .. } if !unreadable.is_empty() => "promise with unreadable slots",
        Message::Promise { accepted, .. } if !accepted.is_empty() => "promise with accepted values",
        Message::Promise { .. } => "promise",
        Message::Accept { .. } => "accept",
        Message::Accepted { .. } => "accepted",
        Message::Nack { .. } => "nack",
        Message::Heartbeat { .. } => "heartbeat",
        Message::HeartbeatAnswer { .. } => "heartbeat answer",
        Message::CatchUp { .. } => "catch up",
        Message::Decided { .. } => "decided values",
    }
}

fn name_of_response(response: &Response) -> &'static str {
    match response {
        Response::Registered { .. } => "registered",
        Response::Decided { decision, .. } => match decision {
            Decision::Committed => "decided committed",
            Decision::Aborted(_) => "decided aborted",
            Decision::Mismatch => "decided mismatch",
            Decision::Expired => "decided expired",
            Decision::Settled => "settled",
        },
        Response::Answered { answer, .. } => match answer {
            Answer::Committed => "answered committed",
            Answer::Aborted => "answered aborted",
            Answer::Undecided => "answered undecided",
        },
        Response::Deliver {
            outcome: Outcome::Committed,
            ..
        } => "deliver committed",
        Response::Deliver {
            outcome: Outcome::Aborted,
            ..
        } => "deliver aborted",
        Response::Prepare { .. } => "prepare",
        Response::LowWater { .. } => "low water",
        Response::Status { status, .. } => match status {
            TransactionStatus::Undecided => "status undecided",
            TransactionStatus::Committed { .. } => "status committed",
            TransactionStatus::Aborted(_) => "status aborted",
            TransactionStatus::Expired => "status expired",
        },
        Response::Delivered { .. } => "delivered",
        Response::Listed { .. } => "listed",
        Response::ListedInDoubt { .. } => "listed in doubt",
        Response::Refused { refusal, .. } => match refusal {
            Refusal::NotLeader { .. } => "refused: not the leader",
            Refusal::Overloaded { .. } => "refused: overloaded",
            Refusal::Invalid { .. } => "refused: invalid",
            Refusal::FromFuture { .. } => "refused: from the future",
            Refusal::ForeignLineage { .. } => "refused: foreign lineage",
            Refusal::NotFound { .. } => "refused: not found",
            Refusal::ReadOnly { .. } => "refused: read-only",
        },
    }
}

fn name_of_notice(notice: &Notice) -> &'static str {
    match notice {
        Notice::Leading(_) => "leading",
        Notice::SteppedDown { reason } => reason,
        Notice::Following(_) => "following",
        Notice::Admitted => "admitted",
        Notice::NotAdmitted { .. } => "not admitted",
        Notice::PeerContradicted { .. } => "peer contradicted",
        Notice::CannotApply { .. } => "cannot apply",
        Notice::Conflict { .. } => "conflict",
        Notice::Hazard { .. } => "hazard",
    }
}

fn name_of_ignored(reason: Ignored) -> &'static str {
    match reason {
        Ignored::UnknownReplica => "unknown replica",
        Ignored::NotAdmitted => "not admitted",
        Ignored::NotWritable => "not writable",
        Ignored::StaleBallot => "stale ballot",
        Ignored::StaleAnswer => "stale answer",
        Ignored::StaleSlot => "stale slot",
        Ignored::TooFarAhead => "too far ahead",
        Ignored::Discontinuous => "discontinuous",
        Ignored::NotLeading => "not leading",
        Ignored::UnknownDelivery => "unknown delivery",
        Ignored::ForeignLineage => "foreign lineage",
        _ => "another reason",
    }
}
