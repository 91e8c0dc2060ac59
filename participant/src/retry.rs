//! Running a whole transaction again, where that may help.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{BoxError, CommitError, is_retryable};
use crate::participant::{Participant, TransactionOptions, random_u64};
use crate::transaction::{Committed, Transaction};

/// How [`retry`] goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryOptions {
    /// The most attempts, the first one included; 5 by default.
    pub attempt_count_max: u32,
    /// The longest pause before the second attempt; doubled for each further one. 20 ms by default.
    pub pause: Duration,
    /// The longest pause of all; 1 s by default.
    pub pause_max: Duration,
    /// Of each transaction.
    pub transaction: TransactionOptions,
}

impl Default for RetryOptions {
    fn default() -> Self {
        Self {
            attempt_count_max: 5,
            pause: Duration::from_millis(20),
            pause_max: Duration::from_secs(1),
            transaction: TransactionOptions::default(),
        }
    }
}

impl RetryOptions {
    /// With this many attempts at most.
    #[must_use]
    pub fn attempt_count_max(mut self, count: u32) -> Self {
        self.attempt_count_max = count;
        self
    }

    /// With a first pause of at most `pause`, doubled for each further attempt, up to `pause_max`.
    #[must_use]
    pub fn pauses(mut self, pause: Duration, pause_max: Duration) -> Self {
        self.pause = pause;
        self.pause_max = pause_max;
        self
    }

    /// With these options for each transaction.
    #[must_use]
    pub fn transaction(mut self, options: TransactionOptions) -> Self {
        self.transaction = options;
        self
    }
}

/// [`retry`] gave up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetryError {
    /// The closure returned an error that another attempt would meet again, or the last attempt ran into one
    /// that it might not. The transaction is aborted.
    #[error("attempt {attempt_count} failed: {source}")]
    Work {
        /// How many attempts were made.
        attempt_count: u32,
        /// The closure's error.
        source: BoxError,
    },
    /// The commit was refused for good, was refused by the last attempt, or is in doubt: resolve that one
    /// first.
    #[error("attempt {attempt_count} did not commit: {source}")]
    Commit {
        /// How many attempts were made.
        attempt_count: u32,
        /// The commit's error.
        source: CommitError,
    },
}

/// Runs `work` under a new transaction and commits it; again, with a new gtid each time, after a conflict or
/// an outage ([`CommitError::is_retryable`], a status `ABORTED` or `UNAVAILABLE` or a
/// broken connection anywhere in the error's chain). The pause between two attempts is random, between nothing and a bound that doubles, so that
/// rivals do not meet again (traps B19).
///
/// Never again after an [`InDoubt`](CommitError::InDoubt), whose work may have taken effect, or after a
/// business refusal.
///
/// The closure is asked for one future per attempt: `async |txn| {..}` over borrowed things, or
/// `|txn| { let mine = mine.clone(); async move {..} }` over owned ones. It does not commit: this does.
///
/// # Errors
/// See [`RetryError`].
pub async fn retry<T, F, Fut>(
    participant: &Participant,
    options: RetryOptions,
    mut work: F,
) -> Result<(T, Committed), RetryError>
where
    F: FnMut(Arc<Transaction>) -> Fut,
    Fut: Future<Output = Result<T, BoxError>>,
{
    let mut attempt_count = 1;
    loop {
        let txn = Arc::new(participant.begin_with(options.transaction));
        let error = match work(txn.clone()).await {
            Ok(value) => match txn.commit_shared().await {
                Ok(committed) => return Ok((value, committed)),
                Err(source) if source.is_retryable() => RetryError::Commit {
                    attempt_count,
                    source,
                },
                Err(source) => {
                    return Err(RetryError::Commit {
                        attempt_count,
                        source,
                    });
                }
            },
            Err(source) => {
                // The branches' locks are what the next attempt would wait for: let them go first.
                let told = txn.abort_shared("the attempt failed").await;
                tracing::debug!(?told, attempt_count, "the attempt failed");
                let is_final = !is_retryable(source.as_ref());
                let error = RetryError::Work {
                    attempt_count,
                    source,
                };
                if is_final {
                    return Err(error);
                }
                error
            }
        };
        if attempt_count >= options.attempt_count_max {
            return Err(error);
        }
        tokio::time::sleep(jittered(options, attempt_count)).await;
        attempt_count += 1;
    }
}

fn jittered(options: RetryOptions, attempt_count: u32) -> Duration {
    let bound = options
        .pause
        .saturating_mul(1 << (attempt_count - 1).min(16))
        .min(options.pause_max);
    let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX).max(1);
    Duration::from_micros(random_u64() % micros)
}
