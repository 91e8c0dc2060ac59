//! A store in memory: numbers by name. It survives the end of a branch, not of the process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use synod::resource::{
    BranchContext, BranchState, Effect, Identity, InDoubtBranch, LowWater, Prepared, ResourceError,
    ResourceManager,
};
use synod::{BranchId, Lineage, ResourceId, UnixMillis};
use synod_proto::session::Vote;

#[derive(Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

struct State {
    identity: Identity,
    numbers: BTreeMap<String, i64>,
    prepared: BTreeMap<BranchId, (BranchContext, BTreeMap<String, i64>)>,
    committed: BTreeSet<BranchId>,
    aborted: BTreeSet<BranchId>,
    prepare_error: Option<ResourceError>,
    prepare_count: usize,
}

impl Default for MemoryStore {
    fn default() -> Self {
        let mut id = [0; 16];
        getrandom::fill(&mut id).expect("randomness");
        let identity = Identity {
            resource: ResourceId(id),
            lineage: None,
        };
        let state = State {
            identity,
            numbers: BTreeMap::new(),
            prepared: BTreeMap::new(),
            committed: BTreeSet::new(),
            aborted: BTreeSet::new(),
            prepare_error: None,
            prepare_count: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }
}

impl MemoryStore {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no test panics while it holds the store")
    }

    pub fn bound_to(lineage: Lineage) -> Self {
        let store = Self::default();
        store.state().identity.lineage = Some(lineage);
        store
    }

    /// What everybody sees.
    pub fn numbers(&self) -> BTreeMap<String, i64> {
        self.state().numbers.clone()
    }

    pub fn prepared(&self) -> Vec<BranchId> {
        self.state().prepared.keys().copied().collect()
    }

    pub fn committed(&self) -> Vec<BranchId> {
        self.state().committed.iter().copied().collect()
    }

    /// How often `prepare` was called.
    pub fn prepare_count(&self) -> usize {
        self.state().prepare_count
    }

    pub fn fail_next_prepare(&self, error: ResourceError) {
        self.state().prepare_error = Some(error);
    }
}

/// An open local transaction.
pub struct MemoryTransaction {
    writes: BTreeMap<String, i64>,
    store: MemoryStore,
}

impl MemoryTransaction {
    pub fn add(&mut self, name: &str, amount: i64) -> i64 {
        let before = self.get(name);
        self.writes.insert(name.to_owned(), before + amount);
        before + amount
    }

    pub fn get(&self, name: &str) -> i64 {
        let committed = || self.store.state().numbers.get(name).copied();
        self.writes
            .get(name)
            .copied()
            .or_else(committed)
            .unwrap_or_default()
    }
}

impl ResourceManager for MemoryStore {
    type Transaction = MemoryTransaction;

    async fn begin(&self, _context: &BranchContext) -> Result<MemoryTransaction, ResourceError> {
        Ok(MemoryTransaction {
            writes: BTreeMap::new(),
            store: self.clone(),
        })
    }

    async fn prepare(
        &self,
        context: &BranchContext,
        tx: MemoryTransaction,
    ) -> Result<Prepared, ResourceError> {
        let mut state = self.state();
        state.prepare_count += 1;
        if let Some(error) = state.prepare_error.take() {
            return Err(error);
        }
        if state.aborted.contains(&context.branch) {
            return Err(ResourceError::Aborted {
                branch: context.branch,
            });
        }
        let vote = if tx.writes.is_empty() {
            Vote::ReadOnly
        } else {
            Vote::Commit
        };
        if vote == Vote::Commit {
            state
                .prepared
                .insert(context.branch, (context.clone(), tx.writes));
        }
        Ok(Prepared {
            vote,
            digest: 7,
            database_transaction: Bytes::new(),
        })
    }

    async fn commit(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        let mut state = self.state();
        if state.committed.contains(branch) {
            return Ok(Effect::AlreadyApplied);
        }
        match state.prepared.remove(branch) {
            Some((_, writes)) => {
                state.numbers.extend(writes);
                state.committed.insert(*branch);
                Ok(Effect::Applied)
            }
            None => Ok(Effect::Unknown {
                detail: "no such branch".to_owned(),
            }),
        }
    }

    async fn abort(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        let mut state = self.state();
        state.aborted.insert(*branch);
        Ok(if state.prepared.remove(branch).is_some() {
            Effect::Applied
        } else {
            Effect::AlreadyApplied
        })
    }

    async fn status(&self, branch: &BranchId) -> Result<BranchState, ResourceError> {
        let state = self.state();
        Ok(if state.prepared.contains_key(branch) {
            BranchState::Prepared
        } else if state.committed.contains(branch) {
            BranchState::Committed
        } else {
            BranchState::Unknown
        })
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubtBranch>, ResourceError> {
        let in_doubt = |(context, _): &(BranchContext, _)| InDoubtBranch {
            context: context.clone(),
            prepared_at: UnixMillis(0),
        };
        Ok(self.state().prepared.values().map(in_doubt).collect())
    }

    async fn identity(&self, bind: Option<Lineage>) -> Result<Identity, ResourceError> {
        let mut state = self.state();
        match (state.identity.lineage, bind) {
            (Some(found), Some(expected)) if found != expected => {
                return Err(ResourceError::ForeignLineage { expected, found });
            }
            (None, Some(_)) => state.identity.lineage = bind,
            _ => {}
        }
        Ok(state.identity.clone())
    }

    async fn forget(&self, _low_water: &LowWater) -> Result<u64, ResourceError> {
        Ok(0)
    }
}
