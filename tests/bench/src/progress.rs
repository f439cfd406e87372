//! A line on stderr with the progress of a run.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// On a terminal one line that is overwritten. In a file, an occasional line.
pub(crate) struct Progress {
    terminal: bool,
    started: Instant,
    estimate: f64,
    last: Option<Instant>,
    width: usize,
}

const TO_A_FILE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    /// The progress of a run of about `estimate` seconds that starts now.
    pub(crate) fn new(estimate: f64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, started: Instant::now(), estimate, last: None, width: 0 }
    }

    /// Shows the current step.
    pub(crate) fn step(&mut self, what: &str) {
        if !self.terminal && self.last.is_some_and(|last| last.elapsed() < TO_A_FILE_EVERY) {
            return;
        }
        self.last = Some(Instant::now());
        let left = (self.estimate - self.started.elapsed().as_secs_f64()).max(0.0);
        let line = format!("{what}  (about {} left)", clock(left));
        self.write(&line);
    }

    /// Prints a permanent note.
    pub(crate) fn note(&mut self, what: &str) {
        self.finish();
        eprintln!("{what}");
    }

    fn write(&mut self, line: &str) {
        if self.terminal {
            eprint!("\r{line:<width$}", width = self.width);
            self.width = line.len();
        } else {
            eprintln!("{line}");
        }
        // A closed terminal is no reason to stop measuring.
        let _: std::io::Result<()> = std::io::stderr().flush();
    }

    /// Removes the line.
    pub(crate) fn finish(&mut self) {
        if self.terminal && self.width > 0 {
            eprint!("\r{:width$}\r", "", width = self.width);
            self.width = 0;
        }
    }
}

/// Minutes and seconds.
pub(crate) fn clock(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a duration of minutes")]
    let seconds = seconds.max(0.0).round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_minutes_and_two_digits() {
        assert_eq!(clock(0.0), "0:00");
        assert_eq!(clock(179.6), "3:00");
        assert_eq!(clock(2105.2), "35:05");
    }
}
