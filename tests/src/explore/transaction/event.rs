//! What can happen in the world of one transaction, and where.

use std::fmt;
use synod_participant_core::transaction::Reply;
use synod_proto::ids::{CallId, UnixMillis};
use synod_proto::session::{Request, Response};

/// The time of day before the deadline. It stands still until the deadline passes.
pub const BEGIN: UnixMillis = UnixMillis(1_800_000_000_000);
/// The transaction's deadline.
pub const DEADLINE: UnixMillis = BEGIN.plus(30_000);
/// The time of day after it.
pub const LATE: UnixMillis = BEGIN.plus(60_000);

/// Where something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The coordinator: all its replicas.
    Coordinator,
    /// The initiator's process.
    Initiator,
    /// The participant that is debited.
    Debit,
    /// The participant that is credited.
    Credit,
}

impl Place {
    /// All, in the order of a state's words.
    pub const ALL: [Self; 4] = [Self::Coordinator, Self::Initiator, Self::Debit, Self::Credit];
    /// The participants.
    pub const PARTICIPANTS: [Self; 2] = [Self::Debit, Self::Credit];

    /// Its position among [`Place::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// How far the leader's work on a request gets before the leader dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// Nowhere: not even onto its own disk.
    Nowhere,
    /// Onto its own disk.
    OwnDisk,
    /// Onto its own disk and that of one follower.
    OneFollower,
}

/// One thing that happens. What travels is the event of its arrival.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A session's request reaches the leader.
    Ask {
        /// Whose session.
        from: Place,
        /// Which of its streams.
        connection: u64,
        /// The request.
        request: Request,
    },
    /// A request reaches the leader, and the leader dies over it; another leads afterwards.
    AskAndDie {
        /// The [`Event::Ask`].
        ask: Box<Event>,
        /// How far it got.
        reach: Reach,
    },
    /// The leader dies; another leads, and the dead one is back.
    LeaderDies,
    /// The replicas' clocks pass the deadline.
    DeadlinePasses,
    /// The coordinator's timers fire until it says something, or has nothing left to repeat.
    Wait,
    /// The coordinator's message reaches a session.
    Hear {
        /// Whose session.
        to: Place,
        /// Which of its streams.
        connection: u64,
        /// The message.
        response: Response,
    },
    /// A session's stream has ended.
    Lost {
        /// Whose session.
        to: Place,
        /// Which of its streams.
        connection: u64,
    },
    /// A business call reaches its participant: again and again, if the transport retries or hedges it.
    Call {
        /// The participant.
        to: Place,
        /// The call.
        call: CallId,
    },
    /// The reply of a call reaches the initiator.
    Reply {
        /// The call.
        call: CallId,
        /// With its vote.
        reply: Reply,
    },
    /// The next timer of this process's session fires.
    Timer(Place),
    /// So much time passes that every timer of this process's session fires.
    Silence(Place),
    /// The process dies and starts again on what its database holds.
    Crash(Place),
    /// The initiator's user asks for commit.
    Commit,
    /// The initiator's user gives the transaction up.
    Abandon,
}

impl Event {
    /// Where it happens.
    #[must_use]
    pub fn place(&self) -> Place {
        match self {
            Self::Ask { .. }
            | Self::AskAndDie { .. }
            | Self::LeaderDies
            | Self::DeadlinePasses
            | Self::Wait => Place::Coordinator,
            Self::Hear { to, .. } | Self::Lost { to, .. } | Self::Call { to, .. } => *to,
            Self::Reply { .. } | Self::Commit | Self::Abandon => Place::Initiator,
            Self::Timer(place) | Self::Silence(place) | Self::Crash(place) => *place,
        }
    }
}

/// A line of a trace.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ask {
                from,
                connection,
                request,
            } => match request {
                Request::Decide { request, command } => {
                    let proposal =
                        synod_proto::command::Decide::decode(command).map(|decide| decide.proposal);
                    write!(
                        f,
                        "{from:?}#{connection} -> coordinator: request {request:?} Decide {proposal:?}"
                    )
                }
                request => write!(f, "{from:?}#{connection} -> coordinator: {request:?}"),
            },
            Self::AskAndDie { ask, reach } => {
                write!(f, "{ask}; the leader dies over it, which got to {reach:?}")
            }
            Self::Hear {
                to,
                connection,
                response,
            } => write!(f, "coordinator -> {to:?}#{connection}: {response:?}"),
            Self::Lost { to, connection } => write!(f, "{to:?}#{connection} has ended"),
            Self::Call { to, call } => write!(f, "initiator -> {to:?}: call {call:?}"),
            Self::Reply { call, reply } => write!(f, "reply of call {call:?} -> initiator: {reply:?}"),
            event => write!(f, "{event:?}"),
        }
    }
}
