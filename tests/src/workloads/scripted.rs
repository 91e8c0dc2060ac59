//! Participants and initiators that imitate the library: cheap, and nastier than it would ever be. They forget
//! acknowledgements, and their messages overtake each other one by one.

use super::Workload;
use crate::actors::ActorId;
use crate::actors::initiator::{self, Initiator};
use crate::actors::participant::{self, Participant};
use crate::schedule::Micros;
use crate::world::World;
use synod_proto::ids::ResourceId;

/// The workload.
#[derive(Clone, Copy, Debug)]
pub struct Scripted {
    /// How many services have a database.
    pub participant_count: u32,
    /// How many services begin transactions.
    pub initiator_count: u32,
    /// How many transactions each of them begins.
    pub transaction_count: u64,
    /// The shortest and the longest pause between two begins of an initiator.
    pub pause_us: (Micros, Micros),
}

impl Workload for Scripted {
    fn actor_count(&self) -> u32 {
        self.participant_count + self.initiator_count
    }

    fn populate(&mut self, world: &mut World) {
        let habits = initiator::Habits {
            pause_us: self.pause_us,
            ..initiator::Habits::mixed(self.transaction_count)
        };
        let participants = (self.participant_count, participant::Habits::MIXED);
        populate(world, participants, (self.initiator_count, &habits));
    }
}

/// Adds participants and initiators to a world.
pub fn populate(
    world: &mut World,
    participants: (u32, participant::Habits),
    initiators: (u32, &initiator::Habits),
) -> (Vec<ActorId>, Vec<ActorId>) {
    let replicas = world.replicas();
    let called: Vec<ActorId> = (0..participants.0)
        .map(|number| {
            world.add_actor(Participant::new(
                resource(number),
                replicas.clone(),
                participants.1,
            ))
        })
        .collect();
    let calling = (0..initiators.0)
        .map(|_| {
            world.add_actor(Initiator::new(
                replicas.clone(),
                called.clone(),
                initiators.1.clone(),
            ))
        })
        .collect();
    (called, calling)
}

/// The id of the `number`-th database.
#[must_use]
pub fn resource(number: u32) -> ResourceId {
    ResourceId((0xda7a_0000_u128 + u128::from(number)).to_be_bytes())
}
