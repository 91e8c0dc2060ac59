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
    ("disk fault", "a sync failed"),
    ("disk fault", "a write failed"),
    ("disk fault", "no write fits any more"),
    ("disk fault", "no write succeeds any more"),
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
    ("messages", "a consumer that answered nothing for too long"),
    ("messages", "a dead letter"),
    ("messages", "a dead letter discarded"),
    ("messages", "a dead letter requeued"),
    ("messages", "a delivery that its store could not serve"),
    ("messages", "a duplicate answered from the inbox"),
    ("messages", "a handler that hung"),
    ("messages", "a handler that panicked"),
    ("messages", "a local transaction rolled back with its messages"),
    ("messages", "a local transaction that published"),
    ("messages", "a low-water mark passed"),
    (
        "messages",
        "a message delivered while a branch in doubt held its own back",
    ),
    ("messages", "a message published in a branch"),
    ("messages", "a publisher that waited for its key"),
    (
        "messages",
        "a relay killed between an acknowledgement and its mark",
    ),
    ("messages", "a scheduled message released"),
    ("messages", "a stream of messages broke"),
    ("messages", "applied"),
    (
        "messages",
        "results of a relay that could not be written at first",
    ),
];

/// Points that a thousand seeds need not reach, shown with the others so that one which is never reached is seen.
pub const OPTIONAL: &[Point] = &[
    ("told", "listed in doubt"),
    ("told", "refused: invalid"),
    ("told", "refused: foreign lineage"),
    ("told", "refused: not found"),
    ("told", "refused: read-only"),
    ("notice", "cannot apply"),
    ("notice", "conflict"),
    ("ignored", "unknown replica"),
    ("ignored", "too far ahead"),
    ("ignored", "foreign lineage"),
    ("ignored", "another reason"),
    ("disk fault", "the disk is full"),
    ("disk fault", "rot in the last batch (limit of L7)"),
    ("disk fault", "refused to open, emptied"),
    ("messages", "a consumer killed between an effect and its answer"),
    ("messages", "a delivery below the low-water mark"),
    ("messages", "a delivery that a later one had overtaken"),
    ("messages", "an operator's call that the store could not answer"),
];

/// Faults that do not strike at once, or strike only if there is something to strike, with the points at which that shows.
/// Records are corrupted by flipped bits: the two kinds share their point.
pub const TOOK_HOLD_LATER: &[(&str, &[Point])] = &[
    (
        "crash at an operation",
        &[("disk fault", "crash at an operation")],
    ),
    (
        "failing operation",
        &[
            ("disk fault", "the disk is full"),
            ("disk fault", "a sync failed"),
            ("disk fault", "a write failed"),
        ],
    ),
    (
        "failing disk",
        &[
            ("disk fault", "no write fits any more"),
            ("disk fault", "no write succeeds any more"),
        ],
    ),
    (
        "damage",
        &[
            ("disk fault", "bit flip"),
            ("disk fault", "truncated file"),
            ("disk fault", "misdirected write"),
        ],
    ),
    ("corrupt record", &[("disk fault", "bit flip")]),
    ("old directory put back", &[("disk fault", "put back")]),
    (
        "power loss at an operation of a service's disk",
        &[("bank", "power lost in the middle of a write")],
    ),
    (
        "failing disk of a service",
        &[("bank", "a disk of a service failed")],
    ),
    (
        "full disk of a service",
        &[("bank", "a disk of a service was full")],
    ),
    (
        "branch rolled back by hand",
        &[("bank", "a branch rolled back by hand")],
    ),
];

const TOOK_HOLD: &str = "fault took hold";
const DROPPED: &str = "fault found nothing to strike";

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

    /// A fault of this kind has happened, and took hold or not.
    pub(crate) fn on_fault(&mut self, kind: &'static str, took_hold: bool) {
        self.pass(if took_hold { TOOK_HOLD } else { DROPPED }, kind);
    }

    /// How often a fault of this kind took hold.
    #[must_use]
    pub fn took_hold_count(&self, kind: &'static str) -> u64 {
        let later = TOOK_HOLD_LATER.iter().find(|(one, _)| *one == kind);
        let at_once = [(TOOK_HOLD, kind)];
        let points = later.map_or(&at_once[..], |(_, points)| *points);
        points.iter().map(|point| self.count_of(point)).sum()
    }

    /// How often a fault of this kind found nothing to strike: a machine that was down, a link that was cut before.
    #[must_use]
    pub fn dropped_count(&self, kind: &'static str) -> u64 {
        self.count_of(&(DROPPED, kind))
    }

    fn count_of(&self, point: &Point) -> u64 {
        self.counts.get(point).copied().unwrap_or_default()
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

    /// Every named point and every other that was reached, with its count. Faults are counted by their kinds instead.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Point, u64> {
        let named = REQUIRED.iter().chain(OPTIONAL);
        let mut counts: BTreeMap<Point, u64> = named.map(|point| (*point, 0)).collect();
        counts.extend(&self.counts);
        counts.retain(|(group, _), _| *group != TOOK_HOLD && *group != DROPPED);
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

#[cfg(test)]
mod tests {
    use super::{OPTIONAL, Points, REQUIRED, TOOK_HOLD_LATER};
    use crate::plan::FAULT_KINDS;

    #[test]
    fn a_fault_takes_hold_where_it_shows() {
        let mut points = Points::default();
        points.on_fault("crash", true);
        points.on_fault("crash", false);
        points.on_disk_fault("a sync failed");
        points.on_disk_fault("the disk is full");
        assert_eq!(
            (points.took_hold_count("crash"), points.dropped_count("crash")),
            (1, 1)
        );
        assert_eq!(points.took_hold_count("failing operation"), 2);
        assert_eq!(points.took_hold_count("failing disk"), 0);
        assert!(
            points.counts().keys().all(|(_, name)| *name != "crash"),
            "faults are no points"
        );
    }

    #[test]
    fn points_and_kinds_are_named_once() {
        for point in OPTIONAL {
            assert!(!REQUIRED.contains(point), "{point:?}");
        }
        for (kind, _) in TOOK_HOLD_LATER {
            assert!(FAULT_KINDS.contains(kind), "{kind}");
        }
    }
}
