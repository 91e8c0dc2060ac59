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
    touched: RefCell<Vec<Touched>>,
}

/// A branch that something was done to, and what its rows said at once.
struct Touched {
    branch: BranchId,
    context: Option<BranchContext>,
    seen: Option<Rows>,
}

/// What a store's tables say of a branch.
#[derive(Clone, Copy)]
struct Rows {
    state: Option<RowState>,
    is_forgotten: bool,
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

    /// Something was done to this branch: look at its rows. By the end of the turn the store may have failed, of something else
    /// that was written in it.
    pub(super) fn touch(&self, branch: BranchId, context: Option<BranchContext>) {
        let seen = self.redb.snapshot().and_then(|snapshot| rows(&snapshot, branch));
        self.touched.borrow_mut().push(Touched {
            branch,
            context,
            seen: seen.ok(),
        });
    }

    /// Looks at the rows of what was touched, and tells the checkers' picture of the databases.
    pub(super) fn look(&self, databases: &mut Databases) {
        let touched = self.touched.take();
        if touched.is_empty() {
            return;
        }
        let snapshot = self.redb.snapshot().ok();
        for one in touched {
            let now = snapshot
                .as_ref()
                .map(|snapshot| rows(snapshot, one.branch).expect("readable"));
            if let Some(rows) = now.or(one.seen) {
                observe(rows, self.resource, one.branch, one.context.as_ref(), databases);
            }
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
    let rows = rows(snapshot, branch).expect("readable");
    observe(rows, resource, branch, context, databases);
}

fn rows(snapshot: &Snapshot, branch: BranchId) -> Result<Rows, ResourceError> {
    let state = match snapshot.status(&branch)? {
        BranchState::Prepared => Some(RowState::Prepared),
        BranchState::Committed => Some(RowState::Committed),
        BranchState::Aborted => Some(RowState::Aborted),
        BranchState::Working | BranchState::Unknown => None,
    };
    Ok(Rows {
        state,
        is_forgotten: state.is_none() && branch.gtid.began_at() < snapshot.low_water()?,
    })
}

fn observe(
    rows: Rows,
    resource: ResourceId,
    branch: BranchId,
    context: Option<&BranchContext>,
    databases: &mut Databases,
) {
    if !rows.is_forgotten {
        databases.observe(resource, branch, context, rows.state);
    }
}
