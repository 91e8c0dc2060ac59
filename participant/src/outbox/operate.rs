//! What an operator does to single messages of an outbox: requeue, discard, cancel. Each with its author and reason.

use synod_proto::ids::{MessageId, Position, UnixMillis};
use synod_proto::limits::TEXT_BYTES_MAX;

use super::{EntryState, Outbox, OutboxError};
use crate::resource::ResourceError;
use crate::resource::redb::messages::{Cancel, MessageRead, Operate, OperatorAction, RequeueAll};

/// Where a message waits that is to be [cancelled](Outbox::cancel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// For its time, as [`Outbox::scheduled`] shows it.
    Scheduled(UnixMillis),
    /// In the outbox at this position, as [`Outbox::list`] shows it.
    Stored(Position),
}

/// What is kept with an operator's action.
pub(super) fn check_words(author: &str, reason: &str) -> Result<(), OutboxError> {
    for (what, text) in [("author", author), ("reason", reason)] {
        if text.trim().is_empty() || text.len() > TEXT_BYTES_MAX {
            let text = format!("the {what} has 1 to {TEXT_BYTES_MAX} bytes: it is kept with the action");
            return Err(OutboxError::Invalid { text });
        }
    }
    Ok(())
}

/// Runs a change of the store, and what tells the relay of it, in a task of its own: an operator who hangs up between the two must
/// not leave the relay without what the store says.
pub(super) async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, OutboxError>> + Send + 'static,
) -> Result<T, OutboxError> {
    let ended = tokio::spawn(change).await;
    ended.unwrap_or_else(|_| Err(ResourceError::Closed.into()))
}

impl Outbox {
    /// Sends a dead letter again, as if it had never been tried; where it holds its key, the key goes on with it. For one consumer,
    /// or for all to which it is dead: answers which. Author and reason are kept.
    ///
    /// # Errors
    /// [`OutboxError::NotDead`]; [`OutboxError::Invalid`] without author or reason; [`OutboxError::Resource`].
    pub async fn requeue(
        &self,
        id: MessageId,
        consumer: Option<&str>,
        author: &str,
        reason: &str,
    ) -> Result<Vec<String>, OutboxError> {
        self.operate(OperatorAction::Requeue, id, consumer, author, reason)
            .await
    }

    /// [Requeues](Self::requeue) all dead letters of one consumer, or those of one topic of it, in the order of their positions;
    /// what dies again meanwhile stays dead. Answers how many. If it is cut short, a part was requeued: call it again.
    ///
    /// # Errors
    /// [`OutboxError::UnknownConsumer`]; [`OutboxError::Invalid`] without author or reason; [`OutboxError::Resource`].
    pub async fn requeue_all(
        &self,
        consumer: &str,
        topic: Option<&str>,
        author: &str,
        reason: &str,
    ) -> Result<u64, OutboxError> {
        check_words(author, reason)?;
        let mut after = Position(0);
        let mut count = 0;
        loop {
            let work = RequeueAll {
                consumer: consumer.to_owned(),
                topic: topic.map(str::to_owned),
                after,
                author: author.to_owned(),
                reason: reason.to_owned(),
            };
            let (outbox, name) = (self.clone(), consumer.to_owned());
            let requeued = to_its_end(async move {
                let part = outbox.inner.store.work(work).await?;
                if let (Some(part), Some(lane)) = (&part, outbox.inner.lanes.get(&name)) {
                    lane.on_requeued(&part.rows, &part.low_water);
                }
                Ok(part)
            });
            let part = requeued.await?.ok_or_else(|| OutboxError::UnknownConsumer {
                consumer: consumer.to_owned(),
            })?;
            count += part.rows.len() as u64;
            tracing::info!(
                consumer,
                count = part.rows.len(),
                author,
                reason,
                "an operator requeued dead letters"
            );
            match part.next_after {
                Some(next) => after = next,
                None => return Ok(count),
            }
        }
    }

    /// Takes a message back. Author and reason are kept.
    ///
    /// One that is scheduled never goes out, to nobody; `consumer` must be `None`, and the answer is empty.
    ///
    /// One that is stored is cancelled for one consumer, or for all for which it is pending: answers which. For each of them one of
    /// two things comes true, whatever crashes: it never takes effect, or it takes effect before the consumer has heard of the
    /// cancellation. That may be after this call has returned: a copy may be on its way. Only the consumer knows, since a message
    /// that was sent may have taken effect although nobody has heard so. So the message keeps its place in its key, as
    /// [cancelled](EntryState::Cancelled), until the consumer has been reached; without any handler it writes there that the message
    /// takes no effect, or says that it has, and [`records`](Self::records) then says which of the two it was. Other consumers get it.
    /// A consumer that is [unsubscribed](Self::unsubscribe) before it was reached says nothing: the record names the message, and
    /// whether it took effect is not known.
    ///
    /// # Errors
    /// [`OutboxError::NotScheduled`]; [`OutboxError::NotPending`], for a dead letter too, which is [discarded](Self::discard);
    /// [`OutboxError::Invalid`] without author or reason; [`OutboxError::Resource`].
    pub async fn cancel(
        &self,
        id: MessageId,
        place: Place,
        consumer: Option<&str>,
        author: &str,
        reason: &str,
    ) -> Result<Vec<String>, OutboxError> {
        check_words(author, reason)?;
        match (place, consumer) {
            (Place::Scheduled(deliver_at), None) => {
                self.cancel_scheduled(id, deliver_at, author, reason).await?;
                Ok(Vec::new())
            }
            (Place::Scheduled(_), Some(_)) => {
                let text = "a scheduled message is no consumer's yet: it is cancelled for all".to_owned();
                Err(OutboxError::Invalid { text })
            }
            (Place::Stored(position), consumer) => {
                self.cancel_stored(id, position, consumer, author, reason).await
            }
        }
    }

    async fn cancel_stored(
        &self,
        id: MessageId,
        position: Position,
        consumer: Option<&str>,
        author: &str,
        reason: &str,
    ) -> Result<Vec<String>, OutboxError> {
        let before = Position(position.0.saturating_sub(1));
        let entries = self.list(consumer, before, 1).await?;
        let entry = entries.into_iter().find(|entry| entry.id == id);
        let states = entry.map(|entry| entry.states).unwrap_or_default();
        let pending = states
            .iter()
            .filter(|(_, state)| matches!(state, EntryState::Pending { .. }))
            .map(|(name, _)| (name.clone(), position))
            .collect();
        let cancelled = self
            .operate_on(OperatorAction::Cancel, id, pending, author, reason)
            .await?;
        if cancelled.is_empty() {
            return Err(OutboxError::NotPending { id, states });
        }
        Ok(cancelled)
    }

    async fn cancel_scheduled(
        &self,
        id: MessageId,
        deliver_at: UnixMillis,
        author: &str,
        reason: &str,
    ) -> Result<(), OutboxError> {
        let cancelled = self.inner.store.work(Cancel {
            id,
            deliver_at,
            author: author.to_owned(),
            reason: reason.to_owned(),
        });
        if !cancelled.await? {
            return Err(OutboxError::NotScheduled { id });
        }
        tracing::info!(%id, author, reason, "an operator cancelled a scheduled message");
        Ok(())
    }

    /// Gives a dead letter up: it is never sent again, and its key goes on without it. Otherwise like
    /// [`requeue`](Self::requeue).
    ///
    /// # Errors
    /// As for [`requeue`](Self::requeue).
    pub async fn discard(
        &self,
        id: MessageId,
        consumer: Option<&str>,
        author: &str,
        reason: &str,
    ) -> Result<Vec<String>, OutboxError> {
        self.operate(OperatorAction::Discard, id, consumer, author, reason)
            .await
    }

    async fn operate(
        &self,
        action: OperatorAction,
        id: MessageId,
        consumer: Option<&str>,
        author: &str,
        reason: &str,
    ) -> Result<Vec<String>, OutboxError> {
        check_words(author, reason)?;
        let asked = consumer.map(str::to_owned);
        let read = self.inner.store.read(move |snapshot| {
            let read = MessageRead(snapshot);
            let mut found = Vec::new();
            let dead = read.dead_by_id(id)?;
            for (name, row) in read.consumers()? {
                let position = dead.iter().find(|(number, _)| *number == row.number);
                if let Some((_, position)) = position
                    && asked.as_ref().is_none_or(|asked| *asked == name)
                {
                    found.push((name, *position));
                }
            }
            Ok(found)
        });
        let settled = self.operate_on(action, id, read.await?, author, reason).await?;
        if settled.is_empty() {
            return Err(OutboxError::NotDead { id });
        }
        Ok(settled)
    }

    /// At each of these consumers and positions. Answers for whom it was done.
    async fn operate_on(
        &self,
        action: OperatorAction,
        id: MessageId,
        places: Vec<(String, Position)>,
        author: &str,
        reason: &str,
    ) -> Result<Vec<String>, OutboxError> {
        let mut settled = Vec::new();
        for (consumer, position) in places {
            let work = Operate {
                consumer: consumer.clone(),
                id,
                position,
                action,
                author: author.to_owned(),
                reason: reason.to_owned(),
            };
            let (outbox, name) = (self.clone(), consumer.clone());
            let was_done = to_its_end(async move {
                let operated = outbox.inner.store.work(work).await?;
                let was_done = operated.is_some();
                if let (Some(operated), Some(lane)) = (operated, outbox.inner.lanes.get(&name)) {
                    lane.on_operated(action, operated);
                }
                Ok(was_done)
            });
            // Not done: another operator was faster, or the relay.
            if was_done.await? {
                tracing::info!(%id, consumer = %consumer, ?action, author, reason, "an operator settled a message");
                settled.push(consumer);
            }
        }
        Ok(settled)
    }
}
