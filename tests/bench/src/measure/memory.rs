//! The memory of held connections.

use super::{Measured, Subject, as_f64};
use crate::{accounting, work};

/// Memory of the contestant and of the machine at one time, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    user: u64,
    group: Option<u64>,
    machine: u64,
}

impl Memory {
    /// Reads the memory.
    pub(super) fn now(group: Option<&accounting::ControlGroup>) -> anyhow::Result<Self> {
        Ok(Self {
            user: group.map_or(0, accounting::ControlGroup::user_memory),
            group: group.and_then(accounting::ControlGroup::kernel_memory),
            machine: accounting::kernel_memory()?,
        })
    }

    /// Sets the memory per connection, for `connections` that did not exist at `before`.
    pub(super) fn set(
        &self,
        before: &Self,
        connections: usize,
        subject: &Subject<'_>,
        measured: &mut Measured,
    ) {
        let each = |held: u64, before: u64| as_f64(held.saturating_sub(before)) / as_f64(connections as u64);
        measured.set(work::KERNEL_MACHINE, each(self.machine, before.machine));
        if subject.running.is_some() {
            measured.set(work::USER_MEMORY, each(self.user, before.user));
            if let (Some(held), Some(before)) = (self.group, before.group) {
                measured.set(work::KERNEL_MEMORY, each(held, before));
            }
        }
    }
}
