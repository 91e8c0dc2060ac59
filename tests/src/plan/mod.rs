//! Plans: one run as a file that people can read, change and keep.
//!
//! A [`Plan`] holds everything that a run is made of: the world (with the seed of all that is still left to chance, such
//! as delays) and the list of faults with their times. A seed is short but means something else as soon as anything drawn
//! from it changes; a plan keeps its world and its faults. What the workloads do in it still follows from the plan's seed, so
//! that a kept plan is a regression test of a kind of run, not of one order of events for ever: what must stay has a
//! test of its own as well. Plans of found bugs live in `tests/plans/` and run in every test run.
//!
//! | what | where |
//! |---|---|
//! | the file's form, one line a fault | here and `form` |
//! | running one, panics included | [`play`] |
//! | making a failing one smaller | [`shrink`] |
//! | figures over many | [`figures`] |
//! | the program | `src/bin/sim` |

pub mod figures;
mod form;
pub mod play;
pub mod seed;
pub mod shrink;

pub use form::{FAULT_KINDS, fault_kind};

use crate::faults::Fault;
use crate::network::Weather;
use crate::run::Draw;
use crate::schedule::Micros;
use crate::trace::Detail;
use crate::workloads::Workload;
use crate::workloads::bank::Bank;
use crate::world::{DRIFT_PPM_USUAL, Lines, NOTICE_US_USUAL, Setup};
use form::{FaultForm, TimedForm, WeatherForm};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::Path;
use synod_coordinator_core::replica::Limits;

/// One run as data.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it is and why it is kept, for people.
    pub about: String,
    /// The commit at which it was written, if that is known.
    pub commit: Option<String>,
    /// What the run came to there, if it failed.
    pub violation: Option<String>,
    /// The run.
    pub draw: Draw,
}

/// A file that is not a plan.
#[derive(Debug)]
#[non_exhaustive]
pub enum PlanError {
    /// It cannot be read: look at the path.
    Unreadable(std::io::Error),
    /// It is not of the form; the text names the line.
    Malformed(serde_json::Error),
    /// It speaks of something that its world does not have; the text says what.
    Impossible(String),
}

impl std::fmt::Display for PlanError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "the plan cannot be read: {error}"),
            Self::Malformed(error) => write!(f, "not a plan: {error}"),
            Self::Impossible(text) => write!(f, "an impossible plan: {text}"),
        }
    }
}

impl std::error::Error for PlanError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable(error) => Some(error),
            Self::Malformed(error) => Some(error),
            Self::Impossible(_) => None,
        }
    }
}

/// The longest phase of faults: a day. A mistyped length must not run for ever.
const FAULTS_US_MAX: Micros = 86_400_000_000;
/// The most services of each kind, and transactions of each.
const SERVICE_COUNT_MAX: u32 = 64;
const TRANSACTION_COUNT_MAX: u64 = 1_000_000;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanForm {
    about: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    violation: Option<String>,
    world: WorldForm,
    faults: Vec<TimedForm>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorldForm {
    seed: u64,
    replica_count: u8,
    participant_count: u32,
    initiator_count: u32,
    /// Of each initiator.
    transaction_count: u64,
    /// Of the bank, over the real library. Plans from before it have none.
    #[serde(default)]
    service_count: u32,
    /// Whether the bank's services publish messages. Plans from before have none.
    #[serde(default)]
    has_messages: bool,
    /// Between two begins of an initiator.
    #[serde(default = "pause_us")]
    pause_us: (u64, u64),
    /// Everything is healed then.
    faults_us: u64,
    weather: WeatherForm,
    lines: LinesForm,
    mail_us_max: u64,
    sync_us: u64,
    #[serde(default = "notice_us_max", skip_serializing_if = "is_usual_notice")]
    notice_us_max: u64,
    /// Of replicas, and of services.
    #[serde(default = "drift_ppm_max", skip_serializing_if = "is_usual_drift")]
    drift_ppm_max: (u32, u32),
    pipeline_depth: usize,
    retained_bytes_max: usize,
    #[serde(default = "queue_count_max")]
    queue_count_max: usize,
    #[serde(default)]
    is_long: bool,
    /// What draws the replicas that stay broken until the others have come to rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    core: Option<u64>,
}

/// What plans of before mean, which do not say it.
fn pause_us() -> (u64, u64) {
    (10_000, 400_000)
}

fn notice_us_max() -> u64 {
    NOTICE_US_USUAL
}

fn drift_ppm_max() -> (u32, u32) {
    DRIFT_PPM_USUAL
}

/// Serde asks by reference.
fn is_usual_notice(notice_us_max: &u64) -> bool {
    *notice_us_max == NOTICE_US_USUAL
}

fn is_usual_drift(drift_ppm_max: &(u32, u32)) -> bool {
    *drift_ppm_max == DRIFT_PPM_USUAL
}

fn queue_count_max() -> usize {
    Limits::default().queue_count_max
}

/// Between services, and between services and replicas.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinesForm {
    delay_us: (u64, u64),
    loss_ppm: u64,
}

impl Plan {
    /// What a seed draws.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let about = format!("what seed {seed} drew");
        Self {
            about,
            commit: None,
            violation: None,
            draw: Draw::new(seed, Detail::Hash),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// There is none, or it holds no plan that can be run.
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        Self::parse(&std::fs::read_to_string(path).map_err(PlanError::Unreadable)?)
    }

    /// Reads the text of a file. Unknown keys are refused: a mistyped one must not change the run in silence.
    ///
    /// # Errors
    /// It is no plan that can be run.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let form: PlanForm = serde_json::from_str(text).map_err(PlanError::Malformed)?;
        form.check()?;
        let PlanForm {
            about,
            commit,
            violation,
            world,
            faults,
        } = form;
        let plan = faults
            .into_iter()
            .map(|one| (one.at_us, one.fault.into()))
            .collect();
        Ok(Self {
            about,
            commit,
            violation,
            draw: world.into_draw(plan),
        })
    }

    /// The text of the file: one line a fault, so that a difference between two plans reads as one.
    ///
    /// # Panics
    /// None: every plan has a form.
    #[must_use]
    pub fn to_text(&self) -> String {
        let faults: Vec<TimedForm> = self
            .draw
            .plan
            .iter()
            .map(|(at_us, fault)| TimedForm {
                at_us: *at_us,
                fault: FaultForm::from(fault),
            })
            .collect();
        let form = PlanForm {
            about: self.about.clone(),
            commit: self.commit.clone(),
            violation: self.violation.clone(),
            world: WorldForm::of(&self.draw),
            faults: Vec::new(),
        };
        let head = serde_json::to_string_pretty(&form).expect("a plan has a form");
        let lines: Vec<String> = faults
            .iter()
            .map(|one| serde_json::to_string(one).expect("a fault has a form"))
            .collect();
        let mut text = head
            .strip_suffix("[]\n}")
            .expect("the faults come last")
            .to_string();
        // Writing to a string does not fail.
        let _ = match lines.is_empty() {
            true => writeln!(text, "[]\n}}"),
            false => writeln!(text, "[\n    {}\n  ]\n}}", lines.join(",\n    ")),
        };
        text
    }

    /// When each fault that happens happens: what was planned for later than the healing does not.
    pub fn faults(&self) -> impl Iterator<Item = &(Micros, Fault)> {
        self.draw.plan.iter().filter(|(at, _)| *at < self.draw.faults_us)
    }
}

impl PlanForm {
    /// Everything that would otherwise show as a panic in the middle of the run.
    fn check(&self) -> Result<(), PlanError> {
        let world = &self.world;
        let require = |holds: bool, text: String| {
            if holds {
                Ok(())
            } else {
                Err(PlanError::Impossible(text))
            }
        };
        let is_ordered = |(low, high): (u64, u64)| low <= high;
        require(
            (1..=9).contains(&world.replica_count),
            format!("{} replicas", world.replica_count),
        )?;
        for (count, what) in [
            (world.participant_count, "participants"),
            (world.initiator_count, "initiators"),
        ] {
            require(
                (1..=SERVICE_COUNT_MAX).contains(&count),
                format!("{count} {what}"),
            )?;
        }
        let transaction_count = world.transaction_count;
        require(
            transaction_count <= TRANSACTION_COUNT_MAX,
            format!("{transaction_count} transactions"),
        )?;
        require(
            world.faults_us <= FAULTS_US_MAX,
            format!("faults for {} us", world.faults_us),
        )?;
        require(world.pipeline_depth > 0, "a pipeline of no entry".to_string())?;
        require(
            world.notice_us_max >= 1_000,
            format!("sessions found broken within {} us", world.notice_us_max),
        )?;
        let (of_replicas, of_services) = world.drift_ppm_max;
        require(
            of_replicas.max(of_services) < 500_000,
            format!("clocks that drift by {:?} us a second", world.drift_ppm_max),
        )?;
        require(world.sync_us > 0, "a sync that takes no time".to_string())?;
        require(
            is_ordered(world.weather.delay_us),
            format!("delays of {:?} us", world.weather.delay_us),
        )?;
        require(
            is_ordered(world.pause_us),
            format!("pauses of {:?} us", world.pause_us),
        )?;
        require(world.queue_count_max > 0, "a queue of no command".to_string())?;
        require(
            is_ordered(world.lines.delay_us),
            format!("delays of {:?} us", world.lines.delay_us),
        )?;
        require(
            world.service_count <= SERVICE_COUNT_MAX,
            format!("{} services of a bank", world.service_count),
        )?;
        let actor_count = world.actor_count();
        for one in &self.faults {
            let (replicas, actor) = one.fault.ids();
            let unknown = replicas
                .iter()
                .find(|id| !(1..=world.replica_count).contains(*id));
            require(unknown.is_none(), format!("{one:?} speaks of an unknown replica"))?;
            require(
                actor.is_none_or(|id| id < actor_count),
                format!("{one:?} speaks of an unknown service"),
            )?;
            if let FaultForm::Weather(weather) = &one.fault {
                require(
                    is_ordered(weather.delay_us),
                    format!("delays of {:?} us", weather.delay_us),
                )?;
            }
        }
        Ok(())
    }
}

impl WorldForm {
    fn actor_count(&self) -> u32 {
        let bank = match self.service_count {
            0 => 0,
            count => Bank::new(self.seed, count).actor_count(),
        };
        self.participant_count + self.initiator_count + bank
    }

    fn of(draw: &Draw) -> Self {
        let Setup {
            seed,
            replica_count,
            weather,
            lines,
            mail_us_max,
            sync_us,
            notice_us_max,
            drift_ppm_max,
            detail: _,
        } = draw.setup;
        Self {
            seed,
            replica_count,
            participant_count: draw.participant_count,
            initiator_count: draw.initiator_count,
            transaction_count: draw.transaction_count,
            service_count: draw.service_count,
            has_messages: draw.has_messages,
            pause_us: draw.pause_us,
            faults_us: draw.faults_us,
            weather: weather.into(),
            lines: LinesForm {
                delay_us: lines.delay_us,
                loss_ppm: lines.loss_ppm,
            },
            mail_us_max,
            sync_us,
            notice_us_max,
            drift_ppm_max,
            pipeline_depth: draw.limits.pipeline_depth,
            retained_bytes_max: draw.limits.retained_bytes_max,
            queue_count_max: draw.limits.queue_count_max,
            is_long: draw.is_long,
            core: draw.core,
        }
    }

    fn into_draw(self, plan: crate::faults::Plan) -> Draw {
        let setup = Setup {
            seed: self.seed,
            replica_count: self.replica_count,
            weather: Weather::from(self.weather),
            lines: Lines {
                delay_us: self.lines.delay_us,
                loss_ppm: self.lines.loss_ppm,
            },
            mail_us_max: self.mail_us_max,
            sync_us: self.sync_us,
            notice_us_max: self.notice_us_max,
            drift_ppm_max: self.drift_ppm_max,
            detail: Detail::Hash,
        };
        Draw {
            seed: self.seed,
            setup,
            faults_us: self.faults_us,
            plan,
            participant_count: self.participant_count,
            initiator_count: self.initiator_count,
            transaction_count: self.transaction_count,
            service_count: self.service_count,
            has_messages: self.has_messages,
            pause_us: self.pause_us,
            limits: Limits {
                pipeline_depth: self.pipeline_depth,
                retained_bytes_max: self.retained_bytes_max,
                queue_count_max: self.queue_count_max,
                ..Limits::default()
            },
            is_long: self.is_long,
            core: self.core,
        }
    }
}
