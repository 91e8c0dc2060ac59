//! Replica messages: generated types to domain values and back. Malformed ones are refused here and nowhere else.

use std::fmt;
use synod_coordinator_core::paxos::{Accepted, Ballot, Message, Slot};
use synod_proto::ids::{Incarnation, ProcessNonce, ReplicaId, UnixMillis};
use synod_proto::v1;
use synod_proto::v1::paxos_message::Message as Wire;

/// A message that no replica of this version sends. The link that carried it is closed: loss is something that Paxos
/// tolerates, a misread message is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    field: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a replica's message has no valid `{}`; do all replicas run the same version?",
            self.field
        )
    }
}

impl std::error::Error for Malformed {}

/// Reads a replica's number. 0 is none.
pub(super) fn replica(field: &'static str, wire: u32) -> Result<ReplicaId, Malformed> {
    match u8::try_from(wire) {
        Ok(id) if id != 0 => Ok(ReplicaId(id)),
        _ => Err(Malformed { field }),
    }
}

/// Writes a ballot.
pub(crate) fn from_ballot(ballot: Ballot) -> v1::Ballot {
    v1::Ballot {
        round: ballot.round,
        replica: u32::from(ballot.replica.0),
        start: ballot.start,
    }
}

/// Reads a ballot. Replica 0 only occurs in [`Ballot::ZERO`], which is a valid "none promised yet".
fn ballot(field: &'static str, wire: Option<v1::Ballot>) -> Result<Ballot, Malformed> {
    let wire = wire.ok_or(Malformed { field })?;
    let replica = u8::try_from(wire.replica).map_err(|_| Malformed { field })?;
    Ok(Ballot {
        round: wire.round,
        replica: ReplicaId(replica),
        start: wire.start,
    })
}

/// Writes a message. Values are shared, not copied.
pub(crate) fn from_message(message: Message) -> v1::PaxosMessage {
    let wire = match message {
        Message::Hello {
            incarnation,
            start,
            process,
            promised,
            accepted_up_to,
        } => Wire::Hello(v1::Hello {
            incarnation: incarnation.0.to_vec().into(),
            start,
            process: process.0,
            promised: Some(from_ballot(promised)),
            accepted_up_to: accepted_up_to.0,
        }),
        Message::HelloAnswer {
            start,
            process,
            contradiction,
            ballot,
            slot,
        } => Wire::HelloAnswer(v1::HelloAnswer {
            start,
            process: process.0,
            contradiction: contradiction.unwrap_or_default(),
            ballot: Some(from_ballot(ballot)),
            slot: slot.0,
        }),
        Message::PreVote { attempt } => Wire::PreVote(v1::PreVote { attempt }),
        Message::PreVoteAnswer {
            attempt,
            granted,
            round,
            decided_up_to,
        } => Wire::PreVoteAnswer(v1::PreVoteAnswer {
            attempt,
            granted,
            round,
            decided_up_to: decided_up_to.0,
        }),
        Message::Prepare { ballot, above } => Wire::Prepare(v1::Prepare {
            ballot: Some(from_ballot(ballot)),
            above: above.0,
        }),
        Message::Promise {
            ballot,
            decided_up_to,
            first_retained,
            accepted,
            unreadable,
        } => Wire::Promise(v1::Promise {
            ballot: Some(from_ballot(ballot)),
            decided_up_to: decided_up_to.0,
            first_retained: first_retained.0,
            accepted: accepted.into_iter().map(from_accepted).collect(),
            unreadable: unreadable.into_iter().map(|slot| slot.0).collect(),
        }),
        Message::Accept {
            ballot,
            slot,
            value,
            decided_up_to,
        } => Wire::Accept(v1::Accept {
            ballot: Some(from_ballot(ballot)),
            slot: slot.0,
            value,
            decided_up_to: decided_up_to.0,
        }),
        Message::Accepted { ballot, slot } => Wire::Accepted(v1::Accepted {
            ballot: Some(from_ballot(ballot)),
            slot: slot.0,
        }),
        Message::Nack { ballot, promised } => Wire::Nack(v1::Nack {
            ballot: Some(from_ballot(ballot)),
            promised: Some(from_ballot(promised)),
        }),
        Message::Heartbeat {
            ballot,
            decided_up_to,
            sequence,
            has_quorum,
        } => Wire::Heartbeat(v1::Heartbeat {
            ballot: Some(from_ballot(ballot)),
            decided_up_to: decided_up_to.0,
            sequence,
            has_quorum,
        }),
        Message::HeartbeatAnswer {
            ballot,
            sequence,
            wall,
        } => Wire::HeartbeatAnswer(v1::HeartbeatAnswer {
            ballot: Some(from_ballot(ballot)),
            sequence,
            wall_unix_ms: wall.0,
        }),
        Message::CatchUp { above } => Wire::CatchUp(v1::CatchUp { above: above.0 }),
        Message::Decided {
            first,
            values,
            decided_up_to,
        } => Wire::Decided(v1::DecidedValues {
            first: first.0,
            values,
            decided_up_to: decided_up_to.0,
        }),
    };
    v1::PaxosMessage { message: Some(wire) }
}

fn from_accepted(accepted: Accepted) -> v1::AcceptedValue {
    v1::AcceptedValue {
        slot: accepted.slot.0,
        ballot: Some(from_ballot(accepted.ballot)),
        value: accepted.value,
    }
}

/// Reads a slot that a value lies in: slot 0 is "before the first" and holds none.
fn value_slot(field: &'static str, wire: u64) -> Result<Slot, Malformed> {
    if wire == 0 {
        Err(Malformed { field })
    } else {
        Ok(Slot(wire))
    }
}

/// Reads a message.
///
/// # Errors
/// A field is missing or out of its range, or the message is of a kind that this version does not know.
pub(crate) fn to_message(wire: v1::PaxosMessage) -> Result<Message, Malformed> {
    Ok(match wire.message.ok_or(Malformed { field: "message" })? {
        Wire::Hello(hello) => Message::Hello {
            incarnation: Incarnation(
                hello.incarnation[..]
                    .try_into()
                    .map_err(|_| Malformed { field: "incarnation" })?,
            ),
            start: hello.start,
            process: ProcessNonce(hello.process),
            promised: ballot("promised", hello.promised)?,
            accepted_up_to: Slot(hello.accepted_up_to),
        },
        Wire::HelloAnswer(answer) => Message::HelloAnswer {
            start: answer.start,
            process: ProcessNonce(answer.process),
            contradiction: Some(answer.contradiction).filter(|text| !text.is_empty()),
            ballot: ballot("ballot", answer.ballot)?,
            slot: Slot(answer.slot),
        },
        Wire::PreVote(ask) => Message::PreVote { attempt: ask.attempt },
        Wire::PreVoteAnswer(answer) => Message::PreVoteAnswer {
            attempt: answer.attempt,
            granted: answer.granted,
            round: answer.round,
            decided_up_to: Slot(answer.decided_up_to),
        },
        Wire::Prepare(prepare) => Message::Prepare {
            ballot: ballot("ballot", prepare.ballot)?,
            above: Slot(prepare.above),
        },
        Wire::Promise(promise) => Message::Promise {
            ballot: ballot("ballot", promise.ballot)?,
            decided_up_to: Slot(promise.decided_up_to),
            first_retained: Slot(promise.first_retained),
            accepted: promise
                .accepted
                .into_iter()
                .map(to_accepted)
                .collect::<Result<_, _>>()?,
            unreadable: promise
                .unreadable
                .into_iter()
                .map(|slot| value_slot("unreadable", slot))
                .collect::<Result<_, _>>()?,
        },
        Wire::Accept(accept) => Message::Accept {
            ballot: ballot("ballot", accept.ballot)?,
            slot: value_slot("slot", accept.slot)?,
            value: accept.value,
            decided_up_to: Slot(accept.decided_up_to),
        },
        Wire::Accepted(accepted) => Message::Accepted {
            ballot: ballot("ballot", accepted.ballot)?,
            slot: value_slot("slot", accepted.slot)?,
        },
        Wire::Nack(nack) => Message::Nack {
            ballot: ballot("ballot", nack.ballot)?,
            promised: ballot("promised", nack.promised)?,
        },
        Wire::Heartbeat(heartbeat) => Message::Heartbeat {
            ballot: ballot("ballot", heartbeat.ballot)?,
            decided_up_to: Slot(heartbeat.decided_up_to),
            sequence: heartbeat.sequence,
            has_quorum: heartbeat.has_quorum,
        },
        Wire::HeartbeatAnswer(answer) => Message::HeartbeatAnswer {
            ballot: ballot("ballot", answer.ballot)?,
            sequence: answer.sequence,
            wall: UnixMillis(answer.wall_unix_ms),
        },
        Wire::CatchUp(ask) => Message::CatchUp {
            above: Slot(ask.above),
        },
        Wire::Decided(decided) => Message::Decided {
            first: value_slot("first", decided.first)?,
            values: decided.values,
            decided_up_to: Slot(decided.decided_up_to),
        },
    })
}

fn to_accepted(wire: v1::AcceptedValue) -> Result<Accepted, Malformed> {
    Ok(Accepted {
        slot: value_slot("accepted.slot", wire.slot)?,
        ballot: ballot("accepted.ballot", wire.ballot)?,
        value: wire.value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message as _;

    fn ballots() -> impl Strategy<Value = Ballot> {
        (any::<u64>(), any::<u8>(), any::<u64>()).prop_map(|(round, replica, start)| Ballot {
            round,
            replica: ReplicaId(replica),
            start,
        })
    }

    fn values() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn value_slots() -> impl Strategy<Value = Slot> {
        (1..=u64::MAX).prop_map(Slot)
    }

    fn accepteds() -> impl Strategy<Value = Accepted> {
        (value_slots(), ballots(), values()).prop_map(|(slot, ballot, value)| Accepted {
            slot,
            ballot,
            value,
        })
    }

    fn messages() -> impl Strategy<Value = Message> {
        let slots = || any::<u64>().prop_map(Slot);
        prop_oneof![
            (any::<[u8; 16]>(), any::<u64>(), any::<u64>(), ballots(), slots()).prop_map(
                |(i, start, process, promised, accepted_up_to)| {
                    Message::Hello {
                        incarnation: Incarnation(i),
                        start,
                        process: ProcessNonce(process),
                        promised,
                        accepted_up_to,
                    }
                }
            ),
            (
                any::<u64>(),
                any::<u64>(),
                proptest::option::of("[a-z]{1,20}"),
                ballots(),
                slots()
            )
                .prop_map(
                    |(start, process, contradiction, ballot, slot)| Message::HelloAnswer {
                        start,
                        process: ProcessNonce(process),
                        contradiction,
                        ballot,
                        slot
                    }
                ),
            any::<u64>().prop_map(|attempt| Message::PreVote { attempt }),
            (any::<u64>(), any::<bool>(), any::<u64>(), slots()).prop_map(
                |(attempt, granted, round, decided_up_to)| Message::PreVoteAnswer {
                    attempt,
                    granted,
                    round,
                    decided_up_to
                }
            ),
            (ballots(), slots()).prop_map(|(ballot, above)| Message::Prepare { ballot, above }),
            (
                ballots(),
                slots(),
                slots(),
                proptest::collection::vec(accepteds(), 0..4),
                proptest::collection::vec(value_slots(), 0..4)
            )
                .prop_map(|(ballot, decided_up_to, first_retained, accepted, unreadable)| {
                    Message::Promise {
                        ballot,
                        decided_up_to,
                        first_retained,
                        accepted,
                        unreadable,
                    }
                }),
            (ballots(), value_slots(), values(), slots()).prop_map(|(ballot, slot, value, decided_up_to)| {
                Message::Accept {
                    ballot,
                    slot,
                    value,
                    decided_up_to,
                }
            }),
            (ballots(), value_slots()).prop_map(|(ballot, slot)| Message::Accepted { ballot, slot }),
            (ballots(), ballots()).prop_map(|(ballot, promised)| Message::Nack { ballot, promised }),
            (ballots(), slots(), any::<u64>(), any::<bool>()).prop_map(
                |(ballot, decided_up_to, sequence, has_quorum)| Message::Heartbeat {
                    ballot,
                    decided_up_to,
                    sequence,
                    has_quorum
                }
            ),
            (ballots(), any::<u64>(), any::<u64>()).prop_map(|(ballot, sequence, wall)| {
                Message::HeartbeatAnswer {
                    ballot,
                    sequence,
                    wall: UnixMillis(wall),
                }
            }),
            slots().prop_map(|above| Message::CatchUp { above }),
            (value_slots(), proptest::collection::vec(values(), 0..4), slots()).prop_map(
                |(first, values, decided_up_to)| Message::Decided {
                    first,
                    values,
                    decided_up_to
                }
            ),
        ]
    }

    proptest! {
        /// What one replica says, the other hears, through the real byte form.
        #[test]
        fn every_message_survives_the_wire(message in messages()) {
            let bytes = from_message(message.clone()).encode_to_vec();
            let wire = v1::PaxosMessage::decode(&bytes[..]).expect("what was encoded decodes");
            prop_assert_eq!(to_message(wire), Ok(message));
        }

        /// Arbitrary bytes are refused or read, and never panic (J6).
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(wire) = v1::PaxosMessage::decode(&bytes[..]) {
                let _ = to_message(wire);
            }
        }
    }

    #[test]
    fn what_is_missing_or_out_of_range_is_named() {
        let refused = |wire| to_message(v1::PaxosMessage { message: wire }).map_err(|error| error.field);
        assert_eq!(refused(None), Err("message"));
        assert_eq!(
            refused(Some(Wire::Prepare(v1::Prepare {
                ballot: None,
                above: 0
            }))),
            Err("ballot")
        );
        let zero_slot = v1::Accepted {
            ballot: Some(v1::Ballot::default()),
            slot: 0,
        };
        assert_eq!(refused(Some(Wire::Accepted(zero_slot))), Err("slot"));
        let wide = v1::Ballot {
            round: 1,
            replica: 256,
            start: 1,
        };
        assert_eq!(
            refused(Some(Wire::Prepare(v1::Prepare {
                ballot: Some(wide),
                above: 0
            }))),
            Err("ballot")
        );
        let short = v1::Hello {
            incarnation: Bytes::from_static(b"short"),
            ..Default::default()
        };
        assert_eq!(refused(Some(Wire::Hello(short))), Err("incarnation"));
    }
}
