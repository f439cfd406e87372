//! The start with many names, and a reload with one more.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{Entry, Run, START_PATIENCE};
use crate::{
    contestants::route_name,
    interrupt,
    measure::{Measured, as_f64},
    running::Running,
    work::{self, Kind},
};

/// The pause after a start and after a reload, in which processes come to rest and free memory. A master process of
/// `HAProxy` ignores signals for a moment after its workers serve.
const AFTERWARDS: Duration = Duration::from_secs(1);

impl Run {
    /// The cost of the start, and of a reload until a new name is served.
    pub(super) fn reload(
        &self,
        index: usize,
        routes: usize,
        directory: &Path,
        running: &mut Running,
        start_up: Option<Duration>,
    ) -> anyhow::Result<Measured> {
        let mut measured = Measured::default();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        if let Some(start_up) = start_up {
            measured.set(work::START_UP, milliseconds(start_up));
        }
        interrupt::sleep_until(Instant::now() + AFTERWARDS);
        let resident = running.group().user_memory();
        measured.set(work::RESIDENT, as_f64(resident));
        let Entry { contestant, program, .. } = &self.entries[index];
        let Some(signal) = contestant.reload_signal() else { return Ok(measured) };

        let program = program.as_deref().context("a contestant without a program")?;
        contestant.prepare(program, &self.layout(Kind::Start, routes + 1, directory))?;
        let asked = Instant::now();
        running.ask(signal);
        let mut peak = resident;
        self.rig.wait_until_served(
            Some(&mut *running),
            Some(&route_name(routes)),
            START_PATIENCE,
            |running| {
                peak = peak.max(running.group().user_memory());
            },
        )?;
        measured.set(work::RELOAD, milliseconds(asked.elapsed()));
        measured.set(work::RELOAD_PEAK, as_f64(peak));
        interrupt::sleep_until(Instant::now() + AFTERWARDS);
        measured.set(work::RESIDENT_RELOADED, as_f64(running.group().user_memory()));
        Ok(measured)
    }
}
