//! The disks under the stores of one world: how many operations they had, and what became of losses of power by plan.

use std::collections::BTreeMap;
use synod::resource::redb::MemoryDisk;
use synod_proto::ids::ResourceId;

/// See the module.
#[derive(Debug, Default)]
pub struct Disks {
    /// Each with the operations of its making, before its service runs.
    of: BTreeMap<ResourceId, (MemoryDisk, u64)>,
    stop_count: u64,
    /// The disk that lost power by plan and was not opened since, and the operations that it had had.
    stopped_at: Option<(ResourceId, u64)>,
    repair_operation_count: u64,
}

impl Disks {
    /// A store was laid out on its disk.
    pub(super) fn note(&mut self, resource: ResourceId, disk: &MemoryDisk) {
        self.of.insert(resource, (disk.clone(), disk.operation_count()));
    }

    /// A disk has lost power by plan.
    pub(super) fn note_stop(&mut self, resource: ResourceId, disk: &MemoryDisk) {
        self.stop_count += 1;
        self.stopped_at = Some((resource, disk.operation_count()));
    }

    /// A store was opened.
    pub(super) fn note_opened(&mut self, resource: ResourceId, disk: &MemoryDisk) {
        if let Some((_, stopped_at)) = self.stopped_at.take_if(|(stopped, _)| *stopped == resource) {
            self.repair_operation_count = disk.operation_count() - stopped_at;
        }
    }

    /// How many operations each store's disk has had since its service runs: writes, syncs and changes of length.
    pub fn operation_counts(&self) -> impl Iterator<Item = (ResourceId, u64)> {
        self.of
            .iter()
            .map(|(resource, (disk, before))| (*resource, disk.operation_count() - before))
    }

    /// How often power was lost by plan.
    #[must_use]
    pub fn stop_count(&self) -> u64 {
        self.stop_count
    }

    /// How many operations the opening had that followed the last loss by plan.
    #[must_use]
    pub fn repair_operation_count(&self) -> u64 {
        self.repair_operation_count
    }
}
