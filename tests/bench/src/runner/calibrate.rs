//! Finds the rate of the kind `paced`: a short measurement of the peers at the beginning of a run.

use anyhow::ensure;

use super::{Run, scratch_directory};
use crate::{
    contestants::{self, Contestant, Role},
    interrupt,
    measure::Subject,
    pace::Pace,
    work::{self, Cell, Kind, Work},
};

/// The contestant to measure if no peer is installed.
const OTHERWISE: &str = "snisplice-relay";

impl Run {
    /// Sets the rate of every cell of the kind `paced`. All installed peers are measured, also those that do not take
    /// part: so two runs have similar rates.
    pub(super) fn calibrate(&mut self) -> anyhow::Result<()> {
        if !self.extents.kinds.contains(&Kind::Paced) {
            return Ok(());
        }
        let cells = Kind::Paced.cells(self.extents.extent);
        let (peers, others): (Vec<_>, Vec<_>) =
            contestants::all().into_iter().partition(|contestant| contestant.role() == Role::Peer);
        let mut reached = vec![Vec::new(); cells.len()];
        for peer in &peers {
            self.reach(peer.as_ref(), &cells, &mut reached)?;
        }
        if reached.iter().any(Vec::is_empty) {
            for own in others.iter().filter(|contestant| contestant.id() == OTHERWISE) {
                self.reach(own.as_ref(), &cells, &mut reached)?;
            }
        }
        for (cell, reached) in cells.iter().zip(&reached) {
            self.record.paces.extend(Pace::of(&cell.name, reached));
        }
        ensure!(
            self.record.paces.len() == cells.len(),
            "no rate for paced: neither a peer nor snisplice serves"
        );
        Ok(())
    }

    /// Adds the rate of `contestant` in each cell, if it is installed and serves.
    fn reach(
        &mut self,
        contestant: &dyn Contestant,
        cells: &[Cell],
        reached: &mut [Vec<(String, f64)>],
    ) -> anyhow::Result<()> {
        let id = contestant.id();
        let Some(program) = contestant.find(&self.search) else { return Ok(()) };
        let directory = scratch_directory()?;
        let (running, start_up) =
            match self.start(contestant, Some(&program), Kind::Paced, 0, directory.path()) {
                Ok(started) => started,
                Err(error) => {
                    interrupt::check()?;
                    self.progress.note(&format!("{id}: not calibrated: {error:#}"));
                    return Ok(());
                }
            };
        let subject = Subject { running: running.as_ref(), start_up };
        for (cell, reached) in cells.iter().zip(reached) {
            let Work::Paced { size, connections, .. } = cell.work else { continue };
            self.progress.step(&format!("calibrating  {}  {id}", cell.name));
            let measured = self.rig.measure(&subject, Kind::Rr, Work::Request { size, connections })?;
            if measured.faults.is_empty()
                && let Some(rate) = measured.metrics.get(work::REQUESTS.key)
            {
                reached.push((id.to_owned(), *rate));
            }
        }
        Ok(())
    }

    /// The work of the cell, with its rate.
    pub(super) fn work(&self, cell: &Cell) -> Work {
        match cell.work {
            Work::Paced { size, connections, .. } => {
                let pace = self.record.paces.iter().find(|pace| pace.cell == cell.name);
                Work::Paced { size, connections, rate: pace.map_or(0, |pace| pace.rate) }
            }
            work => work,
        }
    }
}
