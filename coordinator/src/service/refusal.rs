//! A refusal as a gRPC status: the code says whether to send again, the text what to do.

use super::Addresses;
use synod_proto::session::Refusal;
use tonic::Status;
use tonic::metadata::MetadataValue;

/// The metadata key under which a replica that does not lead names the leader's address, `host:port`.
pub(crate) const LEADER_METADATA_KEY: &str = "synod-leader";

/// The status of a refused single call.
pub(super) fn status(refusal: Refusal, addresses: &Addresses) -> Status {
    match refusal {
        Refusal::NotLeader { leader } => {
            let address = leader.and_then(|leader| addresses.get(&leader));
            let Some(address) = address else {
                return Status::unavailable("this replica does not lead, and knows of no leader; try again");
            };
            let mut status = Status::failed_precondition(format!(
                "this replica does not lead; the leader is at {address}"
            ));
            if let Ok(value) = MetadataValue::try_from(address.as_str()) {
                status.metadata_mut().insert(LEADER_METADATA_KEY, value);
            }
            status
        }
        Refusal::Overloaded { what } => {
            Status::resource_exhausted(format!("overloaded: {what}; back off, then send the same again"))
        }
        Refusal::Invalid { text } => Status::invalid_argument(text),
        Refusal::FromFuture { ahead_ms } => Status::out_of_range(format!(
            "the gtid or deadline lies {ahead_ms} ms too far ahead of the coordinator's clock; check the caller's clock, and where the gtid comes from"
        )),
        Refusal::ForeignLineage { expected } => Status::failed_precondition(format!(
            "the request belongs to another coordinator; this one's lineage is {expected}"
        )),
        Refusal::NotFound { text } => Status::not_found(text),
        Refusal::ReadOnly { text } => {
            Status::unavailable(format!("this replica cannot write: {text}; ask another one"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use synod_proto::ids::{Lineage, ReplicaId};
    use tonic::Code;

    /// J8: the code alone tells a client whether to send again, and where.
    #[test]
    fn every_refusal_has_its_code() {
        let addresses: Addresses = Arc::new([(ReplicaId(2), "b:7401".to_owned())].into());
        let codes = [
            (
                Refusal::NotLeader {
                    leader: Some(ReplicaId(2)),
                },
                Code::FailedPrecondition,
            ),
            (Refusal::NotLeader { leader: None }, Code::Unavailable),
            (
                Refusal::Overloaded {
                    what: "queue".to_owned(),
                },
                Code::ResourceExhausted,
            ),
            (
                Refusal::Invalid {
                    text: "bad".to_owned(),
                },
                Code::InvalidArgument,
            ),
            (Refusal::FromFuture { ahead_ms: 1 }, Code::OutOfRange),
            (
                Refusal::ForeignLineage {
                    expected: Lineage([1; 16]),
                },
                Code::FailedPrecondition,
            ),
            (
                Refusal::NotFound {
                    text: "none".to_owned(),
                },
                Code::NotFound,
            ),
            (
                Refusal::ReadOnly {
                    text: "disk full".to_owned(),
                },
                Code::Unavailable,
            ),
        ];
        for (refusal, code) in codes {
            let status = status(refusal.clone(), &addresses);
            assert_eq!(status.code(), code, "{refusal:?}");
            let leader = status
                .metadata()
                .get(LEADER_METADATA_KEY)
                .map(|value| value.to_str().expect("ascii").to_owned());
            let expected = (refusal
                == Refusal::NotLeader {
                    leader: Some(ReplicaId(2)),
                })
            .then(|| "b:7401".to_owned());
            assert_eq!(leader, expected, "{refusal:?}");
        }
    }
}
