//! Replica to replica: one long-lived gRPC stream in each direction between every two.
//!
//! The replica that sends opens the stream ([`keep_link`]); the other reads it ([`Incoming`]). Whatever lies queued is
//! sent as one message, without timers. A queue that is full drops what comes next, and a stream that breaks drops
//! what it held: Paxos tolerates loss, and the core repeats what matters. Nothing is decided here.

mod incoming;
mod outgoing;
pub(crate) mod wire;

pub(crate) use incoming::Incoming;
pub(crate) use outgoing::{LinkSender, Sent, keep_link};

use crate::config::REPLICA_COUNT_MAX;
use std::collections::BTreeSet;
use std::fmt;
use synod_coordinator_core::paxos::Envelope;
use synod_proto::ids::{ClusterId, ReplicaId};
use synod_proto::v1;

/// Counts the incompatible changes of what replicas say to each other.
const PROTOCOL_VERSION: u32 = 3;

/// The longest message on a link, in bytes. Catch-up and promises carry many entries, so it is far above what a client
/// may send.
pub(crate) const LINK_MESSAGE_BYTES_MAX: usize = 64 << 20;

/// What the links tell the driver.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// Messages of one peer, in its order.
    Envelopes(Vec<Envelope>),
    /// The stream to this peer stands.
    Connected(ReplicaId, LinkSender),
    /// It broke.
    Disconnected(ReplicaId),
}

/// Who speaks on this side.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) cluster: ClusterId,
    pub(crate) replica: ReplicaId,
    pub(crate) replicas: BTreeSet<ReplicaId>,
}

impl Identity {
    fn greeting(&self, to: ReplicaId) -> v1::LinkMessage {
        v1::LinkMessage {
            message: Some(v1::link_message::Message::Greeting(v1::Greeting {
                cluster: self.cluster.to_string(),
                replica: u32::from(self.replica.0),
                to: u32::from(to.0),
                protocol_version: PROTOCOL_VERSION,
                replicas: self.replicas.iter().map(|replica| u32::from(replica.0)).collect(),
            })),
        }
    }

    /// Checks the other side's greeting. `expected` is set where this side chose whom it called.
    fn check(
        &self,
        message: Option<v1::LinkMessage>,
        expected: Option<ReplicaId>,
    ) -> Result<ReplicaId, Refused> {
        let Some(v1::link_message::Message::Greeting(greeting)) = message.and_then(|message| message.message)
        else {
            return Err(Refused::NoGreeting);
        };
        if greeting.protocol_version != PROTOCOL_VERSION {
            return Err(Refused::Version {
                theirs: greeting.protocol_version,
            });
        }
        if greeting.cluster != self.cluster.as_str() {
            let theirs = greeting.cluster.chars().take(64).collect();
            return Err(Refused::Cluster {
                theirs,
                ours: self.cluster.clone(),
            });
        }
        let Ok(from) = wire::replica("replica", greeting.replica) else {
            return Err(Refused::UnknownReplica {
                theirs: greeting.replica,
                known: self.replicas.clone(),
            });
        };
        if expected.is_some_and(|expected| from != expected) {
            return Err(Refused::OtherReplica {
                meant: expected.unwrap_or_default(),
                is: from,
            });
        }
        if from == self.replica {
            return Err(Refused::SameReplica(from));
        }
        if !self.replicas.contains(&from) {
            return Err(Refused::UnknownReplica {
                theirs: greeting.replica,
                known: self.replicas.clone(),
            });
        }
        if greeting.to != u32::from(self.replica.0) {
            let meant = wire::replica("to", greeting.to).unwrap_or_default();
            return Err(Refused::OtherReplica {
                meant,
                is: self.replica,
            });
        }
        // Two sets are two quorums, which need not meet: nothing is said to a replica that counts another one (L6).
        let ours = self.replicas.iter().map(|replica| u32::from(replica.0));
        if ours.collect::<BTreeSet<_>>() != greeting.replicas.iter().copied().collect() {
            return Err(Refused::OtherReplicas {
                from,
                // A clear sentence needs no more of what somebody else sent.
                theirs: greeting.replicas.into_iter().take(REPLICA_COUNT_MAX).collect(),
                ours: self.replicas.clone(),
            });
        }
        Ok(from)
    }
}

/// Why a greeting was refused, and so what to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    NoGreeting,
    Version {
        theirs: u32,
    },
    Cluster {
        theirs: String,
        ours: ClusterId,
    },
    UnknownReplica {
        theirs: u32,
        known: BTreeSet<ReplicaId>,
    },
    OtherReplica {
        meant: ReplicaId,
        is: ReplicaId,
    },
    SameReplica(ReplicaId),
    OtherReplicas {
        from: ReplicaId,
        theirs: Vec<u32>,
        ours: BTreeSet<ReplicaId>,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGreeting => {
                f.write_str("the other side did not introduce itself: is it a replica of Synod?")
            }
            Self::Version { theirs } => {
                write!(
                    f,
                    "the other replica speaks version {theirs} of the links, this one {PROTOCOL_VERSION}: run the same program on all"
                )
            }
            Self::Cluster { theirs, ours } => {
                write!(
                    f,
                    "wrong cluster: that replica belongs to `{theirs}`, this one to `{ours}`: check the addresses under `peers`"
                )
            }
            Self::UnknownReplica { theirs, known } => {
                write!(
                    f,
                    "unknown replica {theirs}: this cluster has {}: give every replica the same `peers`",
                    list(known)
                )
            }
            Self::OtherReplicas { from, theirs, ours } => {
                write!(
                    f,
                    "other members: replica {from} was started with the replicas {}, this one with {}: give every replica the same `peers`",
                    list(theirs),
                    list(ours)
                )
            }
            Self::OtherReplica { meant, is } => {
                write!(
                    f,
                    "meant for replica {meant}, but replica {is} is at this address: check the addresses under `peers`"
                )
            }
            Self::SameReplica(replica) => {
                write!(
                    f,
                    "two processes claim to be replica {replica}: give each its own number, directory and address"
                )
            }
        }
    }
}

/// `1, 2, 3`.
fn list<T: ToString>(replicas: impl IntoIterator<Item = T>) -> String {
    let replicas: Vec<_> = replicas.into_iter().map(|replica| replica.to_string()).collect();
    replicas.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(cluster: &str, replica: u8, replicas: &[u8]) -> Identity {
        Identity {
            cluster: cluster.parse().expect("a cluster id"),
            replica: ReplicaId(replica),
            replicas: replicas.iter().copied().map(ReplicaId).collect(),
        }
    }

    #[test]
    fn each_mismatch_is_told_by_name() {
        let me = identity("orders", 1, &[1, 2, 3]);
        let greet = |from: Identity, to: u8| me.check(Some(from.greeting(ReplicaId(to))), None);
        assert_eq!(greet(identity("orders", 2, &[1, 2, 3]), 1), Ok(ReplicaId(2)));
        assert_eq!(
            greet(identity("other", 2, &[1, 2, 3]), 1),
            Err(Refused::Cluster {
                theirs: "other".to_owned(),
                ours: me.cluster.clone()
            })
        );
        assert_eq!(
            greet(identity("orders", 4, &[4]), 1),
            Err(Refused::UnknownReplica {
                theirs: 4,
                known: me.replicas.clone()
            })
        );
        assert_eq!(
            greet(identity("orders", 2, &[1, 2, 3]), 3),
            Err(Refused::OtherReplica {
                meant: ReplicaId(3),
                is: ReplicaId(1)
            })
        );
        assert_eq!(
            greet(identity("orders", 1, &[1, 2, 3]), 1),
            Err(Refused::SameReplica(ReplicaId(1)))
        );
        for theirs in [&[2][..], &[1, 2], &[1, 2, 3, 4]] {
            let refused = greet(identity("orders", 2, theirs), 1);
            let expected = Refused::OtherReplicas {
                from: ReplicaId(2),
                theirs: theirs.iter().copied().map(u32::from).collect(),
                ours: me.replicas.clone(),
            };
            assert_eq!(
                refused,
                Err(expected),
                "two sets of replicas are two clusters (L6)"
            );
        }
        assert_eq!(
            greet(identity("orders", 2, &[1, 2]), 1).map_err(|refused| refused.to_string()),
            Err("other members: replica 2 was started with the replicas 1, 2, this one with 1, 2, 3: give every replica \
                 the same `peers`"
                .to_owned())
        );
        assert_eq!(me.check(None, None), Err(Refused::NoGreeting));
        let newer = v1::Greeting {
            protocol_version: PROTOCOL_VERSION + 1,
            ..Default::default()
        };
        let newer = v1::LinkMessage {
            message: Some(v1::link_message::Message::Greeting(newer)),
        };
        assert_eq!(
            me.check(Some(newer), None),
            Err(Refused::Version {
                theirs: PROTOCOL_VERSION + 1
            })
        );
        let answer = identity("orders", 3, &[1, 2, 3]).greeting(ReplicaId(1));
        assert_eq!(
            me.check(Some(answer), Some(ReplicaId(2))),
            Err(Refused::OtherReplica {
                meant: ReplicaId(2),
                is: ReplicaId(3)
            })
        );
    }
}
