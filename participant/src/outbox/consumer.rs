//! Who gets which messages, and how patiently.

use std::collections::BTreeSet;
use std::time::Duration;

use synod_participant_core::relay::{DeadLetterPolicy, RelayOptions};
use synod_proto::environment::Connector;
use tonic::transport::Endpoint;

use super::OutboxError;
use super::message::check_name;

/// Finds out that a consumer has gone, within the sum of the two. More patient than with a replica: a consumer runs its users'
/// handlers, which may hold up its reactor, and each stream that is given up sends its messages again.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// See [`KEEP_ALIVE_INTERVAL`].
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// The most topics of one consumer. The store has room for some more that were taken away from it.
const TOPIC_COUNT_MAX: usize = 1000;

const _: () = assert!(TOPIC_COUNT_MAX < crate::resource::redb::messages::TOPIC_COUNT_MAX);

/// A service that consumes messages: a name, an address, and topics.
#[derive(Clone, Debug)]
pub struct Consumer {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) topics: BTreeSet<String>,
    pub(super) is_from_start: bool,
    pub(super) options: RelayOptions,
    pub(super) connector: Connector,
}

impl Consumer {
    /// A consumer that is reached at `address`, as `http://host:port`. Its name must stay the same for as long as its messages
    /// are to be told apart from duplicates; the address may change at every start.
    #[must_use]
    pub fn new(name: impl Into<String>, address: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            address: address.into(),
            topics: BTreeSet::new(),
            is_from_start: false,
            options: RelayOptions::default(),
            connector: Connector::tcp(),
        }
    }

    /// It takes this topic; at most 1000. A topic that is added later begins with what becomes visible after the outbox was opened
    /// with it. One that is taken away stays the consumer's as far as it was visible by then, and gets delivered: keep its handler
    /// until [nothing of it is left](super::Outbox::list), or [drop](super::Outbox::unsubscribe_topic) the rest. What becomes visible later, since it waited for its time or for its
    /// branch's outcome, goes to whoever takes the topic then, and if nobody does, to the consumer that it was taken away from
    /// last.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topics.insert(topic.into());
        self
    }

    /// When it is first registered, it gets the messages that are still stored, too; else only those that become visible
    /// afterwards. Stored is what another consumer of the topic has not got yet. One that was
    /// [unsubscribed](super::Outbox::unsubscribe) and comes back gets nothing twice: what was settled for it before is not among
    /// them.
    #[must_use]
    pub fn from_start(mut self) -> Self {
        self.is_from_start = true;
        self
    }

    /// After so many failed attempts a message becomes a dead letter; 20 by default, which with the default [waits](Self::backoff) is
    /// five to eleven minutes after the first one; at least 1. Only answers of the consumer count: that its handler failed, never
    /// that it was away, had no handler or no room, or met a store that could not serve it.
    #[must_use]
    pub fn attempt_count_max(mut self, count: u32) -> Self {
        self.options.attempt_count_max = count.max(1);
        self
    }

    /// What a dead letter does to the later messages of its key: by default they wait for an operator.
    #[must_use]
    pub fn on_dead_letter(mut self, policy: DeadLetterPolicy) -> Self {
        self.options.policy = policy;
        self
    }

    /// The wait after a message's first failed attempt, which doubles with each further one, and the longest wait; 100 ms and 60 s
    /// by default. Each is jittered.
    #[must_use]
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.options.backoff_first = first;
        self.options.backoff_max = longest.max(first);
        self
    }

    /// How long a connected consumer may answer nothing at all before its stream is opened anew; 45 s by default. Should be longer
    /// than its inbox lets a handler run.
    #[must_use]
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.options.answer_timeout = timeout;
        self
    }

    /// How it is reached; by TCP unless told otherwise.
    #[must_use]
    pub fn connector(mut self, connector: Connector) -> Self {
        self.connector = connector;
        self
    }

    pub(super) fn check(&self) -> Result<(), OutboxError> {
        let invalid = |text| Err(OutboxError::Invalid { text });
        if let Err(error) = check_name("consumer", &self.name) {
            return invalid(error.to_string());
        }
        if self.topics.is_empty() {
            return invalid(format!("the consumer `{}` takes no topic", self.name));
        }
        if self.topics.len() > TOPIC_COUNT_MAX {
            let text = format!(
                "the consumer `{}` takes more than {TOPIC_COUNT_MAX} topics",
                self.name
            );
            return invalid(text);
        }
        for topic in &self.topics {
            if let Err(error) = check_name("topic", topic) {
                return invalid(error.to_string());
            }
        }
        self.endpoint().map(drop)
    }

    pub(super) fn endpoint(&self) -> Result<Endpoint, OutboxError> {
        let endpoint = crate::session::endpoint(&self.address).map_err(|error| OutboxError::Invalid {
            text: format!(
                "`{}` is no address of the consumer `{}`: {error}",
                self.address, self.name
            ),
        })?;
        Ok(endpoint
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true))
    }
}
