//! L10: a directory that has lost votes, or stands where another one has voted, takes no part.

use super::{Check, require};
use crate::host::{Host, Output};
use std::collections::{BTreeMap, BTreeSet};
use synod_coordinator_core::paxos::Message;
use synod_proto::ids::{Incarnation, ReplicaId};

/// Watches who takes part.
#[derive(Debug, Default)]
pub struct DirectoryChecker {
    /// The first directory of each replica that took part: there is no way yet to admit another.
    first: BTreeMap<ReplicaId, Incarnation>,
    /// Those that hold less than they have acknowledged, where enough peers know it.
    lost: BTreeSet<(ReplicaId, Incarnation)>,
}

impl DirectoryChecker {
    /// The directory holds less from now on than it has acknowledged, and too few peers take it for whole.
    pub fn on_lost(&mut self, id: ReplicaId, incarnation: Incarnation) {
        self.lost.insert((id, incarnation));
    }

    /// Looks at a turn.
    ///
    /// # Errors
    /// A replica stands, votes or confirms a leader on a directory on which it must not.
    pub fn after_turn(&mut self, host: &Host, output: &Output) -> Check {
        let (id, incarnation) = (host.id(), host.store.incarnation);
        let Some(part) = output
            .envelopes
            .iter()
            .map(|one| &one.message)
            .find(|one| is_part(one))
        else {
            return Ok(());
        };
        let first = *self.first.entry(id).or_insert(incarnation);
        require(first == incarnation, || {
            format!("replica {id} takes part on directory {incarnation} after directory {first}: {part:?}")
        })?;
        require(!self.lost.contains(&(id, incarnation)), || {
            format!(
                "replica {id} takes part on directory {incarnation}, which has lost what it acknowledged: {part:?}"
            )
        })
    }
}

/// Whether only who is admitted may say it.
fn is_part(message: &Message) -> bool {
    matches!(
        message,
        Message::Prepare { .. }
            | Message::Promise { .. }
            | Message::Accepted { .. }
            | Message::HeartbeatAnswer { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::DirectoryChecker;
    use crate::checkers::Check;
    use crate::host::{Host, Output};
    use crate::store::Store;
    use std::collections::BTreeSet;
    use synod_coordinator_core::paxos::{Ballot, Envelope, Message, Slot};
    use synod_coordinator_core::replica::Config;
    use synod_proto::ids::{Incarnation, ReplicaId};

    const WHOLE: Incarnation = Incarnation([1; 16]);
    const FRESH: Incarnation = Incarnation([2; 16]);

    /// Replica 1 says something on a directory.
    fn say(checker: &mut DirectoryChecker, incarnation: Incarnation, message: Message) -> Check {
        let replicas = BTreeSet::from([1, 2, 3].map(ReplicaId));
        let config = Config::new(ReplicaId(1), replicas, incarnation);
        let (from, to) = (ReplicaId(1), ReplicaId(2));
        let output = Output {
            envelopes: vec![Envelope { from, to, message }],
            ..Output::default()
        };
        checker.after_turn(&Host::new(config, Store::new(incarnation)), &output)
    }

    fn vote() -> Message {
        let (ballot, slot) = (Ballot::ZERO, Slot(1));
        Message::Accepted { ballot, slot }
    }

    #[test]
    fn l10_the_second_directory_of_a_replica_may_only_learn() {
        let mut checker = DirectoryChecker::default();
        let learn = Message::CatchUp { above: Slot::ZERO };
        assert!(say(&mut checker, FRESH, learn.clone()).is_ok(), "no part");
        assert!(
            say(&mut checker, WHOLE, vote()).is_ok(),
            "the first that takes part"
        );
        assert!(say(&mut checker, FRESH, learn).is_ok());
        assert!(say(&mut checker, FRESH, vote()).is_err());
        assert!(say(&mut checker, WHOLE, vote()).is_ok(), "put back whole");
    }

    #[test]
    fn l10_a_directory_that_lost_votes_does_not_vote() {
        let mut checker = DirectoryChecker::default();
        assert!(say(&mut checker, WHOLE, vote()).is_ok());
        checker.on_lost(ReplicaId(1), WHOLE);
        assert!(say(&mut checker, WHOLE, vote()).is_err());
    }
}
