//! What must hold, whatever happens. Separate from the system: checkers see what is decided, what leaves a replica, what
//! lies on its disk and what services are told, and compare.

pub mod ballots;
pub mod directories;
pub mod gate;
pub mod linearizability;
pub mod log;
pub mod open;
pub mod outcomes;
pub mod points;
pub mod queues;
pub mod reads;

use crate::actors::databases::Databases;
use crate::host::{Host, Output};
use crate::schedule::Micros;
use std::collections::BTreeMap;
use std::fmt;
use synod_proto::ids::{ReplicaId, SessionId};
use synod_proto::session::Request;

/// A property that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl Violation {
    /// Says which checker found it, unless it says so itself.
    #[must_use]
    pub fn by(self, checker: &str) -> Self {
        if self.0.starts_with('[') {
            return self;
        }
        Self(format!("[{checker}] {}", self.0))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// Whether a property holds.
pub type Check = Result<(), Violation>;

/// Fails with a text unless the condition holds.
pub(crate) fn require(holds: bool, text: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(Violation(text())) }
}

fn by(checker: &str) -> impl FnOnce(Violation) -> Violation {
    move |violation| violation.by(checker)
}

/// All checkers of a run.
#[derive(Debug, Default)]
pub struct Checkers {
    /// Agreement and the applied state.
    pub log: log::LogChecker,
    /// Persist before send.
    pub gate: gate::GateChecker,
    /// Ballots and who leads in them.
    pub ballots: ballots::BallotChecker,
    /// Whose directories take part.
    pub directories: directories::DirectoryChecker,
    /// What services are told, against what the log says.
    pub outcomes: outcomes::OutcomeChecker,
    /// What services are told, against what they asked.
    pub histories: linearizability::HistoryChecker,
    /// Whether absence is told only on a quorum's word.
    pub reads: reads::ReadChecker,
    /// What waits.
    pub queues: queues::QueueChecker,
    /// How often the run came past each named point.
    pub points: points::Points,
}

impl Checkers {
    /// After every turn of a replica, before what it asked for is done.
    ///
    /// # Errors
    /// Something does not hold.
    pub fn after_turn(
        &mut self,
        now: Micros,
        hosts: &BTreeMap<ReplicaId, Host>,
        id: ReplicaId,
        output: &Output,
        databases: &Databases,
    ) -> Check {
        let host = &hosts[&id];
        self.points.after_turn(host, output);
        let decided = self.log.after_turn(hosts, host, &self.ballots);
        for (gtid, record) in decided.map_err(by("agreement"))? {
            self.outcomes.on_decided(gtid, record);
        }
        self.gate
            .after_turn(host, output, &self.log)
            .map_err(by("gate"))?;
        self.ballots
            .after_turn(now, host, output, self.log.decided_up_to())
            .map_err(by("ballots"))?;
        self.directories
            .after_turn(host, output)
            .map_err(by("directories"))?;
        self.reads.after_turn(host, output).map_err(by("reads"))?;
        self.queues.after_turn(host, output).map_err(by("queues"))?;
        for told in &output.told {
            self.histories.on_told(told);
            self.outcomes
                .on_told(now, told, &self.log, databases)
                .map_err(by("outcomes"))?;
        }
        Ok(())
    }

    /// A session asks something.
    pub fn on_asked(&mut self, now: Micros, session: SessionId, request: &Request) {
        self.histories.on_asked(session, request);
        self.reads.on_asked(session, request);
        self.outcomes.on_asked(now, session, request);
    }

    /// A service says something of its databases, which is compared with them.
    ///
    /// # Errors
    /// It is not so.
    pub fn on_service_asks(&mut self, request: &Request, databases: &Databases) -> Check {
        let asked = self.outcomes.on_service_asks(request, databases);
        asked.map_err(by("outcomes"))
    }

    /// A database applied outcomes to branches.
    ///
    /// # Errors
    /// Something does not hold.
    pub fn on_databases(&mut self, databases: &mut Databases) -> Check {
        if let Some(text) = databases.take_violations().into_iter().next() {
            return Err(Violation(text).by("services"));
        }
        self.outcomes
            .on_effects(databases, self.log.reference())
            .map_err(by("outcomes"))
    }
}
