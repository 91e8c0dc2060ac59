//! One delivery: compared with the consumer's rows, handled, and recorded, in one local transaction.

use std::error::Error;
use std::sync::PoisonError;
use std::time::Duration;

use synod_participant_core::inbox::{Decision, Origin, decide};
use synod_proto::ids::UnixMillis;
use synod_proto::message::{Answer, Delivery};

use super::{Handler, InboxTransaction};
use crate::resource::redb::RedbResource;
use crate::resource::redb::messages::{INBOX_TABLE, InboxRow, MessageRead, named, origin_key};
use crate::resource::{Remedy, ResourceError};

/// The store could not take the delivery, for no fault of the message.
fn busy(error: &ResourceError) -> Answer {
    Answer::Busy {
        text: format!("the consumer's store: {error}"),
    }
}

/// Applies a delivery, unless it took effect before; or records that it never does, if it was cancelled. That is without a handler.
pub(super) async fn apply(
    store: &RedbResource,
    origin: &Origin,
    handler: Option<&Handler>,
    handler_timeout: Duration,
    delivery: Delivery,
) -> Answer {
    let handle = handler.map(|handler| move |delivery, tx| run(handler, handler_timeout, delivery, tx));
    apply_with(store, origin, delivery, handle).await
}

/// As [`apply`], with whatever else runs the handler.
pub(super) async fn apply_with<Fut: Future<Output = Result<(), Answer>>>(
    store: &RedbResource,
    origin: &Origin,
    delivery: Delivery,
    handle: Option<impl FnOnce(super::Delivery, InboxTransaction) -> Fut>,
) -> Answer {
    match try_apply(store, origin, delivery, handle).await {
        Ok(answer) => answer,
        Err(error) => busy(&error),
    }
}

async fn try_apply<Fut: Future<Output = Result<(), Answer>>>(
    store: &RedbResource,
    origin: &Origin,
    delivery: Delivery,
    handle: Option<impl FnOnce(super::Delivery, InboxTransaction) -> Fut>,
) -> Result<Answer, ResourceError> {
    let mut tx = store.begin_local()?;
    let row_key = named(&origin_key(origin.source, &origin.consumer), delivery.position.0);
    // The row's lock first, the mark then: a mark that rises takes the row away in one local transaction, so whoever sees the row
    // gone sees the mark risen.
    let row = tx.lock_own(INBOX_TABLE, &row_key).await?;
    let damaged = |_| ResourceError::Invalid {
        text: "a row of `synod:inbox` is damaged or of a newer version: restore the consumer's database"
            .to_owned(),
    };
    let row = row
        .map(|row| InboxRow::decode(&row))
        .transpose()
        .map_err(damaged)?;
    let decision = {
        let snapshot = tx.latest()?;
        let read = MessageRead(&snapshot);
        let low_water = read.inbox_low_water(origin.source, &origin.consumer)?;
        let has_previous = match delivery.previous {
            Some(previous) => read
                .inbox_row(origin.source, &origin.consumer, previous)?
                .is_some(),
            None => true,
        };
        decide(
            delivery.id,
            delivery.position,
            delivery.previous,
            row.map(|row| row.id),
            &low_water,
            has_previous,
        )
    };
    match decision {
        Decision::Next => {}
        Decision::Duplicate if delivery.is_cancelled && row.is_some_and(InboxRow::is_cancelled) => {
            return Ok(Answer::Settled);
        }
        // It has no place here any more: no delivery of it takes effect.
        Decision::Conflict { .. } if delivery.is_cancelled => return Ok(Answer::Settled),
        Decision::Duplicate => return Ok(Answer::Duplicate),
        Decision::BelowLowWater => return Ok(Answer::Settled),
        Decision::Gap { missing } => return Ok(Answer::Gap { missing }),
        Decision::Conflict { found } => {
            let text = format!(
                "position {} was message {found} before: the outbox has lost data and gives its positions again",
                delivery.position
            );
            return Ok(Answer::Failed { text });
        }
    }
    if delivery.is_cancelled {
        let recorded = InboxRow {
            id: delivery.id,
            at: UnixMillis(0),
        };
        tx.put_own(INBOX_TABLE, &row_key, recorded.encode()).await?;
        tx.commit().await?;
        return Ok(Answer::Settled);
    }
    let Some(handle) = handle else {
        let text = format!("no handler for the topic `{}`", delivery.topic);
        return Ok(Answer::Busy { text });
    };
    let recorded = InboxRow {
        id: delivery.id,
        // Above 0, which stands for a cancelled one, wherever the clock is.
        at: tx.now().max(UnixMillis(1)),
    };
    let (lent, slot) = InboxTransaction::new(tx);
    let delivery = super::Delivery {
        id: delivery.id,
        source: origin.source,
        attempt: delivery.attempt,
        topic: delivery.topic,
        key: delivery.key,
        sequence: delivery.sequence,
        headers: delivery.headers,
        body: delivery.body,
        published_at: delivery.published_at,
    };
    let handled = handle(delivery, lent).await;
    let tx = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Err(answer) = handled {
        return Ok(answer);
    }
    let Some(mut tx) = tx else {
        let text = "the handler returned and kept its transaction: drop it before".to_owned();
        return Ok(Answer::Failed { text });
    };
    match tx.put_own(INBOX_TABLE, &row_key, recorded.encode()).await {
        Ok(()) => {}
        // The handler went on after an error of the store, which had rolled everything back.
        Err(error @ ResourceError::RolledBack { .. }) => {
            return Ok(Answer::Failed {
                text: error.to_string(),
            });
        }
        Err(error) => return Err(error),
    }
    tx.commit().await?;
    Ok(Answer::Applied)
}

/// Whether the handler's error comes from a store that would have taken the same work at another time: a lock that somebody
/// else holds, a branch in doubt for example, a conflict, a store that is closed or cannot be reached. It says nothing about the
/// message, which then must not die of it.
///
/// `RolledBack` is not among them: it hides its cause, and the handler that meets it has gone on after the first error.
fn is_of_a_store(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        match error.downcast_ref::<ResourceError>() {
            Some(ResourceError::RolledBack { .. }) => return false,
            Some(ResourceError::Closed) => return true,
            Some(error) => return error.remedy() != Remedy::Fix,
            None => next = error.source(),
        }
    }
    false
}

/// What a handler's error means.
pub(super) fn answer_of(error: &(dyn Error + 'static)) -> Answer {
    if is_of_a_store(error) {
        Answer::Busy {
            text: format!("the handler met a store that could not serve it now: {error}"),
        }
    } else {
        Answer::Failed {
            text: error.to_string(),
        }
    }
}

/// Runs the handler in a task of its own, so that a panic is an answer.
async fn run(
    handler: &Handler,
    timeout: Duration,
    delivery: super::Delivery,
    tx: InboxTransaction,
) -> Result<(), Answer> {
    let handler = handler.clone();
    // With what asks its error, which is the user's code, too.
    let mut task =
        tokio::spawn(async move { handler(delivery, tx).await.map_err(|error| answer_of(&*error)) });
    match tokio::time::timeout(timeout, &mut task).await {
        Ok(Ok(handled)) => handled,
        Ok(Err(error)) => Err(Answer::Failed {
            text: format!("the handler panicked: {}", crate::branch::panic_text(error)),
        }),
        Err(_) => {
            task.abort();
            // Its transaction must be gone before the next attempt begins.
            let _ = task.await;
            Err(Answer::Failed {
                text: format!("the handler did not end within {timeout:?}"),
            })
        }
    }
}
