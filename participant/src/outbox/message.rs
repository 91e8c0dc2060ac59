//! A message before it is published, and what can be wrong with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use synod_proto::ids::UnixMillis;
use synod_proto::limits::{
    HEADER_BYTES_MAX, HEADER_COUNT_MAX, MESSAGE_BODY_BYTES_MAX, MESSAGE_KEY_BYTES_MAX, TOPIC_BYTES_MAX,
};
use tonic::{Code, Status};

use crate::resource::ResourceError;

/// A message to be published: a topic, which decides who gets it; a key, by which it is ordered; and a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub(super) topic: String,
    pub(super) key: Bytes,
    pub(super) body: Bytes,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) time: Time,
}

/// When a message goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Time {
    Now,
    After(Duration),
    At(UnixMillis),
}

impl Message {
    /// A message that goes out as soon as it is visible. Messages of one topic and key are delivered in the order in which they
    /// were published; others are independent of each other.
    #[must_use]
    pub fn new(topic: impl Into<String>, key: impl AsRef<[u8]>, body: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            key: Bytes::copy_from_slice(key.as_ref()),
            body: body.into(),
            headers: BTreeMap::new(),
            time: Time::Now,
        }
    }

    /// Adds a header, or replaces the one of this name.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Holds the message back for so long after it was published, by the database's clock. It takes its place in its key's
    /// order when its time has come; the key's other messages do not wait for it.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.time = Time::After(delay);
        self
    }

    /// Holds the message back until this instant, in UTC by the database's clock; otherwise like [`delay`](Self::delay).
    #[must_use]
    pub fn deliver_at(mut self, at: UnixMillis) -> Self {
        self.time = Time::At(at);
        self
    }

    pub(super) fn check(&self) -> Result<(), PublishError> {
        check_name("topic", &self.topic)?;
        let header_bytes = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        for (what, bytes, bytes_max) in [
            ("the message's key", self.key.len(), MESSAGE_KEY_BYTES_MAX),
            ("the message's body", self.body.len(), MESSAGE_BODY_BYTES_MAX),
            ("the message's headers", header_bytes, HEADER_BYTES_MAX),
        ] {
            if bytes > bytes_max {
                return Err(PublishError::TooLarge {
                    what,
                    bytes,
                    bytes_max,
                });
            }
        }
        if self.headers.len() > HEADER_COUNT_MAX {
            let text = format!("a message has at most {HEADER_COUNT_MAX} headers");
            return Err(PublishError::Invalid { text });
        }
        Ok(())
    }
}

pub(super) fn check_name(what: &'static str, name: &str) -> Result<(), PublishError> {
    if name.is_empty() || name.len() > TOPIC_BYTES_MAX {
        let text = format!(
            "the name of a {what} has 1 to {TOPIC_BYTES_MAX} bytes, and `{name}` has {}",
            name.len()
        );
        return Err(PublishError::Invalid { text });
    }
    Ok(())
}

/// A message that was not published. Unless it says otherwise the local transaction is as it was: roll it back, or go on
/// without the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// No consumer takes this topic, so that the message would be lost without anybody hearing of it (traps H6). Add a consumer
    /// where the outbox is opened, or mend the topic's name.
    #[error("no consumer takes the topic `{topic}`: add one where the outbox is opened")]
    NoRoute {
        /// The topic.
        topic: String,
    },
    /// Above a documented limit: store the content elsewhere, and send where it is.
    #[error("{what}: {bytes} bytes, and at most {bytes_max} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The call breaks a rule: a bug to fix.
    #[error("{text}")]
    Invalid {
        /// Which rule.
        text: String,
    },
    /// The store refused it; the local transaction is rolled back. What to do: [`ResourceError::remedy`].
    #[error("the message could not be written: {0}")]
    Resource(#[from] ResourceError),
}

impl From<PublishError> for Status {
    fn from(error: PublishError) -> Self {
        let code = match &error {
            PublishError::NoRoute { .. } => Code::FailedPrecondition,
            PublishError::TooLarge { .. } | PublishError::Invalid { .. } => Code::InvalidArgument,
            PublishError::Resource(_) => {
                let PublishError::Resource(source) = error else {
                    unreachable!("matched above")
                };
                return source.into();
            }
        };
        let mut status = Self::new(code, error.to_string());
        status.set_source(Arc::new(error));
        status
    }
}
