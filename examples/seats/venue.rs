//! A venue's seat map as a resource manager: what somebody writes who has data that no ready-made store fits.
//!
//! State is kept in memory and rebuilt from a [journal](super::journal). The rule of the house is: *append, sync, then
//! change the memory, then answer*. A row of seats is locked by the branch that books in it, from the booking to the
//! outcome; that, too, follows from the journal, so that a restart has the locks of prepared branches back before it takes
//! new work.
//!
//! The numbers in comments are those of the contract in the documentation of `ResourceManager`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use synod::resource::{
    BranchContext, BranchState, Effect, Identity, InDoubtBranch, LowWater, Prepared, ResourceError,
    ResourceManager, Vote,
};
use synod::{BranchId, Lineage, ResourceId, UnixMillis};
use tokio::sync::Notify;

use crate::journal::{self, Bookings, Journal, Name, Record};

/// The longest name of a row or of a guest, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 256;

/// So many records that nobody needs any more are worth a new journal.
const DEAD_RECORD_COUNT_MAX: usize = 1_000;

/// The seat map. Cheap to clone: clones are handles to the same one.
#[derive(Clone, Debug)]
pub(crate) struct SeatMap(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    seats_per_row: u32,
    state: Mutex<State>,
    /// Whenever a row may have become free.
    freed: Notify,
    /// Keeps a second process out: its memory would know nothing of this one's records.
    _owned: File,
}

#[derive(Debug)]
struct State {
    journal: Journal,
    /// A write failed: what the journal holds is unknown until it is read again.
    has_failed: bool,
    content: Content,
    /// Rows that are locked, and by whom.
    locks: BTreeMap<String, BranchId>,
    /// Branches with an open local transaction.
    working: BTreeSet<BranchId>,
    record_count: usize,
}

/// What the journal says.
#[derive(Debug, Default)]
struct Content {
    resource: Option<ResourceId>,
    lineage: Option<Lineage>,
    mark: UnixMillis,
    taken: Bookings,
    prepared: BTreeMap<BranchId, PreparedBranch>,
    /// Whether the branch committed: the proof.
    markers: BTreeMap<BranchId, bool>,
}

#[derive(Debug)]
struct PreparedBranch {
    context: BranchContext,
    prepared_at: UnixMillis,
    bookings: Bookings,
    locked: Vec<String>,
}

/// What a branch works with. Nothing of it is in the seat map before the commit.
#[derive(Debug)]
pub(crate) struct SeatTransaction {
    map: SeatMap,
    context: BranchContext,
    bookings: Bookings,
    locked: BTreeSet<String>,
}

fn now() -> UnixMillis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ResourceError {
    ResourceError::Failed(Arc::from(error.into()))
}

fn damaged() -> ResourceError {
    failed("the journal holds a record that cannot follow the ones before it: restore the file from a copy")
}

impl SeatTransaction {
    /// Books the first free seat of a row for a guest. `None`: the row is sold out.
    ///
    /// Waits while another branch books in that row, until this branch's deadline at the latest.
    pub(crate) async fn book(&mut self, row: &str, guest: &str) -> Result<Option<u32>, ResourceError> {
        check_name("a guest's name", guest)?;
        self.lock(row).await?;
        let own = self.bookings.entry(row.to_owned()).or_default();
        let state = self.map.state();
        let taken = state.content.taken.get(row);
        let is_free =
            |seat: &u32| !own.contains_key(seat) && taken.is_none_or(|taken| !taken.contains_key(seat));
        let free = (1..=self.map.0.seats_per_row).find(is_free);
        if let Some(seat) = free {
            own.insert(seat, guest.to_owned());
        }
        Ok(free)
    }

    /// How many seats of a row are taken, this branch's included. Locks nothing: it may be different a moment later.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the program has nothing to read; its tests have")
    )]
    pub(crate) fn taken_count(&self, row: &str) -> usize {
        let own = self.bookings.get(row).map_or(0, BTreeMap::len);
        own + self.map.state().content.taken.get(row).map_or(0, BTreeMap::len)
    }

    /// Nobody else books in this row until the outcome.
    pub(crate) async fn lock(&mut self, row: &str) -> Result<(), ResourceError> {
        check_name("a row's name", row)?;
        if self.locked.contains(row) {
            return Ok(());
        }
        loop {
            // Before looking: what is freed in between must not be missed.
            let freed = self.map.0.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut state = self.map.state();
                match state.locks.get(row) {
                    None => {
                        state.locks.insert(row.to_owned(), self.context.branch);
                        self.locked.insert(row.to_owned());
                        return Ok(());
                    }
                    // It would wait for the outcome, which waits for this branch.
                    Some(holder) if holder.gtid == self.context.branch.gtid => {
                        return Err(ResourceError::OwnBranch {
                            table: "rows".to_owned(),
                            key: row.to_owned(),
                            holder: *holder,
                        });
                    }
                    Some(_) => {}
                }
            }
            // Contract 3: waiting ends. So does a deadlock, if two branches want each other's rows.
            let patience = Duration::from_millis(self.context.deadline.0.saturating_sub(now().0));
            if tokio::time::timeout(patience, freed).await.is_err() {
                return Err(ResourceError::DeadlineExceeded);
            }
        }
    }
}

impl Drop for SeatTransaction {
    // Contract 1. If it is prepared by now, the locks are the prepared branch's.
    fn drop(&mut self) {
        let mut state = self.map.state();
        let branch = self.context.branch;
        state.working.remove(&branch);
        if !state.content.prepared.contains_key(&branch) {
            for row in &self.locked {
                if state.locks.get(row) == Some(&branch) {
                    state.locks.remove(row);
                }
            }
        }
        drop(state);
        self.map.0.freed.notify_waiters();
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), ResourceError> {
    match name.len() {
        0 => Err(ResourceError::Invalid {
            text: format!("{what} is empty"),
        }),
        1..=NAME_BYTES_MAX => Ok(()),
        bytes => Err(ResourceError::TooLarge {
            what,
            bytes,
            bytes_max: NAME_BYTES_MAX,
        }),
    }
}

impl SeatMap {
    /// Opens the journal at `path`, or makes one. Blocks while it reads it.
    pub(crate) fn open(path: &Path, seats_per_row: u32) -> Result<Self, ResourceError> {
        let what = path.display().to_string();
        let open_error = |error: std::io::Error| ResourceError::Open {
            what: what.clone(),
            source: Box::new(error),
        };
        let owned = File::create(path.with_extension("lock")).map_err(open_error)?;
        if owned.try_lock().is_err() {
            return Err(ResourceError::AlreadyOpen { what });
        }
        let (mut journal, records) = Journal::open(path).map_err(open_error)?;
        let mut content = Content::default();
        for record in &records {
            content.apply(record).ok_or_else(damaged)?;
        }
        if content.resource.is_none() {
            // Contract 13: random, and in the database itself.
            let mut id = [0; 16];
            getrandom::fill(&mut id).map_err(|error| failed(error.to_string()))?;
            let record = Record::Made {
                resource: ResourceId(id).to_string(),
            };
            journal.append(&record).map_err(failed)?;
            content.apply(&record).ok_or_else(damaged)?;
        }
        // Contract 4: prepared branches have their locks before anybody works.
        let mut locks = BTreeMap::new();
        for (branch, prepared) in &content.prepared {
            for row in prepared.rows() {
                locks.insert(row.clone(), *branch);
            }
        }
        let state = Mutex::new(State {
            journal,
            has_failed: false,
            content,
            locks,
            working: BTreeSet::new(),
            record_count: records.len() + 1,
        });
        Ok(Self(Arc::new(Shared {
            path: path.to_owned(),
            seats_per_row,
            state,
            freed: Notify::new(),
            _owned: owned,
        })))
    }

    /// Every seat that is taken, and by whom.
    pub(crate) fn taken(&self) -> Bookings {
        self.state().content.taken.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .state
            .lock()
            .expect("no code panics while it holds the state")
    }

    /// Decides under the lock what to record, records it durably, and changes the memory: in a task that runs to its end
    /// even if the caller goes away (contract 14).
    ///
    /// `kept` lives until the state is unlocked: a local transaction locks it when it is dropped.
    async fn step<T: Send + 'static, K: Send + 'static>(
        &self,
        kept: K,
        decide: impl FnOnce(&State, &K) -> Result<(T, Option<Record>), ResourceError> + Send + 'static,
    ) -> Result<T, ResourceError> {
        let map = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let kept = kept;
            let mut guard = map.state();
            let state = &mut *guard;
            if state.has_failed {
                return Err(failed("an earlier write failed; restart the process"));
            }
            let (answer, record) = decide(state, &kept)?;
            if let Some(record) = record {
                state.has_failed = true;
                state.journal.append(&record).map_err(failed)?;
                state.has_failed = false;
                state.record_count += 1;
                state.content.apply(&record).ok_or_else(damaged)?;
                state.release();
                state.compact(&map.0.path)?;
            }
            drop(guard);
            map.0.freed.notify_waiters();
            Ok(answer)
        });
        done.await
            .map_err(|error| ResourceError::Unavailable(Box::new(error)))?
    }
}

impl State {
    /// Locks whose branch is over are free.
    fn release(&mut self) {
        let Self {
            locks,
            working,
            content,
            ..
        } = self;
        locks.retain(|_, branch| working.contains(branch) || content.prepared.contains_key(branch));
    }

    /// Writes a new journal when most of the old one is history.
    fn compact(&mut self, path: &Path) -> Result<(), ResourceError> {
        let live = self.content.records();
        if self.record_count > live.len() + DEAD_RECORD_COUNT_MAX {
            self.has_failed = true;
            self.journal = journal::replace(path, &live).map_err(failed)?;
            self.has_failed = false;
            self.record_count = live.len();
        }
        Ok(())
    }
}

impl PreparedBranch {
    fn rows(&self) -> impl Iterator<Item = &String> {
        self.bookings.keys().chain(&self.locked)
    }
}

impl Content {
    /// What a record means; `None` if it cannot follow the ones before.
    fn apply(&mut self, record: &Record) -> Option<()> {
        match record {
            Record::Made { resource } => self.resource = Some(resource.parse().ok()?),
            Record::Bound { lineage } => self.lineage = Some(lineage.parse().ok()?),
            Record::Prepared {
                branch,
                lineage,
                deadline_ms,
                prepared_at_ms,
                bookings,
                locked,
            } => {
                let context = journal::context(branch, lineage, *deadline_ms)?;
                let prepared = PreparedBranch {
                    context: context.clone(),
                    prepared_at: UnixMillis(*prepared_at_ms),
                    bookings: bookings.clone(),
                    locked: locked.clone(),
                };
                self.prepared.insert(context.branch, prepared);
            }
            Record::Committed { branch } => {
                // Contract 8: effect and proof come from this one record. In a journal that was replaced the branch
                // has no other any more, and its effect is in another record.
                if let Some(prepared) = self.prepared.remove(&branch.id()?) {
                    for (row, seats) in prepared.bookings {
                        self.taken.entry(row).or_default().extend(seats);
                    }
                }
                self.markers.insert(branch.id()?, true);
            }
            Record::Aborted { branch } => {
                self.prepared.remove(&branch.id()?);
                self.markers.insert(branch.id()?, false);
            }
            Record::Taken { bookings } => self.taken.clone_from(bookings),
            Record::Forgot { mark_ms, unfinished } => {
                self.mark = self.mark.max(UnixMillis(*mark_ms));
                let is_kept = |branch: &BranchId| {
                    branch.gtid.began_at() >= UnixMillis(*mark_ms)
                        || unfinished.contains(&branch.gtid.to_string())
                };
                self.markers.retain(|branch, _| is_kept(branch));
            }
        }
        Some(())
    }

    /// The shortest journal that says the same.
    fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        records.extend(self.resource.map(|resource| Record::Made {
            resource: resource.to_string(),
        }));
        records.extend(self.lineage.map(|lineage| Record::Bound {
            lineage: lineage.to_string(),
        }));
        records.push(Record::Forgot {
            mark_ms: self.mark.0,
            unfinished: Vec::new(),
        });
        records.push(Record::Taken {
            bookings: self.taken.clone(),
        });
        records.extend(self.prepared.values().map(|prepared| {
            let (bookings, locked) = (prepared.bookings.clone(), prepared.locked.clone());
            prepared_record(&prepared.context, prepared.prepared_at, bookings, locked)
        }));
        records.extend(self.markers.iter().map(|(branch, is_committed)| {
            let branch = Name::from(branch);
            if *is_committed {
                Record::Committed { branch }
            } else {
                Record::Aborted { branch }
            }
        }));
        records
    }

    /// Contract 2, and 7: whether this branch may still work and vote.
    fn check(&self, context: &BranchContext) -> Result<(), ResourceError> {
        let branch = context.branch;
        match self.lineage {
            Some(found) if found == context.lineage => {}
            Some(found) => {
                return Err(ResourceError::ForeignLineage {
                    expected: context.lineage,
                    found,
                });
            }
            None => {
                return Err(ResourceError::Invalid {
                    text: "the seat map is not bound to a coordinator yet".into(),
                });
            }
        }
        match self.markers.get(&branch) {
            Some(false) => return Err(ResourceError::Aborted { branch }),
            Some(true) => return Err(runs_once(branch)),
            None if self.prepared.contains_key(&branch) => return Err(runs_once(branch)),
            None => {}
        }
        if branch.gtid.began_at() < self.mark {
            return Err(ResourceError::BelowLowWater { mark: self.mark });
        }
        if context.deadline <= now() {
            return Err(ResourceError::DeadlineExceeded);
        }
        Ok(())
    }
}

fn runs_once(branch: BranchId) -> ResourceError {
    ResourceError::Invalid {
        text: format!("branch {branch} was here already: an execution runs once"),
    }
}

fn prepared_record(
    context: &BranchContext,
    prepared_at: UnixMillis,
    bookings: Bookings,
    locked: Vec<String>,
) -> Record {
    Record::Prepared {
        branch: Name::from(&context.branch),
        lineage: context.lineage.to_string(),
        deadline_ms: context.deadline.0,
        prepared_at_ms: prepared_at.0,
        bookings,
        locked,
    }
}

impl ResourceManager for SeatMap {
    type Transaction = SeatTransaction;

    async fn begin(&self, context: &BranchContext) -> Result<SeatTransaction, ResourceError> {
        let mut state = self.state();
        if state.has_failed {
            return Err(failed("an earlier write failed; restart the process"));
        }
        state.content.check(context)?;
        if !state.working.insert(context.branch) {
            return Err(runs_once(context.branch));
        }
        drop(state);
        Ok(SeatTransaction {
            map: self.clone(),
            context: context.clone(),
            bookings: BTreeMap::new(),
            locked: BTreeSet::new(),
        })
    }

    async fn prepare(&self, context: &BranchContext, tx: SeatTransaction) -> Result<Prepared, ResourceError> {
        if !Arc::ptr_eq(&self.0, &tx.map.0) || tx.context != *context {
            return Err(ResourceError::Invalid {
                text: "the local transaction is not this branch's".into(),
            });
        }
        let prepared = |vote| Prepared {
            vote,
            digest: 0,
            database_transaction: Default::default(),
        };
        // Contract 6: whoever locked a row has something to lose.
        if tx.locked.is_empty() {
            return Ok(prepared(Vote::ReadOnly));
        }
        // The transaction goes into the task, and counts as working until the record is on disk (contract 10).
        self.step(tx, move |state, tx| {
            state.content.check(&tx.context)?;
            let record = prepared_record(
                &tx.context,
                now(),
                tx.bookings.clone(),
                tx.locked.iter().cloned().collect(),
            );
            Ok((prepared(Vote::Commit), Some(record)))
        })
        .await
    }

    async fn commit(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        let branch = *branch;
        self.step((), move |state, ()| {
            // Contract 9: proof, or `Unknown`.
            let unknown = |detail: &str| Effect::Unknown {
                detail: detail.into(),
            };
            match state.content.markers.get(&branch) {
                Some(true) => Ok((Effect::AlreadyApplied, None)),
                Some(false) => Ok((unknown("the branch was rolled back"), None)),
                None if state.content.prepared.contains_key(&branch) => {
                    let branch = Name::from(&branch);
                    Ok((Effect::Applied, Some(Record::Committed { branch })))
                }
                None if state.working.contains(&branch) => Err(ResourceError::Busy { branch }),
                None => Ok((unknown("neither prepared nor recorded as committed"), None)),
            }
        })
        .await
    }

    async fn abort(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        let branch = *branch;
        self.step((), move |state, ()| match state.content.markers.get(&branch) {
            Some(false) => Ok((Effect::AlreadyApplied, None)),
            Some(true) => {
                let detail = "the branch was committed".into();
                Ok((Effect::Unknown { detail }, None))
            }
            // Contract 7: recorded even if nothing was here, for what comes late.
            None => {
                let branch = Name::from(&branch);
                Ok((Effect::Applied, Some(Record::Aborted { branch })))
            }
        })
        .await
    }

    async fn status(&self, branch: &BranchId) -> Result<BranchState, ResourceError> {
        let state = self.state();
        Ok(match state.content.markers.get(branch) {
            Some(true) => BranchState::Committed,
            Some(false) => BranchState::Aborted,
            None if state.content.prepared.contains_key(branch) => BranchState::Prepared,
            None if state.working.contains(branch) => BranchState::Working,
            None => BranchState::Unknown,
        })
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubtBranch>, ResourceError> {
        let state = self.state();
        let prepared = state.content.prepared.values().map(|prepared| InDoubtBranch {
            context: prepared.context.clone(),
            prepared_at: prepared.prepared_at,
        });
        Ok(prepared.collect())
    }

    async fn identity(&self, bind: Option<Lineage>) -> Result<Identity, ResourceError> {
        self.step((), move |state, ()| {
            let (resource, lineage) = (state.content.resource.ok_or_else(damaged)?, state.content.lineage);
            match (bind, lineage) {
                (Some(expected), Some(found)) if expected != found => {
                    Err(ResourceError::ForeignLineage { expected, found })
                }
                (Some(bound), None) => {
                    let (lineage, text) = (Some(bound), bound.to_string());
                    Ok((
                        Identity { resource, lineage },
                        Some(Record::Bound { lineage: text }),
                    ))
                }
                _ => Ok((Identity { resource, lineage }, None)),
            }
        })
        .await
    }

    async fn forget(&self, low_water: &LowWater) -> Result<u64, ResourceError> {
        let low_water = low_water.clone();
        self.step((), move |state, ()| {
            let is_forgotten = |branch: &&BranchId| {
                branch.gtid.began_at() < low_water.mark && !low_water.unfinished.contains(&branch.gtid)
            };
            let count = state.content.markers.keys().filter(is_forgotten).count() as u64;
            let unfinished = low_water.unfinished.iter().map(ToString::to_string).collect();
            let is_news = count > 0 || low_water.mark > state.content.mark;
            let record = is_news.then_some(Record::Forgot {
                mark_ms: low_water.mark.0,
                unfinished,
            });
            Ok((count, record))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use synod::BoxError;
    use synod::conformance::{self, Claims, Harness, ImageDirectory, Instances};
    use synod::resource::ResourceError;

    use super::{SeatMap, SeatTransaction};

    /// Work is one more seat of a row.
    struct Venue;

    fn path(directory: &ImageDirectory) -> PathBuf {
        directory.path().join("venue.journal")
    }

    impl Harness for Venue {
        type Store = SeatMap;
        type Database = ImageDirectory;

        fn claims(&self) -> Claims {
            Claims {
                items_are_independent: true,
                reads_repeat: false,
                looking_is_read_only: true,
                instances: Instances::One,
            }
        }

        async fn create(&self, _check: &str) -> Result<ImageDirectory, BoxError> {
            Ok(ImageDirectory::new()?)
        }

        async fn open(&self, directory: &ImageDirectory) -> Result<SeatMap, ResourceError> {
            SeatMap::open(&path(directory), 1_000)
        }

        async fn crash(&self, directory: &ImageDirectory) -> Result<(), BoxError> {
            Ok(directory.crash()?)
        }

        async fn work(&self, tx: &mut SeatTransaction, row: &str) -> Result<(), ResourceError> {
            tx.book(row, "a guest").await?;
            Ok(())
        }

        async fn look(&self, tx: &mut SeatTransaction, row: &str) -> Result<u64, ResourceError> {
            Ok(tx.taken_count(row) as u64)
        }

        async fn lock(&self, tx: &mut SeatTransaction, row: &str) -> Result<Option<u64>, ResourceError> {
            tx.lock(row).await?;
            Ok(Some(tx.taken_count(row) as u64))
        }

        async fn effect(&self, store: &SeatMap, row: &str) -> Result<u64, BoxError> {
            Ok(store.taken().get(row).map_or(0, |seats| seats.len() as u64))
        }
    }

    #[tokio::test]
    async fn the_seat_map_keeps_the_contract_of_resource_managers() {
        let report = conformance::run(&Venue).await;
        println!("{report}");
        report.assert_passed();
    }
}
