//! Every point at which a machine can stop, one after the other, and every place at which a log can rot: the replicas'
//! machines, and those of services over the real participant and the real redb store.
//!
//! A scripted cluster run (three replicas, transactions throughout, segments that fill up, a follower that crashes and
//! catches up, a leader that crashes) is repeated once for each operation of each replica's log disk and each
//! [image](CrashImage) of what a crash leaves there: the machine stops exactly there, starts again, and the cluster must come
//! to rest with every checker content. Then again with a second crash at each operation of the repair that the first one
//! caused; and, without a crash in the way, with each kind of field of the log damaged. The same is done with a cluster whose
//! services have redb files: there the machine of a service loses power, at each operation of its file's disk.
//!
//! Nothing is left to chance: a [`Case`] names its run, and the same case does the same.
//!
//! | what | where |
//! |---|---|
//! | the run and its variants | [`script`] |
//! | the run with redb stores and its variants | [`stores`] |
//! | the list of cases | [`cases`] |
//! | all of them, on all cores | [`sweep`] |
//! | the program | `src/bin/crash_points` |

pub mod cases;
pub mod script;
pub mod stores;
pub mod sweep;

use crate::actors::service::StopPoint;
use crate::log_disk::CrashPoint;
use std::fmt;
use std::str::FromStr;
use synod::resource::redb::PowerLoss;
use synod_coordinator::log::CrashImage;
use synod_proto::ids::ReplicaId;

/// The images that are gone through.
pub const IMAGE_COUNT: usize = 4;

/// One run of a script with one thing done to one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Case {
    /// Which variant of the script.
    pub variant: u8,
    /// Whose disk.
    pub machine: Machine,
    /// What is done to it.
    pub act: Act,
}

/// Whose machine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Machine {
    /// A replica's, with a log.
    Replica(ReplicaId),
    /// A service's, with a redb file; counted from 0, and named from 1.
    Service(u32),
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    /// The machine stops at an operation of its disk, counted from the beginning, and perhaps again while the log or the file
    /// is repaired. The image is the number of one of four.
    Crash(u64, usize, Option<(u64, usize)>),
    /// At the end of the script the machine of a replica stops, and one place of the log is damaged: a number in the list of
    /// [`sites`](crate::log_disk::sites).
    Damage(usize),
}

/// The names of the images, in their order.
const IMAGE_NAMES: [&str; IMAGE_COUNT] = ["nothing", "everything", "subset", "torn"];

impl Case {
    /// The crash of a service's machine that it means, if it means one.
    #[must_use]
    pub fn stop_point(&self) -> Option<StopPoint> {
        let Act::Crash(after, image, again) = self.act else {
            return None;
        };
        Some(StopPoint {
            after,
            power_loss: power_loss_of(image, after),
            again: again.map(|(after, image)| (after, power_loss_of(image, after))),
        })
    }

    /// The crash of a replica's machine that it means, if it means one.
    #[must_use]
    pub fn point(&self) -> Option<CrashPoint> {
        let Act::Crash(after, image, again) = self.act else {
            return None;
        };
        Some(CrashPoint {
            after,
            image: image_of(image, after),
            again: again.map(|(after, image)| (after, image_of(image, after))),
        })
    }
}

/// The image of a number; what it leaves to chance follows from the operation.
fn image_of(number: usize, operation: u64) -> CrashImage {
    match number {
        0 => CrashImage::Nothing,
        1 => CrashImage::Everything,
        2 => CrashImage::Subset(operation),
        _ => CrashImage::Torn(operation),
    }
}

fn power_loss_of(number: usize, operation: u64) -> PowerLoss {
    match image_of(number, operation) {
        CrashImage::Nothing => PowerLoss::Lost,
        CrashImage::Everything => PowerLoss::Kept,
        CrashImage::Subset(seed) => PowerLoss::Subset(seed),
        CrashImage::Torn(seed) => PowerLoss::Torn(seed),
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replica(id) => write!(f, "{}", id.0),
            Self::Service(number) => write!(f, "service-{}", number + 1),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/", self.variant, self.machine)?;
        match self.act {
            Act::Crash(operation, image, again) => {
                write!(f, "{operation}:{}", IMAGE_NAMES[image])?;
                match again {
                    Some((after, image)) => write!(f, "/{after}:{}", IMAGE_NAMES[image]),
                    None => Ok(()),
                }
            }
            Act::Damage(site) => write!(f, "site:{site}"),
        }
    }
}

/// A text that names no case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotACase(String);

impl fmt::Display for NotACase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no case: VARIANT/MACHINE/OPERATION:IMAGE, with /OPERATION:IMAGE for a second crash, or \
             VARIANT/MACHINE/site:NUMBER; machines are replicas, as 1, and services, as service-1; images are {}",
            self.0,
            IMAGE_NAMES.join(", ")
        )
    }
}

impl std::error::Error for NotACase {}

impl FromStr for Case {
    type Err = NotACase;

    fn from_str(text: &str) -> Result<Self, NotACase> {
        parse(text).ok_or_else(|| NotACase(text.to_string()))
    }
}

fn parse(text: &str) -> Option<Case> {
    let moment = |text: &str| -> Option<(u64, usize)> {
        let (operation, image) = text.split_once(':')?;
        let image = IMAGE_NAMES.iter().position(|name| *name == image)?;
        Some((operation.parse().ok()?, image))
    };
    let mut parts = text.split('/');
    let variant = parts
        .next()?
        .parse()
        .ok()
        .filter(|one| *one < script::VARIANT_COUNT)?;
    let machine = machine(parts.next()?)?;
    let first = parts.next()?;
    let act = match first.strip_prefix("site:") {
        Some(number) if matches!(machine, Machine::Replica(_)) => Act::Damage(number.parse().ok()?),
        Some(_) => return None,
        None => {
            let (operation, image) = moment(first)?;
            let again = match parts.next() {
                Some(second) => Some(moment(second)?),
                None => None,
            };
            Act::Crash(operation, image, again)
        }
    };
    parts.next().is_none().then_some(Case {
        variant,
        machine,
        act,
    })
}

fn machine(text: &str) -> Option<Machine> {
    match text.strip_prefix("service-") {
        Some(number) => {
            let number = number.parse::<u32>().ok()?.checked_sub(1)?;
            (number < stores::STORE_COUNT).then_some(Machine::Service(number))
        }
        None => {
            let number = text.parse().ok()?;
            let is_one = (1..=script::REPLICA_COUNT).contains(&number);
            is_one.then_some(Machine::Replica(ReplicaId(number)))
        }
    }
}
