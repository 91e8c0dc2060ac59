//! Services that use the coordinator. Each is an [`Actor`]: a value that is told what happens and says what to do, so
//! that a new workload joins by a new file.

pub mod databases;
pub mod initiator;
pub mod letters;
pub mod link;
pub mod operator;
pub mod participant;
pub mod service;
pub mod stranger;

use crate::schedule::Micros;
use databases::Databases;
use std::fmt;
use synod_coordinator_core::random::Random;
use synod_proto::command::NamedBranch;
use synod_proto::ids::{CallId, Gtid, Lineage, ReplicaId, SessionId, UnixMillis};
use synod_proto::session::{Request, Response};

/// One service process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActorId(pub u32);

/// What services say to each other: business calls, with votes in the replies (T3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speech {
    /// Do a piece of work.
    Call {
        /// Under this transaction.
        gtid: Gtid,
        /// This call of it.
        call: CallId,
        /// The transaction's deadline.
        deadline: UnixMillis,
        /// The coordinator's lineage (T11).
        lineage: Lineage,
    },
    /// The work was done or refused.
    Reply {
        /// Of this transaction.
        gtid: Gtid,
        /// This call.
        call: CallId,
        /// The branch's vote.
        vote: CallVote,
    },
    /// Between services over the library.
    Service(Box<service::Message>),
}

/// A vote as it returns with a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallVote {
    /// This branch is prepared.
    Commit(NamedBranch),
    /// Nothing was written.
    ReadOnly,
    /// The work cannot be done.
    Abort,
}

/// How a session's messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carriage {
    /// Each on its own: they overtake each other and are lost one by one. Worse than any real transport.
    Loose,
    /// In order and whole until the stream breaks, as the library's transport does it.
    Stream,
}

/// What an actor asks of the world.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Open(SessionId, ReplicaId, Carriage),
    Close(SessionId),
    Ask(SessionId, Request),
    Say(ActorId, Speech),
    Wake(Micros, u64),
}

/// What an actor sees of the world for one turn.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The actor.
    pub own: ActorId,
    /// Its monotonic clock.
    pub now: Micros,
    /// Its wall clock.
    pub wall: UnixMillis,
    /// Its stream of chance.
    pub random: &'a mut Random,
    /// The databases: durable, and shared by all actors that can reach them.
    pub databases: &'a mut Databases,
    pub(crate) next_session: &'a mut u64,
    pub(crate) commands: Vec<Command>,
}

impl Scene<'_> {
    /// Opens a session with a replica. Nobody says whether the replica is there.
    pub fn open(&mut self, replica: ReplicaId) -> SessionId {
        self.open_as(replica, Carriage::Loose)
    }

    /// Opens a session on a stream: what is said comes in order, or the stream breaks.
    pub fn open_stream(&mut self, replica: ReplicaId) -> SessionId {
        self.open_as(replica, Carriage::Stream)
    }

    fn open_as(&mut self, replica: ReplicaId, carriage: Carriage) -> SessionId {
        *self.next_session += 1;
        let session = SessionId(*self.next_session);
        self.commands.push(Command::Open(session, replica, carriage));
        session
    }

    /// Ends a session.
    pub fn close(&mut self, session: SessionId) {
        self.commands.push(Command::Close(session));
    }

    /// Sends a request on a session.
    pub fn ask(&mut self, session: SessionId, request: Request) {
        self.commands.push(Command::Ask(session, request));
    }

    /// Speaks to another service.
    pub fn say(&mut self, to: ActorId, speech: Speech) {
        self.commands.push(Command::Say(to, speech));
    }

    /// Asks to be woken after a while, with a word to remember.
    pub fn wake_after(&mut self, delay: Micros, token: u64) {
        self.commands.push(Command::Wake(delay, token));
    }

    /// Whether something of this chance in a million happens.
    pub fn happens(&mut self, ppm: u64) -> bool {
        self.random.between(0, 999_999) < ppm
    }
}

/// A service process. What it holds itself is lost in a crash; what lies in the [`Databases`] is not.
pub trait Actor: fmt::Debug {
    /// The process starts, at first or after a crash: forget everything.
    fn on_start(&mut self, scene: &mut Scene<'_>);

    /// The coordinator says something on a session.
    fn on_response(&mut self, scene: &mut Scene<'_>, session: SessionId, response: Response);

    /// A session has ended or was found broken.
    fn on_session_lost(&mut self, scene: &mut Scene<'_>, session: SessionId);

    /// Another service speaks.
    fn on_speech(&mut self, scene: &mut Scene<'_>, from: ActorId, speech: Speech);

    /// The time asked for has come.
    fn on_wake(&mut self, scene: &mut Scene<'_>, token: u64);

    /// Something goes wrong in the machine of a service over the library.
    fn on_service_fault(&mut self, _scene: &mut Scene<'_>, _fault: service::ServiceFault) {}

    /// No new work from now on; finish what has begun.
    fn on_rest(&mut self) {}

    /// Whether nothing is left to do.
    fn is_idle(&self) -> bool {
        true
    }
}
