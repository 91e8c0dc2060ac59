//! The operator's gRPC service of an outbox.

use synod_proto::ids::{MessageId, Position, UnixMillis};
use synod_proto::limits::{LIST_COUNT_DEFAULT, LIST_COUNT_MAX, MESSAGE_BYTES_MAX, TOPIC_BYTES_MAX};
use synod_proto::v1;
use synod_proto::v1::outbox_admin_server::OutboxAdminServer;
use tonic::{Request, Response, Status};

use super::{DeadLetter, Entry, EntryState, Outbox, OutboxError, Place, Scheduled};

/// Answers operators about one outbox: status, list, dead letters, requeue, discard, scheduled
/// messages, cancel, readmit, unsubscribe, records. It asks for no credentials: serve it where only
/// operators come.
#[derive(Clone, Debug)]
pub struct OutboxAdmin {
    outbox: Outbox,
}

impl Outbox {
    /// The operator's service, to be added to the service's server.
    #[must_use]
    pub fn admin_server(&self) -> OutboxAdminServer<OutboxAdmin> {
        OutboxAdminServer::new(OutboxAdmin { outbox: self.clone() })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn page(count_max: u32) -> usize {
    let count = if count_max == 0 {
        LIST_COUNT_DEFAULT
    } else {
        count_max
    };
    count.min(LIST_COUNT_MAX) as usize
}

fn some(consumer: &str) -> Option<&str> {
    (!consumer.is_empty()).then_some(consumer)
}

fn entry(entry: Entry) -> v1::OutboxEntry {
    let state = |(consumer, state): (String, EntryState)| {
        let (state, attempt_count, reason) = match state {
            EntryState::Pending { failed_count, reason } => ("pending", failed_count, reason),
            EntryState::Delivered => ("delivered", 0, String::new()),
            EntryState::Dead { failed_count, reason } => ("dead", failed_count, reason),
            EntryState::Cancelled { reason } => ("cancelled", 0, reason),
        };
        v1::EntryState {
            consumer,
            state: state.to_owned(),
            attempt_count,
            reason,
        }
    };
    v1::OutboxEntry {
        id: entry.id.0.to_vec().into(),
        position: entry.position.0,
        topic: entry.topic,
        key: entry.key,
        sequence: entry.sequence.0,
        published_at_unix_ms: entry.published_at.0,
        body_bytes: u32::try_from(entry.body_bytes).unwrap_or(u32::MAX),
        states: entry.states.into_iter().map(state).collect(),
    }
}

fn scheduled(scheduled: Scheduled) -> v1::ScheduledEntry {
    v1::ScheduledEntry {
        id: scheduled.id.0.to_vec().into(),
        deliver_at_unix_ms: scheduled.deliver_at.0,
        topic: scheduled.topic,
        key: scheduled.key,
        published_at_unix_ms: scheduled.published_at.0,
        body_bytes: u32::try_from(scheduled.body_bytes).unwrap_or(u32::MAX),
    }
}

fn letter(letter: DeadLetter) -> v1::DeadLetterEntry {
    v1::DeadLetterEntry {
        consumer: letter.consumer,
        entry: Some(entry(letter.entry)),
        attempt_count: letter.failed_count,
        reason: letter.reason,
        died_at_unix_ms: letter.died_at.0,
    }
}

/// A record as it is kept begins with its time.
fn record((number, text): (u64, String)) -> v1::OutboxRecord {
    let timed = text.split_once(" ms: ");
    let timed = timed.and_then(|(at, rest)| Some((at.parse().ok()?, rest.to_owned())));
    let (recorded_at_unix_ms, text) = timed.unwrap_or((0, text));
    v1::OutboxRecord {
        number,
        recorded_at_unix_ms,
        text,
    }
}

/// No name that is longer was ever given to a consumer or a topic; one that is absent is empty.
#[allow(clippy::result_large_err, reason = "gRPC's own error type")]
fn check_names(consumer: &str, topic: &str) -> Result<(), Status> {
    for (what, name) in [("consumer", consumer), ("topic", topic)] {
        if name.len() > TOPIC_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "the name of a {what} has at most {TOPIC_BYTES_MAX} bytes, and this one has {}",
                name.len()
            )));
        }
    }
    Ok(())
}

#[allow(clippy::result_large_err, reason = "gRPC's own error type")]
fn message_id(field: &str, bytes: &[u8]) -> Result<MessageId, Status> {
    let id = bytes.try_into().map(MessageId);
    id.map_err(|_| Status::invalid_argument(format!("`{field}` is not a message id of 16 bytes")))
}

#[tonic::async_trait]
impl v1::outbox_admin_server::OutboxAdmin for OutboxAdmin {
    async fn status(
        &self,
        _: Request<v1::OutboxStatusRequest>,
    ) -> Result<Response<v1::OutboxStatusReply>, Status> {
        let status = self.outbox.status().await?;
        let consumers = status.consumers.into_iter().map(|consumer| v1::ConsumerStatus {
            consumer: consumer.consumer,
            endpoint: consumer.address,
            topics: consumer.topics,
            mark: consumer.mark.0,
            dead_count: consumer.dead_count,
            unsettled_count: consumer.unsettled_count,
            trouble: consumer.trouble,
            retired_topics: consumer.retired_topics,
        });
        Ok(Response::new(v1::OutboxStatusReply {
            source: status.source.0.to_vec().into(),
            next_position: status.next_position.0,
            stored_count: status.stored_count,
            scheduled_count: status.scheduled_count,
            consumers: consumers.collect(),
        }))
    }

    async fn list(
        &self,
        request: Request<v1::OutboxListRequest>,
    ) -> Result<Response<v1::OutboxListReply>, Status> {
        let request = request.into_inner();
        check_names(&request.consumer, "")?;
        let count_max = page(request.count_max);
        let entries = self
            .outbox
            .list(some(&request.consumer), Position(request.after), count_max)
            .await?;
        let last = entries.last().map(|entry| entry.position.0);
        Ok(Response::new(v1::OutboxListReply {
            next_after: last.filter(|_| entries.len() == count_max),
            entries: entries.into_iter().map(entry).collect(),
        }))
    }

    async fn dead(
        &self,
        request: Request<v1::OutboxDeadRequest>,
    ) -> Result<Response<v1::OutboxDeadReply>, Status> {
        let request = request.into_inner();
        check_names(&request.consumer, "")?;
        let letters = self
            .outbox
            .dead_letters(
                some(&request.consumer),
                Position(request.after),
                page(request.count_max),
            )
            .await?;
        Ok(Response::new(v1::OutboxDeadReply {
            letters: letters.into_iter().map(letter).collect(),
        }))
    }

    async fn requeue(
        &self,
        request: Request<v1::OutboxSettleRequest>,
    ) -> Result<Response<v1::OutboxSettleReply>, Status> {
        let request = request.into_inner();
        check_names(&request.consumer, "")?;
        let (id, consumer) = (
            message_id("OutboxSettleRequest.id", &request.id)?,
            some(&request.consumer),
        );
        let requeued = self
            .outbox
            .requeue(id, consumer, &request.author, &request.reason);
        let consumers = requeued.await?;
        Ok(Response::new(v1::OutboxSettleReply { consumers }))
    }

    async fn discard(
        &self,
        request: Request<v1::OutboxSettleRequest>,
    ) -> Result<Response<v1::OutboxSettleReply>, Status> {
        let request = request.into_inner();
        check_names(&request.consumer, "")?;
        let (id, consumer) = (
            message_id("OutboxSettleRequest.id", &request.id)?,
            some(&request.consumer),
        );
        let discarded = self
            .outbox
            .discard(id, consumer, &request.author, &request.reason);
        let consumers = discarded.await?;
        Ok(Response::new(v1::OutboxSettleReply { consumers }))
    }

    async fn requeue_all(
        &self,
        request: Request<v1::OutboxRequeueAllRequest>,
    ) -> Result<Response<v1::OutboxRequeueAllReply>, Status> {
        let request = request.into_inner();
        check_names(&request.consumer, &request.topic)?;
        let requeued = self.outbox.requeue_all(
            &request.consumer,
            some(&request.topic),
            &request.author,
            &request.reason,
        );
        let count = requeued.await?;
        Ok(Response::new(v1::OutboxRequeueAllReply { count }))
    }

    async fn scheduled(
        &self,
        request: Request<v1::OutboxScheduledRequest>,
    ) -> Result<Response<v1::OutboxScheduledReply>, Status> {
        let request = request.into_inner();
        let after_id = request
            .after_id
            .map(|id| message_id("OutboxScheduledRequest.after_id", &id))
            .transpose()?;
        let after = after_id.map(|id| (UnixMillis(request.after_deliver_at_unix_ms), id));
        let entries = self.outbox.scheduled(after, page(request.count_max)).await?;
        Ok(Response::new(v1::OutboxScheduledReply {
            entries: entries.into_iter().map(scheduled).collect(),
        }))
    }

    async fn cancel(
        &self,
        request: Request<v1::OutboxCancelRequest>,
    ) -> Result<Response<v1::OutboxCancelReply>, Status> {
        let request = request.into_inner();
        check_names(&request.consumer, "")?;
        let id = message_id("OutboxCancelRequest.id", &request.id)?;
        let place = match request.position {
            None => Place::Scheduled(UnixMillis(request.deliver_at_unix_ms)),
            Some(position) => Place::Stored(Position(position)),
        };
        let cancelled = self.outbox.cancel(
            id,
            place,
            some(&request.consumer),
            &request.author,
            &request.reason,
        );
        let consumers = cancelled.await?;
        Ok(Response::new(v1::OutboxCancelReply { consumers }))
    }

    async fn readmit(
        &self,
        request: Request<v1::OutboxReadmitRequest>,
    ) -> Result<Response<v1::OutboxReadmitReply>, Status> {
        let request = request.into_inner();
        check_names(&request.consumer, "")?;
        self.outbox
            .readmit(&request.consumer, &request.author, &request.reason)
            .await?;
        Ok(Response::new(v1::OutboxReadmitReply {}))
    }

    async fn unsubscribe(
        &self,
        request: Request<v1::OutboxUnsubscribeRequest>,
    ) -> Result<Response<v1::OutboxUnsubscribeReply>, Status> {
        let v1::OutboxUnsubscribeRequest {
            consumer,
            topic,
            author,
            reason,
        } = request.into_inner();
        check_names(&consumer, &topic)?;
        let dropped = match some(&topic) {
            None => self.outbox.unsubscribe(&consumer, &author, &reason).await?,
            Some(topic) => {
                let dropped = self.outbox.unsubscribe_topic(&consumer, topic, &author, &reason);
                dropped.await?
            }
        };
        match dropped {
            Some(count) => Ok(Response::new(v1::OutboxUnsubscribeReply { count })),
            None => Err(self.nothing_to_drop(&consumer, some(&topic)).await?),
        }
    }

    async fn undelivered_count(
        &self,
        request: Request<v1::OutboxUndeliveredCountRequest>,
    ) -> Result<Response<v1::OutboxUndeliveredCountReply>, Status> {
        let v1::OutboxUndeliveredCountRequest { consumer, topic } = request.into_inner();
        check_names(&consumer, &topic)?;
        match self.outbox.undelivered_count(&consumer, some(&topic)).await? {
            Some(count) => Ok(Response::new(v1::OutboxUndeliveredCountReply { count })),
            None => Err(self.nothing_to_drop(&consumer, some(&topic)).await?),
        }
    }

    async fn records(
        &self,
        request: Request<v1::OutboxRecordsRequest>,
    ) -> Result<Response<v1::OutboxRecordsReply>, Status> {
        let request = request.into_inner();
        let count_max = page(request.count_max);
        let records = self.outbox.record_page(request.before, count_max).await?;
        let last = records.last().map(|(number, _)| *number);
        Ok(Response::new(v1::OutboxRecordsReply {
            next_before: last.filter(|_| records.len() == count_max),
            records: records.into_iter().map(record).collect(),
        }))
    }
}

impl OutboxAdmin {
    /// Says what there is instead.
    async fn nothing_to_drop(&self, consumer: &str, topic: Option<&str>) -> Result<Status, OutboxError> {
        let consumers = self.outbox.status().await?.consumers;
        let text = match (consumers.iter().find(|known| known.consumer == consumer), topic) {
            (Some(known), Some(topic)) => format!(
                "nothing of the topic `{topic}` was taken away from the consumer `{consumer}`; what was: {}",
                listed(known.retired_topics.iter())
            ),
            _ => format!(
                "the outbox has no consumer `{consumer}`; it has: {}",
                listed(consumers.iter().map(|known| &known.consumer))
            ),
        };
        Ok(Status::not_found(text))
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}
