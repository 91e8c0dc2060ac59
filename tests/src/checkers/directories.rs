//! L10: a directory that has lost votes, or stands where another one has voted, takes no part; and it is told so.
//!
//! What must be refused is said by whoever makes the directory lose something, who alone knows what it held: see the module
//! `known` of the world for what the protocol promises. The directory is then watched for the rest of the run, so that one
//! which is refused in one start and votes in another is found as well.

use super::{Check, Violation, require};
use crate::host::{Host, Output};
use std::collections::BTreeMap;
use synod_coordinator_core::paxos::Message;
use synod_coordinator_core::replica::Admission;
use synod_proto::ids::{Incarnation, ReplicaId};

/// Watches who takes part.
#[derive(Debug, Default)]
pub struct DirectoryChecker {
    /// The first directory of each replica that took part: there is no way yet to admit another.
    first: BTreeMap<ReplicaId, Incarnation>,
    /// Those that hold less than was acknowledged for them, where enough peers know it, with what happened to them.
    lost: BTreeMap<(ReplicaId, Incarnation), &'static str>,
}

impl DirectoryChecker {
    /// The directory holds less from now on than was acknowledged for it, and too few peers take it for whole. `what`
    /// happened to it.
    pub fn on_lost(&mut self, id: ReplicaId, incarnation: Incarnation, what: &'static str) {
        self.lost.insert((id, incarnation), what);
    }

    /// Too few are left who would know that the directory lost something: nothing is expected of it.
    pub fn on_forgotten(&mut self, id: ReplicaId, incarnation: Incarnation) {
        self.lost.remove(&(id, incarnation));
    }

    /// What happened to a directory that must not take part.
    #[must_use]
    pub fn what(&self, id: ReplicaId, incarnation: Incarnation) -> Option<&'static str> {
        self.lost.get(&(id, incarnation)).copied()
    }

    /// Looks at a turn.
    ///
    /// # Errors
    /// A replica stands, votes or confirms a leader on a directory on which it must not, or was admitted with it.
    pub fn after_turn(&mut self, host: &Host, output: &Output) -> Check {
        let (id, incarnation) = (host.id(), host.store.incarnation);
        if let (Some(what), Some(replica)) = (self.what(id, incarnation), host.replica()) {
            let is_admitted = replica.status().admission == Admission::Admitted;
            require(!is_admitted, || {
                format!("replica {id} was admitted, though its directory {incarnation} was {what}")
            })?;
        }
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
        self.what(id, incarnation).map_or(Ok(()), |what| {
            Err(Violation(format!(
                "replica {id} takes part on directory {incarnation}, though it was {what}: {part:?}"
            )))
        })
    }

    /// In a healed world: every such directory whose process runs was refused. Waiting for ever is no refusal: nobody would
    /// hear that the directory must be given up.
    ///
    /// # Errors
    /// One was not.
    pub fn check_refused<'a>(&self, hosts: impl IntoIterator<Item = &'a Host>) -> Check {
        hosts.into_iter().try_for_each(|host| {
            let admission = host.replica().map(|replica| replica.status().admission);
            admission.map_or(Ok(()), |admission| {
                self.look_healed(host.id(), host.store.incarnation, &admission)
            })
        })
    }

    fn look_healed(&self, id: ReplicaId, incarnation: Incarnation, admission: &Admission) -> Check {
        let Some(what) = self.what(id, incarnation) else {
            return Ok(());
        };
        require(matches!(admission, Admission::Refused { .. }), || {
            format!("replica {id} was not refused, though its directory was {what}; it is {admission:?}")
        })
    }
}

/// Whether only who is admitted may say it.
fn is_part(message: &Message) -> bool {
    matches!(
        message,
        Message::Prepare { .. }
            | Message::Promise { .. }
            | Message::Accept { .. }
            | Message::Accepted { .. }
            | Message::Heartbeat { .. }
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
    use synod_coordinator_core::replica::{Admission, Config};
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
        checker.on_lost(ReplicaId(1), WHOLE, "put back");
        assert!(say(&mut checker, WHOLE, vote()).is_err());
        checker.on_forgotten(ReplicaId(1), WHOLE);
        assert!(say(&mut checker, WHOLE, vote()).is_ok());
    }

    /// A12: found where `WipedReplicaVotes` or `MajorityAdmitsNewDirectory` is planted, before the directory votes.
    #[test]
    fn a12_a_directory_that_is_never_refused_is_found() {
        let mut checker = DirectoryChecker::default();
        checker.on_lost(ReplicaId(1), FRESH, "emptied");
        let pending = Admission::Pending {
            consistent: BTreeSet::from([ReplicaId(1)]),
        };
        let refused = Admission::Refused {
            contradiction: "wiped".to_string(),
        };
        let look = |incarnation, admission| checker.look_healed(ReplicaId(1), incarnation, admission);
        assert!(look(FRESH, &pending).is_err());
        assert!(look(FRESH, &Admission::Admitted).is_err());
        assert_eq!(look(FRESH, &refused), Ok(()));
        assert_eq!(look(WHOLE, &Admission::Admitted), Ok(()));
    }
}
