//! Local transactions outside any global one.

use std::ops::{Deref, DerefMut};

use super::super::ResourceError;
use super::RedbTransaction;
use super::writer::{Reply, Request};

/// A local transaction outside any global one. Dropping it rolls it back.
#[derive(Debug)]
pub struct LocalTransaction(pub(super) RedbTransaction);

impl Deref for LocalTransaction {
    type Target = RedbTransaction;

    fn deref(&self) -> &RedbTransaction {
        &self.0
    }
}

impl DerefMut for LocalTransaction {
    fn deref_mut(&mut self) -> &mut RedbTransaction {
        &mut self.0
    }
}

impl LocalTransaction {
    /// Commits; durable when it returns. Dropping the future after it was first polled does not stop the
    /// commit.
    ///
    /// # Errors
    /// Rolled back; after [`ResourceError::Failed`] it may have committed, which is known once the store was
    /// reopened.
    pub async fn commit(self) -> Result<(), ResourceError> {
        self.0.check_votable()?;
        let store = self.0.store();
        if self.0.is_read_only() {
            return Ok(());
        }
        let (owner, intents) = self.0.hand_over();
        store
            .call(|reply: Reply<()>| Request::Local {
                owner,
                intents,
                reply,
            })
            .await
    }
}
