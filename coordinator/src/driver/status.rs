//! What a replica says of itself, as `synod status` shows it.

use crate::links::wire::from_ballot;
use crate::service::Addresses;
use bytes::Bytes;
use synod_coordinator_core::replica::{Admission, RoleName, Status};
use synod_proto::ids::{ClusterId, Incarnation, Lineage, ReplicaId};
use synod_proto::v1;

/// What the driver says when it is asked how it is.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaStatus {
    status: Status,
    session_count: usize,
    log_write_count: u64,
}

impl ReplicaStatus {
    pub(super) fn new(status: Status, session_count: usize, log_write_count: u64) -> Self {
        Self {
            status,
            session_count,
            log_write_count,
        }
    }

    /// The coordinator's lineage, once this replica has applied the entry that made it.
    pub(crate) fn lineage(&self) -> Option<Lineage> {
        self.status.lineage
    }

    pub(crate) fn into_reply(
        self,
        cluster: &ClusterId,
        replica: ReplicaId,
        incarnation: Incarnation,
        addresses: &Addresses,
    ) -> v1::StatusReply {
        let status = self.status;
        let peer = |(id, address): (&ReplicaId, &String)| v1::PeerStatus {
            replica: u32::from(id.0),
            address: address.clone(),
            connected: status.connected.contains(id),
        };
        let (admission, admission_text) = admission(status.admission, addresses);
        v1::StatusReply {
            cluster: cluster.to_string(),
            replica: u32::from(replica.0),
            incarnation: Bytes::copy_from_slice(&incarnation.0),
            lineage: status
                .lineage
                .map(|lineage| Bytes::copy_from_slice(&lineage.0))
                .unwrap_or_default(),
            role: role(status.role).to_owned(),
            leader: status.leader.map_or(0, |leader| u32::from(leader.0)),
            ballot: Some(from_ballot(status.ballot)),
            decided_up_to: status.decided_up_to.0,
            applied_up_to: status.applied_up_to.0,
            stamp_unix_ms: status.stamp.0,
            mark_unix_ms: status.mark.0,
            outcome_count: status.outcome_count as u64,
            unfinished_count: status.unfinished_count as u64,
            hazard_count: status.hazard_count as u64,
            session_count: self.session_count as u64,
            admission: admission.to_owned(),
            admission_text,
            read_only: status.failure.unwrap_or_default(),
            peers: addresses
                .iter()
                .filter(|(id, _)| **id != replica)
                .map(peer)
                .collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process_id: std::process::id(),
            log_write_count: self.log_write_count,
        }
    }
}

/// The state, and the sentence to it (L10).
fn admission(admission: Admission, addresses: &Addresses) -> (&'static str, String) {
    match admission {
        Admission::Admitted => ("admitted", String::new()),
        Admission::Pending { consistent } => {
            let silent = addresses.keys().filter(|id| !consistent.contains(id));
            let silent: Vec<_> = silent.map(ToString::to_string).collect();
            let text = format!(
                "waits to hear from replica {} that its directory is the one they know; a directory that was never \
                 admitted waits for all of them, any other for a majority",
                silent.join(", ")
            );
            ("pending", text)
        }
        Admission::Refused { contradiction } => ("refused", contradiction),
    }
}

/// A leader that is still applying what was chosen before it serves nobody yet, and so does not call itself one (A4).
fn role(role: RoleName) -> &'static str {
    match role {
        RoleName::Serving => "leader",
        RoleName::Leading | RoleName::Candidate => "candidate",
        RoleName::Follower => "follower",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn who_is_not_admitted_says_why() {
        let addresses: Addresses =
            Arc::new([1, 2, 3].map(|id| (ReplicaId(id), format!("r{id}:7401"))).into());
        assert_eq!(
            admission(Admission::Admitted, &addresses),
            ("admitted", String::new())
        );
        let (state, text) = admission(
            Admission::Pending {
                consistent: [ReplicaId(1)].into(),
            },
            &addresses,
        );
        assert_eq!(
            (state, text.starts_with("waits to hear from replica 2, 3 that")),
            ("pending", true),
            "{text}"
        );
        let contradiction = "the directory was wiped".to_owned();
        assert_eq!(
            admission(
                Admission::Refused {
                    contradiction: contradiction.clone()
                },
                &addresses
            ),
            ("refused", contradiction)
        );
    }
}
