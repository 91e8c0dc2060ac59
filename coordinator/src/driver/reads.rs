//! Reads of decided values for replicas that lag.

use crate::log::{ReadError, Storage};
use bytes::Bytes;
use std::ops::RangeInclusive;
use synod_coordinator_core::effects::Fetch;
use synod_coordinator_core::paxos::learner::CATCH_UP_BYTES_MAX;
use synod_coordinator_core::paxos::{Accepted, Slot};
use synod_coordinator_core::replica::Input;

/// The most bytes of values that one fetch reads: what the core sends in one message, with room to spare.
const FETCH_BYTES_MAX: usize = 2 * CATCH_UP_BYTES_MAX;

/// Reads what a fetch asks for: the longest readable run of slots from its first on.
pub(super) fn fetch(storage: &Storage, fetch: Fetch) -> impl Future<Output = Read> + Send + 'static + use<> {
    let range = fetch.first..=fetch.up_to;
    let read = storage.read_range(range.clone(), FETCH_BYTES_MAX);
    async move {
        Read {
            fetch,
            range,
            result: read.await,
        }
    }
}

/// A read that is done.
pub(super) struct Read {
    fetch: Fetch,
    range: RangeInclusive<Slot>,
    result: Result<Vec<Accepted>, ReadError>,
}

/// What follows from a read.
pub(super) enum Followed {
    /// The core is told.
    Told(Input),
    /// A slot within the range cannot be read: those before it are read on their own.
    Again(Fetch),
}

impl Read {
    pub(super) fn follow(self) -> Followed {
        let Self { fetch, range, result } = self;
        let values = match result {
            Ok(accepted) => consecutive(fetch.first, accepted),
            Err(error) => {
                tracing::warn!(slots = ?range, %error, "cannot read decided values for a peer");
                let unreadable = match error {
                    ReadError::Unreadable { slot }
                    | ReadError::Corrupt { slot, .. }
                    | ReadError::Io { slot, .. } => slot,
                    // The peer asks again.
                    ReadError::Busy | ReadError::Stopped => fetch.first,
                };
                if unreadable > fetch.first && unreadable <= fetch.up_to {
                    return Followed::Again(Fetch {
                        up_to: Slot(unreadable.0 - 1),
                        ..fetch
                    });
                }
                None
            }
        };
        Followed::Told(Input::Fetched { fetch, values })
    }
}

/// The values from `first` on, up to the first gap.
fn consecutive(first: Slot, accepted: Vec<Accepted>) -> Option<Vec<Bytes>> {
    let mut next = first;
    let mut values = Vec::with_capacity(accepted.len());
    for Accepted { slot, value, .. } in accepted {
        if slot != next {
            break;
        }
        values.push(value);
        next = slot.next();
    }
    (!values.is_empty()).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use synod_coordinator_core::paxos::Ballot;
    use synod_proto::ids::ReplicaId;

    fn accepted(slot: u64) -> Accepted {
        Accepted {
            slot: Slot(slot),
            ballot: Ballot::ZERO,
            value: Bytes::from(vec![u8::try_from(slot).unwrap_or(0)]),
        }
    }

    fn read(result: Result<Vec<Accepted>, ReadError>) -> Read {
        let fetch = Fetch {
            to: ReplicaId(2),
            first: Slot(3),
            up_to: Slot(6),
        };
        Read {
            fetch,
            range: fetch.first..=fetch.up_to,
            result,
        }
    }

    fn told(result: Result<Vec<Accepted>, ReadError>) -> Option<Vec<u8>> {
        match read(result).follow() {
            Followed::Told(Input::Fetched { values, .. }) => {
                Some(values?.iter().map(|value| value[0]).collect())
            }
            _ => panic!("not told"),
        }
    }

    /// L3: a gap is not skipped, and an unreadable slot is not reported as empty.
    #[test]
    fn only_an_unbroken_run_is_told() {
        assert_eq!(
            told(Ok(vec![accepted(3), accepted(4), accepted(6)])),
            Some(vec![3, 4])
        );
        assert_eq!(told(Ok(vec![accepted(4)])), None);
        assert_eq!(told(Ok(Vec::new())), None);
        assert_eq!(told(Err(ReadError::Unreadable { slot: Slot(3) })), None);
        assert_eq!(told(Err(ReadError::Busy)), None);
        match read(Err(ReadError::Unreadable { slot: Slot(5) })).follow() {
            Followed::Again(fetch) => assert_eq!((fetch.first, fetch.up_to), (Slot(3), Slot(4))),
            Followed::Told(_) => panic!("what lies before is readable"),
        }
    }
}
