//! What is done with a cluster while faults strike it. A workload is a file with its actors and its checker; a new one
//! joins [`of`] and touches no other.

pub mod bank;
pub mod messages;
pub mod scripted;
pub mod stranger;

use crate::checkers::Check;
use crate::faults;
use crate::run::Draw;
use crate::schedule::Micros;
use crate::world::World;
use std::fmt;

/// One workload of one world.
pub trait Workload: fmt::Debug {
    /// How many services it consists of.
    fn actor_count(&self) -> u32;

    /// Adds its services to a world; their ids follow each other.
    fn populate(&mut self, world: &mut World);

    /// What must hold once the world has come to rest.
    ///
    /// # Errors
    /// Something does not hold.
    fn check_final(&self, _world: &World) -> Check {
        Ok(())
    }

    /// How often its services came past the points that they name.
    fn points(&self) -> Vec<(&'static str, &'static str, u64)> {
        Vec::new()
    }

    /// Faults that strike its services, beside those that strike any; drawn from a stream of its own. `first`: the number
    /// of its first service.
    fn faults(&self, _first: u32, _length: Micros) -> faults::Plan {
        Vec::new()
    }
}

/// The workloads of a run, in the order of their services.
#[must_use]
pub fn of(draw: &Draw) -> Vec<Box<dyn Workload>> {
    let mut workloads: Vec<Box<dyn Workload>> = vec![Box::new(scripted::Scripted {
        participant_count: draw.participant_count,
        initiator_count: draw.initiator_count,
        transaction_count: draw.transaction_count,
        pause_us: draw.pause_us,
    })];
    let mut last: Vec<Box<dyn Workload>> = Vec::new();
    if draw.service_count > 0 {
        let bank = bank::Bank::new(draw.seed, draw.service_count);
        if draw.has_messages {
            let first = draw.participant_count + draw.initiator_count;
            let messages = messages::Messages::new(draw.seed, first, draw.service_count, bank.books());
            workloads.push(Box::new(bank.with_messages(messages.books())));
            last.push(Box::new(messages));
        } else {
            workloads.push(Box::new(bank));
        }
    }
    workloads.push(Box::new(stranger::OneStranger));
    workloads.append(&mut last);
    workloads
}
