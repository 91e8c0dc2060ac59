//! What relays and inboxes say, from the wire and back.

use super::{Malformed, Reason, id_bytes, limited, lineage, present, resource, sixteen, text, unknown};
use crate::ids::{Fence, MessageId, Position, Sequence, UnixMillis};
use crate::limits::{
    DELIVERY_COUNT_MAX, HEADER_BYTES_MAX, HEADER_COUNT_MAX, MESSAGE_BODY_BYTES_MAX, MESSAGE_KEY_BYTES_MAX,
    TEXT_BYTES_MAX, TOPIC_BYTES_MAX, UNSETTLED_COUNT_MAX,
};
use crate::message::{Answer, Answered, Delivery, Hello, InboxFrame, LowWater, RelayFrame, Welcome};
use crate::v1;
use crate::v1::delivery_answer::Answer as WireAnswer;
use crate::v1::inbox_frame::Frame as FromInbox;
use crate::v1::relay_frame::Frame as FromRelay;

const NOTHING: v1::Nothing = v1::Nothing {};

fn name(field: &'static str, value: String) -> Result<String, Malformed> {
    if value.is_empty() {
        return Err(Malformed {
            field,
            reason: Reason::Missing,
        });
    }
    limited(field, "bytes", value.len(), TOPIC_BYTES_MAX)?;
    Ok(value)
}

/// Positions count from 1.
fn position(field: &'static str, value: u64) -> Result<Position, Malformed> {
    if value == 0 {
        return Err(unknown(field, 0));
    }
    Ok(Position(value))
}

/// A text that only explains is cut to its limit: losing its end is better than losing the answer.
fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        text.truncate(end);
    }
    text
}

impl TryFrom<v1::RelayFrame> for RelayFrame {
    type Error = Malformed;

    fn try_from(wire: v1::RelayFrame) -> Result<Self, Malformed> {
        Ok(match present("RelayFrame.frame", wire.frame)? {
            FromRelay::Hello(hello) => Self::Hello(Hello {
                source: resource("RelayHello.source", &hello.source)?,
                lineage: match hello.lineage {
                    None => None,
                    Some(bytes) => Some(lineage("RelayHello.lineage", &bytes)?),
                },
                consumer: name("RelayHello.consumer", hello.consumer)?,
                mark: Position(hello.mark),
            }),
            FromRelay::Batch(batch) => {
                const FIELD: &str = "DeliveryBatch.deliveries";
                limited(FIELD, "deliveries", batch.deliveries.len(), DELIVERY_COUNT_MAX)?;
                let deliveries = batch.deliveries.into_iter().map(Delivery::try_from);
                Self::Deliver(deliveries.collect::<Result<_, _>>()?)
            }
            FromRelay::LowWater(low_water) => {
                const FIELD: &str = "OutboxLowWater.unsettled";
                limited(FIELD, "positions", low_water.unsettled.len(), UNSETTLED_COUNT_MAX)?;
                let mut unsettled: Vec<_> = low_water.unsettled.into_iter().map(Position).collect();
                // The order is what makes the list searchable; it is not taken on trust.
                unsettled.sort_unstable();
                Self::LowWater(LowWater {
                    mark: position("OutboxLowWater.mark", low_water.mark)?,
                    unsettled,
                })
            }
        })
    }
}

impl TryFrom<v1::MessageDelivery> for Delivery {
    type Error = Malformed;

    fn try_from(wire: v1::MessageDelivery) -> Result<Self, Malformed> {
        const HEADERS: &str = "MessageDelivery.headers";
        limited(
            "MessageDelivery.key",
            "bytes",
            wire.key.len(),
            MESSAGE_KEY_BYTES_MAX,
        )?;
        limited(
            "MessageDelivery.body",
            "bytes",
            wire.body.len(),
            MESSAGE_BODY_BYTES_MAX,
        )?;
        limited(HEADERS, "headers", wire.headers.len(), HEADER_COUNT_MAX)?;
        let header_bytes = wire
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        limited(HEADERS, "bytes", header_bytes, HEADER_BYTES_MAX)?;
        Ok(Self {
            id: MessageId(sixteen("MessageDelivery.id", &wire.id)?),
            position: position("MessageDelivery.position", wire.position)?,
            fence: Fence(wire.fence),
            attempt: wire.attempt,
            previous: match wire.previous {
                None => None,
                Some(previous) => Some(position("MessageDelivery.previous", previous)?),
            },
            topic: name("MessageDelivery.topic", wire.topic)?,
            key: wire.key,
            sequence: Sequence(wire.sequence),
            headers: wire.headers.into_iter().collect(),
            body: wire.body,
            published_at: UnixMillis(wire.published_at_unix_ms),
            is_cancelled: wire.is_cancelled,
        })
    }
}

impl From<RelayFrame> for v1::RelayFrame {
    fn from(frame: RelayFrame) -> Self {
        let frame = match frame {
            RelayFrame::Hello(hello) => FromRelay::Hello(v1::RelayHello {
                source: id_bytes(&hello.source.0),
                lineage: hello.lineage.map(|lineage| id_bytes(&lineage.0)),
                consumer: hello.consumer,
                mark: hello.mark.0,
            }),
            RelayFrame::Deliver(deliveries) => FromRelay::Batch(v1::DeliveryBatch {
                deliveries: deliveries.into_iter().map(Into::into).collect(),
            }),
            RelayFrame::LowWater(low_water) => FromRelay::LowWater(v1::OutboxLowWater {
                mark: low_water.mark.0,
                unsettled: low_water
                    .unsettled
                    .into_iter()
                    .map(|position| position.0)
                    .collect(),
            }),
        };
        Self { frame: Some(frame) }
    }
}

impl From<Delivery> for v1::MessageDelivery {
    fn from(delivery: Delivery) -> Self {
        Self {
            id: id_bytes(&delivery.id.0),
            position: delivery.position.0,
            fence: delivery.fence.0,
            attempt: delivery.attempt,
            previous: delivery.previous.map(|position| position.0),
            topic: delivery.topic,
            key: delivery.key,
            sequence: delivery.sequence.0,
            headers: delivery.headers.into_iter().collect(),
            body: delivery.body,
            published_at_unix_ms: delivery.published_at.0,
            is_cancelled: delivery.is_cancelled,
        }
    }
}

impl TryFrom<v1::InboxFrame> for InboxFrame {
    type Error = Malformed;

    fn try_from(wire: v1::InboxFrame) -> Result<Self, Malformed> {
        Ok(match present("InboxFrame.frame", wire.frame)? {
            FromInbox::Welcome(welcome) => Self::Welcome(Welcome {
                resource: resource("InboxWelcome.resource", &welcome.resource)?,
                mark: Position(welcome.mark),
                highest_applied: Position(welcome.highest_applied),
                takes_cancelled: welcome.takes_cancelled,
            }),
            FromInbox::Answers(answers) => {
                const FIELD: &str = "DeliveryAnswers.answers";
                limited(FIELD, "answers", answers.answers.len(), DELIVERY_COUNT_MAX)?;
                let answers = answers.answers.into_iter().map(Answered::try_from);
                Self::Answers(answers.collect::<Result<_, _>>()?)
            }
            FromInbox::LowWaterReached(mark) => Self::LowWaterReached(Position(mark)),
        })
    }
}

impl TryFrom<v1::DeliveryAnswer> for Answered {
    type Error = Malformed;

    fn try_from(wire: v1::DeliveryAnswer) -> Result<Self, Malformed> {
        Ok(Self {
            position: position("DeliveryAnswer.position", wire.position)?,
            fence: Fence(wire.fence),
            answer: match present("DeliveryAnswer.answer", wire.answer)? {
                WireAnswer::Applied(_) => Answer::Applied,
                WireAnswer::Duplicate(_) => Answer::Duplicate,
                WireAnswer::Settled(_) => Answer::Settled,
                WireAnswer::Failed(failed) => Answer::Failed {
                    text: text("DeliveryAnswer.failed", failed)?,
                },
                WireAnswer::Gap(missing) => Answer::Gap {
                    missing: position("DeliveryAnswer.gap", missing)?,
                },
                WireAnswer::Stale(_) => Answer::Stale,
                WireAnswer::Busy(busy) => Answer::Busy {
                    text: text("DeliveryAnswer.busy", busy)?,
                },
            },
        })
    }
}

impl From<InboxFrame> for v1::InboxFrame {
    fn from(frame: InboxFrame) -> Self {
        let frame = match frame {
            InboxFrame::Welcome(welcome) => FromInbox::Welcome(v1::InboxWelcome {
                resource: id_bytes(&welcome.resource.0),
                mark: welcome.mark.0,
                highest_applied: welcome.highest_applied.0,
                takes_cancelled: welcome.takes_cancelled,
            }),
            InboxFrame::Answers(answers) => FromInbox::Answers(v1::DeliveryAnswers {
                answers: answers.into_iter().map(Into::into).collect(),
            }),
            InboxFrame::LowWaterReached(mark) => FromInbox::LowWaterReached(mark.0),
        };
        Self { frame: Some(frame) }
    }
}

impl From<Answered> for v1::DeliveryAnswer {
    fn from(answered: Answered) -> Self {
        let answer = match answered.answer {
            Answer::Applied => WireAnswer::Applied(NOTHING),
            Answer::Duplicate => WireAnswer::Duplicate(NOTHING),
            Answer::Settled => WireAnswer::Settled(NOTHING),
            Answer::Failed { text } => WireAnswer::Failed(cut(text)),
            Answer::Gap { missing } => WireAnswer::Gap(missing.0),
            Answer::Stale => WireAnswer::Stale(NOTHING),
            Answer::Busy { text } => WireAnswer::Busy(cut(text)),
        };
        Self {
            position: answered.position.0,
            fence: answered.fence.0,
            answer: Some(answer),
        }
    }
}
