//! Faults as they stand in a file. A form of their own, so that a plan in the tree still means the same after the
//! simulator's types have changed: the compiler asks here for every kind of fault that joins.

use crate::actors::ActorId;
use crate::actors::service::ServiceFault;
use crate::faults::Fault;
use crate::faults::lines::Direction;
use crate::log_disk::damage::{Aim, Damage};
use crate::log_disk::{CrashPoint, OperationFault};
use crate::network::Weather;
use crate::store::UnsyncedWrite;
use serde::{Deserialize, Serialize};
use synod_coordinator::log::CrashImage;
use synod_coordinator_core::replica::WriteFailure;
use synod_proto::ids::ReplicaId;

/// One fault and when it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TimedForm {
    /// Microseconds since the run began.
    pub(super) at_us: u64,
    pub(super) fault: FaultForm,
}

/// Replicas and services stand as their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum FaultForm {
    Crash {
        replica: u8,
        unsynced: UnsyncedForm,
    },
    CrashLeader {
        unsynced: UnsyncedForm,
    },
    Start {
        replica: u8,
    },
    Drain {
        replica: u8,
    },
    Pause {
        replica: u8,
        length_us: u64,
    },
    Cut {
        from: u8,
        to: u8,
    },
    Clog {
        from: u8,
        to: u8,
        length_us: u64,
    },
    Topology {
        open: Vec<(u8, u8)>,
    },
    Hush {
        pick: u64,
    },
    Rush {
        count: u64,
        gap_us: u64,
    },
    Mend,
    Weather(WeatherForm),
    WallClock {
        replica: u8,
        offset_ms: i64,
    },
    SlowDisk {
        replica: u8,
        sync_us: u64,
    },
    FailDisk {
        replica: u8,
        failure: FailureForm,
    },
    CrashAt {
        replica: u8,
        after: u64,
        image: ImageForm,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        again: Option<(u64, ImageForm)>,
        down_us: u64,
    },
    FailOperation {
        replica: u8,
        operation: OperationForm,
        after: u64,
    },
    Damage {
        replica: u8,
        damage: DamageForm,
        aim: AimForm,
        pick: u64,
    },
    PutBack {
        replica: u8,
    },
    Swap {
        one: u8,
        other: u8,
    },
    Corrupt {
        replica: u8,
        pick: u64,
    },
    Wipe {
        replica: u8,
    },
    Backup {
        replica: u8,
    },
    Rollback {
        replica: u8,
    },
    CutLine {
        actor: u32,
        replica: u8,
        direction: DirectionForm,
        length_us: u64,
    },
    ClogLine {
        actor: u32,
        replica: u8,
        length_us: u64,
    },
    PauseActor {
        actor: u32,
        length_us: u64,
    },
    CrashActor {
        actor: u32,
    },
    ServiceDiskCrash {
        actor: u32,
        operation: u64,
    },
    ServiceDiskFails {
        actor: u32,
        operation: u64,
    },
    ServiceDiskFull {
        actor: u32,
    },
    ServiceDiskSlow {
        actor: u32,
        operation_us: u64,
    },
    ServiceRolledBackByHand {
        actor: u32,
        pick: u64,
    },
    ServiceWallClock {
        actor: u32,
        offset_ms: i64,
    },
    BreakSessions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum UnsyncedForm {
    Lost,
    Kept,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FailureForm {
    Full,
    Broken,
}

/// What a crash leaves of what was not synced; the number is the seed of what is left to chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ImageForm {
    Nothing,
    Everything,
    Subset(u64),
    Torn(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum OperationForm {
    Write,
    Sync,
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum DamageForm {
    Flip,
    Truncate,
    Misdirect,
    MisdirectAway,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum AimForm {
    Anywhere,
    AnywhereBeforeClose,
    Last,
    LastBeforeClose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum DirectionForm {
    ToReplica,
    ToService,
    Both,
}

/// Two enums of the same variants.
macro_rules! same {
    ($($form:ident = $own:ident { $($variant:ident $(($field:ident))?),* })*) => {$(
        impl From<$own> for $form {
            fn from(own: $own) -> Self {
                match own {
                    $($own::$variant $(($field))? => Self::$variant $(($field))?,)*
                }
            }
        }

        impl From<$form> for $own {
            fn from(form: $form) -> Self {
                match form {
                    $($form::$variant $(($field))? => Self::$variant $(($field))?,)*
                }
            }
        }
    )*};
}

same! {
    ImageForm = CrashImage { Nothing, Everything, Subset(seed), Torn(seed) }
    OperationForm = OperationFault { Write, Sync, Full }
    DamageForm = Damage { Flip, Truncate, Misdirect, MisdirectAway }
    DirectionForm = Direction { ToReplica, ToService, Both }
    AimForm = Aim { Anywhere, AnywhereBeforeClose, Last, LastBeforeClose }
}

/// The network between replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WeatherForm {
    pub(super) delay_us: (u64, u64),
    loss_ppm: u64,
    duplicate_ppm: u64,
    replay_us_max: u64,
}

impl From<Weather> for WeatherForm {
    fn from(weather: Weather) -> Self {
        let Weather {
            delay_us,
            loss_ppm,
            duplicate_ppm,
            replay_us_max,
        } = weather;
        Self {
            delay_us,
            loss_ppm,
            duplicate_ppm,
            replay_us_max,
        }
    }
}

impl From<WeatherForm> for Weather {
    fn from(form: WeatherForm) -> Self {
        let WeatherForm {
            delay_us,
            loss_ppm,
            duplicate_ppm,
            replay_us_max,
        } = form;
        Self {
            delay_us,
            loss_ppm,
            duplicate_ppm,
            replay_us_max,
        }
    }
}

impl From<UnsyncedWrite> for UnsyncedForm {
    fn from(unsynced: UnsyncedWrite) -> Self {
        match unsynced {
            UnsyncedWrite::Lost => Self::Lost,
            UnsyncedWrite::Kept => Self::Kept,
        }
    }
}

impl From<UnsyncedForm> for UnsyncedWrite {
    fn from(form: UnsyncedForm) -> Self {
        match form {
            UnsyncedForm::Lost => Self::Lost,
            UnsyncedForm::Kept => Self::Kept,
        }
    }
}

impl From<&Fault> for FaultForm {
    fn from(fault: &Fault) -> Self {
        match fault {
            Fault::Crash(id, unsynced) => Self::Crash {
                replica: id.0,
                unsynced: (*unsynced).into(),
            },
            Fault::CrashLeader(unsynced) => Self::CrashLeader {
                unsynced: (*unsynced).into(),
            },
            Fault::Start(id) => Self::Start { replica: id.0 },
            Fault::Drain(id) => Self::Drain { replica: id.0 },
            Fault::Pause(id, length_us) => Self::Pause {
                replica: id.0,
                length_us: *length_us,
            },
            Fault::Cut(from, to) => Self::Cut {
                from: from.0,
                to: to.0,
            },
            Fault::Clog(from, to, length_us) => Self::Clog {
                from: from.0,
                to: to.0,
                length_us: *length_us,
            },
            Fault::Topology(open) => Self::Topology {
                open: open.iter().map(|(a, b)| (a.0, b.0)).collect(),
            },
            Fault::Mend => Self::Mend,
            Fault::Weather(weather) => Self::Weather((*weather).into()),
            Fault::WallClock(id, offset_ms) => Self::WallClock {
                replica: id.0,
                offset_ms: *offset_ms,
            },
            Fault::SlowDisk(id, sync_us) => Self::SlowDisk {
                replica: id.0,
                sync_us: *sync_us,
            },
            Fault::FailDisk(id, WriteFailure::Full) => Self::FailDisk {
                replica: id.0,
                failure: FailureForm::Full,
            },
            Fault::FailDisk(id, WriteFailure::Broken) => Self::FailDisk {
                replica: id.0,
                failure: FailureForm::Broken,
            },
            Fault::CrashAt(id, point, down_us) => Self::CrashAt {
                replica: id.0,
                after: point.after,
                image: point.image.into(),
                again: point.again.map(|(after, image)| (after, image.into())),
                down_us: *down_us,
            },
            Fault::FailOperation(id, operation, after) => Self::FailOperation {
                replica: id.0,
                operation: (*operation).into(),
                after: *after,
            },
            Fault::Damage(id, damage, aim, pick) => Self::Damage {
                replica: id.0,
                damage: (*damage).into(),
                aim: (*aim).into(),
                pick: *pick,
            },
            Fault::PutBack(id) => Self::PutBack { replica: id.0 },
            Fault::Swap(one, other) => Self::Swap {
                one: one.0,
                other: other.0,
            },
            Fault::Corrupt(id, pick) => Self::Corrupt {
                replica: id.0,
                pick: *pick,
            },
            Fault::Wipe(id) => Self::Wipe { replica: id.0 },
            Fault::Backup(id) => Self::Backup { replica: id.0 },
            Fault::Rollback(id) => Self::Rollback { replica: id.0 },
            Fault::CutLine(actor, replica, direction, length_us) => Self::CutLine {
                actor: actor.0,
                replica: replica.0,
                direction: (*direction).into(),
                length_us: *length_us,
            },
            Fault::ClogLine(actor, replica, length_us) => Self::ClogLine {
                actor: actor.0,
                replica: replica.0,
                length_us: *length_us,
            },
            Fault::PauseActor(id, length_us) => Self::PauseActor {
                actor: id.0,
                length_us: *length_us,
            },
            Fault::CrashActor(id) => Self::CrashActor { actor: id.0 },
            Fault::Service(id, fault) => Self::of_service(id.0, *fault),
            Fault::BreakSessions => Self::BreakSessions,
            Fault::Hush(pick) => Self::Hush { pick: *pick },
            Fault::Rush(count, gap_us) => Self::Rush {
                count: *count,
                gap_us: *gap_us,
            },
        }
    }
}

impl From<FaultForm> for Fault {
    fn from(form: FaultForm) -> Self {
        match form {
            FaultForm::Crash { replica, unsynced } => Self::Crash(ReplicaId(replica), unsynced.into()),
            FaultForm::CrashLeader { unsynced } => Self::CrashLeader(unsynced.into()),
            FaultForm::Start { replica } => Self::Start(ReplicaId(replica)),
            FaultForm::Drain { replica } => Self::Drain(ReplicaId(replica)),
            FaultForm::Pause { replica, length_us } => Self::Pause(ReplicaId(replica), length_us),
            FaultForm::Cut { from, to } => Self::Cut(ReplicaId(from), ReplicaId(to)),
            FaultForm::Clog { from, to, length_us } => Self::Clog(ReplicaId(from), ReplicaId(to), length_us),
            FaultForm::Topology { open } => Self::Topology(
                open.into_iter()
                    .map(|(a, b)| (ReplicaId(a), ReplicaId(b)))
                    .collect(),
            ),
            FaultForm::Mend => Self::Mend,
            FaultForm::Weather(weather) => Self::Weather(weather.into()),
            FaultForm::WallClock { replica, offset_ms } => Self::WallClock(ReplicaId(replica), offset_ms),
            FaultForm::SlowDisk { replica, sync_us } => Self::SlowDisk(ReplicaId(replica), sync_us),
            FaultForm::FailDisk {
                replica,
                failure: FailureForm::Full,
            } => Self::FailDisk(ReplicaId(replica), WriteFailure::Full),
            FaultForm::FailDisk {
                replica,
                failure: FailureForm::Broken,
            } => Self::FailDisk(ReplicaId(replica), WriteFailure::Broken),
            FaultForm::CrashAt {
                replica,
                after,
                image,
                again,
                down_us,
            } => {
                let point = CrashPoint {
                    after,
                    image: image.into(),
                    again: again.map(|(after, image)| (after, image.into())),
                };
                Self::CrashAt(ReplicaId(replica), point, down_us)
            }
            FaultForm::FailOperation {
                replica,
                operation,
                after,
            } => Self::FailOperation(ReplicaId(replica), operation.into(), after),
            FaultForm::Damage {
                replica,
                damage,
                aim,
                pick,
            } => Self::Damage(ReplicaId(replica), damage.into(), aim.into(), pick),
            FaultForm::PutBack { replica } => Self::PutBack(ReplicaId(replica)),
            FaultForm::Swap { one, other } => Self::Swap(ReplicaId(one), ReplicaId(other)),
            FaultForm::Corrupt { replica, pick } => Self::Corrupt(ReplicaId(replica), pick),
            FaultForm::Wipe { replica } => Self::Wipe(ReplicaId(replica)),
            FaultForm::Backup { replica } => Self::Backup(ReplicaId(replica)),
            FaultForm::Rollback { replica } => Self::Rollback(ReplicaId(replica)),
            FaultForm::CutLine {
                actor,
                replica,
                direction,
                length_us,
            } => Self::CutLine(ActorId(actor), ReplicaId(replica), direction.into(), length_us),
            FaultForm::ClogLine {
                actor,
                replica,
                length_us,
            } => Self::ClogLine(ActorId(actor), ReplicaId(replica), length_us),
            FaultForm::PauseActor { actor, length_us } => Self::PauseActor(ActorId(actor), length_us),
            FaultForm::CrashActor { actor } => Self::CrashActor(ActorId(actor)),
            FaultForm::ServiceDiskCrash { actor, operation } => {
                Self::Service(ActorId(actor), ServiceFault::CrashAtOperation(operation))
            }
            FaultForm::ServiceDiskFails { actor, operation } => {
                Self::Service(ActorId(actor), ServiceFault::FailAtOperation(operation))
            }
            FaultForm::ServiceDiskFull { actor } => Self::Service(ActorId(actor), ServiceFault::Full),
            FaultForm::ServiceDiskSlow { actor, operation_us } => {
                Self::Service(ActorId(actor), ServiceFault::Slow(operation_us))
            }
            FaultForm::ServiceRolledBackByHand { actor, pick } => {
                Self::Service(ActorId(actor), ServiceFault::RollBackByHand(pick))
            }
            FaultForm::ServiceWallClock { actor, offset_ms } => {
                Self::Service(ActorId(actor), ServiceFault::WallClock(offset_ms))
            }
            FaultForm::BreakSessions => Self::BreakSessions,
            FaultForm::Hush { pick } => Self::Hush(pick),
            FaultForm::Rush { count, gap_us } => Self::Rush(count, gap_us),
        }
    }
}

impl FaultForm {
    fn of_service(actor: u32, fault: ServiceFault) -> Self {
        match fault {
            ServiceFault::CrashAtOperation(operation) => Self::ServiceDiskCrash { actor, operation },
            ServiceFault::FailAtOperation(operation) => Self::ServiceDiskFails { actor, operation },
            ServiceFault::Full => Self::ServiceDiskFull { actor },
            ServiceFault::Slow(operation_us) => Self::ServiceDiskSlow { actor, operation_us },
            ServiceFault::RollBackByHand(pick) => Self::ServiceRolledBackByHand { actor, pick },
            ServiceFault::WallClock(offset_ms) => Self::ServiceWallClock { actor, offset_ms },
        }
    }

    /// The highest replica and the highest service that the fault speaks of, for a look before it runs.
    pub(super) fn ids(&self) -> (Vec<u8>, Option<u32>) {
        match self {
            Self::Crash { replica, .. }
            | Self::Start { replica }
            | Self::Drain { replica }
            | Self::Pause { replica, .. }
            | Self::WallClock { replica, .. }
            | Self::SlowDisk { replica, .. }
            | Self::FailDisk { replica, .. }
            | Self::CrashAt { replica, .. }
            | Self::FailOperation { replica, .. }
            | Self::Damage { replica, .. }
            | Self::PutBack { replica }
            | Self::Corrupt { replica, .. }
            | Self::Wipe { replica }
            | Self::Backup { replica }
            | Self::Rollback { replica } => (vec![*replica], None),
            Self::Cut { from, to } | Self::Clog { from, to, .. } => (vec![*from, *to], None),
            Self::Swap { one, other } => (vec![*one, *other], None),
            Self::Topology { open } => (open.iter().flat_map(|(a, b)| [*a, *b]).collect(), None),
            Self::CutLine { actor, replica, .. } | Self::ClogLine { actor, replica, .. } => {
                (vec![*replica], Some(*actor))
            }
            Self::CrashActor { actor }
            | Self::PauseActor { actor, .. }
            | Self::ServiceDiskCrash { actor, .. }
            | Self::ServiceDiskFails { actor, .. }
            | Self::ServiceDiskFull { actor }
            | Self::ServiceDiskSlow { actor, .. }
            | Self::ServiceRolledBackByHand { actor, .. }
            | Self::ServiceWallClock { actor, .. } => (Vec::new(), Some(*actor)),
            Self::CrashLeader { .. }
            | Self::Hush { .. }
            | Self::Rush { .. }
            | Self::Mend
            | Self::Weather(_)
            | Self::BreakSessions => (Vec::new(), None),
        }
    }
}

/// Every kind of fault, as the figures of a run name it.
pub const FAULT_KINDS: [&str; 35] = [
    "crash",
    "crash of the leader",
    "start",
    "drain",
    "pause",
    "one-way cut",
    "partition",
    "mend",
    "weather",
    "wall clock",
    "slow disk",
    "failing disk",
    "corrupt record",
    "wiped directory",
    "backup",
    "rolled-back directory",
    "crash of a service",
    "broken sessions",
    "crash at an operation",
    "failing operation",
    "damage",
    "old directory put back",
    "swapped directories",
    "power loss at an operation of a service's disk",
    "failing disk of a service",
    "full disk of a service",
    "slow disk of a service",
    "branch rolled back by hand",
    "wall clock of a service",
    "hushed leader",
    "rush of proposals",
    "clogged link",
    "cut line to a replica",
    "clogged line to a replica",
    "pause of a service",
];

/// The name of a fault's kind, one of [`FAULT_KINDS`].
#[must_use]
pub fn fault_kind(fault: &Fault) -> &'static str {
    FAULT_KINDS[match fault {
        Fault::Crash(..) => 0,
        Fault::CrashLeader(_) => 1,
        Fault::Start(_) => 2,
        Fault::Drain(_) => 3,
        Fault::Pause(..) => 4,
        Fault::Cut(..) => 5,
        Fault::Topology(_) => 6,
        Fault::Mend => 7,
        Fault::Weather(_) => 8,
        Fault::WallClock(..) => 9,
        Fault::SlowDisk(..) => 10,
        Fault::FailDisk(..) => 11,
        Fault::Corrupt(..) => 12,
        Fault::Wipe(_) => 13,
        Fault::Backup(_) => 14,
        Fault::Rollback(_) => 15,
        Fault::CrashActor(_) => 16,
        Fault::BreakSessions => 17,
        Fault::CrashAt(..) => 18,
        Fault::FailOperation(..) => 19,
        Fault::Damage(..) => 20,
        Fault::PutBack(_) => 21,
        Fault::Swap(..) => 22,
        Fault::Service(_, ServiceFault::CrashAtOperation(_)) => 23,
        Fault::Service(_, ServiceFault::FailAtOperation(_)) => 24,
        Fault::Service(_, ServiceFault::Full) => 25,
        Fault::Service(_, ServiceFault::Slow(_)) => 26,
        Fault::Service(_, ServiceFault::RollBackByHand(_)) => 27,
        Fault::Service(_, ServiceFault::WallClock(_)) => 28,
        Fault::Hush(_) => 29,
        Fault::Rush(..) => 30,
        Fault::Clog(..) => 31,
        Fault::CutLine(..) => 32,
        Fault::ClogLine(..) => 33,
        Fault::PauseActor(..) => 34,
    }]
}
