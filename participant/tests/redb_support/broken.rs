//! Resource managers that are broken on purpose: redb, with one fault each. The conformance kit must find every
//! one of them, by the check that is about it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;
use synod::conformance::{Claims, Harness, Instances};
use synod::resource::redb::{
    MemoryDisk, MemoryDiskBackend, PowerLoss, RedbOptions, RedbResource, RedbTransaction,
};
use synod::resource::{
    BranchContext, BranchState, Effect, Identity, InDoubtBranch, LowWater, Prepared, ResourceError,
    ResourceManager, Vote,
};
use synod::{BoxError, BranchId, Lineage, ResourceId, UnixMillis};

use super::conformance;

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The disk acknowledges the sync of a prepare, and does it later.
    VotesBeforeItIsDurable,
    /// The same of a commit.
    CommitsBeforeItIsDurable,
    /// A commit that comes again does its work again.
    RepeatedCommitsAddUp,
    /// The abort of a branch that is not here leaves no trace of itself.
    EmptyAbortsLeaveNothing,
    /// "No such branch" is taken for "done".
    UnknownIsAcknowledged,
    /// Only what this process prepared is in doubt.
    ListsOnlyItsOwn,
    /// The list is of ids.
    ListsNoDeadlines,
    /// Reads do not wait for the commit.
    ReadsAreDirty,
    /// What is below the mark is not needed, is it?
    ForgetEndsWhatIsPrepared,
    /// The identity is the process's.
    IdentityIsMadeAtOpen,
    /// Who began by reading is a reader.
    ReadersThatWriteAreReadOnly,
    /// A lock is not a write.
    LocksAreReadOnly,
    /// A branch past its deadline is given up.
    SettlesAtTheDeadline,
    /// What was committed is known to whoever committed it.
    ProofIsInMemory,
    /// The caller's future marks a commit's begin and end.
    DroppedCommitsStayBusy,
    /// Prepared, or not there.
    UnknownWhilePreparing,
    /// A branch is a branch.
    TakesAnyLineage,
}

/// The disk, and whether it lies.
#[derive(Clone, Default)]
pub struct LyingDisk {
    disk: MemoryDisk,
    is_lying: Arc<AtomicBool>,
}

#[derive(Debug)]
struct LyingBackend {
    backend: MemoryDiskBackend,
    is_lying: Arc<AtomicBool>,
}

impl StorageBackend for LyingBackend {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.backend.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.is_lying.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backend.write(offset, data)
    }
}

/// A broken store, as one process sees it.
pub struct Broken {
    fault: Fault,
    store: RedbResource,
    is_lying: Arc<AtomicBool>,
    memory: Arc<Mutex<Memory>>,
}

/// What only this process knows: the root of half of these faults.
#[derive(Default)]
struct Memory {
    resource: Option<ResourceId>,
    /// What each branch prepared here works on.
    prepared: BTreeMap<BranchId, Vec<String>>,
    committed: BTreeSet<BranchId>,
    busy: BTreeSet<BranchId>,
    /// Not committed yet, and read.
    dirty: BTreeMap<BranchId, Vec<String>>,
}

pub struct BrokenTransaction {
    tx: RedbTransaction,
    items: Vec<String>,
    has_looked_first: bool,
    has_locked: bool,
}

impl Broken {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap()
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// While it is not dropped, the disk lies, if this is the fault.
    fn lie_during(&self, fault: Fault) -> Option<Lie> {
        self.has(fault).then(|| {
            self.is_lying.store(true, Ordering::SeqCst);
            Lie(self.is_lying.clone())
        })
    }

    async fn settle_at_deadline(&self) -> Result<(), ResourceError> {
        if self.has(Fault::SettlesAtTheDeadline) {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap();
            for listed in self.store.in_doubt().await? {
                if u128::from(listed.context.deadline.0) < now.as_millis() {
                    self.store.abort(&listed.context.branch).await?;
                }
            }
        }
        Ok(())
    }
}

struct Lie(Arc<AtomicBool>);

impl Drop for Lie {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl ResourceManager for Broken {
    type Transaction = BrokenTransaction;

    async fn begin(&self, context: &BranchContext) -> Result<BrokenTransaction, ResourceError> {
        let mut context = context.clone();
        if self.has(Fault::TakesAnyLineage) {
            context.lineage = self
                .store
                .identity(None)
                .await?
                .lineage
                .unwrap_or(context.lineage);
        }
        Ok(BrokenTransaction {
            tx: self.store.begin(&context).await?,
            items: Vec::new(),
            has_looked_first: false,
            has_locked: false,
        })
    }

    async fn prepare(
        &self,
        context: &BranchContext,
        tx: BrokenTransaction,
    ) -> Result<Prepared, ResourceError> {
        let mut context = context.clone();
        if self.has(Fault::TakesAnyLineage) {
            context.lineage = self
                .store
                .identity(None)
                .await?
                .lineage
                .unwrap_or(context.lineage);
        }
        let is_taken_for_reader = match self.fault {
            Fault::ReadersThatWriteAreReadOnly => tx.has_looked_first,
            Fault::LocksAreReadOnly => tx.has_locked && tx.items.is_empty(),
            _ => false,
        };
        if is_taken_for_reader {
            return Ok(Prepared {
                vote: Vote::ReadOnly,
                digest: 0,
                database_transaction: Default::default(),
            });
        }
        let _lie = self.lie_during(Fault::VotesBeforeItIsDurable);
        let prepared = self.store.prepare(&context, tx.tx).await?;
        if prepared.vote == Vote::Commit {
            let mut memory = self.memory();
            if self.has(Fault::ReadsAreDirty) {
                memory.dirty.insert(context.branch, tx.items.clone());
            }
            memory.prepared.insert(context.branch, tx.items);
        }
        Ok(prepared)
    }

    async fn commit(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        if self.has(Fault::DroppedCommitsStayBusy) {
            if !self.memory().busy.insert(*branch) {
                return Err(ResourceError::Busy { branch: *branch });
            }
            tokio::task::yield_now().await;
        }
        if self.has(Fault::UnknownWhilePreparing) && self.store.status(branch).await? == BranchState::Working
        {
            return Ok(Effect::Unknown {
                detail: "not prepared".into(),
            });
        }
        let _lie = self.lie_during(Fault::CommitsBeforeItIsDurable);
        let mut effect = self.store.commit(branch).await?;
        match (self.fault, &effect) {
            (Fault::UnknownIsAcknowledged, Effect::Unknown { .. }) => effect = Effect::AlreadyApplied,
            (Fault::ProofIsInMemory, Effect::AlreadyApplied) if !self.memory().committed.contains(branch) => {
                effect = Effect::Unknown {
                    detail: "no such branch".into(),
                };
            }
            (Fault::RepeatedCommitsAddUp, Effect::AlreadyApplied) => {
                let items = self.memory().prepared.get(branch).cloned().unwrap_or_default();
                self.store
                    .local(async |tx| {
                        for item in &items {
                            conformance::work(tx, item).await?;
                        }
                        Ok::<_, ResourceError>(())
                    })
                    .await?;
            }
            _ => {}
        }
        let mut memory = self.memory();
        memory.busy.remove(branch);
        memory.dirty.remove(branch);
        if effect == Effect::Applied {
            memory.committed.insert(*branch);
        }
        Ok(effect)
    }

    async fn abort(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        self.memory().dirty.remove(branch);
        if self.has(Fault::EmptyAbortsLeaveNothing)
            && self.store.status(branch).await? == BranchState::Unknown
        {
            return Ok(Effect::Applied);
        }
        self.store.abort(branch).await
    }

    async fn status(&self, branch: &BranchId) -> Result<BranchState, ResourceError> {
        self.settle_at_deadline().await?;
        self.store.status(branch).await
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubtBranch>, ResourceError> {
        self.settle_at_deadline().await?;
        let mut listed = self.store.in_doubt().await?;
        match self.fault {
            Fault::ListsOnlyItsOwn => {
                let memory = self.memory();
                listed.retain(|branch| memory.prepared.contains_key(&branch.context.branch));
            }
            Fault::ListsNoDeadlines => {
                listed
                    .iter_mut()
                    .for_each(|branch| branch.context.deadline = UnixMillis(0));
            }
            _ => {}
        }
        Ok(listed)
    }

    async fn identity(&self, bind: Option<Lineage>) -> Result<Identity, ResourceError> {
        let mut identity = self.store.identity(bind).await?;
        if self.has(Fault::IdentityIsMadeAtOpen) {
            let made = self
                .memory()
                .resource
                .get_or_insert_with(|| {
                    let mut made = [0; 16];
                    getrandom::fill(&mut made).unwrap();
                    ResourceId(made)
                })
                .to_owned();
            identity.resource = made;
        }
        Ok(identity)
    }

    async fn forget(&self, low_water: &LowWater) -> Result<u64, ResourceError> {
        if self.has(Fault::ForgetEndsWhatIsPrepared) {
            for listed in self.store.in_doubt().await? {
                let gtid = listed.context.branch.gtid;
                if gtid.began_at() < low_water.mark && !low_water.unfinished.contains(&gtid) {
                    self.store.abort(&listed.context.branch).await?;
                }
            }
        }
        self.store.forget(low_water).await
    }
}

pub struct OnLyingDisk(pub Fault);

impl Harness for OnLyingDisk {
    type Store = Broken;
    type Database = LyingDisk;

    fn claims(&self) -> Claims {
        Claims {
            instances: Instances::NotTested,
            ..conformance::CLAIMS
        }
    }

    async fn create(&self, _check: &str) -> Result<LyingDisk, BoxError> {
        Ok(LyingDisk::default())
    }

    async fn open(&self, database: &LyingDisk) -> Result<Broken, ResourceError> {
        let LyingDisk { disk, is_lying } = database.clone();
        let store = RedbOptions::default().open_backend({
            let is_lying = is_lying.clone();
            move || LyingBackend {
                backend: disk.backend(),
                is_lying: is_lying.clone(),
            }
        })?;
        Ok(Broken {
            fault: self.0,
            store,
            is_lying,
            memory: Arc::default(),
        })
    }

    async fn crash(&self, database: &LyingDisk) -> Result<(), BoxError> {
        database.disk.lose_power(PowerLoss::Lost);
        Ok(())
    }

    async fn work(&self, tx: &mut BrokenTransaction, item: &str) -> Result<(), ResourceError> {
        conformance::work(&mut tx.tx, item).await?;
        tx.items.push(item.to_owned());
        Ok(())
    }

    async fn look(&self, tx: &mut BrokenTransaction, item: &str) -> Result<u64, ResourceError> {
        tx.has_looked_first |= tx.items.is_empty();
        conformance::look(&mut tx.tx, item).await
    }

    async fn lock(&self, tx: &mut BrokenTransaction, item: &str) -> Result<Option<u64>, ResourceError> {
        tx.has_locked = true;
        conformance::lock(&mut tx.tx, item).await
    }

    async fn effect(&self, store: &Broken, item: &str) -> Result<u64, BoxError> {
        let dirty = store.memory();
        let dirty = dirty.dirty.values().flatten().filter(|worked| *worked == item);
        Ok(conformance::effect(&store.store, item)? + dirty.count() as u64)
    }
}
