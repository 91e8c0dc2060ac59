//! One stranger that asks of others' transactions, in every run.

use super::Workload;
use crate::actors::stranger::Stranger;
use crate::world::World;

/// The workload.
#[derive(Clone, Copy, Debug)]
pub struct OneStranger;

impl Workload for OneStranger {
    fn actor_count(&self) -> u32 {
        1
    }

    fn populate(&mut self, world: &mut World) {
        let replicas = world.replicas();
        world.add_actor(Stranger::new(replicas));
    }
}
