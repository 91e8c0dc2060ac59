//! The real redb resource manager on a disk in memory, and the look at its tables that checkers rest on.

use super::desk::Desk;
use super::tasks::Clock;
use crate::actors::databases::{Databases, RowState};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;
use synod::resource::redb::{MemoryDisk, RedbOptions, RedbResource, Snapshot};
use synod::resource::{BranchContext, BranchState, ResourceError};
use synod_proto::ids::{BranchId, ResourceId};

/// redb's page cache. The files are small, and there are many runs.
const CACHE_BYTES: usize = 256 << 10;

/// How a store lives in its machine.
#[derive(Clone, Copy, Debug)]
pub struct StoreHabits {
    /// Whether redb saves its allocator with every commit.
    pub quick_repair: bool,
    /// How many of a million prepared branches are "unknown" to the store for a while when they are to be finished, as in
    /// a database whose preparing session still lives (T8). It lists them all the same.
    pub veil_ppm: u64,
    /// The longest time that an operation of the disk takes.
    pub disk_us_max: u64,
}

/// One opening of a store.
pub(super) struct Store {
    pub(super) redb: RedbResource,
    pub(super) resource: ResourceId,
    veil_ppm: u64,
    /// Branches that the store does not show for now, and until when.
    veiled: RefCell<BTreeMap<BranchId, u64>>,
    /// Branches that something was done to since the last look.
    touched: RefCell<Vec<(BranchId, Option<BranchContext>)>>,
}

/// Opens the store on its disk, and makes it if the disk is empty.
pub(super) fn open(
    disk: &MemoryDisk,
    clock: &Clock,
    resource: ResourceId,
    quick_repair: bool,
) -> Result<RedbResource, ResourceError> {
    let (disk, walls, timers) = (disk.clone(), clock.clone(), clock.clone());
    RedbOptions::default()
        .inline()
        .cache_bytes(CACHE_BYTES)
        .quick_repair(quick_repair)
        .lock_timeout(Duration::from_millis(1_500))
        .clock(move || walls.wall())
        .timer(move |length| {
            let length = u64::try_from(length.as_micros()).unwrap_or(u64::MAX);
            Box::pin(timers.sleep(length))
        })
        .random(move |bytes| {
            bytes.copy_from_slice(&resource.0[..bytes.len()]);
            Ok(())
        })
        .open_backend(move || disk.backend())
}

impl Store {
    pub(super) fn new(redb: RedbResource, resource: ResourceId, habits: StoreHabits) -> Self {
        Self {
            redb,
            resource,
            veil_ppm: habits.veil_ppm,
            veiled: RefCell::default(),
            touched: RefCell::default(),
        }
    }

    /// Whether the store says "unknown" of a branch that it holds prepared, and lists. Of what it has finished it has
    /// proof and says so, also when the outcome is delivered again (T8): a branch that is neither
    /// listed nor known is a hazard (C11).
    pub(super) fn is_veiled(&self, desk: &Desk, branch: BranchId) -> bool {
        let now = desk.clock.now();
        let mut veiled = self.veiled.borrow_mut();
        let until = veiled
            .entry(branch)
            .or_insert_with(|| match desk.happens(self.veil_ppm) {
                true => now + desk.random(|random| random.between(1_000, 8_000_000)),
                false => 0,
            });
        now < *until && self.holds_prepared(branch)
    }

    fn holds_prepared(&self, branch: BranchId) -> bool {
        let state = self.redb.snapshot().and_then(|snapshot| snapshot.status(&branch));
        matches!(state, Ok(BranchState::Prepared))
    }

    /// Something was done to this branch: look at its rows.
    pub(super) fn touch(&self, branch: BranchId, context: Option<BranchContext>) {
        self.touched.borrow_mut().push((branch, context));
    }

    /// Looks at the rows of what was touched, and tells the checkers' picture of the databases.
    pub(super) fn look(&self, databases: &mut Databases) {
        let touched = self.touched.take();
        if touched.is_empty() {
            return;
        }
        let Ok(snapshot) = self.redb.snapshot() else {
            return;
        };
        for (branch, context) in touched {
            look_at(&snapshot, self.resource, branch, context.as_ref(), databases);
        }
    }

    /// After an opening: whatever was there before must be there still, and what has come unseen is seen now.
    pub(super) fn look_at_all(&self, databases: &mut Databases) {
        let snapshot = self.redb.snapshot().expect("a store that was just opened");
        for found in snapshot.in_doubt().expect("readable") {
            let branch = found.context.branch;
            look_at(&snapshot, self.resource, branch, Some(&found.context), databases);
        }
        for branch in databases.branches(self.resource) {
            look_at(&snapshot, self.resource, branch, None, databases);
        }
    }
}

fn look_at(
    snapshot: &Snapshot,
    resource: ResourceId,
    branch: BranchId,
    context: Option<&BranchContext>,
    databases: &mut Databases,
) {
    let state = match snapshot.status(&branch).expect("readable") {
        BranchState::Prepared => Some(RowState::Prepared),
        BranchState::Committed => Some(RowState::Committed),
        BranchState::Aborted => Some(RowState::Aborted),
        BranchState::Working | BranchState::Unknown => None,
    };
    let low_water = snapshot.low_water().expect("readable");
    let is_forgotten = state.is_none() && branch.gtid.began_at() < low_water;
    if !is_forgotten {
        databases.observe(resource, branch, context, state);
    }
}
