//! What can happen to a replica, and how a trace tells it.

use super::host::short;
use bytes::Bytes;
use std::fmt;
use synod_coordinator_core::paxos::{Envelope, Message};
use synod_proto::ids::ReplicaId;

/// What happens to a host.
#[derive(Clone, Debug, Hash)]
pub enum Event {
    /// A message arrives.
    Arrival(Envelope),
    /// Its election timer fires, and one peer answers the pre-vote with "yes" and with the highest round there is.
    Stand {
        /// Who.
        replica: ReplicaId,
        /// The highest round so far.
        round: u64,
    },
    /// The leader's heartbeat timer fires.
    Beat(ReplicaId),
    /// A session proposes one of the two values.
    Submit {
        /// At which replica.
        replica: ReplicaId,
        /// The encoded proposal.
        command: Bytes,
    },
    /// The write under way is on disk.
    Synced(ReplicaId),
    /// The process dies and starts again at once; that it is away for a while is the same as slow messages.
    Crash {
        /// Who.
        replica: ReplicaId,
        /// The write under way is on disk all the same.
        is_kept: bool,
    },
    /// Something happens, and the process dies before what it wrote because of it is on disk. Requests that may leave
    /// early (L2) have left.
    CrashIn(Box<Event>),
}

impl Event {
    /// Where it happens.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        match self {
            Self::Arrival(envelope) => envelope.to,
            Self::CrashIn(event) => event.replica(),
            Self::Stand { replica, .. }
            | Self::Beat(replica)
            | Self::Submit { replica, .. }
            | Self::Synced(replica)
            | Self::Crash { replica, .. } => *replica,
        }
    }
}

/// A line of a trace.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arrival(Envelope { from, to, message }) => {
                write!(f, "{to} receives from {from}: ")?;
                match message {
                    Message::Accept {
                        ballot,
                        slot,
                        value,
                        decided_up_to,
                    } => {
                        let value = short(value) >> 48;
                        write!(
                            f,
                            "Accept {ballot}, slot {slot}, value {value:04x}, decided up to {decided_up_to}"
                        )
                    }
                    message => write!(f, "{message:?}"),
                }
            }
            Self::CrashIn(event) => write!(
                f,
                "{event}; it dies before its write is on disk, and starts again"
            ),
            Self::Stand { replica, round } => write!(f, "{replica} stands, above round {round}"),
            Self::Beat(replica) => write!(f, "{replica} sends heartbeats"),
            Self::Submit { replica, command } => {
                write!(f, "{replica} is asked to log {:04x}", short(command) >> 48)
            }
            Self::Synced(replica) => write!(f, "{replica}: the write is on disk"),
            Self::Crash {
                replica,
                is_kept: true,
            } => write!(f, "{replica} dies; its write is on disk; it starts again"),
            Self::Crash {
                replica,
                is_kept: false,
            } => write!(f, "{replica} dies; its write is lost; it starts again"),
        }
    }
}
