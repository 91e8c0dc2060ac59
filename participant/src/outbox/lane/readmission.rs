//! An operator's word that another database answers for the consumer from now on (T11): what the earlier one said is written before
//! that word, and nothing that it says is heard after it.

use super::{Lane, NO_RELAY};
use crate::resource::ResourceError;
use crate::resource::redb::messages::{Readmit, Settle};

/// Which streams may have asked the database that is the consumer's by now.
#[derive(Debug, Default)]
pub(super) struct Readmission {
    /// How many have begun.
    count: u64,
    is_under_way: bool,
}

/// When a stream began to ask for the consumer's database.
#[derive(Clone, Copy, Debug)]
pub(in crate::outbox) struct Began(u64);

impl Readmission {
    pub(super) fn admits(&self, began: Began) -> bool {
        !self.is_under_way && self.count == began.0
    }
}

impl Lane {
    /// Of a stream that is about to ask.
    pub(in crate::outbox) fn begin_stream(&self) -> Began {
        Began(self.state().readmission.count)
    }

    /// Forgets what is known of the consumer's database, on disk as well. Streams to it end: the next ones ask again.
    ///
    /// # Errors
    /// The store's: it may or may not be done.
    pub(in crate::outbox) async fn readmit(&self, readmit: Readmit) -> Result<(), ResourceError> {
        // What is being written of what was known before must not come behind it.
        let _paused = self.writing.lock().await;
        self.begin_readmission();
        let readmitted = async {
            self.write_gathered().await?;
            self.store.work(readmit).await
        };
        let readmitted = readmitted.await;
        self.end_readmission(readmitted.is_ok());
        readmitted.map(drop)
    }

    /// From here on nobody says anything for the consumer.
    fn begin_readmission(&self) {
        let closed = {
            let mut state = self.state();
            state.readmission.count += 1;
            state.readmission.is_under_way = true;
            let mut closed = std::mem::take(&mut state.sessions);
            for session in closed.values_mut() {
                session.end("the consumer was readmitted");
            }
            if !closed.is_empty() {
                NO_RELAY.clone_into(&mut state.trouble);
            }
            closed
        };
        self.step(|relay, _| {
            closed
                .into_keys()
                .for_each(|session| relay.on_session_closed(session));
        });
    }

    /// Writes what the earlier database has answered: later it would be taken for the word of the next one, which may not know of it.
    async fn write_gathered(&self) -> Result<(), ResourceError> {
        loop {
            let settlement = self.state().relay.poll_settlement();
            let Some(settlement) = settlement else {
                return Ok(());
            };
            // Neither what it has confirmed nor which one it was: that is about to be forgotten.
            let settle = Settle {
                consumer: self.consumer.name.clone(),
                settlement: settlement.clone(),
                confirmed: None,
                resource: None,
            };
            match self.store.work(settle).await {
                Ok(low_water) => {
                    let low_water = low_water.unwrap_or_default();
                    self.step(|relay, now| relay.on_settled(now, true, &settlement, low_water));
                }
                Err(error) => {
                    self.settle_failed(true, settlement, None, None);
                    return Err(error);
                }
            }
        }
    }

    fn end_readmission(&self, is_done: bool) {
        self.state().readmission.is_under_way = false;
        if is_done {
            {
                let mut state = self.state();
                (state.confirmed, state.resource, state.met) = (None, None, None);
            }
            self.step(|relay, now| relay.on_readmitted(now));
        }
    }
}
