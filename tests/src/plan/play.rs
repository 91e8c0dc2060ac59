//! Running a plan: whatever happens in it, a panic included, comes back as a value.

use super::Plan;
use crate::checkers::points::Points;
use crate::run::{Report, play, report};
use crate::trace::Detail;
use crate::world::World;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a run ended.
#[derive(Debug)]
pub struct Ending {
    /// What it came to, or what was found.
    pub result: Result<Report, Failure>,
    /// The points that it came past.
    pub points: Points,
    /// The world in the end; `None` after a panic.
    pub world: Option<Box<World>>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The checker's words, or the panic's.
    pub text: String,
    /// Whether the system or a checker panicked.
    pub is_panic: bool,
}

impl Failure {
    /// What two failures of the same checker have in common: its words without the values that a run fills in, and
    /// without what follows a semicolon, where checkers say what they compared with. Shrinking must not wander from one
    /// bug to another.
    #[must_use]
    pub fn kind(&self) -> String {
        let first = self.text.split(['\n', ';']).next().unwrap_or_default();
        let words = first.split_whitespace().map(|word| {
            let is_filled_in = word.chars().any(|one| one.is_ascii_digit());
            if is_filled_in { "#" } else { word }
        });
        // Debug forms of values begin with a brace or a parenthesis somewhere: what follows differs from run to run.
        let words: Vec<&str> = words
            .take_while(|word| !word.contains(['{', '(']))
            .take(KIND_WORDS_MAX)
            .collect();
        words.join(" ")
    }
}

/// How many words of a failure tell its kind: as many as a checker writes before it shows values.
const KIND_WORDS_MAX: usize = 9;

/// Runs a plan.
#[must_use]
pub fn run(plan: &Plan, detail: Detail) -> Ending {
    let mut draw = plan.draw.clone();
    draw.setup.detail = detail;
    match catch_unwind(AssertUnwindSafe(|| play(&draw))) {
        Ok((checked, world)) => {
            let points = world
                .as_ref()
                .map(|world| world.checkers.points.clone())
                .unwrap_or_default();
            let result = match (checked, &world) {
                (Ok(()), Some(world)) => Ok(report(world)),
                (Ok(()), None) => Err(Failure {
                    text: "the world did not begin".to_string(),
                    is_panic: false,
                }),
                (Err(violation), _) => Err(Failure {
                    text: violation.0,
                    is_panic: false,
                }),
            };
            Ending {
                result,
                points,
                world,
            }
        }
        Err(panic) => {
            let failure = Failure {
                text: text_of(panic.as_ref()),
                is_panic: true,
            };
            Ending {
                result: Err(failure),
                points: Points::default(),
                world: None,
            }
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words")
        .to_string()
}
