//! Learning what is decided: from a leader's word (L4), and from peers that know more slots.

use super::{Ignored, Replica, Role};
use crate::effects::{Effects, Fetch, Unsynced};
use crate::paxos::learner::CATCH_UP_BYTES_MAX;
use crate::paxos::{Ballot, Message, Slot};
use crate::time::Now;
use alloc::vec::Vec;
use bytes::Bytes;
use synod_proto::ids::ReplicaId;

/// The most slots in one answer to a question for missing ones.
const CATCH_UP_SLOTS_MAX: u64 = 1024;

impl Replica {
    pub(super) fn hear_decided_by_leader(
        &mut self,
        now: Now,
        ballot: Ballot,
        up_to: Slot,
        effects: &mut Effects<Unsynced>,
    ) {
        if matches!(self.role, Role::Leader(_)) {
            return;
        }
        self.advance_following(ballot, up_to, effects);
        self.hear_decided(now, ballot.replica, up_to, effects);
    }

    /// Somebody knows more decided slots than this replica: ask for them.
    pub(super) fn hear_decided(
        &mut self,
        now: Now,
        peer: ReplicaId,
        up_to: Slot,
        effects: &mut Effects<Unsynced>,
    ) {
        let above = self.acceptor.meta().decided_up_to;
        if peer == self.config.replica || !self.is_writable() {
            return;
        }
        let others: Vec<ReplicaId> = self.peers().collect();
        if let Some(asked) = self
            .learner
            .whom_to_ask(peer, up_to, above, &others, now.monotonic)
        {
            effects.send_early(self.envelope(asked, Message::CatchUp { above }));
        }
    }

    pub(super) fn on_catch_up(&mut self, from: ReplicaId, above: Slot, effects: &mut Effects<Unsynced>) {
        let decided_up_to = self.acceptor.meta().decided_up_to;
        let first = above.next();
        if first > decided_up_to {
            return self.ignore(Ignored::StaleSlot);
        }
        let mut values = Vec::new();
        let mut bytes = 0;
        let mut slot = first;
        while slot <= decided_up_to && (slot.0 - first.0) < CATCH_UP_SLOTS_MAX && bytes < CATCH_UP_BYTES_MAX {
            let Some((_, value)) = self.acceptor.value(slot) else {
                break;
            };
            bytes += value.len();
            values.push(value.clone());
            slot = slot.next();
        }
        if values.is_empty() {
            let up_to = Slot(decided_up_to.0.min(first.0 + CATCH_UP_SLOTS_MAX - 1));
            return effects.fetch(Fetch {
                to: from,
                first,
                up_to,
            });
        }
        effects.send_early(self.envelope(
            from,
            Message::Decided {
                first,
                values,
                decided_up_to,
            },
        ));
    }

    pub(super) fn on_fetched(
        &mut self,
        fetch: Fetch,
        values: Option<Vec<Bytes>>,
        effects: &mut Effects<Unsynced>,
    ) {
        let decided_up_to = self.acceptor.meta().decided_up_to;
        let Some(mut values) = values else { return };
        let mut bytes = 0;
        values.retain(|value| {
            let fits = bytes < CATCH_UP_BYTES_MAX;
            bytes += value.len();
            fits
        });
        let message = Message::Decided {
            first: fetch.first,
            values,
            decided_up_to,
        };
        effects.send_early(self.envelope(fetch.to, message));
    }

    pub(super) fn on_decided(
        &mut self,
        now: Now,
        from: ReplicaId,
        first: Slot,
        values: Vec<Bytes>,
        decided_up_to: Slot,
        effects: &mut Effects<Unsynced>,
    ) {
        if !self.is_writable() {
            return self.ignore(Ignored::NotWritable);
        }
        // A leader knows every decided slot, or has it in flight.
        if matches!(self.role, Role::Leader(_)) {
            return self.ignore(Ignored::StaleSlot);
        }
        self.learner.answered();
        let mut slot = first;
        for value in values {
            let next = self.acceptor.meta().decided_up_to.next();
            if slot > next {
                return self.ignore(Ignored::Discontinuous);
            }
            if slot == next {
                self.acceptor.learn(slot, value);
                self.advance_known(effects);
            }
            slot = slot.next();
        }
        self.hear_decided(now, from, decided_up_to, effects);
        self.look_at_phase_one(now, effects);
    }
}
