//! What experiments showed, and how that is told.

use std::fmt;

/// What an experiment showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// It works, but not as well as it could.
    Warning(String),
    /// What it is about cannot be used here, for this reason.
    Failed(String),
    /// It could not be tried, for this reason, which says nothing about the kernel.
    Untried(String),
}

/// One experiment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    /// What was looked at.
    pub name: &'static str,
    /// What it showed.
    pub outcome: Outcome,
    /// What to do about a warning or failure.
    pub remedy: &'static str,
}

/// All experiments, in the order they were made. Those that could not be made because an earlier one failed are
/// missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// One for each experiment.
    pub probes: Vec<ProbeResult>,
}

impl Report {
    /// Whether the sockmap datapath can be used.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// What speaks against it.
    pub fn failures(&self) -> impl Iterator<Item = &ProbeResult> {
        self.probes.iter().filter(|probe| matches!(probe.outcome, Outcome::Failed(_)))
    }
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, outcome, remedy } = self;
        match outcome {
            Outcome::Passed => writeln!(f, "ok       {name}"),
            Outcome::Warning(why) => writeln!(f, "warning  {name}: {why}\n         remedy: {remedy}"),
            Outcome::Failed(why) => writeln!(f, "failed   {name}: {why}\n         remedy: {remedy}"),
            Outcome::Untried(why) => writeln!(f, "untried  {name}: {why}\n         remedy: {remedy}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for probe in &self.probes {
            write!(f, "{probe}")?;
        }
        let verdict = if self.passed() {
            "the kernel can move the bytes: datapath sockmap serves here, auto takes it, and relay serves anywhere"
        } else {
            "bytes are copied in userspace: auto takes the datapath relay, and sockmap refuses to start"
        };
        writeln!(f, "=> {verdict}")
    }
}
