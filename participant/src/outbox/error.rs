//! What can go wrong with an outbox as a whole.

use synod_proto::ids::MessageId;
use tonic::{Code, Status};

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
    /// The store refused. What to do: [`ResourceError::remedy`].
    #[error(transparent)]
    Resource(#[from] ResourceError),
}

impl From<OutboxError> for Status {
    fn from(error: OutboxError) -> Self {
        let code = match &error {
            OutboxError::AlreadyOpen => Code::FailedPrecondition,
            OutboxError::Invalid { .. } => Code::InvalidArgument,
            OutboxError::UnknownConsumer { .. }
            | OutboxError::NotDead { .. }
            | OutboxError::NotScheduled { .. } => Code::NotFound,
            OutboxError::Resource(_) => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}
