//! The four processes as one kind, for the pool.

use super::cluster::{Cluster, Recorded};
use super::event::Event;
use super::initiator::Initiator;
use super::participant::{Participant, Row};
use crate::explore::fingerprint::Fingerprint;
use crate::explore::pool::Process;
use std::collections::BTreeSet;
use std::hash::Hasher;
use synod_proto::ids::BranchId;
use synod_proto::session::Outcome;

/// Any of the four.
#[derive(Clone, Debug)]
pub enum Player {
    /// The coordinator.
    Coordinator(Box<Cluster>),
    /// The initiator.
    Initiator(Box<Initiator>),
    /// A participant.
    Participant(Box<Participant>),
}

/// What a checker sees of it.
#[derive(Clone, Debug)]
pub enum Facts {
    /// Of the coordinator.
    Coordinator {
        /// What the log ever said.
        recorded: Option<Recorded>,
        /// Whether nothing waits for an acknowledgement.
        is_finished: bool,
        /// Whether the deadline has passed.
        is_late: bool,
    },
    /// Of the initiator.
    Initiator {
        /// What it was told.
        told: BTreeSet<Outcome>,
        /// Whether it waits for the outcome.
        has_asked: bool,
        /// Whether the user may still choose.
        is_open: bool,
    },
    /// Of a participant: what its database holds.
    Participant(Vec<(BranchId, Row)>),
}

impl Process for Player {
    type Event = Event;
    type Facts = Facts;

    fn fingerprint(&self) -> u128 {
        let mut fingerprint = Fingerprint::new();
        match self {
            Self::Coordinator(cluster) => cluster.hash_state(&mut fingerprint),
            Self::Initiator(initiator) => {
                fingerprint.write_u8(1);
                initiator.hash_state(&mut fingerprint);
            }
            Self::Participant(participant) => {
                fingerprint.write_u8(2);
                participant.hash_state(&mut fingerprint);
            }
        }
        fingerprint.value()
    }

    fn facts(&self) -> Facts {
        match self {
            Self::Coordinator(cluster) => Facts::Coordinator {
                recorded: cluster.recorded().cloned(),
                is_finished: cluster.is_finished(),
                is_late: cluster.is_late(),
            },
            Self::Initiator(initiator) => Facts::Initiator {
                told: initiator.told().clone(),
                has_asked: initiator.has_asked(),
                is_open: initiator.is_open(),
            },
            Self::Participant(participant) => Facts::Participant(
                participant
                    .rows()
                    .iter()
                    .map(|(branch, row)| (*branch, *row))
                    .collect(),
            ),
        }
    }

    fn react(&mut self, event: &Event) -> Result<Vec<Event>, String> {
        match self {
            Self::Coordinator(cluster) => cluster.react(event),
            Self::Initiator(initiator) => initiator.react(event),
            Self::Participant(participant) => participant.react(event),
        }
    }
}
