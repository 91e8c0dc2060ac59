//! What can go wrong with an outbox as a whole.

use synod_proto::ids::MessageId;
use tonic::{Code, Status};

use super::EntryState;
use crate::resource::ResourceError;

/// An operation of an [`Outbox`](super::Outbox) that did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// This store's outbox is open: clone that handle, or wait until the last one was dropped.
    #[error("the store's outbox is open already: clone its handle")]
    AlreadyOpen,
    /// A configuration or a call to fix.
    #[error("{text}")]
    Invalid {
        /// What is wrong.
        text: String,
    },
    /// No consumer of this name was named where the outbox was opened.
    #[error("the outbox has no consumer `{consumer}`: see its status for those that it has")]
    UnknownConsumer {
        /// The name.
        consumer: String,
    },
    /// There is no such dead letter: it was settled already, or is still being tried. See the list.
    #[error("message {id} is no dead letter: it was settled meanwhile, or is still being tried")]
    NotDead {
        /// The message.
        id: MessageId,
    },
    /// No such message waits for this time: it has become visible meanwhile, or was cancelled already. See the list.
    #[error("message {id} is not scheduled for that time: it has gone out meanwhile, or was cancelled")]
    NotScheduled {
        /// The message.
        id: MessageId,
    },
    /// The message is not pending at this position for any consumer that was asked about: see how it stands with each.
    #[error("message {id} cannot be cancelled: {}", standing(.states))]
    NotPending {
        /// The message.
        id: MessageId,
        /// How it stands with those that it is for; empty where no such message is stored at this position any more.
        states: Vec<(String, EntryState)>,
    },
    /// The store refused. What to do: [`ResourceError::remedy`].
    #[error(transparent)]
    Resource(#[from] ResourceError),
}

/// Says what to do instead.
fn standing(states: &[(String, EntryState)]) -> String {
    if states.is_empty() {
        return "the outbox does not hold it there for anybody who was asked about; see the list".to_owned();
    }
    let of_one = |(consumer, state): &(String, EntryState)| match state {
        EntryState::Pending { .. } => format!("it has just changed for `{consumer}`: try again"),
        EntryState::Delivered => {
            format!(
                "`{consumer}` is done with it: it has got it, or it was discarded or cancelled (`synod outbox records`)"
            )
        }
        EntryState::Dead { .. } => format!("it is a dead letter of `{consumer}`: discard it"),
        EntryState::Cancelled { .. } => format!("it was cancelled for `{consumer}` already"),
    };
    states.iter().map(of_one).collect::<Vec<_>>().join("; ")
}

impl From<OutboxError> for Status {
    fn from(error: OutboxError) -> Self {
        let code = match &error {
            OutboxError::AlreadyOpen => Code::FailedPrecondition,
            OutboxError::Invalid { .. } => Code::InvalidArgument,
            OutboxError::UnknownConsumer { .. }
            | OutboxError::NotDead { .. }
            | OutboxError::NotPending { .. }
            | OutboxError::NotScheduled { .. } => Code::NotFound,
            OutboxError::Resource(_) => {
                let OutboxError::Resource(source) = error else {
                    unreachable!("matched above")
                };
                return source.into();
            }
        };
        Self::new(code, error.to_string())
    }
}
