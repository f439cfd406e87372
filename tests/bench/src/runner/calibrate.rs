//! Finds the rate that everybody is asked for: a short look, at the beginning of a run, at what the peers can do.

use anyhow::ensure;

use super::{Run, scratch_directory};
use crate::{
    contestants::{self, Contestant, Role},
    interrupt,
    measure::Subject,
    pace::Pace,
    work::{self, Cell, Kind, Work},
};

/// Asked where no peer is installed.
const OTHERWISE: &str = "snisplice-relay";

impl Run {
    /// Sets the rate of every cell of the kind `paced`. All peers that are installed are looked at, whoever takes part:
    /// so the rates of two runs are alike.
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

    /// Adds what `contestant` reaches in each cell, if it is installed and serves.
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

    /// What is done in the cell, with the rate that was found.
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
