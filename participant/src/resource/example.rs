use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use synod::resource::{
    BranchContext, BranchState, Effect, Identity, InDoubtBranch, LowWater, Prepared, ResourceError,
    ResourceManager, Vote,
};
use synod::{BranchId, CallId, ExecutionId, Gtid, Lineage, ResourceId, UnixMillis};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Rows of text, without tabs and line breaks, in one file. Cheap to clone.
#[derive(Clone)]
pub struct FileStore(Arc<Shared>);

struct Shared {
    path: PathBuf,
    /// One lock for all rows, held from `begin` until the outcome took effect.
    lock: Arc<Semaphore>,
    state: Mutex<State>,
    /// Branches with an open local transaction.
    working: Mutex<BTreeSet<BranchId>>,
    /// Keeps a second process out.
    _owned: File,
}

struct State {
    content: Content,
    /// The lock, while a prepared branch has it.
    held: Option<OwnedSemaphorePermit>,
    has_failed: bool,
}

/// What the file holds.
#[derive(Clone, PartialEq)]
struct Content {
    resource: ResourceId,
    lineage: Option<Lineage>,
    mark: UnixMillis,
    rows: BTreeMap<String, String>,
    /// The lock admits one. Its context, when it was prepared, what it writes.
    prepared: Option<(BranchContext, UnixMillis, BTreeMap<String, Option<String>>)>,
    /// Whether the branch committed: the proof.
    markers: BTreeMap<BranchId, bool>,
}

pub struct FileTransaction {
    store: FileStore,
    branch: BranchId,
    permit: Option<OwnedSemaphorePermit>,
    writes: BTreeMap<String, Option<String>>,
}

impl FileTransaction {
    pub fn get(&self, key: &str) -> Option<String> {
        match self.writes.get(key) {
            Some(value) => value.clone(),
            None => self.store.state().content.rows.get(key).cloned(),
        }
    }

    pub fn put(&mut self, key: &str, value: Option<&str>) -> Result<(), ResourceError> {
        if [Some(key), value]
            .into_iter()
            .flatten()
            .any(|text| text.contains(['\t', '\n', '\r']))
        {
            return Err(ResourceError::Invalid {
                text: "tabs and line breaks cannot be stored".into(),
            });
        }
        self.writes.insert(key.to_owned(), value.map(str::to_owned));
        Ok(())
    }
}

impl Drop for FileTransaction {
    // Contract 1: rolls back by itself. The permit, if still here, goes with it.
    fn drop(&mut self) {
        self.store.working().remove(&self.branch);
    }
}

fn now() -> UnixMillis {
    UnixMillis(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis() as u64,
    )
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ResourceError {
    ResourceError::Failed(Arc::from(error.into()))
}

impl FileStore {
    pub fn open(directory: &Path) -> Result<Self, ResourceError> {
        fs::create_dir_all(directory).map_err(failed)?;
        let owned = File::create(directory.join("lock")).map_err(failed)?;
        owned.try_lock().map_err(|_| ResourceError::AlreadyOpen {
            what: directory.display().to_string(),
        })?;
        let path = directory.join("content");
        let content = if path.exists() {
            let text = fs::read_to_string(&path).map_err(failed)?;
            Content::parse(&text).ok_or_else(|| failed("the file is damaged"))?
        } else {
            // Contract 13: the id is random and lies in the database.
            let mut resource = ResourceId([0; 16]);
            getrandom::fill(&mut resource.0).map_err(|error| failed(error.to_string()))?;
            let (rows, markers) = (BTreeMap::new(), BTreeMap::new());
            let content = Content {
                resource,
                lineage: None,
                mark: UnixMillis(0),
                rows,
                prepared: None,
                markers,
            };
            content.save(&path).map_err(failed)?;
            content
        };
        // Contract 4: a prepared branch has its lock again before new work begins.
        let lock = Arc::new(Semaphore::new(1));
        let held = content
            .prepared
            .is_some()
            .then(|| lock.clone().try_acquire_owned().expect("nobody else has it yet"));
        let state = Mutex::new(State {
            content,
            held,
            has_failed: false,
        });
        Ok(Self(Arc::new(Shared {
            path,
            lock,
            state,
            working: Mutex::default(),
            _owned: owned,
        })))
    }

    /// The committed rows, for those outside any transaction.
    pub fn rows(&self) -> BTreeMap<String, String> {
        self.state().content.rows.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic under the lock")
    }

    fn working(&self) -> MutexGuard<'_, BTreeSet<BranchId>> {
        self.0.working.lock().expect("no panic under the lock")
    }

    /// Replaces the file by a changed one, durably, in a task that runs to its end (contract 14).
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut State, &mut Content) -> Result<T, ResourceError> + Send + 'static,
    ) -> Result<T, ResourceError> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut state = store.state();
            if state.has_failed {
                return Err(failed("an earlier write failed; restart the process"));
            }
            let mut next = state.content.clone();
            let answer = change(&mut state, &mut next)?;
            if next != state.content {
                // After a failed write nobody knows what the file holds: no more answers until it is read again.
                state.has_failed = true;
                next.save(&store.0.path).map_err(failed)?;
                state.has_failed = false;
                state.content = next;
            }
            if state.content.prepared.is_none() {
                state.held = None;
            }
            Ok(answer)
        });
        done.await
            .map_err(|error| ResourceError::Unavailable(Box::new(error)))?
    }
}

impl Content {
    /// Contract 2.
    fn check(&self, context: &BranchContext) -> Result<(), ResourceError> {
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
                    text: "not bound to a coordinator yet".into(),
                });
            }
        }
        match self.markers.get(&context.branch) {
            Some(_) => Err(ResourceError::Aborted {
                branch: context.branch,
            }),
            None if context.branch.gtid.began_at() < self.mark => {
                Err(ResourceError::BelowLowWater { mark: self.mark })
            }
            None if context.deadline <= now() => Err(ResourceError::DeadlineExceeded),
            None => Ok(()),
        }
    }

    fn is_prepared(&self, branch: &BranchId) -> bool {
        self.prepared
            .as_ref()
            .is_some_and(|(context, ..)| context.branch == *branch)
    }

    fn save(&self, path: &Path) -> std::io::Result<()> {
        let mut text = format!("resource\t{}\nmark\t{}\n", self.resource, self.mark.0);
        if let Some(lineage) = self.lineage {
            let _ = writeln!(text, "lineage\t{lineage}");
        }
        for (key, value) in &self.rows {
            let _ = writeln!(text, "row\t{key}\t{value}");
        }
        for (
            BranchId {
                gtid,
                call,
                execution,
            },
            is_committed,
        ) in &self.markers
        {
            let _ = writeln!(text, "marker\t{gtid}\t{call}\t{execution}\t{is_committed}");
        }
        if let Some((
            BranchContext {
                branch,
                lineage,
                deadline,
            },
            at,
            writes,
        )) = &self.prepared
        {
            let BranchId {
                gtid,
                call,
                execution,
            } = branch;
            let _ = writeln!(
                text,
                "prepared\t{gtid}\t{call}\t{execution}\t{lineage}\t{}\t{}",
                deadline.0, at.0
            );
            for (key, value) in writes {
                let _ = match value {
                    Some(value) => writeln!(text, "put\t{key}\t{value}"),
                    None => writeln!(text, "delete\t{key}"),
                };
            }
        }
        let temporary = path.with_extension("new");
        fs::write(&temporary, text)?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().expect("a file lies in a directory"))?.sync_all()
    }

    fn parse(text: &str) -> Option<Self> {
        let mut content = Self {
            resource: ResourceId([0; 16]),
            lineage: None,
            mark: UnixMillis(0),
            rows: BTreeMap::new(),
            prepared: None,
            markers: BTreeMap::new(),
        };
        let branch = |gtid: &str, call: &str, execution: &str| {
            let (call, execution) = (CallId(call.parse().ok()?), ExecutionId(execution.parse().ok()?));
            Some(BranchId {
                gtid: gtid.parse().ok()?,
                call,
                execution,
            })
        };
        for line in text.lines() {
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["resource", id] => content.resource = id.parse().ok()?,
                ["mark", mark] => content.mark = UnixMillis(mark.parse().ok()?),
                ["lineage", id] => content.lineage = Some(id.parse().ok()?),
                ["row", key, value] => drop(content.rows.insert(key.into(), value.into())),
                ["marker", gtid, call, execution, is_committed] => {
                    content
                        .markers
                        .insert(branch(gtid, call, execution)?, is_committed.parse().ok()?);
                }
                ["prepared", gtid, call, execution, lineage, deadline, at] => {
                    let (lineage, deadline) = (lineage.parse().ok()?, UnixMillis(deadline.parse().ok()?));
                    let context = BranchContext {
                        branch: branch(gtid, call, execution)?,
                        lineage,
                        deadline,
                    };
                    content.prepared = Some((context, UnixMillis(at.parse().ok()?), BTreeMap::new()));
                }
                ["put", key, value] => drop(
                    content
                        .prepared
                        .as_mut()?
                        .2
                        .insert(key.into(), Some(value.into())),
                ),
                ["delete", key] => drop(content.prepared.as_mut()?.2.insert(key.into(), None)),
                _ => return None,
            }
        }
        Some(content)
    }
}

impl ResourceManager for FileStore {
    type Transaction = FileTransaction;

    async fn begin(&self, context: &BranchContext) -> Result<FileTransaction, ResourceError> {
        self.state().content.check(context)?;
        // Contract 3: waiting ends.
        let patience = Duration::from_millis(context.deadline.0.saturating_sub(now().0));
        let Ok(permit) = tokio::time::timeout(patience, self.0.lock.clone().acquire_owned()).await else {
            return Err(ResourceError::DeadlineExceeded);
        };
        self.working().insert(context.branch);
        let permit = Some(permit.expect("the semaphore is never closed"));
        Ok(FileTransaction {
            store: self.clone(),
            branch: context.branch,
            permit,
            writes: BTreeMap::new(),
        })
    }

    async fn prepare(
        &self,
        context: &BranchContext,
        mut tx: FileTransaction,
    ) -> Result<Prepared, ResourceError> {
        let context = context.clone();
        // The transaction moves into the task: it counts as working until the branch is durable (contract 10).
        self.change(move |state, next| {
            next.check(&context)?;
            next.prepared = Some((context, now(), std::mem::take(&mut tx.writes)));
            state.held = tx.permit.take();
            Ok((
                tx,
                Prepared {
                    vote: Vote::Commit,
                    digest: 0,
                    database_transaction: Default::default(),
                },
            ))
        })
        .await
        .map(|(_tx, prepared)| prepared)
    }

    async fn commit(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        let (branch, store) = (*branch, self.clone());
        self.change(move |_, next| {
            // Contract 9: proof, or `Unknown`.
            match next.markers.get(&branch) {
                Some(true) => return Ok(Effect::AlreadyApplied),
                Some(false) => {
                    return Ok(Effect::Unknown {
                        detail: "it was rolled back".into(),
                    });
                }
                None if next.is_prepared(&branch) => {}
                None if store.working().contains(&branch) => return Err(ResourceError::Busy { branch }),
                None => {
                    return Ok(Effect::Unknown {
                        detail: "no such branch".into(),
                    });
                }
            }
            // Contract 8: the rows and their proof, in one replacement of the file.
            for (key, value) in next.prepared.take().expect("checked above").2 {
                match value {
                    Some(value) => next.rows.insert(key, value),
                    None => next.rows.remove(&key),
                };
            }
            next.markers.insert(branch, true);
            Ok(Effect::Applied)
        })
        .await
    }

    async fn abort(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        let branch = *branch;
        self.change(move |_, next| {
            match next.markers.get(&branch) {
                Some(false) => return Ok(Effect::AlreadyApplied),
                Some(true) => {
                    return Ok(Effect::Unknown {
                        detail: "it was committed".into(),
                    });
                }
                None if next.is_prepared(&branch) => next.prepared = None,
                None => {}
            }
            // Contract 7: also refuses a late prepare.
            next.markers.insert(branch, false);
            Ok(Effect::Applied)
        })
        .await
    }

    async fn status(&self, branch: &BranchId) -> Result<BranchState, ResourceError> {
        let state = self.state();
        Ok(match state.content.markers.get(branch) {
            Some(true) => BranchState::Committed,
            Some(false) => BranchState::Aborted,
            None if state.content.is_prepared(branch) => BranchState::Prepared,
            None if self.working().contains(branch) => BranchState::Working,
            None => BranchState::Unknown,
        })
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubtBranch>, ResourceError> {
        let prepared = self.state().content.prepared.clone();
        Ok(prepared
            .into_iter()
            .map(|(context, prepared_at, _)| InDoubtBranch { context, prepared_at })
            .collect())
    }

    async fn identity(&self, bind: Option<Lineage>) -> Result<Identity, ResourceError> {
        self.change(move |_, next| {
            match (bind, next.lineage) {
                (Some(expected), Some(found)) if expected != found => {
                    return Err(ResourceError::ForeignLineage { expected, found });
                }
                (bind, found) => next.lineage = found.or(bind),
            }
            Ok(Identity {
                resource: next.resource,
                lineage: next.lineage,
            })
        })
        .await
    }

    async fn forget(&self, low_water: &LowWater) -> Result<u64, ResourceError> {
        let low_water = low_water.clone();
        self.change(move |_, next| {
            next.mark = next.mark.max(low_water.mark);
            let before = next.markers.len();
            let is_kept =
                |gtid: Gtid| gtid.began_at() >= low_water.mark || low_water.unfinished.contains(&gtid);
            next.markers.retain(|branch, _| is_kept(branch.gtid));
            Ok((before - next.markers.len()) as u64)
        })
        .await
    }
}
