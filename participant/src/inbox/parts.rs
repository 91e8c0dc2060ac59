//! The inbox without its tasks and sockets: what its driver asks of the store, for whoever moves data and time by other hands. No
//! part of the library's interface.

use std::collections::BTreeSet;
use std::error::Error;

use bytes::Bytes;
use synod_participant_core::inbox::Origin;
use synod_proto::message::{Answer, Delivery, Hello, LowWater, Welcome};

use super::{InboxTransaction, apply, server};
use crate::resource::ResourceError;
use crate::resource::redb::{RedbResource, messages};

/// Whether the outbox may deliver here.
///
/// # Errors
/// It may not, or the store cannot be read; the text says why.
pub async fn admit(store: &RedbResource, names: &BTreeSet<String>, hello: &Hello) -> Result<Welcome, String> {
    let admitted = server::admit(store, names, hello).await;
    admitted.map_err(|status| status.message().to_owned())
}

/// Applies a delivery, unless it took effect before; `handle` runs its handler.
pub async fn apply<Fut: Future<Output = Result<(), Answer>>>(
    store: &RedbResource,
    origin: &Origin,
    delivery: Delivery,
    handle: impl FnOnce(super::Delivery, InboxTransaction) -> Fut,
) -> Answer {
    apply::apply_with(store, origin, delivery, Some(handle)).await
}

/// What is ordered, topic included, and the topic alone, as the core names them.
#[must_use]
pub fn names_of(delivery: &Delivery) -> (Bytes, Bytes) {
    let key = messages::name(&delivery.topic, &delivery.key);
    let topic = messages::topic_of_name(&key);
    (key, topic)
}

/// What a handler's error means.
#[must_use]
pub fn answer_of(error: &(dyn Error + 'static)) -> Answer {
    apply::answer_of(error)
}

/// Deletes the rows that the sender needs no more.
///
/// # Errors
/// The store's.
pub async fn forget(store: &RedbResource, origin: &Origin, low_water: LowWater) -> Result<(), ResourceError> {
    server::forget(store, origin, low_water).await
}
