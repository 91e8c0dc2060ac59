//! Bugs that are planted to prove that the exploration finds bugs: each bends a message on its way in, or what a
//! restarted process finds on its disk. The cores stay as they are.

use synod_coordinator_core::durable::Recovered;
use synod_coordinator_core::paxos::{Accepted, Ballot, Envelope, Message};

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// An `Accepted` is counted whatever its ballot: it is taken for one of the receiver's own ballot.
    CountAnyBallot,
    /// A restarted process has forgotten its promise, and remembers what it accepted (L2, traps A11).
    ForgetPromise,
    /// A restarted process has forgotten what it accepted, and remembers its promise (L3: it reports the slots as empty).
    ForgetAccepted,
    /// Phase 1 hears of no accepted value, and so proposes none again (P2c).
    DropReports,
    /// Of the accepted values that phase 1 hears of, that of the lowest ballot is proposed again (P2c).
    ChooseLowest,
    /// What waits for the sync leaves without it (L2).
    SendBeforeSync,
    /// A restarted process counts its starts from the same number again, so that it proposes in a ballot of its former
    /// life (L1).
    ReuseStart,
    /// "Decided up to" is believed of the own record, in whatever ballot that was accepted (L4).
    BelieveAnyPrefix,
}

impl Plant {
    /// Every bug.
    pub const ALL: [Self; 8] = [
        Self::CountAnyBallot,
        Self::ForgetPromise,
        Self::ForgetAccepted,
        Self::DropReports,
        Self::ChooseLowest,
        Self::SendBeforeSync,
        Self::ReuseStart,
        Self::BelieveAnyPrefix,
    ];

    /// What arrives instead of a message at a replica that has promised `own`.
    #[must_use]
    pub fn bend(self, mut envelope: Envelope, own: Ballot) -> Envelope {
        match (self, &mut envelope.message) {
            (Self::CountAnyBallot, Message::Accepted { ballot, .. }) => *ballot = own,
            (Self::DropReports, Message::Promise { accepted, .. }) => accepted.clear(),
            (Self::ChooseLowest, Message::Promise { accepted, .. }) => {
                for one in accepted.iter_mut().filter(|one| one.ballot != Ballot::DECIDED) {
                    one.ballot.round = u64::from(u32::MAX) - one.ballot.round;
                }
            }
            _ => {}
        }
        envelope
    }

    /// What a restarted process finds.
    pub fn forget(self, recovered: &mut Recovered, values: &mut Vec<Accepted>) {
        match self {
            Self::ForgetAccepted => {
                recovered.readable.clear();
                values.clear();
            }
            Self::ForgetPromise => recovered.meta.promised = Ballot::ZERO,
            Self::ReuseStart => recovered.meta.start = recovered.meta.start.saturating_sub(1),
            _ => {}
        }
    }
}
