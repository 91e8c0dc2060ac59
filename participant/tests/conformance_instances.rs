//! The conformance kit on stores that several processes have open at once, as they have a database server: two that
//! keep the contract, and two that break it in the ways in which servers do.

mod redb_support;

use redb_support::conformance::{self as kit, CLAIMS};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use synod::conformance::{self, Check, Claims, Harness, Instances, Rule};
use synod::resource::redb::{MemoryDisk, PowerLoss, RedbOptions, RedbResource, RedbTransaction};
use synod::resource::{
    BranchContext, BranchState, Effect, Identity, InDoubtBranch, LowWater, Prepared, ResourceError,
    ResourceManager,
};
use synod::{BoxError, BranchId, Lineage};

/// What a server does with a branch of which the preparing session is still attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhileAttached {
    /// Whoever asks finishes it, as PostgreSQL does.
    Finishes,
    /// It says that it cannot yet.
    IsBusy,
    /// It says that there is no such branch, as MariaDB does (T8).
    SaysUnknown,
    /// It shows it to nobody else.
    ListsNothing,
}

/// One database on a server that many processes are connected to.
#[derive(Default)]
struct Server {
    disk: MemoryDisk,
    /// Open while the server runs.
    store: Mutex<Option<RedbResource>>,
    sessions: Arc<Mutex<Sessions>>,
}

/// Which session has prepared each branch.
type Sessions = BTreeMap<BranchId, Weak<()>>;

/// One process's connection.
struct Session {
    while_attached: WhileAttached,
    store: RedbResource,
    sessions: Arc<Mutex<Sessions>>,
    own: Arc<()>,
}

impl Session {
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap()
    }

    /// Whether another session, which has prepared the branch, is attached.
    fn is_held_elsewhere(&self, branch: &BranchId) -> bool {
        let holder = self.sessions().get(branch).and_then(Weak::upgrade);
        holder.is_some_and(|holder| !Arc::ptr_eq(&holder, &self.own))
    }

    /// What this server says of a branch that is held elsewhere; `None` where that makes no difference.
    fn answer(&self, branch: &BranchId) -> Option<Result<Effect, ResourceError>> {
        if !self.is_held_elsewhere(branch) {
            return None;
        }
        match self.while_attached {
            WhileAttached::IsBusy => Some(Err(ResourceError::Busy { branch: *branch })),
            WhileAttached::SaysUnknown => Some(Ok(Effect::Unknown {
                detail: "no such branch".into(),
            })),
            WhileAttached::Finishes | WhileAttached::ListsNothing => None,
        }
    }
}

impl ResourceManager for Session {
    type Transaction = RedbTransaction;

    async fn begin(&self, context: &BranchContext) -> Result<RedbTransaction, ResourceError> {
        self.store.begin(context).await
    }

    async fn prepare(&self, context: &BranchContext, tx: RedbTransaction) -> Result<Prepared, ResourceError> {
        let prepared = self.store.prepare(context, tx).await?;
        self.sessions().insert(context.branch, Arc::downgrade(&self.own));
        Ok(prepared)
    }

    async fn commit(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        match self.answer(branch) {
            Some(answer) => answer,
            None => self.store.commit(branch).await,
        }
    }

    async fn abort(&self, branch: &BranchId) -> Result<Effect, ResourceError> {
        match self.answer(branch) {
            Some(answer) => answer,
            None => self.store.abort(branch).await,
        }
    }

    async fn status(&self, branch: &BranchId) -> Result<BranchState, ResourceError> {
        self.store.status(branch).await
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubtBranch>, ResourceError> {
        let mut listed = self.store.in_doubt().await?;
        if self.while_attached == WhileAttached::ListsNothing {
            listed.retain(|one| !self.is_held_elsewhere(&one.context.branch));
        }
        Ok(listed)
    }

    async fn identity(&self, bind: Option<Lineage>) -> Result<Identity, ResourceError> {
        self.store.identity(bind).await
    }

    async fn forget(&self, low_water: &LowWater) -> Result<u64, ResourceError> {
        self.store.forget(low_water).await
    }
}

struct OnServer(WhileAttached);

impl Harness for OnServer {
    type Store = Session;
    type Database = Server;

    fn claims(&self) -> Claims {
        Claims {
            instances: Instances::Many,
            ..CLAIMS
        }
    }

    async fn create(&self, _check: &str) -> Result<Server, BoxError> {
        Ok(Server::default())
    }

    async fn open(&self, server: &Server) -> Result<Session, ResourceError> {
        let mut running = server.store.lock().unwrap();
        let store = match &*running {
            Some(store) => store.clone(),
            None => {
                let disk = server.disk.clone();
                RedbOptions::default().open_backend(move || disk.backend())?
            }
        };
        *running = Some(store.clone());
        Ok(Session {
            while_attached: self.0,
            store,
            sessions: server.sessions.clone(),
            own: Arc::new(()),
        })
    }

    async fn crash(&self, server: &Server) -> Result<(), BoxError> {
        server.disk.lose_power(PowerLoss::Lost);
        *server.store.lock().unwrap() = None;
        Ok(())
    }

    async fn work(&self, tx: &mut RedbTransaction, item: &str) -> Result<(), ResourceError> {
        kit::work(tx, item).await
    }

    async fn look(&self, tx: &mut RedbTransaction, item: &str) -> Result<u64, ResourceError> {
        kit::look(tx, item).await
    }

    async fn lock(&self, tx: &mut RedbTransaction, item: &str) -> Result<Option<u64>, ResourceError> {
        kit::lock(tx, item).await
    }

    async fn effect(&self, session: &Session, item: &str) -> Result<u64, BoxError> {
        kit::effect(&session.store, item)
    }
}

#[tokio::test]
async fn a_server_that_lets_anybody_finish_passes() {
    conformance::run(&OnServer(WhileAttached::Finishes))
        .await
        .assert_passed();
}

#[tokio::test]
async fn a_server_that_is_busy_while_the_preparing_session_is_attached_passes() {
    conformance::run(&OnServer(WhileAttached::IsBusy))
        .await
        .assert_passed();
}

/// The one check fails, for this reason, and no other.
async fn is_found(while_attached: WhileAttached, rule: Rule, found: &str) {
    let report = conformance::run(&OnServer(while_attached)).await;
    let failed: Vec<_> = report.failed().collect();
    let [(Check::AnotherInstanceFinishes, failure)] = failed[..] else {
        panic!("{while_attached:?} fails other checks than it should\n{report}");
    };
    let is_its_own = failure.rule == rule
        && failure.step.contains("beside the one that prepared")
        && failure.found.contains(found);
    assert!(
        is_its_own,
        "{while_attached:?} was found for another reason\n{report}"
    );
}

#[tokio::test]
async fn unknown_while_the_preparing_session_is_attached_is_found() {
    is_found(WhileAttached::SaysUnknown, Rule::Must(9), "Unknown").await;
}

#[tokio::test]
async fn a_branch_that_only_its_own_session_lists_is_found() {
    is_found(WhileAttached::ListsNothing, Rule::Must(12), "[]").await;
}
