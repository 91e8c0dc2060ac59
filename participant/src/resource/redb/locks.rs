//! Exclusive locks on keys, in memory: who holds which, who waits for which, in which order.
//!
//! A value: it neither waits nor wakes anybody. Waiters are served first come, first served. Every wait is
//! checked for a cycle before it begins, so that a deadlock within one store ends at once and with one
//! victim, the transaction that would have closed the cycle; one across stores ends by the lock timeout and
//! the deadline.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use synod_proto::ids::{BranchId, Gtid};

/// A row, whether it exists or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LockKey {
    pub(super) table: Arc<str>,
    pub(super) key: Bytes,
}

impl LockKey {
    /// The key for people.
    pub(super) fn display_key(&self) -> String {
        const SHOWN_BYTES_MAX: usize = 64;
        let shown = &self.key[..self.key.len().min(SHOWN_BYTES_MAX)];
        match std::str::from_utf8(shown) {
            Ok(text) if text.chars().all(|c| !c.is_control()) => text.to_owned(),
            _ => shown.iter().fold(String::from("0x"), |mut out, byte| {
                let _ = write!(out, "{byte:02x}");
                out
            }),
        }
    }
}

/// A local transaction of this process, counted from its start. Prepared branches found at open get one too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner(pub(super) u64);

/// What became of a request for a lock.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Requested {
    /// The lock is held now, or was already.
    Granted,
    /// In the queue; `release` will name the owner once it is granted.
    Queued,
    /// Waiting would close a cycle. Nothing was queued.
    Deadlock,
    /// The lock is held by another branch of the same global transaction (traps C15). Nothing was queued.
    OwnBranch(BranchId),
}

#[derive(Debug)]
struct Lock {
    holder: Owner,
    queue: VecDeque<Owner>,
}

/// The locks of one store.
#[derive(Debug, Default)]
pub(super) struct Locks {
    locks: BTreeMap<LockKey, Lock>,
    held: BTreeMap<Owner, BTreeSet<LockKey>>,
    waiting: BTreeMap<Owner, LockKey>,
    /// Owners that are branches of global transactions.
    branches: BTreeMap<Owner, BranchId>,
}

impl Locks {
    /// Declares that an owner works for a branch.
    pub(super) fn enlist(&mut self, owner: Owner, branch: BranchId) {
        self.branches.insert(owner, branch);
    }

    /// Asks for a lock. An owner waits for at most one lock at a time.
    pub(super) fn request(&mut self, owner: Owner, key: &LockKey) -> Requested {
        assert!(
            !self.waiting.contains_key(&owner),
            "a local transaction waits for one lock at a time"
        );
        let holder = match self.locks.entry(key.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(Lock {
                    holder: owner,
                    queue: VecDeque::new(),
                });
                self.held.entry(owner).or_default().insert(key.clone());
                return Requested::Granted;
            }
            Entry::Occupied(occupied) => occupied.get().holder,
        };
        if holder == owner {
            return Requested::Granted;
        }
        if let Some(refused) = self.check_wait(owner, holder) {
            return refused;
        }
        self.locks
            .get_mut(key)
            .expect("found above")
            .queue
            .push_back(owner);
        self.waiting.insert(owner, key.clone());
        Requested::Queued
    }

    /// Follows the chain of waits from `holder`. An owner waits for one lock at most and a lock has one
    /// holder, so the chain has no branches. Owners that queue before us wait for the same holder: whatever
    /// they lead to, the holder leads to.
    fn check_wait(&self, owner: Owner, holder: Owner) -> Option<Requested> {
        let gtid = self.gtid(owner);
        let mut next = holder;
        loop {
            if next == owner {
                return Some(Requested::Deadlock);
            }
            // A branch of the same global transaction keeps its locks until the outcome, which waits for us:
            // a cycle through the coordinator.
            if gtid.is_some() && self.gtid(next) == gtid {
                return Some(if next == holder {
                    Requested::OwnBranch(self.branches[&next])
                } else {
                    Requested::Deadlock
                });
            }
            next = self.locks[self.waiting.get(&next)?].holder;
        }
    }

    fn gtid(&self, owner: Owner) -> Option<Gtid> {
        self.branches.get(&owner).map(|branch| branch.gtid)
    }

    /// Leaves the queue. `false` if the owner was not waiting (it was granted the lock, or never queued).
    pub(super) fn withdraw(&mut self, owner: Owner) -> bool {
        let Some(key) = self.waiting.remove(&owner) else {
            return false;
        };
        let lock = self.locks.get_mut(&key).expect("a lock with a queue exists");
        lock.queue.retain(|waiter| *waiter != owner);
        true
    }

    /// Ends an owner: it leaves the queue, and its locks pass to those who wait for them. Returns the new
    /// holders.
    pub(super) fn release(&mut self, owner: Owner) -> Vec<Owner> {
        self.withdraw(owner);
        self.branches.remove(&owner);
        let mut granted = Vec::new();
        for key in self.held.remove(&owner).unwrap_or_default() {
            let lock = self.locks.get_mut(&key).expect("a held lock exists");
            match lock.queue.pop_front() {
                None => {
                    self.locks.remove(&key);
                }
                Some(next) => {
                    lock.holder = next;
                    self.waiting.remove(&next);
                    self.held.entry(next).or_default().insert(key);
                    granted.push(next);
                }
            }
        }
        granted
    }

    /// How many locks are held, and how many owners wait.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.locks.len(), self.waiting.len())
    }
}

#[cfg(test)]
mod tests {
    use super::Requested::{Deadlock, Granted, OwnBranch, Queued};
    use super::*;
    use proptest::prelude::*;
    use synod_proto::ids::{CallId, ExecutionId, UnixMillis};

    fn key(key: &'static str) -> LockKey {
        LockKey {
            table: "t".into(),
            key: Bytes::from_static(key.as_bytes()),
        }
    }

    fn branch(gtid: u64, call: u64) -> BranchId {
        BranchId {
            gtid: Gtid::new(UnixMillis(gtid), [0; 10]),
            call: CallId(call),
            execution: ExecutionId(0),
        }
    }

    const A: Owner = Owner(1);
    const B: Owner = Owner(2);
    const C: Owner = Owner(3);

    #[test]
    fn waiters_are_served_in_their_order() {
        let mut locks = Locks::default();
        assert_eq!(
            [A, A, B, C].map(|owner| locks.request(owner, &key("x"))),
            [Granted, Granted, Queued, Queued]
        );
        assert_eq!(locks.release(A), [B]);
        assert_eq!(locks.request(B, &key("x")), Granted);
        assert_eq!(locks.release(B), [C]);
        assert_eq!((locks.release(C), locks.counts()), (vec![], (0, 0)));
    }

    #[test]
    fn who_gives_up_waiting_is_never_granted_the_lock() {
        let mut locks = Locks::default();
        assert_eq!(
            [A, B, C].map(|owner| locks.request(owner, &key("x"))),
            [Granted, Queued, Queued]
        );
        assert!(locks.withdraw(B));
        assert!(!locks.withdraw(B));
        assert_eq!(locks.release(A), [C]);
    }

    #[test]
    fn the_request_that_closes_a_cycle_is_the_victim() {
        let mut locks = Locks::default();
        assert_eq!(locks.request(A, &key("x")), Granted);
        assert_eq!(locks.request(B, &key("y")), Granted);
        assert_eq!(locks.request(C, &key("z")), Granted);
        assert_eq!(locks.request(A, &key("y")), Queued);
        assert_eq!(locks.request(B, &key("z")), Queued);
        assert_eq!(locks.request(C, &key("x")), Deadlock);
        assert_eq!(locks.release(C), [B]);
        assert_eq!(locks.release(B), [A]);
    }

    #[test]
    fn a_cycle_that_forms_through_the_queue_is_seen_too() {
        // B queues behind A for x and then holds it; C, next in the queue, then waits for B.
        let mut locks = Locks::default();
        assert_eq!(locks.request(A, &key("x")), Granted);
        assert_eq!(locks.request(C, &key("y")), Granted);
        assert_eq!(locks.request(B, &key("x")), Queued);
        assert_eq!(locks.request(C, &key("x")), Queued);
        assert_eq!(locks.release(A), [B]);
        assert_eq!(locks.request(B, &key("y")), Deadlock);
    }

    /// Traps C15: the other branch keeps its locks until the outcome, and the outcome waits for this branch.
    #[test]
    fn c15_a_branch_does_not_wait_for_another_of_its_own_transaction() {
        let mut locks = Locks::default();
        locks.enlist(A, branch(7, 1));
        locks.enlist(B, branch(8, 2));
        locks.enlist(C, branch(7, 3));
        assert_eq!(locks.request(A, &key("x")), Granted);
        assert_eq!(locks.request(C, &key("x")), OwnBranch(branch(7, 1)));
        // Through a stranger as well: B waits for A, which cannot finish before C votes.
        assert_eq!(locks.request(B, &key("y")), Granted);
        assert_eq!(locks.request(B, &key("x")), Queued);
        assert_eq!(locks.request(C, &key("y")), Deadlock);
    }

    proptest! {
        /// Whatever is asked and given up: as long as the holders end one after the other, everybody is
        /// served.
        #[test]
        fn nobody_waits_for_ever(steps in proptest::collection::vec((0..6u64, 0..4usize, 0..10u8), 1..80)) {
            let keys = [key("a"), key("b"), key("c"), key("d")];
            let mut locks = Locks::default();
            for (owner, at, action) in steps {
                let owner = Owner(owner);
                match action {
                    0 => { locks.release(owner); }
                    1 => { locks.withdraw(owner); }
                    _ if locks.waiting.contains_key(&owner) => {}
                    _ => if locks.request(owner, &keys[at]) == Deadlock { locks.release(owner); },
                }
                // Somebody who waits for nobody must exist among the holders, else the store has stopped.
                let is_free = |owner| !locks.waiting.contains_key(owner);
                prop_assert!(locks.held.is_empty() || locks.held.keys().any(is_free));
            }
            for _ in 0..6 {
                let is_free = |owner: &&Owner| !locks.waiting.contains_key(owner);
                let Some(free) = locks.held.keys().find(is_free).copied() else { break };
                locks.release(free);
            }
            prop_assert_eq!(locks.counts(), (0, 0));
        }
    }
}
